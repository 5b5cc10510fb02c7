//! From what the sources said to values that hold: bounds, defaults, and what settings demand of each other.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::manual::{quoted, quoted_list};
use super::problem::Fault;
use super::raw::{Given, Hidden, Input, Notes, Origin, RawSeed};
use super::table::{Entry, RETENTION_HOURS_MAX, Rule, Settings};
use super::types::{
    ChannelKind, Checkpoints, Durability, Endpoint, Host, LogFilter, LogFormat, LogIp, Secret, SeedChannel,
};

/// What resolving needs, and what it finds on its way.
pub(super) struct Context<'a> {
    pub(super) home: Option<&'a Path>,
    pub(super) origins: Origins,
    pub(super) notes: &'a mut Notes,
}

/// Where each resolved value comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<(&'static str, &'static str), Origin>);

impl Origins {
    /// The origin of `[section] key`; a key that nothing sets comes from the defaults.
    pub fn of(&self, section: &str, key: &str) -> &Origin {
        let found = self.0.iter().find(|((in_section, name), _)| *in_section == section && *name == key);
        found.map_or(&Origin::Default, |(_, origin)| origin)
    }

    pub(super) fn set(&mut self, section: &'static str, key: &'static str, origin: Origin) {
        self.0.insert((section, key), origin);
    }
}

/// A type that settings have once they are resolved.
pub(super) trait Setting: Sized {
    /// The form in which sources give it.
    type Given: Input;

    /// Whether a blank value stands for the default. Types where 0 or an empty list means something say no.
    const BLANK_IS_DEFAULT: bool = true;

    /// Checks `given`; what is merely too large or too small is clamped with a warning.
    fn check(given: Self::Given, check: &mut Check<'_, '_>) -> Result<Self, Fault>;

    /// The value as the file would say it; secrets are masked.
    fn show(&self, rule: &Rule) -> String;

    /// The values allowed, for people.
    fn kind(rule: &Rule) -> String;
}

/// The value under inspection: its row, its origin, and where to put warnings.
pub(super) struct Check<'a, 'c> {
    entry: &'static Entry,
    origin: &'a Origin,
    context: &'a mut Context<'c>,
}

impl Check<'_, '_> {
    /// Brings `value` between `at_least` and `at_most`, with a warning if it was not.
    fn clamp(&mut self, value: u64, at_least: u64, at_most: u64, what: &str) -> u64 {
        let clamped = value.clamp(at_least, at_most);
        if clamped != value {
            let side = if value > at_most { "above the largest" } else { "below the smallest" };
            let (origin, name) = (self.origin, self.entry.name());
            let warning = format!("{origin}: {name}{what}: {value} is {side} value, {clamped} is used");
            self.context.notes.warnings.push(warning);
        }
        clamped
    }

    /// Applies the row's bounds and those of the type.
    fn bound(&mut self, value: u64, type_max: u64) -> Result<u64, Fault> {
        let rule = &self.entry.rule;
        let at_most = rule.at_most.min(type_max);
        if rule.refuse_above && value > at_most {
            return Err(Fault::TooLarge { value, at_most });
        }
        Ok(self.clamp(value, rule.at_least, at_most, ""))
    }
}

/// Resolves one key and remembers where its value comes from.
pub(super) fn settle<T: Setting>(
    entry: &'static Entry,
    given: Option<Given<T::Given>>,
    default: T,
    context: &mut Context<'_>,
) -> T {
    let Some(given) = given.filter(|given| !(T::BLANK_IS_DEFAULT && given.value.is_blank())) else {
        return default;
    };
    let checked = T::check(given.value, &mut Check { entry, origin: &given.origin, context });
    match checked {
        Ok(value) => {
            context.origins.set(entry.section, entry.key, given.origin);
            value
        }
        Err(fault) => {
            context.notes.problem(given.origin, entry.name(), fault);
            default
        }
    }
}

/// A number type that cannot be 0.
trait Count: Copy {
    const MAX: u64;
    fn new(number: u64) -> Option<Self>;
    fn number(self) -> u64;
}

macro_rules! counts {
    ($($Type:ident = $Number:ident),+) => {$(
        impl Count for $Type {
            const MAX: u64 = $Number::MAX as u64;

            fn new(number: u64) -> Option<Self> {
                $Number::try_from(number).ok().and_then(Self::new)
            }

            fn number(self) -> u64 {
                self.get() as u64
            }
        }
    )+};
}
counts!(NonZeroU8 = u8, NonZeroU16 = u16, NonZeroU32 = u32, NonZeroUsize = usize);

