//! Leaving for good (BEHAVIOUR.md 4.6), and what the end of a session does (4.8).

use superchat::wire::client::{LeaveChannel, Logout};
use superchat::wire::codec::Tail;

use super::*;
use crate::support::client::PATIENCE;
use crate::support::clock;

fn leave(channel: ChannelId, permanent: bool) -> LeaveChannel {
    LeaveChannel { channel_id: channel, subchannel_id: None, permanent: Tail(Some(permanent)) }
}

fn leave_for_good(client: &mut Client, channel: ChannelId) {
    join(client, channel);
    let left = client.ask(leave(channel, true), "LEAVE_RESPONSE");
    check_fields(&left, json!({ "success": true, "channel_id": channel.0.to_string(), "message": "Left channel" }));
}

fn dms_stored(server: &Server) -> usize {
    rows(server, "SELECT id FROM Channel WHERE is_dm = 1").len()
}

#[test]
fn leaving_for_good_is_told_and_written_down_for_whoever_stays() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    subscribe(&mut ann, channel);
    posted(&mut bob, post(channel, b"farewell"));
    ann.expect_broadcast("NEW_MESSAGE");
    leave_for_good(&mut bob, channel);
    let told = ann.expect_broadcast("DM_PARTICIPANT_LEFT");
    check_fields(&told, json!({ "dm_channel_id": channel.0.to_string(), "user_id": "2", "nickname": "bob" }));
    assert_eq!(heard_names(&mut ann), [""; 0], "the line in the history is no NEW_MESSAGE");
    let list = listed(&mut ann, roots(channel));
    assert_eq!(list[0]["content"], "bob has left the conversation");
    assert_eq!((&list[0]["author_nickname"], &list[0]["author_user_id"]), (&json!(""), &Value::Null));
    assert_eq!(list[1]["content"], "farewell");
    assert_eq!(rows(&server, "SELECT user_id FROM ChannelAccess"), [["1"]], "access ends as well (D-25)");
}

#[test]
fn who_left_hears_and_sees_nothing_more_in_any_session() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    let mut second = another_session(&server, "bob");
    let root = posted(&mut ann, post(channel, b"before"));
    for client in [&mut bob, &mut second] {
        subscribe(client, channel);
        follow(client, root);
        join(client, channel);
    }
    leave_for_good(&mut bob, channel);
    bob.quiet();
    second.quiet();
    join(&mut ann, channel);
    posted(&mut ann, post(channel, b"after"));
    ann.ask(superchat::wire::client::DeleteMessage { message_id: root }, "MESSAGE_DELETED");
    for client in [&mut bob, &mut second] {
        assert_eq!(heard_names(client), [""; 0]);
        check_refused(
            client,
            [
                (roots(channel).into(), 3000, NOT_A_PARTICIPANT),
                (post(channel, b"let me in").into(), 3000, NOT_A_PARTICIPANT),
            ],
        );
    }
}

#[test]
fn whoever_left_can_be_brought_back_into_the_same_conversation() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut bob = with_key(&server, "bob", 2);
    let channel = channel_in(&ann.ask(start_dm("bob", false), "DM_READY"));
    posted(&mut ann, post(channel, b"kept"));
    for starter in ["bob", "ann"] {
        leave_for_good(&mut bob, channel);
        ann.expect_broadcast("DM_PARTICIPANT_LEFT");
        bob.quiet();
        let (asks, hears, other) =
            if starter == "bob" { (&mut bob, &mut ann, "ann") } else { (&mut ann, &mut bob, "bob") };
        let ready = asks.ask(start_dm(other, false), "DM_READY");
        check_fields(&ready, json!({ "channel_id": channel.0.to_string(), "is_encrypted": true }));
        assert_eq!(channel_in(&hears.expect_broadcast("DM_READY")), channel, "it is no longer marked as left");
        assert!(contents(&mut bob, roots(channel)).contains(&json!("kept")));
    }
}

