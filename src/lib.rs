//! SuperChat server library; the binary `scd` is a thin shell around it.

pub mod admin;
pub mod clock;
pub mod metrics;
