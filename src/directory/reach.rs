//! Whom a directory connects to (BEHAVIOUR.md 6.3): whoever registers a server chooses an address, and must not be able to
//! look into networks that only the directory can reach.
//!
//! A name is resolved once, and what is connected to is the very address that was looked at here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};

/// What an address belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One machine on the Internet.
    Public,
    /// A network of one's own, documentation, tests: only where the operator says so.
    Private,
    /// No machine, or an address wrapped in another one.
    Never,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits)
}

const fn v6(a: u16, b: u16, c: u16, bits: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), bits)
}

/// The special networks of RFC 6890 and its successors. The rest is public.
const SPECIAL_V4: &[(Ipv4Net, Kind)] = &[
    (v4(0, 0, 0, 0, 8), Kind::Never),
    (v4(10, 0, 0, 0, 8), Kind::Private),
    // Behind a provider's NAT.
    (v4(100, 64, 0, 0, 10), Kind::Private),
    (v4(127, 0, 0, 0, 8), Kind::Private),
    // Link-local; clouds answer with credentials here.
    (v4(169, 254, 0, 0, 16), Kind::Private),
    (v4(172, 16, 0, 0, 12), Kind::Private),
    (v4(192, 0, 0, 0, 24), Kind::Private),
    (v4(192, 0, 2, 0, 24), Kind::Private),
    // Relays of 6to4.
    (v4(192, 88, 99, 0, 24), Kind::Never),
    (v4(192, 168, 0, 0, 16), Kind::Private),
    (v4(198, 18, 0, 0, 15), Kind::Private),
    (v4(198, 51, 100, 0, 24), Kind::Private),
    (v4(203, 0, 113, 0, 24), Kind::Private),
    // Multicast, reserved, broadcast.
    (v4(224, 0, 0, 0, 3), Kind::Never),
];

/// The first that fits counts. Outside of 2000::/3 nothing is public.
const SPECIAL_V6: &[(Ipv6Net, Kind)] = &[
    // Teredo, which wraps IPv4.
    (v6(0x2001, 0, 0, 32), Kind::Never),
    (v6(0x2001, 0x0db8, 0, 32), Kind::Private),
    // Identifiers, benchmarks and other protocol assignments.
    (v6(0x2001, 0, 0, 23), Kind::Private),
    // 6to4, which wraps IPv4.
    (v6(0x2002, 0, 0, 16), Kind::Never),
    // Documentation.
    (v6(0x3fff, 0, 0, 20), Kind::Private),
    (v6(0x2000, 0, 0, 3), Kind::Public),
    // Translation of one's own, which may lead to private IPv4.
    (v6(0x0064, 0xff9b, 1, 48), Kind::Private),
    // Unique local, link-local, site-local.
    (v6(0xfc00, 0, 0, 7), Kind::Private),
    (v6(0xfe80, 0, 0, 10), Kind::Private),
    (v6(0xfec0, 0, 0, 10), Kind::Private),
];

/// Networks that translate to IPv4 everywhere: what counts is the address inside.
const TRANSLATED: Ipv6Net = v6(0x0064, 0xff9b, 0, 96);

fn kind(address: IpAddr) -> Kind {
    match address.to_canonical() {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Kind::Private,
        IpAddr::V6(address) if TRANSLATED.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            kind_v4(Ipv4Addr::new(a, b, c, d))
        }
        IpAddr::V6(address) => {
            let special = SPECIAL_V6.iter().find(|(network, _)| network.contains(&address));
            special.map_or(Kind::Never, |(_, kind)| *kind)
        }
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    SPECIAL_V4.iter().find(|(network, _)| network.contains(&address)).map_or(Kind::Public, |(_, kind)| *kind)
}

/// How far a directory reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Machines on the Internet, at ports where a server may be. Ports below 1024 belong to mail, remote shells and the like,
    /// whose owners take a connection for an attack; behind 80 and 443 servers hide from firewalls.
    Internet,
    /// Every machine and port, as in `allow_private_servers`.
    Private,
}

impl Reach {
    /// Whether the directory may connect there.
    #[must_use]
    pub fn admits(self, target: SocketAddr) -> bool {
        match (self, kind(target.ip())) {
            (_, Kind::Never) | (Self::Internet, Kind::Private) => false,
            (Self::Private, _) => true,
            (Self::Internet, Kind::Public) => matches!(target.port(), 80 | 443 | 1024..),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(reach: Reach, address: &str) -> bool {
        reach.admits(SocketAddr::new(address.parse().unwrap(), 6465))
    }

    #[test]
    fn machines_on_the_internet_are_reached() {
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2a00:1450::1",
            "2003::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(admitted(Reach::Internet, address), "{address}");
            assert!(admitted(Reach::Private, address), "{address}");
        }
    }

    #[test]
    fn networks_of_ones_own_are_reached_only_where_the_operator_says_so() {
        for address in [
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "64:ff9b::10.0.0.1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::a00:1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "2001:db8::5",
            "2001:2::1",
            "2001:10::1",
            "3fff::1",
        ] {
            assert!(!admitted(Reach::Internet, address), "{address}");
            assert!(admitted(Reach::Private, address), "{address}");
        }
    }

    #[test]
    fn what_is_no_machine_is_never_reached() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "192.88.99.1",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::ffff:0.0.0.0",
            "::ffff:224.0.0.1",
            "::7f00:1",
            "64:ff9b::",
            "64:ff9b::255.255.255.255",
            "2001::1",
            "2001:0:7f00:1::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "ff02::1",
            "100::1",
            "4000::1",
            "5f00::1",
        ] {
            assert!(!admitted(Reach::Internet, address), "{address}");
            assert!(!admitted(Reach::Private, address), "{address}");
        }
    }

    #[test]
    fn ports_of_other_services_are_left_alone() {
        let admits = |reach: Reach, port| reach.admits(SocketAddr::new([1, 1, 1, 1].into(), port));
        for port in [1, 22, 23, 25, 53, 445, 587, 1023] {
            assert!(!admits(Reach::Internet, port), "{port}");
            assert!(admits(Reach::Private, port), "{port}");
        }
        for port in [80, 443, 1024, 6465, 65_535] {
            assert!(admits(Reach::Internet, port), "{port}");
        }
    }
}
