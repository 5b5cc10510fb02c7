//! What stands between an operator's HTTP port and the network, for the metrics port and the profiles port alike.
//!
//! ```text
//! front thread: accept -> at most 16 connections -> head within 5 s and 8 KiB -> GET or HEAD -> known Host
//!               -> bounded queue -> one of a fixed number of workers -> whole answer within its deadline -> close
//! ```
//! POST is for the few paths that a site names, with a body of bounded length.
//! The front is one thread that never blocks: it reads heads and writes answers for all connections at once, so neither a
//! slow client nor a stalled reader holds a worker, and an attack adds no threads. A worker computes one answer at a time;
//! its panic costs that answer only. It may take as long as it wants to, and learns from the request when its client left.
//!
//! `tiny_http` reads methods and headers and prints responses. Its own server stays unused, also behind a private socket:
//! its accept loop ends for good when a descriptor is missing, and it makes threads without bound, which no guard in
//! front of it can prevent. The head is in our hands anyway, because it has to be checked before it is passed on.

mod front;
mod request;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tiny_http::{HTTPVersion, Header, Response};
use tokio::sync::oneshot;

use self::front::Front;
pub use self::request::Request;
use crate::metrics::Metrics;
use crate::profile::tasks::{self, place};
use crate::supervise;

/// The path label of requests that reached no route.
const NO_ROUTE: &str = "other";

/// What one client may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time; one more is told 503. As many again may be on their way out with that answer.
    pub connections_max: usize,
    /// Time for the whole request; then 408.
    pub head_time: Duration,
    /// Length of the head in bytes; beyond it 431.
    pub head_bytes_max: usize,
    /// Length of the body of a POST in bytes; beyond it 413.
    pub body_bytes_max: usize,
    /// Time in which a finished answer must have been taken, counted from its first byte; then the connection is reset.
    pub answer_time: Duration,
    /// Threads that compute answers.
    pub workers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16,
            head_time: Duration::from_secs(5),
            head_bytes_max: 8 * 1024,
            body_bytes_max: 64 * 1024,
            answer_time: Duration::from_secs(10),
            workers: 4,
        }
    }
}

/// What [`Guard::start`] has to know.
#[derive(Debug, Clone)]
pub struct GuardOptions {
    /// Names the threads and is the `server` label in metrics; at most nine characters, as the system cuts at fifteen.
    pub name: &'static str,
    /// The setting that says where to listen, for those who have to change it.
    pub setting: &'static str,
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether an address other than loopback is what the operator wants.
    pub allow_remote: bool,
    /// Host names that are served besides loopback names and the address itself.
    pub hosts: Vec<String>,
    /// Paths that take POST, too.
    pub posts: &'static [&'static str],
    /// What one client may cost.
    pub limits: Limits,
}

