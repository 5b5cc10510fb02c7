//! What a session still has to be sent: references to shared bytes, bounded in bytes.
//!
//! Frames of one turn are encoded one behind the other into a [`Chunk`] that all receivers share. Consecutive frames for
//! the same session merge into one [`Segment`], so a batch of broadcasts costs a receiver one comparison each and one
//! contiguous write. Whatever the kernel does not take at once is copied into the session's own spill, so a slow reader
//! never keeps shared bytes alive and its queue is exactly as large as it looks.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::rc::Rc;

use smallvec::SmallVec;

use crate::wire::frame::{self, Compression};
use crate::wire::{ServerMessage, WireError};

/// A chunk is given up to its readers once it holds this much.
const CHUNK_BYTES: usize = 64 * 1024;

/// Buffers handed to one vectored write.
const SLICES_MAX: usize = 64;

/// Frames of one turn, back to back. Only ever appended to while shared.
pub type Chunk = Rc<RefCell<Vec<u8>>>;

/// A run of whole frames in a chunk.
#[derive(Debug, Clone)]
pub struct Segment {
    chunk: Chunk,
    start: u32,
    end: u32,
}

impl Segment {
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.range().len()
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }

    /// Takes in a segment that follows directly; `false` when it does not.
    pub fn extend(&mut self, next: &Self) -> bool {
        let follows = self.end == next.start && Rc::ptr_eq(&self.chunk, &next.chunk);
        if follows {
            self.end = next.end;
        }
        follows
    }
}

/// Which bytes a receiver reads (WIRE.md 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Never compressed.
    Plain,
    /// Compressed where that makes a frame smaller.
    Compact,
}

impl From<Compression> for Class {
    fn from(compression: Compression) -> Self {
        if compression == Compression::Never { Self::Plain } else { Self::Compact }
    }
}

/// Encodes messages into chunks, one per class.
#[derive(Debug, Default)]
pub struct Encoder {
    plain: Chunk,
    compact: Chunk,
    /// Bytes encoded since the last flush.
    fresh: usize,
}

impl Encoder {
    /// Appends one frame to the class's chunk.
    ///
    /// # Errors
    /// [`WireError`] when the message does not fit a frame; nothing was appended.
    pub fn encode(&mut self, class: Class, message: &ServerMessage<'_>) -> Result<Segment, WireError> {
        let (chunk, compression) = match class {
            Class::Plain => (&mut self.plain, Compression::Never),
            Class::Compact => (&mut self.compact, Compression::WhenSmaller),
        };
        if chunk.borrow().len() >= CHUNK_BYTES {
            renew(chunk);
        }
        let mut bytes = chunk.borrow_mut();
        let start = bytes.len();
        frame::write(&mut bytes, message, compression)?;
        let end = bytes.len();
        self.fresh += end - start;
        drop(bytes);
        Ok(Segment { chunk: Rc::clone(chunk), start: position(start), end: position(end) })
    }

    /// Bytes encoded since [`Self::flushed`]: a long batch is flushed in between, so that a healthy reader's queue never
    /// looks like a slow one's.
    #[must_use]
    pub fn fresh_bytes(&self) -> usize {
        self.fresh
    }

    /// Everything was written or spilled: chunks nobody holds are used again.
    pub fn flushed(&mut self) {
        self.fresh = 0;
        for chunk in [&mut self.plain, &mut self.compact] {
            if !chunk.borrow().is_empty() {
                renew(chunk);
            }
        }
    }
}

/// A place in a chunk: chunks end at [`CHUNK_BYTES`] and one frame, far below 4 GiB.
fn position(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

const _: () = assert!(CHUNK_BYTES + (frame::LENGTH_MAX as usize) < u32::MAX as usize);

/// Empties a chunk in place when nobody else holds it and it is of ordinary size, else starts a new one.
fn renew(chunk: &mut Chunk) {
    let alone = Rc::get_mut(chunk).map(RefCell::get_mut).filter(|bytes| bytes.capacity() <= 4 * CHUNK_BYTES);
    match alone {
        Some(bytes) => bytes.clear(),
        None => *chunk = Chunk::default(),
    }
}

/// One message for many receivers, encoded once per class and only when somebody reads that class.
#[derive(Debug)]
pub struct Broadcast<'m> {
    message: ServerMessage<'m>,
    plain: Option<Segment>,
    compact: Option<Segment>,
}

