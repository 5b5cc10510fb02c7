//! Nobody but its participants reads, joins, follows, lists or counts a direct message (BEHAVIOUR.md 4.7, D-01): each
//! request, by everybody who might try.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use superchat::ids::MessageId;
use superchat::wire::ClientMessage;
use superchat::wire::client::*;
use superchat::wire::codec::{Bounded, List, Tail};
use superchat::wire::records::UnreadTarget;

use super::*;
use crate::support::clock;

/// A conversation between an account and a visitor, with a message of each.
struct Secret {
    server: Server,
    ann: Client,
    red: Client,
    channel: ChannelId,
    anns: MessageId,
    reds: MessageId,
}

fn secret_conversation(settings: crate::support::Settings) -> Secret {
    let server = Server::start(settings.admins(&["boss"]));
    let mut ann = registered(&server, "ann");
    let mut red = server.client_named("red");
    let channel = conversation(&mut ann, &mut red, "red");
    let (anns, reds) = (posted(&mut ann, post(channel, b"secret")), posted(&mut red, post(channel, b"whispered")));
    Secret { server, ann, red, channel, anns, reds }
}

impl Secret {
    /// An admin, another account, a visitor of the participant's name, one without any name, and what was the account.
    fn strangers(&self) -> Vec<Client> {
        let mut out = another_session(&self.server, "ann");
        out.send(Logout {});
        let namesake = self.server.client_named("red");
        vec![registered(&self.server, "boss"), registered(&self.server, "eve"), namesake, self.server.client(), out]
    }
}

#[test]
fn reading_joining_and_following_are_refused() {
    let secret = secret_conversation(settings());
    let (channel_id, thread_id) = (secret.channel, secret.anns);
    for mut stranger in secret.strangers() {
        let join = JoinChannel { channel_id, subchannel_id: None };
        check_failed(&mut stranger, "JOIN_RESPONSE", [(join.into(), NOT_A_PARTICIPANT)]);
        let cases: [ClientMessage<'_>; 7] = [
            roots(channel_id).into(),
            ListMessages { before_id: Some(MessageId(u64::MAX >> 1)), ..roots(channel_id) }.into(),
            ListMessages { after_id: Some(MessageId(1)), ..roots(channel_id) }.into(),
            thread(channel_id, thread_id).into(),
            SubscribeChannel { channel_id, subchannel_id: None }.into(),
            SubscribeThread { thread_id }.into(),
            ListChannelUsers { channel_id, subchannel_id: None }.into(),
        ];
        check_refused(&mut stranger, cases.map(|request| (request, 3000, NOT_A_PARTICIPANT)));
        let elsewhere = thread(GENERAL, thread_id);
        assert_eq!(listed(&mut stranger, elsewhere), [Value::Null; 0], "nor below another channel");
    }
}

#[test]
fn writing_is_refused() {
    let secret = secret_conversation(settings());
    for mut stranger in secret.strangers() {
        let (named, signed_in) = (has_name(&mut stranger), is_account(&mut stranger));
        let cases: [(ClientMessage<'_>, bool); 5] = [
            (post(secret.channel, b"let me in").into(), named),
            (EditMessage { message_id: secret.anns, new_content: Bounded(b"x") }.into(), signed_in),
            (EditMessage { message_id: secret.reds, new_content: Bounded(b"x") }.into(), signed_in),
            (DeleteMessage { message_id: secret.anns }.into(), named),
            (DeleteMessage { message_id: secret.reds }.into(), named),
        ];
        let asked = cases.into_iter().filter(|(_, may_ask)| *may_ask);
        check_refused(&mut stranger, asked.map(|(request, _)| (request, 3000, NOT_A_PARTICIPANT)));
    }
    let unchanged = rows(&secret.server, "SELECT content FROM Message WHERE deleted_at IS NULL ORDER BY id");
    assert_eq!(unchanged, [["secret"], ["whispered"]]);
}

fn has_name(client: &mut Client) -> bool {
    client.send(post(ChannelId(404), b"x"));
    client.expect_reply("ERROR")["error_code"] == 4001
}

fn is_account(client: &mut Client) -> bool {
    client.send(EditMessage { message_id: MessageId(1), new_content: Bounded(b"x") });
    client.expect_reply("ERROR")["error_code"] == 4002
}

#[test]
fn nothing_is_counted_and_no_mark_is_kept() {
    let secret = secret_conversation(settings());
    let channel_id = secret.channel;
    let targets = || {
        let target = |channel_id, thread_id| UnreadTarget { channel_id, subchannel_id: None, thread_id };
        List(vec![target(channel_id, None), target(channel_id, Some(secret.anns)), target(GENERAL, Some(secret.anns))])
    };
    for mut stranger in secret.strangers() {
        for since_timestamp in [None, Some(0)] {
            let counts = stranger.ask(GetUnreadCounts { since_timestamp, targets: targets() }, "UNREAD_COUNTS");
            let counts = items(&counts, "counts");
            assert!(counts.iter().all(|count| count["unread_count"] == 0), "{counts:?}");
        }
        stranger.send(UpdateReadState { channel_id, subchannel_id: None, timestamp: 1_700_000_000_000 });
        assert_eq!(heard_names(&mut stranger), [""; 0]);
    }
    assert_eq!(rows(&secret.server, "SELECT count(*) FROM UserChannelState"), [["0"]]);
}

#[test]
fn no_list_shows_it() {
    let secret = secret_conversation(settings());
    let id = json!(secret.channel.0.to_string());
    for mut stranger in secret.strangers() {
        for from_channel_id in [ChannelId(0), ChannelId(1)] {
            let list = stranger.ask(ListChannels { from_channel_id, limit: 0 }, "CHANNEL_LIST");
            let channels = items(&list, "channels");
            assert!(!channels.is_empty() && channels.iter().all(|channel| channel["channel_id"] != id), "{channels:?}");
        }
        let servers = items(&stranger.ask(ListServers { limit: 0 }, "SERVER_LIST"), "servers");
        assert_eq!(servers[0]["channel_count"], 5, "the public ones");
        check_refused(
            &mut stranger,
            [(GetSubchannels { channel_id: secret.channel }.into(), 4001, "Channel not found")],
        );
        let answer = stranger.ask(sub_of(secret.channel), "SUBCHANNEL_CREATED");
        assert_eq!(answer["success"], false);
    }
}

fn sub_of(channel_id: ChannelId) -> CreateSubchannel<'static> {
    CreateSubchannel { channel_id, name: b"below", description: b"", channel_type: 0, retention_hours: 24 }
}

