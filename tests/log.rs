//! The log as operators and the system see it: files, standard output, journal, and what happens when one of them sticks.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use superchat::log::{self, Format, LogError, LogIp, LogOptions, Logging, SECURITY, Sink};
use tempfile::TempDir;
use tracing::dispatcher::{Dispatch, with_default};
use tracing::{debug, error, info, info_span, trace, warn};

/// How long something may take that should take no time: a test fails by it only when it would never end.
const LIMIT: Duration = Duration::from_secs(60);

/// More lines than any queue and the buffers behind it hold.
const FLOOD_LINES: u64 = 80_000;

/// A log of its own, into a directory of its own.
struct Log {
    directory: TempDir,
    dispatch: Dispatch,
    handle: Logging,
}

impl Log {
    /// Files only, unless `adapt` asks for more.
    fn start(adapt: impl FnOnce(&mut LogOptions)) -> Self {
        Self::start_in(TempDir::new().expect("a directory"), adapt)
    }

    fn start_in(directory: TempDir, adapt: impl FnOnce(&mut LogOptions)) -> Self {
        let mut options = LogOptions::new(directory.path(), directory.path());
        (options.stdout, options.journal) = (None, None);
        adapt(&mut options);
        let (subscriber, handle) = log::build(options).expect("the log starts");
        Self { directory, dispatch: Dispatch::new(subscriber), handle }
    }

    /// Runs `events` with this log and waits for the files to have them.
    fn log(&self, events: impl FnOnce()) -> &Self {
        with_default(&self.dispatch, events);
        assert!(self.handle.drain(Sink::File, LIMIT));
        self
    }

    /// Moves levels where this log is the one in force: call sites ask only that one when there is no other.
    fn with<T>(&self, change: impl FnOnce(&Logging) -> T) -> T {
        with_default(&self.dispatch, || change(&self.handle))
    }

    /// Logs a lot, and fails when the thread that does so is made to wait.
    fn flood(&self) {
        let dispatch = self.dispatch.clone();
        let flooding = move || with_default(&dispatch, || (0..FLOOD_LINES).for_each(|line| info!(line, "flood")));
        within_limit(flooding);
        assert!(self.handle.drain(Sink::File, LIMIT));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a readable log file")
    }

    /// The file's lines from the level on.
    fn bodies(&self, name: &str) -> Vec<String> {
        self.read(name).lines().map(body).collect()
    }

    fn stop(self) -> TempDir {
        assert!(self.handle.shutdown(LIMIT));
        self.directory
    }
}

/// The line without its time, whose form is checked.
fn body(line: &str) -> String {
    let (time, body) = line.split_at_checked(27).expect("a line longer than its time");
    let form: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(form, "0000/00/00 00:00:00.000000 ", "{line}");
    body.to_owned()
}

fn within_limit<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = mpsc::sync_channel(1);
    superchat::supervise::spawn("work", move || sender.send(work()).expect("the test is waiting")).expect("a thread");
    done.recv_timeout(LIMIT).expect("finished work")
}

/// Lines of a flood in `lines`, and how many they report as missing, until all are accounted for.
fn flood_accounted(lines: impl Iterator<Item = String>, sink: Sink) -> (u64, u64) {
    let notice = format!("log lines dropped sink={} count=", sink.name());
    let (mut kept, mut missing) = (0, 0);
    for line in lines {
        match line.split_once(&notice) {
            Some((_, count)) => missing += count.parse::<u64>().expect("a number"),
            None => kept += u64::from(line.contains("flood")),
        }
        if kept + missing == FLOOD_LINES {
            break;
        }
    }
    (kept, missing)
}

fn check_accounted(log: &Log, sink: Sink, lines: impl Iterator<Item = String>) -> u64 {
    let (kept, missing) = flood_accounted(lines, sink);
    assert_eq!((kept + missing, missing), (FLOOD_LINES, log.handle.dropped(sink)));
    missing
}

/// A pipe as standard output.
fn pipe() -> (io::PipeReader, File) {
    let (reader, writer) = io::pipe().expect("a pipe");
    (reader, File::from(OwnedFd::from(writer)))
}