/// 0 = the default.
macro_rules! required_counts {
    ($($Type:ident),+) => {$(
        impl Setting for $Type {
            type Given = u64;

            fn check(given: u64, check: &mut Check<'_, '_>) -> Result<Self, Fault> {
                let number = check.bound(given, <Self as Count>::MAX)?;
                <Self as Count>::new(number).ok_or_else(|| Fault::NotANumber(number.to_string()))
            }

            fn show(&self, _: &Rule) -> String {
                self.to_string()
            }

            fn kind(rule: &Rule) -> String {
                range(rule.at_least, rule.at_most.min(<Self as Count>::MAX))
            }
        }
    )+};
}
required_counts!(NonZeroU16, NonZeroU32, NonZeroUsize);

/// 0 = off.
impl<C: Count> Setting for Option<C> {
    type Given = u64;
    const BLANK_IS_DEFAULT: bool = false;

    fn check(given: u64, check: &mut Check<'_, '_>) -> Result<Self, Fault> {
        if given == 0 { Ok(None) } else { check.bound(given, C::MAX).map(C::new) }
    }

    fn show(&self, _: &Rule) -> String {
        self.map_or(0, C::number).to_string()
    }

    fn kind(rule: &Rule) -> String {
        range(0, rule.at_most.min(C::MAX))
    }
}

fn range(least: u64, most: u64) -> String {
    format!("{least} to {most}")
}

/// 0 = the default.
impl Setting for Duration {
    type Given = u64;

    fn check(given: u64, check: &mut Check<'_, '_>) -> Result<Self, Fault> {
        let number = check.bound(given, u64::from(u32::MAX))?;
        Ok(Self::from_secs(number.saturating_mul(check.entry.rule.unit_seconds)))
    }

    fn show(&self, rule: &Rule) -> String {
        (self.as_secs() / rule.unit_seconds).to_string()
    }

    fn kind(rule: &Rule) -> String {
        range(rule.at_least, rule.at_most)
    }
}

/// 0 = off.
impl Setting for Option<Duration> {
    type Given = u64;
    const BLANK_IS_DEFAULT: bool = false;

    fn check(given: u64, check: &mut Check<'_, '_>) -> Result<Self, Fault> {
        if given == 0 { Ok(None) } else { Duration::check(given, check).map(Some) }
    }

    fn show(&self, rule: &Rule) -> String {
        self.unwrap_or_default().show(rule)
    }

    fn kind(rule: &Rule) -> String {
        range(0, rule.at_most)
    }
}

impl Setting for bool {
    type Given = Self;

    fn check(given: Self, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        Ok(given)
    }

    fn show(&self, _: &Rule) -> String {
        self.to_string()
    }

    fn kind(_: &Rule) -> String {
        "`true` or `false`".to_owned()
    }
}

impl Setting for Option<bool> {
    type Given = bool;

    fn check(given: bool, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        Ok(Some(given))
    }

    fn show(&self, _: &Rule) -> String {
        self.map_or_else(|| "unset".to_owned(), |truth| truth.to_string())
    }

    fn kind(rule: &Rule) -> String {
        bool::kind(rule)
    }
}

/// One line, as it goes over the wire and into lists.
impl Setting for String {
    type Given = Self;

    fn check(given: Self, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        const TEXT_BYTES_MAX: usize = 500;
        let is_legal = given.len() <= TEXT_BYTES_MAX && !given.chars().any(char::is_control);
        if is_legal { Ok(given) } else { Err(not_a(&given, "a line of at most 500 bytes")) }
    }

    fn show(&self, _: &Rule) -> String {
        quoted(self)
    }

    fn kind(_: &Rule) -> String {
        "text".to_owned()
    }
}

impl Setting for Vec<String> {
    type Given = Self;

    fn check(given: Self, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        Ok(given)
    }

    fn show(&self, _: &Rule) -> String {
        quoted_list(self)
    }

    fn kind(_: &Rule) -> String {
        "list of names".to_owned()
    }
}

impl Setting for Option<Secret> {
    type Given = Hidden;

    fn check(given: Hidden, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        Ok(Some(Secret::new(given.0)))
    }

    fn show(&self, _: &Rule) -> String {
        quoted(self.as_ref().map_or("", |_| "***"))
    }

