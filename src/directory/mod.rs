//! The directory of servers (BEHAVIOUR.md 6): who is listed, how that is found out, and how we are listed elsewhere.
//!
//! A registration comes in on a shard, which checks its form and its rate and leaves a claim in the [`Registry`]. The
//! directory's own thread does everything that waits: it resolves the name, looks at where it leads (`reach`), connects
//! there and asks for proof (`verify`), and has the store keep what was found. The same thread looks after listed servers
//! (`health`), asks them for those they know (`gossip`), and announces this server elsewhere (`announce`). What it connects
//! to, and how often, is bounded in one place (`attempts`), and what comes back in another (`dial`).

mod announce;
mod attempts;
mod dial;
mod gossip;
mod health;
mod reach;
mod registry;
mod resolve;
mod verify;

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc::Receiver;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::{debug, error, info};

use crate::config::{Endpoint, Host};
use crate::desk::{Desk, DeskError};
use crate::limits::{SERVER_TEXT_BYTES_MAX, SERVERS_MAX, SERVERS_PER_ADDRESS_MAX};
use crate::log;
use crate::profile::tasks::{self, at, place, site};
use crate::store::command::FoundServer;
use crate::store::query::ServerScope;
use crate::store::{Answer, Command, DiscoveredVia, Event, Name, Query, ServerAddress, ServerRecord, Store};
use crate::supervise;
use crate::text;
use crate::wire::records::ServerEntry;

pub use reach::Reach;
pub use registry::{Claim, Registry, Taken};
use resolve::{RESOLVERS_MAX, Resolver};
use verify::{NotFound, verify};

/// Servers that are verified at the same time, whatever for (BEHAVIOUR.md 6.3).
const VERIFICATIONS_MAX: usize = 8;

/// Threads beside, in which names are resolved: one more than others can keep busy, for the directories that the operator
/// named.
const RESOLVER_THREADS: usize = RESOLVERS_MAX + 1;

/// Where a server says it is: `None` unless that is the name or address of a machine, and a port. Names are the same in any
/// case, and addresses in any spelling.
#[must_use]
pub fn address(host: &[u8], port: u16) -> Option<ServerAddress> {
    let host: Host = std::str::from_utf8(host).ok()?.parse().ok()?;
    let port = NonZeroU16::new(port)?.get();
    let host = match host.as_str().parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => host.as_str().trim_end_matches('.').to_ascii_lowercase(),
    };
    (!host.is_empty()).then(|| ServerAddress { host: host.into(), port })
}

/// A server's name or description as clients may show it, in one line; `None` when it is too long.
#[must_use]
pub fn about(text: &[u8]) -> Option<Name> {
    let is_break = |byte: u8| matches!(byte, b'\n' | b'\t');
    let in_one_line = || text::sanitized(text).iter().map(|byte| if is_break(*byte) { b' ' } else { *byte }).collect();
    (text.len() <= SERVER_TEXT_BYTES_MAX).then(in_one_line)
}

/// An entry of another directory's list; `None` for one that no directory of ours could hold.
fn record(entry: &ServerEntry<'_>) -> Option<ServerRecord> {
    Some(ServerRecord {
        address: address(entry.hostname, entry.port)?,
        name: about(entry.name)?,
        description: about(entry.description)?,
        user_count: entry.user_count,
        max_users: entry.max_users,
        uptime_seconds: entry.uptime_seconds,
        is_public: entry.is_public,
        channel_count: entry.channel_count,
    })
}

/// What the directory's thread needs.
pub struct DirectoryParts {
    pub registry: Arc<Registry>,
    /// The other end of `registry`.
    pub claims: Receiver<Claim>,
    pub store: Arc<dyn Store>,
    pub desk: Arc<Desk>,
    /// This server as directories show it, at the moment.
    pub own: Box<dyn Fn() -> ServerRecord + Send>,
    /// Others may register here, are looked after and asked.
    pub is_directory: bool,
    pub reach: Reach,
    /// The longest pause between two rounds of gossip; `None` = no gossip.
    pub gossip: Option<Duration>,
    /// Where this server announces itself.
    pub announce_to: Vec<Endpoint>,
}

