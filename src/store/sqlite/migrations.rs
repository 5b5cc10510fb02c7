//! The schema and its history (BEHAVIOUR.md 8.1 and 8.2).
//!
//! Two series, counted apart. The numbered ones are shared with the existing server: same versions, same names, same
//! result. Our own additions live in tables and indexes named `scd_*` and are recorded in `scd_migrations`, so that the
//! other server never takes one of ours for one of its own. Released files are never edited; a change is a new file.

use std::fmt;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

/// The version this program brings a file to.
pub const VERSION: u32 = 13;

/// The newest version this program works with; what lies above [`VERSION`] is left as found.
pub const VERSION_ACCEPTED_MAX: u32 = 16;

const _: () = assert!(NUMBERED.len() == VERSION as usize && VERSION <= VERSION_ACCEPTED_MAX);

/// One step of a series.
#[derive(Debug)]
pub struct Migration {
    /// Position in its series, from 1, without gaps.
    pub version: u32,
    /// The `name` column of its row, and the end of its file's name.
    pub name: &'static str,
    sql: &'static str,
    /// What must be in the file once this step has run; asked for our own steps only, because another program that
    /// rebuilds a table takes our indexes with it.
    creates: &'static [&'static str],
}

macro_rules! series {
    ($folder:literal: $($version:literal $name:literal $file:literal [$($creates:literal),*])+) => {
        &[$(Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../../", $folder, $file)),
            creates: &[$($creates),*],
        }),+]
    };
}

/// Versions 1 to 13, as the existing server numbers and names them.
#[rustfmt::skip]
pub const NUMBERED: &[Migration] = series! { "migrations/":
     1 "initial"                                "0001_initial.sql"                                []
     2 "add_user_table"                         "0002_add_user_table.sql"                         []
     3 "user_created_channels"                  "0003_user_created_channels.sql"                  []
     4 "add_discovered_server"                  "0004_add_discovered_server.sql"                  []
     5 "add_ssh_keys"                           "0005_add_ssh_keys.sql"                           []
     6 "add_channel_count_to_discovered_server" "0006_add_channel_count_to_discovered_server.sql" []
     7 "add_admin_tables"                       "0007_add_admin_tables.sql"                       []
     8 "add_user_channel_state"                 "0008_add_user_channel_state.sql"                 []
     9 "fix_user_channel_state_nulls"           "0009_fix_user_channel_state_nulls.sql"           []
    10 "add_subchannels"                        "0010_add_subchannels.sql"                        []
    11 "add_direct_messages"                    "0011_add_direct_messages.sql"                    []
    12 "dm_invite_session_support"              "0012_dm_invite_session_support.sql"              []
    13 "channel_participants"                   "0013_channel_participants.sql"                   []
};

/// Our additions. Each can be run again at any time.
#[rustfmt::skip]
pub const OWN: &[Migration] = series! { "migrations/own/":
    1 "login_alias"       "0001_login_alias.sql"       ["scd_login_alias", "scd_login_alias_user"]
    2 "origin"            "0002_origin.sql"            ["scd_origin"]
    3 "message_roots"     "0003_message_roots.sql"     ["scd_message_roots"]
    4 "unrooted_messages" "0004_unrooted_messages.sql" ["scd_unrooted_messages"]
    5 "message_threads"   "0005_message_threads.sql"   ["scd_message_threads"]
    6 "message_places"    "0006_message_places.sql"    ["scd_message_places"]
    7 "message_versions"  "0007_message_versions.sql"  ["scd_message_versions"]
    8 "nickname_nocase"   "0008_nickname_nocase.sql"   ["scd_user_nickname_nocase", "scd_login_alias_nocase"]
    9 "probe"             "0009_probe.sql"             ["scd_probe"]
   10 "direct_messages"   "0010_direct_messages.sql"   ["scd_dm_invite", "scd_dm_former", "scd_dm_former_channel", "scd_dm_former_user"]
   11 "shadowed"          "0011_shadowed.sql"          ["scd_shadowed", "scd_shadowed_ban", "scd_ban_shadow"]
   12 "admin_grant"       "0012_admin_grant.sql"       ["scd_admin_grant"]
};

/// Which of the two series a migration belongs to, and with that, where it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    Numbered,
    Own,
}

impl Series {
    fn ledger(self) -> &'static str {
        match self {
            Self::Numbered => "schema_migrations",
            Self::Own => "scd_migrations",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Numbered => "migration",
            Self::Own => "own migration",
        })
    }
}

/// Why a file could not be brought up to date. The transaction was rolled back, migrations before it stay.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error("{series} {version} ({name}) failed: {source}")]
    Step { series: Series, version: u32, name: &'static str, source: rusqlite::Error },
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// The numbered migrations that a file of `version` still needs, in order.
pub fn pending(version: u32) -> &'static [Migration] {
    let done = NUMBERED.partition_point(|migration| migration.version <= version);
    &NUMBERED[done..]
}

/// Our own migrations that are not recorded, or whose tables or indexes have gone.
pub fn pending_own(conn: &Connection) -> rusqlite::Result<Vec<&'static Migration>> {
    let mut pending = Vec::new();
    for migration in OWN {
        if !is_in_place(conn, migration)? {
            pending.push(migration);
        }
    }
    Ok(pending)
}

