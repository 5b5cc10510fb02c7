//! One server per database file.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Held as long as a server works on a database; the file `<db>.lock` names the holder's process id.
///
/// The lock is a file beside the database, because a lock on the database itself would keep out the operator's
/// `sqlite3` as well. The operating system releases it when the process dies, whatever is left on disk. Must be dropped
/// after the connections it protects.
#[derive(Debug)]
pub struct DatabaseLock {
    path: PathBuf,
    file: File,
}

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("it is in use by another server{}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Held { pid: Option<u32> },
    #[error("cannot lock {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl DatabaseLock {
    /// Takes the lock of the database at `database`, or fails at once.
    ///
    /// # Errors
    /// [`LockError::Held`] while another process, or another caller in this one, holds it.
    pub fn take(database: &Path) -> Result<Self, LockError> {
        let path = beside(database, ".lock");
        loop {
            match try_take(&path) {
                Ok(Some(file)) => return Ok(Self { path, file }.signed()),
                Ok(None) => (),
                Err(TryLockError::WouldBlock) => return Err(LockError::Held { pid: holder(&path) }),
                Err(TryLockError::Error(source)) => return Err(LockError::Io { path, source }),
            }
        }
    }

    /// Whether a server holds the database at `database`. Makes and changes nothing.
    #[must_use]
    pub fn is_held(database: &Path) -> bool {
        let lock = File::open(beside(database, ".lock"));
        lock.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// The process id that the lock of the database at `database` is signed with.
    #[must_use]
    pub fn holder(database: &Path) -> Option<u32> {
        holder(&beside(database, ".lock"))
    }

    fn signed(self) -> Self {
        let signature = format!("{}\n", std::process::id());
        let written = self.file.set_len(0).and_then(|()| (&self.file).write_all(signature.as_bytes()));
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "cannot write the process id into the lock file");
        }
        self
    }
}

impl Drop for DatabaseLock {
    /// Removes the file while it is still locked; whoever opened it in the meantime notices in `try_take`.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the lock file");
        }
    }
}

/// Another program that has a database open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherUser {
    /// `None` where the system does not tell, across containers for instance.
    pub pid: Option<u32>,
}

/// Another program that has the SQLite database at `path` open: each keeps a lock on it while it works with a write-ahead
/// log, or is inside a transaction without one. `None` as well when the file cannot be asked.
///
/// Closing the file gives up the locks this process has on it, so it must not be called with a connection open.
#[must_use]
pub fn other_user(path: &Path) -> Option<OtherUser> {
    /// Where SQLite locks: 512 bytes from its pending byte on.
    const LOCKED_BYTES: (libc::off_t, libc::off_t) = (0x4000_0000, 512);
    let file = File::open(path).ok()?;
    #[expect(unsafe_code, reason = "fcntl with F_GETLK reads and writes only the struct it is given")]
    // SAFETY: all zeros is a valid flock; `lock` outlives the call, and the descriptor is open.
    let (outcome, lock) = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        // A question for a lock to write is answered with any lock that stands against it.
        lock.l_type = libc::c_short::try_from(libc::F_WRLCK).ok()?;
        lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).ok()?;
        (lock.l_start, lock.l_len) = LOCKED_BYTES;
        (libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut lock), lock)
    };
    let is_locked = outcome == 0 && i32::from(lock.l_type) != libc::F_UNLCK;
    is_locked.then(|| OtherUser { pid: u32::try_from(lock.l_pid).ok().filter(|pid| *pid != 0) })
}

/// `path` with `suffix` added to its file name, as SQLite names its side files.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// None: the holder removed the file between our opening and our locking it, so the lock we got protects nothing.
fn try_take(path: &Path) -> Result<Option<File>, TryLockError> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(TryLockError::Error)?;
    file.try_lock()?;
    let is_current = is_at(&file, path).map_err(TryLockError::Error)?;
    Ok(is_current.then_some(file))
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn holder(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
