//! What admins and operators do (BEHAVIOUR.md 5.2), each with its row in the audit.

use rusqlite::{Connection, params};

use super::row::{self, Failure, Text};
use super::writer::Scope;
use super::{bans, channels, dms, users};
use crate::ids::{ChannelId, MessageId, UserId};
use crate::store::{
    Act, Admin, Administer, AuditEntry, Ban, Event, FLAG_ADMIN, FLAG_MODERATOR, Kick, Name, Refusal, Role, Subject,
};

/// Messages of a channel whose ids are held in memory at once while it is deleted.
const MESSAGES_AT_ONCE: usize = 1000;

/// Where an operator acts from: at the server itself.
const LOCAL: &str = "local";

pub(super) fn perform(scope: &mut Scope<'_>, order: &Administer) -> Result<Event, Failure> {
    let Administer { by, act } = order;
    match act {
        Act::Ban { subject, reason, shadow, seconds } => {
            let ban = bans::give(scope, subject, reason, *shadow, *seconds, &by.name)?;
            audit(scope, by, &about_ban(&ban, *seconds))?;
            Ok(Event::Banned(ban))
        }
        Act::Unban(subject) => {
            let lifted = bans::lift(scope, subject)?;
            let action = if matches!(subject, Subject::Address(_)) { "unban_ip" } else { "unban_user" };
            audit(scope, by, &Entry { details: format!("removed={}", lifted.len()), ..about(action, subject) })?;
            Ok(Event::Unbanned { bans: lifted })
        }
        Act::DeleteUser(user) => delete_user(scope, by, *user),
        Act::DeleteChannel { channel, reason } => delete_channel(scope, by, *channel, reason),
        Act::CreateChannel(new) => {
            let event = channels::create(scope, new)?;
            if let Event::ChannelCreated(channel) = &event {
                audit(scope, by, &of_channel("CREATE_CHANNEL", channel.id, &channel.name, b""))?;
            }
            Ok(event)
        }
        Act::SetRole { user, role, is_granted, flags } => set_role(scope, by, *user, *role, *is_granted, *flags),
        Act::ResetPassword { user, password_hash } => {
            let nickname = nickname_of(scope.conn, *user)?;
            audit(scope, by, &of_user("RESET_PASSWORD", *user, &nickname))?;
            users::set_password(scope, *user, Some(password_hash))
        }
        Act::Kick(kick) => {
            audit(scope, by, &about_kick(kick))?;
            Ok(Event::Kicked(Box::new(kick.clone())))
        }
    }
}

/// What a row of the audit says beside who and when.
struct Entry {
    action: &'static str,
    target_type: &'static str,
    target_id: Option<i64>,
    target: Name,
    details: String,
}

pub(super) fn audit_message(
    scope: &Scope<'_>,
    by: &Admin,
    action: &'static str,
    message: MessageId,
    author: &[u8],
    details: String,
) -> rusqlite::Result<()> {
    let (target_type, target_id) = ("message", Some(message.as_sql()));
    audit(scope, by, &Entry { action, target_type, target_id, target: author.into(), details })
}

fn audit(scope: &Scope<'_>, by: &Admin, entry: &Entry) -> rusqlite::Result<()> {
    let address = by.address.map_or_else(|| LOCAL.to_owned(), |address| address.to_canonical().to_string());
    row::execute(
        scope.conn,
        "INSERT INTO AdminAction (admin_nickname, action_type, target_type, target_id, target_identifier, details,
                                  performed_at, ip_address)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            Text(&by.name),
            entry.action,
            entry.target_type,
            entry.target_id,
            Text(&entry.target),
            Text(entry.details.as_bytes()),
            scope.now,
            address,
        ],
    )
    .map(drop)
}

fn lossy(text: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(text)
}

fn about(action: &'static str, subject: &Subject) -> Entry {
    let nobody = || Name::from(&b""[..]);
    let (target_type, target_id, target) = match subject {
        Subject::User { user, nickname } => ("user", user.map(UserId::as_sql), nickname.clone().unwrap_or_else(nobody)),
        Subject::Address(text) => ("ip", None, text.clone()),
    };
    Entry { action, target_type, target_id, target, details: String::new() }
}

