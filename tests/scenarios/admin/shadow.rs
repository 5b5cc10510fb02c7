//! Shadow bans: what is written under one reaches its author and admins only, and shows once it is lifted.

use superchat::ids::MessageId;
use superchat::wire::client::{DeleteMessage, EditMessage, GetUnreadCounts, Logout, SetNickname, SubscribeThread};
use superchat::wire::codec::{Bounded, List};
use superchat::wire::records::UnreadTarget;

use super::*;

struct Stage {
    server: Server,
    boss: Client,
    /// An account that will be hidden, in two sessions.
    troll: [Client; 2],
    ann: Client,
}

/// Everybody subscribed to `general`; the troll has posted "before" and is hidden since.
fn stage() -> Stage {
    let server = governed();
    let mut boss = boss(&server);
    let mut troll = [registered(&server, "troll"), server.client()];
    assert_eq!(sign_in(&mut troll[1], "troll", "troll")["success"], true);
    let mut ann = registered(&server, "ann");
    posted(&mut troll[0], post(GENERAL, b"before"));
    let [first, second] = &mut troll;
    for client in [&mut boss, first, second, &mut ann] {
        subscribe(client, GENERAL);
    }
    banned(&mut boss, shadow("troll"), "USER_BANNED", "User troll banned successfully");
    for client in [&mut boss, &mut troll[0], &mut ann] {
        client.quiet();
    }
    troll[1].quiet();
    Stage { server, boss, troll, ann }
}

fn unread(client: &mut Client) -> u64 {
    let targets = List(vec![UnreadTarget { channel_id: GENERAL, subchannel_id: None, thread_id: None }]);
    let answer = client.ask(GetUnreadCounts { since_timestamp: Some(0), targets }, "UNREAD_COUNTS");
    answer["counts"][0]["unread_count"].as_u64().unwrap()
}

#[test]
fn a_hidden_post_is_answered_as_always_and_reaches_its_author_and_admins() {
    let Stage { server, mut boss, troll: [mut troll, mut twin], mut ann } = stage();
    let hidden = posted(&mut troll, post(GENERAL, b"spam"));
    for client in [&mut troll, &mut twin, &mut boss] {
        assert_eq!(client.expect_broadcast("NEW_MESSAGE")["content"], "spam");
    }
    let open = posted(&mut ann, post(GENERAL, b"open"));
    assert_eq!(ann.expect_broadcast("NEW_MESSAGE")["content"], "open", "the first that ann hears of");
    assert!(open > hidden);
    for client in [&mut troll, &mut twin, &mut boss] {
        assert_eq!(contents(client, roots(GENERAL)), ["open", "spam", "before"]);
    }
    let mut visitor = server.client();
    for client in [&mut ann, &mut visitor] {
        assert_eq!(contents(client, roots(GENERAL)), ["open", "before"]);
    }
    assert_eq!([unread(&mut boss), unread(&mut ann), unread(&mut visitor)], [3, 1, 2]);
    assert_eq!(boss.ask(unban("troll"), "USER_UNBANNED")["success"], true);
    assert_eq!(contents(&mut ann, roots(GENERAL)), ["open", "spam", "before"], "nothing is hidden any more");
    posted(&mut troll, post(GENERAL, b"ham"));
    assert_eq!(ann.expect_broadcast("NEW_MESSAGE")["content"], "ham");
}

#[test]
fn a_hidden_message_is_not_there_for_others_whatever_they_ask() {
    let Stage { mut boss, troll: [mut troll, _twin], mut ann, server: _server } = stage();
    let root = posted(&mut ann, post(GENERAL, b"root"));
    let secret = posted(&mut troll, reply(GENERAL, root, b"hidden"));
    posted(&mut boss, reply(GENERAL, secret, b"below"));
    let hidden_root = posted(&mut troll, post(GENERAL, b"hidden root"));
    ann.quiet();
    check_refused(
        &mut ann,
        [
            (reply(GENERAL, secret, b"x").into(), 4002, "Message not found"),
            (reply(GENERAL, hidden_root, b"x").into(), 4002, "Message not found"),
            (EditMessage { message_id: secret, new_content: Bounded(b"x") }.into(), 4002, "Message not found"),
            (DeleteMessage { message_id: secret }.into(), 4002, "Message not found"),
            (SubscribeThread { thread_id: hidden_root }.into(), 4003, "Thread does not exist"),
        ],
    );
    assert!(contents(&mut ann, thread(GENERAL, hidden_root)).is_empty());
    assert!(contents(&mut ann, thread(GENERAL, secret)).is_empty());
    assert_eq!(contents(&mut ann, thread(GENERAL, root)), ["below"]);
    assert_eq!(contents(&mut troll, thread(GENERAL, root)), ["hidden", "below"]);
    let replies = |client: &mut Client| {
        let list = listed(client, roots(GENERAL));
        list.iter().find(|message| number(&message["message_id"]) == root.0).unwrap()["reply_count"].clone()
    };
    assert_eq!((replies(&mut ann), replies(&mut troll), replies(&mut boss)), (1.into(), 2.into(), 2.into()));
}

