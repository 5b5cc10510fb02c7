//! `deploy/kubernetes`, rendered by kubectl and checked against the published schemas and against the server.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use superchat::config::TABLE;
use tempfile::TempDir;

const BASE: &str = "base";
const EXAMPLE: &str = "overlays/example";

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that `scripts/check.sh` installs for Python.
fn python_tool(name: &str) -> Command {
    let path = project().join("target/tools/python/bin").join(name);
    assert!(path.exists(), "{name} is missing: scripts/check.sh installs it below target/tools");
    Command::new(path)
}

/// What a cluster would get, as YAML.
fn rendered(folder: &str) -> String {
    let mut kubectl = Command::new("kubectl");
    let output = kubectl.arg("kustomize").arg(project().join("deploy/kubernetes").join(folder)).output();
    let output = output.expect("kubectl is missing: version 1.21 or later, see https://kubernetes.io/docs/tasks/tools");
    assert!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The object of a kind, as JSON.
fn object(yaml: &str, kind: &str) -> Value {
    let program = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("objects.yaml");
    fs::write(&file, yaml).unwrap();
    let input = fs::File::open(file).unwrap();
    let output = python_tool("python").args(["-c", program]).stdin(input).output().unwrap();
    let objects: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let found = objects.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
    let [one] = found[..] else { panic!("{} of kind {kind}", found.len()) };
    one.clone()
}

fn container(yaml: &str) -> Value {
    object(yaml, "StatefulSet")["spec"]["template"]["spec"]["containers"][0].clone()
}

/// Value of a variable of the container.
fn variable(container: &Value, name: &str) -> String {
    let variables = container["env"].as_array().unwrap().iter();
    let found = variables.into_iter().find(|variable| variable["name"] == name);
    found.unwrap_or_else(|| panic!("no {name}"))["value"].as_str().unwrap().to_owned()
}

fn validated(yaml: &str) -> (bool, String) {
    let directory = TempDir::new().unwrap();
    let file: PathBuf = directory.path().join("objects.yaml");
    fs::write(&file, yaml).unwrap();
    let output = python_tool("kubernetes-validate").arg("--strict").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

#[test]
fn base_and_example_follow_the_published_schemas() {
    for folder in [BASE, EXAMPLE] {
        let (valid, said) = validated(&rendered(folder));
        assert!(valid, "{folder}: {said}");
        for kind in
            ["statefulset/superchat", "service/superchat", "networkpolicy/superchat", "configmap/superchat-config"]
        {
            assert!(said.contains(&format!("passed for resource {kind}")), "{folder}: {kind}: {said}");
        }
    }
}

#[test]
fn the_schemas_find_a_wrong_name() {
    let (valid, said) = validated(&rendered(BASE).replace("readinessProbe:", "readyProbe:"));
    assert!(!valid && said.contains("readyProbe"), "{said}");
}

#[test]
fn the_pod_may_do_nothing_that_it_does_not_need() {
    let yaml = rendered(EXAMPLE);
    let pod = object(&yaml, "StatefulSet")["spec"]["template"]["spec"].clone();
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(pod["automountServiceAccountToken"], false);
    let container = container(&yaml);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
}

#[test]
fn the_time_to_end_covers_the_drain() {
    let pod = object(&rendered(BASE), "StatefulSet")["spec"]["template"]["spec"].clone();
    let before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
    // Goodbyes and the store: ARCHITECTURE.md, Threads.
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= before + 10 + 30 + 15);
}

#[test]
fn probes_ask_pages_and_ports_that_the_server_has() {
    let container = container(&rendered(BASE));
    let pages = fs::read_to_string(project().join("src/admin/mod.rs")).unwrap();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let page = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert!(pages.contains(&format!("\"{page}\"")), "{probe}: nobody serves {page}");
        assert_eq!(container[probe]["httpGet"]["port"], "metrics");
    }
    let port = variable(&container, "SUPERCHAT_ADMIN_METRICS_LISTEN").rsplit(':').next().unwrap().to_owned();
    let ports = container["ports"].as_array().unwrap();
    let metrics = ports.iter().find(|port| port["name"] == "metrics").unwrap();
    assert_eq!(metrics["containerPort"].to_string(), port);
}

