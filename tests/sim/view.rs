//! What one client knows from its frames alone, and what it must find in them.
//!
//! A view is fed every frame in the order in which it leaves, and two things from outside: the requests that were sent,
//! and the broadcasts that are owed. A broadcast is owed from the moment its outcome is applied by the shard; by the end
//! of the turn it must have left.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use superchat::ids::{ChannelId, MessageId, SessionId, UserId};
use superchat::limits::LIST_MESSAGES_MAX;
use superchat::shard::session::Session;
use superchat::store::Viewer;
use superchat::wire::frame::Unpacked;
use superchat::wire::{ServerMessage, server};

use crate::dms::Told;
use crate::facts::{Fact, Facts, Milestone};
use crate::request::{ABSENT, Request};
use crate::rule::{Check, Rule, Violation, ensure};

/// What can be subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    Channel(ChannelId),
    Thread(MessageId),
}

/// A broadcast that must leave.
#[derive(Debug, Clone, PartialEq)]
pub enum Owed {
    New(MessageId),
    Edited {
        message: MessageId,
        content: Bytes,
    },
    Deleted {
        message: MessageId,
    },
    Created {
        channel: ChannelId,
    },
    /// About direct messages.
    Dm(Told),
    /// The same as the answer to a request.
    Answer(Told),
    /// No frame: the channel is gone, and with it every mark the session holds of it.
    Dropped {
        channel: ChannelId,
    },
}

/// A subscription, as far as the client can tell.
#[derive(Debug)]
struct Heard {
    place: ChannelId,
    /// Outcomes certainly applied before SUBSCRIBE_OK was queued: those are only found in lists.
    since: usize,
    delivered: BTreeSet<MessageId>,
}

/// A session as presence frames show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub nickname: Vec<u8>,
    pub user: Option<UserId>,
    pub flags: u8,
}

#[derive(Debug)]
pub struct View {
    pub session: SessionId,
    pub nickname: Option<Vec<u8>>,
    pub user: Option<UserId>,
    pub joined: Option<ChannelId>,
    pub roster: BTreeMap<SessionId, Seen>,
    /// Who has joined: places whose users were listed while the client heard of changes.
    pub places: BTreeMap<ChannelId, BTreeMap<SessionId, Vec<u8>>>,
    /// Requests without an answer so far.
    pub outstanding: VecDeque<Request>,
    pub owed: VecDeque<Owed>,
    /// The reason of a DISCONNECT, after which nothing may come.
    pub goodbye: Option<Vec<u8>>,
    topics: BTreeMap<Topic, Heard>,
    /// Outcomes applied, and who the session was, when its marks were last compared with the shard's.
    compared: (usize, Option<UserId>),
    /// It signed in since then, which ends marks even if it signed out again at once.
    signed_in_since: bool,
    acknowledged: BTreeSet<MessageId>,
    newest: MessageId,
    frames: usize,
    /// A first request was answered, or needs no answer: presence may come.
    may_hear_presence: bool,
    /// What may follow the last answer although nobody asked.
    addendum: Option<Addendum>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addendum {
    /// A nickname that belongs to an account is followed by USER_INFO.
    UserInfo,
    /// A post by a nameless session may be followed by the hint to sign in again.
    SignInHint,
}

impl View {
    pub fn new(session: SessionId) -> Self {
        Self {
            session,
            nickname: None,
            user: None,
            joined: None,
            roster: BTreeMap::new(),
            places: BTreeMap::new(),
            outstanding: VecDeque::new(),
            owed: VecDeque::new(),
            goodbye: None,
            topics: BTreeMap::new(),
            compared: (0, None),
            signed_in_since: false,
            acknowledged: BTreeSet::new(),
            newest: MessageId(0),
            frames: 0,
            may_hear_presence: false,
            addendum: None,
        }
    }

    /// The client sent a request.
    pub fn asked(&mut self, request: &Request) {
        if request.is_last() {
            return;
        }
        self.may_hear_presence |= self.outstanding.is_empty() && request.is_silent();
        self.outstanding.push_back(request.clone());
    }

