//! Requests equal to those of the usual continuous profilers with their default settings.

use crate::support::http::exchange;
use crate::{GZIP, Site};

/// What Parca asks for, by its default `pprof_config`. Differences last as long as the scrape interval, here one second.
const PARCA: &[&str] = &["allocs", "block", "goroutine", "mutex", "profile?seconds=1"];
/// What Grafana Alloy's `pyroscope.scrape` asks for, which is Pyroscope's way of pulling.
const ALLOY: &[&str] = &["allocs", "block", "goroutine", "mutex", "profile?seconds=1"];
/// Profiles that both ask for once they are told to take differences.
const DIFFERENCES: &[&str] = &["allocs?seconds=1", "block?seconds=1", "heap?seconds=1", "mutex?seconds=1"];

#[test]
fn parca_gets_what_it_scrapes_by_default() {
    scrape("conprof/0.24.0", PARCA);
}

#[test]
fn alloy_gets_what_it_scrapes_by_default() {
    scrape("Alloy/v1.20.0 (linux; docker)", ALLOY);
}

#[test]
fn differences_are_scraped_too() {
    scrape("conprof/0.24.0", DIFFERENCES);
}

/// Both are programs of Go: its HTTP client adds the encoding, and takes any answer of 200 with a body as a profile.
fn scrape(agent: &str, paths: &[&str]) {
    let site = Site::open();
    for path in paths {
        let host = site.address;
        let head = format!("GET /debug/pprof/{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\n");
        let answer = exchange(host, &(head + "Accept-Encoding: gzip\r\n\r\n"));
        assert_eq!((answer.status, answer.header("content-encoding")), (200, None), "{path}: {}", answer.body);
        assert!(answer.bytes.starts_with(&GZIP), "{path}: {}", answer.body);
        let length = answer.bytes.len().to_string();
        assert_eq!(answer.header("content-length"), Some(length.as_str()), "{path}");
    }
}
