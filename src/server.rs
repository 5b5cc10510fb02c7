//! The server: builds all parts, starts them in order, stops them in reverse.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::admin::health::{Health, HealthInfo};
use crate::admin::{AdminError, AdminOptions, AdminServer, BearerToken};
use crate::clock;
use crate::config::{self, Loaded, Settings};
use crate::log::{self, LogOptions, Logging};
use crate::metrics::{BuildInfo, DbError, Metric, Metrics, MetricsOptions, TOPIC_SERIES_MAX};
use crate::net::acceptor::{Acceptor, AcceptorParts, listen};
use crate::net::{Gate, backlog, tcp};
use crate::passwords::{DeliverHash, Passwords, Pool};
use crate::shard::settings::DirectoryEntry;
use crate::shard::{Bus, ChatSettings, Parts, Rates, ShardEvent};
use crate::store::sqlite::lock::{DatabaseLock, LockError};
use crate::store::sqlite::open::{self, OpenError, OpenOptions};
use crate::store::sqlite::seeds::{SeedChannel, insert_seeds};
use crate::store::sqlite::{self, Fault, Observe, SqliteStore};
use crate::store::{Channel, Deliver, Store};
use crate::supervise;
use crate::wire::server::ServerConfig;
use crate::wire::{ClientMessage, ErrorCode, ServerMessage};

/// What every frame announces (WIRE.md 3).
const PROTOCOL_VERSION: u8 = 2;
/// Announced; only read states follow it (BEHAVIOUR.md 8.7).
const INACTIVE_CLEANUP_DAYS: u16 = 90;

/// How long each phase of stopping may take. Together they stay well under systemd's 90 s.
const CLIENTS_DEADLINE: Duration = Duration::from_secs(10);
const STORE_DEADLINE: Duration = Duration::from_secs(30);
const LOG_DEADLINE: Duration = Duration::from_secs(2);

/// How often the main thread looks at the kernel's queue and says how many are here.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);
/// Silent looks between two lines about the number of sessions.
const WATCH_LINES: u32 = 6;

/// A health probe that takes longer than this has failed.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

/// Why the server did not start, or had to end: one line that says what to do.
#[derive(Debug, Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {source}; free the port or set [server] tcp_port")]
    Listen { address: SocketAddr, source: io::Error },
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
    #[error("nothing to serve: tcp_port is 0; set it in [server]")]
    NoPort,
    #[error("a part of the server failed, see the log")]
    Failed,
}

/// Serves until a signal says stop.
///
/// # Errors
/// [`ServeError`] when a part cannot be started; what was started before is stopped again.
pub fn serve(loaded: &Loaded, environment: &config::Environment) -> Result<(), ServeError> {
    let settings = &loaded.settings;
    let database = settings.server.database_path.clone();
    let listener = bind(settings)?;
    refuse_shared(&database)?;
    raise_file_limit();

    let log = start_log(loaded, environment)?;
    let outcome = run(loaded, &database, listener, &log);
    match &outcome {
        Ok(()) => info!("Server stopped"),
        Err(error) => error!("{error}"),
    }
    log.shutdown(LOG_DEADLINE);
    outcome
}

