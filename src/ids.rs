//! Identifiers: one newtype per id space, so that a channel can never stand where a message is meant (WIRE.md 4, "Ids").

use std::fmt;

macro_rules! ids {
    ($($(#[$note:meta])* $Name:ident)+) => {$(
        $(#[$note])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $Name(pub u64);

        impl $Name {
            /// The id as SQLite keeps it. Ids are always below 2^63; a larger one from the wire names nothing,
            /// and neither does the value it becomes here.
            #[must_use]
            pub fn as_sql(self) -> i64 {
                i64::try_from(self.0).unwrap_or(i64::MAX)
            }

            /// An id read from SQLite; negative row ids cannot be expressed on the wire and become 0, which names nothing.
            #[must_use]
            pub fn from_sql(id: i64) -> Self {
                Self(u64::try_from(id).unwrap_or(0))
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}

ids! {
    /// A channel, a subchannel or a direct-message channel: all three share one space.
    ChannelId
    /// A message; rises with commit order (BEHAVIOUR.md 8.5).
    MessageId
    /// An account.
    UserId
    /// A live connection; starts at 1 with each start of the server.
    SessionId
    /// A stored SSH public key.
    SshKeyId
    /// A ban.
    BanId
    /// An open invitation to a direct message.
    InviteId
}
