//! Databases as the existing server made them: every version of its schema, with the rows of a small community and the
//! oddities that such files hold. Built from BEHAVIOUR.md 8.1 and 8.2 alone and never from our own migrations, so that a
//! mistake in those shows.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, params};

/// The newest version there is. A file of a later one is [`make_newer`].
pub const NEWEST: u32 = 16;

/// When the files were made: 2025-01-01 12:00 UTC.
pub const THEN_MS: i64 = 1_735_732_800_000;

/// 2024-01-01, where message ids begin.
pub const ID_EPOCH_MS: i64 = 1_704_067_200_000;

/// A version of the schema and what leads to it from the one before.
pub struct Version {
    pub number: u32,
    /// The `name` column of its row in schema_migrations.
    pub name: &'static str,
    adds: &'static str,
}

/// BEHAVIOUR.md 8.2. Version 0 is the first one without its record.
pub const VERSIONS: [Version; NEWEST as usize] = [
    Version {
        number: 1,
        name: "initial",
        adds: "
            CREATE TABLE Channel (
                id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE NOT NULL, display_name TEXT NOT NULL,
                description TEXT, channel_type INTEGER NOT NULL DEFAULT 1,
                message_retention_hours INTEGER NOT NULL DEFAULT 168, created_by INTEGER, created_at INTEGER NOT NULL,
                is_private INTEGER NOT NULL DEFAULT 0);
            CREATE UNIQUE INDEX idx_channel_name ON Channel(name);
            CREATE TABLE Session (
                id INTEGER PRIMARY KEY, user_id INTEGER, nickname TEXT NOT NULL, connection_type TEXT NOT NULL,
                connected_at INTEGER NOT NULL, last_activity INTEGER NOT NULL);
            CREATE INDEX idx_sessions_activity ON Session(last_activity);
            CREATE TABLE Message (
                id INTEGER PRIMARY KEY, channel_id INTEGER NOT NULL, subchannel_id INTEGER, parent_id INTEGER,
                thread_root_id INTEGER, author_user_id INTEGER, author_nickname TEXT NOT NULL, content TEXT NOT NULL,
                created_at INTEGER NOT NULL, edited_at INTEGER, deleted_at INTEGER,
                FOREIGN KEY (channel_id) REFERENCES Channel(id) ON DELETE CASCADE,
                FOREIGN KEY (parent_id) REFERENCES Message(id) ON DELETE CASCADE,
                FOREIGN KEY (thread_root_id) REFERENCES Message(id) ON DELETE CASCADE);
            CREATE INDEX idx_messages_channel ON Message(channel_id, created_at DESC);
            CREATE INDEX idx_messages_parent ON Message(parent_id) WHERE parent_id IS NOT NULL;
            CREATE INDEX idx_messages_thread_root ON Message(thread_root_id) WHERE thread_root_id IS NOT NULL;
            CREATE INDEX idx_messages_retention ON Message(created_at, parent_id);
            CREATE TABLE MessageVersion (
                id INTEGER PRIMARY KEY AUTOINCREMENT, message_id INTEGER NOT NULL, content TEXT NOT NULL,
                author_nickname TEXT NOT NULL, created_at INTEGER NOT NULL,
                version_type TEXT NOT NULL CHECK(version_type IN ('created', 'edited', 'deleted')),
                FOREIGN KEY (message_id) REFERENCES Message(id) ON DELETE CASCADE)",
    },
    Version {
        number: 2,
        name: "add_user_table",
        adds: "
            CREATE TABLE User (
                id INTEGER PRIMARY KEY AUTOINCREMENT, nickname TEXT UNIQUE NOT NULL,
                user_flags INTEGER NOT NULL DEFAULT 0, password_hash TEXT, created_at INTEGER NOT NULL,
                last_seen INTEGER NOT NULL);
            CREATE UNIQUE INDEX idx_users_nickname ON User(nickname)",
    },
    Version {
        number: 3,
        name: "user_created_channels",
        adds: "
            CREATE TABLE Channel_new (
                id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE NOT NULL, display_name TEXT NOT NULL,
                description TEXT, channel_type INTEGER NOT NULL DEFAULT 1,
                message_retention_hours INTEGER NOT NULL DEFAULT 168, created_by INTEGER, created_at INTEGER NOT NULL,
                is_private INTEGER NOT NULL DEFAULT 0,
                FOREIGN KEY (created_by) REFERENCES User(id) ON DELETE SET NULL);
            DROP TABLE Channel;
            ALTER TABLE Channel_new RENAME TO Channel;
            CREATE UNIQUE INDEX idx_channel_name ON Channel(name)",
    },
    Version {
        number: 4,
        name: "add_discovered_server",
        adds: "
            CREATE TABLE DiscoveredServer (
                id INTEGER PRIMARY KEY AUTOINCREMENT, hostname TEXT NOT NULL, port INTEGER NOT NULL, name TEXT NOT NULL,
                description TEXT NOT NULL, max_users INTEGER NOT NULL DEFAULT 0, is_public INTEGER NOT NULL DEFAULT 1,
                user_count INTEGER NOT NULL DEFAULT 0, uptime_seconds INTEGER NOT NULL DEFAULT 0,
                last_heartbeat INTEGER NOT NULL, heartbeat_interval INTEGER NOT NULL DEFAULT 300,
                discovered_via TEXT NOT NULL CHECK(discovered_via IN ('registration', 'gossip')), source_ip TEXT,
                created_at INTEGER NOT NULL, UNIQUE(hostname, port));
            CREATE INDEX idx_discovered_server_last_heartbeat ON DiscoveredServer(last_heartbeat);
            CREATE INDEX idx_discovered_server_hostname_port ON DiscoveredServer(hostname, port);
            CREATE INDEX idx_discovered_server_source_ip ON DiscoveredServer(source_ip)",
    },
    Version {
        number: 5,
        name: "add_ssh_keys",
        adds: "
            CREATE TABLE SSHKey (
                id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL, fingerprint TEXT UNIQUE NOT NULL,
                public_key TEXT NOT NULL, key_type TEXT NOT NULL, label TEXT, added_at INTEGER NOT NULL,
                last_used_at INTEGER, FOREIGN KEY (user_id) REFERENCES User(id) ON DELETE CASCADE);
            CREATE UNIQUE INDEX idx_ssh_fingerprint ON SSHKey(fingerprint);
            CREATE INDEX idx_ssh_user ON SSHKey(user_id)",
    },
    Version {
        number: 6,
        name: "add_channel_count_to_discovered_server",
        adds: "ALTER TABLE DiscoveredServer ADD COLUMN channel_count INTEGER NOT NULL DEFAULT 0",
    },
    Version {
        number: 7,
        name: "add_admin_tables",
        adds: "
            CREATE TABLE Ban (
                id INTEGER PRIMARY KEY AUTOINCREMENT, ban_type TEXT NOT NULL CHECK(ban_type IN ('user', 'ip')),
                user_id INTEGER, nickname TEXT, ip_cidr TEXT, reason TEXT NOT NULL,
                shadowban INTEGER NOT NULL DEFAULT 0, banned_at INTEGER NOT NULL, banned_until INTEGER,
                banned_by TEXT NOT NULL, FOREIGN KEY (user_id) REFERENCES User(id) ON DELETE CASCADE);
            CREATE INDEX idx_ban_user ON Ban(user_id) WHERE ban_type = 'user';
            CREATE INDEX idx_ban_ip ON Ban(ip_cidr) WHERE ban_type = 'ip';
            CREATE INDEX idx_ban_expiry ON Ban(banned_until) WHERE banned_until IS NOT NULL;
            CREATE TABLE AdminAction (
                id INTEGER PRIMARY KEY AUTOINCREMENT, admin_nickname TEXT NOT NULL, action_type TEXT NOT NULL,
                target_type TEXT NOT NULL CHECK(target_type IN ('user', 'ip', 'message', 'channel')),
                target_id INTEGER, target_identifier TEXT, details TEXT, performed_at INTEGER NOT NULL,
                ip_address TEXT NOT NULL);
            CREATE INDEX idx_admin_action_admin ON AdminAction(admin_nickname, performed_at DESC);
            CREATE INDEX idx_admin_action_target ON AdminAction(target_type, target_id);
            CREATE INDEX idx_admin_action_time ON AdminAction(performed_at DESC)",
    },
    Version {
        number: 8,
        name: "add_user_channel_state",
        adds: "
            CREATE TABLE UserChannelState (
                user_id INTEGER NOT NULL, channel_id INTEGER NOT NULL, subchannel_id INTEGER,
                last_read_at INTEGER NOT NULL DEFAULT 0, updated_at INTEGER NOT NULL,
                PRIMARY KEY (user_id, channel_id, subchannel_id),
                FOREIGN KEY (user_id) REFERENCES User(id) ON DELETE CASCADE,
                FOREIGN KEY (channel_id) REFERENCES Channel(id) ON DELETE CASCADE);
            CREATE INDEX idx_user_channel_state_user ON UserChannelState(user_id);
            CREATE INDEX idx_user_channel_state_updated ON UserChannelState(updated_at)",
    },
    Version {
        number: 9,
        name: "fix_user_channel_state_nulls",
        adds: "
            DROP TABLE UserChannelState;
            CREATE TABLE UserChannelState (
                user_id INTEGER NOT NULL, channel_id INTEGER NOT NULL, subchannel_id INTEGER NOT NULL DEFAULT 0,
                last_read_at INTEGER NOT NULL DEFAULT 0, updated_at INTEGER NOT NULL,
                PRIMARY KEY (user_id, channel_id, subchannel_id),
                FOREIGN KEY (user_id) REFERENCES User(id) ON DELETE CASCADE,
                FOREIGN KEY (channel_id) REFERENCES Channel(id) ON DELETE CASCADE);
            CREATE INDEX idx_user_channel_state_user ON UserChannelState(user_id);
            CREATE INDEX idx_user_channel_state_updated ON UserChannelState(updated_at)",
    },
    Version {
        number: 10,
        name: "add_subchannels",
        adds: "
            ALTER TABLE Channel ADD COLUMN parent_id INTEGER REFERENCES Channel(id) ON DELETE CASCADE;
            CREATE INDEX idx_channel_parent ON Channel(parent_id) WHERE parent_id IS NOT NULL",
    },
    Version {
        number: 11,
        name: "add_direct_messages",
        adds: "
            ALTER TABLE Channel ADD COLUMN is_dm INTEGER NOT NULL DEFAULT 0;
            ALTER TABLE User ADD COLUMN encryption_public_key BLOB;
            CREATE TABLE ChannelAccess (
                channel_id INTEGER NOT NULL, user_id INTEGER NOT NULL,
                created_at INTEGER NOT NULL DEFAULT (strftime('%s', 'now')), PRIMARY KEY (channel_id, user_id),
                FOREIGN KEY (channel_id) REFERENCES Channel(id) ON DELETE CASCADE,
                FOREIGN KEY (user_id) REFERENCES User(id) ON DELETE CASCADE);
            CREATE INDEX idx_channel_access_user ON ChannelAccess(user_id);
            CREATE INDEX idx_channel_access_channel ON ChannelAccess(channel_id);
            CREATE TABLE DMInvite (
                id INTEGER PRIMARY KEY AUTOINCREMENT, initiator_user_id INTEGER NOT NULL,
                target_user_id INTEGER NOT NULL, is_encrypted INTEGER NOT NULL DEFAULT 1, created_at INTEGER NOT NULL,
                UNIQUE(initiator_user_id, target_user_id),
                FOREIGN KEY (initiator_user_id) REFERENCES User(id) ON DELETE CASCADE,
                FOREIGN KEY (target_user_id) REFERENCES User(id) ON DELETE CASCADE)",
    },
    Version {
        number: 12,
        name: "dm_invite_session_support",
        adds: "
            DROP TABLE DMInvite;
            CREATE TABLE DMInvite (
                id INTEGER PRIMARY KEY AUTOINCREMENT, initiator_user_id INTEGER, target_user_id INTEGER,
                initiator_session_id INTEGER, target_session_id INTEGER, is_encrypted INTEGER NOT NULL DEFAULT 1,
                created_at INTEGER NOT NULL,
                CHECK (initiator_user_id IS NOT NULL OR initiator_session_id IS NOT NULL),
                CHECK (target_user_id IS NOT NULL OR target_session_id IS NOT NULL),
                UNIQUE(initiator_user_id, target_user_id),
                FOREIGN KEY (initiator_user_id) REFERENCES User(id) ON DELETE CASCADE,
                FOREIGN KEY (target_user_id) REFERENCES User(id) ON DELETE CASCADE);
            CREATE INDEX idx_dm_invite_initiator_user ON DMInvite(initiator_user_id);
            CREATE INDEX idx_dm_invite_target_user ON DMInvite(target_user_id);
            CREATE INDEX idx_dm_invite_initiator_session ON DMInvite(initiator_session_id);
            CREATE INDEX idx_dm_invite_target_session ON DMInvite(target_session_id)",
    },
    Version {
        number: 13,
        name: "channel_participants",
        adds: "
            CREATE TABLE ChannelParticipant (
                id INTEGER PRIMARY KEY AUTOINCREMENT, channel_id INTEGER NOT NULL, user_id INTEGER, session_id INTEGER,
                nickname TEXT NOT NULL, joined_at INTEGER NOT NULL,
                CHECK (user_id IS NOT NULL OR session_id IS NOT NULL),
                FOREIGN KEY (channel_id) REFERENCES Channel(id) ON DELETE CASCADE,
                FOREIGN KEY (user_id) REFERENCES User(id) ON DELETE CASCADE);
            CREATE INDEX idx_channel_participant_channel ON ChannelParticipant(channel_id);
            CREATE INDEX idx_channel_participant_user ON ChannelParticipant(user_id);
            CREATE INDEX idx_channel_participant_session ON ChannelParticipant(session_id);
            CREATE UNIQUE INDEX idx_channel_participant_unique_user
                ON ChannelParticipant(channel_id, user_id) WHERE user_id IS NOT NULL;
            CREATE UNIQUE INDEX idx_channel_participant_unique_session
                ON ChannelParticipant(channel_id, session_id) WHERE user_id IS NULL",
    },
    Version {
        number: 14,
        name: "add_last_activity_at",
        adds: "
            ALTER TABLE Message ADD COLUMN last_activity_at INTEGER;
            UPDATE Message SET last_activity_at = created_at;
            UPDATE Message SET last_activity_at =
                (SELECT max(m.created_at) FROM Message AS m WHERE m.thread_root_id = Message.id OR m.id = Message.id)
                WHERE parent_id IS NULL;
            CREATE INDEX idx_message_channel_activity ON Message(channel_id, last_activity_at DESC)
                WHERE parent_id IS NULL",
    },
    Version { number: 15, name: "add_archive_enabled", adds: "ALTER TABLE Channel ADD COLUMN archive_enabled INTEGER" },
    Version { number: 16, name: "pre_word_filter_backup", adds: "" },
];

