//! The SuperChat server as a library; the binary `scd` is a thin shell around it.

pub mod store;
