//! Channels: the table every shard starts with, new ones (BEHAVIOUR.md 2.8, 2.9), and what other programs did to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::row::{self, FOREIGN_KEY, Failure, Text, UNIQUE};
use super::visitors::SessionIds;
use super::writer::Scope;
use crate::ids::{ChannelId, UserId};
use crate::store::command::NewChannel;
use crate::store::{Channel, ChannelType, Event, Participant, Refusal};

/// Channels by id: parents usually before their subchannels.
pub(super) type Table = BTreeMap<ChannelId, Channel>;

pub(super) fn create(scope: &Scope<'_>, new: &NewChannel) -> Result<Event, Failure> {
    if let Some(parent) = new.parent
        && !row::exists(
            scope.conn,
            "SELECT 1 FROM Channel WHERE id = ?1 AND parent_id IS NULL AND is_dm = 0",
            [parent.as_sql()],
        )?
    {
        return Err(Refusal::ChannelNotFound.into());
    }
    let insert = row::execute(
        scope.conn,
        "INSERT INTO Channel (name, display_name, description, channel_type, message_retention_hours, created_by,
                              created_at, parent_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            Text(&new.name),
            Text(&new.display_name),
            Text(&new.description),
            new.channel_type.to_wire(),
            new.retention_hours,
            new.created_by.map(UserId::as_sql),
            scope.now,
            new.parent.map(ChannelId::as_sql),
        ],
    );
    // The parent was just found, so a missing row can only be the creator's.
    insert.map_err(row::constraints(&[(UNIQUE, Refusal::NameTaken), (FOREIGN_KEY, Refusal::UserNotFound)]))?;
    Ok(Event::ChannelCreated(as_stored(ChannelId::from_sql(scope.conn.last_insert_rowid()), new)))
}

fn as_stored(id: ChannelId, new: &NewChannel) -> Channel {
    let NewChannel { name, display_name, description, channel_type, retention_hours, created_by, parent } = new;
    Channel {
        id,
        name: name.clone(),
        display_name: display_name.clone(),
        description: description.clone(),
        channel_type: *channel_type,
        retention_hours: *retention_hours,
        created_by: *created_by,
        parent: *parent,
        participants: None,
        is_archived: false,
    }
}

/// Only newer files have the column `archive_enabled`; in others the name leads out of the innermost SELECT, to a NULL.
macro_rules! channels {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, display_name, description, channel_type, message_retention_hours, created_by, parent_id,
                    is_dm, (SELECT archive_enabled FROM Channel AS own WHERE own.id = c.id)
             FROM (SELECT NULL AS archive_enabled) AS older CROSS JOIN Channel AS c
             WHERE (is_dm <> 0 OR is_private = 0)
               AND (is_dm = 0 OR EXISTS (SELECT 1 FROM ChannelParticipant WHERE channel_id = c.id))
               AND (parent_id IS NULL OR EXISTS (SELECT 1 FROM Channel AS above WHERE above.id = c.parent_id)) ",
            $rest
        )
    };
}

macro_rules! participants {
    ($rest:literal) => {
        concat!("SELECT channel_id, user_id, session_id, nickname FROM ChannelParticipant ", $rest)
    };
}

/// Every channel, subchannel and DM with its participants. Subchannels whose parent is missing are left out, and so are
/// DMs without anybody in them, and private channels that are no DMs: there is no rule that says who may see them.
pub(super) fn load(conn: &Connection, sessions: SessionIds) -> rusqlite::Result<Table> {
    let mut participants = Participants::new();
    for (channel, participant) in row::all(conn, participants!("ORDER BY id"), [], |row| participant(sessions, row))? {
        participants.entry(channel).or_default().push(participant);
    }
    let rows = row::all(conn, channels!("ORDER BY id"), [], |row| channel(row, &mut participants))?;
    Ok(rows.into_iter().map(|channel| (channel.id, channel)).collect())
}

/// One of them.
pub(super) fn find(conn: &Connection, sessions: SessionIds, id: ChannelId) -> rusqlite::Result<Option<Channel>> {
    let inside = row::all(conn, participants!("WHERE channel_id = ?1 ORDER BY id"), [id.as_sql()], |row| {
        participant(sessions, row)
    })?;
    let mut participants = Participants::from([(id, inside.into_iter().map(|(_, participant)| participant).collect())]);
    row::first(conn, channels!("AND c.id = ?1"), [id.as_sql()], |row| channel(row, &mut participants))
}

