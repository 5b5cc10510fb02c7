//! The cells that hold numbers: relaxed atomics in fixed arrays. Nothing here waits or allocates once built.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::table::Label;

/// A number that one or many threads raise and a scrape reads.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds from any thread.
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Takes away from any thread; below zero it wraps, so pair it with [`Counter::add`].
    pub(super) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// Adds without a locked instruction. Only the one thread that owns this cell may write it, else counts are lost.
    pub(super) fn add_owned(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Relaxed);
    }

    /// The counterpart of [`Counter::add_owned`].
    pub(super) fn sub_owned(&self, n: u64) {
        self.0.store(self.get().saturating_sub(n), Relaxed);
    }

    /// Replaces the value.
    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that is not known before somebody says it.
#[derive(Debug)]
pub(super) struct Level(AtomicU64);

impl Default for Level {
    fn default() -> Self {
        Self(AtomicU64::new(Self::UNKNOWN))
    }
}

impl Level {
    const UNKNOWN: u64 = u64::MAX;

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|value| *value != Self::UNKNOWN)
    }
}

/// `n` counters at zero.
pub(super) fn counters(n: usize) -> Box<[Counter]> {
    std::iter::repeat_with(Counter::default).take(n).collect()
}

/// One counter for each value of a label.
#[derive(Debug)]
pub(super) struct PerLabel<L>(Box<[Counter]>, PhantomData<L>);

impl<L: Label> PerLabel<L> {
    pub(super) fn new() -> Self {
        Self(counters(L::ALL.len()), PhantomData)
    }

    pub(super) fn of(&self, label: L) -> &Counter {
        &self.0[label.index()]
    }
}

const BOUNDS_MAX: usize = 16;

/// Upper bounds of a histogram in the unit that is observed, and how many of that unit make one of the exported unit.
#[derive(Debug)]
pub(super) struct Buckets {
    bounds: &'static [u64],
    per_unit: f64,
}

const MICROS_PER_SECOND: f64 = 1e6;

/// Recipients per broadcast.
pub(super) static FANOUT: Buckets =
    Buckets { bounds: &[1, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 5000], per_unit: 1.0 };
/// Microseconds; the bounds existing dashboards know.
pub(super) static BROADCAST: Buckets = Buckets {
    bounds: &[5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000],
    per_unit: MICROS_PER_SECOND,
};
/// Microseconds, from an answer out of memory to the 2 s of the slowest alert and beyond.
pub(super) static LATENCY: Buckets = Buckets {
    bounds: &[
        50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
        2_000_000, 5_000_000,
    ],
    per_unit: MICROS_PER_SECOND,
};
/// Commands in one transaction.
pub(super) static BATCH: Buckets = Buckets { bounds: &[1, 2, 5, 10, 25, 50, 100, 250, 500, 1000], per_unit: 1.0 };

const _: () = assert!(FANOUT.bounds.len() <= BOUNDS_MAX && BROADCAST.bounds.len() <= BOUNDS_MAX);
const _: () = assert!(LATENCY.bounds.len() <= BOUNDS_MAX && BATCH.bounds.len() <= BOUNDS_MAX);

/// A histogram with fixed buckets; its own cache lines, so that two shards never share one.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Histogram {
    buckets: &'static Buckets,
    counts: [Counter; BOUNDS_MAX + 1],
    sum: Counter,
}

impl Histogram {
    pub(super) fn new(buckets: &'static Buckets) -> Self {
        Self { buckets, counts: Default::default(), sum: Counter::default() }
    }

    /// Records a value from any thread.
    pub(super) fn observe(&self, value: u64) {
        self.counts[self.place(value)].add(1);
        self.sum.add(value);
    }

    /// Records a value from the one thread that owns this histogram ([`Counter::add_owned`]).
    pub(super) fn observe_owned(&self, value: u64) {
        self.counts[self.place(value)].add_owned(1);
        self.sum.add_owned(value);
    }

    fn place(&self, value: u64) -> usize {
        self.buckets.bounds.partition_point(|bound| *bound < value)
    }
}

/// What histograms of one kind amount to at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    buckets: &'static Buckets,
    counts: [u64; BOUNDS_MAX + 1],
    sum: u64,
}

impl Snapshot {
    pub(super) fn new(buckets: &'static Buckets) -> Self {
        Self { buckets, counts: [0; BOUNDS_MAX + 1], sum: 0 }
    }

    pub(super) fn of(histogram: &Histogram) -> Self {
        Self::new(histogram.buckets).merged(histogram)
    }

    pub(super) fn merged(mut self, histogram: &Histogram) -> Self {
        for (total, count) in self.counts.iter_mut().zip(&histogram.counts) {
            *total += count.get();
        }
        self.sum += histogram.sum.get();
        self
    }

    /// The sum of the buckets, so that a scrape in the middle of an observation is still consistent.
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum as f64 / self.buckets.per_unit
    }

    /// Upper bound and cumulative count, without the infinite bucket.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.buckets.bounds.iter().zip(&self.counts).scan(0, |total, (bound, count)| {
            *total += count;
            Some((*bound as f64 / self.buckets.per_unit, *total))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_that_bucket() {
        let histogram = Histogram::new(&FANOUT);
        for value in [0, 1, 2, 5, 5000, 5001] {
            histogram.observe(value);
        }
        let snapshot = Snapshot::of(&histogram);
        let cumulative: Vec<_> = snapshot.cumulative().collect();
        assert_eq!(cumulative[..2], [(1.0, 2), (5.0, 4)]);
        assert_eq!(cumulative[10], (5000.0, 5));
        assert_eq!((snapshot.count(), snapshot.sum()), (6, 10009.0));
    }

    #[test]
    fn microseconds_are_exported_as_seconds() {
        let histogram = Histogram::new(&BROADCAST);
        histogram.observe_owned(2_500_000);
        let snapshot = Snapshot::of(&histogram);
        assert_eq!(snapshot.sum(), 2.5);
        assert_eq!(snapshot.cumulative().next(), Some((0.005, 0)));
        assert_eq!(snapshot.cumulative().last(), Some((10.0, 1)));
    }
}
