//! Backup, restore and check as operators use them: the real binary, a server that runs meanwhile.
#![expect(clippy::unwrap_used, reason = "clippy knows test functions, not the helpers between them")]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use superchat::ids::{ChannelId, MessageId};
use superchat::store::sqlite::open::{OpenOptions, open};
use superchat::wire::client::PostMessage;
use superchat::wire::codec::Bounded;
use support::content::twin;
use support::{Client, Server, Settings, clock, old_file};
use tempfile::TempDir;

const GENERAL: ChannelId = ChannelId(2);
const PATIENCE: Duration = Duration::from_secs(20);
const THEN_MS: i64 = 1_700_000_000_000;

// ---- helpers --------------------------------------------------------------------------------------------------------

fn scd(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap()).current_dir(home);
    command.args(arguments).output().unwrap()
}

/// The lines of a command that must succeed.
fn told(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What a command complains of that must fail.
fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn post(client: &mut Client, words: &str) -> MessageId {
    send(client, words);
    MessageId(client.expect_reply("MESSAGE_POSTED")["message_id"].as_str().unwrap().parse().unwrap())
}

fn send(client: &mut Client, words: &str) {
    let content = Bounded(words.as_bytes());
    client.send(PostMessage { channel_id: GENERAL, subchannel_id: None, parent_id: None, content });
}

fn said(database: &Path) -> Vec<String> {
    let conn = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut rows = conn.prepare("SELECT content FROM Message ORDER BY id").unwrap();
    rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn metrics_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A file of the existing server, with the oddities it leaves, its last rows only in the log.
fn old_file(directory: &Path, version: u32) -> PathBuf {
    let path = directory.join("old.db");
    old_file::make(&path, version);
    old_file::leave_a_log(&path);
    path
}

/// A file system of 8 MiB, gone with this.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let directory = TempDir::new().unwrap();
        let mut command = Command::new("mount");
        let mounted = command.args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(directory.path()).output().unwrap();
        let complaint = String::from_utf8_lossy(&mounted.stderr).into_owned();
        assert!(mounted.status.success(), "this test needs the right to mount a small tmpfs: {complaint}");
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg(self.0.path()).status();
    }
}

// ---- backup ---------------------------------------------------------------------------------------------------------

