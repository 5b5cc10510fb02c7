//! `scd doctor`: what an operator would look at first on a host, each finding with what to do. Changes nothing.
//!
//! Every check takes the files it reads as arguments, so that a test can show it a bad host.

mod files;
mod ports;
mod system;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::clock;
use crate::config::{ConfigFile, Loaded};
use crate::store::sqlite::lock::DatabaseLock;
use crate::store::sqlite::{backup, survey};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// The server works, but not as well or as safely as it could.
    Warn,
    /// The server cannot start, cannot be trusted with data, or is open to strangers.
    Fail,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub level: Level,
    pub found: String,
    /// What to do; nothing when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), advice: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Where a host keeps what is looked at.
#[derive(Clone, Debug)]
pub struct Host {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/run/systemd/system`: there when systemd runs the host.
    pub systemd: PathBuf,
    /// Where units are installed.
    pub units: Vec<PathBuf>,
}

impl Default for Host {
    fn default() -> Self {
        let units = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
        Self { proc: "/proc".into(), systemd: "/run/systemd/system".into(), units: units.map(PathBuf::from).into() }
    }
}

/// All findings, in the order of the checks.
#[derive(Debug, Serialize)]
pub struct Report {
    pub level: Level,
    pub findings: Vec<Finding>,
}

impl Report {
    /// For people: a line per finding, and below it what to do.
    #[must_use]
    pub fn text(&self) -> String {
        let line = |finding: &Finding| {
            let advice = finding.advice.as_ref().map(|advice| format!("      -> {advice}\n"));
            let Finding { check, found, level, .. } = finding;
            format!("{:<4}  {check}: {found}\n{}", level.word(), advice.unwrap_or_default())
        };
        self.findings.iter().map(line).collect()
    }

    /// For programs: `{"level":...,"findings":[{"check","level","found","advice"}]}`.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Nothing failed.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.level < Level::Fail
    }
}

/// Checks the host for a server of this configuration. Takes some seconds with a large database.
#[must_use]
pub fn examine(loaded: &Loaded, host: &Host) -> Report {
    let settings = &loaded.settings;
    let database = &settings.server.database_path;
    let data = existing(database.parent().unwrap_or(database));
    let server = if DatabaseLock::is_held(database) { DatabaseLock::holder(database) } else { None };
    let mut findings = vec![system::file_limit(&host.proc, server, settings.discovery.max_users)];
    findings.extend(system::kernel(&host.proc));
    findings.extend(system::memory(&host.proc));
    findings.push(system::clock(system::synchronized(), clock::wall_ms(), newest_message(database)));
    findings.extend(system::units(&host.systemd, &host.units));
    findings.push(files::file_system(&host.proc, &data));
    findings.push(files::free_space(&data, database));
    findings.push(files::sync_latency(files::measure_syncs(&data)));
    findings.extend(files::permissions(database, config_file(loaded), settings));
    findings.push(files::integrity(database, survey::page_faults));
    findings.push(files::last_backup(backup::last_success_ms(database), database, clock::wall_ms()));
    findings.extend(ports::ports(&host.proc, settings));
    findings.extend(ports::admin_addresses(settings));
    let level = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    Report { level, findings }
}

fn config_file(loaded: &Loaded) -> Option<&Path> {
    match &loaded.file {
        ConfigFile::Read(path) => Some(path),
        ConfigFile::Absent | ConfigFile::Missing(_) => None,
    }
}

/// The directory itself, or the nearest one above it that is there: a first start makes the rest.
fn existing(directory: &Path) -> PathBuf {
    let found = directory.ancestors().find(|path| path.is_dir());
    found.unwrap_or(Path::new(".")).to_owned()
}

fn newest_message(database: &Path) -> Option<i64> {
    if database.exists() { survey::newest_message_ms(database).ok().flatten() } else { None }
}
