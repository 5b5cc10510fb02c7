//! The front: one thread that holds all connections of the port, reads what they ask and writes what they get.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use socket2::SockRef;
use tiny_http::Method;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::request::{Attendance, Request, body_length, check_host, check_method, parse};
use super::{Answer, GuardOptions, Job, Refusal, find};
use crate::clock::monotonic_ms;
use crate::metrics::Metrics;
use crate::profile::tasks::{self, place, site};

/// How long the front leaves the port alone after a failed accept; a missing descriptor comes back by itself.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long an answered client may take to close its side; without this wait a reset could overtake the answer.
const LINGER: Duration = Duration::from_secs(1);
const READ_CHUNK_BYTES: usize = 1024;
/// What a client may send while it waits for its answer; one that sends more counts as gone.
const STRAY_BYTES_MAX: usize = 16 * 1024;
/// Why a connection brings no request to a worker.
enum Unserved {
    /// It ended before.
    Gone,
    Refused(Refusal),
}

impl From<io::Error> for Unserved {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<Refusal> for Unserved {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Everything the front thread needs for its connections.
pub(super) struct Front {
    pub(super) options: GuardOptions,
    pub(super) bound: IpAddr,
    pub(super) jobs: SyncSender<Job>,
    pub(super) metrics: Arc<Metrics>,
}

impl Front {
    pub(super) async fn serve(self: Arc<Self>, listener: StdTcpListener, mut stopped: oneshot::Receiver<()>) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(server = self.options.name, %error, "cannot watch the http port"),
        };
        let served = Arc::new(Semaphore::new(self.options.limits.connections_max));
        let refused = Arc::new(Semaphore::new(self.options.limits.connections_max));
        let mut failing = false;
        loop {
            let accepted = tasks::at(site!("wait for a connection"), async {
                tokio::select! {
                    _ = &mut stopped => None,
                    accepted = listener.accept() => Some(accepted),
                }
            });
            let Some(accepted) = accepted.await else { return };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, &served, &refused),
                Err(error) => {
                    if !failing {
                        tracing::warn!(server = self.options.name, %error, "cannot accept http connections");
                    }
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                    failing = true;
                    continue;
                }
            }
            failing = false;
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, served: &Arc<Semaphore>, refused: &Arc<Semaphore>) {
        let front = Arc::clone(self);
        if let Ok(place) = Arc::clone(served).try_acquire_owned() {
            tasks::spawn(place!(), async move {
                front.converse(stream, peer).await;
                drop(place);
            });
        } else if let Ok(place) = Arc::clone(refused).try_acquire_owned() {
            tasks::spawn(place!(), async move {
                front.send(stream, Refusal::Full.answer(), false, monotonic_ms()).await;
                drop(place);
            });
        }
        // In a flood that fills both, a connection is dropped without a word.
    }

    async fn converse(&self, stream: TcpStream, peer: SocketAddr) {
        let started_ms = monotonic_ms();
        let received = timeout(self.options.limits.head_time, self.receive(&stream, peer)).await;
        let (answer, head_only) = match received.unwrap_or(Err(Refusal::HeadTime.into())) {
            Ok(request) => {
                let head_only = request.method == Method::Head;
                (self.ask(request, &stream).await, head_only)
            }
            Err(Unserved::Refused(refusal)) => (refusal.answer(), false),
            Err(Unserved::Gone) => return,
        };
        self.send(stream, answer, head_only, started_ms).await;
    }

    async fn receive(&self, stream: &TcpStream, peer: SocketAddr) -> Result<Request, Unserved> {
        let limits = &self.options.limits;
        let (head, rest) = read_head(stream, limits.head_bytes_max).await?;
        let (mut request, version) = parse(&head, peer)?;
        check_method(&request, self.options.posts)?;
        let local = stream.local_addr().map_or(self.bound, |address| address.ip());
        check_host(&request, version, &self.options.hosts, self.bound, local)?;
        if request.is_post() {
            let length = body_length(&request, limits.body_bytes_max)?;
            request.body = read_body(stream, rest, length).await?;
        }
        Ok(request)
    }

    /// Has a worker compute the answer. The queue has a place for every connection, so it is never full.
    async fn ask(&self, request: Request, stream: &TcpStream) -> Answer {
        let attendance = Attendance(Arc::clone(&request.client));
        let (reply, mut answer) = oneshot::channel();
        if self.jobs.try_send(Job { request, reply }).is_err() {
            return Refusal::Stopping.answer();
        }
        let answered = tokio::select! {
            biased;
            answered = tasks::at(site!("wait for an answer"), &mut answer) => answered,
            () = drain(stream, STRAY_BYTES_MAX) => {
                attendance.0.leave();
                answer.await
            }
        };
        answered.unwrap_or_else(|_| Refusal::Stopping.answer())
    }

    async fn send(&self, stream: TcpStream, answer: Answer, head_only: bool, started_ms: u64) {
        let name = self.options.name;
        let (route, status) = (answer.route, answer.response.status_code().0);
        let bytes = answer.into_bytes(head_only);
        let written = timeout(self.options.limits.answer_time, async {
            write_all(&stream, &bytes).await?;
            SockRef::from(&stream).shutdown(Shutdown::Write)
        });
        let written = written.await;
        let micros = monotonic_ms().saturating_sub(started_ms) * 1000;
        self.metrics.http_request(name, route, status, micros);
        match written {
            Ok(Ok(())) => drop(timeout(LINGER, drain(&stream, usize::MAX)).await),
            Ok(Err(error)) => tracing::debug!(server = name, path = route, %error, "http client left its answer"),
            Err(_) => {
                tracing::debug!(server = name, path = route, "http client did not take its answer");
                // What the system still holds for a stalled reader goes with the connection.
                stream.set_zero_linger().ok();
            }
        }
    }
}

