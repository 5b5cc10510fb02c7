//! Reading and writing of primitive values, and the `messages!` macro that turns a table into types (WIRE.md 4 and 8).

use super::errors::WireError;
use crate::ids::{BanId, ChannelId, InviteId, MessageId, SessionId, UserId};

/// Longest string the u16 length prefix can announce, in bytes.
pub const STRING_BYTES_MAX: usize = u16::MAX as usize;

/// Takes values off the front of a payload. Never allocates.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`WireError::UnexpectedEnd`] when fewer are left.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(WireError::UnexpectedEnd)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(WireError::UnexpectedEnd)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Ends a message. Bytes left over are accepted (WIRE.md 8), and only here is that decided.
    ///
    /// # Errors
    /// None today.
    pub fn finish(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// Appends values to a payload. A value that cannot be expressed on the wire is never cut: it marks the writer, and
/// [`Writer::finish`] refuses the whole message.
#[derive(Debug)]
pub struct Writer<'o> {
    pub(super) out: &'o mut Vec<u8>,
    refused: Option<WireError>,
}

impl<'o> Writer<'o> {
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, refused: None }
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Remembers the first value that does not fit; the message will not be sent.
    pub fn refuse(&mut self, error: WireError) {
        self.refused.get_or_insert(error);
    }

    /// # Errors
    /// The first value that did not fit its field.
    pub fn finish(self) -> Result<(), WireError> {
        self.refused.map_or(Ok(()), Err)
    }

    fn count(&mut self, length: usize) {
        match u16::try_from(length) {
            Ok(count) => self.raw(&count.to_be_bytes()),
            Err(_) => self.refuse(WireError::TooLong),
        }
    }
}

/// A type that stands for exactly one wire form.
pub trait Wire<'a>: Sized {
    /// # Errors
    /// [`WireError`] when the payload ends too early or a length is out of its range.
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError>;
    fn write(&self, writer: &mut Writer<'_>);
}

macro_rules! integers {
    ($($ty:ty)+) => {$(
        impl<'a> Wire<'a> for $ty {
            fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
                reader.array().map(<$ty>::from_be_bytes)
            }
            fn write(&self, writer: &mut Writer<'_>) {
                writer.raw(&self.to_be_bytes());
            }
        }
    )+};
}
integers! { u8 u16 u32 u64 i64 }

macro_rules! id_forms {
    ($($Id:ident)+) => {$(
        impl<'a> Wire<'a> for $Id {
            fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
                u64::read(reader).map(Self)
            }
            fn write(&self, writer: &mut Writer<'_>) {
                self.0.write(writer);
            }
        }
    )+};
}
id_forms! { ChannelId MessageId UserId SessionId BanId InviteId }

/// Any byte but 00 reads as true; exactly 00 or 01 is written.
impl<'a> Wire<'a> for bool {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        u8::read(reader).map(|byte| byte != 0)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.raw(&[u8::from(*self)]);
    }
}

/// A string: u16 byte count, then the bytes, UTF-8 unchecked.
impl<'a> Wire<'a> for &'a [u8] {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let length = u16::read(reader)?;
        reader.take(length.into())
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.count(self.len());
        writer.raw(self);
    }
}

/// A raw key: `bytes[32]`.
impl<'a> Wire<'a> for [u8; 32] {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        reader.array()
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.raw(self);
    }
}

/// A presence byte, then the value if present.
impl<'a, T: Wire<'a>> Wire<'a> for Option<T> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        bool::read(reader)?.then(|| T::read(reader)).transpose()
    }
    fn write(&self, writer: &mut Writer<'_>) {
        self.is_some().write(writer);
        if let Some(value) = self {
            value.write(writer);
        }
    }
}

/// A success byte, then one of two layouts.
impl<'a, T: Wire<'a>, E: Wire<'a>> Wire<'a> for Result<T, E> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(if bool::read(reader)? { Ok(T::read(reader)?) } else { Err(E::read(reader)?) })
    }
    fn write(&self, writer: &mut Writer<'_>) {
        self.is_ok().write(writer);
        match self {
            Ok(value) => value.write(writer),
            Err(value) => value.write(writer),
        }
    }
}

/// A last field that may be missing: present while bytes are left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail<T>(pub Option<T>);

impl<'a, T: Wire<'a>> Wire<'a> for Tail<T> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        if reader.remaining() == 0 { Ok(Self(None)) } else { T::read(reader).map(|value| Self(Some(value))) }
    }
    fn write(&self, writer: &mut Writer<'_>) {
        if let Some(value) = &self.0 {
            value.write(writer);
        }
    }
}

/// A byte that one generation of clients expects and another does not, with nothing before it that says so: written where
/// the operator wants it, and never read (BEHAVIOUR.md 13.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveFlag(pub Option<bool>);

impl<'a> Wire<'a> for ArchiveFlag {
    fn read(_: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self(None))
    }
    fn write(&self, writer: &mut Writer<'_>) {
        if let Some(flag) = self.0 {
            flag.write(writer);
        }
    }
}

