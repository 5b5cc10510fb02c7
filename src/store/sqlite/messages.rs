//! Messages: posting, editing, deleting (BEHAVIOUR.md 2.13 to 2.15), and the lists of 2.12.

use bytes::Bytes;
use rusqlite::{Connection, Row, params};

use super::admin;
use super::dm_rows;
use super::row::{self, FOREIGN_KEY, Failure, Text};
use super::shadow::{self, Eyes, kept, visible};
use super::thread::{self, Bone, Placed};
use super::writer::{Scope, all_or_none};
use crate::ids::{ChannelId, MessageId, UserId};
use crate::limits::{LISTED_BYTES_MAX, THREAD_DEPTH_MAX};
use crate::store::query::Cursor;
use crate::store::{Actor, Admin, Audience, Author, Event, Message, Refusal};

/// The largest id in use; 0 for none.
pub(super) fn newest_id(conn: &Connection) -> rusqlite::Result<i64> {
    row::first(conn, "SELECT max(id) FROM Message", [], |row| row::number(row, 0)).map(Option::unwrap_or_default)
}

// Writing.

pub(super) fn post(
    scope: &mut Scope<'_>,
    author: &Actor,
    channel: ChannelId,
    parent: Option<MessageId>,
    content: &Bytes,
) -> Result<Event, Failure> {
    // What is known to be open to everybody needs no look at the file.
    if scope.channels.get(&channel).is_none_or(|channel| channel.participants.is_some())
        && !dm_rows::may_see(scope.conn, scope.sessions, channel, author.viewer())?
    {
        return Err(Refusal::NotParticipant.into());
    }
    let eyes = Eyes::of(author.viewer(), scope.sessions, scope.now);
    let above = parent.map(|parent| root_for_reply(scope.conn, eyes, channel, parent)).transpose()?;
    let bans = shadow::on(scope, author)?;
    if bans.is_empty() {
        return insert(scope, author, channel, parent, above, content).map(Event::Posted);
    }
    all_or_none(scope, |scope| {
        let message = insert(scope, author, channel, parent, above, content)?;
        let audience = shadow::hide(scope, message.id, author, &bans, None)?;
        Ok(Event::Posted(Message { audience, ..message }))
    })
}

fn insert(
    scope: &mut Scope<'_>,
    author: &Actor,
    channel: ChannelId,
    parent: Option<MessageId>,
    above: Option<MessageId>,
    content: &Bytes,
) -> Result<Message, Failure> {
    let id = MessageId::from_sql(scope.ids.next(scope.now).ok_or(Refusal::Database)?);
    let thread_root = above.unwrap_or(id);
    let insert = row::execute(
        scope.conn,
        "INSERT INTO Message
             (id, channel_id, parent_id, thread_root_id, author_user_id, author_nickname, content, created_at)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE ?5 IS NULL OR EXISTS (SELECT 1 FROM User WHERE id = ?5)",
        params![
            id.as_sql(),
            channel.as_sql(),
            parent.map(MessageId::as_sql),
            thread_root.as_sql(),
            author.user.map(UserId::as_sql),
            Text(&author.nickname),
            Text(content),
            scope.now,
        ],
    );
    // Parent and root were just found, so a missing row can only be the channel's.
    let inserted = insert.map_err(row::constraints(&[(FOREIGN_KEY, Refusal::ChannelNotFound)]))?;
    if inserted == 0 {
        return Err(Refusal::UserNotFound.into());
    }
    note_activity(scope, id.as_sql(), thread_root.as_sql())?;
    Ok(Message {
        id,
        channel,
        parent,
        thread_root,
        author: live_author(author),
        content: content.clone(),
        created_at: scope.now,
        edited_at: None,
        reply_count: 0,
        audience: Audience::Everybody,
    })
}

/// Whether the file is of a version (14 and up) whose messages know when their thread was last written to.
pub(super) fn tracks_activity(conn: &Connection) -> rusqlite::Result<bool> {
    row::exists(conn, "SELECT 1 FROM pragma_table_info('Message') WHERE name = 'last_activity_at'", [])
}

