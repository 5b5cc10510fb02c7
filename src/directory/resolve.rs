//! Where names lead. The system may look for a name much longer than anybody waits for it; so a look has its place until the
//! system is done with it, and names that are never answered for hold up few others.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::reach::Reach;
use super::verify::NotFound;
use crate::profile::tasks::{at, site};
use crate::store::ServerAddress;

/// Names that the system looks for at the same time.
pub(super) const RESOLVERS_MAX: usize = 4;

/// How long a name may take to be resolved, and how long it may wait for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// Addresses of a name that are looked at.
const RESOLVED_MAX: usize = 16;

/// Resolves the names of servers.
#[derive(Debug)]
pub(super) struct Resolver {
    reach: Reach,
    places: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new(reach: Reach) -> Self {
        Self { reach, places: Arc::new(Semaphore::new(RESOLVERS_MAX)) }
    }

    /// Every address of the server, none of which is connected to unless all are within reach: a name that leads to both
    /// sides is not believed at all.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn resolve(&self, address: &ServerAddress) -> Result<Vec<SocketAddr>, NotFound> {
        let found = match literal(address) {
            Some(target) => vec![target],
            None => self.look_up((&*address.host).into(), address.port).await?,
        };
        if found.is_empty() || !found.iter().all(|target| self.reach.admits(*target)) {
            return Err(NotFound::OutOfReach);
        }
        Ok(found)
    }

    async fn look_up(&self, host: Box<str>, port: u16) -> Result<Vec<SocketAddr>, NotFound> {
        let place = timeout(PATIENCE, at(site!("wait to resolve a name"), Arc::clone(&self.places).acquire_owned()));
        // Nobody closes it.
        let Ok(Ok(place)) = place.await else { return Err(NotFound::ResolversBusy) };
        let look = tokio::task::spawn_blocking(move || {
            let _place = place;
            Ok((&*host, port).to_socket_addrs()?.take(RESOLVED_MAX).collect())
        });
        let found = timeout(PATIENCE, at(site!("resolve a name"), look)).await.map_err(|_| NotFound::ResolveSlow)?;
        found.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(NotFound::Resolve)
    }
}

/// Of an address that is written in digits.
pub(super) fn literal(address: &ServerAddress) -> Option<SocketAddr> {
    address.host.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, address.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(resolver: &Resolver, host: &str) -> Result<Vec<SocketAddr>, NotFound> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(resolver.resolve(&ServerAddress { host: host.into(), port: 6465 }))
    }

    #[test]
    fn while_all_places_are_taken_only_names_wait() {
        let resolver = Resolver::new(Reach::Private);
        let taken = resolver.places.try_acquire_many(4).unwrap();
        assert_eq!(resolver.places.available_permits(), 0, "four at a time");
        assert!(matches!(resolved(&resolver, "localhost"), Err(NotFound::ResolversBusy)));
        assert_eq!(resolved(&resolver, "127.0.0.1").unwrap(), ["127.0.0.1:6465".parse().unwrap()]);
        drop(taken);
        assert!(resolved(&resolver, "localhost").unwrap().iter().all(|target| target.ip().is_loopback()));
        assert_eq!(resolver.places.available_permits(), 4);
    }
}
