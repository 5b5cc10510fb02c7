//! People and read state (BEHAVIOUR.md 2.16 GET_USER_INFO, 2.17, 7).

use std::collections::BTreeMap;

use super::channels::{enter, may_enter};
use crate::ids::{ChannelId, SessionId, UserId};
use crate::limits::{LIST_USERS_DEFAULT, LIST_USERS_MAX, UNREAD_TARGETS_MAX};
use crate::shard::session::{Belief, SessionKey};
use crate::shard::{Person, Shard};
use crate::store::query::UnreadTarget;
use crate::store::{Answer, Command, Name, Query, Refusal};
use crate::wire::codec::List;
use crate::wire::records::{ChannelUserEntry, UnreadCount, UserEntry};
use crate::wire::{ErrorCode, client, server};

/// GET_USER_INFO: any text may be asked for.
pub fn get_user_info(shard: &mut Shard, key: SessionKey, request: &client::GetUserInfo<'_>) {
    let nickname = Name::from(request.nickname);
    let query = Query::Account { nickname: nickname.clone() };
    shard.ask(key, query, move |shard, key, answer| {
        let Answer::Account { account, .. } = answer else { return };
        let session = shard.clients.session(key);
        if session.nickname.is_none() && account.is_some() && session.busy().believes_signed_in == Belief::Unknown {
            session.busy().believes_signed_in = Belief::Likely;
        }
        let user_id = account.map(|account| account.id);
        let online = shard.roster.is_online(&nickname);
        shard.reply(key, server::UserInfo { nickname: &nickname, is_registered: user_id.is_some(), user_id, online });
    });
}

/// LIST_USERS: who is online, each nickname once, or for admins every account.
pub fn list_users(shard: &mut Shard, key: SessionKey, request: &client::ListUsers) {
    let limit = match request.limit {
        0 => LIST_USERS_DEFAULT,
        limit => limit.min(LIST_USERS_MAX),
    };
    if request.include_offline.0 != Some(true) {
        return list_online(shard, key, limit);
    }
    if !shard.clients.session(key).is_admin() {
        return shard.error(key, ErrorCode::PermissionDenied, "Admin permission required for include_offline");
    }
    shard.ask(key, Query::Accounts { limit }, |shard, key, answer| {
        let Answer::Accounts(accounts) = answer else { return };
        let entry = |account: &crate::store::Account| (account.nickname.clone(), account.id);
        let users: Vec<_> = accounts.iter().map(entry).collect();
        let users = users.iter().map(|(nickname, user)| UserEntry {
            nickname,
            is_registered: true,
            user_id: Some(*user),
            online: shard.roster.is_online(nickname),
        });
        let users = List(users.collect());
        shard.reply(key, server::UserList { users });
    });
}

