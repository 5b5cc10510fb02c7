//! The writer thread: takes all that has gathered, applies it in one transaction, commits once, and only then says what
//! became of it.
//!
//! What the rules refuse writes nothing and disturbs nobody. A transaction that the storage fails is taken back and tried
//! again in halves, so that one command that can never be committed does not take others along; what still fails is
//! answered with [`Refusal::Database`], and the next batch tries anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use rusqlite::Connection;

use super::channels::{self, Table};
use super::fault::{Fault, Throttle, forget_damage};
use super::lock::{DatabaseLock, beside};
use super::messages;
use super::open::Checkpoints;
use super::queue::{Queue, Taken};
use super::row::{self, Failure};
use super::snowflake::Snowflake;
use super::visitors::{SessionIds, Visitors};
use super::{Clock, Observe, admin, bans, dms, keys, read_state, servers, users};
use crate::limits::{VISITOR_POSTS_REMEMBERED, WRITER_BATCH_MAX};
use crate::store::{Actor, Batch, Channel, Command, Deliver, DmLeft, Event, Outcome, Refusal, Submission};

/// How often the file is asked whether another program changed it.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A log this large is cut by the writer itself: the checkpoints beside it no longer keep up.
const WAL_BYTES_MAX: u64 = 64 << 20;

/// After this many failed transactions the rest of a batch is refused unseen: then it is not one command's fault, and a
/// single such command in a full batch costs eleven.
const FAILURES_PER_BATCH_MAX: u32 = 16;

/// Something for the writer to do.
pub(super) enum Order {
    /// In one transaction with others.
    Shared(Job),
    /// Between transactions: it makes its own.
    Alone(Task),
}

/// A part of a shared transaction.
pub(super) enum Job {
    Command(Submission),
    Task(Task),
}

/// The server's own work on the file, in the order of everything else. May run again when its transaction was taken back.
pub(super) struct Task {
    pub(super) work: Work,
    /// Told the result once it is committed. A receiver that no longer waits is passed over.
    pub(super) done: SyncSender<Result<usize, Refusal>>,
}

/// Gets the connection and the time (ms); returns how many rows it changed.
pub(super) type Work = Box<dyn Fn(&Connection, i64) -> rusqlite::Result<usize> + Send>;

/// What a command works with.
pub(super) struct Scope<'a> {
    pub(super) conn: &'a Connection,
    /// Milliseconds since 1970.
    pub(super) now: i64,
    pub(super) ids: &'a mut Snowflake,
    pub(super) visitors: &'a Visitors,
    pub(super) sessions: SessionIds,
    /// The channels as they were before this transaction.
    pub(super) channels: &'a Table,
    /// See [`messages::tracks_activity`].
    pub(super) tracks_activity: bool,
}

pub(super) struct Writer {
    conn: Connection,
    /// Given up after the connection above is closed.
    _lock: DatabaseLock,
    wal: PathBuf,
    checkpoints: Checkpoints,
    queue: Arc<Queue<Order>>,
    deliver: Arc<dyn Deliver>,
    clock: Arc<dyn Clock>,
    observe: Arc<dyn Observe>,
    ids: Snowflake,
    visitors: Visitors,
    sessions: SessionIds,
    /// The channels as shards know them.
    channels: Table,
    tracks_activity: bool,
    /// The bans as shards and door know them.
    bans: bans::Table,
    data_version: Option<i64>,
    polled_at: Duration,
    log: Throttle,
}

/// What a job came to.
enum Done {
    Event(Event),
    Rows(usize),
}

type Results = Vec<Result<Done, Refusal>>;

/// A transaction that was taken back.
struct Aborted {
    /// It did not even begin, so no part of it will.
    at_begin: bool,
}

/// What the writer needs from outside.
pub(super) struct Inputs {
    pub(super) checkpoints: Checkpoints,
    pub(super) queue: Arc<Queue<Order>>,
    pub(super) channels: Vec<Channel>,
    pub(super) sessions: SessionIds,
    pub(super) deliver: Arc<dyn Deliver>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observe: Arc<dyn Observe>,
}

