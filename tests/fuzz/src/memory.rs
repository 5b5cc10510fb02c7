//! A store in memory, and passwords that cost nothing: what a shard asks of others waits here until it is delivered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use superchat::ids::{ChannelId, InviteId, MessageId, UserId};
use superchat::passwords::{HashJob, HashOutcome, Passwords};
use superchat::shard::ShardEvent;
use superchat::shard::event::Commit;
use superchat::store::command::NewChannel;
use superchat::store::{
    Account, Actor, Answer, Audience, Author, Busy, Channel, ChannelType, Command, Dm, DmLeft, DmOverview, DmSide,
    EncryptionStatus, Event, Invite, Message, Name, Outcome, Participant, Query, Refusal, Store, Submission, Ticket,
};

/// Requests that may wait; the next one finds the store busy.
const WAITING_MAX: usize = 64;
/// Rows of each kind; a full store fails.
const ROWS_MAX: usize = 512;

/// Something a shard waits for.
#[derive(Debug)]
enum Work {
    Write(Submission),
    Read(Ticket, Query),
    Hash(Ticket, HashJob),
}

#[derive(Debug, Default)]
pub(crate) struct Memory {
    waiting: Mutex<VecDeque<Work>>,
    rows: Mutex<Rows>,
}

impl Memory {
    pub(crate) fn new(channels: Vec<Channel>) -> Arc<Self> {
        Arc::new(Self { rows: Mutex::new(Rows { channels, ..Rows::default() }), ..Self::default() })
    }

    /// Does what has waited longest.
    pub(crate) fn next(&self) -> Option<ShardEvent> {
        let work = self.waiting.lock().unwrap().pop_front()?;
        let mut rows = self.rows.lock().unwrap();
        Some(match work {
            Work::Write(Submission { ticket, command }) => {
                let outcome = Outcome { ticket: Some(ticket), result: rows.apply(command) };
                ShardEvent::Committed(Commit::new([outcome].into(), 1))
            }
            Work::Read(ticket, query) => ShardEvent::Answered { token: ticket.token, answer: rows.answer(query) },
            Work::Hash(ticket, job) => ShardEvent::Hashed { token: ticket.token, outcome: hash(job) },
        })
    }

    fn queue(&self, work: Work) -> Result<(), Busy> {
        let mut waiting = self.waiting.lock().unwrap();
        if waiting.len() >= WAITING_MAX {
            return Err(Busy);
        }
        waiting.push_back(work);
        Ok(())
    }
}

impl Store for Memory {
    fn submit(&self, submission: Submission) -> Result<(), Busy> {
        self.queue(Work::Write(submission))
    }
    fn ask(&self, ticket: Ticket, query: Query) -> Result<(), Busy> {
        self.queue(Work::Read(ticket, query))
    }
}

impl Passwords for Memory {
    fn submit(&self, ticket: Ticket, job: HashJob) -> Result<(), Busy> {
        self.queue(Work::Hash(ticket, job))
    }
}

fn hash(job: HashJob) -> HashOutcome {
    let plain = |secret: &[u8]| -> Box<str> { String::from_utf8_lossy(secret).into() };
    match job {
        HashJob::Hash { secret } => HashOutcome::Hashed(plain(&secret)),
        HashJob::Verify { secret, stored } => {
            HashOutcome::Verified(stored.is_some_and(|stored| stored == plain(&secret)))
        }
    }
}

#[derive(Debug, Default)]
struct Rows {
    channels: Vec<Channel>,
    accounts: BTreeMap<UserId, Account>,
    /// As messages: by place, `None` once answered.
    invites: Vec<Option<Invite>>,
    /// In the order of their ids, which are their places from 1 on; `None` once deleted.
    messages: Vec<Option<Message>>,
}

