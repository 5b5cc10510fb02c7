//! Read marks and unread counts (BEHAVIOUR.md 7). `last_read_at` is milliseconds, `updated_at` seconds.

use rusqlite::{Connection, params};

use super::row::{self, Failure};
use super::shadow::{Eyes, visible};
use super::writer::Scope;
use crate::ids::{ChannelId, MessageId, UserId};
use crate::limits::UNREAD_COUNT_MAX;
use crate::store::Event;
use crate::store::query::UnreadTarget;

/// Read marks below can only be seconds.
const SECONDS_BELOW: i64 = 100_000_000_000;

/// Moves the mark forward. An unknown channel has no mark to move.
pub(super) fn update(scope: &Scope<'_>, user: UserId, channel: ChannelId, at: i64) -> Result<Event, Failure> {
    let mark = at.clamp(0, scope.now).max(mark(scope.conn, user, channel, scope.now)?);
    row::execute(
        scope.conn,
        "INSERT INTO UserChannelState (user_id, channel_id, subchannel_id, last_read_at, updated_at)
         SELECT User.id, Channel.id, 0, ?3, ?4 FROM User, Channel WHERE User.id = ?1 AND Channel.id = ?2
         ON CONFLICT (user_id, channel_id, subchannel_id)
         DO UPDATE SET last_read_at = excluded.last_read_at, updated_at = excluded.updated_at",
        params![user.as_sql(), channel.as_sql(), mark, scope.now / 1000],
    )?;
    Ok(Event::ReadStateUpdated)
}

/// The stored mark in milliseconds, 0 for none. A subchannel may have two rows, of the two ways to address it; a mark in
/// the future would hide what is still to come.
fn mark(conn: &Connection, user: UserId, channel: ChannelId, now: i64) -> rusqlite::Result<i64> {
    let marks = row::all(
        conn,
        "SELECT last_read_at FROM UserChannelState
         WHERE user_id = ?1 AND (subchannel_id = ?2 OR (channel_id = ?2 AND subchannel_id = 0))",
        params![user.as_sql(), channel.as_sql()],
        |row| row::number(row, 0),
    )?;
    Ok(marks.into_iter().map(as_ms).max().unwrap_or(0).clamp(0, now))
}

fn as_ms(mark: i64) -> i64 {
    if mark < SECONDS_BELOW { mark.saturating_mul(1000) } else { mark }
}

/// One count per target. Messages of `user` are left out; without `user` and `since` nothing is unread.
pub(super) fn unread(
    conn: &Connection,
    eyes: Eyes,
    user: Option<UserId>,
    since: Option<i64>,
    targets: &[UnreadTarget],
    now: i64,
) -> rusqlite::Result<Vec<u32>> {
    let since = |channel| match (since, user) {
        (Some(since), _) => Ok(Some(since)),
        (None, Some(user)) => mark(conn, user, channel, now).map(Some),
        (None, None) => Ok(None),
    };
    let count = |target: &UnreadTarget| {
        let Some(channel) = target.channel else { return Ok(0) };
        let Some(since) = since(channel)? else { return Ok(0) };
        match target.thread {
            None => unread_in_channel(conn, eyes, channel, since),
            Some(thread) => unread_in_thread(conn, eyes, channel, thread, since),
        }
    };
    targets.iter().map(count).collect()
}

macro_rules! unread_in_channel {
    ($($condition:expr),*) => {
        concat!(
            "SELECT count(*) FROM (
                SELECT 1 FROM Message AS m INDEXED BY scd_message_places
                WHERE COALESCE(m.subchannel_id, m.channel_id) = ?1 AND m.created_at > ?2 AND m.deleted_at IS NULL
                  AND (?3 IS NULL OR m.author_user_id IS NOT ?3)",
            $($condition,)*
            " LIMIT ?4)"
        )
    };
}

/// Answered from the index alone.
const UNREAD_IN_CHANNEL: &str = unread_in_channel!();

/// The same where something is hidden: what an admin answers below a hidden root is in no list either.
const UNREAD_AND_VISIBLE: &str = unread_in_channel!(
    " AND ",
    visible!("m.id", "?3", "?5", "?6"),
    " AND ",
    visible!("m.thread_root_id", "?3", "?5", "?6")
);

/// A root of an old file may not know that it is its own.
const UNREAD_IN_THREAD: &str = concat!(
    "SELECT count(*) FROM (
        SELECT 1 FROM (
            SELECT * FROM Message INDEXED BY scd_message_threads WHERE thread_root_id = ?5 AND deleted_at IS NULL
            UNION ALL
            SELECT * FROM Message WHERE id = ?5 AND thread_root_id IS NULL AND deleted_at IS NULL) AS m
        WHERE COALESCE(m.subchannel_id, m.channel_id) = ?1 AND m.created_at > ?2
          AND (?3 IS NULL OR m.author_user_id IS NOT ?3) AND ",
    visible!("m.id", "?3", "?6", "?7"),
    " AND ",
    visible!("?5", "?3", "?6", "?7"),
    " LIMIT ?4)"
);

fn unread_in_channel(conn: &Connection, eyes: Eyes, channel: ChannelId, since: i64) -> rusqlite::Result<u32> {
    let channel = channel.as_sql();
    let count = match eyes.now {
        None => row::first(conn, UNREAD_IN_CHANNEL, params![channel, since, eyes.user, UNREAD_COUNT_MAX], as_count),
        Some(now) => {
            let params = params![channel, since, eyes.user, UNREAD_COUNT_MAX, eyes.session, now];
            row::first(conn, UNREAD_AND_VISIBLE, params, as_count)
        }
    };
    count.map(Option::unwrap_or_default)
}

fn unread_in_thread(
    conn: &Connection,
    eyes: Eyes,
    channel: ChannelId,
    thread: MessageId,
    since: i64,
) -> rusqlite::Result<u32> {
    let params = params![channel.as_sql(), since, eyes.user, UNREAD_COUNT_MAX, thread.as_sql(), eyes.session, eyes.now];
    row::first(conn, UNREAD_IN_THREAD, params, as_count).map(Option::unwrap_or_default)
}

fn as_count(row: &rusqlite::Row<'_>) -> rusqlite::Result<u32> {
    row::number(row, 0).map(|count| u32::try_from(count).unwrap_or(UNREAD_COUNT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::row::plan;

    #[test]
    fn counts_of_places_are_read_from_their_index_alone() {
        let plan = plan(UNREAD_IN_CHANNEL, [1, 2, 3, 4]);
        assert!(plan.contains("COVERING INDEX scd_message_places (<expr>=? AND created_at>?"), "{plan}");
    }

    #[test]
    fn counts_of_threads_look_at_the_thread_only() {
        let plan = plan(UNREAD_IN_THREAD, [1, 2, 3, 4, 5, 6, 7]);
        assert!(!plan.contains("SCAN Message") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}
