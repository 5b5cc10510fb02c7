//! Subscriptions: all four requests are answered by SUBSCRIBE_OK (BEHAVIOUR.md 2.18). After it there is no gap: what
//! commits later is delivered, what committed earlier is in a list asked for afterwards.

use super::channels::{NOT_A_PARTICIPANT, enter, may_enter, refuse_place};
use crate::ids::{ChannelId, MessageId};
use crate::shard::Shard;
use crate::shard::session::{SessionKey, ThreadSubscription};
use crate::shard::topics::Spelling;
use crate::store::{Answer, Query, Viewer};
use crate::wire::{ErrorCode, client, server};

/// SUBSCRIBE_OK.subscription_type (WIRE.md 6).
const THREAD: u8 = 1;
const CHANNEL: u8 = 2;

fn ok(shard: &mut Shard, key: SessionKey, subscription_type: u8, id: u64, subchannel_id: Option<ChannelId>) {
    shard.reply(key, server::SubscribeOk { subscription_type, id, subchannel_id });
}

/// SUBSCRIBE_CHANNEL.
pub fn subscribe_channel(shard: &mut Shard, key: SessionKey, request: &client::SubscribeChannel) {
    let place = match shard.channels.place(request.channel_id, request.subchannel_id) {
        Ok(place) => place,
        Err(no_place) => return refuse_place(shard, key, no_place),
    };
    let subscribed = shard.clients.session(key).channels();
    let is_new = !subscribed.contains(&place.id);
    let limit = shard.settings.channel_subscriptions_max;
    if is_new && subscribed.len() >= limit {
        let text = format!("Channel subscription limit exceeded (max {limit} per session)");
        return shard.error(key, ErrorCode::ChannelSubscriptionLimit, &text);
    }
    if !may_enter(shard, key, place) {
        return shard.error(key, ErrorCode::PermissionDenied, NOT_A_PARTICIPANT);
    }
    shard.note_spelling(key, place.id, place.spelling);
    if is_new {
        shard.subscribe_channel(key, place.id, place.spelling);
    }
    ok(shard, key, CHANNEL, request.channel_id.0, request.subchannel_id);
}

/// UNSUBSCRIBE_CHANNEL: answered even when nothing was subscribed.
pub fn unsubscribe_channel(shard: &mut Shard, key: SessionKey, request: &client::UnsubscribeChannel) {
    if let Ok(place) = shard.channels.place(request.channel_id, request.subchannel_id) {
        shard.unsubscribe_channel(key, place.id);
    }
    ok(shard, key, CHANNEL, request.channel_id.0, request.subchannel_id);
}

/// SUBSCRIBE_THREAD: a reply's id stands for its thread.
pub fn subscribe_thread(shard: &mut Shard, key: SessionKey, request: &client::SubscribeThread) {
    let thread_id = request.thread_id;
    let viewer = shard.clients.session(key).viewer();
    shard.ask(key, Query::ThreadOf { viewer, message: thread_id }, move |shard, key, answer| match answer {
        Answer::ThreadOf(Some((root, channel))) => follow(shard, key, thread_id, ThreadSubscription { root, channel }),
        _ => shard.error(key, ErrorCode::ThreadNotFound, "Thread does not exist"),
    });
}

fn follow(shard: &mut Shard, key: SessionKey, thread_id: MessageId, thread: ThreadSubscription) {
    let Some(place) = enter(shard, key, thread.channel, None) else { return };
    let followed = shard.clients.session(key).threads();
    let is_new = followed.iter().all(|known| known.root != thread.root);
    let limit = shard.settings.thread_subscriptions_max;
    if is_new && followed.len() >= limit {
        let text = format!("Thread subscription limit exceeded (max {limit} per session)");
        return shard.error(key, ErrorCode::ThreadSubscriptionLimit, &text);
    }
    if is_new {
        shard.subscribe_thread(key, thread);
    }
    let pair = shard.clients.session(key).spelling(place.id) == Spelling::Pair;
    ok(shard, key, THREAD, thread_id.0, pair.then_some(place.id));
}

/// UNSUBSCRIBE_THREAD: answered even when nothing was subscribed.
pub fn unsubscribe_thread(shard: &mut Shard, key: SessionKey, request: &client::UnsubscribeThread) {
    let thread_id = request.thread_id;
    let session = shard.clients.session(key);
    if session.threads().is_empty() || session.threads().iter().any(|thread| thread.root == thread_id) {
        shard.unsubscribe_thread(key, thread_id);
        return ok(shard, key, THREAD, thread_id.0, None);
    }
    // Whatever has been hidden since can still be unsubscribed from; the answer tells nothing.
    let viewer = Viewer { is_admin: true, ..shard.clients.session(key).viewer() };
    shard.ask(key, Query::ThreadOf { viewer, message: thread_id }, move |shard, key, answer| {
        if let Answer::ThreadOf(Some((root, _))) = answer {
            shard.unsubscribe_thread(key, root);
        }
        ok(shard, key, THREAD, thread_id.0, None);
    });
}