impl Rows {
    fn apply(&mut self, command: Command) -> Result<Event, Refusal> {
        match command {
            Command::Post { author, channel, parent, content } => self.post(&author, channel, parent, content),
            Command::Edit { editor, message, sanitized, .. } => self.edit(&editor, message, sanitized),
            Command::Delete { actor, message } => self.delete(&actor, message),
            Command::CreateChannel(new) => self.create_channel(*new),
            Command::Register { nickname, password_hash, flags } => self.register(nickname, password_hash, flags),
            Command::SignIn { user, flags } => {
                self.account(user)?.flags = flags;
                Ok(Event::SignedIn { user, flags })
            }
            Command::Rename { user, nickname, flags, .. } => {
                if self.named(&nickname).is_some_and(|account| account.id != user) {
                    return Err(Refusal::NicknameTaken);
                }
                let account = self.account(user)?;
                account.nickname = nickname.clone();
                account.flags = flags;
                Ok(Event::Renamed { user, nickname, flags })
            }
            Command::SetPassword { user, password_hash } => {
                self.account(user)?.password_hash = password_hash.ok_or(Refusal::NoSshKeys)?;
                Ok(Event::PasswordSet { user })
            }
            Command::UpdateReadState { .. } => Ok(Event::ReadStateUpdated),
            Command::StartDm { initiator, target, allow_unencrypted } => {
                let invite = self.invite(initiator, target);
                // Either outcome of a start, as the client likes.
                if allow_unencrypted { self.invited(invite) } else { self.open_dm(&invite) }
            }
            Command::AcceptDm { invite, by } => {
                let invite = self.take_invite(invite)?;
                if invite.target.is_same(&by) { self.open_dm(&invite) } else { Err(Refusal::NotInvited) }
            }
            Command::DeclineDm { invite, .. } => Ok(Event::DmDeclined { invite: Box::new(self.take_invite(invite)?) }),
            Command::LeaveDm { channel, leaver } => {
                let left = self.leave_dm(channel, &leaver).ok_or(Refusal::NotParticipant)?;
                Ok(Event::DmLeft(Box::new(left)))
            }
            Command::ForgetVisitor { session } => {
                let nickname = Name::from(&b""[..]);
                let visitor = Participant { user: None, session: Some(session), nickname };
                let channels: Vec<_> = self.channels.iter().map(|channel| channel.id).collect();
                let left = channels.into_iter().filter_map(|channel| self.leave_dm(channel, &visitor));
                Ok(Event::VisitorForgotten { left: left.collect() })
            }
            Command::ProvideKey { user, key, .. } => {
                let who =
                    Participant { user: Some(user), session: None, nickname: self.account(user)?.nickname.clone() };
                let own = Box::new(DmSide { who, key: Some(key) });
                Ok(Event::KeyProvided { own, opened: Vec::new(), others: Vec::new(), is_changed: true })
            }
            #[allow(unreachable_patterns, reason = "a write this store does not know fails, as any store's may")]
            _ => Err(Refusal::Database),
        }
    }

    fn invite(&self, initiator: Participant, target: Participant) -> Invite {
        let id = InviteId(self.invites.len() as u64 + 1);
        Invite { id, initiator, target, encryption: EncryptionStatus::Optional }
    }

    fn invited(&mut self, invite: Invite) -> Result<Event, Refusal> {
        if self.invites.len() >= ROWS_MAX {
            return Err(Refusal::TooManyInvites);
        }
        self.invites.push(Some(invite.clone()));
        Ok(Event::DmInvited { invite: Box::new(invite), is_told: true })
    }

    fn take_invite(&mut self, id: InviteId) -> Result<Invite, Refusal> {
        let place = id.0.checked_sub(1).and_then(|place| self.invites.get_mut(usize::try_from(place).ok()?));
        place.and_then(Option::take).ok_or(Refusal::InviteNotFound)
    }

