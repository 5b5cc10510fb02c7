//! The byte of archives in CHANNEL_LIST and CHANNEL_CREATED, for those clients that expect it (BEHAVIOUR.md 13.2). Ours do
//! not, so it is looked for in the bytes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use rusqlite::Connection;
use serde_json::{Value, json};
use superchat::ids::ChannelId;
use superchat::wire::client::ListChannels;
use superchat::wire::json::{encode_line, to_hex};

use crate::steps::*;
use crate::support::client::PATIENCE;
use crate::support::{Server, Settings};

/// The next frame of a type, in hexadecimal.
fn next(stream: &mut TcpStream, code: u8) -> String {
    loop {
        let mut bytes = vec![0; 4];
        stream.read_exact(&mut bytes).unwrap();
        let length = u32::from_be_bytes(bytes[..].try_into().unwrap());
        bytes.resize(4 + length as usize, 0);
        stream.read_exact(&mut bytes[4..]).unwrap();
        if bytes[5] == code {
            return to_hex(&bytes);
        }
    }
}

fn encoded(name: &str, fields: &Value) -> String {
    encode_line(&json!({ "type": name, "version": 2, "flags": 0, "fields": fields }).to_string()).unwrap()
}

#[test]
fn where_the_operator_says_so_channels_tell_of_their_archive() {
    let mut server = Server::start(Settings::new());
    let list = ListChannels { from_channel_id: ChannelId(0), limit: 0 };
    let mut expected = Value::Object(server.client().ask(list, "CHANNEL_LIST"));
    assert_eq!(server.stop(), Some(0));
    let archived = "ALTER TABLE Channel ADD COLUMN archive_enabled INTEGER;
                    UPDATE Channel SET archive_enabled = 1 WHERE id = 2; UPDATE Channel SET archive_enabled = 0 WHERE id = 3";
    Connection::open(server.database()).unwrap().execute_batch(archived).unwrap();
    server.reconfigure(Settings::new().set("server", "wire_archive_flag", true));
    server.resume();

    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&frame(ListChannels::CODE, &[0; 10])).unwrap();
    for channel in expected["channels"].as_array_mut().unwrap() {
        channel["archive_enabled"] = json!(channel["channel_id"] == "2");
    }
    assert_eq!(next(&mut stream, 0x84), encoded("CHANNEL_LIST", &expected));

    let mut alice = registered(&server, "alice");
    alice.send(forum("rust"));
    let expected = json!({
        "success": true, "channel_id": "6", "name": "rust", "description": "", "channel_type": 1, "retention_hours": 24,
        "archive_enabled": false, "message": "New channel 'rust' created",
    });
    assert_eq!(next(&mut stream, 0x87), encoded("CHANNEL_CREATED", &expected));
}
