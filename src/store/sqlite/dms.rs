//! Direct messages, writing (BEHAVIOUR.md 4): keys, invitations, conversations. Looking them up is in [`super::dm_rows`].
//!
//! A conversation is a channel with participants; its name says whether it is encrypted, for this and any other server.
//! Accounts have a row of access as well, because that is where the existing server looks.

use rusqlite::{Connection, params};

use super::channels;
use super::dm_rows::{self, Key, Pair, is_encrypted, pair_name};
use super::messages;
use super::row::{self, FOREIGN_KEY, Failure, Text};
use super::visitors::SessionIds;
use super::writer::Scope;
use crate::ids::{ChannelId, InviteId, SessionId, UserId};
use crate::limits::{INVITE_REPEAT_MS, OPEN_INVITES_MAX};
use crate::store::{Dm, DmLeft, DmSide, EncryptionStatus, Event, Name, Participant, PublicKey, Refusal};

/// Hours that a conversation keeps its messages, as the existing server sets it.
const RETENTION_HOURS: u32 = 168;

/// Messages that go along with the last participant in one transaction: some milliseconds of the writer's time.
const MESSAGES_AT_ONCE: usize = 200;

pub(super) fn start(
    scope: &mut Scope<'_>,
    initiator: &Participant,
    target: &Participant,
    allow_unencrypted: bool,
) -> Result<Event, Failure> {
    let pair = [initiator, target];
    if let Some(channel) = dm_rows::between(scope.conn, scope.sessions, pair)? {
        return opened(scope, channel, pair, false);
    }
    if let Some(channel) = reopen(scope, pair)? {
        return opened(scope, channel, pair, true);
    }
    let [own, others] = keys(scope, pair)?;
    if own.is_none() && !allow_unencrypted {
        return Err(Refusal::KeyRequired.into());
    }
    if own.is_some() && others.is_some() {
        return open(scope, pair, true);
    }
    invite(scope, pair, !allow_unencrypted)
}

fn keys(scope: &Scope<'_>, pair: Pair<'_>) -> rusqlite::Result<[Option<PublicKey>; 2]> {
    let key = |who: &Participant| who.user.map_or(Ok(None), |user| dm_rows::key(scope.conn, user));
    Ok([key(pair[0])?, key(pair[1])?])
}

fn opened(scope: &Scope<'_>, channel: ChannelId, pair: Pair<'_>, is_new: bool) -> Result<Event, Failure> {
    Ok(Event::DmOpened { dm: Box::new(found(scope, channel, pair)?), is_new })
}

/// A conversation that was just found or made.
fn found(scope: &Scope<'_>, channel: ChannelId, pair: Pair<'_>) -> Result<Dm, Failure> {
    let channel = channels::find(scope.conn, scope.sessions, channel)?.ok_or(Refusal::ChannelNotFound)?;
    let is_encrypted = is_encrypted(&channel.name, pair);
    let side = |who: &Participant| dm_rows::side(scope.conn, who, is_encrypted);
    let sides = [side(pair[0])?, side(pair[1])?];
    Ok(Dm { channel, sides })
}

/// Brings back whoever left a conversation that the other one still has (D-25): its id, and so its key, stay the same.
fn reopen(scope: &Scope<'_>, pair: Pair<'_>) -> Result<Option<ChannelId>, Failure> {
    let (Some(one), Some(other)) = (pair[0].user, pair[1].user) else { return Ok(None) };
    for (leaver, left, stayed) in [(pair[0], one, other), (pair[1], other, one)] {
        if let Some(channel) = dm_rows::left_by(scope.conn, left, stayed)? {
            row::execute(
                scope.conn,
                "DELETE FROM scd_dm_former WHERE channel_id = ?1 AND user_id = ?2",
                [channel.as_sql(), left.as_sql()],
            )?;
            admit(scope, channel, leaver)?;
            return Ok(Some(channel));
        }
    }
    Ok(None)
}

fn open(scope: &mut Scope<'_>, pair: Pair<'_>, is_encrypted: bool) -> Result<Event, Failure> {
    let dm = open_channel(scope, pair, is_encrypted)?;
    Ok(Event::DmOpened { dm: Box::new(dm), is_new: true })
}

