//! Posting, editing, deleting and listing messages (BEHAVIOUR.md 2.12 to 2.15).

use bytes::Bytes;
use tracing::debug;

use super::channels::{NOT_A_PARTICIPANT, fitting, may_enter, one_frame};
use crate::ids::UserId;
use crate::limits::{LIST_MESSAGES_DEFAULT, LIST_MESSAGES_MAX};
use crate::metrics::RateLimit;
use crate::profile::tasks::place;
use crate::shard::presence::spell;
use crate::shard::session::{Belief, SessionKey};
use crate::shard::{NoPlace, Place, Shard};
use crate::store::query::Cursor;
use crate::store::{
    Actor, Answer, Author, ChannelType, Command, Event, FLAG_ADMIN, FLAG_MODERATOR, Message, Query, Refusal,
};
use crate::text;
use crate::wire::records::{self, Failed};
use crate::wire::{ErrorCode, client, server};

/// What a session without a name is told that must have one.
pub const NICKNAME_REQUIRED: &str = "Nickname required. Use SET_NICKNAME first.";

/// What a message takes in a list beside its texts.
const FIXED_BYTES: usize = 72;

/// LIST_MESSAGES: roots of a place, or the descendants of a message.
pub fn list_messages(shard: &mut Shard, key: SessionKey, request: &client::ListMessages) {
    let request = request.clone();
    let place = match shard.channels.place(request.channel_id, request.subchannel_id) {
        Ok(place) => place,
        Err(_) => return list(shard, key, &request, None, &[]),
    };
    if !may_enter(shard, key, place) {
        return shard.error(key, ErrorCode::PermissionDenied, NOT_A_PARTICIPANT);
    }
    shard.note_spelling(key, place.id, place.spelling);
    let limit = match request.limit {
        0 => LIST_MESSAGES_DEFAULT,
        limit => limit.min(LIST_MESSAGES_MAX),
    };
    let cursor = match (request.before_id, request.after_id) {
        (Some(before), _) => Cursor::Before(before),
        (None, Some(after)) => Cursor::After(after),
        (None, None) => Cursor::None,
    };
    let viewer = shard.clients.session(key).viewer();
    let query = match request.parent_id {
        None => Query::Roots { viewer, channel: place.id, cursor, limit },
        Some(parent) => Query::Thread { viewer, channel: place.id, parent, cursor, limit },
    };
    shard.ask(key, query, move |shard, key, answer| {
        let Answer::Messages(messages) = answer else { return shard.error(key, ErrorCode::Internal, "Internal error") };
        list(shard, key, &request, Some(place), &messages);
    });
}

/// Answers with what was found, each message in the spelling that was asked with.
fn list(
    shard: &mut Shard,
    key: SessionKey,
    request: &client::ListMessages,
    place: Option<Place>,
    messages: &[Message],
) {
    let authors: Vec<_> = messages.iter().map(|message| display_author(&message.author)).collect();
    let entries = messages.iter().zip(&authors).map(|(message, (author_user_id, author_nickname))| {
        let (channel_id, subchannel_id) =
            place.map_or((message.channel, None), |place| spell(place.id, place.parent, place.spelling));
        records::Message {
            message_id: message.id,
            channel_id,
            subchannel_id,
            parent_id: message.parent,
            author_user_id: *author_user_id,
            author_nickname: fitting(author_nickname),
            content: fitting(&message.content),
            created_at: message.created_at,
            edited_at: message.edited_at,
            reply_count: message.reply_count,
        }
    });
    let messages = one_frame(entries, |entry| FIXED_BYTES + entry.author_nickname.len() + entry.content.len());
    let (channel_id, subchannel_id, parent_id) = (request.channel_id, request.subchannel_id, request.parent_id);
    shard.reply(key, server::MessageList { channel_id, subchannel_id, parent_id, messages });
}

/// How an author is shown (BEHAVIOUR.md 2.0): `~` visitor, `$` admin, `@` moderator.
#[must_use]
pub fn display_author(author: &Author) -> (Option<UserId>, Vec<u8>) {
    let signed = |sign: &[u8], nickname: &[u8]| [sign, nickname].concat();
    match author {
        Author::Account { user, nickname, flags } => {
            let sign: &[u8] = if flags & FLAG_ADMIN != 0 {
                b"$"
            } else if flags & FLAG_MODERATOR != 0 {
                b"@"
            } else {
                b""
            };
            (Some(*user), signed(sign, nickname))
        }
        Author::MissingAccount { user } => (Some(*user), format!("<user:{user}>").into_bytes()),
        Author::Visitor { nickname } => (None, signed(b"~", nickname)),
        Author::System => (None, Vec::new()),
    }
}

