//! The scheduler: shards, store and clients in one thread, and chance decides who acts next.
//!
//! What the driver of a shard does with sockets ([`superchat::net::tcp`]) is done here with [`Socket`]s: events are applied
//! before bytes are read, a turn ends by telling the other shards and then offering every session its frames. Between any
//! two of those steps another shard, the writer or a client may act. Nothing here depends on the order of a hash map, so a
//! seed is a run.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use superchat::ids::{ChannelId, SessionId, UserId};
use superchat::limits::POSTS_IN_FLIGHT_MAX;
use superchat::metrics::{FanoutTally, Label as _, Metrics};
use superchat::net::{CloseReason, Gate};
use superchat::passwords::{DeliverHash, HashJob, HashOutcome, Passwords};
use superchat::shard::presence::TICK_MS;
use superchat::shard::session::{Session, SessionKey};
use superchat::shard::{Bus, ChatSettings, Departed, Now, Parts, Rates, Shard, ShardEvent};
use superchat::store::{
    Act, Admin, Administer, Answer, Audience, Busy, ChannelType, Command, Deliver, Event, Message, Name, Outcome,
    Query, Refusal, Store, Subject, Submission, Ticket, Viewer,
};

use crate::facts::{Facts, Milestone};
use crate::link::{Link, Pace, Socket};
use crate::random::Random;
use crate::request::{ABSENT, Author, NAMES, Request, SECRET};
use crate::rule::{Check, Rule, Violation, ensure};
use crate::sabotage::Sabotage;
use crate::store::{Desk, Memory, seed_channel};
use crate::view::{Owed, Seen};
use crate::{chat, dms};

/// Channels, and as many threads, that a session may subscribe to.
pub const SUBSCRIPTIONS_MAX: usize = 4;

/// The account whose name is listed as an admin's.
pub const ADMIN: UserId = UserId(1);

/// The channel that takes no replies.
pub const CHAT: ChannelId = ChannelId(2);

/// Bytes that may lie unhandled for one session: what the shard allows, and one read on top.
const INBOX_BYTES_MAX: usize = 64 * 1024 + READ_BYTES_MAX;

/// Most that is read from a client at once.
const READ_BYTES_MAX: usize = 4096;

/// Posts of a flood: more than may be under way at once.
const FLOOD_POSTS: usize = POSTS_IN_FLIGHT_MAX + 44;

/// Readers that look things up side by side.
const READERS: usize = 3;

/// Turns within which everything must come to rest once nobody acts any more.
const REST_ROUNDS: usize = 200;

/// Lines of a failed run that are shown, and how much of each.
const LOG_LINES: usize = 80;
const LINE_BYTES_MAX: usize = 160;

/// What is fixed for one run.
#[derive(Debug)]
struct Plan {
    shards: usize,
    links_max: usize,
    steps: usize,
    outbox_bytes_max: usize,
    idle_timeout_ms: Option<u64>,
    idle_notice: bool,
    filler_bytes_max: usize,
    socket_bytes_max: usize,
    /// A long batch is flushed whenever this much was encoded.
    flush_bytes: usize,
    /// Of a hundred commits, and of a hundred commands in the others.
    failing_percent: usize,
    full_percent: usize,
    slow_percent: usize,
    stalled_percent: usize,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        // As small as an operator may configure it, or so small that a few frames fill it.
        let is_heavy = random.percent(15);
        Self {
            shards: random.between(1, 3),
            links_max: random.between(2, 8),
            steps: random.between(300, 6000),
            outbox_bytes_max: if is_heavy { 64 * 1024 } else { random.between(500, 4000) },
            idle_timeout_ms: random.percent(30).then_some(1500),
            idle_notice: random.percent(30),
            filler_bytes_max: if is_heavy { 4000 } else { random.between(0, 700) },
            socket_bytes_max: if is_heavy { 20_000 } else { random.between(50, 2000) },
            flush_bytes: random.between(200, 20_000),
            failing_percent: if random.percent(30) { random.between(1, 20) } else { 0 },
            full_percent: if random.percent(30) { random.between(1, 10) } else { 0 },
            slow_percent: random.between(0, 50),
            stalled_percent: random.between(0, 30),
        }
    }
}

/// A shard with what its driver keeps beside it.
struct Host {
    shard: Shard,
    sessions: BTreeMap<SessionKey, SessionId>,
    /// Outcomes applied so far, and those of them that were before the last flush.
    applied: usize,
    applied_at_flush: usize,
    /// It has begun to say goodbye, and tells nobody any more of others who go.
    is_stopping: bool,
}

pub struct World {
    random: Random,
    plan: Plan,
    sabotage: Option<Sabotage>,
    now: Now,
    desk: Arc<Desk>,
    memory: Memory,
    /// What a reader sees that lags behind, for [`Sabotage::StaleAnswers`].
    stale: Memory,
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    hosts: Vec<Host>,
    links: BTreeMap<SessionId, Link>,
    facts: Facts,
    /// Committed, and not handed to the shards yet: one writer delivers before it commits again.
    undelivered: Option<Vec<Outcome>>,
    answers: Vec<(Ticket, Answer)>,
    sessions: u64,
    floods: usize,
    is_stopping: bool,
    /// Faults and bad luck are over.
    is_calm: bool,
    digest: u64,
    log: Option<VecDeque<String>>,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Connect,
    Ask,
    Flood,
    Feed,
    Drain,
    Writable,
    HangUp,
    Reset,
    Turn,
    Commit,
    Deliver,
    LookUp,
    Answer,
    Wait,
    DropChannel,
    Ban,
    Unban,
}

