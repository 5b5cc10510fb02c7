//! `scd admin`: the operator at the shell and the running server, by the real binary.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use superchat::wire::client::{AuthRequest, ListUsers, RegisterUser, SetNickname};
use superchat::wire::codec::{Bounded, Tail};
use support::{Client, Server, Settings};

fn start(settings: Settings) -> Server {
    Server::start(settings.set("server", "shards", 2))
}

fn governed() -> Server {
    start(Settings::new().admins(&["boss"]))
}

fn socket(server: &Server) -> PathBuf {
    server.home().join("superchat.db.sock")
}

struct Answer {
    code: Option<i32>,
    out: String,
    error: String,
}

fn run(server: &Server, arguments: &[&str], input: &str) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
    command.env_clear().env("HOME", server.home()).arg("admin").args(arguments).arg("--db").arg(server.database());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that reads nothing is gone already.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Answer { code: output.status.code(), out: text(output.stdout), error: text(output.stderr) }
}

/// What it says when it works.
fn admin(server: &Server, arguments: &[&str]) -> String {
    let answer = run(server, arguments, "");
    assert_eq!(answer.code, Some(0), "{arguments:?}: {}", answer.error);
    answer.out
}

/// The same as JSON.
fn json(server: &Server, arguments: &[&str]) -> Value {
    serde_json::from_str(&admin(server, &[arguments, &["--json"]].concat())).unwrap()
}

fn refused(server: &Server, arguments: &[&str]) -> String {
    let answer = run(server, arguments, "");
    assert_eq!((answer.code, answer.out.as_str()), (Some(1), ""), "{arguments:?}");
    answer.error
}

fn secret(password: &str) -> String {
    format!("{password:_<43}")
}

fn registered(server: &Server, nickname: &str) -> Client {
    let mut client = server.client_named(nickname);
    let answer = client.ask(RegisterUser { password_hash: secret(nickname).as_bytes() }, "REGISTER_RESPONSE");
    assert_eq!(answer["success"], true);
    client
}

fn column(rows: &Value, name: &str) -> Vec<Value> {
    rows.as_array().unwrap().iter().map(|row| row[name].clone()).collect()
}

fn last_words(client: &mut Client) -> Value {
    let last = client.expect_close().pop().unwrap();
    assert_eq!(last.name, "DISCONNECT");
    last.fields["reason"].clone()
}

#[test]
fn the_socket_is_for_its_owner_alone_and_goes_with_the_server() {
    let mut server = governed();
    let file = fs::symlink_metadata(socket(&server)).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    assert_eq!(file.uid(), fs::metadata(server.home()).unwrap().uid());
    server.kill9();
    assert!(socket(&server).exists(), "a dead server leaves it behind");
    let told = refused(&server, &["sessions"]);
    assert!(told.contains("no server runs here with"), "{told}");
    server.resume();
    assert!(admin(&server, &["sessions"]).starts_with("SESSION"));
    assert_eq!(server.stop(), Some(0));
    assert!(!socket(&server).exists());
    assert!(refused(&server, &["sessions"]).contains("nothing answers on"));
}

#[test]
fn the_socket_can_be_elsewhere_or_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.sock");
    let server = start(Settings::new().set("admin", "socket", path.to_str().unwrap()));
    assert!(path.exists() && !socket(&server).exists());
    let config = server.home().join("config.toml");
    admin(&server, &["sessions", "--config", config.to_str().unwrap()]);
    let off = start(Settings::new().set("admin", "socket", "off"));
    assert!(!socket(&off).exists());
    let config = off.home().join("config.toml");
    let told = refused(&off, &["sessions", "--config", config.to_str().unwrap()]);
    assert!(told.contains("socket is off"), "{told}");
}

#[test]
fn another_servers_socket_does_nothing() {
    let (one, other) = (governed(), governed());
    let request = json!({ "database": other.database(), "order": "sessions" });
    let mut stream = UnixStream::connect(socket(&one)).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("keeps another database"), "{answer}");
}

