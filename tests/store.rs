//! The SQLite store as the server meets it: commands and queries in, batches and answers out, on real files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{Connection, params};
use superchat::ids::{ChannelId, MessageId, SessionId, UserId};
use superchat::limits::{THREAD_DEPTH_MAX, UNREAD_COUNT_MAX, WRITER_BATCH_MAX, WRITER_QUEUE_MAX};
#[path = "store/administration.rs"]
mod administration;
#[path = "store/dms.rs"]
mod dms;
#[path = "store/servers.rs"]
mod servers;

use superchat::store::command::NewChannel;
use superchat::store::query::{Cursor, UnreadTarget};
use superchat::store::sqlite::open::{OpenOptions, Opened, open};
use superchat::store::sqlite::seeds::{default_seeds, insert_seeds};
use superchat::store::sqlite::{
    Clock, Fault, Observe, Parts, ProbeError, Retention, SqliteStore, StopTimeout, load_channels,
};
use superchat::store::{
    Account, Actor, Answer, Audience, Author, Ban, Batch, Busy, Channel, ChannelType, Command, Deliver, Event,
    FLAG_ADMIN, Message, Name, Outcome, Query, Refusal, Store, Submission, Ticket, Viewer,
};

/// Where the clock of every test begins: 2026-01-01, in milliseconds.
const START: i64 = 1_767_225_600_000;
const HOUR: i64 = 3_600_000;
const PATIENCE: Duration = Duration::from_secs(20);

const CHAT: ChannelId = ChannelId(1);
const GENERAL: ChannelId = ChannelId(2);
const TECH: ChannelId = ChannelId(3);
const NOWHERE: ChannelId = ChannelId(404);

/// Everything the store delivers, and a gate that holds its writer back.
#[derive(Default)]
struct Inbox {
    state: Mutex<Delivered>,
    changed: Condvar,
}

#[derive(Default)]
struct Delivered {
    batches: Vec<Batch>,
    answers: HashMap<u64, Answer>,
    commits: usize,
    faults: Vec<Fault>,
    sizes: (u64, u64),
    writer_exit: Option<bool>,
    gate_closed: bool,
    held: bool,
    panics: bool,
}

impl Delivered {
    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.batches.iter().flat_map(|batch| batch.iter())
    }
}

impl Inbox {
    fn change(&self, change: impl FnOnce(&mut Delivered)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `look` finds what it looks for.
    fn wait<T>(&self, what: &str, mut look: impl FnMut(&mut Delivered) -> Option<T>) -> T {
        let mut found = None;
        let state: MutexGuard<'_, Delivered> = self.state.lock().unwrap();
        let (_state, timeout) = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| {
                found = look(state);
                found.is_none()
            })
            .unwrap();
        assert!(!timeout.timed_out(), "waited in vain for {what}");
        found.unwrap()
    }
}

impl Deliver for Inbox {
    fn committed(&self, batch: Batch) {
        let panics = self.state.lock().unwrap().panics;
        assert!(!panics, "the shards are gone");
        let mut held = false;
        self.change(|state| {
            state.batches.push(batch);
            (state.held, held) = (state.gate_closed, state.gate_closed);
        });
        // A gate that closes only now is for the next batch.
        if held {
            drop(self.changed.wait_while(self.state.lock().unwrap(), |state| state.gate_closed).unwrap());
        }
    }

    fn answered(&self, ticket: Ticket, answer: Answer) {
        self.change(|state| drop(state.answers.insert(ticket.token, answer)));
    }
}

impl Observe for Inbox {
    fn commit(&self, _: Duration, _: usize) {
        self.change(|state| state.commits += 1);
    }

    fn storage_error(&self, fault: Fault) {
        self.change(|state| state.faults.push(fault));
    }

    fn sizes(&self, database: u64, wal: u64) {
        self.change(|state| state.sizes = (database, wal));
    }
}

/// Stands still unless a test moves it.
struct TestClock {
    wall_ms: AtomicI64,
    monotonic_ms: AtomicU64,
    /// Whoever reads the database meets a panic.
    breaks_reads: AtomicBool,
}

impl TestClock {
    fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.wall_ms.fetch_add(ms.try_into().unwrap(), Ordering::SeqCst);
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn wall_ms(&self) -> i64 {
        let reads = || std::thread::current().name().is_some_and(|name| name.starts_with("scd-reader"));
        assert!(!self.breaks_reads.load(Ordering::SeqCst) || !reads(), "the clock stands still");
        self.wall_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst))
    }
}

struct Server {
    directory: tempfile::TempDir,
    store: SqliteStore,
    inbox: Arc<Inbox>,
    clock: Arc<TestClock>,
    tokens: AtomicU64,
}

impl Server {
    fn new() -> Self {
        Self::prepared(|_| ())
    }

    /// A new file with the usual channels, changed by `prepare` before the store starts.
    fn prepared(prepare: impl FnOnce(&Opened)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::open(directory, START, None, |opened| {
            insert_seeds(&opened.writer, &default_seeds(), START).unwrap();
            prepare(opened);
        })
    }

    fn open(directory: tempfile::TempDir, now: i64, enforce: Option<bool>, prepare: impl FnOnce(&Opened)) -> Self {
        let opened = open(&directory.path().join("chat.db"), &OpenOptions::default(), now).unwrap();
        prepare(&opened);
        let inbox = Arc::new(Inbox::default());
        let clock = Arc::new(TestClock {
            wall_ms: AtomicI64::new(now),
            monotonic_ms: AtomicU64::new(0),
            breaks_reads: AtomicBool::new(false),
        });
        let exit = inbox.clone();
        let parts = Parts {
            readers: 2,
            retention: Retention { enforce, interval: Duration::from_secs(3600) },
            channels: load_channels(&opened.writer).unwrap(),
            deliver: inbox.clone(),
            clock: clock.clone(),
            observe: inbox.clone(),
            on_writer_exit: Box::new(move |stopped| exit.change(|state| state.writer_exit = Some(stopped))),
        };
        let store = SqliteStore::start(opened, parts).unwrap();
        Self { directory, store, inbox, clock, tokens: AtomicU64::new(1) }
    }

    fn restarted(self, enforce: Option<bool>, prepare: impl FnOnce(&Opened)) -> Self {
        let now = self.clock.wall_ms();
        let directory = self.stopped();
        Self::open(directory, now, enforce, prepare)
    }

    fn stopped(self) -> tempfile::TempDir {
        assert_eq!(self.store.stop(PATIENCE), Ok(()));
        self.directory
    }

    /// A connection of another program.
    fn shell(&self) -> Connection {
        Connection::open(self.directory.path().join("chat.db")).unwrap()
    }

    fn ticket(&self) -> Ticket {
        Ticket { shard: 0, token: self.tokens.fetch_add(1, Ordering::SeqCst) }
    }

    fn submit(&self, command: Command) -> Ticket {
        let ticket = self.ticket();
        self.store.submit(Submission { ticket, command }).unwrap();
        ticket
    }

    fn outcome(&self, ticket: Ticket) -> Result<Event, Refusal> {
        self.inbox.wait("an outcome", |state| {
            let found = state.outcomes().find(|outcome| outcome.ticket == Some(ticket));
            found.map(|outcome| outcome.result.clone())
        })
    }

    fn write(&self, command: Command) -> Result<Event, Refusal> {
        self.outcome(self.submit(command))
    }

    fn refusal(&self, command: Command) -> Refusal {
        self.write(command).unwrap_err()
    }

    fn ask(&self, query: Query) -> Answer {
        let ticket = self.ticket();
        self.store.ask(ticket, query).unwrap();
        self.inbox.wait("an answer", |state| state.answers.remove(&ticket.token))
    }

    fn close_gate(&self) {
        self.inbox.change(|state| state.gate_closed = true);
        self.submit(post(&bo(), CHAT, None, "at the gate"));
        self.inbox.wait("the writer at the gate", |state| state.held.then_some(()));
    }

    fn open_gate(&self) {
        self.inbox.change(|state| state.gate_closed = false);
    }

