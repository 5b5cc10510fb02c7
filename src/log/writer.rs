//! The thread behind each sink: takes batches out of the queue, delivers them, and tells what was lost once it can.

use std::io;
use std::mem;
use std::slice;

use super::queue::{Inbox, Line};
use crate::supervise;

/// Where lines end up. Only the writer's thread is in here, so a destination may block.
pub(super) trait Destination: Send {
    /// Delivers those of `lines` that belong here, in order; how many of them were lost.
    fn deliver(&mut self, lines: &[Line]) -> u64;

    /// Starts anew under the same name, keeping what is open when that fails.
    fn reopen(&mut self) {}
}

/// A line that says how many lines are missing at its place.
pub(super) type Notice = Box<dyn Fn(u64) -> Line + Send>;

/// Starts the thread that delivers to all `destinations`; the first one also reports what the queue refused.
/// It ends when the queue has no sender any more.
///
/// # Errors
/// When the system has no thread left.
pub(super) fn spawn(
    name: &str,
    inbox: Inbox,
    destinations: Vec<Box<dyn Destination>>,
    notice: Notice,
) -> io::Result<()> {
    let destinations = destinations.into_iter().map(|destination| Tracked { destination, owed: 0 }).collect();
    let writer = Writer { inbox, destinations, notice };
    supervise::spawn(name, || writer.run()).map(drop)
}

struct Writer {
    inbox: Inbox,
    destinations: Vec<Tracked>,
    notice: Notice,
}

impl Writer {
    fn run(mut self) {
        let mut batch = Vec::new();
        while self.inbox.receive(&mut batch) {
            if self.inbox.take_reopen() {
                self.destinations.iter_mut().for_each(|tracked| tracked.destination.reopen());
            }
            let overflow = self.inbox.overflow();
            let (mut lost, mut owed) = (0, overflow);
            for tracked in &mut self.destinations {
                lost += tracked.deliver(&batch, mem::take(&mut owed), &self.notice);
            }
            self.inbox.settle(&batch, lost, overflow);
            batch.clear();
        }
    }
}

/// A destination and the lines missing in it that no notice has told of.
struct Tracked {
    destination: Box<dyn Destination>,
    owed: u64,
}

impl Tracked {
    /// Tells of losses where they are: what was lost earlier before the batch, what the queue refused while the batch
    /// was in it after the batch.
    fn deliver(&mut self, batch: &[Line], overflow: u64, notice: &Notice) -> u64 {
        self.tell(notice);
        let lost = self.destination.deliver(batch);
        self.owed += lost + overflow;
        if lost == 0 {
            self.tell(notice);
        }
        lost
    }

    fn tell(&mut self, notice: &Notice) {
        if self.owed > 0 && self.destination.deliver(slice::from_ref(&notice(self.owed))) == 0 {
            self.owed = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tracing::Level;

    use super::super::queue::queue;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Loses the deliveries that it is told to lose and shows the others.
    struct Flaky {
        losing: mpsc::Receiver<bool>,
        seen: mpsc::SyncSender<String>,
    }

    impl Destination for Flaky {
        fn deliver(&mut self, lines: &[Line]) -> u64 {
            if self.losing.recv().expect("the test decides about every delivery") {
                return lines.len() as u64;
            }
            for line in lines {
                self.seen.send(String::from_utf8_lossy(&line.bytes).into_owned()).expect("the test listens");
            }
            0
        }
    }

    fn line(text: &str) -> Line {
        Line { level: Level::INFO, chosen: true, bytes: text.as_bytes().into() }
    }

    #[test]
    fn a_recovered_destination_is_told_what_it_misses() {
        let (queue, inbox) = queue();
        let (lose, losing) = mpsc::sync_channel(8);
        let (seen, shown) = mpsc::sync_channel(8);
        let notice: Notice = Box::new(|count| line(&format!("{count} missing")));
        spawn("log-test", inbox, vec![Box::new(Flaky { losing, seen })], notice).unwrap();

        let log = |text, decisions: &[bool]| {
            queue.push(line(text));
            decisions.iter().for_each(|decision| lose.send(*decision).unwrap());
            assert!(queue.drain(LIMIT), "{text}");
            shown.try_iter().collect::<Vec<_>>()
        };
        assert_eq!(log("one", &[true]), [""; 0]);
        assert_eq!(log("two", &[true, true]), [""; 0], "neither notice nor line");
        assert_eq!(log("three", &[true, false, true]), ["three"], "a lost notice is repeated later");
        assert_eq!(log("four", &[false, false]), ["2 missing", "four"]);
        assert_eq!(log("five", &[false]), ["five"], "told once");
        assert_eq!(queue.dropped(), 2, "a notice is no line of anybody");
    }
}