    fn open_dm(&mut self, invite: &Invite) -> Result<Event, Refusal> {
        if self.channels.len() >= ROWS_MAX {
            return Err(Refusal::Database);
        }
        let sides = [&invite.target, &invite.initiator];
        let channel = Channel {
            id: ChannelId(self.channels.len() as u64 + 1),
            participants: Some(sides.into_iter().cloned().collect()),
            ..channels().remove(0)
        };
        self.channels.push(channel.clone());
        let sides = sides.map(|who| DmSide { who: who.clone(), key: None });
        Ok(Event::DmOpened { dm: Box::new(Dm { channel, sides }), is_new: true })
    }

    /// Channels keep their places, so one that everybody has left stays, with nobody in it.
    fn leave_dm(&mut self, channel: ChannelId, leaver: &Participant) -> Option<DmLeft> {
        let known = self.channels.iter_mut().find(|known| known.id == channel)?;
        let inside = known.participants.as_ref()?;
        let rest: Vec<_> = inside.iter().filter(|who| !who.is_same(leaver)).cloned().collect();
        if rest.len() == inside.len() {
            return None;
        }
        known.participants = Some(rest.into());
        let rest = known.clone();
        let is_over = rest.participants.as_ref().is_none_or(|inside| inside.is_empty());
        Some(DmLeft { channel, who: leaver.clone(), rest: (!is_over).then_some(rest) })
    }

    fn post(
        &mut self,
        author: &Actor,
        channel: ChannelId,
        parent: Option<MessageId>,
        content: Bytes,
    ) -> Result<Event, Refusal> {
        if self.messages.len() >= ROWS_MAX {
            return Err(Refusal::Database);
        }
        if !self.channels.iter().any(|known| known.id == channel) {
            return Err(Refusal::ChannelNotFound);
        }
        let id = MessageId(self.messages.len() as u64 + 1);
        let thread_root = match parent {
            None => id,
            Some(parent) => {
                self.message(parent)
                    .filter(|parent| parent.channel == channel)
                    .ok_or(Refusal::MessageNotFound)?
                    .thread_root
            }
        };
        let nickname = author.nickname.clone();
        let author = match author.user {
            Some(user) => Author::Account { user, nickname, flags: author.flags },
            None => Author::Visitor { nickname },
        };
        let (created_at, edited_at, reply_count) = (0, None, 0);
        let audience = Audience::Everybody;
        let message =
            Message { id, channel, parent, thread_root, author, content, created_at, edited_at, reply_count, audience };
        self.messages.push(Some(message.clone()));
        Ok(Event::Posted(message))
    }

    fn edit(&mut self, editor: &Actor, id: MessageId, content: Bytes) -> Result<Event, Refusal> {
        let message = self.message(id).ok_or(Refusal::MessageNotFound)?;
        if !matches!(message.author, Author::Account { user, .. } if Some(user) == editor.user) {
            return Err(Refusal::NotYours);
        }
        message.content = content.clone();
        message.edited_at = Some(1);
        let (message, channel, thread_root) = (id, message.channel, message.thread_root);
        Ok(Event::Edited { message, channel, thread_root, edited_at: 1, content, audience: Audience::Everybody })
    }

    fn delete(&mut self, actor: &Actor, id: MessageId) -> Result<Event, Refusal> {
        let place = id.0.checked_sub(1).and_then(|place| self.messages.get_mut(usize::try_from(place).ok()?));
        let deleted = place.ok_or(Refusal::MessageNotFound)?.take().ok_or(Refusal::AlreadyDeleted)?;
        let placeholder = [b"[deleted by ~", &actor.nickname[..], b"]"].concat().into();
        let (message, channel, thread_root) = (id, deleted.channel, deleted.thread_root);
        Ok(Event::Deleted { message, channel, thread_root, deleted_at: 1, placeholder, audience: Audience::Everybody })
    }

    fn create_channel(&mut self, new: NewChannel) -> Result<Event, Refusal> {
        if self.channels.len() >= ROWS_MAX {
            return Err(Refusal::Database);
        }
        if self.channels.iter().any(|known| known.parent == new.parent && known.name == new.name) {
            return Err(Refusal::NameTaken);
        }
        let channel = Channel {
            id: ChannelId(self.channels.len() as u64 + 1),
            name: new.name,
            display_name: new.display_name,
            description: new.description,
            channel_type: new.channel_type,
            retention_hours: new.retention_hours,
            created_by: new.created_by,
            parent: new.parent,
            participants: None,
            is_archived: false,
        };
        self.channels.push(channel.clone());
        Ok(Event::ChannelCreated(channel))
    }

