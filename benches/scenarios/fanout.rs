//! One publisher, many subscribers: what a delivery costs beside a bare `send`, how many a second there can be, and
//! what subscribers that never read cost the others.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use superchat::wire::frame::Frame;
use superchat::wire::server::{NicknameResponse, SubscribeOk};

use crate::support::bare::{BareSender, BareTrial, Plan, Sent};
use crate::support::clock;
use crate::support::deliveries::Deliveries;
use crate::support::histogram::Histogram;
use crate::support::process;
use crate::support::report::{Report, Target, float, median, micros_each, per_second};
use crate::support::requests::{self, CHAT, CONTENT_BYTES};
use crate::support::server::{Home, Server};
use crate::support::swarm::{Swarm, dial};

/// What a delivery may cost the server, as a multiple of the bare loop's.
const DELIVERY_COST_MAX: f64 = 1.3;
/// Deliveries per second, flat out.
const DELIVERIES_PER_SECOND_MIN: f64 = 1_000_000.0;
/// What stalled subscribers may cost the others, in percent.
const STALLED_COST_PERCENT_MAX: f64 = 1.0;
/// One subscriber in so many stalls.
const STALLED_SHARE: usize = 100;
/// What the kernel keeps for a stalled subscriber; little, so that the server feels it soon.
const STALLED_BUFFER_BYTES: usize = 4096;
/// How long the last deliveries may take.
const TAIL_LIMIT: Duration = Duration::from_secs(30);
/// How long one wait may last before the clock is looked at again.
const POLL_PAUSE: Duration = Duration::from_millis(5);

const PUBLISHER: &str = "publisher";

#[derive(Args)]
pub(crate) struct Options {
    /// Subscribers.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=15_000))]
    subscribers: u16,
    /// Posts per second of the trials at a fixed rate.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
    /// Posts under way, flat out: posted and not yet with every subscriber. As many the bare loop puts into one write.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    window: u64,
    /// Seconds of each trial.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Trials of each kind, alternating.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    /// Measure, instead of the above, what one subscriber in a hundred that never reads costs the others.
    #[arg(long)]
    stalled: bool,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let mut report = Report::new("fanout");
    report.note("subscribers", f64::from(options.subscribers), "");
    let home = Home::new()?;
    let server = home.start()?;
    if options.stalled {
        stalled(&server, options, &mut report)?;
    } else {
        let mut audience = Audience::join(&server, options.subscribers.into())?;
        let mut bare = BareAudience::new(options.subscribers.into())?;
        fixed_rate(&mut audience, &mut bare, options, &mut report)?;
        flat_out(&mut audience, &mut bare, options, &mut report)?;
    }
    server.stop()?;
    Ok(report)
}

fn fixed_rate(
    audience: &mut Audience<'_>,
    bare: &mut BareAudience,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let (mut ours, mut least, mut ratios) = (Costs::new(), Costs::new(), Vec::new());
    for _ in 0..options.rounds {
        least.add(&bare.paced(options)?);
        ours.add(&audience.paced(options)?);
        ratios.push(ours.last_each() / least.last_each());
    }
    let rate = options.rate;
    report.note(format!("server CPU per delivery at {rate} posts/s"), ours.each(), "us");
    report.note(format!("bare: CPU per delivery at {rate} posts/s"), least.each(), "us");
    report.figure("delivery against the bare loop", median(&ratios), "x", Target::AtMost(DELIVERY_COST_MAX));
    report.latency("post to delivery", &ours.latency);
    report.latency("bare: send to delivery", &least.latency);
    report.note("generator CPU per delivery", ours.generator_each(), "us");
    Ok(())
}

fn flat_out(
    audience: &mut Audience<'_>,
    bare: &mut BareAudience,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let (mut ours, mut least, mut ratios) = (Costs::new(), Costs::new(), Vec::new());
    for _ in 0..options.rounds {
        least.add(&bare.flat(options)?);
        ours.add(&audience.flat(options.window, options.duration())?);
        ratios.push(ours.last_rate() / least.last_rate());
    }
    report.figure("deliveries flat out", median(&ours.rates), "/s", Target::AtLeast(DELIVERIES_PER_SECOND_MIN));
    report.note("posts flat out", median(&ours.rates) / f64::from(options.subscribers), "/s");
    report.note("server CPU per delivery flat out", ours.each(), "us");
    report.note("generator CPU per delivery flat out", ours.generator_each(), "us");
    report.latency("post to delivery flat out", &ours.latency);
    let window = options.window;
    report.note(format!("bare: deliveries, {window} in each write"), median(&least.rates), "/s");
    report.note(format!("bare: CPU per delivery, {window} in each write"), least.each(), "us");
    report.note("deliveries against the bare loop", median(&ratios), "x");
    Ok(())
}

