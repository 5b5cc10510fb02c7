//! What a simulated client may ask, its bytes, and how one is chosen.

use bytes::Bytes;
use superchat::ids::{ChannelId, InviteId, MessageId, SessionId};
use superchat::wire::client as say;
use superchat::wire::codec::{Bounded, DmTarget, Tail, Wire};
use superchat::wire::frame;

use crate::facts::Facts;
use crate::random::Random;
use crate::view::View;

/// A channel or subchannel with the ids a client writes for it (BEHAVIOUR.md 2.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub id: ChannelId,
    pub channel_id: ChannelId,
    pub subchannel_id: Option<ChannelId>,
}

/// What accounts sign in with, long enough to be taken for a client's hash.
pub const SECRET: &[u8] = b"0123456789012345678901234567890123456789";

/// Nicknames that everybody uses; the first two belong to accounts from the start, the first to an admin.
pub const NAMES: [&str; 7] = ["root", "amy", "bob", "cat", "dan", "eve", "fay"];

/// An account that is asked about and never used, so that its USER_INFO is always an answer.
pub const ABSENT: &str = "zoe";

/// Whom a conversation is started with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    Name(&'static str),
    Session(SessionId),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Ping {
        token: i64,
    },
    SetNickname {
        name: &'static str,
    },
    /// `must_work`: the account existed and the secret was right when this was sent.
    SignIn {
        name: &'static str,
        is_right: bool,
        must_work: bool,
    },
    Register,
    Logout,
    Join {
        place: Place,
    },
    Leave,
    Subscribe {
        place: Place,
    },
    Unsubscribe {
        place: Place,
    },
    Follow {
        message: MessageId,
    },
    Unfollow {
        message: MessageId,
    },
    Post {
        place: Place,
        parent: Option<MessageId>,
        content: Bytes,
    },
    Edit {
        message: MessageId,
        content: Bytes,
    },
    Delete {
        message: MessageId,
    },
    List {
        place: Place,
        parent: Option<MessageId>,
    },
    Users {
        place: Place,
    },
    Info,
    StartDm {
        target: Target,
        allow_unencrypted: bool,
    },
    /// What follows is a PING, so that a refusal has a place.
    ProvideKey {
        byte: u8,
    },
    Allow {
        invite: InviteId,
    },
    /// As [`Self::ProvideKey`].
    Decline {
        invite: InviteId,
    },
    LeaveForGood,
    CreateChannel {
        name: Bytes,
    },
    CreateSubchannel {
        parent: ChannelId,
        name: Bytes,
    },
    Goodbye,
    /// A frame length that cannot be.
    Garbage,
}

