//! Killed under load: whatever was acknowledged is there after the restart.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use superchat::ids::MessageId;
use superchat::wire::ServerMessage;
use superchat::wire::frame::Frame;
use superchat::wire::server::{MessageList, MessagePosted, NicknameResponse};

use super::post::posted_id;
use crate::support::clock;
use crate::support::closed_loop::{ClosedLoop, Exchange};
use crate::support::report::{Report, Target, float};
use crate::support::requests::{self, CHAT};
use crate::support::server::{Home, Server};
use crate::support::swarm::{Arrival, Script, Swarm};

/// Messages asked for at once when everything is read back; the largest page.
const PAGE: u16 = 200;
const READ_LIMIT: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Options {
    /// Publishers, each with one post under way.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1000))]
    publishers: u16,
    /// Milliseconds of load before the first kill; each further one comes a third later.
    #[arg(long, default_value_t = 700, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    millis: u64,
    /// Kills, all on the same database.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let home = Home::new()?;
    let mut acknowledged = HashMap::new();
    let mut restarts = Vec::new();
    let mut load = Duration::from_millis(options.millis);
    for round in 0..options.rounds {
        let mut server = home.start()?;
        restarts.push(server.ready_after);
        acknowledged.extend(post_until_killed(&mut server, options.publishers.into(), round, load)?);
        load += load / 3;
    }
    let server = home.start()?;
    restarts.push(server.ready_after);
    let stored = read_back(&server)?;
    server.stop()?;

    let missing = acknowledged.iter().filter(|(id, content)| stored.get(*id) != Some(*content)).count();
    let mut report = Report::new("crash");
    report.note("kills under load", f64::from(options.rounds), "");
    report.note("acknowledged messages", float(acknowledged.len() as u64), "");
    report.note("stored, not acknowledged in time", float((stored.len() + missing - acknowledged.len()) as u64), "");
    report.figure("acknowledged messages missing", float(missing as u64), "", Target::AtMost(0.0));
    let slowest = restarts.iter().skip(1).max().copied().unwrap_or_default();
    report.note("slowest restart after a kill", slowest.as_secs_f64() * 1e3, "ms");
    Ok(report)
}

/// Posts from all publishers, kills the server after `load`, and returns what it had acknowledged: id and text.
fn post_until_killed(
    server: &mut Server,
    publishers: usize,
    round: u8,
    load: Duration,
) -> Result<HashMap<u64, Vec<u8>>> {
    let mut swarm = Swarm::new()?;
    let all = swarm.connect(server.address, publishers)?;
    swarm.ask_each(all.clone(), NicknameResponse::CODE, |index| requests::set_nickname(&format!("poster-{index}")))?;
    let posting = Posting { round, posts: 0, under_way: vec![Vec::new(); publishers], acknowledged: HashMap::new() };
    let mut posts = ClosedLoop::start(&mut swarm, all, posting, READ_LIMIT)?;
    let ends = clock::now() + load;
    while clock::now() < ends {
        swarm.poll(&mut posts, ends.saturating_duration_since(clock::now()))?;
    }
    server.kill()?;
    // What the server had sent before it died is still in the sockets, and counts.
    swarm.run(&mut posts, READ_LIMIT)?;
    ensure!(posts.answers > 0, "nothing was acknowledged before the kill: give it more time");
    Ok(posts.exchange.acknowledged)
}

/// Posts of which no two have the same text.
struct Posting {
    round: u8,
    posts: u64,
    /// The text each publisher waits for an answer to.
    under_way: Vec<Vec<u8>>,
    acknowledged: HashMap<u64, Vec<u8>>,
}

impl Exchange for Posting {
    const ANSWER: u8 = MessagePosted::CODE;
    const MAY_CLOSE: bool = true;

    fn ask(&mut self, from: usize, out: &mut Vec<u8>) -> Result<()> {
        self.posts += 1;
        let content = format!("round {} publisher {from} post {}", self.round, self.posts).into_bytes();
        out.extend_from_slice(&requests::post(CHAT, &content)?);
        self.under_way[from] = content;
        Ok(())
    }

    fn answered(&mut self, from: usize, frame: Frame<'_>) -> Result<()> {
        let content = std::mem::take(&mut self.under_way[from]);
        let earlier = self.acknowledged.insert(posted_id(frame)?, content);
        ensure!(earlier.is_none(), "one id was given to two messages");
        Ok(())
    }
}

/// Everything the channel holds, page by page: id and text.
fn read_back(server: &Server) -> Result<HashMap<u64, Vec<u8>>> {
    let mut swarm = Swarm::new()?;
    let reader = swarm.connect(server.address, 1)?.start;
    let mut reading = Reading { stored: HashMap::new(), last_id: MessageId(0), complete: false, scratch: Vec::new() };
    swarm.send(reader, &requests::list(CHAT, PAGE, Some(reading.last_id))?)?;
    swarm.run(&mut reading, READ_LIMIT).context("reading everything back")?;
    Ok(reading.stored)
}

struct Reading {
    stored: HashMap<u64, Vec<u8>>,
    last_id: MessageId,
    complete: bool,
    scratch: Vec<u8>,
}

impl Script for Reading {
    fn arrived(&mut self, arrival: &Arrival<'_>, out: &mut Vec<u8>) -> Result<()> {
        if arrival.frame.code != MessageList::CODE {
            return Ok(());
        }
        let payload = arrival.frame.unpack(&mut self.scratch)?.payload;
        let ServerMessage::MessageList(page) = ServerMessage::read(MessageList::CODE, payload)? else {
            anyhow::bail!("not a MESSAGE_LIST")
        };
        for message in &page.messages.0 {
            ensure!(message.message_id > self.last_id, "a page goes back from {}", self.last_id);
            self.last_id = message.message_id;
            self.stored.insert(message.message_id.0, message.content.to_vec());
        }
        self.complete = page.messages.0.is_empty();
        if !self.complete {
            out.extend_from_slice(&requests::list(CHAT, PAGE, Some(self.last_id))?);
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.complete
    }
}
