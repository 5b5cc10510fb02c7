//! Plays a script against a server and compares what comes with what should.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use superchat::wire::frame::COMPRESSION_THRESHOLD;

use super::ids::{Ids, Kind, differences, map_fields};
use super::script::{Frame, Item, Script, Sent, What, groups};
use crate::support::client::UNASKED;
use crate::support::clock;
use crate::support::link::{Fields, Incoming, Link, Received, encode};

/// More than one presence tick of the server (50 ms): a new session must not hear of what was before it.
const TICK: Duration = Duration::from_millis(60);
/// Timestamp of the PINGs that prove that nothing else was under way; no capture uses it.
const FENCE: i64 = i64::MIN + 77;
/// For the rest, once something did not come at all.
const PATIENCE_LEFT: Duration = Duration::from_secs(1);
/// After so many differences the rest only repeats them.
const DIFFERENCES_MAX: usize = 20;
/// Times of requests below can only be seconds (BEHAVIOUR.md 7).
const SECONDS_BELOW: i64 = 100_000_000_000;

/// Where to play, and how.
pub struct Stage<'s> {
    /// Opens a connection.
    pub connect: &'s mut dyn FnMut() -> io::Result<Link>,
    /// How long an expected frame may take.
    pub patience: Duration,
    /// Where the server may connect to us.
    pub listener: Option<&'s TcpListener>,
    /// Does what makes the server stop.
    pub stop: &'s mut dyn FnMut(),
}

/// Plays the whole script and returns every difference, readable. Empty when there is none.
pub fn play(script: &Script, stage: Stage<'_>) -> Vec<String> {
    let mut player = Player {
        stage,
        conns: BTreeMap::new(),
        ids: Ids::new(),
        times: Times { base_ms: base_ms(script), marks: Vec::new() },
        start: clock::instant(),
        last_t_ms: 0.0,
        found: Vec::new(),
    };
    for group in groups(&script.items) {
        player.play_group(&group);
        if player.found.len() >= DIFFERENCES_MAX {
            break;
        }
    }
    player.finish();
    player.found
}

struct Player<'s> {
    stage: Stage<'s>,
    conns: BTreeMap<u32, Conn>,
    ids: Ids,
    times: Times,
    start: Instant,
    last_t_ms: f64,
    found: Vec<String>,
}

struct Conn {
    link: Link,
    /// The server opened it, and answers no PING on it.
    is_accepted: bool,
    /// The version byte of the first frame, which decides what the server may compress; 0 before.
    version: u8,
    last_sent: Instant,
    /// What should come now, in order; other frames may come in between.
    answers: Vec<Waiting>,
    unasked: Vec<Waiting>,
    answers_taken: usize,
}

struct Waiting {
    item: Item,
    /// The connection has had so many answers when this comes: the answer stands before what it causes.
    after: usize,
}

impl Conn {
    fn new(link: Link, is_accepted: bool) -> Self {
        Self {
            link,
            is_accepted,
            version: 0,
            last_sent: clock::instant(),
            answers: Vec::new(),
            unasked: Vec::new(),
            answers_taken: 0,
        }
    }

    fn is_waiting(&self) -> bool {
        !self.answers.is_empty() || !self.unasked.is_empty()
    }
}

/// Answers and endings keep their order; everything else moves freely.
fn is_ordered(item: &Item) -> bool {
    match item.frame() {
        Some(frame) => frame.answers.is_some() || frame.name == "DISCONNECT",
        None => matches!(item.what, What::Close { .. }),
    }
}

