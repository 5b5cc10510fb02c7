//! The signal that makes a thread write down its stack, and the log that it writes into.
//!
//! The handler runs wherever a thread happens to be: within the allocator, holding any lock, on a stack that is nearly
//! full. So it allocates nothing, takes no lock, calls nothing but `gettid`, and touches only what is always there: static
//! logs of atomics, and the part of the interrupted stack that is in use.

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::stack::{Bounds, DEPTH_MAX, Registers, walk};
use crate::clock;

/// The one that the kernel sends for timers of this kind, and that nothing else in the server uses.
pub(super) const SIGNAL: i32 = libc::SIGPROF;

/// What CPU timers interrupt. Emptied ten times a second: 80 cores at 250 Hz fill it in that time.
pub(super) static SAMPLES: Log<2048> = Log::new();

/// What threads answer that are asked where they are. More threads than this are not seen at one look.
pub(super) static LOOKS: Log<512> = Log::new();

/// Installs the handler. It stays for good: a late signal would end the process without it.
///
/// # Errors
/// When the system refuses.
#[expect(unsafe_code, reason = "installs a signal handler")]
pub(super) fn install() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the structure is one of plain numbers, for which zero is a value: no flags, an empty mask. The handler has
    // the form that SA_SIGINFO asks for and may run at any time on any thread, as its module says. SA_ONSTACK puts it on
    // the alternative stack where a thread has one; SA_RESTART spares most system calls the interruption.
    let result = unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigaction(SIGNAL, action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel says of a timer's signal (`siginfo_t`), as far as it is the same on all its platforms.
#[repr(C)]
struct TimerInfo {
    _signal: i32,
    _errno: i32,
    code: i32,
    _padding: i32,
    _timer: i32,
    /// How often the timer ran out again before this was delivered.
    overrun: i32,
}

const _: () = assert!(size_of::<TimerInfo>() <= size_of::<libc::siginfo_t>());

/// A stack that the log took in.
pub(super) struct Stack {
    pub(super) tid: i32,
    /// Periods of its timer that it stands for.
    pub(super) periods: u32,
    /// The leaf, then where calls return to.
    pub(super) addresses: Vec<usize>,
}

#[expect(unsafe_code, reason = "a signal handler is given pointers")]
extern "C" fn handle(_signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives both, valid until the handler returns: SA_SIGINFO asks for them. The part of `siginfo_t`
    // that is looked at is readable for every signal, whatever it means. `errno` belongs to this thread and is put back.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let info = &*info.cast::<TimerInfo>();
        let registers = registers(&(*context.cast::<libc::ucontext_t>()).uc_mcontext);
        match info.code {
            libc::SI_TIMER => SAMPLES.record(registers, 1 + u32::try_from(info.overrun).unwrap_or(0)),
            libc::SI_TKILL => LOOKS.record(registers, 1),
            // Somebody else's kill: the handler is there so that it does no harm.
            _ => {}
        }
        *errno = saved;
    }
}

#[cfg(target_arch = "x86_64")]
fn registers(machine: &libc::mcontext_t) -> Registers {
    let register = |index: i32| {
        let value = usize::try_from(index).ok().and_then(|index| machine.gregs.get(index));
        value.map_or(0, |value| usize::from_ne_bytes(value.to_ne_bytes()))
    };
    Registers { pc: register(libc::REG_RIP), frame: register(libc::REG_RBP), stack: register(libc::REG_RSP) }
}

#[cfg(target_arch = "aarch64")]
fn registers(machine: &libc::mcontext_t) -> Registers {
    let [pc, frame, stack] =
        [machine.pc, machine.regs[29], machine.sp].map(|value| usize::from_ne_bytes(value.to_ne_bytes()));
    Registers { pc, frame, stack }
}

