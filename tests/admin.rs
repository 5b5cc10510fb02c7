//! The metrics and health port as operators, their tools and their enemies meet it.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use superchat::admin::guard::{Answer, Guard, GuardError, GuardOptions, Handler, Limits, Request};
use superchat::admin::health::{Health, HealthInfo, check};
use superchat::admin::{AdminOptions, AdminServer, BearerToken};
use superchat::clock::{monotonic_ms, wall_ms};
use superchat::metrics::*;
use support::http::{PATIENCE, Reply, connect, exchange, get, read_answer};
use support::threads_named;

const PING: u8 = 0x10;
const POST_MESSAGE: u8 = 0x0A;
const NEW_MESSAGE: u8 = 0x8D;
const ERROR: u8 = 0x91;

mod port {
    use super::*;

    #[test]
    fn every_route_answers_get_and_head() {
        let site = Site::open();
        for (path, content_type, part) in [
            ("/", "text/html; charset=utf-8", "href=\"/readyz\""),
            ("/status", "text/html; charset=utf-8", "<title>Zoo &amp; &lt;b&gt;: ready</title>"),
            ("/health", "application/json", "\"status\":\"ok\""),
            ("/livez", "text/plain; charset=utf-8", "ok\n"),
            ("/readyz", "text/plain; charset=utf-8", "ok\n"),
            ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "# TYPE superchat_active_sessions gauge"),
        ] {
            let get = site.get(path, "");
            assert_eq!((get.status, get.header("content-type")), (200, Some(content_type)), "{path}: {get:?}");
            assert!(get.body.contains(part), "{path}: {get:?}");
            assert_eq!(get.header("connection"), Some("close"), "{path}");
            assert_eq!(get.header("content-length"), Some(get.body.len().to_string().as_str()), "{path}");
            let head = site.ask(&format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert_eq!((head.status, head.header("content-type"), head.body.as_str()), (200, Some(content_type), ""));
        }
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let site = Site::open();
        for path in ["/nothing", "/health/", "/metrics/x", "//", "/%2e"] {
            assert_eq!(site.get(path, "").status, 404, "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let answer = site.ask(&format!("{method} /health HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
        }
        assert_eq!(site.ask("nonsense\r\n\r\n").status, 400);
    }

    #[test]
    fn a_token_guards_what_tells_much_and_nothing_else() {
        events();
        let site = Site::with_token("s3cret");
        for path in ["/metrics", "/status"] {
            for shown in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic s3cret\r\n"] {
                let answer = site.get(path, shown);
                assert_eq!(answer.status, 401, "{path} {shown}");
                assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"scd\""));
                assert!(!answer.body.contains("superchat_"));
                wait_for_event(&["security", "admin token refused", path, &answer.local.to_string()]);
            }
            assert_eq!(site.get(path, "authorization: bearer s3cret\r\n").status, 200, "{path}");
        }
        for path in ["/", "/health", "/livez", "/readyz"] {
            assert_eq!(site.get(path, "").status, 200, "{path}");
        }
    }

    #[test]
    fn a_rebound_name_is_turned_away() {
        let site = Site::open();
        let ask = |host: &str| site.ask(&format!("GET /health HTTP/1.1\r\n{host}\r\n")).status;
        assert_eq!(ask("Host: attacker.example\r\n"), 403);
        assert_eq!(ask("Host: 192.0.2.1:9090\r\n"), 403);
        assert_eq!(ask(&format!("Host: {}\r\n", site.address)), 200);
        assert_eq!(ask("Host: metrics.internal:9090\r\n"), 200);
        assert_eq!(ask("Host: localhost\r\nHost: attacker.example\r\n"), 400);
        assert_eq!(ask(""), 400);
        assert_eq!(site.ask("GET /health HTTP/1.0\r\n\r\n").status, 200);
    }

    #[test]
    fn a_taken_port_and_a_public_address_are_errors_at_start() {
        let taken = TcpListener::bind(loopback()).expect("a free port");
        let address = taken.local_addr().expect("bound");
        let error = Site::start(options(address)).err().expect("the port is taken");
        let line = format!("cannot serve metrics on {address}: Address already in use");
        assert!(error.to_string().starts_with(&line), "{error}");
        let anywhere = "0.0.0.0:0".parse().expect("an address");
        assert!(matches!(Site::start(options(anywhere)), Err(GuardError::Remote { .. })));
        let allowed = Site::start(AdminOptions { allow_remote: true, ..options(anywhere) }).expect("allowed");
        assert!(check(allowed.address, true).is_ok());
    }

    #[test]
    fn stopping_closes_the_port() {
        let site = Site::open();
        let address = site.address;
        site.server.stop();
        assert!(TcpStream::connect(address).is_err());
        TcpListener::bind(address).expect("free again");
    }
}