#[test]
fn only_the_scraper_reaches_metrics_and_nobody_the_profiles() {
    let yaml = rendered(EXAMPLE);
    let policy = object(&yaml, "NetworkPolicy")["spec"].clone();
    assert_eq!(policy["podSelector"]["matchLabels"], object(&yaml, "StatefulSet")["spec"]["selector"]["matchLabels"]);
    let rules = policy["ingress"].as_array().unwrap();
    for rule in rules {
        for port in rule["ports"].as_array().unwrap() {
            match port["port"].as_str().unwrap() {
                "chat" | "ssh" | "http" => assert!(rule.get("from").is_none()),
                "metrics" => assert!(rule["from"][0]["podSelector"]["matchLabels"].is_object()),
                other => panic!("{other} is open"),
            }
        }
    }
    assert!(variable(&container(&yaml), "SUPERCHAT_ADMIN_PROFILE_LISTEN").starts_with("127.0.0.1:"));
    let service = object(&yaml, "Service")["spec"]["ports"].clone();
    let names: Vec<_> = service.as_array().unwrap().iter().map(|port| &port["name"]).collect();
    assert_eq!(names, ["chat", "ssh", "http"]);
}

/// Its schema is not a published one, so the names that lead elsewhere are looked up here.
#[test]
fn the_monitor_scrapes_the_pod_with_the_token_of_its_secret() {
    for folder in [BASE, EXAMPLE] {
        let yaml = rendered(folder);
        let monitor = object(&yaml, "PodMonitor")["spec"].clone();
        let pod = object(&yaml, "StatefulSet")["spec"]["template"].clone();
        assert_eq!(monitor["selector"]["matchLabels"], pod["metadata"]["labels"]);
        let endpoint = &monitor["podMetricsEndpoints"][0];
        let ports = pod["spec"]["containers"][0]["ports"].as_array().unwrap();
        assert!(ports.iter().any(|port| port["name"] == endpoint["port"]), "{folder}");
        let token = &endpoint["authorization"]["credentials"];
        let secret = &pod["spec"]["containers"][0]["envFrom"][0]["secretRef"]["name"];
        assert!(folder == BASE || token["name"] == *secret && token["key"] == "METRICS_TOKEN", "{token}");
    }
}

/// The configuration as the pod sees it, at an address of this machine.
#[test]
fn the_server_understands_what_it_is_given() {
    let place = TempDir::new().unwrap();
    for folder in [BASE, EXAMPLE] {
        let yaml = rendered(folder);
        let container = container(&yaml);
        let config = place.path().join("config.toml");
        fs::write(&config, object(&yaml, "ConfigMap")["data"]["config.toml"].as_str().unwrap()).unwrap();
        let mut check = Command::new(env!("CARGO_BIN_EXE_scd"));
        check.env_clear().arg("check-config").arg("--config").arg(&config);
        for name in ["SUPERCHAT_ADMIN_METRICS_LISTEN", "SUPERCHAT_ADMIN_PROFILE_LISTEN", "STATE_DIRECTORY"] {
            check.env(name, variable(&container, name).replace("$(POD_IP)", "192.0.2.10"));
        }
        let output = check.output().unwrap();
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(report.contains("\"192.0.2.10:9090\"") && report.contains("\"/data/superchat.db\""), "{report}");
    }
}

#[test]
fn secrets_that_the_comments_name_are_settings() {
    let base = fs::read_to_string(project().join("deploy/kubernetes/base/statefulset.yaml")).unwrap();
    for name in ["METRICS_TOKEN", "SENTRY_DSN"] {
        assert!(base.contains(name));
        assert!(TABLE.iter().any(|entry| entry.environment().iter().any(|known| known == name)), "{name}");
    }
}
