//! The channels, as every shard knows them.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::topics::Spelling;
use crate::ids::{ChannelId, UserId};
use crate::store::{Channel, ChannelType};

/// All channels, subchannels and direct-message channels.
#[derive(Debug, Default)]
pub struct Channels {
    by_id: HashMap<ChannelId, Channel, RandomState>,
}

/// A place that a request named, as far as handlers keep it while they go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub id: ChannelId,
    /// Set for a subchannel.
    pub parent: Option<ChannelId>,
    pub channel_type: ChannelType,
    pub is_dm: bool,
    /// How the request named it.
    pub spelling: Spelling,
}

impl Place {
    fn new(channel: &Channel, spelling: Spelling) -> Self {
        let (is_dm, channel_type) = (channel.participants.is_some(), channel.channel_type);
        Self { id: channel.id, parent: channel.parent, channel_type, is_dm, spelling }
    }
}

/// Ids that name no place (BEHAVIOUR.md 2.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    Channel,
    /// The channel exists, but has no such subchannel.
    Subchannel,
}

impl Channels {
    #[must_use]
    pub fn new(channels: impl IntoIterator<Item = Channel>) -> Self {
        Self { by_id: channels.into_iter().map(|channel| (channel.id, channel)).collect() }
    }

    #[must_use]
    pub fn get(&self, channel: ChannelId) -> Option<&Channel> {
        self.by_id.get(&channel)
    }

    /// Whether it is a direct message.
    #[must_use]
    pub fn is_dm(&self, channel: ChannelId) -> bool {
        self.get(channel).is_some_and(|channel| channel.participants.is_some())
    }

    pub fn insert(&mut self, channel: Channel) {
        self.by_id.insert(channel.id, channel);
    }

    pub fn remove(&mut self, channel: ChannelId) -> Option<Channel> {
        self.by_id.remove(&channel)
    }

    /// An account is gone; what it made stays.
    pub fn forget_creator(&mut self, user: UserId) {
        self.by_id.values_mut().for_each(|channel| channel.forget_creator(user));
    }

    /// The place that a pair of ids names: both spellings of a subchannel are one place.
    ///
    /// # Errors
    /// [`NoPlace`] when the channel does not exist, or the subchannel is not one of it.
    pub fn place(&self, channel: ChannelId, subchannel: Option<ChannelId>) -> Result<Place, NoPlace> {
        let outer = self.get(channel).ok_or(NoPlace::Channel)?;
        let Some(subchannel) = subchannel else { return Ok(Place::new(outer, Spelling::Own)) };
        let inner = self.get(subchannel).filter(|inner| inner.parent == Some(channel));
        inner.map(|inner| Place::new(inner, Spelling::Pair)).ok_or(NoPlace::Subchannel)
    }

    /// Public channels that are no subchannels, in no order.
    pub fn top_level(&self) -> impl Iterator<Item = &Channel> {
        self.by_id.values().filter(|channel| channel.parent.is_none() && channel.participants.is_none())
    }

    /// Subchannels of a channel, in no order.
    pub fn subchannels(&self, parent: ChannelId) -> impl Iterator<Item = &Channel> {
        self.by_id.values().filter(move |channel| channel.parent == Some(parent))
    }

    /// How many are open to everybody, subchannels included.
    #[must_use]
    pub fn public_count(&self) -> usize {
        self.by_id.values().filter(|channel| channel.participants.is_none()).count()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}
