//! The deliberate differences of DEVIATIONS.md, each as a rewriting of the script: what ours shows instead.
//!
//! A rule that changes nothing in a capture is not needed there. Rules run in the order of the table, each over the
//! script as the rules above it left it. D-32 (changes within one tick) needs none: the player awaits every change before it
//! causes the next, and no step of a capture causes two of the same session in the same place.
#![expect(clippy::ptr_arg, reason = "rules have one signature, whether they add and remove items or only change them")]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::script::{Frame, Item, Script, Sent, What, groups};
use super::world::{World, breaks_the_stream, is_too_long, number};
use crate::support::link::Fields;

/// One row of DEVIATIONS.md.
struct Rule {
    id: &'static str,
    rewrite: Rewrite,
}

enum Rewrite {
    /// Looks at steps taken in one go and what they lead to, knowing what was before.
    Group(fn(&World, &mut Vec<Item>)),
    /// Looks at the capture as a whole.
    Script(fn(&mut Script)),
}

const RULES: &[Rule] = &[
    // What ours sends once.
    Rule { id: "D-35a", rewrite: Rewrite::Group(change_answered_once) },
    Rule { id: "D-35b", rewrite: Rewrite::Group(left_once) },
    Rule { id: "D-28", rewrite: Rewrite::Group(closing_the_laptop_leaves_no_dm) },
    Rule { id: "4.6", rewrite: Rewrite::Group(nothing_of_a_dm_left_for_good) },
    // Order. After the doubles, whose copies stand before the answer.
    Rule { id: "2.3", rewrite: Rewrite::Group(registration_answered_first) },
    Rule { id: "2.6", rewrite: Rewrite::Group(join_answered_first) },
    // Contents of single answers.
    Rule { id: "D-00", rewrite: Rewrite::Group(deletion_hides_the_text) },
    Rule { id: "2.15", rewrite: Rewrite::Group(deletion_says_why_not) },
    Rule { id: "2.13", rewrite: Rewrite::Group(post_says_why_not) },
    Rule { id: "2.0", rewrite: Rewrite::Group(very_long_text_is_too_long) },
    Rule { id: "2.18", rewrite: Rewrite::Group(repeated_subscription_is_fine) },
    Rule { id: "2.16", rewrite: Rewrite::Group(key_is_unreadable_in_our_words) },
    Rule { id: "2.11", rewrite: Rewrite::Group(foreign_subchannel_cannot_be_joined) },
    Rule { id: "D-05", rewrite: Rewrite::Group(channel_name_is_taken) },
    // Lists.
    Rule { id: "D-01", rewrite: Rewrite::Group(dms_are_for_their_participants) },
    Rule { id: "D-02", rewrite: Rewrite::Group(newest_roots_first) },
    Rule { id: "D-03", rewrite: Rewrite::Group(thread_after_a_reply_is_whole) },
    Rule { id: "2.12", rewrite: Rewrite::Group(all_replies_count) },
    Rule { id: "D-26", rewrite: Rewrite::Group(channels_page_by_id) },
    Rule { id: "2.17a", rewrite: Rewrite::Group(users_by_name) },
    Rule { id: "2.17b", rewrite: Rewrite::Group(channel_users_by_name) },
    Rule { id: "D-66", rewrite: Rewrite::Group(read_marks_never_go_back) },
    // Subchannels: subscriptions first, since posts reach subscribers.
    Rule { id: "D-04a", rewrite: Rewrite::Group(subchannel_pairs_work) },
    Rule { id: "D-04c", rewrite: Rewrite::Group(subchannel_is_one_place_to_join) },
    Rule { id: "D-04b", rewrite: Rewrite::Group(subchannel_is_one_place_to_post) },
    Rule { id: "D-04d", rewrite: Rewrite::Group(thread_in_the_spelling_last_used) },
    // Administration.
    Rule { id: "5.3a", rewrite: Rewrite::Group(only_addresses_are_banned) },
    Rule { id: "5.3b", rewrite: Rewrite::Group(bans_name_the_account) },
    Rule { id: "D-20", rewrite: Rewrite::Group(banned_accounts_are_kept_out) },
    // What ours adds.
    Rule { id: "D-11", rewrite: Rewrite::Group(logout_is_told) },
    Rule { id: "D-39", rewrite: Rewrite::Group(violation_is_told) },
    Rule { id: "6.3", rewrite: Rewrite::Script(private_servers_are_allowed) },
    Rule { id: "D-38", rewrite: Rewrite::Script(idle_session_ends_on_time) },
];

