//! SSH keys of an account (BEHAVIOUR.md 2.16). That there is an account was checked before reading (WIRE.md 8).

use russh::keys::PublicKey;
use russh::keys::ssh_key::HashAlg;

use crate::ids::SshKeyId;
use crate::shard::Shard;
use crate::shard::session::SessionKey;
use crate::store::{Answer, Command, Event, Name, NewSshKey, Query, Refusal, SshKey};
use crate::wire::codec::LongList;
use crate::wire::records::SshKeyEntry;
use crate::wire::{ErrorCode, client, server};

/// Longest line of a key, far above those of the largest keys in use.
const KEY_LINE_BYTES_MAX: usize = 16 * 1024;
/// What is kept of a label.
const LABEL_BYTES_MAX: usize = 255;

const NOT_YOURS: &str = "SSH key not found or does not belong to you";

/// A public key as it is stored, its label cut to what is kept.
///
/// # Errors
/// What is wrong with the line, for people.
pub fn parse_key(line: &[u8], label: &[u8]) -> Result<NewSshKey, String> {
    if line.len() > KEY_LINE_BYTES_MAX {
        return Err("the line is too long".to_owned());
    }
    let line = std::str::from_utf8(line).map_err(|_| "not text".to_owned())?;
    let key = PublicKey::from_openssh(line.trim()).map_err(|error| error.to_string())?;
    stored_form(key, label)
}

/// What is stored of a key; its comment is not.
///
/// # Errors
/// What is wrong with the key, for people.
pub fn stored_form(mut key: PublicKey, label: &[u8]) -> Result<NewSshKey, String> {
    key.set_comment("");
    Ok(NewSshKey {
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string().into(),
        public_key: key.to_openssh().map_err(|error| error.to_string())?.trim_end().into(),
        key_type: key.algorithm().as_str().into(),
        label: short_label(label),
    })
}

fn short_label(label: &[u8]) -> Name {
    label[..label.len().min(LABEL_BYTES_MAX)].into()
}

fn added(shard: &mut Shard, key: SessionKey, outcome: Result<(SshKeyId, &str), &str>) {
    let (stored, fingerprint) = outcome.unwrap_or_default();
    let error_message = outcome.err().unwrap_or_default().as_bytes();
    shard.reply(
        key,
        server::SshKeyAdded {
            success: outcome.is_ok(),
            key_id: stored.as_sql(),
            fingerprint: fingerprint.as_bytes(),
            error_message,
        },
    );
}

/// ADD_SSH_KEY: a key signs in to one account.
pub fn add_ssh_key(shard: &mut Shard, key: SessionKey, request: &client::AddSshKey<'_>) {
    let Some(user) = shard.clients.session(key).user() else { return };
    if request.public_key.is_empty() {
        return added(shard, key, Err("Public key cannot be empty"));
    }
    let new = match parse_key(request.public_key, request.label) {
        Ok(new) => Box::new(new),
        Err(cause) => return added(shard, key, Err(&format!("Invalid SSH public key: {cause}"))),
    };
    shard.submit(key, Command::AddSshKey { user, key: new }, |shard, key, result| match result {
        Ok(Event::SshKeyAdded { key: stored, fingerprint }) => added(shard, key, Ok((stored, &fingerprint))),
        Err(Refusal::SshKeyExists) => added(shard, key, Err("SSH key already exists")),
        Err(Refusal::TooManySshKeys) => added(shard, key, Err("Too many SSH keys (max 50)")),
        Err(Refusal::UserNotFound) => added(shard, key, Err("User not found")),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Failed to add SSH key"),
    });
}

/// LIST_SSH_KEYS: newest first.
pub fn list_ssh_keys(shard: &mut Shard, key: SessionKey) {
    let Some(user) = shard.clients.session(key).user() else { return };
    shard.ask(key, Query::SshKeys { user }, |shard, key, answer| match answer {
        Answer::SshKeys(stored) => {
            let keys = LongList(stored.iter().map(entry).collect());
            shard.reply(key, server::SshKeyList { keys });
        }
        _ => shard.error(key, ErrorCode::Database, "Failed to retrieve SSH keys"),
    });
}

fn entry(stored: &SshKey) -> SshKeyEntry<'_> {
    SshKeyEntry {
        key_id: stored.id.as_sql(),
        fingerprint: &stored.fingerprint,
        key_type: &stored.key_type,
        label: &stored.label,
        added_at: stored.added_at,
        last_used_at: stored.last_used_at.unwrap_or(0),
    }
}

/// UPDATE_SSH_KEY_LABEL: of one's own key.
pub fn update_ssh_key_label(shard: &mut Shard, key: SessionKey, request: &client::UpdateSshKeyLabel<'_>) {
    let Some(user) = shard.clients.session(key).user() else { return };
    let command =
        Command::RelabelSshKey { user, key: SshKeyId::from_sql(request.key_id), label: short_label(request.new_label) };
    shard.submit(key, command, |shard, key, result| {
        let failure = match result {
            Ok(_) => None,
            Err(Refusal::SshKeyNotFound) => Some(NOT_YOURS),
            Err(_) => return shard.error(key, ErrorCode::Database, "Failed to update SSH key label"),
        };
        let error_message = failure.unwrap_or_default().as_bytes();
        shard.reply(key, server::SshKeyLabelUpdated { success: failure.is_none(), error_message });
    });
}

/// DELETE_SSH_KEY: one's own, and not the last way to sign in.
pub fn delete_ssh_key(shard: &mut Shard, key: SessionKey, request: &client::DeleteSshKey) {
    let Some(user) = shard.clients.session(key).user() else { return };
    let command = Command::DeleteSshKey { user, key: SshKeyId::from_sql(request.key_id) };
    shard.submit(key, command, |shard, key, result| {
        let failure = match result {
            Ok(_) => None,
            Err(Refusal::SshKeyNotFound) => Some(NOT_YOURS),
            Err(Refusal::LastSshKey) => Some("Cannot delete last SSH key when no password is set"),
            Err(_) => return shard.error(key, ErrorCode::Database, "Failed to delete SSH key"),
        };
        let error_message = failure.unwrap_or_default().as_bytes();
        shard.reply(key, server::SshKeyDeleted { success: failure.is_none(), error_message });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti someone@example";

    #[test]
    fn a_key_is_stored_without_its_comment_and_found_by_its_fingerprint() {
        let key = parse_key(LINE.as_bytes(), b"laptop").unwrap();
        assert_eq!(&*key.fingerprint, "SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ");
        assert_eq!((&*key.key_type, &*key.label), ("ssh-ed25519", &b"laptop"[..]));
        assert!(LINE.starts_with(&*key.public_key) && !key.public_key.contains("someone"), "{}", key.public_key);
    }

    #[test]
    fn what_is_no_key_is_refused_and_labels_are_cut() {
        for line in ["", "ssh-ed25519", "ssh-ed25519 AAAA", "nonsense of any kind", &"x".repeat(100_000)] {
            assert!(parse_key(line.as_bytes(), b"").is_err(), "{line}");
        }
        assert!(parse_key(b"\xff\xfe", b"").is_err());
        assert_eq!(parse_key(LINE.as_bytes(), &[b'l'; 1000]).unwrap().label.len(), LABEL_BYTES_MAX);
    }
}
