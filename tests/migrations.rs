//! Opening database files: of every version, and those that must be refused.
#![expect(clippy::unwrap_used, reason = "clippy knows test functions, not the helpers between them")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use superchat::store::sqlite::lock::LockError;
use superchat::store::sqlite::migrations::{self, Migration};
use superchat::store::sqlite::open::{Durability, OpenError, OpenOptions, Opened, Origin, open, open_reader, origin};
use support::content::{Tables, counters, describe, described, ledger, query, rows_of, tables, twin};
use support::old_file::{self, BARE_DM, PLAIN_DM, SECRET_DM, THEN_MS, VERSIONS};
use tempfile::TempDir;

/// 2026-01-02 03:04:05 UTC.
const NOW_MS: i64 = 1_767_323_045_000;
const STAMP: &str = "20260102-030405";

// ---- old files of every version -------------------------------------------------------------------------------------

macro_rules! from_versions {
    ($($name:ident $version:literal)+) => { $(#[test] fn $name() { check_upgrade($version); })+ };
}

from_versions! {
    from_0 0  from_1 1  from_2 2  from_3 3  from_4 4  from_5 5  from_6 6  from_7 7  from_8 8  from_9 9
    from_10 10  from_11 11  from_12 12  from_13 13
}

fn check_upgrade(version: u32) {
    let old = OldFile::of(version);
    old.assert_late_rows_are_in_the_wal_only();

    let opened = old.open().unwrap();

    assert_eq!((opened.schema_version, opened.created), (13, false));
    assert_eq!(origin(&opened.writer).unwrap(), Origin::Adopted { at_ms: NOW_MS, schema_version: version });
    assert_rows_kept(&opened.writer, &old.tables, version);
    assert_counters_kept(&opened.writer, &old.counters);
    assert_eq!(described(&opened.writer), described(&Fresh::new().opened.writer));
    assert_eq!(ledger(&opened.writer), expected_ledger(version));
    assert_backup(&old, version);
    assert_keys_are_on(&opened.writer);
}

/// Everything that was in the old file is still there; migration 9 throws earlier read marks away.
fn assert_rows_kept(conn: &Connection, before: &Tables, version: u32) {
    for (table, (columns, rows)) in before {
        let expected = match table.as_str() {
            "schema_migrations" => continue,
            "ChannelParticipant" => {
                // What was missing is added behind.
                assert_eq!(&rows_of(conn, table, columns)[..rows.len()], rows);
                continue;
            }
            "UserChannelState" if version < 9 => &Vec::new(),
            _ => rows,
        };
        assert_eq!(&rows_of(conn, table, columns), expected, "{table}");
    }
    if version >= 11 {
        let inside = "SELECT group_concat(channel_id || ':' || user_id || ':' || joined_at, ' ') FROM
                      (SELECT * FROM ChannelParticipant WHERE channel_id BETWEEN 30 AND 32 ORDER BY channel_id, user_id)";
        let expected = [(SECRET_DM, 1), (SECRET_DM, 2), (PLAIN_DM, 1), (PLAIN_DM, 3), (BARE_DM, 2), (BARE_DM, 3)];
        let expected = expected.map(|(dm, user)| format!("{dm}:{user}:{THEN_MS}")).join(" ");
        assert_eq!(query::<String>(conn, inside), [expected]);
    }
}

fn assert_counters_kept(conn: &Connection, before: &[(String, i64)]) {
    let after: BTreeMap<String, i64> = counters(conn).into_iter().collect();
    for (table, counter) in before {
        // Of a direct message without participants they are added.
        let is_kept = after[table] == *counter || (table == "ChannelParticipant" && after[table] > *counter);
        assert!(is_kept, "{table}: {counter} in {after:?}");
    }
}

fn expected_ledger(version: u32) -> Vec<(u32, String, i64)> {
    let applied_at = |number| if number <= version { THEN_MS } else { NOW_MS };
    let steps = VERSIONS[..version.max(13) as usize].iter();
    steps.map(|step| (step.number, step.name.to_owned(), applied_at(step.number))).collect()
}

/// The one backup is private, holds the old file as it was, and nothing was left beside it.
fn assert_backup(old: &OldFile, version: u32) {
    let backup = old.path.with_file_name(format!("chat.db.backup-v{version}-{STAMP}"));
    assert_eq!(mode(&backup), 0o600);
    let names = listing(&old.directory);
    let copies = names.iter().filter(|name| name.contains("backup"));
    assert_eq!(copies.collect::<Vec<_>>(), [backup.file_name().unwrap().to_str().unwrap()]);
    let conn = Connection::open(&backup).unwrap();
    assert_eq!(tables(&conn), old.tables);
    assert_eq!(query::<String>(&conn, "PRAGMA integrity_check"), ["ok"]);
}

fn assert_keys_are_on(conn: &Connection) {
    assert_eq!(query::<i64>(conn, "PRAGMA foreign_keys"), [1]);
}

#[test]
fn from_14_to_16_is_left_as_found() {
    for version in 14..=16 {
        let old = OldFile::of(version);
        let opened = old.open().unwrap();
        assert_eq!((opened.schema_version, opened.created), (version, false));
        assert_rows_kept(&opened.writer, &old.tables, version);
        assert_eq!(ledger(&opened.writer), expected_ledger(version));
        let not_ours = |sql: &String| !sql.contains("scd_");
        assert_eq!(schema(&opened.writer).into_iter().filter(not_ours).collect::<Vec<_>>(), old.schema);
        assert_backup(&old, version);
    }
}

#[test]
fn from_1_without_the_columns_that_came_later() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("chat.db");
    let conn = Connection::open(&path).unwrap();
    migrations::migrate(&conn, 0, 1, THEN_MS).unwrap();
    conn.execute_batch(
        "ALTER TABLE Channel DROP COLUMN created_by;
         ALTER TABLE Channel DROP COLUMN is_private;
         INSERT INTO Channel (name, display_name, created_at) VALUES ('a', '#a', 1)",
    )
    .unwrap();
    drop(conn);
    let opened = open(&path, &OpenOptions::default(), NOW_MS).unwrap();
    assert_eq!(query::<i64>(&opened.writer, "SELECT is_private FROM Channel WHERE created_by IS NULL"), [0]);
}

#[test]
fn a_failed_migration_keeps_those_before_it_and_can_be_repeated() {
    let old = OldFile::of(5);
    let obstacle = Connection::open(&old.path).unwrap();
    obstacle.execute_batch("CREATE TABLE AdminAction (x)").unwrap();

    let error = old.open().unwrap_err();
    assert!(error.to_string().contains("migration 7 (add_admin_tables) failed"), "{error}");
    assert_eq!(ledger(&obstacle).len(), 6);
    assert_eq!(query::<i64>(&obstacle, "SELECT count(*) FROM sqlite_schema WHERE name = 'Ban'"), [0]);

    obstacle.execute_batch("DROP TABLE AdminAction").unwrap();
    let opened = old.open().unwrap();
    assert_rows_kept(&opened.writer, &old.tables, 5);
}

#[test]
fn a_first_start_that_was_cut_off_is_completed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("chat.db");
    let ledger_only =
        "CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL)";
    Connection::open(&path).unwrap().execute_batch(ledger_only).unwrap();
    let opened = open(&path, &OpenOptions::default(), NOW_MS).unwrap();
    assert_eq!(schema(&opened.writer), schema(&Fresh::new().opened.writer));
}

