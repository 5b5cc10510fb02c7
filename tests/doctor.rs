//! `scd doctor` and `scd support-bundle` as operators run them.
#![expect(clippy::unwrap_used, reason = "clippy knows test functions, not the helpers between them")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use flate2::read::GzDecoder;
use serde_json::Value;
use superchat::wire::client::PostMessage;
use superchat::wire::codec::Bounded;
use support::{Server, Settings};
use tempfile::TempDir;

fn scd(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
    command.env_clear().env("HOME", home).env("XDG_DATA_HOME", home.join("data")).current_dir(home);
    command.args(arguments).output().unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Findings of `scd doctor --json` by check, and its exit code.
fn findings(home: &Path, arguments: &[&str]) -> (Option<i32>, BTreeMap<String, Value>) {
    let output = scd(home, &[&["doctor", "--json"], arguments].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    let findings = findings.map(|finding| (finding["check"].as_str().unwrap().to_owned(), finding.clone()));
    (output.status.code(), findings.collect())
}

#[test]
fn a_host_without_a_server_is_checked_and_left_as_it_is() {
    let home = TempDir::new().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o750)).unwrap();
    let config = home.path().join("config.toml");
    let ports = [free_port(), free_port()];
    let text = format!(
        "[server]\nssh_port = 0\nhttp_port = 0\ntcp_port = {}\n[admin]\nmetrics_listen = \"127.0.0.1:{}\"\nprofile_listen = \"off\"\n",
        ports[0], ports[1]
    );
    fs::write(&config, text).unwrap();
    let arguments = ["--config", "config.toml", "--db", "data/superchat.db"];
    let (_, found) = findings(home.path(), &arguments);
    for (check, text) in [
        ("chat port", format!("0.0.0.0:{} is free", ports[0])),
        ("metrics port", format!("127.0.0.1:{} is free", ports[1])),
        ("metrics address", format!("127.0.0.1:{}: this machine only", ports[1])),
        ("integrity", "data/superchat.db does not exist: the first start makes it".to_owned()),
    ] {
        assert_eq!(found[check]["found"], text, "{check}");
        assert_eq!(found[check]["level"], "ok", "{check}");
    }
    for check in ["file limit", "memory", "swap", "clock", "unit", "file system", "free space", "disk latency"] {
        assert!(found.contains_key(check), "{check} is not checked: {found:?}");
    }
    let names: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["config.toml"]);
    let text = String::from_utf8(scd(home.path(), &[&["doctor"], &arguments[..]].concat()).stdout).unwrap();
    assert!(text.contains(&format!("ok    chat port: 0.0.0.0:{} is free\n", ports[0])), "{text}");
}

#[test]
fn a_taken_port_damage_and_open_doors_fail_and_say_what_to_do() {
    let home = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    fs::write(home.path().join("superchat.db"), "not a database at all, but long enough").unwrap();
    fs::write(
        home.path().join("config.toml"),
        format!(
            "[server]\nssh_port = 0\nhttp_port = 0\nlisten_address = \"127.0.0.1\"\ntcp_port = {port}\n\
             [admin]\nmetrics_listen = \"0.0.0.0:{}\"\nprofile_listen = \"off\"\n",
            free_port()
        ),
    )
    .unwrap();
    let (code, found) = findings(home.path(), &["--config", "config.toml", "--db", "superchat.db"]);
    assert_eq!(code, Some(1));
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    let owner = format!("127.0.0.1:{port} is taken by {} (pid {})", name.trim(), std::process::id());
    assert_eq!(found["chat port"]["found"], owner);
    for check in ["chat port", "metrics address", "integrity"] {
        assert_eq!(found[check]["level"], "fail", "{check}");
        assert!(found[check]["advice"].as_str().is_some_and(|advice| advice.len() > 10), "{check}");
    }
}

#[test]
fn a_running_server_is_recognized() {
    let server = Server::start(Settings::new());
    let (port, database) = (server.address().port().to_string(), server.database());
    let arguments = ["--config", "config.toml", "--port", &port, "--db", database.to_str().unwrap()];
    let (_, found) = findings(server.home(), &arguments);
    assert_eq!(found["chat port"]["found"], format!("0.0.0.0:{port} is served by scd (pid {})", server.pid()));
    assert_eq!(found["integrity"]["level"], "ok");
    assert!(found["file limit"]["found"].as_str().unwrap().ends_with("of the running server"), "{found:?}");
    assert_eq!(found["last backup"]["found"], "never");
}

