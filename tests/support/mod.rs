//! The harness for tests over real sockets: a server of one's own, and clients that say what they expect.
//!
//! ```ignore
//! let server = Server::start(Settings::new().set("limits", "max_message_length", 64));
//! let mut alice = server.client_named("alice");
//! alice.send(JoinChannel { channel_id: ChannelId(2), subchannel_id: None });
//! assert_eq!(alice.expect_reply("JOIN_RESPONSE")["success"], true);
//! alice.expect_broadcast("CHANNEL_PRESENCE");
//! assert_eq!(server.stop(), Some(0));
//! ```
//!
//! Fields are JSON in the vocabulary of the protocol's test vectors: 64-bit numbers are strings of digits, absent values
//! null. Every wait has a limit and every failure says what came instead; a failing test shows the server's output.

#![allow(dead_code, reason = "each test binary uses the part it needs")]
#![allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

pub mod browser;
pub mod chat;
pub mod client;
pub mod clock;
pub mod content;
pub mod host;
pub mod http;
pub mod link;
pub mod old_file;
pub mod server;

#[allow(unused_imports, reason = "each test binary uses the part it needs")]
pub use {
    client::Client,
    link::{Incoming, Link, Received},
    server::{Server, Settings},
};

/// Threads of this process, beside its first, whose name begins like that.
pub fn threads_named(prefix: &str) -> usize {
    let first = std::process::id().to_string();
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc is mounted").map(|task| task.unwrap());
    let names = tasks
        .filter(|task| task.file_name() != *first)
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}