/// A post with a text that not even the codec carries.
pub fn post_too_long(shard: &mut Shard, key: SessionKey) {
    match shard.clients.session(key).nickname {
        Some(_) => too_long(shard, key),
        None => nickname_required(shard, key),
    }
}

/// An edit with a text that not even the codec carries.
pub fn edit_too_long(shard: &mut Shard, key: SessionKey) {
    match shard.clients.session(key).account {
        Some(_) => too_long(shard, key),
        None => account_required(shard, key),
    }
}

fn too_long(shard: &mut Shard, key: SessionKey) {
    let text = format!("Message too long (max {} bytes)", shard.settings.message_bytes_max);
    shard.error(key, ErrorCode::MessageTooLong, &text);
}

fn account_required(shard: &mut Shard, key: SessionKey) {
    shard.error(key, ErrorCode::AuthRequired, "Authentication required. Register to edit messages.");
}

/// POST without a nickname. A client that believes it is still signed in gets the hint that makes it ask for the
/// password again, once (D-75).
fn nickname_required(shard: &mut Shard, key: SessionKey) {
    shard.error(key, ErrorCode::AuthRequired, NICKNAME_REQUIRED);
    let belief = &mut shard.clients.session(key).busy().believes_signed_in;
    if *belief == Belief::Likely {
        *belief = Belief::Told;
        let message = b"You were disconnected. Please sign in again.";
        shard.reply(key, server::AuthResponse { outcome: Err(Failed { message }) });
    }
}

/// POST_MESSAGE. What depends on stored state, the parent, is checked by the writer.
pub fn post_message(shard: &mut Shard, key: SessionKey, request: &client::PostMessage<'_>) {
    let Some(author) = shard.clients.session(key).actor() else { return nickname_required(shard, key) };
    let content = request.content.0;
    if content.len() > shard.settings.message_bytes_max {
        return too_long(shard, key);
    }
    let place = match shard.channels.place(request.channel_id, request.subchannel_id) {
        Ok(place) => place,
        Err(NoPlace::Channel) => return shard.error(key, ErrorCode::ChannelNotFound, "Channel not found"),
        Err(no_place @ NoPlace::Subchannel) => return super::channels::refuse_place(shard, key, no_place),
    };
    if !may_enter(shard, key, place) {
        return shard.error(key, ErrorCode::PermissionDenied, NOT_A_PARTICIPANT);
    }
    if place.channel_type == ChannelType::Chat && request.parent_id.is_some() {
        return shard.error(key, ErrorCode::InvalidInput, "Chat channels do not support threaded replies");
    }
    let content = if place.is_dm { Bytes::copy_from_slice(content) } else { displayable(shard, content) };
    if content.is_empty() {
        return shard.error(key, ErrorCode::InvalidFormat, "Invalid message format");
    }
    if !may_post_now(shard, key, &author) {
        shard.rate_limited(key, RateLimit::Message);
        return shard.error(key, ErrorCode::MessageRateLimit, "Message rate limit exceeded");
    }
    shard.note_spelling(key, place.id, place.spelling);
    shard.submit_post(key, place!(), Command::Post { author, channel: place.id, parent: request.parent_id, content });
}

fn displayable(shard: &Shard, content: &[u8]) -> Bytes {
    if shard.settings.sanitize_content { text::sanitized(content) } else { Bytes::copy_from_slice(content) }
}

fn may_post_now(shard: &mut Shard, key: SessionKey, author: &Actor) -> bool {
    let (exempt, now) = (shard.clients.session(key).is_exempt(), shard.now.mono);
    if exempt {
        return true;
    }
    match author.user {
        Some(user) => shard.rates.messages_by_user.admit(user, now),
        None => {
            shard.rates.messages_by_session.admit(author.session, now)
                && shard.rates.messages_by_address.admit(author.address, now)
        }
    }
}

