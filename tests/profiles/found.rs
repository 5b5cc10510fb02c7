//! Known work is found by Go's tool: the right function, at the top of the right profile, with the right numbers.
//!
//! Names are looked for without their paths: the debug information of test builds leaves those out where code is inlined.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use superchat::profile::sites::Site as Place;
use superchat::profile::{tasks, waits};

use crate::Site;
use crate::tool::{Row, Tool};
use crate::work::{self, Busy};

const MIB: usize = 1 << 20;

#[test]
fn memory_kept_is_in_use() {
    let (site, tool) = (Site::open(), Tool::new());
    let kept = work::allocates_and_keeps(64 * MIB);
    let bytes = found(&tool, "allocates_and_keeps", &["-cum", "-sample_index=inuse_space", &site.url("heap")]);
    assert_near(bytes, 64.0 * MIB as f64, 0.25);
    let objects = found(&tool, "allocates_and_keeps", &["-cum", "-sample_index=inuse_objects", &site.url("heap")]);
    assert_near(objects, kept.len() as f64, 0.25);
    drop(kept);
    let rows = tool.top(&["-cum", "-sample_index=inuse_space", &site.url("heap")]);
    let left = row(&rows, "allocates_and_keeps").map_or(0.0, |row| row.cum);
    assert!(left < MIB as f64, "what was freed is not in use: {left}");
}

#[test]
fn memory_that_came_and_went_was_allocated() {
    let (site, tool) = (Site::open(), Tool::new());
    work::allocates_and_frees(256 * MIB);
    let bytes = found(&tool, "allocates_and_frees", &["-cum", &site.url("allocs")]);
    assert_near(bytes, 256.0 * MIB as f64, 0.25);
}

#[test]
fn a_leak_shows_between_two_heap_profiles() {
    let (site, tool) = (Site::open(), Tool::new());
    let _before = black_box(work::allocates_and_keeps(32 * MIB));
    let earlier = save(&site, &tool, "heap", "earlier");
    let leaked = leaks(48 * MIB);
    let later = save(&site, &tool, "heap", "later");
    for compare in ["-base", "-diff_base"] {
        let rows = tool.top(&["-cum", &format!("{compare}={earlier}"), &later]);
        let leak = row(&rows, "leaks").unwrap_or_else(|| panic!("{rows:?}"));
        assert_near(leak.cum, 48.0 * MIB as f64, 0.25);
    }
    drop(leaked);
}

#[inline(never)]
fn leaks(bytes: usize) -> Vec<Vec<u8>> {
    black_box(work::allocates_and_keeps(bytes))
}

#[test]
fn who_spins_has_the_cpu() {
    let (site, tool) = (Site::open(), Tool::new());
    let _busy = Busy::spinning();
    let rows = tool.top(&["-seconds=2", &site.url("profile")]);
    let busy = row(&rows, "spins").unwrap_or_else(|| panic!("{rows:?}")).cum;
    let total: f64 = rows.iter().map(|row| row.flat).sum();
    assert!(busy > 0.9 * total, "nothing else has anything to do: {rows:?}");
}

#[test]
fn lines_of_the_source_have_their_part() {
    let (site, tool) = (Site::open(), Tool::new());
    let _busy = Busy::spinning();
    let listing = tool.pprof(&["-list=spins", &site.url("profile?seconds=1")]);
    assert!(listing.contains("tests/profiles/work.rs"), "{listing}");
    // Rows that have a value: ` 10ms 120ms  62:the text of that line`
    let mut listed = listing.lines().filter_map(|line| {
        let (place, text) = line.split_once(':')?;
        let words: Vec<&str> = place.split_whitespace().collect();
        let [flat, cum, number] = words[..] else { return None };
        (flat != "." || cum != ".").then_some((number.parse::<usize>().ok()?, text))
    });
    let (number, text) = listed.next_back().unwrap_or_else(|| panic!("{listing}"));
    let source = include_str!("work.rs").lines().nth(number - 1);
    assert_eq!(source.map(str::trim), Some(text.trim()), "{listing}");
}

#[test]
fn who_waits_for_a_lock_is_in_mutex_and_block() {
    let (site, tool) = (Site::open(), Tool::new());
    waits::set_mutex_fraction(1);
    waits::set_block_rate(1);
    work::contend(5, Duration::from_millis(100));
    for profile in ["mutex", "block"] {
        let focused = |index: &str| found(&tool, "waits_for_a_lock", &["-cum", index, &site.url(profile)]);
        assert_near(focused("-sample_index=contentions"), 5.0, 0.01);
        // A busy machine may let the waiter wait longer, never shorter but for the moment until it begins to.
        let seconds = focused("-sample_index=delay") / 1e9;
        assert!((0.4..5.0).contains(&seconds), "{profile}: {seconds} s");
    }
}