mod health {
    use super::*;

    #[test]
    fn the_body_has_the_keys_and_types_scripts_read() {
        let site = Site::open();
        let body = site.json("/health");
        for (key, value) in [
            ("status", "\"ok\""),
            ("sessions", "42"),
            ("active_sessions", "42"),
            ("channels", "7"),
            ("database", "\"ok\""),
            ("database_accessible", "true"),
            ("directory_enabled", "true"),
            ("server_name", "\"Zoo & <b>\""),
            ("version", "\"1.2.3\""),
            ("durability", "\"full\""),
            ("last_backup", "\"2023-11-14T22:13:20Z\""),
        ] {
            assert_eq!(body[key].to_string(), value, "{key}");
        }
        assert!(body["uptime"].is_u64() && body["uptime_seconds"] == body["uptime"]);
        assert!(body.get("reason").is_none());
    }

    #[test]
    fn a_failing_database_degrades_health_and_readiness_but_not_life() {
        let site = Site::failing();
        let answer = site.get("/health", "");
        assert_eq!(answer.status, 503);
        let body: serde_json::Value = serde_json::from_str(&answer.body).expect("json");
        for (key, value) in [("status", "degraded"), ("database", "error"), ("reason", "disk full")] {
            assert_eq!(body[key], value, "{key}");
        }
        assert_eq!(body["database_accessible"], false);
        assert_eq!((site.get("/readyz", "").status, site.get("/livez", "").status), (503, 200));
        assert!(site.get("/status", "").body.contains("<p class=\"reason\">disk full</p>"));
        assert!(check(site.address, false).expect_err("degraded").starts_with("503: {\"status\":\"degraded\""));
    }

    #[test]
    fn life_ends_with_the_writer() {
        let site = Site::open();
        site.health.writer_stopped();
        let answer = site.get("/livez", "");
        assert_eq!((answer.status, answer.body.as_str()), (503, "the writer thread is not running\n"));
        assert_eq!(site.get("/readyz", "").status, 503);
        assert_eq!(site.get("/health", "").status, 200);
    }

    #[test]
    fn readiness_follows_listening_and_draining() {
        let site = Site::open();
        site.health.set_listening(false);
        assert_eq!(site.get("/readyz", "").status, 503);
        site.health.set_listening(true);
        assert_eq!(check(site.address, true), Ok("ok".to_owned()));
        site.health.set_draining();
        assert_eq!(check(site.address, true), Err("503: the server is stopping".to_owned()));
        assert!(check(site.address, false).is_ok());
    }

    #[test]
    fn the_status_page_stands_alone_and_speaks_json() {
        let site = Site::open();
        site.metrics.shards()[1].session_opened();
        let page = site.get("/status", "");
        assert!(page.body.contains("http-equiv=\"refresh\"") && page.body.contains("color-scheme: light dark"));
        for foreign in ["<script", "http://", "https://", "src=", "@import", "url("] {
            assert!(!page.body.contains(foreign), "{foreign}");
        }
        assert!(page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
        let answer = site.get("/status", "Accept: application/json\r\n");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let status: serde_json::Value = serde_json::from_str(&answer.body).expect("json");
        assert_eq!((&status["ready"], &status["shards"][1]["sessions"]), (&true.into(), &1.into()));
        assert!(status["process"]["resident_bytes"].is_u64() && status["writer"]["alive"] == true);
    }
}

mod exposition {
    use super::*;

