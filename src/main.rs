//! `scd`: command line -> subcommand -> exit code. Wrong usage and wrong configuration end with 2, a failed start with
//! 1; `check-config` answers a wrong configuration with 1, because that is its finding.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use superchat::cli::{self, AdminCommand, Command, DatabaseFlags, FrameCommand, Input, Stop};
use superchat::config::{self, Environment, Flags, Loaded};
use superchat::operator::client as admin;
use superchat::operator::{Order, Reply};
use superchat::wire::json::{JsonError, decode_line, encode_line};
use superchat::{argon2id, backup, client, doctor, manual, server, supervise, support};

/// Unused memory goes back to the system within a second, by a thread of the allocator's own. On average every 512 KiB one
/// allocation is remembered with its stack, and what was freed stays counted: the `heap` and `allocs` profiles.
#[expect(
    unsafe_code,
    reason = "the allocator reads its options from a symbol of this name; a slice begins with its pointer"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0,\
    prof:true,prof_active:true,lg_prof_sample:19,prof_accum:true\0";

/// Its sampling finds out what holds memory, in production too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
        Command::Manual { section } => print(&manual::page(*section)),
        Command::Completions { shell } => print(&manual::completions(*shell)),
        Command::Serve(flags) => serve(&flags.flags()),
        Command::Health { flags, ready } => health(&flags.flags(), *ready),
        Command::Backup { target, keep, verify, database } => with_database(database, |database| {
            let keep = keep.map(|keep| keep as usize);
            Ok((backup::back_up(&backup::Order { database, target, keep, verify: *verify })?, true))
        }),
        Command::Restore { file, database } => {
            with_database(database, |database| Ok((backup::restore(file, database)?, true)))
        }
        Command::Check(database) => with_database(database, |database| {
            let verdict = backup::check(database);
            Ok((verdict.lines, verdict.is_sound))
        }),
        Command::Doctor { json, flags } => doctor(&flags.flags(), *json),
        Command::SupportBundle { output, flags } => support_bundle(&flags.flags(), output.as_deref()),
        Command::Admin { command, json, config, db } => administer(command, *json, config.clone(), db.clone()),
        Command::Frame(FrameCommand::Decode { hex }) => {
            translate(hex, |line| decode_line(line).map(|json| json.to_string()))
        }
        Command::Frame(FrameCommand::Encode { json }) => translate(json, encode_line),
        Command::Channels(connection) => answer(client::channels(connection)),
        Command::Tail { channel, thread, connection } => answer(client::tail(channel, *thread, connection)),
        Command::Post { channel, text, connection } => answer(client::post(channel, text, connection)),
    }
}

fn serve(flags: &Flags) -> ExitCode {
    let _registration = supervise::enter_main();
    let environment = Environment::of_process();
    let mut loaded = match config::load(&environment, flags) {
        Ok(loaded) => loaded,
        Err(error) => return complain(&error.to_string(), WRONG_USAGE),
    };
    loaded.write_missing_file();
    match server::serve(loaded, &environment, flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string(), FAILED),
    }
}

/// The configuration for a command that cannot do without.
fn configured(flags: &Flags) -> Result<Loaded, ExitCode> {
    config::load(&Environment::of_process(), flags).map_err(|error| complain(&error.to_string(), WRONG_USAGE))
}

/// Answers with what `work` makes of the configured database: lines, and whether all is well.
fn with_database(flags: &DatabaseFlags, work: impl FnOnce(&Path) -> Result<(String, bool), String>) -> ExitCode {
    let loaded = match configured(&flags.flags()) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match work(&loaded.settings.server.database_path) {
        Ok((lines, is_well)) => verdict(&lines, is_well),
        Err(line) => complain(&line, FAILED),
    }
}

/// Asks the running server by the address that its configuration names.
fn health(flags: &Flags, ready: bool) -> ExitCode {
    let loaded = match configured(flags) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let Some(address) = loaded.settings.admin.metrics_listen else {
        return complain("metrics_listen is off: there is nobody to ask", FAILED);
    };
    match superchat::admin::health::check(address, ready) {
        Ok(line) => print(&format!("{line}\n")),
        Err(line) => complain(&line, FAILED),
    }
}

