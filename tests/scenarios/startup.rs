//! Starts that fail, and flags: one clear line, the right exit code, nothing left behind (BEHAVIOUR.md 9.1, 9.3).

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::client::PATIENCE;
use crate::support::{Client, Server, Settings, clock};

/// A configuration in which only the chat port is on.
const QUIET: &str =
    "[server]\nssh_port = 0\nhttp_port = 0\n[admin]\nmetrics_listen = \"off\"\nprofile_listen = \"off\"\n";

/// A directory of its own for one `scd`.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::with_prefix("scd-").unwrap());
        fs::write(place.path().join("config.toml"), QUIET).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
        command.env_clear().env("HOME", self.path()).env("XDG_DATA_HOME", self.path().join("data"));
        command.current_dir(self.path()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `scd` to its end.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if clock::poll(PATIENCE, || child.try_wait().unwrap()).is_none() {
            child.kill().unwrap();
            panic!("{arguments:?} does not end: {:?}", child.wait_with_output());
        }
        child.wait_with_output().unwrap()
    }

    /// Files and directories, but for the log, which tells of the failure too.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut files: Vec<_> = entries.filter(|name| name != "data").collect();
        files.sort();
        files
    }
}

/// The start fails with `code` and one line on standard error that begins and ends so, and makes no file.
fn check(place: &Place, arguments: &[&str], code: i32, says: &str, advises: &str) {
    let before = place.files();
    let output = place.run(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("scd: ") && stderr.contains(says), "{stderr:?} does not say {says:?}");
    assert!(stderr.trim_end().ends_with(advises), "{stderr:?} does not advise {advises:?}");
    assert_eq!(place.files(), before, "{arguments:?}");
}

fn free_port() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port().to_string()
}

mod failures {
    use super::*;

    #[test]
    fn a_taken_port_is_named() {
        let (place, taken) = (Place::new(), TcpListener::bind(("0.0.0.0", 0)).unwrap());
        let port = taken.local_addr().unwrap().port().to_string();
        let says = format!("cannot listen on 0.0.0.0:{port}: Address already in use");
        let advises = "free the port or set [server] tcp_port";
        check(&place, &["--config", "config.toml", "--port", &port, "--db", "new.db"], 1, &says, advises);
    }

    #[test]
    fn a_taken_metrics_port_is_named() {
        let (place, taken) = (Place::new(), TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let address = taken.local_addr().unwrap();
        fs::write(
            place.path().join("config.toml"),
            QUIET.replace("listen = \"off\"\nprofile", &format!("listen = \"{address}\"\nprofile")),
        )
        .unwrap();
        let says = format!("cannot serve metrics on {address}: Address already in use");
        let advises = "free the port or set [admin] metrics_listen";
        check(&place, &["--config", "config.toml", "--port", &free_port(), "--db", "new.db"], 1, &says, advises);
    }

    #[test]
    fn a_database_below_a_file_is_refused() {
        let place = Place::new();
        fs::write(place.path().join("plain"), "").unwrap();
        let arguments = ["--config", "config.toml", "--port", &free_port(), "--db", "plain/new.db"];
        check(&place, &arguments, 1, "plain/new.db: Not a directory", "name another place with --db");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
        let place = Place::new();
        let garbage = "once upon a time, long before the first page of a database";
        fs::write(place.path().join("old.db"), garbage).unwrap();
        let arguments = ["--config", "config.toml", "--port", &free_port(), "--db", "old.db"];
        check(
            &place,
            &arguments,
            1,
            "old.db is not a SQLite database",
            "name the right file with --db, or move this one away",
        );
        assert_eq!(fs::read_to_string(place.path().join("old.db")).unwrap(), garbage);
    }

    #[test]
    fn a_second_server_on_the_same_database_is_refused_and_the_first_goes_on() {
        let server = Server::start(Settings::new());
        let (place, database) = (Place::new(), server.database().display().to_string());
        let says = format!("it is in use by another server (pid {})", server.pid());
        let arguments = ["--config", "config.toml", "--port", &free_port(), "--db", &database];
        check(&place, &arguments, 1, &says, "stop that server or name another database");
        server.client().quiet();
    }

    #[test]
    fn wrong_settings_name_their_key_and_the_nearest_right_one() {
        let cases = [
            ("[server]\ntcp_prot = 1\n", "[server] tcp_prot is not known", "did you mean [server] tcp_port?"),
            ("[sever]\ntcp_port = 1\n", "is not known", "did you mean [server]?"),
            ("[server]\ntcp_port = \"many\"\n", "[server] tcp_port", "is not a whole number"),
            ("[server]\ntcp_port = 65536\n", "[server] tcp_port", "65536"),
            ("[limits]\nsession_timeout_seconds = -1\n", "[limits] session_timeout_seconds", "-1"),
        ];
        for (file, says, also) in cases {
            let place = Place::new();
            fs::write(place.path().join("wrong.toml"), file).unwrap();
            let output = place.run(&["--config", "wrong.toml", "--db", "new.db"]);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
            assert!(stderr.contains(says) && stderr.contains(also), "{stderr}");
            assert_eq!(place.files(), ["config.toml", "wrong.toml"]);
            assert!(!place.path().join("data").exists());
        }
    }

    #[test]
    fn wrong_flags_end_with_two_and_create_nothing() {
        let place = Place::new();
        check(&place, &["--prot", "1"], 2, "unexpected argument '--prot'", "did you mean --port?; see scd --help");
        check(&place, &["--port", "many"], 2, "flag --port: [server] tcp_port", "is not a whole number");
        check(&place, &["--port", "70000"], 2, "flag --port: [server] tcp_port", "");
        assert!(!place.path().join("data").exists());
    }
}

mod flags {
    use super::*;

