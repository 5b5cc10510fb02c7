//! SSH (BEHAVIOUR.md 1.8, WIRE.md 1): who proves to hold a key is signed in, and each `session` channel is a stream.
//!
//! Cryptography runs on a thread of its own; the sessions live on the shards, as all others. Until somebody is signed in
//! and has opened a channel, a connection has a place within its address's limit, ten seconds, and a few attempts.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey};
use russh::{
    Channel, ChannelId, ChannelMsg, ChannelOpenFailure, ChannelReadHalf, Disconnect, MethodKind, MethodSet, Pty, SshId,
};
use socket2::{SockRef, Socket};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use super::door::Door;
use super::port::Port;
use super::ssh_login::{Identity, Login, Refused};
use super::stream::{self, STALLED};
use super::{Admission, FAREWELL, Refusal};
use crate::metrics::Transport;
use crate::profile::tasks::{self, place};
use crate::profile::waits::Mutex;
use crate::wire::frame::LENGTH_MAX;

/// Clients check the beginning (BEHAVIOUR.md 1.8).
const IDENTIFICATION: &str = "SSH-2.0-SuperChat";

/// From the connection to the first channel of somebody who is signed in.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client offers its keys one by one.
const ATTEMPTS_MAX: usize = 10;
/// Every refusal takes this long, so that it tells nothing.
const REFUSAL_TIME: Duration = Duration::from_millis(500);
/// Silence before the client is asked whether it is still there, and how often.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVES_MAX: usize = 3;

/// Channels of one connection over its life. Each that the server closed first leaves some KB behind until the
/// connection ends: the library forgets its number at once, and then takes the client's answer for one about a channel
/// that never was.
const OPENINGS_MAX: usize = 64;

/// What a client may send into a channel ahead of its session, and the messages that may wait for it.
const WINDOW_BYTES: u32 = 128 * 1024;
const WAITING_MAX: usize = 8;
/// What a client may be ahead of its session: a frame of the longest, and requests that wait for their turn.
const AHEAD_BYTES_MAX: usize = 2 * LENGTH_MAX as usize;
/// Taken from a session at once.
const BUFFER_BYTES: usize = 8 * 1024;

/// What the port needs.
pub struct SshParts {
    pub listener: TcpListener,
    pub door: Arc<Door>,
    pub host_key: PrivateKey,
    pub login: Login,
    /// Called should the thread end by itself.
    pub on_panic: Box<dyn FnOnce() + Send>,
}

/// Opens the SSH port.
///
/// # Errors
/// When the system gives no thread, or no way to watch the socket.
pub fn open(parts: SshParts) -> io::Result<Port> {
    let SshParts { listener, door, host_key, login, on_panic } = parts;
    listener.set_nonblocking(true)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // One thread beside for passwords of new accounts.
    let runtime = runtime.enable_io().enable_time().max_blocking_threads(1).build()?;
    let site = Arc::new(Site { door, login, config: Arc::new(config(host_key)) });
    Port::start("SSH", "scd-ssh", on_panic, move |stop| {
        let _watched = tasks::watch(runtime.metrics());
        runtime.block_on(tasks::root(place!(), async {
            stop.serve(listener, |connections, stream, peer| admit(&site, connections, stream, peer)).await
        }))
    })
}

fn config(host_key: PrivateKey) -> Config {
    Config {
        server_id: SshId::Standard(IDENTIFICATION.into()),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REFUSAL_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        window_size: WINDOW_BYTES,
        channel_buffer_size: WAITING_MAX,
        max_auth_attempts: ATTEMPTS_MAX,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVES_MAX,
        nodelay: true,
        ..Config::default()
    }
}

struct Site {
    door: Arc<Door>,
    login: Login,
    config: Arc<Config>,
}

/// Who is refused is not told why: the connection closes before anything is said (BEHAVIOUR.md 1.10).
fn admit(site: &Arc<Site>, connections: &mut JoinSet<()>, stream: TcpStream, peer: SocketAddr) {
    if let Ok(place) = site.door.admit(peer) {
        connections.spawn(tasks::in_set(place!(), serve(Arc::clone(site), stream, peer, place)));
    }
}

