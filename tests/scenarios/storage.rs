//! When the file cannot be written or read, and what operators do to it beside the server (BEHAVIOUR.md 8, 11.3, 11.4).

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::ClientMessage;
use superchat::wire::client::{
    AuthRequest, ChangePassword, CreateSubchannel, DeleteMessage, EditMessage, GetUserInfo, JoinChannel, LeaveChannel,
    ListChannels, ListMessages, RegisterUser, SetNickname, UpdateReadState,
};
use superchat::wire::codec::{Bounded, Tail};

use crate::steps::*;
use crate::support::{Client, Server, Settings, clock};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server whose health can be asked.
struct Watched {
    server: Server,
    health: SocketAddr,
}

impl Watched {
    fn start() -> Self {
        let (settings, health) = watched();
        Self { server: Server::start(settings), health }
    }

    /// Status code and the two words of the body that scripts look at.
    fn health(&self) -> (u16, Value, Value) {
        let (code, body) = get(self.health, "/health");
        let body: Value = serde_json::from_str(&body).unwrap();
        (code, body["status"].clone(), body["database"].clone())
    }

    fn is_healthy(&self) -> bool {
        self.health() == (200, json!("ok"), json!("ok"))
    }

    fn check_degraded(&self) {
        assert_eq!(self.health(), (503, json!("degraded"), json!("error")));
        assert_eq!(get(self.health, "/readyz").0, 503);
        assert_eq!(get(self.health, "/livez").0, 200, "a restart would cure nothing");
    }

    /// A probe's result serves for a second.
    fn await_health(&self) {
        clock::poll(PATIENCE, || self.is_healthy().then_some(())).expect("the server stays degraded");
    }
}