    /// Looks again after each commit, and now and then: not all of the store's own work has an event to wait for.
    fn eventually(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        const PAUSE: Duration = Duration::from_millis(10);
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            if is_so() {
                return;
            }
            let state = self.inbox.state.lock().unwrap();
            drop(self.inbox.changed.wait_timeout(state, PAUSE).unwrap());
        }
        panic!("waited in vain for {what}");
    }

    fn post(&self, author: &Actor, channel: ChannelId, parent: Option<MessageId>, text: &str) -> MessageId {
        posted(self.write(post(author, channel, parent, text))).id
    }

    fn roots(&self, channel: ChannelId, cursor: Cursor, limit: u16) -> Vec<Message> {
        messages(self.ask(Query::Roots { viewer: bo().viewer(), channel, cursor, limit }))
    }

    fn thread(&self, parent: MessageId, cursor: Cursor, limit: u16) -> Vec<Message> {
        messages(self.ask(Query::Thread { viewer: bo().viewer(), channel: GENERAL, parent, cursor, limit }))
    }

    fn register(&self, nickname: &str) -> Actor {
        let command = Command::Register { nickname: name(nickname), password_hash: "hash".into(), flags: 0 };
        match self.write(command).unwrap() {
            Event::Registered { user, .. } => Actor { user: Some(user), ..visitor(nickname, 1) },
            other => panic!("{other:?}"),
        }
    }

    fn ask_unread(&self, user: Option<UserId>, since: Option<i64>, of: &[(ChannelId, Option<MessageId>)]) -> Vec<u32> {
        let targets = of.iter().map(|&(channel, thread)| UnreadTarget { channel: Some(channel), thread }).collect();
        let viewer = Viewer { user, ..bo().viewer() };
        match self.ask(Query::Unread { viewer, since, targets }) {
            Answer::Unread(counts) => counts,
            other => panic!("{other:?}"),
        }
    }

    fn account(&self, nickname: &str) -> (Option<Account>, Option<Ban>) {
        account(self.ask(Query::Account { nickname: name(nickname) }))
    }

    fn channels_told(&self) -> Vec<(char, u64)> {
        let told = |outcome: &Outcome| match (&outcome.ticket, outcome.result.as_ref().unwrap()) {
            (None, Event::ChannelCreated(channel)) => Some(('+', channel.id.0)),
            (None, Event::ChannelChanged(channel)) => Some(('~', channel.id.0)),
            (None, Event::ChannelDeleted { channel }) => Some(('-', channel.0)),
            _ => None,
        };
        self.inbox.state.lock().unwrap().outcomes().filter_map(told).collect()
    }
}

fn name(text: &str) -> Name {
    text.as_bytes().into()
}

fn visitor(nickname: &str, session: u64) -> Actor {
    let address = IpAddr::from([192, 0, 2, 1]);
    Actor { user: None, nickname: name(nickname), flags: 0, session: SessionId(session), address, marks: Vec::new() }
}

fn bo() -> Actor {
    visitor("bo", 7)
}

fn admin(of: &Actor) -> Actor {
    Actor { flags: FLAG_ADMIN, ..of.clone() }
}

fn post(author: &Actor, channel: ChannelId, parent: Option<MessageId>, text: &str) -> Command {
    let content = Bytes::copy_from_slice(text.as_bytes());
    Command::Post { author: author.clone(), channel, parent, content }
}

fn edit(editor: &Actor, message: MessageId, text: &'static str) -> Command {
    let sanitized = Bytes::from(text.replace('\u{1}', ""));
    Command::Edit { editor: editor.clone(), message, content: text.into(), sanitized }
}

fn delete(actor: &Actor, message: MessageId) -> Command {
    Command::Delete { actor: actor.clone(), message }
}

fn rename(actor: &Actor, nickname: &str) -> Command {
    Command::Rename { user: actor.user.unwrap(), nickname: name(nickname), flags: 0, listed_as: None }
}

fn new_channel(text: &str, created_by: UserId, parent: Option<ChannelId>) -> Command {
    Command::CreateChannel(Box::new(NewChannel {
        name: name(text),
        display_name: name("Shown"),
        description: name("Said"),
        channel_type: ChannelType::Chat,
        retention_hours: 12,
        created_by: Some(created_by),
        parent,
    }))
}

fn posted(result: Result<Event, Refusal>) -> Message {
    match result.unwrap() {
        Event::Posted(message) => message,
        other => panic!("{other:?}"),
    }
}

fn messages(answer: Answer) -> Vec<Message> {
    match answer {
        Answer::Messages(messages) => messages,
        other => panic!("{other:?}"),
    }
}

fn account(answer: Answer) -> (Option<Account>, Option<Ban>) {
    match answer {
        Answer::Account { account, ban } => (account, ban),
        other => panic!("{other:?}"),
    }
}

fn ids(messages: &[Message]) -> Vec<MessageId> {
    messages.iter().map(|message| message.id).collect()
}

fn value<T: rusqlite::types::FromSql>(conn: &Connection, sql: &str) -> T {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

// Commits.

#[test]
fn outcomes_arrive_once_and_in_the_order_of_submission() {
    let server = Server::new();
    let tickets: Vec<Ticket> = (0..3000).map(|_| server.submit(post(&bo(), CHAT, None, "hi"))).collect();
    posted(server.outcome(*tickets.last().unwrap()));
    let state = server.inbox.state.lock().unwrap();
    let told: Vec<Ticket> = state.outcomes().map(|outcome| outcome.ticket.unwrap()).collect();
    assert_eq!(told, tickets);
    let ids: Vec<MessageId> = state.outcomes().map(|outcome| posted(outcome.result.clone()).id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b));
    assert!(state.batches.iter().all(|batch| batch.len() <= WRITER_BATCH_MAX));
}

#[test]
fn what_gathers_during_a_commit_shares_the_next_one() {
    let server = Server::new();
    server.close_gate();
    let commits = server.inbox.state.lock().unwrap().commits;
    let tickets: Vec<Ticket> = (0..500).map(|_| server.submit(post(&bo(), CHAT, None, "hi"))).collect();
    server.open_gate();
    posted(server.outcome(tickets[499]));
    let state = server.inbox.state.lock().unwrap();
    assert_eq!(state.batches.last().unwrap().len(), 500);
    // One for the posts; others can only be chores of maintenance.
    assert!(state.commits - commits <= 4, "{} commits", state.commits - commits);
}

#[test]
fn a_delivered_batch_is_durable_and_visible() {
    let server = Server::new();
    let id = server.post(&bo(), CHAT, None, "hi");
    assert_eq!(ids(&server.roots(CHAT, Cursor::None, 10)), [id]);
    let copy = server.shell();
    assert_eq!(value::<i64>(&copy, "SELECT count(*) FROM Message"), 1);
}

#[test]
fn a_refused_command_disturbs_no_other() {
    let server = Server::new();
    server.close_gate();
    let before = server.submit(post(&bo(), CHAT, None, "before"));
    let refused = server.submit(post(&bo(), NOWHERE, None, "lost"));
    let ann = Command::Register { nickname: name("ann"), password_hash: "".into(), flags: 0 };
    let registered = server.submit(ann);
    let twice = Command::Register { nickname: name("ANN"), password_hash: "".into(), flags: 0 };
    let taken = server.submit(twice);
    let after = server.submit(post(&bo(), CHAT, None, "after"));
    server.open_gate();
    posted(server.outcome(before));
    posted(server.outcome(after));
    assert!(server.outcome(registered).is_ok());
    assert_eq!(server.outcome(refused).unwrap_err(), Refusal::ChannelNotFound);
    assert_eq!(server.outcome(taken).unwrap_err(), Refusal::NicknameTaken);
    let state = server.inbox.state.lock().unwrap();
    assert_eq!(state.batches.last().unwrap().len(), 5);
    assert_eq!(state.faults, []);
}

#[test]
fn a_full_queue_is_busy_and_loses_nothing() {
    let server = Server::new();
    server.close_gate();
    let accepted = std::iter::repeat_with(|| {
        let ticket = server.ticket();
        let taken = server.store.submit(Submission { ticket, command: post(&bo(), CHAT, None, "hi") });
        taken.map(|()| ticket)
    });
    let accepted: Vec<Ticket> = accepted.map_while(Result::ok).collect();
    assert!((WRITER_QUEUE_MAX - 16..=WRITER_QUEUE_MAX).contains(&accepted.len()), "{}", accepted.len());
    let submission = Submission { ticket: server.ticket(), command: post(&bo(), CHAT, None, "more") };
    assert_eq!(server.store.submit(submission).unwrap_err(), Busy);
    server.open_gate();
    for ticket in accepted {
        posted(server.outcome(ticket));
    }
}

