//! Login storms: a thousand clients that arrive at once, and half of them leaving at once, are soon known to everybody.
//!
//! Rosters are built as clients build them: from SERVER_PRESENCE alone, by session id. Times, frames and bytes are
//! printed.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "the figures are the point")]

// The load generator's sockets: one thread that drives any number of clients.
#[allow(dead_code, reason = "what only the scenarios use")]
#[path = "../benches/support/mod.rs"]
mod load;
#[path = "support/mod.rs"]
mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use foldhash::fast::RandomState;
use superchat::ids::SessionId;
use superchat::wire::ServerMessage;
use superchat::wire::server::ServerPresence;

use load::swarm::{Arrival, Script, Swarm};
use load::{clock, process, requests};
use support::{Server, Settings};

const CLIENTS: usize = 1000;
const LEAVING: usize = CLIENTS / 2;
/// From the first connection to the last roster that is right.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);
/// How much slower than a release on a machine of its own a test may be: unoptimized, beside other tests.
const SLOWNESS: u32 = if cfg!(debug_assertions) { 3 } else { 1 };
/// When a storm that does not settle is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);
/// Between two looks at the other half of the clients.
const LOOK: Duration = Duration::from_millis(1);

#[test]
fn thousand_clients_that_arrive_at_once_know_each_other_and_when_half_of_them_leave_too() {
    process::raise_descriptor_limit().unwrap();
    let mut server = Server::start(Settings::new());
    let (mut staying, mut leaving) = (Crowd::new("stay"), Crowd::new("leave"));

    let started = clock::now();
    staying.arrive(&server, CLIENTS - LEAVING);
    leaving.arrive(&server, LEAVING);
    settle(&mut [&mut staying, &mut leaving], CLIENTS);
    let arrival = report("arrival", started, &[&staying, &leaving]);
    assert_eq!(staying.rosters.frames + leaving.rosters.frames, CLIENTS * CLIENTS, "each is told of each once");
    let everybody = staying.rosters.common();
    assert_eq!(everybody, leaving.rosters.common(), "those who stay and those who leave know different people");
    assert_eq!(names(&everybody), expected(&[&staying, &leaving]));

    let left_at = clock::now();
    staying.rosters.start_counting();
    // Every socket of it closes.
    let Crowd { swarm, .. } = leaving;
    drop(swarm);
    settle(&mut [&mut staying], CLIENTS - LEAVING);
    let departure = report("departure", left_at, &[&staying]);
    assert_eq!(staying.rosters.frames, (CLIENTS - LEAVING) * LEAVING, "each is told of each who left once");
    assert_eq!(names(&staying.rosters.common()), expected(&[&staying]));

    assert_eq!(server.stop(), Some(0));
    let limit = SETTLED_WITHIN * SLOWNESS;
    assert!(arrival <= limit && departure <= limit, "settled after {arrival:?} and {departure:?}, limit {limit:?}");
}

/// Serves all crowds until each of their clients knows `people`.
fn settle(crowds: &mut [&mut Crowd], people: usize) {
    let started = clock::now();
    while !crowds.iter().all(|crowd| crowd.rosters.know(people)) {
        assert!(started.elapsed() < GIVEN_UP_AFTER, "the storm did not settle");
        for crowd in &mut *crowds {
            crowd.swarm.poll(&mut crowd.rosters, LOOK).unwrap();
        }
    }
}

/// Prints what a storm took and returns how long.
fn report(what: &str, started: Instant, crowds: &[&Crowd]) -> Duration {
    let last_at = crowds.iter().filter_map(|crowd| crowd.rosters.last_at).max();
    let settled = last_at.unwrap() - started;
    let frames: usize = crowds.iter().map(|crowd| crowd.rosters.frames).sum();
    let bytes: usize = crowds.iter().map(|crowd| crowd.rosters.bytes).sum();
    println!("{what}: settled after {settled:?}, {frames} presence frames, {bytes} bytes");
    settled
}

fn names(roster: &Roster) -> Vec<String> {
    let mut names: Vec<_> = roster.values().cloned().collect();
    names.sort();
    names
}

fn expected(crowds: &[&Crowd]) -> Vec<String> {
    let mut names: Vec<_> =
        crowds.iter().flat_map(|crowd| (0..crowd.rosters.known.len()).map(|index| crowd.name(index))).collect();
    names.sort();
    names
}

/// Clients that come and go together.
struct Crowd {
    prefix: &'static str,
    swarm: Swarm,
    rosters: Rosters,
}

impl Crowd {
    fn new(prefix: &'static str) -> Self {
        Self { prefix, swarm: Swarm::new().unwrap(), rosters: Rosters::default() }
    }

    fn name(&self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// Connects and asks for nicknames, without waiting for any answer.
    fn arrive(&mut self, server: &Server, count: usize) {
        self.rosters.known.resize_with(count, Roster::default);
        for index in self.swarm.connect(server.address(), count).unwrap() {
            let request = requests::set_nickname(&self.name(index)).unwrap();
            self.swarm.send(index, &request).unwrap();
        }
    }
}

type Roster = HashMap<SessionId, String, RandomState>;

/// What each client of a crowd knows.
#[derive(Default)]
struct Rosters {
    known: Vec<Roster>,
    frames: usize,
    bytes: usize,
    /// When presence last came in.
    last_at: Option<Instant>,
}

impl Rosters {
    fn know(&self, people: usize) -> bool {
        self.known.iter().all(|roster| roster.len() == people)
    }

    /// The one roster that all clients have.
    fn common(&self) -> Roster {
        let (first, others) = self.known.split_first().unwrap();
        assert!(others.iter().all(|roster| roster == first), "clients disagree about who is there");
        first.clone()
    }

    fn start_counting(&mut self) {
        (self.frames, self.bytes) = (0, 0);
    }
}

impl Script for Rosters {
    fn arrived(&mut self, arrival: &Arrival<'_>, _out: &mut Vec<u8>) -> Result<()> {
        if arrival.frame.code != ServerPresence::CODE {
            return Ok(());
        }
        ensure!(arrival.frame.flags == 0, "a presence frame is compressed");
        let ServerMessage::ServerPresence(presence) = ServerMessage::read(arrival.frame.code, arrival.frame.payload)?
        else {
            anyhow::bail!("no presence under its code")
        };
        let roster = &mut self.known[arrival.from];
        if presence.online {
            roster.insert(presence.session_id, std::str::from_utf8(presence.nickname)?.to_owned());
        } else {
            roster.remove(&presence.session_id);
        }
        self.frames += 1;
        self.bytes += superchat::wire::frame::HEADER_BYTES + arrival.frame.payload.len();
        self.last_at = Some(arrival.at);
        Ok(())
    }

    /// Two crowds are served side by side, so neither decides alone.
    fn done(&self) -> bool {
        false
    }
}
