//! What nobody should send: every malformed vector against the live server (WIRE.md 2, 3 and 8). The session lives
//! unless the boundary of the next frame is lost, and nothing is stored.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use superchat::ids::ChannelId;
use superchat::wire::client::{ListChannels, RegisterUser};
use superchat::wire::json::from_hex;
use superchat::wire::{ClientMessage, ServerMessage};

use super::connections::newest;
use super::rates::SECRET;
use crate::support::{Client, Received, Server, Settings};

fn vectors(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vectors").join(file);
    let entries: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(entries.len() > 10, "{file} has only {} entries", entries.len());
    entries.into_iter().filter(|entry| entry["decoder_dependent"] != true).collect()
}

/// The frame of a vector; `None` for those whose length needs another notation, which are the server's own.
fn frame(entry: &Value) -> Option<Vec<u8>> {
    entry["frame_hex"].as_str().map(|hex| from_hex(hex).unwrap())
}

fn is_unreadable(entry: &Value) -> bool {
    entry["stage"] == "message" && entry["direction"] == "c2s"
}

fn is_bad_frame(entry: &Value) -> bool {
    entry["stage"] == "frame"
}

/// The input ended too early: there may be more to come.
fn is_cut(entry: &Value) -> bool {
    entry["go_result"].as_str().unwrap().ends_with("EOF")
}

/// Answers to one request: what came up to the next PONG, without presence.
fn answers(client: &mut Client, request: &[u8]) -> Vec<Received> {
    client.send_raw(request);
    let mut seen = client.quiet();
    seen.retain(|frame| !frame.name.ends_with("_PRESENCE"));
    seen
}

fn said(frame: &Received) -> (&str, u64, &str) {
    let text = ["message", "error_message"].into_iter().find_map(|field| frame.fields.get(field)).unwrap();
    (&frame.name, frame.fields.get("error_code").and_then(Value::as_u64).unwrap_or(0), text.as_str().unwrap())
}

fn admin(server: &Server) -> Client {
    let mut admin = server.client_named("admin");
    assert_eq!(admin.ask(RegisterUser { password_hash: SECRET }, "REGISTER_RESPONSE")["success"], true);
    admin.expect_matching("SERVER_PRESENCE", |fields| fields["user_flags"] == 1);
    admin
}

fn start() -> Server {
    Server::start(Settings::new().admins(&["admin"]))
}

/// Everything that clients can see of what is stored.
fn contents(server: &Server) -> Vec<Value> {
    let mut client = server.client();
    let channels = client.ask(ListChannels { from_channel_id: ChannelId(0), limit: 0 }, "CHANNEL_LIST");
    let ids = channels["channels"].as_array().unwrap().iter().map(|channel| channel["channel_id"].as_str().unwrap());
    let ids: Vec<u64> = ids.map(|id| id.parse().unwrap()).collect();
    let mut lists: Vec<_> =
        ids.into_iter().map(|id| Value::Object(client.ask(newest(ChannelId(id), 0), "MESSAGE_LIST"))).collect();
    lists.push(Value::Object(channels));
    lists
}

mod payloads {
    use super::*;

    /// What BEHAVIOUR.md 2 to 6 and WIRE.md 8 answer to somebody who may send the request.
    fn answer_to_admin(request: &str) -> (&'static str, u64, &'static str) {
        match request {
            "CREATE_CHANNEL" => ("CHANNEL_CREATED", 0, "Invalid request format"),
            "CREATE_SUBCHANNEL" => ("SUBCHANNEL_CREATED", 0, "Invalid request format"),
            "GET_SUBCHANNELS" | "ADD_SSH_KEY" | "UPDATE_SSH_KEY_LABEL" | "DELETE_SSH_KEY" => {
                ("ERROR", 1000, "Invalid request format")
            }
            "CHANGE_PASSWORD" => ("ERROR", 1000, "Invalid change password request"),
            "START_DM" => ("ERROR", 1000, "Invalid START_DM format"),
            "PROVIDE_PUBLIC_KEY" => ("ERROR", 1000, "Invalid PROVIDE_PUBLIC_KEY format"),
            "ALLOW_UNENCRYPTED" => ("ERROR", 1000, "Invalid ALLOW_UNENCRYPTED format"),
            "DECLINE_DM" => ("ERROR", 1000, "Invalid DECLINE_DM format"),
            "long POST_MESSAGE" | "long EDIT_MESSAGE" => ("ERROR", 6001, "Message too long (max 4096 bytes)"),
            _ => ("ERROR", 1000, "Invalid message format"),
        }
    }

