//! SSH and WebSocket (BEHAVIOUR.md 1.8, 1.9): the same sessions by other ways in, and what only these ways have.

mod places;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use superchat::ids::{ChannelId, InviteId, UserId};
use superchat::wire::client::{
    AddSshKey, ChangePassword, DeleteMessage, DeleteSshKey, DeleteUser, Disconnect, EditMessage, JoinChannel,
    ListSshKeys, Logout, RegisterUser, SetNickname, SubscribeChannel, UpdateSshKeyLabel,
};
use superchat::wire::codec::Bounded;

use super::connections::{FORUM, newest, post};
use super::dms::{allow, start_dm};
use super::steps;
use crate::support::browser::Browser;
use crate::support::client::PATIENCE;
use crate::support::link::ssh;
use crate::support::server::free_port;
use crate::support::{Client, Incoming, Link, Server, Settings, clock};

/// A server with all ways in.
struct Doors {
    server: Server,
    ssh: SocketAddr,
    web: SocketAddr,
}

impl Doors {
    fn open(settings: Settings) -> Self {
        let (ssh, web) = (free_port(), free_port());
        let server = Server::start(settings.set("server", "ssh_port", ssh).set("server", "http_port", web));
        Self { server, ssh: (Ipv4Addr::LOCALHOST, ssh).into(), web: (Ipv4Addr::LOCALHOST, web).into() }
    }

    fn by_web(&self) -> Client {
        Client::over(Link::connect_web(self.web).unwrap())
    }

    /// Signed in: the answer to a question nobody asked has been read.
    fn by_ssh(&self, user: &str, key: &Path) -> Client {
        let mut client = Client::over(Link::connect_ssh(self.ssh, user, key));
        let welcome = client.expect_reply("AUTH_RESPONSE");
        assert_eq!(welcome["message"], format!("Authenticated via SSH as {}", text(&welcome["nickname"])));
        client
    }

    /// A fresh key pair; the path of the private half.
    fn key(&self, name: &str) -> PathBuf {
        let path = self.server.home().join(name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&path).status();
        assert!(made.expect("apt-get install openssh-client").success());
        path
    }

