//! The operators' own tools as child processes, and what it takes to talk to them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::clock;

/// Longer than any of them takes to start; only a failing test waits it out.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Which Debian package brings a program.
const PACKAGES: &[(&str, &str)] = &[
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("prometheus-alertmanager", "prometheus-alertmanager"),
    ("prometheus-blackbox-exporter", "prometheus-blackbox-exporter"),
    ("prometheus-node-exporter", "prometheus-node-exporter"),
    ("rsyslogd", "rsyslog"),
    ("logrotate", "logrotate"),
    ("unshare", "util-linux"),
];

/// A command for a program of [`PACKAGES`].
///
/// # Panics
/// When it is not installed, with what to install.
pub fn command(program: &str) -> Command {
    let (_, package) = PACKAGES.iter().find(|(known, _)| *known == program).expect("a program of the table");
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons lie where a user's PATH does not lead.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = places.map(|place| place.join(program)).find(|path| path.exists());
    Command::new(
        found.unwrap_or_else(|| panic!("{program} is missing: apt-get install --no-install-recommends {package}")),
    )
}

/// A running program that ends with the test.
#[derive(Debug)]
pub struct Tool {
    child: Child,
    output: PathBuf,
}

impl Tool {
    /// Starts it with its output in `directory`.
    pub fn start(command: &mut Command, directory: &Path, name: &str) -> Self {
        let output = directory.join(format!("{name}.output"));
        let file = fs::File::create(&output).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), output }
    }

    /// Waits until `path` on `address` answers 200.
    ///
    /// # Panics
    /// With its output when it ends or does not answer.
    pub fn serving(mut self, address: SocketAddr, path: &str) -> Self {
        let answered = clock::poll(PATIENCE, || {
            let ended = self.child.try_wait().unwrap().is_some();
            let answers = get(address, path).is_ok_and(|(status, _)| status == 200);
            (ended || answers).then_some(answers)
        });
        assert_eq!(answered, Some(true), "{}", fs::read_to_string(&self.output).unwrap());
        self
    }
}

impl Drop for Tool {
    #[expect(clippy::print_stderr, reason = "the test runner shows it with the failure")]
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        if std::thread::panicking() {
            eprintln!("---- {}\n{}----", self.output.display(), fs::read_to_string(&self.output).unwrap_or_default());
        }
    }
}

/// An address on loopback whose port nobody listens on, below those that other tests and the system take.
pub fn free_address() -> SocketAddr {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 5_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(u64::from(std::process::id()) * 37 % u64::from(COUNT)).unwrap();
    let ports = std::iter::repeat_with(|| FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT);
    let addresses = ports.take(usize::from(COUNT)).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    addresses.into_iter().find(|address| TcpListener::bind(address).is_ok()).expect("a free port")
}

/// Status and body of a page.
///
/// # Errors
/// When nobody answers in time.
pub fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The older protocol spares us chunks: the answer ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

/// A page of JSON.
pub fn get_json(address: SocketAddr, path: &str) -> Value {
    let (_, body) = get(address, path).unwrap();
    serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
}

/// `text` as a value in a query.
pub fn url_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

/// The kit's directory.
pub fn kit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}

/// A file of the kit.
pub fn kit_file(path: &str) -> String {
    fs::read_to_string(kit().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `text` with each of `changes` made.
///
/// # Panics
/// When one of them has nothing to change: the kit moved on and the test did not.
pub fn changed<T: AsRef<str>>(text: &str, changes: &[(&str, T)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "nothing to replace: {from}");
        text.replace(from, to.as_ref())
    })
}
