//! Pages of a large channel beside pages of a small one: the length of a history must not show.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rusqlite::{Connection, Transaction, params};
use superchat::ids::ChannelId;
use superchat::wire::ServerMessage;
use superchat::wire::frame::Frame;
use superchat::wire::server::MessageList;

use crate::support::closed_loop::{ClosedLoop, Exchange};
use crate::support::histogram::Histogram;
use crate::support::report::{Report, Target, float, median, micros, micros_each, per_second};
use crate::support::requests::{self, CONTENT_BYTES, GENERAL, TECH};
use crate::support::server::{Home, Server};
use crate::support::swarm::Swarm;

/// Messages on one page.
const PAGE: u16 = 50;
/// Most messages of a channel: more would share a millisecond, and with it an id.
const MESSAGES_MAX: u64 = 3_000_000;
const _: () = assert!(MESSAGES_MAX <= SPAN_MS);
/// Replies below each root, so that a page also has to count.
const REPLIES_PER_ROOT: u64 = 9;
/// How much slower a page of the large channel may be: its index is deeper by a level, and that is all.
const RATIO_MAX: f64 = 1.3;
/// The span over which the stored messages are spread; within the retention of every seeded channel.
const SPAN_MS: u64 = 3_600_000;
/// Milliseconds from 1970-01-01 to 2024-01-01 UTC, where message ids begin (BEHAVIOUR.md 8.5).
const MESSAGE_EPOCH_MS: u64 = 1_704_067_200_000;

#[derive(Args)]
pub(crate) struct Options {
    /// Messages in the large channel.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=MESSAGES_MAX))]
    large: u64,
    /// Messages in the small channel.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1000..=MESSAGES_MAX))]
    small: u64,
    /// Clients, each with one request under way.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    /// Seconds of each trial.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Trials of each channel, alternating.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let home = Home::new()?;
    home.start()?.stop()?;
    fill(&home, options).context("filling the database")?;
    let server = home.start()?;
    let mut swarm = Swarm::new()?;
    let clients = swarm.connect(server.address, options.clients.into())?;
    let (mut large, mut small) = (Pages::new(GENERAL), Pages::new(TECH));
    for _ in 0..options.rounds {
        for pages in [&mut large, &mut small] {
            pages.trial(&server, &mut swarm, clients.len(), Duration::from_secs(options.seconds))?;
        }
    }

    let mut report = Report::new("list");
    let stored = options.large + options.small;
    report.note(format!("start with {stored} messages"), server.ready_after.as_secs_f64() * 1e3, "ms");
    report.note("resident bytes of the server", float(server.anonymous_bytes()?), "B");
    large.report(&mut report, options.large);
    small.report(&mut report, options.small);
    report.figure("p50, large against small", large.p50() / small.p50(), "x", Target::AtMost(RATIO_MAX));
    server.stop()?;
    Ok(report)
}

/// Stores the messages of both channels past the server.
fn fill(home: &Home, options: &Options) -> Result<()> {
    let mut database = Connection::open(home.database())?;
    let transaction = database.transaction()?;
    insert(&transaction, GENERAL, options.large, 0)?;
    insert(&transaction, TECH, options.small, 1)?;
    transaction.commit()?;
    let (busy, _, _): (i64, i64, i64) =
        database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    ensure!(busy == 0, "the database is in use");
    Ok(())
}

/// Spreads `count` messages of a channel over the last hour, at most one in each millisecond; `sequence` keeps the ids
/// of channels apart.
fn insert(transaction: &Transaction<'_>, channel: ChannelId, count: u64, sequence: u64) -> Result<()> {
    let mut statement = transaction.prepare(
        "INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at)
         VALUES (?, ?, ?, ?, 'filler', ?, ?)",
    )?;
    let content = "m".repeat(CONTENT_BYTES);
    let first_ms = unix_ms()?.saturating_sub(SPAN_MS);
    let mut root_id = 0;
    for index in 0..count {
        let sent_ms = first_ms + index * SPAN_MS / count;
        let id = i64::try_from(((sent_ms - MESSAGE_EPOCH_MS) << 22) | sequence)?;
        let is_root = index % (REPLIES_PER_ROOT + 1) == 0;
        if is_root {
            root_id = id;
        }
        let parent_id = (!is_root).then_some(root_id);
        let created_at = i64::try_from(sent_ms)?;
        statement.execute(params![id, channel.as_sql(), parent_id, root_id, content, created_at])?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "rows written past the server carry the time of day as its own do")]
fn unix_ms() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?)
}

/// Requests for the first page of one channel, and what they took.
struct Pages {
    channel: ChannelId,
    requests: u64,
    cpu: Duration,
    rates: Vec<f64>,
    latency: Histogram,
}

impl Pages {
    fn new(channel: ChannelId) -> Self {
        Self { channel, requests: 0, cpu: Duration::ZERO, rates: Vec::new(), latency: Histogram::new() }
    }

    fn trial(&mut self, server: &Server, swarm: &mut Swarm, clients: usize, duration: Duration) -> Result<()> {
        let listing =
            Listing { request: requests::list(self.channel, PAGE, None)?, channel: self.channel, scratch: Vec::new() };
        let cpu_before = server.cpu()?;
        let outcome = ClosedLoop::run(swarm, 0..clients, listing, duration)?;
        self.cpu += server.cpu()? - cpu_before;
        self.requests += outcome.answers;
        self.rates.push(per_second(outcome.answers, outcome.elapsed));
        self.latency.add(&outcome.latency);
        Ok(())
    }

    fn p50(&self) -> f64 {
        micros(self.latency.permille(500))
    }

    fn report(&self, report: &mut Report, messages: u64) {
        let name = format!("pages of {PAGE} from {messages}");
        report.note(name.clone(), median(&self.rates), "/s");
        report.latency(&name, &self.latency);
        report.note(format!("{name}, server CPU"), micros_each(self.cpu, self.requests), "us");
    }
}

struct Listing {
    request: Vec<u8>,
    channel: ChannelId,
    scratch: Vec<u8>,
}

impl Exchange for Listing {
    const ANSWER: u8 = MessageList::CODE;

    fn ask(&mut self, _from: usize, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.request);
        Ok(())
    }

    fn answered(&mut self, _from: usize, frame: Frame<'_>) -> Result<()> {
        let unpacked = frame.unpack(&mut self.scratch)?;
        let ServerMessage::MessageList(page) = ServerMessage::read(frame.code, unpacked.payload)? else {
            anyhow::bail!("not a MESSAGE_LIST")
        };
        let messages = &page.messages.0;
        ensure!(messages.len() == usize::from(PAGE), "a page of {} messages", messages.len());
        ensure!(messages.iter().all(|message| message.channel_id == self.channel), "a message of another channel");
        ensure!(messages.is_sorted_by(|newer, older| newer.message_id > older.message_id), "not newest first");
        ensure!(
            messages.iter().all(|message| u64::from(message.reply_count) == REPLIES_PER_ROOT),
            "a root without its {REPLIES_PER_ROOT} replies"
        );
        Ok(())
    }
}
