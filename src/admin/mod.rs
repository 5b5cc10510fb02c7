//! The metrics and health port: for operators, scrapers and probes, never public. [`profiles`] is the port beside it.
//!
//! It runs on threads of its own and reads shared atomics, so that it answers when the shards do not.

pub mod guard;
pub mod health;
pub mod profiles;
mod status;

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;

use crate::clock::monotonic_ms;
use crate::metrics::{Exposition, Metrics};

use guard::{Answer, Guard, GuardOptions, Limits, Request};
use health::Health;
use status::{Status, page};

/// Every path that is served here.
const ROUTES: &[Route] = &[
    Route { path: "/", bearer: false, answer: index, about: "this page" },
    Route { path: "/status", bearer: true, answer: status, about: "how the server is doing, for people" },
    Route { path: "/health", bearer: false, answer: health_body, about: "health with a real probe of the database" },
    Route { path: "/livez", bearer: false, answer: livez, about: "is the process worth keeping" },
    Route { path: "/readyz", bearer: false, answer: readyz, about: "may clients be sent here" },
    Route { path: "/metrics", bearer: true, answer: metrics, about: "metrics for Prometheus" },
];

struct Route {
    path: &'static str,
    /// Whether a configured token must be shown.
    bearer: bool,
    answer: fn(&Site, &'static str, &Request) -> Answer,
    about: &'static str,
}

/// The port's name in metrics and threads.
const SERVER: &str = "metrics";
const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json";

/// What [`AdminServer::start`] has to know.
#[derive(Clone)]
pub struct AdminOptions {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether an address other than loopback is what the operator wants.
    pub allow_remote: bool,
    /// Host names that are served besides loopback names and the address itself.
    pub hosts: Vec<String>,
    /// What `/metrics` and `/status` ask for.
    pub token: BearerToken,
    /// Where profiles are served, for a link.
    pub profiles: Option<SocketAddr>,
    /// What one client may cost.
    pub limits: Limits,
}

/// Why the port cannot be opened.
pub type AdminError = guard::GuardError;

/// The metrics and health port, open until it is stopped or dropped.
pub struct AdminServer(Guard);

impl AdminServer {
    /// Opens the port.
    ///
    /// # Errors
    /// An address that may not be served, a port that is taken, or no threads.
    pub fn start(options: AdminOptions, metrics: Arc<Metrics>, health: Arc<Health>) -> Result<Self, AdminError> {
        let AdminOptions { listen, allow_remote, hosts, token, profiles, limits } = options;
        let site = Site { token, metrics: Arc::clone(&metrics), health, profiles };
        ROUTES.iter().for_each(|route| metrics.http_route(SERVER, route.path));
        let guarded =
            GuardOptions { name: SERVER, setting: "metrics_listen", listen, allow_remote, hosts, posts: &[], limits };
        let server = Guard::start(guarded, Box::new(move |request| site.answer(request)), metrics)?;
        tracing::info!(address = %server.address(), "metrics server listening (/metrics, /health)");
        Ok(Self(server))
    }

    /// The address clients reach, with the port that was really taken.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Closes the port.
    pub fn stop(self) {
        self.0.stop();
    }
}

/// The secret an operator may set for the pages that tell much; without one they are open. Copies are the same token.
#[derive(Clone, Default)]
pub struct BearerToken(Arc<RwLock<Option<String>>>);

impl BearerToken {
    /// An empty token is none.
    pub fn new(token: Option<String>) -> Self {
        let shared = Self::default();
        shared.replace(token);
        shared
    }

    /// Another token counts from the next request on.
    pub fn replace(&self, token: Option<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token.filter(|token| !token.is_empty());
    }

    fn get(&self) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether one is set.
    pub fn is_set(&self) -> bool {
        self.get().is_some()
    }

    /// Lets a request pass, or says what to answer instead; a refusal is a security event.
    ///
    /// # Errors
    /// The 401 to send.
    pub fn check(&self, route: &'static str, request: &Request) -> Result<(), Answer> {
        let shown = credentials(request, "Bearer").map(str::to_owned);
        self.compare(shown, route, request)
            .map_err(|answer| answer.with_header("WWW-Authenticate", "Bearer realm=\"scd\""))
    }

