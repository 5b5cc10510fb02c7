//! What holds memory, and what asks for it: the allocator's own samples, as Go's `heap` and `allocs` show theirs.
//!
//! The allocator writes its samples as text (`jeprof`'s "heap_v2"): `heap_v2/RATE`, then for each stack a line
//! `@ 0xADDRESS ...` and one `t*: OBJECTS: BYTES [OBJECTS: BYTES]`, what is in use and what was ever allocated.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::sync::LazyLock;

use super::{Frame, Profile, Sample, ValueType, time_nanos};

/// What a tool shows first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// `heap`: what is in use now.
    InUse,
    /// `allocs`: everything allocated since the start.
    Allocated,
}

/// Why there is no heap profile.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// Somebody overrode its options, or the program runs on another allocator.
    #[error("the allocator takes no samples: {0}")]
    Disabled(tikv_jemalloc_ctl::Error),
    #[error("cannot read the allocator's samples: {0}")]
    Io(#[from] io::Error),
    #[error("the allocator's samples cannot be understood at {0:?}")]
    Malformed(String),
}

/// Allocations by stack since the start: Go's four sample types.
///
/// # Errors
/// See [`HeapError`].
pub fn take(shown: Shown) -> Result<Profile, HeapError> {
    let dump = parse(&dump()?)?;
    Ok(Profile {
        sample_types: &[
            ValueType { kind: "alloc_objects", unit: "count" },
            ValueType { kind: "alloc_space", unit: "bytes" },
            ValueType { kind: "inuse_objects", unit: "count" },
            ValueType { kind: "inuse_space", unit: "bytes" },
        ],
        default_sample_type: match shown {
            Shown::InUse => "inuse_space",
            Shown::Allocated => "alloc_space",
        },
        period_type: ValueType { kind: "space", unit: "bytes" },
        period: whole(dump.rate),
        time_nanos: time_nanos(),
        duration_nanos: 0,
        samples: dump.by_stack.into_iter().map(|(stack, sums)| sums.sample(stack)).collect(),
        drop_frames: &DROP_FRAMES,
        comments: Vec::new(),
    })
}

/// Whether allocations are sampled now. Off at the start where somebody overrode the allocator's options.
#[must_use]
#[expect(unsafe_code, reason = "the allocator is asked in C")]
pub fn is_sampled() -> bool {
    // SAFETY: this name gives a boolean of C.
    unsafe { tikv_jemalloc_ctl::raw::read(ACTIVE) }.unwrap_or(false)
}

/// Samples allocations from now on, or no more. What was sampled stays known, and is seen when it is freed; what is
/// allocated meanwhile is in no profile, ever.
///
/// # Errors
/// [`HeapError::Disabled`] where the allocator cannot take samples at all.
#[expect(unsafe_code, reason = "the allocator is told in C")]
pub fn set_sampled(sampled: bool) -> Result<(), HeapError> {
    // SAFETY: this name takes a boolean of C.
    unsafe { tikv_jemalloc_ctl::raw::write(ACTIVE, sampled) }.map_err(HeapError::Disabled)
}

const ACTIVE: &[u8] = b"prof.active\0";

/// How the names begin of functions that only pass a request for memory on. Who asks is of interest.
const ALLOCATOR: &[&str] = &[
    "_rjem_",
    "prof_",
    "imalloc",
    "malloc_default",
    "je_",
    "tikv_jemallocator::",
    "<tikv_jemallocator::",
    "__rust_alloc",
    "__rust_realloc",
    "__rustc::__rust_alloc",
    "__rustc::__rust_realloc",
    "__rustc[",
    "alloc::alloc::",
    "<alloc::alloc::",
    "alloc::raw_vec::",
    "<alloc::raw_vec::",
];

static DROP_FRAMES: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<String> = ALLOCATOR.iter().map(|name| format!("{}.*", name.replace('[', r"\["))).collect();
    names.join("|")
});

/// Whether a function, as [`super::symbols`] names it, belongs to the allocator: what [`Profile::drop_frames`] says.
#[must_use]
pub fn is_allocator(function: &str) -> bool {
    ALLOCATOR.iter().any(|name| function.starts_with(name))
}