#[test]
fn edits_and_deletions_of_what_is_hidden_are_hidden_too() {
    let Stage { mut boss, troll: [mut troll, mut twin], mut ann, server: _server } = stage();
    let hidden = posted(&mut troll, post(GENERAL, b"spam"));
    let edit = |message_id, text: &'static [u8]| EditMessage { message_id, new_content: Bounded(text) };
    assert_eq!(troll.ask(edit(hidden, b"more spam"), "MESSAGE_EDITED")["success"], true);
    assert_eq!(twin.expect_broadcast("MESSAGE_EDITED")["new_content"], "more spam");
    assert_eq!(boss.expect_broadcast("MESSAGE_EDITED")["new_content"], "more spam");
    assert_eq!(boss.ask(DeleteMessage { message_id: hidden }, "MESSAGE_DELETED")["success"], true);
    twin.expect_broadcast("MESSAGE_DELETED");
    assert!(heard_names(&mut ann).is_empty());
}

#[test]
fn others_go_on_reading_what_was_open_before_it_was_edited_under_a_ban() {
    let Stage { mut boss, troll: [mut troll, mut twin], mut ann, server } = stage();
    let edit = |message_id, text: &'static [u8]| EditMessage { message_id, new_content: Bounded(text) };
    let before = MessageId(number(&column(&mut troll, roots(GENERAL), "message_id")[0]));
    let mut below = posted(&mut ann, reply(GENERAL, before, b"an answer"));
    for text in [&b"spam"[..], b"more spam"] {
        assert_eq!(troll.ask(edit(before, text), "MESSAGE_EDITED")["success"], true);
    }
    for client in [&mut troll, &mut twin, &mut boss] {
        assert_eq!(contents(client, roots(GENERAL)), ["more spam"]);
    }
    assert!(heard_names(&mut ann).is_empty());
    let seen = listed(&mut ann, roots(GENERAL));
    assert_eq!(
        (&seen[0]["content"], &seen[0]["edited_at"], &seen[0]["reply_count"]),
        (&"before".into(), &Value::Null, &1.into())
    );
    assert_eq!(contents(&mut ann, thread(GENERAL, before)), ["an answer"]);
    assert_eq!(unread(&mut server.client()), 2);
    below = posted(&mut ann, reply(GENERAL, below, b"the talk goes on"));
    assert_eq!(contents(&mut ann, thread(GENERAL, before)), ["an answer", "the talk goes on"]);

    // A reply is kept the same way.
    assert_eq!(boss.ask(unban("troll"), "USER_UNBANNED")["success"], true);
    assert_eq!(contents(&mut ann, roots(GENERAL)), ["more spam"], "what was hidden shows");
    let own = posted(&mut troll, reply(GENERAL, below, b"sorry"));
    banned(&mut boss, shadow("troll"), "USER_BANNED", "User troll banned successfully");
    assert_eq!(troll.ask(edit(own, b"not sorry"), "MESSAGE_EDITED")["success"], true);
    assert_eq!(contents(&mut ann, thread(GENERAL, before)), ["an answer", "the talk goes on", "sorry"]);
    assert_eq!(contents(&mut boss, thread(GENERAL, before)), ["an answer", "the talk goes on", "not sorry"]);

    // What an admin makes of it, everybody reads; and a deletion is one for all.
    ann.quiet();
    assert_eq!(troll.ask(edit(before, b"spam again"), "MESSAGE_EDITED")["success"], true);
    assert_eq!(contents(&mut ann, roots(GENERAL)), ["more spam"]);
    assert_eq!(boss.ask(edit(before, b"moderated"), "MESSAGE_EDITED")["success"], true);
    assert_eq!(ann.expect_broadcast("MESSAGE_EDITED")["new_content"], "moderated");
    assert_eq!(contents(&mut ann, roots(GENERAL)), ["moderated"]);
    assert_eq!(troll.ask(edit(before, b"spam at last"), "MESSAGE_EDITED")["success"], true);
    assert_eq!(troll.ask(DeleteMessage { message_id: before }, "MESSAGE_DELETED")["success"], true);
    ann.expect_broadcast("MESSAGE_DELETED");
    assert_eq!(contents(&mut ann, roots(GENERAL)), ["[deleted by ~troll]"]);
}

