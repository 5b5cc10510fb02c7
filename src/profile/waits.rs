//! Where the server waits, and for how long: Go's block and mutex profiles.
//!
//! Both are samples by Go's rules, off at first, and set at run time. Off, a wait costs one relaxed load. On, every wait
//! that is sampled has the stack of whoever waits; a lock's holder is not known.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    self, LockResult, MutexGuard, PoisonError, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult,
};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::sites::Site;
use super::{Frame, Profile, Sample, ValueType};
use crate::clock;

static BLOCK_RATE: AtomicU64 = AtomicU64::new(0);
static MUTEX_FRACTION: AtomicU64 = AtomicU64::new(0);

/// How long a wait is that is always recorded, in nanoseconds; of shorter ones their part. 1 records all, 0 none.
pub fn set_block_rate(nanoseconds: u64) {
    BLOCK_RATE.store(nanoseconds, Ordering::Relaxed);
}

/// See [`set_block_rate`].
#[must_use]
pub fn block_rate() -> u64 {
    BLOCK_RATE.load(Ordering::Relaxed)
}

/// One of how many waits for a lock is recorded. 1 records all, 0 none.
pub fn set_mutex_fraction(waits: u64) {
    MUTEX_FRACTION.store(waits, Ordering::Relaxed);
}

/// See [`set_mutex_fraction`].
#[must_use]
pub fn mutex_fraction() -> u64 {
    MUTEX_FRACTION.load(Ordering::Relaxed)
}

/// Waits since the start by the stack of who waited: `contentions` and `delay`.
#[must_use]
pub fn block_profile() -> Profile {
    BLOCK.profile()
}

/// Waits for locks since the start, in the form of [`block_profile`].
#[must_use]
pub fn mutex_profile() -> Profile {
    MUTEX.profile()
}

/// Different stacks in the block profile.
#[must_use]
pub fn block_count() -> usize {
    BLOCK.count()
}

/// Different stacks in the mutex profile.
#[must_use]
pub fn mutex_count() -> usize {
    MUTEX.count()
}

/// A wait that began: it may end on another thread.
#[derive(Debug)]
pub struct Begun {
    at: Duration,
    stack: Stack,
}

/// Something begins to wait at `site`. `None` while nothing is recorded.
#[inline]
pub fn begin(site: &'static Site) -> Option<Box<Begun>> {
    (block_rate() > 0).then(|| begin_now(site))
}

#[cold]
#[inline(never)]
fn begin_now(site: &'static Site) -> Box<Begun> {
    Box::new(Begun { at: clock::monotonic(), stack: Stack::here(site) })
}

/// The wait is over. One that comes to no end is not recorded.
#[inline]
pub fn end(begun: Option<Box<Begun>>) {
    if let Some(begun) = begun {
        end_now(*begun);
    }
}

#[cold]
#[inline(never)]
fn end_now(begun: Begun) {
    let delay = nanoseconds(clock::monotonic().saturating_sub(begun.at));
    if let Some(weight) = block_weight(delay, block_rate(), random()) {
        BLOCK.record(begun.stack, weight, delay);
    }
}

/// A lock whose waits are sampled. It does not know poison: what it guards must be whole whenever a holder may panic.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    inner: sync::Mutex<T>,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self { inner: sync::Mutex::new(value) }
    }

    /// The guard is the standard library's, so that its condition variables take it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        acquire(self.inner.try_lock(), || self.inner.lock())
    }
}

/// A lock that many may read under; otherwise as [`Mutex`].
#[derive(Debug, Default)]
pub struct RwLock<T> {
    inner: sync::RwLock<T>,
}

impl<T> RwLock<T> {
    pub const fn new(value: T) -> Self {
        Self { inner: sync::RwLock::new(value) }
    }

    #[inline]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        acquire(self.inner.try_read(), || self.inner.read())
    }

    #[inline]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        acquire(self.inner.try_write(), || self.inner.write())
    }
}

#[inline]
fn acquire<G>(tried: TryLockResult<G>, lock: impl FnOnce() -> LockResult<G>) -> G {
    match tried {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => contended(|| lock().unwrap_or_else(PoisonError::into_inner)),
    }
}

