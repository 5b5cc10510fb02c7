//! What really happened: the truth that views are compared with. Written when something is committed, never by a shard.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use superchat::ids::{BanId, ChannelId, InviteId, MessageId, SessionId, UserId};
use superchat::store::{Channel, Command, DmLeft, Event, Name, Participant, Refusal, Viewer};

use crate::request::Place;

/// A message that was committed, whatever became of it.
#[derive(Debug, Clone)]
pub struct Fact {
    pub channel: ChannelId,
    pub parent: Option<MessageId>,
    pub root: MessageId,
    pub author: SessionId,
    pub content: Bytes,
    /// Outcomes that were committed before it.
    pub position: usize,
    pub is_deleted: bool,
    pub author_user: Option<UserId>,
    /// Shadow bans under which it was posted, each with the session: no list ever showed it to others.
    pub hidden_by: Vec<(BanId, SessionId)>,
    /// Somebody may have missed it, or its last text.
    pub was_hidden: bool,
}

/// Something that a run came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Milestone {
    /// A frame of this type left.
    Frame(u8),
    /// An ERROR of this code answered a request.
    Refused(u16),
    /// A session ended for this reason.
    Ended(&'static str),
    /// An edit, a deletion or a new channel reached somebody who did not ask for it.
    Told(u8),
    /// A list was compared with what was delivered since SUBSCRIBE_OK, and both had something.
    ListMetDeliveries,
    /// A thread's subscriber heard a reply.
    Reply,
    /// A commit of more than one outcome.
    GroupCommit,
    /// A long batch was flushed before its end.
    FlushWithinBatch,
    /// Bytes waited for a socket.
    Spill,
    /// A message of a conversation reached somebody in it.
    DmHeard,
    /// Somebody who takes no part in a conversation was refused it.
    DmRefused,
    /// A session lost its marks of a conversation because it is no longer in it, or no longer who it was.
    DmLost,
    /// Somebody heard of a message that was hidden from others, and a listener did not.
    HiddenHeard,
    HiddenMissed,
}

/// How long somebody was in a conversation.
#[derive(Debug, Clone)]
struct Stay {
    who: Participant,
    /// Outcomes that had been committed when they came, and those when they went.
    from: usize,
    to: usize,
}

#[derive(Debug, Default)]
pub struct Facts {
    pub reached: BTreeMap<Milestone, u64>,
    /// Frames that left since the last line of the log, in words; `None` while nobody reads it.
    pub frames_log: Option<Vec<String>>,
    pub messages: BTreeMap<MessageId, Fact>,
    /// All channels there ever were, each with its parent.
    pub channels: BTreeMap<ChannelId, Option<ChannelId>>,
    /// Conversations there ever were, and everybody who ever was in them.
    dms: BTreeMap<ChannelId, Vec<Stay>>,
    /// Invitations there ever were, the newest last.
    pub invites: BTreeSet<InviteId>,
    /// Channels that clients can know of.
    pub announced: Vec<ChannelId>,
    pub dropped: BTreeSet<ChannelId>,
    /// Posts by their text.
    pub posted: BTreeMap<Bytes, Vec<MessageId>>,
    /// Posts that the storage failed, by their text.
    pub failed_posts: BTreeSet<Bytes>,
    /// Posts that were answered with success or refused, by their text.
    pub acknowledged: BTreeMap<Bytes, MessageId>,
    pub refused: BTreeSet<Bytes>,
    /// Who asked for what everybody else hears of.
    pub editors: BTreeMap<Bytes, SessionId>,
    pub deleters: BTreeMap<MessageId, SessionId>,
    pub creators: BTreeMap<ChannelId, SessionId>,
    pub accounts: BTreeSet<Name>,
    /// Shadow bans without an end that were never lifted.
    pub lasting: BTreeSet<BanId>,
    /// Somebody was banned in the open at least once.
    pub has_banned: bool,
    /// The storage failed at least once; a queue was full at least once.
    pub has_failed: bool,
    pub was_full: bool,
    /// Outcomes committed so far.
    pub committed: usize,
}

impl Facts {
    /// The ids a client writes for a place; a subchannel has two spellings.
    pub fn place(&self, channel: ChannelId, as_pair: bool) -> Place {
        match self.channels.get(&channel).copied().flatten().filter(|_| as_pair) {
            Some(parent) => Place { id: channel, channel_id: parent, subchannel_id: Some(channel) },
            None => Place { id: channel, channel_id: channel, subchannel_id: None },
        }
    }

    /// The place that ids on the wire name.
    pub fn resolve(&self, channel: ChannelId, subchannel: Option<ChannelId>) -> Option<ChannelId> {
        match subchannel {
            None => self.channels.contains_key(&channel).then_some(channel),
            Some(inner) => (self.channels.get(&inner) == Some(&Some(channel))).then_some(inner),
        }
    }

    /// Whether the place was there all the time, and for everybody.
    pub fn is_steady(&self, channel: ChannelId) -> bool {
        self.channels.contains_key(&channel) && !self.dropped.contains(&channel) && !self.is_dm(channel)
    }

    pub fn is_dm(&self, channel: ChannelId) -> bool {
        self.dms.contains_key(&channel)
    }

    pub fn dms(&self) -> impl Iterator<Item = ChannelId> {
        self.dms.keys().copied()
    }

