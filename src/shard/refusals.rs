//! Refusals by rate limits in the log: who floods a session must not fill the disk with it.

use tracing::warn;

use super::Shard;
use super::clients::Held;
use super::session::{Session, SessionKey};
use crate::log;
use crate::metrics::{Label as _, RateLimit};

/// Lines that one session may cause in a window; enough for tools that count them to see an attack.
const LINES_MAX: u32 = 5;

/// A window, and how long refusals without a line of their own may wait for the one that tells of them all, milliseconds.
const WINDOW_MS: u64 = 5_000;

/// What the log was told of one session's refusals.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Monotonic milliseconds; 0 before the first refusal.
    window_ends: u64,
    lines: u32,
    unlogged: u64,
}

/// What becomes of a refusal.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Logged,
    /// The first that is only counted: the rest is to be told at this time.
    ToldAt(u64),
    Counted,
}

impl Refusals {
    fn add(&mut self, now: u64) -> Fate {
        if now >= self.window_ends {
            self.window_ends = now + WINDOW_MS;
            self.lines = 0;
        }
        if self.lines < LINES_MAX {
            self.lines += 1;
            return Fate::Logged;
        }
        self.unlogged += 1;
        if self.unlogged == 1 { Fate::ToldAt(now + WINDOW_MS) } else { Fate::Counted }
    }

    fn take_unlogged(&mut self) -> u64 {
        std::mem::take(&mut self.unlogged)
    }
}

impl Shard {
    /// Counts a hit of a rate limit and logs it in the words operators look for, unless the session has caused many such
    /// lines just now.
    pub fn rate_limited(&mut self, key: SessionKey, kind: RateLimit) {
        self.metrics.global().rate_limit(kind);
        let now = self.now.mono;
        let session = self.clients.session(key);
        let (id, kind) = (session.id, kind.label());
        match session.busy().refusals.add(now) {
            Fate::Logged => warn!(target: "security", session = id.0, kind, "Rate limit exceeded for session {id}"),
            Fate::ToldAt(at) => self.untold.push_back((at, (key, id))),
            Fate::Counted => {}
        }
    }

    /// When refusals are due to be told, in monotonic milliseconds.
    pub(super) fn refusals_due(&self) -> Option<u64> {
        self.untold.front().map(|(at, _)| *at)
    }

    /// Tells of the refusals whose time has come. They wait in order, because all wait equally long.
    pub(super) fn tell_refusals(&mut self) {
        while let Some((_, held)) = self.untold.pop_front_if(|(at, _)| *at <= self.now.mono) {
            self.tell_held(held);
        }
    }

    fn tell_held(&mut self, held: Held) {
        if let Some(key) = self.clients.still(held) {
            tell(self.clients.session(key));
        }
    }
}

/// Tells of what a session was refused without a line, if there is something.
pub(super) fn tell(session: &mut Session) {
    let (id, remote) = (session.id, log::peer(session.address()));
    let more = session.refusals().map_or(0, Refusals::take_unlogged);
    if more > 0 {
        warn!(target: "security", session = id.0, more, %remote, "Rate limit exceeded for session {id} ({more} more)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_some_lines_and_one_for_all_the_rest() {
        let mut refusals = Refusals::default();
        let fates: Vec<_> = (0..8).map(|ms| refusals.add(1_000 + ms)).collect();
        assert!(fates[..5].iter().all(|fate| *fate == Fate::Logged));
        assert_eq!(fates[5..], [Fate::ToldAt(6_005), Fate::Counted, Fate::Counted]);
        assert_eq!((refusals.take_unlogged(), refusals.take_unlogged()), (3, 0));
        assert_eq!(refusals.add(5_999), Fate::ToldAt(10_999), "the window is not over");
        assert_eq!(refusals.add(6_000), Fate::Logged);
    }

    #[test]
    fn what_is_told_late_is_told_once() {
        let mut refusals = Refusals::default();
        let first_window: Vec<_> = (0..6).map(|_| refusals.add(0)).collect();
        assert_eq!(first_window[5], Fate::ToldAt(WINDOW_MS));
        let next_window: Vec<_> = (0..6).map(|_| refusals.add(WINDOW_MS)).collect();
        assert_eq!(next_window[5], Fate::Counted, "the line for the first window has not come yet");
        assert_eq!(refusals.take_unlogged(), 2);
    }
}
