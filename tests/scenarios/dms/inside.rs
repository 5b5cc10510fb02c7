//! Being in a direct message (BEHAVIOUR.md 4.7): a chat channel for two.

use superchat::wire::client::{EditMessage, GetUnreadCounts, ListChannelUsers};
use superchat::wire::codec::{Bounded, List};
use superchat::wire::records::UnreadTarget;

use super::*;

/// Bytes as ciphertext has them: control characters, NUL, no UTF-8.
const CIPHERTEXT: &[u8] = b"\x00\x1b[2J\xff\xfe\x7f\xc2\x80 \r\n";

fn hex(bytes: &[u8]) -> Value {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "bytes_hex": digits })
}

#[test]
fn ciphertext_passes_untouched() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut bob = with_key(&server, "bob", 2);
    let channel = channel_in(&ann.ask(start_dm("bob", false), "DM_READY"));
    bob.expect_broadcast("DM_READY");
    for client in [&mut ann, &mut bob] {
        join(client, channel);
        subscribe(client, channel);
    }
    let id = posted(&mut ann, post(channel, CIPHERTEXT));
    for client in [&mut ann, &mut bob] {
        let heard = client.expect_broadcast("NEW_MESSAGE");
        assert_eq!((&heard["content"], &heard["author_nickname"]), (&hex(CIPHERTEXT), &json!("ann")));
    }
    let other: Vec<u8> = CIPHERTEXT.iter().rev().copied().collect();
    let edit = EditMessage { message_id: id, new_content: Bounded(&other) };
    assert_eq!(ann.ask(edit, "MESSAGE_EDITED")["new_content"], hex(&other));
    assert_eq!(bob.expect_broadcast("MESSAGE_EDITED")["new_content"], hex(&other));
    assert_eq!(contents(&mut bob, roots(channel)), [hex(&other)]);
    let stored = rows(&server, "SELECT hex(content) FROM Message");
    assert_eq!(stored[0][0].to_lowercase(), hex(&other)["bytes_hex"].as_str().unwrap());
}

#[test]
fn participants_see_each_other_and_what_was_said() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut visitor = server.client_named("visitor");
    let channel = conversation(&mut visitor, &mut ann, "ann");
    for client in [&mut ann, &mut visitor] {
        join(client, channel);
        subscribe(client, channel);
    }
    posted(&mut visitor, post(channel, b"hello"));
    posted(&mut ann, post(channel, b"hi"));
    assert_eq!(contents(&mut visitor, roots(channel)), ["hi", "hello"]);
    let authors = column(&mut ann, roots(channel), "author_nickname");
    assert_eq!(authors, ["ann", "~visitor"], "as everywhere");
    let request = ListChannelUsers { channel_id: channel, subchannel_id: None };
    let users = items(&ann.ask(request, "CHANNEL_USER_LIST"), "users");
    let names: Vec<_> = users.iter().map(|user| user["nickname"].clone()).collect();
    assert_eq!(names, ["ann", "visitor"]);
    let here = json!(channel.0.to_string());
    let present = |seen: &Fields| seen["channel_id"] == here && seen["nickname"] == "visitor";
    ann.expect_matching("CHANNEL_PRESENCE", present);
    let target = UnreadTarget { channel_id: channel, subchannel_id: None, thread_id: None };
    let counts = ann.ask(GetUnreadCounts { since_timestamp: None, targets: List(vec![target]) }, "UNREAD_COUNTS");
    assert_eq!(items(&counts, "counts")[0]["unread_count"], 1);
    check_refused(
        &mut ann,
        [(reply(channel, posted_id(&server), b"x").into(), 6000, "Chat channels do not support threaded replies")],
    );
}

fn posted_id(server: &Server) -> superchat::ids::MessageId {
    superchat::ids::MessageId(rows(server, "SELECT max(id) FROM Message")[0][0].parse().unwrap())
}

#[test]
fn the_history_is_there_after_a_reconnect_and_a_restart() {
    let mut server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    posted(&mut ann, post(channel, b"one"));
    ann.hang_up();
    posted(&mut bob, post(channel, b"two"));
    let mut back = another_session(&server, "ann");
    assert_eq!(contents(&mut back, roots(channel)), ["two", "one"]);
    assert_eq!(server.stop(), Some(0));
    server.resume();
    let mut back = another_session(&server, "ann");
    assert_eq!(channel_in(&told_at_sign_in(&mut back, 1)[0].1), channel);
    join(&mut back, channel);
    subscribe(&mut back, channel);
    assert_eq!(contents(&mut back, roots(channel)), ["two", "one"]);
    let mut other = another_session(&server, "bob");
    posted(&mut other, post(channel, b"three"));
    assert_eq!(back.expect_broadcast("NEW_MESSAGE")["content"], "three");
}

#[test]
fn a_conversation_of_an_old_file_without_participants_is_that_of_those_with_access() {
    let mut server = start();
    registered(&server, "ann").hang_up();
    registered(&server, "bob").hang_up();
    assert_eq!(server.stop(), Some(0));
    operator(&server)
        .execute_batch(
            "INSERT INTO Channel (id, name, display_name, channel_type, is_dm, is_private, created_at)
                 VALUES (70, 'dm_1_2', 'Direct Message', 0, 1, 1, 1);
             INSERT INTO ChannelAccess VALUES (70, 1, 1), (70, 2, 1);
             UPDATE User SET encryption_public_key = zeroblob(32);
             INSERT INTO Message (id, channel_id, author_user_id, author_nickname, content, created_at)
                 VALUES (5, 70, 1, 'ann', 'of old', strftime('%s') * 1000)",
        )
        .unwrap();
    server.resume();
    let mut bob = another_session(&server, "bob");
    assert_eq!(contents(&mut bob, roots(ChannelId(70))), ["of old"]);
    let ready = bob.ask(start_dm("ann", false), "DM_READY");
    check_fields(&ready, json!({ "channel_id": "70", "is_encrypted": true, "other_public_key": shown_key(0) }));
}
