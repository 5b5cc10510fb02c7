//! A record as a line of text or of JSON.
//!
//! Clients choose names and addresses that end up here. Whatever they send, an event stays one line, cannot pretend to
//! carry a field it does not carry, and cannot reach an operator's terminal as a control sequence.

use std::fmt::Write;
use std::io;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::ser::{CompactFormatter, Formatter};

use super::record::{Record, Value};
use super::{SECURITY, SettingError};
use crate::clock;

/// How lines in files and on standard output look (`log_format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `2025/10/08 14:30:15.123456 [INFO] Server started on port 6465`, local time, fields appended as ` key=value`.
    #[default]
    Text,
    /// One JSON object per line, time in UTC.
    Json,
}

impl FromStr for Format {
    type Err = SettingError;

    fn from_str(name: &str) -> Result<Self, SettingError> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(SettingError::new("log_format", name, "text or json")),
        }
    }
}

impl Format {
    /// The record's line, with its newline.
    pub(super) fn line(self, record: &Record) -> Vec<u8> {
        match self {
            Self::Text => text_line(record).into_bytes(),
            Self::Json => json_line(record),
        }
    }
}

fn text_line(record: &Record) -> String {
    let mut line = String::with_capacity(160);
    // Writing to a string cannot fail.
    _ = write!(line, "{} [{}] ", clock::line_time(record.time, clock::zone()), record.level);
    push_text(&mut line, record);
    line.push('\n');
    line
}

/// Message and fields as a person reads them; also what the journal shows.
pub(super) fn push_text(out: &mut String, record: &Record) {
    push_escaped(out, &record.fields.message, false);
    if record.target == SECURITY {
        out.push_str(" target=security");
    }
    for (name, value) in record.fields.ordered() {
        out.push(' ');
        out.push_str(name);
        out.push('=');
        push_value(out, value);
    }
}

fn push_value(out: &mut String, value: &Value) {
    match value {
        Value::Text(text) if needs_quotes(text) => {
            out.push('"');
            push_escaped(out, text, true);
            out.push('"');
        }
        // Writing to a string cannot fail.
        plain => _ = write!(out, "{plain}"),
    }
}

fn needs_quotes(text: &str) -> bool {
    text.is_empty() || text.chars().any(|c| c.is_whitespace() || matches!(c, '"' | '=') || is_hidden(c))
}

fn push_escaped(out: &mut String, text: &str, quoted: bool) {
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '"' | '\\' if quoted => out.extend(['\\', c]),
            // Writing to a string cannot fail.
            hidden if is_hidden(hidden) => _ = write!(out, "{}", hidden.escape_unicode()),
            plain => out.push(plain),
        }
    }
}

/// Characters beside the controls that a reader does not see, or that move what he sees: joiners, direction marks,
/// line and paragraph separators, tags.
const INVISIBLE: [RangeInclusive<char>; 9] = [
    '\u{ad}'..='\u{ad}',
    '\u{61c}'..='\u{61c}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{fff9}'..='\u{fffb}',
    '\u{e0000}'..='\u{e007f}',
];

fn is_hidden(c: char) -> bool {
    c.is_control() || (!c.is_ascii() && INVISIBLE.iter().any(|range| range.contains(&c)))
}

fn json_line(record: &Record) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    let mut json = serde_json::Serializer::with_formatter(&mut line, Visible);
    // A vector takes everything, and keys are strings: no error can come out of this.
    _ = JsonRecord(record).serialize(&mut json);
    line.push(b'\n');
    line
}

/// Keys that every JSON line has.
const JSON_KEYS: [&str; 4] = ["timestamp", "level", "target", "message"];

struct JsonRecord<'a>(&'a Record);

impl Serialize for JsonRecord<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("timestamp", &format_args!("{}", clock::rfc3339_utc(record.time)))?;
        map.serialize_entry("level", record.level.as_str())?;
        map.serialize_entry("target", record.target)?;
        map.serialize_entry("message", &record.fields.message)?;
        for (name, value) in record.fields.ordered() {
            if JSON_KEYS.contains(&name) {
                map.serialize_entry(&format_args!("{name}_"), value)?;
            } else {
                map.serialize_entry(name, value)?;
            }
        }
        map.end()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Unsigned(number) => serializer.serialize_u64(*number),
            Self::Signed(number) => serializer.serialize_i64(*number),
            Self::Float(number) => serializer.serialize_f64(*number),
            Self::Bool(truth) => serializer.serialize_bool(*truth),
        }
    }
}

