//! What admins and operators do, on this shard (BEHAVIOUR.md 5): whom it ends, whom it marks, and who is told.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::info;

use super::Shard;
use super::outbox::Broadcast;
use super::roster::Repeat;
use super::session::{Session, SessionKey};
use crate::handlers::admin::{channel_deleted_text, user_deleted_text};
use crate::handlers::auth::ban_text;
use crate::ids::{BanId, ChannelId, SessionId, UserId};
use crate::net::{CloseReason, Refusal};
use crate::store::{Ban, Event, Kick, Name, Who};
use crate::wire::server;

const KICKED: &str = "Kicked by operator";

/// A session as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSummary {
    pub session: SessionId,
    pub nickname: Option<Name>,
    pub user: Option<UserId>,
    /// WIRE.md 6 `user_flags`.
    pub flags: u8,
    pub address: IpAddr,
    pub joined: Option<ChannelId>,
    /// Seconds since its last frame.
    pub idle_seconds: u64,
}

impl SessionSummary {
    fn of(session: &Session, now: u64) -> Self {
        Self {
            session: session.id,
            nickname: session.nickname.clone(),
            user: session.user(),
            flags: session.flags(),
            address: session.address(),
            joined: session.joined.map(|(channel, _)| channel),
            idle_seconds: now.saturating_sub(session.last_frame_at) / 1000,
        }
    }
}

fn who(session: &Session) -> Who<'_> {
    Who { user: session.user(), nickname: session.nickname.as_deref() }
}

impl Shard {
    /// The ban that refuses somebody now.
    #[must_use]
    pub fn refusing_ban(&self, user: Option<UserId>, nickname: &[u8]) -> Option<Arc<Ban>> {
        self.bans.refusing(Who { user, nickname: Some(nickname) }, self.now.wall).cloned()
    }

    /// What the shard knows of bans now, for [`Self::trust_file`].
    #[must_use]
    pub fn newest_ban(&self) -> BanId {
        self.bans.newest()
    }

    /// The file was asked when `newest` was the newest ban, and refuses nobody of this name or account: operators lift bans
    /// there (BEHAVIOUR.md 11.4), and it is looked at anew once a second only.
    pub fn trust_file(&mut self, user: Option<UserId>, nickname: &[u8], newest: BanId) {
        self.bans.drop_refusing(Who { user, nickname: Some(nickname) }, newest, self.now.wall);
    }

    /// Takes over what was committed, and looks at every session anew: a ban counts at once.
    pub(super) fn change_bans(&mut self, event: &Event) {
        if !self.bans.apply(event) {
            return;
        }
        for key in self.clients.keys().collect::<Vec<_>>() {
            self.meet_bans(key);
        }
    }

    /// Ends a session that is banned as who it is now, or from where it is; one that is hidden is marked, and keeps the mark
    /// whatever it calls itself later. Whether it goes on.
    pub fn meet_bans(&mut self, key: SessionKey) -> bool {
        let Some(session) = self.clients.get(key) else { return false };
        let now = self.now.wall;
        if let Some(ban) = self.bans.refusing(who(session), now) {
            let text = ban_text(ban);
            info!(target: "security", session = session.id.0, ban = ban.id.0, "session ended: {text}");
            self.disconnect(key, CloseReason::Banned, &text);
            return false;
        }
        if self.bans.refusing_address(session.address(), now).is_some() {
            self.refuse_address(key);
            return false;
        }
        let hiding: Vec<_> = self.bans.hiding(who(session), now).collect();
        if !hiding.is_empty() {
            let bans = &self.bans;
            let marks = &mut self.clients.session(key).busy().marks;
            marks.retain(|mark| bans.is_active(*mark, now) && !hiding.contains(mark));
            marks.extend(hiding);
        }
        true
    }

    /// In the words of the door (BEHAVIOUR.md 1.10).
    fn refuse_address(&mut self, key: SessionKey) {
        let refusal = Refusal::Banned;
        info!(target: "security", session = self.clients.session(key).id.0, "session ended: {}", refusal.text());
        let (error_code, message) = (refusal.code().number(), refusal.text().as_bytes());
        self.metrics.error(error_code);
        self.reply(key, server::Error { error_code, message });
        self.disconnect(key, CloseReason::Banned, refusal.text());
    }

    /// Sessions of the account end, and admins are told (D-34).
    pub(super) fn publish_deleted_user(&mut self, user: UserId, nickname: &Name, asker: Option<SessionKey>) {
        let text = user_deleted_text(nickname, self.sessions_everywhere(user));
        for key in self.sessions_of_user(user) {
            let session = self.clients.session(key).id;
            info!("Disconnecting session {session} for deleted user {} (id={user})", String::from_utf8_lossy(nickname));
            self.disconnect(key, CloseReason::Kicked, "Your account was deleted");
        }
        self.channels.forget_creator(user);
        let mut frame = Broadcast::new(server::UserDeleted { success: true, message: text.as_bytes() });
        for key in self.clients.keys().collect::<Vec<_>>() {
            let is_admin = self.clients.get(key).is_some_and(Session::is_admin);
            if is_admin && Some(key) != asker {
                self.clients.send(key, &mut frame);
            }
        }
    }

    /// How many sessions of an account there are, on all shards.
    #[must_use]
    pub fn sessions_everywhere(&self, user: UserId) -> usize {
        self.roster.people().filter(|(_, person)| person.user == Some(user)).count()
    }

    /// Everybody but whoever asked is told.
    pub(super) fn publish_removed_channel(
        &mut self,
        channel: ChannelId,
        name: &Name,
        subchannels: &[ChannelId],
        asker: Option<SessionKey>,
    ) {
        subchannels.iter().chain([&channel]).for_each(|gone| self.drop_channel(*gone));
        let text = channel_deleted_text(name);
        let deleted = server::ChannelDeleted { success: true, channel_id: channel, message: text.as_bytes() };
        let mut frame = Broadcast::new(deleted);
        for key in self.clients.everybody() {
            if Some(key) != asker {
                self.clients.send(key, &mut frame);
            }
        }
    }

    /// Sessions of the account have other rights from now on, and everybody sees it.
    pub(super) fn change_role(&mut self, user: UserId, flags: u8) {
        for key in self.sessions_of_user(user) {
            if let Some(account) = &mut self.clients.session(key).account {
                account.flags = flags;
            }
            self.announce(key, Repeat { server: true, channel: true });
        }
    }

    /// Tells an operator who is here. One that no longer waits is passed over.
    pub(super) fn survey(&self, reply: &mpsc::Sender<Vec<SessionSummary>>) {
        let sessions = self.clients.keys().filter_map(|key| self.clients.get(key));
        let now = self.now.mono;
        reply.try_send(sessions.map(|session| SessionSummary::of(session, now)).collect()).ok();
    }

    /// The operator ends a session.
    pub(super) fn kick(&mut self, kick: &Kick) {
        let here = |key: &SessionKey| self.clients.get(*key).is_some_and(|session| session.id == kick.session);
        let Some(key) = self.clients.keys().find(here) else { return };
        info!(session = kick.session.0, "session ended by the operator");
        let text = match &kick.reason[..] {
            b"" => KICKED.to_owned(),
            reason => format!("{KICKED}: {}", String::from_utf8_lossy(reason)),
        };
        self.disconnect(key, CloseReason::Kicked, &text);
    }
}
