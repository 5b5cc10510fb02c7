//! How a client's address appears in a log line: `log_ip` of the configuration.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

use super::SettingError;

/// How much of a client's address is logged (`log_ip`, OBSERVABILITY.md 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum LogIp {
    /// The whole address.
    #[default]
    Full,
    /// The network only: the first 24 bits of IPv4, 48 of IPv6, the rest zero.
    Truncated,
    /// `-` in place of every address.
    Off,
}

impl FromStr for LogIp {
    type Err = SettingError;

    fn from_str(name: &str) -> Result<Self, SettingError> {
        match name {
            "full" => Ok(Self::Full),
            "truncated" => Ok(Self::Truncated),
            "off" => Ok(Self::Off),
            _ => Err(SettingError::new("log_ip", name, "full, truncated or off")),
        }
    }
}

static LOG_IP: AtomicU8 = AtomicU8::new(LogIp::Full as u8);

pub(super) fn set(log_ip: LogIp) {
    LOG_IP.store(log_ip as u8, Ordering::Relaxed);
}

fn current() -> LogIp {
    const ALL: [LogIp; 3] = [LogIp::Full, LogIp::Truncated, LogIp::Off];
    let stored = LOG_IP.load(Ordering::Relaxed);
    ALL.into_iter().find(|&log_ip| log_ip as u8 == stored).unwrap_or(LogIp::Off)
}

/// A client's address as the log may show it; every address in a log line goes through here or through [`peer_addr`].
pub fn peer(ip: IpAddr) -> impl Display {
    shown(ip, current())
}

/// Like [`peer`], with the port: `192.0.2.7:5000`, `[2001:db8::1]:5000`, or `-` when addresses are off.
pub fn peer_addr(address: SocketAddr) -> impl Display {
    shown_addr(address, current())
}

fn shown(ip: IpAddr, log_ip: LogIp) -> impl Display {
    fmt::from_fn(move |f| match log_ip {
        LogIp::Off => f.write_str("-"),
        LogIp::Full | LogIp::Truncated => reduced(ip, log_ip).fmt(f),
    })
}

fn shown_addr(address: SocketAddr, log_ip: LogIp) -> impl Display {
    fmt::from_fn(move |f| match log_ip {
        LogIp::Off => f.write_str("-"),
        LogIp::Full | LogIp::Truncated => SocketAddr::new(reduced(address.ip(), log_ip), address.port()).fmt(f),
    })
}

/// An IPv4 client of a dual-stack socket counts as IPv4: the first 48 bits of its mapped form say nothing.
fn reduced(ip: IpAddr, log_ip: LogIp) -> IpAddr {
    match (log_ip, ip.to_canonical()) {
        (LogIp::Full, whole) => whole,
        (_, IpAddr::V4(v4)) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << 8))),
        (_, IpAddr::V6(v6)) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 80))),
    }
}

/// `text` with every address that stands in it as a word cut to its network, for what leaves the machine.
pub fn without_addresses(text: &str) -> String {
    let between = |c: char| c.is_whitespace() || "=,;\"'()<>".contains(c);
    let shorten = |piece: &str| {
        let word = piece.trim_end_matches(between);
        let cut = word
            .parse()
            .map(|ip| reduced(ip, LogIp::Truncated).to_string())
            .or_else(|_| word.parse().map(|address| shown_addr(address, LogIp::Truncated).to_string()));
        cut.map_or_else(|_| piece.to_owned(), |cut| cut + &piece[word.len()..])
    };
    text.split_inclusive(between).map(shorten).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ip: &str, log_ip: &str, address: &str, with_port: &str) {
        let (ip, log_ip): (IpAddr, LogIp) = (ip.parse().unwrap(), log_ip.parse().unwrap());
        assert_eq!(shown(ip, log_ip).to_string(), address);
        assert_eq!(shown_addr(SocketAddr::new(ip, 5000), log_ip).to_string(), with_port);
    }

    #[test]
    fn an_address_is_shortened_as_set() {
        check("192.0.2.77", "full", "192.0.2.77", "192.0.2.77:5000");
        check("192.0.2.77", "truncated", "192.0.2.0", "192.0.2.0:5000");
        check("192.0.2.77", "off", "-", "-");
        check("2001:db8:1:2::3", "full", "2001:db8:1:2::3", "[2001:db8:1:2::3]:5000");
        check("2001:db8:1:2::3", "truncated", "2001:db8:1::", "[2001:db8:1::]:5000");
        check("::ffff:192.0.2.77", "truncated", "192.0.2.0", "192.0.2.0:5000");
    }

    #[test]
    fn addresses_in_a_text_are_cut_and_nothing_else_is() {
        for (text, left) in [
            ("Connection from 192.0.2.77:5000", "Connection from 192.0.2.0:5000"),
            ("remote=[2001:db8:1:2::3]:99, 192.0.2.77", "remote=[2001:db8:1::]:99, 192.0.2.0"),
            ("::ffff:192.0.2.77 left", "192.0.2.0 left"),
            ("superchat::net at 14:30:15.5 v1.2.3", "superchat::net at 14:30:15.5 v1.2.3"),
            ("", ""),
        ] {
            assert_eq!(without_addresses(text), left);
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_by_name() {
        assert_eq!("some".parse::<LogIp>().unwrap_err().to_string(), "log_ip: `some` is not full, truncated or off");
    }

    #[test]
    fn the_setting_holds_for_the_whole_process() {
        for log_ip in [LogIp::Off, LogIp::Truncated, LogIp::Full] {
            set(log_ip);
            assert_eq!(current(), log_ip);
        }
    }
}
