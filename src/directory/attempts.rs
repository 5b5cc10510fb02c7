//! What the directory is verifying and has verified lately: nobody makes it connect to the same place again and again, nor
//! to many places at once (BEHAVIOUR.md 6.3).

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::RandomState;

use crate::limits::party;
use crate::shard::rate::SlidingWindow;
use crate::store::ServerAddress;

/// A repeat within this time is not dialled again; after failures the pause doubles, up to an hour and some. Milliseconds.
const PAUSE_MS: u64 = 60_000;
const PAUSE_DOUBLINGS_MAX: u32 = 6;

/// Servers of one registrant that wait to be verified at the same time.
const PER_REGISTRANT_MAX: u32 = 8;

/// Servers remembered at once, for the length of their pause; beyond, new ones have to wait.
const REMEMBERED_MAX: usize = 4096;

/// Connections to one machine, whatever its ports and names, in an hour. Servers that were found there are checked beside
/// that.
const PER_TARGET_MAX: u32 = 60;
const HOUR_MS: u64 = 3_600_000;

/// What becomes of the wish to verify a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    Go,
    /// It is being verified, or was a moment ago.
    Repeat,
    /// Too much at once.
    Busy,
}

/// Verifications, by what was asked for and by where that leads.
#[derive(Debug)]
pub(super) struct Attempts {
    by_address: HashMap<ServerAddress, Attempt, RandomState>,
    by_registrant: HashMap<IpAddr, u32, RandomState>,
    dialling: HashSet<SocketAddr, RandomState>,
    by_target: SlidingWindow<IpAddr>,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    under_way: bool,
    /// Monotonic milliseconds.
    not_before: u64,
    failures: u32,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            by_address: HashMap::default(),
            by_registrant: HashMap::default(),
            dialling: HashSet::default(),
            by_target: SlidingWindow::new(Some(PER_TARGET_MAX), HOUR_MS),
        }
    }
}

impl Attempts {
    /// Takes up a server, for whoever registered it. [`Begin::Go`] must be followed by [`Self::end`].
    pub(super) fn begin(&mut self, address: &ServerAddress, registrant: Option<IpAddr>, now: u64) -> Begin {
        let known = self.by_address.get(address).copied();
        if known.is_some_and(|attempt| attempt.under_way || attempt.not_before > now) {
            return Begin::Repeat;
        }
        if known.is_none() && !self.has_room(now) {
            return Begin::Busy;
        }
        if let Some(registrant) = registrant.map(party) {
            let open = self.by_registrant.entry(registrant).or_default();
            if *open >= PER_REGISTRANT_MAX {
                return Begin::Busy;
            }
            *open += 1;
        }
        let failures = known.map_or(0, |attempt| attempt.failures);
        self.by_address.insert(address.clone(), Attempt { under_way: true, not_before: now, failures });
        Begin::Go
    }

    fn has_room(&mut self, now: u64) -> bool {
        if self.by_address.len() >= REMEMBERED_MAX {
            self.by_address.retain(|_, attempt| attempt.under_way || attempt.not_before > now);
        }
        self.by_address.len() < REMEMBERED_MAX
    }

    /// The server was found, or not.
    pub(super) fn end(&mut self, address: &ServerAddress, registrant: Option<IpAddr>, was_found: bool, now: u64) {
        if let Some(registrant) = registrant.map(party) {
            release(&mut self.by_registrant, &registrant);
        }
        if let Some(attempt) = self.by_address.get_mut(address) {
            let doublings = attempt.failures.min(PAUSE_DOUBLINGS_MAX);
            attempt.failures = if was_found { 0 } else { attempt.failures + 1 };
            attempt.not_before = now + if was_found { PAUSE_MS } else { PAUSE_MS << doublings };
            attempt.under_way = false;
        }
    }

    /// Takes the one place there is for a connection to `target`; whether it is free. A place that is taken must be given
    /// back by [`Self::hung_up`]. Where a server `was_found`, looking again is not counted against the hourly limit: a row on
    /// the list is not enough, as its name may lead anywhere by now.
    pub(super) fn dial(&mut self, target: SocketAddr, was_found: bool, now: u64) -> bool {
        if self.dialling.contains(&target) {
            return false;
        }
        let is_admitted = was_found || self.by_target.admit(party(target.ip()), now);
        is_admitted && self.dialling.insert(target)
    }

