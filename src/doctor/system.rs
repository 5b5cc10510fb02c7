//! The machine and its kernel.

use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::backup::size;
use crate::clock::rfc3339;

/// Sessions that the default settings are meant for, where `max_users` sets no bound.
const SESSIONS_EXPECTED: u64 = 10_000;
/// What the server itself needs besides one descriptor per session.
const DESCRIPTORS_OWN: u64 = 100;

/// A message that is this far ahead was written under another clock, in milliseconds.
const AHEAD_MAX_MS: i64 = 60_000;
/// 2025-01-01: a clock before this was never set.
const PLAUSIBLE_MS: i64 = 1_735_689_600_000;

const MIB: u64 = 1 << 20;

/// Whether the kernel lets the server, or a program like this one, hold a descriptor per session.
pub(super) fn file_limit(proc: &Path, server: Option<u32>, max_users: Option<NonZeroU32>) -> Finding {
    let check = "file limit";
    let of = server.map_or("self".to_owned(), |pid| pid.to_string());
    let limits = fs::read_to_string(proc.join(&of).join("limits")).unwrap_or_default();
    let Some((soft, hard)) = open_files(&limits) else {
        return Finding::warn(check, "cannot be read", "run the doctor as root, or as the user of the server");
    };
    let needed = max_users.map_or(SESSIONS_EXPECTED, |users| users.get().into()) + DESCRIPTORS_OWN;
    let whose = if server.is_some() { "of the running server" } else { "of this shell" };
    let found = format!("{soft} (soft), {hard} (hard) {whose}");
    let advice = || format!("LimitNOFILE={} in the unit, or ulimit -Hn in the shell that starts it", needed * 2);
    // The server raises the soft limit to the hard one by itself.
    match hard {
        ..1024 => Finding::fail(check, found, advice()),
        _ if hard < needed => Finding::warn(check, format!("{found} for {needed} sessions"), advice()),
        _ => Finding::ok(check, found),
    }
}

fn open_files(limits: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let number = |text: &str| if text == "unlimited" { Some(u64::MAX) } else { text.parse().ok() };
    let mut fields = line.split_whitespace();
    Some((number(fields.next()?)?, number(fields.next()?)?))
}

/// What decides whether a crowd gets in, and whether the allocator may reserve.
pub(super) fn kernel(proc: &Path) -> Vec<Finding> {
    let queues = [
        ("net.core.somaxconn", "sys/net/core/somaxconn", 4096),
        ("net.ipv4.tcp_max_syn_backlog", "sys/net/ipv4/tcp_max_syn_backlog", 512),
    ];
    let queue = |(name, path, least): (&'static str, &str, u64)| {
        // Some containers do not show it, and cannot change it either.
        let value: u64 = fs::read_to_string(proc.join(path)).ok()?.trim().parse().ok()?;
        let advice = format!("sysctl {name}={}: connections of a crowd are dropped otherwise", least.max(10_000));
        Some(if value < least {
            Finding::warn(name, value.to_string(), advice)
        } else {
            Finding::ok(name, value.to_string())
        })
    };
    let overcommit = fs::read_to_string(proc.join("sys/vm/overcommit_memory")).unwrap_or_default();
    let overcommit = (overcommit.trim() == "2").then(|| {
        let advice = "0 or 1: the allocator reserves more address space than it uses";
        Finding::warn("vm.overcommit_memory", "2: reservations count as use", advice)
    });
    queues.into_iter().filter_map(queue).chain(overcommit).collect()
}

