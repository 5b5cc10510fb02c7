//! The bounded queue between the threads that log and the one that writes.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::Level;

use crate::clock;

/// Lines that may wait for one writer. A burst of this length, about a second of a busy server at DEBUG, loses nothing.
const QUEUE_LINES_MAX: usize = 64 * 1024;

/// Bytes that may wait for one writer, the lines just being written included; what a stuck disk, reader or journal can
/// cost in memory.
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Lines handed to a writer at once: enough to make one system call cheap per line.
const BATCH_LINES_MAX: usize = 256;

/// An encoded event; copies share the bytes.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) level: Level,
    /// Whether the levels choose it; otherwise only the debug file wants it.
    pub(super) chosen: bool,
    pub(super) bytes: Arc<[u8]>,
}

enum Item {
    Line(Line),
    /// Makes the writer look at what it was asked for besides lines.
    Wake,
}

/// The end at which lines come in, from any thread. No method waits for the writer.
pub(super) struct Queue {
    items: mpsc::Sender<Item>,
    state: Arc<State>,
}

/// The end at which one writer takes lines out.
pub(super) struct Inbox {
    items: mpsc::Receiver<Item>,
    received: Vec<Item>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Bytes pushed and not yet settled; nothing is under way exactly when this is zero.
    bytes: AtomicUsize,
    /// Lines lost since start: refused by the queue, or not accepted by their destination.
    dropped: AtomicU64,
    /// Lines refused by the queue that the writer has not been told about.
    overflow: AtomicU64,
    reopen: AtomicBool,
    /// Held by the writer when it settles and by whoever waits for that, never by a thread that logs.
    settling: Mutex<()>,
    settled: Condvar,
}

pub(super) fn queue() -> (Queue, Inbox) {
    let (sender, receiver) = mpsc::channel(QUEUE_LINES_MAX);
    let state = Arc::new(State::default());
    let queue = Queue { items: sender, state: Arc::clone(&state) };
    (queue, Inbox { items: receiver, received: Vec::new(), state })
}

impl Queue {
    /// Takes the line, or counts it as dropped when a bound is reached.
    pub(super) fn push(&self, line: Line) {
        let size = line.bytes.len();
        let fits = self.state.bytes.fetch_add(size, Ordering::Relaxed).saturating_add(size) <= QUEUE_BYTES_MAX;
        if !(fits && self.items.try_send(Item::Line(line)).is_ok()) {
            self.state.bytes.fetch_sub(size, Ordering::Relaxed);
            self.state.overflow.fetch_add(1, Ordering::Relaxed);
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks the writer to reopen its destinations before it writes any line pushed from now on.
    pub(super) fn request_reopen(&self) {
        self.state.reopen.store(true, Ordering::Release);
        // A full queue wakes the writer as well as an item would.
        _ = self.items.try_send(Item::Wake);
    }

    /// Lines lost since start.
    pub(super) fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }

    /// Waits until every line pushed so far is settled, at most for `limit`; says whether that was reached.
    pub(super) fn drain(&self, limit: Duration) -> bool {
        let guard = self.state.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |(): &mut ()| self.state.bytes.load(Ordering::Acquire) > 0;
        let (_guard, waited) =
            self.state.settled.wait_timeout_while(guard, limit, waiting).unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

/// Drains every queue before the same deadline; says whether all were reached.
pub(super) fn drain_all<'a>(queues: impl Iterator<Item = &'a Queue>, limit: Duration) -> bool {
    let start_ms = clock::monotonic_ms();
    queues.fold(true, |all, queue| {
        let elapsed = Duration::from_millis(clock::monotonic_ms().saturating_sub(start_ms));
        queue.drain(limit.saturating_sub(elapsed)) && all
    })
}

impl Inbox {
    /// Waits for lines and puts some into `batch`, or none when the writer was woken for something else.
    /// False when nobody can log any more.
    pub(super) fn receive(&mut self, batch: &mut Vec<Line>) -> bool {
        let open = self.items.blocking_recv_many(&mut self.received, BATCH_LINES_MAX) > 0;
        batch.extend(self.received.drain(..).filter_map(|item| match item {
            Item::Line(line) => Some(line),
            Item::Wake => None,
        }));
        open
    }

    pub(super) fn take_reopen(&self) -> bool {
        self.state.reopen.swap(false, Ordering::Acquire)
    }

    /// Lines refused since the last call.
    pub(super) fn take_overflow(&self) -> u64 {
        self.state.overflow.swap(0, Ordering::Relaxed)
    }

    /// Gives the room of a batch back; `lost` of its lines did not arrive.
    pub(super) fn settle(&self, batch: &[Line], lost: u64) {
        let size: usize = batch.iter().map(|line| line.bytes.len()).sum();
        self.state.dropped.fetch_add(lost, Ordering::Relaxed);
        self.state.bytes.fetch_sub(size, Ordering::Release);
        let _guard = self.state.settling.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.settled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(size: usize) -> Line {
        Line { level: Level::INFO, chosen: true, bytes: vec![b'x'; size].into() }
    }

    fn check_bound(pushed: usize, size: usize, kept: usize) {
        let (queue, mut inbox) = queue();
        (0..pushed).for_each(|_| queue.push(line(size)));
        assert_eq!(queue.dropped(), (pushed - kept) as u64);
        assert_eq!(inbox.take_overflow(), (pushed - kept) as u64);
        assert_eq!(inbox.take_overflow(), 0, "told once");

        let mut taken = 0;
        while taken < kept {
            let mut batch = Vec::new();
            assert!(inbox.receive(&mut batch));
            taken += batch.len();
            inbox.settle(&batch, 0);
        }
        assert!(queue.drain(Duration::ZERO));
        queue.push(line(size));
        assert_eq!(queue.dropped(), (pushed - kept) as u64, "the room came back");
    }

    #[test]
    fn lines_beyond_the_bound_are_dropped_and_counted() {
        check_bound(QUEUE_LINES_MAX + 3, 1, QUEUE_LINES_MAX);
    }

    #[test]
    fn bytes_beyond_the_bound_are_dropped_and_counted() {
        check_bound(20, QUEUE_BYTES_MAX / 16, 16);
    }

    #[test]
    fn draining_ends_with_the_last_settled_line_or_with_its_limit() {
        let (queue, mut inbox) = queue();
        assert!(queue.drain(Duration::ZERO), "nothing was pushed");
        queue.push(line(1));
        assert!(!queue.drain(Duration::ZERO));

        let mut batch = Vec::new();
        assert!(inbox.receive(&mut batch));
        assert!(!queue.drain(Duration::ZERO), "received is not yet written");
        inbox.settle(&batch, 1);
        assert!(queue.drain(Duration::ZERO));
        assert_eq!(queue.dropped(), 1, "what the destination lost counts as well");
    }

    #[test]
    fn a_request_to_reopen_wakes_the_writer_once() {
        let (queue, mut inbox) = queue();
        queue.request_reopen();
        let mut batch = Vec::new();
        assert!(inbox.receive(&mut batch));
        assert_eq!((batch.len(), inbox.take_reopen(), inbox.take_reopen()), (0, true, false));
    }

    #[test]
    fn the_inbox_closes_with_the_last_sender() {
        let (queue, mut inbox) = queue();
        drop(queue);
        assert!(!inbox.receive(&mut Vec::new()));
    }
}