#[cold]
#[inline(never)]
fn contended<G>(lock: impl FnOnce() -> G) -> G {
    let (rate, fraction) = (block_rate(), mutex_fraction());
    if rate == 0 && fraction == 0 {
        return lock();
    }
    let began = clock::monotonic();
    let guard = lock();
    let delay = nanoseconds(clock::monotonic().saturating_sub(began));
    let site = super::sites::site!("wait for a lock");
    if let Some(weight) = mutex_weight(fraction, random()) {
        MUTEX.record(Stack::here(site), weight, delay);
    }
    if let Some(weight) = block_weight(delay, rate, random()) {
        BLOCK.record(Stack::here(site), weight, delay);
    }
    guard
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How many waits a wait of `delay` nanoseconds stands for, if it is recorded at all: those as long as the rate for
/// themselves, shorter ones with a chance that makes up for what each then stands for.
fn block_weight(delay: u64, rate: u64, random: u64) -> Option<f64> {
    match rate {
        0 => None,
        _ if delay >= rate => Some(1.0),
        _ => (random % rate < delay).then(|| rate as f64 / delay as f64),
    }
}

fn mutex_weight(fraction: u64, random: u64) -> Option<f64> {
    (fraction > 0 && random.is_multiple_of(fraction)).then_some(fraction as f64)
}

/// Any number: sampling needs no secret, only a fresh one for each wait.
fn random() -> u64 {
    use std::cell::Cell;
    thread_local! {
        static STATE: Cell<u64> = Cell::new(nanoseconds(clock::monotonic()) | 1);
    }
    STATE.with(|state| {
        // Marsaglia's xorshift64*.
        let mut x = state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    })
}

/// Who waits for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stack {
    site: &'static Site,
    /// Return addresses, innermost first.
    calls: Vec<usize>,
}

impl Stack {
    fn here(site: &'static Site) -> Self {
        Self { site, calls: Vec::new() }
    }

    fn frames(&self) -> Vec<Frame> {
        let head = [Frame::Name(self.site.what), Frame::Place(&self.site.place)];
        head.into_iter().chain(self.calls.iter().map(|call| Frame::Return(*call))).collect()
    }
}

/// Stacks kept apart in one profile: more than the places that wait, times the ways there.
const STACKS_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, Default)]
struct Waits {
    contentions: f64,
    /// Nanoseconds.
    delay: f64,
}

#[derive(Debug, Default)]
struct Recorded {
    by_stack: HashMap<Stack, Waits, RandomState>,
    /// Of stacks beyond [`STACKS_MAX`].
    others: Waits,
}

struct Table(sync::Mutex<Option<Recorded>>);

static BLOCK: Table = Table::new();
static MUTEX: Table = Table::new();

impl Table {
    const fn new() -> Self {
        Self(sync::Mutex::new(None))
    }

    fn with<T>(&self, run: impl FnOnce(&mut Recorded) -> T) -> T {
        run(self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
    }

    fn record(&self, stack: Stack, weight: f64, delay: u64) {
        self.with(|recorded| {
            let is_full = recorded.by_stack.len() >= STACKS_MAX && !recorded.by_stack.contains_key(&stack);
            let waits = if is_full { &mut recorded.others } else { recorded.by_stack.entry(stack).or_default() };
            waits.contentions += weight;
            waits.delay += weight * delay as f64;
        });
    }

    fn count(&self) -> usize {
        self.with(|recorded| recorded.by_stack.len())
    }

    fn profile(&self) -> Profile {
        let (stacks, others) = self.with(|recorded| (recorded.by_stack.clone(), recorded.others));
        let mut samples: Vec<_> = stacks.iter().map(|(stack, waits)| waits.sample(stack.frames())).collect();
        if others.contentions > 0.0 {
            samples.push(others.sample(vec![Frame::Name("other stacks")]));
        }
        Profile {
            sample_types: &[CONTENTIONS, ValueType { kind: "delay", unit: "nanoseconds" }],
            default_sample_type: "delay",
            period_type: CONTENTIONS,
            period: 1,
            time_nanos: i64::try_from(clock::now().as_nanosecond()).unwrap_or(i64::MAX),
            duration_nanos: 0,
            samples,
            drop_frames: "",
            comments: Vec::new(),
        }
    }
}

const CONTENTIONS: ValueType = ValueType { kind: "contentions", unit: "count" };

impl Waits {
    fn sample(&self, stack: Vec<Frame>) -> Sample {
        #[expect(clippy::cast_possible_truncation, reason = "a sum beyond the range stops at its end")]
        let values = [self.contentions, self.delay].map(|sum| sum.round() as i64);
        Sample { stack, values: values.into(), labels: Vec::new() }
    }
}
