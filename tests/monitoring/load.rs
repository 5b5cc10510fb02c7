//! Clients that do a little of everything, so that every metric that can move moves.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use superchat::ids::{ChannelId, MessageId};
use superchat::wire::client::{
    AuthRequest, GetUserInfo, ListChannels, ListMessages, Logout, Ping, PostMessage, RegisterUser, SubscribeChannel,
    SubscribeThread,
};
use superchat::wire::codec::Bounded;

use crate::support::Client;

/// The forum `general`.
pub const FORUM: ChannelId = ChannelId(2);
/// As long as the hash that clients send in place of a password.
const SECRET: &[u8] = b"0123456789012345678901234567890123456789012";

/// Says when to end what runs in the background.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    pub fn is_set(&self) -> bool {
        *self.0.0.lock().unwrap()
    }

    pub fn set(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits for the word to end, at most that long; `false` once it came.
    pub fn pause(&self, pause: Duration) -> bool {
        let is_set = self.0.0.lock().unwrap();
        !*self.0.1.wait_timeout_while(is_set, pause, |is_set| !*is_set).unwrap().0
    }
}

/// Work that goes on until it is told to stop.
#[derive(Debug)]
pub struct Background {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    #[expect(clippy::disallowed_methods, reason = "a test's thread ends with the test")]
    pub fn start(work: impl FnOnce(&Stop) + Send + 'static) -> Self {
        let stop = Stop::default();
        let until = stop.clone();
        Self { stop, thread: Some(std::thread::spawn(move || work(&until))) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop.set();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()), "work in the background failed");
    }
}

pub fn post(content: &[u8], parent_id: Option<MessageId>) -> PostMessage<'_> {
    PostMessage { channel_id: FORUM, subchannel_id: None, parent_id, content: Bounded(content) }
}

pub fn newest(limit: u16) -> ListMessages {
    ListMessages { channel_id: FORUM, subchannel_id: None, limit, before_id: None, parent_id: None, after_id: None }
}

pub fn wrong_password(client: &mut Client) {
    let answer = client.ask(AuthRequest { nickname: b"nobody", password_hash: SECRET }, "AUTH_RESPONSE");
    assert_eq!(answer["success"], false);
}

/// One who only says that it is there, as a client whose user reads.
pub fn listener(address: SocketAddr) -> Background {
    Background::start(move |stop| {
        let mut client = Client::connect(address);
        while stop.pause(Duration::from_millis(200)) {
            client.quiet();
        }
    })
}

/// Three clients that sign in, read, write and err.
pub fn everything(address: SocketAddr) -> Background {
    Background::start(move |stop| {
        let mut reader = Client::named(address, "reader");
        reader.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
        let mut author = Client::named(address, "author");
        author.ask(RegisterUser { password_hash: SECRET }, "REGISTER_RESPONSE");
        let root = author.ask(post(b"root", None), "MESSAGE_POSTED")["message_id"].as_str().unwrap().parse().unwrap();
        reader.ask(SubscribeThread { thread_id: MessageId(root) }, "SUBSCRIBE_OK");
        while stop.pause(Duration::from_millis(100)) {
            author.ask(post(b"another root", None), "MESSAGE_POSTED");
            author.ask(post(b"reply", Some(MessageId(root))), "MESSAGE_POSTED");
            ask_around(&mut reader);
            unknown_request(&mut reader);
            sign_in(&mut author);
            reader.quiet();
            come_and_go(address);
        }
    })
}

/// One who reads and writes and does nothing wrong.
pub fn ordinary(address: SocketAddr) -> Background {
    Background::start(move |stop| {
        let mut client = Client::named(address, "ordinary");
        client.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
        while stop.pause(Duration::from_millis(200)) {
            client.ask(post(b"hello", None), "MESSAGE_POSTED");
            ask_around(&mut client);
            come_and_go(address);
        }
    })
}

fn come_and_go(address: SocketAddr) {
    Client::connect(address).hang_up();
}

fn ask_around(client: &mut Client) {
    client.ask(ListChannels { from_channel_id: ChannelId(0), limit: 0 }, "CHANNEL_LIST");
    client.ask(newest(50), "MESSAGE_LIST");
    client.ask(GetUserInfo { nickname: b"author" }, "USER_INFO");
    client.ask(Ping { timestamp: 1 }, "PONG");
}

fn sign_in(client: &mut Client) {
    client.send(Logout {});
    client.ask(AuthRequest { nickname: b"author", password_hash: SECRET }, "AUTH_RESPONSE");
}

/// A frame of a type that no version of the protocol has.
pub fn unknown_request(client: &mut Client) {
    client.send_raw(&[0, 0, 0, 3, 2, 0x7F, 0]);
    client.expect_error(1001);
}
