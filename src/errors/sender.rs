//! The thread that delivers reports, one envelope at a time, to a server that may be slow, full or gone.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use ureq::Agent;
use ureq::http::{HeaderMap, StatusCode};

use super::Options;
use super::queue::Queue;
use super::report::Report;

const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A server that has not answered by then counts as away.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Before the same report is tried again: doubled from the first to the second as long as it fails.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How long a server that says nothing of time wants to be left alone, and what it may ask for at most.
const LIMIT_DEFAULT: Duration = Duration::from_secs(60);
const LIMIT_MAX: Duration = Duration::from_secs(3600);

/// See the module.
pub(super) struct Sender {
    options: Options,
    agent: Agent,
    queue: Arc<Queue<Report>>,
    lost: u64,
    /// Whether the log was told that reports do not arrive.
    complained: bool,
}

/// What became of an attempt.
enum Attempt {
    Delivered,
    /// The server does not want this one.
    Refused(String),
    /// Not now; when the server said when, then not before.
    Later(String, Option<Duration>),
}

impl Sender {
    pub(super) fn new(options: Options, queue: Arc<Queue<Report>>) -> Self {
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_global(Some(ANSWER_TIME))
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(client())
            .build();
        Self { options, agent: config.new_agent(), queue, lost: 0, complained: false }
    }

    /// Works until the queue is closed, and empty or undeliverable.
    pub(super) fn run(mut self) {
        let ending = Ending(Arc::clone(&self.queue));
        while let Some(report) = self.queue.take() {
            let envelope = report.into_envelope(&self.options);
            if !self.deliver(&envelope) {
                break;
            }
        }
        drop(ending);
    }

    /// Tries until the report is delivered or refused; `false` when the queue was closed before.
    fn deliver(&mut self, envelope: &[u8]) -> bool {
        let mut retry = RETRY_MIN;
        loop {
            match self.attempt(envelope) {
                Attempt::Delivered => {
                    self.arrived();
                    return true;
                }
                Attempt::Refused(reason) => {
                    self.lost += 1;
                    self.complain(&reason);
                    return true;
                }
                Attempt::Later(reason, pause) => {
                    self.complain(&reason);
                    if !self.queue.rest(pause.unwrap_or(retry)) {
                        return false;
                    }
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn attempt(&self, envelope: &[u8]) -> Attempt {
        let authorization =
            format!("Sentry sentry_version=7, sentry_client={}, sentry_key={}", client(), self.options.dsn.key());
        let request = self.agent.post(self.options.dsn.endpoint());
        let request = request.header("Content-Type", "application/x-sentry-envelope");
        match request.header("X-Sentry-Auth", authorization).send(envelope) {
            Ok(answer) => verdict(answer.status(), answer.headers()),
            Err(error) => Attempt::Later(error.to_string(), None),
        }
    }

    fn arrived(&mut self) {
        if std::mem::take(&mut self.complained) {
            let lost = std::mem::take(&mut self.lost) + self.queue.take_dropped();
            info!(lost, "error reports are delivered again");
        }
    }

    /// Once, until reports arrive again.
    fn complain(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.complained, true) {
            warn!(reason, "error reports cannot be delivered");
        }
    }
}

/// Says that the thread ends, however it does.
struct Ending(Arc<Queue<Report>>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn client() -> &'static str {
    concat!("superchat/", env!("CARGO_PKG_VERSION"))
}

fn verdict(status: StatusCode, headers: &HeaderMap) -> Attempt {
    let reason = || format!("the server answered {}", status.as_u16());
    match status.as_u16() {
        200..300 => Attempt::Delivered,
        429 => Attempt::Later(reason(), Some(retry_after(headers))),
        500..600 => Attempt::Later(reason(), None),
        _ => Attempt::Refused(reason()),
    }
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get("Retry-After").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    seconds.map_or(LIMIT_DEFAULT, Duration::from_secs).min(LIMIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_full_is_left_alone_as_long_as_it_asks() {
        for (given, seconds) in [(Some("7"), 7), (None, 60), (Some("soon"), 60), (Some("999999"), 3600)] {
            let mut headers = HeaderMap::new();
            given.and_then(|given| headers.insert("Retry-After", given.parse().unwrap()));
            let Attempt::Later(reason, Some(pause)) = verdict(StatusCode::TOO_MANY_REQUESTS, &headers) else {
                panic!()
            };
            assert_eq!((reason.as_str(), pause.as_secs()), ("the server answered 429", seconds));
        }
    }

    #[test]
    fn what_is_refused_is_not_tried_again() {
        let none = HeaderMap::new();
        for status in [301, 400, 401, 403, 413] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(matches!(verdict(status, &none), Attempt::Refused(_)), "{status}");
        }
        assert!(matches!(verdict(StatusCode::BAD_GATEWAY, &none), Attempt::Later(_, None)));
        assert!(matches!(verdict(StatusCode::OK, &none), Attempt::Delivered));
    }
}
