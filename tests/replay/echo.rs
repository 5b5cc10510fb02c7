//! A server that knows its lines: it plays what the capture's server said, with other ids. The player is tested on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use serde_json::Value;
use superchat::wire::ClientMessage;
use superchat::wire::frame::Frame as WireFrame;

use super::ids::{Kind, map_fields};
use super::script::{Frame, Item, Script, Sent, What};
use crate::support::link::{Fields, encode};

/// The listening address and the thread that plays; it ends with the script and returns what clients did wrong.
pub fn serve(script: Script) -> (SocketAddr, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let echo = Echo { listener, conns: BTreeMap::new(), introduced: BTreeSet::new(), faults: Vec::new() };
    let thread = superchat::supervise::spawn("echo", move || echo.play(&script)).unwrap();
    (address, thread)
}

struct Echo {
    listener: TcpListener,
    conns: BTreeMap<u32, (TcpStream, Vec<u8>)>,
    /// Ids that the server has told; only those mean anything in requests.
    introduced: BTreeSet<(Kind, String)>,
    faults: Vec<String>,
}

impl Echo {
    fn play(mut self, script: &Script) -> Vec<String> {
        for item in &script.items {
            match &item.what {
                What::Open => {
                    let stream = self.listener.accept().unwrap().0;
                    stream.set_nodelay(true).unwrap();
                    self.conns.insert(item.conn, (stream, Vec::new()));
                }
                What::Send(sent) => self.hear(item, sent),
                What::HangUp => self.answer_fences(item.conn),
                What::Stop | What::Accept => {}
                What::Receive(frame) => self.say(item.conn, frame),
                What::Close { .. } => drop(self.conns.remove(&item.conn)),
            }
        }
        let open: Vec<u32> = self.conns.keys().copied().collect();
        open.into_iter().for_each(|conn| self.answer_fences(conn));
        self.faults
    }

    fn say(&mut self, conn: u32, frame: &Frame) {
        let introduced = &mut self.introduced;
        let fields = map_fields(&frame.name, &frame.fields, &mut |kind, id| {
            introduced.insert((kind, id.to_owned()));
            shifted(kind, id)
        });
        let bytes = encode(&frame.name, frame.version, u8::from(frame.compressed), &fields);
        if let Some((stream, _)) = self.conns.get_mut(&conn) {
            // A client that has left early shows as a difference on its side.
            let _left = stream.write_all(&bytes);
        }
    }

    /// Reads as many bytes as were recorded and checks that they mean the same.
    fn hear(&mut self, item: &Item, sent: &Sent) {
        let Some(bytes) = self.read(item.conn, sent.bytes.len(), sent.fields.is_some()) else {
            self.faults.push(format!("{item}: did not come"));
            return;
        };
        let Some(recorded) = &sent.fields else {
            if bytes != sent.bytes {
                self.faults.push(format!("{item}: came otherwise"));
            }
            return;
        };
        let wanted = map_fields(&sent.name, recorded, &mut |kind, id| match kind {
            Kind::Time => id.to_owned(),
            kind if self.introduced.contains(&(kind, id.to_owned())) => shifted(kind, id),
            _ => id.to_owned(),
        });
        let came = read_fields(&bytes);
        if without_times(&sent.name, &came) != without_times(&sent.name, &wanted) {
            self.faults.push(format!("{item}: came as {}", Value::Object(came)));
        }
    }

    /// The next whole frame, or `count` bytes where they are none.
    fn read(&mut self, conn: u32, count: usize, whole: bool) -> Option<Vec<u8>> {
        use std::io::Read as _;
        let (stream, bytes) = self.conns.get_mut(&conn)?;
        loop {
            let length = match WireFrame::cut(bytes) {
                Ok(Some((_, rest))) if whole => Some(bytes.len() - rest.len()),
                _ if !whole && bytes.len() >= count => Some(count),
                _ => None,
            };
            if let Some(length) = length {
                return Some(bytes.drain(..length).collect());
            }
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return None,
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Answers PINGs until the client has left.
    fn answer_fences(&mut self, conn: u32) {
        while let Some(bytes) = self.read(conn, 0, true) {
            // A client that noticed a mistake may go on asking.
            let Some(timestamp) = read_fields(&bytes).remove("timestamp") else { continue };
            let fields = [("client_timestamp".into(), timestamp)].into_iter().collect();
            let pong = Frame { name: "PONG".into(), fields, version: 2, compressed: false, answers: None };
            self.say(conn, &pong);
        }
        self.conns.remove(&conn);
    }
}

fn read_fields(bytes: &[u8]) -> Fields {
    let (frame, _) = WireFrame::cut(bytes).unwrap().unwrap();
    let mut scratch = Vec::new();
    let payload = frame.unpack(&mut scratch).unwrap().payload;
    ClientMessage::read(frame.code, payload).unwrap().describe()
}

fn without_times(message: &str, fields: &Fields) -> Fields {
    map_fields(message, fields, &mut |kind, id| if kind == Kind::Time { "a time".into() } else { id.to_owned() })
}

/// Another number of the same kind; what every server has keeps its own.
fn shifted(kind: Kind, id: &str) -> String {
    let Ok(number) = id.parse::<u64>() else { return id.to_owned() };
    let by = match kind {
        _ if number == 0 => 0,
        Kind::Channel if number <= 5 => 0,
        Kind::Channel => 1_000,
        Kind::Message => 77 << 22,
        Kind::User => 40,
        Kind::Session => 500,
        Kind::Ban | Kind::Key | Kind::Invite | Kind::Challenge => 3,
        Kind::Time | Kind::Uptime => 12_345,
    };
    (number + by).to_string()
}
