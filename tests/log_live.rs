//! The log of a running server: whose request a line belongs to, and the signals that steer it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

#[path = "log_live/journald.rs"]
mod journald;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use superchat::ids::ChannelId;
use superchat::wire::client::{AuthRequest, PostMessage, SubscribeChannel};
use superchat::wire::codec::Bounded;
use support::server::free_port;
use support::{Client, Incoming, Server, Settings, clock};

const LIMIT: Duration = Duration::from_secs(20);
const CHANNEL: ChannelId = ChannelId(1);

fn post(client: &mut Client) {
    let content = Bounded(b"never logged");
    client.send(PostMessage { channel_id: CHANNEL, subchannel_id: None, parent_id: None, content });
    client.expect_reply("MESSAGE_POSTED");
}

fn log_file(server: &Server, name: &str) -> std::path::PathBuf {
    server.home().join("data/superchat").join(name)
}

/// Waits for a line of `server.log` that pleases `wanted`.
fn line(server: &Server, what: &str, wanted: impl Fn(&str) -> bool) -> String {
    let found = clock::poll(LIMIT, || {
        let text = fs::read_to_string(log_file(server, "server.log")).unwrap_or_default();
        text.lines().find(|line| wanted(line)).map(str::to_owned)
    });
    found.unwrap_or_else(|| panic!("no line: {what}"))
}

/// The JSON line whose message begins with `message`.
fn event(server: &Server, message: &str) -> Value {
    let parsed = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let begins = |line: &str| parsed(line)["message"].as_str().unwrap().starts_with(message);
    parsed(&line(server, message, begins))
}

#[test]
fn every_line_of_a_request_says_whose_it_is() {
    let server = Server::start(Settings::new().argument("--log-format=json").argument("--log-level=debug"));
    let mut alice = server.client_named("alice");
    post(&mut alice);
    alice.send(AuthRequest { nickname: b"bob", password_hash: &[b'x'; 44] });
    alice.expect_reply("AUTH_RESPONSE");
    // A payload that says less than its type needs.
    alice.send_raw(&[0, 0, 0, 4, 1, 0x0A, 0, 0]);
    alice.expect_error(1000);

    let named = event(&server, "Session 2 set nickname: alice");
    let posted = event(&server, "POST_MESSAGE by alice");
    let refused = event(&server, "Session 2: AUTH_REQUEST failed");
    let unreadable = event(&server, "unreadable payload");
    for line in [&named, &posted, &refused, &unreadable] {
        assert_eq!((&line["session"], &line["remote"]), (&json!(2), &json!("127.0.0.1")), "{line}");
    }
    assert_eq!((&posted["user"], &posted["channel"]), (&json!("alice"), &json!(1)));
    assert_eq!((&unreadable["user"], &unreadable["channel"]), (&json!("alice"), &Value::Null));
    let attempted = event(&server, "Session 2: AUTH_REQUEST for nickname bob");
    assert_eq!(attempted["request"], refused["request"], "one frame has one number, however long it takes");
    let numbers: BTreeSet<u64> =
        [&named, &posted, &refused, &unreadable].map(|line| line["request"].as_u64().unwrap()).into();
    assert_eq!(numbers.len(), 4, "and no two frames have the same: {numbers:?}");
}

#[test]
fn a_flood_of_refusals_leaves_a_few_lines_and_loses_no_count() {
    const PINGS: usize = 500;
    const LINE: &str = "Rate limit exceeded for session 2";
    let settings = Settings::new().set("limits", "exempt_networks", json!([])).set("limits", "requests_per_second", 10);
    let server = Server::start(settings.argument("--log-format=json"));
    let mut flooder = server.client();
    let ping = [&[0, 0, 0, 11, 1, 0x10, 0][..], &[0; 8]].concat();
    flooder.send_raw(&ping.repeat(PINGS));
    let answers: Vec<_> = (0..PINGS).map(|_| flooder.next()).collect();
    let is_pong = |answer: &&Incoming| matches!(answer, Incoming::Frame(frame) if frame.name == "PONG");
    let refused = PINGS - answers.iter().filter(is_pong).count();

    let told = |line: &str| line.contains(LINE) && line.contains(" more)");
    let first: Value = serde_json::from_str(&line(&server, "the rest, while the session lives", told)).unwrap();
    assert_eq!((&first["target"], &first["remote"]), (&json!("security"), &json!("127.0.0.1")), "{first}");
    flooder.send_raw(&ping.repeat(PINGS));
    let again: Vec<_> = (0..PINGS).map(|_| flooder.next()).collect();
    let refused = refused + PINGS - again.iter().filter(is_pong).count();
    drop(flooder);
    let all = clock::poll(LIMIT, || {
        let text = fs::read_to_string(log_file(&server, "server.log")).unwrap();
        let lines: Vec<Value> =
            text.lines().filter(|line| line.contains(LINE)).map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.iter().filter(|line| line["more"].is_u64()).count() == 2).then_some(lines)
    });
    let lines = all.expect("its end tells the rest");
    let counted: u64 = lines.iter().map(|line| line["more"].as_u64().unwrap_or(1)).sum();
    assert_eq!((counted, lines.len()), (refused as u64, 12), "two floods: {lines:#?}");
}

