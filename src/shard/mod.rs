//! A shard: the sessions of one core, and everything that happens to them.
//!
//! A shard is a state machine. It is fed bytes and events together with the time, changes its own plain state, and
//! leaves behind frames in outboxes, commands to the store and messages to other shards. It never waits and does no I/O,
//! so a test can drive it with a seed; [`crate::net::tcp`] drives it with sockets.

mod bans;
pub mod channels;
mod clients;
pub mod dms;
mod drain;
pub mod event;
mod input;
pub mod outbox;
pub mod presence;
mod publish;
pub mod rate;
mod refusals;
mod request;
pub mod roster;
mod service;
pub mod session;
pub mod settings;
pub mod topics;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;

use slab::Slab;
use tracing::debug;

pub use bans::SessionSummary;
pub use channels::{Channels, NoPlace, Place};
pub use clients::Clients;
use clients::{Held, key_of};
use drain::Drain;
pub use event::{Accepted, Bus, KeyLogin, ShardEvent};
use input::OUTBOX_PAUSE_BYTES;
use outbox::{Encoder, Flushed, Outbox};
pub use publish::{created, subchannel_created_text};
pub use rate::Rates;
use request::Request;
pub use roster::Person;
use roster::{PeerChange, Repeat, Roster};
use session::{Flight, Posts, PresenceGate, Session, SessionKey, Waiting};
pub use settings::ChatSettings;
use topics::Topics;

use crate::directory::Registry;
use crate::handlers;
use crate::ids::SessionId;
use crate::metrics::{FanoutTally, Label as _, Metrics, ShardMetrics};
use crate::net::{Admission, CloseReason};
use crate::passwords::{HashOutcome, Passwords};
use crate::store::{Answer, Bans, Channel, Event, Outcome, Refusal, Store};

/// The time of a turn: a shard never asks for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// Milliseconds since some moment before the server started; never goes back.
    pub mono: u64,
    /// The same in microseconds, for durations.
    pub mono_micros: u64,
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

/// What a shard is built from.
pub struct Parts {
    pub id: usize,
    pub settings: Arc<ChatSettings>,
    pub channels: Vec<Channel>,
    pub store: Arc<dyn Store>,
    pub passwords: Arc<dyn Passwords>,
    pub bus: Arc<Bus>,
    pub rates: Arc<Rates>,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    /// Monotonic microseconds at the moment, on the scale of [`Now::mono_micros`]: for durations that metrics show, and for
    /// nothing that a client can see.
    pub stopwatch: fn() -> u64,
    pub now: Now,
}

/// One shard's state.
pub struct Shard {
    pub id: usize,
    pub settings: Arc<ChatSettings>,
    pub now: Now,
    pub clients: Clients,
    pub channels: Channels,
    bans: Bans,
    pub roster: Roster,
    pub rates: Arc<Rates>,
    pub registry: Arc<Registry>,
    pub metrics: Cells,
    topics: Topics,
    dms: dms::Dms,
    pending: presence::Pending,
    peer_changes: Vec<PeerChange>,
    departed: Vec<Departed>,
    /// Paused sessions that have room for answers again.
    resumable: Vec<SessionKey>,
    /// When sessions may have been silent for too long; an entry is looked at again when it comes up.
    idle: BinaryHeap<Reverse<(u64, SessionId, SessionKey)>>,
    /// Sessions with refusals that the log is to be told of, and when; the earliest in front.
    untold: VecDeque<(u64, Held)>,
    stopwatch: fn() -> u64,
    store: Arc<dyn Store>,
    passwords: Arc<dyn Passwords>,
    bus: Arc<Bus>,
    /// Decompressed payloads.
    scratch: Vec<u8>,
    /// Monotonic milliseconds at the start, for the uptime.
    started_at: u64,
    /// Bytes of incomplete or waiting frames, over all sessions.
    inbox_bytes: usize,
    /// Frames looked at.
    requests: u64,
    /// What is being handled.
    request: Request,
    /// NEW_MESSAGEs that are queued but not flushed yet, with the sessions of this shard that get them.
    unflushed: Vec<(Arc<FanoutTally>, u64)>,
    /// Set once the server stops.
    draining: Option<Drain>,
}

/// A session that ended, with what it should still be sent.
#[derive(Debug)]
pub struct Departed {
    pub key: SessionKey,
    pub reason: CloseReason,
    pub outbox: Outbox,
}

