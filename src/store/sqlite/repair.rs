//! Filling in what older servers left empty (BEHAVIOUR.md 8.3, points 6 and 7). Text is copied inside SQLite and never
//! read, so that it may be any bytes.

use rusqlite::Connection;

use super::migrations::{begin, without_foreign_keys};

/// Gives up to `batch` messages without a thread root their root, in a transaction of its own, and returns how many:
/// fewer than `batch` says that none are left. Must not be called inside a transaction.
///
/// A message without parent is its own root, a reply has that of its parent. A reply whose chain of parents is broken is
/// rooted at the topmost message that still exists, and the members of a circle at the smallest id among them.
///
/// # Errors
/// Those of SQLite; nothing of the batch is kept then.
pub fn repair_thread_roots(conn: &Connection, batch: usize) -> rusqlite::Result<usize> {
    let ids = unrooted_messages(conn, batch)?;
    if ids.is_empty() {
        return Ok(0);
    }
    // With foreign keys on, SQLite would check the parent along with the root, and refuse where the parent is gone.
    without_foreign_keys(conn, || {
        let transaction = begin(conn)?;
        let mut set_root = transaction.prepare_cached(SET_ROOT)?;
        for id in &ids {
            set_root.execute([id])?;
        }
        drop(set_root);
        transaction.commit()
    })?;
    Ok(ids.len())
}

/// In the order of their ids: a parent is nearly always done before its replies, and climbing takes one step.
fn unrooted_messages(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<i64>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut unrooted =
        conn.prepare_cached("SELECT id FROM Message WHERE thread_root_id IS NULL ORDER BY id LIMIT ?1")?;
    unrooted.query_map([limit], |row| row.get(0))?.collect()
}

/// UNION instead of UNION ALL ends the climb when parents form a circle.
const SET_ROOT: &str = "
WITH RECURSIVE chain(id, parent_id, known_root) AS (
    SELECT id, parent_id, NULL FROM Message WHERE id = ?1
    UNION
    SELECT above.id, above.parent_id, (SELECT root.id FROM Message AS root WHERE root.id = above.thread_root_id)
    FROM chain JOIN Message AS above ON above.id = chain.parent_id
    WHERE chain.known_root IS NULL
)
UPDATE Message SET thread_root_id = COALESCE(
    (SELECT known_root FROM chain WHERE known_root IS NOT NULL),
    (SELECT top.id FROM chain AS top WHERE NOT EXISTS (SELECT 1 FROM Message AS above WHERE above.id = top.parent_id)),
    (SELECT min(id) FROM chain)
)
WHERE id = ?1";

/// Gives every DM without any participant those that have access to it, and returns how many were added: DMs made
/// before migration 13 have none. One that was left here stays left. Access of a user who no longer exists is passed over.
///
/// # Errors
/// Those of SQLite; nothing is added then.
pub fn fill_dm_participants(conn: &Connection) -> rusqlite::Result<usize> {
    // created_at is milliseconds, or seconds where the column's default was used.
    conn.execute(
        "INSERT INTO ChannelParticipant (channel_id, user_id, nickname, joined_at)
         SELECT access.channel_id, access.user_id, User.nickname,
                CASE WHEN access.created_at < 100000000000 THEN access.created_at * 1000 ELSE access.created_at END
         FROM Channel
         JOIN ChannelAccess AS access ON access.channel_id = Channel.id
         JOIN User ON User.id = access.user_id
         WHERE Channel.is_dm = 1
           AND NOT EXISTS (SELECT 1 FROM ChannelParticipant AS present WHERE present.channel_id = Channel.id)
           AND NOT EXISTS (SELECT 1 FROM scd_dm_former AS former WHERE former.channel_id = Channel.id)
         ORDER BY access.channel_id, access.user_id",
        [],
    )
}

