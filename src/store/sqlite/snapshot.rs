//! Backups that an operator or a timer asks for, of a file that may be in use.
//!
//! A backup is one moment of the database: all of it is read inside one transaction, which in WAL mode keeps nobody from
//! writing. It is copied in small steps with a pause after each, so that the disk stays free for commits.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::backup::{BackupError, MODE, directory_of, io_error, remove_if_present, sync_directory};
use super::lock::beside;
use super::open::{self, OpenError};
use super::survey::{Depth, Survey, Tally, survey_connection};

/// Pages copied in one step: 1 MiB with pages of the usual size.
const STEP_PAGES: i32 = 256;
/// After each step: at most 200 MiB are copied in a second.
const STEP_PAUSE: Duration = Duration::from_millis(5);
/// Steps between two moments at which the copy is brought to disk: what gathers until then holds up the commits of the
/// database when it is written out.
const STEPS_PER_SYNC: u32 = 4;

/// Why there is no backup. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("{} exists already: name another file, or a directory", .0.display())]
    Exists(PathBuf),
    #[error("another backup is being written to {}", .0.display())]
    Running(PathBuf),
    #[error("the copy is not what was copied: {0}")]
    Different(String),
}

/// Where a backup goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name once it is complete.
    pub path: PathBuf,
    /// Its name before. What lies there and is nobody's is what a crash left.
    partial: PathBuf,
}

impl Target {
    /// The file `path`, or, where that is a directory, `superchat-YYYYMMDDTHHMMSSZ.db` in it.
    #[must_use]
    pub fn new(path: &Path, now_ms: i64) -> Self {
        if !path.is_dir() {
            return Self { path: path.to_owned(), partial: beside(path, ".partial") };
        }
        let stamp = jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default().strftime("%Y%m%dT%H%M%SZ");
        // One name for all, so that what a crash leaves is found by the next one.
        Self { path: path.join(format!("superchat-{stamp}.db")), partial: path.join("superchat.partial") }
    }
}

/// A backup that was made.
#[derive(Debug)]
pub struct Snapshot {
    /// Bytes of the file.
    pub bytes: u64,
    /// What was counted in it, when that was asked for.
    pub verified: Option<Tally>,
}

/// Copies the database at `source` to `target` (mode 0600), and returns when the copy and its name are on disk. To
/// verify, the copy is restored into a temporary file beside it, checked, and counted against what it was made from.
///
/// # Errors
/// See [`SnapshotError`].
pub fn take(source: &Path, target: &Target, verify: bool) -> Result<Snapshot, SnapshotError> {
    if fs::symlink_metadata(&target.path).is_ok() {
        return Err(SnapshotError::Exists(target.path.clone()));
    }
    let mut partial = Partial::create(&target.partial)?;
    let from = connect(source)?;
    let expected = copy(&from, source, &partial, verify)?;
    let verified = expected.map(|expected| verify_copy(&partial.path, &expected)).transpose()?;
    let bytes = partial.file.metadata().map_err(io_error(&partial.path))?.len();
    fs::rename(&partial.path, &target.path).map_err(io_error(&target.path))?;
    partial.is_complete = true;
    sync_directory(&target.path)?;
    Ok(Snapshot { bytes, verified: verified.map(|survey| survey.tally) })
}

/// Removes the oldest files of `directory` that are named as [`Target::new`] names them, until `keep` are left; returns
/// what was removed.
///
/// # Errors
/// The directory cannot be read or changed.
pub fn remove_old(directory: &Path, keep: usize) -> Result<Vec<PathBuf>, BackupError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error(directory))? {
        let entry = entry.map_err(io_error(directory))?;
        // Neither directories nor symbolic links are of our making.
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && is_snapshot(&entry.file_name()) {
            found.push(entry.path());
        }
    }
    found.sort();
    found.truncate(found.len().saturating_sub(keep));
    found.iter().try_for_each(|path| remove_if_present(path))?;
    Ok(found)
}

fn is_snapshot(name: &OsStr) -> bool {
    let stamp = name.to_str().and_then(|name| name.strip_prefix("superchat-")?.strip_suffix(".db"));
    let shape =
        |stamp: &str| stamp.bytes().map(|byte| if byte.is_ascii_digit() { b'0' } else { byte }).collect::<Vec<_>>();
    stamp.is_some_and(|stamp| shape(stamp) == b"00000000T000000Z")
}

/// An unfinished backup: ours as long as we hold its lock, and removed unless it was completed.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) is_complete: bool,
}

