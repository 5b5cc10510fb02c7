//! How often: requests, messages, channels, sign-ins (BEHAVIOUR.md 2.1, 2.8, 9.1, 9.2). Each rate counts for clients
//! that are not exempt, can be switched off, and answers in a way that its request waits for.

use std::time::Duration;

use serde_json::json;
use superchat::ids::ChannelId;
use superchat::wire::client::{
    AuthRequest, ChangePassword, CreateChannel, CreateSubchannel, Ping, RegisterUser, SubscribeChannel,
};

use super::connections::{FORUM, bytes, newest, post};
use super::limits::nobody_exempt;
use crate::support::{Client, Incoming, Server, Settings, clock};

/// What a client makes of a password: 43 characters.
pub(super) const SECRET: &[u8] = b"kXr0mB3vV1n9oZ4yQ2LwxsCt7uJ5eHdPaGfIiKlMnOp";
const THROTTLED: &str = "Too many attempts. Try again later.";

fn register(client: &mut Client) {
    assert_eq!(client.ask(RegisterUser { password_hash: SECRET }, "REGISTER_RESPONSE")["success"], true);
}

fn sign_in(client: &mut Client, nickname: &str) -> String {
    let request = AuthRequest { nickname: nickname.as_bytes(), password_hash: SECRET };
    client.ask(request, "AUTH_RESPONSE")["message"].as_str().unwrap().to_owned()
}

mod requests {
    use super::*;

    const RATE: usize = 5;
    const BURST: usize = 2 * RATE;

    /// Sends `count` PINGs at once and says for each whether it was answered; the others got ERROR 5000.
    fn pings(client: &mut Client, count: usize) -> Vec<bool> {
        client.send_raw(&bytes("PING", json!({ "timestamp": "1" })).repeat(count));
        let answer = |_| match client.next() {
            Incoming::Frame(frame) if frame.name == "PONG" => true,
            Incoming::Frame(frame) if frame.fields["message"] == "Rate limit exceeded" => {
                assert_eq!(frame.fields["error_code"], 5000);
                false
            }
            other => panic!("{other:?}"),
        };
        (0..count).map(answer).collect()
    }

    #[test]
    fn a_burst_of_twice_the_rate_is_served_and_the_rest_refused() {
        let server = Server::start(nobody_exempt().set("limits", "requests_per_second", RATE));
        let mut client = server.client();
        let start = clock::instant();
        let served = pings(&mut client, 20 * BURST);
        // What a slow machine gives time for comes on top.
        let refilled = RATE * usize::try_from(start.elapsed().as_secs() + 1).unwrap();
        assert!(served[..BURST].iter().all(|served| *served), "{served:?}");
        let count = served.iter().filter(|served| **served).count();
        assert!((BURST..=BURST + refilled).contains(&count), "{count} served");
        // Another session has its own rate, and the first one gets new credit.
        assert!(pings(&mut server.client(), BURST).into_iter().all(|served| served));
        clock::poll(Duration::from_secs(10), || pings(&mut client, 1)[0].then_some(())).expect("no new credit");
    }

    #[test]
    fn a_request_over_the_rate_is_not_carried_out() {
        let server = Server::start(nobody_exempt().set("limits", "requests_per_second", 1));
        let mut client = server.client();
        pings(&mut client, 20);
        client.send_json("SET_NICKNAME", json!({ "nickname": "too-fast" }));
        assert_eq!(client.expect_error(5000), "Rate limit exceeded");
        // One is answered at last, and finds nobody of that name.
        let online = clock::poll(Duration::from_secs(10), || {
            client.send_json("GET_USER_INFO", json!({ "nickname": "too-fast" }));
            match client.next() {
                Incoming::Frame(frame) if frame.name == "USER_INFO" => Some(frame.fields["online"].clone()),
                _ => None,
            }
        });
        assert_eq!(online, Some(json!(false)));
    }

    #[test]
    fn loopback_is_free_of_it_by_default_and_zero_is_off() {
        let by_default = Settings::new().set("limits", "requests_per_second", 1);
        let off = nobody_exempt().set("limits", "requests_per_second", 0);
        for settings in [by_default, off] {
            let server = Server::start(settings);
            assert_eq!(pings(&mut server.client(), 1000), [true; 1000]);
        }
    }
}

