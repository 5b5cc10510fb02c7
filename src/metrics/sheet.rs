//! One scrape on its way out: samples by metric, and the two text formats.

use std::fmt::Write;

use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Series, MetricFamily, MetricType};

use super::cells::Snapshot;
use super::table::Metric;

/// The two text formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Exposition {
    /// The value of `Content-Type` for this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The samples of one scrape, a family for each row of the table.
pub(super) struct Sheet {
    families: Vec<Vec<Series>>,
    moved: Vec<bool>,
}

impl Sheet {
    pub(super) fn new() -> Self {
        Self { families: vec![Vec::new(); Metric::ALL.len()], moved: vec![false; Metric::ALL.len()] }
    }

    /// Adds a sample of a counter or a gauge.
    pub(super) fn sample(&mut self, metric: Metric, labels: &[&str], value: f64) {
        let mut series = Series::from_label(pairs(metric, labels));
        if metric.definition().kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            series.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            series.set_gauge(gauge);
        }
        self.push(metric, series, value != 0.0);
    }

    /// Adds a gauge without labels that is shown whatever it is.
    pub(super) fn known(&mut self, metric: Metric, value: f64) {
        self.sample(metric, &[], value);
        self.moved[metric as usize] = true;
    }

    /// Adds a histogram.
    pub(super) fn histogram(&mut self, metric: Metric, labels: &[&str], snapshot: &Snapshot) {
        let mut histogram = Histogram::default();
        histogram.set_sample_count(snapshot.count());
        histogram.set_sample_sum(snapshot.sum());
        histogram.set_bucket(snapshot.cumulative().map(bucket).collect());
        let mut series = Series::from_label(pairs(metric, labels));
        series.set_histogram(histogram);
        self.push(metric, series, snapshot.count() != 0);
    }

    fn push(&mut self, metric: Metric, series: Series, moved: bool) {
        self.families[metric as usize].push(series);
        self.moved[metric as usize] |= moved;
    }

    /// The families that have a source: announced ones, and those in which something moved.
    pub(super) fn families(self, announced: impl Fn(Metric) -> bool) -> Vec<MetricFamily> {
        let rows = Metric::ALL.iter().zip(self.families).zip(self.moved);
        rows.filter(|((metric, series), moved)| !series.is_empty() && (*moved || announced(**metric)))
            .map(|((metric, series), _)| family(*metric, series))
            .collect()
    }
}

fn pairs(metric: Metric, values: &[&str]) -> Vec<LabelPair> {
    let names = metric.definition().labels;
    debug_assert_eq!(names.len(), values.len(), "{metric:?} has other labels");
    names.iter().zip(values).map(|(name, value)| pair(name, value)).collect()
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

fn bucket((bound, count): (f64, u64)) -> Bucket {
    let mut bucket = Bucket::default();
    bucket.set_upper_bound(bound);
    bucket.set_cumulative_count(count);
    bucket
}

fn family(metric: Metric, series: Vec<Series>) -> MetricFamily {
    let definition = metric.definition();
    let mut family = MetricFamily::default();
    family.set_name(definition.name.to_owned());
    family.set_help(definition.help.to_owned());
    family.set_field_type(definition.kind);
    family.set_metric(series);
    family
}

/// Writes the families in one of the formats.
///
/// # Errors
/// A family that the Prometheus encoder refuses, which is our bug.
pub(super) fn encode(families: &[MetricFamily], format: Exposition) -> prometheus::Result<String> {
    match format {
        Exposition::Text => TextEncoder::new().encode_to_string(families),
        Exposition::OpenMetrics => Ok(open_metrics(families)),
    }
}

/// OpenMetrics differs where it matters: a counter's family has no `_total`, bounds are written as floats, and the end is
/// marked, so that a cut answer is noticed.
fn open_metrics(families: &[MetricFamily]) -> String {
    let mut out = String::with_capacity(1 << 16);
    for family in families {
        let kind = family.get_field_type();
        let name = if kind == MetricType::COUNTER { family.name().trim_end_matches("_total") } else { family.name() };
        let kind_text = match kind {
            MetricType::COUNTER => "counter",
            MetricType::HISTOGRAM => "histogram",
            _ => "gauge",
        };
        line(&mut out, format_args!("# HELP {name} {}", escaped(family.help())));
        line(&mut out, format_args!("# TYPE {name} {kind_text}"));
        for series in family.get_metric() {
            open_series(&mut out, name, kind, series);
        }
    }
    out.push_str("# EOF\n");
    out
}

fn open_series(out: &mut String, name: &str, kind: MetricType, series: &Series) {
    let labels = joined(series.get_label());
    match kind {
        MetricType::COUNTER => {
            line(out, format_args!("{name}_total{} {}", braced(&labels), series.get_counter().get_value()));
        }
        MetricType::HISTOGRAM => open_histogram(out, name, &labels, series.get_histogram()),
        _ => line(out, format_args!("{name}{} {}", braced(&labels), series.get_gauge().get_value())),
    }
}

fn open_histogram(out: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let comma = if labels.is_empty() { "" } else { "," };
    for bucket in histogram.get_bucket() {
        let (bound, count) = (bound_text(bucket.upper_bound()), bucket.cumulative_count());
        line(out, format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"));
    }
    let count = histogram.get_sample_count();
    line(out, format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}"));
    line(out, format_args!("{name}_count{} {count}", braced(labels)));
    line(out, format_args!("{name}_sum{} {}", braced(labels), histogram.get_sample_sum()));
}

/// OpenMetrics wants a whole number as a float; small ones stay spelled as in the other format, as labels are texts.
fn bound_text(bound: f64) -> String {
    if bound.fract() == 0.0 { format!("{bound:.1}") } else { bound.to_string() }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    out.write_fmt(text).ok();
    out.push('\n');
}

fn joined(labels: &[LabelPair]) -> String {
    let texts: Vec<_> = labels.iter().map(|pair| format!("{}=\"{}\"", pair.name(), escaped(pair.value()))).collect();
    texts.join(",")
}

fn braced(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}
