//! Every profile of the release binary under load, in every way that Go's tool reads one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use superchat::ids::ChannelId;
use superchat::wire::client::{PostMessage, SubscribeChannel};
use superchat::wire::codec::Bounded;

use crate::free_address;
use crate::support::http::{exchange, get};
use crate::support::{Client, Server, Settings};
use crate::tool::{Row, Tool};

/// The forum `general`.
const FORUM: ChannelId = ChannelId(2);

macro_rules! profiles {
    ($($test:ident: $path:literal, $finds:literal;)+) => {$(
        #[test]
        fn $test() {
            Busy::start().check($path, $finds);
        }
    )+};
}

// What must be found in it somewhere, by its name.
profiles! {
    cpu: "profile?seconds=2", "superchat::";
    heap: "heap", "superchat::";
    allocs: "allocs", "superchat::";
    goroutine: "goroutine", "superchat::net::tcp::";
    block: "block", "superchat::";
    mutex: "mutex", "";
    threadcreate: "threadcreate", "superchat::supervise::";
}

/// A server of the release build that has something to do as long as this lives.
struct Busy {
    server: Server,
    profiles: SocketAddr,
    tool: Tool,
}

impl Busy {
    fn start() -> Self {
        let profiles = free_address();
        let settings = Settings::new()
            .program(release_binary())
            .set("admin", "profile_listen", profiles.to_string())
            // A server as small as this one has few allocations; one in 4 KiB is seen instead of one in 512.
            .environment("_RJEM_MALLOC_CONF", "lg_prof_sample:12");
        let server = Server::start(settings);
        for (path, value) in [("block?rate", 1), ("mutex?fraction", 1)] {
            let head = format!("POST /debug/pprof/{path}={value} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            assert_eq!(exchange(profiles, &head).status, 200, "{path}");
        }
        Self { server, profiles, tool: Tool::new() }
    }

    fn check(&self, path: &str, finds: &str) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (begun, beginning) = sync_channel(1);
            let posting = scope.spawn(|| post_until(&self.server, &done, begun));
            let finish = Finish(&done);
            beginning.recv().expect("the first message is posted");
            let (first, second) = (self.save(path, "first"), self.save(path, "second"));
            self.read_by_name(path, &first, finds);
            self.compare(path, &first, &second);
            self.fetch(path);
            drop(finish);
            posting.join().unwrap();
        });
    }

    fn read_by_name(&self, path: &str, file: &str, finds: &str) {
        let rows = self.tool.top(&[file]);
        let found = |row: &Row| row.name.contains(finds);
        assert!(finds.is_empty() || rows.iter().any(found), "{path}: no {finds}: {rows:?}");
        // An address in place of a name begins with its digits.
        let nameless: Vec<_> = rows.iter().filter(|row| row.name.starts_with("0x")).collect();
        assert!(nameless.len() * 10 <= rows.len(), "{path}: no names for {nameless:?}");
        if !finds.is_empty() {
            let listing = self.tool.pprof(&[&format!("-list={finds}"), file]);
            assert!(listing.contains("ROUTINE ======================== "), "{path}: {listing}");
            assert!(listing.contains("/src/"), "{path}: no lines of the source: {listing}");
        }
        let raw = self.tool.pprof(&["-raw", file]);
        assert!(raw.contains("Samples:\n") && raw.contains("Locations\n"), "{path}: {raw}");
        let picture = self.path("picture.svg");
        self.tool.pprof(&["-svg", &format!("-output={picture}"), file]);
        let picture = std::fs::read_to_string(picture).expect("-svg needs dot: apt-get install graphviz");
        assert!(picture.contains("<svg") && picture.trim_end().ends_with("</svg>"), "{path}");
    }

    fn compare(&self, path: &str, earlier: &str, later: &str) {
        for option in ["-base", "-diff_base"] {
            let text = self.tool.pprof(&["-top", &format!("{option}={earlier}"), later]);
            assert!(text.contains("Showing nodes accounting for"), "{path} {option}: {text}");
            let itself = self.tool.top(&[&format!("{option}={later}"), later]);
            assert!(itself.iter().all(|row| row.cum == 0.0), "{path} {option}: {itself:?}");
        }
    }

    /// By its own way of asking: for a number of seconds, and as a web server.
    fn fetch(&self, path: &str) {
        let (name, _) = path.split_once('?').unwrap_or((path, ""));
        let url = format!("http://{}/debug/pprof/{name}", self.profiles);
        let text = self.tool.pprof(&["-top", "-seconds=1", &url]);
        assert!(text.contains("Showing nodes accounting for"), "{path}: {text}");
        let served = self.tool.serve(&self.path("second"));
        for page in ["top", "flamegraph"] {
            let answer = served.get(&format!("/ui/{page}"));
            assert_eq!(answer.status, 200, "{path} {page}: {}", answer.body);
        }
    }

    fn save(&self, path: &str, name: &str) -> String {
        let answer = get(self.profiles, &format!("/debug/pprof/{path}"));
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let file = self.path(name);
        std::fs::write(&file, answer.bytes).unwrap();
        file
    }

    fn path(&self, name: &str) -> String {
        self.tool.path(name).to_str().unwrap().to_owned()
    }
}

/// Ends the posting, also when a check fails.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Posts to itself one message after the other, and says when the first was there.
fn post_until(server: &Server, done: &AtomicBool, begun: SyncSender<()>) {
    let mut client: Client = server.client_named("busy");
    client.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
    while !done.load(Ordering::Relaxed) {
        let content = Bounded(&b"something to do"[..]);
        client.send(PostMessage { channel_id: FORUM, subchannel_id: None, parent_id: None, content });
        client.expect_reply("MESSAGE_POSTED");
        client.expect_broadcast("NEW_MESSAGE");
        // Only the first is waited for.
        let _full = begun.try_send(());
    }
}

/// Built beforehand, because it takes minutes.
fn release_binary() -> PathBuf {
    let debug = Path::new(env!("CARGO_BIN_EXE_scd"));
    let binary = debug.ancestors().nth(2).unwrap().join("release/scd");
    assert!(binary.exists(), "{} is missing: cargo build --release --bin scd", binary.display());
    binary
}
