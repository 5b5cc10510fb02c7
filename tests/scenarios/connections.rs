//! From the first byte to the last: greeting, versions, order, silence, goodbyes (BEHAVIOUR.md 1.2 to 1.6).

use std::io::Read as _;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use superchat::ids::ChannelId;
use superchat::wire::client::{
    Disconnect, GetUserInfo, JoinChannel, ListMessages, Ping, PostMessage, SubscribeChannel,
};
use superchat::wire::codec::Bounded;

use crate::support::client::{PATIENCE, UNASKED};
use crate::support::link::encode;
use crate::support::{Client, Incoming, Link, Received, Server, Settings, clock};

/// A forum of every new database.
pub(super) const FORUM: ChannelId = ChannelId(2);

/// A new thread in [`FORUM`].
pub(super) fn post(content: &[u8]) -> PostMessage<'_> {
    PostMessage { channel_id: FORUM, subchannel_id: None, parent_id: None, content: Bounded(content) }
}

/// The newest threads of `channel_id`.
pub(super) fn newest(channel_id: ChannelId, limit: u16) -> ListMessages {
    ListMessages { channel_id, subchannel_id: None, limit, before_id: None, parent_id: None, after_id: None }
}

/// The frame of the message called `name`, as a version 2 client sends it.
pub(super) fn bytes(name: &str, fields: Value) -> Vec<u8> {
    versioned(2, 0, name, fields)
}

fn versioned(version: u8, flags: u8, name: &str, fields: Value) -> Vec<u8> {
    let Value::Object(fields) = fields else { panic!("fields of {name} are no object") };
    encode(name, version, flags, &fields)
}

fn names(frames: &[Received]) -> Vec<&str> {
    frames.iter().map(|frame| frame.name.as_str()).collect()
}

mod greeting {
    use super::*;

    #[test]
    fn server_config_comes_first_and_uncompressed() {
        let server = Server::start(Settings::new());
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut header = [0; 7];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header, [0, 0, 0, 20, 2, 0x98, 0], "length, version 2, SERVER_CONFIG, no flag");
    }

    fn check_announced(settings: Settings, expected: Value) {
        let server = Server::start(settings);
        assert_eq!(Value::Object(server.client().config), expected);
    }

    #[test]
    fn defaults_are_announced() {
        check_announced(
            Settings::new(),
            json!({ "protocol_version": 2, "max_message_rate": 10, "max_channel_creates": 5,
                "inactive_cleanup_days": 90, "max_connections_per_ip": 10, "max_message_length": 4096,
                "max_thread_subscriptions": 50, "max_channel_subscriptions": 10, "directory_enabled": true }),
        );
    }

    #[test]
    fn configured_numbers_are_announced() {
        let settings = Settings::new()
            .set("limits", "message_rate_limit", 7)
            .set("limits", "max_channel_creates", 0)
            .set("limits", "max_connections_per_ip", 255)
            .set("limits", "max_message_length", 100)
            .set("limits", "max_thread_subscriptions", 3)
            .set("limits", "max_channel_subscriptions", 4)
            .set("discovery", "directory_enabled", false);
        check_announced(
            settings,
            json!({ "protocol_version": 2, "max_message_rate": 7, "max_channel_creates": 0,
                "inactive_cleanup_days": 90, "max_connections_per_ip": 255, "max_message_length": 100,
                "max_thread_subscriptions": 3, "max_channel_subscriptions": 4, "directory_enabled": false }),
        );
    }

    #[test]
    fn numbers_beyond_their_field_are_announced_as_its_largest() {
        let settings = Settings::new()
            .set("limits", "message_rate_limit", 65_536)
            .set("limits", "max_channel_creates", 1_000_000)
            .set("limits", "max_connections_per_ip", 256)
            .set("limits", "max_message_length", 5000)
            .set("limits", "max_thread_subscriptions", 70_000)
            .set("limits", "max_channel_subscriptions", 70_000);
        check_announced(
            settings,
            json!({ "protocol_version": 2, "max_message_rate": 65_535, "max_channel_creates": 65_535,
                "inactive_cleanup_days": 90, "max_connections_per_ip": 255, "max_message_length": 4096,
                "max_thread_subscriptions": 65_535, "max_channel_subscriptions": 65_535, "directory_enabled": true }),
        );
    }

    #[test]
    fn session_ids_rise_and_are_not_used_again() {
        let server = Server::start(Settings::new());
        let mut watcher = server.client_named("watcher");
        let mut id_of = |nickname: &str| {
            let client = server.client_named(nickname);
            let seen = watcher.expect_matching("SERVER_PRESENCE", |fields| fields["nickname"] == nickname);
            client.hang_up();
            seen["session_id"].as_str().unwrap().parse::<u64>().unwrap()
        };
        let ids = ["first", "second", "third"].map(&mut id_of);
        assert!(ids[0] > 0 && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    }
}

