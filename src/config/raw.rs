//! What the sources say: file, environment and command line, each asked for every key of the table.
//!
//! Only the form is checked here (a number is a number). What a value means is decided in `resolve`, for the one that
//! counts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::manual::quoted;
use super::problem::{Fault, Problem};
use super::table::{self, Entry, RETIRED, SECTIONS, TABLE};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing sets it.
    Default,
    /// Nothing sets it, and the file lies where the existing server keeps it (BEHAVIOUR.md 9.1).
    OldPlace,
    /// A line of the configuration file.
    File {
        /// The file.
        path: Arc<Path>,
        /// Line, counted from 1.
        line: usize,
    },
    /// A variable of the environment, by name.
    Environment(String),
    /// A flag of the command line, by name and without dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("default"),
            Self::OldPlace => out.write_str("found at its old place"),
            Self::File { path, line } => write!(out, "{} line {line}", path.display()),
            Self::Environment(name) => write!(out, "environment {name}"),
            Self::Flag(name) => write!(out, "flag --{name}"),
        }
    }
}

/// A value as a source gave it.
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

/// What is found wrong or worth saying while the sources are read and resolved.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
    pub(super) notices: Vec<String>,
}

impl Notes {
    pub(super) fn problem(&mut self, origin: Origin, key: String, fault: Fault) {
        self.problems.push(Problem { origin, key, fault });
    }
}

/// Something that may know keys.
pub(super) trait Source {
    /// What it says about `entry`. A value of the wrong form is noted as a problem and counts as absent.
    fn get<T: Input>(&mut self, entry: &'static Entry) -> Option<Given<T>>;
}

/// A form that values have before they are checked.
pub(super) trait Input: Sized {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Fault>;
    fn from_text(text: &str) -> Result<Self, Fault>;
    /// 0 or empty, which stands for the default (BEHAVIOUR.md 9.1).
    fn is_blank(&self) -> bool;
}

impl Input for u64 {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Fault> {
        match value {
            DeValue::Integer(number) => count_from(number.as_str(), number.radix()),
            other => Err(Fault::NotANumber(excerpt(other))),
        }
    }

    fn from_text(text: &str) -> Result<Self, Fault> {
        count_from(text.trim(), 10)
    }

    fn is_blank(&self) -> bool {
        *self == 0
    }
}

/// Reads a count. One that is too large for the type becomes the largest, because every bound is below that.
fn count_from(digits: &str, radix: u32) -> Result<u64, Fault> {
    let (negative, unsigned) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let is_number = !unsigned.is_empty() && unsigned.chars().all(|digit| digit.is_digit(radix));
    let is_zero = unsigned.chars().all(|digit| digit == '0');
    match (is_number, negative && !is_zero) {
        (false, _) => Err(Fault::NotANumber(quoted(digits))),
        (true, true) => Err(Fault::Negative(digits.to_owned())),
        (true, false) => Ok(u64::from_str_radix(unsigned, radix).unwrap_or(u64::MAX)),
    }
}

impl Input for bool {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Fault> {
        value.as_bool().ok_or_else(|| Fault::NotABoolean(excerpt(value)))
    }

    fn from_text(text: &str) -> Result<Self, Fault> {
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "on" | "1" => Ok(true),
            "false" | "f" | "no" | "off" | "0" => Ok(false),
            _ => Err(Fault::NotABoolean(quoted(text))),
        }
    }

    fn is_blank(&self) -> bool {
        false
    }
}

impl Input for String {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Fault> {
        value.as_str().map(str::to_owned).ok_or_else(|| Fault::NotText(excerpt(value)))
    }

    fn from_text(text: &str) -> Result<Self, Fault> {
        Ok(text.to_owned())
    }

    fn is_blank(&self) -> bool {
        self.trim().is_empty()
    }
}

/// A text that no message repeats.
pub(super) struct Hidden(pub(super) String);

impl Input for Hidden {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Fault> {
        value.as_str().map(|text| Self(text.to_owned())).ok_or_else(|| Fault::NotText("the value".to_owned()))
    }

    fn from_text(text: &str) -> Result<Self, Fault> {
        Ok(Self(text.to_owned()))
    }

    fn is_blank(&self) -> bool {
        self.0.is_empty()
    }
}

/// Outside the file lists are separated by commas; entries are trimmed and empty ones dropped everywhere.
impl Input for Vec<String> {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Fault> {
        let list = value.as_array().ok_or_else(|| Fault::NotAList(excerpt(value)))?;
        let entries: Result<Vec<_>, _> = list.iter().map(|entry| String::from_toml(entry.get_ref())).collect();
        entries.map(|entries| tidied(entries.iter().map(String::as_str)))
    }

    fn from_text(text: &str) -> Result<Self, Fault> {
        Ok(tidied(text.split(',')))
    }

    fn is_blank(&self) -> bool {
        false
    }
}