#[test]
fn every_migration_file_is_in_its_table() {
    for (folder, table) in [("migrations", migrations::NUMBERED), ("migrations/own", migrations::OWN)] {
        let is_sql = |name: &String| name.ends_with(".sql");
        let files = listing(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).into_iter().filter(is_sql);
        let file_of = |(number, migration): (u32, &Migration)| {
            assert_eq!(migration.version, number);
            format!("{number:04}_{}.sql", migration.name)
        };
        assert_eq!(files.collect::<Vec<_>>(), (1..).zip(table).map(file_of).collect::<Vec<_>>());
    }
}

// ---- new files ------------------------------------------------------------------------------------------------------

#[test]
fn a_new_file_has_the_schema_of_the_specification() {
    let fresh = Fresh::new();
    let conn = &fresh.opened.writer;
    let names: Vec<String> =
        query(conn, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'");
    let described: String = names.iter().map(|table| describe(conn, table)).collect();
    assert_eq!(described, include_str!("data/schema.txt"));
}

#[test]
fn a_new_file_refuses_rows_that_the_specification_forbids() {
    let fresh = Fresh::new();
    let conn = &fresh.opened.writer;
    conn.execute_batch(
        "INSERT INTO User VALUES (1, 'ann', 0, '', 1, 1, NULL);
         INSERT INTO Channel (id, name, display_name, created_at) VALUES (1, 'a', '#a', 1);
         INSERT INTO Message (id, channel_id, author_nickname, content, created_at) VALUES (1, 1, '', '', 1);
         INSERT INTO ChannelParticipant (channel_id, user_id, session_id, nickname, joined_at) VALUES (1, 1, NULL, '', 1), (1, NULL, 5, '', 1)",
    )
    .unwrap();
    for forbidden in [
        "INSERT INTO MessageVersion (message_id, content, author_nickname, created_at, version_type) VALUES (1, '', '', 1, 'lost')",
        "INSERT INTO DiscoveredServer (hostname, port, name, description, last_heartbeat, discovered_via, created_at) VALUES ('', 1, '', '', 1, 'rumour', 1)",
        "INSERT INTO Ban (ban_type, reason, banned_at, banned_by) VALUES ('ship', '', 1, '')",
        "INSERT INTO AdminAction (admin_nickname, action_type, target_type, performed_at, ip_address) VALUES ('', '', 'ship', 1, '')",
        "INSERT INTO DMInvite (initiator_user_id, created_at) VALUES (1, 1)",
        "INSERT INTO DMInvite (target_user_id, created_at) VALUES (1, 1)",
        "INSERT INTO ChannelParticipant (channel_id, nickname, joined_at) VALUES (1, '', 1)",
        "INSERT INTO ChannelParticipant (channel_id, user_id, nickname, joined_at) VALUES (1, 1, '', 1)",
        "INSERT INTO ChannelParticipant (channel_id, session_id, nickname, joined_at) VALUES (1, 5, '', 1)",
        "INSERT INTO Channel (name, display_name, created_at) VALUES ('a', '#a', 1)",
    ] {
        let error = conn.execute_batch(forbidden).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::ConstraintViolation), "{forbidden}: {error}");
    }
}