#[test]
fn the_mark_stays_with_the_session_when_it_signs_out_or_changes_its_name() {
    let Stage { mut boss, troll: [mut troll, _twin], mut ann, server } = stage();
    troll.send(Logout {});
    posted(&mut troll, post(GENERAL, b"as a visitor"));
    let other = SetNickname { nickname: Bounded(b"somebody") };
    assert_eq!(troll.ask(other, "NICKNAME_RESPONSE")["success"], true);
    posted(&mut troll, post(GENERAL, b"as somebody"));
    assert_eq!(contents(&mut troll, roots(GENERAL)), ["as somebody", "as a visitor", "before"]);
    assert_eq!(contents(&mut boss, roots(GENERAL)), ["as somebody", "as a visitor", "before"]);
    assert_eq!(contents(&mut ann, roots(GENERAL)), ["before"]);
    assert!(heard_names(&mut ann).is_empty());
    // A name that was never banned is free for others, who are heard.
    let mut somebody = server.client_named("somebody");
    posted(&mut somebody, post(GENERAL, b"innocent"));
    assert_eq!(ann.expect_broadcast("NEW_MESSAGE")["content"], "innocent");
    assert_eq!(boss.ask(unban("troll"), "USER_UNBANNED")["success"], true);
    posted(&mut troll, post(GENERAL, b"heard again"));
    assert_eq!(ann.expect_broadcast("NEW_MESSAGE")["content"], "heard again");
}

#[test]
fn a_hidden_visitor_is_hidden_by_name_and_presence_stays_as_it_is() {
    let server = governed();
    let mut boss = boss(&server);
    banned(&mut boss, shadow("ghost"), "USER_BANNED", "User ghost banned successfully");
    let mut ann = server.client_named("ann");
    subscribe(&mut ann, GENERAL);
    ann.quiet();
    let mut ghost = server.client_named("ghost");
    ann.expect_matching("SERVER_PRESENCE", |fields| fields["nickname"] == "ghost");
    posted(&mut ghost, post(GENERAL, b"boo"));
    assert_eq!(contents(&mut ghost, roots(GENERAL)), ["boo"]);
    assert!(contents(&mut ann, roots(GENERAL)).is_empty());
    assert!(heard_names(&mut ann).is_empty());
    join(&mut ghost, GENERAL);
    ann.expect_matching("CHANNEL_PRESENCE", |fields| fields["nickname"] == "ghost");
}

#[test]
fn a_shadow_ban_that_ends_by_the_clock_shows_what_it_hid() {
    let Stage { server, mut boss, troll: [mut troll, _twin], mut ann } = stage();
    posted(&mut troll, post(GENERAL, b"spam"));
    assert_eq!(contents(&mut ann, roots(GENERAL)), ["before"]);
    operator(&server).execute("UPDATE Ban SET banned_until = 1", []).unwrap();
    assert_eq!(contents(&mut ann, roots(GENERAL)), ["spam", "before"]);
    assert!(bans(&mut boss, false).is_empty());
}

#[test]
fn what_is_hidden_stays_hidden_when_the_server_comes_back() {
    let Stage { mut server, troll: [mut troll, _twin], .. } = stage();
    posted(&mut troll, post(GENERAL, b"spam"));
    server.kill9();
    server.resume();
    let mut visitor = server.client();
    assert_eq!(contents(&mut visitor, roots(GENERAL)), ["before"]);
    let mut again = server.client();
    assert_eq!(sign_in(&mut again, "troll", "troll")["success"], true);
    assert_eq!(contents(&mut again, roots(GENERAL)), ["spam", "before"]);
    posted(&mut again, post(GENERAL, b"more"));
    assert_eq!(contents(&mut visitor, roots(GENERAL)), ["before"]);
}
