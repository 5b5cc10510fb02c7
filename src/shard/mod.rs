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
pub use roster::Person;
use roster::{PeerChange, Repeat, Roster};
use session::{Flight, Posts, PresenceGate, Request, Session, SessionKey, Waiting};
pub use settings::ChatSettings;
use topics::{Listener, Spelling, Topics};

use crate::handlers;
use crate::ids::{ChannelId, MessageId, SessionId, UserId};
use crate::limits::POSTS_IN_FLIGHT_MAX;
use crate::metrics::{DecodeError, FanoutTally, Label as _, Metrics, RateLimit, ShardMetrics};
use crate::net::{Admission, CloseReason};
use crate::passwords::{HashJob, HashOutcome, Passwords};
use crate::store::{Answer, Channel, Command, Event, Outcome, Query, Refusal, Store, Submission, Ticket};
use crate::wire::frame::Frame;
use crate::wire::server::{self, Disconnect};
use crate::wire::{ErrorCode, FrameError, ServerMessage, client};

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
    pub metrics: Arc<Metrics>,
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
    pub metrics: Cells,
    topics: Topics,
    pending: presence::Pending,
    peer_changes: Vec<PeerChange>,
    departed: Vec<Departed>,
    /// Paused sessions that have room for answers again.
    resumable: Vec<SessionKey>,
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
    /// What is being handled.
    request: Request,
    /// NEW_MESSAGEs that are queued but not flushed yet, with the sessions of this shard that get them.
    unflushed: Vec<(Arc<FanoutTally>, u64)>,
}

/// A session that ended, with what it should still be sent.
#[derive(Debug)]
pub struct Departed {
    pub key: SessionKey,
    pub reason: CloseReason,
    pub outbox: Outbox,
}

/// A place and who held it: for what is looked at later, when another may sit there.
type Held = (SessionKey, SessionId);

/// The sessions and what is on its way to them: apart from the rest of the shard, so that audiences can be walked while
/// frames are queued.
pub struct Clients {
    /// Boxed, so that a growing table moves pointers and leaves no large holes behind.
    sessions: Slab<Box<Session>>,
    encoder: Encoder,
    dirty: Vec<SessionKey>,
    slow: Vec<Held>,
    visits: u64,
    outbox_bytes_max: usize,
    metrics: Cells,
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

/// Bytes of one session that may wait unhandled before its socket is no longer read; a longer frame still completes.
const INBOX_PAUSE_BYTES: usize = 64 * 1024;
/// Bytes that all sessions of a shard together may have waiting. Beyond, a session that wants more than its share ends.
const INBOXES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A client that does not read its answers is not asked for more requests.
const OUTBOX_PAUSE_BYTES: usize = 64 * 1024;

impl Clients {
    #[must_use]
    pub fn get(&self, key: SessionKey) -> Option<&Session> {
        self.sessions.get(key.0 as usize).map(|session| &**session)
    }

    pub fn get_mut(&mut self, key: SessionKey) -> Option<&mut Session> {
        self.sessions.get_mut(key.0 as usize).map(|session| &mut **session)
    }

    /// A session that is known to live: handlers run only for those.
    ///
    /// # Panics
    /// When it does not: our bug, which ends the session that was being served.
    #[expect(
        clippy::expect_used,
        reason = "a handler outliving its session is our bug; the panic ends that session only"
    )]
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

    /// The place, if the session that held it still does.
    fn still(&self, (key, id): Held) -> Option<SessionKey> {
        self.get(key).filter(|session| session.id == id).map(|_| key)
    }

    /// Queues a frame that others get too.
    pub fn send(&mut self, key: SessionKey, frame: &mut Broadcast<'_>) {
        let Some(session) = self.sessions.get_mut(key.0 as usize) else { return };
        let code = frame.code();
        match frame.segment(&mut self.encoder, session.class()) {
            Ok(segment) => {
                self.metrics.sent(code);
                queue(session, key, segment, self.outbox_bytes_max, &mut self.dirty, &mut self.slow);
            }
            Err(error) => warn!(%error, "broadcast does not fit a frame"),
        }
    }

    /// Queues frames that were encoded together, all of one type.
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
    slow: &mut Vec<Held>,
) {
    if session.outbox.push(segment, bytes_max).is_err() {
        slow.push((key, session.id));
        return;
    }
    if !std::mem::replace(&mut session.dirty, true) {
        dirty.push(key);
    }
}

