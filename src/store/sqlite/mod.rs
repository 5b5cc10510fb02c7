//! The one SQLite file: opening it, bringing it up to date, mending what older servers left behind; and [`SqliteStore`],
//! which serves it.
//!
//! One thread writes (`scd-writer`), a few read (`scd-reader-N`), one looks after the file (`scd-maintenance`). They share
//! nothing but their queues.

mod admin;
pub mod backup;
mod bans;
mod channels;
mod dm_rows;
mod dms;
mod fault;
mod keys;
pub mod lock;
mod maintenance;
mod messages;
pub mod migrations;
pub mod open;
mod queue;
mod read_state;
mod reader;
pub mod repair;
pub mod restore;
mod row;
pub mod seeds;
mod servers;
mod shadow;
pub mod snapshot;
mod snowflake;
pub mod survey;
mod thread;
mod users;
mod visitors;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

pub use fault::Fault;

use self::fault::Throttle;
use self::maintenance::Maintenance;
use self::open::{OpenError, Opened, open_reader};
use self::queue::{Queue, Taken};
use self::reader::Reader;
use self::visitors::SessionIds;
use self::writer::{Inputs, Job, Order, Task, Writer};
use super::{Busy, Channel, Deliver, Query, Store, Submission, Ticket};
use crate::limits::{READER_QUEUE_MAX, WRITER_QUEUE_MAX};
use crate::profile::tasks::site;
use crate::supervise;

/// The time, as the store asks for it.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970; may jump.
    fn wall_ms(&self) -> i64;
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
}

/// Hears what happens in the store, for metrics. Called on the store's threads, so it must not wait.
pub trait Observe: Send + Sync {
    /// A transaction of `commands` was made durable in `duration`.
    fn commit(&self, duration: Duration, commands: usize) {
        let _ = (duration, commands);
    }
    /// This many writes wait behind the batch that was just taken.
    fn queue_depth(&self, waiting: usize) {
        let _ = waiting;
    }
    /// A read of this kind took `duration`.
    fn query(&self, query: &'static str, duration: Duration) {
        let _ = (query, duration);
    }
    /// The storage failed.
    fn storage_error(&self, fault: Fault) {
        let _ = fault;
    }
    /// How many messages and accounts the file holds, from time to time.
    fn rows(&self, messages: u64, users: u64) {
        let _ = (messages, users);
    }
    /// Bytes of the database file and of its write-ahead log, once a second.
    fn sizes(&self, database: u64, wal: u64) {
        let _ = (database, wal);
    }
}

/// Hears nothing.
impl Observe for () {}

/// How old messages are cleaned up (BEHAVIOUR.md 8.7 and 8.3, point 11).
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// `None`: in files that this program made, and in no others.
    pub enforce: Option<bool>,
    /// Between two clean-ups; a second at least.
    pub interval: Duration,
}

/// How the store works, and whom it works for.
pub struct Parts {
    /// Threads that read: 1 at least.
    pub readers: usize,
    pub retention: Retention,
    /// The channels as the shards were given them, see [`load_channels`]; later differences are told as events.
    pub channels: Vec<Channel>,
    pub deliver: Arc<dyn Deliver>,
    pub clock: Arc<dyn Clock>,
    pub observe: Arc<dyn Observe>,
    /// Called when the writer thread ends: `true` when it was stopped, `false` when it panicked. The server cannot go on
    /// without it.
    pub on_writer_exit: Box<dyn FnOnce(bool) + Send>,
}

/// Why the store could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot read database {}: {source}", .path.display())]
    Sqlite { path: PathBuf, source: rusqlite::Error },
    #[error("cannot start thread {name}: {source}")]
    Thread { name: String, source: io::Error },
}

/// The store did not stop in time: writes that were accepted may not be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the database was not closed in time")]
pub struct StopTimeout;

/// Why the file does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("the writer is stopped or overwhelmed")]
    Unavailable,
    #[error("no answer in time")]
    Timeout,
    #[error("the database cannot be written")]
    Failed,
}

/// Every channel of the file, DMs with their participants, by id: what shards start with.
///
/// # Errors
/// Those of SQLite.
pub fn load_channels(conn: &Connection) -> rusqlite::Result<Vec<Channel>> {
    channels::load(conn, SessionIds::NONE).map(|table| table.into_values().collect())
}

/// The store that serves an opened file.
pub struct SqliteStore {
    writes: Arc<Queue<Order>>,
    reads: Arc<Queue<(Ticket, Query)>>,
    writer_alive: Arc<AtomicBool>,
    threads: Mutex<Threads>,
}

struct Threads {
    handles: Vec<JoinHandle<()>>,
    /// Disconnected once every thread has ended.
    ended: Receiver<()>,
    /// Dropped to end maintenance.
    maintenance: Option<SyncSender<()>>,
}

