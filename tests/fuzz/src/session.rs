//! Any clients at a live shard: whatever two of them send, however little they read, and in whatever order the store
//! answers, no handler panics, memory stays bounded, every byte sent is part of a whole message, and a third client that
//! behaves is served.

use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Arc, OnceLock};

use superchat::ids::{ChannelId, SessionId};
use superchat::metrics::{BuildInfo, Metrics, MetricsOptions};
use superchat::net::{CloseReason, Gate};
use superchat::shard::session::SessionKey;
use superchat::shard::settings::DirectoryEntry;
use superchat::shard::{Bus, ChatSettings, Departed, Now, Parts, Rates, Shard, ShardEvent};
use superchat::wire::client::{JoinChannel, Ping, SetNickname, SubscribeChannel};
use superchat::wire::codec::{Bounded, Wire};
use superchat::wire::frame::{self, Compression, Frame, LENGTH_MAX};
use superchat::wire::server::{Pong, ServerConfig};
use superchat::wire::{ClientMessage, ServerMessage};

use super::memory::{Memory, channels};

/// Clients the input speaks for.
const CLIENTS: usize = 2;
/// Bytes that may wait for a client that does not read.
const OUTBOX_BYTES_MAX: usize = 64 * 1024;
/// One more turn's answers than that, generously.
const OUTBOX_SLACK_BYTES: usize = 8 * 1024 * 1024;
/// An unfinished frame, or a pause's worth of whole ones, and the read that went beyond.
const INBOX_BYTES_MAX: usize = LENGTH_MAX as usize + 256 * 1024;

/// Runs an input as a list of [`Step`]s.
pub fn session(bytes: &[u8]) {
    let mut world = World::new();
    let mut input = Input(bytes);
    while let Some((client, step)) = input.step() {
        world.take(client, step);
        world.turn();
    }
    world.finish();
}