/// One connection, from its first byte to the end of its last channel.
async fn serve(site: Arc<Site>, stream: TcpStream, peer: SocketAddr, place: Admission) {
    if let Err(error) = stream.set_nodelay(true) {
        return debug!(%error, "connection lost before it was served");
    }
    // Lives longer than the socket, and with it the place.
    let channels = Arc::new(Channels { open: watch::Sender::default(), own: Mutex::new(Some(place)) });
    let line = match SockRef::from(&stream).try_clone() {
        Ok(line) => Line(line),
        Err(error) => return debug!(%error, "connection lost before it was served"),
    };
    let visitor =
        Visitor { site: Arc::clone(&site), peer, identity: None, channels: Arc::clone(&channels), openings: 0 };
    let opening = async {
        let mut running = server::run_stream(Arc::clone(&site.config), stream, visitor).await?;
        tokio::select! {
            ended = &mut running => ended.and(Err(russh::Error::Disconnect)),
            () = channels.reach(|open| open > 0) => Ok(running),
        }
    };
    let mut running = match timeout(HANDSHAKE_TIMEOUT, opening).await {
        Ok(Ok(running)) => running,
        Ok(Err(error)) => return debug!("SSH handshake failed: {error}"),
        Err(_) => return debug!("SSH handshake failed: no session in time"),
    };
    let handle = running.handle();
    tokio::select! {
        ended = &mut running => return log_end(ended),
        () = channels.stay_closed() => {}
    }
    let leave = async {
        if handle.disconnect(Disconnect::ByApplication, String::new(), String::new()).await.is_err() {
            debug!("the client left first");
        }
        running.await
    };
    match timeout(FAREWELL, leave).await {
        Ok(ended) => log_end(ended),
        Err(_) => debug!("a client of the SSH port did not leave in time"),
    }
    drop(line);
}

/// A connection's own handle to its socket. The library goes on waiting for a client that was told to leave; without the
/// socket it cannot.
struct Line(Socket);

impl Drop for Line {
    fn drop(&mut self) {
        // It may be closed already.
        let _already_closed = self.0.shutdown(Shutdown::Both);
    }
}

fn log_end(ended: Result<(), russh::Error>) {
    if let Err(error) = ended {
        debug!("SSH connection ended: {error}");
    }
}

/// The channels of one connection, and the places that they take: one of those that are open has the connection's own,
/// each other one more.
struct Channels {
    /// How many are open, or about to be.
    open: watch::Sender<usize>,
    /// The connection's own place, while no channel has it.
    own: Mutex<Option<Admission>>,
}

impl Channels {
    async fn reach(&self, wanted: fn(usize) -> bool) {
        let mut open = self.open.subscribe();
        // Whoever sends lives as long as we do.
        let _reached = open.wait_for(|open| wanted(*open)).await;
    }

    /// Until there was none for long enough that the client could leave by itself: told to, OpenSSH drops what it has not
    /// written yet.
    async fn stay_closed(&self) {
        loop {
            self.reach(|open| open == 0).await;
            if timeout(FAREWELL, self.reach(|open| open > 0)).await.is_err() {
                return;
            }
        }
    }

    /// A place for one more, and what its session gets of it.
    fn admit(self: &Arc<Self>, door: &Door, peer: SocketAddr) -> Result<(Open, Admission), Refusal> {
        let own = self.own.lock().take();
        let place = own.map_or_else(|| door.admit(peer), Ok)?;
        let admission = place.behind_bridge();
        self.open.send_modify(|open| *open += 1);
        Ok((Open { channels: Arc::clone(self), place: Some(place) }, admission))
    }
}

/// One of them, until it is dropped.
struct Open {
    channels: Arc<Channels>,
    place: Option<Admission>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut own = self.channels.own.lock();
        if own.is_none() {
            *own = self.place.take();
        }
        drop(own);
        self.channels.open.send_modify(|open| *open -= 1);
    }
}

/// The client of one connection.
struct Visitor {
    site: Arc<Site>,
    peer: SocketAddr,
    identity: Option<Identity>,
    channels: Arc<Channels>,
    /// Channels that were asked for.
    openings: usize,
}

impl Visitor {
    /// Makes a session of a channel. What it may cost is known before the database is asked.
    async fn enter(&mut self, channel: Channel<Msg>) -> Result<(), ChannelOpenFailure> {
        self.openings += 1;
        if self.openings > OPENINGS_MAX {
            return Err(ChannelOpenFailure::ResourceShortage);
        }
        let admitted = self.channels.admit(&self.site.door, self.peer);
        let (open, admission) = admitted.map_err(|_| ChannelOpenFailure::ResourceShortage)?;
        let login = match &self.identity {
            Some(identity) => self.site.login.session(identity).await,
            None => None,
        };
        let login = login.ok_or(ChannelOpenFailure::AdministrativelyProhibited)?;
        let (session, bridged) = stream::pair().map_err(|_| ChannelOpenFailure::ResourceShortage)?;
        self.site.door.enter(bridged, self.peer, admission, Transport::Ssh, Some(login));
        tasks::spawn(place!(), async move {
            let _open = open;
            carry(channel, session).await;
        });
        Ok(())
    }
}

