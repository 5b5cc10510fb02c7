//! Direct messages on this shard (BEHAVIOUR.md 4): which of its sessions are a side, what they are told, and what ends
//! when a session is no longer that side.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tracing::debug;

use super::clients::Held;
use super::outbox::Broadcast;
use super::roster::Repeat;
use super::session::{SessionKey, SignedIn};
use super::{Shard, token};
use crate::ids::{ChannelId, SessionId, UserId};
use crate::store::{
    Channel, Command, Dm, DmFound, DmLeft, DmOverview, DmSide, Event, Invite, Participant, Query, Submission, Ticket,
};
use crate::wire::codec::Encryption;
use crate::wire::{ServerMessage, server};

/// What a shard keeps for direct messages.
#[derive(Debug, Default)]
pub struct Dms {
    /// This shard's sessions by account.
    by_user: HashMap<UserId, Vec<SessionKey>, RandomState>,
    /// Sessions to be told of their conversations at the next tick, behind the roster.
    greetings: Vec<Held>,
    /// Visitors who are gone, and whom the store must still be told of.
    departures: Vec<SessionId>,
    /// When the store, which was busy or failed, is told again; in monotonic milliseconds.
    retry_at: Option<u64>,
}

/// Milliseconds before the store is told again of a visitor who is gone.
const RETRY_MS: u64 = 100;

/// Part of a token that is no session's place: the outcome belongs to a visitor who is gone.
const DEPARTED: SessionKey = SessionKey(u32::MAX);

/// Marks a session's place in the token of what nobody asked for, so that no request is taken for answered by it. Tables of
/// sessions never grow that large.
const UNASKED: u32 = 1 << 31;

impl Shard {
    /// Signs a session in or out. What it follows as whoever it was before, and may not enter as whoever it is now, ends.
    pub fn set_account(&mut self, key: SessionKey, account: Option<SignedIn>) {
        let session = self.clients.session(key);
        let before = std::mem::replace(&mut session.account, account).map(|account| account.user);
        let after = account.map(|account| account.user);
        if before == after {
            return;
        }
        session.busy().has_provided_key = false;
        self.forget_account(key, before);
        if let Some(user) = after {
            self.dms.by_user.entry(user).or_default().push(key);
        }
        self.expel(key, |_| true);
    }

    /// The session no longer belongs to the account.
    pub(super) fn forget_account(&mut self, key: SessionKey, user: Option<UserId>) {
        let Some(user) = user else { return };
        let Some(sessions) = self.dms.by_user.get_mut(&user) else { return };
        sessions.retain(|known| *known != key);
        if sessions.is_empty() {
            self.dms.by_user.remove(&user);
        }
    }

    /// Ends every mark the session holds of those conversations that it may not enter.
    fn expel(&mut self, key: SessionKey, concerns: impl Fn(ChannelId) -> bool) {
        let session = self.clients.session(key);
        let (viewer, joined) = (session.viewer(), session.joined.map(|(channel, _)| channel));
        let marked = session.channels().iter().copied().chain(session.threads().iter().map(|thread| thread.channel));
        let mut foreign: Vec<_> = marked.chain(joined).filter(|channel| concerns(*channel)).collect();
        foreign.retain(|channel| self.channels.get(*channel).is_some_and(|channel| !viewer.may_enter(channel)));
        foreign.sort_unstable();
        foreign.dedup();
        for channel in foreign {
            if self.forget_place(key, channel) {
                self.announce(key, Repeat::default());
            }
        }
    }

    /// Ends every mark the session holds of a channel; whether it was the place joined.
    pub(super) fn forget_place(&mut self, key: SessionKey, channel: ChannelId) -> bool {
        self.unsubscribe_channel(key, channel);
        let session = self.clients.session(key);
        let threads = session.threads().iter().filter(|thread| thread.channel == channel);
        let roots: Vec<_> = threads.map(|thread| thread.root).collect();
        let was_joined = session.joined.is_some_and(|(joined, _)| joined == channel);
        roots.into_iter().for_each(|root| self.unsubscribe_thread(key, root));
        if was_joined {
            self.leave(key);
        }
        was_joined
    }

    /// This shard's sessions of an account.
    pub(super) fn sessions_of_user(&self, user: UserId) -> Vec<SessionKey> {
        self.dms.by_user.get(&user).cloned().unwrap_or_default()
    }

    /// This shard's sessions of one side.
    fn sessions_of(&self, who: &Participant) -> Vec<SessionKey> {
        match (who.user, who.session) {
            (Some(user), _) => self.sessions_of_user(user),
            (None, Some(session)) => self.visitor(session).into_iter().collect(),
            (None, None) => Vec::new(),
        }
    }

