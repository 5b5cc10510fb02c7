//! A real browser, without a window: a page of ours in it speaks with servers by WebSocket, and does what the test says.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde_json::{Value, json};
use superchat::supervise;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use super::clock;

/// How long a browser may take to start on a busy machine.
const START: Duration = Duration::from_secs(60);

/// How long the page may take for what it is told.
const PATIENCE: Duration = Duration::from_secs(20);

const PAGE: &str = include_str!("browser/page.html");

/// A socket that the page opened to the test.
type FromPage = WebSocket<TcpStream>;

/// Chromium with the page open. Ends when dropped.
pub struct Browser {
    chromium: Child,
    control: FromPage,
    sockets: Receiver<(String, FromPage)>,
    opened: usize,
    _profile: TempDir,
}

impl Browser {
    /// # Panics
    /// Without chromium, or when it does not open the page.
    pub fn open() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let page = format!("http://{}/", listener.local_addr().unwrap());
        let (sender, sockets) = sync_channel(8);
        supervise::spawn("page-server", move || serve_pages(&listener, &sender)).unwrap();
        let mut chromium = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            // Nothing but the page and its servers is anybody's business.
            .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(page)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("apt-get install chromium: {error}"));
        let control = sockets.recv_timeout(START).map(|(_, control)| control).unwrap_or_else(|error| {
            let _already_gone = chromium.kill();
            panic!("chromium did not open the page: {error}, {:?}", chromium.wait())
        });
        Self { chromium, control, sockets, opened: 0, _profile: profile }
    }

    /// A socket whose bytes the page carries to the server and back.
    pub fn relay(&mut self, server: SocketAddr) -> FromPage {
        self.ask("relay", server)
    }

    /// The page's own conversation with the server.
    pub fn talk(&mut self, server: SocketAddr) -> Talk {
        Talk(self.ask("talk", server))
    }

    fn ask(&mut self, what: &str, server: SocketAddr) -> FromPage {
        self.opened += 1;
        let path = format!("/{what}/{}", self.opened);
        self.control.send(Message::text(format!("{what} {path} ws://{server}/ws"))).unwrap();
        let (opened, socket) = self.sockets.recv_timeout(PATIENCE).expect("the page does as it is told");
        assert_eq!(opened, path);
        socket
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _already_gone = self.chromium.kill();
        let _status = self.chromium.wait();
    }
}

/// Messages that the page writes and reads as frames.
pub struct Talk(FromPage);

impl Talk {
    pub fn say(&mut self, name: &str, fields: Value) {
        self.0.send(Message::text(json!({ "type": name, "fields": fields }).to_string())).unwrap();
    }

    /// The next message of that type; what comes before it is passed over.
    ///
    /// # Panics
    /// When the page could not read it to its end, or it does not come.
    pub fn hear(&mut self, name: &str) -> Value {
        let start = clock::instant();
        loop {
            let left = PATIENCE.checked_sub(start.elapsed()).unwrap_or_else(|| panic!("no {name}"));
            self.0.get_ref().set_read_timeout(Some(left)).unwrap();
            let message = self.0.read().unwrap_or_else(|error| panic!("no {name}: {error}"));
            let message: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
            assert_ne!(message["type"], "COMPRESSED", "a page of version 1 cannot read this");
            if message["type"] == name {
                assert_eq!(message["unread"], 0, "{message}");
                return message["fields"].clone();
            }
        }
    }

    /// The answer to a request.
    pub fn ask(&mut self, name: &str, fields: Value, answer: &str) -> Value {
        self.say(name, fields);
        self.hear(answer)
    }

    /// The server ended the conversation, and the page saw it.
    pub fn is_over(&mut self) -> bool {
        self.0.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        loop {
            match self.0.read() {
                Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

/// A browser opens connections ahead of time, so each has a thread.
fn serve_pages(listener: &TcpListener, sockets: &SyncSender<(String, FromPage)>) {
    for stream in listener.incoming() {
        let (stream, sockets) = (stream.unwrap(), sockets.clone());
        supervise::spawn("page-conn", move || {
            // The browser may have left without a word, and the test may be over.
            let _over = serve_page(stream, &sockets);
        })
        .unwrap();
    }
}

fn serve_page(mut stream: TcpStream, sockets: &SyncSender<(String, FromPage)>) -> Option<()> {
    let mut head = [0; 4096];
    let seen = stream.peek(&mut head).ok().filter(|seen| *seen > 0)?;
    let path = String::from_utf8_lossy(&head[..seen]).split(' ').nth(1)?.to_owned();
    if path == "/" {
        let read = stream.read(&mut head).ok()?;
        debug_assert!(read > 0);
        let length = PAGE.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        return stream.write_all((head + PAGE).as_bytes()).ok();
    }
    let socket = tungstenite::accept(stream).ok()?;
    sockets.send((path, socket)).ok()
}
