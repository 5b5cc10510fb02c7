//! The bounded queue in front of the writer and of the read pool.
//!
//! Pushing never waits: a full queue is the caller's to report. Taking waits, and hands over all that has gathered, which
//! is what makes one commit serve many authors.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::Busy;

/// Places above the bound that only the server's own work may take: a probe must get through when clients fill the queue.
const RESERVED: usize = 16;

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    capacity: usize,
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// What a taker found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Items,
    /// Nothing came in time.
    Nothing,
    /// Closed, and all that was queued has been handed out.
    Closed,
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { state: Mutex::new(State { items: VecDeque::new(), closed: false }), filled: Condvar::new(), capacity }
    }

    pub(super) fn push(&self, item: T) -> Result<(), Busy> {
        self.push_below(self.capacity, item)
    }

    /// For the server's own work, of which there is a handful at most.
    pub(super) fn push_reserved(&self, item: T) -> Result<(), Busy> {
        self.push_below(self.capacity + RESERVED, item)
    }

    fn push_below(&self, bound: usize, item: T) -> Result<(), Busy> {
        let mut state = self.lock();
        if state.closed || state.items.len() >= bound {
            return Err(Busy);
        }
        state.items.push_back(item);
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Moves at most `max` items to the end of `into`, the oldest first, waiting up to `patience` for the first one.
    pub(super) fn take(&self, max: usize, patience: Duration, into: &mut Vec<T>) -> Taken {
        let is_idle = |state: &mut State<T>| state.items.is_empty() && !state.closed;
        let (mut state, _) =
            self.filled.wait_timeout_while(self.lock(), patience, is_idle).unwrap_or_else(PoisonError::into_inner);
        let count = state.items.len().min(max);
        into.extend(state.items.drain(..count));
        match count {
            0 if state.closed => Taken::Closed,
            0 => Taken::Nothing,
            _ => Taken::Items,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().items.len()
    }

    /// Refuses what comes from now on; what is queued is still handed out.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    /// No code of ours panics while it holds the lock, so a poisoned state is a whole one.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_clients_but_not_the_servers_own_work() {
        let queue = Queue::new(2);
        assert_eq!([queue.push(1), queue.push(2), queue.push(3)], [Ok(()), Ok(()), Err(Busy)]);
        assert_eq!(queue.push_reserved(4), Ok(()));
        let mut taken = Vec::new();
        assert_eq!(queue.take(10, Duration::ZERO, &mut taken), Taken::Items);
        assert_eq!(taken, [1, 2, 4]);
    }

    #[test]
    fn items_leave_in_order_and_in_bounded_batches() {
        let queue = Queue::new(10);
        (0..5).for_each(|item| queue.push(item).unwrap());
        let mut taken = Vec::new();
        assert_eq!(queue.take(3, Duration::ZERO, &mut taken), Taken::Items);
        assert_eq!((taken, queue.len()), (vec![0, 1, 2], 2));
    }

    #[test]
    fn a_closed_queue_hands_out_what_it_holds_and_takes_nothing_more() {
        let queue = Queue::new(10);
        queue.push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(Busy));
        let mut taken = Vec::new();
        assert_eq!(queue.take(3, Duration::MAX, &mut taken), Taken::Items);
        assert_eq!(queue.take(3, Duration::MAX, &mut taken), Taken::Closed);
        assert_eq!(taken, [1]);
    }

    #[test]
    fn an_idle_queue_gives_up_in_time() {
        assert_eq!(Queue::<u8>::new(1).take(1, Duration::ZERO, &mut Vec::new()), Taken::Nothing);
    }
}