    /// A visitor is refused by what is checked before reading.
    fn answer_to_visitor(request: &str) -> (&'static str, u64, &'static str) {
        const ADMIN: &str = "Permission denied: admin access required";
        match request {
            "long POST_MESSAGE" => ("ERROR", 2000, "Nickname required. Use SET_NICKNAME first."),
            "long EDIT_MESSAGE" => ("ERROR", 2000, "Authentication required. Register to edit messages."),
            "CHANGE_PASSWORD" => ("ERROR", 2000, "Must be authenticated to change password"),
            "ADD_SSH_KEY" => ("ERROR", 2000, "Must be authenticated to add SSH key"),
            "UPDATE_SSH_KEY_LABEL" => ("ERROR", 2000, "Must be authenticated to update SSH key"),
            "DELETE_SSH_KEY" => ("ERROR", 2000, "Must be authenticated to delete SSH key"),
            "BAN_USER" => ("USER_BANNED", 0, ADMIN),
            "BAN_IP" => ("IP_BANNED", 0, ADMIN),
            "UNBAN_USER" => ("USER_UNBANNED", 0, ADMIN),
            "UNBAN_IP" => ("IP_UNBANNED", 0, ADMIN),
            "DELETE_USER" => ("USER_DELETED", 0, ADMIN),
            "DELETE_CHANNEL" => ("CHANNEL_DELETED", 0, ADMIN),
            "LIST_BANS" => ("ERROR", 3000, ADMIN),
            other => answer_to_admin(other),
        }
    }

    /// These have an answer of their own, or none, whatever the payload.
    const ELSEWHERE: &[&str] = &["LEAVE_CHANNEL", "DISCONNECT", "REGISTER_SERVER", "HEARTBEAT"];

    fn unreadable() -> Vec<(String, String, Vec<u8>)> {
        let files = ["malformed_payload.json", "malformed_truncated.json"];
        let entries = files.into_iter().flat_map(vectors).filter(is_unreadable);
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
        entries.filter_map(|entry| Some((text(&entry, "name"), text(&entry, "type"), frame(&entry)?))).collect()
    }

    fn check(client: &mut Client, expected: fn(&str) -> (&'static str, u64, &'static str)) {
        let mut seen = BTreeSet::new();
        for (name, request, bytes) in
            unreadable().into_iter().filter(|(_, request, _)| !ELSEWHERE.contains(&&**request))
        {
            let is_text_too_long = ["POST_MESSAGE", "EDIT_MESSAGE"].contains(&&*request) && bytes.len() > 4096;
            let answers = answers(client, &bytes);
            assert_eq!(answers.len(), 1, "{name}: {answers:?}");
            let request = if is_text_too_long { format!("long {request}") } else { request };
            assert_eq!(said(&answers[0]), expected(&request), "{name}");
            seen.insert(request);
        }
        assert!(seen.len() > 30, "only {seen:?}");
    }

    #[test]
    fn what_an_admin_sends_unreadably_is_answered_by_its_request_and_stores_nothing() {
        let server = start();
        let before = contents(&server);
        let mut admin = admin(&server);
        check(&mut admin, answer_to_admin);
        assert_eq!(contents(&server), before);
    }

    #[test]
    fn a_visitor_is_refused_before_the_payload_is_read() {
        let server = start();
        let before = contents(&server);
        check(&mut server.client(), answer_to_visitor);
        assert_eq!(contents(&server), before);
    }

    #[test]
    fn unusual_but_readable_requests_leave_the_session_alive() {
        let server = start();
        let mut client = server.client();
        let mut sent = 0;
        for file in ["malformed_payload.json", "malformed_frame.json", "malformed_lz4.json"] {
            let mut entries = vectors(file);
            entries.retain(|entry| entry["go_result"] == "ok" && entry["unread_bytes"].is_null());
            for entry in entries.iter().filter(|entry| entry["direction"] == "c2s" && entry["type"] != "DISCONNECT") {
                client.send_raw(&frame(entry).unwrap());
                client.quiet();
                sent += 1;
            }
        }
        assert!(sent > 30, "only {sent}");
    }