#[test]
fn ids_rise_above_the_newest_of_the_file_when_the_clock_is_behind() {
    let newest = 900_000_000_000_i64 << 22;
    let server = Server::prepared(|opened| {
        let insert =
            "INSERT INTO Message (id, channel_id, author_nickname, content, created_at) VALUES (?1, 1, '', '', ?2)";
        opened.writer.execute(insert, [newest, START]).unwrap();
    });
    assert_eq!(server.post(&bo(), CHAT, None, "hi"), MessageId(newest as u64 + 1));
}

#[test]
fn stopping_finishes_what_was_accepted() {
    let server = Server::new();
    server.close_gate();
    for _ in 0..2000 {
        server.submit(post(&bo(), CHAT, None, "hi"));
    }
    server.open_gate();
    let inbox = server.inbox.clone();
    let directory = server.stopped();
    assert!(inbox.wait("the exit", |state| state.writer_exit));
    let database = Connection::open(directory.path().join("chat.db")).unwrap();
    assert_eq!(value::<i64>(&database, "SELECT count(*) FROM Message"), 2001);
    let wal = directory.path().join("chat.db-wal");
    assert_eq!(wal.metadata().map_or(0, |wal| wal.len()), 0);
    assert!(!directory.path().join("chat.db.lock").exists());
}

#[test]
fn a_stopped_store_takes_nothing_and_a_late_one_says_so() {
    let server = Server::new();
    server.close_gate();
    assert_eq!(server.store.stop(Duration::ZERO), Err(StopTimeout));
    let submission = Submission { ticket: server.ticket(), command: post(&bo(), CHAT, None, "late") };
    assert_eq!(server.store.submit(submission).unwrap_err(), Busy);
    assert_eq!(server.store.ask(server.ticket(), Query::Accounts { limit: 1 }).unwrap_err(), Busy);
    server.open_gate();
    assert_eq!(server.store.stop(PATIENCE), Ok(()));
}

#[test]
fn a_panic_of_the_writer_is_told() {
    let counted = panics();
    let server = Server::new();
    server.inbox.change(|state| state.panics = true);
    server.submit(post(&bo(), CHAT, None, "hi"));
    assert!(!server.inbox.wait("the exit", |state| state.writer_exit));
    assert!(!server.store.is_writer_alive());
    assert_eq!(server.store.probe(PATIENCE), Err(ProbeError::Unavailable));
    assert_eq!(panics() - counted, 1);
}

#[test]
fn a_panic_of_a_reader_fails_one_read() {
    let counted = panics();
    let server = Server::new();
    let accounts = || server.ask(Query::Accounts { limit: 10 });
    server.clock.breaks_reads.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert!(matches!(accounts(), Answer::Failed), "two readers go on");
    }
    server.clock.breaks_reads.store(false, Ordering::SeqCst);
    assert!(matches!(accounts(), Answer::Accounts(_)));
    assert_eq!(panics() - counted, 3);
}

/// Panics as the server counts them.
fn panics() -> u64 {
    std::panic::set_hook(Box::new(superchat::errors::hook));
    superchat::errors::panics()
}

// Faults.

#[test]
fn a_full_disk_refuses_writes_until_there_is_room_and_reads_go_on() {
    let server = Server::prepared(|opened| {
        opened.writer.execute_batch("CREATE TABLE filler (x); INSERT INTO filler VALUES (zeroblob(4000000))").unwrap();
        let pages: i64 = value(&opened.writer, "PRAGMA page_count");
        opened.writer.query_row(&format!("PRAGMA max_page_count = {}", pages + 40), [], |_| Ok(())).unwrap();
    });
    let text = "x".repeat(4000);
    let command = || post(&bo(), CHAT, None, &text);
    let stored = std::iter::repeat_with(|| server.write(command())).map_while(Result::ok).count();
    assert!((1..200).contains(&stored), "{stored}");
    assert_eq!(server.refusal(command()), Refusal::Database);
    assert_eq!(server.store.probe(PATIENCE), Ok(()), "one small row still fits");
    assert!(server.inbox.state.lock().unwrap().faults.iter().all(|fault| *fault == Fault::Full));
    assert_eq!(server.roots(CHAT, Cursor::None, 200).len(), stored);
    server.shell().execute_batch("DELETE FROM filler").unwrap();
    posted(server.write(command()));
    assert_eq!(server.roots(CHAT, Cursor::None, 200).len(), stored + 1);
}

#[test]
fn while_the_disk_is_full_a_batch_acknowledges_only_what_is_stored() {
    let server = Server::prepared(|opened| {
        let pages: i64 = value(&opened.writer, "PRAGMA page_count");
        opened.writer.query_row(&format!("PRAGMA max_page_count = {}", pages + 20), [], |_| Ok(())).unwrap();
    });
    server.close_gate();
    let text = "x".repeat(4000);
    let tickets: Vec<Ticket> = (0..200).map(|_| server.submit(post(&bo(), CHAT, None, &text))).collect();
    server.open_gate();
    let mut acknowledged = Vec::new();
    for ticket in tickets {
        match server.outcome(ticket) {
            Ok(event) => acknowledged.push(posted(Ok(event)).id),
            Err(refusal) => assert_eq!(refusal, Refusal::Database),
        }
    }
    assert!(acknowledged.len() < 200);
    let mut stored = ids(&server.roots(CHAT, Cursor::After(MessageId(0)), 200));
    // The first is the one at the gate.
    stored.remove(0);
    assert_eq!(stored, acknowledged);
}

#[test]
fn a_file_held_by_another_program_refuses_writes_until_it_is_free_and_reads_go_on() {
    let server = Server::prepared(|opened| opened.writer.busy_timeout(Duration::from_millis(20)).unwrap());
    let first = server.post(&bo(), CHAT, None, "before");
    let shell = server.shell();
    shell.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_eq!(server.refusal(post(&bo(), CHAT, None, "during")), Refusal::Database);
    assert_eq!(server.store.probe(PATIENCE), Err(ProbeError::Failed));
    assert_eq!(ids(&server.roots(CHAT, Cursor::None, 10)), [first]);
    assert!(server.inbox.state.lock().unwrap().faults.iter().all(|fault| *fault == Fault::Busy));
    shell.execute_batch("COMMIT").unwrap();
    let last = server.post(&bo(), CHAT, None, "after");
    assert_eq!(ids(&server.roots(CHAT, Cursor::None, 10)), [last, first]);
    assert_eq!(server.store.probe(PATIENCE), Ok(()));
}

// Other programs.

#[test]
fn channels_that_another_program_changes_are_told() {
    let server = Server::new();
    let shell = server.shell();
    let look = || {
        server.clock.pass(Duration::from_secs(2));
        server.post(&bo(), CHAT, None, "tick");
        // The poll follows the batch; the next batch can only come after it.
        server.post(&bo(), CHAT, None, "tock");
        let told = server.channels_told();
        server.inbox.change(|state| state.batches.clear());
        told
    };
    assert_eq!(look(), []);
    shell
        .execute_batch(
            "INSERT INTO Channel (name, display_name, created_at) VALUES ('new', '#new', 1700000000);
             INSERT INTO Channel (name, display_name, created_at, parent_id) VALUES ('sub', 'new/sub', 1, 6);
             UPDATE Channel SET description = 'other' WHERE id = 2;",
        )
        .unwrap();
    assert_eq!(look(), [('~', 2), ('+', 6), ('+', 7)]);
    assert_eq!(look(), []);
    shell.execute_batch("PRAGMA foreign_keys = ON; DELETE FROM Channel WHERE id = 6").unwrap();
    assert_eq!(look(), [('-', 7), ('-', 6)]);
}

#[test]
fn what_changes_between_loading_and_starting_is_told_too() {
    let server = Server::new().restarted(None, |_| ());
    let channels = load_channels(&server.shell()).unwrap();
    let directory = server.stopped();
    let opened = open(&directory.path().join("chat.db"), &OpenOptions::default(), START).unwrap();
    let inbox = Arc::new(Inbox::default());
    let parts = Parts {
        readers: 1,
        retention: Retention { enforce: None, interval: Duration::from_secs(3600) },
        channels: channels.into_iter().filter(|channel| channel.id != TECH).collect(),
        deliver: inbox.clone(),
        clock: Arc::new(TestClock {
            wall_ms: AtomicI64::new(START),
            monotonic_ms: AtomicU64::new(0),
            breaks_reads: AtomicBool::new(false),
        }),
        observe: Arc::new(()),
        on_writer_exit: Box::new(|_| ()),
    };
    let store = SqliteStore::start(opened, parts).unwrap();
    inbox.wait("the channel", |state| {
        let is_told =
            |outcome: &Outcome| matches!(&outcome.result, Ok(Event::ChannelCreated(Channel { id: TECH, .. })));
        state.outcomes().any(is_told).then_some(())
    });
    assert_eq!(store.stop(PATIENCE), Ok(()));
}