fn journal_in(directory: &Path) -> (UnixDatagram, PathBuf) {
    let path = directory.join("journal");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(LIMIT)).expect("a time limit");
    (socket, path)
}

fn receive(journal: &UnixDatagram) -> String {
    let mut entry = vec![0; 1 << 18];
    let size = journal.recv(&mut entry).expect("an entry");
    String::from_utf8_lossy(&entry[..size]).into_owned()
}

fn message(entry: &str) -> &str {
    entry.lines().find_map(|line| line.strip_prefix("MESSAGE=")).expect("a message")
}

#[test]
fn lines_have_the_form_of_the_contract() {
    let log = Log::start(|_| ());
    log.log(|| {
        info!("Server started on port {}", 6465);
        warn!(reason = "disk full", code = 7, "backup failed");
        error!(target: SECURITY, user = %"bob", "authentication failed");
        debug!("not chosen");
    });
    let expected = [
        "[INFO] Server started on port 6465",
        "[WARN] backup failed reason=\"disk full\" code=7",
        "[ERROR] authentication failed target=security user=bob",
    ];
    assert_eq!(log.bodies("server.log"), expected);
}

#[test]
fn server_log_starts_empty_and_errors_log_is_continued_after_a_mark() {
    let run = |directory, text: &'static str| {
        let log = Log::start_in(directory, |_| ());
        log.log(|| {
            info!("{text} started");
            error!("{text} broken");
        });
        (log.bodies("server.log"), log.stop())
    };
    let (_, directory) = run(TempDir::new().unwrap(), "one");
    let (server, directory) = run(directory, "two");
    assert_eq!(server, ["[INFO] two started", "[ERROR] two broken"]);

    let errors = fs::read_to_string(directory.path().join("errors.log")).unwrap();
    let [mark_one, one, mark_two, two] = errors.lines().collect::<Vec<_>>()[..] else { panic!("{errors}") };
    assert_eq!([body(one), body(two)], ["[ERROR] one broken", "[ERROR] two broken"]);
    for mark in [mark_one, mark_two] {
        let time = mark.strip_prefix("=== Server started at ").and_then(|rest| rest.strip_suffix(" ==="));
        assert!(time.is_some_and(|time| time.parse::<jiff::Timestamp>().is_ok()), "{mark}");
    }
    assert!(!directory.path().join("debug.log").exists());
}

#[test]
fn debug_log_holds_everything_down_to_debug_and_changes_no_other_file() {
    let run = |directory| {
        let log = Log::start_in(directory, |options| options.debug = true);
        log.log(|| {
            trace!("too fine");
            debug!("fine");
            info!("coarse");
        });
        assert_eq!(log.bodies("server.log"), ["[INFO] coarse"]);
        let debug = log.bodies("debug.log");
        (debug, log.stop())
    };
    let (_, directory) = run(TempDir::new().unwrap());
    let (debug, _) = run(directory);
    assert_eq!(debug, ["[DEBUG] fine", "[INFO] coarse", "[DEBUG] fine", "[INFO] coarse"], "continued");
}

#[test]
fn files_are_closed_to_others() {
    let log = Log::start(|options| options.debug = true);
    for name in ["server.log", "errors.log", "debug.log"] {
        let mode = fs::metadata(log.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o737, 0o600, "{name}: {mode:o}");
    }
}

#[test]
fn files_lie_beside_the_database_when_the_data_directory_cannot_be_written() {
    let log = Log::start(|options| {
        let occupied = options.fallback_directory.join("occupied");
        fs::write(&occupied, "a file where a directory should be").unwrap();
        options.directory = occupied;
    });
    log.log(|| info!("hello"));
    let server = log.bodies("server.log");
    assert!(server[0].starts_with("[WARN] log files cannot be written here directory="), "{server:?}");
    assert_eq!(server[1..], ["[INFO] hello"]);
}

