//! Latencies in buckets that widen with the value: a fixed 30 KiB, no value further off than 1.6 %.

use std::time::Duration;

/// Buckets per power of two, as a power of two.
const PRECISION_BITS: u32 = 6;
const STEPS: usize = 1 << PRECISION_BITS;

/// Counts of durations, in nanoseconds.
#[derive(Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; STEPS * (65 - PRECISION_BITS as usize)], total: 0 }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.counts[bucket(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX))] += 1;
        self.total += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.total += other.total;
    }

    /// The least value that `permille` of 1000 records do not exceed, rounded up to its bucket; zero without records.
    pub(crate) fn permille(&self, permille: u64) -> Duration {
        let wanted = (self.total * permille).div_ceil(1000).max(1);
        let mut below = 0;
        let found = self.counts.iter().position(|count| {
            below += count;
            below >= wanted
        });
        found.map_or(Duration::ZERO, |index| Duration::from_nanos(highest(index)))
    }
}

/// Values below [`STEPS`] have a bucket each; above, the highest [`PRECISION_BITS`] bits behind the leading one decide.
fn bucket(value: u64) -> usize {
    let octave = (64 - value.leading_zeros()).saturating_sub(PRECISION_BITS);
    match octave {
        0 => usize::try_from(value).unwrap_or(0),
        _ => octave as usize * STEPS + usize::try_from(value >> (octave - 1)).unwrap_or(0) - STEPS,
    }
}

/// The largest value of a bucket.
fn highest(index: usize) -> u64 {
    match index / STEPS {
        0 => index as u64,
        octave => ((((index % STEPS) + STEPS) as u64 + 1) << (octave - 1)).wrapping_sub(1),
    }
}
