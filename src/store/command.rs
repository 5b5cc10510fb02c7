//! Every write and its outcome, as values.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::admin::{Administer, Kick};
use super::ban::Ban;
use super::dm::{Dm, DmFound, DmLeft, DmSide, Invite, PublicKey};
use super::types::{
    Actor, Audience, Channel, ChannelType, DiscoveredVia, Message, Name, NewSshKey, Participant, ServerAddress,
    ServerRecord,
};
use crate::ids::{BanId, ChannelId, InviteId, MessageId, SessionId, SshKeyId, UserId};

/// A write. Session rules are already checked; what depends on stored state is checked by the writer, in commit order.
#[derive(Debug)]
pub enum Command {
    /// BEHAVIOUR.md 2.13. Content is ready to be stored. Refused when the author's account was deleted meanwhile.
    Post { author: Actor, channel: ChannelId, parent: Option<MessageId>, content: Bytes },
    /// BEHAVIOUR.md 2.14. `content` is as sent; `sanitized` the form for every place but a DM (empty = nothing left).
    Edit { editor: Actor, message: MessageId, content: Bytes, sanitized: Bytes },
    /// BEHAVIOUR.md 2.15. The content becomes `[deleted by ~<nickname>]`.
    Delete { actor: Actor, message: MessageId },
    /// BEHAVIOUR.md 2.8 and, with a parent, 2.9.
    CreateChannel(Box<NewChannel>),
    /// BEHAVIOUR.md 2.3. `password_hash` is bcrypt.
    Register { nickname: Name, password_hash: Box<str>, flags: u8 },
    /// BEHAVIOUR.md 2.1 step 6: `last_seen` is now. `flags` are those that the configuration gives the name; the writer adds
    /// what else the account has when it comes to it.
    SignIn { user: UserId, flags: u8 },
    /// BEHAVIOUR.md 2.4 step 3; the former nickname stays as a login alias (D-08). `flags` as with `SignIn`, of the new name.
    /// Where they make an admin, only an admin may take it (D-09): by a grant, or by the present name, if that is `listed_as`.
    Rename { user: UserId, nickname: Name, flags: u8, listed_as: Option<Name> },
    /// BEHAVIOUR.md 2.16; aliases of the account end. `None` removes the password, which needs a stored SSH key.
    SetPassword { user: UserId, password_hash: Option<Box<str>> },
    /// BEHAVIOUR.md 2.16. Refused when the account was deleted meanwhile.
    AddSshKey { user: UserId, key: Box<NewSshKey> },
    /// BEHAVIOUR.md 2.16.
    RelabelSshKey { user: UserId, key: SshKeyId, label: Name },
    /// BEHAVIOUR.md 2.16; refused for the last way to sign in.
    DeleteSshKey { user: UserId, key: SshKeyId },
    /// BEHAVIOUR.md 1.8: as `SignIn`, by the key of this fingerprint.
    SignInByKey { user: UserId, flags: u8, fingerprint: Box<str> },
    /// BEHAVIOUR.md 1.8: an account made for an unknown key. `password_hash` is of a password nobody knows.
    RegisterByKey { nickname: Name, password_hash: Box<str>, flags: u8, key: Box<NewSshKey> },
    /// BEHAVIOUR.md 7; `at` in milliseconds, already clamped to now. Never goes back.
    UpdateReadState { user: UserId, channel: ChannelId, at: i64 },
    /// BEHAVIOUR.md 4.2, from step 3 on.
    StartDm { initiator: Participant, target: Participant, allow_unencrypted: bool },
    /// BEHAVIOUR.md 4.3. `is_first` from a session that gave none yet, from which encrypted conversations were held back.
    ProvideKey { user: UserId, key: PublicKey, is_first: bool },
    /// BEHAVIOUR.md 4.4.
    AcceptDm { invite: InviteId, by: Participant },
    /// BEHAVIOUR.md 4.5.
    DeclineDm { invite: InviteId, by: Participant },
    /// BEHAVIOUR.md 4.6.
    LeaveDm { channel: ChannelId, leaver: Participant },
    /// BEHAVIOUR.md 6.3, step 6: a server that has proved to be there. One that is listed already is changed only by whom
    /// [`FoundServer`] allows to, and confirmed by anybody.
    ListServer(Box<FoundServer>),
    /// BEHAVIOUR.md 6.3: the server was found where it should be.
    ConfirmServer { address: ServerAddress },
    /// BEHAVIOUR.md 6.4.
    Heartbeat(Box<Heartbeat>),
    /// BEHAVIOUR.md 4.8: this session is over, and with it what it did in direct messages as a visitor.
    ForgetVisitor { session: SessionId },
    /// BEHAVIOUR.md 5: done and audited, or neither.
    Administer(Box<Administer>),
}

/// What CREATE_CHANNEL and CREATE_SUBCHANNEL store.
#[derive(Debug, Clone)]
pub struct NewChannel {
    pub name: Name,
    pub display_name: Name,
    pub description: Name,
    pub channel_type: ChannelType,
    pub retention_hours: u32,
    /// `None`: the operator.
    pub created_by: Option<UserId>,
    pub parent: Option<ChannelId>,
}

/// A server that was verified.
#[derive(Debug, Clone)]
pub struct FoundServer {
    pub record: ServerRecord,
    pub via: DiscoveredVia,
    /// Who registered it; nobody for what was heard by gossip.
    pub registrant: Option<IpAddr>,
    /// The registrant's is an address of the server's own name, which outweighs whatever stands there.
    pub is_own: bool,
}

