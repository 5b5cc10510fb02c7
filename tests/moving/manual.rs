//! The commands of docs/upgrade.md for the move, in their order.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use tempfile::TempDir;

use crate::steps::settings;
use crate::support::content::query;
use crate::support::{Server, old_file};
use crate::text;

/// The old server or ours, whichever is installed, on one file.
struct Host {
    home: TempDir,
    ours: Option<Server>,
    is_ours_up: bool,
    theirs: Option<Connection>,
    metrics: String,
    backups: PathBuf,
}

impl Host {
    fn new() -> Self {
        let home = TempDir::with_prefix("scd-").unwrap();
        let database = home.path().join("superchat.db");
        old_file::make(&database, 13);
        let backups = home.path().join("backups");
        fs::create_dir(&backups).unwrap();
        let metrics = format!("127.0.0.1:{}", crate::support::server::free_port());
        let mut host = Self { home, ours: None, is_ours_up: false, theirs: None, metrics, backups };
        host.start_theirs();
        host
    }

    fn database(&self) -> PathBuf {
        self.ours.as_ref().map_or_else(|| self.home.path().join("superchat.db"), Server::database)
    }

    /// It reads everything and writes a little.
    fn start_theirs(&mut self) {
        let theirs = Connection::open(self.database()).unwrap();
        assert!(query::<i64>(&theirs, "SELECT count(*) FROM Message")[0] > 10);
        theirs.execute_batch("UPDATE User SET last_seen = unixepoch() * 1000 WHERE id = 2").unwrap();
        self.theirs = Some(theirs);
    }

    fn start_ours(&mut self) {
        let from = self.database();
        let settings = settings().set("admin", "metrics_listen", self.metrics.as_str());
        self.ours = Some(Server::start_on(settings, |database| assert!(fs::copy(from, database).is_ok())));
        self.is_ours_up = true;
    }

    fn stop(&mut self) {
        self.theirs = None;
        if let Some(ours) = self.ours.as_mut().filter(|_| std::mem::take(&mut self.is_ours_up)) {
            assert_eq!(ours.stop(), Some(0));
        }
    }

    /// What `line` of the manual prints; it has to succeed.
    fn run(&self, line: &str) -> String {
        let backup = names(self.database().parent().unwrap()).into_iter().find(|name| name.contains(".backup-v13-"));
        let line = line
            .replace("superchat.db.backup-v13-20260102-030405", &backup.unwrap_or_default())
            .replace("/var/lib/superchat", text(self.database().parent().unwrap()))
            .replace("/var/backups", text(&self.backups));
        let arguments = line.strip_prefix("scd ").unwrap_or_else(|| panic!("the test knows no {line}"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
        command.env_clear().env("HOME", self.home.path()).args(arguments.split(' '));
        command.env("SUPERCHAT_SERVER_DATABASE_PATH", self.database());
        command.env("SUPERCHAT_ADMIN_METRICS_LISTEN", &self.metrics);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The blocks of commands in the section on the move.
fn blocks() -> Vec<Vec<&'static str>> {
    let manual = include_str!("../../docs/upgrade.md");
    let (_, section) = manual.split_once("\n## Moving in from the existing server, and back\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().lines().collect()).collect()
}

#[test]
fn every_command_of_the_move_works_in_its_order() {
    let [look, move_in, back, undo] = &blocks()[..] else { panic!("the section has other blocks: {:?}", blocks()) };
    let mut host = Host::new();
    let mut said = String::new();
    for (block, is_ours) in [(look, false), (move_in, true), (back, false), (undo, false)] {
        for line in block {
            match *line {
                "systemctl stop superchat" => host.stop(),
                "systemctl start superchat" if is_ours => host.start_ours(),
                "systemctl start superchat" => host.start_theirs(),
                line => said += &host.run(line),
            }
        }
    }
    let checks: Vec<_> = said.lines().filter(|line| line.contains("schema version 13")).collect();
    let [first, second, third, fourth] = checks[..] else { panic!("{said}") };
    assert!(first == second && first.contains("at its next start the server backs the file up"), "{said}");
    assert!(third == fourth && third.contains("up to date"), "{said}");
    assert!(said.contains("another program has it open") && said.contains("in use by a server"), "{said}");
    // What was undone is what the old server had.
    let tables = "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'scd!_%' ESCAPE '!'";
    assert_eq!(query::<i64>(host.theirs.as_ref().unwrap(), tables), [0]);
}
