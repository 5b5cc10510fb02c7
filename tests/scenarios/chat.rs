//! Channels and messages: listing, entering, creating, posting, editing, deleting, subscribing (BEHAVIOUR.md 2.5 to
//! 2.15, 2.18).

use serde_json::{Value, json};
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::ClientMessage;
use superchat::wire::client::{
    CreateChannel, DeleteMessage, EditMessage, JoinChannel, LeaveChannel, ListChannels, ListMessages, PostMessage,
    SubscribeChannel, SubscribeThread, UnsubscribeChannel, UnsubscribeThread,
};
use superchat::wire::codec::{Bounded, Tail};

use crate::steps::*;
use crate::support::{Client, Server, Settings};

const NOWHERE: ChannelId = ChannelId(999);

// ---- LIST_CHANNELS --------------------------------------------------------------------------------------------------

fn channels(client: &mut Client, from: u64, limit: u16) -> Vec<Value> {
    items(&client.ask(ListChannels { from_channel_id: ChannelId(from), limit }, "CHANNEL_LIST"), "channels")
}

fn channel_names(client: &mut Client, from: u64, limit: u16) -> Vec<Value> {
    channels(client, from, limit).into_iter().map(|channel| channel["name"].clone()).collect()
}

#[test]
fn a_new_server_has_the_five_seed_channels() {
    let server = start();
    let seed = |id: u64, name: &str, description: &str, channel_type: u8, hours: u32| {
        json!({ "channel_id": id.to_string(), "name": name, "description": description, "user_count": 0,
            "is_operator": false, "channel_type": channel_type, "retention_hours": hours, "has_subchannels": false,
            "subchannel_count": 0 })
    };
    let expected = [
        seed(1, "chat", "General chat (linear conversation)", 0, 24),
        seed(5, "feedback", "Bug reports and feature requests", 1, 168),
        seed(2, "general", "General discussion", 1, 168),
        seed(4, "random", "Off-topic chat", 1, 168),
        seed(3, "tech", "Technical topics", 1, 168),
    ];
    assert_eq!(channels(&mut server.client(), 0, 0), expected);
    let shown = rows(&server, "SELECT display_name FROM Channel ORDER BY id");
    assert_eq!(shown.concat(), [">chat", "#general", "#tech", "#random", "#feedback"]);
}

#[test]
fn channels_are_listed_by_name_and_behind_a_cursor_by_id() {
    let server = start();
    let mut client = server.client();
    assert_eq!(channel_names(&mut client, 0, 2), ["chat", "feedback"]);
    assert_eq!(channel_names(&mut client, 2, 2), ["tech", "random"]);
    assert_eq!(channel_names(&mut client, 2, 0), ["tech", "random", "feedback"]);
    assert!(channel_names(&mut client, 5, 10).is_empty());
}

