//! LIST_SERVERS, REGISTER_SERVER, HEARTBEAT as a client meets them, and `/servers.json` (BEHAVIOUR.md 6.1 to 6.4, 6.6).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;
use superchat::wire::client::{Heartbeat, ListServers, RegisterServer, VerifyRegistration, VerifyResponse};

use super::super::steps::{items, operator};
use super::{
    HERE, IN_PROGRESS, Target, client_from, elsewhere, greeted, heartbeat, insert, is_listed, listed, register,
    registration, response, settings, wait,
};
use crate::support::Server;
use crate::support::server::free_port;

/// A frame of this type with a payload nobody can read.
fn unreadable(code: u8) -> Vec<u8> {
    vec![0, 0, 0, 4, 2, code, 0, 0xff]
}

#[test]
fn others_are_listed_behind_the_directory_newest_heartbeat_first() {
    let server = Server::start(settings());
    let operator = operator(&server);
    insert(&operator, "b.example.org", "older", 200, true);
    insert(&operator, "a.example.org", "newest", 100, true);
    insert(&operator, "c.example.org", "oldest", 890, true);
    insert(&operator, "d.example.org", "silent", 910, true);
    insert(&operator, "e.example.org", "closed", 50, false);
    insert(&operator, "", "nowhere", 50, true);
    let mut client = server.client();
    let names: Vec<_> = listed(&mut client).iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["newest", "older", "oldest"]);
    let first = items(&client.ask(ListServers { limit: 1 }, "SERVER_LIST"), "servers");
    assert_eq!((first.len(), &first[1]["name"]), (2, &Value::from("newest")), "the directory is not counted");
}

#[test]
fn a_list_has_a_hundred_entries_or_as_many_as_asked_for_up_to_five_hundred() {
    let server = Server::start(settings());
    let operator = operator(&server);
    for number in 0..600 {
        // The existing server stores texts of any length.
        insert(&operator, &format!("s{number}.example.org"), &"\u{1f642}".repeat(1000), number / 10, true);
    }
    let mut client = server.client();
    for (limit, expected) in [(0, 100), (1, 1), (100, 100), (499, 499), (500, 500), (501, 500), (65_535, 500)] {
        let servers = items(&client.ask(ListServers { limit }, "SERVER_LIST"), "servers");
        assert_eq!(servers.len(), expected + 1, "{limit}");
        assert_eq!(servers[1]["name"], "\u{1f642}".repeat(125), "a long text is cut between two characters");
    }
}

#[test]
fn without_a_directory_the_list_is_empty_and_nobody_registers() {
    let server = Server::start(settings().set("discovery", "directory_enabled", false));
    let mut client = server.client();
    assert_eq!(client.config["directory_enabled"], false);
    assert!(items(&client.ask(ListServers { limit: 5 }, "SERVER_LIST"), "servers").is_empty());
    client.send_raw(&unreadable(0x55));
    assert!(items(&client.expect_reply("SERVER_LIST"), "servers").is_empty());
    client.send(registration(server.address()));
    assert_eq!(client.expect_error(1001), "Directory mode not enabled on this server");
    client.send(heartbeat(server.address(), 1));
    assert_eq!(client.expect_error(1001), "Directory mode not enabled on this server");
    for code in [0x56, 0x57] {
        client.send_raw(&unreadable(code));
        assert_eq!(client.expect_error(1001), "Directory mode not enabled on this server");
    }
    let proof = client.ask(VerifyRegistration { challenge: 7 }, "VERIFY_RESPONSE");
    assert_eq!(proof["challenge"], "7", "it proves itself all the same");
    server.await_line("Directory mode disabled");
}

#[test]
fn unreadable_requests_and_stray_proofs_are_told_so() {
    let server = Server::start(settings());
    server.await_line("Directory mode enabled (servers can register)");
    let mut client = server.client();
    for code in [0x55, 0x56, 0x57] {
        client.send_raw(&unreadable(code));
        assert_eq!(client.expect_error(1000), "Invalid message format");
    }
    client.send(VerifyResponse { challenge: 1 });
    assert_eq!(client.expect_error(6000), "No pending verification");
}

