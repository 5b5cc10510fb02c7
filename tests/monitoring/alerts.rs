//! Each alert fires when its fault is there, and only then, and those who should hear of it do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::expressions::alertmanager_with;
use crate::faults::{FAULTS, settings};
use crate::prometheus::{Prometheus, kit_rules};
use crate::receivers::Receivers;
use crate::support::{Server, clock};
use crate::tools::{PATIENCE, Tool, changed, command, free_address, kit_file};

/// A minute of the rules takes that long here.
const SECONDS_PER_MINUTE: u64 = 2;

/// No range is shorter: it should cover several scrapes on a busy machine, too.
const RANGE_SECONDS_MIN: u64 = 10;

/// Thresholds that a test cannot reach, and those of the test.
const THRESHOLDS: &[(&str, &str)] = &[
    ("superchat_active_sessions > 9000", "superchat_active_sessions > 100"),
    ("superchat:broadcast_seconds:p95 > 1", "superchat:broadcast_seconds:p95 > 0.05"),
    ("superchat:query_seconds:p95 > 1", "superchat:query_seconds:p95 > 0.05"),
    ("superchat:cpu_ratio > 0.80", "superchat:cpu_ratio > 0.20"),
    ("> 1024 * 1024 * 1024", "> 40 * 1024 * 1024"),
    // A day is 48 minutes here.
    ("24 * 3600) > 16e9", "48 * 60) > 0.5e9"),
];

/// A host as node exporter sees it.
struct Host {
    /// Under which it is scraped.
    name: &'static str,
    /// Bytes taken of a disk of 4 MiB.
    disk_taken: u32,
    /// Of a thousand, how much memory is available.
    memory_available: u32,
    fires: &'static [&'static str],
}

const HOSTS: &[Host] = &[
    Host { name: "full disk", disk_taken: 3_900_000, memory_available: 160, fires: &["HostDiskFull"] },
    Host { name: "short of memory", disk_taken: 2_000_000, memory_available: 140, fires: &["HostMemoryLow"] },
    Host { name: "well", disk_taken: 2_000_000, memory_available: 160, fires: &[] },
];

/// The longest alert takes 30 minutes and needs a few to notice.
const LIMIT: Duration = Duration::from_secs(150);

