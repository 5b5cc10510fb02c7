//! Panics: one line for the log, and the stack for a report.

use std::backtrace::Backtrace;
use std::fmt;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tracing::error;

/// Marks the log's line of a panic.
pub(super) const TARGET: &str = "panic";

/// Deepest stack that is reported; what is cut is farthest from the panic.
const FRAMES_MAX: usize = 100;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Panics of this process since [`hook`] was set, on whatever thread and whether caught or not: `superchat_panics_total`.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Counts and logs a panic where it happens, for `std::panic::set_hook`: the one place that all of them come by.
///
/// A panic's own text may quote what it was about, so it ends where a value may begin. The place says the rest.
pub fn hook(panic: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    let text = panic.payload_as_str().map_or("", without_values);
    let place = panic.location().map_or_else(String::new, ToString::to_string);
    let thread = std::thread::current();
    error!(target: TARGET, place, thread = thread.name().unwrap_or_default(), "panic: {text}");
}

/// Up to the first sign behind which a formatted value may stand.
fn without_values(text: &str) -> &str {
    text.split([':', '`', '\'', '"', '\n', '(', '[', '{']).next().unwrap_or_default().trim_end()
}

/// The calls that led here. Their names are looked up when somebody wants them: that takes time which the panicking
/// thread does not have.
pub(super) struct Stack(Backtrace);

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stack")
    }
}

impl Stack {
    pub(super) fn here() -> Self {
        Self(Backtrace::force_capture())
    }

    /// As events have it: the oldest call first.
    pub(super) fn frames(&self) -> Value {
        let mut frames = frames(&self.0.to_string());
        frames.reverse();
        Value::Array(frames)
    }
}

/// Reads `12: name` and `at file:line:column` lines, the newest call first, from the one that panicked on.
fn frames(printed: &str) -> Vec<Value> {
    let mut calls: Vec<(&str, Option<&str>)> = Vec::new();
    for line in printed.lines().map(str::trim) {
        match (line.strip_prefix("at "), line.split_once(": ")) {
            (Some(place), _) => calls.last_mut().into_iter().for_each(|call| call.1 = Some(place)),
            (None, Some((number, name))) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                calls.push((name, None))
            }
            _ => {}
        }
    }
    let machinery = calls.iter().position(|(name, _)| name.ends_with("rust_begin_unwind")).map_or(0, |at| at + 1);
    let own = calls.iter().skip(machinery).skip_while(|call| machinery > 0 && is_of_the_language(call));
    own.take(FRAMES_MAX).map(|(name, place)| frame(name, place.unwrap_or_default())).collect()
}

/// Where panics of the standard library begin. A call that was inlined has a short name, but a place.
fn is_of_the_language((name, place): &(&str, Option<&str>)) -> bool {
    name.starts_with("core::") || place.is_some_and(|place| place.starts_with("/rustc/"))
}

fn is_own(name: &str, file: &str) -> bool {
    let named = name.trim_start_matches('<').starts_with("superchat::") || name.starts_with("scd::");
    named || !(file.is_empty() || file.starts_with("/rustc/") || file.contains("registry/src/"))
}

fn frame(name: &str, place: &str) -> Value {
    let mut parts = place.rsplitn(3, ':');
    let (column, line, file) = (parts.next(), parts.next(), parts.next());
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u32>().ok());
    json!({
        "function": name,
        "filename": file,
        "lineno": number(line),
        "colno": number(column),
        "in_app": is_own(name, file.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_where_a_value_may_begin() {
        for (text, kept) in [
            ("handlers run only for live sessions", "handlers run only for live sessions"),
            ("index out of bounds: the len is 3 but the index is 5", "index out of bounds"),
            (
                "byte index 1 is not a char boundary; it is inside 'é' of `secret`",
                "byte index 1 is not a char boundary; it is inside",
            ),
            ("assertion `left == right` failed\n  left: secret", "assertion"),
            ("no: FromUtf8Error { bytes: [115] }", "no"),
        ] {
            assert_eq!(without_values(text), kept);
        }
    }

    #[test]
    fn a_stack_begins_at_the_call_that_panicked() {
        let printed = "   0: superchat::errors::panic::Stack::here\n             at ./src/errors/panic.rs:9:1\n   \
                       1: __rustc::rust_begin_unwind\n   2: core::panicking::panic_fmt\n   3: expect<u8>\n             \
                       at /rustc/result.rs:75:14\n   4: superchat::shard::Shard::handle\n             \
                       at ./src/shard/mod.rs:12:34\n   5: <superchat::x::Y as core::ops::Drop>::drop\n   6: main\n";
        let frames = frames(printed);
        assert_eq!(frames.len(), 3);
        let newest = json!({
            "function": "superchat::shard::Shard::handle", "filename": "./src/shard/mod.rs", "lineno": 12, "colno": 34,
            "in_app": true,
        });
        assert_eq!(frames[0], newest);
        assert_eq!((&frames[1]["in_app"], &frames[2]["in_app"]), (&json!(true), &json!(false)));
    }
}