fn tidied<'a>(entries: impl Iterator<Item = &'a str>) -> Vec<String> {
    entries.map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

/// An entry of `seed_channels` before it is checked.
#[derive(Debug, Default)]
pub(super) struct RawSeed {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) kind: String,
    pub(super) retention_hours: u64,
}

impl Input for Vec<RawSeed> {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Fault> {
        let list = value.as_array().ok_or_else(|| Fault::NotAList(excerpt(value)))?;
        let seed = |(index, entry): (usize, &Spanned<DeValue<'_>>)| {
            RawSeed::from_toml(entry.get_ref()).map_err(|fault| fault.in_entry(index))
        };
        list.iter().enumerate().map(seed).collect()
    }

    fn from_text(_: &str) -> Result<Self, Fault> {
        Err(Fault::OnlyInFile)
    }

    fn is_blank(&self) -> bool {
        false
    }
}

impl RawSeed {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Fault> {
        let entry = value.as_table().ok_or_else(|| Fault::NotAChannel(excerpt(value)))?;
        let mut seed = Self::default();
        for (key, value) in entry {
            seed.set(key.get_ref(), value.get_ref()).map_err(|fault| fault.at_key(key.get_ref()))?;
        }
        Ok(seed)
    }

    fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), Fault> {
        match (key, value) {
            ("name", _) => self.name = String::from_toml(value)?,
            ("description", _) => self.description = String::from_toml(value)?,
            ("type", DeValue::Integer(number)) => self.kind = number.to_string(),
            ("type", _) => self.kind = String::from_toml(value)?,
            ("retention_hours", _) => self.retention_hours = u64::from_toml(value)?,
            _ => {
                let known = ["name", "description", "type", "retention_hours"];
                return Err(Fault::Unknown { nearest: nearest(key, known).map(str::to_owned) });
            }
        }
        Ok(())
    }
}

/// The start of a value, for messages.
fn excerpt(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The configuration file.
pub(super) struct FileSource<'a> {
    path: Arc<Path>,
    text: &'a str,
    table: DeTable<'a>,
    notes: &'a mut Notes,
}

impl<'a> FileSource<'a> {
    /// Parses `text` and notes every section and key that does not exist. A text that is not TOML is noted too, and
    /// then says nothing.
    pub(super) fn new(path: &Path, text: &'a str, notes: &'a mut Notes) -> Self {
        let path: Arc<Path> = path.into();
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let line = line_of(text, error.span().map_or(0, |span| span.start));
                let message = error.message().lines().collect::<Vec<_>>().join(", ");
                notes.problem(Origin::File { path: path.clone(), line }, String::new(), Fault::Syntax(message));
                DeTable::new()
            }
        };
        let mut source = Self { path, text, table, notes };
        source.check_names();
        source
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.clone(), line: line_of(self.text, offset) }
    }

    fn check_names(&mut self) {
        let mut found = Vec::new();
        for (section, value) in &self.table {
            let (name, offset) = (section.get_ref().as_ref(), section.span().start);
            match value.get_ref().as_table() {
                Some(_) if !is_section(name) && !is_retired_section(name) => found.push((offset, judge_section(name))),
                Some(keys) => found.extend(keys.keys().filter_map(|key| {
                    let finding = judge_key(name, key.get_ref())?;
                    Some((key.span().start, finding))
                })),
                None if is_section(name) => found.push((offset, Finding::wrong(name, Fault::NotASection))),
                None => found.extend(judge_key("", name).map(|finding| (offset, finding))),
            }
        }
        for (offset, finding) in found {
            let origin = self.origin(offset);
            finding.note(origin, self.notes);
        }
    }
}

impl Source for FileSource<'_> {
    fn get<T: Input>(&mut self, entry: &'static Entry) -> Option<Given<T>> {
        let section = self.table.get(entry.section)?.get_ref().as_table()?;
        let value = section.get(entry.key)?;
        let origin = self.origin(value.span().start);
        accept(T::from_toml(value.get_ref()), origin, entry, self.notes)
    }
}

/// Line of the byte at `offset`, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The environment: variables by name.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// The variables of this process. Names that are not UTF-8 are left out: nothing asks for them.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect())
    }

    /// The value of `name`; an empty one counts as unset, as `docker compose` passes it for an absent variable.
    pub fn get(&self, name: &str) -> Option<&OsString> {
        self.0.get(name).filter(|value| !value.is_empty())
    }

    /// A folder named by `name`; the base directory rules ignore relative ones, and so does this.
    pub fn folder(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

impl<K: Into<String>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// The environment, asked for settings.
pub(super) struct EnvironmentSource<'a> {
    environment: &'a Environment,
    notes: &'a mut Notes,
}

impl<'a> EnvironmentSource<'a> {
    /// Warns of variables that look like settings but are none. They never stop the start: container platforms add
    /// variables with our prefix by themselves.
    pub(super) fn new(environment: &'a Environment, notes: &'a mut Notes) -> Self {
        let known: Vec<String> = TABLE.iter().flat_map(|entry| entry.variables()).collect();
        for name in environment.0.keys().filter(|name| name.starts_with("SUPERCHAT_") && !known.contains(name)) {
            notes.warnings.extend(doubtful_variable(name, &known));
        }
        Self { environment, notes }
    }
}