    /// A frame leaves. `applied` outcomes had been applied by the shard when the turn began.
    pub fn frame(&mut self, code: u8, unpacked: &Unpacked<'_>, facts: &mut Facts, applied: usize) -> Check {
        let message = ServerMessage::read(code, unpacked.payload);
        let message = message.map_err(|error| self.broken(Rule::Wire, format!("frame {code:#04x}: {error}")))?;
        ensure!(self.goodbye.is_none(), Rule::Ending, "{} hears {message:?} after DISCONNECT", self.session);
        self.frames += 1;
        facts.reach(Milestone::Frame(code));
        if let Some(log) = &mut facts.frames_log {
            log.push(format!("{} hears {message:?}", self.session));
        }
        let is_config = matches!(message, ServerMessage::ServerConfig(_));
        ensure!(is_config == (self.frames == 1), Rule::Reply, "frame {} is {message:?}", self.frames);
        match message {
            ServerMessage::ServerConfig(_) => Ok(()),
            ServerMessage::NewMessage(new) => self.new_message(&new, facts),
            ServerMessage::ServerPresence(presence) => self.server_presence(&presence),
            ServerMessage::ChannelPresence(presence) => self.channel_presence(&presence, facts, applied),
            ServerMessage::Disconnect(goodbye) => {
                self.goodbye = Some(goodbye.reason.unwrap_or_default().to_vec());
                Ok(())
            }
            message => match broadcast(&message) {
                Some(Owed::Dm(told)) if self.is_owed(&Owed::Answer(told.clone())) => {
                    self.owed.pop_front();
                    self.reply(&message, facts, applied)
                }
                Some(broadcast) if self.is_owed(&broadcast) => {
                    self.owed.pop_front();
                    facts.reach(Milestone::Told(code));
                    Ok(())
                }
                Some(Owed::Dm(told)) => Err(self.broken(Rule::Reply, format!("{told:?} is not due"))),
                _ => self.reply(&message, facts, applied),
            },
        }
    }

    /// All that was owed has left; what the client believes is what the shard holds. `applied` outcomes are applied.
    pub fn end_turn(&mut self, session: &Session, facts: &mut Facts, applied: usize) -> Check {
        self.all_said()?;
        self.compare_dms(session, facts, applied)?;
        // While a channel goes away, a reply's id may already name no thread to unfollow.
        let is_steady = |root: &MessageId| facts.is_steady_message(*root);
        let threads = session.threads().iter().map(|thread| thread.root);
        let believed = (self.subscribed_channels(), self.followed_threads().filter(is_steady).collect(), self.joined);
        let held = (
            session.channels().iter().copied().collect(),
            threads.filter(is_steady).collect::<BTreeSet<_>>(),
            session.joined.map(|(channel, _)| channel),
        );
        ensure!(believed == held, Rule::NoGap, "{} believes {believed:?}, the shard holds {held:?}", self.session);
        Ok(())
    }

    /// Marks of conversations are held by those who are in them, and end without a word for those who are not any more.
    fn compare_dms(&mut self, session: &Session, facts: &mut Facts, applied: usize) -> Check {
        let viewer = session.viewer();
        let joined = session.joined.map(|(channel, _)| channel);
        let held =
            session.channels().iter().chain(session.threads().iter().map(|thread| &thread.channel)).chain(&joined);
        let leaked = held.copied().find(|id| facts.is_dm(*id) && !facts.may_be_in(*id, viewer, applied, applied));
        ensure!(leaked.is_none(), Rule::NoLeak, "{} holds a mark of {leaked:?} and is not in it", self.session);
        let is_held = |topic: &Topic| match topic {
            Topic::Channel(channel) => session.channels().contains(channel),
            Topic::Thread(root) => session.threads().iter().any(|thread| thread.root == *root),
        };
        let (since, user) = std::mem::replace(&mut self.compared, (applied, viewer.user));
        let is_another = std::mem::take(&mut self.signed_in_since) || user != viewer.user;
        let may_end = |channel| is_another || !facts.is_in_throughout(channel, viewer, since, applied);
        let topics = self.topics.iter().filter(|(topic, heard)| facts.is_dm(heard.place) && !is_held(topic));
        let lost: Vec<_> = topics.map(|(topic, heard)| (*topic, heard.place)).collect();
        let lost_joined = self.joined.filter(|place| facts.is_dm(*place) && joined != self.joined);
        let places = lost.iter().map(|(_, place)| *place).chain(lost_joined);
        let wrong = places.clone().find(|place| !may_end(*place));
        ensure!(wrong.is_none(), Rule::NoGap, "{} lost its mark of {wrong:?} and is still in it", self.session);
        let is_lost = places.count() > 0;
        self.topics.retain(|topic, _| !lost.iter().any(|(known, _)| known == topic));
        if lost_joined.is_some() {
            self.joined = None;
        }
        if is_lost {
            self.left_audience();
            facts.reach(Milestone::DmLost);
        }
        Ok(())
    }

