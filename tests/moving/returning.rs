//! A day of use by ours, and back: the file satisfies every rule that lets the existing server open it again, takes that
//! server's own statements, and comes back to ours whole.

mod day;
mod rules;
mod theirs;

use rusqlite::Connection;
use superchat::ids::ChannelId;
use superchat::wire::client::{GetUserInfo, ListChannels, SetNickname};
use superchat::wire::codec::Bounded;

use self::day::{HANNAS_NEW_SECRET, NEWCOMERS_SECRET};
use crate::steps::*;
use crate::support::Server;
use crate::support::content::{query, twin};
use crate::support::old_file::{self, ACCOUNTS};
use crate::{scd, sign_in_with, text};

/// By way of each version: the deployed one, one before accounts had direct messages, and the newest.
#[test]
fn there_and_back_by_version_2() {
    check_there_and_back(2);
}

#[test]
fn there_and_back_by_version_11() {
    check_there_and_back(11);
}

#[test]
fn there_and_back_by_version_13() {
    check_there_and_back(13);
}

#[test]
fn there_and_back_by_version_16() {
    check_there_and_back(16);
}

fn check_there_and_back(version: u32) {
    let mut old = None;
    let mut server = Server::start_on(settings().admins(&["marta"]), |database| {
        old_file::make(database, version);
        old_file::leave_a_log(database);
        old = Some(twin(database));
    });
    let (old, _twin) = old.unwrap();
    let used = day::spend(&server, version);
    assert_eq!(server.stop(), Some(0));

    rules::check(&server, &old, version, &used);

    let conn = Connection::open(server.database()).unwrap();
    theirs::work(&conn, &used, version);
    conn.close().unwrap();

    server.resume();
    check_home_again(&mut server);
}

/// After the other server had the file again: nothing of ours is stale, what it did shows, what we kept is kept.
fn check_home_again(server: &mut Server) {
    let mut client = server.client();
    let answer = sign_in_with(&mut client, "hanna", HANNAS_NEW_SECRET);
    assert_eq!(answer["success"], true, "{answer:?}");
    assert_eq!(sign_in_with(&mut server.client(), "marta", ACCOUNTS[0].secret)["success"], true);
    // Renamed here and deleted there, so its former name is free; the other one's has been taken by somebody else.
    for (nickname, is_registered) in [("newcomer", false), ("renamed", false), ("other", true), ("another", true)] {
        let info = client.ask(GetUserInfo { nickname: nickname.as_bytes() }, "USER_INFO");
        assert_eq!(info["is_registered"], is_registered, "{nickname}");
    }
    // Whose former name this was lost it; who has it now is called by it, and may be called otherwise.
    let mut other = server.client();
    assert_eq!(sign_in_with(&mut other, "other", NEWCOMERS_SECRET)["success"], false);
    assert_eq!(sign_in_with(&mut other, "other", HANNAS_NEW_SECRET)["success"], true);
    let renamed = other.ask(SetNickname { nickname: Bounded(b"third") }, "NICKNAME_RESPONSE");
    assert_eq!(renamed["success"], true, "{renamed:?}");
    assert_eq!(sign_in_with(&mut server.client(), "another", NEWCOMERS_SECRET)["success"], true);

    let listed_roots = column(&mut client, roots(ChannelId(2)), "message_id");
    let stored = rows(
        server,
        "SELECT CAST(id AS TEXT) FROM Message AS m
         WHERE channel_id = 2 AND parent_id IS NULL AND (deleted_at IS NULL
             OR EXISTS (SELECT 1 FROM Message AS r WHERE r.thread_root_id = m.id AND r.id <> m.id AND r.deleted_at IS NULL))
         ORDER BY id DESC",
    );
    assert_eq!(listed_roots, stored.concat());
    let channels = client.ask(ListChannels { from_channel_id: ChannelId(0), limit: 0 }, "CHANNEL_LIST");
    let names: Vec<_> = items(&channels, "channels").into_iter().map(|channel| channel["name"].clone()).collect();
    assert!(names.contains(&"made-there".into()) && !names.contains(&"doomed".into()), "{names:?}");
    let mut marta = server.client();
    sign_in_with(&mut marta, "marta", ACCOUNTS[0].secret);
    let by_them = posted(&mut marta, post(ChannelId(2), b"home again"));
    posted(&mut marta, reply(ChannelId(2), by_them, b"and a reply"));
    assert_eq!(server.stop(), Some(0));

    let conn = Connection::open(server.database()).unwrap();
    rules::check_messages(&conn, 16);
    for own in ["scd_login_alias", "scd_dm_invite", "scd_dm_former", "scd_shadowed", "scd_admin_grant"] {
        assert_eq!(
            query::<String>(&conn, &format!("SELECT \"table\" FROM pragma_foreign_key_check('{own}')")),
            [""; 0]
        );
    }
    conn.close().unwrap();
    let output = scd(server.home(), &["check", "--db", text(&server.database())]);
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{lines}");
    for line in ["ok    integrity: every page and index", "ok    schema version 16: up to date"] {
        assert!(lines.contains(line), "{lines}");
    }
}
