//! The numbers of one shard. Its thread alone writes them, so counting is a load, an addition and a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::cells::{BROADCAST, Counter, FANOUT, Histogram, LATENCY, PerLabel, Snapshot, counters};
use super::sheet::Sheet;
use super::table::{DecodeError, DisconnectReason, Fanout, Label, Metric};

/// Names by number, resolved once at start, so that counting needs no look-up by text.
#[derive(Debug)]
pub(super) struct Names {
    received: [Option<&'static str>; 256],
    sent: [Option<&'static str>; 256],
    /// Place of a request's histogram by type code; `requests.len()` for codes no client message has.
    request_slots: [usize; 256],
    requests: Vec<&'static str>,
    /// Sorted.
    error_codes: Vec<u16>,
    ping: Option<u8>,
}

impl Names {
    pub(super) fn new(client: &[(u8, &'static str)], server: &[(u8, &'static str)], error_codes: &[u16]) -> Self {
        let mut names = Self {
            received: [None; 256],
            sent: [None; 256],
            request_slots: [client.len(); 256],
            requests: client.iter().map(|(_, name)| *name).collect(),
            error_codes: error_codes.to_vec(),
            ping: client.iter().find(|(_, name)| *name == "PING").map(|(code, _)| *code),
        };
        for (slot, (code, name)) in client.iter().enumerate() {
            names.received[usize::from(*code)] = Some(name);
            names.request_slots[usize::from(*code)] = slot;
        }
        for (code, name) in server {
            names.sent[usize::from(*code)] = Some(name);
        }
        names.error_codes.sort_unstable();
        names.error_codes.dedup();
        names
    }
}

/// What one shard counts. Every method is for the shard's own thread only: the cells have a single writer.
#[derive(Debug)]
#[repr(align(128))]
pub struct ShardMetrics {
    received: [Counter; 256],
    sent: [Counter; 256],
    opened: Counter,
    closed: Counter,
    outbound_bytes: Counter,
    broadcasts: Counter,
    lag_ms: Counter,
    tick_due_ms: AtomicU64,
    requests: Box<[Histogram]>,
    post_ack: Histogram,
    fanout: [Histogram; Fanout::ALL.len()],
    broadcast: [Histogram; Fanout::ALL.len()],
    errors: Box<[Counter]>,
    disconnects: PerLabel<DisconnectReason>,
    decode_errors: PerLabel<DecodeError>,
    names: Arc<Names>,
}

impl ShardMetrics {
    pub(super) fn new(names: Arc<Names>) -> Self {
        Self {
            received: std::array::from_fn(|_| Counter::default()),
            sent: std::array::from_fn(|_| Counter::default()),
            opened: Counter::default(),
            closed: Counter::default(),
            outbound_bytes: Counter::default(),
            broadcasts: Counter::default(),
            lag_ms: Counter::default(),
            tick_due_ms: AtomicU64::new(u64::MAX),
            requests: names.requests.iter().map(|_| Histogram::new(&LATENCY)).collect(),
            post_ack: Histogram::new(&LATENCY),
            fanout: std::array::from_fn(|_| Histogram::new(&FANOUT)),
            broadcast: std::array::from_fn(|_| Histogram::new(&BROADCAST)),
            errors: counters(names.error_codes.len() + 1),
            disconnects: PerLabel::new(),
            decode_errors: PerLabel::new(),
            names,
        }
    }

    /// A frame of this type came in; any code, known or not.
    pub fn received(&self, type_code: u8) {
        self.received[usize::from(type_code)].add_owned(1);
    }

    /// A frame of this type was queued to a client.
    pub fn sent(&self, type_code: u8) {
        self.sent_many(type_code, 1);
    }

    /// One encoded frame of this type was queued to that many clients.
    pub fn sent_many(&self, type_code: u8, recipients: u64) {
        self.sent[usize::from(type_code)].add_owned(recipients);
    }

    /// An ERROR frame with this code was queued; codes outside the table given at start count as `other`.
    pub fn error(&self, code: u16) {
        let place = self.names.error_codes.binary_search(&code).unwrap_or(self.names.error_codes.len());
        self.errors[place].add_owned(1);
    }

    /// A session began.
    pub fn session_opened(&self) {
        self.opened.add_owned(1);
    }

    /// A session ended; exactly one for each [`ShardMetrics::session_opened`].
    pub fn disconnect(&self, reason: DisconnectReason) {
        self.closed.add_owned(1);
        self.disconnects.of(reason).add_owned(1);
    }

    /// A frame could not be read.
    pub fn decode_error(&self, kind: DecodeError) {
        self.decode_errors.of(kind).add_owned(1);
    }

    /// A request was answered, that many microseconds after its frame had been read. Codes no client message has are
    /// left out: they have no work to time.
    pub fn request(&self, type_code: u8, micros: u64) {
        if let Some(histogram) = self.requests.get(self.names.request_slots[usize::from(type_code)]) {
            histogram.observe_owned(micros);
        }
    }

    /// A post was durable and acknowledged, that many microseconds after its frame had been read.
    pub fn post_ack(&self, micros: u64) {
        self.post_ack.observe_owned(micros);
    }

    /// Bytes were put into outbound queues.
    pub fn outbound_added(&self, bytes: u64) {
        self.outbound_bytes.add_owned(bytes);
    }

    /// Bytes left outbound queues, written or thrown away with their session.
    pub fn outbound_removed(&self, bytes: u64) {
        self.outbound_bytes.sub_owned(bytes);
    }

    /// The loop's tick ran at `now_ms`; it had been due at `due_ms` and is next due at `next_ms` (monotonic). The lag of a
    /// shard that is stuck grows by itself from `next_ms` on.
    pub fn tick(&self, now_ms: u64, due_ms: u64, next_ms: u64) {
        self.lag_ms.set(now_ms.saturating_sub(due_ms));
        self.tick_due_ms.store(next_ms, Ordering::Relaxed);
    }

    /// Sessions begun and sessions ended.
    pub(super) fn opened_and_closed(&self) -> (u64, u64) {
        (self.opened.get(), self.closed.get())
    }

    /// Sessions open now.
    pub fn sessions(&self) -> u64 {
        self.opened.get().saturating_sub(self.closed.get())
    }

    fn broadcast(&self, kind: Fanout, recipients: u64, micros: u64) {
        self.broadcasts.add_owned(1);
        self.fanout[kind.index()].observe_owned(recipients);
        self.broadcast[kind.index()].observe_owned(micros);
    }

    fn lag_seconds(&self, now_ms: u64) -> f64 {
        let overdue_ms = now_ms.saturating_sub(self.tick_due_ms.load(Ordering::Relaxed));
        self.lag_ms.get().max(overdue_ms) as f64 / 1000.0
    }
}

/// One NEW_MESSAGE on its way through all shards: the last to finish records the whole.
#[derive(Debug)]
pub struct FanoutTally {
    kind: Fanout,
    committed_micros: u64,
    shards_left: AtomicUsize,
    recipients: AtomicU64,
}

impl FanoutTally {
    /// For a message committed at `committed_micros` (monotonic), published by that many shards (at least one).
    pub fn new(kind: Fanout, shards: usize, committed_micros: u64) -> Arc<Self> {
        let (shards_left, recipients) = (AtomicUsize::new(shards), AtomicU64::new(0));
        Arc::new(Self { kind, committed_micros, shards_left, recipients })
    }

    /// A shard flushed its last recipient's queue at `now_micros`; once for each shard, also with no recipients.
    pub fn finish(&self, shard: &ShardMetrics, recipients: u64, now_micros: u64) {
        self.recipients.fetch_add(recipients, Ordering::Relaxed);
        // Release and acquire, so that the last one sees the recipients of all the others.
        if self.shards_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let recipients = self.recipients.load(Ordering::Relaxed);
            shard.broadcast(self.kind, recipients, now_micros.saturating_sub(self.committed_micros));
        }
    }
}

/// Writes the sum over all shards, and what is told for each.
pub(super) fn collect(shards: &[ShardMetrics], names: &Names, sheet: &mut Sheet, now_ms: u64) {
    let Some(first) = shards.first() else { return };
    collect_totals(shards, names, sheet);
    collect_messages(shards, names, sheet);
    collect_latencies(shards, first, names, sheet);
    for (index, shard) in shards.iter().enumerate() {
        let label = index.to_string();
        sheet.sample(Metric::ShardSessions, &[&label], shard.sessions() as f64);
        sheet.sample(Metric::ShardLoopLag, &[&label], shard.lag_seconds(now_ms));
    }
}

fn total<'a>(shards: &'a [ShardMetrics], cell: impl Fn(&'a ShardMetrics) -> &'a Counter) -> u64 {
    shards.iter().map(|shard| cell(shard).get()).sum()
}

fn merged<'a>(shards: &'a [ShardMetrics], cell: impl Fn(&'a ShardMetrics) -> &'a Histogram) -> Option<Snapshot> {
    let mut cells = shards.iter().map(cell);
    let first = Snapshot::of(cells.next()?);
    Some(cells.fold(first, Snapshot::merged))
}

fn collect_totals(shards: &[ShardMetrics], names: &Names, sheet: &mut Sheet) {
    let sessions: u64 = shards.iter().map(ShardMetrics::sessions).sum();
    sheet.sample(Metric::ActiveSessions, &[], sessions as f64);
    sheet.sample(Metric::SessionsCreated, &[], total(shards, |shard| &shard.opened) as f64);
    sheet.sample(Metric::SessionsDisconnected, &[], total(shards, |shard| &shard.closed) as f64);
    sheet.sample(Metric::MessagesBroadcast, &[], total(shards, |shard| &shard.broadcasts) as f64);
    sheet.sample(Metric::OutboundQueueBytes, &[], total(shards, |shard| &shard.outbound_bytes) as f64);
    for reason in DisconnectReason::ALL {
        let count = total(shards, |shard| shard.disconnects.of(*reason));
        sheet.sample(Metric::Disconnects, &[reason.label()], count as f64);
    }
    for kind in DecodeError::ALL {
        let count = total(shards, |shard| shard.decode_errors.of(*kind));
        sheet.sample(Metric::DecodeErrors, &[kind.label()], count as f64);
    }
    for (place, code) in names.error_codes.iter().enumerate() {
        sheet.sample(Metric::Errors, &[&code.to_string()], total(shards, |shard| &shard.errors[place]) as f64);
    }
    let other_errors = total(shards, |shard| &shard.errors[names.error_codes.len()]);
    if other_errors > 0 {
        sheet.sample(Metric::Errors, &["other"], other_errors as f64);
    }
}

/// Known types always have a series, so that a rate sees the first message; unknown codes only once they came.
fn collect_messages(shards: &[ShardMetrics], names: &Names, sheet: &mut Sheet) {
    for code in 0..=u8::MAX {
        let place = usize::from(code);
        let received = total(shards, |shard| &shard.received[place]);
        let sent = total(shards, |shard| &shard.sent[place]);
        for (metric, name, count) in [
            (Metric::MessagesReceived, names.received[place], received),
            (Metric::MessagesSent, names.sent[place], sent),
        ] {
            match name {
                Some(name) => sheet.sample(metric, &[name], count as f64),
                None if count > 0 => sheet.sample(metric, &[&format!("0x{code:02X}")], count as f64),
                None => {}
            }
        }
        if names.ping == Some(code) {
            sheet.sample(Metric::Pings, &[], received as f64);
        }
    }
}

fn collect_latencies(shards: &[ShardMetrics], first: &ShardMetrics, names: &Names, sheet: &mut Sheet) {
    let requests = names.requests.iter().zip(0..first.requests.len());
    for (name, slot) in requests {
        // Seventeen lines each: a request that never came has none.
        if let Some(snapshot) = merged(shards, |shard| &shard.requests[slot]).filter(|snapshot| snapshot.count() > 0) {
            sheet.histogram(Metric::RequestDuration, &[name], &snapshot);
        }
    }
    if let Some(snapshot) = merged(shards, |shard| &shard.post_ack) {
        sheet.histogram(Metric::PostAck, &[], &snapshot);
    }
    for kind in Fanout::ALL {
        if let Some(snapshot) = merged(shards, |shard| &shard.fanout[kind.index()]) {
            sheet.histogram(Metric::BroadcastFanout, &[kind.label()], &snapshot);
        }
        if let Some(snapshot) = merged(shards, |shard| &shard.broadcast[kind.index()]) {
            sheet.histogram(Metric::BroadcastDuration, &[kind.label()], &snapshot);
        }
    }
}
