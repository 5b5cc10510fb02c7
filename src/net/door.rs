//! What every way in does with a newcomer: check the limits, and hand the stream to the least loaded shard or say why not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{info, warn};

use super::stream::Socket;
use super::{Admission, Gate, Refusal};
use crate::clock;
use crate::ids::SessionId;
use crate::metrics::{Metrics, RateLimit, Transport};
use crate::shard::settings::InForce;
use crate::shard::{Accepted, Bus, KeyLogin, ShardEvent};
use crate::store::{Answer, Batch, Deliver, Ticket};
use crate::wire::WireError;
use crate::wire::frame::{self, Compression};
use crate::wire::server::{self, Disconnect};

/// Session ids start at 1 and are never used again (BEHAVIOUR.md 1.2).
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// One for all transports, so that the limits hold for a peer whichever way it comes.
pub struct Door {
    pub gate: Arc<Gate>,
    pub bus: Arc<Bus>,
    pub metrics: Arc<Metrics>,
    pub settings: Arc<InForce>,
}

impl Door {
    /// Takes a place for `peer`, or counts and logs why there is none.
    ///
    /// # Errors
    /// [`Refusal`], to be told by [`Self::farewell`].
    pub fn admit(&self, peer: SocketAddr) -> Result<Admission, Refusal> {
        let address = peer.ip();
        let admitted = self.gate.check_ban(address, clock::wall_ms()).and_then(|()| self.gate.admit(address));
        admitted.inspect_err(|refusal| {
            self.metrics.rejected(refusal.label());
            if *refusal == Refusal::AddressLimit {
                self.metrics.rate_limit(RateLimit::Connection);
            }
            let (remote, reason) = (crate::log::peer(address), refusal.text());
            match refusal {
                Refusal::Banned => warn!(target: "security", %remote, "connection refused: {reason}"),
                Refusal::AddressLimit | Refusal::ServerFull => {
                    warn!(target: "security", %remote, "connection refused, rate limit exceeded: {reason}");
                }
            }
        })
    }

    /// Makes a session of a stream that does not block.
    pub fn enter(
        &self,
        stream: Socket,
        peer: SocketAddr,
        admission: Admission,
        transport: Transport,
        login: Option<KeyLogin>,
    ) {
        info!("Connection from {}", crate::log::peer_addr(peer));
        self.metrics.connections(transport);
        let session = SessionId(NEXT_SESSION.fetch_add(1, Ordering::Relaxed));
        let accepted = Accepted { stream, peer, session, admission, login };
        self.bus.send(self.least_loaded(session), ShardEvent::Accepted(Box::new(accepted)));
    }

    /// The shard with the fewest sessions; a burst whose sessions do not count yet is dealt out in turn.
    fn least_loaded(&self, session: SessionId) -> usize {
        let shards = self.metrics.shards();
        let start = usize::try_from(session.0).unwrap_or(0) % shards.len();
        let rotated = (0..shards.len()).map(|offset| (start + offset) % shards.len());
        rotated.min_by_key(|index| shards[*index].sessions() / 8).unwrap_or(0)
    }

    /// SERVER_CONFIG, ERROR, DISCONNECT: every client understands this order (BEHAVIOUR.md 1.10).
    ///
    /// # Errors
    /// Never for texts of ours, which fit a frame.
    pub fn farewell(&self, refusal: Refusal) -> Result<Vec<u8>, WireError> {
        let text = refusal.text().as_bytes();
        let farewell = [
            self.settings.get().announced.clone().into(),
            server::Error { error_code: refusal.code().number(), message: text }.into(),
            Disconnect { reason: Some(text) }.into(),
        ];
        let mut bytes = Vec::new();
        for message in farewell {
            frame::write(&mut bytes, &message, Compression::Never)?;
        }
        Ok(bytes)
    }
}

/// Stands before the shards in the way of what is committed: once anybody can know of a ban, the door does.
pub struct Doorman {
    pub gate: Arc<Gate>,
    pub shards: Arc<dyn Deliver>,
}

impl Deliver for Doorman {
    fn committed(&self, batch: Batch) {
        let events = batch.iter().filter_map(|outcome| outcome.result.as_ref().ok());
        events.filter(|event| event.is_about_bans()).for_each(|event| self.gate.change_bans(event));
        self.shards.committed(batch);
    }

    fn answered(&self, ticket: Ticket, answer: Answer) {
        self.shards.answered(ticket, answer);
    }
}
