//! The units, checked by systemd's own tools, and the system calls of a real run against their filter.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use superchat::wire::client::RegisterUser;
use tempfile::TempDir;

use crate::manager::{PATIENCE, tool};
use crate::support::server::free_port;
use crate::support::{Client, clock};

/// What the issue of hardening was settled at: tenths, the lower the better.
const EXPOSURE_MAX: &str = "15";
const UNITS: [&str; 4] =
    ["superchat.service", "superchat.socket", "superchat-backup.service", "superchat-backup.timer"];

fn unit(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)).unwrap()
}

/// Copies of all units that start the program under test: the installed one is not there.
fn copies() -> (TempDir, Vec<PathBuf>) {
    let directory = TempDir::with_prefix("units-").unwrap();
    let copy = |name: &str| {
        let path = directory.path().join(name);
        let scd = concat!("\nExecStart=", env!("CARGO_BIN_EXE_scd"), " ");
        fs::write(&path, unit(name).replace("\nExecStart=scd ", scd)).unwrap();
        path
    };
    let paths = UNITS.iter().map(|name| copy(name)).collect();
    (directory, paths)
}

fn output_of(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn systemd_analyze_finds_nothing_to_say_about_the_units() {
    let (_directory, paths) = copies();
    let verify = |paths: &[PathBuf]| output_of(tool("systemd-analyze", "systemd").arg("verify").args(paths));
    assert_eq!(verify(&paths), (true, String::new()));
    // It exits with 0 on a key that it does not know, so what it says is what counts.
    let broken = paths[0].with_file_name("broken.service");
    fs::write(&broken, unit(UNITS[0]).replace("Restart=", "Restrat=")).unwrap();
    assert!(verify(&[broken]).1.contains("Restrat"), "the tool does not look");
}

#[test]
fn systemd_analyze_rates_the_services_well_protected() {
    let (_directory, paths) = copies();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "service")) {
        let mut command = tool("systemd-analyze", "systemd");
        command.args(["security", "--no-pager", "--offline=true", &format!("--threshold={EXPOSURE_MAX}")]).arg(path);
        let (is_low, report) = output_of(&mut command);
        assert!(is_low && report.contains("Overall exposure level"), "{report}");
    }
}

/// The system calls that `SystemCallFilter=` of a unit allows.
fn allowed(unit: &str) -> BTreeSet<String> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter="));
    lines.fold(BTreeSet::new(), |mut allowed, line| {
        let (removes, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        for call in names.split_whitespace().flat_map(members) {
            if removes {
                allowed.remove(&call)
            } else {
                allowed.insert(call)
            };
        }
        allowed
    })
}

/// A system call, or those of a group and of the groups in it.
fn members(name: &str) -> Vec<String> {
    if !name.starts_with('@') {
        return vec![name.to_owned()];
    }
    let (is_known, text) = output_of(tool("systemd-analyze", "systemd").args(["syscall-filter", "--no-pager", name]));
    assert!(is_known, "{text}");
    let calls = text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    calls.flat_map(members).collect()
}

/// The server under strace, as an ordinary user where the test itself is root: as root SQLite and others do more.
struct Traced {
    strace: Child,
    home: TempDir,
    port: u16,
}

impl Traced {
    const NOBODY: u32 = 65_534;

