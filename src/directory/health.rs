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
    let (mut scope, mut left_open) = (ServerScope::Known, Vec::new());
    loop {
        let began = clock::monotonic();
        left_open = check_all(&site, scope, left_open).await;
        scope = ServerScope::Listed;
        let left = PERIOD.saturating_sub(clock::monotonic() - began);
        at(site!("wait for the next health check"), sleep(left)).await;
    }
}

/// Looks at all servers of `scope`, and at those that the round before `left_open`: our own trouble may have taken them off
/// the list. Which ones this round leaves open.
async fn check_all(site: &Rc<Site>, scope: ServerScope, left_open: Vec<ServerAddress>) -> Vec<ServerAddress> {
    let Some(servers) = site.servers(scope).await else { return left_open };
    let mut addresses: Vec<_> = servers.into_iter().map(|server| server.address).collect();
    if scope == ServerScope::Listed {
        // Those who would fall off first come first.
        addresses.reverse();
    }
    let listed: HashSet<_, RandomState> = addresses.iter().cloned().collect();
    addresses.extend(left_open.into_iter().filter(|address| !listed.contains(address)));
    debug!(servers = addresses.len(), "health check of the directory");
    let (mut under_way, mut round) = (JoinSet::new(), Vec::new());
    for address in addresses {
        while under_way.len() >= TOGETHER {
            round.extend(under_way.join_next().await.and_then(Result::ok));
        }
        let Some(place) = site.place().await else { break };
        let site = Rc::clone(site);
        under_way.spawn_local(tasks::in_set(place!(), async move {
            let _place = place;
            check(&site, address).await
        }));
    }
    while let Some(checked) = under_way.join_next().await {
        round.extend(checked.ok());
    }
    let names_lead = do_names_lead(&round);
    for (address, shown) in &round {
        if shown.is_missing(names_lead) {
            site.registry.missed(address);
        }
    }
    round.retain(|(_, shown)| shown.is_open(names_lead));
    if let Some(known) = site.servers(ServerScope::Known).await {
        let known: HashSet<_, RandomState> = known.into_iter().map(|server| server.address).collect();
        site.registry.keep_only(|address| known.contains(address));
        round.retain(|(address, _)| known.contains(address));
    }
    round.into_iter().map(|(address, _)| address).collect()
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

impl Shown {
    fn is_missing(self, names_lead: bool) -> bool {
        self == Self::Missing || (self == Self::Unresolved && names_lead)
    }

    fn is_open(self, names_lead: bool) -> bool {
        self != Self::Found && !self.is_missing(names_lead)
    }
}

/// That a name leads nowhere is its server's fault only in a round in which names lead somewhere.
fn do_names_lead(round: &[(ServerAddress, Shown)]) -> bool {
    round.iter().any(|(address, shown)| literal(address).is_none() && matches!(shown, Shown::Found | Shown::Missing))
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
            let names_lead = do_names_lead(&round);
            let hosts = |is: fn(Shown, bool) -> bool| -> Vec<String> {
                let those = round.iter().filter(|(_, shown)| is(*shown, names_lead));
                those.map(|(address, _)| address.host.to_string()).collect()
            };
            (hosts(Shown::is_missing), hosts(Shown::is_open))
        };
        let both = |missing: &[&str], open: &[&str]| {
            let owned = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
            (owned(missing), owned(open))
        };
        let [lost, busy, gone] = ["lost.example.org", "busy.example.org", "gone.example.org"];
        assert_eq!(round(&[]), both(&["192.0.2.1"], &[lost]));
        assert_eq!(round(&[at("192.0.2.2", Shown::Found)]), both(&["192.0.2.1"], &[lost]), "digits are no name");
        assert_eq!(round(&[at(busy, Shown::Nothing)]), both(&["192.0.2.1"], &[lost, busy]));
        assert_eq!(round(&[at("chat.example.org", Shown::Found)]), both(&[lost, "192.0.2.1"], &[]));
        assert_eq!(round(&[at(gone, Shown::Missing)]), both(&[lost, "192.0.2.1", gone], &[]));
    }
}