#[test]
fn without_any_directory_standard_output_says_why() {
    let (reader, writer) = pipe();
    let log = Log::start(|options| {
        let occupied = options.directory.join("occupied");
        fs::write(&occupied, "a file where a directory should be").unwrap();
        (options.directory, options.fallback_directory) = (occupied.clone(), occupied);
        options.stdout = Some(writer);
    });
    log.log(|| info!("hello"));
    let lines: Vec<_> = BufReader::new(reader).lines().take(3).map(|line| body(&line.unwrap())).collect();
    assert_eq!(lines.iter().filter(|line| line.contains("cannot be written here")).count(), 2);
    assert_eq!(lines[2], "[INFO] hello");
}

#[test]
fn a_missing_data_directory_is_made() {
    let log = Log::start(|options| options.directory = options.directory.join("var/superchat"));
    log.log(|| info!("hello"));
    assert_eq!(log.bodies("var/superchat/server.log"), ["[INFO] hello"]);
    let mode = fs::metadata(log.path("var/superchat")).unwrap().permissions().mode();
    assert_eq!(mode & 0o727, 0o700, "{mode:o}");
}

#[test]
fn renamed_files_are_left_alone_after_reopening() {
    let log = Log::start(|_| ());
    log.log(|| error!("one"));
    for name in ["server.log", "errors.log"] {
        fs::rename(log.path(name), log.path(&format!("{name}.1"))).unwrap();
    }
    log.log(|| error!("two"));
    log.handle.reopen();
    log.log(|| error!("three"));

    assert_eq!(log.bodies("server.log.1"), ["[ERROR] one", "[ERROR] two"]);
    assert_eq!(log.bodies("server.log"), ["[ERROR] three"]);
    assert_eq!(log.bodies("errors.log"), ["[ERROR] three"], "no second mark");
    log.handle.reopen();
    log.log(|| error!("four"));
    assert_eq!(log.bodies("server.log"), ["[ERROR] three", "[ERROR] four"], "reopening appends");
}

#[test]
fn reopening_in_vain_keeps_the_old_file() {
    let log = Log::start(|_| ());
    fs::rename(log.path("server.log"), log.path("server.log.1")).unwrap();
    fs::create_dir(log.path("server.log")).unwrap();
    log.handle.reopen();
    log.log(|| info!("hello"));
    assert_eq!(log.bodies("server.log.1"), ["[INFO] hello"]);
}

#[test]
fn a_full_disk_loses_lines_but_not_the_log() {
    let directory = TempDir::new().unwrap();
    symlink("/dev/full", directory.path().join("server.log")).unwrap();
    let log = Log::start_in(directory, |_| ());
    log.log(|| {
        info!("one");
        error!("two");
    });
    assert_eq!(log.handle.dropped(Sink::File), 2);
    assert_eq!(log.read("errors.log").lines().nth(1).map(body).unwrap(), "[ERROR] two", "the other file has room");

    fs::remove_file(log.path("server.log")).unwrap();
    log.handle.reopen();
    log.log(|| info!("three"));
    log.log(|| info!("four"));
    let expected = ["[WARN] log lines dropped sink=file count=2", "[INFO] three", "[INFO] four"];
    assert_eq!(log.bodies("server.log"), expected);
    assert_eq!(log.handle.dropped(Sink::File), 2);
}

#[test]
fn standard_output_that_nobody_reads_stops_nothing() {
    let (reader, writer) = pipe();
    let log = Log::start(|options| options.stdout = Some(writer));
    log.flood();
    check_accounted(&log, Sink::File, log.bodies("server.log").into_iter());

    assert!(!log.handle.drain(Sink::Stdout, Duration::ZERO));
    assert!(!log.handle.shutdown(Duration::from_millis(1)), "stopping does not wait for ever");
    let lines = move || flood_accounted(BufReader::new(reader).lines().map_while(Result::ok), Sink::Stdout);
    let (kept, missing) = within_limit(lines);
    assert_eq!(kept + missing, FLOOD_LINES);
    assert!(missing > 0 && missing == log.handle.dropped(Sink::Stdout));
}

