//! The one SQLite file: opening it, bringing it up to date, mending what older servers left behind.

pub mod backup;
pub mod lock;
pub mod migrations;
pub mod open;
pub mod repair;
pub mod seeds;
