//! Nicknames and accounts (BEHAVIOUR.md 2.1 to 2.4, CHANGE_PASSWORD in 2.16, 5.1; D-08, D-09, D-63, D-75).

use std::time::Duration;

use serde_json::{Value, json};
use superchat::wire::ClientMessage;
use superchat::wire::client::{
    AuthRequest, ChangePassword, CreateSubchannel, EditMessage, GetUserInfo, ListUsers, Logout, RegisterUser,
    SetNickname,
};
use superchat::wire::codec::{Bounded, Tail};

use crate::steps::*;
use crate::support::client::PATIENCE;
use crate::support::link::Fields;
use crate::support::{Client, Server, clock};

fn name(nickname: &str) -> SetNickname<'_> {
    SetNickname { nickname: Bounded(nickname.as_bytes()) }
}

fn set_nickname(client: &mut Client, nickname: &str) -> (bool, String) {
    let answer = client.ask(name(nickname), "NICKNAME_RESPONSE");
    (answer["success"] == true, answer["message"].as_str().unwrap().to_owned())
}

fn refusal(text: &str) -> (bool, String) {
    (false, text.to_owned())
}

fn granted(text: &str) -> (bool, String) {
    (true, text.to_owned())
}

fn user_info(client: &mut Client, nickname: &str) -> Value {
    Value::Object(client.ask(GetUserInfo { nickname: nickname.as_bytes() }, "USER_INFO"))
}

/// The text of a failed AUTH_RESPONSE, or of a successful one.
fn text(answer: &Fields) -> &str {
    answer["message"].as_str().unwrap()
}

fn change_password(client: &mut Client, old: &str, new: &str) -> (bool, String) {
    let (old, new) = (
        if old.is_empty() { String::new() } else { secret(old) },
        if new.is_empty() { String::new() } else { secret(new) },
    );
    let request = ChangePassword { old_password_hash: old.as_bytes(), new_password_hash: new.as_bytes() };
    let answer = client.ask(request, "PASSWORD_CHANGED");
    (answer["success"] == true, answer["error_message"].as_str().unwrap().to_owned())
}

// ---- SET_NICKNAME ---------------------------------------------------------------------------------------------------

#[test]
fn a_nickname_is_three_to_twenty_letters_digits_dashes_and_underscores() {
    const RULE: &str = "Invalid nickname. Must be 3-20 characters, alphanumeric plus - and _";
    let server = start();
    let mut client = server.client();
    for bad in ["a b", "~bob", "bob!", "h\u{e9}llo", "a\0b", "bob\n"] {
        assert_eq!(set_nickname(&mut client, bad), refusal(RULE), "{bad:?}");
    }
    for length in [2_u8, 21] {
        client.send_raw(&frame(0x02, &[&[0, length][..], &vec![b'x'; length.into()]].concat()));
        assert_eq!(client.expect_error(1000), "Invalid message format");
    }
    assert_eq!(set_nickname(&mut client, "A_b-9"), granted("Nickname set to A_b-9"));
    assert_eq!(set_nickname(&mut client, "A_b-9"), granted("Nickname set to A_b-9"));
    let longest = "x".repeat(20);
    assert_eq!(set_nickname(&mut client, &longest), granted(&format!("Nickname changed to {longest}")));
}

#[test]
fn a_visitor_may_carry_an_accounts_name_and_is_told_whose_it_is() {
    let server = start();
    let mut alice = registered(&server, "alice");
    let mut visitor = server.client();
    assert_eq!(set_nickname(&mut visitor, "alice"), granted("Nickname set to alice"));
    let told = Value::Object(visitor.expect_broadcast("USER_INFO"));
    assert_eq!(told, json!({ "nickname": "alice", "is_registered": true, "user_id": "1", "online": true }));
    posted(&mut visitor, post(GENERAL, b"x"));
    assert_eq!(column(&mut alice, roots(GENERAL), "author_nickname"), ["~alice"]);
    assert_eq!(set_nickname(&mut alice, "alice"), granted("Nickname set to alice"));
    assert!(heard(&mut alice).is_empty(), "it is her own");
    assert_eq!(set_nickname(&mut visitor, "Alice"), granted("Nickname changed to Alice"));
    assert!(heard(&mut visitor).is_empty(), "names are told apart by case");
}

