//! The monitoring kit below `deploy/`, run by the tools that operators run it with, against servers that run.
//!
//! [`tools`] are those programs, [`prometheus`] one of them with the kit's rules; [`load`] moves every metric that can
//! move; [`faults`] is the table of what can go wrong, and which alert says so; [`receivers`] stand for those who are
//! called at night.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]

mod support;

#[path = "monitoring/alerts.rs"]
mod alerts;
#[path = "monitoring/expressions.rs"]
mod expressions;
#[path = "monitoring/faults.rs"]
mod faults;
#[path = "monitoring/load.rs"]
mod load;
#[path = "monitoring/logs.rs"]
mod logs;
#[path = "monitoring/prometheus.rs"]
mod prometheus;
#[path = "monitoring/receivers.rs"]
mod receivers;
#[path = "monitoring/scripts.rs"]
mod scripts;
#[path = "monitoring/tools.rs"]
mod tools;
