//! What a client asks: its head, read and checked before any of it is believed.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tiny_http::{HTTPVersion, Header, Method};

use super::Refusal;

/// A request that passed every check; GET or HEAD, which a handler need not tell apart, or POST where its path takes it.
#[derive(Debug)]
pub struct Request {
    pub(super) method: Method,
    path: String,
    query: String,
    headers: Vec<Header>,
    pub(super) body: Vec<u8>,
    peer: SocketAddr,
    pub(super) client: Arc<Client>,
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
pub(super) struct Client {
    gone: Mutex<bool>,
    left: Condvar,
}

impl Client {
    fn gone(&self) -> MutexGuard<'_, bool> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leave(&self) {
        *self.gone() = true;
        self.left.notify_all();
    }
}

/// Lets a worker know when the front has no use for the answer any more, also because it stopped.
pub(super) struct Attendance(pub(super) Arc<Client>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A head without its empty line; also the version, which decides whether `Host` may be missing.
pub(super) fn parse(head: &[u8], peer: SocketAddr) -> Result<(Request, HTTPVersion), Refusal> {
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

pub(super) fn check_method(request: &Request, posts: &[&str]) -> Result<(), Refusal> {
    let post = posts.contains(&request.path());
    match request.method {
        Method::Get | Method::Head => Ok(()),
        Method::Post if post => Ok(()),
        _ => Err(Refusal::Method { post }),
    }
}

/// How long the body of a POST is. Without a word about it there is none.
pub(super) fn body_length(request: &Request, bytes_max: usize) -> Result<usize, Refusal> {
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
pub(super) fn check_host(
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
}