/// A new channel for two; their invitations are answered by it, in both directions.
fn open_channel(scope: &mut Scope<'_>, pair: Pair<'_>, is_encrypted: bool) -> Result<Dm, Failure> {
    let name = match pair_name(pair).filter(|_| is_encrypted) {
        Some(name) => name,
        None => format!("dm_{}_{}", number(scope, pair[0])?, number(scope, pair[1])?),
    };
    let name = free_name(scope, name)?;
    row::execute(
        scope.conn,
        "INSERT INTO Channel (name, display_name, description, channel_type, message_retention_hours, created_at,
                              is_private, is_dm)
         VALUES (?1, 'Direct Message', '', 0, ?2, ?3, 1, 1)",
        params![name, RETENTION_HOURS, scope.now],
    )?;
    let channel = ChannelId::from_sql(scope.conn.last_insert_rowid());
    for who in pair {
        admit(scope, channel, who)?;
    }
    close_invites(scope, pair)?;
    found(scope, channel, pair)
}

/// What stands for a side in the name of a conversation without encryption: a visitor's session, or a number of no other
/// use.
fn number(scope: &mut Scope<'_>, who: &Participant) -> Result<i64, Refusal> {
    match who.session {
        Some(session) if who.user.is_none() => Ok(scope.sessions.stored(session)),
        _ => scope.ids.next(scope.now).ok_or(Refusal::Database),
    }
}

/// Names are unique, and older servers let anybody have a channel called like a conversation (D-06).
fn free_name(scope: &Scope<'_>, name: String) -> rusqlite::Result<String> {
    let is_taken = |name: &str| row::exists(scope.conn, "SELECT 1 FROM Channel WHERE name = ?1", [name]);
    let mut free = name.clone();
    let mut number = 1_u32;
    while is_taken(&free)? {
        number += 1;
        free = format!("{name}-{number}");
    }
    Ok(free)
}

fn admit(scope: &Scope<'_>, channel: ChannelId, who: &Participant) -> Result<(), Failure> {
    let key = Key::of(scope.sessions, who);
    let insert = row::execute(
        scope.conn,
        "INSERT INTO ChannelParticipant (channel_id, user_id, session_id, nickname, joined_at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![channel.as_sql(), key.user(), key.session(), Text(&who.nickname), scope.now],
    );
    // The channel is there, so a missing row can only be the account's.
    insert.map_err(row::constraints(&[(FOREIGN_KEY, Refusal::UserNotFound)]))?;
    if let Some(user) = who.user {
        row::execute(
            scope.conn,
            "INSERT OR IGNORE INTO ChannelAccess (channel_id, user_id, created_at) VALUES (?1, ?2, ?3)",
            params![channel.as_sql(), user.as_sql(), scope.now],
        )?;
    }
    Ok(())
}

fn close_invites(scope: &Scope<'_>, pair: Pair<'_>) -> rusqlite::Result<()> {
    for (initiator, target) in [(pair[0], pair[1]), (pair[1], pair[0])] {
        if let Some(id) = open_invite(scope, initiator, target)? {
            delete_invite(scope, id)?;
        }
    }
    Ok(())
}

fn delete_invite(scope: &Scope<'_>, id: InviteId) -> rusqlite::Result<()> {
    row::execute(scope.conn, "DELETE FROM DMInvite WHERE id = ?1", [id.as_sql()]).map(drop)
}

fn open_invite(scope: &Scope<'_>, initiator: &Participant, target: &Participant) -> rusqlite::Result<Option<InviteId>> {
    let (initiator, target) = (Key::of(scope.sessions, initiator), Key::of(scope.sessions, target));
    let sql = format!(
        "SELECT id FROM DMInvite WHERE {} AND {}",
        initiator.condition("initiator_", 1),
        target.condition("target_", 2)
    );
    let id = row::first(scope.conn, &sql, [initiator.value(), target.value()], |row| row::number(row, 0))?;
    Ok(id.map(InviteId::from_sql))
}

/// A new invitation, or the open one again: its target is not shown it more than once a minute (D-21).
fn invite(scope: &Scope<'_>, pair: Pair<'_>, is_required: bool) -> Result<Event, Failure> {
    let (id, is_told) = match open_invite(scope, pair[0], pair[1])? {
        Some(id) => (id, is_due(scope, id)?),
        None => (insert_invite(scope, pair)?, true),
    };
    row::execute(
        scope.conn,
        "INSERT INTO scd_dm_invite (invite_id, encryption_required, shown_at, initiator_nickname, target_nickname)
         VALUES (?1, ?2, ?3, ?5, ?6)
         ON CONFLICT (invite_id) DO UPDATE SET encryption_required = excluded.encryption_required,
             shown_at = CASE WHEN ?4 THEN excluded.shown_at ELSE shown_at END",
        params![id.as_sql(), is_required, scope.now, is_told, Text(&pair[0].nickname), Text(&pair[1].nickname)],
    )?;
    let invite = dm_rows::invite(scope.conn, scope.sessions, id)?.ok_or(Refusal::InviteNotFound)?;
    Ok(Event::DmInvited { invite: Box::new(invite), is_told })
}

