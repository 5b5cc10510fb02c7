//! Profiles that show how things stand at a moment, one row each.

use super::super::guard::Request;
use super::Trouble;
use crate::metrics::ProcessStats;
use crate::profile::heap::Shown;
use crate::profile::threads::ThreadStack;
use crate::profile::{Frame, Label, Profile, Sample, heap, tasks, text, threads, waits};

/// All of them, in the order of their names.
pub(super) const SNAPSHOTS: &[Snapshot] = &[
    Snapshot { name: "allocs", take: allocs, count: heap_count, text: heap_text, rate: None },
    Snapshot {
        name: "block",
        take: || Ok(waits::block_profile()),
        count: waits::block_count,
        text: block_text,
        rate: Some(Rate {
            parameter: "rate",
            about: "ns a wait must take to be recorded for sure, of shorter ones their share; 1 records all, 0 none",
            most: u64::MAX,
            get: waits::block_rate,
            set: |rate| {
                waits::set_block_rate(rate);
                Ok(())
            },
        }),
    },
    Snapshot { name: "goroutine", take: goroutines, count: goroutine_count, text: goroutine_text, rate: None },
    Snapshot {
        name: "heap",
        take: heap,
        count: heap_count,
        text: heap_text,
        rate: Some(Rate {
            parameter: "active",
            about: "1 samples allocations, for allocs too; 0 does not: what is allocated meanwhile is never shown",
            most: 1,
            get: || u64::from(heap::is_sampled()),
            set: |active| heap::set_sampled(active > 0).map_err(|error| error.to_string()),
        }),
    },
    Snapshot {
        name: "mutex",
        take: || Ok(waits::mutex_profile()),
        count: waits::mutex_count,
        text: mutex_text,
        rate: Some(Rate {
            parameter: "fraction",
            about: "waits for locks of which one is recorded; 1 records all, 0 none",
            most: u64::MAX,
            get: waits::mutex_fraction,
            set: |fraction| {
                waits::set_mutex_fraction(fraction);
                Ok(())
            },
        }),
    },
    Snapshot {
        name: "threadcreate",
        take: || Ok(threads::created()),
        count: thread_count,
        text: thread_text,
        rate: None,
    },
];

/// One kind of look at the process.
pub(super) struct Snapshot {
    pub(super) name: &'static str,
    take: fn() -> Result<Profile, String>,
    /// For the index.
    pub(super) count: fn() -> usize,
    /// What `debug=1` shows, and greater numbers.
    pub(super) text: fn(&Profile, i64) -> String,
    /// How much is recorded, where that can be said.
    pub(super) rate: Option<Rate>,
}

/// What a POST may change.
pub(super) struct Rate {
    pub(super) parameter: &'static str,
    pub(super) about: &'static str,
    /// The greatest value there is.
    most: u64,
    pub(super) get: fn() -> u64,
    set: fn(u64) -> Result<(), String>,
}

impl Rate {
    fn values(&self) -> &'static str {
        if self.most == 1 { "0 or 1" } else { "0 or a positive integer" }
    }
}

fn allocs() -> Result<Profile, String> {
    heap::take(Shown::Allocated).map_err(|error| error.to_string())
}

fn heap() -> Result<Profile, String> {
    heap::take(Shown::InUse).map_err(|error| error.to_string())
}

fn heap_count() -> usize {
    heap::take(Shown::InUse).map_or(0, |profile| profile.samples.len())
}

fn heap_text(profile: &Profile, _: i64) -> String {
    text::memory(profile)
}

fn block_text(profile: &Profile, _: i64) -> String {
    text::waits("contention", profile)
}

fn mutex_text(profile: &Profile, _: i64) -> String {
    text::waits("mutex", profile)
}

fn goroutine_count() -> usize {
    tasks::snapshot().len() + thread_count()
}

fn goroutine_text(profile: &Profile, debug: i64) -> String {
    match debug {
        ..=1 => text::count("goroutine", profile),
        _ => text::dump(&tasks::snapshot(), &threads::stacks()),
    }
}

fn thread_count() -> usize {
    let threads = ProcessStats::read().threads.unwrap_or(0);
    usize::try_from(threads).unwrap_or(usize::MAX)
}

fn thread_text(profile: &Profile, _: i64) -> String {
    text::count("threadcreate", profile)
}

/// Tasks and threads alike.
fn goroutines() -> Result<Profile, String> {
    let mut profile = tasks::profile();
    profile.samples.extend(threads::stacks().into_iter().map(sample));
    Ok(profile)
}

fn sample(thread: ThreadStack) -> Sample {
    let silent = vec![Frame::Name("a thread that did not answer")];
    Sample {
        stack: if thread.frames.is_empty() { silent } else { thread.frames },
        values: vec![1],
        labels: vec![("thread", Label::Text(thread.name))],
    }
}

impl Snapshot {
    pub(super) fn named(name: &str) -> Result<&'static Self, Trouble> {
        let unknown = || Trouble { status: 404, line: "Unknown profile".to_owned() };
        SNAPSHOTS.iter().find(|snapshot| snapshot.name == name).ok_or_else(unknown)
    }

    pub(super) fn take(&self) -> Result<Profile, Trouble> {
        (self.take)().map_err(|error| Trouble::failed(format!("failed to collect profile: {error}")))
    }

    /// Records more or less from now on, and says how much.
    pub(super) fn set_rate(&self, request: &Request) -> Result<String, Trouble> {
        let Some(rate) = &self.rate else { return Err(Trouble::unreadable("nothing can be set here")) };
        if !is_same_site(request) {
            return Err(Trouble { status: 403, line: "a page of another site cannot change this".to_owned() });
        }
        let form = std::str::from_utf8(request.body()).unwrap_or_default();
        let mut pairs = form.split('&').chain(request.query().split('&')).filter_map(|pair| pair.split_once('='));
        let value = pairs.find_map(|(name, value)| (name == rate.parameter).then_some(value));
        let value = value.and_then(|value| value.trim().parse().ok()).filter(|value| *value <= rate.most);
        let value = value.ok_or_else(|| {
            Trouble::unreadable(format!("invalid value for \"{}\" - must be {}", rate.parameter, rate.values()))
        })?;
        (rate.set)(value).map_err(Trouble::failed)?;
        tracing::info!(remote = %request.peer(), "{} profile: {} set to {value}", self.name, rate.parameter);
        Ok(format!("{} profile: {} is {value}", self.name, rate.parameter))
    }
}

/// A browser says which page a form comes from; other programs say nothing.
fn is_same_site(request: &Request) -> bool {
    match (request.header("Origin"), request.header("Host")) {
        (Some(origin), Some(host)) => origin.strip_prefix("http://") == Some(host),
        (Some(_), None) => false,
        (None, _) => true,
    }
}
