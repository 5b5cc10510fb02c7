//! ALLOW_UNENCRYPTED and DECLINE_DM (BEHAVIOUR.md 4.4, 4.5).

use super::*;

#[test]
fn accepting_opens_a_conversation_for_both() {
    let server = start();
    let mut bob = registered(&server, "bob");
    let mut ann = server.client_named("ann");
    let invite = invited(&mut ann, "bob");
    assert_eq!(bob.expect_broadcast("DM_REQUEST")["dm_channel_id"], invite.0.to_string());
    let accepted = bob.ask(allow(invite), "DM_READY");
    check_fields(&accepted, plain_with("ann", None));
    let told = ann.expect_broadcast("DM_READY");
    check_fields(&told, plain_with("bob", Some(UserId(1))));
    assert_eq!(channel_in(&accepted), channel_in(&told));
    assert_eq!(rows(&server, "SELECT count(*) FROM DMInvite"), [["0"]]);
    check_refused(&mut bob, [(allow(invite).into(), 4000, "DM invite not found")]);
}

#[test]
fn an_invitation_of_ones_own_is_answered_along_with_the_others() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let (first, second) = (invited(&mut ann, "bob"), invited(&mut bob, "ann"));
    assert_ne!(first, second);
    bob.ask(allow(first), "DM_READY");
    check_refused(&mut ann, [(allow(second).into(), 4000, "DM invite not found")]);
    assert_eq!(rows(&server, "SELECT count(*) FROM Channel WHERE is_dm = 1"), [["1"]]);
}

#[test]
fn only_the_invited_can_accept_or_decline() {
    let server = start();
    let mut bob = server.client_named("bob");
    let mut ann = server.client_named("ann");
    let invite = invited(&mut ann, "bob");
    let (mut namesake, mut nameless) = (server.client_named("bob"), server.client());
    let mut admin = registered(&server, "eve");
    const TEXT: &str = "Not authorized for this invite";
    for stranger in [&mut namesake, &mut nameless, &mut admin, &mut ann] {
        check_refused(stranger, [(allow(invite).into(), 3000, TEXT), (decline(invite).into(), 3000, TEXT)]);
    }
    assert_eq!(heard_names(&mut ann), [""; 0], "nothing happened");
    bob.ask(allow(invite), "DM_READY");
}

#[test]
fn unknown_invitations_and_unreadable_requests_are_answered_as_the_protocol_says() {
    let server = start();
    let mut client = server.client_named("client");
    for client in [&mut client, &mut server.client()] {
        check_refused(client, [(allow(InviteId(424_242)).into(), 4000, "DM invite not found")]);
        client.send(decline(InviteId(424_242)));
        assert_eq!(heard_names(client), [""; 0], "silence");
    }
    for (code, text) in [
        (0x1B, "Invalid ALLOW_UNENCRYPTED format"),
        (0x1E, "Invalid DECLINE_DM format"),
        (0x1A, "Invalid PROVIDE_PUBLIC_KEY format"),
    ] {
        client.send_raw(&frame(code, &[0, 1]));
        assert_eq!(client.expect_error(1000), text);
    }
}

#[test]
fn declining_tells_the_initiator_and_closes_the_invitation() {
    let server = start();
    let mut bob = registered(&server, "bob");
    let mut ann = server.client_named("ann");
    let invite = invited(&mut ann, "bob");
    bob.send(decline(invite));
    let told = ann.expect_broadcast("DM_DECLINED");
    check_fields(&told, json!({ "dm_channel_id": invite.0.to_string(), "user_id": "1", "nickname": "bob" }));
    assert_eq!(heard_names(&mut bob), ["DM_REQUEST"], "no answer");
    check_refused(&mut bob, [(allow(invite).into(), 4000, "DM invite not found")]);
    assert_ne!(invited(&mut ann, "bob"), invite, "a new one may follow");
}

#[test]
fn required_encryption_holds() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut bob = registered(&server, "bob");
    ann.ask(start_dm("bob", false), "DM_PENDING");
    let request = bob.expect_broadcast("DM_REQUEST");
    assert_eq!(request["encryption_status"], 1);
    let invite = InviteId(number(&request["dm_channel_id"]));
    let required = bob.ask(allow(invite), "KEY_REQUIRED");
    check_fields(
        &required,
        json!({ "reason": "ann requires an encrypted conversation", "dm_channel_id": invite.0.to_string() }),
    );
    check_refused(&mut bob, [(allow(invite).into(), 3000, "This conversation must be encrypted")]);
    let mut elsewhere = another_session(&server, "bob");
    elsewhere.ask(allow(invite), "KEY_REQUIRED");
    bob.send(public_key(2));
    for (client, other, key) in [(&mut bob, "ann", 1), (&mut ann, "bob", 2)] {
        let ready = client.expect_broadcast("DM_READY");
        check_fields(
            &ready,
            json!({ "other_nickname": other, "is_encrypted": true, "other_public_key": shown_key(key) }),
        );
    }
    check_refused(&mut bob, [(allow(invite).into(), 4000, "DM invite not found")]);
}

#[test]
fn encryption_that_is_only_offered_can_be_done_without() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut bob = registered(&server, "bob");
    let invite = invited(&mut ann, "bob");
    assert_eq!(bob.expect_broadcast("DM_REQUEST")["encryption_status"], 2);
    check_fields(&bob.ask(allow(invite), "DM_READY"), plain_with("ann", Some(UserId(1))));
}

#[test]
fn a_visitor_cannot_accept_what_must_be_encrypted() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut visitor = server.client_named("visitor");
    ann.ask(start_dm("visitor", false), "DM_PENDING");
    let invite = InviteId(number(&visitor.expect_broadcast("DM_REQUEST")["dm_channel_id"]));
    visitor.ask(allow(invite), "KEY_REQUIRED");
    visitor.send(ProvidePublicKey { key_type: 2, ..public_key(2) });
    check_refused(&mut visitor, [(allow(invite).into(), 3000, "This conversation must be encrypted")]);
    assert_eq!(heard_names(&mut ann), [""; 0]);
}

#[test]
fn an_invitation_ends_with_the_visitor_on_either_side() {
    let server = start();
    let mut bob = registered(&server, "bob");
    let ann = {
        let mut ann = server.client_named("ann");
        let invite = invited(&mut ann, "bob");
        ann.hang_up();
        invite
    };
    let guest = server.client_named("guest");
    invited(&mut bob, "guest");
    guest.hang_up();
    crate::support::clock::poll(crate::support::client::PATIENCE, || {
        (rows(&server, "SELECT count(*) FROM DMInvite") == [["0"]]).then_some(())
    })
    .expect("both invitations to go");
    check_refused(&mut bob, [(allow(ann).into(), 4000, "DM invite not found")]);
}

#[test]
fn an_account_that_left_meanwhile_finds_the_conversation_when_it_is_back() {
    let server = start();
    let mut bob = registered(&server, "bob");
    let mut ann = registered(&server, "ann");
    let invite = invited(&mut ann, "bob");
    ann.hang_up();
    let channel = channel_in(&bob.ask(allow(invite), "DM_READY"));
    let mut back = another_session(&server, "ann");
    let told = told_at_sign_in(&mut back, 1);
    assert_eq!((told[0].0.as_str(), channel_in(&told[0].1)), ("DM_READY", channel));
}
