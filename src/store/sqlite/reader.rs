//! The read pool: a few threads with a read-only connection each. An answer is computed in one read transaction, which
//! sees every commit that was delivered before it began.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use super::fault::{Fault, Throttle, forget_damage};
use super::queue::{Queue, Taken};
use super::{Clock, Observe, messages, read_state, users};
use crate::store::{Answer, Deliver, Query, Ticket};

pub(super) struct Reader {
    pub(super) conn: Connection,
    pub(super) queue: Arc<Queue<(Ticket, Query)>>,
    pub(super) deliver: Arc<dyn Deliver>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observe: Arc<dyn Observe>,
    /// Every message knows its thread root, so indexes can be trusted with threads.
    pub(super) repaired: Arc<AtomicBool>,
    pub(super) log: Throttle,
}

impl Reader {
    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let mut asked = Vec::new();
        while self.queue.take(1, Duration::MAX, &mut asked) != Taken::Closed {
            for (ticket, query) in asked.drain(..) {
                let answer = self.answer(&query);
                self.deliver.answered(ticket, answer);
            }
        }
    }

    fn answer(&mut self, query: &Query) -> Answer {
        let began = self.clock.monotonic();
        let answer = catch_unwind(AssertUnwindSafe(|| self.read(query)));
        self.observe.query(name(query), self.clock.monotonic().saturating_sub(began));
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.report(query, &error);
                Answer::Failed
            }
            Err(_) => {
                tracing::error!(query = name(query), "a read panicked");
                Answer::Failed
            }
        }
    }

    fn read(&self, query: &Query) -> rusqlite::Result<Answer> {
        let snapshot = self.conn.unchecked_transaction()?;
        read(&snapshot, query, self.repaired.load(Ordering::Acquire), self.clock.wall_ms())
    }

    fn report(&mut self, query: &Query, error: &rusqlite::Error) {
        let fault = Fault::of(error);
        self.observe.storage_error(fault);
        forget_damage(&self.conn, fault);
        if let Some(unlogged) = self.log.admit(self.clock.monotonic()) {
            let query = name(query);
            tracing::error!(%error, kind = fault.name(), query, unlogged, "cannot read from the database");
        }
    }
}

fn read(conn: &Connection, query: &Query, repaired: bool, now: i64) -> rusqlite::Result<Answer> {
    match query {
        Query::Roots { channel, cursor, limit } => {
            messages::roots(conn, repaired, *channel, *cursor, *limit).map(Answer::Messages)
        }
        Query::Thread { channel, parent, cursor, limit } => {
            messages::thread(conn, repaired, *channel, *parent, *cursor, *limit).map(Answer::Messages)
        }
        Query::ThreadOf { message } => messages::thread_of(conn, *message).map(Answer::ThreadOf),
        Query::Account { nickname } => users::by_nickname(conn, nickname, now),
        Query::AccountById { user } => users::by_id(conn, *user, now),
        Query::Accounts { limit } => users::list(conn, *limit).map(Answer::Accounts),
        Query::Unread { user, since, targets } => {
            read_state::unread(conn, *user, *since, targets, now).map(Answer::Unread)
        }
    }
}

/// The label of a query in metrics and logs.
fn name(query: &Query) -> &'static str {
    match query {
        Query::Roots { .. } => "roots",
        Query::Thread { .. } => "thread",
        Query::ThreadOf { .. } => "thread_of",
        Query::Account { .. } => "account",
        Query::AccountById { .. } => "account_by_id",
        Query::Accounts { .. } => "accounts",
        Query::Unread { .. } => "unread",
    }
}
