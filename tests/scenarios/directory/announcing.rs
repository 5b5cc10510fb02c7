//! Servers that announce themselves to each other (BEHAVIOUR.md 6.5): found, counted, lost and found again.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use superchat::wire::server::{Error, RegisterAck, VerifyRegistration};
use superchat::wire::{ClientMessage, client, records::Failed};

use super::super::steps::operator;
use super::{Target, frame_of, greeting, is_listed, listed, read_frame, settings, wait, wait_long};
use crate::support::{Server, Settings};

/// A heartbeat comes ten seconds after the registration.
const FIRST_HEARTBEAT: Duration = Duration::from_secs(30);

fn announced_to(directory: SocketAddr) -> Settings {
    Settings::new()
        .set("discovery", "public_hostname", "127.0.0.1")
        .set("discovery", "server_name", "Newcomer")
        .set("discovery", "server_description", "a server of its own")
        .set("discovery", "directory_enabled", false)
        .set("discovery", "max_users", 77)
        .argument("--announce-to")
        .argument(&directory.to_string())
}

/// As if nothing had been heard of anybody for a quarter of an hour and more.
fn age(directory: &Server) {
    let aged = operator(directory).execute("UPDATE DiscoveredServer SET last_heartbeat = last_heartbeat - 1000000", []);
    assert!(aged.unwrap() > 0);
}

#[test]
fn a_server_announces_itself_is_counted_lost_and_found_again() {
    let mut directory = Server::start(settings());
    let mut server = Server::start(announced_to(directory.address()));
    let mut client = directory.client();
    wait("the entry", || is_listed(&mut client, server.address()).then_some(()));
    let entry = listed(&mut client).remove(0);
    assert_eq!((&entry["name"], &entry["description"]), (&"Newcomer".into(), &"a server of its own".into()));
    assert_eq!((&entry["max_users"], &entry["channel_count"]), (&77.into(), &5.into()));
    server.await_line("Verification in progress...");

    let _people = [server.client_named("ann"), server.client_named("ben")];
    wait_long("a heartbeat", FIRST_HEARTBEAT, || (listed(&mut client)[0]["user_count"] == 2).then_some(()));
    server.await_line("lists this server, heartbeats every 300 s");

    // A directory that was killed has the list it had, and goes and looks.
    directory.kill9();
    directory.resume();
    assert!(is_listed(&mut directory.client(), server.address()));

    // One that was away for long finds out for itself who is still there.
    directory.stop();
    age(&directory);
    directory.resume();
    let mut client = directory.client();
    wait("the check at the start", || is_listed(&mut client, server.address()).then_some(()));

    // A server that is gone falls off the list, and is back with its next registration or heartbeat.
    server.stop();
    age(&directory);
    assert!(listed(&mut client).is_empty());
    server.resume();
    wait_long("its return", FIRST_HEARTBEAT, || is_listed(&mut client, server.address()).then_some(()));
}

#[test]
fn two_servers_announce_to_each_other() {
    let called = |name: &str| settings().set("discovery", "server_name", name);
    let to = |other: &Server| vec![other.address().to_string()];
    let mut first = Server::start(called("First"));
    let second = Server::start(called("Second").set("discovery", "announce_to", to(&first)));
    let names = |server: &Server| -> Vec<String> {
        let servers = server.client().ask(client::ListServers { limit: 0 }, "SERVER_LIST");
        servers["servers"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    wait("the second's entry", || (names(&first) == ["First", "Second"]).then_some(()));
    first.stop();
    first.reconfigure(called("First").set("discovery", "announce_to", to(&second)));
    first.resume();
    wait("the first's entry", || (names(&second) == ["Second", "First"]).then_some(()));
    assert_eq!(names(&first), ["First", "Second"], "the list outlives a restart");
}

#[test]
fn a_server_without_a_public_name_says_why_it_is_not_announced() {
    let directory = Target::silent();
    for hostname in ["", "localhost"] {
        let server = Server::start(announced_to(directory.address).set("discovery", "public_hostname", hostname));
        server.await_line("This server is not announced to directories:");
        server.client();
    }
    assert_eq!(directory.connections(), 0);
}

/// A server registers at a directory that says `answer`, notes `expected` in its log, and goes on.
fn check_answer(answer: Vec<u8>, expected: &str) {
    let directory = Target::new(move |stream| {
        stream.write_all(&greeting())?;
        let (code, payload) = read_frame(stream)?;
        let ClientMessage::RegisterServer(registration) = ClientMessage::read(code, &payload).unwrap() else {
            panic!("{code:#x} instead of a registration");
        };
        assert_eq!((registration.hostname, registration.name), (&b"127.0.0.1"[..], &b"Newcomer"[..]));
        stream.write_all(&answer)
    });
    let server = Server::start(announced_to(directory.address));
    server.await_line(expected);
    server.client_named("undisturbed");
}

#[test]
fn any_answer_to_a_registration_will_do() {
    let taken = RegisterAck { outcome: Err(Failed { message: b"Verification in progress..." }) };
    check_answer(frame_of(RegisterAck::CODE, &taken), "Announced to directory 127.0.0.1");
    let refused = RegisterAck { outcome: Err(Failed { message: b"Rate limit exceeded (30 requests/hour)\n" }) };
    check_answer(frame_of(RegisterAck::CODE, &refused), "refuses this server: Rate limit exceeded (30 requests/hour)");
    let error = Error { error_code: 1001, message: b"Directory mode not enabled on this server" };
    check_answer(frame_of(Error::CODE, &error), "Could not announce to directory 127.0.0.1");
}

#[test]
fn a_directory_that_misbehaves_is_left() {
    check_answer(vec![0x16, 3, 1, 2, 0], "it does not speak the protocol");
    check_answer(vec![0, 0x0f, 0xff, 0xff, 2, 0x9c, 0], "it says too much");
    check_answer(vec![0, 0, 0, 4, 2, 0x9c, 0, 7], "its answer cannot be read");
}

#[test]
fn a_directory_may_ask_for_proof_on_the_very_connection() {
    let directory = Target::new(|stream| {
        stream.write_all(&greeting())?;
        read_frame(stream)?;
        stream
            .write_all(&frame_of(VerifyRegistration::CODE, &VerifyRegistration { challenge: 0x0102_0304_0506_0708 }))?;
        let (code, proof) = read_frame(stream)?;
        assert_eq!((code, proof), (0x58, vec![1, 2, 3, 4, 5, 6, 7, 8]));
        let taken = RegisterAck { outcome: Err(Failed { message: b"proved" }) };
        stream.write_all(&frame_of(RegisterAck::CODE, &taken))
    });
    let server = Server::start(announced_to(directory.address));
    server.await_line("refuses this server: proved");
    wait("the goodbye", || directory.heard().ends_with(b"Registration complete").then_some(()));
}
