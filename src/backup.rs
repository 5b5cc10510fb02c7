//! `scd backup`, `restore` and `check`: what operators are told, and in what order things are done.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::clock;
use crate::store::sqlite::backup;
use crate::store::sqlite::open::Origin;
use crate::store::sqlite::restore::restore as restore_file;
use crate::store::sqlite::snapshot::{self, Target};
use crate::store::sqlite::survey::{Depth, Survey, Tally, User, survey};

/// What `scd backup` is asked to do.
#[derive(Debug)]
pub struct Order<'a> {
    pub database: &'a Path,
    /// A file that does not exist yet, or a directory.
    pub target: &'a Path,
    /// How many backups of our naming stay in the directory, 1 at least.
    pub keep: Option<usize>,
    pub verify: bool,
}

/// Makes a backup, removes old ones, and leaves word for the server; the lines for the operator.
///
/// # Errors
/// A sentence; there is no backup then, unless it says that there is one.
pub fn back_up(order: &Order<'_>) -> Result<String, String> {
    let Order { database, target: place, keep, verify } = *order;
    if keep.is_some() && !place.is_dir() {
        return Err(format!("--keep needs a directory, and {} is none", place.display()));
    }
    let target = Target::new(place, clock::wall_ms());
    let snapshot = snapshot::take(database, &target, verify).map_err(|error| error.to_string())?;
    let mut lines = format!("backed up {} to {} ({}", database.display(), target.path.display(), size(snapshot.bytes));
    if let Some(tally) = &snapshot.verified {
        write!(lines, "; verified: {}", counts(tally)).unwrap_or_default();
    }
    lines.push_str(")\n");
    let made = |error: &dyn std::fmt::Display| format!("{} is written, but {error}", target.path.display());
    backup::record_success(&resolved(database), clock::wall_ms()).map_err(|error| made(&error))?;
    if let Some(keep) = keep {
        for path in snapshot::remove_old(place, keep.max(1)).map_err(|error| made(&error))? {
            writeln!(lines, "removed {}", path.display()).unwrap_or_default();
        }
    }
    Ok(lines)
}

/// Puts a backup in the place of the database; the lines for the operator.
///
/// # Errors
/// A sentence.
pub fn restore(backup: &Path, database: &Path) -> Result<String, String> {
    let restored = restore_file(backup, database, clock::wall_ms()).map_err(|error| error.to_string())?;
    let mut lines =
        format!("restored {} to {} ({})\n", backup.display(), database.display(), counts(&restored.survey.tally));
    match &restored.aside {
        Some(aside) => writeln!(lines, "the database before is kept: {}", aside.display()),
        None => writeln!(lines, "there was no database before"),
    }
    .unwrap_or_default();
    lines.push_str("next: start the server, then `scd health --ready`");
    if restored.aside.is_some() {
        lines.push_str("; remove the database before when all is well");
    }
    lines.push('\n');
    Ok(lines)
}

/// The name by which the server knows the database, which its notes lie beside.
fn resolved(database: &Path) -> PathBuf {
    std::fs::canonicalize(database).unwrap_or_else(|_| database.to_owned())
}

/// What `scd check` found.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// One line per finding: `ok`, `note` or `fail` first.
    pub lines: String,
    /// Nothing failed.
    pub is_sound: bool,
}

/// Looks at the database without touching it.
#[must_use]
pub fn check(database: &Path) -> Verdict {
    match survey(database, Depth::Full, clock::wall_ms()) {
        Ok(survey) => verdict(database, &survey),
        Err(error) => Verdict { lines: format!("fail  {error}\n"), is_sound: false },
    }
}

fn verdict(database: &Path, survey: &Survey) -> Verdict {
    let mut findings = vec![Finding::Ok(format!("{}: {}", database.display(), counts(&survey.tally)))];
    if survey.is_empty {
        findings.push(Finding::Note("it is empty: a server makes its tables at its first start".to_owned()));
    }
    findings.extend(use_of(database, survey));
    findings.extend(pages(survey));
    // Of a damaged file nothing else can be said.
    if survey.faults.is_empty() && !survey.is_empty {
        findings.extend(references(survey));
        findings.extend(oddities(survey));
        findings.extend(migration(survey));
    }
    let is_sound = !findings.iter().any(|finding| matches!(finding, Finding::Fail(_)));
    let lines = findings.iter().map(|finding| match finding {
        Finding::Ok(text) => format!("ok    {text}\n"),
        Finding::Note(text) => format!("note  {text}\n"),
        Finding::Fail(text) => format!("fail  {text}\n"),
    });
    Verdict { lines: lines.collect(), is_sound }
}

enum Finding {
    Ok(String),
    /// A server lives with it, or mends it.
    Note(String),
    Fail(String),
}