    #[test]
    fn promtool_accepts_every_metric() {
        let site = Site::open();
        move_everything(&site.metrics);
        // The port itself is a metric, too, once it has answered.
        site.get("/health", "");
        wait_for_series(
            &site.metrics,
            "superchat_http_requests_total{server=\"metrics\",path=\"/health\",status=\"200\"}",
        );
        let text = site.get("/metrics", "").body;
        let shown = strictly_read(&text, false);
        for definition in Metric::TABLE {
            assert!(shown.contains_key(definition.name), "{} is missing", definition.name);
        }
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this test needs promtool: apt-get install prometheus");
        promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("promtool reads");
        let output = promtool.wait_with_output().expect("promtool ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }

    #[test]
    fn open_metrics_is_given_to_who_asks() {
        let site = Site::open();
        move_everything(&site.metrics);
        let answer = site.get("/metrics", "Accept: application/openmetrics-text; version=1.0.0, text/plain;q=0.5\r\n");
        assert_eq!(answer.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
        let shown = strictly_read(&answer.body, true);
        assert_eq!(shown["superchat_pings"]["superchat_pings_total"], 1.0);
        let ten = "superchat_broadcast_fanout_bucket{type=\"channel\",le=\"10.0\"}";
        assert_eq!(shown["superchat_broadcast_fanout"][ten], 1.0);
    }

    #[test]
    fn counts_arrive_under_their_names() {
        let metrics = metrics(2);
        move_everything(&metrics);
        let shown = samples(&metrics);
        for (series, value) in [
            ("superchat_messages_received_total{type=\"POST_MESSAGE\"}", 2.0),
            ("superchat_messages_received_total{type=\"0xEE\"}", 1.0),
            ("superchat_messages_sent_total{type=\"ERROR\"}", 1.0),
            ("superchat_messages_sent_total{type=\"NEW_MESSAGE\"}", 7.0),
            ("superchat_errors_total{code=\"5001\"}", 1.0),
            ("superchat_errors_total{code=\"other\"}", 1.0),
            ("superchat_active_sessions", 1.0),
            ("superchat_sessions_created_total", 2.0),
            ("superchat_sessions_disconnected_total", 1.0),
            ("superchat_disconnects_total{reason=\"slow_consumer\"}", 1.0),
            ("superchat_disconnects_total{reason=\"idle\"}", 0.0),
            ("superchat_messages_broadcast_total", 1.0),
            ("superchat_broadcast_fanout_sum{type=\"channel\"}", 7.0),
            ("superchat_broadcast_duration_seconds_sum{type=\"channel\"}", 0.5),
            ("superchat_request_duration_seconds_count{type=\"PING\"}", 1.0),
            ("superchat_outbound_queue_bytes", 60.0),
            ("superchat_db_queue_depth", 2.0),
            ("superchat_db_size_bytes", 4096.0),
            ("superchat_db_wal_bytes", 0.0),
            ("superchat_stored_messages", 7.0),
            ("superchat_registered_users", 2.0),
            ("superchat_channels", 4.0),
            ("superchat_auth_attempts_total{method=\"ssh_key\",result=\"throttled\"}", 1.0),
            ("superchat_log_dropped_total{sink=\"file\"}", 3.0),
            ("superchat_build_info{version=\"1.2.3\",commit=\"abcdef\",rustc=\"1.95\"}", 1.0),
        ] {
            assert_eq!(shown.get(series), Some(&value), "{series}");
        }
    }

    #[test]
    fn a_metric_without_a_source_is_not_shown() {
        let metrics = metrics(1);
        let name = |metric: Metric| metric.definition().name;
        let shown = strictly_read(&render(&metrics), false);
        for metric in
            [Metric::DbSize, Metric::DbCommit, Metric::Connections, Metric::JemallocActive, Metric::LogDropped]
        {
            assert!(!shown.contains_key(name(metric)), "{metric:?}");
        }
        metrics.announce(&[Metric::Connections, Metric::DbCommit]);
        let shown = strictly_read(&render(&metrics), false);
        assert_eq!(shown[name(Metric::Connections)]["superchat_connections_total{transport=\"ssh\"}"], 0.0);
        assert_eq!(shown[name(Metric::DbCommit)]["superchat_db_commit_seconds_count"], 0.0);
    }

    #[test]
    fn a_stuck_shard_shows_a_growing_lag() {
        let metrics = metrics(1);
        metrics.shards()[0].tick(1_020, 1_000, 2_000);
        let lag = |now_ms| {
            let text = metrics.render(Exposition::Text, now_ms).expect("valid families");
            value(&text, "superchat_shard_loop_lag_seconds{shard=\"0\"}")
        };
        assert_eq!((lag(1_500), lag(9_000)), (0.02, 7.0));
    }

    #[test]
    fn a_slow_provider_is_asked_once_a_second() {
        let metrics = metrics(0);
        let asked = Mutex::new(0.0);
        metrics.provide_cached(Metric::DbSize, move || {
            let mut asked = asked.lock().expect("no panic");
            *asked += 1.0;
            Some(*asked)
        });
        for (now_ms, answer) in [(0, 1.0), (999, 1.0), (1_000, 2.0)] {
            let text = metrics.render(Exposition::Text, now_ms).expect("valid families");
            assert_eq!(value(&text, "superchat_db_size_bytes"), answer, "{now_ms}");
        }
    }

    #[test]
    fn a_scrape_of_a_thousand_topics_is_quick_and_stops_nobody() {
        let metrics = metrics(2);
        for id in 0..2_000 {
            metrics.channel_topic(id).subscribed();
            metrics.thread_topic(id, 10_000 + id, 0).subscribed();
        }
        (0..10_000).for_each(|_| metrics.shards()[0].session_opened());
        let done = AtomicBool::new(false);
        let (fastest_ms, counted) = std::thread::scope(|scope| {
            let counting = scope.spawn(|| {
                let mut counted = 0.0;
                while !done.load(Ordering::Relaxed) {
                    metrics.shards()[1].received(PING);
                    counted += 1.0;
                }
                counted
            });
            let fastest_ms = (0..20).map(|_| timed_ms(|| drop(render(&metrics)))).min();
            done.store(true, Ordering::Relaxed);
            (fastest_ms, counting.join().expect("no panic"))
        });
        assert!(fastest_ms < Some(20), "{fastest_ms:?} ms");
        let text = render(&metrics);
        assert_eq!(value(&text, "superchat_pings_total"), counted);
        assert_eq!(value(&text, "superchat_active_sessions"), 10_000.0);
        let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(series("superchat_channel_subscribers{"), TOPIC_SERIES_MAX + 1);
        assert_eq!(series("superchat_thread_subscribers{"), TOPIC_SERIES_MAX + 1);
        assert_eq!(value(&text, "superchat_channel_subscribers{channel_id=\"other\"}"), 1_000.0);
        assert_eq!(value(&text, "superchat_thread_subscribers{thread_id=\"other\"}"), 1_000.0);
    }
}

mod attack {
    use super::*;

    #[test]
    fn a_panic_costs_one_answer() {
        std::panic::set_hook(Box::new(superchat::errors::hook));
        let before = superchat::errors::panics();
        let guard = guarded("panics", Limits { workers: 1, ..Limits::default() }, &metrics(0), |request| {
            assert_ne!(request.path(), "/panic", "the handler's own mistake");
            fine()
        });
        for (path, status) in [("/panic", 500), ("/", 200), ("/panic", 500), ("/", 200)] {
            assert_eq!(get(guard.address(), path).status, status);
        }
        assert_eq!(superchat::errors::panics() - before, 2);
    }

    #[test]
    fn five_hundred_slow_clients_get_sixteen_places_and_no_threads() {
        let guard = guarded("slow", Limits::default(), &metrics(0), |_| fine());
        let mut slow: Vec<TcpStream> = (0..500).map(|_| connect(guard.address())).collect();
        for stream in &mut slow {
            // The guard may have closed it already, which is its right.
            stream.write_all(b"GET / HTTP/1.1\r\nHost: loc").ok();
        }
        assert_eq!(threads_named("slow-"), 1 + Limits::default().workers);
        let answers: Vec<u16> = slow.into_iter().map(|mut stream| read_answer(&mut stream).status).collect();
        let count = |status| answers.iter().filter(|answer| **answer == status).count();
        assert_eq!(count(408), Limits::default().connections_max, "{answers:?}");
        assert!(count(503) >= 1 && count(408) + count(503) + count(0) == 500, "{answers:?}");
        assert_eq!(eventually(guard.address()), 200);
        assert_eq!(threads_named("slow-"), 1 + Limits::default().workers);
    }

    #[test]
    fn an_endless_head_is_cut_off() {
        let guard = guarded("heads", Limits::default(), &metrics(0), |_| fine());
        let line = format!("X-Filler: {}\r\n", "x".repeat(100));
        let mut polite = connect(guard.address());
        let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}", line.repeat(80));
        polite.write_all(head.as_bytes()).expect("taken");
        assert_eq!(read_answer(&mut polite).status, 431);
        let mut rude = connect(guard.address());
        while rude.write_all(line.as_bytes()).is_ok() {}
        assert_eq!(eventually(guard.address()), 200);
    }

    #[test]
    fn stalled_readers_hold_no_worker_and_lose_their_connection() {
        const BODY: usize = 8 << 20;
        const READERS: usize = 8;
        events();
        let limits = Limits { workers: 1, answer_time: Duration::from_millis(1500), ..Limits::default() };
        let guard = guarded("stalled", limits, &metrics(0), |request| match request.path() {
            "/big" => Answer::new("/big", 200, "text/plain", vec![b'x'; BODY]),
            _ => fine(),
        });
        let stalled: Vec<TcpStream> = (0..READERS).map(|_| narrow(guard.address())).collect();
        for mut stream in &stalled {
            stream.write_all(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("taken");
        }
        assert_eq!(get(guard.address(), "/").status, 200);
        wait_for_events(READERS, &["server=\"stalled\"", "did not take its answer"]);
        for mut stream in stalled {
            let mut taken = Vec::new();
            // A reset is the expected end, so the length says whether the rest was withheld.
            stream.read_to_end(&mut taken).ok();
            assert!(taken.len() < BODY, "{} bytes", taken.len());
        }
        assert_eq!(get(guard.address(), "/").status, 200);
    }

    /// Set for the process that this test gives itself, because it takes every descriptor there is.
    const ALONE: &str = "SCD_TEST_WITHOUT_DESCRIPTORS";

    #[test]
    fn a_port_without_descriptors_comes_back() {
        if std::env::var_os(ALONE).is_some() {
            return descriptors_run_out();
        }
        let this = std::env::current_exe().expect("a running test has a file");
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""])
            .arg(this)
            .args(["--exact", "attack::a_port_without_descriptors_comes_back", "--nocapture"])
            .env(ALONE, "1")
            .output()
            .expect("sh runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    fn descriptors_run_out() {
        events();
        let site = Site::open();
        assert_eq!(site.get("/metrics", "").status, 200);
        let early = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).take(100_000).collect();
        assert!(hoard.len() < 100_000, "a limit on descriptors is set");
        early.connect(&site.address.into()).expect("the backlog takes it");
        wait_for_event(&["cannot accept http connections"]);
        drop(hoard);
        let mut early = TcpStream::from(early);
        early.set_read_timeout(Some(PATIENCE)).expect("a socket");
        early.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("taken");
        assert_eq!(read_answer(&mut early).status, 200);
        assert_eq!(check(site.address, true), Ok("ok".to_owned()));
    }

    fn fine() -> Answer {
        Answer::text("/", 200, "fine")
    }
}

/// An admin port with everything behind it.
struct Site {
    server: AdminServer,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    address: SocketAddr,
}

impl Site {
    fn open() -> Self {
        Self::start(options(loopback())).expect("a free port")
    }

