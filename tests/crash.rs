//! What must survive a crash: a server under load is killed at a random moment and started again on the same files.
//!
//! Publishers keep several requests under way, subscribers listen. Whatever one of them was told, as an answer or as a
//! broadcast, is there after the restart: once, whole, unchanged and in order. What nobody was told may be there or not,
//! but never twice, never in part, and never without what its author sent before it.
//!
//! `CRASH_ROUNDS` sets the number of kills, `CRASH_SEED` repeats a run's choices.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "the seed, and how much load there was")]

mod support;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::client::{
    AuthRequest, DeleteMessage, EditMessage, ListMessages, PostMessage, RegisterUser, SetNickname, SubscribeChannel,
    SubscribeThread,
};
use superchat::wire::codec::{Bounded, Wire};
use superchat::wire::frame;

use support::client::PATIENCE;
use support::link::Fields;
use support::{Client, Incoming, Link, Received, Server, Settings};

const ROUNDS: u32 = 20;
/// Ends one database goes through: everything is read back after each, so more of them would cost their square.
const LIVES: u32 = 10;
/// Publishers, of which the first few have accounts and so may edit.
const PUBLISHERS: usize = 6;
const ACCOUNTS: usize = 3;
const SUBSCRIBERS: usize = 2;
/// Requests a publisher has under way.
const WINDOW: usize = 16;
/// Milliseconds of load before the end.
const LOAD_MS: Range<u64> = 10..300;
/// The seeded channels used: one flat, one with threads (BEHAVIOUR.md 8.6).
const CHAT: ChannelId = ChannelId(1);
const FORUM: ChannelId = ChannelId(2);
/// Largest page of LIST_MESSAGES.
const PAGE: u16 = 200;
/// Threads one session may follow.
const THREADS_MAX: usize = 50;
/// What clients send for a password: a hash of 40 to 50 bytes.
const SECRET: &[u8] = b"0123456789012345678901234567890123456789abc";

#[test]
fn killed_under_load_at_random_moments_it_has_everything_it_acknowledged() {
    let rounds = number("CRASH_ROUNDS").map_or(ROUNDS, |rounds| u32::try_from(rounds).unwrap());
    for first in (0..rounds).step_by(LIVES as usize) {
        let mut trial = Trial::new(Settings::new());
        let lives = first..rounds.min(first + LIVES);
        trial.run(lives, Ending::Kill);
    }
}

#[test]
fn killed_with_durability_process_it_has_everything_it_acknowledged() {
    Trial::new(Settings::new().set("storage", "durability", "process")).run(0..1, Ending::Kill);
}

