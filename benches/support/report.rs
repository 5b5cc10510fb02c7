//! The figures of a run: one line each, with the target where there is one.

use std::io::{self, Write as _};
use std::time::Duration;

use serde_json::json;

use super::histogram::Histogram;
use super::paired::Estimate;

/// What a figure should be.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    None,
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    /// `ok`, `MISSED`, `open` when the target lies within `low` and `high`, or nothing without a target.
    pub(crate) fn verdict(self, low: f64, high: f64) -> &'static str {
        let [is_met, can_be_met] = match self {
            Self::None => return "",
            Self::AtMost(bound) => [high <= bound, low <= bound],
            Self::AtLeast(bound) => [low >= bound, high >= bound],
        };
        match (is_met, can_be_met) {
            (true, _) => "ok",
            (false, true) => "open",
            (false, false) => "MISSED",
        }
    }

    fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::AtMost(bound) => format!("<= {}", number(bound)),
            Self::AtLeast(bound) => format!(">= {}", number(bound)),
        }
    }
}

struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    target: Target,
    verdict: &'static str,
}

/// Collects the figures of one scenario.
pub(crate) struct Report {
    scenario: &'static str,
    figures: Vec<Figure>,
}

impl Report {
    pub(crate) fn new(scenario: &'static str) -> Self {
        Self { scenario, figures: Vec::new() }
    }

    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str, target: Target) {
        let verdict = target.verdict(value, value);
        self.figures.push(Figure { name: name.into(), value, unit, target, verdict });
    }

    /// A figure without a target.
    pub(crate) fn note(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figure(name, value, unit, Target::None);
    }

    /// The middle, and the interval it lies in, which is measured against the target.
    pub(crate) fn estimate(&mut self, name: &str, estimate: Estimate, target: Target) {
        let verdict = target.verdict(estimate.low, estimate.high);
        self.figures.push(Figure { name: name.into(), value: estimate.median, unit: "%", target, verdict });
        self.note(format!("{name}, 95 % from"), estimate.low, "%");
        self.note(format!("{name}, to"), estimate.high, "%");
    }

    /// p50, p99 and p99.9 of `latency`, in microseconds.
    pub(crate) fn latency(&mut self, name: &str, latency: &Histogram) {
        for (label, permille) in [("p50", 500), ("p99", 990), ("p99.9", 999)] {
            self.note(format!("{name} {label}"), micros(latency.permille(permille)), "us");
        }
    }

    /// Writes an aligned table, or one JSON object per figure, to standard output.
    pub(crate) fn print(&self, as_json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for figure in &self.figures {
            let (target, verdict) = (figure.target.text(), figure.verdict);
            if as_json {
                let line = json!({
                    "scenario": self.scenario, "figure": figure.name, "value": figure.value, "unit": figure.unit,
                    "target": target, "verdict": verdict,
                });
                writeln!(out, "{line}")?;
            } else {
                let line = format!(
                    "{:<8} {:<52} {:>14} {:<8} {:<14} {verdict}",
                    self.scenario,
                    figure.name,
                    number(figure.value),
                    figure.unit,
                    target,
                );
                writeln!(out, "{}", line.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Three significant decimals where the value is small, none where it is large.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// `count` per second over `elapsed`.
pub(crate) fn per_second(count: u64, elapsed: Duration) -> f64 {
    float(count) / elapsed.as_secs_f64()
}

/// Microseconds of `cpu` for each of `count` operations, which is also seconds for a million of them.
pub(crate) fn micros_each(cpu: Duration, count: u64) -> f64 {
    micros(cpu) / float(count)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a bounded run stay far below 2^53")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// The middle of `values`, the mean of the two middle ones for an even number, NaN for none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => f64::NAN,
        (middle, 1) => sorted[middle],
        (middle, _) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}
