//! `scripts/install.sh`, run on hosts of the test's own.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use support::host::{Host, project};

/// What an installation leaves, with mode and owner, in the form of `stat`.
const INSTALLED: &[(&str, &str)] = &[
    ("/usr/local/bin/scd", "755 root:root"),
    ("/usr/local/share/man/man1/scd.1", "644 root:root"),
    ("/usr/local/share/man/man5/superchat-config.5", "644 root:root"),
    ("/usr/local/share/bash-completion/completions/scd", "644 root:root"),
    ("/etc/systemd/system/superchat.service", "644 root:root"),
    ("/etc/systemd/system/superchat-backup.timer", "644 root:root"),
    ("/etc/systemd/system/multi-user.target.wants/superchat.service", "777 root:root"),
    ("/etc/logrotate.d/superchat", "644 root:root"),
];

/// What only a purge removes.
const KEPT: &[(&str, &str)] = &[
    ("/etc/superchat", "750 root:superchat"),
    ("/etc/superchat/config.toml", "640 root:superchat"),
    ("/var/lib/superchat", "750 superchat:superchat"),
];

/// Where an account leaves traces even when it is gone again.
const ACCOUNTS: &[&str] =
    &["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/subuid", "/etc/subgid", "/etc/.pwd.lock"];

#[test]
fn what_is_installed_belongs_to_whom_it_should() {
    let host = Host::new();
    install(&host, "");
    for (path, wanted) in INSTALLED.iter().chain(KEPT) {
        assert_eq!(host.sh(&format!("stat -c '%a %U:%G' {path}")), format!("{wanted}\n"), "{path}");
    }
    assert_eq!(host.sh("getent passwd superchat | cut -d : -f 6,7"), "/var/lib/superchat:/usr/sbin/nologin\n");
    assert!(host.sh("cat /etc/systemd/system/superchat.service").contains("\nExecStart=/usr/local/bin/scd "));
    assert!(host.sh("scd --version").starts_with("SuperChat Server "));
    let as_superchat = "STATE_DIRECTORY=/var/lib/superchat setpriv --reuid superchat --regid superchat --clear-groups";
    host.sh(&format!("{as_superchat} scd check-config --config /etc/superchat/config.toml"));
}

#[test]
fn installing_again_changes_nothing_and_an_upgrade_keeps_the_configuration() {
    let host = Host::new();
    install(&host, "");
    let installed = "sha256sum /usr/local/bin/scd /etc/systemd/system/superchat*; stat -c %i /usr/local/bin/scd";
    let before = host.sh(installed);
    let said = install(&host, "");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(host.sh(installed), before);

    host.sh("echo '[server]\ntcp_port = 7000' > /etc/superchat/config.toml; echo old > /usr/local/bin/scd");
    host.sh("echo '# mine' > /etc/systemd/system/superchat.service");
    install(&host, "");
    assert_eq!(host.sh("cat /etc/systemd/system/superchat.service~"), "# mine\n");
    assert_eq!(host.sh(installed).lines().next(), before.lines().next(), "the old binary is still there");
    assert_eq!(host.sh("tail -n 1 /etc/superchat/config.toml"), "tcp_port = 7000\n");
}

#[test]
fn a_configuration_that_the_new_binary_does_not_understand_stops_the_upgrade() {
    let host = Host::new();
    host.sh("mkdir /etc/superchat; echo '[server]\ntcp_prot = 7000' > /etc/superchat/config.toml");
    let output = host.try_sh(&script(""));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("tcp_prot") && said.contains("nothing was changed"), "{said}");
    host.sh("! test -e /usr/local/bin/scd && ! getent passwd superchat");
}