mod versions {
    use super::*;

    #[test]
    fn every_version_byte_is_served() {
        let server = Server::start(Settings::new());
        for version in [0, 1, 2, 9, 255] {
            let mut client = server.client();
            client.version = version;
            assert_eq!(client.ask(Ping { timestamp: 5 }, "PONG")["client_timestamp"], "5", "version {version}");
        }
    }

    /// Posts a text that compresses well, so that a list of it has exactly `payload_bytes`.
    fn post_sized(author: &mut Client, channel_id: ChannelId, payload_bytes: usize, overhead: usize) {
        let content = vec![b'a'; payload_bytes - overhead];
        author.ask(PostMessage { channel_id, ..post(&content) }, "MESSAGE_POSTED");
    }

    fn list(client: &mut Client, channel_id: ChannelId) -> Received {
        client.send(newest(channel_id, 1));
        match client.next() {
            Incoming::Frame(frame) if frame.name == "MESSAGE_LIST" => frame,
            other => panic!("expected MESSAGE_LIST, got {other:?}"),
        }
    }

    #[test]
    fn answers_are_compressed_for_version_2_alone_and_from_512_bytes_on() {
        let server = Server::start(Settings::new());
        let mut author = server.client_named("author");
        let [measured, below, at] = [2, 3, 4].map(ChannelId);
        author.ask(PostMessage { channel_id: measured, ..post(b"a") }, "MESSAGE_POSTED");
        let mut reader = server.client();
        let overhead = list(&mut reader, measured).payload_bytes - 1;
        post_sized(&mut author, below, 511, overhead);
        post_sized(&mut author, at, 512, overhead);

        for (bytes_sent, is_compact) in
            [(&[2][..], true), (&[0, 2], true), (&[2, 1], true), (&[0], false), (&[1, 2], false), (&[9, 2], false)]
        {
            let mut client = server.client();
            for version in bytes_sent {
                client.version = *version;
                client.ask(Ping { timestamp: 0 }, "PONG");
            }
            let (short, long) = (list(&mut client, below), list(&mut client, at));
            assert_eq!((short.payload_bytes, short.compressed), (511, false), "versions {bytes_sent:?}");
            assert_eq!((long.payload_bytes, long.compressed), (512, is_compact), "versions {bytes_sent:?}");
        }
    }

    #[test]
    fn what_compression_does_not_shrink_is_sent_as_it_is() {
        let server = Server::start(Settings::new());
        let mut author = server.client_named("author");
        let noise: Vec<u8> = (0..2048).map(|_| rand::random::<u8>() | 0x80).collect();
        author.ask(PostMessage { channel_id: FORUM, ..post(&noise) }, "MESSAGE_POSTED");
        let found = list(&mut author, FORUM);
        assert!(found.payload_bytes >= 512 && !found.compressed, "{found:?}");
    }

    #[test]
    fn a_broadcast_is_compressed_for_those_who_read_it() {
        let server = Server::start(Settings::new());
        let subscribed = |version| {
            let mut client = server.client();
            client.version = version;
            client.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
            client
        };
        let (mut old, mut new) = (subscribed(1), subscribed(2));
        server.client_named("author").ask(post(&[b'a'; 1000]), "MESSAGE_POSTED");
        for (client, compressed) in [(&mut old, false), (&mut new, true)] {
            let seen = std::iter::from_fn(|| match client.next() {
                Incoming::Frame(frame) => Some(frame),
                other => panic!("{other:?}"),
            });
            let message = { seen }.find(|frame| frame.name == "NEW_MESSAGE").unwrap();
            assert_eq!((message.compressed, &message.fields["content"]), (compressed, &json!("a".repeat(1000))));
        }
    }

