//! What handlers ask of their shard: answers, the store, the hashing threads, places in audiences.

use tracing::warn;

use super::outbox::Broadcast;
use super::roster::{PeerChange, Person, Repeat};
use super::session::{Flight, Posts, PresenceGate, SessionKey, ThreadSubscription, Waiting};
use super::topics::{Listener, Spelling};
use super::{Resume, Shard, token};
use crate::ids::{ChannelId, MessageId, SessionId};
use crate::net::CloseReason;
use crate::passwords::{HashJob, HashOutcome};
use crate::profile::tasks::{self, Entry, Site, site};
use crate::store::{Answer, Command, Event, Query, Refusal, Submission, Ticket};
use crate::wire::server::{self, Disconnect};
use crate::wire::{ErrorCode, ServerMessage};

impl Shard {
    /// Answers a session.
    pub fn reply<'m>(&mut self, key: SessionKey, message: impl Into<ServerMessage<'m>>) {
        let mut frame = Broadcast::new(message);
        let session = self.clients.session(key);
        let class = session.class();
        match frame.segment(&mut self.clients.encoder, class) {
            Ok(_) => self.clients.send(key, &mut frame),
            Err(error) => {
                warn!(session = self.clients.session(key).id.0, %error, code = frame.code(), "answer does not fit a frame");
                self.error(key, ErrorCode::Internal, "Internal error");
            }
        }
    }

    /// Answers with an ERROR. While posts are under way only further posts are handled, and a refusal waits for its turn.
    pub fn error(&mut self, key: SessionKey, code: ErrorCode, text: &str) {
        if let Flight::Posts(posts) = &mut self.clients.session(key).flight {
            return posts.refuse(code, text);
        }
        self.metrics.error(code.number());
        self.reply(key, server::Error { error_code: code.number(), message: text.as_bytes() });
    }

    /// Says why, then ends the session.
    pub fn disconnect(&mut self, key: SessionKey, reason: CloseReason, text: &str) {
        self.reply(key, Disconnect { reason: Some(text.as_bytes()) });
        self.close(key, reason);
    }

    /// Reads from the store; `next` gets the answer. No further frame of the session is handled before.
    #[track_caller]
    pub fn ask(&mut self, key: SessionKey, query: Query, next: impl FnOnce(&mut Self, SessionKey, Answer) + 'static) {
        let ticket = self.ticket(key);
        if self.store.ask(ticket, query).is_err() {
            return self.busy(key);
        }
        let entry = self.entry(key, Site::of_caller(&next), site!("wait for the read pool"));
        self.wait(key, entry, move |shard, key, with| match with {
            Resume::Answer(Answer::Failed) => shard.error(key, ErrorCode::Database, "Database error"),
            Resume::Answer(answer) => next(shard, key, answer),
            Resume::Outcome(_) | Resume::Hashed(_) => shard.error(key, ErrorCode::Internal, "Internal error"),
        });
    }

    /// Writes to the store; `next` gets the outcome. No further frame of the session is handled before.
    #[track_caller]
    pub fn submit(
        &mut self,
        key: SessionKey,
        command: Command,
        next: impl FnOnce(&mut Self, SessionKey, Result<Event, Refusal>) + 'static,
    ) {
        let ticket = self.ticket(key);
        if self.store.submit(Submission { ticket, command }).is_err() {
            return self.busy(key);
        }
        let entry = self.entry(key, Site::of_caller(&next), site!("wait for the writer"));
        self.wait(key, entry, move |shard, key, with| match with {
            Resume::Outcome(result) => next(shard, key, result),
            Resume::Answer(_) | Resume::Hashed(_) => shard.error(key, ErrorCode::Internal, "Internal error"),
        });
    }

    /// Writes a post. Further posts of the session may follow before its outcome is there.
    pub fn submit_post(&mut self, key: SessionKey, handler: &'static Site, command: Command) {
        let ticket = self.ticket(key);
        if self.store.submit(Submission { ticket, command }).is_err() {
            return self.busy(key);
        }
        let request = self.request;
        let entry = self.entry(key, handler, site!("wait for the writer"));
        match &mut self.clients.session(key).flight {
            Flight::Posts(posts) => posts.submitted(request, entry),
            other => {
                let mut posts = Box::<Posts>::default();
                posts.submitted(request, entry);
                *other = Flight::Posts(posts);
            }
        }
    }

    /// Hashes or verifies a password; `next` gets the outcome. No further frame of the session is handled before.
    #[track_caller]
    pub fn hash(
        &mut self,
        key: SessionKey,
        job: HashJob,
        next: impl FnOnce(&mut Self, SessionKey, HashOutcome) + 'static,
    ) {
        let ticket = self.ticket(key);
        if self.passwords.submit(ticket, job).is_err() {
            return next(self, key, HashOutcome::Busy);
        }
        let entry = self.entry(key, Site::of_caller(&next), site!("wait for the password pool"));
        self.wait(key, entry, move |shard, key, with| match with {
            Resume::Hashed(outcome) => next(shard, key, outcome),
            Resume::Answer(_) | Resume::Outcome(_) => shard.error(key, ErrorCode::Internal, "Internal error"),
        });
    }

    fn ticket(&mut self, key: SessionKey) -> Ticket {
        Ticket { shard: self.id, token: token(key, self.clients.session(key).id) }
    }

    /// Makes the request at hand, which comes from `handler`, one that waits.
    fn entry(&mut self, key: SessionKey, handler: &'static Site, site: &'static Site) -> Entry {
        tasks::request(self.clients.session(key).id.0, handler, site)
    }

    fn wait(&mut self, key: SessionKey, entry: Entry, next: impl FnOnce(&mut Self, SessionKey, Resume) + 'static) {
        let waiting = Waiting { next: Box::new(next), request: self.request, entry };
        self.clients.session(key).flight = Flight::Waiting(Box::new(waiting));
    }

    fn busy(&mut self, key: SessionKey) {
        self.error(key, ErrorCode::Unavailable, "Server is busy. Try again.");
    }

    /// The session's name, account, flags or place changed: everybody hears of it at the next tick.
    pub fn announce(&mut self, key: SessionKey, repeat: Repeat) {
        let session = self.clients.session(key);
        let (id, person) = (session.id, session.person());
        self.tell_person(id, Some(key), person, repeat);
    }

    /// The next tick sends the session the whole roster, itself included.
    pub fn send_roster(&mut self, key: SessionKey) {
        self.open_presence(key, PresenceGate::Snapshot);
    }

    pub(super) fn tell_person(
        &mut self,
        session: SessionId,
        own: Option<SessionKey>,
        person: Option<Person>,
        repeat: Repeat,
    ) {
        if person.is_none() && self.roster.get(session).is_none() {
            return;
        }
        if self.bus.shards() > 1 {
            self.peer_changes.push(PeerChange::Session { session, person: person.clone(), repeat });
        }
        self.note_person(session, own, person, repeat);
    }

    /// Moves the session into a place; it leaves the one it was in.
    pub fn join(&mut self, key: SessionKey, channel: ChannelId, spelling: Spelling) {
        self.leave(key);
        self.clients.session(key).joined = Some((channel, spelling));
        self.topics.join(channel, Listener { key, spelling });
    }

    /// Takes the session out of the place it is in.
    pub fn leave(&mut self, key: SessionKey) {
        if let Some((channel, _)) = self.clients.session(key).joined.take() {
            self.topics.leave(channel, key);
        }
    }

    /// Subscribes to a place that the session is not subscribed to yet.
    pub fn subscribe_channel(&mut self, key: SessionKey, channel: ChannelId, spelling: Spelling) {
        self.clients.session(key).busy().channels.push(channel);
        let (metrics, is_dm) = (self.metrics.global(), self.channels.is_dm(channel));
        self.topics.subscribe_channel(channel, Listener { key, spelling }, || match is_dm {
            true => metrics.dm_topic(),
            false => metrics.channel_topic(channel.0),
        });
        self.count_subscriber(channel, 1);
    }

    /// Ends a subscription, if there is one.
    pub fn unsubscribe_channel(&mut self, key: SessionKey, channel: ChannelId) {
        let session = self.clients.session(key);
        let Some(place) = session.channels().iter().position(|known| *known == channel) else { return };
        session.busy().channels.swap_remove(place);
        self.topics.unsubscribe_channel(channel, key);
        self.count_subscriber(channel, -1);
    }

    fn count_subscriber(&mut self, channel: ChannelId, delta: i32) {
        self.roster.add_subscribers(channel, delta);
        if self.bus.shards() > 1 {
            self.peer_changes.push(PeerChange::Subscribers { channel, delta });
        }
    }

    /// Subscribes to a thread that the session does not follow yet.
    pub fn subscribe_thread(&mut self, key: SessionKey, thread: ThreadSubscription) {
        let session = self.clients.session(key);
        let spelling = session.spelling(thread.channel);
        session.busy().threads.push(thread);
        let ThreadSubscription { root, channel } = thread;
        let (metrics, is_dm) = (self.metrics.global(), self.channels.is_dm(channel));
        self.topics.subscribe_thread(root, Listener { key, spelling }, || match is_dm {
            true => metrics.dm_thread_topic(),
            false => metrics.thread_topic(channel.0, root.0, self.now.mono),
        });
    }

    /// Ends a subscription, if there is one.
    pub fn unsubscribe_thread(&mut self, key: SessionKey, root: MessageId) {
        let session = self.clients.session(key);
        let Some(place) = session.threads().iter().position(|thread| thread.root == root) else { return };
        session.busy().threads.swap_remove(place);
        self.topics.unsubscribe_thread(root, key);
    }

    /// The client named a place: frames about it follow the spelling it used last.
    pub fn note_spelling(&mut self, key: SessionKey, channel: ChannelId, spelling: Spelling) {
        let session = self.clients.session(key);
        if session.set_spelling(channel, spelling) {
            if let Some((joined, joined_spelling)) = &mut session.joined
                && *joined == channel
            {
                *joined_spelling = spelling;
            }
            let threads = session.threads().iter().filter(|thread| thread.channel == channel);
            let roots: Vec<_> = threads.map(|thread| thread.root).collect();
            self.topics.respell(channel, &roots, Listener { key, spelling });
        }
    }

    /// Seconds since the server started.
    #[must_use]
    pub fn uptime_seconds(&self) -> u64 {
        (self.now.mono - self.started_at) / 1000
    }
}