    fn with_token(token: &str) -> Self {
        let token = BearerToken::new(Some(token.to_owned()));
        Self::start(AdminOptions { token, ..options(loopback()) }).expect("a free port")
    }

    fn failing() -> Self {
        Self::build(options(loopback()), || Err("disk full".to_owned())).expect("a free port")
    }

    fn start(options: AdminOptions) -> Result<Self, GuardError> {
        Self::build(options, || Ok(()))
    }

    fn build(options: AdminOptions, probe: fn() -> Result<(), String>) -> Result<Self, GuardError> {
        let health = Health::new("1.2.3", 2, monotonic_ms());
        health.writer_beat(monotonic_ms());
        health.set_listening(true);
        health.set_probe(probe);
        health.set_info(|| HealthInfo {
            sessions: 42,
            channels: 7,
            server_name: "Zoo & <b>".to_owned(),
            durability: "full",
            directory_enabled: true,
            last_backup_ms: Some(1_700_000_000_000),
        });
        let metrics = metrics(2);
        let server = AdminServer::start(options, Arc::clone(&metrics), Arc::clone(&health))?;
        Ok(Self { address: server.address(), server, metrics, health })
    }

    fn get(&self, path: &str, headers: &str) -> Reply {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"))
    }

    fn ask(&self, request: &str) -> Reply {
        exchange(self.address, request)
    }

