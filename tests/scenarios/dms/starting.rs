//! START_DM (BEHAVIOUR.md 4.2): whom it reaches, what it needs, what it is answered with.

use super::*;
use crate::support::link::encode;

#[test]
fn an_invitation_reaches_its_target_by_user_nickname_and_session() {
    let server = start();
    let mut bob = registered(&server, "bob");
    let mut ann = registered(&server, "ann");
    let mut visitor = server.client_named("visitor");
    let (bobs, anns) = (user_of(&mut ann, "bob"), user_of(&mut bob, "ann"));
    let session = session_of(&mut visitor, "bob");
    let cases: [(&mut Client, DmTarget<'_>, &str, Option<UserId>); 3] = [
        (&mut ann, DmTarget::User(bobs), "ann", Some(anns)),
        (&mut visitor, DmTarget::Nickname(b"bob"), "visitor", None),
        (&mut server.client_named("second"), DmTarget::Session(session), "second", None),
    ];
    for (client, target, from, user) in cases {
        let pending = client.ask(StartDm { target, allow_unencrypted: true }, "DM_PENDING");
        check_fields(
            &pending,
            json!({ "waiting_for_user_id": bobs.0.to_string(), "waiting_for_nickname": "bob",
                "reason": "Waiting for bob to accept" }),
        );
        let request = bob.expect_broadcast("DM_REQUEST");
        let user = user.map(|user| user.0.to_string());
        check_fields(&request, json!({ "from_nickname": from, "from_user_id": user, "encryption_status": 0 }));
        assert_eq!(request["dm_channel_id"], pending["dm_channel_id"]);
    }
}

#[test]
fn a_registered_nickname_is_the_account_and_any_other_the_session_that_carries_it() {
    let server = start();
    let mut owner = registered(&server, "owner");
    let mut namesake = server.client_named("owner");
    let mut free = server.client_named("free");
    let mut asker = server.client_named("asker");
    invited(&mut asker, "owner");
    owner.expect_broadcast("DM_REQUEST");
    let pending = asker.ask(start_dm("free", true), "DM_PENDING");
    assert_eq!(pending["waiting_for_user_id"], Value::Null);
    free.expect_broadcast("DM_REQUEST");
    assert_eq!(heard_names(&mut namesake), ["USER_INFO"], "what its SET_NICKNAME was followed by");
}

#[test]
fn what_cannot_be_started_says_why() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let own = session_of(&mut ann, "ann");
    let user = user_of(&mut ann, "ann");
    let to = |target| StartDm { target, allow_unencrypted: true };
    check_refused(
        &mut ann,
        [
            (to(DmTarget::User(UserId(55))).into(), 4000, "User not found"),
            (to(DmTarget::Nickname(b"nobody")).into(), 4000, "User not found"),
            (to(DmTarget::Nickname(b"")).into(), 4000, "User not found"),
            (to(DmTarget::Session(SessionId(5555))).into(), 4000, "Session not found"),
            (to(DmTarget::Unknown(9)).into(), 1000, "Invalid target type"),
            (to(DmTarget::User(user)).into(), 6000, "Cannot start a DM with yourself"),
            (to(DmTarget::Nickname(b"ann")).into(), 6000, "Cannot start a DM with yourself"),
            (to(DmTarget::Session(own)).into(), 6000, "Cannot start a DM with yourself"),
        ],
    );
    ann.send_raw(&frame(0x19, &[1, 0]));
    assert_eq!(ann.expect_error(1000), "Invalid START_DM format");
    let mut nameless = server.client();
    check_refused(&mut nameless, [(start_dm("ann", true).into(), 2000, "Nickname required. Use SET_NICKNAME first.")]);
    let mut visitor = server.client_named("visitor");
    let (own, request) = (session_of(&mut visitor, "visitor"), "Cannot start a DM with yourself");
    check_refused(&mut visitor, [(to(DmTarget::Session(own)).into(), 6000, request)]);
    assert_eq!(rows(&server, "SELECT count(*) FROM DMInvite"), [["0"]]);
}

#[test]
fn a_visitor_can_only_reach_accounts_that_are_here() {
    let server = start();
    registered(&server, "away").hang_up();
    let mut ann = registered(&server, "ann");
    let mut visitor = server.client_named("visitor");
    check_refused(
        &mut visitor,
        [(start_dm("away", true).into(), 4000, "Target user must be online for anonymous DMs")],
    );
    invited(&mut ann, "away");
}

#[test]
fn without_a_key_an_encrypted_conversation_needs_one_first_and_nothing_is_stored() {
    let server = start();
    let mut bob = registered(&server, "bob");
    let mut ann = registered(&server, "ann");
    let required = ann.ask(start_dm("bob", false), "KEY_REQUIRED");
    check_fields(
        &required,
        json!({ "reason": "You need to set up an encryption key before starting encrypted DMs",
            "dm_channel_id": null }),
    );
    assert_eq!(heard_names(&mut bob), [""; 0]);
    assert_eq!(rows(&server, "SELECT count(*) FROM DMInvite"), [["0"]]);
}

