//! Bytes in: what a client sends, from its socket to its handlers.
//!
//! Answers keep the order of requests, so a frame waits while one before it has no answer yet, and a client that does not
//! read its answers is not asked for more.

use tracing::{info, warn};

use super::session::{Flight, PresenceGate, Session, SessionKey};
use super::{Shard, token};
use crate::handlers;
use crate::limits::POSTS_IN_FLIGHT_MAX;
use crate::metrics::DecodeError;
use crate::net::CloseReason;
use crate::wire::frame::Frame;
use crate::wire::{FrameError, client};

/// Bytes of one session that may wait unhandled before its socket is no longer read; a longer frame still completes.
const INBOX_PAUSE_BYTES: usize = 64 * 1024;
/// Bytes that all sessions of a shard together may have waiting. Beyond, a session that wants more than its share ends.
const INBOXES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A client that does not read its answers is not asked for more requests.
pub(super) const OUTBOX_PAUSE_BYTES: usize = 64 * 1024;

impl Shard {
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

    pub(super) fn end_if_done(&mut self, key: SessionKey) {
        // A client that reads nothing does not hold up the end of the server.
        let read = |session: &Session| !session.paused || self.draining.is_some();
        let is_done = |session: &Session| session.hung_up && read(session) && matches!(session.flight, Flight::None);
        if self.clients.get(key).is_some_and(is_done) {
            self.end(key);
        }
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

    pub(super) fn find(&self, token_value: u64) -> Option<SessionKey> {
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
                    let _context = self.begin(key, 0);
                    self.protocol_error(key, error);
                    return bytes.len();
                }
            }
        }
    }

    fn handle(&mut self, key: SessionKey, frame: Frame<'_>) {
        let _context = self.begin(key, frame.code);
        let session = self.clients.session(key);
        session.last_frame_at = self.now.mono;
        session.version = session.version.learn(frame.version);
        self.metrics.received(frame.code);
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
    pub(super) fn answered(&mut self, key: SessionKey) {
        let Some(session) = self.clients.get(key) else { return };
        if let (PresenceGate::Held { since }, Flight::None) = (session.presence, &session.flight) {
            self.open_presence(key, PresenceGate::Opening { since });
        }
    }
}

/// Answers keep the order of requests: while something is under way, only a post may follow posts.
fn may_proceed(flight: &Flight, code: u8) -> bool {
    match flight {
        Flight::None => true,
        Flight::Posts(posts) => code == client::PostMessage::CODE && posts.len() < POSTS_IN_FLIGHT_MAX,
        Flight::Waiting(_) => false,
    }
}