#[test]
fn an_account_is_renamed_unless_the_name_is_taken_in_any_case() {
    let server = start();
    let (mut alice, _bob) = (registered(&server, "alice"), registered(&server, "bobby"));
    let _visitor = server.client_named("carol");
    for taken in ["bobby", "BOBBY"] {
        assert_eq!(set_nickname(&mut alice, taken), refusal("Nickname already in use"));
    }
    posted(&mut alice, post(GENERAL, b"x"));
    assert_eq!(set_nickname(&mut alice, "carol"), granted("Nickname changed to carol"));
    assert_eq!(rows(&server, "SELECT nickname FROM User ORDER BY id").concat(), ["carol", "bobby"]);
    assert_eq!(column(&mut alice, roots(GENERAL), "author_nickname"), ["carol"], "earlier messages follow the name");
    assert_eq!(set_nickname(&mut alice, "Carol"), granted("Nickname changed to Carol"), "her own name in another case");
}

#[test]
fn a_nickname_ban_is_told_when_the_name_is_set() {
    let server = start();
    let until = i64::MAX / 2_000_000;
    operator(&server)
        .execute_batch(&format!(
            "INSERT INTO Ban (ban_type, nickname, reason, shadowban, banned_at, banned_until, banned_by) VALUES
                 ('user', 'troll', 'spam', 0, 1, NULL, 'boss'), ('user', 'expired', 'x', 0, 1, 2, 'boss'),
                 ('user', 'shadow', 'x', 1, 1, NULL, 'boss'), ('user', 'later', 'calm down', 0, 1, {until}, 'boss')"
        ))
        .unwrap();
    let mut client = server.client();
    assert_eq!(set_nickname(&mut client, "troll"), refusal("Account banned permanently. Reason: spam"));
    let (granted_later, told) = set_nickname(&mut client, "later");
    assert!(
        !granted_later && told.starts_with("Account banned until 2116-") && told.ends_with("Z. Reason: calm down"),
        "{told}"
    );
    for allowed in ["expired", "shadow"] {
        assert!(set_nickname(&mut client, allowed).0, "{allowed}");
    }
    operator(&server).execute_batch("DELETE FROM Ban").unwrap();
    assert!(set_nickname(&mut client, "troll").0, "an operator's DELETE counts at once");
}

// ---- REGISTER_USER --------------------------------------------------------------------------------------------------

#[test]
fn registration_is_refused_for_the_first_rule_it_breaks() {
    let server = start();
    let register =
        |length: usize| -> ClientMessage<'static> { RegisterUser { password_hash: &[b'x'; 60][..length] }.into() };
    let mut client = server.client();
    check_failed(&mut client, "REGISTER_RESPONSE", [(register(1), "Must set nickname before registering")]);
    let _alice = registered(&server, "alice");
    for taken in ["alice", "ALICE"] {
        set_nickname(&mut client, taken);
        let hash = "Invalid password hash format";
        let cases = [(register(39), hash), (register(51), hash), (register(43), "Nickname already registered")];
        check_failed(&mut client, "REGISTER_RESPONSE", cases);
    }
    assert_eq!(rows(&server, "SELECT nickname FROM User").concat(), ["alice"]);
}

#[test]
fn a_registered_session_is_signed_in_and_its_password_is_kept_as_bcrypt() {
    let server = start();
    let mut alice = server.client_named("alice");
    let request = RegisterUser { password_hash: &[b'x'; 40] };
    let answer = Value::Object(alice.ask(request, "REGISTER_RESPONSE"));
    assert_eq!(answer, json!({ "success": true, "user_id": "1", "message": "Successfully registered alice!" }));
    let id = posted(&mut alice, post(GENERAL, b"x"));
    alice.ask(EditMessage { message_id: id, new_content: Bounded(b"y") }, "MESSAGE_EDITED");
    let stored = rows(
        &server,
        "SELECT nickname, user_flags, substr(password_hash, 1, 7), length(password_hash), last_seen >= created_at
         FROM User",
    );
    assert_eq!(stored, [["alice", "0", "$2a$10$", "60", "1"]]);
}

