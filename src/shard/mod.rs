//! A shard: the sessions of one core, and everything that happens to them.
//!
//! A shard is a state machine. It is fed bytes and events together with the time, changes its own plain state, and
//! leaves behind frames in outboxes, commands to the store and messages to other shards. It never waits and does no I/O,
//! so a test can drive it with a seed; [`crate::net::tcp`] drives it with sockets.

pub mod channels;
pub mod event;
pub mod outbox;
pub mod presence;
mod publish;
pub mod rate;
pub mod roster;
pub mod session;
pub mod settings;
pub mod topics;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;
use tracing::{debug, info, warn};

pub use channels::{Channels, NoPlace};
pub use event::{Accepted, Bus, ShardEvent};
use outbox::{Broadcast, Encoder, Flushed, Outbox, Segment};
pub use publish::{created, subchannel_created_text};
use rate::SlidingWindow;
use roster::{PeerChange, Repeat, Roster};
pub use roster::Person;
use session::{Flight, PresenceGate, Session, SessionKey, Waiting};
pub use settings::ChatSettings;
use topics::{Listener, Spelling, Topics};

use crate::handlers;
use crate::ids::{ChannelId, MessageId, SessionId, UserId};
use crate::limits::POSTS_IN_FLIGHT_MAX;
use crate::metrics::ShardMetrics;
use crate::net::{Admission, CloseReason};
use crate::passwords::{HashJob, HashOutcome, Passwords};
use crate::store::{Answer, Channel, Command, Event, Outcome, Query, Refusal, Store, Submission, Ticket};
use crate::wire::frame::{self, Frame};
use crate::wire::server::{self, Disconnect};
use crate::wire::{ErrorCode, FrameError, ServerMessage, client};

/// The time of a turn: a shard never asks for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// Milliseconds since some moment before the server started; never goes back.
    pub mono: u64,
    /// Milliseconds since 1970.
    pub wall: i64,
}

/// What a waiting request gets.
pub enum Resume {
    Answer(Answer),
    Outcome(Result<Event, Refusal>),
    Hashed(HashOutcome),
}

/// How a request goes on once what it waits for is there.
pub type Continuation = Box<dyn FnOnce(&mut Shard, SessionKey, Resume)>;

/// Rates that count across shards.
#[derive(Debug)]
pub struct Rates {
    pub messages_by_user: SlidingWindow<UserId>,
    pub messages_by_session: SlidingWindow<SessionId>,
    pub messages_by_address: SlidingWindow<IpAddr>,
    pub channels_by_user: SlidingWindow<UserId>,
    pub auth_by_address: SlidingWindow<IpAddr>,
    pub auth_by_account: SlidingWindow<Box<[u8]>>,
}

impl Rates {
    const MINUTE_MS: u64 = 60_000;
    const HOUR_MS: u64 = 60 * Self::MINUTE_MS;

    #[must_use]
    pub fn new(settings: &ChatSettings) -> Self {
        // A visitor who comes back on a new connection goes on counting for the address, which the connection limit
        // allows as many sessions.
        let sessions = u32::from(settings.announced.max_connections_per_ip.max(1));
        Self {
            messages_by_user: SlidingWindow::new(settings.messages_per_minute, Self::MINUTE_MS),
            messages_by_session: SlidingWindow::new(settings.messages_per_minute, Self::MINUTE_MS),
            messages_by_address: SlidingWindow::new(
                settings.messages_per_minute.map(|limit| limit.saturating_mul(sessions)),
                Self::MINUTE_MS,
            ),
            channels_by_user: SlidingWindow::new(settings.channels_per_hour, Self::HOUR_MS),
            auth_by_address: SlidingWindow::new(settings.auth_attempts_per_minute, Self::MINUTE_MS),
            auth_by_account: SlidingWindow::new(settings.auth_attempts_per_minute, Self::MINUTE_MS),
        }
    }
}

/// What a shard is built from.
pub struct Parts {
    pub id: usize,
    pub settings: Arc<ChatSettings>,
    pub channels: Vec<Channel>,
    pub store: Arc<dyn Store>,
    pub passwords: Arc<dyn Passwords>,
    pub bus: Arc<Bus>,
    pub rates: Arc<Rates>,
    pub metrics: Arc<ShardMetrics>,
    pub now: Now,
}

