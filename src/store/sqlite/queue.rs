//! The bounded queue in front of the writer and of the read pool.
//!
//! Pushing never waits: a full queue is the caller's to report. Taking waits, and hands over all that has gathered, which
//! is what makes one commit serve many authors.

use std::collections::VecDeque;
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

use crate::profile::tasks::Site;
use crate::profile::waits::{self, Begun, Mutex};
use crate::store::Busy;

/// Places above the bound that only the server's own work may take: a probe must get through when clients fill the queue.
const RESERVED: usize = 16;

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    capacity: usize,
    /// Where profiles see the items wait.
    site: &'static Site,
}

struct State<T> {
    items: VecDeque<Item<T>>,
    closed: bool,
}

struct Item<T> {
    item: T,
    waiting: Option<Box<Begun>>,
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
    pub(super) fn new(capacity: usize, site: &'static Site) -> Self {
        let state = State { items: VecDeque::new(), closed: false };
        Self { state: Mutex::new(state), filled: Condvar::new(), capacity, site }
    }

    pub(super) fn push(&self, item: T) -> Result<(), Busy> {
        self.push_below(self.capacity, item)
    }

    /// For the server's own work, of which there is a handful at most.
    pub(super) fn push_reserved(&self, item: T) -> Result<(), Busy> {
        self.push_below(self.capacity + RESERVED, item)
    }

    fn push_below(&self, bound: usize, item: T) -> Result<(), Busy> {
        let waiting = waits::begin(self.site);
        let mut state = self.lock();
        if state.closed || state.items.len() >= bound {
            return Err(Busy);
        }
        state.items.push_back(Item { item, waiting });
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
        let mut waited = Vec::new();
        into.extend(state.items.drain(..count).map(|Item { item, waiting }| {
            waited.extend(waiting);
            item
        }));
        let taken = match count {
            0 if state.closed => Taken::Closed,
            0 => Taken::Nothing,
            _ => Taken::Items,
        };
        drop(state);
        waited.into_iter().for_each(|waiting| waits::end(Some(waiting)));
        taken
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
        self.state.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Frame;
    use crate::profile::tasks::{place, site};

    #[test]
    fn a_full_queue_refuses_clients_but_not_the_servers_own_work() {
        let queue = Queue::new(2, place!());
        assert_eq!([queue.push(1), queue.push(2), queue.push(3)], [Ok(()), Ok(()), Err(Busy)]);
        assert_eq!(queue.push_reserved(4), Ok(()));
        let mut taken = Vec::new();
        assert_eq!(queue.take(10, Duration::ZERO, &mut taken), Taken::Items);
        assert_eq!(taken, [1, 2, 4]);
    }

    #[test]
    fn items_leave_in_order_and_in_bounded_batches() {
        let queue = Queue::new(10, place!());
        (0..5).for_each(|item| queue.push(item).unwrap());
        let mut taken = Vec::new();
        assert_eq!(queue.take(3, Duration::ZERO, &mut taken), Taken::Items);
        assert_eq!((taken, queue.len()), (vec![0, 1, 2], 2));
    }

    #[test]
    fn a_closed_queue_hands_out_what_it_holds_and_takes_nothing_more() {
        let queue = Queue::new(10, place!());
        queue.push(1).unwrap();
        queue.close();
        assert_eq!(queue.push(2), Err(Busy));
        let mut taken = Vec::new();
        assert_eq!(queue.take(3, Duration::MAX, &mut taken), Taken::Items);
        assert_eq!(queue.take(3, Duration::MAX, &mut taken), Taken::Closed);
        assert_eq!(taken, [1]);
    }

    #[test]
    fn time_in_the_queue_is_a_wait_and_time_without_work_is_none() {
        let site = site!("wait to be taken");
        let queue = Queue::new(2, site);
        waits::set_block_rate(1);
        queue.take(1, Duration::from_millis(1), &mut Vec::new());
        assert_eq!(waits::block_count(), 0);
        assert_eq!([queue.push(1), queue.push(2), queue.push(3)], [Ok(()), Ok(()), Err(Busy)]);
        assert_eq!(waits::block_count(), 0, "they wait still");
        queue.take(3, Duration::ZERO, &mut Vec::new());
        let profile = waits::block_profile();
        let waited = profile.samples.iter().map(|sample| {
            assert_eq!(sample.stack[..2], [Frame::Name("wait to be taken"), Frame::Place(&site.place)]);
            sample.values[0]
        });
        assert_eq!(waited.sum::<i64>(), 2, "who was refused did not wait");
    }

    #[test]
    fn an_idle_queue_gives_up_in_time() {
        assert_eq!(Queue::<u8>::new(1, place!()).take(1, Duration::ZERO, &mut Vec::new()), Taken::Nothing);
    }
}