#[test]
fn a_signed_in_session_registers_again_under_a_free_name_of_its_own() {
    let server = start();
    let mut client = registered(&server, "alice");
    client.send(Logout {});
    assert_eq!(set_nickname(&mut client, "bobby"), granted("Nickname changed to bobby"));
    let answer = client.ask(RegisterUser { password_hash: secret("bobby").as_bytes() }, "REGISTER_RESPONSE");
    assert_eq!(answer["user_id"], "2");
}

// ---- AUTH_REQUEST ---------------------------------------------------------------------------------------------------

#[test]
fn sign_in_answers_with_the_account_or_says_why_not() {
    let mut server = start();
    drop(registered(&server, "alice"));
    operator(&server)
        .execute_batch("INSERT INTO User (nickname, password_hash, created_at, last_seen) VALUES ('keyonly', '', 1, 2)")
        .unwrap();
    server.kill9();
    server.resume();
    let mut client = server.client();
    let ssh = "This account requires SSH authentication. Please connect via SSH.";
    let cases = [
        ("alice", "wrong", "Invalid credentials"),
        ("Alice", "alice", "Invalid credentials"),
        ("nobody", "alice", "Invalid credentials"),
        ("keyonly", "", ssh),
    ];
    for (nickname, password, expected) in cases {
        let answer = sign_in(&mut client, nickname, password);
        assert_eq!((&answer["success"], text(&answer)), (&json!(false), expected), "{nickname}");
    }
    check_refused(&mut client, [(post(GENERAL, b"x").into(), 2000, "Nickname required. Use SET_NICKNAME first.")]);
    let before = clock::now_ms();
    let answer = Value::Object(sign_in(&mut client, "alice", "alice"));
    let expected = json!({ "success": true, "user_id": "1", "nickname": "alice", "message": "Welcome back, alice!",
        "user_flags": 0 });
    assert_eq!(answer, expected);
    posted(&mut client, post(GENERAL, b"x"));
    assert_eq!(column(&mut client, roots(GENERAL), "author_user_id"), ["1"]);
    let seen: i64 = rows(&server, "SELECT last_seen FROM User WHERE id = 1").concat()[0].parse().unwrap();
    assert!(seen >= before);
}

#[test]
fn signing_in_again_replaces_the_identity() {
    let server = start();
    let _both = (registered(&server, "alice"), registered(&server, "bobby"));
    let mut client = server.client();
    for nickname in ["alice", "bobby", "bobby"] {
        assert_eq!(sign_in(&mut client, nickname, nickname)["nickname"], nickname);
        posted(&mut client, post(GENERAL, b"x"));
    }
    assert_eq!(sign_in(&mut client, "alice", "wrong")["success"], false);
    posted(&mut client, post(GENERAL, b"x"));
    assert_eq!(column(&mut client, roots(GENERAL), "author_nickname"), ["bobby", "bobby", "bobby", "alice"]);
}

#[test]
fn a_ban_of_the_account_or_of_its_name_refuses_the_right_password_only() {
    let server = start();
    let _all = ["alice", "bobby", "carol"].map(|nickname| registered(&server, nickname));
    operator(&server)
        .execute_batch(
            "INSERT INTO Ban (ban_type, user_id, nickname, reason, shadowban, banned_at, banned_by) VALUES
                 ('user', 1, NULL, 'by id', 0, 1, 'boss'), ('user', NULL, 'bobby', 'by name', 0, 1, 'boss'),
                 ('user', 3, NULL, 'shadow', 1, 1, 'boss')",
        )
        .unwrap();
    let mut client = server.client();
    for (nickname, reason) in [("alice", "by id"), ("bobby", "by name")] {
        let told = format!("Account banned permanently. Reason: {reason}");
        assert_eq!(text(&sign_in(&mut client, nickname, nickname)), told);
        assert_eq!(text(&sign_in(&mut client, nickname, "wrong")), "Invalid credentials");
    }
    assert_eq!(sign_in(&mut client, "carol", "carol")["success"], true, "a shadow ban is not noticed");
}

