//! Signing in by key (BEHAVIOUR.md 1.8): whose key it is, or an account made for it. Called only once the client has proved
//! to hold the key.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::{HashAlg, LineEnding};
use russh::keys::{Algorithm, PrivateKey, PublicKey, decode_secret_key};
use thiserror::Error;
use tracing::{error, info, warn};

use crate::clock;
use crate::desk::{Desk, DeskError};
use crate::handlers::{auth, keys};
use crate::ids::UserId;
use crate::log;
use crate::metrics::{AuthMethod, AuthResult, Metrics};
use crate::passwords;
use crate::shard::KeyLogin;
use crate::shard::rate::PartyWindow;
use crate::shard::settings::InForce;
use crate::store::{Account, Answer, Command, Event, NewSshKey, Query, Refusal, Store};
use crate::text;

/// Accounts that one party may have made, and in which time (BEHAVIOUR.md 1.8).
const REGISTRATIONS_MAX: u32 = 10;
const REGISTRATIONS_PERIOD_MS: u64 = 3600 * 1000;

/// Who gives no name.
const NAMELESS: &str = "user";
const LABEL: &[u8] = b"Auto-registered";

/// Who holds a key, for as long as the connection lasts. What the account may do is asked anew for each session.
#[derive(Debug)]
pub(super) struct Identity {
    user: UserId,
    fingerprint: Box<str>,
}

/// The key does not sign in. The reason is in the log; SSH has no words for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

/// Why the port has no key to show.
#[derive(Debug, Error)]
pub enum HostKeyError {
    #[error("ssh host key {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("ssh host key {}: {source}; restore it from a backup, or move it away to have a new one made", .path.display())]
    Unreadable { path: PathBuf, source: russh::keys::Error },
    #[error("cannot make an ssh host key: {0}")]
    Make(#[from] russh::keys::ssh_key::Error),
}

/// The host key, made when there is none. A file that is there is never changed, because clients remember it.
///
/// # Errors
/// [`HostKeyError`].
pub fn host_key(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let io_error = |source| HostKeyError::Io { path: path.to_owned(), source };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            decode_secret_key(&text, None).map_err(|source| HostKeyError::Unreadable { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519)?;
            save(path, key.to_openssh(LineEnding::LF)?.as_bytes()).map_err(io_error)?;
            info!("Generated and saved new SSH host key");
            Ok(key)
        }
        Err(error) => Err(io_error(error)),
    }
}

/// Whole or not at all: a host key that is cut short would keep the server from starting, and one that a power cut takes
/// back would frighten every client that saw it.
fn save(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let draft = path.with_extension("new");
    // Left behind by a crash, perhaps with another mode.
    std::fs::remove_file(&draft)
        .or_else(|error| (error.kind() == io::ErrorKind::NotFound).then_some(()).ok_or(error))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

/// What it takes to find out who somebody is.
pub struct Login {
    store: Arc<dyn Store>,
    desk: Arc<Desk>,
    metrics: Arc<Metrics>,
    settings: Arc<InForce>,
    registrations: PartyWindow,
}

impl Login {
    pub fn new(store: Arc<dyn Store>, desk: Arc<Desk>, metrics: Arc<Metrics>, settings: Arc<InForce>) -> Self {
        let registrations = PartyWindow::new(Some(REGISTRATIONS_MAX), REGISTRATIONS_PERIOD_MS);
        Self { store, desk, metrics, settings, registrations }
    }

    /// Signs in whoever owns `key`, whatever `user` is; an unknown key gets an account of that name.
    ///
    /// # Errors
    /// [`Refused`].
    pub(super) async fn by_key(&self, user: &str, key: &PublicKey, address: IpAddr) -> Result<Identity, Refused> {
        let user = if user.is_empty() { NAMELESS } else { user };
        let fingerprint: Box<str> = key.fingerprint(HashAlg::Sha256).to_string().into();
        let attempt = Attempt { login: self, user, fingerprint, address };
        let user = match self.owner(&attempt.fingerprint).await {
            Ok(Answer::Account { account: Some(account), ban }) => {
                if let Some(ban) = ban.filter(|ban| !ban.shadow) {
                    return Err(attempt.refuse(AuthResult::Banned, &banned(&ban)));
                }
                attempt.sign_in(account).await?
            }
            Ok(Answer::Account { account: None, .. }) => attempt.register(key).await?,
            Ok(_) | Err(_) => return Err(attempt.refuse(AuthResult::Failed, "the database does not answer")),
        };
        Ok(Identity { user, fingerprint: attempt.fingerprint })
    }

    /// Whom a session is to sign in; `None` when the account is gone, was banned, or lost the key since the connection
    /// did.
    pub(super) async fn session(&self, identity: &Identity) -> Option<KeyLogin> {
        let Ok(Answer::Account { account: Some(account), ban }) = self.owner(&identity.fingerprint).await else {
            return None;
        };
        if account.id != identity.user || ban.is_some_and(|ban| !ban.shadow) {
            return None;
        }
        Some(KeyLogin { user: account.id, nickname: account.nickname, fingerprint: identity.fingerprint.clone() })
    }

    async fn owner(&self, fingerprint: &str) -> Result<Answer, DeskError> {
        self.desk.ask(&*self.store, Query::AccountByKey { fingerprint: fingerprint.into() }).await
    }

    /// The flags that the account has from now on.
    async fn store_sign_in(&self, account: &Account, fingerprint: &str) -> Result<u8, DeskError> {
        let flags = self.settings.get().flags_for(&account.nickname);
        let command = Command::SignInByKey { user: account.id, flags, fingerprint: fingerprint.into() };
        let event = self.desk.submit(&*self.store, command).await?;
        Ok(if let Event::SignedIn { flags, .. } = event { flags } else { flags })
    }
}

fn banned(ban: &crate::store::Ban) -> String {
    match ban.until {
        None => "account banned permanently".to_owned(),
        Some(until) => format!("account banned until {}", clock::rfc3339(until)),
    }
}

/// One attempt of one client.
struct Attempt<'a> {
    login: &'a Login,
    /// The name that the client gave itself.
    user: &'a str,
    fingerprint: Box<str>,
    address: IpAddr,
}