fn list_online(shard: &mut Shard, key: SessionKey, limit: u16) {
    let mut by_nickname: BTreeMap<Name, Option<UserId>> = BTreeMap::new();
    for (_, person) in shard.roster.people() {
        let user = by_nickname.entry(person.nickname.clone()).or_default();
        // A registered session wins over a visitor of the same name.
        *user = user.or(person.user);
    }
    let entry = |(nickname, user): (&'_ Name, &Option<UserId>)| (nickname.clone(), *user);
    let people: Vec<_> = by_nickname.iter().take(limit.into()).map(entry).collect();
    let users = people.iter().map(|(nickname, user)| UserEntry {
        nickname,
        is_registered: user.is_some(),
        user_id: *user,
        online: true,
    });
    let users = List(users.collect());
    shard.reply(key, server::UserList { users });
}

/// LIST_CHANNEL_USERS: who has joined the place.
pub fn list_channel_users(shard: &mut Shard, key: SessionKey, request: &client::ListChannelUsers) {
    if request.channel_id == ChannelId(0) {
        return shard.error(key, ErrorCode::ChannelNotFound, "Channel not found");
    }
    let Some(place) = enter(shard, key, request.channel_id, request.subchannel_id) else { return };
    shard.note_spelling(key, place.id, place.spelling);
    let here = |(_, person): &(SessionId, &Person)| person.joined == Some(place.id);
    let mut people: Vec<(SessionId, Person)> =
        shard.roster.people().filter(here).map(|(session, person)| (session, person.clone())).collect();
    people.sort_by(|(a, left), (b, right)| left.nickname.cmp(&right.nickname).then(a.cmp(b)));
    people.truncate(u16::MAX.into());
    let users = people.iter().map(|(session_id, person)| ChannelUserEntry {
        session_id: *session_id,
        nickname: &person.nickname,
        is_registered: person.user.is_some(),
        user_id: person.user,
        user_flags: person.flags,
    });
    let users = List(users.collect());
    let (channel_id, subchannel_id) = (request.channel_id, request.subchannel_id);
    shard.reply(key, server::ChannelUserList { channel_id, subchannel_id, users });
}

/// Times below this can only be seconds: as milliseconds they lie before 1973.
const SECONDS_BELOW: i64 = 100_000_000_000;

/// A client's time in milliseconds: seconds are accepted, the future is now (BEHAVIOUR.md 7).
fn read_mark(timestamp: i64, now: i64) -> i64 {
    let milliseconds = if timestamp < SECONDS_BELOW { timestamp.max(0) * 1000 } else { timestamp };
    milliseconds.min(now)
}

/// GET_UNREAD_COUNTS: one count per target, in order.
pub fn get_unread_counts(shard: &mut Shard, key: SessionKey, request: &client::GetUnreadCounts) {
    let asked = request.targets.0.clone();
    if asked.len() > UNREAD_TARGETS_MAX {
        let text = format!("Too many targets (max {UNREAD_TARGETS_MAX})");
        return shard.error(key, ErrorCode::InvalidInput, &text);
    }
    let mut targets = Vec::with_capacity(asked.len());
    for target in &asked {
        let place = shard.channels.place(target.channel_id, target.subchannel_id).ok();
        let channel = place.filter(|place| may_enter(shard, key, *place)).map(|place| place.id);
        targets.push(UnreadTarget { channel, thread: target.thread_id });
    }
    let viewer = shard.clients.session(key).viewer();
    let since = request.since_timestamp.map(|since| read_mark(since, shard.now.wall));
    let answer = move |shard: &mut Shard, key: SessionKey, counts: &[u32]| {
        let count = |(target, count): (&crate::wire::records::UnreadTarget, &u32)| UnreadCount {
            channel_id: target.channel_id,
            subchannel_id: target.subchannel_id,
            thread_id: target.thread_id,
            unread_count: *count,
        };
        shard.reply(key, server::UnreadCounts { counts: List(asked.iter().zip(counts).map(count).collect()) });
    };
    if viewer.user.is_none() && since.is_none() {
        return answer(shard, key, &vec![0; targets.len()]);
    }
    shard.ask(key, Query::Unread { viewer, since, targets }, move |shard, key, counts| match counts {
        Answer::Unread(counts) => answer(shard, key, &counts),
        _ => shard.error(key, ErrorCode::Database, "Failed to count unread messages"),
    });
}

/// UPDATE_READ_STATE: no answer on success; visitors are ignored.
pub fn update_read_state(shard: &mut Shard, key: SessionKey, request: &client::UpdateReadState) {
    let Some(user) = shard.clients.session(key).user() else { return };
    let Ok(place) = shard.channels.place(request.channel_id, request.subchannel_id) else { return };
    if !may_enter(shard, key, place) {
        return;
    }
    let (channel, at) = (place.id, read_mark(request.timestamp, shard.now.wall));
    shard.submit(key, Command::UpdateReadState { user, channel, at }, |shard, key, result| {
        if matches!(result, Err(Refusal::Database)) {
            shard.error(key, ErrorCode::Database, "Failed to update read state");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_marks_in_seconds_are_understood_and_the_future_is_now() {
        let now = 1_795_000_000_000;
        assert_eq!(read_mark(1_790_000_000, now), 1_790_000_000_000);
        assert_eq!(read_mark(1_790_000_000_123, now), 1_790_000_000_123);
        assert_eq!((read_mark(i64::MAX, now), read_mark(-5, now)), (now, 0));
    }
}