/// Alternates trials with and without subscribers that never read; the others are the same ones throughout.
fn stalled(server: &Server, options: &Options, report: &mut Report) -> Result<()> {
    let stalling = usize::from(options.subscribers).div_ceil(STALLED_SHARE);
    let reading = usize::from(options.subscribers).checked_sub(stalling).filter(|reading| *reading > 0);
    let mut audience = Audience::join(server, reading.context("a single subscriber cannot stall and read")?)?;
    audience.flat(options.window, options.duration()).context("warming up")?;
    let (mut without, mut with, mut cut) = (Costs::new(), Costs::new(), 0);
    let (mut rate_costs, mut cpu_costs) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        // Taking turns at being first cancels a drift of the machine.
        for is_stalled in [round % 2 == 0, round % 2 != 0] {
            if is_stalled {
                let sleepers = Sleepers::join(server, stalling)?;
                with.add(&audience.flat(options.window, options.duration())?);
                cut += sleepers.cut()?;
            } else {
                without.add(&audience.flat(options.window, options.duration())?);
            }
        }
        rate_costs.push((without.last_rate() / with.last_rate() - 1.0) * 100.0);
        cpu_costs.push((with.last_each() / without.last_each() - 1.0) * 100.0);
    }
    report.note("stalled subscribers", float(stalling as u64), "");
    report.note("deliveries without them", median(&without.rates), "/s");
    report.note("deliveries to the others with them", median(&with.rates), "/s");
    let target = Target::AtMost(STALLED_COST_PERCENT_MAX);
    report.figure("what they cost the others in deliveries", median(&rate_costs), "%", target);
    report.note("least of all rounds", rate_costs.iter().copied().fold(f64::INFINITY, f64::min), "%");
    report.note("most of all rounds", rate_costs.iter().copied().fold(f64::NEG_INFINITY, f64::max), "%");
    report.note("what they cost in server CPU per delivery", median(&cpu_costs), "%");
    let cut_percent = float(cut as u64) / float((stalling * usize::from(options.rounds)) as u64) * 100.0;
    report.note("stalled subscribers the server cut", cut_percent, "%");
    Ok(())
}

/// What one trial took.
pub(super) struct Trial {
    pub(super) deliveries: u64,
    elapsed: Duration,
    pub(super) cpu: Duration,
    generator_cpu: Duration,
    latency: Histogram,
}

/// Trials of one kind.
struct Costs {
    deliveries: u64,
    cpu: Duration,
    generator_cpu: Duration,
    each: Vec<f64>,
    rates: Vec<f64>,
    latency: Histogram,
}

impl Costs {
    fn new() -> Self {
        Self {
            deliveries: 0,
            cpu: Duration::ZERO,
            generator_cpu: Duration::ZERO,
            each: Vec::new(),
            rates: Vec::new(),
            latency: Histogram::new(),
        }
    }

    fn add(&mut self, trial: &Trial) {
        self.deliveries += trial.deliveries;
        self.cpu += trial.cpu;
        self.generator_cpu += trial.generator_cpu;
        self.each.push(micros_each(trial.cpu, trial.deliveries));
        self.rates.push(per_second(trial.deliveries, trial.elapsed));
        self.latency.add(&trial.latency);
    }

    fn each(&self) -> f64 {
        micros_each(self.cpu, self.deliveries)
    }

    fn generator_each(&self) -> f64 {
        micros_each(self.generator_cpu, self.deliveries)
    }

    fn last_each(&self) -> f64 {
        self.each.last().copied().unwrap_or(f64::NAN)
    }

    fn last_rate(&self) -> f64 {
        self.rates.last().copied().unwrap_or(f64::NAN)
    }
}

