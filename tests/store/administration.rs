//! What admins and operators do, in the file: acts and their audit, rights, and what shadow bans hide.

use superchat::store::{Act, Admin, Administer, FLAG_MODERATOR, NewSshKey, Role, Subject};

use super::*;

fn administer(act: Act) -> Command {
    let by = Admin { name: name("root (uid 0)"), address: None };
    Command::Administer(Box::new(Administer { by, act }))
}

fn ban(nickname: &str, shadow: bool, seconds: Option<u64>) -> Command {
    let subject = Subject::User { user: None, nickname: Some(name(nickname)) };
    administer(Act::Ban { subject, reason: name("spam"), shadow, seconds })
}

#[test]
fn an_act_and_its_row_in_the_audit_are_stored_together_or_not_at_all() {
    let server = Server::new();
    server.register("ann");
    let shell = server.shell();
    // An audit that takes nothing more takes the act along.
    shell
        .execute_batch("CREATE TRIGGER full BEFORE INSERT ON AdminAction BEGIN SELECT RAISE(ABORT, 'no room'); END")
        .unwrap();
    for act in [
        ban("ann", false, None),
        administer(Act::DeleteUser(UserId(1))),
        administer(Act::DeleteChannel { channel: GENERAL, reason: name("") }),
        administer(Act::SetRole { user: UserId(1), role: Role::Admin, is_granted: true, flags: 0 }),
    ] {
        assert_eq!(server.refusal(act), Refusal::Database);
    }
    let count = |sql| value::<i64>(&shell, sql);
    assert_eq!(count("SELECT count(*) FROM Ban"), 0);
    assert_eq!(count("SELECT count(*) FROM User WHERE user_flags = 0"), 1);
    assert_eq!(count("SELECT count(*) FROM Channel"), 5);
    assert_eq!(count("SELECT count(*) FROM scd_admin_grant"), 0);
    shell.execute_batch("DROP TRIGGER full").unwrap();
    server.write(ban("ann", false, None)).unwrap();
    assert_eq!(count("SELECT count(*) FROM Ban"), 1);
    assert_eq!(count("SELECT count(*) FROM AdminAction WHERE action_type = 'ban_user' AND target_id = 1"), 1);
}

#[test]
fn a_post_that_waited_behind_the_deletion_of_its_author_is_not_stored() {
    let server = Server::new();
    let ann = server.register("ann");
    server.post(&ann, GENERAL, None, "before");
    server.write(administer(Act::DeleteUser(ann.user.unwrap()))).unwrap();
    assert_eq!(server.refusal(post(&ann, GENERAL, None, "after")), Refusal::UserNotFound);
    server.write(ban("ann", true, None)).unwrap();
    assert_eq!(server.refusal(post(&ann, GENERAL, None, "hidden")), Refusal::UserNotFound);
    server.post(&visitor("bob", 9), GENERAL, None, "by nobody's account");
    assert_eq!(value::<i64>(&server.shell(), "SELECT count(*) FROM Message WHERE author_user_id IS NULL"), 2);
    assert_eq!(value::<i64>(&server.shell(), "SELECT count(*) FROM Message"), 2);
}

#[test]
fn a_key_that_waited_behind_the_deletion_of_its_owner_is_refused() {
    let server = Server::new();
    let user = server.register("ann").user.unwrap();
    server.write(administer(Act::DeleteUser(user))).unwrap();
    let texts = ["SHA256:x", "ssh-ed25519 x", "ssh-ed25519"].map(Box::<str>::from);
    let [fingerprint, public_key, key_type] = texts;
    let key = Box::new(NewSshKey { fingerprint, public_key, key_type, label: name("") });
    assert_eq!(server.refusal(Command::AddSshKey { user, key }), Refusal::UserNotFound);
    assert!(server.inbox.state.lock().unwrap().faults.is_empty(), "the storage has not failed");
}

#[test]
fn what_is_posted_under_a_shadow_ban_is_hidden_until_it_is_lifted() {
    let server = Server::new();
    let ann = server.register("ann");
    let Ok(Event::Banned(given)) = server.write(ban("ann", true, Some(60))) else { panic!("no ban") };
    assert_eq!(given.until, Some(START + 60_000));
    let hidden = posted(server.write(post(&ann, GENERAL, None, "spam")));
    let own = Audience::Hidden { user: ann.user, session: Some(ann.session) };
    assert_eq!(hidden.audience, own);
    let list = |viewer| {
        let query = Query::Roots { viewer, channel: GENERAL, cursor: Cursor::None, limit: 10 };
        messages(server.ask(query)).len()
    };
    let other = visitor("bob", 9);
    assert_eq!([list(ann.viewer()), list(admin(&ann).viewer()), list(other.viewer())], [1, 1, 0]);
    // A mark counts like the name that it came from.
    let marked = Actor { marks: vec![given.id], ..visitor("somebody", 5) };
    assert_ne!(posted(server.write(post(&marked, GENERAL, None, "more"))).audience, Audience::Everybody);
    let subject = Subject::User { user: ann.user, nickname: None };
    server.write(administer(Act::Unban(subject))).unwrap();
    assert_eq!(list(other.viewer()), 2);
    assert_eq!(posted(server.write(post(&marked, GENERAL, None, "free"))).audience, Audience::Everybody);
}

