//! The Debian package that `scripts/package.sh` makes: lintian, and its life on a host of the test's own.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::host::{Host, Running, project};
use tempfile::TempDir;

/// Packs the binary of this test run, without the lines of its source, which cost time. lintian is part of it.
fn package(output: &TempDir) -> PathBuf {
    let binary = output.path().join("scd");
    let mut strip = Command::new("objcopy");
    let stripped = strip.args(["--strip-debug", env!("CARGO_BIN_EXE_scd")]).arg(&binary).status();
    assert!(stripped.is_ok_and(|status| status.success()), "objcopy is missing or fails: apt-get install binutils");
    let mut script = Command::new(project("scripts/package.sh"));
    let made = script.args(["--fast", "--binary"]).arg(&binary).arg(output.path()).output().unwrap();
    let said = String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    let files = fs::read_dir(output.path()).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb")).unwrap_or_else(|| panic!("{said}"))
}

/// One test, because the package takes longest to make.
#[test]
fn the_package_is_clean_installs_serves_and_leaves() {
    let output = TempDir::with_prefix_in("package-", env!("CARGO_TARGET_TMPDIR")).unwrap();
    let package = package(&output);
    bill_of_materials(&output);
    installs_serves_and_leaves(&package);
}

fn installs_serves_and_leaves(package: &Path) {
    let host = Host::new();
    host.sh(&format!("dpkg --install {}", package.display()));

    assert!(host.sh("scd --version").starts_with("SuperChat Server "));
    for (path, wanted) in [
        ("/etc/superchat", "750 root:superchat\n"),
        ("/etc/superchat/config.toml", "640 root:superchat\n"),
        ("/var/lib/superchat", "750 superchat:superchat\n"),
    ] {
        assert_eq!(host.sh(&format!("stat -c '%a %U:%G' {path}")), wanted, "{path}");
    }
    host.sh("test -L /etc/systemd/system/multi-user.target.wants/superchat.service");
    host.sh("grep -q '^ExecStart=/usr/bin/scd ' /usr/lib/systemd/system/superchat.service");
    host.sh(
        "systemd-analyze verify superchat.service superchat.socket superchat-backup.service superchat-backup.timer",
    );
    let complaints =
        "man --warnings=w 1 scd 2>&1 > /tmp/scd.1; man --warnings=w 5 superchat-config 2>&1 > /tmp/superchat-config.5";
    assert_eq!(host.sh(complaints), "");
    host.sh("grep -q SYNOPSIS /tmp/scd.1; grep -q tcp_port /tmp/superchat-config.5");
    host.sh("bash -c '. /usr/share/bash-completion/completions/scd; complete -p scd'");
    serves(&host);

    host.sh("echo '[server]\ntcp_port = 6465' > /etc/superchat/config.toml");
    host.sh(&format!("dpkg --install --force-confdef {}", package.display()));
    assert_eq!(
        host.sh("tail -n 1 /etc/superchat/config.toml; stat -c %a /etc/superchat/config.toml"),
        "tcp_port = 6465\n640\n"
    );

    host.sh("dpkg --remove superchat");
    host.sh("test -s /var/lib/superchat/superchat.db; ! test -e /usr/bin/scd; test -e /etc/superchat/config.toml");
    host.sh("dpkg --purge superchat");
    host.sh("! test -e /var/lib/superchat; ! test -e /etc/superchat; ! test -e /usr/share/man/man1/scd.1.gz");
    host.sh("! test -L /etc/systemd/system/multi-user.target.wants/superchat.service");
}

/// As the account of the package, with its configuration, on its ports.
fn serves(host: &Host) {
    let mut command = host.command("setpriv");
    command.args(["--reuid", "superchat", "--regid", "superchat", "--clear-groups"]);
    command.args(["env", "STATE_DIRECTORY=/var/lib/superchat", "scd", "--config", "/etc/superchat/config.toml"]);
    let mut server = Running::start(command, "Server started on port 6465");
    host.sh("scd health --ready");
    let id = host.sh("scd post general 'hello'");
    assert!(id.trim().parse::<u64>().is_ok(), "{id}");
    host.sh(&format!("kill {}", server.pid()));
    assert_eq!(server.wait(), Some(0));
}

/// It lists every crate of the binary, with its licence.
fn bill_of_materials(output: &TempDir) {
    let bill: Value = serde_json::from_slice(&fs::read(output.path().join("superchat.cdx.json")).unwrap()).unwrap();
    assert_eq!(bill["metadata"]["component"]["name"], "superchat");
    let components = bill["components"].as_array().unwrap();
    let listed: Vec<&str> = components.iter().map(|component| component["name"].as_str().unwrap()).collect();
    let manifest: toml::Table = fs::read_to_string(project("Cargo.toml")).unwrap().parse().unwrap();
    for name in manifest["dependencies"].as_table().unwrap().keys() {
        assert!(listed.contains(&name.as_str()), "{name} is not listed");
    }
    assert!(!listed.contains(&"proptest"), "what only tests need is not in the binary");
    let licence = |component: &&Value| component["licenses"].as_array().is_none_or(Vec::is_empty);
    let unlicensed: Vec<_> = components.iter().filter(licence).map(|component| &component["name"]).collect();
    assert!(unlicensed.is_empty(), "{unlicensed:?}");
}
