//! What differs from run to run: which field holds which kind of id or time, and how two runs' values correspond.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::link::{Fields, shorten};

/// What a field holds that is not the same in two runs. Ids of different kinds have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Channel,
    Message,
    User,
    Session,
    Ban,
    Key,
    Invite,
    /// What proves a server to a directory.
    Challenge,
    /// A point in time, in milliseconds: whether it is there is the same, its value is not.
    Time,
    /// A duration that depends on when one asks.
    Uptime,
}

/// The kind of a field, `None` for what is the same in every run (WIRE.md 7). `fields` are those of its message or item.
pub fn kind(message: &str, field: &str, fields: &Fields) -> Option<Kind> {
    Some(match (field, message) {
        ("dm_channel_id", "DM_PARTICIPANT_LEFT") => Kind::Channel,
        ("dm_channel_id", _) => Kind::Invite,
        ("channel_id" | "subchannel_id" | "from_channel_id", _) => Kind::Channel,
        ("message_id" | "parent_id" | "thread_id" | "before_id" | "after_id", _) => Kind::Message,
        ("user_id" | "author_user_id" | "waiting_for_user_id" | "from_user_id" | "other_user_id", _) => Kind::User,
        ("session_id", _) => Kind::Session,
        ("ban_id", _) => Kind::Ban,
        ("key_id", _) => Kind::Key,
        ("id", "SUBSCRIBE_OK") if fields["subscription_type"] == 1 => Kind::Message,
        ("id", "SUBSCRIBE_OK") => Kind::Channel,
        ("target_id", "START_DM") if fields["target_type"] == 2 => Kind::Session,
        ("target_id", "START_DM") => Kind::User,
        ("created_at" | "edited_at" | "deleted_at" | "added_at" | "last_used_at" | "banned_at" | "banned_until", _) => {
            Kind::Time
        }
        ("since_timestamp", "GET_UNREAD_COUNTS") | ("timestamp", "UPDATE_READ_STATE") => Kind::Time,
        ("challenge", _) => Kind::Challenge,
        ("uptime_seconds", _) => Kind::Uptime,
        _ => return None,
    })
}

/// Which id of this run stands for which id of the capture, learnt from what the server sends.
#[derive(Debug, Clone)]
pub struct Ids {
    here: BTreeMap<(Kind, String), String>,
    recorded: BTreeMap<(Kind, String), String>,
}

impl Ids {
    /// The five channels that every server starts with have their numbers, and 0 names nothing.
    pub fn new() -> Self {
        let mut ids = Self { here: BTreeMap::new(), recorded: BTreeMap::new() };
        for kind in [Kind::Channel, Kind::Message, Kind::User, Kind::Session, Kind::Ban, Kind::Key, Kind::Invite] {
            assert!(ids.correspond(kind, "0", "0"));
        }
        for channel in ["1", "2", "3", "4", "5"] {
            assert!(ids.correspond(Kind::Channel, channel, channel));
        }
        ids
    }

    /// Whether the two ids mean the same thing. Ids never met before do from now on.
    fn correspond(&mut self, kind: Kind, recorded: &str, here: &str) -> bool {
        let (there, back) = ((kind, recorded.to_owned()), (kind, here.to_owned()));
        match (self.here.get(&there), self.recorded.get(&back)) {
            (None, None) => {
                self.here.insert(there, here.into());
                self.recorded.insert(back, recorded.into());
                true
            }
            (Some(known), _) => known == here,
            (None, Some(_)) => false,
        }
    }

    /// The id of this run; one that nobody introduced names nothing in either run and stays.
    pub fn translate(&self, kind: Kind, recorded: &str) -> String {
        self.here.get(&(kind, recorded.to_owned())).cloned().unwrap_or_else(|| recorded.into())
    }
}

/// The fields with every id and time replaced by what `translate` says.
pub fn map_fields(message: &str, fields: &Fields, translate: &mut impl FnMut(Kind, &str) -> String) -> Fields {
    let entry = |(name, value): (&String, &Value)| {
        let value = match (value, kind(message, name, fields)) {
            (Value::String(text), Some(kind)) => Value::String(translate(kind, text)),
            (Value::Array(items), None) => items.iter().map(|item| map_item(message, item, translate)).collect(),
            (other, _) => other.clone(),
        };
        (name.clone(), value)
    };
    fields.iter().map(entry).collect()
}

fn map_item(message: &str, item: &Value, translate: &mut impl FnMut(Kind, &str) -> String) -> Value {
    match item {
        Value::Object(fields) => Value::Object(map_fields(message, fields, translate)),
        other => other.clone(),
    }
}

/// Compares a message of the capture with one of this run, field by field, and learns the ids. Empty when equal; the
/// ids learnt count only then.
pub fn differences(message: &str, recorded: &Fields, here: &Fields, ids: &mut Ids) -> Vec<String> {
    let mut found = Vec::new();
    compare_fields(message, "", recorded, here, ids, &mut found);
    found
}

fn compare_fields(message: &str, path: &str, recorded: &Fields, here: &Fields, ids: &mut Ids, found: &mut Vec<String>) {
    for (name, value) in recorded {
        let path = format!("{path}{name}");
        match here.get(name) {
            Some(other) => compare(message, &path, kind(message, name, recorded), value, other, ids, found),
            None => found.push(format!("{path}: expected {value}, missing")),
        }
    }
    let added = here.keys().filter(|name| !recorded.contains_key(*name));
    found.extend(added.map(|name| format!("{path}{name}: not expected, got {}", here[name])));
}

fn compare(
    message: &str,
    path: &str,
    kind: Option<Kind>,
    recorded: &Value,
    here: &Value,
    ids: &mut Ids,
    found: &mut Vec<String>,
) {
    let equal = match (recorded, here, kind) {
        (Value::Array(left), Value::Array(right), _) => {
            compare_items(message, path, left, right, ids, found);
            return;
        }
        (Value::Null, _, _) | (_, Value::Null, _) => recorded == here,
        // 0 stands for "never" where a time cannot be absent.
        (_, _, Some(Kind::Time)) => (recorded == "0") == (here == "0"),
        (_, _, Some(Kind::Uptime)) => true,
        (Value::String(left), Value::String(right), Some(kind)) => ids.correspond(kind, left, right),
        (Value::String(left), Value::String(right), None) => without_end(left) == without_end(right),
        _ => recorded == here,
    };
    if !equal {
        let wanted = match (recorded, kind) {
            (Value::String(id), Some(kind)) => format!("{kind:?} {} (recorded as {id})", ids.translate(kind, id)),
            _ => shorten(&recorded.to_string()),
        };
        found.push(format!("{path}: expected {wanted}, got {}", shorten(&here.to_string())));
    }
}

/// A text that may tell until when somebody is banned, without that moment.
fn without_end(text: &str) -> (&str, &str) {
    const UNTIL: &str = "banned until ";
    let Some((before, rest)) = text.split_once(UNTIL) else { return (text, "") };
    (before, rest.split_once(". ").map_or("", |(_, after)| after))
}

fn compare_items(message: &str, path: &str, left: &[Value], right: &[Value], ids: &mut Ids, found: &mut Vec<String>) {
    if left.len() != right.len() {
        found.push(format!("{path}: expected {} items, got {}", left.len(), right.len()));
    }
    for (place, pair) in left.iter().zip(right).enumerate() {
        if let (Value::Object(left), Value::Object(right)) = pair {
            compare_fields(message, &format!("{path}[{place}]."), left, right, ids, found);
        } else if pair.0 != pair.1 {
            found.push(format!("{path}[{place}]: expected {}, got {}", pair.0, pair.1));
        }
    }
}
