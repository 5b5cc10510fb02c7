//! Direct messages: the rules of BEHAVIOUR.md 4 in memory, and which frames of them are owed to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use superchat::ids::{ChannelId, InviteId, SessionId, UserId};
use superchat::shard::session::Session;
use superchat::store::{
    Answer, Channel, ChannelType, Command, Dm, DmFound, DmLeft, DmOverview, DmSide, EncryptionStatus, Event, Invite,
    Name, Participant, PublicKey, Refusal, Viewer,
};
use superchat::wire::ServerMessage;

use crate::store::Memory;

/// What is kept beside channels and messages.
#[derive(Clone, Default)]
pub struct Dms {
    keys: BTreeMap<UserId, PublicKey>,
    invites: BTreeMap<InviteId, Open>,
    encrypted: BTreeSet<ChannelId>,
    /// Who left a conversation that goes on, the last one last.
    former: Vec<(ChannelId, Participant)>,
    newest_invite: u64,
}

#[derive(Clone)]
struct Open {
    initiator: Participant,
    target: Participant,
    is_required: bool,
    shown_at: i64,
}

type Pair<'a> = [&'a Participant; 2];

fn account(user: UserId) -> Participant {
    Participant { user: Some(user), session: None, nickname: Name::from(&b""[..]) }
}

impl Memory {
    /// Whether something is left of visitors.
    pub fn knows_visitors(&self) -> bool {
        let is_visitor = |who: &Participant| who.user.is_none();
        let channels = self.channels.values().filter_map(|channel| channel.participants.as_ref());
        let mut inside = channels.flat_map(|inside| inside.iter());
        let mut invited = self.dms.invites.values().flat_map(|open| [&open.initiator, &open.target]);
        inside.any(is_visitor) || invited.any(is_visitor)
    }

    pub fn apply_about_dms(&mut self, command: &Command, now: i64) -> Result<Event, Refusal> {
        match command {
            Command::StartDm { initiator, target, allow_unencrypted } => {
                self.start([initiator, target], *allow_unencrypted, now)
            }
            Command::ProvideKey { user, key, is_first } => Ok(self.provide_key(*user, *key, *is_first)),
            Command::AcceptDm { invite, by } => self.accept(*invite, by),
            Command::DeclineDm { invite, by } => {
                let mut declined = self.invite(*invite, by)?;
                self.dms.invites.remove(invite);
                declined.target = by.clone();
                Ok(Event::DmDeclined { invite: Box::new(declined) })
            }
            Command::LeaveDm { channel, leaver } => {
                let left = self.leave(*channel, leaver, now).ok_or(Refusal::NotParticipant)?;
                Ok(Event::DmLeft(Box::new(left)))
            }
            Command::ForgetVisitor { session } => Ok(self.forget_visitor(*session, now)),
            other => unreachable!("{other:?} is not about direct messages"),
        }
    }

    fn conversations(&self) -> impl Iterator<Item = (&Channel, &Arc<[Participant]>)> {
        self.channels.values().filter_map(|channel| Some((channel, channel.participants.as_ref()?)))
    }

    fn between(&self, pair: Pair<'_>) -> Option<ChannelId> {
        let has = |inside: &[Participant], who: &Participant| inside.iter().any(|other| other.is_same(who));
        let mut both = self.conversations().filter(|(_, inside)| pair.iter().all(|who| has(inside, who)));
        both.next().map(|(channel, _)| channel.id)
    }

    fn start(&mut self, pair: Pair<'_>, allow_unencrypted: bool, now: i64) -> Result<Event, Refusal> {
        if let Some(channel) = self.between(pair) {
            return Ok(self.opened(channel, pair, false));
        }
        if let Some(channel) = self.reopen(pair) {
            return Ok(self.opened(channel, pair, true));
        }
        let keys = pair.map(|who| self.dms.keys.get(&who.user?));
        if keys[0].is_none() && !allow_unencrypted {
            return Err(Refusal::KeyRequired);
        }
        if keys.iter().all(Option::is_some) {
            return Ok(self.open(pair, true));
        }
        Ok(self.invite_again_or_anew(pair, !allow_unencrypted, now))
    }

