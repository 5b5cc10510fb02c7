//! One simulated connection: the client's bytes on their way, a socket of some size, and what the client knows.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use superchat::ids::SessionId;
use superchat::shard::session::SessionKey;
use superchat::wire::frame::{FLAG_COMPRESSED, Frame};

use crate::facts::Facts;
use crate::random::Random;
use crate::request::{Author, Request};
use crate::rule::{Check, Rule, Violation, ensure};
use crate::view::View;

/// How fast a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// The kernel takes whatever comes.
    Eager,
    /// The kernel's buffer is small and emptied a little at a time.
    Slow,
    /// Nobody reads.
    Stalled,
}

/// The kernel's buffer towards the client.
#[derive(Debug)]
pub struct Socket {
    pub pace: Pace,
    pub room: usize,
    pub is_broken: bool,
    /// Accepted and not read by the client.
    unread: usize,
    /// Accepted since the last look.
    taken: Vec<u8>,
    /// The next write is interrupted by a signal.
    interrupted: bool,
}

impl Socket {
    pub fn new(pace: Pace, room: usize) -> Self {
        let room = if pace == Pace::Eager { usize::MAX } else { room };
        Self { pace, room, is_broken: false, unread: 0, taken: Vec::new(), interrupted: false }
    }

    pub fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.is_broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if std::mem::take(&mut self.interrupted) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if self.room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let before = self.taken.len();
        for slice in slices {
            let part = &slice[..slice.len().min(self.room - (self.taken.len() - before))];
            self.taken.extend_from_slice(part);
        }
        let count = self.taken.len() - before;
        if self.pace != Pace::Eager {
            self.room -= count;
            self.unread += count;
        }
        Ok(count)
    }

    /// The client reads some of what is there.
    pub fn drain(&mut self, random: &mut Random) {
        self.interrupted = random.percent(5);
        if self.pace == Pace::Slow && self.unread > 0 {
            let count = 1 + random.below(self.unread);
            self.unread -= count;
            self.room += count;
        }
    }

    /// From now on everything is read at once.
    pub fn hurry(&mut self) {
        self.pace = Pace::Eager;
        self.room = usize::MAX;
    }
}

#[derive(Debug)]
pub struct Link {
    pub host: usize,
    pub key: SessionKey,
    pub view: View,
    pub socket: Socket,
    /// Offered to the socket and not taken: exactly what waits in the session's queue.
    pub rest: Vec<u8>,
    /// Bytes of the client that the server has not read.
    pub upstream: VecDeque<u8>,
    /// Where whole frames end, in bytes since the start.
    frame_ends: VecDeque<usize>,
    sent: usize,
    fed: usize,
    pub last_frame_at: u64,
    /// The client closed its side, or said that it leaves.
    pub has_left: bool,
    /// The client sent what is no frame.
    pub has_raved: bool,
    version: u8,
    author: Author,
}

impl Link {
    pub fn new(session: SessionId, host: usize, key: SessionKey, socket: Socket, version: u8, author: Author) -> Self {
        Self {
            host,
            key,
            view: View::new(session),
            socket,
            rest: Vec::new(),
            upstream: VecDeque::new(),
            frame_ends: VecDeque::new(),
            sent: 0,
            fed: 0,
            last_frame_at: 0,
            has_left: false,
            has_raved: false,
            version,
            author,
        }
    }

    /// Whether the client goes on talking.
    pub fn talks(&self) -> bool {
        !self.has_left && !self.has_raved && !self.socket.is_broken
    }

    /// The client makes up a request and sends it.
    pub fn ask_something(&mut self, random: &mut Random, facts: &Facts) -> Request {
        let request = self.author.next(random, &self.view, facts);
        self.ask(&request);
        request
    }

    pub fn ask(&mut self, request: &Request) {
        let mut bytes = Vec::new();
        request.encode(self.version, &mut bytes);
        self.sent += bytes.len();
        self.upstream.extend(bytes);
        self.view.asked(request);
        match request {
            Request::Goodbye => self.has_left = true,
            Request::Garbage => self.has_raved = true,
            _ => self.frame_ends.push_back(self.sent),
        }
        if request.may_fail_silently() {
            self.ask(&Request::Ping { token: -1 });
        }
    }

    /// The next bytes that the server reads, at most `count`.
    pub fn feed(&mut self, count: usize, now: u64) -> Vec<u8> {
        let count = count.min(self.upstream.len());
        self.fed += count;
        while self.frame_ends.front().is_some_and(|end| *end <= self.fed) {
            self.frame_ends.pop_front();
            self.last_frame_at = now;
        }
        self.upstream.drain(..count).collect()
    }

    /// After a flush: `rest` is what the socket refused. What is new in front of it goes to the view.
    pub fn observe(
        &mut self,
        rest: Vec<u8>,
        bytes_max: usize,
        facts: &mut Facts,
        applied: usize,
    ) -> Result<usize, Violation> {
        let mut stream = std::mem::take(&mut self.socket.taken);
        stream.extend_from_slice(&rest);
        let session = self.view.session;
        ensure!(stream.starts_with(&self.rest), Rule::Wire, "bytes queued for {session} changed before they left");
        let new = &stream[self.rest.len()..];
        let waited = self.rest.len();
        ensure!(
            new.is_empty() || waited <= bytes_max,
            Rule::SlowReader,
            "{} bytes were queued for {session} behind {waited}",
            new.len()
        );
        let count = new.len();
        self.read_frames(new, facts, applied)?;
        self.rest = rest;
        Ok(count)
    }

    fn read_frames(&mut self, mut bytes: &[u8], facts: &mut Facts, applied: usize) -> Check {
        let broken = |what: String| Violation { rule: Rule::Wire, what };
        let mut scratch = Vec::new();
        while !bytes.is_empty() {
            let cut = Frame::cut(bytes).map_err(|error| broken(error.to_string()))?;
            let Some((frame, behind)) = cut else { return Err(broken("half a frame was queued".into())) };
            let may_compress = self.version == 2 || frame.flags & FLAG_COMPRESSED == 0;
            ensure!(may_compress, Rule::Wire, "a version {} client gets a compressed frame", self.version);
            let unpacked = frame.unpack(&mut scratch).map_err(|error| broken(error.to_string()))?;
            self.view.frame(frame.code, &unpacked, facts, applied)?;
            bytes = behind;
        }
        Ok(())
    }
}
