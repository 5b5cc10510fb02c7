//! Error tracking as the server of reports sees it: what arrives, what never does, and what happens when that server is
//! slow, full or gone.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};
use superchat::errors::{self, Options, Tracker};
use superchat::ids::ChannelId;
use superchat::log::{self, LogOptions, Logging, Sink};
use superchat::passwords::{DeliverHash, HashJob, HashOutcome, Passwords, Pool};
use superchat::store::Ticket;
use superchat::supervise;
use superchat::wire::client::{AuthRequest, PostMessage, SetNickname};
use superchat::wire::codec::Bounded;
use support::{Client, Server, Settings, clock};
use tempfile::TempDir;
use tracing::dispatcher::{Dispatch, with_default};
use tracing::{debug, error, info, warn};

const LIMIT: Duration = Duration::from_secs(30);
const CHANNEL: ChannelId = ChannelId(1);
const SECRET_TEXT: &str = "the-secret-of-the-message";
const SECRET_HASH: &[u8] = b"$2a$10$0123456789012345678901234567890123456789";

/// What the collector answers, in turn; the last one for all that follow.
type Script = &'static [&'static str];

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

/// A server of reports.
struct Collector {
    address: SocketAddr,
    posts: Receiver<Post>,
}

/// One request to it.
struct Post {
    head: Vec<String>,
    body: String,
}

impl Collector {
    fn start(script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, posts) = sync_channel(1000);
        let mut answers = script.iter().chain(std::iter::repeat(script.last().unwrap()));
        let serve = move || {
            while let Ok((stream, _)) = listener.accept() {
                serve(&stream, &mut answers, &sender);
            }
        };
        supervise::spawn("sentry-stub", serve).unwrap();
        Self { address, posts }
    }

    fn dsn(&self) -> String {
        format!("http://0a1b2c3d@{}/42", self.address)
    }

    /// The next report: the whole request, and the event in it.
    fn next(&self) -> (Post, Value) {
        let post = self.posts.recv_timeout(LIMIT).expect("a report");
        let event = post.event();
        (post, event)
    }
}

/// All requests of one connection; an empty answer is none, for ever.
fn serve<'a>(stream: &TcpStream, answers: &mut impl Iterator<Item = &'a &'static str>, posts: &SyncSender<Post>) {
    let mut reader = BufReader::new(stream);
    while let Some(post) = read_post(&mut reader) {
        let answer = answers.next().unwrap();
        // A test that has seen enough does not listen any more.
        if posts.send(post).is_err() {
            return;
        }
        if answer.is_empty() {
            // Its reader waits as long as it likes; a closed connection ends this.
            let _closed = reader.read_to_end(&mut Vec::new());
            return;
        }
        if (&*stream).write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_post(reader: &mut BufReader<&TcpStream>) -> Option<Post> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let mut post = Post { head, body: String::new() };
    let mut body = vec![0; post.header("content-length").unwrap().parse().unwrap()];
    reader.read_exact(&mut body).ok()?;
    post.body = String::from_utf8(body).unwrap();
    Some(post)
}

impl Post {
    fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head.iter().filter_map(|line| line.split_once(": "));
        headers.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// The event of the envelope, whose form is checked.
    fn event(&self) -> Value {
        let [head, item, event] = self.body.lines().collect::<Vec<_>>()[..] else { panic!("{}", self.body) };
        let [head, item]: [Value; 2] = [head, item].map(|line| serde_json::from_str(line).unwrap());
        assert_eq!((&item["type"], &item["length"]), (&json!("event"), &json!(event.len())));
        let event: Value = serde_json::from_str(event).unwrap();
        assert_eq!(head["event_id"], event["event_id"]);
        assert!(head["sent_at"].as_str().is_some_and(|at| at.parse::<jiff::Timestamp>().is_ok()), "{head}");
        event
    }
}

/// A log with error tracking, in this process.
struct Tracked {
    _directory: TempDir,
    dispatch: Dispatch,
    log: Logging,
    tracker: Tracker,
}

