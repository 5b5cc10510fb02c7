//! A capture as a script: steps to take, and what to wait for after them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use superchat::wire::json::from_hex;

use crate::support::link::{Fields, encode, shorten};

/// The reason of the DISCONNECT that tells of a shutdown: in a capture it is the only trace of the operator's signal.
const SHUTDOWN: &str = "Server shutting down for maintenance";

/// One capture, as a list of items that rules may rewrite.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    pub name: String,
    pub server_settings: Fields,
    pub items: Vec<Item>,
}

/// One thing that happens on one connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Place in the capture; an item added by a rule has that of its cause.
    pub index: usize,
    /// Milliseconds since the first event.
    pub t_ms: f64,
    /// Connection number.
    pub conn: u32,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Step: connect.
    Open,
    /// Step: let the server connect to us.
    Accept,
    /// Step: send a frame.
    Send(Sent),
    /// Step: end the sending side and wait for the server to notice.
    HangUp,
    /// Step: tell the server to stop.
    Stop,
    /// Wait for a frame.
    Receive(Frame),
    /// Wait for the end of the connection; with `idle_ms` not earlier than that long after its last sent frame.
    Close { idle_ms: Option<u64> },
}

/// A frame as a client sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sent {
    pub name: String,
    pub version: u8,
    pub flags: u8,
    pub bytes: Vec<u8>,
    /// `None` when the payload cannot be read.
    pub fields: Option<Fields>,
    /// The step is not taken before its recorded time: the pause is what the capture is about.
    pub paced: bool,
}

/// A frame to wait for.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub name: String,
    pub fields: Fields,
    pub version: u8,
    pub compressed: bool,
    /// Index of the step that this frame answers; answers come in order, other frames move between them.
    pub answers: Option<usize>,
}

impl Script {
    /// The server connects to somebody in it.
    pub fn is_dialled(&self) -> bool {
        self.items.iter().any(|item| item.what == What::Accept)
    }

    /// What the directory says of itself: its entry in the first list.
    pub fn own_entry(&self) -> Option<&Fields> {
        self.items.iter().find_map(|item| item.named("SERVER_LIST")?.fields["servers"][0].as_object())
    }
}

impl Item {
    pub fn is_step(&self) -> bool {
        !matches!(self.what, What::Receive(_) | What::Close { .. })
    }

    pub fn sent(&self) -> Option<&Sent> {
        if let What::Send(sent) = &self.what { Some(sent) } else { None }
    }

    pub fn frame(&self) -> Option<&Frame> {
        if let What::Receive(frame) = &self.what { Some(frame) } else { None }
    }

    /// The frame to wait for, if it has this name.
    pub fn named(&self, name: &str) -> Option<&Frame> {
        self.frame().filter(|frame| frame.name == name)
    }

    pub fn frame_mut(&mut self, name: &str) -> Option<&mut Frame> {
        match &mut self.what {
            What::Receive(frame) if frame.name == name => Some(frame),
            _ => None,
        }
    }

    /// A frame that a rule adds after this item.
    pub fn adding(&self, conn: u32, name: &str, fields: Fields, answers: Option<usize>) -> Self {
        let frame = Frame { name: name.into(), fields, version: 2, compressed: false, answers };
        Self { index: self.index, t_ms: self.t_ms, conn, what: What::Receive(frame) }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = |fields: &Fields| shorten(&Value::Object(fields.clone()).to_string());
        write!(f, "event {} on connection {}: ", self.index, self.conn)?;
        match &self.what {
            What::Open => write!(f, "connect"),
            What::Accept => write!(f, "let the server connect"),
            What::Send(Sent { name, fields: Some(sent), .. }) => write!(f, "send {name} {}", fields(sent)),
            What::Send(Sent { name, .. }) => write!(f, "send an unreadable {name}"),
            What::HangUp => write!(f, "hang up"),
            What::Stop => write!(f, "stop the server"),
            What::Receive(frame) => write!(f, "{} {}", frame.name, fields(&frame.fields)),
            What::Close { .. } => write!(f, "end of the connection"),
        }
    }
}

/// Steps taken in one go and what they lead to: a group ends where the next step follows something to wait for.
pub fn groups(items: &[Item]) -> Vec<Vec<Item>> {
    let mut groups: Vec<Vec<Item>> = Vec::new();
    for item in items {
        let starts = |group: &Vec<Item>| item.is_step() && group.last().is_some_and(|last| !last.is_step());
        if groups.last().is_none_or(starts) {
            groups.push(Vec::new());
        }
        groups.last_mut().expect("pushed above").push(item.clone());
    }
    groups
}

