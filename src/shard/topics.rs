//! Topic to sessions: who on this shard hears what (BEHAVIOUR.md 3.1).

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::session::SessionKey;
use crate::ids::{ChannelId, MessageId};
use crate::metrics::TopicMetrics;

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

/// Something to subscribe to, and what operators see of it.
#[derive(Debug)]
pub struct Topic {
    pub listeners: Vec<Listener>,
    pub series: Arc<TopicMetrics>,
}

/// All audiences of one shard. A topic without listeners has no entry.
#[derive(Debug, Default)]
pub struct Topics {
    channels: HashMap<ChannelId, Topic, RandomState>,
    threads: HashMap<MessageId, Topic, RandomState>,
    joined: HashMap<ChannelId, Vec<Listener>, RandomState>,
}

impl Topics {
    #[must_use]
    pub fn channel_topic(&self, channel: ChannelId) -> Option<&Topic> {
        self.channels.get(&channel)
    }

    #[must_use]
    pub fn thread_topic(&self, root: MessageId) -> Option<&Topic> {
        self.threads.get(&root)
    }

    /// Who is subscribed to a channel.
    #[must_use]
    pub fn channel(&self, channel: ChannelId) -> &[Listener] {
        self.channels.get(&channel).map_or(&[], |topic| &topic.listeners)
    }

    /// Who follows a thread.
    #[must_use]
    pub fn thread(&self, root: MessageId) -> &[Listener] {
        self.threads.get(&root).map_or(&[], |topic| &topic.listeners)
    }

    /// Who has joined a place.
    #[must_use]
    pub fn joined(&self, channel: ChannelId) -> &[Listener] {
        self.joined.get(&channel).map_or(&[], Vec::as_slice)
    }

    /// Adds a session that is not subscribed yet; for one that is, see [`Self::respell`]. `series` is asked for when the
    /// topic is new.
    pub fn subscribe_channel(&mut self, channel: ChannelId, listener: Listener, series: impl Series) {
        subscribe(&mut self.channels, channel, listener, series);
    }

    /// Adds a session that does not follow the thread yet; `series` as above.
    pub fn subscribe_thread(&mut self, root: MessageId, listener: Listener, series: impl Series) {
        subscribe(&mut self.threads, root, listener, series);
    }

    pub fn unsubscribe_channel(&mut self, channel: ChannelId, key: SessionKey) {
        unsubscribe(&mut self.channels, channel, key);
    }

    pub fn unsubscribe_thread(&mut self, root: MessageId, key: SessionKey) {
        unsubscribe(&mut self.threads, root, key);
    }

    /// Adds a session that has not joined the place yet.
    pub fn join(&mut self, channel: ChannelId, listener: Listener) {
        self.joined.entry(channel).or_default().push(listener);
    }

    pub fn leave(&mut self, channel: ChannelId, key: SessionKey) {
        let Some(listeners) = self.joined.get_mut(&channel) else { return };
        listeners.retain(|listener| listener.key != key);
        if listeners.is_empty() {
            self.joined.remove(&channel);
        }
    }

    /// The session used another spelling of a place: its later frames follow it, those of threads there too.
    pub fn respell(&mut self, channel: ChannelId, threads: &[MessageId], listener: Listener) {
        let subscribed = self.channels.get_mut(&channel).map(|topic| &mut topic.listeners);
        let followed = self.threads.iter_mut().filter(|(root, _)| threads.contains(root));
        let followed = followed.map(|(_, topic)| &mut topic.listeners);
        for listeners in subscribed.into_iter().chain(self.joined.get_mut(&channel)).chain(followed) {
            if let Some(known) = listeners.iter_mut().find(|known| known.key == listener.key) {
                known.spelling = listener.spelling;
            }
        }
    }
}

/// Finds what operators see of a new topic.
pub trait Series: FnOnce() -> Arc<TopicMetrics> {}

impl<F: FnOnce() -> Arc<TopicMetrics>> Series for F {}

fn subscribe<K: Hash + Eq>(
    topics: &mut HashMap<K, Topic, RandomState>,
    topic: K,
    listener: Listener,
    series: impl Series,
) {
    let topic = topics.entry(topic).or_insert_with(|| Topic { listeners: Vec::new(), series: series() });
    topic.listeners.push(listener);
    topic.series.subscribed();
}

fn unsubscribe<K: Hash + Eq>(topics: &mut HashMap<K, Topic, RandomState>, topic: K, key: SessionKey) {
    let Some(known) = topics.get_mut(&topic) else { return };
    let before = known.listeners.len();
    known.listeners.retain(|listener| listener.key != key);
    if known.listeners.len() < before {
        known.series.unsubscribed();
    }
    if known.listeners.is_empty() {
        topics.remove(&topic);
    }
}
