//! The servers of the directory (BEHAVIOUR.md 6, 8.1 DiscoveredServer): who is listed, and who may say what of whom.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::row::{self, Failure, Text};
use super::writer::Scope;
use crate::limits::{HOST_BYTES_MAX, SERVER_TEXT_BYTES_MAX, SERVERS_MAX, SERVERS_PER_ADDRESS_MAX, party};
use crate::store::command::{FoundServer, Heartbeat};
use crate::store::query::ServerScope;
use crate::store::{DiscoveredVia, Event, Name, Refusal, ServerAddress, ServerRecord};

/// What a verified server is expected to keep to before its first heartbeat, in seconds (BEHAVIOUR.md 6.3).
const INTERVAL_DEFAULT: u32 = 300;

/// The longest interval that is ever told; a row that claims more is taken to mean this, in seconds.
const INTERVAL_MAX: u32 = 3600;

/// A server is heard of lately, and so listed, within three of its intervals (BEHAVIOUR.md 6.1): in SQL, for a row and the
/// time `?1`. The first half is what the index answers.
macro_rules! is_listed {
    () => {
        "last_heartbeat > ?1 - 3000 * 3600 AND last_heartbeat > ?1 - 3000 * min(max(heartbeat_interval, 1), 3600)"
    };
}
const _: () = assert!(INTERVAL_MAX == 3600);

/// Seconds to the next heartbeat: the more servers a directory knows, the less often each may ask (BEHAVIOUR.md 6.4).
fn interval(known: i64) -> u32 {
    match known {
        ..100 => INTERVAL_DEFAULT,
        100..1000 => 600,
        1000..5000 => 1800,
        _ => INTERVAL_MAX,
    }
}

/// A row as far as the rules look at it.
struct Stored {
    id: i64,
    source: Option<IpAddr>,
    is_listed: bool,
}

fn find(scope: &Scope<'_>, address: &ServerAddress) -> rusqlite::Result<Option<Stored>> {
    const FIND: &str =
        concat!("SELECT id, source_ip, ", is_listed!(), " FROM DiscoveredServer WHERE hostname = ?2 AND port = ?3");
    row::first(scope.conn, FIND, params![scope.now, &*address.host, address.port], |row| {
        let (id, is_listed) = (row::number(row, 0)?, row::number(row, 2)? != 0);
        Ok(Stored { id, source: source(row::bytes(row, 1)?), is_listed })
    })
}

/// The existing server writes the port behind the address.
fn source(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let address = text.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| text.parse());
    address.ok().map(|address: IpAddr| address.to_canonical())
}

/// A server that is listed keeps what it says of itself: somebody else who registers it only proves that it is there.
pub(super) fn list_found(scope: &Scope<'_>, found: &FoundServer) -> Result<Event, Failure> {
    let Some(stored) = find(scope, &found.record.address)? else {
        insert(scope, found)?;
        return Ok(Event::ServerListed { is_new: true });
    };
    let is_same_registrant = found.registrant.is_some() && found.registrant == stored.source;
    if found.is_own || is_same_registrant || !stored.is_listed {
        update(scope, stored.id, found)?;
    } else {
        touch(scope, stored.id)?;
    }
    Ok(Event::ServerListed { is_new: false })
}

fn insert(scope: &Scope<'_>, found: &FoundServer) -> Result<(), Failure> {
    make_room(scope, found.registrant)?;
    let record = &found.record;
    row::execute(
        scope.conn,
        "INSERT INTO DiscoveredServer (hostname, port, user_count, uptime_seconds, created_at,
             name, description, last_heartbeat, discovered_via)
         VALUES (?1, ?2, ?3, ?4, ?5, '', '', ?5, ?6)",
        params![
            &*record.address.host,
            record.address.port,
            record.user_count,
            seconds(record.uptime_seconds),
            scope.now,
            word(found.via),
        ],
    )?;
    Ok(update(scope, scope.conn.last_insert_rowid(), found)?)
}

