//! What is fuzzed: each target takes any bytes and panics where the code under test breaks a promise. The targets proper
//! are one line each; a smoke test drives the same functions without a fuzzer.

mod memory;
mod seeds;
mod session;
mod wire;

pub use session::session;
pub use wire::{client_message, frame, json, server_message};

/// A target, and the inputs it starts from.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame, seeds: seeds::frames },
    Target { name: "client_message", run: client_message, seeds: seeds::client_messages },
    Target { name: "server_message", run: server_message, seeds: seeds::server_messages },
    Target { name: "json", run: json, seeds: seeds::lines },
    Target { name: "session", run: session, seeds: seeds::sessions },
];
