//! The captured conversations of deployed clients, replayed against ours.
//!
//! A capture becomes a [`script`]; [`rules`] rewrite it where ours answers otherwise on purpose, each rule named by its id
//! in [`deviations`]; [`player`] plays the result and compares, with [`ids`] saying what differs from run to run. Rules
//! know the state of the server from [`world`]. [`echo`] stands in for a server to test all of this.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]

mod support;

#[path = "replay/deviations.rs"]
mod deviations;
#[path = "replay/echo.rs"]
mod echo;
#[path = "replay/ids.rs"]
mod ids;
#[path = "replay/player.rs"]
mod player;
#[path = "replay/rules.rs"]
mod rules;
#[path = "replay/script.rs"]
mod script;
#[path = "replay/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use deviations::Deviations;
use player::{Stage, play};
use script::{Item, Script, What};
use serde_json::json;
use superchat::ids::ChannelId;
use superchat::wire::client::ListChannels;
use support::browser::Browser;
use support::client::PATIENCE;
use support::server::free_port;
use support::{Client, Link, Server, Settings};

/// How frames are spread over WebSocket messages: a stream of frames does not show it.
const BELOW_FRAMES: &str = "1.9";

/// A test per capture, named like it.
macro_rules! replays {
    ($($capture:ident)+) => {
        /// Captures that have a test.
        const REPLAYED: &[&str] = &[$(stringify!($capture)),+];
        $(
            #[test]
            fn $capture() {
                replay(stringify!($capture));
            }
        )+
    };
}
replays! {
    admin_bans
    anonymous_browse_and_post
    bot_with_mentions
    channel_and_subchannel_create
    compression_version_2
    directory_rate_limit
    directory_register
    dm_encrypted_accounts
    dm_plain_anonymous
    edit_delete
    idle_timeout
    limits
    load_generator
    malformed_input
    nickname_register_auth
    ping_and_goodbyes
    server_shutdown
    simulator
    ssh_key_management
    terminal_client_first_run
    thread_replies_live
    unread_counts
    user_lists_and_presence
    websocket_session
}

/// What visitors do, whom no key has signed in.
const VISITS: &[&str] =
    &["anonymous_browse_and_post", "compression_version_2", "dm_plain_anonymous", "thread_replies_live"];

#[test]
fn captures_of_visitors_replay_over_websocket() {
    VISITS.iter().for_each(|name| replay_by_web(name, &mut Link::connect_web));
}

/// The bytes of the captures go through a page in a real browser.
#[test]
fn captures_of_visitors_replay_from_a_browser() {
    let mut browser = Browser::open();
    let mut connect = |address| Ok(Link::connect_browser(&mut browser, address));
    VISITS.iter().chain(&["websocket_session"]).for_each(|name| replay_by_web(name, &mut connect));
}

fn replay(name: &str) {
    if name == "websocket_session" {
        return replay_by_web(name, &mut Link::connect_web);
    }
    let (script, _) = rules::apply(script::load(name));
    let server = Server::start(settings(&script));
    let address = server.address();
    perform(name, script, server, &mut || Link::connect(address));
}

fn replay_by_web(name: &str, connect: &mut dyn FnMut(SocketAddr) -> io::Result<Link>) {
    let (script, _) = rules::apply(script::load(name));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let server = Server::start(settings(&script).set("server", "http_port", address.port()));
    perform(name, script, server, &mut || connect(address));
}

fn perform(name: &str, mut script: Script, mut server: Server, connect: &mut dyn FnMut() -> io::Result<Link>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ports = ports(&script, server.address().port(), &listener);
    script::move_ports(&mut script, &ports);
    let mut stopped = false;
    let found = {
        let mut stop = || {
            server.ask_to_stop();
            stopped = true;
        };
        play(&script, Stage { connect, patience: PATIENCE, listener: Some(&listener), stop: &mut stop })
    };
    report(name, &found);
    let code = if stopped { server.wait().code() } else { server.stop() };
    assert_eq!(code, Some(0), "exit code");
}

fn report(name: &str, found: &[String]) {
    assert!(found.is_empty(), "{name} differs:\n{}\n", found.join("\n"));
}

/// The ports of the capture, with those of this run that stand for them.
fn ports(script: &Script, own: u16, listener: &TcpListener) -> BTreeMap<u64, u16> {
    let recorded = script.own_entry().and_then(|entry| entry["port"].as_u64());
    let verified = script.items.iter().find_map(|item| {
        let registration = item.sent().filter(|sent| sent.name == "REGISTER_SERVER" && script.is_dialled())?;
        let fields = registration.fields.as_ref()?;
        fields["port"].as_u64().filter(|port| *port != 0 && fields["hostname"] != "")
    });
    let here = listener.local_addr().unwrap().port();
    recorded.map(|port| (port, own)).into_iter().chain(verified.map(|port| (port, here))).collect()
}

/// The capture's settings under the keys of BEHAVIOUR.md 9.2, and what its directory calls itself.
fn settings(script: &Script) -> Settings {
    let mut settings = Settings::new().set("discovery", "allow_private_servers", false);
    if let Some(own) = script.own_entry() {
        for (key, field) in
            [("public_hostname", "hostname"), ("server_name", "name"), ("server_description", "description")]
        {
            settings = settings.set("discovery", key, own[field].clone());
        }
    }
    script.server_settings.iter().fold(settings, |settings, (key, value)| {
        let section = match key.as_str() {
            "directory_enabled" | "allow_private_servers" => "discovery",
            "admin_users" => "server",
            _ => "limits",
        };
        settings.set(section, key, value.clone())
    })
}

