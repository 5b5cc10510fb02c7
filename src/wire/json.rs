//! Frames as JSON, in the vocabulary of the protocol's test vectors: `scd frame decode` and `scd frame encode`.

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::client::ClientMessage;
use super::codec::{ArchiveFlag, Bounded, DmTarget, Encryption, List, LongList, Tail, Wire, Writer};
use super::errors::{FrameError, WireError};
use super::frame::{self, Compression, Frame, Unpacked};
use super::server::ServerMessage;
use crate::ids::{BanId, ChannelId, InviteId, MessageId, SessionId, UserId};

/// Input of `scd frame` that is not what it should be.
#[derive(Debug, Error)]
pub enum JsonError {
    #[error("not hexadecimal: {0}")]
    Hex(String),
    #[error("not JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("unknown message type {0}")]
    UnknownType(String),
    #[error("field {0} is missing")]
    Missing(&'static str),
    #[error("field {0} should be {1}")]
    Form(&'static str, &'static str),
    #[error("value does not fit its field: {0}")]
    Wire(#[from] WireError),
}

/// A value under a name in an object of fields.
pub trait Json {
    fn describe(&self, name: &'static str, fields: &mut Map<String, Value>);
    /// Writes the field called `name` as it stands on the wire.
    ///
    /// # Errors
    /// [`JsonError`] naming the field.
    fn parse(name: &'static str, fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError>;
}

/// A value that needs no name: a number, a text, an object of fields.
pub trait JsonValue {
    fn to_value(&self) -> Value;
    /// # Errors
    /// [`JsonError`] with the name of the field that holds the value.
    fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError>;
}

/// A record: its fields stand side by side in one object.
pub trait Fields {
    fn describe_fields(&self, fields: &mut Map<String, Value>);
    /// # Errors
    /// [`JsonError`] naming the first field that is missing or of the wrong form.
    fn parse_fields(fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError>;
}

/// Named values that stand under their own name.
macro_rules! named {
    ($(($($generics:tt)*) $ty:ty;)+) => {$(
        impl<$($generics)*> Json for $ty {
            fn describe(&self, name: &'static str, fields: &mut Map<String, Value>) {
                fields.insert(name.into(), self.to_value());
            }
            fn parse(name: &'static str, fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError> {
                Self::from_value(name, fields.get(name).ok_or(JsonError::Missing(name))?, writer)
            }
        }
    )+};
}
named! {
    () u8; () u16; () u32; () u64; () i64; () bool; () &[u8]; () [u8; 32];
    () ChannelId; () MessageId; () UserId; () SessionId; () BanId; () InviteId;
    (T: JsonValue) Option<T>; (T: Fields) List<T>; (T: Fields) LongList<T>;
    (const MIN: usize, const MAX: usize) Bounded<'_, MIN, MAX>;
}

macro_rules! small_numbers {
    ($($ty:ty)+) => {$(
        impl JsonValue for $ty {
            fn to_value(&self) -> Value {
                json!(self)
            }
            fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
                let number = value.as_u64().and_then(|number| <$ty>::try_from(number).ok());
                number.ok_or(JsonError::Form(name, concat!("a number that fits ", stringify!($ty))))?.write(writer);
                Ok(())
            }
        }
    )+};
}
small_numbers! { u8 u16 u32 }

/// 64-bit numbers are strings of digits: JSON readers that use doubles would round them.
macro_rules! large_numbers {
    ($($ty:ty)+) => {$(
        impl JsonValue for $ty {
            fn to_value(&self) -> Value {
                Value::String(self.to_string())
            }
            fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
                let digits = value.as_str().map(str::to_owned).or_else(|| value.as_number().map(ToString::to_string));
                let number = digits.and_then(|digits| digits.parse::<$ty>().ok());
                number.ok_or(JsonError::Form(name, "a string of decimal digits"))?.write(writer);
                Ok(())
            }
        }
    )+};
}
large_numbers! { u64 i64 }

macro_rules! id_values {
    ($($Id:ident)+) => {$(
        impl JsonValue for $Id {
            fn to_value(&self) -> Value {
                self.0.to_value()
            }
            fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
                u64::from_value(name, value, writer)
            }
        }
    )+};
}
id_values! { ChannelId MessageId UserId SessionId BanId InviteId }

impl JsonValue for bool {
    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }
    fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        value.as_bool().ok_or(JsonError::Form(name, "true or false"))?.write(writer);
        Ok(())
    }
}

