//! First inputs, made from the protocol's test vectors.

use std::path::Path;

use serde_json::{Value, json};
use superchat::wire::frame::Frame;
use superchat::wire::json::from_hex;
use superchat::wire::{ClientMessage, ServerMessage};

const VECTORS: &str = if cfg!(test) { "tests/data/vectors" } else { "../data/vectors" };

/// Steps of the session target: a frame, all work, half a second.
const FRAME: u8 = 0;
const WORK_AND_TIME: [u8; 4] = [4, 255, 5, 50];
/// A frame of a session seed has its length in one byte.
const PAYLOAD_BYTES_MAX: usize = 255;

fn entries() -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(VECTORS);
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let read = |path: &std::path::PathBuf| serde_json::from_slice::<Vec<Value>>(&std::fs::read(path).unwrap()).unwrap();
    files.iter().flat_map(read).collect()
}

/// Every frame and stream that is written out, malformed ones included.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let hex = |entry: &Value| Some(from_hex(entry["frame_hex"].as_str().or(entry["stream_hex"].as_str())?).unwrap());
    entries().iter().filter_map(hex).collect()
}

/// The type code and payload of every well-formed frame that goes one way.
fn payloads(direction: &str) -> Vec<(u8, Vec<u8>)> {
    let of = |entry: &Value| {
        let bytes = from_hex(entry["frame_hex"].as_str().filter(|_| entry["direction"] == direction)?).unwrap();
        let (frame, _) = Frame::cut(&bytes).ok()??;
        let mut scratch = Vec::new();
        Some((frame.code, frame.unpack(&mut scratch).ok()?.payload.to_vec()))
    };
    entries().iter().filter_map(of).collect()
}

fn placed(direction: &str, table: &[(u8, &str)]) -> Vec<Vec<u8>> {
    let place = |code| table.iter().position(|(known, _)| *known == code).and_then(|place| u8::try_from(place).ok());
    let seed = |(code, payload): (u8, Vec<u8>)| Some([vec![place(code)?], payload].concat());
    payloads(direction).into_iter().filter_map(seed).collect()
}

pub(crate) fn client_messages() -> Vec<Vec<u8>> {
    placed("c2s", ClientMessage::TABLE)
}

pub(crate) fn server_messages() -> Vec<Vec<u8>> {
    placed("s2c", ServerMessage::TABLE)
}

/// Frames, and the JSON lines they stand for.
pub(crate) fn lines() -> Vec<Vec<u8>> {
    let line = |entry: &Value| {
        let line = json!({ "type": entry["type"], "flags": entry["flags"], "fields": entry["fields"] });
        entry["fields"].is_object().then(|| line.to_string().into_bytes())
    };
    let lines = entries().iter().filter_map(line).collect();
    [frames(), lines].concat()
}

/// Conversations: the requests of one file of vectors after the other, as somebody with a name and an account.
pub(crate) fn sessions() -> Vec<Vec<u8>> {
    let frame = |(code, payload): &(u8, Vec<u8>)| {
        let length = u8::try_from(payload.len().min(PAYLOAD_BYTES_MAX)).unwrap();
        [&[FRAME, *code, length], &payload[..usize::from(length)], &WORK_AND_TIME].concat()
    };
    let sign_in = [frame(&(0x02, b"\0\x05admin".to_vec())), frame(&(0x03, [&b"\0\x28"[..], &[b'x'; 40]].concat()))];
    let conversation = |requests: &[(u8, Vec<u8>)]| {
        sign_in.iter().cloned().chain(requests.iter().map(frame)).collect::<Vec<_>>().concat()
    };
    payloads("c2s").chunks(12).map(conversation).collect()
}