const ACTIONS: &[(usize, Action)] = &[
    (15, Action::Connect),
    (110, Action::Ask),
    (1, Action::Flood),
    (200, Action::Feed),
    (60, Action::Drain),
    (60, Action::Writable),
    (3, Action::HangUp),
    (2, Action::Reset),
    (180, Action::Turn),
    (80, Action::Commit),
    (100, Action::Deliver),
    (110, Action::LookUp),
    (110, Action::Answer),
    (60, Action::Wait),
    (1, Action::DropChannel),
    (2, Action::Ban),
    (1, Action::Unban),
];

/// Verifies at once: passwords are not what is tried here.
struct InstantPasswords(Arc<Bus>);

impl Passwords for InstantPasswords {
    fn submit(&self, ticket: Ticket, job: HashJob) -> Result<(), Busy> {
        let outcome = match job {
            HashJob::Hash { secret } => HashOutcome::Hashed(hash(&secret)),
            HashJob::Verify { secret, stored } => HashOutcome::Verified(stored == Some(hash(&secret))),
        };
        self.0.hashed(ticket, outcome);
        Ok(())
    }
}

fn hash(secret: &[u8]) -> Box<str> {
    format!("hash of {}", String::from_utf8_lossy(secret)).into()
}

impl World {
    pub fn new(seed: u64, sabotage: Option<Sabotage>, is_logged: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::new(&mut random);
        let (memory, facts) = furnish();
        let desk = Arc::new(Desk::default());
        let bus = Arc::new(Bus::new(plan.shards));
        let metrics = Metrics::new(chat::metrics_options(plan.shards));
        let settings = Arc::new(settings(&plan, sabotage));
        let rates = Arc::new(Rates::new(&settings));
        let now = Now { mono: 1000, mono_micros: 1_000_000, wall: 1_790_000_000_000 };
        let parts = |id| Parts {
            id,
            settings: Arc::clone(&settings),
            channels: memory.channels.values().cloned().collect(),
            store: Arc::clone(&desk) as Arc<dyn Store>,
            passwords: Arc::new(InstantPasswords(Arc::clone(&bus))),
            bus: Arc::clone(&bus),
            rates: Arc::clone(&rates),
            registry: superchat::directory::Registry::new().0,
            metrics: Arc::clone(&metrics),
            stopwatch: || 0,
            now,
        };
        let host = |id| Host {
            shard: Shard::new(parts(id)),
            sessions: BTreeMap::new(),
            applied: 0,
            applied_at_flush: 0,
            is_stopping: false,
        };
        Self {
            hosts: (0..plan.shards).map(host).collect(),
            random,
            plan,
            sabotage,
            now,
            desk,
            stale: memory.clone(),
            memory,
            bus,
            gate: Gate::new(None, None, Vec::new()),
            metrics,
            links: BTreeMap::new(),
            facts,
            undelivered: None,
            answers: Vec::new(),
            sessions: 0,
            floods: 0,
            is_stopping: false,
            is_calm: false,
            digest: 0,
            log: is_logged.then(VecDeque::new),
        }
    }

    /// The whole run; returns a number that two runs of one seed share.
    pub fn run(&mut self) -> Result<u64, Violation> {
        self.note(|world| format!("{:?}", world.plan));
        for _ in 0..self.plan.steps {
            let is_full = self.random.percent(self.plan.full_percent);
            self.facts.was_full |= is_full;
            self.desk.set_full(is_full);
            let action = self.random.weighted(ACTIONS);
            self.perform(action)?;
        }
        self.calm_down();
        self.come_to_rest()?;
        self.check_rest()?;
        self.look_around()?;
        self.check_durable()?;
        self.end()?;
        Ok(self.digest)
    }

    /// What the run came by.
    pub fn reached(&self) -> &BTreeMap<Milestone, u64> {
        &self.facts.reached
    }

    /// The last lines of the run.
    pub fn take_log(&mut self) -> Vec<String> {
        self.note(|_| "end".to_owned());
        self.log.take().into_iter().flatten().collect()
    }

    fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.log.is_none() {
            return;
        }
        let frames = self.facts.frames_log.replace(Vec::new()).unwrap_or_default();
        let lines: Vec<_> = frames.into_iter().chain([line(self)]).collect();
        let log = self.log.get_or_insert_default();
        for mut line in lines {
            line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
            log.push_back(format!("{:>6} ms  {line}", self.now.mono));
        }
        log.drain(..log.len().saturating_sub(LOG_LINES));
    }

    fn stir(&mut self, amount: usize) {
        self.digest = (self.digest ^ amount as u64).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
    }

    fn perform(&mut self, action: Action) -> Check {
        self.stir(action as usize);
        match action {
            Action::Connect => self.connect(),
            Action::Ask => self.ask(),
            Action::Flood => self.flood(),
            Action::Feed => self.on_some_link(Self::feed),
            Action::Drain => self.drain(),
            Action::Writable => self.on_some_link(Self::writable),
            Action::HangUp => self.hang_up(false),
            Action::Reset => self.hang_up(true),
            Action::Turn => {
                let host = self.random.below(self.hosts.len());
                self.take_turn(host)
            }
            Action::Commit => self.commit(),
            Action::Deliver => self.deliver(),
            Action::LookUp => self.look_up(),
            Action::Answer => self.answer(),
            Action::Wait => self.wait(),
            Action::DropChannel => self.drop_channel(),
            Action::Ban => self.ban(),
            Action::Unban => self.unban(),
        }
    }

    fn some_link(&mut self) -> Option<SessionId> {
        if self.links.is_empty() {
            return None;
        }
        let place = self.random.below(self.links.len());
        self.links.keys().nth(place).copied()
    }

    fn on_some_link(&mut self, act: fn(&mut Self, SessionId) -> Check) -> Check {
        self.some_link().map_or(Ok(()), |session| act(self, session))
    }
}

