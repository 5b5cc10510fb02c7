//! Direct messages, looking them up (BEHAVIOUR.md 4): who is in a conversation, which ones there are, what is open.

use rusqlite::{Connection, Row, params};

use super::channels;
use super::row;
use super::visitors::SessionIds;
use crate::ids::{ChannelId, InviteId, UserId};
use crate::limits::DMS_TOLD_MAX;
use crate::store::{
    Answer, DmFound, DmOverview, DmSide, EncryptionStatus, Invite, Name, Participant, PublicKey, Viewer,
};

/// The two sides of a conversation; whoever acts comes first.
pub(super) type Pair<'a> = [&'a Participant; 2];

/// What a side is found by.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key {
    User(i64),
    /// A visitor: the session as the file knows it.
    Session(i64),
}

impl Key {
    pub(super) fn of(sessions: SessionIds, who: &Participant) -> Self {
        match (who.user, who.session) {
            (Some(user), _) => Self::User(user.as_sql()),
            (None, Some(session)) => Self::Session(sessions.stored(session)),
            // Nobody; no row has this.
            (None, None) => Self::Session(-1),
        }
    }

    /// SQL that holds for rows of this side, whose columns begin with `prefix`; parameter `place` is [`Self::value`].
    pub(super) fn condition(self, prefix: &str, place: usize) -> String {
        match self {
            Self::User(_) => format!("{prefix}user_id = ?{place}"),
            Self::Session(_) => format!("{prefix}user_id IS NULL AND {prefix}session_id = ?{place}"),
        }
    }

    pub(super) fn value(self) -> i64 {
        match self {
            Self::User(value) | Self::Session(value) => value,
        }
    }

    pub(super) fn user(self) -> Option<i64> {
        if let Self::User(user) = self { Some(user) } else { None }
    }

    pub(super) fn session(self) -> Option<i64> {
        if let Self::Session(session) = self { Some(session) } else { None }
    }
}

/// The name of an encrypted conversation between two accounts.
pub(super) fn pair_name(pair: Pair<'_>) -> Option<String> {
    let (one, other) = (pair[0].user?, pair[1].user?);
    Some(format!("dm_{}_{}", one.min(other), one.max(other)))
}

/// Whether a conversation called `name` was encrypted from its beginning (D-23). Behind a dash a number may follow.
pub(super) fn is_encrypted(name: &Name, pair: Pair<'_>) -> bool {
    let Some(rest) = pair_name(pair).and_then(|encrypted| name.strip_prefix(encrypted.as_bytes())) else {
        return false;
    };
    rest.is_empty() || rest[0] == b'-'
}

/// A visitor of an earlier run, who cannot come back.
pub(super) fn is_gone(who: &Participant) -> bool {
    who.user.is_none() && who.session.is_none()
}

/// Whether the channel is open to everybody, or a conversation that `viewer` takes part in.
pub(super) fn may_see(
    conn: &Connection,
    sessions: SessionIds,
    channel: ChannelId,
    viewer: Viewer,
) -> rusqlite::Result<bool> {
    let is_dm = row::exists(conn, "SELECT 1 FROM Channel WHERE id = ?1 AND is_dm <> 0", [channel.as_sql()])?;
    Ok(!is_dm || takes_part(conn, sessions, channel, viewer)?)
}

pub(super) fn takes_part(
    conn: &Connection,
    sessions: SessionIds,
    channel: ChannelId,
    viewer: Viewer,
) -> rusqlite::Result<bool> {
    let key = match viewer.user {
        Some(user) => Key::User(user.as_sql()),
        None => Key::Session(sessions.stored(viewer.session)),
    };
    let sql = format!("SELECT 1 FROM ChannelParticipant WHERE channel_id = ?2 AND {}", key.condition("", 1));
    row::exists(conn, &sql, [key.value(), channel.as_sql()])
}

