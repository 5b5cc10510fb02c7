//! The directory of servers (BEHAVIOUR.md 6.1, 6.2, 6.4). What must wait for other machines is done by
//! [`crate::directory`].

use crate::directory::{self, Taken};
use crate::limits::{LIST_SERVERS_DEFAULT, LIST_SERVERS_MAX, party};
use crate::metrics::RateLimit;
use crate::shard::Shard;
use crate::shard::session::SessionKey;
use crate::store::command::Heartbeat;
use crate::store::query::ServerScope;
use crate::store::{Answer, Command, Event, Query, Refusal, ServerRecord};
use crate::wire::codec::List;
use crate::wire::records::{Failed, ServerEntry};
use crate::wire::{ErrorCode, client, server};

/// Answers what only a directory reads, where there is none, and who registers too often, both before reading (WIRE.md 8).
/// Whether it has answered.
pub fn refuse_before_reading(shard: &mut Shard, key: SessionKey, code: u8) -> bool {
    let is_registration = code == client::RegisterServer::CODE;
    if !is_registration && code != client::Heartbeat::CODE {
        return false;
    }
    if !shard.settings.directory.enabled {
        shard.error(key, ErrorCode::UnsupportedVersion, "Directory mode not enabled on this server");
        return true;
    }
    let sender = party(shard.clients.session(key).address());
    let now = shard.now.mono;
    let is_admitted = match is_registration {
        true => shard.rates.registrations_by_address.admit(sender, now),
        false => shard.rates.heartbeats_by_address.admit(sender, now),
    };
    if is_admitted {
        return false;
    }
    shard.rate_limited(key, RateLimit::Directory);
    match is_registration {
        true => registered(shard, key, "Rate limit exceeded (30 requests/hour)"),
        false => shard.error(key, ErrorCode::RateLimit, "Rate limit exceeded"),
    }
    true
}

/// LIST_SERVERS: this server first, then those heard of lately. Off, the list is empty.
pub fn list_servers(shard: &mut Shard, key: SessionKey, request: &client::ListServers) {
    if !shard.settings.directory.enabled {
        return shard.reply(key, server::ServerList { servers: List(Vec::new()) });
    }
    let limit = match request.limit {
        0 => LIST_SERVERS_DEFAULT,
        limit => limit.min(LIST_SERVERS_MAX),
    };
    shard.ask(key, Query::Servers { scope: ServerScope::Public, limit }, |shard, key, answer| {
        let Answer::Servers(others) = answer else { return };
        let settings = std::sync::Arc::clone(&shard.settings);
        let (own, sessions) = (&settings.directory, shard.metrics.global().sessions());
        let own = ServerEntry {
            hostname: own.hostname.as_bytes(),
            port: own.port,
            name: own.name.as_bytes(),
            description: own.description.as_bytes(),
            user_count: u32::try_from(sessions).unwrap_or(u32::MAX),
            max_users: own.users_max,
            uptime_seconds: shard.uptime_seconds(),
            is_public: true,
            channel_count: u32::try_from(shard.channels.top_level().count()).unwrap_or(u32::MAX),
        };
        let servers = std::iter::once(own).chain(others.iter().map(entry)).collect();
        shard.reply(key, server::ServerList { servers: List(servers) });
    });
}

fn entry(record: &ServerRecord) -> ServerEntry<'_> {
    ServerEntry {
        hostname: record.address.host.as_bytes(),
        port: record.address.port,
        name: &record.name,
        description: &record.description,
        user_count: record.user_count,
        max_users: record.max_users,
        uptime_seconds: record.uptime_seconds,
        is_public: record.is_public,
        channel_count: record.channel_count,
    }
}

/// REGISTER_SERVER: whatever is found out about the server, the answer is the same, and comes before that.
pub fn register_server(shard: &mut Shard, key: SessionKey, request: &client::RegisterServer<'_>) {
    let Some(address) = directory::address(request.hostname, request.port) else {
        return registered(shard, key, "Invalid hostname or port");
    };
    let (Some(name), Some(description)) = (directory::about(request.name), directory::about(request.description))
    else {
        return registered(shard, key, "Name or description too long (max 500 bytes)");
    };
    let record = ServerRecord {
        address,
        name,
        description,
        user_count: 0,
        max_users: request.max_users,
        uptime_seconds: 0,
        is_public: request.is_public,
        channel_count: request.channel_count,
    };
    let registrant = shard.clients.session(key).address();
    match shard.registry.register(record, registrant, shard.now.mono) {
        Taken::Yes => registered(shard, key, "Verification in progress..."),
        Taken::Busy => registered(shard, key, "Server is busy. Try again."),
    }
}

/// Servers of the field take any answer for good, and this form of it they know.
fn registered(shard: &mut Shard, key: SessionKey, text: &str) {
    shard.reply(key, server::RegisterAck { outcome: Err(Failed { message: text.as_bytes() }) });
}

/// HEARTBEAT: taken from the address that registered the server, or where it was found. A server that the directory does
/// not find any more is as good as not registered, which makes it register anew.
pub fn heartbeat(shard: &mut Shard, key: SessionKey, request: &client::Heartbeat<'_>) {
    let Some(address) = directory::address(request.hostname, request.port) else { return not_registered(shard, key) };
    if shard.registry.is_missing(&address) {
        return not_registered(shard, key);
    }
    let sender = shard.clients.session(key).address();
    let heartbeat = Heartbeat {
        is_own: shard.registry.is_at(&address, sender),
        address,
        user_count: request.user_count,
        uptime_seconds: request.uptime_seconds,
        channel_count: request.channel_count,
        sender,
    };
    shard.submit(key, Command::Heartbeat(Box::new(heartbeat)), |shard, key, result| match result {
        Ok(Event::HeartbeatStored { interval_seconds }) => {
            shard.reply(key, server::HeartbeatAck { heartbeat_interval: interval_seconds });
        }
        Err(Refusal::ServerNotFound) => not_registered(shard, key),
        Err(Refusal::NotYours) => {
            shard.error(key, ErrorCode::PermissionDenied, "Not authorized for this server");
        }
        _ => shard.error(key, ErrorCode::Database, "Database error"),
    });
}

fn not_registered(shard: &mut Shard, key: SessionKey) {
    shard.error(key, ErrorCode::NotFound, "Server not registered");
}
