//! An upgrade as people see it: a goodbye, a new server, and everything is still there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use superchat::wire::client::{AuthRequest, RegisterUser};
use superchat::wire::frame::VERSION;

use crate::manager::PATIENCE;
use crate::support::link::encode;
use crate::support::{Client, Incoming, Link, Server, Settings, clock};

/// How much slower than a release on a machine of its own a test may be: unoptimized, beside other tests.
const SLOWNESS: u32 = if cfg!(debug_assertions) { 5 } else { 1 };
const CHANNEL: &str = "1";
const PAGE: usize = 200;

fn bytes(name: &str, fields: Value) -> Vec<u8> {
    let Value::Object(fields) = fields else { panic!("fields of {name} are no object") };
    encode(name, VERSION, 0, &fields)
}

fn post(content: &str) -> Vec<u8> {
    let place = json!({ "channel_id": CHANNEL, "subchannel_id": null, "parent_id": null, "content": content });
    bytes("POST_MESSAGE", place)
}

/// Loopback counts like any other address.
fn nobody_exempt() -> Settings {
    Settings::new().set("limits", "exempt_networks", json!(["192.0.2.0/24"]))
}

/// Fields of the next frame called `name`; `None` when the connection ends first.
fn reply(link: &mut Link, name: &str) -> Option<serde_json::Map<String, Value>> {
    loop {
        match link.next(PATIENCE) {
            Incoming::Frame(frame) if frame.name == name => return Some(frame.fields),
            Incoming::Frame(frame) if frame.name == "ERROR" => panic!("{frame}"),
            Incoming::Frame(_) => {}
            Incoming::Closed => return None,
            other => panic!("waiting for {name}: {other:?}"),
        }
    }
}

fn id(fields: &serde_json::Map<String, Value>) -> u64 {
    fields["message_id"].as_str().unwrap().parse().unwrap()
}

