//! The second backend: everything in memory, and nothing happens before the scheduler says so.
//!
//! [`Desk`] takes what shards hand in and keeps it in order; [`Memory`] is the data with the rules of BEHAVIOUR.md 2. When
//! a command is applied, a query answered, an outcome delivered is decided outside.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use superchat::ids::{BanId, ChannelId, MessageId, SessionId, UserId};
use superchat::limits::THREAD_DEPTH_MAX;
use superchat::store::command::NewChannel;
use superchat::store::query::{Cursor, UnreadTarget};
use superchat::store::{
    Account, Act, Actor, Administer, Answer, Audience, Author, Ban, Busy, Channel, Command, Event, FLAG_ADMIN, Message,
    Name, Query, Refusal, Store, Subject, Submission, Ticket, Viewer, ban,
};

use crate::dms::Dms;

/// Where shards hand in writes and reads.
#[derive(Default)]
pub struct Desk(Mutex<Queues>);

#[derive(Default)]
struct Queues {
    writes: VecDeque<Submission>,
    reads: VecDeque<(Ticket, Query)>,
    is_full: bool,
}

impl Desk {
    /// Turns everybody away, or takes them again.
    pub fn set_full(&self, is_full: bool) {
        self.0.lock().unwrap().is_full = is_full;
    }

    /// The oldest writes, at most `count`.
    pub fn take_writes(&self, count: usize) -> Vec<Submission> {
        let writes = &mut self.0.lock().unwrap().writes;
        let count = count.min(writes.len());
        writes.drain(..count).collect()
    }

    /// A read; several readers work side by side, so it need not be the oldest.
    pub fn take_read(&self, place: usize) -> Option<(Ticket, Query)> {
        self.0.lock().unwrap().reads.remove(place)
    }

    pub fn writes(&self) -> usize {
        self.0.lock().unwrap().writes.len()
    }

    pub fn reads(&self) -> usize {
        self.0.lock().unwrap().reads.len()
    }
}

impl Store for Desk {
    fn submit(&self, submission: Submission) -> Result<(), Busy> {
        let mut queues = self.0.lock().unwrap();
        if queues.is_full {
            return Err(Busy);
        }
        queues.writes.push_back(submission);
        Ok(())
    }

    fn ask(&self, ticket: Ticket, query: Query) -> Result<(), Busy> {
        let mut queues = self.0.lock().unwrap();
        if queues.is_full {
            return Err(Busy);
        }
        queues.reads.push_back((ticket, query));
        Ok(())
    }
}

/// What is committed.
#[derive(Clone, Default)]
pub struct Memory {
    pub channels: BTreeMap<ChannelId, Channel>,
    pub messages: BTreeMap<MessageId, Stored>,
    pub accounts: BTreeMap<UserId, Account>,
    /// Every post that was ever stored, with its first text.
    pub posts: Vec<(Bytes, MessageId)>,
    /// Former nicknames that still sign in.
    aliases: BTreeMap<Name, UserId>,
    read_marks: BTreeMap<(UserId, ChannelId), i64>,
    pub dms: Dms,
    pub bans: BTreeMap<BanId, Arc<Ban>>,
    newest_ban: u64,
    /// Milliseconds since 1970: bans end by it.
    pub now: i64,
    pub newest_channel: u64,
    newest_message: u64,
}

#[derive(Clone)]
pub struct Stored {
    pub channel: ChannelId,
    pub parent: Option<MessageId>,
    pub root: MessageId,
    pub author: Actor,
    pub content: Bytes,
    pub created_at: i64,
    pub edited_at: Option<i64>,
    pub deleted_at: Option<i64>,
    /// The texts before each edit, with the time of the edit before.
    versions: Vec<(Bytes, Option<i64>)>,
    /// Bans under which it was written or edited.
    hidden: BTreeMap<BanId, Mark>,
}

/// What a shadow ban does to a message.
#[derive(Clone, Copy)]
struct Mark {
    session: SessionId,
    /// For an edit of what was open: the version that others go on reading.
    kept: Option<usize>,
}

