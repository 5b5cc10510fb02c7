//! Threads.

use super::{Frame, Profile};

/// What one thread was doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadStack {
    /// As the system shows it.
    pub name: String,
    /// The system's number of the thread.
    pub tid: i32,
    /// As in proc_pid_stat(5): `R` runs, `S` waits, `D` waits for a disk.
    pub state: char,
    /// Leaf first; empty for a thread that did not answer.
    pub frames: Vec<Frame>,
}

/// All threads, by number.
#[must_use]
pub fn stacks() -> Vec<ThreadStack> {
    Vec::new()
}

/// Living threads by the stack that started them: one sample type, `threadcreate`.
#[must_use]
pub fn created() -> Profile {
    unimplemented!()
}