impl JsonValue for &[u8] {
    fn to_value(&self) -> Value {
        std::str::from_utf8(self).map_or_else(|_| json!({ "bytes_hex": to_hex(self) }), |text| json!(text))
    }
    fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        text_bytes(name, value)?.as_slice().write(writer);
        Ok(())
    }
}

/// A text, `{"bytes_hex": "..."}` or `{"repeat": "m", "count": n}`.
fn text_bytes(name: &'static str, value: &Value) -> Result<Vec<u8>, JsonError> {
    const FORM: &str = "a text, {\"bytes_hex\"} or {\"repeat\", \"count\"}";
    if let Some(text) = value.as_str() {
        return Ok(text.as_bytes().to_vec());
    }
    if let Some(hex) = value.get("bytes_hex").and_then(Value::as_str) {
        return from_hex(hex);
    }
    let repeated = value.get("repeat").and_then(Value::as_str).zip(value.get("count").and_then(Value::as_u64));
    let (text, count) = repeated.ok_or(JsonError::Form(name, FORM))?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    match text.len().checked_mul(count) {
        Some(length) if length <= frame::LENGTH_MAX as usize => Ok(text.as_bytes().repeat(count)),
        _ => Err(WireError::TooLong.into()),
    }
}

impl<const MIN: usize, const MAX: usize> JsonValue for Bounded<'_, MIN, MAX> {
    fn to_value(&self) -> Value {
        self.0.to_value()
    }
    fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        Bounded::<MIN, MAX>(&text_bytes(name, value)?).write(writer);
        Ok(())
    }
}

impl JsonValue for [u8; 32] {
    fn to_value(&self) -> Value {
        Value::String(to_hex(self))
    }
    fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        let bytes =
            value.as_str().and_then(|hex| from_hex(hex).ok()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.ok_or(JsonError::Form(name, "64 hexadecimal digits"))?.write(writer);
        Ok(())
    }
}

impl<T: JsonValue> JsonValue for Option<T> {
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, JsonValue::to_value)
    }
    fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        (!value.is_null()).write(writer);
        if value.is_null() { Ok(()) } else { T::from_value(name, value, writer) }
    }
}

fn items_to_value<T: Fields>(items: &[T]) -> Value {
    let describe = |item: &T| {
        let mut fields = Map::new();
        item.describe_fields(&mut fields);
        Value::Object(fields)
    };
    Value::Array(items.iter().map(describe).collect())
}

fn items_from_value<'v, T: Fields>(
    name: &'static str,
    value: &'v Value,
    writer: &mut Writer<'_>,
    write_count: impl FnOnce(&'v [Value], &mut Writer<'_>) -> Result<(), JsonError>,
) -> Result<(), JsonError> {
    const FORM: &str = "a list of objects";
    let items = value.as_array().ok_or(JsonError::Form(name, FORM))?;
    write_count(items, writer)?;
    items.iter().try_for_each(|item| T::parse_fields(item.as_object().ok_or(JsonError::Form(name, FORM))?, writer))
}

impl<T: Fields> JsonValue for List<T> {
    fn to_value(&self) -> Value {
        items_to_value(&self.0)
    }
    fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        items_from_value::<T>(name, value, writer, |items, writer| {
            u16::try_from(items.len()).map_err(|_| WireError::TooLong)?.write(writer);
            Ok(())
        })
    }
}

