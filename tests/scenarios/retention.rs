//! What goes with age, and what does not (BEHAVIOUR.md 8.3 point 11, 8.7).

use std::time::Duration;

use superchat::ids::MessageId;
use superchat::wire::client::{DeleteMessage, GetUserInfo};

use crate::steps::*;
use crate::support::{Server, clock};

const PATIENCE: Duration = Duration::from_secs(10);

/// Ages messages of a stopped server, given as `(id, hours)`: the first clean-up of a running one may still be under way.
fn age(server: &Server, messages: &[(MessageId, i64)]) {
    let conn = operator(server);
    for (id, hours) in messages {
        let changed = conn
            .execute("UPDATE Message SET created_at = created_at - ?2 * 3600000 WHERE id = ?1", (id.as_sql(), hours))
            .unwrap();
        assert_eq!(changed, 1);
    }
}

/// As old as they get.
fn leave_an_invitation(server: &Server) {
    let invitation = "INSERT INTO DMInvite (initiator_session_id, target_session_id, created_at) VALUES (1, 2, 1000)";
    operator(server).execute(invitation, []).unwrap();
}

fn left(server: &Server) -> Vec<String> {
    rows(server, "SELECT content FROM Message WHERE channel_id <> 3 ORDER BY id").concat()
}

#[test]
fn old_roots_go_with_all_below_them_and_young_roots_keep_old_replies() {
    let mut server = start();
    let mut alice = registered(&server, "alice");
    let old = posted(&mut alice, post(GENERAL, b"old root"));
    let below = posted(&mut alice, reply(GENERAL, old, b"young reply"));
    posted(&mut alice, reply(GENERAL, below, b"young reply of a reply"));
    let young = posted(&mut alice, post(GENERAL, b"young root"));
    let aged = posted(&mut alice, reply(GENERAL, young, b"old reply"));
    let in_chat = posted(&mut alice, post(CHAT, b"old line"));
    posted(&mut alice, post(CHAT, b"young line"));
    let kept = created(&mut alice, "forever");
    let for_ever = posted(&mut alice, post(kept, b"kept for ever"));
    alice.ask(DeleteMessage { message_id: below }, "MESSAGE_DELETED");
    operator(&server).execute_batch("UPDATE Channel SET message_retention_hours = 0 WHERE name = 'forever'").unwrap();
    server.stop();
    age(&server, &[(old, 169), (aged, 9999), (in_chat, 25), (for_ever, 99_999)]);
    server.resume();
    let cleaned = clock::poll(PATIENCE, || (left(&server).len() == 4).then_some(()));
    assert_eq!(left(&server), ["young root", "old reply", "young line", "kept for ever"]);
    assert!(cleaned.is_some());
    assert_eq!(rows(&server, "SELECT count(*) FROM MessageVersion").concat(), ["0"], "versions go with their message");
    let mut client = server.client();
    assert_eq!(contents(&mut client, roots(GENERAL)), ["young root"]);
    assert!(listed(&mut client, thread(GENERAL, old)).is_empty());
    server.await_line("Cleaned up 4 expired messages");
}

#[test]
fn an_old_thread_of_thousands_of_levels_goes_in_batches_while_posts_go_on() {
    let mut server = start();
    server.stop();
    operator(&server)
        .execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
             INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at)
             SELECT i, 2, nullif(i - 1, 0), 1, 'old', 'old', 1000 FROM n",
        )
        .unwrap();
    server.resume();
    let mut alice = server.client_named("alice");
    let cleaned = clock::poll(PATIENCE, || {
        posted(&mut alice, post(GENERAL, b"young"));
        (rows(&server, "SELECT count(*) FROM Message WHERE content = 'old'").concat() == ["0"]).then_some(())
    });
    cleaned.expect("old messages stay");
    server.await_line("Cleaned up 3000 expired messages");
}

