//! Finding out whether a server is where it is said to be (BEHAVIOUR.md 6.3): what answers there must speak the protocol and
//! know a number that only we can have told it.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io;
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::dial::{DialError, PATIENCE, Peer, refused};
use super::registry::Registry;
use crate::clock;
use crate::wire::ServerMessage;
use crate::wire::client::VerifyRegistration;

/// What a server may send until it has proved itself; everybody's presence may be in between.
const BUDGET: usize = 256 * 1024;

/// Addresses of a name that are tried.
const TRIED_MAX: usize = 2;

/// Why a server was not found.
#[derive(Debug, Error)]
pub(super) enum NotFound {
    #[error("its name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("its name cannot be resolved in time")]
    ResolveSlow,
    #[error("other names are being resolved")]
    ResolversBusy,
    #[error("its name leads to addresses that are not dialled ([discovery] allow_private_servers)")]
    OutOfReach,
    #[error("its target is being dialled, or was too often")]
    TooOften,
    #[error("it is slower than a server may be that is on the list")]
    CheckSlow,
    #[error("{0}")]
    Dial(#[from] DialError),
}

/// Connects to one of `targets` after the other until one proves to be a server, and says which. Where it was
/// `found_before` comes first, and is not counted against the hourly limit.
///
/// # Errors
/// Why the last one did not.
pub(super) async fn verify(
    registry: &Registry,
    targets: &[SocketAddr],
    found_before: Option<IpAddr>,
) -> Result<SocketAddr, NotFound> {
    let was_found = |target: &SocketAddr| found_before == Some(target.ip().to_canonical());
    let mut targets = targets.to_vec();
    // Stable: others stay in the order in which they were resolved.
    targets.sort_by_key(|target| !was_found(target));
    let mut outcome = Err(NotFound::OutOfReach);
    for target in tried(&targets) {
        outcome = match registry.dial(target, was_found(&target)) {
            Some(_dialling) => challenge(target).await.map(|()| target).map_err(NotFound::Dial),
            None => Err(NotFound::TooOften),
        };
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The first addresses of both kinds, as one of the two may not be connected with us.
pub(super) fn tried(targets: &[SocketAddr]) -> impl Iterator<Item = SocketAddr> {
    let first = targets.first().copied();
    let other = targets.iter().copied().find(|target| first.is_some_and(|first| first.is_ipv4() != target.is_ipv4()));
    first.into_iter().chain(other).take(TRIED_MAX)
}

async fn challenge(target: SocketAddr) -> Result<(), DialError> {
    let (mut peer, _config) = Peer::dial(target, BUDGET).await?;
    let challenge = random();
    peer.say(VerifyRegistration { challenge }).await?;
    let answer = peer.await_answer(PATIENCE, |message| match message {
        ServerMessage::VerifyResponse(response) if response.challenge == challenge => Some(Ok(())),
        ServerMessage::VerifyResponse(_) | ServerMessage::Disconnect(_) => Some(Err(DialError::Wrong)),
        ServerMessage::Error(error) => Some(Err(refused(&error))),
        _ => None,
    });
    answer.await?;
    peer.leave("Directory verification complete").await;
    Ok(())
}

/// A number that nobody can guess: the keys of hash maps are as random as the system can make them.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(clock::monotonic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_of_each_kind_is_tried() {
        let of = |addresses: &[&str]| -> Vec<String> {
            let targets: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
            tried(&targets).map(|target| target.to_string()).collect()
        };
        assert_eq!(of(&["1.1.1.1:1", "1.1.1.2:1", "[2a00::1]:1", "[2a00::2]:1"]), ["1.1.1.1:1", "[2a00::1]:1"]);
        assert_eq!(of(&["1.1.1.1:1", "1.1.1.2:1"]), ["1.1.1.1:1"]);
        assert_eq!(of(&[]), [""; 0]);
    }
    #[test]
    fn only_where_a_server_was_found_before_is_it_looked_for_beyond_the_limit() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (registry, _claims) = Registry::new();
        // Nobody listens there.
        let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let look = |found_before: Option<&str>| {
            let found_before = found_before.map(|address| address.parse().unwrap());
            runtime.block_on(verify(&registry, &[target], found_before)).unwrap_err()
        };
        for _ in 0..60 {
            assert!(matches!(look(Some("192.0.2.1")), NotFound::Dial(_)));
        }
        assert!(matches!(look(Some("192.0.2.1")), NotFound::TooOften), "its name leads elsewhere now");
        assert!(matches!(look(None), NotFound::TooOften));
        assert!(matches!(look(Some("127.0.0.1")), NotFound::Dial(_)));
    }
}
