//! What the server knows, as far as a script tells it: rules need it to say what ours answers instead.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use superchat::wire::frame::Frame as WireFrame;
use superchat::wire::{ClientMessage, WireError};

use super::script::{Frame, Item, Sent, What};
use crate::support::link::Fields;

/// Milliseconds from 1970 to 2024, where message ids start to count (WIRE.md 4).
const MESSAGE_EPOCH_MS: i64 = 1_704_067_200_000;
/// Times below can only be seconds (BEHAVIOUR.md 7).
const SECONDS_BELOW: i64 = 100_000_000_000;

/// A channel or subchannel, however it is spelt.
pub type Place = u64;
/// How a session names a place: `channel_id`, and `subchannel_id` if it uses both.
pub type Spelling = (Place, Option<Place>);

#[derive(Debug, Clone, Default)]
pub struct World {
    pub settings: Fields,
    /// Connections that are open, by number.
    pub sessions: BTreeMap<u32, Session>,
    pub messages: BTreeMap<u64, Post>,
    /// Subchannel to parent.
    parents: BTreeMap<Place, Place>,
    /// Direct messages by channel, with the connections that were told of each and are still in it.
    dms: BTreeMap<Place, BTreeSet<u32>>,
    /// Public channels by id, as CHANNEL_LIST shows them.
    pub channels: BTreeMap<Place, Fields>,
    /// Read marks in milliseconds, by account and place.
    marks: BTreeMap<(u64, Place), i64>,
    requests: BTreeMap<usize, Item>,
    /// Accounts by nickname.
    pub accounts: BTreeMap<String, u64>,
    /// What is told to whoever is refused, by nickname.
    pub bans: BTreeMap<String, String>,
    /// Connections that ended because of a ban, each with its session.
    pub banned: BTreeMap<u32, u64>,
}

#[derive(Debug, Clone, Default)]
pub struct Session {
    pub id: u64,
    id_is_sure: bool,
    pub nickname: String,
    pub user_id: Option<u64>,
    pub user_flags: u64,
    pub joined: Option<Place>,
    pub subscribed: BTreeSet<Place>,
    /// The spelling used last, by place.
    spellings: BTreeMap<Place, Spelling>,
}

#[derive(Debug, Clone)]
pub struct Post {
    pub id: u64,
    pub place: Place,
    parent: Option<u64>,
    /// As the Message record of WIRE.md 7.4; ids of the place and the count of replies are filled in when asked.
    record: Fields,
    pub deleted: bool,
}

/// A 64-bit number of a field.
pub fn number(fields: &Fields, name: &str) -> Option<u64> {
    fields.get(name)?.as_str()?.parse().ok()
}

fn text<'f>(fields: &'f Fields, name: &str) -> &'f str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn object(value: Value) -> Fields {
    if let Value::Object(fields) = value { fields } else { Fields::new() }
}

impl World {
    pub fn new(settings: &Fields) -> Self {
        Self { settings: settings.clone(), ..Self::default() }
    }

    /// The step that a frame answers.
    pub fn request<'w>(&'w self, group: &'w [Item], frame: &Frame) -> Option<&'w Item> {
        let index = frame.answers?;
        group.iter().find(|item| item.is_step() && item.index == index).or_else(|| self.requests.get(&index))
    }

    /// Where a request or message with these fields belongs; `None` for a pair that does not fit (BEHAVIOUR.md 2.11).
    pub fn place(&self, fields: &Fields) -> Option<Place> {
        let channel = number(fields, "channel_id")?;
        match number(fields, "subchannel_id") {
            None => Some(channel),
            Some(sub) => (self.parents.get(&sub) == Some(&channel)).then_some(sub),
        }
    }

    pub fn is_subchannel(&self, place: Place) -> bool {
        self.parents.contains_key(&place)
    }

    pub fn has_subchannels(&self, place: Place) -> bool {
        self.parents.values().any(|parent| *parent == place)
    }

    /// The place is a direct message that this connection takes no part in.
    pub fn is_foreign_dm(&self, place: Place, conn: u32) -> bool {
        self.dms.get(&place).is_some_and(|inside| !inside.contains(&conn))
    }

    pub fn takes_a_channel_name(&self, name: &str) -> bool {
        self.channels.values().any(|channel| channel["name"] == name)
    }

    /// The spelling in which a session hears of a place.
    pub fn spelling(&self, conn: u32, place: Place) -> Spelling {
        self.sessions.get(&conn).and_then(|session| session.spellings.get(&place)).copied().unwrap_or((place, None))
    }