/// Does for the message just stored, and its thread, what the server of that version would have done (BEHAVIOUR.md 8.2):
/// it orders threads by this column.
pub(super) fn note_activity(scope: &Scope<'_>, id: i64, thread_root: i64) -> rusqlite::Result<()> {
    if scope.tracks_activity {
        row::execute(
            scope.conn,
            "UPDATE Message SET last_activity_at = max(COALESCE(last_activity_at, created_at), ?3) WHERE id IN (?1, ?2)",
            [id, thread_root, scope.now],
        )?;
    }
    Ok(())
}

/// Who takes part in a DM may act in it; nobody else may, admins included.
fn admit(scope: &Scope<'_>, dm: ChannelId, actor: &Actor) -> Result<(), Failure> {
    let takes_part = dm_rows::takes_part(scope.conn, scope.sessions, dm, actor.viewer())?;
    if takes_part { Ok(()) } else { Err(Refusal::NotParticipant.into()) }
}

fn live_author(actor: &Actor) -> Author {
    let nickname = actor.nickname.clone();
    match actor.user {
        Some(user) => Author::Account { user, nickname, flags: actor.flags },
        None => Author::Visitor { nickname },
    }
}

/// The root of the thread that a reply to `parent` belongs to. Step by step instead of by recursion inside SQLite: most
/// threads are shallow, and setting up the recursion alone costs more than the whole insert.
fn root_for_reply(conn: &Connection, eyes: Eyes, channel: ChannelId, parent: MessageId) -> Result<MessageId, Failure> {
    let above = ancestor(conn, parent)?.ok_or(Refusal::MessageNotFound)?;
    if above.channel != channel || shadow::hides(conn, eyes, parent)? {
        return Err(Refusal::MessageNotFound.into());
    }
    let top = top_of_thread(conn, parent, above.parent)?;
    match above.thread_root {
        // Beyond a gap in the chain the recorded root may still be there, or not.
        Some(root) if root == top || ancestor(conn, root)?.is_some() => Ok(root),
        _ => Ok(top),
    }
}

/// The topmost existing message above `id`, unless a reply to `id` would be too deep.
fn top_of_thread(conn: &Connection, id: MessageId, parent: Option<MessageId>) -> Result<MessageId, Failure> {
    let (mut top, mut next) = (id, parent);
    for _ in 1..=THREAD_DEPTH_MAX {
        let Some(above) = next else { return Ok(top) };
        let Some(found) = ancestor(conn, above)? else { return Ok(top) };
        (top, next) = (above, found.parent);
    }
    Err(Refusal::ThreadTooDeep.into())
}

struct Ancestor {
    channel: ChannelId,
    parent: Option<MessageId>,
    thread_root: Option<MessageId>,
}

fn ancestor(conn: &Connection, id: MessageId) -> rusqlite::Result<Option<Ancestor>> {
    row::first(
        conn,
        "SELECT COALESCE(subchannel_id, channel_id), parent_id, thread_root_id FROM Message WHERE id = ?1",
        [id.as_sql()],
        |row| {
            Ok(Ancestor {
                channel: ChannelId::from_sql(row::number(row, 0)?),
                parent: row::id(row, 1, MessageId::from_sql)?,
                thread_root: row::id(row, 2, MessageId::from_sql)?,
            })
        },
    )
}

