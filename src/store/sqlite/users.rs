//! Accounts: registering, signing in, renaming, passwords (BEHAVIOUR.md 2.1 to 2.4, 2.16), and finding them.
//!
//! A client salts its password with the nickname. The name in use when the password was set is therefore kept as a login
//! alias while the account is called otherwise (D-08): one at most, because under the names between nobody can sign in.

use rusqlite::{Connection, Row, params};

use super::row::{self, Failure, Text};
use super::writer::Scope;
use super::{admin, bans};
use crate::ids::UserId;
use crate::store::{Account, Answer, Event, FLAG_ADMIN, Name, Refusal};

pub(super) fn register(scope: &Scope<'_>, nickname: &Name, password_hash: &str, flags: u8) -> Result<Event, Failure> {
    if is_taken(scope.conn, nickname, None)? {
        return Err(Refusal::NicknameTaken.into());
    }
    row::execute(
        scope.conn,
        "INSERT INTO User (nickname, user_flags, password_hash, created_at, last_seen) VALUES (?1, ?2, ?3, ?4, ?4)",
        params![Text(nickname), flags, password_hash, scope.now],
    )?;
    let user = UserId::from_sql(scope.conn.last_insert_rowid());
    Ok(Event::Registered { user, nickname: nickname.clone(), flags })
}

pub(super) fn sign_in(scope: &Scope<'_>, user: UserId, flags: u8) -> Result<Event, Failure> {
    let changed = row::execute(scope.conn, "UPDATE User SET last_seen = ?2 WHERE id = ?1", [user.as_sql(), scope.now])?;
    found(changed)?;
    let flags = admin::settle_flags(scope.conn, user, flags)?;
    Ok(Event::SignedIn { user, flags })
}

pub(super) fn rename(
    scope: &Scope<'_>,
    user: UserId,
    nickname: &Name,
    flags: u8,
    listed_as: Option<&Name>,
) -> Result<Event, Failure> {
    let is_for_admins = flags & FLAG_ADMIN != 0;
    if is_taken(scope.conn, nickname, Some(user))? || is_for_admins && !is_admin(scope.conn, user, listed_as)? {
        return Err(Refusal::NicknameTaken.into());
    }
    if bans::refusing(scope.conn, None, Some(nickname), scope.now)?.is_some_and(|ban| !ban.shadow) {
        return Err(Refusal::NicknameBanned.into());
    }
    // A rename to the name of the day leaves that name; a first one keeps it.
    row::execute(
        scope.conn,
        "INSERT INTO scd_login_alias (login_name, user_id, created_at)
         SELECT nickname, id, ?3 FROM User
         WHERE id = ?1 AND nickname <> ?2 AND password_hash <> ''
           AND NOT EXISTS (SELECT 1 FROM scd_login_alias WHERE user_id = ?1)",
        params![user.as_sql(), Text(nickname), scope.now],
    )?;
    row::execute(
        scope.conn,
        "DELETE FROM scd_login_alias WHERE user_id = ?1 AND login_name = ?2",
        params![user.as_sql(), Text(nickname)],
    )?;
    let changed = row::execute(
        scope.conn,
        "UPDATE User SET nickname = ?2 WHERE id = ?1",
        params![user.as_sql(), Text(nickname)],
    )?;
    found(changed)?;
    let flags = admin::settle_flags(scope.conn, user, flags)?;
    Ok(Event::Renamed { user, nickname: nickname.clone(), flags })
}

pub(super) fn set_password(scope: &Scope<'_>, user: UserId, password_hash: Option<&str>) -> Result<Event, Failure> {
    if password_hash.is_none() && !row::exists(scope.conn, "SELECT 1 FROM SSHKey WHERE user_id = ?1", [user.as_sql()])?
    {
        return Err(Refusal::NoSshKeys.into());
    }
    let changed = row::execute(
        scope.conn,
        "UPDATE User SET password_hash = ?2 WHERE id = ?1",
        params![user.as_sql(), password_hash.unwrap_or_default()],
    )?;
    found(changed)?;
    row::execute(scope.conn, "DELETE FROM scd_login_alias WHERE user_id = ?1", [user.as_sql()])?;
    Ok(Event::PasswordSet { user })
}