#[test]
fn each_alert_fires_for_its_fault_and_for_no_other() {
    every_alert_is_tested();
    let superchats: Vec<_> = FAULTS.iter().map(|fault| (fault.name, free_address())).collect();
    let mut servers: Vec<_> = superchats.iter().map(|(_, metrics)| Server::start(settings(*metrics))).collect();
    let directory = TempDir::with_prefix("alerts-").unwrap();
    let (disk, receivers) = (directory.path().join("disk"), Receivers::start());
    fs::create_dir(&disk).unwrap();
    let nodes: Vec<_> = HOSTS.iter().map(|host| (host.name, Node::start(&disk, host))).collect();
    let alertmanager = free_address();
    let _alertmanager =
        alertmanager_with(&hurried_routes(&receivers, directory.path()), alertmanager, directory.path());
    let hosts: Vec<_> = nodes.iter().map(|(name, node)| (*name, node.address)).collect();
    let prometheus = Prometheus::start(&scrape_config(&superchats, &hosts, alertmanager), &hurried_rules());
    prometheus.wait_for_targets();
    assert_eq!(fired(&prometheus, &disk), BTreeMap::new(), "before any fault");

    let faults: Vec<_> = FAULTS.iter().zip(&mut servers).map(|(fault, server)| (fault.cause)(server)).collect();
    let missing = || {
        let fired = fired(&prometheus, &disk);
        let has_not = |(name, alert): &(&str, &str)| !fired.get(*name).is_some_and(|alerts| alerts.contains(*alert));
        expected().into_iter().filter(has_not).collect::<Vec<_>>()
    };
    let all = clock::poll(LIMIT, || missing().is_empty().then_some(()));
    let recorded = || prometheus.query(r#"{__name__=~"superchat:.+"}"#);
    assert_eq!(all, Some(()), "not fired: {:?}; recorded: {:#?}", missing(), recorded());
    nothing_else_fired(&fired(&prometheus, &disk));
    the_right_people_were_called(&receivers);
    drop(faults);
}

fn every_alert_is_tested() {
    let rules = kit_file("prometheus/rules/alerts.yml");
    let alerts: BTreeSet<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let caused = expected().into_iter().map(|(_, alert)| alert);
    assert_eq!(alerts, caused.collect::<BTreeSet<_>>(), "each has a fault that causes it");
    let unit_tests = ["alerts", "backup"].map(|name| kit_file(&format!("prometheus/tests/{name}.yml"))).concat();
    let lacks_one = |alert: &&&str| !unit_tests.contains(&format!("{{alertname=\"{alert}\", instance=\"bad\"}}"));
    assert_eq!(alerts.iter().find(lacks_one), None, "it has no unit test");
}

/// What must fire: where, and which alert.
fn expected() -> Vec<(&'static str, &'static str)> {
    let of_servers = FAULTS.iter().flat_map(|fault| fault.fires.iter().map(|alert| (fault.name, *alert)));
    let of_hosts = HOSTS.iter().flat_map(|host| host.fires.iter().map(|alert| (host.name, *alert)));
    of_servers.chain(of_hosts).collect()
}

/// What has fired so far, by the name of the fault. Of the disks of the machine only ours count.
fn fired(prometheus: &Prometheus, disk: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let firing = format!(r#"ALERTS{{alertstate="firing", mountpoint=~"|{}"}}"#, disk.display());
    let series = prometheus.query(&format!("count by (instance, alertname) (max_over_time({firing}[1h]))")).unwrap();
    series.iter().fold(BTreeMap::new(), |mut fired: BTreeMap<String, BTreeSet<String>>, series| {
        let label = |name: &str| series["metric"][name].as_str().unwrap().to_owned();
        fired.entry(label("instance")).or_default().insert(label("alertname"));
        fired
    })
}

fn nothing_else_fired(fired: &BTreeMap<String, BTreeSet<String>>) {
    for (name, alerts) in fired {
        let brings = FAULTS.iter().find(|fault| fault.name == name).map_or(&[] as &[_], |fault| fault.brings);
        let is_expected = |alert: &str| expected().contains(&(name.as_str(), alert)) || brings.contains(&alert);
        let unexpected: Vec<_> = alerts.iter().filter(|alert| !is_expected(alert)).collect();
        assert!(unexpected.is_empty(), "{name}: {unexpected:?}");
    }
}

/// By severity, in words that name the server and say what to do.
fn the_right_people_were_called(receivers: &Receivers) {
    for (way, parts) in [
        ("/pagerduty", ["CRITICAL: SuperChatDown", "of killed has", "docs/monitoring.md#superchatdown"]),
        ("mail", ["CRITICAL: SuperChatDown", "of killed has", "docs/monitoring.md#superchatdown"]),
        ("/slack", ["WARNING: SuperChatSessionsHigh", "crowded and silent holds", "#superchatsessionshigh"]),
        ("/webhook", ["SuperChatHeartbeatsStopped", "crowded and silent", "#superchatheartbeatsstopped"]),
    ] {
        let called = clock::poll(PATIENCE, || receivers.got(way, &parts).then_some(()));
        assert_eq!(called, Some(()), "{way} lacks {parts:?}: {}", receivers.all());
    }
    assert!(!receivers.got("/slack", &["SuperChatDown"]), "a page is no news for the channel");
    assert!(!receivers.got("/pagerduty", &["SuperChatSessionsHigh"]), "nobody gets up for a warning");
}

/// A host with a disk of its own and a word of its own about its memory, seen by no other process: its name space ends
/// with it.
struct Node {
    address: SocketAddr,
    _directory: TempDir,
    _tool: Tool,
}

impl Node {
    fn start(disk: &Path, host: &Host) -> Self {
        const SCRIPT: &str = r#"
            mount -t tmpfs -o size=4m tmpfs "$1" && head -c "$2" /dev/zero > "$1/taken" &&
            mount --bind "$3" /proc/meminfo &&
            exec prometheus-node-exporter --web.listen-address="$4""#;
        let (address, directory) = (free_address(), TempDir::with_prefix("node-").unwrap());
        let meminfo = directory.path().join("meminfo");
        let available = host.memory_available * 1000;
        fs::write(&meminfo, format!("MemTotal: 1000000 kB\nMemAvailable: {available} kB\n")).unwrap();
        let mut command = command("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", SCRIPT, "sh"]);
        command.arg(disk).arg(host.disk_taken.to_string()).arg(&meminfo).arg(address.to_string());
        let tool = Tool::start(&mut command, directory.path(), "node").serving(address, "/");
        Self { address, _directory: directory, _tool: tool }
    }
}

fn scrape_config(superchats: &[(&str, SocketAddr)], hosts: &[(&str, SocketAddr)], alertmanager: SocketAddr) -> String {
    let targets = |targets: &[(&str, SocketAddr)]| {
        let line = |(name, address): &(&str, SocketAddr)| {
            format!("      - {{targets: ['{address}'], labels: {{instance: {name}}}}}\n")
        };
        targets.iter().map(line).collect::<String>()
    };
    format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [rules/*.yml]\n\
         alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n\
         scrape_configs:\n  \
           - job_name: superchat\n    static_configs:\n{}  \
           - job_name: node\n    static_configs:\n{}",
        targets(superchats),
        targets(hosts)
    )
}

/// The kit's rules with the thresholds and the time of the test.
fn hurried_rules() -> Vec<(&'static str, String)> {
    let [(alerts, text), recording] = <[_; 2]>::try_from(kit_rules()).unwrap();
    let reachable = changed(&text, THRESHOLDS);
    [(alerts, reachable), recording].map(|(name, text)| (name, hurried(&text))).into()
}

/// `text` with its minutes and hours, in brackets and after `for:`, made short.
fn hurried(text: &str) -> String {
    let hurry_line = |line: &str| match line.split_once("for: ") {
        Some((indent, duration)) if indent.trim().is_empty() => format!("{indent}for: {}s", seconds(duration)),
        _ => line.split_inclusive('[').map(hurry_range).collect(),
    };
    text.lines().map(|line| hurry_line(line) + "\n").collect()
}

fn hurry_range(part: &str) -> String {
    match part.split_once(']') {
        Some((range, rest)) if range.ends_with(['m', 'h']) => {
            format!("{}s]{rest}", seconds(range).max(RANGE_SECONDS_MIN))
        }
        _ => part.to_owned(),
    }
}

fn seconds(duration: &str) -> u64 {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let minutes = number.parse::<u64>().unwrap() * if unit == "h" { 60 } else { 1 };
    minutes * SECONDS_PER_MINUTE
}

/// The kit's routes, to receivers on loopback, without the time to gather.
fn hurried_routes(receivers: &Receivers, directory: &Path) -> String {
    let secret = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let http = receivers.http;
    changed(
        &kit_file("alertmanager/alertmanager.yml"),
        &[
            ("/etc/alertmanager/secrets/slack_url", secret("slack_url", &format!("http://{http}/slack"))),
            ("/etc/alertmanager/secrets/pagerduty_key", secret("pagerduty_key", "key")),
            ("https://events.pagerduty.com/v2/enqueue", format!("http://{http}/pagerduty")),
            ("http://127.0.0.1:9097/alerts", format!("http://{http}/webhook")),
            ("127.0.0.1:25", receivers.mail.to_string()),
            ("group_wait: 30s", "group_wait: 1s".to_owned()),
            ("group_wait: 10s", "group_wait: 1s".to_owned()),
            ("group_wait: 5m", "group_wait: 1s".to_owned()),
            ("group_interval: 5m", "group_interval: 2s".to_owned()),
        ],
    )
}
