//! What alive, ready and degraded mean, and where the facts come from.
//!
//! [`Health`] is the board on which shards, writer and listener leave their signs of life; the HTTP pages only read it.
//! Alive asks for nothing that a restart would not cure, so it never looks at the database; ready does.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::clock::monotonic_ms;
use crate::supervise;

/// A shard that has not ticked for longer than this is stuck, in milliseconds.
pub const SHARD_DEADLINE_MS: u64 = 5_000;
/// A writer that has not shown itself for longer than this takes no posts, in milliseconds. It beats when idle, too.
pub const WRITER_DEADLINE_MS: u64 = 30_000;
/// A probe's result serves for this long, in milliseconds: health checks must not become load.
const PROBE_FRESH_MS: u64 = 1_000;
/// A probe that takes longer counts as failed, in milliseconds; below the time-out of [`check`].
const PROBE_TIME_MS: u64 = 2_000;
/// How long [`check`] waits for everything, in milliseconds.
const CHECK_TIME_MS: u64 = 3_000;
const CHECK_BYTES_MAX: usize = 64 * 1024;

/// Facts that other parts own; sampled for each page.
#[derive(Debug, Clone, Default)]
pub struct HealthInfo {
    /// Sessions open now.
    pub sessions: u64,
    /// Channels that exist.
    pub channels: u64,
    /// Name of the server as clients see it.
    pub server_name: String,
    /// When a post counts as stored: `full` or `process`.
    pub durability: &'static str,
    /// Whether other servers may register here.
    pub directory_enabled: bool,
    /// End of the last good backup in milliseconds since the Unix epoch.
    pub last_backup_ms: Option<i64>,
}

/// The body of `/health`. The first five keys and the five after `reason` are read by scripts in the field.
#[derive(Debug, Clone, serde::Serialize)]
pub struct HealthBody {
    /// `ok` or `degraded`.
    pub status: &'static str,
    /// Whole seconds since start.
    pub uptime: u64,
    /// Sessions open now.
    pub sessions: u64,
    /// `ok` or `error`.
    pub database: &'static str,
    /// Whether other servers may register here.
    pub directory_enabled: bool,
    /// Why the server is degraded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same as `uptime`.
    pub uptime_seconds: u64,
    /// The same as `sessions`.
    pub active_sessions: u64,
    /// Channels that exist.
    pub channels: u64,
    /// Name of the server.
    pub server_name: String,
    /// Whether the probe of the database succeeded.
    pub database_accessible: bool,
    /// Version of the server.
    pub version: &'static str,
    /// When a post counts as stored: `full` or `process`.
    pub durability: &'static str,
    /// End of the last good backup (RFC 3339), or null.
    pub last_backup: Option<String>,
}

/// Signs of life of one shard, for the status page.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Pulse {
    /// Milliseconds since its last beat.
    pub last_beat_ms: u64,
    /// Whether that is within its deadline.
    pub alive: bool,
}

/// The board of signs of life, shared by all parts.
pub struct Health {
    version: &'static str,
    started_ms: u64,
    shards: Box<[AtomicU64]>,
    writer_alive: AtomicBool,
    writer_beat_ms: AtomicU64,
    listening: AtomicBool,
    draining: AtomicBool,
    probe: Arc<Probe>,
    info: OnceLock<Box<dyn Fn() -> HealthInfo + Send + Sync>>,
}