/// The order of the checks is that of BEHAVIOUR.md 2.14; who takes no part in a DM learns nothing about its messages.
pub(super) fn edit(
    scope: &mut Scope<'_>,
    editor: &Actor,
    id: MessageId,
    content: &Bytes,
    sanitized: &Bytes,
) -> Result<Event, Failure> {
    let stored = find(scope, editor, id)?;
    if stored.is_dm {
        admit(scope, stored.channel, editor)?;
    }
    if stored.author.is_none() {
        return Err(Refusal::AnonymousMessage.into());
    }
    let is_own = stored.is_own(scope, editor);
    if !is_own && !editor.is_admin() {
        return Err(Refusal::NotYours.into());
    }
    if stored.is_deleted {
        return Err(Refusal::AlreadyDeleted.into());
    }
    let content = if stored.is_dm { content } else { sanitized };
    if content.is_empty() {
        return Err(Refusal::EmptyContent.into());
    }
    let kept = stored.keep_version(scope, "edited")?;
    if !is_own {
        stored.audit(scope, editor, "EDIT_MESSAGE")?;
        shadow::drop_kept(scope, id)?;
    }
    row::execute(
        scope.conn,
        "UPDATE Message SET content = ?2, edited_at = ?3 WHERE id = ?1",
        params![id.as_sql(), Text(content), scope.now],
    )?;
    // What somebody writes under a shadow ban is hidden, in an old message too, whose former text others go on reading.
    let bans = if is_own { shadow::on(scope, editor)? } else { Vec::new() };
    let audience = shadow::hide(scope, id, editor, &bans, Some(kept))?;
    Ok(Event::Edited {
        message: id,
        channel: stored.channel,
        thread_root: stored.thread_root,
        edited_at: scope.now,
        content: content.clone(),
        audience,
    })
}

/// The order of the checks is that of BEHAVIOUR.md 2.15.
pub(super) fn delete(scope: &mut Scope<'_>, actor: &Actor, id: MessageId) -> Result<Event, Failure> {
    let stored = find(scope, actor, id)?;
    if stored.is_dm {
        admit(scope, stored.channel, actor)?;
    }
    if stored.is_deleted {
        return Err(Refusal::AlreadyDeleted.into());
    }
    let is_own = stored.is_own(scope, actor);
    if !is_own && !actor.is_admin() {
        return Err(Refusal::NotYours.into());
    }
    stored.keep_version(scope, "deleted")?;
    if !is_own {
        stored.audit(scope, actor, "DELETE_MESSAGE")?;
    }
    shadow::drop_kept(scope, id)?;
    let placeholder = placeholder(&actor.nickname);
    row::execute(
        scope.conn,
        "UPDATE Message SET content = ?2, deleted_at = ?3 WHERE id = ?1",
        params![id.as_sql(), Text(&placeholder), scope.now],
    )?;
    Ok(Event::Deleted {
        message: id,
        channel: stored.channel,
        thread_root: stored.thread_root,
        deleted_at: scope.now,
        placeholder,
        audience: shadow::audience(scope, id)?,
    })
}

/// What stands in the place of a deleted message; clients look for its beginning.
fn placeholder(nickname: &[u8]) -> Bytes {
    [b"[deleted by ~", nickname, b"]"].concat().into()
}

/// What the rules about changing a message look at.
struct Stored {
    id: MessageId,
    channel: ChannelId,
    is_dm: bool,
    thread_root: MessageId,
    author: Option<UserId>,
    nickname: Box<[u8]>,
    content: Bytes,
    is_deleted: bool,
}

/// The message, if it is there and not hidden from the actor.
fn find(scope: &Scope<'_>, actor: &Actor, id: MessageId) -> Result<Stored, Failure> {
    let eyes = Eyes::of(actor.viewer(), scope.sessions, scope.now);
    let is_hidden = shadow::hides(scope.conn, eyes, id)?;
    let stored = stored(scope.conn, id)?.filter(|_| !is_hidden);
    Ok(stored.ok_or(Refusal::MessageNotFound)?)
}