/// Posts until told to stop, over as many connections as it takes; ids acknowledged.
fn author(server: std::net::SocketAddr, name: &str, is_over: &AtomicBool, acknowledged: &AtomicUsize) -> BTreeSet<u64> {
    let mut ids = BTreeSet::new();
    while !is_over.load(Ordering::Relaxed) {
        let mut link = Link::connect(server).unwrap();
        if link.send(&bytes("SET_NICKNAME", json!({ "nickname": name }))).is_err()
            || reply(&mut link, "NICKNAME_RESPONSE").is_none()
        {
            continue;
        }
        while !is_over.load(Ordering::Relaxed) {
            if link.send(&post(name)).is_err() {
                break;
            }
            let Some(posted) = reply(&mut link, "MESSAGE_POSTED") else { break };
            ids.insert(id(&posted));
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
    ids
}

/// Everything in the channel that is newer than the last message seen, page by page, oldest first. What is posted meanwhile
/// comes by itself.
fn catch_up(link: &mut Link, seen: &mut BTreeSet<u64>) -> Option<()> {
    let mut last = seen.last().copied().unwrap_or(0);
    loop {
        let list = json!({ "channel_id": CHANNEL, "subchannel_id": null, "limit": PAGE, "before_id": null,
            "parent_id": null, "after_id": last.to_string() });
        link.send(&bytes("LIST_MESSAGES", list)).ok()?;
        let page = listed(link, seen)?;
        seen.extend(&page);
        if page.len() < PAGE {
            return Some(());
        }
        last = page.last().copied()?;
    }
}

/// Ids of the next page, and of what is announced before it.
fn listed(link: &mut Link, seen: &mut BTreeSet<u64>) -> Option<BTreeSet<u64>> {
    loop {
        match link.next(PATIENCE) {
            Incoming::Frame(frame) if frame.name == "NEW_MESSAGE" => drop(seen.insert(id(&frame.fields))),
            Incoming::Frame(frame) if frame.name == "MESSAGE_LIST" => {
                let messages = frame.fields["messages"].as_array().unwrap();
                return Some(messages.iter().map(|message| id(message.as_object().unwrap())).collect());
            }
            Incoming::Frame(_) => {}
            Incoming::Closed => return None,
            other => panic!("waiting for a page: {other:?}"),
        }
    }
}

/// Reads along, and after each interruption asks only for what is newer than the last message it has.
fn reader(server: std::net::SocketAddr, is_over: &AtomicBool) -> BTreeSet<u64> {
    let mut seen = BTreeSet::new();
    let subscribe = json!({ "channel_id": CHANNEL, "subchannel_id": null });
    loop {
        let mut link = Link::connect(server).unwrap();
        let begun = link.send(&bytes("SUBSCRIBE_CHANNEL", subscribe.clone())).is_ok()
            && reply(&mut link, "SUBSCRIBE_OK").is_some()
            && catch_up(&mut link, &mut seen).is_some();
        if begun && is_over.load(Ordering::Relaxed) {
            return seen;
        }
        while begun && !is_over.load(Ordering::Relaxed) {
            match link.next(Duration::from_millis(50)) {
                Incoming::Frame(frame) if frame.name == "NEW_MESSAGE" => drop(seen.insert(id(&frame.fields))),
                Incoming::Frame(_) | Incoming::Silence => {}
                Incoming::Closed => break,
                Incoming::Broken(what) => panic!("{what}"),
            }
        }
    }
}

fn missing(posted: &BTreeSet<u64>, found: &BTreeSet<u64>) -> Vec<u64> {
    posted.difference(found).copied().collect()
}

fn stored(server: &Server) -> BTreeSet<u64> {
    let conn = rusqlite::Connection::open(server.database()).unwrap();
    let mut statement = conn.prepare("SELECT id FROM Message").unwrap();
    let ids = statement.query_map([], |row| row.get::<_, i64>(0)).unwrap();
    ids.map(|id| id.unwrap().cast_unsigned()).collect()
}

#[test]
fn upgrades_under_load_lose_nothing_that_was_acknowledged_and_readers_catch_up() {
    const AUTHORS: usize = 4;
    const UPGRADES: usize = 2;
    /// Acknowledged between two upgrades, so that each one falls into the middle of it.
    const BETWEEN: usize = 50;
    let mut server = Server::start_on_our_socket(Settings::new());
    let (address, acknowledged) = (server.address(), AtomicUsize::new(0));
    let (authors_end, reader_ends) = (AtomicBool::new(false), AtomicBool::new(false));
    let (posted, seen) = std::thread::scope(|scope| {
        let names: Vec<_> = (0..AUTHORS).map(|number| format!("author-{number}")).collect();
        let work = |name: String| author(address, &name, &authors_end, &acknowledged);
        let authors: Vec<_> = names.into_iter().map(|name| scope.spawn(move || work(name))).collect();
        let reading = scope.spawn(|| reader(address, &reader_ends));
        let progress = || {
            let goal = acknowledged.load(Ordering::Relaxed) + BETWEEN;
            clock::poll(PATIENCE, || (acknowledged.load(Ordering::Relaxed) >= goal).then_some(()))
        };
        let went_well = (0..UPGRADES).all(|_| {
            let is_busy = progress().is_some();
            let code = server.stop();
            server.resume();
            is_busy && code == Some(0)
        });
        let went_well = went_well && progress().is_some();
        authors_end.store(true, Ordering::Relaxed);
        let posted: BTreeSet<u64> = authors.into_iter().flat_map(|author| author.join().unwrap()).collect();
        reader_ends.store(true, Ordering::Relaxed);
        let seen = reading.join().unwrap();
        assert!(went_well, "the server did not go on");
        (posted, seen)
    });
    assert_eq!(missing(&posted, &stored(&server)), [0; 0], "acknowledged and lost, of {}", posted.len());
    assert_eq!(missing(&posted, &seen), [0; 0], "acknowledged and not caught up with, of {}", posted.len());
    assert!(posted.len() > UPGRADES * BETWEEN);
}

#[test]
fn what_is_under_way_is_answered_before_the_goodbye() {
    const POSTS: usize = 200;
    let mut server = Server::start(Settings::new());
    let mut witness = server.client_named("witness");
    witness.send_json("SUBSCRIBE_CHANNEL", json!({ "channel_id": CHANNEL, "subchannel_id": null }));
    witness.expect_reply("SUBSCRIBE_OK");
    let mut author = server.client_named("author");
    author.send_raw(&post("kept").repeat(POSTS));
    // In the middle of the stream.
    witness.expect_broadcast("NEW_MESSAGE");
    server.ask_to_stop();
    let last = author.expect_close();
    let count = |name: &str| last.iter().filter(|frame| frame.name == name).count();
    assert_eq!(last.last().map(|frame| &*frame.name), Some("DISCONNECT"));
    let answered = count("MESSAGE_POSTED");
    drop((author, witness));
    assert_eq!(server.wait().code(), Some(0));

    server.resume();
    let (mut link, mut stored) = (Link::connect(server.address()).unwrap(), BTreeSet::new());
    catch_up(&mut link, &mut stored).unwrap();
    assert_eq!(stored.len(), answered, "a post is stored whose author does not know");
}

/// When each session was told goodbye, in the order of their connections.
fn goodbyes(server: &mut Server, count: usize) -> BTreeMap<usize, Instant> {
    let links: Vec<Link> = (0..count).map(|_| Link::connect(server.address()).unwrap()).collect();
    let told = |mut link: Link| {
        reply(&mut link, "DISCONNECT").expect("a goodbye");
        clock::instant()
    };
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for mut link in links {
            reply(&mut link, "SERVER_CONFIG").unwrap();
            threads.push(scope.spawn(move || told(link)));
        }
        server.ask_to_stop();
        threads.into_iter().map(|thread| thread.join().unwrap()).enumerate().collect()
    })
}

