//! Metrics: the table of all of them, the cells that count, and the text a scrape gets.
//!
//! `table` names every metric and label value once; `cells` are the atomics; `shard` is what a shard counts on its hot
//! path; `topics` the bounded series by channel and thread; `process` what the system knows; `sheet` the text formats.
//!
//! A metric is exported once something moved it, or once its source was announced ([`Metrics::announce`]): a metric
//! that can never move has no place on a dashboard.

mod cells;
mod process;
mod shard;
mod sheet;
mod table;
mod topics;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use cells::{BATCH, Histogram, LATENCY, Level, PerLabel, Snapshot};
use sheet::Sheet;
use tokio::runtime::RuntimeMetrics;

pub use process::{ProcessStats, free_disk_bytes};
pub use shard::{FanoutTally, ShardMetrics};
pub use sheet::Exposition;
pub use table::{
    AuthMethod, AuthResult, DbError, DecodeError, Definition, DisconnectReason, Fanout, Label, Metric, RateLimit,
    Rejection, Transport,
};
pub use topics::{THREAD_IDLE_MS, TopicMetrics};

use crate::profile::waits::{Mutex, RwLock};

/// How long a cached provider's answer serves, in milliseconds.
const PROVIDER_CACHE_MS: u64 = 1000;

/// What every shard moves by merely running; the rest is announced by the parts that count it.
const SHARD_METRICS: &[Metric] =
    &[Metric::ActiveSessions, Metric::SessionsCreated, Metric::SessionsDisconnected, Metric::ShardSessions];

/// What runs here.
#[derive(Debug, Clone)]
pub struct BuildInfo {
    /// Version of the package.
    pub version: &'static str,
    /// Commit it was built from.
    pub commit: &'static str,
    /// Compiler it was built with.
    pub rustc: &'static str,
}

/// What [`Metrics::new`] has to know.
#[derive(Debug, Clone)]
pub struct MetricsOptions {
    /// Number of shards.
    pub shards: usize,
    /// Type codes and names of what clients send, spelled as WIRE.md 7.1 does.
    pub client_messages: &'static [(u8, &'static str)],
    /// Type codes and names of what the server sends.
    pub server_messages: &'static [(u8, &'static str)],
    /// Codes of ERROR frames; others are counted together.
    pub error_codes: &'static [u16],
    /// At most that many series of channels, and as many of threads.
    pub topic_series_max: usize,
    /// Start of the process in milliseconds since the Unix epoch.
    pub started_wall_ms: i64,
    /// Whether jemalloc is the process's allocator, so that its numbers mean something.
    pub jemalloc: bool,
    /// What runs here.
    pub build: BuildInfo,
}

/// Default of [`MetricsOptions::topic_series_max`].
pub const TOPIC_SERIES_MAX: usize = 1000;

/// All metrics of the server.
pub struct Metrics {
    options: MetricsOptions,
    names: Arc<shard::Names>,
    shards: Box<[ShardMetrics]>,
    topics: topics::Topics,
    /// What the storage layer counts.
    pub store: StoreMetrics,
    connections: PerLabel<Transport>,
    rejections: PerLabel<Rejection>,
    rate_limits: PerLabel<RateLimit>,
    auth: Box<[PerLabel<AuthResult>]>,
    channels: Level,
    runtimes: Box<[OnceLock<RuntimeMetrics>]>,
    http: RwLock<BTreeMap<HttpKey, Histogram>>,
    providers: RwLock<Vec<Provider>>,
    announced: Box<[AtomicBool]>,
}

/// Server, path and status.
type HttpKey = (&'static str, &'static str, u16);

impl Metrics {
    /// Builds all cells; nothing is allocated for counting later.
    pub fn new(options: MetricsOptions) -> Arc<Self> {
        let names = Arc::new(shard::Names::new(options.client_messages, options.server_messages, options.error_codes));
        let metrics = Self {
            shards: (0..options.shards).map(|_| ShardMetrics::new(Arc::clone(&names))).collect(),
            names,
            topics: topics::Topics::new(options.topic_series_max),
            store: StoreMetrics::new(),
            connections: PerLabel::new(),
            rejections: PerLabel::new(),
            rate_limits: PerLabel::new(),
            auth: AuthMethod::ALL.iter().map(|_| PerLabel::new()).collect(),
            channels: Level::default(),
            runtimes: (0..options.shards).map(|_| OnceLock::new()).collect(),
            http: RwLock::default(),
            providers: RwLock::default(),
            announced: Metric::ALL.iter().map(|_| AtomicBool::new(false)).collect(),
            options,
        };
        // A process that used no hundredth of a second yet has a collector all the same.
        metrics.announce(&[Metric::ProcessCpu]);
        if metrics.options.shards > 0 {
            metrics.announce(SHARD_METRICS);
        }
        if metrics.options.jemalloc {
            metrics.announce(process::JEMALLOC_METRICS);
        }
        Arc::new(metrics)
    }

