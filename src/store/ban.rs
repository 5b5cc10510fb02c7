//! Bans as values (BEHAVIOUR.md 5.3), and an index that answers who is banned without a look at the file.
//!
//! Whoever has to know keeps an index of its own and changes it by what is committed ([`Bans::apply`]): each shard, and the
//! door. Whether a ban has ended is asked when it is used, so none needs a timer.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::{IpNet, Ipv4Net};

use super::Event;
use super::types::Name;
use crate::ids::{BanId, UserId};

/// One row of the table of bans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    pub id: BanId,
    pub subject: Subject,
    pub reason: Name,
    /// Hide from others instead of refusing. Counts for users only.
    pub shadow: bool,
    /// Milliseconds since 1970.
    pub since: i64,
    /// Milliseconds since 1970; `None` = for ever.
    pub until: Option<i64>,
    /// Who gave it, as a text to show.
    pub by: Name,
}

impl Ban {
    /// Whether it counts at `now` (ms).
    #[must_use]
    pub fn is_active(&self, now: i64) -> bool {
        self.until.is_none_or(|until| until >= now)
    }

    /// Whether it names this account.
    #[must_use]
    pub fn is_of(&self, user: UserId) -> bool {
        matches!(self.subject, Subject::User { user: Some(known), .. } if known == user)
    }

    /// What is left of it once its account, last called `nickname`, is deleted: a ban by nickname counts on, and so does
    /// one that hides, else what it hides would show. Only one that refuses the bare id goes (BEHAVIOUR.md 5.2).
    #[must_use]
    pub fn without_account(&self, nickname: &Name) -> Option<Self> {
        let Subject::User { nickname: banned, .. } = &self.subject else { return Some(self.clone()) };
        let nickname = banned.as_ref().or(self.shadow.then_some(nickname))?;
        Some(Self { subject: Subject::User { user: None, nickname: Some(nickname.clone()) }, ..self.clone() })
    }
}

/// Who is banned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An account, a nickname, or both.
    User { user: Option<UserId>, nickname: Option<Name> },
    /// An address or a network, as it was written: old files hold texts that name none.
    Address(Name),
}

/// The addresses that a text names: one, or a network in CIDR form. IPv4 written as IPv6 is IPv4.
#[must_use]
pub fn network(text: &[u8]) -> Option<IpNet> {
    let text = std::str::from_utf8(text).ok()?;
    let network = text.parse().or_else(|_| text.parse().map(|address: IpAddr| IpNet::from(address))).ok()?;
    Some(canonical(network))
}

fn canonical(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(inner) => inner.addr().to_ipv4_mapped().zip(inner.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    let mapped = mapped.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok());
    mapped.map_or(network, IpNet::V4).trunc()
}

/// Whom a question is about.
#[derive(Debug, Clone, Copy, Default)]
pub struct Who<'a> {
    pub user: Option<UserId>,
    pub nickname: Option<&'a [u8]>,
}

/// All bans, found by whom they are about. A question costs a look per key, and for an address one per length of prefix
/// in use, however many bans there are.
#[derive(Debug, Clone, Default)]
pub struct Bans {
    all: HashMap<BanId, Arc<Ban>, RandomState>,
    users: Places<UserId>,
    nicknames: Places<Name>,
    networks: Places<IpNet>,
    /// The highest id there ever was.
    newest: BanId,
    /// How many networks have each length of prefix, by family.
    lengths: BTreeMap<(bool, u8), usize>,
}

type Places<K> = HashMap<K, Vec<Arc<Ban>>, RandomState>;

impl Bans {
    #[must_use]
    pub fn new(bans: impl IntoIterator<Item = Arc<Ban>>) -> Self {
        let mut index = Self::default();
        bans.into_iter().for_each(|ban| index.insert(ban));
        index
    }

    /// Takes over what was committed; `true` when bans changed by it.
    pub fn apply(&mut self, event: &Event) -> bool {
        match event {
            Event::Banned(ban) => self.insert(Arc::clone(ban)),
            Event::Unbanned { bans } => bans.iter().for_each(|ban| self.remove(*ban)),
            Event::BansRead(bans) => *self = Self::new(bans.iter().cloned()),
            Event::UserDeleted { user, nickname, .. } => {
                for ban in self.users.get(user).cloned().unwrap_or_default() {
                    self.remove(ban.id);
                    ban.without_account(nickname).into_iter().for_each(|left| self.insert(Arc::new(left)));
                }
            }
            _ => return false,
        }
        true
    }

