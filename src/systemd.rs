//! systemd: the sockets it hands over (sd_listen_fds(3)), and what it is told about the server (sd_notify(3)).
//!
//! Both are a few lines of text. The crates at hand read the process's environment themselves, do not know the sockets'
//! names, or cannot send to an abstract address, so these lines are ours. Without systemd all of it does nothing.

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{self, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use thiserror::Error;
use tracing::{debug, warn};

use crate::clock;
use crate::config::Environment;

/// The first descriptor handed over; the others follow it.
const FIRST_DESCRIPTOR: RawFd = 3;
/// More than any unit of ours has.
const SOCKETS_MAX: usize = 16;

/// What a socket without `FileDescriptorName=` is called: by `systemd-socket-activate`, and by the name of its unit.
const NO_NAME: &str = "unknown";
const NO_NAME_SUFFIX: &str = ".socket";

/// Why the sockets handed over cannot be used.
#[derive(Debug, Error)]
pub enum SocketsError {
    #[error("systemd: LISTEN_FDS is {0}, not a number up to {SOCKETS_MAX}")]
    Count(String),
    #[error("systemd: socket {descriptor} ({name}) cannot be used: {source}")]
    Unusable { descriptor: RawFd, name: String, source: io::Error },
    #[error("systemd: socket {descriptor} ({name}) is no listening TCP socket; see ListenStream= in its .socket unit")]
    NotListening { descriptor: RawFd, name: String },
    #[error(
        "systemd: two sockets are named {0}; put one ListenStream= into its .socket unit (an IPv6 one takes IPv4 too)"
    )]
    Twice(String),
}

/// Listening sockets that outlive this process: whoever holds them for us goes on queueing connections.
#[derive(Debug, Default)]
pub struct Sockets(Vec<(String, TcpListener)>);

impl Sockets {
    /// Takes what the environment says was handed to this process, with the names given. A second call finds nothing.
    ///
    /// # Errors
    /// When one of them is no listening TCP socket, or two have the same name.
    pub fn of(environment: &Environment) -> Result<Self, SocketsError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let text = |name| environment.get(name).and_then(|value| value.to_str());
        let is_ours = text("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(std::process::id());
        let Some(count) = text("LISTEN_FDS").filter(|_| is_ours) else { return Ok(Self::default()) };
        let is_possible = |count: &usize| *count <= SOCKETS_MAX;
        let count = count.parse().ok().filter(is_possible).ok_or_else(|| SocketsError::Count(count.to_owned()))?;
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Ok(Self::default());
        }
        let names = text("LISTEN_FDNAMES").unwrap_or_default().split(':').chain(std::iter::repeat(""));
        let sockets = (FIRST_DESCRIPTOR..).zip(names).take(count);
        let sockets: Vec<_> = sockets.map(|(descriptor, name)| adopt(descriptor, name)).collect::<Result<_, _>>()?;
        let named = |name: &str| !name.is_empty();
        match sockets
            .iter()
            .enumerate()
            .find(|(at, (name, _))| named(name) && sockets[..*at].iter().any(|(other, _)| other == name))
        {
            Some((_, (name, _))) => Err(SocketsError::Twice(name.clone())),
            None => Ok(Self(sockets)),
        }
    }

    /// The socket named `name`, or else one without a name that listens on `port`.
    pub fn take(&mut self, name: &str, port: Option<u16>) -> Option<TcpListener> {
        let on_port = |listener: &TcpListener| listener.local_addr().ok().map(|address| address.port()) == port;
        let named = self.0.iter().position(|(known, _)| known == name);
        let place = named.or_else(|| self.0.iter().position(|(known, listener)| known.is_empty() && on_port(listener)));
        place.map(|place| self.0.swap_remove(place).1)
    }

    /// Name and address of what nobody took: who connects there waits for ever.
    pub fn left(&self) -> impl Iterator<Item = (&str, Option<SocketAddr>)> {
        self.0.iter().map(|(name, listener)| (name.as_str(), listener.local_addr().ok()))
    }
}