#[test]
fn who_starts_threads_is_in_threadcreate() {
    let (site, tool) = (Site::open(), Tool::new());
    let over = Arc::new(AtomicBool::new(false));
    work::starts_threads(7, &over);
    let count = found(&tool, "starts_threads", &["-cum", &site.url("threadcreate")]);
    over.store(true, Ordering::Relaxed);
    assert_eq!(count, 7.0);
}

#[test]
fn tasks_are_found_by_where_they_were_spawned() {
    let (site, tool) = (Site::open(), Tool::new());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _watched = tasks::watch(runtime.metrics().clone());
    runtime.block_on(async {
        let tasks: Vec<_> = (0..25).map(|_| spawns_a_task()).collect();
        // Each of them has been polled once, and waits.
        tokio::task::yield_now().await;
        let count = found(&tool, "spawns_a_task", &["-cum", &site.url("goroutine")]);
        assert_eq!(count, 25.0);
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

fn spawns_a_task() -> tokio::task::JoinHandle<()> {
    tasks::spawn(Place::of_caller(&|| ()), std::future::pending())
}

#[test]
fn a_difference_shows_only_what_happened_meanwhile() {
    let (site, tool) = (Site::open(), Tool::new());
    happens_before();
    let _busy = Busy::with(happens_meanwhile);
    let rows = tool.top(&["-cum", &site.url("allocs")]);
    assert!(row(&rows, "happens_before").is_some(), "{rows:?}");
    let rows = tool.top(&["-cum", "-seconds=1", &site.url("allocs")]);
    assert!(row(&rows, "happens_meanwhile").is_some(), "{rows:?}");
    assert_eq!(row(&rows, "happens_before"), None, "{rows:?}");
}

#[inline(never)]
fn happens_before() {
    work::allocates_and_frees(128 * MIB);
    black_box(());
}

#[inline(never)]
fn happens_meanwhile() {
    work::allocates_and_frees(MIB);
    black_box(());
}

#[test]
fn addresses_alone_are_named_through_the_symbol_path() {
    let (site, tool) = (Site::open(), Tool::new());
    let _busy = Busy::spinning();
    let text = tool.pprof(&["-symbolize=force:remote", "-top", "-seconds=1", &site.url("profile")]);
    assert!(text.contains("spins"), "{text}");
}

#[test]
fn the_texts_are_read_by_the_tool_as_well() {
    let (site, tool) = (Site::open(), Tool::new());
    let _kept = black_box(work::allocates_and_keeps(16 * MIB));
    work::allocates_and_frees(16 * MIB);
    for (name, kind) in [
        ("heap?debug=1", "inuse_space/bytes"),
        ("goroutine?debug=1", "goroutine/count"),
        ("threadcreate?debug=1", "threadcreate/count"),
        ("block?debug=1", "contentions/count delay/nanoseconds"),
        ("mutex?debug=1", "contentions/count delay/nanoseconds"),
    ] {
        let file = save(&site, &tool, name, "text");
        let raw = tool.pprof(&["-raw", "-symbolize=none", &file]);
        assert!(raw.contains(kind), "{name}: {raw}");
    }
}

#[test]
fn a_flame_graph_shows_who_spins_and_stands_alone() {
    let site = Site::open();
    let busy = Busy::spinning();
    let picture = site.get("flamegraph?seconds=1");
    drop(busy);
    assert_eq!((picture.status, picture.header("content-type")), (200, Some("image/svg+xml")), "{}", picture.body);
    assert!(picture.body.contains("spins ("), "{}", picture.body);
    let foreign = ["href=\"http", "src=\"http", "url(http", "@import"];
    assert!(foreign.iter().all(|foreign| !picture.body.contains(foreign)), "{}", picture.body);
    let _kept = black_box(work::allocates_and_keeps(16 * MIB));
    let heap = site.get("flamegraph?profile=heap&type=inuse_space");
    assert!(heap.body.contains("allocates_and_keeps ("), "{}", heap.body);
    assert!(heap.body.contains("bytes, "), "{}", heap.body);
}

/// The cumulated value of the first known function, which must be `name`.
fn found(tool: &Tool, name: &str, arguments: &[&str]) -> f64 {
    let rows = tool.top(arguments);
    row(&rows, name).unwrap_or_else(|| panic!("no {name}: {rows:?}")).cum
}

fn row<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.function() == name)
}

fn save(site: &Site, tool: &Tool, path: &str, name: &str) -> String {
    let answer = site.get(path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    let file = tool.path(name);
    std::fs::write(&file, answer.bytes).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Sampling errs, but by no more than a part of the truth.
fn assert_near(found: f64, truth: f64, part: f64) {
    assert!((found - truth).abs() <= part * truth, "{found} instead of {truth}");
}
