//! The table of settings: one row per key, from which everything else that knows keys is made.
//!
//! A row reads `key: Type = default, rule;` under its help. From the rows come the resolved structs, the raw struct of
//! each source, the names in environment and command line, the example file, the manual and the report of
//! `check-config`. Keys and defaults are those of BEHAVIOUR.md 9.2.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::raw::{Given, Source};
use super::resolve::{Context, Setting, settle};
use super::types::{Checkpoints, Durability, Endpoint, Host, LogFilter, LogFormat, LogIp, Secret, SeedChannel};

/// One row of [`TABLE`]: what is known of a key besides its type.
#[derive(Debug)]
pub struct Entry {
    /// Name of the section in the file, without brackets.
    pub section: &'static str,
    /// Name of the key in its section.
    pub key: &'static str,
    /// What it does, one line per element.
    pub help: &'static [&'static str],
    /// Bounds and other names.
    pub rule: Rule,
    /// The default as the file would say it; `unset` when the file cannot say it.
    pub default: fn() -> String,
    /// The values allowed, for people.
    pub kind: fn(&Rule) -> String,
}

impl Entry {
    /// Names of the environment variables that set this key, the first one set counts. None for what only the file
    /// can say.
    pub fn environment(&self) -> Vec<String> {
        if self.rule.file_only { Vec::new() } else { self.variables() }
    }

    /// The names by rule, whether or not a variable can say enough: whoever tries is told.
    pub(super) fn variables(&self) -> Vec<String> {
        let long = format!("SUPERCHAT_{}_{}", self.section, self.key).to_uppercase();
        [Some(long), self.rule.environment.map(str::to_owned)].into_iter().flatten().collect()
    }

    /// The key with its section, as all messages name it: `[server] tcp_port`.
    pub fn name(&self) -> String {
        format!("[{}] {}", self.section, self.key)
    }
}

/// Bounds of a row and its names outside the file.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Smallest number allowed besides 0; smaller ones are raised to it with a warning.
    pub at_least: u64,
    /// Largest number allowed; larger ones are lowered to it with a warning.
    pub at_most: u64,
    /// A number above `at_most` is an error instead.
    pub refuse_above: bool,
    /// Seconds in one unit of the number, for settings that are durations.
    pub unit_seconds: u64,
    /// A short name in the environment besides `SUPERCHAT_<SECTION>_<KEY>`.
    pub environment: Option<&'static str>,
    /// The flag of the command line that sets this key.
    pub flag: Option<&'static str>,
    /// Too rich for one line of text, so neither environment nor flag.
    pub file_only: bool,
    /// Shown in the example file where the default cannot be written down.
    pub sample: Option<&'static str>,
    /// A reload (SIGHUP) changes it; others wait for the next start.
    pub live: bool,
}

impl Rule {
    const fn live(self) -> Self {
        Self { live: true, ..self }
    }

    const fn flag(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }

    const fn environment(self, name: &'static str) -> Self {
        Self { environment: Some(name), ..self }
    }

    const fn at_least(self, at_least: u64) -> Self {
        Self { at_least, ..self }
    }

    const fn at_most(self, at_most: u64) -> Self {
        Self { at_most, ..self }
    }

    const fn unit_seconds(self, unit_seconds: u64) -> Self {
        Self { unit_seconds, ..self }
    }
}

const PLAIN: Rule = Rule {
    at_least: 1,
    at_most: u64::MAX,
    refuse_above: false,
    unit_seconds: 1,
    environment: None,
    flag: None,
    file_only: false,
    sample: None,
    live: false,
};
const PORT: Rule = Rule { at_most: 65_535, refuse_above: true, ..PLAIN };
const FILE_ONLY: Rule = Rule { file_only: true, ..PLAIN };

const YEAR_SECONDS: u64 = 365 * 24 * 3600;
const YEAR_MINUTES: u64 = 365 * 24 * 60;
/// BEHAVIOUR.md 2.8: the longest retention a channel may ask for.
pub(super) const RETENTION_HOURS_MAX: u64 = 8760;

