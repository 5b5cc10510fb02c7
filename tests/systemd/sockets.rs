//! Listening sockets that are handed over: by systemd's own tool, and over a restart by a holder of ours.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::manager::{PATIENCE, tool};
use crate::support::server::free_port;
use crate::support::{Incoming, Link, Server, Settings, clock};

/// The real tool, which becomes the server with the first connection.
struct Activated {
    child: Child,
    home: TempDir,
    ports: Vec<u16>,
}

impl Activated {
    fn listening(names: &[&str]) -> Self {
        let home = TempDir::with_prefix("scd-").unwrap();
        let file = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        let config = "[server]\nssh_port = 0\nhttp_port = 0\n[admin]\nmetrics_listen = 'off'\nprofile_listen = 'off'\n";
        fs::write(file("config.toml"), config).unwrap();
        let ports: Vec<u16> = (0..names.len().max(1)).map(|_| free_port()).collect();
        let mut command = tool("systemd-socket-activate", "systemd");
        command.args(ports.iter().map(|port| format!("--listen=127.0.0.1:{port}")));
        if !names.is_empty() {
            command.arg(format!("--fdname={}", names.join(":")));
        }
        command.args(["-E", &format!("HOME={}", home.path().display()), env!("CARGO_BIN_EXE_scd")]);
        // With a name the port does not matter, without one it is what the socket is known by.
        let configured = if names.is_empty() { ports[0] } else { 1 };
        command.args(["--port", &configured.to_string(), "--db", &file("chat.db"), "--config", &file("config.toml")]);
        let output = File::create(file("output")).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Self { child: command.spawn().unwrap(), home, ports }
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[0]).into()
    }

    fn output(&self) -> String {
        fs::read_to_string(self.home.path().join("output")).unwrap()
    }

    /// A connection, once the tool listens.
    fn connect(&self) -> Link {
        clock::poll(PATIENCE, || Link::connect(self.address()).ok()).unwrap_or_else(|| panic!("{}", self.output()))
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn is_config(incoming: &Incoming) -> bool {
    matches!(incoming, Incoming::Frame(frame) if frame.name == "SERVER_CONFIG")
}

fn check_activation(names: &[&str]) {
    let activated = Activated::listening(names);
    // This very connection is there before the server, and is served by it.
    let mut first = activated.connect();
    let incoming = first.next(PATIENCE);
    assert!(is_config(&incoming), "{incoming:?}\n{}", activated.output());
    assert!(is_config(&activated.connect().next(PATIENCE)));
    let line = format!("TCP server listening on :{}", activated.ports[0]);
    assert!(activated.output().contains(&line), "{}", activated.output());
    let unserved = activated.output().contains("a socket that nothing here serves");
    assert_eq!(unserved, names.len() > 1, "{}", activated.output());
}

#[test]
fn systemd_socket_activate_hands_over_the_socket_named_chat() {
    check_activation(&["chat"]);
}

#[test]
fn systemd_socket_activate_without_a_name_is_known_by_its_port() {
    check_activation(&[]);
}

#[test]
fn systemd_socket_activate_hands_over_every_way_in() {
    let activated = Activated::listening(&["chat", "ssh", "http"]);
    assert!(is_config(&activated.connect().next(PATIENCE)));
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, activated.ports[2]));
    assert!(is_config(&Link::connect_web(http).unwrap().next(PATIENCE)));
    let mut ssh = TcpStream::connect((Ipv4Addr::LOCALHOST, activated.ports[1])).unwrap();
    let mut greeting = [0; 17];
    ssh.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"SSH-2.0-SuperChat");
}

#[test]
fn a_socket_for_which_there_is_no_service_is_warned_of() {
    check_activation(&["chat", "gopher"]);
}

#[test]
fn no_connection_is_refused_or_lost_while_the_server_restarts_on_a_socket_that_stays() {
    const CALLERS: usize = 4;
    const RESTARTS: usize = 3;
    let mut server = Server::start_on_our_socket(Settings::new());
    let (address, is_over) = (server.address(), AtomicBool::new(false));
    let served: usize = std::thread::scope(|scope| {
        let call = || {
            let mut served = 0;
            while !is_over.load(Ordering::Relaxed) {
                let mut link = Link::connect(address).unwrap_or_else(|error| panic!("call {served}: {error}"));
                let incoming = link.next(PATIENCE);
                assert!(is_config(&incoming), "call {served}: {incoming:?}");
                served += 1;
            }
            served
        };
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(call)).collect();
        // Ends the callers even when a restart fails, or the scope would wait for them for ever.
        let _over = Finally(|| is_over.store(true, Ordering::Relaxed));
        for _ in 0..RESTARTS {
            assert_eq!(server.stop(), Some(0));
            server.resume();
        }
        drop(_over);
        callers.into_iter().map(|caller| caller.join().unwrap()).sum()
    });
    assert!(served > CALLERS * RESTARTS, "hardly anybody called: {served}");
    assert_eq!(server.output().matches("Graceful shutdown complete").count(), RESTARTS);
}

/// Does something at the end of a scope, however it ends.
struct Finally<F: Fn()>(F);

impl<F: Fn()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[test]
fn connections_queue_on_a_socket_that_stays_while_no_server_runs() {
    let mut server = Server::start_on_our_socket(Settings::new());
    assert_eq!(server.stop(), Some(0));
    let mut waiting: Vec<_> = (0..10).map(|_| Link::connect(server.address()).unwrap()).collect();
    assert!(waiting.iter_mut().all(|link| link.next(Duration::from_millis(1)) == Incoming::Silence));
    server.resume();
    assert!(waiting.iter_mut().all(|link| is_config(&link.next(PATIENCE))));
}