// Posting.

#[test]
fn any_bytes_survive_as_text() {
    let server = Server::new();
    let content = Bytes::from_static(b"\xff\xfe a\0b \xc3");
    let author = Actor { nickname: b"b\xffo"[..].into(), ..bo() };
    let command = Command::Post { author, channel: CHAT, parent: None, content: content.clone() };
    let told = posted(server.write(command));
    assert_eq!(told.content, content);
    let server = server.restarted(None, |_| ());
    assert_eq!(server.roots(CHAT, Cursor::None, 1), [told]);
    let shell = server.shell();
    assert_eq!(value::<String>(&shell, "SELECT typeof(content) || typeof(author_nickname) FROM Message"), "texttext");
    assert_eq!(value::<String>(&shell, "SELECT hex(content) FROM Message"), "FFFE20610062 20C3".replace(' ', ""));
}

#[test]
fn a_post_is_told_as_it_is_stored() {
    let server = Server::new();
    let ann = server.register("ann");
    let root = posted(server.write(post(&ann, GENERAL, None, "root")));
    let author = Author::Account { user: ann.user.unwrap(), nickname: name("ann"), flags: 0 };
    let expected = Message {
        id: root.id,
        channel: GENERAL,
        parent: None,
        thread_root: root.id,
        author,
        content: "root".into(),
        created_at: START,
        edited_at: None,
        reply_count: 0,
        audience: Audience::Everybody,
    };
    assert_eq!(root, expected);
    let reply = posted(server.write(post(&bo(), GENERAL, Some(root.id), "reply")));
    let below = posted(server.write(post(&bo(), GENERAL, Some(reply.id), "below")));
    assert_eq!((below.parent, below.thread_root), (Some(reply.id), root.id));
    assert_eq!(server.thread(root.id, Cursor::None, 10), [reply, below]);
    assert_eq!(server.roots(GENERAL, Cursor::None, 10), [Message { reply_count: 2, ..root }]);
    let shell = server.shell();
    assert_eq!(value::<i64>(&shell, "SELECT count(*) FROM Message WHERE subchannel_id IS NOT NULL"), 0);
    assert_eq!(value::<i64>(&shell, "SELECT count(*) FROM Message WHERE thread_root_id IS NULL"), 0);
}

#[test]
fn replies_need_a_parent_in_the_same_place() {
    let server = Server::new();
    let root = server.post(&bo(), GENERAL, None, "root");
    assert_eq!(server.refusal(post(&bo(), TECH, Some(root), "x")), Refusal::MessageNotFound);
    assert_eq!(server.refusal(post(&bo(), GENERAL, Some(MessageId(1)), "x")), Refusal::MessageNotFound);
    server.write(delete(&bo(), root)).unwrap();
    server.post(&bo(), GENERAL, Some(root), "below a placeholder");
}

#[test]
fn threads_are_as_deep_as_the_limit_and_no_deeper() {
    let server = Server::new();
    let mut parent = server.post(&bo(), GENERAL, None, "root");
    for _ in 0..THREAD_DEPTH_MAX {
        parent = server.post(&bo(), GENERAL, Some(parent), "deeper");
    }
    assert_eq!(server.refusal(post(&bo(), GENERAL, Some(parent), "too deep")), Refusal::ThreadTooDeep);
}

// Editing and deleting.

#[test]
fn editing_is_for_the_author_and_admins() {
    let server = Server::new();
    let ann = server.register("ann");
    let eve = server.register("eve");
    let id = server.post(&ann, GENERAL, None, "old");
    let anonymous = server.post(&bo(), GENERAL, None, "nobody's");
    assert_eq!(server.refusal(edit(&ann, MessageId(5), "x")), Refusal::MessageNotFound);
    assert_eq!(server.refusal(edit(&ann, anonymous, "x")), Refusal::AnonymousMessage);
    assert_eq!(server.refusal(edit(&admin(&eve), anonymous, "x")), Refusal::AnonymousMessage);
    assert_eq!(server.refusal(edit(&eve, id, "x")), Refusal::NotYours);
    assert_eq!(server.refusal(edit(&ann, id, "\u{1}")), Refusal::EmptyContent);
    match server.write(edit(&ann, id, "n\u{1}ew")).unwrap() {
        Event::Edited { message, channel, thread_root, edited_at, content, audience: Audience::Everybody } => {
            assert_eq!((message, channel, thread_root, edited_at), (id, GENERAL, id, START));
            assert_eq!(content, "new");
        }
        other => panic!("{other:?}"),
    }
    server.write(edit(&admin(&eve), id, "newest")).unwrap();
    let shown = &server.roots(GENERAL, Cursor::Before(anonymous), 1)[0];
    assert_eq!((shown.content.as_ref(), shown.edited_at), (&b"newest"[..], Some(START)));
    let shell = server.shell();
    let versions = "SELECT group_concat(version_type || ':' || content || ':' || author_nickname) FROM MessageVersion";
    assert_eq!(value::<String>(&shell, versions), "edited:old:ann,edited:new:ann");
    let audit = "SELECT group_concat(admin_nickname || ':' || action_type || ':' || target_type || ':' || ip_address)
                 FROM AdminAction";
    assert_eq!(value::<String>(&shell, audit), "eve:EDIT_MESSAGE:message:192.0.2.1");
    assert_eq!(value::<i64>(&shell, "SELECT target_id FROM AdminAction"), id.as_sql());
}

#[test]
fn a_deleted_message_is_neither_edited_nor_deleted_again() {
    let server = Server::new();
    let ann = server.register("ann");
    let eve = server.register("eve");
    let id = server.post(&ann, GENERAL, None, "old");
    assert_eq!(server.refusal(delete(&eve, id)), Refusal::NotYours);
    server.write(delete(&ann, id)).unwrap();
    assert_eq!(server.refusal(delete(&ann, id)), Refusal::AlreadyDeleted);
    assert_eq!(server.refusal(delete(&eve, id)), Refusal::AlreadyDeleted);
    assert_eq!(server.refusal(edit(&ann, id, "x")), Refusal::AlreadyDeleted);
    assert_eq!(server.refusal(edit(&eve, id, "x")), Refusal::NotYours);
    assert_eq!(server.refusal(delete(&ann, MessageId(5))), Refusal::MessageNotFound);
}

#[test]
fn deleting_leaves_a_placeholder_and_keeps_the_text_aside() {
    let server = Server::new();
    let ann = server.register("ann");
    let eve = server.register("eve");
    let root = server.post(&ann, GENERAL, None, "[deleted by ~not me] secret");
    let reply = server.post(&bo(), GENERAL, Some(root), "reply");
    match server.write(delete(&admin(&eve), root)).unwrap() {
        Event::Deleted { message, channel, thread_root, deleted_at, placeholder, audience: Audience::Everybody } => {
            assert_eq!((message, channel, thread_root, deleted_at), (root, GENERAL, root, START));
            assert_eq!(placeholder, "[deleted by ~eve]");
        }
        other => panic!("{other:?}"),
    }
    let shown = server.roots(GENERAL, Cursor::None, 10);
    assert_eq!((shown[0].content.as_ref(), shown[0].reply_count), (&b"[deleted by ~eve]"[..], 1));
    let shell = server.shell();
    assert_eq!(
        value::<String>(&shell, "SELECT version_type || content FROM MessageVersion"),
        "deleted[deleted by ~not me] secret"
    );
    assert_eq!(value::<String>(&shell, "SELECT action_type FROM AdminAction"), "DELETE_MESSAGE");
    server.write(delete(&bo(), reply)).unwrap();
    assert_eq!(server.roots(GENERAL, Cursor::None, 10), []);
    assert_eq!(server.thread(root, Cursor::None, 10), []);
}