    /// The client as it believes itself to be.
    fn viewer(&self) -> Viewer {
        Viewer { user: self.user, session: self.session, is_admin: false }
    }

    /// Whether a conversation may be open to the client, with `applied` outcomes applied or any number of later ones.
    fn may_be_in(&self, place: ChannelId, facts: &Facts, applied: usize) -> bool {
        !facts.is_dm(place) || facts.may_be_in(place, self.viewer(), applied, facts.committed)
    }

    /// Nothing that was owed is left.
    pub fn all_said(&mut self) -> Check {
        self.forget_dropped();
        let owed = self.owed.front();
        ensure!(owed.is_none(), Rule::NoGap, "{} is still owed {owed:?}", self.session);
        Ok(())
    }

    /// Whether an answer is still to come.
    pub fn waits(&self) -> bool {
        self.outstanding.iter().any(|request| !request.is_silent())
    }

    /// Everything asked is answered.
    pub fn come_to_rest(&mut self) -> Check {
        self.pass_silent();
        let waiting = self.outstanding.front();
        ensure!(waiting.is_none(), Rule::Reply, "{} never got an answer to {waiting:?}", self.session);
        Ok(())
    }

    fn subscribed_channels(&self) -> BTreeSet<ChannelId> {
        self.topics.keys().filter_map(|topic| if let Topic::Channel(id) = topic { Some(*id) } else { None }).collect()
    }

    fn followed_threads(&self) -> impl Iterator<Item = MessageId> {
        self.topics.keys().filter_map(|topic| if let Topic::Thread(id) = topic { Some(*id) } else { None })
    }

    fn broken(&self, rule: Rule, what: String) -> Violation {
        Violation { rule, what: format!("session {}: {what}", self.session) }
    }
}

// Broadcasts.

/// A frame that may be a broadcast as well as an answer.
fn broadcast(message: &ServerMessage<'_>) -> Option<Owed> {
    match message {
        ServerMessage::MessageEdited(server::MessageEdited { outcome: Ok(edited) }) => {
            Some(Owed::Edited { message: edited.message_id, content: Bytes::copy_from_slice(edited.new_content) })
        }
        ServerMessage::MessageDeleted(server::MessageDeleted { outcome: Ok(deleted) }) => {
            Some(Owed::Deleted { message: deleted.message_id })
        }
        ServerMessage::ChannelCreated(server::ChannelCreated { outcome: Ok(created) }) => {
            Some(Owed::Created { channel: created.channel_id })
        }
        ServerMessage::SubchannelCreated(server::SubchannelCreated { outcome: Ok(created) }) => {
            Some(Owed::Created { channel: created.subchannel_id })
        }
        message => Told::read(message).map(Owed::Dm),
    }
}

impl View {
    fn is_owed(&mut self, broadcast: &Owed) -> bool {
        let next = self.owed.iter().find(|owed| !matches!(owed, Owed::Dropped { .. }));
        let is_next = next == Some(broadcast);
        if is_next {
            self.forget_dropped();
        }
        is_next
    }

