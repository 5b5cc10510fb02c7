//! DELETE_USER and DELETE_CHANNEL.

use serde_json::json;
use superchat::ids::MessageId;
use superchat::wire::client::{GetUserInfo, ListChannels, SetNickname, StartDm};
use superchat::wire::codec::{Bounded, DmTarget};

use super::*;

fn delete(user: u64) -> DeleteUser {
    DeleteUser { user_id: UserId(user) }
}

fn remove(channel: ChannelId) -> DeleteChannel<'static> {
    DeleteChannel { channel_id: channel, reason: b"off topic" }
}

#[test]
fn refusals_of_delete_user() {
    let server = governed();
    let mut boss = boss(&server);
    let cases = [(delete(99).into(), "User not found"), (delete(1).into(), "Cannot delete your own account")];
    check_failed(&mut boss, "USER_DELETED", cases);
    assert_eq!(audit(&server), [[""; 0]; 0]);
}

#[test]
fn a_deleted_account_leaves_its_messages_as_a_visitors_and_nothing_else() {
    let server = Server::start(settings().admins(&["boss", "chief"]));
    let (mut boss, mut chief) = (boss(&server), registered(&server, "chief"));
    let mut sessions = [registered(&server, "ann"), server.client()];
    assert_eq!(sign_in(&mut sessions[1], "ann", "ann")["success"], true);
    let message = posted(&mut sessions[0], post(GENERAL, b"hello"));
    let room = created(&mut sessions[0], "annsroom");
    let mut bystander = server.client_named("bob");
    // Who comes and goes within one tick is not told of.
    for _ in 0..2 {
        let here = |fields: &crate::support::link::Fields| fields["nickname"] == "ann" && fields["user_id"] == "3";
        bystander.expect_matching("SERVER_PRESENCE", here);
    }
    for client in [&mut boss, &mut chief, &mut bystander] {
        client.quiet();
    }
    let text = "User 'ann' deleted successfully (messages anonymized, 2 sessions disconnected)";
    let answer = boss.ask(delete(3), "USER_DELETED");
    assert_eq!((&answer["success"], &answer["message"]), (&json!(true), &json!(text)));
    assert_eq!(chief.expect_broadcast("USER_DELETED")["message"], text);
    for session in &mut sessions {
        let last = session.expect_close().pop().unwrap();
        assert_eq!((last.name.as_str(), &last.fields["reason"]), ("DISCONNECT", &json!("Your account was deleted")));
    }
    for _ in 0..2 {
        let gone = |fields: &crate::support::link::Fields| fields["nickname"] == "ann" && fields["online"] == false;
        bystander.expect_matching("SERVER_PRESENCE", gone);
    }
    assert!(heard_names(&mut bystander).is_empty(), "admins only");
    assert!(heard_names(&mut boss).is_empty(), "once");

    let list = listed(&mut bystander, roots(GENERAL));
    assert_eq!((&list[0]["author_nickname"], &list[0]["author_user_id"]), (&json!("~ann"), &json!(null)));
    assert_eq!(number(&list[0]["message_id"]), message.0);
    let info = bystander.ask(GetUserInfo { nickname: b"ann" }, "USER_INFO");
    assert_eq!((&info["is_registered"], &info["online"]), (&json!(false), &json!(false)));
    assert_eq!(rows(&server, "SELECT created_by FROM Channel WHERE name = 'annsroom'"), [["NULL"]]);
    // The channel has no owner any more, on no shard.
    let mut new_ann = registered(&server, "ann");
    let sub =
        CreateSubchannel { channel_id: room, name: b"inner", description: b"", channel_type: 1, retention_hours: 24 };
    check_failed(
        &mut new_ann,
        "SUBCHANNEL_CREATED",
        [(sub.into(), "Only the channel owner or admins can create subchannels")],
    );
    let entry = ["boss", "DELETE_USER", "user", "3", "ann", "user_id=3 nickname=ann", "127.0.0.1"];
    assert_eq!(audit(&server), [entry]);
}

#[test]
fn bans_by_id_go_with_a_deleted_account_and_bans_by_nickname_stay() {
    let server = governed();
    let mut boss = boss(&server);
    drop(registered(&server, "troll"));
    drop(registered(&server, "ann"));
    banned(&mut boss, ban("troll"), "USER_BANNED", "User troll banned successfully");
    banned(&mut boss, ban_id(3), "USER_BANNED", "User user_id:3 banned successfully");
    for user in [2, 3] {
        assert_eq!(boss.ask(delete(user), "USER_DELETED")["success"], true);
    }
    let left = bans(&mut boss, true);
    assert_eq!(left.len(), 1);
    assert_eq!((&left[0]["nickname"], &left[0]["user_id"]), (&json!("troll"), &json!(null)));
    let mut somebody = server.client();
    let take = |nickname: &'static [u8]| SetNickname { nickname: Bounded(nickname) };
    assert_eq!(somebody.ask(take(b"ann"), "NICKNAME_RESPONSE")["success"], true);
    check_failed(&mut somebody, "NICKNAME_RESPONSE", [(take(b"troll").into(), PERMANENT)]);
}