impl SqliteStore {
    /// Starts the threads. Nothing is delivered that happened before.
    ///
    /// # Errors
    /// A connection or a thread could not be made. What was started until then is stopped again.
    pub fn start(opened: Opened, parts: Parts) -> Result<Self, StartError> {
        let Opened { lock, writer, path, checkpoints, .. } = opened;
        let Parts { readers, retention, channels, deliver, clock, observe, on_writer_exit } = parts;
        let failed = |source| StartError::Sqlite { path: path.clone(), source };
        let origin = open::origin(&writer).map_err(failed)?;
        let sessions = SessionIds::new(&writer, clock.wall_ms()).map_err(failed)?;
        let (ending, ended) = sync_channel(0);
        let (maintenance, stop) = sync_channel(0);
        let store = Self {
            writes: Arc::new(Queue::new(WRITER_QUEUE_MAX, site!("wait for the writer"))),
            reads: Arc::new(Queue::new(READER_QUEUE_MAX, site!("wait for the read pool"))),
            writer_alive: Arc::new(AtomicBool::new(true)),
            threads: Mutex::new(Threads { handles: Vec::new(), ended, maintenance: Some(maintenance) }),
        };
        let repaired = Arc::new(AtomicBool::new(false));
        for number in 1..=readers.max(1) {
            let reader = Reader {
                conn: open_reader(&path)?,
                queue: store.reads.clone(),
                deliver: deliver.clone(),
                clock: clock.clone(),
                observe: observe.clone(),
                repaired: repaired.clone(),
                sessions,
                log: Throttle::default(),
            };
            store.spawn(format!("scd-reader-{number}"), ending.clone(), move || reader.run())?;
        }
        let maintenance = Maintenance {
            conn: maintenance::connect(&path, checkpoints)?,
            path: path.clone(),
            queue: store.writes.clone(),
            stop,
            clock: clock.clone(),
            observe: observe.clone(),
            repaired,
            retention,
            origin,
            sessions,
            checkpoints,
        };
        let inputs = Inputs { checkpoints, queue: store.writes.clone(), channels, sessions, deliver, clock, observe };
        let writer = Writer::new(writer, lock, &path, inputs).map_err(failed)?;
        // Before anybody can come in.
        writer.tell_bans();
        let exit = WriterExit {
            queue: store.writes.clone(),
            alive: store.writer_alive.clone(),
            on_exit: Some(on_writer_exit),
        };
        store.spawn("scd-maintenance".to_owned(), ending.clone(), move || maintenance.run())?;
        store.spawn("scd-writer".to_owned(), ending, move || {
            let _exit = exit;
            writer.run();
        })?;
        Ok(store)
    }

    fn spawn(
        &self,
        name: String,
        ending: SyncSender<()>,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let thread = supervise::spawn(&name, move || {
            let _ending = ending;
            run();
        });
        let handle = thread.map_err(|source| StartError::Thread { name, source })?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).handles.push(handle);
        Ok(())
    }

    /// Whether the writer thread runs.
    #[must_use]
    pub fn is_writer_alive(&self) -> bool {
        self.writer_alive.load(Ordering::Acquire)
    }

    /// Writes waiting for the writer.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.writes.len()
    }

    /// Really writes one row and reads it again, in the order of all other writes; waits for that until `patience` ends.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn probe(&self, patience: Duration) -> Result<(), ProbeError> {
        let (done, result) = sync_channel(1);
        let task = Task { work: Box::new(write_and_read), done };
        self.writes.push_reserved(Order::Shared(Job::Task(task))).map_err(|Busy| ProbeError::Unavailable)?;
        match result.recv_timeout(patience) {
            Ok(Ok(1)) => Ok(()),
            Ok(Ok(_) | Err(_)) => Err(ProbeError::Failed),
            Err(RecvTimeoutError::Timeout) => Err(ProbeError::Timeout),
            Err(RecvTimeoutError::Disconnected) => Err(ProbeError::Unavailable),
        }
    }

    /// Takes no more, finishes what was accepted, brings the log into the database, closes it, and waits for all of that
    /// until `deadline` ends. To be called once; the shards must still take deliveries.
    ///
    /// # Errors
    /// [`StopTimeout`]; the threads then go on by themselves.
    pub fn stop(&self, deadline: Duration) -> Result<(), StopTimeout> {
        self.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.ended.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            return Err(StopTimeout);
        }
        // All have ended, so this does not wait; a panic was reported where it happened.
        threads.handles.drain(..).for_each(|handle| drop(handle.join()));
        Ok(())
    }

    fn close(&self) {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).maintenance = None;
        self.reads.close();
        self.writes.close();
    }
}

/// A store that is dropped without [`SqliteStore::stop`] leaves no thread behind for long.
impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for SqliteStore {
    fn submit(&self, submission: Submission) -> Result<(), Busy> {
        self.writes.push(Order::Shared(Job::Command(submission)))
    }

    fn ask(&self, ticket: Ticket, query: Query) -> Result<(), Busy> {
        self.reads.push((ticket, query))
    }
}

/// Says that the writer has ended, however it did, and lets go of everybody who waits for it.
struct WriterExit {
    queue: Arc<Queue<Order>>,
    alive: Arc<AtomicBool>,
    on_exit: Option<Box<dyn FnOnce(bool) + Send>>,
}

impl Drop for WriterExit {
    fn drop(&mut self) {
        self.alive.store(false, Ordering::Release);
        self.queue.close();
        while self.queue.take(WRITER_QUEUE_MAX, Duration::ZERO, &mut Vec::new()) != Taken::Closed {}
        if let Some(on_exit) = self.on_exit.take() {
            on_exit(!std::thread::panicking());
        }
    }
}

/// 1 when the row just written is found again.
fn write_and_read(conn: &Connection, now: i64) -> rusqlite::Result<usize> {
    let upsert = "INSERT INTO scd_probe (id, at) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET at = excluded.at";
    row::execute(conn, upsert, [now])?;
    row::exists(conn, "SELECT 1 FROM scd_probe WHERE id = 1 AND at = ?1", [now]).map(usize::from)
}