    fn new_message(&mut self, new: &server::NewMessage<'_>, facts: &mut Facts) -> Check {
        if new.parent_id.is_some() {
            facts.reach(Milestone::Reply);
        }
        let id = new.message_id;
        ensure!(id > self.newest, Rule::Order, "{} hears of {id} after {}", self.session, self.newest);
        self.newest = id;
        let Some(fact) = facts.messages.get(&id) else {
            return Err(self.broken(Rule::Order, format!("message {id} was never committed")));
        };
        self.forget_dropped();
        let topic = match fact.parent {
            None => Topic::Channel(fact.channel),
            Some(_) => Topic::Thread(fact.root),
        };
        let Some(heard) = self.topics.get_mut(&topic) else {
            return Err(self.broken(Rule::NoLeak, format!("message {id} of {topic:?}, which was not asked for")));
        };
        heard.delivered.insert(id);
        if facts.dms().any(|dm| dm == fact.channel) {
            *facts.reached.entry(Milestone::DmHeard).or_default() += 1;
        }
        let next = self.owed.pop_front();
        let is_leaked = self.must_not_see(fact, facts);
        ensure!(!is_leaked, Rule::NoLeak, "{} hears of the hidden {id}", self.session);
        ensure!(next == Some(Owed::New(id)), Rule::Order, "{} hears of {id}, was owed {next:?}", self.session);
        let place = facts.resolve(new.channel_id, new.subchannel_id);
        let told = (place, new.parent_id, new.content);
        let truth = (Some(fact.channel), fact.parent, &fact.content[..]);
        ensure!(told == truth, Rule::Order, "{} hears {told:?} of {id}, it is {truth:?}", self.session);
        let is_own = fact.author == self.session;
        let is_answered = !is_own || self.acknowledged.contains(&id);
        ensure!(is_answered, Rule::Reply, "{} hears of its {id} before MESSAGE_POSTED", self.session);
        Ok(())
    }

    /// Channels that went away before the next frame.
    fn forget_dropped(&mut self) {
        while let Some(Owed::Dropped { channel }) = self.owed.front().cloned() {
            self.owed.pop_front();
            self.forget_channel(channel);
        }
    }

    fn forget_channel(&mut self, channel: ChannelId) {
        self.topics.retain(|_, heard| heard.place != channel);
        if self.joined == Some(channel) {
            self.joined = None;
        }
        self.places.remove(&channel);
    }

    fn server_presence(&mut self, presence: &server::ServerPresence<'_>) -> Check {
        ensure!(self.may_hear_presence, Rule::Presence, "{} hears {presence:?} before its first answer", self.session);
        if presence.online {
            let (nickname, user, flags) = (presence.nickname.to_vec(), presence.user_id, presence.user_flags);
            ensure!(presence.is_registered == user.is_some(), Rule::Presence, "{presence:?} contradicts itself");
            self.roster.insert(presence.session_id, Seen { nickname, user, flags });
        } else {
            self.roster.remove(&presence.session_id);
        }
        Ok(())
    }

    fn channel_presence(&mut self, presence: &server::ChannelPresence<'_>, facts: &Facts, applied: usize) -> Check {
        ensure!(self.may_hear_presence, Rule::Presence, "{} hears {presence:?} before its first answer", self.session);
        let place = facts.resolve(presence.channel_id, presence.subchannel_id);
        let Some(place) = place else {
            return Err(self.broken(Rule::Wire, format!("{presence:?} names no place")));
        };
        let is_own_leaving = presence.session_id == self.session && !presence.joined;
        let asked_for = self.is_audience(place) && self.may_be_in(place, facts, applied) || is_own_leaving;
        ensure!(asked_for, Rule::NoLeak, "{} hears {presence:?} of a place not asked for", self.session);
        if let Some(here) = self.places.get_mut(&place) {
            if presence.joined {
                here.insert(presence.session_id, presence.nickname.to_vec());
            } else {
                here.remove(&presence.session_id);
            }
        }
        Ok(())
    }

    /// Whether the client hears who comes to a place and who leaves it.
    fn is_audience(&self, place: ChannelId) -> bool {
        self.joined == Some(place) || self.topics.contains_key(&Topic::Channel(place))
    }

    fn left_audience(&mut self) {
        let (topics, joined) = (&self.topics, self.joined);
        self.places.retain(|place, _| joined == Some(*place) || topics.contains_key(&Topic::Channel(*place)));
    }
}

// Answers.

impl View {
    /// Requests without an answer that lie before the next one that has one.
    fn pass_silent(&mut self) {
        self.pass_while(Request::is_silent);
    }

    /// A request of which only a refusal is told has a PING behind it, so a refusal is its own.
    fn pass_silent_before(&mut self, message: &ServerMessage<'_>) {
        let is_refusal = matches!(message, ServerMessage::Error(_));
        self.pass_while(|request| request.is_silent() && !(is_refusal && request.may_fail_silently()));
    }