    fn json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path, "").body).expect("json")
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn options(listen: SocketAddr) -> AdminOptions {
    AdminOptions {
        listen,
        allow_remote: false,
        hosts: vec!["metrics.internal".to_owned()],
        token: BearerToken::default(),
        profiles: None,
        limits: Limits::default(),
    }
}

fn metrics(shards: usize) -> Arc<Metrics> {
    Metrics::new(MetricsOptions {
        shards,
        client_messages: &[(POST_MESSAGE, "POST_MESSAGE"), (PING, "PING")],
        server_messages: &[(ERROR, "ERROR"), (NEW_MESSAGE, "NEW_MESSAGE")],
        error_codes: &[9000, 5001],
        topic_series_max: TOPIC_SERIES_MAX,
        started_wall_ms: wall_ms(),
        jemalloc: shards == 2,
        build: BuildInfo { version: "1.2.3", commit: "abcdef", rustc: "1.95" },
    })
}

/// Moves every metric there is but those of the HTTP ports, some of them on two shards.
fn move_everything(metrics: &Metrics) {
    let [first, second] = metrics.shards() else { panic!("two shards") };
    for shard in [first, second] {
        shard.received(POST_MESSAGE);
        shard.session_opened();
        shard.tick(1_020, 1_000, 2_000);
    }
    first.received(PING);
    first.received(0xEE);
    first.sent(ERROR);
    first.sent_many(NEW_MESSAGE, 7);
    first.error(5001);
    first.error(77);
    first.disconnect(DisconnectReason::SlowConsumer);
    first.decode_error(DecodeError::UnknownType);
    first.request(PING, 80);
    first.request(0xEE, 80);
    first.post_ack(3_000);
    first.outbound_added(100);
    first.outbound_removed(40);
    let tally = FanoutTally::new(Fanout::Channel, 2, 1_000_000);
    tally.finish(first, 3, 1_100_000);
    tally.finish(second, 4, 1_500_000);
    move_the_rest(metrics);
}

fn move_the_rest(metrics: &Metrics) {
    metrics.channel_topic(5).subscribed();
    metrics.thread_topic(5, 6, monotonic_ms()).subscribed();
    metrics.channel_topic(5).delivered(3);
    metrics.store.commit(2_000, 12);
    metrics.store.sizes(4096, 0);
    metrics.store.rows(7, 2);
    metrics.set_channels(4);
    metrics.provide(Metric::DbQueueDepth, || Some(2.0));
    metrics.store.query("list_messages", 300);
    metrics.store.error(DbError::Busy);
    metrics.connections(Transport::Tcp);
    metrics.rejected(Rejection::ServerFull);
    metrics.rate_limit(RateLimit::Dm);
    metrics.auth(AuthMethod::SshKey, AuthResult::Throttled);
    for metric in [Metric::DbFreeDisk, Metric::BackupLastSuccess, Metric::Panics] {
        metrics.provide(metric, || Some(1.0));
    }
    metrics.provide_labelled(Metric::LogDropped, |samples| samples.push((vec!["file".to_owned()], 3.0)));
    for metric in [Metric::TokioAliveTasks, Metric::TokioWorkerBusy] {
        metrics.provide_labelled(metric, |samples| samples.push((vec!["0".to_owned()], 1.5)));
    }
}

fn render(metrics: &Metrics) -> String {
    metrics.render(Exposition::Text, monotonic_ms()).expect("valid families")
}

fn samples(metrics: &Metrics) -> BTreeMap<String, f64> {
    strictly_read(&render(metrics), false).into_values().flatten().collect()
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{series} is not shown"))
}

/// An answer is counted after its client has it, so a test that looks for the count waits for it.
fn wait_for_series(metrics: &Metrics, series: &str) {
    let deadline_ms = monotonic_ms() + 20_000;
    while !render(metrics).contains(series) {
        assert!(monotonic_ms() < deadline_ms, "{series} never came");
        std::thread::yield_now();
    }
}

fn timed_ms(work: impl FnOnce()) -> u64 {
    let started_ms = monotonic_ms();
    work();
    monotonic_ms() - started_ms
}

type Families = BTreeMap<String, BTreeMap<String, f64>>;

/// Reads an exposition and accepts nothing that the formats do not allow: HELP and TYPE before each family, a family once,
/// a series once, names and labels well formed, histograms complete and rising.
fn strictly_read(text: &str, open: bool) -> Families {
    let mut families = Families::new();
    let mut lines: Vec<&str> = text.strip_suffix('\n').expect("the last line ends").split('\n').collect();
    if open {
        assert_eq!(lines.pop(), Some("# EOF"));
    }
    let mut lines = lines.into_iter().peekable();
    while let Some(help) = lines.next() {
        let (name, help) =
            help.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect("HELP comes first");
        let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} "))).expect("then TYPE");
        assert!(!help.is_empty() && ["counter", "gauge", "histogram"].contains(&kind), "{name} {kind}");
        let mut series = BTreeMap::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (id, value) = line.rsplit_once(' ').expect("a value");
            assert_sample(name, kind, id, open);
            assert!(series.insert(id.to_owned(), value.parse().expect("a number")).is_none(), "{id} twice");
        }
        assert!(!series.is_empty() && series.values().all(|value: &f64| value.is_finite()), "{name}");
        if kind == "histogram" {
            assert_histogram(name, &series);
        }
        assert!(families.insert(name.to_owned(), series).is_none(), "{name} twice");
    }
    families
}

