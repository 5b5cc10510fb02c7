//! Bans in the file (BEHAVIOUR.md 5.3): giving and lifting them, listing them, and who is refused to sign in.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::row::{self, FOREIGN_KEY, Failure, Text};
use super::writer::Scope;
use crate::ids::{BanId, UserId};
use crate::store::{Account, Ban, Name, Refusal, Subject, ban};

/// Every ban, as shards and door know them.
pub(super) type Table = BTreeMap<BanId, Arc<Ban>>;

/// The last moment that can be written as a date, at the end of the year 9999: a longer ban ends then.
const LATEST_END: i64 = 253_402_207_200_000;

macro_rules! bans {
    ($rest:expr) => {
        concat!(
            "SELECT id, ban_type, user_id, nickname, ip_cidr, reason, shadowban, banned_at, banned_until, banned_by
             FROM Ban ",
            $rest
        )
    };
}

fn ban(row: &Row<'_>) -> rusqlite::Result<Ban> {
    let text = |column| Ok::<_, rusqlite::Error>(Some(row::name(row, column)?).filter(|text| !text.is_empty()));
    let subject = match row::bytes(row, 1)? {
        b"ip" => Subject::Address(row::name(row, 4)?),
        _ => Subject::User { user: row::id(row, 2, UserId::from_sql)?, nickname: text(3)? },
    };
    Ok(Ban {
        id: BanId::from_sql(row::number(row, 0)?),
        subject,
        reason: row::name(row, 5)?,
        shadow: row::number(row, 6)? != 0,
        since: row::number(row, 7)?,
        until: row::integer(row, 8)?,
        by: row::name(row, 9)?,
    })
}

pub(super) fn load(conn: &Connection) -> rusqlite::Result<Table> {
    let bans = row::all(conn, bans!(""), [], ban)?;
    Ok(bans.into_iter().map(|ban| (ban.id, Arc::new(ban))).collect())
}

pub(super) fn list(conn: &Connection, include_expired: bool, limit: u32, now: i64) -> rusqlite::Result<Vec<Ban>> {
    let sql = bans!("WHERE ?1 OR banned_until IS NULL OR banned_until >= ?2 ORDER BY id DESC LIMIT ?3");
    row::all(conn, sql, params![include_expired, now, limit], ban)
}

/// The active ban that counts for `account`, by id or nickname, or for the bare `nickname`: one that refuses before one
/// that hides, then the one that lasts longest. Read from the file each time, because operators edit it (11.4).
pub(super) fn refusing(
    conn: &Connection,
    account: Option<&Account>,
    nickname: Option<&Name>,
    now: i64,
) -> rusqlite::Result<Option<Ban>> {
    row::first(
        conn,
        bans!(
            "WHERE ban_type = 'user' AND (user_id = ?1 OR nickname = ?2 OR nickname = ?3)
               AND (banned_until IS NULL OR banned_until >= ?4)
             ORDER BY shadowban <> 0, banned_until IS NOT NULL, banned_until DESC LIMIT 1"
        ),
        params![
            account.map(|account| UserId::as_sql(account.id)),
            account.map(|account| Text(&account.nickname)),
            nickname.map(|nickname| Text(nickname)),
            now,
        ],
        ban,
    )
}

pub(super) fn give(
    scope: &Scope<'_>,
    subject: &Subject,
    reason: &Name,
    shadow: bool,
    seconds: Option<u64>,
    by: &Name,
) -> Result<Arc<Ban>, Failure> {
    let subject = match subject {
        Subject::User { user: None, nickname: Some(nickname) } => {
            Subject::User { user: account_called(scope.conn, nickname)?, nickname: Some(nickname.clone()) }
        }
        known => known.clone(),
    };
    let (user, nickname, address) = columns(&subject);
    let until = seconds.map(|seconds| end(scope.now, seconds));
    let insert = row::execute(
        scope.conn,
        "INSERT INTO Ban (ban_type, user_id, nickname, ip_cidr, reason, shadowban, banned_at, banned_until, banned_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            if address.is_some() { "ip" } else { "user" },
            user,
            nickname,
            address,
            Text(reason),
            shadow,
            scope.now,
            until,
            Text(by),
        ],
    );
    insert.map_err(row::constraints(&[(FOREIGN_KEY, Refusal::UserNotFound)]))?;
    let id = BanId::from_sql(scope.conn.last_insert_rowid());
    Ok(Arc::new(Ban { id, subject, reason: reason.clone(), shadow, since: scope.now, until, by: by.clone() }))
}