/// Slab places fit 32 bits: descriptors run out long before.
fn key_of(place: usize) -> SessionKey {
    SessionKey(u32::try_from(place).unwrap_or(u32::MAX))
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
        Self {
            id: parts.id,
            settings: parts.settings,
            now: parts.now,
            clients,
            channels: Channels::new(parts.channels),
            roster: Roster::default(),
            rates: parts.rates,
            metrics,
            topics: Topics::default(),
            pending: presence::Pending::default(),
            peer_changes: Vec::new(),
            departed: Vec::new(),
            resumable: Vec::new(),
            idle: BinaryHeap::new(),
            store: parts.store,
            passwords: parts.passwords,
            bus: parts.bus,
            scratch: Vec::new(),
            started_at: parts.now.mono,
            inbox_bytes: 0,
            request: Request::default(),
            unflushed: Vec::new(),
        }
    }

    // What the driver calls.

    /// A connection was admitted: SERVER_CONFIG is its first frame (BEHAVIOUR.md 1.2). Its key may be that of an earlier
    /// session, so the driver lets go of those that ended ([`Self::take_departed`]) first.
    pub fn connect(&mut self, id: SessionId, admission: Admission) -> SessionKey {
        debug_assert!(self.departed.is_empty(), "a key changes hands before its last holder was seen off");
        let session = Session::new(id, admission, self.now.mono, self.roster.version());
        let key = key_of(self.clients.sessions.insert(Box::new(session)));
        self.metrics.session_opened();
        if let Some(timeout) = self.settings.idle_timeout_ms {
            self.idle.push(Reverse((idle_due(self.now.mono, timeout), id, key)));
        }
        self.reply(key, self.settings.announced.clone());
        key
    }

    /// Bytes from a client. Whole frames are handled at once where nothing before them waits for an answer.
    pub fn receive(&mut self, key: SessionKey, bytes: &[u8]) {
        let Some(session) = self.clients.get_mut(key) else { return };
        if session.inbox.is_empty() {
            let used = self.consume(key, bytes);
            self.keep(key, Vec::new(), &bytes[used..]);
        } else {
            let inbox = self.take_inbox(key);
            self.keep(key, inbox, bytes);
            self.pump(key);
        }
    }

    /// The client will send nothing more. What it asked before is still answered.
    pub fn hang_up(&mut self, key: SessionKey) {
        if let Some(session) = self.clients.get_mut(key) {
            session.hung_up = true;
        }
        self.end_if_done(key);
    }

    fn end_if_done(&mut self, key: SessionKey) {
        let is_done = |session: &Session| session.hung_up && !session.paused && matches!(session.flight, Flight::None);
        if self.clients.get(key).is_some_and(is_done) {
            self.close(key, CloseReason::Client);
        }
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
        let session = self.clients.sessions.remove(key.0 as usize);
        self.inbox_bytes -= session.inbox.len();
        if session.nickname.is_some() {
            self.tell_person(session.id, None, None, Repeat::default());
        }
        self.metrics.outbound_removed(session.outbox.spilled_bytes() as u64);
        self.metrics.disconnect(reason);
        self.departed.push(Departed { key, reason, outbox: session.outbox });
    }

    /// Whether the session's socket should be read now.
    #[must_use]
    pub fn wants_input(&self, key: SessionKey) -> bool {
        self.clients.get(key).is_some_and(|session| {
            let blocked = session.paused || !matches!(session.flight, Flight::None);
            let full = blocked && session.inbox.len() >= INBOX_PAUSE_BYTES;
            !session.hung_up && !full && session.outbox.spilled_bytes() < OUTBOX_PAUSE_BYTES
        })
    }

    /// One outcome of a commit: first the answer to whoever asked, then the event to everybody else.
    pub fn outcome(&mut self, outcome: &Outcome, tally: Option<&Arc<FanoutTally>>) {
        let asker = outcome.ticket.filter(|ticket| ticket.shard == self.id).and_then(|ticket| self.find(ticket.token));
        if let Some(key) = asker {
            self.answer_outcome(key, &outcome.result);
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
        let read_at = posts.came_back().unwrap_or(self.now.mono_micros);
        handlers::messages::posted(self, key, result);
        self.measure_post(read_at, result.is_ok());
        while let Some(refused) = posts.next_refused() {
            self.error(key, refused.code, &refused.text);
        }
        if !posts.is_empty() {
            self.clients.session(key).flight = Flight::Posts(posts);
        }
    }

    fn go_on(&mut self, key: SessionKey, waiting: Waiting, with: Resume) {
        self.request = waiting.request;
        (waiting.next)(self, key, with);
        self.measure_request(key);
    }

    /// Notes how long the request at hand took, if its answer is queued.
    fn measure_request(&self, key: SessionKey) {
        if self.clients.get(key).is_none_or(|session| !matches!(session.flight, Flight::Waiting(_))) {
            self.metrics.request(self.request.code, self.now.mono_micros.saturating_sub(self.request.read_at));
        }
    }

    fn measure_post(&self, read_at: u64, is_durable: bool) {
        let micros = self.now.mono_micros.saturating_sub(read_at);
        self.metrics.request(client::PostMessage::CODE, micros);
        if is_durable {
            self.metrics.post_ack(micros);
        }
    }

    /// Anything but a commit or a new connection, which the driver takes apart.
    pub fn apply(&mut self, event: ShardEvent) {
        match event {
            ShardEvent::Answered { token, answer } => self.resume(token, Resume::Answer(answer)),
            ShardEvent::Hashed { token, outcome } => self.resume(token, Resume::Hashed(outcome)),
            ShardEvent::Peers(changes) => changes.iter().for_each(|change| self.apply_peer(change)),
            ShardEvent::Committed(commit) => commit.iter().for_each(|(outcome, tally)| self.outcome(outcome, tally)),
            ShardEvent::Accepted(accepted) => {
                self.connect(accepted.session, accepted.admission);
            }
            ShardEvent::Stop => self.say_goodbye(),
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

    /// Everybody is told and disconnected, without the usual notices to each other (BEHAVIOUR.md 1.11).
    fn say_goodbye(&mut self) {
        let keys: Vec<_> = self.clients.keys().collect();
        for key in keys {
            self.disconnect(key, CloseReason::Shutdown, "Server shutting down for maintenance");
        }
    }

    /// When [`Self::tick`] has something to do next, in monotonic milliseconds.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        let idle = self.idle.peek().map(|Reverse((at, ..))| *at);
        [self.pending.due(), idle].into_iter().flatten().min()
    }

    /// Presence that is due, sessions that are idle.
    pub fn tick(&mut self) {
        if self.pending.due().is_some_and(|due| due <= self.now.mono) {
            self.presence_tick();
            self.close_slow();
        }
        while let Some(Reverse((at, id, key))) = self.idle.peek().copied()
            && at <= self.now.mono
        {
            self.idle.pop();
            self.check_idle(id, key);
        }
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

    // Frames in.

    fn find(&self, token_value: u64) -> Option<SessionKey> {
        let key = SessionKey(u32::try_from(token_value & u64::from(u32::MAX)).unwrap_or(u32::MAX));
        self.clients.get(key).filter(|session| token(key, session.id) == token_value).map(|_| key)
    }

    fn take_inbox(&mut self, key: SessionKey) -> Vec<u8> {
        let inbox = std::mem::take(&mut self.clients.session(key).inbox);
        self.inbox_bytes -= inbox.len();
        inbox
    }

    /// Puts bytes aside until there are more, or until an answer is there. An empty inbox holds no memory.
    fn keep(&mut self, key: SessionKey, mut inbox: Vec<u8>, more: &[u8]) {
        let Some(session) = self.clients.get_mut(key) else { return };
        inbox.extend_from_slice(more);
        if inbox.is_empty() {
            return;
        }
        let over_share = self.inbox_bytes + inbox.len() > INBOXES_BYTES_MAX && inbox.len() > INBOX_PAUSE_BYTES;
        self.inbox_bytes += inbox.len();
        session.inbox = inbox;
        if over_share {
            warn!(session = session.id.0, "too many bytes wait unread, session closed");
            self.close(key, CloseReason::SlowConsumer);
        }
    }

    /// Handles frames that were waiting.
    pub fn pump(&mut self, key: SessionKey) {
        if self.clients.get(key).is_some_and(|session| !session.inbox.is_empty()) {
            let mut inbox = self.take_inbox(key);
            let used = self.consume(key, &inbox);
            inbox.drain(..used);
            self.keep(key, inbox, &[]);
        }
        self.end_if_done(key);
    }

    /// Handles whole frames from the front of `bytes` while nothing holds them back, and returns the bytes used.
    fn consume(&mut self, key: SessionKey, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        loop {
            let Some(session) = self.clients.get_mut(key) else { return bytes.len() };
            match Frame::cut(rest) {
                Ok(Some((frame, behind))) => {
                    session.paused = session.outbox.bytes() >= OUTBOX_PAUSE_BYTES;
                    if session.paused || !may_proceed(&session.flight, frame.code) {
                        // Whoever sends frames is not idle, even while they wait for us.
                        session.last_frame_at = self.now.mono;
                        return bytes.len() - rest.len();
                    }
                    rest = behind;
                    self.handle(key, frame);
                }
                Ok(None) => return bytes.len() - rest.len(),
                Err(error) => {
                    self.protocol_error(key, error);
                    return bytes.len();
                }
            }
        }
    }

    fn handle(&mut self, key: SessionKey, frame: Frame<'_>) {
        let session = self.clients.session(key);
        session.last_frame_at = self.now.mono;
        session.version = session.version.learn(frame.version);
        self.metrics.received(frame.code);
        self.request = Request { code: frame.code, read_at: self.now.mono_micros };
        let mut scratch = std::mem::take(&mut self.scratch);
        match frame.unpack(&mut scratch) {
            Ok(unpacked) => handlers::dispatch(self, key, frame.code, unpacked.payload),
            Err(error) => self.protocol_error(key, error),
        }
        if scratch.capacity() <= INBOX_PAUSE_BYTES {
            self.scratch = scratch;
        }
        if frame.code != client::PostMessage::CODE {
            self.measure_request(key);
        }
        self.answered(key);
    }

    /// The boundary of the next frame is lost (WIRE.md 2).
    fn protocol_error(&mut self, key: SessionKey, error: FrameError) {
        let kind = if error.is_compression() { DecodeError::Compression } else { DecodeError::Frame };
        self.metrics.decode_error(kind);
        info!(session = self.clients.session(key).id.0, %error, "protocol violation");
        self.disconnect(key, CloseReason::ProtocolError, "Protocol violation");
    }

    /// The first request has been answered, or handled where there is no answer: presence may flow.
    fn answered(&mut self, key: SessionKey) {
        let Some(session) = self.clients.get(key) else { return };
        if let (PresenceGate::Held { since }, Flight::None) = (session.presence, &session.flight) {
            self.open_presence(key, PresenceGate::Opening { since });
        }
    }

    // What handlers call.

    /// Answers a session.
    pub fn reply<'m>(&mut self, key: SessionKey, message: impl Into<ServerMessage<'m>>) {
        let mut frame = Broadcast::new(message);
        let session = self.clients.session(key);
        let class = session.class();
        match frame.segment(&mut self.clients.encoder, class) {
            Ok(_) => self.clients.send(key, &mut frame),
            Err(error) => {
                warn!(session = self.clients.session(key).id.0, %error, code = frame.code(), "answer does not fit a frame");
                self.error(key, ErrorCode::Internal, "Internal error");
            }
        }
    }

    /// Answers with an ERROR. While posts are under way only further posts are handled, and a refusal waits for its turn.
    pub fn error(&mut self, key: SessionKey, code: ErrorCode, text: &str) {
        if let Flight::Posts(posts) = &mut self.clients.session(key).flight {
            return posts.refuse(code, text);
        }
        self.metrics.error(code.number());
        self.reply(key, server::Error { error_code: code.number(), message: text.as_bytes() });
    }

    /// Says why, then ends the session.
    pub fn disconnect(&mut self, key: SessionKey, reason: CloseReason, text: &str) {
        self.reply(key, Disconnect { reason: Some(text.as_bytes()) });
        self.close(key, reason);
    }

    /// Reads from the store; `next` gets the answer. No further frame of the session is handled before.
    pub fn ask(&mut self, key: SessionKey, query: Query, next: impl FnOnce(&mut Self, SessionKey, Answer) + 'static) {
        let ticket = self.ticket(key);
        if self.store.ask(ticket, query).is_err() {
            return self.busy(key);
        }
        self.wait(key, move |shard, key, with| match with {
            Resume::Answer(Answer::Failed) => shard.error(key, ErrorCode::Database, "Database error"),
            Resume::Answer(answer) => next(shard, key, answer),
            Resume::Outcome(_) | Resume::Hashed(_) => shard.error(key, ErrorCode::Internal, "Internal error"),
        });
    }

    /// Writes to the store; `next` gets the outcome. No further frame of the session is handled before.
    pub fn submit(
        &mut self,
        key: SessionKey,
        command: Command,
        next: impl FnOnce(&mut Self, SessionKey, Result<Event, Refusal>) + 'static,
    ) {
        let ticket = self.ticket(key);
        if self.store.submit(Submission { ticket, command }).is_err() {
            return self.busy(key);
        }
        self.wait(key, move |shard, key, with| match with {
            Resume::Outcome(result) => next(shard, key, result),
            Resume::Answer(_) | Resume::Hashed(_) => shard.error(key, ErrorCode::Internal, "Internal error"),
        });
    }

    /// Writes a post. Further posts of the session may follow before its outcome is there.
    pub fn submit_post(&mut self, key: SessionKey, command: Command) {
        let ticket = self.ticket(key);
        if self.store.submit(Submission { ticket, command }).is_err() {
            return self.busy(key);
        }
        let read_at = self.request.read_at;
        match &mut self.clients.session(key).flight {
            Flight::Posts(posts) => posts.submitted(read_at),
            other => {
                let mut posts = Box::<Posts>::default();
                posts.submitted(read_at);
                *other = Flight::Posts(posts);
            }
        }
    }

    /// Hashes or verifies a password; `next` gets the outcome. No further frame of the session is handled before.
    pub fn hash(
        &mut self,
        key: SessionKey,
        job: HashJob,
        next: impl FnOnce(&mut Self, SessionKey, HashOutcome) + 'static,
    ) {
        let ticket = self.ticket(key);
        if self.passwords.submit(ticket, job).is_err() {
            return next(self, key, HashOutcome::Busy);
        }
        self.wait(key, move |shard, key, with| match with {
            Resume::Hashed(outcome) => next(shard, key, outcome),
            Resume::Answer(_) | Resume::Outcome(_) => shard.error(key, ErrorCode::Internal, "Internal error"),
        });
    }

    fn ticket(&mut self, key: SessionKey) -> Ticket {
        Ticket { shard: self.id, token: token(key, self.clients.session(key).id) }
    }

    fn wait(&mut self, key: SessionKey, next: impl FnOnce(&mut Self, SessionKey, Resume) + 'static) {
        let waiting = Waiting { next: Box::new(next), request: self.request };
        self.clients.session(key).flight = Flight::Waiting(Box::new(waiting));
    }

    fn busy(&mut self, key: SessionKey) {
        self.error(key, ErrorCode::Unavailable, "Server is busy. Try again.");
    }

    /// The session's name, account, flags or place changed: everybody hears of it at the next tick.
    pub fn announce(&mut self, key: SessionKey, repeat: Repeat) {
        let session = self.clients.session(key);
        let (id, person) = (session.id, session.person());
        self.tell_person(id, Some(key), person, repeat);
    }

    /// The next tick sends the session the whole roster, itself included.
    pub fn send_roster(&mut self, key: SessionKey) {
        self.open_presence(key, PresenceGate::Snapshot);
    }

    fn tell_person(&mut self, session: SessionId, own: Option<SessionKey>, person: Option<Person>, repeat: Repeat) {
        if person.is_none() && self.roster.get(session).is_none() {
            return;
        }
        if self.bus.shards() > 1 {
            self.peer_changes.push(PeerChange::Session { session, person: person.clone(), repeat });
        }
        self.note_person(session, own, person, repeat);
    }

    /// Moves the session into a place; it leaves the one it was in.
    pub fn join(&mut self, key: SessionKey, channel: ChannelId, spelling: Spelling) {
        self.leave(key);
        self.clients.session(key).joined = Some((channel, spelling));
        self.topics.join(channel, Listener { key, spelling });
    }

    /// Takes the session out of the place it is in.
    pub fn leave(&mut self, key: SessionKey) {
        if let Some((channel, _)) = self.clients.session(key).joined.take() {
            self.topics.leave(channel, key);
        }
    }

    /// Subscribes to a place that the session is not subscribed to yet.
    pub fn subscribe_channel(&mut self, key: SessionKey, channel: ChannelId, spelling: Spelling) {
        self.clients.session(key).busy().channels.push(channel);
        self.topics.subscribe_channel(channel, Listener { key, spelling }, self.metrics.global());
        self.count_subscriber(channel, 1);
    }

    /// Ends a subscription, if there is one.
    pub fn unsubscribe_channel(&mut self, key: SessionKey, channel: ChannelId) {
        let subscribed = &mut self.clients.session(key).busy().channels;
        let Some(place) = subscribed.iter().position(|known| *known == channel) else { return };
        subscribed.swap_remove(place);
        self.topics.unsubscribe_channel(channel, key);
        self.count_subscriber(channel, -1);
    }

    fn count_subscriber(&mut self, channel: ChannelId, delta: i32) {
        self.roster.add_subscribers(channel, delta);
        if self.bus.shards() > 1 {
            self.peer_changes.push(PeerChange::Subscribers { channel, delta });
        }
    }

    /// Subscribes to a thread that the session does not follow yet.
    pub fn subscribe_thread(&mut self, key: SessionKey, thread: session::ThreadSubscription) {
        let session = self.clients.session(key);
        let spelling = session.spelling(thread.channel);
        session.busy().threads.push(thread);
        self.topics.subscribe_thread(thread, Listener { key, spelling }, self.metrics.global(), self.now.mono);
    }

    /// Ends a subscription, if there is one.
    pub fn unsubscribe_thread(&mut self, key: SessionKey, root: MessageId) {
        let followed = &mut self.clients.session(key).busy().threads;
        let Some(place) = followed.iter().position(|thread| thread.root == root) else { return };
        followed.swap_remove(place);
        self.topics.unsubscribe_thread(root, key);
    }

    /// The client named a place: frames about it follow the spelling it used last.
    pub fn note_spelling(&mut self, key: SessionKey, channel: ChannelId, spelling: Spelling) {
        let session = self.clients.session(key);
        if session.set_spelling(channel, spelling) {
            if let Some((joined, joined_spelling)) = &mut session.joined
                && *joined == channel
            {
                *joined_spelling = spelling;
            }
            let threads = session.threads().iter().filter(|thread| thread.channel == channel);
            let roots: Vec<_> = threads.map(|thread| thread.root).collect();
            self.topics.respell(channel, &roots, Listener { key, spelling });
        }
    }

    /// Counts a hit of a rate limit and logs it in the words operators look for.
    pub fn rate_limited(&mut self, key: SessionKey, kind: RateLimit) {
        self.metrics.global().rate_limit(kind);
        let session = self.clients.session(key).id;
        let kind = kind.label();
        warn!(target: "security", session = session.0, kind, "Rate limit exceeded for session {session}");
    }

    /// Seconds since the server started.
    #[must_use]
    pub fn uptime_seconds(&self) -> u64 {
        (self.now.mono - self.started_at) / 1000
    }
}

/// When a session silent since `last_frame_at` has been silent for the whole time-out: both are cut to milliseconds, so
/// one more makes sure that it is never less.
fn idle_due(last_frame_at: u64, timeout_ms: u64) -> u64 {
    last_frame_at + timeout_ms + 1
}

/// Answers keep the order of requests: while something is under way, only a post may follow posts.
fn may_proceed(flight: &Flight, code: u8) -> bool {
    match flight {
        Flight::None => true,
        Flight::Posts(posts) => code == client::PostMessage::CODE && posts.len() < POSTS_IN_FLIGHT_MAX,
        Flight::Waiting(_) => false,
    }
}
