//! Entries for systemd's journal in its native protocol, and whether standard output leads there already.
//!
//! The protocol is one datagram per entry: `KEY=value`, newline, and so on; a value with a newline in it follows its key
//! as newline, length (64 bit, little endian), bytes, newline. Ours are bounded far below what a datagram takes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::Level;

use super::format::push_text;
use super::queue::Line;
use super::record::Record;
use super::writer::Destination;
use crate::clock;

/// `journalctl -t scd` finds us by this name.
const IDENTIFIER: &str = "scd";

/// Longer names the journal ignores.
const KEY_BYTES_MAX: usize = 64;

/// The journal's socket. It is addressed anew with every entry, so a restarted journal is found again.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The journal behind the socket at `path`, if there is one.
    pub(super) fn find(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
        let socket = found.then(UnixDatagram::unbound)?.ok()?;
        Some(Self { socket, path: path.to_owned() })
    }

    fn send(&self, entry: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send_to(entry, &self.path) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome.map(drop),
            }
        }
    }
}

impl Destination for Journal {
    /// Waits as long as the journal does not read.
    fn deliver(&mut self, lines: &[Line]) -> u64 {
        lines.iter().filter(|line| self.send(&line.bytes).is_err()).count() as u64
    }
}

/// The record as a native entry. MESSAGE is the text line without time and level, so a reader of `journalctl` sees the
/// fields, too; the entry's own time is when the journal got it, ours is beside it.
pub(super) fn entry(record: &Record) -> Vec<u8> {
    let mut message = String::new();
    push_text(&mut message, record);
    let mut out = Vec::with_capacity(512);
    push(&mut out, "MESSAGE", &message);
    push(&mut out, "PRIORITY", priority(record.level));
    push(&mut out, "SYSLOG_IDENTIFIER", IDENTIFIER);
    push(&mut out, "TARGET", record.target);
    if let Some(file) = record.file {
        push(&mut out, "CODE_FILE", file);
    }
    if let Some(line) = record.line {
        push(&mut out, "CODE_LINE", &line.to_string());
    }
    push(&mut out, "SUPERCHAT_TIMESTAMP", &clock::rfc3339_utc(record.time).to_string());
    for (name, value) in record.fields.ordered() {
        push(&mut out, &key(name), &value.to_string());
    }
    out
}

/// Syslog's severities; INFO is informational (6), not a notice.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// The journal takes A-Z, 0-9 and the underscore in names.
fn key(name: &str) -> String {
    let legal = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' });
    "SUPERCHAT_".chars().chain(legal).take(KEY_BYTES_MAX).collect()
}

fn push(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// Whether `stdout` leads to the journal: systemd names the device and inode of the stream in `JOURNAL_STREAM`. It names
/// standard error's when the two have a stream each, which then both are sockets.
pub(super) fn is_stream(journal_stream: &str, stdout: &File) -> bool {
    let Ok(out) = stdout.metadata() else { return false };
    let stderr_is = || {
        let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
        stderr.and_then(|file| file.metadata()).is_ok_and(|metadata| is_named(journal_stream, &metadata))
    };
    is_named(journal_stream, &out) || (out.file_type().is_socket() && stderr_is())
}

fn is_named(journal_stream: &str, metadata: &fs::Metadata) -> bool {
    journal_stream == format!("{}:{}", metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::super::SECURITY;
    use super::super::record::{Fields, Value};
    use super::*;
    use crate::clock::Timestamp;

    fn record(level: Level, target: &'static str, message: &str, named: &[(&'static str, Value)]) -> Record {
        Record {
            time: Timestamp::from_microsecond(1_759_926_615_123_456).unwrap(),
            level,
            target,
            file: Some("src/net.rs"),
            line: Some(7),
            fields: Fields::own(message, named.iter().cloned()),
        }
    }

    #[test]
    fn an_entry_is_exact_to_the_byte() {
        let named = [
            ("user", Value::Text("a\nb".to_owned())),
            ("session", Value::Unsigned(5)),
            ("http.status-code", Value::Signed(404)),
        ];
        let expected = [
            "MESSAGE=two\\nlines session=5 user=\"a\\nb\" http.status-code=404\n",
            "PRIORITY=4\nSYSLOG_IDENTIFIER=scd\nTARGET=superchat::net\nCODE_FILE=src/net.rs\nCODE_LINE=7\n",
            "SUPERCHAT_TIMESTAMP=2025-10-08T12:30:15.123456Z\nSUPERCHAT_SESSION=5\n",
            "SUPERCHAT_USER\n\u{3}\0\0\0\0\0\0\0a\nb\nSUPERCHAT_HTTP_STATUS_CODE=404\n",
        ];
        let entry = entry(&record(Level::WARN, "superchat::net", "two\nlines", &named));
        assert_eq!(String::from_utf8(entry).unwrap(), expected.concat());
    }

    #[test]
    fn severities_and_targets_are_those_of_the_contract() {
        let severities = [(Level::ERROR, 3), (Level::WARN, 4), (Level::INFO, 6), (Level::DEBUG, 7), (Level::TRACE, 7)];
        for (level, priority) in severities {
            let entry = String::from_utf8(entry(&record(level, SECURITY, "hi", &[]))).unwrap();
            assert!(entry.contains(&format!("\nPRIORITY={priority}\n")), "{entry}");
            assert!(entry.contains("\nTARGET=security\n"), "{entry}");
        }
    }

    #[test]
    fn names_fit_what_the_journal_takes() {
        assert_eq!(key("session"), "SUPERCHAT_SESSION");
        assert_eq!(key(&"x".repeat(100)).len(), KEY_BYTES_MAX);
    }

    #[test]
    fn only_the_named_stream_is_the_journal() {
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        assert!(is_stream(&format!("{}:{}", metadata.dev(), metadata.ino()), &file));
        assert!(!is_stream(&format!("{}:{}", metadata.dev(), metadata.ino() + 1), &file));
        assert!(!is_stream("", &file));
    }
}
