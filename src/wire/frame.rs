//! Frames: bytes to frames, messages to bytes (WIRE.md 2 and 3). Does no I/O.
//!
//! ```text
//! | length u32 | version u8 | type u8 | flags u8 | payload, length - 3 bytes |
//! ```

use super::codec::{Wire, Writer};
use super::errors::{FrameError, WireError};
use super::server::ServerMessage;

/// Version byte of every frame we send.
pub const VERSION: u8 = 2;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 7;
/// Smallest value of the length field: an empty payload.
pub const LENGTH_MIN: u32 = 3;
/// Largest value of the length field.
pub const LENGTH_MAX: u32 = 1_048_576;
/// Largest payload before compression: what an uncompressed frame can carry.
pub const PAYLOAD_BYTES_MAX: usize = LENGTH_MAX as usize - 3;
/// Payloads from this size on are compressed for peers that read it.
pub const COMPRESSION_THRESHOLD: usize = 512;
/// Flag bit 0: the payload is compressed.
pub const FLAG_COMPRESSED: u8 = 0x01;

/// LZ4 stores at most 255 bytes per input byte, so a larger claim is a lie and needs no memory to find out.
const LZ4_RATIO_MAX: usize = 255;

/// One whole frame, borrowed from the bytes it was cut from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub version: u8,
    pub code: u8,
    pub flags: u8,
    /// As it stands on the wire, possibly compressed.
    pub payload: &'a [u8],
}

/// A payload ready to be read as a message.
#[derive(Debug, PartialEq, Eq)]
pub struct Unpacked<'a> {
    /// The frame's flags, without the compression bit once it has been undone.
    pub flags: u8,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Cuts the first frame off `bytes` and returns it with the rest; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`FrameError`] as soon as the length field is in and out of range.
    pub fn cut(bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, FrameError> {
        let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        match length {
            ..LENGTH_MIN => return Err(FrameError::TooShort(length)),
            LENGTH_MIN..=LENGTH_MAX => {}
            _ => return Err(FrameError::TooLong(length)),
        }
        let Some((body, rest)) = rest.split_at_checked(length as usize) else { return Ok(None) };
        let [version, code, flags, payload @ ..] = body else { return Err(FrameError::TooShort(length)) };
        Ok(Some((Self { version: *version, code: *code, flags: *flags, payload }, rest)))
    }

    /// Undoes compression, into `scratch`, whose memory is reused.
    ///
    /// # Errors
    /// [`FrameError`] when the block is not what it declares; nothing is allocated for a size that cannot be true.
    pub fn unpack(self, scratch: &'a mut Vec<u8>) -> Result<Unpacked<'a>, FrameError> {
        if self.flags & FLAG_COMPRESSED == 0 || self.payload.is_empty() {
            return Ok(Unpacked { flags: self.flags, payload: self.payload });
        }
        decompress(self.payload, scratch)?;
        Ok(Unpacked { flags: self.flags & !FLAG_COMPRESSED, payload: scratch })
    }
}

/// Bytes from the start of `bytes` that the frame there needs in all, as far as can be told: 4 until the length is in.
#[must_use]
pub fn bytes_needed(bytes: &[u8]) -> usize {
    match bytes.first_chunk::<4>() {
        Some(length) => 4 + (u32::from_be_bytes(*length).min(LENGTH_MAX) as usize),
        None => 4,
    }
}

fn decompress(compressed: &[u8], scratch: &mut Vec<u8>) -> Result<(), FrameError> {
    let (declared, block) = compressed.split_first_chunk::<4>().ok_or(FrameError::CompressedTooShort)?;
    let declared = u32::from_be_bytes(*declared);
    if declared > LENGTH_MAX {
        return Err(FrameError::DeclaredTooLarge(declared));
    }
    let size = declared as usize;
    scratch.clear();
    if size == 0 && matches!(block, [] | [0]) {
        return Ok(());
    }
    if size > block.len().saturating_mul(LZ4_RATIO_MAX) {
        return Err(FrameError::Decompression);
    }
    scratch.resize(size, 0);
    match lz4_flex::block::decompress_into(block, scratch) {
        Ok(written) if written == size => Ok(()),
        _ => Err(FrameError::Decompression),
    }
}

/// What a receiver is known to read (WIRE.md 3): only a peer that announced exactly version 2 gets compressed frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PeerVersion {
    #[default]
    Unknown,
    Announced(u8),
}

impl PeerVersion {
    /// The first non-zero version byte of a connection decides, later ones are ignored.
    #[must_use]
    pub fn learn(self, version: u8) -> Self {
        match self {
            Self::Unknown if version != 0 => Self::Announced(version),
            known => known,
        }
    }

    #[must_use]
    pub fn compression(self) -> Compression {
        if self == Self::Announced(2) { Compression::WhenSmaller } else { Compression::Never }
    }
}

/// When to compress a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    Never,
    /// From [`COMPRESSION_THRESHOLD`] on, and only when the result is smaller.
    WhenSmaller,
    /// Whatever the size: for tools that reproduce a frame.
    Always,
}