    #[test]
    fn a_compressed_request_is_understood_whatever_its_version() {
        let server = Server::start(Settings::new());
        for version in [0, 1, 2, 9] {
            let mut client = server.client();
            client.send_raw(&versioned(version, 1, "GET_USER_INFO", json!({ "nickname": "a".repeat(600) })));
            assert_eq!(client.expect_reply("USER_INFO")["nickname"], "a".repeat(600), "version {version}");
        }
    }
}

mod order {
    use super::*;

    #[test]
    fn ping_returns_the_timestamp_unchanged() {
        let server = Server::start(Settings::new());
        let mut client = server.client();
        for timestamp in [0, 1, -1, i64::MAX, i64::MIN + 1_000_000] {
            assert_eq!(client.ask(Ping { timestamp }, "PONG")["client_timestamp"], timestamp.to_string());
        }
    }

    /// The `number`th request of a pipeline, and whether a frame is its answer. Some are answered at once, some by the
    /// database.
    fn request(number: usize) -> (Vec<u8>, impl Fn(&Received) -> bool) {
        let text = number.to_string();
        let (sent, name, field) = match number % 4 {
            0 => (bytes("PING", json!({ "timestamp": text })), "PONG", "client_timestamp"),
            1 => (bytes("GET_USER_INFO", json!({ "nickname": text })), "USER_INFO", "nickname"),
            2 => (
                bytes(
                    "LIST_MESSAGES",
                    json!({ "channel_id": "2", "subchannel_id": null, "limit": 5, "before_id": null,
                        "parent_id": text, "after_id": null }),
                ),
                "MESSAGE_LIST",
                "parent_id",
            ),
            _ => (
                bytes("JOIN_CHANNEL", json!({ "channel_id": text, "subchannel_id": null })),
                "JOIN_RESPONSE",
                "channel_id",
            ),
        };
        (sent, move |frame: &Received| frame.name == name && frame.fields[field] == text)
    }

    #[test]
    fn five_hundred_requests_in_one_write_are_answered_in_order() {
        let server = Server::start(Settings::new());
        let mut client = server.client();
        let (sent, answers): (Vec<_>, Vec<_>) = (1000..1500).map(request).unzip();
        client.send_raw(&sent.concat());
        for (number, is_answer) in answers.iter().enumerate() {
            match client.next() {
                Incoming::Frame(frame) if is_answer(&frame) => {}
                other => panic!("answer {number} is {other:?}"),
            }
        }
        assert_eq!(client.quiet(), []);
    }

    #[test]
    fn posts_and_pings_in_one_write_keep_their_order() {
        const COUNT: usize = 300;
        let server = Server::start(Settings::new());
        let mut reader = server.client();
        reader.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
        let mut author = server.client_named("author");
        let pair = |number: usize| {
            let text = number.to_string();
            let post = json!({ "channel_id": "2", "subchannel_id": null, "parent_id": null, "content": text });
            [bytes("POST_MESSAGE", post), bytes("PING", json!({ "timestamp": text }))].concat()
        };
        author.send_raw(&(0..COUNT).flat_map(pair).collect::<Vec<_>>());
        let mut newest_id = 0;
        for number in 0..COUNT {
            let id: u64 = author.expect_reply("MESSAGE_POSTED")["message_id"].as_str().unwrap().parse().unwrap();
            assert!(id > newest_id, "post {number}: {id} after {newest_id}");
            newest_id = id;
            assert_eq!(author.expect_reply("PONG")["client_timestamp"], number.to_string());
        }
        for number in 0..COUNT {
            assert_eq!(reader.expect_broadcast("NEW_MESSAGE")["content"], number.to_string());
        }
    }

