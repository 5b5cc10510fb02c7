//! Threads: where each is, and who started it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::cpu::frames;
use super::signal::{self, LOOKS, SIGNAL};
use super::{Frame, Label, Profile, Sample, ValueType, mappings, stack, time_nanos};
use crate::clock;

/// How long threads are waited for that are asked where they are. One that the kernel holds answers later or never.
const PATIENCE: Duration = Duration::from_millis(20);

/// Calls kept of the stack that started a thread.
const CREATION_DEPTH: usize = 32;

/// What one thread was doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadStack {
    /// As the system shows it.
    pub name: String,
    /// The system's number of the thread.
    pub tid: i32,
    /// Before it was asked, as in proc_pid_stat(5): `R` runs, `S` waits, `D` waits for a disk.
    pub state: char,
    /// Leaf first; empty for a thread that did not answer.
    pub frames: Vec<Frame>,
}

/// All threads, by number. Takes [`PATIENCE`](self) at most, and stops none of them for longer than it takes to write
/// down a stack.
#[must_use]
pub fn stacks() -> Vec<ThreadStack> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut threads: Vec<ThreadStack> = numbers().unwrap_or_default().into_iter().filter_map(ThreadStack::of).collect();
    let mut answers = ask(&threads);
    let code = mappings::all();
    for thread in &mut threads {
        thread.frames = answers.remove(&thread.tid).map_or_else(Vec::new, |addresses| frames(&addresses, &code));
    }
    threads
}

impl ThreadStack {
    fn of(tid: i32) -> Option<Self> {
        Some(Self { name: name(tid)?, tid, state: state(tid)?, frames: Vec::new() })
    }
}