/// Channels and accounts that are there from the start.
fn furnish() -> (Memory, Facts) {
    let (mut memory, mut facts) = (Memory::default(), Facts::default());
    let rooms = [("forum", ChannelType::Forum, None), ("chat", ChannelType::Chat, None)];
    let inner = [("inner", ChannelType::Forum, Some(ChannelId(1))), ("doomed", ChannelType::Forum, None)];
    for (name, channel_type, parent) in rooms.into_iter().chain(inner) {
        let channel = memory.insert_channel(&seed_channel(name, channel_type, parent));
        facts.channels.insert(channel.id, parent);
        facts.announced.push(channel.id);
    }
    for (name, flags) in [(NAMES[0], 1), (NAMES[1], 0), (ABSENT, 0)] {
        let name = Name::from(name.as_bytes());
        memory.register(&name, &hash(SECRET), flags).unwrap();
        facts.accounts.insert(name);
    }
    (memory, facts)
}

fn settings(plan: &Plan, sabotage: Option<Sabotage>) -> ChatSettings {
    ChatSettings {
        thread_subscriptions_max: SUBSCRIPTIONS_MAX,
        channel_subscriptions_max: SUBSCRIPTIONS_MAX,
        idle_timeout_ms: plan.idle_timeout_ms,
        idle_notice: plan.idle_notice,
        outbox_bytes_max: match sabotage {
            Some(Sabotage::EndlessPatience) => usize::MAX,
            _ => plan.outbox_bytes_max,
        },
        admin_users: vec![NAMES[0].to_owned()],
        ..chat::unlimited()
    }
}

// Clients.

impl World {
    fn connect(&mut self) -> Check {
        if self.links.len() >= self.plan.links_max {
            return Ok(());
        }
        let host = self.random.below(self.hosts.len());
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let address = IpAddr::from([192, 0, 2, if self.random.percent(50) { 1 } else { 2 }]);
        let admission = self.gate.admit(address).unwrap();
        // As the driver does: events first, and a place is given anew only when its last holder was let go.
        self.apply_events(host)?;
        self.finish_turn(host)?;
        let link = self.new_link(session, host, admission);
        self.note(|_| format!("connect {session} at shard {host}, {:?}, {} bytes", link.socket.pace, link.socket.room));
        self.hosts[host].sessions.insert(link.key, session);
        self.links.insert(session, link);
        self.flush_one(session)?;
        self.observe(session)
    }

    fn new_link(&mut self, session: SessionId, host: usize, admission: superchat::net::Admission) -> Link {
        let random = &mut self.random;
        let pace = match random.below(100) {
            roll if roll < self.plan.stalled_percent => Pace::Stalled,
            roll if roll < self.plan.stalled_percent + self.plan.slow_percent => Pace::Slow,
            _ => Pace::Eager,
        };
        let socket = Socket::new(pace, 50 + random.below(self.plan.socket_bytes_max));
        let version = if random.percent(50) { 2 } else { 1 };
        let key = self.hosts[host].shard.connect(session, admission, None);
        let mut link = Link::new(session, host, key, socket, version, Author::new(self.plan.filler_bytes_max));
        link.last_frame_at = self.now.mono;
        link
    }

    fn ask(&mut self) -> Check {
        let Some(session) = self.some_link() else { return Ok(()) };
        for _ in 0..self.random.between(1, 3) {
            let link = self.links.get_mut(&session).unwrap();
            if !link.talks() || link.view.outstanding.len() > 30 {
                return Ok(());
            }
            let request = link.ask_something(&mut self.random, &self.facts);
            self.note(|_| format!("{session} asks {request:?}"));
        }
        Ok(())
    }

    /// More posts at once than may be under way.
    fn flood(&mut self) -> Check {
        let Some(session) = self.some_link() else { return Ok(()) };
        let place = self.facts.place(ChannelId(1), false);
        let link = self.links.get_mut(&session).unwrap();
        if !link.talks() || !link.view.outstanding.is_empty() || link.view.nickname.is_none() {
            return Ok(());
        }
        self.floods += 1;
        for number in 0..FLOOD_POSTS {
            let content = format!("flood-{}-{number}", self.floods).into();
            link.ask(&Request::Post { place, parent: None, content });
        }
        self.note(|_| format!("{session} floods"));
        Ok(())
    }

    fn drain(&mut self) -> Check {
        for link in self.links.values_mut() {
            link.socket.drain(&mut self.random);
        }
        Ok(())
    }

    fn hang_up(&mut self, is_reset: bool) -> Check {
        let Some(session) = self.some_link() else { return Ok(()) };
        let link = self.links.get_mut(&session).unwrap();
        if is_reset {
            link.socket.is_broken = true;
        } else {
            link.has_left = true;
        }
        self.note(|_| format!("{session} hangs up, reset: {is_reset}"));
        Ok(())
    }
}

// What the driver of a shard does.

impl World {
    fn live(&self, session: SessionId) -> Option<&Session> {
        let link = self.links.get(&session)?;
        live(&self.hosts[link.host].shard, link)
    }

    /// The socket has something to read, and the session wants it.
    fn feed(&mut self, session: SessionId) -> Check {
        let host = self.links[&session].host;
        self.apply_events(host)?;
        if self.live(session).is_none() {
            return Ok(());
        }
        let count = 1 + self.random.below(READ_BYTES_MAX);
        let link = self.links.get_mut(&session).unwrap();
        let shard = &mut self.hosts[host].shard;
        if link.socket.is_broken {
            shard.close(link.key, CloseReason::IoError);
            return Ok(());
        }
        if !shard.wants_input(link.key) {
            return Ok(());
        }
        if link.upstream.is_empty() {
            if link.has_left {
                shard.close(link.key, CloseReason::Client);
            }
            return Ok(());
        }
        let bytes = link.feed(count, self.now.mono);
        shard.receive(link.key, &bytes);
        self.stir(bytes.len());
        self.note(|_| format!("shard {host} reads {} bytes of {session}", bytes.len()));
        let waiting = self.live(session).map_or(0, |live| live.inbox.len());
        ensure!(waiting <= INBOX_BYTES_MAX, Rule::SlowReader, "{waiting} bytes of {session} lie unhandled");
        Ok(())
    }

