//! Many client connections driven by one thread, cheaply enough to share the machine with the server it measures: one
//! epoll instance, one large read buffer for all, and no memory per connection beyond a frame that is not whole yet.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::{Timespec, epoll};
use socket2::{Domain, Socket, Type};
use superchat::wire::ServerMessage;
use superchat::wire::frame::{Frame, LENGTH_MAX};
use superchat::wire::server::{Disconnect, Error};

use super::clock;

/// Bytes asked for in one read.
const READ_BYTES: usize = 256 * 1024;
/// Connections served per call of the kernel.
const EVENTS_MAX: usize = 1024;
/// Loopback addresses that connections start from, so that ephemeral ports do not run short.
const SOURCE_ADDRESSES: u8 = 8;
/// How long one answer may take before a run is given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// One frame as it came in.
pub(crate) struct Arrival<'a> {
    /// Index of the connection.
    pub(crate) from: usize,
    /// When the bytes were read.
    pub(crate) at: Instant,
    pub(crate) frame: Frame<'a>,
}

/// What a scenario does with what comes in.
pub(crate) trait Script {
    /// Takes a frame; what is appended to `out` goes back on the same connection.
    fn arrived(&mut self, arrival: &Arrival<'_>, out: &mut Vec<u8>) -> Result<()>;

    /// Whether nothing more is waited for.
    fn done(&self) -> bool;

    /// The server ended a connection.
    fn closed(&mut self, from: usize) -> Result<()> {
        bail!("the server closed connection {from}")
    }
}

/// One client connection.
struct Member {
    stream: TcpStream,
    /// The beginning of a frame whose rest has not come yet.
    partial: Vec<u8>,
    /// What the socket did not take yet.
    unsent: Vec<u8>,
    /// Whether epoll reports room to write.
    awaits_room: bool,
}

pub(crate) struct Swarm {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    members: Vec<Option<Member>>,
    scratch: Vec<u8>,
}

impl Swarm {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
            members: Vec::new(),
            scratch: vec![0; LENGTH_MAX as usize + 4 + READ_BYTES],
        })
    }

    /// Opens `count` more connections and returns their indices.
    pub(crate) fn connect(&mut self, address: SocketAddr, count: usize) -> Result<Range<usize>> {
        let first = self.members.len();
        for index in first..first + count {
            let stream = dial(address, index, None).with_context(|| format!("connection {index}"))?;
            stream.set_nonblocking(true)?;
            epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
            let member = Member { stream, partial: Vec::new(), unsent: Vec::new(), awaits_room: false };
            self.members.push(Some(member));
        }
        Ok(first..self.members.len())
    }

    /// Sends on one connection; what the socket does not take follows by itself in [`Self::poll`].
    pub(crate) fn send(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        if let Some(member) = self.members[index].as_mut() {
            member.unsent.extend_from_slice(bytes);
            member.flush(&self.epoll, index)?;
        }
        Ok(())
    }

    /// Sends one request on each of `who` and waits until each has its answer, a frame of type `answer`.
    pub(crate) fn ask_each(
        &mut self,
        who: Range<usize>,
        answer: u8,
        request: impl Fn(usize) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let missing = who.len();
        for index in who {
            self.send(index, &request(index)?)?;
        }
        self.run(&mut Answers { code: answer, missing }, ANSWER_LIMIT)
    }

    /// Serves the connections until `script` is done.
    ///
    /// # Errors
    /// What the script finds wrong, and when it is not done within `limit`.
    pub(crate) fn run(&mut self, script: &mut impl Script, limit: Duration) -> Result<()> {
        let ends = clock::now() + limit;
        while !script.done() {
            let left = ends.saturating_duration_since(clock::now());
            ensure!(!left.is_zero(), "what was waited for did not come within {limit:?}");
            self.poll(script, left)?;
        }
        Ok(())
    }

    /// Waits at most `timeout` for something to come in and hands all of it to `script`.
    pub(crate) fn poll(&mut self, script: &mut impl Script, timeout: Duration) -> Result<()> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let timeout = Timespec::try_from(timeout)?;
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll"),
        }
        for event in &events {
            self.serve(usize::try_from(event.data.u64())?, script)?;
        }
        self.events = events;
        Ok(())
    }

    fn serve(&mut self, index: usize, script: &mut impl Script) -> Result<()> {
        let Some(member) = self.members[index].as_mut() else { return Ok(()) };
        let open = member.receive(&mut self.scratch, index, script)? && member.flush(&self.epoll, index)?;
        if !open {
            self.members[index] = None;
            script.closed(index)?;
        }
        Ok(())
    }
}

