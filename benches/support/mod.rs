//! What the scenarios of the load generator are made of.

pub(crate) mod bare;
pub(crate) mod clock;
pub(crate) mod closed_loop;
pub(crate) mod deliveries;
pub(crate) mod histogram;
pub(crate) mod paired;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod requests;
pub(crate) mod server;
pub(crate) mod swarm;