    fn take_turn(&mut self, host: usize) -> Check {
        self.apply_events(host)?;
        self.hosts[host].shard.tick();
        self.check_idle(host)?;
        self.finish_turn(host)
    }

    fn apply_events(&mut self, host: usize) -> Check {
        self.hosts[host].shard.now = self.now;
        let mut events = VecDeque::new();
        self.bus.take(host, &mut events);
        for event in events {
            match event {
                ShardEvent::Committed(commit) => {
                    for (outcome, tally) in commit.iter() {
                        self.apply_outcome(host, outcome, tally)?;
                    }
                }
                ShardEvent::Peers(_) if self.strikes(Sabotage::LostPeers) => {}
                ShardEvent::Answered { token, answer: Answer::Dms(overview) } => {
                    self.owe_to(host, token, |session| {
                        dms::owed_at_sign_in(session, &overview).into_iter().map(Owed::Dm).collect()
                    });
                    self.hosts[host].shard.apply(ShardEvent::Answered { token, answer: Answer::Dms(overview) });
                }
                ShardEvent::Answered { token, answer: Answer::Dm { found: Some(found), has_key } } => {
                    let (ready, left) = dms::answer_found(&found);
                    self.owe_to(host, token, |_| [Owed::Answer(ready)].into_iter().chain(left.map(Owed::Dm)).collect());
                    let answer = Answer::Dm { found: Some(found), has_key };
                    self.hosts[host].shard.apply(ShardEvent::Answered { token, answer });
                }
                event => {
                    self.hosts[host].is_stopping |= matches!(event, ShardEvent::Stop { .. });
                    self.hosts[host].shard.apply(event);
                }
            }
        }
        Ok(())
    }

    fn apply_outcome(&mut self, host: usize, outcome: &Outcome, tally: Option<&Arc<FanoutTally>>) -> Check {
        self.owe(host, outcome)?;
        let is_lost = self.strikes(Sabotage::LostOutcomes);
        let state = &mut self.hosts[host];
        if !is_lost {
            state.shard.outcome(outcome, tally);
        }
        state.applied += 1;
        if state.shard.fresh_bytes() > self.plan.flush_bytes {
            self.facts.reach(Milestone::FlushWithinBatch);
            self.finish_turn(host)?;
        }
        Ok(())
    }

    /// Whoever listens at this moment is owed the broadcast, and listens to no conversation of others.
    fn owe(&mut self, host: usize, outcome: &Outcome) -> Check {
        let Ok(event) = &outcome.result else { return Ok(()) };
        let phantom = self.strikes(Sabotage::PhantomFrames);
        let asker = outcome.ticket.filter(|ticket| ticket.shard == host).map(|ticket| SessionId(ticket.token >> 32));
        let Self { hosts, links, facts, .. } = self;
        let Host { shard, applied, is_stopping, .. } = &hosts[host];
        for link in links.values_mut().filter(|link| link.host == host) {
            let Some(session) = live(shard, link) else { continue };
            if let Event::Posted(message) = event
                && session.channels().contains(&message.channel)
                && message.audience != Audience::Everybody
            {
                let is_for_it = message.audience.includes(session.viewer());
                facts.reach(if is_for_it { Milestone::HiddenHeard } else { Milestone::HiddenMissed });
            }
            let owed = owed(session, event, facts);
            let place = owed.as_ref().and(place_of(event)).filter(|place| facts.is_dm(*place));
            let is_foreign = place.is_some_and(|place| !facts.may_be_in(place, session.viewer(), *applied, *applied));
            ensure!(!is_foreign, Rule::NoLeak, "{} listens to the foreign {place:?}", session.id);
            let is_asker = asker == Some(session.id);
            let about_dms = dms::owed(session, event, is_asker).into_iter();
            let about_dms = about_dms.filter(|told| is_asker || !is_stopping || !told.is_leaving()).map(Owed::Dm);
            link.view.owed.extend(dms::answer(event).filter(|_| is_asker).map(Owed::Answer));
            link.view.owed.extend(owed.clone());
            link.view.owed.extend(owed.filter(|_| phantom));
            link.view.owed.extend(about_dms);
        }
        Ok(())
    }

    /// One session is owed what an answer of the store leads to.
    fn owe_to(&mut self, host: usize, token: u64, owed: impl FnOnce(&Session) -> Vec<Owed>) {
        let Self { hosts, links, .. } = self;
        let Some(link) = links.get_mut(&SessionId(token >> 32)).filter(|link| link.host == host) else { return };
        let Some(session) = live(&hosts[host].shard, link) else { return };
        link.view.owed.extend(owed(session));
    }

    /// Other shards hear first, then every session that has something to read gets one write.
    fn finish_turn(&mut self, host: usize) -> Check {
        self.eavesdrop(host);
        let delayed = if self.strikes(Sabotage::DelayedReaders) { self.some_link() } else { None };
        let Self { hosts, links, .. } = self;
        let Host { shard, sessions, .. } = &mut hosts[host];
        shard.end_turn();
        shard.flush(
            |key, slices| match sessions.get(&key).and_then(|session| links.get_mut(session)) {
                Some(link) if Some(link.view.session) == delayed => Err(io::ErrorKind::WouldBlock.into()),
                Some(link) => link.socket.write(slices),
                None => Err(io::ErrorKind::NotConnected.into()),
            },
            |_| {},
        );
        shard.end_turn();
        let departed = shard.take_departed();
        for session in sessions.values().copied().collect::<Vec<_>>() {
            self.observe(session)?;
        }
        for departed in departed {
            self.see_off(host, departed)?;
        }
        let state = &mut self.hosts[host];
        state.applied_at_flush = state.applied;
        for key in state.shard.take_resumable() {
            state.shard.pump(key);
        }
        Ok(())
    }

