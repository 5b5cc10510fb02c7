//! Stacks by frame pointers, never outside the thread's own stack.
//!
//! Every function keeps a frame pointer (`.cargo/config.toml`), so a stack is a list: at the pointer stands the caller's
//! pointer, behind it the address that the call returns to. C code may use the register for anything else, so what it says
//! is believed only as far as it points into the part of the stack that is in use, and only upwards.

use std::cell::Cell;
use std::mem::MaybeUninit;

/// Addresses kept of one stack, the leaf among them. What lies further out is cut off.
pub const DEPTH_MAX: usize = 128;

/// Where a thread was interrupted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Registers {
    pub(super) pc: usize,
    pub(super) frame: usize,
    pub(super) stack: usize,
}

/// Where a thread's stack lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    low: usize,
    high: usize,
}

/// A frame as it lies in memory: the caller's frame, and where the call returns to.
type Record = [usize; 2];

const WORD: usize = size_of::<usize>();

/// No code lies below: what looks like an address there is a number.
const LOWEST_CODE: usize = 4096;

thread_local! {
    // Without initializer and destructor, so that a signal handler may read it at any time.
    static BOUNDS: Cell<Bounds> = const { Cell::new(Bounds::UNKNOWN) };
}

impl Bounds {
    /// Holds no frame.
    const UNKNOWN: Self = Self { low: 0, high: 0 };

    /// Of this thread; unknown until [`learn_bounds`] ran on it.
    pub(super) fn of_this_thread() -> Self {
        BOUNDS.get()
    }

    /// Whether a record at `frame` lies within the stack and not below `lowest`. No sum here can overflow: a register may
    /// hold anything.
    fn holds(self, frame: usize, lowest: usize) -> bool {
        let last = self.high.checked_sub(size_of::<Record>());
        lowest >= self.low && frame >= lowest && frame.is_multiple_of(WORD) && last.is_some_and(|last| frame <= last)
    }
}

/// Learns where this thread's stack lies; without, only its leaf is seen. Cheap to call again.
pub fn learn_bounds() {
    if Bounds::of_this_thread() == Bounds::UNKNOWN {
        BOUNDS.set(ask_for_bounds().unwrap_or(Bounds::UNKNOWN));
    }
}

#[expect(unsafe_code, reason = "only the C library knows where a thread's stack lies")]
fn ask_for_bounds() -> Option<Bounds> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut address, mut size, mut guard) = (std::ptr::null_mut(), 0, 0);
    // SAFETY: a thread may always ask about itself. The attributes are read only after the first call has filled them,
    // and are given back once; all other pointers are to local variables.
    let is_known = unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let is_known = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut address, &raw mut size) == 0
            && libc::pthread_attr_getguardsize(attributes.as_ptr(), &raw mut guard) == 0;
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        is_known
    };
    // Some versions count the guard page, which cannot be read, as part of the stack.
    let (low, high) = (address.addr().checked_add(guard)?, address.addr().checked_add(size)?);
    is_known.then_some(Bounds { low, high })
}

/// Gives `visit` the addresses that calls return to, innermost first, at most [`DEPTH_MAX`] less the leaf.
///
/// Allocates nothing, takes no lock, and ends after a bounded number of steps: signal handlers call it.
///
/// # Safety
/// Every byte from `registers.stack` up to the end of `bounds` must be readable until this returns, if the former lies
/// within the latter. A thread's own stack is, as long as that thread is here.
#[expect(unsafe_code, reason = "frames are found by address")]
pub(super) unsafe fn walk(bounds: Bounds, registers: Registers, mut visit: impl FnMut(usize)) {
    let (mut frame, mut lowest) = (registers.frame, registers.stack);
    for _ in 1..DEPTH_MAX {
        if !bounds.holds(frame, lowest) {
            return;
        }
        // SAFETY: `holds` says that both words lie between the stack pointer and the end of the stack, which the caller
        // promises to be readable, and that the address is aligned. Whatever stands there is only a number to us: a
        // wrong one names a wrong function or ends the walk by the same check.
        let [outer, returns_to] = unsafe { std::ptr::with_exposed_provenance::<Record>(frame).read_volatile() };
        if returns_to < LOWEST_CODE {
            return;
        }
        visit(returns_to);
        // Cannot overflow: the record ends within the stack. Frames lie ever higher, so there is no way round.
        (lowest, frame) = (frame + size_of::<Record>(), outer);
    }
}

/// Where the calls that led here return to, innermost first, beginning with the function that asks; at most `most`.
#[inline(never)]
#[must_use]
#[expect(unsafe_code, reason = "walks its own stack")]
pub fn here(most: usize) -> Vec<usize> {
    learn_bounds();
    let frame = own_frame();
    let mut calls = Vec::with_capacity(most.min(DEPTH_MAX));
    // SAFETY: this is the thread that the stack belongs to. If the register is no frame pointer, because the compiler was
    // told otherwise, the walk takes it for any other number.
    unsafe {
        walk(Bounds::of_this_thread(), Registers { pc: 0, frame, stack: frame }, |call| {
            if calls.len() < most {
                calls.push(call);
            }
        });
    }
    calls
}

/// The frame pointer of the function that this is inlined into.
#[inline(always)]
#[expect(unsafe_code, reason = "reads a register")]
fn own_frame() -> usize {
    let frame;
    // SAFETY: copies one register into another, nothing else.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags));
    }
    frame
}