#[test]
fn an_answer_below_a_hidden_root_is_unread_for_nobody_who_cannot_see_the_root() {
    let server = Server::new();
    let (ann, boss) = (server.register("ann"), admin(&server.register("boss")));
    server.write(ban("ann", true, None)).unwrap();
    let root = server.post(&ann, GENERAL, None, "spam");
    server.post(&boss, GENERAL, Some(root), "stop that");
    let unread = |viewer: Viewer| {
        let thread = [None, Some(root)];
        let targets = thread.map(|thread| UnreadTarget { channel: Some(GENERAL), thread }).to_vec();
        match server.ask(Query::Unread { viewer, since: Some(0), targets }) {
            Answer::Unread(counts) => counts,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(unread(visitor("bob", 9).viewer()), [0, 0]);
    assert_eq!(unread(ann.viewer()), [1, 1], "but for her own");
    assert_eq!(unread(admin(&visitor("bob", 9)).viewer()), [0, 0], "only accounts are admins");
    assert_eq!(unread(boss.viewer()), [1, 1]);
}

#[test]
fn an_account_cannot_take_a_name_that_was_banned_before() {
    let server = Server::new();
    let ann = server.register("ann");
    let rename = || rename(&ann, "goblin");
    server.write(ban("goblin", false, None)).unwrap();
    assert_eq!(server.refusal(rename()), Refusal::NicknameBanned);
    server.write(administer(Act::Unban(Subject::User { user: None, nickname: Some(name("goblin")) }))).unwrap();
    server.write(ban("goblin", true, None)).unwrap();
    server.write(rename()).unwrap();
}

#[test]
fn a_listed_name_is_for_who_was_granted_the_right_or_has_another_listed_name() {
    let server = Server::new();
    let ann = server.register("ann");
    let user = ann.user.unwrap();
    let listed = |nickname, listed_as: Option<&str>| {
        let (nickname, listed_as) = (name(nickname), listed_as.map(name));
        server.write(Command::Rename { user, nickname, flags: FLAG_ADMIN, listed_as })
    };
    let flags = |result| match result {
        Ok(Event::Renamed { flags, .. }) => flags,
        other => panic!("{other:?}"),
    };
    // What the file says counts no more than what a session was told once.
    server.shell().execute("UPDATE User SET user_flags = 1", []).unwrap();
    for listed_as in [None, Some("boss")] {
        assert_eq!(listed("boss", listed_as).unwrap_err(), Refusal::NicknameTaken, "{listed_as:?} is not its name");
    }
    assert_eq!(flags(listed("boss", Some("ann"))), FLAG_ADMIN);
    assert_eq!(flags(server.write(rename(&ann, "ann"))), 0);
    let grant = Act::SetRole { user, role: Role::Admin, is_granted: true, flags: 0 };
    server.write(administer(grant)).unwrap();
    assert_eq!(flags(listed("boss", None)), FLAG_ADMIN);
}

#[test]
fn lists_of_accounts_show_what_was_granted_and_not_what_the_file_says() {
    let server = Server::new();
    let (ann, cat) = (server.register("ann"), server.register("cat"));
    let listed = || match server.ask(Query::Accounts { limit: 10 }) {
        Answer::Accounts(accounts) => accounts.into_iter().map(|account| account.flags).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let grant = |actor: &Actor, role| {
        let user = actor.user.unwrap();
        server.write(administer(Act::SetRole { user, role, is_granted: true, flags: 0 })).unwrap();
    };
    grant(&ann, Role::Moderator);
    server.shell().execute("UPDATE User SET user_flags = user_flags | 1", []).unwrap();
    assert_eq!(listed(), [FLAG_MODERATOR, 0]);
    grant(&cat, Role::Admin);
    assert_eq!(listed(), [FLAG_MODERATOR, FLAG_ADMIN]);
}

#[test]
fn the_admin_bit_of_the_file_gives_nobody_rights_and_the_moderators_lasts_until_it_is_revoked() {
    let server = Server::new();
    let ann = server.register("ann");
    let user = ann.user.unwrap();
    let shell = server.shell();
    let forge = || shell.execute("UPDATE User SET user_flags = user_flags | 1", []).unwrap();
    let set = |role, is_granted, flags| match server.write(administer(Act::SetRole { user, role, is_granted, flags })) {
        Ok(Event::RoleSet { flags, .. }) => (flags, server.account("ann").0.unwrap().flags),
        other => panic!("{other:?}"),
    };
    forge();
    assert_eq!(set(Role::Moderator, true, 0), (2, 2));
    forge();
    assert_eq!(set(Role::Moderator, false, 0), (0, 0));
    assert_eq!(set(Role::Moderator, true, FLAG_ADMIN), (3, 3), "listed in the configuration");
    assert_eq!(set(Role::Admin, true, 0), (3, 3));
    assert_eq!(set(Role::Admin, false, FLAG_ADMIN), (3, 3));
    let renamed = |nickname| match server.write(rename(&ann, nickname)) {
        Ok(Event::Renamed { flags, .. }) => (flags, server.account(nickname).0.unwrap().flags),
        other => panic!("{other:?}"),
    };
    assert_eq!(renamed("anna"), (2, 2), "what came with the name stays with it");
    assert_eq!(renamed("ann"), (2, 2));
    let sign_in = || match server.write(Command::SignIn { user, flags: 0 }) {
        Ok(Event::SignedIn { flags, .. }) => flags,
        other => panic!("{other:?}"),
    };
    assert_eq!(sign_in(), 2);
    set(Role::Moderator, false, 0);
    assert_eq!(sign_in(), 0, "revoked between the question for the account and its sign-in");
}
