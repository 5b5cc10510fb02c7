//! The load generator's own parts: a figure is worth no more than the tool that measured it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(dead_code, reason = "what only the scenarios use")]

#[path = "../benches/support/mod.rs"]
mod support;

mod histogram {
    use std::time::Duration;

    use crate::support::histogram::Histogram;

    fn shown(value: u64) -> u64 {
        let mut histogram = Histogram::new();
        histogram.record(Duration::from_nanos(value));
        u64::try_from(histogram.permille(500).as_nanos()).unwrap()
    }

    #[test]
    fn no_value_is_off_by_more_than_one_part_in_sixty_four() {
        for value in (0..64).map(|shift| 1_u64 << shift).flat_map(|power| [power - 1, power, power + power / 3]) {
            let shown = shown(value);
            assert!(shown >= value && shown - value <= value / 64, "{value} is shown as {shown}");
        }
        assert_eq!(shown(u64::MAX), u64::MAX);
    }

    #[test]
    fn permilles_of_a_uniform_spread() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        for permille in [1, 500, 990, 999] {
            let (shown, exact) = (histogram.permille(permille), Duration::from_micros(permille));
            assert!(shown >= exact && shown <= exact + exact / 64, "{permille}: {shown:?}");
        }
    }

    #[test]
    fn without_records_every_permille_is_zero() {
        assert_eq!(Histogram::new().permille(999), Duration::ZERO);
    }
}

mod report {
    use crate::support::report::{Target, median};

    #[test]
    fn targets_hold_at_their_bound() {
        let (at_most, at_least) = (Target::AtMost(2.0), Target::AtLeast(2.0));
        assert_eq!((at_most.verdict(2.0, 2.0), at_most.verdict(2.1, 2.1)), ("ok", "MISSED"));
        assert_eq!((at_least.verdict(2.0, 2.0), at_least.verdict(1.9, 1.9)), ("ok", "MISSED"));
        assert_eq!(at_least.verdict(f64::NAN, f64::NAN), "MISSED");
    }

    #[test]
    fn an_estimate_is_good_only_where_all_of_its_interval_is() {
        let (at_most, at_least) = (Target::AtMost(2.0), Target::AtLeast(2.0));
        assert_eq!(
            [(1.0, 2.0), (1.0, 2.1), (2.1, 3.0)].map(|(low, high)| at_most.verdict(low, high)),
            ["ok", "open", "MISSED"]
        );
        assert_eq!(
            [(2.0, 3.0), (1.9, 3.0), (1.0, 1.9)].map(|(low, high)| at_least.verdict(low, high)),
            ["ok", "open", "MISSED"]
        );
    }

    #[test]
    fn median_of_odd_and_even_counts() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}

mod paired {
    use std::cell::Cell;
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use crate::support::paired::{Estimate, Slice, costs, estimate};

    /// The interval of 1 to `count`.
    fn interval(count: u32) -> (f64, f64) {
        let Estimate { low, high, .. } = estimate(&(1..=count).rev().map(f64::from).collect::<Vec<_>>());
        (low, high)
    }

    #[test]
    fn intervals_are_those_of_the_tables_of_the_sign_test() {
        for (count, expected) in
            [(1, (1.0, 1.0)), (5, (1.0, 5.0)), (6, (1.0, 6.0)), (9, (2.0, 8.0)), (20, (6.0, 15.0)), (100, (40.0, 61.0))]
        {
            assert_eq!(interval(count), expected, "{count} values");
        }
        // Of many, about the root of their number to each side of the middle.
        for (count, low, high) in [(1000, 468.0, 533.0), (2000, 955.0, 1046.0), (10_000, 4901.0, 5100.0)] {
            let (from, to) = interval(count);
            assert!((from - low).abs() <= 2.0 && (to - high).abs() <= 2.0, "{count}: {from} to {to}");
        }
        assert!(estimate(&[]).low.is_nan());
    }