impl Attempt<'_> {
    fn refuse(&self, result: AuthResult, reason: &str) -> Refused {
        self.login.metrics.auth(AuthMethod::SshKey, result);
        let (user, remote) = (self.user, log::peer(self.address));
        warn!(target: "security", user, %remote, "SSH auth rejected: user {user}: {reason} (authentication failed)");
        Refused
    }

    fn refuse_unanswered(&self, error: DeskError) -> Refused {
        error!(%error, "an SSH sign-in could not be stored");
        self.refuse(AuthResult::Failed, "the database does not answer")
    }

    async fn sign_in(&self, account: Account) -> Result<UserId, Refused> {
        match self.login.store_sign_in(&account, &self.fingerprint).await {
            Ok(flags) => {
                auth::log_cleared_flag(&account, flags);
                self.login.metrics.auth(AuthMethod::SshKey, AuthResult::Ok);
                let (nickname, id) = (String::from_utf8_lossy(&account.nickname), account.id);
                info!(target: "security", user = %nickname,
                    "SSH auth: user {nickname} (ID: {id}, fingerprint: {})", self.fingerprint);
                Ok(id)
            }
            Err(DeskError::Refused(Refusal::UserNotFound | Refusal::SshKeyNotFound)) => {
                Err(self.refuse(AuthResult::Failed, "the public key does not match any account"))
            }
            Err(error) => Err(self.refuse_unanswered(error)),
        }
    }

    /// An account for an unknown key, under the name that the client gave itself.
    async fn register(&self, key: &PublicKey) -> Result<UserId, Refused> {
        let Some(nickname) = text::nickname(self.user.as_bytes()) else {
            return Err(self
                .refuse(AuthResult::Failed, "the name is no nickname, and the public key does not match any account"));
        };
        let taken = self.login.desk.ask(&*self.login.store, Query::Account { nickname: nickname.clone() }).await;
        match taken {
            Ok(Answer::Account { account: None, ban }) => {
                if let Some(ban) = ban.filter(|ban| !ban.shadow) {
                    return Err(self.refuse(AuthResult::Banned, &banned(&ban)));
                }
            }
            Ok(Answer::Account { account: Some(_), .. }) => return Err(self.refuse_taken()),
            Ok(_) => return Err(self.refuse(AuthResult::Failed, "the database does not answer")),
            Err(error) => return Err(self.refuse_unanswered(error)),
        }
        if !self.login.registrations.admit(self.address, clock::monotonic_ms()) {
            warn!(target: "security", "SSH auto-register rate limit exceeded from {}", log::peer(self.address));
            return Err(self.refuse(AuthResult::Throttled, "auto-registration rate limit exceeded"));
        }
        let key = keys::stored_form(key.clone(), LABEL).map_err(|error| self.refuse(AuthResult::Failed, &error))?;
        self.store_account(nickname, key).await
    }

    async fn store_account(&self, nickname: crate::store::Name, key: NewSshKey) -> Result<UserId, Refused> {
        let Some(password_hash) = unknown_password().await else {
            return Err(self.refuse(AuthResult::Failed, "no password could be made"));
        };
        let flags = self.login.settings.get().flags_for(&nickname);
        let command = Command::RegisterByKey { nickname: nickname.clone(), password_hash, flags, key: Box::new(key) };
        match self.login.desk.submit(&*self.login.store, command).await {
            Ok(Event::Registered { user, nickname, .. }) => {
                self.login.metrics.auth(AuthMethod::SshKey, AuthResult::Ok);
                let name = String::from_utf8_lossy(&nickname);
                info!(target: "security", user = %name,
                    "Auto-registered new user {name} (ID: {user}) via SSH (fingerprint: {})", self.fingerprint);
                Ok(user)
            }
            Err(DeskError::Refused(Refusal::NicknameTaken)) => Err(self.refuse_taken()),
            Ok(_) => Err(self.refuse(AuthResult::Failed, "the database does not answer")),
            Err(error) => Err(self.refuse_unanswered(error)),
        }
    }

    fn refuse_taken(&self) -> Refused {
        let reason = format!(
            "nickname \"{}\" is already registered; add your SSH key via the client (the public key does not match)",
            self.user
        );
        self.refuse(AuthResult::Failed, &reason)
    }
}

/// The hash of a password that nobody knows: a fresh key's fingerprint. Takes some 50 ms, beside the connections.
async fn unknown_password() -> Option<Box<str>> {
    let hash = || {
        let secret = PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).ok()?.fingerprint(HashAlg::Sha256);
        passwords::hash(secret.as_bytes())
    };
    tokio::task::spawn_blocking(hash).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_host_key_is_made_once_for_the_server_alone_and_never_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys/ssh_host_key");
        std::fs::create_dir(directory.path().join("keys")).unwrap();
        std::fs::write(path.with_extension("new"), "left behind, for all to read").unwrap();
        let made = host_key(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(host_key(&path).unwrap().fingerprint(HashAlg::Sha256), made.fingerprint(HashAlg::Sha256));

        assert!(host_key(&directory.path().join("not/there/yet/key")).is_ok());
        std::fs::write(&path, "no key").unwrap();
        assert!(matches!(host_key(&path), Err(HostKeyError::Unreadable { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "no key");
    }
}
