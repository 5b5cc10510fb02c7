//! Direct messages in the file: what is decided in commit order, and what reads show to whom.

use superchat::ids::InviteId;
use superchat::store::{Act, Admin, Administer, Dm, DmLeft, Participant};

use super::*;

fn side(actor: &Actor) -> Participant {
    let session = actor.user.is_none().then_some(actor.session);
    Participant { user: actor.user, session, nickname: actor.nickname.clone() }
}

fn start(initiator: &Actor, target: &Actor) -> Command {
    Command::StartDm { initiator: side(initiator), target: side(target), allow_unencrypted: true }
}

fn invited(result: Result<Event, Refusal>) -> InviteId {
    match result {
        Ok(Event::DmInvited { invite, .. }) => invite.id,
        other => panic!("{other:?}"),
    }
}

fn opened(result: Result<Event, Refusal>) -> Dm {
    match result {
        Ok(Event::DmOpened { dm, .. }) => *dm,
        other => panic!("{other:?}"),
    }
}

fn accept(invite: InviteId, by: &Actor) -> Command {
    Command::AcceptDm { invite, by: side(by) }
}

fn leave(channel: ChannelId, leaver: &Actor) -> Command {
    Command::LeaveDm { channel, leaver: side(leaver) }
}

fn left(result: Result<Event, Refusal>) -> DmLeft {
    match result {
        Ok(Event::DmLeft(left)) => *left,
        other => panic!("{other:?}"),
    }
}

fn key(actor: &Actor, byte: u8) -> Command {
    Command::ProvideKey { user: actor.user.unwrap(), key: [byte; 32], is_first: false }
}

/// A conversation without encryption.
fn conversation(server: &Server, one: &Actor, other: &Actor) -> ChannelId {
    let invite = invited(server.write(start(one, other)));
    opened(server.write(accept(invite, other))).channel.id
}

#[test]
fn only_participants_act_in_a_dm_and_its_content_is_not_touched() {
    let server = Server::new();
    let (ann, eve) = (server.register("ann"), server.register("eve"));
    let dm = conversation(&server, &bo(), &ann);
    let id = server.post(&ann, dm, None, "cipher");
    let by_visitor = server.post(&bo(), dm, None, "cipher");
    // Neither the name nor the number of a participant's session makes one.
    let (namesake, signed_in) = (visitor("bo", 8), Actor { user: eve.user, ..bo() });
    for outsider in [admin(&eve), eve.clone(), namesake, signed_in] {
        assert_eq!(server.refusal(post(&outsider, dm, None, "x")), Refusal::NotParticipant);
        assert_eq!(server.refusal(edit(&outsider, id, "x")), Refusal::NotParticipant);
        assert_eq!(server.refusal(delete(&outsider, id)), Refusal::NotParticipant);
        let viewer = outsider.viewer();
        let shown = |query| messages(server.ask(query));
        assert_eq!(shown(Query::Roots { viewer, channel: dm, cursor: Cursor::None, limit: 10 }), []);
        assert_eq!(shown(Query::Thread { viewer, channel: dm, parent: id, cursor: Cursor::None, limit: 10 }), []);
        let targets = vec![UnreadTarget { channel: Some(dm), thread: None }];
        let counts = server.ask(Query::Unread { viewer, since: Some(0), targets });
        assert!(matches!(&counts, Answer::Unread(counts) if *counts == [0]), "{counts:?}");
    }
    assert_eq!(server.refusal(delete(&ann, by_visitor)), Refusal::NotYours);
    assert!(server.write(delete(&bo(), by_visitor)).is_ok());
    match server.write(edit(&ann, id, "\u{1}raw")).unwrap() {
        Event::Edited { content, .. } => assert_eq!(content, "\u{1}raw"),
        other => panic!("{other:?}"),
    }
    let query = Query::Roots { viewer: ann.viewer(), channel: dm, cursor: Cursor::None, limit: 10 };
    assert_eq!(messages(server.ask(query))[0].content, "\u{1}raw");
}

#[test]
fn a_post_that_comes_behind_its_authors_leaving_is_refused() {
    let server = Server::new();
    let (ann, cat) = (server.register("ann"), server.register("cat"));
    let dm = conversation(&server, &ann, &cat);
    server.close_gate();
    let tickets = [leave(dm, &ann), post(&ann, dm, None, "too late"), post(&cat, dm, None, "alone")]
        .map(|command| server.submit(command));
    server.open_gate();
    let [left, refused, posted] = tickets.map(|ticket| server.outcome(ticket));
    assert!(left.is_ok() && posted.is_ok(), "{left:?} {posted:?}");
    assert_eq!(refused.unwrap_err(), Refusal::NotParticipant);
}

