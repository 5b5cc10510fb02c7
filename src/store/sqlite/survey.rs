//! What a database file holds, whether it is whole, and what opening it would change; found out without touching it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use super::lock::{DatabaseLock, OtherUser, beside, other_user};
use super::maintenance::{Aged, INVITATIONS, READ_MARKS, SERVERS};
use super::migrations::{self, Migration};
use super::open::{self, Contents, OpenError, Origin};
use super::row;

/// Faults that are listed one by one: with more, the first ones tell enough.
const FAULTS_LISTED_MAX: usize = 20;

/// How often a copy is begun anew because the file changed meanwhile.
const COPY_ATTEMPTS_MAX: usize = 3;

/// What makes up a database on disk. The `-shm` is made anew from the `-wal`.
pub(super) const FILES: [&str; 3] = ["", "-wal", "-journal"];

/// How thoroughly the pages are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every page, and every index against its table.
    Full,
    /// Every page.
    Quick,
}

/// What was found in a file.
#[derive(Debug)]
pub struct Survey {
    /// Of the numbered series; 0 without a list of migrations, and in an empty file.
    pub schema_version: u32,
    /// Nothing is in it yet.
    pub is_empty: bool,
    /// Who made it; `None` until a server of ours has opened it.
    pub origin: Option<Origin>,
    /// What SQLite finds wrong with its pages; nothing in a sound file. At most 20 of them.
    pub faults: Vec<String>,
    pub tally: Tally,
    pub oddities: Oddities,
    /// Who has the file open while it is looked at.
    pub user: Option<User>,
    /// Bytes of the write-ahead log beside it, which may hold what is not in the database itself yet.
    pub log_bytes: u64,
    /// Numbered migrations that opening it would run.
    pub pending: &'static [Migration],
    /// Additions of ours that opening it would make.
    pub pending_own: Vec<&'static Migration>,
}

/// Somebody who has a database open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// A server of ours, by its process id.
    Server { pid: Option<u32> },
    /// Any other program: an existing server, an operator's shell, a replicator.
    Other(OtherUser),
}

/// What two copies of one database must have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows per table.
    pub rows: BTreeMap<String, u64>,
    /// Rows whose reference leads nowhere, by table and table referred to. Old servers wrote such rows.
    pub broken_references: BTreeMap<(String, String), u64>,
}

/// What old servers left behind, and ours lives with or mends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Messages without thread root: opening the file gives them one.
    pub unrooted: u64,
    /// Replies whose parent is gone.
    pub lost_replies: u64,
    /// Threads whose root is gone.
    pub lost_threads: u64,
    /// Direct messages without participants: opening the file takes those that have access.
    pub bare_dms: u64,
    /// Direct messages without participants that nobody has access to.
    pub lonely_dms: u64,
    /// Channels that no client is shown: private ones, and subchannels of channels that are gone.
    pub hidden_channels: u64,
    /// Messages in subchannels that are not there.
    pub misplaced: u64,
    /// Visitors in direct messages: live ones, or what a crash left.
    pub visitors: u64,
    /// Accounts whose password hash is NULL instead of empty.
    pub null_passwords: u64,
    /// Texts and names that are not UTF-8.
    pub not_utf8: u64,
    /// Messages in threads older than their channel keeps them.
    pub expired: u64,
    /// Read marks, invitations and servers of the directory that have outlived their time.
    pub outdated: u64,
}

/// Looks at the file at `path`; `now_ms` says what is too old. Beside a running server this reads as one more reader; a
/// file that a crash or a running program of another make left with a log is copied to the temporary directory first.
///
/// # Errors
/// What opening it would say, too; it cannot be copied.
pub fn survey(path: &Path, depth: Depth, now_ms: i64) -> Result<Survey, OpenError> {
    let path = &fs::canonicalize(path).map_err(open::io_error("read", path))?;
    let user = user(path);
    let log_bytes = fs::metadata(beside(path, "-wal")).map_or(0, |log| log.len());
    let look = Look::at(path)?;
    let survey = survey_connection(look.connection(), path, depth, now_ms)?;
    Ok(Survey { user, log_bytes, ..survey })
}

