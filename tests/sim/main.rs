//! The deterministic simulation: one to three shards, their bus, an in-memory store and a handful of clients in one
//! thread and on virtual time. A seed decides who acts next, how much a socket takes, which commit fails, who hangs up;
//! every frame that leaves is compared with what really happened.
//!
//! - `random`   chance with a memory
//! - `world`    the scheduler, and what the driver of a shard does with sockets
//! - `link`     a connection: bytes in both directions, a socket of some size
//! - `request`  what clients ask
//! - `store`    the second backend of `superchat::store`: all in memory
//! - `dms`      direct messages in that backend, and which frames of them are owed to whom
//! - `facts`    what was committed: the truth
//! - `keys`     sessions that sign in by a commit of their own
//! - `view`     what one client learns from its frames, and what it must find in them
//! - `rule`     the promises
//! - `sabotage` faults built in on purpose, so that no promise goes unwatched
//!
//! `SIM_SEEDS=100000 cargo test --test sim seed_sweep` runs more seeds than usual, `SIM_SEED=7` just that one. A failure
//! shows its seed and the last events. A seed that failed once goes to [`KEPT_SEEDS`] with what it found.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]

mod dms;
mod facts;
mod keys;
mod link;
mod random;
mod request;
mod rule;
mod sabotage;
mod store;
mod view;
mod world;

#[path = "../support/chat.rs"]
mod chat;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use facts::Milestone;
use rule::{Rule, Violation};
use sabotage::Sabotage;
use superchat::wire::ErrorCode;
use superchat::wire::server::{
    ChannelCreated, ChannelPresence, DmDeclined, DmParticipantLeft, DmPending, DmReady, DmRequest, KeyRequired,
    MessageDeleted, MessageEdited, NewMessage, ServerPresence, SubchannelCreated, UserInfo,
};
use world::World;

/// Seeds of the sweep unless `SIM_SEEDS` says otherwise.
const SEEDS: u64 = 3000;

/// Seeds within which every sabotage must be noticed.
const SABOTAGE_SEEDS: u64 = 100;

/// Seeds that failed once, and what they found.
const KEPT_SEEDS: &[(u64, &str)] = &[
    (0, "a post refused at once was answered before the posts in front of it"),
    (8, "a full queue swallowed an answer, and the session stayed open until something else happened"),
    (15, "a session that took over the place of another heard of presence before its first answer"),
    (2776, "an account took a name that was banned meanwhile, and its other sessions stayed"),
    (32, "a session was idle although its frames lay behind one that waited for the store"),
];

/// What a sweep that deserves the name comes by.
const MILESTONES: &[Milestone] = &[
    Milestone::ListMetDeliveries,
    Milestone::Reply,
    Milestone::GroupCommit,
    Milestone::FlushWithinBatch,
    Milestone::Spill,
    Milestone::DmHeard,
    Milestone::DmRefused,
    Milestone::DmLost,
    Milestone::Frame(KeyRequired::CODE),
    Milestone::Told(DmReady::CODE),
    Milestone::Told(DmPending::CODE),
    Milestone::Told(DmRequest::CODE),
    Milestone::Told(DmDeclined::CODE),
    Milestone::Told(DmParticipantLeft::CODE),
    Milestone::Frame(NewMessage::CODE),
    Milestone::Frame(ServerPresence::CODE),
    Milestone::Frame(ChannelPresence::CODE),
    Milestone::Frame(UserInfo::CODE),
    Milestone::Frame(MessageEdited::CODE),
    Milestone::Frame(MessageDeleted::CODE),
    Milestone::Told(MessageEdited::CODE),
    Milestone::Told(MessageDeleted::CODE),
    Milestone::Told(ChannelCreated::CODE),
    Milestone::Told(SubchannelCreated::CODE),
    Milestone::Refused(ErrorCode::AuthRequired as u16),
    Milestone::Refused(ErrorCode::PermissionDenied as u16),
    Milestone::Refused(ErrorCode::ChannelNotFound as u16),
    Milestone::Refused(ErrorCode::MessageNotFound as u16),
    Milestone::Refused(ErrorCode::ThreadNotFound as u16),
    Milestone::Refused(ErrorCode::ThreadSubscriptionLimit as u16),
    Milestone::Refused(ErrorCode::ChannelSubscriptionLimit as u16),
    Milestone::Refused(ErrorCode::InvalidInput as u16),
    Milestone::Refused(ErrorCode::Database as u16),
    Milestone::Refused(ErrorCode::Unavailable as u16),
    Milestone::HiddenHeard,
    Milestone::HiddenMissed,
    Milestone::Ended("banned"),
    Milestone::Ended("client"),
    Milestone::Ended("idle"),
    Milestone::Ended("slow_consumer"),
    Milestone::Ended("protocol_error"),
    Milestone::Ended("shutdown"),
    Milestone::Ended("io_error"),
];

