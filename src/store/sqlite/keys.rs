//! SSH keys of accounts (BEHAVIOUR.md 2.16, 8.1), and signing in by one (BEHAVIOUR.md 1.8).

use rusqlite::{Connection, Row, params};

use super::row::{self, FOREIGN_KEY, Failure, Text, UNIQUE, constraints};
use super::users;
use super::writer::Scope;
use crate::ids::{SshKeyId, UserId};
use crate::limits::SSH_KEYS_PER_USER_MAX;
use crate::store::{Answer, Event, Name, NewSshKey, Refusal, SshKey};

pub(super) fn add(scope: &Scope<'_>, user: UserId, key: &NewSshKey) -> Result<Event, Failure> {
    let stored = row::first(scope.conn, "SELECT COUNT(*) FROM SSHKey WHERE user_id = ?1", [user.as_sql()], |row| {
        row::number(row, 0)
    })?;
    if stored.unwrap_or(0) >= i64::from(SSH_KEYS_PER_USER_MAX) {
        return Err(Refusal::TooManySshKeys.into());
    }
    let id = insert(scope, user, key)?;
    Ok(Event::SshKeyAdded { key: id, fingerprint: key.fingerprint.clone() })
}

fn insert(scope: &Scope<'_>, user: UserId, key: &NewSshKey) -> Result<SshKeyId, Failure> {
    row::execute(
        scope.conn,
        "INSERT INTO SSHKey (user_id, fingerprint, public_key, key_type, label, added_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![user.as_sql(), key.fingerprint, key.public_key, key.key_type, Text(&key.label), scope.now],
    )
    .map_err(constraints(&[(UNIQUE, Refusal::SshKeyExists), (FOREIGN_KEY, Refusal::UserNotFound)]))?;
    Ok(SshKeyId::from_sql(scope.conn.last_insert_rowid()))
}

pub(super) fn relabel(scope: &Scope<'_>, user: UserId, key: SshKeyId, label: &Name) -> Result<Event, Failure> {
    let changed = row::execute(
        scope.conn,
        "UPDATE SSHKey SET label = ?3 WHERE id = ?1 AND user_id = ?2",
        params![key.as_sql(), user.as_sql(), Text(label)],
    )?;
    if changed == 0 { Err(Refusal::SshKeyNotFound.into()) } else { Ok(Event::SshKeyRelabelled) }
}

/// The last way to sign in stays.
pub(super) fn delete(scope: &Scope<'_>, user: UserId, key: SshKeyId) -> Result<Event, Failure> {
    let own = params![key.as_sql(), user.as_sql()];
    if !row::exists(scope.conn, "SELECT 1 FROM SSHKey WHERE id = ?1 AND user_id = ?2", own)? {
        return Err(Refusal::SshKeyNotFound.into());
    }
    let has_other_way = row::exists(
        scope.conn,
        "SELECT 1 FROM User WHERE id = ?2 AND password_hash <> ''
         UNION ALL SELECT 1 FROM SSHKey WHERE user_id = ?2 AND id <> ?1",
        own,
    )?;
    if !has_other_way {
        return Err(Refusal::LastSshKey.into());
    }
    row::execute(scope.conn, "DELETE FROM SSHKey WHERE id = ?1 AND user_id = ?2", own)?;
    Ok(Event::SshKeyDeleted)
}

/// As a sign-in by password; the key was used now.
pub(super) fn sign_in(scope: &Scope<'_>, user: UserId, flags: u8, fingerprint: &str) -> Result<Event, Failure> {
    mark_used(scope, user, fingerprint)?;
    users::sign_in(scope, user, flags)
}

fn mark_used(scope: &Scope<'_>, user: UserId, fingerprint: &str) -> Result<(), Failure> {
    let used = row::execute(
        scope.conn,
        "UPDATE SSHKey SET last_used_at = ?3 WHERE fingerprint = ?2 AND user_id = ?1",
        params![user.as_sql(), fingerprint, scope.now],
    )?;
    // The key may have gone since it was looked up.
    if used == 0 { Err(Refusal::SshKeyNotFound.into()) } else { Ok(()) }
}

/// A new account and its key, both or neither.
pub(super) fn register(
    scope: &Scope<'_>,
    nickname: &Name,
    password_hash: &str,
    flags: u8,
    key: &NewSshKey,
) -> Result<Event, Failure> {
    let event = users::register(scope, nickname, password_hash, flags)?;
    if let Event::Registered { user, .. } = event {
        insert(scope, user, key)?;
        mark_used(scope, user, &key.fingerprint)?;
    }
    Ok(event)
}

/// The keys of an account, newest first.
pub(super) fn list(conn: &Connection, user: UserId) -> rusqlite::Result<Vec<SshKey>> {
    row::all(
        conn,
        "SELECT id, fingerprint, key_type, label, added_at, last_used_at FROM SSHKey
         WHERE user_id = ?1 ORDER BY added_at DESC, id DESC LIMIT ?2",
        params![user.as_sql(), LISTED_MAX],
        ssh_key,
    )
}

/// A file of another server may hold more keys than an account may add here.
const LISTED_MAX: u32 = 1000;

fn ssh_key(row: &Row<'_>) -> rusqlite::Result<SshKey> {
    Ok(SshKey {
        id: SshKeyId::from_sql(row::number(row, 0)?),
        fingerprint: row::name(row, 1)?,
        key_type: row::name(row, 2)?,
        label: row::name(row, 3)?,
        added_at: row::number(row, 4)?,
        last_used_at: row::integer(row, 5)?,
    })
}

/// The account that a key belongs to, and the ban that refuses it.
pub(super) fn owner(conn: &Connection, fingerprint: &str, now: i64) -> rusqlite::Result<Answer> {
    let user = row::first(conn, "SELECT user_id FROM SSHKey WHERE fingerprint = ?1", [fingerprint], |row| {
        row::number(row, 0).map(UserId::from_sql)
    })?;
    match user {
        Some(user) => users::by_id(conn, user, now),
        None => Ok(Answer::Account { account: None, ban: None }),
    }
}