/// Has the running server do it.
fn administer(command: &AdminCommand, json: bool, config: Option<PathBuf>, db: Option<OsString>) -> ExitCode {
    let values = db.into_iter().map(|path| ("db", path)).collect();
    let loaded = match configured(&Flags { config, values }) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let socket = Some(&loaded.settings.admin.socket).filter(|path| !path.as_os_str().is_empty());
    if socket.is_some_and(|path| path == Path::new("off")) {
        return complain("[admin] socket is off: there is nobody to ask", FAILED);
    }
    let ask = |order| admin::ask(&loaded.settings.server.database_path, socket.map(PathBuf::as_path), order);
    let answer = match (command.order(), command) {
        (Some(order), _) => ask(order),
        (None, AdminCommand::ResetPassword { nickname, stdin }) => return reset_password(nickname, *stdin, json, ask),
        (None, _) => return complain("that is not to be asked for", WRONG_USAGE),
    };
    tell(answer, json)
}

fn tell(answer: Result<Reply, admin::AdminError>, json: bool) -> ExitCode {
    match answer {
        Ok(reply) if json => print(&format!("{}\n", reply.to_json())),
        Ok(reply) => print(&admin::readable(&reply)),
        Err(error) => complain(&error.to_string(), FAILED),
    }
}

/// A password that is made up is printed once it counts, and nowhere else.
fn reset_password(
    nickname: &str,
    stdin: bool,
    json: bool,
    ask: impl FnOnce(Order) -> Result<Reply, admin::AdminError>,
) -> ExitCode {
    let given = match stdin {
        false => None,
        true => match io::stdin().lines().next() {
            Some(Ok(line)) if !line.is_empty() => Some(line),
            _ => return complain("no password on standard input", WRONG_USAGE),
        },
    };
    let made_up = given.is_none();
    let Some(password) = given.or_else(argon2id::made_up_password) else {
        return complain("the system gives no random numbers", FAILED);
    };
    let Some(password_hash) = argon2id::client_hash(password.as_bytes(), nickname.as_bytes()) else {
        return complain("the password cannot be hashed", FAILED);
    };
    match ask(Order::ResetPassword { nickname: nickname.to_owned(), password_hash }) {
        Ok(Reply::Done(text)) if made_up => tell(Ok(Reply::Done(format!("{text}: {password}"))), json),
        answer => tell(answer, json),
    }
}

/// One line of output per line of input; a line that cannot be translated is told on standard error, and the rest goes on.
fn translate(input: &Input, line: impl Fn(&str) -> Result<String, JsonError>) -> ExitCode {
    let lines: Box<dyn Iterator<Item = io::Result<String>>> = match input {
        Input::Text(text) => Box::new(text.lines().map(|line| Ok(line.to_owned())).collect::<Vec<_>>().into_iter()),
        Input::Stdin => Box::new(io::stdin().lines()),
    };
    let mut code = ExitCode::SUCCESS;
    for text in lines {
        let translated = match text {
            Ok(text) if text.trim().is_empty() => continue,
            Ok(text) => line(&text).map_err(|error| error.to_string()),
            Err(error) => return complain(&format!("cannot read: {error}"), FAILED),
        };
        match translated {
            Ok(text) => {
                if print(&format!("{text}\n")) != ExitCode::SUCCESS {
                    return ExitCode::from(FAILED);
                }
            }
            Err(error) => code = complain(&error, FAILED),
        }
    }
    code
}

fn answer(outcome: Result<(), client::ClientError>) -> ExitCode {
    match outcome {
        Ok(()) | Err(client::ClientError::Unread) => ExitCode::SUCCESS,
        Err(error) => complain(&error.to_string(), FAILED),
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

fn doctor(flags: &Flags, json: bool) -> ExitCode {
    let loaded = match configured(flags) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let report = doctor::examine(&loaded, &doctor::Host::default());
    verdict(&if json { report.json() } else { report.text() }, report.is_well())
}

fn support_bundle(flags: &Flags, output: Option<&Path>) -> ExitCode {
    let loaded = match configured(flags) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match support::collect(&loaded, output) {
        Ok(lines) => print(&lines),
        Err(line) => complain(&line, FAILED),
    }
}

/// Findings are an answer, even when they are bad news.
fn verdict(lines: &str, is_well: bool) -> ExitCode {
    match print(lines) {
        ExitCode::SUCCESS if !is_well => ExitCode::from(FAILED),
        code => code,
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
