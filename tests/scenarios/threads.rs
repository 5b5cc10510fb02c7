//! Threads: their order, cursors, placeholders and counts, and who hears of replies (BEHAVIOUR.md 2.12, 2.13, 2.18).

use serde_json::{Value, json};
use superchat::ids::MessageId;
use superchat::wire::client::{DeleteMessage, ListMessages, SubscribeThread, UnsubscribeThread};

use crate::steps::*;
use crate::support::{Client, Server};

/// A thread whose texts are paths: `a` has the replies `a1` and `a2`, and so on, posted in this order.
const TREE: &[&str] = &["a", "b", "a1", "b1", "a2", "a11", "b2", "a111", "c", "a12"];
/// The same, depth first, siblings oldest first.
const DEPTH_FIRST: &[&str] = &["a", "a1", "a11", "a111", "a12", "a2", "b", "b1", "b2", "c"];

struct Thread {
    root: MessageId,
    ids: Vec<MessageId>,
    /// Posted in another channel right before `a11`.
    interlude: MessageId,
}

impl Thread {
    fn grow(author: &mut Client) -> Self {
        let root = posted(author, post(GENERAL, b"root"));
        let mut thread = Self { root, ids: Vec::new(), interlude: root };
        for path in TREE {
            if *path == "a11" {
                thread.interlude = posted(author, post(TECH, b"interlude"));
            }
            let parent = if path.len() == 1 { root } else { thread.id(&path[..path.len() - 1]) };
            thread.ids.push(posted(author, reply(GENERAL, parent, path.as_bytes())));
        }
        thread
    }

    fn id(&self, path: &str) -> MessageId {
        self.ids[TREE.iter().position(|known| *known == path).unwrap()]
    }

    fn below(&self, path: &str) -> ListMessages {
        thread(GENERAL, self.id(path))
    }

    fn all(&self) -> ListMessages {
        thread(GENERAL, self.root)
    }
}

fn check_page(client: &mut Client, request: ListMessages, expected: &[&str]) {
    assert_eq!(contents(client, request.clone()), expected, "{request:?}");
}

#[test]
fn a_thread_is_listed_depth_first_from_any_of_its_messages() {
    let server = start();
    let mut client = server.client_named("alice");
    let tree = Thread::grow(&mut client);
    check_page(&mut client, tree.all(), DEPTH_FIRST);
    check_page(&mut client, tree.below("a"), &["a1", "a11", "a111", "a12", "a2"]);
    check_page(&mut client, tree.below("a1"), &["a11", "a111", "a12"]);
    check_page(&mut client, tree.below("c"), &[]);
    check_page(&mut client, thread(GENERAL, MessageId(5)), &[]);
    check_page(&mut client, thread(TECH, tree.root), &[]);
    check_page(&mut client, ListMessages { limit: 4, ..tree.all() }, &DEPTH_FIRST[..4]);
}

#[test]
fn after_id_takes_each_newer_reply_by_itself() {
    let server = start();
    let mut client = server.client_named("alice");
    let tree = Thread::grow(&mut client);
    let after = |id, limit| ListMessages { after_id: Some(id), limit, ..tree.all() };
    check_page(&mut client, after(tree.id("a2"), 0), &["a11", "a111", "a12", "b2", "c"]);
    check_page(&mut client, after(tree.id("a2"), 2), &["a11", "a111"]);
    check_page(&mut client, after(tree.id("a12"), 0), &[]);
    check_page(&mut client, after(tree.root, 0), DEPTH_FIRST);
}

