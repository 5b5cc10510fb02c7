//! What can go wrong, and which alerts say so.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::Connection;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use socket2::SockRef;
use superchat::wire::client::{Ping, PostMessage, SubscribeChannel};
use superchat::wire::codec::Bounded;
use superchat::wire::frame::LENGTH_MAX;

use crate::load::{self, Background, FORUM, newest, post, unknown_request, wrong_password};
use crate::support::{Client, Server, Settings, clock};

/// A fault of one server, whose name is that of the fault in what is scraped.
pub struct Fault {
    pub name: &'static str,
    /// The alerts that must fire.
    pub fires: &'static [&'static str],
    /// Further alerts that may: on a busy machine one fault brings another.
    pub brings: &'static [&'static str],
    /// Does it; it lasts as long as what is returned.
    pub cause: fn(&mut Server) -> Vec<Background>,
}

/// Each on a server of its own.
pub const FAULTS: &[Fault] = &[
    Fault { name: "healthy", fires: &[], brings: &[], cause: be_well },
    Fault { name: "killed", fires: &["SuperChatDown"], brings: &[], cause: kill },
    Fault { name: "flooded", fires: &["SuperChatSessionFlood"], brings: &["SuperChatCpuHigh"], cause: flood },
    Fault {
        name: "abused",
        fires: &["SuperChatErrorReplies", "SuperChatLoginsFailing"],
        brings: &["SuperChatCpuHigh"],
        cause: abuse,
    },
    Fault { name: "cut off", fires: &["SuperChatConnectionDrops"], brings: &[], cause: cut_off },
    Fault {
        name: "crowded and silent",
        fires: &["SuperChatSessionsHigh", "SuperChatDescriptorsLow", "SuperChatHeartbeatsStopped"],
        brings: &[],
        cause: crowd,
    },
    Fault {
        name: "database locked",
        fires: &["SuperChatWriterBacklog", "SuperChatRequestsSlow"],
        brings: &["SuperChatErrorReplies", "SuperChatQueriesSlow"],
        cause: lock_database,
    },
    Fault {
        name: "stalled",
        fires: &["SuperChatBroadcastSlow", "SuperChatQueriesSlow"],
        brings: &["SuperChatRequestsSlow", "SuperChatDown", "SuperChatCpuHigh"],
        cause: stall,
    },
    Fault {
        name: "overloaded",
        fires: &["SuperChatCpuHigh", "SuperChatMemoryHigh", "SuperChatDatabaseGrowth"],
        brings: &["SuperChatWriterBacklog", "SuperChatRequestsSlow"],
        cause: overload,
    },
    Fault { name: "neglected", fires: &["SuperChatBackupOld"], brings: &[], cause: neglect },
    Fault {
        name: "leaking",
        fires: &["SuperChatTasksRising"],
        brings: &["SuperChatMemoryHigh", "SuperChatQueriesSlow", "SuperChatDatabaseGrowth"],
        cause: leak,
    },
];

/// What all of these servers are started with: one shard, and nobody is closed for being silent.
pub fn settings(metrics: SocketAddr) -> Settings {
    let settings = Settings::new().set("admin", "metrics_listen", metrics.to_string());
    let settings = settings.set("limits", "outbox_bytes_max", 8 << 20);
    settings.set("server", "shards", 1).set("limits", "session_timeout_seconds", 0).set("log", "log_level", "warn")
}

fn be_well(server: &mut Server) -> Vec<Background> {
    vec![load::listener(server.address()), load::ordinary(server.address())]
}

fn kill(server: &mut Server) -> Vec<Background> {
    server.kill9();
    Vec::new()
}

fn flood(server: &mut Server) -> Vec<Background> {
    let address = server.address();
    let come_and_go = move || {
        Background::start(move |stop| {
            while !stop.is_set() {
                Client::connect(address).hang_up();
            }
        })
    };
    vec![load::listener(address), come_and_go(), come_and_go(), come_and_go()]
}

fn abuse(server: &mut Server) -> Vec<Background> {
    let address = server.address();
    let abuser = Background::start(move |stop| {
        let mut client = Client::connect(address);
        while stop.pause(Duration::from_millis(300)) {
            (0..5).for_each(|_| unknown_request(&mut client));
            wrong_password(&mut client);
        }
    });
    vec![load::listener(address), abuser]
}