/// The counters of one shard.
#[derive(Clone)]
pub struct Cells {
    all: Arc<Metrics>,
    shard: usize,
}

impl std::ops::Deref for Cells {
    type Target = ShardMetrics;
    fn deref(&self) -> &ShardMetrics {
        &self.all.shards()[self.shard]
    }
}

impl Cells {
    /// What is counted for the whole server.
    #[must_use]
    pub fn global(&self) -> &Metrics {
        &self.all
    }
}

/// What outcomes and answers carry back: a place and which session held it.
fn token(key: SessionKey, session: SessionId) -> u64 {
    (session.0 << 32) | u64::from(key.0)
}

impl Shard {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let metrics = Cells { all: parts.metrics, shard: parts.id };
        let clients = Clients {
            sessions: Slab::new(),
            encoder: Encoder::default(),
            dirty: Vec::new(),
            slow: Vec::new(),
            visits: 0,
            outbox_bytes_max: parts.settings.outbox_bytes_max,
            metrics: metrics.clone(),
        };
        let shard = Self {
            id: parts.id,
            settings: parts.settings,
            now: parts.now,
            clients,
            channels: Channels::new(parts.channels),
            bans: Bans::default(),
            roster: Roster::default(),
            rates: parts.rates,
            registry: parts.registry,
            metrics,
            topics: Topics::default(),
            dms: dms::Dms::default(),
            pending: presence::Pending::default(),
            peer_changes: Vec::new(),
            departed: Vec::new(),
            resumable: Vec::new(),
            idle: BinaryHeap::new(),
            untold: VecDeque::new(),
            stopwatch: parts.stopwatch,
            store: parts.store,
            passwords: parts.passwords,
            bus: parts.bus,
            scratch: Vec::new(),
            started_at: parts.now.mono,
            inbox_bytes: 0,
            requests: 0,
            request: Request::default(),
            unflushed: Vec::new(),
            draining: None,
        };
        shard.count_channels();
        shard
    }

    // What the driver calls.

    /// A connection was admitted: SERVER_CONFIG is its first frame (BEHAVIOUR.md 1.2), AUTH_RESPONSE the second of whoever
    /// came with a key. Its key may be that of an earlier
    /// session, so the driver lets go of those that ended ([`Self::take_departed`]) first.
    pub fn connect(&mut self, id: SessionId, admission: Admission, login: Option<KeyLogin>) -> SessionKey {
        let session = Session::new(id, admission, self.now.mono, self.roster.version());
        let key = key_of(self.clients.sessions.insert(Box::new(session)));
        self.metrics.session_opened();
        if let Some(timeout) = self.settings.idle_timeout_ms {
            self.idle.push(Reverse((idle_due(self.now.mono, timeout), id, key)));
        }
        self.reply(key, self.settings.announced.clone());
        // A ban may have come since the door let it in.
        if self.meet_bans(key)
            && let Some(login) = login
        {
            self.clients.session(key).presence = PresenceGate::SigningIn;
            // No frame asked for it.
            let _context = self.begin(key, 0);
            handlers::auth::came_by_key(self, key, login);
        }
        key
    }

    /// The connection is over, or is to be ended.
    pub fn close(&mut self, key: SessionKey, reason: CloseReason) {
        let Some(session) = self.clients.get(key) else { return };
        debug!(session = session.id.0, reason = reason.label(), "session ended");
        for channel in session.channels().to_vec() {
            self.unsubscribe_channel(key, channel);
        }
        let threads: Vec<_> = self.clients.session(key).threads().iter().map(|thread| thread.root).collect();
        for root in threads {
            self.unsubscribe_thread(key, root);
        }
        self.leave(key);
        let user = self.clients.session(key).user();
        self.forget_account(key, user);
        let mut session = self.clients.sessions.remove(key.0 as usize);
        refusals::tell(&mut session);
        self.inbox_bytes -= session.inbox.len();
        if session.nickname.is_some() {
            self.tell_person(session.id, None, None, Repeat::default());
        }
        if session.visits_dms {
            self.visitor_departed(session.id);
        }
        self.metrics.outbound_removed(session.outbox.spilled_bytes() as u64);
        self.metrics.disconnect(reason);
        self.departed.push(Departed { key, reason, outbox: session.outbox });
    }

    /// One outcome of a commit: first the answer to whoever asked, then the event to everybody else.
    pub fn outcome(&mut self, outcome: &Outcome, tally: Option<&Arc<FanoutTally>>) {
        let ticket = outcome.ticket.filter(|ticket| ticket.shard == self.id);
        let asker = ticket.and_then(|ticket| self.find(ticket.token));
        match (asker, ticket) {
            (Some(key), _) => self.answer_outcome(key, &outcome.result),
            (None, Some(ticket)) => self.departure_came_back(ticket.token, outcome.result.is_ok()),
            (None, None) => {}
        }
        if let Ok(event) = &outcome.result {
            let recipients = self.publish(event, asker);
            if let Some(tally) = tally {
                self.unflushed.push((Arc::clone(tally), recipients));
            }
            self.close_slow();
        }
        if let Some(key) = asker {
            self.pump(key);
        }
    }

    fn answer_outcome(&mut self, key: SessionKey, result: &Result<Event, Refusal>) {
        let session = self.clients.session(key);
        match std::mem::take(&mut session.flight) {
            Flight::Waiting(waiting) => self.go_on(key, *waiting, Resume::Outcome(result.clone())),
            Flight::Posts(posts) => self.answer_post(key, posts, result),
            Flight::None => {}
        }
        self.answered(key);
    }

    /// Answers the oldest post of a session, and the refused ones that came right behind it.
    fn answer_post(&mut self, key: SessionKey, mut posts: Box<Posts>, result: &Result<Event, Refusal>) {
        if let Some(request) = posts.came_back() {
            let _context = self.take_up(key, request);
            handlers::messages::posted(self, key, result);
            self.measure_post(result.is_ok());
        }
        while let Some(refused) = posts.next_refused() {
            self.error(key, refused.code, &refused.text);
        }
        if !posts.is_empty() {
            self.clients.session(key).flight = Flight::Posts(posts);
        }
    }

    fn go_on(&mut self, key: SessionKey, waiting: Waiting, with: Resume) {
        let _context = self.take_up(key, waiting.request);
        (waiting.next)(self, key, with);
        self.measure_request(key);
    }

    /// Anything but a commit or a new connection, which the driver takes apart.
    pub fn apply(&mut self, event: ShardEvent) {
        match event {
            // The one answer that no request waits for.
            ShardEvent::Answered { token, answer: Answer::Dms(overview) } => self.tell_dms(token, &overview),
            ShardEvent::Answered { token, answer } => self.resume(token, Resume::Answer(answer)),
            ShardEvent::Hashed { token, outcome } => self.resume(token, Resume::Hashed(outcome)),
            ShardEvent::Peers(changes) => changes.iter().for_each(|change| self.apply_peer(change)),
            ShardEvent::Committed(commit) => commit.iter().for_each(|(outcome, tally)| self.outcome(outcome, tally)),
            ShardEvent::Accepted(accepted) => {
                self.connect(accepted.session, accepted.admission, accepted.login);
            }
            ShardEvent::Survey(reply) => self.survey(&reply),
            ShardEvent::Configure(settings) => self.configure(settings),
            ShardEvent::Stop { spread_ms } => self.drain(spread_ms),
        }
    }

    fn resume(&mut self, token: u64, with: Resume) {
        let Some(key) = self.find(token) else { return };
        if let Flight::Waiting(waiting) = std::mem::take(&mut self.clients.session(key).flight) {
            self.go_on(key, *waiting, with);
        }
        self.answered(key);
        self.pump(key);
    }

    fn apply_peer(&mut self, change: &PeerChange) {
        match change {
            PeerChange::Session { session, person, repeat } => {
                self.note_person(*session, None, person.clone(), *repeat)
            }
            PeerChange::Subscribers { channel, delta } => self.roster.add_subscribers(*channel, *delta),
        }
    }

    /// Other settings count from here on. What sessions were told at their start stays announced to them.
    fn configure(&mut self, settings: Arc<ChatSettings>) {
        let timeout = settings.idle_timeout_ms;
        self.clients.outbox_bytes_max = settings.outbox_bytes_max;
        let changed = std::mem::replace(&mut self.settings, settings).idle_timeout_ms != timeout;
        if changed {
            let due = |session: &Session| timeout.map(|timeout| idle_due(session.last_frame_at, timeout));
            let sessions = self.clients.held().filter_map(|(key, id)| Some((key, id, self.clients.get(key)?)));
            let entries = sessions.filter_map(|(key, id, session)| Some(Reverse((due(session)?, id, key))));
            self.idle = entries.collect();
        }
    }

    /// When [`Self::tick`] has something to do next, in monotonic milliseconds.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        let idle = self.idle.peek().map(|Reverse((at, ..))| *at);
        [self.presence_due(), idle, self.departures_due(), self.refusals_due(), self.drain_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Presence that is due, sessions that are idle or, when the server stops, to be told so, refusals that the log was not
    /// told of.
    pub fn tick(&mut self) {
        if self.presence_due().is_some_and(|due| due <= self.now.mono) {
            self.presence_tick();
            self.close_slow();
        }
        self.drain_tick();
        while let Some(Reverse((at, id, key))) = self.idle.peek().copied()
            && at <= self.now.mono
        {
            self.idle.pop();
            self.check_idle(id, key);
        }
        self.tell_refusals();
    }

    /// Nobody is told of those whom a stopping server sends away (BEHAVIOUR.md 1.11).
    fn presence_due(&self) -> Option<u64> {
        self.pending.due().filter(|_| self.draining.is_none())
    }

    fn check_idle(&mut self, id: SessionId, key: SessionKey) {
        let Some(timeout) = self.settings.idle_timeout_ms else { return };
        let Some(session) = self.clients.get(key).filter(|session| session.id == id) else { return };
        let due = idle_due(session.last_frame_at, timeout);
        if due > self.now.mono {
            self.idle.push(Reverse((due, id, key)));
        } else if self.settings.idle_notice {
            self.disconnect(key, CloseReason::Idle, "Session timeout");
        } else {
            self.close(key, CloseReason::Idle);
        }
    }

    /// Ends a turn: who did not take what this turn had for them is gone, and other shards learn what changed here before
    /// any client can see a reply that follows from it.
    pub fn end_turn(&mut self) {
        self.close_slow();
        self.tell_departures();
        if !self.peer_changes.is_empty() {
            let changes: Arc<[_]> = std::mem::take(&mut self.peer_changes).into();
            self.bus.send_others(self.id, &changes);
        }
    }

    /// Offers every session that has something to send to `write`; `blocked` hears of those that the kernel refused.
    pub fn flush(
        &mut self,
        mut write: impl FnMut(SessionKey, &[IoSlice<'_>]) -> io::Result<usize>,
        mut blocked: impl FnMut(SessionKey),
    ) {
        while let Some(key) = self.clients.dirty.pop() {
            self.flush_one(key, &mut write, &mut blocked);
        }
        self.clients.encoder.flushed();
        for (tally, recipients) in self.unflushed.drain(..) {
            tally.finish(&self.metrics, recipients, self.now.mono_micros);
        }
    }

    /// Offers one session's frames to `write`.
    pub fn flush_one(
        &mut self,
        key: SessionKey,
        mut write: impl FnMut(SessionKey, &[IoSlice<'_>]) -> io::Result<usize>,
        mut blocked: impl FnMut(SessionKey),
    ) {
        let Some(session) = self.clients.get_mut(key) else { return };
        session.dirty = false;
        let held = session.outbox.spilled_bytes();
        let flushed = session.outbox.flush(|slices| write(key, slices));
        let holds = session.outbox.spilled_bytes();
        self.metrics.outbound_added(holds.saturating_sub(held) as u64);
        self.metrics.outbound_removed(held.saturating_sub(holds) as u64);
        match flushed {
            Ok(Flushed::All) => {}
            Ok(Flushed::Blocked) => blocked(key),
            Err(error) => {
                debug!(session = session.id.0, %error, "write failed");
                return self.close(key, CloseReason::IoError);
            }
        }
        if session.paused && session.outbox.bytes() < OUTBOX_PAUSE_BYTES {
            session.paused = false;
            self.resumable.push(key);
        }
    }

    /// Sessions to [`Self::pump`], because they have read enough of their answers.
    pub fn take_resumable(&mut self) -> Vec<SessionKey> {
        std::mem::take(&mut self.resumable)
    }

    /// Bytes encoded since the last flush.
    #[must_use]
    pub fn fresh_bytes(&self) -> usize {
        self.clients.encoder.fresh_bytes()
    }

    /// Sessions that ended since the last call.
    pub fn take_departed(&mut self) -> Vec<Departed> {
        std::mem::take(&mut self.departed)
    }
}

/// When a session silent since `last_frame_at` has been silent for the whole time-out: both are cut to milliseconds, so
/// one more makes sure that it is never less.
fn idle_due(last_frame_at: u64, timeout_ms: u64) -> u64 {
    last_frame_at + timeout_ms + 1
}
