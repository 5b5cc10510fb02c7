//! `deploy/docker`, without an engine: what the files say is tried outside of Docker.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::path::Path;
use std::process::Command;

use support::host::{Host, Running, project};
use tempfile::TempDir;

const DOCKERFILE: &str = include_str!("../deploy/docker/Dockerfile");
const IGNORED: &str = include_str!("../deploy/docker/Dockerfile.dockerignore");

/// What follows an instruction, continued lines included.
fn instructions(name: &str) -> Vec<String> {
    let joined = DOCKERFILE.replace("\\\n", " ");
    let found = joined.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    found.collect()
}

/// The program and arguments of an instruction in its JSON form.
fn words(instruction: &str) -> Vec<String> {
    serde_json::from_str(&instruction[instruction.find('[').unwrap()..]).unwrap()
}

/// What is copied out of the project.
fn copied() -> Vec<String> {
    let copies = instructions("COPY").into_iter().filter(|copy| !copy.starts_with("--from"));
    let words = copies.map(|copy| copy.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    words.flat_map(|words| words[..words.len() - 1].to_vec()).collect()
}

#[test]
fn hadolint_has_nothing_to_say() {
    let hadolint = Path::new(&project("target/tools/python/bin/hadolint")).to_owned();
    assert!(hadolint.exists(), "hadolint is missing: scripts/check.sh installs it below target/tools");
    let output = Command::new(hadolint).arg(project("deploy/docker/Dockerfile")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn compose_understands_its_file() {
    let file = project("deploy/docker/docker-compose.yml");
    let plugin = Command::new("docker").args(["compose", "version"]).output();
    let mut command = match plugin {
        Ok(output) if output.status.success() => Command::new("docker"),
        _ => Command::new("docker-compose"),
    };
    if command.get_program() == "docker" {
        command.arg("compose");
    }
    let output = command.args(["--file", &file, "config"]).output();
    let output = output.expect("docker compose is missing: apt-get install docker-compose");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("6465"), "{said}");
}

#[test]
fn what_is_copied_is_what_is_not_ignored_and_all_that_a_build_reads() {
    let let_in: Vec<_> = IGNORED.lines().filter_map(|line| line.strip_prefix('!').map(str::to_owned)).collect();
    let (mut sorted, mut copied) = (let_in, copied());
    sorted.sort();
    copied.sort();
    assert_eq!(sorted, copied);

    let place = TempDir::with_prefix_in("docker-", env!("CARGO_TARGET_TMPDIR")).unwrap();
    for name in &copied {
        let copy = Command::new("cp").args(["-r", &project(name)]).arg(place.path()).status().unwrap();
        assert!(copy.success(), "{name} is not there");
    }
    // A release build takes minutes; that every target of the manifest finds its files takes none.
    let mut metadata = Command::new(env!("CARGO"));
    metadata.args(["metadata", "--offline", "--no-deps", "--format-version", "1"]).current_dir(place.path());
    let output = metadata.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // And what the sources read while they are compiled.
    let mut grep = Command::new("grep");
    let found = grep.args(["-rlE", "include(_str|_bytes)?!", "src", "build.rs"]).current_dir(place.path()).output();
    assert_eq!(String::from_utf8(found.unwrap().stdout).unwrap(), "src/store/sqlite/migrations.rs\n");
    assert!(copied.contains(&"migrations".to_owned()));
}

#[test]
fn the_build_line_is_that_of_a_release() {
    let build = instructions("RUN").into_iter().find(|run| run.starts_with("cargo build")).unwrap();
    assert_eq!(build, "cargo build --release --locked --bin scd");
    let toolchain = instructions("FROM")[0].clone();
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().unwrap();
    let version = manifest["package"]["rust-version"].as_str().unwrap();
    assert_eq!(toolchain, format!("rust:{version}-bookworm AS build"));
}

#[test]
fn the_command_serves_and_the_health_check_tells() {
    let host = Host::new();
    host.sh(&format!(
        "ln -s {} /usr/local/bin/scd; install -d -o 1000 -g 1000 -m 0750 /data",
        env!("CARGO_BIN_EXE_scd")
    ));
    let user = instructions("USER")[0].clone();
    let (user, group) = user.split_once(':').unwrap();
    let command = |words: &[String]| {
        let mut command = host.command("setpriv");
        command.args(["--reuid", user, "--regid", group, "--clear-groups", "env"]);
        command.args(instructions("ENV")[0].split_whitespace()).args(words);
        command
    };
    let health = words(&instructions("HEALTHCHECK")[0]);
    assert_eq!(command(&health).status().unwrap().code(), Some(1), "nobody is there yet");
    let ports = instructions("EXPOSE")[0].clone();
    let port = ports.split(' ').next().unwrap();
    let _server = Running::start(command(&words(&instructions("CMD")[0])), &format!("Server started on port {port}"));
    assert_eq!(command(&health).status().unwrap().code(), Some(0));
    host.sh("test -s /data/superchat.db && test -s /data/config.toml");
}
