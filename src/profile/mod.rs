//! Profiles as the tools of Go servers read them: what is running, what holds memory, what waits, and for whom.
//!
//! Sources make a [`Profile`]: a list of stacks with values, by addresses or by places in the source. Names, lines and the
//! file format come last, in one encoder for all of them.

pub mod sites;
pub mod tasks;
pub mod waits;

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