/// The script of what ours shows, and the ids of the rules it took to get there.
pub fn apply(mut script: Script) -> (Script, BTreeSet<String>) {
    let mut used = BTreeSet::new();
    for rule in RULES {
        let before = (script.items.clone(), script.server_settings.clone());
        match rule.rewrite {
            Rewrite::Group(rewrite) => rewrite_groups(&mut script, rewrite),
            Rewrite::Script(rewrite) => rewrite(&mut script),
        }
        if (&script.items, &script.server_settings) != (&before.0, &before.1) {
            used.insert(rule.id.to_owned());
        }
    }
    (script, used)
}

/// Ids of all rules, for the comparison with the list of deviations.
pub fn ids() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|rule| rule.id)
}

fn rewrite_groups(script: &mut Script, rewrite: fn(&World, &mut Vec<Item>)) {
    let mut world = World::new(&script.server_settings);
    let mut items = Vec::new();
    for mut group in groups(&script.items) {
        rewrite(&world, &mut group);
        group.iter().for_each(|item| world.observe(item));
        items.append(&mut group);
    }
    script.items = items;
}

/// 6.3: only then is a server on the machine itself connected to.
fn private_servers_are_allowed(script: &mut Script) {
    if script.is_dialled() {
        script.server_settings.insert("allow_private_servers".into(), true.into());
    }
}

/// The requests of a group that have one of these names: their connection and their place in the group.
fn requests<'g>(group: &'g [Item], names: &'g [&str]) -> impl Iterator<Item = &'g Item> {
    group.iter().filter(move |item| item.sent().is_some_and(|sent| names.contains(&sent.name.as_str())))
}

fn sent_fields(item: &Item) -> Option<&Fields> {
    item.sent().and_then(|sent| sent.fields.as_ref())
}

/// Calls `change` with every answer called `reply` and the request it answers.
fn answers(world: &World, group: &mut [Item], reply: &str, mut change: impl FnMut(&mut Item, u32, &Sent, &Fields)) {
    for place in 0..group.len() {
        let Some(frame) = group[place].named(reply) else { continue };
        let Some((conn, sent)) = world.request(group, frame).and_then(|item| Some((item.conn, item.sent()?.clone())))
        else {
            continue;
        };
        let fields = sent.fields.clone().unwrap_or_default();
        change(&mut group[place], conn, &sent, &fields);
    }
}

fn set(item: &mut Item, name: &str, fields: Value) {
    if let (What::Receive(frame), Value::Object(fields)) = (&mut item.what, fields) {
        frame.name = name.into();
        frame.fields = fields;
    }
}

fn set_field(item: &mut Item, field: &str, value: Value) {
    if let What::Receive(frame) = &mut item.what {
        frame.fields.insert(field.into(), value);
    }
}

fn error(item: &mut Item, code: u16, message: &str) {
    set(item, "ERROR", json!({ "error_code": code, "message": message }));
}

fn has_code(item: &Item, code: u16) -> bool {
    item.named("ERROR").is_some_and(|frame| frame.fields["error_code"] == code)
}

/// The state once the steps of this group are taken but not answered.
fn after_steps(world: &World, group: &[Item]) -> World {
    let mut after = world.clone();
    group.iter().filter(|item| item.is_step()).for_each(|item| after.observe(item));
    after
}

