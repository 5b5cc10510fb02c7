//! Configuration: one table of settings, three sources, one resolved struct.
//!
//! `table` lists every key; `raw` reads what file, environment and command line say; `resolve` turns that into values
//! that hold (`types` has those the standard library lacks); `places` knows where files lie; `manual` writes the
//! example file, the manual page and the report; `problem` says what is wrong. Rules: BEHAVIOUR.md 9.

mod manual;
mod places;
mod problem;
mod raw;
mod resolve;
mod table;
mod types;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use manual::{INTRODUCTION, example, markdown};
pub use problem::{ConfigError, Fault, Problem};
pub use raw::{Environment, Flags, Origin};
pub use resolve::Origins;
pub use table::{
    Admin, Channels, Discovery, Entry, Limits, Log, Retention, Rule, SECTIONS, Server, Settings, Storage, TABLE,
};
pub use types::{
    ChannelKind, Checkpoints, Durability, Endpoint, Host, LogFilter, LogFormat, LogIp, NotAHost, NotALogFilter, Secret,
    SeedChannel,
};

use places::Places;
use raw::{EnvironmentSource, FileSource, FlagSource, Notes};
use resolve::{Context, check_together};
use table::Raw;

/// A configuration that may be used, and what to say about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Every setting.
    pub settings: Settings,
    /// Where each value comes from.
    pub origins: Origins,
    /// Where database, logs and keys belong that no setting places elsewhere (DESIGN.md, Ports and files).
    pub data_directory: PathBuf,
    /// The configuration file.
    pub file: ConfigFile,
    /// What the operator should change: clamped values, keys without effect.
    pub warnings: Vec<String>,
    /// What the operator should know: files used at their old places.
    pub notices: Vec<String>,
}

/// What a reload did.
#[derive(Debug)]
pub struct Reloaded {
    /// Settings that have another value from now on.
    pub changed: Vec<&'static Entry>,
    /// Settings that get theirs at the next start.
    pub waiting: Vec<&'static Entry>,
    /// What the operator should change.
    pub warnings: Vec<String>,
}

/// Which configuration file counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigFile {
    /// None was named and none lies at the usual places.
    Absent,
    /// This one was named but does not exist.
    Missing(PathBuf),
    /// This one was read.
    Read(PathBuf),
}

/// Reads and resolves the configuration: flags count most, then environment, then file, then defaults, key by key.
///
/// Nothing is written; the server calls [`Loaded::write_missing_file`] next.
///
/// # Errors
/// A file that exists but cannot be read, anything that BEHAVIOUR.md 9.1 calls an error (all of them at once), or no
/// place for data.
pub fn load(environment: &Environment, flags: &Flags) -> Result<Loaded, ConfigError> {
    let mut notes = Notes::default();
    let places = Places::of(environment);
    let named = flags.config.clone().or_else(|| environment.get(raw::CONFIG_VARIABLE).map(PathBuf::from));
    let (file, text) = read_file(named.filter(|path| !path.as_os_str().is_empty()), &places, &mut notes)?;

    let flagged = Raw::read(&mut FlagSource { flags, notes: &mut notes });
    let surrounding = Raw::read(&mut EnvironmentSource::new(environment, &mut notes));
    let filed = match &file {
        ConfigFile::Read(path) => Raw::read(&mut FileSource::new(path, &text, &mut notes)),
        ConfigFile::Absent | ConfigFile::Missing(_) => Raw::default(),
    };

    let mut context = Context { home: places.home.as_deref(), origins: Origins::default(), notes: &mut notes };
    let mut settings = flagged.or(surrounding.or(filed)).resolve(&mut context);
    let mut origins = context.origins;
    check_together(&settings, &origins, &mut notes);
    if !notes.problems.is_empty() {
        return Err(ConfigError::Wrong(notes.problems));
    }
    let data_directory = places.data_directory(&settings.server.database_path).ok_or(ConfigError::NoDataDirectory)?;
    places.settle_files(&mut settings.server, &data_directory, &mut origins, &mut notes);
    let Notes { warnings, notices, .. } = notes;
    Ok(Loaded { settings, origins, data_directory, file, warnings, notices })
}

/// The file that counts, with its text.
fn read_file(named: Option<PathBuf>, places: &Places, notes: &mut Notes) -> Result<(ConfigFile, String), ConfigError> {
    let is_named = named.is_some();
    let path = match named {
        Some(path) => places.expand(path),
        None => match places.usual_config(notes) {
            Some(path) => path,
            None => return Ok((ConfigFile::Absent, String::new())),
        },
    };
    match fs::read_to_string(&path) {
        Ok(text) => Ok((ConfigFile::Read(path), text)),
        Err(error) if is_named && error.kind() == io::ErrorKind::NotFound => {
            Ok((ConfigFile::Missing(path), String::new()))
        }
        Err(source) => Err(ConfigError::Unreadable { path, source }),
    }
}

impl Loaded {
    /// Writes a named configuration file that is missing, every key commented out. Success is a notice, failure only a
    /// warning: the server runs without the file as well (BEHAVIOUR.md 9.1).
    pub fn write_missing_file(&mut self) {
        let ConfigFile::Missing(path) = &self.file else { return };
        match write_example(path) {
            Ok(()) => self.notices.push(format!("wrote {} with every setting commented out", path.display())),
            Err(error) => self.warnings.push(format!("cannot write {}: {error}", path.display())),
        }
    }

    /// Takes from `newer` what a reload changes, and says what it did. On an error nothing is changed.
    ///
    /// # Errors
    /// When the settings taken over do not go with those that wait for the next start.
    pub fn reload(&mut self, newer: Self) -> Result<Reloaded, ConfigError> {
        let settings = self.settings.reloaded(&newer.settings);
        let mut notes = Notes::default();
        check_together(&settings, &newer.origins, &mut notes);
        if !notes.problems.is_empty() {
            return Err(ConfigError::Wrong(notes.problems));
        }
        let reloaded = Reloaded {
            changed: self.settings.differences(&settings),
            waiting: settings.differences(&newer.settings),
            warnings: newer.warnings,
        };
        *self = Self { settings, origins: newer.origins, file: newer.file, ..self.clone() };
        Ok(reloaded)
    }

    /// Every setting with its value and origin, in the form of the file. Secrets are masked.
    pub fn report(&self) -> String {
        manual::report(self)
    }
}

/// Not readable by all, because passwords may be put into it.
fn write_example(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?;
    file.write_all(example().as_bytes())
}
