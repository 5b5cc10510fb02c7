//! Everything that outlives the process.

pub mod sqlite;
