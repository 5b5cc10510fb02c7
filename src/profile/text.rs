//! Profiles as text for people (`debug=1`, `debug=2`), in the forms of Go's runtime, which its tool reads as well.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};

use super::symbols::{self, Line};
use super::tasks::{Doing, TaskInfo};
use super::threads::ThreadStack;
use super::{Frame, Place, Profile, heap};

/// What is in use, and in brackets what was allocated since the start: objects and bytes.
#[must_use]
pub fn memory(profile: &Profile) -> String {
    // The name after the @ tells the tool that the numbers are not to be scaled any more.
    let order = ["inuse_objects", "inuse_space", "alloc_objects", "alloc_space"].map(|kind| column(profile, kind));
    let numbers = |values: &[i64]| {
        let [objects, bytes, all_objects, all_bytes] =
            order.map(|column| column.and_then(|at| values.get(at)).unwrap_or(&0));
        format!("{objects}: {bytes} [{all_objects}: {all_bytes}] @")
    };
    let text = format!("heap profile: {} heapprofile\n", numbers(&totals(profile)));
    text + &stacks(profile, "inuse_space", numbers)
}

/// How many tasks, threads, or whatever `name` says.
#[must_use]
pub fn count(name: &str, profile: &Profile) -> String {
    let numbers = |values: &[i64]| format!("{} @", values.first().unwrap_or(&0));
    let total = totals(profile).first().copied().unwrap_or(0);
    format!("{name} profile: total {total}\n") + &stacks(profile, profile.default_sample_type, numbers)
}

/// Nanoseconds and number of waits; `heading` is Go's, `contention` or `mutex`.
#[must_use]
pub fn waits(heading: &str, profile: &Profile) -> String {
    let order = ["delay", "contentions"].map(|kind| column(profile, kind));
    let numbers = |values: &[i64]| {
        let [delay, contentions] = order.map(|column| column.and_then(|at| values.get(at)).unwrap_or(&0));
        format!("{delay} {contentions} @")
    };
    // The tool multiplies by the period; ours are whole numbers of waits already.
    let text = format!("--- {heading}:\ncycles/second=1000000000\nsampling period=1\n");
    text + &stacks(profile, "delay", numbers)
}

fn column(profile: &Profile, kind: &str) -> Option<usize> {
    profile.sample_types.iter().position(|known| known.kind == kind)
}

fn totals(profile: &Profile) -> Vec<i64> {
    let zero = vec![0_i64; profile.sample_types.len()];
    profile.samples.iter().fold(zero, |totals, sample| {
        totals.iter().zip(&sample.values).map(|(total, value)| total.saturating_add(*value)).collect()
    })
}

/// Every stack once, with its numbers in front, by the column `kind` from the largest to the smallest.
fn stacks(profile: &Profile, kind: &str, numbers: impl Fn(&[i64]) -> String) -> String {
    let mut merged: BTreeMap<&[Frame], Vec<i64>> = BTreeMap::new();
    for sample in &profile.samples {
        let values = merged.entry(&sample.stack).or_insert_with(|| vec![0; sample.values.len()]);
        values.iter_mut().zip(&sample.values).for_each(|(sum, value)| *sum = sum.saturating_add(*value));
    }
    let mut merged: Vec<_> = merged.into_iter().collect();
    let at = column(profile, kind).unwrap_or(0);
    merged.sort_by_key(|(_, values)| std::cmp::Reverse(values.get(at).copied()));
    let names = Names::of(profile);
    let mut text = String::new();
    for (stack, values) in merged {
        text += &numbers(&values);
        stack.iter().for_each(|frame| push(&mut text, format_args!(" {:#x}", address(*frame))));
        text.push('\n');
        for (frame, Line { function, file, line, .. }) in names.shown(stack) {
            push(&mut text, format_args!("#\t{:#x}\t{function}\t{file}:{line}\n", address(frame)));
        }
        text.push('\n');
    }
    text
}

/// Where a frame is. What has no code of its own gets the address of its description, so that equal ones look equal.
fn address(frame: Frame) -> usize {
    match frame {
        Frame::Pc(address) | Frame::Return(address) => address,
        Frame::Place(place) => std::ptr::from_ref(place).addr(),
        Frame::Name(name) => name.as_ptr().addr(),
    }
}

