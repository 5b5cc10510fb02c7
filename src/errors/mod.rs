//! Error tracking: panics and ERROR events go to a Sentry-compatible server (OBSERVABILITY.md 5).
//!
//! ```text
//! log event -> tap: INFO and WARN become breadcrumbs, ERROR a report -> bounded queue -> `scd-errors`: one envelope each
//! ```
//! The log decides what an error is: connection resets, time-outs and bad client input are no ERROR there, so none here.
//! Reports that the queue, the minute's budget or the server refuse are counted and dropped; nothing ever waits for them.
//! The client is our own: it needs one JSON document and one POST, while the `sentry` crate brings 90 crates along and
//! waits for its server when it is stopped.
//!
//! | file | holds |
//! |---|---|
//! | `dsn.rs` | where reports go |
//! | `report.rs` | a record of the log as an event, without addresses |
//! | `panic.rs` | the panic hook, their count, and stacks as events show them |
//! | `queue.rs`, `sender.rs` | the bounded way to the thread that sends |

mod dsn;
mod panic;
mod queue;
mod report;
mod sender;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::Level;

pub use dsn::{Dsn, DsnError};
pub use panic::{hook, panics};

use crate::clock;
use crate::log::{Record, Tap};
use crate::supervise;
use panic::Stack;
use queue::Queue;
use report::{Crumb, Report};
use sender::Sender;

/// Breadcrumbs of a report: what the whole server logged before it.
const CRUMBS_MAX: usize = 50;

/// What [`Tracker::start`] has to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where reports go.
    pub dsn: Dsn,
    /// What runs: `superchat@1.2.3`.
    pub release: String,
    /// Where it runs: `production`.
    pub environment: String,
}

/// Running error tracking.
#[derive(Debug)]
pub struct Tracker {
    queue: Arc<Queue<Report>>,
}

impl Tracker {
    /// Starts the sending thread. What the returned tap hears of is reported.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(options: Options) -> io::Result<(Self, Tap)> {
        let queue = Arc::new(Queue::default());
        let sender = Sender::new(options, Arc::clone(&queue));
        supervise::spawn("scd-errors", move || sender.run())?;
        let tap = tap(Arc::clone(&queue));
        Ok((Self { queue }, tap))
    }

    /// Takes no more, and waits until what was taken is delivered, for at most `deadline`; `false` when something is left.
    pub fn stop(self, deadline: Duration) -> bool {
        self.queue.close(deadline)
    }
}

fn tap(queue: Arc<Queue<Report>>) -> Tap {
    let crumbs: Mutex<VecDeque<Crumb>> = Mutex::default();
    Box::new(move |record: &Record| {
        let mut crumbs = crumbs.lock().unwrap_or_else(PoisonError::into_inner);
        match record.level {
            Level::ERROR => {
                let stack = (record.target == panic::TARGET).then(Stack::here);
                let report = Report::new(record, stack, crumbs.iter().cloned().collect());
                queue.push(report, clock::monotonic_ms());
            }
            Level::WARN | Level::INFO => {
                crumbs.truncate(CRUMBS_MAX - 1);
                crumbs.push_front(Crumb::of(record));
            }
            _ => {}
        }
    })
}
