//! A Debian host of the test's own: the files of this machine, on which it may do what it wants and changes nothing.
//!
//! An overlay in a mount namespace keeps what is written in memory. It needs root and vanishes with the value.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use tempfile::TempDir;

/// Lower layer is the machine; processes, devices and the project are those of the machine too.
const SET_UP: &str = r#"
set -eu
place=$1 project=$2
mount --make-rprivate /
mount -t tmpfs host "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root"
for folder in proc dev sys; do mount --rbind "/$folder" "$place/root/$folder"; done
mount -t tmpfs run "$place/root/run"
mount --bind "$project" "$place/root$project"
ip link set lo up
echo ready
read -r _
"#;

/// A host that runs as long as the value lives.
#[derive(Debug)]
pub struct Host {
    place: TempDir,
    holder: Child,
    /// The holder ends when this is closed.
    _lifeline: ChildStdin,
}

impl Host {
    /// A host with a network of its own, in which there is only loopback.
    pub fn new() -> Self {
        Self::behind(&["unshare", "--net"])
    }

    /// A host in a network namespace that has a name.
    pub fn in_network(name: &str) -> Self {
        Self::behind(&["ip", "netns", "exec", name])
    }

    fn behind(prefix: &[&str]) -> Self {
        let place = TempDir::with_prefix("host-").unwrap();
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).args(["unshare", "--mount", "bash", "-c", SET_UP, "host"]);
        command.arg(place.path()).arg(env!("CARGO_MANIFEST_DIR"));
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lifeline = holder.stdin.take().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "no namespaces: this test needs root, util-linux and iproute2");
        Self { place, holder, _lifeline: lifeline }
    }

    /// A command that will run on the host, in the environment that root has there.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--net", "chroot"]).arg(self.root());
        command.arg(program).env_clear().current_dir("/").stdin(Stdio::null());
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", "/root").env("LC_ALL", "C.UTF-8");
        command
    }

    /// What a shell on the host prints; the line must succeed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.try_sh(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// How a shell on the host ends.
    pub fn try_sh(&self, line: &str) -> Output {
        self.command("sh").args(["-euc", line]).output().unwrap()
    }

    /// Every file that was written on the host and is still there.
    pub fn written(&self) -> Vec<String> {
        let upper = self.place.path().join("upper");
        let mut find = Command::new("nsenter");
        find.args(["--target", &self.holder.id().to_string(), "--mount", "find"]).arg(upper);
        let output = find.args(["-type", "f", "-printf", "/%P\n"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }
}

/// A program that runs as long as the value lives.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts it and waits for a line of its output that contains `wanted`.
    ///
    /// # Panics
    /// When it ends without.
    #[expect(clippy::disallowed_methods, reason = "a test's thread ends with the test")]
    pub fn start(mut command: Command, wanted: &str) -> Self {
        let mut running = Self(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let found = lines.any(|line| line.contains(wanted));
        assert!(found, "{wanted} was not said: {:?}", running.0.wait());
        // What else it says is read and forgotten, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        running
    }

    /// Its process id, on this machine and on its host.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for its end; `None` after a signal.
    pub fn wait(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// Where the project's file lies, on this machine and on every [`Host`].
pub fn project(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file).display().to_string()
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its end takes the namespaces along, once nothing runs in them.
        let _gone = self.holder.kill();
        let _gone = self.holder.wait();
    }
}