impl<'m> Broadcast<'m> {
    pub fn new(message: impl Into<ServerMessage<'m>>) -> Self {
        Self { message: message.into(), plain: None, compact: None }
    }

    #[must_use]
    pub fn code(&self) -> u8 {
        self.message.code()
    }

    /// The frame as receivers of `class` read it.
    ///
    /// # Errors
    /// [`WireError`] when the message does not fit a frame.
    pub fn segment(&mut self, encoder: &mut Encoder, class: Class) -> Result<&Segment, WireError> {
        let slot = match class {
            Class::Plain => &mut self.plain,
            Class::Compact => &mut self.compact,
        };
        Ok(match slot {
            Some(segment) => segment,
            None => slot.insert(encoder.encode(class, &self.message)?),
        })
    }
}

/// The reader did not take what it was sent in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowConsumer;

/// One session's outbound queue.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Older than all segments: what the kernel refused.
    spill: Option<Box<Spill>>,
    segments: SmallVec<[Segment; 1]>,
}

#[derive(Debug, Default)]
struct Spill {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Bytes the kernel refused so far.
    #[must_use]
    pub fn spilled_bytes(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| spill.bytes.len() - spill.sent)
    }

    /// Bytes queued, offered to the kernel or not.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.spilled_bytes() + self.segments.iter().map(Segment::bytes).sum::<usize>()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spill.is_none() && self.segments.is_empty()
    }

    /// Queues a frame. A reader counts as slow only once the kernel has refused bytes for it.
    ///
    /// # Errors
    /// [`SlowConsumer`] when more than `bytes_max` already wait in front of it.
    pub fn push(&mut self, segment: &Segment, bytes_max: usize) -> Result<(), SlowConsumer> {
        if self.spilled_bytes() > bytes_max {
            return Err(SlowConsumer);
        }
        if !self.segments.last_mut().is_some_and(|last| last.extend(segment)) {
            self.segments.push(segment.clone());
        }
        Ok(())
    }

    /// Offers everything to `write` and keeps what it does not take.
    ///
    /// # Errors
    /// What `write` fails with, `WouldBlock` excepted.
    pub fn flush(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<Flushed> {
        loop {
            if self.is_empty() {
                return Ok(Flushed::All);
            }
            match self.offer(&mut write) {
                Ok(taken) => self.advance(taken),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.spill_segments();
                    return Ok(Flushed::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn offer(&self, write: &mut impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        if let (None, [only]) = (&self.spill, self.segments.as_slice()) {
            return write(&[IoSlice::new(&only.chunk.borrow()[only.range()])]);
        }
        let chunks: SmallVec<[_; 8]> =
            self.segments.iter().take(SLICES_MAX).map(|segment| segment.chunk.borrow()).collect();
        let spilled = self.spill.iter().map(|spill| IoSlice::new(&spill.bytes[spill.sent..]));
        let shared = self.segments.iter().zip(&chunks).map(|(segment, chunk)| IoSlice::new(&chunk[segment.range()]));
        let slices: SmallVec<[_; 8]> = spilled.chain(shared).take(SLICES_MAX).collect();
        write(&slices)
    }

    fn advance(&mut self, mut taken: usize) {
        if let Some(spill) = &mut self.spill {
            let from_spill = taken.min(spill.bytes.len() - spill.sent);
            spill.sent += from_spill;
            taken -= from_spill;
            if spill.sent == spill.bytes.len() {
                self.spill = None;
            }
        }
        let mut whole = 0;
        for segment in &mut self.segments {
            if taken < segment.bytes() {
                segment.start += position(taken);
                break;
            }
            taken -= segment.bytes();
            whole += 1;
        }
        self.segments.drain(..whole);
        if self.segments.is_empty() {
            // An idle session keeps no list.
            self.segments = SmallVec::new();
        }
    }

    /// Copies what is left into the session's own memory.
    fn spill_segments(&mut self) {
        if self.segments.is_empty() {
            return;
        }
        let spill = self.spill.get_or_insert_default();
        if spill.sent > spill.bytes.len() / 2 {
            spill.bytes.drain(..spill.sent);
            spill.sent = 0;
        }
        for segment in self.segments.drain(..) {
            spill.bytes.extend_from_slice(&segment.chunk.borrow()[segment.range()]);
        }
        self.segments = SmallVec::new();
    }
}

/// What a flush achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    All,
    /// The rest waits for the socket to become writable.
    Blocked,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::server::Pong;

    fn pong(value: i64) -> ServerMessage<'static> {
        Pong { client_timestamp: value }.into()
    }

    fn frame(value: i64) -> Vec<u8> {
        let mut out = Vec::new();
        frame::write(&mut out, &pong(value), Compression::Never).unwrap();
        out
    }

    fn flush_at_most(outbox: &mut Outbox, sink: &mut Vec<u8>, mut room: usize) -> Flushed {
        outbox
            .flush(|slices| {
                if room == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let mut taken = 0;
                for slice in slices {
                    let part = &slice[..slice.len().min(room)];
                    sink.extend_from_slice(part);
                    room -= part.len();
                    taken += part.len();
                }
                Ok(taken)
            })
            .unwrap()
    }

    #[test]
    fn consecutive_frames_become_one_write() {
        let (mut encoder, mut outbox) = (Encoder::default(), Outbox::default());
        for value in 0..100 {
            outbox.push(&encoder.encode(Class::Plain, &pong(value)).unwrap(), 0).unwrap();
        }
        let mut writes = 0;
        outbox
            .flush(|slices| {
                writes += 1;
                Ok(slices.iter().map(|slice| slice.len()).sum())
            })
            .unwrap();
        assert_eq!((writes, outbox.is_empty()), (1, true));
    }

    #[test]
    fn bytes_arrive_in_order_however_little_the_kernel_takes() {
        let (mut encoder, mut outbox, mut sink) = (Encoder::default(), Outbox::default(), Vec::new());
        let mut expected = Vec::new();
        for value in 0..200 {
            let class = if value % 3 == 0 { Class::Compact } else { Class::Plain };
            outbox.push(&encoder.encode(class, &pong(value)).unwrap(), usize::MAX).unwrap();
            expected.extend(frame(value));
            flush_at_most(&mut outbox, &mut sink, usize::try_from(value).unwrap() % 29);
            encoder.flushed();
        }
        assert_eq!(flush_at_most(&mut outbox, &mut sink, usize::MAX), Flushed::All);
        assert_eq!(sink, expected);
    }

    #[test]
    fn only_a_reader_whose_kernel_buffer_is_full_is_slow() {
        let (mut encoder, mut outbox) = (Encoder::default(), Outbox::default());
        let segment = encoder.encode(Class::Plain, &pong(1)).unwrap();
        for _ in 0..1000 {
            outbox.push(&segment, 10).unwrap();
        }
        assert_eq!(flush_at_most(&mut outbox, &mut Vec::new(), 5), Flushed::Blocked);
        assert_eq!(outbox.push(&segment, 10), Err(SlowConsumer));
    }

    #[test]
    fn a_stalled_reader_holds_no_shared_bytes() {
        let (mut encoder, mut outbox) = (Encoder::default(), Outbox::default());
        let segment = encoder.encode(Class::Plain, &pong(1)).unwrap();
        let shared = Rc::clone(&segment.chunk);
        outbox.push(&segment, 10).unwrap();
        flush_at_most(&mut outbox, &mut Vec::new(), 0);
        drop((segment, encoder));
        assert_eq!((Rc::strong_count(&shared), outbox.spilled_bytes()), (1, frame(1).len()));
    }
}
