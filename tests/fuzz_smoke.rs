//! Every fuzz target without a fuzzer: its seeds, and seeds that were damaged at random. `scripts/fuzz.sh` is the real
//! thing; this keeps the targets and what they promise in every run of the tests.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "the seed that repeats a run")]

#[allow(unreachable_pub, reason = "a crate of its own under the fuzzer")]
#[path = "fuzz/src/lib.rs"]
mod fuzz;

use fuzz::{TARGETS, Target};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use superchat::ids::ChannelId;
use superchat::wire::ClientMessage;
use superchat::wire::client::{ListMessages, PostMessage, SetNickname};
use superchat::wire::codec::{Bounded, Writer};
use superchat::wire::frame::{self, Compression};

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

#[test]
fn empty_payload_under_the_compression_bit_survives_json() {
    fuzz::json(&[0, 0, 0, 3, 2, 0x1c, 1]);
}

#[test]
fn session_in_the_place_of_one_that_was_to_be_greeted_hears_no_presence_before_it_speaks() {
    let mut script = Script::default();
    script.say(0, &SetNickname { nickname: Bounded(b"first") }.into());
    script.work(0).replace(0).time(0);
    script.say(1, &SetNickname { nickname: Bounded(b"second") }.into());
    script.work(1).time(1);
    fuzz::session(&script.0);
}

#[test]
fn session_in_the_place_of_a_slow_one_lives() {
    let mut script = Script::default();
    let content = [b'm'; 4096];
    let post = PostMessage { channel_id: CHAT, subchannel_id: None, parent_id: None, content: Bounded(&content) };
    let list = ListMessages {
        channel_id: CHAT,
        subchannel_id: None,
        limit: 0,
        before_id: None,
        parent_id: None,
        after_id: None,
    };
    script.say(0, &SetNickname { nickname: Bounded(b"slow") }.into()).work(0);
    script.say(1, &SetNickname { nickname: Bounded(b"poster") }.into()).work(0);
    for _ in 0..20 {
        script.say(1, &post.clone().into()).work(1);
    }
    // Two answers, each larger than what may wait, to one who takes nothing: the second finds the queue full.
    script.say(0, &list.clone().into()).say(0, &list.into()).reads_nothing(0).work(1).work(1);
    script.replace(0);
    script.say(1, &post.into()).work(1);
    fuzz::session(&script.0);
}

const CHAT: ChannelId = ChannelId(1);

/// An input of the session target, written step by step.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    const RAW: u8 = 2;
    const WORK: u8 = 4;
    const TIME: u8 = 5;
    const READS: u8 = 6;
    const REPLACE: u8 = 7;

    fn step(&mut self, client: u8, step: u8, rest: &[u8]) -> &mut Self {
        self.0.push(client << 7 | step);
        self.0.extend_from_slice(rest);
        self
    }

    /// In a version that is never answered compressed.
    fn say(&mut self, client: u8, message: &ClientMessage<'_>) -> &mut Self {
        let (mut payload, mut bytes) = (Vec::new(), Vec::new());
        let mut writer = Writer::new(&mut payload);
        message.write(&mut writer);
        writer.finish().unwrap();
        frame::write_payload(&mut bytes, 1, message.code(), 0, &payload, Compression::Never).unwrap();
        for part in bytes.chunks(255) {
            self.step(client, Self::RAW, &[u8::try_from(part.len()).unwrap()]);
            self.0.extend_from_slice(part);
        }
        self
    }

    /// The store answers one request.
    fn work(&mut self, client: u8) -> &mut Self {
        self.step(client, Self::WORK, &[1])
    }

    fn time(&mut self, client: u8) -> &mut Self {
        self.step(client, Self::TIME, &[10])
    }

    fn reads_nothing(&mut self, client: u8) -> &mut Self {
        self.step(client, Self::READS, &[0])
    }

    fn replace(&mut self, client: u8) -> &mut Self {
        self.step(client, Self::REPLACE, &[])
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
