//! Where the server waits, and for how long: Go's block and mutex profiles.
//!
//! Both are samples by Go's rules, off at first, and set at run time. Off, a wait costs one relaxed load. On, every wait
//! that is sampled has the stack of whoever waits; a lock's holder is not known.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    self, LockResult, MutexGuard, PoisonError, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult,
};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::sites::Site;
use super::{Frame, Profile, Sample, ValueType, stack, time_nanos};
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

/// A number for each wait: sampling needs no secret, only a fresh one.
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<Random> = Cell::new(Random::new(nanoseconds(clock::monotonic())));
    }
    STATE.with(|state| {
        let mut random = state.get();
        let next = random.next();
        state.set(random);
        next
    })
}

/// Marsaglia's xorshift64*.
#[derive(Debug, Clone, Copy)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

/// Calls kept of one stack: as many as Go keeps.
const CALLS_MAX: usize = 32;

/// Who waits for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stack {
    site: &'static Site,
    /// Return addresses, innermost first.
    calls: Vec<usize>,
}

impl Stack {
    fn here(site: &'static Site) -> Self {
        Self { site, calls: stack::here(CALLS_MAX) }
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
            time_nanos: time_nanos(),
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicBool;

    use super::super::sites::site;
    use super::super::symbols;
    use super::*;
    use crate::supervise;

    /// What sampling makes of `delays`, each met many times: contentions and delay for each of them, as parts of the truth.
    fn check_unbiased(delays: &[u64], weight: impl Fn(u64, u64) -> Option<f64>) {
        const TIMES: u32 = 200_000;
        for seed in 1..=4 {
            let mut random = Random::new(seed);
            for delay in delays {
                let sum: f64 = (0..TIMES).filter_map(|_| weight(*delay, random.next())).sum();
                let part = sum / f64::from(TIMES);
                assert!((0.95..1.05).contains(&part), "{delay} ns: {part} of what was, seed {seed}");
            }
        }
    }

    #[test]
    fn sampled_waits_stand_for_all_of_them() {
        check_unbiased(&[50, 333, 5_000, 9_999, 10_000, 70_000], |delay, random| block_weight(delay, 10_000, random));
    }

    #[test]
    fn sampled_contentions_stand_for_all_of_them() {
        check_unbiased(&[1], |_, random| mutex_weight(100, random));
    }

    #[test]
    fn waits_as_long_as_the_rate_are_all_recorded_and_with_rate_0_none() {
        let mut random = Random::new(7);
        for delay in [10_000, 10_001, u64::MAX] {
            assert!((0..100).all(|_| block_weight(delay, 10_000, random.next()) == Some(1.0)));
        }
        assert!((0..100).all(|_| block_weight(1, 1, random.next()) == Some(1.0)), "1 records all");
        assert!((0..100).all(|_| mutex_weight(1, random.next()) == Some(1.0)), "1 records all");
        assert_eq!((block_weight(u64::MAX, 0, 0), mutex_weight(0, 0)), (None, None));
    }

    #[test]
    fn a_wait_of_no_time_is_worth_nothing() {
        assert_eq!(block_weight(0, 10_000, 0), None);
    }

    /// Contentions and nanoseconds at a site.
    fn recorded(profile: &Profile, site: &'static Site) -> Option<(i64, i64)> {
        let head = [Frame::Name(site.what), Frame::Place(&site.place)];
        let here: Vec<_> = profile.samples.iter().filter(|sample| sample.stack.starts_with(&head)).collect();
        (!here.is_empty()).then(|| {
            let sum = |at: usize| here.iter().map(|sample| sample.values[at]).sum();
            (sum(0), sum(1))
        })
    }

    #[test]
    fn a_wait_is_recorded_with_its_time_when_it_ends_on_whatever_thread() {
        let site = site!("wait for the test");
        assert!(begin(site).is_none(), "off at first");
        set_block_rate(1);
        assert_eq!(block_rate(), 1);
        let (kept, dropped) = (begin(site), begin(site));
        let begun = clock::monotonic();
        std::thread::scope(|scope| scope.spawn(|| end(kept)).join().unwrap());
        drop(dropped);
        let longest = nanoseconds(clock::monotonic() - begun) + 1_000_000_000;
        let (contentions, delay) = recorded(&block_profile(), site).unwrap();
        assert_eq!(contentions, 1);
        assert!(delay > 0 && delay < i64::try_from(longest).unwrap(), "{delay} ns");
        end(begin(site));
        assert_eq!(recorded(&block_profile(), site).unwrap().0, 2, "the same way to the same site");
        assert!(block_count() >= 1);
        set_block_rate(0);
        end(begin(site));
        assert_eq!(recorded(&block_profile(), site).unwrap().0, 2);
    }

    #[inline(never)]
    fn hand_in(site: &'static Site) -> Option<Box<Begun>> {
        std::hint::black_box(begin(site))
    }

    #[test]
    fn a_wait_shows_the_way_to_it() {
        let site = site!("wait after a call");
        set_block_rate(1);
        supervise::spawn("waits", || end(hand_in(site))).unwrap().join().unwrap();
        let profile = block_profile();
        let [sample] = &profile.samples[..] else { panic!("{profile:?}") };
        let names: Vec<_> = symbols::resolve(&sample.stack).into_iter().flat_map(|frame| frame.lines).collect();
        assert!(names.iter().any(|line| line.function.ends_with("hand_in")), "{names:?}");
    }

    /// Makes a thread wait for a lock until `is_seen`.
    fn contend(is_seen: impl Fn() -> bool) {
        let mutex = Mutex::new(0);
        let over = AtomicBool::new(false);
        let both = Barrier::new(2);
        std::thread::scope(|scope| {
            let hold = || {
                both.wait();
                while !over.load(Ordering::Relaxed) {
                    *mutex.lock() += 1;
                }
            };
            scope.spawn(hold);
            both.wait();
            while !is_seen() {
                *mutex.lock() += 1;
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_lock_that_is_held_is_a_contention_and_a_wait() {
        set_mutex_fraction(1);
        assert_eq!(mutex_fraction(), 1);
        contend(|| mutex_count() > 0);
        let profile = mutex_profile();
        let [contentions, delay] = profile.samples[0].values[..] else { panic!("{profile:?}") };
        assert!(contentions > 0 && delay > 0);
        assert_eq!(profile.samples[0].stack[0], Frame::Name("wait for a lock"));
        assert_eq!(block_count(), 0, "the other profile is off");
        set_mutex_fraction(0);
        set_block_rate(1);
        contend(|| block_count() > 0);
    }

    #[test]
    fn a_lock_that_is_free_is_no_contention() {
        set_mutex_fraction(1);
        set_block_rate(1);
        let (mutex, lock) = (Mutex::new(1), RwLock::new(1));
        *mutex.lock() += 1;
        *lock.write() += 1;
        let (first, second) = (lock.read(), lock.read());
        assert_eq!((*mutex.lock(), *first, *second), (2, 2, 2));
        assert_eq!((mutex_count(), block_count()), (0, 0));
    }

    #[test]
    fn a_panic_of_a_holder_does_not_poison_the_lock() {
        let (mutex, lock) = (Mutex::new(1), RwLock::new(1));
        std::thread::scope(|scope| {
            let fail = || {
                let _held = (mutex.lock(), lock.write());
                panic!("as the test wants it");
            };
            scope.spawn(fail).join().unwrap_err();
        });
        assert_eq!((*mutex.lock(), *lock.read()), (1, 1));
        assert_eq!(*lock.write(), 1);
    }

    #[test]
    fn stacks_beyond_the_bound_are_counted_together() {
        let (table, site) = (Table::new(), site!("wait in many places"));
        for call in 0..STACKS_MAX + 5 {
            table.record(Stack { site, calls: vec![call] }, 2.0, 10);
        }
        table.record(Stack { site, calls: vec![0] }, 1.0, 10);
        assert_eq!(table.count(), STACKS_MAX);
        let samples = table.profile().samples;
        let values_of =
            |frame| samples.iter().find(|sample| sample.stack.last() == Some(&frame)).unwrap().values.clone();
        assert_eq!(values_of(Frame::Name("other stacks")), [10, 100]);
        assert_eq!(values_of(Frame::Return(0)), [3, 30]);
    }
}
