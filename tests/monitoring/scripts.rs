//! The scripts that operators run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::{Server, Settings};
use crate::tools::{changed, free_address, kit};

/// Exit code and standard output of a script.
fn run(script: &str, configure: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script));
    configure(&mut command);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

mod validation {
    use super::*;

    /// What is damaged, and the check that must find it.
    const DAMAGES: &[(&str, &str, &str, &str)] = &[
        ("loki/loki.yml", "server:", "server:  ", "YAML"),
        ("prometheus/prometheus.yml", "scrape_configs:", "scrape_config:", "Prometheus"),
        ("prometheus/rules/alerts.yml", "up{job", "up{{job", "rules"),
        ("prometheus/rules/alerts.yml", "> 9000", "> 9001", "unit tests of the rules"),
        ("alertmanager/alertmanager.yml", "receiver: webhook", "receiver: nobody", "Alertmanager"),
        ("alertmanager/alertmanager.yml", "severity=\"critical\"", "severity=\"fatal\"", "routes"),
        ("alertmanager/templates/superchat.tmpl", "range .Alerts", "range .Alert", "templates"),
        ("blackbox/blackbox.yml", "prober: http", "probe: http", "blackbox"),
        ("rsyslog/30-superchat.conf", "ruleset(name", "rulesets(name", "rsyslog"),
        ("logrotate/superchat", "    daily", "    sometimes", "logrotate"),
        ("compose.yaml", "network_mode: host", "network: host", "compose"),
        ("grafana/dashboards/overview.json", "superchat_build_info{", "superchat_build{", "the parts fit each other"),
        ("grafana/dashboards/runtime.json", "\"x\": 12", "\"x\": 11", "the parts fit each other"),
        ("prometheus/rules/alerts.yml", "#superchatdown", "#down", "the parts fit each other"),
        ("promtail/promtail.yml", "[A-Z]+", "[a-z]+", "the parts fit each other"),
        ("uptime-kuma/monitors.json", "\"keyword\": ", "\"words\": ", "the parts fit each other"),
        ("compose.yaml", "prom/prometheus:v2.53.4", "prom/prometheus:latest", "the parts fit each other"),
    ];

    #[test]
    fn accepts_the_kit() {
        let (code, output) = validate(&kit());
        assert_eq!(code, Some(0), "{output}");
    }

    #[test]
    fn finds_damage_of_every_kind_and_fails() {
        for (file, from, to, check) in DAMAGES {
            let copy = copy_of_the_kit();
            let path = copy.path().join("deploy").join(file);
            fs::write(&path, changed(&fs::read_to_string(&path).unwrap(), &[(from, to)])).unwrap();
            let (code, output) = validate(&copy.path().join("deploy"));
            assert_eq!(code, Some(1), "{file}: {to}: {output}");
            assert!(output.contains(&format!("FINDING  {check}\n")), "{file}: {to}: {output}");
        }
    }

    fn validate(kit: &Path) -> (Option<i32>, String) {
        run("validate-monitoring.sh", |command| {
            command.arg(kit);
        })
    }
}

mod healthcheck {
    use super::*;

    #[test]
    fn all_is_well() {
        let (server, metrics) = server();
        let (code, output) = check(&server, metrics);
        let lines: Vec<_> = output.lines().collect();
        assert_eq!((code, lines.len()), (Some(0), 4), "{output}");
        assert!(lines.iter().all(|line| line.starts_with("OK: ")), "{output}");
    }

    #[test]
    fn a_server_that_is_gone_is_an_error() {
        let (mut server, metrics) = server();
        server.kill9();
        let (code, output) = check(&server, metrics);
        assert_eq!(code, Some(1));
        assert!(output.starts_with("ERROR: no connection to the chat port"), "{output}");
    }

    #[test]
    fn a_server_without_a_health_page_is_an_error() {
        let server = Server::start(Settings::new());
        let (code, output) = check(&server, free_address().port());
        assert_eq!(code, Some(1));
        assert!(output.lines().last().unwrap().starts_with("ERROR: no answer from"), "{output}");
    }

    #[test]
    fn a_database_that_cannot_be_written_is_an_error() {
        let (server, metrics) = server();
        let database = Connection::open(server.database()).unwrap();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (code, output) = check(&server, metrics);
        assert_eq!(code, Some(1));
        assert!(output.lines().last().unwrap().starts_with("ERROR: status is not ok"), "{output}");
    }

    #[test]
    fn wrong_usage_has_an_exit_code_of_its_own() {
        let (code, output) = run("healthcheck.sh", |command| {
            command.args(["127.0.0.1", "chat"]);
        });
        assert_eq!(code, Some(2));
        assert!(output.starts_with("usage: "), "{output}");
    }

    fn server() -> (Server, u16) {
        let metrics = free_address();
        (Server::start(Settings::new().set("admin", "metrics_listen", metrics.to_string())), metrics.port())
    }

    fn check(server: &Server, metrics: u16) -> (Option<i32>, String) {
        run("healthcheck.sh", |command| {
            command.args(["127.0.0.1", &server.address().port().to_string(), &metrics.to_string()]);
        })
    }
}

/// Docker is not there to be run: a stand-in notes what it is asked for.
mod monitoring_up {
    use super::*;

    #[test]
    fn makes_the_secrets_once_and_starts_the_stack() {
        let copy = copy_of_the_kit();
        let (code, output) = up(&copy, "exit 0");
        assert_eq!(code, Some(0), "{output}");
        let secrets = copy.path().join("deploy/secrets");
        assert_eq!(fs::metadata(&secrets).unwrap().permissions().mode() & 0o777, 0o700);
        let password = fs::read_to_string(secrets.join("grafana_password")).unwrap();
        assert!(password.trim().len() >= 24, "{password}");
        let asked = fs::read_to_string(copy.path().join("asked")).unwrap();
        assert!(asked.contains("deploy/compose.yaml up --detach"), "{asked}");
        assert!(output.contains("pagerduty_key is empty"), "{output}");
        assert_eq!(output.matches(" is ready\n").count(), 8, "{output}");

        up(&copy, "exit 0");
        assert_eq!(fs::read_to_string(secrets.join("grafana_password")).unwrap(), password, "it was taken over");
    }

    #[test]
    fn says_what_does_not_come_up_and_fails() {
        let copy = copy_of_the_kit();
        let (code, output) = up(&copy, r#"case "$*" in *:3100/*) exit 7 ;; esac"#);
        assert_eq!(code, Some(1));
        assert!(output.contains("loki does not answer"), "{output}");
    }

    /// Runs it with a Docker and a curl that do nothing, curl with the exit code of `answer`.
    fn up(copy: &TempDir, answer: &str) -> (Option<i32>, String) {
        let place = copy.path();
        stand_in(place, "docker", &format!("echo \"$*\" >> {}/asked", place.display()));
        stand_in(place, "curl", answer);
        let path = format!("{}:{}", place.display(), std::env::var("PATH").unwrap());
        run("monitoring-up.sh", |command| {
            command.env("PATH", path).env("MONITORING_KIT", place.join("deploy")).env("MONITORING_PATIENCE", "0");
        })
    }

    fn stand_in(place: &Path, name: &str, script: &str) -> PathBuf {
        let path = place.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

fn copy_of_the_kit() -> TempDir {
    let copy = TempDir::with_prefix("kit-").unwrap();
    let status = Command::new("cp").arg("-r").arg(kit()).arg(copy.path().join("deploy")).status().unwrap();
    assert!(status.success());
    copy
}
