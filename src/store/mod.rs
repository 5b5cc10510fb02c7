//! Everything that is kept: the seam between the server and its storage.
//!
//! The rest of the server knows writes as [`Command`]s, reads as [`Query`]s, and two promises:
//! - **Commit order is the only order.** Commands are applied one after the other; the outcomes of one commit reach every
//!   shard as one [`Batch`], in that order, and only once they are durable.
//! - **Reads never wait for writes.** An [`Answer`] shows one consistent state, at least as new as any batch delivered
//!   before the query was asked.
//!
//! `store` knows neither sessions nor wire types: a [`Ticket`] says where an outcome belongs, and means nothing here.

pub mod admin;
pub mod ban;
pub mod command;
pub mod dm;
pub mod query;
pub mod sqlite;
pub mod types;

use std::sync::Arc;

pub use admin::{Act, Admin, Administer, AuditEntry, Kick, Role};
pub use ban::{Ban, Bans, Subject, Who};
pub use command::{Command, Event, Refusal};
pub use dm::{Dm, DmFound, DmLeft, DmOverview, DmSide, EncryptionStatus, Invite, PublicKey, Viewer};
pub use query::{Answer, Query};
pub use types::*;

/// Where an outcome or an answer belongs: a shard, and a value only that shard understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub shard: usize,
    pub token: u64,
}

/// A write on its way to the writer.
#[derive(Debug)]
pub struct Submission {
    pub ticket: Ticket,
    pub command: Command,
}

/// What became of one write.
#[derive(Debug)]
pub struct Outcome {
    /// Who asked; `None` for what the store did or noticed by itself.
    pub ticket: Option<Ticket>,
    pub result: Result<Event, Refusal>,
}

/// The outcomes of one commit, in order. Shared by all shards.
pub type Batch = Arc<[Outcome]>;

/// The queue to the writer or the read pool is full: the client is told to try again (ERROR 9002).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// What shards need of a storage backend. The SQLite store is one, the in-memory store of the simulation another.
pub trait Store: Send + Sync {
    /// Queues a write. Never blocks. Its outcome arrives in a [`Batch`].
    ///
    /// # Errors
    /// [`Busy`] when the queue is full; the command was not taken.
    fn submit(&self, submission: Submission) -> Result<(), Busy>;

    /// Queues a read. Never blocks. Its [`Answer`] arrives at the ticket's shard.
    ///
    /// # Errors
    /// [`Busy`] when the queue is full; the query was not taken.
    fn ask(&self, ticket: Ticket, query: Query) -> Result<(), Busy>;
}

/// Where a backend delivers: the shards' inboxes.
pub trait Deliver: Send + Sync {
    /// Hands one commit's outcomes to every shard, all or none: once one shard can see the batch, every shard can.
    /// Waits while a shard lags far behind, so memory stays bounded.
    fn committed(&self, batch: Batch);
    /// Hands an answer to the shard that asked.
    fn answered(&self, ticket: Ticket, answer: Answer);
}
