//! Read marks and unread counts (BEHAVIOUR.md 7).

use serde_json::{Value, json};
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::client::{DeleteMessage, GetUnreadCounts, UpdateReadState};
use superchat::wire::codec::List;
use superchat::wire::records::UnreadTarget;

use crate::steps::*;
use crate::support::{Client, Server, clock};

fn of_channel(channel_id: ChannelId) -> UnreadTarget {
    UnreadTarget { channel_id, subchannel_id: None, thread_id: None }
}

fn of_thread(channel_id: ChannelId, thread: MessageId) -> UnreadTarget {
    UnreadTarget { thread_id: Some(thread), ..of_channel(channel_id) }
}

fn unread(client: &mut Client, since_timestamp: Option<i64>, targets: Vec<UnreadTarget>) -> Vec<Value> {
    let answer = client.ask(GetUnreadCounts { since_timestamp, targets: List(targets) }, "UNREAD_COUNTS");
    items(&answer, "counts").into_iter().map(|count| count["unread_count"].clone()).collect()
}

fn in_general(client: &mut Client) -> u64 {
    unread(client, None, vec![of_channel(GENERAL)])[0].as_u64().unwrap()
}

/// The request has no answer; what is asked afterwards is answered after it.
fn mark(client: &mut Client, channel_id: ChannelId, timestamp: i64) {
    client.send(UpdateReadState { channel_id, subchannel_id: None, timestamp });
}

fn stored(server: &Server) -> Vec<Vec<String>> {
    rows(server, "SELECT user_id, channel_id, subchannel_id, last_read_at FROM UserChannelState ORDER BY channel_id")
}

/// Three messages of a visitor in `general`, with the time between the first and the second.
fn three_messages(server: &Server) -> i64 {
    let mut visitor = server.client_named("visitor");
    posted(&mut visitor, post(GENERAL, b"1"));
    let between = clock::finished_ms();
    posted(&mut visitor, post(GENERAL, b"2"));
    posted(&mut visitor, post(GENERAL, b"3"));
    between
}

#[test]
fn a_mark_in_milliseconds_hides_what_came_before_it() {
    let mut server = start();
    let mut alice = registered(&server, "alice");
    let between = three_messages(&server);
    assert_eq!(in_general(&mut alice), 3, "without a mark everything is unread");
    mark(&mut alice, GENERAL, between);
    assert_eq!(in_general(&mut alice), 2);
    assert_eq!(stored(&server), [["1", "2", "0", &between.to_string()]]);
    server.kill9();
    server.resume();
    let mut alice = server.client();
    sign_in(&mut alice, "alice", "alice");
    assert_eq!(in_general(&mut alice), 2);
}

#[test]
fn seconds_are_understood_the_future_is_now_and_marks_never_go_back() {
    let server = start();
    let mut alice = registered(&server, "alice");
    three_messages(&server);
    operator(&server).execute_batch("UPDATE Message SET created_at = created_at - 7200000").unwrap();
    let hour_ago = clock::now_ms() / 1000 - 3600;
    mark(&mut alice, GENERAL, hour_ago);
    assert_eq!(in_general(&mut alice), 0, "seconds");
    assert_eq!(stored(&server), [["1", "2", "0", &(hour_ago * 1000).to_string()]]);
    for earlier in [hour_ago - 3600, (hour_ago - 60) * 1000, 0, -1, i64::MIN] {
        mark(&mut alice, GENERAL, earlier);
        assert_eq!(in_general(&mut alice), 0);
        assert_eq!(stored(&server), [["1", "2", "0", &(hour_ago * 1000).to_string()]], "{earlier}");
    }
    mark(&mut alice, GENERAL, i64::MAX);
    assert_eq!(in_general(&mut alice), 0);
    let latest: i64 = stored(&server)[0][3].parse().unwrap();
    assert!((hour_ago * 1000..=clock::now_ms()).contains(&latest));
    let after = clock::finished_ms();
    posted(&mut server.client_named("visitor"), post(GENERAL, b"4"));
    assert_eq!(in_general(&mut alice), 1, "a mark in the future hides nothing that is to come");
    assert!(latest <= after);
}

#[test]
fn since_outranks_the_mark_in_either_unit() {
    let server = start();
    let mut alice = registered(&server, "alice");
    let between = three_messages(&server);
    mark(&mut alice, GENERAL, i64::MAX);
    let mut visitor = server.client();
    let hour_ago = clock::now_ms() / 1000 - 3600;
    for (since, expected) in [(between, 2), (hour_ago, 3), (hour_ago * 1000, 3), (0, 3), (i64::MAX, 0)] {
        for client in [&mut alice, &mut visitor] {
            assert_eq!(unread(client, Some(since), vec![of_channel(GENERAL)]), [expected], "since {since}");
        }
    }
}

