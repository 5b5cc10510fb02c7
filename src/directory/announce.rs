//! Having this server listed elsewhere (BEHAVIOUR.md 6.5): it registers at a directory, sends it heartbeats as often as it is
//! asked to, and registers anew every hour, or as soon as the directory knows it no more.

use std::rc::Rc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::Site;
use super::dial::{DialError, PATIENCE, Peer, refused, shown};
use super::verify::{random, tried};
use crate::clock;
use crate::config::Endpoint;
use crate::profile::tasks::{at, site};
use crate::store::ServerRecord;
use crate::wire::server::RegisterAck;
use crate::wire::{ServerMessage, client};

/// What a directory may send on one connection.
const BUDGET: usize = 256 * 1024;

/// For a directory's answer to a registration (BEHAVIOUR.md 6.5).
const ACK_PATIENCE: Duration = Duration::from_secs(30);
/// For what else it has to say once it has asked for proof.
const REST_PATIENCE: Duration = Duration::from_secs(5);

/// From one registration to the next: so a directory that lost its data has us again.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(3600);

/// From a registration to the heartbeat that tells whether the directory has found us.
const FIRST_HEARTBEAT: Duration = Duration::from_secs(10);

/// What a directory may ask for, whatever it says.
const INTERVAL_MIN: Duration = Duration::from_secs(60);
const INTERVAL_MAX: Duration = ANNOUNCE_EVERY;

/// After a failure (BEHAVIOUR.md 6.5); doubled by each further one up to a quarter of an hour and some.
const RETRY: Duration = Duration::from_secs(60);
const RETRY_DOUBLINGS_MAX: u32 = 4;

/// Where the protocol's own port is not served, or nobody outside could find us, the caller leaves this out.
pub(super) async fn announce(site: Rc<Site>, directory: Endpoint) {
    let mut failures = 0;
    loop {
        match register(&site, &directory).await {
            Ok(()) => {
                let is_listed = keep_up(&site, &directory).await;
                failures = if is_listed { 0 } else { failures + 1 };
                if is_listed {
                    continue;
                }
            }
            Err(reason) => {
                failures += 1;
                warn!("Could not announce to directory {directory}: {reason}");
            }
        }
        at(site!("wait to announce again"), sleep(retry(failures, random()))).await;
    }
}

/// Longer after every failure, and never in step with others.
fn retry(failures: u32, random: u64) -> Duration {
    let pause = RETRY * 2_u32.pow(failures.saturating_sub(1).min(RETRY_DOUBLINGS_MAX));
    pause + jitter(pause / 2, random)
}

fn jitter(most: Duration, random: u64) -> Duration {
    Duration::from_millis(random % u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1))
}