/// One channel, until its session has ended and the client was told.
async fn carry(channel: Channel<Msg>, session: UnixStream) {
    let (from_client, to_client) = channel.split();
    if let Err(error) = carry_both(from_client, to_client.make_writer(), session).await {
        debug!(%error, "an SSH session was cut");
    }
    if !matches!(timeout(FAREWELL, to_client.close()).await, Ok(Ok(()))) {
        debug!("the client left before its channel was closed");
    }
}

/// Both directions, until the session has ended. A client that says nothing more is still answered.
async fn carry_both(
    from_client: ChannelReadHalf,
    to_client: impl AsyncWrite + Unpin,
    session: UnixStream,
) -> io::Result<()> {
    let (from_session, to_session) = session.into_split();
    let (mut inward, mut outward) = (pin!(carry_in(from_client, to_session)), pin!(carry_out(from_session, to_client)));
    tokio::select! {
        ended = &mut outward => ended,
        ended = &mut inward => match ended {
            Ok(()) => outward.await,
            Err(error) => Err(error),
        },
    }
}

/// What the client says. The library stops everything of a connection, its answers too, while a channel does not take what
/// comes for it; so this takes it, up to a bound, whatever the session does. A session that takes no more may still have
/// something to say.
async fn carry_in(mut from_client: ChannelReadHalf, mut to_session: OwnedWriteHalf) -> io::Result<()> {
    let mut waiting = BytesMut::new();
    loop {
        tokio::select! {
            message = from_client.wait() => match said(message) {
                None => break,
                Some(data) if waiting.len() + data.len() > AHEAD_BYTES_MAX => {
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
                Some(data) => waiting.extend_from_slice(&data),
            },
            taken = to_session.write(&waiting), if !waiting.is_empty() => match taken {
                Ok(count) if count < waiting.len() => waiting.advance(count),
                // An idle client keeps no buffer.
                Ok(_) => waiting = BytesMut::new(),
                Err(_) => return Ok(()),
            },
        }
    }
    // It may have ended first.
    let _taken = to_session.write_all(&waiting).await.and(to_session.shutdown().await);
    Ok(())
}

/// What a message of a client says to its session; `None` when it was the last. One that says nothing ends nothing.
fn said(message: Option<ChannelMsg>) -> Option<Bytes> {
    match message? {
        ChannelMsg::Data { data } => Some(data),
        ChannelMsg::Eof | ChannelMsg::Close => None,
        // Such as what terminals ask for.
        _ => Some(Bytes::new()),
    }
}

async fn carry_out(mut from_session: OwnedReadHalf, mut to_client: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut bytes = [0; BUFFER_BYTES];
    loop {
        match from_session.read(&mut bytes).await? {
            0 => return timeout(FAREWELL, to_client.shutdown()).await?,
            count => timeout(STALLED, to_client.write_all(&bytes[..count])).await??,
        }
    }
}

impl Handler for Visitor {
    type Error = russh::Error;

    /// The signature is verified: from here on the key is the client's.
    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let key: &PublicKey = key.public_key;
        match self.site.login.by_key(user, key, self.peer.ip()).await {
            Ok(identity) => {
                self.identity = Some(identity);
                Ok(Auth::Accept)
            }
            Err(Refused) => Ok(Auth::reject()),
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.enter(channel).await {
            Ok(()) => reply.accept().await,
            Err(reason) => reply.reject(reason).await,
        }
        Ok(())
    }

    // What terminals ask for is granted, and means nothing here.

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }
}

#[cfg(test)]
mod tests {
    use russh::Sig;

    use super::*;

    #[test]
    fn data_of_no_bytes_is_no_end() {
        let data = |bytes: &'static [u8]| Some(ChannelMsg::Data { data: Bytes::from_static(bytes) });
        assert_eq!(said(data(b"")), Some(Bytes::new()));
        assert_eq!(said(data(b"words")), Some(Bytes::from_static(b"words")));
        assert_eq!(said(Some(ChannelMsg::Signal { signal: Sig::INT })), Some(Bytes::new()));
        for end in [Some(ChannelMsg::Eof), Some(ChannelMsg::Close), None] {
            assert_eq!(said(end), None);
        }
    }
}
