//! Nicknames and accounts (BEHAVIOUR.md 2.1 to 2.4, CHANGE_PASSWORD in 2.16).

use tracing::{debug, info, warn};

use crate::clock;
use crate::ids::UserId;
use crate::limits::BAN_REASON_BYTES_MAX;
use crate::metrics::{AuthMethod, AuthResult, RateLimit};
use crate::net::CloseReason;
use crate::passwords::{HashJob, HashOutcome};
use crate::shard::roster::Repeat;
use crate::shard::session::{Flight, SessionKey, SignedIn};
use crate::shard::{KeyLogin, Shard};
use crate::store::{Account, Answer, Ban, Command, Event, FLAG_ADMIN, Name, Query, Refusal};
use crate::text;
use crate::wire::codec::Tail;
use crate::wire::records::Failed;
use crate::wire::{ErrorCode, client, server};

const TOO_MANY_ATTEMPTS: &str = "Too many attempts. Try again later.";
const BUSY: &str = "Server is busy. Try again.";
const INVALID_CREDENTIALS: &str = "Invalid credentials";
const INVALID_HASH: &str = "Invalid password hash format";

/// Lengths of what clients send as a password, in bytes (WIRE.md 7.2).
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 40..=50;

/// Bytes of a name that attempts on an account are counted by; the longest name that can be chosen has 20.
const ACCOUNT_KEY_BYTES: usize = 64;

/// After a start everybody has to sign in again. For so long, sign-ins that succeed do not count for their address.
const RETURN_SECONDS: u64 = 120;

/// After a sign-in, a client whose account was renamed salts its old password with the new name; for so long it is not
/// compared (D-08). Milliseconds.
const RENAMED_PASSWORD_GRACE_MS: u64 = 10 * 60 * 1000;

/// Whether a client may send this for a password.
#[must_use]
pub fn is_secret(secret: &[u8]) -> bool {
    SECRET_BYTES.contains(&secret.len())
}

fn lossy(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

/// Everybody hears of the session again, whether or not it changed.
const REPEAT: Repeat = Repeat { server: true, channel: true };

// SET_NICKNAME

fn nickname_response(shard: &mut Shard, key: SessionKey, success: bool, text: &str) {
    shard.reply(key, server::NicknameResponse { success, message: text.as_bytes() });
}

/// SET_NICKNAME: a visitor may carry any legal name, an account is renamed.
pub fn set_nickname(shard: &mut Shard, key: SessionKey, request: &client::SetNickname<'_>) {
    const RULE: &str = "Invalid nickname. Must be 3-20 characters, alphanumeric plus - and _";
    let Some(nickname) = text::nickname(request.nickname.0) else { return nickname_response(shard, key, false, RULE) };
    let newest = shard.newest_ban();
    shard.ask(key, Query::Account { nickname: nickname.clone() }, move |shard, key, answer| {
        let Answer::Account { account, ban } = answer else { return };
        if let Some(ban) = ban.filter(|ban| !ban.shadow) {
            return nickname_response(shard, key, false, &ban_text(&ban));
        }
        shard.trust_file(None, &nickname, newest);
        let session = shard.clients.session(key);
        let renames = session.account.filter(|_| session.nickname.as_ref() != Some(&nickname));
        match renames {
            Some(signed_in) => rename(shard, key, signed_in.user, nickname, account),
            None => adopt(shard, key, nickname, account),
        }
    });
}

fn rename(shard: &mut Shard, key: SessionKey, user: UserId, nickname: Name, owner: Option<Account>) {
    const IN_USE: &str = "Nickname already in use";
    // Nobody becomes an admin by taking a listed name (D-09). What rights the session was told once may be others by now.
    let listed = |name: &Name| shard.settings.flags_for(name) & FLAG_ADMIN != 0;
    let listed_as = shard.clients.session(key).nickname.clone().filter(listed);
    let (flags, wanted) = (shard.settings.flags_for(&nickname), nickname.clone());
    let rename = Command::Rename { user, nickname, flags, listed_as };
    shard.submit(key, rename, move |shard, key, result| match result {
        Ok(Event::Renamed { nickname, flags, .. }) => {
            shard.set_account(key, Some(SignedIn { flags, user }));
            adopt(shard, key, nickname, owner);
        }
        // The ban came between the question and the writer, so the shard knows it by now.
        Err(Refusal::NicknameBanned) => {
            let text = shard.refusing_ban(None, &wanted).map(|ban| ban_text(&ban));
            nickname_response(shard, key, false, text.as_deref().unwrap_or(IN_USE));
        }
        Err(Refusal::NicknameTaken) => nickname_response(shard, key, false, IN_USE),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Internal, "Failed to update nickname"),
    });
}

