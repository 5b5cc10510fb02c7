//! People: who is known, who is here, who is where (BEHAVIOUR.md 2.16 GET_USER_INFO, 2.17).

use serde_json::{Value, json};
use superchat::ids::ChannelId;
use superchat::wire::client::{GetUserInfo, ListChannelUsers, ListUsers, Logout};
use superchat::wire::codec::Tail;

use crate::steps::*;
use crate::support::{Client, Server};

fn user_info(client: &mut Client, nickname: &[u8]) -> Value {
    Value::Object(client.ask(GetUserInfo { nickname }, "USER_INFO"))
}

fn users(client: &mut Client, limit: u16, include_offline: Option<bool>) -> Vec<Value> {
    items(&client.ask(ListUsers { limit, include_offline: Tail(include_offline) }, "USER_LIST"), "users")
}

fn person(nickname: &str, user: Option<u32>, online: bool) -> Value {
    let user_id = user.map(|id| id.to_string());
    json!({ "nickname": nickname, "is_registered": user.is_some(), "user_id": user_id, "online": online })
}

#[test]
fn user_info_tells_whether_a_name_is_registered_and_whether_anybody_carries_it() {
    let server = start();
    let alice = registered(&server, "alice");
    let _visitor = server.client_named("visitor");
    let mut client = server.client();
    assert_eq!(user_info(&mut client, b"alice"), person("alice", Some(1), true));
    assert_eq!(user_info(&mut client, b"visitor"), person("visitor", None, true));
    assert_eq!(user_info(&mut client, b"Alice"), person("Alice", None, false));
    assert_eq!(user_info(&mut client, b""), person("", None, false));
    assert_eq!(user_info(&mut client, b"\xff")["nickname"], json!({ "bytes_hex": "ff" }));
    alice.hang_up();
    assert_eq!(user_info(&mut client, b"alice"), person("alice", Some(1), false));
    let _namesake = server.client_named("alice");
    assert_eq!(user_info(&mut client, b"alice"), person("alice", Some(1), true), "a visitor of that name counts");
}

#[test]
fn the_online_list_has_each_nickname_once_in_order_and_accounts_win() {
    let server = start();
    let _nameless = server.client();
    let _visitors = ["zoe", "bob", "alice", "Bob"].map(|nickname| server.client_named(nickname));
    let _alice = registered(&server, "alice");
    let _again = server.client_named("alice");
    let mut client = server.client();
    let expected = [
        person("Bob", None, true),
        person("alice", Some(1), true),
        person("bob", None, true),
        person("zoe", None, true),
    ];
    assert_eq!(users(&mut client, 0, None), expected);
    assert_eq!(users(&mut client, 0, Some(false)), expected);
    assert_eq!(users(&mut client, 2, None), expected[..2], "sorted before the cut");
}

#[test]
fn a_list_of_users_has_a_hundred_entries_unasked_and_five_hundred_at_most() {
    let server = Server::start(settings().admins(&["boss"]));
    let mut boss = registered(&server, "boss");
    operator(&server)
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
             INSERT INTO User (nickname, password_hash, created_at, last_seen) SELECT 'u' || i, '', 1, 1 FROM n",
        )
        .unwrap();
    let counts = [0, 7, 500, 501, u16::MAX].map(|limit| users(&mut boss, limit, Some(true)).len());
    assert_eq!(counts, [100, 7, 500, 500, 500]);
    let _visitors: Vec<_> = (0..105).map(|n| server.client_named(&format!("visitor{n}"))).collect();
    assert_eq!([0, 106, 7].map(|limit| users(&mut boss, limit, None).len()), [100, 106, 7]);
}

