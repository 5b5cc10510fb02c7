//! Connecting back (BEHAVIOUR.md 6.3): what targets may do to a directory, and what nobody can make a directory do.

use std::io::{Result, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use superchat::wire::client::{Disconnect, RegisterServer};
use superchat::wire::server::{Error, NewMessage, Pong, ServerPresence};

use super::super::steps::operator;
use super::{
    IN_PROGRESS, Target, client_from, elsewhere, frame_of, greeted, greeting, insert, is_listed, listed, read_frame,
    register, registration, response, settings, wait,
};
use crate::support::Server;
use crate::support::client::PATIENCE;

/// Registers `target` with a directory of its own, which must not list it and says `reason` in its log.
fn check_refused(target: &Target, reason: &str) {
    let server = Server::start(settings());
    let mut client = server.client();
    assert_eq!(register(&mut client, registration(target.address)), IN_PROGRESS);
    server.await_line(&format!("Server not listed: {}: {reason}", target.address));
    assert!(listed(&mut client).is_empty());
    assert_eq!(target.connections(), 1, "it is not tried again by itself");
}

#[test]
fn a_target_that_closes_is_not_listed() {
    check_refused(&Target::new(|_| Err(std::io::ErrorKind::Other.into())), "it closed the connection");
}

#[test]
fn a_target_that_speaks_another_protocol_is_told_nothing() {
    let target = Target::new(|stream| stream.write_all(b"220 mail.example.org ESMTP\r\n"));
    check_refused(&target, "it does not speak the protocol");
    assert!(target.heard().is_empty(), "whoever it is, nothing was said to it");
}

#[test]
fn a_target_that_says_something_else_first_is_no_server() {
    let target = Target::new(|stream| stream.write_all(&frame_of(Pong::CODE, &Pong { client_timestamp: 1 })));
    check_refused(&target, "it answers something else");
    assert!(target.heard().is_empty());
}

#[test]
fn a_frame_too_large_for_a_greeting_is_not_waited_for() {
    check_refused(&Target::new(|stream| stream.write_all(&[0, 0x10, 0, 0, 2, 0x98])), "it says too much");
}

#[test]
fn a_flood_of_frames_ends_with_the_budget() {
    let flood = |stream: &mut TcpStream, _| loop {
        stream.write_all(&frame_of(Pong::CODE, &Pong { client_timestamp: 1 }).repeat(100))?;
    };
    check_refused(&Target::new(greeted(flood)), "it says too much");
}

#[test]
fn a_block_that_claims_to_unpack_to_a_megabyte_is_refused() {
    let bomb = |stream: &mut TcpStream| stream.write_all(&[0, 0, 0, 9, 2, 0x98, 1, 0, 0x10, 0, 0, 0x1f, 0]);
    check_refused(&Target::new(bomb), "it does not speak the protocol");
}

#[test]
fn a_wrong_number_proves_nothing() {
    let guess = |stream: &mut TcpStream, challenge: [u8; 8]| {
        stream.write_all(&response((u64::from_be_bytes(challenge) ^ 1).to_be_bytes()))?;
        stream.write_all(&response(challenge))
    };
    check_refused(&Target::new(greeted(guess)), "it answers something else");
}

#[test]
fn an_error_is_an_answer_too_and_stays_on_its_line() {
    let refuse = |stream: &mut TcpStream, _| {
        stream.write_all(&frame_of(Error::CODE, &Error { error_code: 1001, message: b"no\n\x1b[31mforged" }))
    };
    check_refused(&Target::new(greeted(refuse)), "error 1001: no  [31mforged");
}

#[test]
fn silent_and_slow_targets_are_given_up_after_ten_seconds_each() {
    let server = Server::start(settings());
    let mut client = server.client();
    let trickle = |stream: &mut TcpStream| -> Result<()> {
        for byte in greeting() {
            stream.write_all(&[byte])?;
            std::thread::sleep(Duration::from_secs(2));
        }
        Ok(())
    };
    let targets = [Target::silent(), Target::new(trickle), Target::new(greeted(|_, _| Ok(())))];
    for target in &targets {
        assert_eq!(register(&mut client, registration(target.address)), IN_PROGRESS);
    }
    for target in &targets {
        server.await_line(&format!("Server not listed: {}: no answer in time", target.address));
    }
    assert!(listed(&mut client).is_empty());
    assert!(targets[0].heard().is_empty() && targets[1].heard().is_empty());
}

#[test]
fn what_others_say_meanwhile_is_passed_over_and_the_server_is_told_goodbye() {
    let busy = |stream: &mut TcpStream, challenge: [u8; 8]| {
        let person = ServerPresence {
            session_id: superchat::ids::SessionId(1),
            nickname: b"bob",
            is_registered: false,
            user_id: None,
            user_flags: 0,
            online: true,
        };
        stream.write_all(&frame_of(ServerPresence::CODE, &person).repeat(50))?;
        // A type from the future.
        stream.write_all(&[0, 0, 0, 5, 2, 0xFE, 0, 1, 2])?;
        let posted = NewMessage {
            message_id: superchat::ids::MessageId(1),
            channel_id: superchat::ids::ChannelId(1),
            subchannel_id: None,
            parent_id: None,
            author_user_id: None,
            author_nickname: b"~bob",
            content: &[b'x'; 4096],
            created_at: 1,
            edited_at: None,
            reply_count: 0,
        };
        stream.write_all(&frame_of(NewMessage::CODE, &posted))?;
        stream.write_all(&response(challenge))
    };
    let target = Target::new(greeted(busy));
    let server = Server::start(settings());
    let mut client = server.client();
    register(&mut client, registration(target.address));
    wait("the entry", || is_listed(&mut client, target.address).then_some(()));
    let goodbye = frame_of(Disconnect::CODE, &Disconnect { reason: Some(b"Directory verification complete") });
    wait("the goodbye", || (target.heard() == goodbye).then_some(()));
    server.await_line(&format!("Server listed: {}", target.address));
}

#[test]
fn networks_of_ones_own_are_not_dialled_and_nobody_learns_it() {
    let server = Server::start(settings().set("discovery", "allow_private_servers", false));
    let target = Target::new(greeted(|stream, challenge| stream.write_all(&response(challenge))));
    let hosts = [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "10.0.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "fe80::1",
        "fd00::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
    ];
    for (number, host) in (10..).zip(hosts) {
        let mut client = client_from(&server, elsewhere(number));
        let registration = RegisterServer { hostname: host.as_bytes(), ..registration(target.address) };
        assert_eq!(register(&mut client, registration), IN_PROGRESS, "{host}");
    }
    let refusals = || server.output().matches("its name leads to addresses that are not dialled").count();
    // One is the first in another spelling.
    wait("all refusals", || (refusals() == hosts.len() - 1).then_some(()));
    assert!(listed(&mut server.client()).is_empty());
    assert_eq!(target.connections(), 0);
}

#[test]
fn the_answer_is_the_same_whatever_is_at_the_target() {
    let server = Server::start(settings());
    let mut client = server.client();
    let open = Target::new(greeted(|stream, challenge| stream.write_all(&response(challenge))));
    let other = Target::new(|stream| stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n"));
    let silent = Target::silent();
    let closed = crate::support::server::free_port();
    let closed = std::net::SocketAddr::new(open.address.ip(), closed);
    for _again in 0..2 {
        for target in [open.address, other.address, silent.address, closed] {
            assert_eq!(register(&mut client, registration(target)), IN_PROGRESS, "{target}");
        }
    }
    server.await_line(&format!("Server not listed: {closed}: cannot connect"));
}

#[test]
fn a_target_is_dialled_once_however_often_it_registers_and_by_whom() {
    let server = Server::start(settings());
    let silent = Target::silent();
    let quick = Target::new(greeted(|stream, challenge| stream.write_all(&response(challenge))));
    let mut clients = [client_from(&server, elsewhere(2)), client_from(&server, elsewhere(3))];
    for _ in 0..5 {
        for client in &mut clients {
            for target in [&silent, &quick] {
                assert_eq!(register(client, registration(target.address)), IN_PROGRESS);
            }
        }
    }
    // Other names for the same target.
    for name in [&b"LOCALHOST"[..], b"localhost", b"127.1"] {
        register(&mut clients[0], RegisterServer { hostname: name, ..registration(silent.address) });
    }
    wait("the entry", || is_listed(&mut clients[0], quick.address).then_some(()));
    server.await_line("its target is being dialled, or was too often");
    assert_eq!((silent.connections(), quick.connections()), (1, 1));
}

#[test]
fn eight_are_verified_at_once_and_one_registrant_cannot_fill_the_queue() {
    let server = Server::start(settings());
    let targets: Vec<_> = (0..20).map(|_| Target::silent()).collect();
    let mut client = client_from(&server, elsewhere(2));
    for (place, target) in targets.iter().take(9).enumerate() {
        let expected = if place < 8 { IN_PROGRESS } else { "Server is busy. Try again." };
        assert_eq!(register(&mut client, registration(target.address)), expected);
    }
    let mut another = client_from(&server, elsewhere(3));
    for target in targets.iter().skip(9).take(8) {
        assert_eq!(register(&mut another, registration(target.address)), IN_PROGRESS);
    }
    let dialled = || targets.iter().map(Target::connections).sum::<usize>();
    wait("eight connections", || (dialled() == 8).then_some(()));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(dialled(), 8, "the others wait for a place");
    assert_eq!(targets[8].connections(), 0);
    wait("the next eight, once the first were given up", || (dialled() == 16).then_some(()));
}

#[test]
fn one_machine_is_listed_so_many_times_and_no_more() {
    let server = Server::start(settings());
    let machine = || Target::new(greeted(|stream, challenge| stream.write_all(&response(challenge))));
    let targets: Vec<_> = (0..33).map(|_| machine()).collect();
    let mut clients = [client_from(&server, elsewhere(2)), client_from(&server, elsewhere(3))];
    for (place, target) in targets.iter().enumerate() {
        assert_eq!(register(&mut clients[place % 2], registration(target.address)), IN_PROGRESS);
        if place < 32 {
            wait("the entry", || is_listed(&mut clients[0], target.address).then_some(()));
        }
    }
    let last = targets[32].address;
    server.await_line(&format!("Server not listed: {last}: too many servers are listed at its address"));
    assert_eq!((listed(&mut clients[0]).len(), targets[32].connections()), (32, 0));
}

#[test]
fn a_listed_server_keeps_its_description_when_a_stranger_registers_it() {
    let mut server = Server::start(settings());
    let target = Target::new(greeted(|stream, challenge| stream.write_all(&response(challenge))));
    register(&mut server.client(), registration(target.address));
    let mut client = server.client();
    wait("the entry", || is_listed(&mut client, target.address).then_some(()));
    // What was verified lately is forgotten with the process, so that the next registration is looked at.
    server.kill9();
    server.resume();
    let mut stranger = client_from(&server, elsewhere(2));
    let forged = RegisterServer { name: b"Forged", ..registration(target.address) };
    wait("the check at the start", || (target.heard().len() >= 2 * 37).then_some(()));
    wait("the stranger's turn", || {
        register(&mut stranger, forged.clone());
        (target.connections() >= 3).then_some(())
    });
    wait("the stranger's verification", || (target.heard().len() >= 3 * 37).then_some(()));
    let mut client = server.client();
    assert_eq!(listed(&mut client)[0]["name"], "Second");
    let source: String =
        operator(&server).query_row("SELECT source_ip FROM DiscoveredServer", [], |row| row.get(0)).unwrap();
    assert_eq!(source, "127.0.0.1");
}

#[test]
fn a_server_stops_at_once_whatever_it_waits_for() {
    let mut server = Server::start(settings());
    let target = Target::silent();
    register(&mut server.client(), registration(target.address));
    wait("the connection", || (target.connections() == 1).then_some(()));
    let began = crate::support::clock::instant();
    assert_eq!(server.stop(), Some(0));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[test]
fn what_a_target_hears_is_a_challenge_and_a_goodbye() {
    let server = Server::start(settings());
    let target = Target::new(|stream| {
        stream.write_all(&greeting())?;
        let (code, challenge) = read_frame(stream)?;
        assert_eq!((code, challenge.len()), (0x9E, 8));
        stream.write_all(&response(challenge.try_into().unwrap()))?;
        let (code, reason) = read_frame(stream)?;
        assert_eq!(code, 0x11);
        assert!(reason.ends_with(b"Directory verification complete"));
        Ok(())
    });
    let mut client = server.client();
    register(&mut client, registration(target.address));
    wait("the entry", || is_listed(&mut client, target.address).then_some(()));
    assert!(target.heard().is_empty(), "nothing more");
}

/// Names that once led to a server of the attacker's can be pointed anywhere while their rows are still on the list.
#[test]
fn health_checks_of_what_was_not_found_there_count_for_the_machine() {
    let mut server = Server::start(settings());
    let victims: Vec<_> = (0..70).map(|_| Target::new(|_| Err(std::io::ErrorKind::Other.into()))).collect();
    let operator = operator(&server);
    for victim in &victims {
        insert(&operator, &victim.address.port().to_string(), "repointed", 100, true);
    }
    operator
        .execute("UPDATE DiscoveredServer SET port = CAST(hostname AS INTEGER), hostname = '127.0.0.1'", [])
        .unwrap();
    drop(operator);
    server.kill9();
    server.resume();
    let dialled = || victims.iter().map(Target::connections).sum::<usize>();
    wait("the health check", || (dialled() >= 60).then_some(()));
    // Those that are refused a connection take no time.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(dialled(), 60, "as for those who register");
}
