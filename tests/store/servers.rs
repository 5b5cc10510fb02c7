//! The servers of the directory: who is listed, who may change what is said of them, and how many there may be.

use superchat::limits::{SERVERS_MAX, SERVERS_PER_ADDRESS_MAX};
use superchat::store::command::{FoundServer, Heartbeat};
use superchat::store::query::ServerScope;
use superchat::store::{DiscoveredVia, ServerAddress, ServerRecord};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn ip(number: u8) -> IpAddr {
    [198, 51, 100, number].into()
}

fn address(host: &str) -> ServerAddress {
    ServerAddress { host: host.into(), port: 6465 }
}

fn found(host: &str, called: &str, registrant: Option<IpAddr>, is_own: bool) -> Command {
    let record = ServerRecord {
        address: address(host),
        name: name(called),
        description: name("about"),
        user_count: 3,
        max_users: 9,
        uptime_seconds: u64::MAX,
        is_public: true,
        channel_count: 5,
    };
    let via = if registrant.is_some() { DiscoveredVia::Registration } else { DiscoveredVia::Gossip };
    Command::ListServer(Box::new(FoundServer { record, via, registrant, is_own }))
}

fn heartbeat(host: &str, sender: IpAddr, is_own: bool) -> Command {
    let (user_count, uptime_seconds, channel_count) = (17, 86_400, 6);
    let address = address(host);
    Command::Heartbeat(Box::new(Heartbeat { address, user_count, uptime_seconds, channel_count, sender, is_own }))
}

fn servers(server: &Server, scope: ServerScope) -> Vec<ServerRecord> {
    match server.ask(Query::Servers { scope, limit: 500 }) {
        Answer::Servers(servers) => servers,
        other => panic!("{other:?}"),
    }
}

fn names(server: &Server, scope: ServerScope) -> Vec<String> {
    let shown = |record: ServerRecord| String::from_utf8(record.name.to_vec()).unwrap();
    servers(server, scope).into_iter().map(shown).collect()
}

fn interval(result: Result<Event, Refusal>) -> u32 {
    match result {
        Ok(Event::HeartbeatStored { interval_seconds }) => interval_seconds,
        other => panic!("{other:?}"),
    }
}

