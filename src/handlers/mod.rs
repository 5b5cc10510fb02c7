//! What each request does: one function per message, by area (BEHAVIOUR.md 2).
//!
//! A handler checks the session first, then does one thing: answers, asks the store, or hands a command to the writer.
//! It never waits; what goes on after an answer is the closure it leaves behind.

pub mod admin;
pub mod auth;
pub mod channels;
pub mod directory;
pub mod dms;
pub mod keys;
pub mod messages;
pub mod subscriptions;
pub mod users;

use tracing::debug;

use crate::ids::ChannelId;
use crate::metrics::{DecodeError, RateLimit};
use crate::net::CloseReason;
use crate::shard::Shard;
use crate::shard::session::SessionKey;
use crate::wire::client::{self, LeaveChannel};
use crate::wire::codec::Tail;
use crate::wire::server::{self, Pong};
use crate::wire::{ClientMessage, ErrorCode, WireError};

/// One frame's message, from type code and payload to its handler.
pub fn dispatch(shard: &mut Shard, key: SessionKey, code: u8, payload: &[u8]) {
    if !within_rate(shard, key) {
        shard.rate_limited(key, RateLimit::Request);
        return shard.error(key, ErrorCode::RateLimit, "Rate limit exceeded");
    }
    if let Some(refusal) = account_required(code)
        && shard.clients.session(key).account.is_none()
    {
        return shard.error(key, ErrorCode::AuthRequired, refusal);
    }
    if admin::refuse_unless_admin(shard, key, code) {
        return;
    }
    if directory::refuse_before_reading(shard, key, code) {
        return;
    }
    match ClientMessage::read(code, payload) {
        Ok(message) => handle(shard, key, message),
        Err(error) => unreadable(shard, key, code, payload, error),
    }
}

fn within_rate(shard: &mut Shard, key: SessionKey) -> bool {
    let Some(rate) = shard.settings.requests_per_second else { return true };
    let now = shard.now.mono;
    let session = shard.clients.session(key);
    session.is_exempt() || session.busy().requests.take(now, rate)
}

/// Requests that are refused to visitors before they are read (WIRE.md 8).
fn account_required(code: u8) -> Option<&'static str> {
    match code {
        client::ChangePassword::CODE => Some("Must be authenticated to change password"),
        client::AddSshKey::CODE => Some("Must be authenticated to add SSH key"),
        client::ListSshKeys::CODE => Some("Must be authenticated to list SSH keys"),
        client::UpdateSshKeyLabel::CODE => Some("Must be authenticated to update SSH key"),
        client::DeleteSshKey::CODE => Some("Must be authenticated to delete SSH key"),
        _ => None,
    }
}