    /// Says that these metrics have a source from now on: they are exported even while they are zero. Each part calls it
    /// once for what it counts, so that rates see the first event and panels are never empty.
    pub fn announce(&self, metrics: &[Metric]) {
        for metric in metrics {
            self.announced[*metric as usize].store(true, Ordering::Relaxed);
        }
    }

    /// The cells of one shard; `None` for an index that was not asked for at start.
    pub fn shard(&self, index: usize) -> Option<&ShardMetrics> {
        self.shards.get(index)
    }

    /// All shards, in order.
    pub fn shards(&self) -> &[ShardMetrics] {
        &self.shards
    }

    /// Sessions open now, on all shards.
    pub fn sessions(&self) -> u64 {
        self.session_counts().0
    }

    /// Sessions open now, begun since the start, and ended since then.
    pub fn session_counts(&self) -> (u64, u64, u64) {
        let (opened, closed) = self
            .shards
            .iter()
            .map(ShardMetrics::opened_and_closed)
            .fold((0, 0), |sum, shard| (sum.0 + shard.0, sum.1 + shard.1));
        (opened.saturating_sub(closed), opened, closed)
    }

    /// What runs here.
    pub fn build(&self) -> &BuildInfo {
        &self.options.build
    }

    /// Handle of a channel's series. A shard keeps it while it has an entry for the topic.
    pub fn channel_topic(&self, channel_id: u64) -> Arc<TopicMetrics> {
        self.topics.channel(channel_id)
    }

    /// Handle of a thread's series; as [`Metrics::channel_topic`]. `now_ms` is monotonic.
    pub fn thread_topic(&self, channel_id: u64, thread_id: u64, now_ms: u64) -> Arc<TopicMetrics> {
        self.topics.thread(channel_id, thread_id, now_ms)
    }

    /// Handle of what all direct messages share: which of them there are, and who reads them, is not for operators to see.
    pub fn dm_topic(&self) -> Arc<TopicMetrics> {
        self.topics.other_channel()
    }

    /// The same for threads in them.
    pub fn dm_thread_topic(&self) -> Arc<TopicMetrics> {
        self.topics.other_channel_thread()
    }

    /// A channel is gone, and its series with those of its threads.
    pub fn channel_deleted(&self, channel_id: u64) {
        self.topics.channel_deleted(channel_id);
    }

    /// A thread is gone, and its series.
    pub fn thread_deleted(&self, thread_id: u64) {
        self.topics.thread_deleted(thread_id);
    }

    /// A connection was accepted.
    pub fn connections(&self, transport: Transport) {
        self.connections.of(transport).add(1);
    }

    /// A connection was turned away at the door.
    pub fn rejected(&self, reason: Rejection) {
        self.rejections.of(reason).add(1);
    }

    /// A rate limit refused something.
    pub fn rate_limit(&self, kind: RateLimit) {
        self.rate_limits.of(kind).add(1);
    }

    /// A login was tried.
    pub fn auth(&self, method: AuthMethod, result: AuthResult) {
        self.auth[method.index()].of(result).add(1);
    }

    /// So many public channels exist, subchannels included.
    pub fn set_channels(&self, count: u64) {
        self.channels.set(count);
    }

    /// Public channels that exist; 0 before anybody counted them.
    pub fn channels(&self) -> u64 {
        self.channels.get().unwrap_or(0)
    }

    /// A shard runs on this runtime from now on, for good.
    pub fn watch_runtime(&self, shard: usize, runtime: RuntimeMetrics) {
        if let Some(slot) = self.runtimes.get(shard) {
            slot.get_or_init(|| runtime);
            self.announce(&[Metric::TokioAliveTasks, Metric::TokioWorkerBusy]);
        }
    }

    /// An HTTP port serves this path: its series begin at zero.
    pub fn http_route(&self, server: &'static str, path: &'static str) {
        const OK: u16 = 200;
        let mut http = self.http.write();
        http.entry((server, path, OK)).or_insert_with(|| Histogram::new(&LATENCY));
        self.announce(&[Metric::HttpRequests, Metric::HttpDuration]);
    }