    /// The server's answer to a request of one's own writing.
    fn http(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.web).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn get(&self, path: &str) -> String {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn public_half(key: &Path) -> Vec<u8> {
    fs::read(key.with_extension("pub")).unwrap()
}

fn subscribe(client: &mut Client) {
    client.ask(JoinChannel { channel_id: FORUM, subchannel_id: None }, "JOIN_RESPONSE");
    client.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
}

#[test]
fn all_ways_lead_to_the_same_room() {
    let doors = Doors::open(Settings::new());
    let mut tcp = doors.server.client_named("tcp");
    let mut web = doors.by_web();
    web.ask(SetNickname { nickname: Bounded(b"web") }, "NICKNAME_RESPONSE");
    let mut ssh = doors.by_ssh("ssh", &doors.key("key"));
    let mut everyone = [&mut tcp, &mut web, &mut ssh];
    everyone.iter_mut().for_each(|client| subscribe(client));
    for author in 0..everyone.len() {
        everyone[author].ask(post(format!("from {author}").as_bytes()), "MESSAGE_POSTED");
        for client in &mut everyone {
            let heard = client.expect_matching("NEW_MESSAGE", |message| message["content"] == format!("from {author}"));
            assert!(text(&heard["author_nickname"]).ends_with(["tcp", "web", "ssh"][author]), "{heard:?}");
        }
    }
}

/// Two accounts and what they do of a day: threads, edits, a channel of one's own, a conversation, mistakes.
fn spend_a_day([ann, bob]: &mut [Client; 2]) {
    let yard = steps::created(ann, "yard");
    for client in [&mut *ann, &mut *bob] {
        steps::join(client, yard);
        steps::subscribe(client, yard);
    }
    let root = steps::posted(ann, steps::post(yard, b"who is there?"));
    assert_eq!(bob.expect_broadcast("NEW_MESSAGE")["content"], "who is there?");
    steps::follow(ann, root);
    let reply = steps::posted(bob, steps::reply(yard, root, &[b'x'; 3000]));
    ann.expect_matching("NEW_MESSAGE", |message| steps::number(&message["message_id"]) == reply.0);
    let edit = EditMessage { message_id: root, new_content: Bounded(b"anybody there?") };
    assert_eq!(ann.ask(edit, "MESSAGE_EDITED")["success"], true);
    assert_eq!(bob.expect_broadcast("MESSAGE_EDITED")["new_content"], "anybody there?");
    assert_eq!(bob.ask(DeleteMessage { message_id: reply }, "MESSAGE_DELETED")["success"], true);
    ann.expect_broadcast("MESSAGE_DELETED");
    assert_eq!(steps::column(bob, steps::roots(yard), "reply_count"), [0]);

    let pending = ann.ask(start_dm("bob", true), "DM_PENDING");
    let invite = InviteId(steps::number(&pending["dm_channel_id"]));
    bob.expect_broadcast("DM_REQUEST");
    let ready = bob.ask(allow(invite), "DM_READY");
    ann.expect_broadcast("DM_READY");
    let room = ChannelId(steps::number(&ready["channel_id"]));
    for client in [&mut *ann, &mut *bob] {
        steps::join(client, room);
        steps::subscribe(client, room);
    }
    steps::posted(bob, steps::post(room, b"between us"));
    ann.expect_matching("NEW_MESSAGE", |message| message["content"] == "between us");

    ann.send_raw(&steps::frame(0x0A, b"no post"));
    ann.expect_error(1000);
    ann.send_raw(&[0, 0, 0, 1, 2]);
    let last = ann.expect_close();
    assert_eq!(last.last().map(|frame| &frame.fields["reason"]), Some(&"Protocol violation".into()), "{last:?}");
    bob.expect_matching("SERVER_PRESENCE", |seen| seen["nickname"] == "ann" && seen["online"] == false);
}

/// How somebody of that name comes in.
type Way<'w> = &'w mut dyn FnMut(&Doors, &str) -> Client;

#[test]
fn a_day_is_the_same_by_every_way() {
    let register = |mut client: Client, name: &str| {
        client.ask(SetNickname { nickname: Bounded(name.as_bytes()) }, "NICKNAME_RESPONSE");
        let secret = steps::secret(name);
        client.ask(RegisterUser { password_hash: secret.as_bytes() }, "REGISTER_RESPONSE");
        client
    };
    let mut browser = Browser::open();
    let ways: [Way<'_>; 4] = [
        &mut |doors, name| register(Client::connect(doors.server.address()), name),
        &mut |doors, name| register(doors.by_web(), name),
        &mut |doors, name| register(Client::over(Link::connect_browser(&mut browser, doors.web)), name),
        &mut |doors, name| doors.by_ssh(name, &doors.key(name)),
    ];
    for way in ways {
        let doors = Doors::open(Settings::new());
        spend_a_day(&mut ["ann", "bob"].map(|name| way(&doors, name)));
    }
}

#[test]
fn a_key_opens_an_account_and_comes_back_to_it_under_any_name() {
    let mut doors = Doors::open(Settings::new().admins(&["boss"]));
    let key = doors.key("key");
    doors.by_ssh("boss", &key);
    doors.by_ssh("somebody", &key);
    doors.server.kill9();
    doors.server.resume();
    let mut back = doors.by_ssh("", &key);
    let stored = back.ask(ListSshKeys {}, "SSH_KEY_LIST");
    let keys = stored["keys"].as_array().unwrap();
    assert_eq!((keys.len(), text(&keys[0]["label"])), (1, "Auto-registered"));
    assert_ne!(keys[0]["last_used_at"], "0");
    let log = doors.server.output();
    assert_eq!(log.matches("Auto-registered new user boss").count(), 1, "{log}");
    assert_eq!(log.matches("SSH auth: user boss").count(), 2, "{log}");
}

/// OpenSSH's client as the master of further sessions, which go by the socket at `path`.
struct Master<'d> {
    doors: &'d Doors,
    user: &'d str,
    key: PathBuf,
    path: PathBuf,
    client: Child,
}

impl<'d> Master<'d> {
    /// Signed in, without a session.
    fn sign_in(doors: &'d Doors, user: &'d str) -> Self {
        let (key, path) = (doors.key(user), doors.server.home().join(format!("{user}.master")));
        let mut command = ssh(doors.ssh, user, &key);
        let client = command.args(["-M", "-N", "-S"]).arg(&path).arg("127.0.0.1").spawn().unwrap();
        clock::poll(PATIENCE, || path.exists().then_some(())).expect("the master is signed in");
        Self { doors, user, key, path, client }
    }