impl<T: Fields> JsonValue for LongList<T> {
    fn to_value(&self) -> Value {
        items_to_value(&self.0)
    }
    fn from_value(name: &'static str, value: &Value, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        items_from_value::<T>(name, value, writer, |items, writer| {
            u32::try_from(items.len()).map_err(|_| WireError::TooLong)?.write(writer);
            Ok(())
        })
    }
}

/// A missing last field shows what a reader assumes: false for a bool, null for anything else.
impl Json for Tail<bool> {
    fn describe(&self, name: &'static str, fields: &mut Map<String, Value>) {
        fields.insert(name.into(), Value::Bool(self.0.unwrap_or(false)));
    }
    fn parse(name: &'static str, fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        fields.get(name).map_or(Ok(()), |value| bool::from_value(name, value, writer))
    }
}

impl Json for Tail<u8> {
    fn describe(&self, name: &'static str, fields: &mut Map<String, Value>) {
        fields.insert(name.into(), self.0.map_or(Value::Null, |value| json!(value)));
    }
    fn parse(name: &'static str, fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        let value = fields.get(name).filter(|value| !value.is_null());
        value.map_or(Ok(()), |value| u8::from_value(name, value, writer))
    }
}

impl Json for ArchiveFlag {
    fn describe(&self, name: &'static str, fields: &mut Map<String, Value>) {
        fields.extend(self.0.map(|flag| (name.into(), Value::Bool(flag))));
    }
    fn parse(name: &'static str, fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        fields.get(name).map_or(Ok(()), |value| bool::from_value(name, value, writer))
    }
}

/// The success byte and the side it chose, side by side with the fields around them.
impl<T: Fields, E: Fields> Json for Result<T, E> {
    fn describe(&self, _name: &'static str, fields: &mut Map<String, Value>) {
        fields.insert("success".into(), Value::Bool(self.is_ok()));
        match self {
            Ok(side) => side.describe_fields(fields),
            Err(side) => side.describe_fields(fields),
        }
    }
    fn parse(_name: &'static str, fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        bool::parse("success", fields, writer)?;
        if fields.get("success") == Some(&Value::Bool(true)) {
            T::parse_fields(fields, writer)
        } else {
            E::parse_fields(fields, writer)
        }
    }
}

impl Json for DmTarget<'_> {
    fn describe(&self, _name: &'static str, fields: &mut Map<String, Value>) {
        let code = match self {
            Self::User(_) => 0,
            Self::Nickname(_) => 1,
            Self::Session(_) => 2,
            Self::Unknown(code) => *code,
        };
        fields.insert("target_type".into(), json!(code));
        match self {
            Self::User(id) => id.describe("target_id", fields),
            Self::Nickname(nickname) => nickname.describe("target_nickname", fields),
            Self::Session(id) => id.describe("target_id", fields),
            Self::Unknown(_) => {}
        }
    }
    fn parse(_name: &'static str, fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        u8::parse("target_type", fields, writer)?;
        match fields.get("target_type").and_then(Value::as_u64) {
            Some(0 | 2) => u64::parse("target_id", fields, writer),
            Some(1) => <&[u8]>::parse("target_nickname", fields, writer),
            _ => Ok(()),
        }
    }
}

impl Json for Encryption {
    fn describe(&self, _name: &'static str, fields: &mut Map<String, Value>) {
        fields.insert("is_encrypted".into(), Value::Bool(self.0.is_some()));
        if let Some(key) = &self.0 {
            key.describe("other_public_key", fields);
        }
    }
    fn parse(_name: &'static str, fields: &Map<String, Value>, writer: &mut Writer<'_>) -> Result<(), JsonError> {
        bool::parse("is_encrypted", fields, writer)?;
        if fields.get("is_encrypted") == Some(&Value::Bool(true)) {
            <[u8; 32]>::parse("other_public_key", fields, writer)?;
        }
        Ok(())
    }
}

