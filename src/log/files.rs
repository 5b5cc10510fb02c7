//! Destinations that are streams of bytes: the log files and standard output.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::Level;

use super::queue::Line;
use super::writer::Destination;
use crate::clock::{self, Timestamp};

/// Only the group may look, and nobody else (DESIGN.md, ports and files).
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;

/// The payload buffer is kept between batches up to this size, bytes.
const BUFFER_KEPT_BYTES_MAX: usize = 256 * 1024;

/// One log file: its name, what it holds, and how it begins.
struct FileKind {
    name: &'static str,
    truncated_at_start: bool,
    marked_at_start: bool,
    only_with_debug: bool,
    holds: fn(&Line) -> bool,
}

/// The log files (OBSERVABILITY.md 4). The first one is where losses of the queue are told.
const FILES: [FileKind; 3] = [
    FileKind {
        name: "server.log",
        truncated_at_start: true,
        marked_at_start: false,
        only_with_debug: false,
        holds: |line| line.chosen,
    },
    FileKind {
        name: "errors.log",
        truncated_at_start: false,
        marked_at_start: true,
        only_with_debug: false,
        holds: |line| line.level == Level::ERROR,
    },
    FileKind {
        name: "debug.log",
        truncated_at_start: false,
        marked_at_start: false,
        only_with_debug: true,
        holds: |line| line.level <= Level::DEBUG,
    },
];

/// Opens the files of a run that starts `now` in `directory`, which is made when missing.
///
/// # Errors
/// When one of them cannot be opened: the files of a run lie together or not at all.
pub(super) fn open_all(directory: &Path, debug: bool, now: Timestamp) -> io::Result<Vec<Box<dyn Destination>>> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
    let kinds = FILES.iter().filter(|kind| debug || !kind.only_with_debug);
    kinds.map(|kind| Ok(Box::new(LogFile::start(directory, kind, now)?) as Box<dyn Destination>)).collect()
}

struct LogFile {
    path: PathBuf,
    holds: fn(&Line) -> bool,
    stream: Stream,
}

impl LogFile {
    fn start(directory: &Path, kind: &FileKind, now: Timestamp) -> io::Result<Self> {
        let path = directory.join(kind.name);
        let mut stream = Stream::new(open(&path, kind.truncated_at_start)?);
        if kind.marked_at_start {
            let marker = format!("=== Server started at {} ===\n", clock::rfc3339_local(now, clock::zone()));
            // A full disk takes the marker like any line, and is no reason not to start.
            stream.append([marker.as_bytes()]);
        }
        Ok(Self { path, holds: kind.holds, stream })
    }
}

/// Always in append mode, so that a file emptied in place by a rotation tool does not keep its hole.
fn open(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(truncate).mode(FILE_MODE).custom_flags(libc::O_APPEND);
    options.open(path)
}

impl Destination for LogFile {
    fn deliver(&mut self, lines: &[Line]) -> u64 {
        self.stream.append(lines.iter().filter(|line| (self.holds)(line)).map(|line| &*line.bytes))
    }

    fn reopen(&mut self) {
        match open(&self.path, false) {
            Ok(file) => self.stream = Stream::new(file),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "log file not reopened, keeping the old one")
            }
        }
    }
}

/// Standard output. A reader that stopped reading blocks this destination's thread and nothing else.
pub(super) struct Console(Stream);

impl Console {
    pub(super) fn new(stdout: File) -> Self {
        Self(Stream::new(stdout))
    }
}

impl Destination for Console {
    fn deliver(&mut self, lines: &[Line]) -> u64 {
        self.0.append(lines.iter().map(|line| &*line.bytes))
    }
}

/// Whole lines into a descriptor, one write for all if it takes them.
struct Stream {
    file: File,
    /// The last write ended inside a line.
    torn: bool,
    payload: Vec<u8>,
}

impl Stream {
    fn new(file: File) -> Self {
        Self { file, torn: false, payload: Vec::new() }
    }

    /// Writes `lines`, each of which ends with its only newline; how many of them are not whole in the file.
    fn append<'a>(&mut self, lines: impl IntoIterator<Item = &'a [u8]>) -> u64 {
        self.payload.clear();
        lines.into_iter().for_each(|line| self.payload.extend_from_slice(line));
        if self.payload.is_empty() {
            return 0;
        }
        let mended = usize::from(self.torn);
        if self.torn {
            self.payload.insert(0, b'\n');
        }
        let written = self.write_payload();
        if written > 0 {
            self.torn = self.payload[written - 1] != b'\n';
        }
        let lost = self.payload[written.max(mended)..].iter().filter(|byte| **byte == b'\n').count();
        self.payload.shrink_to(BUFFER_KEPT_BYTES_MAX);
        lost as u64
    }

    /// How many bytes went out before the first refusal.
    fn write_payload(&mut self) -> usize {
        let mut written = 0;
        while written < self.payload.len() {
            match self.file.write(&self.payload[written..]) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_line_cut_by_a_full_disk_does_not_swallow_the_next_one() {
        let (full_soon, mut reader) = UnixStream::pair().unwrap();
        full_soon.set_nonblocking(true).unwrap();
        let mut stream = Stream::new(File::from(OwnedFd::from(full_soon)));

        let line = [&[b'x'; 999][..], b"\n"].concat();
        let sent = 10_000;
        let lost = stream.append((0..sent).map(|_| &line[..]));
        assert!(0 < lost && lost < sent, "the buffer takes some of it: {lost}");
        assert_eq!(stream.append([&line[..]]), 1, "still full");

        // As many bytes as are there: whole lines and perhaps the beginning of one.
        let mut kept = vec![0; 1 << 24];
        let taken = reader.read(&mut kept).unwrap();
        assert_eq!(stream.append([&b"back\n"[..]]), 0);
        drop(stream);
        kept.truncate(taken);
        reader.read_to_end(&mut kept).unwrap();

        let text = String::from_utf8(kept).unwrap();
        let whole = text.lines().filter(|kept| kept.len() == 999).count() as u64;
        assert_eq!(whole, sent - lost);
        assert_eq!(text.lines().last(), Some("back"));
    }
}
