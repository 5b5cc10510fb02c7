//! Everybody arrives at once: how long until each client's roster names everybody.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use superchat::ids::SessionId;
use superchat::wire::ServerMessage;
use superchat::wire::server::ServerPresence;

use crate::support::clock;
use crate::support::report::{Report, Target, float, micros_each};
use crate::support::requests;
use crate::support::server::Home;
use crate::support::swarm::{Arrival, Script, Swarm};

/// Seconds until every roster is complete.
const COMPLETE_SECONDS_MAX: f64 = 2.0;
const RUN_LIMIT: Duration = Duration::from_secs(60);
const NICKNAME_PREFIX: &str = "storm-";

#[derive(Args)]
pub(crate) struct Options {
    /// Clients that connect at once.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(2..=5000))]
    clients: u16,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let clients = usize::from(options.clients);
    let home = Home::new()?;
    let server = home.start()?;
    let cpu_before = server.cpu()?;
    let started = clock::now();
    let mut swarm = Swarm::new()?;
    let mut rosters = Rosters::new(clients, started);
    for index in swarm.connect(server.address, clients)? {
        swarm.send(index, &requests::set_nickname(&format!("{NICKNAME_PREFIX}{index}"))?)?;
    }
    swarm.run(&mut rosters, RUN_LIMIT)?;
    let cpu = server.cpu()? - cpu_before;
    rosters.check()?;

    let mut report = Report::new("storm");
    report.note("clients", float(clients as u64), "");
    let seconds = (rosters.last_at - started).as_secs_f64();
    report.figure("every roster complete after", seconds, "s", Target::AtMost(COMPLETE_SECONDS_MAX));
    report.note("presence frames per client", float(rosters.frames) / float(clients as u64), "");
    report.note("server CPU", cpu.as_secs_f64(), "s");
    report.note("server CPU per presence frame", micros_each(cpu, rosters.frames), "us");
    server.stop()?;
    Ok(report)
}

/// What each client knows: the session id of each nickname.
struct Rosters {
    /// One roster after the other.
    known: Vec<Option<SessionId>>,
    clients: usize,
    /// Entries that are known, over all rosters.
    complete: usize,
    frames: u64,
    last_at: Instant,
}

impl Rosters {
    fn new(clients: usize, started: Instant) -> Self {
        Self { known: vec![None; clients * clients], clients, complete: 0, frames: 0, last_at: started }
    }

    fn learn(&mut self, client: usize, presence: &ServerPresence<'_>) -> Result<()> {
        let who: usize = std::str::from_utf8(presence.nickname)?
            .strip_prefix(NICKNAME_PREFIX)
            .context("a nickname nobody took")?
            .parse()?;
        ensure!(who < self.clients, "a nickname nobody took");
        let entry = &mut self.known[client * self.clients + who];
        self.complete -= usize::from(entry.is_some());
        *entry = presence.online.then_some(presence.session_id);
        self.complete += usize::from(entry.is_some());
        self.frames += 1;
        Ok(())
    }

    /// Every client knows the same sessions, and no two nicknames share one.
    fn check(&self) -> Result<()> {
        let mut rosters = self.known.chunks(self.clients);
        let first = rosters.next().context("no roster")?;
        ensure!(rosters.all(|roster| roster == first), "clients disagree about who is there");
        let sessions: HashSet<_> = first.iter().collect();
        ensure!(sessions.len() == self.clients, "two nicknames share a session");
        Ok(())
    }
}

impl Script for Rosters {
    fn arrived(&mut self, arrival: &Arrival<'_>, _out: &mut Vec<u8>) -> Result<()> {
        if arrival.frame.code != ServerPresence::CODE {
            return Ok(());
        }
        match ServerMessage::read(arrival.frame.code, arrival.frame.payload)? {
            ServerMessage::ServerPresence(presence) => self.learn(arrival.from, &presence)?,
            other => anyhow::bail!("{other:?} instead of a presence"),
        }
        self.last_at = arrival.at;
        Ok(())
    }

    fn done(&self) -> bool {
        self.complete == self.known.len()
    }
}
