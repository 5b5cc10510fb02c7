//! `scd` as a client and as a tool for frames.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use super::connections::{FORUM, newest, post};
use crate::support::{Server, Settings};

/// Runs `scd` with `input` on its standard input.
fn scd(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
    command.env_clear().args(arguments).stdout(Stdio::piped());
    command
}

fn lines(output: &[u8]) -> Vec<&str> {
    std::str::from_utf8(output).unwrap().lines().collect()
}

fn assert_fails(output: &Output, line: &str) {
    assert_eq!((output.status.code(), lines(&output.stderr)), (Some(1), vec![line]));
    assert_eq!(lines(&output.stdout), [""; 0]);
}

fn address(server: &Server) -> String {
    server.address().to_string()
}

mod frames {
    use super::*;

    const PING: &str = "0000000b0210000000000000000001";

    #[test]
    fn decode_and_encode_translate_line_by_line_and_undo_each_other() {
        let nickname = "00000008010200000362 6f62".replace(' ', "");
        let decoded = scd(&["frame", "decode"], format!("{PING}\n\n{nickname}\n").as_bytes());
        assert_eq!(decoded.status.code(), Some(0));
        let frames: Vec<Value> =
            lines(&decoded.stdout).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&frames[0]["type"], &frames[0]["fields"]), (&json!("PING"), &json!({ "timestamp": "1" })));
        assert_eq!((&frames[1]["type"], &frames[1]["version"]), (&json!("SET_NICKNAME"), &json!(1)));
        let encoded = scd(&["frame", "encode", "-"], &decoded.stdout);
        assert_eq!(lines(&encoded.stdout), [PING, &nickname]);
    }

    #[test]
    fn a_frame_may_stand_on_the_command_line() {
        let decoded = scd(&["frame", "decode", PING], b"");
        let json = lines(&decoded.stdout)[0];
        let encoded = scd(&["frame", "encode", json], b"");
        assert_eq!(lines(&encoded.stdout), [PING]);
    }

    #[test]
    fn a_line_that_cannot_be_translated_is_told_and_the_rest_goes_on() {
        let output = scd(&["frame", "decode"], format!("zz\n{PING}\n").as_bytes());
        assert_eq!((output.status.code(), lines(&output.stdout).len(), lines(&output.stderr).len()), (Some(1), 1, 1));
        let output = scd(&["frame", "encode"], b"{\"type\":\"PINK\",\"fields\":{}}\n");
        assert_eq!((output.status.code(), lines(&output.stderr).len()), (Some(1), 1));
    }
}

mod chat {
    use super::*;