impl Tracked {
    fn by(dsn: &str) -> Self {
        let options = Options {
            dsn: dsn.parse().unwrap(),
            release: "superchat@1.2.3".to_owned(),
            environment: "testing".to_owned(),
        };
        let (tracker, tap) = Tracker::start(options).unwrap();
        let directory = TempDir::new().unwrap();
        let mut options = LogOptions::new(directory.path(), directory.path());
        (options.stdout, options.journal, options.tap) = (None, None, Some(tap));
        let (subscriber, log) = log::build(options).unwrap();
        Self { _directory: directory, dispatch: Dispatch::new(subscriber), log, tracker }
    }

    fn log(&self, events: impl FnOnce()) {
        with_default(&self.dispatch, events);
        assert!(self.log.drain(Sink::File, LIMIT));
    }
}

fn crumbs(event: &Value) -> Vec<&str> {
    event["breadcrumbs"]["values"].as_array().unwrap().iter().map(|crumb| crumb["message"].as_str().unwrap()).collect()
}

#[test]
fn an_error_arrives_with_what_came_before_it() {
    let collector = Collector::start(&[OK]);
    let tracked = Tracked::by(&collector.dsn());
    tracked.log(|| {
        debug!("too fine");
        info!("Connection from 192.0.2.77:5000");
        warn!(target: "security", session = 5, "slow");
        error!(session = 5, user = "bob", remote = "192.0.2.77", code = 7, "it broke for 2001:db8:1:2::3");
    });
    let (post, event) = collector.next();
    assert_eq!(post.head[0], concat!("POST /", "api/42/envelope/ HTTP/1.1"));
    assert_eq!(post.header("content-type"), Some("application/x-sentry-envelope"));
    let client = concat!("superchat/", env!("CARGO_PKG_VERSION"));
    let authorization = format!("Sentry sentry_version=7, sentry_client={client}, sentry_key=0a1b2c3d");
    assert_eq!((post.header("x-sentry-auth"), post.header("user-agent")), (Some(&*authorization), Some(client)));
    assert_eq!(
        (&event["level"], &event["platform"], &event["release"], &event["environment"], &event["logger"]),
        (&json!("error"), &json!("native"), &json!("superchat@1.2.3"), &json!("testing"), &json!("sentry")),
    );
    assert_eq!(event["logentry"]["formatted"], "it broke for 2001:db8:1::");
    assert_eq!(event["tags"], json!({ "session": "5", "user": "bob", "remote": "192.0.2.0" }));
    assert_eq!(event["extra"], json!({ "code": 7 }));
    assert_eq!(crumbs(&event), ["Connection from 192.0.2.0:5000", "slow"]);
    let crumb = &event["breadcrumbs"]["values"][1];
    assert_eq!(
        (&crumb["level"], &crumb["category"], &crumb["data"]),
        (&json!("warning"), &json!("security"), &json!({ "session": 5 })),
    );
}

#[test]
fn only_the_newest_breadcrumbs_go_along() {
    let collector = Collector::start(&[OK]);
    Tracked::by(&collector.dsn()).log(|| {
        (0..200).for_each(|number| info!("crumb {number}"));
        error!("broken");
    });
    let (_, event) = collector.next();
    let crumbs = crumbs(&event);
    assert_eq!((crumbs.len(), crumbs[0], crumbs[49]), (50, "crumb 150", "crumb 199"));
}

#[test]
fn a_panic_arrives_with_its_stack_and_without_what_it_was_about() {
    #[inline(never)]
    fn somewhere_deep(content: &str) -> usize {
        content.parse::<u8>().map(usize::from).expect("a number")
    }
    let collector = Collector::start(&[OK]);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(errors::hook));
    let tracked = Tracked::by(&collector.dsn());
    tracked.log(|| {
        let _context = log::enter(log::Context {
            session: 5,
            request: 77,
            user: None,
            channel: None,
            remote: Ipv4Addr::LOCALHOST.into(),
        });
        catch_unwind(|| somewhere_deep(SECRET_TEXT)).unwrap_err();
        catch_unwind(|| SECRET_TEXT.split_at(1000).0.len()).unwrap_err();
    });
    std::panic::set_hook(usual);
    let (_, event) = collector.next();
    let exception = &event["exception"]["values"][0];
    assert_eq!((&event["level"], &exception["type"]), (&json!("fatal"), &json!("panic")));
    assert_eq!(exception["value"], "panic: a number");
    assert_eq!((&event["tags"]["session"], &event["tags"]["request"]), (&json!("5"), &json!("77")));
    assert!(event["extra"]["place"].as_str().unwrap().starts_with("tests/sentry.rs:"), "{event}");
    let frames = exception["stacktrace"]["frames"].as_array().unwrap();
    let newest = frames.last().unwrap();
    assert!(newest["function"].as_str().unwrap().contains("somewhere_deep"), "{newest}");
    assert!(newest["lineno"].is_u64() && newest["filename"].as_str().unwrap().ends_with("tests/sentry.rs"), "{newest}");
    assert_eq!(newest["in_app"], true);
    let (post, _) = collector.next();
    assert!(!post.body.contains(SECRET_TEXT), "{}", post.body);
}

