//! `scd support-bundle`: what somebody far away needs to find a fault, in one archive.
//!
//! No secret of the configuration is in it: settings are shown masked, and every text is searched for the secrets before
//! it is packed. Messages are nowhere in what is collected; nicknames and addresses are, in the logs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::admin::health::reachable;
use crate::clock;
use crate::config::Loaded;
use crate::doctor::{Host, examine};
use crate::store::sqlite::survey::sqlite_version;

/// Each log file is cut to its last bytes.
const LOG_BYTES_MAX: u64 = 512 * 1024;
/// An answer of the server that is longer is left out.
const ANSWER_BYTES_MAX: u64 = 32 << 20;
/// Longer than the profile takes that is asked for.
const ANSWER_TIME: Duration = Duration::from_secs(20);
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// What is asked of the metrics port: name in the archive, path, and the form wanted.
const PAGES: &[(&str, &str, &str)] = &[
    ("health.json", "/health", "application/json"),
    ("status.json", "/status", "application/json"),
    ("metrics.txt", "/metrics", "text/plain"),
];
/// What is asked of the profile port.
const PROFILES: &[(&str, &str, &str)] = &[
    ("profiles/cpu.pb.gz", "/debug/pprof/profile?seconds=5", "*/*"),
    ("profiles/heap.pb.gz", "/debug/pprof/heap", "*/*"),
    ("profiles/goroutine.txt", "/debug/pprof/goroutine?debug=2", "*/*"),
];
const LOGS: &[&str] = &["server.log", "errors.log", "debug.log"];

/// What goes into the archive, and what could not.
#[derive(Default)]
struct Bundle {
    entries: Vec<(String, Vec<u8>)>,
    missing: Vec<String>,
    secrets: Vec<String>,
}

/// Collects and writes the archive, mode 0600; the lines for the operator. Without `output` it gets a name with the time,
/// in the current directory.
///
/// # Errors
/// A sentence: the archive cannot be written. What cannot be collected is named in the archive instead.
pub fn collect(loaded: &Loaded, output: Option<&Path>) -> Result<String, String> {
    let stamp = clock::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let path = output.map_or_else(|| PathBuf::from(format!("superchat-support-{stamp}.tar.gz")), Path::to_owned);
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    // First of all, so that nothing is collected in vain.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let mut bundle = Bundle { secrets: secrets(loaded), ..Bundle::default() };
    bundle.add_text("version.txt", versions());
    bundle.add_text("configuration.txt", loaded.report());
    let report = examine(loaded, &Host::default());
    bundle.add_text("doctor.txt", report.text());
    bundle.add_text("doctor.json", report.json());
    bundle.add_answers(loaded.settings.admin.metrics_listen, "metrics_listen", PAGES, loaded);
    bundle.add_answers(loaded.settings.admin.profile_listen, "profile_listen", PROFILES, loaded);
    bundle.add_logs(loaded);
    let manifest = bundle.manifest(&stamp);
    let written = bundle.write(&stamp, &manifest, file);
    if let Err(error) = written {
        // Half an archive helps nobody.
        let _gone = fs::remove_file(&path);
        return Err(failed(error));
    }
    Ok(format!("{manifest}\nwrote {}: look through it before you send it\n", path.display()))
}

impl Bundle {
    /// Adds a text without the secrets that stand in it.
    fn add_text(&mut self, name: &str, text: String) {
        let text = self.secrets.iter().fold(text, |text, secret| text.replace(secret, "***"));
        self.entries.push((name.to_owned(), text.into_bytes()));
    }

    fn add_answers(
        &mut self,
        address: Option<SocketAddr>,
        setting: &str,
        pages: &[(&str, &str, &str)],
        loaded: &Loaded,
    ) {
        let Some(address) = address else {
            self.missing.extend(pages.iter().map(|(name, ..)| format!("{name}: {setting} is off")));
            return;
        };
        let address = SocketAddr::new(reachable(address.ip()), address.port());
        for (name, path, form) in pages {
            match ask(address, path, form, loaded) {
                // Packed protocol buffers hold stacks and nothing of the configuration.
                Ok(bytes) if name.ends_with(".gz") => self.entries.push(((*name).to_owned(), bytes)),
                Ok(bytes) => self.add_text(name, String::from_utf8_lossy(&bytes).into_owned()),
                Err(error) => self.missing.push(format!("{name}: no answer from http://{address}{path}: {error}")),
            }
        }
    }