/// Why an HTTP port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The address is reachable from elsewhere and nobody said that it may be.
    #[error("refusing to serve {name} on {listen}: not a loopback address, and remote access is not allowed")]
    Remote {
        /// Which port.
        name: &'static str,
        /// The address asked for.
        listen: SocketAddr,
    },
    /// The port is taken, or the address is not ours.
    #[error("cannot serve {name} on {listen}: {source}; free the port or set [admin] {setting}")]
    Bind {
        /// Which port.
        name: &'static str,
        /// Where the address comes from.
        setting: &'static str,
        /// The address asked for.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no thread or event queue.
    #[error("cannot start the threads of {name}: {source}")]
    Start {
        /// Which port.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A whole answer, with the route it belongs to in metrics.
pub struct Answer {
    route: &'static str,
    response: Response<io::Cursor<Vec<u8>>>,
}

impl Answer {
    /// An answer with a body. The `route` is a text of the code, never the path a client sent.
    pub fn new(route: &'static str, status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let response = Response::from_data(body).with_status_code(status);
        Self { route, response }.with_header("Content-Type", content_type)
    }

    /// One line of plain text.
    pub fn text(route: &'static str, status: u16, line: &str) -> Self {
        Self::new(route, status, "text/plain; charset=utf-8", format!("{line}\n"))
    }

    /// Adds a header; one that is not plain ASCII on one line is left out.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
            && let Ok(header) = Header::from_bytes(name, value)
        {
            self.response.add_header(header);
        }
        self
    }

    /// The bytes on the wire: never in chunks, and closing.
    fn into_bytes(self, head_only: bool) -> Vec<u8> {
        let answer = self
            .with_header("Server", "scd")
            .with_header("Cache-Control", "no-store")
            .with_header("X-Content-Type-Options", "nosniff");
        let response = answer.response.with_chunked_threshold(usize::MAX);
        let mut bytes = Vec::with_capacity(response.data_length().unwrap_or(0) + 512);
        // Writing into memory cannot fail.
        response.raw_print(&mut bytes, HTTPVersion(1, 1), &[], head_only, None).ok();
        // The crate keeps `Connection` to itself and only its own server writes it.
        if let Some(line_end) = find(&bytes, b"\r\n") {
            bytes.splice(line_end..line_end, *b"\r\nConnection: close");
        }
        bytes
    }
}

/// Computes an answer; runs on a worker, may take its time, may panic.
pub type Handler = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

/// An HTTP port that is open until it is stopped or dropped.
pub struct Guard {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    front: Option<JoinHandle<()>>,
}

impl Guard {
    /// Opens the port and starts the front and the workers.
    ///
    /// # Errors
    /// An address that may not be served or cannot be bound, or no threads: nothing is left open then.
    pub fn start(options: GuardOptions, handler: Handler, metrics: Arc<Metrics>) -> Result<Self, GuardError> {
        let GuardOptions { name, setting, listen, .. } = options;
        if !options.allow_remote && !listen.ip().to_canonical().is_loopback() {
            return Err(GuardError::Remote { name, listen });
        }
        let bind_error = |source| GuardError::Bind { name, setting, listen, source };
        let start_error = |source| GuardError::Start { name, source };
        let listener = TcpListener::bind(listen).map_err(bind_error)?;
        listener.set_nonblocking(true).map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(start_error)?;
        let (jobs, queue) = sync_channel(options.limits.connections_max);
        start_workers(&options, handler, queue).map_err(start_error)?;
        let (stop, stopped) = oneshot::channel();
        let front = Arc::new(Front { options, bound: address.ip(), jobs, metrics });
        let run = move || {
            let _watched = tasks::watch(runtime.metrics());
            runtime.block_on(tasks::root(place!(), front.serve(listener, stopped)));
        };
        let front = supervise::spawn(&format!("{name}-front"), run).map_err(start_error)?;
        Ok(Self { address, stop: Some(stop), front: Some(front) })
    }

    /// The address clients reach, with the port that was really taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port and every connection. A worker that computes an answer ends by itself when that is done.
    pub fn stop(mut self) {
        self.close();
    }

    fn close(&mut self) {
        drop(self.stop.take());
        if let Some(front) = self.front.take() {
            // The front does not panic; if it did, it is as gone as it should be.
            front.join().ok();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.close();
    }
}

struct Job {
    request: Request,
    reply: oneshot::Sender<Answer>,
}

fn start_workers(options: &GuardOptions, handler: Handler, queue: Receiver<Job>) -> io::Result<()> {
    let (handler, queue) = (Arc::new(handler), Arc::new(Mutex::new(queue)));
    for index in 0..options.limits.workers {
        let (name, handler, queue) = (options.name, Arc::clone(&handler), Arc::clone(&queue));
        let work = move || {
            while let Some(job) = next_job(&queue) {
                let answer = answer_safely(name, &handler, &job.request);
                // A front that stopped meanwhile wants no answer.
                job.reply.send(answer).ok();
            }
        };
        // Workers end when the front drops its side of the queue, so nobody needs to hold on to them.
        drop(supervise::spawn(&format!("{name}-{index}"), work)?);
    }
    Ok(())
}

fn next_job(queue: &Mutex<Receiver<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

fn answer_safely(name: &str, handler: &Handler, request: &Request) -> Answer {
    catch_unwind(AssertUnwindSafe(|| handler(request))).unwrap_or_else(|_| {
        tracing::error!(server = name, path = request.path(), "panic while answering an http request");
        Answer::text(NO_ROUTE, 500, "internal error")
    })
}

/// A request that gets no further, and what its client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Malformed,
    Host,
    /// Whether the path takes POST.
    Method {
        post: bool,
    },
    HeadTime,
    HeadSize,
    BodyLength,
    BodySize,
    Full,
    Stopping,
}

impl Refusal {
    fn answer(self) -> Answer {
        let (status, line) = match self {
            Self::Malformed => (400, "malformed request"),
            Self::Host => (403, "this host name is not served here"),
            Self::Method { post: false } => (405, "only GET and HEAD are served here"),
            Self::Method { post: true } => (405, "only GET, HEAD and POST are served here"),
            Self::HeadTime => (408, "the request took too long"),
            Self::HeadSize => (431, "the request's head is too large"),
            Self::BodyLength => (411, "the body needs a Content-Length"),
            Self::BodySize => (413, "the body is too large"),
            Self::Full => (503, "too many connections"),
            Self::Stopping => (503, "the server is stopping"),
        };
        let answer = Answer::text(NO_ROUTE, status, line);
        match self {
            Self::Method { post: false } => answer.with_header("Allow", "GET, HEAD"),
            Self::Method { post: true } => answer.with_header("Allow", "GET, HEAD, POST"),
            _ => answer,
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_and_closes() {
        let bytes = Answer::text("/", 200, "fine").with_header("X-Bad", "a\r\nSet-Cookie: b").into_bytes(false);
        let text = String::from_utf8(bytes).expect("ascii");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nConnection: close\r\n"), "{text}");
        assert!(text.contains("Content-Length: 5\r\n") && text.ends_with("\r\n\r\nfine\n"), "{text}");
        assert!(!text.contains("Set-Cookie") && !text.contains("chunked"), "{text}");
        let head = Answer::text("/", 200, "fine").into_bytes(true);
        assert!(head.ends_with(b"\r\n\r\n") && find(&head, b"Content-Length: 5\r\n").is_some());
    }
}
