//! The profiles port as operators, their tools and their enemies meet it, and what Go's own tool makes of every profile.
//!
//! [`work`] is a program with known functions that allocate, wait, spin and spawn: it is this test binary itself, with the
//! port open. [`tool`] is `go tool pprof`; [`site`], [`attack`], [`scrapers`], [`found`], [`release`] and [`scripts`] are
//! the tests.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]

mod support;

#[path = "profiles/attack.rs"]
mod attack;
#[path = "profiles/found.rs"]
mod found;
#[path = "profiles/release.rs"]
mod release;
#[path = "profiles/scrapers.rs"]
mod scrapers;
#[path = "profiles/scripts.rs"]
mod scripts;
#[path = "profiles/site.rs"]
mod site;
#[path = "profiles/tool.rs"]
mod tool;
#[path = "profiles/work.rs"]
mod work;

use std::net::SocketAddr;
use std::sync::Arc;

use superchat::admin::BearerToken;
use superchat::admin::profiles::{ProfileOptions, ProfileServer};
use superchat::clock::wall_ms;
use superchat::metrics::{BuildInfo, Metrics, MetricsOptions, TOPIC_SERIES_MAX};

use support::http::{Reply, exchange};

/// As in `main`: the heap profiles are the allocator's.
#[expect(
    unsafe_code,
    reason = "the allocator reads its options from a symbol of this name; a slice begins with its pointer"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8] = b"prof:true,prof_active:true,lg_prof_sample:19,prof_accum:true\0";

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A profiles port of this process.
pub struct Site {
    pub address: SocketAddr,
    pub metrics: Arc<Metrics>,
    pub server: ProfileServer,
}

impl Site {
    pub fn open() -> Self {
        Self::start(BearerToken::default())
    }

    pub fn with_token(token: &str) -> Self {
        Self::start(BearerToken::new(Some(token.to_owned())))
    }

    fn start(token: BearerToken) -> Self {
        let metrics = metrics();
        let options = ProfileOptions::new(SocketAddr::from(([127, 0, 0, 1], 0)), token);
        let server = ProfileServer::start(options, Arc::clone(&metrics)).unwrap();
        Self { address: server.address(), metrics, server }
    }

    /// What the tool is given.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/debug/pprof/{path}", self.address)
    }

    /// `path` below `/debug/pprof/`.
    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "")
    }

    /// With further headers, each with its line end.
    pub fn ask(&self, method: &str, path: &str, headers: &str) -> Reply {
        let host = self.address;
        exchange(host, &format!("{method} /debug/pprof/{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"))
    }
}

pub fn metrics() -> Arc<Metrics> {
    Metrics::new(MetricsOptions {
        shards: 0,
        client_messages: &[],
        server_messages: &[],
        error_codes: &[],
        topic_series_max: TOPIC_SERIES_MAX,
        started_wall_ms: wall_ms(),
        jemalloc: false,
        build: BuildInfo { version: "1.2.3", commit: "abcdef", rustc: "1.95" },
    })
}

/// The first bytes of every gzip file.
pub const GZIP: [u8; 2] = [0x1f, 0x8b];

/// An address on loopback whose port nobody listens on.
pub fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], support::server::free_port()))
}