#[test]
fn a_new_file_is_private_and_marked_as_ours() {
    let fresh = Fresh::new();
    let opened = &fresh.opened;
    assert_eq!((opened.created, opened.schema_version), (true, 13));
    assert_eq!(origin(&opened.writer).unwrap(), Origin::Created { at_ms: NOW_MS });
    assert_eq!(mode(&opened.path) & !0o640, 0);
    let expected = ["chat.db", "chat.db-shm", "chat.db-wal", "chat.db.lock"];
    assert_eq!(listing(fresh.directory.path()), expected);
    let applied_at: Vec<i64> = query(&opened.writer, "SELECT DISTINCT applied_at FROM schema_migrations");
    assert_eq!(applied_at, [NOW_MS]);
}

#[test]
fn an_empty_file_counts_as_new() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("chat.db");
    fs::write(&path, "").unwrap();
    assert!(open(&path, &OpenOptions::default(), NOW_MS).unwrap().created);
}

#[test]
fn an_opened_file_opens_again_without_another_backup() {
    let Fresh { directory, opened } = Fresh::new();
    let path = opened.path.clone();
    drop(opened);
    assert_eq!(listing(directory.path()), ["chat.db"]);
    let reopened = open(&path, &OpenOptions::default(), NOW_MS + 1).unwrap();
    assert!(!reopened.created);
    assert_eq!(origin(&reopened.writer).unwrap(), Origin::Created { at_ms: NOW_MS });
    drop(reopened);
    assert_eq!(listing(directory.path()), ["chat.db"]);
}