/// Removes rows of our own tables that mean nothing any more after another server had the file: what they
/// are about is gone, or a former name has become somebody's nickname. Returns how many.
///
/// # Errors
/// Those of SQLite.
pub fn drop_own_leftovers(conn: &Connection) -> rusqlite::Result<usize> {
    const LEFTOVERS: [&str; 5] = [
        "DELETE FROM scd_login_alias WHERE user_id NOT IN (SELECT id FROM User)
             OR EXISTS (SELECT 1 FROM User WHERE User.nickname = scd_login_alias.login_name)",
        "DELETE FROM scd_dm_invite WHERE invite_id NOT IN (SELECT id FROM DMInvite)",
        "DELETE FROM scd_dm_former WHERE channel_id NOT IN (SELECT id FROM Channel)
             OR (user_id IS NOT NULL AND user_id NOT IN (SELECT id FROM User))",
        "DELETE FROM scd_shadowed WHERE message_id NOT IN (SELECT id FROM Message) OR ban_id NOT IN (SELECT id FROM Ban)",
        "DELETE FROM scd_admin_grant WHERE user_id NOT IN (SELECT id FROM User)",
    ];
    LEFTOVERS.iter().map(|sql| conn.execute(sql, [])).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::migrations;

    fn database(rows: &str) -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        migrations::migrate(&conn, 0, migrations::VERSION, 1).unwrap();
        migrations::migrate_own(&conn, &migrations::pending_own(&conn).unwrap(), 1).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        conn.execute_batch(rows).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        conn
    }

    /// Messages as (id, parent, root before, root expected); ids say nothing about the depth in the thread.
    fn check_roots(messages: &[(i64, Option<i64>, Option<i64>, i64)], batch: usize) {
        let conn = database("INSERT INTO Channel (id, name, display_name, created_at) VALUES (1, 'a', '#a', 1)");
        conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        for (id, parent, root, _) in messages {
            conn.execute(
                "INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at)
                 VALUES (?1, 1, ?2, ?3, CAST(x'ff' AS TEXT), CAST(x'fe' AS TEXT), 1)",
                rusqlite::params![id, parent, root],
            )
            .unwrap();
        }
        conn.execute_batch("PRAGMA foreign_keys = ON").unwrap();
        let missing = messages.iter().filter(|(_, _, root, _)| root.is_none()).count();
        let mut repaired = 0;
        loop {
            let now = repair_thread_roots(&conn, batch).unwrap();
            repaired += now;
            if now < batch {
                break;
            }
        }
        assert_eq!(repaired, missing);
        for (id, _, _, expected) in messages {
            let root: i64 =
                conn.query_row("SELECT thread_root_id FROM Message WHERE id = ?1", [id], |row| row.get(0)).unwrap();
            assert_eq!(root, *expected, "root of message {id}");
        }
    }

    #[test]
    fn replies_find_the_root_of_their_thread() {
        let thread = [(1, None, None, 1), (2, Some(1), None, 1), (3, Some(9), None, 1), (9, Some(2), None, 1)];
        for batch in [1, 2, 3, 100] {
            check_roots(&thread, batch);
        }
    }

    #[test]
    fn a_known_root_above_is_taken_over() {
        check_roots(&[(1, None, Some(1), 1), (2, Some(1), Some(1), 1), (3, Some(2), None, 1)], 10);
    }

    #[test]
    fn a_root_that_does_not_exist_is_not_taken_over() {
        check_roots(&[(1, None, Some(1), 1), (2, Some(1), Some(77), 77), (3, Some(2), None, 1)], 10);
    }

    #[test]
    fn a_broken_chain_ends_at_its_topmost_message() {
        check_roots(&[(5, Some(4), None, 5), (6, Some(5), None, 5), (7, Some(6), None, 5)], 10);
    }

    #[test]
    fn circles_get_one_root() {
        check_roots(&[(1, Some(3), None, 1), (2, Some(1), None, 1), (3, Some(2), None, 1), (4, Some(4), None, 4)], 2);
        check_roots(&[(5, Some(6), None, 5), (6, Some(7), None, 6), (7, Some(6), None, 6)], 1);
    }

    #[test]
    fn a_message_in_a_channel_that_is_gone_is_repaired_too() {
        let conn = database(
            "INSERT INTO Message (id, channel_id, author_nickname, content, created_at) VALUES (1, 404, '', '', 1)",
        );
        assert_eq!(repair_thread_roots(&conn, 10).unwrap(), 1);
        assert_eq!(repair_thread_roots(&conn, 10).unwrap(), 0);
    }

    #[test]
    fn unrooted_messages_are_found_through_their_index() {
        let conn = database("");
        let plan: String = conn
            .query_row(
                "EXPLAIN QUERY PLAN SELECT id FROM Message WHERE thread_root_id IS NULL ORDER BY id LIMIT 10",
                [],
                |row| row.get("detail"),
            )
            .unwrap();
        assert!(plan.contains("scd_unrooted_messages"), "{plan}");
    }

    #[test]
    fn dms_without_participants_get_those_with_access() {
        let conn = database(
            "INSERT INTO User (id, nickname, created_at, last_seen) VALUES (1, CAST(x'ff' AS TEXT), 1, 1), (2, 'bo', 1, 1);
             INSERT INTO Channel (id, name, display_name, is_dm, created_at) VALUES
                 (10, 'dm_1_2', 'Direct Message', 1, 1), (11, 'dm_x', 'Direct Message', 1, 1), (12, 'open', '#open', 0, 1),
                 (13, 'dm_left', 'Direct Message', 1, 1);
             INSERT INTO ChannelAccess VALUES
                 (10, 1, 1700000000123), (10, 2, 1700000000), (10, 404, 1), (11, 1, 5), (12, 1, 5), (404, 2, 5), (13, 1, 5);
             INSERT INTO scd_dm_former VALUES (13, 2, 'bo', 6);
             INSERT INTO ChannelParticipant (channel_id, user_id, nickname, joined_at) VALUES (11, 2, 'bo', 1)",
        );
        assert_eq!(fill_dm_participants(&conn).unwrap(), 2);
        assert_eq!(fill_dm_participants(&conn).unwrap(), 0);
        let mut rows = conn
            .prepare("SELECT channel_id, user_id, hex(nickname), joined_at FROM ChannelParticipant ORDER BY 1, 2")
            .unwrap();
        let rows: Vec<(i64, i64, String, i64)> = rows
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let expected = [
            (10, 1, "FF".to_owned(), 1_700_000_000_123),
            (10, 2, "626F".to_owned(), 1_700_000_000_000),
            (11, 2, "626F".to_owned(), 1),
        ];
        assert_eq!(rows, expected);
    }
}
