//! The promises that are checked, and how a broken one is told.

use std::fmt;

/// A promise of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Broadcasts come in commit order, each as it was committed.
    Order,
    /// After SUBSCRIBE_OK everything is delivered or listed.
    NoGap,
    /// Nothing of a place or thread that the client did not ask for.
    NoLeak,
    /// One answer per request, in the order of the requests, and a true one.
    Reply,
    /// An acknowledged post is stored once, a refused one is not.
    Durable,
    /// Rosters come to match who is here.
    Presence,
    /// What is due to a session whose socket takes it leaves in the same turn.
    Prompt,
    /// Slow readers are closed, nobody else is, and no queue outgrows its bound.
    SlowReader,
    /// Sessions end for the reason that holds, and leave nothing behind.
    Ending,
    /// Frames are whole, legal and in bounds.
    Wire,
    /// Once nobody acts any more, nothing is left to do.
    Rest,
    /// Nothing panics.
    Panic,
}

/// A broken promise.
#[derive(Debug)]
pub struct Violation {
    pub rule: Rule,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} broken: {}", self.rule, self.what)
    }
}

pub type Check = Result<(), Violation>;

/// Ends the function with a [`Violation`] unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $rule:expr, $($what:tt)+) => {
        if !$holds {
            return Err($crate::rule::Violation { rule: $rule, what: format!($($what)+) });
        }
    };
}
pub(crate) use ensure;
