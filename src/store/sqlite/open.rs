//! Opening the database (BEHAVIOUR.md 8.3): a file of ours, or of any version of the existing server, in place.
//!
//! The order is what makes a refusal harmless: lock, look without touching, connect, back up, only then change.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};

use super::backup::{self, BackupError};
use super::lock::{DatabaseLock, LockError, beside, other_user};
use super::migrations::{self, MigrationError};
use super::{repair, survey};

/// How long a statement waits for another program's lock, the operator's `sqlite3` for instance.
const BUSY_TIMEOUT: Duration = Duration::from_millis(5000);

/// Prepared statements kept per connection: more than the server has different ones.
const STATEMENT_CACHE: usize = 64;

/// What every SQLite file begins with.
pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// When a commit counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on disk (`synchronous = FULL`): survives a power cut.
    #[default]
    Full,
    /// Once the operating system has it (`synchronous = NORMAL`): survives the end of the process only.
    Process,
}

/// Who brings the write-ahead log into the database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpoints {
    /// This program.
    #[default]
    Own,
    /// Another one that follows the log, as Litestream does: this program never shortens the log nor starts it anew,
    /// not even when it stops.
    External,
}

/// How to open.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Make the directory of the database, with those above it (mode 0750), where it is missing.
    pub create_directory: bool,
    pub durability: Durability,
    pub checkpoints: Checkpoints,
}

/// A database that is ready for use. The connection closes before the lock is given up.
#[derive(Debug)]
pub struct Opened {
    /// The only connection that writes. Nothing checkpoints by itself: its owner has to.
    pub writer: Connection,
    pub lock: DatabaseLock,
    /// Who may shorten the log.
    pub checkpoints: Checkpoints,
    /// There was no database before, or an empty one.
    pub created: bool,
    /// Of the numbered series: 13, or up to 16 where a newer version of the existing server was here.
    pub schema_version: u32,
    /// Absolute, symbolic links resolved: what [`open_reader`] takes.
    pub path: PathBuf,
}

/// Who made the file. Age-based clean-up runs unasked only in files that we created (BEHAVIOUR.md 8.3, point 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By this program, at this time (ms).
    Created { at_ms: i64 },
    /// By another one; first opened by ours at this time (ms), when it was of `schema_version`.
    Adopted { at_ms: i64, schema_version: u32 },
}

/// Why a database could not be opened. Nothing was made or changed, unless a migration had succeeded before.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is no name for a database file: give one with --db or database_path", .0.display())]
    NoName(PathBuf),
    #[error("directory {} does not exist: create it, or name another place with --db", .0.display())]
    NoDirectory(PathBuf),
    #[error("cannot {action} {}: {source}; name another place with --db", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot open database {}: {source}; name another place with --db", .path.display())]
    Lock { path: PathBuf, source: LockError },
    #[error("{} changes while it is being copied to be looked at: stop the program that writes it (pid {}), or make a \
        backup with scd backup and look at that", .path.display(), .pid.map_or("unknown".to_owned(), |pid| pid.to_string()))]
    Changing { path: PathBuf, pid: Option<u32> },
    #[error("{} is not a SQLite database: name the right file with --db, or move this one away", .0.display())]
    NotDatabase(PathBuf),
    #[error("{} is a SQLite database of some other program: name the right file with --db", .0.display())]
    Unrelated(PathBuf),
    #[error("database {} is damaged ({source}): restore a backup, or save what is left with sqlite3 and .recover",
        .path.display())]
    Damaged { path: PathBuf, source: rusqlite::Error },
    #[error("database {} has schema version {found}, this program knows versions up to {}: use a newer scd, or restore \
        a backup of an older version", .path.display(), migrations::VERSION_ACCEPTED_MAX)]
    Newer { path: PathBuf, found: i64 },
    #[error("database {} is missing, but its -wal file still holds data: put the database back, or move the -wal away",
        .0.display())]
    OrphanedWal(PathBuf),
    #[error("database {} is write-protected: give this user the right to write it", .0.display())]
    ReadOnly(PathBuf),
    #[error("database {} cannot use a write-ahead log (journal mode {mode}): put it on a local file system",
        .path.display())]
    NoWal { path: PathBuf, mode: String },
    #[error("database {} is in use by another program{}: stop the server that has had it until now, and whatever else has \
        it open, before this one takes it over", .path.display(),
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("no backup of {}, so it was not migrated: {source}", .path.display())]
    Backup { path: PathBuf, source: BackupError },
    #[error("cannot bring database {} up to date: {source}", .path.display())]
    Migration { path: PathBuf, source: MigrationError },
    #[error("cannot open database {}: {source}", .path.display())]
    Sqlite { path: PathBuf, source: rusqlite::Error },
}