/// What can happen; the low bits of a byte of input say which, the high bit to whom.
enum Step<'a> {
    /// A whole frame.
    Frame { code: u8, payload: &'a [u8] },
    /// The same, compressed.
    Compressed { code: u8, payload: &'a [u8] },
    /// Bytes as they are.
    Raw(&'a [u8]),
    /// A whole frame of any size, filled with one byte.
    Large { code: u8, byte: u8, blocks: u8 },
    /// The store does so much of what it was asked.
    Work(u8),
    /// Time passes, in steps of 10 ms.
    Time(u8),
    /// From now on the client reads so many blocks at a time, 255 = everything.
    Reads(u8),
    /// The client goes, another comes.
    Replace,
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn step(&mut self) -> Option<(usize, Step<'a>)> {
        let first = self.byte()?;
        let step = match first % 8 {
            0 => Step::Frame { code: self.byte()?, payload: self.run()? },
            1 => Step::Compressed { code: self.byte()?, payload: self.run()? },
            2 => Step::Raw(self.run()?),
            3 => Step::Large { code: self.byte()?, byte: self.byte()?, blocks: self.byte()? },
            4 => Step::Work(self.byte()?),
            5 => Step::Time(self.byte()?),
            6 => Step::Reads(self.byte()?),
            _ => Step::Replace,
        };
        Some((usize::from(first >> 7), step))
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A length in one byte, then as many as are left of that.
    fn run(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?).min(self.0.len());
        let (run, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(run)
    }
}

const BLOCK_BYTES: usize = 4096;

/// One connection as the peer sees it.
#[derive(Debug)]
struct Peer {
    key: SessionKey,
    /// Blocks it takes at a time; `None` = everything.
    reads: Option<u8>,
    /// What came and is no whole frame yet.
    received: Vec<u8>,
    pongs: Vec<i64>,
    /// It has sent something.
    has_spoken: bool,
    /// It has not always read everything.
    was_slow: bool,
}

impl Peer {
    fn take(&mut self, slices: &[IoSlice<'_>], room: &mut usize) -> io::Result<usize> {
        let before = self.received.len();
        for slice in slices {
            let part = &slice[..slice.len().min(*room)];
            self.received.extend_from_slice(part);
            *room -= part.len();
        }
        match self.received.len() - before {
            0 => Err(ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    /// Reads what came: every frame is a message of the protocol.
    fn read(&mut self) {
        let mut rest = &self.received[..];
        while let Some((frame, behind)) = Frame::cut(rest).unwrap() {
            let mut scratch = Vec::new();
            let payload = frame.unpack(&mut scratch).unwrap().payload;
            match ServerMessage::read(frame.code, payload).unwrap() {
                ServerMessage::Pong(Pong { client_timestamp }) => self.pongs.push(client_timestamp),
                ServerMessage::ServerPresence(_) | ServerMessage::ChannelPresence(_) => {
                    assert!(self.has_spoken, "presence before the first request");
                }
                _ => {}
            }
            rest = behind;
        }
        let used = self.received.len() - rest.len();
        self.received.drain(..used);
    }
}

struct World {
    shard: Shard,
    memory: Arc<Memory>,
    gate: Arc<Gate>,
    sessions: u64,
    /// The clients the input speaks for, then the one that behaves.
    peers: Vec<Peer>,
    pings: i64,
}

impl World {
    fn new() -> Self {
        let memory = Memory::new(channels());
        let settings = Arc::new(settings());
        let now = Now { mono: 1_000, mono_micros: 1_000_000, wall: 1_790_000_000_000 };
        let shard = Shard::new(Parts {
            id: 0,
            rates: Arc::new(Rates::new(&settings)),
            registry: superchat::directory::Registry::new().0,
            settings,
            channels: channels(),
            store: Arc::clone(&memory) as _,
            passwords: Arc::clone(&memory) as _,
            bus: Arc::new(Bus::new(1)),
            metrics: metrics(),
            stopwatch: || 0,
            now,
        });
        let gate = Gate::new(None, None, vec!["127.0.0.0/8".parse().unwrap()]);
        let mut world = Self { shard, memory, gate, sessions: 0, peers: Vec::new(), pings: 0 };
        for address in ["192.0.2.1", "127.0.0.1", "198.51.100.7"] {
            let peer = world.connect(address);
            world.peers.push(peer);
        }
        world.settle_in();
        world
    }

    fn connect(&mut self, address: &str) -> Peer {
        self.sessions += 1;
        let admission = self.gate.admit(address.parse().unwrap()).unwrap();
        let key = self.shard.connect(SessionId(self.sessions), admission, None);
        Peer { key, reads: None, received: Vec::new(), pongs: Vec::new(), has_spoken: false, was_slow: false }
    }

    /// The one that behaves is where the others can reach it.
    fn settle_in(&mut self) {
        let (channel_id, subchannel_id) = (ChannelId(1), None);
        self.say(CLIENTS, SetNickname::CODE, &SetNickname { nickname: Bounded(b"witness") });
        self.work(u8::MAX);
        self.say(CLIENTS, JoinChannel::CODE, &JoinChannel { channel_id, subchannel_id });
        self.say(CLIENTS, SubscribeChannel::CODE, &SubscribeChannel { channel_id, subchannel_id });
        self.turn();
    }

    fn say<'m>(&mut self, peer: usize, code: u8, message: &impl Wire<'m>) {
        let mut bytes = Vec::new();
        frame::write_message(&mut bytes, code, message).unwrap();
        self.send(peer, &bytes);
    }

    fn take(&mut self, client: usize, step: Step<'_>) {
        match step {
            Step::Frame { code, payload } => self.send(client, &framed(code, payload, Compression::Never)),
            Step::Compressed { code, payload } => self.send(client, &framed(code, payload, Compression::Always)),
            Step::Raw(bytes) => self.send(client, bytes),
            Step::Large { code, byte, blocks } => {
                let payload = vec![byte; usize::from(blocks) * BLOCK_BYTES];
                framed(code, &payload, Compression::Never).chunks(64 * 1024).for_each(|part| self.send(client, part));
            }
            Step::Work(count) => self.work(count),
            Step::Time(steps) => self.pass(u64::from(steps) * 10),
            Step::Reads(blocks) => {
                let peer = &mut self.peers[client];
                peer.reads = (blocks < u8::MAX).then_some(blocks);
                peer.was_slow |= peer.reads.is_some();
            }
            Step::Replace => self.replace(client),
        }
    }

    /// As a socket is read: only where the session wants it.
    fn send(&mut self, client: usize, bytes: &[u8]) {
        let peer = &mut self.peers[client];
        if self.shard.wants_input(peer.key) {
            peer.has_spoken = true;
            self.shard.receive(peer.key, bytes);
        }
    }

    fn work(&mut self, count: u8) {
        for _ in 0..count {
            let Some(event) = self.memory.next() else { return };
            self.shard.apply(event);
        }
    }

    /// The one that behaves is never silent for long.
    fn pass(&mut self, ms: u64) {
        self.shard.now.mono += ms;
        self.shard.now.wall += i64::try_from(ms).unwrap();
        self.pings += 1;
        self.say(CLIENTS, Ping::CODE, &Ping { timestamp: self.pings });
        self.shard.tick();
    }

    fn replace(&mut self, client: usize) {
        self.shard.close(self.peers[client].key, CloseReason::Client);
        self.see_off();
    }

    /// The end of a turn, as the sockets' driver does it.
    fn turn(&mut self) {
        self.shard.end_turn();
        let peers = &mut self.peers;
        let mut rooms: HashMap<SessionKey, usize> = HashMap::new();
        let write = |key: SessionKey, slices: &[IoSlice<'_>]| {
            let peer = peers.iter_mut().find(|peer| peer.key == key).ok_or(ErrorKind::NotConnected)?;
            let all = peer.reads.map_or(usize::MAX, |blocks| usize::from(blocks) * BLOCK_BYTES);
            peer.take(slices, rooms.entry(key).or_insert(all))
        };
        let mut blocked = Vec::new();
        self.shard.flush(write, |key| blocked.push(key));
        self.offer_again(&blocked);
        self.peers.iter_mut().for_each(Peer::read);
        self.check_bounds();
        self.see_off();
    }

    /// A reader that was blocked is offered the rest as soon as it reads everything again.
    fn offer_again(&mut self, blocked: &[SessionKey]) {
        for peer in self.peers.iter_mut().filter(|peer| peer.reads.is_none() || blocked.contains(&peer.key)) {
            let mut room = peer.reads.map_or(usize::MAX, |blocks| usize::from(blocks) * BLOCK_BYTES);
            self.shard.flush_one(peer.key, |_, slices| peer.take(slices, &mut room), |_| {});
        }
    }

    fn check_bounds(&self) {
        for peer in &self.peers {
            let Some(session) = self.shard.clients.get(peer.key) else { continue };
            assert!(session.inbox.len() <= INBOX_BYTES_MAX, "{} bytes wait to be handled", session.inbox.len());
            let waiting = session.outbox.spilled_bytes();
            assert!(waiting <= OUTBOX_BYTES_MAX + OUTBOX_SLACK_BYTES, "{waiting} bytes wait to be read");
        }
        assert!(self.shard.clients.len() <= self.peers.len(), "sessions without a connection");
    }

    /// Who was disconnected comes back, once nobody holds the key of a session that ended.
    fn see_off(&mut self) {
        let departed = self.shard.take_departed();
        let who = |departed: &Departed| self.peers.iter().position(|peer| peer.key == departed.key);
        let ended: Vec<_> = departed.iter().filter_map(|departed| Some((who(departed)?, departed.reason))).collect();
        for (client, reason) in ended {
            assert_ne!(client, CLIENTS, "the one that behaves was ended: {reason:?}");
            let is_slow = reason == CloseReason::SlowConsumer;
            assert!(!is_slow || self.peers[client].was_slow, "a client that reads everything was ended as slow");
            self.peers[client] = self.connect("192.0.2.1");
        }
    }

    /// Everything that waits is done, and the one that behaves has an answer to every PING.
    fn finish(&mut self) {
        self.peers.iter_mut().for_each(|peer| peer.reads = None);
        while let Some(event) = self.memory.next() {
            self.shard.apply(event);
            self.turn();
        }
        self.pass(1_000);
        self.turn();
        assert_eq!(self.peers[CLIENTS].pongs, (1..=self.pings).collect::<Vec<_>>(), "PONGs of the one that behaves");
        self.shard.apply(ShardEvent::Stop { spread_ms: 0 });
        assert!(self.shard.clients.is_empty(), "sessions outlive the stop");
    }
}

pub(crate) fn framed(code: u8, payload: &[u8], compression: Compression) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_payload(&mut bytes, frame::VERSION, code, 0, payload, compression).unwrap();
    bytes
}

fn settings() -> ChatSettings {
    ChatSettings {
        announced: ServerConfig {
            protocol_version: frame::VERSION,
            max_message_rate: 60,
            max_channel_creates: 5,
            inactive_cleanup_days: 90,
            max_connections_per_ip: 10,
            max_message_length: 4096,
            max_thread_subscriptions: 4,
            max_channel_subscriptions: 2,
            directory_enabled: true,
        },
        message_bytes_max: 4096,
        thread_subscriptions_max: 4,
        channel_subscriptions_max: 2,
        idle_timeout_ms: Some(5_000),
        idle_notice: true,
        sanitize_content: true,
        has_archive_flag: false,
        outbox_bytes_max: OUTBOX_BYTES_MAX,
        requests_per_second: Some(100),
        messages_per_minute: Some(60),
        channels_per_hour: Some(5),
        dms_per_hour: Some(30),
        auth_attempts_per_minute: Some(10),
        admin_users: vec!["admin".into()],
        moderator_users: vec!["moderator".into()],
        directory: DirectoryEntry {
            enabled: true,
            hostname: "localhost".into(),
            port: 6465,
            name: "name".into(),
            description: "description".into(),
            users_max: 0,
        },
    }
}

/// Made once: counting is not what is tested here, and most of a short input's time would go into making the cells.
fn metrics() -> Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    let options = || MetricsOptions {
        shards: 1,
        client_messages: ClientMessage::TABLE,
        server_messages: ServerMessage::TABLE,
        error_codes: &[],
        topic_series_max: 8,
        started_wall_ms: 0,
        jemalloc: false,
        build: BuildInfo { version: "0", commit: "0", rustc: "0" },
    };
    Arc::clone(METRICS.get_or_init(|| Metrics::new(options())))
}
