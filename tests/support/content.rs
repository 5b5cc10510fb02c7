//! What a database file holds, in a form that can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rusqlite::Connection;
use tempfile::TempDir;

/// Per table its columns and its rows; values as type and bytes, because they need not be UTF-8.
pub type Tables = BTreeMap<String, (Vec<String>, Vec<Vec<String>>)>;

pub fn tables(conn: &Connection) -> Tables {
    let names: Vec<String> =
        query(conn, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'");
    names
        .into_iter()
        .map(|table| {
            let columns: Vec<String> = query(conn, &format!("SELECT name FROM pragma_table_info('{table}')"));
            let rows = rows_of(conn, &table, &columns);
            (table, (columns, rows))
        })
        .collect()
}

pub fn rows_of(conn: &Connection, table: &str, columns: &[String]) -> Vec<Vec<String>> {
    let values: Vec<String> =
        columns.iter().map(|column| format!("typeof({column}) || ' ' || hex({column})")).collect();
    let has_rowid: bool =
        conn.query_row("SELECT NOT wr FROM pragma_table_list WHERE name = ?1", [table], |row| row.get(0)).unwrap();
    let order = if has_rowid { "rowid" } else { "1, 2" };
    let sql = format!("SELECT {} FROM {table} ORDER BY {order}", values.join(", "));
    let mut statement = conn.prepare(&sql).unwrap();
    let rows = statement.query_map([], |row| (0..columns.len()).map(|column| row.get(column)).collect()).unwrap();
    rows.map(Result::unwrap).collect()
}

/// An integer as [`rows_of`] shows it.
pub fn integer(digits: &str) -> String {
    let hex: String = digits.bytes().map(|digit| format!("{digit:02X}")).collect();
    format!("integer {hex}")
}

pub fn counters(conn: &Connection) -> Vec<(String, i64)> {
    let mut statement = conn.prepare("SELECT name, seq FROM sqlite_sequence ORDER BY 1").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

pub fn ledger(conn: &Connection) -> Vec<(u32, String, i64)> {
    let mut statement = conn.prepare("SELECT version, name, applied_at FROM schema_migrations ORDER BY 1").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Every table by name, as [`describe`] shows it.
pub fn described(conn: &Connection) -> BTreeMap<String, String> {
    let names: Vec<String> =
        query(conn, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'");
    names.into_iter().map(|table| (table.clone(), describe(conn, &table))).collect()
}

/// A table as SQLite understands it, however its SQL was written.
pub fn describe(conn: &Connection, table: &str) -> String {
    let columns = format!(
        "SELECT '  ' || rtrim(name || ' ' || type) || iif(\"notnull\", ' not null', '')
                || COALESCE(' default ' || dflt_value, '') || iif(pk, ' key', '')
         FROM pragma_table_info('{table}')"
    );
    let keys = format!(
        "SELECT '  ' || \"from\" || ' -> ' || \"table\" || ' ' || lower(on_delete)
         FROM pragma_foreign_key_list('{table}') ORDER BY 1"
    );
    let indexes = format!(
        "SELECT '  ' || iif(list.\"unique\", 'unique ', 'index ') || iif(list.origin = 'c', list.name, 'by constraint') || ' ('
                || (SELECT group_concat(COALESCE(name, '<expression>') || iif(\"desc\", ' desc', ''), ', ')
                    FROM pragma_index_xinfo(list.name) WHERE key) || ')'
                || COALESCE(' ' || substr(made.sql, instr(made.sql, 'WHERE')) , '')
         FROM pragma_index_list('{table}') AS list
         LEFT JOIN sqlite_schema AS made ON made.name = list.name AND list.partial ORDER BY 1"
    );
    let counted: Vec<bool> =
        query(conn, &format!("SELECT sql LIKE '%AUTOINCREMENT%' FROM sqlite_schema WHERE name = '{table}'"));
    let mut text = format!("{table}{}\n", if counted[0] { " (ids are never reused)" } else { "" });
    for line in [columns, keys, indexes].iter().flat_map(|sql| query::<String>(conn, sql)) {
        text += &format!("{line}\n");
    }
    text
}

pub fn query<T: rusqlite::types::FromSql>(conn: &Connection, sql: &str) -> Vec<T> {
    let mut statement = conn.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A copy of the database at `path`, its log included, to look at without touching the original; gone with the directory.
pub fn twin(path: &Path) -> (Connection, TempDir) {
    let directory = TempDir::new().unwrap();
    let copy = directory.path().join("twin.db");
    for suffix in ["", "-wal"] {
        let from = format!("{}{suffix}", path.display());
        if Path::new(&from).exists() {
            fs::copy(from, format!("{}{suffix}", copy.display())).unwrap();
        }
    }
    (Connection::open(copy).unwrap(), directory)
}
