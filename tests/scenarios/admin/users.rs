//! BAN_USER and UNBAN_USER.

use superchat::wire::client::{SetNickname, UnbanUser};
use superchat::wire::codec::Bounded;

use super::*;

fn take(nickname: &str) -> SetNickname<'_> {
    SetNickname { nickname: Bounded(nickname.as_bytes()) }
}

/// The last words of a session that is sent away.
fn goodbye(client: &mut Client) -> String {
    let frames = client.expect_close();
    let last = frames.last().unwrap_or_else(|| panic!("closed without a word"));
    assert_eq!(last.name, "DISCONNECT", "{frames:?}");
    last.fields["reason"].as_str().unwrap().to_owned()
}

#[test]
fn refusals_of_ban_user() {
    let server = governed();
    let mut boss = boss(&server);
    let nobody = BanUser { nickname: None, ..ban("") };
    let long: &'static str = "n".repeat(65).leak();
    let reason: &'static [u8] = vec![b'r'; 501].leak();
    check_failed(
        &mut boss,
        "USER_BANNED",
        [
            (nobody.into(), "Must provide either UserID or Nickname"),
            (ban("").into(), "Must provide either UserID or Nickname"),
            (ban_id(99).into(), "Failed to create ban"),
            (ban(long).into(), "Nickname is too long"),
            (BanUser { reason, ..ban("ann") }.into(), "Reason must be at most 500 characters"),
        ],
    );
    check_failed(
        &mut boss,
        "USER_UNBANNED",
        [
            (UnbanUser { user_id: None, nickname: None }.into(), "Must provide either UserID or Nickname"),
            (unban("ann").into(), "No active ban found for this user"),
            (UnbanUser { user_id: Some(UserId(99)), nickname: None }.into(), "No active ban found for this user"),
        ],
    );
    assert_eq!(rows(&server, "SELECT 1 FROM Ban"), [[""; 0]; 0]);
    assert_eq!(audit(&server), [[""; 0]; 0]);
}

#[test]
fn a_banned_account_loses_its_sessions_and_cannot_come_back_until_it_is_unbanned() {
    let server = governed();
    let mut boss = boss(&server);
    let mut sessions = [registered(&server, "troll"), server.client()];
    assert_eq!(sign_in(&mut sessions[1], "troll", "troll")["success"], true);
    let mut bystander = server.client_named("ann");
    // Who comes and goes within one tick is not told of.
    for _ in 0..2 {
        let here = |fields: &crate::support::link::Fields| fields["nickname"] == "troll" && fields["user_id"] == "2";
        bystander.expect_matching("SERVER_PRESENCE", here);
    }
    let id = banned(&mut boss, ban("troll"), "USER_BANNED", "User troll banned successfully");
    for session in &mut sessions {
        assert_eq!(goodbye(session), PERMANENT);
    }
    for _ in 0..2 {
        let gone = |fields: &crate::support::link::Fields| fields["nickname"] == "troll" && fields["online"] == false;
        bystander.expect_matching("SERVER_PRESENCE", gone);
    }
    let mut again = server.client();
    check_failed(&mut again, "NICKNAME_RESPONSE", [(take("troll").into(), PERMANENT)]);
    assert_eq!(sign_in(&mut again, "troll", "wrong")["message"], "Invalid credentials");
    let answer = sign_in(&mut again, "troll", "troll");
    assert_eq!((&answer["success"], &answer["message"]), (&false.into(), &PERMANENT.into()));

    let lifted = boss.ask(unban("troll"), "USER_UNBANNED");
    assert_eq!(lifted["message"], "User troll unbanned successfully (1 bans removed)");
    assert_eq!(sign_in(&mut again, "troll", "troll")["success"], true);
    let entry = |action: &str, details: String| {
        ["boss", action, "user", "NULL", "troll", &details, "127.0.0.1"].map(str::to_owned).to_vec()
    };
    let details = format!("ban_id={id} shadowban=false duration_seconds=permanent reason=spam", id = id.0);
    let mut given = entry("ban_user", details);
    given[3] = "2".to_owned();
    assert_eq!(audit(&server), [given, entry("unban_user", "removed=1".to_owned())]);
    let log = server.output();
    for line in [
        "Admin boss banned user troll (ban_id=1, reason=spam, shadowban=false)",
        "Admin boss unbanned user troll (1 bans removed)",
        "rejected login for banned user troll (id=2)",
    ] {
        assert!(log.contains(line), "{line} is not in the log");
    }
}

#[test]
fn a_ban_by_id_follows_the_account_to_another_name() {
    let server = governed();
    let mut boss = boss(&server);
    let mut troll = registered(&server, "troll");
    assert_eq!(troll.ask(take("goblin"), "NICKNAME_RESPONSE")["success"], true);
    banned(&mut boss, ban_id(2), "USER_BANNED", "User user_id:2 banned successfully");
    assert_eq!(goodbye(&mut troll), PERMANENT);
    let mut again = server.client();
    // The former name still signs in (D-08), and is the account's too.
    assert_eq!(sign_in(&mut again, "troll", "troll")["message"], PERMANENT);
    let by_name = boss.ask(unban("goblin"), "USER_UNBANNED");
    assert_eq!(by_name["message"], "User goblin unbanned successfully (1 bans removed)");
    assert_eq!(sign_in(&mut again, "troll", "troll")["success"], true);
}

