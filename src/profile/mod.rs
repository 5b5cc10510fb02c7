//! Profiles as the tools of Go servers read them: what is running, what holds memory, what waits, and for whom.
//!
//! Sources make a [`Profile`]: a list of stacks with values, by addresses or by places in the source. Names, lines and the
//! file format come last, in one encoder for all of them.

pub mod cpu;
pub mod encode;
pub mod flamegraph;
pub mod heap;
mod mappings;
mod signal;
pub mod sites;
pub mod stack;
pub mod symbols;
pub mod tasks;
pub mod text;
pub mod threads;
pub mod waits;

use std::collections::HashMap;
use std::panic::Location;

/// What one value of every sample counts, as in `profile.proto`'s `ValueType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueType {
    /// Such as `samples`, `cpu`, `inuse_space`.
    pub kind: &'static str,
    /// Such as `count`, `bytes`, `nanoseconds`.
    pub unit: &'static str,
}

/// A place in the source that stands for code with no address of its own: where a task was spawned, where it waits.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Full path of the function, such as `superchat::net::tcp::Core::serve`.
    pub function: &'static str,
    pub location: &'static Location<'static>,
}

/// One step of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frame {
    /// The instruction that was running.
    Pc(usize),
    /// Where a call returns to; the call itself stands before.
    Return(usize),
    /// Known by the source, not by address.
    Place(&'static Place),
    /// A name alone, such as a thread's.
    Name(&'static str),
}

/// One stack and what was measured there.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Leaf first.
    pub stack: Vec<Frame>,
    /// One per [`Profile::sample_types`].
    pub values: Vec<i64>,
    pub labels: Vec<(&'static str, Label)>,
}

/// What a sample may be told apart by, besides its stack.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Label {
    Text(String),
    Number(i64, &'static str),
}

/// Everything one profile says, before names are looked up.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    pub sample_types: &'static [ValueType],
    /// The one a tool shows when it is not asked for another.
    pub default_sample_type: &'static str,
    /// What happens between two samples, and how much of it.
    pub period_type: ValueType,
    pub period: i64,
    /// Nanoseconds since 1970 at the start.
    pub time_nanos: i64,
    /// 0 for a look at one moment.
    pub duration_nanos: i64,
    pub samples: Vec<Sample>,
    /// A regular expression over function names whose frames, and what they call, are left out: an allocator's own.
    pub drop_frames: &'static str,
    pub comments: Vec<String>,
}

impl Profile {
    /// What happened since `earlier`, a profile of the same kind: values by stack and labels, without those that did not
    /// change. What is in use may have become less.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut differences: HashMap<_, Vec<i64>> = HashMap::new();
        for (samples, sign) in [(&self.samples, 1_i64), (&earlier.samples, -1)] {
            for sample in samples {
                let key = (sample.stack.as_slice(), sample.labels.as_slice());
                let sums = differences.entry(key).or_insert_with(|| vec![0; sample.values.len()]);
                let values = sample.values.iter().map(|value| value.saturating_mul(sign));
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.saturating_add(value));
            }
        }
        let changed = differences.into_iter().filter(|(_, values)| values.iter().any(|value| *value != 0));
        let mut samples: Vec<Sample> = changed
            .map(|((stack, labels), values)| Sample { stack: stack.to_vec(), values, labels: labels.to_vec() })
            .collect();
        samples.sort_unstable_by(|a, b| b.values.cmp(&a.values));
        let duration_nanos = self.time_nanos.saturating_sub(earlier.time_nanos);
        Self { samples, duration_nanos, comments: self.comments.clone(), ..*self }
    }
}

/// Nanoseconds since 1970, as profiles have them.
#[must_use]
pub fn time_nanos() -> i64 {
    i64::try_from(crate::clock::now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECTS: ValueType = ValueType { kind: "inuse_objects", unit: "count" };

    fn profile(time_nanos: i64, samples: &[(usize, &str, i64)]) -> Profile {
        let sample = |(pc, thread, value): &(usize, &str, i64)| Sample {
            stack: vec![Frame::Pc(*pc), Frame::Return(7)],
            values: vec![*value],
            labels: vec![("thread", Label::Text((*thread).to_owned()))],
        };
        Profile {
            sample_types: &[OBJECTS],
            default_sample_type: OBJECTS.kind,
            period_type: OBJECTS,
            period: 1,
            time_nanos,
            duration_nanos: 0,
            samples: samples.iter().map(sample).collect(),
            drop_frames: "",
            comments: vec!["a comment".to_owned()],
        }
    }

    #[test]
    fn a_difference_goes_by_stack_and_labels_and_leaves_out_what_stayed() {
        let earlier = profile(1_000, &[(1, "a", 5), (2, "a", 9), (3, "a", 4)]);
        let later = profile(3_500, &[(1, "a", 7), (1, "b", 5), (2, "a", 9)]);
        let expected = profile(3_500, &[(1, "b", 5), (1, "a", 2), (3, "a", -4)]);
        assert_eq!(later.since(&earlier), Profile { duration_nanos: 2_500, ..expected });
    }

    #[test]
    fn a_stack_that_comes_twice_counts_with_its_sum() {
        let earlier = profile(0, &[(1, "a", 1), (1, "a", 2)]);
        let later = profile(0, &[(1, "a", 4), (1, "a", 5)]);
        assert_eq!(later.since(&earlier).samples, profile(0, &[(1, "a", 6)]).samples);
    }
}
