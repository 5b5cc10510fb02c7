//! A record of the log as others may see it: an event, or a breadcrumb on the way to one.
//!
//! Content and passwords are in no record. Addresses are, as far as `log_ip` lets them, and are cut to their network here
//! whatever it says.

use std::hash::{BuildHasher as _, RandomState};

use serde_json::{Map, Value, json};
use tracing::Level;

use super::Options;
use super::panic::Stack;
use crate::clock::{self, Timestamp};
use crate::log::{CONTEXT, Record, without_addresses};

/// What is told of one record.
#[derive(Debug, Clone)]
pub(super) struct Crumb {
    time: Timestamp,
    level: Level,
    target: &'static str,
    message: String,
    fields: Map<String, Value>,
}

impl Crumb {
    pub(super) fn of(record: &Record) -> Self {
        let value = |value: &crate::log::Value| match serde_json::to_value(value) {
            Ok(Value::String(text)) => Value::String(without_addresses(&text)),
            other => other.unwrap_or_default(),
        };
        Self {
            time: record.time,
            level: record.level,
            target: record.target,
            message: without_addresses(&record.fields.message),
            fields: record.fields.ordered().map(|(name, shown)| (name.to_owned(), value(shown))).collect(),
        }
    }

    fn into_json(self) -> Value {
        json!({
            "timestamp": clock::rfc3339_utc(self.time).to_string(),
            "category": self.target,
            "level": level(self.level),
            "message": self.message,
            "data": self.fields,
        })
    }
}

/// An ERROR with what came before it.
#[derive(Debug)]
pub(super) struct Report {
    id: String,
    error: Crumb,
    stack: Option<Stack>,
    /// The newest first.
    crumbs: Vec<Crumb>,
}

impl Report {
    /// With a `stack`, it is a panic.
    pub(super) fn new(record: &Record, stack: Option<Stack>, crumbs: Vec<Crumb>) -> Self {
        Self { id: new_id(), error: Crumb::of(record), stack, crumbs }
    }

    /// The whole document that is posted: three lines of JSON.
    pub(super) fn into_envelope(self, options: &Options) -> Vec<u8> {
        let id = self.id.clone();
        let event = self.into_event(options).to_string();
        let head = json!({ "event_id": id, "sent_at": clock::rfc3339_utc(clock::now()).to_string() });
        let item = json!({ "type": "event", "length": event.len(), "content_type": "application/json" });
        format!("{head}\n{item}\n{event}\n").into_bytes()
    }

    fn into_event(self, options: &Options) -> Value {
        let Self { id, error, stack, crumbs } = self;
        let crumbs: Vec<Value> = crumbs.into_iter().rev().map(Crumb::into_json).collect();
        let (tags, extra): (Map<_, _>, Map<_, _>) =
            error.fields.into_iter().partition(|(name, _)| CONTEXT.contains(&name.as_str()));
        let mut event = json!({
            "event_id": id,
            "timestamp": clock::rfc3339_utc(error.time).to_string(),
            "platform": "native",
            "level": if stack.is_some() { "fatal" } else { level(error.level) },
            "logger": error.target,
            "release": options.release,
            "environment": options.environment,
            "sdk": { "name": "superchat", "version": env!("CARGO_PKG_VERSION") },
            "contexts": { "os": { "name": std::env::consts::OS }, "device": { "arch": std::env::consts::ARCH } },
            "breadcrumbs": { "values": crumbs },
            "tags": tags.into_iter().map(|(name, value)| (name, tag(value))).collect::<Map<_, _>>(),
            "extra": extra,
        });
        match stack {
            None => event["logentry"] = json!({ "formatted": error.message }),
            Some(stack) => {
                event["exception"] = json!({ "values": [{
                "type": "panic",
                "value": error.message,
                "mechanism": { "type": "panic", "handled": false },
                "stacktrace": { "frames": stack.frames() },
            }] })
            }
        }
        event
    }
}

/// Values of tags are texts.
fn tag(value: Value) -> Value {
    match value {
        Value::String(_) => value,
        other => Value::String(other.to_string()),
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// 32 digits that no other report has: the keys of hash maps are as random as the system can make them.
fn new_id() -> String {
    let random = || RandomState::new().hash_one(clock::monotonic());
    format!("{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_form_and_differ() {
        let (one, other) = (new_id(), new_id());
        assert!(one.len() == 32 && one.bytes().all(|digit| digit.is_ascii_hexdigit()), "{one}");
        assert_ne!(one, other);
    }
}
