//! Every request of the wire table has a handler: a real one of each is sent to a real server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use superchat::wire::ClientMessage;
use superchat::wire::client::Ping;
use superchat::wire::json::from_hex;

use super::steps::{registered, settings};
use crate::support::{Client, Incoming, Server};

/// The answer to every unknown type (BEHAVIOUR.md 0.2).
const UNKNOWN: &str = "Unsupported message type";

/// A frame of each type that a client may send, from the protocol's vectors.
fn requests() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vectors");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let mut requests = BTreeMap::new();
    for file in files.filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with("malformed")) {
        let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for entry in entries.iter().filter(|entry| entry["direction"] == "c2s") {
            let (Some(name), Some(hex)) = (entry["type"].as_str(), entry["frame_hex"].as_str()) else { continue };
            requests.entry(name.to_owned()).or_insert_with(|| from_hex(hex).unwrap());
        }
    }
    requests
}

/// Whether the server knows the request: any answer but one, and none, will do.
fn is_served(client: &mut Client, request: &[u8]) -> bool {
    const FENCE: i64 = i64::MIN;
    client.send_raw(request);
    client.send(Ping { timestamp: FENCE });
    let (fence, mut served) = (FENCE.to_string(), true);
    loop {
        match client.next() {
            Incoming::Frame(frame) if frame.name == "ERROR" => served &= frame.fields["message"] != UNKNOWN,
            Incoming::Frame(frame) if frame.name == "PONG" && frame.fields["client_timestamp"] == fence => {
                return served;
            }
            Incoming::Frame(_) => {}
            Incoming::Closed => return served,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_request_of_the_wire_table_is_served() {
    // An account for each, because some requests leave little of the one that they come from.
    let account = |code: &u8| format!("admin-{code}");
    let accounts: Vec<_> = ClientMessage::TABLE.iter().map(|(code, _)| account(code)).collect();
    let server = Server::start(settings().admins(&accounts.iter().map(String::as_str).collect::<Vec<_>>()));
    let requests = requests();
    let mut unserved = BTreeSet::new();
    for (code, name) in ClientMessage::TABLE {
        let mut client = registered(&server, &account(code));
        let request = requests.get(*name).unwrap_or_else(|| panic!("no vector for {name}"));
        if !is_served(&mut client, request) {
            unserved.insert(*name);
        }
    }
    assert_eq!(unserved, BTreeSet::new());
}

#[test]
fn what_no_table_names_is_told_so() {
    let server = Server::start(settings());
    let mut client = server.client();
    assert!(!is_served(&mut client, &[0, 0, 0, 3, 2, 0xEE, 0]), "this is how a missing handler would show");
}
