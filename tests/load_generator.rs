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
        assert_eq!(Target::AtMost(2.0).verdict(2.0), "ok");
        assert_eq!(Target::AtMost(2.0).verdict(2.1), "MISSED");
        assert_eq!(Target::AtLeast(2.0).verdict(2.0), "ok");
        assert_eq!(Target::AtLeast(2.0).verdict(1.9), "MISSED");
        assert_eq!(Target::AtLeast(2.0).verdict(f64::NAN), "MISSED");
    }

    #[test]
    fn median_of_odd_and_even_counts() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
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

    use crate::support::bare::{BareSender, COALESCED, Plan, append};
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
        let flat = received(Plan::Flat { ends: clock::now() + Duration::from_millis(50) });
        assert!(flat > 0 && flat.is_multiple_of(COALESCED), "{flat}");
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
