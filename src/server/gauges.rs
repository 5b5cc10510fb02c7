//! Where metrics and health get the numbers that no part pushes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::health::{Health, HealthInfo};
use crate::clock;
use crate::config::Settings;
use crate::errors;
use crate::log;
use crate::metrics::{BuildInfo, Metric, Metrics, MetricsOptions, TOPIC_SERIES_MAX, free_disk_bytes};
use crate::shard::settings::InForce;
use crate::store::sqlite::{SqliteStore, backup};
use crate::wire::{ClientMessage, ErrorCode, ServerMessage};

/// A health probe that takes longer than this has failed.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn start_metrics(shards: usize) -> Arc<Metrics> {
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
        Metric::Pings,
        Metric::MessagesBroadcast,
        Metric::MessagesDelivered,
        Metric::ChannelSubscribers,
        Metric::ThreadSubscribers,
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

/// Gives metrics and health what they ask the running parts for.
pub(super) fn provide(
    settings: &Settings,
    database: &Path,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
    store: &Arc<SqliteStore>,
    chat: &Arc<InForce>,
) {
    provide_metrics(database, metrics, store);
    provide_health(settings, database, metrics, health, store, chat);
}

#[expect(clippy::cast_precision_loss, reason = "metrics are doubles; 2^53 of anything here is out of reach")]
fn provide_metrics(database: &Path, metrics: &Metrics, store: &Arc<SqliteStore>) {
    metrics.provide(Metric::Panics, || Some(errors::panics() as f64));
    let queue = Arc::downgrade(store);
    metrics.provide(Metric::DbQueueDepth, move || queue.upgrade().map(|store| store.queue_depth() as f64));
    let directory = database.parent().unwrap_or(database).to_owned();
    metrics.provide_cached(Metric::DbFreeDisk, move || free_disk_bytes(&directory).map(|bytes| bytes as f64));
    let database = database.to_owned();
    metrics.provide_cached(Metric::BackupLastSuccess, move || {
        backup::last_success_ms(&database).map(|ended_ms| ended_ms as f64 / 1000.0)
    });
    metrics.provide_labelled(Metric::LogDropped, |samples| {
        let lost = |sink: log::Sink| (vec![sink.name().to_owned()], log::dropped(sink) as f64);
        samples.extend(log::Sink::ALL.map(lost));
    });
}

fn provide_health(
    settings: &Settings,
    database: &Path,
    metrics: &Arc<Metrics>,
    health: &Health,
    store: &Arc<SqliteStore>,
    chat: &Arc<InForce>,
) {
    let probed = Arc::downgrade(store);
    health.set_probe(move || match probed.upgrade() {
        Some(store) => store.probe(PROBE_PATIENCE).map_err(|error| error.to_string()),
        None => Err("the database is closed".to_owned()),
    });
    let (durability, database) = (settings.storage.durability.word(), database.to_owned());
    let (counted, chat) = (Arc::downgrade(metrics), Arc::clone(chat));
    health.set_info(move || {
        let (sessions, channels) = counted.upgrade().map_or((0, 0), |metrics| (metrics.sessions(), metrics.channels()));
        let chat = chat.get();
        HealthInfo {
            sessions,
            channels,
            server_name: chat.directory.name.clone(),
            durability,
            directory_enabled: chat.directory.enabled,
            last_backup_ms: backup::last_success_ms(&database),
        }
    });
}
