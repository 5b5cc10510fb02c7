//! Tells the binary what it was built from, for `superchat_build_info`. A build outside a checkout works as well and says
//! `unknown`. Of a release it makes the debug information small enough to ship, for the names and lines of profiles.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SUPERCHAT_COMMIT");
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    announce("SUPERCHAT_RUSTC", output(&compiler, &["--version"]));
    announce("SUPERCHAT_COMMIT", std::env::var("SUPERCHAT_COMMIT").ok().or_else(commit));
    if is_release() {
        println!("cargo::rustc-link-arg-bins=-Wl,--compress-debug-sections=zlib");
    }
}

fn is_release() -> bool {
    std::env::var("PROFILE").is_ok_and(|profile| profile == "release")
}

/// Only for builds that are run somewhere: a debug build would be made anew after every commit.
fn commit() -> Option<String> {
    // A tree without one may lie inside somebody else's checkout, whose commit says nothing about ours.
    if !is_release() || !Path::new(".git").exists() {
        return None;
    }
    // Written at every commit, and wherever else the checkout moves to.
    let log = output("git", &["rev-parse", "--git-path", "logs/HEAD"])?;
    println!("cargo::rerun-if-changed={log}");
    output("git", &["rev-parse", "--short=12", "HEAD"])
}

fn announce(name: &str, value: Option<String>) {
    if let Some(value) = value {
        println!("cargo::rustc-env={name}={value}");
    }
}

/// The line a program prints; `None` when there is no such program, or it fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    let line = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