    /// Connections that hear who comes to a place and who goes.
    pub fn audience(&self, place: Place) -> Vec<u32> {
        let hears = |session: &Session| session.joined == Some(place) || session.subscribed.contains(&place);
        self.sessions.iter().filter(|(_, session)| hears(session)).map(|(conn, _)| *conn).collect()
    }

    /// CHANNEL_USER_LIST.users of a place: by nickname, then session.
    pub fn joined_users(&self, place: Place) -> Value {
        let mut sessions: Vec<_> = self.sessions.values().filter(|session| session.joined == Some(place)).collect();
        sessions.retain(|session| !session.nickname.is_empty());
        sessions.sort_by_key(|session| (session.nickname.clone(), session.id));
        sessions.into_iter().map(|session| Value::Object(session.identity())).collect()
    }

    /// USER_LIST.users of the sessions: each nickname once, by nickname; one with an account wins.
    pub fn online_users(&self, limit: usize) -> Value {
        let mut users: BTreeMap<&str, Option<u64>> = BTreeMap::new();
        for session in self.sessions.values().filter(|session| !session.nickname.is_empty()) {
            let user_id = users.entry(&session.nickname).or_default();
            *user_id = user_id.or(session.user_id);
        }
        let entry = |(nickname, user_id): (&str, Option<u64>)| {
            json!({ "nickname": nickname, "is_registered": user_id.is_some(),
                "user_id": user_id.map(|id| id.to_string()), "online": true })
        };
        users.into_iter().take(limit).map(entry).collect()
    }

