//! The server under load: a child process with a home of its own, started, measured and stopped here.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};
use superchat::wire::server::ServerConfig;
use tempfile::TempDir;

use super::swarm::{Arrival, Script, Swarm};
use super::{clock, process};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks at a child that starts or stops.
const LOOK_PAUSE: Duration = Duration::from_millis(2);
/// Time in which the memory must not change to count as settled, and how often that is tried.
const SETTLE_PAUSE: Duration = Duration::from_millis(500);
const SETTLE_TRIES: u32 = 10;

/// Settings that every server of a run is started with.
const SETTINGS: &[(&str, &str)] = &[
    ("SUPERCHAT_SERVER_SSH_PORT", "0"),
    ("SUPERCHAT_SERVER_HTTP_PORT", "0"),
    ("SUPERCHAT_ADMIN_METRICS_LISTEN", "off"),
    ("SUPERCHAT_ADMIN_PROFILE_LISTEN", "off"),
];

/// The directory a server keeps everything in; outlives the server, so that another can be started on the same files.
pub(crate) struct Home {
    directory: TempDir,
}

impl Home {
    /// A new directory below `$TMPDIR`, removed at the end.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { directory: TempDir::with_prefix("scd-load-").context("cannot make a temporary directory")? })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("superchat.db")
    }

    /// Starts a server and waits until it greets a client.
    pub(crate) fn start(&self) -> Result<Server> {
        self.start_with(&[])
    }

    /// As [`Self::start`], with settings by the names of their variables.
    pub(crate) fn start_with(&self, settings: &[(&str, &str)]) -> Result<Server> {
        let program = program()?;
        let address = free_address()?;
        let started = clock::now();
        let child = Command::new(&program)
            .args(["--port", &address.port().to_string(), "--db"])
            .arg(self.database())
            .env_clear()
            .envs(SETTINGS.iter().copied())
            .envs(settings.iter().copied())
            .envs(["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"].map(|name| (name, self.path())))
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(File::create(self.path().join("stdout"))?)
            .stderr(File::create(self.path().join("stderr"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Server { child, address, ready_after: Duration::ZERO };
        server.await_greeting().with_context(|| format!("the server said: {}", self.last_words()))?;
        server.ready_after = started.elapsed();
        Ok(server)
    }

    fn last_words(&self) -> String {
        let text = fs::read(self.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned()
    }
}

/// `$SCD`, else the binary beside the directory this benchmark was built into.
fn program() -> Result<PathBuf> {
    let program = match std::env::var_os("SCD") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.ancestors().nth(2).context("no target directory")?.join("scd"),
    };
    ensure!(program.is_file(), "{} is missing: build it with cargo build --release --bin scd", program.display());
    Ok(program)
}

/// A port that no address of this machine uses, as the server binds it on all of them. Nothing listens on it here.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
    let bound = socket.local_addr()?.as_socket().context("a socket without an address")?;
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())))
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From the start of the process to its first greeting.
    pub(crate) ready_after: Duration,
}

impl Server {
    fn await_greeting(&mut self) -> Result<()> {
        let ends = clock::now() + START_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status} instead of listening");
            }
            let mut swarm = Swarm::new()?;
            match swarm.connect(self.address, 1) {
                Ok(_) => return swarm.run(&mut Greeting { seen: false }, START_LIMIT),
                Err(error) if clock::now() >= ends => return Err(error),
                Err(_) => std::thread::sleep(LOOK_PAUSE),
            }
        }
    }

    /// CPU time spent so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        process::cpu(self.child.id())
    }

    /// CPU time spent so far by threads whose names begin with `name`.
    pub(crate) fn cpu_of_threads(&self, name: &str) -> Result<Duration> {
        process::cpu_of_threads(self.child.id(), name)
    }

    /// Whether CPU samples are taken.
    pub(crate) fn is_profiled(&self) -> Result<bool> {
        Ok(process::timers(self.child.id())? > 0)
    }

    /// Resident bytes of its own.
    pub(crate) fn anonymous_bytes(&self) -> Result<u64> {
        process::anonymous_bytes(self.child.id())
    }

    /// Resident bytes of its own once two looks in a row agree, or after the last try.
    pub(crate) fn settled_bytes(&self) -> Result<u64> {
        let mut bytes = self.anonymous_bytes()?;
        for _ in 0..SETTLE_TRIES {
            std::thread::sleep(SETTLE_PAUSE);
            let now = self.anonymous_bytes()?;
            if now == bytes {
                break;
            }
            bytes = now;
        }
        Ok(bytes)
    }

    /// Asks the server to stop and waits for it.
    ///
    /// # Errors
    /// When it does not stop in time or reports failure.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "the server stopped with {status}");
        Ok(())
    }

    /// Ends the server without a chance to save anything.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait().map(|_| ())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("no process")?;
        kill_process(pid, signal).context("cannot signal the server")
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let ends = clock::now() + STOP_LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(clock::now() < ends, "the server did not stop within {STOP_LIMIT:?}");
            std::thread::sleep(LOOK_PAUSE);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a child that has already ended and been waited for.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits for SERVER_CONFIG.
struct Greeting {
    seen: bool,
}

impl Script for Greeting {
    fn arrived(&mut self, arrival: &Arrival<'_>, _out: &mut Vec<u8>) -> Result<()> {
        ensure!(arrival.frame.code == ServerConfig::CODE, "the server greets with {:#04x}", arrival.frame.code);
        self.seen = true;
        Ok(())
    }

    fn done(&self) -> bool {
        self.seen
    }
}
