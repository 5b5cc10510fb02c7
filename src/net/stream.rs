//! The byte streams that sessions come over: a TCP connection, or one end of a socket pair whose other end speaks
//! WebSocket or SSH with the client.

use std::io::{self, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;

/// How long a client behind a bridge may take for one piece of what it is sent. The session may have ended meanwhile, as
/// that of a slow consumer.
pub(super) const STALLED: Duration = Duration::from_secs(60);

/// A stream on its way to a shard.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Bridged(UnixStream),
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Bridged(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(slices),
            Self::Bridged(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The outer end of a bridged session's stream, for whoever speaks with the client, and the end for its shard.
pub(super) fn pair() -> io::Result<(tokio::net::UnixStream, Socket)> {
    let (outer, shards) = UnixStream::pair()?;
    outer.set_nonblocking(true)?;
    shards.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(outer)?, Socket::Bridged(shards)))
}

/// A stream as its shard's runtime watches it.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(tokio::net::TcpStream),
    Bridged(tokio::net::UnixStream),
}

impl TryFrom<Socket> for Stream {
    type Error = io::Error;

    fn try_from(socket: Socket) -> io::Result<Self> {
        match socket {
            Socket::Tcp(stream) => tokio::net::TcpStream::from_std(stream).map(Self::Tcp),
            Socket::Bridged(stream) => tokio::net::UnixStream::from_std(stream).map(Self::Bridged),
        }
    }
}

impl Stream {
    pub(super) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context),
            Self::Bridged(stream) => stream.poll_read_ready(context),
        }
    }

    pub(super) fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(into),
            Self::Bridged(stream) => stream.try_read(into),
        }
    }

    pub(super) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(slices),
            Self::Bridged(stream) => stream.try_write_vectored(slices),
        }
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Bridged(stream) => stream.readable().await,
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Bridged(stream) => stream.writable().await,
        }
    }

    /// Nothing more will be written; the peer finds the end.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
            Self::Bridged(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
        }
    }
}
