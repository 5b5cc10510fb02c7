//! The command line: subcommands, flags, and their help. Without a subcommand `scd` serves.
//!
//! Flags may be written as the existing server takes them, `-port 7000` and `-port=7000`, besides `--port`
//! (BEHAVIOUR.md 9.3). Values of settings stay text here: the table of settings checks them.

mod admin;

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub use self::admin::AdminCommand;
use crate::config::{Endpoint, Flags};

/// What `scd` is asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server; what happens without a subcommand too
    Serve(SettingFlags),
    /// Show every setting with its value and where it comes from, without starting
    CheckConfig(SettingFlags),
    /// Print a configuration file with every setting explained and commented out
    ConfigExample {
        /// Print a reference of all settings in Markdown instead
        #[arg(long)]
        markdown: bool,
    },
    /// Print a manual page, for `man`
    Manual {
        /// 1 = this command, 5 = the configuration file
        #[arg(long, value_name = "N", default_value = "1")]
        section: Section,
    },
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Ask the running server on this machine whether it is well; exits with 0 or 1
    Health {
        #[command(flatten)]
        flags: SettingFlags,
        /// Ask whether clients may be sent to it, not only whether it works
        #[arg(long)]
        ready: bool,
    },
    /// Copy the database while the server runs
    Backup {
        /// A file that does not exist yet, or a directory: then the copy is named superchat-YYYYMMDDTHHMMSSZ.db
        target: PathBuf,
        /// Keep this many backups in the directory, and remove older ones of that name
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        /// Restore the copy into a temporary file, check it, and count it against the database
        #[arg(long)]
        verify: bool,
        #[command(flatten)]
        database: DatabaseFlags,
    },
    /// Put a backup in the place of the database of a stopped server; the old one is kept
    Restore {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        database: DatabaseFlags,
    },
    /// Look at a database without touching it: is it whole, and what would the server change; exits with 0 or 1
    Check(DatabaseFlags),
    /// Check this host and what the server finds here, with what to do about it; exits with 1 if anything fails
    Doctor {
        /// Print the findings as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: SettingFlags,
    },
    /// Collect what helps to find a fault into one archive: no message, no secret
    SupportBundle {
        /// The archive to write [default: superchat-support-YYYYMMDDTHHMMSSZ.tar.gz]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        flags: SettingFlags,
    },
    /// Administer the running server: accounts, bans, channels, sessions
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
        /// Print the answer as JSON
        #[arg(long, global = true)]
        json: bool,
        /// Configuration file of the server
        #[arg(long, value_name = "PATH", global = true)]
        config: Option<PathBuf>,
        /// Database file of the server
        #[arg(long, value_name = "PATH", global = true)]
        db: Option<OsString>,
    },
    /// Translate frames of the protocol between hexadecimal and JSON, line by line
    #[command(subcommand)]
    Frame(FrameCommand),
    /// List the channels of a server
    Channels(Connection),
    /// Follow a channel: print each message as it arrives
    Tail {
        /// Name of the channel
        channel: String,
        /// Follow only the thread that this message began
        #[arg(long, value_name = "ID")]
        thread: Option<u64>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Post a message to a channel
    Post {
        /// Name of the channel
        channel: String,
        /// The message; `-` reads it from standard input
        #[arg(default_value = "-", hide_default_value = true)]
        text: Input,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Sections of the manual that have a page of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// `scd(1)`
    #[value(name = "1")]
    Commands,
    /// `superchat-config(5)`
    #[value(name = "5")]
    Files,
}

impl Section {
    /// As `man` is asked for it.
    pub fn number(self) -> &'static str {
        match self {
            Self::Commands => "1",
            Self::Files => "5",
        }
    }
}

