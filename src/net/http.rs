//! The public HTTP port (BEHAVIOUR.md 1.9, 6.6): `/ws` and `/servers.json`, on a thread of its own.
//!
//! Until it is upgraded, a connection is one of few from its address, has seconds for its request, and its answer must be
//! taken within a deadline. Afterwards the limits of sessions count.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue, IntoHeaderName};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tracing::{debug, error, warn};

use super::door::Door;
use super::port::Port;
use super::{Gate, websocket};
use crate::clock;
use crate::profile::tasks::{self, place, site};

/// The port's name in metrics.
const SERVER: &str = "public";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// Connections that are no sessions yet, in all and from one address.
const CONNECTIONS_MAX: u32 = 1024;
const CONNECTIONS_PER_ADDRESS_MAX: u32 = 32;

/// From the connection, or the last answer, to the end of the next request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From the connection to the end of its last answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// One server in `/servers.json`. Its readers know the keys as they are, capitals included.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listed {
    pub hostname: String,
    pub port: u16,
    pub name: String,
    pub description: String,
    pub user_count: u32,
    pub max_users: u32,
    pub uptime_seconds: u64,
    pub is_public: bool,
    pub channel_count: u32,
}

/// Why there is no list of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoList {
    /// This server keeps no directory.
    Off,
    /// It could not be read.
    Failed,
}

/// This server first, then those it lists.
pub type ListedServers =
    Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Vec<Listed>, NoList>> + Send>> + Send + Sync>;

#[derive(Serialize)]
struct Listing {
    count: usize,
    servers: Vec<Listed>,
}

/// What the port needs.
pub struct HttpParts {
    pub listener: TcpListener,
    pub door: Arc<Door>,
    /// Origins of web pages that may open a session; empty = all.
    pub allowed_origins: Vec<String>,
    /// Peers whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Counts connections that are no sessions yet, within [`limits`].
    pub gate: Arc<Gate>,
    pub servers: ListedServers,
    /// Called should the thread end by itself.
    pub on_panic: Box<dyn FnOnce() + Send>,
}

/// How many connections the port takes, per address and in all; exempt networks are free of the former.
#[must_use]
pub fn limits(exempt: Vec<IpNet>) -> (Option<u32>, Option<u32>, Vec<IpNet>) {
    (Some(CONNECTIONS_PER_ADDRESS_MAX), Some(CONNECTIONS_MAX), exempt)
}

/// Opens the public HTTP port.
///
/// # Errors
/// When the system gives no thread, or no way to watch the socket.
pub fn open(parts: HttpParts) -> io::Result<Port> {
    let HttpParts { listener, door, allowed_origins, trusted_proxies, gate, servers, on_panic } = parts;
    listener.set_nonblocking(true)?;
    ROUTES.iter().for_each(|route| door.metrics.http_route(SERVER, route.path));
    let site = Site { door, gate, allowed_origins, trusted_proxies, servers };
    Port::start("public HTTP", "scd-http", on_panic, move |stop| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().build_local(Default::default())?;
        let _watched = tasks::watch(runtime.handle().metrics());
        let site = Rc::new(site);
        runtime.block_on(tasks::root(place!(), async {
            let converse = |stream, peer| tasks::in_set(place!(), serve(Rc::clone(&site), stream, peer));
            stop.serve(listener, |connections, stream, peer| drop(connections.spawn_local(converse(stream, peer))))
                .await
        }))
    })
}

/// One connection: its requests, and the session that one of them may have become.
async fn serve(site: Rc<Site>, stream: TcpStream, peer: SocketAddr) {
    let place = match site.gate.admit(peer.ip()) {
        Ok(place) => place,
        Err(refusal) => return site.door.metrics.rejected(refusal.label()),
    };
    if let Err(error) = stream.set_nodelay(true) {
        return debug!(%error, "connection lost before it was served");
    }
    let upgrade = Cell::new(None);
    let service = service_fn(async |request| Ok::<_, Infallible>(site.answer(request, peer, &upgrade).await));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let over = timeout(CONNECTION_TIMEOUT, connection).await;
    if !matches!(over, Ok(Ok(()))) {
        return debug!("a client of the public HTTP port was too slow, or left");
    }
    if let Some(Upgrade { connection, client }) = upgrade.take() {
        match connection.await {
            Ok(connection) => websocket::serve(TokioIo::new(connection), client, &site.door, place).await,
            Err(error) => debug!(%error, "connection lost before it was served"),
        }
    }
}

