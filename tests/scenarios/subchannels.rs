//! Subchannels: making and listing them, and the two ways to name one place (BEHAVIOUR.md 2.9 to 2.11).

use serde_json::{Value, json};
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::ClientMessage;
use superchat::wire::client::{
    CreateSubchannel, GetSubchannels, GetUnreadCounts, JoinChannel, LeaveChannel, ListChannelUsers, ListChannels,
    ListMessages, PostMessage, SubscribeChannel, SubscribeThread, UnsubscribeChannel,
};
use superchat::wire::codec::{List, Tail};
use superchat::wire::records::UnreadTarget;

use crate::steps::*;
use crate::support::link::Fields;
use crate::support::{Client, Server};

/// What the first channel and subchannel of a test get.
const RUST: ChannelId = ChannelId(6);
const ASYNC: ChannelId = ChannelId(7);

fn subchannel(parent: ChannelId, name: &'static str) -> CreateSubchannel<'static> {
    CreateSubchannel {
        channel_id: parent,
        name: name.as_bytes(),
        description: b"",
        channel_type: 1,
        retention_hours: 24,
    }
}

/// A server where alice made the forum `rust` with the subchannel `async`.
fn with_subchannel() -> (Server, Client) {
    let server = start();
    let mut alice = registered(&server, "alice");
    assert_eq!(created(&mut alice, "rust"), RUST);
    let answer = alice.ask(subchannel(RUST, "async"), "SUBCHANNEL_CREATED");
    assert_eq!(answer["subchannel_id"], ASYNC.0.to_string());
    (server, alice)
}

#[test]
fn a_subchannel_is_refused_for_the_first_rule_it_breaks() {
    const LONG: &[u8] = &[b'x'; 501];
    let (server, mut alice) = with_subchannel();
    let anonymous = "Only registered users can create subchannels. Please register or log in.";
    let nowhere = subchannel(ChannelId(999), "tokio");
    check_failed(&mut server.client_named("visitor"), "SUBCHANNEL_CREATED", [(nowhere.clone().into(), anonymous)]);
    let owner = "Only the channel owner or admins can create subchannels";
    check_failed(&mut registered(&server, "mallory"), "SUBCHANNEL_CREATED", [(subchannel(RUST, "").into(), owner)]);
    let with = |change: fn(&mut CreateSubchannel<'static>)| {
        let mut request = subchannel(RUST, "tokio");
        change(&mut request);
        ClientMessage::from(request)
    };
    let nested = "Cannot create subchannels within subchannels (only one level of nesting allowed)";
    let cases = [
        (nowhere.into(), "Parent channel not found"),
        (subchannel(GENERAL, "tokio").into(), owner),
        (subchannel(ASYNC, "").into(), nested),
        (with(|c| (c.name, c.description) = (b"ab", LONG)), "Subchannel name must be 3-50 characters"),
        (with(|c| c.name = &LONG[..51]), "Subchannel name must be 3-50 characters"),
        (with(|c| (c.description, c.channel_type) = (LONG, 2)), "Description must be at most 500 characters"),
        (with(|c| (c.channel_type, c.retention_hours) = (2, 0)), "Invalid channel type (must be 0=chat or 1=forum)"),
        (with(|c| c.retention_hours = 8761), "Retention hours must be between 1 and 8760 (1 year)"),
        (with(|c| c.name = b"async"), "Subchannel name already exists in this channel"),
        (with(|c| c.name = b"general"), "Subchannel name already exists in this channel"),
    ];
    check_failed(&mut alice, "SUBCHANNEL_CREATED", cases);
    alice.send_raw(&frame(0x08, b""));
    assert_eq!(alice.expect_reply("SUBCHANNEL_CREATED")["message"], "Invalid request format");
    assert_eq!(rows(&server, "SELECT count(*) FROM Channel").concat(), ["7"]);
}

#[test]
fn a_new_subchannel_is_told_once_to_everybody_in_one_text() {
    let server = Server::start(settings().admins(&["boss"]));
    let mut boss = registered(&server, "boss");
    let mut others = [server.client(), server.client_named("bob"), server.client()];
    let request = CreateSubchannel { description: b"Nuts", channel_type: 0, ..subchannel(GENERAL, "bolts") };
    let reply = Value::Object(boss.ask(request, "SUBCHANNEL_CREATED"));
    let expected = json!({ "success": true, "channel_id": "2", "subchannel_id": "6", "name": "bolts",
        "description": "Nuts", "channel_type": 0, "retention_hours": 24, "message": "Subchannel 'bolts' created successfully" });
    assert_eq!(reply, expected);
    assert!(heard(&mut boss).is_empty());
    for other in &mut others {
        let [told] = &heard(other)[..] else { panic!("one copy") };
        assert_eq!((told.name.as_str(), &Value::Object(told.fields.clone())), ("SUBCHANNEL_CREATED", &expected));
    }
    let stored =
        rows(&server, "SELECT name, display_name, parent_id, channel_type, created_by FROM Channel WHERE id = 6");
    assert_eq!(stored, [["bolts", "#general/bolts", "2", "0", "1"]]);
}

#[test]
fn subchannels_are_listed_by_name_below_their_parent_alone_and_survive_a_restart() {
    let (mut server, mut alice) = with_subchannel();
    alice.ask(subchannel(RUST, "Async"), "SUBCHANNEL_CREATED");
    server.kill9();
    server.resume();
    let mut client = server.client();
    let list = client.ask(GetSubchannels { channel_id: RUST }, "SUBCHANNEL_LIST");
    assert_eq!(list["channel_id"], "6");
    let entry = |id: &str, name: &str| json!({ "subchannel_id": id, "name": name, "description": "", "channel_type": 1, "retention_hours": 24 });
    assert_eq!(items(&list, "subchannels"), [entry("8", "Async"), entry("7", "async")]);
    assert!(items(&client.ask(GetSubchannels { channel_id: ASYNC }, "SUBCHANNEL_LIST"), "subchannels").is_empty());
    check_refused(&mut client, [(GetSubchannels { channel_id: ChannelId(99) }.into(), 4001, "Channel not found")]);
    let channels = items(&client.ask(ListChannels { from_channel_id: GENERAL, limit: 0 }, "CHANNEL_LIST"), "channels");
    let counts: Vec<_> = channels
        .iter()
        .map(|channel| (&channel["name"], &channel["has_subchannels"], &channel["subchannel_count"]))
        .collect();
    assert_eq!(counts.last(), Some(&(&json!("rust"), &json!(true), &json!(2))));
    assert_eq!(counts.len(), 4, "subchannels are not in the list of channels");
}

// ---- Two spellings --------------------------------------------------------------------------------------------------

/// `(channel_id, subchannel_id)` as a frame carries them.
fn spelling(fields: &Fields) -> (String, Option<String>) {
    let text = |name: &str| fields[name].as_str().map(str::to_owned);
    (text("channel_id").unwrap(), text("subchannel_id"))
}

/// A way to name `async` in a request.
type Spelling = (ChannelId, Option<ChannelId>);

const OWN: Spelling = (ASYNC, None);
const PAIR: Spelling = (RUST, Some(ASYNC));

fn shown((channel, subchannel): Spelling) -> (String, Option<String>) {
    (channel.0.to_string(), subchannel.map(|id| id.0.to_string()))
}

fn list((channel, subchannel_id): Spelling) -> ListMessages {
    ListMessages { subchannel_id, ..roots(channel) }
}

fn write((channel, subchannel_id): Spelling, content: &[u8]) -> PostMessage<'_> {
    PostMessage { subchannel_id, ..post(channel, content) }
}

