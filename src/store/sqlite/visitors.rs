//! Which live session wrote a visitor's message (BEHAVIOUR.md 2.15): it may delete it, and so may a later session with
//! the same nickname from the same address. Kept in memory, for the newest posts only.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use foldhash::fast::RandomState;

use crate::ids::{MessageId, SessionId};
use crate::store::Actor;

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

    fn visitor(session: u64, address: &str) -> Actor {
        Actor {
            user: None,
            nickname: b"bo"[..].into(),
            flags: 0,
            session: SessionId(session),
            address: address.parse().unwrap(),
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
