//! Records that several messages carry.

use super::codec::{ArchiveFlag, records};
use crate::ids::{BanId, ChannelId, MessageId, SessionId, UserId};

records! {
    /// One public channel in CHANNEL_LIST (WIRE.md 7.3).
    ChannelEntry<'a> {
        channel_id: ChannelId, name: &'a [u8], description: &'a [u8], user_count: u32, is_operator: bool, channel_type: u8,
        retention_hours: u32, has_subchannels: bool, subchannel_count: u16, archive_enabled: ArchiveFlag,
    }
    /// One entry of SUBCHANNEL_LIST (WIRE.md 7.3).
    SubchannelEntry<'a> {
        subchannel_id: ChannelId, name: &'a [u8], description: &'a [u8], channel_type: u8, retention_hours: u32,
    }
    /// A message as lists and NEW_MESSAGE carry it (WIRE.md 7.4). Times in milliseconds.
    Message<'a> {
        message_id: MessageId, channel_id: ChannelId, subchannel_id: Option<ChannelId>, parent_id: Option<MessageId>,
        author_user_id: Option<UserId>, author_nickname: &'a [u8], content: &'a [u8], created_at: i64,
        edited_at: Option<i64>, reply_count: u32,
    }
    /// One entry of USER_LIST (WIRE.md 7.6).
    UserEntry<'a> { nickname: &'a [u8], is_registered: bool, user_id: Option<UserId>, online: bool }
    /// One entry of CHANNEL_USER_LIST (WIRE.md 7.6).
    ChannelUserEntry<'a> {
        session_id: SessionId, nickname: &'a [u8], is_registered: bool, user_id: Option<UserId>, user_flags: u8,
    }
    /// What GET_UNREAD_COUNTS asks for (WIRE.md 7.6).
    UnreadTarget { channel_id: ChannelId, subchannel_id: Option<ChannelId>, thread_id: Option<MessageId> }
    /// One answer of UNREAD_COUNTS (WIRE.md 7.6).
    UnreadCount {
        channel_id: ChannelId, subchannel_id: Option<ChannelId>, thread_id: Option<MessageId>, unread_count: u32,
    }
    /// One entry of SSH_KEY_LIST (WIRE.md 7.8). Times in milliseconds, `last_used_at` 0 = never.
    SshKeyEntry<'a> {
        key_id: i64, fingerprint: &'a [u8], key_type: &'a [u8], label: &'a [u8], added_at: i64, last_used_at: i64,
    }
    /// One entry of BAN_LIST (WIRE.md 7.9). Times in milliseconds.
    BanEntry<'a> {
        ban_id: BanId, ban_type: &'a [u8], user_id: Option<UserId>, nickname: Option<&'a [u8]>, ip_cidr: Option<&'a [u8]>,
        reason: &'a [u8], shadowban: bool, banned_at: i64, banned_until: Option<i64>, banned_by: &'a [u8],
    }
    /// One entry of SERVER_LIST (WIRE.md 7.10).
    ServerEntry<'a> {
        hostname: &'a [u8], port: u16, name: &'a [u8], description: &'a [u8], user_count: u32, max_users: u32,
        uptime_seconds: u64, is_public: bool, channel_count: u32,
    }
    /// Why a request with its own reply failed.
    Failed<'a> { message: &'a [u8] }
}
