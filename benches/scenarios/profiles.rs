//! What profiles cost in CPU time: that allocations are sampled while nobody looks, and CPU samples while they are taken.
//! Both can be switched on and off in a running server, so one process is compared with itself.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::fanout::Audience;
use super::post::Publishers;
use crate::pprof::{self, DecodedSample};
use crate::support::clock;
use crate::support::paired::{Slice, costs, estimate};
use crate::support::report::{Report, Target, micros};
use crate::support::server::{Home, Server, free_address};

/// What sampling allocations may cost that nobody reads, in percent of the CPU time of an operation.
const UNREAD_COST_PERCENT_MAX: f64 = 1.0;
/// What CPU samples at 100 Hz may cost.
const CPU_COST_PERCENT_MAX: f64 = 2.0;
/// A slice with CPU samples lasts for some turns of the thread that collects them, each 100 ms.
const PROFILED: Duration = Duration::from_millis(500);
/// How long a CPU profile is when nobody says.
const PROFILE_SECONDS: u64 = 30;
/// How long a server works before anything counts: at first, and before a slice with CPU samples or without.
const WARM_UP: Duration = Duration::from_secs(1);
const SETTLING: Duration = Duration::from_millis(200);
/// How long it works after a report, before the next slice: until what the report used has gone back to the system.
const AFTERMATH: Duration = Duration::from_millis(1500);
/// How long a busy machine may take to begin with CPU samples.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The threads that answer on the profiles port.
const WORKERS: &str = "profiles-";

/// Subscribers only listen, in long runs for longer than a silent session may live.
const SILENCE: (&str, &str) = ("SUPERCHAT_LIMITS_SESSION_TIMEOUT_SECONDS", "0");

#[derive(Args)]
pub(crate) struct Options {
    /// Publishers, each with one post under way, while posts are measured.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=5000))]
    publishers: u16,
    /// Subscribers, while deliveries are measured.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=15_000))]
    subscribers: u16,
    /// Posts in each burst, while deliveries are measured.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    burst: u64,
    /// Pairs of slices, one with what is measured and one without.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u16).range(6..=10_000))]
    pairs: u16,
    /// The same with CPU samples, whose slices are longer.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(6..=1000))]
    profiled_pairs: u16,
    /// Milliseconds of each slice.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    slice_millis: u64,
    /// Decides which slice of each pair comes first.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut report = Report::new("profiles");
    measured("post", options, &mut report, |server| {
        let mut publishers = Publishers::join(server, options.publishers.into())?;
        Ok(Box::new(move || {
            let trial = publishers.post(Duration::ZERO)?;
            Ok(Slice { operations: trial.posts, cpu: trial.cpu })
        }))
    })?;
    let burst = options.burst;
    measured("delivery", options, &mut report, |server| {
        let mut audience = Audience::join(server, options.subscribers.into())?;
        Ok(Box::new(move || {
            let trial = audience.burst(burst)?;
            Ok(Slice { operations: trial.deliveries, cpu: trial.cpu })
        }))
    })?;
    Ok(report)
}

/// One round of work, the same each time, and what it took.
type Round<'s> = Box<dyn FnMut() -> Result<Slice> + 's>;

/// Rounds of work one after the other, for about as long as said.
fn work(round: &mut Round<'_>, duration: Duration) -> Result<Slice> {
    let (ends, mut sum) = (clock::now() + duration, Slice { operations: 0, cpu: Duration::ZERO });
    while sum.operations == 0 || clock::now() < ends {
        let taken = round()?;
        sum.operations += taken.operations;
        sum.cpu += taken.cpu;
    }
    Ok(sum)
}

/// A server of its own under the load that `join` makes.
fn measured(
    operation: &str,
    options: &Options,
    report: &mut Report,
    join: impl for<'s> FnOnce(&'s Server) -> Result<Round<'s>>,
) -> Result<()> {
    let (home, port) = (Home::new()?, free_address()?);
    let server = home.start_with(&[SILENCE, ("SUPERCHAT_ADMIN_PROFILE_LISTEN", &port.to_string())])?;
    let mut round = join(&server)?;
    work(&mut round, WARM_UP).context("warming up")?;
    let slice = Duration::from_millis(options.slice_millis);

    let mut allocations = |control: bool| {
        costs(options.pairs, options.seed, |sampled| {
            sample_allocations(port, control || sampled)?;
            work(&mut round, slice)
        })
    };
    let (nothing, unread) = (allocations(true)?, allocations(false)?);
    sample_allocations(port, true)?;
    let cpu_samples = costs(options.profiled_pairs, options.seed, |sampled| {
        if sampled {
            profiled(&server, port, &mut round)
        } else {
            work(&mut round, SETTLING)?;
            work(&mut round, PROFILED)
        }
    })?;
    let shares = shares(&server, port, &mut round)?;
    drop(round);
    server.stop()?;

    report.estimate(&format!("{operation}: control, nothing switched"), estimate(&nothing), Target::None);
    let target = Target::AtMost(UNREAD_COST_PERCENT_MAX);
    report.estimate(&format!("{operation}: profiles that nobody reads"), estimate(&unread), target);
    let target = Target::AtMost(CPU_COST_PERCENT_MAX);
    report.estimate(&format!("{operation}: CPU samples at 100 Hz"), estimate(&cpu_samples), target);
    report.note(format!("{operation}: CPU samples within samples of allocations"), shares.allocations, "%");
    report.note(format!("{operation}: of how many CPU samples"), shares.samples as f64, "");
    let millis = |time| micros(time) / 1000.0;
    report.note(
        format!("{operation}: CPU to collect {PROFILE_SECONDS} s of CPU samples"),
        millis(shares.collecting),
        "ms",
    );
    report.note(format!("{operation}: CPU to name and write them"), millis(shares.report), "ms");
    Ok(())
}