/// To be asked before the file is opened, see [`other_user`].
fn user(path: &Path) -> Option<User> {
    if DatabaseLock::is_held(path) {
        return Some(User::Server { pid: DatabaseLock::holder(path) });
    }
    other_user(path).map(User::Other)
}

pub(super) fn survey_connection(
    conn: &Connection,
    path: &Path,
    depth: Depth,
    now_ms: i64,
) -> Result<Survey, OpenError> {
    let failed = open::sqlite_error(path);
    let faults = faults(conn, depth).map_err(&failed)?;
    let schema_version = match open::inspect(conn, path)? {
        Contents::Ours { version } => version,
        Contents::Empty => {
            return Ok(Survey {
                schema_version: 0,
                is_empty: true,
                origin: None,
                faults,
                tally: Tally::default(),
                oddities: Oddities::default(),
                pending: migrations::pending(0),
                pending_own: migrations::OWN.iter().collect(),
                user: None,
                log_bytes: 0,
            });
        }
    };
    Ok(Survey {
        schema_version,
        is_empty: false,
        origin: open::origin(conn).ok(),
        // A damaged file need not be countable.
        tally: if faults.is_empty() { Tally::of(conn).map_err(&failed)? } else { Tally::default() },
        oddities: if faults.is_empty() {
            oddities(conn, schema_version, now_ms).map_err(&failed)?
        } else {
            Oddities::default()
        },
        faults,
        pending: migrations::pending(schema_version),
        pending_own: migrations::pending_own(conn).map_err(&failed)?,
        user: None,
        log_bytes: 0,
    })
}

/// What SQLite finds wrong with the pages of the file at `path`, and nothing else of it.
///
/// # Errors
/// As [`survey`].
pub fn page_faults(path: &Path) -> Result<Vec<String>, OpenError> {
    let look = Look::at(path)?;
    faults(look.connection(), Depth::Quick).map_err(open::sqlite_error(path))
}

/// The time of the newest message, in milliseconds since 1970; `None` without messages.
///
/// # Errors
/// As [`survey`].
pub fn newest_message_ms(path: &Path) -> Result<Option<i64>, OpenError> {
    let look = Look::at(path)?;
    let newest = "SELECT created_at FROM Message ORDER BY id DESC LIMIT 1";
    let newest = look.connection().prepare(newest).and_then(|mut query| {
        let mut rows = query.query([])?;
        rows.next()?.map(|row| row.get(0)).transpose()
    });
    newest.map_err(open::sqlite_error(path))
}

/// The version of the SQLite inside this program.
#[must_use]
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

impl Tally {
    /// Counts what the connection sees.
    pub(super) fn of(conn: &Connection) -> rusqlite::Result<Self> {
        let mut names = conn
            .prepare(r"SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'")?;
        let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut rows = BTreeMap::new();
        for name in names {
            let count = count(conn, &format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\"")))?;
            rows.insert(name, count);
        }
        Ok(Self { rows, broken_references: broken_references(conn)? })
    }

    /// Rows of `table`; 0 where there is none.
    #[must_use]
    pub fn rows_of(&self, table: &str) -> u64 {
        self.rows.get(table).copied().unwrap_or(0)
    }

    /// In which tables `other` differs, one sentence each.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let names = self.rows.keys().chain(other.rows.keys().filter(|name| !self.rows.contains_key(*name)));
        let differing = names.filter(|name| self.rows.get(*name) != other.rows.get(*name));
        let mut found: Vec<String> = differing
            .map(|name| format!("table {name} has {} rows instead of {}", other.rows_of(name), self.rows_of(name)))
            .collect();
        if self.broken_references != other.broken_references {
            found.push("its broken references differ".to_owned());
        }
        found
    }
}

/// A connection that leaves the file as it is.
pub(super) struct Look {
    conn: Connection,
    /// Removed after the connection is closed.
    _copy: Option<TempDir>,
}

