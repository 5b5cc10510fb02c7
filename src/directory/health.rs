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

use super::resolve::literal;
use super::verify::{NotFound, verify};
use super::{NotListed, Registry, Site};
use crate::clock;
use crate::profile::tasks::{self, at, place, site};
use crate::store::query::ServerScope;
use crate::store::{Command, ServerAddress};

/// From the beginning of one round to that of the next.
const PERIOD: Duration = Duration::from_secs(300);

/// Servers that are checked side by side: so silent ones do not take the time of those that answer.
const TOGETHER: usize = 4;

/// For all that it takes a server to prove itself once its name is resolved. Who always answers just in time would else hold
/// up the round until others fall off the list.
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
    let Some(mut servers) = site.servers(scope).await else { return };
    if scope == ServerScope::Listed {
        // Those who would fall off first come first.
        servers.reverse();
    }
    debug!(servers = servers.len(), "health check of the directory");
    let (mut under_way, mut round) = (JoinSet::new(), Vec::new());
    for server in servers {
        while under_way.len() >= TOGETHER {
            round.extend(under_way.join_next().await.and_then(Result::ok));
        }
        let Some(place) = site.place().await else { return };
        let site = Rc::clone(site);
        under_way.spawn_local(tasks::in_set(place!(), async move {
            let _place = place;
            check(&site, server.address).await
        }));
    }
    while let Some(checked) = under_way.join_next().await {
        round.extend(checked.ok());
    }
    missing(&round).for_each(|address| site.registry.missed(address));
    if let Some(known) = site.servers(ServerScope::Known).await {
        let known: HashSet<_, RandomState> = known.into_iter().map(|server| server.address).collect();
        site.registry.keep_only(|address| known.contains(address));
    }
}

/// What a look at a server has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Found,
    Missing,
    /// Its name leads nowhere.
    Unresolved,
    /// Nothing about the server.
    Nothing,
}

impl From<&NotListed> for Shown {
    fn from(reason: &NotListed) -> Self {
        match reason {
            NotListed::Store(_) | NotListed::NotFound(NotFound::TooOften | NotFound::ResolversBusy) => Self::Nothing,
            NotListed::NotFound(NotFound::Resolve(_) | NotFound::ResolveSlow) => Self::Unresolved,
            NotListed::Itself | NotListed::Crowded | NotListed::NotFound(_) => Self::Missing,
        }
    }
}

/// Who was not there. That a name leads nowhere is its server's fault only in a round in which names lead somewhere.
fn missing(round: &[(ServerAddress, Shown)]) -> impl Iterator<Item = &ServerAddress> {
    let has_led = |(address, shown): &(ServerAddress, Shown)| {
        literal(address).is_none() && matches!(shown, Shown::Found | Shown::Missing)
    };
    let names_lead = round.iter().any(has_led);
    let is_missing = move |shown: Shown| shown == Shown::Missing || (shown == Shown::Unresolved && names_lead);
    round.iter().filter(move |(_, shown)| is_missing(*shown)).map(|(address, _)| address)
}

async fn check(site: &Site, address: ServerAddress) -> (ServerAddress, Shown) {
    let outcome = confirm(site, &address).await;
    let shown = outcome.as_ref().map_or_else(Shown::from, |()| Shown::Found);
    match outcome {
        Ok(()) => {}
        Err(NotListed::NotFound(NotFound::TooOften)) => debug!("{}: it is being dialled already", address.host),
        Err(reason) => info!("Directory health check failed: {}:{}: {reason}", address.host, address.port),
    }
    (address, shown)
}

async fn confirm(site: &Site, address: &ServerAddress) -> Result<(), NotListed> {
    let targets = site.resolver.resolve(address).await?;
    let proved_at = find(&site.registry, address, &targets).await?;
    site.registry.found(address, &targets, proved_at);
    site.desk.submit(&*site.store, Command::ConfirmServer { address: address.clone() }).await?;
    Ok(())
}

/// At which of its addresses the server proves itself.
async fn find(registry: &Registry, address: &ServerAddress, targets: &[SocketAddr]) -> Result<SocketAddr, NotFound> {
    let looking = verify(registry, targets, registry.proved_at(address));
    timeout(CHECK_PATIENCE, looking).await.unwrap_or(Err(NotFound::CheckSlow))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_is_checked_has_five_seconds_for_everything() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // It is connected to, and never says anything.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = silent.local_addr().unwrap();
        let address = ServerAddress { host: "127.0.0.1".into(), port: target.port() };
        let (registry, _claims) = Registry::new();
        registry.found(&address, &[target], target);
        let began = clock::monotonic();
        let outcome = runtime.block_on(find(&registry, &address, &[target]));
        assert!(matches!(outcome, Err(NotFound::CheckSlow)), "{outcome:?}");
        assert!(clock::monotonic() - began >= CHECK_PATIENCE);
        assert!(registry.dial(target, true).is_some(), "the target is free again");
    }

    #[test]
    fn while_no_name_leads_anywhere_none_is_missing() {
        let at = |host: &str, shown| (ServerAddress { host: host.into(), port: 6465 }, shown);
        let round = |others: &[(ServerAddress, Shown)]| {
            let own = [at("lost.example.org", Shown::Unresolved), at("192.0.2.1", Shown::Missing)];
            let round = [&own, others].concat();
            missing(&round).map(|address| address.host.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(round(&[]), ["192.0.2.1"]);
        assert_eq!(round(&[at("192.0.2.2", Shown::Found)]), ["192.0.2.1"], "digits are no name");
        assert_eq!(round(&[at("busy.example.org", Shown::Nothing)]), ["192.0.2.1"]);
        assert_eq!(round(&[at("chat.example.org", Shown::Found)]), ["lost.example.org", "192.0.2.1"]);
        assert_eq!(
            round(&[at("gone.example.org", Shown::Missing)]),
            ["lost.example.org", "192.0.2.1", "gone.example.org"]
        );
    }
}