/// Connections end as behind a router that forgets them.
fn cut_off(server: &mut Server) -> Vec<Background> {
    let address = server.address();
    let cutter = Background::start(move |stop| {
        while stop.pause(Duration::from_millis(50)) {
            let stream = TcpStream::connect(address).unwrap();
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    });
    vec![load::listener(address), cutter]
}

/// More sessions than the limit of the test, nearly as many as there are descriptors, and none says PING.
fn crowd(server: &mut Server) -> Vec<Background> {
    const SESSIONS: usize = 110;
    let crowd: Vec<_> = (0..SESSIONS).map(|_| server.client()).collect();
    let descriptors = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64;
    let limit = Some(descriptors + descriptors / 20);
    prlimit(Some(pid(server)), Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    vec![hold(crowd)]
}

/// Another program holds the write lock, just short of the time after which the server gives up.
fn lock_database(server: &mut Server) -> Vec<Background> {
    let (address, path) = (server.address(), server.database());
    let locker = Background::start(move |stop| {
        let database = Connection::open(path).unwrap();
        database.busy_timeout(Duration::from_secs(30)).unwrap();
        while !stop.is_set() {
            database.execute_batch("BEGIN IMMEDIATE").unwrap();
            stop.pause(Duration::from_secs(4));
            database.execute_batch("COMMIT").unwrap();
            // SQLite looks for a free lock every 100 ms.
            stop.pause(Duration::from_millis(300));
        }
    });
    let author = |_| {
        Background::start(move |stop| {
            let mut client = Client::named(address, "author");
            // The pause leaves the lock to the other program now and then.
            while stop.pause(Duration::from_millis(200)) {
                (0..100).for_each(|_| client.send(post(b"waits for the lock", None)));
                client.quiet();
            }
        })
    };
    (0..4).map(author).chain([locker, load::listener(address)]).collect()
}

/// The process stands still most of the time, as on a host that is overcommitted, amid broadcasts and reads.
fn stall(server: &mut Server) -> Vec<Background> {
    let (address, pid) = (server.address(), pid(server));
    let subscribers = (0..80).map(|_| {
        let mut client = server.client();
        client.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
        client
    });
    let audience = hold(subscribers.collect());
    let busy = |ask: fn(&mut Client)| {
        Background::start(move |stop| {
            let mut client = Client::named(address, "busy");
            while !stop.is_set() {
                ask(&mut client);
            }
        })
    };
    let write = |client: &mut Client| drop(client.ask(post(b"to many", None), "MESSAGE_POSTED"));
    let read = |client: &mut Client| drop(client.ask(newest(200), "MESSAGE_LIST"));
    let stopper = Background::start(move |stop| {
        while !stop.is_set() {
            // So short a time to run ends in the middle of whatever is done.
            kill_process(pid, Signal::STOP).unwrap();
            stop.pause(Duration::from_millis(100));
            kill_process(pid, Signal::CONT).unwrap();
            stop.pause(Duration::from_millis(1));
        }
    });
    vec![stopper, busy(write), busy(read), busy(read), busy(read), load::listener(address), audience]
}

/// Requests without end, long posts without end, and large frames that never become whole.
fn overload(server: &mut Server) -> Vec<Background> {
    let address = server.address();
    let unfinished = |_| {
        let mut client = server.client();
        let mut frame = LENGTH_MAX.to_be_bytes().to_vec();
        frame.extend([2, PostMessage::CODE, 0]);
        frame.resize(LENGTH_MAX as usize, 0);
        client.send_raw(&frame);
        client
    };
    let memory = hold((0..60).map(unfinished).collect());
    let requests = Background::start(move |stop| {
        let mut client = Client::connect(address);
        while !stop.is_set() {
            (0..100).for_each(|timestamp| client.send(Ping { timestamp }));
            (0..100).for_each(|_| drop(client.expect_reply("PONG")));
        }
    });
    let posts = Background::start(move |stop| {
        let (mut client, content) = (Client::named(address, "author"), [b'x'; 4096]);
        let post =
            || PostMessage { channel_id: FORUM, subchannel_id: None, parent_id: None, content: Bounded(&content) };
        while !stop.is_set() {
            (0..50).for_each(|_| client.send(post()));
            (0..50).for_each(|_| drop(client.expect_reply("MESSAGE_POSTED")));
        }
    });
    vec![requests, posts, memory]
}

/// The last backup was made two days ago.
fn neglect(server: &mut Server) -> Vec<Background> {
    note_backup(server, Duration::from_hours(48));
    vec![load::listener(server.address())]
}

/// Ever more clients ask and do not read what they are told; a task waits for each of them.
fn leak(server: &mut Server) -> Vec<Background> {
    let address = server.address();
    let mut author = server.client_named("author");
    for _ in 0..200 {
        let content: Vec<u8> = (0..4000).map(|_| rand::random_range(b'!'..=b'~')).collect();
        author.ask(post(&content, None), "MESSAGE_POSTED");
    }
    let deaf = Background::start(move |stop| {
        let mut clients = Vec::new();
        while stop.pause(Duration::from_secs(2)) {
            let mut client = Client::connect(address);
            (0..20).for_each(|_| client.send(newest(200)));
            clients.push(client);
        }
    });
    vec![deaf, load::listener(address), hold(vec![author])]
}

/// A file as the server leaves it when it backs up its database.
pub fn note_backup(server: &Server, age: Duration) {
    let path = server.home().join("superchat.db.backup-v13-20260102-030405");
    let file = fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path).unwrap();
    let now = Duration::from_millis(u64::try_from(clock::now_ms()).unwrap());
    file.set_modified(UNIX_EPOCH + (now - age)).unwrap();
}

/// Keeps clients connected.
fn hold(clients: Vec<Client>) -> Background {
    Background::start(move |stop| {
        while stop.pause(Duration::from_secs(1)) {}
        drop(clients);
    })
}

fn pid(server: &Server) -> Pid {
    Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap()
}