/// The allocator's samples as text. It writes to a path; a file in memory has one that no other process can open, and
/// needs no directory that a locked-down service may write to.
#[expect(unsafe_code, reason = "files in memory and the allocator are asked in C")]
fn dump() -> Result<String, HeapError> {
    // SAFETY: the name is a string of C, and the descriptor that comes back belongs to nobody else.
    let mut file = unsafe {
        match libc::memfd_create(c"heap".as_ptr(), libc::MFD_CLOEXEC) {
            -1 => return Err(io::Error::last_os_error().into()),
            descriptor => File::from_raw_fd(descriptor),
        }
    };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = CString::new(path).map_err(io::Error::other)?;
    // SAFETY: this name takes a string of C, which lives until the call returns. The allocator opens and closes the path
    // by itself and writes nothing else. It serializes dumps, and answers with an error when it does not sample.
    unsafe { tikv_jemalloc_ctl::raw::write(b"prof.dump\0", path.as_ptr()) }.map_err(HeapError::Disabled)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    // Behind the samples stand the names of mapped files, which may be of any bytes.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What was sampled.
#[derive(Debug, PartialEq)]
struct Dump {
    /// Bytes from one sample to the next, on average.
    rate: f64,
    by_stack: HashMap<Vec<usize>, Sums>,
}

/// Estimates for one stack.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    allocated: Amount,
    in_use: Amount,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Amount {
    objects: f64,
    bytes: f64,
}

fn parse(dump: &str) -> Result<Dump, HeapError> {
    let mut lines = dump.lines().map(str::trim).take_while(|line| !line.starts_with("MAPPED_LIBRARIES"));
    let head = lines.next().unwrap_or_default();
    let rate = head.strip_prefix("heap_v2/").and_then(|rate| rate.parse::<u64>().ok()).filter(|rate| *rate > 0);
    let rate = rate.ok_or_else(|| malformed(head))? as f64;
    let mut by_stack: HashMap<Vec<usize>, Sums> = HashMap::new();
    let mut stack = None;
    for line in lines {
        if let Some(addresses) = line.strip_prefix('@') {
            stack =
                Some(addresses.split_whitespace().map(address).collect::<Option<_>>().ok_or_else(|| malformed(line))?);
        } else if let Some(counts) = line.strip_prefix("t*:") {
            // The first of these lines is the sum of all stacks and belongs to none.
            let Some(stack) = stack.take() else { continue };
            let sums = by_stack.entry(stack).or_default();
            sums.add(counts, rate).ok_or_else(|| malformed(line))?;
        }
    }
    Ok(Dump { rate, by_stack })
}

fn malformed(line: &str) -> HeapError {
    HeapError::Malformed(line.chars().take(100).collect())
}

fn address(digits: &str) -> Option<usize> {
    usize::from_str_radix(digits.strip_prefix("0x")?, 16).ok()
}

impl Sums {
    /// `counts` is `OBJECTS: BYTES [OBJECTS: BYTES]`, in use and allocated.
    fn add(&mut self, counts: &str, rate: f64) -> Option<()> {
        let numbers = counts.split([':', ' ', '[', ']']).filter(|word| !word.is_empty());
        let numbers: Vec<u64> = numbers.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let [objects, bytes, objects_ever, bytes_ever] = numbers[..] else { return None };
        self.in_use.add(objects, bytes, rate);
        self.allocated.add(objects_ever, bytes_ever, rate);
        Some(())
    }

    fn sample(self, stack: Vec<usize>) -> Sample {
        let Self { allocated, in_use } = self;
        let values = [allocated.objects, allocated.bytes, in_use.objects, in_use.bytes];
        // Even the innermost one is where a call returns to.
        let stack = stack.into_iter().map(Frame::Return).collect();
        Sample { stack, values: values.map(whole).to_vec(), labels: Vec::new() }
    }
}

impl Amount {
    /// What was sampled stands for more: an object of `size` bytes is taken with a chance of 1 - e^(-size/rate).
    fn add(&mut self, objects: u64, bytes: u64, rate: f64) {
        if objects == 0 || bytes == 0 {
            return;
        }
        let (objects, bytes) = (objects as f64, bytes as f64);
        let scale = 1.0 / -(-(bytes / objects) / rate).exp_m1();
        self.objects += objects * scale;
        self.bytes += bytes * scale;
    }
}

fn whole(number: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "a cast of a float ends at the largest number")]
    let number = number.round() as i64;
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "\
heap_v2/524288
  t*: 3: 1049600 [5: 1573888]
  t0: 3: 1049600 [5: 1573888]