    /// The log lies in the data directory, or beside the database where that could not be written.
    fn add_logs(&mut self, loaded: &Loaded) {
        let beside_database = loaded.settings.server.database_path.parent().unwrap_or(Path::new("."));
        for name in LOGS {
            let mut places = [loaded.data_directory.join(name), beside_database.join(name)].into_iter();
            match places.find_map(|path| tail(&path).ok()) {
                Some(text) => self.add_text(&format!("logs/{name}"), text),
                None => self.missing.push(format!("logs/{name}: there is none, or it cannot be read")),
            }
        }
    }

    fn manifest(&self, stamp: &str) -> String {
        let mut text = format!("superchat support bundle of {stamp}\n\nin it:\n");
        for (name, bytes) in &self.entries {
            writeln!(text, "  {name} ({} bytes)", bytes.len()).unwrap_or_default();
        }
        if !self.missing.is_empty() {
            text.push_str("not in it:\n");
        }
        for line in &self.missing {
            writeln!(text, "  {line}").unwrap_or_default();
        }
        text.push_str(
            "\nPasswords, tokens and addresses with keys in them are replaced by ***. Messages are not in it. Nicknames, and \
             addresses of clients as [log] log_ip shows them, stand in the logs.\n",
        );
        text
    }

    fn write(&self, stamp: &str, manifest: &str, file: File) -> io::Result<()> {
        let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let seconds = clock::now().as_second().unsigned_abs();
        let manifest = [("manifest.txt".to_owned(), manifest.as_bytes().to_vec())];
        for (name, bytes) in manifest.iter().chain(&self.entries) {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(seconds);
            header.set_cksum();
            archive.append_data(&mut header, format!("superchat-support-{stamp}/{name}"), bytes.as_slice())?;
        }
        archive.into_inner()?.finish()?.sync_all()
    }
}

/// Every secret of the configuration, and the key inside an address.
fn secrets(loaded: &Loaded) -> Vec<String> {
    let settings = &loaded.settings;
    let all = [&settings.server.admin_password, &settings.admin.metrics_token, &settings.log.sentry_dsn];
    let mut secrets: Vec<String> = all.into_iter().flatten().map(|secret| secret.expose().to_owned()).collect();
    let dsn = settings.log.sentry_dsn.as_ref().map(|dsn| dsn.expose());
    let keys = dsn.and_then(|dsn| dsn.split_once("://")?.1.rsplit_once('@')).map(|(keys, _)| keys);
    secrets.extend(keys.into_iter().flat_map(|keys| keys.split(':')).map(str::to_owned));
    // In JSON and in settings some letters stand behind a backslash.
    let escaped: Vec<String> = secrets.iter().map(|secret| serde_json::json!(secret).to_string()).collect();
    secrets.extend(escaped.iter().map(|text| text.trim_matches('"').to_owned()));
    // Where one is part of another, the longer one goes first.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

fn versions() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    format!(
        "scd {}\ncommit {}\nrustc {}\nSQLite {}\n\n{}\n{}",
        env!("CARGO_PKG_VERSION"),
        option_env!("SUPERCHAT_COMMIT").unwrap_or("unknown"),
        option_env!("SUPERCHAT_RUSTC").unwrap_or("unknown"),
        sqlite_version(),
        read("/proc/version"),
        read("/etc/os-release"),
    )
}

fn ask(address: SocketAddr, path: &str, form: &str, loaded: &Loaded) -> Result<Vec<u8>, ureq::Error> {
    let agent = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_TIME))
        .timeout_global(Some(ANSWER_TIME))
        .proxy(None)
        .max_redirects(0)
        .build()
        .new_agent();
    let mut request = agent.get(format!("http://{address}{path}")).header("Accept", form);
    if let Some(token) = &loaded.settings.admin.metrics_token {
        request = request.header("Authorization", format!("Bearer {}", token.expose()));
    }
    request.call()?.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()
}

/// The end of a log file, from the first whole line on.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(LOG_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let whole = if start == 0 { 0 } else { text.find('\n').map_or(0, |at| at + 1) };
    Ok(text[whole..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_log_begins_with_a_whole_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.log");
        fs::write(&path, "short\n").unwrap();
        assert_eq!(tail(&path).unwrap(), "short\n");
        let lines: String = (0..100_000).map(|number| format!("line {number}\n")).collect();
        fs::write(&path, &lines).unwrap();
        let end = tail(&path).unwrap();
        assert!(end.len() as u64 <= LOG_BYTES_MAX && end.len() as u64 > LOG_BYTES_MAX - 20);
        assert!(end.starts_with("line ") && lines.ends_with(&end));
    }
}
