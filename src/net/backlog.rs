//! What the kernel does with connections before they are accepted (BEHAVIOUR.md 1.1).

use std::fs;

/// Below this, a burst of returning clients overflows the queue of the listening socket.
pub const ADVISED: u32 = 10_000;

/// Connections the kernel queues at most (`net.core.somaxconn`); `None` where it does not say.
#[must_use]
pub fn limit() -> Option<u32> {
    fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

/// Times that a connection found the queue of any listening socket full since the system started.
#[must_use]
pub fn overflows() -> Option<u64> {
    parse_overflows(&fs::read_to_string("/proc/self/net/netstat").ok()?)
}

/// Names stand in one line, values in the next, both led by the group's name.
fn parse_overflows(netstat: &str) -> Option<u64> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|name| name == "ListenOverflows")?;
    values.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflows_are_found_by_name() {
        let netstat = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 3 17 18\nIpExt: A\nIpExt: 1\n";
        assert_eq!(parse_overflows(netstat), Some(17));
        assert_eq!(parse_overflows("TcpExt: Other\nTcpExt: 1\n"), None);
    }
}