#[test]
fn nothing_that_happens_inside_is_heard_outside() {
    let Secret { server, mut ann, mut red, channel, anns, .. } = secret_conversation(settings());
    let mut watchers = vec![registered(&server, "boss"), registered(&server, "eve"), server.client_named("red")];
    for watcher in &mut watchers {
        join(watcher, GENERAL);
        subscribe(watcher, GENERAL);
        watcher.send(SubscribeChannel { channel_id: channel, subchannel_id: None });
        watcher.expect_error(3000);
        watcher.quiet();
    }
    join(&mut red, channel);
    subscribe(&mut red, channel);
    join(&mut ann, channel);
    subscribe(&mut ann, channel);
    posted(&mut red, post(channel, b"psst"));
    ann.ask(EditMessage { message_id: anns, new_content: Bounded(b"other") }, "MESSAGE_EDITED");
    ann.ask(DeleteMessage { message_id: anns }, "MESSAGE_DELETED");
    let leave = LeaveChannel { channel_id: channel, subchannel_id: None, permanent: Tail(Some(true)) };
    ann.ask(leave, "LEAVE_RESPONSE");
    red.expect_broadcast("DM_PARTICIPANT_LEFT");
    red.hang_up();
    for watcher in &mut watchers {
        // The last thing to be told of is that red went.
        let mut seen = Vec::new();
        clock::poll(crate::support::client::PATIENCE, || {
            seen.extend(watcher.quiet());
            seen.iter().any(|frame| frame.fields.get("online") == Some(&json!(false))).then_some(())
        })
        .expect("red to go");
        let elsewhere = json!(GENERAL.0.to_string());
        seen.retain(|frame| frame.name != "SERVER_PRESENCE" && frame.fields["channel_id"] != elsewhere);
        assert!(seen.is_empty(), "{seen:?}");
    }
}

#[test]
fn the_scrape_does_not_name_it() {
    let mut secret = secret_conversation(settings().set("admin", "metrics_listen", "127.0.0.1:0"));
    subscribe(&mut secret.ann, secret.channel);
    follow(&mut secret.red, secret.anns);
    posted(&mut secret.red, post(secret.channel, b"psst"));
    secret.ann.expect_broadcast("NEW_MESSAGE");
    let told = clock::poll(crate::support::client::PATIENCE, || {
        let output = secret.server.output();
        let after = output.split("metrics server listening (/metrics, /health) address=").nth(1)?;
        after.split_once('\n')?.0.parse::<std::net::SocketAddr>().ok()
    });
    let mut stream = TcpStream::connect(told.unwrap()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut scrape = String::new();
    stream.read_to_string(&mut scrape).unwrap();
    let label = format!("channel_id=\"{}\"", secret.channel);
    let named: Vec<_> = scrape.lines().filter(|line| line.contains(&label)).collect();
    assert!(named.is_empty(), "{named:?}");
    assert!(!scrape.contains(&format!("thread_id=\"{}\"", secret.anns)));
    assert!(scrape.contains("superchat_channels 5"), "the public ones");
    let together = "superchat_messages_delivered_total{channel_id=\"other\",thread_id=\"none\"} 1";
    assert!(scrape.contains(together), "what is delivered in all of them stays in the sum");
}
