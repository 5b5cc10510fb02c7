//! The store among the other parts: what it is opened with, and whom it tells what.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::ServeError;
use crate::admin::health::Health;
use crate::clock;
use crate::config::{self, Settings};
use crate::desk::Desk;
use crate::metrics::{DbError, Metrics};
use crate::store::sqlite::open::{self, OpenOptions};
use crate::store::sqlite::seeds::{SeedChannel, insert_seeds};
use crate::store::sqlite::{self, Fault, Observe, SqliteStore};
use crate::store::{Channel, Deliver};

/// Opens the database, or makes it, and starts its threads.
pub(super) fn start_store(
    settings: &Settings,
    database: &Path,
    desk: &Arc<Desk>,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
    fatal: mpsc::Sender<()>,
) -> Result<(Arc<SqliteStore>, Vec<Channel>), ServeError> {
    info!("Database: {}", database.display());
    let durability = match settings.storage.durability {
        config::Durability::Full => open::Durability::Full,
        config::Durability::Process => open::Durability::Process,
    };
    if durability == open::Durability::Process {
        warn!("durability is `process`: a power cut may cost the last moments before it");
    }
    let checkpoints = match settings.storage.checkpoints {
        config::Checkpoints::Own => open::Checkpoints::Own,
        config::Checkpoints::External => open::Checkpoints::External,
    };
    let options = OpenOptions { create_directory: true, durability, checkpoints };
    let opened = open::open(database, &options, clock::wall_ms())?;
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
            deliver: Arc::clone(desk) as Arc<dyn Deliver>,
            clock: Arc::new(SystemClock),
            observe: Arc::new(StoreWatch { metrics: Arc::clone(metrics), health: Arc::clone(health) }),
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
        self.metrics.store.sizes(database, wal);
    }
    fn rows(&self, messages: u64, users: u64) {
        self.metrics.store.rows(messages, users);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
