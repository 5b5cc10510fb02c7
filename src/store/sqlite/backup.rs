//! Consistent copies of a live database (BEHAVIOUR.md 8.2, 8.8; D-15).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::lock::beside;

/// How many automatic backups stay beside a database.
pub const AUTOMATIC_BACKUPS_MAX: usize = 5;

/// Whoever can read a backup can read every message.
pub(super) const MODE: u32 = 0o600;

/// Follows the name of a database: when a backup that was asked for was last finished.
const NOTE: &str = ".last-backup";
/// More digits than a time has.
const NOTE_BYTES_MAX: u64 = 32;

/// Why there is no backup. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot write {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot copy the database to {}: {source}", .path.display())]
    Copy { path: PathBuf, source: rusqlite::Error },
    #[error("cannot copy the database to {}: another program is writing to it", .path.display())]
    Busy { path: PathBuf },
}

/// Writes the backup that precedes a migration: `<database>.backup-v<version>-YYYYMMDD-HHMMSS` (UTC), or the same with
/// `-2`, `-3` ... where that name is taken.
///
/// # Errors
/// The copy could not be finished and made durable.
pub fn back_up_automatically(
    from: &Connection,
    database: &Path,
    version: u32,
    now_ms: i64,
) -> Result<PathBuf, BackupError> {
    let stamp = jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default().strftime("%Y%m%d-%H%M%S");
    let target = free_name(&beside(database, &format!(".backup-v{version}-{stamp}")));
    let partial = beside(database, ".backup-partial");
    // The lock of the database is ours, so a file of this name is what a crash left.
    remove_if_present(&partial)?;
    back_up(from, &partial)?;
    fs::rename(&partial, &target).map_err(io_error(&target))?;
    sync_directory(&target)?;
    Ok(target)
}

/// Copies the database behind `from`, with what is only in its `-wal` so far, to the new file `to` (mode 0600), and
/// returns when the copy is on disk. Others may read and, in WAL mode, write the database meanwhile.
///
/// # Errors
/// `to` exists already, or the copy could not be finished.
pub fn back_up(from: &Connection, to: &Path) -> Result<(), BackupError> {
    let file = File::options().write(true).create_new(true).mode(MODE).open(to).map_err(io_error(to))?;
    let outcome = copy(from, to).and_then(|()| file.sync_all().map_err(io_error(to)));
    if outcome.is_err()
        && let Err(error) = fs::remove_file(to)
    {
        tracing::warn!(path = %to.display(), %error, "cannot remove an unfinished backup");
    }
    outcome
}

fn copy(from: &Connection, to: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Copy { path: to.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(to, flags).map_err(failed)?;
    let backup = Backup::new(from, &mut target).map_err(failed)?;
    match backup.step(-1).map_err(failed)? {
        StepResult::Done => Ok(()),
        _ => Err(BackupError::Busy { path: to.to_owned() }),
    }
}

pub(super) fn free_name(wanted: &Path) -> PathBuf {
    let mut name = wanted.to_owned();
    let mut number = 1_u32;
    while fs::symlink_metadata(&name).is_ok() {
        number += 1;
        name = beside(wanted, &format!("-{number}"));
    }
    name
}

pub(super) fn remove_if_present(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error(path)(source)),
        _ => Ok(()),
    }
}

pub(super) fn sync_directory(of: &Path) -> Result<(), BackupError> {
    let directory = directory_of(of);
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error(directory))
}

/// The directory that the name `path` stands in.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes a backup of a file that is still as it was.
pub(super) fn remove_useless(backup: &Path) {
    match fs::remove_file(backup) {
        Ok(()) => tracing::info!("Removed database backup, as nothing was changed: {}", backup.display()),
        Err(error) => tracing::warn!(path = %backup.display(), %error, "cannot remove a backup"),
    }
}

