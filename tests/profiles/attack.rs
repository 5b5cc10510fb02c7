//! Clients that want too much, or leave.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::clock::{instant, poll};
use crate::support::http::{PATIENCE, connect, read_answer};
use crate::{GZIP, Site};

const BUSY: &str = "Could not enable CPU profiling: cpu profiling already in use\n";

#[test]
fn a_second_cpu_profile_is_refused_as_go_does_it() {
    let site = Site::open();
    let first = hold(&site, "profile?seconds=2");
    for path in ["profile?seconds=1", "flamegraph?seconds=1"] {
        let second = site.get(path);
        assert_eq!((second.status, second.header("x-go-pprof")), (500, Some("1")), "{path}");
        assert_eq!(second.body, BUSY, "{path}");
    }
    let first = answer(first);
    assert!(first.status == 200 && first.bytes.starts_with(&GZIP), "the first one is not disturbed: {}", first.body);
    assert_eq!(site.get("profile?seconds=1").status, 200);
}

#[test]
fn a_second_difference_of_a_kind_is_refused_and_a_look_is_not() {
    let site = Site::open();
    let first = hold(&site, "heap?seconds=2");
    let refused = site.get("heap?seconds=1");
    assert_eq!((refused.status, refused.body.as_str()), (500, "Could not record heap: heap already in use\n"));
    assert_eq!(site.get("heap").status, 200);
    assert_eq!(answer(first).status, 200);
}

#[test]
fn profiling_stops_when_its_client_leaves() {
    let site = Site::open();
    for path in ["profile?seconds=300", "heap?seconds=300", "flamegraph?seconds=300"] {
        drop(hold(&site, path));
        let again = poll(PATIENCE, || (site.get(&short(path)).status == 200).then_some(()));
        assert_eq!(again, Some(()), "{path}: nobody waits for it, and it still runs");
    }
}

#[test]
fn a_client_that_only_listens_counts_as_gone() {
    let site = Site::open();
    let begun = instant();
    let profile = hold(&site, "profile?seconds=200");
    profile.shutdown(Shutdown::Write).unwrap();
    // As with Go's server, what was recorded until then is delivered.
    let profile = answer(profile);
    assert!(profile.status == 200 && profile.bytes.starts_with(&GZIP), "{}", profile.body);
    let difference = request(&site, "heap?seconds=200");
    difference.shutdown(Shutdown::Write).unwrap();
    let difference = answer(difference);
    assert_eq!((difference.status, difference.body.as_str()), (500, "context canceled\n"));
    assert!(begun.elapsed() < Duration::from_secs(100));
}

#[test]
fn a_client_that_floods_while_it_waits_counts_as_gone() {
    let site = Site::open();
    let mut stream = hold(&site, "profile?seconds=200");
    // The guard may close it meanwhile, which is its right.
    stream.write_all(&[b'x'; 1 << 20]).ok();
    poll(PATIENCE, || (site.get("profile?seconds=1").status == 200).then_some(())).unwrap();
}

#[test]
fn everything_at_once_leaves_workers_for_others() {
    let site = Site::open();
    let long = ["allocs", "block", "goroutine", "heap", "mutex", "profile", "threadcreate"];
    let streams = long.map(|name| hold(&site, &format!("{name}?seconds=30")));
    let begun = instant();
    for path in ["", "cmdline", "heap?debug=1", "goroutine?debug=2"] {
        assert_eq!(site.get(path).status, 200, "{path}");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(streams);
}

#[test]
fn five_hundred_slow_connections_get_sixteen_places_and_no_threads() {
    let site = Site::open();
    let threads = || crate::support::threads_named("profiles-");
    poll(PATIENCE, || (threads() == 10).then_some(())).unwrap();
    let mut slow: Vec<TcpStream> = (0..500).map(|_| connect(site.address)).collect();
    for stream in &mut slow {
        // The guard may have closed it already, which is its right.
        stream.write_all(b"GET /debug/pprof/heap HTTP/1.1\r\nHost: loc").ok();
    }
    assert_eq!(threads(), 10);
    let answers: Vec<u16> = slow.into_iter().map(|mut stream| read_answer(&mut stream).status).collect();
    let count = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!(count(408), 16, "{answers:?}");
    assert!(count(503) >= 1 && count(408) + count(503) + count(0) == 500, "{answers:?}");
    assert_eq!(poll(PATIENCE, || (site.get("heap").status == 200).then_some(())), Some(()));
}

#[test]
fn a_query_of_any_length_is_bounded() {
    let site = Site::open();
    assert_eq!(site.get(&format!("heap?{}", "x".repeat(7_000))).status, 200);
    assert_eq!(site.get(&format!("heap?seconds={}", "9".repeat(7_000))).status, 400);
    assert_eq!(site.get(&format!("heap?{}", "x".repeat(9_000))).status, 431);
}

#[test]
fn stopping_ends_what_is_recorded() {
    let site = Site::open();
    let stream = hold(&site, "profile?seconds=300");
    site.server.stop();
    assert_eq!(answer(stream).status, 0);
    let next = Site::open();
    poll(PATIENCE, || (next.get("profile?seconds=1").status == 200).then_some(())).unwrap();
}

/// Sends a request, whose answer may take its time.
fn request(site: &Site, path: &str) -> TcpStream {
    let mut stream = connect(site.address);
    write!(stream, "GET /debug/pprof/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> crate::support::http::Reply {
    read_answer(&mut stream)
}

/// A request that is being recorded now. Whether it is can only be asked by a request that may be first itself; then the
/// one before it has been refused, and another one is sent.
fn hold(site: &Site, path: &str) -> TcpStream {
    let held = poll(PATIENCE, || {
        let stream = request(site, path);
        (site.get(&short(path)).status == 500).then_some(stream)
    });
    held.unwrap_or_else(|| panic!("{path} was never recorded"))
}

/// The same for one second.
fn short(path: &str) -> String {
    let (name, _) = path.split_once('=').unwrap();
    format!("{name}=1")
}
