//! Sessions that came with an SSH key: they sign in by a commit, so what happens to the account meanwhile counts.

use std::io::IoSlice;
use std::sync::Arc;

use superchat::ids::{BanId, ChannelId, SessionId, UserId};
use superchat::metrics::Metrics;
use superchat::net::{CloseReason, Gate};
use superchat::passwords::{HashJob, Passwords};
use superchat::shard::event::Commit;
use superchat::shard::outbox::Outbox;
use superchat::shard::session::SessionKey;
use superchat::shard::{Bus, ChatSettings, KeyLogin, Now, Parts, Rates, Shard, ShardEvent};
use superchat::store::{Ban, Busy, Command, Event, FLAG_ADMIN, Name, Outcome, Refusal, Subject, Ticket};
use superchat::wire::ServerMessage;
use superchat::wire::client::Ping;
use superchat::wire::frame::{self, Frame};

use crate::chat;
use crate::store::Desk;

const ANN: UserId = UserId(7);

/// A shard that a session of ann's key has just come to.
struct Arrival {
    shard: Shard,
    desk: Arc<Desk>,
    key: SessionKey,
}

struct NoPasswords;

impl Passwords for NoPasswords {
    fn submit(&self, _: Ticket, _: HashJob) -> Result<(), Busy> {
        Err(Busy)
    }
}

impl Arrival {
    fn new(is_full: bool) -> Self {
        let settings = Arc::new(ChatSettings { admin_users: vec!["ann".to_owned()], ..chat::unlimited() });
        let desk = Arc::new(Desk::default());
        desk.set_full(is_full);
        let mut shard = Shard::new(Parts {
            id: 0,
            settings: Arc::clone(&settings),
            channels: Vec::new(),
            store: Arc::clone(&desk) as _,
            passwords: Arc::new(NoPasswords),
            bus: Arc::new(Bus::new(1)),
            rates: Arc::new(Rates::new(&settings)),
            registry: superchat::directory::Registry::new().0,
            metrics: Metrics::new(chat::metrics_options(1)),
            stopwatch: || 0,
            now: Now::default(),
        });
        let admission = Gate::new(None, None, Vec::new()).admit([192, 0, 2, 1].into()).unwrap();
        let login = KeyLogin { user: ANN, nickname: Name::from(&b"ann"[..]), fingerprint: "SHA256:x".into() };
        let key = shard.connect(SessionId(1), admission, Some(login));
        Self { shard, desk, key }
    }

    fn commit(&mut self, ticket: Option<Ticket>, result: Result<Event, Refusal>) {
        let batch = [Outcome { ticket, result }].into_iter().collect();
        self.shard.apply(ShardEvent::Committed(Commit::new(batch, 1)));
    }

    /// What became of the sign-in.
    fn sign_in(&mut self, result: Result<Event, Refusal>) {
        let write = self.desk.take_writes(1).remove(0);
        let Command::SignInByKey { user: ANN, flags: FLAG_ADMIN, .. } = write.command else {
            panic!("{:?}", write.command)
        };
        self.commit(Some(write.ticket), result);
    }

    /// Names of the frames that the session got, and why it ended.
    fn end(mut self) -> (Vec<&'static str>, Option<CloseReason>) {
        let mut bytes = Vec::new();
        let mut write = |slices: &[IoSlice<'_>]| {
            slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
            Ok(slices.iter().map(|slice| slice.len()).sum())
        };
        self.shard.flush_one(self.key, |_, slices| write(slices), |_| {});
        let departed = self.shard.take_departed().pop();
        let reason = departed.map(|mut departed| {
            Outbox::flush(&mut departed.outbox, write).unwrap();
            departed.reason
        });
        (names(&bytes), reason)
    }
}

fn names(mut bytes: &[u8]) -> Vec<&'static str> {
    let mut names = Vec::new();
    while let Some((frame, rest)) = Frame::cut(bytes).unwrap() {
        names.extend(ServerMessage::TABLE.iter().find(|(code, _)| *code == frame.code).map(|(_, name)| *name));
        bytes = rest;
    }
    names
}

fn admin() -> Result<Event, Refusal> {
    Ok(Event::SignedIn { user: ANN, flags: FLAG_ADMIN })
}

#[test]
fn rights_taken_before_and_after_a_sign_in_by_key_are_taken() {
    let revoked = || Ok(Event::RoleSet { user: ANN, flags: 0 });
    let flags = |mut arrival: Arrival| arrival.shard.clients.session(arrival.key).flags();

    // Before there was a session: the outcome is all that tells.
    let mut before = Arrival::new(false);
    before.sign_in(Ok(Event::SignedIn { user: ANN, flags: 0 }));
    assert_eq!(flags(before), 0);

    let mut after = Arrival::new(false);
    after.sign_in(admin());
    after.commit(None, revoked());
    assert_eq!(flags(after), 0);
}

#[test]
fn an_account_that_is_gone_or_banned_by_then_is_not_signed_in() {
    const REFUSED: [&str; 3] = ["SERVER_CONFIG", "AUTH_RESPONSE", "DISCONNECT"];
    for refusal in [Refusal::UserNotFound, Refusal::SshKeyNotFound] {
        let mut gone = Arrival::new(false);
        gone.sign_in(Err(refusal));
        assert_eq!(gone.end(), (REFUSED.to_vec(), Some(CloseReason::Kicked)));
    }
    let mut banned = Arrival::new(false);
    let nothing = || Name::from(&b""[..]);
    let subject = Subject::User { user: Some(ANN), nickname: None };
    let ban = Ban { id: BanId(1), subject, reason: nothing(), shadow: false, since: 0, until: None, by: nothing() };
    banned.commit(None, Ok(Event::Banned(Arc::new(ban))));
    banned.sign_in(admin());
    assert_eq!(banned.end(), (REFUSED.to_vec(), Some(CloseReason::Banned)));
}

#[test]
fn a_sign_in_by_key_that_finds_the_queue_full_ends_the_session() {
    assert_eq!(Arrival::new(true).end(), (vec!["SERVER_CONFIG", "ERROR", "DISCONNECT"], Some(CloseReason::Kicked)));
}

#[test]
fn nothing_comes_between_server_config_and_the_answer_to_a_key() {
    let mut arrival = Arrival::new(false);
    let mut ping = Vec::new();
    frame::write_message(&mut ping, Ping::CODE, &Ping { timestamp: 1 }).unwrap();
    arrival.shard.receive(arrival.key, &ping);
    let gone = Event::ChannelRemoved { channel: ChannelId(1), name: Name::from(&b"old"[..]), subchannels: Vec::new() };
    arrival.commit(None, Ok(gone));
    arrival.sign_in(admin());
    assert_eq!(arrival.end(), (vec!["SERVER_CONFIG", "AUTH_RESPONSE", "PONG"], None));
}
