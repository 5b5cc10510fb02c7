//! The process itself, read from `/proc/self`, and its allocator.
//!
//! The `prometheus` crate's own collector reports CPU in whole seconds and needs files that a hardened unit hides
//! (`ProcSubset=pid`); these do not.

use std::ffi::CString;
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use tikv_jemalloc_ctl::{epoch, stats};

use super::sheet::Sheet;
use super::table::Metric;

/// `/proc` counts CPU time in this many ticks per second on every architecture that matters (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// What the system says about this process. A field is absent when its file could not be read.
#[derive(Debug, Default, Clone, PartialEq, serde::Serialize)]
pub struct ProcessStats {
    /// User and system CPU time in seconds.
    pub cpu_seconds: Option<f64>,
    /// Resident memory in bytes.
    pub resident_bytes: Option<u64>,
    /// Address space in bytes.
    pub virtual_bytes: Option<u64>,
    /// Threads alive.
    pub threads: Option<u64>,
    /// Descriptors open.
    pub open_fds: Option<u64>,
    /// Soft limit of descriptors; absent when unlimited.
    pub max_fds: Option<u64>,
}

impl ProcessStats {
    /// Reads `/proc/self`; some ten microseconds.
    pub fn read() -> Self {
        let file = |name| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let (stat, status, limits) = (file("stat"), file("status"), file("limits"));
        Self {
            cpu_seconds: cpu_seconds(&stat),
            resident_bytes: kibibytes(&status, "VmRSS:"),
            virtual_bytes: kibibytes(&status, "VmSize:"),
            threads: field(&status, "Threads:"),
            open_fds: open_fds(),
            max_fds: soft_limit(&limits, "Max open files"),
        }
    }

    pub(super) fn collect(&self, sheet: &mut Sheet) {
        let gauges = [
            (Metric::ProcessResident, self.resident_bytes),
            (Metric::ProcessVirtual, self.virtual_bytes),
            (Metric::ProcessThreads, self.threads),
            (Metric::ProcessOpenFds, self.open_fds),
            (Metric::ProcessMaxFds, self.max_fds),
        ];
        if let Some(seconds) = self.cpu_seconds {
            sheet.sample(Metric::ProcessCpu, &[], seconds);
        }
        for (metric, value) in gauges {
            if let Some(value) = value {
                sheet.sample(metric, &[], value as f64);
            }
        }
    }
}

/// The name in the second field may contain anything, so counting starts after its closing parenthesis.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    field(status, name).map(|kibibytes| kibibytes * 1024)
}

fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

/// Newer kernels tell the number as the directory's size; else it is counted, less the one that counting opens.
fn open_fds() -> Option<u64> {
    let known = fs::metadata("/proc/self/fd").ok().map(|directory| directory.len()).filter(|count| *count > 0);
    known.or_else(|| Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as u64))
}

/// Bytes that may still be written to the file system on which `path` lies, as far as the system says.
pub fn free_disk_bytes(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut found = MaybeUninit::<libc::statvfs>::uninit();
    #[expect(unsafe_code, reason = "statvfs reads a path that ends with zero and fills the struct it is given")]
    // SAFETY: both pointers are valid for the call, and the struct is read only when the call has filled it.
    let found = unsafe { (libc::statvfs(path.as_ptr(), found.as_mut_ptr()) == 0).then(|| found.assume_init()) }?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// What [`collect_jemalloc`] writes.
pub(super) const JEMALLOC_METRICS: &[Metric] =
    &[Metric::JemallocAllocated, Metric::JemallocActive, Metric::JemallocResident, Metric::JemallocRetained];

/// The allocator's own numbers; nothing when it does not answer.
pub(super) fn collect_jemalloc(sheet: &mut Sheet) {
    // The numbers are those of the last epoch, so it is advanced first.
    if epoch::advance().is_err() {
        return;
    }
    let values = [stats::allocated::read(), stats::active::read(), stats::resident::read(), stats::retained::read()];
    for (metric, value) in JEMALLOC_METRICS.iter().zip(values) {
        if let Ok(bytes) = value {
            sheet.sample(*metric, &[], bytes as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_full_of_traps_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 900 1000 20";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds(""), None);
    }

    #[test]
    fn an_unlimited_number_of_descriptors_is_absent() {
        assert_eq!(
            soft_limit("Max open files            1024                 4096   files", "Max open files"),
            Some(1024)
        );
        assert_eq!(soft_limit("Max open files            unlimited            unlimited", "Max open files"), None);
    }

    #[test]
    fn the_disk_has_room_and_no_place_has_none() {
        assert!(free_disk_bytes(Path::new("/proc/..")).is_some());
        assert_eq!(free_disk_bytes(Path::new("/proc/nowhere")), None);
    }

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let stats = ProcessStats::read();
        assert!(stats.resident_bytes > Some(1 << 20), "{stats:?}");
        assert!(stats.virtual_bytes >= stats.resident_bytes, "{stats:?}");
        assert!(stats.threads >= Some(1) && stats.open_fds >= Some(3) && stats.max_fds >= stats.open_fds, "{stats:?}");
        assert!(stats.cpu_seconds.is_some(), "{stats:?}");
    }
}