fn subscribe_as(client: &mut Client, (channel_id, subchannel_id): Spelling) {
    let answer = client.ask(SubscribeChannel { channel_id, subchannel_id }, "SUBSCRIBE_OK");
    let subchannel = subchannel_id.map(|id| id.0.to_string());
    assert_eq!((&answer["id"], &answer["subchannel_id"]), (&json!(channel_id.0.to_string()), &json!(subchannel)));
}

fn join_as(client: &mut Client, (channel_id, subchannel_id): Spelling) {
    let answer = client.ask(JoinChannel { channel_id, subchannel_id }, "JOIN_RESPONSE");
    assert_eq!((answer["success"].as_bool(), spelling(&answer)), (Some(true), shown((channel_id, subchannel_id))));
}

#[test]
fn both_spellings_post_and_list_one_place_that_is_not_the_parents() {
    let (server, mut alice) = with_subchannel();
    posted(&mut alice, write(OWN, b"own"));
    posted(&mut alice, write(PAIR, b"pair"));
    posted(&mut alice, write((RUST, None), b"parent"));
    let mut reader = server.client();
    for place in [OWN, PAIR] {
        let messages = listed(&mut reader, list(place));
        assert_eq!(messages.iter().map(|message| &message["content"]).collect::<Vec<_>>(), ["pair", "own"]);
        for message in messages {
            assert_eq!(spelling(message.as_object().unwrap()), shown(place));
        }
    }
    assert_eq!(contents(&mut reader, roots(RUST)), ["parent"]);
    let stored = rows(&server, "SELECT DISTINCT channel_id, subchannel_id FROM Message WHERE content <> 'parent'");
    assert_eq!(stored, [["7", "NULL"]]);
}

