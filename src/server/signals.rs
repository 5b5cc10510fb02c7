//! What the main thread waits for: signals, failures, and the moments to look around.

use std::io;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::log::Logging;
use crate::metrics::Metrics;
use crate::net::backlog;

/// How often the main thread looks at the kernel's queue and says how many are here.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);
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

/// Waits for the end, and looks after what needs looking after. Returns whether a part failed.
pub(super) async fn watch(signals: &mut Signals, failures: &Receiver<()>, metrics: &Metrics, log: &Logging) -> bool {
    let mut interval = tokio::time::interval(WATCH_INTERVAL);
    let mut watch = Watch { overflows: backlog::overflows(), ..Watch::default() };
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return false,
            _ = signals.interrupt.recv() => return false,
            _ = signals.hangup.recv() => { log.reopen(); info!("log files reopened"); }
            _ = signals.louder.recv() => { let levels = log.raise(); warn!("log level raised to {levels}"); }
            _ = signals.quieter.recv() => { let levels = log.lower(); warn!("log level lowered to {levels}"); }
            _ = interval.tick() => watch.look(metrics),
        }
        if failures.try_recv().is_ok() {
            return true;
        }
    }
}

#[derive(Default)]
struct Watch {
    overflows: Option<u64>,
    looks: u32,
    last: (u64, u64, u64),
}

impl Watch {
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