impl Member {
    /// Reads once and hands over every frame that is whole; `false` when the connection has ended.
    fn receive(&mut self, scratch: &mut [u8], from: usize, script: &mut impl Script) -> Result<bool> {
        let held = self.partial.len();
        scratch[..held].copy_from_slice(&self.partial);
        let read = match self.stream.read(&mut scratch[held..held + READ_BYTES]) {
            Ok(0) => return Ok(false),
            Ok(read) => read,
            Err(error) if is_pause(error.kind()) => return Ok(true),
            Err(error) if is_end(error.kind()) => return Ok(false),
            Err(error) => return Err(error).context("reading"),
        };
        let at = clock::now();
        let mut rest = &scratch[..held + read];
        while let Some((frame, behind)) = Frame::cut(rest)? {
            refuse_errors(&frame)?;
            script.arrived(&Arrival { from, at, frame }, &mut self.unsent)?;
            rest = behind;
        }
        self.partial.clear();
        self.partial.extend_from_slice(rest);
        Ok(true)
    }

    /// Writes what the socket takes; `false` when the connection has ended.
    fn flush(&mut self, epoll: &OwnedFd, index: usize) -> Result<bool> {
        if !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if is_pause(error.kind()) => {}
                Err(error) if is_end(error.kind()) => return Ok(false),
                Err(error) => return Err(error).context("writing"),
            }
        }
        let awaits_room = !self.unsent.is_empty();
        if awaits_room != self.awaits_room {
            let writing = if awaits_room { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let flags = epoll::EventFlags::IN | writing;
            epoll::modify(epoll, &self.stream, epoll::EventData::new_u64(index as u64), flags)?;
            self.awaits_room = awaits_room;
        }
        Ok(true)
    }
}

/// Counts the answers to one request per connection.
struct Answers {
    code: u8,
    missing: usize,
}

impl Script for Answers {
    fn arrived(&mut self, arrival: &Arrival<'_>, _out: &mut Vec<u8>) -> Result<()> {
        if arrival.frame.code == self.code {
            self.missing = self.missing.checked_sub(1).context("more answers than requests")?;
        }
        Ok(())
    }

    fn done(&self) -> bool {
        self.missing == 0
    }
}

/// Connects, blocking, from a source address that depends on `index`; `receive_buffer_bytes` bounds what the kernel
/// keeps for a client that does not read.
///
/// # Errors
/// Any address that is not loopback: this is a load generator, and nobody else's server is its business.
pub(crate) fn dial(address: SocketAddr, index: usize, receive_buffer_bytes: Option<usize>) -> Result<TcpStream> {
    ensure!(address.ip().is_loopback(), "{address} is not a loopback address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(bytes) = receive_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    let host = 1 + u8::try_from(index % usize::from(SOURCE_ADDRESSES))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0)).into())?;
    socket.connect(&address.into())?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn refuse_errors(frame: &Frame<'_>) -> Result<()> {
    if frame.code != Error::CODE && frame.code != Disconnect::CODE {
        return Ok(());
    }
    match ServerMessage::read(frame.code, frame.payload)? {
        ServerMessage::Error(Error { error_code, message }) => {
            bail!("the server answered ERROR {error_code} {}", String::from_utf8_lossy(message))
        }
        other => bail!("the server sent {other:?}"),
    }
}

fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn is_end(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
}
