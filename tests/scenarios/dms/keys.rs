//! PROVIDE_PUBLIC_KEY (BEHAVIOUR.md 4.3), and what a session is told when it signs in (4.9).

use super::*;

#[test]
fn visitors_have_no_keys_but_ephemeral_ones_and_those_are_of_no_use() {
    let server = start();
    let mut visitor = server.client_named("visitor");
    for key_type in [0, 1, 9] {
        let key = ProvidePublicKey { key_type, ..public_key(1) };
        check_refused(&mut visitor, [(key.into(), 3000, "Anonymous users can only use ephemeral keys")]);
    }
    visitor.send(ProvidePublicKey { key_type: 2, ..public_key(1) });
    assert_eq!(heard_names(&mut visitor), [""; 0], "no answer");
    let _other = server.client_named("other");
    visitor.ask(start_dm("other", false), "KEY_REQUIRED");
}

#[test]
fn a_key_is_stored_with_the_account_whatever_its_type() {
    let server = start();
    let mut ann = registered(&server, "ann");
    for (key_type, byte) in [(0, 1), (1, 2), (2, 3)] {
        ann.send(ProvidePublicKey { key_type, ..public_key(byte) });
        assert_eq!(heard_names(&mut ann), [""; 0], "no answer");
        let stored = rows(&server, "SELECT hex(encryption_public_key) FROM User");
        assert_eq!(stored, [[shown_key(byte)]]);
    }
}

#[test]
fn a_key_completes_the_invitations_of_both_directions() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let (mut bob, mut cat) = (with_key(&server, "bob", 2), with_key(&server, "cat", 3));
    invited(&mut ann, "bob");
    cat.ask(start_dm("ann", false), "DM_PENDING");
    ann.expect_broadcast("DM_REQUEST");
    ann.send(public_key(1));
    let mut ready = [ann.expect_broadcast("DM_READY"), ann.expect_broadcast("DM_READY")];
    ready.sort_by_key(|ready| ready["other_nickname"].as_str().unwrap().to_owned());
    for (ready, (client, other, byte)) in ready.iter().zip([(&mut bob, "bob", 2), (&mut cat, "cat", 3)]) {
        check_fields(ready, json!({ "other_nickname": other, "other_public_key": shown_key(byte) }));
        let told = client.expect_broadcast("DM_READY");
        check_fields(
            &told,
            json!({ "channel_id": ready["channel_id"], "other_nickname": "ann",
                "other_public_key": shown_key(1) }),
        );
    }
    assert_eq!(rows(&server, "SELECT count(*) FROM DMInvite"), [["0"]]);
}

#[test]
fn a_new_key_is_told_to_the_others_of_encrypted_conversations() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut bob = with_key(&server, "bob", 2);
    let mut cat = registered(&server, "cat");
    let channel = channel_in(&ann.ask(start_dm("bob", false), "DM_READY"));
    bob.expect_broadcast("DM_READY");
    conversation(&mut ann, &mut cat, "cat");
    provide(&mut ann, 9);
    let fresh = bob.expect_broadcast("DM_READY");
    check_fields(&fresh, json!({ "channel_id": channel.0.to_string(), "other_public_key": shown_key(9) }));
    provide(&mut ann, 9);
    assert_eq!(heard_names(&mut bob), [""; 0], "the same key is no news");
    assert_eq!(heard_names(&mut cat), [""; 0], "a conversation without encryption has no keys");
}

#[test]
fn an_account_cannot_change_its_key_all_the_time() {
    let server = Server::start(limited());
    let mut ann = with_key(&server, "ann", 0);
    for byte in 1..30 {
        // The same one again is no change.
        provide(&mut ann, byte - 1);
        provide(&mut ann, byte);
    }
    check_refused(&mut ann, [(public_key(99).into(), 5000, "Too many DM requests. Try again later.")]);
    assert_eq!(rows(&server, "SELECT lower(hex(encryption_public_key)) FROM User"), [[shown_key(29)]]);
}

#[test]
fn every_session_of_an_account_is_told() {
    let server = start();
    let mut bob = registered(&server, "bob");
    let mut second = another_session(&server, "bob");
    let mut ann = registered(&server, "ann");
    let mut anns = another_session(&server, "ann");
    let invite = invited(&mut ann, "bob");
    assert_eq!(anns.expect_broadcast("DM_PENDING")["dm_channel_id"], invite.0.to_string());
    for session in [&mut bob, &mut second] {
        session.expect_broadcast("DM_REQUEST");
    }
    second.ask(allow(invite), "DM_READY");
    for session in [&mut bob, &mut ann, &mut anns] {
        session.expect_broadcast("DM_READY");
    }
    for session in [&mut bob, &mut second, &mut ann, &mut anns] {
        assert_eq!(heard_names(session), [""; 0], "once");
    }
}

#[test]
fn signing_in_shows_what_there_is_behind_the_roster() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let (mut bob, _cat, mut dan) = (registered(&server, "bob"), registered(&server, "cat"), registered(&server, "dan"));
    let channel = conversation(&mut ann, &mut bob, "bob");
    let sent = invited(&mut ann, "cat");
    let received = invited(&mut dan, "ann");
    ann.hang_up();
    let mut back = another_session(&server, "ann");
    let told = told_at_sign_in(&mut back, 3);
    let names: Vec<_> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["DM_READY", "DM_REQUEST", "DM_PENDING"]);
    assert_eq!(channel_in(&told[0].1), channel);
    check_fields(&told[0].1, plain_with("bob", Some(UserId(2))));
    check_fields(&told[1].1, json!({ "dm_channel_id": received.0.to_string(), "from_nickname": "dan" }));
    check_fields(&told[2].1, json!({ "dm_channel_id": sent.0.to_string(), "waiting_for_nickname": "cat" }));
    let mut nobody = registered(&server, "eve");
    nobody.hang_up();
    nobody = another_session(&server, "eve");
    session_of(&mut nobody, "eve");
    assert_eq!(heard_names(&mut nobody), [""; 0], "nothing of others");
}

#[test]
fn encrypted_conversations_wait_for_the_key_of_the_session() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut bob = with_key(&server, "bob", 2);
    let channel = channel_in(&ann.ask(start_dm("bob", false), "DM_READY"));
    let plain = {
        let mut cat = registered(&server, "cat");
        conversation(&mut ann, &mut cat, "cat")
    };
    ann.hang_up();
    let mut back = another_session(&server, "ann");
    assert_eq!(channel_in(&told_at_sign_in(&mut back, 1)[0].1), plain);
    back.send(public_key(1));
    let ready = back.expect_broadcast("DM_READY");
    check_fields(
        &ready,
        json!({ "channel_id": channel.0.to_string(), "other_nickname": "bob", "other_public_key": shown_key(2) }),
    );
    assert_eq!(heard_names(&mut back), [""; 0], "each once");
    bob.expect_broadcast("DM_READY");
    assert_eq!(heard_names(&mut bob), [""; 0], "the key has not changed");
    // And on request.
    let mut without = another_session(&server, "ann");
    told_at_sign_in(&mut without, 1);
    assert_eq!(channel_in(&without.ask(start_dm("bob", true), "DM_READY")), channel);
}

#[test]
fn conversations_carry_the_nickname_of_today() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    conversation(&mut ann, &mut bob, "bob");
    let rename = superchat::wire::client::SetNickname { nickname: superchat::wire::codec::Bounded(b"robert") };
    assert_eq!(bob.ask(rename, "NICKNAME_RESPONSE")["success"], true);
    assert_eq!(ann.ask(start_dm("robert", true), "DM_READY")["other_nickname"], "robert");
}
