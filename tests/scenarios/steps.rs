//! Steps that several scenarios take: requests as one call, and looks into the file.

#![allow(unreachable_pub, reason = "modules of a test binary have no other crate to be reached from")]

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use serde_json::Value;
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::ClientMessage;
use superchat::wire::client::{
    AuthRequest, CreateChannel, JoinChannel, ListMessages, PostMessage, RegisterUser, SubscribeChannel, SubscribeThread,
};
use superchat::wire::codec::Bounded;

use crate::support::link::Fields;
use crate::support::{Client, Received, Server, Settings};

/// The seed channels' ids in a new file.
pub const CHAT: ChannelId = ChannelId(1);
pub const GENERAL: ChannelId = ChannelId(2);
pub const TECH: ChannelId = ChannelId(3);

/// Two shards wherever the tests run, so that two clients meet across them.
pub fn settings() -> Settings {
    Settings::new().set("server", "shards", 2)
}

pub fn start() -> Server {
    Server::start(settings())
}

/// Settings under which the announced limits count for the tests' own address too.
pub fn limited() -> Settings {
    settings().set("limits", "exempt_networks", Vec::<String>::new()).set("limits", "max_connections_per_ip", 0)
}

/// What a client sends for a password: 43 characters.
pub fn secret(password: &str) -> String {
    format!("{password:_<43}")
}

/// A session that registered `nickname` with the password `nickname`.
pub fn registered(server: &Server, nickname: &str) -> Client {
    let mut client = server.client_named(nickname);
    let answer = client.ask(RegisterUser { password_hash: secret(nickname).as_bytes() }, "REGISTER_RESPONSE");
    assert_eq!(answer["success"], true, "{answer:?}");
    client
}

/// The answer to a sign-in attempt.
pub fn sign_in(client: &mut Client, nickname: &str, password: &str) -> Fields {
    let password_hash = secret(password);
    client.ask(AuthRequest { nickname: nickname.as_bytes(), password_hash: password_hash.as_bytes() }, "AUTH_RESPONSE")
}

pub fn post(channel: ChannelId, content: &[u8]) -> PostMessage<'_> {
    PostMessage { channel_id: channel, subchannel_id: None, parent_id: None, content: Bounded(content) }
}

pub fn reply(channel: ChannelId, parent: MessageId, content: &[u8]) -> PostMessage<'_> {
    PostMessage { parent_id: Some(parent), ..post(channel, content) }
}

/// Posts and returns the id.
pub fn posted(client: &mut Client, message: PostMessage<'_>) -> MessageId {
    MessageId(number(&client.ask(message, "MESSAGE_POSTED")["message_id"]))
}

pub fn roots(channel: ChannelId) -> ListMessages {
    ListMessages {
        channel_id: channel,
        subchannel_id: None,
        limit: 0,
        before_id: None,
        parent_id: None,
        after_id: None,
    }
}

pub fn thread(channel: ChannelId, parent: MessageId) -> ListMessages {
    ListMessages { parent_id: Some(parent), ..roots(channel) }
}

/// The messages of a list.
pub fn listed(client: &mut Client, request: ListMessages) -> Vec<Value> {
    items(&client.ask(request, "MESSAGE_LIST"), "messages")
}

/// One field of every message of a list.
pub fn column(client: &mut Client, request: ListMessages, field: &str) -> Vec<Value> {
    listed(client, request).into_iter().map(|message| message[field].clone()).collect()
}

pub fn contents(client: &mut Client, request: ListMessages) -> Vec<Value> {
    column(client, request, "content")
}

pub fn subscribe(client: &mut Client, channel: ChannelId) {
    client.ask(SubscribeChannel { channel_id: channel, subchannel_id: None }, "SUBSCRIBE_OK");
}

pub fn follow(client: &mut Client, thread: MessageId) {
    client.ask(SubscribeThread { thread_id: thread }, "SUBSCRIBE_OK");
}

pub fn join(client: &mut Client, channel: ChannelId) {
    let answer = client.ask(JoinChannel { channel_id: channel, subchannel_id: None }, "JOIN_RESPONSE");
    assert_eq!(answer["success"], true, "{answer:?}");
}

pub fn forum(name: &str) -> CreateChannel<'_> {
    CreateChannel {
        name: name.as_bytes(),
        display_name: name.as_bytes(),
        description: None,
        channel_type: 1,
        retention_hours: 24,
    }
}

/// Creates a forum and returns its id.
pub fn created(client: &mut Client, name: &str) -> ChannelId {
    ChannelId(number(&client.ask(forum(name), "CHANNEL_CREATED")["channel_id"]))
}

/// A request that is answered with ERROR: code and text.
pub type Refused<'m> = (ClientMessage<'m>, u16, &'m str);

/// Sends each request and compares its ERROR.
pub fn check_refused(client: &mut Client, cases: impl IntoIterator<Item = Refused<'static>>) {
    for (request, code, text) in cases {
        let asked = format!("{request:?}");
        client.send(request);
        let answer = client.expect_reply("ERROR");
        assert_eq!(
            (answer["error_code"].as_u64(), answer["message"].as_str()),
            (Some(code.into()), Some(text)),
            "{asked}"
        );
    }
}

/// Sends each request and compares the text of its own failing reply.
pub fn check_failed(
    client: &mut Client,
    reply: &str,
    cases: impl IntoIterator<Item = (ClientMessage<'static>, &'static str)>,
) {
    for (request, text) in cases {
        let asked = format!("{request:?}");
        let answer = client.ask(request, reply);
        assert_eq!((&answer["success"], answer["message"].as_str()), (&Value::Bool(false), Some(text)), "{asked}");
    }
}

/// Everything that came, presence left out: it may be a tick behind.
pub fn heard(client: &mut Client) -> Vec<Received> {
    let mut frames = client.quiet();
    frames.retain(|frame| !frame.name.ends_with("PRESENCE"));
    frames
}

/// The names of what came, presence left out.
pub fn heard_names(client: &mut Client) -> Vec<String> {
    heard(client).into_iter().map(|frame| frame.name).collect()
}

/// A frame without compression.
pub fn frame(code: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 3).unwrap();
    [&length.to_be_bytes()[..], &[2, code, 0], payload].concat()
}

/// A 64-bit number of the wire.
pub fn number(value: &Value) -> u64 {
    value.as_str().and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no 64-bit number: {value}"))
}

pub fn items(fields: &Fields, name: &str) -> Vec<Value> {
    fields[name].as_array().unwrap_or_else(|| panic!("no list {name}: {fields:?}")).clone()
}

/// A connection of the operator's, beside the server's.
pub fn operator(server: &Server) -> Connection {
    let conn = Connection::open(server.database()).unwrap();
    conn.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    conn
}

/// The rows of a query; texts as they would be shown, so broken UTF-8 is replaced.
pub fn rows(server: &Server, sql: &str) -> Vec<Vec<String>> {
    let conn = operator(server);
    let mut statement = conn.prepare(sql).unwrap();
    let columns = statement.column_count();
    let row = |row: &Row<'_>| (0..columns).map(|column| row.get_ref(column).map(shown)).collect();
    statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
}

fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}
