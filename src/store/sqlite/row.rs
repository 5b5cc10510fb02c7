//! Values as they cross the border to SQLite: texts are bytes, and a cell that holds something odd does not hide its row.

use std::sync::Arc;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Error, Params, Row, ffi};

use crate::store::{Name, Refusal};

/// Bytes bound as TEXT: neither invalid UTF-8 nor a NUL inside changes them, and programs that ask for text find text.
#[derive(Clone, Copy)]
pub(super) struct Text<'a>(pub(super) &'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// The bytes of a TEXT or BLOB column; none for NULL and numbers.
pub(super) fn bytes<'row>(row: &'row Row<'_>, column: usize) -> rusqlite::Result<&'row [u8]> {
    match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(bytes),
        _ => Ok(&[]),
    }
}

pub(super) fn name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    bytes(row, column).map(Arc::from)
}

/// An INTEGER column, where NULL and texts count as absent.
pub(super) fn integer(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    match row.get_ref(column)? {
        ValueRef::Integer(value) => Ok(Some(value)),
        _ => Ok(None),
    }
}

/// An INTEGER column that is never NULL in a sound row, 0 in any other.
pub(super) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<i64> {
    integer(row, column).map(Option::unwrap_or_default)
}

/// An id column; `None` for NULL.
pub(super) fn id<T>(row: &Row<'_>, column: usize, from_sql: fn(i64) -> T) -> rusqlite::Result<Option<T>> {
    integer(row, column).map(|value| value.map(from_sql))
}

/// WIRE.md 6 knows two bits; a file may hold any number.
pub(super) fn flags(row: &Row<'_>, column: usize) -> rusqlite::Result<u8> {
    number(row, column).map(|value| value.to_le_bytes()[0])
}

/// Runs a statement that is prepared once per connection; how many rows it changed.
pub(super) fn execute(conn: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
    conn.prepare_cached(sql)?.execute(params)
}

/// The first row of a statement that is prepared once per connection.
pub(super) fn first<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    rows.next()?.map(read).transpose()
}

/// Whether a statement that is prepared once per connection finds a row.
pub(super) fn exists(conn: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<bool> {
    conn.prepare_cached(sql)?.exists(params)
}

/// All rows of a statement that is prepared once per connection.
pub(super) fn all<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    conn.prepare_cached(sql)?.query_map(params, read)?.collect()
}

/// Why a write was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// The rules say no.
    Refused(Refusal),
    /// The storage failed.
    Storage(Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Storage(error)
    }
}

/// Turns constraints of the schema into the refusals they stand for; every other error stays one.
pub(super) fn constraints(refusals: &[(i32, Refusal)]) -> impl FnOnce(Error) -> Failure {
    move |error| {
        let code = error.sqlite_error().map(|cause| cause.extended_code);
        match refusals.iter().find(|(constraint, _)| code == Some(*constraint)) {
            Some((_, refusal)) => Failure::Refused(*refusal),
            None => Failure::Storage(error),
        }
    }
}

pub(super) const FOREIGN_KEY: i32 = ffi::SQLITE_CONSTRAINT_FOREIGNKEY;
pub(super) const UNIQUE: i32 = ffi::SQLITE_CONSTRAINT_UNIQUE;

/// How SQLite would answer, in a file as it is made.
#[cfg(test)]
pub(super) fn plan(sql: &str, params: impl Params) -> String {
    use super::migrations;
    let conn = Connection::open_in_memory().unwrap();
    migrations::migrate(&conn, 0, migrations::VERSION, 1).unwrap();
    migrations::migrate_own(&conn, &migrations::pending_own(&conn).unwrap(), 1).unwrap();
    let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let lines = statement.query_map(params, |row| row.get::<_, String>("detail")).unwrap();
    lines.map(Result::unwrap).collect::<Vec<_>>().join("\n")
}
