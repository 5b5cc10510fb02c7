//! `scripts/firewall.sh` between two hosts: what another host reaches, and what this one still does.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::host::{Host, project};

const SSH: u16 = 22;
const OTHER: u16 = 5000;
const PUBLIC: [u16; 3] = [6465, 6466, 8080];
const INNER: [u16; 2] = [9090, 6060];
const ALL: [u16; 7] = [SSH, OTHER, PUBLIC[0], PUBLIC[1], PUBLIC[2], INNER[0], INNER[1]];

/// Addresses of the host with the firewall, as documents use them (RFC 5737, RFC 3849).
const ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// On one machine a connection takes microseconds or is never answered.
const PATIENCE: Duration = Duration::from_millis(700);

#[test]
fn nftables_closes_what_is_for_operators_to_other_hosts_only() {
    closes_and_opens_again("nft");
}

#[test]
fn iptables_closes_what_is_for_operators_to_other_hosts_only() {
    closes_and_opens_again("iptables");
}

fn closes_and_opens_again(form: &str) {
    let network = Network::new();
    assert_eq!(network.reached_from_outside(), ALL.into());
    for _ in 0..2 {
        network.firewall(&[form, "--apply"]);
        let mut open = BTreeSet::from(ALL);
        open.retain(|port| !INNER.contains(port));
        assert_eq!(network.reached_from_outside(), open);
        assert_eq!(network.reached_from_inside(), ALL.into());
    }
    for _ in 0..2 {
        network.firewall(&[form, "--remove"]);
        assert_eq!(network.reached_from_outside(), ALL.into());
    }
}

#[test]
fn public_ports_are_let_in_where_everything_else_is_dropped() {
    let drop_all = [
        (
            "nft",
            "nft add table inet strict; nft 'add chain inet strict input { type filter hook input priority 0; policy drop; }'",
        ),
        ("iptables", "iptables -P INPUT DROP; ip6tables -P INPUT DROP; ip6tables -A INPUT -p ipv6-icmp -j ACCEPT"),
    ];
    for (form, strict) in drop_all {
        let network = Network::new();
        network.sh(strict);
        // Neighbours of IPv6 find each other by packets that such a table must let in.
        network.sh("nft add rule inet strict input meta l4proto ipv6-icmp accept 2> /dev/null || true");
        assert_eq!(network.reached_from_outside(), BTreeSet::new(), "{form}");
        for _ in 0..2 {
            network.firewall(&[form, "--apply"]);
            assert_eq!(network.reached_from_outside(), PUBLIC.into(), "{form}");
        }
        network.firewall(&[form, "--remove"]);
        assert_eq!(network.reached_from_outside(), BTreeSet::new(), "{form}");
    }
}

#[test]
fn ufw_closes_what_was_allowed_before_and_lets_ssh_in() {
    let network = Network::new();
    let host = Host::in_network(&network.server);
    let script = project("scripts/firewall.sh");
    host.sh("ufw allow 9090/tcp; ufw limit 6060/tcp; ufw allow 5000:9999/tcp");
    let said = host.sh(&format!("{script} ufw --apply"));
    assert!(said.contains("ufw is not active"), "{said}");
    assert_eq!(network.reached_from_outside(), ALL.into(), "ufw was switched on");
    host.sh("ufw --force enable");
    let open = BTreeSet::from([SSH, OTHER, PUBLIC[0], PUBLIC[1], PUBLIC[2]]);
    assert_eq!(network.reached_from_outside(), open);
    assert_eq!(network.reached_from_inside(), ALL.into());
    host.sh(&format!("{script} --apply"));
    assert_eq!(network.reached_from_outside(), open);
    host.sh(&format!("ufw delete allow 5000:9999/tcp; ufw allow {OTHER}/tcp; {script} --remove"));
    assert_eq!(network.reached_from_outside(), BTreeSet::from([SSH, OTHER]), "only what is not ours stays");
}

#[test]
fn without_apply_rules_are_printed_and_nothing_changes() {
    let network = Network::new();
    for (form, rule) in [
        ("nft", "tcp dport { 9090, 6060 } drop"),
        ("iptables", "-A SUPERCHAT -p tcp -m multiport --dports 9090,6060 -j DROP"),
        ("ufw", "ufw prepend deny 9090/tcp"),
    ] {
        let printed = network.firewall(&[form]);
        assert!(printed.contains(rule), "{form}: {printed}");
    }
    assert_eq!(network.sh("nft list ruleset"), "");
    let printed = network.firewall(&["nft", "--open", "7000", "--closed", "7001,7002"]);
    assert!(printed.contains("{ 7001, 7002 } drop") && printed.contains("{ 7000 } accept"), "{printed}");
}