#[test]
fn panics_of_all_threads_are_counted_caught_or_not() {
    struct Broken;
    impl DeliverHash for Broken {
        fn hashed(&self, _: Ticket, _: HashOutcome) {
            panic!("the shards are gone");
        }
    }
    std::panic::set_hook(Box::new(errors::hook));
    let before = errors::panics();
    catch_unwind(|| panic!("caught")).unwrap_err();
    supervise::spawn("log-file", || panic!("uncaught")).unwrap().join().unwrap_err();
    let deliver: Arc<dyn DeliverHash> = Arc::new(Broken);
    let passwords = Pool::start(1, &deliver).unwrap();
    let job = HashJob::Verify { secret: Box::default(), stored: Some("no hash".into()) };
    passwords.submit(Ticket { shard: 0, token: 0 }, job).unwrap();
    passwords.stop();
    assert_eq!(errors::panics() - before, 3);
}

#[test]
fn a_full_server_is_left_alone_and_gets_the_report_later() {
    const FULL: &str = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n";
    let collector = Collector::start(&[FULL, OK]);
    let tracked = Tracked::by(&collector.dsn());
    let began = clock::instant();
    tracked.log(|| error!("broken"));
    let ((_, first), (_, second)) = (collector.next(), collector.next());
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(first["event_id"], second["event_id"]);
    assert!(tracked.tracker.stop(LIMIT), "nothing is left");
}

#[test]
fn a_refused_report_is_not_sent_again() {
    let collector = Collector::start(&["HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", OK]);
    let tracked = Tracked::by(&collector.dsn());
    tracked.log(|| {
        error!("one");
        error!("two");
    });
    let texts = [collector.next(), collector.next()].map(|(_, event)| event["logentry"]["formatted"].clone());
    assert_eq!(texts, ["one", "two"]);
    assert!(tracked.tracker.stop(LIMIT));
    assert!(collector.posts.try_recv().is_err());
}

#[test]
fn stopping_delivers_what_waits_and_gives_up_on_a_server_that_does_not_answer() {
    let collector = Collector::start(&[OK]);
    let tracked = Tracked::by(&collector.dsn());
    tracked.log(|| (0..20).for_each(|number| error!(number, "broken")));
    assert!(tracked.tracker.stop(LIMIT));
    assert_eq!(collector.posts.try_iter().count(), 20);

    let silent = Collector::start(&[""]);
    let tracked = Tracked::by(&silent.dsn());
    tracked.log(|| error!("broken"));
    silent.next();
    let began = clock::instant();
    assert!(!tracked.tracker.stop(Duration::from_millis(50)));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn an_https_address_is_spoken_to_by_tls() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let tracked = Tracked::by(&format!("https://0a1b2c3d@{}/42", listener.local_addr().unwrap()));
    tracked.log(|| error!("broken"));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut hello = [0; 3];
    stream.read_exact(&mut hello).unwrap();
    // A handshake record of any version 3.
    assert_eq!(hello[..2], [22, 3]);
}

fn reporting_to(dsn: &str) -> Settings {
    Settings::new().environment("SENTRY_DSN", dsn).environment("SENTRY_ENVIRONMENT", "staging")
}

fn post(client: &mut Client, text: &str) {
    let content = Bounded(text.as_bytes());
    client.send(PostMessage { channel_id: CHANNEL, subchannel_id: None, parent_id: None, content });
}