/// Refuses one more server of a registrant who has enough, and lets a silent one go when the table is full.
fn make_room(scope: &Scope<'_>, registrant: Option<IpAddr>) -> Result<(), Failure> {
    if let Some(registrant) = registrant
        && has_enough(scope, registrant)?
    {
        return Err(Refusal::TooManyServers.into());
    }
    if known(scope)? < i64::from(SERVERS_MAX) {
        return Ok(());
    }
    const FORGET: &str = concat!(
        "DELETE FROM DiscoveredServer WHERE id =
             (SELECT id FROM DiscoveredServer ORDER BY last_heartbeat LIMIT 1) AND NOT (",
        is_listed!(),
        ")"
    );
    if row::execute(scope.conn, FORGET, [scope.now])? == 0 { Err(Refusal::TooManyServers.into()) } else { Ok(()) }
}

/// Whether the registrant's party has as many servers as it may. The table has few rows, and a source is text that SQL cannot
/// compare by network.
fn has_enough(scope: &Scope<'_>, registrant: IpAddr) -> rusqlite::Result<bool> {
    const SOURCES: &str = "SELECT source_ip FROM DiscoveredServer WHERE source_ip IS NOT NULL";
    let mut statement = scope.conn.prepare_cached(SOURCES)?;
    let mut rows = statement.query(())?;
    let mut own = 0;
    while let Some(row) = rows.next()? {
        own += u16::from(source(row::bytes(row, 0)?).map(party) == Some(party(registrant)));
        if own >= SERVERS_PER_ADDRESS_MAX {
            return Ok(true);
        }
    }
    Ok(false)
}

fn known(scope: &Scope<'_>) -> rusqlite::Result<i64> {
    let known = row::first(scope.conn, "SELECT COUNT(*) FROM DiscoveredServer", [], |row| row::number(row, 0))?;
    Ok(known.unwrap_or(0))
}

/// What only heartbeats tell stays as it is.
fn update(scope: &Scope<'_>, id: i64, found: &FoundServer) -> rusqlite::Result<()> {
    let FoundServer { record, via, registrant, .. } = found;
    row::execute(
        scope.conn,
        "UPDATE DiscoveredServer SET name = ?2, description = ?3, max_users = ?4, is_public = ?5, channel_count = ?6,
             last_heartbeat = ?7, heartbeat_interval = ?8, discovered_via = ?9, source_ip = ?10
         WHERE id = ?1",
        params![
            id,
            Text(&record.name),
            Text(&record.description),
            record.max_users,
            record.is_public,
            record.channel_count,
            scope.now,
            INTERVAL_DEFAULT,
            word(*via),
            registrant.map(|address| address.to_string()),
        ],
    )?;
    Ok(())
}

fn touch(scope: &Scope<'_>, id: i64) -> rusqlite::Result<()> {
    row::execute(scope.conn, "UPDATE DiscoveredServer SET last_heartbeat = ?2 WHERE id = ?1", [id, scope.now]).map(drop)
}

/// A server that was found at its place. One that is gone from the table stays gone.
pub(super) fn confirm(scope: &Scope<'_>, address: &ServerAddress) -> Result<Event, Failure> {
    if let Some(stored) = find(scope, address)? {
        touch(scope, stored.id)?;
    }
    Ok(Event::ServerConfirmed)
}

pub(super) fn heartbeat(scope: &Scope<'_>, heartbeat: &Heartbeat) -> Result<Event, Failure> {
    let Some(stored) = find(scope, &heartbeat.address)? else { return Err(Refusal::ServerNotFound.into()) };
    if !heartbeat.is_own && stored.source != Some(heartbeat.sender) {
        return Err(Refusal::NotYours.into());
    }
    let interval_seconds = interval(known(scope)?);
    row::execute(
        scope.conn,
        "UPDATE DiscoveredServer SET user_count = ?2, uptime_seconds = ?3, channel_count = ?4, last_heartbeat = ?5,
             heartbeat_interval = ?6
         WHERE id = ?1",
        params![
            stored.id,
            heartbeat.user_count,
            seconds(heartbeat.uptime_seconds),
            heartbeat.channel_count,
            scope.now,
            interval_seconds,
        ],
    )?;
    Ok(Event::HeartbeatStored { interval_seconds })
}

fn seconds(uptime: u64) -> i64 {
    i64::try_from(uptime).unwrap_or(i64::MAX)
}

fn word(via: DiscoveredVia) -> &'static str {
    match via {
        DiscoveredVia::Registration => "registration",
        DiscoveredVia::Gossip => "gossip",
    }
}