/// Stacks on their way out of signal handlers. Static, so that no handler can be late for it.
pub(super) struct Log<const SLOTS: usize> {
    /// Whether somebody reads it.
    taken: AtomicBool,
    /// Which reader the stacks are for; [`CLOSED`] while there is none.
    reading: AtomicU32,
    /// Readers so far.
    readers: AtomicU32,
    /// Handlers that may be writing.
    in_flight: AtomicUsize,
    /// The next free slot, or beyond the last.
    next: AtomicUsize,
    /// Slots below may be in use.
    used: AtomicUsize,
    lost: AtomicU64,
    slots: [Slot; SLOTS],
}

const CLOSED: u32 = 0;

struct Slot {
    /// [`FREE`], [`WRITING`] or [`FULL`]: who may touch the rest.
    state: AtomicU32,
    reader: AtomicU32,
    tid: AtomicI32,
    periods: AtomicU32,
    depth: AtomicUsize,
    addresses: [AtomicUsize; DEPTH_MAX],
}

/// Slots that a handler tries, and how often a reader goes on reading what comes in meanwhile. A slot may be held by a handler
/// whose thread was stopped halfway, and slots are counted from the first again after each look.
const ATTEMPTS: usize = 8;

const FREE: u32 = 0;
const WRITING: u32 = 1;
const FULL: u32 = 2;

impl Slot {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            reader: AtomicU32::new(CLOSED),
            tid: AtomicI32::new(0),
            periods: AtomicU32::new(0),
            depth: AtomicUsize::new(0),
            addresses: [const { AtomicUsize::new(0) }; DEPTH_MAX],
        }
    }

    /// Writes down the stack of this thread; whether the slot was free.
    ///
    /// # Safety
    /// See [`Log::record`].
    #[expect(unsafe_code, reason = "walks the interrupted stack")]
    unsafe fn write(&self, reader: u32, registers: Registers, periods: u32) -> bool {
        if self.state.compare_exchange(FREE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        let mut depth = 0;
        let mut push = |address| {
            if let Some(slot) = self.addresses.get(depth) {
                slot.store(address, Ordering::Relaxed);
                depth += 1;
            }
        };
        push(registers.pc);
        // SAFETY: the stack is that of the thread that runs this, interrupted: all above its stack pointer is in use. A
        // thread on its alternative stack has a stack pointer outside the bounds, and is not walked.
        unsafe { walk(Bounds::of_this_thread(), registers, push) };
        self.depth.store(depth, Ordering::Relaxed);
        // SAFETY: asks a number of the kernel, and has no way to fail.
        self.tid.store(unsafe { libc::gettid() }, Ordering::Relaxed);
        self.periods.store(periods, Ordering::Relaxed);
        self.reader.store(reader, Ordering::Relaxed);
        self.state.store(FULL, Ordering::Release);
        true
    }

    /// Takes out what is there for `reader`, and frees the slot whoever it was for.
    fn take(&self, reader: u32) -> Option<Stack> {
        if self.state.load(Ordering::Acquire) != FULL {
            return None;
        }
        let stack = (self.reader.load(Ordering::Relaxed) == reader).then(|| {
            let depth = self.depth.load(Ordering::Relaxed).min(DEPTH_MAX);
            Stack {
                tid: self.tid.load(Ordering::Relaxed),
                periods: self.periods.load(Ordering::Relaxed),
                addresses: self.addresses[..depth].iter().map(|address| address.load(Ordering::Relaxed)).collect(),
            }
        });
        self.state.store(FREE, Ordering::Release);
        stack
    }
}

