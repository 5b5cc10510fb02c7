//! Everything the server may say (WIRE.md 7), one line per message.

use super::codec::{ArchiveFlag, Encryption, List, LongList, Tail, messages, records};
use super::records::{
    BanEntry, ChannelEntry, ChannelUserEntry, Failed, Message, ServerEntry, SshKeyEntry, SubchannelEntry, UnreadCount,
    UserEntry,
};
use crate::ids::{BanId, ChannelId, InviteId, MessageId, SessionId, UserId};

messages! { enum ServerMessage<'a> {
    0x81 AUTH_RESPONSE AuthResponse<'a> { outcome: Result<SignedIn<'a>, Failed<'a>> }
    0x82 NICKNAME_RESPONSE NicknameResponse<'a> { success: bool, message: &'a [u8] }
    0x83 REGISTER_RESPONSE RegisterResponse<'a> { outcome: Result<Registered<'a>, Failed<'a>> }
    0x84 CHANNEL_LIST ChannelList<'a> { channels: List<ChannelEntry<'a>> }
    0x85 JOIN_RESPONSE JoinResponse<'a> {
        success: bool, channel_id: ChannelId, subchannel_id: Option<ChannelId>, message: &'a [u8],
    }
    0x86 LEAVE_RESPONSE LeaveResponse<'a> {
        success: bool, channel_id: ChannelId, subchannel_id: Option<ChannelId>, message: &'a [u8],
    }
    0x87 CHANNEL_CREATED ChannelCreated<'a> { outcome: Result<CreatedChannel<'a>, Failed<'a>> }
    0x88 SUBCHANNEL_CREATED SubchannelCreated<'a> { outcome: Result<CreatedSubchannel<'a>, Failed<'a>> }
    0x89 MESSAGE_LIST MessageList<'a> {
        channel_id: ChannelId, subchannel_id: Option<ChannelId>, parent_id: Option<MessageId>, messages: List<Message<'a>>,
    }
    0x8A MESSAGE_POSTED MessagePosted<'a> { success: bool, message_id: MessageId, message: &'a [u8] }
    0x8B MESSAGE_EDITED MessageEdited<'a> { outcome: Result<Edited<'a>, NotChanged<'a>> }
    0x8C MESSAGE_DELETED MessageDeleted<'a> { outcome: Result<Deleted<'a>, NotChanged<'a>> }
    0x8D NEW_MESSAGE NewMessage<'a> {
        message_id: MessageId, channel_id: ChannelId, subchannel_id: Option<ChannelId>, parent_id: Option<MessageId>,
        author_user_id: Option<UserId>, author_nickname: &'a [u8], content: &'a [u8], created_at: i64,
        edited_at: Option<i64>, reply_count: u32,
    }
    0x8E PASSWORD_CHANGED PasswordChanged<'a> { success: bool, error_message: &'a [u8] }
    0x8F USER_INFO UserInfo<'a> { nickname: &'a [u8], is_registered: bool, user_id: Option<UserId>, online: bool }
    0x90 PONG Pong { client_timestamp: i64 }
    0x91 ERROR Error<'a> { error_code: u16, message: &'a [u8] }
    0x92 SSH_KEY_LABEL_UPDATED SshKeyLabelUpdated<'a> { success: bool, error_message: &'a [u8] }
    0x93 SSH_KEY_DELETED SshKeyDeleted<'a> { success: bool, error_message: &'a [u8] }
    0x94 SSH_KEY_LIST SshKeyList<'a> { keys: LongList<SshKeyEntry<'a>> }
    0x95 SSH_KEY_ADDED SshKeyAdded<'a> { success: bool, key_id: i64, fingerprint: &'a [u8], error_message: &'a [u8] }
    0x96 SUBCHANNEL_LIST SubchannelList<'a> { channel_id: ChannelId, subchannels: List<SubchannelEntry<'a>> }
    0x97 UNREAD_COUNTS UnreadCounts { counts: List<UnreadCount> }
    0x98 SERVER_CONFIG ServerConfig {
        protocol_version: u8, max_message_rate: u16, max_channel_creates: u16, inactive_cleanup_days: u16,
        max_connections_per_ip: u8, max_message_length: u32, max_thread_subscriptions: u16,
        max_channel_subscriptions: u16, directory_enabled: bool,
    }
    0x99 SUBSCRIBE_OK SubscribeOk { subscription_type: u8, id: u64, subchannel_id: Option<ChannelId> }
    0x9A USER_LIST UserList<'a> { users: List<UserEntry<'a>> }
    0x9B SERVER_LIST ServerList<'a> { servers: List<ServerEntry<'a>> }
    0x9C REGISTER_ACK RegisterAck<'a> { outcome: Result<Accepted<'a>, Failed<'a>> }
    0x9D HEARTBEAT_ACK HeartbeatAck { heartbeat_interval: u32 }
    0x9E VERIFY_REGISTRATION VerifyRegistration { challenge: u64 }
    0x9F USER_BANNED UserBanned<'a> { outcome: Result<Banned<'a>, Failed<'a>> }
    0xA1 KEY_REQUIRED KeyRequired<'a> { reason: &'a [u8], dm_channel_id: Option<InviteId> }
    0xA2 DM_READY DmReady<'a> {
        channel_id: ChannelId, other_user_id: Option<UserId>, other_nickname: &'a [u8], encryption: Encryption,
    }
    0xA3 DM_PENDING DmPending<'a> {
        dm_channel_id: InviteId, waiting_for_user_id: Option<UserId>, waiting_for_nickname: &'a [u8], reason: &'a [u8],
    }
    0xA4 DM_REQUEST DmRequest<'a> {
        dm_channel_id: InviteId, from_user_id: Option<UserId>, from_nickname: &'a [u8], encryption_status: u8,
    }
    0xA5 IP_BANNED IpBanned<'a> { outcome: Result<Banned<'a>, Failed<'a>> }
    0xA6 USER_UNBANNED UserUnbanned<'a> { success: bool, message: &'a [u8] }
    0xA7 IP_UNBANNED IpUnbanned<'a> { success: bool, message: &'a [u8] }
    0xA8 BAN_LIST BanList<'a> { bans: List<BanEntry<'a>> }
    0xA9 USER_DELETED UserDeleted<'a> { success: bool, message: &'a [u8] }
    0xAA CHANNEL_DELETED ChannelDeleted<'a> { success: bool, channel_id: ChannelId, message: &'a [u8] }
    0xAB CHANNEL_USER_LIST ChannelUserList<'a> {
        channel_id: ChannelId, subchannel_id: Option<ChannelId>, users: List<ChannelUserEntry<'a>>,
    }
    0xAC CHANNEL_PRESENCE ChannelPresence<'a> {
        channel_id: ChannelId, subchannel_id: Option<ChannelId>, session_id: SessionId, nickname: &'a [u8],
        is_registered: bool, user_id: Option<UserId>, user_flags: u8, joined: bool,
    }
    0xAD SERVER_PRESENCE ServerPresence<'a> {
        session_id: SessionId, nickname: &'a [u8], is_registered: bool, user_id: Option<UserId>, user_flags: u8,
        online: bool,
    }
    0xAE DM_PARTICIPANT_LEFT DmParticipantLeft<'a> {
        dm_channel_id: ChannelId, user_id: Option<UserId>, nickname: &'a [u8],
    }
    0xAF DM_DECLINED DmDeclined<'a> { dm_channel_id: InviteId, user_id: Option<UserId>, nickname: &'a [u8] }
    0x11 DISCONNECT Disconnect<'a> { reason: Option<&'a [u8]> }
    /// Leaves a server that a directory verifies (WIRE.md 7.10), against the usual split of codes.
    0x58 VERIFY_RESPONSE VerifyResponse { challenge: u64 }
}}

records! {
    /// AUTH_RESPONSE of a sign-in; a reader that finds no flags assumes 0.
    SignedIn<'a> { user_id: UserId, nickname: &'a [u8], message: &'a [u8], user_flags: Tail<u8> }
    Registered<'a> { user_id: UserId, message: &'a [u8] }
    CreatedChannel<'a> {
        channel_id: ChannelId, name: &'a [u8], description: &'a [u8], channel_type: u8, retention_hours: u32,
        archive_enabled: ArchiveFlag, message: &'a [u8],
    }
    CreatedSubchannel<'a> {
        channel_id: ChannelId, subchannel_id: ChannelId, name: &'a [u8], description: &'a [u8], channel_type: u8,
        retention_hours: u32, message: &'a [u8],
    }
    Edited<'a> { message_id: MessageId, edited_at: i64, new_content: &'a [u8], message: &'a [u8] }
    Deleted<'a> { message_id: MessageId, deleted_at: i64, message: &'a [u8] }
    NotChanged<'a> { message_id: MessageId, message: &'a [u8] }
    /// `heartbeat_interval` in seconds.
    Accepted<'a> { heartbeat_interval: u32, message: &'a [u8] }
    Banned<'a> { ban_id: BanId, message: &'a [u8] }
}
