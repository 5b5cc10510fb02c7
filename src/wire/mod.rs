//! The binary protocol (WIRE.md): bytes and messages, no I/O and no runtime.
//!
//! A [`frame`] is cut from the stream, its payload read as a message of one of two tables: [`client`] holds everything a
//! client may say, [`server`] everything the server may say, each message declared once. [`codec`] has the forms that
//! fields take, [`records`] what several messages share, [`errors`] what can be wrong and the codes sent back,
//! [`json`] the same messages for tools.

pub mod client;
pub mod codec;
pub mod errors;
pub mod frame;
pub mod json;
pub mod records;
pub mod server;

pub use client::ClientMessage;
pub use errors::{ErrorCode, FrameError, WireError};
pub use server::ServerMessage;