    /// A socket takes bytes again.
    fn writable(&mut self, session: SessionId) -> Check {
        if self.live(session).is_none() || self.links[&session].rest.is_empty() {
            return Ok(());
        }
        // What was queued since the last turn leaves along with what was refused then.
        self.finish_turn(self.links[&session].host)?;
        if self.live(session).is_none() {
            return Ok(());
        }
        self.flush_one(session)?;
        self.observe(session)
    }

    fn flush_one(&mut self, session: SessionId) -> Check {
        let link = self.links.get_mut(&session).unwrap();
        let shard = &mut self.hosts[link.host].shard;
        shard.flush_one(link.key, |_, slices| link.socket.write(slices), |_| {});
        Ok(())
    }

    /// Compares what left, and what waits, with what had to.
    fn observe(&mut self, session: SessionId) -> Check {
        let Self { hosts, links, facts, plan, .. } = self;
        let link = links.get_mut(&session).unwrap();
        let Host { shard, applied, applied_at_flush, .. } = &mut hosts[link.host];
        if live(shard, link).is_none() {
            return Ok(());
        }
        let rest = waiting(shard, link.key);
        let new = link.observe(rest, plan.outbox_bytes_max, facts, *applied_at_flush)?;
        let is_prompt = new == 0 || link.rest.is_empty() || link.socket.room == 0;
        ensure!(is_prompt, Rule::Prompt, "{} bytes wait for {session} although it reads", link.rest.len());
        if let Some(live) = live(shard, link) {
            link.view.end_turn(live, facts, *applied)?;
        }
        if !link.rest.is_empty() {
            facts.reach(Milestone::Spill);
        }
        self.stir(new);
        if new > 0 {
            self.note(|world| format!("{session} is sent {new} bytes, {} wait", world.links[&session].rest.len()));
        }
        Ok(())
    }

    /// Lets go of an ended session, after what it should still be told.
    fn see_off(&mut self, host: usize, departed: Departed) -> Check {
        let Departed { key, reason, mut outbox } = departed;
        let session = self.hosts[host].sessions.remove(&key);
        let Some(mut link) = session.and_then(|session| self.links.remove(&session)) else {
            return Err(Violation {
                rule: Rule::Ending,
                what: format!("nobody sat at {key:?}, which ended: {reason:?}"),
            });
        };
        let session = link.view.session;
        self.note(|_| format!("{session} ends: {reason:?}"));
        self.check_reason(&link, reason)?;
        self.facts.reach(Milestone::Ended(reason.label()));
        // Behind a full queue there is no room for last words either.
        let is_deaf = link.rest.len() > self.plan.outbox_bytes_max;
        if is_deaf || matches!(reason, CloseReason::SlowConsumer | CloseReason::IoError) {
            return Ok(());
        }
        let mut last = Vec::new();
        outbox
            .flush(|slices| {
                slices.iter().for_each(|slice| last.extend_from_slice(slice));
                Ok(slices.iter().map(|slice| slice.len()).sum())
            })
            .map_err(|error| Violation { rule: Rule::Ending, what: error.to_string() })?;
        link.observe(last, self.plan.outbox_bytes_max, &mut self.facts, self.hosts[host].applied_at_flush)?;
        link.view.all_said()?;
        let goodbye = match reason {
            CloseReason::ProtocolError => Some(&b"Protocol violation"[..]),
            CloseReason::Shutdown => Some(&b"Server shutting down for maintenance"[..]),
            CloseReason::Idle if self.plan.idle_notice => Some(&b"Session timeout"[..]),
            _ => None,
        };
        let said = link.view.goodbye.as_deref();
        if reason == CloseReason::Banned {
            let is_told = said.is_some_and(|said| said.starts_with(b"Account banned "));
            ensure!(is_told, Rule::Ending, "{session} is banned with {said:?}");
            return Ok(());
        }
        ensure!(said == goodbye, Rule::Ending, "{session} ends with {said:?}, not {goodbye:?}");
        Ok(())
    }

    fn check_reason(&self, link: &Link, reason: CloseReason) -> Check {
        let silent_ms = self.now.mono - link.last_frame_at;
        let holds = match reason {
            CloseReason::Client => link.has_left,
            CloseReason::ProtocolError => link.has_raved,
            CloseReason::IoError => link.socket.is_broken,
            CloseReason::Shutdown => self.is_stopping,
            CloseReason::Banned => self.facts.has_banned,
            CloseReason::Idle => self.plan.idle_timeout_ms.is_some_and(|timeout| silent_ms >= timeout),
            CloseReason::SlowConsumer => link.rest.len() > self.plan.outbox_bytes_max,
            _ => false,
        };
        let (rule, waits) = match reason {
            CloseReason::SlowConsumer => (Rule::SlowReader, link.rest.len()),
            _ => (Rule::Ending, link.rest.len()),
        };
        let session = link.view.session;
        ensure!(holds, rule, "{session} was ended: {reason:?}, silent for {silent_ms} ms, {waits} bytes wait");
        Ok(())
    }

    /// Nobody who has been silent for too long is left.
    fn check_idle(&self, host: usize) -> Check {
        let (Some(timeout), shard) = (self.plan.idle_timeout_ms, &self.hosts[host].shard) else { return Ok(()) };
        let sessions = shard.clients.keys().filter_map(|key| shard.clients.get(key));
        let overdue = sessions.map(|live| (live.id, live.last_frame_at)).find(|(_, at)| at + timeout < self.now.mono);
        ensure!(overdue.is_none(), Rule::Ending, "{overdue:?} is silent since then and still here");
        Ok(())
    }
}

/// The session behind a connection, unless it ended and its place is free or taken by another.
fn live<'s>(shard: &'s Shard, link: &Link) -> Option<&'s Session> {
    shard.clients.get(link.key).filter(|session| session.id == link.view.session)
}