impl Player<'_> {
    fn play_group(&mut self, group: &[Item]) {
        let steps: Vec<&Item> = group.iter().filter(|item| item.is_step()).collect();
        let before = self.found.len();
        for step in &steps {
            self.take(step);
        }
        let cause = steps.last().map(|step| step.conn);
        for item in group.iter().filter(|item| !item.is_step()) {
            self.await_later(item, cause);
        }
        let waiting: Vec<u32> = self.conns.keys().copied().collect();
        for conn in waiting {
            self.settle(conn);
        }
        if self.found.len() > before {
            let steps = steps.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
            self.found.insert(before, steps);
        }
    }

    fn take(&mut self, step: &Item) {
        match &step.what {
            What::Open => self.open(step),
            What::Accept => self.accept(step),
            What::Send(sent) => self.send(step, sent),
            What::HangUp => self.hang_up(step.conn),
            What::Stop => (self.stage.stop)(),
            What::Receive(_) | What::Close { .. } => {}
        }
        self.last_t_ms = step.t_ms;
    }

    fn open(&mut self, step: &Item) {
        let recorded_pause = Duration::from_secs_f64((step.t_ms - self.last_t_ms).max(0.0) / 1000.0);
        std::thread::sleep(recorded_pause.min(TICK));
        match (self.stage.connect)() {
            Ok(link) => drop(self.conns.insert(step.conn, Conn::new(link, false))),
            Err(error) => self.found.push(format!("  cannot connect: {error}")),
        }
    }

    fn accept(&mut self, step: &Item) {
        let patience = self.stage.patience;
        let accepted = self.stage.listener.and_then(|listener| {
            listener.set_nonblocking(true).unwrap();
            clock::poll(patience, || listener.accept().ok())
        });
        match accepted {
            Some((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                self.conns.insert(step.conn, Conn::new(Link::of(stream).unwrap(), true));
            }
            None => self.found.push("  the server did not connect".to_owned()),
        }
    }

    fn send(&mut self, step: &Item, sent: &Sent) {
        if sent.paced {
            let due = Duration::from_secs_f64(step.t_ms / 1000.0);
            std::thread::sleep(due.saturating_sub(self.start.elapsed()));
        }
        self.times.mark(step.t_ms);
        let bytes = self.translate(step, sent);
        let Some(conn) = self.conns.get_mut(&step.conn) else { return };
        conn.version = if conn.version == 0 { sent.version } else { conn.version };
        conn.last_sent = clock::instant();
        if let Err(error) = conn.link.send(&bytes) {
            self.found.push(format!("  cannot send: {error}"));
        }
    }

    /// The recorded bytes, or a new frame where an id or time of this run is another.
    fn translate(&self, step: &Item, sent: &Sent) -> Vec<u8> {
        let Some(fields) = &sent.fields else { return sent.bytes.clone() };
        let here = map_fields(&sent.name, fields, &mut |kind, recorded| match kind {
            Kind::Time => self.times.translate(recorded, step.t_ms),
            kind => self.ids.translate(kind, recorded),
        });
        if here == *fields { sent.bytes.clone() } else { encode(&sent.name, sent.version, sent.flags, &here) }
    }

    /// Leaves as a client that is closed, once nothing is under way, and waits until the server knows.
    fn hang_up(&mut self, number: u32) {
        self.fence(number);
        let Some(mut conn) = self.conns.remove(&number) else { return };
        conn.link.hang_up();
        while let Incoming::Frame(_) = conn.link.next(self.stage.patience) {}
    }

    fn await_later(&mut self, item: &Item, cause: Option<u32>) {
        let Some(conn) = self.conns.get_mut(&item.conn) else {
            self.found.push(format!("  {item}: there is no such connection"));
            return;
        };
        if is_ordered(item) {
            conn.answers.push(Waiting { item: item.clone(), after: 0 });
        } else {
            let after = if cause == Some(item.conn) { conn.answers_taken + conn.answers.len() } else { 0 };
            conn.unasked.push(Waiting { item: item.clone(), after });
        }
    }

    /// Reads until everything that should come on a connection has come.
    fn settle(&mut self, number: u32) {
        while let Some(conn) = self.conns.get_mut(&number).filter(|conn| conn.is_waiting()) {
            match conn.link.next(self.stage.patience) {
                Incoming::Frame(received) => self.receive(number, &received),
                Incoming::Closed => return self.closed(number),
                Incoming::Broken(what) => {
                    self.found.push(format!("  connection {number} got what is no message: {what}"));
                }
                Incoming::Silence => return self.missing(number),
            }
            if self.found.len() >= DIFFERENCES_MAX {
                return;
            }
        }
    }

    fn receive(&mut self, number: u32, received: &Received) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        self.found.extend(compression_fault(conn.version, received).map(|fault| format!("  {received}: {fault}")));
        let Some((place, faults)) = conn.nearest(received, &mut self.ids) else {
            self.found.push(conn.unexpected(number, received));
            return;
        };
        let waiting = conn.take(place);
        if !faults.is_empty() {
            let faults = faults.join("\n    ");
            self.found.push(format!("  connection {number}, expected {}\n    {faults}", waiting.item));
        }
        if conn.answers_taken < waiting.after {
            self.found.push(format!("  connection {number} got it before the answer: {}", waiting.item));
        }
    }

    fn closed(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        let due = conn.answers.first().map(|waiting| waiting.item.what.clone());
        if let Some(What::Close { idle_ms }) = due {
            conn.answers.remove(0);
            let early = idle_ms.is_some_and(|limit| conn.last_sent.elapsed() < Duration::from_millis(limit));
            if early {
                self.found.push(format!("  connection {number} ended before its time-out"));
            }
        }
        if conn.is_waiting() {
            self.found.push(format!("  connection {number} ended{}", conn.expectation()));
        }
        self.conns.remove(&number);
    }

    fn missing(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        self.found.push(format!("  connection {number} got nothing{}", conn.expectation()));
        self.stage.patience = self.stage.patience.min(PATIENCE_LEFT);
        conn.answers_taken += conn.answers.len();
        conn.answers.clear();
        conn.unasked.clear();
    }

    /// Proves with a PING that nothing unexpected was under way. A connection that never spoke is left alone.
    fn fence(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(&number).filter(|conn| conn.version != 0 && !conn.is_accepted) else {
            return;
        };
        let Value::Object(fields) = json!({ "timestamp": FENCE.to_string() }) else { return };
        if conn.link.send(&encode("PING", conn.version, 0, &fields)).is_err() {
            return self.closed(number);
        }
        while let Some(conn) = self.conns.get_mut(&number) {
            match conn.link.next(self.stage.patience) {
                Incoming::Frame(frame) if frame.fields.get("client_timestamp") == fields.get("timestamp") => return,
                Incoming::Frame(frame) => self.receive(number, &frame),
                other => {
                    self.found.push(format!("  connection {number}: {other:?} instead of the last PONG"));
                    return;
                }
            }
        }
    }

    fn finish(&mut self) {
        let open: Vec<u32> = self.conns.keys().copied().collect();
        for number in open {
            self.fence(number);
        }
    }
}