fn about_ban(ban: &Ban, seconds: Option<u64>) -> Entry {
    let action = if matches!(ban.subject, Subject::Address(_)) { "ban_ip" } else { "ban_user" };
    let duration = seconds.map_or_else(|| "permanent".to_owned(), |seconds| seconds.to_string());
    let (id, shadow, reason) = (ban.id, ban.shadow, lossy(&ban.reason));
    let details = format!("ban_id={id} shadowban={shadow} duration_seconds={duration} reason={reason}");
    Entry { details, ..about(action, &ban.subject) }
}

fn about_kick(kick: &Kick) -> Entry {
    let Kick { session, user, nickname, address, reason } = kick;
    let subject = match nickname {
        Some(_) => Subject::User { user: *user, nickname: nickname.clone() },
        None => Subject::Address(address.to_string().into_bytes().into()),
    };
    Entry { details: format!("session={session} reason={}", lossy(reason)), ..about("DISCONNECT", &subject) }
}

fn of_user(action: &'static str, user: UserId, nickname: &Name) -> Entry {
    let details = format!("user_id={user} nickname={}", lossy(nickname));
    Entry { action, target_type: "user", target_id: Some(user.as_sql()), target: nickname.clone(), details }
}

fn of_channel(action: &'static str, channel: ChannelId, name: &Name, reason: &[u8]) -> Entry {
    let details = format!("channel_id={channel} name={} reason={}", lossy(name), lossy(reason));
    Entry { action, target_type: "channel", target_id: Some(channel.as_sql()), target: name.clone(), details }
}

fn nickname_of(conn: &Connection, user: UserId) -> Result<Name, Failure> {
    let found = row::first(conn, "SELECT nickname FROM User WHERE id = ?1", [user.as_sql()], |row| row::name(row, 0))?;
    Ok(found.ok_or(Refusal::UserNotFound)?)
}

/// No index leads to an author's messages, and each post would pay for one. This reads an index that holds little more than
/// numbers, instead of every text.
const ANONYMIZE: &str = "UPDATE Message SET author_user_id = NULL WHERE id IN (
    SELECT id FROM Message INDEXED BY scd_message_places WHERE author_user_id = ?1)";

/// Messages stay, as a visitor's of that name; everything else of the account goes.
fn delete_user(scope: &mut Scope<'_>, by: &Admin, user: UserId) -> Result<Event, Failure> {
    let nickname = nickname_of(scope.conn, user)?;
    audit(scope, by, &of_user("DELETE_USER", user, &nickname))?;
    let left = dms::leave_all(scope, user, &nickname)?;
    bans::leave_account(scope, user, &nickname)?;
    row::execute(scope.conn, ANONYMIZE, [user.as_sql()])?;
    row::execute(scope.conn, "DELETE FROM User WHERE id = ?1", [user.as_sql()])?;
    Ok(Event::UserDeleted { user, nickname, left })
}

/// Direct messages are not for admins to delete.
fn delete_channel(scope: &mut Scope<'_>, by: &Admin, channel: ChannelId, reason: &Name) -> Result<Event, Failure> {
    let sql = "SELECT name FROM Channel WHERE id = ?1 AND is_dm = 0";
    let name = row::first(scope.conn, sql, [channel.as_sql()], |row| row::name(row, 0))?;
    let name = name.ok_or(Refusal::ChannelNotFound)?;
    audit(scope, by, &of_channel("DELETE_CHANNEL", channel, &name, reason))?;
    let sql = "SELECT id FROM Channel WHERE parent_id = ?1 ORDER BY id";
    let id = |row: &rusqlite::Row<'_>| row::number(row, 0).map(ChannelId::from_sql);
    let subchannels = row::all(scope.conn, sql, [channel.as_sql()], id)?;
    for place in subchannels.iter().chain([&channel]) {
        // Old rows of a subchannel belong to its parent by the letter of the schema.
        while dms::remove_newest(scope.conn, *place, MESSAGES_AT_ONCE)? == MESSAGES_AT_ONCE {}
        row::execute(scope.conn, "DELETE FROM Channel WHERE id = ?1", [place.as_sql()])?;
    }
    Ok(Event::ChannelRemoved { channel, name, subchannels })
}

