//! The channels a new server starts with (BEHAVIOUR.md 8.6).

use rusqlite::{Connection, params};

/// Channel types as stored.
const CHAT: u8 = 0;
const FORUM: u8 = 1;

const CHAT_RETENTION_HOURS: u32 = 24;
const FORUM_RETENTION_HOURS: u32 = 168;

/// A channel to be made in a database that never had one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedChannel {
    pub name: String,
    /// As clients show it: `#name`, or `>name` for a chat.
    pub display_name: String,
    pub description: String,
    /// 0 chat, 1 forum.
    pub channel_type: u8,
    /// Hours until a thread is cleaned up; 0 keeps it for ever.
    pub retention_hours: u32,
}

impl SeedChannel {
    /// A forum shown as `#name`, as an entry of the configuration is unless it says otherwise.
    pub fn forum(name: &str, description: &str, retention_hours: u32) -> Self {
        Self {
            name: name.to_owned(),
            display_name: format!("#{name}"),
            description: description.to_owned(),
            channel_type: FORUM,
            retention_hours,
        }
    }
}

/// The five channels of a server whose configuration names none, in the order of their ids.
pub fn default_seeds() -> Vec<SeedChannel> {
    let forum = |name, description| SeedChannel::forum(name, description, FORUM_RETENTION_HOURS);
    let chat = SeedChannel {
        display_name: ">chat".to_owned(),
        channel_type: CHAT,
        ..SeedChannel::forum("chat", "General chat (linear conversation)", CHAT_RETENTION_HOURS)
    };
    vec![
        chat,
        forum("general", "General discussion"),
        forum("tech", "Technical topics"),
        forum("random", "Off-topic chat"),
        forum("feedback", "Bug reports and feature requests"),
    ]
}

/// Makes the channels of `seeds`, all or none, unless the database has or ever had a channel: what an operator deleted
/// does not come back (D-37). Returns how many were made.
///
/// # Errors
/// Those of SQLite, also when two seeds share a name or a transaction is open already.
pub fn insert_seeds(conn: &Connection, seeds: &[SeedChannel], now_ms: i64) -> rusqlite::Result<usize> {
    let transaction = conn.unchecked_transaction()?;
    if has_had_channels(&transaction)? {
        return Ok(0);
    }
    let mut insert = transaction.prepare(
        "INSERT INTO Channel (name, display_name, description, channel_type, message_retention_hours, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for seed in seeds {
        let SeedChannel { name, display_name, description, channel_type, retention_hours } = seed;
        insert.execute(params![name, display_name, description, channel_type, retention_hours, now_ms])?;
    }
    drop(insert);
    transaction.commit()?;
    Ok(seeds.len())
}

fn has_had_channels(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM Channel)
             OR EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'Channel' AND seq > 0)",
        [],
        |row| row.get(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::migrations;

    fn database() -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        migrations::migrate(&conn, 0, migrations::VERSION, 1).unwrap();
        conn
    }

    fn displayed(conn: &Connection) -> Vec<(i64, String, u8, u32)> {
        let mut rows = conn
            .prepare("SELECT id, display_name, channel_type, message_retention_hours FROM Channel ORDER BY id")
            .unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn a_new_database_gets_the_five_channels_in_order() {
        let conn = database();
        assert_eq!(insert_seeds(&conn, &default_seeds(), 7).unwrap(), 5);
        let expected = [
            (1, ">chat".to_owned(), 0, 24),
            (2, "#general".to_owned(), 1, 168),
            (3, "#tech".to_owned(), 1, 168),
            (4, "#random".to_owned(), 1, 168),
            (5, "#feedback".to_owned(), 1, 168),
        ];
        assert_eq!(displayed(&conn), expected);
    }

    #[test]
    fn deleted_seeds_do_not_come_back() {
        let conn = database();
        insert_seeds(&conn, &default_seeds(), 7).unwrap();
        conn.execute("DELETE FROM Channel", []).unwrap();
        assert_eq!(insert_seeds(&conn, &default_seeds(), 8).unwrap(), 0);
        assert_eq!(displayed(&conn), []);
    }

    #[test]
    fn seeds_that_share_a_name_are_refused_as_a_whole() {
        let conn = database();
        let twice = [SeedChannel::forum("tech", "", 0), SeedChannel::forum("tech", "", 0)];
        assert!(insert_seeds(&conn, &twice, 7).is_err());
        assert_eq!(displayed(&conn), []);
        assert_eq!(insert_seeds(&conn, &default_seeds(), 7).unwrap(), 5);
    }
}
