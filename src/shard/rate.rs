//! Rates: a token bucket per session, and sliding windows that all shards share.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use foldhash::fast::RandomState;

use super::ChatSettings;
use crate::ids::{SessionId, UserId};
use crate::profile::waits::Mutex;

/// Requests of one session: refilled at `rate` a second, bursts of twice that.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokenBucket {
    /// Milliseconds of credit used up, relative to `at`.
    debt_ms: u64,
    at: u64,
}

impl TokenBucket {
    /// Takes one token; `false` when none is left. `now` in monotonic milliseconds, `rate` in requests a second.
    pub fn take(&mut self, now: u64, rate: u32) -> bool {
        let rate = u64::from(rate.max(1));
        // Debt is counted in 1/rate milliseconds, so that every rate has whole numbers.
        self.debt_ms = self.debt_ms.saturating_sub(now.saturating_sub(self.at) * rate);
        self.at = now;
        let fits = self.debt_ms + 1000 <= 2 * rate * 1000;
        if fits {
            self.debt_ms += 1000;
        }
        fits
    }
}

/// At most so many events per key and period, counted over a window that slides: the previous period weighs in by the
/// part of it that is still inside. Shared by all shards; the lock is held for one look-up.
#[derive(Debug)]
pub struct SlidingWindow<K> {
    limit: Option<u32>,
    period_ms: u64,
    table: Mutex<Table<K>>,
}

#[derive(Debug)]
struct Table<K> {
    counts: HashMap<K, Count, RandomState>,
    /// The period in which keys whose window had passed were last forgotten.
    swept_in: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    period: u64,
    current: u32,
    previous: u32,
}

/// Keys remembered at once. Beyond, those whose window has passed are forgotten, at most once a period so that a flood does
/// not buy a sweep with every event; if that makes no room, new keys go uncounted and known ones are counted as ever.
const KEYS_MAX: usize = 100_000;

impl<K: Hash + Eq> SlidingWindow<K> {
    /// `limit` events per `period_ms`; `None` = no limit.
    #[must_use]
    pub fn new(limit: Option<u32>, period_ms: u64) -> Self {
        let table = Table { counts: HashMap::default(), swept_in: None };
        Self { limit, period_ms, table: Mutex::new(table) }
    }

    /// Counts one event at `now` (monotonic milliseconds); `false` when that is one too many, and it is not counted.
    pub fn admit(&self, key: K, now: u64) -> bool {
        let Some(limit) = self.limit else { return true };
        let mut table = self.table.lock();
        if !table.counts.contains_key(&key) && !table.has_room(now / self.period_ms) {
            return true;
        }
        table.counts.entry(key).or_default().admit(now, limit, self.period_ms)
    }
}

impl<K> Table<K> {
    fn has_room(&mut self, period: u64) -> bool {
        if self.counts.len() >= KEYS_MAX && self.swept_in != Some(period) {
            self.swept_in = Some(period);
            self.counts.retain(|_, count| count.period + 1 >= period);
        }
        self.counts.len() < KEYS_MAX
    }
}

impl Count {
    fn admit(&mut self, now: u64, limit: u32, period_ms: u64) -> bool {
        let period = now / period_ms;
        match period.saturating_sub(self.period) {
            0 => {}
            1 => *self = Self { period, current: 0, previous: self.current },
            _ => *self = Self { period, current: 0, previous: 0 },
        }
        let inside = period_ms - now % period_ms;
        let weighted = (u64::from(self.previous) * inside).div_ceil(period_ms) + u64::from(self.current);
        let fits = weighted < u64::from(limit);
        if fits {
            self.current += 1;
        }
        fits
    }
}

/// Rates that count across shards.
#[derive(Debug)]
pub struct Rates {
    pub messages_by_user: SlidingWindow<UserId>,
    pub messages_by_session: SlidingWindow<SessionId>,
    pub messages_by_address: SlidingWindow<IpAddr>,
    pub channels_by_user: SlidingWindow<UserId>,
    pub auth_by_address: SlidingWindow<IpAddr>,
    pub auth_by_account: SlidingWindow<Box<[u8]>>,
}

impl Rates {
    const MINUTE_MS: u64 = 60_000;
    const HOUR_MS: u64 = 60 * Self::MINUTE_MS;

    #[must_use]
    pub fn new(settings: &ChatSettings) -> Self {
        // A visitor who comes back on a new connection goes on counting for the address, which the connection limit
        // allows as many sessions.
        let sessions = u32::from(settings.announced.max_connections_per_ip.max(1));
        Self {
            messages_by_user: SlidingWindow::new(settings.messages_per_minute, Self::MINUTE_MS),
            messages_by_session: SlidingWindow::new(settings.messages_per_minute, Self::MINUTE_MS),
            messages_by_address: SlidingWindow::new(
                settings.messages_per_minute.map(|limit| limit.saturating_mul(sessions)),
                Self::MINUTE_MS,
            ),
            channels_by_user: SlidingWindow::new(settings.channels_per_hour, Self::HOUR_MS),
            auth_by_address: SlidingWindow::new(settings.auth_attempts_per_minute, Self::MINUTE_MS),
            auth_by_account: SlidingWindow::new(settings.auth_attempts_per_minute, Self::MINUTE_MS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_allows_a_burst_of_twice_the_rate_then_the_rate() {
        let mut bucket = TokenBucket::default();
        let burst = (0..1000).filter(|_| bucket.take(10_000, 100)).count();
        let second = (1..=1000).filter(|ms| bucket.take(10_000 + ms, 100)).count();
        assert_eq!((burst, second), (200, 100));
    }

    #[test]
    fn window_slides() {
        let window = SlidingWindow::new(Some(10), 60_000);
        let admitted = |range: std::ops::Range<u64>| range.filter(|now| window.admit("a", *now)).count();
        assert_eq!(admitted(30_000..30_100), 10);
        assert_eq!(admitted(60_000..60_100), 0, "a full window half a period ago still counts");
        assert!(window.admit("b", 60_000));
        assert_eq!(admitted(180_000..180_100), 10);
    }

    #[test]
    fn no_limit_counts_nothing() {
        let window = SlidingWindow::new(None, 60_000);
        assert!((0..1000).all(|_| window.admit(1, 0)));
        assert!(window.table.lock().counts.is_empty());
    }

    #[test]
    fn a_full_table_goes_on_counting_who_is_in_it_and_makes_room_when_their_time_has_passed() {
        let window = SlidingWindow::new(Some(1), 60_000);
        assert!((0..KEYS_MAX).all(|key| window.admit(key, 0)));
        assert!(!window.admit(7, 1), "a known key is counted");
        assert!(window.admit(KEYS_MAX, 1) && window.admit(KEYS_MAX, 2), "there is no room for a new one");
        assert!(window.admit(KEYS_MAX, 120_000));
        assert!(!window.admit(KEYS_MAX, 120_001), "there is now");
    }
}