/// The literal is written in this file, so a wrong one ends the compilation.
const fn port(number: u16) -> Option<NonZeroU16> {
    Some(NonZeroU16::new(number).expect("not zero"))
}

const fn loopback(port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port))
}

macro_rules! nonzero {
    ($Type:ident, $number:literal) => {{
        const NUMBER: $Type = $Type::new($number).expect("not zero");
        NUMBER
    }};
}

macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $Section:ident {$(
            $(#[doc = $help:literal])+
            $key:ident: $Type:ty = $default:expr, $rule:expr;
        )+}
    )+) => {
        /// Every setting, resolved and checked: a value that is here can be used as it is.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Settings {
            $($(#[doc = $about])+ pub $section: $Section,)+
        }

        $(
            $(#[doc = $about])+
            #[derive(Debug, Clone, PartialEq)]
            pub struct $Section { $($(#[doc = $help])+ pub $key: $Type,)+ }
        )+

        /// Sections in the order of the table, with what they are about.
        pub static SECTIONS: &[(&str, &[&str])] = &[$((stringify!($section), &[$($about),+])),+];

        /// Every setting, in the order of the example file.
        pub static TABLE: &[&Entry] = &[$($(&entry::$section::$key),+),+];

        #[expect(non_upper_case_globals, reason = "each is named like its key")]
        mod entry {
            $(pub(super) mod $section {
                use super::super::*;
                $(pub(in super::super) static $key: Entry = Entry {
                    section: stringify!($section),
                    key: stringify!($key),
                    help: &[$($help),+],
                    rule: $rule,
                    default: || <$Type as Setting>::show(&$default, &$rule),
                    kind: <$Type as Setting>::kind,
                };)+
            })+
        }

        mod raw_section {
            use super::*;
            $(#[derive(Default)]
            pub(super) struct $Section { $(pub(super) $key: Option<Given<<$Type as Setting>::Given>>,)+ })+
        }

        /// What one source, or several merged, said: nothing is required and nothing checked but its form.
        #[derive(Default)]
        pub(super) struct Raw { $($section: raw_section::$Section,)+ }

        impl Raw {
            /// Asks `source` for every key of the table.
            pub(super) fn read(source: &mut impl Source) -> Self {
                Self { $($section: raw_section::$Section { $($key: source.get(&entry::$section::$key),)+ },)+ }
            }

            /// Keeps what `self` says and fills the rest from `lower`, key by key.
            pub(super) fn or(self, lower: Self) -> Self {
                Self {
                    $($section: raw_section::$Section {
                        $($key: self.$section.$key.or(lower.$section.$key),)+
                    },)+
                }
            }

            /// Checks every value; `context` collects origins, warnings and problems.
            pub(super) fn resolve(self, context: &mut Context<'_>) -> Settings {
                Settings {
                    $($section: $Section {
                        $($key: settle(&entry::$section::$key, self.$section.$key, $default, context),)+
                    },)+
                }
            }
        }

        impl Settings {
            /// Every row of the table with its value as the file would say it; secrets are masked.
            pub fn rows(&self) -> Vec<(&'static Entry, String)> {
                vec![$($((
                    &entry::$section::$key,
                    self.$section.$key.show(&entry::$section::$key.rule),
                )),+),+]
            }

            /// The rows whose values differ, secrets included.
            pub fn differences(&self, other: &Self) -> Vec<&'static Entry> {
                let rows = [$($((self.$section.$key != other.$section.$key).then_some(&entry::$section::$key)),+),+];
                rows.into_iter().flatten().collect()
            }

            /// These settings with what `newer` says of those that a reload changes.
            #[must_use]
            pub fn reloaded(&self, newer: &Self) -> Self {
                Self {
                    $($section: $Section {
                        $($key: if entry::$section::$key.rule.live { &newer.$section.$key } else { &self.$section.$key }.clone(),)+
                    },)+
                }
            }
        }
    };
}

settings! {
    /// Ports, files and the people in charge.
    server: Server {
        /// Address that the public ports listen on; `::` takes IPv4 and IPv6.
        listen_address: std::net::IpAddr = std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), PLAIN;
        /// Port of the binary protocol over TCP. 0 = off.
        tcp_port: Option<NonZeroU16> = port(6465), PORT.flag("port");
        /// Port of the SSH transport. 0 = off.
        ssh_port: Option<NonZeroU16> = port(6466), PORT;
        /// Port of `/ws` and `/servers.json`. 0 = off.
        http_port: Option<NonZeroU16> = port(8080), PORT;
        /// Private key of the SSH transport. Clients remember it: keep it with the database.
        /// Empty: `ssh_host_key` in the data directory.
        ssh_host_key: PathBuf = PathBuf::new(), PLAIN;
        /// The SQLite file that holds everything. Empty: `superchat.db` in the data directory.
        database_path: PathBuf = PathBuf::new(), PLAIN.flag("db");
        /// Nicknames of registered accounts with all rights.
        admin_users: Vec<String> = Vec::new(), PLAIN.live();
        /// Sets the password of the first of `admin_users` at every start. Empty: left alone.
        admin_password: Option<Secret> = None, PLAIN;
        /// Nicknames of registered accounts that carry the moderator mark.
        moderator_users: Vec<String> = Vec::new(), PLAIN.live();
        /// Send the archive byte that newer client generations expect in channel lists.
        wire_archive_flag: bool = false, PLAIN;
        /// Remove control characters from what is posted outside direct messages.
        sanitize_content: bool = true, PLAIN.live();
        /// Say `Session timeout` before an idle session is closed. Terminal clients then stay away.
        idle_notice: bool = false, PLAIN.live();
        /// Origins of web pages that may open a WebSocket, such as `https://chat.example.org`. Empty: all.
        allowed_origins: Vec<String> = Vec::new(), PLAIN;
        /// Peers whose X-Forwarded-For header is believed: addresses or networks of reverse proxies.
        trusted_proxies: Vec<IpNet> = Vec::new(), PLAIN;
        /// Seconds over which clients are told of a shutdown, so that a crowd does not come back all at once; few clients
        /// are told sooner. 0 = at once.
        shutdown_spread_seconds: Option<Duration> = Some(Duration::from_secs(2)), PLAIN.live().at_most(60);
        /// Threads that serve sessions. 0 = one per core.
        shards: Option<NonZeroUsize> = None, PLAIN.at_most(256);
        /// Threads that hash passwords.
        password_threads: NonZeroUsize = nonzero!(NonZeroUsize, 2), PLAIN.at_most(64);
    }
    /// What one client may do. All addresses of an IPv6 /64 network count as one.
    limits: Limits {
        /// Sessions from one address at the same time. 0 = off.
        max_connections_per_ip: Option<NonZeroU8> = NonZeroU8::new(10), PLAIN.live();
        /// Messages a user may post per minute. 0 = off.
        message_rate_limit: Option<NonZeroU16> = NonZeroU16::new(10), PLAIN.live();
        /// Channels a user may create per hour. 0 = off.
        max_channel_creates: Option<NonZeroU16> = NonZeroU16::new(5), PLAIN.live();
        /// Bytes of one message.
        max_message_length: NonZeroU32 = nonzero!(NonZeroU32, 4096), PLAIN.live().at_most(4096);
        /// Seconds without a frame after which a session is closed. 0 = never.
        session_timeout_seconds: Option<Duration> = Some(Duration::from_secs(120)), PLAIN.live().at_most(YEAR_SECONDS);
        /// Threads a session may be subscribed to.
        max_thread_subscriptions: NonZeroU16 = nonzero!(NonZeroU16, 50), PLAIN.live();
        /// Channels a session may be subscribed to.
        max_channel_subscriptions: NonZeroU16 = nonzero!(NonZeroU16, 10), PLAIN.live();
        /// Networks that are free of the limits on connections, messages, channels, sign-ins, requests and invites.
        /// The list replaces the default: repeat the loopback networks to keep them free.
        exempt_networks: Vec<IpNet> = loopback_networks(), PLAIN.live();
        /// Sign-in attempts per minute, for an address and for an account. 0 = off.
        auth_attempts_per_minute: Option<NonZeroU32> = NonZeroU32::new(10), PLAIN.live();
        /// Requests of a session per second, with bursts of twice that. 0 = off.
        requests_per_second: Option<NonZeroU32> = NonZeroU32::new(100), PLAIN.live();
        /// Direct message invites a user may send per hour. 0 = off.
        dm_invites_per_hour: Option<NonZeroU32> = NonZeroU32::new(30), PLAIN.live();
        /// Bytes that may wait for a session that reads slowly; above, it is disconnected and may come back.
        outbox_bytes_max: NonZeroUsize = nonzero!(NonZeroUsize, 1_048_576), PLAIN.live().at_least(65_536).at_most(1 << 30);
    }
    /// How long messages are kept.
    retention: Retention {
        /// Hours that messages of seed channels are kept, where the channel does not say.
        default_retention_hours: NonZeroU32 = nonzero!(NonZeroU32, 168), PLAIN.at_most(RETENTION_HOURS_MAX);
        /// Minutes between two clean-ups.
        cleanup_interval_minutes: Duration = Duration::from_secs(3600), PLAIN.unit_seconds(60).at_most(YEAR_MINUTES);
        /// Delete what is too old. Unset: only in databases that this server made, because the server before it
        /// never deleted anything.
        enforce: Option<bool> = None, Rule { sample: Some("true"), ..PLAIN };
    }
    /// The channels of a new database.
    channels: Channels {
        /// Channels made in a database that never had any, in this order. Per entry: `name`, `description`, and where
        /// wanted `type` (`"chat"` or `"forum"`, the default; also 0 or 1) and `retention_hours`.
        seed_channels: Vec<SeedChannel> = SeedChannel::defaults(), FILE_ONLY;
    }
    /// The directory of servers, and how this one appears in it.
    discovery: Discovery {
        /// Keep a directory where other servers may register.
        directory_enabled: bool = true, PLAIN.flag("disable-directory");
        /// Name under which this server is reached from outside. Empty: not announced, shown as `localhost`.
        public_hostname: Option<Host> = None, PLAIN;
        /// Name in directories.
        server_name: String = "SuperChat Server".to_owned(), PLAIN.live().flag("server-name");
        /// Description in directories.
        server_description: String = "A SuperChat community server".to_owned(), PLAIN.live().flag("server-description");
        /// Sessions at the same time. 0 = unlimited.
        max_users: Option<NonZeroU32> = None, PLAIN.live();
        /// Let servers with private addresses register here.
        allow_private_servers: bool = false, PLAIN;
        /// The longest pause, in seconds, before this directory again asks listed servers for those that they list; the pauses
        /// are random, a sixth of it at least. 0 = never.
        gossip_interval_seconds: Option<Duration> = Some(Duration::from_secs(6 * 3600)), PLAIN.at_least(6).at_most(YEAR_SECONDS);
        /// Directories to register at: `host` or `host:port`, the port is 6465 otherwise.
        announce_to: Vec<Endpoint> = Vec::new(), PLAIN.flag("announce-to");
    }
    /// The database.
    storage: Storage {
        /// What a crash may cost: `full` = nothing that was acknowledged, `process` = a power cut the last moments.
        durability: Durability = Durability::Full, PLAIN;
        /// Who brings the write-ahead log into the database file: `own` = this server, `external` = a program that
        /// replicates the log, Litestream for instance. With `external` the log grows for as long as that program is away.
        checkpoints: Checkpoints = Checkpoints::Own, PLAIN;
        /// Threads that read.
        readers: NonZeroUsize = nonzero!(NonZeroUsize, 2), PLAIN.at_most(64);
    }
    /// Ports for operators, never public.
    admin: Admin {
        /// Socket for `scd admin`, a path or `off`. Empty: `admin.sock` in the directory that systemd makes for the server,
        /// else beside the database, with `.sock` at its end.
        socket: PathBuf = PathBuf::new(), PLAIN;
        /// Metrics and health: address and port, or `off`.
        metrics_listen: Option<SocketAddr> = loopback(9090), PLAIN;
        /// Profiles: address and port, or `off`. An address other than loopback needs `metrics_token`.
        profile_listen: Option<SocketAddr> = loopback(6060), PLAIN;
        /// Bearer token that metrics, status and profiles ask for. Empty: none.
        metrics_token: Option<Secret> = None, PLAIN.live().environment("METRICS_TOKEN");
        /// The block profile's rate from the start on: waits of that many nanoseconds are all recorded, shorter ones by their
        /// part. 0: off.
        block_profile_rate: Option<NonZeroU32> = None, PLAIN;
        /// The mutex profile's fraction from the start on: one of that many waits for a lock is recorded. 0: off.
        mutex_profile_fraction: Option<NonZeroU32> = None, PLAIN;
    }
    /// Logs and error reports.
    log: Log {
        /// `error`, `warn`, `info`, `debug` or `trace`, and levels of modules after a comma: `info,superchat::net=debug`.
        log_level: LogFilter = LogFilter::info(), PLAIN.live().environment("LOG_LEVEL").flag("log-level");
        /// `text` or `json`.
        log_format: LogFormat = LogFormat::Text, PLAIN.flag("log-format");
        /// How much of a client's address is logged: `full`, `truncated` or `off`.
        log_ip: LogIp = LogIp::Full, PLAIN.live();
        /// Write `debug.log` too.
        debug: bool = false, PLAIN.flag("debug");
        /// Where panics and errors are reported, a Sentry-compatible address. Empty: nowhere.
        sentry_dsn: Option<Secret> = None, PLAIN.environment("SENTRY_DSN");
        /// What reports say about where the server runs.
        sentry_environment: String = "production".to_owned(), PLAIN.environment("SENTRY_ENVIRONMENT");
    }
}

/// `127.0.0.0/8` and `::1/128`.
fn loopback_networks() -> Vec<IpNet> {
    let v4 = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    vec![v4.into(), std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST).into()]
}

/// A key that other versions or documents have and this server does not read.
#[derive(Debug)]
pub(super) struct Retired {
    /// Section it stands in, `*` = any, also none.
    pub section: &'static str,
    /// Its name, `*` = any.
    pub key: &'static str,
    /// What to do about it.
    pub advice: &'static str,
}

/// BEHAVIOUR.md 9.2: files in the field have these, so they only warn.
pub(super) static RETIRED: &[Retired] = &[
    Retired { section: "limits", key: "max_nickname_length", advice: "nicknames always have 3 to 20 characters" },
    Retired { section: "*", key: "websocket_port", advice: "use [server] http_port" },
    Retired {
        section: "*",
        key: "max_connections",
        advice: "use [discovery] max_users for the whole server, [limits] max_connections_per_ip for one address",
    },
    Retired { section: "discovery", key: "enabled", advice: "use [discovery] directory_enabled" },
    Retired { section: "*", key: "log_level", advice: "use [log] log_level" },
    Retired { section: "archive", key: "*", advice: "this server has no archive" },
    Retired { section: "moderation", key: "*", advice: "this server has no word filter" },
];

/// The row of `section` and `key`.
pub(super) fn find(section: &str, key: &str) -> Option<&'static Entry> {
    TABLE.iter().copied().find(|entry| entry.section == section && entry.key == key)
}

/// The retired key that `section` and `key` name.
pub(super) fn find_retired(section: &str, key: &str) -> Option<&'static Retired> {
    let fits = |pattern: &str, name: &str| pattern == "*" || pattern == name;
    RETIRED.iter().find(|retired| fits(retired.section, section) && fits(retired.key, key))
}