#[test]
fn every_connection_is_configured() {
    let pragmas = |conn: &Connection| {
        let value = |pragma: &str| query::<i64>(conn, &format!("PRAGMA {pragma}"))[0];
        ["foreign_keys", "busy_timeout", "query_only", "synchronous", "wal_autocheckpoint"].map(value)
    };
    for (durability, synchronous) in [(Durability::Full, 2), (Durability::Process, 1)] {
        let directory = TempDir::new().unwrap();
        let options = OpenOptions { durability, ..OpenOptions::default() };
        let opened = open(&directory.path().join("chat.db"), &options, NOW_MS).unwrap();
        assert_eq!(pragmas(&opened.writer), [1, 5000, 0, synchronous, 0]);
        assert_eq!(query::<String>(&opened.writer, "PRAGMA journal_mode"), ["wal"]);
        let reader = open_reader(&opened.path).unwrap();
        assert_eq!(pragmas(&reader)[..3], [1, 5000, 1]);
        assert!(reader.execute("DELETE FROM Channel", []).is_err());
    }
}

#[test]
fn pages_of_roots_come_straight_from_the_index() {
    let fresh = Fresh::new();
    let sql = "EXPLAIN QUERY PLAN SELECT id FROM Message
               WHERE COALESCE(subchannel_id, channel_id) = 1 AND parent_id IS NULL AND id < 9 ORDER BY id DESC LIMIT 5";
    let plan: Vec<String> = {
        let mut statement = fresh.opened.writer.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get("detail")).unwrap();
        rows.map(Result::unwrap).collect()
    };
    assert_eq!(plan, ["SEARCH Message USING INDEX scd_message_roots (<expr>=? AND rowid<?)"]);
}

#[test]
fn our_indexes_come_back_after_another_program_rebuilt_the_table() {
    let Fresh { directory, opened } = Fresh::new();
    let path = opened.path.clone();
    let complete = schema(&opened.writer);
    opened.writer.execute_batch("DROP INDEX scd_message_roots").unwrap();
    drop(opened);
    let reopened = open(&path, &OpenOptions::default(), NOW_MS).unwrap();
    assert_eq!(schema(&reopened.writer), complete);
    assert!(directory.path().join(format!("chat.db.backup-v13-{STAMP}")).exists());
}

#[test]
fn the_log_speaks_as_operators_know_it() {
    let old = OldFile::of(11);
    let path = fs::canonicalize(&old.path).unwrap();
    let first = logged(|| drop(old.open().unwrap()));
    let expected = [
        format!("Created database backup: {}.backup-v11-{STAMP}", path.display()),
        "Running 2 pending migration(s) from version 11 to 13".to_owned(),
        "Applied migration 12: dm_invite_session_support".to_owned(),
        "Applied migration 13: channel_participants".to_owned(),
    ];
    let quoted: Vec<String> = first.into_iter().filter(|line| line.starts_with(char::is_uppercase)).collect();
    assert_eq!(quoted, expected);
    assert_eq!(logged(|| drop(old.open().unwrap())), ["Database is up to date (version 13)"]);
}

// ---- directories, locks, backups ------------------------------------------------------------------------------------

#[test]
fn a_missing_directory_is_made_only_when_asked() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("a/b/chat.db");
    assert!(matches!(open(&path, &OpenOptions::default(), NOW_MS), Err(OpenError::NoDirectory(_))));
    assert_eq!(listing(directory.path()), [""; 0]);

    let options = OpenOptions { create_directory: true, ..OpenOptions::default() };
    let opened = open(&path, &options, NOW_MS).unwrap();
    assert!(opened.created);
    for made in ["a", "a/b"] {
        assert_eq!(mode(&directory.path().join(made)) & !0o750, 0, "{made}");
    }
}

#[test]
fn a_failed_start_removes_the_directories_it_made() {
    let directory = TempDir::new().unwrap();
    let options = OpenOptions { create_directory: true, ..OpenOptions::default() };
    let too_long = "x".repeat(300);
    open(&directory.path().join("a/b").join(too_long), &options, NOW_MS).unwrap_err();
    assert_eq!(listing(directory.path()), [""; 0]);
}

