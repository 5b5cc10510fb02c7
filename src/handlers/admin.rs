//! Administration (BEHAVIOUR.md 5.2): bans, and deleting accounts and channels.

use tracing::info;

use super::channels::{fitting, one_frame};
use crate::ids::{ChannelId, UserId};
use crate::limits::{BAN_NICKNAME_BYTES_MAX, BAN_REASON_BYTES_MAX};
use crate::shard::Shard;
use crate::shard::session::{Session, SessionKey};
use crate::store::{Act, Admin, Administer, Answer, Ban, Command, Event, Name, Query, Refusal, Subject, ban};
use crate::text;
use crate::wire::records::{BanEntry, Failed};
use crate::wire::server::{self, Banned};
use crate::wire::{ErrorCode, client};

const REFUSAL: &str = "Permission denied: admin access required";

/// Refuses an admin's request to everybody else, before it is read; `true` when it did.
pub fn refuse_unless_admin(shard: &mut Shard, key: SessionKey, code: u8) -> bool {
    if !is_for_admins(code) || shard.clients.session(key).is_admin() {
        return false;
    }
    match code {
        client::BanUser::CODE => ban_user_failed(shard, key, REFUSAL),
        client::BanIp::CODE => ban_ip_failed(shard, key, REFUSAL),
        client::UnbanUser::CODE => user_unbanned(shard, key, false, REFUSAL),
        client::UnbanIp::CODE => ip_unbanned(shard, key, false, REFUSAL),
        client::DeleteUser::CODE => user_deleted(shard, key, false, REFUSAL),
        client::DeleteChannel::CODE => channel_deleted(shard, key, false, ChannelId(0), REFUSAL),
        _ => shard.error(key, ErrorCode::PermissionDenied, REFUSAL),
    }
    true
}

fn is_for_admins(code: u8) -> bool {
    matches!(
        code,
        client::BanUser::CODE
            | client::BanIp::CODE
            | client::UnbanUser::CODE
            | client::UnbanIp::CODE
            | client::ListBans::CODE
            | client::DeleteUser::CODE
            | client::DeleteChannel::CODE
    )
}

/// Has the writer do it; `next` gets the outcome, and who did it for the log.
fn administer(
    shard: &mut Shard,
    key: SessionKey,
    act: Act,
    next: impl FnOnce(&mut Shard, SessionKey, &str, Result<Event, Refusal>) + 'static,
) {
    let order = order(shard.clients.session(key), act);
    let admin = String::from_utf8_lossy(&order.by.name).into_owned();
    let order = Command::Administer(Box::new(order));
    shard.submit(key, order, move |shard, key, result| next(shard, key, &admin, result));
}

/// An act in the name of the session.
pub fn order(session: &Session, act: Act) -> Administer {
    let name = session.nickname.clone().unwrap_or_else(|| Name::from(&b""[..]));
    Administer { by: Admin { name, address: Some(session.address()) }, act }
}

/// Reasons are shown in terminals, and to those who are banned.
///
/// # Errors
/// What is wrong with it.
pub fn checked_reason(text: &[u8]) -> Result<Name, &'static str> {
    const TOO_LONG: &str = "Reason must be at most 500 characters";
    const { assert!(BAN_REASON_BYTES_MAX == 500) };
    let text = text::sanitized(text);
    if text.len() > BAN_REASON_BYTES_MAX { Err(TOO_LONG) } else { Ok(Name::from(&text[..])) }
}

/// Whom BAN_USER and UNBAN_USER name, and how that is shown.
///
/// # Errors
/// What is wrong with it.
pub fn checked_nickname(user: Option<UserId>, nickname: Option<&[u8]>) -> Result<(Subject, String), &'static str> {
    let nickname = nickname.filter(|nickname| !nickname.is_empty());
    let shown = match (nickname, user) {
        (Some(nickname), _) if nickname.len() > BAN_NICKNAME_BYTES_MAX => return Err("Nickname is too long"),
        (Some(nickname), _) => String::from_utf8_lossy(nickname).into_owned(),
        (None, Some(user)) => format!("user_id:{user}"),
        (None, None) => return Err("Must provide either UserID or Nickname"),
    };
    Ok((Subject::User { user, nickname: nickname.map(Name::from) }, shown))
}

fn lossy(text: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(text)
}

// BAN_USER, BAN_IP

fn ban_user_failed(shard: &mut Shard, key: SessionKey, text: &str) {
    shard.reply(key, server::UserBanned { outcome: Err(Failed { message: text.as_bytes() }) });
}

