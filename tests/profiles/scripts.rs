//! The scripts that operators run.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::{GZIP, Site};

#[test]
fn both_are_clean() {
    let scripts = ["profile.sh", "heap-watch.sh"].map(|name| root().join("scripts").join(name));
    let checked = Command::new("shellcheck").args(scripts).output();
    let checked = checked.expect("this test needs shellcheck: apt-get install shellcheck");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn profile_takes_a_profile_and_a_picture() {
    let (site, directory) = (Site::open(), TempDir::with_prefix("profile-").unwrap());
    let (code, output) = run("profile.sh", directory.path(), &["-s", "1", "-p", &site.address.port().to_string()], "");
    assert_eq!(code, Some(0), "{output}");
    let files = files(directory.path());
    assert_eq!(files.len(), 2, "{files:?}");
    let bytes = |end: &str| fs::read(files.iter().find(|file| file.ends_with(end)).unwrap()).unwrap();
    assert!(bytes(".pb.gz").starts_with(&GZIP));
    assert!(String::from_utf8(bytes(".svg")).unwrap().trim_end().ends_with("</svg>"));
    assert!(files.iter().all(|file| output.contains(file.as_str())), "{output}");
}

/// There is no other machine: a stand-in notes what it is asked for, and forwards as ssh would.
#[test]
fn profile_goes_through_a_tunnel_of_its_own() {
    let (site, directory) = (Site::open(), TempDir::with_prefix("profile-").unwrap());
    let bin = directory.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let forward = "#!/usr/bin/python3\n\
        import socket, sys, threading\n\
        open(sys.argv[0] + '.asked', 'w').write(' '.join(sys.argv[1:]))\n\
        near, _, far = sys.argv[sys.argv.index('-L') + 1].partition(':')[2].partition(':')\n\
        host, _, port = far.partition(':')\n\
        def copy(a, b):\n    try:\n        while data := a.recv(65536): b.sendall(data)\n    except OSError: pass\n    b.close()\n\
        for_ever = socket.create_server(('127.0.0.1', int(near)))\n\
        while True:\n    here, _ = for_ever.accept()\n    there = socket.create_connection((host, int(port)))\n    \
        for pair in ((here, there), (there, here)): threading.Thread(target=copy, args=pair, daemon=True).start()\n";
    let ssh = bin.join("ssh");
    fs::write(&ssh, forward).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let port = site.address.port().to_string();
    let output = Command::new(root().join("scripts/profile.sh"))
        .args(["-s", "1", "-p", &port, "-o", "taken", "ops@chat.example.org"])
        .env("PATH", path)
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(&directory.path().join("taken")).len(), 2);
    let asked = fs::read_to_string(bin.join("ssh.asked")).unwrap();
    assert!(asked.ends_with(&format!(":127.0.0.1:{port} ops@chat.example.org")), "{asked}");
}

#[test]
fn a_token_is_shown_and_a_wrong_one_is_an_error_with_a_reason() {
    let (site, directory) = (Site::with_token("s3cret"), TempDir::with_prefix("profile-").unwrap());
    let port = site.address.port().to_string();
    let (code, output) = run("profile.sh", directory.path(), &["-s", "1", "-p", &port], "wrong");
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("401: a bearer token is needed"), "{output}");
    assert_eq!(files(directory.path()), [""; 0], "nothing half taken is left");
    let address = site.address.to_string();
    let (code, output) = run("heap-watch.sh", directory.path(), &["-n", "1", &address], "s3cret");
    assert_eq!((code, files(directory.path()).len()), (Some(0), 1), "{output}");
}

#[test]
fn heap_watch_keeps_the_newest() {
    let (site, directory) = (Site::open(), TempDir::with_prefix("heap-").unwrap());
    let address = site.address.to_string();
    let (code, output) = run("heap-watch.sh", directory.path(), &["-i", "0", "-n", "5", "-k", "3", &address], "");
    assert_eq!(code, Some(0), "{output}");
    let taken: Vec<&str> = output.lines().collect();
    assert_eq!((taken.len(), files(directory.path())), (5, taken[2..].iter().map(|file| (*file).to_owned()).collect()));
    assert!(taken[2..].iter().all(|file| fs::read(file).unwrap().starts_with(&GZIP)));
}

#[test]
fn heap_watch_tells_of_a_server_that_does_not_answer_and_goes_on() {
    let (address, directory) = (crate::free_address().to_string(), TempDir::with_prefix("heap-").unwrap());
    let (code, output) = run("heap-watch.sh", directory.path(), &["-i", "0", "-n", "2", &address], "");
    assert_eq!((code, output.matches("no heap profile: curl:").count()), (Some(1), 2), "{output}");
    assert_eq!(files(directory.path()), [""; 0]);
}

#[test]
fn wrong_usage_has_an_exit_code_of_its_own() {
    let directory = TempDir::with_prefix("usage-").unwrap();
    for (script, arguments) in [
        ("profile.sh", &["-s", "long"][..]),
        ("profile.sh", &["--", "-oProxyCommand=true"]),
        ("profile.sh", &["one", "two"]),
        ("heap-watch.sh", &["-k", "0"]),
        ("heap-watch.sh", &["-i", "0"]),
        ("heap-watch.sh", &["-x"]),
    ] {
        let (code, output) = run(script, directory.path(), arguments, "");
        assert_eq!(code, Some(2), "{script} {arguments:?}: {output}");
        assert!(output.contains(&format!("Usage: {script} ")), "{output}");
    }
}

/// Exit code and output of a script that puts its files into `directory`.
fn run(script: &str, directory: &Path, arguments: &[&str], token: &str) -> (Option<i32>, String) {
    let mut command = Command::new(root().join("scripts").join(script));
    command.arg("-o").arg(directory).args(arguments).env("PROFILE_TOKEN", token);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<String> = entries.filter(|path| path.is_file()).map(|path| path.display().to_string()).collect();
    files.sort();
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
