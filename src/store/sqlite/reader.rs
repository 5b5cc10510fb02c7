//! The read pool: a few threads with a read-only connection each. An answer is computed in one read transaction, which
//! sees every commit that was delivered before it began.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use super::fault::{Fault, Throttle, forget_damage};
use super::queue::{Queue, Taken};
use super::shadow::Eyes;
use super::visitors::SessionIds;
use super::{Clock, Observe, admin, bans, channels, dm_rows, keys, messages, read_state, servers, users};
use crate::ids::ChannelId;
use crate::store::query::UnreadTarget;
use crate::store::{Answer, Deliver, Message, Query, Ticket, Viewer};

pub(super) struct Reader {
    pub(super) conn: Connection,
    pub(super) queue: Arc<Queue<(Ticket, Query)>>,
    pub(super) deliver: Arc<dyn Deliver>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observe: Arc<dyn Observe>,
    /// Every message knows its thread root, so indexes can be trusted with threads.
    pub(super) repaired: Arc<AtomicBool>,
    pub(super) sessions: SessionIds,
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
        let view = View { conn: &snapshot, sessions: self.sessions, repaired: self.repaired.load(Ordering::Acquire) };
        read(view, query, self.clock.wall_ms())
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

/// What a read looks through.
#[derive(Clone, Copy)]
struct View<'a> {
    conn: &'a Connection,
    sessions: SessionIds,
    repaired: bool,
}

impl View<'_> {
    /// Shards have asked this before; since then somebody may have left a conversation.
    fn messages(
        self,
        viewer: Viewer,
        channel: ChannelId,
        read: impl FnOnce() -> rusqlite::Result<Vec<Message>>,
    ) -> rusqlite::Result<Answer> {
        let is_open = dm_rows::may_see(self.conn, self.sessions, channel, viewer)?;
        if is_open { read().map(Answer::Messages) } else { Ok(Answer::Messages(Vec::new())) }
    }

    fn visible(self, viewer: Viewer, target: UnreadTarget) -> rusqlite::Result<UnreadTarget> {
        let is_open = |channel| dm_rows::may_see(self.conn, self.sessions, channel, viewer);
        let channel = target.channel.map_or(Ok(false), is_open)?.then_some(target.channel).flatten();
        Ok(UnreadTarget { channel, ..target })
    }
}

fn read(view: View<'_>, query: &Query, now: i64) -> rusqlite::Result<Answer> {
    let View { conn, sessions, repaired } = view;
    let eyes = |viewer: &Viewer| Eyes::for_page(conn, *viewer, sessions, now);
    match query {
        Query::Roots { viewer, channel, cursor, limit } => {
            let eyes = eyes(viewer)?;
            view.messages(*viewer, *channel, || messages::roots(conn, eyes, repaired, *channel, *cursor, *limit))
        }
        Query::Thread { viewer, channel, parent, cursor, limit } => {
            let eyes = eyes(viewer)?;
            let thread = || messages::thread(conn, eyes, repaired, *channel, *parent, *cursor, *limit);
            view.messages(*viewer, *channel, thread)
        }
        Query::ThreadOf { viewer, message } => messages::thread_of(conn, eyes(viewer)?, *message).map(Answer::ThreadOf),
        Query::Account { nickname } => users::by_nickname(conn, nickname, now),
        Query::AccountById { user } => users::by_id(conn, *user, now),
        Query::AccountByKey { fingerprint } => keys::owner(conn, fingerprint, now),
        Query::SshKeys { user } => keys::list(conn, *user).map(Answer::SshKeys),
        Query::Accounts { limit } => users::list(conn, *limit).map(Answer::Accounts),
        Query::Unread { viewer, since, targets } => {
            let targets = targets.iter().map(|target| view.visible(*viewer, *target));
            let targets = targets.collect::<rusqlite::Result<Vec<_>>>()?;
            read_state::unread(conn, eyes(viewer)?, viewer.user, *since, &targets, now).map(Answer::Unread)
        }
        Query::Dm { viewer, other } => dm_rows::lookup(conn, sessions, *viewer, other),
        Query::Servers { scope, limit } => servers::list(conn, *scope, *limit, now).map(Answer::Servers),
        Query::Dms { user } => dm_rows::overview(conn, sessions, *user).map(Box::new).map(Answer::Dms),
        Query::Bans { include_expired, limit } => bans::list(conn, *include_expired, *limit, now).map(Answer::Bans),
        Query::Audit { limit } => admin::list(conn, *limit).map(Answer::Audit),
        Query::Channels => channels::load(conn, sessions).map(|all| Answer::Channels(all.into_values().collect())),
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
        Query::AccountByKey { .. } => "account_by_key",
        Query::SshKeys { .. } => "ssh_keys",
        Query::Accounts { .. } => "accounts",
        Query::Unread { .. } => "unread",
        Query::Dm { .. } => "dm",
        Query::Dms { .. } => "dms",
        Query::Servers { .. } => "servers",
        Query::Bans { .. } => "bans",
        Query::Audit { .. } => "audit",
        Query::Channels => "channels",
    }
}
