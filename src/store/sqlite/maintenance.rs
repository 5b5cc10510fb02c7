//! What keeps the file small and whole while the server runs: checkpoints beside the writer, the repair of old rows, and
//! clean-up by age (BEHAVIOUR.md 8.7). Rows are changed in small batches through the writer's queue, one at a time, so
//! that posts never wait for more than one of them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use super::dms::{self, Abandoned};
use super::fault::Fault;
use super::lock::beside;
use super::open::{Checkpoints, OpenError, Origin, spare_log};
use super::queue::Queue;
use super::repair::repair_thread_roots;
use super::row;
use super::visitors::SessionIds;
use super::writer::{Job, Order, Task, Work};
use super::{Clock, Observe, Retention};

/// How often sizes are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Counting takes at most this share of the time: a small file is counted every second, a large one now and then.
const CENSUS_SHARE: u32 = 100;

/// A log this large is worth a checkpoint.
const WAL_BYTES_CHECKPOINT: u64 = 4 << 20;

/// Rows changed in one transaction: some milliseconds of the writer's time.
const BATCH: usize = 200;

const HOUR_MS: i64 = 3_600_000;

pub(super) struct Maintenance {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    pub(super) queue: Arc<Queue<Order>>,
    /// Disconnected when it is time to stop.
    pub(super) stop: Receiver<()>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observe: Arc<dyn Observe>,
    pub(super) repaired: Arc<AtomicBool>,
    pub(super) retention: Retention,
    pub(super) origin: Origin,
    pub(super) sessions: SessionIds,
    pub(super) checkpoints: Checkpoints,
}

/// Work that goes on batch by batch until it finds nothing more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chore {
    RepairRoots,
    /// Tells what a clean-up would take from a file that is not of our making.
    Announce(Cleaning),
    CleanMessages {
        cleaned: usize,
    },
    ForgetReadStates,
    Prune,
    /// What a crash left of visitors in direct messages.
    ForgetVisitors,
    CleanDms(Abandoned),
}

/// The last count of rows.
#[derive(Debug, Default)]
struct Census {
    /// What the file said its version was; another one means that somebody wrote.
    version: Option<i64>,
    /// Not before this moment again.
    due: Duration,
}

/// Whether old messages go (BEHAVIOUR.md 8.3, point 11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cleaning {
    Now,
    /// The operator agreed; one interval is left to think again.
    AfterAnInterval,
    /// Not before the operator says so.
    Unasked,
    Never,
}

/// A connection of its own, because a checkpoint on the writer's would hold up posts.
pub(super) fn connect(path: &std::path::Path, checkpoints: Checkpoints) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(failed)?;
    spare_log(&conn, checkpoints).map_err(failed)?;
    Ok(conn)
}

impl Maintenance {
    /// Works until told to stop.
    pub(super) fn run(self) {
        let cleaning = cleaning(self.retention.enforce, self.origin);
        let interval = self.retention.interval.max(TICK);
        let mut chores = VecDeque::from(round(cleaning, true));
        let (mut looked_at, mut census) = (None, Census::default());
        let mut round_at = self.clock.monotonic();
        while !self.is_stopped(if chores.is_empty() { TICK } else { Duration::ZERO }) {
            let now = self.clock.monotonic();
            if looked_at.is_none_or(|at| now.saturating_sub(at) >= TICK) {
                looked_at = Some(now);
                self.look_after_sizes();
                self.count_rows(now, &mut census);
            }
            if chores.is_empty() && now.saturating_sub(round_at) >= interval {
                round_at = now;
                chores.extend(round(cleaning, false));
            }
            if let Some(chore) = chores.pop_front()
                && let Some(rest) = self.advance(chore)
            {
                chores.push_front(rest);
            }
        }
    }

    fn is_stopped(&self, patience: Duration) -> bool {
        self.stop.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }

    fn look_after_sizes(&self) {
        let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let wal = size(&beside(&self.path, "-wal"));
        self.observe.sizes(size(&self.path), wal);
        if wal <= WAL_BYTES_CHECKPOINT || self.checkpoints == Checkpoints::External {
            return;
        }
        // Takes what readers and writer leave free; what they do not, the next one does.
        if let Err(error) = self.conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            tracing::warn!(%error, "cannot bring the log into the database");
        }
    }

    /// Counts what a scrape shows. Counting a table reads its smallest index only, and holds up nobody.
    fn count_rows(&self, now: Duration, census: &mut Census) {
        if now < census.due {
            return;
        }
        if let Err(error) = self.count_if_written(census) {
            self.observe.storage_error(Fault::of(&error));
        }
        let ended = self.clock.monotonic();
        census.due = ended + ended.saturating_sub(now) * CENSUS_SHARE;
    }

    fn count_if_written(&self, census: &mut Census) -> rusqlite::Result<()> {
        // Read before counting: what is written meanwhile is counted the next time.
        let version = row::first(&self.conn, "PRAGMA data_version", [], |row| row::number(row, 0))?;
        if version != census.version {
            let count = |sql| self.conn.query_row(sql, [], |row| row.get(0)).map(i64::unsigned_abs);
            self.observe.rows(count("SELECT count(*) FROM Message")?, count("SELECT count(*) FROM User")?);
            census.version = version;
        }
        Ok(())
    }

    /// One batch of a chore; what is left to do of it.
    fn advance(&self, chore: Chore) -> Option<Chore> {
        let changed = match chore {
            Chore::RepairRoots => self.write(Order::Alone, Box::new(|conn, _| repair_thread_roots(conn, BATCH))),
            Chore::CleanMessages { .. } => self.write(shared, Box::new(|conn, now| clean_messages(conn, now, BATCH))),
            Chore::ForgetReadStates => self.write(shared, Box::new(|conn, now| READ_MARKS.remove(conn, now, BATCH))),
            Chore::Prune => self.write(shared, Box::new(prune)),
            Chore::ForgetVisitors => {
                let sessions = self.sessions;
                self.write(shared, Box::new(move |conn, now| dms::forget_earlier_visitors(conn, sessions, now)))
            }
            Chore::CleanDms(which) => {
                self.write(shared, Box::new(move |conn, _| dms::clean_abandoned(conn, which, BATCH)))
            }
            Chore::Announce(cleaning) => {
                self.announce(cleaning);
                None
            }
        }?;
        match chore {
            Chore::RepairRoots if changed < BATCH => {
                self.repaired.store(true, Ordering::Release);
                None
            }
            Chore::CleanMessages { cleaned } => {
                let cleaned = cleaned + changed;
                if changed == 0 && cleaned > 0 {
                    tracing::info!("Cleaned up {cleaned} expired messages");
                }
                (changed > 0).then_some(Chore::CleanMessages { cleaned })
            }
            other => (changed > 0).then_some(other),
        }
    }

    /// How many rows it changed. `None` when the writer is gone, or has failed and reported it: the next round tries again.
    fn write(&self, order: fn(Task) -> Order, work: Work) -> Option<usize> {
        let (done, result) = sync_channel(1);
        self.queue.push_reserved(order(Task { work, done })).ok()?;
        result.recv().ok()?.ok()
    }

    fn announce(&self, cleaning: Cleaning) {
        let Outdated { messages, read_marks, invitations, servers } =
            match Outdated::count(&self.conn, self.clock.wall_ms()) {
                Ok(outdated) if outdated == Outdated::default() => return,
                Ok(outdated) => outdated,
                Err(error) => return tracing::warn!(%error, "cannot count what has outlived its time"),
            };
        if cleaning == Cleaning::AfterAnInterval {
            let minutes = self.retention.interval.as_secs() / 60;
            tracing::warn!(messages, read_marks, invitations, servers, minutes, "old rows will be removed");
        } else {
            tracing::warn!(
                messages,
                read_marks,
                invitations,
                servers,
                "rows have outlived their time, but nothing is removed; set [retention] enforce to true to have it done"
            );
        }
    }
}

fn cleaning(enforce: Option<bool>, origin: Origin) -> Cleaning {
    match (enforce, origin) {
        (Some(false), _) => Cleaning::Never,
        (_, Origin::Created { .. }) => Cleaning::Now,
        (Some(true), Origin::Adopted { .. }) => Cleaning::AfterAnInterval,
        (None, Origin::Adopted { .. }) => Cleaning::Unasked,
    }
}

/// The repair first: what follows goes by thread roots. Nothing goes for its age, be it small, where the operator refused, or
/// did not agree to it in a file of another program; what our own users leave for good is their affair.
fn round(cleaning: Cleaning, is_first: bool) -> Vec<Chore> {
    let is_agreed = cleaning == Cleaning::Now || (cleaning == Cleaning::AfterAnInterval && !is_first);
    let mut chores = vec![Chore::RepairRoots];
    if is_agreed {
        chores.extend([Chore::ForgetReadStates, Chore::Prune]);
    }
    // Of visitors in a file of another program nothing is taken that its operator might still look for.
    chores.extend((cleaning == Cleaning::Now && is_first).then_some(Chore::ForgetVisitors));
    chores.push(Chore::CleanDms(if is_agreed { Abandoned::All } else { Abandoned::LeftHere }));
    chores.extend(match (cleaning, is_first) {
        (Cleaning::Now, _) | (Cleaning::AfterAnInterval, false) => Some(Chore::CleanMessages { cleaned: 0 }),
        (Cleaning::AfterAnInterval | Cleaning::Unasked, true) => Some(Chore::Announce(cleaning)),
        (Cleaning::Unasked, false) | (Cleaning::Never, _) => None,
    });
    chores
}

fn shared(task: Task) -> Order {
    Order::Shared(Job::Task(task))
}

