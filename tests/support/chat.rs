//! What shards of a test are told and count in, where no configuration is read.

use superchat::metrics::{BuildInfo, MetricsOptions};
use superchat::shard::ChatSettings;
use superchat::shard::settings::DirectoryEntry;
use superchat::wire::server::ServerConfig;
use superchat::wire::{ClientMessage, ServerMessage};

/// No rate, no timeout, no admins, no directory.
pub fn unlimited() -> ChatSettings {
    ChatSettings {
        announced: ServerConfig {
            protocol_version: 2,
            max_message_rate: 0,
            max_channel_creates: 0,
            inactive_cleanup_days: 90,
            max_connections_per_ip: 0,
            max_message_length: 4096,
            max_thread_subscriptions: 50,
            max_channel_subscriptions: 50,
            directory_enabled: false,
        },
        message_bytes_max: 4096,
        thread_subscriptions_max: 50,
        channel_subscriptions_max: 50,
        idle_timeout_ms: None,
        idle_notice: false,
        sanitize_content: true,
        has_archive_flag: false,
        outbox_bytes_max: 64 << 20,
        requests_per_second: None,
        messages_per_minute: None,
        channels_per_hour: None,
        dms_per_hour: None,
        auth_attempts_per_minute: None,
        admin_users: Vec::new(),
        moderator_users: Vec::new(),
        directory: DirectoryEntry {
            enabled: false,
            hostname: String::new(),
            port: 0,
            name: String::new(),
            description: String::new(),
            users_max: 0,
        },
    }
}

/// Metrics of so many shards, without the allocator's.
pub fn metrics_options(shards: usize) -> MetricsOptions {
    MetricsOptions {
        shards,
        client_messages: ClientMessage::TABLE,
        server_messages: ServerMessage::TABLE,
        error_codes: &[],
        topic_series_max: 0,
        started_wall_ms: 0,
        jemalloc: false,
        build: BuildInfo { version: "", commit: "", rustc: "" },
    }
}
