//! What subscribers received, checked as it comes in: ids that rise, no message twice, none missing.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use superchat::wire::server::{MessagePosted, NewMessage};

use super::histogram::Histogram;
use super::swarm::{Arrival, Script};

/// One subscriber's view.
#[derive(Clone, Copy, Default)]
struct Seen {
    last_id: u64,
    count: u64,
}

/// The deliveries of one trial, and over all trials the last id of each subscriber.
pub(crate) struct Deliveries {
    seen: Vec<Seen>,
    /// When the nth post was due; deliveries of posts beyond its end have no latency.
    pub(crate) sent_at: Vec<Instant>,
    /// Posts of this trial.
    pub(crate) posts: u64,
    acknowledged: u64,
    pub(crate) total: u64,
    /// From when a post was due to its arrival at a subscriber.
    pub(crate) latency: Histogram,
    /// When the last frame came in.
    pub(crate) last_at: Option<Instant>,
}

impl Deliveries {
    /// For the connections `0..subscribers`; any other one is a publisher.
    pub(crate) fn new(subscribers: usize) -> Self {
        Self {
            seen: vec![Seen::default(); subscribers],
            sent_at: Vec::new(),
            posts: 0,
            acknowledged: 0,
            total: 0,
            latency: Histogram::new(),
            last_at: None,
        }
    }

    /// Begins another trial with the same subscribers.
    pub(crate) fn reset(&mut self) {
        let seen = self.seen.iter().map(|seen| Seen { count: 0, ..*seen }).collect();
        *self = Self { seen, ..Self::new(0) };
    }

    /// Messages that every subscriber has.
    pub(crate) fn least(&self) -> u64 {
        self.seen.iter().map(|seen| seen.count).min().unwrap_or(0)
    }

    /// Posts that the server has acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    fn delivered(&mut self, to: usize, id: u64, at: Instant) -> Result<()> {
        let seen = &mut self.seen[to];
        ensure!(id > seen.last_id, "subscriber {to} got message {id} after {}", seen.last_id);
        ensure!(seen.count < self.posts, "subscriber {to} got more messages than were posted");
        if let Some(sent_at) = self.sent_at.get(usize::try_from(seen.count)?) {
            self.latency.record(at.saturating_duration_since(*sent_at));
        }
        *seen = Seen { last_id: id, count: seen.count + 1 };
        self.total += 1;
        self.last_at = Some(at);
        Ok(())
    }
}

impl Script for Deliveries {
    fn arrived(&mut self, arrival: &Arrival<'_>, _out: &mut Vec<u8>) -> Result<()> {
        match arrival.frame.code {
            NewMessage::CODE if arrival.from < self.seen.len() => {
                let id = arrival.frame.payload.first_chunk().context("a message without an id")?;
                self.delivered(arrival.from, u64::from_be_bytes(*id), arrival.at)?;
            }
            MessagePosted::CODE => self.acknowledged += 1,
            _ => {}
        }
        Ok(())
    }

    /// Everybody has everything: no count can be exceeded, so the total tells.
    fn done(&self) -> bool {
        self.total == self.posts.saturating_mul(self.seen.len() as u64)
    }
}
