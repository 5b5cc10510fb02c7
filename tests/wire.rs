//! The protocol's test vectors against the wire tables, and properties that hold for any bytes.
//!
//! The vectors are copied into `tests/data`; where the originals are at hand, the copy is compared with them.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use superchat::wire::frame::{self, Compression, Frame, PeerVersion};
use superchat::wire::json::{decode_line, encode_line, from_hex, to_hex};
use superchat::wire::{ClientMessage, FrameError, ServerMessage, WireError};

fn data(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(kind)
}

fn entries(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn files(prefix: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(data("vectors")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix));
    files.sort();
    assert!(!files.is_empty(), "no vector files start with {prefix}");
    files
}

fn well_formed() -> Vec<Value> {
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        !name.starts_with("malformed_") && name != "stream.json"
    };
    files("").iter().filter(|path| named(path)).flat_map(|path| entries(path)).collect()
}

/// The vectors' abbreviation for long runs, written out.
fn expand(value: &Value) -> Value {
    match value {
        Value::Object(fields) => match (fields.get("repeat"), fields.get("count")) {
            (Some(Value::String(text)), Some(count)) => json!(text.repeat(count.as_u64().unwrap() as usize)),
            _ => Value::Object(fields.iter().map(|(name, value)| (name.clone(), expand(value))).collect()),
        },
        Value::Array(items) => Value::Array(items.iter().map(expand).collect()),
        other => other.clone(),
    }
}

fn read(direction: &str, code: u8, payload: &[u8]) -> Result<Map<String, Value>, WireError> {
    match direction {
        "c2s" => ClientMessage::read(code, payload).map(|message| message.describe()),
        "s2c" => ServerMessage::read(code, payload).map(|message| message.describe()),
        other => panic!("unknown direction {other}"),
    }
}

fn input(entry: &Value) -> Vec<u8> {
    if let Some(hex) = entry["frame_hex"].as_str() {
        return from_hex(hex).unwrap();
    }
    let part = |part: &Value| match part["hex"].as_str() {
        Some(hex) => from_hex(hex).unwrap(),
        None => {
            from_hex(part["repeat_hex"].as_str().unwrap()).unwrap().repeat(part["count"].as_u64().unwrap() as usize)
        }
    };
    entry["frame_parts"].as_array().unwrap().iter().flat_map(part).collect()
}

/// Decodes one vector and says where it failed, if it did.
fn decode(entry: &Value, bytes: &[u8]) -> Result<(Value, usize), (&'static str, String)> {
    let name = entry["name"].as_str().unwrap();
    let cut = Frame::cut(bytes).map_err(|error| ("frame", error.to_string()))?;
    let (frame, rest) = cut.ok_or(("frame", FrameError::UnexpectedEnd.to_string()))?;
    let mut scratch = Vec::new();
    let (version, code) = (frame.version, frame.code);
    let unpacked = frame.unpack(&mut scratch).map_err(|error| ("frame", error.to_string()))?;
    let mut out = json!({ "type_code": code, "version": version, "flags_after_decode": unpacked.flags,
        "payload_len": unpacked.payload.len(), "unread_bytes": rest.len() });
    if let Some(direction) = entry["direction"].as_str() {
        let fields = read(direction, code, unpacked.payload).map_err(|error| ("message", error.to_string()))?;
        out["fields"] = Value::Object(fields);
    }
    assert!(scratch.capacity() <= frame::LENGTH_MAX as usize, "{name}: took {} bytes", scratch.capacity());
    Ok((out, rest.len()))
}

#[test]
fn copies_equal_the_originals() {
    let originals = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/protocol");
    if !originals.is_dir() {
        return;
    }
    for kind in ["vectors", "captures"] {
        for entry in std::fs::read_dir(originals.join(kind)).unwrap() {
            let path = entry.unwrap().path();
            let copy = data(kind).join(path.file_name().unwrap());
            assert!(
                std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap_or_default(),
                "{copy:?} is out of date"
            );
        }
    }
}