fn assert_sample(family: &str, kind: &str, id: &str, open: bool) {
    let (name, labels) = id.split_once('{').map_or((id, None), |(name, rest)| (name, rest.strip_suffix('}')));
    assert_eq!(labels.is_some(), id.contains('{'), "{id}");
    let suffix = name.strip_prefix(family).expect("a sample of this family");
    let wanted: &[&str] = match kind {
        "histogram" => &["_bucket", "_sum", "_count"],
        "counter" if open => &["_total"],
        _ => &[""],
    };
    assert!(wanted.contains(&suffix), "{id}");
    assert!(kind != "counter" || name.ends_with("_total"), "{id}");
    let mut names = BTreeSet::new();
    for label in labels.into_iter().flat_map(|labels| labels.split(',')) {
        let (label, value) = label.split_once("=\"").expect("a label");
        let value = value.strip_suffix('"').expect("a closing quote");
        assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{id}");
        assert!(!value.contains(['"', '\\', '\n']) && names.insert(label), "{id}");
        assert!(label != "le" || !open || value == "+Inf" || value.contains('.'), "{id}");
    }
}

fn assert_histogram(name: &str, series: &BTreeMap<String, f64>) {
    let prefix = format!("{name}_bucket{{");
    let mut buckets: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (id, count) in series {
        let Some(labels) = id.strip_prefix(&prefix) else { continue };
        let (labels, bound) = labels.rsplit_once("le=\"").expect("a bound");
        let bound = bound.trim_end_matches("\"}").parse().expect("a number");
        buckets.entry(labels.trim_end_matches(',')).or_default().push((bound, *count));
    }
    assert!(!buckets.is_empty(), "{name}");
    for (labels, mut counts) in buckets {
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(counts.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels}");
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        assert_eq!(counts.last(), Some(&(f64::INFINITY, series[&format!("{name}_count{braced}")])), "{name}");
        assert!(series.contains_key(&format!("{name}_sum{braced}")), "{name}");
    }
}