impl Health {
    /// A board for that many shards. The start, `now_ms` (monotonic), counts as the first beat of each.
    pub fn new(version: &'static str, shards: usize, now_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            version,
            started_ms: now_ms,
            shards: (0..shards).map(|_| AtomicU64::new(now_ms)).collect(),
            writer_alive: AtomicBool::new(false),
            writer_beat_ms: AtomicU64::new(now_ms),
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            probe: Arc::default(),
            info: OnceLock::new(),
        })
    }

    /// A shard ticked; at least once a second. An index beyond the shards is ignored.
    pub fn shard_beat(&self, index: usize, now_ms: u64) {
        if let Some(beat) = self.shards.get(index) {
            beat.store(now_ms, Relaxed);
        }
    }

    /// The writer thread runs; at its start, after each commit, and every few seconds when idle.
    pub fn writer_beat(&self, now_ms: u64) {
        self.writer_beat_ms.store(now_ms, Relaxed);
        self.writer_alive.store(true, Relaxed);
    }

    /// The writer thread ended.
    pub fn writer_stopped(&self) {
        self.writer_alive.store(false, Relaxed);
    }

    /// Whether clients can connect.
    pub fn set_listening(&self, listening: bool) {
        self.listening.store(listening, Relaxed);
    }

    /// The server was told to stop: no more clients, for good.
    pub fn set_draining(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Sets, once, what writes to the database and reads it back. It may hang: it runs on a thread of its own, one at a
    /// time. The error is a sentence for operators.
    pub fn set_probe(&self, probe: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        if self.probe.run.set(Box::new(probe)).is_err() {
            tracing::warn!("a second database probe was offered and left aside");
        }
    }

    /// Sets, once, where the facts come from. The closure must not wait.
    pub fn set_info(&self, info: impl Fn() -> HealthInfo + Send + Sync + 'static) {
        if self.info.set(Box::new(info)).is_err() {
            tracing::warn!("a second source of health facts was offered and left aside");
        }
    }

    /// Whether the process is worth keeping.
    ///
    /// # Errors
    /// Says what is stuck or gone.
    pub fn live(&self, now_ms: u64) -> Result<(), String> {
        if let Some((index, pulse)) = self.pulses(now_ms).into_iter().enumerate().find(|(_, pulse)| !pulse.alive) {
            return Err(format!("shard {index} has not ticked for {} ms", pulse.last_beat_ms));
        }
        if self.writer_alive.load(Relaxed) { Ok(()) } else { Err("the writer thread is not running".to_owned()) }
    }

    /// Whether clients may be sent here.
    ///
    /// # Errors
    /// Says what stands against it.
    pub fn ready(&self, now_ms: u64) -> Result<(), String> {
        if self.draining.load(Relaxed) {
            return Err("the server is stopping".to_owned());
        }
        if !self.listening.load(Relaxed) {
            return Err("the server does not listen yet".to_owned());
        }
        self.live(now_ms)?;
        let writer = self.writer(now_ms);
        if !writer.alive {
            return Err(format!("the writer has not moved for {} ms", writer.last_beat_ms));
        }
        self.database(now_ms)
    }

    /// Whether the database can be written and read. Waits at most two seconds.
    ///
    /// # Errors
    /// What the probe said, or that it hangs.
    pub fn database(&self, now_ms: u64) -> Result<(), String> {
        self.probe.ask(now_ms)
    }

    /// What the latest probe of the database found, at once. One that is too old is asked for again, for the next look.
    ///
    /// # Errors
    /// As [`Self::database`].
    pub fn database_lately(&self, now_ms: u64) -> Result<(), String> {
        self.probe.glance(now_ms)
    }

    /// The signs of life of all shards.
    pub fn pulses(&self, now_ms: u64) -> Vec<Pulse> {
        self.shards.iter().map(|beat| pulse(beat, now_ms, SHARD_DEADLINE_MS)).collect()
    }

    /// The signs of life of the writer.
    pub fn writer(&self, now_ms: u64) -> Pulse {
        let pulse = pulse(&self.writer_beat_ms, now_ms, WRITER_DEADLINE_MS);
        Pulse { alive: pulse.alive && self.writer_alive.load(Relaxed), ..pulse }
    }

    /// The body of `/health`.
    pub fn body(&self, now_ms: u64) -> HealthBody {
        let info = self.info.get().map(|info| info()).unwrap_or_default();
        let uptime = now_ms.saturating_sub(self.started_ms) / 1000;
        let reason = self.database(now_ms).err();
        HealthBody {
            status: if reason.is_none() { "ok" } else { "degraded" },
            uptime,
            sessions: info.sessions,
            database: if reason.is_none() { "ok" } else { "error" },
            directory_enabled: info.directory_enabled,
            database_accessible: reason.is_none(),
            reason,
            uptime_seconds: uptime,
            active_sessions: info.sessions,
            channels: info.channels,
            server_name: info.server_name,
            version: self.version,
            durability: info.durability,
            last_backup: info.last_backup_ms.and_then(rfc3339),
        }
    }
}

fn pulse(beat: &AtomicU64, now_ms: u64, deadline_ms: u64) -> Pulse {
    let last_beat_ms = now_ms.saturating_sub(beat.load(Relaxed));
    Pulse { last_beat_ms, alive: last_beat_ms <= deadline_ms }
}

fn rfc3339(wall_ms: i64) -> Option<String> {
    jiff::Timestamp::from_millisecond(wall_ms).ok().map(|time| time.to_string())
}

/// Runs the probe: at most one at a time, at most once a second, and never longer than a caller can wait.
#[derive(Default)]
struct Probe {
    run: OnceLock<Box<dyn Fn() -> Result<(), String> + Send + Sync>>,
    state: Mutex<ProbeState>,
    finished: Condvar,
}