impl Request {
    /// Whether no answer comes when all goes well.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Logout) || self.may_fail_silently()
    }

    /// Whether only a refusal is told.
    pub fn may_fail_silently(&self) -> bool {
        matches!(self, Self::ProvideKey { .. } | Self::Decline { .. })
    }

    /// Whether nothing sent behind it is read.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Goodbye | Self::Garbage)
    }

    /// The frame, with the version byte that decides about compression.
    pub fn encode(&self, version: u8, out: &mut Vec<u8>) {
        let start = out.len();
        self.write(out);
        out[start + 4] = version;
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ping { token } => put(out, say::Ping::CODE, &say::Ping { timestamp: *token }),
            Self::SetNickname { name } => {
                put(out, say::SetNickname::CODE, &say::SetNickname { nickname: Bounded(name.as_bytes()) });
            }
            Self::SignIn { name, is_right, .. } => {
                let password_hash = if *is_right { SECRET } else { b"wrong" };
                put(out, say::AuthRequest::CODE, &say::AuthRequest { nickname: name.as_bytes(), password_hash });
            }
            Self::Register => put(out, say::RegisterUser::CODE, &say::RegisterUser { password_hash: SECRET }),
            Self::Logout => put(out, say::Logout::CODE, &say::Logout {}),
            Self::Join { place: Place { channel_id, subchannel_id, .. } } => {
                let request = say::JoinChannel { channel_id: *channel_id, subchannel_id: *subchannel_id };
                put(out, say::JoinChannel::CODE, &request);
            }
            Self::Leave => {
                let request =
                    say::LeaveChannel { channel_id: ChannelId(0), subchannel_id: None, permanent: Tail(None) };
                put(out, say::LeaveChannel::CODE, &request);
            }
            Self::Subscribe { place: Place { channel_id, subchannel_id, .. } } => {
                let request = say::SubscribeChannel { channel_id: *channel_id, subchannel_id: *subchannel_id };
                put(out, say::SubscribeChannel::CODE, &request);
            }
            Self::Unsubscribe { place: Place { channel_id, subchannel_id, .. } } => {
                let request = say::UnsubscribeChannel { channel_id: *channel_id, subchannel_id: *subchannel_id };
                put(out, say::UnsubscribeChannel::CODE, &request);
            }
            Self::Follow { message } => {
                put(out, say::SubscribeThread::CODE, &say::SubscribeThread { thread_id: *message });
            }
            Self::Unfollow { message } => {
                put(out, say::UnsubscribeThread::CODE, &say::UnsubscribeThread { thread_id: *message });
            }
            Self::StartDm { .. }
            | Self::ProvideKey { .. }
            | Self::Allow { .. }
            | Self::Decline { .. }
            | Self::LeaveForGood => self.write_about_dms(out),
            Self::Post { .. }
            | Self::Edit { .. }
            | Self::Delete { .. }
            | Self::List { .. }
            | Self::Users { .. }
            | Self::Info => self.write_about_messages_and_people(out),
            Self::CreateChannel { name } => put(out, say::CreateChannel::CODE, &new_channel(name)),
            Self::CreateSubchannel { parent, name } => {
                let request = say::CreateSubchannel {
                    channel_id: *parent,
                    name,
                    description: b"",
                    channel_type: 1,
                    retention_hours: 24,
                };
                put(out, say::CreateSubchannel::CODE, &request);
            }
            Self::Goodbye => put(out, say::Disconnect::CODE, &say::Disconnect { reason: None }),
            Self::Garbage => out.extend_from_slice(&[0xff; 8]),
        }
    }

    fn write_about_messages_and_people(&self, out: &mut Vec<u8>) {
        match self {
            Self::Post { place: Place { channel_id, subchannel_id, .. }, parent, content } => {
                let request = say::PostMessage {
                    channel_id: *channel_id,
                    subchannel_id: *subchannel_id,
                    parent_id: *parent,
                    content: Bounded(content),
                };
                put(out, say::PostMessage::CODE, &request);
            }
            Self::Edit { message, content } => {
                let request = say::EditMessage { message_id: *message, new_content: Bounded(content) };
                put(out, say::EditMessage::CODE, &request);
            }
            Self::Delete { message } => {
                put(out, say::DeleteMessage::CODE, &say::DeleteMessage { message_id: *message });
            }
            Self::List { place: Place { channel_id, subchannel_id, .. }, parent } => {
                let request = say::ListMessages {
                    channel_id: *channel_id,
                    subchannel_id: *subchannel_id,
                    limit: 200,
                    before_id: None,
                    parent_id: *parent,
                    after_id: None,
                };
                put(out, say::ListMessages::CODE, &request);
            }
            Self::Users { place: Place { channel_id, subchannel_id, .. } } => {
                let request = say::ListChannelUsers { channel_id: *channel_id, subchannel_id: *subchannel_id };
                put(out, say::ListChannelUsers::CODE, &request);
            }
            Self::Info => {
                put(out, say::GetUserInfo::CODE, &say::GetUserInfo { nickname: ABSENT.as_bytes() });
            }
            other => unreachable!("{other:?} is not about messages or people"),
        }
    }
}

