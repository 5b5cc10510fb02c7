//! What the wire codec costs: cutting, reading and writing frames, as a multiple of copying the same bytes.

#[path = "support/clock.rs"]
mod clock;

use std::hint::black_box;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Result, ensure};
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::client::PostMessage;
use superchat::wire::codec::{Bounded, List, Wire};
use superchat::wire::frame::{self, Frame};
use superchat::wire::records::Message;
use superchat::wire::server::{MessageList, NewMessage};
use superchat::wire::{ClientMessage, ServerMessage};

/// Bytes of frames that one pass handles; they stay in the cache, so that work is measured and not memory.
const STREAM_BYTES: usize = 64 * 1024;
/// Time spent on each figure, split into passes of which the fastest counts.
const FIGURE_TIME: Duration = Duration::from_millis(300);
const CONTENT: [u8; 150] = [b'm'; 150];

fn main() -> Result<()> {
    // `cargo bench` passes `--bench`; without it one pass is enough to see that everything still works.
    let time = if std::env::args().any(|argument| argument == "--bench") { FIGURE_TIME } else { Duration::ZERO };
    let mut out = io::stdout().lock();
    writeln!(out, "{:<14} {:>8} {:<8} {:>12} {:>12}", "message", "bytes", "what", "ns per frame", "x of memcpy")?;
    Subject::new("POST_MESSAGE", PostMessage::CODE, &post(), read_client)?.measure(time, &mut out)?;
    Subject::new("NEW_MESSAGE", NewMessage::CODE, &new_message(), read_server)?.measure(time, &mut out)?;
    Subject::new("MESSAGE_LIST", MessageList::CODE, &message_list(), read_server)?.measure(time, &mut out)?;
    Ok(())
}

/// Reads a payload and says whether it was well-formed.
type ReadPayload = fn(&Frame<'_>) -> bool;

fn read_client(frame: &Frame<'_>) -> bool {
    black_box(ClientMessage::read(frame.code, frame.payload)).is_ok()
}

fn read_server(frame: &Frame<'_>) -> bool {
    black_box(ServerMessage::read(frame.code, frame.payload)).is_ok()
}

/// One message, and a stream of frames that carry it.
struct Subject<'m, M> {
    name: &'static str,
    code: u8,
    message: &'m M,
    read: ReadPayload,
    stream: Vec<u8>,
    frames: u32,
}

impl<'w, 'm, M: Wire<'w>> Subject<'m, M> {
    fn new(name: &'static str, code: u8, message: &'m M, read: ReadPayload) -> Result<Self> {
        let (mut stream, mut frames) = (Vec::new(), 0);
        while stream.len() < STREAM_BYTES {
            frame::write_message(&mut stream, code, message)?;
            frames += 1;
        }
        Ok(Self { name, code, message, read, stream, frames })
    }

    fn measure(&self, time: Duration, out: &mut impl io::Write) -> Result<()> {
        let mut copy = Vec::with_capacity(self.stream.len());
        let copying = fastest(time, || {
            copy.clear();
            copy.extend_from_slice(black_box(&self.stream));
            Ok(black_box(copy.len()) == self.stream.len())
        })?;
        let mut written = Vec::with_capacity(self.stream.len());
        let figures = [
            ("cut", fastest(time, || self.pass(|frame| black_box(frame.code) == self.code))?),
            ("cut+read", fastest(time, || self.pass(self.read))?),
            ("write", fastest(time, || self.write_all(&mut written))?),
        ];
        let bytes = self.stream.len() / self.frames as usize;
        for (what, took) in figures {
            let (each, ratio) = (took / self.frames, took.as_secs_f64() / copying.as_secs_f64());
            writeln!(out, "{:<14} {bytes:>8} {what:<8} {:>12} {ratio:>12.2}", self.name, each.as_nanos())?;
        }
        Ok(())
    }

    /// Cuts the stream into frames and gives each to `check`.
    fn pass(&self, check: impl Fn(&Frame<'_>) -> bool) -> Result<bool> {
        let (mut rest, mut frames) = (black_box(self.stream.as_slice()), 0);
        while let Some((frame, behind)) = Frame::cut(rest)? {
            frames += u32::from(check(&frame));
            rest = behind;
        }
        Ok(frames == self.frames && rest.is_empty())
    }

    fn write_all(&self, out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        for _ in 0..self.frames {
            frame::write_message(out, self.code, black_box(self.message))?;
        }
        Ok(black_box(out.len()) == self.stream.len())
    }
}

/// The shortest of the passes that fit into `time`, at least one; the shortest is the one least disturbed.
///
/// # Errors
/// When a pass finds that it did not do what it should.
fn fastest(time: Duration, mut pass: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = clock::now();
    let mut best = Duration::MAX;
    loop {
        let begun = clock::now();
        ensure!(pass()?, "a pass went wrong");
        best = best.min(begun.elapsed());
        if started.elapsed() >= time {
            return Ok(best);
        }
    }
}

fn post() -> PostMessage<'static> {
    PostMessage { channel_id: ChannelId(1), subchannel_id: None, parent_id: None, content: Bounded(&CONTENT) }
}

fn new_message() -> NewMessage<'static> {
    NewMessage {
        message_id: MessageId(1 << 40),
        channel_id: ChannelId(1),
        subchannel_id: None,
        parent_id: None,
        author_user_id: None,
        author_nickname: b"~somebody",
        content: &CONTENT,
        created_at: 1_760_000_000_000,
        edited_at: None,
        reply_count: 0,
    }
}

fn message_list() -> MessageList<'static> {
    let message = Message {
        message_id: MessageId(1 << 40),
        channel_id: ChannelId(1),
        subchannel_id: None,
        parent_id: None,
        author_user_id: None,
        author_nickname: b"~somebody",
        content: &CONTENT,
        created_at: 1_760_000_000_000,
        edited_at: None,
        reply_count: 0,
    };
    let messages = List(vec![message; 50]);
    MessageList { channel_id: ChannelId(1), subchannel_id: None, parent_id: None, messages }
}
