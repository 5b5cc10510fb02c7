//! Direct messages (BEHAVIOUR.md 4): one module per question. What nobody else may see of them is in `strangers`.

#![allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]

mod accepting;
mod inside;
mod keys;
mod leaving;
mod starting;
mod strangers;

use serde_json::{Value, json};
use superchat::ids::{ChannelId, InviteId, SessionId, UserId};
use superchat::wire::client::{AllowUnencrypted, DeclineDm, ProvidePublicKey, StartDm};
use superchat::wire::codec::DmTarget;

use crate::steps::*;
use crate::support::link::Fields;
use crate::support::{Client, Server};

pub const NOT_A_PARTICIPANT: &str = "Not a participant in this DM";

/// START_DM by nickname.
pub fn start_dm(nickname: &str, allow_unencrypted: bool) -> StartDm<'_> {
    StartDm { target: DmTarget::Nickname(nickname.as_bytes()), allow_unencrypted }
}

pub fn allow(invite: InviteId) -> AllowUnencrypted {
    AllowUnencrypted { dm_channel_id: invite, permanent: false }
}

pub fn decline(invite: InviteId) -> DeclineDm {
    DeclineDm { dm_channel_id: invite }
}

/// A key made of one byte.
pub fn public_key(byte: u8) -> ProvidePublicKey<'static> {
    ProvidePublicKey { key_type: 1, public_key: [byte; 32], label: b"laptop" }
}

/// The same as DM_READY shows it.
pub fn shown_key(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

/// An account that provided a key, with its id.
pub fn with_key(server: &Server, nickname: &str, byte: u8) -> Client {
    let mut client = registered(server, nickname);
    provide(&mut client, byte);
    client
}

/// PROVIDE_PUBLIC_KEY has no answer; PONG says that it is done.
pub fn provide(client: &mut Client, byte: u8) {
    client.send(public_key(byte));
    let frames = client.quiet();
    assert!(frames.iter().all(|frame| frame.name.ends_with("PRESENCE")), "{frames:?}");
}

/// What presence says of the session with this nickname.
pub fn session_of(client: &mut Client, nickname: &str) -> SessionId {
    SessionId(number(&client.expect_matching("SERVER_PRESENCE", |seen| seen["nickname"] == nickname)["session_id"]))
}

/// The account with this nickname, as GET_USER_INFO tells it.
pub fn user_of(client: &mut Client, nickname: &str) -> UserId {
    let request = superchat::wire::client::GetUserInfo { nickname: nickname.as_bytes() };
    UserId(number(&client.ask(request, "USER_INFO")["user_id"]))
}

/// Sends an invitation without encryption and returns it.
pub fn invited(initiator: &mut Client, target: &str) -> InviteId {
    InviteId(number(&initiator.ask(start_dm(target, true), "DM_PENDING")["dm_channel_id"]))
}

/// Opens a conversation without encryption, and reads what both are told of it.
pub fn conversation(initiator: &mut Client, target: &mut Client, nickname: &str) -> ChannelId {
    let invite = invited(initiator, nickname);
    target.expect_broadcast("DM_REQUEST");
    let channel = channel_in(&target.ask(allow(invite), "DM_READY"));
    assert_eq!(channel_in(&initiator.expect_broadcast("DM_READY")), channel);
    channel
}

pub fn channel_in(ready: &Fields) -> ChannelId {
    ChannelId(number(&ready["channel_id"]))
}

/// Sign-in from a new connection.
pub fn another_session(server: &Server, nickname: &str) -> Client {
    let mut client = server.client();
    assert_eq!(sign_in(&mut client, nickname, nickname)["success"], true);
    client
}

/// Everything about direct messages that a session is told when it signs in. Behind the roster, of which the last entry
/// is its own.
pub fn told_at_sign_in(client: &mut Client, count: usize) -> Vec<(String, Fields)> {
    let is_dm = |name: &str| name.starts_with("DM_");
    let mut told = Vec::new();
    while told.len() < count {
        match client.next() {
            crate::support::Incoming::Frame(frame) if is_dm(&frame.name) => told.push((frame.name, frame.fields)),
            crate::support::Incoming::Frame(frame) => assert!(told.is_empty(), "{frame:?} after {told:?}"),
            other => panic!("expected {count} frames, got {other:?} after {told:?}"),
        }
    }
    told
}

/// The fields of `fields` that `expected` has.
pub fn check_fields(fields: &Fields, expected: Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(fields.get(name), Some(value), "{name} of {fields:?}");
    }
}

/// What DM_READY says of an open conversation without encryption.
pub fn plain_with(nickname: &str, user: Option<UserId>) -> Value {
    json!({ "other_nickname": nickname, "other_user_id": user.map(|user| user.0.to_string()), "is_encrypted": false })
}