impl Look {
    pub(super) fn at(path: &Path) -> Result<Self, OpenError> {
        // A missing file would count as empty below.
        File::open(path).map_err(open::io_error("read", path))?;
        if !matches!(open::read_magic(path)?, magic if magic.is_empty() || magic == open::MAGIC) {
            return Err(OpenError::NotDatabase(path.to_owned()));
        }
        let has_log = FILES[1..].iter().any(|suffix| open::has_bytes(&beside(path, suffix)));
        // Whoever has it open may write the next moment, and the log with it.
        let has_log = has_log || other_user(path).is_some();
        if DatabaseLock::is_held(path) {
            return Ok(Self { conn: connect_beside_a_server(path)?, _copy: None });
        }
        if !has_log {
            return Ok(Self { conn: open::connect_to_look(path, false)?, _copy: None });
        }
        let (copy, file) = copy_apart(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(file, flags).map_err(open::sqlite_error(path))?;
        Ok(Self { conn, _copy: Some(copy) })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.conn
    }
}

/// One reader among those of the server, with one view of the file.
fn connect_beside_a_server(path: &Path) -> Result<Connection, OpenError> {
    let failed = open::sqlite_error(path);
    let conn = open::open_reader(path)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(&failed)?;
    conn.execute_batch("BEGIN").map_err(&failed)?;
    Ok(conn)
}

/// Copies a database with its log. A copy made while somebody wrote is thrown away.
fn copy_apart(path: &Path) -> Result<(TempDir, PathBuf), OpenError> {
    for _ in 0..COPY_ATTEMPTS_MAX {
        let before = stamps(path);
        let directory = TempDir::with_prefix("scd-look-").map_err(open::io_error("copy aside", path))?;
        let copy = directory.path().join("copy.db");
        for suffix in FILES {
            match fs::copy(beside(path, suffix), beside(&copy, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(open::io_error("copy aside", path)(error));
                }
                _ => (),
            }
        }
        if stamps(path) == before {
            return Ok((directory, copy));
        }
    }
    Err(OpenError::Changing { path: path.to_owned(), pid: other_user(path).and_then(|user| user.pid) })
}

/// Changes with everything that is written to the files.
fn stamps(path: &Path) -> [Option<(u64, u64, i64, i64)>; 3] {
    FILES.map(|suffix| {
        let found = fs::metadata(beside(path, suffix)).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    })
}

fn faults(conn: &Connection, depth: Depth) -> rusqlite::Result<Vec<String>> {
    let check = match depth {
        Depth::Full => "integrity_check",
        Depth::Quick => "quick_check",
    };
    let mut lines = conn.prepare(&format!("PRAGMA {check}({FAULTS_LISTED_MAX})"))?;
    let lines: Vec<String> = lines.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

/// Rows whose reference leads nowhere, by table and table referred to.
pub(super) fn broken_references(conn: &Connection) -> rusqlite::Result<BTreeMap<(String, String), u64>> {
    let mut broken = BTreeMap::new();
    let mut found = conn.prepare("PRAGMA foreign_key_check")?;
    let mut found = found.query([])?;
    while let Some(row) = found.next()? {
        *broken.entry((row.get(0)?, row.get(2)?)).or_default() += 1;
    }
    Ok(broken)
}

/// `since` which version of the schema a question makes sense, and the question.
type Since = (u32, &'static str);

const LONELY_DMS: [Since; 2] = [
    (
        13,
        "SELECT count(*) FROM Channel WHERE is_dm = 1
         AND NOT EXISTS (SELECT 1 FROM ChannelParticipant AS present WHERE present.channel_id = Channel.id)
         AND NOT EXISTS (SELECT 1 FROM ChannelAccess AS access JOIN User ON User.id = access.user_id
                         WHERE access.channel_id = Channel.id)",
    ),
    (
        11,
        "SELECT count(*) FROM Channel WHERE is_dm = 1
         AND NOT EXISTS (SELECT 1 FROM ChannelAccess AS access JOIN User ON User.id = access.user_id
                         WHERE access.channel_id = Channel.id)",
    ),
];

/// Direct messages came with 11, participants with 13.
const BARE_DMS: [Since; 2] = [
    (
        13,
        "SELECT count(*) FROM Channel WHERE is_dm = 1
         AND NOT EXISTS (SELECT 1 FROM ChannelParticipant AS present WHERE present.channel_id = Channel.id)",
    ),
    (11, "SELECT count(*) FROM Channel WHERE is_dm = 1"),
];

const HIDDEN_CHANNELS: [Since; 3] = [
    (
        11,
        "SELECT count(*) FROM Channel WHERE is_dm = 0 AND (is_private <> 0 OR (parent_id IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM Channel AS above WHERE above.id = Channel.parent_id)))",
    ),
    (
        10,
        "SELECT count(*) FROM Channel WHERE is_private <> 0 OR (parent_id IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM Channel AS above WHERE above.id = Channel.parent_id))",
    ),
    (3, "SELECT count(*) FROM Channel WHERE is_private <> 0"),
];

const VISITORS: [Since; 1] = [(13, "SELECT count(*) FROM ChannelParticipant WHERE user_id IS NULL")];

const NULL_PASSWORDS: [Since; 1] = [(2, "SELECT count(*) FROM User WHERE password_hash IS NULL")];

/// Texts that people wrote. In direct messages what is not UTF-8 is the rule: they are encrypted.
const TEXTS: [&[Since]; 3] = [
    &[(0, "SELECT name, display_name, description FROM Channel")],
    &[
        (
            11,
            "SELECT author_nickname, content FROM Message
             WHERE channel_id NOT IN (SELECT id FROM Channel WHERE is_dm = 1)",
        ),
        (0, "SELECT author_nickname, content FROM Message"),
    ],
    &[(2, "SELECT nickname FROM User")],
];

fn oddities(conn: &Connection, version: u32, now_ms: i64) -> rusqlite::Result<Oddities> {
    let since = |questions: &[Since]| {
        let question = questions.iter().find(|(since, _)| version >= *since);
        question.map_or(Ok(0), |(_, sql)| count(conn, sql))
    };
    let lonely_dms = since(&LONELY_DMS)?;
    Ok(Oddities {
        unrooted: count(conn, "SELECT count(*) FROM Message WHERE thread_root_id IS NULL")?,
        lost_replies: count(
            conn,
            "SELECT count(*) FROM Message AS reply WHERE parent_id IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM Message AS above WHERE above.id = reply.parent_id)",
        )?,
        lost_threads: count(
            conn,
            "SELECT count(DISTINCT thread_root_id) FROM Message AS member WHERE thread_root_id IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM Message AS root WHERE root.id = member.thread_root_id)",
        )?,
        bare_dms: since(&BARE_DMS)?.saturating_sub(lonely_dms),
        lonely_dms,
        hidden_channels: since(&HIDDEN_CHANNELS)?,
        misplaced: count(
            conn,
            "SELECT count(*) FROM Message WHERE subchannel_id IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM Channel WHERE Channel.id = Message.subchannel_id)",
        )?,
        visitors: since(&VISITORS)?,
        null_passwords: since(&NULL_PASSWORDS)?,
        not_utf8: TEXTS
            .iter()
            .filter_map(|texts| texts.iter().find(|(since, _)| version >= *since))
            .map(|(_, sql)| broken_texts(conn, sql))
            .sum::<rusqlite::Result<u64>>()?,
        expired: count(
            conn,
            &format!(
                "SELECT count(*) FROM Message JOIN Channel
                     ON Channel.id = COALESCE(Message.subchannel_id, Message.channel_id)
                    AND Channel.message_retention_hours > 0
                 WHERE (SELECT root.created_at FROM Message AS root
                        WHERE root.id = COALESCE(Message.thread_root_id, Message.id))
                     < {now_ms} - Channel.message_retention_hours * 3600000"
            ),
        )?,
        outdated: [READ_MARKS, INVITATIONS, SERVERS]
            .iter()
            .map(|aged| outdated(conn, aged, now_ms))
            .sum::<rusqlite::Result<u64>>()?,
    })
}

/// Files of early versions lack some of the tables.
fn outdated(conn: &Connection, aged: &Aged, now_ms: i64) -> rusqlite::Result<u64> {
    if !conn.table_exists(None, aged.table)? {
        return Ok(0);
    }
    conn.query_row(&aged.count(), [aged.oldest_kept(now_ms)], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

/// Cells of a query that hold text which is not UTF-8.
fn broken_texts(conn: &Connection, sql: &str) -> rusqlite::Result<u64> {
    let mut statement = conn.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut broken = 0;
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            broken += u64::from(std::str::from_utf8(row::bytes(row, column)?).is_err());
        }
    }
    Ok(broken)
}

fn count(conn: &Connection, sql: &str) -> rusqlite::Result<u64> {
    conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}
