//! `scd`: command line -> subcommand -> exit code. Wrong usage and wrong configuration end with 2, a failed start with
//! 1; `check-config` answers a wrong configuration with 1, because that is its finding.

use std::io::{self, Write};
use std::process::ExitCode;

use superchat::cli::{self, Command, Stop};
use superchat::config::{self, Environment, Flags};

const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(command) => run(&command),
        Err(Stop::Answer(text)) => print(&text),
        Err(Stop::Usage(line)) => complain(&line, WRONG_USAGE),
    }
}

fn run(command: &Command) -> ExitCode {
    match command {
        Command::CheckConfig(flags) => check_config(&flags.flags()),
        Command::ConfigExample { markdown: true } => print(&config::markdown()),
        Command::ConfigExample { markdown: false } => print(&config::example()),
        _ => complain("this build only knows check-config and config-example", FAILED),
    }
}

fn check_config(flags: &Flags) -> ExitCode {
    match config::load(&Environment::of_process(), flags) {
        Ok(loaded) => {
            for notice in &loaded.notices {
                say(notice);
            }
            for warning in &loaded.warnings {
                say(&format!("warning: {warning}"));
            }
            print(&loaded.report())
        }
        Err(error) => complain(&error.to_string(), FAILED),
    }
}

/// Writes an answer to standard output. A reader that has gone away, as `head` does, is not an error.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => complain(&format!("cannot write: {error}"), FAILED),
        _ => ExitCode::SUCCESS,
    }
}

fn complain(lines: &str, code: u8) -> ExitCode {
    lines.lines().for_each(say);
    ExitCode::from(code)
}

/// Says a line on standard error; when even that is gone there is nobody left to tell.
fn say(line: &str) {
    writeln!(io::stderr(), "scd: {line}").unwrap_or_default();
}
