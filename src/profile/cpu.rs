//! CPU samples: every thread has a timer on its own CPU clock, and writes down its stack whenever that runs out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::mem::MaybeUninit;
use std::thread;
use std::time::Duration;

use super::mappings::{self, Mapping};
use super::signal::{self, SAMPLES, SIGNAL, Stack};
use super::{Frame, Label, Profile, Sample, ValueType, threads, time_nanos};
use crate::clock;

/// Samples per second of CPU time when nobody asks for another number, as Go has it.
pub const HZ: u32 = 100;

/// The kernel looks at CPU timers when its own clock ticks, on servers 250 times a second at least.
pub const HZ_MAX: u32 = 250;

/// How often new threads are looked for and the log is emptied. Threads that live shorter may not be seen.
const TURN: Duration = Duration::from_millis(100);

/// Different stacks of one profile; samples of further ones are counted together.
const STACKS_MAX: usize = 1 << 16;

const CPU: ValueType = ValueType { kind: "cpu", unit: "nanoseconds" };

/// Why there is no CPU profile.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// One at a time: in Go's words, because its tools show them.
    #[error("cpu profiling already in use")]
    Busy,
    /// The system refused.
    #[error("cannot take CPU samples: {0}")]
    System(#[from] io::Error),
}

/// Samples all threads for `duration`, `hz` times ([`HZ`], 1 to [`HZ_MAX`]) per second of CPU time of each, by what they
/// do themselves: kernel time counts for the function that called it. Ends within 100 ms once `cancelled` says so, with
/// what there is.
///
/// # Errors
/// See [`CpuError`].
pub fn record(duration: Duration, hz: u32, cancelled: &dyn Fn() -> bool) -> Result<Profile, CpuError> {
    let period = Duration::from_secs(1) / hz.clamp(1, HZ_MAX);
    let reader = SAMPLES.open().ok_or(CpuError::Busy)?;
    signal::install()?;
    let (time_nanos, began) = (time_nanos(), clock::monotonic());
    let (mut threads, mut stacks) = (Threads::default(), Stacks::default());
    threads.follow(period)?;
    loop {
        reader.drain(|stack| stacks.add(threads.name(stack.tid), stack));
        let left = duration.saturating_sub(clock::monotonic().saturating_sub(began));
        if left.is_zero() || cancelled() {
            break;
        }
        thread::sleep(left.min(TURN));
        // What is sampled already goes on; without a free descriptor, for one, the system names no threads.
        threads.unlisted += u64::from(threads.follow(period).is_err());
    }
    threads.stop();
    reader.close();
    reader.drain(|stack| stacks.add(threads.name(stack.tid), stack));
    let period = nanoseconds(period);
    Ok(Profile {
        sample_types: &[ValueType { kind: "samples", unit: "count" }, CPU],
        default_sample_type: CPU.kind,
        period_type: CPU,
        period,
        time_nanos,
        duration_nanos: nanoseconds(clock::monotonic().saturating_sub(began)),
        samples: stacks.samples(period, &mappings::all()),
        drop_frames: "",
        comments: losses(&[
            (reader.lost(), "samples were lost, because they came faster than they could be read"),
            (threads.refused, "times the system had no timer for a thread, which is missing"),
            (threads.unlisted, "times the system did not list the threads, so that new ones may be missing"),
            (stacks.others.signals, "samples have no stack, because there were too many different ones"),
        ]),
    })
}