    fn pass_while(&mut self, passes: impl Fn(&Request) -> bool) {
        while self.outstanding.front().is_some_and(&passes) {
            if self.outstanding.pop_front() == Some(Request::Logout) {
                self.user = None;
            }
        }
    }

    fn reply(&mut self, message: &ServerMessage<'_>, facts: &mut Facts, applied: usize) -> Check {
        if self.is_addendum(message) {
            return Ok(());
        }
        self.pass_silent_before(message);
        let Some(request) = self.outstanding.pop_front() else {
            return Err(self.broken(Rule::Reply, format!("{message:?} without a request")));
        };
        self.may_hear_presence = true;
        match message {
            ServerMessage::Error(error) => self.refusal(&request, error, facts, applied),
            message => self.answer(&request, message, facts, applied),
        }
    }

    /// Whether a frame belongs to the answer before it.
    fn is_addendum(&mut self, message: &ServerMessage<'_>) -> bool {
        match (self.addendum.take(), message) {
            (Some(Addendum::UserInfo), ServerMessage::UserInfo(info)) => {
                self.nickname.as_deref() == Some(info.nickname)
            }
            (
                Some(Addendum::SignInHint),
                ServerMessage::AuthResponse(server::AuthResponse { outcome: Err(failed) }),
            ) => failed.message == b"You were disconnected. Please sign in again.",
            _ => false,
        }
    }

    /// ERROR answers what it may answer, for a reason that holds.
    fn refusal(&mut self, request: &Request, error: &server::Error<'_>, facts: &mut Facts, applied: usize) -> Check {
        if let Request::Post { content, .. } = request {
            facts.refused.insert(content.clone());
            if error.error_code == 2000 {
                self.addendum = Some(Addendum::SignInHint);
            }
        }
        facts.reach(Milestone::Refused(error.error_code));
        let holds = match error.error_code {
            9002 => facts.was_full && self.touches_store(request),
            9001 => match request {
                Request::Post { content, .. } => facts.failed_posts.contains(content),
                request => facts.has_failed && self.touches_store(request),
            },
            3000 if self.asks_for_dm(request, facts).is_some() => {
                facts.reach(Milestone::DmRefused);
                let place = self.asks_for_dm(request, facts).unwrap_or_default();
                !facts.is_in_throughout(place, self.viewer(), applied, facts.committed)
            }
            code => self.may_be_refused(request, code, facts),
        };
        ensure!(holds, Rule::Reply, "{} is told {} on {request:?}", self.session, error.error_code);
        Ok(())
    }

    /// The conversation that a request is about.
    fn asks_for_dm(&self, request: &Request, facts: &Facts) -> Option<ChannelId> {
        let place = match request {
            Request::Join { place }
            | Request::Subscribe { place }
            | Request::Users { place }
            | Request::List { place, .. }
            | Request::Post { place, .. } => place.id,
            Request::Follow { message } | Request::Edit { message, .. } | Request::Delete { message } => {
                facts.messages.get(message)?.channel
            }
            _ => return None,
        };
        // Whose a message is can be the reason as well.
        let is_about_message = matches!(request, Request::Edit { .. } | Request::Delete { .. });
        Some(place).filter(|place| facts.is_dm(*place) && !is_about_message)
    }

    fn touches_store(&self, request: &Request) -> bool {
        !matches!(
            request,
            Request::Ping { .. }
                | Request::Join { .. }
                | Request::Leave
                | Request::Subscribe { .. }
                | Request::Unsubscribe { .. }
                | Request::Users { .. }
        )
    }