type Participants = BTreeMap<ChannelId, Vec<Participant>>;

fn participant(sessions: SessionIds, row: &Row<'_>) -> rusqlite::Result<(ChannelId, Participant)> {
    let user = row::id(row, 1, UserId::from_sql)?;
    let session = row::integer(row, 2)?.filter(|_| user.is_none()).and_then(|stored| sessions.live(stored));
    let participant = Participant { user, session, nickname: row::name(row, 3)? };
    Ok((ChannelId::from_sql(row::number(row, 0)?), participant))
}

fn channel(row: &Row<'_>, participants: &mut Participants) -> rusqlite::Result<Channel> {
    let id = ChannelId::from_sql(row::number(row, 0)?);
    let is_dm = row::number(row, 8)? != 0;
    let code = u8::try_from(row::number(row, 4)?).unwrap_or(u8::MAX);
    Ok(Channel {
        id,
        name: row::name(row, 1)?,
        display_name: row::name(row, 2)?,
        description: row::name(row, 3)?,
        // The schema's default, for a code that names none.
        channel_type: ChannelType::from_wire(code).unwrap_or(ChannelType::Forum),
        retention_hours: u32::try_from(row::number(row, 5)?.max(0)).unwrap_or(u32::MAX),
        created_by: row::id(row, 6, UserId::from_sql)?,
        parent: row::id(row, 7, ChannelId::from_sql)?,
        participants: is_dm.then(|| Arc::from(participants.remove(&id).unwrap_or_default())),
        is_archived: row::integer(row, 9)?.is_some_and(|flag| flag != 0),
    })
}

/// What happened between two tables, in an order in which no subchannel is ever without its parent.
pub(super) fn changes(before: &Table, after: &Table) -> Vec<Event> {
    let gone = by_depth(before).filter(|channel| !after.contains_key(&channel.id));
    let mut events: Vec<Event> = gone.map(|channel| Event::ChannelDeleted { channel: channel.id }).collect();
    events.reverse();
    events.extend(by_depth(after).filter_map(|channel| match before.get(&channel.id) {
        None => Some(Event::ChannelCreated(channel.clone())),
        Some(known) if known != channel => Some(Event::ChannelChanged(channel.clone())),
        Some(_) => None,
    }));
    events
}

fn by_depth(table: &Table) -> impl Iterator<Item = &Channel> {
    let top = table.values().filter(|channel| channel.parent.is_none());
    top.chain(table.values().filter(|channel| channel.parent.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(channels: &[(u64, u64, &str)]) -> Table {
        let channel = |&(id, parent, name): &(u64, u64, &str)| Channel {
            id: ChannelId(id),
            name: name.as_bytes().into(),
            display_name: b""[..].into(),
            description: b""[..].into(),
            channel_type: ChannelType::Forum,
            retention_hours: 1,
            created_by: None,
            parent: (parent != 0).then_some(ChannelId(parent)),
            participants: None,
            is_archived: false,
        };
        channels.iter().map(channel).map(|channel| (channel.id, channel)).collect()
    }

    fn told(before: &[(u64, u64, &str)], after: &[(u64, u64, &str)]) -> Vec<(char, u64)> {
        let told = |event| match event {
            Event::ChannelCreated(channel) => ('+', channel.id.0),
            Event::ChannelChanged(channel) => ('~', channel.id.0),
            Event::ChannelDeleted { channel } => ('-', channel.0),
            other => panic!("{other:?}"),
        };
        changes(&table(before), &table(after)).into_iter().map(told).collect()
    }

    #[test]
    fn subchannels_go_before_their_parent_and_come_after_it() {
        assert_eq!(told(&[(1, 0, "a"), (2, 1, "b"), (9, 0, "c")], &[(9, 0, "c")]), [('-', 2), ('-', 1)]);
        assert_eq!(told(&[], &[(1, 2, "a"), (2, 0, "b")]), [('+', 2), ('+', 1)]);
    }

    #[test]
    fn only_what_differs_is_told() {
        assert_eq!(told(&[(1, 0, "a"), (2, 0, "b")], &[(1, 0, "a"), (2, 0, "x")]), [('~', 2)]);
        assert_eq!(told(&[(1, 0, "a")], &[(1, 0, "a")]), []);
    }
}
