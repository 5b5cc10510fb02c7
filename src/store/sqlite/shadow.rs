//! What shadow bans hide (BEHAVIOUR.md 5.3): a text written under one is marked with it, and hidden from everybody but its
//! author and admins while that ban counts. Lifted or ended, it shows. Of a message that was open and is edited under a ban,
//! others go on reading the text as it was, so that nobody can make a thread of others vanish.

use rusqlite::{Connection, params};

use super::row::{self, Failure, Text};
use super::visitors::SessionIds;
use super::writer::Scope;
use crate::ids::{BanId, MessageId, SessionId, UserId};
use crate::store::{Actor, Audience, Viewer};

/// Through whose eyes messages are read, as parameters of SQL.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eyes {
    pub(super) user: Option<i64>,
    pub(super) session: i64,
    /// Milliseconds since 1970; `None` sees everything.
    pub(super) now: Option<i64>,
}

impl Eyes {
    pub(super) fn of(viewer: Viewer, sessions: SessionIds, now: i64) -> Self {
        Self {
            user: viewer.user.map(UserId::as_sql),
            session: sessions.stored(viewer.session),
            now: (!viewer.is_admin).then_some(now),
        }
    }

    /// The same for a page: where nothing is hidden from anybody, as nearly always, no row of it is looked up.
    pub(super) fn for_page(
        conn: &Connection,
        viewer: Viewer,
        sessions: SessionIds,
        now: i64,
    ) -> rusqlite::Result<Self> {
        let eyes = Self::of(viewer, sessions, now);
        let is_anything_hidden = row::exists(conn, "SELECT 1 FROM scd_shadowed", [])?;
        Ok(Self { now: eyes.now.filter(|_| is_anything_hidden), ..eyes })
    }
}

/// The end of a SELECT from the marks of a message that count for whoever looks: by the message's id, and the numbers of the
/// three parameters of [`Eyes`].
macro_rules! marks {
    ($message:literal, $user:literal, $session:literal, $now:literal) => {
        concat!(
            " FROM scd_shadowed AS s CROSS JOIN Ban AS b ON b.id = s.ban_id
              WHERE s.message_id = ",
            $message,
            " AND s.session_id <> ",
            $session,
            " AND COALESCE(s.user_id = ",
            $user,
            ", 0) = 0 AND b.shadowban <> 0 AND (b.banned_until IS NULL OR b.banned_until >= ",
            $now,
            ")"
        )
    };
}
pub(super) use marks;

/// SQL that holds for messages that may be seen; with the parameters of [`marks`].
macro_rules! visible {
    ($message:literal, $user:literal, $session:literal, $now:literal) => {
        concat!(
            "(",
            $now,
            " IS NULL OR NOT EXISTS (SELECT 1",
            $crate::store::sqlite::shadow::marks!($message, $user, $session, $now),
            " AND s.kept IS NULL))"
        )
    };
}
pub(super) use visible;

/// SQL for the version that is to be read in the place of a message: the text before the first edit that is hidden, else NULL.
/// With the parameters of [`marks`].
macro_rules! kept {
    ($message:literal, $user:literal, $session:literal, $now:literal) => {
        concat!(
            "(SELECT min(s.kept)",
            $crate::store::sqlite::shadow::marks!($message, $user, $session, $now),
            " AND ",
            $now,
            " IS NOT NULL)"
        )
    };
}
pub(super) use kept;

/// Whether the message must look as if it were not there.
pub(super) fn hides(conn: &Connection, eyes: Eyes, message: MessageId) -> rusqlite::Result<bool> {
    let sql = concat!("SELECT ", visible!("?1", "?2", "?3", "?4"));
    let visible =
        row::first(conn, sql, params![message.as_sql(), eyes.user, eyes.session, eyes.now], |row| row::number(row, 0))?;
    Ok(visible == Some(0))
}

