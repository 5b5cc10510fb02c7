//! Configuration as an operator meets it: the rules of BEHAVIOUR.md 9, and the program's answers.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use superchat::config::{self, ConfigError, ConfigFile, Environment, Flags, Loaded, Origin, TABLE};
use tempfile::TempDir;

/// A home of its own, so that nothing of this machine is read.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the home")).expect("a folder");
        fs::write(&path, text).expect("a file");
        path
    }

    fn environment(&self, variables: &[(&str, &str)]) -> Environment {
        let home = ("HOME".to_owned(), self.0.path().as_os_str().to_owned());
        let rest = variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value)));
        std::iter::once(home).chain(rest).collect()
    }
}

fn flags(config: Option<&Path>, values: &[(&'static str, &str)]) -> Flags {
    let values = values.iter().map(|(name, value)| (*name, OsString::from(value))).collect();
    Flags { config: config.map(Path::to_path_buf), values }
}

/// Loads `file` together with `variables`.
fn load(file: &str, variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let home = Home::new();
    let path = home.write("scd.toml", file);
    config::load(&home.environment(variables), &flags(Some(&path), &[]))
}

fn loaded(file: &str) -> Loaded {
    load(file, &[]).unwrap_or_else(|error| panic!("{file}\n{error}"))
}

fn shown(loaded: &Loaded, section: &str, key: &str) -> String {
    let row = loaded.settings.rows().into_iter().find(|(entry, _)| entry.section == section && entry.key == key);
    row.unwrap_or_else(|| panic!("no [{section}] {key}")).1
}

/// Problems without the path of the file in front.
fn problems(result: Result<Loaded, ConfigError>) -> Vec<String> {
    match result {
        Err(ConfigError::Wrong(problems)) => {
            problems.iter().map(|problem| without_path(&problem.to_string())).collect()
        }
        other => panic!("no problems but {other:?}"),
    }
}

fn without_path(text: &str) -> String {
    text.split_once("scd.toml ").map_or(text, |(_, rest)| rest).to_owned()
}

fn warnings(loaded: &Loaded) -> Vec<String> {
    loaded.warnings.iter().map(|warning| without_path(warning)).collect()
}

#[test]
fn without_any_source_all_is_default() {
    let home = Home::new();
    let loaded = config::load(&home.environment(&[]), &Flags::default()).expect("no configuration is needed");
    for (entry, value) in loaded.settings.rows() {
        assert_eq!(loaded.origins.of(entry.section, entry.key), &Origin::Default, "{}", entry.name());
        if !["ssh_host_key", "database_path"].contains(&entry.key) {
            assert_eq!(value, (entry.default)(), "{}", entry.name());
        }
    }
    assert_eq!(loaded.file, ConfigFile::Absent);
    assert_eq!((loaded.warnings, loaded.notices), (vec![], vec![]));
    assert_eq!(loaded.settings.server.database_path, home.path(".local/share/superchat/superchat.db"));
    assert_eq!(loaded.settings.server.ssh_host_key, home.path(".local/share/superchat/ssh_host_key"));
}

#[test]
fn defaults_are_those_of_the_specification() {
    let settings = loaded("").settings;
    let number = |section: &str, key: &str| {
        let row = settings.rows().into_iter().find(|(entry, _)| (entry.section, entry.key) == (section, key));
        row.expect("a row").1
    };
    for (section, key, wanted) in [
        ("server", "tcp_port", "6465"),
        ("server", "ssh_port", "6466"),
        ("server", "http_port", "8080"),
        ("limits", "max_connections_per_ip", "10"),
        ("limits", "message_rate_limit", "10"),
        ("limits", "max_channel_creates", "5"),
        ("limits", "max_message_length", "4096"),
        ("limits", "session_timeout_seconds", "120"),
        ("limits", "max_thread_subscriptions", "50"),
        ("limits", "max_channel_subscriptions", "10"),
        ("limits", "auth_attempts_per_minute", "10"),
        ("limits", "requests_per_second", "100"),
        ("limits", "dm_invites_per_hour", "30"),
        ("limits", "exempt_networks", r#"["127.0.0.0/8", "::1/128"]"#),
        ("retention", "default_retention_hours", "168"),
        ("retention", "cleanup_interval_minutes", "60"),
        ("discovery", "server_name", r#""SuperChat Server""#),
        ("discovery", "server_description", r#""A SuperChat community server""#),
        ("discovery", "max_users", "0"),
        ("admin", "socket", r#""""#),
        ("admin", "metrics_listen", r#""127.0.0.1:9090""#),
        ("admin", "profile_listen", r#""127.0.0.1:6060""#),
    ] {
        assert_eq!(number(section, key), wanted, "[{section}] {key}");
    }
    let seeds: Vec<_> = settings.channels.seed_channels.iter().map(|seed| seed.display_name()).collect();
    assert_eq!(seeds, [">chat", "#general", "#tech", "#random", "#feedback"]);
}

/// One legal value per key, other than the default: as the file says it and, where it can, as the environment does.
const SAMPLES: &[(&str, &str, &str, Option<&str>)] = &[
    ("server", "listen_address", "\"::\"", Some("::")),
    ("server", "tcp_port", "7000", Some("7000")),
    ("server", "ssh_port", "7001", Some("7001")),
    ("server", "http_port", "7002", Some("7002")),
    ("server", "ssh_host_key", "\"/k\"", Some("/k")),
    ("server", "database_path", "\"/d\"", Some("/d")),
    ("server", "admin_users", r#"["ada", "bob"]"#, Some(" ada, bob,")),
    ("server", "admin_password", "\"***\"", Some("secret")),
    ("server", "moderator_users", r#"["eve"]"#, Some("eve")),
    ("server", "wire_archive_flag", "true", Some("true")),
    ("server", "sanitize_content", "false", Some("0")),
    ("server", "idle_notice", "true", Some("TRUE")),
    ("server", "allowed_origins", r#"["https://chat.example.org"]"#, Some("https://chat.example.org")),
    ("server", "trusted_proxies", r#"["10.0.0.0/8", "192.0.2.1/32"]"#, Some("10.0.0.0/8,192.0.2.1")),
    ("server", "shutdown_spread_seconds", "5", Some("5")),
    ("server", "shards", "3", Some("3")),
    ("server", "password_threads", "1", Some("1")),
    ("limits", "max_connections_per_ip", "20", Some("20")),
    ("limits", "message_rate_limit", "60", Some("60")),
    ("limits", "max_channel_creates", "6", Some("6")),
    ("limits", "max_message_length", "1000", Some(" 1000 ")),
    ("limits", "session_timeout_seconds", "60", Some("60")),
    ("limits", "max_thread_subscriptions", "51", Some("51")),
    ("limits", "max_channel_subscriptions", "11", Some("11")),
    ("limits", "exempt_networks", r#"["2001:db8::/32"]"#, Some("2001:db8::/32")),
    ("limits", "auth_attempts_per_minute", "11", Some("11")),
    ("limits", "requests_per_second", "101", Some("101")),
    ("limits", "dm_invites_per_hour", "31", Some("31")),
    ("limits", "outbox_bytes_max", "65536", Some("65536")),
    ("retention", "default_retention_hours", "24", Some("24")),
    ("retention", "cleanup_interval_minutes", "5", Some("5")),
    ("retention", "enforce", "false", Some("no")),
    ("channels", "seed_channels", "[\n    { name = \"news\", description = \"What is new\" },\n]", None),
    ("discovery", "directory_enabled", "false", Some("false")),
    ("discovery", "public_hostname", "\"chat.example.org\"", Some("chat.example.org")),
    ("discovery", "server_name", "\"Ours\"", Some("Ours")),
    ("discovery", "server_description", "\"Say \\\"hi\\\"\"", Some("Say \"hi\"")),
    ("discovery", "max_users", "9000", Some("9000")),
    ("discovery", "allow_private_servers", "true", Some("on")),
    ("discovery", "gossip_interval_seconds", "7200", Some("7200")),
    ("discovery", "announce_to", r#"["a.example:6465", "[2001:db8::1]:7"]"#, Some("a.example,[2001:db8::1]:7")),
    ("storage", "durability", "\"process\"", Some("process")),
    ("storage", "checkpoints", "\"external\"", Some("external")),
    ("storage", "readers", "4", Some("4")),
    ("admin", "socket", "\"/run/x.sock\"", Some("/run/x.sock")),
    ("admin", "metrics_listen", "\"off\"", Some("off")),
    ("admin", "profile_listen", "\"127.0.0.1:7060\"", Some("127.0.0.1:7060")),
    ("admin", "metrics_token", "\"***\"", Some("t0ken")),
    ("admin", "block_profile_rate", "10000", Some("10000")),
    ("admin", "mutex_profile_fraction", "100", Some("100")),
    ("log", "log_level", "\"info,superchat::net=debug\"", Some("info,superchat::net=debug")),
    ("log", "log_format", "\"json\"", Some("json")),
    ("log", "log_ip", "\"truncated\"", Some("truncated")),
    ("log", "debug", "true", Some("t")),
    ("log", "sentry_dsn", "\"***\"", Some("https://key@sentry.example/1")),
    ("log", "sentry_environment", "\"staging\"", Some("staging")),
];

#[test]
fn samples_cover_the_table() {
    let sampled: Vec<_> = SAMPLES.iter().map(|(section, key, ..)| (*section, *key)).collect();
    let table: Vec<_> = TABLE.iter().map(|entry| (entry.section, entry.key)).collect();
    assert_eq!(sampled, table);
}

#[test]
fn every_key_is_read_from_the_file() {
    for (section, key, value, _) in SAMPLES {
        let loaded = loaded(&format!("[{section}]\n{key} = {value}\n"));
        assert_eq!(&shown(&loaded, section, key), value);
        assert_eq!(warnings(&loaded), Vec::<String>::new(), "[{section}] {key}");
        let origin = loaded.origins.of(section, key);
        assert!(matches!(origin, Origin::File { line: 2, .. }), "[{section}] {key} comes from {origin}");
    }
}

#[test]
fn every_variable_is_read() {
    for (section, key, value, text) in SAMPLES.iter().filter_map(|(s, k, v, text)| Some((s, k, v, (*text)?))) {
        let entry = TABLE.iter().find(|entry| (&entry.section, &entry.key) == (section, key)).expect("a row");
        for name in entry.environment() {
            let loaded = load("", &[(&name, text)]).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(&shown(&loaded, section, key), value, "{name}");
            assert_eq!(loaded.origins.of(section, key), &Origin::Environment(name.clone()));
            assert_eq!(warnings(&loaded), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn variables_have_the_names_of_the_specification() {
    for (name, section, key) in [
        ("SUPERCHAT_SERVER_TCP_PORT", "server", "tcp_port"),
        ("SUPERCHAT_LIMITS_MESSAGE_RATE_LIMIT", "limits", "message_rate_limit"),
        ("SUPERCHAT_ADMIN_METRICS_LISTEN", "admin", "metrics_listen"),
        ("METRICS_TOKEN", "admin", "metrics_token"),
        ("LOG_LEVEL", "log", "log_level"),
        ("SENTRY_DSN", "log", "sentry_dsn"),
        ("SENTRY_ENVIRONMENT", "log", "sentry_environment"),
    ] {
        let entry = TABLE.iter().find(|entry| (entry.section, entry.key) == (section, key)).expect("a row");
        assert!(entry.environment().contains(&name.to_owned()), "{name}");
    }
}

#[test]
fn flags_outweigh_environment_outweighs_file_key_by_key() {
    let home = Home::new();
    let file = home.write("scd.toml", "[server]\ntcp_port = 1001\nssh_port = 1002\nhttp_port = 1003\n");
    let environment = home.environment(&[("SUPERCHAT_SERVER_TCP_PORT", "2001"), ("SUPERCHAT_SERVER_SSH_PORT", "2002")]);
    let loaded = config::load(&environment, &flags(Some(&file), &[("port", "3001")])).expect("legal");
    let server = &loaded.settings.server;
    let ports = [server.tcp_port, server.ssh_port, server.http_port].map(|port| port.expect("on").get());
    assert_eq!(ports, [3001, 2002, 1003]);
    let origins = ["tcp_port", "ssh_port", "http_port", "database_path"];
    let origins = origins.map(|key| without_path(&loaded.origins.of("server", key).to_string()));
    assert_eq!(origins, ["flag --port", "environment SUPERCHAT_SERVER_SSH_PORT", "line 4", "default"]);
}

#[test]
fn a_partial_file_keeps_the_other_defaults() {
    let home = Home::new();
    let file = home.write("scd.toml", "[server]\ntcp_port = 7000\ndatabase_path = \"\"\n");
    let loaded = config::load(&home.environment(&[]), &flags(Some(&file), &[])).expect("legal");
    assert_eq!(loaded.settings.server.database_path, home.path(".local/share/superchat/superchat.db"));
    assert_eq!(loaded.settings.limits.max_message_length.get(), 4096);
}

#[test]
fn what_is_wrong_stops_the_start_and_names_the_key() {
    for (file, wanted) in [
        ("[server]\ntcp_prt = 1", "line 2: [server] tcp_prt is not known; did you mean [server] tcp_port?"),
        ("[server]\nmax_users = 1", "line 2: [server] max_users is not known; did you mean [discovery] max_users?"),
        ("tcp_port = 1", "line 1: tcp_port is not known; did you mean [server] tcp_port?"),
        ("[sever]\ntcp_port = 1", "line 1: [sever] is not known; did you mean [server]?"),
        ("\nserver = 5", "line 2: [server]: is a section: write it on a line of its own and its keys below"),
        ("[server]\ntcp_port = \"6465\"", "line 2: [server] tcp_port: \"6465\" is not a whole number"),
        ("[server]\ntcp_port = 64.65", "line 2: [server] tcp_port: 64.65 is not a whole number"),
        ("[server]\ntcp_port = -1", "line 2: [server] tcp_port: -1 is negative"),
        ("[server]\ntcp_port = 65536", "line 2: [server] tcp_port: 65536 is above 65535"),
        ("[server]\nssh_port = 0x10000", "line 2: [server] ssh_port: 65536 is above 65535"),
        ("[limits]\nsession_timeout_seconds = -30", "line 2: [limits] session_timeout_seconds: -30 is negative"),
        ("[server]\nidle_notice = 1", "line 2: [server] idle_notice: 1 is neither true nor false"),
        ("[server]\nadmin_users = \"ada\"", "line 2: [server] admin_users: \"ada\" is not a list in brackets"),
        ("[server]\nadmin_users = [1]", "line 2: [server] admin_users: 1 is not a text in quotes"),
        ("[server]\nadmin_password = 1234", "line 2: [server] admin_password: the value is not a text in quotes"),
        ("[storage]\ndurability = \"fast\"", "line 2: [storage] durability: \"fast\" is none of full, process"),
        (
            "[admin]\nmetrics_listen = \":9090\"",
            "line 2: [admin] metrics_listen: \":9090\" is not an address and port such as 127.0.0.1:9090, or off",
        ),
        (
            "[admin]\nprofile_listen = \"0.0.0.0:6060\"",
            "line 2: [admin] profile_listen: 0.0.0.0:6060 is not a loopback address; set [admin] metrics_token or listen \
             on loopback",
        ),
        (
            "[limits]\nexempt_networks = [\"10.0.0.0/99\"]",
            "line 2: [limits] exempt_networks: \"10.0.0.0/99\" is not a network such as 10.0.0.0/8 or an address",
        ),
        (
            "[log]\nlog_level = \"inf\"",
            "line 2: [log] log_level: \"inf\" is not error, warn, info, debug or trace, nor a list such as \
             info,superchat=debug",
        ),
        ("[server]\nhttp_port = 6465", "line 2: [server] http_port: 6465 is also [server] tcp_port"),
        (
            "[channels]\nseed_channels = [{ name = \"good\" }, { name = \"no way\" }]",
            "line 2: [channels] seed_channels: entry 2: name \"no way\" is not a channel name: 3 to 50 bytes without \
             spaces and /, no # or dm_ in front",
        ),
        (
            "[channels]\nseed_channels = [{ name = \"good\", tpye = 1 }]",
            "line 2: [channels] seed_channels: entry 1: tpye is not known; did you mean type?",
        ),
        (
            "[channels]\nseed_channels = [{ name = \"good\", type = 2 }]",
            "line 2: [channels] seed_channels: entry 1: type \"2\" is none of chat, forum",
        ),
        (
            "[channels]\nseed_channels = [{ name = \"good\", retention_hours = -1 }]",
            "line 2: [channels] seed_channels: entry 1: retention_hours -1 is negative",
        ),
        (
            "[channels]\nseed_channels = [{ name = \"good\" }, { name = \"good\" }]",
            "line 2: [channels] seed_channels: entry 2: \"good\" appears twice",
        ),
    ] {
        assert_eq!(problems(load(file, &[])), [wanted], "{file}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let file = "[server]\ntcp_port = -1\nssh_prt = 1\n";
    let result = load(file, &[("SUPERCHAT_LIMITS_MESSAGE_RATE_LIMIT", "many")]);
    assert_eq!(
        problems(result),
        [
            "environment SUPERCHAT_LIMITS_MESSAGE_RATE_LIMIT: [limits] message_rate_limit: \"many\" is not a whole \
             number",
            "line 3: [server] ssh_prt is not known; did you mean [server] ssh_port?",
            "line 2: [server] tcp_port: -1 is negative",
        ]
    );
}

#[test]
fn a_file_that_is_not_toml_is_told_in_one_line() {
    for file in ["[server", "[server]\ntcp_port = \n", "a = 1\na = 2\n", "x = \"\"\"open", "[[server"] {
        let problems = problems(load(file, &[]));
        assert!(problems.iter().all(|problem| !problem.contains('\n')), "{problems:?}");
        assert!(problems[0].contains("not valid TOML"), "{problems:?}");
    }
}

#[test]
fn wrong_variables_and_flags_stop_the_start_too() {
    for (name, value, wanted) in [
        ("SUPERCHAT_SERVER_TCP_PORT", "70000", "[server] tcp_port: 70000 is above 65535"),
        ("SUPERCHAT_SERVER_TCP_PORT", "abc", "[server] tcp_port: \"abc\" is not a whole number"),
        ("SUPERCHAT_SERVER_IDLE_NOTICE", "perhaps", "[server] idle_notice: \"perhaps\" is neither true nor false"),
        (
            "SUPERCHAT_CHANNELS_SEED_CHANNELS",
            "a,b",
            "[channels] seed_channels: can only be set in the configuration file",
        ),
    ] {
        assert_eq!(problems(load("", &[(name, value)])), [format!("environment {name}: {wanted}")]);
    }
    let home = Home::new();
    let result = config::load(&home.environment(&[]), &flags(None, &[("port", "-5")]));
    assert_eq!(problems(result), ["flag --port: [server] tcp_port: -5 is negative"]);
}

#[test]
fn a_variable_that_is_not_utf8_is_refused_where_text_is_needed() {
    use std::os::unix::ffi::OsStringExt;
    let home = Home::new();
    let variables = [("HOME", home.0.path().as_os_str().to_owned()), ("LOG_LEVEL", OsString::from_vec(vec![0xff]))];
    let result = config::load(&Environment::from_iter(variables), &Flags::default());
    assert_eq!(problems(result), ["environment LOG_LEVEL: [log] log_level: the value is not UTF-8"]);
}

#[test]
fn what_is_too_large_or_too_small_is_clamped_with_a_warning() {
    for (section, key, given, used) in [
        ("limits", "max_connections_per_ip", "256", "255"),
        ("limits", "message_rate_limit", "70000", "65535"),
        ("limits", "max_channel_creates", "70000", "65535"),
        ("limits", "max_message_length", "4097", "4096"),
        ("limits", "max_thread_subscriptions", "65536", "65535"),
        ("limits", "session_timeout_seconds", "31536001", "31536000"),
        ("limits", "outbox_bytes_max", "1", "65536"),
        ("retention", "default_retention_hours", "70000", "8760"),
        ("retention", "cleanup_interval_minutes", "525601", "525600"),
        ("discovery", "max_users", "99999999999999999999", "4294967295"),
        ("storage", "readers", "65", "64"),
    ] {
        let loaded = loaded(&format!("[{section}]\n{key} = {given}"));
        assert_eq!(shown(&loaded, section, key), used, "{key}");
        let warnings = warnings(&loaded);
        let [warning] = warnings.as_slice() else { panic!("{key}: {warnings:?}") };
        assert!(warning.starts_with(&format!("line 2: [{section}] {key}: ")), "{warning}");
        assert!(warning.ends_with(&format!("{used} is used")), "{warning}");
    }
    let loaded = loaded("[channels]\nseed_channels = [{ name = \"good\", retention_hours = 70000 }]");
    assert_eq!(loaded.settings.channels.seed_channels[0].retention_hours.map(u32::from), Some(8760));
    assert_eq!(
        warnings(&loaded),
        ["line 2: [channels] seed_channels entry 1 retention_hours: 70000 is above the largest value, 8760 is used"]
    );
}

#[test]
fn zero_is_off_or_the_default() {
    for (section, key, used, origin_is_default) in [
        ("server", "tcp_port", "0", false),
        ("server", "ssh_port", "0", false),
        ("server", "http_port", "0", false),
        ("limits", "session_timeout_seconds", "0", false),
        ("limits", "max_connections_per_ip", "0", false),
        ("limits", "message_rate_limit", "0", false),
        ("limits", "max_channel_creates", "0", false),
        ("discovery", "max_users", "0", false),
        ("limits", "auth_attempts_per_minute", "0", false),
        ("limits", "requests_per_second", "0", false),
        ("limits", "dm_invites_per_hour", "0", false),
        ("limits", "max_message_length", "4096", true),
        ("limits", "max_thread_subscriptions", "50", true),
        ("limits", "max_channel_subscriptions", "10", true),
        ("retention", "default_retention_hours", "168", true),
        ("retention", "cleanup_interval_minutes", "60", true),
        ("storage", "readers", "2", true),
    ] {
        let loaded = loaded(&format!("[{section}]\n{key} = 0"));
        assert_eq!(shown(&loaded, section, key), used, "{key}");
        assert_eq!(loaded.origins.of(section, key) == &Origin::Default, origin_is_default, "{key}");
        assert_eq!(warnings(&loaded), Vec::<String>::new(), "{key}");
    }
}

#[test]
fn an_empty_text_is_the_default_and_an_empty_list_is_empty() {
    let loaded =
        loaded("[discovery]\nserver_name = \"\"\n[admin]\nmetrics_listen = \"\"\n[limits]\nexempt_networks = []");
    assert_eq!(loaded.settings.discovery.server_name, "SuperChat Server");
    assert_eq!(loaded.settings.admin.metrics_listen, Some(([127, 0, 0, 1], 9090).into()));
    assert_eq!(loaded.settings.limits.exempt_networks, []);
}

#[test]
fn keys_that_others_had_only_warn() {
    for (file, wanted) in [
        (
            "[limits]\nmax_nickname_length = 20",
            "line 2: [limits] max_nickname_length has no effect: nicknames always have 3 to 20 characters",
        ),
        ("[server]\nwebsocket_port = 6467", "line 2: [server] websocket_port has no effect: use [server] http_port"),
        (
            "[limits]\nmax_connections = 5",
            "line 2: [limits] max_connections has no effect: use [discovery] max_users for the whole server, [limits] \
             max_connections_per_ip for one address",
        ),
        (
            "[discovery]\nenabled = false",
            "line 2: [discovery] enabled has no effect: use [discovery] directory_enabled",
        ),
        ("log_level = \"debug\"", "line 1: log_level has no effect: use [log] log_level"),
        ("[archive]\nenabled = true", "line 2: [archive] enabled has no effect: this server has no archive"),
        (
            "[moderation]\nextra_words = []",
            "line 2: [moderation] extra_words has no effect: this server has no word filter",
        ),
    ] {
        assert_eq!(warnings(&loaded(file)), [wanted], "{file}");
    }
}

#[test]
fn doubtful_variables_only_warn_and_foreign_ones_are_left_alone() {
    for (name, wanted) in [
        (
            "SUPERCHAT_SERVER_TCP_PROT",
            Some("environment SUPERCHAT_SERVER_TCP_PROT is no setting; did you mean SUPERCHAT_SERVER_TCP_PORT?"),
        ),
        (
            "SUPERCHAT_LIMITS_MAX_NICKNAME_LENGTH",
            Some(
                "environment SUPERCHAT_LIMITS_MAX_NICKNAME_LENGTH has no effect: nicknames always have 3 to 20 characters",
            ),
        ),
        (
            "SUPERCHAT_MODERATION_WORD_FILTER",
            Some("environment SUPERCHAT_MODERATION_WORD_FILTER has no effect: this server has no word filter"),
        ),
        ("SUPERCHAT_PORT_6465_TCP_ADDR", None),
        ("LANG", None),
    ] {
        let loaded = load("", &[(name, "5")]).expect("only a warning");
        assert_eq!(loaded.warnings, Vec::from_iter(wanted), "{name}");
    }
}

#[test]
fn a_variable_set_to_nothing_is_unset() {
    let loaded = load("[server]\ntcp_port = 7000", &[("SUPERCHAT_SERVER_TCP_PORT", "")]).expect("legal");
    assert_eq!(shown(&loaded, "server", "tcp_port"), "7000");
}

/// As the existing server writes it.
const FILE_OF_THE_EXISTING_SERVER: &str = r#"
[server]
tcp_port = 6465
ssh_port = 6466
http_port = 8080
ssh_host_key = "~/.superchat/ssh_host_key"
database_path = "~/.superchat/superchat.db"
admin_users = []
admin_password = ""

[limits]
max_connections_per_ip = 10
message_rate_limit = 10
max_channel_creates = 5
max_message_length = 4096
max_nickname_length = 20
session_timeout_seconds = 60
max_thread_subscriptions = 50
max_channel_subscriptions = 10

[retention]
default_retention_hours = 168
cleanup_interval_minutes = 60

[channels]
[[channels.seed_channels]]
name = "general"
description = "General discussion"
[[channels.seed_channels]]
name = "tech"
description = "Technical topics"
type = 0
retention_hours = 24

[discovery]
directory_enabled = false
public_hostname = ""
server_name = ""
server_description = ""
max_users = 0
"#;

#[test]
fn the_file_of_the_existing_server_is_understood() {
    let home = Home::new();
    let file = home.write("scd.toml", FILE_OF_THE_EXISTING_SERVER);
    let loaded = config::load(&home.environment(&[]), &flags(Some(&file), &[])).expect("legal");
    assert_eq!(loaded.settings.server.database_path, home.path(".superchat/superchat.db"));
    assert!(!loaded.settings.discovery.directory_enabled);
    let seeds: Vec<_> = loaded.settings.channels.seed_channels.iter().map(|seed| seed.display_name()).collect();
    assert_eq!(seeds, ["#general", ">tech"]);
    let hours = loaded.settings.channels.seed_channels.iter().map(|seed| seed.retention_hours.map(u32::from));
    assert_eq!(hours.collect::<Vec<_>>(), [None, Some(24)]);
    assert_eq!(warnings(&loaded).len(), 1, "{:?}", loaded.warnings);
}

#[test]
fn files_at_their_old_places_are_used_and_said() {
    let home = Home::new();
    home.write(".superchat/config.toml", "[server]\ntcp_port = 7000");
    let database = home.write(".superchat/superchat.db", "");
    let key = home.write(".superchat/ssh_host_key", "");
    let loaded = config::load(&home.environment(&[]), &Flags::default()).expect("legal");
    assert_eq!(loaded.file, ConfigFile::Read(home.path(".superchat/config.toml")));
    assert_eq!(shown(&loaded, "server", "tcp_port"), "7000");
    assert_eq!((&loaded.settings.server.database_path, &loaded.settings.server.ssh_host_key), (&database, &key));
    assert_eq!(loaded.origins.of("server", "database_path"), &Origin::OldPlace);
    let said = |what: &str, name: &str| {
        format!("using the {what} found at its old place, {}", home.path(".superchat").join(name).display())
    };
    assert_eq!(
        loaded.notices,
        [said("configuration", "config.toml"), said("SSH host key", "ssh_host_key"), said("database", "superchat.db")]
    );
}

#[test]
fn files_at_our_places_outweigh_those_at_the_old_ones() {
    let home = Home::new();
    home.write(".superchat/config.toml", "[server]\ntcp_port = 7000");
    home.write(".superchat/superchat.db", "");
    let config = home.write(".config/superchat/config.toml", "[server]\ntcp_port = 7001");
    let database = home.write(".local/share/superchat/superchat.db", "");
    let loaded = config::load(&home.environment(&[]), &Flags::default()).expect("legal");
    assert_eq!(loaded.file, ConfigFile::Read(config));
    assert_eq!(loaded.settings.server.database_path, database);
    assert_eq!(loaded.notices, Vec::<String>::new());
}

#[test]
fn a_file_that_a_setting_names_is_used_as_it_is() {
    let home = Home::new();
    home.write(".superchat/superchat.db", "");
    let loaded = config::load(&home.environment(&[]), &flags(None, &[("db", "/data/chat.db")])).expect("legal");
    assert_eq!(loaded.settings.server.database_path, Path::new("/data/chat.db"));
    assert_eq!(loaded.notices, Vec::<String>::new());
}

#[test]
fn the_data_directory_follows_the_environment() {
    let home = Home::new();
    let below_home = home.path(".local/share/superchat");
    for (variables, wanted) in [
        (&[("STATE_DIRECTORY", "/var/lib/superchat"), ("XDG_DATA_HOME", "/x")][..], Path::new("/var/lib/superchat")),
        (&[("STATE_DIRECTORY", "/var/lib/superchat:/var/lib/other")], Path::new("/var/lib/superchat")),
        (&[("XDG_DATA_HOME", "/x")], Path::new("/x/superchat")),
        (&[("XDG_DATA_HOME", "relative")], &below_home),
        (&[("STATE_DIRECTORY", "relative")], &below_home),
        (&[], &below_home),
    ] {
        let loaded = config::load(&home.environment(variables), &Flags::default()).expect("legal");
        assert_eq!(loaded.data_directory, wanted, "{variables:?}");
        assert_eq!(loaded.settings.server.database_path, wanted.join("superchat.db"), "{variables:?}");
    }
}

#[test]
fn without_a_home_data_lies_beside_the_database() {
    let nothing = Environment::default();
    for (database, directory) in [("/data/chat.db", "/data"), ("chat.db", ".")] {
        let loaded = config::load(&nothing, &flags(None, &[("db", database)])).expect("legal");
        assert_eq!(loaded.data_directory, Path::new(directory));
        assert_eq!(loaded.settings.server.ssh_host_key, Path::new(directory).join("ssh_host_key"));
    }
    assert!(matches!(config::load(&nothing, &Flags::default()), Err(ConfigError::NoDataDirectory)));
    let result = config::load(&nothing, &flags(None, &[("db", "~/chat.db")]));
    assert_eq!(problems(result), ["flag --db: [server] database_path: \"~/chat.db\" needs HOME to be set"]);
}

#[test]
fn the_configuration_lies_where_the_environment_says() {
    let home = Home::new();
    let named = home.write("elsewhere/scd.toml", "[server]\ntcp_port = 7001");
    let usual = home.write("xdg/superchat/config.toml", "[server]\ntcp_port = 7002");
    let xdg = home.path("xdg");
    let xdg = ("XDG_CONFIG_HOME", xdg.to_str().expect("text"));
    for (variables, wanted) in [
        (&[xdg][..], &usual),
        (&[xdg, ("SUPERCHAT_CONFIG", named.to_str().expect("text"))], &named),
        (&[xdg, ("SUPERCHAT_CONFIG", "~/elsewhere/scd.toml")], &named),
        (&[xdg, ("SUPERCHAT_CONFIG", "")], &usual),
    ] {
        let loaded = config::load(&home.environment(variables), &Flags::default()).expect("legal");
        assert_eq!(loaded.file, ConfigFile::Read(wanted.clone()), "{variables:?}");
    }
}

#[test]
fn a_named_file_that_is_missing_is_written_and_changes_nothing() {
    let home = Home::new();
    let path = home.path("etc/superchat/config.toml");
    let mut first = config::load(&home.environment(&[]), &flags(Some(&path), &[])).expect("legal");
    assert_eq!(first.file, ConfigFile::Missing(path.clone()));
    assert!(!path.exists(), "loading writes nothing");
    first.write_missing_file();
    assert_eq!(first.notices, [format!("wrote {} with every setting commented out", path.display())]);
    assert_eq!(fs::metadata(&path).expect("written").permissions().mode() & 0o007, 0, "passwords may be put into it");
    let second = config::load(&home.environment(&[]), &flags(Some(&path), &[])).expect("legal");
    assert_eq!((second.settings, second.origins), (first.settings, first.origins));
}

#[test]
fn a_missing_file_that_cannot_be_written_is_a_warning() {
    let home = Home::new();
    home.write("occupied", "");
    let path = home.path("occupied/config.toml");
    let mut loaded = Loaded { file: ConfigFile::Missing(path.clone()), ..loaded("") };
    loaded.write_missing_file();
    let [warning] = loaded.warnings.as_slice() else { panic!("{:?}", loaded.warnings) };
    assert!(warning.starts_with(&format!("cannot write {}: ", path.display())), "{warning}");
}

#[test]
fn a_file_that_cannot_be_read_stops_the_start() {
    let home = Home::new();
    let binary = home.path("binary.toml");
    fs::write(&binary, [0xff, 0xfe]).expect("a file");
    for path in [home.path(""), binary] {
        let result = config::load(&home.environment(&[]), &flags(Some(&path), &[]));
        assert!(matches!(result, Err(ConfigError::Unreadable { .. })), "{result:?}");
    }
}

#[test]
fn the_example_without_its_marks_is_the_default() {
    let text: String = config::example()
        .lines()
        .filter(|line| !line.contains("enforce = "))
        .map(|line| {
            line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') || rest.starts_with("    ")).unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let home = Home::new();
    let path = home.write("scd.toml", &text);
    let marked = config::load(&home.environment(&[]), &Flags::default()).expect("legal");
    let unmarked = config::load(&home.environment(&[]), &flags(Some(&path), &[])).expect("legal");
    assert_eq!(unmarked.settings, marked.settings);
    assert!(matches!(unmarked.origins.of("log", "debug"), Origin::File { .. }), "the marks are still there");
    assert_eq!(unmarked.warnings, Vec::<String>::new());
}

#[test]
fn the_manual_page_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let written = fs::read_to_string(&path).expect("docs/configuration.md");
    assert!(
        written == config::markdown(),
        "docs/configuration.md is old; renew it: scd config-example --markdown > docs/configuration.md"
    );
}

#[test]
fn secrets_are_shown_nowhere() {
    let text =
        "[server]\nadmin_password = \"hunter2\"\n[admin]\nmetrics_token = \"hunter2\"\n[log]\nsentry_dsn = \"hunter2\"";
    let loaded = loaded(text);
    assert!(!loaded.report().contains("hunter2") && loaded.report().contains("\"***\""), "{}", loaded.report());
    assert!(!format!("{loaded:?}").contains("hunter2"));
    assert_eq!(loaded.settings.server.admin_password.expect("set").expose(), "hunter2");
}

/// Runs `scd` with an environment of its own.
fn scd(home: &Home, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scd"));
    command.args(arguments).env_clear().env("HOME", home.0.path()).envs(variables.iter().copied());
    command.output().expect("scd runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn check_config_prints_values_with_their_origin() {
    let home = Home::new();
    let path = home.write("scd.toml", "[limits]\nmax_connections_per_ip = 300\n");
    let path = path.to_str().expect("text");
    let variables = [("SUPERCHAT_SERVER_SSH_PORT", "0"), ("METRICS_TOKEN", "hunter2")];
    let output = scd(&home, &["check-config", "-config", path, "-port=7000"], &variables);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = text(&output.stdout);
    let origin = |key: &str| {
        let line = report.lines().find(|line| line.split(' ').next() == Some(key)).expect(key);
        line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(origin("tcp_port"), "7000 # flag --port");
    assert_eq!(origin("ssh_port"), "0 # environment SUPERCHAT_SERVER_SSH_PORT");
    assert_eq!(origin("max_connections_per_ip"), format!("255 # {path} line 2"));
    assert_eq!(origin("metrics_token"), "\"***\" # environment METRICS_TOKEN");
    assert_eq!(origin("http_port"), "8080 # default");
    assert!(TABLE.iter().all(|entry| report.contains(&format!("\n{} ", entry.key))), "{report}");
    let warning = "[limits] max_connections_per_ip: 300 is above the largest value, 255 is used";
    assert_eq!(text(&output.stderr), format!("scd: warning: {path} line 2: {warning}\n"));
}

#[test]
fn check_config_answers_a_wrong_configuration_with_one() {
    let home = Home::new();
    let output = scd(&home, &["check-config", "--port", "abc"], &[]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    assert_eq!(text(&output.stderr), "scd: flag --port: [server] tcp_port: \"abc\" is not a whole number\n");
}

#[test]
fn check_config_writes_no_file() {
    let home = Home::new();
    let path = home.path("scd.toml");
    let output = scd(&home, &["check-config", "--config", path.to_str().expect("text")], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("(does not exist)"), "{output:?}");
    assert!(!path.exists());
}

#[test]
fn wrong_usage_ends_with_two_and_one_line() {
    let output = scd(&Home::new(), &["--prot", "7000"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let wanted = "scd: unexpected argument '--prot' found; did you mean --port?; see scd --help\n";
    assert_eq!(text(&output.stderr), wanted);
}

#[test]
fn version_example_and_manual_are_printed() {
    let home = Home::new();
    for (arguments, wanted) in [
        (&["-version"][..], format!("SuperChat Server {}\n", env!("CARGO_PKG_VERSION"))),
        (&["config-example"], config::example()),
        (&["config-example", "--markdown"], config::markdown()),
    ] {
        let output = scd(&home, arguments, &[]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), wanted.as_str()), "{arguments:?}");
    }
}

/// Text that looks like a configuration often enough to reach every reader.
fn configuration() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("0".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        "[0-9]{1,40}",
        any::<bool>().prop_map(|truth| truth.to_string()),
        any::<String>().prop_map(|text| format!("{text:?}")),
        "\"[a-z0-9:/~.,=\\[\\] ]{0,20}\"",
        "[-+0-9a-fx_.:TZ\"'\\[\\]{}=, ]{0,30}",
        Just("[{ name = \"abc\", type = 0 }, { retention_hours = 99999999999 }]".to_owned()),
        Just("[[[]], {}, \"\", 1.5, 1979-05-27]".to_owned()),
    ];
    let row = (0..TABLE.len(), any::<bool>(), value).prop_map(|(row, with_section, value)| {
        let entry = TABLE[row];
        let section = if with_section { format!("[{}]\n", entry.section) } else { String::new() };
        format!("{section}{} = {value}\n", entry.key)
    });
    prop_oneof![any::<String>(), prop::collection::vec(row, 0..6).prop_map(|rows| rows.concat())]
}

proptest! {
    #[test]
    fn never_panics_on_any_configuration(file in configuration()) {
        if let Err(error) = load(&file, &[]) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn never_panics_on_any_variable(row in 0..TABLE.len(), value in any::<String>()) {
        let value = value.replace('\0', "");
        for name in TABLE[row].environment() {
            if let Err(error) = load("", &[(&name, &value)]) {
                prop_assert!(error.to_string().contains(&TABLE[row].name()), "{}", error);
            }
        }
    }

    /// What is shown of a loaded configuration says the same when it is read again: all but what cannot be shown.
    #[test]
    fn roundtrip_of_the_report(file in configuration()) {
        if let Ok(first) = load(&file, &[]) {
            let shown = |line: &&str| !line.contains("= unset ") && !line.contains("= \"***\"");
            let report = first.report().lines().filter(shown).collect::<Vec<_>>().join("\n");
            let rows = |loaded: &Loaded| {
                let rows = loaded.settings.rows().into_iter();
                rows.filter(|(_, value)| value != "\"***\"").map(|(entry, value)| (entry.key, value)).collect::<Vec<_>>()
            };
            let second = load(&report, &[]).map_err(|error| TestCaseError::fail(format!("{report}\n{error}")))?;
            let second: Vec<_> = rows(&second).into_iter().filter(|row| rows(&first).contains(row)).collect();
            prop_assert_eq!(second, rows(&first));
        }
    }
}

mod reload {
    use super::*;

    /// One home, whose file says first one thing and then another.
    fn reloaded(before: &str, after: &str) -> (Loaded, Result<config::Reloaded, ConfigError>) {
        let home = Home::new();
        let load = |text: &str| {
            let path = home.write("scd.toml", text);
            config::load(&home.environment(&[]), &flags(Some(&path), &[])).expect("a configuration")
        };
        let mut running = load(before);
        let outcome = running.reload(load(after));
        (running, outcome)
    }

    fn names(entries: &[&config::Entry]) -> Vec<String> {
        entries.iter().map(|entry| entry.name()).collect()
    }

    #[test]
    fn live_settings_change_and_the_others_are_named_and_stay() {
        let after = "[limits]\nmessage_rate_limit = 3\n[server]\ntcp_port = 7000\n[log]\nlog_format = 'json'\n";
        let (running, outcome) = reloaded("", after);
        let outcome = outcome.expect("it goes together");
        assert_eq!(names(&outcome.changed), ["[limits] message_rate_limit"]);
        assert_eq!(names(&outcome.waiting), ["[server] tcp_port", "[log] log_format"]);
        assert_eq!(shown(&running, "limits", "message_rate_limit"), "3");
        assert_eq!(shown(&running, "server", "tcp_port"), "6465");
    }

    #[test]
    fn a_changed_secret_is_noticed_and_never_shown() {
        let (running, outcome) =
            reloaded("[admin]\nmetrics_token = 'hush-hush'\n", "[admin]\nmetrics_token = 'hush-hushed'\n");
        let outcome = outcome.expect("it goes together");
        assert_eq!(names(&outcome.changed), ["[admin] metrics_token"]);
        assert!(!format!("{outcome:?}{running:?}").contains("hush"));
    }

    #[test]
    fn a_token_is_not_taken_from_a_port_that_is_open_until_the_next_start() {
        let open = "[admin]\nprofile_listen = '0.0.0.0:6060'\nmetrics_token = 'secret'\n";
        let (running, outcome) = reloaded(open, "");
        assert!(outcome.expect_err("an open port").to_string().contains("[admin] profile_listen"));
        assert!(running.settings.admin.metrics_token.is_some());
    }

    #[test]
    fn the_manual_marks_what_is_live() {
        let marked = TABLE.iter().filter(|entry| entry.rule.live).count();
        assert!(marked > 10 && marked < TABLE.len());
        assert_eq!(config::markdown().matches(" | yes | ").count(), marked);
        assert_eq!(config::example().matches(". Changed by a reload.\n").count(), marked);
    }
}