#[test]
fn accounts_and_their_flags_come_from_the_file_and_the_configuration() {
    let mut server = Server::start(settings().admins(&["alice"]).set("server", "moderator_users", json!(["bobby"])));
    let _all = ["alice", "bobby", "carol"].map(|nickname| registered(&server, nickname));
    let flags = |server: &Server| {
        ["alice", "bobby", "carol"]
            .map(|nickname| sign_in(&mut server.client(), nickname, nickname)["user_flags"].clone())
    };
    assert_eq!(flags(&server), [1, 2, 0]);
    operator(&server).execute_batch("UPDATE User SET user_flags = 1 WHERE nickname = 'carol'").unwrap();
    server.stop();
    server.reconfigure(settings().admins(&["bobby"]));
    server.resume();
    assert_eq!(flags(&server), [0, 3, 0], "the admin flag follows the list, the moderator's stays");
    assert_eq!(rows(&server, "SELECT user_flags FROM User ORDER BY id").concat(), ["0", "3", "0"]);
}

#[test]
fn nobody_becomes_an_admin_by_taking_a_listed_name() {
    let server = Server::start(settings().admins(&["boss", "chief"]));
    let mut mallory = registered(&server, "mallory");
    assert_eq!(set_nickname(&mut mallory, "boss"), refusal("Nickname already in use"));
    let mut visitor = server.client_named("boss");
    let everybody = ListUsers { limit: 0, include_offline: Tail(Some(true)) };
    check_refused(&mut visitor, [(everybody.into(), 3000, "Admin permission required for include_offline")]);
    let mut boss = registered(&server, "boss");
    assert_eq!(
        set_nickname(&mut boss, "chief"),
        granted("Nickname changed to chief"),
        "from one listed name to another"
    );
    let subchannel =
        CreateSubchannel { channel_id: GENERAL, name: b"sub", description: b"", channel_type: 1, retention_hours: 1 };
    assert_eq!(boss.ask(subchannel.clone(), "SUBCHANNEL_CREATED")["success"], true);
    assert_eq!(set_nickname(&mut boss, "plain"), granted("Nickname changed to plain"));
    let answer = boss.ask(CreateSubchannel { name: b"other", ..subchannel }, "SUBCHANNEL_CREATED");
    assert_eq!(
        text(&answer),
        "Only the channel owner or admins can create subchannels",
        "renaming away drops the right"
    );
}

// ---- LOGOUT ---------------------------------------------------------------------------------------------------------

#[test]
fn logout_keeps_the_nickname_and_nothing_else() {
    let server = Server::start(settings().admins(&["alice"]));
    let mut alice = registered(&server, "alice");
    let id = posted(&mut alice, post(GENERAL, b"x"));
    alice.send(Logout {});
    assert!(heard(&mut alice).is_empty(), "no answer");
    let required = "Authentication required. Register to edit messages.";
    check_refused(&mut alice, [(EditMessage { message_id: id, new_content: Bounded(b"y") }.into(), 2000, required)]);
    posted(&mut alice, post(GENERAL, b"y"));
    assert_eq!(column(&mut alice, roots(GENERAL), "author_nickname"), ["~alice", "$alice"]);
}

// ---- CHANGE_PASSWORD ------------------------------------------------------------------------------------------------

#[test]
fn a_password_changes_for_who_knows_the_old_one() {
    let server = start();
    let required = ChangePassword { old_password_hash: b"", new_password_hash: b"" };
    check_refused(
        &mut server.client_named("visitor"),
        [(required.into(), 2000, "Must be authenticated to change password")],
    );
    let mut alice = registered(&server, "alice");
    alice.send_raw(&frame(0x0E, b""));
    assert_eq!(alice.expect_error(1000), "Invalid change password request");
    assert_eq!(change_password(&mut alice, "wrong", "new"), refusal("Incorrect current password"));
    assert_eq!(change_password(&mut alice, "", "new"), refusal("Incorrect current password"), "D-12");
    assert_eq!(
        change_password(&mut alice, "alice", ""),
        refusal("Cannot remove password without SSH keys. Add an SSH key first.")
    );
    let old = secret("alice");
    let short = ChangePassword { old_password_hash: old.as_bytes(), new_password_hash: &[b'x'; 39] };
    assert_eq!(alice.ask(short, "PASSWORD_CHANGED")["error_message"], "Invalid password hash format");
    assert_eq!(change_password(&mut alice, "alice", "new"), granted(""));
    let mut other = server.client();
    assert_eq!(sign_in(&mut other, "alice", "alice")["success"], false);
    assert_eq!(sign_in(&mut other, "alice", "new")["success"], true);
}