#[test]
fn each_subscriber_hears_in_the_spelling_it_used_last() {
    let (server, mut alice) = with_subchannel();
    let mut readers = [server.client(), server.client(), server.client(), server.client()];
    for (reader, place) in readers.iter_mut().zip([OWN, PAIR, OWN, PAIR]) {
        subscribe_as(reader, place);
    }
    subscribe_as(&mut readers[2], PAIR);
    listed(&mut readers[3], list(OWN));
    let mut of_parent = server.client();
    subscribe(&mut of_parent, RUST);
    for place in [OWN, PAIR] {
        posted(&mut alice, write(place, b"x"));
        let heard = readers.each_mut().map(|reader| spelling(&reader.expect_broadcast("NEW_MESSAGE")));
        assert_eq!(heard, [OWN, PAIR, PAIR, OWN].map(shown));
    }
    assert!(heard(&mut of_parent).is_empty());
    assert!(readers.iter_mut().all(|reader| heard(reader).is_empty()), "one copy each");
}

#[test]
fn a_subscription_in_one_spelling_ends_in_the_other() {
    let (server, mut alice) = with_subchannel();
    let mut reader = server.client();
    subscribe_as(&mut reader, OWN);
    reader.ask(UnsubscribeChannel { channel_id: RUST, subchannel_id: Some(ASYNC) }, "SUBSCRIBE_OK");
    posted(&mut alice, write(OWN, b"x"));
    assert!(heard(&mut reader).is_empty());
}

#[test]
fn threads_are_named_as_their_follower_names_the_place() {
    let (server, mut alice) = with_subchannel();
    let root = posted(&mut alice, write(OWN, b"root"));
    let mut followers = [server.client(), server.client(), server.client()];
    let [thread_only, own, pair] = &mut followers;
    listed(own, list(OWN));
    listed(pair, list(PAIR));
    for (follower, subchannel) in [(thread_only, json!(null)), (own, json!(null)), (pair, json!("7"))] {
        assert_eq!(follower.ask(SubscribeThread { thread_id: root }, "SUBSCRIBE_OK")["subchannel_id"], subchannel);
    }
    posted(&mut alice, PostMessage { parent_id: Some(root), ..write(PAIR, b"reply") });
    let heard = followers.each_mut().map(|follower| spelling(&follower.expect_broadcast("NEW_MESSAGE")));
    assert_eq!(heard, [OWN, OWN, PAIR].map(shown));
    let page = ListMessages { parent_id: Some(root), ..list(PAIR) };
    assert_eq!(contents(&mut followers[0], page), ["reply"]);
}

