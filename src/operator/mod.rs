//! The operator at the shell: `scd admin` speaks to the running server through a socket that only the server's own user
//! and root may use.
//!
//! One connection is one request: a line of JSON, answered by a line of JSON. [`socket`] says where the socket is and opens
//! it, [`server`] serves it, [`client`] is the command.

pub mod client;
pub mod server;
pub mod socket;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest line in either direction, in bytes: the sessions of a full server in one table.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// Longest request, in bytes: far more than a reason and a few names.
const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// What the operator asks of the server that keeps this database.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// So that nobody acts on another server than the one meant.
    pub database: PathBuf,
    pub order: Order,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    Users { limit: u16 },
    Admins,
    Bans { all: bool },
    Channels,
    Sessions,
    Audit { limit: u32 },
    Grant { nickname: String, role: Role },
    Revoke { nickname: String, role: Role },
    ResetPassword { nickname: String, password_hash: String },
    BanUser { nickname: String, reason: String, shadow: bool, seconds: Option<u64> },
    BanIp { address: String, reason: String, seconds: Option<u64> },
    UnbanUser { nickname: String },
    UnbanIp { address: String },
    DeleteUser { nickname: String },
    CreateChannel(NewChannel),
    DeleteChannel { name: String, reason: String },
    Disconnect { session: u64, reason: String },
}

/// A channel to be made; with a parent, a subchannel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewChannel {
    pub name: String,
    pub parent: Option<String>,
    pub display_name: Option<String>,
    pub description: String,
    pub is_chat: bool,
    pub retention_hours: u32,
}

/// A right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// May do what admins may
    Admin,
    /// Carries the moderator's sign, which gives no rights
    Moderator,
}

/// What came of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done, in words.
    Done(String),
    Table(Table),
    /// It is not, and why.
    Refused(String),
}

/// Rows of equal length under names.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
}
