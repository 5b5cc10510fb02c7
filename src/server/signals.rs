//! What the main thread waits for: signals, failures, and the moments to look around.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::time::Interval;
use tracing::{error, info, warn};

use super::reload::Reloader;
use crate::admin::health::Health;
use crate::clock;
use crate::log::Logging;
use crate::metrics::Metrics;
use crate::net::backlog;
use crate::systemd::Notifier;

/// How often the main thread looks at the kernel's queue and at the database, and says how many are here.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);
/// How often the status line may change.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);
/// Silent looks between two lines about the number of sessions.
const WATCH_LINES: u32 = 6;

/// The signals the server understands.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    louder: Signal,
    quieter: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            louder: signal(SignalKind::user_defined1())?,
            quieter: signal(SignalKind::user_defined2())?,
        })
    }
}

/// What is looked after while all others work.
pub(super) struct Watched<'a, 'r> {
    pub(super) metrics: &'a Metrics,
    pub(super) health: &'a Arc<Health>,
    pub(super) log: &'a Logging,
    pub(super) notifier: &'a Notifier,
    pub(super) reloader: &'a mut Reloader<'r>,
}

/// Waits for the end, and looks after what needs looking after. Returns whether a part failed.
pub(super) async fn watch(signals: &mut Signals, failures: &mut Receiver<()>, mut watched: Watched<'_, '_>) -> bool {
    let mut interval = tokio::time::interval(WATCH_INTERVAL);
    let mut status = tokio::time::interval(STATUS_INTERVAL);
    let mut watchdog = watched.notifier.watchdog_interval().map(tokio::time::interval);
    let mut watch = Watch::new();
    watched.probe(&mut watch);
    watched.ready(&mut watch);
    loop {
        tokio::select! {
            Some(()) = failures.recv() => return true,
            _ = signals.terminate.recv() => return false,
            _ = signals.interrupt.recv() => return false,
            _ = signals.hangup.recv() => watched.reload(&mut watch),
            _ = signals.louder.recv() => { let levels = watched.log.raise(); warn!("log level raised to {levels}"); }
            _ = signals.quieter.recv() => { let levels = watched.log.lower(); warn!("log level lowered to {levels}"); }
            _ = interval.tick() => {
                watch.look(watched.metrics);
                watched.probe(&mut watch);
            }
            _ = status.tick() => watched.show(&mut watch),
            () = tick(watchdog.as_mut()) => watched.feed(&mut watch),
        }
    }
}

/// Never, where there is no interval.
async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

impl Watched<'_, '_> {
    fn reload(&mut self, watch: &mut Watch) {
        self.notifier.reloading();
        watch.reloaded = Some(self.reloader.reload());
        self.ready(watch);
    }

    fn ready(&self, watch: &mut Watch) {
        if self.notifier.is_heard() {
            watch.shown = self.status(watch);
            self.notifier.ready(&watch.shown);
        }
    }

    /// Keeps the status line true.
    fn show(&self, watch: &mut Watch) {
        if self.notifier.is_heard() {
            let status = self.status(watch);
            if status != watch.shown {
                self.notifier.status(&status);
                watch.shown = status;
            }
        }
    }

    /// Looks at the database for the status line: a write each time, so less often than the rest.
    fn probe(&self, watch: &mut Watch) {
        if self.notifier.is_heard() {
            watch.database = self.health.database_lately(clock::monotonic_ms());
        }
    }

    fn status(&self, watch: &Watch) -> String {
        let database = match &watch.database {
            Ok(()) => "ok".to_owned(),
            Err(reason) => format!("error ({reason})"),
        };
        let reloaded = watch.reloaded.as_ref().map(|result| format!("; {result}")).unwrap_or_default();
        format!("sessions {}, db {database}{reloaded}", self.metrics.sessions())
    }

    /// Feeds systemd's watchdog while shards and writer live. The main thread does it, so a stuck one is noticed too.
    fn feed(&self, watch: &mut Watch) {
        match self.health.live(clock::monotonic_ms()) {
            Ok(()) => {
                watch.is_starving = false;
                self.notifier.alive();
            }
            Err(reason) if !watch.is_starving => {
                watch.is_starving = true;
                error!("the watchdog is not fed any more: {reason}");
            }
            Err(_) => {}
        }
    }
}

struct Watch {
    overflows: Option<u64>,
    looks: u32,
    last: (u64, u64, u64),
    /// What was last heard of the database.
    database: Result<(), String>,
    /// How the last reload went.
    reloaded: Option<String>,
    /// The status line as it stands.
    shown: String,
    /// The watchdog was left unfed, and that was said.
    is_starving: bool,
}

impl Watch {
    fn new() -> Self {
        let nothing = (0, 0, 0);
        let overflows = backlog::overflows();
        Self {
            overflows,
            looks: 0,
            last: nothing,
            database: Ok(()),
            reloaded: None,
            shown: String::new(),
            is_starving: false,
        }
    }

    fn look(&mut self, metrics: &Metrics) {
        let overflows = backlog::overflows();
        if let (Some(before), Some(now)) = (self.overflows, overflows)
            && now > before
        {
            warn!("the kernel turned away {} connections: its listen queue was full", now - before);
        }
        self.overflows = overflows;
        self.looks += 1;
        let now = metrics.session_counts();
        if self.looks.is_multiple_of(WATCH_LINES) && now != self.last {
            let (active, connected, disconnected) = now;
            info!(
                "[METRICS] Active sessions: {active}, connected since last: {}, disconnected since last: {}",
                connected - self.last.1,
                disconnected - self.last.2
            );
            self.last = now;
        }
    }
}
