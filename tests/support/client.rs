//! A client that knows what it waits for.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use superchat::wire::ClientMessage;
use superchat::wire::client::{Ping, SetNickname};
use superchat::wire::codec::{Bounded, Writer};
use superchat::wire::frame::{self, Compression, VERSION};

use super::link::{Fields, Incoming, Link, Received, encode};

/// How long an expected frame may take. Long, because only a failing test waits it out.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Types that may arrive unasked, between a request and its reply.
pub const UNASKED: &[&str] = &[
    "NEW_MESSAGE",
    "MESSAGE_EDITED",
    "MESSAGE_DELETED",
    "CHANNEL_CREATED",
    "SUBCHANNEL_CREATED",
    "CHANNEL_DELETED",
    "USER_DELETED",
    "USER_INFO",
    "CHANNEL_PRESENCE",
    "SERVER_PRESENCE",
    "DM_REQUEST",
    "DM_READY",
    "DM_PENDING",
    "DM_DECLINED",
    "DM_PARTICIPANT_LEFT",
];

/// One connection. Frames that came while waiting for others are set aside in the order of their arrival.
#[derive(Debug)]
pub struct Client {
    link: Link,
    /// The fields of SERVER_CONFIG.
    pub config: Fields,
    /// Version byte of the frames sent from now on. The server goes by the first one.
    pub version: u8,
    aside: VecDeque<Received>,
    pings: i64,
}

impl Client {
    /// Connects and reads SERVER_CONFIG.
    ///
    /// # Panics
    /// When anything else comes first.
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(Link::connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}")))
    }

    /// Reads SERVER_CONFIG from a connection by any way in.
    ///
    /// # Panics
    /// When anything else comes first.
    pub fn over(link: Link) -> Self {
        let mut client = Self { link, config: Fields::new(), version: VERSION, aside: VecDeque::new(), pings: 0 };
        client.config = client.expect_reply("SERVER_CONFIG");
        client
    }

    /// Connects and takes a nickname.
    ///
    /// # Panics
    /// When the nickname is refused.
    pub fn named(address: SocketAddr, nickname: &str) -> Self {
        let mut client = Self::connect(address);
        client.send(SetNickname { nickname: Bounded(nickname.as_bytes()) });
        assert_eq!(client.expect_reply("NICKNAME_RESPONSE")["success"], true, "nickname {nickname}");
        client
    }

    /// Sends one message of the wire tables.
    pub fn send<'m>(&mut self, message: impl Into<ClientMessage<'m>>) {
        let message = message.into();
        let (mut payload, mut bytes) = (Vec::new(), Vec::new());
        let mut writer = Writer::new(&mut payload);
        message.write(&mut writer);
        writer.finish().unwrap();
        frame::write_payload(&mut bytes, self.version, message.code(), 0, &payload, Compression::Never).unwrap();
        self.send_raw(&bytes);
    }

    /// Sends the message called `name` with all its fields, absent ones as null.
    pub fn send_json(&mut self, name: &str, fields: Value) {
        let Value::Object(fields) = fields else { panic!("fields of {name} are no object") };
        self.send_raw(&encode(name, self.version, 0, &fields));
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.link.send(bytes).unwrap_or_else(|error| panic!("cannot send: {error}"));
    }

    /// Sends a message and returns the reply called `reply`.
    pub fn ask<'m>(&mut self, message: impl Into<ClientMessage<'m>>, reply: &str) -> Fields {
        self.send(message);
        self.expect_reply(reply)
    }

    /// What comes next, set aside before or read now, within [`PATIENCE`].
    pub fn next(&mut self) -> Incoming {
        match self.aside.pop_front() {
            Some(frame) => Incoming::Frame(frame),
            None => self.link.next(PATIENCE),
        }
    }

    /// Waits for the reply called `name`; broadcasts and presence before it are set aside.
    ///
    /// # Panics
    /// When any other reply comes, the connection ends or nothing comes.
    pub fn expect_reply(&mut self, name: &str) -> Fields {
        self.read_until(name, |frame| frame.name == name).fields
    }

    /// Waits for an ERROR and returns its text.
    ///
    /// # Panics
    /// When it has another code, or as [`Self::expect_reply`].
    pub fn expect_error(&mut self, code: u16) -> String {
        let fields = self.expect_reply("ERROR");
        assert_eq!(fields["error_code"], code, "{fields:?}");
        fields["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Takes the first frame called `name` that was set aside, or waits for one.
    ///
    /// # Panics
    /// When a reply comes that nobody waits for, the connection ends or nothing comes.
    pub fn expect_broadcast(&mut self, name: &str) -> Fields {
        self.expect_matching(name, |_| true)
    }

    /// As [`Self::expect_broadcast`], for the first one whose fields please `wanted`; others stay set aside.
    pub fn expect_matching(&mut self, name: &str, wanted: impl Fn(&Fields) -> bool) -> Fields {
        let pleases = |frame: &Received| frame.name == name && wanted(&frame.fields);
        if let Some(frame) = self.aside.iter().position(pleases).and_then(|place| self.aside.remove(place)) {
            return frame.fields;
        }
        self.read_until(name, pleases).fields
    }

    /// Waits for the end of the connection and returns what came before it, frames set aside included.
    ///
    /// # Panics
    /// When the connection stays open.
    pub fn expect_close(&mut self) -> Vec<Received> {
        loop {
            match self.link.next(PATIENCE) {
                Incoming::Frame(frame) => self.aside.push_back(frame),
                Incoming::Closed => return self.aside.drain(..).collect(),
                other => panic!("expected the end of the connection, got {other:?}; before: {}", self.seen()),
            }
        }
    }

    /// Everything that came up to the answer of a PING sent now, frames set aside included. What the server does for
    /// earlier requests in their order is in it or did not happen; presence may be one tick (50 ms) behind.
    pub fn quiet(&mut self) -> Vec<Received> {
        self.pings += 1;
        // Far from the values tests choose for their own PINGs.
        let timestamp = i64::MIN + self.pings;
        self.send(Ping { timestamp });
        loop {
            match self.link.next(PATIENCE) {
                Incoming::Frame(frame) if is_pong(&frame, timestamp) => return self.aside.drain(..).collect(),
                Incoming::Frame(frame) => self.aside.push_back(frame),
                other => panic!("expected PONG, got {other:?}; before: {}", self.seen()),
            }
        }
    }

    /// Ends the sending side, as a client that is closed, and waits until the server has noticed.
    pub fn hang_up(mut self) {
        self.link.hang_up();
        self.expect_close();
    }

    fn read_until(&mut self, name: &str, wanted: impl Fn(&Received) -> bool) -> Received {
        loop {
            match self.link.next(PATIENCE) {
                Incoming::Frame(frame) if wanted(&frame) => return frame,
                Incoming::Frame(frame) if UNASKED.contains(&frame.name.as_str()) => self.aside.push_back(frame),
                Incoming::Frame(frame) => panic!("expected {name}, got {frame}; before: {}", self.seen()),
                other => panic!("expected {name}, got {other:?}; before: {}", self.seen()),
            }
        }
    }

    fn seen(&self) -> String {
        self.aside.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

fn is_pong(frame: &Received, timestamp: i64) -> bool {
    frame.name == "PONG" && frame.fields["client_timestamp"] == Value::String(timestamp.to_string())
}