#[test]
fn goodbyes_are_spread_over_time_in_a_random_order() {
    // At 500 a second.
    const CLIENTS: usize = 150;
    let mut server = Server::start(Settings::new());
    let told = goodbyes(&mut server, CLIENTS);
    assert_eq!(server.wait().code(), Some(0));
    let (first, last) = (*told.values().min().unwrap(), *told.values().max().unwrap());
    assert!(last - first > Duration::from_millis(150), "all within {:?}", last - first);
    let mut order: Vec<_> = told.into_iter().collect();
    order.sort_by_key(|(_, at)| *at);
    let in_sequence = order.windows(2).filter(|pair| pair[0].0 < pair[1].0).count();
    assert!(in_sequence < CLIENTS * 3 / 4, "{in_sequence} of {CLIENTS} came in the order of their arrival");
}

#[test]
fn without_a_span_of_time_everybody_is_told_at_once() {
    let mut server = Server::start(Settings::new().set("server", "shutdown_spread_seconds", 0));
    let start = clock::instant();
    let told = goodbyes(&mut server, 150);
    assert_eq!(told.len(), 150);
    assert_eq!(server.wait().code(), Some(0));
    assert!(start.elapsed() < PATIENCE);
    assert!(server.output().contains("Sending shutdown notification to 150 active sessions..."));
}

/// So many connections of one address, each with its first answer. Without nicknames: what they cost is measured elsewhere.
fn arrive(server: &Server, count: usize) -> Vec<Link> {
    let mut links: Vec<_> = (0..count).map(|_| Link::connect(server.address()).unwrap()).collect();
    let ping = bytes("PING", json!({ "timestamp": "1" }));
    links.iter_mut().for_each(|link| link.send(&ping).unwrap());
    links.iter_mut().for_each(|link| drop(reply(link, "PONG").expect("nobody is sent away")));
    links
}

#[test]
fn a_thousand_clients_of_one_address_are_all_back_within_a_second_of_a_restart() {
    const CLIENTS: usize = 1000;
    let settings = nobody_exempt().set("limits", "max_connections_per_ip", 0);
    let mut server = Server::start_on_our_socket(settings.set("server", "shutdown_spread_seconds", 0));
    drop(arrive(&server, CLIENTS));
    assert_eq!(server.stop(), Some(0));
    server.resume();
    let start = clock::instant();
    let _back = arrive(&server, CLIENTS);
    let took = start.elapsed();
    println!("{CLIENTS} clients were back after {took:?}");
    assert!(took < Duration::from_secs(1) * SLOWNESS, "took {took:?}");
}

#[test]
fn more_people_of_one_address_than_may_sign_in_a_minute_can_all_sign_in_after_a_restart() {
    const PEOPLE: usize = 6;
    const SECRET: &[u8] = b"kXr0mB3vV1n9oZ4yQ2LwxsCt7uJ5eHdPaGfIiKlMnOp";
    const WRONG: &[u8] = b"wrongB3vV1n9oZ4yQ2LwxsCt7uJ5eHdPaGfIiKlMnOp";
    let mut server = Server::start(Settings::new().set("server", "password_threads", 2));
    for number in 0..PEOPLE {
        let mut client = server.client_named(&format!("person-{number}"));
        assert_eq!(client.ask(RegisterUser { password_hash: SECRET }, "REGISTER_RESPONSE")["success"], true);
    }
    assert_eq!(server.stop(), Some(0));
    server.reconfigure(nobody_exempt().set("limits", "auth_attempts_per_minute", 3));
    server.resume();
    let sign_in = |client: &mut Client, nickname: &str, password_hash| {
        let request = AuthRequest { nickname: nickname.as_bytes(), password_hash };
        client.ask(request, "AUTH_RESPONSE")["message"].as_str().unwrap().to_owned()
    };
    let mut client = server.client();
    for number in 0..PEOPLE {
        let name = format!("person-{number}");
        assert_eq!(sign_in(&mut client, &name, SECRET), format!("Welcome back, {name}!"));
    }
    // Guessing is throttled as ever.
    let guesses: Vec<_> = (0..4).map(|number| sign_in(&mut client, &format!("person-{number}"), WRONG)).collect();
    assert_eq!(guesses[..3], ["Invalid credentials"; 3]);
    assert_eq!(guesses[3], "Too many attempts. Try again later.");
}
