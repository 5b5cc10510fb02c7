//! `profile.proto`, the form that pprof's tools read. Numbers of fields are those of that file.
//!
//! It is written here and not by a crate's message types, because nine small messages that are only written need no more
//! than three forms: a number, bytes, a row of numbers.

use std::collections::HashMap;
use std::io::{self, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::mappings::{self, Mapping};
use super::symbols::{self, Line, Resolved};
use super::{Frame, Label, Profile, Sample, ValueType};

/// The file that pprof's tools read: `profile.proto`, gzipped.
#[must_use]
pub fn gzip(profile: &Profile) -> Vec<u8> {
    let frames = frames(profile);
    let resolved = symbols::resolve(&frames);
    compress(&Encoder::new(mappings::all()).encode(profile, &frames, &resolved)).unwrap_or_else(|error| {
        unreachable!("writing to memory does not fail: {error}");
    })
}

fn compress(message: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(message)?;
    gzip.finish()
}

/// The different frames of a profile. Each becomes one location, numbered by its place here.
fn frames(profile: &Profile) -> Vec<Frame> {
    let mut frames: Vec<Frame> =
        profile.samples.iter().flat_map(|sample| &sample.stack).copied().map(located).collect();
    frames.sort_unstable();
    frames.dedup();
    frames
}

/// Tools want one location per address, whether it was running or returned to.
fn located(frame: Frame) -> Frame {
    frame.address().map_or(frame, Frame::Pc)
}

/// A message of protocol buffers. Fields that have their default are left out.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn number(&mut self, field: u64, number: u64) {
        if number != 0 {
            self.varint(field << 3);
            self.varint(number);
        }
    }

    /// Negative numbers go as they lie in memory, as the format has it.
    fn signed(&mut self, field: u64, number: i64) {
        self.number(field, number.cast_unsigned());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut message = Self::default();
        fill(&mut message);
        self.bytes(field, &message.0);
    }

    fn packed(&mut self, field: u64, numbers: impl Iterator<Item = u64>) {
        self.message(field, |message| numbers.for_each(|number| message.varint(number)));
    }
}

/// Numbers things in the order of their first mention.
struct Numbered<T> {
    numbers: HashMap<T, u64>,
    first: u64,
}

impl<T: Eq + std::hash::Hash> Numbered<T> {
    fn new(first: u64) -> Self {
        Self { numbers: HashMap::new(), first }
    }

    /// The number, and whether this is the first mention.
    fn number(&mut self, thing: T) -> (u64, bool) {
        let next = self.first + self.numbers.len() as u64;
        let number = *self.numbers.entry(thing).or_insert(next);
        (number, number == next)
    }
}

/// A profile under way: what is mentioned is written when it is mentioned first.
struct Encoder {
    out: Message,
    strings: Numbered<String>,
    functions: Numbered<[u64; 3]>,
    mappings: Vec<Mapping>,
}

impl Encoder {
    fn new(mappings: Vec<Mapping>) -> Self {
        let mut encoder =
            Self { out: Message::default(), strings: Numbered::new(0), functions: Numbered::new(1), mappings };
        // The first string must be the empty one.
        encoder.string("");
        encoder
    }

    fn encode(mut self, profile: &Profile, frames: &[Frame], resolved: &[Resolved]) -> Vec<u8> {
        for sample_type in profile.sample_types {
            self.value_type(1, *sample_type);
        }
        let has = Has::of(resolved);
        for number in 0..self.mappings.len() {
            self.mapping(number, &has);
        }
        for (number, resolved) in (1..).zip(resolved) {
            self.location(number, resolved);
        }
        for sample in &profile.samples {
            self.sample(sample, frames);
        }
        self.head(profile);
        self.out.0
    }

    fn head(&mut self, profile: &Profile) {
        let drop_frames = self.string(profile.drop_frames);
        self.out.number(7, drop_frames);
        self.out.signed(9, profile.time_nanos);
        self.out.signed(10, profile.duration_nanos);
        self.value_type(11, profile.period_type);
        self.out.signed(12, profile.period);
        for comment in &profile.comments {
            let comment = self.string(comment);
            self.out.number(13, comment);
        }
        let default_sample_type = self.string(profile.default_sample_type);
        self.out.number(14, default_sample_type);
    }