/// Direction of `scd frame`.
#[derive(Debug, Subcommand)]
pub enum FrameCommand {
    /// Hexadecimal to JSON
    Decode {
        /// A frame in hexadecimal; `-` reads one per line from standard input
        #[arg(default_value = "-", hide_default_value = true)]
        hex: Input,
    },
    /// JSON to hexadecimal
    Encode {
        /// A message in JSON; `-` reads one per line from standard input
        #[arg(default_value = "-", hide_default_value = true)]
        json: Input,
    },
}

/// A text from the command line or, for `-`, from standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Read it from standard input.
    Stdin,
    /// This one.
    Text(String),
}

impl FromStr for Input {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "-" { Self::Stdin } else { Self::Text(text.to_owned()) })
    }
}

/// The server that a client command talks to, and as whom.
#[derive(Debug, Args)]
pub struct Connection {
    /// Address of the server; the port is 6465 unless given
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6465")]
    pub server: Endpoint,
    /// Nickname to use
    #[arg(long, value_name = "NAME")]
    pub nick: Option<String>,
}

/// Which database a command works on; the server's own unless said otherwise.
#[derive(Debug, Default, Args)]
pub struct DatabaseFlags {
    /// Configuration file that names the database
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Database file
    #[arg(long, value_name = "PATH")]
    db: Option<OsString>,
}

impl DatabaseFlags {
    /// The flags as the table of settings asks for them.
    pub fn flags(&self) -> Flags {
        let values = self.db.iter().map(|path| ("db", path.clone()));
        Flags { config: self.config.clone(), values: values.collect() }
    }
}

/// Flags that concern settings. Each outweighs environment and configuration file.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingFlags {
    /// Configuration file; written, all commented out, if it does not exist
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// TCP port of the protocol
    #[arg(long, value_name = "N")]
    port: Option<OsString>,
    /// Database file
    #[arg(long, value_name = "PATH")]
    db: Option<OsString>,
    /// Keep no directory of other servers
    #[arg(long)]
    disable_directory: bool,
    /// Directories to register at, separated by commas
    #[arg(long, value_name = "HOST:PORT,...")]
    announce_to: Option<OsString>,
    /// Name of this server in directories
    #[arg(long, value_name = "NAME")]
    server_name: Option<OsString>,
    /// Description of this server in directories
    #[arg(long, value_name = "TEXT")]
    server_description: Option<OsString>,
    /// How much is logged: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<OsString>,
    /// Form of log lines: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<OsString>,
    /// Write debug.log too
    #[arg(long)]
    debug: bool,
}

impl SettingFlags {
    /// The flags as the table of settings asks for them. `--port 0` counts as not given (BEHAVIOUR.md 9.3).
    pub fn flags(&self) -> Flags {
        let switch = |on: bool, value: &str| on.then(|| OsString::from(value));
        let values = [
            ("port", self.port.clone().filter(|port| port != "0")),
            ("db", self.db.clone()),
            ("disable-directory", switch(self.disable_directory, "false")),
            ("announce-to", self.announce_to.clone()),
            ("server-name", self.server_name.clone()),
            ("server-description", self.server_description.clone()),
            ("log-level", self.log_level.clone()),
            ("log-format", self.log_format.clone()),
            ("debug", switch(self.debug, "true")),
        ];
        let given = values.into_iter().filter_map(|(name, value)| Some((name, value?)));
        Flags { config: self.config.clone(), values: given.collect() }
    }
}

/// Why nothing is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Help or version was asked for: a text for standard output, and success.
    Answer(String),
    /// The command line is wrong: a line for standard error that says what to do, and exit code 2.
    Usage(String),
}

#[derive(Debug, Parser)]
#[command(
    name = "scd",
    display_name = "SuperChat Server",
    bin_name = "scd",
    version,
    about = "SuperChat server: threaded chat over a binary protocol, one binary, one SQLite file",
    after_help = "Every setting, its default and its name in file and environment: scd config-example",
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(flatten)]
    flags: SettingFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The command line as it is defined: what help, manual page and completions are made from.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Reads the command line; `arguments` begins with the name of the program.
