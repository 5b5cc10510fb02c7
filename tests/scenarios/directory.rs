//! The directory of servers (BEHAVIOUR.md 6), with real servers and with targets that are up to no good.

mod announcing;
mod gossip;
mod listing;
mod verification;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;
use superchat::wire::client::{Heartbeat, ListServers, RegisterServer};
use superchat::wire::codec::Wire;
use superchat::wire::frame;
use superchat::wire::server::ServerConfig;

use super::steps::items;
use crate::support::client::PATIENCE;
use crate::support::{Client, Link, Server, Settings, clock};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Another address of this machine.
fn elsewhere(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, number)
}

/// A directory under the name of this machine. Servers on it may register.
fn settings() -> Settings {
    Settings::new().set("discovery", "public_hostname", "127.0.0.1").set("discovery", "server_name", "The directory")
}

fn client_from(server: &Server, source: Ipv4Addr) -> Client {
    Client::over(Link::connect_from(source.into(), server.address()).unwrap())
}

/// What a directory lists beside itself.
fn listed(client: &mut Client) -> Vec<Value> {
    let mut servers = items(&client.ask(ListServers { limit: 500 }, "SERVER_LIST"), "servers");
    assert_eq!(servers.remove(0)["name"], "The directory", "a directory lists itself first");
    servers
}

fn is_listed(client: &mut Client, address: SocketAddr) -> bool {
    listed(client).iter().any(|entry| entry["hostname"] == "127.0.0.1" && entry["port"] == address.port())
}

/// Waits for what no event tells.
fn wait<T>(what: &str, ready: impl FnMut() -> Option<T>) -> T {
    wait_long(what, PATIENCE * 2, ready)
}

fn wait_long<T>(what: &str, limit: Duration, ready: impl FnMut() -> Option<T>) -> T {
    clock::poll(limit, ready).unwrap_or_else(|| panic!("waited in vain for {what}"))
}

fn registration(address: SocketAddr) -> RegisterServer<'static> {
    RegisterServer {
        hostname: b"127.0.0.1",
        port: address.port(),
        name: b"Second",
        description: "\u{fc}ber \u{1f642}".as_bytes(),
        max_users: 250,
        is_public: true,
        channel_count: 5,
    }
}

/// Registers and returns what is said.
fn register(client: &mut Client, registration: RegisterServer<'_>) -> String {
    let ack = client.ask(registration, "REGISTER_ACK");
    assert_eq!(ack["success"], false, "no answer promises more than a look");
    ack["message"].as_str().unwrap().to_owned()
}

const IN_PROGRESS: &str = "Verification in progress...";

fn heartbeat(address: SocketAddr, user_count: u32) -> Heartbeat<'static> {
    Heartbeat { hostname: b"127.0.0.1", port: address.port(), user_count, uptime_seconds: 86_400, channel_count: 6 }
}

/// A row that somebody registered so long ago.
fn insert(operator: &Connection, host: &str, name: &str, seconds_ago: i64, is_public: bool) {
    operator.execute(
        "INSERT INTO DiscoveredServer (hostname, port, name, description, last_heartbeat, is_public, discovered_via,
             source_ip, created_at) VALUES (?1, 6465, ?2, 'd', ?3, ?4, 'registration', '192.0.2.7:4711', 1)",
        (host, name, clock::now_ms() - seconds_ago * 1000, is_public),
    )
    .unwrap();
}

/// Something that listens and answers as a test wants it to.
struct Target {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Target {
    /// Each connection is given to `answer`, then read until the other side ends it.
    fn new(answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, heard): (Arc<AtomicUsize>, Arc<Mutex<Vec<u8>>>) = Default::default();
        let (counted, noted, answer) = (Arc::clone(&connections), Arc::clone(&heard), Arc::new(answer));
        superchat::supervise::spawn("target", move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                let (mut stream, noted, answer) = (stream.unwrap(), Arc::clone(&noted), Arc::clone(&answer));
                superchat::supervise::spawn("answer", move || {
                    if answer(&mut stream).is_err() {
                        return;
                    }
                    let mut chunk = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut chunk) {
                        noted.lock().unwrap().extend_from_slice(&chunk[..count]);
                    }
                })
                .unwrap();
            }
        })
        .unwrap();
        Self { address, connections, heard }
    }

    /// Says nothing, ever.
    fn silent() -> Self {
        Self::new(|_| Ok(()))
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

fn frame_of<'m>(code: u8, message: &impl Wire<'m>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_message(&mut bytes, code, message).unwrap();
    bytes
}

/// What every server says first.
fn greeting() -> Vec<u8> {
    let config = ServerConfig {
        protocol_version: 2,
        max_message_rate: 10,
        max_channel_creates: 5,
        inactive_cleanup_days: 90,
        max_connections_per_ip: 10,
        max_message_length: 4096,
        max_thread_subscriptions: 50,
        max_channel_subscriptions: 10,
        directory_enabled: true,
    };
    frame_of(ServerConfig::CODE, &config)
}

/// The next frame's type and payload.
fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body)?;
    Ok((body[1], body.split_off(3)))
}

/// Greets, and goes on to answer the challenge, which it is given.
fn greeted(
    answer: impl Fn(&mut TcpStream, [u8; 8]) -> std::io::Result<()> + Send + Sync + 'static,
) -> impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static {
    move |stream| {
        stream.write_all(&greeting())?;
        let (code, challenge) = read_frame(stream)?;
        assert_eq!(code, 0x9E, "a directory asks for proof first");
        answer(stream, challenge.try_into().unwrap())
    }
}

/// VERIFY_RESPONSE.
fn response(challenge: [u8; 8]) -> Vec<u8> {
    [&[0, 0, 0, 11, 2, 0x58, 0][..], &challenge].concat()
}