/// What a HEARTBEAT stores, and who sent it.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    pub address: ServerAddress,
    pub user_count: u32,
    /// Seconds.
    pub uptime_seconds: u64,
    pub channel_count: u32,
    pub sender: IpAddr,
    /// The sender's is an address of the server's own name; else it must be who registered it.
    pub is_own: bool,
}

/// A write that is committed. Shards tell their audiences (BEHAVIOUR.md 3.1).
#[derive(Debug, Clone)]
pub enum Event {
    Posted(Message),
    /// `content` is the text after the edit.
    Edited {
        message: MessageId,
        channel: ChannelId,
        thread_root: MessageId,
        edited_at: i64,
        content: Bytes,
        audience: Audience,
    },
    /// `placeholder` is the text that stands in the message's place.
    Deleted {
        message: MessageId,
        channel: ChannelId,
        thread_root: MessageId,
        deleted_at: i64,
        placeholder: Bytes,
        audience: Audience,
    },
    ChannelCreated(Channel),
    /// Somebody changed the row behind the server's back (BEHAVIOUR.md 11.4).
    ChannelChanged(Channel),
    /// With its subchannels, each of which has an event of its own before this one.
    ChannelDeleted {
        channel: ChannelId,
    },
    Registered {
        user: UserId,
        nickname: Name,
        flags: u8,
    },
    /// `flags` are all that the account has.
    SignedIn {
        user: UserId,
        flags: u8,
    },
    /// `flags` are all that the account has under its new name.
    Renamed {
        user: UserId,
        nickname: Name,
        flags: u8,
    },
    PasswordSet {
        user: UserId,
    },
    SshKeyAdded {
        key: SshKeyId,
        fingerprint: Box<str>,
    },
    SshKeyRelabelled,
    SshKeyDeleted,
    ReadStateUpdated,
    /// A conversation is there. One that was there before (`is_new` false) is told to nobody but whoever asked.
    DmOpened {
        dm: Box<Dm>,
        is_new: bool,
    },
    /// An invitation is open. A repeated one is not always told to its target again.
    DmInvited {
        invite: Box<Invite>,
        is_told: bool,
    },
    /// The invitation asks for encryption, and whoever accepts it has no key. Nothing was stored.
    DmNeedsKey {
        invite: Box<Invite>,
    },
    DmDeclined {
        invite: Box<Invite>,
    },
    DmLeft(Box<DmLeft>),
    /// Invitations that the key of `own` completed, and the account's other encrypted conversations if somebody is to be told
    /// of them: the others of a key that changed, whoever gave it of what was held back.
    KeyProvided {
        own: Box<DmSide>,
        opened: Vec<Dm>,
        others: Vec<DmFound>,
        is_changed: bool,
    },
    VisitorForgotten {
        left: Vec<DmLeft>,
    },
    /// A verified server is in the directory.
    ServerListed {
        is_new: bool,
    },
    /// Nothing is stored of a server that is not in the directory any more.
    ServerConfirmed,
    /// The next heartbeat is due in that many seconds.
    HeartbeatStored {
        interval_seconds: u32,
    },
    Banned(Arc<Ban>),
    /// Not in any order, and never none.
    Unbanned {
        bans: Vec<BanId>,
    },
    /// All bans there are: somebody changed the table behind the server's back (BEHAVIOUR.md 11.4).
    BansRead(Arc<[Arc<Ban>]>),
    /// With its bans by id, see [`Ban::without_account`]. `left` are its direct messages.
    UserDeleted {
        user: UserId,
        nickname: Name,
        left: Vec<DmLeft>,
    },
    /// By an admin, who tells everybody. `subchannels` went with it.
    ChannelRemoved {
        channel: ChannelId,
        name: Name,
        subchannels: Vec<ChannelId>,
    },
    /// The rights of an account are others from now on.
    RoleSet {
        user: UserId,
        flags: u8,
    },
    Kicked(Box<Kick>),
}

impl Event {
    /// Whether who is banned may be another question now.
    #[must_use]
    pub fn is_about_bans(&self) -> bool {
        matches!(self, Self::Banned(_) | Self::Unbanned { .. } | Self::BansRead(_) | Self::UserDeleted { .. })
    }
}

/// Why a write was not done. Nothing of it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    ChannelNotFound,
    /// Missing, or a parent in another channel.
    MessageNotFound,
    /// The reply would be deeper than [`crate::limits::THREAD_DEPTH_MAX`].
    ThreadTooDeep,
    /// The message has no registered author (EDIT_MESSAGE).
    AnonymousMessage,
    NotYours,
    /// Not a participant in the message's DM.
    NotParticipant,
    AlreadyDeleted,
    /// Nothing is left of the text after control characters are removed.
    EmptyContent,
    /// Channel name in use.
    NameTaken,
    /// Nickname in use, as an account, an alias, or a case variant of either.
    NicknameTaken,
    UserNotFound,
    /// The nickname is banned.
    NicknameBanned,
    /// Nothing that could be lifted.
    NoActiveBan,
    NoSshKeys,
    /// The key is stored already, whosever it is.
    SshKeyExists,
    /// Missing, or somebody else's.
    SshKeyNotFound,
    /// The account has [`crate::limits::SSH_KEYS_PER_USER_MAX`].
    TooManySshKeys,
    /// Without it nobody could sign in to the account.
    LastSshKey,
    /// The initiator has no key and does not want to do without.
    KeyRequired,
    InviteNotFound,
    NotInvited,
    /// The initiator has [`crate::limits::OPEN_INVITES_MAX`] invitations open.
    TooManyInvites,
    /// No server of that address is in the directory.
    ServerNotFound,
    /// The directory is full of servers that answer, or of servers of this registrant.
    TooManyServers,
    /// The storage failed: ERROR 9001.
    Database,
}