fn guarded(
    name: &'static str,
    limits: Limits,
    metrics: &Arc<Metrics>,
    handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
) -> Guard {
    let options = GuardOptions {
        name,
        setting: "metrics_listen",
        listen: loopback(),
        allow_remote: false,
        hosts: Vec::new(),
        posts: &[],
        limits,
    };
    let handler: Handler = Box::new(handler);
    Guard::start(options, handler, Arc::clone(metrics)).expect("a free port")
}

/// A connection whose system takes next to nothing in advance.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a socket");
    socket.connect(&address.into()).expect("the port is open");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket.into()
}

/// Asks until there is a place again.
fn eventually(address: SocketAddr) -> u16 {
    let deadline_ms = monotonic_ms() + 20_000;
    loop {
        let mut stream = connect(address);
        // A refusal may come before the request went out.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").ok();
        let status = read_answer(&mut stream).status;
        if status == 200 || monotonic_ms() > deadline_ms {
            return status;
        }
    }
}

/// Log lines of this process, so that a test can wait for one.
#[derive(Default)]
struct Events {
    lines: Mutex<Vec<String>>,
    more: Condvar,
}

fn events() -> &'static Events {
    static EVENTS: OnceLock<Events> = OnceLock::new();
    EVENTS.get_or_init(|| {
        use tracing_subscriber::layer::SubscriberExt;
        let subscriber = tracing_subscriber::registry().with(Recorder);
        tracing::subscriber::set_global_default(subscriber).expect("nobody else installs one");
        Events::default()
    })
}

fn wait_for_event(parts: &[&str]) {
    wait_for_events(1, parts);
}

fn wait_for_events(count: usize, parts: &[&str]) {
    let events = events();
    let lines = events.lines.lock().expect("no panic");
    let missing = |lines: &mut Vec<String>| {
        lines.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count() < count
    };
    let (lines, waited) = events.more.wait_timeout_while(lines, PATIENCE, missing).expect("no panic");
    assert!(!waited.timed_out(), "{count} of {parts:?} in {lines:#?}");
}

struct Recorder;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Recorder {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let mut line = Line(event.metadata().target().to_owned());
        event.record(&mut line);
        let events = events();
        events.lines.lock().expect("no panic").push(line.0);
        events.more.notify_all();
    }
}

struct Line(String);

impl tracing::field::Visit for Line {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {field}={value:?}").expect("memory");
    }
}