impl Writer {
    pub(super) fn new(conn: Connection, lock: DatabaseLock, path: &Path, inputs: Inputs) -> rusqlite::Result<Self> {
        let Inputs { checkpoints, queue, channels, sessions, deliver, clock, observe } = inputs;
        Ok(Self {
            bans: bans::load(&conn)?,
            ids: Snowflake::above(messages::newest_id(&conn)?),
            tracks_activity: messages::tracks_activity(&conn)?,
            conn,
            _lock: lock,
            wal: beside(path, "-wal"),
            checkpoints,
            queue,
            deliver,
            polled_at: clock.monotonic(),
            clock,
            observe,
            visitors: Visitors::new(VISITOR_POSTS_REMEMBERED),
            sessions,
            channels: channels.into_iter().map(|channel| (channel.id, channel)).collect(),
            data_version: None,
            log: Throttle::default(),
        })
    }

    /// What the file says of bans is told as if it had just been committed.
    pub(super) fn tell_bans(&self) {
        if !self.bans.is_empty() {
            self.publish(vec![self.bans_read()]);
        }
    }

    fn bans_read(&self) -> Outcome {
        Outcome { ticket: None, result: Ok(Event::BansRead(self.bans.values().cloned().collect())) }
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let mut orders = Vec::new();
        self.notice_other_programs();
        loop {
            match self.queue.take(WRITER_BATCH_MAX, POLL_INTERVAL, &mut orders) {
                Taken::Items => self.process(&mut orders),
                Taken::Nothing => (),
                Taken::Closed => break,
            }
            self.keep_house();
        }
        self.checkpoint();
    }

    fn process(&mut self, orders: &mut Vec<Order>) {
        self.observe.queue_depth(self.queue.len());
        let mut shared = Vec::with_capacity(orders.len());
        let mut alone = Vec::new();
        for order in orders.drain(..) {
            match order {
                Order::Shared(job) => shared.push(job),
                Order::Alone(task) => alone.push(task),
            }
        }
        self.process_together(shared);
        alone.into_iter().for_each(|task| self.process_alone(task));
    }

    fn process_alone(&mut self, task: Task) {
        let result = (task.work)(&self.conn, self.clock.wall_ms());
        let result = result.inspect_err(|error| self.report(error));
        task.finish(result.map_err(|_| Refusal::Database));
    }

    fn process_together(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut results = Results::with_capacity(jobs.len());
        self.commit(&jobs, &mut 0, &mut results);
        let mut outcomes = Vec::with_capacity(jobs.len());
        for (job, result) in jobs.into_iter().zip(results) {
            match (job, result) {
                (Job::Command(Submission { ticket, .. }), result) => {
                    let result = result.and_then(Done::into_event);
                    outcomes.push(Outcome { ticket: Some(ticket), result });
                }
                (Job::Task(task), result) => task.finish(result.map(Done::into_rows)),
            }
        }
        self.publish(outcomes);
    }

    fn publish(&self, outcomes: Vec<Outcome>) {
        if !outcomes.is_empty() {
            self.deliver.committed(Batch::from(outcomes));
        }
    }

    /// Commits all of `jobs`, halving them as often as the storage fails.
    fn commit(&mut self, jobs: &[Job], failures: &mut u32, results: &mut Results) {
        match self.transaction(jobs) {
            Ok(done) => {
                self.remember(jobs, &done);
                results.extend(done);
            }
            Err(aborted) => {
                *failures += 1;
                if aborted.at_begin || jobs.len() == 1 || *failures >= FAILURES_PER_BATCH_MAX {
                    results.extend(jobs.iter().map(|_| Err(Refusal::Database)));
                    return;
                }
                let (first, second) = jobs.split_at(jobs.len() / 2);
                self.commit(first, failures, results);
                self.commit(second, failures, results);
            }
        }
    }