/// The files of an archive by name, without its folder.
fn unpacked(path: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).unwrap()));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let name: std::path::PathBuf = path.components().skip(1).collect();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(name.to_str().unwrap().to_owned(), String::from_utf8_lossy(&bytes).into_owned());
    }
    files
}

const TOKEN: &str = "token-\\3f9a1c";
const PASSWORD: &str = "password-77be0d";
const DSN: &str = "http://key5d2e8f@127.0.0.1:9/42";

#[test]
fn a_bundle_of_a_running_server_has_everything_but_secrets_and_messages() {
    let port = free_port();
    let server = Server::start(
        Settings::new()
            .set("admin", "metrics_listen", format!("127.0.0.1:{port}"))
            .set("admin", "metrics_token", TOKEN)
            .set("server", "admin_password", PASSWORD)
            .set("log", "sentry_dsn", DSN)
            // A secret where nobody expects one.
            .set("discovery", "server_description", format!("ask with {TOKEN}"))
            .admins(&["ann"]),
    );
    let mut alice = server.client_named("alice");
    let content = Bounded(&b"whispered words"[..]);
    let channel_id = superchat::ids::ChannelId(2);
    alice.send(PostMessage { channel_id, subchannel_id: None, parent_id: None, content });
    alice.expect_reply("MESSAGE_POSTED");
    let (database, chat) = (server.database(), server.address().port().to_string());
    let arguments =
        ["-o", "bundle.tar.gz", "--config", "config.toml", "--port", &chat, "--db", database.to_str().unwrap()];
    let output = scd(server.home(), &[&["support-bundle"], &arguments[..]].concat());
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.ends_with("wrote bundle.tar.gz: look through it before you send it\n"), "{told}");

    let archive = server.home().join("bundle.tar.gz");
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    let files = unpacked(&archive);
    for (name, part) in [
        ("manifest.txt", "profiles/heap.pb.gz: profile_listen is off"),
        ("version.txt", concat!("scd ", env!("CARGO_PKG_VERSION"))),
        ("configuration.txt", "server_description"),
        ("doctor.txt", "ok    chat port: "),
        ("doctor.json", "\"findings\""),
        ("health.json", "\"status\":\"ok\""),
        ("status.json", "\"shards\""),
        ("metrics.txt", "superchat_active_sessions 1"),
        ("logs/server.log", "Session "),
        ("logs/errors.log", "=== Server started at "),
    ] {
        assert!(
            files.get(name).is_some_and(|text| text.contains(part)),
            "{part:?} is missing in {name}: {:?}",
            files.get(name)
        );
    }
    for (name, text) in &files {
        for secret in ["3f9a1c", PASSWORD, "key5d2e8f", "whispered words"] {
            assert!(!text.contains(secret), "{secret} stands in {name}");
        }
    }
    let again = scd(server.home(), &[&["support-bundle"], &arguments[..]].concat());
    assert_eq!(again.status.code(), Some(1), "an existing file is replaced");
}

#[test]
fn a_bundle_is_made_without_a_server_too() {
    let home = TempDir::new().unwrap();
    let metrics = format!(
        "[admin]\nmetrics_listen = \"127.0.0.1:{}\"\nprofile_listen = \"127.0.0.1:{}\"\n",
        free_port(),
        free_port()
    );
    fs::write(home.path().join("config.toml"), metrics).unwrap();
    let output = scd(home.path(), &["support-bundle", "--config", "config.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut entries = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().path());
    let archive = entries.find(|path| path.extension().is_some_and(|end| end == "gz")).unwrap();
    let files = unpacked(&archive);
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["configuration.txt", "doctor.json", "doctor.txt", "manifest.txt", "version.txt"]
    );
    assert!(
        files["manifest.txt"].contains("health.json: no answer from http://127.0.0.1:"),
        "{}",
        files["manifest.txt"]
    );
}
