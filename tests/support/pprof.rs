//! Reads `profile.proto`, as far as tests ask: by the description of the format, not by what writes it.

use std::collections::HashMap;
use std::io::Read as _;

/// A profile with everything looked up.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    pub(crate) sample_types: Vec<(String, String)>,
    pub(crate) samples: Vec<DecodedSample>,
    pub(crate) mappings: Vec<DecodedMapping>,
    pub(crate) drop_frames: String,
    pub(crate) default_sample_type: String,
    pub(crate) period_type: (String, String),
    pub(crate) period: i64,
    pub(crate) time_nanos: i64,
    pub(crate) duration_nanos: i64,
    pub(crate) comments: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct DecodedSample {
    /// Leaf first; each location with its lines, innermost first.
    pub(crate) stack: Vec<DecodedLocation>,
    pub(crate) values: Vec<i64>,
    /// Numbers as text with their unit.
    pub(crate) labels: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DecodedLocation {
    pub(crate) number: u64,
    pub(crate) mapping: u64,
    pub(crate) address: u64,
    pub(crate) lines: Vec<DecodedLine>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DecodedLine {
    pub(crate) function: String,
    pub(crate) system_name: String,
    pub(crate) file: String,
    pub(crate) line: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct DecodedMapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) file: String,
    pub(crate) build_id: String,
    /// has_functions, has_filenames, has_line_numbers, has_inline_frames.
    pub(crate) has: [bool; 4],
}

impl DecodedSample {
    /// Whether a function of that name, in whatever module, is on the stack. Names come without their modules where there
    /// are line tables only.
    pub(crate) fn passes(&self, function: &str) -> bool {
        let mut lines = self.stack.iter().flat_map(|location| &location.lines);
        lines.any(|line| line.function.rsplit("::").next() == Some(function))
    }
}

impl Decoded {
    /// The sum of the values of `kind` over samples that pass through `function`; of all when that is empty.
    pub(crate) fn sum(&self, kind: &str, function: &str) -> i64 {
        let index =
            self.sample_types.iter().position(|(known, _)| known == kind).unwrap_or_else(|| panic!("no {kind}"));
        let wanted = self.samples.iter().filter(|sample| function.is_empty() || sample.passes(function));
        wanted.map(|sample| sample.values[index]).sum()
    }
}

/// One field: its number and what it holds.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(_) => panic!("bytes where a number belongs"),
        }
    }

    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => panic!("a number where bytes belong"),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a number is cut off");
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return number;
        }
    }
    panic!("a number of more than ten bytes");
}

fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(value)
            }
            form => panic!("form {form} does not come up in profiles"),
        };
        fields.push((tag >> 3, field));
    }
    fields
}

fn packed(mut bytes: &[u8]) -> Vec<u64> {
    let mut numbers = Vec::new();
    while !bytes.is_empty() {
        numbers.push(varint(&mut bytes));
    }
    numbers
}

/// The single number of a field, 0 when it is not there.
fn number(message: &[(u64, Field<'_>)], field: u64) -> u64 {
    message.iter().find(|(number, _)| *number == field).map_or(0, |(_, field)| field.number())
}

fn all<'a>(message: &[(u64, Field<'a>)], field: u64) -> Vec<Vec<(u64, Field<'a>)>> {
    let wanted = message.iter().filter(|(number, _)| *number == field);
    wanted.map(|(_, field)| fields(field.bytes())).collect()
}

pub(crate) fn gunzip(file: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut message).expect("a profile is gzipped");
    message
}

/// Reads a whole file, and checks that everything it refers to is there.
pub(crate) fn decode(file: &[u8]) -> Decoded {
    let message = gunzip(file);
    let message = fields(&message);
    let strings: Vec<&str> = message
        .iter()
        .filter(|(number, _)| *number == 6)
        .map(|(_, field)| std::str::from_utf8(field.bytes()).expect("strings are UTF-8"))
        .collect();
    assert_eq!(strings.first(), Some(&""), "the first string is the empty one");
    let string = |number: u64| strings[usize::try_from(number).unwrap()].to_owned();
    let value_type = |message: &[(u64, Field<'_>)]| (string(number(message, 1)), string(number(message, 2)));

    let functions: HashMap<u64, [String; 3]> = all(&message, 5)
        .iter()
        .map(|function| (number(function, 1), [2, 3, 4].map(|field| string(number(function, field)))))
        .collect();
    let mappings: Vec<DecodedMapping> = all(&message, 3)
        .iter()
        .enumerate()
        .map(|(index, mapping)| {
            assert_eq!(number(mapping, 1), index as u64 + 1);
            DecodedMapping {
                start: number(mapping, 2),
                end: number(mapping, 3),
                file: string(number(mapping, 5)),
                build_id: string(number(mapping, 6)),
                has: [7, 8, 9, 10].map(|field| number(mapping, field) == 1),
            }
        })
        .collect();
    let line = |line: &Vec<(u64, Field<'_>)>| {
        let [function, system_name, file] = functions[&number(line, 1)].clone();
        DecodedLine { function, system_name, file, line: number(line, 2) }
    };
    let mut locations = HashMap::new();
    for location in all(&message, 4) {
        let decoded = DecodedLocation {
            number: number(&location, 1),
            mapping: number(&location, 2),
            address: number(&location, 3),
            lines: all(&location, 4).iter().map(line).collect(),
        };
        assert!(decoded.number != 0 && decoded.mapping <= mappings.len() as u64);
        assert!(locations.insert(decoded.number, decoded).is_none(), "a number names one location");
    }
    let label = |label: &Vec<(u64, Field<'_>)>| {
        let text = match number(label, 2) {
            0 => format!("{} {}", number(label, 3).cast_signed(), string(number(label, 4))),
            text => string(text),
        };
        (string(number(label, 1)), text)
    };
    let sample = |sample: &Vec<(u64, Field<'_>)>| {
        let row = |wanted| {
            let field = sample.iter().find(|(number, _)| *number == wanted);
            packed(field.map_or(&[][..], |(_, field)| field.bytes()))
        };
        DecodedSample {
            stack: row(1).iter().map(|number| locations[number].clone()).collect(),
            values: row(2).into_iter().map(u64::cast_signed).collect(),
            labels: all(sample, 3).iter().map(label).collect(),
        }
    };
    Decoded {
        sample_types: all(&message, 1).iter().map(|message| value_type(message)).collect(),
        samples: all(&message, 2).iter().map(sample).collect(),
        mappings,
        drop_frames: string(number(&message, 7)),
        default_sample_type: string(number(&message, 14)),
        period_type: value_type(&all(&message, 11)[0]),
        period: number(&message, 12).cast_signed(),
        time_nanos: number(&message, 9).cast_signed(),
        duration_nanos: number(&message, 10).cast_signed(),
        comments: message.iter().filter(|(number, _)| *number == 13).map(|(_, field)| string(field.number())).collect(),
    }
}