/// Removes automatic backups beyond [`AUTOMATIC_BACKUPS_MAX`], once the change that `newest` precedes is made: attempts that
/// fail take no backup away. Only tidying: what goes wrong here is logged and does not stop the start.
pub(super) fn remove_old(database: &Path, newest: &Path) {
    let mut older = automatic_backups(database).unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the automatic backups");
        Vec::new()
    });
    older.retain(|(_, path)| path != newest);
    older.sort();
    let surplus = (older.len() + 1).saturating_sub(AUTOMATIC_BACKUPS_MAX);
    for (_, path) in older.iter().take(surplus) {
        match fs::remove_file(path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed an old automatic backup"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove an old automatic backup"),
        }
    }
}

/// Notes beside `database` that a backup of it was finished at `now_ms`, so that its server can tell; readable by all,
/// because whoever made the backup need not be the user the server runs as.
///
/// # Errors
/// The note cannot be written.
pub fn record_success(database: &Path, now_ms: i64) -> Result<(), BackupError> {
    let (note, partial) = (beside(database, NOTE), beside(database, ".last-backup-partial"));
    remove_if_present(&partial)?;
    let write = |path: &Path| {
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(path)?;
        file.write_all(format!("{now_ms}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(path, &note)
    };
    write(&partial).map_err(io_error(&note))
}

fn recorded_success(database: &Path) -> Option<i64> {
    let mut text = String::new();
    let file =
        File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(beside(database, NOTE));
    file.ok()?.take(NOTE_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// When the newest backup of `database` was finished, automatic or asked for, in milliseconds since 1970; `None` without
/// any.
#[must_use]
pub fn last_success_ms(database: &Path) -> Option<i64> {
    newest_automatic_ms(database).max(recorded_success(database))
}

fn newest_automatic_ms(database: &Path) -> Option<i64> {
    let finished = |path: &PathBuf| fs::metadata(path).ok()?.modified().ok();
    let newest = automatic_backups(database).ok()?.iter().filter_map(|(_, path)| finished(path)).max()?;
    i64::try_from(newest.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()
}

fn automatic_backups(database: &Path) -> io::Result<Vec<(Age, PathBuf)>> {
    let (Some(directory), Some(name)) = (database.parent(), database.file_name()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        // The existing server names its copies alike. They lack what was in the WAL, and are not ours to remove.
        let is_ours = metadata.is_file() && metadata.permissions().mode() & 0o777 == MODE;
        if let Some(age) = age(name, &entry.file_name()).filter(|_| is_ours) {
            found.push((age, entry.path()));
        }
    }
    Ok(found)
}

/// Sorts backups from oldest to newest: date and time, then the number that made the name free.
type Age = (String, u32);

fn age(database: &OsStr, file: &OsStr) -> Option<Age> {
    let rest = file.as_bytes().strip_prefix(database.as_bytes())?.strip_prefix(b".backup-v")?;
    let mut parts = std::str::from_utf8(rest).ok()?.split('-');
    let (version, date, time) = (parts.next()?, parts.next()?, parts.next()?);
    let number = parts.next().map_or(Some(1), |number| number.parse().ok())?;
    let is_stamp = is_digits(version) && is_digits(date) && is_digits(time) && (date.len(), time.len()) == (8, 6);
    (is_stamp && parts.next().is_none()).then(|| (format!("{date}{time}"), number))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

pub(super) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_automatic_backups_have_an_age() {
        let check = |file: &str| age(OsStr::new("chat.db"), OsStr::new(file));
        assert_eq!(check("chat.db.backup-v13-20260102-030405"), Some(("20260102030405".to_owned(), 1)));
        assert_eq!(check("chat.db.backup-v0-20260102-030405-12"), Some(("20260102030405".to_owned(), 12)));
        for other in [
            "chat.db",
            "chat.db.backup-partial",
            "chat.db.backup-v13-20260102-0304",
            "chat.db.backup-v13-20260102-030405-wal",
            "chat.db.backup-v13-20260102-030405-2-3",
            "chat.db.backup-vX-20260102-030405",
            "other.db.backup-v13-20260102-030405",
        ] {
            assert_eq!(check(other), None, "{other}");
        }
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("taken");
        fs::write(&target, "kept").unwrap();
        let from = Connection::open_in_memory().unwrap();
        assert!(matches!(back_up(&from, &target), Err(BackupError::Io { .. })));
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    }
}