impl Stored {
    /// An account's own, or a visitor's: by session, or by name and address.
    fn is_own(&self, actor: &Actor) -> bool {
        match self.author.user {
            Some(author) => actor.user == Some(author),
            None => {
                let same_visitor = self.author.nickname == actor.nickname && self.author.address == actor.address;
                self.author.session == actor.session || same_visitor
            }
        }
    }

    fn is_live(&self) -> bool {
        self.deleted_at.is_none()
    }

    /// Nobody reads a former text any more.
    fn drop_kept(&mut self) {
        self.hidden.retain(|_, mark| mark.kept.is_none());
    }
}

// Writing.

impl Memory {
    pub fn apply(&mut self, command: &Command, now: i64) -> Result<Event, Refusal> {
        self.now = now;
        match command {
            Command::Administer(order) => self.administer(order),
            Command::Post { author, channel, parent, content } => self.post(author, *channel, *parent, content, now),
            Command::Edit { editor, message, sanitized, .. } => self.edit(editor, *message, sanitized, now),
            Command::Delete { actor, message } => self.delete(actor, *message, now),
            Command::CreateChannel(new) => self.create(new),
            Command::Register { nickname, password_hash, flags } => self.register(nickname, password_hash, *flags),
            Command::SignIn { user, flags } => {
                self.account(*user)?.flags = *flags;
                Ok(Event::SignedIn { user: *user, flags: *flags })
            }
            Command::Rename { user, nickname, flags, listed_as } => {
                self.rename(*user, nickname, *flags, listed_as.as_ref())
            }
            Command::SetPassword { user, password_hash } => self.set_password(*user, password_hash.as_deref()),
            Command::UpdateReadState { user, channel, at } => {
                let mark = self.read_marks.entry((*user, *channel)).or_default();
                *mark = (*mark).max(*at);
                Ok(Event::ReadStateUpdated)
            }
            about_dms => self.apply_about_dms(about_dms, now),
        }
    }

    /// Who takes part in a direct message may act in it, and nobody else.
    fn admit(&self, channel: ChannelId, actor: &Actor) -> Result<(), Refusal> {
        let channel = self.channels.get(&channel).ok_or(Refusal::ChannelNotFound)?;
        if actor.viewer().may_enter(channel) { Ok(()) } else { Err(Refusal::NotParticipant) }
    }

    fn post(
        &mut self,
        author: &Actor,
        channel: ChannelId,
        parent: Option<MessageId>,
        content: &Bytes,
        now: i64,
    ) -> Result<Event, Refusal> {
        self.admit(channel, author)?;
        let above = parent.map(|parent| self.root_for_reply(author.viewer(), channel, parent)).transpose()?;
        let id = self.keep(author, channel, parent, above, content, now);
        self.posts.push((content.clone(), id));
        let audience = self.audience(id);
        Ok(Event::Posted(Message { audience, ..self.shown(author.viewer(), id) }))
    }

    // Administration.

    fn administer(&mut self, order: &Administer) -> Result<Event, Refusal> {
        match &order.act {
            Act::Ban { subject, reason, shadow, seconds } => {
                self.newest_ban += 1;
                let subject = match subject {
                    Subject::User { user: None, nickname: Some(nickname) } => {
                        let user = self.account_called(nickname).map(|account| account.id);
                        Subject::User { user, nickname: Some(nickname.clone()) }
                    }
                    Subject::User { user: Some(user), .. } if !self.accounts.contains_key(user) => {
                        return Err(Refusal::UserNotFound);
                    }
                    known => known.clone(),
                };
                let until = seconds.map(|seconds| self.now + i64::try_from(seconds).unwrap() * 1000);
                let (id, since, by) = (BanId(self.newest_ban), self.now, order.by.name.clone());
                let ban = Arc::new(Ban { id, subject, reason: reason.clone(), shadow: *shadow, since, until, by });
                self.bans.insert(id, Arc::clone(&ban));
                Ok(Event::Banned(ban))
            }
            Act::Unban(subject) => {
                let meant = |ban: &&Arc<Ban>| ban.is_active(self.now) && self.is_meant(&ban.subject, subject);
                let bans: Vec<_> = self.bans.values().filter(meant).map(|ban| ban.id).collect();
                bans.iter().for_each(|ban| drop(self.bans.remove(ban)));
                if bans.is_empty() { Err(Refusal::NoActiveBan) } else { Ok(Event::Unbanned { bans }) }
            }
            Act::CreateChannel(new) => self.create(new),
            other => unreachable!("nobody here asks for {other:?}"),
        }
    }