fn stored(conn: &Connection, id: MessageId) -> rusqlite::Result<Option<Stored>> {
    row::first(
        conn,
        "SELECT COALESCE(m.subchannel_id, m.channel_id), c.is_dm, m.parent_id, m.thread_root_id, m.author_user_id,
                m.author_nickname, m.content, m.deleted_at
         FROM Message AS m LEFT JOIN Channel AS c ON c.id = COALESCE(m.subchannel_id, m.channel_id)
         WHERE m.id = ?1",
        [id.as_sql()],
        |row| {
            let parent = row::id(row, 2, MessageId::from_sql)?;
            let recorded = row::id(row, 3, MessageId::from_sql)?;
            Ok(Stored {
                id,
                channel: ChannelId::from_sql(row::number(row, 0)?),
                is_dm: row::number(row, 1)? != 0,
                thread_root: root(conn, id, parent, recorded)?,
                author: row::id(row, 4, UserId::from_sql)?,
                nickname: row::bytes(row, 5)?.into(),
                content: Bytes::copy_from_slice(row::bytes(row, 6)?),
                is_deleted: row::integer(row, 7)?.is_some(),
            })
        },
    )
}

impl Stored {
    /// A visitor's message belongs to the session that wrote it and, outside DMs, to whoever has its name and address.
    fn is_own(&self, scope: &Scope<'_>, actor: &Actor) -> bool {
        if let Some(author) = self.author {
            return actor.user == Some(author);
        }
        scope.visitors.is_session(self.id, actor)
            || (!self.is_dm && *self.nickname == *actor.nickname && scope.visitors.is_address(self.id, actor))
    }

    /// Keeps the text as it was, for as long as the message is kept; the id of that version.
    fn keep_version(&self, scope: &Scope<'_>, version_type: &str) -> rusqlite::Result<i64> {
        row::execute(
            scope.conn,
            "INSERT INTO MessageVersion (message_id, content, author_nickname, created_at, version_type)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![self.id.as_sql(), Text(&self.content), Text(&self.nickname), scope.now, version_type],
        )?;
        Ok(scope.conn.last_insert_rowid())
    }

    fn audit(&self, scope: &Scope<'_>, editor: &Actor, action: &'static str) -> rusqlite::Result<()> {
        let by = Admin { name: editor.nickname.clone(), address: Some(editor.address) };
        let details = format!("message_id={} channel_id={}", self.id, self.channel);
        admin::audit_message(scope, &by, action, self.id, &self.nickname, details)
    }
}

/// The root of a message's thread. Old rows may lack it, then the parents lead to it (BEHAVIOUR.md 8.3, point 6).
fn root(
    conn: &Connection,
    id: MessageId,
    parent: Option<MessageId>,
    recorded: Option<MessageId>,
) -> rusqlite::Result<MessageId> {
    match (parent, recorded) {
        (None, _) => Ok(id),
        (Some(_), Some(recorded)) => Ok(recorded),
        (Some(_), None) => climb(conn, id),
    }
}

/// The topmost message above `id` that exists; in a circle the smallest id.
fn climb(conn: &Connection, id: MessageId) -> rusqlite::Result<MessageId> {
    let top = row::first(
        conn,
        "WITH RECURSIVE up(id, parent_id) AS (
             SELECT id, parent_id FROM Message WHERE id = ?1
             UNION
             SELECT above.id, above.parent_id FROM up JOIN Message AS above ON above.id = up.parent_id
         )
         SELECT COALESCE(
             (SELECT id FROM up WHERE NOT EXISTS (SELECT 1 FROM Message AS above WHERE above.id = up.parent_id)),
             (SELECT min(id) FROM up))",
        [id.as_sql()],
        |row| row::number(row, 0),
    )?;
    Ok(top.map_or(id, MessageId::from_sql))
}

// Reading.

/// By the numbers of the parameters of [`Eyes`], and what is to follow.
macro_rules! listed {
    ($user:literal, $session:literal, $now:literal; $($rest:expr),+) => {
        concat!(
            "SELECT m.id, COALESCE(m.subchannel_id, m.channel_id), m.parent_id, m.thread_root_id, m.author_user_id,
                    m.author_nickname, u.nickname, u.user_flags, m.content, m.created_at, m.edited_at, m.deleted_at,
                    m.deleted_at IS NOT NULL AND EXISTS (
                        SELECT 1 FROM MessageVersion AS v WHERE v.message_id = m.id AND v.version_type = 'deleted'), ",
            kept!("m.id", $user, $session, $now),
            ", ",
            $($rest),+
        )
    };
}