    fn session(&self) -> Link {
        let mut command = ssh(self.doors.ssh, self.user, &self.key);
        // By the master, or not at all.
        command.args(["-o", "ProxyCommand=false", "-S"]).arg(&self.path).arg("127.0.0.1");
        Link::through(&mut command)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.client), signal).unwrap();
    }
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        let _already_gone = self.client.kill();
        let _status = self.client.wait();
    }
}

/// How many connections by SSH and HTTP the server has a socket of.
fn sockets(doors: &Doors) -> usize {
    const LISTENS: &str = "0A";
    let open = fs::read_dir(format!("/proc/{}/fd", doors.server.pid())).unwrap();
    let open: Vec<_> = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
    let ports = [doors.ssh, doors.web].map(|address| format!(":{:04X}", address.port()));
    let known = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default()).concat();
    let is_ours = |line: &&str| {
        let [_, local, _, state, .., inode] = line.split_whitespace().take(10).collect::<Vec<_>>()[..] else {
            return false;
        };
        let inode = PathBuf::from(format!("socket:[{inode}]"));
        ports.iter().any(|port| local.ends_with(port)) && state != LISTENS && open.contains(&inode)
    };
    known.lines().filter(is_ours).count()
}

#[test]
fn who_does_not_leave_by_ssh_loses_the_socket() {
    let doors = Doors::open(Settings::new());
    // One of them signs in and says nothing more, the other had a session; both stand still when they are told to leave.
    let silent = Master::sign_in(&doors, "silent");
    let former = Master::sign_in(&doors, "former");
    let mut session = Client::over(former.session());
    session.expect_reply("AUTH_RESPONSE");
    assert_eq!(sockets(&doors), 2);
    session.send(Disconnect { reason: None });
    session.expect_close();
    silent.signal(Signal::STOP);
    former.signal(Signal::STOP);
    clock::poll(PATIENCE * 2, || (sockets(&doors) == 0).then_some(())).expect("their sockets are closed");
}

#[test]
fn a_key_is_looked_at_anew_for_every_session() {
    let doors = Doors::open(Settings::new().admins(&["boss"]));
    let mut boss = steps::registered(&doors.server, "boss");
    let master = Master::sign_in(&doors, "ann");
    let mut first = Client::over(master.session());
    let user = steps::number(&first.expect_reply("AUTH_RESPONSE")["user_id"]);
    let mut second = Client::over(master.session());
    second.expect_reply("AUTH_RESPONSE");
    second.send(Logout {});
    second.quiet();
    assert_eq!(boss.ask(DeleteUser { user_id: UserId(user) }, "USER_DELETED")["success"], true);
    first.expect_close();
    assert_eq!(master.session().next(PATIENCE), Incoming::Closed, "the account is gone");
}

