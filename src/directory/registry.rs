//! What shards and the directory's thread share: wishes to be listed on their way to be verified, and at which addresses
//! listed servers were found.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::attempts::{Attempts, Begin};
use crate::clock;
use crate::limits::SERVERS_MAX;
use crate::profile::waits::Mutex;
use crate::store::{DiscoveredVia, ServerAddress, ServerRecord};

/// Registrations that wait to be verified.
const CLAIMS_MAX: usize = 64;

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
    /// Of servers that were verified by this run of the directory.
    found_at: Mutex<HashMap<ServerAddress, Vec<IpAddr>, RandomState>>,
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
        (Arc::new(Self { claims, attempts: Mutex::default(), found_at: Mutex::default() }), taken)
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
    pub(super) fn dial(&self, target: SocketAddr, is_listed: bool) -> Option<Dialling<'_>> {
        let may = self.attempts.lock().dial(target, is_listed, clock::monotonic_ms());
        // Only then: dropping one gives the place back.
        may.then(|| Dialling { registry: self, target })
    }

    /// Whether the server was found at `sender`'s address, or at another one of the same name.
    pub fn is_at(&self, address: &ServerAddress, sender: IpAddr) -> bool {
        self.found_at.lock().get(address).is_some_and(|addresses| addresses.contains(&sender.to_canonical()))
    }

    /// The server's name has these addresses, and it was found at one of them.
    pub(super) fn found(&self, address: &ServerAddress, addresses: &[SocketAddr]) {
        let mut found_at = self.found_at.lock();
        if found_at.len() < usize::from(SERVERS_MAX) || found_at.contains_key(address) {
            let addresses = addresses.iter().map(|address| address.ip().to_canonical()).collect();
            found_at.insert(address.clone(), addresses);
        }
    }

    /// Other servers that were found at `target`'s machine.
    pub(super) fn others_at(&self, address: &ServerAddress, target: IpAddr) -> usize {
        let found_at = self.found_at.lock();
        let others = found_at.iter().filter(|(other, _)| *other != address);
        others.filter(|(_, addresses)| addresses.contains(&target.to_canonical())).count()
    }

    /// Forgets where servers are that the directory does not know any more.
    pub(super) fn keep_only(&self, is_known: impl Fn(&ServerAddress) -> bool) {
        self.found_at.lock().retain(|address, _| is_known(address));
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
        registry.found(&here, &["[::ffff:198.51.100.1]:1".parse().unwrap(), "198.51.100.2:1".parse().unwrap()]);
        assert!(registry.is_at(&here, ip(1)) && registry.is_at(&here, ip(2)) && !registry.is_at(&here, ip(3)));
        assert!(!registry.is_at(&there, ip(1)));
        assert_eq!((registry.others_at(&there, ip(1)), registry.others_at(&here, ip(1))), (1, 0));
        registry.keep_only(|address| *address == there);
        assert!(!registry.is_at(&here, ip(1)));
    }
}
