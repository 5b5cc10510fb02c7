//! Profiles of this very process: known functions spin, allocate and start threads, and must be found where they did.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "support/pprof.rs"]
mod pprof;

use std::hint::black_box;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use pprof::{Decoded, decode};
use superchat::profile::heap::Shown;
use superchat::profile::{Frame, Label, Place, Profile, Sample, ValueType, cpu, encode, heap, stack, threads};
use superchat::supervise;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As the program has it.
#[expect(unsafe_code, reason = "the allocator reads its options from a symbol of this name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8] = b"prof:true,prof_active:true,lg_prof_sample:19,prof_accum:true\0";

const COUNT: ValueType = ValueType { kind: "samples", unit: "count" };
const CPU: ValueType = ValueType { kind: "cpu", unit: "nanoseconds" };

fn profile(samples: Vec<Sample>) -> Profile {
    Profile {
        sample_types: &[COUNT, CPU],
        default_sample_type: "cpu",
        period_type: CPU,
        period: 10_000_000,
        time_nanos: 1_759_926_615_123_456_789,
        duration_nanos: 30_000_000_000,
        samples,
        drop_frames: "malloc.*",
        comments: vec!["one".to_owned(), "two".to_owned()],
    }
}

fn sample(stack: Vec<Frame>, values: [i64; 2]) -> Sample {
    Sample { stack, values: values.to_vec(), labels: Vec::new() }
}

#[inline(never)]
fn called() -> usize {
    stack::here(1)[0]
}

#[test]
fn a_profile_says_what_it_is() {
    let decoded = decode(&encode::gzip(&profile(Vec::new())));
    let pair = |kind: &str, unit: &str| (kind.to_owned(), unit.to_owned());
    assert_eq!(decoded.sample_types, [pair("samples", "count"), pair("cpu", "nanoseconds")]);
    assert_eq!((decoded.period_type, decoded.period), (pair("cpu", "nanoseconds"), 10_000_000));
    assert_eq!((decoded.time_nanos, decoded.duration_nanos), (1_759_926_615_123_456_789, 30_000_000_000));
    assert_eq!((decoded.default_sample_type.as_str(), decoded.drop_frames.as_str()), ("cpu", "malloc.*"));
    assert_eq!(decoded.comments, ["one", "two"]);
}

#[test]
fn an_address_is_one_location_however_it_came_up() {
    let returned_to = called();
    let stacks = vec![
        sample(vec![Frame::Return(returned_to)], [1, -10]),
        sample(vec![Frame::Pc(returned_to - 1), Frame::Return(returned_to)], [i64::MAX, i64::MIN]),
    ];
    let decoded = decode(&encode::gzip(&profile(stacks)));
    let location = decoded.samples[0].stack[0].clone();
    assert_eq!(location.address, returned_to as u64 - 1);
    assert_eq!(decoded.samples[1].stack, [location.clone(), location.clone()]);
    assert_eq!(decoded.samples[0].values, [1, -10]);
    assert_eq!(decoded.samples[1].values, [i64::MAX, i64::MIN]);
    let line = &location.lines[0];
    assert!(line.function.ends_with("called"), "{line:?}");
    assert!(line.system_name.contains("called"), "{line:?}");
    assert!(line.file.ends_with("tests/profile.rs") && line.line > 0, "{line:?}");
}

#[test]
fn the_program_is_the_first_mapping_and_needs_no_names_from_elsewhere() {
    let decoded = decode(&encode::gzip(&profile(vec![sample(vec![Frame::Return(called())], [1, 1])])));
    let location = &decoded.samples[0].stack[0];
    assert_eq!(location.mapping, 1);
    let program = &decoded.mappings[0];
    assert!((program.start..program.end).contains(&location.address));
    assert_eq!(program.file, std::env::current_exe().unwrap().to_str().unwrap());
    assert!(program.build_id.len() >= 16, "{program:?}");
    assert_eq!(program.has, [true; 4]);
}

