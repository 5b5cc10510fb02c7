//! Any bytes at the wire: nothing panics, memory stays in proportion, and what was understood is understood the same way
//! after it was written again.

use superchat::wire::codec::Writer;
use superchat::wire::frame::{self, Compression, Frame, LENGTH_MAX};
use superchat::wire::json::{self, JsonError, to_hex};
use superchat::wire::{ClientMessage, ServerMessage, WireError};

/// Cuts and unpacks everything that is there.
pub fn frame(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((frame, behind))) = Frame::cut(rest) {
        let used = &rest[..rest.len() - behind.len()];
        assert_eq!(used.len(), frame::bytes_needed(rest));
        assert!(!matches!(Frame::cut(&used[..used.len() - 1]), Ok(Some(_))), "a frame without its last byte");
        assert_eq!(written(frame, frame.payload, Compression::Never), used);
        check_unpacking(frame);
        rest = behind;
    }
    if let Ok(None) = Frame::cut(rest) {
        assert!(frame::bytes_needed(rest) > rest.len(), "a whole frame was not cut");
    }
}

fn written(frame: Frame<'_>, payload: &[u8], compression: Compression) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_payload(&mut out, frame.version, frame.code, frame.flags, payload, compression).unwrap();
    out
}

fn check_unpacking(frame: Frame<'_>) {
    let mut scratch = Vec::new();
    let unpacked = frame.unpack(&mut scratch).map(|unpacked| unpacked.payload.to_vec());
    assert!(scratch.capacity() <= frame.payload.len().saturating_mul(255).clamp(8, LENGTH_MAX as usize));
    let Ok(payload) = unpacked else { return };
    if frame.flags & frame::FLAG_COMPRESSED == 0 {
        assert_eq!(payload, frame.payload);
    }
    let packed = written(frame, &payload, Compression::Always);
    let (again, _) = Frame::cut(&packed).unwrap().unwrap();
    assert_eq!(again.unpack(&mut Vec::new()).unwrap().payload, payload);
}

/// A message code in one byte, a payload in the others.
macro_rules! message_targets {
    ($($(#[$note:meta])* $target:ident $All:ident;)+) => {$(
        $(#[$note])*
        pub fn $target(bytes: &[u8]) {
            let Some((place, payload)) = bytes.split_first() else { return };
            let (code, name) = $All::TABLE[usize::from(*place) % $All::TABLE.len()];
            let Ok(message) = $All::read(code, payload) else { return };
            assert_eq!(message.code(), code);

            let mut out = Vec::new();
            let mut writer = Writer::new(&mut out);
            message.write(&mut writer);
            writer.finish().unwrap();
            assert!(out.len() <= payload.len(), "{name} grew");
            assert_eq!($All::read(code, &out).unwrap(), message);

            let mut parsed = Vec::new();
            let mut writer = Writer::new(&mut parsed);
            assert_eq!($All::parse(name, &message.describe(), &mut writer).unwrap().unwrap(), code);
            writer.finish().unwrap();
            assert_eq!($All::read(code, &parsed).unwrap().describe(), message.describe());
        }
    )+};
}
message_targets! {
    /// Everything a client may say.
    client_message ClientMessage;
    /// Everything the server may say.
    server_message ServerMessage;
}

/// Frames to JSON and back, and JSON that no frame ever was.
pub fn json(bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(line) if line.starts_with('{') => line_to_frame(line),
        _ => frame_to_line(bytes),
    }
}

fn line_to_frame(line: &str) {
    let Ok(hex) = json::encode_line(line) else { return };
    let decoded = json::decode_line(&hex).unwrap();
    assert!(decoded.get("error").is_none(), "{line} became {decoded}");
    frame_to_line(&json::from_hex(&hex).unwrap());
}

fn frame_to_line(bytes: &[u8]) {
    let decoded = json::decode_line(&to_hex(bytes)).unwrap();
    if decoded.get("error").is_some() {
        return;
    }
    match json::encode_line(&decoded.to_string()) {
        Ok(hex) => assert_eq!(json::decode_line(&hex).unwrap(), decoded),
        // A payload that only fits its frame compressed.
        Err(JsonError::Wire(WireError::TooLong)) => {}
        Err(error) => panic!("{error}: {decoded}"),
    }
}
