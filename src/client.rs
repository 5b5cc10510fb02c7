//! A small client for people and scripts: `scd channels`, `scd tail`, `scd post`. It speaks the wire tables that the
//! server speaks.

use std::io::{self, IsTerminal as _, Read as _, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use thiserror::Error;

use crate::cli::{Connection, Input};
use crate::clock;
use crate::ids::{ChannelId, MessageId};
use crate::wire::codec::{Bounded, Wire};
use crate::wire::frame::{self, Frame};
use crate::wire::records::{ChannelEntry, SubchannelEntry};
use crate::wire::{ClientMessage, FrameError, ServerMessage, WireError, client};

/// How long the server may take to connect, and to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often `tail` shows the server that it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Messages of the past that `tail` begins with.
const TAIL_MESSAGES: u16 = 10;

/// Why a client command failed: one line that says what to do.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("cannot connect to {server}: {source}; is the server running there?")]
    Connect { server: String, source: io::Error },
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    /// Whoever read what is printed has seen enough; nothing went wrong.
    #[error("nobody reads what is printed")]
    Unread,
    #[error("the server closed the connection")]
    Closed,
    #[error("the server closed the connection: {0}")]
    Disconnected(String),
    #[error("the server does not speak the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the server's answer cannot be read: {0}")]
    Unreadable(WireError),
    #[error("{0}")]
    Refused(String),
    #[error("there is no channel {0}; `scd channels` lists them")]
    NoChannel(String),
    #[error("the nickname does not fit: 3 to 20 letters, digits, - or _; give one with --nick")]
    Nickname,
    #[error("a message has 1 to 4096 bytes, this one has {0}")]
    Length(usize),
    #[error("cannot read the message from standard input: {0}")]
    Stdin(io::Error),
}

/// Prints the channels of a server, subchannels below their parents.
///
/// # Errors
/// [`ClientError`].
pub fn channels(connection: &Connection) -> Result<(), ClientError> {
    let mut session = Session::connect(connection)?;
    let channels = session.channels()?;
    let mut out = io::stdout().lock();
    for channel in &channels {
        let kind = if channel.is_chat { "chat" } else { "forum" };
        let indent = if channel.parent.is_some() { "  " } else { "" };
        let name = format!("{indent}#{}", printable(&channel.name));
        print_line(&mut out, &format!("{name:<24} {kind:<6} {}", printable(&channel.description)))?;
    }
    session.leave()
}

/// Prints a channel's last messages, or a thread's, and then each one as it arrives, until interrupted.
///
/// # Errors
/// [`ClientError`].
pub fn tail(channel: &str, thread: Option<u64>, connection: &Connection) -> Result<(), ClientError> {
    let mut session = Session::connect(connection)?;
    let place = session.find(channel)?;
    let thread = thread.map(MessageId);
    match thread {
        None => session.send(&client::SubscribeChannel { channel_id: place, subchannel_id: None })?,
        Some(thread_id) => session.send(&client::SubscribeThread { thread_id })?,
    }
    session.answer(|message| matches!(message, ServerMessage::SubscribeOk(_)).then_some(()))?;
    session.send(&client::ListMessages {
        channel_id: place,
        subchannel_id: None,
        limit: TAIL_MESSAGES,
        before_id: None,
        parent_id: thread,
        after_id: None,
    })?;
    let past = session.answer(|message| match message {
        ServerMessage::MessageList(list) => Some(list.messages.0.iter().map(Line::of_record).collect::<Vec<_>>()),
        _ => None,
    })?;
    let mut newest = 0;
    let mut out = io::stdout().lock();
    // Roots come newest first, a thread in reading order.
    let in_reading_order: Box<dyn Iterator<Item = &Line>> =
        if thread.is_none() { Box::new(past.iter().rev()) } else { Box::new(past.iter()) };
    for line in in_reading_order {
        newest = newest.max(line.id);
        print_line(&mut out, &line.text)?;
    }
    session.follow(newest, &mut out)
}