impl Partial {
    pub(super) fn create(path: &Path) -> Result<Self, SnapshotError> {
        if let Ok(left) = File::open(path) {
            match left.try_lock() {
                Err(TryLockError::WouldBlock) => return Err(SnapshotError::Running(path.to_owned())),
                _ => remove_if_present(path)?,
            }
        }
        let file = File::options().read(true).write(true).create_new(true).mode(MODE).open(path);
        let file = file.map_err(io_error(path))?;
        let partial = Self { path: path.to_owned(), file, is_complete: false };
        partial.file.try_lock().map_err(|error| io_error(path)(io::Error::from(error)))?;
        Ok(partial)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_complete {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove an unfinished backup");
        }
    }
}

/// A connection for reading that leaves the log to whoever owns the file.
pub(super) fn connect(path: &Path) -> Result<Connection, OpenError> {
    // The name of a missing file would otherwise get SQLite's words for it.
    File::open(path).map_err(open::io_error("read", path))?;
    let conn = open::open_reader(path)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(open::sqlite_error(path))?;
    open::inspect(&conn, path)?;
    Ok(conn)
}

/// Copies what one transaction sees; and counts it, if asked to.
pub(super) fn copy(
    from: &Connection,
    source: &Path,
    partial: &Partial,
    tally: bool,
) -> Result<Option<Tally>, SnapshotError> {
    let unreadable = open::sqlite_error(source);
    let view = from.unchecked_transaction().map_err(&unreadable)?;
    copy_pages(&view, partial)?;
    let tally = tally.then(|| Tally::of(&view)).transpose().map_err(&unreadable)?;
    partial.file.sync_all().map_err(io_error(&partial.path))?;
    Ok(tally)
}

fn copy_pages(from: &Connection, partial: &Partial) -> Result<(), BackupError> {
    let failed = |source| BackupError::Copy { path: partial.path.clone(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(&partial.path, flags).map_err(failed)?;
    // Nobody needs half a copy, so nothing has to be taken back; bringing it to disk is done here.
    target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF").map_err(failed)?;
    // A step keeps the view of an open transaction; without one, each write by others would begin the copy anew.
    from.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(failed)?;
    let backup = Backup::new(from, &mut target).map_err(failed)?;
    for step in 1_u32.. {
        match backup.step(STEP_PAGES).map_err(failed)? {
            StepResult::Done => break,
            StepResult::More => (),
            _ => return Err(BackupError::Busy { path: partial.path.clone() }),
        }
        if step.is_multiple_of(STEPS_PER_SYNC) {
            partial.file.sync_data().map_err(io_error(&partial.path))?;
        }
        std::thread::sleep(STEP_PAUSE);
    }
    Ok(())
}

/// Restores the copy at `path` into a temporary file, and looks at that as a server would.
pub(super) fn verify_copy(path: &Path, expected: &Tally) -> Result<Survey, SnapshotError> {
    let directory = directory_of(path);
    let apart = tempfile::Builder::new().prefix(".scd-verify-").tempdir_in(directory).map_err(io_error(directory))?;
    let restored = apart.path().join("restored.db");
    fs::copy(path, &restored).map_err(io_error(&restored))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(&restored, flags).map_err(open::sqlite_error(&restored))?;
    let survey = survey_connection(&conn, &restored, Depth::Full, 0)?;
    let mut faults = survey.faults.clone();
    faults.extend(expected.differences(&survey.tally));
    if faults.is_empty() { Ok(survey) } else { Err(SnapshotError::Different(faults.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_backups_of_our_naming_are_ever_removed() {
        let directory = tempfile::tempdir().unwrap();
        let kept = [
            "superchat-20260103T000000Z.db",
            "superchat-20260102T000000Z.db",
            "superchat-20260101T000000Z.db.gz",
            "superchat-2026010T000000Z.db",
            "superchat-20260101T000000.db",
            "superchat.db",
            "other-20260101T000000Z.db",
        ];
        for name in kept.into_iter().chain(["superchat-20260101T000000Z.db", "superchat-20251231T235959Z.db"]) {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let removed = remove_old(directory.path(), 2).unwrap();
        let names: Vec<_> = removed.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["superchat-20251231T235959Z.db", "superchat-20260101T000000Z.db"]);
        assert!(kept.iter().all(|name| directory.path().join(name).exists()));
        assert_eq!(remove_old(directory.path(), 2).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_a_crash_left_is_replaced_and_what_another_writes_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("superchat.partial");
        fs::write(&path, "left").unwrap();
        let partial = Partial::create(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert!(matches!(Partial::create(&path), Err(SnapshotError::Running(_))));
        drop(partial);
        assert!(!path.exists());
    }
}