    fn start(metrics: SocketAddr) -> Self {
        let home = TempDir::with_prefix("scd-").unwrap();
        let file = |name: &str| home.path().join(name);
        fs::copy(env!("CARGO_BIN_EXE_scd"), file("scd")).unwrap();
        let config = format!(
            "[server]\nssh_port = 0\nhttp_port = 0\n[admin]\nmetrics_listen = '{metrics}'\nprofile_listen = 'off'\n"
        );
        fs::write(file("config.toml"), config).unwrap();
        let port = free_port();
        let mut command = tool("strace", "strace");
        command.args(["-f", "-qq", "-c", "-S", "name", "-U", "name", "-o"]).arg(file("calls")).arg(file("scd"));
        command.args(["--port", &port.to_string(), "--db"]).arg(file("chat.db"));
        command.arg("--config").arg(file("config.toml"));
        command.env_clear().env("HOME", home.path()).current_dir(home.path()).stdin(Stdio::null());
        let output = File::create(file("output")).unwrap();
        command.stdout(output.try_clone().unwrap()).stderr(output);
        if fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            for name in ["", "config.toml"] {
                chown(file(name), Some(Self::NOBODY), Some(Self::NOBODY)).unwrap();
            }
            fs::set_permissions(file("scd"), Permissions::from_mode(0o755)).unwrap();
            command.uid(Self::NOBODY).gid(Self::NOBODY);
        }
        Self { strace: command.spawn().unwrap(), home, port }
    }

    fn output(&self) -> String {
        fs::read_to_string(self.home.path().join("output")).unwrap()
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The server's own process, strace's only child.
    fn server(&self) -> libc::pid_t {
        let children = format!("/proc/{0}/task/{0}/children", self.strace.id());
        fs::read_to_string(children).unwrap().trim().parse().unwrap()
    }

    #[expect(unsafe_code, reason = "the standard library has no kill(2); it touches no memory")]
    fn signal(&self, number: libc::c_int) {
        // SAFETY: no pointers; the id is that of a child that strace has not waited for.
        assert_eq!(unsafe { libc::kill(self.server(), number) }, 0);
    }

    /// Waits for text in the output.
    fn says(&self, text: &str) {
        let said = clock::poll(PATIENCE, || self.output().contains(text).then_some(()));
        said.unwrap_or_else(|| panic!("never said {text}:\n{}", self.output()));
    }

    /// What it called, by name.
    fn calls(mut self) -> BTreeSet<String> {
        self.signal(libc::SIGTERM);
        assert!(self.strace.wait().unwrap().success(), "{}", self.output());
        let table = fs::read_to_string(self.home.path().join("calls")).unwrap();
        let is_call = |word: &&str| !word.starts_with('-') && !["syscall", "total"].contains(word);
        table.split_whitespace().filter(is_call).map(str::to_owned).collect()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        if let Ok(None) = self.strace.try_wait() {
            self.signal(libc::SIGKILL);
            self.strace.wait().unwrap();
        }
    }
}

#[test]
fn every_system_call_of_a_running_server_is_allowed_by_the_unit() {
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let traced = Traced::start(metrics);
    traced.says("Server started on port");
    let mut client = Client::named(traced.address(), "traced");
    let secret = b"kXr0mB3vV1n9oZ4yQ2LwxsCt7uJ5eHdPaGfIiKlMnOp";
    assert_eq!(client.ask(RegisterUser { password_hash: secret }, "REGISTER_RESPONSE")["success"], true);
    client.send_json(
        "POST_MESSAGE",
        serde_json::json!({ "channel_id": "1", "subchannel_id": null, "parent_id": null, "content": "hello" }),
    );
    client.expect_reply("MESSAGE_POSTED");
    for path in ["/metrics", "/status", "/health", "/readyz"] {
        let mut stream = TcpStream::connect(metrics).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {metrics}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("200 OK"), "{answer}");
    }
    traced.signal(libc::SIGHUP);
    traced.says("configuration reloaded");
    drop(client);
    let (calls, allowed) = (traced.calls(), allowed(&unit("superchat.service")));
    for expected in ["accept4", "epoll_wait", "fsync", "futex"] {
        assert!(calls.contains(expected) && allowed.contains(expected), "{expected}: {calls:?}");
    }
    assert!(!allowed.contains("ptrace") && !allowed.contains("mount") && !allowed.contains("setuid"), "{allowed:?}");
    let refused: Vec<_> = calls.difference(&allowed).collect();
    assert!(refused.is_empty(), "the unit forbids {refused:?}");
}

#[test]
fn the_socket_of_the_unit_is_the_one_the_server_asks_for() {
    let socket = unit("superchat.socket");
    assert!(socket.lines().any(|line| line == "FileDescriptorName=chat"));
    assert!(socket.lines().any(|line| line == "ListenStream=6465"));
}
