//! Bans of users (BEHAVIOUR.md 5.3).

use rusqlite::{Connection, params};

use super::row::{self, Text};
use crate::ids::UserId;
use crate::store::{Account, Ban, Name};

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
        "SELECT reason, banned_until, shadowban FROM Ban
         WHERE ban_type = 'user' AND (user_id = ?1 OR nickname = ?2 OR nickname = ?3)
           AND (banned_until IS NULL OR banned_until >= ?4)
         ORDER BY shadowban <> 0, banned_until IS NOT NULL, banned_until DESC LIMIT 1",
        params![
            account.map(|account| UserId::as_sql(account.id)),
            account.map(|account| Text(&account.nickname)),
            nickname.map(|nickname| Text(nickname)),
            now,
        ],
        |row| Ok(Ban { reason: row::name(row, 0)?, until: row::integer(row, 1)?, shadow: row::number(row, 2)? != 0 }),
    )
}
