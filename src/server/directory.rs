//! This server as a directory shows it, what its directory tells the web, and the directory's thread.

use std::sync::Arc;

use tokio::sync::mpsc::Receiver;
use tracing::warn;

use super::ServeError;
use crate::clock;
use crate::config::{Endpoint, Settings};
use crate::desk::Desk;
use crate::directory::{Claim, Directory, DirectoryParts, Reach, Registry, address};
use crate::limits::LIST_SERVERS_DEFAULT;
use crate::metrics::Metrics;
use crate::net::http::{Listed, ListedServers, NoList};
use crate::shard::settings::InForce;
use crate::store::query::ServerScope;
use crate::store::{Answer, Name, Query, ServerAddress, ServerRecord, Store};

/// What the directory works with.
pub(super) struct Inside<'a> {
    pub(super) settings: &'a Settings,
    pub(super) in_force: &'a Arc<InForce>,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) store: &'a Arc<dyn Store>,
    pub(super) desk: &'a Arc<Desk>,
    /// Where clients reach the protocol itself, 0 when they cannot.
    pub(super) port: u16,
}

/// Starts the directory's thread where there is something for it to do.
///
/// # Errors
/// When the system gives no thread.
pub(super) fn start(
    inside: &Inside<'_>,
    registry: Arc<Registry>,
    claims: Receiver<Claim>,
) -> Result<Option<Directory>, ServeError> {
    let discovery = &inside.settings.discovery;
    let announce_to = announce_to(inside.settings, inside.port);
    if !discovery.directory_enabled && announce_to.is_empty() {
        return Ok(None);
    }
    let (in_force, metrics) = (Arc::clone(inside.in_force), Arc::clone(inside.metrics));
    let parts = DirectoryParts {
        registry,
        claims,
        store: Arc::clone(inside.store),
        desk: Arc::clone(inside.desk),
        own: Box::new(move || own_record(&in_force, &metrics)),
        is_directory: discovery.directory_enabled,
        reach: if discovery.allow_private_servers { Reach::Private } else { Reach::Internet },
        gossip: discovery.gossip_interval_seconds,
        announce_to,
    };
    Ok(Some(Directory::start(parts)?))
}

/// Nobody finds a server under the name `localhost`, so without a public name there is nothing to announce (BEHAVIOUR.md
/// 6.5, D-61).
fn announce_to(settings: &Settings, port: u16) -> Vec<Endpoint> {
    let discovery = &settings.discovery;
    let host = discovery.public_hostname.as_ref().map(|host| host.as_str().to_ascii_lowercase());
    let reason = match host.as_deref() {
        _ if discovery.announce_to.is_empty() => return Vec::new(),
        None => "set [discovery] public_hostname to the name under which others reach it",
        Some("localhost") => "[discovery] public_hostname is localhost, where nobody else finds it",
        Some(_) if port == 0 => "[server] tcp_port is 0, so directories cannot verify it",
        Some(_) => return discovery.announce_to.clone(),
    };
    warn!("This server is not announced to directories: {reason}");
    Vec::new()
}

/// This server, at the moment.
fn own_record(in_force: &InForce, metrics: &Metrics) -> ServerRecord {
    let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
    let settings = in_force.get();
    let own = &settings.directory;
    // Without a port of its own there is an entry all the same.
    let unreachable = || ServerAddress { host: own.hostname.as_str().into(), port: own.port };
    ServerRecord {
        address: address(own.hostname.as_bytes(), own.port).unwrap_or_else(unreachable),
        name: Name::from(own.name.as_bytes()),
        description: Name::from(own.description.as_bytes()),
        user_count: count(metrics.sessions()),
        max_users: own.users_max,
        uptime_seconds: clock::monotonic_ms() / 1000,
        is_public: true,
        channel_count: count(metrics.channels()),
    }
}

/// What `/servers.json` shows (BEHAVIOUR.md 6.6): this server first, then those heard of lately.
pub(super) fn listed_servers(
    in_force: Arc<InForce>,
    metrics: Arc<Metrics>,
    store: Arc<dyn Store>,
    desk: Arc<Desk>,
) -> ListedServers {
    Box::new(move || {
        let own = in_force.get().directory.enabled.then(|| own_record(&in_force, &metrics));
        let (store, desk) = (Arc::clone(&store), Arc::clone(&desk));
        Box::pin(async move {
            let own = own.ok_or(NoList::Off)?;
            let query = Query::Servers { scope: ServerScope::Public, limit: LIST_SERVERS_DEFAULT };
            match desk.ask(&*store, query).await {
                Ok(Answer::Servers(others)) => Ok(std::iter::once(&own).chain(&others).map(listed).collect()),
                _ => Err(NoList::Failed),
            }
        })
    })
}

fn listed(record: &ServerRecord) -> Listed {
    let text = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    Listed {
        hostname: record.address.host.to_string(),
        port: record.address.port,
        name: text(&record.name),
        description: text(&record.description),
        user_count: record.user_count,
        max_users: record.max_users,
        uptime_seconds: record.uptime_seconds,
        is_public: record.is_public,
        channel_count: record.channel_count,
    }
}
