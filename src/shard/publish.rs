//! A committed event to the sessions that hear of it (BEHAVIOUR.md 3.1). A second bus would attach here.

use super::outbox::Broadcast;
use super::presence::spell;
use super::roster::Repeat;
use super::session::SessionKey;
use super::topics::{Listener, Spelling};
use super::{CloseReason, Shard};
use crate::handlers::messages::display_author;
use crate::ids::{ChannelId, MessageId};
use crate::store::{Audience, Channel, Event, Message};
use crate::wire::codec::ArchiveFlag;
use crate::wire::{ServerMessage, server};

impl Shard {
    /// Tells this shard's audience, and returns to how many sessions a new message goes. `author` already has its own
    /// answer and is left out where that counts as telling.
    pub(super) fn publish(&mut self, event: &Event, author: Option<SessionKey>) -> u64 {
        match event {
            Event::Posted(message) => return self.publish_post(message),
            Event::Edited { message, channel, thread_root, edited_at, content, audience } => {
                let edited =
                    server::Edited { message_id: *message, edited_at: *edited_at, new_content: content, message: b"" };
                let edited = server::MessageEdited { outcome: Ok(edited) };
                self.publish_change(*channel, *thread_root, *audience, author, edited);
            }
            Event::Deleted { message, channel, thread_root, deleted_at, placeholder, audience } => {
                let deleted = server::Deleted { message_id: *message, deleted_at: *deleted_at, message: placeholder };
                let deleted = server::MessageDeleted { outcome: Ok(deleted) };
                self.publish_change(*channel, *thread_root, *audience, author, deleted);
            }
            Event::ChannelCreated(channel) => {
                self.channels.insert(channel.clone());
                self.count_channels();
                self.publish_channel(channel, author);
            }
            Event::ChannelChanged(channel) => self.change_channel(channel.clone()),
            Event::ChannelDeleted { channel } => self.drop_channel(*channel),
            Event::Registered { .. }
            | Event::SignedIn { .. }
            | Event::Renamed { .. }
            | Event::PasswordSet { .. }
            | Event::SshKeyAdded { .. }
            | Event::SshKeyRelabelled
            | Event::SshKeyDeleted
            | Event::ReadStateUpdated
            | Event::ServerListed { .. }
            | Event::ServerConfirmed
            | Event::HeartbeatStored { .. }
            | Event::DmNeedsKey { .. } => {}
            Event::DmOpened { .. }
            | Event::DmInvited { .. }
            | Event::DmDeclined { .. }
            | Event::DmLeft(_)
            | Event::KeyProvided { .. }
            | Event::VisitorForgotten { .. } => self.publish_dm(event, author),
            Event::Banned(_) | Event::Unbanned { .. } | Event::BansRead(_) => self.change_bans(event),
            Event::UserDeleted { user, nickname, .. } => {
                self.publish_deleted_user(*user, nickname, author);
                self.publish_dm(event, author);
                self.change_bans(event);
            }
            Event::ChannelRemoved { channel, name, subchannels } => {
                self.publish_removed_channel(*channel, name, subchannels, author);
            }
            Event::RoleSet { user, flags } => self.change_role(*user, *flags),
            Event::Kicked(kick) => self.kick(kick),
        }
        0
    }

    /// Roots go to the channel's subscribers, replies to the thread's.
    fn publish_post(&mut self, message: &Message) -> u64 {
        let Some(channel) = self.channels.get(message.channel) else { return 0 };
        let (author_user_id, nickname) = display_author(&message.author);
        let frame = |spelling| {
            let (channel_id, subchannel_id) = spell(channel.id, channel.parent, spelling);
            Broadcast::new(server::NewMessage {
                message_id: message.id,
                channel_id,
                subchannel_id,
                parent_id: message.parent,
                author_user_id,
                author_nickname: &nickname,
                content: &message.content,
                created_at: message.created_at,
                edited_at: message.edited_at,
                reply_count: 0,
            })
        };
        let (mut own, mut pair) = (frame(Spelling::Own), frame(Spelling::Pair));
        let topic = match message.parent {
            None => self.topics.channel_topic(message.channel),
            Some(_) => self.topics.thread_topic(message.thread_root),
        };
        let Some(topic) = topic else { return 0 };
        let mut recipients = 0;
        for Listener { key, spelling } in &topic.listeners {
            if self.clients.hears(*key, message.audience) {
                self.clients.send(*key, if *spelling == Spelling::Pair { &mut pair } else { &mut own });
                recipients += 1;
            }
        }
        topic.series.delivered(recipients);
        recipients
    }

