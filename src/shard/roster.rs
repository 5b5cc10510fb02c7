//! Who is here: every session with a nickname, on whatever shard, and how many subscribe to each channel.
//!
//! Every shard holds the whole roster. The shard that owns a session tells the others of each change before any reply
//! that follows from it leaves, so lists are right everywhere (see [`super::event`]).

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::ids::{ChannelId, SessionId, UserId};
use crate::store::Name;

/// One named session, as presence frames and lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Without prefix sign.
    pub nickname: Name,
    pub user: Option<UserId>,
    /// WIRE.md 6 `user_flags`.
    pub flags: u8,
    /// The place joined.
    pub joined: Option<ChannelId>,
}

/// A change that other shards must know.
#[derive(Debug, Clone)]
pub enum PeerChange {
    /// A session as it is now; `None` once it is gone. `repeat` announces it although nothing changed.
    Session { session: SessionId, person: Option<Person>, repeat: Repeat },
    /// One session more or less is subscribed to a channel.
    Subscribers { channel: ChannelId, delta: i32 },
}

/// Requests that repeat presence even when they change nothing (BEHAVIOUR.md 2.4, 2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repeat {
    pub server: bool,
    pub channel: bool,
}

/// All named sessions of the server.
#[derive(Debug, Default)]
pub struct Roster {
    people: HashMap<SessionId, Entry, RandomState>,
    by_nickname: HashMap<Name, usize, RandomState>,
    subscribers: HashMap<ChannelId, u32, RandomState>,
    /// Rises with every change.
    version: u64,
}

#[derive(Debug)]
struct Entry {
    person: Person,
    changed: u64,
}

impl Roster {
    /// Replaces what is known of a session and returns what was known before.
    pub fn set(&mut self, session: SessionId, person: Option<Person>) -> Option<Person> {
        self.version += 1;
        if let Some(person) = &person {
            *self.by_nickname.entry(person.nickname.clone()).or_default() += 1;
        }
        let before = match person {
            Some(person) => self.people.insert(session, Entry { person, changed: self.version }),
            None => self.people.remove(&session),
        };
        let before = before.map(|entry| entry.person);
        if let Some(person) = &before {
            self.forget_nickname(&person.nickname);
        }
        before
    }

    fn forget_nickname(&mut self, nickname: &Name) {
        if let Some(sessions) = self.by_nickname.get_mut(nickname) {
            *sessions -= 1;
            if *sessions == 0 {
                self.by_nickname.remove(nickname);
            }
        }
    }

    #[must_use]
    pub fn get(&self, session: SessionId) -> Option<&Person> {
        self.people.get(&session).map(|entry| &entry.person)
    }

    /// Whether any session carries exactly this nickname.
    #[must_use]
    pub fn is_online(&self, nickname: &[u8]) -> bool {
        self.by_nickname.contains_key(nickname)
    }

    /// Everybody, in no order.
    pub fn people(&self) -> impl Iterator<Item = (SessionId, &Person)> {
        self.people.iter().map(|(session, entry)| (*session, &entry.person))
    }

    /// Everybody who came or changed after `version`, in no order.
    pub fn changed_since(&self, version: u64) -> impl Iterator<Item = (SessionId, &Person)> {
        let none = if self.version <= version { Some(()) } else { None };
        let entries = self.people.iter().filter(move |_| none.is_none());
        entries.filter(move |(_, entry)| entry.changed > version).map(|(session, entry)| (*session, &entry.person))
    }

    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.people.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.people.is_empty()
    }

    pub fn add_subscribers(&mut self, channel: ChannelId, delta: i32) {
        let count = self.subscribers.entry(channel).or_default();
        *count = count.saturating_add_signed(delta);
        if *count == 0 {
            self.subscribers.remove(&channel);
        }
    }

    /// Sessions subscribed to a channel, on all shards.
    #[must_use]
    pub fn subscribers(&self, channel: ChannelId) -> u32 {
        self.subscribers.get(&channel).copied().unwrap_or(0)
    }
}
