//! Where files lie when no setting says so: DESIGN.md "Ports and files", BEHAVIOUR.md 9.1.

use std::path::{Path, PathBuf};

use super::raw::{Environment, Notes, Origin};
use super::resolve::Origins;
use super::table::Server;

/// The folders that the environment names.
pub(super) struct Places {
    pub(super) home: Option<PathBuf>,
    /// Parent of the data directory's candidates, best first; each is used as it is.
    data: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl Places {
    pub(super) fn of(environment: &Environment) -> Self {
        let home = environment.folder("HOME");
        let below_home = |folder: &str| home.as_ref().map(|home| home.join(folder));
        let data = state_directory(environment)
            .or_else(|| environment.folder("XDG_DATA_HOME").map(|folder| folder.join("superchat")))
            .or_else(|| below_home(".local/share/superchat"));
        let config = environment
            .folder("XDG_CONFIG_HOME")
            .map(|folder| folder.join("superchat/config.toml"))
            .or_else(|| below_home(".config/superchat/config.toml"));
        Self { home, data, config }
    }

    /// `path` with a leading `~/` expanded, where a home is known.
    pub(super) fn expand(&self, path: PathBuf) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path,
        }
    }

    /// The configuration file at its usual or its old place, if there is one.
    pub(super) fn usual_config(&self, notes: &mut Notes) -> Option<PathBuf> {
        let usual = self.config.clone().filter(|path| path.exists());
        usual.or_else(|| self.old("config.toml", "configuration", notes))
    }

    /// The data directory. Without any folder in the environment, data lies beside a database that a setting names.
    pub(super) fn data_directory(&self, database_path: &Path) -> Option<PathBuf> {
        let beside = || database_path.parent().map(Path::to_path_buf);
        let here_if_empty = |path: PathBuf| if path.as_os_str().is_empty() { PathBuf::from(".") } else { path };
        self.data.clone().or_else(beside).map(here_if_empty)
    }

    /// Gives the files that no setting names their place.
    pub(super) fn settle_files(
        &self,
        server: &mut Server,
        data_directory: &Path,
        origins: &mut Origins,
        notes: &mut Notes,
    ) {
        let files = [
            ("ssh_host_key", "ssh_host_key", "SSH host key", &mut server.ssh_host_key),
            ("database_path", "superchat.db", "database", &mut server.database_path),
        ];
        for (key, name, what, path) in files.into_iter().filter(|(.., path)| path.as_os_str().is_empty()) {
            *path = data_directory.join(name);
            if path.exists() {
                continue;
            }
            if let Some(old) = self.old(name, what, notes) {
                *path = old;
                origins.set("server", key, Origin::OldPlace);
            }
        }
    }

    /// The file of the existing server, if there is one; using it is said.
    fn old(&self, name: &str, what: &str, notes: &mut Notes) -> Option<PathBuf> {
        let path = self.home.as_ref()?.join(".superchat").join(name);
        if !path.exists() {
            return None;
        }
        notes.notices.push(format!("using the {what} found at its old place, {}", path.display()));
        Some(path)
    }
}

/// systemd names several directories in one variable, separated by colons; the first is ours.
fn state_directory(environment: &Environment) -> Option<PathBuf> {
    let directories = environment.get("STATE_DIRECTORY")?;
    std::env::split_paths(directories).next().filter(|path| path.is_absolute())
}
