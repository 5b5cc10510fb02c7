//! A scrape of a crowded server: how long it takes, and whether anybody in the chat notices.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rusqlite::{Connection, params};
use superchat::ids::ChannelId;
use superchat::wire::frame::Frame;
use superchat::wire::server::{MessagePosted, NicknameResponse, Pong, SubscribeOk};

use crate::support::clock;
use crate::support::closed_loop::{ClosedLoop, Exchange};
use crate::support::histogram::Histogram;
use crate::support::report::{Report, Target, float, micros};
use crate::support::requests;
use crate::support::server::{Home, Server, free_address};
use crate::support::swarm::Swarm;

/// OBSERVABILITY.md: what a scrape of 10,000 sessions and 1000 channels may take.
const SCRAPE_MILLIS_MAX: f64 = 20.0;
/// Sessions that say PING without pause, so that each shard has one that would feel a stop.
const HEARTBEATS: usize = 8;
/// Channels that the scenario makes have ids from here on, behind those of a new database.
const FIRST_CHANNEL: u64 = 1000;
/// How long an answer may take before the run is given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct Options {
    /// Sessions, each subscribed to one channel.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    sessions: u32,
    /// Channels, each with a message; beyond 1000 they share a series.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1000))]
    channels: u32,
    /// Seconds with scrapes, one behind the other, and seconds without.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut report = Report::new("scrape");
    let home = Home::new()?;
    let few = home.start()?;
    let before = few.settled_bytes()?;
    few.stop()?;
    make_channels(&home, options.channels)?;

    let metrics = free_address()?;
    let server = home.start_with(&[("SUPERCHAT_ADMIN_METRICS_LISTEN", &metrics.to_string())])?;
    let with_channels = server.settled_bytes()?;
    let mut swarm = crowd(&server, options)?;
    let with_sessions = server.settled_bytes()?;

    let duration = Duration::from_secs(options.seconds);
    let alone = heartbeats(&mut swarm, duration)?;
    let done = AtomicBool::new(false);
    let (scraped, scrapes) = thread::scope(|scope| {
        let scraping = scope.spawn(|| scrape_until(&done, metrics, options));
        let scraped = heartbeats(&mut swarm, duration);
        done.store(true, Ordering::Relaxed);
        let Ok(scrapes) = scraping.join() else { bail!("the scraper panicked") };
        Ok((scraped?, scrapes?))
    })?;

    report.note("sessions", float(options.sessions.into()), "");
    report.note("channels", float(options.channels.into()), "");
    let channel_bytes = float(with_channels.saturating_sub(before)) / float(options.channels.into());
    report.note("resident bytes per channel", channel_bytes, "B");
    let session_bytes = float(with_sessions.saturating_sub(with_channels)) / float(options.sessions.into());
    report.note("resident bytes per subscribed session", session_bytes, "B");
    report.note("bytes of a scrape", float(scrapes.bytes), "B");
    let p50 = micros(scrapes.times.permille(500)) / 1000.0;
    report.figure("scrape p50", p50, "ms", Target::AtMost(SCRAPE_MILLIS_MAX));
    report.note("scrape p99", micros(scrapes.times.permille(990)) / 1000.0, "ms");
    report.latency("PING without scrapes", &alone);
    report.latency("PING with scrapes", &scraped);
    server.stop()?;
    Ok(report)
}

/// Adds channels past the server.
fn make_channels(home: &Home, count: u32) -> Result<()> {
    let mut database = Connection::open(home.database())?;
    let transaction = database.transaction()?;
    for number in 0..count {
        let (id, name) = (i64::try_from(FIRST_CHANNEL)? + i64::from(number), format!("crowd-{number}"));
        transaction.execute(
            "INSERT INTO Channel (id, name, display_name, description, channel_type, message_retention_hours, created_at)
             VALUES (?, ?, ?, 'made by the load generator', 1, 168, 0)",
            params![id, name, name],
        )?;
    }
    Ok(transaction.commit()?)
}

/// Everybody subscribes to a channel, and one more posts once into each.
fn crowd(server: &Server, options: &Options) -> Result<Swarm> {
    let channel = |index: u64| ChannelId(FIRST_CHANNEL + index % u64::from(options.channels));
    let mut swarm = Swarm::new()?;
    let all = swarm.connect(server.address, options.sessions as usize)?;
    swarm.ask_each(all, SubscribeOk::CODE, |index| requests::subscribe(channel(index as u64)))?;
    let author = swarm.connect(server.address, 1)?;
    swarm.ask_each(author.clone(), NicknameResponse::CODE, |_| requests::set_nickname("author"))?;
    for index in 0..u64::from(options.channels) {
        let post = requests::post(channel(index), b"hello")?;
        swarm.ask_each(author.clone(), MessagePosted::CODE, |_| Ok(post.clone()))?;
    }
    Ok(swarm)
}

fn heartbeats(swarm: &mut Swarm, duration: Duration) -> Result<Histogram> {
    Ok(ClosedLoop::run(swarm, 0..HEARTBEATS, Heartbeat(requests::ping()?), duration)?.latency)
}

struct Heartbeat(Vec<u8>);

impl Exchange for Heartbeat {
    const ANSWER: u8 = Pong::CODE;

    fn ask(&mut self, _from: usize, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.0);
        Ok(())
    }

    fn answered(&mut self, _from: usize, _frame: Frame<'_>) -> Result<()> {
        Ok(())
    }
}

/// How long scrapes took, from connecting to the last byte, and how long the last one was.
struct Scrapes {
    times: Histogram,
    bytes: u64,
}

fn scrape_until(done: &AtomicBool, address: SocketAddr, options: &Options) -> Result<Scrapes> {
    let mut scrapes = Scrapes { times: Histogram::new(), bytes: 0 };
    while !done.load(Ordering::Relaxed) {
        let began = clock::now();
        let text = scrape(address)?;
        scrapes.times.record(began.elapsed());
        scrapes.bytes = text.len() as u64;
        check(&text, options)?;
    }
    Ok(scrapes)
}

fn scrape(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{}", answer.lines().next().unwrap_or_default());
    Ok(answer)
}

/// Everybody and every channel is in it.
fn check(text: &str, options: &Options) -> Result<()> {
    let sessions = text.lines().find_map(|line| line.strip_prefix("superchat_active_sessions "));
    let sessions: u32 = sessions.context("no superchat_active_sessions")?.parse()?;
    ensure!(sessions == options.sessions + 1, "{sessions} sessions");
    for series in ["superchat_channel_subscribers{", "superchat_messages_delivered_total{"] {
        let count = text.lines().filter(|line| line.starts_with(series)).count();
        ensure!(count == options.channels as usize, "{count} series of {series}");
    }
    Ok(())
}
