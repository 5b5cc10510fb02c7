//! One connection as frames, by whichever way in: what came, decoded, and when nothing does.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};
use socket2::{Domain, Socket, Type};
use superchat::wire::ServerMessage;
use superchat::wire::frame::{self, Frame};
use superchat::wire::json::{encode_line, from_hex, to_hex};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use super::browser::Browser;
use super::clock;

/// Fields of a message by name.
pub type Fields = Map<String, Value>;

/// A frame from the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// The published name of its type.
    pub name: String,
    pub fields: Fields,
    /// The payload travelled compressed.
    pub compressed: bool,
    /// Bytes of payload after decompression.
    pub payload_bytes: usize,
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, shorten(&Value::Object(self.fields.clone()).to_string()))
    }
}

/// Long texts make a failure unreadable; their beginning tells which one it was.
pub fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 600;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// What reading from a connection can bring.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    Frame(Received),
    /// The server ended the connection.
    Closed,
    /// Nothing whole came in the time allowed.
    Silence,
    /// Bytes that are no message of the protocol.
    Broken(String),
}

/// A connection and the bytes of it that are no whole frame yet.
#[derive(Debug)]
pub struct Link {
    carrier: Carrier,
    bytes: Vec<u8>,
}

/// What carries the bytes.
#[derive(Debug)]
enum Carrier {
    Tcp(TcpStream),
    Web(Box<WebSocket<TcpStream>>),
    /// Standard input and output of OpenSSH's client.
    Ssh {
        stream: UnixStream,
        client: Child,
    },
}

impl Drop for Carrier {
    fn drop(&mut self) {
        if let Self::Ssh { client, .. } = self {
            // It may have ended with its session.
            let _already_gone = client.kill();
            let _status = client.wait();
        }
    }
}

impl Link {
    fn over(carrier: Carrier) -> Self {
        Self { carrier, bytes: Vec::new() }
    }

    /// # Errors
    /// As [`TcpStream::connect`].
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::of(TcpStream::connect(address)?)
    }

    /// A connection that is there, whoever opened it.
    ///
    /// # Errors
    /// When it is lost already.
    pub fn of(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::over(Carrier::Tcp(stream)))
    }

    /// From an address of our choice, which must be one of this machine's.
    ///
    /// # Errors
    /// As [`TcpStream::connect`].
    pub fn connect_from(from: IpAddr, address: SocketAddr) -> io::Result<Self> {
        Ok(Self::over(Carrier::Tcp(stream_from(from, address)?)))
    }

    /// The same over WebSocket.
    ///
    /// # Errors
    /// When it is refused.
    pub fn connect_web_from(from: IpAddr, address: SocketAddr) -> io::Result<Self> {
        Self::upgrade(stream_from(from, address)?, address)
    }

    /// Upgrades a connection to the public HTTP port.
    ///
    /// # Errors
    /// When it is refused.
    pub fn connect_web(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Self::upgrade(stream, address)
    }

    fn upgrade(stream: TcpStream, address: SocketAddr) -> io::Result<Self> {
        let (socket, _) = tungstenite::client(format!("ws://{address}/ws"), stream)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self::over(Carrier::Web(Box::new(socket))))
    }

    /// The same from a page in a real browser.
    pub fn connect_browser(browser: &mut Browser, address: SocketAddr) -> Self {
        Self::over(Carrier::Web(Box::new(browser.relay(address))))
    }

    /// Starts OpenSSH's client with a private key; what it complains of goes to its caller's standard error.
    ///
    /// # Panics
    /// Without that client.
    pub fn connect_ssh(address: SocketAddr, user: &str, key: &Path) -> Self {
        Self::through(ssh(address, user, key).arg(address.ip().to_string()))
    }

    /// Starts a program whose standard input and output are the connection.
    ///
    /// # Panics
    /// When it does not start.
    pub fn through(command: &mut Command) -> Self {
        let (stream, clients) = UnixStream::pair().unwrap();
        let clients = OwnedFd::from(clients);
        command.stdin(Stdio::from(clients.try_clone().unwrap())).stdout(Stdio::from(clients));
        let client = command.spawn().unwrap_or_else(|error| panic!("apt-get install openssh-client: {error}"));
        Self::over(Carrier::Ssh { stream, client })
    }

    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.carrier {
            Carrier::Tcp(stream) => stream.write_all(bytes),
            Carrier::Ssh { stream, .. } => stream.write_all(bytes),
            Carrier::Web(socket) => socket.send(Message::Binary(bytes.to_vec().into())).map_err(io_error),
        }
    }

    /// Says that nothing more will be sent; the server's last words can still be read.
    pub fn hang_up(&mut self) {
        // A connection that the server already ended has nothing to shut down.
        let _already_gone = match &mut self.carrier {
            Carrier::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Carrier::Ssh { stream, .. } => stream.shutdown(Shutdown::Write),
            Carrier::Web(socket) => socket.close(None).map_err(io_error),
        };
    }

    /// The next frame, or why there is none within `patience`.
    pub fn next(&mut self, patience: Duration) -> Incoming {
        let start = clock::instant();
        loop {
            if let Some(found) = self.cut() {
                return found;
            }
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Incoming::Silence;
            }
            match self.fill(left) {
                Ok(0) => return Incoming::Closed,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Incoming::Silence;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Incoming::Closed,
            }
        }
    }

    fn fill(&mut self, patience: Duration) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let count = match &mut self.carrier {
            Carrier::Tcp(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.read(&mut chunk)?
            }
            Carrier::Ssh { stream, .. } => {
                stream.set_read_timeout(Some(patience))?;
                stream.read(&mut chunk)?
            }
            Carrier::Web(socket) => {
                socket.get_ref().set_read_timeout(Some(patience))?;
                return self.bytes.write(&next_binary(socket)?);
            }
        };
        self.bytes.extend_from_slice(&chunk[..count]);
        Ok(count)
    }

    fn cut(&mut self) -> Option<Incoming> {
        let (incoming, used) = match Frame::cut(&self.bytes) {
            Ok(None) => return None,
            Ok(Some((frame, rest))) => (decode(frame), self.bytes.len() - rest.len()),
            Err(error) => (Incoming::Broken(format!("{error}: {}", to_hex(&self.bytes))), self.bytes.len()),
        };
        self.bytes.drain(..used);
        Some(incoming)
    }
}

