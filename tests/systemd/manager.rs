//! A service manager as the server sees it: a socket that takes what it is told.

use std::collections::BTreeMap;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{Settings, clock};

/// Longer than the slowest of what is waited for; only a failing test waits it out.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One message: assignments by name.
pub type Told = BTreeMap<String, String>;

pub struct Manager {
    socket: UnixDatagram,
    name: String,
    _directory: Option<TempDir>,
}

impl Manager {
    /// Listens in the file system.
    pub fn at_path() -> Self {
        let directory = TempDir::with_prefix("notify-").unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, name: path.to_str().unwrap().to_owned(), _directory: Some(directory) }
    }

    /// Listens at an abstract address.
    pub fn abstract_one() -> Self {
        let name = format!("scd-test-{}-{}", std::process::id(), rand::random::<u64>());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Self { socket: UnixDatagram::bind_addr(&address).unwrap(), name: format!("@{name}"), _directory: None }
    }

    /// Settings of a server that this one manages.
    pub fn settings(&self) -> Settings {
        Settings::new().environment("NOTIFY_SOCKET", &self.name)
    }

    /// The next message, if one comes in time.
    pub fn hears(&self, limit: Duration) -> Option<Told> {
        self.socket.set_read_timeout(Some(limit.max(Duration::from_millis(1)))).unwrap();
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(count) => Some(parsed(std::str::from_utf8(&bytes[..count]).unwrap())),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for a message with the assignment `name`, whatever comes before it.
    ///
    /// # Panics
    /// When none comes.
    pub fn expect(&self, name: &str) -> Told {
        self.expect_where(name, |told| told.contains_key(name))
    }

    /// Waits for a message that pleases `wanted`.
    pub fn expect_where(&self, what: &str, wanted: impl Fn(&Told) -> bool) -> Told {
        let (start, mut before) = (clock::instant(), Vec::new());
        while let Some(told) = self.hears(PATIENCE.saturating_sub(start.elapsed())) {
            if wanted(&told) {
                return told;
            }
            before.push(told);
        }
        panic!("never told: {what}; but {before:?}")
    }

    /// Takes everything that waits.
    pub fn forget(&self) {
        while self.hears(Duration::ZERO).is_some() {}
    }
}

fn parsed(message: &str) -> Told {
    let assignment = |line: &str| {
        let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("no assignment: {line:?}"));
        (name.to_owned(), value.to_owned())
    };
    message.lines().map(assignment).collect()
}

/// A command for a program of systemd's or beside it.
///
/// # Panics
/// When it is not installed, with what to install.
pub fn tool(program: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|place| place.join(program)).find(|path| path.exists());
    let path =
        found.unwrap_or_else(|| panic!("{program} is missing: apt-get install --no-install-recommends {package}"));
    Command::new(path)
}
