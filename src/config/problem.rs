//! What can be wrong with a configuration, and how it is said.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::raw::Origin;

/// Why a configuration is refused. Its text has one line per problem, each naming place and key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is there but cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither settings nor environment tell where the database belongs.
    #[error("cannot tell where data belongs: set HOME, or [server] database_path (--db PATH)")]
    NoDataDirectory,
    /// Everything found wrong in file, environment and flags.
    #[error("{}", lines(.0))]
    Wrong(Vec<Problem>),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

/// One thing wrong at one place.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// Who said it.
    pub origin: Origin,
    /// The key as `[section] key`, the section alone, or empty when the file as a whole is meant.
    pub key: String,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", self.origin)?;
        match &self.fault {
            fault if self.key.is_empty() => write!(out, "{fault}"),
            fault @ Fault::Unknown { .. } => write!(out, "{} {fault}", self.key),
            fault => write!(out, "{}: {fault}", self.key),
        }
    }
}

/// What is wrong with a key or its value. Values are quoted as text of one line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The file is not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// Neither ours nor known from elsewhere.
    #[error("is not known{}", nearest.as_ref().map(|name| format!("; did you mean {name}?")).unwrap_or_default())]
    Unknown {
        /// The most similar name.
        nearest: Option<String>,
    },
    /// A plain value under the name of a section.
    #[error("is a section: write it on a line of its own and its keys below")]
    NotASection,
    /// Not a whole number.
    #[error("{0} is not a whole number")]
    NotANumber(String),
    /// Below zero.
    #[error("{0} is negative")]
    Negative(String),
    /// Above a bound that has no nearest sensible value.
    #[error("{value} is above {at_most}")]
    TooLarge {
        /// What was given.
        value: u64,
        /// The bound.
        at_most: u64,
    },
    /// Neither true nor false.
    #[error("{0} is neither true nor false")]
    NotABoolean(String),
    /// Something else where a text belongs.
    #[error("{0} is not a text in quotes")]
    NotText(String),
    /// Something else where a list belongs.
    #[error("{0} is not a list in brackets")]
    NotAList(String),
    /// A list entry that does not describe a channel.
    #[error("{0} is not a channel, such as {{ name = \"general\", description = \"General discussion\" }}")]
    NotAChannel(String),
    /// A text outside a closed list.
    #[error("{value} is none of {}", choices.join(", "))]
    NotOneOf {
        /// What was given.
        value: String,
        /// What is possible.
        choices: &'static [&'static str],
    },
    /// Breaks a rule of its kind.
    #[error("{value} is not {wanted}")]
    NotA {
        /// What was given.
        value: String,
        /// What is wanted, with an example where it helps.
        wanted: &'static str,
    },
    /// An environment variable or flag that is not text.
    #[error("the value is not UTF-8")]
    NotUtf8,
    /// A list of tables cannot be told in one line.
    #[error("can only be set in the configuration file")]
    OnlyInFile,
    /// `~/` without a home.
    #[error("{0} needs HOME to be set")]
    NoHome(String),
    /// Two names where one may be.
    #[error("{0} appears twice")]
    Twice(String),
    /// Profiles tell what is in memory (OBSERVABILITY.md 3).
    #[error("{0} is not a loopback address; set [admin] metrics_token or listen on loopback")]
    NeedsToken(String),
    /// Two ports of the same number.
    #[error("{port} is also {other}")]
    SamePort {
        /// The number.
        port: u16,
        /// The other key.
        other: String,
    },
    /// Inside a list, counted from 1.
    #[error("entry {number}: {fault}")]
    Entry {
        /// Which entry, from 1.
        number: usize,
        /// What is wrong there.
        fault: Box<Self>,
    },
    /// At a key inside a list entry.
    #[error("{key} {fault}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        fault: Box<Self>,
    },
}

impl Fault {
    /// The same fault, in the list entry at `index` from 0.
    pub(super) fn in_entry(self, index: usize) -> Self {
        Self::Entry { number: index + 1, fault: Box::new(self) }
    }

    /// The same fault, at `key` of a list entry.
    pub(super) fn at_key(self, key: &str) -> Self {
        Self::Key { key: key.to_owned(), fault: Box::new(self) }
    }
}