/// The session carries the name from now on.
fn adopt(shard: &mut Shard, key: SessionKey, nickname: Name, owner: Option<Account>) {
    // A ban may have come between the question and its answer.
    let user = shard.clients.session(key).user();
    if let Some(ban) = shard.refusing_ban(user, &nickname) {
        return nickname_response(shard, key, false, &ban_text(&ban));
    }
    let session = shard.clients.session(key);
    let before = session.nickname.replace(nickname.clone());
    let (id, user) = (session.id, session.user());
    let verb = if before.as_ref().is_none_or(|before| *before == nickname) { "set" } else { "changed" };
    nickname_response(shard, key, true, &format!("Nickname {verb} to {}", lossy(&nickname)));
    info!(session = id.0, "Session {id} set nickname: {}", lossy(&nickname));
    if before.is_none() {
        shard.send_roster(key);
    }
    shard.announce(key, REPEAT);
    if let Some(owner) = owner.filter(|owner| Some(owner.id) != user) {
        let user_id = Some(owner.id);
        shard.reply(key, server::UserInfo { nickname: &nickname, is_registered: true, user_id, online: true });
    }
    shard.meet_bans(key);
}

// AUTH_REQUEST

fn refuse_sign_in(shard: &mut Shard, key: SessionKey, result: AuthResult, text: &str) {
    shard.metrics.global().auth(AuthMethod::Password, result);
    shard.reply(key, server::AuthResponse { outcome: Err(Failed { message: text.as_bytes() }) });
}

/// AUTH_REQUEST: signs in, replacing any identity the session had.
pub fn auth_request(shard: &mut Shard, key: SessionKey, request: &client::AuthRequest<'_>) {
    let (nickname, secret) = (Name::from(request.nickname), Box::from(request.password_hash));
    let session = shard.clients.session(key).id;
    debug!(session = session.0, "Session {session}: AUTH_REQUEST for nickname {}", lossy(&nickname));
    let returning = shard.uptime_seconds() < RETURN_SECONDS;
    if !may_attempt(shard, key, &nickname, returning) {
        return refuse_sign_in(shard, key, AuthResult::Throttled, TOO_MANY_ATTEMPTS);
    }
    let newest = shard.newest_ban();
    shard.ask(key, Query::Account { nickname: nickname.clone() }, move |shard, key, answer| {
        let Answer::Account { account, ban } = answer else { return };
        if let (Some(account), true) = (&account, ban.as_ref().is_none_or(|ban| ban.shadow)) {
            shard.trust_file(Some(account.id), &account.nickname, newest);
        }
        if account.as_ref().is_some_and(|account| account.password_hash.is_empty()) {
            let text = "This account requires SSH authentication. Please connect via SSH.";
            count_failure(shard, key, returning);
            return refuse_sign_in(shard, key, AuthResult::Failed, text);
        }
        // An account that does not exist costs as much as one that does.
        let stored = account.as_ref().map(|account| account.password_hash.clone());
        shard.hash(key, HashJob::Verify { secret, stored }, move |shard, key, outcome| match (outcome, account) {
            (HashOutcome::Verified(true), Some(account)) => verified(shard, key, account, ban),
            (HashOutcome::Busy, _) => refuse_sign_in(shard, key, AuthResult::Throttled, BUSY),
            (_, account) => {
                count_failure(shard, key, returning);
                log_failure(shard, key, &nickname, account.is_some());
                refuse_sign_in(shard, key, AuthResult::Failed, INVALID_CREDENTIALS);
            }
        });
    });
}

fn count_failure(shard: &mut Shard, key: SessionKey, returning: bool) {
    let (now, session) = (shard.now.mono, shard.clients.session(key));
    if !session.is_exempt() {
        let address = session.address();
        shard.rates.sign_in_failed(address, now, returning);
    }
}