/// Whether the server has room.
pub(super) fn memory(proc: &Path) -> Vec<Finding> {
    let text = fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
    let bytes = |name: &str| -> Option<u64> {
        let kibibytes: u64 =
            text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    let (Some(total), Some(available)) = (bytes("MemTotal:"), bytes("MemAvailable:")) else {
        return vec![Finding::warn("memory", "cannot be read", "look at free -m")];
    };
    let found = format!("{} in all, {} available", size(total), size(available));
    let few = "end what is not needed, or take a larger machine: 512 MiB are meant, a session costs some KiB";
    // A machine of 512 MiB shows a little less.
    let memory = match (total, available) {
        (_, ..33_554_432) => Finding::fail("memory", found, few),
        (..450_000_000, _) | (_, ..100_663_296) => Finding::warn("memory", found, few),
        _ => Finding::ok("memory", found),
    };
    let swap = match bytes("SwapTotal:").unwrap_or(0) {
        0 if total < 1024 * MIB => {
            let advice = "512 MiB of swap keep a short peak from ending the server";
            Finding::warn("swap", "none, on a small machine", advice)
        }
        0 => Finding::ok("swap", "none"),
        total => Finding::ok("swap", size(total)),
    };
    vec![memory, swap]
}

/// Whether the kernel believes its clock to be synchronized; `None` when it does not say.
pub(super) fn synchronized() -> Option<bool> {
    #[expect(unsafe_code, reason = "adjtimex without modes only fills the struct it is given")]
    // SAFETY: all zeros is a valid timex; it outlives the call.
    let (state, status) = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut timex), timex.status)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0)
}

/// Ids and ages of messages follow the clock.
pub(super) fn clock(synchronized: Option<bool>, now_ms: i64, newest_message_ms: Option<i64>) -> Finding {
    let check = "clock";
    let now = rfc3339(now_ms);
    let set_it = "timedatectl set-ntp true, or install chrony";
    if now_ms < PLAUSIBLE_MS {
        return Finding::fail(check, format!("{now}: it was never set"), set_it);
    }
    if let Some(newest_ms) = newest_message_ms.filter(|newest_ms| newest_ms - now_ms > AHEAD_MAX_MS) {
        let found = format!("{now}, but the newest message is of {}", rfc3339(newest_ms));
        return Finding::warn(check, found, format!("{set_it}; messages keep their order, but not their ages"));
    }
    match synchronized {
        Some(true) => Finding::ok(check, format!("{now}, synchronized")),
        Some(false) => Finding::warn(check, format!("{now}, not synchronized"), set_it),
        None => Finding::ok(check, format!("{now}; whether it is synchronized cannot be asked here")),
    }
}