    fn kind(_: &Rule) -> String {
        "text, never shown".to_owned()
    }
}

/// A leading `~/` is the home of the user; other paths are as the system takes them.
impl Setting for PathBuf {
    type Given = String;

    fn check(given: String, check: &mut Check<'_, '_>) -> Result<Self, Fault> {
        match (given.strip_prefix("~/"), check.context.home) {
            (None, _) => Ok(Self::from(given)),
            (Some(rest), Some(home)) => Ok(home.join(rest)),
            (Some(_), None) => Err(Fault::NoHome(quoted(&given))),
        }
    }

    fn show(&self, _: &Rule) -> String {
        quoted(&self.to_string_lossy())
    }

    fn kind(_: &Rule) -> String {
        "path".to_owned()
    }
}

/// Settings that are one of a closed list of words.
macro_rules! word_settings {
    ($($Type:ident),+) => {$(
        impl Setting for $Type {
            type Given = String;

            fn check(given: String, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
                Self::from_word(given.trim()).ok_or_else(|| not_one_of(&given, Self::WORDS))
            }

            fn show(&self, _: &Rule) -> String {
                quoted(self.word())
            }

            fn kind(_: &Rule) -> String {
                Self::WORDS.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
            }
        }
    )+};
}
word_settings!(Checkpoints, Durability, LogFormat, LogIp);

impl Setting for IpAddr {
    type Given = String;

    fn check(given: String, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        given.trim().parse().map_err(|_| not_a(&given, "an address such as 0.0.0.0 or ::"))
    }

    fn show(&self, _: &Rule) -> String {
        quoted(&self.to_string())
    }

    fn kind(_: &Rule) -> String {
        "address".to_owned()
    }
}

/// `off` = none.
impl Setting for Option<SocketAddr> {
    type Given = String;

    fn check(given: String, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        match given.trim() {
            "off" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| not_a(&given, "an address and port such as 127.0.0.1:9090, or off"))
            }
        }
    }

    fn show(&self, _: &Rule) -> String {
        quoted(&self.map_or_else(|| "off".to_owned(), |address| address.to_string()))
    }

    fn kind(_: &Rule) -> String {
        "address:port or `off`".to_owned()
    }
}

impl Setting for Option<Host> {
    type Given = String;

    fn check(given: String, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        given.trim().parse().map(Some).map_err(|_| not_a(&given, "the name or address of a machine"))
    }

    fn show(&self, _: &Rule) -> String {
        quoted(self.as_ref().map_or("", Host::as_str))
    }

    fn kind(_: &Rule) -> String {
        "name or address".to_owned()
    }
}

impl Setting for LogFilter {
    type Given = String;

    fn check(given: String, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        given
            .parse()
            .map_err(|_| not_a(&given, "error, warn, info, debug or trace, nor a list such as info,superchat=debug"))
    }

    fn show(&self, _: &Rule) -> String {
        quoted(self.as_str())
    }

    fn kind(_: &Rule) -> String {
        "level or filter".to_owned()
    }
}

/// Addresses count as networks of one.
impl Setting for Vec<IpNet> {
    type Given = Vec<String>;

    fn check(given: Vec<String>, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        let network = |text: &String| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        each(&given, |text| network(text).map_err(|_| not_a(text, "a network such as 10.0.0.0/8 or an address")))
    }

    fn show(&self, _: &Rule) -> String {
        quoted_list(self)
    }

    fn kind(_: &Rule) -> String {
        "list of networks and addresses".to_owned()
    }
}

impl Setting for Vec<Endpoint> {
    type Given = Vec<String>;

    fn check(given: Vec<String>, _: &mut Check<'_, '_>) -> Result<Self, Fault> {
        each(&given, |text| {
            text.parse().map_err(|_| not_a(text, "a directory such as example.org or example.org:6465"))
        })
    }

    fn show(&self, _: &Rule) -> String {
        quoted_list(self)
    }

    fn kind(_: &Rule) -> String {
        "list of `host` or `host:port`".to_owned()
    }
}

fn each<T>(given: &[String], check: impl Fn(&String) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    given.iter().map(check).collect()
}

impl Setting for Vec<SeedChannel> {
    type Given = Vec<RawSeed>;

