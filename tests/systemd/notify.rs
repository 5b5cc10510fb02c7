//! Readiness, status, reload and stop, as told to a notify socket.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;
use superchat::ids::ChannelId;
use superchat::wire::client::PostMessage;
use superchat::wire::codec::Bounded;

use crate::manager::{Manager, PATIENCE, Told};
use crate::support::server::free_port;
use crate::support::{Client, Link, Server, Settings, clock};

fn is_ready(told: &Told) -> bool {
    told.get("READY").map(String::as_str) == Some("1")
}

/// A status line; how many sessions it counts depends on when the harness's own first connection is noticed.
fn is_status(status: &str, rest: &str) -> bool {
    let counted = status.strip_prefix("sessions ").and_then(|status| status.split_once(", "));
    counted.is_some_and(|(count, words)| count.parse::<u32>().is_ok() && words == rest)
}

fn check_life(manager: &Manager) {
    let mut server = Server::start(manager.settings());
    let ready = manager.expect_where("READY=1", is_ready);
    assert!(is_status(&ready["STATUS"], "db ok"), "{ready:?}");
    server.ask_to_stop();
    let stopping = manager.expect("STOPPING");
    assert_eq!(stopping["STOPPING"], "1");
    assert!(
        stopping["EXTEND_TIMEOUT_USEC"].parse::<u64>().unwrap() >= 10_000_000,
        "time for slow readers: {stopping:?}"
    );
    let closing = manager.expect("EXTEND_TIMEOUT_USEC");
    assert!(closing["EXTEND_TIMEOUT_USEC"].parse::<u64>().unwrap() >= 30_000_000, "time for the writer: {closing:?}");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_manager_at_a_path_hears_of_start_and_stop() {
    check_life(&Manager::at_path());
}

#[test]
fn a_manager_at_an_abstract_address_hears_of_start_and_stop() {
    check_life(&Manager::abstract_one());
}

#[test]
fn ready_is_said_once_clients_are_served() {
    let (manager, admin) = (Manager::at_path(), free_address());
    std::thread::scope(|scope| {
        // At that very moment, without a second try.
        let at_once = scope.spawn(|| {
            manager.expect_where("READY=1", is_ready);
            status_of(admin, "/readyz", "")
        });
        let _server = Server::start(manager.settings().set("admin", "metrics_listen", admin.to_string()));
        assert_eq!(at_once.join().unwrap(), 200, "ready before listeners and database are open");
    });
}

#[test]
fn a_server_that_cannot_start_is_never_ready() {
    let manager = Manager::at_path();
    let mut server = Server::start(manager.settings());
    assert_eq!(server.stop(), Some(0));
    manager.forget();
    std::fs::write(server.database(), "no database, and long enough not to be taken for an empty one").unwrap();
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.resume()));
    assert!(refused.is_err());
    let told = std::iter::from_fn(|| manager.hears(Duration::ZERO)).find(is_ready);
    assert_eq!(told, None);
}

#[test]
fn the_status_line_follows_the_sessions() {
    let manager = Manager::at_path();
    let server = Server::start(manager.settings());
    let _clients: Vec<Client> = (0..3).map(|number| server.client_named(&format!("visitor{number}"))).collect();
    let told = manager.expect_where("three sessions", |told| {
        told.get("STATUS").is_some_and(|status| status.starts_with("sessions 3, "))
    });
    assert_eq!(told["STATUS"], "sessions 3, db ok");
}

fn reload(server: &Server, manager: &Manager) -> Told {
    manager.forget();
    server.signal(libc::SIGHUP);
    let reloading = manager.expect("RELOADING");
    assert_eq!(reloading["RELOADING"], "1");
    // CLOCK_MONOTONIC, as `systemctl reload` compares it.
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let told: f64 = reloading["MONOTONIC_USEC"].parse::<f64>().unwrap() / 1e6;
    assert!((uptime - told).abs() < 60.0, "told {told} s, the system is up for {uptime} s");
    manager.expect_where("READY=1", is_ready)
}

fn post(client: &mut Client, bytes: usize) {
    let content = "x".repeat(bytes);
    let content = Bounded(content.as_bytes());
    client.send(PostMessage { channel_id: ChannelId(1), subchannel_id: None, parent_id: None, content });
}