    /// Edits and deletes go to everybody who joined or subscribed to the channel or follows the thread.
    fn publish_change<'m>(
        &mut self,
        channel: ChannelId,
        thread_root: MessageId,
        audience: Audience,
        author: Option<SessionKey>,
        change: impl Into<ServerMessage<'m>>,
    ) {
        let mut frame = Broadcast::new(change);
        let visit = self.clients.next_visit();
        if let Some(author) = author {
            self.clients.visit(author, visit);
        }
        let audiences = [self.topics.joined(channel), self.topics.channel(channel), self.topics.thread(thread_root)];
        for Listener { key, .. } in audiences.into_iter().flatten() {
            if self.clients.visit(*key, visit) && self.clients.hears(*key, audience) {
                self.clients.send(*key, &mut frame);
            }
        }
    }

    /// A new channel is announced to everybody but its creator, who got it as the answer.
    fn publish_channel(&mut self, channel: &Channel, author: Option<SessionKey>) {
        if channel.participants.is_some() {
            return;
        }
        let text = match channel.parent {
            None => [b"New channel '", &channel.display_name[..], b"' created"].concat(),
            Some(_) => subchannel_created_text(&channel.name),
        };
        let mut frame = Broadcast::new(created(channel, self.settings.archive_flag(channel), &text));
        for key in self.clients.everybody() {
            if Some(key) != author {
                self.clients.send(key, &mut frame);
            }
        }
    }

    /// Forgets a channel and every mark that sessions of this shard hold of it (D-73).
    pub(super) fn drop_channel(&mut self, channel: ChannelId) {
        self.channels.remove(channel);
        self.count_channels();
        self.metrics.global().channel_deleted(channel.0);
        for key in self.clients.keys().collect::<Vec<_>>() {
            if self.forget_place(key, channel) {
                self.announce(key, Repeat::default());
            }
        }
    }

    /// All shards know the same channels, so one of them tells how many there are.
    pub(super) fn count_channels(&self) {
        if self.id == 0 {
            self.metrics.global().set_channels(self.channels.public_count() as u64);
        }
    }

    /// Ends sessions that did not take what they were sent.
    pub(super) fn close_slow(&mut self) {
        while let Some(held) = self.clients.slow.pop() {
            if let Some(key) = self.clients.still(held) {
                self.close(key, CloseReason::SlowConsumer);
            }
        }
    }
}

/// CHANNEL_CREATED or SUBCHANNEL_CREATED, whichever the channel is.
#[must_use]
pub fn created<'m>(channel: &'m Channel, archive_enabled: ArchiveFlag, text: &'m [u8]) -> ServerMessage<'m> {
    let (name, description) = (&channel.name[..], &channel.description[..]);
    let (channel_type, retention_hours) = (channel.channel_type.to_wire(), channel.retention_hours);
    match channel.parent {
        None => {
            let (channel_id, message) = (channel.id, text);
            let created = server::CreatedChannel {
                channel_id,
                name,
                description,
                channel_type,
                retention_hours,
                archive_enabled,
                message,
            };
            server::ChannelCreated { outcome: Ok(created) }.into()
        }
        Some(parent) => {
            let created = server::CreatedSubchannel {
                channel_id: parent,
                subchannel_id: channel.id,
                name,
                description,
                channel_type,
                retention_hours,
                message: text,
            };
            server::SubchannelCreated { outcome: Ok(created) }.into()
        }
    }
}

/// The same text for the creator and all others (BEHAVIOUR.md 2.9).
#[must_use]
pub fn subchannel_created_text(name: &[u8]) -> Vec<u8> {
    [b"Subchannel '", name, b"' created successfully"].concat()
}