fn bind(settings: &Settings) -> Result<TcpListener, ServeError> {
    let port = settings.server.tcp_port.ok_or(ServeError::NoPort)?;
    let address = SocketAddr::new(settings.server.listen_address, port.get());
    listen(address).map_err(|source| ServeError::Listen { address, source })
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

fn start_log(loaded: &Loaded, environment: &config::Environment) -> Result<Logging, ServeError> {
    let settings = &loaded.settings.log;
    let beside_database = loaded.settings.server.database_path.parent().unwrap_or(Path::new("."));
    let log = log::init(LogOptions {
        levels: settings.log_level.levels(),
        debug: settings.debug,
        format: match settings.log_format {
            config::LogFormat::Text => log::Format::Text,
            config::LogFormat::Json => log::Format::Json,
        },
        log_ip: match settings.log_ip {
            config::LogIp::Full => log::LogIp::Full,
            config::LogIp::Truncated => log::LogIp::Truncated,
            config::LogIp::Off => log::LogIp::Off,
        },
        journal_stream: environment.get("JOURNAL_STREAM").and_then(|value| value.to_str()).map(str::to_owned),
        ..LogOptions::new(&loaded.data_directory, beside_database)
    })?;
    std::panic::set_hook(Box::new(|panic| error!("panic: {panic}")));
    for notice in &loaded.notices {
        info!("{notice}");
    }
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    Ok(log)
}

/// Everything between the log's first and last line.
fn run(loaded: &Loaded, database: &Path, listener: TcpListener, log: &Logging) -> Result<(), ServeError> {
    let settings = &loaded.settings;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let _entered = runtime.enter();
    let mut signals = Signals::listen()?;
    let (fatal, failures) = sync_channel(1);

    let chat = Arc::new(chat_settings(settings));
    let shards = settings.server.shards.map_or_else(default_shards, std::num::NonZero::get);
    let metrics = start_metrics(shards);
    let health = Health::new(env!("CARGO_PKG_VERSION"), shards, clock::monotonic_ms());
    let admin = start_admin(settings, &metrics, &health)?;

    let bus = Arc::new(Bus::new(shards));
    let (store, channels) = start_store(settings, database, &bus, &metrics, &health, fatal.clone())?;
    announce_channels(&channels);
    provide(settings, &metrics, &health, &store, channels.len());
    let deliver: Arc<dyn DeliverHash> = Arc::clone(&bus) as _;
    let passwords = Arc::new(Pool::start(settings.server.password_threads.get(), &deliver)?);

    let rates = Arc::new(Rates::new(&chat));
    let parts = |id| Parts {
        id,
        settings: Arc::clone(&chat),
        channels: channels.clone(),
        store: Arc::clone(&store) as Arc<dyn Store>,
        passwords: Arc::clone(&passwords) as Arc<dyn Passwords>,
        bus: Arc::clone(&bus),
        rates: Arc::clone(&rates),
        metrics: Arc::clone(&metrics),
        now: tcp::now(),
    };
    let (ended, shard_ends) = sync_channel(shards);
    for id in 0..shards {
        start_shard(parts(id), &health, ended.clone(), fatal.clone())?;
    }
    drop(ended);

    let gate = Gate::new(
        settings.limits.max_connections_per_ip.map(|limit| limit.get().into()),
        settings.discovery.max_users.map(std::num::NonZero::get),
        settings.limits.exempt_networks.clone(),
    );
    let port = listener.local_addr().map_or(0, |address| address.port());
    let announced = chat.announced.clone();
    let acceptor = Acceptor::start(AcceptorParts {
        listener,
        gate,
        bus: Arc::clone(&bus),
        metrics: Arc::clone(&metrics),
        announced,
    })?;
    health.set_listening(true);
    announce_start(settings, database, port);

    let failed = runtime.block_on(watch(&mut signals, &failures, &metrics, log));

    info!("Shutting down server...");
    info!("Graceful shutdown initiated...");
    health.set_draining();
    acceptor.stop();
    info!("TCP listener closed");
    stop_clients(&bus, &metrics, &shard_ends);
    passwords.stop();
    bus.close();
    info!("Closing the database...");
    let closed = store.stop(STORE_DEADLINE).inspect_err(|error| error!("{error}"));
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
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn start_metrics(shards: usize) -> Arc<Metrics> {
    let error_codes: Vec<u16> = ErrorCode::TABLE.iter().map(|(_, number, _)| *number).collect();
    let metrics = Metrics::new(MetricsOptions {
        shards,
        client_messages: ClientMessage::TABLE,
        server_messages: ServerMessage::TABLE,
        error_codes: error_codes.leak(),
        topic_series_max: TOPIC_SERIES_MAX,
        started_wall_ms: clock::wall_ms(),
        jemalloc: true,
        build: BuildInfo {
            version: env!("CARGO_PKG_VERSION"),
            commit: option_env!("SUPERCHAT_COMMIT").unwrap_or("unknown"),
            rustc: option_env!("SUPERCHAT_RUSTC").unwrap_or("unknown"),
        },
    });
    metrics.announce(&[
        Metric::MessagesReceived,
        Metric::MessagesSent,
        Metric::Errors,
        Metric::Disconnects,
        Metric::Connections,
        Metric::DecodeErrors,
        Metric::Panics,
        Metric::Pings,
        Metric::MessagesBroadcast,
        Metric::BroadcastFanout,
        Metric::BroadcastDuration,
        Metric::PostAck,
        Metric::RateLimitHits,
        Metric::AuthAttempts,
        Metric::ConnectionsRejected,
        Metric::OutboundQueueBytes,
        Metric::ShardLoopLag,
        Metric::DbCommit,
        Metric::DbBatchSize,
        Metric::DbErrors,
    ]);
    metrics
}

fn start_admin(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> Result<Option<AdminServer>, ServeError> {
    let Some(listen) = settings.admin.metrics_listen else { return Ok(None) };
    let options = AdminOptions {
        listen,
        allow_remote: true,
        hosts: Vec::new(),
        token: BearerToken::new(settings.admin.metrics_token.as_ref().map(|token| token.expose().to_owned())),
        limits: Default::default(),
    };
    let server = AdminServer::start(options, Arc::clone(metrics), Arc::clone(health))?;
    info!("Metrics server listening on :{} (/metrics, /health) - INTERNAL ONLY", server.address().port());
    Ok(Some(server))
}

/// Opens the database, or makes it, and starts its threads.
fn start_store(
    settings: &Settings,
    database: &Path,
    bus: &Arc<Bus>,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
    fatal: SyncSender<()>,
) -> Result<(Arc<SqliteStore>, Vec<Channel>), ServeError> {
    info!("Database: {}", database.display());
    let durability = match settings.storage.durability {
        config::Durability::Full => open::Durability::Full,
        config::Durability::Process => open::Durability::Process,
    };
    if durability == open::Durability::Process {
        warn!("durability is `process`: a power cut may cost the last moments before it");
    }
    let opened = open::open(database, &OpenOptions { create_directory: true, durability }, clock::wall_ms())?;
    let failed = |source| ServeError::Database { path: database.to_owned(), source };
    insert_seeds(&opened.writer, &seeds(settings), clock::wall_ms()).map_err(failed)?;
    let channels = sqlite::load_channels(&opened.writer).map_err(failed)?;
    let exited = Arc::clone(health);
    let store = SqliteStore::start(
        opened,
        sqlite::Parts {
            readers: settings.storage.readers.get(),
            retention: sqlite::Retention {
                enforce: settings.retention.enforce,
                interval: settings.retention.cleanup_interval_minutes,
            },
            channels: channels.clone(),
            deliver: Arc::clone(bus) as Arc<dyn Deliver>,
            clock: Arc::new(SystemClock),
            observe: Arc::new(StoreWatch {
                metrics: Arc::clone(metrics),
                health: Arc::clone(health),
                sizes: Sizes::provided_to(metrics),
            }),
            on_writer_exit: Box::new(move |orderly| {
                exited.writer_stopped();
                if !orderly {
                    error!("the writer thread ended: the server cannot go on");
                    // A failure that is known already needs no second message.
                    let _known = fatal.try_send(());
                }
            }),
        },
    )?;
    Ok((Arc::new(store), channels))
}

fn seeds(settings: &Settings) -> Vec<SeedChannel> {
    let default_hours = settings.retention.default_retention_hours;
    let seed = |channel: &config::SeedChannel| SeedChannel {
        name: channel.name.clone(),
        display_name: channel.display_name(),
        description: channel.description.clone(),
        channel_type: channel.kind.code(),
        retention_hours: channel.retention_hours.unwrap_or(default_hours).get(),
    };
    settings.channels.seed_channels.iter().map(seed).collect()
}

struct SystemClock;

impl sqlite::Clock for SystemClock {
    fn wall_ms(&self) -> i64 {
        clock::wall_ms()
    }
    fn monotonic(&self) -> Duration {
        clock::monotonic()
    }
}

/// What happens in the store, for metrics and health.
struct StoreWatch {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    sizes: Arc<Sizes>,
}

#[derive(Debug, Default)]
struct Sizes {
    database: AtomicU64,
    wal: AtomicU64,
}

impl Sizes {
    #[expect(clippy::cast_precision_loss, reason = "metrics are doubles; 2^53 bytes is more than any disk")]
    fn provided_to(metrics: &Metrics) -> Arc<Self> {
        let sizes = Arc::new(Self::default());
        let gauge = |metric, read: fn(&Self) -> f64| {
            let sizes = Arc::clone(&sizes);
            metrics.provide(metric, move || Some(read(&sizes)));
        };
        gauge(Metric::DbSize, |sizes| sizes.database.load(Ordering::Relaxed) as f64);
        gauge(Metric::DbWal, |sizes| sizes.wal.load(Ordering::Relaxed) as f64);
        sizes
    }
}

impl Observe for StoreWatch {
    fn commit(&self, duration: Duration, commands: usize) {
        self.health.writer_beat(clock::monotonic_ms());
        self.metrics.store.commit(micros(duration), commands as u64);
    }
    fn queue_depth(&self, _waiting: usize) {
        self.health.writer_beat(clock::monotonic_ms());
    }
    fn query(&self, query: &'static str, duration: Duration) {
        self.metrics.store.query(query, micros(duration));
    }
    fn storage_error(&self, fault: Fault) {
        self.metrics.store.error(match fault {
            Fault::Busy => DbError::Busy,
            Fault::Full => DbError::Full,
            Fault::Io | Fault::Other => DbError::Io,
            Fault::Corrupt => DbError::Corrupt,
        });
    }
    fn sizes(&self, database: u64, wal: u64) {
        self.health.writer_beat(clock::monotonic_ms());
        self.sizes.database.store(database, Ordering::Relaxed);
        self.sizes.wal.store(wal, Ordering::Relaxed);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What metrics and health ask the running server.
fn provide(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
    store: &Arc<SqliteStore>,
    channels: usize,
) {
    let probed = Arc::downgrade(store);
    health.set_probe(move || match probed.upgrade() {
        Some(store) => store.probe(PROBE_PATIENCE).map_err(|error| error.to_string()),
        None => Err("the database is closed".to_owned()),
    });
    // Asked at each scrape, because a writer that is stuck reports nothing itself.
    let queued = Arc::downgrade(store);
    metrics.provide(Metric::DbQueueDepth, move || {
        #[expect(clippy::cast_precision_loss, reason = "the queue is bounded far below 2^53")]
        queued.upgrade().map(|store| store.queue_depth() as f64)
    });
    let (server_name, directory_enabled) =
        (settings.discovery.server_name.clone(), settings.discovery.directory_enabled);
    let (durability, counted) = (settings.storage.durability.word(), Arc::downgrade(metrics));
    health.set_info(move || HealthInfo {
        sessions: counted.upgrade().map_or(0, |metrics| metrics.sessions()),
        channels: channels as u64,
        server_name: server_name.clone(),
        durability,
        directory_enabled,
        last_backup_ms: None,
    });
    for sink in log::Sink::ALL {
        tracing::trace!(sink = sink.name(), dropped = log::dropped(sink), "log sink");
    }
}

fn start_shard(
    parts: Parts,
    health: &Arc<Health>,
    ended: SyncSender<()>,
    fatal: SyncSender<()>,
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

fn announce_channels(channels: &[Channel]) {
    let top_level: Vec<_> =
        channels.iter().filter(|channel| channel.parent.is_none() && channel.participants.is_none()).collect();
    info!("Available channels ({}):", top_level.len());
    for channel in top_level {
        let text = String::from_utf8_lossy;
        info!("  - #{}: {}", text(&channel.name), text(&channel.description));
    }
}

fn announce_start(settings: &Settings, database: &Path, port: u16) {
    let backlog = backlog::limit().unwrap_or(0);
    info!("TCP server listening on :{port} (kernel listen backlog: {backlog})");
    if backlog < backlog::ADVISED {
        warn!(
            "the kernel listen backlog is {backlog}; raise net.core.somaxconn to {} for bursts of clients",
            backlog::ADVISED
        );
    }
    let directory = if settings.discovery.directory_enabled { "enabled" } else { "disabled" };
    info!(database = %database.display(), directory, "SuperChat server {} started successfully", env!("CARGO_PKG_VERSION"));
    info!("Available connection methods:");
    info!("  - Binary Protocol (TCP): port {port}");
    info!("Server started on port {port}");
}

/// The signals the server understands.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    louder: tokio::signal::unix::Signal,
    quieter: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            louder: signal(SignalKind::user_defined1())?,
            quieter: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Waits for the end, and looks after what needs looking after. Returns whether a part failed.
async fn watch(signals: &mut Signals, failures: &Receiver<()>, metrics: &Metrics, log: &Logging) -> bool {
    let mut interval = tokio::time::interval(WATCH_INTERVAL);
    let mut watch = Watch { overflows: backlog::overflows(), ..Watch::default() };
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return false,
            _ = signals.interrupt.recv() => return false,
            _ = signals.hangup.recv() => { log.reopen(); info!("log files reopened"); }
            _ = signals.louder.recv() => { let levels = log.raise(); warn!("log level raised to {levels}"); }
            _ = signals.quieter.recv() => { let levels = log.lower(); warn!("log level lowered to {levels}"); }
            _ = interval.tick() => watch.look(metrics),
        }
        if failures.try_recv().is_ok() {
            return true;
        }
    }
}

#[derive(Default)]
struct Watch {
    overflows: Option<u64>,
    looks: u32,
    last: (u64, u64, u64),
}

impl Watch {
    fn look(&mut self, metrics: &Metrics) {
        let overflows = backlog::overflows();
        if let (Some(before), Some(now)) = (self.overflows, overflows)
            && now > before
        {
            warn!("the kernel turned away {} connections: its listen queue was full", now - before);
        }
        self.overflows = overflows;
        self.looks += 1;
        let now = metrics.session_counts();
        if self.looks.is_multiple_of(WATCH_LINES) && now != self.last {
            let (active, connected, disconnected) = now;
            info!(
                "[METRICS] Active sessions: {active}, connected since last: {}, disconnected since last: {}",
                connected - self.last.1,
                disconnected - self.last.2
            );
            self.last = now;
        }
    }
}

/// Tells every client and waits until each has read it, or until the deadline.
fn stop_clients(bus: &Bus, metrics: &Metrics, shard_ends: &Receiver<()>) {
    match metrics.sessions() {
        0 => info!("No active sessions to notify"),
        sessions => {
            info!("Notifying connected clients of shutdown...");
            info!("Sending shutdown notification to {sessions} active sessions...");
        }
    }
    (0..bus.shards()).for_each(|shard| bus.send(shard, ShardEvent::Stop));
    let deadline = clock::monotonic() + CLIENTS_DEADLINE;
    for _ in 0..bus.shards() {
        match shard_ends.recv_timeout(deadline.saturating_sub(clock::monotonic())) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => warn!("some clients did not read the goodbye in time"),
        }
    }
}

/// What shards need of the configuration.
fn chat_settings(settings: &Settings) -> ChatSettings {
    let (limits, server, discovery) = (&settings.limits, &settings.server, &settings.discovery);
    let announced = ServerConfig {
        protocol_version: PROTOCOL_VERSION,
        max_message_rate: limits.message_rate_limit.map_or(0, std::num::NonZero::get),
        max_channel_creates: limits.max_channel_creates.map_or(0, std::num::NonZero::get),
        inactive_cleanup_days: INACTIVE_CLEANUP_DAYS,
        max_connections_per_ip: limits.max_connections_per_ip.map_or(0, std::num::NonZero::get),
        max_message_length: limits.max_message_length.get(),
        max_thread_subscriptions: limits.max_thread_subscriptions.get(),
        max_channel_subscriptions: limits.max_channel_subscriptions.get(),
        directory_enabled: discovery.directory_enabled,
    };
    ChatSettings {
        message_bytes_max: limits.max_message_length.get() as usize,
        thread_subscriptions_max: limits.max_thread_subscriptions.get().into(),
        channel_subscriptions_max: limits.max_channel_subscriptions.get().into(),
        idle_timeout_ms: limits.session_timeout_seconds.map(|timeout| timeout.as_secs() * 1000),
        idle_notice: server.idle_notice,
        sanitize_content: server.sanitize_content,
        outbox_bytes_max: limits.outbox_bytes_max.get(),
        requests_per_second: limits.requests_per_second.map(std::num::NonZero::get),
        messages_per_minute: limits.message_rate_limit.map(|limit| limit.get().into()),
        channels_per_hour: limits.max_channel_creates.map(|limit| limit.get().into()),
        auth_attempts_per_minute: limits.auth_attempts_per_minute.map(std::num::NonZero::get),
        admin_users: server.admin_users.clone(),
        moderator_users: server.moderator_users.clone(),
        directory: DirectoryEntry {
            enabled: discovery.directory_enabled,
            hostname: discovery.public_hostname.as_ref().map_or("localhost", |host| host.as_str()).to_owned(),
            port: server.tcp_port.map_or(0, std::num::NonZero::get),
            name: discovery.server_name.clone(),
            description: discovery.server_description.clone(),
            users_max: discovery.max_users.map_or(0, std::num::NonZero::get),
        },
        announced,
    }
}