    fn reopen(&mut self, pair: Pair<'_>) -> Option<ChannelId> {
        let candidates = [(pair[0], pair[1]), (pair[1], pair[0])];
        let (channel, leaver) = candidates.into_iter().find_map(|(leaver, stayed)| {
            stayed.user?;
            let left = |channel| {
                self.dms
                    .former
                    .iter()
                    .any(|(place, who)| *place == channel && who.user.is_some() && who.is_same(leaver))
            };
            let mut stays = self.conversations().filter(|(_, inside)| inside.iter().any(|who| who.is_same(stayed)));
            stays.find(|(channel, _)| left(channel.id)).map(|(channel, _)| (channel.id, leaver))
        })?;
        self.dms.former.retain(|(place, who)| *place != channel || !who.is_same(leaver));
        let inside = self.channels.get_mut(&channel)?.participants.as_mut()?;
        *inside = inside.iter().cloned().chain([leaver.clone()]).collect();
        Some(channel)
    }

    fn open(&mut self, pair: Pair<'_>, is_encrypted: bool) -> Event {
        let channel = self.open_channel(pair, is_encrypted);
        self.opened(channel, pair, true)
    }

    fn open_channel(&mut self, pair: Pair<'_>, is_encrypted: bool) -> ChannelId {
        self.newest_channel += 1;
        let id = ChannelId(self.newest_channel);
        let text = |text: &str| Name::from(text.as_bytes());
        let channel = Channel {
            id,
            name: text(&format!("dm_{id}")),
            display_name: text("Direct Message"),
            description: text(""),
            channel_type: ChannelType::Chat,
            retention_hours: 168,
            created_by: None,
            parent: None,
            participants: Some(pair.into_iter().cloned().collect()),
            is_archived: false,
        };
        self.channels.insert(id, channel);
        if is_encrypted {
            self.dms.encrypted.insert(id);
        }
        self.dms.invites.retain(|_, open| {
            let sides = [&open.initiator, &open.target];
            !pair.iter().all(|who| sides.iter().any(|side| side.is_same(who)))
        });
        id
    }

    fn opened(&self, channel: ChannelId, pair: Pair<'_>, is_new: bool) -> Event {
        Event::DmOpened { dm: Box::new(self.dm(channel, pair)), is_new }
    }

    fn dm(&self, channel: ChannelId, pair: Pair<'_>) -> Dm {
        let sides = pair.map(|who| self.side(channel, who));
        Dm { channel: self.channels[&channel].clone(), sides }
    }

    fn side(&self, channel: ChannelId, who: &Participant) -> DmSide {
        let account = who.user.and_then(|user| self.accounts.get(&user));
        let nickname = account.map_or(&who.nickname, |account| &account.nickname).clone();
        let key = who.user.filter(|_| self.dms.encrypted.contains(&channel)).map(|user| self.dms.keys[&user]);
        DmSide { who: Participant { nickname, ..who.clone() }, key }
    }

    fn invite_again_or_anew(&mut self, pair: Pair<'_>, is_required: bool, now: i64) -> Event {
        let same = |open: &Open| open.initiator.is_same(pair[0]) && open.target.is_same(pair[1]);
        let known = self.dms.invites.iter().find(|(_, open)| same(open)).map(|(id, open)| (*id, open.shown_at));
        let (id, is_told) = match known {
            Some((id, shown_at)) => (id, now - shown_at >= 60_000),
            None => {
                self.dms.newest_invite += 1;
                (InviteId(self.dms.newest_invite), true)
            }
        };
        let shown_at = known.filter(|_| !is_told).map_or(now, |(_, shown_at)| shown_at);
        let [initiator, target] = pair.map(Clone::clone);
        self.dms.invites.insert(id, Open { initiator, target, is_required, shown_at });
        Event::DmInvited { invite: Box::new(self.shown_invite(id, &self.dms.invites[&id])), is_told }
    }

    fn shown_invite(&self, id: InviteId, open: &Open) -> Invite {
        let current = |who: &Participant| self.side(ChannelId(0), who).who;
        let has_key = open.initiator.user.is_some_and(|user| self.dms.keys.contains_key(&user));
        let encryption = match (has_key, open.is_required) {
            (false, _) => EncryptionStatus::Impossible,
            (true, true) => EncryptionStatus::Required,
            (true, false) => EncryptionStatus::Optional,
        };
        Invite { id, initiator: current(&open.initiator), target: current(&open.target), encryption }
    }