    /// Starts `scd` with `arguments` and hands a client over once it serves on `port`.
    fn check_serves(place: &Place, port: &str, arguments: &[&str]) -> Client {
        let mut command = place.command(arguments);
        let mut child = Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        let listens = clock::poll(PATIENCE, || match child.0.try_wait().unwrap() {
            Some(status) => panic!("{arguments:?} ended, {status}"),
            None => std::net::TcpStream::connect(address).ok(),
        });
        assert!(listens.is_some(), "{arguments:?} does not serve on {port}");
        let mut client = Client::connect(address);
        client.quiet();
        client
    }

    struct Killed(std::process::Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn one_dash_or_two_equals_sign_or_space_and_with_or_without_serve() {
        let port = free_port();
        let (joined, joined_long) = (format!("-port={port}"), format!("--port={port}"));
        let spellings: [&[&str]; 6] = [
            &["-config", "config.toml", "-port", &port, "-db", "new.db"],
            &["-config=config.toml", &joined, "-db=new.db"],
            &["--config", "config.toml", "--port", &port, "--db", "new.db"],
            &["--config=config.toml", &joined_long, "--db=new.db"],
            &["serve", "-config", "config.toml", "--port", &port, "-db=new.db"],
            &["-debug", "--disable-directory", "-config", "config.toml", "-port", &port, "-db", "new.db"],
        ];
        for spelling in spellings {
            let place = Place::new();
            let client = check_serves(&place, &port, spelling);
            assert!(place.path().join("new.db").exists(), "{spelling:?}");
            let directory = !spelling.contains(&"--disable-directory");
            assert_eq!(client.config["directory_enabled"], directory, "{spelling:?}");
            let debug_log = place.path().join("data/superchat/debug.log").exists();
            assert_eq!(debug_log, spelling.contains(&"-debug"), "{spelling:?}");
        }
    }

    #[test]
    fn port_zero_is_the_configured_one_and_flags_outweigh_the_file() {
        let place = Place::new();
        let (configured, given) = (free_port(), free_port());
        let file = QUIET.replace("[server]\n", &format!("[server]\ntcp_port = {configured}\n"));
        fs::write(place.path().join("config.toml"), file).unwrap();
        check_serves(&place, &configured, &["-config", "config.toml", "-port", "0", "-db", "new.db"]);
        check_serves(&place, &given, &["-config", "config.toml", "-port", &given, "-db", "new.db"]);
    }

    #[test]
    fn the_name_and_description_flags_show_in_the_server_list() {
        let place = Place::new();
        let port = free_port();
        let arguments = [
            "-config=config.toml",
            "-port",
            &port,
            "-db=new.db",
            "-server-name",
            "Zoo",
            "--server-description=Animals",
        ];
        let mut command = place.command(&arguments);
        let _running = Killed(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        clock::poll(PATIENCE, || std::net::TcpStream::connect(address).ok()).expect("does not serve");
        let mut client = Client::connect(address);
        client.send_json("LIST_SERVERS", serde_json::json!({ "limit": 0 }));
        let own = client.expect_reply("SERVER_LIST")["servers"][0].clone();
        assert_eq!((&own["name"], &own["description"]), (&"Zoo".into(), &"Animals".into()), "{own}");
    }

    #[test]
    fn version_is_printed_in_every_spelling() {
        let place = Place::new();
        for spelling in ["--version", "-version", "-V"] {
            let output = place.run(&[spelling]);
            let line = format!("SuperChat Server {}\n", env!("CARGO_PKG_VERSION"));
            assert_eq!((output.status.code(), output.stdout), (Some(0), line.into_bytes()), "{spelling}");
        }
    }
}