impl Request {
    fn write_about_dms(&self, out: &mut Vec<u8>) {
        match self {
            Self::StartDm { target, allow_unencrypted } => {
                let target = match target {
                    Target::Name(name) => DmTarget::Nickname(name.as_bytes()),
                    Target::Session(session) => DmTarget::Session(*session),
                };
                put(out, say::StartDm::CODE, &say::StartDm { target, allow_unencrypted: *allow_unencrypted });
            }
            Self::ProvideKey { byte } => {
                let request = say::ProvidePublicKey { key_type: 1, public_key: [*byte; 32], label: b"" };
                put(out, say::ProvidePublicKey::CODE, &request);
            }
            Self::Allow { invite } => {
                let request = say::AllowUnencrypted { dm_channel_id: *invite, permanent: false };
                put(out, say::AllowUnencrypted::CODE, &request);
            }
            Self::Decline { invite } => {
                put(out, say::DeclineDm::CODE, &say::DeclineDm { dm_channel_id: *invite });
            }
            Self::LeaveForGood => {
                let request =
                    say::LeaveChannel { channel_id: ChannelId(0), subchannel_id: None, permanent: Tail(Some(true)) };
                put(out, say::LeaveChannel::CODE, &request);
            }
            other => unreachable!("{other:?} is not about direct messages"),
        }
    }
}

fn new_channel(name: &[u8]) -> say::CreateChannel<'_> {
    say::CreateChannel { name, display_name: name, description: None, channel_type: 1, retention_hours: 24 }
}

fn put<'m>(out: &mut Vec<u8>, code: u8, message: &impl Wire<'m>) {
    frame::write_message(out, code, message).unwrap();
}

/// Makes up requests, each recognisable by something nobody else sends.
#[derive(Debug)]
pub struct Author {
    sent: i64,
    /// Longest filler behind the text that identifies a post.
    filler_bytes_max: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Ping,
    SetNickname,
    SignIn,
    Register,
    Logout,
    Join,
    Leave,
    Subscribe,
    Unsubscribe,
    Follow,
    Unfollow,
    Post,
    Edit,
    Delete,
    List,
    Users,
    Info,
    StartDm,
    ProvideKey,
    Allow,
    Decline,
    LeaveForGood,
    CreateChannel,
    CreateSubchannel,
    Goodbye,
    Garbage,
}

/// Of a client that has a nickname.
const HABITS: &[(usize, Kind)] = &[
    (6, Kind::Ping),
    (3, Kind::SetNickname),
    (4, Kind::SignIn),
    (2, Kind::Register),
    (1, Kind::Logout),
    (7, Kind::Join),
    (3, Kind::Leave),
    (12, Kind::Subscribe),
    (4, Kind::Unsubscribe),
    (9, Kind::Follow),
    (3, Kind::Unfollow),
    (36, Kind::Post),
    (6, Kind::Edit),
    (5, Kind::Delete),
    (9, Kind::List),
    (5, Kind::Users),
    (2, Kind::Info),
    (6, Kind::StartDm),
    (2, Kind::ProvideKey),
    (6, Kind::Allow),
    (1, Kind::Decline),
    (2, Kind::LeaveForGood),
    (1, Kind::CreateChannel),
    (1, Kind::CreateSubchannel),
    (1, Kind::Goodbye),
];

/// Of one that has none yet: most take one, some lurk.
const FIRST_STEPS: &[(usize, Kind)] = &[
    (40, Kind::SetNickname),
    (12, Kind::SignIn),
    (8, Kind::Subscribe),
    (5, Kind::Follow),
    (4, Kind::Join),
    (4, Kind::Ping),
    (3, Kind::List),
    (3, Kind::Post),
    (2, Kind::Info),
    (1, Kind::StartDm),
    (1, Kind::Logout),
    (1, Kind::Garbage),
];

impl Author {
    pub fn new(filler_bytes_max: usize) -> Self {
        Self { sent: 0, filler_bytes_max }
    }