#[test]
fn told_to_stop_under_load_it_ends_in_order_and_has_everything_it_acknowledged() {
    Trial::new(Settings::new()).run(0..3, Ending::Stop);
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

#[derive(Debug, Clone, Copy)]
enum Ending {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Stop,
}

/// One server through several lives, and what its clients know.
struct Trial {
    server: Server,
    ledger: Ledger,
    rng: StdRng,
}

impl Trial {
    fn new(settings: Settings) -> Self {
        let seed = number("CRASH_SEED").unwrap_or_else(rand::random);
        println!("CRASH_SEED={seed}");
        let trial =
            Self { server: Server::start(settings), ledger: Ledger::default(), rng: StdRng::seed_from_u64(seed) };
        register_accounts(trial.server.address());
        trial
    }

    fn run(&mut self, rounds: Range<u32>, ending: Ending) {
        let ends = rounds.len();
        for round in rounds {
            self.load(round, ending);
            self.check_files();
            self.server.resume();
            self.ledger.check(&read_back(&mut self.server.client()));
        }
        assert!(self.ledger.messages.len() >= ends * PUBLISHERS, "too little load to prove anything");
    }

    /// Publishes until the server's end and takes down what everybody was told.
    fn load(&mut self, round: u32, ending: Ending) {
        let moment = Duration::from_millis(self.rng.random_range(LOAD_MS));
        let address = self.server.address();
        let subscribers: Vec<_> = (0..SUBSCRIBERS).map(|_| Subscriber::connect(address)).collect();
        let publishers: Vec<_> =
            (0..PUBLISHERS).map(|index| Publisher::connect(address, round, index, self.rng.random())).collect();
        let (first_answer, answered) = sync_channel(PUBLISHERS);
        let (sent, heard) = std::thread::scope(|scope| {
            let publishers: Vec<_> = publishers.into_iter().map(|one| one.start(scope, first_answer.clone())).collect();
            drop(first_answer);
            let subscribers: Vec<_> = subscribers.into_iter().map(|one| one.start(scope)).collect();
            await_each(&answered);
            // The moment is random: there is nothing to wait for.
            std::thread::sleep(moment);
            match ending {
                Ending::Kill => self.server.kill9(),
                Ending::Stop => assert_eq!(self.server.stop(), Some(0), "exit code after SIGTERM"),
            }
            (join(publishers), join(subscribers))
        });
        let posts: usize = sent.iter().map(Vec::len).sum();
        let acknowledged = sent.iter().flatten().filter(|message| message.durable > 0).count();
        let events: usize = heard.iter().map(Vec::len).sum();
        println!(
            "round {round}: {ending:?} after {moment:?}, {acknowledged}/{posts} posts acknowledged, {events} events heard"
        );
        self.ledger.take_down(sent);
        heard.iter().for_each(|events| self.ledger.learn(events));
    }

    /// What the end left on the disk is a sound database, before any server repairs it.
    fn check_files(&self) {
        let copy = tempfile::tempdir().unwrap();
        let database = self.server.database();
        for suffix in ["", "-wal"] {
            let name = format!("superchat.db{suffix}");
            if database.with_file_name(&name).exists() {
                fs::copy(database.with_file_name(&name), copy.path().join(&name)).unwrap();
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let connection = Connection::open_with_flags(copy.path().join("superchat.db"), flags).unwrap();
        let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(verdict, "ok");
        let violation = connection.prepare("PRAGMA foreign_key_check").unwrap().exists([]).unwrap();
        assert!(!violation, "a row refers to one that is not there");
    }
}

fn await_each(answered: &Receiver<()>) {
    for _ in 0..PUBLISHERS {
        answered.recv_timeout(PATIENCE).expect("a publisher got no answer");
    }
}

fn join<T>(handles: Vec<ScopedJoinHandle<'_, T>>) -> Vec<T> {
    handles.into_iter().map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
}

// What was said.

/// A message as its author knows it.
#[derive(Debug)]
struct Sent {
    key: Key,
    channel: ChannelId,
    parent: Option<u64>,
    /// Once somebody was told.
    id: Option<u64>,
    /// Every text it was to have, in the order of the requests: the post, edits, the placeholder of a deletion.
    texts: Vec<String>,
    /// How many of them somebody was told of.
    durable: usize,
}

/// Which message: its author's how-manieth in which round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    round: u32,
    publisher: usize,
    post: usize,
}

impl Sent {
    fn is_deleted(&self) -> bool {
        self.texts.last().is_some_and(|text| is_placeholder(text))
    }

    fn author(&self) -> String {
        let sign = if self.key.publisher < ACCOUNTS { "" } else { "~" };
        format!("{sign}{}", nickname(self.key.publisher))
    }
}

fn nickname(publisher: usize) -> String {
    format!("publisher-{publisher}")
}

fn placeholder(publisher: usize) -> String {
    format!("[deleted by ~{}]", nickname(publisher))
}

fn is_placeholder(text: &str) -> bool {
    text.starts_with("[deleted")
}

/// A text no other message has, of any length up to several pages of the database.
fn text(key: Key, version: usize, rng: &mut StdRng) -> String {
    let head = format!("round {} publisher {} post {} version {version} ", key.round, key.publisher, key.post);
    let tail = if rng.random_ratio(1, 8) { rng.random_range(0..3900) } else { rng.random_range(0..200) };
    head.chars().chain((0..tail).map(|_| rng.random_range('a'..='z'))).collect()
}

fn register_accounts(address: SocketAddr) {
    for index in 0..ACCOUNTS {
        let mut client = Client::named(address, &nickname(index));
        assert_eq!(client.ask(RegisterUser { password_hash: SECRET }, "REGISTER_RESPONSE")["success"], true);
    }
}

fn frame_of<'m>(code: u8, message: &impl Wire<'m>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_message(&mut bytes, code, message).unwrap();
    bytes
}

/// Sends a request and waits for its answer.
fn ask<'m>(link: &mut Link, code: u8, message: &impl Wire<'m>, answer: &str) -> Fields {
    link.send(&frame_of(code, message)).unwrap();
    loop {
        match link.next(PATIENCE) {
            Incoming::Frame(frame) if frame.name == answer => return frame.fields,
            Incoming::Frame(frame) if frame.name != "ERROR" => {}
            other => panic!("expected {answer}, got {other:?}"),
        }
    }
}

