//! SuperChat server library; the binary `scd` is a thin shell around it.

pub mod admin;
pub mod clock;
pub mod config;
pub mod cli;
pub mod handlers;
pub mod ids;
pub mod limits;
pub mod metrics;
pub mod net;
pub mod passwords;
pub mod shard;
pub mod store;
pub mod text;
pub mod wire;