#[test]
fn before_id_goes_on_behind_a_reply_of_the_thread_and_is_a_bound_otherwise() {
    let server = start();
    let mut client = server.client_named("alice");
    let tree = Thread::grow(&mut client);
    let elsewhere = posted(&mut client, post(GENERAL, b"elsewhere"));
    let before = |id, limit| ListMessages { before_id: Some(id), limit, ..tree.all() };
    check_page(&mut client, before(tree.id("a12"), 0), &["a2", "b", "b1", "b2", "c"]);
    check_page(&mut client, before(tree.id("a111"), 2), &["a12", "a2"]);
    check_page(&mut client, before(tree.id("c"), 0), &[]);
    check_page(&mut client, before(elsewhere, 0), DEPTH_FIRST);
    check_page(&mut client, before(tree.interlude, 0), &["a", "a1", "a2", "b", "b1"]);
    let both = ListMessages { after_id: Some(tree.id("b2")), ..before(tree.id("b1"), 0) };
    check_page(&mut client, both, &["b2", "c"]);
}

#[test]
fn paging_with_the_last_reply_seen_shows_every_reply_once() {
    let server = start();
    let mut client = server.client_named("alice");
    let tree = Thread::grow(&mut client);
    for limit in 1..=4 {
        let (mut seen, mut last) = (Vec::new(), None);
        loop {
            let page = listed(&mut client, ListMessages { before_id: last, limit, ..tree.all() });
            let Some(end) = page.last() else { break };
            last = Some(MessageId(number(&end["message_id"])));
            seen.extend(page.into_iter().map(|message| message["content"].clone()));
        }
        assert_eq!(seen, DEPTH_FIRST, "pages of {limit}");
    }
}

#[test]
fn deleted_messages_stay_as_placeholders_only_above_live_replies() {
    const GONE: &str = "[deleted by ~alice]";
    let server = start();
    let mut client = server.client_named("alice");
    let tree = Thread::grow(&mut client);
    let mut delete = |path: &str| {
        let message_id = if path == "root" { tree.root } else { tree.id(path) };
        client.ask(DeleteMessage { message_id }, "MESSAGE_DELETED");
        let list = contents(&mut client, tree.all());
        let roots = listed(&mut client, roots(GENERAL));
        let root = roots.first().map(|root| (root["content"].clone(), root["reply_count"].clone()));
        (list, root)
    };
    let root = |content: &str, replies: u32| Some((json!(content), json!(replies)));
    assert_eq!(delete("c"), (DEPTH_FIRST[..9].iter().map(|path| json!(path)).collect(), root("root", 9)));
    let (list, top) = delete("a1");
    assert_eq!(
        (&list[..5], top),
        (&[json!("a"), json!(GONE), json!("a11"), json!("a111"), json!("a12")][..], root("root", 8))
    );
    delete("a111");
    delete("a11");
    let (list, top) = delete("a12");
    assert_eq!((list, top), (["a", "a2", "b", "b1", "b2"].map(|path| json!(path)).into(), root("root", 5)));
    let (list, top) = delete("root");
    assert_eq!((list.len(), top), (5, root(GONE, 5)));
    for path in ["a", "a2", "b", "b1"] {
        delete(path);
    }
    assert_eq!(delete("b2"), (vec![], None), "nothing lives in the thread any more");
}

#[test]
fn only_roots_count_their_replies() {
    let server = start();
    let mut client = server.client_named("alice");
    let tree = Thread::grow(&mut client);
    assert_eq!(column(&mut client, roots(GENERAL), "reply_count"), [10]);
    assert_eq!(column(&mut client, tree.all(), "reply_count"), [0; 10]);
}

#[test]
fn a_reply_may_stand_below_a_placeholder_and_brings_it_back() {
    let server = start();
    let mut client = server.client_named("alice");
    let root = posted(&mut client, post(GENERAL, b"root"));
    client.ask(DeleteMessage { message_id: root }, "MESSAGE_DELETED");
    assert!(listed(&mut client, roots(GENERAL)).is_empty());
    posted(&mut client, reply(GENERAL, root, b"below"));
    assert_eq!(contents(&mut client, roots(GENERAL)), ["[deleted by ~alice]"]);
    check_page(&mut client, thread(GENERAL, root), &["below"]);
}

