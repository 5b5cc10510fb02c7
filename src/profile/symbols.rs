//! Names for addresses.

use super::Frame;

/// A function at a place in the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    /// As people read it; the address in hexadecimal when it has no name.
    pub function: String,
    /// As the linker knows it.
    pub system_name: String,
    /// Empty when unknown.
    pub file: String,
    /// 0 when unknown.
    pub line: u32,
}

/// What stands at one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Where to look the frame up: a return address minus one. `None` for what has no address.
    pub address: Option<usize>,
    /// Never empty; inlined functions before those they are inlined into.
    pub lines: Vec<Line>,
}

/// Names and lines of `frames`, one for each.
#[must_use]
pub fn resolve(frames: &[Frame]) -> Vec<Resolved> {
    let _ = frames;
    Vec::new()
}

/// The function at `address`, as `symbol` answers it; `None` when there is none.
#[must_use]
pub fn name_at(address: usize) -> Option<String> {
    let _ = address;
    None
}