/// Opens the database at `path` for this process alone (other programs may still read and write it), makes it where it
/// is missing (mode 0640), and brings it up to date, after a backup when there is anything in it. `now_ms` dates the
/// backup and the rows that record all this.
///
/// # Errors
/// See [`OpenError`]. A file that is refused is not touched.
pub fn open(path: &Path, options: &OpenOptions, now_ms: i64) -> Result<Opened, OpenError> {
    // The order of these is that in which a failure takes them back, reversed: connection, files, lock, directories.
    let mut directories = Undo::default();
    let path = resolve(path, options, &mut directories)?;
    let lock = DatabaseLock::take(&path).map_err(|source| OpenError::Lock { path: path.clone(), source })?;
    // Asked before the file is opened, and of use to the look.
    let other_user = other_user(&path);
    let is_known = look(&path, other_user.is_some())?;
    if let Some(user) = other_user.filter(|_| !is_known) {
        return Err(OpenError::InUse { path, pid: user.pid });
    }
    let mut files = create_if_missing(&path)?;
    let writer = connect(&path)?;
    spare_log(&writer, options.checkpoints).map_err(sqlite_error(&path))?;
    let contents = inspect(&writer, &path)?;
    let schema_version = match contents {
        Contents::Empty => create(&writer, &path, options.durability, now_ms)?,
        Contents::Ours { version } => upgrade(&writer, &path, version, options.durability, now_ms)?,
    };
    settle(&writer, options.checkpoints).map_err(sqlite_error(&path))?;
    if let (Some(user), Checkpoints::Own) = (other_user, options.checkpoints) {
        let pid = user.pid.unwrap_or_default();
        tracing::warn!(pid, "another program has the database open: no other server may run on it");
    }
    directories.0.clear();
    files.0.clear();
    let checkpoints = options.checkpoints;
    Ok(Opened { writer, lock, checkpoints, created: contents == Contents::Empty, schema_version, path })
}

/// Opens a connection that can only read, to a database that [`open`] holds open.
///
/// # Errors
/// The file is missing or unreadable.
pub fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(sqlite_error(path))?;
    configure(&conn, path, Access::Read)?;
    Ok(conn)
}

/// Who made the file behind `conn`.
///
/// # Errors
/// Those of SQLite; also when an operator emptied `scd_origin`.
pub fn origin(conn: &Connection) -> rusqlite::Result<Origin> {
    let value = |key| conn.query_row("SELECT value FROM scd_origin WHERE key = ?1", [key], |row| row.get(0));
    if let Some(at_ms) = value("created_at").optional()? {
        return Ok(Origin::Created { at_ms });
    }
    let schema_version =
        conn.query_row("SELECT value FROM scd_origin WHERE key = 'adopted_schema_version'", [], |row| row.get(0))?;
    Ok(Origin::Adopted { at_ms: value("adopted_at")?, schema_version })
}

/// What a file turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Empty,
    Ours { version: u32 },
}

#[derive(Clone, Copy)]
enum Access {
    Write(Durability),
    Read,
}