#[test]
fn places_and_names_are_functions_without_an_address() {
    let place: &'static Place =
        Box::leak(Box::new(Place { function: "superchat::net::tcp::serve", location: Location::caller() }));
    let labels = vec![
        ("thread", Label::Text("scd-shard-0".to_owned())),
        ("session", Label::Number(-7, "id")),
        ("empty", Label::Text(String::new())),
    ];
    let samples = vec![Sample { stack: vec![Frame::Name("wait"), Frame::Place(place)], values: vec![2, 0], labels }];
    let decoded = decode(&encode::gzip(&profile(samples)));
    let stack = &decoded.samples[0].stack;
    assert!(stack.iter().all(|location| location.mapping == 0 && location.address == 0));
    assert_eq!(stack[0].lines[0].function, "wait");
    let task = &stack[1].lines[0];
    assert_eq!((task.function.as_str(), task.line), (place.function, u64::from(place.location.line())));
    assert!(task.file.ends_with("tests/profile.rs"));
    let labels: Vec<(&str, &str)> =
        decoded.samples[0].labels.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect();
    assert_eq!(labels[..2], [("thread", "scd-shard-0"), ("session", "-7 id")]);
}

#[inline(never)]
fn spin_long(stop: &AtomicBool) {
    spin(3, stop);
}

#[inline(never)]
fn spin_short(stop: &AtomicBool) {
    spin(1, stop);
}