    /// MESSAGE_LIST.messages of our rules (BEHAVIOUR.md 2.12) for the session's request.
    pub fn list(&self, request: &Fields) -> Value {
        let Some(place) = self.place(request) else { return json!([]) };
        let spelling = (number(request, "channel_id").unwrap_or(place), number(request, "subchannel_id"));
        let (before, after) = (number(request, "before_id"), number(request, "after_id"));
        let limit = match request["limit"].as_u64() {
            None | Some(0) => 50,
            Some(limit) => limit.min(200),
        };
        let mut posts: Vec<&Post> = match number(request, "parent_id") {
            Some(parent) => self.thread(parent),
            None => self.messages.values().filter(|post| post.parent.is_none() && post.place == place).collect(),
        };
        posts.retain(|post| self.is_shown(post));
        match before {
            Some(before) => posts.retain(|post| post.id < before),
            None => posts.retain(|post| after.is_none_or(|after| post.id > after)),
        }
        let newest_first = number(request, "parent_id").is_none() && (before.is_some() || after.is_none());
        if newest_first {
            posts.reverse();
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        posts.into_iter().take(limit).map(|post| Value::Object(self.record(post, spelling))).collect()
    }

    /// All descendants, depth first, oldest sibling first.
    fn thread(&self, parent: u64) -> Vec<&Post> {
        let children = self.messages.values().filter(|post| post.parent == Some(parent));
        children.flat_map(|post| std::iter::once(post).chain(self.thread(post.id))).collect()
    }

    pub fn live_replies(&self, id: u64) -> usize {
        self.thread(id).into_iter().filter(|post| !post.deleted).count()
    }

    fn is_shown(&self, post: &Post) -> bool {
        !post.deleted || self.live_replies(post.id) > 0
    }

    /// The Message record of a post, spelt for one receiver.
    pub fn record(&self, post: &Post, (channel, sub): Spelling) -> Fields {
        let mut record = post.record.clone();
        record.insert("channel_id".into(), json!(channel.to_string()));
        record.insert("subchannel_id".into(), json!(sub.map(|sub| sub.to_string())));
        let replies = if post.parent.is_none() { self.live_replies(post.id) } else { 0 };
        record.insert("reply_count".into(), json!(replies));
        record
    }

    /// UNREAD_COUNTS.unread_count of our rules (BEHAVIOUR.md 7) for one target, from an account's own marks.
    pub fn unread(&self, user: u64, target: &Fields) -> usize {
        let Some(place) = self.place(target) else { return 0 };
        let mark = self.marks.get(&(user, place)).copied().unwrap_or(0);
        let thread = number(target, "thread_id");
        let own = |post: &Post| number(&post.record, "author_user_id") == Some(user);
        let counts = |post: &&Post| {
            let inside = match thread {
                Some(root) => self.root(post) == root,
                None => post.place == place,
            };
            inside && !post.deleted && !own(post) && post.created_ms() > mark
        };
        self.messages.values().filter(counts).count()
    }

    fn root(&self, post: &Post) -> u64 {
        match post.parent.and_then(|parent| self.messages.get(&parent)) {
            Some(parent) => self.root(parent),
            None => post.id,
        }
    }

    /// Takes in what happens next.
    pub fn observe(&mut self, item: &Item) {
        match &item.what {
            What::Open => {
                self.sessions.insert(item.conn, Session::default());
            }
            What::HangUp | What::Close { .. } => {
                self.sessions.remove(&item.conn);
            }
            What::Send(sent) => self.sent(item, sent),
            What::Receive(frame) => {
                let request = frame.answers.and_then(|index| self.requests.get(&index)).cloned();
                match request.as_ref().and_then(Item::sent) {
                    Some(sent) => self.answered(item.conn, sent, frame),
                    None => self.told(item.conn, frame),
                }
            }
            What::Stop | What::Accept => {}
        }
    }

    fn sent(&mut self, item: &Item, sent: &Sent) {
        self.requests.insert(item.index, item.clone());
        let place = sent.fields.as_ref().and_then(|fields| self.place(fields));
        let Some(session) = self.sessions.get_mut(&item.conn) else { return };
        session.id_is_sure |= session.id != 0;
        let Some(fields) = &sent.fields else { return };
        if let (Some(place), Some(channel)) = (place, number(fields, "channel_id")) {
            session.spellings.insert(place, (channel, number(fields, "subchannel_id")));
        }
        match (sent.name.as_str(), session.user_id) {
            ("LOGOUT", _) => (session.user_id, session.user_flags) = (None, 0),
            ("UPDATE_READ_STATE", Some(user)) => {
                let time: i64 = text(fields, "timestamp").parse().unwrap_or(0);
                let time = if time < SECONDS_BELOW { time * 1000 } else { time };
                if let Some(place) = place {
                    let mark = self.marks.entry((user, place)).or_insert(0);
                    *mark = time.max(*mark);
                }
            }
            _ => {}
        }
    }

    fn answered(&mut self, conn: u32, sent: &Sent, frame: &Frame) {
        let place = sent.fields.as_ref().and_then(|fields| self.place(fields));
        let asked = sent.fields.clone().unwrap_or_default();
        let ok = frame.fields.get("success") == Some(&json!(true));
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        match (frame.name.as_str(), sent.name.as_str()) {
            ("NICKNAME_RESPONSE", _) if ok => session.nickname = text(&asked, "nickname").into(),
            ("REGISTER_RESPONSE", _) if ok => {
                session.user_id = number(&frame.fields, "user_id");
                self.accounts.extend(session.user_id.map(|user| (session.nickname.clone(), user)));
            }
            ("USER_BANNED", _) if ok && asked["shadowban"] == false => self.ban(&asked),
            ("USER_UNBANNED", _) if ok => drop(self.bans.remove(text(&asked, "nickname"))),
            ("AUTH_RESPONSE", _) if ok => {
                session.nickname = text(&frame.fields, "nickname").into();
                session.user_id = number(&frame.fields, "user_id");
                session.user_flags = frame.fields["user_flags"].as_u64().unwrap_or(0);
            }
            ("JOIN_RESPONSE", _) if ok => session.joined = place,
            ("LEAVE_RESPONSE", _) if ok => {
                let left = session.joined.take().filter(|_| asked.get("permanent") == Some(&json!(true)));
                if let Some(inside) = left.and_then(|place| self.dms.get_mut(&place)) {
                    inside.remove(&conn);
                }
            }
            ("SUBSCRIBE_OK", "SUBSCRIBE_CHANNEL") => session.subscribed.extend(place),
            ("SUBSCRIBE_OK", "UNSUBSCRIBE_CHANNEL") => session.subscribed.retain(|kept| Some(*kept) != place),
            ("MESSAGE_POSTED", _) if ok => self.posted(conn, &asked, &frame.fields),
            ("CHANNEL_LIST", _) if asked["from_channel_id"] == "0" => {
                let entries = frame.fields["channels"].as_array().into_iter().flatten();
                let entries = entries.filter_map(Value::as_object).cloned();
                self.channels = entries.filter_map(|entry| Some((number(&entry, "channel_id")?, entry))).collect();
            }
            _ => self.told(conn, frame),
        }
    }

    fn posted(&mut self, conn: u32, asked: &Fields, answer: &Fields) {
        let (Some(place), Some(id)) = (self.place(asked), number(answer, "message_id")) else { return };
        let Some(session) = self.sessions.get(&conn) else { return };
        let record = object(json!({
            "message_id": id.to_string(), "parent_id": asked["parent_id"],
            "author_user_id": session.user_id.map(|id| id.to_string()),
            "author_nickname": session.signature(), "content": asked["content"],
            "created_at": (created_ms(id)).to_string(), "edited_at": null,
        }));
        self.messages.insert(id, Post { id, place, parent: number(asked, "parent_id"), record, deleted: false });
    }

    /// Frames that say something about the world, whether asked for or not.
    fn told(&mut self, conn: u32, frame: &Frame) {
        let fields = &frame.fields;
        let ok = fields.get("success") == Some(&json!(true));
        match frame.name.as_str() {
            "SERVER_PRESENCE" => self.presence(conn, fields),
            "DISCONNECT" if text(fields, "reason").starts_with("Account banned") => {
                self.banned.extend(self.sessions.get(&conn).map(|session| (conn, session.id)));
            }
            "DM_READY" => {
                let inside = number(fields, "channel_id").map(|channel| self.dms.entry(channel).or_default());
                inside.map(|inside| inside.insert(conn));
            }
            "CHANNEL_CREATED" if ok => {
                let name = json!({ "name": fields["name"] });
                self.channels.extend(number(fields, "channel_id").map(|id| (id, object(name))));
            }
            "SUBCHANNEL_CREATED" if ok => {
                self.parents.extend(number(fields, "subchannel_id").zip(number(fields, "channel_id")));
            }
            "MESSAGE_EDITED" if ok => self.changed(fields, |post| {
                post.record.insert("content".into(), fields["new_content"].clone());
                post.record.insert("edited_at".into(), fields["edited_at"].clone());
            }),
            "MESSAGE_DELETED" if ok => self.changed(fields, |post| {
                post.record.insert("content".into(), fields["message"].clone());
                post.deleted = true;
            }),
            _ => {}
        }
    }

    fn ban(&mut self, asked: &Fields) {
        let reason = text(asked, "reason");
        let told = match asked["duration_seconds"].is_null() {
            true => format!("Account banned permanently. Reason: {reason}"),
            // Until when is not compared.
            false => format!("Account banned until then. Reason: {reason}"),
        };
        self.bans.insert(text(asked, "nickname").to_owned(), told);
    }

    fn changed(&mut self, fields: &Fields, change: impl FnOnce(&mut Post)) {
        if let Some(post) = number(fields, "message_id").and_then(|id| self.messages.get_mut(&id)) {
            change(post);
        }
    }

    /// A session learns its own number from the last presence with its name that follows its first nickname.
    fn presence(&mut self, conn: u32, fields: &Fields) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        let id = number(fields, "session_id").unwrap_or(0);
        if !session.id_is_sure && !session.nickname.is_empty() && text(fields, "nickname") == session.nickname {
            session.id = id;
        }
        if session.id == id && fields["online"] == true {
            session.user_flags = fields["user_flags"].as_u64().unwrap_or(0);
        }
    }
}