    fn transaction(&mut self, jobs: &[Job]) -> Result<Results, Aborted> {
        let began = self.clock.monotonic();
        self.control("BEGIN IMMEDIATE").map_err(|_| Aborted { at_begin: true })?;
        let results = self.apply_all(jobs).and_then(|results| self.control("COMMIT").map(|()| results));
        match results {
            Ok(results) => {
                self.observe.commit(self.clock.monotonic().saturating_sub(began), jobs.len());
                Ok(results)
            }
            Err(_) => {
                // After some failures SQLite has taken the transaction back by itself.
                if !self.conn.is_autocommit() {
                    self.control("ROLLBACK").ok();
                }
                Err(Aborted { at_begin: false })
            }
        }
    }

    /// Stops when a failure has ended the transaction; short of that, it is the failure of one job.
    fn apply_all(&mut self, jobs: &[Job]) -> rusqlite::Result<Results> {
        let mut results = Results::with_capacity(jobs.len());
        for job in jobs {
            results.push(match self.apply(job) {
                Ok(done) => Ok(done),
                Err(Failure::Refused(refusal)) => Err(refusal),
                Err(Failure::Storage(error)) => {
                    self.report(&error);
                    if self.conn.is_autocommit() {
                        return Err(error);
                    }
                    Err(Refusal::Database)
                }
            });
        }
        Ok(results)
    }

    /// Applies one job, all of it or nothing.
    fn apply(&mut self, job: &Job) -> Result<Done, Failure> {
        // A post is usually one statement, which SQLite takes back by itself when it fails.
        if !self.tracks_activity && matches!(job, Job::Command(Submission { command: Command::Post { .. }, .. })) {
            return self.perform(job);
        }
        row::execute(&self.conn, SAVE, [])?;
        let result = self.perform(job);
        finish_saved(&self.conn, result)
    }

    fn perform(&mut self, job: &Job) -> Result<Done, Failure> {
        let now = self.clock.wall_ms();
        let scope = &mut Scope {
            conn: &self.conn,
            now,
            ids: &mut self.ids,
            visitors: &self.visitors,
            sessions: self.sessions,
            channels: &self.channels,
            tracks_activity: self.tracks_activity,
        };
        match job {
            Job::Command(submission) => perform(scope, &submission.command).map(Done::Event),
            Job::Task(task) => Ok((task.work)(scope.conn, now).map(Done::Rows)?),
        }
    }

    /// Takes over what is committed into what the writer keeps in memory.
    fn remember(&mut self, jobs: &[Job], results: &Results) {
        for (job, result) in jobs.iter().zip(results) {
            let (Job::Command(Submission { command, .. }), Ok(Done::Event(event))) = (job, result) else { continue };
            if let (Command::Post { author: author @ Actor { user: None, .. }, .. }, Event::Posted(message)) =
                (command, event)
            {
                self.visitors.remember(message.id, author);
            }
            remember_channels(&mut self.channels, event);
            remember_bans(&mut self.bans, event);
        }
    }

    fn control(&mut self, sql: &str) -> rusqlite::Result<()> {
        row::execute(&self.conn, sql, []).map(drop).inspect_err(|error| self.report(error))
    }

    fn report(&mut self, error: &rusqlite::Error) {
        let fault = Fault::of(error);
        self.observe.storage_error(fault);
        forget_damage(&self.conn, fault);
        if let Some(unlogged) = self.log.admit(self.clock.monotonic()) {
            tracing::error!(%error, kind = fault.name(), unlogged, "cannot write to the database");
        }
    }

    fn keep_house(&mut self) {
        let now = self.clock.monotonic();
        if now.saturating_sub(self.polled_at) < POLL_INTERVAL {
            return;
        }
        self.polled_at = now;
        self.notice_other_programs();
        if std::fs::metadata(&self.wal).is_ok_and(|wal| wal.len() > WAL_BYTES_MAX) {
            self.checkpoint_if_free();
        }
    }

    /// Operators work on the live file with `sqlite3` (BEHAVIOUR.md 11.4): what they do to channels and bans is told.
    fn notice_other_programs(&mut self) {
        if let Err(error) = self.compare_with_file() {
            self.report(&error);
        }
    }