#[test]
fn a_banned_nickname_is_taken_from_visitors() {
    let server = governed();
    let mut boss = boss(&server);
    let mut visitor = server.client_named("spammer");
    let mut other = server.client_named("Spammer");
    banned(&mut boss, ban("spammer"), "USER_BANNED", "User spammer banned successfully");
    assert_eq!(goodbye(&mut visitor), PERMANENT);
    check_failed(&mut other, "NICKNAME_RESPONSE", [(take("spammer").into(), PERMANENT)]);
    let mut ann = registered(&server, "ann");
    check_failed(&mut ann, "NICKNAME_RESPONSE", [(take("spammer").into(), PERMANENT)]);
    assert!(other.quiet().iter().all(|frame| frame.name == "SERVER_PRESENCE"), "another case is another name");
}

#[test]
fn a_former_name_that_is_banned_is_not_the_account_that_has_another_now() {
    let server = governed();
    let mut boss = boss(&server);
    let mut ann = registered(&server, "ann");
    assert_eq!(ann.ask(take("anna"), "NICKNAME_RESPONSE")["success"], true);
    let mut spammer = server.client_named("ann");
    banned(&mut boss, ban("ann"), "USER_BANNED", "User ann banned successfully");
    assert_eq!(goodbye(&mut spammer), PERMANENT);
    assert_eq!(rows(&server, "SELECT user_id, nickname FROM Ban"), [["NULL", "ann"]]);
    posted(&mut ann, post(GENERAL, b"still here"));
    // Until it has a password of its present name, it signs in under the former one.
    assert_eq!(sign_in(&mut server.client(), "ann", "ann")["nickname"], "anna");
    banned(&mut boss, shadow("anna"), "USER_BANNED", "User anna banned successfully");
    let lifted = boss.ask(unban("ann"), "USER_UNBANNED");
    assert_eq!(lifted["message"], "User ann unbanned successfully (1 bans removed)");
}

#[test]
fn a_ban_ends_by_the_clock_and_says_when() {
    let server = governed();
    let mut boss = boss(&server);
    let mut troll = registered(&server, "troll");
    let hour = BanUser { duration_seconds: Some(3600), ..ban("troll") };
    banned(&mut boss, hour, "USER_BANNED", "User troll banned successfully");
    let told = goodbye(&mut troll);
    let listed = bans(&mut boss, false);
    let (from, to) = (number(&listed[0]["banned_at"]), number(&listed[0]["banned_until"]));
    assert_eq!(to - from, 3_600_000);
    let end = superchat::clock::rfc3339(i64::try_from(to).unwrap());
    assert_eq!(told, format!("Account banned until {end}. Reason: spam"));
    // As if that hour had passed.
    operator(&server).execute("UPDATE Ban SET banned_until = 1", []).unwrap();
    let mut again = server.client();
    assert_eq!(sign_in(&mut again, "troll", "troll")["success"], true);
    assert!(bans(&mut boss, false).is_empty());
    assert_eq!(bans(&mut boss, true).len(), 1);
    check_failed(&mut boss, "USER_UNBANNED", [(unban("troll").into(), "No active ban found for this user")]);
    let eternal = BanUser { duration_seconds: Some(u64::MAX), ..ban("troll") };
    banned(&mut boss, eternal, "USER_BANNED", "User troll banned successfully");
    assert_eq!(goodbye(&mut again), "Account banned until 9999-12-30T22:00:00Z. Reason: spam");
}

#[test]
fn of_several_bans_one_that_refuses_counts_before_one_that_hides() {
    let server = governed();
    let mut boss = boss(&server);
    let mut troll = registered(&server, "troll");
    banned(&mut boss, shadow("troll"), "USER_BANNED", "User troll banned successfully");
    assert!(!troll.quiet().iter().any(|frame| frame.name == "DISCONNECT"), "who is hidden notices nothing");
    banned(&mut boss, ban("troll"), "USER_BANNED", "User troll banned successfully");
    assert_eq!(goodbye(&mut troll), PERMANENT);
    let lifted = boss.ask(UnbanUser { user_id: Some(UserId(2)), nickname: None }, "USER_UNBANNED");
    assert_eq!(lifted["message"], "User user_id:2 unbanned successfully (2 bans removed)");
}

#[test]
fn control_characters_of_a_reason_do_not_reach_a_terminal() {
    let server = governed();
    let mut boss = boss(&server);
    let mut visitor = server.client_named("spammer");
    let request = BanUser { reason: b"\x1b[2Jgone", ..ban("spammer") };
    banned(&mut boss, request, "USER_BANNED", "User spammer banned successfully");
    assert_eq!(goodbye(&mut visitor), "Account banned permanently. Reason: [2Jgone");
}

#[test]
fn bans_survive_the_server_and_those_of_other_programs_count_at_once() {
    let mut server = governed();
    let mut first = boss(&server);
    banned(&mut first, ban("spammer"), "USER_BANNED", "User spammer banned successfully");
    server.kill9();
    server.resume();
    let mut visitor = server.client();
    check_failed(&mut visitor, "NICKNAME_RESPONSE", [(take("spammer").into(), PERMANENT)]);
    let mut goblin = server.client_named("goblin");
    operator(&server)
        .execute(
            "INSERT INTO Ban (ban_type, nickname, reason, banned_at, banned_by) VALUES ('user', 'goblin', 'sql', 1, 'me')",
            [],
        )
        .unwrap();
    assert_eq!(goodbye(&mut goblin), "Account banned permanently. Reason: sql");
}