/// OpenSSH's client for a server at `address`, short of further options and the host.
pub fn ssh(address: SocketAddr, user: &str, key: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-F", "none", "-T", "-p", &address.port().to_string(), "-l", user, "-i"]).arg(key);
    for option in [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ] {
        command.args(["-o", option]);
    }
    command
}

/// What the next message brings; nothing when there is none any more.
fn next_binary(socket: &mut WebSocket<TcpStream>) -> io::Result<Vec<u8>> {
    loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => return Ok(bytes.to_vec()),
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed) => return Ok(Vec::new()),
            Ok(other) => return Err(io::Error::other(format!("not binary: {other:?}"))),
            Err(error) => return Err(io_error(error)),
        }
    }
}

fn io_error(error: tungstenite::Error) -> io::Error {
    match error {
        tungstenite::Error::Io(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

fn decode(frame: Frame<'_>) -> Incoming {
    let mut scratch = Vec::new();
    let payload = match frame.unpack(&mut scratch) {
        Ok(unpacked) => unpacked.payload,
        Err(error) => return Incoming::Broken(format!("type {:#04x}: {error}", frame.code)),
    };
    let name = ServerMessage::TABLE.iter().find(|(code, _)| *code == frame.code).map(|(_, name)| (*name).to_owned());
    match (name, ServerMessage::read(frame.code, payload)) {
        (Some(name), Ok(message)) => Incoming::Frame(Received {
            name,
            fields: message.describe(),
            compressed: frame.flags & frame::FLAG_COMPRESSED != 0,
            payload_bytes: payload.len(),
        }),
        (_, outcome) => Incoming::Broken(format!("type {:#04x}: {outcome:?}: {}", frame.code, to_hex(payload))),
    }
}

/// A whole frame of the message called `name`, of either direction. With bit 0 of `flags` set it is compressed.
///
/// # Panics
/// When the fields are not those of the message.
pub fn encode(name: &str, version: u8, flags: u8, fields: &Fields) -> Vec<u8> {
    let line = json!({ "type": name, "version": version, "flags": flags, "fields": fields }).to_string();
    let hex = encode_line(&line).unwrap_or_else(|error| panic!("cannot encode {line}: {error}"));
    from_hex(&hex).unwrap_or_else(|error| panic!("{hex}: {error}"))
}

/// A stream from an address of our choice.
///
/// # Errors
/// As [`TcpStream::connect`].
pub fn stream_from(from: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&address.into())?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}
