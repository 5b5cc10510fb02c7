//! What a process costs, as the kernel counts it.

use std::fs;
use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// CPU time of all threads a process ever had, in nanoseconds and up to this moment: `/proc` adds the time of a running
/// thread at the next tick of the kernel only, which is too late for slices of a fraction of a second.
#[expect(unsafe_code, reason = "no crate reads the clock of another process")]
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let (mut clock, mut time) = (0, MaybeUninit::<libc::timespec>::zeroed());
    // SAFETY: both calls fill a local variable, and the second is two numbers, for which zero is a value.
    let (known, answer, time) = unsafe {
        let known = libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock);
        (known, libc::clock_gettime(clock, time.as_mut_ptr()), time.assume_init())
    };
    ensure!(known == 0 && answer == 0, "the server is gone");
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// CPU time of a process's living threads whose names begin with `name`.
pub(crate) fn cpu_of_threads(pid: u32, name: &str) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the server is gone")? {
        let task = task?.path();
        // A thread may end between the listing and the reading; its time is then lost to us as it is to the listing.
        let Ok(comm) = fs::read_to_string(task.join("comm")) else { continue };
        if comm.starts_with(name) {
            let Ok(schedstat) = fs::read_to_string(task.join("schedstat")) else { continue };
            let nanos = schedstat.split(' ').next().context("schedstat is empty")?.parse().context("schedstat")?;
            total += Duration::from_nanos(nanos);
        }
    }
    Ok(total)
}

/// Timers that a process has of the kernel: its CPU samples, one for each thread.
pub(crate) fn timers(pid: u32) -> Result<usize> {
    let timers =
        fs::read_to_string(format!("/proc/{pid}/timers")).context("the server is gone, or has no list of timers")?;
    Ok(timers.lines().filter(|line| line.starts_with("ID:")).count())
}

/// Resident bytes that no file backs: what the process itself has taken.
pub(crate) fn anonymous_bytes(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the server is gone")?;
    let kibibytes = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).context("no Anonymous line")?;
    Ok(kibibytes.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// CPU time of the generator itself.
pub(crate) fn own_cpu() -> Duration {
    duration(clock_gettime(ClockId::ProcessCPUTime))
}

/// CPU time of the calling thread.
pub(crate) fn thread_cpu() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

fn duration(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or(Duration::ZERO)
}

/// Lets this process and the servers it starts open as many descriptors as the system allows, and returns the number.
pub(crate) fn raise_descriptor_limit() -> Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).context("cannot raise the descriptor limit")?;
    Ok(maximum.unwrap_or(u64::MAX))
}