    /// An open invitation, for its target.
    fn invite(&self, id: InviteId, by: &Participant) -> Result<Invite, Refusal> {
        let open = self.dms.invites.get(&id).ok_or(Refusal::InviteNotFound)?;
        if open.target.is_same(by) { Ok(self.shown_invite(id, open)) } else { Err(Refusal::NotInvited) }
    }

    fn accept(&mut self, id: InviteId, by: &Participant) -> Result<Event, Refusal> {
        let invite = self.invite(id, by)?;
        let pair = [by, &invite.initiator];
        if let Some(channel) = self.between(pair) {
            let event = self.opened(channel, pair, true);
            self.dms.invites.retain(|_, open| {
                !(open.initiator.is_same(pair[0]) && open.target.is_same(pair[1])
                    || open.initiator.is_same(pair[1]) && open.target.is_same(pair[0]))
            });
            return Ok(event);
        }
        if invite.encryption != EncryptionStatus::Required {
            return Ok(self.open(pair, false));
        }
        match by.user.and_then(|user| self.dms.keys.get(&user)) {
            Some(_) => Ok(self.open(pair, true)),
            None => Ok(Event::DmNeedsKey { invite: Box::new(invite) }),
        }
    }

    fn provide_key(&mut self, user: UserId, key: PublicKey, is_first: bool) -> Event {
        let own = self.side(ChannelId(0), &account(user)).who;
        let is_changed = self.dms.keys.insert(user, key) != Some(key);
        let others = if is_changed || is_first { self.encrypted_of(&own) } else { Vec::new() };
        let waiting: BTreeMap<UserId, Participant> = self
            .dms
            .invites
            .values()
            .filter_map(|open| match (open.initiator.user, open.target.user) {
                (Some(one), Some(other)) if one == user => Some((other, open.target.clone())),
                (Some(one), Some(other)) if other == user => Some((one, open.initiator.clone())),
                _ => None,
            })
            .filter(|(other, _)| self.dms.keys.contains_key(other))
            .collect();
        let mut opened = Vec::new();
        for other in waiting.values() {
            let channel = self.open_channel([&own, other], true);
            opened.push(self.dm(channel, [&own, other]));
        }
        let own = Box::new(DmSide { who: own, key: Some(key) });
        Event::KeyProvided { own, opened, others, is_changed }
    }

    fn encrypted_of(&self, own: &Participant) -> Vec<DmFound> {
        let mut found = self.found_by(own);
        found.retain(|found| found.other.key.is_some());
        found
    }

    fn found_by(&self, own: &Participant) -> Vec<DmFound> {
        let inside = self.conversations().filter(|(_, inside)| inside.iter().any(|who| who.is_same(own)));
        inside.filter_map(|(channel, inside)| self.found(channel.id, inside, own)).collect()
    }

    fn found(&self, channel: ChannelId, inside: &[Participant], own: &Participant) -> Option<DmFound> {
        let former = || self.dms.former.iter().rev().find(|(place, _)| *place == channel).map(|(_, who)| who);
        let (other, has_left) = match inside.iter().find(|who| !who.is_same(own)) {
            Some(other) => (other, false),
            None => (former()?, true),
        };
        Some(DmFound { channel, other: self.side(channel, other), has_left })
    }

    pub fn conversation_between(&self, viewer: Viewer, other: &Participant) -> Answer {
        let session = viewer.user.is_none().then_some(viewer.session);
        let own = Participant { user: viewer.user, session, nickname: Name::from(&b""[..]) };
        let found = self.between([&own, other]).and_then(|channel| {
            let inside = self.channels[&channel].participants.as_ref()?;
            self.found(channel, inside, &own)
        });
        let has_key = viewer.user.is_some_and(|user| self.dms.keys.contains_key(&user));
        Answer::Dm { found, has_key }
    }