    /// A visitor's session, while it is one.
    fn visitor(&self, session: SessionId) -> Option<SessionKey> {
        let here = |key: &SessionKey| self.clients.get(*key).is_some_and(|client| client.id == session);
        let key = self.clients.keys().find(here)?;
        self.clients.get(key)?.account.is_none().then_some(key)
    }

    /// Tells all sessions of one side, but not `asker`, who has its own answer.
    fn tell_side<'m>(&mut self, who: &Participant, asker: Option<SessionKey>, message: impl Into<ServerMessage<'m>>) {
        let mut frame = Broadcast::new(message);
        for key in self.sessions_of(who) {
            if Some(key) != asker {
                self.clients.send(key, &mut frame);
            }
        }
    }

    /// What was committed about direct messages, to the sessions on this shard that are a side.
    pub(super) fn publish_dm(&mut self, event: &Event, asker: Option<SessionKey>) {
        match event {
            Event::DmOpened { dm, is_new } => {
                self.admit_to(dm);
                if *is_new {
                    self.tell_opened(dm, asker);
                }
            }
            Event::DmInvited { invite, is_told } => {
                self.watch_visitors([&invite.initiator, &invite.target]);
                self.tell_side(&invite.initiator, asker, pending(invite, &waiting_text(invite)));
                if *is_told {
                    self.tell_side(&invite.target, asker, request(invite));
                }
            }
            Event::DmDeclined { invite } => self.tell_side(&invite.initiator, asker, declined(invite)),
            Event::DmLeft(left) => self.tell_left(left),
            Event::VisitorForgotten { left } | Event::UserDeleted { left, .. } => {
                left.iter().for_each(|left| self.tell_left(left))
            }
            Event::KeyProvided { own, opened, others, is_changed } => {
                for dm in opened {
                    self.admit_to(dm);
                    self.tell_opened(dm, asker);
                }
                for found in others.iter().filter(|found| *is_changed && !found.has_left) {
                    self.tell_side(&found.other.who, asker, ready(found.channel, own));
                }
            }
            _ => {}
        }
    }

    fn admit_to(&mut self, dm: &Dm) {
        self.channels.insert(dm.channel.clone());
        self.watch_visitors(dm.sides.each_ref().map(|side| &side.who));
    }

    fn tell_opened(&mut self, dm: &Dm, asker: Option<SessionKey>) {
        let [one, other] = &dm.sides;
        self.tell_side(&one.who, asker, ready(dm.channel.id, other));
        self.tell_side(&other.who, asker, ready(dm.channel.id, one));
    }

    fn tell_left(&mut self, left: &DmLeft) {
        let Some(rest) = &left.rest else { return self.drop_channel(left.channel) };
        self.channels.insert(rest.clone());
        for key in self.sessions_of(&left.who) {
            self.expel(key, |channel| channel == left.channel);
        }
        // When the server stops, nobody is told of each one who goes.
        if self.draining.is_some() {
            return;
        }
        let frame = participant_left(left.channel, &left.who);
        for participant in rest.participants.iter().flat_map(|inside| inside.iter()) {
            self.tell_side(participant, None, frame.clone());
        }
    }

    /// An operator changed a channel: whoever may not enter it any more hears nothing further of it.
    pub(super) fn change_channel(&mut self, channel: Channel) {
        let id = channel.id;
        self.channels.insert(channel);
        if self.channels.is_dm(id) {
            for key in self.clients.keys().collect::<Vec<_>>() {
                self.expel(key, |concerned| concerned == id);
            }
        }
    }

    /// Notes which visitors are a side, so that the store hears when they go. One that is here no longer went before this
    /// was committed, unseen by whoever asked for it.
    fn watch_visitors(&mut self, sides: [&Participant; 2]) {
        for who in sides {
            let (None, Some(id)) = (who.user, who.session) else { continue };
            let key = self.clients.keys().find(|key| self.clients.get(*key).is_some_and(|client| client.id == id));
            match key.and_then(|key| self.clients.get_mut(key)) {
                Some(session) => session.visits_dms = true,
                None if self.roster.get(id).is_none() => self.dms.departures.push(id),
                None => {}
            }
        }
    }

    /// A visitor that was a side of something is gone.
    pub(super) fn visitor_departed(&mut self, session: SessionId) {
        self.dms.departures.push(session);
    }

    /// Tells the store of visitors who are gone, as far as it takes them.
    pub(super) fn tell_departures(&mut self) {
        if self.dms.departures.is_empty() || self.dms.retry_at.is_some_and(|at| at > self.now.mono) {
            return;
        }
        self.dms.retry_at = None;
        while let Some(session) = self.dms.departures.last().copied() {
            let ticket = Ticket { shard: self.id, token: token(DEPARTED, session) };
            let submission = Submission { ticket, command: Command::ForgetVisitor { session } };
            if self.store.submit(submission).is_err() {
                self.dms.retry_at = Some(self.now.mono + RETRY_MS);
                return;
            }
            self.dms.departures.pop();
        }
    }

    /// An outcome came back to no session: what the storage failed to forget is tried again.
    pub(super) fn departure_came_back(&mut self, token_value: u64, is_done: bool) {
        let session = SessionId(token_value >> 32);
        if token(DEPARTED, session) == token_value && !is_done {
            self.dms.departures.push(session);
            self.dms.retry_at = Some(self.now.mono + RETRY_MS);
        }
    }

    pub(super) fn departures_due(&self) -> Option<u64> {
        self.dms.retry_at
    }

    /// The account signed in here: it is told of its conversations behind the roster (BEHAVIOUR.md 4.9).
    pub fn send_dms(&mut self, key: SessionKey) {
        let session = self.clients.session(key);
        let held = (key, session.id);
        self.dms.greetings.push(held);
    }

    /// Asks for what is to be told; `true` when some of it could not be asked for and is tried again.
    pub(super) fn ask_for_dms(&mut self) -> bool {
        let waiting = std::mem::take(&mut self.dms.greetings);
        for (key, id) in waiting {
            let Some(key) = self.clients.still((key, id)) else { continue };
            let Some(user) = self.clients.session(key).user() else { continue };
            let ticket = Ticket { shard: self.id, token: token(SessionKey(key.0 | UNASKED), id) };
            if self.store.ask(ticket, Query::Dms { user }).is_err() {
                self.dms.greetings.push((key, id));
            }
        }
        !self.dms.greetings.is_empty()
    }

    /// An encrypted conversation waits for the key, because without one a client can only complain.
    pub(super) fn tell_dms(&mut self, token: u64, overview: &DmOverview) {
        let Some(key) = self.find(token & !u64::from(UNASKED)) else { return };
        let session = self.clients.session(key);
        if session.user() != Some(overview.user) {
            return;
        }
        let has_key = session.has_provided_key();
        for found in overview.found.iter().filter(|found| has_key || found.other.key.is_none()) {
            self.tell_found(key, found);
        }
        for invite in &overview.requests {
            self.reply(key, request(invite));
        }
        for invite in &overview.pending {
            self.reply(key, pending(invite, &waiting_text(invite)));
        }
        debug!(conversations = overview.found.len(), requests = overview.requests.len(), "direct messages told");
    }

    /// Answers with a conversation that was there before.
    pub fn tell_found(&mut self, key: SessionKey, found: &DmFound) {
        self.reply(key, ready(found.channel, &found.other));
        if found.has_left {
            self.reply(key, participant_left(found.channel, &found.other.who));
        }
    }
}