fn change_answered_once(_: &World, group: &mut Vec<Item>) {
    const CHANGES: &[&str] = &["EDIT_MESSAGE", "DELETE_MESSAGE", "DELETE_CHANNEL", "DELETE_USER"];
    for request in requests(&group.clone(), CHANGES) {
        let answer = |item: &Item| item.frame().is_some_and(|frame| frame.answers == Some(request.index));
        let Some(answer) = group.iter().find(|item| answer(item)).and_then(Item::frame).cloned() else { continue };
        group.retain(|item| match item.frame() {
            Some(frame) if item.conn == request.conn && frame.answers.is_none() => {
                (&frame.name, &frame.fields) != (&answer.name, &answer.fields)
            }
            _ => true,
        });
    }
}

fn left_once(_: &World, group: &mut Vec<Item>) {
    let leavers: Vec<u32> = requests(group, &["LEAVE_CHANNEL", "JOIN_CHANNEL"]).map(|item| item.conn).collect();
    let mut seen: Vec<(u32, Fields)> = Vec::new();
    group.retain(|item| match item.named("CHANNEL_PRESENCE") {
        Some(frame) if leavers.contains(&item.conn) && frame.fields["joined"] == false => {
            let copy = (item.conn, frame.fields.clone());
            let first = !seen.contains(&copy);
            seen.push(copy);
            first
        }
        _ => true,
    });
}

fn closing_the_laptop_leaves_no_dm(_: &World, group: &mut Vec<Item>) {
    let leaves = requests(group, &["LEAVE_CHANNEL"]).next().is_some();
    let is_account =
        |item: &Item| item.named("DM_PARTICIPANT_LEFT").is_some_and(|frame| !frame.fields["user_id"].is_null());
    group.retain(|item| leaves || !is_account(item));
}

fn nothing_of_a_dm_left_for_good(world: &World, group: &mut Vec<Item>) {
    group.retain(|item| {
        let place = item.named("CHANNEL_PRESENCE").and_then(|frame| world.place(&frame.fields));
        place.is_none_or(|place| !world.is_foreign_dm(place, item.conn))
    });
}

fn dms_are_for_their_participants(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "MESSAGE_LIST", |item, conn, _, fields| {
        if world.place(fields).is_some_and(|place| world.is_foreign_dm(place, conn)) {
            error(item, 3000, "Not a participant in this DM");
        }
    });
}

fn registration_answered_first(_: &World, group: &mut Vec<Item>) {
    answer_first(group, "REGISTER_USER", "SERVER_PRESENCE");
}

fn join_answered_first(_: &World, group: &mut Vec<Item>) {
    answer_first(group, "JOIN_CHANNEL", "CHANNEL_PRESENCE");
}

/// Moves the answer to `request` before the first `presence` on its connection.
fn answer_first(group: &mut Vec<Item>, request: &str, presence: &str) {
    for request in requests(&group.clone(), &[request]) {
        let answer = |item: &Item| item.frame().is_some_and(|frame| frame.answers == Some(request.index));
        let told = |item: &Item| item.conn == request.conn && item.named(presence).is_some();
        if let (Some(from), Some(to)) = (group.iter().position(answer), group.iter().position(told))
            && to < from
        {
            let answer = group.remove(from);
            group.insert(to, answer);
        }
    }
}

fn deletion_hides_the_text(world: &World, group: &mut Vec<Item>) {
    for request in requests(&group.clone(), &["DELETE_MESSAGE"]) {
        let Some(session) = world.sessions.get(&request.conn) else { continue };
        let placeholder = format!("[deleted by ~{}]", session.nickname);
        for frame in group.iter_mut().filter_map(|item| item.frame_mut("MESSAGE_DELETED")) {
            if frame.fields["success"] == true {
                frame.fields.insert("message".into(), json!(placeholder));
            }
        }
    }
}

fn deletion_says_why_not(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "ERROR", |item, _, sent, fields| {
        if sent.name != "DELETE_MESSAGE" || !has_code(item, 9001) {
            return;
        }
        match number(fields, "message_id").and_then(|id| world.messages.get(&id)) {
            None => error(item, 4002, "Message not found"),
            Some(_) => error(item, 6000, "Message already deleted"),
        }
    });
}