    pub fn overview(&self, user: UserId) -> DmOverview {
        let own = account(user);
        let invites = |is_mine: &dyn Fn(&Open) -> bool| {
            let mine = self.dms.invites.iter().filter(|(_, open)| is_mine(open));
            mine.map(|(id, open)| self.shown_invite(*id, open)).collect()
        };
        DmOverview {
            user,
            found: self.found_by(&own),
            requests: invites(&|open| open.target.is_same(&own)),
            pending: invites(&|open| open.initiator.is_same(&own)),
        }
    }

    fn leave(&mut self, channel: ChannelId, leaver: &Participant, now: i64) -> Option<DmLeft> {
        let info = self.channels.get_mut(&channel)?;
        let inside = info.participants.as_ref()?;
        let rest: Arc<[_]> = inside.iter().filter(|who| !who.is_same(leaver)).cloned().collect();
        if rest.len() == inside.len() {
            return None;
        }
        let who = leaver.clone();
        if rest.is_empty() {
            self.channels.remove(&channel);
            self.messages.retain(|_, stored| stored.channel != channel);
            self.dms.former.retain(|(place, _)| *place != channel);
            return Some(DmLeft { channel, who, rest: None });
        }
        info.participants = Some(rest);
        let rest = Some(info.clone());
        self.dms.former.push((channel, Participant { session: None, ..who.clone() }));
        let line = [&who.nickname[..], b" has left the conversation"].concat();
        self.write_line(channel, line.into(), now);
        Some(DmLeft { channel, who, rest })
    }

    fn forget_visitor(&mut self, session: SessionId, now: i64) -> Event {
        let is_gone = |who: &Participant| who.user.is_none() && who.session == Some(session);
        self.dms.invites.retain(|_, open| !is_gone(&open.initiator) && !is_gone(&open.target));
        let inside = self.conversations().filter_map(|(channel, inside)| {
            inside.iter().find(|who| is_gone(who)).map(|who| (channel.id, who.clone()))
        });
        let inside: Vec<_> = inside.collect();
        let left = inside.iter().filter_map(|(channel, who)| self.leave(*channel, who, now));
        Event::VisitorForgotten { left: left.collect() }
    }
}

/// A frame about direct messages, as far as it is compared.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Ready { channel: ChannelId, other: Option<UserId>, nickname: Vec<u8>, key: Option<PublicKey> },
    Pending { invite: InviteId, target: Option<UserId>, nickname: Vec<u8> },
    Request { invite: InviteId, from: Option<UserId>, nickname: Vec<u8>, status: u8 },
    Declined { invite: InviteId, by: Option<UserId>, nickname: Vec<u8> },
    Left { channel: ChannelId, who: Option<UserId>, nickname: Vec<u8> },
}

impl Told {
    pub fn read(message: &ServerMessage<'_>) -> Option<Self> {
        Some(match message {
            ServerMessage::DmReady(ready) => Self::Ready {
                channel: ready.channel_id,
                other: ready.other_user_id,
                nickname: ready.other_nickname.to_vec(),
                key: ready.encryption.0,
            },
            ServerMessage::DmPending(pending) => Self::Pending {
                invite: pending.dm_channel_id,
                target: pending.waiting_for_user_id,
                nickname: pending.waiting_for_nickname.to_vec(),
            },
            ServerMessage::DmRequest(request) => Self::Request {
                invite: request.dm_channel_id,
                from: request.from_user_id,
                nickname: request.from_nickname.to_vec(),
                status: request.encryption_status,
            },
            ServerMessage::DmDeclined(declined) => Self::Declined {
                invite: declined.dm_channel_id,
                by: declined.user_id,
                nickname: declined.nickname.to_vec(),
            },
            ServerMessage::DmParticipantLeft(left) => {
                Self::Left { channel: left.dm_channel_id, who: left.user_id, nickname: left.nickname.to_vec() }
            }
            _ => return None,
        })
    }

    pub fn is_leaving(&self) -> bool {
        matches!(self, Self::Left { .. })
    }

    fn ready(channel: ChannelId, other: &DmSide) -> Self {
        let (user, nickname) = (other.who.user, other.who.nickname.to_vec());
        Self::Ready { channel, other: user, nickname, key: other.key }
    }

    fn pending(invite: &Invite) -> Self {
        let Participant { user, nickname, .. } = &invite.target;
        Self::Pending { invite: invite.id, target: *user, nickname: nickname.to_vec() }
    }

