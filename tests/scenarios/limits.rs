//! How many may come: from one address and in all (BEHAVIOUR.md 1.10).

use serde_json::json;
use superchat::wire::client::{Disconnect, Ping};

use crate::support::client::PATIENCE;
use crate::support::{Client, Incoming, Server, Settings, clock};

/// Loopback counts like any other address.
pub(super) fn nobody_exempt() -> Settings {
    Settings::new().set("limits", "exempt_networks", json!(["192.0.2.0/24"]))
}

/// A new connection, unless it is turned away.
fn enter(server: &Server) -> Option<Client> {
    let mut client = server.client();
    client.send(Ping { timestamp: 1 });
    matches!(client.next(), Incoming::Frame(frame) if frame.name == "PONG").then_some(client)
}

/// A new connection as soon as there is a place: those that ended have to be noticed first.
fn enter_in_time(server: &Server) -> Client {
    clock::poll(PATIENCE, || enter(server)).expect("no place is given back")
}

fn assert_turned_away(server: &Server, code: u16, text: &str) {
    let mut client = server.client();
    assert_eq!(client.expect_error(code), text);
    assert_eq!(client.expect_reply("DISCONNECT")["reason"], text);
    assert_eq!(client.expect_close(), []);
}

fn assert_address_full(server: &Server) {
    assert_turned_away(server, 5003, "Too many connections from your address");
}

fn end_by_goodbye(mut client: Client) {
    client.send(Disconnect { reason: None });
    client.expect_close();
}

fn end_by_violation(mut client: Client) {
    client.send_raw(&[0; 4]);
    client.expect_close();
}

#[test]
fn one_connection_too_many_from_an_address_is_turned_away_with_the_reason() {
    let server = Server::start(nobody_exempt().set("limits", "max_connections_per_ip", 3));
    let mut clients = [(); 3].map(|()| enter_in_time(&server));
    // Who is turned away takes no place, so it makes no difference how often.
    (0..5).for_each(|_| assert_address_full(&server));
    assert!(clients.iter_mut().all(|client| client.quiet().is_empty()), "those who are in stay");
}

#[test]
fn a_place_is_given_back_however_the_session_ends() {
    let server = Server::start(nobody_exempt().set("limits", "max_connections_per_ip", 2));
    let _stays = enter_in_time(&server);
    let ends: [fn(Client); 4] = [Client::hang_up, drop, end_by_goodbye, end_by_violation];
    for end in ends {
        let client = enter_in_time(&server);
        assert_address_full(&server);
        end(client);
    }
    enter_in_time(&server);
}

#[test]
fn the_limit_per_address_counts_nobody_when_it_is_off_or_the_network_is_exempt() {
    let off = nobody_exempt().set("limits", "max_connections_per_ip", 0);
    let exempt_by_default = Settings::new().set("limits", "max_connections_per_ip", 1);
    for settings in [off, exempt_by_default] {
        let server = Server::start(settings);
        let clients: Vec<_> = (0..20).map(|_| enter(&server).expect("turned away")).collect();
        assert_eq!(clients.len(), 20);
    }
}

#[test]
fn a_full_server_turns_everybody_away_until_somebody_leaves() {
    let server = Server::start(Settings::new().set("discovery", "max_users", 2));
    let clients = [(); 2].map(|()| enter_in_time(&server));
    assert_turned_away(&server, 9002, "Server is full");
    for client in clients {
        client.hang_up();
        let _newcomer = enter_in_time(&server);
    }
}