    #[test]
    fn leave_channel_without_a_payload_leaves_whichever_channel_is_joined() {
        let server = start();
        let mut client = server.client_named("leaver");
        client.send_json("JOIN_CHANNEL", json!({ "channel_id": "2", "subchannel_id": null }));
        client.expect_reply("JOIN_RESPONSE");
        client.send_raw(&[0, 0, 0, 3, 2, 6, 0]);
        let reply = client.expect_reply("LEAVE_RESPONSE");
        assert_eq!((&reply["success"], &reply["channel_id"]), (&json!(true), &json!("2")));
    }

    #[test]
    fn with_the_directory_off_its_requests_are_refused_unread() {
        let server = Server::start(Settings::new().set("discovery", "directory_enabled", false));
        let mut client = server.client();
        for code in [0x56, 0x57] {
            client.send_raw(&[0, 0, 0, 3, 2, code, 0]);
            assert_eq!(client.expect_error(1001), "Directory mode not enabled on this server");
        }
        client.send_raw(&[0, 0, 0, 3, 2, 0x55, 0]);
        assert_eq!(client.expect_reply("SERVER_LIST")["servers"], json!([]));
    }
}

mod types {
    use super::*;

    fn codes_of_clients() -> BTreeSet<u8> {
        ClientMessage::TABLE.iter().map(|(code, _)| *code).collect()
    }

    #[test]
    fn types_that_nobody_or_only_a_server_sends_are_refused_and_the_session_lives() {
        let server = start();
        let mut client = server.client();
        let known = codes_of_clients();
        let refused: Vec<_> = (0..=u8::MAX).filter(|code| !known.contains(code)).collect();
        assert!(ServerMessage::TABLE.iter().filter(|(code, _)| refused.contains(code)).count() > 40);
        for code in refused {
            for payload in [&b""[..], b"hello", &[0xff; 300]] {
                let length = u32::try_from(3 + payload.len()).unwrap().to_be_bytes();
                client.send_raw(&[&length[..], &[2, code, 0], payload].concat());
                assert_eq!(client.expect_error(1001), "Unsupported message type", "{code:#04x}");
            }
        }
        assert_eq!(client.quiet(), []);
    }
}

mod frames {
    use super::*;

    fn check(bytes: &[u8], server: &Server, name: &str) {
        let mut client = server.client();
        client.send_raw(bytes);
        let last = client.expect_close();
        assert_eq!(last.len(), 1, "{name}: {last:?}");
        assert_eq!((&*last[0].name, &last[0].fields["reason"]), ("DISCONNECT", &json!("Protocol violation")), "{name}");
    }

    #[test]
    fn a_frame_whose_boundary_is_lost_ends_the_session_with_the_reason() {
        let server = start();
        let mut other = server.client();
        let mut sent = 0;
        for entry in ["malformed_frame.json", "malformed_lz4.json"].into_iter().flat_map(vectors) {
            let (name, frame) = (entry["name"].as_str().unwrap(), frame(&entry));
            if let Some(bytes) = frame.filter(|_| is_bad_frame(&entry) && !is_cut(&entry)) {
                check(&bytes, &server, name);
                sent += 1;
            }
        }
        assert!(sent > 40, "only {sent}");
        assert_eq!(other.quiet(), [], "others do not notice");
    }

    #[test]
    fn a_frame_that_is_cut_off_is_waited_for() {
        let server = start();
        for entry in vectors("malformed_frame.json").iter().filter(|entry| is_bad_frame(entry) && is_cut(entry)) {
            let (name, bytes) = (entry["name"].as_str().unwrap(), frame(entry).unwrap());
            if !name.starts_with("stream_cut") {
                continue;
            }
            let whole = from_hex("0000000b0210000000019aa3b5ec00").unwrap();
            let mut client = server.client();
            client.send_raw(&bytes);
            client.send_raw(&whole[bytes.len()..]);
            assert_eq!(client.expect_reply("PONG")["client_timestamp"], "1763683200000", "{name}");
        }
    }

    #[test]
    fn requests_before_the_bad_frame_are_answered_and_those_behind_it_are_not() {
        let server = start();
        let mut client = server.client();
        let ping = from_hex("0000000b0210000000019aa3b5ec00").unwrap();
        client.send_raw(&[&ping[..], &[0, 0, 0, 2], &ping].concat());
        let last = client.expect_close();
        let names: Vec<_> = last.iter().map(|frame| &*frame.name).collect();
        assert_eq!(names, ["PONG", "DISCONNECT"]);
    }

