//! Requests in a closed loop: every connection asks, waits for its answer, and asks again.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use superchat::wire::frame::Frame;

use super::clock;
use super::histogram::Histogram;
use super::swarm::{Arrival, Script, Swarm};

/// How long after the end of asking the last answers may take.
const TAIL_LIMIT: Duration = Duration::from_secs(30);

/// One kind of request and what its answer must be.
pub(crate) trait Exchange {
    /// Type code of the answer; other frames are left alone.
    const ANSWER: u8;

    /// Appends the next request of connection `from`.
    fn ask(&mut self, from: usize, out: &mut Vec<u8>) -> Result<()>;

    /// Checks an answer.
    fn answered(&mut self, from: usize, frame: Frame<'_>) -> Result<()>;

    /// Whether the server may end connections.
    const MAY_CLOSE: bool = false;
}

/// A loop that is running, and in the end what came of it.
pub(crate) struct ClosedLoop<E> {
    pub(crate) exchange: E,
    pub(crate) answers: u64,
    /// From asking to the answer.
    pub(crate) latency: Histogram,
    pub(crate) elapsed: Duration,
    asked_at: Vec<Option<Instant>>,
    waiting: usize,
    started: Instant,
    ends: Instant,
}

impl<E: Exchange> ClosedLoop<E> {
    /// Sends the first request of each of `who`; they go on asking for `duration`.
    pub(crate) fn start(swarm: &mut Swarm, who: Range<usize>, exchange: E, duration: Duration) -> Result<Self> {
        let started = clock::now();
        let mut this = Self {
            exchange,
            answers: 0,
            latency: Histogram::new(),
            elapsed: Duration::ZERO,
            asked_at: vec![None; who.end],
            waiting: who.len(),
            started,
            ends: started + duration,
        };
        let mut request = Vec::new();
        for index in who {
            request.clear();
            this.exchange.ask(index, &mut request)?;
            this.asked_at[index] = Some(clock::now());
            swarm.send(index, &request)?;
        }
        Ok(this)
    }

    /// Runs from the first request to the last answer.
    pub(crate) fn run(swarm: &mut Swarm, who: Range<usize>, exchange: E, duration: Duration) -> Result<Self> {
        let mut this = Self::start(swarm, who, exchange, duration)?;
        swarm.run(&mut this, duration + TAIL_LIMIT)?;
        Ok(this)
    }

    fn retire(&mut self, from: usize) {
        if self.asked_at[from].take().is_some() {
            self.waiting -= 1;
        }
    }
}

impl<E: Exchange> Script for ClosedLoop<E> {
    fn arrived(&mut self, arrival: &Arrival<'_>, out: &mut Vec<u8>) -> Result<()> {
        let &Arrival { from, at, frame } = arrival;
        if frame.code != E::ANSWER {
            return Ok(());
        }
        let Some(asked_at) = self.asked_at[from] else { bail!("connection {from} has an answer it did not ask for") };
        self.exchange.answered(from, frame)?;
        self.latency.record(at - asked_at);
        self.answers += 1;
        self.elapsed = at - self.started;
        if at >= self.ends {
            self.retire(from);
            return Ok(());
        }
        self.asked_at[from] = Some(at);
        self.exchange.ask(from, out)
    }

    fn done(&self) -> bool {
        self.waiting == 0
    }

    fn closed(&mut self, from: usize) -> Result<()> {
        if !E::MAY_CLOSE {
            bail!("the server closed connection {from}");
        }
        self.retire(from);
        Ok(())
    }
}