/// Live replies below `m`, whatever their depth.
macro_rules! live_by_index {
    () => {
        concat!(
            "(SELECT count(*) FROM Message AS r INDEXED BY scd_message_threads
              WHERE r.thread_root_id = m.id AND r.deleted_at IS NULL AND r.parent_id IS NOT NULL AND ",
            visible!("r.id", "?4", "?5", "?6"),
            ") AS replies"
        )
    };
}

/// The same for files whose old rows do not know their roots yet.
macro_rules! live_by_parents {
    () => {
        concat!(
            "(WITH RECURSIVE below(id, deleted_at) AS (
              SELECT id, deleted_at FROM Message WHERE parent_id = m.id
              UNION
              SELECT r.id, r.deleted_at FROM below JOIN Message AS r ON r.parent_id = below.id
              ) SELECT count(*) FROM below WHERE deleted_at IS NULL AND ",
            visible!("below.id", "?4", "?5", "?6"),
            ") AS replies"
        )
    };
}

/// Equal keys of the index lie in the order of the ids, so no list is ever sorted.
macro_rules! roots {
    ($live:expr, $beyond:literal, $direction:literal) => {
        listed!(
            "?4", "?5", "?6";
            $live,
            " FROM Message AS m INDEXED BY scd_message_roots LEFT JOIN User AS u ON u.id = m.author_user_id
              WHERE COALESCE(m.subchannel_id, m.channel_id) = ?1 AND m.parent_id IS NULL AND m.id ",
            $beyond,
            " ?2 AND (m.deleted_at IS NULL OR replies > 0) AND ",
            visible!("m.id", "?4", "?5", "?6"),
            " ORDER BY m.id ",
            $direction,
            " LIMIT ?3"
        )
    };
}

const NEWEST_ROOTS: &str = roots!(live_by_index!(), "<", "DESC");
const OLDEST_ROOTS: &str = roots!(live_by_index!(), ">", "ASC");
const NEWEST_ROOTS_UNREPAIRED: &str = roots!(live_by_parents!(), "<", "DESC");
const OLDEST_ROOTS_UNREPAIRED: &str = roots!(live_by_parents!(), ">", "ASC");

const REPLY: &str = listed!(
    "?2", "?3", "?4";
    "0 FROM Message AS m LEFT JOIN User AS u ON u.id = m.author_user_id WHERE m.id = ?1"
);

/// A version, and when the message had been edited last before.
const FORMER: &str = "
    SELECT v.content, (SELECT max(e.created_at) FROM MessageVersion AS e
                       WHERE e.message_id = v.message_id AND e.id < v.id AND e.version_type = 'edited')
    FROM MessageVersion AS v WHERE v.id = ?1";

const SKELETON: &str = concat!(
    "SELECT m.id, m.parent_id, m.deleted_at FROM Message AS m INDEXED BY scd_message_threads
     WHERE m.thread_root_id = ?1 AND ",
    visible!("m.id", "?2", "?3", "?4")
);

/// Of the part below ?1, found by climbing down.
const SKELETON_UNREPAIRED: &str = concat!(
    "WITH RECURSIVE below(id, parent_id, deleted_at) AS (
        SELECT id, parent_id, deleted_at FROM Message WHERE parent_id = ?1
        UNION
        SELECT r.id, r.parent_id, r.deleted_at FROM below JOIN Message AS r ON r.parent_id = below.id
    ) SELECT id, parent_id, deleted_at FROM below WHERE ",
    visible!("below.id", "?2", "?3", "?4")
);