    #[test]
    fn the_true_middle_lies_within_however_the_values_are_spread() {
        let mut random = StdRng::seed_from_u64(7);
        let hits = (0..1000).filter(|_| {
            // The middle of u^4 is 1/16, and far from the mean.
            let values: Vec<f64> = (0..60).map(|_| random.random::<f64>().powi(4)).collect();
            let Estimate { low, high, .. } = estimate(&values);
            (low..=high).contains(&0.0625)
        });
        let hits = hits.count();
        assert!((930..=990).contains(&hits), "{hits} of 1000");
    }

    /// A server that gets slower all the time, has a checkpoint every second slice, and differs by chance.
    fn measured(cost: f64) -> Estimate {
        let (mut random, taken) = (StdRng::seed_from_u64(11), Cell::new(0_u32));
        let slice = |with: bool| {
            taken.set(taken.get() + 1);
            let (drift, checkpoint) = (1.0 + f64::from(taken.get()) * 1e-3, f64::from(taken.get() % 2) * 0.05);
            let chance = random.random_range(-0.04..0.04);
            let each = 20e-6 * (drift + checkpoint + chance) * if with { 1.0 + cost } else { 1.0 };
            Ok(Slice { operations: 10_000, cpu: Duration::from_secs_f64(each * 1e4) })
        };
        estimate(&costs(400, 3, slice).unwrap())
    }

    #[test]
    fn a_small_cost_is_found_below_a_larger_noise_and_none_where_there_is_none() {
        let (some, none) = (measured(0.03), measured(0.0));
        assert!((2.4..3.6).contains(&some.median) && some.low > 1.5 && some.high < 4.5, "{some:?}");
        assert!(none.median.abs() < 0.6 && none.low < 0.0 && none.high > 0.0, "{none:?}");
    }

    #[test]
    fn a_slice_in_which_nothing_was_done_ends_the_run() {
        let idle = |with: bool| Ok(Slice { operations: u64::from(with), cpu: Duration::from_secs(1) });
        assert_eq!(costs(1, 1, idle).unwrap_err().to_string(), "nothing was done in a slice");
    }
}

mod process {
    use std::time::Duration;

    use crate::support::process;

    /// Returns once the calling thread has used that much.
    fn spin(time: Duration) {
        let began = process::thread_cpu();
        while process::thread_cpu() - began < time {}
    }

    #[test]
    fn cpu_time_is_counted_up_to_now_and_beyond_the_end_of_a_thread() {
        let own = std::process::id();
        let spent = |time| {
            let before = process::cpu(own).unwrap();
            spin(time);
            process::cpu(own).unwrap() - before
        };
        // The kernel's clock ticks every 4 ms; what counts by ticks would see nothing here most of the time.
        assert!((0..5).all(|_| spent(Duration::from_micros(300)) >= Duration::from_micros(300)));
        let before = process::cpu(own).unwrap();
        std::thread::scope(|scope| scope.spawn(|| spin(Duration::from_millis(20))).join().unwrap());
        assert!(process::cpu(own).unwrap() - before >= Duration::from_millis(20));
    }

    #[test]
    fn threads_are_told_apart_by_the_beginning_of_their_names() {
        let own = std::process::id();
        let (told, spun) = std::sync::mpsc::sync_channel(0);
        let (end, ended) = std::sync::mpsc::sync_channel::<()>(0);
        let spinner = superchat::supervise::spawn("spinner-7", move || {
            spin(Duration::from_millis(30));
            // Another thread sees the time of the last tick.
            std::thread::sleep(Duration::from_millis(10));
            told.send(()).unwrap();
            ended.recv().unwrap_err();
        });
        spun.recv().unwrap();
        let of = |name| process::cpu_of_threads(own, name).unwrap();
        assert!(of("spinner-") >= Duration::from_millis(30));
        assert_eq!(of("spinner-8"), Duration::ZERO);
        drop(end);
        spinner.unwrap().join().unwrap();
    }

    #[test]
    fn cpu_samples_are_seen_from_outside_while_they_are_taken() {
        let own = std::process::id();
        assert_eq!(process::timers(own).unwrap(), 0);
        let seen = std::cell::Cell::new(0);
        let look = || {
            seen.set(process::timers(own).unwrap());
            seen.get() > 0
        };
        superchat::profile::cpu::record(Duration::from_secs(60), 100, &look).unwrap();
        assert!(seen.get() > 0);
        assert_eq!(process::timers(own).unwrap(), 0);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(process::cpu(child.id()).is_err());
        assert!(process::cpu_of_threads(child.id(), "").is_err());
        assert!(process::timers(child.id()).is_err());
    }
}