    fn may_be_refused(&self, request: &Request, code: u16, facts: &Facts) -> bool {
        let unsteady = |channel: ChannelId| !facts.is_steady(channel);
        let (channels, threads) = (self.subscribed_channels().len(), self.followed_threads().count());
        match (request, code) {
            (Request::Subscribe { place } | Request::Users { place } | Request::Post { place, .. }, 4001 | 4004) => {
                unsteady(place.id)
            }
            (Request::Subscribe { .. }, 5005) => channels >= crate::world::SUBSCRIPTIONS_MAX,
            (Request::Follow { .. }, 5004) => threads >= crate::world::SUBSCRIPTIONS_MAX,
            (
                Request::Follow { message } | Request::Edit { message, .. } | Request::Delete { message },
                4001..=4003,
            ) => !facts.is_steady_message(*message) || facts.was_hidden(*message),
            (Request::Post { parent: Some(parent), place, .. }, 4002) => {
                let elsewhere = facts.messages.get(parent).is_none_or(|fact| fact.channel != place.id);
                elsewhere || unsteady(place.id) || facts.was_hidden(*parent)
            }
            // The chat channel takes no replies.
            (Request::Post { parent: Some(_), place, .. }, 6000) => {
                place.id == crate::world::CHAT || facts.is_dm(place.id)
            }
            (Request::StartDm { .. }, 4000 | 6000) | (Request::Allow { .. } | Request::Decline { .. }, 3000 | 4000) => {
                true
            }
            (Request::ProvideKey { .. }, 3000) => self.user.is_none(),
            (Request::StartDm { .. } | Request::Post { .. }, 2000) | (Request::Delete { .. }, 6004) => {
                self.nickname.is_none()
            }
            (Request::Edit { .. }, 2000) => self.user.is_none(),
            (Request::Edit { .. } | Request::Delete { .. }, 3000) => true,
            (Request::Edit { message, .. } | Request::Delete { message }, 6000) => {
                facts.messages.get(message).is_some_and(|fact| fact.is_deleted)
            }
            (Request::SetNickname { .. }, 9000) => facts.has_failed && self.user.is_some(),
            _ => false,
        }
    }

    fn answer(&mut self, request: &Request, message: &ServerMessage<'_>, facts: &mut Facts, applied: usize) -> Check {
        let fits = match (request, message) {
            (Request::Ping { token }, ServerMessage::Pong(pong)) => pong.client_timestamp == *token,
            (Request::SetNickname { name }, ServerMessage::NicknameResponse(response)) => {
                self.named(name, response.success) || facts.has_banned
            }
            (Request::SignIn { must_work, .. }, ServerMessage::AuthResponse(response)) => {
                self.signed_in(response, *must_work) || facts.has_banned
            }
            (Request::Register, ServerMessage::RegisterResponse(response)) => {
                self.user = response.outcome.as_ref().map_or(self.user, |registered| Some(registered.user_id));
                self.signed_in_since |= response.outcome.is_ok();
                true
            }
            (Request::Post { content, .. }, ServerMessage::MessagePosted(posted)) => {
                self.acknowledged.insert(posted.message_id);
                facts.acknowledged.insert(content.clone(), posted.message_id);
                facts.posted.get(content) == Some(&vec![posted.message_id]) && posted.success
            }
            (Request::Edit { content, message }, ServerMessage::MessageEdited(edited)) => {
                let truth = facts.editors.get(content) == Some(&self.session);
                truth && edited.outcome.as_ref().is_ok_and(|edited| edited.message_id == *message)
            }
            (Request::Delete { message }, ServerMessage::MessageDeleted(deleted)) => {
                let truth = facts.deleters.get(message) == Some(&self.session);
                truth && deleted.outcome.as_ref().is_ok_and(|deleted| deleted.message_id == *message)
            }
            (Request::Info, ServerMessage::UserInfo(info)) => {
                (info.nickname, info.is_registered) == (ABSENT.as_bytes(), true)
            }
            (Request::StartDm { .. } | Request::Allow { .. }, ServerMessage::DmReady(ready)) => {
                facts.is_dm(ready.channel_id) && facts.may_be_in(ready.channel_id, self.viewer(), 0, facts.committed)
            }
            (Request::StartDm { .. }, ServerMessage::DmPending(pending)) => {
                facts.invites.contains(&pending.dm_channel_id)
            }
            (Request::StartDm { allow_unencrypted, .. }, ServerMessage::KeyRequired(required)) => {
                !allow_unencrypted && required.dm_channel_id.is_none()
            }
            (Request::Allow { invite }, ServerMessage::KeyRequired(required)) => {
                required.dm_channel_id == Some(*invite)
            }
            (Request::CreateChannel { name }, ServerMessage::ChannelCreated(created)) => {
                created.outcome.as_ref().map_or(true, |created| created.name == name)
            }
            (Request::CreateSubchannel { name, .. }, ServerMessage::SubchannelCreated(created)) => {
                created.outcome.as_ref().map_or(true, |created| created.name == name)
            }
            (request, message) => return self.answer_about_places(request, message, facts, applied),
        };
        ensure!(fits, Rule::Reply, "{} gets {message:?} on {request:?}", self.session);
        Ok(())
    }