///
/// # Errors
/// [`Stop`] when there is nothing to be done but to print a text.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Stop> {
    let cli = Cli::try_parse_from(with_two_dashes(arguments)).map_err(stop)?;
    Ok(cli.command.unwrap_or(Command::Serve(cli.flags)))
}

fn stop(error: clap::Error) -> Stop {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Answer(error.to_string()),
        _ => Stop::Usage(one_line(&error)),
    }
}

/// What is wrong, the nearest right thing where there is one, and where to read on.
fn one_line(error: &clap::Error) -> String {
    let fault = match error.kind() {
        // Its text is a whole help page.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a subcommand is missing".to_owned(),
        _ => first_paragraph(&error.to_string()),
    };
    let hint = match error.kind() {
        ErrorKind::ArgumentConflict => Some("; flags stand behind the subcommand".to_owned()),
        _ => nearest(error).map(|name| format!("; did you mean {name}?")),
    };
    format!("{fault}{}; see scd --help", hint.unwrap_or_default())
}

fn first_paragraph(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").map_or(line.clone(), str::to_owned)
}

fn nearest(error: &clap::Error) -> Option<&ContextValue> {
    let kinds = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
    kinds.into_iter().find_map(|kind| error.get(kind))
}

/// Writes the long flags that have one dash with two, up to a `--`. A value that follows its flag is joined to it, so
/// that it is never taken for a flag.
fn with_two_dashes(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut command = Cli::command();
    command.build();
    let mut arguments = arguments.into_iter();
    let mut out: Vec<OsString> = arguments.next().into_iter().collect();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            out.push(argument);
            break;
        }
        out.push(match long_flag(&command, &argument) {
            Some((flag, true)) => match arguments.next() {
                Some(value) => joined(&flag, &value),
                None => flag,
            },
            Some((flag, false)) => flag,
            None => argument,
        });
    }
    out.extend(arguments);
    out
}

/// The flag of `scd` that `argument` names, with two dashes, and whether the next argument is its value.
fn long_flag(command: &clap::Command, argument: &OsStr) -> Option<(OsString, bool)> {
    let text = argument.to_str()?;
    let name_and_value = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    let (name, value) =
        name_and_value.split_once('=').map_or((name_and_value, None), |(name, value)| (name, Some(value)));
    let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name))?;
    Some((format!("--{name_and_value}").into(), flag.get_action().takes_values() && value.is_none()))
}