    pub fn next(&mut self, random: &mut Random, view: &View, facts: &Facts) -> Request {
        self.sent += 1;
        let habits = if view.nickname.is_some() { HABITS } else { FIRST_STEPS };
        let kind = random.weighted(habits);
        let (place, message) = (some_place(random, facts), some_message(random, facts));
        match kind {
            Kind::Ping => Request::Ping { token: self.sent },
            Kind::SetNickname => Request::SetNickname { name: some_name(random) },
            Kind::SignIn => {
                let (name, is_right) = (some_name(random), random.percent(80));
                Request::SignIn { name, is_right, must_work: is_right && facts.has_account(name) }
            }
            Kind::Register => Request::Register,
            Kind::Logout => Request::Logout,
            Kind::Join => Request::Join { place },
            Kind::Leave => Request::Leave,
            Kind::Subscribe => Request::Subscribe { place },
            Kind::Unsubscribe => Request::Unsubscribe { place },
            Kind::Follow => Request::Follow { message },
            Kind::Unfollow => Request::Unfollow { message },
            Kind::Post => self.post(random, view, facts, place),
            Kind::Edit => Request::Edit { message, content: self.text(random, view) },
            Kind::Delete => Request::Delete { message },
            Kind::List => {
                let thread = facts.messages.get(&message).filter(|_| random.percent(40));
                match thread {
                    Some(fact) => Request::List { place: facts.place(fact.channel, false), parent: Some(fact.root) },
                    None => Request::List { place, parent: None },
                }
            }
            Kind::Users => Request::Users { place },
            Kind::Info => Request::Info,
            Kind::StartDm => {
                Request::StartDm { target: some_target(random, view), allow_unencrypted: random.percent(60) }
            }
            Kind::ProvideKey => Request::ProvideKey { byte: 1 + u8::try_from(random.below(3)).unwrap() },
            Kind::Allow => Request::Allow { invite: some_invite(random, facts) },
            Kind::Decline => Request::Decline { invite: some_invite(random, facts) },
            Kind::LeaveForGood => Request::LeaveForGood,
            Kind::CreateChannel => Request::CreateChannel { name: self.name(view) },
            Kind::CreateSubchannel => Request::CreateSubchannel { parent: place.channel_id, name: self.name(view) },
            Kind::Goodbye => Request::Goodbye,
            Kind::Garbage => Request::Garbage,
        }
    }

    /// Mostly what can be posted; now and then below a message of another place, or where none may.
    fn post(&self, random: &mut Random, view: &View, facts: &Facts, place: Place) -> Request {
        let content = self.text(random, view);
        if random.percent(45) {
            return Request::Post { place, parent: None, content };
        }
        let parent = some_message(random, facts);
        let place = match facts.messages.get(&parent) {
            Some(fact) if random.percent(85) => facts.place(fact.channel, random.percent(50)),
            _ => place,
        };
        Request::Post { place, parent: Some(parent), content }
    }

    fn text(&self, random: &mut Random, view: &View) -> Bytes {
        let mut text = format!("{}-{} ", view.session, self.sent).into_bytes();
        // Letters in no order, so that compression does not undo the length.
        text.extend((0..random.below(self.filler_bytes_max + 1)).map(|_| b'a' + (random.next() % 26) as u8));
        text.into()
    }

    fn name(&self, view: &View) -> Bytes {
        format!("room-{}-{}", view.session, self.sent).into()
    }
}

fn some_name(random: &mut Random) -> &'static str {
    NAMES[random.below(NAMES.len())]
}

/// A name, or a session that was seen.
fn some_target(random: &mut Random, view: &View) -> Target {
    let seen: Vec<_> = view.roster.keys().copied().collect();
    match random.pick(&seen).filter(|_| random.percent(40)) {
        Some(session) => Target::Session(session),
        None => Target::Name(some_name(random)),
    }
}

/// Mostly one of the last, whoever it is for.
fn some_invite(random: &mut Random, facts: &Facts) -> InviteId {
    let recent: Vec<_> = facts.invites.iter().rev().take(6).copied().collect();
    random.pick(&recent).unwrap_or(InviteId(999))
}

/// Any place that ever was, or one that never was. Conversations are tried by everybody.
fn some_place(random: &mut Random, facts: &Facts) -> Place {
    let recent: Vec<_> = facts.dms().collect();
    if let Some(dm) = random.pick(&recent[recent.len().saturating_sub(5)..]).filter(|_| random.percent(35)) {
        return facts.place(dm, false);
    }
    let known = random.pick(&facts.announced).unwrap();
    let channel = if random.percent(2) { ChannelId(999) } else { known };
    facts.place(channel, random.percent(50))
}

/// Mostly one of the last messages, so that clients meet in the same threads.
fn some_message(random: &mut Random, facts: &Facts) -> MessageId {
    let recent: Vec<_> = facts.messages.keys().rev().take(12).copied().collect();
    let never = MessageId(999_999);
    if random.percent(3) { never } else { random.pick(&recent).unwrap_or(never) }
}
