//! The profiles port: what Go's `net/http/pprof` serves, under the same paths, for the tools that know it.
//!
//! A profile that is recorded over a time, whether CPU samples or the difference between two looks, exists once at a time;
//! a look at this moment is always possible. That bounds what clients can cause, and leaves workers for everybody else.

mod page;
mod parameters;
mod snapshot;

use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::guard::{Answer, Guard, GuardError, GuardOptions, Limits, Request};
use super::{BearerToken, HTML};
use crate::metrics::Metrics;
use crate::profile::{Profile, cpu, encode, flamegraph, symbols};
use snapshot::{SNAPSHOTS, Snapshot};

/// Every path that is served here, in the order of the index.
const ROUTES: &[Route] = &[
    Route { path: "/debug/pprof/", about: "this page", answer: page::index },
    Route { path: "/debug/pprof/allocs", about: "sampled allocations since the start", answer: snapshot },
    Route {
        path: "/debug/pprof/block",
        about: "where the server waited: for answers of the database, of password threads, for slow readers",
        answer: snapshot,
    },
    Route { path: "/debug/pprof/cmdline", about: "the command line, its words separated by NUL", answer: cmdline },
    Route {
        path: "/debug/pprof/flamegraph",
        about: "CPU samples as a picture; ?profile= names another profile, ?type= another of its values",
        answer: flame_graph,
    },
    Route {
        path: "/debug/pprof/goroutine",
        about: "what every task and every thread is doing; ?debug=2 lists them one by one",
        answer: snapshot,
    },
    Route { path: "/debug/pprof/heap", about: "sampled allocations that are still in use", answer: snapshot },
    Route { path: "/debug/pprof/mutex", about: "where threads waited for locks", answer: snapshot },
    Route {
        path: "/debug/pprof/profile",
        about: "CPU samples of all threads; ?seconds=, 30 by default, and ?hz=, 100 by default",
        answer: profile,
    },
    Route {
        path: "/debug/pprof/symbol",
        about: "names of functions for addresses in the query or the body, separated by +",
        answer: symbol,
    },
    Route { path: "/debug/pprof/threadcreate", about: "where the threads were started", answer: snapshot },
    Route { path: "/debug/pprof/trace", about: "not served, and says why", answer: trace },
    Route { path: "/debug/pprof", about: "leads to the list", answer: moved },
    Route { path: "/", about: "leads to the list", answer: moved },
];

struct Route {
    path: &'static str,
    about: &'static str,
    answer: fn(&Site, &'static Route, &Request) -> Result<Answer, Trouble>,
}

impl Route {
    /// What follows the last slash.
    fn name(&self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// Paths that take POST: addresses in a body, and how much is recorded.
const POSTS: &[&str] = &["/debug/pprof/symbol", "/debug/pprof/block", "/debug/pprof/heap", "/debug/pprof/mutex"];

/// The port's name in metrics and threads.
const SERVER: &str = "profiles";
const BINARY: &str = "application/octet-stream";
const TEXT: &str = "text/plain; charset=utf-8";
/// Above this many addresses the rest of a request for symbols is not looked at.
const SYMBOLS_MAX: usize = 10_000;

/// What [`ProfileServer::start`] has to know.
#[derive(Clone)]
pub struct ProfileOptions {
    /// Address and port; port 0 takes a free one. An address other than loopback needs a token.
    pub listen: SocketAddr,
    /// What every page asks for.
    pub token: BearerToken,
    /// What one client may cost.
    pub limits: Limits,
}

impl ProfileOptions {
    /// As an operator's server has it.
    pub fn new(listen: SocketAddr, token: BearerToken) -> Self {
        Self { listen, token, limits: limits() }
    }
}

/// Everything that is recorded over a time may hold a worker, and two are left for looks at this moment. Profiles are large
/// and come through tunnels, so that they may take a while to be read.
fn limits() -> Limits {
    let recorded = SNAPSHOTS.len() + 1;
    Limits { workers: recorded + 2, answer_time: Duration::from_secs(60), ..Limits::default() }
}

/// The profiles port, open until it is stopped or dropped.
pub struct ProfileServer(Guard);

impl ProfileServer {
    /// Opens the port.
    ///
    /// # Errors
    /// An address other than loopback without a token, a port that is taken, or no threads.
    pub fn start(options: ProfileOptions, metrics: Arc<Metrics>) -> Result<Self, GuardError> {
        let ProfileOptions { listen, token, limits } = options;
        ROUTES.iter().for_each(|route| metrics.http_route(SERVER, route.path));
        let guarded = GuardOptions {
            name: SERVER,
            setting: "profile_listen",
            listen,
            allow_remote: token.is_set(),
            hosts: Vec::new(),
            posts: POSTS,
            limits,
        };
        let is_remote = !listen.ip().to_canonical().is_loopback();
        let site = Site { token, is_remote, recording: Mutex::default() };
        let server = Guard::start(guarded, Box::new(move |request| site.answer(request)), metrics)?;
        tracing::info!("Profile server listening on :{} (/debug/pprof/) - INTERNAL ONLY", server.address().port());
        Ok(Self(server))
    }

    /// The address clients reach, with the port that was really taken.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Closes the port; what is being recorded ends.
    pub fn stop(self) {
        self.0.stop();
    }
}

/// Why there is no profile: a status and a line for a person, in the form that Go's tool shows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trouble {
    status: u16,
    line: String,
}

impl Trouble {
    fn unreadable(line: impl Into<String>) -> Self {
        Self { status: 400, line: line.into() }
    }

