//! Series by channel and thread, bounded in number.
//!
//! A shard takes a handle when it makes its entry for a topic and keeps it there; counting is then one relaxed addition
//! for each publication. The registry's lock is taken only when handles are made, when a topic is deleted, and by a
//! scrape for as long as it takes to copy the list of handles.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};

use super::cells::Counter;
use super::sheet::Sheet;
use super::table::Metric;
use crate::profile::waits::Mutex;

/// How long a thread's series stays after its last subscriber left, in milliseconds.
pub const THREAD_IDLE_MS: u64 = 5 * 60 * 1000;

const OTHER: &str = "other";
const NONE: &str = "none";

/// The numbers of one topic, shared by the shards that serve it.
#[derive(Debug, Default)]
pub struct TopicMetrics {
    delivered: Counter,
    subscribers: Counter,
}

impl TopicMetrics {
    /// A session subscribed.
    pub fn subscribed(&self) {
        self.subscribers.add(1);
    }

    /// A session left; exactly one for each [`TopicMetrics::subscribed`] on the same handle.
    pub fn unsubscribed(&self) {
        self.subscribers.sub(1);
    }

    /// One publication went to that many sessions.
    pub fn delivered(&self, recipients: u64) {
        self.delivered.add(recipients);
    }

    fn has_subscribers(&self) -> bool {
        self.subscribers.get() > 0
    }

    fn has_moved(&self) -> bool {
        self.has_subscribers() || self.delivered.get() > 0
    }
}

/// All topics that have a series of their own, and the rest.
#[derive(Debug)]
pub(super) struct Topics {
    series_max: usize,
    registry: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    channels: HashMap<u64, Arc<TopicMetrics>>,
    threads: HashMap<u64, Thread>,
    /// Threads beyond the bound, by channel, so that the sum of a channel stays right.
    other_threads: HashMap<u64, Arc<TopicMetrics>>,
    /// Topics in channels beyond the bound, and in direct messages.
    other_channel: Arc<TopicMetrics>,
    other_channel_thread: Arc<TopicMetrics>,
}

#[derive(Debug)]
struct Thread {
    channel_id: u64,
    metrics: Arc<TopicMetrics>,
    idle_since_ms: Option<u64>,
}

impl Topics {
    pub(super) fn new(series_max: usize) -> Self {
        Self { series_max, registry: Mutex::default() }
    }

    pub(super) fn channel(&self, id: u64) -> Arc<TopicMetrics> {
        let mut registry = self.lock();
        let full = registry.channels.len() >= self.series_max;
        match registry.channels.get(&id) {
            Some(known) => Arc::clone(known),
            None if full => Arc::clone(&registry.other_channel),
            None => Arc::clone(registry.channels.entry(id).or_default()),
        }
    }

    pub(super) fn thread(&self, channel_id: u64, id: u64, now_ms: u64) -> Arc<TopicMetrics> {
        // A thread's label names its channel, so the channel needs its place first.
        self.channel(channel_id);
        let mut registry = self.lock();
        if let Some(known) = registry.threads.get(&id) {
            return Arc::clone(&known.metrics);
        }
        if !registry.channels.contains_key(&channel_id) {
            return Arc::clone(&registry.other_channel_thread);
        }
        if registry.threads.len() >= self.series_max {
            registry.sweep(now_ms);
        }
        if registry.threads.len() >= self.series_max {
            return Arc::clone(registry.other_threads.entry(channel_id).or_default());
        }
        let metrics = Arc::<TopicMetrics>::default();
        registry.threads.insert(id, Thread { channel_id, metrics: Arc::clone(&metrics), idle_since_ms: None });
        metrics
    }

    pub(super) fn other_channel(&self) -> Arc<TopicMetrics> {
        Arc::clone(&self.lock().other_channel)
    }

    pub(super) fn other_channel_thread(&self) -> Arc<TopicMetrics> {
        Arc::clone(&self.lock().other_channel_thread)
    }

    pub(super) fn channel_deleted(&self, id: u64) {
        let mut registry = self.lock();
        registry.channels.remove(&id);
        registry.other_threads.remove(&id);
        registry.threads.retain(|_, thread| thread.channel_id != id);
    }

    pub(super) fn thread_deleted(&self, id: u64) {
        self.lock().threads.remove(&id);
    }

    pub(super) fn collect(&self, sheet: &mut Sheet, now_ms: u64) {
        let mut copy = self.copy(now_ms);
        copy.sort_by_key(|row| (row.channel, row.thread));
        let mut other_threads_subscribers = None;
        for row in &copy {
            let count = row.metrics.delivered.get() as f64;
            let subscribers = row.metrics.subscribers.get() as f64;
            let (channel, thread) = (row.channel.text(), row.thread.text());
            sheet.sample(Metric::MessagesDelivered, &[&channel, &thread], count);
            match row.thread {
                Place::None => sheet.sample(Metric::ChannelSubscribers, &[&channel], subscribers),
                Place::Id(_) => sheet.sample(Metric::ThreadSubscribers, &[&thread], subscribers),
                Place::Other => *other_threads_subscribers.get_or_insert(0.0) += subscribers,
            }
        }
        if let Some(subscribers) = other_threads_subscribers {
            sheet.sample(Metric::ThreadSubscribers, &[OTHER], subscribers);
        }
    }