    fn is_meant(&self, banned: &Subject, named: &Subject) -> bool {
        match (banned, named) {
            (Subject::Address(text), Subject::Address(named)) => ban::network(text) == ban::network(named),
            (Subject::User { user, nickname }, Subject::User { user: None, nickname: Some(named) }) => {
                let account = self.account_called(named);
                let name = account.map(|account| &account.nickname);
                nickname.as_ref().is_some_and(|known| known == named || Some(known) == name)
                    || (user.is_some() && *user == account.map(|account| account.id))
            }
            _ => false,
        }
    }

    fn refusing(&self, account: Option<&Account>, nickname: Option<&Name>) -> Option<Ban> {
        let concerns = |ban: &&Arc<Ban>| match &ban.subject {
            Subject::User { user, nickname: banned } => {
                let names = [nickname, account.map(|account| &account.nickname)];
                (user.is_some() && *user == account.map(|account| account.id))
                    || (banned.is_some() && names.contains(&banned.as_ref()))
            }
            Subject::Address(_) => false,
        };
        let active = self.bans.values().filter(|ban| ban.is_active(self.now)).filter(concerns);
        let strongest = active.max_by_key(|ban| (!ban.shadow, ban.until.unwrap_or(i64::MAX)));
        strongest.map(|ban| Ban::clone(ban))
    }

    /// Shadow bans on whoever acts, or on who they were.
    fn hiding(&self, actor: &Actor) -> Vec<BanId> {
        let concerns = |ban: &&Arc<Ban>| match &ban.subject {
            Subject::User { user, nickname } => {
                let is_named = nickname.as_ref() == Some(&actor.nickname);
                is_named || (user.is_some() && *user == actor.user) || actor.marks.contains(&ban.id)
            }
            Subject::Address(_) => false,
        };
        let active = self.bans.values().filter(|ban| ban.shadow && ban.is_active(self.now));
        active.filter(concerns).map(|ban| ban.id).collect()
    }

    /// The marks whose bans count now.
    fn marks<'s>(&'s self, stored: &'s Stored) -> impl Iterator<Item = Mark> + 's {
        let is_active = |ban| self.bans.get(ban).is_some_and(|ban| ban.is_active(self.now));
        stored.hidden.iter().filter(move |(ban, _)| is_active(ban)).map(|(_, mark)| *mark)
    }

    /// Those that count for whoever looks: not for an admin, nor for the author.
    fn marks_for<'s>(&'s self, viewer: Viewer, stored: &'s Stored) -> impl Iterator<Item = Mark> + 's {
        let is_own = viewer.user.is_some() && viewer.user == stored.author.user;
        let is_shown = viewer.is_admin || is_own;
        self.marks(stored).filter(move |mark| !is_shown && mark.session != viewer.session)
    }

    /// Bans that hide the whole message, each with the session.
    pub fn hidden_by(&self, id: MessageId) -> Vec<(BanId, SessionId)> {
        let marks = self.messages.get(&id).into_iter().flat_map(|stored| &stored.hidden);
        marks.filter(|(_, mark)| mark.kept.is_none()).map(|(ban, mark)| (*ban, mark.session)).collect()
    }

    /// Whether somebody is kept out now.
    pub fn refuses(&self, user: Option<UserId>, nickname: &Name) -> bool {
        let account = user.and_then(|user| self.accounts.get(&user));
        self.refusing(account, Some(nickname)).is_some_and(|ban| !ban.shadow)
    }

    fn audience(&self, id: MessageId) -> Audience {
        let stored = &self.messages[&id];
        match self.marks(stored).next() {
            None => Audience::Everybody,
            Some(mark) => Audience::Hidden { user: stored.author.user, session: Some(mark.session) },
        }
    }