fn is_due(scope: &Scope<'_>, id: InviteId) -> rusqlite::Result<bool> {
    let recent = "SELECT 1 FROM scd_dm_invite WHERE invite_id = ?1 AND shown_at BETWEEN ?2 + 1 AND ?3";
    let since = scope.now.saturating_sub(INVITE_REPEAT_MS);
    row::exists(scope.conn, recent, [id.as_sql(), since, scope.now]).map(|is_recent| !is_recent)
}

fn insert_invite(scope: &Scope<'_>, pair: Pair<'_>) -> Result<InviteId, Failure> {
    let [initiator, target] = pair.map(|who| Key::of(scope.sessions, who));
    let sql = format!("SELECT count(*) FROM DMInvite WHERE {}", initiator.condition("initiator_", 1));
    let open = row::first(scope.conn, &sql, [initiator.value()], |row| row::number(row, 0))?.unwrap_or_default();
    if open >= OPEN_INVITES_MAX.into() {
        return Err(Refusal::TooManyInvites.into());
    }
    let insert = row::execute(
        scope.conn,
        "INSERT INTO DMInvite (initiator_user_id, initiator_session_id, target_user_id, target_session_id, is_encrypted,
                               created_at)
         VALUES (?1, ?2, ?3, ?4, 0, ?5)",
        params![initiator.user(), initiator.session(), target.user(), target.session(), scope.now],
    );
    insert.map_err(row::constraints(&[(FOREIGN_KEY, Refusal::UserNotFound)]))?;
    Ok(InviteId::from_sql(scope.conn.last_insert_rowid()))
}

pub(super) fn accept(scope: &mut Scope<'_>, id: InviteId, by: &Participant) -> Result<Event, Failure> {
    let invite = dm_rows::invite(scope.conn, scope.sessions, id)?.ok_or(Refusal::InviteNotFound)?;
    if !invite.target.is_same(by) {
        return Err(Refusal::NotInvited.into());
    }
    if dm_rows::is_gone(&invite.initiator) {
        return Err(Refusal::InviteNotFound.into());
    }
    let pair = [by, &invite.initiator];
    if let Some(channel) = dm_rows::between(scope.conn, scope.sessions, pair)? {
        close_invites(scope, pair)?;
        return opened(scope, channel, pair, true);
    }
    if invite.encryption != EncryptionStatus::Required {
        return open(scope, pair, false);
    }
    match keys(scope, pair)? {
        [Some(_), Some(_)] => open(scope, pair, true),
        _ => Ok(Event::DmNeedsKey { invite: Box::new(invite) }),
    }
}

pub(super) fn decline(scope: &Scope<'_>, id: InviteId, by: &Participant) -> Result<Event, Failure> {
    let mut invite = dm_rows::invite(scope.conn, scope.sessions, id)?.ok_or(Refusal::InviteNotFound)?;
    if !invite.target.is_same(by) {
        return Err(Refusal::NotInvited.into());
    }
    delete_invite(scope, id)?;
    invite.target = by.clone();
    Ok(Event::DmDeclined { invite: Box::new(invite) })
}

/// Stores the key and opens what waited for it: invitations of this account and to it, where the other side has one. Other
/// conversations are only looked up where somebody is to be told of them.
pub(super) fn provide_key(
    scope: &mut Scope<'_>,
    user: UserId,
    key: &PublicKey,
    is_first: bool,
) -> Result<Event, Failure> {
    let nickname =
        row::first(scope.conn, "SELECT nickname FROM User WHERE id = ?1", [user.as_sql()], |row| row::name(row, 0))?;
    let own = Participant { user: Some(user), session: None, nickname: nickname.ok_or(Refusal::UserNotFound)? };
    let changed = row::execute(
        scope.conn,
        "UPDATE User SET encryption_public_key = ?2 WHERE id = ?1 AND encryption_public_key IS NOT ?2",
        params![user.as_sql(), &key[..]],
    )?;
    let is_changed = changed > 0;
    let others = match is_changed || is_first {
        true => dm_rows::encrypted_of(scope.conn, scope.sessions, &own)?,
        false => Vec::new(),
    };
    let mut opened = Vec::new();
    for other in dm_rows::waiting_for_key(scope.conn, user)? {
        let pair = [&own, &other];
        if dm_rows::between(scope.conn, scope.sessions, pair)?.is_some() {
            close_invites(scope, pair)?;
        } else {
            opened.push(open_channel(scope, pair, true)?);
        }
    }
    let own = Box::new(DmSide { who: own, key: Some(*key) });
    Ok(Event::KeyProvided { own, opened, others, is_changed })
}