fn post_says_why_not(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "ERROR", |item, _, sent, fields| {
        if sent.name != "POST_MESSAGE" || !has_code(item, 9001) {
            return;
        }
        match number(fields, "parent_id") {
            Some(parent) if !world.messages.contains_key(&parent) => error(item, 4002, "Message not found"),
            _ => error(item, 4001, "Channel not found"),
        }
    });
}

fn very_long_text_is_too_long(world: &World, group: &mut Vec<Item>) {
    let limit = &world.settings["max_message_length"];
    answers(world, group, "ERROR", |item, _, sent, _| {
        if ["POST_MESSAGE", "EDIT_MESSAGE"].contains(&sent.name.as_str()) && has_code(item, 1000) && is_too_long(sent) {
            error(item, 6001, &format!("Message too long (max {limit} bytes)"));
        }
    });
}

fn repeated_subscription_is_fine(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "ERROR", |item, conn, sent, fields| {
        let held = |place| world.sessions.get(&conn).is_some_and(|session| session.subscribed.contains(&place));
        if sent.name == "SUBSCRIBE_CHANNEL" && has_code(item, 5005) && world.place(fields).is_some_and(held) {
            set(item, "SUBSCRIBE_OK", subscribed(fields));
        }
    });
}

fn key_is_unreadable_in_our_words(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "SSH_KEY_ADDED", |item, _, sent, _| {
        let failed =
            item.frame().is_some_and(|frame| frame.fields["error_message"].to_string().contains("no key found"));
        if sent.name == "ADD_SSH_KEY" && failed {
            set_field(item, "error_message", json!("Invalid SSH public key: length invalid"));
        }
    });
}

fn subscribed(request: &Fields) -> Value {
    json!({ "subscription_type": 2, "id": request["channel_id"], "subchannel_id": request["subchannel_id"] })
}

fn foreign_subchannel_cannot_be_joined(world: &World, group: &mut Vec<Item>) {
    let mut refused = Vec::new();
    answers(world, group, "JOIN_RESPONSE", |item, conn, _, fields| {
        let success = item.frame().is_some_and(|frame| frame.fields["success"] == true);
        if success && world.place(fields).is_none() {
            set(
                item,
                "JOIN_RESPONSE",
                json!({ "success": false, "channel_id": fields["channel_id"], "subchannel_id": null,
                    "message": "Subchannel does not exist" }),
            );
            refused.extend(world.sessions.get(&conn).map(|session| json!(session.id.to_string())));
        }
    });
    group.retain(|item| {
        item.named("CHANNEL_PRESENCE").is_none_or(|frame| !refused.contains(&frame.fields["session_id"]))
    });
}

fn channel_name_is_taken(world: &World, group: &mut Vec<Item>) {
    let mut refused = Vec::new();
    answers(world, group, "CHANNEL_CREATED", |item, _, _, fields| {
        let success = item.frame().is_some_and(|frame| frame.fields["success"] == true);
        if success && fields["name"].as_str().is_some_and(|name| world.takes_a_channel_name(name)) {
            set(item, "CHANNEL_CREATED", json!({ "success": false, "message": "Channel name already exists" }));
            refused.push(fields["name"].clone());
        }
    });
    let broadcast = |item: &Item| {
        item.named("CHANNEL_CREATED").is_some_and(|frame| {
            frame.answers.is_none() && frame.fields.get("name").is_some_and(|name| refused.contains(name))
        })
    };
    group.retain(|item| !broadcast(item));
}

/// Replaces the messages of the lists whose request pleases `concerned` by those of our rules.
fn relist(world: &World, group: &mut [Item], concerned: impl Fn(&Fields) -> bool) {
    answers(world, group, "MESSAGE_LIST", |item, _, _, fields| {
        if concerned(fields) {
            let known = item.frame().map(|frame| frame.fields["messages"].clone()).unwrap_or_default();
            set_field(item, "messages", keep_recorded(world.list(fields), &known));
        }
    });
}