/// Reads up to the empty line: the head without it, and what came behind it already.
async fn read_head(stream: &TcpStream, bytes_max: usize) -> Result<(Vec<u8>, Vec<u8>), Unserved> {
    let mut head = Vec::with_capacity(READ_CHUNK_BYTES);
    let mut chunk = [0; READ_CHUNK_BYTES];
    loop {
        let searched = head.len().saturating_sub(3);
        head.extend_from_slice(read_some(stream, &mut chunk).await?);
        let end = find(&head[searched..], b"\r\n\r\n").map(|end| searched + end);
        if end.unwrap_or(head.len()) > bytes_max {
            return Err(Refusal::HeadSize.into());
        }
        if let Some(end) = end {
            let rest = head.split_off(end + 4);
            head.truncate(end);
            return Ok((head, rest));
        }
    }
}

/// Reads the `length` bytes of a body whose begin is there.
async fn read_body(stream: &TcpStream, mut body: Vec<u8>, length: usize) -> Result<Vec<u8>, Unserved> {
    let mut chunk = [0; READ_CHUNK_BYTES];
    while body.len() < length {
        body.extend_from_slice(read_some(stream, &mut chunk).await?);
    }
    body.truncate(length);
    Ok(body)
}

/// What has arrived, at least one byte.
async fn read_some<'a>(stream: &TcpStream, chunk: &'a mut [u8]) -> Result<&'a [u8], Unserved> {
    match read(stream, chunk).await? {
        0 => Err(Unserved::Gone),
        count => Ok(&chunk[..count]),
    }
}

/// Reads and forgets what the client still sends, until it closes or has sent more than `bytes_max`.
async fn drain(stream: &TcpStream, bytes_max: usize) {
    let mut chunk = [0; READ_CHUNK_BYTES];
    let mut taken = 0;
    while let Ok(count) = read(stream, &mut chunk).await {
        taken += count;
        if count == 0 || taken > bytes_max {
            return;
        }
    }
}

async fn read(stream: &TcpStream, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        tasks::at(site!("wait for bytes to read"), stream.readable()).await?;
        match stream.try_read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        tasks::at(site!("wait for room to write"), stream.writable()).await?;
        match stream.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
