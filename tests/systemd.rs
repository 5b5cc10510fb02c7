//! The server and its service manager: what is told, what is handed over, and that nobody loses anything in a restart.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]

#[path = "systemd/manager.rs"]
mod manager;
#[path = "systemd/notify.rs"]
mod notify;
#[path = "systemd/sockets.rs"]
mod sockets;
#[path = "systemd/stall.rs"]
mod stall;
#[path = "support/mod.rs"]
mod support;
#[path = "systemd/units.rs"]
mod units;
#[path = "systemd/upgrade.rs"]
mod upgrade;