#[test]
fn a_directory_that_cannot_be_written_gives_one_clear_error() {
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let path = closed.join("chat.db");

    let error = without_root_rights(|| open(&path, &OpenOptions::default(), NOW_MS)).unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()) && error.contains("ermission denied"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    assert_eq!(listing(&closed), [""; 0]);
}

#[test]
fn a_write_protected_database_is_refused() {
    let Fresh { directory, opened } = Fresh::new();
    let path = opened.path.clone();
    drop(opened);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let before = fs::read(&path).unwrap();
    let outcome = without_root_rights(|| open(&path, &OpenOptions::default(), NOW_MS));
    assert!(matches!(outcome, Err(OpenError::ReadOnly(_))), "{outcome:?}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(listing(directory.path()), ["chat.db"]);
}

#[test]
fn names_that_are_no_files_are_refused() {
    for name in ["", "/", ".."] {
        assert!(matches!(open(Path::new(name), &OpenOptions::default(), NOW_MS), Err(OpenError::NoName(_))), "{name}");
    }
}

#[test]
fn a_second_server_is_refused_while_other_programs_are_not() {
    let Fresh { directory, opened } = Fresh::new();
    let alias = directory.path().join("alias.db");
    symlink(&opened.path, &alias).unwrap();
    for path in [&opened.path, &alias] {
        let error = open(path, &OpenOptions::default(), NOW_MS).unwrap_err();
        let OpenError::Lock { source: LockError::Held { pid }, .. } = error else { panic!("{error}") };
        assert_eq!(pid, Some(std::process::id()));
    }

    let shell = Connection::open(&opened.path).unwrap();
    shell.execute("INSERT INTO Channel (name, display_name, created_at) VALUES ('a', '#a', 1)", []).unwrap();
    assert_eq!(query::<i64>(&opened.writer, "SELECT count(*) FROM Channel"), [1]);

    let path = opened.path.clone();
    drop(opened);
    open(&path, &OpenOptions::default(), NOW_MS).unwrap();
}

#[test]
fn a_lock_file_that_a_crash_left_is_no_obstacle() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("chat.db.lock"), "4194304\n").unwrap();
    let opened = open(&directory.path().join("chat.db"), &OpenOptions::default(), NOW_MS).unwrap();
    let signed = fs::read_to_string(directory.path().join("chat.db.lock")).unwrap();
    assert_eq!(signed, format!("{}\n", std::process::id()));
    drop(opened);
}