impl<const SLOTS: usize> Log<SLOTS> {
    pub(super) const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            reading: AtomicU32::new(CLOSED),
            readers: AtomicU32::new(CLOSED),
            in_flight: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            slots: [const { Slot::new() }; SLOTS],
        }
    }

    /// Lets handlers write, for one reader at a time; `None` while there is another.
    pub(super) fn open(&'static self) -> Option<Reader<SLOTS>> {
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        let mut number = self.readers.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if number == CLOSED {
            number = self.readers.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        }
        self.lost.store(0, Ordering::Relaxed);
        self.reading.store(number, Ordering::SeqCst);
        Some(Reader { log: self, number })
    }

    /// # Safety
    /// Only on the thread that was interrupted with `registers`, while it is interrupted.
    #[expect(unsafe_code, reason = "walks the interrupted stack")]
    unsafe fn record(&self, registers: Registers, periods: u32) {
        // In this order: a reader that closes the log sees either this count, or that nothing is written.
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let reader = self.reading.load(Ordering::SeqCst);
        if reader != CLOSED {
            let mut places = (0..ATTEMPTS).filter_map(|_| self.slots.get(self.next.fetch_add(1, Ordering::Relaxed)));
            // SAFETY: the caller's promise.
            if !places.any(|slot| unsafe { slot.write(reader, registers, periods) }) {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The only one that takes stacks out of a log; closes it when dropped.
pub(super) struct Reader<const SLOTS: usize> {
    log: &'static Log<SLOTS>,
    number: u32,
}

impl<const SLOTS: usize> Reader<SLOTS> {
    /// Takes out what is there. A stack that is being written waits for the next time.
    pub(super) fn drain(&self, mut take: impl FnMut(Stack)) {
        for _ in 0..ATTEMPTS {
            let next = self.log.next.load(Ordering::Relaxed);
            let used = self.log.used.fetch_max(next.min(SLOTS), Ordering::Relaxed).max(next.min(SLOTS));
            self.log.slots[..used].iter().filter_map(|slot| slot.take(self.number)).for_each(&mut take);
            // Handlers go on behind these meanwhile, and begin at the first slot again only once all are free: before, they
            // would find one full slot after the other.
            if self.log.next.compare_exchange(next, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    /// Stacks that found no place.
    pub(super) fn lost(&self) -> u64 {
        self.log.lost.load(Ordering::Relaxed)
    }

    /// Lets no handler begin any more, and waits for those that have: so nothing of it reaches the next reader.
    /// A thread that gets no time on a processor is not waited for; what it writes is for a reader that is gone.
    pub(super) fn close(&self) {
        self.log.reading.store(CLOSED, Ordering::SeqCst);
        let deadline = clock::monotonic() + Duration::from_millis(100);
        while self.log.in_flight.load(Ordering::SeqCst) != 0 && clock::monotonic() < deadline {
            std::thread::yield_now();
        }
    }
}

impl<const SLOTS: usize> Drop for Reader<SLOTS> {
    fn drop(&mut self) {
        self.close();
        self.drain(drop);
        self.log.taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "tests stand in for the handler")]
mod tests {
    use super::*;

    const NOWHERE: Registers = Registers { pc: 0x1234, frame: 0, stack: 0 };

    /// As the handler does it, from a place that has no callers.
    fn record<const SLOTS: usize>(log: &Log<SLOTS>, periods: u32) {
        // SAFETY: a stack pointer of 0 is outside every stack, so nothing is read.
        unsafe { log.record(NOWHERE, periods) };
    }

    fn drained<const SLOTS: usize>(reader: &Reader<SLOTS>) -> Vec<u32> {
        let mut periods = Vec::new();
        reader.drain(|stack| {
            assert_eq!(stack.addresses, [0x1234]);
            periods.push(stack.periods);
        });
        periods
    }

    #[test]
    fn a_log_has_one_reader_at_a_time_and_takes_nothing_without() {
        static LOG: Log<4> = Log::new();
        record(&LOG, 1);
        let reader = LOG.open().unwrap();
        assert!(LOG.open().is_none());
        record(&LOG, 2);
        assert_eq!(drained(&reader), [2]);
        reader.close();
        record(&LOG, 3);
        assert!(drained(&reader).is_empty());
        drop(reader);
        assert!(LOG.open().is_some());
    }

    #[test]
    fn a_full_log_counts_what_it_loses_and_goes_on_once_it_is_read() {
        static LOG: Log<2> = Log::new();
        let reader = LOG.open().unwrap();
        (1..=5).for_each(|periods| record(&LOG, periods));
        assert_eq!((drained(&reader), reader.lost()), (vec![1, 2], 3));
        record(&LOG, 6);
        assert_eq!((drained(&reader), reader.lost()), (vec![6], 3));
        drop(reader);
        assert_eq!(LOG.open().unwrap().lost(), 0);
    }

    #[test]
    fn samples_that_come_while_the_log_is_read_find_a_place() {
        static LOG: Log<64> = Log::new();
        let reader = LOG.open().unwrap();
        (1..=20).for_each(|periods| record(&LOG, periods));
        let mut periods = Vec::new();
        reader.drain(|stack| {
            // On a busy machine the reader may be stopped here for as long as all of these take.
            if stack.periods == 1 {
                (21..=40).for_each(|periods| record(&LOG, periods));
            }
            periods.push(stack.periods);
        });
        assert_eq!((periods, reader.lost()), ((1..=40).collect(), 0));
        record(&LOG, 41);
        assert_eq!(drained(&reader), [41]);
        assert_eq!(LOG.used.load(Ordering::Relaxed), 40, "and the first slots are in use again");
    }

    #[test]
    fn what_was_written_too_late_is_not_given_to_the_next_reader() {
        static LOG: Log<2> = Log::new();
        let first = LOG.open().unwrap().number;
        // A handler that was under way when the first reader closed.
        // SAFETY: as above.
        assert!(unsafe { LOG.slots[0].write(first, NOWHERE, 1) });
        LOG.used.store(1, Ordering::Relaxed);
        let second = LOG.open().unwrap();
        assert!(drained(&second).is_empty());
        record(&LOG, 2);
        assert_eq!(drained(&second), [2], "and its place is free again");
    }

    #[test]
    fn a_handler_that_is_stopped_halfway_costs_nobody_else_a_place() {
        static LOG: Log<4> = Log::new();
        let reader = LOG.open().unwrap();
        LOG.slots[0].state.store(WRITING, Ordering::Relaxed);
        for periods in 1..=3 {
            record(&LOG, periods);
            assert_eq!((drained(&reader), reader.lost()), (vec![periods], 0));
        }
    }

    #[test]
    fn nothing_is_lost_or_doubled_between_writers_and_a_reader() {
        const EACH: u64 = 50_000;
        static LOG: Log<64> = Log::new();
        let reader = LOG.open().unwrap();
        let mut taken = 0;
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3).map(|_| scope.spawn(|| (0..EACH).for_each(|_| record(&LOG, 1)))).collect();
            while writers.iter().any(|writer| !writer.is_finished()) {
                reader.drain(|_| taken += 1);
            }
        });
        reader.close();
        reader.drain(|_| taken += 1);
        assert_eq!(taken + reader.lost(), 3 * EACH);
        assert!(taken > 0);
    }

    #[test]
    fn the_handler_leaves_errno_alone_and_ignores_signals_from_outside() {
        install().unwrap();
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let mut context = MaybeUninit::<libc::ucontext_t>::zeroed();
        // SAFETY: both are plain numbers, and the handler reads no more of them than the kernel fills. A context of zeros
        // names a stack that is nowhere.
        unsafe {
            for code in [libc::SI_USER, libc::SI_TIMER, libc::SI_TKILL] {
                info.assume_init_mut().si_code = code;
                *libc::__errno_location() = 77;
                handle(SIGNAL, info.as_mut_ptr(), context.as_mut_ptr().cast());
                assert_eq!(*libc::__errno_location(), 77);
            }
            // Under the default action this would be the end of the tests.
            assert_eq!(libc::raise(SIGNAL), 0);
            assert_eq!(libc::kill(libc::getpid(), SIGNAL), 0);
        }
    }
}
