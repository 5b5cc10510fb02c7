//! SIGHUP: the log files are opened anew, the configuration is read again, and what may change at run time does.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::settings::{chat_settings, door_limits, http_limits, log_ip, metrics_token};
use crate::admin::BearerToken;
use crate::config::{self, ConfigError, Entry, Environment, Flags, Loaded, Reloaded, Settings};
use crate::log::Logging;
use crate::net::Gate;
use crate::shard::settings::InForce;
use crate::shard::{Bus, Rates, ShardEvent};

/// Whom new settings reach.
pub(super) struct Running {
    pub(super) bus: Arc<Bus>,
    pub(super) rates: Arc<Rates>,
    pub(super) gate: Arc<Gate>,
    pub(super) http_gate: Arc<Gate>,
    pub(super) chat: Arc<InForce>,
    pub(super) token: BearerToken,
    pub(super) log: Logging,
    /// Where clients reach the server.
    pub(super) port: u16,
}

/// The configuration of a running server, and how to read it again.
pub(super) struct Reloader<'a> {
    environment: &'a Environment,
    flags: &'a Flags,
    loaded: Loaded,
    running: Running,
}

impl<'a> Reloader<'a> {
    pub(super) fn new(loaded: Loaded, environment: &'a Environment, flags: &'a Flags, running: Running) -> Self {
        Self { environment, flags, loaded, running }
    }

    /// The settings that count now.
    pub(super) fn settings(&self) -> &Settings {
        &self.loaded.settings
    }

    /// Does all of it and says in a few words how it went. A configuration with an error changes nothing.
    pub(super) fn reload(&mut self) -> String {
        self.running.log.reopen();
        info!("log files reopened");
        let outcome = self.read_again();
        match &outcome {
            Ok(reloaded) => log_changes(reloaded),
            Err(problems) => {
                let lines = problems.to_string();
                lines.lines().for_each(|line| error!("configuration not reloaded: {line}"));
            }
        }
        summary(outcome.as_ref())
    }

    fn read_again(&mut self) -> Result<Reloaded, ConfigError> {
        let newer = config::load(self.environment, self.flags)?;
        let before = self.loaded.settings.clone();
        let reloaded = self.loaded.reload(newer)?;
        self.apply(&before);
        Ok(reloaded)
    }

    fn apply(&self, before: &Settings) {
        let (settings, running) = (&self.loaded.settings, &self.running);
        let chat = Arc::new(chat_settings(settings, running.port));
        let (per_address_max, total_max, exempt) = door_limits(settings);
        running.gate.set_limits(per_address_max, total_max, exempt);
        let (per_address_max, total_max, exempt) = http_limits(settings);
        running.http_gate.set_limits(per_address_max, total_max, exempt);
        running.rates.configure(&chat);
        running.chat.replace(Arc::clone(&chat));
        for shard in 0..running.bus.shards() {
            running.bus.send(shard, ShardEvent::Configure(Arc::clone(&chat)));
        }
        running.token.replace(metrics_token(settings));
        running.log.set_log_ip(log_ip(&settings.log));
        // Levels that signals moved stay, unless the file really says something else.
        if settings.log.log_level != before.log.log_level {
            running.log.set_level(settings.log.log_level.levels());
        }
    }
}

fn names(entries: &[&Entry]) -> String {
    entries.iter().map(|entry| entry.name()).collect::<Vec<_>>().join(", ")
}

fn log_changes(reloaded: &Reloaded) {
    reloaded.warnings.iter().for_each(|warning| warn!("{warning}"));
    match &*reloaded.changed {
        [] => info!("configuration reloaded: nothing changed"),
        changed => info!("configuration reloaded: changed {}", names(changed)),
    }
    if !reloaded.waiting.is_empty() {
        warn!("these settings need a restart: {}", names(&reloaded.waiting));
    }
}

/// For the status line, which has room for names but not for reasons.
fn summary(outcome: Result<&Reloaded, &ConfigError>) -> String {
    match outcome {
        Ok(Reloaded { changed, waiting, .. }) => {
            let restart =
                if waiting.is_empty() { String::new() } else { format!(", needs a restart: {}", names(waiting)) };
            format!("reloaded, {} settings changed{restart}", changed.len())
        }
        Err(error) => {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            format!("not reloaded, old settings kept: {first}")
        }
    }
}
