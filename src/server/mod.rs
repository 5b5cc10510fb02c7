//! The server: builds all parts, starts them in order, stops them in reverse.
//!
//! `settings` says what each part needs of the configuration; `store` opens the database; `gauges` gives metrics and
//! health the numbers that no part pushes; `signals` is what the main thread does while all others work; `reload` is what
//! SIGHUP changes.

mod admin_password;
mod directory;
mod gauges;
mod reload;
mod settings;
mod signals;
mod store;
mod ways_in;

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::admin::health::Health;
use crate::admin::profiles::{ProfileOptions, ProfileServer};
use crate::admin::{AdminError, AdminOptions, AdminServer, BearerToken};
use crate::clock;
use crate::config::{self, Environment, Flags, Loaded, Settings};
use crate::desk::Desk;
use crate::directory::Registry;
use crate::errors::{self, Tracker};
use crate::log::{self, LogOptions, Logging, Tap};
use crate::metrics::Metrics;
use crate::net::door::{Door, Doorman};
use crate::net::ssh_login::HostKeyError;
use crate::net::{Gate, backlog, tcp};
use crate::operator;
use crate::operator::server::{OperatorParts, OperatorServer};
use crate::passwords::{DeliverHash, Passwords, Pool};
use crate::profile::waits;
use crate::shard::settings::InForce;
use crate::shard::{Bus, Parts, Rates, ShardEvent};
use crate::store::sqlite;
use crate::store::sqlite::lock::{DatabaseLock, LockError};
use crate::store::sqlite::open::OpenError;
use crate::store::{Channel, Store};
use crate::supervise;
use crate::systemd::{Notifier, Sockets, SocketsError};
use gauges::{provide, start_metrics};
use reload::{Reloader, Running};
use settings::{chat_settings, door_limits, errors_options, http_limits, log_options, metrics_token};
use signals::{Signals, Watched, watch};
use store::start_store;
use ways_in::{Inside, Listeners, WaysIn};

/// How long each phase of stopping may take. Together they stay well under systemd's 90 s.
const CLIENTS_DEADLINE: Duration = Duration::from_secs(10);
const STORE_DEADLINE: Duration = Duration::from_secs(30);
const ERRORS_DEADLINE: Duration = Duration::from_secs(2);
const LOG_DEADLINE: Duration = Duration::from_secs(2);
/// What systemd is asked for on top of the phases' own limits, which end by themselves.
const PHASE_MARGIN: Duration = Duration::from_secs(5);

/// Goodbyes are spread over no more time than this rate needs: few clients are told at once.
const GOODBYES_PER_SECOND_MIN: u64 = 500;