#[test]
fn requests_of_all_shards_have_numbers_of_their_own() {
    let settings =
        Settings::new().set("server", "shards", 3).argument("--log-format=json").argument("--log-level=debug");
    let server = Server::start(settings);
    let clients: Vec<Client> = (0..9).map(|number| server.client_named(&format!("visitor{number}"))).collect();
    let last = event(&server, "Session 10 set nickname: visitor8");
    let text = fs::read_to_string(log_file(&server, "server.log")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let named = lines.filter(|line| line["message"].as_str().unwrap().contains("set nickname"));
    let numbers: Vec<u64> = named.map(|line| line["request"].as_u64().unwrap()).collect();
    assert!(numbers.contains(&last["request"].as_u64().unwrap()));
    assert_eq!(
        (numbers.len(), numbers.iter().collect::<BTreeSet<_>>().len()),
        (clients.len(), clients.len()),
        "{numbers:?}"
    );
}

#[test]
fn a_start_says_what_operators_look_for() {
    let (ssh, http) = (free_port(), free_port());
    let settings = Settings::new().set("admin", "metrics_listen", "127.0.0.1:0");
    let server = Server::start(settings.set("server", "ssh_port", ssh).set("server", "http_port", http));
    let port = server.address().port();
    let texts = [
        format!("Config: {}", server.home().join("config.toml").display()),
        format!("Database: {}", server.database().display()),
        "Available channels (5):".to_owned(),
        "Metrics server listening on :".to_owned(),
        "Directory mode enabled (servers can register)".to_owned(),
        format!("SuperChat server {} started successfully", env!("CARGO_PKG_VERSION")),
        format!("Port: {port}"),
        format!("SSH Port: {ssh}"),
        format!("SSH Host Key: {}", server.home().join("data/superchat/ssh_host_key").display()),
        format!("SSH server listening on :{ssh}"),
        format!("Public HTTP server listening on :{http} (/servers.json, /ws)"),
        "Available connection methods:".to_owned(),
        format!("  - Binary Protocol (TCP): port {port}"),
        format!("  - SSH: port {ssh}"),
        format!("  - WebSocket: port {http} (ws://server:{http}/ws)"),
        format!("Server started on port {port}"),
    ];
    for text in texts {
        line(&server, &text, |line| line.contains(&format!("[INFO] {text}")));
    }
}

#[test]
fn what_no_request_causes_belongs_to_nobody() {
    let server = Server::start(Settings::new().argument("--log-format=json"));
    let mut alice = server.client_named("alice");
    alice.send(SubscribeChannel { channel_id: CHANNEL, subchannel_id: None });
    alice.expect_reply("SUBSCRIBE_OK");
    let accepted = event(&server, "Connection from");
    let started = event(&server, "Server started on port");
    for line in [accepted, started] {
        assert_eq!((line.get("request"), line.get("session")), (None, None), "{line}");
    }
}

#[test]
fn addresses_are_shortened_where_the_context_shows_them_too() {
    for (log_ip, shown) in [("truncated", "127.0.0.0"), ("off", "-")] {
        let settings = Settings::new().set("log", "log_ip", log_ip).argument("--log-format=json");
        let server = Server::start(settings);
        let _alice = server.client_named("alice");
        assert_eq!(event(&server, "Session 2 set nickname: alice")["remote"], shown);
        assert!(!server.output().contains("127.0.0.1:"), "{}", server.output());
    }
}

#[test]
fn sigusr1_raises_and_sigusr2_lowers_the_level_of_the_running_server() {
    let server = Server::start(Settings::new());
    let mut alice = server.client_named("alice");
    post(&mut alice);
    server.signal(libc::SIGUSR1);
    line(&server, "raised", |line| line.ends_with("[WARN] log level raised to debug"));
    post(&mut alice);
    line(&server, "a post", |line| line.contains("[DEBUG] POST_MESSAGE by alice"));
    server.signal(libc::SIGUSR2);
    signal_after(&server, "lowered to info", libc::SIGUSR2);
    line(&server, "lowered", |line| line.ends_with("[WARN] log level lowered to warn"));
    drop(server.client_named("carol"));
    post(&mut alice);
    server.signal(libc::SIGUSR1);
    line(&server, "raised again", |line| line.ends_with("[WARN] log level raised to info"));
    let text = fs::read_to_string(log_file(&server, "server.log")).unwrap();
    assert_eq!(text.matches("POST_MESSAGE by alice").count(), 1, "before, during, after:\n{text}");
    assert!(!text.contains("set nickname: carol"), "{text}");
}

/// Equal signals that nobody has looked at yet are one.
fn signal_after(server: &Server, text: &str, number: libc::c_int) {
    line(server, text, |line| line.contains(text));
    server.signal(number);
}

#[test]
fn sighup_goes_on_in_new_files_and_ends_nothing() {
    let mut server = Server::start(Settings::new());
    let mut alice = server.client_named("alice");
    let (current, old) = (log_file(&server, "server.log"), log_file(&server, "server.log.1"));
    fs::rename(&current, &old).unwrap();
    server.signal(libc::SIGHUP);
    line(&server, "reopened", |line| line.ends_with("[INFO] log files reopened"));
    let _bob = server.client_named("bob");
    line(&server, "bob", |line| line.contains("set nickname: bob"));
    assert!(!fs::read_to_string(&old).unwrap().contains("bob"));
    post(&mut alice);
    assert_eq!(server.stop(), Some(0));
}
