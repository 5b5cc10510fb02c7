//! How anything outside reaches a shard: a closed list of events, and the bus that carries them.
//!
//! The bus has one lock for all inboxes. A broadcast therefore reaches every shard or none: once one shard has seen a
//! commit or a change of another shard's sessions, every shard finds it in its inbox before it reads another byte from a
//! client. That makes cause and effect hold across shards without shared state.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use super::roster::PeerChange;
use super::{ChatSettings, SessionSummary};
use crate::clock;
use crate::ids::{SessionId, UserId};
use crate::limits::SHARD_BACKLOG_MAX;
use crate::metrics::{Fanout, FanoutTally};
use crate::net::Admission;
use crate::net::stream::Socket;
use crate::passwords::{DeliverHash, HashOutcome};
use crate::profile::tasks::site;
use crate::profile::waits::{self, Mutex};
use crate::store::{Answer, Batch, Deliver, Event, Name, Outcome, Ticket};

/// Everything a shard can be told.
#[derive(Debug)]
pub enum ShardEvent {
    /// A connection to serve.
    Accepted(Box<Accepted>),
    /// A commit, in commit order.
    Committed(Commit),
    Answered {
        token: u64,
        answer: Answer,
    },
    Hashed {
        token: u64,
        outcome: HashOutcome,
    },
    /// What became of sessions on another shard.
    Peers(Arc<[PeerChange]>),
    /// Tell who is here.
    Survey(mpsc::Sender<Vec<SessionSummary>>),
    /// Other settings count from now on.
    Configure(Arc<ChatSettings>),
    /// Tell every client within that many milliseconds, then end (BEHAVIOUR.md 1.11).
    Stop {
        spread_ms: u64,
    },
}

/// The outcomes of one commit, and for each NEW_MESSAGE among them the account of its way to all its readers.
#[derive(Debug, Clone)]
pub struct Commit {
    batch: Batch,
    tallies: Arc<[Option<Arc<FanoutTally>>]>,
}

impl Commit {
    /// A commit that `shards` shards are about to hear of.
    #[must_use]
    pub fn new(batch: Batch, shards: usize) -> Self {
        let now = u64::try_from(clock::monotonic().as_micros()).unwrap_or(u64::MAX);
        let tally = |outcome: &Outcome| match &outcome.result {
            Ok(Event::Posted(message)) => {
                let kind = if message.parent.is_none() { Fanout::Channel } else { Fanout::Thread };
                Some(FanoutTally::new(kind, shards, now))
            }
            _ => None,
        };
        let tallies = batch.iter().map(tally).collect();
        Self { batch, tallies }
    }

    /// Outcomes in commit order.
    pub fn iter(&self) -> impl Iterator<Item = (&Outcome, Option<&Arc<FanoutTally>>)> {
        self.batch.iter().zip(self.tallies.iter().map(Option::as_ref))
    }
}

/// A connection on its way to its shard.
#[derive(Debug)]
pub struct Accepted {
    pub stream: Socket,
    pub peer: SocketAddr,
    pub session: SessionId,
    pub admission: Admission,
    /// Set where the way in has found out who this is.
    pub login: Option<KeyLogin>,
}

/// Whose SSH key opened a connection. Whether that still holds is seen when the session signs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLogin {
    pub user: UserId,
    pub nickname: Name,
    pub fingerprint: Box<str>,
}

#[derive(Debug)]
struct Inbox {
    events: VecDeque<ShardEvent>,
    /// Commits among them.
    commits: usize,
}

/// The inboxes of all shards.
#[derive(Debug)]
pub struct Bus {
    inboxes: Mutex<Vec<Inbox>>,
    /// Signalled when a shard has caught up.
    drained: Condvar,
    doorbells: Vec<Doorbell>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Doorbell {
    /// Set while the inbox may hold something: the cheap look before the lock.
    pending: AtomicBool,
    notify: Notify,
}

impl Bus {
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self {
            inboxes: Mutex::new((0..shards).map(|_| Inbox { events: VecDeque::new(), commits: 0 }).collect()),
            drained: Condvar::new(),
            doorbells: (0..shards).map(|_| Doorbell::default()).collect(),
            closed: AtomicBool::new(false),
        }
    }

