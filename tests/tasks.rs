//! What the task registry shows of shards that serve real sockets.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "support/chat.rs"]
#[allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]
mod chat;
#[path = "support/clock.rs"]
#[allow(dead_code, reason = "each test binary uses the part it needs")]
#[allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]
mod clock;

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use superchat::admin::health::Health;
use superchat::ids::{ChannelId, SessionId};
use superchat::metrics::Metrics;
use superchat::net::stream::Socket;
use superchat::net::{Gate, tcp};
use superchat::passwords::{HashJob, Passwords};
use superchat::profile::tasks::{self, Doing, Kind, TaskInfo};
use superchat::shard::{Accepted, Bus, Parts, Rates, ShardEvent};
use superchat::store::{Answer, Busy, Channel, ChannelType, Deliver as _, Query, Store, Submission, Ticket};
use superchat::wire::codec::{Bounded, Wire};
use superchat::wire::{ClientMessage, client, frame};

const SHARDS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers who has an account: nobody. Everything else waits for ever.
struct Absent(Arc<Bus>);

impl Store for Absent {
    fn submit(&self, _: Submission) -> Result<(), Busy> {
        Ok(())
    }

    fn ask(&self, ticket: Ticket, query: Query) -> Result<(), Busy> {
        if let Query::Account { .. } = query {
            self.0.answered(ticket, Answer::Account { account: None, ban: None });
        }
        Ok(())
    }
}

impl Passwords for Absent {
    fn submit(&self, _: Ticket, _: HashJob) -> Result<(), Busy> {
        Ok(())
    }
}

/// Shards with real sockets in this process.
struct Server {
    bus: Arc<Bus>,
    health: Arc<Health>,
    gate: Arc<Gate>,
    listener: TcpListener,
    sessions: u64,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let bus = Arc::new(Bus::new(SHARDS));
        let health = Health::new("", SHARDS, superchat::clock::monotonic_ms());
        let (metrics, settings) = (Metrics::new(chat::metrics_options(SHARDS)), Arc::new(chat::unlimited()));
        let rates = Arc::new(Rates::new(&settings));
        let parts = |id| Parts {
            id,
            settings: Arc::clone(&settings),
            channels: (1..=100).map(channel).collect(),
            store: Arc::new(Absent(Arc::clone(&bus))),
            passwords: Arc::new(Absent(Arc::clone(&bus))),
            bus: Arc::clone(&bus),
            rates: Arc::clone(&rates),
            registry: superchat::directory::Registry::new().0,
            metrics: Arc::clone(&metrics),
            now: tcp::now(),
            stopwatch: || 0,
        };
        let run = |id| {
            let (parts, health) = (parts(id), Arc::clone(&health));
            superchat::supervise::spawn(&format!("shard-{id}"), move || tcp::run(parts, &health).unwrap()).unwrap()
        };
        let threads = (0..SHARDS).map(run).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Gate::new(None, None, vec!["127.0.0.0/8".parse().unwrap()]);
        Self { bus, health, gate, listener, sessions: 0, threads }
    }

    fn connect(&mut self) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = self.listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        self.sessions += 1;
        let admission = self.gate.admit(peer.ip()).unwrap();
        let stream = Socket::Tcp(stream);
        let accepted = Accepted { stream, peer, session: SessionId(self.sessions), admission, login: None };
        let shard = usize::try_from(self.sessions).unwrap() % SHARDS;
        self.bus.send(shard, ShardEvent::Accepted(Box::new(accepted)));
        client
    }

    /// Clients that said `requests` and read nothing.
    fn clients(&mut self, count: usize, requests: &[Vec<u8>]) -> Vec<TcpStream> {
        let connect = |_| {
            let mut client = self.connect();
            client.write_all(&requests.concat()).unwrap();
            client
        };
        (0..count).map(connect).collect()
    }

    fn stop(self) {
        (0..SHARDS).for_each(|shard| self.bus.send(shard, ShardEvent::Stop { spread_ms: 0 }));
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

fn frame<'m, M: Wire<'m> + Clone + Into<ClientMessage<'m>>>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::write_message(&mut bytes, message.clone().into().code(), message).unwrap();
    bytes
}

/// With a description that no compression makes small.
fn channel(id: u64) -> Channel {
    let mut random = id;
    let noise = std::iter::repeat_with(|| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random.to_be_bytes()[0]
    });
    Channel {
        id: ChannelId(id),
        name: Arc::from(format!("channel-{id}").as_bytes()),
        display_name: Arc::from(&b""[..]),
        description: noise.take(2000).collect(),
        channel_type: ChannelType::Forum,
        retention_hours: 24,
        created_by: None,
        parent: None,
        participants: None,
        is_archived: false,
    }
}

/// How many of a kind wait for what, by the function that they came from.
fn waiting(kind: Kind, what: &str, function: &str) -> usize {
    let is_one = |task: &&TaskInfo| {
        task.kind == kind
            && matches!(task.doing, Doing::Waiting(Some(site)) if site.what == what)
            && task.begun_at.function == function
    };
    tasks::snapshot().iter().filter(is_one).count()
}

