//! What can be wrong with bytes from a peer, and the table of error codes sent back (WIRE.md 5).

use thiserror::Error;

/// A frame that cannot be cut or unpacked: the boundary of the next one is lost, so the connection ends (WIRE.md 2, 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("frame length {0} is below 3")]
    TooShort(u32),
    #[error("frame length {0} is above 1048576")]
    TooLong(u32),
    #[error("compressed payload is shorter than its size field")]
    CompressedTooShort,
    #[error("declared size {0} is above 1048576")]
    DeclaredTooLarge(u32),
    #[error("compressed payload does not decode to its declared size")]
    Decompression,
    #[error("input ends inside a frame")]
    UnexpectedEnd,
}

impl FrameError {
    /// Whether compression, not framing, is to blame (`superchat_decode_errors_total{kind}`).
    #[must_use]
    pub fn is_compression(self) -> bool {
        matches!(self, Self::CompressedTooShort | Self::DeclaredTooLarge(_) | Self::Decompression)
    }
}

/// A payload that cannot be read or a value that cannot be written. The frame boundary is intact, so the session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("payload ends inside or before a field")]
    UnexpectedEnd,
    #[error("unknown message type {0:#04x}")]
    UnknownType(u8),
    #[error("text is shorter than allowed")]
    TooShort,
    #[error("text or list is longer than its field allows")]
    TooLong,
}

macro_rules! error_codes {
    ($($(#[$note:meta])* $Code:ident = $number:literal $NAME:literal)+) => {
        /// ERROR.error_code. Published codes that nobody sends are left out (WIRE.md 5).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[$note])* $Code = $number),+ }

        impl ErrorCode {
            /// Every code with its number and published name.
            pub const TABLE: &'static [(Self, u16, &'static str)] = &[$((Self::$Code, $number, $NAME)),+];

            #[must_use]
            pub fn number(self) -> u16 {
                self as u16
            }
        }
    };
}

error_codes! {
    InvalidFormat = 1000 "INVALID_FORMAT"
    /// Also the directory requests while the directory is off.
    UnsupportedVersion = 1001 "UNSUPPORTED_VERSION"
    AuthRequired = 2000 "AUTH_REQUIRED"
    PermissionDenied = 3000 "PERMISSION_DENIED"
    NotFound = 4000 "NOT_FOUND"
    ChannelNotFound = 4001 "CHANNEL_NOT_FOUND"
    MessageNotFound = 4002 "MESSAGE_NOT_FOUND"
    ThreadNotFound = 4003 "THREAD_NOT_FOUND"
    SubchannelNotFound = 4004 "SUBCHANNEL_NOT_FOUND"
    RateLimit = 5000 "RATE_LIMIT"
    MessageRateLimit = 5001 "MESSAGE_RATE_LIMIT"
    ConnectionLimit = 5003 "CONNECTION_LIMIT"
    ThreadSubscriptionLimit = 5004 "THREAD_SUBSCRIPTION_LIMIT"
    ChannelSubscriptionLimit = 5005 "CHANNEL_SUBSCRIPTION_LIMIT"
    InvalidInput = 6000 "INVALID_INPUT"
    MessageTooLong = 6001 "MESSAGE_TOO_LONG"
    NicknameRequired = 6004 "NICKNAME_REQUIRED"
    Internal = 9000 "INTERNAL_ERROR"
    Database = 9001 "DATABASE_ERROR"
    Unavailable = 9002 "UNAVAILABLE"
}
