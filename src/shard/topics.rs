//! Topic to sessions: who on this shard hears what (BEHAVIOUR.md 3.1).

use std::collections::HashMap;
use std::hash::Hash;

use foldhash::fast::RandomState;

use super::session::SessionKey;
use crate::ids::{ChannelId, MessageId};

/// How a session names a subchannel (BEHAVIOUR.md 2.11). Other places have one spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spelling {
    /// The subchannel's own id as `channel_id`.
    #[default]
    Own,
    /// The parent's id as `channel_id`, its own as `subchannel_id`.
    Pair,
}

/// A session in an audience, with the spelling its frames carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub key: SessionKey,
    pub spelling: Spelling,
}

type Audience<K> = HashMap<K, Vec<Listener>, RandomState>;

/// All audiences of one shard.
#[derive(Debug, Default)]
pub struct Topics {
    channels: Audience<ChannelId>,
    threads: Audience<MessageId>,
    joined: Audience<ChannelId>,
}

impl Topics {
    #[must_use]
    pub fn channel(&self, channel: ChannelId) -> &[Listener] {
        listeners(&self.channels, channel)
    }

    #[must_use]
    pub fn thread(&self, root: MessageId) -> &[Listener] {
        listeners(&self.threads, root)
    }

    #[must_use]
    pub fn joined(&self, channel: ChannelId) -> &[Listener] {
        listeners(&self.joined, channel)
    }

    /// Adds a session that is not subscribed yet; for one that is, see [`Self::respell`].
    pub fn subscribe_channel(&mut self, channel: ChannelId, listener: Listener) {
        add(&mut self.channels, channel, listener);
    }

    pub fn subscribe_thread(&mut self, root: MessageId, listener: Listener) {
        add(&mut self.threads, root, listener);
    }

    pub fn join(&mut self, channel: ChannelId, listener: Listener) {
        add(&mut self.joined, channel, listener);
    }

    pub fn unsubscribe_channel(&mut self, channel: ChannelId, key: SessionKey) {
        remove(&mut self.channels, channel, key);
    }

    pub fn unsubscribe_thread(&mut self, root: MessageId, key: SessionKey) {
        remove(&mut self.threads, root, key);
    }

    pub fn leave(&mut self, channel: ChannelId, key: SessionKey) {
        remove(&mut self.joined, channel, key);
    }

    /// The session used another spelling of a place: its later frames follow it, those of threads there too.
    pub fn respell(&mut self, channel: ChannelId, threads: &[MessageId], listener: Listener) {
        let places =
            [&mut self.channels, &mut self.joined].into_iter().filter_map(|audience| audience.get_mut(&channel));
        let followed = self.threads.iter_mut().filter(|(root, _)| threads.contains(root)).map(|(_, audience)| audience);
        for listeners in places.chain(followed) {
            if let Some(known) = find(listeners, listener.key) {
                known.spelling = listener.spelling;
            }
        }
    }
}

fn listeners<K: Hash + Eq>(audience: &Audience<K>, topic: K) -> &[Listener] {
    audience.get(&topic).map_or(&[], Vec::as_slice)
}

fn find(listeners: &mut [Listener], key: SessionKey) -> Option<&mut Listener> {
    listeners.iter_mut().find(|listener| listener.key == key)
}

fn add<K: Hash + Eq>(audience: &mut Audience<K>, topic: K, listener: Listener) {
    audience.entry(topic).or_default().push(listener);
}

fn remove<K: Hash + Eq>(audience: &mut Audience<K>, topic: K, key: SessionKey) {
    let Some(listeners) = audience.get_mut(&topic) else { return };
    listeners.retain(|listener| listener.key != key);
    if listeners.is_empty() {
        audience.remove(&topic);
    }
}
