//! One client: who it is, what it hears, what it waits for.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::outbox::{Class, Outbox};
use super::rate::TokenBucket;
use super::refusals::Refusals;
use super::request::Request;
use super::topics::Spelling;
use super::{Continuation, Person};
use crate::ids::{BanId, ChannelId, InviteId, MessageId, SessionId, UserId};
use crate::limits::KEYS_ASKED_REMEMBERED;
use crate::net::Admission;
use crate::profile::tasks::Entry;
use crate::store::{Actor, FLAG_ADMIN, Name, Participant, Viewer};
use crate::wire::ErrorCode;
use crate::wire::frame::PeerVersion;

/// A session's place in its shard. Only meaningful while the session lives; the `token` of a ticket also says which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey(pub u32);

/// A client. An idle one fits the budget of 1 KiB with everything around it, so what only busy sessions need is boxed.
#[derive(Debug)]
pub struct Session {
    pub id: SessionId,
    /// From where it came, and the place that its connection takes in the limits, unless a bridge holds that.
    pub admission: Admission,
    pub version: PeerVersion,
    pub nickname: Option<Name>,
    /// Changed by [`super::Shard::set_account`] only, because what the session may follow depends on it.
    pub account: Option<SignedIn>,
    /// The place joined, and how the client names it.
    pub joined: Option<(ChannelId, Spelling)>,
    pub presence: PresenceGate,
    pub flight: Flight,
    /// Bytes received that no handler has seen: an incomplete frame, or frames that wait for an answer before them.
    pub inbox: Vec<u8>,
    pub outbox: Outbox,
    /// In the list of sessions to flush.
    pub dirty: bool,
    /// Its next request waits until it has read answers.
    pub paused: bool,
    /// It will send nothing more, and ends once it has its answers.
    pub hung_up: bool,
    /// Monotonic milliseconds of the last whole frame.
    pub last_frame_at: u64,
    /// It is, or asked to be, a side of a direct message as a visitor: the store must hear when it ends.
    pub visits_dms: bool,
    /// The last broadcast delivered: an audience that is a union meets each session once.
    pub visited: u64,
    busy: Option<Box<Busy>>,
}

/// The account a session is signed in to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedIn {
    pub user: UserId,
    pub flags: u8,
}

/// Presence is held back until the first request has been answered (BEHAVIOUR.md 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresenceGate {
    /// It came with a key, and AUTH_RESPONSE is the next frame it gets: it hears of nothing at all.
    SigningIn,
    /// Nothing yet; the roster's version at connecting.
    Held {
        since: u64,
    },
    /// The first request was answered: at the next tick the session is told what changed meanwhile.
    Opening {
        since: u64,
    },
    /// The next tick sends the whole roster: a nickname was set, or somebody signed in.
    Snapshot,
    Open,
}

impl PresenceGate {
    /// Whether the session is past the first request.
    #[must_use]
    pub fn hears_of_others(self) -> bool {
        !matches!(self, Self::SigningIn | Self::Held { .. })
    }
}

/// Requests whose answer is not there yet. Answers keep the order of requests, so only posts, which the writer keeps in
/// order anyway, may overlap.
#[derive(Debug, Default)]
pub enum Flight {
    #[default]
    None,
    Posts(Box<Posts>),
    /// One request; what goes on when its answer arrives.
    Waiting(Box<Waiting>),
}

/// Posts of one session without an answer, oldest first. Refusals wait for their turn behind those under way.
#[derive(Debug, Default)]
pub struct Posts(VecDeque<Post>);

#[derive(Debug)]
enum Post {
    /// On its way to the writer, and seen there by profiles.
    UnderWay(Request, Entry),
    /// Refused before it could get there.
    Refused(RefusedPost),
}

/// What a refused post is answered with.
#[derive(Debug)]
pub struct RefusedPost {
    pub code: ErrorCode,
    pub text: Box<str>,
}

impl Posts {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Posts without an answer, of either kind.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn submitted(&mut self, request: Request, entry: Entry) {
        self.0.push_back(Post::UnderWay(request, entry));
    }

    pub fn refuse(&mut self, code: ErrorCode, text: &str) {
        self.0.push_back(Post::Refused(RefusedPost { code, text: text.into() }));
    }

    /// The oldest post came back from the writer.
    pub fn came_back(&mut self) -> Option<Request> {
        match self.0.pop_front() {
            Some(Post::UnderWay(request, entry)) => {
                drop(entry);
                Some(request)
            }
            _ => None,
        }
    }

    /// The next refusal whose turn it is.
    pub fn next_refused(&mut self) -> Option<RefusedPost> {
        match self.0.pop_front() {
            Some(Post::Refused(refused)) => Some(refused),
            Some(under_way) => {
                self.0.push_front(under_way);
                None
            }
            None => None,
        }
    }
}

/// A request that waits.
pub struct Waiting {
    pub next: Continuation,
    pub request: Request,
    /// By which profiles see what it waits for.
    pub entry: Entry,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("request", &self.request).finish_non_exhaustive()
    }
}

/// What only sessions that do something need.
#[derive(Debug, Default)]
pub struct Busy {
    pub channels: Vec<ChannelId>,
    /// Thread roots, each with the message id the client subscribed by.
    pub threads: Vec<ThreadSubscription>,
    /// Subchannels the client last named as (parent, sub).
    pub pair_spelled: Vec<ChannelId>,
    pub requests: TokenBucket,
    pub refusals: Refusals,
    /// Monotonic milliseconds of the sign-in by password, which for a while excuses the old password of a renamed account
    /// from being compared (D-08).
    pub by_password_at: Option<u64>,
    /// The account whose key opened this session: its owner may know no password (BEHAVIOUR.md 2.16).
    pub by_key: Option<UserId>,
    /// A registered nickname was asked about before this session had a name: the sign of a client that believes it is
    /// still signed in (BEHAVIOUR.md 1.5).
    pub believes_signed_in: Belief,
    /// A public key came from this session since it signed in: it can read encrypted conversations (BEHAVIOUR.md 4.9).
    pub has_provided_key: bool,
    /// Shadow bans that it met (BEHAVIOUR.md 5.3): under another name, or signed out, it is hidden still.
    pub marks: Vec<BanId>,
    /// Invitations that this session was asked for a key for; it is asked once.
    keys_asked: Vec<InviteId>,
}