/// Prefers the recorded copy of a message to the one put together: only which messages are listed is rewritten. What the
/// server itself wrote is known from the recorded list only, and stays the newest: those who are alone write no more.
fn keep_recorded(messages: Value, recorded: &Value) -> Value {
    let same = |message: &Value| {
        let mut copies = recorded.as_array().into_iter().flatten();
        copies.find(|copy| copy["message_id"] == message["message_id"]).cloned()
    };
    let by_server = |message: &&Value| message["author_nickname"] == "" && message["author_user_id"].is_null();
    let lines = recorded.as_array().into_iter().flatten().rev().filter(by_server).cloned();
    let posts = messages.as_array().into_iter().flatten();
    lines.chain(posts.map(|message| same(message).unwrap_or_else(|| message.clone()))).collect()
}

fn newest_roots_first(world: &World, group: &mut Vec<Item>) {
    relist(world, group, |request| {
        let place = world.place(request);
        let one_place = place.is_some_and(|place| !world.is_subchannel(place) && !world.has_subchannels(place));
        one_place
            && request["parent_id"].is_null()
            && (request["after_id"].is_null() || !request["before_id"].is_null())
    });
}

fn thread_after_a_reply_is_whole(world: &World, group: &mut Vec<Item>) {
    relist(world, group, |request| !request["parent_id"].is_null() && !request["after_id"].is_null());
}

fn all_replies_count(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "MESSAGE_LIST", |item, _, _, _| {
        let Some(frame) = item.frame_mut("MESSAGE_LIST") else { return };
        for message in frame.fields.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(fields) = message.as_object_mut().filter(|fields| fields["parent_id"].is_null()) else { continue };
            let replies = number(fields, "message_id").map_or(0, |id| world.live_replies(id));
            fields.insert("reply_count".into(), json!(replies));
        }
    });
}

fn channels_page_by_id(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "CHANNEL_LIST", |item, _, _, fields| {
        let from = number(fields, "from_channel_id").unwrap_or(0);
        let limit = fields["limit"].as_u64().and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
        if from > 0 {
            let entries = world.channels.range(from + 1..).map(|(_, entry)| Value::Object(entry.clone()));
            set_field(item, "channels", entries.take(if limit == 0 { usize::MAX } else { limit }).collect());
        }
    });
}

fn users_by_name(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "USER_LIST", |item, _, _, fields| {
        if fields["include_offline"] == true {
            return;
        }
        let limit = match fields["limit"].as_u64() {
            None | Some(0) => 100,
            Some(limit) => limit.min(500),
        };
        set_field(item, "users", world.online_users(usize::try_from(limit).unwrap_or(usize::MAX)));
    });
}

fn channel_users_by_name(_: &World, group: &mut Vec<Item>) {
    for frame in group.iter_mut().filter_map(|item| item.frame_mut("CHANNEL_USER_LIST")) {
        let Some(users) = frame.fields.get_mut("users").and_then(Value::as_array_mut) else { continue };
        users.retain(|user| user["nickname"] != "");
        users.sort_by_key(|user| {
            let nickname = user["nickname"].as_str().unwrap_or_default().to_owned();
            (nickname, user.as_object().and_then(|user| number(user, "session_id")))
        });
    }
}

fn read_marks_never_go_back(world: &World, group: &mut Vec<Item>) {
    let world = after_steps(world, group);
    answers(&world, group, "UNREAD_COUNTS", |item, conn, _, fields| {
        let user = world.sessions.get(&conn).and_then(|session| session.user_id);
        let (Some(user), true) = (user, fields["since_timestamp"].is_null()) else { return };
        let Some(frame) = item.frame_mut("UNREAD_COUNTS") else { return };
        for count in frame.fields.get_mut("counts").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(fields) = count.as_object_mut() {
                fields.insert("unread_count".into(), json!(world.unread(user, fields)));
            }
        }
    });
}