    fn named(&mut self, name: &str, success: bool) -> bool {
        if success {
            self.nickname = Some(name.as_bytes().to_vec());
            self.addendum = Some(Addendum::UserInfo);
        }
        // Only an account can be refused a name.
        success || self.user.is_some()
    }

    fn signed_in(&mut self, response: &server::AuthResponse<'_>, must_work: bool) -> bool {
        if let Ok(granted) = &response.outcome {
            self.user = Some(granted.user_id);
            self.signed_in_since = true;
            self.nickname = Some(granted.nickname.to_vec());
        }
        response.outcome.is_ok() || !must_work
    }

    fn answer_about_places(
        &mut self,
        request: &Request,
        message: &ServerMessage<'_>,
        facts: &mut Facts,
        applied: usize,
    ) -> Check {
        let fits = match (request, message) {
            (Request::Join { place }, ServerMessage::JoinResponse(joined)) => {
                if joined.success {
                    self.joined = Some(place.id);
                    self.left_audience();
                }
                let is_open = self.may_be_in(place.id, facts, applied);
                joined.channel_id == place.channel_id
                    && if joined.success { is_open } else { !facts.is_steady(place.id) }
            }
            (Request::Leave | Request::LeaveForGood, ServerMessage::LeaveResponse(left)) => {
                let joined = self.joined.take();
                self.left_audience();
                // A channel that went away, or that the session may not enter any more, may not have been noticed here yet.
                let may_be_lost = joined.is_some_and(|place| facts.is_dm(place));
                left.success == joined.is_some() || may_be_lost || !facts.dropped.is_empty()
            }
            (Request::Subscribe { place }, ServerMessage::SubscribeOk(ok)) => {
                self.subscribe(Topic::Channel(place.id), place.id, applied);
                let is_open = self.may_be_in(place.id, facts, applied);
                ensure!(is_open, Rule::NoLeak, "{} subscribes to the foreign {}", self.session, place.id);
                (ok.subscription_type, ok.id, ok.subchannel_id) == (2, place.channel_id.0, place.subchannel_id)
            }
            (Request::Unsubscribe { place }, ServerMessage::SubscribeOk(ok)) => {
                self.topics.remove(&Topic::Channel(place.id));
                self.left_audience();
                (ok.subscription_type, ok.id, ok.subchannel_id) == (2, place.channel_id.0, place.subchannel_id)
            }
            (Request::Follow { message }, ServerMessage::SubscribeOk(ok)) => {
                let Some(fact) = facts.messages.get(message) else {
                    return Err(self.broken(Rule::Reply, format!("follows {message}, which never was")));
                };
                self.subscribe(Topic::Thread(fact.root), fact.channel, applied);
                let is_open = self.may_be_in(fact.channel, facts, applied);
                ensure!(is_open, Rule::NoLeak, "{} follows a thread in the foreign {}", self.session, fact.channel);
                (ok.subscription_type, ok.id) == (1, message.0)
            }
            (Request::Unfollow { message }, ServerMessage::SubscribeOk(ok)) => {
                let root = facts.messages.get(message).map_or(*message, |fact| fact.root);
                self.topics.remove(&Topic::Thread(root));
                (ok.subscription_type, ok.id) == (1, message.0)
            }
            (Request::Users { place }, ServerMessage::ChannelUserList(list)) => {
                self.list_users(place.id, list);
                let is_open = self.may_be_in(place.id, facts, applied);
                ensure!(is_open, Rule::NoLeak, "{} is shown who is in the foreign {}", self.session, place.id);
                (list.channel_id, list.subchannel_id) == (place.channel_id, place.subchannel_id)
            }
            (Request::List { place, parent }, ServerMessage::MessageList(list)) => {
                self.list_messages(place.id, *parent, list, facts)?;
                let asked = (place.channel_id, place.subchannel_id, *parent);
                (list.channel_id, list.subchannel_id, list.parent_id) == asked
            }
            _ => false,
        };
        ensure!(fits, Rule::Reply, "{} gets {message:?} on {request:?}", self.session);
        Ok(())
    }