#[test]
fn visitors_without_since_have_read_everything_and_leave_no_mark() {
    let server = start();
    three_messages(&server);
    let mut visitor = server.client_named("visitor");
    mark(&mut visitor, GENERAL, clock::now_ms());
    assert_eq!(unread(&mut visitor, None, vec![of_channel(GENERAL), of_channel(TECH)]), [0, 0]);
    assert!(stored(&server).is_empty());
}

#[test]
fn replies_count_and_own_and_deleted_messages_do_not() {
    let server = start();
    let mut alice = registered(&server, "alice");
    let mut visitor = server.client_named("visitor");
    let root = posted(&mut visitor, post(GENERAL, b"root"));
    posted(&mut visitor, reply(GENERAL, root, b"reply"));
    posted(&mut alice, reply(GENERAL, root, b"own"));
    let gone = posted(&mut visitor, post(GENERAL, b"gone"));
    assert_eq!(in_general(&mut alice), 3);
    visitor.ask(DeleteMessage { message_id: gone }, "MESSAGE_DELETED");
    assert_eq!(in_general(&mut alice), 2);
    assert_eq!(unread(&mut alice, None, vec![of_thread(GENERAL, root), of_thread(GENERAL, gone)]), [2, 0]);
    assert_eq!(
        unread(&mut visitor, Some(0), vec![of_thread(GENERAL, root)]),
        [3],
        "a visitor has no messages of its own"
    );
}

#[test]
fn counts_come_in_the_order_asked_with_the_targets_echoed() {
    let server = start();
    let mut alice = registered(&server, "alice");
    let mut visitor = server.client_named("visitor");
    let root = posted(&mut visitor, post(TECH, b"root"));
    posted(&mut visitor, post(GENERAL, b"x"));
    let targets = vec![
        of_channel(TECH),
        of_channel(ChannelId(999)),
        of_thread(TECH, root),
        of_channel(GENERAL),
        of_channel(TECH),
        of_thread(GENERAL, root),
        UnreadTarget { subchannel_id: Some(TECH), ..of_channel(GENERAL) },
    ];
    let answer = alice.ask(GetUnreadCounts { since_timestamp: None, targets: List(targets) }, "UNREAD_COUNTS");
    let thread = root.0.to_string();
    let row = |channel: &str, subchannel: Option<&str>, thread: Option<&str>, count: u32| json!({ "channel_id": channel, "subchannel_id": subchannel, "thread_id": thread, "unread_count": count });
    let expected = [
        row("3", None, None, 1),
        row("999", None, None, 0),
        row("3", None, Some(&thread), 1),
        row("2", None, None, 1),
        row("3", None, None, 1),
        row("2", None, Some(&thread), 0),
        row("2", Some("3"), None, 0),
    ];
    assert_eq!(items(&answer, "counts"), expected);
    assert!(unread(&mut alice, None, vec![]).is_empty());
}

#[test]
fn a_thousand_targets_are_counted_and_one_more_is_refused() {
    let server = start();
    let mut alice = registered(&server, "alice");
    assert_eq!(unread(&mut alice, None, vec![of_channel(GENERAL); 1000]).len(), 1000);
    let many = GetUnreadCounts { since_timestamp: None, targets: List(vec![of_channel(GENERAL); 1001]) };
    check_refused(&mut alice, [(many.into(), 6000, "Too many targets (max 1000)")]);
}

#[test]
fn a_subchannels_count_and_mark_are_its_own_in_both_spellings() {
    let server = start();
    let mut alice = registered(&server, "alice");
    let parent = created(&mut alice, "rust");
    alice.send_json(
        "CREATE_SUBCHANNEL",
        json!({ "channel_id": "6", "name": "async", "description": "", "channel_type": 1, "retention_hours": 1 }),
    );
    alice.expect_reply("SUBCHANNEL_CREATED");
    let child = ChannelId(7);
    let pair = UnreadTarget { subchannel_id: Some(child), ..of_channel(parent) };
    let mut visitor = server.client_named("visitor");
    posted(&mut visitor, post(child, b"x"));
    let counts = |alice: &mut Client| unread(alice, None, vec![of_channel(parent), of_channel(child), pair.clone()]);
    assert_eq!(counts(&mut alice), [0, 1, 1]);
    alice.send(UpdateReadState { channel_id: parent, subchannel_id: Some(child), timestamp: clock::now_ms() });
    assert_eq!(counts(&mut alice), [0, 0, 0]);
    mark(&mut alice, ChannelId(999), clock::now_ms());
    alice.send(UpdateReadState { channel_id: GENERAL, subchannel_id: Some(child), timestamp: clock::now_ms() });
    assert!(heard(&mut alice).is_empty(), "a place that does not exist is passed over");
    assert_eq!(stored(&server).len(), 1);
}
