//! One event as the sinks see it: place, severity, message, and the fields of the event and of the spans around it.

use std::error::Error;
use std::fmt::{self, Write};
use std::iter;

use tracing::Level;
use tracing::field::{Field, Visit};

use crate::clock::Timestamp;

/// What the texts of one event may take together before they are cut, bytes. Clients influence them, and an event must
/// fit into a datagram of the journal even when every character has to be escaped.
const EVENT_TEXT_BYTES_MAX: usize = 8 * 1024;

/// Stands where a text was cut.
const CUT: char = '…';

/// The fields that say whose event it is, in the order in which every format shows them.
pub const CONTEXT: [&str; 5] = ["session", "request", "user", "channel", "remote"];

/// One event.
#[derive(Debug)]
pub struct Record {
    pub time: Timestamp,
    pub level: Level,
    pub target: &'static str,
    pub file: Option<&'static str>,
    pub line: Option<u32>,
    pub fields: Fields,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Unsigned(number) => number.fmt(f),
            Self::Signed(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
            Self::Bool(truth) => truth.fmt(f),
        }
    }
}

/// Message and named values of an event, or the values of a span.
#[derive(Debug)]
pub struct Fields {
    pub message: String,
    named: Vec<(&'static str, Value)>,
    /// Bytes of text that may still be taken in.
    room: usize,
}

impl Fields {
    pub(super) fn new() -> Self {
        Self { message: String::new(), named: Vec::new(), room: EVENT_TEXT_BYTES_MAX }
    }

    /// The fields of a line that the log writes about itself.
    pub(super) fn own(message: &str, named: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        let mut fields = Self::new();
        fields.message = message.to_owned();
        named.into_iter().for_each(|(name, value)| fields.set(name, value));
        fields
    }

    /// Context first, then the others in the order of the event.
    pub fn ordered(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        let others = self.named.iter().filter(|(name, _)| !CONTEXT.contains(name)).map(|(name, value)| (*name, value));
        CONTEXT.into_iter().filter_map(|name| Some((name, self.get(name)?))).chain(others)
    }

    /// Takes over what the surrounding span knows; the inner word counts where both have one.
    pub(super) fn inherit(&mut self, outer: &Self) {
        for (name, value) in &outer.named {
            if self.get(name).is_none() {
                let value = match value {
                    Value::Text(text) => self.text(text),
                    number => number.clone(),
                };
                self.named.push((name, value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.named.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn set(&mut self, name: &'static str, value: Value) {
        let name = name.strip_prefix("r#").unwrap_or(name);
        match self.named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.named.push((name, value)),
        }
    }

    fn set_text(&mut self, field: &Field, text: impl fmt::Display) {
        match self.text(text) {
            Value::Text(message) if field.name() == "message" => self.message = message,
            value => self.set(field.name(), value),
        }
    }

    fn text(&mut self, text: impl fmt::Display) -> Value {
        let mut bounded = Bounded { text: String::new(), room: self.room };
        // Refusing to take more ends the formatting early, which matters when a value is as large as a frame.
        if write!(bounded, "{text}").is_err() {
            bounded.text.push(CUT);
        }
        self.room = bounded.room;
        Value::Text(bounded.text)
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set_text(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set_text(field, format_args!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let chain = fmt::from_fn(|f| {
            write!(f, "{value}")?;
            iter::successors(value.source(), |&error| error.source()).try_for_each(|source| write!(f, ": {source}"))
        });
        self.set_text(field, chain);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), Value::Unsigned(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), Value::Signed(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), Value::Float(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), Value::Bool(value));
    }
}

/// Takes text until its room is used up.
struct Bounded {
    text: String,
    room: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let taken = &more[..more.floor_char_boundary(self.room)];
        self.text.push_str(taken);
        self.room -= taken.len();
        if taken.len() == more.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(fields: &mut Fields, text: &str) -> String {
        fields.text(text).to_string()
    }

    #[test]
    fn texts_of_an_event_share_one_bound() {
        let mut fields = Fields::new();
        assert_eq!(text(&mut fields, &"a".repeat(EVENT_TEXT_BYTES_MAX - 3)).len(), EVENT_TEXT_BYTES_MAX - 3);
        assert_eq!(text(&mut fields, "éé"), "é…", "cut between characters");
        assert_eq!(text(&mut fields, "b"), "b");
        assert_eq!(text(&mut fields, "c"), "…");
        assert_eq!(text(&mut fields, ""), "");
    }

    #[test]
    fn the_inner_value_counts_and_context_comes_first() {
        let named = |name, number| (name, Value::Unsigned(number));
        let mut event = Fields::own("hello", [named("count", 1), named("request", 9)]);
        event.inherit(&Fields::own("", [named("session", 5), named("request", 8)]));
        let seen: Vec<_> = event.ordered().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(seen, ["session=5", "request=9", "count=1"]);
    }
}