fn found(rows: usize) -> Result<(), Refusal> {
    if rows == 0 { Err(Refusal::UserNotFound) } else { Ok(()) }
}

/// Whether the account is an admin, by a grant or by the name that the configuration lists.
fn is_admin(conn: &Connection, user: UserId, listed_as: Option<&Name>) -> rusqlite::Result<bool> {
    row::exists(
        conn,
        "SELECT 1 FROM scd_admin_grant WHERE user_id = ?1 UNION ALL SELECT 1 FROM User WHERE id = ?1 AND nickname = ?2",
        params![user.as_sql(), listed_as.map(|name| Text(name))],
    )
}

/// Whether a name, in any case of its letters (D-63), is that of an account or an alias not belonging to `own`.
fn is_taken(conn: &Connection, nickname: &Name, own: Option<UserId>) -> rusqlite::Result<bool> {
    row::exists(
        conn,
        "SELECT 1 FROM User WHERE nickname = ?1 COLLATE NOCASE AND id IS NOT ?2
         UNION ALL
         SELECT 1 FROM scd_login_alias WHERE login_name = ?1 COLLATE NOCASE AND user_id IS NOT ?2",
        params![Text(nickname), own.map(UserId::as_sql)],
    )
}

/// Whether a former name still signs in to the account of the row.
const HAS_ALIAS: &str = "EXISTS (SELECT 1 FROM scd_login_alias WHERE scd_login_alias.user_id = User.id)";

/// An account by nickname, else by alias, and the ban that refuses it, or without an account the bare name: a former name may
/// be a visitor's, whose ban is no account's.
pub(super) fn by_nickname(conn: &Connection, nickname: &Name, now: i64) -> rusqlite::Result<Answer> {
    let account = row::first(
        conn,
        &format!(
            "SELECT id, nickname, user_flags, password_hash, {HAS_ALIAS} FROM User WHERE nickname = ?1
         UNION ALL
         SELECT id, nickname, user_flags, password_hash, {HAS_ALIAS}
         FROM scd_login_alias JOIN User ON User.id = scd_login_alias.user_id WHERE login_name = ?1"
        ),
        [Text(nickname)],
        account,
    )?;
    let ban = bans::refusing(conn, account.as_ref(), account.is_none().then_some(nickname), now)?;
    Ok(Answer::Account { account, ban })
}

/// An account by id, and the ban that refuses it.
pub(super) fn by_id(conn: &Connection, user: UserId, now: i64) -> rusqlite::Result<Answer> {
    let account = row::first(
        conn,
        &format!("SELECT id, nickname, user_flags, password_hash, {HAS_ALIAS} FROM User WHERE id = ?1"),
        [user.as_sql()],
        account,
    )?;
    let ban = bans::refusing(conn, account.as_ref(), None, now)?;
    Ok(Answer::Account { account, ban })
}

/// With the admin's flag where it was granted: the row's means nothing, see [`admin::settle_flags`].
pub(super) fn list(conn: &Connection, limit: u16) -> rusqlite::Result<Vec<Account>> {
    row::all(
        conn,
        &format!(
            "SELECT id, nickname, (user_flags & ~?2) | CASE WHEN user_id IS NULL THEN 0 ELSE ?2 END, password_hash,
                    {HAS_ALIAS}
             FROM User LEFT JOIN scd_admin_grant ON user_id = id ORDER BY nickname LIMIT ?1"
        ),
        params![limit, FLAG_ADMIN],
        account,
    )
}

fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account {
        id: UserId::from_sql(row::number(row, 0)?),
        nickname: row::name(row, 1)?,
        flags: row::flags(row, 2)?,
        password_hash: String::from_utf8_lossy(row::bytes(row, 3)?).into(),
        has_alias: row::number(row, 4)? != 0,
    })
}