#[test]
fn a_backup_of_a_running_server_holds_all_that_was_acknowledged_and_the_server_knows_of_it() {
    let port = metrics_port();
    let server = Server::start(Settings::new().set("admin", "metrics_listen", format!("127.0.0.1:{port}")));
    let health = || -> Value {
        let mut answer = ureq::get(format!("http://127.0.0.1:{port}/health")).call().unwrap();
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
    };
    assert_eq!(health()["last_backup"], Value::Null);
    let mut alice = server.client_named("alice");
    post(&mut alice, "kept");
    let target = server.home().join("copy.db");
    let before = clock::now_ms();

    let lines = told(&scd(server.home(), &["backup", "--db", text(&server.database()), "--verify", text(&target)]));

    assert!(lines.starts_with("backed up "), "{lines}");
    assert!(lines.contains("verified: ") && lines.contains(" 1 messages, 5 channels, 0 users)\n"), "{lines}");
    assert_eq!(mode(&target), 0o600);
    assert_eq!(said(&target), ["kept"]);
    post(&mut alice, "later");
    let told_ms = || superchat::store::sqlite::backup::last_success_ms(&server.database());
    assert!(told_ms().is_some_and(|ms| (before..=clock::now_ms()).contains(&ms)), "{:?}", told_ms());
    let seen = clock::poll(PATIENCE, || health()["last_backup"].as_str().map(str::to_owned));
    assert_eq!(seen, Some(jiff::Timestamp::from_millisecond(told_ms().unwrap()).unwrap().to_string()));
    let metric = || {
        let mut answer = ureq::get(format!("http://127.0.0.1:{port}/metrics")).call().unwrap();
        let scrape = answer.body_mut().read_to_string().unwrap();
        let line = scrape.lines().find(|line| line.starts_with("superchat_backup_last_success_timestamp_seconds "));
        line.and_then(|line| line.split(' ').nth(1)?.parse::<f64>().ok())
    };
    let seconds = clock::poll(PATIENCE, metric).expect("the metric shows it");
    assert!((seconds * 1000.0 - told_ms().unwrap() as f64).abs() < 1.0, "{seconds}");
    let left: Vec<_> = names(server.home()).into_iter().filter(|name| name.contains("partial")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_directory_keeps_the_newest_backups_and_everything_else() {
    let server = Server::start(Settings::new());
    let backups = server.home().join("backups");
    fs::create_dir(&backups).unwrap();
    for name in ["superchat-20250101T000000Z.db", "superchat-20250102T000000Z.db", "superchat-2025.db", "mine.db"] {
        fs::write(backups.join(name), "").unwrap();
    }
    let (database, directory) = (server.database(), backups.clone());
    let arguments = ["backup", "--db", text(&database), "--keep", "2", "--verify", text(&directory)];
    let lines = told(&scd(server.home(), &arguments));
    assert!(lines.contains("removed ") && lines.contains("superchat-20250101T000000Z.db"), "{lines}");
    let kept = names(&backups);
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert_eq!(kept[..3], ["mine.db", "superchat-2025.db", "superchat-20250102T000000Z.db"]);
    assert!(kept[3].starts_with("superchat-20") && kept[3].ends_with("Z.db"), "{kept:?}");
    assert_eq!(names(&backups).iter().filter(|name| name.contains("partial")).count(), 0);
}

#[test]
fn what_lies_at_the_target_is_never_replaced() {
    let server = Server::start(Settings::new());
    let database = server.database();
    let taken = scd(server.home(), &["backup", "--db", text(&database), text(&database)]);
    assert!(complaint(&taken).contains("exists already: name another file, or a directory"));
    let keep = scd(server.home(), &["backup", "--db", text(&database), "--keep", "3", "new.db"]);
    assert!(complaint(&keep).contains("--keep needs a directory, and new.db is none"));
    assert!(!server.home().join("new.db").exists());
    let zero = scd(server.home(), &["backup", "--keep", "0", "new.db"]);
    assert_eq!(zero.status.code(), Some(2));
}

#[test]
fn an_old_file_is_backed_up_as_it_is_oddities_and_log_included() {
    for version in [0, 7, 13] {
        let home = TempDir::new().unwrap();
        let file = old_file(home.path(), version);
        let before = fs::read(&file).unwrap();
        let lines = told(&scd(home.path(), &["backup", "--db", text(&file), "--verify", "copy.db"]));
        let count =
            |file: &Path| twin(file).0.query_row("SELECT count(*) FROM Message", [], |row| row.get::<_, u32>(0));
        assert!(lines.contains(&format!(" {} messages, ", count(&file).unwrap())), "{lines}");
        assert_eq!(fs::read(&file).unwrap(), before);
        let copy = Connection::open(home.path().join("copy.db")).unwrap();
        let newest: String =
            copy.query_row("SELECT content FROM Message ORDER BY id DESC", [], |row| row.get(0)).unwrap();
        assert_eq!(newest, "in the log only");
    }
}

#[test]
fn a_full_disk_leaves_nothing_of_a_backup() {
    let home = TempDir::new().unwrap();
    let database = home.path().join("large.db");
    let opened = open(&database, &OpenOptions::default(), THEN_MS).unwrap();
    opened
        .writer
        .execute_batch(
            "CREATE TABLE filler (bytes BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12)
             INSERT INTO filler SELECT zeroblob(1048576) FROM n",
        )
        .unwrap();
    let disk = SmallDisk::mount();
    let failed = scd(home.path(), &["backup", "--db", text(&database), text(disk.0.path())]);
    let line = complaint(&failed);
    assert!(line.contains("cannot copy the database to") && line.contains("full"), "{line}");
    assert_eq!(names(disk.0.path()), Vec::<String>::new());
    // Room for the copy, but not for the one to verify it with.
    opened.writer.execute_batch("DELETE FROM filler WHERE rowid > 5; VACUUM").unwrap();
    let failed = scd(home.path(), &["backup", "--db", text(&database), "--verify", text(disk.0.path())]);
    assert!(complaint(&failed).contains("No space left on device"), "{}", complaint(&failed));
    assert_eq!(names(disk.0.path()), Vec::<String>::new());
}

// ---- restore --------------------------------------------------------------------------------------------------------

#[test]
fn a_restored_server_has_what_was_backed_up_and_the_rest_is_kept_aside() {
    let mut server = Server::start(Settings::new());
    let (home, database) = (server.home().to_owned(), server.database());
    let mut alice = server.client_named("alice");
    post(&mut alice, "before");
    told(&scd(&home, &["backup", "--db", text(&database), "copy.db"]));
    post(&mut alice, "after");

    let running = complaint(&scd(&home, &["restore", "--db", text(&database), "copy.db"]));
    assert!(running.contains("it is in use by another server (pid ") && running.contains("stop it first"), "{running}");
    // With its log still beside it.
    server.kill9();
    assert!(fs::metadata(home.join("superchat.db-wal")).unwrap().len() > 0);
    fs::set_permissions(&database, fs::Permissions::from_mode(0o600)).unwrap();

    let lines = told(&scd(&home, &["restore", "--db", text(&database), "copy.db"]));

    assert!(lines.contains("next: start the server"), "{lines}");
    let aside = lines.lines().find_map(|line| line.strip_prefix("the database before is kept: ")).unwrap();
    assert!(aside.contains("superchat.db.replaced-"), "{aside}");
    assert_eq!(said(&database), ["before"]);
    assert_eq!(mode(&database), 0o600);
    assert!(!home.join("superchat.db-wal").exists() || fs::metadata(home.join("superchat.db-wal")).unwrap().len() == 0);
    server.resume();
    post(&mut server.client_named("alice"), "again");
    assert_eq!(server.stop(), Some(0));
    assert_eq!(said(&database), ["before", "again"]);
    assert_eq!(said(Path::new(aside)), ["before", "after"], "the log of the old database is lost");
}

#[test]
fn what_is_no_sound_backup_replaces_nothing() {
    let home = TempDir::new().unwrap();
    let database = home.path().join("superchat.db");
    drop(open(&database, &OpenOptions::default(), THEN_MS).unwrap());
    let before = fs::read(&database).unwrap();
    fs::write(home.path().join("empty.db"), "").unwrap();
    fs::write(home.path().join("text.db"), "not a database at all, but long enough to be one").unwrap();
    Connection::open(home.path().join("other.db")).unwrap().execute_batch("CREATE TABLE notes (a)").unwrap();
    fs::copy(&database, home.path().join("damaged.db")).unwrap();
    damage(&home.path().join("damaged.db"));
    for (file, reason) in [
        ("empty.db", "is a SQLite database of some other program"),
        ("text.db", "is not a SQLite database"),
        ("other.db", "is a SQLite database of some other program"),
        ("damaged.db", "database damaged.db is damaged"),
        ("missing.db", "No such file or directory"),
        ("superchat.db", "is the database itself"),
    ] {
        let line = complaint(&scd(home.path(), &["restore", "--db", text(&database), file]));
        assert!(line.contains(reason), "{file}: {line}");
        assert_eq!(fs::read(&database).unwrap(), before, "{file}");
        assert_eq!(
            names(home.path()).iter().filter(|name| name.contains("restor") || name.contains("replaced")).count(),
            0
        );
    }
}

#[test]
fn a_database_that_another_program_has_open_is_not_replaced() {
    let home = TempDir::new().unwrap();
    let file = old_file(home.path(), 13);
    told(&scd(home.path(), &["backup", "--db", text(&file), "copy.db"]));
    let other = Connection::open(&file).unwrap();
    other.query_row("SELECT count(*) FROM Message", [], |_| Ok(())).unwrap();
    let line = complaint(&scd(home.path(), &["restore", "--db", text(&file), "copy.db"]));
    let wanted = format!("another program has it open (pid {}); stop it first", std::process::id());
    assert!(line.contains(&wanted), "{line}");
    drop(other);
    told(&scd(home.path(), &["restore", "--db", text(&file), "copy.db"]));
}

#[test]
fn a_backup_is_restored_where_there_was_no_database() {
    let home = TempDir::new().unwrap();
    let file = old_file(home.path(), 13);
    let lines = told(&scd(home.path(), &["restore", "--db", "new.db", text(&file)]));
    assert!(lines.contains("there was no database before"), "{lines}");
    assert_eq!(mode(&home.path().join("new.db")), 0o640);
    drop(open(&home.path().join("new.db"), &OpenOptions::default(), THEN_MS).unwrap());
}

/// Overwrites the middle of a file of several pages.
fn damage(path: &Path) {
    use std::os::unix::fs::FileExt as _;
    let file = File::options().write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 4096 / 2 * 4096;
    file.write_all_at(&[0xA5; 8192], middle).unwrap();
}

// ---- check ----------------------------------------------------------------------------------------------------------

#[test]
fn a_check_beside_a_running_server_changes_neither_file_nor_log() {
    let server = Server::start(Settings::new());
    post(&mut server.client_named("alice"), "unread");
    let files = || ["", "-wal"].map(|suffix| fs::read(format!("{}{suffix}", text(&server.database()))).unwrap());
    let before = files();
    let lines = told(&scd(server.home(), &["check", "--db", text(&server.database())]));
    assert!(lines.contains("1 messages, 5 channels") && lines.contains("ok    foreign keys"), "{lines}");
    assert_eq!(files(), before);
}

#[test]
fn a_check_fails_on_damage_on_broken_keys_of_ours_and_on_what_no_server_would_open() {
    let home = TempDir::new().unwrap();
    let database = home.path().join("superchat.db");
    let opened = open(&database, &OpenOptions::default(), THEN_MS).unwrap();
    opened.writer.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(opened);
    let check = |file: &str| {
        let output = scd(home.path(), &["check", "--db", file]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(check("superchat.db").0, Some(0));
    let conn = Connection::open(&database).unwrap();
    conn.execute_batch(
        "PRAGMA foreign_keys = OFF; INSERT INTO Message (id, channel_id, author_nickname, content, created_at)
         VALUES (1, 404, '', '', 1); PRAGMA wal_checkpoint(TRUNCATE)",
    )
    .unwrap();
    drop(conn);
    let (code, lines) = check("superchat.db");
    assert_eq!(code, Some(1));
    assert!(lines.contains("fail  foreign keys: 1 rows of Message"), "{lines}");
    let conn = Connection::open(&database).unwrap();
    conn.execute_batch("INSERT INTO schema_migrations VALUES (17, 'x', 1); PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(conn);
    let (code, lines) = check("superchat.db");
    assert_eq!(code, Some(1));
    assert!(lines.contains("fail  database") && lines.contains("has schema version 17"), "{lines}");
    damage(&database);
    assert_eq!(check("superchat.db").0, Some(1));
    fs::write(home.path().join("text.db"), "not a database at all").unwrap();
    let (code, lines) = check("text.db");
    assert_eq!((code, lines.contains("is not a SQLite database")), (Some(1), true), "{lines}");
    assert_eq!(check("missing.db").0, Some(1));
}

// ---- replication ----------------------------------------------------------------------------------------------------

/// The two numbers in the head of a log that change whenever it is begun anew.
fn salts(wal: &Path) -> [u8; 8] {
    fs::read(wal).unwrap()[16..24].try_into().unwrap()
}

/// Posts until the log is far larger than what calls for a checkpoint.
fn post_much(server: &Server) {
    let mut alice = server.client_named("alice");
    let words = "x".repeat(4000);
    for _ in 0..20 {
        (0..100).for_each(|_| send(&mut alice, &words));
        (0..100).for_each(|_| drop(alice.expect_reply("MESSAGE_POSTED")));
    }
}

#[test]
fn with_checkpoints_left_to_a_replicator_the_log_is_never_begun_anew_by_the_server() {
    let mut server = Server::start(Settings::new().set("storage", "checkpoints", "external"));
    let (database, wal) = (server.database(), server.home().join("superchat.db-wal"));
    let begun = salts(&wal);
    let pages = fs::read(&database).unwrap();
    post_much(&server);
    // Nothing but the log has changed, and that only grew: what a replicator has not read yet is still there.
    assert!(fs::metadata(&wal).unwrap().len() > 8 << 20);
    assert_eq!(salts(&wal), begun);
    assert_eq!(fs::read(&database).unwrap(), pages);
    // As Litestream does: read under a lock, bring the log into the database, let it begin anew by a write of one's own.
    let replicator = Connection::open(&database).unwrap();
    replicator.busy_timeout(PATIENCE).unwrap();
    let (busy, log, done): (i64, i64, i64) = replicator
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap();
    assert_eq!((busy, log), (0, done));
    replicator
        .execute_batch("CREATE TABLE IF NOT EXISTS _litestream_seq (id INTEGER PRIMARY KEY, seq INTEGER)")
        .unwrap();
    assert_ne!(salts(&wal), begun);
    let begun = salts(&wal);
    // Under the replicator's own view nobody may shorten it either.
    replicator.execute_batch("BEGIN; SELECT count(*) FROM Message").unwrap();
    post(&mut server.client_named("alice"), "more");
    replicator.execute_batch("COMMIT").unwrap();
    assert!(replicator.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap());
    drop(replicator);
    assert_eq!(server.stop(), Some(0));
    assert_eq!(salts(&wal), begun, "stopping shortened the log");
    server.resume();
    assert_eq!(salts(&wal), begun, "starting shortened the log");
    assert_eq!(said(&database).len(), 2001);
}

#[test]
fn checkpoints_of_its_own_wait_for_a_replicator_that_reads() {
    let server = Server::start(Settings::new());
    let (database, wal) = (server.database(), server.home().join("superchat.db-wal"));
    post(&mut server.client_named("alice"), "first");
    let replicator = Connection::open(&database).unwrap();
    replicator.execute_batch("BEGIN; SELECT count(*) FROM Message").unwrap();
    let begun = salts(&wal);
    post_much(&server);
    assert_eq!(salts(&wal), begun);
    assert!(fs::metadata(&wal).unwrap().len() > 8 << 20);
}

#[test]
fn a_note_that_is_no_time_counts_for_nothing() {
    let home = TempDir::new().unwrap();
    let database = home.path().join("superchat.db");
    let told = || superchat::store::sqlite::backup::last_success_ms(&database);
    for text in ["", "soon", "99999999999999999999999999999999999999999", "12 34"] {
        let mut file = File::create(home.path().join("superchat.db.last-backup")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        assert_eq!(told(), None, "{text:?}");
    }
    superchat::store::sqlite::backup::record_success(&database, 77).unwrap();
    assert_eq!(told(), Some(77));
}

// ---- what the manual shows ------------------------------------------------------------------------------------------

/// Lines of the shell in the manual, without what a shell would ignore.
fn rehearsed() -> Vec<String> {
    let manual = include_str!("../docs/backup.md");
    let blocks = manual.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

#[test]
fn every_command_of_the_manual_works_in_its_order() {
    let port = metrics_port();
    let metrics = format!("127.0.0.1:{port}");
    let mut server = Server::start(Settings::new().set("admin", "metrics_listen", metrics.as_str()));
    let backups = server.home().join("backups");
    fs::create_dir_all(backups.join("superchat")).unwrap();
    post(&mut server.client_named("alice"), "kept");
    let commands = rehearsed();
    assert!(commands.len() > 6, "the manual shows hardly any command");
    for line in commands {
        match line.as_str() {
            "systemctl stop superchat" => assert_eq!(server.stop(), Some(0)),
            "systemctl start superchat" => server.resume(),
            line => {
                let newest = names(&backups.join("superchat")).pop().unwrap_or_default();
                let line =
                    line.replace("/var/backups", text(&backups)).replace("superchat-20260102T030405Z.db", &newest);
                let arguments = line.strip_prefix("scd ").unwrap_or_else(|| panic!("the test knows no {line}"));
                let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
                command.env_clear().env("HOME", server.home()).args(arguments.split(' '));
                command.env("SUPERCHAT_SERVER_DATABASE_PATH", server.database());
                command.env("SUPERCHAT_ADMIN_METRICS_LISTEN", &metrics);
                told(&command.output().unwrap());
            }
        }
    }
    assert_eq!(said(&server.database()), ["kept"]);
}

#[test]
fn the_script_for_cron_says_ok_or_error_and_leaves_it_in_a_file() {
    let server = Server::start(Settings::new());
    let backups = server.home().join("backups");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/backup.sh"));
        command.env("SCD", env!("CARGO_BIN_EXE_scd")).env("HOME", server.home()).args(arguments).output().unwrap()
    };
    let (directory, database) = (text(&backups), server.database());
    let missing = run(&[directory, "7", text(&database)]);
    assert_eq!((missing.status.code(), missing.stdout.starts_with(b"ERROR: ")), (Some(1), true));
    fs::create_dir(&backups).unwrap();
    let made = run(&[directory, "7", text(&database)]);
    let line = told(&made);
    assert!(line.starts_with("OK: backed up ") && line.contains("verified: "), "{line}");
    assert!(fs::read_to_string(backups.join("last-run")).unwrap().ends_with(&line));
    let failed = run(&[directory, "7", "missing.db"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(fs::read_to_string(backups.join("last-run")).unwrap().contains("Z ERROR: scd: "));
    assert_eq!(run(&[directory, "0"]).status.code(), Some(2));
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(names(&backups).len(), 2, "{:?}", names(&backups));
}
