//! Time as a benchmark needs it: asked for directly, because to measure is all it does.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time and runs under no other clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
