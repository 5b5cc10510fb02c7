//! The subcommands of `scd admin`, and what each asks the running server for.

use std::str::FromStr;

use clap::{Args, Subcommand};

use crate::operator::{NewChannel, Order, Role};

/// What an operator does.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// List something
    #[command(subcommand)]
    List(AdminList),
    /// List who is connected
    Sessions,
    /// List what admins and operators did, newest first
    Audit {
        /// At most so many rows
        #[arg(long, value_name = "N", default_value = "100")]
        limit: u32,
    },
    /// Give an account a right
    Grant {
        /// Nickname of the account
        nickname: String,
        /// Which right
        #[arg(default_value = "admin")]
        role: Role,
    },
    /// Take a right away that was granted
    Revoke {
        /// Nickname of the account
        nickname: String,
        /// Which right
        #[arg(default_value = "admin")]
        role: Role,
    },
    /// Give an account a new password, read from standard input or made up and printed
    ResetPassword {
        /// Nickname of the account
        nickname: String,
        /// Read the password from standard input, one line
        #[arg(long)]
        stdin: bool,
    },
    /// Keep somebody out
    #[command(subcommand)]
    Ban(AdminBan),
    /// Let somebody in again
    #[command(subcommand)]
    Unban(AdminUnban),
    /// Delete an account; its messages stay, as a visitor's
    DeleteUser {
        /// Nickname of the account
        nickname: String,
    },
    /// Create and delete channels
    #[command(subcommand)]
    Channel(AdminChannel),
    /// End one session
    Disconnect {
        /// Number of the session, as `scd admin sessions` shows it
        session: u64,
        /// Told to whoever is disconnected
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

/// What can be listed.
#[derive(Debug, Subcommand)]
pub enum AdminList {
    /// Accounts
    Users {
        /// At most so many
        #[arg(long, value_name = "N", default_value = "1000")]
        limit: u16,
    },
    /// Admins and moderators, and where they have it from
    Admins,
    /// Bans
    Bans {
        /// Those that have ended too
        #[arg(long)]
        all: bool,
    },
    /// Channels and subchannels
    Channels,
    /// Who is connected
    Sessions,
    /// What admins and operators did, newest first
    Audit {
        /// At most so many rows
        #[arg(long, value_name = "N", default_value = "100")]
        limit: u32,
    },
}

/// Whom to ban.
#[derive(Debug, Subcommand)]
pub enum AdminBan {
    /// An account or a nickname; its sessions end
    User {
        /// Nickname
        nickname: String,
        /// Hide what is written from everybody else, instead of refusing
        #[arg(long)]
        shadow: bool,
        #[command(flatten)]
        terms: Terms,
    },
    /// An address or a network; its sessions end
    Ip {
        /// IPv4 or IPv6, or a network such as 192.0.2.0/24
        address: String,
        #[command(flatten)]
        terms: Terms,
    },
}

/// For how long, and why.
#[derive(Debug, Args)]
pub struct Terms {
    /// How long, such as 30m, 12h, 7d or 2w [default: for ever]
    #[arg(long = "for", value_name = "DURATION")]
    pub duration: Option<Span>,
    /// Told to whoever is banned
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
}

/// A number of seconds, written with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub u64);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(char, u64); 5] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400), ('w', 604_800)];
        let wrong = || format!("{text} is no duration such as 30m, 12h, 7d or 2w");
        let unit = text.chars().last().and_then(|last| UNITS.iter().find(|(unit, _)| *unit == last));
        let (unit, seconds) = unit.ok_or_else(wrong)?;
        let number: u64 = text.strip_suffix(*unit).and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
        number.checked_mul(*seconds).filter(|seconds| *seconds > 0).map(Self).ok_or_else(wrong)
    }
}

/// Whose bans to lift.
#[derive(Debug, Subcommand)]
pub enum AdminUnban {
    /// An account or a nickname
    User {
        /// Nickname
        nickname: String,
    },
    /// An address or a network
    Ip {
        /// As it was banned, or another way to write the same addresses
        address: String,
    },
}

/// What to do with a channel.
#[derive(Debug, Subcommand)]
pub enum AdminChannel {
    /// Create a channel, or with a parent a subchannel
    Create {
        /// Name, as in `general`; `parent/name` makes a subchannel
        name: String,
        /// Shown name (default: # and the name)
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
        /// Description
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        /// Without threads
        #[arg(long)]
        chat: bool,
        /// Hours that messages are kept
        #[arg(long, value_name = "N", default_value = "168")]
        retention_hours: u32,
    },
    /// Delete a channel with its subchannels and everything written there
    Delete {
        /// Name, `parent/name` of a subchannel, or number
        name: String,
        /// For the audit
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

impl AdminCommand {
    /// What the server is asked for; `None` for what needs a password first.
    pub fn order(&self) -> Option<Order> {
        Some(match self {
            Self::List(AdminList::Users { limit }) => Order::Users { limit: *limit },
            Self::List(AdminList::Admins) => Order::Admins,
            Self::List(AdminList::Bans { all }) => Order::Bans { all: *all },
            Self::List(AdminList::Channels) => Order::Channels,
            Self::Sessions | Self::List(AdminList::Sessions) => Order::Sessions,
            Self::Audit { limit } | Self::List(AdminList::Audit { limit }) => Order::Audit { limit: *limit },
            Self::Grant { nickname, role } => Order::Grant { nickname: nickname.clone(), role: *role },
            Self::Revoke { nickname, role } => Order::Revoke { nickname: nickname.clone(), role: *role },
            Self::ResetPassword { .. } => return None,
            Self::Ban(AdminBan::User { nickname, shadow, terms: Terms { duration, reason } }) => Order::BanUser {
                nickname: nickname.clone(),
                reason: reason.clone(),
                shadow: *shadow,
                seconds: duration.map(|span| span.0),
            },
            Self::Ban(AdminBan::Ip { address, terms: Terms { duration, reason } }) => {
                Order::BanIp { address: address.clone(), reason: reason.clone(), seconds: duration.map(|span| span.0) }
            }
            Self::Unban(AdminUnban::User { nickname }) => Order::UnbanUser { nickname: nickname.clone() },
            Self::Unban(AdminUnban::Ip { address }) => Order::UnbanIp { address: address.clone() },
            Self::DeleteUser { nickname } => Order::DeleteUser { nickname: nickname.clone() },
            Self::Channel(AdminChannel::Create { name, display_name, description, chat, retention_hours }) => {
                let (parent, name) = name.split_once('/').map_or((None, name.as_str()), |(p, name)| (Some(p), name));
                Order::CreateChannel(NewChannel {
                    name: name.to_owned(),
                    parent: parent.map(str::to_owned),
                    display_name: display_name.clone(),
                    description: description.clone(),
                    is_chat: *chat,
                    retention_hours: *retention_hours,
                })
            }
            Self::Channel(AdminChannel::Delete { name, reason }) => {
                Order::DeleteChannel { name: name.clone(), reason: reason.clone() }
            }
            Self::Disconnect { session, reason } => Order::Disconnect { session: *session, reason: reason.clone() },
        })
    }
}
