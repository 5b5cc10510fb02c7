//! Looking after listed servers (BEHAVIOUR.md 6.3): one that proves to be there is heard of again, one that does not falls
//! off the list by itself.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info};

use super::verify::{NotFound, resolve, verify};
use super::{NotListed, Site};
use crate::clock;
use crate::profile::tasks::{self, at, place, site};
use crate::store::query::ServerScope;
use crate::store::{Command, ServerAddress};

/// From the beginning of one round to that of the next.
const PERIOD: Duration = Duration::from_secs(300);

/// Servers that are checked side by side: so silent ones do not take the time of those that answer.
const TOGETHER: usize = 4;

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
    let targets = resolve(address, site.reach).await?;
    let proved_at = verify(&site.registry, &targets, site.registry.proved_at(address)).await?;
    site.registry.found(address, &targets, proved_at);
    site.desk.submit(&*site.store, Command::ConfirmServer { address: address.clone() }).await?;
    Ok(())
}