/// JSON leaves everything above U+001F as it is; a terminal that shows the raw line would obey some of it.
struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, hidden)) = rest.char_indices().find(|(_, c)| is_hidden(*c)) {
            CompactFormatter.write_string_fragment(writer, &rest[..at])?;
            hidden.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?;
            rest = &rest[at + hidden.len_utf8()..];
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tracing::Level;

    use super::super::record::Fields;
    use super::*;
    use crate::clock::Timestamp;

    fn record(message: &str, named: &[(&'static str, Value)]) -> Record {
        Record {
            time: Timestamp::from_microsecond(1_759_926_615_123_456).unwrap(),
            level: Level::INFO,
            target: "superchat::net",
            file: Some("src/net.rs"),
            line: Some(7),
            fields: Fields::own(message, named.iter().cloned()),
        }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn check_text(message: &str, value: &str, expected: &str) {
        let line = text_line(&record(message, &[("name", text(value))]));
        assert_eq!(line.split_once(" [INFO] ").unwrap().1, format!("{expected}\n"));
    }

    #[test]
    fn a_value_is_quoted_and_escaped_where_it_could_mislead() {
        check_text("hi", "bob", "hi name=bob");
        check_text("hi", "Žofia-雪", "hi name=Žofia-雪");
        check_text("hi", "", r#"hi name="""#);
        check_text("hi", "a b", r#"hi name="a b""#);
        check_text("hi", "x=y", r#"hi name="x=y""#);
        check_text("hi", "C:\\x", r"hi name=C:\x");
        check_text("hi", r#"say "\""#, r#"hi name="say \"\\\"""#);
        check_text("hi", "a\nb\r\t\u{1b}[2J\u{9b}", r#"hi name="a\nb\r\t\u{1b}[2J\u{9b}""#);
        check_text("hi", "\u{202e}lmth", r#"hi name="\u{202e}lmth""#);
        check_text("hi", "a\u{a0}user=root", "hi name=\"a\u{a0}user=root\"");
    }

    #[test]
    fn a_message_keeps_its_words_and_loses_its_controls() {
        check_text(
            "Session 5 set nickname: \"x y\"\n\u{1b}]0;",
            "v",
            r#"Session 5 set nickname: "x y"\n\u{1b}]0; name=v"#,
        );
    }

    #[test]
    fn a_security_event_says_so_in_text() {
        let line = text_line(&Record { target: SECURITY, ..record("token refused", &[]) });
        assert!(line.ends_with(" [INFO] token refused target=security\n"), "{line}");
    }

    #[test]
    fn a_json_line_has_its_keys_in_order_and_types_kept() {
        let named = [
            ("size", Value::Signed(-3)),
            ("session", Value::Unsigned(5)),
            ("level", text("high")),
            ("ratio", Value::Float(0.5)),
            ("nothing", Value::Float(f64::NAN)),
            ("durable", Value::Bool(true)),
        ];
        let line = json_line(&record("a \"quoted\"\n\u{9b}\u{e0041} line", &named));
        assert_eq!(
            String::from_utf8(line).unwrap(),
            concat!(
                r#"{"timestamp":"2025-10-08T12:30:15.123456Z","level":"INFO","target":"superchat::net","#,
                r#""message":"a \"quoted\"\n\u009b\udb40\udc41 line","session":5,"size":-3,"level_":"high","#,
                r#""ratio":0.5,"nothing":null,"durable":true}"#,
                "\n"
            )
        );
    }

    /// Strings with every kind of character; those of `any::<String>()` have no controls.
    fn hostile() -> impl Strategy<Value = String> {
        prop::collection::vec(prop_oneof![any::<char>(), prop::char::range('\0', '\u{9f}')], 0..40)
            .prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn roundtrip_json(message in hostile(), value in hostile()) {
            let line = json_line(&record(&message, &[("name", text(&value))]));
            let parsed: serde_json::Value = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(&parsed["message"], &message);
            prop_assert_eq!(&parsed["name"], &value);
        }

        #[test]
        fn any_event_is_one_visible_line(message in hostile(), value in hostile()) {
            let record = record(&message, &[("name", text(&value))]);
            for format in [Format::Text, Format::Json] {
                let line = String::from_utf8(format.line(&record)).unwrap();
                let (end, body) = (line.chars().last(), &line[..line.len() - 1]);
                prop_assert_eq!(end, Some('\n'));
                prop_assert!(!body.chars().any(is_hidden), "{:?}", body);
            }
        }
    }
}
