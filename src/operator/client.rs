//! `scd admin`: one request to the running server, and its answer for people or scripts.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use super::{LINE_BYTES_MAX, Order, Reply, Request, Table, socket};

/// How long an answer may take; the server gives up earlier.
const PATIENCE: Duration = Duration::from_secs(90);

/// Why nothing was done.
#[derive(Debug, Error)]
pub enum AdminError {
    #[error("no server runs here with {}: nothing answers on {}", .database.display(), .tried)]
    NoServer { database: PathBuf, tried: String },
    #[error("{} is for root and the server's own user: try sudo", .0.display())]
    Denied(PathBuf),
    #[error("cannot speak to the server on {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Refused(String),
}

/// Has the server that keeps `database` do it; `socket` is where the configuration says it listens, if it does.
///
/// # Errors
/// [`AdminError`].
pub fn ask(database: &Path, socket: Option<&Path>, order: Order) -> Result<Reply, AdminError> {
    let database = std::path::absolute(database).unwrap_or_else(|_| database.to_owned());
    let places = socket.map_or_else(|| socket::candidates(&database).to_vec(), |path| vec![path.to_owned()]);
    let mut denied = None;
    for path in &places {
        match UnixStream::connect(path) {
            Ok(stream) => return speak(path, &stream, &Request { database, order }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = Some(path),
            Err(_) => {}
        }
    }
    if let Some(path) = denied {
        return Err(AdminError::Denied(path.clone()));
    }
    let tried = places.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ");
    Err(AdminError::NoServer { database, tried })
}

fn speak(path: &Path, stream: &UnixStream, request: &Request) -> Result<Reply, AdminError> {
    let failed = |source| AdminError::Io { path: path.to_owned(), source };
    let talk = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let mut writing = stream;
        writing.write_all(&line)?;
        let mut answer = Vec::new();
        BufReader::new(stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut answer)?;
        if answer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"));
        }
        Ok(serde_json::from_slice(&answer)?)
    };
    match talk().map_err(failed)? {
        Reply::Refused(text) => Err(AdminError::Refused(text)),
        reply => Ok(reply),
    }
}

/// The answer for people: a line, or a table in columns. No character of it can do anything to a terminal.
#[must_use]
pub fn readable(reply: &Reply) -> String {
    match reply {
        Reply::Done(text) | Reply::Refused(text) => format!("{}\n", harmless(text)),
        Reply::Table(table) => in_columns(table),
    }
}

fn in_columns(Table { columns, rows }: &Table) -> String {
    let header: Vec<String> = columns.iter().map(|column| column.replace('_', " ").to_uppercase()).collect();
    let rows = rows.iter().map(|row| row.iter().map(cell).collect::<Vec<_>>());
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => harmless(text),
        other => other.to_string(),
    }
}

fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_is_aligned_and_shows_control_characters_as_nothing() {
        let rows = vec![vec![json!("ann"), json!(7), json!(null)], vec![json!("b\u{1b}[2J\n"), json!(12), json!(true)]];
        let columns = ["nickname", "user_id", "shadow"].map(str::to_owned).to_vec();
        let shown = readable(&Reply::Table(Table { columns, rows }));
        assert_eq!(shown, "NICKNAME  USER ID  SHADOW\nann       7        -\nb\u{fffd}[2J\u{fffd}    12       yes\n");
    }

    #[test]
    fn nobody_answers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sock");
        let error = ask(&folder.path().join("x.db"), Some(&path), Order::Sessions).unwrap_err();
        assert!(matches!(&error, AdminError::NoServer { .. }), "{error}");
        assert!(error.to_string().contains("nothing answers on"), "{error}");
    }
}