/// A u16 count, then that many items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<'a, T: Wire<'a>> Wire<'a> for List<T> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = u16::read(reader)?;
        read_items(reader, count.into()).map(Self)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        writer.count(self.0.len());
        self.0.iter().for_each(|item| item.write(writer));
    }
}

/// A u32 count, then that many items (SSH_KEY_LIST alone).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongList<T>(pub Vec<T>);

impl<'a, T: Wire<'a>> Wire<'a> for LongList<T> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = u32::read(reader)?;
        read_items(reader, usize::try_from(count).unwrap_or(usize::MAX)).map(Self)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        match u32::try_from(self.0.len()) {
            Ok(count) => count.write(writer),
            Err(_) => writer.refuse(WireError::TooLong),
        }
        self.0.iter().for_each(|item| item.write(writer));
    }
}

/// Every item takes at least one byte, so the bytes left bound the memory taken, whatever the count says.
fn read_items<'a, T: Wire<'a>>(reader: &mut Reader<'a>, count: usize) -> Result<Vec<T>, WireError> {
    if count > reader.remaining() {
        return Err(WireError::UnexpectedEnd);
    }
    let mut items = Vec::with_capacity(count.min(reader.remaining() / size_of::<T>().max(1) + 1));
    for _ in 0..count {
        items.push(T::read(reader)?);
    }
    Ok(items)
}

/// A string whose length the codec itself checks, in bytes (WIRE.md 8: nickname 3-20, content 1-4096).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounded<'a, const MIN: usize, const MAX: usize>(pub &'a [u8]);

impl<const MIN: usize, const MAX: usize> Bounded<'_, MIN, MAX> {
    fn check(&self) -> Result<(), WireError> {
        match self.0.len() {
            length if length < MIN => Err(WireError::TooShort),
            length if length > MAX => Err(WireError::TooLong),
            _ => Ok(()),
        }
    }
}

impl<'a, const MIN: usize, const MAX: usize> Wire<'a> for Bounded<'a, MIN, MAX> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let value = Self(<&[u8]>::read(reader)?);
        value.check().map(|()| value)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        if let Err(error) = self.check() {
            writer.refuse(error);
        }
        self.0.write(writer);
    }
}

/// Nickname as SET_NICKNAME carries it.
pub type NicknameText<'a> = Bounded<'a, 3, 20>;
/// Message text as POST_MESSAGE and EDIT_MESSAGE carry it.
pub type ContentText<'a> = Bounded<'a, 1, 4096>;

/// Whom START_DM is for: the type byte decides which field follows; an unknown type is followed by none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmTarget<'a> {
    User(UserId),
    Nickname(&'a [u8]),
    Session(SessionId),
    Unknown(u8),
}

impl<'a> Wire<'a> for DmTarget<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(match u8::read(reader)? {
            0 => Self::User(Wire::read(reader)?),
            1 => Self::Nickname(Wire::read(reader)?),
            2 => Self::Session(Wire::read(reader)?),
            unknown => Self::Unknown(unknown),
        })
    }
    fn write(&self, writer: &mut Writer<'_>) {
        match self {
            Self::User(id) => {
                0u8.write(writer);
                id.write(writer);
            }
            Self::Nickname(nickname) => {
                1u8.write(writer);
                nickname.write(writer);
            }
            Self::Session(id) => {
                2u8.write(writer);
                id.write(writer);
            }
            Self::Unknown(code) => code.write(writer),
        }
    }
}

/// The other side's key, on the wire only in an encrypted conversation (DM_READY).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encryption(pub Option<[u8; 32]>);

impl<'a> Wire<'a> for Encryption {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Wire::read(reader).map(Self)
    }
    fn write(&self, writer: &mut Writer<'_>) {
        self.0.write(writer);
    }
}