fn doubtful_variable(name: &str, known: &[String]) -> Option<String> {
    const TYPING_MISTAKES_MAX: usize = 3;
    if name == CONFIG_VARIABLE {
        return None;
    }
    if let Some(retired) = RETIRED.iter().find(|retired| names_variable(retired, name)) {
        return Some(format!("environment {name} has no effect: {}", retired.advice));
    }
    let nearest = nearest(name, known.iter().map(String::as_str))?;
    let is_near = strsim::damerau_levenshtein(name, nearest) <= TYPING_MISTAKES_MAX;
    is_near.then(|| format!("environment {name} is no setting; did you mean {nearest}?"))
}

/// The variable that names the configuration file, as `--config` does.
pub(super) const CONFIG_VARIABLE: &str = "SUPERCHAT_CONFIG";

fn names_variable(retired: &table::Retired, name: &str) -> bool {
    let Some((section, key)) = name.strip_prefix("SUPERCHAT_").and_then(|rest| rest.split_once('_')) else {
        return false;
    };
    let fits = |pattern: &str, text: &str| pattern == "*" || pattern.eq_ignore_ascii_case(text);
    fits(retired.section, section) && fits(retired.key, key)
}

impl Source for EnvironmentSource<'_> {
    fn get<T: Input>(&mut self, entry: &'static Entry) -> Option<Given<T>> {
        let name = entry.variables().into_iter().find(|name| self.environment.get(name).is_some())?;
        let value = self.environment.get(&name)?;
        let form = value.to_str().ok_or(Fault::NotUtf8).and_then(T::from_text);
        accept(form, Origin::Environment(name), entry, self.notes)
    }
}

/// The flags of the command line that concern settings.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config PATH`.
    pub config: Option<PathBuf>,
    /// Value by name without dashes, as in the table's rules.
    pub values: BTreeMap<&'static str, OsString>,
}

/// The flags, asked for settings.
pub(super) struct FlagSource<'a> {
    pub(super) flags: &'a Flags,
    pub(super) notes: &'a mut Notes,
}

impl Source for FlagSource<'_> {
    fn get<T: Input>(&mut self, entry: &'static Entry) -> Option<Given<T>> {
        let name = entry.rule.flag?;
        let value = self.flags.values.get(name)?;
        let form = value.to_str().ok_or(Fault::NotUtf8).and_then(T::from_text);
        accept(form, Origin::Flag(name), entry, self.notes)
    }
}

fn accept<T>(form: Result<T, Fault>, origin: Origin, entry: &Entry, notes: &mut Notes) -> Option<Given<T>> {
    match form {
        Ok(value) => Some(Given { value, origin }),
        Err(fault) => {
            notes.problem(origin, entry.name(), fault);
            None
        }
    }
}

/// What is to be said about a name in the file.
enum Finding {
    Wrong(String, Fault),
    Useless(String, &'static str),
}

impl Finding {
    fn wrong(section: &str, fault: Fault) -> Self {
        Self::Wrong(format!("[{section}]"), fault)
    }

    fn note(self, origin: Origin, notes: &mut Notes) {
        match self {
            Self::Wrong(name, fault) => notes.problem(origin, name, fault),
            Self::Useless(name, advice) => {
                notes.warnings.push(format!("{origin}: {name} has no effect: {advice}"));
            }
        }
    }
}

fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|(section, _)| *section == name)
}

fn is_retired_section(name: &str) -> bool {
    RETIRED.iter().any(|retired| retired.section == name)
}

fn judge_section(name: &str) -> Finding {
    let nearest = nearest(name, SECTIONS.iter().map(|(section, _)| *section));
    Finding::wrong(name, Fault::Unknown { nearest: nearest.map(|section| format!("[{section}]")) })
}

/// A key outside any section has the section "".
fn judge_key(section: &str, key: &str) -> Option<Finding> {
    if table::find(section, key).is_some() {
        return None;
    }
    let name = if section.is_empty() { key.to_owned() } else { format!("[{section}] {key}") };
    if let Some(retired) = table::find_retired(section, key) {
        return Some(Finding::Useless(name, retired.advice));
    }
    Some(Finding::Wrong(name, Fault::Unknown { nearest: nearest_key(section, key).map(Entry::name) }))
}

/// The same key in another section, else the most similar one of the section, else of all.
fn nearest_key(section: &str, key: &str) -> Option<&'static Entry> {
    let everywhere = || TABLE.iter().copied();
    let similar = |entry: &&Entry| strsim::damerau_levenshtein(entry.key, key);
    everywhere()
        .find(|entry| entry.key == key)
        .or_else(|| everywhere().filter(|entry| entry.section == section).min_by_key(similar))
        .or_else(|| everywhere().min_by_key(similar))
}

fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().min_by_key(|candidate| strsim::damerau_levenshtein(candidate, name))
}
