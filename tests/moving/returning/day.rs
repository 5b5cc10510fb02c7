//! Everything that people do in a day.

use superchat::ids::{ChannelId, InviteId, MessageId};
use superchat::wire::client::{
    AllowUnencrypted, ChangePassword, CreateSubchannel, DeclineDm, DeleteMessage, EditMessage, JoinChannel,
    LeaveChannel, PostMessage, ProvidePublicKey, RegisterUser, SetNickname, StartDm, UpdateReadState,
};
use superchat::wire::codec::{Bounded, DmTarget, Tail};

use crate::sign_in_with;
use crate::steps::*;
use crate::support::old_file::{ACCOUNTS, GENERAL, SECRET_DM, message_id};
use crate::support::{Client, Server, clock};

pub(super) const HANNAS_NEW_SECRET: &str = "aDi1PyoAgbheZNCUXVFFPYIn1MZb7MFs9yZB9N9K81a";
pub(super) const NEWCOMERS_SECRET: &str = "bDi1PyoAgbheZNCUXVFFPYIn1MZb7MFs9yZB9N9K81b";

/// What came of it.
pub(super) struct Used {
    /// When it began, in milliseconds since 1970.
    pub since_ms: i64,
    /// Below it [`Self::sub`], and messages in both.
    pub channel: ChannelId,
    pub sub: ChannelId,
    /// With a reply of a visitor and one below it.
    pub thread: MessageId,
    /// Between the newcomer and marta, whom the newcomer left.
    pub left_dm: ChannelId,
    /// Open, of the other newcomer to hanna.
    pub invite: InviteId,
}

/// `server` has a file that was of `version`, and admin marta.
pub(super) fn spend(server: &Server, version: u32) -> Used {
    let since_ms = clock::now_ms();
    let mut marta = signed_in(server, 0);
    let mut hanna = signed_in(server, 1);
    let mut newcomer = newcomer(server, "newcomer");
    let mut visitor = server.client_named("passing");
    rename(&mut newcomer, "renamed");
    change_password(&mut hanna);
    let (channel, sub) = make_channels(&mut marta);
    let thread = talk(&mut marta, &mut hanna, &mut visitor, channel, sub);
    marta.send(UpdateReadState { channel_id: general(), subchannel_id: None, timestamp: clock::now_ms() });
    marta.quiet();
    let left_dm = converse(server, &mut marta, &mut hanna, &mut newcomer, version);
    let invite = invite(server, &mut hanna);
    talk_with_a_visitor(&mut visitor, &mut hanna);
    Used { since_ms, channel, sub, thread, left_dm, invite }
}

fn general() -> ChannelId {
    ChannelId(GENERAL.unsigned_abs())
}

fn signed_in(server: &Server, account: usize) -> Client {
    let mut client = server.client();
    let account = &ACCOUNTS[account];
    assert_eq!(sign_in_with(&mut client, account.nickname, account.secret)["success"], true);
    client
}

fn newcomer(server: &Server, nickname: &str) -> Client {
    let mut client = server.client_named(nickname);
    let password_hash = NEWCOMERS_SECRET.as_bytes();
    assert_eq!(client.ask(RegisterUser { password_hash }, "REGISTER_RESPONSE")["success"], true);
    client
}

fn rename(client: &mut Client, nickname: &str) {
    let answer = client.ask(SetNickname { nickname: Bounded(nickname.as_bytes()) }, "NICKNAME_RESPONSE");
    assert_eq!(answer["success"], true, "{answer:?}");
}

fn change_password(hanna: &mut Client) {
    let change = ChangePassword {
        old_password_hash: ACCOUNTS[1].secret.as_bytes(),
        new_password_hash: HANNAS_NEW_SECRET.as_bytes(),
    };
    let answer = hanna.ask(change, "PASSWORD_CHANGED");
    assert_eq!(answer["success"], true, "{answer:?}");
}

fn make_channels(marta: &mut Client) -> (ChannelId, ChannelId) {
    let channel = created(marta, "doomed");
    let below = CreateSubchannel {
        channel_id: channel,
        name: b"doomed-below",
        description: b"",
        channel_type: 1,
        retention_hours: 24,
    };
    (channel, ChannelId(number(&marta.ask(below, "SUBCHANNEL_CREATED")["subchannel_id"])))
}

/// Posts of all kinds, edits and deletions, of one's own and as an admin, and of rows that the other server wrote.
fn talk(marta: &mut Client, hanna: &mut Client, visitor: &mut Client, channel: ChannelId, sub: ChannelId) -> MessageId {
    let thread = posted(marta, post(general(), b"a thread of today"));
    let below = posted(visitor, reply(general(), thread, b"a visitor's reply"));
    posted(hanna, reply(general(), below, b"\xff\xfe and not UTF-8"));
    posted(hanna, reply(general(), MessageId(message_id(21).unsigned_abs()), b"below an old reply"));
    for place in [channel, sub] {
        posted(marta, post(place, b"in what is about to go"));
    }
    posted(marta, PostMessage { subchannel_id: Some(sub), ..post(channel, b"by both ids") });
    edit(marta, MessageId(message_id(20).unsigned_abs()), b"an old thread, edited");
    let own = posted(hanna, post(general(), b"to be edited and deleted"));
    edit(hanna, own, b"edited");
    delete(hanna, own);
    let others = posted(hanna, post(general(), b"to be edited and deleted by an admin"));
    edit(marta, others, b"edited by an admin");
    delete(marta, others);
    delete(marta, MessageId(message_id(22).unsigned_abs()));
    thread
}