    /// The message, unless it is hidden from the viewer.
    fn seen(&self, viewer: Viewer, id: MessageId) -> Option<&Stored> {
        let stored = self.messages.get(&id)?;
        let is_hidden = self.marks_for(viewer, stored).any(|mark| mark.kept.is_none());
        (!is_hidden).then_some(stored)
    }

    fn keep(
        &mut self,
        author: &Actor,
        channel: ChannelId,
        parent: Option<MessageId>,
        root: Option<MessageId>,
        content: &Bytes,
        now: i64,
    ) -> MessageId {
        self.newest_message += 1;
        let id = MessageId(self.newest_message);
        let (author, content, root) = (author.clone(), content.clone(), root.unwrap_or(id));
        let mark = Mark { session: author.session, kept: None };
        let hidden = self.hiding(&author).into_iter().map(|ban| (ban, mark)).collect();
        let stored = Stored {
            channel,
            parent,
            root,
            author,
            content,
            created_at: now,
            edited_at: None,
            deleted_at: None,
            versions: Vec::new(),
            hidden,
        };
        self.messages.insert(id, stored);
        id
    }

    /// A line that the server writes.
    pub fn write_line(&mut self, channel: ChannelId, text: Bytes, now: i64) {
        let nobody = Actor {
            user: None,
            nickname: Name::from(&b""[..]),
            flags: 0,
            session: SessionId(0),
            address: Ipv4Addr::UNSPECIFIED.into(),
            marks: Vec::new(),
        };
        self.keep(&nobody, channel, None, None, &text, now);
    }

    fn root_for_reply(&self, viewer: Viewer, channel: ChannelId, parent: MessageId) -> Result<MessageId, Refusal> {
        let above = self.seen(viewer, parent).filter(|above| above.channel == channel);
        let root = above.ok_or(Refusal::MessageNotFound)?.root;
        let depth = std::iter::successors(Some(parent), |id| self.messages.get(id)?.parent).count();
        if depth > THREAD_DEPTH_MAX as usize { Err(Refusal::ThreadTooDeep) } else { Ok(root) }
    }

    fn edit(&mut self, editor: &Actor, id: MessageId, content: &Bytes, now: i64) -> Result<Event, Refusal> {
        let place = self.seen(editor.viewer(), id).ok_or(Refusal::MessageNotFound)?.channel;
        self.admit(place, editor)?;
        let bans = self.hiding(editor);
        let stored = self.messages.get_mut(&id).ok_or(Refusal::MessageNotFound)?;
        if stored.author.user.is_none() {
            return Err(Refusal::AnonymousMessage);
        }
        if !stored.is_own(editor) && !editor.is_admin() {
            return Err(Refusal::NotYours);
        }
        if !stored.is_live() {
            return Err(Refusal::AlreadyDeleted);
        }
        if content.is_empty() {
            return Err(Refusal::EmptyContent);
        }
        let former = std::mem::replace(&mut stored.content, content.clone());
        stored.versions.push((former, stored.edited_at.replace(now)));
        if stored.is_own(editor) {
            let mark = Mark { session: editor.session, kept: Some(stored.versions.len() - 1) };
            for ban in bans {
                stored.hidden.entry(ban).or_insert(mark);
            }
        } else {
            stored.drop_kept();
        }
        let (channel, thread_root, content) = (stored.channel, stored.root, content.clone());
        let audience = self.audience(id);
        Ok(Event::Edited { message: id, channel, thread_root, edited_at: now, content, audience })
    }

    fn delete(&mut self, actor: &Actor, id: MessageId, now: i64) -> Result<Event, Refusal> {
        let place = self.seen(actor.viewer(), id).ok_or(Refusal::MessageNotFound)?.channel;
        self.admit(place, actor)?;
        let stored = self.messages.get_mut(&id).ok_or(Refusal::MessageNotFound)?;
        if !stored.is_live() {
            return Err(Refusal::AlreadyDeleted);
        }
        if !stored.is_own(actor) && !actor.is_admin() {
            return Err(Refusal::NotYours);
        }
        let placeholder = Bytes::from([b"[deleted by ~", &actor.nickname[..], b"]"].concat());
        stored.content = placeholder.clone();
        stored.deleted_at = Some(now);
        stored.drop_kept();
        let (channel, thread_root) = (stored.channel, stored.root);
        let audience = self.audience(id);
        Ok(Event::Deleted { message: id, channel, thread_root, deleted_at: now, placeholder, audience })
    }