mod deliveries {
    use std::time::Duration;

    use anyhow::Result;
    use superchat::wire::frame::Frame;
    use superchat::wire::server::NewMessage;

    use crate::support::clock;
    use crate::support::deliveries::Deliveries;
    use crate::support::swarm::{Arrival, Script as _};

    fn deliver(to: &mut Deliveries, from: usize, id: u64) -> Result<()> {
        let payload = id.to_be_bytes();
        let frame = Frame { version: 2, code: NewMessage::CODE, flags: 0, payload: &payload };
        to.arrived(&Arrival { from, at: clock::now(), frame }, &mut Vec::new())
    }

    fn after_two_posts() -> Deliveries {
        let mut deliveries = Deliveries::new(2);
        deliveries.posts = 2;
        deliver(&mut deliveries, 0, 5).unwrap();
        deliver(&mut deliveries, 1, 5).unwrap();
        deliveries
    }

    #[test]
    fn complete_when_everybody_has_everything() {
        let mut deliveries = after_two_posts();
        deliver(&mut deliveries, 0, 6).unwrap();
        assert!(!deliveries.done());
        assert_eq!(deliveries.least(), 1);
        deliver(&mut deliveries, 1, 6).unwrap();
        assert!(deliveries.done());
        assert_eq!(deliveries.total, 4);
    }

    #[test]
    fn duplicate_and_falling_ids_are_found_also_in_a_later_trial() {
        let mut deliveries = after_two_posts();
        assert!(deliver(&mut deliveries, 0, 5).is_err());
        deliveries.reset();
        deliveries.posts = 1;
        assert!(deliver(&mut deliveries, 0, 4).is_err());
        deliver(&mut deliveries, 0, 6).unwrap();
    }

    #[test]
    fn message_nobody_posted_is_found() {
        let mut deliveries = after_two_posts();
        deliver(&mut deliveries, 0, 6).unwrap();
        assert!(deliver(&mut deliveries, 0, 7).is_err());
    }

    #[test]
    fn publisher_is_no_subscriber() {
        let mut deliveries = after_two_posts();
        deliver(&mut deliveries, 2, 1).unwrap();
        assert_eq!(deliveries.total, 2);
    }

    #[test]
    fn latency_counts_from_when_the_post_was_due() {
        let mut deliveries = Deliveries::new(1);
        deliveries.posts = 1;
        deliveries.sent_at.push(clock::now() - Duration::from_secs(1));
        deliver(&mut deliveries, 0, 1).unwrap();
        assert!(deliveries.latency.permille(500) >= Duration::from_secs(1));
    }
}

mod bare {
    use std::net::SocketAddr;
    use std::time::Duration;

    use superchat::wire::frame;

    use crate::support::bare::{BareSender, Plan, append};
    use crate::support::clock;
    use crate::support::deliveries::Deliveries;
    use crate::support::requests::{self, CHAT};
    use crate::support::swarm::{Swarm, dial};

    const LIMIT: Duration = Duration::from_secs(30);

    /// Runs one plan to the end and returns messages per receiver.
    fn received(plan: Plan) -> u64 {
        let mut swarm = Swarm::new().unwrap();
        let frame = requests::new_message(CHAT, "somebody", b"text").unwrap();
        let sender = BareSender::connect(&mut swarm, 3, frame).unwrap();
        let mut deliveries = Deliveries::new(3);
        deliveries.posts = u64::MAX;
        let trial = sender.start(plan).unwrap();
        while trial.is_sending() {
            swarm.poll(&mut deliveries, Duration::from_millis(1)).unwrap();
        }
        let sent = trial.join().unwrap();
        assert!(sent.cpu > Duration::ZERO);
        deliveries.posts = sent.messages;
        swarm.run(&mut deliveries, LIMIT).unwrap();
        assert_eq!(deliveries.least(), sent.messages);
        sent.messages
    }