    fn subscribe(&mut self, topic: Topic, place: ChannelId, applied: usize) {
        let heard = || Heard { place, since: applied, delivered: BTreeSet::new() };
        self.topics.entry(topic).or_insert_with(heard);
    }

    fn list_users(&mut self, place: ChannelId, list: &server::ChannelUserList<'_>) {
        if self.is_audience(place) {
            let here = list.users.0.iter().map(|user| (user.session_id, user.nickname.to_vec()));
            self.places.insert(place, here.collect());
        }
    }

    /// Hidden as long as it is there, from everybody but its author and who may be an admin.
    fn must_not_see(&self, fact: &Fact, facts: &Facts) -> bool {
        let is_hidden = fact.hidden_by.iter().any(|(ban, _)| facts.lasting.contains(ban));
        let wrote = fact.hidden_by.iter().any(|(_, session)| *session == self.session);
        let is_author = wrote || (self.user.is_some() && fact.author_user == self.user);
        is_hidden && !is_author && self.user != Some(crate::world::ADMIN)
    }

    /// What was listed after SUBSCRIBE_OK and what was delivered since make up the whole.
    fn list_messages(
        &self,
        place: ChannelId,
        parent: Option<MessageId>,
        list: &server::MessageList<'_>,
        facts: &mut Facts,
    ) -> Check {
        let topic = parent.map_or(Topic::Channel(place), Topic::Thread);
        // The lines that the server writes into conversations are nobody's posts.
        let posts = list.messages.0.iter().filter(|message| !message.author_nickname.is_empty());
        let listed: BTreeSet<_> = posts.clone().map(|message| message.message_id).collect();
        // It may have been asked for before the last flush, so nothing is known of when.
        let is_open = list.messages.0.is_empty() || self.may_be_in(place, facts, 0);
        ensure!(is_open, Rule::NoLeak, "{} is listed what was said in the foreign {place}", self.session);
        let root = parent.map(|parent| facts.messages[&parent].root);
        let is_of_topic = |id: &MessageId, fact: &Fact| match root {
            None => fact.channel == place && fact.parent.is_none(),
            Some(root) => fact.channel == place && fact.root == root && Some(*id) != parent,
        };
        let of_topic = |id: &&MessageId| facts.messages.get(id).is_some_and(|fact| is_of_topic(id, fact));
        let strange = listed.iter().find(|id| !of_topic(id));
        ensure!(strange.is_none(), Rule::NoLeak, "{} finds {strange:?} in a list of {topic:?}", self.session);
        ensure!(listed.len() == posts.count(), Rule::Order, "{} is listed something twice", self.session);
        let is_steady = |heard: &&Heard| match facts.is_dm(place) {
            true => facts.is_in_throughout(place, self.viewer(), heard.since, facts.committed),
            false => facts.is_steady(place),
        };
        let leaked = listed.iter().find(|id| facts.messages.get(id).is_some_and(|fact| self.must_not_see(fact, facts)));
        ensure!(leaked.is_none(), Rule::NoLeak, "{} is listed the hidden {leaked:?}", self.session);
        let Some(heard) = self.topics.get(&topic).filter(is_steady) else { return Ok(()) };
        if !listed.is_empty() && !heard.delivered.is_empty() {
            facts.reach(Milestone::ListMetDeliveries);
        }
        let facts = &*facts;
        // A full page shows the newest roots, or the beginning of a thread.
        let is_full = listed.len() >= usize::from(LIST_MESSAGES_MAX);
        let oldest = if is_full { listed.first().copied().unwrap_or_default() } else { MessageId(0) };
        if is_full && parent.is_some() {
            return Ok(());
        }
        let newest = listed.iter().chain(&heard.delivered).max().copied().unwrap_or_default();
        let missing = facts.messages.iter().find(|(id, fact)| {
            let is_due = **id > oldest && (fact.position < heard.since || **id <= newest);
            is_due
                && !fact.was_hidden
                && !facts.was_hidden(fact.root)
                && is_of_topic(id, fact)
                && !fact.is_deleted
                && !listed.contains(id)
                && !heard.delivered.contains(id)
        });
        ensure!(missing.is_none(), Rule::NoGap, "{} can never hear of {missing:?} in {topic:?}", self.session);
        Ok(())
    }
}