    /// Handles and their labels; texts are made once the lock is free again.
    fn copy(&self, now_ms: u64) -> Vec<Row> {
        let mut registry = self.lock();
        registry.sweep(now_ms);
        let channels = registry.channels.iter().map(|(id, metrics)| Row::new(Place::Id(*id), Place::None, metrics));
        let threads = registry
            .threads
            .iter()
            .map(|(id, thread)| Row::new(Place::Id(thread.channel_id), Place::Id(*id), &thread.metrics));
        let others = registry
            .other_threads
            .iter()
            .map(|(channel, metrics)| Row::new(Place::Id(*channel), Place::Other, metrics));
        let mut rows: Vec<Row> = channels.chain(threads).chain(others).collect();
        let beyond = [(Place::None, &registry.other_channel), (Place::Other, &registry.other_channel_thread)];
        let used = beyond.into_iter().filter(|(_, metrics)| metrics.has_moved());
        rows.extend(used.map(|(thread, metrics)| Row::new(Place::Other, thread, metrics)));
        rows
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }
}

impl Registry {
    /// Drops threads that nobody holds and that have been without subscribers for long enough.
    fn sweep(&mut self, now_ms: u64) {
        self.threads.retain(|_, thread| {
            // Handles are cloned under this lock only, so one that is ours alone cannot be in use a moment later.
            if Arc::strong_count(&thread.metrics) > 1 || thread.metrics.has_subscribers() {
                thread.idle_since_ms = None;
                return true;
            }
            now_ms.saturating_sub(*thread.idle_since_ms.get_or_insert(now_ms)) < THREAD_IDLE_MS
        });
    }
}

struct Row {
    channel: Place,
    thread: Place,
    metrics: Arc<TopicMetrics>,
}

impl Row {
    fn new(channel: Place, thread: Place, metrics: &Arc<TopicMetrics>) -> Self {
        Self { channel, thread, metrics: Arc::clone(metrics) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    None,
    Id(u64),
    Other,
}

impl Place {
    fn text(self) -> String {
        match self {
            Place::None => NONE.to_owned(),
            Place::Id(id) => id.to_string(),
            Place::Other => OTHER.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::sheet::{Exposition, encode};

    fn exposed(topics: &Topics, now_ms: u64) -> Vec<String> {
        let mut sheet = Sheet::new();
        topics.collect(&mut sheet, now_ms);
        let text = encode(&sheet.families(|_| true), Exposition::Text).expect("valid families");
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    fn shows(lines: &[String], line: &str) -> bool {
        lines.iter().any(|shown| shown == line)
    }

    #[test]
    fn ids_beyond_the_bound_share_other_and_totals_stay_right() {
        let topics = Topics::new(2);
        for channel in 1..=3 {
            topics.channel(channel).delivered(10);
        }
        for thread in 101..=104 {
            let handle = topics.thread(1, thread, 0);
            handle.subscribed();
            handle.delivered(1);
        }
        topics.thread(3, 105, 0).delivered(5);
        let lines = exposed(&topics, 0);
        for line in [
            r#"superchat_messages_delivered_total{channel_id="1",thread_id="none"} 10"#,
            r#"superchat_messages_delivered_total{channel_id="other",thread_id="none"} 10"#,
            r#"superchat_messages_delivered_total{channel_id="1",thread_id="102"} 1"#,
            r#"superchat_messages_delivered_total{channel_id="1",thread_id="other"} 2"#,
            r#"superchat_messages_delivered_total{channel_id="other",thread_id="other"} 5"#,
            r#"superchat_thread_subscribers{thread_id="other"} 2"#,
        ] {
            assert!(shows(&lines, line), "{line} is missing in {lines:#?}");
        }
        let total: u64 = lines
            .iter()
            .filter(|line| line.starts_with("superchat_messages_delivered_total"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum();
        assert_eq!(total, 30 + 4 + 5);
    }

    #[test]
    fn a_thread_goes_minutes_after_its_last_subscriber_and_leaves_its_place() {
        let topics = Topics::new(1);
        let handle = topics.thread(1, 7, 0);
        handle.subscribed();
        assert!(shows(&exposed(&topics, THREAD_IDLE_MS * 9), r#"superchat_thread_subscribers{thread_id="7"} 1"#));
        handle.unsubscribed();
        drop(handle);
        let left_ms = THREAD_IDLE_MS * 10;
        assert!(shows(&exposed(&topics, left_ms), r#"superchat_thread_subscribers{thread_id="7"} 0"#));
        let gone_ms = left_ms + THREAD_IDLE_MS;
        assert!(exposed(&topics, gone_ms - 1).iter().any(|line| line.contains(r#"thread_id="7""#)));
        topics.thread(1, 8, gone_ms).subscribed();
        let lines = exposed(&topics, gone_ms);
        assert!(shows(&lines, r#"superchat_thread_subscribers{thread_id="8"} 1"#), "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains(r#"thread_id="7""#)), "{lines:#?}");
    }

    #[test]
    fn a_held_handle_keeps_its_series() {
        let topics = Topics::new(1);
        let handle = topics.thread(1, 7, 0);
        exposed(&topics, 0);
        exposed(&topics, THREAD_IDLE_MS * 2);
        handle.subscribed();
        assert!(shows(&exposed(&topics, THREAD_IDLE_MS * 3), r#"superchat_thread_subscribers{thread_id="7"} 1"#));
    }

    #[test]
    fn deleting_a_channel_takes_its_threads_along() {
        let topics = Topics::new(10);
        for (channel, thread) in [(1, 11), (2, 21)] {
            topics.thread(channel, thread, 0).subscribed();
        }
        topics.channel_deleted(1);
        topics.thread_deleted(21);
        let lines = exposed(&topics, 0);
        assert_eq!(
            lines,
            [
                r#"superchat_messages_delivered_total{channel_id="2",thread_id="none"} 0"#,
                r#"superchat_channel_subscribers{channel_id="2"} 0"#,
            ]
        );
    }
}