mod messages {
    use super::*;

    const RATE: usize = 3;

    fn server(settings: Settings) -> Server {
        // The limit on connections would also allow an address only so many posts.
        Server::start(settings.set("limits", "message_rate_limit", RATE).set("limits", "requests_per_second", 0))
    }

    fn post_until_refused(client: &mut Client) -> usize {
        let mut posted = 0;
        loop {
            client.send(post(b"hello"));
            match answer(client) {
                frame if frame.name == "MESSAGE_POSTED" => posted += 1,
                frame => {
                    assert_eq!(frame.fields["error_code"], 5001, "{frame}");
                    assert_eq!(frame.fields["message"], "Message rate limit exceeded");
                    return posted;
                }
            }
        }
    }

    fn answer(client: &mut Client) -> crate::support::Received {
        loop {
            match client.next() {
                Incoming::Frame(frame) if ["MESSAGE_POSTED", "ERROR"].contains(&frame.name.as_str()) => return frame,
                Incoming::Frame(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn stored(server: &Server) -> usize {
        server.client().ask(newest(FORUM, 200), "MESSAGE_LIST")["messages"].as_array().unwrap().len()
    }

    #[test]
    fn a_visitor_posts_so_many_a_minute_and_what_is_refused_is_not_stored_or_told() {
        let server = server(nobody_exempt());
        let mut reader = server.client();
        reader.ask(SubscribeChannel { channel_id: FORUM, subchannel_id: None }, "SUBSCRIBE_OK");
        let mut visitor = server.client_named("visitor");
        assert_eq!(post_until_refused(&mut visitor), RATE);
        visitor.quiet();
        assert_eq!(stored(&server), RATE);
        let told = reader.quiet().into_iter().filter(|frame| frame.name == "NEW_MESSAGE").count();
        assert_eq!(told, RATE);
        assert_eq!(post_until_refused(&mut server.client_named("other")), RATE, "others have their own rate");
    }

    #[test]
    fn an_account_has_one_rate_over_all_its_sessions() {
        let server = server(nobody_exempt());
        let mut first = server.client_named("owner");
        register(&mut first);
        let mut second = server.client();
        assert_eq!(sign_in(&mut second, "owner"), "Welcome back, owner!");
        first.ask(post(b"one"), "MESSAGE_POSTED");
        assert_eq!(post_until_refused(&mut second), RATE - 1);
        assert_eq!(post_until_refused(&mut first), 0);
    }

    #[test]
    fn a_visitor_who_comes_back_again_and_again_is_held_up_at_last() {
        let server = server(nobody_exempt().set("limits", "max_connections_per_ip", 2));
        let mut posted = 0;
        for _ in 0..4 {
            let mut visitor = clock::poll(Duration::from_secs(10), || {
                let mut client = server.client();
                client.send(Ping { timestamp: 1 });
                matches!(client.next(), Incoming::Frame(frame) if frame.name == "PONG").then_some(client)
            })
            .expect("no place is given back");
            visitor.send_json("SET_NICKNAME", json!({ "nickname": "visitor" }));
            visitor.expect_reply("NICKNAME_RESPONSE");
            posted += post_until_refused(&mut visitor);
            visitor.hang_up();
        }
        assert_eq!(posted, 2 * RATE, "as many as the sessions an address may have could post");
    }

    #[test]
    fn loopback_is_free_of_it_by_default_and_zero_is_off() {
        let by_default = Settings::new().set("limits", "message_rate_limit", 1);
        let off = nobody_exempt().set("limits", "message_rate_limit", 0);
        for settings in [by_default, off] {
            let server = Server::start(settings);
            let mut client = server.client_named("busy");
            (0..50).for_each(|_| drop(client.ask(post(b"hello"), "MESSAGE_POSTED")));
            assert_eq!(stored(&server), 50);
        }
    }
}

mod channels {
    use super::*;

    fn create(client: &mut Client, name: &str) -> (bool, String) {
        let request = CreateChannel {
            name: name.as_bytes(),
            display_name: name.as_bytes(),
            description: None,
            channel_type: 1,
            retention_hours: 24,
        };
        let reply = client.ask(request, "CHANNEL_CREATED");
        (reply["success"] == true, reply["message"].as_str().unwrap().to_owned())
    }

    fn owner(server: &Server) -> Client {
        let mut owner = server.client_named("owner");
        register(&mut owner);
        owner
    }

    #[test]
    fn an_account_creates_so_many_an_hour_subchannels_included() {
        let server = Server::start(nobody_exempt().set("limits", "max_channel_creates", 2));
        let mut owner = owner(&server);
        let request = CreateChannel {
            name: b"mine",
            display_name: b"mine",
            description: None,
            channel_type: 1,
            retention_hours: 24,
        };
        let created = owner.ask(request, "CHANNEL_CREATED");
        let channel_id = ChannelId(created["channel_id"].as_str().unwrap().parse().unwrap());
        let sub = |name| CreateSubchannel { channel_id, name, description: b"", channel_type: 1, retention_hours: 24 };
        assert_eq!(owner.ask(sub(b"first"), "SUBCHANNEL_CREATED")["success"], true);

        const REFUSAL: &str = "Channel creation rate limit exceeded";
        let refused = owner.ask(sub(b"second"), "SUBCHANNEL_CREATED");
        assert_eq!((&refused["success"], &refused["message"]), (&json!(false), &json!(REFUSAL)));
        assert_eq!(create(&mut owner, "third"), (false, REFUSAL.to_owned()));
        let mut other = server.client_named("other");
        register(&mut other);
        assert!(create(&mut other, "theirs").0, "others have their own rate");
    }

    #[test]
    fn loopback_is_free_of_it_by_default_and_zero_is_off() {
        let by_default = Settings::new().set("limits", "max_channel_creates", 1);
        let off = nobody_exempt().set("limits", "max_channel_creates", 0);
        for settings in [by_default, off] {
            let server = Server::start(settings);
            let mut owner = owner(&server);
            (0..8).for_each(|number| assert!(create(&mut owner, &format!("channel-{number}")).0));
        }
    }
}

mod sign_ins {
    use super::*;

    const RATE: u32 = 2;

    fn server(settings: Settings) -> Server {
        Server::start(settings.set("limits", "auth_attempts_per_minute", RATE))
    }

    #[test]
    fn attempts_from_an_address_are_throttled_whatever_the_name_and_session() {
        let server = server(nobody_exempt());
        let attempts: Vec<_> =
            ["one", "two", "three", "four"].iter().map(|name| sign_in(&mut server.client(), name)).collect();
        assert_eq!(attempts, ["Invalid credentials", "Invalid credentials", THROTTLED, THROTTLED]);
    }

    #[test]
    fn registering_and_changing_a_password_count_and_answer_in_their_own_replies() {
        let server = server(nobody_exempt());
        let mut owner = server.client_named("owner");
        register(&mut owner);
        let change = ChangePassword { old_password_hash: SECRET, new_password_hash: SECRET };
        assert_eq!(owner.ask(change.clone(), "PASSWORD_CHANGED")["success"], true);
        let refused = owner.ask(change, "PASSWORD_CHANGED");
        assert_eq!((&refused["success"], &refused["error_message"]), (&json!(false), &json!(THROTTLED)));
        let mut other = server.client_named("other");
        let refused = other.ask(RegisterUser { password_hash: SECRET }, "REGISTER_RESPONSE");
        assert_eq!((&refused["success"], &refused["message"]), (&json!(false), &json!(THROTTLED)));
        assert_eq!(sign_in(&mut other, "owner"), THROTTLED);
        assert_eq!(owner.quiet().iter().filter(|frame| frame.name == "ERROR").count(), 0);
    }

    #[test]
    fn loopback_is_free_of_it_by_default_and_zero_is_off() {
        let off = nobody_exempt().set("limits", "auth_attempts_per_minute", 0);
        for server in [server(Settings::new()), Server::start(off)] {
            let mut client = server.client();
            let attempts: Vec<_> = (0..4).map(|_| sign_in(&mut client, "nobody")).collect();
            assert_eq!(attempts, ["Invalid credentials"; 4]);
        }
    }
}