/// Asked with every post, so it reads one index that is almost always empty.
const SHADOWING: &str = "
    SELECT id FROM Ban
    WHERE shadowban <> 0 AND (user_id = ?1 OR nickname = ?2) AND (banned_until IS NULL OR banned_until >= ?3)";

/// The bans that hide what the actor writes now: by who they are, and by what their session met before.
pub(super) fn on(scope: &Scope<'_>, actor: &Actor) -> rusqlite::Result<Vec<BanId>> {
    let user = actor.user.map(UserId::as_sql);
    let id = |row: &rusqlite::Row<'_>| row::number(row, 0).map(BanId::from_sql);
    let mut bans = row::all(scope.conn, SHADOWING, params![user, Text(&actor.nickname), scope.now], id)?;
    for mark in &actor.marks {
        let counts = "SELECT 1 FROM Ban
                      WHERE id = ?1 AND shadowban <> 0 AND (banned_until IS NULL OR banned_until >= ?2)";
        if !bans.contains(mark) && row::exists(scope.conn, counts, [mark.as_sql(), scope.now])? {
            bans.push(*mark);
        }
    }
    Ok(bans)
}

/// Hides a message of the actor's, or an edit of it, after which others read the version `kept`; to whom it is told. What a
/// ban hides already stays hidden as it is.
pub(super) fn hide(
    scope: &Scope<'_>,
    message: MessageId,
    actor: &Actor,
    bans: &[BanId],
    kept: Option<i64>,
) -> Result<Audience, Failure> {
    for ban in bans {
        row::execute(
            scope.conn,
            "INSERT OR IGNORE INTO scd_shadowed (message_id, ban_id, user_id, session_id, kept) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                message.as_sql(),
                ban.as_sql(),
                actor.user.map(UserId::as_sql),
                scope.sessions.stored(actor.session),
                kept,
            ],
        )?;
    }
    match bans {
        [] => Ok(audience(scope, message)?),
        _ => Ok(Audience::Hidden { user: actor.user, session: Some(actor.session) }),
    }
}

/// Nobody reads a former text any more: an admin has changed it, or the message is deleted.
pub(super) fn drop_kept(scope: &Scope<'_>, message: MessageId) -> rusqlite::Result<()> {
    let sql = "DELETE FROM scd_shadowed WHERE message_id = ?1 AND kept IS NOT NULL";
    row::execute(scope.conn, sql, [message.as_sql()]).map(drop)
}

/// Who hears of a change to a message.
pub(super) fn audience(scope: &Scope<'_>, message: MessageId) -> rusqlite::Result<Audience> {
    let author = row::first(
        scope.conn,
        "SELECT s.user_id, s.session_id FROM scd_shadowed AS s CROSS JOIN Ban AS b ON b.id = s.ban_id
         WHERE s.message_id = ?1 AND b.shadowban <> 0 AND (b.banned_until IS NULL OR b.banned_until >= ?2) LIMIT 1",
        [message.as_sql(), scope.now],
        |row| Ok((row::id(row, 0, UserId::from_sql)?, row::number(row, 1)?)),
    )?;
    Ok(author.map_or(Audience::Everybody, |(user, session)| {
        let session: Option<SessionId> = scope.sessions.live(session);
        Audience::Hidden { user, session }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::row::plan;

    #[test]
    fn whether_a_post_is_hidden_costs_a_look_at_the_shadow_bans_only() {
        let plan = plan(SHADOWING, [1, 2, 3]);
        assert!(plan.contains("INDEX scd_ban_shadow"), "{plan}");
    }

    #[test]
    fn whether_a_message_is_hidden_costs_a_look_at_its_marks() {
        for sql in [visible!("?1", "?2", "?3", "?4"), kept!("?1", "?2", "?3", "?4")] {
            let plan = plan(&format!("SELECT {sql}"), [1, 2, 3, 4]);
            assert!(plan.contains("SEARCH s USING PRIMARY KEY (message_id=?)"), "{plan}");
            assert!(plan.contains("SEARCH b USING INTEGER PRIMARY KEY"), "{plan}");
        }
    }
}