    /// The same for programs that can be given no token but a password in an address, such as `go tool pprof`, and for
    /// browsers, which ask for one: a password that is the token counts as well, whoever the user.
    ///
    /// # Errors
    /// The 401 to send.
    pub fn check_with_password(&self, route: &'static str, request: &Request) -> Result<(), Answer> {
        let shown = credentials(request, "Bearer").map(str::to_owned);
        let shown = shown.or_else(|| credentials(request, "Basic").and_then(password));
        let challenge = "Basic realm=\"scd\", Bearer realm=\"scd\"";
        self.compare(shown, route, request).map_err(|answer| answer.with_header("WWW-Authenticate", challenge))
    }

    fn compare(&self, shown: Option<String>, route: &'static str, request: &Request) -> Result<(), Answer> {
        let Some(token) = self.get() else { return Ok(()) };
        if shown.as_ref().is_some_and(|shown| same(shown.as_bytes(), token.as_bytes())) {
            return Ok(());
        }
        let shown = if shown.is_some() { "wrong" } else { "none" };
        tracing::warn!(target: "security", remote = %request.peer(), path = route, token = shown, "admin token refused");
        Err(Answer::text(route, 401, "a bearer token is needed"))
    }
}

/// What a request shows in the way that `scheme` names.
fn credentials<'a>(request: &'a Request, scheme: &str) -> Option<&'a str> {
    let (shown, credentials) = request.header("Authorization")?.split_once(' ')?;
    shown.eq_ignore_ascii_case(scheme).then(|| credentials.trim())
}

/// The password of `user:password` in base64.
fn password(credentials: &str) -> Option<String> {
    let bytes = base64::prelude::BASE64_STANDARD.decode(credentials).ok()?;
    let (_, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    Some(password.to_owned())
}

/// Compares in a time that depends on the lengths only.
fn same(shown: &[u8], token: &[u8]) -> bool {
    let differences = shown.iter().zip(token).fold(0, |seen, (a, b)| black_box(seen | (a ^ b)));
    shown.len() == token.len() && differences == 0
}

/// What the pages are made from.
struct Site {
    token: BearerToken,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    profiles: Option<SocketAddr>,
}

impl Site {
    fn answer(&self, request: &Request) -> Answer {
        let Some(route) = ROUTES.iter().find(|route| route.path == request.path()) else {
            return Answer::text("other", 404, "not found");
        };
        let checked = if route.bearer { self.token.check(route.path, request) } else { Ok(()) };
        match checked {
            Ok(()) => (route.answer)(self, route.path, request),
            Err(refused) => refused,
        }
    }
}

fn index(site: &Site, route: &'static str, _: &Request) -> Answer {
    let link = |route: &Route| format!("<li><a href=\"{0}\">{0}</a> {1}</li>\n", route.path, route.about);
    let links: String = ROUTES.iter().map(link).collect();
    let profiles = site.profiles.map_or_else(String::new, |address| {
        let url = format!("http://{address}/debug/pprof/");
        format!("<li><a href=\"{url}\">{url}</a> profiles, on a port of their own</li>\n")
    });
    html(route, page("SuperChat", false, &format!("<h1>SuperChat</h1>\n<ul>\n{links}{profiles}</ul>\n")))
}

fn status(site: &Site, route: &'static str, request: &Request) -> Answer {
    let status = Status::now(&site.health, &site.metrics, monotonic_ms());
    match prefers(request.header("Accept"), &["text/html", JSON]) {
        JSON => json(route, 200, &status),
        _ => html(route, status.html()),
    }
}

fn health_body(site: &Site, route: &'static str, _: &Request) -> Answer {
    let body = site.health.body(monotonic_ms());
    json(route, if body.database_accessible { 200 } else { 503 }, &body)
}

fn livez(site: &Site, route: &'static str, _: &Request) -> Answer {
    verdict(route, site.health.live(monotonic_ms()))
}

fn readyz(site: &Site, route: &'static str, _: &Request) -> Answer {
    verdict(route, site.health.ready(monotonic_ms()))
}

fn metrics(site: &Site, route: &'static str, request: &Request) -> Answer {
    let format = match prefers(request.header("Accept"), &["text/plain", "application/openmetrics-text"]) {
        "text/plain" => Exposition::Text,
        _ => Exposition::OpenMetrics,
    };
    match site.metrics.render(format, monotonic_ms()) {
        Ok(text) => Answer::new(route, 200, format.content_type(), text),
        Err(error) => {
            tracing::error!(%error, "cannot write the metrics");
            Answer::text(route, 500, "cannot write the metrics")
        }
    }
}

fn verdict(route: &'static str, verdict: Result<(), String>) -> Answer {
    match verdict {
        Ok(()) => Answer::text(route, 200, "ok"),
        Err(reason) => Answer::text(route, 503, &reason),
    }
}

fn html(route: &'static str, page: String) -> Answer {
    // Nothing is loaded and nothing runs, whatever a name on the page may contain.
    let policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";
    Answer::new(route, 200, HTML, page).with_header("Content-Security-Policy", policy)
}

fn json(route: &'static str, status: u16, body: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(bytes) => Answer::new(route, status, JSON, bytes),
        Err(error) => {
            tracing::error!(%error, "cannot write json");
            Answer::text(route, 500, "cannot write json")
        }
    }
}

