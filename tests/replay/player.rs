//! Plays a script against a server and compares what comes with what should.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use superchat::wire::frame::COMPRESSION_THRESHOLD;

use super::ids::{Ids, Kind, differences, map_fields};
use super::script::{Frame, Item, Script, Sent, What, groups};
use crate::support::clock;
use crate::support::link::{Fields, Incoming, Link, Received, encode};

/// More than one presence tick of the server (50 ms): a new session must not hear of what was before it.
const TICK: Duration = Duration::from_millis(60);
/// Timestamp of the PINGs that prove that nothing else was under way; no capture uses it.
const FENCE: i64 = i64::MIN + 77;
/// After so many differences the rest only repeats them.
const DIFFERENCES_MAX: usize = 20;
/// Times of requests below can only be seconds (BEHAVIOUR.md 7).
const SECONDS_BELOW: i64 = 100_000_000_000;

/// Where to play, and how.
pub struct Stage<'s> {
    pub address: SocketAddr,
    /// How long an expected frame may take.
    pub patience: Duration,
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
    /// The version byte of the first frame, which decides what the server may compress; 0 before.
    version: u8,
    last_sent: Instant,
    /// What should come now, in order; other frames may come in between.
    answers: Vec<Waiting>,
    unasked: Vec<Waiting>,
    answers_taken: usize,
    closed: bool,
}

struct Waiting {
    item: Item,
    /// The connection has had so many answers when this comes: the answer stands before what it causes.
    after: usize,
}

impl Conn {
    fn is_waiting(&self) -> bool {
        !self.answers.is_empty() || self.unasked.iter().any(|waiting| !is_optional(&waiting.item))
    }
}

fn is_optional(item: &Item) -> bool {
    item.frame().is_some_and(|frame| frame.optional)
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
        match Link::connect(self.stage.address) {
            Ok(link) => {
                let conn = Conn {
                    link,
                    version: 0,
                    last_sent: clock::instant(),
                    answers: Vec::new(),
                    unasked: Vec::new(),
                    answers_taken: 0,
                    closed: false,
                };
                self.conns.insert(step.conn, conn);
            }
            Err(error) => self.found.push(format!("  cannot connect: {error}")),
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

        let candidates = conn.answers.iter().take(1).chain(&conn.unasked).enumerate();
        let had_answers = usize::from(!conn.answers.is_empty());
        let mut nearest: Option<(usize, Vec<String>)> = None;
        for (place, waiting) in candidates {
            let Some(frame) = waiting.item.named(&received.name) else { continue };
            let mut learnt = self.ids.clone();
            let found = compare(frame, received, &mut learnt);
            if found.is_empty() {
                self.ids = learnt;
                nearest = Some((place, found));
                break;
            }
            if nearest.as_ref().is_none_or(|(_, least)| found.len() < least.len()) {
                nearest = Some((place, found));
            }
        }
        match nearest {
            None => {
                self.found.push(format!("  connection {number} got an unexpected {received}{}", conn.expectation()))
            }
            Some((place, found)) => {
                let is_answer = place < had_answers;
                let waiting = if is_answer { conn.answers.remove(0) } else { conn.unasked.remove(place - had_answers) };
                if !found.is_empty() {
                    let found = found.join("\n    ");
                    self.found.push(format!("  connection {number}, expected {}\n    {found}", waiting.item));
                }
                if conn.answers_taken < waiting.after {
                    self.found.push(format!("  connection {number} got it before the answer: {}", waiting.item));
                }
                conn.answers_taken += usize::from(is_answer);
            }
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
        conn.closed = true;
        if conn.is_waiting() {
            self.found.push(format!("  connection {number} ended{}", conn.expectation()));
        }
        self.conns.remove(&number);
    }

    fn missing(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(&number) else { return };
        self.found.push(format!("  connection {number} got nothing{}", conn.expectation()));
        conn.answers_taken += conn.answers.len();
        conn.answers.clear();
        conn.unasked.clear();
    }

    /// Proves with a PING that nothing unexpected was under way. A connection that never spoke is left alone.
    fn fence(&mut self, number: u32) {
        let Some(conn) = self.conns.get_mut(&number).filter(|conn| conn.version != 0) else { return };
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

impl Conn {
    fn expectation(&self) -> String {
        let all = self.answers.iter().chain(&self.unasked).filter(|waiting| !is_optional(&waiting.item));
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