/// A post came back from the writer.
pub fn posted(shard: &mut Shard, key: SessionKey, result: &Result<Event, Refusal>) {
    match result {
        Ok(Event::Posted(message)) => {
            if tracing::enabled!(tracing::Level::DEBUG) {
                let session = shard.clients.session(key);
                let nickname = session.nickname.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                debug!(
                    session = session.id.0,
                    message = message.id.0,
                    channel = message.channel.0,
                    "POST_MESSAGE by {nickname}"
                );
            }
            let (message_id, message) = (message.id, &b"Message posted"[..]);
            shard.reply(key, server::MessagePosted { success: true, message_id, message });
        }
        Err(Refusal::ChannelNotFound) => shard.error(key, ErrorCode::ChannelNotFound, "Channel not found"),
        Err(Refusal::MessageNotFound) => shard.error(key, ErrorCode::MessageNotFound, "Message not found"),
        Err(Refusal::NotParticipant) => shard.error(key, ErrorCode::PermissionDenied, NOT_A_PARTICIPANT),
        // The account was deleted while the post waited; its session ends.
        Err(Refusal::UserNotFound) => shard.error(key, ErrorCode::AuthRequired, "Authentication required"),
        Err(Refusal::ThreadTooDeep) => shard.error(key, ErrorCode::InvalidInput, "Thread is too deep"),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Database error"),
    }
}

/// EDIT_MESSAGE: by its registered author, or an admin.
pub fn edit_message(shard: &mut Shard, key: SessionKey, request: &client::EditMessage<'_>) {
    let session = shard.clients.session(key);
    let Some(editor) = session.actor().filter(|actor| actor.user.is_some()) else {
        return account_required(shard, key);
    };
    let text = request.new_content.0;
    if text.len() > shard.settings.message_bytes_max {
        return too_long(shard, key);
    }
    let (content, sanitized) = (Bytes::copy_from_slice(text), displayable(shard, text));
    let edit = Command::Edit { editor, message: request.message_id, content, sanitized };
    shard.submit(key, edit, |shard, key, result| match result {
        Ok(Event::Edited { message, edited_at, content, .. }) => {
            let edited = server::Edited { message_id: message, edited_at, new_content: &content, message: b"" };
            shard.reply(key, server::MessageEdited { outcome: Ok(edited) });
        }
        Err(Refusal::MessageNotFound) => shard.error(key, ErrorCode::MessageNotFound, "Message not found"),
        Err(Refusal::AnonymousMessage) => {
            shard.error(key, ErrorCode::PermissionDenied, "Cannot edit anonymous messages");
        }
        Err(Refusal::NotYours) => {
            shard.error(key, ErrorCode::PermissionDenied, "You can only edit your own messages");
        }
        Err(Refusal::NotParticipant) => shard.error(key, ErrorCode::PermissionDenied, NOT_A_PARTICIPANT),
        Err(Refusal::AlreadyDeleted) => shard.error(key, ErrorCode::InvalidInput, "Cannot edit deleted message"),
        Err(Refusal::EmptyContent) => shard.error(key, ErrorCode::InvalidFormat, "Invalid message format"),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Failed to edit message"),
    });
}

/// DELETE_MESSAGE: one's own, or an admin's right.
pub fn delete_message(shard: &mut Shard, key: SessionKey, request: &client::DeleteMessage) {
    let Some(actor) = shard.clients.session(key).actor() else {
        return shard.error(key, ErrorCode::NicknameRequired, NICKNAME_REQUIRED);
    };
    let delete = Command::Delete { actor, message: request.message_id };
    shard.submit(key, delete, |shard, key, result| match result {
        Ok(Event::Deleted { message, deleted_at, placeholder, .. }) => {
            let deleted = server::Deleted { message_id: message, deleted_at, message: &placeholder };
            shard.reply(key, server::MessageDeleted { outcome: Ok(deleted) });
        }
        Err(Refusal::MessageNotFound) => shard.error(key, ErrorCode::MessageNotFound, "Message not found"),
        Err(Refusal::AlreadyDeleted) => shard.error(key, ErrorCode::InvalidInput, "Message already deleted"),
        Err(Refusal::NotYours) => {
            shard.error(key, ErrorCode::PermissionDenied, "You can only delete your own messages");
        }
        Err(Refusal::NotParticipant) => shard.error(key, ErrorCode::PermissionDenied, NOT_A_PARTICIPANT),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Failed to delete message"),
    });
}
