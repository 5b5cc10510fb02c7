//! Every fuzz target without a fuzzer: its seeds, and seeds that were damaged at random. `scripts/fuzz.sh` is the real
//! thing; this keeps the targets and what they promise in every run of the tests.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "the seed that repeats a run")]

#[path = "fuzz/src/lib.rs"]
mod fuzz;

use fuzz::{TARGETS, Target};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Damaged inputs per seed of a target.
const VARIANTS: usize = 8;

#[test]
fn frame_target_accepts_its_seeds_and_damaged_ones() {
    check("frame");
}

#[test]
fn client_message_target_accepts_its_seeds_and_damaged_ones() {
    check("client_message");
}

#[test]
fn server_message_target_accepts_its_seeds_and_damaged_ones() {
    check("server_message");
}

#[test]
fn json_target_accepts_its_seeds_and_damaged_ones() {
    check("json");
}

#[test]
fn session_target_accepts_its_seeds_and_damaged_ones() {
    check("session");
}

#[test]
fn every_target_is_checked_here_built_and_run_by_the_script() {
    let [checks, manifest, script] =
        [include_str!("fuzz_smoke.rs"), include_str!("fuzz/Cargo.toml"), include_str!("../scripts/fuzz.sh")];
    for Target { name, .. } in TARGETS {
        assert!(checks.contains(&format!("check(\"{name}\")")), "{name} is not checked");
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")), "{name} is not built");
        assert!(script.contains(name), "{name} is not run");
    }
}

fn check(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = (target.seeds)();
    assert!(seeds.len() >= 10, "only {} seeds", seeds.len());
    let number = std::env::var("FUZZ_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
    println!("FUZZ_SEED={number}");
    let mut rng = StdRng::seed_from_u64(number);
    for seed in &seeds {
        (target.run)(seed);
        for _ in 0..VARIANTS {
            (target.run)(&damaged(seed, &seeds, &mut rng));
        }
    }
}

/// A few bytes changed, cut out or doubled, or two seeds joined.
fn damaged(seed: &[u8], seeds: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let [one, two] = [0; 2].map(|_: i32| rng.random_range(0..=bytes.len()));
        let (start, end) = (one.min(two), one.max(two).min(one.min(two) + 16));
        match rng.random_range(0..4) {
            0 => bytes[start..end].iter_mut().for_each(|byte| *byte = rng.random()),
            1 => drop(bytes.drain(start..end)),
            2 => bytes.extend_from_within(start..end),
            _ => bytes.extend_from_slice(&seeds[rng.random_range(0..seeds.len())]),
        }
    }
    bytes
}