    fn insert(&mut self, ban: Arc<Ban>) {
        self.remove(ban.id);
        self.newest = self.newest.max(ban.id);
        match &ban.subject {
            Subject::User { user, nickname } => {
                if let Some(user) = user {
                    self.users.entry(*user).or_default().push(Arc::clone(&ban));
                }
                if let Some(nickname) = nickname {
                    self.nicknames.entry(nickname.clone()).or_default().push(Arc::clone(&ban));
                }
            }
            Subject::Address(text) => {
                if let Some(network) = network(text) {
                    let here = self.networks.entry(network).or_default();
                    if here.is_empty() {
                        *self.lengths.entry(length_of(network)).or_default() += 1;
                    }
                    here.push(Arc::clone(&ban));
                }
            }
        }
        self.all.insert(ban.id, ban);
    }

    fn remove(&mut self, id: BanId) {
        let Some(ban) = self.all.remove(&id) else { return };
        match &ban.subject {
            Subject::User { user, nickname } => {
                user.map(|user| drop_from(&mut self.users, &user, id));
                nickname.as_ref().map(|nickname| drop_from(&mut self.nicknames, nickname, id));
            }
            Subject::Address(text) => {
                let Some(network) = network(text) else { return };
                if drop_from(&mut self.networks, &network, id)
                    && let Some(count) = self.lengths.get_mut(&length_of(network))
                {
                    *count -= 1;
                    self.lengths.retain(|_, count| *count > 0);
                }
            }
        }
    }

    /// The highest id there ever was: what came later is newer.
    #[must_use]
    pub fn newest(&self) -> BanId {
        self.newest
    }

    /// The file says that nothing up to `newest` refuses them: somebody lifted it behind the server's back.
    pub fn drop_refusing(&mut self, who: Who<'_>, newest: BanId, now: i64) {
        let refusing = self.about(who).filter(|ban| ban.id <= newest && !ban.shadow && ban.is_active(now));
        let stale: Vec<_> = refusing.map(|ban| ban.id).collect();
        stale.into_iter().for_each(|ban| self.remove(ban));
    }

    /// Whether this ban is there and counts at `now`.
    #[must_use]
    pub fn is_active(&self, id: BanId, now: i64) -> bool {
        self.all.get(&id).is_some_and(|ban| ban.is_active(now))
    }

    /// The ban that refuses somebody: of several the one that lasts longest. One that only hides refuses nobody.
    #[must_use]
    pub fn refusing(&self, who: Who<'_>, now: i64) -> Option<&Arc<Ban>> {
        let refusing = self.about(who).filter(|ban| !ban.shadow && ban.is_active(now));
        refusing.max_by_key(|ban| ban.until.unwrap_or(i64::MAX))
    }

    /// Those that hide what somebody writes.
    pub fn hiding(&self, who: Who<'_>, now: i64) -> impl Iterator<Item = BanId> {
        self.about(who).filter(move |ban| ban.shadow && ban.is_active(now)).map(|ban| ban.id)
    }

    fn about<'b>(&'b self, who: Who<'_>) -> impl Iterator<Item = &'b Arc<Ban>> + use<'b> {
        let by_user = who.user.and_then(|user| self.users.get(&user));
        let by_nickname = who.nickname.and_then(|nickname| self.nicknames.get(nickname));
        by_user.into_iter().chain(by_nickname).flatten()
    }

    /// The ban that keeps an address out.
    #[must_use]
    pub fn refusing_address(&self, address: IpAddr, now: i64) -> Option<&Arc<Ban>> {
        let address = address.to_canonical();
        let lengths = self.lengths.keys().filter(|(is_v6, _)| *is_v6 == address.is_ipv6());
        let networks = lengths.filter_map(|(_, length)| IpNet::new(address, *length).ok());
        let bans = networks.filter_map(|network| self.networks.get(&network.trunc())).flatten();
        bans.filter(|ban| ban.is_active(now)).max_by_key(|ban| ban.until.unwrap_or(i64::MAX))
    }
}

fn length_of(network: IpNet) -> (bool, u8) {
    (network.addr().is_ipv6(), network.prefix_len())
}