pub(super) fn leave(scope: &mut Scope<'_>, channel: ChannelId, leaver: &Participant) -> Result<Event, Failure> {
    let left = remove(scope, channel, leaver)?.ok_or(Refusal::NotParticipant)?;
    Ok(Event::DmLeft(Box::new(left)))
}

/// The visitor's conversations go on without it, and nobody can answer its invitations any more.
pub(super) fn forget_visitor(scope: &mut Scope<'_>, session: SessionId) -> Result<Event, Failure> {
    let stored = scope.sessions.stored(session);
    row::execute(
        scope.conn,
        "DELETE FROM DMInvite WHERE (initiator_user_id IS NULL AND initiator_session_id = ?1)
                                 OR (target_user_id IS NULL AND target_session_id = ?1)",
        [stored],
    )?;
    let joined = row::all(
        scope.conn,
        "SELECT channel_id, nickname FROM ChannelParticipant WHERE user_id IS NULL AND session_id = ?1 ORDER BY id",
        [stored],
        |row| Ok((ChannelId::from_sql(row::number(row, 0)?), row::name(row, 1)?)),
    )?;
    let mut left = Vec::with_capacity(joined.len());
    for (channel, nickname) in joined {
        let visitor = Participant { user: None, session: Some(session), nickname };
        left.extend(remove(scope, channel, &visitor)?);
    }
    Ok(Event::VisitorForgotten { left })
}

/// The account leaves every conversation, because it is going to be deleted: nothing may name it any more.
pub(super) fn leave_all(scope: &mut Scope<'_>, user: UserId, nickname: &Name) -> Result<Vec<DmLeft>, Failure> {
    let joined = row::all(
        scope.conn,
        "SELECT channel_id FROM ChannelParticipant WHERE user_id = ?1 ORDER BY id",
        [user.as_sql()],
        |row| row::number(row, 0).map(ChannelId::from_sql),
    )?;
    let who = Participant { user: Some(user), session: None, nickname: nickname.clone() };
    let mut left = Vec::with_capacity(joined.len());
    for channel in joined {
        left.extend(remove(scope, channel, &who)?);
    }
    row::execute(scope.conn, "UPDATE scd_dm_former SET user_id = NULL WHERE user_id = ?1", [user.as_sql()])?;
    Ok(left)
}

/// Takes somebody out; the last one takes everything along. `None` when they were not in it.
fn remove(scope: &mut Scope<'_>, channel: ChannelId, who: &Participant) -> Result<Option<DmLeft>, Failure> {
    let key = Key::of(scope.sessions, who);
    let sql = format!("DELETE FROM ChannelParticipant WHERE channel_id = ?2 AND {}", key.condition("", 1));
    if row::execute(scope.conn, &sql, [key.value(), channel.as_sql()])? == 0 {
        return Ok(None);
    }
    row::execute(
        scope.conn,
        "DELETE FROM ChannelAccess WHERE channel_id = ?1 AND user_id = ?2",
        params![channel.as_sql(), key.user()],
    )?;
    let remains = "SELECT 1 FROM ChannelParticipant WHERE channel_id = ?1";
    note_former(scope, channel, who)?;
    let rest = if row::exists(scope.conn, remains, [channel.as_sql()])? {
        note_leaving(scope, channel, who)?;
        channels::find(scope.conn, scope.sessions, channel)?
    } else {
        // The existing server kept the access of whoever left before, who would be brought back by it (D-25).
        row::execute(scope.conn, "DELETE FROM ChannelAccess WHERE channel_id = ?1", [channel.as_sql()])?;
        // What is too much for one transaction goes in batches, later.
        remove_messages(scope.conn, channel, MESSAGES_AT_ONCE)?;
        None
    };
    Ok(Some(DmLeft { channel, who: who.clone(), rest }))
}

/// Removes messages of a conversation that everybody has left, and in the end the conversation; how many.
fn remove_messages(conn: &Connection, channel: ChannelId, budget: usize) -> rusqlite::Result<usize> {
    let removed = remove_newest(conn, channel, budget)?;
    if removed < budget {
        row::execute(conn, "DELETE FROM Channel WHERE id = ?1", [channel.as_sql()])?;
    }
    Ok(removed)
}