    fn register(&mut self, nickname: Name, password_hash: Box<str>, flags: u8) -> Result<Event, Refusal> {
        if self.named(&nickname).is_some() {
            return Err(Refusal::NicknameTaken);
        }
        let user = UserId(self.accounts.len() as u64 + 1);
        let account = Account { id: user, nickname: nickname.clone(), flags, password_hash, has_alias: false };
        self.accounts.insert(user, account);
        Ok(Event::Registered { user, nickname, flags })
    }

    fn answer(&mut self, query: Query) -> Answer {
        match query {
            Query::Roots { channel, limit, .. } => {
                self.list(limit, |message| message.channel == channel && message.parent.is_none())
            }
            Query::Thread { channel, parent, limit, .. } => {
                self.list(limit, |message| message.channel == channel && message.parent == Some(parent))
            }
            Query::ThreadOf { message, .. } => {
                Answer::ThreadOf(self.message(message).map(|message| (message.thread_root, message.channel)))
            }
            Query::Account { nickname } => Answer::Account { account: self.named(&nickname).cloned(), ban: None },
            Query::AccountById { user } => Answer::Account { account: self.accounts.get(&user).cloned(), ban: None },
            Query::Accounts { limit } => Answer::Accounts(self.accounts.values().take(limit.into()).cloned().collect()),
            Query::Dm { .. } => Answer::Dm { found: None, has_key: true },
            Query::Dms { user } => Answer::Dms(Box::new(self.overview(user))),
            Query::Unread { targets, .. } => Answer::Unread(vec![1; targets.len()]),
            #[allow(unreachable_patterns, reason = "a read this store does not know fails, as any store's may")]
            _ => Answer::Failed,
        }
    }

    fn overview(&self, user: UserId) -> DmOverview {
        let invites = self.invites.iter().flatten();
        let of = |who: &Participant| who.user == Some(user);
        DmOverview {
            user,
            found: Vec::new(),
            requests: invites.clone().filter(|invite| of(&invite.target)).cloned().collect(),
            pending: invites.filter(|invite| of(&invite.initiator)).cloned().collect(),
        }
    }

    fn list(&self, limit: u16, wanted: impl Fn(&Message) -> bool) -> Answer {
        let messages = self.messages.iter().flatten().filter(|message| wanted(message));
        Answer::Messages(messages.take(limit.into()).cloned().collect())
    }

    fn message(&mut self, id: MessageId) -> Option<&mut Message> {
        let place = usize::try_from(id.0.checked_sub(1)?).ok()?;
        self.messages.get_mut(place)?.as_mut()
    }

    fn account(&mut self, user: UserId) -> Result<&mut Account, Refusal> {
        self.accounts.get_mut(&user).ok_or(Refusal::UserNotFound)
    }

    fn named(&self, nickname: &[u8]) -> Option<&Account> {
        self.accounts.values().find(|account| account.nickname[..] == *nickname)
    }
}

/// A channel of either kind, and a subchannel.
pub(crate) fn channels() -> Vec<Channel> {
    let channel = |id: u64, name: &str, channel_type, parent: Option<u64>| Channel {
        id: ChannelId(id),
        name: name.as_bytes().into(),
        display_name: name.as_bytes().into(),
        description: Name::from(&b""[..]),
        channel_type,
        retention_hours: 24,
        created_by: None,
        parent: parent.map(ChannelId),
        participants: None,
        is_archived: false,
    };
    vec![
        channel(1, "chat", ChannelType::Chat, None),
        channel(2, "forum", ChannelType::Forum, None),
        channel(3, "sub", ChannelType::Forum, Some(2)),
    ]
}