    fn string(&mut self, text: &str) -> u64 {
        let (number, is_new) = self.strings.number(text.to_owned());
        if is_new {
            self.out.bytes(6, text.as_bytes());
        }
        number
    }

    fn value_type(&mut self, field: u64, value_type: ValueType) {
        let (kind, unit) = (self.string(value_type.kind), self.string(value_type.unit));
        self.out.message(field, |message| {
            message.number(1, kind);
            message.number(2, unit);
        });
    }

    fn mapping(&mut self, index: usize, has: &Has) {
        let Mapping { start, end, offset, file, build_id } = self.mappings[index].clone();
        let (file, build_id) = (self.string(&file), self.string(&build_id));
        self.out.message(3, |message| {
            message.number(1, index as u64 + 1);
            message.number(2, start as u64);
            message.number(3, end as u64);
            message.number(4, offset);
            message.number(5, file);
            message.number(6, build_id);
            // Without these, tools look for names in files of their own.
            message.number(7, u64::from(has.functions));
            message.number(8, u64::from(has.files));
            message.number(9, u64::from(has.lines));
            message.number(10, u64::from(has.inlines));
        });
    }

    fn location(&mut self, number: u64, resolved: &Resolved) {
        let address = resolved.address.unwrap_or(0);
        let mapping = self.mappings.iter().position(|mapping| (mapping.start..mapping.end).contains(&address));
        let lines: Vec<(u64, u32)> = resolved.lines.iter().map(|line| (self.function(line), line.line)).collect();
        self.out.message(4, |message| {
            message.number(1, number);
            message.number(2, mapping.map_or(0, |mapping| mapping as u64 + 1));
            message.number(3, address as u64);
            for (function, line) in lines {
                message.message(4, |message| {
                    message.number(1, function);
                    message.number(2, line.into());
                });
            }
        });
    }

    fn function(&mut self, line: &Line) -> u64 {
        let names = [&line.function, &line.system_name, &line.file].map(|name| self.string(name));
        let (number, is_new) = self.functions.number(names);
        if is_new {
            let [name, system_name, file] = names;
            self.out.message(5, |message| {
                message.number(1, number);
                message.number(2, name);
                message.number(3, system_name);
                message.number(4, file);
            });
        }
        number
    }

    fn sample(&mut self, sample: &Sample, frames: &[Frame]) {
        let location = |frame: &Frame| frames.binary_search(&located(*frame)).map_or(0, |index| index as u64 + 1);
        let labels: Vec<(u64, &Label, u64)> = sample
            .labels
            .iter()
            .map(|(key, label)| {
                let text = match label {
                    Label::Text(text) => text.as_str(),
                    Label::Number(_, unit) => unit,
                };
                (self.string(key), label, self.string(text))
            })
            .collect();
        self.out.message(2, |message| {
            message.packed(1, sample.stack.iter().map(location));
            message.packed(2, sample.values.iter().map(|value| value.cast_unsigned()));
            for (key, label, text) in labels {
                message.message(3, |message| {
                    message.number(1, key);
                    match label {
                        Label::Text(_) => message.number(2, text),
                        Label::Number(number, _) => {
                            message.signed(3, *number);
                            message.number(4, text);
                        }
                    }
                });
            }
        });
    }
}

/// What was found out about addresses: a program without debug information has names only, and it is then for the tool
/// to find the rest.
struct Has {
    functions: bool,
    files: bool,
    lines: bool,
    inlines: bool,
}

impl Has {
    fn of(resolved: &[Resolved]) -> Self {
        let mut by_address = resolved.iter().filter(|resolved| resolved.address.is_some()).peekable();
        if by_address.peek().is_none() {
            return Self { functions: true, files: true, lines: true, inlines: true };
        }
        let all: Vec<&Line> = by_address.flat_map(|resolved| &resolved.lines).collect();
        let has_lines = all.iter().any(|line| line.line != 0);
        let has_names = all.iter().any(|line| !line.function.starts_with("0x"));
        Self { functions: has_names, files: has_lines, lines: has_lines, inlines: has_lines }
    }
}
