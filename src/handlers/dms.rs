//! Direct messages: starting, keys, accepting, declining, leaving (BEHAVIOUR.md 4). Conversations of visitors are never
//! encrypted: a key of theirs would end with the session, and with it the means to read what was said.

use super::channels::left;
use super::messages::NICKNAME_REQUIRED;
use crate::ids::{ChannelId, InviteId, SessionId};
use crate::metrics::RateLimit;
use crate::shard::dms::{pending, ready, waiting_text};
use crate::shard::session::SessionKey;
use crate::shard::{Person, Shard};
use crate::store::{Answer, Command, Dm, DmFound, Event, Invite, Name, Participant, Query, Refusal};
use crate::wire::codec::DmTarget;
use crate::wire::{ErrorCode, client, server};

/// PROVIDE_PUBLIC_KEY.key_type of a key that is meant for one session (WIRE.md 6).
const EPHEMERAL: u8 = 2;

const INVITE_NOT_FOUND: &str = "DM invite not found";
const NOT_INVITED: &str = "Not authorized for this invite";

/// START_DM.
pub fn start_dm(shard: &mut Shard, key: SessionKey, request: &client::StartDm<'_>) {
    let allow_unencrypted = request.allow_unencrypted;
    if shard.clients.session(key).nickname.is_none() {
        return shard.error(key, ErrorCode::AuthRequired, NICKNAME_REQUIRED);
    }
    match request.target {
        DmTarget::User(user) => shard.ask(key, Query::AccountById { user }, move |shard, key, answer| {
            found(shard, key, account_in(answer), allow_unencrypted);
        }),
        DmTarget::Nickname(nickname) => {
            let nickname = Name::from(nickname);
            shard.ask(key, Query::Account { nickname: nickname.clone() }, move |shard, key, answer| {
                let target = account_in(answer).or_else(|| online(shard, &nickname));
                found(shard, key, target, allow_unencrypted);
            });
        }
        DmTarget::Session(session) => match shard.roster.get(session) {
            Some(person) => {
                let target = as_participant(session, person);
                start_with(shard, key, target, allow_unencrypted);
            }
            None => shard.error(key, ErrorCode::NotFound, "Session not found"),
        },
        DmTarget::Unknown(_) => shard.error(key, ErrorCode::InvalidFormat, "Invalid target type"),
    }
}

fn account_in(answer: Answer) -> Option<Participant> {
    let Answer::Account { account: Some(account), .. } = answer else { return None };
    Some(Participant { user: Some(account.id), session: None, nickname: account.nickname })
}

/// Whoever carries the nickname; of several the first who came.
fn online(shard: &Shard, nickname: &Name) -> Option<Participant> {
    let named = shard.roster.people().filter(|(_, person)| person.nickname == *nickname);
    named.min_by_key(|(session, _)| *session).map(|(session, person)| as_participant(session, person))
}

fn as_participant(session: SessionId, person: &Person) -> Participant {
    let session = person.user.is_none().then_some(session);
    Participant { user: person.user, session, nickname: person.nickname.clone() }
}

fn found(shard: &mut Shard, key: SessionKey, target: Option<Participant>, allow_unencrypted: bool) {
    match target {
        Some(target) => start_with(shard, key, target, allow_unencrypted),
        None => shard.error(key, ErrorCode::NotFound, "User not found"),
    }
}

/// A conversation that is there already is only looked up, so that coming back to many of them meets no limit.
fn start_with(shard: &mut Shard, key: SessionKey, target: Participant, allow_unencrypted: bool) {
    let session = shard.clients.session(key);
    let own = session.participant();
    if own.is_same(&target) {
        return shard.error(key, ErrorCode::InvalidInput, "Cannot start a DM with yourself");
    }
    let query = Query::Dm { viewer: session.viewer(), other: target.clone() };
    shard.ask(key, query, move |shard, key, answer| match answer {
        Answer::Dm { found: Some(found), .. } => shard.tell_found(key, &found),
        Answer::Dm { has_key, .. } if has_key || allow_unencrypted => {
            start_new(shard, key, own, target, allow_unencrypted);
        }
        _ => key_required(shard, key),
    });
}

fn key_required(shard: &mut Shard, key: SessionKey) {
    let reason = b"You need to set up an encryption key before starting encrypted DMs";
    shard.reply(key, server::KeyRequired { reason, dm_channel_id: None });
}

fn start_new(shard: &mut Shard, key: SessionKey, initiator: Participant, target: Participant, allow_unencrypted: bool) {
    if !can_be_reached(shard, &initiator, &target) {
        return shard.error(key, ErrorCode::NotFound, "Target user must be online for anonymous DMs");
    }
    if !may_invite_now(shard, key) {
        return too_many(shard, key);
    }
    // Should this session end before the outcome is there, the store must hear of it all the same.
    shard.clients.session(key).visits_dms |= initiator.user.is_none();
    let start = Command::StartDm { initiator, target, allow_unencrypted };
    shard.submit(key, start, |shard, key, result| match result {
        Ok(Event::DmOpened { dm, .. }) => shard.reply(key, ready(dm.channel.id, &dm.sides[1])),
        Ok(Event::DmInvited { invite, .. }) => shard.reply(key, pending(&invite, &waiting_text(&invite))),
        Err(Refusal::KeyRequired) => key_required(shard, key),
        Err(Refusal::UserNotFound) => shard.error(key, ErrorCode::NotFound, "User not found"),
        Err(Refusal::TooManyInvites) => too_many(shard, key),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Failed to create DM invite"),
    });
}