/// The directory's thread, until it is stopped.
pub struct Directory {
    stop: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl Directory {
    /// Starts the thread. Should it end by itself, the chat goes on and the list grows no more.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(parts: DirectoryParts) -> io::Result<Self> {
        let stop: Arc<Notify> = Arc::default();
        let stopped = Arc::clone(&stop);
        let thread = supervise::spawn("scd-directory", move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(parts, &stopped)));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => error!(%error, "the directory ended: no server is listed or announced any more"),
                Err(_) => error!("the directory ended: no server is listed or announced any more"),
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Lets go of everything under way. A name that is being resolved holds up nobody.
    pub fn stop(self) {
        self.stop.notify_one();
        if self.thread.join().is_err() {
            error!("the thread of the directory panicked");
        }
    }
}

fn run(parts: DirectoryParts, stop: &Notify) -> io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().max_blocking_threads(RESOLVER_THREADS).thread_name("scd-resolve");
    let runtime = runtime.build_local(Default::default())?;
    let _watched = tasks::watch(runtime.handle().metrics());
    runtime.block_on(tasks::root(place!(), async {
        let _tasks = start_tasks(parts);
        stop.notified().await;
    }));
    runtime.shutdown_background();
    Ok(())
}

/// Every task that works for the directory; all end with what is returned.
fn start_tasks(parts: DirectoryParts) -> JoinSet<()> {
    let DirectoryParts { registry, claims, store, desk, own, is_directory, reach, gossip, announce_to } = parts;
    let places = Arc::new(Semaphore::new(VERIFICATIONS_MAX));
    let site = Rc::new(Site { registry, store, desk, own, resolver: Resolver::new(reach), places });
    let mut tasks = JoinSet::new();
    if is_directory {
        tasks.spawn_local(tasks::in_set(place!(), work_off(Rc::clone(&site), claims)));
        tasks.spawn_local(tasks::in_set(place!(), health::look_after(Rc::clone(&site))));
    }
    if let Some(pause) = gossip.filter(|_| is_directory) {
        tasks.spawn_local(tasks::in_set(place!(), gossip::ask_around(Rc::clone(&site), pause)));
    }
    for directory in announce_to {
        tasks.spawn_local(tasks::in_set(place!(), announce::announce(Rc::clone(&site), directory)));
    }
    tasks
}

/// What all tasks of the directory share.
struct Site {
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
    desk: Arc<Desk>,
    own: Box<dyn Fn() -> ServerRecord + Send>,
    resolver: Resolver,
    /// One for each verification.
    places: Arc<Semaphore>,
}