#[test]
fn a_client_that_writes_ahead_still_hears_its_answers() {
    let doors = Doors::open(Settings::new());
    let mut ssh = doors.by_ssh("ahead", &doors.key("ahead"));
    steps::join(&mut ssh, FORUM);
    for _ in 0..50 {
        ssh.ask(post(&[b'x'; 4096]), "MESSAGE_POSTED");
    }
    const LISTS: usize = 400;
    let list = crate::connections::bytes(
        "LIST_MESSAGES",
        json!({ "channel_id": "2", "subchannel_id": null, "limit": 50,
        "before_id": null, "parent_id": null, "after_id": null }),
    );
    for _ in 0..LISTS {
        ssh.send_raw(&list);
    }
    for _ in 0..LISTS {
        ssh.expect_reply("MESSAGE_LIST");
    }
}

#[test]
fn a_shadow_ban_on_a_name_is_not_told_to_a_new_key() {
    let doors = Doors::open(Settings::new().admins(&["boss"]));
    let mut boss = steps::registered(&doors.server, "boss");
    let ban =
        json!({ "user_id": null, "nickname": "ghost", "reason": "", "shadowban": true, "duration_seconds": null });
    boss.send_json("BAN_USER", ban);
    assert_eq!(boss.expect_reply("USER_BANNED")["success"], true);
    doors.by_ssh("ghost", &doors.key("ghost"));
}

#[test]
fn keys_that_do_not_sign_in_are_refused_with_a_reason_in_the_log() {
    let doors = Doors::open(Settings::new());
    steps::registered(&doors.server, "taken");
    let refused = |user: &str, key: &Path| {
        let mut link = Link::connect_ssh(doors.ssh, user, key);
        assert_eq!(link.next(PATIENCE), Incoming::Closed, "{user}");
    };
    let key = doors.key("key");
    refused("taken", &key);
    refused("x", &key);
    refused("not a nickname", &key);
    let log = doors.server.output();
    for reason in ["\"taken\" is already registered", "public key does not match", "authentication failed"] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
    assert!(!log.contains("Auto-registered"), "{log}");
}

#[test]
fn one_address_makes_ten_accounts_an_hour() {
    let doors = Doors::open(Settings::new());
    for number in 0..10 {
        doors.by_ssh(&format!("user{number}"), &doors.key(&format!("key{number}")));
    }
    let mut eleventh = Link::connect_ssh(doors.ssh, "user10", &doors.key("key10"));
    assert_eq!(eleventh.next(PATIENCE), Incoming::Closed);
    assert!(doors.server.output().contains("SSH auto-register rate limit exceeded from 127.0.0.1"));
    doors.by_ssh("whoever", &doors.server.home().join("key3"));
}

#[test]
fn who_came_by_key_sets_a_password_without_knowing_the_old_one() {
    let doors = Doors::open(Settings::new());
    let mut client = doors.by_ssh("alice", &doors.key("key"));
    let secret = steps::secret("alice");
    let change = || ChangePassword { old_password_hash: b"", new_password_hash: secret.as_bytes() };
    assert_eq!(client.ask(change(), "PASSWORD_CHANGED")["success"], true);
    let mut other = doors.server.client();
    assert_eq!(steps::sign_in(&mut other, "alice", "alice")["success"], true);
    assert_eq!(other.ask(change(), "PASSWORD_CHANGED")["error_message"], "Incorrect current password");
}