    #[test]
    fn everything_the_bare_loop_sends_is_received_in_order() {
        let paced = Plan::Paced { start: clock::now(), interval: Duration::from_micros(100), messages: 50 };
        assert_eq!(received(paced), 50);
        let flat = received(Plan::Flat { ends: clock::now() + Duration::from_millis(50), coalesced: 8 });
        assert!(flat > 0 && flat.is_multiple_of(8), "{flat}");
    }

    #[test]
    fn appended_bytes_are_all_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let appended = append(directory.path(), b"record", 7, Duration::from_millis(20)).unwrap();
        let bytes = std::fs::metadata(directory.path().join("bare")).unwrap().len();
        assert_eq!(bytes, appended.records * 6);
        assert!(appended.records > 0 && appended.records.is_multiple_of(7));
        assert!(appended.latency.permille(500) > Duration::ZERO);
    }

    #[test]
    fn addresses_beyond_loopback_are_refused() {
        for address in ["192.0.2.1:6465", "0.0.0.0:6465", "[2001:db8::1]:6465"] {
            let refusal = dial(address.parse::<SocketAddr>().unwrap(), 0, None).unwrap_err();
            assert!(refusal.to_string().contains("not a loopback address"), "{refusal}");
        }
    }

    #[test]
    fn bare_frame_is_the_one_subscribers_get() {
        let bytes = requests::new_message(CHAT, "somebody", &[b'm'; 150]).unwrap();
        let (whole, rest) = frame::Frame::cut(&bytes).unwrap().unwrap();
        assert!(rest.is_empty());
        assert_eq!(whole.payload[..8], [0; 8]);
    }
}

mod swarm {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use anyhow::Result;
    use superchat::wire::frame;
    use superchat::wire::server::{Error, Pong};

    use crate::support::swarm::{Arrival, Script, Swarm};

    const LIMIT: Duration = Duration::from_secs(30);

    /// A swarm of one client, and the server's end of its connection.
    fn pair() -> (Swarm, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut swarm = Swarm::new().unwrap();
        assert_eq!(swarm.connect(listener.local_addr().unwrap(), 1).unwrap(), 0..1);
        (swarm, listener.accept().unwrap().0)
    }

    fn pong(client_timestamp: i64) -> Vec<u8> {
        let mut out = Vec::new();
        frame::write_message(&mut out, Pong::CODE, &Pong { client_timestamp }).unwrap();
        out
    }

    /// Keeps the payloads and answers each frame with one byte.
    struct Keeping {
        payloads: Vec<Vec<u8>>,
        wanted: usize,
    }

    impl Script for Keeping {
        fn arrived(&mut self, arrival: &Arrival<'_>, out: &mut Vec<u8>) -> Result<()> {
            self.payloads.push(arrival.frame.payload.to_vec());
            out.push(b'!');
            Ok(())
        }

        fn done(&self) -> bool {
            self.payloads.len() >= self.wanted
        }
    }

    fn keep(wanted: usize) -> Keeping {
        Keeping { payloads: Vec::new(), wanted }
    }

    #[test]
    fn frames_split_anywhere_come_in_whole_and_in_order() {
        let (mut swarm, mut server) = pair();
        let bytes = [pong(1), pong(2), pong(3)].concat();
        let mut script = keep(3);
        for part in bytes.chunks(7) {
            server.write_all(part).unwrap();
            swarm.poll(&mut script, LIMIT).unwrap();
        }
        swarm.run(&mut script, LIMIT).unwrap();
        assert_eq!(script.payloads, [1_i64, 2, 3].map(|number| number.to_be_bytes().to_vec()));
    }

    #[test]
    fn what_a_script_appends_goes_back_on_the_same_connection() {
        let (mut swarm, mut server) = pair();
        server.write_all(&[pong(1), pong(2)].concat()).unwrap();
        swarm.run(&mut keep(2), LIMIT).unwrap();
        let mut answer = [0; 2];
        std::io::Read::read_exact(&mut server, &mut answer).unwrap();
        assert_eq!(answer, *b"!!");
    }

