//! The data directory: what it lies on, who may read it, and whether what is in it is whole.

use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Finding;
use crate::backup::size;
use crate::clock;
use crate::config::Settings;
use crate::metrics::free_disk_bytes;
use crate::store::sqlite::open::OpenError;

/// How many syncs are measured, and for how long at most.
const SYNCS: usize = 50;
const SYNCS_TIME_MAX: Duration = Duration::from_secs(3);

const DAY_MS: i64 = 86_400_000;
const MIB: u64 = 1 << 20;

/// SQLite's log needs shared memory, and locks that hold: no file system over a network promises both.
pub(super) fn file_system(proc: &Path, directory: &Path) -> Finding {
    const NETWORK: [&str; 12] = [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "ceph",
        "glusterfs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "afs",
    ];
    let check = "file system";
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let mounts = fs::read_to_string(proc.join("self/mountinfo")).unwrap_or_default();
    let Some((place, kind)) = mount_of(&mounts, &directory) else {
        return Finding::warn(check, "cannot be found out", "look at findmnt, and keep the database on a local disk");
    };
    let found = format!("{kind} at {place}");
    match kind {
        kind if NETWORK.contains(&kind) => {
            Finding::fail(check, found, "move the database to a local disk: it can be damaged over a network")
        }
        "tmpfs" | "ramfs" => Finding::warn(check, found, "move the database to a disk: all is gone at the next boot"),
        "overlay" => Finding::warn(check, found, "mount a volume: what a container writes goes with it"),
        _ => Finding::ok(check, found),
    }
}

/// The mount that `path` lies on: the longest place that leads to it, the last one of equals.
fn mount_of<'a>(mountinfo: &'a str, path: &Path) -> Option<(&'a str, &'a str)> {
    let mount = |line: &'a str| {
        let (before, after) = line.split_once(" - ")?;
        Some((before.split(' ').nth(4)?, after.split(' ').next()?))
    };
    let above = mountinfo.lines().filter_map(mount).filter(|(place, _)| path.starts_with(place));
    above.max_by_key(|(place, _)| place.len())
}

/// A backup beside the database, and its log, must fit.
pub(super) fn free_space(directory: &Path, database: &Path) -> Finding {
    let used = fs::metadata(database).map_or(0, |found| found.len());
    space(free_disk_bytes(directory), used)
}

fn space(free: Option<u64>, database: u64) -> Finding {
    let check = "free space";
    let Some(free) = free else {
        return Finding::warn(check, "cannot be found out", "look at df -h");
    };
    let found = format!("{} beside a database of {}", size(free), size(database));
    let advice = "make room: du -xsh of the disk shows where it went";
    match free {
        _ if free < 100 * MIB => Finding::fail(check, found, advice),
        _ if free < 1024 * MIB || free < database * 2 => Finding::warn(check, found, advice),
        _ => Finding::ok(check, found),
    }
}

/// How long bringing 4 KiB to disk takes, each time, in a file without a name.
pub(super) fn measure_syncs(directory: &Path) -> io::Result<Vec<Duration>> {
    let mut file: File = tempfile::tempfile_in(directory)?;
    let began = clock::monotonic();
    let mut times = Vec::with_capacity(SYNCS);
    while times.len() < SYNCS && clock::monotonic().saturating_sub(began) < SYNCS_TIME_MAX {
        let start = clock::monotonic();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(clock::monotonic().saturating_sub(start));
    }
    Ok(times)
}

/// Each commit waits for one of them.
pub(super) fn sync_latency(measured: io::Result<Vec<Duration>>) -> Finding {
    let check = "disk latency";
    let mut times = match measured {
        Ok(times) => times,
        Err(error) => {
            let advice = "run the doctor as the user of the server, and give it the right to write there";
            return Finding::warn(check, format!("cannot write to the data directory: {error}"), advice);
        }
    };
    times.sort();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
    let (median, slow) = (at(50).copied().unwrap_or_default(), at(99).copied().unwrap_or_default());
    let found = format!("{median:.1?} (p50), {slow:.1?} (p99) for one of {} syncs of 4 KiB", times.len());
    let advice = "each commit waits for one: take another disk, or durability = \"process\" at its price";
    if slow > Duration::from_millis(500) || median > Duration::from_millis(50) {
        Finding::warn(check, found, advice)
    } else {
        Finding::ok(check, found)
    }
}