/// Interrupts all `threads`; the addresses of the stacks of those that answered in time.
fn ask(threads: &[ThreadStack]) -> HashMap<i32, Vec<usize>> {
    let mut answers = HashMap::new();
    let Some(reader) = LOOKS.open().filter(|_| signal::install().is_ok()) else { return answers };
    let asked = threads.iter().filter(|thread| interrupt(thread.tid)).count();
    let deadline = clock::monotonic() + PATIENCE;
    loop {
        reader.drain(|stack| {
            answers.insert(stack.tid, stack.addresses);
        });
        if answers.len() >= asked || clock::monotonic() >= deadline {
            return answers;
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Whether the thread is there to be interrupted.
#[expect(unsafe_code, reason = "the standard library sends no signals")]
fn interrupt(tid: i32) -> bool {
    // SAFETY: the handler is installed and may run on any thread of this process. Both numbers are given, so that a
    // number which belongs to another process by now is refused.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, SIGNAL) == 0 }
}

/// Living threads by the stack that started them: one sample type, `threadcreate`.
#[must_use]
pub fn created() -> Profile {
    const THREADS: ValueType = ValueType { kind: "threadcreate", unit: "count" };
    let registry = registry();
    let sample = |tid: i32| {
        let stack = registry.get(&tid).map_or_else(|| vec![Frame::Name("started by a library")], Creation::frames);
        Some(Sample { stack, values: vec![1], labels: vec![("thread", Label::Text(name(tid)?))] })
    };
    Profile {
        sample_types: &[THREADS],
        default_sample_type: THREADS.kind,
        period_type: THREADS,
        period: 1,
        time_nanos: time_nanos(),
        duration_nanos: 0,
        samples: numbers().unwrap_or_default().into_iter().filter_map(sample).collect(),
        drop_frames: "",
        comments: Vec::new(),
    }
}

/// Who starts a thread.
#[derive(Debug)]
pub struct Creation(Vec<usize>);

/// A thread that profiles know; forgotten when dropped.
#[derive(Debug)]
pub struct Registration {
    tid: i32,
    // It belongs to the thread that made it.
    _stays: std::marker::PhantomData<*const ()>,
}

impl Creation {
    /// The function that calls this, on behalf of a thread that it is about to start.
    #[must_use]
    pub fn here() -> Self {
        Self(stack::here(CREATION_DEPTH))
    }

    /// Of the thread that the process began with.
    #[must_use]
    pub fn by_system() -> Self {
        Self(Vec::new())
    }

    /// The new thread's first step: from now on its stack can be seen.
    #[must_use]
    pub fn enter(self) -> Registration {
        stack::learn_bounds();
        let tid = own_number();
        registry().insert(tid, self);
        Registration { tid, _stays: std::marker::PhantomData }
    }

    fn frames(&self) -> Vec<Frame> {
        if self.0.is_empty() {
            return vec![Frame::Name("started by the system")];
        }
        self.0.iter().map(|call| Frame::Return(*call)).collect()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        registry().remove(&self.tid);
    }
}

/// Threads that were started by [`crate::supervise`], by number.
fn registry() -> MutexGuard<'static, BTreeMap<i32, Creation>> {
    static REGISTRY: Mutex<BTreeMap<i32, Creation>> = Mutex::new(BTreeMap::new());
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(unsafe_code, reason = "the standard library does not tell the system's number of a thread")]
pub(super) fn own_number() -> i32 {
    // SAFETY: asks for a number, and cannot fail.
    unsafe { libc::gettid() }
}

/// The numbers of all threads of the process, in order.
///
/// # Errors
/// When `/proc` cannot be read.
pub(super) fn numbers() -> io::Result<Vec<i32>> {
    let entries = fs::read_dir("/proc/self/task")?;
    let mut numbers: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What the system calls a thread; `None` when it has ended.
pub(super) fn name(tid: i32) -> Option<String> {
    let name = fs::read(format!("/proc/self/task/{tid}/comm")).ok()?;
    Some(String::from_utf8_lossy(name.trim_ascii_end()).into_owned())
}

/// The third column of proc_pid_stat(5), behind a name that may hold anything.
fn state(tid: i32) -> Option<char> {
    let stat = fs::read(format!("/proc/self/task/{tid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(after_name + 2).map(|byte| char::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise;
    use std::sync::mpsc::{Receiver, sync_channel};

    #[inline(never)]
    fn wait_for_the_end(end: &Receiver<()>) {
        // It ends when the other side is gone.
        std::hint::black_box(end.recv().unwrap_err());
    }

    fn is_in(start: usize, frame: &Frame) -> bool {
        matches!(frame, Frame::Return(address) if (start..start + 512).contains(address))
    }

    #[test]
    fn a_thread_that_waits_is_seen_where_it_waits() {
        let (started, has_started) = sync_channel(0);
        let (end, ended) = sync_channel::<()>(0);
        let waiting = supervise::spawn("is-waiting", move || {
            started.send(own_number()).unwrap();
            wait_for_the_end(&ended);
        });
        let waiting = waiting.unwrap();
        let tid = has_started.recv().unwrap();
        // Once it sleeps, it is where it waits.
        while state(tid) != Some('S') {
            thread::yield_now();
        }
        let start = wait_for_the_end as fn(&Receiver<()>) as usize;
        // Other tests have their turn on the processors too: an answer may take longer than is waited for.
        let seen =
            (0..50).find_map(|_| stacks().into_iter().find(|thread| thread.tid == tid && !thread.frames.is_empty()));
        let seen = seen.unwrap();
        assert_eq!(seen.name, "is-waiting");
        assert!(seen.frames.iter().any(|frame| is_in(start, frame)), "{seen:x?}");
        drop(end);
        waiting.join().unwrap();
        assert!(stacks().iter().all(|thread| thread.tid != tid || thread.name != "is-waiting"));
    }

    #[test]
    fn a_thread_that_holds_the_signal_back_costs_its_stack_only() {
        let (started, has_started) = sync_channel(0);
        let (end, ended) = sync_channel::<()>(0);
        let deaf = supervise::spawn("is-deaf", move || {
            block_signal();
            started.send(own_number()).unwrap();
            wait_for_the_end(&ended);
        });
        let deaf = deaf.unwrap();
        let tid = has_started.recv().unwrap();
        let seen = stacks().into_iter().find(|thread| thread.tid == tid).unwrap();
        assert!(seen.frames.is_empty());
        drop(end);
        deaf.join().unwrap();
    }

    #[expect(unsafe_code, reason = "blocks a signal on this thread")]
    fn block_signal() {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is filled before it is used, and only for this thread.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), SIGNAL);
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()), 0);
        }
    }

    #[inline(never)]
    fn start_in_a_known_function(ended: Receiver<()>) -> thread::JoinHandle<i32> {
        let (started, has_started) = sync_channel(0);
        let thread = supervise::spawn("known-start", move || {
            started.send(()).unwrap();
            wait_for_the_end(&ended);
            own_number()
        });
        has_started.recv().unwrap();
        std::hint::black_box(thread.unwrap())
    }

    #[test]
    fn a_thread_is_listed_by_who_started_it_for_as_long_as_it_runs() {
        let (end, ended) = sync_channel::<()>(0);
        let thread = start_in_a_known_function(ended);
        let named = ("thread", Label::Text("known-start".to_owned()));
        let created_here = created().samples.into_iter().find(|sample| sample.labels.contains(&named)).unwrap();
        let start = start_in_a_known_function as fn(Receiver<()>) -> thread::JoinHandle<i32> as usize;
        assert!(created_here.stack.iter().any(|frame| is_in(start, frame)), "{created_here:x?}");
        drop(end);
        let tid = thread.join().unwrap();
        assert!(!registry().contains_key(&tid), "a number that comes again means another thread");
    }

    #[test]
    fn a_name_may_hold_anything() {
        let thread = supervise::spawn("a) R (b", || (name(own_number()), state(own_number()))).unwrap();
        assert_eq!(thread.join().unwrap(), (Some("a) R (b".to_owned()), Some('R')));
        assert_eq!((name(i32::MAX), state(i32::MAX)), (None, None));
        assert!(!interrupt(i32::MAX), "and a thread that is gone is not interrupted");
    }
}