    fn compare_with_file(&mut self) -> rusqlite::Result<()> {
        let version = row::first(&self.conn, "PRAGMA data_version", [], |row| row::number(row, 0))?;
        if version == self.data_version {
            return Ok(());
        }
        let found = channels::load(&self.conn, self.sessions)?;
        self.ids.rise_above(messages::newest_id(&self.conn)?);
        let events = channels::changes(&self.channels, &found);
        self.channels = found;
        let bans = bans::load(&self.conn)?;
        let has_new_bans = bans != self.bans;
        self.bans = bans;
        self.data_version = version;
        let mut outcomes: Vec<_> =
            events.into_iter().map(|event| Outcome { ticket: None, result: Ok(event) }).collect();
        if has_new_bans {
            outcomes.push(self.bans_read());
        }
        self.publish(outcomes);
        Ok(())
    }

    /// Posts do not wait for a program that reads for long; the next look may find it gone.
    fn checkpoint_if_free(&mut self) {
        let patience = self.conn.query_row("PRAGMA busy_timeout", [], |row| row.get::<_, u32>(0)).unwrap_or(0);
        let be_patient = |writer: &mut Self, ms| {
            let set = writer.conn.busy_timeout(Duration::from_millis(ms));
            set.unwrap_or_else(|error| writer.report(&error));
        };
        be_patient(self, 0);
        self.checkpoint();
        be_patient(self, patience.into());
    }

