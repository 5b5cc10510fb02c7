//! SuperChat server library; the binary `scd` is a thin shell around it.

pub mod admin;
pub mod backup;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod directory;
pub mod doctor;
pub mod errors;
pub mod handlers;
pub mod ids;
pub mod limits;
pub mod log;
pub mod manual;
pub mod metrics;
pub mod net;
pub mod passwords;
pub mod profile;
pub mod server;
pub mod shard;
pub mod store;
pub mod supervise;
pub mod support;
pub mod systemd;
pub mod text;
pub mod wire;