const _: () = assert!(HOST_BYTES_MAX == 253);
macro_rules! select {
    ($condition:expr) => {
        concat!(
            "SELECT hostname, port, name, description, user_count, max_users, uptime_seconds, is_public, channel_count
             FROM DiscoveredServer
             WHERE length(CAST(hostname AS BLOB)) BETWEEN 1 AND 253 AND port BETWEEN 1 AND 65535 AND ",
            $condition,
            " ORDER BY last_heartbeat DESC, id DESC LIMIT ?2"
        )
    };
}
const PUBLIC: &str = select!(concat!(is_listed!(), " AND is_public <> 0"));
const LISTED: &str = select!(is_listed!());
const KNOWN: &str = select!("?1 IS NOT NULL");

/// Newest heartbeat first. Rows that no client could use are left out.
pub(super) fn list(conn: &Connection, scope: ServerScope, limit: u16, now: i64) -> rusqlite::Result<Vec<ServerRecord>> {
    let sql = match scope {
        ServerScope::Public => PUBLIC,
        ServerScope::Listed => LISTED,
        ServerScope::Known => KNOWN,
    };
    let found = row::all(conn, sql, params![now, limit], record)?;
    Ok(found.into_iter().flatten().collect())
}

fn record(row: &Row<'_>) -> rusqlite::Result<Option<ServerRecord>> {
    let host = std::str::from_utf8(row::bytes(row, 0)?).ok().filter(|host| (1..=HOST_BYTES_MAX).contains(&host.len()));
    let port = u16::try_from(row::number(row, 1)?).ok().filter(|port| *port != 0);
    let (Some(host), Some(port)) = (host, port) else { return Ok(None) };
    let count = |column| row::number(row, column).map(|count| u32::try_from(count.max(0)).unwrap_or(u32::MAX));
    Ok(Some(ServerRecord {
        address: ServerAddress { host: Arc::from(host), port },
        name: text(row, 2)?,
        description: text(row, 3)?,
        user_count: count(4)?,
        max_users: count(5)?,
        uptime_seconds: row::number(row, 6)?.max(0).unsigned_abs(),
        is_public: row::number(row, 7)? != 0,
        channel_count: count(8)?,
    }))
}

/// The existing server stores texts of any length.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    let bytes = row::bytes(row, column)?;
    let bytes = bytes.get(..SERVER_TEXT_BYTES_MAX).unwrap_or(bytes);
    // A character that was cut in two goes.
    let whole = bytes.utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
    let is_cut = bytes.len() - whole < 4 && bytes.len() == SERVER_TEXT_BYTES_MAX;
    Ok(Name::from(if is_cut { &bytes[..whole] } else { bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_grows_with_the_directory() {
        let told: Vec<_> = [0, 99, 100, 999, 1000, 4999, 5000, 10_000].map(interval).into();
        assert_eq!(told, [300, 300, 600, 600, 1800, 1800, 3600, 3600]);
    }

    #[test]
    fn a_source_is_read_as_either_server_writes_it() {
        let address = Some("192.0.2.7".parse().unwrap());
        assert_eq!((source(b"192.0.2.7:51234"), source(b"192.0.2.7")), (address, address));
        assert_eq!(source(b"[2001:db8::5]:6465"), Some("2001:db8::5".parse().unwrap()));
        assert_eq!(source(b"::ffff:192.0.2.7"), address);
        assert_eq!((source(b""), source(b"\xff")), (None, None));
    }

    #[test]
    fn lists_come_from_an_index() {
        for sql in [PUBLIC, LISTED, KNOWN] {
            let plan = row::plan(sql, params![1, 1]);
            assert!(plan.contains("idx_discovered_server_last_heartbeat"), "{plan}");
            assert!(!plan.contains("TEMP B-TREE FOR ORDER BY"), "{plan}");
        }
    }
}