@ 0x55d0c0a21000 0x55d0c0a21fff
  t*: 2: 1048576 [3: 1572864]
  t0: 2: 1048576 [3: 1572864]
@ 0x1000
  t*: 0: 0 [2: 1024]
  t1: 0: 0 [2: 1024]

MAPPED_LIBRARIES:
55d0c0a00000-55d0c0a21000 r--p 00000000 fe:01 1234 @ t*: garbage
";

    #[test]
    fn samples_are_scaled_to_what_they_stand_for() {
        let dump = parse(DUMP).unwrap();
        assert_eq!(dump.by_stack.len(), 2);
        let values = |stack: &[usize]| dump.by_stack[stack].sample(stack.to_vec()).values;
        // Objects of the size of the rate are seen with a chance of 1 - 1/e.
        assert_eq!(values(&[0x55d0_c0a2_1000, 0x55d0_c0a2_1fff]), [5, 2_488_234, 3, 1_658_823]);
        // Of objects of 512 bytes one in 1024.5.
        assert_eq!(values(&[0x1000]), [2049, 1_049_088, 0, 0]);
    }

    #[test]
    fn the_same_stack_twice_is_added_up() {
        let dump = parse("heap_v2/1\n@ 0x1000\nt*: 1: 4096 [1: 4096]\n@ 0x1000\nt*: 1: 4096 [2: 8192]\n").unwrap();
        assert_eq!(dump.by_stack[&vec![0x1000]].sample(vec![0x1000]).values, [3, 12288, 2, 8192]);
    }

    #[test]
    fn what_has_another_form_is_refused() {
        let wrong = [
            "",
            "heap_v1/524288",
            "heap_v2/",
            "heap_v2/0",
            "heap_v2/524288\n@ 1000",
            "heap_v2/524288\n@ 0xx",
            "heap_v2/524288\n@ 0x1\nt*: 1: 2 [3]",
            "heap_v2/524288\n@ 0x1\nt*: 1: -2 [3: 4]",
            "heap_v2/524288\n@ 0x1\nt*: 1: 2 [3: 99999999999999999999999]",
        ];
        for dump in wrong {
            assert!(matches!(parse(dump), Err(HeapError::Malformed(_))), "{dump}");
        }
    }

    #[test]
    fn counts_that_cannot_be_do_not_end_in_numbers_that_are_none() {
        let dump = parse("heap_v2/524288\n@ 0x1\nt*: 0: 99 [18446744073709551615: 18446744073709551615]\n").unwrap();
        let values = dump.by_stack[&vec![1]].sample(vec![1]).values;
        assert_eq!(values, [i64::MAX, i64::MAX, 0, 0]);
    }

    #[test]
    fn an_allocator_that_takes_no_samples_says_so() {
        // This test runs on an allocator without the program's options.
        assert!(matches!(take(Shown::InUse), Err(HeapError::Disabled(_))));
        assert!(matches!(set_sampled(true), Err(HeapError::Disabled(_))));
        assert!(!is_sampled());
    }

    #[test]
    fn only_what_passes_requests_on_belongs_to_the_allocator() {
        for name in ["_rjem_je_malloc", "__rustc::__rust_alloc", "alloc::raw_vec::finish_grow", "prof_alloc_prep"] {
            assert!(is_allocator(name), "{name}");
        }
        for name in ["superchat::store::open", "alloc::vec::Vec<T>::push", "core::ops::function::FnOnce::call_once"] {
            assert!(!is_allocator(name), "{name}");
        }
        assert!(DROP_FRAMES.starts_with("_rjem_.*|prof_.*|"));
    }
}
