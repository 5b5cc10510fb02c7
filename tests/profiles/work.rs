//! Functions that do one thing each, in known amounts, so that a profile can be told right from wrong.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use superchat::profile::waits;
use superchat::supervise;

use crate::support::clock::instant;

/// Large enough that sampling errs little, small enough to be one allocation's business.
const BLOCK_BYTES: usize = 4 << 10;

/// Allocates as many bytes and keeps them.
#[inline(never)]
pub fn allocates_and_keeps(bytes: usize) -> Vec<Vec<u8>> {
    let kept = (0..bytes / BLOCK_BYTES).map(|_| black_box(vec![1; BLOCK_BYTES])).collect();
    // Something is left to do, so that the call before is no jump.
    black_box(kept)
}

/// Allocates as many bytes, one block after the other, and keeps none.
#[inline(never)]
pub fn allocates_and_frees(bytes: usize) {
    for _ in 0..bytes / BLOCK_BYTES {
        drop(black_box(vec![1_u8; BLOCK_BYTES]));
    }
}

/// A thread that does the same over and over, until this is dropped.
pub struct Busy {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    pub fn with(work: impl Fn() + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let run = move || {
            while !until.load(Ordering::Relaxed) {
                work();
            }
        };
        Self { over, thread: Some(supervise::spawn("known-busy", run).unwrap()) }
    }

    pub fn spinning() -> Self {
        Self::with(|| {
            black_box(spins());
        })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

/// Uses the CPU for about a millisecond.
#[inline(never)]
fn spins() -> u64 {
    (0..1_000_000).fold(1, |number: u64, _| black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1)))
}

/// Has another thread wait `times` times for a lock that is held for `time`.
pub fn contend(times: usize, time: Duration) {
    let lock = Arc::new(waits::Mutex::new(()));
    for _ in 0..times {
        let held = lock.lock();
        let (begun, waiting) = (Arc::new(AtomicBool::new(false)), Arc::clone(&lock));
        let said = Arc::clone(&begun);
        let wait = move || {
            said.store(true, Ordering::SeqCst);
            waits_for_a_lock(&waiting);
        };
        let waiter = supervise::spawn("known-waiter", wait).unwrap();
        hold(&begun, time);
        drop(held);
        waiter.join().unwrap();
    }
}

#[inline(never)]
fn waits_for_a_lock(lock: &waits::Mutex<()>) {
    drop(black_box(lock.lock()));
}

/// Nothing tells that a thread waits for a lock, so it is held for a known time from the moment that it was about to.
fn hold(begun: &AtomicBool, time: Duration) {
    let start = instant();
    while !begun.load(Ordering::SeqCst) || start.elapsed() < time {
        std::thread::yield_now();
    }
}

/// Starts threads that wait until the flag falls.
#[inline(never)]
pub fn starts_threads(count: usize, over: &Arc<AtomicBool>) {
    for number in 0..count {
        let over = Arc::clone(over);
        let wait = move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(20));
            }
        };
        drop(supervise::spawn(&format!("known-{number}"), wait).unwrap());
    }
}