/// Posts a message and prints its id.
///
/// # Errors
/// [`ClientError`].
pub fn post(channel: &str, text: &Input, connection: &Connection) -> Result<(), ClientError> {
    let content = match text {
        Input::Text(text) => text.clone().into_bytes(),
        Input::Stdin => read_stdin()?,
    };
    let content = content.strip_suffix(b"\n").unwrap_or(&content);
    if content.is_empty() || content.len() > crate::limits::CONTENT_BYTES_MAX {
        return Err(ClientError::Length(content.len()));
    }
    let mut session = Session::connect(connection)?;
    session.introduce(connection.nick.as_deref())?;
    let channel_id = session.find(channel)?;
    let content = Bounded(content);
    session.send(&client::PostMessage { channel_id, subchannel_id: None, parent_id: None, content })?;
    let id = session.answer(|message| match message {
        ServerMessage::MessagePosted(posted) => Some(posted.message_id),
        _ => None,
    })?;
    print_line(&mut io::stdout().lock(), &id.to_string())?;
    session.leave()
}

fn read_stdin() -> Result<Vec<u8>, ClientError> {
    if io::stdin().is_terminal() {
        // Standard error is all there is to say it on; without it, nothing is lost.
        writeln!(io::stderr(), "scd: reading the message from standard input, end with ctrl-d").unwrap_or_default();
    }
    let mut text = Vec::new();
    // One more byte than a message may have tells a long text from a fitting one; the newline at the end is not sent.
    let most = crate::limits::CONTENT_BYTES_MAX as u64 + 2;
    io::stdin().lock().take(most).read_to_end(&mut text).map_err(ClientError::Stdin)?;
    Ok(text)
}

/// A reader that has gone away, as `head` does, ends the output without an error.
fn print_line(out: &mut impl Write, line: &str) -> Result<(), ClientError> {
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClientError::Unread),
        written => written.map_err(ClientError::Io),
    }
}

