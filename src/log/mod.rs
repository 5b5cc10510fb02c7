//! The log: files, standard output and the journal, none of which can make the server wait (OBSERVABILITY.md 4).
//!
//! ```text
//! tracing event -> layer: record (bounded) -> encoded once -> queue of each sink (bounded) -> that sink's thread
//! ```
//! Each sink has a thread of its own, because each can get stuck by itself: the files on a disk that does not answer,
//! standard output on a reader that does not read, the journal on a stopped journald. A queue that is full drops lines,
//! counts them ([`dropped`]), and its sink says how many are missing as soon as it takes lines again.
//!
//! | file | holds |
//! |---|---|
//! | `level.rs` | which events are logged, and moving that at run time |
//! | `layer.rs`, `record.rs` | an event with its fields and those of its spans |
//! | `context.rs` | whose request a thread is working on |
//! | `format.rs`, `journal.rs` | a record as text, JSON, journal entry |
//! | `queue.rs`, `writer.rs` | the bounded way to the thread that writes |
//! | `files.rs` | the three files and standard output |
//! | `peer.rs` | client addresses, shortened as configured |
//!
//! Fields named `session`, `request`, `user`, `channel` and `remote`, of an event, of a span around it or of the thread's
//! [`Context`], say whose event it is and appear in every format under these names.

mod context;
mod files;
mod format;
mod journal;
mod layer;
mod level;
mod peer;
mod queue;
mod record;
mod writer;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, io};

use tracing::{Level, Subscriber};
use tracing_subscriber::layer::SubscriberExt;

pub use context::{Context, Entered, about_channel, enter};
pub use format::Format;
pub use level::Levels;
pub use peer::{LogIp, peer, peer_addr, without_addresses};
pub use record::{CONTEXT, Fields, Record, Value};

use crate::clock;
use files::Console;
use journal::Journal;
use layer::LogLayer;
use level::Filter;
use queue::{Inbox, Line, Queue};
use writer::{Destination, Notice};

/// The target of security events: failed logins, bans, admin actions, refused tokens.
pub const SECURITY: &str = "security";

/// Where systemd's journal takes native entries.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Everything that decides where and how the log is written.
pub struct LogOptions {
    /// Where the log files lie, made when missing: the data directory.
    pub directory: PathBuf,
    /// Where they lie, after a warning, when the former cannot be written: beside the database.
    pub fallback_directory: PathBuf,
    /// What is logged (`log_level`).
    pub levels: Levels,
    /// Whether `debug.log` is written, with everything down to DEBUG whatever the levels say (`--debug`).
    pub debug: bool,
    /// How lines look (`log_format`).
    pub format: Format,
    /// How client addresses look (`log_ip`).
    pub log_ip: LogIp,
    /// A descriptor of standard output; nothing is printed without it.
    pub stdout: Option<File>,
    /// The journal's socket; used when it exists.
    pub journal: Option<PathBuf>,
    /// The environment's `JOURNAL_STREAM`: with the journal in use, standard output is left alone where it leads there.
    pub journal_stream: Option<String>,
    /// Who else hears of every event that the levels choose.
    pub tap: Option<Tap>,
}

/// Hears of an event on the thread that caused it, before any sink does. Must not wait, nor log.
pub type Tap = Box<dyn Fn(&Record) + Send + Sync>;

impl LogOptions {
    /// The defaults: INFO as text into files, to standard output, and into the journal where there is one.
    pub fn new(directory: impl Into<PathBuf>, fallback_directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            fallback_directory: fallback_directory.into(),
            levels: Levels::default(),
            debug: false,
            format: Format::default(),
            log_ip: LogIp::default(),
            stdout: io::stdout().as_fd().try_clone_to_owned().map(File::from).ok(),
            journal: Some(PathBuf::from(JOURNAL_SOCKET)),
            journal_stream: None,
            tap: None,
        }
    }
}

/// Why the log did not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// [`init`] was called before: a process has one log.
    #[error("the log is running already")]
    Running,
    /// The system has no thread left for a writer.
    #[error("no thread for the log: {0}")]
    Thread(#[source] io::Error),
}

/// A setting of the log with a value that it does not have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: `{given}` is not {expected}")]
pub struct SettingError {
    setting: &'static str,
    given: String,
    expected: &'static str,
}

impl SettingError {
    fn new(setting: &'static str, given: &str, expected: &'static str) -> Self {
        Self { setting, given: given.to_owned(), expected }
    }
}