fn subchannel_pairs_work(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "ERROR", |item, _, sent, fields| {
        let Some(place) = world.place(fields).filter(|_| has_code(item, 4004)) else { return };
        match sent.name.as_str() {
            "SUBSCRIBE_CHANNEL" => set(item, "SUBSCRIBE_OK", subscribed(fields)),
            "LIST_CHANNEL_USERS" => set(
                item,
                "CHANNEL_USER_LIST",
                json!({ "channel_id": fields["channel_id"], "subchannel_id": fields["subchannel_id"],
                    "users": world.joined_users(place) }),
            ),
            _ => {}
        }
    });
}

fn subchannel_is_one_place_to_join(world: &World, group: &mut Vec<Item>) {
    for request in requests(&group.clone(), &["JOIN_CHANNEL"]) {
        let place = sent_fields(request).and_then(|fields| world.place(fields));
        if let Some(place) = place.filter(|place| world.is_subchannel(*place)) {
            tell_of_joining(world, group, request, place);
        }
    }
    answers(world, group, "CHANNEL_USER_LIST", |item, _, _, fields| {
        if let Some(place) = world.place(fields).filter(|place| world.is_subchannel(*place)) {
            set_field(item, "users", world.joined_users(place));
        }
    });
}

/// Presence of a JOIN_CHANNEL to a subchannel: "joined" to its audience in each one's spelling, no "left" when the
/// session was there already.
fn tell_of_joining(world: &World, group: &mut Vec<Item>, request: &Item, place: u64) {
    let mut after = after_steps(world, group);
    let Some(session) = after.sessions.get_mut(&request.conn) else { return };
    let own = json!(session.id.to_string());
    let repeated = session.joined.replace(place) == Some(place);
    let identity = session.identity();
    group.retain(|item| {
        item.named("CHANNEL_PRESENCE")
            .is_none_or(|frame| frame.fields["session_id"] != own || (frame.fields["joined"] == false && !repeated))
    });
    for conn in after.audience(place) {
        let (channel, sub) = after.spelling(conn, place);
        let mut fields = identity.clone();
        fields.insert("channel_id".into(), json!(channel.to_string()));
        fields.insert("subchannel_id".into(), json!(sub.map(|sub| sub.to_string())));
        fields.insert("joined".into(), json!(true));
        group.push(request.adding(conn, "CHANNEL_PRESENCE", fields, None));
    }
}

fn subchannel_is_one_place_to_post(world: &World, group: &mut Vec<Item>) {
    for request in requests(&group.clone(), &["POST_MESSAGE"]) {
        let paired = sent_fields(request).filter(|fields| !fields["subchannel_id"].is_null());
        if paired.and_then(|fields| world.place(fields)).is_some() {
            publish(world, group, request);
        }
    }
    relist(world, group, |request| {
        let concerned = |place| world.is_subchannel(place) || world.has_subchannels(place);
        request["parent_id"].is_null() && world.place(request).is_some_and(concerned)
    });
}

/// NEW_MESSAGE of a root for the subscribers of its place, in each one's spelling.
fn publish(world: &World, group: &mut Vec<Item>, request: &Item) {
    let mut after = world.clone();
    group.iter().for_each(|item| after.observe(item));
    let Some(post) = after.messages.values().next_back() else { return };
    for (conn, session) in &after.sessions {
        if session.subscribed.contains(&post.place) {
            let record = after.record(post, after.spelling(*conn, post.place));
            group.push(request.adding(*conn, "NEW_MESSAGE", record, None));
        }
    }
}

fn thread_in_the_spelling_last_used(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "SUBSCRIBE_OK", |item, conn, sent, fields| {
        let post = number(fields, "thread_id").and_then(|id| world.messages.get(&id));
        if let ("SUBSCRIBE_THREAD", Some(post)) = (sent.name.as_str(), post) {
            let (_, sub) = world.spelling(conn, post.place);
            set_field(item, "subchannel_id", json!(sub.map(|sub| sub.to_string())));
        }
    });
}

fn is_address(text: &Value) -> bool {
    text.as_str().is_some_and(|text| superchat::store::ban::network(text.as_bytes()).is_some())
}

