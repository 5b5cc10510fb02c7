//! The sessions of a shard, and what is on its way to them.

use slab::Slab;
use tracing::warn;

use super::Cells;
use super::outbox::{Broadcast, Encoder, Segment};
use super::session::{PresenceGate, Session, SessionKey};
use crate::ids::SessionId;
use crate::store::Audience;

/// A place and who held it: for what is looked at later, when another may sit there.
pub(super) type Held = (SessionKey, SessionId);

/// The sessions and what is on its way to them: apart from the rest of the shard, so that audiences can be walked while
/// frames are queued.
pub struct Clients {
    /// Boxed, so that a growing table moves pointers and leaves no large holes behind.
    pub(super) sessions: Slab<Box<Session>>,
    pub(super) encoder: Encoder,
    pub(super) dirty: Vec<SessionKey>,
    pub(super) slow: Vec<Held>,
    pub(super) visits: u64,
    pub(super) outbox_bytes_max: usize,
    pub(super) metrics: Cells,
}

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

    /// Whom everything concerns that is for everybody.
    pub(super) fn everybody(&self) -> Vec<SessionKey> {
        let listening = self.sessions.iter().filter(|(_, session)| session.presence != PresenceGate::SigningIn);
        listening.map(|(key, _)| key_of(key)).collect()
    }

    /// Every place with who holds it.
    pub(super) fn held(&self) -> impl Iterator<Item = Held> {
        self.sessions.iter().map(|(key, session)| (key_of(key), session.id))
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
    pub(super) fn still(&self, (key, id): Held) -> Option<SessionKey> {
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
    pub(super) fn push(&mut self, key: SessionKey, segment: &Segment) {
        let Some(session) = self.sessions.get_mut(key.0 as usize) else { return };
        queue(session, key, segment, self.outbox_bytes_max, &mut self.dirty, &mut self.slow);
    }

    /// Whether a message for this audience is for the session too.
    pub(super) fn hears(&self, key: SessionKey, audience: Audience) -> bool {
        audience == Audience::Everybody || self.get(key).is_some_and(|session| audience.includes(session.viewer()))
    }

    /// Starts a walk over audiences that may overlap.
    pub(super) fn next_visit(&mut self) -> u64 {
        self.visits += 1;
        self.visits
    }

    /// Whether this walk meets the session for the first time.
    pub(super) fn visit(&mut self, key: SessionKey, visit: u64) -> bool {
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
pub(super) fn key_of(place: usize) -> SessionKey {
    SessionKey(u32::try_from(place).unwrap_or(u32::MAX))
}