async fn dial(directory: &Endpoint) -> Result<Peer, DialError> {
    let lookup = at(site!("resolve a name"), lookup_host((directory.host.as_str(), directory.port.get())));
    let targets = timeout(PATIENCE, lookup).await.map_err(|_| DialError::Silent)?.map_err(DialError::Connect)?;
    let mut outcome = Err(DialError::Wrong);
    for target in tried(&targets.collect::<Vec<_>>()) {
        outcome = Peer::dial(target, BUDGET).await.map(|(peer, _)| peer);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// What a directory says to a registration.
enum Said {
    Ack { is_taken: bool, text: String },
    Challenge(u64),
}

fn said(message: ServerMessage<'_>) -> Option<Result<Said, DialError>> {
    match message {
        ServerMessage::RegisterAck(RegisterAck { outcome }) => {
            let (is_taken, text) = match outcome {
                Ok(accepted) => (true, accepted.message),
                // The deployed directories say so when they begin to verify.
                Err(failed) => (failed.message == b"Verification in progress...", failed.message),
            };
            Some(Ok(Said::Ack { is_taken, text: shown(text) }))
        }
        ServerMessage::VerifyRegistration(verify) => Some(Ok(Said::Challenge(verify.challenge))),
        ServerMessage::Error(error) => Some(Err(refused(&error))),
        ServerMessage::Disconnect(_) => Some(Err(DialError::Closed)),
        _ => None,
    }
}

/// Any answer is good, and none within the time as well: what counts is whether the first heartbeat is known.
async fn register(site: &Site, directory: &Endpoint) -> Result<(), DialError> {
    let own = (site.own)();
    let mut peer = dial(directory).await?;
    peer.say(client::RegisterServer {
        hostname: own.address.host.as_bytes(),
        port: own.address.port,
        name: &own.name,
        description: &own.description,
        max_users: own.max_users,
        is_public: own.is_public,
        channel_count: own.channel_count,
    })
    .await?;
    match answered(&mut peer).await? {
        Some(Said::Ack { is_taken: true, text }) => info!("Announced to directory {directory}: {text}"),
        Some(Said::Ack { is_taken: false, text }) => warn!("Directory {directory} refuses this server: {text}"),
        Some(Said::Challenge(_)) | None => info!("Announced to directory {directory}"),
    }
    peer.leave("Registration complete").await;
    Ok(())
}

/// A directory may ask for proof on the very connection; what it says after that is its answer.
async fn answered(peer: &mut Peer) -> Result<Option<Said>, DialError> {
    let mut patience = ACK_PATIENCE;
    let mut last = None;
    // One challenge is enough for a directory that means it.
    for _ in 0..2 {
        match peer.await_answer(patience, said).await {
            Ok(Said::Challenge(challenge)) => {
                peer.say(client::VerifyResponse { challenge }).await?;
                last = Some(Said::Challenge(challenge));
                patience = REST_PATIENCE;
            }
            Ok(ack) => return Ok(Some(ack)),
            Err(DialError::Silent) => return Ok(last),
            Err(DialError::Closed) if last.is_some() => return Ok(last),
            Err(error) => return Err(error),
        }
    }
    Ok(last)
}

/// What came of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pulse {
    /// The next one is due then.
    Due(Duration),
    /// The directory does not know us.
    Unknown,
    /// It takes no heartbeats from here; its own checks keep us on the list.
    Unwanted,
    Failed,
}

/// What a directory is known to think of us since the last registration.
#[derive(Debug, Default)]
struct Standing {
    is_listed: Option<bool>,
    failures: u32,
}

/// What follows from a heartbeat.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    BeatAfter(Duration),
    /// No heartbeats until the next registration.
    Rest,
    RegisterNow,
    /// It was told twice that we are here, and did not find us.
    NotFound,
}

impl Standing {
    fn after(&mut self, pulse: Pulse, random: u64) -> Next {
        match pulse {
            Pulse::Due(next) => {
                *self = Self { is_listed: Some(true), failures: 0 };
                // A little early: three missed ones are too many.
                Next::BeatAfter(next - jitter(next / 10, random))
            }
            // A verification may take its time.
            Pulse::Unknown if self.is_listed.is_none() => {
                self.is_listed = Some(false);
                Next::BeatAfter(RETRY)
            }
            // It has lost us, and can have us again.
            Pulse::Unknown if self.is_listed == Some(true) => Next::RegisterNow,
            Pulse::Unknown => Next::NotFound,
            Pulse::Unwanted => Next::Rest,
            Pulse::Failed => {
                self.failures += 1;
                Next::BeatAfter(retry(self.failures, random))
            }
        }
    }
}

/// Sends heartbeats until it is time to register anew; `false` when the directory does not list us.
async fn keep_up(site: &Site, directory: &Endpoint) -> bool {
    let until = clock::monotonic() + ANNOUNCE_EVERY + jitter(ANNOUNCE_EVERY / 10, random());
    let left = || until.saturating_sub(clock::monotonic());
    let mut standing = Standing::default();
    let mut next = Next::BeatAfter(FIRST_HEARTBEAT);
    loop {
        match next {
            Next::BeatAfter(pause) if pause < left() => at(site!("wait for the next heartbeat"), sleep(pause)).await,
            Next::BeatAfter(_) | Next::Rest => {
                at(site!("wait to announce again"), sleep(left())).await;
                return true;
            }
            Next::RegisterNow => return true,
            Next::NotFound => {
                let own = (site.own)().address;
                warn!(
                    "Directory {directory} does not list this server; can it be reached at {}:{}?",
                    own.host, own.port
                );
                return false;
            }
        }
        let pulse = heartbeat(directory, &(site.own)()).await;
        if let (Pulse::Due(interval), false) = (pulse, standing.is_listed == Some(true)) {
            info!("Directory {directory} lists this server, heartbeats every {} s", interval.as_secs());
        }
        next = standing.after(pulse, random());
    }
}