    #[test]
    fn channels_are_listed_with_their_kind() {
        let server = Server::start(Settings::new());
        let output = scd(&["channels", "--server", &address(&server)], b"");
        assert_eq!(output.status.code(), Some(0));
        let names: Vec<_> =
            lines(&output.stdout).iter().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        let listed: Vec<_> = names.iter().map(|words| (words[0], words[1])).collect();
        let server_list = server.client().ask(
            superchat::wire::client::ListChannels { from_channel_id: superchat::ids::ChannelId(0), limit: 0 },
            "CHANNEL_LIST",
        );
        let expected: Vec<_> = server_list["channels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|channel| {
                (
                    format!("#{}", channel["name"].as_str().unwrap()),
                    if channel["channel_type"] == 0 { "chat" } else { "forum" },
                )
            })
            .collect();
        assert_eq!(listed, expected.iter().map(|(name, kind)| (name.as_str(), *kind)).collect::<Vec<_>>());
    }

    #[test]
    fn post_sends_its_argument_or_standard_input_and_prints_the_id() {
        let server = Server::start(Settings::new());
        let address = address(&server);
        let general = ["--server", &address, "--nick", "poster"];
        let argument = scd(&[&["post", "general", "from the line"][..], &general].concat(), b"");
        let stdin = scd(&[&["post", "#general"][..], &general].concat(), b"from a pipe\nin two lines\n");
        assert_eq!([&argument, &stdin].map(|output| output.status.code()), [Some(0); 2]);
        let list = server.client().ask(newest(FORUM, 10), "MESSAGE_LIST");
        let stored = |index: usize, field: &str| list["messages"][index][field].as_str().unwrap().to_owned();
        assert_eq!([stored(1, "content"), stored(0, "content")], ["from the line", "from a pipe\nin two lines"]);
        assert_eq!(
            [stored(1, "message_id"), stored(0, "message_id")],
            [&argument, &stdin].map(|output| lines(&output.stdout)[0])
        );
        assert_eq!(stored(0, "author_nickname"), "~poster");
    }

    #[test]
    fn tail_prints_the_past_and_then_what_arrives() {
        let server = Server::start(Settings::new());
        let mut author = server.client_named("author");
        author.ask(post(b"first"), "MESSAGE_POSTED");
        author.ask(post(b"second \x1b[2J"), "MESSAGE_POSTED");
        let mut child =
            command(&["tail", "general", "--server", &address(&server)]).stdin(Stdio::null()).spawn().unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(printed.next().unwrap().ends_with("<~author> first"));
        // The escape character is removed on the way in.
        assert!(printed.next().unwrap().ends_with("<~author> second [2J"));
        author.ask(post(b"third\nline"), "MESSAGE_POSTED");
        assert!(printed.next().unwrap().ends_with("<~author> third"));
        assert_eq!(printed.next().unwrap(), "    line");
        server.ask_to_stop();
        assert_eq!(printed.next(), None);
        assert_eq!(child.wait().unwrap().code(), Some(1));
    }

    #[test]
    fn tail_of_a_thread_prints_its_replies_alone() {
        let server = Server::start(Settings::new());
        let mut author = server.client_named("author");
        let root = author.ask(post(b"root"), "MESSAGE_POSTED")["message_id"].as_str().unwrap().to_owned();
        let parent_id = Some(superchat::ids::MessageId(root.parse().unwrap()));
        let reply = |content| superchat::wire::client::PostMessage { parent_id, ..post(content) };
        author.ask(reply(b"old"), "MESSAGE_POSTED");
        let arguments = ["tail", "general", "--thread", &root, "--server", &address(&server)];
        let mut child = command(&arguments).stdin(Stdio::null()).spawn().unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(printed.next().unwrap().ends_with("<~author> old"));
        author.ask(post(b"elsewhere"), "MESSAGE_POSTED");
        author.ask(reply(b"new"), "MESSAGE_POSTED");
        assert!(printed.next().unwrap().ends_with("<~author> new"));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn failures_are_one_line_that_says_what_to_do() {
        let server = Server::start(Settings::new());
        let address = address(&server);
        let missing = "scd: there is no channel nowhere; `scd channels` lists them";
        assert_fails(&scd(&["post", "nowhere", "x", "--server", &address], b""), missing);
        assert_fails(&scd(&["tail", "nowhere", "--server", &address], b""), missing);
        let nickname = "scd: the nickname does not fit: 3 to 20 letters, digits, - or _; give one with --nick";
        assert_fails(&scd(&["post", "general", "x", "--nick", "a b", "--server", &address], b""), nickname);
        let length = "scd: a message has 1 to 4096 bytes, this one has 0";
        assert_fails(&scd(&["post", "general", "--server", &address], b"\n"), length);
    }

    #[test]
    fn without_a_server_the_address_is_named() {
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().to_string();
        for arguments in [&["channels"][..], &["tail", "general"], &["post", "general", "x"]] {
            let output = scd(&[arguments, &["--server", &free]].concat(), b"");
            let line = format!(
                "scd: cannot connect to {free}: Connection refused (os error 111); is the server running there?"
            );
            assert_fails(&output, &line);
        }
    }
}

/// As `scd channels | head` ends it.
#[test]
fn who_reads_no_further_is_no_error() {
    let server = Server::start(Settings::new());
    for arguments in [&["channels"][..], &["post", "general", "unread"], &["tail", "general"]] {
        server.client_named("author").ask(post(b"something to print"), "MESSAGE_POSTED");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut unread = command(arguments);
        unread.args(["--server", &address(&server)]).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let output = unread.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!((output.status.code(), lines(&output.stderr)), (Some(0), vec![]), "{arguments:?}");
    }
}
