//! A server of the test's own: the real binary as a child process, on a free port, in a directory that goes with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::Client;
use super::clock;
use super::link::{Incoming, Link};

const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Of what the server waits for others before it says so.
const LINE_LIMIT: Duration = Duration::from_secs(30);

/// What a server is started with: its configuration file, further flags, environment.
#[derive(Debug, Clone)]
pub struct Settings {
    program: PathBuf,
    sections: BTreeMap<String, BTreeMap<String, Value>>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Settings {
    /// Everything beside the chat port is off, so that any number of servers run side by side.
    pub fn new() -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_scd"));
        Self { program, sections: BTreeMap::new(), arguments: Vec::new(), environment: Vec::new() }
            .set("server", "ssh_port", 0)
            .set("server", "http_port", 0)
            .set("admin", "metrics_listen", "off")
            .set("admin", "profile_listen", "off")
            .set("discovery", "allow_private_servers", true)
    }

    /// Sets `key` of `[section]` (BEHAVIOUR.md 9.2) to a number, text, bool or list.
    #[must_use]
    pub fn set(mut self, section: &str, key: &str, value: impl Into<Value>) -> Self {
        self.sections.entry(section.into()).or_default().insert(key.into(), value.into());
        self
    }

    /// These nicknames are admins.
    #[must_use]
    pub fn admins(self, nicknames: &[&str]) -> Self {
        self.set("server", "admin_users", json!(nicknames))
    }

    /// Another binary than the one that was built for the tests.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// A further flag of the command line.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// A variable of the environment, which is empty otherwise.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// JSON's numbers, texts, bools and lists are TOML's too.
    fn to_toml(&self) -> String {
        self.sections.iter().fold(String::new(), |mut text, (section, keys)| {
            // Writing to a String cannot fail.
            let _infallible = writeln!(text, "[{section}]");
            for (key, value) in keys {
                let _infallible = writeln!(text, "{key} = {value}");
            }
            text
        })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

/// A running server. Dropping it kills it; a test that fails shows its output.
#[derive(Debug)]
pub struct Server {
    directory: TempDir,
    settings: Settings,
    port: u16,
    /// Held for the server, as systemd does.
    socket: Option<TcpListener>,
    child: Option<Child>,
}

impl Server {
    /// Starts `scd` with an empty database and waits until it serves.
    ///
    /// # Panics
    /// With the server's output when it does not come up.
    pub fn start(settings: Settings) -> Self {
        Self::start_on(settings, |_| ())
    }

    /// As [`Self::start`], on the database that `make` puts at the path it is given.
    pub fn start_on(settings: Settings, make: impl FnOnce(&Path)) -> Self {
        let directory = TempDir::with_prefix("scd-").unwrap();
        let mut server = Self { directory, settings, port: free_port(), socket: None, child: None };
        make(&server.database());
        server.resume();
        server
    }

    /// As [`Self::start`], with a listening socket of ours that outlives each server and is handed over as `chat`.
    pub fn start_on_our_socket(settings: Settings) -> Self {
        let directory = TempDir::with_prefix("scd-").unwrap();
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut server = Self { directory, settings, port, socket: Some(socket), child: None };
        server.resume();
        server
    }

    /// Starts the server again, on the same data and port, after [`Self::stop`] or [`Self::kill9`].
    ///
    /// # Panics
    /// With the server's output when it does not come up, or when it still runs.
    pub fn resume(&mut self) {
        assert!(self.child.is_none(), "the server still runs");
        self.child = Some(self.spawn());
        let ready =
            clock::poll(START_LIMIT, || match self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                Some(status) => Some(Err(status)),
                None => self.answers().then_some(Ok(())),
            });
        match ready {
            Some(Ok(())) => {}
            Some(Err(status)) => panic!("the server ended at once, {status}"),
            None => panic!("the server did not serve within {START_LIMIT:?}"),
        }
    }

    /// Other settings for the next [`Self::resume`].
    pub fn reconfigure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Other settings in the file of the running server, for the next reload.
    pub fn rewrite(&mut self, settings: Settings) {
        self.settings = settings;
        self.write_config();
    }

    /// What [`Self::rewrite`] leaves behind, but text that is no configuration.
    pub fn break_config(&self, text: &str) {
        fs::write(self.config(), text).unwrap();
    }

    /// Asks the server to stop (SIGTERM), waits for its end and returns the exit code, `None` after a signal.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(&mut self) -> Option<i32> {
        self.ask_to_stop();
        self.wait().code()
    }