#[test]
fn a_journal_that_reads_nothing_stops_nothing() {
    let directory = TempDir::new().unwrap();
    let (journal, path) = journal_in(directory.path());
    let log = Log::start_in(directory, |options| options.journal = Some(path));
    log.flood();
    check_accounted(&log, Sink::File, log.bodies("server.log").into_iter());

    assert!(!log.handle.drain(Sink::Journal, Duration::ZERO));
    let messages = std::iter::from_fn(|| Some(message(&receive(&journal)).to_owned()));
    assert!(check_accounted(&log, Sink::Journal, messages) > 0);
}

#[test]
fn standard_output_whose_reader_is_gone_is_counted() {
    let (reader, writer) = pipe();
    drop(reader);
    let log = Log::start(|options| options.stdout = Some(writer));
    log.log(|| info!("hello"));
    assert!(log.handle.shutdown(LIMIT));
    assert_eq!((log.handle.dropped(Sink::Stdout), log.handle.dropped(Sink::File)), (1, 0));
}

#[test]
fn a_restarted_journal_gets_what_follows_and_hears_what_it_missed() {
    let directory = TempDir::new().unwrap();
    let (journal, path) = journal_in(directory.path());
    let log = Log::start_in(directory, |options| options.journal = Some(path.clone()));
    log.log(|| info!("one"));
    assert_eq!(message(&receive(&journal)), "one");

    drop(journal);
    fs::remove_file(&path).unwrap();
    log.log(|| info!("two"));
    assert!(log.handle.drain(Sink::Journal, LIMIT));
    assert_eq!(log.handle.dropped(Sink::Journal), 1);

    let (journal, _) = journal_in(log.directory.path());
    log.log(|| info!("three"));
    assert_eq!(message(&receive(&journal)), "log lines dropped sink=journal count=1");
    assert_eq!(message(&receive(&journal)), "three");
}

#[test]
fn journal_entries_carry_place_and_context() {
    let directory = TempDir::new().unwrap();
    let (journal, path) = journal_in(directory.path());
    let log = Log::start_in(directory, |options| options.journal = Some(path));
    let line = line!() + 3;
    log.log(|| {
        let _session = info_span!("session", session = 5, remote = "192.0.2.7:5000").entered();
        error!(request = 9, user = "bob", "POST_MESSAGE failed");
    });
    let entry = receive(&journal);
    let (before, after) = entry.split_once("SUPERCHAT_TIMESTAMP=").expect("a time");
    let (time, after) = after.split_once('\n').expect("a time");
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    assert_eq!(
        before,
        format!(
            "MESSAGE=POST_MESSAGE failed session=5 request=9 user=bob remote=192.0.2.7:5000\nPRIORITY=3\n\
             SYSLOG_IDENTIFIER=scd\nTARGET=log\nCODE_FILE=tests/log.rs\nCODE_LINE={line}\n"
        )
    );
    assert_eq!(
        after,
        "SUPERCHAT_SESSION=5\nSUPERCHAT_REQUEST=9\nSUPERCHAT_USER=bob\nSUPERCHAT_REMOTE=192.0.2.7:5000\n"
    );
}

/// What arrives on a standard output that is the journal's stream.
fn printed_into_journal_stream(journal: Option<PathBuf>) -> String {
    let (mut reader, writer) = pipe();
    let metadata = writer.metadata().expect("a pipe's metadata");
    let log = Log::start(|options| {
        options.journal_stream = Some(format!("{}:{}", metadata.dev(), metadata.ino()));
        (options.stdout, options.journal) = (Some(writer), journal);
    });
    log.log(|| info!("hello"));
    drop(log);
    within_limit(move || {
        let mut printed = String::new();
        reader.read_to_string(&mut printed).expect("text");
        printed
    })
}

#[test]
fn nothing_is_told_to_the_journal_twice() {
    let directory = TempDir::new().unwrap();
    let (journal, path) = journal_in(directory.path());
    assert_eq!(printed_into_journal_stream(Some(path)), "");
    assert_eq!(message(&receive(&journal)), "hello");

    let printed = printed_into_journal_stream(Some(directory.path().join("missing")));
    assert_eq!(body(printed.trim_end()), "[INFO] hello", "without its socket the stream is the way");
}