    #[test]
    fn frames_that_arrive_byte_by_byte_are_understood() {
        let server = Server::start(Settings::new());
        let mut client = server.client();
        let stream =
            [bytes("SET_NICKNAME", json!({ "nickname": "dripping" })), bytes("PING", json!({ "timestamp": "7" }))];
        stream.concat().iter().for_each(|byte| client.send_raw(&[*byte]));
        assert_eq!(client.expect_reply("NICKNAME_RESPONSE")["success"], true);
        assert_eq!(client.expect_reply("PONG")["client_timestamp"], "7");
    }
}

mod endings {
    use super::*;

    /// A way to end a connection.
    type End = fn(Client);

    #[test]
    fn a_goodbye_closes_without_an_answer_even_if_it_cannot_be_read() {
        let server = Server::start(Settings::new());
        let goodbyes = [
            bytes("DISCONNECT", json!({ "reason": null })),
            bytes("DISCONNECT", json!({ "reason": "bye" })),
            vec![0, 0, 0, 3, 2, 0x11, 0],
            vec![0, 0, 0, 5, 2, 0x11, 0, 1, 0xff],
        ];
        for goodbye in goodbyes {
            let mut client = server.client();
            client.send_raw(&goodbye);
            assert_eq!(client.expect_close(), [], "{goodbye:?}");
        }
    }

    #[test]
    fn a_goodbye_waits_for_the_answers_before_it() {
        let server = Server::start(Settings::new());
        let mut client = server.client_named("leaving");
        client.quiet();
        client.send_raw(&[post_bytes("last words"), bytes("DISCONNECT", json!({ "reason": null }))].concat());
        let last = client.expect_close();
        assert!(names(&last).contains(&"MESSAGE_POSTED"), "{last:?}");
        assert_eq!(contents(&server), ["last words"]);
    }

    fn post_bytes(content: &str) -> Vec<u8> {
        let fields = json!({ "channel_id": "2", "subchannel_id": null, "parent_id": null, "content": content });
        bytes("POST_MESSAGE", fields)
    }

    /// Texts in [`FORUM`], oldest first.
    fn contents(server: &Server) -> Vec<String> {
        let list = server.client().ask(newest(FORUM, 200), "MESSAGE_LIST");
        let messages = list["messages"].as_array().unwrap().iter().rev();
        messages.map(|message| message["content"].as_str().unwrap().to_owned()).collect()
    }

