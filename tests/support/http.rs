//! HTTP as plain as a test wants to see it: one request, one connection, the answer's own bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any answer may take; a test that runs into it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a client got.
#[derive(Debug)]
pub struct Reply {
    /// 0 when the connection ended without an answer.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// The body, as text.
    pub body: String,
    /// The body.
    pub bytes: Vec<u8>,
    pub local: SocketAddr,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

pub fn get(address: SocketAddr, path: &str) -> Reply {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

pub fn exchange(address: SocketAddr, request: &str) -> Reply {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).expect("taken");
    read_answer(&mut stream)
}

pub fn read_answer(stream: &mut TcpStream) -> Reply {
    let local = stream.local_addr().expect("connected");
    let mut bytes = Vec::new();
    // What came before a reset is judged by its content.
    stream.read_to_end(&mut bytes).ok();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Reply { status: 0, headers: Vec::new(), body: text(&bytes), bytes, local };
    };
    let head = text(&bytes[..end]);
    bytes.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(": "));
    Reply {
        status: status.expect("a status line"),
        headers: headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect(),
        body: text(&bytes),
        bytes,
        local,
    }
}