#[test]
fn two_who_start_at_once_meet_in_one_conversation() {
    let server = Server::new();
    let (ann, cat) = (server.register("ann"), server.register("cat"));
    for (actor, byte) in [(&ann, 1), (&cat, 2)] {
        server.write(key(actor, byte)).unwrap();
    }
    server.close_gate();
    let tickets = [start(&ann, &cat), start(&cat, &ann)].map(|command| server.submit(command));
    server.open_gate();
    let [first, second] = tickets.map(|ticket| server.outcome(ticket));
    assert!(matches!(first, Ok(Event::DmOpened { is_new: true, .. })), "{first:?}");
    assert!(matches!(second, Ok(Event::DmOpened { is_new: false, .. })), "{second:?}");
    let (first, second) = (opened(first), opened(second));
    assert_eq!(first.channel, second.channel);
    assert_eq!(first.sides.map(|side| side.key), [Some([1; 32]), Some([2; 32])]);
    assert_eq!(second.sides[0].who.nickname, name("cat"), "whoever asks comes first");
}

#[test]
fn conversations_are_looked_up_for_a_new_key_and_for_a_session_without_one() {
    let server = Server::new();
    let (ann, cat) = (server.register("ann"), server.register("cat"));
    for actor in [&ann, &cat] {
        server.write(key(actor, 1)).unwrap();
    }
    let dm = opened(server.write(start(&ann, &cat))).channel.id;
    let user = ann.user.unwrap();
    for (byte, is_first, expected) in [(1, false, &[][..]), (1, true, &[dm]), (2, false, &[dm]), (2, false, &[])] {
        match server.write(Command::ProvideKey { user, key: [byte; 32], is_first }) {
            Ok(Event::KeyProvided { others, .. }) => {
                assert_eq!(others.iter().map(|found| found.channel).collect::<Vec<_>>(), expected);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_conversation_that_everybody_left_goes_in_batches() {
    let server = Server::new();
    let (ann, cat) = (server.register("ann"), server.register("cat"));
    let dm = conversation(&server, &ann, &cat);
    for _ in 0..1000 {
        server.submit(post(&ann, dm, None, "hi"));
    }
    assert!(left(server.write(leave(dm, &ann))).rest.is_some());
    assert_eq!(left(server.write(leave(dm, &cat))).rest, None);
    assert_eq!(server.refusal(post(&ann, dm, None, "x")), Refusal::NotParticipant);
    assert!(!load_channels(&server.shell()).unwrap().iter().any(|channel| channel.id == dm), "nobody is shown it");
    let kept = || value::<i64>(&server.shell(), &format!("SELECT count(*) FROM Message WHERE channel_id = {dm}"));
    let at_once = kept();
    assert!(at_once > 0, "not all in one transaction");
    // The next round of maintenance comes with the next start, here.
    let server = server.restarted(None, |_| ());
    let count = |sql: &str| value::<i64>(&server.shell(), sql);
    server.eventually("the rest to go", || count("SELECT count(*) FROM Channel WHERE is_dm = 1") == 0);
    assert_eq!(count("SELECT count(*) FROM Message"), 0);
}

#[test]
fn a_conversation_that_both_left_comes_back_to_nobody() {
    let server = Server::new();
    let (ann, cat) = (server.register("ann"), server.register("cat"));
    let dm = conversation(&server, &ann, &cat);
    for _ in 0..300 {
        server.submit(post(&cat, dm, None, "hi"));
    }
    server.post(&cat, dm, None, "hi");
    // The existing server kept the access of whoever left (D-25).
    server.shell().execute("DELETE FROM ChannelParticipant WHERE user_id = 1", []).unwrap();
    assert_eq!(left(server.write(leave(dm, &cat))).rest, None);
    let count = |server: &Server, sql: &str| value::<i64>(&server.shell(), sql);
    let server = server.restarted(None, |_| ());
    assert_eq!(count(&server, "SELECT count(*) FROM ChannelParticipant"), 0);
    server.eventually("the rest to go", || count(&server, "SELECT count(*) FROM Channel WHERE is_dm = 1") == 0);
}

/// A thread that only other programs write: each reply below the one before it.
fn deep_thread(server: &Server, channel: ChannelId) {
    const DEEP: &str = "
        WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 1500)
        INSERT INTO Message (id, channel_id, parent_id, thread_root_id, author_nickname, content, created_at)
        SELECT 1000 + i, ?1, CASE WHEN i > 0 THEN 999 + i END, 1000, 'bo', 'deep', 1 FROM n";
    server.shell().execute(DEEP, [channel.as_sql()]).unwrap();
}

#[test]
fn a_deep_thread_goes_with_its_channel_and_with_its_conversation() {
    let server = Server::new();
    let count = |sql: &str| value::<i64>(&server.shell(), sql);
    deep_thread(&server, GENERAL);
    let by = Admin { name: name("root (uid 0)"), address: None };
    let act = Act::DeleteChannel { channel: GENERAL, reason: name("") };
    server.write(Command::Administer(Box::new(Administer { by, act }))).unwrap();
    assert_eq!(count("SELECT count(*) FROM Message"), 0);
    let (ann, cat) = (server.register("ann"), server.register("cat"));
    let dm = conversation(&server, &ann, &cat);
    deep_thread(&server, dm);
    server.write(leave(dm, &ann)).unwrap();
    assert_eq!(left(server.write(leave(dm, &cat))).rest, None);
    // The rest goes with the next round.
    server.clock.pass(Duration::from_secs(3600));
    server.eventually("the rest to go", || count("SELECT count(*) FROM Channel WHERE is_dm = 1") == 0);
    assert_eq!(count("SELECT count(*) FROM Message"), 0);
}

#[test]
fn visitors_of_an_earlier_run_are_nobody_and_are_taken_out_of_files_of_ours() {
    for (origin, participants, conversations) in [
        ("", 1, 1),
        (
            "DELETE FROM scd_origin;
          INSERT INTO scd_origin VALUES ('adopted_at', 1), ('adopted_schema_version', 13);",
            4,
            2,
        ),
    ] {
        let server = Server::new();
        let ann = server.register("ann");
        let with_ann = conversation(&server, &bo(), &ann);
        conversation(&server, &visitor("red", 20), &visitor("blue", 21));
        server.post(&bo(), with_ann, None, "kept");
        invited(server.write(start(&visitor("eve", 9), &ann)));
        // Goes last, so that there is something to wait for.
        let abandoned = "INSERT INTO Channel (id, name, display_name, is_dm, created_at) VALUES (99, 'dm_x', '', 1, 1);
                         INSERT INTO scd_dm_former (channel_id, nickname, left_at) VALUES (99, 'x', 1)";
        let server = server.restarted(None, |opened| {
            opened.writer.execute_batch(origin).unwrap();
            opened.writer.execute_batch(abandoned).unwrap();
        });
        let count = |sql: &str| value::<i64>(&server.shell(), sql);
        server.eventually("the clean-up", || count("SELECT count(*) FROM Channel WHERE name = 'dm_x'") == 0);
        let kept = "SELECT count(*) FROM Channel WHERE is_dm = 1";
        server.eventually("the conversations", || count(kept) == conversations);
        assert_eq!(count("SELECT count(*) FROM ChannelParticipant"), participants);
        let overview = match server.ask(Query::Dms { user: ann.user.unwrap() }) {
            Answer::Dms(overview) => overview,
            other => panic!("{other:?}"),
        };
        let found: Vec<_> = overview.found.iter().map(|found| (found.channel, found.has_left)).collect();
        assert_eq!(found, [(with_ann, true)]);
        assert_eq!(overview.found[0].other.who.nickname, name("bo"));
        assert_eq!(overview.requests, [], "nobody can answer for eve");
        let query = Query::Roots { viewer: ann.viewer(), channel: with_ann, cursor: Cursor::None, limit: 9 };
        assert_eq!(messages(server.ask(query)).len(), 1, "the history stays");
        assert_eq!(server.refusal(post(&bo(), with_ann, None, "x")), Refusal::NotParticipant, "another of that number");
    }
}

#[test]
fn what_an_operator_does_to_participants_is_told_and_what_the_server_does_is_not() {
    let server = Server::new();
    let (ann, cat) = (server.register("ann"), server.register("cat"));
    let dm = conversation(&server, &ann, &cat);
    let told = |expected: &[(char, u64)]| {
        server.clock.pass(Duration::from_secs(2));
        server.eventually("the change", || server.channels_told() == expected);
    };
    let remove = "DELETE FROM ChannelParticipant WHERE user_id = ?1";
    server.shell().execute(remove, [ann.user.unwrap().as_sql()]).unwrap();
    told(&[('~', dm.0)]);
    server.write(leave(dm, &cat)).unwrap();
    server.shell().execute("UPDATE Channel SET description = 'x' WHERE id = 1", []).unwrap();
    told(&[('~', dm.0), ('~', 1)]);
}