fn id_of(fields: &Fields, name: &str) -> u64 {
    fields[name].as_str().unwrap().parse().unwrap()
}

/// What a request still waits for: the place of its message among the publisher's.
#[derive(Debug, Clone, Copy)]
enum Request {
    Post(usize),
    Edit(usize),
    Delete(usize),
}

/// A client that posts, replies, edits and deletes without waiting for each answer.
struct Publisher {
    link: Link,
    round: u32,
    index: usize,
    rng: StdRng,
    sent: Vec<Sent>,
    waiting: VecDeque<Request>,
    /// Posts that are acknowledged and not to be deleted.
    alive: Vec<usize>,
    /// Posts of the thread that is being written, its root first.
    thread: Vec<usize>,
}

impl Publisher {
    fn connect(address: SocketAddr, round: u32, index: usize, seed: u64) -> Self {
        let mut link = Link::connect(address).unwrap();
        let nickname = nickname(index);
        let fields = if index < ACCOUNTS {
            let request = AuthRequest { nickname: nickname.as_bytes(), password_hash: SECRET };
            ask(&mut link, AuthRequest::CODE, &request, "AUTH_RESPONSE")
        } else {
            let request = SetNickname { nickname: Bounded(nickname.as_bytes()) };
            ask(&mut link, SetNickname::CODE, &request, "NICKNAME_RESPONSE")
        };
        assert_eq!(fields["success"], true, "{fields:?}");
        let rng = StdRng::seed_from_u64(seed);
        Self {
            link,
            round,
            index,
            rng,
            sent: Vec::new(),
            waiting: VecDeque::new(),
            alive: Vec::new(),
            thread: Vec::new(),
        }
    }

