//! The least that the same work can cost: plain `send` to as many sockets, plain append and `fdatasync` of the same
//! bytes. Measured in the same run, because absolute times on a shared machine mean little.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use superchat::wire::frame::HEADER_BYTES;

use super::histogram::Histogram;
use super::swarm::Swarm;
use super::{clock, process};

/// How the sender goes about it.
#[derive(Clone, Copy)]
pub(crate) enum Plan {
    /// `messages` messages, the nth due at `start + n * interval`, each sent by itself.
    Paced { start: Instant, interval: Duration, messages: u64 },
    /// `coalesced` messages in each write, until `ends`.
    Flat { ends: Instant, coalesced: u64 },
}

/// The sending side of a bare fan-out: blocking sockets and one thread.
pub(crate) struct BareSender {
    sockets: Vec<TcpStream>,
    frame: Vec<u8>,
    next_id: u64,
}

/// What a trial of the bare loop took.
pub(crate) struct Sent {
    pub(crate) sender: BareSender,
    /// Messages per receiver.
    pub(crate) messages: u64,
    /// Of the sending thread.
    pub(crate) cpu: Duration,
}

impl BareSender {
    /// Opens `receivers` connections in `swarm` to a sender of `frame`, whose first 8 payload bytes become a rising id.
    pub(crate) fn connect(swarm: &mut Swarm, receivers: usize, frame: Vec<u8>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut sockets = Vec::with_capacity(receivers);
        for _ in 0..receivers {
            swarm.connect(listener.local_addr()?, 1)?;
            let (socket, _) = listener.accept()?;
            socket.set_nodelay(true)?;
            sockets.push(socket);
        }
        Ok(Self { sockets, frame, next_id: 1 })
    }

    /// Sends according to `plan` on a thread of its own.
    pub(crate) fn start(self, plan: Plan) -> Result<BareTrial> {
        let thread = superchat::supervise::spawn("bare-send", move || self.send(plan))?;
        Ok(BareTrial { thread })
    }

    fn send(mut self, plan: Plan) -> Result<Sent> {
        let before = process::thread_cpu();
        let messages = match plan {
            Plan::Paced { start, interval, messages } => self.paced(start, interval, messages)?,
            Plan::Flat { ends, coalesced } => self.flat(ends, coalesced)?,
        };
        Ok(Sent { sender: self, messages, cpu: process::thread_cpu() - before })
    }

    fn paced(&mut self, start: Instant, interval: Duration, messages: u64) -> Result<u64> {
        let mut due = start;
        for _ in 0..messages {
            thread::sleep(due.saturating_duration_since(clock::now()));
            self.send_to_all(1)?;
            due += interval;
        }
        Ok(messages)
    }

    fn flat(&mut self, ends: Instant, coalesced: u64) -> Result<u64> {
        let mut messages = 0;
        while clock::now() < ends {
            self.send_to_all(coalesced)?;
            messages += coalesced;
        }
        Ok(messages)
    }

    fn send_to_all(&mut self, messages: u64) -> Result<()> {
        let mut bytes = Vec::new();
        for _ in 0..messages {
            self.frame[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&self.next_id.to_be_bytes());
            self.next_id += 1;
            bytes.extend_from_slice(&self.frame);
        }
        self.sockets.iter_mut().try_for_each(|socket| socket.write_all(&bytes)).context("the bare loop cannot send")
    }
}

/// A trial of the bare loop under way.
pub(crate) struct BareTrial {
    thread: JoinHandle<Result<Sent>>,
}

impl BareTrial {
    pub(crate) fn is_sending(&self) -> bool {
        !self.thread.is_finished()
    }

    pub(crate) fn join(self) -> Result<Sent> {
        self.thread.join().map_err(|_| anyhow!("the bare loop panicked"))?
    }
}

/// What plain appending took.
pub(crate) struct Appended {
    pub(crate) records: u64,
    pub(crate) elapsed: Duration,
    /// Of one group: append and `fdatasync`.
    pub(crate) latency: Histogram,
}

/// Appends `record` to a file in `directory` in groups of `group`, each followed by `fdatasync`, for `duration`.
pub(crate) fn append(directory: &Path, record: &[u8], group: usize, duration: Duration) -> Result<Appended> {
    let mut file = File::create(directory.join("bare"))?;
    let bytes = record.repeat(group);
    let (mut records, mut latency) = (0, Histogram::new());
    let started = clock::now();
    loop {
        let begun = clock::now();
        if begun - started >= duration {
            return Ok(Appended { records, elapsed: begun - started, latency });
        }
        file.write_all(&bytes)?;
        file.sync_data()?;
        latency.record(clock::now() - begun);
        records += group as u64;
    }
}