/// Who may read what.
pub(super) fn permissions(database: &Path, config: Option<&Path>, settings: &Settings) -> Vec<Finding> {
    let directory = database.parent().unwrap_or(database);
    let mut findings = Vec::new();
    let look = |path: &Path| fs::metadata(path).ok();
    if let Some(found) = look(directory) {
        findings.push(private("data directory", directory, &found, 0o750));
    }
    if let Some(found) = look(database) {
        findings.push(private("database", database, &found, 0o640));
        findings.extend(owners(database, &found));
    }
    let has_secret = settings.admin.metrics_token.is_some()
        || settings.server.admin_password.is_some()
        || settings.log.sentry_dsn.is_some();
    if let Some((path, found)) = config.and_then(|path| Some((path, look(path)?))) {
        let finding = private("configuration", path, &found, 0o640);
        findings.push(match finding.advice {
            Some(_) if !has_secret => Finding::ok("configuration", finding.found),
            _ => finding,
        });
    }
    findings
}

fn private(check: &'static str, path: &Path, found: &Metadata, wanted: u32) -> Finding {
    let mode = found.permissions().mode() & 0o7777;
    let text = format!("{} has mode {mode:04o}", path.display());
    let advice = format!("chmod {wanted:04o} {}", path.display());
    match mode {
        _ if mode & 0o002 != 0 => Finding::fail(check, format!("{text}: anybody may change it"), advice),
        _ if mode & 0o005 != 0 => Finding::warn(check, format!("{text}: anybody may look into it"), advice),
        _ => Finding::ok(check, text),
    }
}

/// A command run as root leaves files that the server cannot open any more.
fn owners(database: &Path, found: &Metadata) -> Option<Finding> {
    let beside = |suffix: &str| -> PathBuf {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    };
    let strange = |suffix: &&str| fs::metadata(beside(suffix)).is_ok_and(|other| other.uid() != found.uid());
    let suffix = ["-wal", "-shm", ".lock"].into_iter().find(strange)?;
    let path = beside(suffix);
    let advice = format!("chown --reference={} {}", database.display(), path.display());
    Some(Finding::fail("owners", format!("{} belongs to another user than the database", path.display()), advice))
}

/// Whether every page of the database is whole.
pub(super) fn integrity(database: &Path, faults: impl Fn(&Path) -> Result<Vec<String>, OpenError>) -> Finding {
    let check = "integrity";
    if !database.exists() {
        return Finding::ok(check, format!("{} does not exist: the first start makes it", database.display()));
    }
    let advice = "scd check says more; scd restore puts a backup in its place";
    match faults(database) {
        Ok(faults) if faults.is_empty() => Finding::ok(check, format!("{} is whole", database.display())),
        Ok(faults) => Finding::fail(check, format!("{}: {}", database.display(), faults.join("; ")), advice),
        Err(OpenError::Changing { .. }) => {
            Finding::warn(check, "another program is writing the database", "stop it, or back it up and check that")
        }
        Err(error) => Finding::fail(check, error.to_string(), advice),
    }
}