/// A kind of place that lines go to, with a queue and a thread of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// The log files.
    File,
    /// Standard output.
    Stdout,
    /// systemd's journal.
    Journal,
}

impl Sink {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::File, Self::Stdout, Self::Journal];

    /// The value of the metrics' `sink` label.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Stdout => "stdout",
            Self::Journal => "journal",
        }
    }

    fn thread_name(self) -> &'static str {
        match self {
            Self::File => "log-file",
            Self::Stdout => "log-stdout",
            Self::Journal => "log-journal",
        }
    }

    fn line(self, format: Format, record: &Record, chosen: bool) -> Line {
        let bytes = match self {
            Self::File | Self::Stdout => format.line(record),
            Self::Journal => journal::entry(record),
        };
        Line { level: record.level, chosen, bytes: bytes.into() }
    }
}

static RUNNING: OnceLock<Logging> = OnceLock::new();

/// Starts the process's log: from here on every `tracing` event goes to the sinks.
///
/// Files that can be opened nowhere are no error but a warning in the other sinks.
///
/// # Errors
/// When a log runs already, or no thread could be started.
pub fn init(options: LogOptions) -> Result<Logging, LogError> {
    let log_ip = options.log_ip;
    let (subscriber, logging) = build(options)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Running)?;
    peer::set(log_ip);
    Ok(RUNNING.get_or_init(|| logging).clone())
}

/// Lines that did not reach a sink since start: `superchat_log_dropped_total{sink}`. 0 before [`init`].
pub fn dropped(sink: Sink) -> u64 {
    RUNNING.get().map_or(0, |logging| logging.dropped(sink))
}

/// Like [`init`] without making the log the process's own, for tests; its threads end with the last of what is returned.
/// Levels must then be moved inside `with_default`, since call sites ask the subscriber in force there.
///
/// # Errors
/// When no thread could be started.
pub fn build(mut options: LogOptions) -> Result<(impl Subscriber + Send + Sync, Logging), LogError> {
    let (destinations, trouble) = open_sinks(&options);
    let filter = Filter::new(options.levels, options.debug);
    let mut shared = Shared { filter, format: options.format, tap: options.tap.take(), queues: [None, None, None] };
    for (sink, destinations) in destinations {
        let (queue, inbox) = queue::queue();
        start(sink, options.format, inbox, destinations).map_err(LogError::Thread)?;
        shared.queues[sink as usize] = Some(queue);
    }
    trouble.iter().for_each(|fields| shared.emit(fields, true));
    let logging = Logging { shared: Arc::new(shared) };
    let layer = LogLayer(Arc::clone(&logging.shared));
    Ok((tracing_subscriber::registry().with(layer), logging))
}

type Opened = Vec<(Sink, Vec<Box<dyn Destination>>)>;

/// What could be opened, and warnings about what could not.
fn open_sinks(options: &LogOptions) -> (Opened, Vec<Record>) {
    let mut opened: Opened = Vec::new();
    let (files, trouble) = open_files(options);
    if !files.is_empty() {
        opened.push((Sink::File, files));
    }
    let journal = options.journal.as_deref().and_then(Journal::find);
    if let Some(stdout) = printing(options, journal.is_some()) {
        opened.push((Sink::Stdout, vec![Box::new(Console::new(stdout))]));
    }
    if let Some(journal) = journal {
        opened.push((Sink::Journal, vec![Box::new(journal)]));
    }
    (opened, trouble)
}

fn open_files(options: &LogOptions) -> (Vec<Box<dyn Destination>>, Vec<Record>) {
    let mut trouble = Vec::new();
    for directory in [&options.directory, &options.fallback_directory] {
        match files::open_all(directory, options.debug, clock::now()) {
            Ok(files) => return (files, trouble),
            Err(reason) => trouble.push(unwritable(directory, &reason)),
        }
    }
    (Vec::new(), trouble)
}

/// Standard output, unless the journal gets everything over its own socket and would get it twice.
fn printing(options: &LogOptions, journal_used: bool) -> Option<File> {
    let stdout = options.stdout.as_ref()?;
    let is_journal = |stream: &String| journal::is_stream(stream, stdout);
    let twice = journal_used && options.journal_stream.as_ref().is_some_and(is_journal);
    if twice { None } else { stdout.try_clone().ok() }
}

