//! What a process costs, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// CPU time of all living threads of a process, in nanoseconds where `stat` counts hundredths of a second.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the server is gone")? {
        // A thread may end between the listing and the reading; its time is then lost to us as it is to the listing.
        let Ok(schedstat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let nanos = schedstat.split(' ').next().context("schedstat is empty")?.parse().context("schedstat")?;
        total += Duration::from_nanos(nanos);
    }
    Ok(total)
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