/// Why the server did not start, or had to end: one line that says what to do.
#[derive(Debug, Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}; free the port or set [server] {key}")]
    Listen { address: SocketAddr, key: &'static str, source: io::Error },
    #[error("{0}")]
    Admin(#[from] AdminError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("database {}: {source}; stop that server or name another database", .path.display())]
    Locked { path: PathBuf, source: LockError },
    #[error("database {}: {source}", .path.display())]
    Database { path: PathBuf, source: rusqlite::Error },
    #[error("{0}")]
    Store(#[from] sqlite::StartError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    #[error("{0}")]
    Log(#[from] log::LogError),
    #[error("nothing to serve: tcp_port, ssh_port and http_port are 0; set one in [server]")]
    NoPort,
    #[error("{0}")]
    HostKey(#[from] HostKeyError),
    #[error("{0}")]
    Sockets(#[from] SocketsError),
    #[error("a part of the server failed, see the log")]
    Failed,
}

/// Serves until a signal says stop.
///
/// # Errors
/// [`ServeError`] when a part cannot be started; what was started before is stopped again.
pub fn serve(loaded: Loaded, environment: &Environment, flags: &Flags) -> Result<(), ServeError> {
    let settings = &loaded.settings;
    let database = settings.server.database_path.clone();
    // Before anything else is opened: these descriptors have their numbers from outside.
    let mut sockets = Sockets::of(environment)?;
    let listeners = Listeners::open(settings, &mut sockets)?;
    refuse_shared(&database)?;
    raise_file_limit();

    let tracking = start_tracker(&settings.log);
    let trouble = tracking.as_ref().err().cloned();
    let (tracker, tap) = tracking.ok().flatten().unzip();
    let log = start_log(&loaded, environment, tap)?;
    if let Some(trouble) = trouble {
        warn!("errors are not reported: {trouble}");
    }
    for (name, address) in sockets.left() {
        warn!(name, ?address, "systemd handed over a socket that nothing here serves; its clients wait for ever");
    }
    drop(sockets);
    let notifier = Notifier::of(environment);
    let outcome = run(loaded, environment, flags, listeners, &log, &notifier);
    match &outcome {
        Ok(()) => info!("Server stopped"),
        Err(error) => error!("{error}"),
    }
    if let Some(tracker) = tracker {
        tracker.stop(ERRORS_DEADLINE);
    }
    log.shutdown(LOG_DEADLINE);
    outcome
}

/// Another server on the same file is noticed before its log is touched.
fn refuse_shared(database: &Path) -> Result<(), ServeError> {
    if !database.exists() {
        return Ok(());
    }
    match DatabaseLock::take(database) {
        Err(source @ LockError::Held { .. }) => Err(ServeError::Locked { path: database.to_owned(), source }),
        Ok(_) | Err(LockError::Io { .. }) => Ok(()),
    }
}

/// As many descriptors as the system allows: each client takes one.
fn raise_file_limit() {
    #[expect(unsafe_code, reason = "getrlimit and setrlimit read and write only the struct they are given")]
    // SAFETY: `limit` outlives both calls, and both get a valid pointer to it.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Reports are a help and no condition: what stands against them is said, and the server starts.
fn start_tracker(settings: &config::Log) -> Result<Option<(Tracker, Tap)>, String> {
    let options = errors_options(settings).map_err(|error| error.to_string())?;
    options.map(Tracker::start).transpose().map_err(|error| format!("cannot start a thread: {error}"))
}

fn start_log(loaded: &Loaded, environment: &Environment, tap: Option<Tap>) -> Result<Logging, ServeError> {
    let log = log::init(LogOptions { tap, ..log_options(loaded, environment) })?;
    std::panic::set_hook(Box::new(errors::hook));
    if let config::ConfigFile::Read(path) | config::ConfigFile::Missing(path) = &loaded.file {
        info!("Config: {}", path.display());
    }
    for notice in &loaded.notices {
        info!("{notice}");
    }
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    Ok(log)
}

/// Everything between the log's first and last line.
fn run(
    loaded: Loaded,
    environment: &Environment,
    flags: &Flags,
    listeners: Listeners,
    log: &Logging,
    notifier: &Notifier,
) -> Result<(), ServeError> {
    let settings = &loaded.settings;
    let database = &settings.server.database_path;
    waits::set_block_rate(settings.admin.block_profile_rate.map_or(0, |rate| rate.get().into()));
    waits::set_mutex_fraction(settings.admin.mutex_profile_fraction.map_or(0, |fraction| fraction.get().into()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let _entered = runtime.enter();
    let mut signals = Signals::listen()?;
    let (fatal, mut failures) = mpsc::channel(1);

    let port = listeners.chat_port()?;
    let chat = Arc::new(chat_settings(settings, port));
    let in_force = Arc::new(InForce::new(Arc::clone(&chat)));
    let shards = settings.server.shards.map_or_else(default_shards, NonZero::get);
    let metrics = start_metrics(shards);
    let health = Health::new(env!("CARGO_PKG_VERSION"), shards, clock::monotonic_ms());
    let token = BearerToken::new(metrics_token(settings));
    let profiles = start_profiles(settings, &token, &metrics)?;
    let admin = start_admin(settings, &token, &metrics, &health, profiles.as_ref().map(ProfileServer::address))?;

    let bus = Arc::new(Bus::new(shards));
    let (per_address_max, total_max, exempt) = door_limits(settings);
    let gate = Gate::new(per_address_max, total_max, exempt);
    let (per_address_max, total_max, exempt) = http_limits(settings);
    let http_gate = Gate::new(per_address_max, total_max, exempt);
    let doorman = Doorman { gate: Arc::clone(&gate), shards: Arc::clone(&bus) as _ };
    let desk = Arc::new(Desk::new(Arc::new(doorman)));
    let (store, channels) = start_store(settings, database, &desk, &metrics, &health, fatal.clone())?;
    announce_channels(&channels, &metrics);
    provide(settings, database, &metrics, &health, &store, &in_force);
    let deliver: Arc<dyn DeliverHash> = Arc::clone(&bus) as _;
    let passwords = Arc::new(Pool::start(settings.server.password_threads.get(), &deliver)?);

    let rates = Arc::new(Rates::new(&chat));
    let (registry, claims) = Registry::new();
    let parts = |id| Parts {
        id,
        settings: Arc::clone(&chat),
        channels: channels.clone(),
        store: Arc::clone(&store) as Arc<dyn Store>,
        passwords: Arc::clone(&passwords) as Arc<dyn Passwords>,
        bus: Arc::clone(&bus),
        rates: Arc::clone(&rates),
        registry: Arc::clone(&registry),
        metrics: Arc::clone(&metrics),
        stopwatch: tcp::mono_micros,
        now: tcp::now(),
    };
    let (ended, shard_ends) = sync_channel(shards);
    for id in 0..shards {
        start_shard(parts(id), &health, ended.clone(), fatal.clone())?;
    }
    drop(ended);

    let door = Door {
        gate: Arc::clone(&gate),
        bus: Arc::clone(&bus),
        metrics: Arc::clone(&metrics),
        settings: Arc::clone(&in_force),
    };
    announce_start(settings, database, port);
    let store_of_all = Arc::clone(&store) as Arc<dyn Store>;
    let about =
        directory::Inside { settings, in_force: &in_force, metrics: &metrics, store: &store_of_all, desk: &desk, port };
    let directory = directory::start(&about, registry, claims)?;
    let operator_parts = (Arc::clone(&store_of_all), Arc::clone(&desk), Arc::clone(&bus), Arc::clone(&in_force));
    let door = Arc::new(door);
    let inside = Inside {
        door,
        http_gate: Arc::clone(&http_gate),
        store: store_of_all,
        desk,
        settings,
        in_force: &in_force,
        fatal,
    };
    admin_password::reset(settings, &operator_parts.0, &operator_parts.1);
    // Before the first client: whoever waited for the port finds the operator's socket, too.
    let operator = start_operator(settings, environment, operator_parts);
    let mut ways_in = WaysIn::start(listeners, &inside)?;
    drop(inside);
    health.set_listening(true);
    info!("Server started on port {port}");

    let running =
        Running { bus: Arc::clone(&bus), rates, gate, http_gate, chat: in_force, token, log: log.clone(), port };
    let mut reloader = Reloader::new(loaded, environment, flags, running);
    let watched = Watched { metrics: &metrics, health: &health, log, notifier, reloader: &mut reloader };
    let failed = runtime.block_on(watch(&mut signals, &mut failures, watched));
    let spread = goodbye_spread(reloader.settings(), metrics.sessions());

    info!("Shutting down server...");
    info!("Graceful shutdown initiated...");
    health.set_draining();
    notifier.stopping("stopping: telling clients", spread + CLIENTS_DEADLINE + PHASE_MARGIN);
    ways_in.stop_accepting();
    if let Some(directory) = directory {
        directory.stop();
    }
    if let Some(operator) = operator {
        operator.stop();
    }
    stop_clients(&bus, &metrics, &shard_ends, spread);
    ways_in.stop();
    notifier.status("stopping: closing the database");
    notifier.extend(STORE_DEADLINE + ERRORS_DEADLINE + LOG_DEADLINE + PHASE_MARGIN);
    passwords.stop();
    bus.close();
    info!("Closing the database...");
    let closed = store.stop(STORE_DEADLINE).inspect_err(|error| error!("{error}"));
    if let Some(profiles) = profiles {
        profiles.stop();
    }
    if let Some(admin) = admin {
        admin.stop();
    }
    if failed || closed.is_err() {
        return Err(ServeError::Failed);
    }
    info!("Graceful shutdown complete");
    Ok(())
}

fn default_shards() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

fn start_profiles(
    settings: &Settings,
    token: &BearerToken,
    metrics: &Arc<Metrics>,
) -> Result<Option<ProfileServer>, ServeError> {
    let Some(listen) = settings.admin.profile_listen else { return Ok(None) };
    let server = ProfileServer::start(ProfileOptions::new(listen, token.clone()), Arc::clone(metrics))?;
    Ok(Some(server))
}

fn start_admin(
    settings: &Settings,
    token: &BearerToken,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
    profiles: Option<SocketAddr>,
) -> Result<Option<AdminServer>, ServeError> {
    let Some(listen) = settings.admin.metrics_listen else { return Ok(None) };
    let options = AdminOptions {
        listen,
        allow_remote: true,
        hosts: Vec::new(),
        token: token.clone(),
        profiles,
        limits: Default::default(),
    };
    let server = AdminServer::start(options, Arc::clone(metrics), Arc::clone(health))?;
    info!("Metrics server listening on :{} (/metrics, /health) - INTERNAL ONLY", server.address().port());
    Ok(Some(server))
}

/// The operator can do without: what stands against it is said, and the server starts.
fn start_operator(
    settings: &Settings,
    environment: &Environment,
    (store, desk, bus, in_force): (Arc<dyn Store>, Arc<Desk>, Arc<Bus>, Arc<InForce>),
) -> Option<OperatorServer> {
    let database = settings.server.database_path.clone();
    let path = match &settings.admin.socket {
        off if off == Path::new("off") => return None,
        unset if unset.as_os_str().is_empty() => operator::socket::of_server(environment, &database),
        path => path.clone(),
    };
    let bound = operator::socket::bind(&path).inspect_err(|error| warn!("no socket for scd admin: {error}")).ok()?;
    let parts = OperatorParts { bound, database, store, desk, bus, settings: in_force };
    let server = OperatorServer::start(parts).inspect_err(|error| warn!("no socket for scd admin: {error}")).ok()?;
    info!("Operator's socket: {}", path.display());
    Some(server)
}

fn start_shard(
    parts: Parts,
    health: &Arc<Health>,
    ended: SyncSender<()>,
    fatal: mpsc::Sender<()>,
) -> Result<(), ServeError> {
    let health = Arc::clone(health);
    supervise::spawn(&format!("scd-shard-{}", parts.id), move || {
        let id = parts.id;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tcp::run(parts, &health)));
        if !matches!(outcome, Ok(Ok(()))) {
            error!(shard = id, "a shard ended: the server cannot go on");
            let _known = fatal.try_send(());
        }
        // The main thread waits for this or has given up waiting.
        let _heard = ended.try_send(());
    })?;
    Ok(())
}

/// Shards count channels when they begin; this server may be announced before.
fn announce_channels(channels: &[Channel], metrics: &Metrics) {
    let public = || channels.iter().filter(|channel| channel.participants.is_none());
    metrics.set_channels(public().count() as u64);
    let top_level: Vec<_> = public().filter(|channel| channel.parent.is_none()).collect();
    info!("Available channels ({}):", top_level.len());
    for channel in top_level {
        let text = String::from_utf8_lossy;
        info!("  - #{}: {}", text(&channel.name), text(&channel.description));
    }
}

fn announce_start(settings: &Settings, database: &Path, port: u16) {
    let limit = backlog::limit();
    let shown = limit.map_or_else(|| "unknown".to_owned(), |limit| limit.to_string());
    if port > 0 {
        info!("TCP server listening on :{port} (kernel listen backlog: {shown})");
    }
    if let Some(backlog) = limit.filter(|limit| *limit < backlog::ADVISED) {
        warn!(
            "the kernel listen backlog is {backlog}; raise net.core.somaxconn to {} for bursts of clients",
            backlog::ADVISED
        );
    }
    match settings.discovery.directory_enabled {
        true => info!("Directory mode enabled (servers can register)"),
        false => info!("Directory mode disabled"),
    }
    info!(database = %database.display(), "SuperChat server {} started successfully", env!("CARGO_PKG_VERSION"));
    info!("Port: {port}");
}

/// Over how long the goodbyes are spread.
fn goodbye_spread(settings: &Settings, sessions: u64) -> Duration {
    let most = settings.server.shutdown_spread_seconds.unwrap_or_default();
    most.min(Duration::from_millis(sessions * 1000 / GOODBYES_PER_SECOND_MIN))
}

/// Tells every client and waits until each has read it, or until the deadline.
fn stop_clients(bus: &Bus, metrics: &Metrics, shard_ends: &Receiver<()>, spread: Duration) {
    match metrics.sessions() {
        0 => info!("No active sessions to notify"),
        sessions => {
            info!("Notifying connected clients of shutdown...");
            info!("Sending shutdown notification to {sessions} active sessions...");
        }
    }
    let spread_ms = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
    (0..bus.shards()).for_each(|shard| bus.send(shard, ShardEvent::Stop { spread_ms }));
    let deadline = clock::monotonic() + spread + CLIENTS_DEADLINE;
    for _ in 0..bus.shards() {
        match shard_ends.recv_timeout(deadline.saturating_sub(clock::monotonic())) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => warn!("some clients did not read the goodbye in time"),
        }
    }
}