/// What lies in a session's queue after a flush.
fn waiting(shard: &mut Shard, key: SessionKey) -> Vec<u8> {
    let mut bytes = Vec::new();
    let is_empty = shard.clients.get(key).is_none_or(|session| session.outbox.is_empty());
    if !is_empty {
        let look = |_, slices: &[io::IoSlice<'_>]| {
            slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
            Err(io::ErrorKind::WouldBlock.into())
        };
        shard.flush_one(key, look, |_| {});
    }
    bytes
}

/// The same question, asked by somebody from whom nothing is hidden.
fn as_an_admin(query: Query) -> Query {
    let admin = |viewer: Viewer| Viewer { is_admin: true, ..viewer };
    match query {
        Query::Roots { viewer, channel, cursor, limit } => {
            Query::Roots { viewer: admin(viewer), channel, cursor, limit }
        }
        Query::Thread { viewer, channel, parent, cursor, limit } => {
            Query::Thread { viewer: admin(viewer), channel, parent, cursor, limit }
        }
        other => other,
    }
}

/// Where a message is that an event is about.
fn place_of(event: &Event) -> Option<ChannelId> {
    match event {
        Event::Posted(message) => Some(message.channel),
        Event::Edited { channel, .. } | Event::Deleted { channel, .. } => Some(*channel),
        _ => None,
    }
}

/// What an event means for a session that listens as it does at this moment (BEHAVIOUR.md 3.1).
fn owed(session: &Session, event: &Event, facts: &Facts) -> Option<Owed> {
    let follows = |root| session.threads().iter().any(|thread| thread.root == root);
    let is_touched = |channel, root| {
        let is_joined = session.joined.is_some_and(|(joined, _)| joined == channel);
        is_joined || session.channels().contains(&channel) || follows(root)
    };
    let (owed, is_audience, asker) = match event {
        Event::Posted(message) => {
            let is_audience = match message.parent {
                None => session.channels().contains(&message.channel),
                Some(_) => follows(message.thread_root),
            };
            (Owed::New(message.id), is_audience, None)
        }
        Event::Edited { message, channel, thread_root, content, .. } => {
            let (message, asker) = (*message, facts.editors.get(content));
            (Owed::Edited { message, content: content.clone() }, is_touched(*channel, *thread_root), asker)
        }
        Event::Deleted { message, channel, thread_root, .. } => {
            let asker = facts.deleters.get(message);
            (Owed::Deleted { message: *message }, is_touched(*channel, *thread_root), asker)
        }
        Event::ChannelCreated(channel) => {
            (Owed::Created { channel: channel.id }, true, facts.creators.get(&channel.id))
        }
        Event::ChannelDeleted { channel } => (Owed::Dropped { channel: *channel }, true, None),
        _ => return None,
    };
    let audience = match event {
        Event::Posted(message) => message.audience,
        Event::Edited { audience, .. } | Event::Deleted { audience, .. } => *audience,
        _ => Audience::Everybody,
    };
    let is_included = audience.includes(session.viewer());
    (is_audience && is_included && asker != Some(&session.id)).then_some(owed)
}

// The store's threads, the clock, an operator.

impl World {
    fn commit(&mut self) -> Check {
        if self.undelivered.is_some() {
            return Ok(());
        }
        let most = if self.random.percent(10) { 400 } else { 8 };
        let count = 1 + self.random.below(most);
        let writes = self.desk.take_writes(count);
        if writes.is_empty() {
            return Ok(());
        }
        if self.random.percent(50) {
            self.stale = self.memory.clone();
        }
        let all_fail = self.bad_luck(self.plan.failing_percent);
        let outcomes: Vec<_> = writes.into_iter().map(|write| self.apply_command(write, all_fail)).collect();
        self.note(|_| format!("{} writes are committed, all fail: {all_fail}", outcomes.len()));
        self.stir(outcomes.len());
        if outcomes.len() > 1 {
            self.facts.reach(Milestone::GroupCommit);
        }
        self.undelivered = Some(self.tampered(outcomes));
        Ok(())
    }

    fn apply_command(&mut self, write: Submission, all_fail: bool) -> Outcome {
        let Submission { ticket, command } = write;
        let fails = all_fail || self.bad_luck(self.plan.failing_percent);
        let is_post = matches!(command, Command::Post { .. });
        let result = if fails { Err(Refusal::Database) } else { self.memory.apply(&command, self.now.wall) };
        let result = if is_post && self.strikes(Sabotage::KeptRefusals) { Err(Refusal::Database) } else { result };
        self.facts.record(Some(&command), &result);
        self.note_hidden(&result);
        Outcome { ticket: Some(ticket), result }
    }

    fn note_hidden(&mut self, result: &Result<Event, Refusal>) {
        let (id, is_new) = match result {
            Ok(Event::Posted(Message { id, .. })) => (*id, true),
            Ok(Event::Edited { message, .. }) => (*message, false),
            _ => return,
        };
        self.facts.hide(id, self.memory.hidden_by(id), is_new);
    }

    fn bad_luck(&mut self, percent: usize) -> bool {
        !self.is_calm && self.random.percent(percent)
    }

    fn deliver(&mut self) -> Check {
        let Some(outcomes) = self.undelivered.take() else { return Ok(()) };
        for outcome in &outcomes {
            if let Ok(Event::ChannelCreated(channel)) = &outcome.result {
                self.facts.announced.push(channel.id);
            }
        }
        self.note(|_| format!("{} outcomes are delivered", outcomes.len()));
        self.bus.committed(outcomes.into());
        Ok(())
    }

    fn look_up(&mut self) -> Check {
        let waiting = self.desk.reads().min(READERS);
        if waiting == 0 {
            return Ok(());
        }
        let place = self.random.below(waiting);
        let Some((ticket, query)) = self.desk.take_read(place) else { return Ok(()) };
        let fails = self.bad_luck(self.plan.failing_percent);
        self.facts.has_failed |= fails;
        self.memory.now = self.now.wall;
        let query = if self.strikes(Sabotage::SeeThrough) { as_an_admin(query) } else { query };
        let memory = if self.strikes(Sabotage::StaleAnswers) { &self.stale } else { &self.memory };
        let answer = if fails { Answer::Failed } else { memory.answer(&query) };
        self.answers.push((ticket, answer));
        Ok(())
    }