    #[test]
    fn the_largest_frame_is_read_and_one_byte_more_is_refused() {
        let server = start();
        let mut client = server.client();
        let mut largest = vec![0x00, 0x10, 0x00, 0x00, 2, 0x1f, 0];
        largest.resize(4 + 1_048_576, 0);
        client.send_raw(&largest);
        assert_eq!(client.expect_error(1001), "Unsupported message type");
        check(&[0x00, 0x10, 0x00, 0x01], &server, "one byte more");
    }
}

mod values {
    use super::*;

    #[test]
    fn texts_beyond_their_bounds_are_refused_by_name_and_not_stored() {
        let server = Server::start(Settings::new().set("limits", "max_message_length", 100));
        let mut client = server.client();
        client.send_json("SET_NICKNAME", json!({ "nickname": "no spaces" }));
        let refused = client.expect_reply("NICKNAME_RESPONSE");
        assert_eq!(refused["message"], "Invalid nickname. Must be 3-20 characters, alphanumeric plus - and _");
        client.send_json("SET_NICKNAME", json!({ "nickname": "author" }));
        client.expect_reply("NICKNAME_RESPONSE");
        for length in [101_u16, 4096, 4097, u16::MAX] {
            let text = vec![b'a'; length.into()];
            let fields = [&[0, 0, 0, 0, 0, 0, 0, 2, 0, 0][..], &length.to_be_bytes(), &text].concat();
            let header = [&u32::try_from(3 + fields.len()).unwrap().to_be_bytes()[..], &[2, 0x0A, 0]].concat();
            client.send_raw(&[header, fields].concat());
            assert_eq!(client.expect_error(6001), "Message too long (max 100 bytes)", "{length}");
        }
        let list = client.ask(newest(ChannelId(2), 0), "MESSAGE_LIST");
        assert_eq!(list["messages"], json!([]));
    }

    #[test]
    fn requests_out_of_order_or_for_what_is_not_there_are_refused_by_code() {
        let server = start();
        let post = |channel_id: &str, subchannel_id: Value, parent_id: Value| {
            json!({ "channel_id": channel_id,
            "subchannel_id": subchannel_id, "parent_id": parent_id, "content": "hello" })
        };
        let nobody = [
            ("POST_MESSAGE", post("2", Value::Null, Value::Null), 2000, "Nickname required. Use SET_NICKNAME first."),
            ("DELETE_MESSAGE", json!({ "message_id": "1" }), 6004, "Nickname required. Use SET_NICKNAME first."),
            (
                "EDIT_MESSAGE",
                json!({ "message_id": "1", "new_content": "x" }),
                2000,
                "Authentication required. Register to edit messages.",
            ),
        ];
        let visitor = [
            ("POST_MESSAGE", post("999", Value::Null, Value::Null), 4001, "Channel not found"),
            ("POST_MESSAGE", post("2", json!("999"), Value::Null), 4004, "Subchannel does not exist"),
            ("POST_MESSAGE", post("2", Value::Null, json!("999")), 4002, "Message not found"),
            (
                "POST_MESSAGE",
                post("1", Value::Null, json!("999")),
                6000,
                "Chat channels do not support threaded replies",
            ),
            ("DELETE_MESSAGE", json!({ "message_id": "999" }), 4002, "Message not found"),
            ("SUBSCRIBE_THREAD", json!({ "thread_id": "999" }), 4003, "Thread does not exist"),
            (
                "SUBSCRIBE_CHANNEL",
                json!({ "channel_id": "999", "subchannel_id": null }),
                4001,
                "Channel does not exist",
            ),
            (
                "SUBSCRIBE_CHANNEL",
                json!({ "channel_id": "2", "subchannel_id": "999" }),
                4004,
                "Subchannel does not exist",
            ),
            ("LIST_BANS", json!({ "include_expired": true }), 3000, "Permission denied: admin access required"),
        ];
        refused(&mut server.client(), &nobody);
        refused(&mut server.client_named("visitor"), &visitor);
    }

    fn refused(client: &mut Client, cases: &[(&str, Value, u16, &str)]) {
        for (name, fields, code, text) in cases {
            client.send_json(name, fields.clone());
            assert_eq!(client.expect_error(*code), *text, "{name} {fields}");
        }
    }
}