/// Takes back what a failed start has made, newest first.
#[derive(Default)]
struct Undo(Vec<PathBuf>);

impl Drop for Undo {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let outcome = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
            match outcome {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove what a failed start has made");
                }
                _ => (),
            }
        }
    }
}

/// The absolute path of the database, so that two names of one file share one lock.
fn resolve(path: &Path, options: &OpenOptions, undo: &mut Undo) -> Result<PathBuf, OpenError> {
    let name = path.file_name().ok_or_else(|| OpenError::NoName(path.to_owned()))?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if options.create_directory {
        create_directory(directory, undo)?;
    }
    let found = match fs::canonicalize(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::NoDirectory(directory.to_owned()));
        }
        other => other.map_err(io_error("use directory", directory))?,
    };
    let file = found.join(name);
    match fs::canonicalize(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(file),
        other => other.map_err(io_error("find", &file)),
    }
}

fn create_directory(directory: &Path, undo: &mut Undo) -> Result<(), OpenError> {
    let is_missing = |directory: &&Path| !directory.as_os_str().is_empty() && !directory.exists();
    let missing: Vec<&Path> = directory.ancestors().take_while(is_missing).collect();
    for directory in missing.into_iter().rev() {
        DirBuilder::new().mode(0o750).create(directory).map_err(io_error("create directory", directory))?;
        undo.0.push(directory.to_owned());
    }
    Ok(())
}

/// Refuses what is not for us before anything can change the file: a connection that may write would roll back a
/// journal or fold the WAL in when it closes. Returns whether a server of ours has had the file before, or nobody has.
fn look(path: &Path, is_used: bool) -> Result<bool, OpenError> {
    match read_magic(path)? {
        magic if magic.is_empty() && has_bytes(&beside(path, "-wal")) => Err(OpenError::OrphanedWal(path.to_owned())),
        magic if magic.is_empty() => Ok(true),
        magic if magic != MAGIC => Err(OpenError::NotDatabase(path.to_owned())),
        // Half a transaction, which nobody can make sense of before it is rolled back.
        _ if has_bytes(&beside(path, "-journal")) => Ok(false),
        _ => {
            let conn = connect_to_look(path, is_used)?;
            Ok(inspect(&conn, path)? == Contents::Empty || origin(&conn).is_ok())
        }
    }
}

/// The first bytes of the file; none when it is empty or missing.
pub(super) fn read_magic(path: &Path) -> Result<Vec<u8>, OpenError> {
    let mut magic = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut magic));
    match read {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("read", path)(error)),
        _ => Ok(magic),
    }
}

/// Keeps the log when the last connection closes, if it is not ours to shorten.
pub(super) fn spare_log(conn: &Connection, checkpoints: Checkpoints) -> rusqlite::Result<()> {
    conn.pragma_update(None, "wal_autocheckpoint", 0)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, checkpoints == Checkpoints::External).map(drop)
}

pub(super) fn has_bytes(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}

/// A connection that leaves the database and its WAL as they are, to the byte. A file that is in use may be written, and get
/// a log, the next moment.
pub(super) fn connect_to_look(path: &Path, is_used: bool) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = if is_used || has_bytes(&beside(path, "-wal")) {
        Connection::open_with_flags(path, flags)
    } else {
        // Without a WAL to respect, `immutable` spares us the side files that even reading would make.
        Connection::open_with_flags(immutable_uri(path), flags | OpenFlags::SQLITE_OPEN_URI)
    }
    .map_err(sqlite_error(path))?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(sqlite_error(path))?;
    Ok(conn)
}

fn immutable_uri(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => uri.push(byte.into()),
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    uri + "?immutable=1"
}