#[test]
fn user_count_is_the_number_of_subscribers_on_all_shards() {
    let server = start();
    let mut sessions: Vec<_> = (0..4).map(|_| server.client()).collect();
    sessions[..3].iter_mut().for_each(|session| subscribe(session, GENERAL));
    join(&mut sessions[3], GENERAL);
    let count = |client: &mut Client| channels(client, 1, 1)[0]["user_count"].clone();
    assert_eq!(sessions.iter_mut().map(count).collect::<Vec<_>>(), [3, 3, 3, 3]);
    sessions.remove(0).hang_up();
    assert_eq!(sessions.iter_mut().map(count).collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn configured_seeds_replace_the_five_in_a_new_file_only() {
    let lobby = settings()
        .set("[channels.seed_channels]", "name", "lobby")
        .set("[channels.seed_channels]", "description", "Come in")
        .set("retention", "default_retention_hours", 48);
    let mut server = Server::start(lobby);
    let [channel] = &channels(&mut server.client(), 0, 0)[..] else { panic!("one seed, one channel") };
    assert_eq!(
        (&channel["name"], &channel["channel_type"], &channel["retention_hours"]),
        (&json!("lobby"), &json!(1), &json!(48))
    );

    operator(&server).execute_batch("DELETE FROM Channel").unwrap();
    server.stop();
    server.reconfigure(settings());
    server.resume();
    assert!(channels(&mut server.client(), 0, 0).is_empty(), "a deleted seed does not come back");
}

// ---- JOIN_CHANNEL, LEAVE_CHANNEL ------------------------------------------------------------------------------------

#[test]
fn joining_and_leaving_are_answered_in_their_own_replies() {
    let server = start();
    let mut client = server.client_named("alice");
    let enter = |channel_id, subchannel_id| ClientMessage::from(JoinChannel { channel_id, subchannel_id });
    let leave = |channel_id| LeaveChannel { channel_id, subchannel_id: None, permanent: Tail(None) }.into();
    let cases = [
        (leave(GENERAL), false, GENERAL, "Not currently joined to any channel"),
        (enter(NOWHERE, None), false, NOWHERE, "Channel not found"),
        (enter(GENERAL, Some(TECH)), false, GENERAL, "Subchannel does not exist"),
        (enter(GENERAL, None), true, GENERAL, "Joined channel"),
        (enter(GENERAL, None), true, GENERAL, "Joined channel"),
        (leave(TECH), false, TECH, "Session is not joined to the requested channel"),
        (enter(TECH, None), true, TECH, "Joined channel"),
        (leave(ChannelId(0)), true, TECH, "Left channel"),
        (leave(ChannelId(0)), false, ChannelId(0), "Not currently joined to any channel"),
    ];
    for (request, success, channel, message) in cases {
        let reply = if matches!(request, ClientMessage::JoinChannel(_)) { "JOIN_RESPONSE" } else { "LEAVE_RESPONSE" };
        let asked = format!("{request:?}");
        let answer = Value::Object(client.ask(request, reply));
        let channel_id = channel.0.to_string();
        assert_eq!(
            answer,
            json!({ "success": success, "channel_id": channel_id, "subchannel_id": null, "message": message }),
            "{asked}"
        );
    }
}

#[test]
fn an_empty_leave_means_the_joined_channel() {
    let server = start();
    let mut client = server.client_named("alice");
    join(&mut client, TECH);
    client.send_raw(&frame(0x06, b""));
    let answer = client.expect_reply("LEAVE_RESPONSE");
    assert_eq!((&answer["success"], &answer["channel_id"]), (&json!(true), &json!("3")));
}

#[test]
fn joining_subscribes_to_nothing_and_leaving_keeps_subscriptions() {
    let server = start();
    let (mut author, mut joined, mut left) =
        (server.client_named("author"), server.client_named("joined"), server.client_named("left"));
    join(&mut joined, GENERAL);
    join(&mut left, GENERAL);
    subscribe(&mut left, GENERAL);
    left.ask(LeaveChannel { channel_id: GENERAL, subchannel_id: None, permanent: Tail(Some(false)) }, "LEAVE_RESPONSE");
    posted(&mut author, post(GENERAL, b"hello"));
    assert!(heard(&mut joined).is_empty());
    assert_eq!(heard_names(&mut left), ["NEW_MESSAGE"]);
}

// ---- CREATE_CHANNEL -------------------------------------------------------------------------------------------------

#[test]
fn a_channel_is_refused_for_the_first_rule_it_breaks() {
    const LONG: &[u8] = &[b'x'; 501];
    let server = start();
    let mut visitor = server.client_named("visitor");
    let rust = forum("rust");
    let anonymous = "Only registered users can create channels. Please register or log in.";
    check_failed(&mut visitor, "CHANNEL_CREATED", [(CreateChannel { name: b"", ..rust.clone() }.into(), anonymous)]);

    let mut alice = registered(&server, "alice");
    let length = "Channel name must be 3-50 characters";
    let display = "Display name must be 1-100 characters";
    let description = "Description must be at most 500 characters";
    let kind = "Invalid channel type (must be 0=chat or 1=forum)";
    let hours = "Retention hours must be between 1 and 8760 (1 year)";
    let with = |change: fn(&mut CreateChannel<'static>)| {
        let mut request = forum("rust");
        change(&mut request);
        ClientMessage::from(request)
    };
    let cases = [
        (with(|c| (c.name, c.display_name) = (b"ab", b"")), length),
        (with(|c| c.name = &LONG[..51]), length),
        (with(|c| (c.display_name, c.description) = (b"", Some(LONG))), display),
        (with(|c| c.display_name = &LONG[..101]), display),
        (with(|c| c.display_name = b"\x1b\x07"), display),
        (with(|c| (c.description, c.channel_type) = (Some(LONG), 2)), description),
        (with(|c| (c.channel_type, c.retention_hours) = (2, 0)), kind),
        (with(|c| c.retention_hours = 0), hours),
        (with(|c| c.retention_hours = 8761), hours),
        (with(|c| c.name = b"dm_1_2"), "Invalid channel name"),
        (with(|c| c.name = b"#rust"), "Invalid channel name"),
        (with(|c| c.name = b"a b c"), "Invalid channel name"),
        (with(|c| c.name = b"a/b"), "Invalid channel name"),
        (with(|c| c.name = b"\xff\xfe\xfd"), "Invalid channel name"),
        (with(|c| c.name = b"general"), "Channel name already exists"),
    ];
    check_failed(&mut alice, "CHANNEL_CREATED", cases);
    alice.send_raw(&frame(0x07, b"\0"));
    assert_eq!(alice.expect_reply("CHANNEL_CREATED")["message"], "Invalid request format");
    assert!(heard(&mut visitor).is_empty(), "failures are the requester's own");
    assert_eq!(rows(&server, "SELECT count(*) FROM Channel").concat(), ["5"]);
}

#[test]
fn a_new_channel_is_told_once_to_everybody() {
    let mut server = start();
    let mut alice = registered(&server, "alice");
    let mut others = [server.client(), server.client_named("bob"), server.client()];
    let request = CreateChannel {
        name: b"rust",
        display_name: b"Rust\x07 talk",
        description: Some(b"Crabs"),
        channel_type: 0,
        retention_hours: 8760,
    };
    let reply = Value::Object(alice.ask(request, "CHANNEL_CREATED"));
    let expected = |message: &str| {
        json!({ "success": true, "channel_id": "6", "name": "rust", "description": "Crabs", "channel_type": 0,
            "retention_hours": 8760, "message": message })
    };
    assert_eq!(reply, expected("Channel 'Rust talk' created successfully"));
    assert!(heard(&mut alice).is_empty(), "clients append a channel for every copy");
    for other in &mut others {
        let [told] = &heard(other)[..] else { panic!("one copy") };
        assert_eq!(
            (told.name.as_str(), Value::Object(told.fields.clone())),
            ("CHANNEL_CREATED", expected("New channel 'Rust talk' created"))
        );
    }
    let stored = rows(
        &server,
        "SELECT name, display_name, description, channel_type, message_retention_hours, created_by, parent_id
         FROM Channel WHERE id = 6",
    );
    assert_eq!(stored, [["rust", "Rust talk", "Crabs", "0", "8760", "1", "NULL"]]);
    server.kill9();
    server.resume();
    assert_eq!(channel_names(&mut server.client(), 5, 0), ["rust"]);
}

#[test]
fn channels_and_subchannels_share_one_rate_per_user() {
    let server = Server::start(limited().set("limits", "max_channel_creates", 2));
    let mut alice = registered(&server, "alice");
    created(&mut alice, "one");
    created(&mut alice, "two");
    let text = "Channel creation rate limit exceeded";
    check_failed(&mut alice, "CHANNEL_CREATED", [(forum("three").into(), text)]);
    created(&mut registered(&server, "bobby"), "four");
}

// ---- POST_MESSAGE ---------------------------------------------------------------------------------------------------

#[test]
fn a_post_is_refused_for_the_first_rule_it_breaks() {
    const LONG: &[u8] = &[b'x'; 65];
    let server = Server::start(settings().set("limits", "max_message_length", 64));
    let nameless = (post(NOWHERE, LONG).into(), 2000, "Nickname required. Use SET_NICKNAME first.");
    check_refused(&mut server.client(), [nameless]);

    let mut alice = server.client_named("alice");
    let mut listener = server.client();
    subscribe(&mut listener, GENERAL);
    let elsewhere = posted(&mut alice, post(TECH, b"elsewhere"));
    let in_chat = posted(&mut alice, post(CHAT, b"line"));
    check_refused(
        &mut alice,
        [
            (post(NOWHERE, LONG).into(), 6001, "Message too long (max 64 bytes)"),
            (post(NOWHERE, b"x").into(), 4001, "Channel not found"),
            (
                PostMessage { subchannel_id: Some(TECH), ..post(GENERAL, b"x") }.into(),
                4004,
                "Subchannel does not exist",
            ),
            (reply(CHAT, in_chat, b"x").into(), 6000, "Chat channels do not support threaded replies"),
            (reply(GENERAL, MessageId(77), b"x").into(), 4002, "Message not found"),
            (reply(GENERAL, elsewhere, b"x").into(), 4002, "Message not found"),
            (post(GENERAL, b"\x1b\x07\0").into(), 1000, "Invalid message format"),
        ],
    );
    alice.send_raw(&frame(0x0A, &[&[0; 7][..], &[2, 0, 0, 0, 0]].concat()));
    assert_eq!(alice.expect_error(1000), "Invalid message format", "empty content");
    let too_long_for_the_codec = [&[0; 7][..], &[2, 0, 0, 0x10, 1], &[b'x'; 4097]].concat();
    alice.send_raw(&frame(0x0A, &too_long_for_the_codec));
    assert_eq!(alice.expect_error(6001), "Message too long (max 64 bytes)");
    assert!(heard(&mut listener).is_empty());
    assert_eq!(rows(&server, "SELECT content FROM Message ORDER BY id").concat(), ["elsewhere", "line"]);
}

#[test]
fn a_post_reaches_subscribers_and_its_author_after_the_answer() {
    let server = start();
    let mut alice = server.client_named("alice");
    let mut subscribers = [server.client_named("bob"), server.client()];
    let mut joined = server.client_named("joined");
    subscribe(&mut alice, GENERAL);
    subscribers.iter_mut().for_each(|subscriber| subscribe(subscriber, GENERAL));
    join(&mut joined, GENERAL);

    let id = posted(&mut alice, post(GENERAL, b"hello"));
    let [own] = &heard(&mut alice)[..] else { panic!("one copy after the answer") };
    let message = json!({ "message_id": id.0.to_string(), "channel_id": "2", "subchannel_id": null, "parent_id": null,
        "author_user_id": null, "author_nickname": "~alice", "content": "hello", "created_at": own.fields["created_at"],
        "edited_at": null, "reply_count": 0 });
    assert_eq!(Value::Object(own.fields.clone()), message);
    for subscriber in &mut subscribers {
        let [told] = &heard(subscriber)[..] else { panic!("one copy") };
        assert_eq!(Value::Object(told.fields.clone()), message);
    }
    assert!(heard(&mut joined).is_empty());
    assert_eq!(listed(&mut joined, roots(GENERAL)), [message]);
    let stored = rows(
        &server,
        "SELECT id, channel_id, parent_id, thread_root_id, author_user_id, author_nickname, content FROM Message",
    );
    let id = id.0.to_string();
    assert_eq!(stored, [[&id, "2", "NULL", &id, "NULL", "alice", "hello"]]);
}

#[test]
fn posts_of_several_authors_arrive_everywhere_in_one_order() {
    let server = start();
    let mut authors: Vec<_> = (0..4).map(|n| server.client_named(&format!("author{n}"))).collect();
    let mut readers: Vec<_> = (0..4).map(|_| server.client()).collect();
    readers.iter_mut().for_each(|reader| subscribe(reader, GENERAL));
    for round in 0..10 {
        let text = format!("round {round}");
        authors.iter_mut().for_each(|author| author.send(post(GENERAL, text.as_bytes())));
    }
    for author in &mut authors {
        (0..10).for_each(|_| drop(author.expect_reply("MESSAGE_POSTED")));
    }
    let ids = |reader: &mut Client| -> Vec<_> {
        heard(reader).iter().map(|frame| number(&frame.fields["message_id"])).collect()
    };
    let first = ids(&mut readers[0]);
    assert_eq!(first.len(), 40);
    assert!(first.is_sorted());
    readers[1..].iter_mut().for_each(|reader| assert_eq!(ids(reader), first));
}

#[test]
fn the_message_rate_counts_per_user_and_per_visitor() {
    let server = Server::start(limited().set("limits", "message_rate_limit", 2));
    let text = "Message rate limit exceeded";
    for mut author in [registered(&server, "alice"), registered(&server, "bobby")] {
        posted(&mut author, post(GENERAL, b"1"));
        posted(&mut author, post(GENERAL, b"2"));
        check_refused(&mut author, [(post(GENERAL, b"3").into(), 5001, text)]);
    }
    assert_eq!(rows(&server, "SELECT count(*) FROM Message").concat(), ["4"]);
}

#[test]
fn control_characters_are_removed_and_tabs_and_lines_stay() {
    let dirty: &[u8] = b"a\x1b[31mb\r\n\tc\x7f\xc2\x9bd\xff";
    for (sanitize, kept) in [(true, &b"a[31mb\n\tcd\xff"[..]), (false, dirty)] {
        let server = Server::start(settings().set("server", "sanitize_content", sanitize));
        let mut alice = registered(&server, "alice");
        let id = posted(&mut alice, post(GENERAL, dirty));
        let expected = [json!({ "bytes_hex": superchat::wire::json::to_hex(kept) })];
        assert_eq!(contents(&mut alice, roots(GENERAL)), expected);
        alice.ask(EditMessage { message_id: id, new_content: Bounded(dirty) }, "MESSAGE_EDITED");
        assert_eq!(contents(&mut alice, roots(GENERAL)), expected);
    }
}

#[test]
fn content_is_bytes_in_broadcast_list_and_file_and_after_a_restart() {
    let content: Vec<u8> = (0xa0..=0xff).chain(b"text".iter().copied()).collect();
    let mut server = start();
    let (mut alice, mut bob) = (server.client_named("alice"), server.client());
    subscribe(&mut bob, GENERAL);
    posted(&mut alice, post(GENERAL, &content));
    let expected = json!({ "bytes_hex": superchat::wire::json::to_hex(&content) });
    assert_eq!(bob.expect_broadcast("NEW_MESSAGE")["content"], expected);
    let conn = operator(&server);
    let stored: (String, Vec<u8>) = conn
        .query_row("SELECT typeof(content), CAST(content AS BLOB) FROM Message", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(stored, ("text".to_owned(), content));
    drop(conn);
    server.kill9();
    server.resume();
    assert_eq!(contents(&mut server.client(), roots(GENERAL)), [expected]);
}

#[test]
fn authors_carry_the_sign_of_what_they_are_now() {
    let server = Server::start(settings().admins(&["boss"]).set("server", "moderator_users", json!(["warden"])));
    let mut reader = server.client();
    subscribe(&mut reader, GENERAL);
    let mut authors = [
        server.client_named("visitor"),
        registered(&server, "member"),
        registered(&server, "warden"),
        registered(&server, "boss"),
    ];
    let shown = ["~visitor", "member", "@warden", "$boss"];
    for (author, name) in authors.iter_mut().zip(shown) {
        posted(author, post(GENERAL, b"x"));
        assert_eq!(reader.expect_broadcast("NEW_MESSAGE")["author_nickname"], name);
    }
    let oldest_first = ListMessages { after_id: Some(MessageId(0)), ..roots(GENERAL) };
    assert_eq!(column(&mut reader, oldest_first.clone(), "author_nickname"), shown);
    assert_eq!(
        column(&mut reader, oldest_first.clone(), "author_user_id"),
        [json!(null), json!("1"), json!("2"), json!("3")]
    );
    assert_eq!(
        rows(&server, "SELECT author_nickname FROM Message ORDER BY id").concat(),
        ["visitor", "member", "warden", "boss"]
    );

    operator(&server)
        .execute_batch(
            "UPDATE User SET nickname = 'renamed' WHERE nickname = 'member';
             UPDATE Message SET author_user_id = NULL WHERE author_nickname = 'warden';
             UPDATE Message SET author_user_id = 404 WHERE author_nickname = 'boss'",
        )
        .unwrap();
    assert_eq!(column(&mut reader, oldest_first, "author_nickname"), ["~visitor", "renamed", "~warden", "<user:404>"]);
}

// ---- LIST_MESSAGES, roots -------------------------------------------------------------------------------------------

#[test]
fn pages_of_roots_follow_their_cursor() {
    let server = start();
    let mut client = server.client_named("alice");
    let ids: Vec<MessageId> = (0..10).map(|n| posted(&mut client, post(GENERAL, n.to_string().as_bytes()))).collect();
    let page = |limit, before: Option<usize>, after: Option<usize>| ListMessages {
        limit,
        before_id: before.map(|n| ids[n]),
        after_id: after.map(|n| ids[n]),
        ..roots(GENERAL)
    };
    let everything = ListMessages { before_id: Some(MessageId(u64::MAX >> 1)), ..roots(GENERAL) };
    let cases = [
        (roots(GENERAL), vec![9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (everything, vec![9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (page(3, None, None), vec![9, 8, 7]),
        (page(3, Some(7), None), vec![6, 5, 4]),
        (page(3, Some(1), None), vec![0]),
        (page(3, Some(0), None), vec![]),
        (page(3, None, Some(4)), vec![5, 6, 7]),
        (page(0, None, Some(9)), vec![]),
        (page(2, Some(5), Some(1)), vec![4, 3]),
        (roots(TECH), vec![]),
        (roots(NOWHERE), vec![]),
        (ListMessages { subchannel_id: Some(TECH), ..roots(GENERAL) }, vec![]),
    ];
    for (request, expected) in cases {
        let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(contents(&mut client, request.clone()), expected, "{request:?}");
    }
}

#[test]
fn a_list_echoes_what_was_asked() {
    let server = start();
    let request = ListMessages { subchannel_id: Some(ChannelId(7)), parent_id: Some(MessageId(8)), ..roots(NOWHERE) };
    let answer = server.client().ask(request, "MESSAGE_LIST");
    assert_eq!(
        Value::Object(answer),
        json!({ "channel_id": "999", "subchannel_id": "7", "parent_id": "8", "messages": [] })
    );
}

#[test]
fn a_page_has_fifty_messages_unasked_and_two_hundred_at_most() {
    let server = start();
    let mut client = server.client_named("alice");
    let first = posted(&mut client, post(GENERAL, b"x"));
    for _ in 0..200 {
        posted(&mut client, post(GENERAL, b"x"));
    }
    let count = |client: &mut Client, limit, parent_id, channel| {
        listed(client, ListMessages { limit, parent_id, ..roots(channel) }).len()
    };
    let counts = [0, 200, 201, u16::MAX].map(|limit| count(&mut client, limit, None, GENERAL));
    assert_eq!(counts, [50, 200, 200, 200]);
    for _ in 0..201 {
        posted(&mut client, reply(GENERAL, first, b"x"));
    }
    let counts = [0, 200, u16::MAX].map(|limit| count(&mut client, limit, Some(first), GENERAL));
    assert_eq!(counts, [50, 200, 200]);
}

// ---- EDIT_MESSAGE ---------------------------------------------------------------------------------------------------

fn edit(message_id: MessageId, content: &'static [u8]) -> EditMessage<'static> {
    EditMessage { message_id, new_content: Bounded(content) }
}

#[test]
fn an_edit_is_refused_for_the_first_rule_it_breaks() {
    const LONG: &[u8] = &[b'x'; 65];
    let server = Server::start(settings().admins(&["boss"]).set("limits", "max_message_length", 64));
    let (mut alice, mut mallory, mut boss) =
        (registered(&server, "alice"), registered(&server, "mallory"), registered(&server, "boss"));
    let mut visitor = server.client_named("visitor");
    let (own, gone, anonymous) = (
        posted(&mut alice, post(GENERAL, b"own")),
        posted(&mut alice, post(GENERAL, b"gone")),
        posted(&mut visitor, post(GENERAL, b"anon")),
    );
    alice.ask(DeleteMessage { message_id: gone }, "MESSAGE_DELETED");

    check_refused(
        &mut visitor,
        [(edit(anonymous, LONG).into(), 2000, "Authentication required. Register to edit messages.")],
    );
    let cannot = (edit(anonymous, b"x").into(), 3000, "Cannot edit anonymous messages");
    check_refused(
        &mut mallory,
        [
            (edit(MessageId(5), LONG).into(), 6001, "Message too long (max 64 bytes)"),
            (edit(MessageId(5), b"x").into(), 4002, "Message not found"),
            cannot.clone(),
            (edit(own, b"x").into(), 3000, "You can only edit your own messages"),
            (edit(gone, b"x").into(), 3000, "You can only edit your own messages"),
        ],
    );
    check_refused(&mut boss, [cannot, (edit(gone, b"x").into(), 6000, "Cannot edit deleted message")]);
    check_refused(
        &mut alice,
        [
            (edit(gone, b"x").into(), 6000, "Cannot edit deleted message"),
            (edit(own, b"\x07").into(), 1000, "Invalid message format"),
        ],
    );
    assert_eq!(rows(&server, "SELECT edited_at FROM Message").concat(), ["NULL", "NULL", "NULL"]);
}

#[test]
fn an_edit_is_stored_with_its_history_and_told_once_to_all_who_look() {
    let server = Server::start(settings().admins(&["boss"]));
    let (mut alice, mut boss) = (registered(&server, "alice"), registered(&server, "boss"));
    let id = posted(&mut alice, post(GENERAL, b"first"));
    let mut audience = onlookers(&server, id);
    let mut stranger = server.client_named("stranger");
    subscribe(&mut alice, GENERAL);
    join(&mut alice, GENERAL);

    let answer = Value::Object(alice.ask(edit(id, b"second"), "MESSAGE_EDITED"));
    let expected = json!({ "success": true, "message_id": id.0.to_string(), "edited_at": answer["edited_at"],
        "new_content": "second", "message": "" });
    assert_eq!(answer, expected);
    check_told_once(&mut audience, "MESSAGE_EDITED", &expected);
    assert!(heard(&mut alice).is_empty(), "the answer is the editor's copy");
    assert!(heard(&mut stranger).is_empty());
    let [message] = &listed(&mut stranger, roots(GENERAL))[..] else { panic!("one message") };
    assert_eq!((&message["content"], &message["edited_at"]), (&json!("second"), &answer["edited_at"]));

    boss.ask(edit(id, b"third"), "MESSAGE_EDITED");
    assert_eq!(alice.expect_broadcast("MESSAGE_EDITED")["new_content"], "third");
    let versions = rows(&server, "SELECT content, author_nickname, version_type FROM MessageVersion ORDER BY id");
    assert_eq!(versions, [["first", "alice", "edited"], ["second", "alice", "edited"]]);
    let audit = rows(&server, "SELECT admin_nickname, action_type, target_type, target_id FROM AdminAction");
    assert_eq!(audit, [["boss", "EDIT_MESSAGE", "message", &id.0.to_string()]]);
}

/// Joined, subscribed, following the thread, and all of that together.
fn onlookers(server: &Server, id: MessageId) -> [Client; 4] {
    let mut clients = ["joined", "subscribed", "follower", "everything"].map(|name| server.client_named(name));
    let [joined, subscribed, follower, everything] = &mut clients;
    for client in [&mut *joined, everything] {
        join(client, GENERAL);
    }
    for client in [subscribed, everything] {
        subscribe(client, GENERAL);
    }
    for client in [follower, everything] {
        follow(client, id);
    }
    clients
}

fn check_told_once(clients: &mut [Client], name: &str, expected: &Value) {
    for client in clients {
        let [told] = &heard(client)[..] else { panic!("one copy") };
        assert_eq!((told.name.as_str(), &Value::Object(told.fields.clone())), (name, expected));
    }
}

// ---- DELETE_MESSAGE -------------------------------------------------------------------------------------------------

fn delete(message_id: MessageId) -> DeleteMessage {
    DeleteMessage { message_id }
}

const NOT_YOURS: &str = "You can only delete your own messages";

#[test]
fn a_deletion_is_refused_for_the_first_rule_it_breaks() {
    let server = start();
    let (mut alice, mut mallory) = (registered(&server, "alice"), registered(&server, "mallory"));
    let mut namesake = server.client_named("alice");
    let (own, gone) = (posted(&mut alice, post(GENERAL, b"own")), posted(&mut alice, post(GENERAL, b"gone")));
    alice.ask(delete(gone), "MESSAGE_DELETED");
    check_refused(&mut server.client(), [(delete(own).into(), 6004, "Nickname required. Use SET_NICKNAME first.")]);
    check_refused(
        &mut mallory,
        [
            (delete(MessageId(5)).into(), 4002, "Message not found"),
            (delete(gone).into(), 6000, "Message already deleted"),
            (delete(own).into(), 3000, NOT_YOURS),
        ],
    );
    check_refused(&mut namesake, [(delete(own).into(), 3000, NOT_YOURS)]);
    assert_eq!(rows(&server, "SELECT content FROM Message ORDER BY id").concat(), ["own", "[deleted by ~alice]"]);
}

#[test]
fn a_deletion_leaves_a_placeholder_and_is_told_once_to_all_who_look() {
    let server = Server::start(settings().admins(&["boss"]));
    let (mut alice, mut boss) = (registered(&server, "alice"), registered(&server, "boss"));
    let (id, other) = (posted(&mut alice, post(GENERAL, b"secret")), posted(&mut alice, post(GENERAL, b"other")));
    let mut audience = onlookers(&server, id);
    join(&mut alice, GENERAL);
    let answer = Value::Object(alice.ask(delete(id), "MESSAGE_DELETED"));
    let expected = json!({ "success": true, "message_id": id.0.to_string(), "deleted_at": answer["deleted_at"],
        "message": "[deleted by ~alice]" });
    assert_eq!(answer, expected);
    check_told_once(&mut audience, "MESSAGE_DELETED", &expected);
    assert!(heard(&mut alice).is_empty(), "the answer is the deleter's copy");

    assert_eq!(boss.ask(delete(other), "MESSAGE_DELETED")["message"], "[deleted by ~boss]");
    assert!(listed(&mut boss, roots(GENERAL)).is_empty());
    let versions =
        rows(&server, "SELECT message_id, content, author_nickname, version_type FROM MessageVersion ORDER BY id");
    assert_eq!(
        versions,
        [[&id.0.to_string(), "secret", "alice", "deleted"], [&other.0.to_string(), "other", "alice", "deleted"]]
    );
    let audit = rows(&server, "SELECT admin_nickname, action_type, target_id, ip_address FROM AdminAction");
    assert_eq!(audit, [["boss", "DELETE_MESSAGE", &other.0.to_string(), "127.0.0.1"]]);
}

#[test]
fn a_visitors_message_belongs_to_its_session_and_to_its_name_at_its_address() {
    let mut server = Server::start(settings().admins(&["boss"]));
    let mut author = server.client_named("ghost");
    let ids: Vec<_> = (0..4).map(|_| posted(&mut author, post(GENERAL, b"boo"))).collect();
    check_refused(&mut server.client_named("other"), [(delete(ids[0]).into(), 3000, NOT_YOURS)]);
    author.send_json("SET_NICKNAME", json!({ "nickname": "renamed" }));
    author.expect_reply("NICKNAME_RESPONSE");
    assert_eq!(author.ask(delete(ids[0]), "MESSAGE_DELETED")["message"], "[deleted by ~renamed]");
    author.hang_up();
    assert_eq!(server.client_named("ghost").ask(delete(ids[1]), "MESSAGE_DELETED")["success"], true);
    let mut boss = registered(&server, "boss");
    assert_eq!(boss.ask(delete(ids[2]), "MESSAGE_DELETED")["message"], "[deleted by ~boss]");

    server.stop();
    server.resume();
    check_refused(&mut server.client_named("ghost"), [(delete(ids[3]).into(), 3000, NOT_YOURS)]);
}

// ---- Subscriptions --------------------------------------------------------------------------------------------------

#[test]
fn subscriptions_are_limited_and_a_repeat_is_free() {
    let server = Server::start(settings().set("limits", "max_channel_subscriptions", 2).set(
        "limits",
        "max_thread_subscriptions",
        2,
    ));
    let mut client = server.client_named("alice");
    let ids: Vec<_> = (0..3).map(|_| posted(&mut client, post(GENERAL, b"x"))).collect();
    let channel = |channel_id, subchannel_id| ClientMessage::from(SubscribeChannel { channel_id, subchannel_id });
    let thread = |thread_id| ClientMessage::from(SubscribeThread { thread_id });
    for accepted in [
        channel(CHAT, None),
        channel(GENERAL, None),
        channel(CHAT, None),
        thread(ids[0]),
        thread(ids[1]),
        thread(ids[0]),
    ] {
        client.ask(accepted, "SUBSCRIBE_OK");
    }
    check_refused(
        &mut client,
        [
            (channel(NOWHERE, None), 4001, "Channel does not exist"),
            (channel(GENERAL, Some(TECH)), 4004, "Subchannel does not exist"),
            (channel(TECH, None), 5005, "Channel subscription limit exceeded (max 2 per session)"),
            (thread(MessageId(5)), 4003, "Thread does not exist"),
            (thread(ids[2]), 5004, "Thread subscription limit exceeded (max 2 per session)"),
        ],
    );
    client.ask(UnsubscribeChannel { channel_id: CHAT, subchannel_id: None }, "SUBSCRIBE_OK");
    client.ask(channel(TECH, None), "SUBSCRIBE_OK");
    client.ask(UnsubscribeThread { thread_id: ids[1] }, "SUBSCRIBE_OK");
    client.ask(thread(ids[2]), "SUBSCRIBE_OK");
}

#[test]
fn every_subscription_request_is_answered_with_its_kind_and_id() {
    let server = start();
    let mut client = server.client();
    let id = posted(&mut server.client_named("alice"), post(GENERAL, b"x"));
    let cases: [(ClientMessage<'_>, u8, u64); 6] = [
        (SubscribeChannel { channel_id: GENERAL, subchannel_id: None }.into(), 2, GENERAL.0),
        (UnsubscribeChannel { channel_id: GENERAL, subchannel_id: None }.into(), 2, GENERAL.0),
        (UnsubscribeChannel { channel_id: NOWHERE, subchannel_id: None }.into(), 2, NOWHERE.0),
        (SubscribeThread { thread_id: id }.into(), 1, id.0),
        (UnsubscribeThread { thread_id: id }.into(), 1, id.0),
        (UnsubscribeThread { thread_id: MessageId(5) }.into(), 1, 5),
    ];
    for (request, kind, id) in cases {
        let answer = Value::Object(client.ask(request, "SUBSCRIBE_OK"));
        assert_eq!(answer, json!({ "subscription_type": kind, "id": id.to_string(), "subchannel_id": null }));
    }
}

#[test]
fn who_unsubscribed_hears_no_more() {
    let server = start();
    let (mut author, mut reader) = (server.client_named("alice"), server.client());
    let root = posted(&mut author, post(GENERAL, b"root"));
    subscribe(&mut reader, GENERAL);
    follow(&mut reader, root);
    posted(&mut author, post(GENERAL, b"heard"));
    posted(&mut author, reply(GENERAL, root, b"heard too"));
    assert_eq!(heard_names(&mut reader), ["NEW_MESSAGE", "NEW_MESSAGE"]);
    reader.ask(UnsubscribeChannel { channel_id: GENERAL, subchannel_id: None }, "SUBSCRIBE_OK");
    posted(&mut author, post(GENERAL, b"unheard"));
    posted(&mut author, reply(GENERAL, root, b"heard still"));
    assert_eq!(heard(&mut reader).iter().map(|frame| &frame.fields["content"]).collect::<Vec<_>>(), ["heard still"]);
    reader.ask(UnsubscribeThread { thread_id: root }, "SUBSCRIBE_OK");
    posted(&mut author, reply(GENERAL, root, b"unheard"));
    assert!(heard(&mut reader).is_empty());
}

// ---- All together ---------------------------------------------------------------------------------------------------

#[test]
fn unreadable_requests_are_told_apart_and_the_session_goes_on() {
    let server = start();
    let mut client = server.client_named("alice");
    let format = "Invalid message format";
    let cases = [
        (0x01, format),
        (0x02, format),
        (0x03, format),
        (0x04, format),
        (0x05, format),
        (0x09, format),
        (0x0A, format),
        (0x0B, format),
        (0x0C, format),
        (0x0F, format),
        (0x10, format),
        (0x15, "Invalid request format"),
        (0x16, format),
        (0x17, format),
        (0x18, format),
        (0x1D, format),
        (0x51, format),
        (0x52, format),
        (0x53, format),
        (0x54, format),
    ];
    for (code, text) in cases {
        client.send_raw(&frame(code, b""));
        assert_eq!(client.expect_error(1000), text, "type {code:#04x}");
    }
    client.send_raw(&frame(0x50, b""));
    assert_eq!(client.expect_error(1001), "Unsupported message type");
    posted(&mut client, post(GENERAL, b"still here"));
}

#[test]
fn what_one_client_was_answered_is_known_on_every_shard() {
    let server = start();
    let mut alice = server.client_named("alice");
    let mut others: Vec<_> = (0..3).map(|_| server.client()).collect();
    others.iter_mut().for_each(|other| subscribe(other, GENERAL));
    for round in 0..300 {
        posted(&mut alice, post(GENERAL, b"x"));
        let other = &mut others[round % 3];
        assert_eq!(heard(other).len(), if round < 3 { round + 1 } else { 3 }, "round {round}");
    }
}

/// What three clients see of a small conversation, ids left out.
fn conversation(settings: Settings) -> Vec<String> {
    let server = Server::start(settings);
    let mut clients = [registered(&server, "alice"), server.client_named("bob"), server.client_named("carol")];
    for client in &mut clients {
        subscribe(client, GENERAL);
        join(client, GENERAL);
    }
    let root = posted(&mut clients[0], post(GENERAL, b"root"));
    clients.iter_mut().for_each(|client| follow(client, root));
    let answer = posted(&mut clients[1], reply(GENERAL, root, b"reply"));
    clients[0].ask(edit(root, b"edited"), "MESSAGE_EDITED");
    clients[1].ask(delete(answer), "MESSAGE_DELETED");
    created(&mut clients[0], "rust");
    let seen = |client: &mut Client| -> Vec<String> {
        heard(client)
            .iter()
            .map(|frame| {
                format!(
                    "{} {} {}",
                    frame.name,
                    frame.fields.get("content").unwrap_or(&Value::Null),
                    frame.fields.get("message").unwrap_or(&Value::Null)
                )
            })
            .collect()
    };
    clients.iter_mut().flat_map(seen).collect()
}

#[test]
fn a_conversation_is_the_same_on_one_shard_and_on_several() {
    let [one, two, three] = [1, 2, 3].map(|shards| conversation(Settings::new().set("server", "shards", shards)));
    assert_eq!(one, two);
    assert_eq!(one, three);
    let of_carol = [
        r#"NEW_MESSAGE "root" null"#,
        r#"NEW_MESSAGE "reply" null"#,
        r#"MESSAGE_EDITED null """#,
        r#"MESSAGE_DELETED null "[deleted by ~bob]""#,
        r#"CHANNEL_CREATED null "New channel 'rust' created""#,
    ];
    assert_eq!(one[one.len() - 5..], of_carol);
}