fn set_role(
    scope: &mut Scope<'_>,
    by: &Admin,
    user: UserId,
    role: Role,
    is_granted: bool,
    flags: u8,
) -> Result<Event, Failure> {
    let nickname = nickname_of(scope.conn, user)?;
    let name = match role {
        Role::Admin => "admin",
        Role::Moderator => "moderator",
    };
    let entry = of_user(if is_granted { "GRANT" } else { "REVOKE" }, user, &nickname);
    audit(scope, by, &Entry { details: format!("{} role={name}", entry.details), ..entry })?;
    match (role, is_granted) {
        (Role::Admin, true) => row::execute(
            scope.conn,
            "INSERT OR IGNORE INTO scd_admin_grant (user_id, granted_by, granted_at) VALUES (?1, ?2, ?3)",
            params![user.as_sql(), Text(&by.name), scope.now],
        )?,
        (Role::Admin, false) => {
            row::execute(scope.conn, "DELETE FROM scd_admin_grant WHERE user_id = ?1", [user.as_sql()])?
        }
        // The account's own flag lasts.
        (Role::Moderator, true) => row::execute(
            scope.conn,
            "UPDATE User SET user_flags = user_flags | ?2 WHERE id = ?1",
            params![user.as_sql(), FLAG_MODERATOR],
        )?,
        (Role::Moderator, false) => row::execute(
            scope.conn,
            "UPDATE User SET user_flags = user_flags & ~?2 WHERE id = ?1",
            params![user.as_sql(), FLAG_MODERATOR],
        )?,
    };
    Ok(Event::RoleSet { user, flags: settle_flags(scope.conn, user, flags)? })
}

/// Writes down and returns what rights an account has now (BEHAVIOUR.md 5.1): `configured` are those of its name. The
/// moderator's sign in the row lasts; the admin's there was never worth anything, and is by the configuration or granted.
pub(super) fn settle_flags(conn: &Connection, user: UserId, configured: u8) -> rusqlite::Result<u8> {
    let is_granted = row::exists(conn, "SELECT 1 FROM scd_admin_grant WHERE user_id = ?1", [user.as_sql()])?;
    let given = configured | if is_granted { FLAG_ADMIN } else { 0 };
    row::execute(
        conn,
        "UPDATE User SET user_flags = (user_flags & ~?2) | ?3 WHERE id = ?1",
        params![user.as_sql(), FLAG_ADMIN, given],
    )?;
    let sql = "SELECT user_flags FROM User WHERE id = ?1";
    Ok(row::first(conn, sql, [user.as_sql()], |row| row::flags(row, 0))?.unwrap_or_default())
}

pub(super) fn list(conn: &Connection, limit: u32) -> rusqlite::Result<Vec<AuditEntry>> {
    row::all(
        conn,
        "SELECT performed_at, admin_nickname, ip_address, action_type, target_type, target_id, target_identifier, details
         FROM AdminAction ORDER BY id DESC LIMIT ?1",
        [limit],
        |row| {
            Ok(AuditEntry {
                at: row::number(row, 0)?,
                by: row::name(row, 1)?,
                address: row::name(row, 2)?,
                action: row::name(row, 3)?,
                target_type: row::name(row, 4)?,
                target_id: row::integer(row, 5)?,
                target: row::name(row, 6)?,
                details: row::name(row, 7)?,
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_of_a_deleted_account_are_found_without_reading_any_text() {
        let plan = row::plan(ANONYMIZE, [1]);
        assert!(plan.contains("SEARCH Message USING INTEGER PRIMARY KEY"), "{plan}");
        assert!(plan.contains("SCAN Message USING COVERING INDEX scd_message_places"), "{plan}");
        assert_eq!(plan.matches("SCAN").count(), 1, "{plan}");
    }
}