#[test]
fn nonsense_is_refused_and_slow_or_many_operators_do_no_harm() {
    let server = governed();
    let talk = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(socket(&server)).unwrap();
        // What is too long is not read to its end.
        stream.write_all(bytes).ok();
        stream.shutdown(std::net::Shutdown::Write).ok();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap_or_default();
        answer
    };
    for nonsense in [&b"x\n"[..], b"{}\n", b"{\"database\":1,\"order\":\"sessions\"}\n", b"\xff\xfe\n", b"no line"] {
        let answer = talk(nonsense);
        assert!(answer.starts_with(r#"{"refused":"#), "{answer}");
    }
    let unknown = json!({ "database": server.database(), "order": "explode" });
    assert!(talk(format!("{unknown}\n").as_bytes()).contains("unknown variant"));
    drop(talk(&vec![b'x'; 1 << 20]));
    // More than are served at once, and silent.
    let _silent: Vec<_> = (0..6).map(|_| UnixStream::connect(socket(&server)).unwrap()).collect();
    assert!(admin(&server, &["sessions"]).starts_with("SESSION"), "whoever says nothing is sent away");
    drop(server.client());
}

#[test]
fn lists_show_what_is_there() {
    let server = governed();
    let mut ann = registered(&server, "ann");
    let _boss = registered(&server, "boss");
    let _visitor = server.client_named("visitor");
    ann.quiet();
    let users = json(&server, &["list", "users"]);
    assert_eq!(column(&users, "nickname"), ["ann", "boss"]);
    assert_eq!(column(&users, "roles"), ["", "admin"]);
    assert_eq!(column(&users, "sessions"), [1, 1]);
    let sessions = json(&server, &["sessions"]);
    assert_eq!(column(&sessions, "nickname"), ["ann", "boss", "visitor"]);
    assert_eq!(column(&sessions, "address"), ["127.0.0.1"; 3]);
    let admins = json(&server, &["list", "admins"]);
    assert_eq!(admins, json!([{ "nickname": "boss", "id": 2, "role": "admin", "from": "admin_users" }]));
    let channels = json(&server, &["list", "channels"]);
    assert_eq!(column(&channels, "name"), ["chat", "general", "tech", "random", "feedback"]);
    assert_eq!(json(&server, &["list", "bans"]), json!([]));
    assert_eq!(json(&server, &["audit"]), json!([]));
    let text = admin(&server, &["list", "users"]);
    assert_eq!(text, "NICKNAME  ID  ROLES  SESSIONS\nann       1   -      1\nboss      2   admin  1\n");
}

#[test]
fn bans_count_at_once_and_are_lifted() {
    let server = governed();
    let mut troll = registered(&server, "troll");
    let said = admin(&server, &["ban", "user", "troll", "--for", "2h", "--reason", "spam"]);
    assert!(said.starts_with("user troll is banned until 20"), "{said}");
    assert!(last_words(&mut troll).as_str().unwrap().ends_with("Reason: spam"));
    admin(&server, &["ban", "user", "ghost", "--shadow"]);
    admin(&server, &["ban", "ip", "192.0.2.0/24"]);
    let bans = json(&server, &["list", "bans"]);
    assert_eq!(column(&bans, "who"), ["192.0.2.0/24", "ghost", "troll"]);
    assert_eq!(column(&bans, "shadow"), [false, true, false]);
    assert_eq!(column(&bans, "user_id"), [json!(null), json!(null), json!(1)]);
    assert_eq!(admin(&server, &["unban", "user", "troll"]), "user troll is unbanned (1 bans removed)\n");
    let answer = server
        .client()
        .ask(AuthRequest { nickname: b"troll", password_hash: secret("troll").as_bytes() }, "AUTH_RESPONSE");
    assert_eq!(answer["success"], true);
    admin(&server, &["unban", "ip", "192.0.2.7/24"]);
    assert_eq!(refused(&server, &["unban", "ip", "192.0.2.0/24"]), "scd: no active ban found\n");
    assert_eq!(refused(&server, &["ban", "ip", "nonsense"]), "scd: nonsense is no address and no network\n");
    for wrong in [&["ban", "user", "x", "--for", "soon"][..], &["ban", "user", "x", "--for", "0h"], &["ban"]] {
        assert_eq!(run(&server, wrong, "").code, Some(2), "{wrong:?}");
    }
}

#[test]
fn every_act_is_in_the_audit_with_who_did_it() {
    let server = governed();
    let _ann = registered(&server, "ann");
    admin(&server, &["ban", "user", "ghost", "--reason", "spam"]);
    admin(&server, &["unban", "user", "ghost"]);
    admin(&server, &["grant", "ann"]);
    admin(&server, &["channel", "create", "room"]);
    admin(&server, &["channel", "delete", "room", "--reason", "empty"]);
    admin(&server, &["disconnect", &column(&json(&server, &["sessions"]), "session")[0].to_string()]);
    admin(&server, &["delete-user", "ann"]);
    refused(&server, &["delete-user", "ann"]);
    let audit = json(&server, &["audit"]);
    let expected = ["DELETE_USER", "DISCONNECT", "DELETE_CHANNEL", "CREATE_CHANNEL", "GRANT", "unban_user", "ban_user"];
    assert_eq!(column(&audit, "action"), expected);
    let uid = fs::metadata(server.home()).unwrap().uid();
    for (by, from) in column(&audit, "by").iter().zip(column(&audit, "from")) {
        assert!(by.as_str().unwrap().ends_with(&format!("(uid {uid})")), "{by}");
        assert_eq!(from, "local");
    }
    assert_eq!(column(&json(&server, &["audit", "--limit", "1"]), "action"), ["DELETE_USER"]);
}

#[test]
fn a_granted_right_counts_at_once_and_outlasts_the_session_until_it_is_revoked() {
    let mut server = governed();
    let mut ann = registered(&server, "ann");
    let everybody = || ListUsers { limit: 0, include_offline: Tail(Some(true)) };
    ann.send(everybody());
    ann.expect_error(3000);
    assert_eq!(admin(&server, &["grant", "ann", "admin"]), "ann is an admin\n");
    ann.expect_matching("SERVER_PRESENCE", |fields| fields["nickname"] == "ann" && fields["user_flags"] == 1);
    ann.ask(everybody(), "USER_LIST");
    assert_eq!(server.stop(), Some(0));
    server.resume();
    let mut again = server.client();
    let sign_in =
        || AuthRequest { nickname: b"ann", password_hash: Box::leak(secret("ann").into_boxed_str()).as_bytes() };
    assert_eq!(again.ask(sign_in(), "AUTH_RESPONSE")["user_flags"], 1);
    let admins = json(&server, &["list", "admins"]);
    assert_eq!(column(&admins, "from"), ["granted", "admin_users, not registered"]);
    assert_eq!(admin(&server, &["revoke", "ann"]), "ann is no longer an admin\n");
    again.send(everybody());
    again.expect_error(3000);
    assert_eq!(again.ask(sign_in(), "AUTH_RESPONSE")["user_flags"], 0);
    admin(&server, &["grant", "ann", "moderator"]);
    assert_eq!(again.ask(sign_in(), "AUTH_RESPONSE")["user_flags"], 2);
    let _boss = registered(&server, "boss");
    // As old manuals have it; only the configuration and grants count.
    let shell = rusqlite::Connection::open(server.database()).unwrap();
    shell.execute("UPDATE User SET user_flags = user_flags | 1 WHERE nickname = 'ann'", []).unwrap();
    assert_eq!(column(&json(&server, &["list", "admins"]), "from"), ["granted", "admin_users"]);
    assert_eq!(column(&json(&server, &["list", "users"]), "roles"), ["moderator", "admin"]);
    let told = refused(&server, &["revoke", "boss"]);
    assert!(told.contains("boss is listed in admin_users"), "{told}");
    assert_eq!(refused(&server, &["grant", "nobody"]), "scd: there is no account nobody\n");
}

#[test]
fn a_former_name_is_nobodys_for_the_operator() {
    let server = governed();
    let mut ann = registered(&server, "ann");
    let rename = SetNickname { nickname: Bounded(b"anna") };
    assert_eq!(ann.ask(rename, "NICKNAME_RESPONSE")["success"], true);
    let orders: [&[&str]; 5] = [
        &["delete-user", "ann"],
        &["grant", "ann", "admin"],
        &["revoke", "ann"],
        &["reset-password", "ann"],
        &["ban", "user", "ann"],
    ];
    for order in orders {
        assert_eq!(refused(&server, order), "scd: the account is called anna now: name it so\n", "{order:?}");
    }
    assert_eq!(column(&json(&server, &["list", "users"]), "nickname"), ["anna"]);
    admin(&server, &["delete-user", "anna"]);
}

#[test]
fn a_new_password_signs_in_and_the_old_one_does_not() {
    let server = governed();
    drop(registered(&server, "ann"));
    let said = admin(&server, &["reset-password", "ann"]);
    let made_up = said.trim_end().strip_prefix("ann has a new password: ").unwrap().to_owned();
    let sign_in = |secret: &str| {
        let request = AuthRequest { nickname: b"ann", password_hash: secret.as_bytes() };
        server.client().ask(request, "AUTH_RESPONSE")["success"].clone()
    };
    let hash = |password: &str| superchat::argon2id::client_hash(password.as_bytes(), b"ann").unwrap();
    assert_eq!(sign_in(&hash(&made_up)), true);
    assert_eq!(sign_in(&secret("ann")), false);
    let given = run(&server, &["reset-password", "ann", "--stdin"], "my own words\n");
    assert_eq!((given.code, given.out.as_str()), (Some(0), "ann has a new password\n"), "{}", given.error);
    assert_eq!(sign_in(&hash("my own words")), true);
    assert_eq!(run(&server, &["reset-password", "ann", "--stdin"], "").code, Some(2));
    assert!(!server.output().contains(&made_up));
}

#[test]
fn admin_password_becomes_the_first_admins_at_every_start() {
    let settings = || Settings::new().admins(&["boss", "ann"]).set("server", "shards", 2);
    let mut server = Server::start(settings());
    drop(registered(&server, "boss"));
    drop(registered(&server, "ann"));
    assert_eq!(server.stop(), Some(0));
    server.reconfigure(settings().set("server", "admin_password", "open sesame"));
    server.resume();
    let done = || server.output().contains("Reset password for admin user boss").then_some(());
    support::clock::poll(support::client::PATIENCE, done).expect("the log says so");
    let sign_in = |nickname: &str, secret: &str| {
        let request = AuthRequest { nickname: nickname.as_bytes(), password_hash: secret.as_bytes() };
        server.client().ask(request, "AUTH_RESPONSE")["success"].clone()
    };
    let hash = superchat::argon2id::client_hash(b"open sesame", b"boss").unwrap();
    assert_eq!([sign_in("boss", &hash), sign_in("boss", &secret("boss"))], [true, false]);
    assert_eq!(sign_in("ann", &secret("ann")), true, "nobody else's is touched");
    assert!(!server.output().contains("open sesame"));
    let entry = &json(&server, &["audit", "--limit", "1"]);
    for (field, expected) in
        [("by", "admin_password (configuration)"), ("action", "RESET_PASSWORD"), ("target", "boss")]
    {
        assert_eq!(column(entry, field), [expected]);
    }
}

#[test]
fn channels_are_made_and_deleted_before_everybodys_eyes() {
    let server = governed();
    let mut ann = server.client_named("ann");
    let said = admin(&server, &["channel", "create", "lounge", "--description", "sit down", "--chat"]);
    assert!(said.starts_with("channel lounge is made (id "), "{said}");
    let told = ann.expect_broadcast("CHANNEL_CREATED");
    assert_eq!(
        (&told["name"], &told["description"], &told["channel_type"]),
        (&json!("lounge"), &json!("sit down"), &json!(0))
    );
    admin(&server, &["channel", "create", "lounge/corner"]);
    assert_eq!(ann.expect_broadcast("SUBCHANNEL_CREATED")["name"], "corner");
    assert!(column(&json(&server, &["list", "channels"]), "name").contains(&json!("lounge/corner")));
    assert_eq!(refused(&server, &["channel", "create", "lounge"]), "scd: a channel of that name exists\n");
    assert_eq!(refused(&server, &["channel", "create", "x"]), "scd: Channel name must be 3-50 characters\n");
    assert_eq!(refused(&server, &["channel", "create", "no/where"]), "scd: there is no channel no\n");
    admin(&server, &["channel", "delete", "lounge/corner"]);
    ann.expect_broadcast("CHANNEL_DELETED");
    admin(&server, &["channel", "delete", "#lounge"]);
    assert_eq!(ann.expect_broadcast("CHANNEL_DELETED")["message"], "Channel 'lounge' deleted successfully");
    assert_eq!(refused(&server, &["channel", "delete", "lounge"]), "scd: there is no channel lounge\n");
}

#[test]
fn one_session_is_disconnected_and_no_other() {
    let server = governed();
    let mut sessions = [server.client_named("ann"), server.client_named("ann")];
    let ids = column(&json(&server, &["sessions"]), "session");
    assert_eq!(ids.len(), 2);
    let said = admin(&server, &["disconnect", &ids[0].to_string(), "--reason", "calm down"]);
    assert_eq!(said, format!("session {} is disconnected\n", ids[0]));
    assert_eq!(last_words(&mut sessions[0]), "Kicked by operator: calm down");
    sessions[1].quiet();
    let told = refused(&server, &["disconnect", &ids[0].to_string()]);
    assert_eq!(told, format!("scd: there is no session {}\n", ids[0]));
}