/// Codes of servers start at 0x80; VERIFY_REGISTRATION is read the same from either side.
fn describe_message(code: u8, payload: &[u8]) -> Result<Map<String, Value>, WireError> {
    if code < 0x80 {
        ClientMessage::read(code, payload).map(|message| message.describe())
    } else {
        ServerMessage::read(code, payload).map(|message| message.describe())
    }
}

/// The published name of a type code, whichever side sends it.
#[must_use]
pub fn message_name(code: u8) -> Option<&'static str> {
    let tables = ClientMessage::TABLE.iter().chain(ServerMessage::TABLE);
    tables.into_iter().find(|(known, _)| *known == code).map(|(_, name)| *name)
}

/// One frame in hexadecimal as one JSON object: its message, or `error` and the `stage` that failed.
///
/// # Errors
/// [`JsonError::Hex`] when the line is not hexadecimal at all.
pub fn decode_line(line: &str) -> Result<Value, JsonError> {
    let bytes = from_hex(line.trim())?;
    Ok(decode_frame(&bytes).unwrap_or_else(|error| json!({ "error": error.to_string(), "stage": "frame" })))
}

fn decode_frame(bytes: &[u8]) -> Result<Value, FrameError> {
    let Some((frame, _rest)) = Frame::cut(bytes)? else { return Err(FrameError::UnexpectedEnd) };
    let mut scratch = Vec::new();
    let Unpacked { flags, payload } = frame.unpack(&mut scratch)?;
    Ok(match describe_message(frame.code, payload) {
        Ok(fields) => json!({
            "type": message_name(frame.code), "type_code": frame.code, "version": frame.version, "flags": flags,
            "fields": fields,
        }),
        Err(error) => json!({ "error": error.to_string(), "stage": "message" }),
    })
}

/// One JSON object `{"type", "version", "flags", "fields"}` as a frame in hexadecimal. With bit 0 of `flags` set the
/// payload is compressed.
///
/// # Errors
/// [`JsonError`] with what is missing or does not fit.
pub fn encode_line(line: &str) -> Result<String, JsonError> {
    let value: Value = serde_json::from_str(line)?;
    let header = |name: &'static str, default: u8| match value.get(name) {
        None => Ok(default),
        Some(number) => {
            number.as_u64().and_then(|number| u8::try_from(number).ok()).ok_or(JsonError::Form(name, "0 to 255"))
        }
    };
    let (version, flags) = (header("version", frame::VERSION)?, header("flags", 0)?);
    let name = value.get("type").and_then(Value::as_str).ok_or(JsonError::Missing("type"))?;
    let fields = value.get("fields").and_then(Value::as_object).ok_or(JsonError::Missing("fields"))?;

    let mut payload = Vec::new();
    let mut writer = Writer::new(&mut payload);
    let code =
        ClientMessage::parse(name, fields, &mut writer).or_else(|| ServerMessage::parse(name, fields, &mut writer));
    let code = code.ok_or_else(|| JsonError::UnknownType(name.to_owned()))??;
    writer.finish()?;
    // A payload of no bytes stays as it is under the bit too, as its reader takes it.
    let compressed = flags & frame::FLAG_COMPRESSED != 0 && !payload.is_empty();
    let (flags, compression) =
        if compressed { (flags & !frame::FLAG_COMPRESSED, Compression::Always) } else { (flags, Compression::Never) };
    let mut out = Vec::new();
    frame::write_payload(&mut out, version, code, flags, &payload, compression)?;
    Ok(to_hex(&out))
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that pairs of hexadecimal digits stand for.
///
/// # Errors
/// [`JsonError::Hex`] for an odd number of digits or anything that is not a digit.
pub fn from_hex(text: &str) -> Result<Vec<u8>, JsonError> {
    if !text.len().is_multiple_of(2) {
        return Err(JsonError::Hex("odd number of digits".into()));
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low))
        .collect::<Option<_>>()
        .ok_or_else(|| JsonError::Hex("a character that is no digit".into()))
}
