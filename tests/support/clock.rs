//! Time as tests see it: the one place of the harness that asks for it.
#![expect(clippy::disallowed_methods, reason = "tests measure the server from outside, on the machine's own clock")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC, as the server stamps messages.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The current millisecond, once it is over: everything stamped so far is not later, everything to come is later.
pub fn finished_ms() -> i64 {
    let mark = now_ms();
    while now_ms() <= mark {
        std::thread::sleep(Duration::from_micros(200));
    }
    mark
}

pub fn instant() -> Instant {
    Instant::now()
}

/// Asks `ready` every few milliseconds; `None` when `limit` has passed. For what sends no event: another process.
pub fn poll<T>(limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let start = instant();
    loop {
        if let Some(found) = ready() {
            return Some(found);
        }
        if start.elapsed() > limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