/// BAN_USER: by account, by nickname, or both. Who is banned need not exist, unless it is an account.
pub fn ban_user(shard: &mut Shard, key: SessionKey, request: &client::BanUser<'_>) {
    let named = checked_nickname(request.user_id, request.nickname);
    let checked = named.and_then(|(who, shown)| Ok((who, shown, checked_reason(request.reason)?)));
    let (subject, shown, reason) = match checked {
        Ok(checked) => checked,
        Err(text) => return ban_user_failed(shard, key, text),
    };
    let act = Act::Ban { subject, reason, shadow: request.shadowban, seconds: request.duration_seconds };
    administer(shard, key, act, move |shard, key, admin, result| match result {
        Ok(Event::Banned(ban)) => {
            let (id, reason, shadow) = (ban.id, lossy(&ban.reason), ban.shadow);
            info!(target: "security", "Admin {admin} banned user {shown} (ban_id={id}, reason={reason}, shadowban={shadow})");
            let text = format!("User {shown} banned successfully");
            shard.reply(key, server::UserBanned { outcome: Ok(Banned { ban_id: id, message: text.as_bytes() }) });
        }
        Ok(_) | Err(_) => ban_user_failed(shard, key, "Failed to create ban"),
    });
}

fn ban_ip_failed(shard: &mut Shard, key: SessionKey, text: &str) {
    shard.reply(key, server::IpBanned { outcome: Err(Failed { message: text.as_bytes() }) });
}

/// BAN_IP: an address or a network, but not one that the admin is in.
pub fn ban_ip(shard: &mut Shard, key: SessionKey, request: &client::BanIp<'_>) {
    let own = shard.clients.session(key).address();
    let checked = match (request.ip_cidr, ban::network(request.ip_cidr)) {
        (b"", _) => Err(NO_ADDRESS),
        (_, None) => Err("Invalid IP or CIDR address"),
        (_, Some(network)) if network.contains(&own) => Err("Cannot ban your own address"),
        (text, Some(_)) => checked_reason(request.reason).map(|reason| (Name::from(text), reason)),
    };
    let (text, reason) = match checked {
        Ok(checked) => checked,
        Err(text) => return ban_ip_failed(shard, key, text),
    };
    let shown = lossy(&text).into_owned();
    let act = Act::Ban { subject: Subject::Address(text), reason, shadow: false, seconds: request.duration_seconds };
    administer(shard, key, act, move |shard, key, admin, result| match result {
        Ok(Event::Banned(ban)) => {
            let (id, reason) = (ban.id, lossy(&ban.reason));
            info!(target: "security", "Admin {admin} banned IP {shown} (ban_id={id}, reason={reason})");
            let text = format!("IP {shown} banned successfully");
            shard.reply(key, server::IpBanned { outcome: Ok(Banned { ban_id: id, message: text.as_bytes() }) });
        }
        Ok(_) | Err(_) => ban_ip_failed(shard, key, "Failed to create ban"),
    });
}

const NO_ADDRESS: &str = "IP/CIDR address required";

// UNBAN_USER, UNBAN_IP

fn user_unbanned(shard: &mut Shard, key: SessionKey, success: bool, text: &str) {
    shard.reply(key, server::UserUnbanned { success, message: text.as_bytes() });
}

/// UNBAN_USER: lifts every ban that counts for the account or nickname.
pub fn unban_user(shard: &mut Shard, key: SessionKey, request: &client::UnbanUser<'_>) {
    let (subject, shown) = match checked_nickname(request.user_id, request.nickname) {
        Ok(named) => named,
        Err(text) => return user_unbanned(shard, key, false, text),
    };
    administer(shard, key, Act::Unban(subject), move |shard, key, admin, result| match result {
        Ok(Event::Unbanned { bans }) => {
            let count = bans.len();
            info!(target: "security", "Admin {admin} unbanned user {shown} ({count} bans removed)");
            let text = format!("User {shown} unbanned successfully ({count} bans removed)");
            user_unbanned(shard, key, true, &text);
        }
        Err(Refusal::NoActiveBan) => user_unbanned(shard, key, false, "No active ban found for this user"),
        Ok(_) | Err(_) => user_unbanned(shard, key, false, "Failed to remove ban"),
    });
}

fn ip_unbanned(shard: &mut Shard, key: SessionKey, success: bool, text: &str) {
    shard.reply(key, server::IpUnbanned { success, message: text.as_bytes() });
}

/// UNBAN_IP: lifts every ban of that text, or of the addresses that it names.
pub fn unban_ip(shard: &mut Shard, key: SessionKey, request: &client::UnbanIp<'_>) {
    if request.ip_cidr.is_empty() {
        return ip_unbanned(shard, key, false, NO_ADDRESS);
    }
    // Old files hold bans of any text; one longer than a ban could be shown names none.
    if request.ip_cidr.len() > BAN_REASON_BYTES_MAX {
        return ip_unbanned(shard, key, false, "No active ban found for this IP");
    }
    let text = Name::from(request.ip_cidr);
    let shown = lossy(&text).into_owned();
    administer(shard, key, Act::Unban(Subject::Address(text)), move |shard, key, admin, result| match result {
        Ok(Event::Unbanned { bans }) => {
            let count = bans.len();
            info!(target: "security", "Admin {admin} unbanned IP {shown} ({count} bans removed)");
            let text = format!("IP {shown} unbanned successfully ({count} bans removed)");
            ip_unbanned(shard, key, true, &text);
        }
        Err(Refusal::NoActiveBan) => ip_unbanned(shard, key, false, "No active ban found for this IP"),
        Ok(_) | Err(_) => ip_unbanned(shard, key, false, "Failed to remove ban"),
    });
}