    /// The connection is over.
    pub(super) fn hung_up(&mut self, target: SocketAddr) {
        self.dialling.remove(&target);
    }
}

fn release<K: Hash + Eq>(counts: &mut HashMap<K, u32, RandomState>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(number: usize) -> ServerAddress {
        ServerAddress { host: format!("s{number}.example.org").into(), port: 6465 }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_repeat_within_a_minute_is_not_dialled_again() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.begin(&server(1), None, 0), Begin::Go);
        assert_eq!(attempts.begin(&server(1), None, 90_000), Begin::Repeat, "it is under way");
        attempts.end(&server(1), None, true, 100_000);
        assert_eq!(attempts.begin(&server(1), None, 159_999), Begin::Repeat);
        assert_eq!(attempts.begin(&server(1), None, 160_000), Begin::Go);
    }

    #[test]
    fn a_server_that_is_not_there_is_tried_less_and_less_often() {
        let mut attempts = Attempts::default();
        let mut now = 0;
        for minutes in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
            assert_eq!(attempts.begin(&server(1), None, now), Begin::Go);
            attempts.end(&server(1), None, false, now);
            now += minutes * PAUSE_MS;
            assert_eq!(attempts.begin(&server(1), None, now - 1), Begin::Repeat, "{minutes}");
        }
        assert_eq!(attempts.begin(&server(1), None, now), Begin::Go);
        attempts.end(&server(1), None, true, now);
        assert_eq!(attempts.begin(&server(1), None, now + PAUSE_MS), Begin::Go, "it was there");
    }

    #[test]
    fn one_registrant_has_few_servers_verified_at_once() {
        let mut attempts = Attempts::default();
        let here = Some(ip("2001:db8:1:2::5"));
        let neighbour = Some(ip("2001:db8:1:2:ffff::9"));
        for number in 0..8 {
            assert_eq!(attempts.begin(&server(number), here, 0), Begin::Go);
        }
        assert_eq!(attempts.begin(&server(8), neighbour, 0), Begin::Busy, "the same network");
        assert_eq!(attempts.begin(&server(8), Some(ip("2001:db8:1:3::5")), 0), Begin::Go);
        attempts.end(&server(0), here, false, 1);
        assert_eq!(attempts.begin(&server(9), neighbour, 1), Begin::Go);
        for number in 1..8 {
            attempts.end(&server(number), here, true, 2);
        }
        attempts.end(&server(9), neighbour, true, 2);
        attempts.end(&server(8), Some(ip("2001:db8:1:3::5")), true, 2);
        assert!(attempts.by_registrant.is_empty(), "each is counted out as it was counted in");
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let mut attempts = Attempts::default();
        for number in 0..REMEMBERED_MAX {
            assert_eq!(attempts.begin(&server(number), None, 0), Begin::Go);
            attempts.end(&server(number), None, false, 0);
        }
        assert_eq!(attempts.begin(&server(REMEMBERED_MAX), None, 1), Begin::Busy);
        assert_eq!(attempts.begin(&server(REMEMBERED_MAX), None, PAUSE_MS + 1), Begin::Go);
        assert_eq!(attempts.by_address.len(), 1);
    }

    #[test]
    fn one_connection_to_a_target_and_few_to_a_machine() {
        let mut attempts = Attempts::default();
        let target = |port| SocketAddr::new(ip("198.51.100.7"), port);
        assert!(attempts.dial(target(1), false, 0));
        assert!(!attempts.dial(target(1), false, 0) && !attempts.dial(target(1), true, 0));
        attempts.hung_up(target(1));
        let dialled = (2..200).filter(|port| attempts.dial(target(*port), false, 0)).count();
        assert_eq!(dialled, 59, "a machine's ports cannot be tried one after the other");
        assert!(attempts.dial(target(300), true, 0), "a server that was found there is checked all the same");
        assert!(attempts.dial(SocketAddr::new(ip("198.51.100.8"), 1), false, 0));
    }
}