/// One run; with a log when it is wanted.
fn run(seed: u64, sabotage: Option<Sabotage>, is_logged: bool) -> (Result<u64, Violation>, Vec<String>) {
    let mut world = World::new(seed, sabotage, is_logged);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()))
        .unwrap_or_else(|panic| Err(Violation { rule: Rule::Panic, what: text_of(&*panic).to_owned() }));
    (result, world.take_log())
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

/// What a failed seed has to say: it is run again, this time with a log.
fn report(seed: u64, violation: &Violation) -> String {
    let (again, log) = run(seed, None, true);
    let mut text = format!("seed {seed}: {violation}\nrepeat with SIM_SEED={seed} cargo test --test sim seed_sweep\n");
    match again {
        Err(again) => writeln!(text, "last events before {again}"),
        Ok(_) => writeln!(text, "the seed did not fail again; last events"),
    }
    .unwrap();
    log.iter().for_each(|line| writeln!(text, "  {line}").unwrap());
    text
}

/// Runs seeds on all cores and returns the first that failed.
fn first_failure(seeds: std::ops::Range<u64>) -> Option<(u64, Violation)> {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let work = || {
        while let seed = next.fetch_add(1, Ordering::Relaxed)
            && seed < seeds.end
        {
            if let (Err(violation), _) = run(seed, None, false) {
                next.fetch_max(seeds.end, Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).push((seed, violation));
            }
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| {
            scope.spawn(work);
        });
    });
    failed.into_inner().unwrap().into_iter().min_by_key(|(seed, _)| *seed)
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn seed_sweep() {
    let seeds = match number_from("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("SIM_SEEDS").unwrap_or(SEEDS),
    };
    if let Some((seed, violation)) = first_failure(seeds) {
        panic!("{}", report(seed, &violation));
    }
}

#[test]
fn kept_seeds_stay_fixed() {
    for (seed, found) in KEPT_SEEDS {
        if let (Err(violation), _) = run(*seed, None, false) {
            panic!("once found: {found}\n{}", report(*seed, &violation));
        }
    }
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| run(seed, None, false).0.unwrap());
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn a_sweep_comes_by_everything_that_is_checked() {
    let mut reached: BTreeMap<Milestone, u64> = BTreeMap::new();
    for seed in 0..200 {
        let mut world = World::new(seed, None, false);
        world.run().unwrap_or_else(|violation| panic!("{}", report(seed, &violation)));
        world.reached().iter().for_each(|(milestone, times)| *reached.entry(*milestone).or_default() += times);
    }
    let missed: Vec<_> = MILESTONES.iter().filter(|milestone| !reached.contains_key(milestone)).collect();
    assert!(missed.is_empty(), "{missed:?} is never reached; reached is {reached:?}");
}

/// Some seed notices, and says what is broken.
fn check_noticed(sabotage: Sabotage) {
    let noticed = (0..SABOTAGE_SEEDS).find_map(|seed| run(seed, Some(sabotage), false).0.err());
    let violation = noticed.unwrap_or_else(|| panic!("{sabotage:?} went unnoticed for {SABOTAGE_SEEDS} seeds"));
    assert!(sabotage.breaks().contains(&violation.rule), "{sabotage:?} was taken for something else: {violation}");
}

macro_rules! noticed {
    ($($name:ident $Sabotage:ident)+) => {$(
        #[test]
        fn $name() {
            check_noticed(Sabotage::$Sabotage);
        }
    )+};
}

noticed! {
    outcomes_out_of_order_are_noticed SwappedOutcomes
    a_post_delivered_twice_is_noticed RepeatedOutcomes
    a_missed_outcome_is_noticed LostOutcomes
    a_lost_peer_change_is_noticed LostPeers
    a_list_behind_the_deliveries_is_noticed StaleAnswers
    a_missing_answer_is_noticed LostAnswers
    a_stored_refusal_is_noticed KeptRefusals
    a_frame_that_never_comes_is_noticed PhantomFrames
    a_delayed_reader_is_noticed DelayedReaders
    a_leaked_channel_is_noticed LeakedChannels
    a_leaked_conversation_is_noticed LeakedDms
    a_leaked_shadow_is_noticed LeakedShadows
    a_list_of_what_is_hidden_is_noticed SeeThrough
    closing_a_healthy_reader_is_noticed HastyClosing
    sparing_a_slow_reader_is_noticed EndlessPatience
}