/// The conversation that both take part in, the oldest if old files hold several.
pub(super) fn between(conn: &Connection, sessions: SessionIds, pair: Pair<'_>) -> rusqlite::Result<Option<ChannelId>> {
    let [one, other] = pair.map(|who| Key::of(sessions, who));
    let id = row::first(conn, &between_sql(one, other), [one.value(), other.value()], |row| row::number(row, 0))?;
    Ok(id.map(ChannelId::from_sql))
}

fn between_sql(one: Key, other: Key) -> String {
    format!(
        "SELECT c.id FROM ChannelParticipant AS a
         JOIN ChannelParticipant AS b ON b.channel_id = a.channel_id
         JOIN Channel AS c ON c.id = a.channel_id
         WHERE c.is_dm <> 0 AND {} AND {} ORDER BY c.id LIMIT 1",
        one.condition("a.", 1),
        other.condition("b.", 2)
    )
}

/// A conversation that `leaver` left and `stayed` still has. The existing server kept a leaver's access, and nothing else
/// of it (D-25).
pub(super) fn left_by(conn: &Connection, leaver: UserId, stayed: UserId) -> rusqlite::Result<Option<ChannelId>> {
    let id = row::first(conn, LEFT_BY, [leaver.as_sql(), stayed.as_sql()], |row| row::number(row, 0))?;
    Ok(id.map(ChannelId::from_sql))
}

const LEFT_BY: &str = "
    SELECT c.id FROM ChannelParticipant AS p JOIN Channel AS c ON c.id = p.channel_id
    WHERE p.user_id = ?2 AND c.is_dm <> 0
      AND NOT EXISTS (SELECT 1 FROM ChannelParticipant WHERE channel_id = c.id AND user_id = ?1)
      AND (EXISTS (SELECT 1 FROM scd_dm_former WHERE channel_id = c.id AND user_id = ?1)
        OR EXISTS (SELECT 1 FROM ChannelAccess WHERE channel_id = c.id AND user_id = ?1))
    ORDER BY c.id LIMIT 1";

/// An account's public key; a damaged one is none.
pub(super) fn key(conn: &Connection, user: UserId) -> rusqlite::Result<Option<PublicKey>> {
    let key = row::first(conn, "SELECT encryption_public_key FROM User WHERE id = ?1", [user.as_sql()], |row| {
        Ok(PublicKey::try_from(row::bytes(row, 0)?).ok())
    })?;
    Ok(key.flatten())
}

/// A side as the other is told of it: an account by its nickname of today.
pub(super) fn side(conn: &Connection, who: &Participant, is_encrypted: bool) -> rusqlite::Result<DmSide> {
    let mut who = who.clone();
    let Some(user) = who.user else { return Ok(DmSide { who, key: None }) };
    let current =
        row::first(conn, "SELECT nickname FROM User WHERE id = ?1", [user.as_sql()], |row| row::name(row, 0))?;
    who.nickname = current.unwrap_or(who.nickname);
    let key = if is_encrypted { key(conn, user)? } else { None };
    Ok(DmSide { who, key })
}

/// The conversation as `own` finds it; `None` when it is with nobody, as damaged files may hold.
fn found(
    conn: &Connection,
    sessions: SessionIds,
    channel: ChannelId,
    own: &Participant,
) -> rusqlite::Result<Option<DmFound>> {
    let Some(info) = channels::find(conn, sessions, channel)? else { return Ok(None) };
    let inside = info.participants.iter().flat_map(|inside| inside.iter());
    let (other, has_left) = match inside.into_iter().find(|participant| !participant.is_same(own)) {
        Some(other) => (other.clone(), is_gone(other)),
        None => match former(conn, channel)? {
            Some(other) => (other, true),
            None => return Ok(None),
        },
    };
    let is_encrypted = is_encrypted(&info.name, [own, &other]);
    Ok(Some(DmFound { channel, other: side(conn, &other, is_encrypted)?, has_left }))
}

