//! The metrics of a running server: all of them are there, and each moves by what really happened.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use superchat::ids::{ChannelId, MessageId};
use superchat::metrics::Metric;
use superchat::wire::client::{
    AuthRequest, CreateChannel, EditMessage, JoinChannel, ListMessages, Ping, PostMessage, RegisterUser,
    SubscribeChannel, SubscribeThread,
};
use superchat::wire::codec::Bounded;
use support::{Client, Server, Settings, clock};

const LIMIT: Duration = Duration::from_secs(30);
/// A forum, where replies make threads.
const CHANNEL: ChannelId = ChannelId(2);
const HASH: &[u8] = b"0123456789012345678901234567890123456789";
const WRONG_HASH: &[u8] = b"9876543210987654321098765432109876543210";

/// A server whose metrics port is open.
struct Observed {
    server: Server,
    metrics: SocketAddr,
}

impl Observed {
    fn start(settings: Settings) -> Self {
        let server = Server::start(settings.set("admin", "metrics_listen", "127.0.0.1:0"));
        let metrics = told_port(&server, 1);
        Self { server, metrics }
    }

    /// Stops the server and starts it again, on the same data.
    fn restart(&mut self) {
        assert_eq!(self.server.stop(), Some(0));
        self.server.resume();
        self.metrics = told_port(&self.server, 2);
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn scrape(&self) -> Scrape {
        Scrape::read(&self.get("/metrics"))
    }

    /// Scrapes until it pleases: for what is counted a moment after it happened.
    fn scrape_until(&self, what: &str, pleases: impl Fn(&Scrape) -> bool) -> Scrape {
        let mut last = None;
        let found = clock::poll(LIMIT, || {
            let scrape = self.scrape();
            let found = pleases(&scrape).then(|| scrape.clone());
            last = Some(scrape);
            found
        });
        found.unwrap_or_else(|| panic!("{what}: {:#?}", last.unwrap().series))
    }

    fn health(&self) -> Value {
        serde_json::from_str(&self.get("/health")).unwrap()
    }

    fn client(&self) -> Client {
        self.server.client()
    }

    fn named(&self, nickname: &str) -> Client {
        self.server.client_named(nickname)
    }
}

/// The system gives the port, and the log of that start tells which.
fn told_port(server: &Server, start: usize) -> SocketAddr {
    let told = clock::poll(LIMIT, || {
        let output = server.output();
        let after = output.split("metrics server listening (/metrics, /health) address=").nth(start)?;
        after.split_once('\n')?.0.parse().ok()
    });
    told.expect("the port of the metrics")
}

/// Every series with its value, and the names of the families.
#[derive(Debug, Clone)]
struct Scrape {
    families: BTreeSet<String>,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    /// A series that stands there twice is an error.
    fn read(text: &str) -> Self {
        let mut scrape = Self { families: BTreeSet::new(), series: BTreeMap::new() };
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                scrape.families.insert(family.split(' ').next().unwrap().to_owned());
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let before = scrape.series.insert(series.to_owned(), value.parse().unwrap());
                assert_eq!(before, None, "{series} stands there twice");
            }
        }
        scrape
    }

    fn get(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }

    /// What is not there yet counts as zero.
    fn grown(&self, before: &Self, series: &str) -> f64 {
        self.get(series).unwrap_or(0.0) - before.get(series).unwrap_or(0.0)
    }

    fn sum(&self, family: &str) -> f64 {
        let of_family = |series: &str| series.split('{').next() == Some(family);
        self.series.iter().filter(|(series, _)| of_family(series)).map(|(_, value)| value).sum()
    }

    fn check_growth(&self, before: &Self, expected: &[(&str, f64)]) {
        let wrong: Vec<_> = expected
            .iter()
            .map(|(series, growth)| (series, *growth, self.grown(before, series)))
            .filter(|(_, expected, found)| expected != found)
            .collect();
        assert!(wrong.is_empty(), "series, expected, found: {wrong:#?}");
    }
}

