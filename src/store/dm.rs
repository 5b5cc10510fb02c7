//! Direct messages as values (BEHAVIOUR.md 4): invitations, conversations, and who may see them.

use super::types::{Channel, Participant};
use crate::ids::{ChannelId, InviteId, SessionId, UserId};

/// An X25519 public key, raw. The server never sees another kind of key.
pub type PublicKey = [u8; 32];

/// Who looks. What is not for everybody, the store shows by this: a direct message only to those who take part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Viewer {
    /// The account, or `None` for a visitor.
    pub user: Option<UserId>,
    pub session: SessionId,
    /// Opens no direct message.
    pub is_admin: bool,
}

impl Viewer {
    /// An account takes part whatever its session, a visitor in its one session (BEHAVIOUR.md 2.6).
    #[must_use]
    pub fn is(&self, participant: &Participant) -> bool {
        match self.user {
            Some(user) => participant.user == Some(user),
            None => participant.user.is_none() && participant.session == Some(self.session),
        }
    }

    /// Direct messages are for their participants and for nobody else, admins included (BEHAVIOUR.md 4.7).
    #[must_use]
    pub fn may_enter(&self, channel: &Channel) -> bool {
        channel.participants.as_ref().is_none_or(|inside| inside.iter().any(|participant| self.is(participant)))
    }
}

impl Participant {
    /// Whether both are the same account, or the same visitor's session.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self.user, other.user) {
            (None, None) => self.session.is_some() && self.session == other.session,
            (own, others) => own == others,
        }
    }
}

/// What an invitation says about encryption (WIRE.md 6 `encryption_status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncryptionStatus {
    /// The initiator has no key.
    Impossible,
    Required,
    Optional,
}

impl EncryptionStatus {
    #[must_use]
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Impossible => 0,
            Self::Required => 1,
            Self::Optional => 2,
        }
    }
}

/// An invitation that waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    pub id: InviteId,
    pub initiator: Participant,
    pub target: Participant,
    pub encryption: EncryptionStatus,
}

/// One side of a conversation, as the other side is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmSide {
    /// With its nickname of today.
    pub who: Participant,
    /// Set in an encrypted conversation.
    pub key: Option<PublicKey>,
}

/// A conversation that was opened, or opened again. Whoever caused it comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dm {
    pub channel: Channel,
    pub sides: [DmSide; 2],
}

/// A conversation as one participant finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmFound {
    pub channel: ChannelId,
    pub other: DmSide,
    /// The other side left for good.
    pub has_left: bool,
}

/// Somebody is no longer in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmLeft {
    pub channel: ChannelId,
    pub who: Participant,
    /// The conversation without them; `None` when that was the last one and everything went with them.
    pub rest: Option<Channel>,
}

/// What an account finds of its direct messages when it signs in (BEHAVIOUR.md 4.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmOverview {
    pub user: UserId,
    pub found: Vec<DmFound>,
    /// Invitations that wait for this account.
    pub requests: Vec<Invite>,
    /// Invitations that this account sent.
    pub pending: Vec<Invite>,
}
