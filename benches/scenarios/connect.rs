//! Idle sessions: what one costs in memory, and all of them in CPU time.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use superchat::wire::server::Pong;

use crate::support::clock;
use crate::support::process;
use crate::support::report::{Report, Target, float, per_second};
use crate::support::requests;
use crate::support::server::{Home, Server};
use crate::support::swarm::Swarm;

/// User-space bytes an idle session may cost (DESIGN.md, performance budget).
const SESSION_BYTES_MAX: f64 = 1024.0;
/// Descriptors that the server and the generator need besides those of the sessions.
const DESCRIPTORS_SPARE: u64 = 200;
/// Sessions that come and go before the first look, so that what the server allocates once is not counted.
const WARM_UP_SESSIONS: usize = 100;

#[derive(Args)]
pub(crate) struct Options {
    /// Idle sessions.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// Seconds of idling in which the server's CPU time is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let descriptors = process::raise_descriptor_limit()?;
    ensure!(
        u64::from(options.sessions) + DESCRIPTORS_SPARE <= descriptors,
        "{} sessions need a higher hard limit of descriptors than {descriptors} (ulimit -Hn)",
        options.sessions
    );
    let home = Home::new()?;
    let server = home.start()?;
    open(&server, WARM_UP_SESSIONS)?;
    let before = server.settled_bytes()?;

    let started = clock::now();
    let swarm = open(&server, options.sessions as usize)?;
    let connecting = started.elapsed();
    let bytes = server.settled_bytes()?.saturating_sub(before);

    let cpu_before = server.cpu()?;
    thread::sleep(Duration::from_secs(options.seconds));
    let idle_cpu = server.cpu()? - cpu_before;

    let mut report = Report::new("connect");
    let sessions = u64::from(options.sessions);
    let each = float(bytes) / float(sessions);
    report.note("idle sessions", float(sessions), "");
    report.figure("resident bytes of the server per session", each, "B", Target::AtMost(SESSION_BYTES_MAX));
    report.note("sessions opened and greeted", per_second(sessions, connecting), "/s");
    report.note("server CPU while idle", idle_cpu.as_secs_f64() / float(options.seconds) * 100.0, "% core");
    drop(swarm);
    server.stop()?;
    Ok(report)
}

/// Opens sessions that have said one word each, as every client does before it falls silent.
fn open(server: &Server, sessions: usize) -> Result<Swarm> {
    let mut swarm = Swarm::new()?;
    let all = swarm.connect(server.address, sessions)?;
    let ping = requests::ping()?;
    swarm.ask_each(all, Pong::CODE, |_| Ok(ping.clone()))?;
    Ok(swarm)
}