fn post(client: &mut Client, parent_id: Option<MessageId>, text: &str) -> MessageId {
    send_post(client, parent_id, text);
    let posted = client.expect_reply("MESSAGE_POSTED");
    MessageId(posted["message_id"].as_str().unwrap().parse().unwrap())
}

fn send_post(client: &mut Client, parent_id: Option<MessageId>, text: &str) {
    let content = Bounded(text.as_bytes());
    client.send(PostMessage { channel_id: CHANNEL, subchannel_id: None, parent_id, content });
}

fn register(client: &mut Client) {
    client.send(RegisterUser { password_hash: HASH });
    assert_eq!(client.expect_reply("REGISTER_RESPONSE")["success"], true);
}

fn create_channel(client: &mut Client, name: &str) -> bool {
    let (name, description) = (name.as_bytes(), Some(&b"made by a test"[..]));
    client.send(CreateChannel { name, display_name: name, description, channel_type: 1, retention_hours: 24 });
    client.expect_reply("CHANNEL_CREATED")["success"] == true
}

/// Nobody is exempt, and every limit is near.
fn strict() -> Settings {
    Settings::new()
        .set("server", "shards", 2)
        .set("limits", "exempt_networks", json!([]))
        .set("limits", "max_connections_per_ip", 20)
        .set("limits", "message_rate_limit", 3)
        .set("limits", "max_channel_creates", 1)
        .set("limits", "auth_attempts_per_minute", 4)
        .set("limits", "requests_per_second", 100)
}

#[test]
fn every_metric_is_exported_before_anything_happened_but_those_of_what_has_no_series_yet() {
    // The directory reads its table at once.
    let observed = Observed::start(strict().set("discovery", "directory_enabled", false));
    let scrape =
        observed.scrape_until("rows are counted", |scrape| scrape.families.contains("superchat_stored_messages"));
    let missing: Vec<_> =
        Metric::TABLE.iter().map(|row| row.name).filter(|name| !scrape.families.contains(*name)).collect();
    // Series by id, by request and by query begin with the first of them; a backup that never was has no time.
    let expected = [
        "superchat_messages_delivered_total",
        "superchat_channel_subscribers",
        "superchat_thread_subscribers",
        "superchat_request_duration_seconds",
        "superchat_db_query_seconds",
        "superchat_backup_last_success_timestamp_seconds",
    ];
    assert_eq!(missing, expected);
    for series in [
        "superchat_auth_attempts_total{method=\"password\",result=\"failed\"}",
        "superchat_auth_attempts_total{method=\"ssh_key\",result=\"ok\"}",
        "superchat_http_requests_total{server=\"metrics\",path=\"/status\",status=\"200\"}",
        "superchat_http_request_duration_seconds_count{server=\"metrics\",path=\"/livez\",status=\"200\"}",
        "superchat_log_dropped_total{sink=\"file\"}",
        "superchat_log_dropped_total{sink=\"journal\"}",
        "superchat_rate_limit_hits_total{type=\"dm\"}",
        "superchat_stored_messages",
        "superchat_registered_users",
        "superchat_panics_total",
    ] {
        assert_eq!(scrape.get(series), Some(0.0), "{series}");
    }
    assert_eq!(scrape.get("superchat_channels"), Some(5.0), "the seeds");
    assert!(scrape.get("superchat_db_free_disk_bytes") > Some(1e6));
    assert!(scrape.get("superchat_db_size_bytes") > Some(4096.0));
}