#[test]
fn a_password_can_go_where_a_key_stays_and_come_back_without_an_old_one() {
    let server = start();
    let mut alice = registered(&server, "alice");
    operator(&server)
        .execute_batch(
            "INSERT INTO SSHKey (user_id, fingerprint, public_key, key_type, added_at)
             VALUES (1, 'SHA256:a', 'k', 'ssh-ed25519', 1)",
        )
        .unwrap();
    assert_eq!(change_password(&mut alice, "alice", ""), granted(""));
    assert_eq!(rows(&server, "SELECT password_hash FROM User").concat(), [""]);
    assert_eq!(change_password(&mut alice, "", "new"), granted(""));
    assert_eq!(sign_in(&mut server.client(), "alice", "new")["success"], true);
}

#[test]
fn a_deleted_accounts_session_cannot_change_its_password() {
    let server = start();
    let mut alice = registered(&server, "alice");
    operator(&server).execute_batch("DELETE FROM User").unwrap();
    assert_eq!(change_password(&mut alice, "alice", "new"), refusal("User not found"));
}

// ---- D-08: renaming -------------------------------------------------------------------------------------------------

#[test]
fn after_a_rename_the_old_name_signs_in_until_the_password_is_changed() {
    let mut server = start();
    let mut alice = registered(&server, "alice");
    assert!(set_nickname(&mut alice, "alicia").0);
    server.kill9();
    server.resume();

    let mut client = server.client();
    assert_eq!(sign_in(&mut client, "alicia", "salted with alicia")["success"], false);
    let answer = sign_in(&mut client, "alice", "alice");
    assert_eq!((&answer["success"], &answer["nickname"]), (&json!(true), &json!("alicia")));
    assert_eq!(
        user_info(&mut client, "alice"),
        json!({ "nickname": "alice", "is_registered": true, "user_id": "1", "online": false })
    );

    let mut visitor = server.client();
    assert!(set_nickname(&mut visitor, "alice").0);
    assert_eq!(visitor.expect_broadcast("USER_INFO")["user_id"], "1");
    let answer = visitor.ask(RegisterUser { password_hash: secret("x").as_bytes() }, "REGISTER_RESPONSE");
    assert_eq!(text(&answer), "Nickname already registered");
    let mut bobby = registered(&server, "bobby");
    assert_eq!(set_nickname(&mut bobby, "alice"), refusal("Nickname already in use"));

    assert_eq!(
        change_password(&mut client, "salted with alicia", "new"),
        granted(""),
        "the client cannot know the old hash"
    );
    let mut fresh = server.client();
    assert_eq!(sign_in(&mut fresh, "alice", "alice")["success"], false);
    assert_eq!(sign_in(&mut fresh, "alicia", "new")["success"], true);
    assert_eq!(user_info(&mut fresh, "alice")["is_registered"], false);
    assert_eq!(change_password(&mut client, "salted with alicia", "newer"), refusal("Incorrect current password"));
}

#[test]
fn renaming_back_ends_the_alias() {
    let server = start();
    let mut alice = registered(&server, "alice");
    for nickname in ["second", "third", "alice"] {
        assert!(set_nickname(&mut alice, nickname).0);
    }
    assert_eq!(rows(&server, "SELECT count(*) FROM scd_login_alias").concat(), ["0"]);
    assert_eq!(sign_in(&mut server.client(), "alice", "alice")["success"], true);
    assert_eq!(change_password(&mut alice, "wrong", "new"), refusal("Incorrect current password"));
    drop(registered(&server, "second"));
}

// ---- D-75 -----------------------------------------------------------------------------------------------------------