#[test]
fn the_list_with_those_offline_is_for_admins_and_holds_accounts() {
    let server = Server::start(settings().admins(&["boss"]));
    let mut alice = registered(&server, "alice");
    drop(registered(&server, "Zed"));
    let mut boss = registered(&server, "boss");
    let _visitor = server.client_named("visitor");
    let everybody = || ListUsers { limit: 0, include_offline: Tail(Some(true)) }.into();
    let refused = "Admin permission required for include_offline";
    check_refused(&mut alice, [(everybody(), 3000, refused)]);
    check_refused(&mut server.client_named("boss"), [(everybody(), 3000, refused)]);
    let mut list = users(&mut boss, 0, Some(true));
    // Whether the dropped connection has been noticed yet is another test's matter.
    list[0]["online"] = json!(false);
    assert_eq!(list, [person("Zed", Some(2), false), person("alice", Some(1), true), person("boss", Some(3), true)]);
}

#[test]
fn a_payload_without_the_optional_flag_is_read() {
    let server = start();
    let mut client = server.client_named("alice");
    client.send_raw(&frame(0x16, &[0, 5]));
    assert_eq!(items(&client.expect_reply("USER_LIST"), "users"), [person("alice", None, true)]);
}

// ---- LIST_CHANNEL_USERS ---------------------------------------------------------------------------------------------

fn people_in(client: &mut Client, channel_id: ChannelId) -> Vec<(Value, Value, Value)> {
    let answer = client.ask(ListChannelUsers { channel_id, subchannel_id: None }, "CHANNEL_USER_LIST");
    let row = |user: Value| (user["nickname"].clone(), user["user_id"].clone(), user["user_flags"].clone());
    items(&answer, "users").into_iter().map(row).collect()
}

#[test]
fn a_channel_lists_the_sessions_that_joined_it_by_name() {
    let server = Server::start(settings().admins(&["boss"]));
    let mut joined = [
        server.client_named("zoe"),
        registered(&server, "boss"),
        server.client_named("bob"),
        server.client_named("bob"),
    ];
    joined.iter_mut().for_each(|client| join(client, GENERAL));
    let mut elsewhere = server.client_named("elsewhere");
    join(&mut elsewhere, TECH);
    subscribe(&mut elsewhere, GENERAL);
    let mut nameless = server.client();
    join(&mut nameless, GENERAL);
    let row = |nickname: &str, user: Value, flags: u8| (json!(nickname), user, json!(flags));
    let expected = [
        row("bob", json!(null), 0),
        row("bob", json!(null), 0),
        row("boss", json!("1"), 1),
        row("zoe", json!(null), 0),
    ];
    for client in joined.iter_mut().chain([&mut elsewhere, &mut nameless]) {
        assert_eq!(people_in(client, GENERAL), expected);
    }
    let answer = nameless.ask(ListChannelUsers { channel_id: GENERAL, subchannel_id: None }, "CHANNEL_USER_LIST");
    let sessions: Vec<_> = items(&answer, "users").iter().map(|user| number(&user["session_id"])).collect();
    assert!(sessions[0] < sessions[1], "namesakes by session");

    let [zoe, mut boss, ..] = joined;
    zoe.hang_up();
    boss.send(Logout {});
    join(&mut elsewhere, GENERAL);
    let expected = [
        row("bob", json!(null), 0),
        row("bob", json!(null), 0),
        row("boss", json!(null), 0),
        row("elsewhere", json!(null), 0),
    ];
    assert_eq!(people_in(&mut boss, GENERAL), expected);
    assert!(people_in(&mut boss, TECH).is_empty());
}

#[test]
fn people_of_no_channel_are_refused() {
    let server = start();
    let ask = |channel: u64, subchannel: Option<u64>| {
        ListChannelUsers { channel_id: ChannelId(channel), subchannel_id: subchannel.map(ChannelId) }.into()
    };
    check_refused(
        &mut server.client(),
        [
            (ask(0, None), 4001, "Channel not found"),
            (ask(999, None), 4001, "Channel does not exist"),
            (ask(2, Some(3)), 4004, "Subchannel does not exist"),
        ],
    );
}