    fn start<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        first_answer: SyncSender<()>,
    ) -> ScopedJoinHandle<'scope, Vec<Sent>> {
        scope.spawn(move || self.run(first_answer))
    }

    /// Keeps the window full until the server is gone. Answers that had left it by then count.
    fn run(mut self, first_answer: SyncSender<()>) -> Vec<Sent> {
        let (mut open, mut first_answer) = (true, Some(first_answer));
        loop {
            while open && self.waiting.len() < WINDOW {
                open = self.ask().is_ok();
            }
            match self.link.next(PATIENCE) {
                Incoming::Frame(frame) => {
                    if self.answered(&frame)
                        && let Some(first_answer) = first_answer.take()
                    {
                        first_answer.send(()).unwrap();
                    }
                }
                Incoming::Closed => return self.sent,
                other => panic!("publisher {}: {other:?}", self.index),
            }
        }
    }

    fn ask(&mut self) -> io::Result<()> {
        let any = (!self.alive.is_empty()).then(|| self.rng.random_range(0..self.alive.len()));
        match (any, self.rng.random_range(0..100)) {
            (Some(place), ..10) => self.delete(place),
            (Some(place), 10..30) if self.index < ACCOUNTS => self.edit(self.alive[place]),
            _ => self.post(),
        }
    }

    fn post(&mut self) -> io::Result<()> {
        let (channel, parent) = self.place();
        let key = Key { round: self.round, publisher: self.index, post: self.sent.len() };
        let content = text(key, 0, &mut self.rng);
        let parent_id = parent.map(MessageId);
        let request =
            PostMessage { channel_id: channel, subchannel_id: None, parent_id, content: Bounded(content.as_bytes()) };
        let bytes = frame_of(PostMessage::CODE, &request);
        self.waiting.push_back(Request::Post(self.sent.len()));
        self.sent.push(Sent { key, channel, parent, id: None, texts: vec![content], durable: 0 });
        self.link.send(&bytes)
    }

    /// Half of the posts go to the flat channel, the others mostly below one of the thread at hand.
    fn place(&mut self) -> (ChannelId, Option<u64>) {
        if self.rng.random_bool(0.5) {
            return (CHAT, None);
        }
        if self.thread.is_empty() || self.rng.random_ratio(1, 24) {
            return (FORUM, None);
        }
        let parent = self.thread[self.rng.random_range(0..self.thread.len())];
        (FORUM, self.sent[parent].id)
    }

    fn edit(&mut self, post: usize) -> io::Result<()> {
        let message = &mut self.sent[post];
        let content = text(message.key, message.texts.len(), &mut self.rng);
        let message_id = MessageId(message.id.unwrap());
        let bytes = frame_of(EditMessage::CODE, &EditMessage { message_id, new_content: Bounded(content.as_bytes()) });
        message.texts.push(content);
        self.waiting.push_back(Request::Edit(post));
        self.link.send(&bytes)
    }

    fn delete(&mut self, place: usize) -> io::Result<()> {
        let post = self.alive.swap_remove(place);
        let message = &mut self.sent[post];
        let message_id = MessageId(message.id.unwrap());
        message.texts.push(placeholder(self.index));
        self.waiting.push_back(Request::Delete(post));
        self.link.send(&frame_of(DeleteMessage::CODE, &DeleteMessage { message_id }))
    }

    /// Takes an answer; `false` for anything else. Answers come in the order of the requests.
    fn answered(&mut self, frame: &Received) -> bool {
        if !matches!(frame.name.as_str(), "MESSAGE_POSTED" | "MESSAGE_EDITED" | "MESSAGE_DELETED" | "ERROR") {
            return false;
        }
        assert!(frame.name != "ERROR" && frame.fields["success"] == true, "{frame}");
        let request = self.waiting.pop_front().expect("an answer nobody waits for");
        let (Request::Post(post) | Request::Edit(post) | Request::Delete(post)) = request;
        let message = &mut self.sent[post];
        message.durable += 1;
        let id = id_of(&frame.fields, "message_id");
        match (request, frame.name.as_str()) {
            (Request::Post(_), "MESSAGE_POSTED") => {
                message.id = Some(id);
                self.posted(post);
            }
            (Request::Edit(_), "MESSAGE_EDITED") => {
                let shown = frame.fields["new_content"].as_str().unwrap();
                assert_eq!((Some(id), shown), (message.id, &message.texts[message.durable - 1][..]));
            }
            (Request::Delete(_), "MESSAGE_DELETED") => assert_eq!(Some(id), message.id),
            _ => panic!("{request:?} is answered with {frame}"),
        }
        true
    }

    fn posted(&mut self, post: usize) {
        self.alive.push(post);
        let message = &self.sent[post];
        if message.channel == FORUM {
            if message.parent.is_none() {
                self.thread.clear();
            }
            self.thread.push(post);
        }
    }
}

/// What a subscriber was told.
#[derive(Debug)]
enum Heard {
    Posted {
        id: u64,
        parent: Option<u64>,
        content: String,
    },
    /// The text an edit or a deletion put in place.
    Changed {
        id: u64,
        content: String,
    },
}

/// A client that listens to both channels and follows the first threads it hears of.
struct Subscriber {
    link: Link,
    heard: Vec<Heard>,
    threads: usize,
}

impl Subscriber {
    fn connect(address: SocketAddr) -> Self {
        let mut link = Link::connect(address).unwrap();
        for channel_id in [CHAT, FORUM] {
            let request = SubscribeChannel { channel_id, subchannel_id: None };
            ask(&mut link, SubscribeChannel::CODE, &request, "SUBSCRIBE_OK");
        }
        Self { link, heard: Vec::new(), threads: 0 }
    }