/// Takes over one descriptor; a name that says nothing becomes empty.
fn adopt(descriptor: RawFd, name: &str) -> Result<(String, TcpListener), SocketsError> {
    let name = if name == NO_NAME || name.ends_with(NO_NAME_SUFFIX) { String::new() } else { name.to_owned() };
    let unusable = |source| SocketsError::Unusable { descriptor, name: name.clone(), source };
    #[expect(unsafe_code, reason = "a descriptor that an environment variable announces is only a number")]
    // SAFETY: LISTEN_PID says that this process was started with the descriptor for its own use, `Sockets::of` comes here
    // once for each, and the first call makes sure that it is open. F_GETFD touches no memory.
    let owned = unsafe {
        if libc::fcntl(descriptor, libc::F_GETFD) < 0 {
            return Err(unusable(io::Error::last_os_error()));
        }
        OwnedFd::from_raw_fd(descriptor)
    };
    let socket = Socket::from(owned);
    let is_tcp = matches!(socket.local_addr().map(|address| address.domain()), Ok(Domain::IPV4 | Domain::IPV6));
    if !is_tcp || socket.r#type().ok() != Some(Type::STREAM) || !socket.is_listener().unwrap_or(false) {
        return Err(SocketsError::NotListening { descriptor, name });
    }
    socket.set_cloexec(true).map_err(unusable)?;
    Ok((name, socket.into()))
}

/// A service manager that does not read for so long is not waited for.
const SEND_PATIENCE: Duration = Duration::from_secs(1);

/// Tells the service manager how the server is doing; says nothing where nobody listens.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<(UnixDatagram, net::SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Whoever the environment names. A name that cannot be used is a warning: the server serves all the same.
    pub fn of(environment: &Environment) -> Self {
        let Some(name) = environment.get("NOTIFY_SOCKET") else { return Self::default() };
        let opened = manager_address(name.as_encoded_bytes()).and_then(|address| Ok((datagrams()?, address)));
        let manager = opened.inspect_err(|error| warn!(%error, "systemd: cannot use NOTIFY_SOCKET")).ok();
        let watchdog = manager.as_ref().and_then(|_| watchdog_period(environment, std::process::id()));
        Self { manager, watchdog }
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        self.manager.is_some()
    }

    /// How often [`Self::alive`] wants to be said: twice as often as systemd looks; `None` when it does not.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 2)
    }

    /// Clients are served from now on, or again after [`Self::reloading`].
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// Settings are being read again; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::system_monotonic_micros()));
    }

    /// No more clients; what is under way may take up to `limit`.
    pub fn stopping(&self, status: &str, limit: Duration) {
        self.send(&format!("STOPPING=1\nSTATUS={}\n{}", one_line(status), extension(limit)));
    }

    /// Starting or stopping goes on and may take up to `limit` more.
    pub fn extend(&self, limit: Duration) {
        self.send(&extension(limit));
    }

    /// The line that `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// Keeps the watchdog quiet.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, state: &str) {
        let Some((socket, address)) = &self.manager else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            debug!(%error, state, "systemd did not hear");
        }
    }
}

fn extension(limit: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros())
}

/// Assignments are separated by newlines.
fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

/// A path, or an abstract name behind an `@`.
fn manager_address(name: &[u8]) -> io::Result<net::SocketAddr> {
    match name {
        [b'@', name @ ..] => net::SocketAddr::from_abstract_name(name),
        [b'/', ..] => net::SocketAddr::from_pathname(OsStr::from_bytes(name)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor an abstract name")),
    }
}

fn datagrams() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_PATIENCE))?;
    Ok(socket)
}

