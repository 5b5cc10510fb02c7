//! Moving in from the existing server and back (BEHAVIOUR.md 8.3): its files through the real server, what `scd check` says
//! of them, and what ours leaves to the server it came from.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../scenarios/steps.rs"]
#[allow(dead_code, reason = "each test binary uses the part it needs")]
mod steps;

mod arriving;
mod checking;
mod manual;
mod returning;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use superchat::wire::client::AuthRequest;
use superchat::wire::json::{from_hex, to_hex};

use support::link::Fields;
use support::{Client, clock};

/// Runs `scd` in `home` to its end. A start that should have been refused is ended.
fn scd(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap()).current_dir(home);
    let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if clock::poll(support::client::PATIENCE, || child.try_wait().unwrap()).is_none() {
        child.kill().unwrap();
        panic!("{arguments:?} does not end: {:?}", child.wait_with_output());
    }
    child.wait_with_output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Signs in with what a client of the field sends.
fn sign_in_with(client: &mut Client, nickname: &str, secret: &str) -> Fields {
    client.ask(AuthRequest { nickname: nickname.as_bytes(), password_hash: secret.as_bytes() }, "AUTH_RESPONSE")
}

/// The bytes of a text as `hex()` of SQLite shows them, whether it is UTF-8 or not.
fn hex(shown: &Value) -> String {
    let bytes = match shown {
        Value::String(text) => text.as_bytes().to_vec(),
        other => from_hex(other["bytes_hex"].as_str().unwrap_or_else(|| panic!("no text: {other}"))).unwrap(),
    };
    to_hex(&bytes).to_uppercase()
}
