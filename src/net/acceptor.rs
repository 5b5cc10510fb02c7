//! The door: one thread accepts, checks the bounds, and hands each socket to the least loaded shard.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::{Gate, Refusal};
use crate::ids::SessionId;
use crate::metrics::{Metrics, RateLimit, Transport};
use crate::shard::settings::InForce;
use crate::shard::{Accepted, Bus, ShardEvent};
use crate::supervise;
use crate::wire::frame::{self, Compression};
use crate::wire::server::{self, Disconnect};

/// What the kernel is asked to queue; it gives `net.core.somaxconn` at most (BEHAVIOUR.md 1.1).
const BACKLOG: i32 = 65_535;

/// Silence before the system checks whether a peer is still there, and between its checks (BEHAVIOUR.md 1.1).
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Pause after a failed accept: doubled from the first to the second while it fails, as without descriptors (D-41).
const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Refused connections that stay half open so that their peers can read why; the oldest goes when another comes.
const LINGERING_MAX: usize = 64;

/// Opens the listening socket.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What the acceptor needs.
pub struct AcceptorParts {
    /// Perhaps not ours alone: whoever started us may hold it for the next server.
    pub listener: TcpListener,
    pub gate: Arc<Gate>,
    pub bus: Arc<Bus>,
    pub metrics: Arc<Metrics>,
    pub settings: Arc<InForce>,
    /// Called should the thread end by itself: nobody would get in any more.
    pub on_panic: Box<dyn FnOnce() + Send>,
}

/// The accepting thread.
pub struct Acceptor {
    stop: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl Acceptor {
    /// Starts accepting.
    ///
    /// # Errors
    /// When the system gives no thread, or no way to watch the socket.
    pub fn start(mut parts: AcceptorParts) -> io::Result<Self> {
        parts.listener.set_nonblocking(true)?;
        // One that was handed over may have a queue too short for a crowd that comes back.
        SockRef::from(&parts.listener).listen(BACKLOG)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let on_panic = std::mem::replace(&mut parts.on_panic, Box::new(|| {}));
        let thread = supervise::spawn("scd-accept", move || {
            let accept = || runtime.block_on(accept_until(parts, &stopped));
            match catch_unwind(AssertUnwindSafe(accept)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    error!(%error, "cannot watch the listening socket");
                    on_panic();
                }
                Err(_) => on_panic(),
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Accepts no more and lets go of the socket. That closes the port, unless somebody else holds it too: connections
    /// then queue there for whoever accepts next, so it is not shut down.
    pub fn stop(self) {
        self.stop.notify_one();
        if self.thread.join().is_err() {
            warn!("the accepting thread panicked");
        }
    }
}

/// Session ids start at 1 and are never used again (BEHAVIOUR.md 1.2).
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

async fn accept_until(parts: AcceptorParts, stop: &Notify) -> io::Result<()> {
    tokio::select! {
        biased;
        () = stop.notified() => Ok(()),
        outcome = accept_loop(&parts) => outcome,
    }
}

async fn accept_loop(parts: &AcceptorParts) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(parts.listener.try_clone()?)?;
    let mut retry = RETRY_MIN;
    let mut lingering = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                retry = RETRY_MIN;
                let admitted = stream.into_std().and_then(|stream| admit(parts, stream, peer, &mut lingering));
                if let Err(error) = admitted {
                    debug!(%error, "connection lost before it was served");
                }
            }
            Err(error) => {
                warn!(%error, "Accept error: {error}");
                sleep(retry).await;
                retry = (retry * 2).min(RETRY_MAX);
            }
        }
    }
}

fn admit(
    parts: &AcceptorParts,
    stream: TcpStream,
    peer: SocketAddr,
    lingering: &mut VecDeque<TcpStream>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    match parts.gate.admit(peer.ip()) {
        Ok(admission) => {
            info!("Connection from {}", crate::log::peer_addr(peer));
            parts.metrics.connections(Transport::Tcp);
            let session = SessionId(NEXT_SESSION.fetch_add(1, Ordering::Relaxed));
            let accepted = Accepted { stream, peer, session, admission };
            parts.bus.send(least_loaded(&parts.metrics, session), ShardEvent::Accepted(Box::new(accepted)));
            Ok(())
        }
        Err(refusal) => turn_away(parts, stream, peer.ip(), refusal, lingering),
    }
}

/// The shard with the fewest sessions; a burst whose sessions do not count yet is dealt out in turn.
fn least_loaded(metrics: &Metrics, session: SessionId) -> usize {
    let shards = metrics.shards();
    let start = usize::try_from(session.0).unwrap_or(0) % shards.len();
    let rotated = (0..shards.len()).map(|offset| (start + offset) % shards.len());
    rotated.min_by_key(|index| shards[*index].sessions() / 8).unwrap_or(0)
}

/// SERVER_CONFIG, ERROR, DISCONNECT: every client understands this order (BEHAVIOUR.md 1.10).
fn turn_away(
    parts: &AcceptorParts,
    mut stream: TcpStream,
    address: IpAddr,
    refusal: Refusal,
    lingering: &mut VecDeque<TcpStream>,
) -> io::Result<()> {
    parts.metrics.rejected(refusal.label());
    if refusal == Refusal::AddressLimit {
        parts.metrics.rate_limit(RateLimit::Connection);
    }
    let reason = refusal.text();
    warn!(target: "security", remote = %crate::log::peer(address), "connection refused, rate limit exceeded: {reason}");
    let text = reason.as_bytes();
    let mut bytes = Vec::new();
    let announced = parts.settings.get().announced.clone();
    let farewell = [
        announced.into(),
        server::Error { error_code: refusal.code().number(), message: text }.into(),
        Disconnect { reason: Some(text) }.into(),
    ];
    for message in farewell {
        frame::write(&mut bytes, &message, Compression::Never).map_err(io::Error::other)?;
    }
    // A fresh socket has room for these few bytes.
    stream.write_all(&bytes)?;
    stream.shutdown(Shutdown::Write)?;
    // Closing with unread input would destroy the words before they are read: the socket stays for a while.
    if lingering.len() >= LINGERING_MAX {
        lingering.pop_front();
    }
    lingering.push_back(stream);
    Ok(())
}