    #[must_use]
    pub fn shards(&self) -> usize {
        self.doorbells.len()
    }

    /// Events waiting for a shard: its load beside its sessions.
    pub fn send(&self, shard: usize, event: ShardEvent) {
        let mut inboxes = self.lock();
        inboxes[shard].events.push_back(event);
        self.mark(shard);
        drop(inboxes);
        self.wake(shard);
    }

    /// Tells every shard but `from`.
    pub fn send_others(&self, from: usize, changes: &Arc<[PeerChange]>) {
        let others = (0..self.shards()).filter(|shard| *shard != from);
        let mut inboxes = self.lock();
        for shard in others.clone() {
            inboxes[shard].events.push_back(ShardEvent::Peers(Arc::clone(changes)));
            self.mark(shard);
        }
        drop(inboxes);
        others.for_each(|shard| self.wake(shard));
    }

    /// Takes everything that waits for a shard.
    pub fn take(&self, shard: usize, into: &mut VecDeque<ShardEvent>) {
        if !self.doorbells[shard].pending.swap(false, Ordering::AcqRel) {
            return;
        }
        let mut inboxes = self.lock();
        let inbox = &mut inboxes[shard];
        into.append(&mut inbox.events);
        let lagged = std::mem::take(&mut inbox.commits) >= SHARD_BACKLOG_MAX;
        drop(inboxes);
        if lagged {
            self.drained.notify_all();
        }
    }

    /// Waits until something is there for `shard`.
    pub async fn ready(&self, shard: usize) {
        while !self.doorbells[shard].pending.load(Ordering::Acquire) {
            self.doorbells[shard].notify.notified().await;
        }
    }

    /// Shards are gone: deliveries are dropped and nobody waits for them.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.drained.notify_all();
    }

    /// Whether a shard is so far behind that the next commit must wait.
    fn lags(&self, inboxes: &[Inbox]) -> bool {
        inboxes.iter().any(|inbox| inbox.commits >= SHARD_BACKLOG_MAX) && !self.closed.load(Ordering::Acquire)
    }

    /// Under the lock: no shard can act on a broadcast before every other one is bound to look into its inbox.
    fn mark(&self, shard: usize) {
        self.doorbells[shard].pending.store(true, Ordering::Release);
    }

    fn wake(&self, shard: usize) {
        self.doorbells[shard].notify.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Inbox>> {
        // Nothing panics while holding the lock, and a queue of events is never half-changed.
        self.inboxes.lock()
    }
}

impl Deliver for Bus {
    fn committed(&self, batch: Batch) {
        let commit = Commit::new(batch, self.shards());
        let mut inboxes = self.lock();
        if self.lags(&inboxes) {
            let waiting = waits::begin(site!("wait for shards to catch up"));
            inboxes =
                self.drained.wait_while(inboxes, |inboxes| self.lags(inboxes)).unwrap_or_else(PoisonError::into_inner);
            waits::end(waiting);
        }
        for (shard, inbox) in inboxes.iter_mut().enumerate() {
            inbox.events.push_back(ShardEvent::Committed(commit.clone()));
            inbox.commits += 1;
            self.mark(shard);
        }
        drop(inboxes);
        (0..self.shards()).for_each(|shard| self.wake(shard));
    }

    fn answered(&self, ticket: Ticket, answer: Answer) {
        self.send(ticket.shard, ShardEvent::Answered { token: ticket.token, answer });
    }
}

impl DeliverHash for Bus {
    fn hashed(&self, ticket: Ticket, outcome: HashOutcome) {
        self.send(ticket.shard, ShardEvent::Hashed { token: ticket.token, outcome });
    }
}