    fn create(&mut self, new: &NewChannel) -> Result<Event, Refusal> {
        if new.parent.is_some_and(|parent| !self.channels.contains_key(&parent)) {
            return Err(Refusal::ChannelNotFound);
        }
        if self.channels.values().any(|known| known.parent == new.parent && known.name == new.name) {
            return Err(Refusal::NameTaken);
        }
        Ok(Event::ChannelCreated(self.insert_channel(new)))
    }

    /// A channel as CREATE_CHANNEL makes it.
    pub fn insert_channel(&mut self, new: &NewChannel) -> Channel {
        self.newest_channel += 1;
        let channel = Channel {
            id: ChannelId(self.newest_channel),
            name: new.name.clone(),
            display_name: new.display_name.clone(),
            description: new.description.clone(),
            channel_type: new.channel_type,
            retention_hours: new.retention_hours,
            created_by: new.created_by,
            parent: new.parent,
            participants: None,
            is_archived: false,
        };
        self.channels.insert(channel.id, channel.clone());
        channel
    }

    /// Removes a channel with everything in it, as an operator does; its subchannels' events come first.
    pub fn drop_channel(&mut self, channel: ChannelId) -> Vec<Event> {
        let inside = self.channels.values().filter(|inner| inner.parent == Some(channel)).map(|inner| inner.id);
        let gone: Vec<_> = inside.chain([channel]).collect();
        self.channels.retain(|id, _| !gone.contains(id));
        self.messages.retain(|_, stored| !gone.contains(&stored.channel));
        gone.into_iter().map(|channel| Event::ChannelDeleted { channel }).collect()
    }

    pub fn register(&mut self, nickname: &Name, password_hash: &str, flags: u8) -> Result<Event, Refusal> {
        if self.is_taken(nickname, None) {
            return Err(Refusal::NicknameTaken);
        }
        let user = UserId(self.accounts.len() as u64 + 1);
        let nickname = nickname.clone();
        let account = Account {
            id: user,
            nickname: nickname.clone(),
            flags,
            password_hash: password_hash.into(),
            has_alias: false,
        };
        self.accounts.insert(user, account);
        Ok(Event::Registered { user, nickname, flags })
    }

    fn is_taken(&self, nickname: &Name, but_by: Option<UserId>) -> bool {
        let names = self.accounts.values().map(|account| (&account.nickname, account.id));
        let aliases = self.aliases.iter().map(|(name, user)| (name, *user));
        names.chain(aliases).any(|(name, user)| name.eq_ignore_ascii_case(nickname) && Some(user) != but_by)
    }

    fn rename(&mut self, user: UserId, nickname: &Name, flags: u8, listed_as: Option<&Name>) -> Result<Event, Refusal> {
        let is_admin = Some(&self.account(user)?.nickname) == listed_as;
        if self.is_taken(nickname, Some(user)) || flags & FLAG_ADMIN != 0 && !is_admin {
            return Err(Refusal::NicknameTaken);
        }
        if self.refuses(None, nickname) {
            return Err(Refusal::NicknameBanned);
        }
        let account = self.account(user)?;
        let former = std::mem::replace(&mut account.nickname, nickname.clone());
        account.has_alias = true;
        account.flags = flags;
        self.aliases.remove(nickname);
        self.aliases.insert(former, user);
        Ok(Event::Renamed { user, nickname: nickname.clone(), flags })
    }

    /// There are no SSH keys here, so a password cannot be removed.
    fn set_password(&mut self, user: UserId, password_hash: Option<&str>) -> Result<Event, Refusal> {
        let account = self.account(user)?;
        account.password_hash = password_hash.ok_or(Refusal::NoSshKeys)?.into();
        account.has_alias = false;
        self.aliases.retain(|_, owner| *owner != user);
        Ok(Event::PasswordSet { user })
    }

    fn account(&mut self, user: UserId) -> Result<&mut Account, Refusal> {
        self.accounts.get_mut(&user).ok_or(Refusal::UserNotFound)
    }
}