    /// An HTTP port answered. `server` and `path` come from fixed tables: a path nobody serves is `other`.
    pub fn http_request(&self, server: &'static str, path: &'static str, status: u16, micros: u64) {
        observe_by_key(&self.http, (server, path, status), micros);
    }

    /// Has an unlabelled metric sampled at each scrape. The closure must not wait; `None` leaves the metric out. A later
    /// provider of the same metric takes the place of the earlier.
    pub fn provide(&self, metric: Metric, read: impl Fn() -> Option<f64> + Send + Sync + 'static) {
        self.provide_labelled(metric, move |samples| samples.extend(read().map(|value| (Vec::new(), value))));
    }

    /// As [`Metrics::provide`] for what takes a system call or two: the answer serves for a second.
    pub fn provide_cached(&self, metric: Metric, read: impl Fn() -> Option<f64> + Send + Sync + 'static) {
        let read = move |samples: &mut Samples| samples.extend(read().map(|value| (Vec::new(), value)));
        self.add_provider(Provider::new(metric, PROVIDER_CACHE_MS, Box::new(read)));
    }

    /// As [`Metrics::provide`] for a metric with labels: the closure pushes label values, in the order of the table, and
    /// the number.
    pub fn provide_labelled(&self, metric: Metric, read: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.add_provider(Provider::new(metric, 0, Box::new(read)));
    }

    fn add_provider(&self, provider: Provider) {
        self.announce(&[provider.metric]);
        let mut providers = self.providers.write();
        providers.retain(|earlier| earlier.metric != provider.metric);
        providers.push(provider);
    }

    /// The text of a scrape at `now_ms` (monotonic). Counting goes on meanwhile.
    ///
    /// # Errors
    /// A family the encoder refuses, which is our bug.
    pub fn render(&self, format: Exposition, now_ms: u64) -> prometheus::Result<String> {
        let mut sheet = Sheet::new();
        self.collect(&mut sheet, now_ms);
        let families = sheet.families(|metric| self.announced[metric as usize].load(Ordering::Relaxed));
        sheet::encode(&families, format)
    }

    fn collect(&self, sheet: &mut Sheet, now_ms: u64) {
        shard::collect(&self.shards, &self.names, sheet, now_ms);
        self.topics.collect(sheet, now_ms);
        self.store.collect(sheet);
        self.collect_doors(sheet);
        self.collect_http(sheet);
        self.collect_runtimes(sheet);
        collect_level(sheet, Metric::Channels, &self.channels);
        self.collect_process(sheet);
        for provider in self.providers.read().iter() {
            provider.collect(sheet, now_ms);
        }
    }

    fn collect_doors(&self, sheet: &mut Sheet) {
        collect_labels(sheet, Metric::Connections, &self.connections);
        collect_labels(sheet, Metric::ConnectionsRejected, &self.rejections);
        collect_labels(sheet, Metric::RateLimitHits, &self.rate_limits);
        for method in AuthMethod::ALL {
            for result in AuthResult::ALL {
                let count = self.auth[method.index()].of(*result).get();
                sheet.sample(Metric::AuthAttempts, &[method.label(), result.label()], count as f64);
            }
        }
    }

    fn collect_http(&self, sheet: &mut Sheet) {
        let http = self.http.read();
        for ((server, path, status), histogram) in http.iter() {
            let status = status.to_string();
            let (labels, snapshot) = ([*server, *path, status.as_str()], Snapshot::of(histogram));
            sheet.sample(Metric::HttpRequests, &labels, snapshot.count() as f64);
            sheet.histogram(Metric::HttpDuration, &labels, &snapshot);
        }
    }

    fn collect_runtimes(&self, sheet: &mut Sheet) {
        for (shard, runtime) in self.runtimes.iter().enumerate() {
            let Some(runtime) = runtime.get() else { continue };
            let shard = shard.to_string();
            // A shard's runtime has one worker: the shard's own thread.
            let busy = runtime.worker_total_busy_duration(0);
            sheet.sample(Metric::TokioAliveTasks, &[&shard], runtime.num_alive_tasks() as f64);
            sheet.sample(Metric::TokioWorkerBusy, &[&shard], busy.as_secs_f64());
        }
    }

    fn collect_process(&self, sheet: &mut Sheet) {
        let BuildInfo { version, commit, rustc } = self.options.build;
        sheet.sample(Metric::BuildInfo, &[version, commit, rustc], 1.0);
        sheet.sample(Metric::ProcessStartTime, &[], self.options.started_wall_ms as f64 / 1000.0);
        ProcessStats::read().collect(sheet);
        if self.options.jemalloc {
            process::collect_jemalloc(sheet);
        }
    }
}

