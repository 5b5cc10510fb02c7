//! The request at hand: whose it is, for the log, and how long it takes, for the metrics.

use super::Shard;
use super::session::{Flight, SessionKey};
use crate::ids::ChannelId;
use crate::log;
use crate::wire::client;

/// A request being handled.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request {
    /// Unlike that of every other frame of this run.
    pub id: u64,
    pub code: u8,
    /// Monotonic microseconds.
    pub read_at: u64,
    /// The place it is about, once that is known.
    pub channel: Option<ChannelId>,
}

impl Shard {
    /// A new frame is looked at.
    pub(super) fn begin(&mut self, key: SessionKey, code: u8) -> log::Entered {
        self.requests += 1;
        // Shards count side by side, so that no two of them give the same number.
        let id = self.requests * self.bus.shards() as u64 + self.id as u64;
        self.take_up(key, Request { id, code, read_at: self.now.mono_micros, channel: None })
    }

    /// From here on this request is being handled, and what is logged belongs to it.
    pub(super) fn take_up(&mut self, key: SessionKey, request: Request) -> log::Entered {
        self.request = request;
        let session = self.clients.session(key);
        log::enter(log::Context {
            session: session.id.0,
            request: request.id,
            user: session.nickname.clone(),
            channel: request.channel.map(|channel| channel.0),
            remote: session.address(),
        })
    }

    /// The request at hand is about this place.
    pub fn about(&mut self, channel: ChannelId) {
        self.request.channel = Some(channel);
        log::about_channel(channel.0);
    }

    /// Notes how long the request at hand took, if its answer is queued.
    pub(super) fn measure_request(&self, key: SessionKey) {
        if self.clients.get(key).is_none_or(|session| !matches!(session.flight, Flight::Waiting(_))) {
            self.metrics.request(self.request.code, self.micros_taken());
        }
    }

    pub(super) fn measure_post(&self, is_durable: bool) {
        let micros = self.micros_taken();
        self.metrics.request(client::PostMessage::CODE, micros);
        if is_durable {
            self.metrics.post_ack(micros);
        }
    }

    /// A turn has one time, so the work within it would take none: the clock itself is asked. That costs 0.1 us, the
    /// write to the socket that follows 4.
    fn micros_taken(&self) -> u64 {
        (self.stopwatch)().saturating_sub(self.request.read_at)
    }
}