#[cfg(test)]
#[expect(unsafe_code, reason = "tests walk stacks that are made up")]
mod tests {
    use super::*;

    /// A stack of words, and the walk from the frame at `frame` (an address), with the stack pointer at its first word.
    fn walked(words: &[usize], frame: impl FnOnce(usize) -> usize) -> Vec<usize> {
        let low = words.as_ptr().expose_provenance();
        let bounds = Bounds { low, high: low + size_of_val(words) };
        walked_within(bounds, Registers { pc: 0, frame: frame(low), stack: low })
    }

    fn walked_within(bounds: Bounds, registers: Registers) -> Vec<usize> {
        let mut calls = Vec::new();
        // SAFETY: the bounds are those of a living slice, or hold nothing.
        unsafe { walk(bounds, registers, |call| calls.push(call)) };
        calls
    }

    /// Sets the caller's frame at word `at` to word `to` of the same stack.
    fn link(words: &mut [usize], at: usize, to: usize) {
        words[at] = words[to..].as_ptr().expose_provenance();
    }

    #[test]
    fn frames_are_followed_outwards_to_the_end_of_the_stack() {
        let mut words = [0, 0x1001, 7, 7, 0, 0x1002, 0, 0x1003];
        link(&mut words, 0, 4);
        link(&mut words, 4, 6);
        assert_eq!(walked(&words, |low| low), [0x1001, 0x1002, 0x1003]);
    }

    #[test]
    fn a_frame_pointer_that_is_anything_else_is_not_followed() {
        let words = [0, 0x1001, 0, 0x1002];
        let size = size_of_val(&words);
        for frame in [0, 1, 8, usize::MAX, usize::MAX - 7, usize::MAX - 15, usize::MAX - 16, usize::MAX / 2 + 1] {
            assert!(walked(&words, |_| frame).is_empty(), "{frame:#x}");
        }
        let near: [fn(usize, usize) -> usize; 5] =
            [|low, _| low - 8, |low, _| low + 1, |low, _| low + 4, |low, size| low + size - 8, |low, size| low + size];
        for frame in near {
            assert!(walked(&words, |low| frame(low, size)).is_empty());
        }
        assert_eq!(walked(&words, |low| low + size - 16), [0x1002], "the last record of the stack is one");
    }

    #[test]
    fn frames_below_equal_or_in_a_circle_end_the_walk() {
        let mut words = [0, 0x1001, 0, 0x1002, 0, 0x1003];
        link(&mut words, 0, 4);
        link(&mut words, 4, 2);
        assert_eq!(walked(&words, |low| low), [0x1001, 0x1003], "downwards");
        link(&mut words, 4, 4);
        assert_eq!(walked(&words, |low| low), [0x1001, 0x1003], "itself");
        link(&mut words, 4, 0);
        assert_eq!(walked(&words, |low| low), [0x1001, 0x1003], "round");
        link(&mut words, 0, 1);
        assert_eq!(walked(&words, |low| low), [0x1001], "overlapping");
    }

    #[test]
    fn what_is_no_address_of_code_ends_the_walk() {
        let mut words = [0, 0x1001, 0, 4095];
        link(&mut words, 0, 2);
        assert_eq!(walked(&words, |low| low), [0x1001]);
    }

    #[test]
    fn an_endless_stack_is_cut() {
        let mut words = vec![0x1001; 4 * DEPTH_MAX];
        for at in (0..words.len() - 2).step_by(2) {
            link(&mut words, at, at + 2);
        }
        assert_eq!(walked(&words, |low| low).len(), DEPTH_MAX - 1);
    }

    #[test]
    fn a_stack_pointer_outside_its_stack_means_another_stack() {
        let words = [0, 0x1001, 0, 0x1002];
        let low = words.as_ptr().expose_provenance();
        let bounds = Bounds { low, high: low + size_of_val(&words) };
        for stack in [0, low - 8, low + 8, low + size_of_val(&words), usize::MAX] {
            assert!(walked_within(bounds, Registers { pc: 0, frame: low, stack }).is_empty(), "{stack:#x}");
        }
        assert!(walked_within(Bounds::UNKNOWN, Registers { pc: 0, frame: low, stack: low }).is_empty());
    }

    #[test]
    fn a_thread_without_bounds_has_no_calls_until_it_learns_them() {
        let own = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let unknown = Bounds::of_this_thread();
                learn_bounds();
                (unknown, Bounds::of_this_thread(), (&raw const unknown).addr())
            });
            thread.join().unwrap()
        });
        let (unknown, known, local) = own;
        assert_eq!(unknown, Bounds::UNKNOWN);
        assert!((known.low..known.high).contains(&local));
    }

    #[inline(never)]
    fn inner() -> Vec<usize> {
        std::hint::black_box(here(8))
    }

    #[test]
    fn the_caller_comes_first_and_no_more_than_asked_for() {
        let calls = inner();
        let start = inner as fn() -> Vec<usize> as usize;
        assert!((start..start + 512).contains(&calls[0]), "{:#x} is not in {start:#x}", calls[0]);
        assert!(calls.len() > 3 && calls.len() <= 8, "{calls:x?}");
        assert_eq!(here(1).len(), 1);
    }
}