#[test]
fn an_uninstalled_server_leaves_its_data_and_a_purge_nothing() {
    let host = Host::new();
    install(&host, "");
    host.sh("touch /var/lib/superchat/superchat.db");
    let said = host.sh(&script("--uninstall"));
    assert!(said.contains("kept: /etc/superchat, /var/lib/superchat"), "{said}");
    for (path, _) in INSTALLED {
        host.sh(&format!("! test -e {path}"));
    }
    host.sh("test -e /var/lib/superchat/superchat.db && test -e /etc/superchat/config.toml");

    host.sh(&script("--uninstall --purge"));
    for (path, _) in KEPT {
        host.sh(&format!("! test -e {path}"));
    }
    host.sh("! getent passwd superchat");
    let mut left = host.written();
    left.retain(|path| !path.starts_with("/var/log/") && !ACCOUNTS.contains(&path.trim_end_matches('-')));
    assert!(left.is_empty(), "{left:?}");
    host.sh(&script("--uninstall --purge"));
}

/// systemd is not there to be run: a stand-in notes what it is asked for.
#[test]
fn a_running_systemd_hears_of_new_units_and_restarts_what_changed_only() {
    let host = Host::new();
    host.sh("mkdir -p /run/systemd/system /tmp/bin");
    host.sh("printf '#!/bin/sh\necho \"$*\" >> /tmp/asked\n' > /tmp/bin/systemctl; chmod +x /tmp/bin/systemctl");
    let asked = |arguments: &str| {
        host.sh(&format!(": > /tmp/asked; PATH=/tmp/bin:$PATH {}", script(arguments)));
        host.sh("cat /tmp/asked")
    };
    let units = "superchat.service superchat-backup.timer\n";
    assert_eq!(asked(""), format!("--quiet enable {units}daemon-reload\nrestart {units}"));
    assert_eq!(asked(""), "", "nothing changed");
    host.sh("echo >> /etc/systemd/system/superchat.service");
    assert_eq!(asked(""), format!("daemon-reload\ntry-restart {units}"), "what was disabled or stopped stays so");
    assert_eq!(asked("--dry-run"), "");
    let ended = asked("--uninstall");
    assert!(ended.contains("--quiet stop superchat.service\n--quiet disable superchat.service\n"), "{ended}");
    assert!(ended.ends_with("daemon-reload\n"), "{ended}");
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let host = Host::new();
    let said = install(&host, "--dry-run");
    assert!(said.contains("would run: systemd-sysusers") && said.contains("/usr/local/bin/scd"), "{said}");
    host.sh("! test -e /usr/local/bin/scd && ! getent passwd superchat && ! test -e /etc/superchat");
}

#[test]
fn a_root_directory_gets_everything_and_the_host_nothing() {
    let host = Host::new();
    host.sh("mkdir -p /tmp/image/etc /tmp/image/usr; cp /etc/passwd /etc/group /tmp/image/etc");
    install(&host, "--root /tmp/image --prefix /usr");
    host.sh("grep -q '^ExecStart=/usr/bin/scd ' /tmp/image/etc/systemd/system/superchat.service");
    host.sh("test -x /tmp/image/usr/bin/scd && grep -q ^superchat: /tmp/image/etc/passwd");
    let owner = host.sh("stat -c '%a %g' /tmp/image/var/lib/superchat");
    assert_eq!(owner, host.sh("sed -n 's/^superchat:[^:]*:\\([0-9]*\\):.*/750 \\1/p' /tmp/image/etc/group"));
    host.sh("! test -e /usr/local/bin/scd && ! getent passwd superchat && ! test -e /etc/superchat");
    host.sh(&script("--uninstall --purge --root /tmp/image --prefix /usr"));
    host.sh("! test -e /tmp/image/usr/bin/scd && ! grep -q ^superchat: /tmp/image/etc/passwd");
}

#[test]
fn wrong_usage_has_an_exit_code_of_its_own() {
    let host = Host::new();
    for arguments in ["--prfix /usr", "--prefix usr", "--root", "--purge"] {
        assert_eq!(host.try_sh(&script(arguments)).status.code(), Some(2), "{arguments}");
    }
    assert_eq!(host.try_sh(&script("--binary /dev/null")).status.code(), Some(1));
}

fn install(host: &Host, arguments: &str) -> String {
    host.sh(&script(arguments))
}

/// A later `--binary` outweighs an earlier one.
fn script(arguments: &str) -> String {
    format!("{} --binary {} {arguments}", project("scripts/install.sh"), env!("CARGO_BIN_EXE_scd"))
}