#[test]
fn backups_never_overwrite_and_the_newest_five_stay() {
    let old = OldFile::of(3);
    let names = [
        "chat.db.backup-v1-20240101-000000",
        "chat.db.backup-v2-20250101-000000",
        "chat.db.backup-v2-20250101-000000-2",
        "chat.db.backup-v2-20250101-000000-10",
        "chat.db.backup-v3-20990101-000000",
        "chat.db.backup-v3-20260102-030405",
    ];
    for name in names {
        fs::write(old.directory.join(name), name).unwrap();
        fs::set_permissions(old.directory.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let foreign = old.directory.join("chat.db.backup-v0-20200101-000000");
    fs::write(&foreign, "made by another server").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(old.directory.join("chat.db.backup-partial"), "left by a crash").unwrap();

    old.open().unwrap();

    let mut expected = vec!["chat.db.backup-v0-20200101-000000".to_owned()];
    expected.extend([names[2], names[3], names[5], "chat.db.backup-v3-20260102-030405-2", names[4]].map(str::to_owned));
    expected.sort();
    let found: Vec<String> = listing(&old.directory).into_iter().filter(|name| name.contains("backup")).collect();
    assert_eq!(found, expected);
    assert_eq!(fs::read_to_string(old.directory.join(names[5])).unwrap(), names[5]);
    let made = Connection::open(old.directory.join("chat.db.backup-v3-20260102-030405-2")).unwrap();
    assert_eq!(tables(&made), old.tables);
}

#[test]
fn attempts_that_fail_take_no_backup_away_and_leave_none() {
    let old = OldFile::of(7);
    let run = |sql: &str| Connection::open(&old.path).unwrap().execute_batch(sql).unwrap();
    run("CREATE TABLE scd_message_versions (in_the_way INTEGER)");
    let backups =
        || -> Vec<String> { listing(&old.directory).into_iter().filter(|name| name.contains(".backup")).collect() };
    for _ in 0..7 {
        assert!(matches!(old.open(), Err(OpenError::Migration { .. })));
        assert_eq!(backups(), [format!("chat.db.backup-v7-{STAMP}")], "the way back, and nothing else");
    }
    run("DROP TABLE scd_message_versions");
    old.open().unwrap();
    assert_eq!(backups(), [format!("chat.db.backup-v13-{STAMP}"), format!("chat.db.backup-v7-{STAMP}")]);
}

// ---- what is refused ------------------------------------------------------------------------------------------------

#[test]
fn a_newer_file_is_refused_untouched_with_its_wal() {
    let old = OldFile::of(17);
    let before = files(&old.directory);
    assert!(before["chat.db-wal"].len() > 4096);
    for _ in 0..2 {
        let error = old.open().unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 17, .. }), "{error}");
        let after = files(&old.directory);
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for name in ["chat.db", "chat.db-wal"] {
            assert!(before[name] == after[name], "{name} was changed");
        }
    }
}

#[test]
fn a_newer_version_that_is_in_the_wal_only_is_seen() {
    let old = OldFile::of(16);
    let conn = Connection::open(&old.path).unwrap();
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    conn.execute("INSERT INTO schema_migrations VALUES (17, 'late', 1)", []).unwrap();
    drop(conn);
    fs::remove_file(old.directory.join("chat.db-shm")).unwrap();
    let (database, wal) = (fs::read(&old.path).unwrap(), fs::read(old.directory.join("chat.db-wal")).unwrap());
    assert!(matches!(old.open(), Err(OpenError::Newer { found: 17, .. })));
    assert!(fs::read(&old.path).unwrap() == database);
    assert!(fs::read(old.directory.join("chat.db-wal")).unwrap() == wal);
}

#[test]
fn a_newer_file_that_was_closed_properly_gets_no_side_files() {
    let old = OldFile::of(17);
    Connection::open(&old.path).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    check_refused(&old.directory, |error| matches!(error, OpenError::Newer { found: 17, .. }));
}

#[test]
fn a_file_that_is_no_database_is_refused_untouched() {
    let almost = [b"SQLite format 3\0".as_slice(), &[0x55; 4096]].concat();
    for garbage in [b"garbage".as_slice(), b"SQLite format 3", &[0; 8192], &almost] {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("chat.db"), garbage).unwrap();
        check_refused(directory.path(), |error| matches!(error, OpenError::NotDatabase(_)));
    }
}

#[test]
fn a_damaged_database_is_refused_untouched() {
    let Fresh { directory, opened } = Fresh::new();
    let path = opened.path.clone();
    drop(opened);
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(b"SQLite format 3\0").unwrap();
    file.set_len(4096).unwrap();
    check_refused(directory.path(), |error| matches!(error, OpenError::Damaged { .. }));
}

#[test]
fn a_database_of_another_program_is_refused_untouched() {
    for sql in [
        "CREATE TABLE notes (text)",
        "CREATE TABLE Channel (frequency)",
        "CREATE TABLE schema_migrations (version TEXT); INSERT INTO schema_migrations VALUES ('20230101')",
        "CREATE TABLE schema_migrations (version INTEGER, name TEXT, applied_at INTEGER);
         INSERT INTO schema_migrations VALUES (3, 'x', 1)",
    ] {
        let directory = TempDir::new().unwrap();
        Connection::open(directory.path().join("chat.db")).unwrap().execute_batch(sql).unwrap();
        check_refused(directory.path(), |error| matches!(error, OpenError::Unrelated(_)));
    }
}