impl Session {
    /// The nickname as authors are shown (BEHAVIOUR.md 2.0).
    fn signature(&self) -> String {
        let sign = match (self.user_id, self.user_flags) {
            (None, _) => "~",
            (Some(_), flags) if flags & 1 != 0 => "$",
            (Some(_), flags) if flags & 2 != 0 => "@",
            _ => "",
        };
        format!("{sign}{}", self.nickname)
    }

    /// Who this is, in the words of presence and lists.
    pub fn identity(&self) -> Fields {
        object(json!({
            "session_id": self.id.to_string(), "nickname": self.nickname, "is_registered": self.user_id.is_some(),
            "user_id": self.user_id.map(|id| id.to_string()), "user_flags": self.user_flags,
        }))
    }
}

impl Post {
    fn created_ms(&self) -> i64 {
        created_ms(self.id)
    }
}

fn created_ms(id: u64) -> i64 {
    i64::try_from(id >> 22).unwrap_or(i64::MAX) + MESSAGE_EPOCH_MS
}

/// The frame's boundary cannot be found or its payload not unpacked.
pub fn breaks_the_stream(sent: &Sent) -> bool {
    match WireFrame::cut(&sent.bytes) {
        Ok(Some((frame, _))) => frame.unpack(&mut Vec::new()).is_err(),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// A text is longer than the codec takes.
pub fn is_too_long(sent: &Sent) -> bool {
    let Ok(Some((frame, _))) = WireFrame::cut(&sent.bytes) else { return false };
    let mut scratch = Vec::new();
    frame
        .unpack(&mut scratch)
        .is_ok_and(|unpacked| ClientMessage::read(frame.code, unpacked.payload) == Err(WireError::TooLong))
}
