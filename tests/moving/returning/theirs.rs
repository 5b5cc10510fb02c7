//! What the existing server does to a file: its kinds of statements (BEHAVIOUR.md 8), those of the deployed version first,
//! then those of the newer ones, which bring their migrations along.

use rusqlite::Connection;

use super::day::{HANNAS_NEW_SECRET, Used};
use crate::support::content::query;
use crate::support::old_file::{self, ID_EPOCH_MS};

pub(super) fn work(conn: &Connection, used: &Used, version: u32) {
    configure(conn);
    start(conn);
    talk(conn, used, version);
    administer(conn);
    converse(conn, used);
    delete(conn, used);
    if version < 14 {
        old_file::migrate_to_newest(conn);
    }
    clean_up(conn);
    forget_with_keys_off(conn);
}

/// On its writer, see BEHAVIOUR.md 8.4.
fn configure(conn: &Connection) {
    run(
        conn,
        "PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000",
    );
}

/// Seeds at every start, and everything read into memory.
fn start(conn: &Connection) {
    run(
        conn,
        "INSERT OR IGNORE INTO Channel (name, display_name, description, channel_type, message_retention_hours, created_at)
         VALUES ('chat', '>chat', 'General chat (linear conversation)', 0, 24, unixepoch() * 1000),
                ('general', '#general', 'General discussion', 1, 168, unixepoch() * 1000),
                ('made-there', '#made-there', '', 1, 168, unixepoch() * 1000)",
    );
    let loaded = query::<i64>(conn, "SELECT id FROM Message WHERE deleted_at IS NULL ORDER BY created_at");
    assert!(loaded.len() > 20);
}

/// A snapshot: rows of its memory, replaced or, in newer versions, put over what is there. Its clock is an hour ahead.
fn talk(conn: &Connection, used: &Used, version: u32) {
    let thread = used.thread.as_sql();
    let root = (used.since_ms + 3_600_000 - ID_EPOCH_MS) << 22;
    let activity = if version >= 14 { ", last_activity_at" } else { "" };
    let columns = format!(
        "id, channel_id, subchannel_id, parent_id, thread_root_id, author_user_id, author_nickname, content, created_at,
         edited_at, deleted_at{activity}"
    );
    run(
        conn,
        &format!(
            "BEGIN;
             CREATE TEMP TABLE memory AS SELECT {columns} FROM Message
                 WHERE id NOT IN (SELECT parent_id FROM Message WHERE parent_id IS NOT NULL) AND parent_id IS NOT NULL
                   AND channel_id IN (SELECT id FROM Channel) AND parent_id IN (SELECT id FROM Message);
             INSERT OR REPLACE INTO Message ({columns}) SELECT {columns} FROM memory;
             INSERT INTO Message ({columns}) SELECT {columns} FROM memory WHERE true
                 ON CONFLICT (id) DO UPDATE SET content = excluded.content, edited_at = excluded.edited_at;
             DROP TABLE memory;
             INSERT INTO Message (id, channel_id, thread_root_id, author_user_id, author_nickname, content, created_at)
                 VALUES ({root}, 2, {root}, 2, 'hanna', 'posted there', unixepoch() * 1000);
             INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at)
                 VALUES ({root} + 1, 2, {thread}, {thread}, 'visitor', 'a reply from there', unixepoch() * 1000);
             INSERT INTO Message (id, channel_id, author_nickname, content, created_at)
                 VALUES ({root} + 2, 2, '', 'a line of the system without a root', unixepoch() * 1000);
             UPDATE Message SET content = 'edited there', edited_at = unixepoch() * 1000 WHERE id = {thread};
             UPDATE Message SET deleted_at = unixepoch() * 1000 WHERE id = {root} + 1;
             INSERT INTO Session VALUES (5, 2, 'hanna', 'ssh', 1, 1); DELETE FROM Session WHERE id = 5;
             INSERT OR REPLACE INTO UserChannelState VALUES (2, 2, 0, unixepoch() * 1000, unixepoch());
             COMMIT"
        ),
    );
    if version >= 14 {
        run(
            conn,
            &format!(
                "UPDATE Message SET last_activity_at = created_at WHERE id >= {root};
                 UPDATE Message SET last_activity_at = (SELECT max(created_at) FROM Message WHERE thread_root_id = {thread})
                     WHERE id = {thread}"
            ),
        );
    }
}

