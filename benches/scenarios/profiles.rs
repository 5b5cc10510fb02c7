//! What profiles cost, flat out: that they are there while nobody reads them, and CPU samples while they are taken.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::fanout::{Audience, Costs, Options};
use crate::support::report::{Report, Target, median};
use crate::support::server::{Home, free_address};

/// What sampling allocations may cost that nobody reads, in percent of the deliveries.
const UNREAD_COST_PERCENT_MAX: f64 = 1.0;
/// What CPU samples at 100 Hz may cost.
const CPU_COST_PERCENT_MAX: f64 = 2.0;
/// Longer than a trial of `seconds`, which ends with its last deliveries.
const SPARE_SECONDS: u64 = 1;

/// Subscribers only listen, and each of the two servers waits for the other's turns: in long runs for longer than a silent
/// session may live.
const SILENCE: (&str, &str) = ("SUPERCHAT_LIMITS_SESSION_TIMEOUT_SECONDS", "0");

/// The server as it is, one that takes no samples of allocations, and the first with CPU samples: in turns, so that a
/// machine that gets slower does so for all of them.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut report = Report::new("profiles");
    let (home, bare_home) = (Home::new()?, Home::new()?);
    let port = free_address()?;
    let sampling = home.start_with(&[SILENCE, ("SUPERCHAT_ADMIN_PROFILE_LISTEN", &port.to_string())])?;
    let bare = bare_home.start_with(&[SILENCE, ("_RJEM_MALLOC_CONF", "prof_active:false")])?;
    let mut audience = Audience::join(&sampling, options.subscribers.into())?;
    let mut bare_audience = Audience::join(&bare, options.subscribers.into())?;
    audience.flat(options).context("warming up")?;
    bare_audience.flat(options).context("warming up")?;

    let [mut unread, mut without, mut sampled] = [Costs::new(), Costs::new(), Costs::new()];
    let [mut unread_rate, mut unread_cpu, mut cpu_rate, mut cpu_cpu] = [const { Vec::new() }; 4];
    for round in 0..options.rounds {
        // Taking turns at being first cancels a drift of the machine.
        for turn in 0..3 {
            match (turn + round) % 3 {
                0 => unread.add(&audience.flat(options)?),
                1 => without.add(&bare_audience.flat(options)?),
                _ => {
                    let seconds = options.seconds + SPARE_SECONDS;
                    let profile = thread::scope(|scope| {
                        let profile = scope.spawn(|| cpu_profile(port, seconds));
                        sampled.add(&audience.flat(options)?);
                        profile.join().map_err(|_| anyhow::anyhow!("the reader of the profile panicked"))?
                    })?;
                    ensure!(profile > 1000, "a profile of a busy server has more than {profile} bytes");
                }
            }
        }
        unread_rate.push(cost(without.last_rate(), unread.last_rate()));
        unread_cpu.push(cost(unread.last_each(), without.last_each()));
        cpu_rate.push(cost(unread.last_rate(), sampled.last_rate()));
        cpu_cpu.push(cost(sampled.last_each(), unread.last_each()));
    }
    report.note("deliveries without samples of allocations", median(&without.rates), "/s");
    report.note("deliveries, nobody reads profiles", median(&unread.rates), "/s");
    report.note("deliveries while CPU samples are taken", median(&sampled.rates), "/s");
    let unread_max = Target::AtMost(UNREAD_COST_PERCENT_MAX);
    report.figure("what unread profiles cost in deliveries", median(&unread_rate), "%", unread_max);
    report.note("what they cost in server CPU per delivery", median(&unread_cpu), "%");
    let cpu_max = Target::AtMost(CPU_COST_PERCENT_MAX);
    report.figure("what CPU samples cost in deliveries", median(&cpu_rate), "%", cpu_max);
    report.note("what they cost in server CPU per delivery", median(&cpu_cpu), "%");
    sampling.stop()?;
    bare.stop()?;
    Ok(report)
}

/// How much more `more` is than `less`, in percent.
fn cost(more: f64, less: f64) -> f64 {
    (more / less - 1.0) * 100.0
}

/// The length of a CPU profile of so many seconds, at 100 Hz.
fn cpu_profile(address: SocketAddr, seconds: u64) -> Result<usize> {
    let mut stream = TcpStream::connect(address).context("the profiles port")?;
    stream.set_read_timeout(Some(Duration::from_secs(seconds + 30)))?;
    write!(stream, "GET /debug/pprof/profile?seconds={seconds}&hz=100 HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..answer.len().min(500)]));
    Ok(answer.len())
}