    fn failed(line: impl Into<String>) -> Self {
        Self { status: 500, line: line.into() }
    }

    fn answer(&self, path: &'static str) -> Answer {
        Answer::text(path, self.status, &self.line).with_header("X-Go-Pprof", "1")
    }
}

struct Site {
    token: BearerToken,
    /// Others than this machine reach the port: without a token, which a reload may take away, it serves nobody.
    is_remote: bool,
    /// Names of the profiles of which a difference is being taken.
    recording: Mutex<Vec<&'static str>>,
}

impl Site {
    fn answer(&self, request: &Request) -> Answer {
        let Some(route) = ROUTES.iter().find(|route| route.path == request.path()) else {
            return Trouble { status: 404, line: "Unknown profile".to_owned() }.answer("other");
        };
        if self.is_remote && !self.token.is_set() {
            return Trouble { status: 403, line: "metrics_token is not set".to_owned() }.answer(route.path);
        }
        let checked = self.token.check_with_password(route.path, request);
        match checked.map(|()| (route.answer)(self, route, request)) {
            Ok(Ok(answer)) | Err(answer) => answer,
            Ok(Err(trouble)) => trouble.answer(route.path),
        }
    }

    /// What a snapshot shows, or how it changed over the time asked for.
    fn look(&self, snapshot: &'static Snapshot, request: &Request) -> Result<Profile, Trouble> {
        match parameters::delta_time(request)? {
            None => snapshot.take(),
            Some(time) => self.difference(snapshot, request, time),
        }
    }

    fn difference(&self, snapshot: &'static Snapshot, request: &Request, time: Duration) -> Result<Profile, Trouble> {
        let _recording = Recording::begin(&self.recording, snapshot.name)
            .ok_or_else(|| Trouble::failed(format!("Could not record {0}: {0} already in use", snapshot.name)))?;
        let earlier = snapshot.take()?;
        if !request.wait(time) {
            return Err(Trouble::failed("context canceled"));
        }
        Ok(snapshot.take()?.since(&earlier))
    }
}

/// A difference that is being taken; over when dropped.
struct Recording<'a> {
    under_way: &'a Mutex<Vec<&'static str>>,
    name: &'static str,
}

impl<'a> Recording<'a> {
    /// `None` while another one of that name is under way.
    fn begin(under_way: &'a Mutex<Vec<&'static str>>, name: &'static str) -> Option<Self> {
        let mut names = under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if names.contains(&name) {
            return None;
        }
        names.push(name);
        Some(Self { under_way, name })
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| *name != self.name);
    }
}