// Reading.

impl Memory {
    pub fn answer(&self, query: &Query) -> Answer {
        match query {
            Query::Roots { viewer, channel, .. } | Query::Thread { viewer, channel, .. }
                if self.channels.get(channel).is_some_and(|channel| !viewer.may_enter(channel)) =>
            {
                Answer::Messages(Vec::new())
            }
            Query::Roots { viewer, channel, cursor, limit } => {
                Answer::Messages(self.roots(*viewer, *channel, *cursor, *limit))
            }
            Query::Thread { viewer, channel, parent, cursor, limit } => {
                Answer::Messages(self.thread(*viewer, *channel, *parent, *cursor, *limit))
            }
            Query::ThreadOf { viewer, message } => {
                let seen = self.seen(*viewer, *message);
                Answer::ThreadOf(seen.map(|stored| (stored.root, stored.channel)))
            }
            Query::Account { nickname } => {
                let account = self.account_named(nickname).cloned();
                let ban = self.refusing(account.as_ref(), Some(nickname));
                Answer::Account { account, ban }
            }
            Query::AccountById { user } => {
                let account = self.accounts.get(user).cloned();
                let ban = self.refusing(account.as_ref(), None);
                Answer::Account { account, ban }
            }
            Query::Accounts { limit } => {
                let mut accounts: Vec<_> = self.accounts.values().cloned().collect();
                accounts.sort_by(|a, b| a.nickname.cmp(&b.nickname));
                accounts.truncate((*limit).into());
                Answer::Accounts(accounts)
            }
            Query::Unread { viewer, since, targets } => {
                Answer::Unread(targets.iter().map(|target| self.unread(*viewer, *since, *target)).collect())
            }
            Query::Dm { viewer, other } => self.conversation_between(*viewer, other),
            Query::Dms { user } => Answer::Dms(Box::new(self.overview(*user))),
            Query::Bans { include_expired, .. } => {
                let listed = |ban: &&Arc<Ban>| *include_expired || ban.is_active(self.now);
                Answer::Bans(self.bans.values().rev().filter(listed).map(|ban| Ban::clone(ban)).collect())
            }
            Query::AccountByKey { .. }
            | Query::SshKeys { .. }
            | Query::Audit { .. }
            | Query::Channels
            | Query::Servers { .. } => {
                unreachable!("nobody here asks for {query:?}")
            }
        }
    }

    /// By a former name too.
    pub fn account_named(&self, nickname: &Name) -> Option<&Account> {
        self.account_called(nickname).or_else(|| self.accounts.get(self.aliases.get(nickname)?))
    }

    fn account_called(&self, nickname: &Name) -> Option<&Account> {
        self.accounts.values().find(|account| account.nickname == *nickname)
    }

    pub fn roots(&self, viewer: Viewer, channel: ChannelId, cursor: Cursor, limit: u16) -> Vec<Message> {
        let here = |stored: &Stored| stored.channel == channel && stored.parent.is_none();
        let listed =
            self.messages.iter().filter(|(id, stored)| here(stored) && self.is_listed(viewer, **id)).map(|(id, _)| *id);
        let ids: Vec<_> = match cursor {
            Cursor::None => listed.rev().take(limit.into()).collect(),
            Cursor::Before(before) => listed.filter(|id| *id < before).rev().take(limit.into()).collect(),
            Cursor::After(after) => listed.filter(|id| *id > after).take(limit.into()).collect(),
        };
        ids.into_iter().map(|id| self.shown(viewer, id)).collect()
    }

    pub fn thread(
        &self,
        viewer: Viewer,
        channel: ChannelId,
        parent: MessageId,
        cursor: Cursor,
        limit: u16,
    ) -> Vec<Message> {
        if self.seen(viewer, parent).is_none_or(|stored| stored.channel != channel) {
            return Vec::new();
        }
        let order: Vec<_> = self.below(viewer, parent).into_iter().filter(|id| self.is_listed(viewer, *id)).collect();
        let page: Vec<_> = match cursor {
            Cursor::None => order,
            Cursor::Before(before) => match order.iter().position(|id| *id == before) {
                Some(place) => order[place + 1..].to_vec(),
                None => order.into_iter().filter(|id| *id < before).collect(),
            },
            Cursor::After(after) => order.into_iter().filter(|id| *id > after).collect(),
        };
        page.into_iter().take(limit.into()).map(|id| self.shown(viewer, id)).collect()
    }