/// Takes away what every post needs.
fn break_database(server: &Server) {
    let database = Connection::open(server.database()).unwrap();
    database.busy_timeout(LIMIT).unwrap();
    database.execute_batch("PRAGMA foreign_keys = OFF; DROP TABLE Message").unwrap();
}

#[test]
fn a_failing_database_is_reported_and_what_clients_do_wrong_is_not() {
    let collector = Collector::start(&[OK]);
    let mut server = Server::start(reporting_to(&collector.dsn()));
    let mut alice = server.client_named("alice");
    misbehave(&server);
    post(&mut alice, SECRET_TEXT);
    alice.expect_reply("MESSAGE_POSTED");
    break_database(&server);
    post(&mut alice, SECRET_TEXT);
    alice.expect_error(9001);

    let (post, event) = collector.next();
    let text = event["logentry"]["formatted"].as_str().unwrap();
    assert!(text.ends_with("the database"), "the first report is of the failing database: {event}");
    let release = concat!("superchat@", env!("CARGO_PKG_VERSION"));
    assert_eq!((&event["release"], &event["environment"]), (&json!(release), &json!("staging")));
    let crumbs = crumbs(&event);
    assert!(crumbs.contains(&"Session 2 set nickname: alice"), "{crumbs:?}");
    assert!(crumbs.iter().any(|crumb| crumb.starts_with("Connection from 127.0.0.0:")), "{crumbs:?}");
    let kept = ["127.0.0.1", SECRET_TEXT, std::str::from_utf8(SECRET_HASH).unwrap(), "0a1b2c3d"];
    for secret in kept {
        assert!(!post.body.contains(secret), "{secret}: {}", post.body);
    }
    server.stop();
}

/// Everything that goes wrong on a client's side alone.
fn misbehave(server: &Server) {
    let mut broken = server.client();
    broken.send_raw(&[0xFF; 64]);
    broken.expect_close();
    let mut guesser = server.client();
    guesser.send(AuthRequest { nickname: b"alice", password_hash: SECRET_HASH });
    guesser.expect_reply("AUTH_RESPONSE");
    guesser.send(SetNickname { nickname: Bounded(b"not valid!") });
    guesser.expect_reply("NICKNAME_RESPONSE");
    let reset = TcpStream::connect(server.address()).unwrap();
    reset.set_linger_zero();
    drop(reset);
    let half = TcpStream::connect(server.address()).unwrap();
    (&half).write_all(&[0, 0]).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut end = Vec::new();
    (&half).read_to_end(&mut end).unwrap();
}

trait Reset {
    fn set_linger_zero(&self);
}

impl Reset for TcpStream {
    /// Closing then resets the connection.
    fn set_linger_zero(&self) {
        socket2::SockRef::from(self).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A server whose reports lead to `dsn` serves, fails where it must, and stops in time.
fn check_undisturbed(dsn: &str) {
    let mut server = Server::start(reporting_to(dsn));
    let mut alice = server.client_named("alice");
    break_database(&server);
    for _ in 0..20 {
        post(&mut alice, "hello");
        alice.expect_error(9001);
    }
    let began = clock::instant();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_silent_or_missing_server_of_reports_disturbs_nobody() {
    let silent = Collector::start(&[""]);
    check_undisturbed(&silent.dsn());
    assert!(silent.posts.try_recv().is_ok(), "it was asked");
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    check_undisturbed(&format!("http://0a1b2c3d@{gone}/42"));
}

#[test]
fn a_wrong_address_is_a_warning_and_none_is_silence() {
    let mut server = Server::start(reporting_to("not-an-address"));
    assert_eq!(server.stop(), Some(0));
    let output = server.output();
    assert!(output.contains("[WARN] errors are not reported: sentry_dsn: it has no scheme"), "{output}");
    assert!(!output.contains("not-an-address"), "{output}");
    server.reconfigure(Settings::new());
    server.resume();
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let names: Vec<String> = threads.map(|task| name(task.unwrap())).collect();
    assert!(
        names.iter().any(|name| name == "scd-writer\n") && !names.contains(&"scd-errors\n".to_owned()),
        "{names:?}"
    );
}
