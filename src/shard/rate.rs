//! Rates: a token bucket per session, and sliding windows that all shards share.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use foldhash::fast::RandomState;

use super::ChatSettings;
use crate::ids::{SessionId, UserId};
use crate::limits::party;
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
    /// 0 = no limit.
    limit: AtomicU32,
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
        Self { limit: AtomicU32::new(limit.unwrap_or(0)), period_ms, table: Mutex::new(table) }
    }

    /// Another limit counts from now on; what was counted stays.
    pub fn set_limit(&self, limit: Option<u32>) {
        self.limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    fn limit(&self) -> Option<u32> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Whether one more event at `now` would be admitted. It is not counted.
    pub fn would_admit(&self, key: &K, now: u64) -> bool {
        let Some(limit) = self.limit() else { return true };
        let table = self.table.lock();
        table.counts.get(key).copied().is_none_or(|mut count| count.admit(now, limit, self.period_ms))
    }

    /// Counts one event at `now` (monotonic milliseconds); `false` when that is one too many, and it is not counted.
    pub fn admit(&self, key: K, now: u64) -> bool {
        let Some(limit) = self.limit() else { return true };
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

/// A window for addresses: those of one [`party`] count as one.
#[derive(Debug)]
pub struct PartyWindow(SlidingWindow<IpAddr>);

impl PartyWindow {
    /// As [`SlidingWindow::new`].
    #[must_use]
    pub fn new(limit: Option<u32>, period_ms: u64) -> Self {
        Self(SlidingWindow::new(limit, period_ms))
    }

    /// As [`SlidingWindow::set_limit`].
    pub fn set_limit(&self, limit: Option<u32>) {
        self.0.set_limit(limit);
    }

    /// As [`SlidingWindow::would_admit`].
    pub fn would_admit(&self, address: IpAddr, now: u64) -> bool {
        self.0.would_admit(&party(address), now)
    }

    /// As [`SlidingWindow::admit`].
    pub fn admit(&self, address: IpAddr, now: u64) -> bool {
        self.0.admit(party(address), now)
    }
}

/// Rates that count across shards.
#[derive(Debug)]
pub struct Rates {
    pub messages_by_user: SlidingWindow<UserId>,
    pub messages_by_session: SlidingWindow<SessionId>,
    pub messages_by_address: PartyWindow,
    pub channels_by_user: SlidingWindow<UserId>,
    pub dms_by_user: SlidingWindow<UserId>,
    pub dms_by_session: SlidingWindow<SessionId>,
    pub dms_by_address: PartyWindow,
    pub key_changes_by_user: SlidingWindow<UserId>,
    pub auth_by_address: PartyWindow,
    pub auth_by_account: SlidingWindow<Box<[u8]>>,
    pub registrations_by_address: SlidingWindow<IpAddr>,
    pub heartbeats_by_address: SlidingWindow<IpAddr>,
}

/// REGISTER_SERVER per hour and address (BEHAVIOUR.md 6.2). Holds for everyone, as in the existing server.
const REGISTRATIONS_MAX: u32 = 30;

/// HEARTBEAT per hour and address: twelve an hour for each of many servers behind one.
const HEARTBEATS_MAX: u32 = 600;

/// Public keys that replace another, per hour and account: each is told to everybody it has encrypted conversations with. A
/// few devices, each with a key of its own, take turns at every sign-in.
const KEY_CHANGES_MAX: u32 = 30;

impl Rates {
    const MINUTE_MS: u64 = 60_000;
    const HOUR_MS: u64 = 60 * Self::MINUTE_MS;

    #[must_use]
    pub fn new(settings: &ChatSettings) -> Self {
        let rates = Self {
            messages_by_user: SlidingWindow::new(None, Self::MINUTE_MS),
            messages_by_session: SlidingWindow::new(None, Self::MINUTE_MS),
            messages_by_address: PartyWindow::new(None, Self::MINUTE_MS),
            channels_by_user: SlidingWindow::new(None, Self::HOUR_MS),
            dms_by_user: SlidingWindow::new(None, Self::HOUR_MS),
            dms_by_session: SlidingWindow::new(None, Self::HOUR_MS),
            dms_by_address: PartyWindow::new(None, Self::HOUR_MS),
            key_changes_by_user: SlidingWindow::new(Some(KEY_CHANGES_MAX), Self::HOUR_MS),
            auth_by_address: PartyWindow::new(None, Self::MINUTE_MS),
            auth_by_account: SlidingWindow::new(None, Self::MINUTE_MS),
            registrations_by_address: SlidingWindow::new(Some(REGISTRATIONS_MAX), Self::HOUR_MS),
            heartbeats_by_address: SlidingWindow::new(Some(HEARTBEATS_MAX), Self::HOUR_MS),
        };
        rates.configure(settings);
        rates
    }

    /// Takes the limits from the settings; what was counted stays.
    pub fn configure(&self, settings: &ChatSettings) {
        // A visitor who comes back on a new connection goes on counting for the address, which the connection limit
        // allows as many sessions.
        let sessions = u32::from(settings.announced.max_connections_per_ip.max(1));
        self.messages_by_user.set_limit(settings.messages_per_minute);
        self.messages_by_session.set_limit(settings.messages_per_minute);
        self.messages_by_address.set_limit(settings.messages_per_minute.map(|limit| limit.saturating_mul(sessions)));
        self.channels_by_user.set_limit(settings.channels_per_hour);
        self.dms_by_user.set_limit(settings.dms_per_hour);
        self.dms_by_session.set_limit(settings.dms_per_hour);
        self.dms_by_address.set_limit(settings.dms_per_hour.map(|limit| limit.saturating_mul(sessions)));
        self.auth_by_address.set_limit(settings.auth_attempts_per_minute);
        self.auth_by_account.set_limit(settings.auth_attempts_per_minute);
    }

    /// Counts an attempt to sign in; `false` when it is one too many for the address or the account. While a crowd comes
    /// back after a start (`returning`), only attempts that [`Self::sign_in_failed`] count for the address: behind one
    /// address may sit many people who all have to sign in again.
    pub fn admit_sign_in(&self, address: IpAddr, account: &[u8], now: u64, returning: bool) -> bool {
        let by_address = match returning {
            true => self.auth_by_address.would_admit(address, now),
            false => self.auth_by_address.admit(address, now),
        };
        by_address && self.auth_by_account.admit(account.into(), now)
    }

    /// Counts what [`Self::admit_sign_in`] left uncounted for a crowd that comes back.
    pub fn sign_in_failed(&self, address: IpAddr, now: u64, returning: bool) {
        if returning {
            // Over the limit already: the next attempt is refused anyway.
            let _over = self.auth_by_address.admit(address, now);
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
    fn a_limit_changes_while_counting_goes_on() {
        let window = SlidingWindow::new(Some(2), 60_000);
        assert_eq!((0..5).filter(|now| window.admit("a", *now)).count(), 2);
        window.set_limit(Some(3));
        assert!(window.would_admit(&"a", 10) && window.would_admit(&"a", 10), "asking does not count");
        assert_eq!((10..15).filter(|now| window.admit("a", *now)).count(), 1, "two were counted before");
        window.set_limit(None);
        assert!(window.admit("a", 20));
        window.set_limit(Some(3));
        assert!(!window.would_admit(&"a", 30) && !window.admit("a", 30));
    }

    #[test]
    fn one_customer_has_one_window_whatever_the_address() {
        let window = PartyWindow::new(Some(2), 60_000);
        let admitted = |address: &str| window.admit(address.parse().unwrap(), 0);
        assert!(admitted("2001:db8::1") && admitted("2001:db8::2") && !admitted("2001:db8::3:0:0:1"));
        assert!(!window.would_admit("2001:db8::4".parse().unwrap(), 0));
        assert!(admitted("2001:db8:0:1::1"), "the next network is another customer's");
        assert!(admitted("192.0.2.1") && admitted("192.0.2.1") && admitted("192.0.2.2"));
        assert!(!admitted("::ffff:192.0.2.1"));
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