fn log_failure(shard: &mut Shard, key: SessionKey, nickname: &Name, known: bool) {
    let client = shard.clients.session(key);
    let (session, remote) = (client.id, client.address());
    let cause = if known { "password verification failed" } else { "nickname not registered" };
    let nickname = lossy(nickname);
    let remote = crate::log::peer(remote);
    warn!(target: "security", session = session.0, user = %nickname, %remote,
        "Session {session}: AUTH_REQUEST failed - {cause} for user {nickname} (authentication failed)");
}

/// Whether one more attempt is allowed for the session's address and for the account.
fn may_attempt(shard: &mut Shard, key: SessionKey, nickname: &[u8], returning: bool) -> bool {
    let session = shard.clients.session(key);
    if session.is_exempt() {
        return true;
    }
    let (address, now) = (session.address(), shard.now.mono);
    // A name may have 64 KiB, and a table of such names would be anybody's to fill.
    let account = &nickname[..nickname.len().min(ACCOUNT_KEY_BYTES)];
    let allowed = shard.rates.admit_sign_in(address, account, now, returning);
    if !allowed {
        shard.rate_limited(key, RateLimit::Auth);
    }
    allowed
}

/// The password is right.
fn verified(shard: &mut Shard, key: SessionKey, account: Account, ban: Option<Ban>) {
    if let Some(ban) = ban.filter(|ban| !ban.shadow) {
        return refuse_banned(shard, key, &account, &ban);
    }
    let flags = shard.settings.flags_for(&account.nickname);
    let user = account.id;
    shard.submit(key, Command::SignIn { user, flags }, move |shard, key, result| match result {
        Ok(event) => {
            let flags = if let Event::SignedIn { flags, .. } = event { flags } else { flags };
            // A ban may have come between the question and its answer.
            match shard.refusing_ban(Some(user), &account.nickname) {
                Some(ban) => refuse_banned(shard, key, &account, &ban),
                None => {
                    log_cleared_flag(&account, flags);
                    signed_in(shard, key, &account, flags);
                }
            }
        }
        Err(Refusal::UserNotFound) => refuse_sign_in(shard, key, AuthResult::Failed, INVALID_CREDENTIALS),
        Err(_) => shard.error(key, ErrorCode::Database, "Database error"),
    });
}

fn refuse_banned(shard: &mut Shard, key: SessionKey, account: &Account, ban: &Ban) {
    let session = shard.clients.session(key).id;
    let (nickname, id) = (lossy(&account.nickname), account.id);
    warn!(target: "security", session = session.0, "Session {session}: rejected login for banned user {nickname} (id={id})");
    refuse_sign_in(shard, key, AuthResult::Banned, &ban_text(ban));
}

/// Operators are told to set the flag in the file, where it does not last (BEHAVIOUR.md 11.4).
pub fn log_cleared_flag(account: &Account, flags: u8) {
    if account.flags & FLAG_ADMIN > flags & FLAG_ADMIN {
        info!(user = %lossy(&account.nickname), "admin flag cleared: the account is not in admin_users");
    }
}

fn signed_in(shard: &mut Shard, key: SessionKey, account: &Account, flags: u8) {
    let by_password_at = Some(shard.now.mono);
    let session = shard.clients.session(key);
    session.busy().by_password_at = by_password_at;
    let (id, nickname) = (session.id, lossy(&account.nickname));
    info!(target: "security", session = id.0, user = %nickname,
        "Session {id}: AUTH_REQUEST succeeded for user {nickname} (id={})", account.id);
    shard.metrics.global().auth(AuthMethod::Password, AuthResult::Ok);
    welcome(shard, key, SignedIn { user: account.id, flags }, &account.nickname, &format!("Welcome back, {nickname}!"));
}

/// Whoever came with a key is signed in before the first request (BEHAVIOUR.md 1.8). The session asks for it itself, so
/// that what became of the account meanwhile is known by then, and what comes later finds the session.
pub fn came_by_key(shard: &mut Shard, key: SessionKey, login: KeyLogin) {
    let KeyLogin { user, nickname, fingerprint } = login;
    let flags = shard.settings.flags_for(&nickname);
    shard.submit(key, Command::SignInByKey { user, flags, fingerprint }, move |shard, key, result| match result {
        Ok(Event::SignedIn { flags, .. }) => match shard.refusing_ban(Some(user), &nickname) {
            Some(ban) => turn_away(shard, key, AuthResult::Banned, &ban_text(&ban)),
            None => {
                shard.clients.session(key).busy().by_key = Some(user);
                let text = format!("Authenticated via SSH as {}", lossy(&nickname));
                welcome(shard, key, SignedIn { user, flags }, &nickname, &text);
            }
        },
        Err(Refusal::UserNotFound | Refusal::SshKeyNotFound) => {
            turn_away(shard, key, AuthResult::Failed, "Your key does not sign in any more");
        }
        Ok(_) | Err(_) => turn_away(shard, key, AuthResult::Failed, "Database error"),
    });
    // A full queue: the session was told so, and is nobody else.
    if matches!(shard.clients.session(key).flight, Flight::None) {
        shard.disconnect(key, CloseReason::Kicked, BUSY);
    }
}

