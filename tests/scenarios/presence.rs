//! Presence: what each client's roster ends with, and what comes before what (BEHAVIOUR.md 1.6, 2.2 to 2.7, 3.2).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use superchat::ids::ChannelId;
use superchat::wire::ClientMessage;
use superchat::wire::client::{JoinChannel, LeaveChannel, ListChannels, Logout, RegisterUser, SetNickname};
use superchat::wire::codec::{Bounded, Tail};

use crate::steps::*;
use crate::support::link::Fields;
use crate::support::{Client, Incoming, Server};

fn rename(client: &mut Client, nickname: &str) {
    let answer = client.ask(SetNickname { nickname: Bounded(nickname.as_bytes()) }, "NICKNAME_RESPONSE");
    assert_eq!(answer["success"], true, "{answer:?}");
}

/// Waits for the SERVER_PRESENCE of a nickname.
fn told(client: &mut Client, nickname: &str, online: bool) -> Fields {
    client
        .expect_matching("SERVER_PRESENCE", |presence| presence["nickname"] == nickname && presence["online"] == online)
}

/// The names a client shows as present in `frames`, as clients keep them: by session, the last word counts.
#[derive(Default)]
struct Roster(BTreeMap<u64, String>);

impl Roster {
    fn apply(&mut self, presence: &Fields) {
        let session = number(&presence["session_id"]);
        if presence["online"] == true {
            self.0.insert(session, presence["nickname"].as_str().unwrap().to_owned());
        } else {
            self.0.remove(&session);
        }
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.values().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Reads presence until `last` has come online.
    fn read(&mut self, client: &mut Client, last: &str) {
        while !self.0.values().any(|known| known == last) {
            self.apply(&client.expect_broadcast("SERVER_PRESENCE"));
        }
    }
}

#[test]
fn every_roster_ends_right_whatever_came_and_went() {
    let server = start();
    // The nameless one is told what changes from its first answer on, the others get who is here with their name.
    let mut nameless = server.client();
    nameless.ask(ListChannels { from_channel_id: ChannelId(0), limit: 1 }, "CHANNEL_LIST");
    let observers = [nameless, server.client_named("first"), server.client_named("second")];
    let mut stayed = Vec::new();
    for n in 0..20 {
        let mut client = server.client_named(&format!("guest{n}"));
        match n % 4 {
            0 => client.hang_up(),
            1 => {
                rename(&mut client, &format!("renamed{n}"));
                stayed.push((client, format!("renamed{n}")));
            }
            _ => stayed.push((client, format!("guest{n}"))),
        }
    }
    let [first, second, third] = observers;
    let mut observers = [first, second, third, server.client_named("late")].map(|client| (client, Roster::default()));
    for (observer, roster) in &mut observers {
        roster.read(observer, "late");
    }
    // Within a tick nothing has an order, but this one arrives in a later tick than those before it.
    let _last = server.client_named("last");
    let stayed = stayed.iter().map(|(_, name)| name.as_str());
    let mut expected: Vec<_> = stayed.chain(["first", "second", "late", "last"]).collect();
    expected.sort_unstable();
    for (observer, roster) in &mut observers {
        roster.read(observer, "last");
        assert_eq!(roster.names(), expected);
    }
}

#[test]
fn the_own_entry_comes_and_carries_the_identity_of_the_moment() {
    let server = Server::start(settings().admins(&["boss"]));
    let mut watcher = server.client_named("watcher");
    let mut boss = server.client_named("boss");
    let session = told(&mut boss, "boss", true)["session_id"].clone();
    assert!(number(&session) > 0);
    let entry = |nickname: &str, user: Option<&str>, flags: u8| {
        json!({ "session_id": session, "nickname": nickname, "is_registered": user.is_some(), "user_id": user,
            "user_flags": flags, "online": true })
    };
    let mut check = |client: &mut Client, nickname: &str, user: Option<&str>, flags: u8| {
        for hearer in [client, &mut watcher] {
            let changed = hearer.expect_matching("SERVER_PRESENCE", |presence| {
                presence["nickname"] == nickname
                    && presence["user_id"] == json!(user)
                    && presence["user_flags"] == flags
            });
            assert_eq!(Value::Object(changed), entry(nickname, user, flags));
        }
    };
    boss.ask(RegisterUser { password_hash: secret("boss").as_bytes() }, "REGISTER_RESPONSE");
    check(&mut boss, "boss", Some("1"), 1);
    boss.send(Logout {});
    check(&mut boss, "boss", None, 0);
    sign_in(&mut boss, "boss", "boss");
    check(&mut boss, "boss", Some("1"), 1);
    rename(&mut boss, "plain");
    check(&mut boss, "plain", Some("1"), 0);
    rename(&mut boss, "plain");
    check(&mut boss, "plain", Some("1"), 0);
    boss.hang_up();
    let gone = told(&mut watcher, "plain", false);
    assert_eq!((&gone["session_id"], &gone["user_id"]), (&session, &json!("1")));
}

#[test]
fn the_answer_comes_before_the_presence_it_causes() {
    let server = start();
    let _other = server.client_named("other");
    let mut client = server.client();
    let secret = secret("alice");
    let leave = LeaveChannel { channel_id: GENERAL, subchannel_id: None, permanent: Tail(None) };
    let steps: [(ClientMessage<'_>, &str, &str); 4] = [
        (SetNickname { nickname: Bounded(b"alice") }.into(), "NICKNAME_RESPONSE", "SERVER_PRESENCE"),
        (RegisterUser { password_hash: secret.as_bytes() }.into(), "REGISTER_RESPONSE", "SERVER_PRESENCE"),
        (JoinChannel { channel_id: GENERAL, subchannel_id: None }.into(), "JOIN_RESPONSE", "CHANNEL_PRESENCE"),
        (leave.into(), "LEAVE_RESPONSE", "CHANNEL_PRESENCE"),
    ];
    for (request, reply, presence) in steps {
        client.send(request);
        let Incoming::Frame(first) = client.next() else { panic!("no {reply}") };
        assert_eq!(first.name, reply);
        client.expect_broadcast(presence);
        drain(&mut client);
    }
}

/// Reads what is still on its way: a presence tick has passed once a change made now has come.
fn drain(client: &mut Client) {
    rename(client, "drained");
    told(client, "drained", true);
    client.quiet();
}

#[test]
fn a_fresh_session_hears_nothing_before_its_first_answer() {
    let server = start();
    let mut fresh = server.client();
    let mut witness = server.client_named("witness");
    let _arrived: Vec<_> = (0..5).map(|n| server.client_named(&format!("guest{n}"))).collect();
    told(&mut witness, "guest4", true);
    let passing = server.client_named("passing");
    told(&mut witness, "passing", true);
    passing.hang_up();
    told(&mut witness, "passing", false);
    fresh.send(ListChannels { from_channel_id: ChannelId(0), limit: 1 });
    let Incoming::Frame(first) = fresh.next() else { panic!("no frame") };
    assert_eq!(first.name, "CHANNEL_LIST", "the very next frame");
    let mut roster = Roster::default();
    roster.read(&mut fresh, "guest4");
    let _last = server.client_named("last");
    roster.read(&mut fresh, "last");
    assert_eq!(roster.names(), ["guest0", "guest1", "guest2", "guest3", "guest4", "last", "witness"]);
}

#[test]
fn nameless_sessions_leave_no_trace() {
    let server = start();
    let mut watcher = server.client_named("watcher");
    told(&mut watcher, "watcher", true);
    let mut nameless = server.client();
    join(&mut nameless, GENERAL);
    join(&mut watcher, GENERAL);
    nameless.hang_up();
    let _marker = server.client_named("marker");
    told(&mut watcher, "marker", true);
    let others: Vec<_> = watcher.quiet().into_iter().filter(|frame| frame.fields["nickname"] != "watcher").collect();
    assert!(others.is_empty(), "{others:?}");
}

// ---- Channels -------------------------------------------------------------------------------------------------------

fn in_channel(client: &mut Client, channel: ChannelId, nickname: &str, joined: bool) -> Fields {
    let id = channel.0.to_string();
    client.expect_matching("CHANNEL_PRESENCE", |presence| {
        presence["channel_id"] == *id && presence["nickname"] == nickname && presence["joined"] == joined
    })
}

#[test]
fn a_channel_is_told_who_comes_and_goes() {
    let server = start();
    let (mut joined, mut subscribed, mut elsewhere) =
        (server.client_named("joined"), server.client_named("subscribed"), server.client_named("elsewhere"));
    join(&mut joined, GENERAL);
    subscribe(&mut subscribed, GENERAL);
    join(&mut elsewhere, TECH);
    let mut alice = registered(&server, "alice");
    join(&mut alice, GENERAL);
    let expected = |session: &Value, joined: bool| {
        json!({ "channel_id": "2", "subchannel_id": null, "session_id": session, "nickname": "alice",
            "is_registered": true, "user_id": "1", "user_flags": 0, "joined": joined })
    };
    let own = in_channel(&mut alice, GENERAL, "alice", true);
    assert_eq!(Value::Object(own.clone()), expected(&own["session_id"], true));
    for hearer in [&mut joined, &mut subscribed] {
        assert_eq!(in_channel(hearer, GENERAL, "alice", true), own);
    }
    join(&mut alice, TECH);
    for hearer in [&mut joined, &mut subscribed, &mut alice] {
        assert_eq!(Value::Object(in_channel(hearer, GENERAL, "alice", false)), expected(&own["session_id"], false));
    }
    in_channel(&mut elsewhere, TECH, "alice", true);
    alice.hang_up();
    in_channel(&mut elsewhere, TECH, "alice", false);
    let of_alice = |client: &mut Client| -> Vec<_> {
        client
            .quiet()
            .into_iter()
            .filter(|frame| frame.name == "CHANNEL_PRESENCE" && frame.fields["nickname"] == "alice")
            .collect()
    };
    assert!(
        [joined, subscribed, elsewhere].iter_mut().all(|client| of_alice(client).is_empty()),
        "nobody heard anything twice"
    );
}

#[test]
fn whoever_leaves_hears_it_once_subscribed_or_not() {
    let server = start();
    for subscribed in [false, true] {
        let mut client = server.client_named("leaver");
        if subscribed {
            subscribe(&mut client, GENERAL);
        }
        join(&mut client, GENERAL);
        in_channel(&mut client, GENERAL, "leaver", true);
        client.ask(LeaveChannel { channel_id: GENERAL, subchannel_id: None, permanent: Tail(None) }, "LEAVE_RESPONSE");
        in_channel(&mut client, GENERAL, "leaver", false);
        drain(&mut client);
        let more: Vec<_> = client.quiet().into_iter().filter(|frame| frame.name == "CHANNEL_PRESENCE").collect();
        assert!(more.is_empty(), "{more:?}");
        client.hang_up();
    }
}

#[test]
fn a_new_name_and_a_sign_in_are_shown_where_one_has_joined() {
    let server = start();
    drop(registered(&server, "alice"));
    let mut watcher = server.client_named("watcher");
    join(&mut watcher, GENERAL);
    let mut client = server.client();
    join(&mut client, GENERAL);
    for nickname in ["guest", "other"] {
        rename(&mut client, nickname);
        assert_eq!(in_channel(&mut watcher, GENERAL, nickname, true)["user_id"], Value::Null);
    }
    sign_in(&mut client, "alice", "alice");
    assert_eq!(in_channel(&mut watcher, GENERAL, "alice", true)["user_id"], "1");
    client.send(Logout {});
    let out = watcher.expect_matching("CHANNEL_PRESENCE", |presence| {
        presence["nickname"] == "alice" && presence["user_id"] == Value::Null
    });
    assert_eq!(out["joined"], true);
}

#[test]
fn joining_again_repeats_the_answer_and_the_presence() {
    let server = start();
    let mut watcher = server.client_named("watcher");
    subscribe(&mut watcher, GENERAL);
    let mut client = server.client_named("guest");
    for _ in 0..3 {
        join(&mut client, GENERAL);
        in_channel(&mut client, GENERAL, "guest", true);
        in_channel(&mut watcher, GENERAL, "guest", true);
    }
}
