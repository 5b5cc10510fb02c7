//! Presence, coalesced per tick (BEHAVIOUR.md 3.2): changes that cancel within a tick are dropped, what a client has seen
//! after it is right. The frames of a tick are encoded once and shared, so a thousand people who arrive together cost
//! each of them one write a tick.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::clients::Held;
use super::outbox::{Broadcast, Class, Encoder, Segment};
use super::roster::{Person, Repeat};
use super::session::{PresenceGate, SessionKey};
use super::topics::{Listener, Spelling};
use super::{Clients, Shard};
use crate::ids::{ChannelId, SessionId};
use crate::wire::server::{ChannelPresence, ServerPresence};

/// Longest time a change waits, in milliseconds.
pub const TICK_MS: u64 = 50;

/// Changes since the last tick.
#[derive(Debug, Default)]
pub struct Pending {
    sessions: HashMap<SessionId, SessionChange, RandomState>,
    places: HashMap<(ChannelId, SessionId), PlaceChange, RandomState>,
    /// Sessions of this shard that are told more than the changes.
    opening: Vec<Held>,
    due: Option<u64>,
}

#[derive(Debug)]
struct SessionChange {
    /// As everybody saw it at the last tick.
    before: Option<Person>,
    repeat: bool,
}

#[derive(Debug)]
struct PlaceChange {
    was_there: bool,
    /// As it last was there, or is.
    person: Person,
    /// The session's place on this shard, if it is one of this shard's: its own "left" is never dropped.
    own: Option<SessionKey>,
    repeat: bool,
}

impl Pending {
    /// When the next tick is due, in monotonic milliseconds; `None` while nothing changed.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    fn arm(&mut self, now: u64) {
        self.due.get_or_insert(now + TICK_MS);
    }
}

impl Shard {
    /// Takes over a session's new appearance: into the roster, and to everybody at the next tick.
    pub(super) fn note_person(
        &mut self,
        session: SessionId,
        own: Option<SessionKey>,
        person: Option<Person>,
        repeat: Repeat,
    ) {
        let before = self.roster.set(session, person.clone());
        if before == person && repeat == Repeat::default() {
            return;
        }
        let (was_in, is_in) = (before.as_ref().and_then(|p| p.joined), person.as_ref().and_then(|p| p.joined));
        let changed_place = was_in != is_in;
        if let (Some(channel), Some(then)) = (was_in.filter(|_| changed_place), &before) {
            self.note_place(channel, session, own, then, true, false);
        }
        if let (Some(channel), Some(now)) = (is_in, &person)
            && (changed_place || repeat.channel)
        {
            self.note_place(channel, session, own, now, !changed_place, repeat.channel);
        }
        let looks = |person: &Option<Person>| person.as_ref().map(|p| (p.nickname.clone(), p.user, p.flags));
        if looks(&before) != looks(&person) || repeat.server {
            let change = self.pending.sessions.entry(session).or_insert(SessionChange { before, repeat: false });
            change.repeat |= repeat.server;
        }
        self.pending.arm(self.now.mono);
    }

    fn note_place(
        &mut self,
        channel: ChannelId,
        session: SessionId,
        own: Option<SessionKey>,
        person: &Person,
        was_there: bool,
        repeat: bool,
    ) {
        let change = self.pending.places.entry((channel, session));
        let change = change.or_insert_with(|| PlaceChange { was_there, person: person.clone(), own, repeat: false });
        change.person.clone_from(person);
        change.own = own;
        change.repeat |= repeat;
    }

    /// The first request was handled, or there is a reason to send the whole roster.
    pub(super) fn open_presence(&mut self, key: SessionKey, gate: PresenceGate) {
        let Some(session) = self.clients.get_mut(key) else { return };
        let waits_already = matches!(session.presence, PresenceGate::Snapshot | PresenceGate::Opening { .. });
        if session.presence != PresenceGate::Snapshot {
            session.presence = gate;
        }
        if !waits_already {
            self.pending.opening.push((key, session.id));
        }
        self.pending.arm(self.now.mono);
    }

    /// Tells everybody on this shard what changed since the last tick.
    pub(super) fn presence_tick(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let changes = self.server_changes(&pending);
        let opening: Vec<_> = pending.opening.iter().filter_map(|held| self.clients.still(*held)).collect();
        self.greet(&opening);
        let is_gone = |((_, session), _): &(&(ChannelId, SessionId), &PlaceChange)| self.roster.get(*session).is_none();
        let (left, moved): (Vec<_>, Vec<_>) = pending.places.iter().partition(is_gone);
        // Who is gone has left its channel first (BEHAVIOUR.md 1.6), who is new is known before it joins one.
        self.tell_places(left);
        self.tell_everybody(&changes);
        for key in &opening {
            if let Some(session) = self.clients.get_mut(*key) {
                session.presence = PresenceGate::Open;
            }
        }
        self.tell_places(moved);
        if self.ask_for_dms() {
            self.pending.arm(self.now.mono);
        }
    }

    fn tell_places(&mut self, changes: Vec<(&(ChannelId, SessionId), &PlaceChange)>) {
        for ((channel, session), change) in changes {
            self.tell_place(*channel, *session, change);
        }
    }

    /// Whoever is greeted in this tick learns by that who is here, but may have heard of those who left before.
    fn tell_everybody(&mut self, changes: &Changes) {
        if changes.arrived.frames == 0 && changes.gone.frames == 0 {
            return;
        }
        for key in self.clients.keys().collect::<Vec<_>>() {
            let gate = self.clients.get(key).map(|session| session.presence);
            if gate == Some(PresenceGate::Open) {
                self.clients.push_run(key, &changes.arrived);
            }
            if gate.is_some_and(PresenceGate::hears_of_others) {
                self.clients.push_run(key, &changes.gone);
            }
        }
    }