    fn stays(&self, channel: ChannelId, viewer: Viewer) -> impl Iterator<Item = &Stay> {
        let stays = self.dms.get(&channel).into_iter().flatten();
        stays.filter(move |stay| viewer.is(&stay.who))
    }

    /// Whether the viewer was in the conversation once all of `from..=to` outcomes were applied, at one moment of these.
    pub fn may_be_in(&self, channel: ChannelId, viewer: Viewer, from: usize, to: usize) -> bool {
        self.stays(channel, viewer).any(|stay| stay.from <= to && stay.to >= from)
    }

    /// The same at every moment of these.
    pub fn is_in_throughout(&self, channel: ChannelId, viewer: Viewer, from: usize, to: usize) -> bool {
        self.stays(channel, viewer).any(|stay| stay.from <= from && stay.to >= to)
    }

    fn came(&mut self, channel: &Channel, position: usize) {
        self.channels.insert(channel.id, None);
        let stays = self.dms.entry(channel.id).or_default();
        for who in channel.participants.iter().flat_map(|inside| inside.iter()) {
            if !stays.iter().any(|stay| stay.to == usize::MAX && stay.who.is_same(who)) {
                stays.push(Stay { who: who.clone(), from: position + 1, to: usize::MAX });
            }
        }
    }

    fn went(&mut self, left: &DmLeft, position: usize) {
        let stays = self.dms.entry(left.channel).or_default();
        for stay in stays.iter_mut().filter(|stay| stay.to == usize::MAX && stay.who.is_same(&left.who)) {
            stay.to = position;
        }
        if left.rest.is_none() {
            self.dropped.insert(left.channel);
        }
    }

    pub fn is_steady_message(&self, message: MessageId) -> bool {
        self.messages.get(&message).is_some_and(|fact| self.is_steady(fact.channel))
    }

    /// Whether it ever was hidden from somebody.
    pub fn was_hidden(&self, message: MessageId) -> bool {
        self.messages.get(&message).is_some_and(|fact| fact.was_hidden)
    }

    pub fn has_account(&self, name: &str) -> bool {
        self.accounts.contains(name.as_bytes())
    }

    /// These bans hide the message from others.
    pub fn hide(&mut self, message: MessageId, bans: Vec<(BanId, SessionId)>, is_new: bool) {
        let Some(fact) = self.messages.get_mut(&message) else { return };
        fact.was_hidden |= !bans.is_empty();
        if is_new {
            fact.hidden_by = bans;
        }
    }

    pub fn reach(&mut self, milestone: Milestone) {
        *self.reached.entry(milestone).or_default() += 1;
    }

    /// Takes note of one outcome, in commit order.
    pub fn record(&mut self, command: Option<&Command>, result: &Result<Event, Refusal>) {
        let position = self.committed;
        self.committed += 1;
        match result {
            Ok(event) => self.record_event(command, event, position),
            Err(Refusal::Database) => {
                self.has_failed = true;
                if let Some(Command::Post { content, .. }) = command {
                    self.failed_posts.insert(content.clone());
                }
            }
            Err(_) => {}
        }
    }

    fn record_event(&mut self, command: Option<&Command>, event: &Event, position: usize) {
        match (event, command) {
            (Event::Posted(message), Some(Command::Post { author, .. })) => {
                self.posted.entry(message.content.clone()).or_default().push(message.id);
                let fact = Fact {
                    channel: message.channel,
                    parent: message.parent,
                    root: message.thread_root,
                    author: author.session,
                    content: message.content.clone(),
                    position,
                    is_deleted: false,
                    author_user: author.user,
                    hidden_by: Vec::new(),
                    was_hidden: false,
                };
                self.messages.insert(message.id, fact);
            }
            (Event::Edited { content, .. }, Some(Command::Edit { editor, .. })) => {
                self.editors.insert(content.clone(), editor.session);
            }
            (Event::Deleted { message, .. }, Some(Command::Delete { actor, .. })) => {
                self.deleters.insert(*message, actor.session);
                self.messages.get_mut(message).unwrap().is_deleted = true;
            }
            (Event::ChannelCreated(channel), _) => {
                self.channels.insert(channel.id, channel.parent);
                // The name says which session made it up: `room-<session>-<number>`.
                let name = String::from_utf8_lossy(&channel.name).into_owned();
                if let Some(session) = name.split('-').nth(1).and_then(|session| session.parse().ok()) {
                    self.creators.insert(channel.id, SessionId(session));
                }
            }
            (Event::ChannelDeleted { channel }, _) => {
                self.dropped.insert(*channel);
            }
            (Event::Registered { nickname, .. } | Event::Renamed { nickname, .. }, _) => {
                self.accounts.insert(nickname.clone());
            }
            (Event::Banned(ban), _) => {
                self.has_banned |= !ban.shadow;
                if ban.shadow && ban.until.is_none() {
                    self.lasting.insert(ban.id);
                }
            }
            (Event::Unbanned { bans }, _) => self.lasting.retain(|ban| !bans.contains(ban)),
            (Event::DmOpened { dm, .. }, _) => self.came(&dm.channel, position),
            (Event::KeyProvided { opened, .. }, _) => opened.iter().for_each(|dm| self.came(&dm.channel, position)),
            (Event::DmInvited { invite, .. }, _) => drop(self.invites.insert(invite.id)),
            (Event::DmLeft(left), _) => self.went(left, position),
            (Event::VisitorForgotten { left }, _) => left.iter().for_each(|left| self.went(left, position)),
            _ => {}
        }
    }
}
