//! Administration (BEHAVIOUR.md 5): each request with its refusals, and what becomes of those concerned.

mod addresses;
mod deleting;
mod listing;
mod shadow;
mod users;

use serde_json::Value;
use superchat::ids::{BanId, ChannelId, UserId};
use superchat::wire::ClientMessage;
use superchat::wire::client::{
    BanIp, BanUser, CreateSubchannel, DeleteChannel, DeleteUser, ListBans, UnbanIp, UnbanUser,
};

use crate::steps::*;
use crate::support::{Client, Server};

/// A server whose admin is `boss`.
fn governed() -> Server {
    Server::start(settings().admins(&["boss"]))
}

/// `boss`, signed in.
fn boss(server: &Server) -> Client {
    registered(server, "boss")
}

fn ban(nickname: &str) -> BanUser<'_> {
    BanUser {
        user_id: None,
        nickname: Some(nickname.as_bytes()),
        reason: b"spam",
        shadowban: false,
        duration_seconds: None,
    }
}

fn ban_id(user: u64) -> BanUser<'static> {
    BanUser { user_id: Some(UserId(user)), nickname: None, reason: b"spam", shadowban: false, duration_seconds: None }
}

fn shadow(nickname: &str) -> BanUser<'_> {
    BanUser { shadowban: true, ..ban(nickname) }
}

fn unban(nickname: &str) -> UnbanUser<'_> {
    UnbanUser { user_id: None, nickname: Some(nickname.as_bytes()) }
}

fn ban_address(text: &str) -> BanIp<'_> {
    BanIp { ip_cidr: text.as_bytes(), reason: b"proxy", duration_seconds: None }
}

fn unban_address(text: &str) -> UnbanIp<'_> {
    UnbanIp { ip_cidr: text.as_bytes() }
}

/// Does it and returns the id; the text must be this.
fn banned<'m>(admin: &mut Client, request: impl Into<ClientMessage<'m>>, reply: &str, text: &str) -> BanId {
    let answer = admin.ask(request, reply);
    assert_eq!((&answer["success"], answer["message"].as_str()), (&Value::Bool(true), Some(text)), "{answer:?}");
    BanId(number(&answer["ban_id"]))
}

fn bans(admin: &mut Client, include_expired: bool) -> Vec<Value> {
    items(&admin.ask(ListBans { include_expired }, "BAN_LIST"), "bans")
}

/// The audit, oldest first.
fn audit(server: &Server) -> Vec<Vec<String>> {
    rows(
        server,
        "SELECT admin_nickname, action_type, target_type, target_id, target_identifier, details, ip_address
         FROM AdminAction ORDER BY id",
    )
}

const PERMANENT: &str = "Account banned permanently. Reason: spam";
const DENIED: &str = "Permission denied: admin access required";

#[test]
fn everybody_else_is_refused_before_the_request_is_read() {
    let server = governed();
    // A visitor with an admin's name, an account, and somebody without any name.
    let clients = [server.client_named("boss"), registered(&server, "ann"), server.client()];
    for mut client in clients {
        check_failed(&mut client, "USER_BANNED", [(ban("ann").into(), DENIED)]);
        check_failed(&mut client, "IP_BANNED", [(ban_address("192.0.2.1").into(), DENIED)]);
        check_failed(&mut client, "USER_UNBANNED", [(unban("ann").into(), DENIED)]);
        check_failed(&mut client, "IP_UNBANNED", [(unban_address("192.0.2.1").into(), DENIED)]);
        check_failed(&mut client, "USER_DELETED", [(DeleteUser { user_id: UserId(1) }.into(), DENIED)]);
        let answer = client.ask(DeleteChannel { channel_id: GENERAL, reason: b"" }, "CHANNEL_DELETED");
        assert_eq!((&answer["success"], &answer["message"]), (&false.into(), &DENIED.into()));
        assert_eq!(answer["channel_id"], "0");
        check_refused(&mut client, [(ListBans { include_expired: false }.into(), 3000, DENIED)]);
        client.send_raw(&frame(0x59, b"unreadable"));
        assert_eq!(client.expect_reply("USER_BANNED")["message"], DENIED);
    }
    assert_eq!(rows(&server, "SELECT 1 FROM Ban"), [[""; 0]; 0]);
    assert_eq!(audit(&server), [[""; 0]; 0]);
}

#[test]
fn what_an_admin_writes_unreadably_is_an_error() {
    let server = governed();
    let mut boss = boss(&server);
    for code in 0x59..=0x5F {
        boss.send_raw(&frame(code, b""));
        assert_eq!(boss.expect_error(1000), "Invalid message format", "{code:#x}");
    }
}

#[test]
fn rights_end_with_the_name_that_had_them() {
    let server = governed();
    let mut boss = boss(&server);
    let rename = |nickname: &'static str| superchat::wire::client::SetNickname {
        nickname: superchat::wire::codec::Bounded(nickname.as_bytes()),
    };
    assert_eq!(boss.ask(rename("nobody"), "NICKNAME_RESPONSE")["success"], true);
    check_failed(&mut boss, "USER_BANNED", [(ban("ann").into(), DENIED)]);
}

#[test]
fn a_subchannel_in_a_channel_of_somebody_elses_is_in_the_audit_and_one_in_an_own_is_not() {
    let server = governed();
    // One after the other: whoever is there hears of a new channel as its creator does.
    let anns = created(&mut registered(&server, "ann"), "annsroom");
    let mut boss = boss(&server);
    let own = created(&mut boss, "bossroom");
    let mut make = |channel_id, name| {
        let sub = CreateSubchannel { channel_id, name, description: b"", channel_type: 1, retention_hours: 24 };
        number(&boss.ask(sub, "SUBCHANNEL_CREATED")["subchannel_id"])
    };
    make(own, &b"inner"[..]);
    assert_eq!(audit(&server), [[""; 0]; 0]);
    for (channel, name) in [(anns, "corner"), (GENERAL, "annexe")] {
        let id = make(channel, name.as_bytes()).to_string();
        let details = format!("channel_id={id} name={name} reason=");
        let entry = ["boss", "CREATE_CHANNEL", "channel", &id, name, &details, "127.0.0.1"];
        assert_eq!(audit(&server).pop().unwrap(), entry);
    }
    assert_eq!(audit(&server).len(), 2);
}

fn no_channel() -> ChannelId {
    ChannelId(99)
}