/// A connection that becomes a session.
struct Upgrade {
    connection: OnUpgrade,
    /// Who is behind it, also behind a proxy.
    client: SocketAddr,
}

struct Site {
    door: Arc<Door>,
    gate: Arc<Gate>,
    allowed_origins: Vec<String>,
    trusted_proxies: Vec<IpNet>,
    servers: ListedServers,
}

/// Every path that is served here.
const ROUTES: &[Route] = &[
    Route { path: "/ws", head: false, answer: |site, visit| Box::pin(async { site.open_session(visit) }) },
    Route { path: "/servers.json", head: true, answer: |site, visit| Box::pin(site.list_servers(visit)) },
];

type Answer<'a> = Pin<Box<dyn Future<Output = Response<String>> + 'a>>;

struct Route {
    path: &'static str,
    /// Whether HEAD is answered too.
    head: bool,
    answer: for<'a> fn(&'a Site, Visit<'a>) -> Answer<'a>,
}

/// A request, who sent it, and where to leave the connection if it becomes a session.
struct Visit<'a> {
    request: Request<Incoming>,
    peer: SocketAddr,
    upgrade: &'a Cell<Option<Upgrade>>,
}

impl Site {
    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        upgrade: &Cell<Option<Upgrade>>,
    ) -> Response<String> {
        let started = clock::monotonic();
        let route = ROUTES.iter().find(|route| route.path == request.uri().path());
        let is_head = request.method() == Method::HEAD;
        let mut response = match route {
            None => text(StatusCode::NOT_FOUND, "not found"),
            Some(route) if request.method() == Method::GET || (route.head && is_head) => {
                (route.answer)(self, Visit { request, peer, upgrade }).await
            }
            Some(route) => {
                let allowed = if route.head { "GET, HEAD" } else { "GET" };
                with_header(text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"), header::ALLOW, allowed)
            }
        };
        if is_head {
            response.body_mut().clear();
        }
        let micros = u64::try_from((clock::monotonic() - started).as_micros()).unwrap_or(u64::MAX);
        let path = route.map_or("other", |route| route.path);
        self.door.metrics.http_request(SERVER, path, response.status().as_u16(), micros);
        response
    }

    /// Answers an upgrade by hand: keys that are too short are in use (BEHAVIOUR.md 11.3).
    fn open_session(&self, visit: Visit<'_>) -> Response<String> {
        let Visit { mut request, peer, upgrade } = visit;
        let headers = request.headers();
        let key = headers.get("Sec-WebSocket-Key").filter(|_| asks_for_websocket(headers));
        let Some(key) = key.map(|key| derive_accept_key(key.as_bytes())) else {
            let answer = text(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket");
            return with_header(answer, header::UPGRADE, "websocket");
        };
        if headers.get("Sec-WebSocket-Version").is_none_or(|version| version != "13") {
            let answer = text(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket of version 13");
            return with_header(answer, "Sec-WebSocket-Version", "13");
        }
        if !self.is_allowed_origin(headers.get(header::ORIGIN)) {
            warn!(target: "security", remote = %crate::log::peer(peer.ip()), "origin refused");
            return text(StatusCode::FORBIDDEN, "pages of this origin may not connect");
        }
        let client = client_address(peer, headers, &self.trusted_proxies);
        upgrade.set(Some(Upgrade { connection: hyper::upgrade::on(&mut request), client }));
        let mut answer = with_header(Response::new(String::new()), header::UPGRADE, "websocket");
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        with_header(with_header(answer, header::CONNECTION, "Upgrade"), "Sec-WebSocket-Accept", &key)
    }

    /// Programs other than browsers send no origin, or any they like.
    fn is_allowed_origin(&self, origin: Option<&HeaderValue>) -> bool {
        let Some(origin) = origin else { return true };
        self.allowed_origins.is_empty()
            || self.allowed_origins.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    }

    async fn list_servers(&self, visit: Visit<'_>) -> Response<String> {
        let client = client_address(visit.peer, visit.request.headers(), &self.trusted_proxies);
        if let Err(refusal) = self.door.gate.check_ban(client.ip(), clock::wall_ms()) {
            return text(StatusCode::FORBIDDEN, refusal.text());
        }
        let servers = match tasks::at(site!("wait for the list of servers"), (self.servers)()).await {
            Ok(servers) => servers,
            Err(NoList::Off) => return text(StatusCode::NOT_FOUND, "not found"),
            Err(NoList::Failed) => return text(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error"),
        };
        let answer = match serde_json::to_string(&Listing { count: servers.len(), servers }) {
            Ok(body) => with_header(Response::new(body), header::CONTENT_TYPE, JSON),
            Err(error) => {
                error!(%error, "cannot write json");
                text(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error")
            }
        };
        // The list is fetched by pages from elsewhere.
        with_header(answer, header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")
    }
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let names = |name: HeaderName, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    names(header::CONNECTION, "upgrade") && names(header::UPGRADE, "websocket")
}

/// The peer, or whom a trusted proxy names: the last in `X-Forwarded-For` that is not a trusted proxy itself. What stands
/// before that anybody could have written, in whatever bytes.
fn client_address(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> SocketAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address.to_canonical()));
    let values = headers.get_all("X-Forwarded-For").into_iter();
    let named = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut client = peer;
    for named in named.rev() {
        if !is_trusted(client.ip()) {
            break;
        }
        let Some(address) = forwarded(named) else { break };
        client = address;
    }
    client
}

/// `192.0.2.1`, `2001:db8::1`, and either with a port.
fn forwarded(named: &[u8]) -> Option<SocketAddr> {
    let named = str::from_utf8(named).ok()?.trim();
    let bare = named.trim_start_matches('[').trim_end_matches(']');
    named.parse().ok().or_else(|| bare.parse().ok().map(|address: IpAddr| SocketAddr::new(address, 0)))
}

fn text(status: StatusCode, text: &str) -> Response<String> {
    let mut answer = with_header(Response::new(format!("{text}\n")), header::CONTENT_TYPE, TEXT);
    *answer.status_mut() = status;
    answer
}

fn with_header(mut answer: Response<String>, name: impl IntoHeaderName, value: &str) -> Response<String> {
    match HeaderValue::from_str(value) {
        Ok(value) => drop(answer.headers_mut().insert(name, value)),
        Err(error) => error!(%error, "cannot write a header"),
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_say_who_is_behind_them() {
        let trusted: Vec<IpNet> = vec!["127.0.0.1/32".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        for (peer, forwarded, client) in [
            ("127.0.0.1:9", "203.0.113.7", "203.0.113.7:0"),
            ("127.0.0.1:9", "1.1.1.1, 203.0.113.7", "203.0.113.7:0"),
            ("127.0.0.1:9", "1.1.1.1, 203.0.113.7, 10.0.0.3", "203.0.113.7:0"),
            ("127.0.0.1:9", "[2001:db8::1]:4711", "[2001:db8::1]:4711"),
            ("127.0.0.1:9", "2001:db8::1", "[2001:db8::1]:0"),
            ("127.0.0.1:9", "[2001:db8::1]", "[2001:db8::1]:0"),
            ("127.0.0.1:9", "unknown", "127.0.0.1:9"),
            ("127.0.0.1:9", "203.0.113.7, nonsense", "127.0.0.1:9"),
            ("127.0.0.1:9", "\u{ff}, 203.0.113.7", "203.0.113.7:0"),
            ("127.0.0.1:9", "\u{ff}, 203.0.113.7, 10.0.0.3", "203.0.113.7:0"),
            ("127.0.0.1:9", "203.0.113.7, \u{ff}", "127.0.0.1:9"),
            ("192.0.2.9:9", "203.0.113.7", "192.0.2.9:9"),
            ("[::ffff:127.0.0.1]:9", "203.0.113.7", "203.0.113.7:0"),
        ] {
            let mut headers = HeaderMap::new();
            // Each character is one byte: a client may write what is no text.
            let bytes: Vec<_> = forwarded.chars().map(|byte| u8::try_from(byte).unwrap()).collect();
            headers.insert("X-Forwarded-For", HeaderValue::from_bytes(&bytes).unwrap());
            let found = client_address(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(found, client.parse().unwrap(), "{peer} {forwarded}");
        }
    }
}