fn start(sink: Sink, format: Format, inbox: Inbox, destinations: Vec<Box<dyn Destination>>) -> io::Result<()> {
    let notice: Notice = Box::new(move |count| sink.line(format, &missing(sink, count), true));
    writer::spawn(sink.thread_name(), inbox, destinations, notice)
}

fn missing(sink: Sink, count: u64) -> Record {
    let named = [("sink", Value::Text(sink.name().to_owned())), ("count", Value::Unsigned(count))];
    warning(Fields::own("log lines dropped", named))
}

fn unwritable(directory: &Path, reason: &io::Error) -> Record {
    let named =
        [("directory", Value::Text(directory.display().to_string())), ("reason", Value::Text(reason.to_string()))];
    warning(Fields::own("log files cannot be written here", named))
}

/// A line of the log about itself.
fn warning(fields: Fields) -> Record {
    let (file, line) = (Some(file!()), Some(line!()));
    Record { time: clock::now(), level: Level::WARN, target: module_path!(), file, line, fields }
}

struct Shared {
    filter: Filter,
    format: Format,
    tap: Option<Tap>,
    /// By number of the sink.
    queues: [Option<Queue>; Sink::ALL.len()],
}

impl Shared {
    /// Hands the record to every sink that wants it and returns at once. Files and standard output share the line.
    fn emit(&self, record: &Record, chosen: bool) {
        if chosen && let Some(tap) = &self.tap {
            tap(record);
        }
        let [file, stdout, journal] = &self.queues;
        let stdout = stdout.as_ref().filter(|_| chosen);
        if file.is_some() || stdout.is_some() {
            let line = Sink::File.line(self.format, record, chosen);
            stdout.inspect(|queue| queue.push(line.clone()));
            file.as_ref().inspect(|queue| queue.push(line));
        }
        if let Some(queue) = journal.as_ref().filter(|_| chosen) {
            queue.push(Sink::Journal.line(self.format, record, chosen));
        }
    }
}

/// The handle on a running log; copies are the same log. All methods may be called from any thread, and none
/// waits for a sink but [`Logging::shutdown`] and [`Logging::drain`].
#[derive(Clone)]
pub struct Logging {
    shared: Arc<Shared>,
}

impl fmt::Debug for Logging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").field("levels", &self.levels().to_string()).finish_non_exhaustive()
    }
}

impl Logging {
    /// The levels in force.
    pub fn levels(&self) -> Levels {
        self.shared.filter.levels()
    }

    /// Replaces the levels.
    pub fn set_level(&self, levels: Levels) {
        self.shared.filter.change(|_| levels);
    }

    /// Shows addresses in another way (`log_ip`), in the whole process.
    pub fn set_log_ip(&self, log_ip: LogIp) {
        peer::set(log_ip);
    }

    /// Logs one step more (SIGUSR1); returns the levels now in force.
    pub fn raise(&self) -> Levels {
        self.shared.filter.change(Levels::raised)
    }

    /// Logs one step less, but never less than errors (SIGUSR2); returns the levels now in force.
    pub fn lower(&self) -> Levels {
        self.shared.filter.change(Levels::lowered)
    }

    /// Opens the files anew by name, appending (SIGHUP): what is logged from here on is in the files of these names.
    pub fn reopen(&self) {
        self.queue(Sink::File).inspect(|queue| queue.request_reopen());
    }

    /// Lines that did not reach `sink`: refused by its full queue, or by the file, reader or journal behind it.
    /// A line missing in two files counts twice.
    pub fn dropped(&self, sink: Sink) -> u64 {
        self.queue(sink).map_or(0, Queue::dropped)
    }

    /// Waits until everything logged so far is handed to the system, for at most `deadline` in all; false when some
    /// sink did not get that far. The log goes on afterwards.
    pub fn shutdown(&self, deadline: Duration) -> bool {
        let start_ms = clock::monotonic_ms();
        Sink::ALL.into_iter().fold(true, |all, sink| {
            let elapsed = Duration::from_millis(clock::monotonic_ms().saturating_sub(start_ms));
            self.drain(sink, deadline.saturating_sub(elapsed)) && all
        })
    }

    /// Like [`Logging::shutdown`], for one sink; true for a sink that is not in use.
    pub fn drain(&self, sink: Sink, limit: Duration) -> bool {
        self.queue(sink).is_none_or(|queue| queue.drain(limit))
    }

    fn queue(&self, sink: Sink) -> Option<&Queue> {
        self.shared.queues[sink as usize].as_ref()
    }
}