    fn server_changes(&mut self, pending: &Pending) -> Changes {
        let mut changes = Changes::default();
        let encoder = &mut self.clients.encoder;
        for (session, change) in &pending.sessions {
            let after = self.roster.get(*session);
            let same = |before: &Person, after: &Person| {
                (&before.nickname, before.user, before.flags) == (&after.nickname, after.user, after.flags)
            };
            match (&change.before, after) {
                (None, None) => {}
                (Some(before), Some(after)) if same(before, after) && !change.repeat => {}
                (_, Some(after)) => changes.arrived.add(encoder, *session, after, true),
                (Some(before), None) => changes.gone.add(encoder, *session, before, false),
            }
        }
        changes
    }

    /// Newcomers get the whole roster, themselves included; sessions that were held back what changed meanwhile.
    fn greet(&mut self, opening: &[SessionKey]) {
        let mut everybody: Option<Run> = None;
        for key in opening {
            let Some(session) = self.clients.get(*key) else { continue };
            match session.presence {
                PresenceGate::Snapshot => {
                    let everybody = everybody.get_or_insert_with(|| {
                        let mut run = Run::default();
                        self.roster
                            .people()
                            .for_each(|(id, person)| run.add(&mut self.clients.encoder, id, person, true));
                        run
                    });
                    self.clients.push_run(*key, everybody);
                }
                PresenceGate::Opening { since } => {
                    let mut run = Run::default();
                    let changed = self.roster.changed_since(since);
                    changed.for_each(|(id, person)| run.add(&mut self.clients.encoder, id, person, true));
                    self.clients.push_run(*key, &run);
                }
                PresenceGate::SigningIn | PresenceGate::Held { .. } | PresenceGate::Open => {}
            }
        }
    }

    fn tell_place(&mut self, channel: ChannelId, session: SessionId, change: &PlaceChange) {
        let current = self.roster.get(session).filter(|person| person.joined == Some(channel));
        let is_there = current.is_some();
        let person = current.unwrap_or(&change.person).clone();
        let cancelled = change.was_there == is_there && !change.repeat;
        let parent = self.channels.get(channel).and_then(|info| info.parent);
        let [mut own, mut pair] = [Spelling::Own, Spelling::Pair].map(|spelling| {
            let (channel_id, subchannel_id) = spell(channel, parent, spelling);
            Broadcast::new(ChannelPresence {
                channel_id,
                subchannel_id,
                session_id: session,
                nickname: &person.nickname,
                is_registered: person.user.is_some(),
                user_id: person.user,
                user_flags: person.flags,
                joined: is_there,
            })
        });
        let mut told_own = false;
        if !cancelled {
            let visit = self.clients.next_visit();
            let audience = self.topics.joined(channel).iter().chain(self.topics.channel(channel));
            for Listener { key, spelling } in audience {
                let frame = if *spelling == Spelling::Pair { &mut pair } else { &mut own };
                if self.clients.visit(*key, visit) && self.clients.hears_presence(*key) {
                    told_own |= change.own == Some(*key);
                    self.clients.send(*key, frame);
                }
            }
        }
        if let Some(key) = change.own.filter(|_| !is_there && !told_own)
            && self.clients.get(key).is_some_and(|client| client.id == session)
        {
            let spelling = self.clients.get(key).map_or(Spelling::Own, |client| client.spelling(channel));
            self.clients.send(key, if spelling == Spelling::Pair { &mut pair } else { &mut own });
        }
    }
}

impl Clients {
    fn push_run(&mut self, key: SessionKey, run: &Run) {
        self.metrics.sent_many(ServerPresence::CODE, run.frames);
        run.segments.iter().for_each(|segment| self.push(key, segment));
    }

    fn hears_presence(&self, key: SessionKey) -> bool {
        self.get(key).is_some_and(|session| session.presence.hears_of_others())
    }
}

/// The ids that name a place in a spelling (BEHAVIOUR.md 2.11).
#[must_use]
pub fn spell(channel: ChannelId, parent: Option<ChannelId>, spelling: Spelling) -> (ChannelId, Option<ChannelId>) {
    match (spelling, parent) {
        (Spelling::Pair, Some(parent)) => (parent, Some(channel)),
        _ => (channel, None),
    }
}

/// What a tick tells of the sessions.
#[derive(Debug, Default)]
struct Changes {
    arrived: Run,
    gone: Run,
}

/// SERVER_PRESENCE frames back to back. They are too small to be compressed, so one class serves everybody.
#[derive(Debug, Default)]
struct Run {
    segments: Vec<Segment>,
    frames: u64,
}

impl Run {
    fn add(&mut self, encoder: &mut Encoder, session: SessionId, person: &Person, online: bool) {
        let frame = ServerPresence {
            session_id: session,
            nickname: &person.nickname,
            is_registered: person.user.is_some(),
            user_id: person.user,
            user_flags: person.flags,
            online,
        };
        // A stored nickname longer than a frame field cannot be shown; its owner stays invisible.
        let Ok(segment) = encoder.encode(Class::Plain, &frame.into()) else { return };
        self.frames += 1;
        if !self.segments.last_mut().is_some_and(|last| last.extend(&segment)) {
            self.segments.push(segment);
        }
    }
}