fn former(conn: &Connection, channel: ChannelId) -> rusqlite::Result<Option<Participant>> {
    row::first(
        conn,
        "SELECT user_id, nickname FROM scd_dm_former WHERE channel_id = ?1 ORDER BY left_at DESC LIMIT 1",
        [channel.as_sql()],
        |row| Ok(Participant { user: row::id(row, 0, UserId::from_sql)?, session: None, nickname: row::name(row, 1)? }),
    )
}

/// The conversations of an account.
fn all_of(conn: &Connection, sessions: SessionIds, own: &Participant) -> rusqlite::Result<Vec<DmFound>> {
    let channels = channels_of(conn, own.user)?.into_iter();
    channels.filter_map(|channel| found(conn, sessions, channel, own).transpose()).collect()
}

/// Those that are encrypted.
pub(super) fn encrypted_of(
    conn: &Connection,
    sessions: SessionIds,
    own: &Participant,
) -> rusqlite::Result<Vec<DmFound>> {
    let mut encrypted = all_of(conn, sessions, own)?;
    encrypted.retain(|found| found.other.key.is_some());
    Ok(encrypted)
}

/// The newest conversations of an account, oldest first.
fn channels_of(conn: &Connection, user: Option<UserId>) -> rusqlite::Result<Vec<ChannelId>> {
    let params = params![user.map(UserId::as_sql), DMS_TOLD_MAX];
    let mut channels = row::all(conn, CHANNELS_OF, params, |row| row::number(row, 0).map(ChannelId::from_sql))?;
    channels.reverse();
    Ok(channels)
}

const CHANNELS_OF: &str = "
    SELECT p.channel_id FROM ChannelParticipant AS p JOIN Channel AS c ON c.id = p.channel_id
    WHERE p.user_id = ?1 AND c.is_dm <> 0 ORDER BY p.channel_id DESC LIMIT ?2";

/// Accounts with a key that share an open invitation with `user`.
pub(super) fn waiting_for_key(conn: &Connection, user: UserId) -> rusqlite::Result<Vec<Participant>> {
    row::all(conn, WAITING_FOR_KEY, [user.as_sql()], |row| {
        Ok(Participant { user: row::id(row, 0, UserId::from_sql)?, session: None, nickname: row::name(row, 1)? })
    })
}

const WAITING_FOR_KEY: &str = "
    SELECT u.id, u.nickname FROM DMInvite AS i JOIN User AS u ON u.id = i.initiator_user_id
    WHERE i.target_user_id = ?1 AND length(u.encryption_public_key) = 32
    UNION
    SELECT u.id, u.nickname FROM DMInvite AS i JOIN User AS u ON u.id = i.target_user_id
    WHERE i.initiator_user_id = ?1 AND length(u.encryption_public_key) = 32";

macro_rules! invites {
    ($condition:literal) => {
        concat!(
            "SELECT i.id, i.initiator_user_id, i.initiator_session_id, a.nickname, i.target_user_id, i.target_session_id,
                    b.nickname, length(a.encryption_public_key), own.encryption_required, own.initiator_nickname,
                    own.target_nickname
             FROM DMInvite AS i LEFT JOIN User AS a ON a.id = i.initiator_user_id
             LEFT JOIN User AS b ON b.id = i.target_user_id LEFT JOIN scd_dm_invite AS own ON own.invite_id = i.id
             WHERE ",
            $condition
        )
    };
}

pub(super) fn invite(conn: &Connection, sessions: SessionIds, id: InviteId) -> rusqlite::Result<Option<Invite>> {
    row::first(conn, invites!("i.id = ?1"), [id.as_sql()], |row| read_invite(sessions, row))
}

fn read_invite(sessions: SessionIds, row: &Row<'_>) -> rusqlite::Result<Invite> {
    let side = |user: usize, session: usize, current: usize, visitor: usize| {
        let user = row::id(row, user, UserId::from_sql)?;
        let session = row::integer(row, session)?.filter(|_| user.is_none());
        let nickname = row::name(row, if user.is_some() { current } else { visitor })?;
        Ok::<_, rusqlite::Error>(Participant { user, session: session.and_then(|id| sessions.live(id)), nickname })
    };
    let has_key = row::number(row, 7)? == 32;
    let is_required = row::number(row, 8)? != 0;
    Ok(Invite {
        id: InviteId::from_sql(row::number(row, 0)?),
        initiator: side(1, 2, 3, 9)?,
        target: side(4, 5, 6, 10)?,
        encryption: match (has_key, is_required) {
            (false, _) => EncryptionStatus::Impossible,
            (true, true) => EncryptionStatus::Required,
            (true, false) => EncryptionStatus::Optional,
        },
    })
}