#[test]
fn everything_that_happens_is_counted_once() {
    let mut observed = Observed::start(strict());
    let before = observed.scrape();

    let (mut alice, mut bob) = (observed.named("alice"), observed.named("bob"));
    register(&mut alice);
    for client in [&mut alice, &mut bob] {
        client.send(SubscribeChannel { channel_id: CHANNEL, subchannel_id: None });
        client.expect_reply("SUBSCRIBE_OK");
    }
    let root = post(&mut alice, None, "root");
    bob.send(SubscribeThread { thread_id: root });
    bob.expect_reply("SUBSCRIBE_OK");
    post(&mut alice, Some(root), "reply");
    alice.send(EditMessage { message_id: root, new_content: Bounded(b"edited") });
    alice.expect_reply("MESSAGE_EDITED");
    bob.send(JoinChannel { channel_id: CHANNEL, subchannel_id: None });
    bob.expect_reply("JOIN_RESPONSE");
    bob.send(ListMessages {
        channel_id: CHANNEL,
        subchannel_id: None,
        limit: 10,
        before_id: None,
        parent_id: None,
        after_id: None,
    });
    bob.expect_reply("MESSAGE_LIST");
    // Her third of this minute; the fourth is one too many.
    post(&mut alice, None, "another root");
    send_post(&mut alice, None, "one too many");
    alice.expect_error(5001);
    assert!(create_channel(&mut alice, "first"));
    assert!(!create_channel(&mut alice, "second"), "only one an hour");
    let mut fumbler = observed.client();
    sign_in(&mut fumbler);
    break_frames(&observed);
    let (pinged, refused) = flood(&observed);
    drop((alice, bob, fumbler));

    let gone = |scrape: &Scrape| scrape.get("superchat_active_sessions") == Some(0.0);
    let rows = |scrape: &Scrape| scrape.get("superchat_stored_messages") == Some(3.0);
    let after = observed.scrape_until("all are gone, rows counted", |scrape| gone(scrape) && rows(scrape));
    after.check_growth(
        &before,
        &[
            ("superchat_sessions_created_total", 7.0),
            ("superchat_connections_total{transport=\"tcp\"}", 7.0),
            ("superchat_disconnects_total{reason=\"protocol_error\"}", 2.0),
            ("superchat_disconnects_total{reason=\"panic\"}", 0.0),
            ("superchat_messages_received_total{type=\"SET_NICKNAME\"}", 2.0),
            ("superchat_messages_received_total{type=\"POST_MESSAGE\"}", 6.0),
            ("superchat_messages_received_total{type=\"0x7E\"}", 1.0),
            ("superchat_messages_sent_total{type=\"NEW_MESSAGE\"}", 5.0),
            ("superchat_messages_sent_total{type=\"MESSAGE_POSTED\"}", 3.0),
            ("superchat_messages_broadcast_total", 3.0),
            ("superchat_broadcast_fanout_count{type=\"channel\"}", 2.0),
            ("superchat_broadcast_fanout_sum{type=\"channel\"}", 4.0),
            ("superchat_broadcast_fanout_sum{type=\"thread\"}", 1.0),
            ("superchat_broadcast_duration_seconds_count{type=\"thread\"}", 1.0),
            ("superchat_messages_delivered_total{channel_id=\"2\",thread_id=\"none\"}", 4.0),
            (&format!("superchat_messages_delivered_total{{channel_id=\"2\",thread_id=\"{}\"}}", root.0), 1.0),
            ("superchat_post_ack_seconds_count", 3.0),
            ("superchat_request_duration_seconds_count{type=\"EDIT_MESSAGE\"}", 1.0),
            ("superchat_request_duration_seconds_count{type=\"AUTH_REQUEST\"}", 5.0),
            ("superchat_decode_errors_total{kind=\"frame\"}", 1.0),
            ("superchat_decode_errors_total{kind=\"compression\"}", 1.0),
            ("superchat_decode_errors_total{kind=\"payload\"}", 1.0),
            ("superchat_decode_errors_total{kind=\"unknown_type\"}", 1.0),
            ("superchat_errors_total{code=\"1000\"}", 1.0),
            ("superchat_errors_total{code=\"1001\"}", 1.0),
            ("superchat_errors_total{code=\"5001\"}", 1.0),
            ("superchat_errors_total{code=\"5000\"}", refused),
            ("superchat_rate_limit_hits_total{type=\"request\"}", refused),
            ("superchat_rate_limit_hits_total{type=\"message\"}", 1.0),
            ("superchat_rate_limit_hits_total{type=\"channel_create\"}", 1.0),
            ("superchat_rate_limit_hits_total{type=\"auth\"}", 2.0),
            ("superchat_auth_attempts_total{method=\"password\",result=\"ok\"}", 1.0),
            ("superchat_auth_attempts_total{method=\"password\",result=\"failed\"}", 2.0),
            ("superchat_auth_attempts_total{method=\"password\",result=\"throttled\"}", 2.0),
            ("superchat_pings_total", pinged),
            ("superchat_channels", 1.0),
            ("superchat_registered_users", 1.0),
            ("superchat_stored_messages", 3.0),
            ("superchat_db_query_seconds_count{query=\"roots\"}", 1.0),
            ("superchat_panics_total", 0.0),
            ("superchat_log_dropped_total{sink=\"file\"}", 0.0),
        ],
    );
    assert_eq!(after.get("superchat_channel_subscribers{channel_id=\"2\"}"), Some(0.0), "both have left");
    assert_eq!(after.sum("superchat_shard_sessions"), 0.0);
    assert!(after.grown(&before, "superchat_db_commit_seconds_count") >= 6.0);
    assert!(after.grown(&before, "process_cpu_seconds_total") > 0.0);
    assert!(after.sum("tokio_worker_busy_seconds_total") > before.sum("tokio_worker_busy_seconds_total"));
    assert_eq!(observed.health()["channels"], 6);
    break_database(&mut observed, &after);
}