/// Removes the newest messages of a place, at most `budget`; how many. One by one, replies before what they answer: a row
/// takes its replies along, each of these its own, and SQLite follows no more than 1000 of them downwards.
pub(super) fn remove_newest(conn: &Connection, place: ChannelId, budget: usize) -> rusqlite::Result<usize> {
    let params = params![place.as_sql(), i64::try_from(budget).unwrap_or(i64::MAX)];
    let newest = row::all(conn, NEWEST, params, |row| row::number(row, 0))?;
    for id in &newest {
        row::execute(conn, "DELETE FROM Message WHERE id = ?1", [id])?;
    }
    Ok(newest.len())
}

/// By their time first, so that a piece of a place is found without sorting all of it.
const NEWEST: &str = "
    SELECT id FROM Message INDEXED BY scd_message_places WHERE COALESCE(subchannel_id, channel_id) = ?1
    ORDER BY created_at DESC, id DESC LIMIT ?2";

/// Which conversations without anybody in them are cleaned up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abandoned {
    /// Those that our own users left.
    LeftHere,
    /// Those that other programs left behind as well.
    All,
}

/// Goes on where [`remove`] stopped: about `budget` rows at once, 0 when nothing is left to do. Whoever has access but is no
/// participant may be somebody that the existing server knows.
pub(super) fn clean_abandoned(conn: &Connection, which: Abandoned, budget: usize) -> rusqlite::Result<usize> {
    let abandoned = row::first(
        conn,
        "SELECT id FROM Channel AS c
         WHERE is_dm <> 0 AND NOT EXISTS (SELECT 1 FROM ChannelParticipant WHERE channel_id = c.id)
           AND NOT EXISTS (SELECT 1 FROM ChannelAccess WHERE channel_id = c.id)
           AND (?1 OR EXISTS (SELECT 1 FROM scd_dm_former WHERE channel_id = c.id))
         LIMIT 1",
        [which == Abandoned::All],
        |row| row::number(row, 0).map(ChannelId::from_sql),
    )?;
    // The conversation itself counts as a row, so that the next one is looked for.
    abandoned.map_or(Ok(0), |channel| remove_messages(conn, channel, budget).map(|removed| removed + 1))
}

/// Visitors whom a crash kept from leaving are taken out; how many. Those they talked with find that they have left.
pub(super) fn forget_earlier_visitors(conn: &Connection, sessions: SessionIds, now: i64) -> rusqlite::Result<usize> {
    let first = sessions.stored(SessionId(0));
    row::execute(
        conn,
        "INSERT INTO scd_dm_former (channel_id, nickname, left_at)
         SELECT channel_id, nickname, ?2 FROM ChannelParticipant WHERE user_id IS NULL AND session_id <= ?1",
        [first, now],
    )?;
    row::execute(conn, "DELETE FROM DMInvite WHERE initiator_user_id IS NULL AND initiator_session_id <= ?1", [first])?;
    row::execute(conn, "DELETE FROM DMInvite WHERE target_user_id IS NULL AND target_session_id <= ?1", [first])?;
    row::execute(conn, "DELETE FROM ChannelParticipant WHERE user_id IS NULL AND session_id <= ?1", [first])
}

/// With whom the conversation was, and that it was left here.
fn note_former(scope: &Scope<'_>, channel: ChannelId, who: &Participant) -> rusqlite::Result<()> {
    row::execute(
        scope.conn,
        "INSERT INTO scd_dm_former (channel_id, user_id, nickname, left_at) VALUES (?1, ?2, ?3, ?4)",
        params![channel.as_sql(), who.user.map(UserId::as_sql), Text(&who.nickname), scope.now],
    )
    .map(drop)
}

/// A line in the history for whoever stays.
fn note_leaving(scope: &mut Scope<'_>, channel: ChannelId, who: &Participant) -> Result<(), Failure> {
    let id = scope.ids.next(scope.now).ok_or(Refusal::Database)?;
    let line = [&who.nickname[..], b" has left the conversation"].concat();
    row::execute(
        scope.conn,
        "INSERT INTO Message (id, channel_id, thread_root_id, author_nickname, content, created_at)
         VALUES (?1, ?2, ?1, '', ?3, ?4)",
        params![id, channel.as_sql(), Text(&line), scope.now],
    )?;
    messages::note_activity(scope, id, id)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_messages_of_a_place_are_found_without_sorting_it() {
        let plan = row::plan(NEWEST, [1, 2]);
        assert!(plan.contains("COVERING INDEX scd_message_places"), "{plan}");
        assert!(plan.contains("USE TEMP B-TREE FOR LAST TERM OF ORDER BY"), "{plan}");
    }
}
