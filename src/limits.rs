//! Every bound of the server that is not a setting, with its reason, and whom a bound counts as one.

use std::net::{IpAddr, Ipv6Addr};

/// Who counts as one: an address, or the /64 network that IPv6 gives to one customer. An IPv4 address is the same in
/// either form.
#[must_use]
pub fn party(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

/// Deepest reply that is stored; clients rebuild threads by recursion (BEHAVIOUR.md 2.0).
pub const THREAD_DEPTH_MAX: u32 = 200;

/// Longest message text the codec carries, in bytes; the configured length can only be smaller.
pub const CONTENT_BYTES_MAX: usize = 4096;

/// So much of a stored text is read for a list: all that one string of the wire carries. Only other programs write longer
/// ones into the file, and a page of them must not take all memory.
pub const LISTED_BYTES_MAX: usize = 65_535;

/// Largest page of LIST_MESSAGES (BEHAVIOUR.md 2.12).
pub const LIST_MESSAGES_MAX: u16 = 200;
/// What a LIST_MESSAGES with limit 0 gets.
pub const LIST_MESSAGES_DEFAULT: u16 = 50;

/// Largest page of LIST_USERS (BEHAVIOUR.md 2.17).
pub const LIST_USERS_MAX: u16 = 500;
/// What a LIST_USERS with limit 0 gets.
pub const LIST_USERS_DEFAULT: u16 = 100;

/// Largest page of LIST_SERVERS, without the directory itself (BEHAVIOUR.md 6.1).
pub const LIST_SERVERS_MAX: u16 = 500;
/// What a LIST_SERVERS with limit 0 gets, and the page of `/servers.json` (BEHAVIOUR.md 6.6).
pub const LIST_SERVERS_DEFAULT: u16 = 100;

/// Servers that a directory remembers: beyond, one that was not heard of lately makes room.
pub const SERVERS_MAX: u16 = 10_000;

/// Servers in the directory that one [`party`] may have registered, and that may be reached at one: a name with a wildcard
/// makes any number of servers out of one machine, and so does an IPv6 network.
pub const SERVERS_PER_ADDRESS_MAX: u16 = 32;

/// Bytes of a server's name, and of its description.
pub const SERVER_TEXT_BYTES_MAX: usize = 500;

/// Bytes of the name or address of a machine, as DNS has it.
pub const HOST_BYTES_MAX: usize = 253;

/// Targets of one GET_UNREAD_COUNTS (D-68).
pub const UNREAD_TARGETS_MAX: usize = 1000;

/// SSH keys of one account (D-68).
pub const SSH_KEYS_PER_USER_MAX: u32 = 50;

/// Invitations to direct messages that one initiator may have open (D-68).
pub const OPEN_INVITES_MAX: u32 = 100;

/// Conversations, and invitations of each direction, that an account is told of when it signs in: the newest ones. As many
/// of the longest frames stay far below what an outbox holds.
pub const DMS_TOLD_MAX: u16 = 500;

/// Milliseconds before a repeated invitation is shown to its target again (D-21).
pub const INVITE_REPEAT_MS: i64 = 60_000;

/// Invitations per session whose missing key was asked for; forgetting one only means to ask again.
pub const KEYS_ASKED_REMEMBERED: usize = 32;

/// Unread messages are counted up to here: beyond, a client shows "many" anyway (BEHAVIOUR.md 7).
pub const UNREAD_COUNT_MAX: u32 = 10_000;

/// Longest reason of a ban, in bytes: as a channel's description. Longer ones in old files are shown up to there.
pub const BAN_REASON_BYTES_MAX: usize = 500;

/// Longest nickname that can be banned without its account's id, in bytes; the longest that can be chosen has 20.
pub const BAN_NICKNAME_BYTES_MAX: usize = 64;

/// Writes waiting for the writer thread. At a slow disk's 200 commits a second a full queue is 5 s of work at most.
pub const WRITER_QUEUE_MAX: usize = 8192;

/// Writes in one commit: bounds how long one transaction holds back its first author.
pub const WRITER_BATCH_MAX: usize = 1024;

/// Reads waiting for the read pool.
pub const READER_QUEUE_MAX: usize = 4096;

/// Commits a shard may lag behind before the writer waits for it.
pub const SHARD_BACKLOG_MAX: usize = 1024;

/// Posts of one session that may wait for their commit at once; more wait unread in its socket.
pub const POSTS_IN_FLIGHT_MAX: usize = 256;

/// Posts by visitors whose session and address are remembered, so that they can delete their own (BEHAVIOUR.md 2.15).
pub const VISITOR_POSTS_REMEMBERED: usize = 65_536;

const _: () = assert!(LIST_MESSAGES_DEFAULT <= LIST_MESSAGES_MAX);
const _: () = assert!(LIST_USERS_DEFAULT <= LIST_USERS_MAX);
const _: () = assert!(WRITER_BATCH_MAX <= WRITER_QUEUE_MAX);
const _: () = assert!(LIST_SERVERS_DEFAULT <= LIST_SERVERS_MAX);
// A page of the longest entries, and the directory itself, fit one frame.
const _: () = assert!(
    (LIST_SERVERS_MAX as usize + 1) * (HOST_BYTES_MAX + 2 * SERVER_TEXT_BYTES_MAX + 50)
        < crate::wire::frame::PAYLOAD_BYTES_MAX
);
// A page of the longest messages of ours fits one frame, with 100 bytes of other fields each.
const _: () = assert!(LIST_MESSAGES_MAX as usize * (CONTENT_BYTES_MAX + 100) < crate::wire::frame::PAYLOAD_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_customer_is_an_address_or_a_network_of_64_bits() {
        let of = |address: &str| party(address.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!((of("192.0.2.7").as_str(), of("::ffff:192.0.2.7").as_str()), ("192.0.2.7", "192.0.2.7"));
    }
}
