//! What holds memory.

use super::Profile;

/// What a tool shows first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// `heap`: what is in use now.
    InUse,
    /// `allocs`: everything allocated since the start.
    Allocated,
}

/// Why there is no heap profile.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    #[error("the allocator does not sample: {0}")]
    Disabled(String),
    #[error("cannot read the allocator's samples: {0}")]
    Io(#[from] std::io::Error),
    #[error("the allocator's samples have an unknown form: {0}")]
    Malformed(String),
}

/// Allocations by stack.
///
/// # Errors
/// See [`HeapError`].
pub fn take(shown: Shown) -> Result<Profile, HeapError> {
    Err(HeapError::Disabled(format!("{shown:?}")))
}