    /// Sends `stream`, ends the sending side and returns everything that comes.
    fn last_words(server: &Server, stream: &[u8]) -> Vec<Received> {
        let mut link = Link::connect(server.address()).unwrap();
        link.send(stream).unwrap();
        link.hang_up();
        let mut seen = Vec::new();
        loop {
            match link.next(PATIENCE) {
                Incoming::Frame(frame) => seen.push(frame),
                Incoming::Closed => return seen,
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    }

    #[test]
    fn who_stops_sending_still_gets_every_answer() {
        const POSTS: usize = 20;
        let server = Server::start(Settings::new());
        let mut stream = bytes("SET_NICKNAME", json!({ "nickname": "brief" }));
        (0..POSTS).for_each(|number| stream.extend(post_bytes(&number.to_string())));
        stream.extend(bytes("GET_USER_INFO", json!({ "nickname": "brief" })));
        let mut seen = last_words(&server, &stream);
        seen.retain(|frame| !UNASKED.contains(&frame.name.as_str()) || frame.name == "USER_INFO");
        let answers = ["SERVER_CONFIG", "NICKNAME_RESPONSE"].into_iter();
        let answers = answers.chain(["MESSAGE_POSTED"; POSTS]).chain(["USER_INFO"]);
        assert_eq!(names(&seen), answers.collect::<Vec<_>>());
        assert_eq!(contents(&server), (0..POSTS).map(|number| number.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_closed_without_a_word() {
        let server = Server::start(Settings::new());
        let whole = bytes("PING", json!({ "timestamp": "9" }));
        for cut in 1..whole.len() {
            assert_eq!(names(&last_words(&server, &whole[..cut])), ["SERVER_CONFIG"], "cut at {cut}");
        }
    }

    #[test]
    fn every_end_is_told_to_the_others_once_and_in_order() {
        let server = Server::start(Settings::new());
        let mut watcher = server.client_named("watcher");
        let ends: [(&str, End); 4] = [
            ("hangs-up", Client::hang_up),
            ("is-gone", drop),
            ("says-bye", |mut client| {
                client.send(Disconnect { reason: None });
                client.expect_close();
            }),
            ("violates", |mut client| {
                client.send_raw(&[0; 4]);
                client.expect_close();
            }),
        ];
        for (nickname, end) in ends {
            let join = JoinChannel { channel_id: FORUM, subchannel_id: None };
            watcher.ask(join.clone(), "JOIN_RESPONSE");
            let mut client = server.client_named(nickname);
            client.ask(join, "JOIN_RESPONSE");
            watcher.expect_matching("CHANNEL_PRESENCE", |fields| {
                fields["nickname"] == nickname && fields["joined"] == true
            });
            end(client);
            let seen = seen_of(&mut watcher, &server, nickname);
            assert_eq!(seen, ["CHANNEL_PRESENCE false", "SERVER_PRESENCE false"], "{nickname}");
        }
    }

    /// What `watcher` hears of `nickname` from its end on, until it hears of somebody who came later.
    fn seen_of(watcher: &mut Client, server: &Server, nickname: &str) -> Vec<String> {
        let mut seen = Vec::new();
        let mut later = None;
        loop {
            let frame = match watcher.next() {
                Incoming::Frame(frame) => frame,
                Incoming::Silence => panic!("{nickname} is not reported, {seen:?}"),
                other => panic!("{other:?}"),
            };
            if frame.fields["nickname"] == nickname {
                let state = if frame.name == "CHANNEL_PRESENCE" { "joined" } else { "online" };
                if frame.fields[state] == false {
                    seen.push(format!("{} false", frame.name));
                }
                if frame.name == "SERVER_PRESENCE" && later.is_none() && frame.fields["online"] == false {
                    later = Some(server.client_named("later"));
                }
            } else if later.is_some() && frame.fields["nickname"] == "later" && frame.fields["online"] == true {
                return seen;
            }
        }
    }

    #[test]
    fn a_newcomer_is_never_taken_for_somebody_who_just_left() {
        const VISITS: usize = 400;
        let server = Server::start(Settings::new());
        let visit = |number: usize| {
            let mut client = server.client();
            let timestamp = i64::try_from(number).unwrap();
            (0..3).for_each(|_| drop(client.ask(Ping { timestamp }, "PONG")));
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| (0..VISITS).for_each(visit))));
        });
    }

    #[test]
    fn a_session_without_a_nickname_leaves_no_trace() {
        let server = Server::start(Settings::new());
        let mut watcher = server.client_named("watcher");
        watcher.expect_matching("SERVER_PRESENCE", |fields| fields["nickname"] == "watcher");
        let mut nameless = server.client();
        nameless.ask(JoinChannel { channel_id: FORUM, subchannel_id: None }, "JOIN_RESPONSE");
        nameless.hang_up();
        let _later = server.client_named("later");
        watcher.expect_matching("SERVER_PRESENCE", |fields| fields["nickname"] == "later");
        assert_eq!(watcher.quiet(), []);
    }
}

mod silence {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);
    /// What an exact end may be late on a busy machine.
    const LATE: Duration = Duration::from_secs(2);
    /// A good part of [`TIMEOUT`], but so that a slow machine does not make two of it the whole.
    const PAUSE: Duration = Duration::from_millis(700);

    fn server(notice: bool) -> Server {
        let timeout = TIMEOUT.as_secs();
        Server::start(Settings::new().set("limits", "session_timeout_seconds", timeout).set(
            "server",
            "idle_notice",
            notice,
        ))
    }

    /// The server counts whole milliseconds.
    fn assert_on_time(waited: Duration) {
        assert!(waited >= TIMEOUT - Duration::from_millis(1), "closed early, after {waited:?}");
        assert!(waited < TIMEOUT + LATE, "closed late, after {waited:?}");
    }

