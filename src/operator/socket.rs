//! Where the operator's socket is, and opening it: it is there with its mode at once, or not at all.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::Environment;

/// Name of the socket in a directory that the service manager made for the server.
const NAME: &str = "admin.sock";

/// Where the package's unit has its runtime directory.
const RUNTIME_DIRECTORY: &str = "/run/superchat";

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error("another server answers on {}", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is no socket", .0.display())]
    Foreign(PathBuf),
    #[error("cannot open {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Where a server that keeps `database` opens its socket: in the runtime directory that it was given, else beside the
/// database.
#[must_use]
pub fn of_server(environment: &Environment, database: &Path) -> PathBuf {
    match environment.get("RUNTIME_DIRECTORY").and_then(|list| list.to_str()?.split(':').next().map(PathBuf::from)) {
        Some(directory) if directory.is_absolute() => directory.join(NAME),
        _ => beside(database),
    }
}

/// Where the socket of that server may be, the likelier place first. The server says itself whether it is the one meant.
#[must_use]
pub fn candidates(database: &Path) -> [PathBuf; 2] {
    [beside(database), Path::new(RUNTIME_DIRECTORY).join(NAME)]
}

fn beside(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".sock");
    PathBuf::from(path)
}

/// A listening socket with mode 0600. Gone from the file system once dropped.
#[derive(Debug)]
pub struct Bound {
    pub listener: UnixListener,
    path: PathBuf,
    /// By which the file is known to be ours still.
    inode: u64,
    /// The user this process runs as.
    pub owner: u32,
}

impl Bound {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // What cannot be removed is replaced by the next server.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Opens the socket at `path`. One that a dead server left behind is replaced, a live one never, and no other file.
///
/// # Errors
/// [`SocketError`].
pub fn bind(path: &Path) -> Result<Bound, SocketError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::Foreign(path.to_owned())),
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(SocketError::InUse(path.to_owned())),
        _ => {}
    }
    open(path).map_err(|source| SocketError::Io { path: path.to_owned(), source })
}

/// Made where nobody else can reach it, and moved to its place when its mode is right.
fn open(path: &Path) -> io::Result<Bound> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let private = folder.join(format!(".scd-{}", std::process::id()));
    // A crash may have left it behind.
    fs::remove_dir_all(&private).ok();
    DirBuilder::new().mode(0o700).create(&private)?;
    let moved = open_in(&private, path);
    fs::remove_dir_all(&private)?;
    moved
}

fn open_in(private: &Path, path: &Path) -> io::Result<Bound> {
    let fresh = private.join("s");
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    let metadata = fs::symlink_metadata(&fresh)?;
    fs::rename(&fresh, path)?;
    Ok(Bound { listener, path: path.to_owned(), inode: metadata.ino(), owner: metadata.uid() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_is_for_its_owner_alone_and_leaves_nothing_else_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let bound = bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        UnixStream::connect(&path).unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_never() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the dead leave their file");
        let live = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::InUse(_))));
        UnixStream::connect(&path).unwrap();
        // Somebody else's file in its place is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::Foreign(_))));
        drop(live);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_place_that_does_not_exist_or_is_too_long_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(bind(&folder.path().join("no/x.sock")), Err(SocketError::Io { .. })));
        let deep = folder.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        assert!(matches!(bind(&deep.join("x.sock")), Err(SocketError::Io { .. })));
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
    }
}