fn losses(counts: &[(u64, &str)]) -> Vec<String> {
    counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect()
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// The threads that are sampled.
#[derive(Default)]
struct Threads {
    by_number: HashMap<i32, Sampled>,
    /// Threads for which the system had no timer.
    refused: u64,
    /// Looks for new threads that the system refused.
    unlisted: u64,
}

struct Sampled {
    timer: Option<Timer>,
    name: String,
    /// A thread that has just begun still has its parent's name.
    is_named: bool,
}

impl Threads {
    /// Starts timers for threads that are new, and gives up those of threads that have ended: their numbers come again.
    fn follow(&mut self, period: Duration) -> io::Result<()> {
        let living = threads::numbers()?;
        self.by_number.retain(|tid, _| living.contains(tid));
        for tid in living {
            if let Entry::Vacant(entry) = self.by_number.entry(tid) {
                let timer = Timer::start(tid, period).ok();
                self.refused += u64::from(timer.is_none());
                entry.insert(Sampled { timer, name: threads::name(tid).unwrap_or_default(), is_named: false });
            }
        }
        Ok(())
    }

    fn name(&mut self, tid: i32) -> &str {
        let Some(thread) = self.by_number.get_mut(&tid) else { return "" };
        if !thread.is_named {
            thread.name = threads::name(tid).unwrap_or_else(|| std::mem::take(&mut thread.name));
            thread.is_named = true;
        }
        &thread.name
    }

    /// Stops all timers; names stay known.
    fn stop(&mut self) {
        self.by_number.values_mut().for_each(|thread| thread.timer = None);
    }
}

/// Interrupts one thread whenever it has used another period of CPU time.
struct Timer(libc::timer_t);

// A timer's number may be used on any thread.
#[expect(unsafe_code, reason = "the C library writes the number of a timer as a pointer")]
// SAFETY: nothing is ever read or written through it.
unsafe impl Send for Timer {}

impl Timer {
    #[expect(unsafe_code, reason = "the standard library has no timers")]
    fn start(tid: i32, period: Duration) -> io::Result<Self> {
        let mut event = MaybeUninit::<libc::sigevent>::zeroed();
        let mut timer = MaybeUninit::<libc::timer_t>::zeroed();
        // SAFETY: both structures are plain numbers, for which zero is a value; the kernel copies the first and fills the
        // second. A thread that has ended meanwhile makes this fail, or its timer never run out; if its number belongs
        // to another one by now, that one is a thread of this process too, and has the handler.
        let timer = unsafe {
            let event = event.assume_init_mut();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = SIGNAL;
            event.sigev_notify_thread_id = tid;
            if libc::timer_create(cpu_clock(tid), event, timer.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Self(timer.assume_init())
        };
        let times = libc::itimerspec { it_interval: timespec(period), it_value: timespec(first(tid, period)) };
        // SAFETY: the timer is there until it is dropped; the times are read during the call only.
        match unsafe { libc::timer_settime(timer.0, 0, &raw const times, std::ptr::null_mut()) } {
            0 => Ok(timer),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Timer {
    #[expect(unsafe_code, reason = "the standard library has no timers")]
    fn drop(&mut self) {
        // SAFETY: made by `start`, and deleted nowhere else. Deleting a timer whose thread has ended is fine.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// The CPU clock of a thread, as the kernel numbers them: the thread's number inverted, and that it is one of a thread (4)
/// that counts by the scheduler (2). `pthread_getcpuclockid` says the same, but knows no threads that others started.
fn cpu_clock(tid: i32) -> libc::clockid_t {
    (!tid << 3) | 4 | 2
}

/// When a thread is sampled first: at any time within the period, so that threads which use less than one are seen as
/// often as is right, and threads that began together are not sampled together.
fn first(tid: i32, period: Duration) -> Duration {
    let seed = clock::monotonic().as_nanos() ^ (u128::from(tid.unsigned_abs()) << 32);
    // Knuth's multiplicative hash: the digits that change least get to those that decide.
    let mixed = u64::try_from(seed & u128::from(u64::MAX)).unwrap_or(0).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    // A first time of zero would stop the timer.
    Duration::from_nanos(1) + period.mul_f64(mixed as f64 / f64::from(u32::MAX)).saturating_sub(Duration::from_nanos(1))
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// Samples by thread and stack.
#[derive(Default)]
struct Stacks {
    by_stack: HashMap<(String, Vec<usize>), Count>,
    others: Count,
}

#[derive(Default)]
struct Count {
    signals: u64,
    /// Which these stand for: under load a signal may come late, and for several.
    periods: u64,
}

impl Stacks {
    fn add(&mut self, thread: &str, stack: Stack) {
        let is_full = self.by_stack.len() >= STACKS_MAX;
        let count = match self.by_stack.entry((thread.to_owned(), stack.addresses)) {
            Entry::Vacant(_) if is_full => &mut self.others,
            entry => entry.or_default(),
        };
        count.signals += 1;
        count.periods += u64::from(stack.periods);
    }

    fn samples(&self, period: i64, code: &[Mapping]) -> Vec<Sample> {
        let mut samples: Vec<Sample> = self
            .by_stack
            .iter()
            .map(|((thread, addresses), count)| {
                let thread = (!thread.is_empty()).then(|| ("thread", Label::Text(thread.clone())));
                count.sample(frames(addresses, code), thread.into_iter().collect(), period)
            })
            .collect();
        if self.others.signals > 0 {
            samples.push(self.others.sample(vec![Frame::Name("other stacks")], Vec::new(), period));
        }
        samples
    }
}

impl Count {
    fn sample(&self, stack: Vec<Frame>, labels: Vec<(&'static str, Label)>, period: i64) -> Sample {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        Sample { stack, values: vec![number(self.signals), number(self.periods).saturating_mul(period)], labels }
    }
}

/// Addresses of one interrupted stack as frames, up to the first that is no code: C code may use the frame pointer for
/// anything, and what was found through it is then not to be shown.
pub(super) fn frames(addresses: &[usize], code: &[Mapping]) -> Vec<Frame> {
    let is_code = |address: &&usize| code.iter().any(|mapping| (mapping.start..mapping.end).contains(*address));
    let leaf = addresses.first().map(|pc| Frame::Pc(*pc));
    let calls = addresses.iter().skip(1).take_while(is_code).map(|address| Frame::Return(*address));
    leaf.into_iter().chain(calls).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise;
    use std::hint::black_box;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::sync_channel;

    #[test]
    fn the_first_sample_comes_within_the_first_period_and_never_at_once() {
        let period = Duration::from_millis(10);
        let firsts: Vec<Duration> = (1..2_000).map(|tid| first(tid, period)).collect();
        assert!(firsts.iter().all(|first| !first.is_zero() && *first <= period));
        let early = firsts.iter().filter(|first| **first < period / 2).count();
        assert!((600..1_400).contains(&early), "{early} of 2000 in the first half");
    }

    #[test]
    fn a_stack_ends_where_an_address_is_no_code() {
        let mapping = |start, end| Mapping { start, end, offset: 0, file: String::new(), build_id: String::new() };
        let code = [mapping(0x1000, 0x2000), mapping(0x3000, 0x4000)];
        let expected = [Frame::Pc(0x9000), Frame::Return(0x1000), Frame::Return(0x3fff)];
        assert_eq!(frames(&[0x9000, 0x1000, 0x3fff, 0x2000, 0x1000], &code), expected);
        assert!(frames(&[], &code).is_empty());
    }

    #[test]
    fn too_many_different_stacks_are_counted_together() {
        let mut stacks = Stacks::default();
        for address in 0..STACKS_MAX + 3 {
            stacks.add("a", Stack { tid: 1, periods: 2, addresses: vec![address] });
        }
        stacks.add("a", Stack { tid: 1, periods: 5, addresses: vec![0] });
        let samples = stacks.samples(10, &[]);
        assert_eq!(samples.len(), STACKS_MAX + 1);
        assert_eq!(samples.last().unwrap().values, [3, 60]);
        let known = samples.iter().find(|sample| sample.stack == [Frame::Pc(0)]).unwrap();
        assert_eq!(known.values, [2, 70]);
    }

    #[test]
    fn a_timer_needs_a_living_thread_to_start_and_none_to_end() {
        let period = Duration::from_millis(10);
        signal::install().unwrap();
        assert!(Timer::start(i32::MAX, period).is_err());
        let (told, tid) = sync_channel(0);
        let (end, ended) = sync_channel::<()>(0);
        let thread = supervise::spawn("short-lived", move || {
            told.send(threads::own_number()).unwrap();
            ended.recv().unwrap_err();
        });
        let timer = Timer::start(tid.recv().unwrap(), period).unwrap();
        drop(end);
        thread.unwrap().join().unwrap();
        drop(timer);
    }

    #[inline(never)]
    fn spin(stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            black_box((0..1_000).fold(0_u64, |sum, number| sum ^ black_box(number)));
        }
    }

    /// All that needs the one CPU profile of the process stands in one test.
    #[test]
    fn a_thread_that_spins_is_seen_for_as_long_as_it_does_under_its_name() {
        let stop = Arc::new(AtomicBool::new(false));
        let spinner = Arc::clone(&stop);
        let spinner = supervise::spawn("cpu-spinner", move || spin(&spinner)).unwrap();
        let was_busy = AtomicBool::new(false);
        let profile = record(Duration::from_secs(2), 250, &|| {
            was_busy.store(matches!(record(Duration::ZERO, HZ, &|| false), Err(CpuError::Busy)), Ordering::Relaxed);
            false
        });
        let profile = profile.unwrap();
        let cancelled = record(Duration::from_secs(600), HZ, &|| true).unwrap();
        stop.store(true, Ordering::Relaxed);
        spinner.join().unwrap();

        assert!(was_busy.into_inner(), "there is one profile at a time");
        assert!(cancelled.duration_nanos < 5_000_000_000, "a profile ends when it is cancelled");
        let spinning = ("thread", Label::Text("cpu-spinner".to_owned()));
        let of_spinner: Vec<&Sample> =
            profile.samples.iter().filter(|sample| sample.labels.contains(&spinning)).collect();
        let time: i64 = of_spinner.iter().map(|sample| sample.values[1]).sum();
        // Its share of the processors is not known, but it had some, and no more than one.
        assert!(time > 100_000_000 && time < profile.duration_nanos * 11 / 10, "{time} ns of 2 s");
        let start = spin as fn(&AtomicBool) as usize;
        let is_spin = |sample: &&&Sample| {
            sample.stack.iter().any(|frame| match frame {
                Frame::Pc(address) | Frame::Return(address) => (start..start + 512).contains(address),
                _ => false,
            })
        };
        let in_spin: i64 = of_spinner.iter().filter(is_spin).map(|sample| sample.values[1]).sum();
        assert!(in_spin * 10 > time * 9, "{in_spin} of {time} ns");
        assert_eq!(profile.period, 4_000_000);
        assert!(profile.comments.is_empty(), "{:?}", profile.comments);
    }
}