#[test]
fn visitors_delete_what_their_session_or_their_name_and_address_wrote() {
    let server = Server::new();
    let elsewhere = |actor: Actor| Actor { address: IpAddr::from([198, 51, 100, 9]), ..actor };
    let post = || server.post(&visitor("bo", 1), GENERAL, None, "mine");
    assert!(server.write(delete(&elsewhere(visitor("renamed", 1)), post())).is_ok());
    assert!(server.write(delete(&visitor("bo", 2), post())).is_ok());
    assert_eq!(server.refusal(delete(&visitor("eve", 2), post())), Refusal::NotYours);
    assert_eq!(server.refusal(delete(&elsewhere(visitor("bo", 2)), post())), Refusal::NotYours);
    let eve = server.register("eve");
    assert!(server.write(delete(&admin(&eve), post())).is_ok());
    let id = post();
    let server = server.restarted(None, |_| ());
    assert_eq!(server.refusal(delete(&visitor("bo", 1), id)), Refusal::NotYours);
}

// Channels.

#[test]
fn channel_names_are_unique_and_parents_must_exist() {
    let server = Server::new();
    let ann = server.register("ann").user.unwrap();
    let created = match server.write(new_channel("fresh", ann, None)).unwrap() {
        Event::ChannelCreated(channel) => channel,
        other => panic!("{other:?}"),
    };
    let sub = match server.write(new_channel("below", ann, Some(created.id))).unwrap() {
        Event::ChannelCreated(channel) => channel,
        other => panic!("{other:?}"),
    };
    assert_eq!(server.refusal(new_channel("fresh", ann, None)), Refusal::NameTaken);
    assert_eq!(server.refusal(new_channel("below", ann, Some(GENERAL))), Refusal::NameTaken);
    assert_eq!(server.refusal(new_channel("other", ann, Some(NOWHERE))), Refusal::ChannelNotFound);
    assert_eq!(server.refusal(new_channel("other", ann, Some(sub.id))), Refusal::ChannelNotFound);
    assert_eq!(server.refusal(new_channel("other", UserId(99), None)), Refusal::UserNotFound);
    assert_eq!(created.retention_hours, 12);
    let loaded = load_channels(&server.shell()).unwrap();
    assert_eq!(loaded[5..], [created, sub.clone()]);
    server.post(&bo(), sub.id, None, "in the subchannel");
    assert_eq!(server.roots(sub.id, Cursor::None, 10).len(), 1);
}

#[test]
fn both_spellings_of_a_subchannel_are_one_place() {
    let server = Server::new();
    let ann = server.register("ann");
    let Event::ChannelCreated(sub) = server.write(new_channel("below", ann.user.unwrap(), Some(GENERAL))).unwrap()
    else {
        panic!("no channel");
    };
    let insert =
        "INSERT INTO Message (id, channel_id, subchannel_id, thread_root_id, author_nickname, content, created_at)
                  VALUES (5, 2, ?1, 5, 'old', 'spelling', ?2)";
    server.shell().execute(insert, params![sub.id.as_sql(), START]).unwrap();
    let new = server.post(&bo(), sub.id, None, "new spelling");
    assert_eq!(ids(&server.roots(sub.id, Cursor::None, 10)), [new, MessageId(5)]);
    assert_eq!(server.roots(GENERAL, Cursor::None, 10), []);
    assert_eq!(server.ask_unread(ann.user, Some(0), &[(sub.id, None), (GENERAL, None)]), [2, 0]);
    server
        .shell()
        .execute("INSERT INTO UserChannelState VALUES (1, 2, ?1, ?2, ?2 / 1000)", params![sub.id.as_sql(), START])
        .unwrap();
    assert_eq!(server.ask_unread(ann.user, None, &[(sub.id, None)]), [0]);
}

// Accounts.

#[test]
fn nicknames_are_taken_in_every_case_of_their_letters() {
    let server = Server::new();
    server.register("Ann");
    let register = |nickname| Command::Register { nickname: name(nickname), password_hash: "h".into(), flags: 1 };
    assert_eq!(server.refusal(register("Ann")), Refusal::NicknameTaken);
    assert_eq!(server.refusal(register("aNN")), Refusal::NicknameTaken);
    assert!(server.write(register("ann2")).is_ok());
    assert_eq!(server.account("ann").0, None);
    let expected =
        Account { id: UserId(2), nickname: name("ann2"), flags: 1, password_hash: "h".into(), has_alias: false };
    assert_eq!(server.account("ann2").0, Some(expected.clone()));
    assert_eq!(account(server.ask(Query::AccountById { user: UserId(2) })).0, Some(expected));
    assert_eq!(account(server.ask(Query::AccountById { user: UserId(9) })), (None, None));
}

#[test]
fn signing_in_writes_time_and_flags() {
    let server = Server::new();
    let ann = server.register("ann").user.unwrap();
    server.clock.pass(Duration::from_secs(60));
    assert!(server.write(Command::SignIn { user: ann, flags: FLAG_ADMIN }).is_ok());
    assert_eq!(server.refusal(Command::SignIn { user: UserId(9), flags: 0 }), Refusal::UserNotFound);
    assert_eq!(value::<i64>(&server.shell(), "SELECT last_seen FROM User"), START + 60_000);
    assert_eq!(server.account("ann").0.unwrap().flags, FLAG_ADMIN);
}

#[test]
fn a_renamed_account_signs_in_by_the_name_of_its_password() {
    let server = Server::new();
    let (ann, eve) = (server.register("ann"), server.register("eve"));
    let has_alias = |nickname| server.account(nickname).0.map(|account| (account.nickname.to_vec(), account.has_alias));
    server.write(rename(&ann, "anna")).unwrap();
    assert_eq!(has_alias("anna"), Some((b"anna".to_vec(), true)));
    assert_eq!(has_alias("ann"), Some((b"anna".to_vec(), true)));
    let register = |nickname| Command::Register { nickname: name(nickname), password_hash: "h".into(), flags: 0 };
    assert_eq!(server.refusal(register("ann")), Refusal::NicknameTaken);
    assert_eq!(server.refusal(register("ANN")), Refusal::NicknameTaken);
    assert_eq!(server.refusal(rename(&eve, "ann")), Refusal::NicknameTaken);
    assert_eq!(server.refusal(rename(&eve, "ANNA")), Refusal::NicknameTaken);
    server.write(rename(&ann, "anja")).unwrap();
    assert_eq!(has_alias("ann"), Some((b"anja".to_vec(), true)));
    assert_eq!(has_alias("anna"), None);
    server.write(rename(&ann, "ann")).unwrap();
    assert_eq!(has_alias("ann"), Some((b"ann".to_vec(), false)));
    assert_eq!(value::<i64>(&server.shell(), "SELECT count(*) FROM scd_login_alias"), 0);
    assert!(server.write(rename(&ann, "Ann")).is_ok());
    let nobody = Actor { user: Some(UserId(99)), ..bo() };
    assert_eq!(server.refusal(rename(&nobody, "free")), Refusal::UserNotFound);
}

#[test]
fn a_new_password_ends_the_alias() {
    let server = Server::new();
    let ann = server.register("ann");
    server.write(rename(&ann, "anna")).unwrap();
    let set = |user, hash: Option<&str>| Command::SetPassword { user, password_hash: hash.map(Into::into) };
    server.write(set(ann.user.unwrap(), Some("new"))).unwrap();
    assert_eq!(server.account("ann").0, None);
    assert_eq!(&*server.account("anna").0.unwrap().password_hash, "new");
    assert_eq!(server.refusal(set(UserId(9), Some("new"))), Refusal::UserNotFound);
}

#[test]
fn a_password_is_only_removed_beside_an_ssh_key() {
    let server = Server::new();
    let user = server.register("ann").user.unwrap();
    let remove = || Command::SetPassword { user, password_hash: None };
    assert_eq!(server.refusal(remove()), Refusal::NoSshKeys);
    let key = "INSERT INTO SSHKey (user_id, fingerprint, public_key, key_type, added_at) VALUES (1, 'f', 'k', 't', 1)";
    server.shell().execute_batch(key).unwrap();
    server.write(remove()).unwrap();
    assert_eq!(&*server.account("ann").0.unwrap().password_hash, "");
}