fn administer(conn: &Connection) {
    run(
        conn,
        "UPDATE User SET last_seen = unixepoch() * 1000, user_flags = 1 WHERE nickname = 'marta';
         INSERT INTO User (nickname, user_flags, password_hash, created_at, last_seen)
             SELECT 'other', 0, password_hash, unixepoch() * 1000, unixepoch() * 1000 FROM User WHERE nickname = 'hanna';
         INSERT INTO SSHKey (user_id, fingerprint, public_key, key_type, label, added_at)
             VALUES (2, 'SHA256:new', 'ssh-ed25519 AAAA', 'ssh-ed25519', '', unixepoch() * 1000);
         UPDATE SSHKey SET last_used_at = unixepoch() * 1000 WHERE fingerprint = 'SHA256:new';
         DELETE FROM SSHKey WHERE fingerprint = 'SHA256:new';
         INSERT INTO Ban (ban_type, nickname, reason, banned_at, banned_by)
             VALUES ('user', 'nobody', '', unixepoch() * 1000, 'marta');
         DELETE FROM Ban WHERE nickname = 'nobody';
         INSERT INTO AdminAction (admin_nickname, action_type, target_type, target_identifier, performed_at, ip_address)
             VALUES ('marta', 'unban_user', 'user', 'nobody', unixepoch() * 1000, '192.0.2.1');
         INSERT INTO DiscoveredServer (hostname, port, name, description, last_heartbeat, discovered_via, source_ip, created_at)
             VALUES ('new.example', 6465, '', '', unixepoch() * 1000, 'registration', '192.0.2.2:7', unixepoch() * 1000)
             ON CONFLICT (hostname, port) DO UPDATE SET last_heartbeat = excluded.last_heartbeat",
    );
    // A sign-in reads the hash that ours wrote.
    let stored = query::<String>(conn, "SELECT password_hash FROM User WHERE nickname = 'hanna'");
    assert!(bcrypt::verify(HANNAS_NEW_SECRET, &stored[0]).unwrap());
}

fn converse(conn: &Connection, used: &Used) {
    let (left, invite) = (used.left_dm.as_sql(), used.invite.as_sql());
    run(
        conn,
        &format!(
            "INSERT INTO DMInvite (initiator_user_id, target_user_id, is_encrypted, created_at) VALUES (2, 1, 0, unixepoch() * 1000);
             DELETE FROM DMInvite WHERE initiator_user_id = 2 AND target_user_id = 1;
             DELETE FROM DMInvite WHERE id = {invite};
             INSERT INTO Channel (name, display_name, channel_type, message_retention_hours, created_at, is_private, is_dm)
                 VALUES ('dm_5_6', 'Direct Message', 0, 168, unixepoch() * 1000, 1, 1);
             INSERT OR IGNORE INTO ChannelAccess (channel_id, user_id, created_at)
                 SELECT id, 2, unixepoch() * 1000 FROM Channel WHERE name = 'dm_5_6';
             INSERT INTO ChannelParticipant (channel_id, user_id, nickname, joined_at)
                 SELECT id, 2, 'hanna', unixepoch() * 1000 FROM Channel WHERE name = 'dm_5_6';
             INSERT INTO ChannelParticipant (channel_id, session_id, nickname, joined_at)
                 SELECT id, 4242, 'visitor', unixepoch() * 1000 FROM Channel WHERE name = 'dm_5_6';
             DELETE FROM ChannelParticipant WHERE session_id = 4242;
             DELETE FROM ChannelParticipant WHERE channel_id = {left}"
        ),
    );
}

/// An account that ours renamed, with its alias; channels that ours made, with all below them.
fn delete(conn: &Connection, used: &Used) {
    run(
        conn,
        &format!(
            "UPDATE Message SET author_user_id = NULL WHERE author_user_id = (SELECT id FROM User WHERE nickname = 'renamed');
             DELETE FROM User WHERE nickname = 'renamed';
             DELETE FROM Channel WHERE id = {}",
            used.channel.as_sql()
        ),
    );
    let sub = used.sub.as_sql();
    let left = format!(
        "SELECT count(*) FROM Message WHERE channel_id = {sub} UNION ALL SELECT count(*) FROM Channel WHERE id = {sub}"
    );
    assert_eq!(query::<i64>(conn, &left), [0, 0], "cascades reach what ours made");
    let aliases = "SELECT count(*) FROM scd_login_alias WHERE login_name = 'newcomer'";
    assert_eq!(query::<i64>(conn, aliases), [0]);
}

/// By age, as the newer versions do it (BEHAVIOUR.md 8.7): the root goes and takes along all that is below.
fn clean_up(conn: &Connection) {
    let before = query::<i64>(conn, "SELECT count(*) FROM Message");
    run(
        conn,
        "DELETE FROM Message WHERE parent_id IS NULL AND EXISTS (
             SELECT 1 FROM Channel AS c WHERE c.id = Message.channel_id AND c.message_retention_hours > 0 AND c.is_dm = 0
             AND Message.created_at < unixepoch() * 1000 - c.message_retention_hours * 3600000)",
    );
    assert!(query::<i64>(conn, "SELECT count(*) FROM Message") < before);
}

/// Most of its connections have foreign keys off (D-55): what hangs on the rows stays behind.
fn forget_with_keys_off(conn: &Connection) {
    run(
        conn,
        "PRAGMA foreign_keys = OFF;
         INSERT INTO scd_login_alias VALUES ('stale', 40404, 1);
         INSERT INTO scd_dm_former (channel_id, nickname, left_at) VALUES (40404, 'x', 1);
         INSERT INTO scd_dm_invite VALUES (40404, 0, 1, 'x', 'y');
         INSERT INTO scd_shadowed (message_id, ban_id, session_id) VALUES (40404, 40404, 1);
         INSERT INTO scd_admin_grant VALUES (40404, 'x', 1);
         DELETE FROM DiscoveredServer;
         PRAGMA foreign_keys = ON",
    );
}

fn run(conn: &Connection, sql: &str) {
    conn.execute_batch(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
}