/// Subscribers of a server and the one who posts to them.
pub(super) struct Audience<'s> {
    server: &'s Server,
    swarm: Swarm,
    publisher: usize,
    deliveries: Deliveries,
    post: Vec<u8>,
}

impl<'s> Audience<'s> {
    pub(super) fn join(server: &'s Server, subscribers: usize) -> Result<Self> {
        let mut swarm = Swarm::new()?;
        let all = swarm.connect(server.address, subscribers)?;
        let subscribe = requests::subscribe(CHAT)?;
        swarm.ask_each(all, SubscribeOk::CODE, |_| Ok(subscribe.clone()))?;
        let publisher: Range<usize> = swarm.connect(server.address, 1)?;
        swarm.ask_each(publisher.clone(), NicknameResponse::CODE, |_| requests::set_nickname(PUBLISHER))?;
        let post = requests::post(CHAT, &[b'm'; CONTENT_BYTES])?;
        Ok(Self { server, swarm, publisher: publisher.start, deliveries: Deliveries::new(subscribers), post })
    }

    /// Posts at the fixed rate, one at a time; each when it is due, however late the server is.
    fn paced(&mut self, options: &Options) -> Result<Trial> {
        self.measured(|this| {
            let start = clock::now();
            for index in 0..options.messages() {
                let due = start + options.interval() * u32::try_from(index)?;
                while let Some(wait) = due.checked_duration_since(clock::now()).filter(|wait| !wait.is_zero()) {
                    this.swarm.poll(&mut this.deliveries, wait)?;
                }
                this.deliveries.sent_at.push(due);
                this.deliveries.posts += 1;
                this.swarm.send(this.publisher, &this.post)?;
            }
            Ok(())
        })
    }

    /// Posts as fast as the slowest subscriber receives, with a bounded number under way.
    fn flat(&mut self, window: u64, duration: Duration) -> Result<Trial> {
        self.measured(|this| {
            let ends = clock::now() + duration;
            while clock::now() < ends {
                let room = window - (this.deliveries.posts - this.deliveries.least());
                if room > window / 4 {
                    this.post_at_once(usize::try_from(room)?)?;
                }
                this.swarm.poll(&mut this.deliveries, POLL_PAUSE)?;
            }
            Ok(())
        })
    }

    /// Posts `count` at once.
    pub(super) fn burst(&mut self, count: u64) -> Result<Trial> {
        let count = usize::try_from(count)?;
        self.measured(|this| this.post_at_once(count))
    }

    fn post_at_once(&mut self, count: usize) -> Result<()> {
        let now = clock::now();
        self.deliveries.sent_at.resize(self.deliveries.sent_at.len() + count, now);
        self.deliveries.posts += count as u64;
        self.swarm.send(self.publisher, &self.post.repeat(count))
    }

    /// Runs `posting`, waits until everybody has everything, and says what that took.
    fn measured(&mut self, posting: impl FnOnce(&mut Self) -> Result<()>) -> Result<Trial> {
        self.deliveries.reset();
        let (cpu_before, own_before) = (self.server.cpu()?, process::own_cpu());
        let started = clock::now();
        posting(self)?;
        self.swarm.run(&mut self.deliveries, TAIL_LIMIT).context("waiting for the last deliveries")?;
        let ended = self.deliveries.last_at.context("nothing was delivered")?;
        let cpu = self.server.cpu()? - cpu_before;
        let generator_cpu = process::own_cpu() - own_before;
        self.await_acknowledgements()?;
        Ok(Trial {
            deliveries: self.deliveries.total,
            elapsed: ended - started,
            cpu,
            generator_cpu,
            latency: self.deliveries.latency.clone(),
        })
    }
}

impl Audience<'_> {
    /// The last acknowledgement may come after the last delivery: they leave from different shards.
    fn await_acknowledgements(&mut self) -> Result<()> {
        let given_up = clock::now() + TAIL_LIMIT;
        while self.deliveries.acknowledged() < self.deliveries.posts && clock::now() < given_up {
            self.swarm.poll(&mut self.deliveries, POLL_PAUSE)?;
        }
        let (acknowledged, posts) = (self.deliveries.acknowledged(), self.deliveries.posts);
        ensure!(acknowledged == posts, "{posts} posts were sent and {acknowledged} acknowledged");
        Ok(())
    }
}

