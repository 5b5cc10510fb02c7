//! What a session may expect of any way in: a peer's address, a place within its limits, a reason when it ends.

pub mod acceptor;
pub mod backlog;
pub mod door;
pub mod http;
pub mod port;
pub mod ssh;
pub mod ssh_login;
pub mod stream;
pub mod tcp;
mod websocket;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use crate::limits::party;
/// Why a session ended: one list for log line, metric label and goodbye.
pub use crate::metrics::DisconnectReason as CloseReason;
use crate::metrics::Rejection;
use crate::profile::waits::Mutex;
use crate::store::{Bans, Event};
use crate::wire::ErrorCode;

/// How long a client may take to hear that its session has ended: what is queued to be written, then the peer to close.
const FAREWELL: Duration = Duration::from_secs(2);

/// Counts connections: in all and per [`party`] (BEHAVIOUR.md 1.10).
#[derive(Debug)]
pub struct Gate(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    per_address_max: Option<u32>,
    total_max: Option<u32>,
    exempt: Vec<IpNet>,
    bans: Bans,
    total: u32,
    by_party: HashMap<IpAddr, u32, RandomState>,
}

/// Why a connection is turned away, in the shape every client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    AddressLimit,
    ServerFull,
    /// The address is banned.
    Banned,
}

impl Refusal {
    #[must_use]
    pub fn code(self) -> ErrorCode {
        match self {
            Self::AddressLimit => ErrorCode::ConnectionLimit,
            Self::ServerFull => ErrorCode::Unavailable,
            Self::Banned => ErrorCode::PermissionDenied,
        }
    }

    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::AddressLimit => "Too many connections from your address",
            Self::ServerFull => "Server is full",
            Self::Banned => "Your IP address is banned",
        }
    }

    #[must_use]
    pub fn label(self) -> Rejection {
        match self {
            Self::AddressLimit => Rejection::IpLimit,
            Self::ServerFull => Rejection::ServerFull,
            Self::Banned => Rejection::IpBan,
        }
    }
}

impl Gate {
    /// `None` = no limit. Exempt networks are free of the limit per address.
    #[must_use]
    pub fn new(per_address_max: Option<u32>, total_max: Option<u32>, exempt: Vec<IpNet>) -> Arc<Self> {
        let gate = Self(Mutex::default());
        gate.set_limits(per_address_max, total_max, exempt);
        Arc::new(gate)
    }

    /// Other limits count for those who come from now on. Nobody who is in has to go.
    pub fn set_limits(&self, per_address_max: Option<u32>, total_max: Option<u32>, exempt: Vec<IpNet>) {
        let mut open = self.0.lock();
        (open.per_address_max, open.total_max, open.exempt) = (per_address_max, total_max, exempt);
    }

    /// Takes over what was committed about bans.
    pub fn change_bans(&self, event: &Event) {
        self.0.lock().bans.apply(event);
    }

    /// Whether an address is banned at `now`, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`Refusal::Banned`].
    pub fn check_ban(&self, address: IpAddr, now: i64) -> Result<(), Refusal> {
        match self.0.lock().bans.refusing_address(address, now) {
            Some(_) => Err(Refusal::Banned),
            None => Ok(()),
        }
    }

    /// Takes a place for a connection.
    ///
    /// # Errors
    /// [`Refusal`] when a limit is reached; no place is taken.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Admission, Refusal> {
        let address = address.to_canonical();
        let mut open = self.0.lock();
        let exempt = open.exempt.iter().any(|network| network.contains(&address));
        if open.total_max.is_some_and(|max| open.total >= max) {
            return Err(Refusal::ServerFull);
        }
        if !exempt {
            // Counted without a limit, too: a reload may set one.
            let max = open.per_address_max.unwrap_or(u32::MAX);
            let here = open.by_party.entry(party(address)).or_default();
            if *here >= max {
                return Err(Refusal::AddressLimit);
            }
            *here += 1;
        }
        open.total += 1;
        drop(open);
        Ok(Admission { gate: Some(Arc::clone(self)), address, exempt })
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Admission {
    /// `None`: somebody else holds the place.
    gate: Option<Arc<Gate>>,
    address: IpAddr,
    exempt: bool,
}

impl Admission {
    /// What the session of a bridged connection gets. Whoever holds the socket keeps the place: that may take longer.
    #[must_use]
    pub fn behind_bridge(&self) -> Self {
        Self { gate: None, address: self.address, exempt: self.exempt }
    }

    /// The peer; IPv4 written as IPv6 is IPv4.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Free of the announced limits and of rates (BEHAVIOUR.md 9.1).
    #[must_use]
    pub fn is_exempt(&self) -> bool {
        self.exempt
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let Some(gate) = &self.gate else { return };
        let mut open = gate.0.lock();
        open.total -= 1;
        if !self.exempt
            && let Some(here) = open.by_party.get_mut(&party(self.address))
        {
            *here -= 1;
            if *here == 0 {
                open.by_party.remove(&party(self.address));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_per_address_and_given_back() {
        let gate = Gate::new(Some(2), Some(3), vec!["127.0.0.0/8".parse().unwrap()]);
        let ip = |text: &str| text.parse().unwrap();
        let first = gate.admit(ip("192.0.2.1")).unwrap();
        let _second = gate.admit(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(gate.admit(ip("192.0.2.1")).unwrap_err(), Refusal::AddressLimit);
        drop(first);
        let _third = gate.admit(ip("192.0.2.1")).unwrap();
        let exempt = gate.admit(ip("127.0.0.1")).unwrap();
        assert!(exempt.is_exempt());
        assert_eq!(gate.admit(ip("127.0.0.1")).unwrap_err(), Refusal::ServerFull);
        drop(exempt.behind_bridge());
        assert_eq!(gate.admit(ip("127.0.0.1")).unwrap_err(), Refusal::ServerFull, "the bridge has the place");
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_and_is_exempt_by_address() {
        let gate = Gate::new(Some(2), None, vec!["2001:db8::7/128".parse().unwrap()]);
        let admit = |address: &str| gate.admit(address.parse().unwrap());
        let inside = [admit("2001:db8::1").unwrap(), admit("2001:db8::2").unwrap()];
        assert_eq!(admit("2001:db8::3").unwrap_err(), Refusal::AddressLimit);
        assert!(admit("2001:db8::7").unwrap().is_exempt());
        let elsewhere = admit("2001:db8:0:1::1").unwrap();
        drop((inside, elsewhere));
        assert!(gate.0.lock().by_party.is_empty(), "each is counted out as it was counted in");
    }

    #[test]
    fn limits_set_later_count_those_who_are_in() {
        let gate = Gate::new(None, None, Vec::new());
        let address = "192.0.2.1".parse().unwrap();
        let mut inside: Vec<_> = (0..3).map(|_| gate.admit(address).unwrap()).collect();
        gate.set_limits(Some(2), None, Vec::new());
        assert_eq!(gate.admit(address).unwrap_err(), Refusal::AddressLimit);
        inside.truncate(1);
        let second = gate.admit(address).unwrap();
        gate.set_limits(Some(2), None, vec!["192.0.2.0/24".parse().unwrap()]);
        assert!(gate.admit(address).unwrap().is_exempt());
        drop((inside, second));
        let open = gate.0.lock();
        assert_eq!((open.total, open.by_party.len()), (0, 0), "each is counted out as it was counted in");
    }
}
