//! Who listens where, and who can reach it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use super::Finding;
use crate::config::Settings;

/// A socket that takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listener {
    address: SocketAddr,
    inode: u64,
}

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    pid: u32,
    name: String,
}

/// Whether each configured port is free, ours, or somebody else's.
pub(super) fn ports(proc: &Path, settings: &Settings) -> Vec<Finding> {
    let listeners = listeners(proc);
    let owners = owners(proc);
    wanted(settings).into_iter().map(|(check, wanted)| port(check, wanted, &listeners, &owners)).collect()
}

/// What this configuration listens on.
fn wanted(settings: &Settings) -> Vec<(&'static str, SocketAddr)> {
    let server = &settings.server;
    let public =
        |port: Option<std::num::NonZeroU16>| port.map(|port| SocketAddr::new(server.listen_address, port.get()));
    let all = [
        ("chat port", public(server.tcp_port)),
        ("ssh port", public(server.ssh_port)),
        ("http port", public(server.http_port)),
        ("metrics port", settings.admin.metrics_listen),
        ("profile port", settings.admin.profile_listen),
    ];
    all.into_iter().filter_map(|(check, address)| Some((check, address?))).collect()
}

fn port(check: &'static str, wanted: SocketAddr, listeners: &[Listener], owners: &BTreeMap<u64, Owner>) -> Finding {
    let Some(listener) = listeners.iter().find(|listener| collide(listener.address, wanted)) else {
        return Finding::ok(check, format!("{wanted} is free"));
    };
    let Listener { address, inode } = listener;
    match owners.get(inode) {
        Some(Owner { pid, name }) if name == "scd" && wanted.ip().is_loopback() && !address.ip().is_loopback() => {
            Finding::fail(
                check,
                format!("{address} is served by scd (pid {pid}), and more than this machine reaches it"),
                format!("restart the server: the configuration says {wanted}"),
            )
        }
        Some(Owner { pid, name }) if name == "scd" => {
            Finding::ok(check, format!("{address} is served by scd (pid {pid})"))
        }
        Some(Owner { pid, name }) => Finding::fail(
            check,
            format!("{address} is taken by {name} (pid {pid})"),
            "stop that program, or set another port in the configuration",
        ),
        None => Finding::warn(
            check,
            format!("{address} is taken by a process of another user"),
            "run the doctor as root to see whose it is: fine if it is the server",
        ),
    }
}

/// Whether both cannot listen at the same time. A socket of IPv6 for all addresses takes those of IPv4 as well.
fn collide(taken: SocketAddr, wanted: SocketAddr) -> bool {
    let is_wide = |address: SocketAddr| address.ip().is_unspecified();
    let same_family = taken.is_ipv4() == wanted.is_ipv4();
    let both = |address: SocketAddr| address.is_ipv6() && is_wide(address);
    taken.port() == wanted.port()
        && (taken.ip() == wanted.ip()
            || (same_family && (is_wide(taken) || is_wide(wanted)))
            || both(taken)
            || both(wanted))
}

fn listeners(proc: &Path) -> Vec<Listener> {
    let read = |name| fs::read_to_string(proc.join("net").join(name)).unwrap_or_default();
    [read("tcp"), read("tcp6")].iter().flat_map(|table| table.lines().filter_map(listener)).collect()
}

/// A line of the kernel's table, if it is of a listening socket.
fn listener(line: &str) -> Option<Listener> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = SocketAddr::new(ip(address)?, port);
    (*state == LISTEN).then_some(Listener { address, inode: inode.parse().ok()? })
}

/// The kernel prints each word of 32 bits as the machine holds it.
fn ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index * 8)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// Sockets by inode, as far as this user may see them.
fn owners(proc: &Path) -> BTreeMap<u64, Owner> {
    let mut owners = BTreeMap::new();
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let descriptors = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        for descriptor in descriptors {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            let inode =
                target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                let name = || fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
                owners.entry(inode).or_insert_with(|| Owner { pid, name: name() });
            }
        }
    }
    owners
}

/// The ports for operators must not be open to strangers.
pub(super) fn admin_addresses(settings: &Settings) -> Vec<Finding> {
    let admin = &settings.admin;
    let token = admin.metrics_token.is_some();
    let ports = [("metrics address", admin.metrics_listen), ("profile address", admin.profile_listen)];
    ports.into_iter().filter_map(|(check, address)| Some(reachable(check, address?, token))).collect()
}