/// Removes at most about `budget` messages of threads whose root is older than its channel keeps it, whatever the age of
/// the replies. The newest replies of a thread go first, so that no single deletion has a large family.
fn clean_messages(conn: &Connection, now: i64, budget: usize) -> rusqlite::Result<usize> {
    let channels = row::all(
        conn,
        "SELECT id, message_retention_hours FROM Channel WHERE message_retention_hours > 0",
        [],
        |row| Ok((row::number(row, 0)?, row::number(row, 1)?)),
    )?;
    let mut removed = 0;
    for (channel, hours) in channels {
        let oldest_kept = now.saturating_sub(hours.saturating_mul(HOUR_MS));
        while removed < budget
            && let Some(root) = expired_root(conn, channel, oldest_kept)?
        {
            removed += remove_from_thread(conn, root, budget - removed)?;
        }
    }
    Ok(removed)
}

fn expired_root(conn: &Connection, channel: i64, oldest_kept: i64) -> rusqlite::Result<Option<i64>> {
    row::first(
        conn,
        "SELECT id FROM Message INDEXED BY scd_message_places
         WHERE COALESCE(subchannel_id, channel_id) = ?1 AND created_at < ?2 AND parent_id IS NULL LIMIT 1",
        [channel, oldest_kept],
        |row| row::number(row, 0),
    )
}

fn remove_from_thread(conn: &Connection, root: i64, budget: usize) -> rusqlite::Result<usize> {
    let mut newest = row::all(
        conn,
        "SELECT id FROM Message INDEXED BY idx_messages_thread_root
         WHERE thread_root_id = ?1 AND id <> ?1 ORDER BY id DESC LIMIT ?2",
        params![root, i64::try_from(budget).unwrap_or(i64::MAX)],
        |row| row::number(row, 0),
    )?;
    if newest.len() < budget {
        newest.push(root);
    }
    for id in &newest {
        row::execute(conn, "DELETE FROM Message WHERE id = ?1", [id])?;
    }
    Ok(newest.len())
}

/// What a clean-up would remove.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outdated {
    messages: i64,
    read_marks: i64,
    invitations: i64,
    servers: i64,
}

impl Outdated {
    fn count(conn: &Connection, now: i64) -> rusqlite::Result<Self> {
        let number = |table: &Aged| conn.query_row(&table.count(), [table.oldest_kept(now)], |row| row.get(0));
        Ok(Self {
            messages: expired(conn, now)?,
            read_marks: number(&READ_MARKS)?,
            invitations: number(&INVITATIONS)?,
            servers: number(&SERVERS)?,
        })
    }
}

fn expired(conn: &Connection, now: i64) -> rusqlite::Result<i64> {
    conn.query_row(
        "SELECT count(*) FROM Channel AS c
         CROSS JOIN Message AS root INDEXED BY scd_message_places
             ON COALESCE(root.subchannel_id, root.channel_id) = c.id
            AND root.created_at < ?1 - c.message_retention_hours * ?2
            AND root.parent_id IS NULL
         CROSS JOIN Message AS m ON m.thread_root_id = root.id
         WHERE c.message_retention_hours > 0",
        [now, HOUR_MS],
        |row| row.get(0),
    )
}

/// A table whose rows go by age alone.
pub(super) struct Aged {
    pub(super) table: &'static str,
    column: &'static str,
    /// Milliseconds in one unit of the column.
    unit_ms: i64,
    days: i64,
}

pub(super) const READ_MARKS: Aged = Aged { table: "UserChannelState", column: "updated_at", unit_ms: 1000, days: 90 };
/// Nobody answered them.
pub(super) const INVITATIONS: Aged = Aged { table: "DMInvite", column: "created_at", unit_ms: 1, days: 30 };
/// Nobody hears of them any more.
pub(super) const SERVERS: Aged = Aged { table: "DiscoveredServer", column: "last_heartbeat", unit_ms: 1, days: 7 };

impl Aged {
    /// SQL that counts what is older than its parameter, [`Self::oldest_kept`].
    pub(super) fn count(&self) -> String {
        format!("SELECT count(*) FROM {} WHERE {} < ?1", self.table, self.column)
    }

    pub(super) fn oldest_kept(&self, now: i64) -> i64 {
        now.saturating_sub(self.days * 24 * HOUR_MS) / self.unit_ms
    }

    fn remove(&self, conn: &Connection, now: i64, budget: usize) -> rusqlite::Result<usize> {
        let Self { table, column, .. } = self;
        let budget = i64::try_from(budget).unwrap_or(i64::MAX);
        row::execute(
            conn,
            &format!("DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {column} < ?1 LIMIT ?2)"),
            [self.oldest_kept(now), budget],
        )
    }
}

/// Small tables, done in one batch.
fn prune(conn: &Connection, now: i64) -> rusqlite::Result<usize> {
    INVITATIONS.remove(conn, now, usize::MAX)?;
    SERVERS.remove(conn, now, usize::MAX)?;
    Ok(0)
}