#[test]
fn what_a_deleted_account_wrote_under_a_shadow_ban_stays_hidden() {
    for by_id in [false, true] {
        let mut server = governed();
        let mut boss = boss(&server);
        let mut troll = registered(&server, "troll");
        if by_id {
            let hiding = BanUser { shadowban: true, ..ban_id(2) };
            banned(&mut boss, hiding, "USER_BANNED", "User user_id:2 banned successfully");
        } else {
            banned(&mut boss, shadow("troll"), "USER_BANNED", "User troll banned successfully");
        }
        posted(&mut troll, post(GENERAL, b"spam"));
        assert_eq!(boss.ask(delete(2), "USER_DELETED")["success"], true);
        assert!(contents(&mut server.client(), roots(GENERAL)).is_empty());
        assert_eq!(contents(&mut boss, roots(GENERAL)), ["spam"]);
        assert_eq!(server.stop(), Some(0));
        server.resume();
        assert!(contents(&mut server.client(), roots(GENERAL)).is_empty());
        let mut heir = server.client_named("troll");
        posted(&mut heir, post(GENERAL, b"more spam"));
        assert!(contents(&mut server.client(), roots(GENERAL)).is_empty());
    }
}

#[test]
fn whoever_talked_with_a_deleted_account_keeps_the_conversation() {
    let server = governed();
    let mut boss = boss(&server);
    let (mut ann, mut bob) = (registered(&server, "ann"), registered(&server, "bob"));
    let target = DmTarget::Nickname(b"bob");
    let pending = ann.ask(StartDm { target, allow_unencrypted: true }, "DM_PENDING");
    let invite = superchat::ids::InviteId(number(&pending["dm_channel_id"]));
    let accept = superchat::wire::client::AllowUnencrypted { dm_channel_id: invite, permanent: false };
    let channel = ChannelId(number(&bob.ask(accept, "DM_READY")["channel_id"]));
    posted(&mut ann, post(channel, b"psst"));
    assert_eq!(boss.ask(delete(2), "USER_DELETED")["success"], true);
    let left = bob.expect_broadcast("DM_PARTICIPANT_LEFT");
    assert_eq!((number(&left["dm_channel_id"]), &left["nickname"]), (channel.0, &json!("ann")));
    assert_eq!(contents(&mut bob, roots(channel)), ["ann has left the conversation", "psst"]);
    check_refused(&mut boss, [(roots(channel).into(), 3000, "Not a participant in this DM")]);
}

#[test]
fn refusals_of_delete_channel() {
    let server = governed();
    let mut boss = boss(&server);
    let reason: &'static [u8] = vec![b'r'; 501].leak();
    for (request, text) in [
        (remove(no_channel()), "Channel not found"),
        (DeleteChannel { reason, ..remove(GENERAL) }, "Reason must be at most 500 characters"),
    ] {
        let answer = boss.ask(request.clone(), "CHANNEL_DELETED");
        assert_eq!((&answer["success"], &answer["message"]), (&json!(false), &json!(text)));
        assert_eq!(number(&answer["channel_id"]), request.channel_id.0);
    }
    assert_eq!(rows(&server, "SELECT count(*) FROM Channel"), [["5"]]);
}

#[test]
fn a_deleted_channel_goes_with_its_subchannels_and_everybodys_marks_of_it() {
    let server = governed();
    let mut boss = boss(&server);
    let room = created(&mut boss, "room");
    let request =
        CreateSubchannel { channel_id: room, name: b"inner", description: b"", channel_type: 1, retention_hours: 24 };
    let inner = ChannelId(number(&boss.ask(request, "SUBCHANNEL_CREATED")["subchannel_id"]));
    let mut ann = registered(&server, "ann");
    join(&mut ann, inner);
    subscribe(&mut ann, room);
    let root = posted(&mut ann, post(inner, b"deep"));
    posted(&mut ann, post(room, b"top"));
    let kept = posted(&mut ann, post(GENERAL, b"elsewhere"));
    follow(&mut ann, root);
    ann.quiet();

    let text = "Channel 'room' deleted successfully";
    let answer = boss.ask(remove(room), "CHANNEL_DELETED");
    assert_eq!((&answer["success"], &answer["message"]), (&json!(true), &json!(text)));
    assert_eq!(number(&answer["channel_id"]), room.0);
    assert!(heard_names(&mut boss).iter().all(|name| name != "CHANNEL_DELETED"), "once");
    let told = ann.expect_broadcast("CHANNEL_DELETED");
    assert_eq!((number(&told["channel_id"]), &told["message"]), (room.0, &json!(text)));

    for gone in [room, inner] {
        check_refused(&mut ann, [(post(gone, b"x").into(), 4001, "Channel not found")]);
        let leave = superchat::wire::client::LeaveChannel {
            channel_id: gone,
            subchannel_id: None,
            permanent: superchat::wire::codec::Tail(None),
        };
        check_failed(&mut ann, "LEAVE_RESPONSE", [(leave.into(), "Not currently joined to any channel")]);
    }
    let channels =
        items(&ann.ask(ListChannels { from_channel_id: ChannelId(0), limit: 0 }, "CHANNEL_LIST"), "channels");
    assert!(channels.iter().all(|channel| channel["name"] != "room"));
    let ids: Vec<_> = column(&mut ann, roots(GENERAL), "message_id").iter().map(number).map(MessageId).collect();
    assert_eq!(ids, [kept]);
    assert_eq!(rows(&server, "SELECT count(*) FROM Message"), [["1"]]);
    assert_eq!(rows(&server, "SELECT count(*) FROM Channel WHERE name IN ('room', 'inner')"), [["0"]]);
    let details = format!("channel_id={} name=room reason=off topic", room.0);
    let entry = ["boss", "DELETE_CHANNEL", "channel", &room.0.to_string(), "room", &details, "127.0.0.1"];
    assert_eq!(audit(&server), [entry]);
    let again = created(&mut boss, "room");
    assert!(again > inner, "ids are not used again");
}