#[derive(Default)]
struct ProbeState {
    /// When the last one ended, and how.
    last: Option<(u64, Result<(), String>)>,
    run: Run,
}

#[derive(Default, PartialEq)]
enum Run {
    #[default]
    None,
    /// Since then, in monotonic milliseconds.
    Going(u64),
    /// Somebody waited for it in vain. Nobody waits again, or a hung disk would use up all HTTP workers.
    Hangs,
}

impl ProbeState {
    /// The last result, while it still serves.
    fn fresh(&self, now_ms: u64) -> Option<Result<(), String>> {
        let (ended_ms, result) = self.last.as_ref()?;
        (now_ms.saturating_sub(*ended_ms) < PROBE_FRESH_MS).then(|| result.clone())
    }
}

impl Probe {
    fn ask(self: &Arc<Self>, now_ms: u64) -> Result<(), String> {
        let mut state = self.lock();
        if state.run == Run::None {
            if let Some(result) = state.fresh(now_ms) {
                return result;
            }
            self.start()?;
            state.run = Run::Going(now_ms);
        }
        let wait = Duration::from_millis(PROBE_TIME_MS);
        let going = |state: &mut ProbeState| matches!(state.run, Run::Going(_));
        let (mut state, _) =
            self.finished.wait_timeout_while(state, wait, going).unwrap_or_else(PoisonError::into_inner);
        match &state.last {
            Some((_, result)) if state.run == Run::None => result.clone(),
            _ => {
                state.run = Run::Hangs;
                self.finished.notify_all();
                Err(hangs())
            }
        }
    }

    fn glance(self: &Arc<Self>, now_ms: u64) -> Result<(), String> {
        let mut state = self.lock();
        match state.run {
            Run::Hangs => return Err(hangs()),
            Run::Going(since_ms) if now_ms.saturating_sub(since_ms) > PROBE_TIME_MS => {
                state.run = Run::Hangs;
                return Err(hangs());
            }
            Run::None if state.fresh(now_ms).is_none() => {
                self.start()?;
                state.run = Run::Going(now_ms);
            }
            Run::None | Run::Going(_) => {}
        }
        state.last.as_ref().map_or(Ok(()), |(_, result)| result.clone())
    }

    /// The thread cannot report before the caller has let go of the lock.
    fn start(self: &Arc<Self>) -> Result<(), String> {
        if self.run.get().is_none() {
            return Err("the database is not open yet".to_owned());
        }
        let probe = Arc::clone(self);
        let started = supervise::spawn("db-probe", move || probe.run_once());
        started.map(drop).map_err(|error| format!("cannot start the database probe: {error}"))
    }