fn edit(client: &mut Client, message_id: MessageId, content: &[u8]) {
    let answer = client.ask(EditMessage { message_id, new_content: Bounded(content) }, "MESSAGE_EDITED");
    assert_eq!(answer["success"], true, "{answer:?}");
}

fn delete(client: &mut Client, message_id: MessageId) {
    assert_eq!(client.ask(DeleteMessage { message_id }, "MESSAGE_DELETED")["success"], true);
}

/// Old and new, with and without encryption, declined, and left for good.
fn converse(server: &Server, marta: &mut Client, hanna: &mut Client, newcomer: &mut Client, version: u32) -> ChannelId {
    for (client, byte) in [(&mut *marta, 0x11), (&mut *hanna, 0x22)] {
        client.send(ProvidePublicKey { key_type: 1, public_key: [byte; 32], label: b"" });
        client.quiet();
    }
    let ready = marta.ask(start("hanna"), "DM_READY");
    let secret = channel_in(&ready);
    assert_eq!((secret.0 == SECRET_DM.unsigned_abs(), &ready["is_encrypted"]), (version >= 11, &true.into()));
    posted(marta, post(secret, b"\x00\x80 ciphertext of today"));

    let declined = invited(newcomer, "hanna");
    hanna.expect_matching("DM_REQUEST", |request| number(&request["dm_channel_id"]) == declined.0);
    hanna.send(DeclineDm { dm_channel_id: declined });
    newcomer.expect_broadcast("DM_DECLINED");

    let asked = invited(newcomer, "marta");
    marta.expect_matching("DM_REQUEST", |request| number(&request["dm_channel_id"]) == asked.0);
    let plain = channel_in(&marta.ask(AllowUnencrypted { dm_channel_id: asked, permanent: false }, "DM_READY"));
    newcomer.expect_matching("DM_READY", |ready| number(&ready["channel_id"]) == plain.0);
    posted(newcomer, post(plain, b"in the open"));
    leave(newcomer, plain);

    // One that both leave goes altogether.
    let (mut one, mut other) = (server.client_named("one"), server.client_named("two"));
    let asked = invited(&mut one, "two");
    other.expect_broadcast("DM_REQUEST");
    let gone = channel_in(&other.ask(AllowUnencrypted { dm_channel_id: asked, permanent: false }, "DM_READY"));
    one.expect_broadcast("DM_READY");
    posted(&mut one, post(gone, b"soon gone"));
    leave(&mut one, gone);
    leave(&mut other, gone);
    plain
}

/// One that stays open, of somebody who renamed herself.
fn invite(server: &Server, hanna: &mut Client) -> InviteId {
    let mut other = newcomer(server, "other");
    rename(&mut other, "another");
    let invite = invited(&mut other, "hanna");
    hanna.expect_matching("DM_REQUEST", |request| number(&request["dm_channel_id"]) == invite.0);
    invite
}

/// Until the visitor hangs up, at the end of the day.
fn talk_with_a_visitor(visitor: &mut Client, hanna: &mut Client) {
    let asked = invited(visitor, "hanna");
    hanna.expect_matching("DM_REQUEST", |request| number(&request["dm_channel_id"]) == asked.0);
    let dm = channel_in(&hanna.ask(AllowUnencrypted { dm_channel_id: asked, permanent: false }, "DM_READY"));
    visitor.expect_broadcast("DM_READY");
    posted(visitor, post(dm, b"from a visitor"));
    posted(hanna, post(dm, b"to a visitor"));
}

fn start(nickname: &str) -> StartDm<'_> {
    StartDm { target: DmTarget::Nickname(nickname.as_bytes()), allow_unencrypted: true }
}

fn invited(client: &mut Client, nickname: &str) -> InviteId {
    InviteId(number(&client.ask(start(nickname), "DM_PENDING")["dm_channel_id"]))
}

fn channel_in(ready: &crate::support::link::Fields) -> ChannelId {
    ChannelId(number(&ready["channel_id"]))
}

fn leave(client: &mut Client, channel_id: ChannelId) {
    client.ask(JoinChannel { channel_id, subchannel_id: None }, "JOIN_RESPONSE");
    let leave = LeaveChannel { channel_id, subchannel_id: None, permanent: Tail(Some(true)) };
    assert_eq!(client.ask(leave, "LEAVE_RESPONSE")["success"], true);
}