    fn check(given: Vec<RawSeed>, check: &mut Check<'_, '_>) -> Result<Self, Fault> {
        let mut names = HashSet::new();
        let mut channels = Self::with_capacity(given.len());
        for (index, seed) in given.into_iter().enumerate() {
            let channel = seed_channel(seed, index, check).map_err(|fault| fault.in_entry(index))?;
            if !names.insert(channel.name.clone()) {
                return Err(Fault::Twice(quoted(&channel.name)).in_entry(index));
            }
            channels.push(channel);
        }
        Ok(channels)
    }

    fn show(&self, _: &Rule) -> String {
        if self.is_empty() {
            return "[]".to_owned();
        }
        let entries: String = self.iter().map(|channel| format!("    {},\n", show_seed(channel))).collect();
        format!("[\n{entries}]")
    }

    fn kind(_: &Rule) -> String {
        "list of channels".to_owned()
    }
}

fn seed_channel(seed: RawSeed, index: usize, check: &mut Check<'_, '_>) -> Result<SeedChannel, Fault> {
    const DESCRIPTION_BYTES_MAX: usize = 500;
    if !is_channel_name(&seed.name) {
        let wanted = "a channel name: 3 to 50 bytes without spaces and /, no # or dm_ in front";
        return Err(not_a(&seed.name, wanted).at_key("name"));
    }
    if seed.description.len() > DESCRIPTION_BYTES_MAX || seed.description.chars().any(char::is_control) {
        return Err(not_a(&seed.description, "a line of at most 500 bytes").at_key("description"));
    }
    let kind = match seed.kind.as_str() {
        "" | "1" => ChannelKind::Forum,
        "0" => ChannelKind::Chat,
        word => ChannelKind::from_word(word)
            .ok_or_else(|| not_one_of(word, ChannelKind::WORDS))
            .map_err(|fault| fault.at_key("type"))?,
    };
    let hours = match seed.retention_hours {
        0 => None,
        hours => {
            let what = format!(" entry {} retention_hours", index + 1);
            NonZeroU32::new(check.clamp(hours, 1, RETENTION_HOURS_MAX, &what).try_into().unwrap_or(u32::MAX))
        }
    };
    Ok(SeedChannel { name: seed.name, description: seed.description, kind, retention_hours: hours })
}

/// The rule of BEHAVIOUR.md 2.8.
fn is_channel_name(name: &str) -> bool {
    let is_forbidden = |letter: char| letter.is_control() || letter.is_whitespace() || letter == '/';
    (3..=50).contains(&name.len()) && !name.starts_with('#') && !name.starts_with("dm_") && !name.contains(is_forbidden)
}

fn show_seed(channel: &SeedChannel) -> String {
    let mut text = format!("{{ name = {}, description = {}", quoted(&channel.name), quoted(&channel.description));
    if channel.kind != ChannelKind::Forum {
        text += &format!(", type = {}", quoted(channel.kind.word()));
    }
    if let Some(hours) = channel.retention_hours {
        text += &format!(", retention_hours = {hours}");
    }
    text + " }"
}

fn not_a(value: &str, wanted: &'static str) -> Fault {
    Fault::NotA { value: quoted(value), wanted }
}

fn not_one_of(value: &str, choices: &'static [&'static str]) -> Fault {
    Fault::NotOneOf { value: quoted(value), choices }
}

/// What settings demand of each other.
pub(super) fn check_together(settings: &Settings, origins: &Origins, notes: &mut Notes) {
    check_ports(settings, origins, notes);
    let open = settings.admin.profile_listen.filter(|address| !address.ip().to_canonical().is_loopback());
    if let (Some(address), None) = (open, &settings.admin.metrics_token) {
        let origin = origins.of("admin", "profile_listen").clone();
        notes.problem(origin, "[admin] profile_listen".to_owned(), Fault::NeedsToken(address.to_string()));
    }
}

fn check_ports(settings: &Settings, origins: &Origins, notes: &mut Notes) {
    let server = &settings.server;
    let ports = [("tcp_port", server.tcp_port), ("ssh_port", server.ssh_port), ("http_port", server.http_port)];
    for (index, (key, port)) in ports.iter().enumerate() {
        let twin = ports[..index].iter().find(|(_, other)| port.is_some() && other == port);
        if let (Some(port), Some((other, _))) = (port, twin) {
            let fault = Fault::SamePort { port: port.get(), other: format!("[server] {other}") };
            notes.problem(origins.of("server", key).clone(), format!("[server] {key}"), fault);
        }
    }
}