    #[test]
    fn a_silent_client_is_closed_without_a_word_after_the_whole_time_out() {
        let server = server(false);
        let connecting = clock::instant();
        let mut client = server.client();
        assert_eq!(client.expect_close(), []);
        assert_on_time(connecting.elapsed());

        let mut client = server.client();
        client.ask(Ping { timestamp: 1 }, "PONG");
        let asking = clock::instant();
        client.ask(Ping { timestamp: 2 }, "PONG");
        assert_eq!(client.expect_close(), []);
        assert_on_time(asking.elapsed());
    }

    #[test]
    fn with_idle_notice_a_silent_client_is_told_first() {
        let server = server(true);
        let connecting = clock::instant();
        let last = server.client().expect_close();
        assert_on_time(connecting.elapsed());
        assert_eq!(names(&last), ["DISCONNECT"]);
        assert_eq!(last[0].fields["reason"], "Session timeout");
    }

    /// Reads until nothing came for [`PAUSE`]; `false` when the connection ended.
    fn rests(link: &mut Link) -> bool {
        loop {
            match link.next(PAUSE) {
                Incoming::Frame(_) => {}
                Incoming::Silence => return true,
                Incoming::Closed => return false,
                other @ Incoming::Broken(_) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn every_frame_counts_as_activity_whatever_it_says() {
        let server = server(false);
        let mut link = Link::connect(server.address()).unwrap();
        let unknown = vec![0, 0, 0, 3, 2, 0x1f, 0];
        let unreadable = vec![0, 0, 0, 3, 2, 0x10, 0];
        let frames = [
            unknown,
            unreadable,
            bytes("LOGOUT", json!({})),
            bytes("GET_USER_INFO", json!({ "nickname": "who" })),
            bytes("LIST_SSH_KEYS", json!({})),
            bytes("PING", json!({ "timestamp": "1" })),
        ];
        let start = clock::instant();
        for frame in &frames {
            link.send(frame).unwrap();
            assert!(rests(&mut link), "closed after {:?}, {:?} after a frame", start.elapsed(), PAUSE);
        }
        assert!(start.elapsed() > TIMEOUT, "the pauses are too short to prove anything");
    }

    #[test]
    fn a_client_that_sends_single_bytes_is_dropped_in_time() {
        let server = server(false);
        let connecting = clock::instant();
        let mut link = Link::connect(server.address()).unwrap();
        let mut request = bytes("PING", json!({ "timestamp": "1" })).into_iter();
        while link.send(&[request.next().expect("the frame was completed")]).is_ok() && rests(&mut link) {}
        assert_on_time(connecting.elapsed());
    }

    #[test]
    fn time_out_zero_does_not_mean_at_once() {
        let server = Server::start(Settings::new().set("limits", "session_timeout_seconds", 0));
        let mut idle = server.client();
        let mut other = server.client();
        other.ask(GetUserInfo { nickname: b"who" }, "USER_INFO");
        assert_eq!(idle.quiet(), []);
    }
}

/// Without descriptors nobody can be let in, and trying again at once would take a core (D-41).
mod descriptors {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    use super::*;

    /// Pauses before the eighth failure: 5, 10, 20 and so on to 320 ms.
    const PAUSES: Duration = Duration::from_millis(635);
    const FAILURES: usize = 8;

    #[test]
    fn a_server_without_descriptors_backs_off_and_lets_in_who_waited() {
        let server = Server::start(Settings::new());
        let mut inside = server.client();
        let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap());
        let limit = |limit: Rlimit| prlimit(pid, Resource::Nofile, limit).unwrap();
        // What is open stays open. The harsher limit is the server's own, its hard one stays what it has from us.
        let before = limit(Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) });
        let began = clock::instant();
        let mut waiting = Link::connect(server.address()).unwrap();
        let failures = || server.output().matches("Accept error: Too many open files").count();
        let seen = clock::poll(PATIENCE, || (failures() >= FAILURES).then_some(()));
        assert_eq!(seen, Some(()), "{} failures: {}", failures(), server.output());
        assert!(began.elapsed() >= PAUSES, "tried again {} times in {:?}", failures(), began.elapsed());
        assert_eq!(inside.ask(Ping { timestamp: 7 }, "PONG")["client_timestamp"], "7");
        limit(before);
        assert!(matches!(waiting.next(PATIENCE), Incoming::Frame(frame) if frame.name == "SERVER_CONFIG"));
    }
}
