//! The end of a shard: everybody is told, in a random order over a span of time, so that a crowd does not come back all
//! at once (BEHAVIOUR.md 1.11).

use std::cmp::Reverse;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use super::Shard;
use super::clients::Held;
use super::session::{Flight, SessionKey};
use crate::net::CloseReason;

const GOODBYE: &str = "Server shutting down for maintenance";

/// Requests under way when their session's turn has come are answered first, for at most so many milliseconds behind the
/// last turn.
const ANSWERS_MS: u64 = 1_000;

/// Who is still to be told.
#[derive(Debug)]
pub(super) struct Drain {
    /// The next one last; times in monotonic milliseconds.
    turns: Vec<(Reverse<u64>, Held)>,
    /// When nobody is waited for any more.
    ends_at: u64,
}

impl Shard {
    /// Tells every session within `spread_ms`, without the usual notices to each other.
    pub(super) fn drain(&mut self, spread_ms: u64) {
        if self.draining.is_some() {
            return;
        }
        let (order, now) = (RandomState::default(), self.now.mono);
        let mut sessions: Vec<Held> = self.clients.held().collect();
        sessions.sort_by_cached_key(|(_, session)| order.hash_one(session));
        let count = sessions.len().max(1) as u64;
        let due = |place: usize| now + spread_ms.saturating_mul(place as u64) / count;
        let turns = sessions.into_iter().enumerate().map(|(place, held)| (Reverse(due(place)), held)).rev().collect();
        self.draining = Some(Drain { turns, ends_at: now + spread_ms + ANSWERS_MS });
        self.drain_tick();
    }

    /// When [`Self::drain_tick`] has something to do next, in monotonic milliseconds.
    pub(super) fn drain_due(&self) -> Option<u64> {
        let drain = self.draining.as_ref().filter(|_| !self.clients.is_empty())?;
        Some(drain.turns.last().map_or(drain.ends_at, |(Reverse(due), _)| *due))
    }

    /// Tells those whose turn has come; in the end all that are left.
    pub(super) fn drain_tick(&mut self) {
        let now = self.now.mono;
        while let Some(drain) = &mut self.draining
            && let Some((_, held)) = drain.turns.pop_if(|(Reverse(due), _)| *due <= now)
        {
            if let Some(key) = self.clients.still(held) {
                self.see_out(key);
            }
        }
        if self.draining.as_ref().is_some_and(|drain| drain.ends_at <= now) {
            let left: Vec<_> = self.clients.held().collect();
            left.into_iter().for_each(|(key, _)| self.disconnect(key, CloseReason::Shutdown, GOODBYE));
        }
    }

    /// Ends a session, once it has the answers that are under way; it is not read any more.
    fn see_out(&mut self, key: SessionKey) {
        let session = self.clients.session(key);
        session.hung_up = true;
        if matches!(session.flight, Flight::None) {
            self.disconnect(key, CloseReason::Shutdown, GOODBYE);
        }
    }

    /// Ends a session that has its answers, in the words that fit.
    pub(super) fn end(&mut self, key: SessionKey) {
        match self.draining {
            Some(_) => self.disconnect(key, CloseReason::Shutdown, GOODBYE),
            None => self.close(key, CloseReason::Client),
        }
    }
}