/// BEHAVIOUR.md 4.2, step 3 and the key of step 4.
pub(super) fn lookup(
    conn: &Connection,
    sessions: SessionIds,
    viewer: Viewer,
    other: &Participant,
) -> rusqlite::Result<Answer> {
    let own = Participant {
        user: viewer.user,
        session: viewer.user.is_none().then_some(viewer.session),
        nickname: Name::from(&b""[..]),
    };
    let found = match between(conn, sessions, [&own, other])? {
        Some(channel) => found(conn, sessions, channel, &own)?,
        None => None,
    };
    let has_key = viewer.user.map_or(Ok(None), |user| key(conn, user))?.is_some();
    Ok(Answer::Dm { found, has_key })
}

/// BEHAVIOUR.md 4.9. What only visitors who are gone could answer is left out.
pub(super) fn overview(conn: &Connection, sessions: SessionIds, user: UserId) -> rusqlite::Result<DmOverview> {
    let own = Participant { user: Some(user), session: None, nickname: Name::from(&b""[..]) };
    let invites = |sql: &str| {
        let params = params![user.as_sql(), DMS_TOLD_MAX];
        let mut invites = row::all(conn, sql, params, |row| read_invite(sessions, row))?;
        invites.retain(|invite| !is_gone(&invite.initiator) && !is_gone(&invite.target));
        invites.reverse();
        Ok::<_, rusqlite::Error>(invites)
    };
    Ok(DmOverview {
        user,
        found: all_of(conn, sessions, &own)?,
        requests: invites(invites!("i.target_user_id = ?1 ORDER BY i.id DESC LIMIT ?2"))?,
        pending: invites(invites!("i.initiator_user_id = ?1 ORDER BY i.id DESC LIMIT ?2"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::row::plan;

    /// Who talks to whom must not become slower with the number of conversations.
    fn check(sql: &str, params: impl rusqlite::Params) {
        let plan = plan(sql, params);
        assert!(!plan.contains("SCAN"), "{plan}");
    }

    #[test]
    fn conversations_and_invitations_are_found_by_their_sides() {
        for (one, other) in
            [(Key::User(1), Key::User(2)), (Key::User(1), Key::Session(2)), (Key::Session(1), Key::Session(2))]
        {
            check(&between_sql(one, other), [1, 2]);
        }
        check(LEFT_BY, [1, 2]);
        check(CHANNELS_OF, [1, 2]);
        check(WAITING_FOR_KEY, [1]);
        check(invites!("i.target_user_id = ?1 ORDER BY i.id DESC LIMIT ?2"), [1, 2]);
        check(invites!("i.initiator_user_id = ?1 ORDER BY i.id DESC LIMIT ?2"), [1, 2]);
    }

    #[test]
    fn a_name_tells_an_encrypted_conversation() {
        let side = |user| Participant { user: Some(UserId(user)), session: None, nickname: Name::from(&b"x"[..]) };
        let (one, other) = (side(12), side(3));
        for (name, expected) in [
            ("dm_3_12", true),
            ("dm_3_12-2", true),
            ("dm_3_120", false),
            ("dm_12_3", false),
            ("dm_9_12", false),
            ("", false),
        ] {
            assert_eq!(is_encrypted(&Name::from(name.as_bytes()), [&one, &other]), expected, "{name}");
        }
        let visitor = Participant { user: None, session: None, ..side(1) };
        assert!(!is_encrypted(&Name::from(&b"dm_3_12"[..]), [&one, &visitor]));
    }
}