/// Between accounts an invitation can wait; a visitor is there now or never.
fn can_be_reached(shard: &Shard, initiator: &Participant, target: &Participant) -> bool {
    match (initiator.user, target.user) {
        (Some(_), Some(_)) => true,
        (None, Some(user)) => shard.roster.people().any(|(_, person)| person.user == Some(user)),
        (_, None) => target.session.is_some_and(|session| shard.roster.get(session).is_some()),
    }
}

fn may_invite_now(shard: &mut Shard, key: SessionKey) -> bool {
    let session = shard.clients.session(key);
    let (id, user, address, now) = (session.id, session.user(), session.address(), shard.now.mono);
    if session.is_exempt() {
        return true;
    }
    match user {
        Some(user) => shard.rates.dms_by_user.admit(user, now),
        None => shard.rates.dms_by_session.admit(id, now) && shard.rates.dms_by_address.admit(address, now),
    }
}

fn too_many(shard: &mut Shard, key: SessionKey) {
    shard.rate_limited(key, RateLimit::Dm);
    shard.error(key, ErrorCode::RateLimit, "Too many DM requests. Try again later.");
}

/// PROVIDE_PUBLIC_KEY: answered by whatever it opens. A visitor's key is taken, and of no use.
pub fn provide_public_key(shard: &mut Shard, key: SessionKey, request: &client::ProvidePublicKey<'_>) {
    let Some(user) = shard.clients.session(key).user() else {
        if request.key_type != EPHEMERAL {
            let text = "Anonymous users can only use ephemeral keys";
            shard.error(key, ErrorCode::PermissionDenied, text);
        }
        return;
    };
    let (session, now) = (shard.clients.session(key), shard.now.mono);
    let (is_first, is_exempt) = (!session.has_provided_key(), session.is_exempt());
    if !is_exempt && !shard.rates.key_changes_by_user.would_admit(&user, now) {
        return too_many(shard, key);
    }
    let provide = Command::ProvideKey { user, key: request.public_key, is_first };
    shard.submit(key, provide, move |shard, key, result| match result {
        Ok(Event::KeyProvided { opened, others, is_changed, .. }) => {
            // That it replaces another only the writer knows. One too many is refused the next time.
            let _over = is_changed && !is_exempt && !shard.rates.key_changes_by_user.admit(user, now);
            key_provided(shard, key, &opened, &others);
        }
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Failed to store encryption key"),
    });
}

/// Encrypted conversations were held back from a session without its key.
fn key_provided(shard: &mut Shard, key: SessionKey, opened: &[Dm], others: &[DmFound]) {
    let had_key = std::mem::replace(&mut shard.clients.session(key).busy().has_provided_key, true);
    for held_back in others.iter().filter(|_| !had_key) {
        shard.tell_found(key, held_back);
    }
    for dm in opened {
        shard.reply(key, ready(dm.channel.id, &dm.sides[1]));
    }
}

/// ALLOW_UNENCRYPTED: accepts an invitation. One that asks for encryption leads to KEY_REQUIRED, once (D-22).
pub fn allow_unencrypted(shard: &mut Shard, key: SessionKey, request: &client::AllowUnencrypted) {
    let invite = request.dm_channel_id;
    let by = shard.clients.session(key).participant();
    shard.submit(key, Command::AcceptDm { invite, by }, move |shard, key, result| match result {
        Ok(Event::DmOpened { dm, .. }) => shard.reply(key, ready(dm.channel.id, &dm.sides[1])),
        Ok(Event::DmNeedsKey { invite }) => needs_key(shard, key, &invite),
        Err(Refusal::InviteNotFound) => shard.error(key, ErrorCode::NotFound, INVITE_NOT_FOUND),
        Err(Refusal::NotInvited) => shard.error(key, ErrorCode::PermissionDenied, NOT_INVITED),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Failed to create DM"),
    });
}

fn needs_key(shard: &mut Shard, key: SessionKey, invite: &Invite) {
    if !shard.clients.session(key).ask_for_key(invite.id) {
        return shard.error(key, ErrorCode::PermissionDenied, "This conversation must be encrypted");
    }
    let nickname = String::from_utf8_lossy(&invite.initiator.nickname);
    let reason = format!("{nickname} requires an encrypted conversation");
    shard.reply(key, server::KeyRequired { reason: reason.as_bytes(), dm_channel_id: Some(invite.id) });
}

/// DECLINE_DM: no answer, not even to an invitation that is not there.
pub fn decline_dm(shard: &mut Shard, key: SessionKey, request: &client::DeclineDm) {
    let invite: InviteId = request.dm_channel_id;
    let by = shard.clients.session(key).participant();
    shard.submit(key, Command::DeclineDm { invite, by }, |shard, key, result| match result {
        Ok(_) | Err(Refusal::InviteNotFound) => {}
        Err(Refusal::NotInvited) => shard.error(key, ErrorCode::PermissionDenied, NOT_INVITED),
        Err(_) => shard.error(key, ErrorCode::Database, "Database error"),
    });
}

/// LEAVE_CHANNEL with `permanent`, in the direct message that is joined (BEHAVIOUR.md 4.6).
pub fn leave_for_good(shard: &mut Shard, key: SessionKey, channel: ChannelId) {
    let leaver = shard.clients.session(key).participant();
    shard.submit(key, Command::LeaveDm { channel, leaver }, move |shard, key, result| match result {
        // Somebody who takes part no longer has only the place to leave.
        Ok(_) | Err(Refusal::NotParticipant) => left(shard, key, channel),
        Err(_) => shard.error(key, ErrorCode::Database, "Database error"),
    });
}