#[test]
fn every_capture_has_a_test() {
    let known: BTreeSet<String> = REPLAYED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(known, script::names().into_iter().collect());
}

#[test]
fn the_list_of_deviations_is_the_original() {
    let original = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/protocol/DEVIATIONS.md");
    if let Ok(text) = std::fs::read(original) {
        assert!(text == std::fs::read(deviations::copy()).unwrap(), "{:?} is out of date", deviations::copy());
    }
}

/// The rules a capture needs are exactly those that the list of deviations names for it.
#[test]
fn rules_needed_are_those_listed() {
    let listed = Deviations::read();
    let known: BTreeSet<&str> = listed.ids().collect();
    assert!(known.len() > 40, "only {} rows were read", known.len());
    rules::ids().for_each(|id| assert!(known.contains(id), "{id} is no deviation"));
    let mut wrong = Vec::new();
    for name in REPLAYED {
        let script = script::load(name);
        let registers = script
            .items
            .iter()
            .any(|item| item.named("REGISTER_RESPONSE").is_some_and(|frame| frame.fields["success"] == true));
        let needed = rules::apply(script).1;
        let should = listed.seen_in(name, registers).filter(|id| *id != BELOW_FRAMES);
        let should: BTreeSet<String> = should.map(str::to_owned).collect();
        let extra = needed.difference(&should).map(|id| format!("{name}: {id} is applied but not listed"));
        wrong
            .extend(extra.chain(should.difference(&needed).map(|id| format!("{name}: {id} is listed but not needed"))));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Plays `played` to a player who expects `expected`; both what the player and what the server noticed.
fn rehearse(expected: &Script, played: Script, patience: Duration) -> (Vec<String>, Vec<String>) {
    let (address, thread) = echo::serve(played);
    let mut connect = || Link::connect(address);
    let found = play(expected, Stage { connect: &mut connect, patience, listener: None, stop: &mut || {} });
    (found, thread.join().unwrap())
}

/// Except where the server connects to a client.
#[test]
fn a_server_that_says_what_was_recorded_passes() {
    for name in REPLAYED {
        let script = script::load(name);
        if script.is_dialled() {
            continue;
        }
        let (found, faults) = rehearse(&script, script.clone(), PATIENCE);
        report(name, &found);
        assert!(faults.is_empty(), "{name}: requests were not translated:\n{}", faults.join("\n"));
    }
}

/// Without the capture whose server must have a clock of its own, and the one where it connects to a client.
#[test]
fn a_server_that_says_what_ours_should_passes() {
    for name in REPLAYED.iter().filter(|name| !["idle_timeout", "directory_register"].contains(name)) {
        let (script, _) = rules::apply(script::load(name));
        let (found, faults) = rehearse(&script, script.clone(), PATIENCE);
        report(name, &found);
        assert!(faults.is_empty(), "{name}: requests were not translated:\n{}", faults.join("\n"));
    }
}

#[test]
fn a_client_sets_aside_what_it_did_not_wait_for() {
    let mut script = script::load("simulator");
    script.items.retain(|item| item.conn == 1);
    let (address, thread) = echo::serve(script);
    let mut client = Client::named(address, "TechEnthusiast");
    let list = client.ask(ListChannels { from_channel_id: ChannelId(0), limit: 0 }, "CHANNEL_LIST");
    assert_eq!(list["channels"].as_array().unwrap().len(), 5);
    assert_eq!(client.quiet().len(), 1, "one presence was set aside and nothing else came");
    client.hang_up();
    assert_eq!(thread.join().unwrap(), [""; 0]);
}

/// Every kind of mistake is noticed.
#[test]
fn a_server_that_says_something_else_fails() {
    let script = script::load("thread_replies_live");
    let place = |name: &str| script.items.iter().rposition(|item| item.named(name).is_some()).unwrap();
    let (posted, told) = (place("MESSAGE_POSTED"), place("NEW_MESSAGE"));
    let presence = place("SERVER_PRESENCE");
    let check = |what: &str, change: &dyn Fn(&mut Vec<Item>)| {
        let mut played = script.clone();
        change(&mut played.items);
        assert!(played != script, "{what}: nothing was changed");
        let (found, _) = rehearse(&script, played, Duration::from_millis(300));
        assert!(!found.is_empty(), "{what}: went unnoticed");
    };
    let field = |items: &mut Vec<Item>, place: usize, field: &str, value: serde_json::Value| {
        if let What::Receive(frame) = &mut items[place].what {
            frame.fields.insert(field.into(), value);
        }
    };
    check("another text", &|items| field(items, told, "content", json!("something else")));
    check("another number", &|items| field(items, told, "reply_count", json!(7)));
    check("an id that is another message's", &|items| field(items, told, "message_id", json!("1")));
    check("an absent time that is there", &|items| field(items, told, "edited_at", json!("5")));
    check("another person", &|items| field(items, presence, "nickname", json!("nobody")));
    check("a broadcast left out", &|items| drop(items.remove(told)));
    check("presence left out", &|items| drop(items.remove(presence)));
    check("an answer left out", &|items| drop(items.remove(posted)));
    check("an answer given twice", &|items| items.insert(posted, items[posted].clone()));
    check("a broadcast given twice", &|items| items.insert(told, items[told].clone()));
    check("the broadcast before the answer", &|items| items.swap(posted, posted + 1));
    check("an answer of another type", &|items| {
        if let What::Receive(frame) = &mut items[posted].what {
            (frame.name, frame.fields) =
                ("PONG".into(), [("client_timestamp".into(), json!("1"))].into_iter().collect());
        }
    });
    check("an end too early", &|items| {
        items[posted].what = What::Close { idle_ms: None };
        items.truncate(posted + 1);
    });
}