#[test]
fn joining_in_either_spelling_is_being_in_one_place() {
    let (server, mut alice) = with_subchannel();
    let mut bob = server.client_named("bob");
    join_as(&mut alice, OWN);
    join_as(&mut bob, PAIR);
    let about_bob = |client: &mut Client| {
        spelling(&client.expect_matching("CHANNEL_PRESENCE", |presence| presence["nickname"] == "bob"))
    };
    assert_eq!((about_bob(&mut alice), about_bob(&mut bob)), (shown(OWN), shown(PAIR)));
    for (channel_id, subchannel_id) in [OWN, PAIR] {
        let answer = alice.ask(ListChannelUsers { channel_id, subchannel_id }, "CHANNEL_USER_LIST");
        assert_eq!(spelling(&answer), shown((channel_id, subchannel_id)));
        let users: Vec<_> = items(&answer, "users").iter().map(|user| user["nickname"].clone()).collect();
        assert_eq!(users, ["alice", "bob"]);
    }
    for (name, answered) in [(ASYNC, RUST), (RUST, RUST)] {
        join_as(&mut bob, PAIR);
        let leave = LeaveChannel { channel_id: name, subchannel_id: None, permanent: Tail(None) };
        let answer = bob.ask(leave, "LEAVE_RESPONSE");
        assert_eq!((&answer["success"], &answer["channel_id"]), (&json!(true), &json!(answered.0.to_string())));
    }
}

#[test]
fn a_pair_that_does_not_fit_names_nothing() {
    let (server, mut alice) = with_subchannel();
    posted(&mut alice, write(OWN, b"x"));
    posted(&mut alice, write((GENERAL, None), b"x"));
    let mut client = server.client_named("bob");
    let misfit = (GENERAL, Some(ASYNC));
    let (channel_id, subchannel_id) = misfit;
    let text = "Subchannel does not exist";
    check_refused(
        &mut client,
        [
            (write(misfit, b"x").into(), 4004, text),
            (SubscribeChannel { channel_id, subchannel_id }.into(), 4004, text),
            (ListChannelUsers { channel_id, subchannel_id }.into(), 4004, text),
        ],
    );
    check_failed(&mut client, "JOIN_RESPONSE", [(JoinChannel { channel_id, subchannel_id }.into(), text)]);
    assert!(listed(&mut client, list(misfit)).is_empty());
    let target = UnreadTarget { channel_id, subchannel_id, thread_id: None };
    let counts = client.ask(GetUnreadCounts { since_timestamp: Some(0), targets: List(vec![target]) }, "UNREAD_COUNTS");
    assert_eq!(items(&counts, "counts")[0]["unread_count"], 0);
    client.ask(UnsubscribeChannel { channel_id, subchannel_id }, "SUBSCRIBE_OK");
}

#[test]
fn old_rows_with_a_subchannel_are_messages_of_that_subchannel() {
    let (server, mut alice) = with_subchannel();
    operator(&server)
        .execute_batch(
            "INSERT INTO Message
                 (id, channel_id, subchannel_id, parent_id, thread_root_id, author_nickname, content, created_at)
             VALUES (100, 6, 7, NULL, 100, 'old', 'root', unixepoch() * 1000), (101, 6, 7, 100, 100, 'old', 'reply', unixepoch() * 1000)",
        )
        .unwrap();
    for place in [OWN, PAIR] {
        assert_eq!(contents(&mut alice, list(place)), ["root"]);
        let below = ListMessages { parent_id: Some(MessageId(100)), ..list(place) };
        assert_eq!(contents(&mut alice, below), ["reply"]);
    }
    assert!(listed(&mut alice, roots(RUST)).is_empty());
    posted(&mut alice, PostMessage { parent_id: Some(MessageId(100)), ..write(OWN, b"new") });
    assert_eq!(column(&mut alice, list(OWN), "reply_count"), [2]);
}