#[test]
fn keys_are_added_listed_labelled_and_deleted() {
    let doors = Doors::open(Settings::new());
    let (first, second) = (doors.key("first"), doors.key("second"));
    let mut client = doors.by_ssh("alice", &first);
    let line = public_half(&second);
    let add = || AddSshKey { public_key: &line, label: b"desk" };
    let added = client.ask(add(), "SSH_KEY_ADDED");
    assert_eq!((&added["success"], text(&added["key_id"])), (&Value::Bool(true), "2"));
    assert_eq!(client.ask(add(), "SSH_KEY_ADDED")["error_message"], "SSH key already exists");
    assert_eq!(doors.by_ssh("other", &second).ask(ListSshKeys {}, "SSH_KEY_LIST")["keys"].as_array().unwrap().len(), 2);

    let label = UpdateSshKeyLabel { key_id: 2, new_label: b"lamp" };
    assert_eq!(client.ask(label, "SSH_KEY_LABEL_UPDATED")["success"], true);
    let keys = client.ask(ListSshKeys {}, "SSH_KEY_LIST")["keys"].clone();
    assert_eq!((text(&keys[0]["label"]), text(&keys[1]["label"])), ("lamp", "Auto-registered"), "newest first");

    let mut stranger = doors.by_ssh("mallory", &doors.key("third"));
    for key_id in [1, 2, 99, -1] {
        let refused = stranger.ask(DeleteSshKey { key_id }, "SSH_KEY_DELETED");
        assert_eq!(refused["error_message"], "SSH key not found or does not belong to you", "{key_id}");
    }
    assert_eq!(client.ask(DeleteSshKey { key_id: 1 }, "SSH_KEY_DELETED")["success"], true);
    assert_eq!(Link::connect_ssh(doors.ssh, "alice", &first).next(PATIENCE), Incoming::Closed, "the key is gone");
}

#[test]
fn an_account_has_fifty_keys_at_most() {
    let doors = Doors::open(Settings::new());
    let mut client = doors.by_ssh("alice", &doors.key("key"));
    let line = |number: u8| {
        // Any 32 bytes are a public key to whoever does not use it.
        let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
        blob.extend([number; 32]);
        format!("ssh-ed25519 {}", base64(&blob)).into_bytes()
    };
    for number in 1..50 {
        let public_key = line(number);
        let added = client.ask(AddSshKey { public_key: &public_key, label: b"" }, "SSH_KEY_ADDED");
        assert_eq!(added["success"], true, "{number}: {added:?}");
    }
    let public_key = line(50);
    let refused = client.ask(AddSshKey { public_key: &public_key, label: b"" }, "SSH_KEY_ADDED");
    assert_eq!(refused["error_message"], "Too many SSH keys (max 50)");
}

/// RFC 4648, without padding where none is needed: 51 bytes are 68 characters.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift & 63) as usize]))
    };
    bytes.chunks_exact(3).flat_map(group).collect()
}

#[test]
fn a_host_key_stays_the_same() {
    let mut doors = Doors::open(Settings::new());
    let path = doors.server.home().join("data/superchat/ssh_host_key");
    let before = fs::read(&path).unwrap();
    doors.server.stop();
    doors.server.resume();
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn ssh_says_its_name_first_and_waits_ten_seconds_at_most() {
    let doors = Doors::open(Settings::new());
    let mut stream = TcpStream::connect(doors.ssh).unwrap();
    stream.set_read_timeout(Some(PATIENCE * 2)).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert!(said.starts_with(b"SSH-2.0-SuperChat\r\n"), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn the_limit_of_an_address_counts_all_ways_together() {
    let doors = Doors::open(Settings::new().set("limits", "max_connections_per_ip", 2).set(
        "limits",
        "exempt_networks",
        Vec::<&str>::new(),
    ));
    let (_first, _second) = (doors.server.client(), doors.by_web());
    let mut third = Client::over(Link::connect_web(doors.web).unwrap());
    assert_eq!(third.expect_error(5003), "Too many connections from your address");
    assert_eq!(third.expect_reply("DISCONNECT")["reason"], "Too many connections from your address");
    third.expect_close();
    let mut silent = TcpStream::connect(doors.ssh).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 64]).unwrap_or(0), 0, "closed before the handshake");
}

#[test]
fn every_way_hears_the_goodbye() {
    let mut doors = Doors::open(Settings::new());
    let mut clients = [doors.server.client(), doors.by_web(), doors.by_ssh("alice", &doors.key("key"))];
    doors.server.ask_to_stop();
    for client in &mut clients {
        assert_eq!(client.expect_reply("DISCONNECT")["reason"], "Server shutting down for maintenance");
        client.expect_close();
    }
    assert_eq!(doors.server.wait().code(), Some(0));
}

