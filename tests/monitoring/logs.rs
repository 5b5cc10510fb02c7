//! The log files in the hands of logrotate and rsyslog.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::load::wrong_password;
use crate::support::{Server, Settings, clock};
use crate::tools::{PATIENCE, Tool, changed, command, kit_file};

#[test]
fn logrotate_moves_the_log_aside_and_the_server_goes_on_in_a_new_one() {
    let server = Server::start(Settings::new());
    let log = log_of(&server);
    let directory = TempDir::with_prefix("logrotate-").unwrap();
    let config = directory.path().join("superchat");
    let text = changed(
        &kit_file("logrotate/superchat"),
        &[
            ("/var/lib/superchat/*.log", log.with_file_name("*.log").display().to_string()),
            ("/var/log/superchat-security.log", directory.path().join("none.log").display().to_string()),
            ("systemctl reload superchat.service", format!("kill -HUP {}", server.pid())),
            ("    su superchat superchat\n", String::new()),
            ("create 0640 superchat superchat", "create 0640".to_owned()),
        ],
    );
    fs::write(&config, text).unwrap();
    let state = directory.path().join("state");
    let status = command("logrotate").arg("--force").arg("--state").arg(state).arg(&config).status().unwrap();
    assert!(status.success());
    wait_for_line(&log, "log files reopened");
    assert!(!fs::read_to_string(&log).unwrap().contains("Server started on port"));
    assert!(fs::read_to_string(log.with_extension("log.1")).unwrap().contains("Server started on port"));
}

#[test]
fn rsyslog_keeps_security_events_of_both_formats_and_nothing_else_in_their_file() {
    for format in ["text", "json"] {
        let server = Server::start(Settings::new().set("log", "log_format", format));
        let directory = TempDir::with_prefix("rsyslog-").unwrap();
        let security = directory.path().join("security.log");
        let text = changed(
            &kit_file("rsyslog/30-superchat.conf"),
            &[
                ("/var/lib/superchat/server.log", log_of(&server).display().to_string()),
                ("/var/log/superchat-security.log", security.display().to_string()),
            ],
        );
        let config = directory.path().join("rsyslog.conf");
        fs::write(&config, format!("global(workDirectory=\"{}\")\n{text}", directory.path().display())).unwrap();
        let mut command = command("rsyslogd");
        command.arg("-n").arg("-f").arg(&config).arg("-i").arg(directory.path().join("pid"));
        let _rsyslog = Tool::start(&mut command, directory.path(), "rsyslogd");
        wrong_password(&mut server.client());
        wait_for_line(&security, "authentication failed");
        assert!(!fs::read_to_string(&security).unwrap().contains("Server started on port"), "{format}");
    }
}

fn log_of(server: &Server) -> PathBuf {
    server.home().join("data/superchat/server.log")
}

fn wait_for_line(file: &PathBuf, part: &str) {
    let read = || fs::read_to_string(file).unwrap_or_default();
    let found = clock::poll(PATIENCE, || read().contains(part).then_some(()));
    assert_eq!(found, Some(()), "{part} is not in {}: {}", file.display(), read());
}