/// Whether the last backup is fresh.
pub(super) fn last_backup(ended_ms: Option<i64>, database: &Path, now_ms: i64) -> Finding {
    let check = "last backup";
    let advice = "scd backup --keep 7 --verify DIRECTORY, once a day";
    match ended_ms {
        Some(ended_ms) if now_ms - ended_ms <= DAY_MS => Finding::ok(check, clock::rfc3339(ended_ms)),
        Some(ended_ms) => Finding::warn(check, format!("{}, more than a day ago", clock::rfc3339(ended_ms)), advice),
        None if !database.exists() => Finding::ok(check, "nothing to back up yet"),
        None => Finding::warn(check, "never", advice),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::Level;
    use super::*;
    use crate::config::{Environment, Flags, load};

    #[test]
    fn network_file_systems_are_refused_and_memory_is_warned_of() {
        let check = |kind: &str| {
            let proc = tempfile::tempdir().unwrap();
            fs::create_dir(proc.path().join("self")).unwrap();
            let data = fs::canonicalize(proc.path()).unwrap();
            let mounts = format!(
                "22 1 8:1 / / rw - ext4 /dev/vda rw\n30 22 0:9 / {} rw,relatime shared:1 - {kind} server:/x rw\n",
                data.display()
            );
            fs::write(proc.path().join("self/mountinfo"), mounts).unwrap();
            file_system(proc.path(), proc.path()).level
        };
        assert_eq!(check("ext4"), Level::Ok);
        assert_eq!(check("nfs4"), Level::Fail);
        assert_eq!(check("tmpfs"), Level::Warn);
        assert_eq!(check("overlay"), Level::Warn);
        assert_eq!(file_system(Path::new("/proc/nowhere"), Path::new("/")).level, Level::Warn);
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_found() {
        assert_eq!(space(Some(10 << 30), 1 << 30).level, Level::Ok);
        assert_eq!(space(Some(10 << 30), 8 << 30).level, Level::Warn);
        assert_eq!(space(Some(500 << 20), 0).level, Level::Warn);
        assert_eq!(space(Some(50 << 20), 0).level, Level::Fail);
        assert_eq!(space(None, 0).level, Level::Warn);
    }

    #[test]
    fn a_slow_disk_is_found_and_a_real_one_is_measured() {
        let fast = vec![Duration::from_micros(300); 50];
        assert_eq!(sync_latency(Ok(fast.clone())).level, Level::Ok);
        assert_eq!(sync_latency(Ok(vec![Duration::from_millis(80); 50])).level, Level::Warn);
        let hiccup = [fast, vec![Duration::from_secs(1)]].concat();
        assert_eq!(sync_latency(Ok(hiccup)).level, Level::Warn);
        assert_eq!(sync_latency(Err(io::ErrorKind::PermissionDenied.into())).level, Level::Warn);
        let directory = tempfile::tempdir().unwrap();
        let measured = measure_syncs(directory.path()).unwrap();
        assert!(!measured.is_empty() && measured.len() <= SYNCS);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_strangers_may_read_or_change_is_found() {
        let root = tempfile::tempdir().unwrap();
        let (database, config) = (root.path().join("chat.db"), root.path().join("config.toml"));
        fs::write(&database, "").unwrap();
        fs::write(&config, "[admin]\nmetrics_token = \"s3cret-token\"\n").unwrap();
        let settings = |path: &Path| {
            let flags = Flags { config: Some(path.to_owned()), values: [("db", database.clone().into())].into() };
            load(&Environment::from_iter([("HOME", root.path())]), &flags).unwrap().settings
        };
        let check = |directory, file, configured| {
            let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            mode(root.path(), directory);
            mode(&database, file);
            mode(&config, configured);
            let found = permissions(&database, Some(&config), &settings(&config));
            found.into_iter().map(|finding| finding.level).collect::<Vec<_>>()
        };
        assert_eq!(check(0o750, 0o640, 0o640), [Level::Ok; 3]);
        assert_eq!(check(0o755, 0o644, 0o644), [Level::Warn; 3]);
        assert_eq!(check(0o777, 0o666, 0o666), [Level::Fail; 3]);
        fs::write(&config, "").unwrap();
        assert_eq!(check(0o750, 0o640, 0o644), [Level::Ok; 3], "there is no secret in it");
    }

    #[test]
    fn damage_is_found_and_a_missing_database_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(integrity(file.path(), |_| Ok(Vec::new())).level, Level::Ok);
        assert_eq!(integrity(file.path(), |_| Ok(vec!["page 3 is never used".to_owned()])).level, Level::Fail);
        assert_eq!(integrity(file.path(), |path| Err(OpenError::NotDatabase(path.to_owned()))).level, Level::Fail);
        assert_eq!(integrity(Path::new("/proc/nowhere"), |_| panic!("not asked")).level, Level::Ok);
    }

    #[test]
    fn an_old_backup_and_none_are_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = |ended_ms| last_backup(ended_ms, file.path(), 10 * DAY_MS).level;
        assert_eq!(check(Some(9 * DAY_MS)), Level::Ok);
        assert_eq!(check(Some(9 * DAY_MS - 1)), Level::Warn);
        assert_eq!(check(None), Level::Warn);
        assert_eq!(last_backup(None, Path::new("/proc/nowhere"), 0).level, Level::Ok);
    }
}