#[test]
fn vector_well_formed_frames_decode_to_their_fields() {
    for entry in well_formed() {
        let name = entry["name"].as_str().unwrap();
        let bytes = input(&entry);
        let (decoded, rest) = decode(&entry, &bytes).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(rest, 0, "{name}");
        assert_eq!(decoded["fields"], expand(&entry["fields"]), "{name}");
        assert_eq!(decoded["type_code"], entry["type_code"], "{name}");
        assert_eq!(decoded["version"], entry["version"], "{name}");
    }
}

#[test]
fn vector_canonical_fields_encode_to_their_bytes() {
    let mut checked = 0;
    for entry in well_formed() {
        let name = entry["name"].as_str().unwrap();
        let line = json!({ "type": entry["type"], "version": entry["version"], "flags": entry["flags"], "fields": entry["fields"] });
        let encoded = encode_line(&line.to_string()).unwrap_or_else(|error| panic!("{name}: {error}"));
        if entry["canonical"] == json!(true) {
            assert_eq!(encoded, entry["frame_hex"].as_str().unwrap(), "{name}");
            checked += 1;
        } else {
            let again = decode(&entry, &from_hex(&encoded).unwrap()).unwrap().0;
            assert_eq!(again["fields"], expand(&entry["fields"]), "{name}");
        }
    }
    assert!(checked > 500, "only {checked} canonical vectors");
}

#[test]
fn vector_every_message_of_both_tables_has_one() {
    let seen: BTreeSet<(String, String)> = well_formed()
        .iter()
        .map(|entry| (entry["direction"].as_str().unwrap().into(), entry["type"].as_str().unwrap().into()))
        .collect();
    for (direction, table) in [("c2s", ClientMessage::TABLE), ("s2c", ServerMessage::TABLE)] {
        for (code, name) in table {
            assert!(
                seen.contains(&(direction.into(), (*name).into())),
                "no vector for {direction} {name} ({code:#04x})"
            );
        }
    }
}

#[test]
fn vector_decode_lines_use_the_vocabulary_of_the_vectors() {
    for entry in well_formed().iter().filter(|entry| entry["frame_hex"].is_string()) {
        let line = decode_line(entry["frame_hex"].as_str().unwrap()).unwrap();
        assert_eq!(line["type"], entry["type"], "{}", entry["name"]);
        assert_eq!(line["fields"], expand(&entry["fields"]), "{}", entry["name"]);
    }
    let long = decode_line("00100001").unwrap();
    assert_eq!(long["stage"], "frame");
    let short = decode_line("0000000402100001").unwrap();
    assert_eq!((&short["stage"], short["error"].is_string()), (&json!("message"), true));
    assert!(decode_line("zz").is_err());
}

#[test]
fn vector_compression_happens_exactly_where_it_should() {
    let mut cases = 0;
    for entry in entries(&data("vectors/lz4.json")) {
        let (Some(peer), name) = (entry["peer_version"].as_u64(), entry["name"].as_str().unwrap()) else { continue };
        cases += 1;
        let bytes = input(&entry);
        let (frame, _) = Frame::cut(&bytes).unwrap().unwrap();
        let mut scratch = Vec::new();
        let payload = frame.unpack(&mut scratch).unwrap().payload.to_vec();
        let mut out = Vec::new();
        let compression = PeerVersion::Unknown.learn(peer as u8).compression();
        frame::write_payload(&mut out, 2, frame.code, 0, &payload, compression).unwrap();
        let compressed = out[6] & frame::FLAG_COMPRESSED != 0;
        assert_eq!(compressed, entry["flags"].as_u64().unwrap() & 1 != 0, "{name}");
        let (again, _) = Frame::cut(&out).unwrap().unwrap();
        assert_eq!(again.unpack(&mut Vec::new()).unwrap().payload, payload, "{name}");
    }
    assert!(cases > 0, "lz4.json has no threshold cases");
}

