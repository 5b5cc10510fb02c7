//! The bounded queue between the threads that fail and the one that tells of it. Nobody waits to put something in.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Reports that may wait: a server of reports that is away for a while misses none of a bad hour.
const WAITING_MAX: usize = 64;

/// Reports of one minute. Whoever reads them has understood by then, and they are paid for by number.
const PER_MINUTE_MAX: u32 = 60;

const MINUTE_MS: u64 = 60_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    minute_began_ms: u64,
    in_minute: u32,
    dropped: u64,
    closed: bool,
    /// The taking side has gone.
    ended: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            minute_began_ms: 0,
            in_minute: 0,
            dropped: 0,
            closed: false,
            ended: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Takes the item, or counts it as dropped where a bound is reached. `now_ms` is monotonic.
    pub(super) fn push(&self, item: T, now_ms: u64) {
        let mut state = self.lock();
        if now_ms.saturating_sub(state.minute_began_ms) >= MINUTE_MS {
            (state.minute_began_ms, state.in_minute) = (now_ms, 0);
        }
        if state.closed || state.waiting.len() >= WAITING_MAX || state.in_minute >= PER_MINUTE_MAX {
            state.dropped += 1;
            return;
        }
        state.in_minute += 1;
        state.waiting.push_back(item);
        self.changed.notify_all();
    }

    /// The oldest item, as soon as there is one; `None` once the queue is closed and empty.
    pub(super) fn take(&self) -> Option<T> {
        let idle = |state: &mut State<T>| state.waiting.is_empty() && !state.closed;
        let mut state = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        state.waiting.pop_front()
    }

    /// Waits for `pause`, or until the queue is closed: then `false`.
    pub(super) fn rest(&self, pause: Duration) -> bool {
        let open = |state: &mut State<T>| !state.closed;
        let rested = self.changed.wait_timeout_while(self.lock(), pause, open);
        !rested.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    /// Items dropped since the last call.
    pub(super) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    /// The taking side goes.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Takes no more, and waits until the taking side has gone, for at most `deadline`; `false` when that was too short or
    /// left something behind.
    pub(super) fn close(&self, deadline: Duration) -> bool {
        let mut state = self.lock();
        state.closed = true;
        self.changed.notify_all();
        let going = |state: &mut State<T>| !state.ended;
        let waited = self.changed.wait_timeout_while(state, deadline, going);
        let state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.ended && state.waiting.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let queue = Queue::default();
        (0..PER_MINUTE_MAX + 5).for_each(|item| queue.push(item, 0));
        assert_eq!((queue.take_dropped(), queue.take_dropped(), queue.take()), (5, 0, Some(0)));
        (0..10).for_each(|item| queue.push(item, MINUTE_MS - 1));
        assert_eq!(queue.take_dropped(), 10, "the minute is not over");
        (0..10).for_each(|item| queue.push(item, MINUTE_MS));
        let room = WAITING_MAX as u64 - u64::from(PER_MINUTE_MAX - 1);
        assert_eq!(queue.take_dropped(), 10 - room, "no more may wait");
    }

    #[test]
    fn a_closed_queue_is_emptied_and_takes_no_more() {
        let queue = Queue::default();
        queue.push(1, 0);
        assert!(!queue.close(Duration::ZERO), "nobody takes");
        queue.push(2, 0);
        assert_eq!((queue.take(), queue.take(), queue.rest(Duration::MAX)), (Some(1), None, false));
        queue.end();
        assert!(queue.close(Duration::ZERO));
    }
}