#[test]
fn a_thread_is_two_hundred_levels_deep_at_most() {
    let server = start();
    let mut client = server.client_named("alice");
    let root = posted(&mut client, post(GENERAL, b"0"));
    let deepest = (1..=200)
        .fold(root, |parent, level: u32| posted(&mut client, reply(GENERAL, parent, level.to_string().as_bytes())));
    check_refused(&mut client, [(reply(GENERAL, deepest, b"201").into(), 6000, "Thread is too deep")]);
    let levels: Vec<_> = (1..=200).map(|level: u32| level.to_string()).collect();
    assert_eq!(contents(&mut client, ListMessages { limit: 200, ..thread(GENERAL, root) }), levels);
}

// ---- Who hears of replies -------------------------------------------------------------------------------------------

fn texts(client: &mut Client) -> Vec<Value> {
    heard(client).into_iter().map(|frame| frame.fields["content"].clone()).collect()
}

fn listeners(server: &Server) -> [Client; 3] {
    std::array::from_fn(|_| server.client())
}

#[test]
fn replies_go_to_the_followers_of_the_thread_alone() {
    let server = start();
    let mut author = server.client_named("alice");
    let (root, other) = (posted(&mut author, post(GENERAL, b"root")), posted(&mut author, post(GENERAL, b"other")));
    let [mut follower, mut elsewhere, mut subscriber] = listeners(&server);
    follow(&mut follower, root);
    follow(&mut author, root);
    follow(&mut elsewhere, other);
    subscribe(&mut subscriber, GENERAL);
    let below = posted(&mut author, reply(GENERAL, root, b"reply"));
    posted(&mut author, reply(GENERAL, below, b"deeper"));
    assert_eq!(texts(&mut follower), ["reply", "deeper"]);
    assert_eq!(texts(&mut author), ["reply", "deeper"], "its own, once, after the answers");
    assert!(texts(&mut elsewhere).is_empty());
    assert!(texts(&mut subscriber).is_empty());
}

#[test]
fn a_replys_id_stands_for_its_thread_when_subscribing_and_when_not() {
    let server = start();
    let mut author = server.client_named("alice");
    let tree = Thread::grow(&mut author);
    let mut reader = server.client();
    let asked = tree.id("a11");
    assert_eq!(reader.ask(SubscribeThread { thread_id: asked }, "SUBSCRIBE_OK")["id"], asked.0.to_string());
    posted(&mut author, reply(GENERAL, tree.id("c"), b"heard"));
    assert_eq!(texts(&mut reader), ["heard"]);
    let other = tree.id("b");
    assert_eq!(reader.ask(UnsubscribeThread { thread_id: other }, "SUBSCRIBE_OK")["id"], other.0.to_string());
    posted(&mut author, reply(GENERAL, tree.id("c"), b"unheard"));
    assert!(texts(&mut reader).is_empty());
}

#[test]
fn a_change_of_a_reply_reaches_who_joined_the_channel_and_who_follows_the_thread() {
    let server = start();
    let mut author = server.client_named("alice");
    let root = posted(&mut author, post(GENERAL, b"root"));
    let below = posted(&mut author, reply(GENERAL, root, b"reply"));
    let [mut follower, mut joined, mut elsewhere] = listeners(&server);
    follow(&mut follower, root);
    join(&mut joined, GENERAL);
    join(&mut elsewhere, TECH);
    author.ask(DeleteMessage { message_id: below }, "MESSAGE_DELETED");
    assert_eq!(heard_names(&mut follower), ["MESSAGE_DELETED"]);
    assert_eq!(heard_names(&mut joined), ["MESSAGE_DELETED"]);
    assert!(heard_names(&mut elsewhere).is_empty());
}

#[test]
fn threads_are_the_same_after_a_restart() {
    let mut server = start();
    let tree = Thread::grow(&mut server.client_named("alice"));
    server.kill9();
    server.resume();
    let mut client = server.client();
    check_page(&mut client, tree.all(), DEPTH_FIRST);
    assert_eq!(column(&mut client, roots(GENERAL), "reply_count"), [10]);
}
