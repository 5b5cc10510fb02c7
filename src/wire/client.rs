//! Everything a client may say (WIRE.md 7), one line per message.

use super::codec::{ContentText, DmTarget, List, NicknameText, Tail, messages};
use super::records::UnreadTarget;
use crate::ids::{ChannelId, InviteId, MessageId, UserId};

messages! { enum ClientMessage<'a> {
    0x01 AUTH_REQUEST AuthRequest<'a> { nickname: &'a [u8], password_hash: &'a [u8] }
    0x02 SET_NICKNAME SetNickname<'a> { nickname: NicknameText<'a> }
    0x03 REGISTER_USER RegisterUser<'a> { password_hash: &'a [u8] }
    0x04 LIST_CHANNELS ListChannels { from_channel_id: ChannelId, limit: u16 }
    0x05 JOIN_CHANNEL JoinChannel { channel_id: ChannelId, subchannel_id: Option<ChannelId> }
    0x06 LEAVE_CHANNEL LeaveChannel { channel_id: ChannelId, subchannel_id: Option<ChannelId>, permanent: Tail<bool> }
    0x07 CREATE_CHANNEL CreateChannel<'a> {
        name: &'a [u8], display_name: &'a [u8], description: Option<&'a [u8]>, channel_type: u8, retention_hours: u32,
    }
    0x08 CREATE_SUBCHANNEL CreateSubchannel<'a> {
        channel_id: ChannelId, name: &'a [u8], description: &'a [u8], channel_type: u8, retention_hours: u32,
    }
    0x09 LIST_MESSAGES ListMessages {
        channel_id: ChannelId, subchannel_id: Option<ChannelId>, limit: u16, before_id: Option<MessageId>,
        parent_id: Option<MessageId>, after_id: Option<MessageId>,
    }
    /// A thread when `parent_id` is absent, a reply otherwise.
    0x0A POST_MESSAGE PostMessage<'a> {
        channel_id: ChannelId, subchannel_id: Option<ChannelId>, parent_id: Option<MessageId>, content: ContentText<'a>,
    }
    0x0B EDIT_MESSAGE EditMessage<'a> { message_id: MessageId, new_content: ContentText<'a> }
    0x0C DELETE_MESSAGE DeleteMessage { message_id: MessageId }
    0x0D ADD_SSH_KEY AddSshKey<'a> { public_key: &'a [u8], label: &'a [u8] }
    0x0E CHANGE_PASSWORD ChangePassword<'a> { old_password_hash: &'a [u8], new_password_hash: &'a [u8] }
    0x0F GET_USER_INFO GetUserInfo<'a> { nickname: &'a [u8] }
    0x10 PING Ping { timestamp: i64 }
    0x11 DISCONNECT Disconnect<'a> { reason: Option<&'a [u8]> }
    0x12 UPDATE_SSH_KEY_LABEL UpdateSshKeyLabel<'a> { key_id: i64, new_label: &'a [u8] }
    0x13 DELETE_SSH_KEY DeleteSshKey { key_id: i64 }
    0x14 LIST_SSH_KEYS ListSshKeys {}
    0x15 GET_SUBCHANNELS GetSubchannels { channel_id: ChannelId }
    0x16 LIST_USERS ListUsers { limit: u16, include_offline: Tail<bool> }
    0x17 LIST_CHANNEL_USERS ListChannelUsers { channel_id: ChannelId, subchannel_id: Option<ChannelId> }
    0x18 GET_UNREAD_COUNTS GetUnreadCounts { since_timestamp: Option<i64>, targets: List<UnreadTarget> }
    0x19 START_DM StartDm<'a> { target: DmTarget<'a>, allow_unencrypted: bool }
    0x1A PROVIDE_PUBLIC_KEY ProvidePublicKey<'a> { key_type: u8, public_key: [u8; 32], label: &'a [u8] }
    0x1B ALLOW_UNENCRYPTED AllowUnencrypted { dm_channel_id: InviteId, permanent: bool }
    0x1C LOGOUT Logout {}
    0x1D UPDATE_READ_STATE UpdateReadState { channel_id: ChannelId, subchannel_id: Option<ChannelId>, timestamp: i64 }
    0x1E DECLINE_DM DeclineDm { dm_channel_id: InviteId }
    0x51 SUBSCRIBE_THREAD SubscribeThread { thread_id: MessageId }
    0x52 UNSUBSCRIBE_THREAD UnsubscribeThread { thread_id: MessageId }
    0x53 SUBSCRIBE_CHANNEL SubscribeChannel { channel_id: ChannelId, subchannel_id: Option<ChannelId> }
    0x54 UNSUBSCRIBE_CHANNEL UnsubscribeChannel { channel_id: ChannelId, subchannel_id: Option<ChannelId> }
    0x55 LIST_SERVERS ListServers { limit: u16 }
    0x56 REGISTER_SERVER RegisterServer<'a> {
        hostname: &'a [u8], port: u16, name: &'a [u8], description: &'a [u8], max_users: u32, is_public: bool,
        channel_count: u32,
    }
    0x57 HEARTBEAT Heartbeat<'a> {
        hostname: &'a [u8], port: u16, user_count: u32, uptime_seconds: u64, channel_count: u32,
    }
    0x58 VERIFY_RESPONSE VerifyResponse { challenge: u64 }
    0x59 BAN_USER BanUser<'a> {
        user_id: Option<UserId>, nickname: Option<&'a [u8]>, reason: &'a [u8], shadowban: bool,
        duration_seconds: Option<u64>,
    }
    0x5A BAN_IP BanIp<'a> { ip_cidr: &'a [u8], reason: &'a [u8], duration_seconds: Option<u64> }
    0x5B UNBAN_USER UnbanUser<'a> { user_id: Option<UserId>, nickname: Option<&'a [u8]> }
    0x5C UNBAN_IP UnbanIp<'a> { ip_cidr: &'a [u8] }
    0x5D LIST_BANS ListBans { include_expired: bool }
    0x5E DELETE_USER DeleteUser { user_id: UserId }
    0x5F DELETE_CHANNEL DeleteChannel<'a> { channel_id: ChannelId, reason: &'a [u8] }
    /// Arrives at a server that a directory verifies (WIRE.md 7.10), against the usual split of codes.
    0x9E VERIFY_REGISTRATION VerifyRegistration { challenge: u64 }
}}