#[test]
fn a_reload_changes_what_it_can_for_old_and_new_sessions_and_names_the_rest() {
    let manager = Manager::at_path();
    let before = manager.settings().set("limits", "exempt_networks", json!(["192.0.2.0/24"]));
    let mut server = Server::start(before.clone());
    let mut old = server.client_named("old");
    let after = before.set("limits", "max_message_length", 10).set("limits", "message_rate_limit", 2);
    server.rewrite(after.clone().set("limits", "max_connections_per_ip", 2).set("server", "shards", 7));
    let told = reload(&server, &manager);
    let status = "db ok; reloaded, 3 settings changed, needs a restart: [server] shards";
    assert!(is_status(&told["STATUS"], status), "{told:?}");
    let mut new = server.client_named("new");
    assert_eq!((&new.config["max_message_length"], &new.config["max_message_rate"]), (&json!(10), &json!(2)));
    for client in [&mut old, &mut new] {
        post(client, 11);
        client.expect_error(6001);
        (0..2).for_each(|_| {
            post(client, 10);
            client.expect_reply("MESSAGE_POSTED");
        });
        post(client, 10);
        client.expect_error(5001);
    }
    assert_eq!(server.client().expect_error(5003), "Too many connections from your address");
    drop(new);
    // Back again, and what was counted is still counted.
    server.rewrite(after.set("limits", "message_rate_limit", 3));
    assert!(reload(&server, &manager)["STATUS"].ends_with("reloaded, 2 settings changed"));
    post(&mut old, 10);
    old.expect_reply("MESSAGE_POSTED");
    post(&mut old, 10);
    old.expect_error(5001);
}

#[test]
fn a_shorter_idle_time_counts_for_those_who_are_here() {
    let manager = Manager::at_path();
    let mut server = Server::start(manager.settings().set("limits", "session_timeout_seconds", 0));
    let mut idle = server.client_named("idle");
    idle.quiet();
    server.rewrite(manager.settings().set("limits", "session_timeout_seconds", 1));
    reload(&server, &manager);
    idle.expect_close();
}

#[test]
fn a_broken_file_changes_nothing_and_says_so() {
    let manager = Manager::at_path();
    let server = Server::start(manager.settings().set("limits", "message_rate_limit", 7));
    for (text, problem) in [
        ("[limits]\nmesage_rate_limit = 5\n", "[limits] mesage_rate_limit"),
        ("[limits\n", "config.toml line 1"),
        ("[server]\nssh_port = 70000\n", "[server] ssh_port"),
    ] {
        server.break_config(text);
        let status = reload(&server, &manager)["STATUS"].clone();
        assert!(status.contains(", db ok; not reloaded, old settings kept: ") && status.contains(problem), "{status}");
        assert_eq!(server.client().config["max_message_rate"], 7);
    }
    server.await_line("configuration not reloaded: ");
}

#[test]
fn a_reload_moves_log_level_and_addresses_but_not_a_level_that_signals_moved() {
    let manager = Manager::at_path();
    let mut server = Server::start(manager.settings());
    let logs = |what: &str| clock::poll(PATIENCE, || server.output().contains(what).then_some(()));
    server.signal(libc::SIGUSR1);
    logs("log level raised to debug").unwrap();
    reload(&server, &manager);
    drop(server.client_named("louder"));
    logs("session ended").unwrap();
    server.rewrite(manager.settings().set("log", "log_ip", "off").set("log", "log_level", "debug"));
    assert!(reload(&server, &manager)["STATUS"].contains("2 settings changed"));
    drop(server.client_named("hidden"));
    let logs = |what: &str| clock::poll(PATIENCE, || server.output().contains(what).then_some(()));
    logs("Connection from -").unwrap();
}

#[test]
fn a_reload_changes_the_token_of_the_admin_port() {
    let manager = Manager::at_path();
    let port = free_address();
    let with = |token: &str| -> Settings {
        manager.settings().set("admin", "metrics_listen", port.to_string()).set("admin", "metrics_token", token)
    };
    let mut server = Server::start(with("one"));
    let allows = |token: &str| status_of(port, "/status", token) == 200;
    assert!(allows("one") && !allows("two"));
    server.rewrite(with("two"));
    reload(&server, &manager);
    assert!(allows("two") && !allows("one"));
}

fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

fn status_of(address: SocketAddr, path: &str, token: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn readiness_is_off_while_clients_are_told() {
    let manager = Manager::at_path();
    let port = free_address();
    let mut server = Server::start(manager.settings().set("admin", "metrics_listen", port.to_string()));
    assert_eq!(status_of(port, "/readyz", ""), 200);
    // Does not read its goodbye, so the end takes the two seconds of its patience.
    let client = server.client_named("last");
    server.ask_to_stop();
    assert_eq!(manager.expect("STOPPING")["STATUS"], "stopping: telling clients");
    assert_eq!((status_of(port, "/readyz", ""), status_of(port, "/livez", "")), (503, 200));
    assert!(clock::poll(PATIENCE, || Link::connect(server.address()).is_err().then_some(())).is_some());
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}