    #[test]
    fn request_larger_than_the_socket_takes_arrives_whole() {
        let (mut swarm, mut server) = pair();
        let request = vec![b'r'; 16 << 20];
        swarm.send(0, &request).unwrap();
        server.set_nonblocking(true).unwrap();
        let (mut received, mut chunk, mut script) = (0, vec![0; 1 << 20], keep(1));
        while received < request.len() {
            received += std::io::Read::read(&mut server, &mut chunk).unwrap_or(0);
            swarm.poll(&mut script, Duration::from_millis(1)).unwrap();
        }
        assert_eq!(received, request.len());
    }

    #[test]
    fn errors_of_the_server_end_the_run_with_its_words() {
        let (mut swarm, mut server) = pair();
        let mut bytes = Vec::new();
        let error = Error { error_code: 5001, message: b"too fast" };
        frame::write_message(&mut bytes, Error::CODE, &error).unwrap();
        server.write_all(&bytes).unwrap();
        let refusal = swarm.run(&mut keep(1), LIMIT).unwrap_err();
        assert_eq!(refusal.to_string(), "the server answered ERROR 5001 too fast");
    }

    #[test]
    fn connection_the_server_ends_is_an_error_unless_the_script_expects_it() {
        let (mut swarm, server) = pair();
        drop(server);
        let refusal = swarm.run(&mut keep(1), LIMIT).unwrap_err();
        assert_eq!(refusal.to_string(), "the server closed connection 0");
    }

    #[test]
    fn waiting_in_vain_ends_with_an_error() {
        let (mut swarm, _server) = pair();
        assert!(swarm.run(&mut keep(1), Duration::from_millis(1)).is_err());
    }
}

mod closed_loop {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::time::Duration;

    use anyhow::{Result, ensure};
    use superchat::wire::frame::{self, Frame};
    use superchat::wire::server::Pong;

    use crate::support::closed_loop::{ClosedLoop, Exchange};
    use crate::support::swarm::Swarm;

    /// Asks with one byte and takes any PONG but a certain one.
    struct Asking {
        forbidden: i64,
    }

    impl Exchange for Asking {
        const ANSWER: u8 = Pong::CODE;

        fn ask(&mut self, _from: usize, out: &mut Vec<u8>) -> Result<()> {
            out.push(b'?');
            Ok(())
        }

        fn answered(&mut self, _from: usize, frame: Frame<'_>) -> Result<()> {
            ensure!(frame.payload != self.forbidden.to_be_bytes(), "forbidden answer");
            Ok(())
        }
    }

    /// Runs two clients against a peer that answers each byte with the next number, and says how many it answered.
    fn run(forbidden: i64) -> (Result<ClosedLoop<Asking>>, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut swarm = Swarm::new().unwrap();
        let clients = swarm.connect(listener.local_addr().unwrap(), 2).unwrap();
        let answering = clients.clone().map(|_| {
            let mut peer = listener.accept().unwrap().0;
            let answer = move || {
                let mut answers = 0;
                while peer.read_exact(&mut [0]).is_ok() {
                    answers += 1;
                    let mut out = Vec::new();
                    let pong = Pong { client_timestamp: answers };
                    frame::write_message(&mut out, Pong::CODE, &pong).unwrap();
                    if peer.write_all(&out).is_err() {
                        break;
                    }
                }
                answers
            };
            superchat::supervise::spawn("answers", answer).unwrap()
        });
        let answering: Vec<_> = answering.collect();
        let outcome = ClosedLoop::run(&mut swarm, clients, Asking { forbidden }, Duration::from_millis(20));
        drop(swarm);
        let answers: i64 = answering.into_iter().map(|thread| thread.join().unwrap()).sum();
        (outcome, answers.unsigned_abs())
    }

    #[test]
    fn every_answer_is_counted_once() {
        let (outcome, answers) = run(-1);
        assert_eq!(outcome.unwrap().answers, answers);
        assert!(answers >= 2);
    }

    #[test]
    fn wrong_answer_ends_the_run() {
        let (outcome, _) = run(1);
        assert_eq!(outcome.err().unwrap().to_string(), "forbidden answer");
    }
}
