//! `scd check` on files of the existing server: what it says, and that nothing is touched.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::Server;
use crate::support::old_file::{self, ODDITIES, VERSIONS};
use crate::{scd, steps, text};

/// A directory with one file of the existing server in it.
struct Found {
    home: TempDir,
    database: PathBuf,
}

impl Found {
    fn made(make: impl FnOnce(&Path)) -> Self {
        let home = TempDir::with_prefix("scd-").unwrap();
        let database = home.path().join("superchat.db");
        make(&database);
        Self { home, database }
    }

    /// The answer of `scd check` and its exit code; every byte, length and time of every file is as it was.
    fn checked(&self) -> (Option<i32>, String) {
        let before = self.traces();
        let output = scd(self.home.path(), &["check", "--db", text(&self.database)]);
        assert_eq!(self.traces(), before);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// What touching a file of the directory would change. Their content by another program, because reading it here would
    /// give up the locks of this process.
    fn traces(&self) -> BTreeMap<PathBuf, (String, u64, u64, i64, i64, u32)> {
        let entries = fs::read_dir(self.home.path()).unwrap().map(|entry| entry.unwrap().path());
        let trace = |path: PathBuf| {
            let found = fs::metadata(&path).unwrap();
            let sum = std::process::Command::new("cksum").arg(&path).output().unwrap();
            let sum = String::from_utf8(sum.stdout).unwrap();
            (path, (sum, found.ino(), found.len(), found.mtime(), found.mtime_nsec(), found.mode()))
        };
        entries.map(trace).collect()
    }
}

/// The line of the answer that holds `words`.
fn line<'a>(lines: &'a str, words: &str) -> &'a str {
    lines.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words:?} is missing in\n{lines}"))
}

#[test]
fn every_version_is_told_with_what_a_start_would_do_to_it() {
    for version in 0..=old_file::NEWEST {
        let found = Found::made(|path| old_file::make(path, version));
        let (code, lines) = found.checked();
        assert_eq!(code, Some(0), "{lines}");
        assert!(!lines.contains("fail"), "{lines}");
        let backs_up = format!(
            "note  schema version {version}: at its next start the server backs the file up beside itself and changes it"
        );
        line(&lines, &backs_up);
        let pending = VERSIONS.iter().filter(|step| (version + 1..=13).contains(&step.number));
        let pending: Vec<String> = pending.map(|step| format!("{} {}", step.number, step.name)).collect();
        match &pending[..] {
            [] => assert!(!lines.contains("migrations to run"), "{lines}"),
            steps => {
                assert_eq!(line(&lines, "migrations to run"), format!("note  migrations to run: {}", steps.join(", ")))
            }
        }
        line(&lines, "note  additions of ours to make: login_alias, origin, ");
        line(&lines, "messages older than their channel keeps them: they stay, unless [retention] enforce = true");
        for oddity in ODDITIES.iter().filter(|oddity| version >= oddity.since) {
            line(&lines, oddity.told.trim_start_matches("note  1 ").trim_start_matches("note  3 "));
        }
    }
}

/// With nothing else that is odd in the file, so that each is counted for itself.
#[test]
fn every_oddity_is_told_for_itself_and_only_where_it_is() {
    let everyday = Found::made(|path| old_file::make_with(path, 13, &[])).checked().1;
    for oddity in ODDITIES {
        assert!(!everyday.contains(oddity.told), "{everyday}");
        for version in [oddity.since, 13] {
            let found = Found::made(|path| old_file::make_with(path, version, std::slice::from_ref(&oddity)));
            let (code, lines) = found.checked();
            assert_eq!(code, Some(0), "{lines}");
            line(&lines, oddity.told);
        }
    }
    for sound in ["ok    integrity: every page and index", "ok    foreign keys"] {
        line(&everyday, sound);
    }
}

#[test]
fn rows_that_are_only_in_the_log_are_counted_and_the_log_is_told() {
    let found = Found::made(|path| old_file::make(path, 13));
    let (_, without) = found.checked();
    old_file::leave_a_log(&found.database);
    let (code, lines) = found.checked();
    assert_eq!(code, Some(0), "{lines}");
    let count = |lines: &str| -> u32 {
        let counts = line(lines, " messages, ").split(", ").nth(1).unwrap().split(' ').next().unwrap();
        counts.parse().unwrap()
    };
    assert_eq!(count(&lines), count(&without) + 1);
    let told = line(&lines, " of log beside it (");
    assert!(told.starts_with("note  ") && told.ends_with("the server brings it in; move the two together"), "{told}");
    assert!(!without.contains("of log beside it"));
}

#[test]
fn who_has_the_file_open_is_told_and_what_that_means() {
    let found = Found::made(|path| old_file::make(path, 13));
    let running = Connection::open(&found.database).unwrap();
    running.execute_batch("UPDATE User SET last_seen = 5").unwrap();
    let (code, lines) = found.checked();
    assert_eq!(code, Some(0), "{lines}");
    let pid = std::process::id();
    let told = format!(
        "note  another program has it open (pid {pid}), the existing server perhaps: stop it; until then the server refuses to start"
    );
    assert_eq!(line(&lines, "another program"), told);
    drop(running);
    assert!(!found.checked().1.contains("another program"));
}

#[test]
fn a_server_of_ours_on_the_file_is_told_and_later_a_shell() {
    let mut server = Server::start_on(steps::settings(), |path| old_file::make(path, 13));
    let check = || {
        let output = scd(server.home(), &["check", "--db", text(&server.database())]);
        String::from_utf8(output.stdout).unwrap()
    };
    let lines = check();
    line(&lines, &format!("ok    in use by a server (pid {})", server.pid()));
    line(&lines, "ok    schema version 13: up to date");
    server.stop();
    let shell = Connection::open(server.database()).unwrap();
    shell.query_row("SELECT count(*) FROM Message", [], |_| Ok(())).unwrap();
    let output = scd(server.home(), &["check", "--db", text(&server.database())]);
    let lines = String::from_utf8(output.stdout).unwrap();
    line(&lines, "stop it if it is another server; shells and replicators may stay");
}

#[test]
fn a_version_newer_than_known_and_a_damaged_file_fail() {
    let newer = Found::made(old_file::make_newer);
    let (code, lines) = newer.checked();
    assert_eq!(code, Some(1));
    line(&lines, "has schema version 17, this program knows versions up to 16");

    let damaged = Found::made(|path| {
        old_file::make(path, 13);
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 4096 / 2 * 4096;
        bytes[middle..middle + 4096].fill(0xA5);
        fs::write(path, bytes).unwrap();
    });
    let (code, lines) = damaged.checked();
    assert_eq!(code, Some(1), "{lines}");
    assert!(lines.contains("fail  "), "{lines}");
    assert_eq!(scd(damaged.home.path(), &["check", "--nonsense"]).status.code(), Some(2));
}