#[derive(Deserialize)]
struct Capture {
    name: String,
    server_settings: Fields,
    /// Who is who, where that is not plain: connection number to a description.
    #[serde(default)]
    connections: BTreeMap<u32, String>,
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    t_ms: f64,
    conn: u32,
    event: Option<String>,
    by: Option<String>,
    dir: Option<String>,
    #[serde(default)]
    frame_hex: String,
    #[serde(rename = "type", default)]
    name: String,
    #[serde(default)]
    version: u8,
    #[serde(default)]
    flags: u8,
    fields: Option<Fields>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/captures")
}

/// Names of all captures at hand.
pub fn names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let captures = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    captures.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

/// The capture called `name`, as it was recorded.
pub fn load(name: &str) -> Script {
    let text = std::fs::read(folder().join(name).with_extension("json")).unwrap();
    let capture: Capture = serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut questions = BTreeMap::new();
    let mut items = Vec::new();
    let mut stopped = false;
    let dialled = |conn: u32| capture.connections.get(&conn).is_some_and(|who| who.starts_with("directory -> "));
    let mut has_dialled = false;
    for (index, event) in capture.events.into_iter().enumerate() {
        has_dialled |= dialled(event.conn);
        let mut item = match dialled(event.conn) {
            true => reversed(item(index, event.reversed(), &mut questions)),
            false => item(index, event, &mut questions),
        };
        // What the server does with what it found out by itself, nobody is told.
        if let (What::Send(sent), true) = (&mut item.what, has_dialled) {
            sent.paced = !dialled(item.conn);
        }
        let shutdown = item.named("DISCONNECT").is_some_and(|frame| frame.fields["reason"] == SHUTDOWN);
        if shutdown && !stopped {
            stopped = true;
            items.push(Item { what: What::Stop, ..item.clone() });
        }
        items.push(item);
    }
    Script { name: capture.name, server_settings: capture.server_settings, items }
}

impl Event {
    /// On a connection that the server opened, what the capture calls the client is the server.
    fn reversed(mut self) -> Self {
        let other = |side: Option<String>| {
            side.map(|side| match side.as_str() {
                "c2s" => "s2c".to_owned(),
                "s2c" => "c2s".to_owned(),
                "server" => "client".to_owned(),
                _ => "server".to_owned(),
            })
        };
        (self.dir, self.by) = (other(self.dir), other(self.by));
        self
    }
}

fn reversed(item: Item) -> Item {
    match item.what {
        What::Open => Item { what: What::Accept, ..item },
        _ => item,
    }
}

/// Ports are other ones in every run: those of the server itself, and of the one that it connects to.
pub fn move_ports(script: &mut Script, ports: &BTreeMap<u64, u16>) {
    for item in &mut script.items {
        match &mut item.what {
            What::Receive(frame) => move_port(&mut frame.fields, ports),
            What::Send(Sent { name, version, flags, bytes, fields: Some(fields), .. }) => {
                let recorded = fields.clone();
                move_port(fields, ports);
                if *fields != recorded {
                    *bytes = encode(name, *version, *flags, fields);
                }
            }
            _ => {}
        }
    }
}

fn move_port(fields: &mut Fields, ports: &BTreeMap<u64, u16>) {
    for (name, value) in fields.iter_mut() {
        match value {
            Value::Array(items) => {
                items.iter_mut().filter_map(Value::as_object_mut).for_each(|item| move_port(item, ports))
            }
            value if name == "port" => {
                if let Some(port) = value.as_u64().and_then(|port| ports.get(&port)) {
                    *value = Value::from(*port);
                }
            }
            _ => {}
        }
    }
}

fn item(index: usize, event: Event, questions: &mut BTreeMap<u32, Questions>) -> Item {
    let open = questions.entry(event.conn).or_default();
    let what = match (event.event.as_deref(), event.by.as_deref(), event.dir.as_deref()) {
        (Some("open"), ..) => {
            open.push(index, "");
            What::Open
        }
        (Some("close"), Some("client"), _) => What::HangUp,
        (Some("close"), Some("server"), _) => What::Close { idle_ms: None },
        (None, _, Some("c2s")) => {
            open.push(index, &event.name);
            What::Send(Sent {
                // Bans end by the clock.
                paced: matches!(event.name.as_str(), "BAN_USER" | "LIST_BANS"),
                name: event.name,
                version: event.version,
                flags: event.flags,
                bytes: from_hex(&event.frame_hex).unwrap(),
                fields: event.fields,
            })
        }
        (None, _, Some("s2c")) => What::Receive(Frame {
            answers: open.answered_by(&event.name),
            name: event.name,
            fields: event.fields.expect("the server sends nothing unreadable"),
            version: event.version,
            compressed: event.flags & 1 != 0,
        }),
        other => panic!("event {index} is of an unknown kind: {other:?}"),
    };
    Item { index, t_ms: event.t_ms, conn: event.conn, what }
}

