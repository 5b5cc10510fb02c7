//! Asking listed servers for those that they list (BEHAVIOUR.md 6.7). What is heard is only worth a look: it is listed once it
//! was verified, as if it had registered.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info};

use super::dial::{DialError, PATIENCE, Peer, refused};
use super::verify::{NotFound, random, tried};
use super::{Site, record, settle_in};
use crate::clock;
use crate::limits::LIST_SERVERS_MAX;
use crate::profile::tasks::{at, site};
use crate::store::query::ServerScope;
use crate::store::{ServerAddress, ServerRecord};
use crate::wire::ServerMessage;
use crate::wire::client::ListServers;
use crate::wire::frame::LENGTH_MAX;

/// What a directory may say: its longest list, and everybody's presence in between.
const BUDGET: usize = LENGTH_MAX as usize + 256 * 1024;

/// Servers that are taken from one directory in a round: so none can fill the list, or make us connect all over the world.
const HEARD_MAX: usize = 50;

/// A round every so often: after a sixth of `longest` at least, at random, so that directories do not ask in step.
pub(super) async fn ask_around(site: Rc<Site>, longest: Duration) {
    loop {
        at(site!("wait for the next round of gossip"), sleep(pause(longest, random()))).await;
        let (listed, known) = (site.servers(ServerScope::Listed).await, site.servers(ServerScope::Known).await);
        let (Some(tellers), Some(known)) = (listed, known) else { continue };
        let mut known: HashSet<_, RandomState> = known.into_iter().map(|server| server.address).collect();
        known.insert((site.own)().address);
        for teller in tellers {
            ask_one(&site, &teller.address, &mut known).await;
        }
    }
}

fn pause(longest: Duration, random: u64) -> Duration {
    let shortest = longest / 6;
    let span = u64::try_from((longest - shortest).as_millis()).unwrap_or(u64::MAX).max(1);
    shortest + Duration::from_millis(random % span)
}

async fn ask_one(site: &Rc<Site>, teller: &ServerAddress, known: &mut HashSet<ServerAddress, RandomState>) {
    let heard = match listed_by(site, teller).await {
        Ok(heard) => heard,
        Err(reason) => return info!("Directory {}:{} was not asked: {reason}", teller.host, teller.port),
    };
    let news: Vec<_> =
        heard.into_iter().filter(|server| known.insert(server.address.clone())).take(HEARD_MAX).collect();
    debug!(news = news.len(), "asked {}:{} for servers", teller.host, teller.port);
    let mut under_way = JoinSet::new();
    for server in news {
        if let Some(claim) = site.registry.hear_of(server, clock::monotonic_ms()) {
            settle_in(site, claim, &mut under_way).await;
        }
    }
    while under_way.join_next().await.is_some() {}
}

/// What a listed server lists; nothing where it keeps no directory.
async fn listed_by(site: &Site, teller: &ServerAddress) -> Result<Vec<ServerRecord>, NotFound> {
    let targets = site.resolver.resolve(teller).await?;
    let Some(target) = tried(&targets).next() else { return Err(NotFound::OutOfReach) };
    let was_found = site.registry.proved_at(teller) == Some(target.ip().to_canonical());
    let Some(_dialling) = site.registry.dial(target, was_found) else { return Err(NotFound::TooOften) };
    let (mut peer, config) = Peer::dial(target, BUDGET).await?;
    let mut heard = Vec::new();
    if config.directory_enabled {
        peer.say(ListServers { limit: LIST_SERVERS_MAX }).await?;
        heard = peer.await_answer(PATIENCE, told).await?;
    }
    peer.leave("Directory gossip complete").await;
    Ok(heard)
}

fn told(message: ServerMessage<'_>) -> Option<Result<Vec<ServerRecord>, DialError>> {
    match message {
        ServerMessage::ServerList(list) => {
            let most = usize::from(LIST_SERVERS_MAX) + 1;
            Some(Ok(list.servers.0.iter().take(most).filter_map(record).collect()))
        }
        ServerMessage::Error(error) => Some(Err(refused(&error))),
        ServerMessage::Disconnect(_) => Some(Err(DialError::Closed)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_one_to_six_hours_apart() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert_eq!(pause(hours(6), 0), hours(1));
        let pauses: Vec<_> = (0..1000).map(|_| pause(hours(6), random())).collect();
        assert!(pauses.iter().all(|pause| (hours(1)..hours(6)).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause < hours(2)) && pauses.iter().any(|pause| *pause > hours(5)));
        assert!(pause(Duration::from_nanos(1), 7) < Duration::from_secs(1));
    }
}
