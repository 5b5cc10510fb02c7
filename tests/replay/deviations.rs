//! The list of deliberate differences, read from the project's copy of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Row id to what its column "seen in" says.
pub struct Deviations(BTreeMap<String, String>);

pub fn copy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/DEVIATIONS.md")
}

impl Deviations {
    pub fn read() -> Self {
        let text = std::fs::read_to_string(copy()).unwrap();
        let text = text.split_once("\n## ").expect("sections").1;
        let rows = text.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
        let rows = rows.filter_map(|row| {
            let (id, seen) = (row.split('|').next()?.trim(), row.split('|').next_back()?.trim());
            (id != "id").then(|| (id.to_owned(), seen.to_owned()))
        });
        Self(rows.collect())
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Ids of the rows that a replay of this capture must need. A capture named with "(no ...)" shows nothing of it, and
    /// "any" only may.
    pub fn seen_in<'d>(&'d self, capture: &str, registers: bool) -> impl Iterator<Item = &'d str> {
        let named = move |seen: &str| match seen {
            "all that register" => registers,
            list => list.split(", ").any(|name| name == capture),
        };
        self.0.iter().filter(move |(_, seen)| named(seen)).map(|(id, _)| id.as_str())
    }
}