#[test]
fn json_lines_carry_the_context_of_their_spans() {
    let log = Log::start(|options| options.format = Format::Json);
    log.log(|| {
        let session = info_span!("session", session = 5, remote = %"192.0.2.7:5000", user = tracing::field::Empty);
        session.record("user", "bob");
        session.in_scope(|| {
            let _request = info_span!("request", request = 9).entered();
            info!(target: "superchat::handlers", channel = "general", bytes = 12, "POST_MESSAGE");
        });
    });
    let mut line: serde_json::Value = serde_json::from_str(&log.read("server.log")).unwrap();
    let time = line["timestamp"].take();
    assert!(time.as_str().is_some_and(|time| time.len() == 27 && time.ends_with('Z')), "{time}");
    let expected = serde_json::json!({
        "timestamp": null, "level": "INFO", "target": "superchat::handlers", "message": "POST_MESSAGE",
        "session": 5, "request": 9, "user": "bob", "channel": "general", "remote": "192.0.2.7:5000", "bytes": 12,
    });
    assert_eq!(line, expected);
}

#[test]
fn levels_move_at_run_time() {
    fn events() {
        error!("e");
        warn!("w");
        info!("i");
        debug!("d");
        debug!(target: "superchat::store", "store d");
        trace!(target: "superchat::store", "store t");
    }
    let log = Log::start(|options| options.levels = "warn,superchat::store=debug".parse().unwrap());
    let seen = || {
        let before = log.bodies("server.log").len();
        log.log(events).bodies("server.log").split_off(before).join(" ")
    };
    assert_eq!(seen(), "[ERROR] e [WARN] w [DEBUG] store d");
    assert_eq!(log.with(Logging::raise).to_string(), "info,superchat::store=trace");
    assert_eq!(seen(), "[ERROR] e [WARN] w [INFO] i [DEBUG] store d [TRACE] store t");
    log.with(Logging::lower);
    log.with(Logging::lower);
    assert_eq!(seen(), "[ERROR] e");
    log.with(|handle| handle.set_level("debug".parse().unwrap()));
    assert_eq!(seen(), "[ERROR] e [WARN] w [INFO] i [DEBUG] d [DEBUG] store d");
}

#[test]
fn a_warning_names_its_session_at_level_warn_too() {
    let log = Log::start(|options| options.levels = "warn".parse().unwrap());
    log.log(|| info_span!("session", session = 5).in_scope(|| warn!("slow")));
    assert_eq!(log.bodies("server.log"), ["[WARN] slow session=5"]);
}

#[test]
fn a_client_cannot_forge_a_line() {
    let log = Log::start(|_| ());
    let nickname = "eve\n2025/10/08 14:30:15.123456 [INFO] Admin root banned user \u{1b}[2J";
    log.log(|| info!(session = 5, user = nickname, "Session {} set nickname: {nickname}", 5));
    let escaped = r"eve\n2025/10/08 14:30:15.123456 [INFO] Admin root banned user \u{1b}[2J";
    let expected = format!("[INFO] Session 5 set nickname: {escaped} session=5 user=\"{escaped}\"");
    assert_eq!(log.bodies("server.log"), [expected]);
}

#[test]
fn the_process_has_one_log() {
    let directory = TempDir::new().unwrap();
    let options = || {
        let mut options = LogOptions::new(directory.path(), directory.path());
        (options.stdout, options.journal, options.log_ip) = (None, None, LogIp::Truncated);
        options
    };
    let logging = log::init(options()).unwrap();
    info!(remote = %log::peer("192.0.2.7".parse().unwrap()), "Connection from somewhere");
    assert!(logging.shutdown(LIMIT));
    let server = fs::read_to_string(directory.path().join("server.log")).unwrap();
    assert_eq!(body(server.trim_end()), "[INFO] Connection from somewhere remote=192.0.2.0");
    assert!(Sink::ALL.into_iter().all(|sink| log::dropped(sink) == 0));
    assert!(matches!(log::init(options()), Err(LogError::Running)));
}