#[inline(always)]
fn spin(parts: u64, stop: &AtomicBool) {
    for part in 0..parts * 500_000 {
        black_box(part);
        if part % 1024 == 0 && stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn cpu_time_is_found_where_it_was_spent() {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let spinner = supervise::spawn("spinner", move || {
        while !stopping.load(Ordering::Relaxed) {
            spin_long(&stopping);
            spin_short(&stopping);
        }
    });
    let recorded = cpu::record(Duration::from_secs(3), cpu::HZ, &|| false);
    stop.store(true, Ordering::Relaxed);
    spinner.unwrap().join().unwrap();

    let decoded = decode(&encode::gzip(&recorded.unwrap()));
    let (all, long, short) =
        (decoded.sum("cpu", ""), decoded.sum("cpu", "spin_long"), decoded.sum("cpu", "spin_short"));
    let ratio = long as f64 / short as f64;
    // One of two did three times the work. A few dozen samples leave some room.
    assert!((1.7..=5.5).contains(&ratio), "{long} to {short} of {all}");
    assert!((long + short) as f64 > 0.9 * all as f64, "{long} and {short} of {all}");
    let hottest = decoded.samples.iter().max_by_key(|sample| sample.values[1]).unwrap();
    assert!(hottest.passes("spin_long"), "{hottest:?}");
    assert_eq!(hottest.labels, [("thread".to_owned(), "spinner".to_owned())]);
    let lines: Vec<&str> = hottest.stack[0].lines.iter().map(|line| line.function.as_str()).collect();
    assert!(lines.len() >= 2, "what is inlined stands before what it is inlined into: {lines:?}");
    assert!(hottest.stack.len() >= 3, "down to where the thread began: {hottest:?}");
}

const BLOCK: usize = 64 * 1024;

#[inline(never)]
fn keep_memory(kept: &mut Vec<Vec<u8>>) {
    (0..64 * 1024 * 1024 / BLOCK).for_each(|_| kept.push(black_box(Vec::with_capacity(BLOCK))));
}

#[inline(never)]
fn churn_memory() {
    (0..256 * 1024 * 1024 / BLOCK).for_each(|_| drop(black_box(Vec::<u8>::with_capacity(BLOCK))));
}

fn heap_profile(shown: Shown) -> Decoded {
    decode(&encode::gzip(&heap::take(shown).unwrap()))
}

fn assert_about(bytes: i64, mebibytes: i64) {
    let seen = bytes as f64 / (1024.0 * 1024.0);
    let ratio = seen / mebibytes as f64;
    assert!((0.6..=1.6).contains(&ratio), "{seen} MiB instead of {mebibytes}");
}

#[test]
fn memory_is_found_where_it_was_asked_for() {
    let earlier = heap::take(Shown::InUse).unwrap();
    let mut kept = Vec::new();
    keep_memory(&mut kept);
    churn_memory();
    let heap = heap_profile(Shown::InUse);
    let difference = decode(&encode::gzip(&heap::take(Shown::InUse).unwrap().since(&earlier)));
    drop(kept);
    let after = heap_profile(Shown::Allocated);

    let kinds: Vec<&str> = heap.sample_types.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"]);
    assert_eq!((heap.default_sample_type.as_str(), after.default_sample_type.as_str()), ("inuse_space", "alloc_space"));
    assert_about(heap.sum("inuse_space", "keep_memory"), 64);
    assert_about(heap.sum("alloc_space", "churn_memory"), 256);
    assert!(heap.sum("inuse_space", "churn_memory") < 8 * 1024 * 1024);
    assert_about(heap.sum("inuse_objects", "keep_memory") * BLOCK as i64, 64);
    assert_about(difference.sum("inuse_space", "keep_memory"), 64);
    let largest = difference.samples.iter().max_by_key(|sample| sample.values[3]).unwrap();
    assert!(largest.passes("keep_memory"), "{largest:?}");
    assert_eq!(after.sum("inuse_space", "keep_memory"), 0, "what was given back is not in use");
    assert_about(after.sum("alloc_space", "keep_memory"), 64);
}

#[test]
fn what_is_allocated_while_nothing_is_sampled_is_in_no_profile() {
    let mut kept = Vec::new();
    keep_memory(&mut kept);
    heap::set_sampled(false).unwrap();
    assert!(!heap::is_sampled());
    churn_memory();
    let without = heap_profile(Shown::InUse);
    assert_eq!(without.sum("alloc_space", "churn_memory"), 0);
    assert_about(without.sum("inuse_space", "keep_memory"), 64);
    drop(kept);
    let freed = heap_profile(Shown::InUse);
    assert_eq!(freed.sum("inuse_space", "keep_memory"), 0, "what was sampled is known to be freed");

    heap::set_sampled(true).unwrap();
    assert!(heap::is_sampled());
    churn_memory();
    assert_about(heap_profile(Shown::InUse).sum("alloc_space", "churn_memory"), 256);
}

#[test]
fn who_asks_for_memory_is_the_first_that_is_not_the_allocator() {
    let mut kept = Vec::new();
    keep_memory(&mut kept);
    let heap = heap_profile(Shown::InUse);
    let asked = heap.samples.iter().filter(|sample| sample.passes("keep_memory")).max_by_key(|sample| sample.values[3]);
    let stack = &asked.unwrap().stack;
    let names = stack.iter().flat_map(|location| &location.lines).map(|line| line.function.as_str());
    let names: Vec<&str> = names.skip_while(|name| heap::is_allocator(name)).collect();
    // The standard library's vector may stand between.
    let own = names.iter().position(|name| name.contains("keep_memory"));
    assert!(own.unwrap() <= 8, "{names:?}");
    assert!(names.len() < stack.iter().flat_map(|location| &location.lines).count(), "nothing was the allocator's");
}

#[inline(never)]
fn start_threads(count: usize, end: &Arc<AtomicUsize>) {
    let (started, has_started) = sync_channel(count);
    for index in 0..count {
        let (started, end) = (started.clone(), Arc::clone(end));
        let run = move || {
            started.send(()).unwrap();
            while end.load(Ordering::Relaxed) == 0 {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        };
        drop(supervise::spawn(&format!("started-{index}"), run).unwrap());
    }
    (0..count).for_each(|_| has_started.recv().unwrap());
}

#[test]
fn threads_are_found_where_they_were_started() {
    let end = Arc::new(AtomicUsize::new(0));
    start_threads(5, &end);
    let created = decode(&encode::gzip(&threads::created()));
    let stacks = threads::stacks();
    end.store(1, Ordering::Relaxed);
    assert_eq!(created.sum("threadcreate", "start_threads"), 5);
    assert_eq!(stacks.iter().filter(|thread| thread.name.starts_with("started-")).count(), 5);
    assert!(stacks.iter().any(|thread| thread.frames.len() > 2), "{stacks:x?}");
}