/// BEHAVIOUR.md 2.12, roots. `repaired`: every message knows its thread root.
pub(super) fn roots(
    conn: &Connection,
    eyes: Eyes,
    repaired: bool,
    channel: ChannelId,
    cursor: Cursor,
    limit: u16,
) -> rusqlite::Result<Vec<Message>> {
    let (sql, bound) = match (cursor, repaired) {
        (Cursor::None, true) => (NEWEST_ROOTS, i64::MAX),
        (Cursor::None, false) => (NEWEST_ROOTS_UNREPAIRED, i64::MAX),
        (Cursor::Before(id), true) => (NEWEST_ROOTS, id.as_sql()),
        (Cursor::Before(id), false) => (NEWEST_ROOTS_UNREPAIRED, id.as_sql()),
        (Cursor::After(id), true) => (OLDEST_ROOTS, id.as_sql()),
        (Cursor::After(id), false) => (OLDEST_ROOTS_UNREPAIRED, id.as_sql()),
    };
    let params = params![channel.as_sql(), bound, limit, eyes.user, eyes.session, eyes.now];
    row::all(conn, sql, params, |row| message(conn, row))
}

/// BEHAVIOUR.md 2.12, thread. `repaired`: every message knows its thread root.
pub(super) fn thread(
    conn: &Connection,
    eyes: Eyes,
    repaired: bool,
    channel: ChannelId,
    parent: MessageId,
    cursor: Cursor,
    limit: u16,
) -> rusqlite::Result<Vec<Message>> {
    let root = match thread_of(conn, eyes, parent)? {
        Some((root, place)) if place == channel => root,
        _ => return Ok(Vec::new()),
    };
    let bones = match repaired {
        true => skeleton(conn, SKELETON, eyes, root)?,
        false => skeleton(conn, SKELETON_UNREPAIRED, eyes, parent)?,
    };
    let page = thread::page(parent, parent == root, bones, cursor, limit.into());
    let replies = page.into_iter().map(|placed| reply(conn, eyes, placed));
    replies.filter_map(Result::transpose).collect()
}

/// The root of a message's thread, and the message's place.
pub(super) fn thread_of(
    conn: &Connection,
    eyes: Eyes,
    id: MessageId,
) -> rusqlite::Result<Option<(MessageId, ChannelId)>> {
    if shadow::hides(conn, eyes, id)? {
        return Ok(None);
    }
    row::first(
        conn,
        "SELECT parent_id, thread_root_id, COALESCE(subchannel_id, channel_id) FROM Message WHERE id = ?1",
        [id.as_sql()],
        |row| {
            let parent = row::id(row, 0, MessageId::from_sql)?;
            let recorded = row::id(row, 1, MessageId::from_sql)?;
            Ok((root(conn, id, parent, recorded)?, ChannelId::from_sql(row::number(row, 2)?)))
        },
    )
}

fn skeleton(conn: &Connection, sql: &str, eyes: Eyes, of: MessageId) -> rusqlite::Result<Vec<Bone>> {
    row::all(conn, sql, params![of.as_sql(), eyes.user, eyes.session, eyes.now], |row| {
        Ok(Bone {
            id: MessageId::from_sql(row::number(row, 0)?),
            parent: row::id(row, 1, MessageId::from_sql)?,
            deleted: row::integer(row, 2)?.is_some(),
        })
    })
}

fn reply(conn: &Connection, eyes: Eyes, placed: Placed) -> rusqlite::Result<Option<Message>> {
    let params = params![placed.id.as_sql(), eyes.user, eyes.session, eyes.now];
    let reply = row::first(conn, REPLY, params, |row| message(conn, row))?;
    Ok(reply.map(|reply| Message { parent: Some(placed.parent), ..reply }))
}

