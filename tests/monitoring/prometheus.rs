//! A real Prometheus with the kit's rules.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use tempfile::TempDir;

use super::tools::{self, PATIENCE, Tool, command, free_address, get_json, url_encoded};
use crate::support::clock;

/// A running Prometheus.
pub struct Prometheus {
    pub address: SocketAddr,
    _tool: Tool,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts it with this configuration, in which `OWN` stands for its own address, and these rules by file name.
    pub fn start(config: &str, rules: &[(&str, String)]) -> Self {
        let (directory, address) = (TempDir::with_prefix("prometheus-").unwrap(), free_address());
        let place = directory.path();
        fs::create_dir(place.join("rules")).unwrap();
        fs::write(place.join("prometheus.yml"), config.replace("OWN", &address.to_string())).unwrap();
        rules.iter().for_each(|(name, text)| fs::write(place.join("rules").join(name), text).unwrap());
        let mut command = command("prometheus");
        command.arg(format!("--config.file={}", place.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", place.join("data").display()));
        command.arg(format!("--web.listen-address={address}")).arg("--log.level=warn");
        let tool = Tool::start(&mut command, place, "prometheus").serving(address, "/-/ready");
        Self { address, _tool: tool, _directory: directory }
    }

    /// Waits until every target answers.
    ///
    /// # Panics
    /// With the targets that do not.
    pub fn wait_for_targets(&self) {
        let down = || {
            let targets = self.api("targets")["activeTargets"].clone();
            let targets = targets.as_array().unwrap().clone();
            let is_down = |target: &Value| target["health"] != "up";
            (targets.is_empty(), targets.into_iter().filter(is_down).collect::<Vec<_>>())
        };
        let up = clock::poll(PATIENCE, || matches!(down(), (false, down) if down.is_empty()).then_some(()));
        assert_eq!(up, Some(()), "{:#?}", down().1);
    }

    /// The series that `expression` has now.
    ///
    /// # Errors
    /// When Prometheus does not understand it.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let answer = get_json(self.address, &format!("/api/v1/query?query={}", url_encoded(expression)));
        match answer["data"]["result"].as_array() {
            Some(series) => Ok(series.clone()),
            None => Err(format!("{expression}: {}", answer["error"])),
        }
    }

    /// Every rule, as Prometheus has read it.
    pub fn rules(&self) -> Vec<Value> {
        let groups = self.api("rules")["groups"].clone();
        groups.as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }

    fn api(&self, what: &str) -> Value {
        get_json(self.address, &format!("/api/v1/{what}"))["data"].clone()
    }
}

/// The kit's rules, by file name.
pub fn kit_rules() -> Vec<(&'static str, String)> {
    ["alerts.yml", "recording.yml"].map(|name| (name, tools::kit_file(&format!("prometheus/rules/{name}")))).into()
}

/// Whether a series has a number now; a quotient of nothing by nothing has none.
pub fn has_number(series: &Value) -> bool {
    series["value"][1].as_str().is_some_and(|value| value != "NaN")
}