/// Every task with what it waits for, how long, and where it began, in the form of Go's goroutines; then every thread.
#[must_use]
pub fn dump(tasks: &[TaskInfo], threads: &[ThreadStack]) -> String {
    let mut text = String::new();
    tasks.iter().for_each(|task| push_task(&mut text, task));
    let names = Names::of_frames(threads.iter().flat_map(|thread| &thread.frames));
    threads.iter().for_each(|thread| push_thread(&mut text, thread, &names));
    text
}

/// Parsers of goroutine dumps read a number, a state in brackets, pairs of a call and its place, and where it began.
fn push_task(text: &mut String, task: &TaskInfo) {
    let (state, waits_at) = match task.doing {
        Doing::Running => ("running", None),
        Doing::Waiting(None) => ("wait", None),
        Doing::Waiting(Some(site)) => (site.what, Some(&site.place)),
    };
    let minutes = match task.seconds / 60 {
        0 => String::new(),
        minutes => format!(", {minutes} minutes"),
    };
    push(text, format_args!("goroutine {} [{state}{minutes}]:\n", task.id));
    if let Some(place) = waits_at {
        push(text, format_args!("{}(...)\n\t{}\n", place.function, at(place)));
    }
    push(text, format_args!("created by {} on {}", task.begun_at.function, task.thread));
    if let Some(session) = task.session {
        push(text, format_args!(" for session {session}"));
    }
    push(text, format_args!("\n\t{}\n\n", at(task.begun_at)));
}

fn push_thread(text: &mut String, thread: &ThreadStack, names: &Names) {
    push(text, format_args!("thread {} [{}, {}]:\n", thread.tid, thread.name, thread.state));
    for (_, Line { function, file, line, .. }) in names.shown(&thread.frames) {
        push(text, format_args!("{function}(...)\n\t{file}:{line}\n"));
    }
    text.push('\n');
}

fn at(place: &Place) -> String {
    format!("{}:{}", place.location.file(), place.location.line())
}

fn push(text: &mut String, more: fmt::Arguments<'_>) {
    // Writing into memory cannot fail.
    text.write_fmt(more).unwrap_or_default();
}

/// What stands at each of some frames, each looked up once.
pub(super) struct Names {
    lines: HashMap<Frame, Vec<Line>>,
    /// Whether the allocator's own functions are left out, as a tool leaves out what [`Profile::drop_frames`] names.
    allocator_is_hidden: bool,
}

impl Names {
    pub(super) fn of(profile: &Profile) -> Self {
        let frames = profile.samples.iter().flat_map(|sample| &sample.stack);
        Self { allocator_is_hidden: !profile.drop_frames.is_empty(), ..Self::of_frames(frames) }
    }

    fn of_frames<'a>(frames: impl Iterator<Item = &'a Frame>) -> Self {
        let mut frames: Vec<Frame> = frames.copied().collect();
        frames.sort_unstable();
        frames.dedup();
        let resolved = symbols::resolve(&frames).into_iter().map(|resolved| resolved.lines);
        Self { lines: frames.iter().copied().zip(resolved).collect(), allocator_is_hidden: false }
    }

    /// The functions of a stack, leaf first, inlined ones before those they are inlined into.
    pub(super) fn shown(&self, stack: &[Frame]) -> Vec<(Frame, &Line)> {
        let lines = stack.iter().filter_map(|frame| Some((*frame, self.lines.get(frame)?)));
        let all: Vec<(Frame, &Line)> =
            lines.flat_map(|(frame, lines)| lines.iter().map(move |line| (frame, line))).collect();
        let is_hidden = |(_, line): &(Frame, &Line)| self.allocator_is_hidden && heap::is_allocator(&line.function);
        // Its outermost function and all that is called from there; a stack of nothing else stays.
        match all.iter().rposition(is_hidden) {
            Some(at) if at + 1 < all.len() => all[at + 1..].to_vec(),
            _ => all,
        }
    }
}