#[test]
fn a_text_message_ends_the_connection() {
    use tokio_tungstenite::tungstenite::{Message, client};
    let doors = Doors::open(Settings::new());
    let stream = TcpStream::connect(doors.web).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut socket, _) = client(format!("ws://{}/ws", doors.web), stream).unwrap();
    socket.send(Message::text("hello")).unwrap();
    while let Ok(message) = socket.read() {
        assert!(matches!(message, Message::Binary(_) | Message::Close(_)), "{message:?}");
    }
}

#[test]
fn frames_may_be_cut_and_packed_as_the_client_likes() {
    let doors = Doors::open(Settings::new());
    let mut client = doors.by_web();
    let nickname = crate::connections::bytes("SET_NICKNAME", serde_json::json!({ "nickname": "webby" }));
    nickname.iter().for_each(|byte| client.send_raw(&[*byte]));
    client.expect_reply("NICKNAME_RESPONSE");
    let twice = crate::connections::bytes("PING", serde_json::json!({ "timestamp": "7" })).repeat(2);
    client.send_raw(&twice);
    client.expect_reply("PONG");
    client.expect_reply("PONG");
    let long = vec![b'x'; 4096];
    client.ask(JoinChannel { channel_id: FORUM, subchannel_id: None }, "JOIN_RESPONSE");
    for _ in 0..30 {
        doors.server.client_named("author").ask(post(&long), "MESSAGE_POSTED");
    }
    assert_eq!(client.ask(newest(FORUM, 50), "MESSAGE_LIST")["messages"].as_array().unwrap().len(), 30);
}

fn upgrade(headers: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
    )
}