/// What is known is shown, were it zero.
fn collect_level(sheet: &mut Sheet, metric: Metric, level: &Level) {
    if let Some(value) = level.get() {
        sheet.known(metric, value as f64);
    }
}

fn collect_labels<L: Label>(sheet: &mut Sheet, metric: Metric, counts: &PerLabel<L>) {
    for label in L::ALL {
        sheet.sample(metric, &[label.label()], counts.of(*label).get() as f64);
    }
}

/// Records under a key of fixed texts; the write lock is taken only for a key that is new.
fn observe_by_key<K: Ord + Copy>(cells: &RwLock<BTreeMap<K, Histogram>>, key: K, micros: u64) {
    if let Some(histogram) = cells.read().get(&key) {
        return histogram.observe(micros);
    }
    let mut cells = cells.write();
    cells.entry(key).or_insert_with(|| Histogram::new(&LATENCY)).observe(micros);
}

/// What the storage layer counts; any of its threads may.
#[derive(Debug)]
pub struct StoreMetrics {
    commits: Histogram,
    batches: Histogram,
    database_bytes: Level,
    wal_bytes: Level,
    messages: Level,
    users: Level,
    queries: RwLock<BTreeMap<&'static str, Histogram>>,
    errors: PerLabel<DbError>,
}

impl StoreMetrics {
    fn new() -> Self {
        Self {
            commits: Histogram::new(&LATENCY),
            batches: Histogram::new(&BATCH),
            database_bytes: Level::default(),
            wal_bytes: Level::default(),
            messages: Level::default(),
            users: Level::default(),
            queries: RwLock::default(),
            errors: PerLabel::new(),
        }
    }

    /// A transaction of that many commands was committed in that many microseconds.
    pub fn commit(&self, micros: u64, commands: u64) {
        self.commits.observe(micros);
        self.batches.observe(commands);
    }

    /// The database file and its write-ahead log have that many bytes.
    pub fn sizes(&self, database: u64, wal: u64) {
        self.database_bytes.set(database);
        self.wal_bytes.set(wal);
    }

    /// So much is stored.
    pub fn rows(&self, messages: u64, users: u64) {
        self.messages.set(messages);
        self.users.set(users);
    }

    /// A read took that many microseconds. `query` is a name from the code, never a value.
    pub fn query(&self, query: &'static str, micros: u64) {
        observe_by_key(&self.queries, query, micros);
    }

    /// Storage failed.
    pub fn error(&self, kind: DbError) {
        self.errors.of(kind).add(1);
    }

    fn collect(&self, sheet: &mut Sheet) {
        sheet.histogram(Metric::DbCommit, &[], &Snapshot::of(&self.commits));
        sheet.histogram(Metric::DbBatchSize, &[], &Snapshot::of(&self.batches));
        collect_level(sheet, Metric::DbSize, &self.database_bytes);
        collect_level(sheet, Metric::DbWal, &self.wal_bytes);
        collect_level(sheet, Metric::StoredMessages, &self.messages);
        collect_level(sheet, Metric::RegisteredUsers, &self.users);
        for (query, histogram) in self.queries.read().iter() {
            sheet.histogram(Metric::DbQuery, &[query], &Snapshot::of(histogram));
        }
        collect_labels(sheet, Metric::DbErrors, &self.errors);
    }
}

/// Label values and a number for each series of a provided metric.
pub type Samples = Vec<(Vec<String>, f64)>;

/// A number that somebody else owns, asked for at each scrape.
struct Provider {
    metric: Metric,
    max_age_ms: u64,
    read: Box<dyn Fn(&mut Samples) + Send + Sync>,
    cache: Mutex<Option<(u64, Samples)>>,
}

impl Provider {
    fn new(metric: Metric, max_age_ms: u64, read: Box<dyn Fn(&mut Samples) + Send + Sync>) -> Self {
        Self { metric, max_age_ms, read, cache: Mutex::new(None) }
    }

    fn collect(&self, sheet: &mut Sheet, now_ms: u64) {
        let mut cache = self.cache.lock();
        let fresh = cache.take().filter(|(read_ms, _)| now_ms.saturating_sub(*read_ms) < self.max_age_ms);
        let (read_ms, samples) = fresh.unwrap_or_else(|| {
            let mut samples = Samples::new();
            (self.read)(&mut samples);
            (now_ms, samples)
        });
        for (labels, value) in &samples {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            sheet.sample(self.metric, &labels, *value);
        }
        *cache = Some((read_ms, samples));
    }
}