/// An account of the files from version 2 on.
pub struct Account {
    pub id: i64,
    pub nickname: &'static str,
    /// What a client sends when this person signs in: argon2id of the password, salted with the nickname.
    pub secret: &'static str,
    /// As stored, made by another implementation of bcrypt than ours. Empty: signs in by key only.
    password_hash: &'static str,
    flags: i64,
}

/// The secret of the first one is what a deployed client sent (capture `nickname_register_auth`).
pub const ACCOUNTS: [Account; 3] = [
    Account {
        id: 1,
        nickname: "marta",
        secret: "d1pDoLcR93zKKQB6zBlY0wdL4i40LT0dIW_4aNLisek",
        password_hash: "$2a$10$N9qo8uLOickgx2ZMRZoMyeg8pZNzVx1Pwzg05QLqeibh0sXIyzvxu",
        flags: 0,
    },
    Account {
        id: 2,
        nickname: "hanna",
        secret: "hJ0BRld0Xu9ihsIqYfcpKpbbJhdc0d-NqoPdOPLGC5c",
        password_hash: "$2a$10$N9qo8uLOickgx2ZMRZoMyevBumjgw9yFBBJw.kIoTHPk0otp0Y..2",
        flags: 0,
    },
    Account { id: 3, nickname: "keyed", secret: "", password_hash: "", flags: 2 },
];