/// Why a server is not listed.
#[derive(Debug, Error)]
enum NotListed {
    #[error("it is this server")]
    Itself,
    #[error("too many servers are listed at its address")]
    Crowded,
    #[error("{0}")]
    NotFound(#[from] NotFound),
    #[error("it cannot be stored: {0}")]
    Store(#[from] DeskError),
}

impl Site {
    /// `None` when the store does not say, which is no reason to forget any.
    async fn servers(&self, scope: ServerScope) -> Option<Vec<ServerRecord>> {
        match self.desk.ask(&*self.store, Query::Servers { scope, limit: SERVERS_MAX }).await {
            Ok(Answer::Servers(servers)) => Some(servers),
            _ => None,
        }
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        // Nobody closes it.
        at(site!("wait for a place to verify a server"), Arc::clone(&self.places).acquire_owned()).await.ok()
    }

    /// Verifies a server and has it listed.
    async fn examine(&self, claim: &Claim) -> Result<bool, NotListed> {
        let address = &claim.record.address;
        if (self.own)().address == *address {
            return Err(NotListed::Itself);
        }
        let targets = self.resolver.resolve(address).await?;
        let is_own = targets.iter().any(|target| Some(target.ip().to_canonical()) == claim.registrant);
        // Names that others gave a machine do not keep out the one that it gives itself.
        let has_room = |target: &SocketAddr| {
            is_own || self.registry.others_at(address, target.ip()) < usize::from(SERVERS_PER_ADDRESS_MAX)
        };
        let with_room: Vec<_> = targets.iter().copied().filter(has_room).collect();
        if with_room.is_empty() {
            return Err(NotListed::Crowded);
        }
        let proved_at = verify(&self.registry, &with_room, None).await?;
        let found = FoundServer { record: claim.record.clone(), via: claim.via, registrant: claim.registrant, is_own };
        let stored = self.desk.submit(&*self.store, Command::ListServer(Box::new(found))).await?;
        self.registry.found(address, &targets, proved_at);
        Ok(matches!(stored, Event::ServerListed { is_new: true }))
    }

    /// Takes a claim to its end, and says in the log what that was.
    async fn settle(&self, mut claim: Claim) {
        let outcome = self.examine(&claim).await;
        claim.attempt.was_found = outcome.is_ok();
        let ServerAddress { host, port } = &claim.record.address;
        let by = match (claim.via, claim.registrant) {
            (DiscoveredVia::Registration, Some(registrant)) => log::peer(registrant).to_string(),
            _ => "gossip".to_owned(),
        };
        match outcome {
            Ok(true) => info!(by, "Server listed: {host}:{port}"),
            Ok(false) => debug!(by, "server confirmed: {host}:{port}"),
            Err(reason) => info!(by, "Server not listed: {host}:{port}: {reason}"),
        }
    }
}

/// Verifies what registers here, a few at a time; the rest waits in the queue, which is bounded.
async fn work_off(site: Rc<Site>, mut claims: Receiver<Claim>) {
    let mut under_way = JoinSet::new();
    while let Some(claim) = at(site!("wait for a server to register"), claims.recv()).await {
        settle_in(&site, claim, &mut under_way).await;
    }
}

/// Settles a claim beside others, once there is a place for it.
async fn settle_in(site: &Rc<Site>, claim: Claim, under_way: &mut JoinSet<()>) {
    let Some(place) = site.place().await else { return };
    let site = Rc::clone(site);
    under_way.spawn_local(tasks::in_set(place!(), async move {
        let _place = place;
        site.settle(claim).await;
    }));
    while under_way.try_join_next().is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_has_one_address() {
        let host = |host: &str| address(host.as_bytes(), 6465).map(|address| address.host.to_string());
        assert_eq!(host("Chat.Example.ORG.").as_deref(), Some("chat.example.org"));
        assert_eq!(host("2001:DB8:0::5").as_deref(), Some("2001:db8::5"));
        assert_eq!(host("::ffff:192.0.2.1").as_deref(), Some("192.0.2.1"));
        for nothing in ["", ".", "a b", "a/b", "[::1]", "a:1", "fe80::1%eth0", "a\0", "ex\u{e4}mple.org", "x@y"] {
            assert_eq!(host(nothing), None, "{nothing:?}");
        }
        assert_eq!(host(&"a".repeat(254)), None);
        assert!(address(b"a", 0).is_none() && address(b"\xff", 1).is_none());
    }

    #[test]
    fn what_a_server_says_of_itself_is_one_line() {
        assert_eq!(about(b"a\x1b[31m\nb\tc\0").as_deref(), Some(&b"a[31m b c"[..]));
        assert_eq!(about("\u{fc}ber \u{1f642}".as_bytes()).as_deref(), Some("\u{fc}ber \u{1f642}".as_bytes()));
        assert!(about(&[b'a'; 500]).is_some() && about(&[b'a'; 501]).is_none());
    }
}