fn only_addresses_are_banned(world: &World, group: &mut Vec<Item>) {
    answers(world, group, "IP_BANNED", |item, _, _, fields| {
        if item.frame().is_some_and(|frame| frame.fields["success"] == true) && !is_address(&fields["ip_cidr"]) {
            set(item, "IP_BANNED", json!({ "success": false, "message": "Invalid IP or CIDR address" }));
        }
    });
    for frame in group.iter_mut().filter_map(|item| item.frame_mut("BAN_LIST")) {
        if let Some(bans) = frame.fields.get_mut("bans").and_then(Value::as_array_mut) {
            bans.retain(|ban| ban["ip_cidr"].is_null() || is_address(&ban["ip_cidr"]));
        }
    }
}

fn bans_name_the_account(world: &World, group: &mut Vec<Item>) {
    for frame in group.iter_mut().filter_map(|item| item.frame_mut("BAN_LIST")) {
        for ban in frame.fields.get_mut("bans").and_then(Value::as_array_mut).into_iter().flatten() {
            let account = ban["nickname"].as_str().and_then(|nickname| world.accounts.get(nickname));
            if let (Some(user), Some(ban)) = (account, ban.as_object_mut()) {
                ban.insert("user_id".into(), json!(user.to_string()));
            }
        }
    }
}

fn banned_accounts_are_kept_out(world: &World, group: &mut Vec<Item>) {
    // Whoever was sent away says and hears nothing more, and is heard of no more.
    let is_gone = |frame: &Frame| {
        let session = number(&frame.fields, "session_id");
        frame.name == "SERVER_PRESENCE" && world.banned.values().any(|gone| Some(*gone) == session)
    };
    group.retain(|item| !world.banned.contains_key(&item.conn) && !item.frame().is_some_and(is_gone));
    refuse_banned(world, group);
    for request in requests(&group.clone(), &["BAN_USER"]) {
        let answered = |item: &Item| {
            let answer = item.named("USER_BANNED").filter(|frame| frame.answers == Some(request.index));
            answer.is_some_and(|frame| frame.fields["success"] == true)
        };
        let fields = sent_fields(request).filter(|fields| fields["shadowban"] == false);
        let name = fields.and_then(|fields| fields["nickname"].as_str());
        if let (Some(name), true) = (name, group.iter().any(answered)) {
            send_away(world, group, request, name);
        }
    }
}

/// SET_NICKNAME and AUTH_REQUEST with a banned name fail, and have no consequences.
fn refuse_banned(world: &World, group: &mut Vec<Item>) {
    let mut refused = false;
    for reply in ["NICKNAME_RESPONSE", "AUTH_RESPONSE"] {
        answers(world, group, reply, |item, _, _, fields| {
            let told = fields["nickname"].as_str().and_then(|nickname| world.bans.get(nickname));
            if let Some(told) = told {
                set(item, reply, json!({ "success": false, "message": told }));
                refused = true;
            }
        });
    }
    group.retain(|item| !refused || item.frame().is_none_or(|frame| frame.answers.is_some()));
}

/// The sessions of a banned account are told and end, and the rest hears of it.
fn send_away(world: &World, group: &mut Vec<Item>, request: &Item, name: &str) {
    let mut after = world.clone();
    group.iter().for_each(|item| after.observe(item));
    let (Some(user), Some(told)) = (after.accounts.get(name), after.bans.get(name)) else { return };
    let is_banned = |conn: &u32| after.sessions[conn].user_id == Some(*user);
    let (gone, left): (Vec<u32>, Vec<u32>) = after.sessions.keys().copied().partition(is_banned);
    for conn in gone {
        let mut identity = after.sessions[&conn].identity();
        identity.insert("online".into(), json!(false));
        let Value::Object(reason) = json!({ "reason": told }) else { continue };
        let goodbye = request.adding(conn, "DISCONNECT", reason, None);
        group.push(goodbye.clone());
        group.push(Item { what: What::Close { idle_ms: None }, ..goodbye });
        group.extend(left.iter().map(|conn| request.adding(*conn, "SERVER_PRESENCE", identity.clone(), None)));
    }
}