/// Channels by id. 1 to 5 are the seeds; 7 was deleted, so its id is not given again.
pub const GENERAL: i64 = 2;
pub const GARDEN: i64 = 6;
const DELETED: i64 = 7;
/// A subchannel of [`GARDEN`], from version 10 on.
pub const ROSES: i64 = 20;
/// Encrypted, between the first two accounts, from version 11 on.
pub const SECRET_DM: i64 = 30;
/// Not encrypted, between the first and the third account.
pub const PLAIN_DM: i64 = 31;

/// The channel that has no UTF-8 name, see [`texts_that_are_not_utf8`].
pub const UNREADABLE: i64 = 8;
/// See [`dms_without_participants`].
pub const BARE_DM: i64 = 32;
/// See [`a_visitor_of_a_crash`].
pub const VISITORS_DM: i64 = 34;
/// See [`a_dm_of_nobody`].
pub const LONELY_DM: i64 = 33;

/// A message; ids, parents and roots are given in seconds after [`THEN_MS`].
struct Said {
    since: u32,
    at: i64,
    place: (i64, Option<i64>),
    parent: Option<i64>,
    root: Option<i64>,
    author: (Option<i64>, &'static [u8]),
    content: &'static [u8],
}

const fn root(at: i64, place: i64, author: (Option<i64>, &'static [u8]), content: &'static [u8]) -> Said {
    Said { since: 0, at, place: (place, None), parent: None, root: Some(at), author, content }
}

const MARTA: (Option<i64>, &[u8]) = (Some(1), b"marta");
const HANNA: (Option<i64>, &[u8]) = (Some(2), b"hanna");
const VISITOR: (Option<i64>, &[u8]) = (None, b"visitor");
const SYSTEM: (Option<i64>, &[u8]) = (None, b"");

const SAID: [Said; 11] = [
    root(10, 1, VISITOR, b"first line in the chat"),
    root(20, GENERAL, MARTA, b"a thread"),
    Said { parent: Some(20), root: Some(20), ..root(21, GENERAL, VISITOR, b"a reply") },
    Said { parent: Some(21), root: Some(20), ..root(22, GENERAL, HANNA, b"a reply to the reply") },
    root(30, GENERAL, HANNA, b"another thread"),
    Said { since: 3, ..root(40, GARDEN, MARTA, b"tulips") },
    // Both ways to address a subchannel (BEHAVIOUR.md 2.11).
    Said { since: 10, ..root(50, ROSES, MARTA, b"thorns") },
    Said { since: 10, place: (GARDEN, Some(ROSES)), ..root(51, ROSES, HANNA, b"petals") },
    Said { since: 11, ..root(60, SECRET_DM, MARTA, b"\xd0\x00\xff\xfe ciphertext \x80") },
    Said { since: 11, ..root(70, PLAIN_DM, MARTA, b"hello keyed") },
    Said { since: 11, ..root(71, PLAIN_DM, SYSTEM, b"keyed has left the conversation") },
];

/// The id of the message that was posted `at` seconds after [`THEN_MS`].
pub fn message_id(at: i64) -> i64 {
    (THEN_MS - ID_EPOCH_MS + at * 1000) << 22
}

/// Something that files in the field hold and no tidy program would write.
pub struct Oddity {
    /// The first version that can hold it.
    pub since: u32,
    pub make: fn(&Connection, u32),
    /// What `scd check` says of it.
    pub told: &'static str,
}

pub const ODDITIES: [Oddity; 10] = [
    Oddity {
        since: 0,
        make: missing_thread_roots,
        told: "note  3 messages without a thread root: the server gives them one",
    },
    Oddity {
        since: 0,
        make: texts_that_are_not_utf8,
        told: "texts that are not UTF-8: they are kept and sent byte for byte",
    },
    Oddity {
        since: 0,
        make: references_to_nothing,
        told: "note  foreign keys: 1 rows of Message refer to rows of Channel that are gone",
    },
    Oddity {
        since: 0,
        make: a_message_in_no_subchannel,
        told: "note  1 messages in subchannels that are not there: they are kept, and shown to nobody",
    },
    Oddity {
        since: 13,
        make: a_visitor_of_a_crash,
        told: "note  1 visitors in direct messages whom a crash left there: they are kept, and shown as having left",
    },
    Oddity {
        since: 2,
        make: a_null_for_a_password,
        told: "note  1 accounts whose password hash is NULL: they cannot sign in by password",
    },
    Oddity {
        since: 3,
        make: a_private_channel,
        told: "channels that are private or below one that is gone: they are kept, and shown to nobody",
    },
    Oddity {
        since: 7,
        make: bans_and_actions,
        told: "note  foreign keys: 1 rows of Ban refer to rows of User that are gone",
    },
    Oddity {
        since: 11,
        make: dms_without_participants,
        told: "direct messages without participants: the server takes those that have access",
    },
    Oddity {
        since: 11,
        make: a_dm_of_nobody,
        told: "direct messages that nobody has access to: they are kept, and shown to nobody",
    },
];

/// System lines and replies of early days.
pub fn missing_thread_roots(conn: &Connection, _: u32) {
    say(conn, &Said { root: None, ..root(100, GENERAL, SYSTEM, b"a line of the system") });
    say(conn, &Said { root: None, parent: Some(20), ..root(101, GENERAL, HANNA, b"a reply without its root") });
    say(conn, &Said { root: None, parent: Some(101), ..root(102, GENERAL, MARTA, b"and one below it") });
}

/// Nobody ever checked what clients sent.
pub fn texts_that_are_not_utf8(conn: &Connection, version: u32) {
    say(conn, &root(110, GENERAL, (None, b"\xfe\xff"), b"\x80\xff\x00 and \xc3"));
    run(
        conn,
        &format!(
            "INSERT INTO Channel (id, name, display_name, channel_type, created_at)
             VALUES ({UNREADABLE}, CAST(x'ff61' AS TEXT), CAST(x'23ff' AS TEXT), 1, {THEN_MS})"
        ),
    );
    if version >= 2 {
        run(
            conn,
            "INSERT INTO User (nickname, password_hash, created_at, last_seen) VALUES (CAST(x'f061' AS TEXT), '', 1, 2)",
        );
    }
}

/// Rows written while foreign keys were off, as on most of the old server's connections (D-55): whatever they refer to is
/// gone.
pub fn references_to_nothing(conn: &Connection, version: u32) {
    say(conn, &Said { parent: Some(9_999), root: Some(9_999), ..root(120, GENERAL, VISITOR, b"its parent is gone") });
    say(conn, &root(121, 404, (Some(404), b"gone"), b"its channel is gone"));
    let rows = [
        (
            0,
            "INSERT INTO MessageVersion (message_id, content, author_nickname, created_at, version_type) VALUES (9999, 'x', 'x', 2, 'deleted')",
        ),
        (3, "UPDATE Channel SET created_by = 404 WHERE id = 5"),
        (
            5,
            "INSERT INTO SSHKey (user_id, fingerprint, public_key, key_type, added_at) VALUES (404, 'SHA256:gone', 'ssh-rsa AAAA', 'ssh-rsa', 1)",
        ),
        (8, "INSERT INTO UserChannelState VALUES (404, 1, 3, 5, 5)"),
        (
            10,
            "INSERT INTO Channel (id, name, display_name, created_at, parent_id) VALUES (21, 'lost', '#lost', 1, 404)",
        ),
        (
            11,
            "INSERT INTO ChannelAccess VALUES (30, 404, 1), (404, 1, 1);
              INSERT INTO DMInvite (initiator_user_id, target_user_id, created_at) VALUES (1, 404, 1)",
        ),
        (13, "INSERT INTO ChannelParticipant (channel_id, user_id, nickname, joined_at) VALUES (404, 2, 'hanna', 1)"),
    ];
    rows.iter().filter(|(since, _)| version >= *since).for_each(|(_, sql)| run(conn, sql));
}

/// The old server took any number for a subchannel (BEHAVIOUR.md 2.11).
pub fn a_message_in_no_subchannel(conn: &Connection, _: u32) {
    say(conn, &Said { place: (GENERAL, Some(505)), ..root(150, GENERAL, VISITOR, b"in no subchannel") });
}

/// Of a session that ended with the server it was in.
pub fn a_visitor_of_a_crash(conn: &Connection, _: u32) {
    run(
        conn,
        &format!(
            "INSERT INTO Channel (id, name, display_name, channel_type, created_at, is_private, is_dm)
             VALUES ({VISITORS_DM}, 'dm_88_89', 'Direct Message', 0, {THEN_MS}, 1, 1);
             INSERT INTO ChannelAccess VALUES ({VISITORS_DM}, 2, {THEN_MS});
             INSERT INTO ChannelParticipant (channel_id, user_id, session_id, nickname, joined_at) VALUES
                 ({VISITORS_DM}, 2, NULL, 'hanna', {THEN_MS}), ({VISITORS_DM}, NULL, 88, 'anon', {THEN_MS})"
        ),
    );
    say(conn, &root(160, VISITORS_DM, (None, b"anon"), b"anybody there?"));
}

/// Legal in the schema; the old server's own reader fails on it.
pub fn a_null_for_a_password(conn: &Connection, _: u32) {
    run(conn, "INSERT INTO User (nickname, password_hash, created_at, last_seen) VALUES ('nullable', NULL, 1, 2)");
}

pub fn a_private_channel(conn: &Connection, _: u32) {
    run(
        conn,
        "INSERT INTO Channel (id, name, display_name, created_at, is_private) VALUES (9, 'attic', '#attic', 1, 1)",
    );
}

/// What administrators left: of accounts that are gone, and times long past.
pub fn bans_and_actions(conn: &Connection, _: u32) {
    run(
        conn,
        "INSERT INTO Ban (ban_type, user_id, nickname, reason, banned_at, banned_by) VALUES ('user', 404, 'troll', 'spam', 1, 'marta');
         INSERT INTO Ban (ban_type, ip_cidr, reason, banned_at, banned_until, banned_by) VALUES ('ip', 'no address', '', 1, 2, 'marta');
         INSERT INTO AdminAction (admin_nickname, action_type, target_type, performed_at, ip_address) VALUES ('marta', 'ban_ip', 'ip', 1, '')",
    );
}

/// Made before participants were written down; both scales of time for when access was given.
pub fn dms_without_participants(conn: &Connection, _: u32) {
    run(
        conn,
        &format!(
            "INSERT INTO Channel (id, name, display_name, channel_type, created_at, is_private, is_dm)
             VALUES ({BARE_DM}, 'dm_2_3', 'Direct Message', 0, {THEN_MS}, 1, 1);
             INSERT INTO ChannelAccess VALUES ({BARE_DM}, 2, {THEN_MS}), ({BARE_DM}, 3, {THEN_MS} / 1000)"
        ),
    );
    say(conn, &root(130, BARE_DM, HANNA, b"from before participants"));
}

/// Both sides were visitors, or their accounts were deleted.
pub fn a_dm_of_nobody(conn: &Connection, _: u32) {
    run(
        conn,
        &format!(
            "INSERT INTO Channel (id, name, display_name, channel_type, created_at, is_private, is_dm)
             VALUES ({LONELY_DM}, 'dm_77_78', 'Direct Message', 0, {THEN_MS}, 1, 1)"
        ),
    );
    say(conn, &root(140, LONELY_DM, VISITOR, b"nobody can read this"));
}

/// Makes a file of `version` at `path`, everyday rows and all oddities in it, closed as after an orderly stop.
pub fn make(path: &Path, version: u32) {
    make_with(path, version, &ODDITIES);
}

/// As [`make`], with the oddities named: those that the version can hold.
pub fn make_with(path: &Path, version: u32, oddities: &[Oddity]) {
    let conn = connect(path);
    run(
        &conn,
        "CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL)",
    );
    let (deployed, newer) = VERSIONS.split_at(13);
    deployed.iter().filter(|step| step.number <= version.max(1)).for_each(|step| apply(&conn, step));
    live_a_while(&conn, version);
    oddities.iter().filter(|oddity| version >= oddity.since).for_each(|oddity| (oddity.make)(&conn, version));
    // The newer steps work on what the rows above hold.
    newer.iter().filter(|step| step.number <= version).for_each(|step| apply(&conn, step));
    if version == 0 {
        run(&conn, "DROP TABLE schema_migrations");
    }
    conn.close().unwrap();
}

/// A file of a version that came after all that is known.
pub fn make_newer(path: &Path) {
    make(path, NEWEST);
    let conn = connect(path);
    run(&conn, &format!("INSERT INTO schema_migrations VALUES ({}, 'from_the_future', 1)", NEWEST + 1));
}

/// The last words before the old server was killed: acknowledged, and in the log only.
pub fn leave_a_log(path: &Path) {
    let conn = connect(path);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    say(&conn, &root(LATE, GENERAL, VISITOR, b"in the log only"));
    run(&conn, &format!("UPDATE Message SET content = 'edited late', edited_at = 3 WHERE id = {}", message_id(30)));
    if conn.prepare("SELECT last_activity_at FROM Message").is_ok() {
        run(&conn, "UPDATE Message SET last_activity_at = created_at WHERE last_activity_at IS NULL");
    }
}

/// When [`leave_a_log`] has its message posted.
pub const LATE: i64 = 900;

/// What the newer versions of the old server do to a file of version 13 when they find one.
pub fn migrate_to_newest(conn: &Connection) {
    VERSIONS[13..].iter().for_each(|step| apply(conn, step));
}

fn connect(path: &Path) -> Connection {
    let conn = Connection::open(path).unwrap();
    run(&conn, "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; PRAGMA foreign_keys = OFF");
    conn
}

fn apply(conn: &Connection, step: &Version) {
    run(conn, step.adds);
    conn.execute("INSERT INTO schema_migrations VALUES (?1, ?2, ?3)", params![step.number, step.name, THEN_MS])
        .unwrap();
}

/// What everybody does.
fn live_a_while(conn: &Connection, version: u32) {
    let rows: [(u32, String); 11] = [
        (0, format!(
            "INSERT INTO Channel (name, display_name, description, channel_type, message_retention_hours, created_at) VALUES
                 ('chat', '>chat', 'General chat (linear conversation)', 0, 24, {THEN_MS}),
                 ('general', '#general', 'General discussion', 1, 168, {THEN_MS}),
                 ('tech', '#tech', 'Technical topics', 1, 168, {THEN_MS}),
                 ('random', '#random', 'Off-topic chat', 1, 168, {THEN_MS}),
                 ('feedback', '#feedback', 'Bug reports and feature requests', 1, 168, {THEN_MS});
             INSERT INTO Channel (id, name, display_name, created_at) VALUES ({DELETED}, 'gone', '#gone', {THEN_MS});
             DELETE FROM Channel WHERE id = {DELETED}")),
        (2, "INSERT INTO User (id, nickname, password_hash, created_at, last_seen) VALUES (7, 'gone', '', 1, 1);
             DELETE FROM User WHERE id = 7".to_owned()),
        (3, format!(
            "INSERT INTO Channel (id, name, display_name, description, created_by, created_at)
             VALUES ({GARDEN}, 'garden', '#garden', NULL, 1, {THEN_MS} / 1000)")),
        (4, format!(
            "INSERT INTO DiscoveredServer (hostname, port, name, description, last_heartbeat, discovered_via, source_ip, created_at)
             VALUES ('chat.example', 6465, 'Example', '', {THEN_MS}, 'registration', '192.0.2.1:5', {THEN_MS})")),
        (5, format!(
            "INSERT INTO SSHKey (user_id, fingerprint, public_key, key_type, label, added_at, last_used_at) VALUES
                 (3, 'SHA256:R2FyZGVu', 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEdhcmRlbg keyed@home', 'ssh-ed25519', 'home', {THEN_MS}, NULL),
                 (1, 'SHA256:TWFydGE', 'ssh-rsa AAAAB3NzaC1yc2EAAAADAQABTWFydGE', 'ssh-rsa', NULL, {THEN_MS}, {THEN_MS})")),
        (6, "UPDATE DiscoveredServer SET channel_count = 5".to_owned()),
        (8, format!("INSERT INTO UserChannelState VALUES (1, {GENERAL}, 0, {THEN_MS} + 25000, {THEN_MS} / 1000)")),
        (10, format!(
            "INSERT INTO Channel (id, name, display_name, description, created_by, created_at, parent_id)
             VALUES ({ROSES}, 'roses', '#roses', '', 1, {THEN_MS}, {GARDEN})")),
        (11, format!(
            "INSERT INTO Channel (id, name, display_name, channel_type, created_at, is_private, is_dm) VALUES
                 ({SECRET_DM}, 'dm_1_2', 'Direct Message', 0, {THEN_MS}, 1, 1),
                 ({PLAIN_DM}, 'dm_132816732160000_132816736354304', 'Direct Message', 0, {THEN_MS}, 1, 1);
             UPDATE User SET encryption_public_key = x'{marta}' WHERE id = 1;
             UPDATE User SET encryption_public_key = x'{hanna}' WHERE id = 2;
             INSERT INTO ChannelAccess VALUES ({SECRET_DM}, 1, {THEN_MS}), ({SECRET_DM}, 2, {THEN_MS}), ({PLAIN_DM}, 1, {THEN_MS}),
                 ({PLAIN_DM}, 3, {THEN_MS});
             INSERT INTO DMInvite (id, initiator_user_id, target_user_id, is_encrypted, created_at) VALUES (4, 3, 2, 0, {THEN_MS})",
            marta = "11".repeat(32), hanna = "22".repeat(32))),
        (12, format!("INSERT INTO DMInvite (id, initiator_session_id, target_user_id, is_encrypted, created_at) VALUES (5, 77, 1, 0, {THEN_MS})")),
        (13, format!(
            "INSERT INTO ChannelParticipant (channel_id, user_id, nickname, joined_at) VALUES
                 ({SECRET_DM}, 1, 'marta', {THEN_MS}), ({SECRET_DM}, 2, 'hanna', {THEN_MS}), ({PLAIN_DM}, 1, 'marta', {THEN_MS}),
                 ({PLAIN_DM}, 3, 'keyed', {THEN_MS})")),
    ];
    let (channels, rest) = rows.split_first().unwrap();
    run(conn, &channels.1);
    if version >= 2 {
        for Account { id, nickname, password_hash, flags, .. } in ACCOUNTS {
            conn.execute(
                "INSERT INTO User (id, nickname, user_flags, password_hash, created_at, last_seen) VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
                params![id, nickname, flags, password_hash, THEN_MS],
            )
            .unwrap();
        }
    }
    rest.iter().filter(|(since, _)| version >= *since).for_each(|(_, sql)| run(conn, sql));
    SAID.iter().filter(|said| version >= said.since).for_each(|said| say(conn, said));
}

fn say(conn: &Connection, said: &Said) {
    let Said { at, place, parent, root, author, content, .. } = said;
    let text = |bytes: &[u8]| rusqlite::types::Value::Blob(bytes.to_vec());
    conn.execute(
        "INSERT INTO Message (id, channel_id, subchannel_id, parent_id, thread_root_id, author_user_id, author_nickname,
                              content, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, CAST(?7 AS TEXT), CAST(?8 AS TEXT), ?9)",
        params![
            message_id(*at),
            place.0,
            place.1,
            parent.map(message_id),
            root.map(message_id),
            author.0,
            text(author.1),
            text(content),
            THEN_MS + at * 1000,
        ],
    )
    .unwrap();
}

fn run(conn: &Connection, sql: &str) {
    conn.execute_batch(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
}
