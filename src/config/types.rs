//! Types of settings that the standard library does not have.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::str::FromStr;

use crate::log::Levels;

/// A text that is used but never shown: its `Debug` form says nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(***)")
    }
}

/// A closed list of words: the enum, its names and the way back from them.
macro_rules! words {
    ($(#[doc = $help:literal])+ $Name:ident { $($(#[doc = $about:literal])+ $Variant:ident = $word:literal),+ $(,)? }) => {
        $(#[doc = $help])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Name { $($(#[doc = $about])+ $Variant),+ }

        impl $Name {
            /// The words as files say them, in the order of the variants.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word for this variant.
            pub fn word(self) -> &'static str {
                match self { $(Self::$Variant => $word),+ }
            }

            /// The variant for `word`.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$Variant),)+ _ => None }
            }
        }
    };
}

words! {
    /// What is safe when the power goes (DESIGN.md, settled decisions).
    Durability {
        /// Every acknowledged message: SQLite's synchronous FULL.
        Full = "full",
        /// Acknowledged messages survive the process but perhaps not the machine: synchronous NORMAL.
        Process = "process",
    }
}

words! {
    /// Who brings the write-ahead log into the database.
    Checkpoints {
        /// This server.
        Own = "own",
        /// A program that replicates the log, Litestream for instance.
        External = "external",
    }
}

words! {
    /// Form of a log line (OBSERVABILITY.md 4).
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

words! {
    /// How much of an address may stand in a log (OBSERVABILITY.md 4).
    LogIp {
        /// All of it.
        Full = "full",
        /// The network only.
        Truncated = "truncated",
        /// Nothing.
        Off = "off",
    }
}

words! {
    /// What a channel is (WIRE.md 6).
    ChannelKind {
        /// A linear conversation, type 0.
        Chat = "chat",
        /// Threads, type 1.
        Forum = "forum",
    }
}

impl ChannelKind {
    /// The number in database and frames.
    pub fn code(self) -> u8 {
        match self {
            Self::Chat => 0,
            Self::Forum => 1,
        }
    }
}

/// A channel to be made in a new database (BEHAVIOUR.md 8.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeedChannel {
    /// Legal by the rule of BEHAVIOUR.md 2.8: 3 to 50 bytes.
    pub name: String,
    /// At most 500 bytes.
    pub description: String,
    /// Forum unless said otherwise.
    pub kind: ChannelKind,
    /// 1 to 8760; `None` stands for `default_retention_hours`.
    pub retention_hours: Option<NonZeroU32>,
}

impl SeedChannel {
    /// The name as clients show it: `>chat`, `#general`.
    pub fn display_name(&self) -> String {
        let mark = match self.kind {
            ChannelKind::Chat => '>',
            ChannelKind::Forum => '#',
        };
        format!("{mark}{}", self.name)
    }

    /// The five channels that every database of the existing server has.
    pub(super) fn defaults() -> Vec<Self> {
        let forum = |name: &str, description: &str| Self {
            name: name.to_owned(),
            description: description.to_owned(),
            kind: ChannelKind::Forum,
            retention_hours: None,
        };
        let chat = forum("chat", "General chat (linear conversation)");
        vec![
            Self { kind: ChannelKind::Chat, retention_hours: NonZeroU32::new(24), ..chat },
            forum("general", "General discussion"),
            forum("tech", "Technical topics"),
            forum("random", "Off-topic chat"),
            forum("feedback", "Bug reports and feature requests"),
        ]
    }
}

/// Name or address of a machine, not resolved: 1 to 253 letters, digits, `.`, `-`, `_`, and `:` in IPv6 addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(String);

impl Host {
    /// The name as it was written, without brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Host {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        let is_name = |text: &str| text.chars().all(|letter| letter.is_ascii_alphanumeric() || ".-_".contains(letter));
        let is_address = || text.parse::<std::net::Ipv6Addr>().is_ok();
        let is_legal = (1..=253).contains(&text.len()) && (is_name(text) || is_address());
        if is_legal { Ok(Self(text.to_owned())) } else { Err(NotAHost) }
    }
}

/// A text that names no machine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the name or address of a machine, such as example.org or example.org:6465")]
pub struct NotAHost;

/// Where a server is reached: a directory to register at (BEHAVIOUR.md 6.5), or the server a client talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The machine.
    pub host: Host,
    /// Its TCP port, 6465 unless said otherwise.
    pub port: NonZeroU16,
}

impl Endpoint {
    const PORT_DEFAULT: NonZeroU16 = NonZeroU16::new(6465).expect("not zero");
}

impl FromStr for Endpoint {
    type Err = NotAHost;

    /// `host`, `host:port`, `[v6]` or `[v6]:port`.
    fn from_str(text: &str) -> Result<Self, NotAHost> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(NotAHost)?;
                let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(NotAHost)?) };
                (host, port)
            }
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| NotAHost)?,
            None => Self::PORT_DEFAULT,
        };
        Ok(Self { host: host.parse()?, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.as_str() {
            host if host.contains(':') => write!(out, "[{host}]:{}", self.port),
            host => write!(out, "{host}:{}", self.port),
        }
    }
}

/// Levels of the log, for all and by module, known to parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The level names, most severe first.
    pub const LEVELS: &'static [&'static str] = &["error", "warn", "info", "debug", "trace"];

    /// The default, `info`.
    pub(super) fn info() -> Self {
        Self("info".to_owned())
    }

    /// As the log takes it.
    pub fn levels(&self) -> Levels {
        self.0.parse().unwrap_or_default()
    }

    /// The directives, such as `info,superchat::net=debug`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = NotALogFilter;

    fn from_str(text: &str) -> Result<Self, NotALogFilter> {
        let text = text.trim();
        text.parse::<Levels>().map(|_| Self(text.to_owned())).map_err(|_| NotALogFilter)
    }
}

/// A text that is neither a level nor a list of directives.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a log level")]
pub struct NotALogFilter;
