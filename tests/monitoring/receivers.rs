//! Those whom Alertmanager calls: an HTTP server for Slack, PagerDuty and webhooks, a mail server for e-mail.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::load::Background;
use crate::tools::free_address;

/// A way in, and what came by it.
type Calls = Arc<Mutex<Vec<(String, String)>>>;

/// All of them. What came is kept by way in: the path of the URL, or `mail`.
pub struct Receivers {
    pub http: SocketAddr,
    pub mail: SocketAddr,
    calls: Calls,
    _threads: [Background; 2],
}

impl Receivers {
    pub fn start() -> Self {
        let calls = Calls::default();
        let (http, mail) = (free_address(), free_address());
        let threads = [answer_http(http, Arc::clone(&calls)), answer_mail(mail, Arc::clone(&calls))];
        Self { http, mail, calls, _threads: threads }
    }

    /// Whether something that came this way contains all of `parts`.
    pub fn got(&self, way: &str, parts: &[&str]) -> bool {
        let calls = self.calls.lock().unwrap();
        calls.iter().any(|(came, text)| came == way && parts.iter().all(|part| text.contains(part)))
    }

    /// Everything that came, for the message of a failing test.
    pub fn all(&self) -> String {
        format!("{:#?}", self.calls.lock().unwrap())
    }
}

fn answer_http(address: SocketAddr, calls: Calls) -> Background {
    let server = tiny_http::Server::http(address).unwrap();
    Background::start(move |stop| {
        while !stop.is_set() {
            let Some(mut request) = server.recv_timeout(Duration::from_millis(100)).unwrap() else { continue };
            let (path, mut body) = (request.url().to_owned(), String::new());
            request.as_reader().read_to_string(&mut body).unwrap();
            // PagerDuty says 202; Slack and webhooks take it as well.
            request.respond(tiny_http::Response::from_string("ok").with_status_code(202)).unwrap();
            calls.lock().unwrap().push((path, body));
        }
    })
}

fn answer_mail(address: SocketAddr, calls: Calls) -> Background {
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    Background::start(move |stop| {
        while stop.pause(Duration::from_millis(20)) {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                calls.lock().unwrap().push(("mail".to_owned(), take_mail(stream)));
            }
        }
    })
}

/// Plays the mail server until the other side says QUIT, and returns the message.
fn take_mail(mut stream: TcpStream) -> String {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let mut message = String::new();
    stream.write_all(b"220 test\r\n").unwrap();
    while let Some(line) = lines.next() {
        let answer = match line.get(..4) {
            Some("DATA") => {
                stream.write_all(b"354 go on\r\n").unwrap();
                message = lines.by_ref().take_while(|line| line != ".").collect::<Vec<_>>().join("\n");
                "250 ok\r\n"
            }
            Some("QUIT") => break,
            _ => "250 ok\r\n",
        };
        stream.write_all(answer.as_bytes()).unwrap();
    }
    message
}