/// Whoever came with a key came as that account, or not at all.
fn turn_away(shard: &mut Shard, key: SessionKey, result: AuthResult, text: &str) {
    shard.metrics.global().auth(AuthMethod::SshKey, result);
    shard.reply(key, server::AuthResponse { outcome: Err(Failed { message: text.as_bytes() }) });
    let reason = if result == AuthResult::Banned { CloseReason::Banned } else { CloseReason::Kicked };
    shard.disconnect(key, reason, text);
}

/// The session is this account from now on, and everybody who may know it does.
fn welcome(shard: &mut Shard, key: SessionKey, account: SignedIn, nickname: &Name, text: &str) {
    shard.set_account(key, Some(account));
    shard.clients.session(key).nickname = Some(nickname.clone());
    let granted = server::SignedIn {
        user_id: account.user,
        nickname,
        message: text.as_bytes(),
        user_flags: Tail(Some(account.flags)),
    };
    shard.reply(key, server::AuthResponse { outcome: Ok(granted) });
    shard.send_roster(key);
    shard.send_dms(key);
    shard.announce(key, REPEAT);
    shard.meet_bans(key);
}

/// What a banned account or name is told.
#[must_use]
pub fn ban_text(ban: &Ban) -> String {
    let reason = lossy(&ban.reason[..ban.reason.len().min(BAN_REASON_BYTES_MAX)]);
    match ban.until {
        None => format!("Account banned permanently. Reason: {reason}"),
        Some(until) => format!("Account banned until {}. Reason: {reason}", clock::rfc3339(until)),
    }
}

/// LOGOUT: no answer. The nickname stays.
pub fn logout(shard: &mut Shard, key: SessionKey) {
    if shard.clients.session(key).account.is_some() {
        shard.set_account(key, None);
        shard.announce(key, REPEAT);
    }
}

// REGISTER_USER

fn refuse_registration(shard: &mut Shard, key: SessionKey, text: &str) {
    shard.reply(key, server::RegisterResponse { outcome: Err(Failed { message: text.as_bytes() }) });
}

/// REGISTER_USER: claims the session's current nickname.
pub fn register_user(shard: &mut Shard, key: SessionKey, request: &client::RegisterUser<'_>) {
    let Some(nickname) = shard.clients.session(key).nickname.clone() else {
        return refuse_registration(shard, key, "Must set nickname before registering");
    };
    if !is_secret(request.password_hash) {
        return refuse_registration(shard, key, INVALID_HASH);
    }
    if !may_attempt(shard, key, &nickname, false) {
        return refuse_registration(shard, key, TOO_MANY_ATTEMPTS);
    }
    let job = HashJob::Hash { secret: request.password_hash.into() };
    shard.hash(key, job, move |shard, key, outcome| match outcome {
        HashOutcome::Hashed(password_hash) => register(shard, key, nickname, password_hash),
        HashOutcome::Busy => refuse_registration(shard, key, BUSY),
        HashOutcome::Verified(_) | HashOutcome::Failed => {
            shard.error(key, ErrorCode::Internal, "Failed to hash password");
        }
    });
}