#[track_caller]
fn expect(count: usize, kind: Kind, what: &str, function: &str) {
    let is_there = || (waiting(kind, what, function) == count).then_some(());
    if clock::poll(PATIENCE, is_there).is_none() {
        let seen: Vec<_> = tasks::snapshot().iter().map(|task| (task.doing, task.begun_at.function)).collect();
        panic!("{} instead of {count} {kind:?} of {function} {what}: {seen:?}", waiting(kind, what, function));
    }
}

const NICKNAME: client::SetNickname<'_> = client::SetNickname { nickname: Bounded(b"bo-b") };
const POST: client::PostMessage<'_> =
    client::PostMessage { channel_id: ChannelId(1), subchannel_id: None, parent_id: None, content: Bounded(b"hi") };
const LIST: client::ListChannels = client::ListChannels { from_channel_id: ChannelId(0), limit: 0 };
const REGISTER: client::RegisterUser<'_> = client::RegisterUser { password_hash: &[b'x'; 43] };

fn roots() -> client::ListMessages {
    client::ListMessages {
        channel_id: ChannelId(1),
        subchannel_id: None,
        limit: 50,
        before_id: None,
        parent_id: None,
        after_id: None,
    }
}

#[test]
fn sessions_and_requests_show_up_where_they_wait() {
    let mut server = Server::start();
    let idle = server.clients(40, &[]);
    let posting = server.clients(7, &[frame(&NICKNAME), frame(&POST), frame(&POST)]);
    let listing = server.clients(5, &[frame(&NICKNAME), frame(&roots())]);
    let registering = server.clients(3, &[frame(&NICKNAME), frame(&REGISTER)]);
    // More than any socket buffer holds, and nobody reads it.
    let mut stuck = server.clients(2, &vec![frame(&LIST); 200]);

    expect(14, Kind::Request, "wait for the writer", "superchat::handlers::messages::post_message");
    expect(5, Kind::Request, "wait for the read pool", "superchat::handlers::messages::list_messages");
    expect(3, Kind::Request, "wait for the password pool", "superchat::handlers::auth::register_user");
    expect(2, Kind::Task, "wait for room to write", "superchat::net::tcp::Core::wait_writable");
    expect(57, Kind::Task, "wait for bytes to read", "superchat::net::tcp::Core::accept");
    // Only who says more to a session that does not read its answers finds that it is not listened to.
    stuck.iter_mut().for_each(|client| client.write_all(&frame(&LIST)).unwrap());
    expect(55, Kind::Task, "wait for bytes to read", "superchat::net::tcp::Core::accept");
    expect(2, Kind::Task, "wait for the session to go on reading", "superchat::net::tcp::Core::accept");
    expect(SHARDS, Kind::Root, "wait for an event, a turn or a tick", "superchat::net::tcp::run");
    let sessions = || tasks::snapshot().iter().filter_map(|task| task.session).max();
    assert_eq!(sessions(), Some(server.sessions));

    // Who goes takes along what waited for it.
    drop((idle, posting, listing, registering, stuck));
    expect(0, Kind::Task, "wait for bytes to read", "superchat::net::tcp::Core::accept");
    expect(0, Kind::Task, "wait for room to write", "superchat::net::tcp::Core::wait_writable");
    server.stop();
    assert!(tasks::snapshot().is_empty(), "{:?}", tasks::snapshot());
}

/// Ten thousand entries: as many sessions as both ends find descriptors for in one process, and a request of each.
#[test]
fn ten_thousand_entries_are_looked_at_while_every_shard_keeps_its_beat() {
    const SESSIONS: usize = 5000;
    raise_descriptor_limit(2 * SESSIONS as u64 + 200);
    let mut server = Server::start();
    let clients = server.clients(SESSIONS, &[frame(&roots())]);
    expect(SESSIONS, Kind::Task, "wait for bytes to read", "superchat::net::tcp::Core::accept");
    expect(SESSIONS, Kind::Request, "wait for the read pool", "superchat::handlers::messages::list_messages");

    // For longer than two beats, one look after the other.
    let (start, mut looks, mut best, mut oldest_ms) = (clock::instant(), 0, Duration::MAX, 0);
    while start.elapsed() < Duration::from_millis(2500) {
        let began = clock::instant();
        let profile = tasks::profile();
        best = best.min(began.elapsed());
        looks += 1;
        let entries: i64 = profile.samples.iter().map(|sample| sample.values[0]).sum();
        assert_eq!(usize::try_from(entries).unwrap(), 2 * SESSIONS + SHARDS);
        let pulses = server.health.pulses(superchat::clock::monotonic_ms());
        oldest_ms = pulses.iter().map(|pulse| pulse.last_beat_ms).fold(oldest_ms, u64::max);
    }
    assert!(best < Duration::from_millis(50), "a look takes {best:?}");
    assert!(oldest_ms < 2000, "a shard's last beat was {oldest_ms} ms ago");
    println!("{looks} looks, {best:?} the best; the oldest beat was {oldest_ms} ms old");
    drop(clients);
    server.stop();
}

fn raise_descriptor_limit(needed: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    assert!(maximum.is_none_or(|maximum| maximum >= needed), "needs {needed} descriptors: raise `ulimit -Hn`");
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
