//! Who does not read: closed when its queue is full, and never slowing anybody else (BEHAVIOUR.md 1.7).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::json;
use superchat::wire::client::SubscribeChannel;

use super::connections::{FORUM, bytes, post};
use crate::support::client::PATIENCE;
use crate::support::{Incoming, Link, Server, Settings};

/// Texts that compression does not shrink, each with its number in front.
fn noise(number: usize) -> Vec<u8> {
    let mut text = format!("{number:08} ").into_bytes();
    text.extend((text.len()..4096).map(|_| rand::random::<u8>() | 0x80));
    text
}

/// The exposition of the server's metrics.
fn metrics(server: &Server) -> String {
    let output = server.output();
    let (_, address) = output.split_once("metrics server listening (/metrics, /health) address=").unwrap();
    let mut stream = TcpStream::connect(address.lines().next().unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Resident bytes of the server's process.
fn resident_bytes(server: &Server) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn a_subscriber_that_never_reads_is_closed_and_counted_while_others_get_everything_in_order() {
    let settings =
        Settings::new().set("limits", "outbox_bytes_max", 65_536).set("admin", "metrics_listen", "127.0.0.1:0");
    let server = Server::start(settings);
    let subscribe = SubscribeChannel { channel_id: FORUM, subchannel_id: None };
    let mut reader = server.client();
    reader.ask(subscribe.clone(), "SUBSCRIBE_OK");
    let mut slow = server.client_named("slow");
    slow.ask(subscribe, "SUBSCRIBE_OK");
    let mut author = server.client_named("author");
    assert!(!metrics(&server).contains("reason=\"slow_consumer\"} 1"));

    let mut number = 0;
    let is_gone = |frames: &[crate::support::Received]| {
        frames
            .iter()
            .any(|frame| frame.fields.get("online") == Some(&json!(false)) && frame.fields["nickname"] == "slow")
    };
    // The kernel takes a few megabytes before the queue begins to fill.
    while !is_gone(&author.quiet()) {
        assert!(number < 10_000, "nobody is closed");
        author.ask(post(&noise(number)), "MESSAGE_POSTED");
        let content = reader.expect_broadcast("NEW_MESSAGE")["content"].clone();
        let hex = format!("{number:08} ").bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(content["bytes_hex"].as_str().unwrap().starts_with(&hex), "message {number} is not next");
        number += 1;
    }
    assert!(metrics(&server).contains("superchat_disconnects_total{reason=\"slow_consumer\"} 1"));
    let last = slow.expect_close();
    assert!(last.iter().all(|frame| frame.name != "DISCONNECT"), "a bare close lets it come back");
    assert!(last.iter().filter(|frame| frame.name == "NEW_MESSAGE").count() < number);
}

#[test]
fn a_client_that_asks_without_reading_is_paused_and_gets_every_answer_when_it_reads() {
    check_paused(false);
}

#[test]
fn so_is_one_that_stops_sending_before_it_reads() {
    check_paused(true);
}

/// Asks for far more than any queue may hold before it reads the first answer.
fn check_paused(stops_sending: bool) {
    const MESSAGES: usize = 200;
    const REQUESTS: usize = 300;
    const PAGE_BYTES: usize = MESSAGES * 4096;
    let server = Server::start(Settings::new());
    let mut author = server.client_named("author");
    (0..MESSAGES).for_each(|number| drop(author.ask(post(&noise(number)), "MESSAGE_POSTED")));
    let before = resident_bytes(&server);

    let mut greedy = Link::connect(server.address()).unwrap();
    let list = json!({ "channel_id": "2", "subchannel_id": null, "limit": MESSAGES, "before_id": null,
        "parent_id": null, "after_id": null });
    greedy.send(&bytes("LIST_MESSAGES", list).repeat(REQUESTS)).unwrap();
    greedy.send(&bytes("PING", json!({ "timestamp": "77" }))).unwrap();
    if stops_sending {
        greedy.hang_up();
    }
    // Others are served meanwhile; by then the answers that fit anywhere have been made.
    (0..50).for_each(|number| drop(author.ask(post(&noise(number)), "MESSAGE_POSTED")));
    let grown = resident_bytes(&server).saturating_sub(before);
    assert!(grown < REQUESTS * PAGE_BYTES / 4, "{grown} bytes for one client");

    let mut next = || match greedy.next(PATIENCE) {
        Incoming::Frame(frame) => frame,
        other => panic!("{other:?}"),
    };
    assert_eq!(next().name, "SERVER_CONFIG");
    for number in 0..REQUESTS {
        let frame = next();
        assert_eq!(frame.name, "MESSAGE_LIST", "answer {number}");
        assert_eq!(frame.fields["messages"].as_array().unwrap().len(), MESSAGES, "answer {number}");
    }
    let pong = std::iter::repeat_with(next).find(|frame| frame.name == "PONG").unwrap();
    assert_eq!(pong.fields["client_timestamp"], "77");
    if stops_sending {
        while let Incoming::Frame(_) = greedy.next(PATIENCE) {}
        assert_eq!(greedy.next(PATIENCE), Incoming::Closed);
    }
}

#[test]
fn a_thousand_silent_connections_cost_almost_nothing() {
    const COUNT: usize = 1000;
    let server = Server::start(Settings::new());
    let mut client = server.client();
    client.quiet();
    let before = resident_bytes(&server);
    let silent: Vec<_> = (0..COUNT).map(|_| server.client()).collect();
    client.quiet();
    let each = resident_bytes(&server).saturating_sub(before) / silent.len();
    assert!(each < 16 * 1024, "{each} bytes for each silent connection");
}