/// Declares records: structs whose fields follow each other on the wire.
macro_rules! records {
    ($($(#[$note:meta])* $Record:ident $(<$lt:lifetime>)? { $($field:ident: $ty:ty),* $(,)? })+) => {$(
        $(#[$note])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $Record $(<$lt>)? { $(pub $field: $ty),* }

        $crate::wire::codec::wire_fields! { $Record $(<$lt>)? { $($field: $ty),* } }
    )+};
}

/// Implements [`Wire`] and the JSON vocabulary field by field.
macro_rules! wire_fields {
    // A borrowed record: its own lifetime is the reader's.
    ($Record:ident <$lt:lifetime> { $($field:ident: $ty:ty),* }) => {
        $crate::wire::codec::wire_fields! { impl $lt for ($Record<$lt>) { $($field: $ty),* } }
    };
    ($Record:ident { $($field:ident: $ty:ty),* }) => {
        $crate::wire::codec::wire_fields! { impl 'wire for ($Record) { $($field: $ty),* } }
    };
    (impl $lt:lifetime for ($Record:ty) { $($field:ident: $ty:ty),* }) => {
        impl<$lt> $crate::wire::codec::Wire<$lt> for $Record {
            fn read(_reader: &mut $crate::wire::codec::Reader<$lt>) -> Result<Self, $crate::wire::errors::WireError> {
                Ok(Self { $($field: $crate::wire::codec::Wire::read(_reader)?),* })
            }
            fn write(&self, _writer: &mut $crate::wire::codec::Writer<'_>) {
                $(self.$field.write(_writer);)*
            }
        }
        impl<$lt> $crate::wire::json::Fields for $Record {
            fn describe_fields(&self, _fields: &mut serde_json::Map<String, serde_json::Value>) {
                $($crate::wire::json::Json::describe(&self.$field, stringify!($field), _fields);)*
            }
            fn parse_fields(
                _fields: &serde_json::Map<String, serde_json::Value>,
                _writer: &mut $crate::wire::codec::Writer<'_>,
            ) -> Result<(), $crate::wire::json::JsonError> {
                $(<$ty as $crate::wire::json::Json>::parse(stringify!($field), _fields, _writer)?;)*
                Ok(())
            }
        }
    };
}

/// Declares one direction of the protocol: code, published name, type, fields in wire order. From the table come enum,
/// structs, decoder, encoder, JSON vocabulary and the list that metrics, logs and tests walk.
macro_rules! messages {
    (enum $All:ident<$a:lifetime> {$(
        $(#[$note:meta])* $code:literal $NAME:ident $Msg:ident $(<$lt:lifetime>)? { $($field:ident: $ty:ty),* $(,)? }
    )+}) => {
        /// Any message of this direction.
        #[derive(Debug, Clone, PartialEq)]
        pub enum $All<$a> { $($Msg($Msg $(<$lt>)?)),+ }

        impl<$a> $All<$a> {
            /// Every message of this direction: type code and published name.
            pub const TABLE: &'static [(u8, &'static str)] = &[$(($code, stringify!($NAME))),+];

            /// Reads the payload of a frame of type `code`.
            ///
            /// # Errors
            /// `WireError::UnknownType` for a code of no message in this table, else what is wrong with the payload.
            pub fn read(code: u8, payload: &$a [u8]) -> Result<Self, $crate::wire::errors::WireError> {
                let mut reader = $crate::wire::codec::Reader::new(payload);
                let message = match code {
                    $($code => Self::$Msg($crate::wire::codec::Wire::read(&mut reader)?),)+
                    unknown => return Err($crate::wire::errors::WireError::UnknownType(unknown)),
                };
                reader.finish().map(|()| message)
            }

            #[must_use]
            pub fn code(&self) -> u8 {
                match self { $(Self::$Msg(_) => $code),+ }
            }

            /// Appends the payload.
            pub fn write(&self, writer: &mut $crate::wire::codec::Writer<'_>) {
                match self { $(Self::$Msg(message) => $crate::wire::codec::Wire::write(message, writer)),+ }
            }

            /// The fields by name, in the vocabulary of the protocol's test vectors.
            #[must_use]
            pub fn describe(&self) -> serde_json::Map<String, serde_json::Value> {
                let mut fields = serde_json::Map::new();
                match self { $(Self::$Msg(message) => $crate::wire::json::Fields::describe_fields(message, &mut fields)),+ }
                fields
            }

            /// Writes the payload of the message called `name` from its fields; `None` when no message has that name.
            #[must_use]
            pub fn parse(
                name: &str,
                fields: &serde_json::Map<String, serde_json::Value>,
                writer: &mut $crate::wire::codec::Writer<'_>,
            ) -> Option<Result<u8, $crate::wire::json::JsonError>> {
                match name {
                    $(stringify!($NAME) => {
                        Some(<$Msg $(<$lt>)? as $crate::wire::json::Fields>::parse_fields(fields, writer).map(|()| $code))
                    })+
                    _ => None,
                }
            }
        }

        $(
            $(#[$note])*
            #[derive(Debug, Clone, PartialEq)]
            pub struct $Msg $(<$lt>)? { $(pub $field: $ty),* }

            impl $(<$lt>)? $Msg $(<$lt>)? {
                /// Type code in the frame header.
                pub const CODE: u8 = $code;
            }

            impl<$a> From<$Msg $(<$lt>)?> for $All<$a> {
                fn from(message: $Msg $(<$lt>)?) -> Self { Self::$Msg(message) }
            }

            $crate::wire::codec::wire_fields! { $Msg $(<$lt>)? { $($field: $ty),* } }
        )+
    };
}

pub(super) use {messages, records, wire_fields};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_beyond_the_bytes_left_takes_no_memory() {
        let mut reader = Reader::new(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert_eq!(LongList::<u8>::read(&mut reader), Err(WireError::UnexpectedEnd));
    }

    #[test]
    fn string_longer_than_its_prefix_is_refused_not_cut() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        vec![b'm'; STRING_BYTES_MAX + 1].as_slice().write(&mut writer);
        assert_eq!(writer.finish(), Err(WireError::TooLong));
    }

    #[test]
    fn any_byte_but_zero_is_true() {
        assert_eq!(bool::read(&mut Reader::new(&[0x80])), Ok(true));
    }
}
