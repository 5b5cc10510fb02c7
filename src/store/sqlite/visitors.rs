//! Visitors: how the file names their sessions, and which of them wrote a message (BEHAVIOUR.md 2.15): that session may
//! delete it, and so may a later one with the same nickname from the same address. The latter is kept in memory, for the
//! newest posts only.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use rusqlite::Connection;

use super::row;
use super::snowflake::Snowflake;
use crate::ids::{MessageId, SessionId};
use crate::store::Actor;

/// How sessions of this run are numbered in the file (BEHAVIOUR.md 4.1): above every number of an earlier run, so that
/// nobody is ever taken for a visitor of the past.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionIds {
    base: i64,
}

impl SessionIds {
    /// Before there is any session: no number of the file is one of this run.
    pub(super) const NONE: Self = Self { base: i64::MAX };

    /// Starts above the time, as ids of messages do, and above whatever is in the file.
    pub(super) fn new(conn: &Connection, now_ms: i64) -> rusqlite::Result<Self> {
        let newest = row::first(
            conn,
            "SELECT max((SELECT coalesce(max(session_id), 0) FROM ChannelParticipant),
                        (SELECT coalesce(max(initiator_session_id), 0) FROM DMInvite),
                        (SELECT coalesce(max(target_session_id), 0) FROM DMInvite),
                        (SELECT coalesce(max(session_id), 0) FROM scd_shadowed))",
            [],
            |row| row::number(row, 0),
        )?;
        let next = Snowflake::above(newest.unwrap_or_default()).next(now_ms);
        Ok(Self { base: next.unwrap_or(i64::MAX) })
    }

    /// The number of a live session.
    pub(super) fn stored(self, session: SessionId) -> i64 {
        self.base.saturating_add(session.as_sql())
    }

    /// The session with this number; `None` for one of an earlier run.
    pub(super) fn live(self, stored: i64) -> Option<SessionId> {
        stored.checked_sub(self.base).filter(|number| *number > 0).map(SessionId::from_sql)
    }
}

pub(super) struct Visitors {
    posts: HashMap<MessageId, Origin, RandomState>,
    oldest_first: VecDeque<MessageId>,
    capacity: usize,
}

struct Origin {
    session: SessionId,
    address: IpAddr,
}

impl Visitors {
    pub(super) fn new(capacity: usize) -> Self {
        Self { posts: HashMap::default(), oldest_first: VecDeque::new(), capacity }
    }

    pub(super) fn remember(&mut self, message: MessageId, author: &Actor) {
        if self.oldest_first.len() >= self.capacity
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.posts.remove(&oldest);
        }
        let origin = Origin { session: author.session, address: author.address.to_canonical() };
        self.posts.insert(message, origin);
        self.oldest_first.push_back(message);
    }

    /// Whether the very session of `actor` wrote it.
    pub(super) fn is_session(&self, message: MessageId, actor: &Actor) -> bool {
        self.posts.get(&message).is_some_and(|origin| origin.session == actor.session)
    }

    /// Whether it came from the address of `actor`.
    pub(super) fn is_address(&self, message: MessageId, actor: &Actor) -> bool {
        self.posts.get(&message).is_some_and(|origin| origin.address == actor.address.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_an_earlier_run_are_nobody_whatever_the_clock_says() {
        let earlier = SessionIds { base: 1000 };
        let left_behind = earlier.stored(SessionId(7));
        assert_eq!(earlier.live(left_behind), Some(SessionId(7)));
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(&format!(
            "CREATE TABLE ChannelParticipant (session_id); INSERT INTO ChannelParticipant VALUES ({left_behind}), (NULL);
             CREATE TABLE DMInvite (initiator_session_id, target_session_id);
             CREATE TABLE scd_shadowed (session_id);"
        ))
        .unwrap();
        let set_back = SessionIds::new(&conn, 0).unwrap();
        assert_eq!(set_back.live(left_behind), None);
        assert!(set_back.stored(SessionId(1)) > left_behind);
        assert_eq!(SessionIds::NONE.live(left_behind), None);
    }

    fn visitor(session: u64, address: &str) -> Actor {
        Actor {
            user: None,
            nickname: b"bo"[..].into(),
            flags: 0,
            session: SessionId(session),
            address: address.parse().unwrap(),
            marks: Vec::new(),
        }
    }

    #[test]
    fn the_oldest_post_is_forgotten_first() {
        let author = visitor(1, "192.0.2.1");
        let mut visitors = Visitors::new(2);
        (1..=3).for_each(|id| visitors.remember(MessageId(id), &author));
        let known = [1, 2, 3].map(|id| visitors.is_session(MessageId(id), &author));
        assert_eq!(known, [false, true, true]);
        assert_eq!(visitors.posts.len(), 2);
    }

    #[test]
    fn an_address_is_the_same_in_both_families() {
        let mut visitors = Visitors::new(2);
        visitors.remember(MessageId(1), &visitor(1, "::ffff:192.0.2.1"));
        assert!(visitors.is_address(MessageId(1), &visitor(2, "192.0.2.1")));
        assert!(!visitors.is_session(MessageId(1), &visitor(2, "192.0.2.1")));
        assert!(!visitors.is_address(MessageId(1), &visitor(2, "192.0.2.2")));
    }
}
