//! The rules by which the existing server opens a file and reads every row of it (BEHAVIOUR.md 8.1, 8.2, 8.3 point 12).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rusqlite::Connection;

use super::day::Used;
use crate::support::content::{describe, ledger, query, tables};
use crate::support::old_file::{self, ID_EPOCH_MS, VERSIONS};
use crate::support::{Server, clock};

/// `old` is the file as it was before ours had it.
pub(super) fn check(server: &Server, old: &Connection, version: u32, used: &Used) {
    let version = version.max(13);
    check_nothing_lies_beside_it(server);
    let conn = Connection::open(server.database()).unwrap();
    check_head(&conn, old);
    check_ledger(&conn, version);
    check_schema(&conn, version);
    check_additions(&conn);
    check_types(&conn);
    check_references(&conn, old);
    check_rows_kept(&conn, old);
    check_users(&conn);
    check_messages(&conn, version);
    check_new_ids(&conn, old);
    check_times(&conn, old, used.since_ms);
    check_direct_messages(&conn);
}

/// After an orderly stop the file is all there is: whoever copies it needs nothing else.
fn check_nothing_lies_beside_it(server: &Server) {
    for suffix in ["-wal", "-shm", "-journal", ".lock"] {
        let beside = format!("{}{suffix}", server.database().display());
        assert!(fs::metadata(&beside).is_err(), "{beside}");
    }
}

fn check_head(conn: &Connection, old: &Connection) {
    for pragma in ["user_version", "application_id", "page_size", "auto_vacuum"] {
        let value = |conn| query::<i64>(conn, &format!("PRAGMA {pragma}"));
        assert_eq!(value(conn), value(old), "{pragma}");
    }
    for (pragma, expected) in [("journal_mode", "wal"), ("encoding", "UTF-8"), ("integrity_check", "ok")] {
        assert_eq!(query::<String>(conn, &format!("PRAGMA {pragma}")), [expected], "{pragma}");
    }
}

/// A row of ours here would make a newer server skip a migration of its own.
fn check_ledger(conn: &Connection, version: u32) {
    let recorded: Vec<_> = ledger(conn).into_iter().map(|(number, name, _)| (number, name)).collect();
    let expected: Vec<_> =
        VERSIONS[..version as usize].iter().map(|step| (step.number, step.name.to_owned())).collect();
    assert_eq!(recorded, expected);
}

/// Tables, columns, defaults, keys and indexes are those of the existing server, and what is added to them is an index.
fn check_schema(conn: &Connection, version: u32) {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("reference.db");
    old_file::make_with(&path, version, &[]);
    let reference = Connection::open(path).unwrap();
    for table in tables(&reference).keys() {
        let described = describe(conn, table);
        let theirs: String =
            described.lines().filter(|line| !line.contains(" scd_")).map(|line| format!("{line}\n")).collect();
        assert_eq!(theirs, describe(&reference, table));
        let ours: Vec<_> = described.lines().filter(|line| line.contains(" scd_")).collect();
        assert!(ours.iter().all(|line| line.starts_with("  index scd_")), "{table}: {ours:?}");
    }
    let names = |conn| {
        query::<String>(
            conn,
            "SELECT type || ' ' || name FROM sqlite_schema WHERE name NOT LIKE 'scd!_%' ESCAPE '!' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'",
        )
    };
    let (found, expected): (BTreeSet<_>, BTreeSet<_>) =
        (names(conn).into_iter().collect(), names(&reference).into_iter().collect());
    assert_eq!(found, expected);
}

/// Nothing of ours acts on its own or refuses a row: no trigger, no view, no unique index on a table of the field, and no
/// key of our tables that would hold a deletion up.
fn check_additions(conn: &Connection) {
    let kinds = "SELECT DISTINCT type FROM sqlite_schema WHERE name LIKE 'scd!_%' ESCAPE '!' ORDER BY 1";
    assert_eq!(query::<String>(conn, kinds), ["index", "table"]);
    let unique = "SELECT list.name FROM sqlite_schema AS t, pragma_index_list(t.name) AS list
                  WHERE t.type = 'table' AND t.name NOT LIKE 'scd!_%' ESCAPE '!' AND list.\"unique\"
                    AND list.name LIKE 'scd!_%' ESCAPE '!'";
    assert_eq!(query::<String>(conn, unique), [""; 0]);
    let holding = "SELECT t.name FROM sqlite_schema AS t, pragma_foreign_key_list(t.name) AS key
                   WHERE t.type = 'table' AND t.name LIKE 'scd!_%' ESCAPE '!' AND key.on_delete <> 'CASCADE'";
    assert_eq!(query::<String>(conn, holding), [""; 0]);
    let pointing = "SELECT t.name FROM sqlite_schema AS t, pragma_foreign_key_list(t.name) AS key
                    WHERE t.type = 'table' AND t.name NOT LIKE 'scd!_%' ESCAPE '!' AND key.\"table\" LIKE 'scd!_%' ESCAPE '!'";
    assert_eq!(query::<String>(conn, pointing), [""; 0]);
}

