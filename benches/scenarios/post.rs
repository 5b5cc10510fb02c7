//! Durable posts of many publishers, beside plain append and `fdatasync` of the same bytes.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use superchat::wire::ServerMessage;
use superchat::wire::frame::Frame;
use superchat::wire::server::{MessagePosted, NicknameResponse};

use crate::support::bare;
use crate::support::closed_loop::{ClosedLoop, Exchange};
use crate::support::histogram::Histogram;
use crate::support::report::{Report, Target, float, median, micros_each, per_second};
use crate::support::requests::{self, CHAT, CONTENT_BYTES};
use crate::support::server::Home;
use crate::support::swarm::Swarm;

/// CPU time a durable post may cost the server, in microseconds (DESIGN.md, performance budget).
const POST_CPU_MICROS_MAX: f64 = 40.0;

#[derive(Args)]
pub(crate) struct Options {
    /// Publishers, each with one post under way.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=5000))]
    publishers: u16,
    /// Seconds of each trial.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Trials of the server, alternating with trials of the bare loop.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let publishers = usize::from(options.publishers);
    let duration = Duration::from_secs(options.seconds);
    let home = Home::new()?;
    let server = home.start()?;
    let mut swarm = Swarm::new()?;
    let all = swarm.connect(server.address, publishers)?;
    swarm.ask_each(all.clone(), NicknameResponse::CODE, |index| requests::set_nickname(&format!("poster-{index}")))?;

    let content = [b'm'; CONTENT_BYTES];
    let request = requests::post(CHAT, &content)?;
    let mut last_ids = vec![0; publishers];
    let mut total = Totals::default();
    for _ in 0..options.rounds {
        let appended = bare::append(home.path(), &content, publishers, duration)?;
        total.bare_rates.push(per_second(appended.records, appended.elapsed));
        total.bare_latency.add(&appended.latency);

        let cpu_before = server.cpu()?;
        let outcome = ClosedLoop::run(&mut swarm, all.clone(), Posting { request: &request, last_ids }, duration)?;
        total.cpu += server.cpu()? - cpu_before;
        total.posts += outcome.answers;
        total.rates.push(per_second(outcome.answers, outcome.elapsed));
        total.latency.add(&outcome.latency);
        last_ids = outcome.exchange.last_ids;
    }
    server.stop()?;
    Ok(total.report(publishers))
}

/// Each publisher posts the same text again and again.
struct Posting<'r> {
    request: &'r [u8],
    last_ids: Vec<u64>,
}

impl Exchange for Posting<'_> {
    const ANSWER: u8 = MessagePosted::CODE;

    fn ask(&mut self, _from: usize, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(self.request);
        Ok(())
    }

    fn answered(&mut self, from: usize, frame: Frame<'_>) -> Result<()> {
        let id = posted_id(frame)?;
        ensure!(id > self.last_ids[from], "publisher {from} got id {id} after {}", self.last_ids[from]);
        self.last_ids[from] = id;
        Ok(())
    }
}

/// The id in a MESSAGE_POSTED.
pub(crate) fn posted_id(frame: Frame<'_>) -> Result<u64> {
    match ServerMessage::read(frame.code, frame.payload)? {
        ServerMessage::MessagePosted(MessagePosted { success: true, message_id, .. }) => Ok(message_id.0),
        other => anyhow::bail!("a post was answered by {other:?}"),
    }
}

/// What the trials add up to.
struct Totals {
    posts: u64,
    cpu: Duration,
    rates: Vec<f64>,
    latency: Histogram,
    bare_rates: Vec<f64>,
    bare_latency: Histogram,
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            posts: 0,
            cpu: Duration::ZERO,
            rates: Vec::new(),
            latency: Histogram::new(),
            bare_rates: Vec::new(),
            bare_latency: Histogram::new(),
        }
    }
}

impl Totals {
    fn report(&self, publishers: usize) -> Report {
        let mut report = Report::new("post");
        let ratios: Vec<f64> = self.rates.iter().zip(&self.bare_rates).map(|(ours, bare)| ours / bare).collect();
        report.note("publishers", float(publishers as u64), "");
        report.note("durable posts", median(&self.rates), "/s");
        report.latency("post to acknowledgement", &self.latency);
        let each = micros_each(self.cpu, self.posts);
        report.figure("server CPU per post", each, "us", Target::AtMost(POST_CPU_MICROS_MAX));
        report.note("bare: append, fdatasync per group of all", median(&self.bare_rates), "/s");
        report.latency("bare: append and fdatasync", &self.bare_latency);
        report.note("posts against the bare loop", median(&ratios), "x");
        report
    }
}
