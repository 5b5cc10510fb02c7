//! What admins and operators do (BEHAVIOUR.md 5), as values. Each is done and audited in one transaction, or not at all.

use std::net::IpAddr;

use super::ban::Subject;
use super::command::NewChannel;
use super::types::Name;
use crate::ids::{ChannelId, SessionId, UserId};

/// Who acts, as the audit names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// An admin's nickname; of an operator a text that no nickname can be.
    pub name: Name,
    /// Where from; `None` at the server itself.
    pub address: Option<IpAddr>,
}

/// One act.
#[derive(Debug, Clone)]
pub struct Administer {
    pub by: Admin,
    pub act: Act,
}

/// What is done.
#[derive(Debug, Clone)]
pub enum Act {
    /// BAN_USER, BAN_IP. A nickname finds its account.
    Ban {
        subject: Subject,
        reason: Name,
        shadow: bool,
        /// `None` = for ever.
        seconds: Option<u64>,
    },
    /// UNBAN_USER, UNBAN_IP: every ban that counts now.
    Unban(Subject),
    /// DELETE_USER.
    DeleteUser(UserId),
    /// DELETE_CHANNEL, with its subchannels.
    DeleteChannel {
        channel: ChannelId,
        reason: Name,
    },
    CreateChannel(NewChannel),
    /// Gives or takes a right, beside those that the configuration gives: `flags`, as with [`Command::SignIn`].
    ///
    /// [`Command::SignIn`]: super::Command::SignIn
    SetRole {
        user: UserId,
        role: Role,
        is_granted: bool,
        flags: u8,
    },
    /// Of an account whose owner cannot sign in any more; as `password_hash` of the account.
    ResetPassword {
        user: UserId,
        password_hash: Box<str>,
    },
    /// Ends a session.
    Kick(Kick),
}

/// A right that an account may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Admin,
    /// A sign at the name and nothing else (BEHAVIOUR.md 5.1).
    Moderator,
}

/// A session that is to end, as it was when that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kick {
    pub session: SessionId,
    pub user: Option<UserId>,
    pub nickname: Option<Name>,
    pub address: IpAddr,
    pub reason: Name,
}

/// One row of the audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Milliseconds since 1970.
    pub at: i64,
    pub by: Name,
    /// Where from, as a text.
    pub address: Name,
    pub action: Name,
    pub target_type: Name,
    pub target_id: Option<i64>,
    pub target: Name,
    pub details: Name,
}
