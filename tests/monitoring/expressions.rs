//! Every expression of every rule and every panel: Prometheus understands it, and it has data.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::faults::note_backup;
use crate::load;
use crate::prometheus::{Prometheus, has_number, kit_rules};
use crate::support::{Server, Settings, clock};
use crate::tools::{PATIENCE, Tool, changed, command, free_address, kit, kit_file};

#[test]
fn every_expression_of_rules_and_panels_has_data() {
    let metrics = free_address();
    let server = Server::start(Settings::new().set("admin", "metrics_listen", metrics.to_string()));
    note_backup(&server, Duration::ZERO);
    let surroundings = Surroundings::start();
    let prometheus = Prometheus::start(&surroundings.config(&server, metrics), &kit_rules());
    prometheus.wait_for_targets();
    let _load = load::everything(server.address());

    let expressions: Vec<_> = rule_expressions(&prometheus).into_iter().chain(panel_expressions()).collect();
    assert!(expressions.len() > 100, "{} expressions are too few to be all", expressions.len());
    for (place, expression) in expressions {
        let series = || prometheus.query(&expression).unwrap_or_else(|error| panic!("{place}: {error}"));
        let data = clock::poll(PATIENCE, || series().iter().any(has_number).then_some(()));
        assert_eq!(data, Some(()), "{place} has no data: {expression}: {:?}", series());
    }
    for rule in prometheus.rules() {
        assert_eq!((&rule["health"], &rule["lastError"]), (&Value::from("ok"), &Value::Null), "{rule:#}");
    }
}

/// A quiet alert has no data, so its comparisons answer yes or no instead.
fn rule_expressions(prometheus: &Prometheus) -> Vec<(String, String)> {
    let bool_of = |comparison: &str| format!(" {comparison} bool ");
    let rules = prometheus.rules().into_iter();
    rules
        .map(|rule| {
            let text = rule["query"].as_str().unwrap();
            let answers = [">", "=="].iter().fold(text.to_owned(), |text, comparison| {
                text.replace(&format!(" {comparison} "), &bool_of(comparison))
            });
            (rule["name"].to_string(), if rule["type"] == "alerting" { answers } else { text.to_owned() })
        })
        .collect()
}

/// Panels and annotations of the dashboards that ask Prometheus, as Grafana sends them when all servers are chosen.
fn panel_expressions() -> Vec<(String, String)> {
    let mut expressions = Vec::new();
    for entry in fs::read_dir(kit().join("grafana/dashboards")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            if panel["datasource"]["type"] == "prometheus" {
                for target in panel["targets"].as_array().unwrap() {
                    expressions.push((format!("{name}: {}", panel["title"]), chosen(&target["expr"])));
                }
            }
        }
    }
    expressions
}

fn chosen(expression: &Value) -> String {
    expression.as_str().unwrap().replace("$instance", ".+").replace("$__rate_interval", "1m")
}

/// What Prometheus scrapes beside the server.
struct Surroundings {
    node: SocketAddr,
    blackbox: SocketAddr,
    alertmanager: SocketAddr,
    _tools: [Tool; 3],
    _directory: TempDir,
}

impl Surroundings {
    fn start() -> Self {
        let directory = TempDir::with_prefix("surroundings-").unwrap();
        let [node, blackbox, alertmanager] = [(); 3].map(|()| free_address());
        let tools = [
            node_exporter(node, directory.path()),
            blackbox_exporter(blackbox, directory.path()),
            alertmanager_with(&kit_file("alertmanager/alertmanager.yml"), alertmanager, directory.path()),
        ];
        Self { node, blackbox, alertmanager, _tools: tools, _directory: directory }
    }

    /// The kit's scrape configuration with the addresses of the test, and in a hurry.
    fn config(&self, server: &Server, metrics: SocketAddr) -> String {
        let address = |address: SocketAddr| address.to_string();
        changed(
            &kit_file("prometheus/prometheus.yml"),
            &[
                ("127.0.0.1:9090", address(metrics)),
                ("127.0.0.1:6465", address(server.address())),
                ("127.0.0.1:9100", address(self.node)),
                ("127.0.0.1:9115", address(self.blackbox)),
                ("127.0.0.1:9093", address(self.alertmanager)),
                ("127.0.0.1:9091", "OWN".to_owned()),
                ("_interval: 15s", "_interval: 1s".to_owned()),
            ],
        )
    }
}

pub fn node_exporter(address: SocketAddr, directory: &Path) -> Tool {
    let mut command = command("prometheus-node-exporter");
    command.arg(format!("--web.listen-address={address}"));
    Tool::start(&mut command, directory, "node-exporter").serving(address, "/")
}

fn blackbox_exporter(address: SocketAddr, directory: &Path) -> Tool {
    let mut command = command("prometheus-blackbox-exporter");
    command.arg(format!("--config.file={}", kit().join("blackbox/blackbox.yml").display()));
    command.arg(format!("--web.listen-address={address}"));
    Tool::start(&mut command, directory, "blackbox").serving(address, "/-/healthy")
}

/// Alertmanager with this configuration and the kit's templates.
pub fn alertmanager_with(config: &str, address: SocketAddr, directory: &Path) -> Tool {
    let file = directory.join("alertmanager.yml");
    let templates = kit().join("alertmanager/templates/*.tmpl");
    fs::write(&file, changed(config, &[("templates/*.tmpl", templates.to_str().unwrap())])).unwrap();
    let mut command = command("prometheus-alertmanager");
    command.arg(format!("--config.file={}", file.display())).arg("--cluster.listen-address=");
    command.arg(format!("--storage.path={}", directory.join("alertmanager").display()));
    command.arg(format!("--web.listen-address={address}"));
    Tool::start(&mut command, directory, "alertmanager").serving(address, "/-/ready")
}