/// Where something that should come waits.
#[derive(Clone, Copy)]
enum Place {
    NextAnswer,
    Unasked(usize),
}

impl Conn {
    /// What a frame was meant to be, with the differences: what it equals, else what it differs from least.
    fn nearest(&self, received: &Received, ids: &mut Ids) -> Option<(Place, Vec<String>)> {
        let next_answer = self.answers.first().map(|waiting| (Place::NextAnswer, waiting));
        let unasked = self.unasked.iter().enumerate().map(|(place, waiting)| (Place::Unasked(place), waiting));
        let mut nearest: Option<(Place, Vec<String>)> = None;
        for (place, waiting) in next_answer.into_iter().chain(unasked) {
            let Some(frame) = waiting.item.named(&received.name) else { continue };
            let mut learnt = ids.clone();
            let faults = compare(frame, received, &mut learnt);
            if faults.is_empty() {
                *ids = learnt;
                return Some((place, faults));
            }
            if nearest.as_ref().is_none_or(|(_, least)| faults.len() < least.len()) {
                nearest = Some((place, faults));
            }
        }
        nearest
    }

    fn take(&mut self, place: Place) -> Waiting {
        match place {
            Place::NextAnswer => {
                self.answers_taken += 1;
                self.answers.remove(0)
            }
            Place::Unasked(place) => self.unasked.remove(place),
        }
    }