    /// Sends SIGTERM and returns at once, for tests that watch the goodbyes.
    pub fn ask_to_stop(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Sends any signal.
    pub fn signal(&self, number: libc::c_int) {
        signal(libc::pid_t::try_from(self.pid()).unwrap(), number);
    }

    /// Waits for the end of a server that was asked to stop.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the server does not run");
        let status = clock::poll(STOP_LIMIT, || child.try_wait().unwrap());
        let status = status.unwrap_or_else(|| panic!("the server did not stop within {STOP_LIMIT:?}"));
        self.child = None;
        status
    }

    /// Ends the server with SIGKILL: what it acknowledged must have been durable.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Process id of the running server.
    ///
    /// # Panics
    /// When none runs.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server does not run").id()
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// A new connection that has read its SERVER_CONFIG.
    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// A new connection that carries a nickname.
    pub fn client_named(&self, nickname: &str) -> Client {
        Client::named(self.address(), nickname)
    }

    /// HOME of the server; everything it writes is below.
    pub fn home(&self) -> &Path {
        self.directory.path()
    }

    pub fn database(&self) -> PathBuf {
        self.home().join("superchat.db")
    }

    /// What the server printed so far, stdout and stderr, all starts.
    pub fn output(&self) -> String {
        fs::read(self.home().join("output"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the server has said this: what it logs comes a little after what it does.
    pub fn await_line(&self, line: &str) {
        clock::poll(LINE_LIMIT, || self.output().contains(line).then_some(()))
            .unwrap_or_else(|| panic!("no line `{line}` in\n{}", self.output()));
    }

    fn config(&self) -> PathBuf {
        self.home().join("config.toml")
    }

    fn write_config(&self) {
        fs::write(self.config(), self.settings.to_toml()).unwrap();
    }

    /// The program and what it inherits: its descriptor 3 and the variables that announce it are what systemd gives.
    fn program(&self) -> Command {
        const HANDED_OVER: &str =
            r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=chat exec "$0" "$@""#;
        let scd = &self.settings.program;
        let Some(socket) = &self.socket else {
            let mut command = Command::new(scd);
            command.stdin(Stdio::null());
            return command;
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", HANDED_OVER]).arg(scd).stdin(OwnedFd::from(socket.try_clone().unwrap()));
        command
    }

    fn spawn(&self) -> Child {
        self.write_config();
        let output = File::options().create(true).append(true).open(self.home().join("output")).unwrap();
        let mut command = self.program();
        command.env_clear().current_dir(self.home());
        command.env("RUST_BACKTRACE", "1").env("HOME", self.home()).env("XDG_DATA_HOME", self.home().join("data"));
        command.envs(self.settings.environment.iter().map(|(name, value)| (name, value)));
        command
            .args(["--port", &self.port.to_string()])
            .arg("--db")
            .arg(self.database())
            .arg("--config")
            .arg(self.config());
        command.args(&self.settings.arguments);
        command.stdout(output.try_clone().unwrap()).stderr(output);
        command.spawn().unwrap()
    }

    /// The port accepts and the server has spoken first.
    fn answers(&self) -> bool {
        let Ok(mut link) = Link::connect(self.address()) else { return false };
        matches!(link.next(START_LIMIT), Incoming::Frame(frame) if frame.name == "SERVER_CONFIG")
    }
}

impl Drop for Server {
    #[expect(clippy::print_stderr, reason = "the test runner shows it with the failure")]
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("---- output of the server\n{}----", self.output());
        }
    }
}

/// A port nobody listens on, below those the system gives to outgoing connections, so that none of them takes it.
pub fn free_port() -> u16 {
    const FIRST: u16 = 15_000;
    const COUNT: u16 = 17_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run at the same time start at different places.
    let start = u16::try_from(u64::from(std::process::id()) * 101 % u64::from(COUNT)).unwrap();
    let candidates =
        std::iter::repeat_with(|| FIRST + start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT);
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    candidates.take(usize::from(COUNT)).find(free).expect("no free port")
}

#[expect(
    unsafe_code,
    reason = "the standard library can only kill a child; kill(2) with our own child's id touches no memory"
)]
fn signal(pid: libc::pid_t, number: libc::c_int) {
    // SAFETY: no pointers; the id is that of a child not waited for yet, so it cannot belong to another process.
    let result = unsafe { libc::kill(pid, number) };
    assert_eq!(result, 0, "signal {number} to {pid}");
}