    fn answer(&mut self) -> Check {
        if self.answers.is_empty() {
            return Ok(());
        }
        let place = self.random.below(self.answers.len());
        let (ticket, answer) = self.answers.swap_remove(place);
        if !self.strikes(Sabotage::LostAnswers) {
            self.bus.answered(ticket, answer);
        }
        Ok(())
    }

    fn wait(&mut self) -> Check {
        let milliseconds = if self.random.percent(3) { 600 } else { 1 + self.random.below(40) };
        self.pass(milliseconds as u64);
        Ok(())
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now.mono += milliseconds;
        self.now.mono_micros += milliseconds * 1000;
        self.now.wall += i64::try_from(milliseconds).unwrap();
    }

    /// An operator hides somebody, or keeps them out for a moment: so few names would soon be all gone.
    fn ban(&mut self) -> Check {
        let nickname = Name::from(NAMES[self.random.below(NAMES.len())].as_bytes());
        let shadow = self.random.percent(75);
        let ends = !shadow || self.random.percent(30);
        let seconds = ends.then(|| 1 + self.random.below(2) as u64);
        let reason = Name::from(&b"by chance"[..]);
        let subject = Subject::User { user: None, nickname: Some(nickname) };
        self.administer(Act::Ban { subject, reason, shadow, seconds })
    }

    fn unban(&mut self) -> Check {
        let nickname = Name::from(NAMES[self.random.below(NAMES.len())].as_bytes());
        self.administer(Act::Unban(Subject::User { user: None, nickname: Some(nickname) }))
    }

    fn administer(&mut self, act: Act) -> Check {
        if self.undelivered.is_some() {
            return Ok(());
        }
        self.note(|_| format!("operator: {act:?}"));
        let by = Admin { name: Name::from(&b"operator"[..]), address: None };
        let command = Command::Administer(Box::new(Administer { by, act }));
        let result = self.memory.apply(&command, self.now.wall);
        self.facts.record(Some(&command), &result);
        self.undelivered = Some(vec![Outcome { ticket: None, result }]);
        Ok(())
    }

    /// An operator removes a channel behind the server's back.
    fn drop_channel(&mut self) -> Check {
        let condemned = self.facts.announced.iter().filter(|id| id.0 > 3 && self.memory.channels.contains_key(id));
        let condemned: Vec<_> = condemned.copied().collect();
        let Some(channel) = self.random.pick(&condemned).filter(|_| self.undelivered.is_none()) else {
            return Ok(());
        };
        self.note(|_| format!("channel {channel} is dropped"));
        let events = self.memory.drop_channel(channel).into_iter().map(Ok);
        let outcomes = events.map(|result| {
            self.facts.record(None, &result);
            Outcome { ticket: None, result }
        });
        self.undelivered = Some(outcomes.collect());
        Ok(())
    }
}

// How a run ends.

impl World {
    /// From here on nothing fails, everybody reads, and nobody asks by chance.
    fn calm_down(&mut self) {
        self.is_calm = true;
        self.desk.set_full(false);
        self.links.values_mut().for_each(|link| link.socket.hurry());
    }

    /// Lets everything that is under way arrive.
    fn come_to_rest(&mut self) -> Check {
        let mut quiet = 0;
        for _ in 0..REST_ROUNDS {
            let links = self.links.len();
            self.round()?;
            self.pass(TICK_MS + 1);
            let is_quiet = !self.is_busy() && self.links.len() == links;
            quiet = if is_quiet { quiet + 1 } else { 0 };
            if quiet > 3 {
                return Ok(());
            }
        }
        Err(Violation { rule: Rule::Rest, what: format!("still busy after {REST_ROUNDS} rounds") })
    }

    fn is_busy(&self) -> bool {
        let at_links =
            |link: &Link| !link.upstream.is_empty() || !link.rest.is_empty() || !link.talks() || link.view.waits();
        let at_store = self.desk.writes() + self.desk.reads() + self.answers.len() > 0;
        at_store || self.undelivered.is_some() || self.links.values().any(at_links)
    }

    fn round(&mut self) -> Check {
        for session in self.links.keys().copied().collect::<Vec<_>>() {
            for act in [Self::feed, Self::writable] {
                if self.links.contains_key(&session) {
                    act(self, session)?;
                }
            }
        }
        self.commit()?;
        self.deliver()?;
        for _ in 0..self.desk.reads() {
            self.look_up()?;
        }
        for _ in 0..self.answers.len() {
            self.answer()?;
        }
        (0..self.hosts.len()).try_for_each(|host| self.take_turn(host))
    }