#[test]
fn nothing_goes_where_the_operator_said_so() {
    let mut server = start();
    let old = posted(&mut server.client_named("alice"), post(GENERAL, b"old root"));
    server.stop();
    age(&server, &[(old, 9999)]);
    leave_an_invitation(&server);
    // Every round begins with the repair of such a message.
    let unrooted = "INSERT INTO Message (channel_id, author_nickname, content, created_at) VALUES (3, 'x', 'x', 1)";
    operator(&server).execute(unrooted, []).unwrap();
    server.reconfigure(settings().set("retention", "enforce", false));
    server.resume();
    let unrooted = "SELECT count(*) FROM Message WHERE thread_root_id IS NULL";
    clock::poll(PATIENCE, || (rows(&server, unrooted).concat() == ["0"]).then_some(())).expect("no round began");
    let mut client = server.client_named("afterwards");
    for _ in 0..50 {
        posted(&mut client, post(TECH, b"x"));
    }
    assert_eq!(left(&server), ["old root"]);
    assert_eq!(rows(&server, "SELECT count(*) FROM DMInvite").concat(), ["1"]);
}

#[test]
fn a_file_of_another_server_keeps_everything_until_the_operator_agrees() {
    let mut server = start();
    let mut alice = server.client_named("alice");
    let old = posted(&mut alice, post(GENERAL, b"old root"));
    posted(&mut alice, reply(GENERAL, old, b"reply"));
    drop(alice);
    server.stop();
    age(&server, &[(old, 9999)]);
    forget_who_made_it(&server);

    leave_an_invitation(&server);
    // The announcement is the last thing that a first round does.
    let kept = "rows have outlived their time, but nothing is removed; set [retention] enforce to true to have it done";
    server.resume();
    server.await_line(&format!("{kept} messages=2 read_marks=0 invitations=1 servers=0"));
    server.stop();
    server.reconfigure(settings().set("retention", "enforce", true));
    server.resume();
    server.await_line("old rows will be removed messages=2 read_marks=0 invitations=1 servers=0 minutes=60");
    assert_eq!(left(&server), ["old root", "reply"], "one interval is left to think again");
    assert_eq!(rows(&server, "SELECT count(*) FROM DMInvite").concat(), ["1"]);
}

/// Takes out of the file all that the existing server would not have put there.
fn forget_who_made_it(server: &Server) {
    let conn = operator(server);
    let ours =
        rows(server, "SELECT type || ' ' || name FROM sqlite_master WHERE name LIKE 'scd!_%' ESCAPE '!' ORDER BY type");
    assert!(!ours.is_empty());
    ours.concat().iter().for_each(|object| conn.execute_batch(&format!("DROP {object}")).unwrap());
}

#[test]
fn dead_invites_servers_and_read_marks_go_and_bans_stay() {
    let mut server = start();
    drop(registered(&server, "alice"));
    drop(registered(&server, "bob"));
    server.stop();
    operator(&server)
        .execute_batch(
            "INSERT INTO UserChannelState (user_id, channel_id, last_read_at, updated_at) VALUES
                 (1, 1, 1, unixepoch() - 91 * 86400), (1, 2, 1, unixepoch() - 89 * 86400);
             INSERT INTO DMInvite (id, initiator_user_id, target_user_id, created_at) VALUES
                 (8, 1, 2, (unixepoch() - 31 * 86400) * 1000), (9, 2, 1, (unixepoch() - 29 * 86400) * 1000);
             INSERT INTO DiscoveredServer (hostname, port, name, description, last_heartbeat, discovered_via, created_at)
             VALUES
                 ('dead', 1, '', '', (unixepoch() - 8 * 86400) * 1000, 'gossip', 1),
                 ('alive', 1, '', '', (unixepoch() - 6 * 86400) * 1000, 'gossip', 1);
             INSERT INTO Ban (ban_type, nickname, reason, banned_at, banned_until, banned_by)
                 VALUES ('user', 'x', '', 1, 2, 'b')",
        )
        .unwrap();
    server.resume();
    let tables = [
        ("SELECT channel_id FROM UserChannelState", "2"),
        ("SELECT id FROM DMInvite", "9"),
        ("SELECT hostname FROM DiscoveredServer", "alive"),
        ("SELECT nickname FROM Ban", "x"),
    ];
    for (sql, kept) in tables {
        let cleaned = clock::poll(PATIENCE, || (rows(&server, sql).concat() == [kept]).then_some(()));
        assert!(cleaned.is_some(), "{sql}: {:?}", rows(&server, sql));
    }
    let info = server.client().ask(GetUserInfo { nickname: b"alice" }, "USER_INFO");
    assert_eq!(info["is_registered"], true, "accounts do not age");
}