fn joined(flag: &OsStr, value: &OsStr) -> OsString {
    let mut joined = flag.to_owned();
    joined.push("=");
    joined.push(value);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TABLE;

    fn run(arguments: &[&str]) -> Result<Command, Stop> {
        parse(std::iter::once("scd").chain(arguments.iter().copied()).map(OsString::from))
    }

    fn check_serve(arguments: &[&str], wanted: &[(&str, &str)]) {
        let command = run(arguments);
        let Ok(Command::Serve(flags)) = command else { panic!("{arguments:?} gave {command:?}") };
        let flags = flags.flags();
        let given: Vec<(&str, &str)> =
            flags.values.iter().map(|(name, value)| (*name, value.to_str().expect("text"))).collect();
        assert_eq!(given, wanted, "{arguments:?}");
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_the_table_is_a_flag_of_the_command_line() {
        let all = SettingFlags {
            config: None,
            port: Some("1".into()),
            db: Some("x".into()),
            disable_directory: true,
            announce_to: Some("x".into()),
            server_name: Some("x".into()),
            server_description: Some("x".into()),
            log_level: Some("x".into()),
            log_format: Some("x".into()),
            debug: true,
        };
        let given: Vec<_> = all.flags().values.into_keys().collect();
        let mut wanted: Vec<_> = TABLE.iter().filter_map(|entry| entry.rule.flag).collect();
        wanted.sort_unstable();
        assert_eq!(given, wanted);
        let mut long: Vec<_> =
            Cli::command().get_arguments().filter_map(|flag| flag.get_long().map(str::to_owned)).collect();
        long.retain(|name| name != "config");
        long.sort_unstable();
        assert_eq!(long, wanted);
    }

    #[test]
    fn flags_are_taken_in_every_spelling() {
        for arguments in [
            &["-port", "7000"][..],
            &["-port=7000"],
            &["--port", "7000"],
            &["--port=7000"],
            &["serve", "-port", "7000"],
        ] {
            check_serve(arguments, &[("port", "7000")]);
        }
    }

    #[test]
    fn a_value_is_never_taken_for_a_flag() {
        check_serve(&["-server-name", "-debug", "-db", "x"], &[("db", "x"), ("server-name", "-debug")]);
        check_serve(&["--port", "-5"], &[("port", "-5")]);
    }

    #[test]
    fn nothing_and_port_zero_serve_with_what_is_configured() {
        check_serve(&[], &[]);
        check_serve(&["--port", "0"], &[]);
    }

    #[test]
    fn switches_become_values_of_their_setting() {
        check_serve(&["-debug", "-disable-directory"], &[("debug", "true"), ("disable-directory", "false")]);
    }

    #[test]
    fn version_and_help_are_answers() {
        let version = format!("SuperChat Server {}\n", env!("CARGO_PKG_VERSION"));
        for spelling in ["--version", "-version", "-V"] {
            assert_eq!(run(&[spelling]).expect_err("no command"), Stop::Answer(version.clone()));
        }
        for spelling in ["--help", "-help", "-h"] {
            let Err(Stop::Answer(help)) = run(&[spelling]) else { panic!("{spelling} is no answer") };
            assert!(help.contains("--announce-to") && help.contains("check-config"), "{help}");
        }
    }

    #[test]
    fn wrong_usage_is_one_line_that_says_what_to_do() {
        let cases = [
            (&["--prot", "1"][..], "unexpected argument '--prot' found; did you mean --port?; see scd --help"),
            (&["chanels"], "unrecognized subcommand 'chanels'; did you mean channels?; see scd --help"),
            (&["frame"], "a subcommand is missing; see scd --help"),
            (
                &["--debug", "check-config"],
                "the subcommand 'check-config' cannot be used with '--debug'; flags stand behind the subcommand; see scd \
                 --help",
            ),
            (&["tail"], "the following required arguments were not provided: <CHANNEL>; see scd --help"),
        ];
        for (arguments, line) in cases {
            assert_eq!(run(arguments).expect_err("wrong"), Stop::Usage(line.to_owned()), "{arguments:?}");
        }
        for arguments in [&["--port"][..], &["channels", "--server", "a b"]] {
            let Err(Stop::Usage(line)) = run(arguments) else { panic!("{arguments:?} is accepted") };
            assert!(!line.contains('\n') && line.ends_with("; see scd --help"), "{line}");
        }
    }

    #[test]
    fn client_commands_know_server_nickname_and_text() {
        let Ok(Command::Post { channel, text, connection }) =
            run(&["post", "general", "hello", "--server", "chat.example.org", "--nick", "ada"])
        else {
            panic!("post is refused");
        };
        assert_eq!((channel.as_str(), text), ("general", Input::Text("hello".to_owned())));
        assert_eq!(connection.server.to_string(), "chat.example.org:6465");
        assert_eq!(connection.nick.as_deref(), Some("ada"));
        for arguments in [&["post", "general"][..], &["post", "general", "-"]] {
            let Ok(Command::Post { text, .. }) = run(arguments) else { panic!("{arguments:?} is refused") };
            assert_eq!(text, Input::Stdin);
        }
        let Ok(Command::Tail { thread, .. }) = run(&["tail", "general", "--thread", "7"]) else {
            panic!("tail is refused");
        };
        assert_eq!(thread, Some(7));
    }
}