#[test]
fn accounts_are_listed_by_the_bytes_of_their_nicknames() {
    let server = Server::new();
    for nickname in ["bob", "Zoe", "ann"] {
        server.register(nickname);
    }
    let list = |limit| match server.ask(Query::Accounts { limit }) {
        Answer::Accounts(accounts) => accounts.into_iter().map(|account| account.nickname.to_vec()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(list(10), [b"Zoe".to_vec(), b"ann".to_vec(), b"bob".to_vec()]);
    assert_eq!(list(1), [b"Zoe".to_vec()]);
}

#[test]
fn the_ban_that_counts_is_the_one_that_refuses_longest() {
    let server = Server::new();
    server.register("ann");
    let shell = server.shell();
    let ban = |user: Option<i64>, nickname: Option<&str>, reason: &str, shadow: bool, until: Option<i64>| {
        let insert =
            "INSERT INTO Ban (ban_type, user_id, nickname, reason, shadowban, banned_at, banned_until, banned_by)
                      VALUES ('user', ?1, ?2, ?3, ?4, 1, ?5, 'root')";
        shell.execute(insert, params![user, nickname, reason, shadow, until]).unwrap();
    };
    let reason = |nickname| server.account(nickname).1.map(|ban| (ban.reason.to_vec(), ban.until, ban.shadow));
    assert_eq!(reason("ann"), None);
    ban(Some(1), None, "expired", false, Some(START - 1));
    assert_eq!(reason("ann"), None);
    ban(None, Some("ann"), "hidden", true, None);
    assert_eq!(reason("ann"), Some((b"hidden".to_vec(), None, true)));
    ban(Some(1), None, "hour", false, Some(START + HOUR));
    assert_eq!(reason("ann"), Some((b"hour".to_vec(), Some(START + HOUR), false)));
    ban(None, Some("ann"), "forever", false, None);
    assert_eq!(reason("ann"), Some((b"forever".to_vec(), None, false)));
    assert_eq!(account(server.ask(Query::AccountById { user: UserId(1) })).1.unwrap().reason, name("forever"));
    ban(None, Some("guest"), "no account", false, None);
    assert_eq!(server.account("guest").0, None);
    assert_eq!(reason("guest"), Some((b"no account".to_vec(), None, false)));
}

// Lists.

#[test]
fn roots_are_paged_strictly_by_id() {
    let server = Server::new();
    let posted: Vec<MessageId> = (0..7).map(|_| server.post(&bo(), GENERAL, None, "root")).collect();
    server.post(&bo(), GENERAL, Some(posted[0]), "replies do not move their root");
    server.post(&bo(), TECH, None, "elsewhere");
    let page = |cursor, limit| ids(&server.roots(GENERAL, cursor, limit));
    assert_eq!(page(Cursor::None, 3), [posted[6], posted[5], posted[4]]);
    assert_eq!(page(Cursor::Before(posted[4]), 2), [posted[3], posted[2]]);
    assert_eq!(page(Cursor::After(posted[4]), 5), [posted[5], posted[6]]);
    assert_eq!(page(Cursor::After(posted[1]), 2), [posted[2], posted[3]]);
    assert_eq!(page(Cursor::Before(MessageId(1)), 2), []);
    assert_eq!(server.roots(NOWHERE, Cursor::None, 5), []);
}

#[test]
fn a_thread_is_asked_for_by_any_of_its_messages_and_only_in_its_place() {
    let server = Server::new();
    let root = server.post(&bo(), GENERAL, None, "root");
    let first = server.post(&bo(), GENERAL, Some(root), "first");
    let second = server.post(&bo(), GENERAL, Some(root), "second");
    let below = server.post(&bo(), GENERAL, Some(first), "below the first");
    assert_eq!(ids(&server.thread(root, Cursor::None, 10)), [first, below, second]);
    assert_eq!(ids(&server.thread(root, Cursor::Before(below), 10)), [second]);
    assert_eq!(ids(&server.thread(root, Cursor::After(second), 10)), [below]);
    assert_eq!(ids(&server.thread(first, Cursor::None, 10)), [below]);
    assert_eq!(server.thread(MessageId(5), Cursor::None, 10), []);
    let viewer = bo().viewer();
    let elsewhere = Query::Thread { viewer, channel: TECH, parent: root, cursor: Cursor::None, limit: 10 };
    assert_eq!(messages(server.ask(elsewhere)), []);
    let thread_of = |message| match server.ask(Query::ThreadOf { viewer, message }) {
        Answer::ThreadOf(found) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(thread_of(below), Some((root, GENERAL)));
    assert_eq!(thread_of(root), Some((root, GENERAL)));
    assert_eq!(thread_of(MessageId(5)), None);
}

#[test]
fn authors_are_shown_as_they_are_now() {
    let server = Server::new();
    let ann = server.register("ann");
    server.post(&ann, CHAT, None, "by an account");
    server.post(&bo(), CHAT, None, "by a visitor");
    server.write(rename(&ann, "anna")).unwrap();
    server.write(Command::SignIn { user: ann.user.unwrap(), flags: 2 }).unwrap();
    server.post(&visitor("gone", 3), CHAT, None, "by an account whose row is gone");
    server.shell().execute("UPDATE Message SET author_user_id = 99 WHERE author_nickname = 'gone'", []).unwrap();
    server.post(&visitor("", 3), CHAT, None, "by the server");
    let authors: Vec<Author> =
        server.roots(CHAT, Cursor::After(MessageId(0)), 10).into_iter().map(|message| message.author).collect();
    let expected = [
        Author::Account { user: ann.user.unwrap(), nickname: name("anna"), flags: 2 },
        Author::Visitor { nickname: name("bo") },
        Author::MissingAccount { user: UserId(99) },
        Author::System,
    ];
    assert_eq!(authors, expected);
}

/// A file of an older server: a thread without known roots, deleted rows that kept their text, a broken chain.
fn old_rows(opened: &Opened) {
    opened
        .writer
        .execute_batch(&format!(
            "INSERT INTO User (id, nickname, password_hash, created_at, last_seen) VALUES (1, 'ann', '', 1, 1);
             PRAGMA foreign_keys = OFF;
             INSERT INTO Message
                 (id, channel_id, parent_id, thread_root_id, author_user_id, author_nickname, content, created_at, deleted_at)
             VALUES
                 (10, 2, NULL, NULL, NULL, 'bo', 'root', {START}, NULL),
                 (11, 2, 10, NULL, 1, 'an', 'secret', {START}, 5),
                 (12, 2, 11, NULL, NULL, 'bo', 'below', {START}, NULL),
                 (13, 2, 10, NULL, NULL, 'bo', '[deleted by ~bo] secret', {START}, 5),
                 (20, 2, NULL, 20, NULL, 'bo', '[deleted by ~x] secret', {START}, 5),
                 (21, 2, 20, 20, NULL, 'bo', 'alive', {START}, NULL),
                 (22, 2, 404, 20, NULL, 'bo', 'orphan', {START}, NULL),
                 (30, 2, NULL, 30, NULL, 'bo', 'gone', {START}, 5),
                 (31, 2, 30, 30, NULL, 'bo', 'gone too', {START}, 5);
             PRAGMA foreign_keys = ON;",
        ))
        .unwrap();
}

#[test]
fn files_of_older_servers_are_shown_before_and_after_their_repair() {
    let shown = |messages: Vec<Message>| -> Vec<(u64, u64, u32, String)> {
        let shown = |message: Message| {
            let text = String::from_utf8(message.content.to_vec()).unwrap();
            (message.id.0, message.thread_root.0, message.reply_count, text)
        };
        messages.into_iter().map(shown).collect()
    };
    let row = |id, root, replies, text: &str| (id, root, replies, text.to_owned());
    let roots = |orphans: u32| [row(20, 20, 1 + orphans, "[deleted by ~bo]"), row(10, 10, 1, "root")];
    let thread = [row(11, 10, 0, "[deleted by ~ann]"), row(12, 10, 0, "below")];

    let mut held = None;
    let server = Server::prepared(|opened| {
        old_rows(opened);
        // As long as this is held, the repair cannot begin.
        let other = held.insert(Connection::open(&opened.path).unwrap());
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
    });
    assert_eq!(shown(server.roots(GENERAL, Cursor::None, 10)), roots(0));
    assert_eq!(shown(server.thread(MessageId(10), Cursor::None, 10)), thread);
    drop(held);
    server.eventually("the repair", || shown(server.roots(GENERAL, Cursor::None, 10)) == roots(1));
    assert_eq!(value::<i64>(&server.shell(), "SELECT count(*) FROM Message WHERE thread_root_id IS NULL"), 0);
    assert_eq!(shown(server.thread(MessageId(10), Cursor::None, 10)), thread);
    let orphans = server.thread(MessageId(20), Cursor::None, 10);
    assert_eq!(shown(orphans.clone()), [row(21, 20, 0, "alive"), row(22, 20, 0, "orphan")]);
    assert_eq!(orphans[1].parent, Some(MessageId(20)));
    let reply = posted(server.write(post(&bo(), GENERAL, Some(MessageId(22)), "below the orphan")));
    assert_eq!(reply.thread_root, MessageId(20));
    let root = Actor { user: Some(UserId(1)), flags: FLAG_ADMIN, ..bo() };
    server.write(delete(&root, MessageId(22))).unwrap();
}

#[test]
fn a_page_of_a_huge_thread_is_quick() {
    const REPLIES: i64 = 10_000;
    let server = Server::prepared(|opened| {
        opened
            .writer
            .execute_batch(&format!(
                "INSERT INTO Message (id, channel_id, thread_root_id, author_nickname, content, created_at)
                     VALUES (1000, 2, 1000, 'bo', 'root', {START});
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {REPLIES})
                 INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at)
                 SELECT 1000 + i, 2, 1000 + i / 2, 1000, 'bo', printf('%150d', i), {START} FROM n;"
            ))
            .unwrap();
    });
    let mut seen = Vec::new();
    let mut cursor = Cursor::None;
    let mut fastest = Duration::MAX;
    loop {
        let began = time_of_day();
        let page = ids(&server.thread(MessageId(1000), cursor, 200));
        fastest = fastest.min(time_of_day() - began);
        let Some(&last) = page.last() else { break };
        cursor = Cursor::Before(last);
        seen.extend(page);
    }
    assert_eq!(seen.len(), 10_000);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 10_000);
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
}