impl Options {
    fn messages(&self) -> u64 {
        u64::from(self.rate) * self.seconds
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.rate
    }
}

/// The same receivers behind the bare loop.
struct BareAudience {
    swarm: Swarm,
    deliveries: Deliveries,
    sender: Option<BareSender>,
}

impl BareAudience {
    fn new(receivers: usize) -> Result<Self> {
        let mut swarm = Swarm::new()?;
        let frame = requests::new_message(CHAT, PUBLISHER, &[b'm'; CONTENT_BYTES])?;
        let sender = Some(BareSender::connect(&mut swarm, receivers, frame)?);
        Ok(Self { swarm, deliveries: Deliveries::new(receivers), sender })
    }

    fn paced(&mut self, options: &Options) -> Result<Trial> {
        let (start, interval, messages) = (clock::now(), options.interval(), options.messages());
        self.deliveries.reset();
        self.deliveries.sent_at = (0..u32::try_from(messages)?).map(|index| start + interval * index).collect();
        self.measured(Plan::Paced { start, interval, messages })
    }

    fn flat(&mut self, options: &Options) -> Result<Trial> {
        self.deliveries.reset();
        let ends = clock::now() + options.duration();
        self.measured(Plan::Flat { ends, coalesced: options.window })
    }

    fn measured(&mut self, plan: Plan) -> Result<Trial> {
        let sender = self.sender.take().context("an earlier trial of the bare loop failed")?;
        let own_before = process::own_cpu();
        let started = clock::now();
        let sent = self.receive(sender.start(plan)?)?;
        let ended = self.deliveries.last_at.context("nothing was delivered")?;
        let generator_cpu = (process::own_cpu() - own_before).saturating_sub(sent.cpu);
        self.sender = Some(sent.sender);
        Ok(Trial {
            deliveries: self.deliveries.total,
            elapsed: ended - started,
            cpu: sent.cpu,
            generator_cpu,
            latency: self.deliveries.latency.clone(),
        })
    }

    fn receive(&mut self, trial: BareTrial) -> Result<Sent> {
        // How many there will be is known at the end only.
        self.deliveries.posts = u64::MAX;
        while trial.is_sending() {
            self.swarm.poll(&mut self.deliveries, POLL_PAUSE)?;
        }
        let sent = trial.join()?;
        self.deliveries.posts = sent.messages;
        self.swarm.run(&mut self.deliveries, TAIL_LIMIT).context("waiting for the bare loop's last messages")?;
        Ok(sent)
    }
}

/// Subscribers that never read.
struct Sleepers {
    streams: Vec<TcpStream>,
}

impl Sleepers {
    fn join(server: &Server, count: usize) -> Result<Self> {
        let subscribe = requests::subscribe(CHAT)?;
        let streams = (0..count).map(|index| {
            let mut stream = dial(server.address, index, Some(STALLED_BUFFER_BYTES))?;
            stream.write_all(&subscribe)?;
            await_subscription(&mut stream)?;
            Ok(stream)
        });
        Ok(Self { streams: streams.collect::<Result<_>>()? })
    }

    /// Reads at last, and counts those that the server has given up.
    fn cut(self) -> Result<usize> {
        let mut cut = 0;
        for mut stream in self.streams {
            stream.set_read_timeout(Some(Duration::from_millis(200)))?;
            cut += usize::from(ends(&mut stream)?);
        }
        Ok(cut)
    }
}

fn await_subscription(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(TAIL_LIMIT))?;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 1024]);
    loop {
        let read = stream.read(&mut chunk).context("waiting for SUBSCRIBE_OK")?;
        ensure!(read > 0, "the server closed a connection that subscribes");
        bytes.extend_from_slice(&chunk[..read]);
        let mut rest = bytes.as_slice();
        while let Some((frame, behind)) = Frame::cut(rest)? {
            if frame.code == SubscribeOk::CODE {
                return Ok(());
            }
            rest = behind;
        }
    }
}

/// Whether the stream comes to an end, rather than to a pause.
fn ends(stream: &mut TcpStream) -> Result<bool> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
            Err(error) => return Err(error).context("reading what was left"),
        }
    }
}