    fn start<'scope>(self, scope: &'scope Scope<'scope, '_>) -> ScopedJoinHandle<'scope, Vec<Heard>> {
        scope.spawn(move || self.run())
    }

    fn run(mut self) -> Vec<Heard> {
        while self.listen().is_continue() {}
        self.heard
    }

    fn listen(&mut self) -> ControlFlow<()> {
        let frame = match self.link.next(PATIENCE) {
            Incoming::Frame(frame) => frame,
            Incoming::Closed => return ControlFlow::Break(()),
            other => panic!("subscriber: {other:?}"),
        };
        match frame.name.as_str() {
            "NEW_MESSAGE" => self.posted(&frame.fields),
            "MESSAGE_EDITED" => self.changed(&frame.fields, "new_content"),
            "MESSAGE_DELETED" => self.changed(&frame.fields, "message"),
            "ERROR" => panic!("subscriber: {frame}"),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn posted(&mut self, fields: &Fields) {
        let id = id_of(fields, "message_id");
        let parent = fields["parent_id"].as_str().map(|parent| parent.parse().unwrap());
        let is_thread = id_of(fields, "channel_id") == FORUM.0 && parent.is_none();
        if is_thread && self.threads < THREADS_MAX {
            self.threads += 1;
            let request = SubscribeThread { thread_id: MessageId(id) };
            // The server may be gone; what it said before still counts.
            let _gone = self.link.send(&frame_of(SubscribeThread::CODE, &request));
        }
        self.heard.push(Heard::Posted { id, parent, content: content_of(fields, "content") });
    }

    fn changed(&mut self, fields: &Fields, name: &str) {
        self.heard.push(Heard::Changed { id: id_of(fields, "message_id"), content: content_of(fields, name) });
    }
}

fn content_of(fields: &Fields, name: &str) -> String {
    fields[name].as_str().unwrap().to_owned()
}

// What is there.

/// A message as the server lists it.
#[derive(Debug)]
struct Stored {
    id: u64,
    channel: ChannelId,
    parent: Option<u64>,
    author: String,
    content: String,
    is_edited: bool,
    reply_count: u64,
}

impl Stored {
    fn new(channel: ChannelId, entry: &Value) -> Self {
        let fields = entry.as_object().unwrap();
        Self {
            id: id_of(fields, "message_id"),
            channel,
            parent: fields["parent_id"].as_str().map(|parent| parent.parse().unwrap()),
            author: fields["author_nickname"].as_str().unwrap().to_owned(),
            content: content_of(fields, "content"),
            is_edited: !fields["edited_at"].is_null(),
            reply_count: fields["reply_count"].as_u64().unwrap(),
        }
    }
}

/// Everything both channels list, page by page: roots by their ids, threads in their order.
fn read_back(client: &mut Client) -> Vec<Stored> {
    let roots: Vec<_> = [CHAT, FORUM].into_iter().flat_map(|channel| read_roots(client, channel)).collect();
    let threads: Vec<_> =
        roots.iter().filter(|root| root.reply_count > 0).flat_map(|root| read_thread(client, root)).collect();
    roots.into_iter().chain(threads).collect()
}

fn read_roots(client: &mut Client, channel: ChannelId) -> Vec<Stored> {
    let mut roots: Vec<Stored> = Vec::new();
    loop {
        let after_id = Some(MessageId(roots.last().map_or(0, |root| root.id)));
        let page = read_page(client, channel, |request| request.after_id = after_id);
        if page.is_empty() {
            return roots;
        }
        roots.extend(page);
        assert!(roots.is_sorted_by(|a, b| a.id < b.id), "roots of {channel} are out of order");
    }
}

fn read_thread(client: &mut Client, root: &Stored) -> Vec<Stored> {
    let mut replies: Vec<Stored> = Vec::new();
    loop {
        let before_id = replies.last().map(|reply| MessageId(reply.id));
        let page = read_page(client, root.channel, |request| {
            request.parent_id = Some(MessageId(root.id));
            request.before_id = before_id;
        });
        let is_last = page.len() < PAGE.into();
        replies.extend(page);
        if is_last {
            check_thread(root, &replies);
            return replies;
        }
    }
}

fn read_page(client: &mut Client, channel_id: ChannelId, shape: impl FnOnce(&mut ListMessages)) -> Vec<Stored> {
    let mut request =
        ListMessages { channel_id, subchannel_id: None, limit: PAGE, before_id: None, parent_id: None, after_id: None };
    shape(&mut request);
    let fields = client.ask(request, "MESSAGE_LIST");
    fields["messages"].as_array().unwrap().iter().map(|entry| Stored::new(channel_id, entry)).collect()
}

/// Every reply stands behind its parent, and the root counts those that are alive.
fn check_thread(root: &Stored, replies: &[Stored]) {
    let mut seen = HashSet::from([root.id]);
    for reply in replies {
        let parent = reply.parent.expect("a root in a thread");
        assert!(seen.contains(&parent), "reply {} stands before its parent {parent}", reply.id);
        assert!(reply.id > parent, "reply {} is older than its parent {parent}", reply.id);
        seen.insert(reply.id);
    }
    let alive = replies.iter().filter(|reply| !is_placeholder(&reply.content)).count();
    assert_eq!(root.reply_count, alive as u64, "reply count of {}", root.id);
}

/// Every message that was sent, until it turns out that it did not survive.
#[derive(Debug, Default)]
struct Ledger {
    messages: BTreeMap<Key, Sent>,
    by_id: HashMap<u64, Key>,
    /// First texts of messages whose ids nobody was told.
    unknown: HashMap<String, Key>,
}

impl Ledger {
    fn take_down(&mut self, sent: Vec<Vec<Sent>>) {
        for message in sent.into_iter().flatten() {
            match message.id {
                Some(id) => assert_eq!(self.by_id.insert(id, message.key), None, "two messages have the id {id}"),
                None => assert_eq!(self.unknown.insert(message.texts[0].clone(), message.key), None),
            }
            self.messages.insert(message.key, message);
        }
    }

    /// What one subscriber heard was durable when it heard it.
    fn learn(&mut self, heard: &[Heard]) {
        let mut newest = 0;
        for event in heard {
            match event {
                Heard::Posted { id, parent, content } => {
                    assert!(*id > newest, "message {id} was delivered after {newest}");
                    newest = *id;
                    let message = self.identify(*id, content);
                    assert_eq!((&message.texts[0], message.parent), (content, *parent), "message {id}");
                    message.durable = message.durable.max(1);
                }
                Heard::Changed { id, content } => {
                    let key = self.by_id.get(id).unwrap_or_else(|| panic!("a change of {id}, which nobody posted"));
                    let message = self.messages.get_mut(key).unwrap();
                    let version = message.texts.iter().position(|text| text == content);
                    let version = version.unwrap_or_else(|| panic!("a text nobody gave to {:?}", message.key));
                    message.durable = message.durable.max(version + 1);
                }
            }
        }
    }

    /// The message with an id; one that nobody was told of is recognised by its text.
    fn identify(&mut self, id: u64, content: &str) -> &mut Sent {
        let key = *self.by_id.entry(id).or_insert_with(|| {
            let known = self.unknown.remove(content);
            known.unwrap_or_else(|| panic!("message {id} is torn or twice: {content}"))
        });
        let message = self.messages.get_mut(&key).unwrap();
        message.id = Some(id);
        message
    }

    /// Compares with what is there, which from now on is what must stay.
    fn check(&mut self, stored: &[Stored]) {
        let mut listed = HashSet::new();
        for one in stored {
            assert!(listed.insert(one.id), "message {} is listed twice", one.id);
            settle(self.identify(one.id, &one.content), one);
        }
        for message in self.messages.values_mut().filter(|message| message.id.is_some_and(|id| !listed.contains(&id))) {
            assert!(message.is_deleted(), "lost: {message:?}");
            message.durable = message.texts.len();
        }
        self.check_order();
        self.unknown.clear();
        self.messages.retain(|_, message| message.id.is_some());
    }

    /// Of each publisher, what survived is what it sent first, in the order it sent it.
    fn check_order(&self) {
        for (earlier, later) in self.messages.values().zip(self.messages.values().skip(1)) {
            let same = (earlier.key.round, earlier.key.publisher) == (later.key.round, later.key.publisher);
            let in_order = earlier.id.is_some_and(|id| later.id.is_none_or(|later| id < later));
            assert!(!same || in_order || later.id.is_none(), "{earlier:?} and {later:?} are out of order");
        }
    }
}

fn settle(message: &mut Sent, stored: &Stored) {
    let place = (message.channel, message.parent, message.author());
    assert_eq!((stored.channel, stored.parent, stored.author.clone()), place, "{:?}", message.key);
    let version = message.texts.iter().position(|text| *text == stored.content);
    let version = version.unwrap_or_else(|| panic!("{:?} is torn: {stored:?}", message.key));
    assert!(version + 1 >= message.durable, "{:?} went back to an earlier text: {stored:?}", message.key);
    let deleted = is_placeholder(&stored.content);
    assert!(deleted || stored.is_edited == (version > 0), "{:?}: {stored:?}", message.key);
    message.texts.truncate(version + 1);
    message.durable = version + 1;
}

/// The judge finds what it is there to find.
mod ledger {
    use super::*;

    const OLD: &str = "old";
    const NEW: &str = "new";

    /// Two messages of one publisher, told of as far as `durable` says.
    fn ledger(durable: [usize; 2]) -> Ledger {
        let message = |post: usize, texts: &[&str]| Sent {
            key: Key { round: 0, publisher: 5, post },
            channel: CHAT,
            parent: None,
            id: (durable[post] > 0).then_some(post as u64 + 1),
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
            durable: durable[post],
        };
        let mut ledger = Ledger::default();
        ledger.take_down(vec![vec![message(0, &[OLD, NEW]), message(1, &["second", &placeholder(5)])]]);
        ledger
    }

    fn stored(id: u64, content: &str) -> Stored {
        let (author, content) = ("~publisher-5".to_owned(), content.to_owned());
        Stored { id, channel: CHAT, parent: None, author, is_edited: content == NEW, content, reply_count: 0 }
    }

    #[test]
    fn what_nobody_was_told_of_may_be_there_or_not_and_then_stays_so() {
        for (durable, found) in [([1, 1], vec![stored(1, NEW)]), ([1, 0], vec![stored(1, OLD), stored(2, "second")])] {
            let mut ledger = ledger(durable);
            ledger.check(&found);
            ledger.check(&found);
        }
        ledger([0, 0]).check(&[]);
    }

    #[test]
    #[should_panic(expected = "lost")]
    fn missing_message_is_found() {
        ledger([1, 1]).check(&[stored(2, "second")]);
    }

    #[test]
    #[should_panic(expected = "torn")]
    fn half_a_text_is_found() {
        ledger([1, 0]).check(&[stored(1, "ol")]);
    }

    #[test]
    #[should_panic(expected = "torn or twice")]
    fn message_stored_under_two_ids_is_found() {
        ledger([0, 0]).check(&[stored(1, OLD), stored(2, OLD)]);
    }

    #[test]
    #[should_panic(expected = "went back")]
    fn edit_that_was_undone_is_found() {
        ledger([2, 1]).check(&[stored(1, OLD), stored(2, "second")]);
    }

    #[test]
    #[should_panic(expected = "went back")]
    fn deletion_that_was_undone_is_found() {
        ledger([1, 2]).check(&[stored(1, OLD), stored(2, "second")]);
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn gap_before_a_message_that_survived_is_found() {
        ledger([0, 0]).check(&[stored(1, "second")]);
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn ids_that_fall_are_found() {
        ledger([0, 0]).check(&[stored(2, OLD), stored(1, "second")]);
    }

    #[test]
    #[should_panic(expected = "torn or twice")]
    fn broadcast_of_what_was_never_stored_is_found() {
        ledger([1, 0]).learn(&[Heard::Posted { id: 9, parent: None, content: "ghost".to_owned() }]);
    }

    #[test]
    #[should_panic(expected = "lost")]
    fn broadcast_before_it_was_durable_is_found() {
        let mut ledger = ledger([0, 0]);
        ledger.learn(&[Heard::Posted { id: 1, parent: None, content: OLD.to_owned() }]);
        ledger.check(&[]);
    }
}