/// Applies the numbered migrations above `from`, up to and including `to`, each in its own transaction with its row.
/// `now_ms` is recorded as `applied_at`.
///
/// # Errors
/// Stops at the first migration that fails. The file is then of the version before it.
pub fn migrate(conn: &Connection, from: u32, to: u32, now_ms: i64) -> Result<(), MigrationError> {
    for migration in pending(from).iter().take_while(|migration| migration.version <= to) {
        apply(conn, Series::Numbered, migration, now_ms)?;
    }
    Ok(())
}

/// Applies `migrations` of our own series like [`migrate`] does. Needs a file of at least [`VERSION`].
///
/// # Errors
/// Stops at the first migration that fails.
pub fn migrate_own(conn: &Connection, migrations: &[&'static Migration], now_ms: i64) -> Result<(), MigrationError> {
    for migration in migrations {
        apply(conn, Series::Own, migration, now_ms)?;
    }
    Ok(())
}

/// Builds the whole schema in an empty database, and what `finish` adds to it, in one transaction: a crash leaves an
/// empty file, never one that looks like an old file of somebody else's.
///
/// # Errors
/// Nothing is kept when any step or `finish` fails.
pub fn create(
    conn: &Connection,
    now_ms: i64,
    finish: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> Result<(), MigrationError> {
    without_foreign_keys(conn, || {
        let transaction = begin(conn)?;
        for (series, migrations) in [(Series::Numbered, NUMBERED), (Series::Own, OWN)] {
            for migration in migrations {
                install(&transaction, series, migration, now_ms).map_err(failed(series, migration))?;
            }
        }
        finish(&transaction)?;
        transaction.commit()?;
        NUMBERED.iter().for_each(|migration| announce(Series::Numbered, migration));
        OWN.iter().for_each(|migration| announce(Series::Own, migration));
        Ok(())
    })
}

fn apply(conn: &Connection, series: Series, migration: &Migration, now_ms: i64) -> Result<(), MigrationError> {
    let run = || {
        let transaction = begin(conn)?;
        install(&transaction, series, migration, now_ms)?;
        transaction.commit()
    };
    let outcome =
        if migration.sql.starts_with("-- @foreign_keys=off") { without_foreign_keys(conn, run) } else { run() };
    outcome.map_err(failed(series, migration))?;
    announce(series, migration);
    Ok(())
}

fn announce(series: Series, migration: &Migration) {
    let Migration { version, name, .. } = migration;
    match series {
        Series::Numbered => tracing::info!("Applied migration {version}: {name}"),
        Series::Own => tracing::info!("applied own migration {version}: {name}"),
    }
}

fn install(conn: &Connection, series: Series, migration: &Migration, now_ms: i64) -> rusqlite::Result<()> {
    let ledger = series.ledger();
    conn.execute_batch(migration.sql)?;
    conn.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS {ledger} (
            version INTEGER PRIMARY KEY, name TEXT NOT NULL, applied_at INTEGER NOT NULL)"
    ))?;
    conn.execute(
        &format!("INSERT OR REPLACE INTO {ledger} (version, name, applied_at) VALUES (?1, ?2, ?3)"),
        params![migration.version, migration.name, now_ms],
    )?;
    Ok(())
}

pub(super) fn begin(conn: &Connection) -> rusqlite::Result<Transaction<'_>> {
    Transaction::new_unchecked(conn, TransactionBehavior::Immediate)
}

/// Runs `run` with foreign keys off on this very connection, and turns them on afterwards whatever came out. Not to be
/// called inside a transaction.
pub(super) fn without_foreign_keys<T, E: From<rusqlite::Error>>(
    conn: &Connection,
    run: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    // Inside a transaction SQLite ignores the switch without a word, and a rebuild would then cascade.
    assert!(conn.is_autocommit(), "foreign keys cannot be switched inside a transaction");
    conn.pragma_update(None, "foreign_keys", false)?;
    let outcome = run();
    conn.pragma_update(None, "foreign_keys", true)?;
    outcome
}

fn failed(series: Series, migration: &Migration) -> impl FnOnce(rusqlite::Error) -> MigrationError {
    let Migration { version, name, .. } = *migration;
    move |source| MigrationError::Step { series, version, name, source }
}

fn is_in_place(conn: &Connection, migration: &Migration) -> rusqlite::Result<bool> {
    Ok(is_recorded(conn, migration.version)? && all_exist(conn, migration.creates)?)
}

fn is_recorded(conn: &Connection, version: u32) -> rusqlite::Result<bool> {
    let ledger = Series::Own.ledger();
    Ok(all_exist(conn, &[ledger])?
        && conn.prepare(&format!("SELECT 1 FROM {ledger} WHERE version = ?1"))?.exists([version])?)
}

fn all_exist(conn: &Connection, names: &[&str]) -> rusqlite::Result<bool> {
    let mut statement = conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = ?1")?;
    for name in names {
        if !statement.exists([name])? {
            return Ok(false);
        }
    }
    Ok(true)
}
