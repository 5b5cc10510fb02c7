//! BAN_IP and UNBAN_IP. Addresses of the loopback network stand for peers near and far.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::support::link::stream_from;
use crate::support::server::free_port;
use crate::support::{Incoming, Link};

/// A connection from an address of our choice.
fn connect_from(server: &Server, from: IpAddr) -> Link {
    Link::connect_from(from, server.address()).unwrap()
}

/// What a refused connection reads, in order.
fn farewell(link: &mut Link) -> Vec<(String, Value)> {
    let mut frames = Vec::new();
    while let Incoming::Frame(frame) = link.next(crate::support::client::PATIENCE) {
        let text = ["message", "reason"].map(|name| frame.fields.get(name).cloned());
        frames.push((frame.name, text.into_iter().flatten().next().unwrap_or_default()));
    }
    frames
}

fn refused() -> Vec<(String, Value)> {
    let text = || Value::from("Your IP address is banned");
    vec![("SERVER_CONFIG".into(), Value::Null), ("ERROR".into(), text()), ("DISCONNECT".into(), text())]
}

const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 5, 7));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 9, 9, 9));

#[test]
fn refusals_of_ban_ip() {
    let server = governed();
    let mut boss = boss(&server);
    let reason: &'static [u8] = vec![b'r'; 501].leak();
    check_failed(
        &mut boss,
        "IP_BANNED",
        [
            (ban_address("").into(), "IP/CIDR address required"),
            (ban_address("not an address").into(), "Invalid IP or CIDR address"),
            (ban_address("192.0.2.0/33").into(), "Invalid IP or CIDR address"),
            (ban_address("127.0.0.1").into(), "Cannot ban your own address"),
            (ban_address("127.0.0.0/8").into(), "Cannot ban your own address"),
            (ban_address("::ffff:127.0.0.1").into(), "Cannot ban your own address"),
            (ban_address("::ffff:0:0/96").into(), "Cannot ban your own address"),
            (BanIp { reason, ..ban_address("192.0.2.1") }.into(), "Reason must be at most 500 characters"),
        ],
    );
    check_failed(
        &mut boss,
        "IP_UNBANNED",
        [
            (unban_address("").into(), "IP/CIDR address required"),
            (unban_address("192.0.2.1").into(), "No active ban found for this IP"),
            (unban_address("nonsense").into(), "No active ban found for this IP"),
        ],
    );
    assert_eq!(rows(&server, "SELECT 1 FROM Ban"), [[""; 0]; 0]);
}

#[test]
fn a_banned_network_is_refused_at_the_door_and_its_sessions_end() {
    let server = governed();
    let mut boss = boss(&server);
    let mut inside = Client::over(connect_from(&server, NEAR));
    let mut outside = Client::over(connect_from(&server, FAR));
    banned(&mut boss, ban_address("127.0.5.0/24"), "IP_BANNED", "IP 127.0.5.0/24 banned successfully");
    let last: Vec<_> = inside.expect_close().into_iter().map(|frame| frame.name).collect();
    assert_eq!(last, ["ERROR", "DISCONNECT"]);
    assert_eq!(farewell(&mut connect_from(&server, NEAR)), refused());
    assert!(outside.quiet().is_empty());
    drop(Client::over(connect_from(&server, FAR)));

    let again = boss.ask(unban_address("127.0.5.0/24"), "IP_UNBANNED");
    assert_eq!(again["message"], "IP 127.0.5.0/24 unbanned successfully (1 bans removed)");
    drop(Client::over(connect_from(&server, NEAR)));
    let actions: Vec<_> = audit(&server).into_iter().map(|row| row[1..5].join(" ")).collect();
    assert_eq!(actions, ["ban_ip ip NULL 127.0.5.0/24", "unban_ip ip NULL 127.0.5.0/24"]);
    assert!(server.output().contains("Admin boss banned IP 127.0.5.0/24 (ban_id=1, reason=proxy)"));
}

#[test]
fn another_spelling_of_the_same_addresses_lifts_their_ban() {
    let server = governed();
    let mut boss = boss(&server);
    banned(&mut boss, ban_address("192.0.2.9/24"), "IP_BANNED", "IP 192.0.2.9/24 banned successfully");
    banned(&mut boss, ban_address("2001:db8:0::1"), "IP_BANNED", "IP 2001:db8:0::1 banned successfully");
    check_failed(&mut boss, "IP_UNBANNED", [(unban_address("192.0.2.9").into(), "No active ban found for this IP")]);
    assert_eq!(boss.ask(unban_address("192.0.2.0/24"), "IP_UNBANNED")["success"], true);
    assert_eq!(boss.ask(unban_address("2001:db8::1/128"), "IP_UNBANNED")["success"], true);
    assert!(bans(&mut boss, true).is_empty());
}

#[test]
fn a_ban_of_an_address_ends_by_the_clock_and_counts_after_a_restart() {
    let mut server = governed();
    let mut first = boss(&server);
    let text = NEAR.to_string();
    banned(&mut first, ban_address(&text), "IP_BANNED", &format!("IP {text} banned successfully"));
    assert_eq!(server.stop(), Some(0));
    server.resume();
    assert_eq!(farewell(&mut connect_from(&server, NEAR)), refused(), "the first connection after a start");
    assert_eq!(server.stop(), Some(0));
    operator(&server).execute("UPDATE Ban SET banned_until = 1", []).unwrap();
    server.resume();
    drop(Client::over(connect_from(&server, NEAR)));
}

#[test]
fn a_banned_address_is_refused_by_every_way_in() {
    let [http, ssh] = [(); 2].map(|()| free_port());
    let server =
        Server::start(settings().admins(&["boss"]).set("server", "http_port", http).set("server", "ssh_port", ssh));
    let mut boss = boss(&server);
    let at = |port| (Ipv4Addr::LOCALHOST, port).into();
    let mut before = Client::over(Link::connect_web_from(NEAR, at(http)).unwrap());
    let text = NEAR.to_string();
    banned(&mut boss, ban_address(&text), "IP_BANNED", &format!("IP {text} banned successfully"));
    let last: Vec<_> = before.expect_close().into_iter().map(|frame| frame.name).collect();
    assert_eq!(last, ["ERROR", "DISCONNECT"]);
    assert_eq!(farewell(&mut Link::connect_web_from(NEAR, at(http)).unwrap()), refused());
    let mut page = String::new();
    let mut stream = stream_from(NEAR, at(http)).unwrap();
    stream.write_all(b"GET /servers.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream.read_to_string(&mut page).unwrap();
    assert!(page.starts_with("HTTP/1.1 403 ") && page.ends_with("Your IP address is banned\n"), "{page}");
    // Before the handshake, without a word.
    let mut words = Vec::new();
    let mut stream = stream_from(NEAR, at(ssh)).unwrap();
    stream.read_to_end(&mut words).unwrap_or_default();
    assert_eq!(words, b"");
    drop(Client::over(Link::connect_web_from(FAR, at(http)).unwrap()));
}
