//! Two ways of doing one work, in many short slices by turns: what the machine does meanwhile happens to both alike. What
//! is left is chance, and how large that is comes with every figure.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::report::{float, median, micros_each};

/// What a slice of the work took.
#[derive(Clone, Copy)]
pub(crate) struct Slice {
    pub(crate) operations: u64,
    /// Of the server, in all its threads.
    pub(crate) cpu: Duration,
}

impl Slice {
    /// Microseconds of CPU time for each operation.
    fn each(self) -> f64 {
        micros_each(self.cpu, self.operations)
    }
}

/// Takes `pairs` pairs of slices, one with what is measured and one without, and says by how many percent of CPU time an
/// operation costs more with it, pair by pair.
///
/// Which of the two comes first is drawn, so that nothing that recurs in the server or the machine, such as a checkpoint
/// every second, falls on one of them.
///
/// # Errors
/// Those of `slice`, and a slice in which nothing was done.
pub(crate) fn costs(pairs: u16, seed: u64, mut slice: impl FnMut(bool) -> Result<Slice>) -> Result<Vec<f64>> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..pairs).map(|_| pair(random.random(), &mut slice)).collect()
}

fn pair(with_first: bool, slice: &mut impl FnMut(bool) -> Result<Slice>) -> Result<f64> {
    let (first, second) = (slice(with_first)?, slice(!with_first)?);
    let (with, without) = if with_first { (first, second) } else { (second, first) };
    ensure!(with.operations > 0 && !without.cpu.is_zero() && without.operations > 0, "nothing was done in a slice");
    Ok((with.each() / without.each() - 1.0) * 100.0)
}

/// The middle of many values, and between which two of them the true middle lies in 95 of 100 runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// By the sign test, which supposes nothing about how the values are spread. Of fewer than six values no two are far enough
/// apart: the least and the greatest are given.
pub(crate) fn estimate(values: &[f64]) -> Estimate {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let outside = outside(sorted.len());
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    Estimate { median: median(values), low: at(outside), high: at(sorted.len().saturating_sub(outside + 1)) }
}

/// How many of `count` values may be left out at either end: as many as a coin that is tossed `count` times shows heads, or
/// fewer, in at most 2.5 of 100 runs.
fn outside(count: usize) -> usize {
    let tosses = float(count as u64);
    // Of the outcomes with `heads` heads, as a logarithm, because of thousands of tosses there are too many for a number; and
    // of all with as many or fewer.
    let (mut exactly, mut at_most) = (-tosses * std::f64::consts::LN_2, 0.0);
    for heads in 0..count {
        at_most += exactly.exp();
        if at_most > 0.025 {
            return heads.saturating_sub(1);
        }
        let heads = float(heads as u64);
        exactly += ((tosses - heads) / (heads + 1.0)).ln();
    }
    0
}