/// Appends a whole frame. On an error nothing is appended.
///
/// # Errors
/// [`WireError::TooLong`] when a text does not fit its field or the message its frame.
pub fn write(out: &mut Vec<u8>, message: &ServerMessage<'_>, compression: Compression) -> Result<(), WireError> {
    encode(out, message.code(), compression, |writer| message.write(writer))
}

/// Appends a frame of any direction from one declared message.
///
/// # Errors
/// As [`write()`].
pub fn write_message<'m>(out: &mut Vec<u8>, code: u8, message: &impl Wire<'m>) -> Result<(), WireError> {
    encode(out, code, Compression::Never, |writer| message.write(writer))
}

fn encode(
    out: &mut Vec<u8>,
    code: u8,
    compression: Compression,
    write: impl FnOnce(&mut Writer<'_>),
) -> Result<(), WireError> {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, VERSION, code, 0]);
    let mut writer = Writer::new(out);
    write(&mut writer);
    let finished = writer.finish().and_then(|()| seal(out, start, compression));
    if finished.is_err() {
        out.truncate(start);
    }
    finished
}

/// Compresses the payload behind the header at `start` if that is wanted, then fills in the length.
fn seal(out: &mut Vec<u8>, start: usize, compression: Compression) -> Result<(), WireError> {
    let payload_start = start + HEADER_BYTES;
    let payload_bytes = out.len() - payload_start;
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(WireError::TooLong);
    }
    if compression == Compression::WhenSmaller
        && payload_bytes >= COMPRESSION_THRESHOLD
        && let Some(compressed) = compress(&out[payload_start..]).filter(|compressed| compressed.len() < payload_bytes)
    {
        out.truncate(payload_start);
        out.extend_from_slice(&compressed);
        out[start + 6] |= FLAG_COMPRESSED;
    }
    let length = u32::try_from(out.len() - start - 4).map_err(|_| WireError::TooLong)?;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// The declared size, then one raw LZ4 block; `None` for a payload too large to declare.
fn compress(payload: &[u8]) -> Option<Vec<u8>> {
    let declared = u32::try_from(payload.len()).ok()?;
    let mut compressed = vec![0; 4 + lz4_flex::block::get_maximum_output_size(payload.len())];
    compressed[..4].copy_from_slice(&declared.to_be_bytes());
    let written = lz4_flex::block::compress_into(payload, &mut compressed[4..]).ok()?;
    compressed.truncate(4 + written);
    Some(compressed)
}

/// Appends a frame around a payload that is already encoded; for tools.
///
/// # Errors
/// [`WireError::TooLong`] when the payload does not fit a frame.
pub fn write_payload(
    out: &mut Vec<u8>,
    version: u8,
    code: u8,
    flags: u8,
    payload: &[u8],
    compression: Compression,
) -> Result<(), WireError> {
    let start = out.len();
    let always = (compression == Compression::Always).then(|| compress(payload)).flatten();
    let flags = if always.is_some() { flags | FLAG_COMPRESSED } else { flags };
    out.extend_from_slice(&[0, 0, 0, 0, version, code, flags]);
    out.extend_from_slice(always.as_deref().unwrap_or(payload));
    seal(out, start, if always.is_some() { Compression::Never } else { compression })
        .inspect_err(|_| out.truncate(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ChannelId, MessageId};
    use crate::wire::server::{Error, NewMessage};

    fn error_of(length: usize) -> Vec<u8> {
        let text = vec![b'm'; length];
        let mut out = Vec::new();
        write(&mut out, &Error { error_code: 1, message: &text }.into(), Compression::WhenSmaller).unwrap();
        out
    }

    #[test]
    fn compression_starts_at_512_bytes_of_payload() {
        assert_eq!(error_of(512 - 4 - 1)[6], 0);
        assert_eq!(error_of(512 - 4)[6], FLAG_COMPRESSED);
    }

    #[test]
    fn too_large_a_message_leaves_no_trace() {
        let content = vec![0; 65_535];
        let entry = NewMessage {
            message_id: MessageId(1),
            channel_id: ChannelId(1),
            subchannel_id: None,
            parent_id: None,
            author_user_id: None,
            author_nickname: b"",
            content: &content,
            created_at: 0,
            edited_at: None,
            reply_count: 0,
        };
        let mut out = vec![7];
        assert!(write(&mut out, &entry.clone().into(), Compression::Never).is_ok());
        out.truncate(1);
        let longer = vec![0; 65_536];
        assert_eq!(
            write(&mut out, &NewMessage { content: &longer, ..entry }.into(), Compression::Never),
            Err(WireError::TooLong)
        );
        assert_eq!(out, [7]);
    }

    #[test]
    fn absurd_declared_size_is_refused_before_memory_is_taken() {
        let mut scratch = Vec::new();
        let payload = [0, 0x10, 0, 0, 0x1f, b'a', 1, 0];
        let frame = Frame { version: 2, code: 1, flags: FLAG_COMPRESSED, payload: &payload };
        assert_eq!(frame.unpack(&mut scratch), Err(FrameError::Decompression));
        assert_eq!(scratch.capacity(), 0);
    }
}