fn create_if_missing(path: &Path) -> Result<Undo, OpenError> {
    if path.exists() {
        return Ok(Undo::default());
    }
    File::options().write(true).create_new(true).mode(0o640).open(path).map_err(io_error("create", path))?;
    Ok(Undo(vec![path.to_owned(), beside(path, "-wal"), beside(path, "-shm")]))
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(sqlite_error(path))?;
    // SQLite falls back to reading, without a word, where it may not write.
    match conn.is_readonly("main").map_err(sqlite_error(path))? {
        true => Err(OpenError::ReadOnly(path.to_owned())),
        false => Ok(conn),
    }
}

pub(super) fn inspect(conn: &Connection, path: &Path) -> Result<Contents, OpenError> {
    let count = |sql| conn.query_row(sql, [], |row| row.get::<_, u32>(0)).map_err(sqlite_error(path));
    let objects = count(r"SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\'")?;
    if objects == 0 {
        return Ok(Contents::Empty);
    }
    let is_recorded = count(
        "SELECT count(*) FROM pragma_table_info('schema_migrations') WHERE name IN ('version', 'name', 'applied_at')",
    )? == 3;
    let has_channels = count(
        "SELECT count(*) FROM pragma_table_info('Channel') WHERE name IN ('display_name', 'message_retention_hours')",
    )? == 2;
    let version = if is_recorded { recorded_version(conn, path)? } else { 0 };
    // A first start that was cut off may have got no further than the empty list of migrations.
    let is_ours = has_channels || (is_recorded && objects == 1 && version == 0);
    match u32::try_from(version) {
        Ok(version) if is_ours && version <= migrations::VERSION_ACCEPTED_MAX => Ok(Contents::Ours { version }),
        _ if is_ours && version > 0 => Err(OpenError::Newer { path: path.to_owned(), found: version }),
        _ => Err(OpenError::Unrelated(path.to_owned())),
    }
}

fn recorded_version(conn: &Connection, path: &Path) -> Result<i64, OpenError> {
    conn.query_row("SELECT COALESCE(max(version), 0) FROM schema_migrations", [], |row| row.get(0))
        .map_err(sqlite_error(path))
}

/// What every connection needs: most of it lives in the connection and not in the file (D-55).
fn configure(conn: &Connection, path: &Path, access: Access) -> Result<(), OpenError> {
    let set = |pragma: &str, value: &str| conn.pragma_update(None, pragma, value).map_err(sqlite_error(path));
    conn.busy_timeout(BUSY_TIMEOUT).map_err(sqlite_error(path))?;
    conn.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    set("foreign_keys", "ON")?;
    match access {
        Access::Read => set("query_only", "ON"),
        Access::Write(durability) => {
            enable_wal(conn, path)?;
            set("wal_autocheckpoint", "0")?;
            set(
                "synchronous",
                match durability {
                    Durability::Full => "FULL",
                    Durability::Process => "NORMAL",
                },
            )
        }
    }
}

fn enable_wal(conn: &Connection, path: &Path) -> Result<(), OpenError> {
    let mode: String =
        conn.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(sqlite_error(path))?;
    if mode.eq_ignore_ascii_case("wal") { Ok(()) } else { Err(OpenError::NoWal { path: path.to_owned(), mode }) }
}

fn create(conn: &Connection, path: &Path, durability: Durability, now_ms: i64) -> Result<u32, OpenError> {
    configure(conn, path, Access::Write(durability))?;
    announce_pending(0);
    migrations::create(conn, now_ms, |conn| record_origin(conn, Origin::Created { at_ms: now_ms }))
        .map_err(|source| OpenError::Migration { path: path.to_owned(), source })?;
    Ok(migrations::VERSION)
}

