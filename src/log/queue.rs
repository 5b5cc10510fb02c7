//! The bounded queue between the threads that log and the one that writes.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::Level;

use crate::profile::waits::Mutex;

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
    /// Bytes pushed and not yet settled.
    bytes: AtomicUsize,
    /// Lines lost since start: refused by the queue, or not accepted by their destination.
    dropped: AtomicU64,
    /// Lines refused by the queue and not yet told by the writer.
    overflow: AtomicU64,
    reopen: AtomicBool,
    /// Held by the writer when it settles and by whoever waits for that, never by a thread that logs.
    settling: Mutex<()>,
    settled: Condvar,
}

impl State {
    fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }
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
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
            if self.state.overflow.fetch_add(1, Ordering::Relaxed) == 0 {
                self.wake();
            }
        }
    }

    /// Asks the writer to reopen its destinations before it writes any line pushed from now on.
    pub(super) fn request_reopen(&self) {
        self.state.reopen.store(true, Ordering::Release);
        self.wake();
    }

    /// A queue too full for this has woken the writer already.
    fn wake(&self) {
        _ = self.items.try_send(Item::Wake);
    }

    /// Lines lost since start.
    pub(super) fn dropped(&self) -> u64 {
        self.state.dropped.load(Ordering::Relaxed)
    }

    /// Waits until every line pushed so far is settled and every loss told, at most for `limit`; says whether that was reached.
    pub(super) fn drain(&self, limit: Duration) -> bool {
        let guard = self.state.settling.lock();
        let waiting = |(): &mut ()| self.state.bytes.load(Ordering::Acquire) > 0 || self.state.overflow() > 0;
        let (_guard, waited) =
            self.state.settled.wait_timeout_while(guard, limit, waiting).unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

impl Inbox {
    /// Waits for lines and puts some into `batch`, or none when there is something else to do.
    /// False when nobody can log any more.
    pub(super) fn receive(&mut self, batch: &mut Vec<Line>) -> bool {
        let open = self.state.overflow() > 0 || {
            let first = self.items.blocking_recv();
            self.received.extend(first);
            !self.received.is_empty()
        };
        while self.received.len() < BATCH_LINES_MAX
            && let Ok(item) = self.items.try_recv()
        {
            self.received.push(item);
        }
        batch.extend(self.received.drain(..).filter_map(|item| match item {
            Item::Line(line) => Some(line),
            Item::Wake => None,
        }));
        open
    }

    pub(super) fn take_reopen(&self) -> bool {
        self.state.reopen.swap(false, Ordering::Acquire)
    }

    /// Lines refused that were not settled as told.
    pub(super) fn overflow(&self) -> u64 {
        self.state.overflow()
    }

    /// Gives the room of a batch back; `lost` of its lines did not arrive, and `told` refused ones are done with.
    pub(super) fn settle(&self, batch: &[Line], lost: u64, told: u64) {
        let size: usize = batch.iter().map(|line| line.bytes.len()).sum();
        self.state.dropped.fetch_add(lost, Ordering::Relaxed);
        self.state.overflow.fetch_sub(told, Ordering::Relaxed);
        self.state.bytes.fetch_sub(size, Ordering::Release);
        let _guard = self.state.settling.lock();
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
        assert_eq!(inbox.overflow(), (pushed - kept) as u64);

        let mut taken = 0;
        while taken < kept {
            let mut batch = Vec::new();
            assert!(inbox.receive(&mut batch));
            taken += batch.len();
            inbox.settle(&batch, 0, 0);
        }
        assert!(!queue.drain(Duration::ZERO), "the loss is not told");
        assert!(inbox.receive(&mut Vec::new()), "and telling it waits for no line");
        inbox.settle(&[], 0, inbox.overflow());
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
        inbox.settle(&batch, 1, 0);
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