fn time_of_day() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "a test that measures")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap()
}

// Unread counts.

#[test]
fn unread_counts_leave_out_what_is_own_deleted_or_read() {
    let server = Server::new();
    let ann = server.register("ann");
    let root = server.post(&bo(), GENERAL, None, "root");
    server.clock.pass(Duration::from_millis(10));
    server.post(&ann, GENERAL, Some(root), "own");
    server.post(&bo(), GENERAL, Some(root), "reply");
    let gone = server.post(&bo(), GENERAL, Some(root), "deleted");
    server.write(delete(&bo(), gone)).unwrap();
    server.post(&bo(), GENERAL, None, "another thread");
    let whole = (GENERAL, None);
    let thread = (GENERAL, Some(root));
    assert_eq!(server.ask_unread(ann.user, None, &[whole, thread, (TECH, None)]), [3, 2, 0]);
    assert_eq!(server.ask_unread(ann.user, Some(START), &[thread, whole]), [1, 2]);
    assert_eq!(server.ask_unread(None, Some(START), &[whole, thread]), [3, 2]);
    assert_eq!(server.ask_unread(None, None, &[whole, thread]), [0, 0]);
    assert_eq!(server.ask_unread(ann.user, None, &[(TECH, Some(root)), (NOWHERE, None)]), [0, 0]);
    let targets = vec![UnreadTarget { channel: None, thread: None }];
    let nowhere = Query::Unread { viewer: bo().viewer(), since: Some(0), targets };
    assert!(matches!(server.ask(nowhere), Answer::Unread(counts) if counts == [0]));
}

#[test]
fn read_marks_only_go_forward_and_never_into_the_future() {
    let server = Server::new();
    let ann = server.register("ann").user.unwrap();
    let mark = |at| server.write(Command::UpdateReadState { user: ann, channel: GENERAL, at }).unwrap();
    let stored = || value::<String>(&server.shell(), "SELECT last_read_at || ':' || updated_at FROM UserChannelState");
    let expected = |at: i64| format!("{at}:{}", START / 1000);
    mark(START - 50);
    assert_eq!(stored(), expected(START - 50));
    mark(START - 100);
    assert_eq!(stored(), expected(START - 50));
    mark(START + HOUR);
    assert_eq!(stored(), expected(START));
    server.post(&bo(), GENERAL, None, "at that very moment");
    assert_eq!(server.ask_unread(Some(ann), None, &[(GENERAL, None)]), [0]);
    server.clock.pass(Duration::from_millis(1));
    server.post(&bo(), GENERAL, None, "later");
    assert_eq!(server.ask_unread(Some(ann), None, &[(GENERAL, None)]), [1]);
}

#[test]
fn read_marks_of_unknown_places_and_people_are_passed_over() {
    let server = Server::new();
    let ann = server.register("ann").user.unwrap();
    for (user, channel) in [(ann, NOWHERE), (UserId(9), GENERAL)] {
        let told = server.write(Command::UpdateReadState { user, channel, at: START });
        assert!(matches!(told, Ok(Event::ReadStateUpdated)));
    }
    assert_eq!(value::<i64>(&server.shell(), "SELECT count(*) FROM UserChannelState"), 0);
}

#[test]
fn old_read_marks_in_seconds_or_in_the_future_are_understood() {
    let server = Server::new();
    let ann = server.register("ann").user;
    server.post(&bo(), GENERAL, None, "now");
    let shell = server.shell();
    let unread_with = |mark: i64| {
        let values = [mark, START / 1000];
        shell.execute("INSERT OR REPLACE INTO UserChannelState VALUES (1, 2, 0, ?1, ?2)", values).unwrap();
        server.ask_unread(ann, None, &[(GENERAL, None)])
    };
    assert_eq!(unread_with(START / 1000), [0]);
    assert_eq!(unread_with(START / 1000 - 1), [1]);
    assert_eq!(unread_with(START - 1), [1]);
    unread_with(START + HOUR);
    server.clock.pass(Duration::from_millis(1));
    server.post(&bo(), GENERAL, None, "later");
    server.clock.pass(Duration::from_millis(1));
    assert_eq!(server.ask_unread(ann, None, &[(GENERAL, None)]), [0], "a mark in the future counts as now");
}

#[test]
fn unread_counts_end_at_their_bound() {
    let server = Server::prepared(|opened| {
        opened
            .writer
            .execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10500)
                 INSERT INTO Message (id, channel_id, thread_root_id, author_nickname, content, created_at)
                 SELECT i, 2, 1, 'bo', '', {START} FROM n"
            ))
            .unwrap();
    });
    let counts = server.ask_unread(None, Some(0), &[(GENERAL, None), (GENERAL, Some(MessageId(1)))]);
    assert_eq!(counts, [UNREAD_COUNT_MAX; 2]);
}

// Maintenance.

/// In `chat` (24 hours) a thread whose root has expired and one that has not, and one in `general` (168 hours).
fn aged_rows(opened: &Opened) {
    opened
        .writer
        .execute_batch(&format!(
            "INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at) VALUES
                 (1, 1, NULL, 1, 'bo', 'expired', {expired}),
                 (2, 1, 1, 1, 'bo', 'goes with its root', {START}),
                 (3, 1, NULL, 3, 'bo', 'kept', {kept}),
                 (4, 1, 3, 3, 'bo', 'older than its root', {expired}),
                 (5, 2, NULL, 5, 'bo', 'kept longer', {expired});
             WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 799)
             INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at)
             SELECT i, 1, CASE WHEN i = 100 THEN 2 ELSE i - 1 END, 1, 'bo', 'deep', {START} FROM n;
             INSERT INTO MessageVersion (message_id, content, author_nickname, created_at, version_type)
                 VALUES (2, 'old', 'bo', 1, 'edited')",
            expired = START - 24 * HOUR - 1,
            kept = START - 24 * HOUR,
        ))
        .unwrap();
}

const KEPT: &str = "SELECT group_concat(id) FROM (SELECT id FROM Message ORDER BY id)";

#[test]
fn threads_go_when_their_root_has_expired() {
    let server = Server::prepared(aged_rows);
    server.eventually("the clean-up", || value::<String>(&server.shell(), KEPT) == "3,4,5");
    assert_eq!(value::<i64>(&server.shell(), "SELECT count(*) FROM MessageVersion"), 0);
}

#[test]
fn channels_that_keep_for_ever_keep_and_clean_up_returns_after_its_interval() {
    let server = Server::prepared(|opened| {
        opened.writer.execute_batch("UPDATE Channel SET message_retention_hours = 0").unwrap();
        aged_rows(opened);
    });
    let stored = || value::<i64>(&server.shell(), "SELECT count(*) FROM Message");
    server.clock.pass(Duration::from_secs(3600));
    // Chores are done in order, and this one stands behind a whole round of cleaning.
    server
        .shell()
        .execute_batch(
            "INSERT INTO User VALUES (9, 'x', 0, '', 1, 1, NULL); INSERT INTO UserChannelState VALUES (9, 1, 0, 1, 1)",
        )
        .unwrap();
    server.clock.pass(Duration::from_secs(3600));
    server.eventually("the round", || value::<i64>(&server.shell(), "SELECT count(*) FROM UserChannelState") == 0);
    assert_eq!(stored(), 705);
    server.shell().execute_batch("UPDATE Channel SET message_retention_hours = 1").unwrap();
    server.clock.pass(Duration::from_secs(3600));
    server.eventually("the next clean-up", || stored() == 0);
}