#[test]
fn a_registration_names_a_machine_and_a_port_and_is_no_novel() {
    let server = Server::start(settings());
    let mut client = server.client();
    let plain = registration(server.address());
    let long = [b'x'; 501];
    let refused: [(RegisterServer<'_>, &str); 8] = [
        (RegisterServer { hostname: b"", ..plain.clone() }, "Invalid hostname or port"),
        (RegisterServer { port: 0, ..plain.clone() }, "Invalid hostname or port"),
        (RegisterServer { hostname: b"a b", ..plain.clone() }, "Invalid hostname or port"),
        (RegisterServer { hostname: b"http://example.org/", ..plain.clone() }, "Invalid hostname or port"),
        (RegisterServer { hostname: b"\xff\xfe", ..plain.clone() }, "Invalid hostname or port"),
        (RegisterServer { hostname: &[b'a'; 254], ..plain.clone() }, "Invalid hostname or port"),
        (RegisterServer { name: &long, ..plain.clone() }, "Name or description too long (max 500 bytes)"),
        (RegisterServer { description: &long, ..plain.clone() }, "Name or description too long (max 500 bytes)"),
    ];
    for (registration, text) in refused {
        assert_eq!(register(&mut client, registration.clone()), text, "{registration:?}");
    }
}

#[test]
fn one_address_registers_thirty_times_an_hour_on_however_many_connections() {
    let server = Server::start(settings());
    let mut client = server.client();
    for _ in 0..28 {
        assert_eq!(
            register(&mut client, RegisterServer { port: 0, ..registration(server.address()) }),
            "Invalid hostname or port"
        );
    }
    // What cannot be read counts as well: the limit stands before reading.
    client.send_raw(&unreadable(0x56));
    client.expect_error(1000);
    let mut another = server.client();
    register(&mut another, RegisterServer { port: 0, ..registration(server.address()) });
    for client in [&mut client, &mut another] {
        assert_eq!(register(client, registration(server.address())), "Rate limit exceeded (30 requests/hour)");
        client.send_raw(&unreadable(0x56));
        assert_eq!(client.expect_reply("REGISTER_ACK")["message"], "Rate limit exceeded (30 requests/hour)");
    }
    assert_eq!(
        register(&mut client_from(&server, elsewhere(2)), RegisterServer { port: 0, ..registration(server.address()) }),
        "Invalid hostname or port"
    );
}

#[test]
fn a_verified_server_is_listed_as_it_described_itself_and_as_its_heartbeats_say() {
    let server = Server::start(settings());
    let target = Target::new(greeted(|stream, challenge| stream.write_all(&response(challenge))));
    let mut client = server.client();
    client.send(heartbeat(target.address, 3));
    assert_eq!(client.expect_error(4000), "Server not registered");
    assert_eq!(register(&mut client, registration(target.address)), IN_PROGRESS);
    let entry = wait("the entry", || listed(&mut client).pop());
    for (field, value) in [
        ("hostname", Value::from("127.0.0.1")),
        ("port", target.address.port().into()),
        ("name", "Second".into()),
        ("description", "\u{fc}ber \u{1f642}".into()),
        ("user_count", 0.into()),
        ("max_users", 250.into()),
        ("uptime_seconds", "0".into()),
        ("is_public", true.into()),
        ("channel_count", 5.into()),
    ] {
        assert_eq!(entry[field], value, "{field}");
    }
    assert_eq!(client.ask(heartbeat(target.address, 17), "HEARTBEAT_ACK")["heartbeat_interval"], 300);
    let entry = listed(&mut client).pop().unwrap();
    let counts = (&entry["user_count"], &entry["uptime_seconds"], &entry["channel_count"]);
    assert_eq!(counts, (&17.into(), &"86400".into(), &6.into()));
    let (via, source): (String, String) = operator(&server)
        .query_row("SELECT discovered_via, source_ip FROM DiscoveredServer", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    assert_eq!((via.as_str(), source.as_str()), ("registration", "127.0.0.1"));
}

#[test]
fn heartbeats_are_taken_from_who_registered_the_server_and_from_where_it_was_found() {
    let server = Server::start(settings());
    let target = Target::new(greeted(|stream, challenge| stream.write_all(&response(challenge))));
    let mut registrant = client_from(&server, elsewhere(2));
    register(&mut registrant, registration(target.address));
    let mut client = client_from(&server, HERE);
    wait("the entry", || is_listed(&mut client, target.address).then_some(()));
    for sender in [&mut registrant, &mut client] {
        sender.ask(heartbeat(target.address, 4), "HEARTBEAT_ACK");
    }
    let mut stranger = client_from(&server, elsewhere(3));
    stranger.send(heartbeat(target.address, 1_000_000));
    assert_eq!(stranger.expect_error(3000), "Not authorized for this server");
    assert_eq!(listed(&mut client)[0]["user_count"], 4);
    stranger.send(Heartbeat { hostname: b"127.0.0.9", ..heartbeat(target.address, 1) });
    assert_eq!(stranger.expect_error(4000), "Server not registered");
}

#[test]
fn what_registers_itself_here_is_not_listed_twice() {
    let server = Server::start(settings());
    let mut client = server.client();
    assert_eq!(register(&mut client, registration(server.address())), IN_PROGRESS);
    server.await_line("it is this server");
    assert!(listed(&mut client).is_empty());
}

#[test]
fn servers_json_shows_what_clients_are_told() {
    let http = free_port();
    let server = Server::start(settings().set("server", "http_port", http));
    let operator = operator(&server);
    for number in 0..150 {
        insert(&operator, &format!("s{number}.example.org"), &format!("Server {number}"), number, true);
    }
    let mut stream = TcpStream::connect((HERE, http)).unwrap();
    stream.write_all(b"GET /servers.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-type: application/json"),
        "{head}"
    );
    let body: Value = serde_json::from_str(body).unwrap();
    let servers = body["servers"].as_array().unwrap();
    assert_eq!((&body["count"], servers.len()), (&101.into(), 101));
    assert_eq!(servers[0]["Name"], "The directory");
    assert_eq!((&servers[1]["Hostname"], &servers[1]["Name"]), (&"s0.example.org".into(), &"Server 0".into()));
    assert_eq!((&servers[1]["Port"], &servers[1]["IsPublic"]), (&6465.into(), &true.into()));
}

#[test]
fn a_directory_of_the_existing_server_is_kept() {
    let mut server = Server::start(settings());
    insert(&operator(&server), "127.0.0.9", "from before", 10, true);
    server.kill9();
    server.resume();
    assert_eq!(listed(&mut server.client())[0]["name"], "from before");
}
