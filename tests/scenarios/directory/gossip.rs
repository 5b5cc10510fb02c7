//! What directories hear of each other (BEHAVIOUR.md 6.7), and that hearing is not believing.

use std::io::Write as _;
use std::net::SocketAddr;

use superchat::wire::codec::List;
use superchat::wire::records::ServerEntry;
use superchat::wire::server::ServerList;

use super::super::steps::{operator, rows};
use super::{
    IN_PROGRESS, Target, frame_of, greeting, insert, is_listed, listed, read_frame, register, registration, response,
    settings, wait,
};
use crate::support::{Server, Settings};

/// Asks around every few seconds.
fn curious() -> Settings {
    settings().set("discovery", "gossip_interval_seconds", 6)
}

#[test]
fn a_directory_lists_what_another_one_lists_once_it_has_looked() {
    let third = Server::start(Settings::new().set("discovery", "directory_enabled", false));
    let second = Server::start(settings().set("discovery", "gossip_interval_seconds", 0));
    let first = Server::start(curious());
    let mut at_second = second.client();
    assert_eq!(register(&mut at_second, registration(third.address())), IN_PROGRESS);
    // Nobody is there.
    insert(&operator(&second), "127.0.0.9", "A ghost", 1, true);
    wait("the third server", || is_listed(&mut at_second, third.address()).then_some(()));

    let mut at_first = first.client();
    register(&mut at_first, registration(second.address()));
    wait("what the second knows", || is_listed(&mut at_first, third.address()).then_some(()));
    first.await_line("Server not listed: 127.0.0.9:6465: cannot connect");
    assert_eq!(listed(&mut at_first).len(), 2);
    let learnt =
        rows(&first, "SELECT port, discovered_via, source_ip, name FROM DiscoveredServer ORDER BY id DESC LIMIT 1");
    assert_eq!(learnt, [[&third.address().port().to_string(), "gossip", "NULL", "Second"]]);
    assert!(
        listed(&mut at_second).iter().all(|entry| entry["port"] != first.address().port()),
        "who asks tells nothing"
    );
}

fn entry(address: SocketAddr, name: &[u8]) -> ServerEntry<'_> {
    ServerEntry {
        hostname: b"127.0.0.1",
        port: address.port(),
        name,
        description: b"",
        user_count: 1,
        max_users: 0,
        uptime_seconds: 1,
        is_public: true,
        channel_count: 1,
    }
}

#[test]
fn a_directory_that_lies_costs_a_few_looks() {
    let victims: Vec<_> = (0..3).map(|_| Target::silent()).collect();
    let addresses: Vec<_> = victims.iter().map(|victim| victim.address).collect();
    let liar = Target::new(move |stream| {
        stream.write_all(&greeting())?;
        let (code, payload) = read_frame(stream)?;
        if code == 0x9E {
            return stream.write_all(&response(payload.try_into().unwrap()));
        }
        assert_eq!(code, 0x55, "a listed directory is asked for its list");
        let mut servers: Vec<_> = addresses.iter().flat_map(|address| vec![entry(*address, b"x"); 100]).collect();
        // Names that no row could hold, and far more servers than anybody looks at.
        servers.push(ServerEntry { hostname: b"a b", ..entry(addresses[0], b"x") });
        servers.push(ServerEntry { port: 0, ..entry(addresses[0], b"x") });
        servers.push(entry(addresses[0], &[b'x'; 501]));
        stream.write_all(&frame_of(ServerList::CODE, &ServerList { servers: List(servers) }))
    });
    let directory = Server::start(curious());
    let mut client = directory.client();
    register(&mut client, registration(liar.address));
    wait("the liar's entry", || is_listed(&mut client, liar.address).then_some(()));
    for victim in &victims {
        directory.await_line(&format!("Server not listed: {}: no answer in time", victim.address));
        assert_eq!(victim.connections(), 1);
    }
    assert_eq!(listed(&mut client).len(), 1);
}

#[test]
fn a_list_that_cannot_be_read_is_left_and_the_teller_stays() {
    let garbled = Target::new(|stream| {
        stream.write_all(&greeting())?;
        let (code, payload) = read_frame(stream)?;
        match code {
            0x9E => stream.write_all(&response(payload.try_into().unwrap())),
            // A thousand servers in three bytes.
            _ => stream.write_all(&[0, 0, 0, 6, 2, 0x9B, 0, 3, 0xe8, 0]),
        }
    });
    let directory = Server::start(curious());
    let mut client = directory.client();
    register(&mut client, registration(garbled.address));
    directory.await_line("was not asked: its answer cannot be read");
    assert!(is_listed(&mut client, garbled.address));
}