#[test]
fn vector_malformed_input_fails_at_its_stage() {
    for path in files("malformed_") {
        for entry in entries(&path).iter().filter(|entry| entry["decoder_dependent"] != json!(true)) {
            let name = format!("{}: {}", path.file_name().unwrap().to_str().unwrap(), entry["name"]);
            match (entry["go_result"].as_str().unwrap(), decode(entry, &input(entry))) {
                ("ok", Ok((decoded, _))) => {
                    for key in ["type_code", "version", "flags_after_decode", "payload_len"] {
                        assert_eq!(decoded[key], entry[key], "{name}: {key}");
                    }
                    assert_eq!(
                        decoded["unread_bytes"],
                        entry.get("unread_bytes").cloned().unwrap_or(json!(0)),
                        "{name}"
                    );
                    if let Some(fields) = entry.get("fields") {
                        assert_eq!(decoded["fields"], expand(fields), "{name}");
                    }
                }
                (result, Err((stage, error))) if result != "ok" => assert_eq!(stage, entry["stage"], "{name}: {error}"),
                (result, outcome) => panic!("{name}: expected {result}, got {outcome:?}"),
            }
        }
    }
}

#[test]
fn vector_streams_are_cut_wherever_their_bytes_arrive() {
    for stream in entries(&data("vectors/stream.json")) {
        let bytes = from_hex(stream["stream_hex"].as_str().unwrap()).unwrap();
        let (mut rest, mut frames) = (bytes.as_slice(), Vec::new());
        while let Some((frame, behind)) = Frame::cut(rest).unwrap() {
            let mut scratch = Vec::new();
            let payload = frame.unpack(&mut scratch).unwrap().payload;
            frames.push(Value::Object(read(stream["direction"].as_str().unwrap(), frame.code, payload).unwrap()));
            assert!(frame::bytes_needed(rest) == rest.len() - behind.len());
            rest = behind;
        }
        let expected: Vec<_> =
            stream["frames"].as_array().unwrap().iter().map(|frame| expand(&frame["fields"])).collect();
        assert_eq!(frames, expected, "{}", stream["name"]);
        assert_eq!(rest.len() as u64, stream["incomplete_tail_bytes"].as_u64().unwrap_or(0), "{}", stream["name"]);
    }
}

proptest! {
    #[test]
    fn never_panics_on_any_frame(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(Some((frame, _))) = Frame::cut(&bytes) {
            let mut scratch = Vec::new();
            if let Ok(unpacked) = frame.unpack(&mut scratch) {
                let _unreadable_is_fine = ClientMessage::read(frame.code, unpacked.payload);
            }
        }
        decode_line(&to_hex(&bytes)).unwrap();
    }

    #[test]
    fn never_panics_on_any_payload_of_any_message(code in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _unreadable_is_fine = ClientMessage::read(code, &payload);
        let _unreadable_is_fine = ServerMessage::read(code, &payload);
    }

    #[test]
    fn roundtrip_what_was_read_is_written_and_read_again(index in any::<proptest::sample::Index>(), payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (code, _) = index.get(ServerMessage::TABLE);
        if let Ok(message) = ServerMessage::read(*code, &payload) {
            let mut out = Vec::new();
            frame::write(&mut out, &message, Compression::Never).unwrap();
            let (frame, rest) = Frame::cut(&out).unwrap().unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(ServerMessage::read(frame.code, frame.payload).unwrap(), message);
        }
    }

    #[test]
    fn roundtrip_compression(payload in proptest::collection::vec(0u8..4, 0..5000)) {
        let mut out = Vec::new();
        frame::write_payload(&mut out, 2, 1, 0, &payload, Compression::WhenSmaller).unwrap();
        let (frame, _) = Frame::cut(&out).unwrap().unwrap();
        let mut scratch = Vec::new();
        prop_assert_eq!(frame.unpack(&mut scratch).unwrap().payload, &payload[..]);
    }
}