/// Who has it open, and what of it lies beside it.
fn use_of(database: &Path, survey: &Survey) -> Vec<Finding> {
    let called = |pid: Option<u32>| pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let user = survey.user.map(|user| match (user, survey.origin) {
        (User::Server { pid }, _) => Finding::Ok(format!("in use by a server{}", called(pid))),
        (User::Other(user), None) => Finding::Note(format!(
            "another program has it open{}, the existing server perhaps: stop it; until then the server refuses to start",
            called(user.pid)
        )),
        (User::Other(user), Some(_)) => Finding::Note(format!(
            "another program has it open{}: stop it if it is another server; shells and replicators may stay",
            called(user.pid)
        )),
    });
    let is_served = matches!(survey.user, Some(User::Server { .. }));
    let log = (survey.log_bytes > 0 && !is_served).then(|| {
        Finding::Note(format!(
            "{} of log beside it ({}-wal) may hold what is not in the file yet: the server brings it in; move the two together",
            size(survey.log_bytes),
            database.display()
        ))
    });
    user.into_iter().chain(log).collect()
}

fn pages(survey: &Survey) -> Vec<Finding> {
    if survey.faults.is_empty() {
        return vec![Finding::Ok("integrity: every page and index".to_owned())];
    }
    let fault = |fault: &String| Finding::Fail(format!("integrity: {fault}"));
    let advice = "restore a backup with scd restore, or save what is left with sqlite3 and .recover";
    survey.faults.iter().map(fault).chain([Finding::Fail(advice.to_owned())]).collect()
}

/// Old servers wrote with foreign keys off; in a file of ours a broken one is damage.
fn references(survey: &Survey) -> Vec<Finding> {
    let broken = &survey.tally.broken_references;
    if broken.is_empty() {
        return vec![Finding::Ok("foreign keys".to_owned())];
    }
    let is_ours = matches!(survey.origin, Some(Origin::Created { .. }));
    let finding = |((table, parent), rows): (&(String, String), &u64)| {
        let text = format!("foreign keys: {rows} rows of {table} refer to rows of {parent} that are gone");
        if is_ours { Finding::Fail(text) } else { Finding::Note(text) }
    };
    broken.iter().map(finding).collect()
}

fn oddities(survey: &Survey) -> Vec<Finding> {
    let found = survey.oddities;
    let is_adopted = !matches!(survey.origin, Some(Origin::Created { .. }));
    // In files of ours these go when their time has come, and those of a running server are alive.
    let [expired, outdated, visitors] = if is_adopted {
        let is_served = matches!(survey.user, Some(User::Server { .. }));
        [found.expired, found.outdated, if is_served { 0 } else { found.visitors }]
    } else {
        [0; 3]
    };
    let table = [
        (found.unrooted, "messages without a thread root: the server gives them one"),
        (found.lost_replies, "replies whose parent is gone: they are shown in the thread that is left of it"),
        (found.lost_threads, "threads whose root is gone: their messages cannot be listed from the channel"),
        (found.bare_dms, "direct messages without participants: the server takes those that have access"),
        (found.lonely_dms, "direct messages that nobody has access to: they are kept, and shown to nobody"),
        (
            found.hidden_channels,
            "channels that are private or below one that is gone: they are kept, and shown to nobody",
        ),
        (found.misplaced, "messages in subchannels that are not there: they are kept, and shown to nobody"),
        (visitors, "visitors in direct messages whom a crash left there: they are kept, and shown as having left"),
        (
            found.null_passwords,
            "accounts whose password hash is NULL: they cannot sign in by password; '' is what it should be",
        ),
        (found.not_utf8, "texts that are not UTF-8: they are kept and sent byte for byte"),
        (expired, "messages older than their channel keeps them: they stay, unless [retention] enforce = true"),
        (
            outdated,
            "read marks, invitations and directory entries past their time: they stay, unless [retention] enforce = true",
        ),
    ];
    let odd = table.into_iter().filter(|(count, _)| *count > 0);
    let odd: Vec<Finding> = odd.map(|(count, what)| Finding::Note(format!("{count} {what}"))).collect();
    if odd.is_empty() { vec![Finding::Ok("threads, direct messages and ages".to_owned())] } else { odd }
}

fn migration(survey: &Survey) -> Vec<Finding> {
    let names = |migrations: &mut dyn Iterator<Item = String>| migrations.collect::<Vec<_>>().join(", ");
    let numbered = names(&mut survey.pending.iter().map(|step| format!("{} {}", step.version, step.name)));
    let own = names(&mut survey.pending_own.iter().map(|step| step.name.to_owned()));
    if numbered.is_empty() && own.is_empty() {
        return vec![Finding::Ok(format!("schema version {}: up to date", survey.schema_version))];
    }
    let mut findings = vec![Finding::Note(format!(
        "schema version {}: at its next start the server backs the file up beside itself and changes it",
        survey.schema_version
    ))];
    if !numbered.is_empty() {
        findings.push(Finding::Note(format!("migrations to run: {numbered}")));
    }
    if !own.is_empty() {
        findings.push(Finding::Note(format!("additions of ours to make: {own}")));
    }
    findings
}

fn counts(tally: &Tally) -> String {
    let rows = |table| tally.rows_of(table);
    format!(
        "{} tables, {} messages, {} channels, {} users",
        tally.rows.len(),
        rows("Message"),
        rows("Channel"),
        rows("User")
    )
}

/// Bytes for people: `1.5 MiB`.
#[expect(clippy::cast_precision_loss, reason = "one digit behind the point is all that is shown")]
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_that_people_read() {
        for (bytes, text) in [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (u64::MAX, "16777216.0 TiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
