//! Durable posts of many publishers, beside plain append and `fdatasync` of the same bytes.

use std::ops::Range;
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
use crate::support::server::{Home, Server};
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
    let mut crowd = Publishers::join(&server, publishers)?;

    let mut total = Totals::default();
    for _ in 0..options.rounds {
        let appended = bare::append(home.path(), &CONTENT, publishers, duration)?;
        total.bare_rates.push(per_second(appended.records, appended.elapsed));
        total.bare_latency.add(&appended.latency);

        let trial = crowd.post(duration)?;
        total.cpu += trial.cpu;
        total.posts += trial.posts;
        total.rates.push(per_second(trial.posts, trial.elapsed));
        total.latency.add(&trial.latency);
    }
    server.stop()?;
    Ok(total.report(publishers))
}

/// What every post says.
const CONTENT: [u8; CONTENT_BYTES] = [b'm'; CONTENT_BYTES];

/// Those who post to a server, each with one post under way.
pub(super) struct Publishers<'s> {
    server: &'s Server,
    swarm: Swarm,
    all: Range<usize>,
    request: Vec<u8>,
    last_ids: Vec<u64>,
}

/// What one trial took.
pub(super) struct Trial {
    pub(super) posts: u64,
    /// Of the server.
    pub(super) cpu: Duration,
    elapsed: Duration,
    latency: Histogram,
}

impl<'s> Publishers<'s> {
    pub(super) fn join(server: &'s Server, count: usize) -> Result<Self> {
        let mut swarm = Swarm::new()?;
        let all = swarm.connect(server.address, count)?;
        swarm.ask_each(all.clone(), NicknameResponse::CODE, |index| {
            requests::set_nickname(&format!("poster-{index}"))
        })?;
        Ok(Self { server, swarm, all, request: requests::post(CHAT, &CONTENT)?, last_ids: vec![0; count] })
    }

    /// Everybody posts for `duration`; ends with the last acknowledgement.
    pub(super) fn post(&mut self, duration: Duration) -> Result<Trial> {
        let cpu_before = self.server.cpu()?;
        let posting = Posting { request: &self.request, last_ids: &mut self.last_ids };
        let outcome = ClosedLoop::run(&mut self.swarm, self.all.clone(), posting, duration)?;
        let cpu = self.server.cpu()? - cpu_before;
        Ok(Trial { posts: outcome.answers, cpu, elapsed: outcome.elapsed, latency: outcome.latency })
    }
}

/// Each publisher posts the same text again and again.
struct Posting<'r> {
    request: &'r [u8],
    last_ids: &'r mut [u64],
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