/// A typed reader finds in every cell what the column declares.
fn check_types(conn: &Connection) {
    for (table, (columns, _)) in tables(conn) {
        for column in columns {
            let odd = format!(
                "SELECT typeof(t.{column}) || ' in {table}.{column} ' || c.type FROM {table} AS t, pragma_table_info('{table}') AS c
                 WHERE c.name = '{column}' AND c.type <> '' AND typeof(t.{column}) <> lower(c.type)
                   AND (typeof(t.{column}) <> 'null' OR c.\"notnull\")"
            );
            assert_eq!(query::<String>(conn, &odd), [""; 0]);
        }
    }
}

/// Broken references are those that were there.
fn check_references(conn: &Connection, old: &Connection) {
    let broken = |conn| -> BTreeSet<String> {
        let sql = "SELECT \"table\" || ' ' || COALESCE(rowid, '') || ' ' || parent FROM pragma_foreign_key_check";
        query::<String>(conn, sql).into_iter().collect()
    };
    let (now, before) = (broken(conn), broken(old));
    assert!(now.is_subset(&before), "{:?}", now.difference(&before).collect::<Vec<_>>());
}

/// No id changed and no row went; an invitation that was answered is the exception, and none of the old ones was.
fn check_rows_kept(conn: &Connection, old: &Connection) {
    for table in
        ["Channel", "User", "Message", "MessageVersion", "SSHKey", "DiscoveredServer", "Ban", "AdminAction", "DMInvite"]
    {
        let ids = |conn: &Connection| match conn.table_exists(None, table).unwrap() {
            true => query::<i64>(conn, &format!("SELECT id FROM {table}")).into_iter().collect(),
            false => BTreeSet::new(),
        };
        let (now, before): (BTreeSet<_>, _) = (ids(conn), ids(old));
        assert!(before.is_subset(&now), "{table}: {:?}", before.difference(&now).collect::<Vec<_>>());
    }
}

/// BEHAVIOUR.md 2.0, 2.1 and 8.1: names, bcrypt of Go's form or an empty text, two flags.
fn check_users(conn: &Connection) {
    let odd = "SELECT hex(nickname) || ' ' || COALESCE(password_hash, 'NULL') || ' ' || user_flags FROM User
               WHERE nickname NOT IN ('nullable', CAST(x'f061' AS TEXT))
                 AND (password_hash IS NULL OR NOT (password_hash = '' OR (length(password_hash) = 60 AND password_hash GLOB '$2a$10$*'))
                      OR nickname GLOB '*[^a-zA-Z0-9_-]*' OR length(nickname) NOT BETWEEN 3 AND 20 OR user_flags NOT BETWEEN 0 AND 3)";
    assert_eq!(query::<String>(conn, odd), [""; 0]);
    let admin = "SELECT nickname FROM User WHERE user_flags & 1";
    assert_eq!(query::<String>(conn, admin), ["marta"]);
}

/// Every message knows its root, is where its parent is, and, from version 14 on, when its thread was last written to.
pub(super) fn check_messages(conn: &Connection, version: u32) {
    let rootless = "SELECT CAST(id AS TEXT) FROM Message AS m WHERE thread_root_id IS NULL
                      OR (parent_id IS NULL AND thread_root_id <> id)
                      OR thread_root_id <> (SELECT thread_root_id FROM Message WHERE id = m.parent_id)";
    assert_eq!(query::<String>(conn, rootless), [""; 0]);
    let apart = "SELECT CAST(m.id AS TEXT) FROM Message AS m JOIN Message AS above ON above.id = m.parent_id
                 WHERE COALESCE(m.subchannel_id, m.channel_id) <> COALESCE(above.subchannel_id, above.channel_id)";
    assert_eq!(query::<String>(conn, apart), [""; 0]);
    if version >= 14 {
        let untold =
            "SELECT m.id || ' ' || m.created_at || ' ' || COALESCE(m.last_activity_at, 'NULL') FROM Message AS m
                      WHERE m.last_activity_at IS NOT (CASE WHEN m.parent_id IS NULL
                          THEN (SELECT max(created_at) FROM Message WHERE id = m.id OR thread_root_id = m.id)
                          ELSE m.created_at END)";
        assert_eq!(query::<String>(conn, untold), [""; 0]);
    }
    let texts = "SELECT version_type FROM MessageVersion WHERE version_type NOT IN ('created', 'edited', 'deleted')";
    assert_eq!(query::<String>(conn, texts), [""; 0]);
}

/// BEHAVIOUR.md 8.5: above all old ids, worker 0, and of the time at which the message was stored.
fn check_new_ids(conn: &Connection, old: &Connection) {
    let newest = query::<i64>(old, "SELECT max(id) FROM Message")[0];
    let of_ours = format!("SELECT count(*) FROM Message WHERE id > {newest}");
    assert!(query::<i64>(conn, &of_ours)[0] >= 14, "the day was quiet");
    let added = format!("SELECT count(*) FROM Message WHERE id > {newest} AND id > 0");
    let total = |conn| query::<i64>(conn, "SELECT count(*) FROM Message")[0];
    assert_eq!(query::<i64>(conn, &added)[0], total(conn) - total(old));
    let odd = format!(
        "SELECT CAST(id AS TEXT) FROM Message WHERE id > {newest}
         AND ((id >> 12) & 1023 <> 0 OR abs((id >> 22) + {ID_EPOCH_MS} - created_at) > 1000)"
    );
    assert_eq!(query::<String>(conn, &odd), [""; 0]);
}

/// Times of rows that came with the day: milliseconds, where they are not seconds.
fn check_times(conn: &Connection, old: &Connection, since_ms: i64) {
    const MS: [(&str, &str); 9] = [
        ("Channel", "created_at"),
        ("User", "created_at"),
        ("User", "last_seen"),
        ("Message", "created_at"),
        ("MessageVersion", "created_at"),
        ("AdminAction", "performed_at"),
        ("ChannelAccess", "created_at"),
        ("DMInvite", "created_at"),
        ("ChannelParticipant", "joined_at"),
    ];
    let now_ms = clock::now_ms();
    let counted: BTreeMap<&str, usize> = MS
        .map(|(table, column)| {
            let before = match old.table_exists(None, table).unwrap() {
                true => query::<i64>(old, &format!("SELECT COALESCE(max(rowid), 0) FROM {table}"))[0],
                false => 0,
            };
            // Participants of old conversations came with the access they were taken from.
            let times = query::<i64>(
                conn,
                &format!(
                    "SELECT {column} FROM {table} WHERE rowid > {before} AND {column} > {}",
                    old_file::THEN_MS + 86_400_000
                ),
            );
            assert!(times.iter().all(|time| (since_ms..=now_ms).contains(time)), "{table}.{column}: {times:?}");
            (table, times.len())
        })
        .into();
    assert!(counted.values().all(|count| *count > 0), "the day left tables untouched: {counted:?}");
    let edits = query::<i64>(
        conn,
        "SELECT edited_at FROM Message WHERE edited_at > 3 UNION ALL SELECT deleted_at FROM Message WHERE deleted_at > 4",
    );
    assert!(edits.len() >= 5 && edits.iter().all(|time| (since_ms..=now_ms).contains(time)), "{edits:?}");
    let mark = "SELECT last_read_at, updated_at FROM UserChannelState WHERE user_id = 1 AND channel_id = 2 AND subchannel_id = 0";
    let (read, updated): (i64, i64) = conn.query_row(mark, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert!((since_ms..=now_ms).contains(&read), "{read}");
    assert!((since_ms / 1000..=now_ms / 1000).contains(&updated), "{updated} is no second");
}

/// As the existing server makes them (BEHAVIOUR.md 4.1), with access for every account, because that is where it looks.
fn check_direct_messages(conn: &Connection) {
    let odd = "SELECT name FROM Channel WHERE is_dm <> 0
               AND (is_dm <> 1 OR is_private <> 1 OR channel_type <> 0 OR message_retention_hours <> 168
                    OR display_name <> 'Direct Message' OR name NOT LIKE 'dm!_%' ESCAPE '!')";
    assert_eq!(query::<String>(conn, odd), [""; 0]);
    let without = "SELECT channel_id || ' ' || user_id FROM ChannelParticipant AS p WHERE user_id IS NOT NULL AND channel_id <> 404
                   AND NOT EXISTS (SELECT 1 FROM ChannelAccess WHERE channel_id = p.channel_id AND user_id = p.user_id)";
    assert_eq!(query::<String>(conn, without), [""; 0]);
}