/// One shard's state.
pub struct Shard {
    pub id: usize,
    pub settings: Arc<ChatSettings>,
    pub now: Now,
    pub clients: Clients,
    pub channels: Channels,
    pub roster: Roster,
    pub rates: Arc<Rates>,
    pub metrics: Arc<ShardMetrics>,
    topics: Topics,
    pending: presence::Pending,
    peer_changes: Vec<PeerChange>,
    departed: Vec<Departed>,
    /// When sessions may have been silent for too long; an entry is looked at again when it comes up.
    idle: BinaryHeap<Reverse<(u64, SessionId, SessionKey)>>,
    store: Arc<dyn Store>,
    passwords: Arc<dyn Passwords>,
    bus: Arc<Bus>,
    /// Decompressed payloads.
    scratch: Vec<u8>,
    /// Monotonic milliseconds at the start, for the uptime.
    started_at: u64,
    /// Bytes of incomplete or waiting frames, over all sessions.
    inbox_bytes: usize,
}

/// A session that ended, with what it should still be sent.
#[derive(Debug)]
pub struct Departed {
    pub key: SessionKey,
    pub reason: CloseReason,
    pub outbox: Outbox,
}

/// The sessions and what is on its way to them: apart from the rest of the shard, so that audiences can be walked while
/// frames are queued.
#[derive(Debug)]
pub struct Clients {
    sessions: Slab<Session>,
    encoder: Encoder,
    dirty: Vec<SessionKey>,
    slow: Vec<SessionKey>,
    visits: u64,
    outbox_bytes_max: usize,
    metrics: Arc<ShardMetrics>,
}

/// Bytes of one session that may wait unhandled before its socket is no longer read; a longer frame still completes.
const INBOX_PAUSE_BYTES: usize = 64 * 1024;
/// Bytes that all sessions of a shard together may have waiting. Beyond, a session that wants more than its share ends.
const INBOXES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A client that does not read its answers is not asked for more requests.
const OUTBOX_PAUSE_BYTES: usize = 64 * 1024;

impl Clients {
    #[must_use]
    pub fn get(&self, key: SessionKey) -> Option<&Session> {
        self.sessions.get(key.0 as usize)
    }

    pub fn get_mut(&mut self, key: SessionKey) -> Option<&mut Session> {
        self.sessions.get_mut(key.0 as usize)
    }

    /// A session that is known to live: handlers run only for those.
    ///
    /// # Panics
    /// When it does not: our bug, which ends the session that was being served.
    #[expect(clippy::expect_used, reason = "a handler outliving its session is our bug; the panic ends that session only")]
    pub fn session(&mut self, key: SessionKey) -> &mut Session {
        self.sessions.get_mut(key.0 as usize).expect("handlers run only for live sessions")
    }

    pub fn keys(&self) -> impl Iterator<Item = SessionKey> {
        self.sessions.iter().map(|(key, _)| key_of(key))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Queues a frame that others get too.
    pub fn send(&mut self, key: SessionKey, frame: &mut Broadcast<'_>) {
        let Some(session) = self.sessions.get_mut(key.0 as usize) else { return };
        match frame.segment(&mut self.encoder, session.class()) {
            Ok(segment) => {
                self.metrics.sent(frame_code(segment, &session.version));
                queue(session, key, segment, self.outbox_bytes_max, &mut self.dirty, &mut self.slow);
            }
            Err(error) => warn!(%error, "broadcast does not fit a frame"),
        }
    }

    fn push(&mut self, key: SessionKey, segment: &Segment) {
        let Some(session) = self.sessions.get_mut(key.0 as usize) else { return };
        queue(session, key, segment, self.outbox_bytes_max, &mut self.dirty, &mut self.slow);
    }

    /// Starts a walk over audiences that may overlap.
    fn next_visit(&mut self) -> u64 {
        self.visits += 1;
        self.visits
    }

    /// Whether this walk meets the session for the first time.
    fn visit(&mut self, key: SessionKey, visit: u64) -> bool {
        let Some(session) = self.get_mut(key) else { return false };
        std::mem::replace(&mut session.visited, visit) != visit
    }
}

fn queue(
    session: &mut Session,
    key: SessionKey,
    segment: &Segment,
    bytes_max: usize,
    dirty: &mut Vec<SessionKey>,
    slow: &mut Vec<SessionKey>,
) {
    if session.outbox.push(segment, bytes_max).is_err() {
        slow.push(key);
        return;
    }
    if !std::mem::replace(&mut session.dirty, true) {
        dirty.push(key);
    }
}
