//! Looking after listed servers (BEHAVIOUR.md 6.3): one that proves to be there is heard of again, one that does not falls
//! off the list by itself.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::verify::{NotFound, resolve, verify};
use super::{NotListed, Reach, Registry, Site};
use crate::clock;
use crate::profile::tasks::{self, at, place, site};
use crate::store::query::ServerScope;
use crate::store::{Command, ServerAddress};

/// From the beginning of one round to that of the next.
const PERIOD: Duration = Duration::from_secs(300);

/// Servers that are checked side by side: so silent ones do not take the time of those that answer.
const TOGETHER: usize = 4;

/// For all that it takes to find a server where it was found before. Who always answers just in time would else hold up the
/// round until others fall off the list.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);

/// At the start every server that is remembered, so that a directory that was away finds its list again; later those on
/// the list.
pub(super) async fn look_after(site: Rc<Site>) {
    let mut scope = ServerScope::Known;
    loop {
        let began = clock::monotonic();
        check_all(&site, scope).await;
        scope = ServerScope::Listed;
        let left = PERIOD.saturating_sub(clock::monotonic() - began);
        at(site!("wait for the next health check"), sleep(left)).await;
    }
}

async fn check_all(site: &Rc<Site>, scope: ServerScope) {
    let mut servers = site.servers(scope).await;
    // Those who would fall off first come first.
    servers.reverse();
    debug!(servers = servers.len(), "health check of the directory");
    let mut under_way = JoinSet::new();
    for server in servers {
        while under_way.len() >= TOGETHER {
            under_way.join_next().await;
        }
        let Some(place) = site.place().await else { return };
        let site = Rc::clone(site);
        under_way.spawn_local(tasks::in_set(place!(), async move {
            let _place = place;
            check(&site, server.address).await;
        }));
    }
    while under_way.join_next().await.is_some() {}
    let known: HashSet<_, RandomState> =
        site.servers(ServerScope::Known).await.into_iter().map(|server| server.address).collect();
    site.registry.keep_only(|address| known.contains(address));
}

async fn check(site: &Site, address: ServerAddress) {
    match confirm(site, &address).await {
        Ok(()) => {}
        Err(NotListed::NotFound(NotFound::TooOften)) => debug!("{}: it is being dialled already", address.host),
        // Not the server's fault.
        Err(reason @ NotListed::Store(_)) => {
            info!("Directory health check: {}:{}: {reason}", address.host, address.port)
        }
        Err(reason) => {
            site.registry.missed(&address);
            info!("Directory health check failed: {}:{}: {reason}", address.host, address.port);
        }
    }
}

async fn confirm(site: &Site, address: &ServerAddress) -> Result<(), NotListed> {
    let (targets, proved_at) = find(&site.registry, site.reach, address).await?;
    site.registry.found(address, &targets, proved_at);
    site.desk.submit(&*site.store, Command::ConfirmServer { address: address.clone() }).await?;
    Ok(())
}

/// Where the server's name leads, and at which of these addresses it proved itself.
async fn find(
    registry: &Registry,
    reach: Reach,
    address: &ServerAddress,
) -> Result<(Vec<SocketAddr>, SocketAddr), NotFound> {
    let found_before = registry.proved_at(address);
    let looking = async {
        let targets = resolve(address, reach).await?;
        let proved_at = verify(registry, &targets, found_before).await?;
        Ok((targets, proved_at))
    };
    match found_before {
        Some(_) => timeout(CHECK_PATIENCE, looking).await.unwrap_or(Err(NotFound::CheckSlow)),
        None => looking.await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_was_found_before_has_five_seconds_for_everything() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // It is connected to, and never says anything.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = silent.local_addr().unwrap();
        let address = ServerAddress { host: "127.0.0.1".into(), port: target.port() };
        let (registry, _claims) = Registry::new();
        registry.found(&address, &[target], target);
        let began = clock::monotonic();
        let outcome = runtime.block_on(find(&registry, Reach::Private, &address));
        assert!(matches!(outcome, Err(NotFound::CheckSlow)), "{outcome:?}");
        assert!(clock::monotonic() - began >= CHECK_PATIENCE);
        assert!(registry.dial(target, true).is_some(), "the target is free again");
    }
}
