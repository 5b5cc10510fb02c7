//! WebSocket (BEHAVIOUR.md 1.9, WIRE.md 1): the payloads of binary messages, one behind the other, are the stream.
//!
//! The session itself lives on a shard, as every other. What the client says goes to it through a socket pair; what it
//! answers is cut into messages of whole frames. Neither side is read further than the other takes, so what waits is
//! bounded by the pair, one frame, and the session's outbox.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tracing::{debug, error};

use super::door::Door;
use super::stream::{self, STALLED};
use super::{Admission, FAREWELL};
use crate::metrics::Transport;
use crate::wire::frame::{self, LENGTH_MAX};

/// Bytes taken from a session at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Longest message from a client: a whole frame in one piece.
const MESSAGE_BYTES_MAX: usize = 4 + LENGTH_MAX as usize;

/// Serves one upgraded connection until both sides are done. It keeps its place on the port until it has one as a
/// session.
pub(super) async fn serve(
    connection: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    door: &Door,
    port_place: Admission,
) {
    let mut client = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config())).await;
    let outcome = match door.admit(peer) {
        Ok(place) => match stream::pair() {
            Ok((session, bridged)) => {
                drop(port_place);
                door.enter(bridged, peer, place.behind_bridge(), Transport::Websocket, None);
                carry(client, session).await;
                return drop(place);
            }
            Err(error) => {
                error!(%error, "cannot bridge a connection");
                client.close(None).await
            }
        },
        Err(refusal) => match door.farewell(refusal) {
            Ok(words) => timeout(FAREWELL, say(&mut client, words.into())).await.unwrap_or(Ok(())),
            Err(_) => client.close(None).await,
        },
    };
    if let Err(error) = outcome {
        debug!(%error, "connection lost before it was served");
    }
}

/// No message is buffered beyond what one frame needs, in either direction.
fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * (MESSAGE_BYTES_MAX + CHUNK_BYTES))
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

/// One last message, then the goodbye of the protocol, until the client has answered it.
async fn say<C: AsyncRead + AsyncWrite + Unpin>(
    client: &mut WebSocketStream<C>,
    words: Bytes,
) -> Result<(), tungstenite::Error> {
    client.send(Message::Binary(words)).await?;
    client.close(None).await?;
    while let Some(Ok(_)) = client.next().await {}
    Ok(())
}

/// Both directions, until one has ended and the other had its moment to finish.
async fn carry<C: AsyncRead + AsyncWrite + Unpin>(client: WebSocketStream<C>, session: UnixStream) {
    let (to_client, from_client) = client.split();
    let (from_session, to_session) = session.into_split();
    let mut inward = std::pin::pin!(carry_in(from_client, to_session));
    let mut outward = std::pin::pin!(carry_out(from_session, to_client));
    let late = tokio::select! {
        () = &mut inward => timeout(FAREWELL, outward).await,
        () = &mut outward => timeout(FAREWELL, inward).await,
    };
    if late.is_err() {
        debug!("a client did not take its leave in time");
    }
}

/// What the client says. Ends with the client, with a text message, which no client of this protocol sends, or when the
/// session takes no more; the session then finds the end of its stream.
async fn carry_in<C: AsyncRead + AsyncWrite + Unpin>(
    mut from_client: SplitStream<WebSocketStream<C>>,
    mut to_session: OwnedWriteHalf,
) {
    while let Some(message) = from_client.next().await {
        let taken = match message {
            Ok(Message::Binary(bytes)) => to_session.write_all(&bytes).await,
            Ok(Message::Ping(_) | Message::Pong(_)) => Ok(()),
            Ok(Message::Text(_) | Message::Close(_) | Message::Frame(_)) | Err(_) => return,
        };
        if taken.is_err() {
            return;
        }
    }
}

/// What the session answers, whole frames in each message. Ends with the session.
async fn carry_out<C: AsyncRead + AsyncWrite + Unpin>(
    from_session: OwnedReadHalf,
    mut to_client: SplitSink<WebSocketStream<C>, Message>,
) {
    let mut waiting = BytesMut::new();
    while let Ok(Some(())) = take(&from_session, &mut waiting).await {
        let whole = whole_frames(&waiting);
        if whole == 0 {
            continue;
        }
        let message = Message::Binary(waiting.split_to(whole).freeze());
        if !matches!(timeout(STALLED, to_client.send(message)).await, Ok(Ok(()))) {
            return;
        }
        if waiting.is_empty() {
            // An idle client keeps no buffer.
            waiting = BytesMut::new();
        }
    }
    if timeout(FAREWELL, to_client.close()).await.is_err() {
        debug!("a client does not read its goodbye");
    }
}

/// Waits for bytes without holding memory for them; `None` at the end of the stream.
async fn take(from_session: &OwnedReadHalf, into: &mut BytesMut) -> io::Result<Option<()>> {
    loop {
        from_session.readable().await?;
        into.reserve(CHUNK_BYTES);
        match from_session.try_read_buf(into) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes of whole frames at the start.
fn whole_frames(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(rest) = bytes.get(whole..)
        && rest.len() >= frame::HEADER_BYTES
        && rest.len() >= frame::bytes_needed(rest)
    {
        whole += frame::bytes_needed(rest);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_where_a_frame_ends() {
        let frame = |payload: usize| {
            let mut bytes = u32::try_from(payload + 3).unwrap().to_be_bytes().to_vec();
            bytes.resize(4 + 3 + payload, 7);
            bytes
        };
        let two = [frame(0), frame(300)].concat();
        for (bytes, whole) in [(0, 0), (3, 0), (6, 0), (7, 7), (8, 7), (two.len() - 1, 7), (two.len(), two.len())] {
            assert_eq!(whole_frames(&two[..bytes]), whole, "{bytes} bytes");
        }
    }
}