fn register(shard: &mut Shard, key: SessionKey, nickname: Name, password_hash: Box<str>) {
    let flags = shard.settings.flags_for(&nickname);
    shard.submit(key, Command::Register { nickname, password_hash, flags }, |shard, key, result| match result {
        Ok(Event::Registered { user, nickname, flags }) => {
            let by_password_at = Some(shard.now.mono);
            shard.set_account(key, Some(SignedIn { user, flags }));
            let session = shard.clients.session(key);
            session.busy().by_password_at = by_password_at;
            let text = format!("Successfully registered {}!", lossy(&nickname));
            let registered = server::Registered { user_id: user, message: text.as_bytes() };
            shard.reply(key, server::RegisterResponse { outcome: Ok(registered) });
            shard.announce(key, Repeat { server: true, channel: false });
            shard.meet_bans(key);
        }
        Err(Refusal::NicknameTaken) => refuse_registration(shard, key, "Nickname already registered"),
        Ok(_) | Err(_) => shard.error(key, ErrorCode::Database, "Database error"),
    });
}

// CHANGE_PASSWORD

fn password_changed(shard: &mut Shard, key: SessionKey, failure: Option<&str>) {
    let error_message = failure.unwrap_or_default().as_bytes();
    shard.reply(key, server::PasswordChanged { success: failure.is_none(), error_message });
}

/// CHANGE_PASSWORD: an empty new one removes it, which needs an SSH key to sign in with.
pub fn change_password(shard: &mut Shard, key: SessionKey, request: &client::ChangePassword<'_>) {
    let session = shard.clients.session(key);
    let (Some(signed_in), Some(nickname)) = (session.account, session.nickname.clone()) else { return };
    if !may_attempt(shard, key, &nickname, false) {
        return password_changed(shard, key, Some(TOO_MANY_ATTEMPTS));
    }
    let (old, new): (Box<[u8]>, Box<[u8]>) = (request.old_password_hash.into(), request.new_password_hash.into());
    shard.ask(key, Query::AccountById { user: signed_in.user }, move |shard, key, answer| {
        let Answer::Account { account: Some(account), .. } = answer else {
            return password_changed(shard, key, Some("User not found"));
        };
        let came_by_key = shard.clients.session(key).busy().by_key == Some(account.id);
        if account.password_hash.is_empty() || (came_by_key && old.is_empty()) || is_excused(shard, key, &account) {
            return set_password(shard, key, signed_in, new);
        }
        let job = HashJob::Verify { secret: old, stored: Some(account.password_hash) };
        shard.hash(key, job, move |shard, key, outcome| match outcome {
            HashOutcome::Verified(true) => set_password(shard, key, signed_in, new),
            HashOutcome::Busy => password_changed(shard, key, Some(BUSY)),
            _ => password_changed(shard, key, Some("Incorrect current password")),
        });
    });
}

/// While a former nickname still signs in, clients compute the old password's hash from the wrong name.
fn is_excused(shard: &mut Shard, key: SessionKey, account: &Account) -> bool {
    let now = shard.now.mono;
    let recent = |at: u64| now.saturating_sub(at) <= RENAMED_PASSWORD_GRACE_MS;
    account.has_alias && shard.clients.session(key).busy().by_password_at.is_some_and(recent)
}

fn set_password(shard: &mut Shard, key: SessionKey, signed_in: SignedIn, new: Box<[u8]>) {
    if new.is_empty() {
        return store_password(shard, key, signed_in, None);
    }
    if !SECRET_BYTES.contains(&new.len()) {
        return password_changed(shard, key, Some(INVALID_HASH));
    }
    shard.hash(key, HashJob::Hash { secret: new }, move |shard, key, outcome| match outcome {
        HashOutcome::Hashed(hash) => store_password(shard, key, signed_in, Some(hash)),
        HashOutcome::Busy => password_changed(shard, key, Some(BUSY)),
        HashOutcome::Verified(_) | HashOutcome::Failed => {
            shard.error(key, ErrorCode::Internal, "Failed to hash password");
        }
    });
}

fn store_password(shard: &mut Shard, key: SessionKey, signed_in: SignedIn, password_hash: Option<Box<str>>) {
    const NO_KEYS: &str = "Cannot remove password without SSH keys. Add an SSH key first.";
    let failure = if password_hash.is_some() { "Failed to update password" } else { "Failed to remove password" };
    let user = signed_in.user;
    shard.submit(key, Command::SetPassword { user, password_hash }, move |shard, key, result| match result {
        Ok(_) => password_changed(shard, key, None),
        Err(Refusal::NoSshKeys) => password_changed(shard, key, Some(NO_KEYS)),
        Err(Refusal::UserNotFound) => password_changed(shard, key, Some("User not found")),
        Err(_) => shard.error(key, ErrorCode::Database, failure),
    });
}
