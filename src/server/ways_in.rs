//! The ways in: the public ports, opened before anything else, served once everything else is there, closed first.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{error, info};

use super::ServeError;
use super::directory::listed_servers;
use crate::config::Settings;
use crate::desk::Desk;
use crate::net::Gate;
use crate::net::acceptor::{Acceptor, AcceptorParts, listen};
use crate::net::door::Door;
use crate::net::http::{self, HttpParts};
use crate::net::port::Port;
use crate::net::ssh::{self, SshParts};
use crate::net::ssh_login::{Login, host_key};
use crate::shard::settings::InForce;
use crate::store::Store;
use crate::systemd::Sockets;

/// Names of the sockets in a `.socket` unit.
const CHAT_SOCKET: &str = "chat";
const SSH_SOCKET: &str = "ssh";
const HTTP_SOCKET: &str = "http";

/// The sockets of the public ports; `None` for one that is off.
pub(super) struct Listeners {
    chat: Option<TcpListener>,
    ssh: Option<TcpListener>,
    http: Option<TcpListener>,
}

impl Listeners {
    /// Takes what systemd hands over and opens the rest.
    ///
    /// # Errors
    /// A port that cannot be opened, or none to open.
    pub(super) fn open(settings: &Settings, sockets: &mut Sockets) -> Result<Self, ServeError> {
        let server = &settings.server;
        let mut open = |name, key, port: Option<NonZero<u16>>| {
            let port = port.map(NonZero::get);
            let inherited = sockets.take(name, port);
            let Some(port) = port.filter(|_| inherited.is_none()) else { return Ok(inherited) };
            let address = SocketAddr::new(server.listen_address, port);
            listen(address).map(Some).map_err(|source| ServeError::Listen { address, key, source })
        };
        let listeners = Self {
            chat: open(CHAT_SOCKET, "tcp_port", server.tcp_port)?,
            ssh: open(SSH_SOCKET, "ssh_port", server.ssh_port)?,
            http: open(HTTP_SOCKET, "http_port", server.http_port)?,
        };
        match &listeners {
            Self { chat: None, ssh: None, http: None } => Err(ServeError::NoPort),
            _ => Ok(listeners),
        }
    }

    /// Where clients reach the protocol itself, 0 when they cannot.
    ///
    /// # Errors
    /// When the system does not say.
    pub(super) fn chat_port(&self) -> io::Result<u16> {
        self.chat.as_ref().map_or(Ok(0), port)
    }
}

fn port(listener: &TcpListener) -> io::Result<u16> {
    Ok(listener.local_addr()?.port())
}

/// Whom the ways in work for.
pub(super) struct Inside<'a> {
    pub(super) door: Arc<Door>,
    pub(super) http_gate: Arc<Gate>,
    pub(super) store: Arc<dyn Store>,
    pub(super) desk: Arc<Desk>,
    pub(super) settings: &'a Settings,
    pub(super) in_force: &'a Arc<InForce>,
    pub(super) fatal: mpsc::Sender<()>,
}

/// The open ways in.
pub(super) struct WaysIn {
    chat: Option<Acceptor>,
    ssh: Option<Port>,
    http: Option<Port>,
}

impl WaysIn {
    /// Lets clients in, and logs by which ways.
    ///
    /// # Errors
    /// A host key that cannot be used, or no threads.
    pub(super) fn start(listeners: Listeners, inside: &Inside<'_>) -> Result<Self, ServeError> {
        let Listeners { chat, ssh, http } = listeners;
        let ports = [&chat, &ssh, &http].map(|listener| listener.as_ref().and_then(|listener| port(listener).ok()));
        // Nobody gets in before the host key turned out to be usable.
        let ways = Self {
            ssh: ssh.map(|listener| start_ssh(listener, inside)).transpose()?,
            http: http.map(|listener| start_http(listener, inside)).transpose()?,
            chat: chat.map(|listener| start_chat(listener, inside)).transpose()?,
        };
        log_ports(ports, &inside.settings.server.ssh_host_key);
        Ok(ways)
    }

    /// Lets nobody in any more. Sessions go on.
    pub(super) fn stop_accepting(&mut self) {
        if let Some(chat) = self.chat.take() {
            chat.stop();
            info!("TCP listener closed");
        }
        if let Some(ssh) = &self.ssh {
            ssh.stop_accepting();
            info!("SSH listener closed");
        }
        if let Some(http) = &self.http {
            http.stop_accepting();
        }
    }

    /// Lets go of what is left, when the sessions have ended.
    pub(super) fn stop(self) {
        if let Some(ssh) = self.ssh {
            ssh.stop();
        }
        if let Some(http) = self.http {
            http.stop();
        }
    }
}

/// In the words that operators look for (BEHAVIOUR.md 10.4).
fn log_ports([chat, ssh, http]: [Option<u16>; 3], host_key: &Path) {
    if let Some(port) = ssh {
        info!("SSH server listening on :{port}");
        info!("SSH Port: {port}");
        info!("SSH Host Key: {}", host_key.display());
    }
    if let Some(port) = http {
        info!("Public HTTP server listening on :{port} (/servers.json, /ws)");
    }
    info!("Available connection methods:");
    if let Some(port) = chat {
        info!("  - Binary Protocol (TCP): port {port}");
    }
    if let Some(port) = ssh {
        info!("  - SSH: port {port}");
    }
    if let Some(port) = http {
        info!("  - WebSocket: port {port} (ws://server:{port}/ws)");
    }
}

fn start_chat(listener: TcpListener, inside: &Inside<'_>) -> Result<Acceptor, ServeError> {
    let on_panic = fails("accepting thread", inside.fatal.clone());
    Ok(Acceptor::start(AcceptorParts { listener, door: Arc::clone(&inside.door), on_panic })?)
}

fn start_ssh(listener: TcpListener, inside: &Inside<'_>) -> Result<Port, ServeError> {
    let host_key = host_key(&inside.settings.server.ssh_host_key)?;
    let (store, desk, metrics) =
        (Arc::clone(&inside.store), Arc::clone(&inside.desk), Arc::clone(&inside.door.metrics));
    let login = Login::new(store, desk, metrics, Arc::clone(inside.in_force));
    let on_panic = fails("SSH thread", inside.fatal.clone());
    Ok(ssh::open(SshParts { listener, door: Arc::clone(&inside.door), host_key, login, on_panic })?)
}

fn start_http(listener: TcpListener, inside: &Inside<'_>) -> Result<Port, ServeError> {
    let (in_force, metrics) = (Arc::clone(inside.in_force), Arc::clone(&inside.door.metrics));
    let (store, desk) = (Arc::clone(&inside.store), Arc::clone(&inside.desk));
    let parts = HttpParts {
        listener,
        door: Arc::clone(&inside.door),
        allowed_origins: inside.settings.server.allowed_origins.clone(),
        trusted_proxies: inside.settings.server.trusted_proxies.clone(),
        gate: Arc::clone(&inside.http_gate),
        servers: listed_servers(in_force, metrics, store, desk),
        on_panic: fails("HTTP thread", inside.fatal.clone()),
    };
    Ok(http::open(parts)?)
}

/// What a thread does that ends by itself: without it some would not get in any more, and nobody would know.
fn fails(what: &'static str, fatal: mpsc::Sender<()>) -> Box<dyn FnOnce() + Send> {
    Box::new(move || {
        error!("the {what} ended: the server cannot go on");
        // A failure that is known already needs no second message.
        let _known = fatal.try_send(());
    })
}