fn is_new(result: Result<Event, Refusal>) -> bool {
    match result {
        Ok(Event::ServerListed { is_new }) => is_new,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_that_is_silent_for_three_intervals_is_listed_no_more_and_comes_back_with_a_heartbeat() {
    let server = Server::new();
    assert!(is_new(server.write(found("a", "A", Some(ip(1)), true))));
    server.clock.pass(15 * MINUTE - Duration::from_millis(1));
    assert_eq!(names(&server, ServerScope::Public), ["A"]);
    server.clock.pass(Duration::from_millis(1));
    assert_eq!(names(&server, ServerScope::Public), [""; 0]);
    assert_eq!(names(&server, ServerScope::Known), ["A"], "it is remembered");
    assert_eq!(interval(server.write(heartbeat("a", ip(1), false))), 300);
    let [record] = &servers(&server, ServerScope::Public)[..] else { panic!("not listed") };
    assert_eq!((record.user_count, record.uptime_seconds, record.channel_count), (17, 86_400, 6));
    server.clock.pass(16 * MINUTE);
    server.write(Command::ConfirmServer { address: address("a") }).unwrap();
    assert_eq!(names(&server, ServerScope::Public), ["A"]);
    server.write(Command::ConfirmServer { address: address("b") }).unwrap();
    assert_eq!(names(&server, ServerScope::Known), ["A"], "what is not known is not made up");
}

#[test]
fn the_directory_outlives_a_restart_and_forgets_after_a_week() {
    let server = Server::new();
    server.write(found("a", "A", Some(ip(1)), true)).unwrap();
    server.write(found("b", "B", None, false)).unwrap();
    let server = server.restarted(None, |_| ());
    assert_eq!(names(&server, ServerScope::Listed), ["B", "A"]);
    assert_eq!(servers(&server, ServerScope::Listed)[0].uptime_seconds, i64::MAX.unsigned_abs());
    server.clock.pass(8 * 24 * 60 * MINUTE);
    let server = server.restarted(None, |_| ());
    server.eventually("the clean-up", || names(&server, ServerScope::Known).is_empty());
}

#[test]
fn others_confirm_a_listed_server_and_change_nothing_of_it() {
    let server = Server::new();
    server.write(found("a", "First", Some(ip(1)), false)).unwrap();
    server.clock.pass(10 * MINUTE);
    assert!(!is_new(server.write(found("a", "Forged", Some(ip(2)), false))));
    server.write(found("a", "Heard", None, false)).unwrap();
    assert_eq!(names(&server, ServerScope::Public), ["First"]);
    server.clock.pass(10 * MINUTE);
    assert_eq!(names(&server, ServerScope::Public), ["First"], "they proved that it is there");
    assert_eq!(server.refusal(heartbeat("a", ip(2), false)), Refusal::NotYours);

    server.write(found("a", "Second", Some(ip(1)), false)).unwrap();
    assert_eq!(names(&server, ServerScope::Public), ["Second"], "who registered it may");
    server.write(found("a", "Third", Some(ip(3)), true)).unwrap();
    assert_eq!(names(&server, ServerScope::Public), ["Third"], "and the machine itself");
    server.clock.pass(16 * MINUTE);
    server.write(found("a", "Fourth", Some(ip(2)), false)).unwrap();
    assert_eq!(names(&server, ServerScope::Public), ["Fourth"], "and anybody once it is listed no more");
}

#[test]
fn what_was_heard_of_belongs_to_nobody_but_its_machine() {
    let server = Server::new();
    server.write(found("a", "Heard", None, false)).unwrap();
    assert_eq!(server.refusal(heartbeat("a", ip(1), false)), Refusal::NotYours);
    assert_eq!(interval(server.write(heartbeat("a", ip(1), true))), 300);
    server.write(found("a", "Forged", Some(ip(1)), false)).unwrap();
    assert_eq!(names(&server, ServerScope::Public), ["Heard"]);
    assert_eq!(server.refusal(heartbeat("b", ip(1), true)), Refusal::ServerNotFound);
}

#[test]
fn one_registrant_has_so_many_servers_and_a_heartbeat_is_rarer_in_a_large_directory() {
    let server = Server::new();
    for number in 0..SERVERS_PER_ADDRESS_MAX {
        server.write(found(&format!("s{number}"), "x", Some(ip(1)), true)).unwrap();
    }
    assert_eq!(server.refusal(found("more", "x", Some(ip(1)), true)), Refusal::TooManyServers);
    assert!(!is_new(server.write(found("s0", "changed", Some(ip(1)), true))), "what is there may be changed");
    server.write(found("more", "x", Some(ip(2)), true)).unwrap();
    for number in SERVERS_PER_ADDRESS_MAX + 1..100 {
        server.write(found(&format!("s{number}"), "x", None, false)).unwrap();
    }
    assert_eq!(interval(server.write(heartbeat("s0", ip(1), false))), 600);
    server.clock.pass(29 * MINUTE);
    assert_eq!(names(&server, ServerScope::Listed), ["changed"], "three of its own intervals count");
}

#[test]
fn an_ipv6_network_is_one_registrant_and_so_is_an_address_with_whatever_port() {
    let insert = |opened: &Opened, of: &str, source: fn(u16) -> String| {
        for number in 0..SERVERS_PER_ADDRESS_MAX {
            let insert =
                "INSERT INTO DiscoveredServer (hostname, port, name, description, last_heartbeat, discovered_via,
                source_ip, created_at) VALUES (?1 || ?2, 6465, 'x', '', 1, 'registration', ?3, 1)";
            opened.writer.execute(insert, params![of, number, source(number)]).unwrap();
        }
    };
    let server = Server::prepared(|opened| {
        insert(opened, "six", |number| format!("[2001:db8:1:2::{number:x}]:51234"));
        insert(opened, "four", |number| format!("198.51.100.1:{}", 50_000 + number));
    });
    let from = |source: &str| found(source, "x", Some(source.parse().unwrap()), true);
    assert_eq!(server.refusal(from("2001:db8:1:2:ffff::9")), Refusal::TooManyServers);
    assert!(is_new(server.write(from("2001:db8:1:3::1"))));
    assert_eq!(server.refusal(from("198.51.100.1")), Refusal::TooManyServers);
    assert!(is_new(server.write(from("198.51.100.2"))));
}

#[test]
fn a_full_directory_forgets_a_silent_server_and_refuses_where_there_is_none() {
    let fill = |opened: &Opened, at: i64| {
        let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
            INSERT INTO DiscoveredServer (hostname, port, name, description, last_heartbeat, discovered_via, created_at)
            SELECT 's' || i, 6465, 's' || i, '', ?2 + i, 'registration', 1 FROM n";
        opened.writer.execute(insert, params![SERVERS_MAX, at]).unwrap();
    };
    let server = Server::prepared(|opened| fill(opened, START - 60_000));
    assert_eq!(server.refusal(found("new", "New", Some(ip(1)), true)), Refusal::TooManyServers);
    assert_eq!(interval(server.write(heartbeat("s5", ip(1), true))), 3600);
    server.clock.pass(16 * MINUTE);
    assert!(is_new(server.write(found("new", "New", Some(ip(1)), true))));
    let known = match server.ask(Query::Servers { scope: ServerScope::Known, limit: u16::MAX }) {
        Answer::Servers(servers) => servers,
        other => panic!("{other:?}"),
    };
    assert_eq!(known.len(), usize::from(SERVERS_MAX));
    assert!(known.iter().all(|record| &*record.address.host != "s1"), "the one that was silent for longest went");
}
