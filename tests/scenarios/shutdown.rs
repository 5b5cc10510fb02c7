//! SIGTERM: everybody is told, what was acknowledged is kept, and the process ends in time (BEHAVIOUR.md 1.11).

use std::time::Duration;

use serde_json::json;
use superchat::wire::client::SubscribeChannel;

use super::connections::{FORUM, bytes, newest, post};
use crate::support::{Client, Incoming, Link, Server, Settings, clock};

/// Far below systemd's 90 s, and what people wait for.
const DEADLINE: Duration = Duration::from_secs(15);

fn assert_told(client: &mut Client) {
    let last = client.expect_close();
    let goodbyes: Vec<_> = last.iter().filter(|frame| frame.name == "DISCONNECT").collect();
    assert_eq!(goodbyes.len(), 1, "{last:?}");
    assert_eq!(goodbyes[0].fields["reason"], "Server shutting down for maintenance");
    assert_eq!(last.last().map(|frame| &*frame.name), Some("DISCONNECT"), "nothing comes behind the goodbye");
    assert!(last.iter().all(|frame| frame.fields.get("online") != Some(&json!(false))), "nobody hears of the others");
}

/// A client that asks for much and reads nothing, so that its connection is full. With it comes who wrote all that: should
/// the author leave, others might hear of it at any time.
fn stuffed(server: &Server) -> (Link, Client) {
    let mut author = server.client_named("author");
    let noise: Vec<u8> = (0..4096).map(|_| rand::random::<u8>() | 0x80).collect();
    (0..200).for_each(|_| drop(author.ask(post(&noise), "MESSAGE_POSTED")));
    let mut link = Link::connect(server.address()).unwrap();
    let list = json!({ "channel_id": "2", "subchannel_id": null, "limit": 200, "before_id": null, "parent_id": null,
        "after_id": null });
    link.send(&bytes("LIST_MESSAGES", list).repeat(100)).unwrap();
    (link, author)
}

#[test]
fn everybody_is_told_and_the_process_ends_with_zero_in_time() {
    let mut server = Server::start(Settings::new());
    let _does_not_read = stuffed(&server);
    let _nameless_and_silent = Link::connect(server.address()).unwrap();
    let mut clients: Vec<_> = (0..20).map(|number| server.client_named(&format!("client-{number}"))).collect();
    clients.push(server.client());
    clients.iter_mut().for_each(|client| drop(client.quiet()));
    let start = clock::instant();
    server.ask_to_stop();
    clients.iter_mut().for_each(assert_told);
    drop(clients);
    assert_eq!(server.wait().code(), Some(0));
    assert!(start.elapsed() < DEADLINE, "took {:?}", start.elapsed());
    assert!(server.output().contains("Graceful shutdown complete"));
    assert!(Link::connect(server.address()).is_err(), "the port is closed");
}

#[test]
fn without_clients_the_end_comes_at_once() {
    let mut server = Server::start(Settings::new());
    let start = clock::instant();
    assert_eq!(server.stop(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

#[test]
fn posts_acknowledged_before_the_end_are_in_the_file() {
    let mut server = Server::start(Settings::new());
    let mut reader = server.client();
    reader.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
    let mut author = server.client_named("author");
    author.quiet();
    let post = json!({ "channel_id": "2", "subchannel_id": null, "parent_id": null, "content": "kept" });
    author.send_raw(&bytes("POST_MESSAGE", post).repeat(150));
    // In the middle of the stream.
    reader.expect_broadcast("NEW_MESSAGE");
    server.ask_to_stop();
    let last = author.expect_close();
    let acknowledged: Vec<_> = last
        .iter()
        .filter(|frame| frame.name == "MESSAGE_POSTED")
        .map(|frame| frame.fields["message_id"].clone())
        .collect();
    assert!(!acknowledged.is_empty());
    assert_eq!(server.wait().code(), Some(0));
    assert!(!server.home().join("superchat.db-wal").exists(), "the write-ahead log is folded in");

    server.resume();
    let list = server.client().ask(newest(FORUM, 200), "MESSAGE_LIST");
    let stored: Vec<_> = list["messages"].as_array().unwrap().iter().map(|message| &message["message_id"]).collect();
    assert!(acknowledged.iter().all(|id| stored.contains(&id)), "{} of {}", stored.len(), acknowledged.len());
}

#[test]
fn a_second_signal_changes_nothing() {
    let mut server = Server::start(Settings::new());
    let _does_not_read = stuffed(&server);
    let mut client = server.client();
    server.ask_to_stop();
    server.ask_to_stop();
    assert_told(&mut client);
    server.ask_to_stop();
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn who_comes_during_the_end_is_not_served() {
    let mut server = Server::start(Settings::new());
    let mut client = server.client();
    server.ask_to_stop();
    assert_told(&mut client);
    if let Ok(mut late) = Link::connect(server.address()) {
        assert_eq!(late.next(DEADLINE), Incoming::Closed);
    }
    assert_eq!(server.wait().code(), Some(0));
}