/// A text as a terminal may show it: control characters are written out.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars()
        .flat_map(|c| if c.is_control() && c != '\n' { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// One printed message.
struct Line {
    id: u64,
    text: String,
}

impl Line {
    fn new(id: MessageId, created_at: i64, author: &[u8], content: &[u8]) -> Self {
        let time = clock::rfc3339(created_at);
        let author = if author.is_empty() { "*".to_owned() } else { printable(author) };
        Self { id: id.0, text: format!("{time} {id} <{author}> {}", printable(content).replace('\n', "\n    ")) }
    }

    fn of_record(message: &crate::wire::records::Message<'_>) -> Self {
        Self::new(message.message_id, message.created_at, message.author_nickname, message.content)
    }
}

/// A channel as the commands need it.
struct Listed {
    id: ChannelId,
    parent: Option<ChannelId>,
    name: Vec<u8>,
    description: Vec<u8>,
    is_chat: bool,
}

impl Listed {
    fn channel(entry: &ChannelEntry<'_>) -> Self {
        Self {
            id: entry.channel_id,
            parent: None,
            name: entry.name.to_vec(),
            description: entry.description.to_vec(),
            is_chat: entry.channel_type == 0,
        }
    }

    fn subchannel(entry: &SubchannelEntry<'_>, parent: ChannelId) -> Self {
        Self {
            id: entry.subchannel_id,
            parent: Some(parent),
            name: entry.name.to_vec(),
            description: entry.description.to_vec(),
            is_chat: entry.channel_type == 0,
        }
    }
}

/// One connection, one request at a time.
struct Session {
    stream: TcpStream,
    inbox: Vec<u8>,
}

impl Session {
    fn connect(connection: &Connection) -> Result<Self, ClientError> {
        let server = connection.server.to_string();
        let failed = |source| ClientError::Connect { server: server.clone(), source };
        let addresses =
            (connection.server.host.as_str(), connection.server.port.get()).to_socket_addrs().map_err(failed)?;
        let mut outcome = Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
        for address in addresses {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => {
                    outcome = Ok(stream);
                    break;
                }
                Err(error) => outcome = Err(failed(error)),
            }
        }
        let stream = outcome?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut session = Self { stream, inbox: Vec::new() };
        session.answer(|message| matches!(message, ServerMessage::ServerConfig(_)).then_some(()))?;
        Ok(session)
    }

    fn introduce(&mut self, nick: Option<&str>) -> Result<(), ClientError> {
        let own = std::env::var("USER").unwrap_or_default();
        let nickname = crate::text::nickname(nick.unwrap_or(&own).as_bytes());
        let fallback = || nick.is_none().then(|| b"scd-post"[..].into());
        let nickname = nickname.or_else(fallback).ok_or(ClientError::Nickname)?;
        self.send(&client::SetNickname { nickname: Bounded(&nickname) })?;
        let refusal = self.answer(|message| match message {
            ServerMessage::NicknameResponse(response) => Some((!response.success).then(|| printable(response.message))),
            _ => None,
        })?;
        refusal.map_or(Ok(()), |text| Err(ClientError::Refused(text)))
    }

    fn channels(&mut self) -> Result<Vec<Listed>, ClientError> {
        self.send(&client::ListChannels { from_channel_id: ChannelId(0), limit: 0 })?;
        let top = self.answer(|message| match message {
            ServerMessage::ChannelList(list) => Some(
                list.channels.0.iter().map(|entry| (Listed::channel(entry), entry.has_subchannels)).collect::<Vec<_>>(),
            ),
            _ => None,
        })?;
        let mut all = Vec::new();
        for (channel, has_subchannels) in top {
            let parent = channel.id;
            all.push(channel);
            if has_subchannels {
                self.send(&client::GetSubchannels { channel_id: parent })?;
                let below = self.answer(|message| match message {
                    ServerMessage::SubchannelList(list) => Some(
                        list.subchannels.0.iter().map(|entry| Listed::subchannel(entry, parent)).collect::<Vec<_>>(),
                    ),
                    _ => None,
                })?;
                all.extend(below);
            }
        }
        Ok(all)
    }

    fn find(&mut self, name: &str) -> Result<ChannelId, ClientError> {
        let bare = name.trim_start_matches('#').as_bytes();
        let found = self.channels()?.into_iter().find(|channel| channel.name == bare);
        found.map(|channel| channel.id).ok_or_else(|| ClientError::NoChannel(name.to_owned()))
    }

    fn send<'m, M>(&mut self, message: &M) -> Result<(), ClientError>
    where
        M: Wire<'m> + Clone + Into<ClientMessage<'m>>,
    {
        let code = message.clone().into().code();
        let mut bytes = Vec::new();
        frame::write_message(&mut bytes, code, message).map_err(ClientError::Unreadable)?;
        self.stream.write_all(&bytes).map_err(ClientError::Io)
    }

    /// Reads until `pick` takes a message; an ERROR is the answer too, broadcasts are passed over.
    fn answer<T>(&mut self, pick: impl Fn(&ServerMessage<'_>) -> Option<T>) -> Result<T, ClientError> {
        loop {
            let picked = self.next(|message| match message {
                ServerMessage::Error(error) => Err(ClientError::Refused(printable(error.message))),
                other => Ok(pick(other)),
            })?;
            if let Some(answer) = picked {
                return Ok(answer);
            }
        }
    }

    /// Reads one message.
    fn next<T>(&mut self, look: impl FnOnce(&ServerMessage<'_>) -> Result<T, ClientError>) -> Result<T, ClientError> {
        while Frame::cut(&self.inbox)?.is_none() {
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk)? {
                0 => return Err(ClientError::Closed),
                count => self.inbox.extend_from_slice(&chunk[..count]),
            }
        }
        let Some((frame, rest)) = Frame::cut(&self.inbox)? else { return Err(ClientError::Closed) };
        let used = self.inbox.len() - rest.len();
        let mut scratch = Vec::new();
        let payload = frame.unpack(&mut scratch)?.payload;
        let message = ServerMessage::read(frame.code, payload).map_err(ClientError::Unreadable)?;
        let looked = match &message {
            ServerMessage::Disconnect(goodbye) => {
                Err(ClientError::Disconnected(printable(goodbye.reason.unwrap_or(b"no reason given"))))
            }
            other => look(other),
        };
        self.inbox.drain(..used);
        looked
    }

    /// Prints what arrives, until the connection ends or nobody reads.
    fn follow(&mut self, mut newest: u64, out: &mut impl Write) -> Result<(), ClientError> {
        self.stream.set_read_timeout(Some(KEEP_ALIVE))?;
        loop {
            let line = self.next(|message| {
                Ok(match message {
                    ServerMessage::NewMessage(m) => {
                        Some(Line::new(m.message_id, m.created_at, m.author_nickname, m.content))
                    }
                    _ => None,
                })
            });
            match line {
                Ok(Some(line)) if line.id > newest => {
                    newest = line.id;
                    print_line(out, &line.text)?;
                }
                Ok(_) => {}
                Err(ClientError::Io(error)) if is_silence(&error) => self.send(&client::Ping { timestamp: 0 })?,
                Err(error) => return Err(error),
            }
        }
    }

    fn leave(mut self) -> Result<(), ClientError> {
        self.send(&client::Disconnect { reason: None })
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