fn upgrade(
    conn: &Connection,
    path: &Path,
    version: u32,
    durability: Durability,
    now_ms: i64,
) -> Result<u32, OpenError> {
    let own = migrations::pending_own(conn).map_err(sqlite_error(path))?;
    let is_changed = !migrations::pending(version).is_empty() || !own.is_empty();
    let backup = is_changed.then(|| back_up(conn, path, version, now_ms)).transpose()?;
    let change = || {
        announce_pending(version);
        configure(conn, path, Access::Write(durability))?;
        let failed = |source| OpenError::Migration { path: path.to_owned(), source };
        migrations::migrate(conn, version, migrations::VERSION, now_ms).map_err(failed)?;
        migrations::migrate_own(conn, &own, now_ms).map_err(failed)?;
        record_origin(conn, Origin::Adopted { at_ms: now_ms, schema_version: version }).map_err(sqlite_error(path))
    };
    let changed = change();
    if let Some(backup) = &backup {
        match changed {
            Ok(()) => backup::remove_old(path, backup),
            // The next start would make the same copy again, until they have filled the disk.
            Err(_) if is_still(conn, path, version, own.len()) => backup::remove_useless(backup),
            Err(_) => {}
        }
    }
    changed?;
    if is_changed {
        tell_broken_references(conn).map_err(sqlite_error(path))?;
    }
    Ok(version.max(migrations::VERSION))
}

fn back_up(conn: &Connection, path: &Path, version: u32, now_ms: i64) -> Result<PathBuf, OpenError> {
    let backup = backup::back_up_automatically(conn, path, version, now_ms)
        .map_err(|source| OpenError::Backup { path: path.to_owned(), source })?;
    tracing::info!("Created database backup: {}", backup.display());
    Ok(backup)
}

/// Whether the first step that was pending still is.
fn is_still(conn: &Connection, path: &Path, version: u32, pending_own: usize) -> bool {
    inspect(conn, path).is_ok_and(|contents| contents == Contents::Ours { version })
        && migrations::pending_own(conn).is_ok_and(|own| own.len() == pending_own)
}

/// Once, when a file is taken over: from then on they are passed over in silence (BEHAVIOUR.md 8.3, point 9).
fn tell_broken_references(conn: &Connection) -> rusqlite::Result<()> {
    let rows: u64 = survey::broken_references(conn)?.values().sum();
    if rows > 0 {
        tracing::warn!(
            rows,
            "references to rows that are gone: such rows are kept and passed over; scd check lists them"
        );
    }
    Ok(())
}

fn announce_pending(version: u32) {
    match migrations::pending(version).len() {
        0 => tracing::info!("Database is up to date (version {version})"),
        pending => {
            tracing::info!("Running {pending} pending migration(s) from version {version} to {}", migrations::VERSION)
        }
    }
}

/// Records where the file comes from, unless that is known already.
fn record_origin(conn: &Connection, origin: Origin) -> rusqlite::Result<()> {
    match origin {
        Origin::Created { at_ms } => conn.execute(
            "INSERT INTO scd_origin (key, value)
             SELECT 'created_at', ?1 WHERE NOT EXISTS (SELECT 1 FROM scd_origin)",
            [at_ms],
        ),
        Origin::Adopted { at_ms, schema_version } => conn.execute(
            "WITH adopted(key, value) AS (VALUES ('adopted_at', ?1), ('adopted_schema_version', ?2))
             INSERT INTO scd_origin (key, value)
             SELECT key, value FROM adopted WHERE NOT EXISTS (SELECT 1 FROM scd_origin)",
            params![at_ms, schema_version],
        ),
    }
    .map(drop)
}

/// Last steps: small repairs, and what the last owner left in the WAL goes where it belongs.
fn settle(conn: &Connection, checkpoints: Checkpoints) -> rusqlite::Result<()> {
    repair::drop_own_leftovers(conn)?;
    let participants = repair::fill_dm_participants(conn)?;
    if participants > 0 {
        tracing::info!(participants, "filled in the participants of old direct messages");
    }
    match checkpoints {
        Checkpoints::Own => conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())),
        Checkpoints::External => Ok(()),
    }
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { action, path, source }
}

pub(super) fn sqlite_error(path: &Path) -> impl Fn(rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotDatabase(path.clone()),
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Damaged { path: path.clone(), source },
        _ => OpenError::Sqlite { path: path.clone(), source },
    }
}
