//! A connection to another server, as a client: bounded in time and bytes, whoever is at the other end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::profile::tasks::{at, site};
use crate::wire::client::{self, ClientMessage};
use crate::wire::codec::Wire;
use crate::wire::frame::{self, Frame};
use crate::wire::server::ServerConfig;
use crate::wire::{FrameError, ServerMessage, WireError};

/// For connecting, and for the other side's SERVER_CONFIG (BEHAVIOUR.md 6.3).
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// For what we say, which always fits into the socket of somebody who reads.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Why another server did not do what was hoped for.
#[derive(Debug, Error)]
pub(super) enum DialError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("no answer in time")]
    Silent,
    #[error("it does not speak the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("its answer cannot be read: {0}")]
    Unreadable(WireError),
    #[error("it says too much")]
    TooMuch,
    #[error("it answers something else")]
    Wrong,
    #[error("error {code}: {text}")]
    Refused { code: u16, text: String },
}

/// An open connection.
pub(super) struct Peer {
    stream: TcpStream,
    inbox: Vec<u8>,
    /// What it may still send.
    budget: usize,
}

impl Peer {
    /// Connects and reads SERVER_CONFIG. `budget` bounds all that the other side may ever send.
    pub(super) async fn dial(target: SocketAddr, budget: usize) -> Result<(Self, ServerConfig), DialError> {
        let connecting = at(site!("connect to another server"), TcpStream::connect(target));
        let stream = timeout(PATIENCE, connecting).await.map_err(|_| DialError::Silent)?.map_err(DialError::Connect)?;
        stream.set_nodelay(true)?;
        let mut peer = Self { stream, inbox: Vec::new(), budget };
        let config = peer.await_answer(PATIENCE, |message| match message {
            ServerMessage::ServerConfig(config) => Some(Ok(config)),
            // It comes first everywhere; whoever says something else is no server.
            _ => Some(Err(DialError::Wrong)),
        });
        let config = config.await?;
        Ok((peer, config))
    }

    /// Says something.
    pub(super) async fn say<'m, M>(&mut self, message: M) -> Result<(), DialError>
    where
        M: Wire<'m> + Clone + Into<ClientMessage<'m>>,
    {
        let code = message.clone().into().code();
        let mut bytes = Vec::new();
        frame::write_message(&mut bytes, code, &message).map_err(DialError::Unreadable)?;
        let writing = at(site!("write to another server"), self.stream.write_all(&bytes));
        Ok(timeout(WRITE_PATIENCE, writing).await.map_err(|_| DialError::Silent)??)
    }

    /// The first message that `pick` takes. Others, and those of unknown types, are passed over: they may be meant for
    /// everybody.
    pub(super) async fn await_answer<T>(
        &mut self,
        patience: Duration,
        mut pick: impl FnMut(ServerMessage<'_>) -> Option<Result<T, DialError>>,
    ) -> Result<T, DialError> {
        let reading = async {
            loop {
                while let Some(bytes) = self.whole_frame()? {
                    let picked = read(&self.inbox[..bytes], &mut pick);
                    self.inbox.drain(..bytes);
                    if let Some(picked) = picked? {
                        return picked;
                    }
                }
                self.fill().await?;
            }
        };
        timeout(patience, reading).await.unwrap_or(Err(DialError::Silent))
    }

    /// Bytes of the frame in front, once all of it is there.
    fn whole_frame(&self) -> Result<Option<usize>, DialError> {
        let rest = Frame::cut(&self.inbox)?.map(|(_, rest)| rest.len());
        if rest.is_none() && frame::bytes_needed(&self.inbox) > self.inbox.len() + self.budget {
            return Err(DialError::TooMuch);
        }
        Ok(rest.map(|rest| self.inbox.len() - rest))
    }

    async fn fill(&mut self) -> Result<(), DialError> {
        let mut chunk = [0; 4096];
        let most = self.budget.min(chunk.len());
        if most == 0 {
            return Err(DialError::TooMuch);
        }
        let count = at(site!("read from another server"), self.stream.read(&mut chunk[..most])).await?;
        if count == 0 {
            return Err(DialError::Closed);
        }
        self.budget -= count;
        self.inbox.extend_from_slice(&chunk[..count]);
        Ok(())
    }

    /// Says goodbye. Whether it is heard does not matter.
    pub(super) async fn leave(mut self, reason: &str) {
        if let Err(error) = self.say(client::Disconnect { reason: Some(reason.as_bytes()) }).await {
            tracing::debug!(%error, "another server left before the goodbye");
        }
    }
}

/// Shows one frame to `pick`.
fn read<T>(
    bytes: &[u8],
    pick: &mut impl FnMut(ServerMessage<'_>) -> Option<Result<T, DialError>>,
) -> Result<Option<Result<T, DialError>>, DialError> {
    let Some((frame, _)) = Frame::cut(bytes)? else { return Ok(None) };
    let mut scratch = Vec::new();
    let payload = frame.unpack(&mut scratch)?.payload;
    match ServerMessage::read(frame.code, payload) {
        Ok(message) => Ok(pick(message)),
        Err(WireError::UnknownType(_)) => Ok(None),
        Err(error) => Err(DialError::Unreadable(error)),
    }
}

/// What an ERROR says, as a log may show it.
pub(super) fn refused(error: &crate::wire::server::Error<'_>) -> DialError {
    DialError::Refused { code: error.error_code, text: shown(error.message) }
}

/// The beginning of a text from elsewhere, on one line.
pub(super) fn shown(text: &[u8]) -> String {
    const CHARS_MAX: usize = 200;
    let text = String::from_utf8_lossy(text);
    text.chars().take(CHARS_MAX).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}