#[test]
fn a_key_is_not_told_to_whoever_left_and_still_shows_that_they_did() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut bob = with_key(&server, "bob", 2);
    let channel = channel_in(&ann.ask(start_dm("bob", false), "DM_READY"));
    bob.expect_broadcast("DM_READY");
    leave_for_good(&mut ann, channel);
    bob.expect_broadcast("DM_PARTICIPANT_LEFT");
    ann.quiet();
    let mut back = another_session(&server, "bob");
    back.send(public_key(9));
    check_fields(
        &back.expect_broadcast("DM_READY"),
        json!({ "channel_id": channel.0.to_string(), "is_encrypted": true }),
    );
    let left = back.expect_broadcast("DM_PARTICIPANT_LEFT");
    check_fields(&left, json!({ "dm_channel_id": channel.0.to_string(), "nickname": "ann" }));
    assert_eq!(heard_names(&mut ann), [""; 0], "she is no participant any more");
}

#[test]
fn a_leaver_of_the_existing_server_can_come_back_too() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    // It keeps the access and takes the participant away.
    operator(&server).execute("DELETE FROM ChannelParticipant WHERE user_id = 2", []).unwrap();
    assert_eq!(channel_in(&bob.ask(start_dm("ann", true), "DM_READY")), channel);
    join(&mut bob, channel);
}

#[test]
fn signing_in_shows_who_has_left() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    leave_for_good(&mut bob, channel);
    let mut again = another_session(&server, "ann");
    let told = told_at_sign_in(&mut again, 2);
    assert_eq!((told[0].0.as_str(), told[1].0.as_str()), ("DM_READY", "DM_PARTICIPANT_LEFT"));
    check_fields(&told[0].1, plain_with("bob", Some(UserId(2))));
    check_fields(&told[1].1, json!({ "dm_channel_id": channel.0.to_string(), "user_id": "2", "nickname": "bob" }));
    assert_eq!(contents(&mut again, roots(channel)), ["bob has left the conversation"]);
}

#[test]
fn the_last_one_takes_everything_along() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = server.client_named("bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    posted(&mut ann, post(channel, b"gone with us"));
    leave_for_good(&mut ann, channel);
    assert_eq!(dms_stored(&server), 1);
    leave_for_good(&mut bob, channel);
    assert_eq!(dms_stored(&server), 0);
    assert_eq!(rows(&server, "SELECT count(*) FROM Message"), [["0"]]);
    check_failed(
        &mut ann,
        "JOIN_RESPONSE",
        [(
            superchat::wire::client::JoinChannel { channel_id: channel, subchannel_id: None }.into(),
            "Channel not found",
        )],
    );
}

#[test]
fn leaving_without_permanent_or_another_place_gives_nothing_up() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    join(&mut bob, channel);
    bob.ask(leave(channel, false), "LEAVE_RESPONSE");
    join(&mut bob, GENERAL);
    bob.ask(leave(GENERAL, true), "LEAVE_RESPONSE");
    let refused = bob.ask(leave(channel, true), "LEAVE_RESPONSE");
    assert_eq!(refused["success"], false, "it is not joined: {refused:?}");
    assert_eq!(heard_names(&mut ann), [""; 0]);
    join(&mut bob, channel);
}

#[test]
fn a_visitor_who_goes_leaves_for_good_and_an_account_does_not() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let mut visitor = server.client_named("visitor");
    let between = conversation(&mut ann, &mut bob, "bob");
    let with_visitor = conversation(&mut visitor, &mut ann, "ann");
    bob.hang_up();
    visitor.hang_up();
    let told = ann.expect_broadcast("DM_PARTICIPANT_LEFT");
    check_fields(&told, json!({ "dm_channel_id": with_visitor.0.to_string(), "user_id": null, "nickname": "visitor" }));
    assert_eq!(heard_names(&mut ann), [""; 0], "nothing of the account (D-28)");
    assert_eq!(contents(&mut ann, roots(between)), [""; 0]);
    assert_eq!(contents(&mut ann, roots(with_visitor)), ["visitor has left the conversation"]);
}

