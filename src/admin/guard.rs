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

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener as StdTcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;
use tiny_http::{HTTPVersion, Header, Method, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::clock::monotonic_ms;
use crate::metrics::Metrics;
use crate::profile::tasks::{self, place, site};
use crate::supervise;

/// How long the front leaves the port alone after a failed accept; a missing descriptor comes back by itself.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// How long an answered client may take to close its side; without this wait a reset could overtake the answer.
const LINGER: Duration = Duration::from_secs(1);
const READ_CHUNK_BYTES: usize = 1024;
/// What a client may send while it waits for its answer; one that sends more counts as gone.
const STRAY_BYTES_MAX: usize = 16 * 1024;
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

/// A request that passed every check; GET or HEAD, which a handler need not tell apart, or POST where its path takes it.
#[derive(Debug)]
pub struct Request {
    method: Method,
    path: String,
    query: String,
    headers: Vec<Header>,
    body: Vec<u8>,
    peer: SocketAddr,
    client: Arc<Client>,
}

impl Request {
    /// Whether it asks for more than an answer.
    pub fn is_post(&self) -> bool {
        self.method == Method::Post
    }

    /// The path as sent, without the query.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What stands behind the question mark, as sent.
    pub fn query(&self) -> &str {
        &self.query
    }

    /// What a POST brought along; empty otherwise.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The first value of a query parameter, as sent.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let mut pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        self.headers.iter().find(|header| header.field.equiv(name)).map(|header| header.value.as_str())
    }

    /// Who asks.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether nobody waits for the answer any more. A client that closed its sending half counts as gone, as it does for
    /// Go's server.
    pub fn is_abandoned(&self) -> bool {
        *self.client.gone()
    }

    /// Lets `time` pass; `false` as soon as nobody waits for the answer any more.
    pub fn wait(&self, time: Duration) -> bool {
        let waited = self.client.left.wait_timeout_while(self.client.gone(), time, |gone| !*gone);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Whether the client of a request is still there, for the worker that computes its answer.
#[derive(Debug, Default)]
struct Client {
    gone: Mutex<bool>,
    left: Condvar,
}

impl Client {
    fn gone(&self) -> MutexGuard<'_, bool> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        *self.gone() = true;
        self.left.notify_all();
    }
}

/// Lets a worker know when the front has no use for the answer any more, also because it stopped.
struct Attendance(Arc<Client>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.leave();
    }
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
        let listener = StdTcpListener::bind(listen).map_err(bind_error)?;
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
struct Front {
    options: GuardOptions,
    bound: IpAddr,
    jobs: SyncSender<Job>,
    metrics: Arc<Metrics>,
}

impl Front {
    async fn serve(self: Arc<Self>, listener: StdTcpListener, mut stopped: oneshot::Receiver<()>) {
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

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A head without its empty line; also the version, which decides whether `Host` may be missing.
fn parse(head: &[u8], peer: SocketAddr) -> Result<(Request, HTTPVersion), Refusal> {
    let mut lines = std::str::from_utf8(head).map_err(|_| Refusal::Malformed)?.split("\r\n");
    let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = words[..] else { return Err(Refusal::Malformed) };
    let version = match version {
        "HTTP/1.1" => HTTPVersion(1, 1),
        "HTTP/1.0" => HTTPVersion(1, 0),
        _ => return Err(Refusal::Malformed),
    };
    let method = method.parse().map_err(|()| Refusal::Malformed)?;
    if !target.starts_with('/') {
        return Err(Refusal::Malformed);
    }
    let headers = lines.map(str::parse).collect::<Result<Vec<Header>, ()>>().map_err(|()| Refusal::Malformed)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
        peer,
        client: Arc::default(),
    };
    Ok((request, version))
}

fn check_method(request: &Request, posts: &[&str]) -> Result<(), Refusal> {
    let post = posts.contains(&request.path());
    match request.method {
        Method::Get | Method::Head => Ok(()),
        Method::Post if post => Ok(()),
        _ => Err(Refusal::Method { post }),
    }
}

/// How long the body of a POST is. Without a word about it there is none.
fn body_length(request: &Request, bytes_max: usize) -> Result<usize, Refusal> {
    if request.header("Transfer-Encoding").is_some() {
        return Err(Refusal::BodyLength);
    }
    let said = request.header("Content-Length").unwrap_or("0");
    let is_number = !said.is_empty() && said.bytes().all(|byte| byte.is_ascii_digit());
    match said.parse() {
        Ok(length) if is_number && length <= bytes_max => Ok(length),
        _ if is_number => Err(Refusal::BodySize),
        _ => Err(Refusal::Malformed),
    }
}

/// Keeps pages of other sites out: a browser that was tricked into resolving their name to this address still sends that
/// name. An HTTP/1.0 probe without `Host` is no browser.
fn check_host(
    request: &Request,
    version: HTTPVersion,
    extra: &[String],
    bound: IpAddr,
    local: IpAddr,
) -> Result<(), Refusal> {
    let mut hosts = request.headers.iter().filter(|header| header.field.equiv("Host"));
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if host_is_served(host.value.as_str(), extra, bound, local) => Ok(()),
        (Some(_), None) => Err(Refusal::Host),
        (None, _) if version == HTTPVersion(1, 0) => Ok(()),
        _ => Err(Refusal::Malformed),
    }
}

fn host_is_served(host: &str, extra: &[String], bound: IpAddr, local: IpAddr) -> bool {
    let name = without_port(host).trim_end_matches('.');
    match name.parse::<IpAddr>().map(|address| address.to_canonical()) {
        // On a wildcard address a port may be forwarded from any other; a page cannot be rebound to a literal address.
        Ok(address) => address.is_loopback() || address == local.to_canonical() || bound.is_unspecified(),
        Err(_) => {
            name.eq_ignore_ascii_case("localhost") || extra.iter().any(|served| name.eq_ignore_ascii_case(served))
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4000);

    fn parsed(head: &str) -> Result<Request, Refusal> {
        parse(head.as_bytes(), PEER).map(|(request, _)| request)
    }

    fn served(host: &str, bound: &str, local: &str) -> bool {
        let address = |text: &str| text.parse().expect("an address");
        host_is_served(host, &["metrics.example".to_owned()], address(bound), address(local))
    }

    #[test]
    fn a_request_has_path_parameters_and_headers() {
        let request = parsed("HEAD /debug?seconds=5&gc=1&x HTTP/1.1\r\nHost: a\r\nACCEPT: */*").expect("well formed");
        assert_eq!((&request.method, request.is_post()), (&Method::Head, false));
        assert_eq!((request.path(), request.parameter("gc"), request.parameter("x")), ("/debug", Some("1"), Some("")));
        assert_eq!((request.parameter("c"), request.header("Accept")), (None, Some("*/*")));
    }

    #[test]
    fn what_is_not_plain_http_is_refused() {
        for (head, refusal) in [
            ("", Refusal::Malformed),
            ("GET /", Refusal::Malformed),
            ("GET  / HTTP/1.1", Refusal::Malformed),
            ("GET / HTTP/2.0", Refusal::Malformed),
            ("GET http://a/ HTTP/1.1", Refusal::Malformed),
            ("GET / HTTP/1.1\r\nno colon", Refusal::Malformed),
            ("GET / HTTP/1.1\r\nHost : a", Refusal::Malformed),
            ("GET / HTTP/1.1\r\nX: a\r\n folded", Refusal::Malformed),
        ] {
            assert_eq!(parsed(head).err(), Some(refusal), "{head:?}");
        }
    }

    #[test]
    fn a_method_is_served_where_its_path_takes_it() {
        for (line, verdict) in [
            ("GET /page", Ok(())),
            ("HEAD /form", Ok(())),
            ("POST /form", Ok(())),
            ("POST /page", Err(Refusal::Method { post: false })),
            ("get /page", Err(Refusal::Method { post: false })),
            ("PUT /form", Err(Refusal::Method { post: true })),
        ] {
            let request = parsed(&format!("{line} HTTP/1.1")).expect("well formed");
            assert_eq!(check_method(&request, &["/form"]), verdict, "{line}");
        }
    }

    #[test]
    fn the_length_of_a_body_is_known_and_bounded() {
        for (headers, length) in [
            ("", Ok(0)),
            ("\r\nContent-Length: 10", Ok(10)),
            ("\r\nContent-Length: 11", Err(Refusal::BodySize)),
            ("\r\nContent-Length: 99999999999999999999999", Err(Refusal::BodySize)),
            ("\r\nContent-Length: -1", Err(Refusal::Malformed)),
            ("\r\nContent-Length: +1", Err(Refusal::Malformed)),
            ("\r\nContent-Length: ", Err(Refusal::Malformed)),
            ("\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", Err(Refusal::BodyLength)),
        ] {
            let request = parsed(&format!("POST /form HTTP/1.1{headers}")).expect("well formed");
            assert_eq!(body_length(&request, 10), length, "{headers}");
        }
    }

    #[test]
    fn only_known_hosts_are_served() {
        for host in ["localhost", "LOCALHOST:9090", "localhost.", "127.0.0.1:9090", "[::1]:9090", "metrics.example:1"] {
            assert!(served(host, "127.0.0.1", "127.0.0.1"), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "10.1.2.3", "[2001:db8::1]", "", ":9090", "[", "127.0.0.1.evil"]
        {
            assert!(!served(host, "127.0.0.1", "127.0.0.1"), "{host}");
        }
        assert!(served("10.1.2.3:9090", "10.1.2.3", "10.1.2.3"));
        assert!(served("203.0.113.9", "0.0.0.0", "10.1.2.3"));
        assert!(!served("evil.example", "0.0.0.0", "10.1.2.3"));
    }

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
