//! The real journal of systemd, in a mount namespace of its own: what it makes of our entries, and what happens to the
//! server when it stops reading. `tests/log.rs` checks the same protocol byte by byte without it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use superchat::log::JOURNAL_SOCKET;
use superchat::wire::client::Ping;

use super::*;

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// Hides the machine's own journal from what runs here, and the other way round; needs no systemd that has started it.
const NAMESPACE: &str = r#"
    set -e
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /var/log
    mkdir -p /run/systemd/journald.conf.d /run/log/journal
    printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nReadKMsg=no\nAudit=no\nForwardToSyslog=no\n' \
        > /run/systemd/journald.conf.d/test.conf
    echo 0123456789abcdef0123456789abcdef > /run/machine-id
    mount --bind /run/machine-id /etc/machine-id
    exec "$@"
"#;

/// Set for the process that this test gives itself, with a `/run` of its own.
const ALONE: &str = "SCD_TEST_BESIDE_JOURNALD";

#[test]
fn the_real_journal_has_every_field_and_stops_nobody_when_it_stands_still() {
    if std::env::var_os(ALONE).is_some() {
        return beside_a_journal_of_its_own();
    }
    for (program, package) in [(JOURNALD, "systemd"), ("/usr/bin/unshare", "util-linux")] {
        assert!(Path::new(program).exists(), "this test needs {program}: apt-get install {package}");
    }
    let namespace = |arguments: &[&str]| namespaced().arg("sh").args(arguments).env(ALONE, "1").output().unwrap();
    let probe = namespace(&["-c", NAMESPACE, "sh", "true"]);
    let why = String::from_utf8_lossy(&probe.stderr);
    assert!(
        probe.status.success(),
        "this test needs a mount namespace: run it as root, or allow user namespaces: {why}"
    );
    let this = std::env::current_exe().unwrap();
    let output = namespace(&[
        "-c",
        NAMESPACE,
        "sh",
        this.to_str().unwrap(),
        "--exact",
        "journald::the_real_journal_has_every_field_and_stops_nobody_when_it_stands_still",
        "--nocapture",
    ]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn namespaced() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "--propagation", "private"]);
    command
}

fn beside_a_journal_of_its_own() {
    let mut journald = Journald::start();
    let settings = Settings::new().set("admin", "metrics_listen", "127.0.0.1:0").argument("--log-level=debug");
    let server = Server::start(settings);
    let mut alice = server.client_named("alice");
    entries_of_all_levels(&server, &mut alice);
    names_of_any_bytes(&mut alice);
    a_journal_that_stands_still(&server, &mut journald, &mut alice);
}

fn entries_of_all_levels(server: &Server, alice: &mut Client) {
    post(alice);
    let started = entry("MESSAGE", "Server started on port");
    assert_eq!((&started["PRIORITY"], &started["SYSLOG_IDENTIFIER"]), (&json!("6"), &json!("scd")), "{started}");
    assert_eq!(started["_PID"], server.pid().to_string());
    let posted = entry("MESSAGE", "POST_MESSAGE by alice");
    let fields = ["PRIORITY", "SUPERCHAT_SESSION", "SUPERCHAT_USER", "SUPERCHAT_CHANNEL", "SUPERCHAT_REMOTE", "TARGET"];
    let expected = ["7", "2", "alice", "1", "127.0.0.1", "superchat::handlers::messages"];
    assert_eq!(fields.map(|field| posted[field].as_str().unwrap_or_default()), expected, "{posted}");
    assert!(posted["SUPERCHAT_REQUEST"].as_str().unwrap().parse::<u64>().is_ok(), "{posted}");
    assert!(posted["CODE_FILE"].as_str().unwrap().ends_with("messages.rs") && posted["CODE_LINE"].is_string());

    let database = Connection::open(server.database()).unwrap();
    database.busy_timeout(LIMIT).unwrap();
    database.execute_batch("PRAGMA foreign_keys = OFF; ALTER TABLE Message RENAME TO Gone").unwrap();
    let content = Bounded(b"lost");
    alice.send(PostMessage { channel_id: CHANNEL, subchannel_id: None, parent_id: None, content });
    alice.expect_error(9001);
    database.execute_batch("ALTER TABLE Gone RENAME TO Message").unwrap();
    let failed = entry("PRIORITY", "3");
    assert_eq!(failed["SYSLOG_IDENTIFIER"], "scd", "{failed}");
    // As an operator asks: journalctl -p err -o json.
    let errors = journal(&["-p", "err"]);
    assert!(!errors.is_empty() && errors.iter().all(|entry| entry["PRIORITY"] == "3"), "{errors:#?}");
}