    /// Brings the whole log into the database and cuts it, unless readers still need it.
    fn checkpoint(&mut self) {
        if self.checkpoints == Checkpoints::External {
            return;
        }
        let result = row::first(&self.conn, "PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row::number(row, 0));
        match result {
            Ok(Some(0)) => (),
            Ok(_) => tracing::debug!("the log of the database is in use and was not cut"),
            Err(error) => self.report(&error),
        }
    }
}

const SAVE: &str = "SAVEPOINT job";

fn finish_saved<T>(conn: &Connection, result: Result<T, Failure>) -> Result<T, Failure> {
    if result.is_err() && !conn.is_autocommit() {
        row::execute(conn, "ROLLBACK TO job", [])?;
    }
    if !conn.is_autocommit() {
        row::execute(conn, "RELEASE job", [])?;
    }
    result
}

/// Several statements, all or none, within a transaction. May be nested.
pub(super) fn all_or_none<T>(
    scope: &mut Scope<'_>,
    work: impl FnOnce(&mut Scope<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    row::execute(scope.conn, SAVE, [])?;
    let result = work(scope);
    finish_saved(scope.conn, result)
}

/// So that the next look at the file finds no difference where there is none.
fn remember_channels(channels: &mut Table, event: &Event) {
    let mut keep = |channel: &Channel| drop(channels.insert(channel.id, channel.clone()));
    match event {
        Event::ChannelCreated(channel) => keep(channel),
        Event::DmOpened { dm, .. } => keep(&dm.channel),
        Event::KeyProvided { opened, .. } => opened.iter().for_each(|dm| keep(&dm.channel)),
        Event::DmLeft(left) => remember_leaving(channels, left),
        Event::VisitorForgotten { left } => left.iter().for_each(|left| remember_leaving(channels, left)),
        Event::UserDeleted { user, left, .. } => {
            left.iter().for_each(|left| remember_leaving(channels, left));
            channels.values_mut().for_each(|channel| channel.forget_creator(*user));
        }
        Event::ChannelRemoved { channel, subchannels, .. } => {
            subchannels.iter().chain([channel]).for_each(|gone| drop(channels.remove(gone)));
        }
        _ => (),
    }
}

fn remember_bans(bans: &mut bans::Table, event: &Event) {
    match event {
        Event::Banned(ban) => drop(bans.insert(ban.id, Arc::clone(ban))),
        Event::Unbanned { bans: lifted } => lifted.iter().for_each(|ban| drop(bans.remove(ban))),
        Event::UserDeleted { user, nickname, .. } => {
            let theirs: Vec<_> = bans.values().filter(|ban| ban.is_of(*user)).cloned().collect();
            for ban in theirs {
                bans.remove(&ban.id);
                ban.without_account(nickname).map(|left| bans.insert(left.id, Arc::new(left)));
            }
        }
        _ => (),
    }
}

fn remember_leaving(channels: &mut Table, left: &DmLeft) {
    match &left.rest {
        Some(rest) => channels.insert(left.channel, rest.clone()),
        None => channels.remove(&left.channel),
    };
}

fn perform(scope: &mut Scope<'_>, command: &Command) -> Result<Event, Failure> {
    match command {
        Command::Post { author, channel, parent, content } => messages::post(scope, author, *channel, *parent, content),
        Command::Edit { editor, message, content, sanitized } => {
            messages::edit(scope, editor, *message, content, sanitized)
        }
        Command::Delete { actor, message } => messages::delete(scope, actor, *message),
        Command::CreateChannel(new) => channels::create(scope, new),
        Command::Register { nickname, password_hash, flags } => users::register(scope, nickname, password_hash, *flags),
        Command::SignIn { user, flags } => users::sign_in(scope, *user, *flags),
        Command::Rename { user, nickname, flags, listed_as } => {
            users::rename(scope, *user, nickname, *flags, listed_as.as_ref())
        }
        Command::SetPassword { user, password_hash } => users::set_password(scope, *user, password_hash.as_deref()),
        Command::AddSshKey { user, key } => keys::add(scope, *user, key),
        Command::RelabelSshKey { user, key, label } => keys::relabel(scope, *user, *key, label),
        Command::DeleteSshKey { user, key } => keys::delete(scope, *user, *key),
        Command::SignInByKey { user, flags, fingerprint } => keys::sign_in(scope, *user, *flags, fingerprint),
        Command::RegisterByKey { nickname, password_hash, flags, key } => {
            keys::register(scope, nickname, password_hash, *flags, key)
        }
        Command::UpdateReadState { user, channel, at } => read_state::update(scope, *user, *channel, *at),
        Command::StartDm { initiator, target, allow_unencrypted } => {
            dms::start(scope, initiator, target, *allow_unencrypted)
        }
        Command::ListServer(found) => servers::list_found(scope, found),
        Command::ConfirmServer { address } => servers::confirm(scope, address),
        Command::Heartbeat(heartbeat) => servers::heartbeat(scope, heartbeat),
        Command::ProvideKey { user, key, is_first } => dms::provide_key(scope, *user, key, *is_first),
        Command::AcceptDm { invite, by } => dms::accept(scope, *invite, by),
        Command::DeclineDm { invite, by } => dms::decline(scope, *invite, by),
        Command::LeaveDm { channel, leaver } => dms::leave(scope, *channel, leaver),
        Command::ForgetVisitor { session } => dms::forget_visitor(scope, *session),
        Command::Administer(order) => admin::perform(scope, order),
    }
}

impl Done {
    fn into_event(self) -> Result<Event, Refusal> {
        match self {
            Self::Event(event) => Ok(event),
            // Only tasks count rows.
            Self::Rows(_) => Err(Refusal::Database),
        }
    }

    fn into_rows(self) -> usize {
        match self {
            Self::Rows(rows) => rows,
            Self::Event(_) => 0,
        }
    }
}

impl Task {
    fn finish(self, rows: Result<usize, Refusal>) {
        self.done.try_send(rows).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Mutex;
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::ids::{ChannelId, SessionId};
    use crate::profile::tasks::place;
    use crate::store::sqlite::open::{OpenOptions, open};
    use crate::store::sqlite::seeds::{default_seeds, insert_seeds};
    use crate::store::{Answer, Ticket};

    struct StillClock;

    impl Clock for StillClock {
        fn wall_ms(&self) -> i64 {
            1_767_225_600_000
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[derive(Default)]
    struct Delivered(Mutex<Vec<Batch>>);

    impl Deliver for Delivered {
        fn committed(&self, batch: Batch) {
            self.0.lock().unwrap().push(batch);
        }

        fn answered(&self, _: Ticket, _: Answer) {}
    }

    fn post(token: u64) -> Order {
        let author = Actor {
            user: None,
            nickname: b"bo"[..].into(),
            flags: 0,
            session: SessionId(1),
            address: IpAddr::from([192, 0, 2, 1]),
            marks: Vec::new(),
        };
        let command = Command::Post { author, channel: ChannelId(1), parent: None, content: "hi".into() };
        Order::Shared(Job::Command(Submission { ticket: Ticket { shard: 0, token }, command }))
    }

    /// Processes one batch of posts with the works of `poison` at their places; the results of both, and the rows stored.
    fn check(posts: usize, poison: Vec<(usize, Work)>) -> (Vec<bool>, Vec<Result<usize, Refusal>>, i64) {
        let directory = tempfile::tempdir().unwrap();
        let opened = open(&directory.path().join("chat.db"), &OpenOptions::default(), 1).unwrap();
        insert_seeds(&opened.writer, &default_seeds(), 1).unwrap();
        let delivered = Arc::new(Delivered::default());
        let inputs = Inputs {
            checkpoints: Checkpoints::Own,
            queue: Arc::new(Queue::new(1, place!())),
            channels: Vec::new(),
            sessions: SessionIds::NONE,
            deliver: delivered.clone(),
            clock: Arc::new(StillClock),
            observe: Arc::new(()),
        };
        let mut writer = Writer::new(opened.writer, opened.lock, &opened.path, inputs).unwrap();
        let mut orders: Vec<Order> = (0..posts as u64).map(post).collect();
        let mut results = Vec::new();
        for (place, work) in poison {
            let (done, result) = sync_channel(1);
            orders.insert(place, Order::Shared(Job::Task(Task { work, done })));
            results.push(result);
        }
        writer.process(&mut orders);
        let batches = delivered.0.lock().unwrap();
        assert_eq!(batches.len(), 1);
        let told = batches[0].iter().map(|outcome| outcome.result.is_ok()).collect();
        let results = results.into_iter().map(|result| result.try_recv().unwrap()).collect();
        let stored = writer.conn.query_row("SELECT count(*) FROM Message", [], |row| row.get(0)).unwrap();
        (told, results, stored)
    }

    const ORPHAN: &str = "INSERT INTO MessageVersion (message_id, content, author_nickname, created_at, version_type)
                          VALUES (404, '', '', 1, 'edited')";

    /// Is only found out when the transaction ends.
    fn fails_at_commit() -> Work {
        Box::new(|conn, _| {
            conn.pragma_update(None, "defer_foreign_keys", true)?;
            conn.execute(ORPHAN, [])
        })
    }

    #[test]
    fn a_command_that_cannot_be_committed_takes_no_other_along() {
        let (told, results, stored) = check(64, vec![(37, fails_at_commit())]);
        assert_eq!((told, results, stored), (vec![true; 64], vec![Err(Refusal::Database)], 64));
    }

    #[test]
    fn a_command_that_fails_half_way_leaves_nothing() {
        let half_way: Work = Box::new(|conn, _| {
            conn.execute("DELETE FROM Channel WHERE id = 5", [])?;
            conn.execute(ORPHAN, [])
        });
        let intact: Work = Box::new(|conn, _| {
            conn.query_row("SELECT count(*) FROM Channel", [], |row| row.get::<_, u32>(0)).map(|rows| rows as usize)
        });
        let (told, results, stored) = check(2, vec![(1, half_way), (3, intact)]);
        assert_eq!((told, results, stored), (vec![true; 2], vec![Err(Refusal::Database), Ok(5)], 2));
    }

    #[test]
    fn a_transaction_that_ends_under_the_commands_is_done_again() {
        let ends: Work = Box::new(|conn, _| {
            conn.execute_batch("ROLLBACK")?;
            conn.execute(ORPHAN, [])
        });
        let (told, results, stored) = check(20, vec![(11, ends)]);
        assert_eq!((told, results, stored), (vec![true; 20], vec![Err(Refusal::Database)], 20));
    }

    #[test]
    fn a_batch_of_failures_ends() {
        let poison = (0..40).map(|place| (place, fails_at_commit())).collect();
        let (told, results, stored) = check(40, poison);
        assert_eq!(results, vec![Err(Refusal::Database); 40]);
        let acknowledged = told.iter().filter(|is_ok| **is_ok).count();
        assert_eq!(i64::try_from(acknowledged).unwrap(), stored, "told what is stored and nothing else");
    }
}