/// Switches the samples of allocations on or off.
fn sample_allocations(port: SocketAddr, sampled: bool) -> Result<()> {
    Exchange::begin(port, &format!("POST /debug/pprof/heap?active={}", u8::from(sampled)))?.end().map(|_| ())
}

/// A slice of `round` while CPU samples are taken. The profile would go on for minutes and ends when its reader listens no
/// more; its report is awaited, and no part of the slice.
fn profiled(server: &Server, port: SocketAddr, round: &mut Round<'_>) -> Result<Slice> {
    let profile = Exchange::begin(port, "GET /debug/pprof/profile?seconds=300&hz=100")?;
    let given_up = clock::now() + START_LIMIT;
    while !server.is_profiled()? {
        ensure!(clock::now() < given_up, "no CPU samples were taken within {START_LIMIT:?}");
        round()?;
    }
    work(round, SETTLING)?;
    let slice = work(round, PROFILED)?;
    ensure!(server.is_profiled()?, "the profile ended before the slice");
    profile.leave()?;
    work(round, AFTERMATH)?;
    Ok(slice)
}

/// What a profile as operators take it says about its own cost and that of samples of allocations.
struct Shares {
    /// CPU time of the thread that collects CPU samples, before it writes its report.
    collecting: Duration,
    /// CPU time for names and the file once all samples are there.
    report: Duration,
    /// Percent of all CPU samples that were taken while an allocation was sampled or such a sample given back.
    allocations: f64,
    /// Of how many CPU samples.
    samples: i64,
}

fn shares(server: &Server, port: SocketAddr, round: &mut Round<'_>) -> Result<Shares> {
    let workers_before = server.cpu_of_threads(WORKERS)?;
    let profile = Exchange::begin(port, &format!("GET /debug/pprof/profile?seconds={PROFILE_SECONDS}&hz=100"))?;
    // The load ends a little early, so that the rest of the profile shows nothing but the collecting.
    work(round, Duration::from_secs(PROFILE_SECONDS) - SETTLING)?;
    let workers = server.cpu_of_threads(WORKERS)?;
    let profile = pprof::decode(&profile.end()?);
    let reported = server.cpu_of_threads(WORKERS)?;
    let samples = profile.sum("samples", "");
    let sampling = profile.samples.iter().filter(|sample| is_sampling(sample)).map(|sample| sample.values[0]);
    Ok(Shares {
        collecting: workers - workers_before,
        report: reported.saturating_sub(workers),
        allocations: sampling.sum::<i64>() as f64 / samples as f64 * 100.0,
        samples,
    })
}

/// Whether a stack passes through the allocator's sampling, or the unwinder, which nobody else calls.
fn is_sampling(sample: &DecodedSample) -> bool {
    let mut lines = sample.stack.iter().flat_map(|location| &location.lines);
    lines.any(|line| ["prof_", "_Unwind_", "imalloc_sample"].iter().any(|part| line.function.contains(part)))
}

/// A request on the profiles port whose answer is awaited later.
struct Exchange(TcpStream);

impl Exchange {
    fn begin(address: SocketAddr, request: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("the profiles port")?;
        stream.set_read_timeout(Some(Duration::from_secs(PROFILE_SECONDS + 30)))?;
        write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")?;
        Ok(Self(stream))
    }

    /// Ends what would be recorded for longer, and returns what there is.
    fn leave(self) -> Result<Vec<u8>> {
        self.0.shutdown(Shutdown::Write)?;
        self.end()
    }

    /// The body of the answer, which must be 200.
    fn end(mut self) -> Result<Vec<u8>> {
        let mut answer = Vec::new();
        self.0.read_to_end(&mut answer)?;
        let body = answer.windows(4).position(|end| end == b"\r\n\r\n").context("an answer without a head")? + 4;
        ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..answer.len().min(500)]));
        Ok(answer.split_off(body))
    }
}
