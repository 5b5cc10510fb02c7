//! What parts need of the configuration, in their own words.

use std::num::NonZeroU32;
use std::path::Path;

use ipnet::IpNet;

use crate::config::{self, Environment, Loaded, Settings};
use crate::errors::{self, DsnError};
use crate::log::{self, LogOptions};
use crate::net::http;
use crate::shard::ChatSettings;
use crate::shard::settings::DirectoryEntry;
use crate::wire::server::ServerConfig;

/// What every frame announces (WIRE.md 3).
const PROTOCOL_VERSION: u8 = 2;
/// Announced; only read states follow it (BEHAVIOUR.md 8.7).
const INACTIVE_CLEANUP_DAYS: u16 = 90;

/// How and where the log is written.
pub(super) fn log_options(loaded: &Loaded, environment: &Environment) -> LogOptions {
    let settings = &loaded.settings.log;
    let beside_database = loaded.settings.server.database_path.parent().unwrap_or(Path::new("."));
    LogOptions {
        levels: settings.log_level.levels(),
        debug: settings.debug,
        format: match settings.log_format {
            config::LogFormat::Text => log::Format::Text,
            config::LogFormat::Json => log::Format::Json,
        },
        log_ip: log_ip(settings),
        journal_stream: environment.get("JOURNAL_STREAM").and_then(|value| value.to_str()).map(str::to_owned),
        ..LogOptions::new(&loaded.data_directory, beside_database)
    }
}

/// Where errors are reported; `None` when the operator did not ask for it.
///
/// # Errors
/// What is wrong with the address.
pub(super) fn errors_options(settings: &config::Log) -> Result<Option<errors::Options>, DsnError> {
    let Some(dsn) = &settings.sentry_dsn else { return Ok(None) };
    Ok(Some(errors::Options {
        dsn: dsn.expose().parse()?,
        release: format!("superchat@{}", env!("CARGO_PKG_VERSION")),
        environment: settings.sentry_environment.clone(),
    }))
}

pub(super) fn log_ip(settings: &config::Log) -> log::LogIp {
    match settings.log_ip {
        config::LogIp::Full => log::LogIp::Full,
        config::LogIp::Truncated => log::LogIp::Truncated,
        config::LogIp::Off => log::LogIp::Off,
    }
}

/// What the pages for operators ask for.
pub(super) fn metrics_token(settings: &Settings) -> Option<String> {
    settings.admin.metrics_token.as_ref().map(|token| token.expose().to_owned())
}

/// What the door needs of the configuration: sessions per address and in all, and who is free of the former.
pub(super) fn door_limits(settings: &Settings) -> (Option<u32>, Option<u32>, Vec<IpNet>) {
    let limits = &settings.limits;
    let per_address_max = limits.max_connections_per_ip.map(|limit| limit.get().into());
    (per_address_max, settings.discovery.max_users.map(std::num::NonZero::get), limits.exempt_networks.clone())
}

/// What the public HTTP port needs of it. Whoever is behind a proxy comes from the proxy's address.
pub(super) fn http_limits(settings: &Settings) -> (Option<u32>, Option<u32>, Vec<IpNet>) {
    http::limits([&settings.limits.exempt_networks[..], &settings.server.trusted_proxies[..]].concat())
}

/// What shards need of the configuration; `port` is where clients reach the server.
pub(super) fn chat_settings(settings: &Settings, port: u16) -> ChatSettings {
    let (limits, server, discovery) = (&settings.limits, &settings.server, &settings.discovery);
    let announced = ServerConfig {
        protocol_version: PROTOCOL_VERSION,
        max_message_rate: limits.message_rate_limit.map_or(0, std::num::NonZero::get),
        max_channel_creates: limits.max_channel_creates.map_or(0, std::num::NonZero::get),
        inactive_cleanup_days: INACTIVE_CLEANUP_DAYS,
        max_connections_per_ip: limits.max_connections_per_ip.map_or(0, std::num::NonZero::get),
        max_message_length: limits.max_message_length.get(),
        max_thread_subscriptions: limits.max_thread_subscriptions.get(),
        max_channel_subscriptions: limits.max_channel_subscriptions.get(),
        directory_enabled: discovery.directory_enabled,
    };
    ChatSettings {
        message_bytes_max: limits.max_message_length.get() as usize,
        thread_subscriptions_max: limits.max_thread_subscriptions.get().into(),
        channel_subscriptions_max: limits.max_channel_subscriptions.get().into(),
        idle_timeout_ms: limits.session_timeout_seconds.map(|timeout| timeout.as_secs() * 1000),
        idle_notice: server.idle_notice,
        sanitize_content: server.sanitize_content,
        has_archive_flag: server.wire_archive_flag,
        outbox_bytes_max: limits.outbox_bytes_max.get(),
        requests_per_second: limits.requests_per_second.map(std::num::NonZero::get),
        messages_per_minute: limits.message_rate_limit.map(|limit| limit.get().into()),
        channels_per_hour: limits.max_channel_creates.map(|limit| limit.get().into()),
        dms_per_hour: limits.dm_invites_per_hour.map(NonZeroU32::get),
        auth_attempts_per_minute: limits.auth_attempts_per_minute.map(std::num::NonZero::get),
        admin_users: server.admin_users.clone(),
        moderator_users: server.moderator_users.clone(),
        directory: DirectoryEntry {
            enabled: discovery.directory_enabled,
            hostname: discovery.public_hostname.as_ref().map_or("localhost", |host| host.as_str()).to_owned(),
            port,
            name: discovery.server_name.clone(),
            description: discovery.server_description.clone(),
            users_max: discovery.max_users.map_or(0, std::num::NonZero::get),
        },
        announced,
    }
}
