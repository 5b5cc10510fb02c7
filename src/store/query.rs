//! Every read and its answer, as values.

use super::admin::AuditEntry;
use super::ban::Ban;
use super::dm::{DmFound, DmOverview, Viewer};
use super::types::{Account, Channel, Message, Name, Participant, ServerRecord, SshKey};
use crate::ids::{ChannelId, MessageId, UserId};

/// A read.
#[derive(Debug, Clone)]
pub enum Query {
    /// BEHAVIOUR.md 2.12: root messages of a place, strictly by id.
    Roots { viewer: Viewer, channel: ChannelId, cursor: Cursor, limit: u16 },
    /// BEHAVIOUR.md 2.12: all descendants of `parent`, depth first, siblings ascending. Empty when `parent` is not in
    /// `channel`.
    Thread { viewer: Viewer, channel: ChannelId, parent: MessageId, cursor: Cursor, limit: u16 },
    /// The thread a message belongs to.
    ThreadOf { viewer: Viewer, message: MessageId },
    /// An account by nickname or alias, and the ban that refuses it or the bare name.
    Account { nickname: Name },
    /// An account by id.
    AccountById { user: UserId },
    /// An account by the fingerprint of one of its SSH keys.
    AccountByKey { fingerprint: Box<str> },
    /// The SSH keys of an account, newest first.
    SshKeys { user: UserId },
    /// All accounts sorted by nickname (bytes), at most `limit`; without the rights that the configuration gives to names.
    Accounts { limit: u16 },
    /// BEHAVIOUR.md 7. `since` in milliseconds; `None` = the account's stored read mark. Messages of the
    /// account are left out.
    Unread { viewer: Viewer, since: Option<i64>, targets: Vec<UnreadTarget> },
    /// The conversation between two, and whether the first has a key.
    Dm { viewer: Viewer, other: Participant },
    /// BEHAVIOUR.md 4.9: what an account finds when it signs in.
    Dms { user: UserId },
    /// BEHAVIOUR.md 6.1: servers of the directory, newest heartbeat first.
    Servers { scope: ServerScope, limit: u16 },
    /// BEHAVIOUR.md 5.2 LIST_BANS: newest first, at most `limit`.
    Bans { include_expired: bool, limit: u32 },
    /// What admins and operators did: newest first, at most `limit`.
    Audit { limit: u32 },
    /// Every channel, subchannel and direct message, by id.
    Channels,
}

/// Which servers of the directory are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerScope {
    /// Those that clients are told of: heard of lately, and open to new accounts.
    Public,
    /// Heard of lately.
    Listed,
    /// All that are remembered.
    Known,
}

/// Which part of a list is asked for; with both cursors `before` wins, so there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// Roots: the newest, newest first. Thread: from its beginning.
    None,
    /// Roots: ids below, newest first. Thread: behind that message in thread order where it is part of the thread, else
    /// ids below.
    Before(MessageId),
    /// Roots: ids above, oldest first. Thread: ids above, in thread order.
    After(MessageId),
}

/// What is counted: a whole place, or one thread in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnreadTarget {
    /// `None` counts 0: an unknown place, or one the asker may not see.
    pub channel: Option<ChannelId>,
    pub thread: Option<MessageId>,
}

/// The answer to a [`Query`], of the variant of the same name.
#[derive(Debug)]
pub enum Answer {
    Messages(Vec<Message>),
    /// The root of the thread and its place; `None` when the message does not exist.
    ThreadOf(Option<(MessageId, ChannelId)>),
    Account {
        account: Option<Account>,
        ban: Option<Ban>,
    },
    Accounts(Vec<Account>),
    SshKeys(Vec<SshKey>),
    /// One count per target, in order.
    Unread(Vec<u32>),
    Dm {
        found: Option<DmFound>,
        has_key: bool,
    },
    Dms(Box<DmOverview>),
    Servers(Vec<ServerRecord>),
    Bans(Vec<Ban>),
    Audit(Vec<AuditEntry>),
    Channels(Vec<Channel>),
    /// The storage failed: ERROR 9001.
    Failed,
}
