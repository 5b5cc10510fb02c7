//! Whole frames of what the generator says, encoded once and sent often.

use anyhow::Result;
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::client::{ListMessages, Ping, PostMessage, SetNickname, SubscribeChannel};
use superchat::wire::codec::{Bounded, Wire};
use superchat::wire::frame;
use superchat::wire::server::NewMessage;

/// The seeded channels the scenarios use (BEHAVIOUR.md 8.6).
pub(crate) const CHAT: ChannelId = ChannelId(1);
pub(crate) const GENERAL: ChannelId = ChannelId(2);
pub(crate) const TECH: ChannelId = ChannelId(3);

/// Bytes of a message's text wherever a scenario does not say otherwise (DESIGN.md, performance budget).
pub(crate) const CONTENT_BYTES: usize = 150;

fn whole<'m>(code: u8, message: &impl Wire<'m>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    frame::write_message(&mut out, code, message)?;
    Ok(out)
}

pub(crate) fn ping() -> Result<Vec<u8>> {
    whole(Ping::CODE, &Ping { timestamp: 1 })
}

pub(crate) fn set_nickname(nickname: &str) -> Result<Vec<u8>> {
    whole(SetNickname::CODE, &SetNickname { nickname: Bounded(nickname.as_bytes()) })
}

pub(crate) fn subscribe(channel_id: ChannelId) -> Result<Vec<u8>> {
    whole(SubscribeChannel::CODE, &SubscribeChannel { channel_id, subchannel_id: None })
}

pub(crate) fn post(channel_id: ChannelId, content: &[u8]) -> Result<Vec<u8>> {
    let message = PostMessage { channel_id, subchannel_id: None, parent_id: None, content: Bounded(content) };
    whole(PostMessage::CODE, &message)
}

/// Roots of a channel: the newest, or the oldest behind `after_id`.
pub(crate) fn list(channel_id: ChannelId, limit: u16, after_id: Option<MessageId>) -> Result<Vec<u8>> {
    let message = ListMessages { channel_id, subchannel_id: None, limit, before_id: None, parent_id: None, after_id };
    whole(ListMessages::CODE, &message)
}

/// The frame a subscriber gets for [`post`] by a visitor called `nickname`, with message id 0.
pub(crate) fn new_message(channel_id: ChannelId, nickname: &str, content: &[u8]) -> Result<Vec<u8>> {
    let author_nickname = format!("~{nickname}").into_bytes();
    let message = NewMessage {
        message_id: MessageId(0),
        channel_id,
        subchannel_id: None,
        parent_id: None,
        author_user_id: None,
        author_nickname: &author_nickname,
        content,
        created_at: 0,
        edited_at: None,
        reply_count: 0,
    };
    whole(NewMessage::CODE, &message)
}