#[test]
fn two_accounts_with_keys_are_ready_at_once() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let mut bob = with_key(&server, "bob", 2);
    let ready = ann.ask(start_dm("bob", false), "DM_READY");
    check_fields(
        &ready,
        json!({ "other_user_id": "2", "other_nickname": "bob", "is_encrypted": true,
            "other_public_key": shown_key(2) }),
    );
    let told = bob.expect_broadcast("DM_READY");
    check_fields(
        &told,
        json!({ "channel_id": ready["channel_id"], "other_user_id": "1", "other_nickname": "ann",
            "is_encrypted": true, "other_public_key": shown_key(1) }),
    );
    // In the words of the file, which another server reads as well.
    assert_eq!(
        rows(
            &server,
            "SELECT name, display_name, is_dm, is_private, channel_type, message_retention_hours, created_by
                       FROM Channel WHERE is_dm = 1"
        ),
        [["dm_1_2", "Direct Message", "1", "1", "0", "168", "NULL"]]
    );
    assert_eq!(
        rows(&server, "SELECT user_id, session_id, nickname FROM ChannelParticipant ORDER BY id"),
        [["1", "NULL", "ann"], ["2", "NULL", "bob"]]
    );
    assert_eq!(rows(&server, "SELECT user_id FROM ChannelAccess ORDER BY user_id"), [["1"], ["2"]]);
}

#[test]
fn starting_again_finds_the_same_conversation_and_tells_only_who_asked() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let mut bob = registered(&server, "bob");
    let channel = conversation(&mut ann, &mut bob, "bob");
    // Keys that came later do not change what the conversation is (D-23).
    provide(&mut ann, 1);
    provide(&mut bob, 2);
    for (client, other) in [(&mut ann, "bob"), (&mut bob, "ann")] {
        let ready = client.ask(start_dm(other, false), "DM_READY");
        assert_eq!(channel_in(&ready), channel);
        assert_eq!(ready["is_encrypted"], false);
        assert_eq!(ready["other_nickname"], other);
        assert_ne!(ready["other_user_id"], Value::Null);
    }
    assert_eq!((heard_names(&mut ann), heard_names(&mut bob)), (vec![], vec![]));
    let session = session_of(&mut ann, "bob");
    let by_session = StartDm { target: DmTarget::Session(session), allow_unencrypted: false };
    assert_eq!(ann.ask(by_session, "DM_READY")["other_user_id"], "2", "also when found by session");
}

#[test]
fn a_repeated_invitation_is_the_same_and_not_shown_again_within_a_minute() {
    let server = start();
    let mut bob = server.client_named("bob");
    let mut ann = server.client_named("ann");
    let first = invited(&mut ann, "bob");
    assert_eq!(invited(&mut ann, "bob"), first);
    assert_eq!(heard_names(&mut bob), ["DM_REQUEST"]);
    operator(&server).execute("UPDATE scd_dm_invite SET shown_at = shown_at - 60000", []).unwrap();
    assert_eq!(invited(&mut ann, "bob"), first);
    assert_eq!(heard_names(&mut bob), ["DM_REQUEST"]);
}

#[test]
fn a_channel_that_older_servers_let_be_called_like_a_conversation_is_not_in_its_way() {
    let server = start();
    let mut ann = with_key(&server, "ann", 1);
    let _bob = with_key(&server, "bob", 2);
    let create = "INSERT INTO Channel (name, display_name, created_at) VALUES ('dm_1_2', 'taken', 1)";
    operator(&server).execute(create, []).unwrap();
    let ready = ann.ask(start_dm("bob", false), "DM_READY");
    assert_eq!(ready["is_encrypted"], true);
    assert_eq!(ann.ask(start_dm("bob", true), "DM_READY"), ready, "it is known to be encrypted");
    assert_eq!(rows(&server, "SELECT name FROM Channel WHERE is_dm = 1"), [["dm_1_2-2"]]);
}

#[test]
fn nobody_has_more_than_a_hundred_invitations_open() {
    let server = start();
    let mut ann = registered(&server, "ann");
    let insert = "WITH RECURSIVE n(id) AS (SELECT 2 UNION ALL SELECT id + 1 FROM n WHERE id < 102)
                  INSERT INTO User (id, nickname, password_hash, created_at, last_seen)
                  SELECT id, 'user' || id, '', 1, 1 FROM n";
    operator(&server).execute(insert, []).unwrap();
    let to = |user| StartDm { target: DmTarget::User(UserId(user)), allow_unencrypted: true };
    for user in 2..=101 {
        ann.ask(to(user), "DM_PENDING");
    }
    check_refused(&mut ann, [(to(102).into(), 5000, "Too many DM requests. Try again later.")]);
    ann.ask(to(101), "DM_PENDING");
}

#[test]
fn new_conversations_have_a_rate_and_old_ones_none() {
    let server = Server::start(limited().set("limits", "dm_invites_per_hour", 2));
    let mut bob = server.client_named("bob");
    let mut ann = server.client_named("ann");
    conversation(&mut ann, &mut bob, "bob");
    let _other = server.client_named("other");
    invited(&mut ann, "other");
    check_refused(&mut ann, [(start_dm("other", true).into(), 5000, "Too many DM requests. Try again later.")]);
    (0..5).for_each(|_| drop(ann.ask(start_dm("bob", true), "DM_READY")));
    let is_logged = || server.output().contains("Rate limit exceeded for session").then_some(());
    crate::support::clock::poll(crate::support::client::PATIENCE, is_logged).expect("a line for operators");
}

#[test]
fn a_target_type_that_reads_no_target_does_not_spoil_what_follows() {
    let server = start();
    let mut ann = server.client_named("ann");
    let request = json!({ "target_type": 7, "allow_unencrypted": true });
    ann.send_raw(&encode("START_DM", 2, 0, request.as_object().unwrap()));
    assert_eq!(ann.expect_error(1000), "Invalid target type");
    assert_eq!(heard_names(&mut ann), [""; 0]);
}