#[test]
fn nothing_is_kept_of_visitors_who_are_all_gone() {
    let server = start();
    let mut red = server.client_named("red");
    let mut blue = server.client_named("blue");
    let channel = conversation(&mut red, &mut blue, "blue");
    posted(&mut red, post(channel, b"just us"));
    red.hang_up();
    blue.expect_broadcast("DM_PARTICIPANT_LEFT");
    blue.hang_up();
    clock::poll(PATIENCE, || (dms_stored(&server) == 0).then_some(())).expect("the conversation to go");
    assert_eq!(rows(&server, "SELECT count(*) FROM Message"), [["0"]]);
}

#[test]
fn an_account_that_signs_out_hears_no_more_of_its_conversations() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    subscribe(&mut bob, channel);
    join(&mut bob, channel);
    bob.send(Logout {});
    bob.quiet();
    posted(&mut ann, post(channel, b"are you there?"));
    assert_eq!(heard_names(&mut bob), [""; 0]);
    check_refused(&mut bob, [(roots(channel).into(), 3000, NOT_A_PARTICIPANT)]);
    sign_in(&mut bob, "bob", "bob");
    assert_eq!(contents(&mut bob, roots(channel)), ["are you there?"]);
}

#[test]
fn a_visitor_who_signs_in_is_no_longer_that_visitor() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = server.client_named("bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    subscribe(&mut bob, channel);
    let hash = secret("bob");
    bob.ask(superchat::wire::client::RegisterUser { password_hash: hash.as_bytes() }, "REGISTER_RESPONSE");
    posted(&mut ann, post(channel, b"hello?"));
    assert_eq!(heard_names(&mut bob), [""; 0]);
    check_refused(&mut bob, [(roots(channel).into(), 3000, NOT_A_PARTICIPANT)]);
    bob.hang_up();
    ann.expect_broadcast("DM_PARTICIPANT_LEFT");
}

#[test]
fn nobody_inherits_the_conversations_of_an_earlier_run() {
    let mut server = start();
    let mut ann = registered(&server, "ann");
    let mut red = server.client_named("red");
    let channel = conversation(&mut ann, &mut red, "red");
    posted(&mut ann, post(channel, b"for red"));
    let open = InviteId(number(
        &{
            let _target = server.client_named("blue");
            red.ask(start_dm("blue", true), "DM_PENDING")
        }["dm_channel_id"],
    ));
    // Killed, so that nobody says goodbye to anybody; session numbers begin anew.
    server.kill9();
    server.resume();
    let dead_invites = || rows(&server, "SELECT count(*) FROM DMInvite");
    clock::poll(PATIENCE, || (dead_invites() == [["0"]]).then_some(())).expect("the invitation to go");
    let mut others: Vec<_> = (0..8).map(|_| server.client_named("red")).collect();
    for other in &mut others {
        check_refused(
            other,
            [(roots(channel).into(), 3000, NOT_A_PARTICIPANT), (allow(open).into(), 4000, "DM invite not found")],
        );
    }
    let mut back = another_session(&server, "ann");
    let told = told_at_sign_in(&mut back, 2);
    assert_eq!((told[0].0.as_str(), told[1].0.as_str()), ("DM_READY", "DM_PARTICIPANT_LEFT"), "red is gone");
    assert_eq!(contents(&mut back, roots(channel)), ["for red"]);
}

#[test]
fn a_stop_takes_visitors_out_and_keeps_accounts() {
    let mut server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let mut red = server.client_named("red");
    conversation(&mut ann, &mut bob, "bob");
    conversation(&mut ann, &mut red, "red");
    let _target = server.client_named("blue");
    invited(&mut red, "blue");
    assert_eq!(server.stop(), Some(0));
    assert_eq!(rows(&server, "SELECT nickname FROM ChannelParticipant ORDER BY 1"), [["ann"], ["ann"], ["bob"]]);
    assert_eq!(rows(&server, "SELECT count(*) FROM DMInvite"), [["0"]]);
}