/// A thread somebody follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadSubscription {
    pub root: MessageId,
    pub channel: ChannelId,
}

/// See [`Busy::believes_signed_in`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Belief {
    #[default]
    Unknown,
    Likely,
    /// The hint was given; it is given once.
    Told,
}

/// Subchannels remembered as (parent, sub) per session; a client uses one spelling for a handful of places.
const PAIR_SPELLED_MAX: usize = 64;

impl Session {
    pub fn new(id: SessionId, admission: Admission, now: u64, roster_version: u64) -> Self {
        Self {
            id,
            admission,
            version: PeerVersion::Unknown,
            nickname: None,
            account: None,
            joined: None,
            presence: PresenceGate::Held { since: roster_version },
            flight: Flight::None,
            inbox: Vec::new(),
            outbox: Outbox::default(),
            dirty: false,
            paused: false,
            hung_up: false,
            last_frame_at: now,
            visits_dms: false,
            visited: 0,
            busy: None,
        }
    }

    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.admission.address()
    }

    /// Loopback and listed networks are free of announced limits (BEHAVIOUR.md 9.1).
    #[must_use]
    pub fn is_exempt(&self) -> bool {
        self.admission.is_exempt()
    }

    #[must_use]
    pub fn class(&self) -> Class {
        self.version.compression().into()
    }

    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        self.account.map(|account| account.user)
    }

    #[must_use]
    pub fn flags(&self) -> u8 {
        self.account.map_or(0, |account| account.flags)
    }

    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.flags() & FLAG_ADMIN != 0
    }

    /// As presence and lists show it; `None` without a nickname.
    #[must_use]
    pub fn person(&self) -> Option<Person> {
        self.nickname.as_ref().map(|nickname| Person {
            nickname: nickname.clone(),
            user: self.user(),
            flags: self.flags(),
            joined: self.joined.map(|(channel, _)| channel),
        })
    }

    /// Who looks (BEHAVIOUR.md 4.7).
    #[must_use]
    pub fn viewer(&self) -> Viewer {
        Viewer { user: self.user(), session: self.id, is_admin: self.is_admin() }
    }

    /// As a side of a direct message. Without a nickname it is one of none.
    #[must_use]
    pub fn participant(&self) -> Participant {
        let session = self.account.is_none().then_some(self.id);
        let nickname = self.nickname.clone().unwrap_or_else(|| Name::from(&b""[..]));
        Participant { user: self.user(), session, nickname }
    }

    /// See [`Busy::has_provided_key`].
    #[must_use]
    pub fn has_provided_key(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| busy.has_provided_key)
    }

    /// Whether a key may be asked for on account of this invitation: that happens once.
    pub fn ask_for_key(&mut self, invite: InviteId) -> bool {
        let asked = &mut self.busy().keys_asked;
        if asked.contains(&invite) {
            return false;
        }
        if asked.len() == KEYS_ASKED_REMEMBERED {
            asked.remove(0);
        }
        asked.push(invite);
        true
    }

    /// Who acts, once there is a nickname.
    #[must_use]
    pub fn actor(&self) -> Option<Actor> {
        self.nickname.as_ref().map(|nickname| Actor {
            user: self.user(),
            nickname: nickname.clone(),
            flags: self.flags(),
            session: self.id,
            address: self.address(),
            marks: self.busy.as_ref().map_or_else(Vec::new, |busy| busy.marks.clone()),
        })
    }

    pub fn busy(&mut self) -> &mut Busy {
        self.busy.get_or_insert_default()
    }

    /// What the log was told of its refusals, if it may have had any.
    pub fn refusals(&mut self) -> Option<&mut Refusals> {
        self.busy.as_mut().map(|busy| &mut busy.refusals)
    }

    #[must_use]
    pub fn channels(&self) -> &[ChannelId] {
        self.busy.as_ref().map_or(&[], |busy| &busy.channels)
    }

    #[must_use]
    pub fn threads(&self) -> &[ThreadSubscription] {
        self.busy.as_ref().map_or(&[], |busy| &busy.threads)
    }

    /// How the client last named a place.
    #[must_use]
    pub fn spelling(&self, channel: ChannelId) -> Spelling {
        let pair = self.busy.as_ref().is_some_and(|busy| busy.pair_spelled.contains(&channel));
        if pair { Spelling::Pair } else { Spelling::Own }
    }

    /// Remembers how the client names a place; `true` when that changed.
    pub fn set_spelling(&mut self, channel: ChannelId, spelling: Spelling) -> bool {
        if self.spelling(channel) == spelling {
            return false;
        }
        let known = &mut self.busy().pair_spelled;
        match spelling {
            Spelling::Own => known.retain(|other| *other != channel),
            Spelling::Pair => {
                if known.len() == PAIR_SPELLED_MAX {
                    known.remove(0);
                }
                known.push(channel);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The allocator's size class that an idle session of 1 KiB in all leaves room for, beside its task and its socket.
    #[test]
    fn a_session_fits_its_part_of_the_budget() {
        assert!(size_of::<Session>() <= 224, "a session takes {} bytes", size_of::<Session>());
    }
}
