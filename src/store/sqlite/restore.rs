//! Putting a backup in the place of a database.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use super::backup::{BackupError, directory_of, free_name, io_error, sync_directory};
use super::lock::{DatabaseLock, LockError, beside, other_user};
use super::open::OpenError;
use super::snapshot::{Partial, SnapshotError, copy, verify_copy};
use super::survey::{FILES, Look, Survey, Tally};

/// What a database has that had no predecessor to take it from.
const MODE: u32 = 0o640;

/// Why nothing was restored. The database is as it was, unless [`RestoreError::HalfWay`] says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("cannot restore to {}: {source}; stop it first", .path.display())]
    Running { path: PathBuf, source: LockError },
    #[error("cannot restore to {}: another program has it open{}; stop it first", .path.display(),
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("{} is the database itself: name a backup of it", .0.display())]
    Same(PathBuf),
    #[error("there is no directory for {}: make it first, owned by the user the server runs as", .0.display())]
    NoDirectory(PathBuf),
    #[error(transparent)]
    Backup(#[from] SnapshotError),
    #[error("{source}; the database before is {}: give it its old name back", .aside.display())]
    HalfWay { aside: PathBuf, source: BackupError },
}

/// What was done.
#[derive(Debug)]
pub struct Restored {
    /// What is in the database now.
    pub survey: Survey,
    /// Where the database before lies now, with its log beside it; `None` when there was none.
    pub aside: Option<PathBuf>,
}

/// Makes the database at `target` a copy of `backup`: checked before the old one is touched, with the owner and mode of
/// the old one, which is kept as `<target>.replaced-YYYYMMDD-HHMMSS`.
///
/// # Errors
/// See [`RestoreError`].
pub fn restore(backup: &Path, target: &Path, now_ms: i64) -> Result<Restored, RestoreError> {
    let directory = fs::canonicalize(directory_of(target)).map_err(|_| RestoreError::NoDirectory(target.to_owned()))?;
    let named = directory.join(target.file_name().ok_or_else(|| RestoreError::NoDirectory(target.to_owned()))?);
    // A database may be a symbolic link; its lock and its log lie where it leads.
    let target = fs::canonicalize(&named).unwrap_or(named);
    if fs::canonicalize(backup).is_ok_and(|backup| backup == target) {
        return Err(RestoreError::Same(target));
    }
    let _lock = DatabaseLock::take(&target).map_err(|source| RestoreError::Running { path: target.clone(), source })?;
    if let Some(user) = other_user(&target) {
        return Err(RestoreError::InUse { path: target.clone(), pid: user.pid });
    }
    let mut partial = Partial::create(&beside(&target, ".restoring"))?;
    let survey = fill(backup, &partial)?;
    inherit(&partial, &target, &directory).map_err(SnapshotError::from)?;
    let aside = set_aside(&target, now_ms)?;
    let placed = fs::rename(&partial.path, &target).map_err(io_error(&target)).and_then(|()| {
        partial.is_complete = true;
        sync_directory(&target)
    });
    match (placed, aside) {
        (Ok(()), aside) => Ok(Restored { survey, aside }),
        (Err(source), Some(aside)) => Err(RestoreError::HalfWay { aside, source }),
        (Err(source), None) => Err(SnapshotError::from(source).into()),
    }
}

/// Copies the backup, with its log where it has one, and checks the copy.
fn fill(backup: &Path, partial: &Partial) -> Result<Survey, SnapshotError> {
    let look = Look::at(backup)?;
    let expected = copy(look.connection(), backup, partial, true)?.unwrap_or_default();
    let survey = verify_copy(&partial.path, &expected)?;
    if survey.is_empty || survey.tally == Tally::default() {
        return Err(SnapshotError::Open(OpenError::Unrelated(backup.to_owned())));
    }
    Ok(survey)
}

/// Owner and mode are those of the database before, else those that the directory asks for.
fn inherit(partial: &Partial, target: &Path, directory: &Path) -> Result<(), BackupError> {
    let (owner, mode) = match fs::metadata(target) {
        Ok(before) => ((before.uid(), before.gid()), before.mode() & 0o777),
        Err(_) => {
            let above = fs::metadata(directory).map_err(io_error(directory))?;
            ((above.uid(), above.gid()), MODE)
        }
    };
    let ours = partial.file.metadata().map_err(io_error(&partial.path))?;
    if (ours.uid(), ours.gid()) != owner {
        chown(&partial.path, Some(owner.0), Some(owner.1)).map_err(io_error(&partial.path))?;
    }
    partial.file.set_permissions(Permissions::from_mode(mode)).map_err(io_error(&partial.path))?;
    partial.file.sync_all().map_err(io_error(&partial.path))
}

/// Moves the database and its log to a free name. The database goes first: a server that starts in between refuses a log
/// without its database.
fn set_aside(target: &Path, now_ms: i64) -> Result<Option<PathBuf>, RestoreError> {
    let stamp = jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default().strftime("%Y%m%d-%H%M%S");
    let aside = free_name(&beside(target, &format!(".replaced-{stamp}")));
    let mut moved = None;
    for suffix in FILES.into_iter().chain(["-shm"]) {
        match fs::rename(beside(target, suffix), beside(&aside, suffix)) {
            Ok(()) => moved = Some(aside.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(source) => {
                let source = io_error(&beside(target, suffix))(source);
                return Err(RestoreError::HalfWay { aside, source });
            }
        }
    }
    Ok(moved)
}