/// Reads a row of [`listed`].
fn message(conn: &Connection, row: &Row<'_>) -> rusqlite::Result<Message> {
    let id = MessageId::from_sql(row::number(row, 0)?);
    let parent = row::id(row, 2, MessageId::from_sql)?;
    let recorded = row::id(row, 3, MessageId::from_sql)?;
    let author = author(row)?;
    let (content, edited_at) = match row::integer(row, 13)? {
        Some(kept) => former(conn, kept)?,
        None => (listable(row::bytes(row, 8)?), row::integer(row, 10)?),
    };
    let is_deleted = row::integer(row, 11)?.is_some();
    let holds_placeholder = row::number(row, 12)? != 0;
    Ok(Message {
        id,
        channel: ChannelId::from_sql(row::number(row, 1)?),
        parent,
        thread_root: root(conn, id, parent, recorded)?,
        // Rows deleted by older servers still hold the text that nobody is to see again.
        content: match is_deleted && !holds_placeholder {
            true => placeholder(nickname_of(&author, row::bytes(row, 5)?)),
            false => content,
        },
        author,
        created_at: row::number(row, 9)?,
        edited_at,
        reply_count: u32::try_from(row::number(row, 14)?).unwrap_or(u32::MAX),
        audience: Audience::Everybody,
    })
}

/// What is read in the place of a hidden edit. A version that somebody removed shows nothing: never the edit itself.
fn former(conn: &Connection, version: i64) -> rusqlite::Result<(Bytes, Option<i64>)> {
    let found = row::first(conn, FORMER, [version], |row| Ok((listable(row::bytes(row, 0)?), row::integer(row, 1)?)))?;
    Ok(found.unwrap_or_default())
}

fn listable(content: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&content[..content.len().min(LISTED_BYTES_MAX)])
}

fn author(row: &Row<'_>) -> rusqlite::Result<Author> {
    let nickname = row::bytes(row, 5)?;
    let Some(user) = row::id(row, 4, UserId::from_sql)? else {
        return Ok(if nickname.is_empty() { Author::System } else { Author::Visitor { nickname: nickname.into() } });
    };
    let current = row::name(row, 6)?;
    if current.is_empty() {
        return Ok(Author::MissingAccount { user });
    }
    Ok(Author::Account { user, nickname: current, flags: row::flags(row, 7)? })
}

fn nickname_of<'a>(author: &'a Author, posted_as: &'a [u8]) -> &'a [u8] {
    match author {
        Author::Account { nickname, .. } => nickname,
        _ => posted_as,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::row::plan;

    /// Cost that grows with the history shows in a plan as a scan, a sort, or another index than the one meant.
    fn check(sql: &str, params: impl rusqlite::Params, index: &str) {
        let plan = plan(sql, params);
        assert!(plan.contains(index), "{plan}");
        assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{plan}");
    }

    #[test]
    fn roots_are_read_in_the_order_of_their_index() {
        for sql in [NEWEST_ROOTS, OLDEST_ROOTS] {
            check(sql, [1, 2, 3, 4, 5, 6], "SEARCH m USING INDEX scd_message_roots (<expr>=? AND rowid");
            check(
                sql,
                [1, 2, 3, 4, 5, 6],
                "SEARCH r USING COVERING INDEX scd_message_threads (thread_root_id=? AND deleted_at=?",
            );
        }
    }

    #[test]
    fn unrepaired_files_are_only_searched_too() {
        for sql in [NEWEST_ROOTS_UNREPAIRED, OLDEST_ROOTS_UNREPAIRED] {
            let plan = plan(sql, [1, 2, 3, 4, 5, 6]).replace("SCAN below", "");
            assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{plan}");
        }
        assert!(!plan(SKELETON_UNREPAIRED, [1, 2, 3, 4]).replace("SCAN below", "").contains("SCAN"));
    }

    #[test]
    fn a_skeleton_is_read_from_its_index_alone() {
        check(SKELETON, [1, 2, 3, 4], "USING COVERING INDEX scd_message_threads (thread_root_id=?)");
        check(REPLY, [1, 2, 3, 4], "SEARCH m USING INTEGER PRIMARY KEY");
        check(FORMER, [1], "SEARCH e USING INDEX scd_message_versions (message_id=?");
    }
}
