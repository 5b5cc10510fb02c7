//! Profiles of every kind, one after the other without a pause, from a server that does all it can at the same time: it
//! goes on, every message arrives once and in order, and every profile can be read.
//!
//! `SCD_PROFILE_STRESS_SECONDS` sets how long: a few seconds among the other tests, five minutes in `scripts/check.sh`, an
//! hour when somebody wants to know.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "how much was done")]

// The load generator's sockets: one thread that drives any number of clients.
#[allow(dead_code, reason = "what only the scenarios use")]
#[path = "../benches/support/mod.rs"]
mod load;
#[allow(dead_code, reason = "what only other tests ask for")]
#[path = "support/pprof.rs"]
mod pprof;
#[path = "support/mod.rs"]
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use superchat::wire::server::{NicknameResponse, SubscribeOk};

use load::deliveries::Deliveries;
use load::requests::{self, CHAT, CONTENT_BYTES};
use load::swarm::Swarm;
use load::{clock, process};
use support::{Server, Settings, http};

const SECONDS: u64 = 5;
const SUBSCRIBERS: usize = 100;
/// Posts that the slowest subscriber does not have yet.
const WINDOW: u64 = 512;
const POLL_PAUSE: Duration = Duration::from_millis(5);
const TAIL_LIMIT: Duration = Duration::from_secs(30);

/// What each reader asks for in turn. CPU samples have a reader of their own, because they are there once at a time.
const READERS: [&[&str]; 3] = [
    &["profile?seconds=1&hz=250"],
    &["heap", "allocs", "heap?seconds=1"],
    &["goroutine", "threadcreate", "block", "mutex", "goroutine?debug=2"],
];

#[test]
fn profiled_all_the_time_under_full_load_it_goes_on_and_loses_no_message() {
    process::raise_descriptor_limit().unwrap();
    // Subscribers only listen, which for longer than two minutes would be too long.
    let settings =
        Settings::new().set("admin", "profile_listen", "127.0.0.1:0").set("limits", "session_timeout_seconds", 0);
    let mut server = Server::start(settings);
    let profiles = told_port(&server);
    record_waits(profiles);
    let ends = clock::now() + seconds();

    let (counts, posts) = thread::scope(|scope| {
        let readers = READERS.map(|paths| scope.spawn(move || read_until(ends, profiles, paths)));
        let posts = post_until(ends, server.address());
        (readers.map(|reader| reader.join().unwrap()), posts)
    });
    println!("{posts} posts to {SUBSCRIBERS} subscribers each, profiles by reader: {counts:?}");
    assert_eq!(server.stop(), Some(0), "{}", server.output());
}

fn seconds() -> Duration {
    let set = std::env::var("SCD_PROFILE_STRESS_SECONDS").map(|text| text.parse().unwrap());
    Duration::from_secs(set.unwrap_or(SECONDS))
}

/// As the server says it, because it took a free one.
fn told_port(server: &Server) -> SocketAddr {
    let output = server.output();
    let (_, rest) = output.split_once("Profile server listening on :").expect("the profiles port is open");
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    (Ipv4Addr::LOCALHOST, port.parse().unwrap()).into()
}

/// Every wait and every tenth contended lock, so that these profiles walk stacks too.
fn record_waits(profiles: SocketAddr) {
    for path in ["block?rate=1", "mutex?fraction=10"] {
        let reply = http::exchange(
            profiles,
            &format!("POST /debug/pprof/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"),
        );
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    }
}

/// Takes profiles without a pause; how many.
fn read_until(ends: Instant, profiles: SocketAddr, paths: &[&str]) -> u64 {
    let mut count = 0;
    while clock::now() < ends {
        for path in paths {
            let reply = http::get(profiles, &format!("/debug/pprof/{path}"));
            assert_eq!(reply.status, 200, "{path}: {}", reply.body);
            check(path, &reply.bytes);
            count += 1;
        }
    }
    count
}

fn check(path: &str, body: &[u8]) {
    if path.contains("debug=") {
        assert!(body.len() > 1000, "{}", String::from_utf8_lossy(body));
        return;
    }
    let profile = pprof::decode(body);
    match path {
        "profile?seconds=1&hz=250" => {
            assert!(profile.sum("cpu", "") > 0, "a busy server uses its processors");
            let lost = profile.comments.iter().find(|comment| comment.contains("lost"));
            assert_eq!(lost, None);
        }
        "heap" | "allocs" => assert!(profile.sum("alloc_space", "") > 0),
        "threadcreate" => assert!(profile.sum("threadcreate", "") > 5),
        _ => {}
    }
}

/// Posts as fast as the slowest of the subscribers receives; how many posts. Each of them must reach everybody.
fn post_until(ends: Instant, address: SocketAddr) -> u64 {
    let mut swarm = Swarm::new().unwrap();
    let subscribers = swarm.connect(address, SUBSCRIBERS).unwrap();
    let subscribe = requests::subscribe(CHAT).unwrap();
    swarm.ask_each(subscribers, SubscribeOk::CODE, |_| Ok(subscribe.clone())).unwrap();
    let publisher: Range<usize> = swarm.connect(address, 1).unwrap();
    swarm.ask_each(publisher.clone(), NicknameResponse::CODE, |_| requests::set_nickname("publisher")).unwrap();
    let post = requests::post(CHAT, &[b'm'; CONTENT_BYTES]).unwrap();

    let mut deliveries = Deliveries::new(SUBSCRIBERS);
    while clock::now() < ends {
        let room = WINDOW - (deliveries.posts - deliveries.least());
        if room > WINDOW / 4 {
            deliveries.posts += room;
            swarm.send(publisher.start, &post.repeat(usize::try_from(room).unwrap())).unwrap();
        }
        swarm.poll(&mut deliveries, POLL_PAUSE).unwrap();
    }
    swarm.run(&mut deliveries, TAIL_LIMIT).unwrap();
    let given_up = clock::now() + TAIL_LIMIT;
    while deliveries.acknowledged() < deliveries.posts && clock::now() < given_up {
        swarm.poll(&mut deliveries, POLL_PAUSE).unwrap();
    }
    assert_eq!(deliveries.acknowledged(), deliveries.posts);
    deliveries.posts
}