#[test]
fn a_wal_without_its_database_is_not_thrown_away() {
    let old = OldFile::of(13);
    fs::remove_file(&old.path).unwrap();
    check_refused(&old.directory, |error| matches!(error, OpenError::OrphanedWal(_)));
    fs::write(&old.path, "").unwrap();
    check_refused(&old.directory, |error| matches!(error, OpenError::OrphanedWal(_)));
}

/// Opening `chat.db` fails as expected, in one line, and changes no byte and no file of the directory.
fn check_refused(directory: &Path, is_expected: impl Fn(&OpenError) -> bool) {
    let before = files(directory);
    let error = open(&directory.join("chat.db"), &OpenOptions::default(), NOW_MS).unwrap_err();
    assert!(is_expected(&error), "{error:?}");
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(files(directory) == before, "something was changed: {:?}", listing(directory));
}

// ---- making files ---------------------------------------------------------------------------------------------------

struct Fresh {
    opened: Opened,
    directory: TempDir,
}

impl Fresh {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let opened = open(&directory.path().join("chat.db"), &OpenOptions::default(), NOW_MS).unwrap();
        Self { opened, directory }
    }
}

/// Every statement that made the schema, sorted, without what has no meaning in it.
fn schema(conn: &Connection) -> Vec<String> {
    let statements: Vec<String> =
        query(conn, "SELECT type || ' ' || name || ': ' || COALESCE(sql, tbl_name) FROM sqlite_schema ORDER BY 1");
    let normal = |sql: String| sql.replace(|letter: char| letter == '"' || letter.is_whitespace(), "");
    statements.into_iter().map(normal).collect()
}

/// A file as a server of some version left it when it was killed.
struct OldFile {
    path: PathBuf,
    directory: PathBuf,
    tables: Tables,
    schema: Vec<String>,
    counters: Vec<(String, i64)>,
    _guard: TempDir,
}

impl OldFile {
    fn of(version: u32) -> Self {
        let make = |path: &Path| {
            if version > old_file::NEWEST { old_file::make_newer(path) } else { old_file::make(path, version) }
        };
        let guard = TempDir::new().unwrap();
        let path = guard.path().join("chat.db");
        make(&path);
        old_file::leave_a_log(&path);
        let (conn, _twin) = twin(&path);
        Self {
            directory: guard.path().to_owned(),
            tables: tables(&conn),
            schema: schema(&conn),
            counters: counters(&conn),
            path,
            _guard: guard,
        }
    }

    fn open(&self) -> Result<Opened, OpenError> {
        open(&self.path, &OpenOptions::default(), NOW_MS)
    }

    /// What a copy of the main file alone would have lost.
    fn assert_late_rows_are_in_the_wal_only(&self) {
        let elsewhere = TempDir::new().unwrap();
        let copy = elsewhere.path().join("copy.db");
        fs::copy(&self.path, &copy).unwrap();
        let late = |path: &Path| {
            let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
            query::<i64>(&conn, "SELECT count(*) FROM Message WHERE content = 'in the log only'")
        };
        assert_eq!((late(&copy), late(&self.path)), (vec![0], vec![1]));
    }
}

// ---- around files ---------------------------------------------------------------------------------------------------

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    listing(directory).into_iter().map(|name| (name.clone(), fs::read(directory.join(name)).unwrap())).collect()
}

fn listing(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

// ---- around a call --------------------------------------------------------------------------------------------------

/// The texts that `run` logs.
fn logged(run: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt()
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, run);
    let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// Runs `run` as a user whom file permissions bind, even where the tests run as root.
#[expect(unsafe_code, reason = "setfsuid changes how this one thread is seen by the file system, and nothing else")]
fn without_root_rights<T>(run: impl FnOnce() -> T) -> T {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: the call takes a number and touches no memory of ours.
    let before = unsafe { libc::setfsuid(NOBODY) };
    let outcome = run();
    // SAFETY: as above.
    unsafe { libc::setfsuid(libc::uid_t::try_from(before).unwrap()) };
    outcome
}
