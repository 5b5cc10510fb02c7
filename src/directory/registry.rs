//! What shards and the directory's thread share: wishes to be listed on their way to be verified, at which addresses listed
//! servers were found, and which of them are found no more.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::attempts::{Attempts, Begin};
use crate::clock;
use crate::limits::{SERVERS_MAX, party};
use crate::profile::waits::Mutex;
use crate::store::{DiscoveredVia, ServerAddress, ServerRecord};

/// Registrations that wait to be verified.
const CLAIMS_MAX: usize = 64;

/// So many health checks in a row that do not find a server leave it to register anew. As long as a silent server stays on
/// the list (BEHAVIOUR.md 6.1).
const MISSED_MAX: u32 = 3;

/// What becomes of a registration, as far as whoever sent it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is verified, now or a moment ago; the answer is the same, so that it says nothing about the target.
    Yes,
    /// Nothing is done; to be tried later.
    Busy,
}

/// Shared by all shards; the lock is held for a look-up.
#[derive(Debug)]
pub struct Registry {
    claims: Sender<Claim>,
    attempts: Mutex<Attempts>,
    /// Of servers that this run of the directory has looked for.
    places: Mutex<HashMap<ServerAddress, Place, RandomState>>,
}

/// What looking for a server has shown.
#[derive(Debug, Default)]
struct Place {
    /// Where its name led when it was found.
    addresses: Vec<IpAddr>,
    /// The one of them at which it proved itself.
    proved_at: Option<IpAddr>,
    /// Looks in vain since then.
    missed: u32,
}

/// A server that says it is there.
#[derive(Debug)]
pub struct Claim {
    pub(super) record: ServerRecord,
    pub(super) via: DiscoveredVia,
    pub(super) registrant: Option<IpAddr>,
    pub(super) attempt: Attempt,
}

/// An attempt to find a server, until it is dropped.
#[derive(Debug)]
pub(super) struct Attempt {
    registry: Arc<Registry>,
    address: ServerAddress,
    registrant: Option<IpAddr>,
    pub(super) was_found: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let now = clock::monotonic_ms();
        self.registry.attempts.lock().end(&self.address, self.registrant, self.was_found, now);
    }
}

/// A connection to a target, until it is dropped.
#[derive(Debug)]
pub(super) struct Dialling<'a> {
    registry: &'a Registry,
    target: SocketAddr,
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        self.registry.attempts.lock().hung_up(self.target);
    }
}

impl Registry {
    /// An empty registry, and what the directory's thread works off. Without that thread nothing is taken.
    #[must_use]
    pub fn new() -> (Arc<Self>, Receiver<Claim>) {
        let (claims, taken) = mpsc::channel(CLAIMS_MAX);
        (Arc::new(Self { claims, attempts: Mutex::default(), places: Mutex::default() }), taken)
    }

    /// Takes up a registration. Never waits. `now` in monotonic milliseconds.
    pub fn register(self: &Arc<Self>, record: ServerRecord, registrant: IpAddr, now: u64) -> Taken {
        let Ok(place) = self.claims.try_reserve() else { return Taken::Busy };
        match self.begin(&record.address, Some(registrant), now) {
            Ok(attempt) => {
                place.send(Claim { record, via: DiscoveredVia::Registration, registrant: Some(registrant), attempt });
                Taken::Yes
            }
            Err(Taken::Yes) => Taken::Yes,
            Err(Taken::Busy) => Taken::Busy,
        }
    }

    /// A claim that nobody made: another directory lists the server. `None` when it must not be tried now.
    pub(super) fn hear_of(self: &Arc<Self>, record: ServerRecord, now: u64) -> Option<Claim> {
        let attempt = self.begin(&record.address, None, now).ok()?;
        Some(Claim { record, via: DiscoveredVia::Gossip, registrant: None, attempt })
    }

    fn begin(
        self: &Arc<Self>,
        address: &ServerAddress,
        registrant: Option<IpAddr>,
        now: u64,
    ) -> Result<Attempt, Taken> {
        match self.attempts.lock().begin(address, registrant, now) {
            Begin::Go => {
                Ok(Attempt { registry: Arc::clone(self), address: address.clone(), registrant, was_found: false })
            }
            Begin::Repeat => Err(Taken::Yes),
            Begin::Busy => Err(Taken::Busy),
        }
    }