    fn request(invite: &Invite) -> Self {
        let Participant { user, nickname, .. } = &invite.initiator;
        let status = invite.encryption.to_wire();
        Self::Request { invite: invite.id, from: *user, nickname: nickname.to_vec(), status }
    }

    fn left(channel: ChannelId, who: &Participant) -> Self {
        Self::Left { channel, who: who.user, nickname: who.nickname.to_vec() }
    }
}

fn is_side(session: &Session, who: &Participant) -> bool {
    match who.user {
        Some(user) => session.user() == Some(user),
        None => session.account.is_none() && who.session == Some(session.id),
    }
}

fn ready_for(session: &Session, dm: &Dm) -> Option<Told> {
    let [one, other] = &dm.sides;
    let across = [(one, other), (other, one)].into_iter().find(|(own, _)| is_side(session, &own.who));
    across.map(|(_, other)| Told::ready(dm.channel.id, other))
}

/// What whoever asked for an event is answered with, where that could also come unasked.
pub fn answer(event: &Event) -> Option<Told> {
    match event {
        Event::DmOpened { dm, .. } => Some(Told::ready(dm.channel.id, &dm.sides[1])),
        Event::DmInvited { invite, .. } => Some(Told::pending(invite)),
        _ => None,
    }
}

/// The answer that a conversation makes which was there before, and what follows it.
pub fn answer_found(found: &DmFound) -> (Told, Option<Told>) {
    let left = found.has_left.then(|| Told::left(found.channel, &found.other.who));
    (Told::ready(found.channel, &found.other), left)
}

fn found_told(found: &DmFound) -> impl Iterator<Item = Told> {
    let (ready, left) = answer_found(found);
    [ready].into_iter().chain(left)
}

/// What an event means for a session as it is at this moment (BEHAVIOUR.md 4.9). Whoever asked has its own answer.
pub fn owed(session: &Session, event: &Event, is_asker: bool) -> Vec<Told> {
    match event {
        Event::DmOpened { dm, is_new: true } if !is_asker => ready_for(session, dm).into_iter().collect(),
        Event::DmInvited { invite, is_told } if !is_asker => {
            let pending = is_side(session, &invite.initiator).then(|| Told::pending(invite));
            let request = (*is_told && is_side(session, &invite.target)).then(|| Told::request(invite));
            pending.into_iter().chain(request).collect()
        }
        Event::DmDeclined { invite } if is_side(session, &invite.initiator) => {
            let Participant { user, nickname, .. } = &invite.target;
            vec![Told::Declined { invite: invite.id, by: *user, nickname: nickname.to_vec() }]
        }
        Event::DmLeft(left) => left_for(session, left).into_iter().collect(),
        Event::VisitorForgotten { left } => left.iter().filter_map(|left| left_for(session, left)).collect(),
        Event::KeyProvided { opened, others, .. } if is_asker => {
            let held_back = others.iter().filter(|_| !session.has_provided_key()).flat_map(found_told);
            held_back.chain(opened.iter().filter_map(|dm| ready_for(session, dm))).collect()
        }
        Event::KeyProvided { own, opened, others, is_changed } => {
            let hears = |found: &&DmFound| *is_changed && !found.has_left && is_side(session, &found.other.who);
            let changed = others.iter().filter(hears).map(|found| Told::ready(found.channel, own));
            opened.iter().filter_map(|dm| ready_for(session, dm)).chain(changed).collect()
        }
        _ => Vec::new(),
    }
}

fn left_for(session: &Session, left: &DmLeft) -> Option<Told> {
    let rest = left.rest.as_ref()?.participants.as_ref()?;
    rest.iter().any(|who| is_side(session, who)).then(|| Told::left(left.channel, &left.who))
}

/// What a session that signed in is owed of what was found.
pub fn owed_at_sign_in(session: &Session, overview: &DmOverview) -> Vec<Told> {
    if session.user() != Some(overview.user) {
        return Vec::new();
    }
    let can_read = |found: &&DmFound| session.has_provided_key() || found.other.key.is_none();
    let found = overview.found.iter().filter(can_read).flat_map(found_told);
    let requests = overview.requests.iter().map(Told::request);
    found.chain(requests).chain(overview.pending.iter().map(Told::pending)).collect()
}