    /// All descendants that may be seen, depth first, siblings ascending. Below a hidden reply the thread goes on at its root.
    fn below(&self, viewer: Viewer, parent: MessageId) -> Vec<MessageId> {
        let Some(root) = self.messages.get(&parent).map(|stored| stored.root) else { return Vec::new() };
        let mut children: BTreeMap<MessageId, Vec<MessageId>> = BTreeMap::new();
        for (id, stored) in self.messages.range(root..).filter(|(_, stored)| stored.root == root) {
            if self.seen(viewer, *id).is_none() {
                continue;
            }
            let above = stored.parent.unwrap_or_default();
            let above = if self.seen(viewer, above).is_some() || above == MessageId(0) { above } else { root };
            children.entry(above).or_default().push(*id);
        }
        let (mut order, mut open) = (Vec::new(), vec![parent]);
        while let Some(id) = open.pop() {
            order.push(id);
            open.extend(children.get(&id).into_iter().flatten().rev());
        }
        order.split_off(1)
    }

    /// A deleted message stays listed while something below it lives.
    fn is_listed(&self, viewer: Viewer, id: MessageId) -> bool {
        self.seen(viewer, id).is_some_and(Stored::is_live)
            || self.seen(viewer, id).is_some() && self.live_below(viewer, id) > 0
    }

    fn live_below(&self, viewer: Viewer, id: MessageId) -> u32 {
        let live = self.below(viewer, id).into_iter().filter(|id| self.messages[id].is_live());
        u32::try_from(live.count()).unwrap()
    }

    fn shown(&self, viewer: Viewer, id: MessageId) -> Message {
        let stored = &self.messages[&id];
        let kept = self.marks_for(viewer, stored).filter_map(|mark| mark.kept).min();
        let (content, edited_at) = match kept {
            Some(version) => stored.versions[version].clone(),
            None => (stored.content.clone(), stored.edited_at),
        };
        let author = match stored.author.user {
            Some(user) => match self.accounts.get(&user) {
                Some(account) => Author::Account { user, nickname: account.nickname.clone(), flags: account.flags },
                None => Author::MissingAccount { user },
            },
            None if stored.author.nickname.is_empty() => Author::System,
            None => Author::Visitor { nickname: stored.author.nickname.clone() },
        };
        Message {
            id,
            channel: stored.channel,
            parent: stored.parent,
            thread_root: stored.root,
            author,
            content,
            created_at: stored.created_at,
            edited_at,
            reply_count: if stored.parent.is_none() { self.live_below(viewer, id) } else { 0 },
            audience: Audience::Everybody,
        }
    }

    fn unread(&self, viewer: Viewer, since: Option<i64>, target: UnreadTarget) -> u32 {
        let Some(channel) = target.channel else { return 0 };
        let user = viewer.user;
        let marked = user.and_then(|user| self.read_marks.get(&(user, channel)).copied());
        let since = since.or(marked).unwrap_or_default();
        let counts = |(id, stored): &(&MessageId, &Stored)| {
            let in_place = stored.channel == channel && target.thread.is_none_or(|thread| stored.root == thread);
            let from_others = user.is_none() || stored.author.user != user;
            let is_seen = [**id, stored.root].iter().all(|id| self.seen(viewer, *id).is_some());
            in_place && from_others && is_seen && stored.is_live() && stored.created_at > since
        };
        u32::try_from(self.messages.iter().filter(counts).count()).unwrap()
    }
}

/// Channels to begin with.
pub fn seed_channel(name: &str, channel_type: superchat::store::ChannelType, parent: Option<ChannelId>) -> NewChannel {
    let text = |text: &str| -> Name { Arc::from(text.as_bytes()) };
    NewChannel {
        name: text(name),
        display_name: text(name),
        description: text(""),
        channel_type,
        retention_hours: 24,
        created_by: Some(UserId(1)),
        parent,
    }
}