/// DM_READY, to the other side of `side`.
#[must_use]
pub fn ready(channel: ChannelId, side: &DmSide) -> server::DmReady<'_> {
    server::DmReady {
        channel_id: channel,
        other_user_id: side.who.user,
        other_nickname: &side.who.nickname,
        encryption: Encryption(side.key),
    }
}

/// DM_PENDING.
#[must_use]
pub fn pending<'m>(invite: &'m Invite, text: &'m str) -> server::DmPending<'m> {
    server::DmPending {
        dm_channel_id: invite.id,
        waiting_for_user_id: invite.target.user,
        waiting_for_nickname: &invite.target.nickname,
        reason: text.as_bytes(),
    }
}

/// The reason in DM_PENDING.
#[must_use]
pub fn waiting_text(invite: &Invite) -> String {
    format!("Waiting for {} to accept", String::from_utf8_lossy(&invite.target.nickname))
}

fn request(invite: &Invite) -> server::DmRequest<'_> {
    server::DmRequest {
        dm_channel_id: invite.id,
        from_user_id: invite.initiator.user,
        from_nickname: &invite.initiator.nickname,
        encryption_status: invite.encryption.to_wire(),
    }
}

fn declined(invite: &Invite) -> server::DmDeclined<'_> {
    let Participant { user, nickname, .. } = &invite.target;
    server::DmDeclined { dm_channel_id: invite.id, user_id: *user, nickname }
}

fn participant_left(channel: ChannelId, who: &Participant) -> server::DmParticipantLeft<'_> {
    server::DmParticipantLeft { dm_channel_id: channel, user_id: who.user, nickname: &who.nickname }
}