fn end(now: i64, seconds: u64) -> i64 {
    let milliseconds = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
    now.saturating_add(milliseconds).min(LATEST_END)
}

fn columns(subject: &Subject) -> (Option<i64>, Option<Text<'_>>, Option<Text<'_>>) {
    match subject {
        Subject::User { user, nickname } => {
            (user.map(UserId::as_sql), nickname.as_ref().map(|nickname| Text(nickname)), None)
        }
        Subject::Address(text) => (None, None, Some(Text(text))),
    }
}

/// The account that is called so now. Under a former name, which still signs in to it, a visitor may be meant.
fn account_called(conn: &Connection, nickname: &Name) -> rusqlite::Result<Option<UserId>> {
    row::first(conn, "SELECT id FROM User WHERE nickname = ?1", [Text(nickname)], |row| {
        row::number(row, 0).map(UserId::from_sql)
    })
}

/// Before an account, last called `nickname`, is deleted: as [`Ban::without_account`], in the file, where the row of an
/// account takes its bans along, and a ban what it hides.
pub(super) fn leave_account(scope: &Scope<'_>, user: UserId, nickname: &Name) -> rusqlite::Result<()> {
    row::execute(
        scope.conn,
        "UPDATE Ban SET nickname = COALESCE(NULLIF(nickname, ''), ?2), user_id = NULL
         WHERE user_id = ?1 AND (shadowban <> 0 OR NULLIF(nickname, '') IS NOT NULL)",
        params![user.as_sql(), Text(nickname)],
    )
    .map(drop)
}

/// Takes away what counts now; what has ended stays in the list of the past.
pub(super) fn lift(scope: &Scope<'_>, subject: &Subject) -> Result<Vec<BanId>, Failure> {
    let found = match subject {
        Subject::User { user, nickname } => of_user(scope, *user, nickname.as_ref())?,
        Subject::Address(text) => of_address(scope, text)?,
    };
    if found.is_empty() {
        return Err(Refusal::NoActiveBan.into());
    }
    for id in &found {
        row::execute(scope.conn, "DELETE FROM Ban WHERE id = ?1", [id.as_sql()])?;
    }
    Ok(found)
}

/// Bans by id and by nickname both keep an account out, so whichever of the two is named, both are meant.
fn of_user(scope: &Scope<'_>, user: Option<UserId>, nickname: Option<&Name>) -> rusqlite::Result<Vec<BanId>> {
    let called = nickname.map(|nickname| account_called(scope.conn, nickname)).transpose()?.flatten();
    let user = user.or(called).map(UserId::as_sql);
    row::all(
        scope.conn,
        "SELECT id FROM Ban
         WHERE ban_type = 'user' AND (banned_until IS NULL OR banned_until >= ?3)
           AND (user_id = ?1 OR nickname = ?2 OR nickname = (SELECT nickname FROM User WHERE id = ?1))",
        params![user, nickname.map(|nickname| Text(nickname)), scope.now],
        |row| row::number(row, 0).map(BanId::from_sql),
    )
}

/// The same text, or another that names the same addresses.
fn of_address(scope: &Scope<'_>, text: &Name) -> rusqlite::Result<Vec<BanId>> {
    let network = ban::network(text);
    let is_meant = |known: &Name| known == text || (network.is_some() && ban::network(known) == network);
    let all = row::all(
        scope.conn,
        "SELECT id, ip_cidr FROM Ban WHERE ban_type = 'ip' AND (banned_until IS NULL OR banned_until >= ?1)",
        [scope.now],
        |row| Ok((BanId::from_sql(row::number(row, 0)?), row::name(row, 1)?)),
    )?;
    Ok(all.into_iter().filter(|(_, known)| is_meant(known)).map(|(id, _)| id).collect())
}