    fn run_once(&self) {
        let Some(run) = self.run.get() else { return };
        let result = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("the probe panicked".to_owned()));
        let mut state = self.lock();
        *state = ProbeState { last: Some((monotonic_ms(), result)), run: Run::None };
        self.finished.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, ProbeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hangs() -> String {
    format!("the database has not answered for {PROBE_TIME_MS} ms")
}

/// Asks a running server for its health over plain TCP, at most three seconds; for `scd health [--ready]`. A wildcard
/// address is asked on loopback.
///
/// # Errors
/// The answer's body when the server is not well, or why there is no answer.
pub fn check(address: SocketAddr, ready: bool) -> Result<String, String> {
    let path = if ready { "/readyz" } else { "/health" };
    let address = SocketAddr::new(reachable(address.ip()), address.port());
    let answer = ask(address, path).map_err(|error| format!("no answer from {address}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{address} does not speak http"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let body = body.trim_end().to_owned();
    if status == "200" { Ok(body) } else { Err(format!("{status}: {body}")) }
}

/// The address to ask where a server listens on `address`.
pub(crate) fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let deadline_ms = monotonic_ms() + CHECK_TIME_MS;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(CHECK_TIME_MS))?;
    stream.set_write_timeout(Some(time_left(deadline_ms)?))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 1024]);
    while answer.len() < CHECK_BYTES_MAX {
        // Set anew each time: the limit is for the whole answer, not for each piece of it.
        stream.set_read_timeout(Some(time_left(deadline_ms)?))?;
        match stream.read(&mut chunk)? {
            0 => break,
            count => answer.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn time_left(deadline_ms: u64) -> std::io::Result<Duration> {
    match deadline_ms.saturating_sub(monotonic_ms()) {
        0 => Err(std::io::ErrorKind::TimedOut.into()),
        left_ms => Ok(Duration::from_millis(left_ms)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn healthy(now_ms: u64) -> Arc<Health> {
        let health = Health::new("1.2.3", 2, now_ms);
        health.writer_beat(now_ms);
        health.set_listening(true);
        health.set_probe(|| Ok(()));
        health
    }

    #[test]
    fn a_stuck_shard_is_neither_alive_nor_ready() {
        let now_ms = monotonic_ms();
        let health = healthy(now_ms);
        let late_ms = now_ms + SHARD_DEADLINE_MS + 1;
        assert_eq!(health.live(late_ms - 1), Ok(()));
        health.shard_beat(0, late_ms);
        assert_eq!(health.live(late_ms), Err("shard 1 has not ticked for 5001 ms".to_owned()));
        assert!(health.ready(late_ms).is_err());
        health.shard_beat(1, late_ms);
        assert_eq!(health.live(late_ms), Ok(()));
    }

    #[test]
    fn a_writer_that_ended_is_not_alive() {
        let health = healthy(0);
        health.writer_stopped();
        assert!(health.live(0).is_err() && health.ready(0).is_err() && !health.writer(0).alive);
    }

    #[test]
    fn a_stopping_server_is_alive_but_not_ready() {
        let now_ms = monotonic_ms();
        let health = healthy(now_ms);
        assert_eq!(health.ready(now_ms), Ok(()));
        health.set_draining();
        assert_eq!((health.live(now_ms), health.ready(now_ms)), (Ok(()), Err("the server is stopping".to_owned())));
    }

    #[test]
    fn the_probe_runs_at_most_once_a_second() {
        let health = Health::new("1.2.3", 0, 0);
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        health.set_probe(move || {
            counted.fetch_add(1, Relaxed);
            Err("disk full".to_owned())
        });
        let now_ms = monotonic_ms();
        for _ in 0..3 {
            assert_eq!(health.database(now_ms), Err("disk full".to_owned()));
        }
        assert_eq!(runs.load(Relaxed), 1);
        assert!(health.database(monotonic_ms() + PROBE_FRESH_MS).is_err());
        assert_eq!(runs.load(Relaxed), 2);
    }

    #[test]
    fn a_glance_never_waits_and_sees_the_latest_result_or_that_there_is_none() {
        let health = Health::new("1.2.3", 0, 0);
        let (release, hung) = sync_channel::<Result<(), String>>(0);
        let hung = Mutex::new(hung);
        health.set_probe(move || hung.lock().expect("one probe at a time").recv().expect("a result"));
        let now_ms = monotonic_ms();
        assert_eq!(health.database_lately(now_ms), Ok(()), "nothing is known against it");
        assert_eq!(health.database_lately(now_ms + PROBE_TIME_MS), Ok(()));
        assert_eq!(health.database_lately(now_ms + PROBE_TIME_MS + 1), Err(hangs()));
        release.send(Err("disk full".to_owned())).expect("the probe waits");
        let seen = |wanted: &Result<(), String>| {
            while health.database_lately(monotonic_ms()) != *wanted {
                std::thread::yield_now();
            }
        };
        seen(&Err("disk full".to_owned()));
    }

    #[test]
    fn a_hung_probe_answers_degraded_and_is_not_started_twice() {
        let health = Health::new("1.2.3", 0, 0);
        let (release, hung) = sync_channel::<()>(0);
        let (runs, hung) = (Arc::new(AtomicUsize::new(0)), Mutex::new(hung));
        let counted = Arc::clone(&runs);
        health.set_probe(move || {
            counted.fetch_add(1, Relaxed);
            hung.lock().expect("one probe at a time").recv().map_err(|_| "released".to_owned())
        });
        let now_ms = monotonic_ms();
        assert_eq!(health.body(now_ms).status, "degraded");
        assert_eq!(health.database(now_ms), Err(hangs()));
        assert_eq!(runs.load(Relaxed), 1);
        let probe = Arc::clone(&health.probe);
        let state = probe.lock();
        drop(release);
        let hung = |state: &mut ProbeState| state.run == Run::Hangs;
        drop(probe.finished.wait_while(state, hung).expect("the probe does not panic"));
        assert_eq!(health.database(now_ms), Err("released".to_owned()));
    }

    #[test]
    fn without_a_database_the_server_is_degraded() {
        let body = Health::new("1.2.3", 0, 0).body(61_999);
        assert_eq!((body.status, body.database, body.database_accessible), ("degraded", "error", false));
        assert_eq!((body.uptime, body.uptime_seconds), (61, 61));
    }

    #[test]
    fn nobody_there_is_an_error_that_names_the_address() {
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let error = check(free, false).expect_err("nobody listens");
        assert!(error.starts_with(&format!("no answer from {free}: ")), "{error}");
    }
}
