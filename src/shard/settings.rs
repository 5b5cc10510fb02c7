//! What shards and handlers need of the configuration, resolved.

use std::sync::{Arc, Mutex, PoisonError};

use crate::store::Channel;
use crate::wire::codec::ArchiveFlag;
use crate::wire::server::ServerConfig;

/// Rules of the chat. Limits that are `None` are off.
#[derive(Debug, Clone)]
pub struct ChatSettings {
    /// What SERVER_CONFIG announces.
    pub announced: ServerConfig,
    /// Longest text in bytes, 1 to 4096.
    pub message_bytes_max: usize,
    pub thread_subscriptions_max: usize,
    pub channel_subscriptions_max: usize,
    /// Milliseconds without a whole frame before a session ends.
    pub idle_timeout_ms: Option<u64>,
    /// Say `Session timeout` before an idle session is closed.
    pub idle_notice: bool,
    /// Remove control characters outside direct messages (BEHAVIOUR.md 2.0).
    pub sanitize_content: bool,
    /// Send the byte of archives, for the clients that expect it.
    pub has_archive_flag: bool,
    /// Bytes that may wait for a reader that takes nothing.
    pub outbox_bytes_max: usize,
    /// Per session.
    pub requests_per_second: Option<u32>,
    /// Per user, or per session and address of a visitor.
    pub messages_per_minute: Option<u32>,
    /// Per user, channels and subchannels together.
    pub channels_per_hour: Option<u32>,
    /// New direct messages per initiator: a user, or session and address of a visitor.
    pub dms_per_hour: Option<u32>,
    /// Per address and per account.
    pub auth_attempts_per_minute: Option<u32>,
    /// Exact nicknames (BEHAVIOUR.md 5.1).
    pub admin_users: Vec<String>,
    pub moderator_users: Vec<String>,
    /// The server's own directory entry.
    pub directory: DirectoryEntry,
}

/// How the server shows itself in SERVER_LIST (BEHAVIOUR.md 6.1).
#[derive(Debug, Clone)]
pub struct DirectoryEntry {
    pub enabled: bool,
    pub hostname: String,
    pub port: u16,
    pub name: String,
    pub description: String,
    pub users_max: u32,
}

/// The settings that count now, for those outside the shards: a shard is told of a change by its own event.
#[derive(Debug)]
pub struct InForce(Mutex<Arc<ChatSettings>>);

impl InForce {
    #[must_use]
    pub fn new(settings: Arc<ChatSettings>) -> Self {
        Self(Mutex::new(settings))
    }

    #[must_use]
    pub fn get(&self) -> Arc<ChatSettings> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn replace(&self, settings: Arc<ChatSettings>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = settings;
    }
}

impl ChatSettings {
    /// What clients are told of a channel's archive.
    #[must_use]
    pub fn archive_flag(&self, channel: &Channel) -> ArchiveFlag {
        ArchiveFlag(self.has_archive_flag.then_some(channel.is_archived))
    }

    /// What rights the configuration gives to a name (BEHAVIOUR.md 5.1, 9.2). The store adds what was granted.
    #[must_use]
    pub fn flags_for(&self, nickname: &[u8]) -> u8 {
        use crate::store::{FLAG_ADMIN, FLAG_MODERATOR};
        let listed = |names: &[String]| names.iter().any(|name| name.as_bytes() == nickname);
        let admin = if listed(&self.admin_users) { FLAG_ADMIN } else { 0 };
        let moderator = if listed(&self.moderator_users) { FLAG_MODERATOR } else { 0 };
        admin | moderator
    }
}