fn watched() -> (Settings, SocketAddr) {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    (settings().set("admin", "metrics_listen", free.to_string()), free)
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

/// Posts, and waits for whatever comes of it: the id, or the ERROR's code and text.
fn try_post(client: &mut Client, content: &[u8]) -> Result<MessageId, (u64, String)> {
    client.send(post(GENERAL, content));
    let [answer] = &heard(client)[..] else { panic!("one answer") };
    match answer.name.as_str() {
        "MESSAGE_POSTED" => Ok(MessageId(number(&answer.fields["message_id"]))),
        "ERROR" => {
            Err((answer.fields["error_code"].as_u64().unwrap(), answer.fields["message"].as_str().unwrap().to_owned()))
        }
        other => panic!("{other}"),
    }
}

/// What is answered without the file, and what is answered from it.
fn check_readable(client: &mut Client, messages: usize) {
    let channels = client.ask(ListChannels { from_channel_id: ChannelId(0), limit: 5 }, "CHANNEL_LIST");
    assert_eq!(items(&channels, "channels").len(), 5);
    assert_eq!(listed(client, roots(GENERAL)).len(), messages);
    assert_eq!(client.ask(GetUserInfo { nickname: b"alice" }, "USER_INFO")["is_registered"], true);
}

// ---- Locked ---------------------------------------------------------------------------------------------------------

#[test]
fn every_write_to_a_locked_file_is_refused_in_its_own_words_and_succeeds_later() {
    let watched = Watched::start();
    let server = &watched.server;
    let names = ["alice", "bobby", "carol", "david", "edgar", "felix"];
    let [mut alice, mut bobby, mut carol, mut david, mut edgar, mut felix] = names.map(|name| registered(server, name));
    let mut visitor = server.client_named("visitor");
    let mut session = server.client();
    let parent = created(&mut edgar, "parent");
    let (first, second) = (posted(&mut alice, post(GENERAL, b"first")), posted(&mut bobby, post(GENERAL, b"second")));

    let lock = operator(server);
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let (old, new, edgars) = (secret("carol"), secret("new"), secret("edgar"));
    let subchannel =
        CreateSubchannel { channel_id: parent, name: b"child", description: b"", channel_type: 1, retention_hours: 1 };
    let mut cases: [(&mut Client, ClientMessage<'_>, u16, &str); 8] = [
        (&mut alice, edit(first), 9001, "Failed to edit message"),
        (&mut bobby, DeleteMessage { message_id: second }.into(), 9001, "Failed to delete message"),
        (
            &mut carol,
            ChangePassword { old_password_hash: old.as_bytes(), new_password_hash: new.as_bytes() }.into(),
            9001,
            "Failed to update password",
        ),
        (&mut david, SetNickname { nickname: Bounded(b"dave") }.into(), 9000, "Failed to update nickname"),
        (&mut edgar, subchannel.into(), 9001, "Database error"),
        (
            &mut felix,
            UpdateReadState { channel_id: GENERAL, subchannel_id: None, timestamp: clock::now_ms() }.into(),
            9001,
            "Failed to update read state",
        ),
        (&mut visitor, RegisterUser { password_hash: new.as_bytes() }.into(), 9001, "Database error"),
        (
            &mut session,
            AuthRequest { nickname: b"edgar", password_hash: edgars.as_bytes() }.into(),
            9001,
            "Database error",
        ),
    ];
    // All of them wait for the lock together, behind one post.
    let mut author = server.client_named("author");
    author.send(post(GENERAL, b"refused"));
    for (client, request, ..) in &mut cases {
        client.send(request.clone());
    }
    check_readable(&mut server.client(), 2);
    assert_eq!(author.expect_error(9001), "Database error");
    for (client, request, code, text) in &mut cases {
        assert_eq!(client.expect_error(*code), *text, "{request:?}");
    }
    watched.check_degraded();
    lock.execute_batch("ROLLBACK").unwrap();

    watched.await_health();
    for (client, request, ..) in &mut cases {
        client.send(request.clone());
        let answer = heard(client);
        assert!(
            answer.iter().all(|frame| frame.name != "ERROR" && frame.fields.get("success") != Some(&json!(false))),
            "{answer:?}"
        );
    }
    let stored = rows(server, "SELECT content FROM Message ORDER BY id").concat();
    assert_eq!(stored, ["edited", "[deleted by ~bobby]"]);
    assert_eq!(
        rows(server, "SELECT nickname FROM User ORDER BY id").concat()[3..],
        ["dave", "edgar", "felix", "visitor"]
    );
    assert_eq!(rows(server, "SELECT count(*) FROM UserChannelState").concat(), ["1"]);
}

fn edit(message_id: MessageId) -> ClientMessage<'static> {
    EditMessage { message_id, new_content: Bounded(b"edited") }.into()
}

#[test]
fn a_short_lock_only_delays() {
    let server = start();
    let mut alice = server.client_named("alice");
    let lock = operator(&server);
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    alice.send(post(GENERAL, b"patient"));
    assert!(listed(&mut server.client(), roots(GENERAL)).is_empty());
    lock.execute_batch("ROLLBACK").unwrap();
    alice.expect_reply("MESSAGE_POSTED");
    assert_eq!(rows(&server, "SELECT content FROM Message").concat(), ["patient"]);
}

// ---- Full -----------------------------------------------------------------------------------------------------------

/// A file system of its own below a directory, gone with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(path).output().unwrap();
        let complaint = String::from_utf8_lossy(&mounted.stderr).into_owned();
        assert!(mounted.status.success(), "this test needs the right to mount a small tmpfs: {complaint}");
        Self(path.to_owned())
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.0.join("filler")).unwrap();
        loop {
            match filler.write(&[b'x'; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whatever still holds it open loses it when it ends.
        let _gone = Command::new("umount").arg("-l").arg(&self.0).status();
        let _gone = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_disk_stops_writing_alone_and_loses_nothing_acknowledged() {
    let mut watched = Watched::start();
    watched.server.stop();
    // The server is dropped before the disk it works on.
    let disk = SmallDisk::mount(watched.server.home());
    watched.server.resume();
    let mut alice = registered(&watched.server, "alice");
    let mut acknowledged: Vec<_> = (0..10).map(|_| try_post(&mut alice, b"before").unwrap()).collect();
    assert!(watched.is_healthy());

    disk.fill();
    let text = [b'x'; 4096];
    let refusal = (0..100).find_map(|_| try_post(&mut alice, &text).map(|id| acknowledged.push(id)).err());
    assert_eq!(refusal, Some((9001, "Database error".to_owned())));
    for _ in 0..5 {
        assert_eq!(try_post(&mut alice, &text), Err((9001, "Database error".to_owned())));
    }
    check_readable(&mut watched.server.client(), acknowledged.len());
    clock::poll(PATIENCE, || (!watched.is_healthy()).then_some(())).expect("health hides it");
    watched.check_degraded();

    disk.free();
    acknowledged.push(try_post(&mut alice, b"after").unwrap());
    watched.await_health();
    watched.server.kill9();
    watched.server.resume();
    let stored = rows(&watched.server, "SELECT id FROM Message ORDER BY id").concat();
    assert_eq!(stored, acknowledged.iter().map(ToString::to_string).collect::<Vec<_>>());
    check_readable(&mut watched.server.client(), acknowledged.len());
    watched.server.kill9();
    drop(watched);
    drop(disk);
}

// ---- Damaged --------------------------------------------------------------------------------------------------------

#[test]
fn a_damaged_file_is_answered_with_errors_and_the_server_stays_up() {
    let watched = Watched::start();
    let server = &watched.server;
    let mut alice = registered(server, "alice");
    posted(&mut alice, post(GENERAL, b"kept"));
    let checkpoint = operator(server);
    let cut: i64 = checkpoint.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(cut, 0);
    drop(checkpoint);
    let good = fs::read(server.database()).unwrap();
    overwrite(&server.database(), &vec![0xAA; good.len()]);

    let damaged = (9001, "Database error");
    check_refused(
        &mut alice,
        [
            (roots(GENERAL).into(), damaged.0, damaged.1),
            (GetUserInfo { nickname: b"alice" }.into(), damaged.0, damaged.1),
            (post(GENERAL, b"x").into(), damaged.0, damaged.1),
        ],
    );
    alice.ask(ListChannels { from_channel_id: ChannelId(0), limit: 0 }, "CHANNEL_LIST");
    join(&mut alice, GENERAL);
    watched.check_degraded();

    overwrite(&server.database(), &good);
    watched.await_health();
    check_readable(&mut server.client(), 1);
    try_post(&mut alice, b"again").unwrap();
}

/// In place, as a failing disk would.
fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
}

// ---- Operators beside the server ------------------------------------------------------------------------------------

#[test]
fn a_channel_inserted_by_hand_appears_to_everybody_without_a_restart() {
    let server = start();
    let mut clients = [server.client(), server.client_named("alice")];
    operator(&server)
        .execute_batch(
            "INSERT INTO Channel (name, display_name, description, channel_type, message_retention_hours, created_at)
             VALUES ('byhand', 'By hand', 'Made with sqlite3', 0, 24, strftime('%s', 'now'))",
        )
        .unwrap();
    let expected = json!({ "success": true, "channel_id": "6", "name": "byhand", "description": "Made with sqlite3",
        "channel_type": 0, "retention_hours": 24, "message": "New channel 'By hand' created" });
    for client in &mut clients {
        assert_eq!(Value::Object(client.expect_broadcast("CHANNEL_CREATED")), expected);
    }
    let made = ChannelId(6);
    join(&mut clients[0], made);
    subscribe(&mut clients[0], made);
    posted(&mut clients[1], post(made, b"x"));
    assert_eq!(clients[0].expect_broadcast("NEW_MESSAGE")["channel_id"], "6");
}

#[test]
fn a_channel_changed_or_deleted_by_hand_is_so_for_clients_too() {
    let server = start();
    let mut alice = server.client_named("alice");
    join(&mut alice, TECH);
    subscribe(&mut alice, TECH);
    let names = |client: &mut Client| -> Vec<Value> {
        let list = client.ask(ListChannels { from_channel_id: GENERAL, limit: 0 }, "CHANNEL_LIST");
        items(&list, "channels").into_iter().map(|channel| channel["name"].clone()).collect()
    };
    let await_names = |client: &mut Client, sql: &str, expected: &[&str]| {
        operator(&server).execute_batch(sql).unwrap();
        clock::poll(PATIENCE, || (names(client) == expected).then_some(()))
            .unwrap_or_else(|| panic!("{sql} went unnoticed"));
    };
    await_names(&mut alice, "UPDATE Channel SET name = 'science' WHERE id = 3", &["science", "random", "feedback"]);
    await_names(&mut alice, "PRAGMA foreign_keys = ON; DELETE FROM Channel WHERE id = 3", &["random", "feedback"]);
    let gone = JoinChannel { channel_id: TECH, subchannel_id: None };
    check_failed(&mut alice, "JOIN_RESPONSE", [(gone.into(), "Channel not found")]);
    check_refused(&mut alice, [(post(TECH, b"x").into(), 4001, "Channel not found")]);
    let leave = alice
        .ask(LeaveChannel { channel_id: ChannelId(0), subchannel_id: None, permanent: Tail(None) }, "LEAVE_RESPONSE");
    assert_eq!(leave["message"], "Not currently joined to any channel", "nobody is in a place that is gone");
}

#[test]
fn the_operators_tools_work_beside_the_server() {
    let server = start();
    let mut alice = server.client_named("alice");
    posted(&mut alice, post(GENERAL, b"one"));
    let copy = server.home().join("copy.db");
    let conn = operator(&server);
    let word = |sql: &str| -> String {
        conn.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0))
            .map(|value| format!("{value:?}"))
            .unwrap()
    };
    assert_eq!(word("SELECT count(*) FROM Channel"), "Integer(5)");
    assert_eq!(word("PRAGMA integrity_check"), r#"Text("ok")"#);
    assert_eq!(word("PRAGMA journal_mode"), r#"Text("wal")"#);
    assert_eq!(word("PRAGMA wal_checkpoint(FULL)"), "Integer(0)");
    conn.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    conn.execute_batch("VACUUM").unwrap();
    posted(&mut alice, post(GENERAL, b"two"));
    assert_eq!(contents(&mut alice, roots(GENERAL)), ["two", "one"]);
    let in_copy: i64 = rusqlite::Connection::open(copy)
        .unwrap()
        .query_row("SELECT count(*) FROM Message", [], |row| row.get(0))
        .unwrap();
    assert_eq!(in_copy, 1);
    assert_eq!(word("PRAGMA integrity_check"), r#"Text("ok")"#);
}

#[test]
fn messages_inserted_by_hand_are_listed_and_later_ids_rise_above_them() {
    let server = start();
    let mut alice = server.client_named("alice");
    let far: u64 = 1 << 61;
    operator(&server)
        .execute(
            "INSERT INTO Message (id, channel_id, thread_root_id, author_nickname, content, created_at)
             VALUES (?1, 2, ?1, 'op', 'by hand', unixepoch() * 1000)",
            [i64::try_from(far).unwrap()],
        )
        .unwrap();
    let risen = clock::poll(PATIENCE, || (posted(&mut alice, post(GENERAL, b"x")).0 > far).then_some(()));
    assert!(risen.is_some());
    assert_eq!(contents(&mut alice, roots(GENERAL))[..2], ["x", "by hand"]);
}

#[test]
fn everything_acknowledged_survives_a_kill() {
    let mut server = start();
    let mut alice = registered(&server, "alice");
    let forum = created(&mut alice, "rust");
    let root = posted(&mut alice, post(forum, b"root"));
    let below = posted(&mut alice, reply(forum, root, b"reply"));
    alice.ask(edit(root), "MESSAGE_EDITED");
    alice.ask(DeleteMessage { message_id: below }, "MESSAGE_DELETED");
    server.kill9();
    server.resume();
    let mut again = server.client();
    assert_eq!(sign_in(&mut again, "alice", "alice")["success"], true);
    assert_eq!(contents(&mut again, roots(forum)), ["edited"]);
    assert!(listed(&mut again, thread(forum, root)).is_empty());
    assert!(posted(&mut again, reply(forum, below, b"next")) > below, "ids go on rising");
    assert_eq!(contents(&mut again, thread(forum, root)), ["[deleted by ~alice]", "next"]);
}

/// No client could send them, but an operator's program can store them: they are cut, and a page ends before them.
#[test]
fn messages_longer_than_any_client_sends_leave_a_channel_readable() {
    let server = start();
    let mut alice = server.client_named("alice");
    let first = posted(&mut alice, post(GENERAL, b"first"));
    operator(&server)
        .execute_batch(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)
             INSERT INTO Message (id, channel_id, thread_root_id, author_nickname, content, created_at)
             SELECT {first} + i, 2, {first} + i, printf('%.*c', 70000, 'n'), printf('%.*c', 65530 + i, 'x'), unixepoch() * 1000 FROM n;
             INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at)
                 VALUES ({first} + 99, 2, {first}, {first}, 'long', printf('%.*c', 3000000, 'y'), unixepoch() * 1000)",
            first = first.0
        ))
        .unwrap();
    let mut seen = Vec::new();
    let mut before_id = None;
    loop {
        let page = listed(&mut alice, ListMessages { limit: 200, before_id, ..roots(GENERAL) });
        let Some(oldest) = page.last() else { break };
        before_id = Some(MessageId(number(&oldest["message_id"])));
        let length = |message: &Value| message["content"].as_str().unwrap().len();
        seen.extend(page.iter().map(|message| (number(&message["message_id"]) - first.0, length(message))));
    }
    let expected = (1..=40).rev().map(|i| (i, usize::try_from(65_530 + i).unwrap().min(65_535))).chain([(0, 5)]);
    assert_eq!(seen, expected.collect::<Vec<_>>());
    let replies = listed(&mut alice, thread(GENERAL, first));
    assert_eq!(replies[0]["content"].as_str().unwrap().len(), 65_535);
    alice.quiet();
}