/// Whether the server comes back after a boot, and backs itself up.
pub(super) fn units(systemd: &Path, places: &[PathBuf]) -> Vec<Finding> {
    if !systemd.exists() {
        return vec![Finding::ok("unit", "no systemd here: something else has to start the server and its backups")];
    }
    let find = |name: &str| places.iter().map(|place| place.join(name)).find(|path| path.exists());
    let unit = |check, name: &str, link: &str, without: &str| match find(name) {
        Some(path) if find(link).is_some() => Finding::ok(check, path.display().to_string()),
        Some(path) => {
            let found = format!("{} is not enabled", path.display());
            Finding::warn(check, found, format!("systemctl enable --now {name}"))
        }
        None => Finding::warn(check, format!("{name} is not installed"), without),
    };
    vec![
        unit(
            "unit",
            "superchat.service",
            "multi-user.target.wants/superchat.service",
            "install the unit: the server does not come back after a boot otherwise",
        ),
        unit(
            "backup timer",
            "superchat-backup.timer",
            "timers.target.wants/superchat-backup.timer",
            "install the timer, or have cron run scripts/backup.sh",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    /// A `/proc` with these files.
    fn proc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = proc.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        proc
    }

    fn levels(findings: &[Finding]) -> Vec<(&str, Level)> {
        findings.iter().map(|finding| (finding.check, finding.level)).collect()
    }

    #[test]
    fn the_file_limit_is_measured_by_the_sessions_allowed() {
        let check = |soft: &str, hard: &str, users| {
            let line =
                format!("Limit  Soft Limit  Hard Limit  Units\nMax open files            {soft}   {hard}   files\n");
            let proc = proc(&[("self/limits", &line), ("7/limits", &line)]);
            let finding = file_limit(proc.path(), users, NonZeroU32::new(2000));
            assert!(finding.found.contains(if users.is_some() { "running server" } else { "this shell" }));
            finding.level
        };
        assert_eq!(check("1024", "524288", None), Level::Ok);
        assert_eq!(check("1024", "unlimited", Some(7)), Level::Ok);
        assert_eq!(check("1024", "2048", Some(7)), Level::Warn);
        assert_eq!(check("256", "256", None), Level::Fail);
        let finding = file_limit(Path::new("/proc/nowhere"), None, None);
        assert_eq!((finding.level, finding.found.as_str()), (Level::Warn, "cannot be read"));
    }

    #[test]
    fn short_kernel_queues_and_strict_accounting_are_found() {
        let (somaxconn, backlog) = ("net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog");
        let bad = proc(&[
            ("sys/net/core/somaxconn", "128\n"),
            ("sys/net/ipv4/tcp_max_syn_backlog", "256\n"),
            ("sys/vm/overcommit_memory", "2\n"),
        ]);
        let found = kernel(bad.path());
        let wanted = [(somaxconn, Level::Warn), (backlog, Level::Warn), ("vm.overcommit_memory", Level::Warn)];
        assert_eq!(levels(&found), wanted);
        assert!(found[0].advice.as_ref().unwrap().starts_with("sysctl net.core.somaxconn=10000"));
        let good = proc(&[("sys/net/core/somaxconn", "4096"), ("sys/vm/overcommit_memory", "0")]);
        assert_eq!(levels(&kernel(good.path())), [(somaxconn, Level::Ok)]);
    }

    #[test]
    fn little_memory_and_no_swap_are_found() {
        let check = |total: u64, available: u64, swap: u64| {
            let text = format!("MemTotal: {total} kB\nMemAvailable: {available} kB\nSwapTotal: {swap} kB\n");
            levels(&memory(proc(&[("meminfo", &text)]).path())).into_iter().map(|(_, level)| level).collect::<Vec<_>>()
        };
        assert_eq!(check(4_000_000, 2_000_000, 0), [Level::Ok, Level::Ok]);
        assert_eq!(check(480_000, 200_000, 512_000), [Level::Ok, Level::Ok]);
        assert_eq!(check(480_000, 50_000, 0), [Level::Warn, Level::Warn]);
        assert_eq!(check(250_000, 200_000, 1), [Level::Warn, Level::Ok]);
        assert_eq!(check(4_000_000, 20_000, 1), [Level::Fail, Level::Ok]);
    }

    #[test]
    fn a_clock_that_is_wrong_or_adrift_is_found() {
        const NOW: i64 = 1_767_323_045_000;
        assert_eq!(clock(Some(true), NOW, Some(NOW)).level, Level::Ok);
        assert_eq!(clock(None, NOW, None).level, Level::Ok);
        assert_eq!(clock(Some(false), NOW, None).level, Level::Warn);
        let behind = clock(Some(true), NOW, Some(NOW + 3_600_000));
        assert_eq!(behind.level, Level::Warn);
        assert!(behind.found.contains("the newest message is of 2026-01-02T04:04:05Z"), "{}", behind.found);
        assert_eq!(clock(Some(true), 0, None).level, Level::Fail);
    }

    #[test]
    fn units_must_be_installed_and_enabled() {
        let root = tempfile::tempdir().unwrap();
        let (etc, lib) = (root.path().join("etc"), root.path().join("lib"));
        fs::create_dir_all(etc.join("multi-user.target.wants")).unwrap();
        fs::create_dir(&lib).unwrap();
        let places = [etc.clone(), lib.clone()];
        assert_eq!(levels(&units(&root.path().join("none"), &places)), [("unit", Level::Ok)]);
        let check = || levels(&units(root.path(), &places)).into_iter().map(|(_, level)| level).collect::<Vec<_>>();
        assert_eq!(check(), [Level::Warn, Level::Warn]);
        fs::write(lib.join("superchat.service"), "").unwrap();
        assert!(units(root.path(), &places)[0].found.ends_with("is not enabled"));
        fs::write(etc.join("multi-user.target.wants/superchat.service"), "").unwrap();
        assert_eq!(check(), [Level::Ok, Level::Warn]);
    }
}