/// Takes a ban away from a place; `true` when that was the last one there.
fn drop_from<K: Hash + Eq>(places: &mut Places<K>, place: &K, id: BanId) -> bool {
    let Some(here) = places.get_mut(place) else { return false };
    here.retain(|ban| ban.id != id);
    let is_empty = here.is_empty();
    if is_empty {
        places.remove(place);
    }
    is_empty
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ban(id: u64, subject: Subject, shadow: bool, until: Option<i64>) -> Arc<Ban> {
        let name = Name::from(&b"x"[..]);
        Arc::new(Ban { id: BanId(id), subject, reason: name.clone(), shadow, since: 0, until, by: name })
    }

    fn user(user: u64, nickname: &str) -> Subject {
        let nickname = (!nickname.is_empty()).then(|| Name::from(nickname.as_bytes()));
        Subject::User { user: (user != 0).then_some(UserId(user)), nickname }
    }

    fn address(text: &str) -> Subject {
        Subject::Address(text.as_bytes().into())
    }

    #[test]
    fn texts_that_name_addresses() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(network(text.as_bytes()), expected.map(|text| text.parse().unwrap()), "{text}");
        };
        check("192.0.2.7", Some("192.0.2.7/32"));
        check("192.0.2.7/24", Some("192.0.2.0/24"));
        check("2001:db8::1", Some("2001:db8::1/128"));
        check("2001:db8::1/32", Some("2001:db8::/32"));
        check("::ffff:192.0.2.7", Some("192.0.2.7/32"));
        check("::ffff:192.0.2.7/120", Some("192.0.2.0/24"));
        check("::/0", Some("::/0"));
        for nonsense in ["", " 192.0.2.7", "192.0.2.7/33", "192.0.2", "2001:db8::/129", "example.org", "192.0.2.0/-1"] {
            check(nonsense, None);
        }
        assert_eq!(network(b"\xff"), None);
    }

    #[test]
    fn whoever_is_refused_for_longest_hears_of_that_ban_and_hiding_refuses_nobody() {
        let who = Who { user: Some(UserId(7)), nickname: Some(b"troll") };
        let mut bans = Bans::new([
            ban(1, user(7, ""), true, None),
            ban(2, user(0, "troll"), false, Some(100)),
            ban(3, user(7, "troll"), false, Some(50)),
        ]);
        let refusing = |bans: &Bans, who, now| bans.refusing(who, now).map(|ban| ban.id.0);
        assert_eq!(refusing(&bans, who, 10), Some(2));
        assert_eq!(refusing(&bans, Who { nickname: None, ..who }, 50), Some(3), "the last moment counts");
        assert_eq!(refusing(&bans, Who { nickname: None, ..who }, 51), None);
        assert_eq!(refusing(&bans, Who { nickname: Some(b"Troll"), user: None }, 10), None);
        assert_eq!(bans.hiding(who, 1000).collect::<Vec<_>>(), [BanId(1)]);
        bans.apply(&Event::Unbanned { bans: vec![BanId(2), BanId(9)] });
        assert_eq!(refusing(&bans, who, 10), Some(3));
    }

    #[test]
    fn bans_of_a_deleted_account_go_but_for_those_that_hide_or_name_it() {
        let mut bans = Bans::new([
            ban(1, user(7, ""), false, None),
            ban(2, user(7, ""), true, None),
            ban(3, user(7, "troll"), false, None),
            ban(4, user(8, ""), false, None),
        ]);
        bans.apply(&Event::UserDeleted { user: UserId(7), nickname: b"goblin"[..].into(), left: Vec::new() });
        let subject = |id: u64| bans.all.get(&BanId(id)).map(|ban| ban.subject.clone());
        assert_eq!(
            [1, 2, 3, 4].map(subject),
            [None, Some(user(0, "goblin")), Some(user(0, "troll")), Some(user(8, ""))]
        );
        assert_eq!(bans.users.keys().collect::<Vec<_>>(), [&UserId(8)]);
        let goblin = Who { user: None, nickname: Some(b"goblin") };
        assert_eq!(bans.hiding(goblin, 0).collect::<Vec<_>>(), [BanId(2)]);
    }

    #[test]
    fn addresses_of_old_files_that_are_none_ban_nobody() {
        let bans = Bans::new([ban(1, address("not an address"), false, None)]);
        assert!(bans.refusing_address("192.0.2.7".parse().unwrap(), 0).is_none());
        assert!(bans.is_active(BanId(1), 0), "and are listed nevertheless");
    }

    fn some_network() -> impl Strategy<Value = String> {
        // Few addresses, so that networks meet.
        let v4 = (0u8..4, 0u8..3, 0u8..=32).prop_map(|(a, b, length)| format!("{a}.0.0.{b}/{length}"));
        let v6 = (0u8..3, 0u8..=128).prop_map(|(a, length)| format!("{a}::1/{length}"));
        prop_oneof![v4, v6]
    }

    proptest! {
        /// The index finds what looking at every ban finds, whatever came and went.
        #[test]
        fn an_address_is_refused_exactly_when_a_network_contains_it(
            networks in prop::collection::vec((some_network(), any::<bool>()), 0..12),
            address_text in some_network(),
        ) {
            let mut bans = Bans::default();
            let mut left = Vec::new();
            for (id, (text, is_lifted)) in networks.iter().enumerate() {
                let id = id as u64 + 1;
                bans.apply(&Event::Banned(ban(id, address(text), false, None)));
                if *is_lifted {
                    bans.apply(&Event::Unbanned { bans: vec![BanId(id)] });
                } else {
                    left.push(text.parse::<IpNet>().unwrap());
                }
            }
            let asked = address_text.parse::<IpNet>().unwrap().addr();
            let expected = left.iter().any(|network| network.contains(&asked));
            prop_assert_eq!(bans.refusing_address(asked, 0).is_some(), expected);
            prop_assert_eq!(bans.lengths.values().sum::<usize>(), bans.networks.len());
        }
    }
}