/// Every message has its function.
fn handle(shard: &mut Shard, key: SessionKey, message: ClientMessage<'_>) {
    match message {
        ClientMessage::Ping(ping) => shard.reply(key, Pong { client_timestamp: ping.timestamp }),
        ClientMessage::Disconnect(_) => shard.close(key, CloseReason::Client),

        ClientMessage::SetNickname(request) => auth::set_nickname(shard, key, &request),
        ClientMessage::AuthRequest(request) => auth::auth_request(shard, key, &request),
        ClientMessage::RegisterUser(request) => auth::register_user(shard, key, &request),
        ClientMessage::ChangePassword(request) => auth::change_password(shard, key, &request),
        ClientMessage::Logout(_) => auth::logout(shard, key),

        ClientMessage::ListChannels(request) => channels::list_channels(shard, key, &request),
        ClientMessage::JoinChannel(request) => channels::join_channel(shard, key, &request),
        ClientMessage::LeaveChannel(request) => channels::leave_channel(shard, key, &request),
        ClientMessage::CreateChannel(request) => channels::create_channel(shard, key, &request),
        ClientMessage::CreateSubchannel(request) => channels::create_subchannel(shard, key, &request),
        ClientMessage::GetSubchannels(request) => channels::get_subchannels(shard, key, &request),

        ClientMessage::ListMessages(request) => messages::list_messages(shard, key, &request),
        ClientMessage::PostMessage(request) => messages::post_message(shard, key, &request),
        ClientMessage::EditMessage(request) => messages::edit_message(shard, key, &request),
        ClientMessage::DeleteMessage(request) => messages::delete_message(shard, key, &request),

        ClientMessage::SubscribeThread(request) => subscriptions::subscribe_thread(shard, key, &request),
        ClientMessage::UnsubscribeThread(request) => subscriptions::unsubscribe_thread(shard, key, &request),
        ClientMessage::SubscribeChannel(request) => subscriptions::subscribe_channel(shard, key, &request),
        ClientMessage::UnsubscribeChannel(request) => subscriptions::unsubscribe_channel(shard, key, &request),

        ClientMessage::GetUserInfo(request) => users::get_user_info(shard, key, &request),
        ClientMessage::ListUsers(request) => users::list_users(shard, key, &request),
        ClientMessage::ListChannelUsers(request) => users::list_channel_users(shard, key, &request),
        ClientMessage::GetUnreadCounts(request) => users::get_unread_counts(shard, key, &request),
        ClientMessage::UpdateReadState(request) => users::update_read_state(shard, key, &request),

        ClientMessage::StartDm(request) => dms::start_dm(shard, key, &request),
        ClientMessage::ProvidePublicKey(request) => dms::provide_public_key(shard, key, &request),
        ClientMessage::AllowUnencrypted(request) => dms::allow_unencrypted(shard, key, &request),
        ClientMessage::DeclineDm(request) => dms::decline_dm(shard, key, &request),

        ClientMessage::AddSshKey(request) => keys::add_ssh_key(shard, key, &request),
        ClientMessage::ListSshKeys(_) => keys::list_ssh_keys(shard, key),
        ClientMessage::UpdateSshKeyLabel(request) => keys::update_ssh_key_label(shard, key, &request),
        ClientMessage::DeleteSshKey(request) => keys::delete_ssh_key(shard, key, &request),

        ClientMessage::ListServers(request) => directory::list_servers(shard, key, &request),
        ClientMessage::RegisterServer(request) => directory::register_server(shard, key, &request),
        ClientMessage::Heartbeat(request) => directory::heartbeat(shard, key, &request),
        ClientMessage::VerifyRegistration(request) => {
            shard.reply(key, server::VerifyResponse { challenge: request.challenge });
        }
        ClientMessage::VerifyResponse(_) => {
            shard.error(key, ErrorCode::InvalidInput, "No pending verification");
        }
        ClientMessage::BanUser(request) => admin::ban_user(shard, key, &request),
        ClientMessage::BanIp(request) => admin::ban_ip(shard, key, &request),
        ClientMessage::UnbanUser(request) => admin::unban_user(shard, key, &request),
        ClientMessage::UnbanIp(request) => admin::unban_ip(shard, key, &request),
        ClientMessage::ListBans(request) => admin::list_bans(shard, key, &request),
        ClientMessage::DeleteUser(request) => admin::delete_user(shard, key, &request),
        ClientMessage::DeleteChannel(request) => admin::delete_channel(shard, key, &request),
    }
}

fn unsupported(shard: &mut Shard, key: SessionKey) {
    shard.error(key, ErrorCode::UnsupportedVersion, "Unsupported message type");
}

/// What a payload that cannot be read is answered with (WIRE.md 8). The session goes on.
fn unreadable(shard: &mut Shard, key: SessionKey, code: u8, payload: &[u8], error: WireError) {
    if let WireError::UnknownType(_) = error {
        shard.metrics.decode_error(DecodeError::UnknownType);
        return unsupported(shard, key);
    }
    match code {
        LeaveChannel::CODE if payload.is_empty() => {
            let whichever = LeaveChannel { channel_id: ChannelId(0), subchannel_id: None, permanent: Tail(None) };
            return channels::leave_channel(shard, key, &whichever);
        }
        client::ListServers::CODE if !shard.settings.directory.enabled => {
            return directory::list_servers(shard, key, &client::ListServers { limit: 0 });
        }
        // A goodbye needs no reading.
        client::Disconnect::CODE => return shard.close(key, CloseReason::Client),
        _ => {}
    }
    shard.metrics.decode_error(DecodeError::Payload);
    debug!(session = shard.clients.session(key).id.0, code, %error, "unreadable payload");
    match (code, error) {
        (client::CreateChannel::CODE, _) => channels::refuse_channel(shard, key, "Invalid request format"),
        (client::CreateSubchannel::CODE, _) => channels::refuse_subchannel(shard, key, "Invalid request format"),
        (client::PostMessage::CODE, WireError::TooLong) => messages::post_too_long(shard, key),
        (client::EditMessage::CODE, WireError::TooLong) => messages::edit_too_long(shard, key),
        _ => shard.error(key, ErrorCode::InvalidFormat, unreadable_text(code)),
    }
}

/// The words of ERROR 1000, by request.
fn unreadable_text(code: u8) -> &'static str {
    match code {
        client::GetSubchannels::CODE
        | client::AddSshKey::CODE
        | client::UpdateSshKeyLabel::CODE
        | client::DeleteSshKey::CODE => "Invalid request format",
        client::ChangePassword::CODE => "Invalid change password request",
        client::StartDm::CODE => "Invalid START_DM format",
        client::ProvidePublicKey::CODE => "Invalid PROVIDE_PUBLIC_KEY format",
        client::AllowUnencrypted::CODE => "Invalid ALLOW_UNENCRYPTED format",
        client::DeclineDm::CODE => "Invalid DECLINE_DM format",
        _ => "Invalid message format",
    }
}