fn snapshot(site: &Site, route: &'static Route, request: &Request) -> Result<Answer, Trouble> {
    let snapshot = Snapshot::named(route.name())?;
    if request.is_post() {
        return Ok(Answer::text(route.path, 200, &snapshot.set_rate(request)?));
    }
    let debug = parameters::debug(request);
    let profile = site.look(snapshot, request)?;
    if debug != 0 {
        return Ok(Answer::new(route.path, 200, TEXT, (snapshot.text)(&profile, debug)));
    }
    let suffix = if profile.duration_nanos == 0 { "" } else { "-delta" };
    Ok(file(route, &format!("{}{suffix}", snapshot.name), &profile))
}

fn profile(_: &Site, route: &'static Route, request: &Request) -> Result<Answer, Trouble> {
    Ok(file(route, route.name(), &cpu_samples(request)?))
}

fn cpu_samples(request: &Request) -> Result<Profile, Trouble> {
    let (time, hz) = (parameters::cpu_time(request)?, parameters::hz(request)?);
    cpu::record(time, hz, &|| request.is_abandoned())
        .map_err(|error| Trouble::failed(format!("Could not enable CPU profiling: {error}")))
}

fn flame_graph(site: &Site, route: &'static Route, request: &Request) -> Result<Answer, Trouble> {
    let profile = match request.parameter("profile").unwrap_or("profile") {
        "profile" | "cpu" => cpu_samples(request)?,
        name => site.look(Snapshot::named(name)?, request)?,
    };
    let wanted = request.parameter("type").unwrap_or(profile.default_sample_type);
    let Some(value) = profile.sample_types.iter().position(|known| known.kind == wanted) else {
        let known: Vec<_> = profile.sample_types.iter().map(|known| known.kind).collect();
        return Err(Trouble::unreadable(format!("invalid value for \"type\" - must be {}", known.join(" or "))));
    };
    let picture = flamegraph::svg(&profile, value).map_err(|error| Trouble::failed(error.to_string()))?;
    // The picture's own script makes it searchable; nothing else is loaded.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
    Ok(Answer::new(route.path, 200, "image/svg+xml", picture).with_header("Content-Security-Policy", policy))
}

/// A profile as the file that tools read.
fn file(route: &'static Route, name: &str, profile: &Profile) -> Answer {
    let disposition = format!("attachment; filename=\"{name}\"");
    Answer::new(route.path, 200, BINARY, encode::gzip(profile)).with_header("Content-Disposition", &disposition)
}

fn cmdline(_: &Site, route: &'static Route, _: &Request) -> Result<Answer, Trouble> {
    let words: Vec<Vec<u8>> = std::env::args_os().map(OsStringExt::into_vec).collect();
    Ok(Answer::new(route.path, 200, TEXT, words.join(&0)))
}

/// The first line only has to be more than 0: the tool asks whether there are names at all.
fn symbol(_: &Site, route: &'static Route, request: &Request) -> Result<Answer, Trouble> {
    let asked = if request.is_post() { String::from_utf8_lossy(request.body()) } else { request.query().into() };
    let addresses: Vec<usize> = asked.split('+').take(SYMBOLS_MAX).filter_map(address).collect();
    let named = addresses.iter().zip(symbols::names_at(&addresses));
    let lines: String = named.filter_map(|(address, name)| Some(format!("{address:#x} {}\n", name?))).collect();
    Ok(Answer::new(route.path, 200, TEXT, format!("num_symbols: 1\n{lines}")))
}

fn address(word: &str) -> Option<usize> {
    let address = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => usize::from_str_radix(digits, 16),
        None => word.parse(),
    };
    address.ok().filter(|address| *address != 0)
}

fn trace(_: &Site, _: &'static Route, _: &Request) -> Result<Answer, Trouble> {
    let line = "there is no execution trace of this server: its runtime keeps none; profile, goroutine and block show what \
                it does, and the log at level debug shows every request";
    Err(Trouble { status: 404, line: line.to_owned() })
}

fn moved(_: &Site, route: &'static Route, _: &Request) -> Result<Answer, Trouble> {
    Ok(Answer::new(route.path, 301, HTML, "<a href=\"/debug/pprof/\">/debug/pprof/</a>\n")
        .with_header("Location", "/debug/pprof/"))
}