/// Two failures, a success, and two beyond the limit of four, which counts the registration, too.
fn sign_in(client: &mut Client) {
    for (hash, success) in [(WRONG_HASH, false), (WRONG_HASH, false), (HASH, true), (HASH, false), (HASH, false)] {
        client.send(AuthRequest { nickname: b"alice", password_hash: hash });
        assert_eq!(client.expect_reply("AUTH_RESPONSE")["success"], success);
    }
}

/// One frame of each kind that cannot be read.
fn break_frames(observed: &Observed) {
    let mut broken = observed.client();
    broken.send_raw(&[0xFF; 8]);
    broken.expect_close();
    let mut garbled = observed.client();
    // Says that it is compressed, and to what size it grows; the rest is no LZ4.
    garbled.send_raw(&[0, 0, 0, 11, 1, 0x0A, 1, 0, 0, 0, 9, 0xFF, 0xFF, 0xFF, 0xFF]);
    garbled.expect_close();
    let mut strange = observed.client();
    strange.send_raw(&[0, 0, 0, 3, 1, 0x7E, 0]);
    strange.expect_error(1001);
    strange.send_raw(&[0, 0, 0, 4, 1, 0x0A, 0, 0]);
    strange.expect_error(1000);
}

/// More requests at once than anybody may send: how many went out, and how many were refused.
fn flood(observed: &Observed) -> (f64, f64) {
    const PINGS: i64 = 400;
    let mut flooder = observed.client();
    let frame = |timestamp: i64| [&[0, 0, 0, 11, 1, 0x10, 0][..], &timestamp.to_be_bytes()].concat();
    let frames: Vec<u8> = (0..PINGS).flat_map(frame).collect();
    flooder.send_raw(&frames);
    let mut refused = 0.0;
    for _ in 0..PINGS {
        match flooder.next() {
            support::Incoming::Frame(frame) if frame.name == "PONG" => {}
            support::Incoming::Frame(frame) if frame.fields["error_code"] == 5000 => refused += 1.0,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused >= 1.0);
    (400.0, refused)
}

/// Storage errors are the last thing that can be counted.
fn break_database(observed: &mut Observed, before: &Scrape) {
    let database = Connection::open(observed.server.database()).unwrap();
    database.busy_timeout(LIMIT).unwrap();
    database.execute_batch("PRAGMA foreign_keys = OFF; DROP TABLE Message").unwrap();
    let mut carol = observed.named("carol");
    send_post(&mut carol, None, "hello");
    carol.expect_error(9001);
    let after = observed.scrape();
    assert!(after.grown(before, "superchat_db_errors_total{kind=\"io\"}") >= 1.0);
    assert_eq!(after.grown(before, "superchat_errors_total{code=\"9001\"}"), 1.0);
}

#[test]
fn one_connection_too_many_is_counted_as_refused_and_as_limited() {
    let observed = Observed::start(strict().set("limits", "max_connections_per_ip", 2));
    let only = |scrape: &Scrape| scrape.get("superchat_active_sessions") == Some(0.0);
    let before = observed.scrape_until("the harness has left", only);
    let _kept = [observed.client(), observed.client()];
    let mut refused = observed.client();
    refused.expect_error(5003);
    observed.scrape().check_growth(
        &before,
        &[
            ("superchat_connections_rejected_total{reason=\"ip_limit\"}", 1.0),
            ("superchat_rate_limit_hits_total{type=\"connection\"}", 1.0),
            ("superchat_sessions_created_total", 2.0),
            ("superchat_active_sessions", 2.0),
        ],
    );
}

#[test]
fn gauges_of_sessions_and_tasks_follow_who_is_here() {
    let observed = Observed::start(Settings::new().set("server", "shards", 3));
    let mut clients: Vec<Client> = (0..30).map(|_| observed.client()).collect();
    let here = |count: f64| {
        move |scrape: &Scrape| {
            // A session is a task, and nothing else is.
            let alike = ["superchat_active_sessions", "superchat_shard_sessions", "tokio_alive_tasks"];
            alike.iter().all(|family| scrape.sum(family) == count)
        }
    };
    let scrape = observed.scrape_until("thirty are here", here(30.0));
    for shard in 0..3 {
        assert!(scrape.get(&format!("superchat_shard_sessions{{shard=\"{shard}\"}}")) >= Some(1.0), "{shard}");
        assert!(scrape.get(&format!("superchat_shard_loop_lag_seconds{{shard=\"{shard}\"}}")) < Some(5.0), "{shard}");
    }
    clients.truncate(7);
    observed.scrape_until("seven are left", here(7.0));
    assert_eq!(observed.health()["sessions"], 7);
}

#[test]
fn channels_are_counted_as_operators_add_and_remove_them() {
    let observed = Observed::start(Settings::new());
    let channels = |count: f64| move |scrape: &Scrape| scrape.get("superchat_channels") == Some(count);
    observed.scrape_until("the seeds", channels(5.0));
    let database = Connection::open(observed.server.database()).unwrap();
    database.busy_timeout(LIMIT).unwrap();
    database.execute_batch("DELETE FROM Channel WHERE id = 5").unwrap();
    observed.scrape_until("one less", channels(4.0));
    let mut alice = observed.named("alice");
    register(&mut alice);
    assert!(create_channel(&mut alice, "another"));
    assert!(channels(5.0)(&observed.scrape()), "who was told that it exists finds it counted");
    assert_eq!(observed.health()["channels"], 5);
}

#[test]
fn the_newest_backup_is_told_once_there_is_one() {
    let mut observed = Observed::start(Settings::new());
    assert_eq!(observed.health()["last_backup"], Value::Null);
    let made_at = Duration::from_secs(1_700_000_000);
    for (name, at) in [("20230101-000000", made_at - Duration::from_secs(99)), ("20231114-221320", made_at)] {
        let path = observed.server.home().join(format!("superchat.db.backup-v13-{name}"));
        let file = File::options().create_new(true).write(true).mode(0o600).open(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + at).unwrap();
    }
    let told =
        |scrape: &Scrape| scrape.get("superchat_backup_last_success_timestamp_seconds") == Some(made_at.as_secs_f64());
    observed.scrape_until("the backup", told);
    assert_eq!(observed.health()["last_backup"], "2023-11-14T22:13:20Z");
    assert_eq!(observed.server.stop(), Some(0));
}

#[test]
fn rows_of_a_database_that_was_there_before_are_counted() {
    let mut observed = Observed::start(Settings::new());
    let mut alice = observed.named("alice");
    register(&mut alice);
    for _ in 0..20 {
        post(&mut alice, None, "one of twenty");
    }
    observed.restart();
    let scrape = observed.scrape_until("twenty", |scrape| scrape.get("superchat_stored_messages") == Some(20.0));
    assert_eq!(scrape.get("superchat_registered_users"), Some(1.0));
}

#[test]
fn memory_held_for_a_slow_reader_is_shown_until_it_is_put_out() {
    let settings = Settings::new().set("storage", "durability", "process").set("limits", "outbox_bytes_max", 1 << 20);
    let observed = Observed::start(settings);
    let slow = slow_reader(observed.server.address());
    let mut alice = observed.named("alice");
    let text = "x".repeat(4000);
    let mut held: f64 = 0.0;
    let scrape = clock::poll(LIMIT, || {
        (0..100).for_each(|_| send_post(&mut alice, None, &text));
        (0..100).for_each(|_| drop(alice.expect_reply("MESSAGE_POSTED")));
        let scrape = observed.scrape();
        held = held.max(scrape.get("superchat_outbound_queue_bytes").unwrap());
        (scrape.get("superchat_disconnects_total{reason=\"slow_consumer\"}") == Some(1.0)).then_some(scrape)
    });
    let scrape = scrape.expect("the slow reader is put out");
    assert!(held > 100_000.0 && held <= 1.1 * f64::from(1 << 20), "{held} bytes were held at most");
    assert_eq!(scrape.get("superchat_outbound_queue_bytes"), Some(0.0), "nothing is held for nobody");
    drop(slow);
}

/// Subscribes to the channel and reads nothing.
fn slow_reader(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut frame = vec![0, 0, 0, 12, 1, 0x53, 0];
    frame.extend(CHANNEL.0.to_be_bytes());
    frame.push(0);
    (&socket).write_all(&frame).unwrap();
    socket
}

#[test]
fn an_attack_on_the_metrics_port_does_not_disturb_the_chat_and_leaves_no_trace() {
    let observed = Observed::start(Settings::new());
    let (mut alice, mut bob) = (observed.named("alice"), observed.named("bob"));
    bob.send(SubscribeChannel { channel_id: CHANNEL, subchannel_id: None });
    bob.expect_reply("SUBSCRIBE_OK");
    let mut slow: Vec<TcpStream> = (0..500).map(|_| TcpStream::connect(observed.metrics).unwrap()).collect();
    for stream in &mut slow {
        // The guard may have closed it already, which is its right.
        stream.write_all(b"GET /metrics HTTP/1.1\r\nX-Filler: ").ok();
    }
    // Every wait of the clients has its limit.
    for number in 0..50 {
        let text = format!("message {number}");
        post(&mut alice, None, &text);
        assert_eq!(bob.expect_broadcast("NEW_MESSAGE")["content"], text);
    }
    drop(slow);
    let answers = || {
        let mut stream = TcpStream::connect(observed.metrics).ok()?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    };
    assert_eq!(clock::poll(LIMIT, answers), Some(()), "the port has a place again");
    assert_eq!(observed.scrape().get("superchat_active_sessions"), Some(2.0));
}

#[test]
fn work_within_one_turn_takes_time() {
    const PINGS: usize = 1000;
    let observed = Observed::start(Settings::new());
    let before = observed.scrape();
    let mut alice = observed.client();
    alice.send_raw(&[0, 0, 0, 11, 1, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0].repeat(PINGS));
    (0..PINGS).for_each(|_| drop(alice.expect_reply("PONG")));
    let after = observed.scrape();
    let took =
        |series: &str| after.grown(&before, &format!("superchat_request_duration_seconds_{series}{{type=\"PING\"}}"));
    let mean = took("sum") / took("count");
    // They come in one read or a few, and each waits for those before it.
    assert!(mean > 2e-6 && mean < 1.0, "{mean} s");
}

#[test]
fn heartbeats_are_counted_apart() {
    let observed = Observed::start(Settings::new());
    let before = observed.scrape();
    let mut alice = observed.client();
    for timestamp in 0..5 {
        alice.ask(Ping { timestamp }, "PONG");
    }
    let after = observed.scrape();
    after.check_growth(
        &before,
        &[
            ("superchat_pings_total", 5.0),
            ("superchat_messages_received_total{type=\"PING\"}", 5.0),
            ("superchat_messages_sent_total{type=\"PONG\"}", 5.0),
            ("superchat_request_duration_seconds_count{type=\"PING\"}", 5.0),
            ("superchat_http_requests_total{server=\"metrics\",path=\"/metrics\",status=\"200\"}", 1.0),
        ],
    );
}