/// `WATCHDOG_USEC`, unless it is meant for another process.
fn watchdog_period(environment: &Environment, own_pid: u32) -> Option<Duration> {
    let number = |name| environment.get(name)?.to_str()?.parse::<u64>().ok();
    let is_ours = environment.get("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(own_pid.into());
    let micros = number("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 0)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().copied().collect()
    }

    #[test]
    fn sockets_for_another_process_are_left_alone() {
        let pid = std::process::id().to_string();
        for variables in
            [&[][..], &[("LISTEN_FDS", "2")], &[("LISTEN_FDS", "2"), ("LISTEN_PID", "1")], &[("LISTEN_PID", &pid)]]
        {
            assert!(Sockets::of(&environment(variables)).unwrap().0.is_empty(), "{variables:?}");
        }
        for count in ["17", "-1", "many", "99999999999999999999"] {
            let error = Sockets::of(&environment(&[("LISTEN_FDS", count), ("LISTEN_PID", &pid)])).unwrap_err();
            assert_eq!(error.to_string(), format!("systemd: LISTEN_FDS is {count}, not a number up to 16"));
        }
    }

    #[test]
    fn a_socket_is_found_by_name_and_without_one_by_port() {
        let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (chat, ssh, bare) = (listener(), listener(), listener());
        let port = |listener: &TcpListener| Some(listener.local_addr().unwrap().port());
        let (chat_port, ssh_port, bare_port) = (port(&chat), port(&ssh), port(&bare));
        let named = |name: &str, listener| (name.to_owned(), listener);
        let mut sockets = Sockets(vec![named("ssh", ssh), named("chat", chat), named("", bare)]);
        assert!(sockets.take("http", ssh_port).is_none(), "a name is not overruled by a port");
        assert_eq!(port(&sockets.take("chat", bare_port).unwrap()), chat_port);
        assert!(sockets.take("chat", None).is_none());
        assert_eq!(port(&sockets.take("chat", bare_port).unwrap()), bare_port);
        assert_eq!(sockets.left().map(|(name, _)| name).collect::<Vec<_>>(), ["ssh"]);
    }

    #[test]
    fn what_is_no_listening_tcp_socket_is_refused() {
        use std::os::fd::IntoRawFd;
        let refused = |descriptor: OwnedFd| adopt(descriptor.into_raw_fd(), "chat").unwrap_err().to_string();
        let datagrams = UnixDatagram::unbound().unwrap();
        let stream = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        for refusal in [refused(datagrams.into()), refused(stream.into())] {
            assert!(refusal.contains("(chat) is no listening TCP socket"), "{refusal}");
        }
        let closed = adopt(RawFd::MAX, "chat").unwrap_err().to_string();
        assert!(closed.contains("cannot be used"), "{closed}");
    }

    #[test]
    fn the_watchdog_is_fed_by_the_process_it_is_meant_for() {
        for (variables, period) in [
            (&[][..], None),
            (&[("WATCHDOG_USEC", "2000000")], Some(2)),
            (&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "7")], Some(2)),
            (&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "8")], None),
            (&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "x")], None),
            (&[("WATCHDOG_USEC", "0")], None),
            (&[("WATCHDOG_USEC", "soon")], None),
        ] {
            let found = watchdog_period(&environment(variables), 7);
            assert_eq!(found, period.map(Duration::from_secs), "{variables:?}");
        }
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_assignment() {
        assert_eq!(one_line("broken\nREADY=1\r\n"), "broken READY=1  ");
    }

    #[test]
    fn a_manager_that_cannot_be_reached_changes_nothing() {
        for name in ["vsock:2:1234", "relative", "/", "@", &format!("/{}", "x".repeat(200))] {
            let notifier = Notifier::of(&environment(&[("NOTIFY_SOCKET", name), ("WATCHDOG_USEC", "1")]));
            notifier.ready("ok");
        }
        let nobody = Notifier::of(&environment(&[("WATCHDOG_USEC", "1000000")]));
        assert_eq!(nobody.watchdog_interval(), None);
    }
}