/// The offered type a client likes best; the first of equals, and the first when it names none of them.
fn prefers<'a>(accept: Option<&str>, offered: &[&'a str]) -> &'a str {
    let accept = accept.unwrap_or("*/*");
    let best = offered.iter().rev().max_by(|a, b| quality(accept, a).total_cmp(&quality(accept, b)));
    best.copied().unwrap_or_default()
}

/// How much an `Accept` header likes a type, 0 to 1: the most exact range that covers it decides, and of several such
/// (versions of one format) the best.
fn quality(accept: &str, media: &str) -> f32 {
    let any_of_kind = format!("{}/*", media.split('/').next().unwrap_or_default());
    let ranges = [media, any_of_kind.as_str(), "*/*"];
    let liked = ranges.iter().find_map(|wanted| {
        let alike = accept.split(',').filter(|range| range.split(';').next().unwrap_or_default().trim() == *wanted);
        alike.map(weight).reduce(f32::max)
    });
    liked.unwrap_or(0.0)
}

fn weight(range: &str) -> f32 {
    let parameters = range.split(';').skip(1);
    parameters.filter_map(|parameter| parameter.trim().strip_prefix("q=")).find_map(|q| q.parse().ok()).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_matches_only_itself() {
        for (shown, is_same) in [("secret", true), ("secre", false), ("secrets", false), ("sekret", false), ("", false)]
        {
            assert_eq!(same(shown.as_bytes(), b"secret"), is_same, "{shown}");
        }
        assert_eq!(password("Z286czNjcmV0OmF0IGFsbA=="), Some("s3cret:at all".to_owned()));
        for broken in ["", "Z28=", "s3cret", "////", "!"] {
            assert_eq!(password(broken), None, "{broken}");
        }
        assert!(!BearerToken::new(Some(String::new())).is_set());
    }

    #[test]
    fn accept_headers_of_real_clients_choose_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let open = "application/openmetrics-text";
        for (accept, offered, chosen) in [
            (Some(prometheus), ["text/plain", open], open),
            (Some("text/plain;version=0.0.4"), ["text/plain", open], "text/plain"),
            (Some("*/*"), ["text/plain", open], "text/plain"),
            (None, ["text/plain", open], "text/plain"),
            (Some(firefox), ["text/html", JSON], "text/html"),
            (Some("application/json"), ["text/html", JSON], JSON),
            (Some("application/json, text/html;q=0"), ["text/html", JSON], JSON),
            (Some("image/png"), ["text/html", JSON], "text/html"),
        ] {
            assert_eq!(prefers(accept, &offered), chosen, "{accept:?}");
        }
    }
}