fn aged_rows_of_all_kinds(opened: &Opened) {
    aged_rows(opened);
    opened
        .writer
        .execute_batch(
            "INSERT INTO User VALUES (9, 'x', 0, '', 1, 1, NULL);
             INSERT INTO UserChannelState VALUES (9, 1, 0, 1, 1);
             INSERT INTO DMInvite (id, initiator_user_id, target_session_id, created_at) VALUES (1, 9, 5, 1);
             INSERT INTO DiscoveredServer (hostname, port, name, description, last_heartbeat, discovered_via, created_at)
                 VALUES ('h', 1, '', '', 1, 'gossip', 1);
             INSERT INTO Channel (name, display_name, created_at, is_dm) VALUES ('dm_5_6', '', 1, 1)",
        )
        .unwrap();
}

/// How many there are of each kind.
fn stored(server: &Server) -> [i64; 5] {
    let tables = ["Message", "UserChannelState", "DMInvite", "DiscoveredServer", "Channel WHERE is_dm"];
    tables.map(|table| value(&server.shell(), &format!("SELECT count(*) FROM {table}")))
}

/// A round begins with the repair of such a row, so the one before it has ended.
fn begin_round(server: &Server) {
    let unrooted = "INSERT INTO Message (id, channel_id, author_nickname, content, created_at)
                    VALUES (9000, 2, 'bo', 'unrooted', 1)";
    server.shell().execute_batch(unrooted).unwrap();
    server.clock.pass(Duration::from_secs(7200));
    let repaired = "SELECT count(*) FROM Message WHERE thread_root_id IS NULL";
    server.eventually("a round", || value::<i64>(&server.shell(), repaired) == 0);
    server.shell().execute_batch("DELETE FROM Message WHERE id = 9000").unwrap();
}

#[test]
fn where_the_operator_refuses_nothing_goes_for_its_age() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::open(directory, START, Some(false), |opened| {
        insert_seeds(&opened.writer, &default_seeds(), START).unwrap();
        aged_rows_of_all_kinds(opened);
    });
    for _ in 0..3 {
        begin_round(&server);
    }
    assert_eq!(stored(&server), [705, 1, 1, 1, 1]);
}

#[test]
fn adopted_files_are_cleaned_only_when_asked_and_after_an_interval() {
    let adopt = |opened: &Opened| {
        let origin = "DELETE FROM scd_origin;
                      INSERT INTO scd_origin VALUES ('adopted_at', 1), ('adopted_schema_version', 13);";
        opened.writer.execute_batch(origin).unwrap();
        aged_rows_of_all_kinds(opened);
    };
    let server = Server::prepared(adopt);
    for _ in 0..3 {
        begin_round(&server);
    }
    assert_eq!(stored(&server), [705, 1, 1, 1, 1], "nobody asked for it");
    let server = server.restarted(Some(false), |_| ());
    for _ in 0..3 {
        begin_round(&server);
    }
    assert_eq!(stored(&server), [705, 1, 1, 1, 1], "the operator refused");
    // What our own users left goes at once, and last of what a first round does.
    let server = server.restarted(Some(true), |opened| {
        let left_here =
            "INSERT INTO Channel (id, name, display_name, created_at, is_dm) VALUES (77, 'dm_7_8', '', 1, 1);
                         INSERT INTO scd_dm_former (channel_id, nickname, left_at) VALUES (77, 'x', 1)";
        opened.writer.execute_batch(left_here).unwrap();
    });
    let left_here = "SELECT count(*) FROM Channel WHERE id = 77";
    server.eventually("the first round", || value::<i64>(&server.shell(), left_here) == 0);
    assert_eq!(stored(&server), [705, 1, 1, 1, 1], "not at once");
    server.clock.pass(Duration::from_secs(3600));
    server.eventually("the clean-up", || stored(&server) == [1, 0, 0, 0, 0]);
}

#[test]
fn read_states_invitations_and_servers_are_forgotten_in_time() {
    const DAY: i64 = 24 * HOUR;
    let rows = |age: i64, id: i64| {
        let (seconds, invited, heard) =
            ((START - 90 * DAY) / 1000 - age, START - 30 * DAY - age, START - 7 * DAY - age);
        format!(
            "INSERT INTO User VALUES ({id}, 'u{id}', 0, '', 1, 1, NULL);
             INSERT INTO UserChannelState VALUES ({id}, 1, 0, 1, {seconds});
             INSERT INTO DMInvite (id, initiator_user_id, target_user_id, created_at) VALUES ({id}, {id}, 9, {invited});
             INSERT INTO DiscoveredServer (id, hostname, port, name, description, last_heartbeat, discovered_via, created_at)
                 VALUES ({id}, 'h{id}', 1, '', '', {heard}, 'gossip', 1);"
        )
    };
    let others = "INSERT INTO User VALUES (9, 'u9', 0, '', 1, 1, NULL);
                  INSERT INTO Message (id, channel_id, author_nickname, content, created_at, thread_root_id)
                      VALUES (1, 1, '~bo', 'old', 1, 1);";
    let server = Server::prepared(|opened| {
        opened.writer.execute_batch(&(others.to_owned() + &rows(1, 1) + &rows(0, 2))).unwrap();
    });
    server.eventually("the last work of the round", || {
        value::<i64>(&server.shell(), "SELECT count(*) FROM Message") == 0
    });
    let left = "SELECT (SELECT group_concat(user_id) FROM UserChannelState) || (SELECT group_concat(id) FROM DMInvite)
                       || (SELECT group_concat(id) FROM DiscoveredServer)";
    assert_eq!(value::<Option<String>>(&server.shell(), left).as_deref(), Some("222"));
}

#[test]
fn a_grown_log_is_brought_into_the_database() {
    let server = Server::new();
    let text = "x".repeat(4000);
    let tickets: Vec<Ticket> = (0..3000).map(|_| server.submit(post(&bo(), CHAT, None, &text))).collect();
    posted(server.outcome(tickets[2999]));
    server.clock.pass(Duration::from_secs(1));
    let (database, wal) =
        server.inbox.wait("a look at the sizes", |state| (state.sizes.1 > 4 << 20).then_some(state.sizes));
    assert!(wal > database, "{database} {wal}");
    server.clock.pass(Duration::from_secs(1));
    let grown = server.inbox.wait("a second look", |state| (state.sizes.0 > 10 << 20).then_some(state.sizes.0));
    assert!(grown > database);
}

#[test]
fn the_probe_writes_and_waits_its_turn() {
    let server = Server::new();
    assert_eq!(server.store.probe(PATIENCE), Ok(()));
    assert_eq!(value::<i64>(&server.shell(), "SELECT at FROM scd_probe"), START);
    server.close_gate();
    assert_eq!(server.store.probe(Duration::ZERO), Err(ProbeError::Timeout));
    server.open_gate();
    assert_eq!(server.store.probe(PATIENCE), Ok(()));
}

#[test]
fn a_log_that_outgrows_its_checkpoints_is_cut_by_the_writer() {
    let server = Server::new();
    let text = "x".repeat(4096);
    for _ in 0..6 {
        let tickets: Vec<Ticket> = (0..3000).map(|_| server.submit(post(&bo(), CHAT, None, &text))).collect();
        posted(server.outcome(tickets[2999]));
    }
    let wal = || server.directory.path().join("chat.db-wal").metadata().unwrap().len();
    assert!(wal() > 64 << 20);
    // What an operator reads meanwhile is no reason to wait.
    let shell = server.shell();
    shell.execute_batch("BEGIN; SELECT count(*) FROM Channel").unwrap();
    server.clock.pass(Duration::from_secs(1));
    server.post(&bo(), CHAT, None, "more");
    server.post(&bo(), CHAT, None, "more");
    assert!(wal() > 64 << 20);
    shell.execute_batch("COMMIT").unwrap();
    server.clock.pass(Duration::from_secs(1));
    server.post(&bo(), CHAT, None, "more");
    server.eventually("the cut", || wal() < 1 << 20);
}
