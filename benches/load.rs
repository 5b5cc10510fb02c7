//! The load generator: starts a server of its own on loopback, puts it under one kind of load, checks everything that
//! comes back, and prints what it cost. `benches/README.md` says what each scenario measures.
//!
//! `cargo bench --bench load -- SCENARIO [options]`

#[allow(dead_code, clippy::unwrap_used, reason = "made for tests, which stop at the first surprise and ask for more")]
#[path = "../tests/support/pprof.rs"]
mod pprof;
mod scenarios;
mod support;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

use scenarios::{connect, crash, fanout, list, post, profiles, scrape, storm};
use support::report::Report;

/// Load generator for the SuperChat server. Loopback only, bounded in time and count.
#[derive(Parser)]
#[command(name = "load")]
struct Arguments {
    #[command(subcommand)]
    scenario: Option<Scenario>,
    /// One JSON object per figure instead of a table.
    #[arg(long, global = true)]
    json: bool,
    /// Passed by `cargo bench` to every benchmark.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Scenario {
    /// Idle sessions: resident bytes of the server for each.
    Connect(connect::Options),
    /// One publisher, many subscribers: cost of a delivery, deliveries per second, what stalled subscribers cost others.
    Fanout(fanout::Options),
    /// Many publishers in a closed loop: durable posts per second, their latency and CPU time.
    Post(post::Options),
    /// A page of a channel with a million messages beside one of a small channel.
    List(list::Options),
    /// A scrape of many sessions and channels: how long it takes, and what it costs those who chat.
    Scrape(scrape::Options),
    /// Everybody connects and takes a nickname at once: time until every roster is complete.
    Storm(storm::Options),
    /// What profiles cost: those that nobody reads, and CPU samples while they are taken.
    Profiles(profiles::Options),
    /// SIGKILL under load: every acknowledged message is there after the restart.
    Crash(crash::Options),
}

impl Scenario {
    fn run(&self) -> Result<Report> {
        match self {
            Self::Connect(options) => connect::run(options),
            Self::Fanout(options) => fanout::run(options),
            Self::Post(options) => post::run(options),
            Self::List(options) => list::run(options),
            Self::Scrape(options) => scrape::run(options),
            Self::Storm(options) => storm::run(options),
            Self::Profiles(options) => profiles::run(options),
            Self::Crash(options) => crash::run(options),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let Some(scenario) = &arguments.scenario else {
        // A plain `cargo bench` runs every benchmark without arguments; a load needs to be asked for.
        Arguments::command().print_help()?;
        return Ok(());
    };
    support::process::raise_descriptor_limit()?;
    scenario.run()?.print(arguments.json)?;
    Ok(())
}