/// Requests of one connection that wait for their answer, oldest first.
#[derive(Default)]
struct Questions(Vec<(usize, String)>);

impl Questions {
    fn push(&mut self, index: usize, name: &str) {
        self.0.push((index, name.into()));
    }

    /// The request that a frame of this type answers. Requests that were passed over have no answer.
    fn answered_by(&mut self, name: &str) -> Option<usize> {
        let last = self.0.len().checked_sub(1)?;
        let fits = |(place, (_, request)): (usize, &(usize, String))| match name {
            "ERROR" => place == last || !is_silent(request),
            _ => answers_to(request).contains(&name),
        };
        let place = self.0.iter().enumerate().position(fits)?;
        self.0.drain(..=place).next_back().map(|(index, _)| index)
    }
}

/// Requests that are answered when they fail only, or not at all.
fn is_silent(request: &str) -> bool {
    answers_to(request).is_empty()
}

/// Which types answer a request, beside ERROR (WIRE.md 7). The request without a name is connecting.
fn answers_to(request: &str) -> &'static [&'static str] {
    match request {
        "" => &["SERVER_CONFIG"],
        "AUTH_REQUEST" => &["AUTH_RESPONSE"],
        "SET_NICKNAME" => &["NICKNAME_RESPONSE"],
        "REGISTER_USER" => &["REGISTER_RESPONSE"],
        "LIST_CHANNELS" => &["CHANNEL_LIST"],
        "JOIN_CHANNEL" => &["JOIN_RESPONSE"],
        "LEAVE_CHANNEL" => &["LEAVE_RESPONSE"],
        "CREATE_CHANNEL" => &["CHANNEL_CREATED"],
        "CREATE_SUBCHANNEL" => &["SUBCHANNEL_CREATED"],
        "LIST_MESSAGES" => &["MESSAGE_LIST"],
        "POST_MESSAGE" => &["MESSAGE_POSTED"],
        "EDIT_MESSAGE" => &["MESSAGE_EDITED"],
        "DELETE_MESSAGE" => &["MESSAGE_DELETED"],
        "ADD_SSH_KEY" => &["SSH_KEY_ADDED"],
        "CHANGE_PASSWORD" => &["PASSWORD_CHANGED"],
        "GET_USER_INFO" => &["USER_INFO"],
        "PING" => &["PONG"],
        "UPDATE_SSH_KEY_LABEL" => &["SSH_KEY_LABEL_UPDATED"],
        "DELETE_SSH_KEY" => &["SSH_KEY_DELETED"],
        "LIST_SSH_KEYS" => &["SSH_KEY_LIST"],
        "GET_SUBCHANNELS" => &["SUBCHANNEL_LIST"],
        "LIST_USERS" => &["USER_LIST"],
        "LIST_CHANNEL_USERS" => &["CHANNEL_USER_LIST"],
        "GET_UNREAD_COUNTS" => &["UNREAD_COUNTS"],
        "START_DM" => &["KEY_REQUIRED", "DM_PENDING", "DM_READY"],
        "ALLOW_UNENCRYPTED" => &["KEY_REQUIRED", "DM_READY"],
        "SUBSCRIBE_THREAD" | "UNSUBSCRIBE_THREAD" | "SUBSCRIBE_CHANNEL" | "UNSUBSCRIBE_CHANNEL" => &["SUBSCRIBE_OK"],
        "LIST_SERVERS" => &["SERVER_LIST"],
        "REGISTER_SERVER" => &["REGISTER_ACK"],
        "HEARTBEAT" => &["HEARTBEAT_ACK"],
        "VERIFY_REGISTRATION" => &["VERIFY_RESPONSE"],
        "BAN_USER" => &["USER_BANNED"],
        "BAN_IP" => &["IP_BANNED"],
        "UNBAN_USER" => &["USER_UNBANNED"],
        "UNBAN_IP" => &["IP_UNBANNED"],
        "LIST_BANS" => &["BAN_LIST"],
        "DELETE_USER" => &["USER_DELETED"],
        "DELETE_CHANNEL" => &["CHANNEL_DELETED"],
        _ => &[],
    }
}