#[test]
fn a_client_that_believes_it_is_signed_in_is_told_once_to_sign_in_again() {
    let server = start();
    drop(registered(&server, "alice"));
    let nameless = "Nickname required. Use SET_NICKNAME first.";
    let refuse = |client: &mut Client| {
        client.send(post(GENERAL, b"x"));
        assert_eq!(client.expect_error(2000), nameless);
    };
    let mut believer = server.client();
    user_info(&mut believer, "alice");
    refuse(&mut believer);
    let hint = Value::Object(believer.expect_reply("AUTH_RESPONSE"));
    assert_eq!(hint, json!({ "success": false, "message": "You were disconnected. Please sign in again." }));
    refuse(&mut believer);
    assert!(heard(&mut believer).is_empty(), "once");
    assert_eq!(sign_in(&mut believer, "alice", "alice")["success"], true);
    posted(&mut believer, post(GENERAL, b"x"));

    let mut stranger = server.client();
    user_info(&mut stranger, "nobody");
    refuse(&mut stranger);
    assert!(heard(&mut stranger).is_empty(), "only for registered names");
}

// ---- Floods ---------------------------------------------------------------------------------------------------------

#[test]
fn attempts_are_throttled_per_account_and_per_address_in_their_own_replies() {
    const LATER: &str = "Too many attempts. Try again later.";
    let server = Server::start(limited().set("limits", "auth_attempts_per_minute", 4));
    let mut alice = server.client_named("alice");
    assert_eq!(
        alice.ask(RegisterUser { password_hash: secret("alice").as_bytes() }, "REGISTER_RESPONSE")["success"],
        true
    );
    let mut client = server.client();
    for nickname in ["alice", "nobody", "somebody"] {
        assert_eq!(text(&sign_in(&mut client, nickname, "wrong")), "Invalid credentials");
    }
    assert_eq!(text(&sign_in(&mut server.client(), "alice", "alice")), LATER, "the right password too, on any session");
    let answer =
        server.client_named("other").ask(RegisterUser { password_hash: secret("x").as_bytes() }, "REGISTER_RESPONSE");
    assert_eq!((&answer["success"], text(&answer)), (&json!(false), LATER));
    assert_eq!(change_password(&mut alice, "alice", "new"), refusal(LATER));
    posted(&mut alice, post(GENERAL, b"chat goes on"));
}

#[test]
fn a_login_flood_does_not_slow_chat() {
    const IN_FLIGHT: usize = 50;
    let server = start();
    let mut victim = registered(&server, "alice");
    subscribe(&mut victim, GENERAL);
    let mut flood: Vec<_> = (0..IN_FLIGHT).map(|_| server.client()).collect();
    let wrong = secret("wrong");
    let attempt = AuthRequest { nickname: b"alice", password_hash: wrong.as_bytes() };
    flood.iter_mut().for_each(|client| client.send(attempt.clone()));
    let mut round_trips: Vec<Duration> = (0..25)
        .map(|_| {
            let start = clock::instant();
            posted(&mut victim, post(GENERAL, b"x"));
            victim.expect_broadcast("NEW_MESSAGE");
            start.elapsed()
        })
        .collect();
    round_trips.sort_unstable();
    let median = round_trips[round_trips.len() / 2];
    assert!(median < Duration::from_millis(50), "{round_trips:?}");
    for client in &mut flood {
        assert_eq!(text(&client.expect_reply("AUTH_RESPONSE")), "Invalid credentials");
    }
}

#[test]
fn more_attempts_than_fit_the_queue_are_told_the_server_is_busy() {
    let server = Server::start(settings().set("server", "password_threads", 1));
    let mut flood: Vec<_> = (0..110).map(|_| server.client()).collect();
    let wrong = secret("wrong");
    let attempt = AuthRequest { nickname: b"nobody", password_hash: wrong.as_bytes() };
    flood.iter_mut().for_each(|client| client.send(attempt.clone()));
    // A hundred hashes on one thread take longer than anybody waits for an answer when the machine is busy.
    let hashed = || server.output().matches("authentication failed").count();
    assert_eq!(clock::poll(PATIENCE * 6, || (hashed() >= 100).then_some(())), Some(()), "{} hashed", hashed());
    let answers: Vec<_> =
        flood.iter_mut().map(|client| text(&client.expect_reply("AUTH_RESPONSE")).to_owned()).collect();
    let busy = answers.iter().filter(|answer| *answer == "Server is busy. Try again.").count();
    let worked = answers.iter().filter(|answer| *answer == "Invalid credentials").count();
    assert!(busy > 0 && worked >= 100, "{busy} busy, {worked} worked");
    assert_eq!(busy + worked, 110);
}