fn logout_is_told(world: &World, group: &mut Vec<Item>) {
    for request in requests(&group.clone(), &["LOGOUT"]) {
        let Some(session) = world.sessions.get(&request.conn).filter(|session| session.user_id.is_some()) else {
            continue;
        };
        let mut identity = session.identity();
        identity.extend([("is_registered".into(), json!(false)), ("user_id".into(), json!(null))]);
        identity.insert("user_flags".into(), json!(0));
        let tell = |conn: u32, name: &str, more: Value| {
            let mut fields = identity.clone();
            fields.extend(more.as_object().cloned().unwrap_or_default());
            request.adding(conn, name, fields, None)
        };
        let mut told: Vec<Item> =
            world.sessions.keys().map(|conn| tell(*conn, "SERVER_PRESENCE", json!({ "online": true }))).collect();
        for conn in session.joined.map(|place| world.audience(place)).unwrap_or_default() {
            let (channel, sub) = world.spelling(conn, session.joined.unwrap_or_default());
            let place = json!({ "channel_id": channel.to_string(), "subchannel_id": sub.map(|sub| sub.to_string()),
                "joined": true });
            told.push(tell(conn, "CHANNEL_PRESENCE", place));
        }
        let behind = group.iter().position(|item| item == request).map_or(0, |place| place + 1);
        group.splice(behind..behind, told);
    }
}

fn violation_is_told(_: &World, group: &mut Vec<Item>) {
    let broken: Vec<u32> =
        group.iter().filter(|item| item.sent().is_some_and(breaks_the_stream)).map(|item| item.conn).collect();
    let closed = |item: &Item| matches!(item.what, What::Close { .. }) && broken.contains(&item.conn);
    if let Some(place) = group.iter().position(closed) {
        let Value::Object(reason) = json!({ "reason": "Protocol violation" }) else { return };
        let told = group[place].adding(group[place].conn, "DISCONNECT", reason, None);
        group.insert(place, told);
    }
}

/// The end of an idle session and what the others hear of it move to the moment when its time was up; the steps around
/// keep their recorded times.
fn idle_session_ends_on_time(script: &mut Script) {
    let Some(limit_ms) = script.server_settings["session_timeout_seconds"].as_u64().map(|seconds| seconds * 1000)
    else {
        return;
    };
    let Some(place) = idle_close(&script.items) else { return };
    let mut ending: Vec<Item> = script.items.drain(place..=place).collect();
    while script.items.get(place).is_some_and(|item| !item.is_step()) {
        ending.push(script.items.remove(place));
    }
    ending[0].what = What::Close { idle_ms: Some(limit_ms) };

    let conn = ending[0].conn;
    let last_sent = script.items.iter().rfind(|item| item.conn == conn && item.sent().is_some());
    #[expect(clippy::cast_precision_loss, reason = "a time-out in milliseconds is far below 2^52")]
    let limit = limit_ms as f64;
    let due = last_sent.map_or(0.0, |item| item.t_ms) + limit;
    for item in script.items.iter_mut().filter(|item| item.t_ms <= due + 1.5 * limit) {
        if let What::Send(sent) = &mut item.what {
            sent.paced = true;
        }
    }
    let later = |item: &Item| item.is_step() && item.t_ms > due;
    let behind = script.items.iter().position(later).unwrap_or(script.items.len());
    script.items.splice(behind..behind, ending);
}

/// An end of a connection that neither the client nor its frames nor a shutdown explain.
fn idle_close(items: &[Item]) -> Option<usize> {
    let explained = |item: &&Item| match &item.what {
        What::Send(sent) => sent.name == "DISCONNECT" || breaks_the_stream(sent),
        What::Receive(frame) => frame.name == "DISCONNECT",
        _ => false,
    };
    items.iter().position(|close| {
        let same = items.iter().filter(|item| item.conn == close.conn);
        matches!(close.what, What::Close { .. }) && !same.into_iter().any(|item| explained(&item))
    })
}