/// What is not printable text the journal shows as a list of bytes.
fn names_of_any_bytes(alice: &mut Client) {
    for (nickname, shown) in [
        (&b"two\nlines"[..], json!("two\nlines")),
        (b"bell\x07\xff", json!("bell\u{7}\u{fffd}".as_bytes())),
        (b"PRIORITY=0", json!("PRIORITY=0")),
    ] {
        alice.send(AuthRequest { nickname, password_hash: &[b'x'; 44] });
        alice.expect_reply("AUTH_RESPONSE");
        let found = clock::poll(LIMIT, || {
            let refused = journal(&["-p", "warning", "TARGET=security"]);
            refused.into_iter().find(|entry| entry["SUPERCHAT_USER"] == shown)
        });
        let refused = found.unwrap_or_else(|| panic!("{shown} is not in {:#?}", journal(&["TARGET=security"])));
        assert_eq!((&refused["PRIORITY"], &refused["SUPERCHAT_SESSION"]), (&json!("4"), &json!("2")), "{refused}");
        assert!(!refused["MESSAGE"].as_str().unwrap().contains('\n'), "{refused}");
    }
}

fn a_journal_that_stands_still(server: &Server, journald: &mut Journald, alice: &mut Client) {
    assert_eq!(dropped(server), 0.0);
    journald.signal(Signal::STOP);
    // Two bytes are too few for a post: a line at DEBUG and an ERROR each.
    let unreadable = [0, 0, 0, 4, 1, 0x0A, 0, 0].repeat(100);
    let lost = clock::poll(LIMIT, || {
        (0..10).for_each(|_| {
            alice.send_raw(&unreadable);
            (0..100).for_each(|_| drop(alice.expect_error(1000)));
        });
        Some(dropped(server)).filter(|lost| *lost > 0.0)
    });
    assert!(lost.is_some(), "the journal's socket and queue take everything");
    alice.ask(Ping { timestamp: 7 }, "PONG");
    journald.signal(Signal::CONT);
    let told = entry("MESSAGE", "log lines dropped sink=journal count=");
    assert_eq!((&told["PRIORITY"], &told["SUPERCHAT_SINK"]), (&json!("4"), &json!("journal")), "{told}");
    alice.send(AuthRequest { nickname: b"afterwards", password_hash: &[b'x'; 44] });
    alice.expect_reply("AUTH_RESPONSE");
    entry("SUPERCHAT_USER", "afterwards");
}

/// Lines that the journal did not get, as the metrics say.
fn dropped(server: &Server) -> f64 {
    let output = server.output();
    let address = output.split("(/metrics, /health) address=").nth(1).unwrap().split_once('\n').unwrap().0;
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let series = "superchat_log_dropped_total{sink=\"journal\"} ";
    answer.lines().find_map(|line| line.strip_prefix(series)).unwrap().parse().unwrap()
}

/// The first entry of the server whose `field` begins like that.
fn entry(field: &str, beginning: &str) -> Value {
    let begins = |entry: &Value| entry[field].as_str().is_some_and(|text| text.starts_with(beginning));
    let found = clock::poll(LIMIT, || journal(&["SYSLOG_IDENTIFIER=scd"]).into_iter().find(begins));
    found.unwrap_or_else(|| panic!("no entry whose {field} begins with {beginning}"))
}

fn journal(arguments: &[&str]) -> Vec<Value> {
    let output = Command::new("journalctl").args(["-o", "json", "--all", "--no-pager"]).args(arguments).output();
    let output = output.expect("this test needs journalctl: apt-get install systemd");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

struct Journald(Child);

impl Journald {
    fn start() -> Self {
        let this = Self(Command::new(JOURNALD).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let listens = || Path::new(JOURNAL_SOCKET).exists().then_some(());
        assert_eq!(clock::poll(LIMIT, listens), Some(()), "{:?}", fs::read_dir("/run/systemd/journal"));
        this
    }

    fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        // It may stand still.
        self.signal(Signal::CONT);
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