async fn heartbeat(directory: &Endpoint, own: &ServerRecord) -> Pulse {
    match beat(directory, own).await {
        Ok(seconds) => Pulse::Due(Duration::from_secs(seconds.into()).clamp(INTERVAL_MIN, INTERVAL_MAX)),
        Err(DialError::Refused { code: 4000, .. }) => Pulse::Unknown,
        Err(DialError::Refused { code, text }) => {
            debug!("directory {directory} takes no heartbeat: error {code}: {text}");
            Pulse::Unwanted
        }
        Err(reason) => {
            warn!("No heartbeat to directory {directory}: {reason}");
            Pulse::Failed
        }
    }
}

async fn beat(directory: &Endpoint, own: &ServerRecord) -> Result<u32, DialError> {
    let mut peer = dial(directory).await?;
    peer.say(client::Heartbeat {
        hostname: own.address.host.as_bytes(),
        port: own.address.port,
        user_count: own.user_count,
        uptime_seconds: own.uptime_seconds,
        channel_count: own.channel_count,
    })
    .await?;
    let seconds = peer.await_answer(PATIENCE, |message| match message {
        ServerMessage::HeartbeatAck(ack) => Some(Ok(ack.heartbeat_interval)),
        ServerMessage::Error(error) => Some(Err(refused(&error))),
        ServerMessage::Disconnect(_) => Some(Err(DialError::Closed)),
        _ => None,
    });
    let seconds = seconds.await?;
    peer.leave("Heartbeat complete").await;
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(300);

    #[test]
    fn heartbeats_come_a_little_early() {
        let mut standing = Standing::default();
        for _ in 0..100 {
            let Next::BeatAfter(pause) = standing.after(Pulse::Due(INTERVAL), random()) else { panic!("no heartbeat") };
            assert!((INTERVAL * 9 / 10..=INTERVAL).contains(&pause), "{pause:?}");
        }
    }

    #[test]
    fn who_is_not_found_is_told_after_a_second_look_and_who_is_lost_registers_at_once() {
        let mut standing = Standing::default();
        assert_eq!(standing.after(Pulse::Unknown, 0), Next::BeatAfter(RETRY));
        assert_eq!(standing.after(Pulse::Unknown, 0), Next::NotFound);
        let mut standing = Standing::default();
        standing.after(Pulse::Due(INTERVAL), 0);
        assert_eq!(standing.after(Pulse::Unknown, 0), Next::RegisterNow);
        assert_eq!(standing.after(Pulse::Unwanted, 0), Next::Rest);
    }

    #[test]
    fn a_directory_that_is_away_is_asked_less_and_less_often() {
        let mut standing = Standing::default();
        let pauses: Vec<_> = (0..4).map(|_| standing.after(Pulse::Failed, 0)).collect();
        let minutes = |minutes: u64| Next::BeatAfter(Duration::from_secs(minutes * 60));
        assert_eq!(pauses, [minutes(1), minutes(2), minutes(4), minutes(8)]);
        standing.after(Pulse::Due(INTERVAL), 0);
        assert_eq!(standing.after(Pulse::Failed, 0), minutes(1));
    }

    #[test]
    fn pauses_after_failures_grow_and_differ() {
        for (failures, least) in [(1, 60), (2, 120), (3, 240), (4, 480), (5, 960), (6, 960), (60, 960)] {
            let pauses: Vec<_> = (0..200).map(|_| retry(failures, random()).as_secs()).collect();
            assert!(pauses.iter().all(|pause| (least..=least * 3 / 2).contains(pause)), "{failures}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{failures}");
        }
    }
}