    /// The one connection there may be to `target`; `None` while there is one, or when the machine has had enough.
    /// A server that `was_found` there may be looked for as often as is due.
    pub(super) fn dial(&self, target: SocketAddr, was_found: bool) -> Option<Dialling<'_>> {
        let may = self.attempts.lock().dial(target, was_found, clock::monotonic_ms());
        // Only then: dropping one gives the place back.
        may.then(|| Dialling { registry: self, target })
    }

    /// Whether the server was found at `sender`'s address, or at another one of the same name.
    pub fn is_at(&self, address: &ServerAddress, sender: IpAddr) -> bool {
        self.places.lock().get(address).is_some_and(|place| place.addresses.contains(&sender.to_canonical()))
    }

    /// Whether the directory has looked for the server in vain too often. Its heartbeats count for nothing until it is found
    /// again, so that nobody keeps alone on the list what is not there.
    pub fn is_missing(&self, address: &ServerAddress) -> bool {
        self.places.lock().get(address).is_some_and(|place| place.missed >= MISSED_MAX)
    }

    /// The address at which the server proved itself last.
    pub(super) fn proved_at(&self, address: &ServerAddress) -> Option<IpAddr> {
        self.places.lock().get(address)?.proved_at
    }

    /// The server's name has these addresses, and it was found at one of them.
    pub(super) fn found(&self, address: &ServerAddress, addresses: &[SocketAddr], proved_at: SocketAddr) {
        let addresses = addresses.iter().map(|address| address.ip().to_canonical()).collect();
        let proved_at = Some(proved_at.ip().to_canonical());
        self.note(address, |place| *place = Place { addresses, proved_at, missed: 0 });
    }

    /// A health check did not find the server.
    pub(super) fn missed(&self, address: &ServerAddress) {
        self.note(address, |place| place.missed = place.missed.saturating_add(1));
    }

    fn note(&self, address: &ServerAddress, change: impl FnOnce(&mut Place)) {
        let mut places = self.places.lock();
        if places.len() < usize::from(SERVERS_MAX) || places.contains_key(address) {
            change(places.entry(address.clone()).or_default());
        }
    }

    /// Other servers that proved themselves at `target`'s machine, or in its IPv6 network. Where else their names lead proves
    /// nothing.
    pub(super) fn others_at(&self, address: &ServerAddress, target: IpAddr) -> usize {
        let places = self.places.lock();
        let others = places.iter().filter(|(other, _)| *other != address);
        let is_there = |place: &Place| place.proved_at.map(party) == Some(party(target));
        others.filter(|(_, place)| is_there(place)).count()
    }

    /// Forgets where servers are that the directory does not know any more.
    pub(super) fn keep_only(&self, is_known: impl Fn(&ServerAddress) -> bool) {
        self.places.lock().retain(|address, _| is_known(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Name;

    fn record(number: u16) -> ServerRecord {
        ServerRecord {
            address: ServerAddress { host: "chat.example.org".into(), port: number },
            name: Name::from(&b"x"[..]),
            description: Name::from(&b""[..]),
            user_count: 0,
            max_users: 0,
            uptime_seconds: 0,
            is_public: true,
            channel_count: 0,
        }
    }

    fn ip(number: u8) -> IpAddr {
        [198, 51, 100, number].into()
    }

    #[test]
    fn a_full_queue_is_told_and_a_repeat_is_not() {
        let (registry, mut claims) = Registry::new();
        for number in 1..=64 {
            let taken = registry.register(record(number), ip(u8::try_from(number / 8).unwrap()), 0);
            assert_eq!(taken, Taken::Yes, "{number}");
        }
        assert_eq!(registry.register(record(65), ip(200), 0), Taken::Busy);
        drop(claims.try_recv().unwrap());
        assert_eq!(registry.register(record(2), ip(200), 0), Taken::Yes, "it waits already");
        assert_eq!(registry.register(record(65), ip(200), 0), Taken::Yes, "what was refused is not held against it");
        assert_eq!(registry.register(record(66), ip(200), 0), Taken::Busy);
    }

    #[test]
    fn without_its_thread_a_directory_takes_nothing() {
        let (registry, claims) = Registry::new();
        drop(claims);
        assert_eq!(registry.register(record(1), ip(1), 0), Taken::Busy);
    }

    #[test]
    fn who_is_refused_a_target_does_not_free_it() {
        let (registry, _claims) = Registry::new();
        let target = "198.51.100.1:6465".parse().unwrap();
        let dialling = registry.dial(target, false).unwrap();
        assert!(registry.dial(target, false).is_none() && registry.dial(target, true).is_none());
        drop(dialling);
        assert!(registry.dial(target, false).is_some());
    }

    #[test]
    fn where_servers_are_is_known_for_as_long_as_they_are() {
        let (registry, _claims) = Registry::new();
        let (here, there) = (record(1).address, record(2).address);
        let targets = ["[::ffff:198.51.100.1]:1".parse().unwrap(), "198.51.100.2:1".parse().unwrap()];
        registry.found(&here, &targets, targets[0]);
        assert_eq!((registry.proved_at(&here), registry.proved_at(&there)), (Some(ip(1)), None));
        assert!(registry.is_at(&here, ip(1)) && registry.is_at(&here, ip(2)) && !registry.is_at(&here, ip(3)));
        assert!(!registry.is_at(&there, ip(1)));
        assert_eq!((registry.others_at(&there, ip(1)), registry.others_at(&here, ip(1))), (1, 0));
        assert_eq!(registry.others_at(&there, ip(2)), 0, "its name leads there, but nobody answered for it");
        registry.keep_only(|address| *address == there);
        assert!(!registry.is_at(&here, ip(1)));
    }
    #[test]
    fn an_ipv6_network_is_one_machine_and_one_sender_is_not() {
        let (registry, _claims) = Registry::new();
        let target = "[2001:db8:1:2::5]:1".parse().unwrap();
        registry.found(&record(1).address, &[target], target);
        let others = |address: &str| registry.others_at(&record(2).address, address.parse().unwrap());
        assert_eq!((others("2001:db8:1:2:ffff::9"), others("2001:db8:1:3::5")), (1, 0));
        assert!(!registry.is_at(&record(1).address, "2001:db8:1:2::6".parse().unwrap()));
    }

    #[test]
    fn who_is_looked_for_in_vain_three_times_is_missing_until_found() {
        let (registry, _claims) = Registry::new();
        let (address, target) = (record(1).address, "198.51.100.1:1".parse().unwrap());
        for _ in 0..2 {
            registry.found(&address, &[target], target);
            for _ in 0..3 {
                assert!(!registry.is_missing(&address));
                registry.missed(&address);
            }
            assert!(registry.is_missing(&address) && !registry.is_missing(&record(2).address));
        }
        registry.keep_only(|_| false);
        assert!(!registry.is_missing(&address), "what is forgotten is not held against anybody");
    }

    #[test]
    fn memory_is_bounded() {
        let (registry, _claims) = Registry::new();
        for number in 0..=SERVERS_MAX {
            registry.missed(&record(number).address);
        }
        assert_eq!(registry.places.lock().len(), usize::from(SERVERS_MAX));
    }
}