fn reachable(check: &'static str, address: SocketAddr, has_token: bool) -> Finding {
    let close =
        "listen on 127.0.0.1 and come by an SSH tunnel, or close the port in the firewall (scripts/firewall.sh)";
    match (address.ip(), has_token) {
        (ip, _) if ip.is_loopback() => Finding::ok(check, format!("{address}: this machine only")),
        (ip, true) if is_inner(ip) => Finding::ok(check, format!("{address}: an inner network, with a token")),
        (_, true) => Finding::warn(check, format!("{address}: other machines reach it, with a token"), close),
        (ip, false) if is_inner(ip) => {
            Finding::warn(check, format!("{address}: an inner network reaches it without a token"), "set metrics_token")
        }
        (_, false) => Finding::fail(
            check,
            format!("{address}: everybody reaches it without a token"),
            format!("{close}; set metrics_token"),
        ),
    }
}

fn is_inner(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::Level;
    use super::*;

    /// As the kernel prints them: 0.0.0.0:6465 and [::1]:9090 listen, 127.0.0.1:6060 is a connection.
    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1941 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 700 1 0 100 0 0 10 0
   1: 0100007F:17AC 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 701 1 0 100 0 0 10 0\n";
    const TCP6: &str = "  sl  local_address                         remote_address st
   0: 00000000000000000000000001000000:2382 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 702 1 0\n";

    fn host(owners: &[(u32, &str, u64)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("net")).unwrap();
        fs::write(proc.path().join("net/tcp"), TCP).unwrap();
        fs::write(proc.path().join("net/tcp6"), TCP6).unwrap();
        for (pid, name, inode) in owners {
            let process = proc.path().join(pid.to_string());
            fs::create_dir_all(process.join("fd")).unwrap();
            fs::write(process.join("comm"), format!("{name}\n")).unwrap();
            symlink("/dev/null", process.join("fd/0")).unwrap();
            symlink(format!("socket:[{inode}]"), process.join("fd/3")).unwrap();
        }
        proc
    }

    fn check(proc: &Path, address: &str) -> (Level, String) {
        let finding = port("port", address.parse().unwrap(), &listeners(proc), &owners(proc));
        (finding.level, finding.found)
    }

    #[test]
    fn a_port_is_free_ours_or_named_by_its_owner() {
        let open = check(host(&[(41, "scd", 700)]).path(), "127.0.0.1:6465");
        assert_eq!(open.0, Level::Fail);
        assert!(open.1.ends_with("more than this machine reaches it"), "{}", open.1);
        let proc = host(&[(41, "nginx", 700), (42, "scd", 702)]);
        let taken = "0.0.0.0:6465 is taken by nginx (pid 41)".to_owned();
        assert_eq!(check(proc.path(), "0.0.0.0:6465"), (Level::Fail, taken.clone()));
        assert_eq!(check(proc.path(), "127.0.0.1:6465"), (Level::Fail, taken.clone()));
        assert_eq!(check(proc.path(), "[::]:6465"), (Level::Fail, taken));
        assert_eq!(check(proc.path(), "[::1]:9090"), (Level::Ok, "[::1]:9090 is served by scd (pid 42)".to_owned()));
        for free in ["127.0.0.1:9090", "127.0.0.1:6060", "0.0.0.0:6466"] {
            assert_eq!(check(proc.path(), free), (Level::Ok, format!("{free} is free")));
        }
        assert_eq!(check(host(&[]).path(), "0.0.0.0:6465").0, Level::Warn);
    }

    #[test]
    fn the_real_table_shows_a_socket_of_this_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (level, found) = check(Path::new("/proc"), &address.to_string());
        assert_eq!(level, Level::Fail);
        assert!(found.ends_with(&format!("(pid {})", std::process::id())), "{found}");
    }

    #[test]
    fn admin_ports_that_strangers_reach_are_found() {
        let check = |address: &str, token| reachable("port", address.parse().unwrap(), token).level;
        assert_eq!(check("127.0.0.1:9090", false), Level::Ok);
        assert_eq!(check("[::1]:9090", false), Level::Ok);
        assert_eq!(check("10.0.0.5:9090", true), Level::Ok);
        assert_eq!(check("10.0.0.5:9090", false), Level::Warn);
        assert_eq!(check("0.0.0.0:9090", true), Level::Warn);
        assert_eq!(check("0.0.0.0:9090", false), Level::Fail);
        assert_eq!(check("203.0.113.5:9090", false), Level::Fail);
    }
}