#[test]
fn the_port_that_ssh_came_in_by_is_never_closed() {
    let network = Network::new();
    let connection = "SSH_CONNECTION='192.0.2.2 50000 192.0.2.1 9090'";
    let script = project("scripts/firewall.sh");
    for line in [
        format!("{script} nft --apply --closed 22,9090"),
        format!("{connection} {script} nft --apply"),
        // As sudo does it; the shell around keeps the variable.
        format!("{connection} sh -c 'env -u SSH_CONNECTION {script} nft --apply; exit $?'"),
    ] {
        let output = network.try_sh(&line);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains("is how SSH comes in"), "{said}");
    }
    assert_eq!(network.sh("nft list ruleset"), "");
    let printed = network.sh(&format!("SSH_CONNECTION='192.0.2.2 50000 192.0.2.1 2222' {script} ufw"));
    assert!(printed.contains("ufw allow 22/tcp\n") && printed.contains("ufw allow 2222/tcp\n"), "{printed}");
}

/// Two hosts with a cable between them; one of them listens on every port of [`ALL`].
struct Network {
    server: String,
    outside: String,
    _listeners: Vec<TcpListener>,
}

impl Network {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("scd-{}-{number}-{side}", std::process::id());
        let mut network = Self { server: name("server"), outside: name("outside"), _listeners: Vec::new() };
        for side in [&network.server, &network.outside] {
            ip(&["netns", "add", side]);
            ip(&["-n", side, "link", "set", "lo", "up"]);
        }
        ip(&[
            "-n",
            &network.server,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &network.outside,
        ]);
        for (side, addresses) in [
            (&network.server, ["192.0.2.1/24", "2001:db8::1/64"]),
            (&network.outside, ["192.0.2.2/24", "2001:db8::2/64"]),
        ] {
            // An address of IPv6 may be used at once when nobody is asked whether it is taken.
            ip(&["-n", side, "address", "add", addresses[0], "dev", "eth0"]);
            ip(&["-n", side, "address", "add", addresses[1], "dev", "eth0", "nodad"]);
            ip(&["-n", side, "link", "set", "eth0", "up"]);
        }
        network._listeners = within(&network.server, || {
            let listen = |port| TcpListener::bind(("::", port)).unwrap();
            ALL.into_iter().map(listen).collect()
        });
        network
    }

    /// Ports that the other host reaches, by both families or by none.
    fn reached_from_outside(&self) -> BTreeSet<u16> {
        reached(&self.outside, &ADDRESSES)
    }

    /// Ports that the host itself reaches, on loopback and by its own addresses.
    fn reached_from_inside(&self) -> BTreeSet<u16> {
        reached(&self.server, &["127.0.0.1", "::1", ADDRESSES[0], ADDRESSES[1]])
    }

    fn firewall(&self, arguments: &[&str]) -> String {
        self.sh(&format!("{} {}", project("scripts/firewall.sh"), arguments.join(" ")))
    }

    fn sh(&self, line: &str) -> String {
        let output = self.try_sh(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn try_sh(&self, line: &str) -> Output {
        let mut command = Command::new("ip");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env_remove("SSH_CONNECTION");
        command.args(["netns", "exec", &self.server, "sh", "-euc", line]).output().unwrap()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for side in [&self.server, &self.outside] {
            let _gone = Command::new("ip").args(["netns", "delete", side]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip is missing: apt-get install iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}; this test needs root");
}

/// Runs `work` on a thread of its own, in a network namespace.
fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    let work = move || {
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// The ports of [`ALL`] that answer on all of `addresses`. A port that answers on some of them only fails the test.
fn reached(from: &str, addresses: &[&str]) -> BTreeSet<u16> {
    let answers = |port, address: &str| {
        let address = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        within(from, move || TcpStream::connect_timeout(&address, PATIENCE).is_ok())
    };
    thread::scope(|scope| {
        let asked: Vec<_> =
            ALL.iter().flat_map(|port| addresses.iter().map(move |address| (*port, *address))).collect();
        let asked: Vec<_> =
            asked.into_iter().map(|(port, address)| (port, scope.spawn(move || answers(port, address)))).collect();
        let answers: Vec<(u16, bool)> = asked.into_iter().map(|(port, asked)| (port, asked.join().unwrap())).collect();
        let by = |wanted| answers.iter().filter(move |(_, answer)| *answer == wanted).map(|(port, _)| *port);
        let (open, closed): (BTreeSet<u16>, BTreeSet<u16>) = (by(true).collect(), by(false).collect());
        assert!(open.is_disjoint(&closed), "open by one family only: {open:?}, {closed:?}");
        open
    })
}