    /// Everybody knows who is here and where.
    fn check_rest(&mut self) -> Check {
        let (mut people, mut joined) = (BTreeMap::new(), BTreeMap::new());
        for (id, link) in &self.links {
            let Some(person) = live(&self.hosts[link.host].shard, link).and_then(Session::person) else { continue };
            let nickname = person.nickname.to_vec();
            if let Some(place) = person.joined {
                joined.entry(place).or_insert_with(BTreeMap::new).insert(*id, nickname.clone());
            }
            people.insert(*id, Seen { nickname, user: person.user, flags: person.flags });
        }
        self.memory.now = self.now.wall;
        for link in self.links.values() {
            let Some(live) = live(&self.hosts[link.host].shard, link) else { continue };
            let Some(nickname) = &live.nickname else { continue };
            let is_banned = self.memory.refuses(live.user(), nickname);
            ensure!(!is_banned, Rule::Ending, "{} is banned and still here", live.id);
        }
        for Host { shard, .. } in &self.hosts {
            let seen = |(id, person): (SessionId, &superchat::shard::Person)| {
                (id, Seen { nickname: person.nickname.to_vec(), user: person.user, flags: person.flags })
            };
            let roster: BTreeMap<_, _> = shard.roster.people().map(seen).collect();
            ensure!(roster == people, Rule::Presence, "shard {} has {roster:?}, here are {people:?}", shard.id);
        }
        for (id, link) in &mut self.links {
            let view = &mut link.view;
            view.come_to_rest()?;
            let known = people.get(id).map(|seen| (&seen.nickname, seen.user));
            let believed = view.nickname.as_ref().map(|nickname| (nickname, view.user));
            ensure!(known == believed, Rule::Reply, "{id} believes to be {believed:?}, is {known:?}");
            // Who has no name hears of changes only.
            if view.nickname.is_some() {
                let roster = &view.roster;
                ensure!(*roster == people, Rule::Presence, "{id} sees {roster:?}, here are {people:?}");
            }
            for (place, seen) in &view.places {
                let here = joined.get(place).cloned().unwrap_or_default();
                ensure!(*seen == here, Rule::Presence, "{id} sees {seen:?} in {place}, there are {here:?}");
            }
        }
        Ok(())
    }

    /// Everybody lists everything once more: what was delivered and what is listed must agree with what was committed.
    fn look_around(&mut self) -> Check {
        let channels = self.facts.announced.iter().copied().chain(self.facts.dms());
        let places: Vec<_> = channels.map(|channel| self.facts.place(channel, false)).collect();
        for link in self.links.values_mut() {
            for place in &places {
                link.ask(&Request::List { place: *place, parent: None });
                link.ask(&Request::Users { place: *place });
            }
        }
        self.come_to_rest()?;
        self.check_rest()
    }

    /// What was acknowledged is stored once, what was refused is not.
    fn check_durable(&self) -> Check {
        let mut stored: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (content, id) in &self.memory.posts {
            stored.entry(content).or_default().push(*id);
        }
        for (content, id) in &self.facts.acknowledged {
            let found = stored.get(content);
            ensure!(found == Some(&vec![*id]), Rule::Durable, "{id} was acknowledged, stored is {found:?}");
        }
        let kept = self.facts.refused.iter().find(|content| stored.contains_key(content));
        ensure!(kept.is_none(), Rule::Durable, "{kept:?} was refused and is stored");
        Ok(())
    }

    /// Everybody leaves, is told to, or falls silent; nothing stays behind.
    fn end(&mut self) -> Check {
        match (self.random.below(3), self.plan.idle_timeout_ms) {
            (0, _) => {
                self.is_stopping = true;
                let spread_ms = self.random.between(0, 100) as u64;
                (0..self.hosts.len()).for_each(|host| self.bus.send(host, ShardEvent::Stop { spread_ms }));
            }
            (1, Some(timeout)) => self.pass(timeout),
            _ => self.links.values_mut().for_each(|link| link.has_left = true),
        }
        self.come_to_rest()?;
        let left: Vec<_> = self.links.keys().collect();
        ensure!(left.is_empty(), Rule::Ending, "{left:?} never ended");
        for Host { shard, .. } in &self.hosts {
            let subscribers: u32 = self.facts.channels.keys().map(|channel| shard.roster.subscribers(*channel)).sum();
            let remains = (shard.clients.len(), shard.roster.len(), subscribers);
            ensure!(remains == (0, 0, 0), Rule::Ending, "shard {} still knows {remains:?}", shard.id);
        }
        ensure!(!self.memory.knows_visitors(), Rule::Ending, "visitors who are gone still are in conversations");
        let sessions = self.metrics.sessions();
        ensure!(sessions == 0, Rule::Ending, "{sessions} sessions are still counted");
        Ok(())
    }
}

// What a broken server would do.

impl World {
    /// Whether the sabotage of this run is this one, and strikes now.
    fn strikes(&mut self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage) && !self.is_calm && self.random.percent(sabotage.percent())
    }

    fn tampered(&mut self, mut outcomes: Vec<Outcome>) -> Vec<Outcome> {
        let posted = |outcome: &Outcome| matches!(outcome.result, Ok(Event::Posted(_)));
        if outcomes.len() > 1 && self.strikes(Sabotage::SwappedOutcomes) {
            outcomes.reverse();
        }
        if self.strikes(Sabotage::LeakedShadows) {
            for outcome in &mut outcomes {
                if let Ok(Event::Posted(message)) = &mut outcome.result {
                    message.audience = Audience::Everybody;
                }
            }
        }
        if self.strikes(Sabotage::RepeatedOutcomes)
            && let Some(first) = outcomes.iter().find(|outcome| posted(outcome))
        {
            let result = first.result.clone();
            outcomes.push(Outcome { ticket: None, result });
        }
        outcomes
    }

    /// Subscribes somebody to a channel it did not ask for, or ends a session that reads well.
    fn eavesdrop(&mut self, host: usize) {
        let sessions = &self.hosts[host].sessions;
        let Some(key) = sessions.keys().next().copied() else { return };
        let shard = &mut self.hosts[host].shard;
        if shard.clients.get(key).is_none_or(|session| session.channels().contains(&ChannelId(1))) {
            return;
        }
        if self.strikes(Sabotage::LeakedChannels) {
            self.hosts[host].shard.subscribe_channel(key, ChannelId(1), Default::default());
        } else if let Some(dm) = self.facts.dms().last()
            && self.strikes(Sabotage::LeakedDms)
            && !self.hosts[host].shard.clients.session(key).channels().contains(&dm)
        {
            self.hosts[host].shard.subscribe_channel(key, dm, Default::default());
        } else if self.strikes(Sabotage::HastyClosing) {
            self.hosts[host].shard.close(key, CloseReason::SlowConsumer);
        }
    }
}
