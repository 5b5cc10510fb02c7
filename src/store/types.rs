//! The nouns of the store: what a channel, a message, an account is, independent of wire and SQL.
//!
//! Texts are bytes: files in the field hold names and contents that are not UTF-8 (BEHAVIOUR.md 8.3).

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::dm::Viewer;
use crate::ids::{BanId, ChannelId, MessageId, SessionId, SshKeyId, UserId};

/// A name that is kept or shown: cheap to clone and to share between shards.
pub type Name = Arc<[u8]>;

/// User flag bit: admin, shown as `$` (WIRE.md 6).
pub const FLAG_ADMIN: u8 = 0x01;
/// User flag bit: moderator, shown as `@` (WIRE.md 6).
pub const FLAG_MODERATOR: u8 = 0x02;

/// How messages of a channel are organised (WIRE.md 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelType {
    /// Flat: no replies.
    Chat,
    /// Threads.
    Forum,
}

impl ChannelType {
    #[must_use]
    pub fn from_wire(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Chat),
            1 => Some(Self::Forum),
            _ => None,
        }
    }

    #[must_use]
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Chat => 0,
            Self::Forum => 1,
        }
    }
}

/// A channel, subchannel or direct-message channel as every shard keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    pub id: ChannelId,
    /// Machine name, what clients show.
    pub name: Name,
    pub display_name: Name,
    pub description: Name,
    pub channel_type: ChannelType,
    /// Hours messages are kept.
    pub retention_hours: u32,
    pub created_by: Option<UserId>,
    /// Set for a subchannel.
    pub parent: Option<ChannelId>,
    /// Set for a direct-message channel: who takes part.
    pub participants: Option<Arc<[Participant]>>,
    /// What a newer server of the field keeps an archive of; ours only tells it to those who ask.
    pub is_archived: bool,
}

impl Channel {
    /// The account that made the channel is gone; the channel stays.
    pub fn forget_creator(&mut self, user: UserId) {
        self.created_by = self.created_by.filter(|creator| *creator != user);
    }
}

/// Who takes part in a direct message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// The account, or `None` for a visitor.
    pub user: Option<UserId>,
    /// The visitor's session; `None` for an account, and for a visitor of an earlier run of the server.
    pub session: Option<SessionId>,
    /// Without prefix sign, as it was when they came in.
    pub nickname: Name,
}

/// Who acts: everything a rule about "own" messages looks at (BEHAVIOUR.md 2.14, 2.15).
#[derive(Debug, Clone)]
pub struct Actor {
    /// The account, or `None` for a visitor.
    pub user: Option<UserId>,
    /// Without prefix sign.
    pub nickname: Name,
    /// WIRE.md 6 `user_flags`.
    pub flags: u8,
    pub session: SessionId,
    pub address: IpAddr,
    /// Shadow bans that this session met, under whatever name; they hide what it writes while they count (BEHAVIOUR.md 5.3).
    pub marks: Vec<BanId>,
}

impl Actor {
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.user.is_some() && self.flags & FLAG_ADMIN != 0
    }

    #[must_use]
    pub fn viewer(&self) -> Viewer {
        Viewer { user: self.user, session: self.session, is_admin: self.is_admin() }
    }
}

/// Who wrote a stored message, ready to be displayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// A live account: its current nickname and flags, whatever they were at posting time.
    Account { user: UserId, nickname: Name, flags: u8 },
    /// An account id whose row is missing.
    MissingAccount { user: UserId },
    /// A visitor, or an account that was deleted.
    Visitor { nickname: Name },
    /// A line the server wrote.
    System,
}

/// Who hears of a message and finds it in lists (BEHAVIOUR.md 3.1, 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    Everybody,
    /// Written under a shadow ban: whoever wrote it, and admins.
    Hidden {
        user: Option<UserId>,
        session: Option<SessionId>,
    },
}

impl Audience {
    #[must_use]
    pub fn includes(self, viewer: Viewer) -> bool {
        match self {
            Self::Everybody => true,
            Self::Hidden { user, session } => {
                viewer.is_admin || session == Some(viewer.session) || (user.is_some() && user == viewer.user)
            }
        }
    }
}

/// A message as lists and broadcasts show it. Times in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub id: MessageId,
    /// The place: a subchannel's own id where there is one (BEHAVIOUR.md 2.11).
    pub channel: ChannelId,
    pub parent: Option<MessageId>,
    /// The thread's first message; its own id for a root.
    pub thread_root: MessageId,
    pub author: Author,
    pub content: Bytes,
    pub created_at: i64,
    pub edited_at: Option<i64>,
    /// Live descendants that the viewer may see; 0 on replies.
    pub reply_count: u32,
    /// To whom a new message is told. A list holds what its viewer may see, and says nothing here.
    pub audience: Audience,
}

/// An account row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub id: UserId,
    pub nickname: Name,
    pub flags: u8,
    /// bcrypt of the client's hash; empty = no password.
    pub password_hash: Box<str>,
    /// A former nickname still signs in to it (BEHAVIOUR.md 12, D-08).
    pub has_alias: bool,
}

/// A stored SSH public key (BEHAVIOUR.md 2.16). Times in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshKey {
    pub id: SshKeyId,
    /// `SHA256:` and unpadded base64.
    pub fingerprint: Name,
    /// Name of the algorithm.
    pub key_type: Name,
    pub label: Name,
    pub added_at: i64,
    /// `None` = never.
    pub last_used_at: Option<i64>,
}

/// A public key to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSshKey {
    pub fingerprint: Box<str>,
    /// One line as in `authorized_keys`.
    pub public_key: Box<str>,
    pub key_type: Box<str>,
    pub label: Name,
}

/// Where a server of the directory is reached (BEHAVIOUR.md 8.1 DiscoveredServer).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerAddress {
    /// A name or an address, not resolved: at most 253 bytes, in lower case.
    pub host: Arc<str>,
    /// TCP port, never 0.
    pub port: u16,
}

/// What the directory tells of a server (WIRE.md 7.10 SERVER_LIST).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRecord {
    pub address: ServerAddress,
    /// At most [`crate::limits::SERVER_TEXT_BYTES_MAX`], as the description.
    pub name: Name,
    pub description: Name,
    /// People connected.
    pub user_count: u32,
    /// 0 = no limit.
    pub max_users: u32,
    /// Seconds since that server started.
    pub uptime_seconds: u64,
    /// Open to new accounts; others are not listed.
    pub is_public: bool,
    pub channel_count: u32,
}

/// How the directory learnt of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveredVia {
    Registration,
    /// Another directory lists it.
    Gossip,
}
