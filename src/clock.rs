//! Wall and monotonic time, and how a time is written; the only file that asks the system what time it is.
//!
//! Everything else takes the time as an argument, so that a test can choose it.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The wall clock, with the system's full precision.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Milliseconds since 1970 (UTC) on the wall clock, which operators and NTP may set back.
pub fn wall_ms() -> i64 {
    now().as_millisecond()
}

/// Milliseconds since the first call in this process; never goes back, so durations are measured with it.
pub fn monotonic_ms() -> u64 {
    u64::try_from(monotonic().as_millis()).unwrap_or(u64::MAX)
}

/// Time since the first call in this process, as [`monotonic_ms`], in full precision.
pub fn monotonic() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "this file is the one place that asks for the time")]
    let now = Instant::now();
    static START: OnceLock<Instant> = OnceLock::new();
    let time = now.saturating_duration_since(*START.get_or_init(|| now));
    let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    if RECENT_SECONDS.load(Ordering::Relaxed) != seconds {
        RECENT_SECONDS.store(seconds, Ordering::Relaxed);
    }
    time
}

static RECENT_SECONDS: AtomicU32 = AtomicU32::new(0);

/// [`monotonic`] in whole seconds, as of when anybody last asked: for who would ask too often. A server that runs is a
/// second late at most, because its shards show every second that they live.
pub fn recent_seconds() -> u32 {
    RECENT_SECONDS.load(Ordering::Relaxed)
}

/// Microseconds on the system's own monotonic clock, by which a service manager orders what it is told.
pub fn system_monotonic_micros() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[expect(unsafe_code, reason = "the standard library does not tell an Instant's value; the call writes one struct")]
    // SAFETY: `time` outlives the call, which gets a valid pointer to it.
    let outcome = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    debug_assert_eq!(outcome, 0, "every Linux has this clock");
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(time.tv_sec) * 1_000_000 + part(time.tv_nsec) / 1_000
}

/// The system's time zone (`TZ`, else `/etc/localtime`, else UTC), read once: a later lookup could touch the disk.
pub fn zone() -> &'static TimeZone {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    ZONE.get_or_init(TimeZone::system)
}

/// `2025/10/08 14:30:15.123456` in `zone`: how a log line begins (OBSERVABILITY.md 4).
pub fn line_time(time: Timestamp, zone: &TimeZone) -> impl fmt::Display {
    let local = zone.to_datetime(time);
    fmt::from_fn(move |f| {
        write!(
            f,
            "{:04}/{:02}/{:02} {:02}:{:02}:{:02}.{:06}",
            local.year(),
            local.month(),
            local.day(),
            local.hour(),
            local.minute(),
            local.second(),
            local.subsec_nanosecond() / 1_000
        )
    })
}

/// RFC 3339 in UTC with microseconds: `2025-10-08T12:30:15.123456Z`.
pub fn rfc3339_utc(time: Timestamp) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "{time:.6}"))
}

/// RFC 3339 in UTC with whole seconds, from milliseconds since 1970: `2025-10-08T12:30:15Z`.
pub fn rfc3339(wall_ms: i64) -> String {
    Timestamp::from_millisecond(wall_ms).unwrap_or(Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// RFC 3339 with the offset of `zone` and whole seconds: `2025-10-08T14:30:15+02:00`.
pub fn rfc3339_local(time: Timestamp, zone: &TimeZone) -> impl fmt::Display {
    let local = time.display_with_offset(zone.to_offset(time));
    fmt::from_fn(move |f| write!(f, "{local:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_759_926_615_123_456;

    fn check(zone: &str, line: &str, utc: &str, local: &str) {
        let time = Timestamp::from_microsecond(NOON).unwrap();
        let zone = TimeZone::posix(zone).unwrap();
        assert_eq!(line_time(time, &zone).to_string(), line);
        assert_eq!(rfc3339_utc(time).to_string(), utc);
        assert_eq!(rfc3339_local(time, &zone).to_string(), local);
    }

    #[test]
    fn a_time_is_written_in_its_zone() {
        let utc = "2025-10-08T12:30:15.123456Z";
        check("CET-1CEST,M3.5.0,M10.5.0/3", "2025/10/08 14:30:15.123456", utc, "2025-10-08T14:30:15+02:00");
        check("UTC0", "2025/10/08 12:30:15.123456", utc, "2025-10-08T12:30:15+00:00");
    }

    #[test]
    fn a_time_on_the_second_keeps_its_six_digits() {
        let time = Timestamp::from_second(NOON / 1_000_000).unwrap();
        assert_eq!(line_time(time, &TimeZone::UTC).to_string(), "2025/10/08 12:30:15.000000");
        assert_eq!(rfc3339_utc(time).to_string(), "2025-10-08T12:30:15.000000Z");
    }

    #[test]
    fn both_clocks_run_forward_from_a_plausible_start() {
        assert!(wall_ms() > NOON / 1_000);
        let before = monotonic_ms();
        assert!(monotonic_ms() >= before);
    }
}