    /// Tells of a frame of a type that is not due. Where it stands for the next answer, that is no longer waited for.
    fn unexpected(&mut self, number: u32, received: &Received) -> String {
        let expected = self.expectation();
        let answer_is_due = self.answers.first().is_some_and(|waiting| waiting.item.frame().is_some());
        if answer_is_due && !UNASKED.contains(&received.name.as_str()) {
            self.take(Place::NextAnswer);
        }
        format!("  connection {number} got an unexpected {received}{expected}")
    }

    fn expectation(&self) -> String {
        let all = self.answers.iter().chain(&self.unasked);
        let all: Vec<String> = all.map(|waiting| format!("\n    {}", waiting.item)).collect();
        if all.is_empty() { String::new() } else { format!(", expected{}", all.concat()) }
    }
}

fn compare(frame: &Frame, received: &Received, ids: &mut Ids) -> Vec<String> {
    let mut found = differences(&frame.name, &frame.fields, &received.fields, ids);
    if frame.compressed && !received.compressed && received.payload_bytes >= COMPRESSION_THRESHOLD {
        found.push("expected to be compressed".into());
    }
    found
}

/// WIRE.md 3: compressed frames go only to a peer known to speak version 2, from 512 bytes on.
fn compression_fault(version: u8, received: &Received) -> Option<&'static str> {
    match received {
        Received { compressed: false, .. } => None,
        _ if version != 2 => Some("compressed for a peer that does not speak version 2"),
        Received { payload_bytes, .. } if *payload_bytes < COMPRESSION_THRESHOLD => Some("compressed below 512 bytes"),
        _ => None,
    }
}

/// Points in time that requests name, as moments of this run: what was before and after them stays so.
struct Times {
    /// Wall clock of the capture's first event.
    base_ms: Option<i64>,
    /// Recorded moment of each step, and the millisecond here that was over just before it.
    marks: Vec<(f64, i64)>,
}

impl Times {
    fn mark(&mut self, t_ms: f64) {
        self.marks.push((t_ms, clock::finished_ms()));
    }

    /// `now` is the recorded moment of the step that names the time.
    fn translate(&self, recorded: &str, now: f64) -> String {
        let Ok(time) = recorded.parse::<i64>() else { return recorded.into() };
        let Some(base_ms) = self.base_ms.filter(|_| time > 0) else { return recorded.into() };
        let here = |time_ms: i64| {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds within one recording")]
            let moment = (time_ms - base_ms) as f64;
            #[expect(clippy::cast_possible_truncation, reason = "whole milliseconds are precise enough")]
            let ahead = if moment > now + 1000.0 { (moment - now) as i64 } else { 0 };
            let mark = self.marks.iter().find(|(t_ms, _)| *t_ms >= moment).or(self.marks.last());
            mark.map_or(time_ms, |(_, mark)| mark + ahead)
        };
        if time < SECONDS_BELOW { (here(time * 1000) / 1000).to_string() } else { here(time).to_string() }
    }
}

/// The recording's clock, told by the first message that was seen just after it was stamped.
fn base_ms(script: &Script) -> Option<i64> {
    let created = |fields: &Fields| fields["created_at"].as_str()?.parse::<i64>().ok();
    script.items.iter().find_map(|item| {
        #[expect(clippy::cast_possible_truncation, reason = "whole milliseconds are precise enough")]
        let t_ms = item.t_ms as i64;
        item.named("NEW_MESSAGE").and_then(|frame| created(&frame.fields)).map(|created| created - t_ms)
    })
}

#[test]
fn times_fall_between_the_same_steps() {
    let times = Times { base_ms: Some(1_800_000_000_000), marks: vec![(10.0, 500_000), (20.0, 500_007)] };
    let at = |recorded: &str| times.translate(recorded, 20.0);
    assert_eq!(at("1800000000005"), "500000", "before the first step");
    assert_eq!(at("1800000000015"), "500007", "between the two");
    assert_eq!(at("1800000000021"), "500007", "the moment of the step that asks");
    assert_eq!(at("1800000090020"), "590007", "a minute and a half ahead");
    assert_eq!(at("1800000000"), "500", "in seconds");
    assert_eq!(at("0"), "0");
}