/// The head of the answer to an upgrade.
fn head(doors: &Doors, headers: &str) -> String {
    let mut stream = TcpStream::connect(doors.web).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(upgrade(headers).as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn an_upgrade_with_a_short_key_is_granted_and_one_without_is_not() {
    let doors = Doors::open(Settings::new());
    assert_eq!(head(&doors, "Sec-WebSocket-Key: test\r\n"), "HTTP/1.1 101");
    assert_eq!(head(&doors, ""), "HTTP/1.1 426");
    assert_eq!(head(&doors, "Sec-WebSocket-Key: test\r\nOrigin: https://anywhere.example\r\n"), "HTTP/1.1 101");
}

#[test]
fn pages_of_other_origins_stay_outside_when_origins_are_listed() {
    let doors = Doors::open(Settings::new().set("server", "allowed_origins", vec!["https://chat.example.org"]));
    let from = |origin: &str| head(&doors, &format!("Sec-WebSocket-Key: test\r\n{origin}"));
    assert_eq!(from("Origin: https://chat.example.org\r\n"), "HTTP/1.1 101");
    assert_eq!(from("Origin: https://evil.example\r\n"), "HTTP/1.1 403");
    assert_eq!(from(""), "HTTP/1.1 101", "no browser");
}

#[test]
fn servers_json_is_what_the_web_site_reads() {
    let doors = Doors::open(Settings::new().set("discovery", "server_name", "Ours"));
    let answer = doors.get("/servers.json");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_lowercase().contains("access-control-allow-origin: *"), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["count"], &body["servers"][0]["Name"]), (&Value::from(1), &Value::from("Ours")));
    let keys: Vec<_> = body["servers"][0].as_object().unwrap().keys().cloned().collect();
    let expected = [
        "ChannelCount",
        "Description",
        "Hostname",
        "IsPublic",
        "MaxUsers",
        "Name",
        "Port",
        "UptimeSeconds",
        "UserCount",
    ];
    assert_eq!(keys, expected);

    assert!(doors.get("/anything").starts_with("HTTP/1.1 404"));
    assert!(
        doors
            .http("POST /ws HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            .starts_with("HTTP/1.1 405")
    );
    let closed = Doors::open(Settings::new().set("discovery", "directory_enabled", false));
    assert!(closed.get("/servers.json").starts_with("HTTP/1.1 404"));
}

#[test]
fn greedy_and_slow_http_clients_cost_nobody_else_anything() {
    let doors = Doors::open(Settings::new().set("limits", "exempt_networks", Vec::<&str>::new()));
    // More than one address may hold; none of them ever sends a whole request.
    let slow: Vec<_> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(doors.web).unwrap();
            let _may_be_closed = stream.write_all(b"GET /ws HTTP/1.1\r\n");
            stream
        })
        .collect();
    let endless = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut greedy = TcpStream::connect(doors.web).unwrap();
    let _may_be_closed = greedy.write_all(endless.as_bytes());
    doors.server.client_named("alice").ask(post(b"undisturbed"), "MESSAGE_POSTED");
    drop(slow);
    let answered = clock::poll(PATIENCE, || {
        let mut stream = TcpStream::connect(doors.web).ok()?;
        stream.write_all(b"GET /servers.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
    assert!(answered.is_some(), "the port serves again once they are gone");
}

#[test]
fn a_proxy_may_hold_more_connections_than_an_address() {
    let settings = Settings::new().set("limits", "exempt_networks", Vec::<&str>::new());
    let doors = Doors::open(settings.set("server", "trusted_proxies", vec!["127.0.0.1"]));
    let _quiet: Vec<_> = (0..64).map(|_| TcpStream::connect(doors.web).unwrap()).collect();
    assert!(doors.get("/servers.json").starts_with("HTTP/1.1 200"));
}

#[test]
fn a_page_in_a_browser_talks_with_everybody() {
    let mut doors = Doors::open(Settings::new());
    let mut browser = Browser::open();
    let mut page = browser.talk(doors.web);
    assert_eq!(page.hear("SERVER_CONFIG")["protocol_version"], 2);
    page.ask("SET_NICKNAME", json!({ "nickname": "page" }), "NICKNAME_RESPONSE");
    let listed = page.ask("LIST_CHANNELS", json!({ "from_channel_id": 0, "limit": 0 }), "CHANNEL_LIST");
    assert_eq!(listed["channels"].as_array().unwrap().len(), 5);
    let forum = json!({ "channel_id": FORUM.0 });
    assert_eq!(page.ask("JOIN_CHANNEL", forum.clone(), "JOIN_RESPONSE")["success"], true);
    page.ask("SUBSCRIBE_CHANNEL", forum.clone(), "SUBSCRIBE_OK");

    let mut tcp = doors.server.client_named("tcp");
    subscribe(&mut tcp);
    let words = json!({ "channel_id": FORUM.0, "content": "Grüße aus dem Browser 🌍" });
    let posted = page.ask("POST_MESSAGE", words.clone(), "MESSAGE_POSTED");
    let heard = tcp.expect_broadcast("NEW_MESSAGE");
    assert_eq!((&heard["message_id"], &heard["content"]), (&posted["message_id"], &words["content"]));

    // Long enough to be compressed for whoever understands that.
    let long = "a long line, ".repeat(200);
    tcp.ask(post(long.as_bytes()), "MESSAGE_POSTED");
    let heard = std::iter::repeat_with(|| page.hear("NEW_MESSAGE")).find(|message| message["content"] == long.as_str());
    assert_eq!(heard.unwrap()["author_nickname"], "~tcp");
    let root = json!({ "channel_id": FORUM.0, "parent_id": posted["message_id"], "content": "and an answer" });
    page.ask("POST_MESSAGE", root, "MESSAGE_POSTED");
    let roots = page.ask("LIST_MESSAGES", json!({ "channel_id": FORUM.0, "limit": 50 }), "MESSAGE_LIST");
    let roots = roots["messages"].as_array().unwrap();
    assert_eq!(roots.iter().map(|root| &root["reply_count"]).collect::<Vec<_>>(), [&json!(0), &json!(1)]);
    assert_eq!(page.ask("PING", json!({ "timestamp": "7" }), "PONG")["timestamp"], "7");

    assert_eq!(doors.server.stop(), Some(0));
    assert!(page.is_over());
}