// LIST_BANS

/// LIST_BANS: newest first, as many as one frame carries.
pub fn list_bans(shard: &mut Shard, key: SessionKey, request: &client::ListBans) {
    let query = Query::Bans { include_expired: request.include_expired, limit: u16::MAX.into() };
    shard.ask(key, query, |shard, key, answer| {
        let Answer::Bans(bans) = answer else { return shard.error(key, ErrorCode::Internal, "Internal error") };
        let bans = one_frame(bans.iter().map(entry), |entry| {
            let texts = [entry.nickname, entry.ip_cidr, Some(entry.reason), Some(entry.banned_by)];
            // Beside the texts an entry of bans has more fields than one of channels.
            texts.into_iter().flatten().map(<[u8]>::len).sum::<usize>() + 32
        });
        shard.reply(key, server::BanList { bans });
    });
}

fn entry(ban: &Ban) -> BanEntry<'_> {
    let (ban_type, user_id, nickname, ip_cidr) = match &ban.subject {
        Subject::User { user, nickname } => (&b"user"[..], *user, nickname.as_deref().map(fitting), None),
        Subject::Address(text) => (&b"ip"[..], None, None, Some(fitting(text))),
    };
    BanEntry {
        ban_id: ban.id,
        ban_type,
        user_id,
        nickname,
        ip_cidr,
        reason: fitting(&ban.reason),
        shadowban: ban.shadow,
        banned_at: ban.since,
        banned_until: ban.until,
        banned_by: fitting(&ban.by),
    }
}

// DELETE_USER

fn user_deleted(shard: &mut Shard, key: SessionKey, success: bool, text: &str) {
    shard.reply(key, server::UserDeleted { success, message: text.as_bytes() });
}

/// The same text for the requester and other admins.
#[must_use]
pub fn user_deleted_text(nickname: &[u8], sessions: usize) -> String {
    let nickname = lossy(fitting_name(nickname));
    format!("User '{nickname}' deleted successfully (messages anonymized, {sessions} sessions disconnected)")
}

/// DELETE_USER: what the account wrote stays, as a visitor's.
pub fn delete_user(shard: &mut Shard, key: SessionKey, request: &client::DeleteUser) {
    if shard.clients.session(key).user() == Some(request.user_id) {
        return user_deleted(shard, key, false, "Cannot delete your own account");
    }
    administer(shard, key, Act::DeleteUser(request.user_id), |shard, key, admin, result| match result {
        Ok(Event::UserDeleted { user, nickname, .. }) => {
            info!(target: "security", "Admin {admin} deleted user {} (id={user})", lossy(&nickname));
            let text = user_deleted_text(&nickname, shard.sessions_everywhere(user));
            user_deleted(shard, key, true, &text);
        }
        Err(Refusal::UserNotFound) => user_deleted(shard, key, false, "User not found"),
        Ok(_) | Err(_) => user_deleted(shard, key, false, "Failed to delete user: database error"),
    });
}

// DELETE_CHANNEL

fn channel_deleted(shard: &mut Shard, key: SessionKey, success: bool, channel_id: ChannelId, text: &str) {
    shard.reply(key, server::ChannelDeleted { success, channel_id, message: text.as_bytes() });
}

/// The same text for the requester and everybody else.
#[must_use]
pub fn channel_deleted_text(name: &[u8]) -> String {
    format!("Channel '{}' deleted successfully", lossy(fitting_name(name)))
}

/// A stored name as far as it is shown within a text.
fn fitting_name(name: &[u8]) -> &[u8] {
    &name[..name.len().min(BAN_REASON_BYTES_MAX)]
}

/// DELETE_CHANNEL: with its subchannels and all that was written there.
pub fn delete_channel(shard: &mut Shard, key: SessionKey, request: &client::DeleteChannel<'_>) {
    let channel = request.channel_id;
    let reason = match checked_reason(request.reason) {
        Ok(reason) => reason,
        Err(text) => return channel_deleted(shard, key, false, channel, text),
    };
    administer(shard, key, Act::DeleteChannel { channel, reason }, move |shard, key, admin, result| match result {
        Ok(Event::ChannelRemoved { name, .. }) => {
            info!(target: "security", "Admin {admin} deleted channel {} (id={channel})", lossy(&name));
            channel_deleted(shard, key, true, channel, &channel_deleted_text(&name));
        }
        Err(Refusal::ChannelNotFound) => channel_deleted(shard, key, false, channel, "Channel not found"),
        Ok(_) | Err(_) => channel_deleted(shard, key, false, channel, "Failed to delete channel: database error"),
    });
}
