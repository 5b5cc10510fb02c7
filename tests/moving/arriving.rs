//! A file of the existing server opens in place, at every version: who was there is there, with what they had and said.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};
use superchat::ids::{ChannelId, MessageId};
use superchat::wire::client::{GetSubchannels, GetUnreadCounts, ListChannels, ProvidePublicKey};
use superchat::wire::codec::List;
use superchat::wire::records::UnreadTarget;

use crate::steps::*;
use crate::support::content::{Tables, query, rows_of, tables, twin};
use crate::support::old_file::{self, ACCOUNTS, BARE_DM, GARDEN, GENERAL, LATE, LONELY_DM, PLAIN_DM, ROSES, SECRET_DM};
use crate::support::old_file::{UNREADABLE, VISITORS_DM, message_id};
use crate::support::server::free_port;
use crate::support::{Client, Server};
use crate::{hex, scd, sign_in_with, text};

macro_rules! arrivals {
    ($($name:ident $version:literal)+) => { $(#[test] fn $name() { check_arrival($version); })+ };
}

arrivals! {
    from_0 0  from_1 1  from_2 2  from_3 3  from_4 4  from_5 5  from_6 6  from_7 7  from_8 8  from_9 9
    from_10 10  from_11 11  from_12 12  from_13 13  from_14 14  from_15 15  from_16 16
}

/// The last thing that a first round of maintenance does in such a file.
const NOTHING_REMOVED: &str = "rows have outlived their time, but nothing is removed";

fn check_arrival(version: u32) {
    let mut old = None;
    let mut server = Server::start_on(settings(), |database| {
        old_file::make(database, version);
        old_file::leave_a_log(database);
        old = Some(twin(database));
    });
    let (old, _twin) = old.unwrap();
    let before = tables(&old);
    for _ in 0..2 {
        check_channels(&mut server.client(), &old, version);
        check_messages(&mut server.client(), &old, version);
        if version >= 2 {
            check_accounts(&server);
        }
        if version >= 9 {
            check_read_mark(&server);
        }
        if version >= 11 {
            check_direct_messages(&server, version);
        }
        server.await_line(NOTHING_REMOVED);
        assert_eq!(server.stop(), Some(0));
        check_kept(&server.database(), &before, version);
        server.resume();
    }
    let output = server.output();
    let told = "references to rows that are gone: such rows are kept and passed over; scd check lists them";
    assert_eq!(output.matches(told).count(), 1, "{output}");
    assert!(output.contains(&format!("Database is up to date (version {})", version.max(13))), "{output}");
    assert_eq!(backups(server.home()), 1);
}

fn backups(home: &Path) -> usize {
    let names = fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".backup-v")).count()
}

/// SQL that holds for what every client may see of table Channel in a file of `version`.
fn public(version: u32) -> &'static str {
    match version {
        11.. => "is_private = 0 AND is_dm = 0 AND parent_id IS NULL",
        10 => "is_private = 0 AND parent_id IS NULL",
        _ => "is_private = 0",
    }
}

fn check_channels(client: &mut Client, old: &Connection, version: u32) {
    let expected: BTreeSet<String> =
        query(old, &format!("SELECT id || ' ' || hex(name) FROM Channel WHERE {}", public(version)))
            .into_iter()
            .collect();
    let list = client.ask(ListChannels { from_channel_id: ChannelId(0), limit: 0 }, "CHANNEL_LIST");
    let shown = items(&list, "channels")
        .into_iter()
        .map(|channel| format!("{} {}", number(&channel["channel_id"]), hex(&channel["name"])));
    assert_eq!(shown.collect::<BTreeSet<_>>(), expected);
    if version >= 10 {
        let below = client.ask(GetSubchannels { channel_id: place(GARDEN) }, "SUBCHANNEL_LIST");
        let shown = items(&below, "subchannels")
            .into_iter()
            .map(|channel| number(&channel["subchannel_id"]))
            .collect::<Vec<_>>();
        assert_eq!(shown, [place(ROSES).0]);
    }
}

fn check_messages(client: &mut Client, old: &Connection, version: u32) {
    let mut places = query::<i64>(old, &format!("SELECT id FROM Channel WHERE {}", public(version)));
    assert!(places.contains(&UNREADABLE));
    places.extend((version >= 10).then_some(ROSES));
    for channel in places {
        let here = format!("COALESCE(subchannel_id, channel_id) = {channel}");
        let expected: Vec<String> = query(
            old,
            &format!(
                "SELECT id || ' ' || hex(content) FROM Message WHERE {here} AND parent_id IS NULL ORDER BY id DESC"
            ),
        );
        assert_eq!(said(client, roots(place(channel))), expected, "channel {channel}");
        for root in query::<i64>(old, &format!("SELECT id FROM Message WHERE {here} AND parent_id IS NULL")) {
            let below: Vec<String> = query(
                old,
                &format!(
                    "WITH RECURSIVE below(id, content) AS (
                         SELECT id, content FROM Message WHERE parent_id = {root}
                         UNION ALL
                         SELECT m.id, m.content FROM below JOIN Message AS m ON m.parent_id = below.id
                     ) SELECT id || ' ' || hex(content) FROM below ORDER BY id"
                ),
            );
            let mut shown = said(client, thread(place(channel), message(root)));
            shown.sort();
            assert_eq!(shown, below, "thread {root}");
        }
    }
    let newest = said(client, roots(place(GENERAL)));
    assert!(newest[0].starts_with(&message_id(LATE).to_string()), "what was only in the log: {newest:?}");
}

fn said(client: &mut Client, request: superchat::wire::client::ListMessages) -> Vec<String> {
    let line = |message: &Value| format!("{} {}", number(&message["message_id"]), hex(&message["content"]));
    listed(client, request).iter().map(line).collect()
}

fn check_accounts(server: &Server) {
    for account in ACCOUNTS {
        let mut client = server.client();
        let refused = sign_in_with(&mut client, account.nickname, "nDi1PyoAgbheZNCUXVFFPYIn1MZb7MFs9yZB9N9K810");
        assert_eq!(refused["success"], false);
        if account.secret.is_empty() {
            assert_eq!(refused["message"], "This account requires SSH authentication. Please connect via SSH.");
            continue;
        }
        assert_eq!(refused["message"], "Invalid credentials");
        let answer = sign_in_with(&mut client, account.nickname, account.secret);
        assert_eq!(answer["success"], true, "{answer:?}");
        assert_eq!(number(&answer["user_id"]), account.id.unsigned_abs(), "ids are unchanged");
    }
}

/// A session of the first or second account.
fn session(server: &Server, account: usize) -> Client {
    let mut client = server.client();
    let account = &ACCOUNTS[account];
    assert_eq!(sign_in_with(&mut client, account.nickname, account.secret)["success"], true);
    client
}

/// The mark lies behind the reply of a visitor, before hanna's; lines of the system and of others count.
fn check_read_mark(server: &Server) {
    let target = UnreadTarget { channel_id: place(GENERAL), subchannel_id: None, thread_id: None };
    let targets = List(vec![target]);
    let counts = session(server, 0).ask(GetUnreadCounts { since_timestamp: None, targets }, "UNREAD_COUNTS");
    let expected = rows(
        server,
        &format!(
            "SELECT count(*) FROM Message WHERE COALESCE(subchannel_id, channel_id) = {GENERAL} AND author_user_id IS NOT 1
             AND created_at > {} + 25000",
            old_file::THEN_MS
        ),
    );
    assert_eq!(items(&counts, "counts")[0]["unread_count"].to_string(), expected[0][0]);
    assert_ne!(expected[0][0], "0");
}

fn check_direct_messages(server: &Server, version: u32) {
    let mut marta = session(server, 0);
    let plain = ready(&mut marta, PLAIN_DM);
    assert_eq!((&plain["other_nickname"], &plain["is_encrypted"]), (&json!("keyed"), &json!(false)));
    assert_eq!(number(&plain["other_user_id"]), 3);
    assert_eq!(contents(&mut marta, roots(place(PLAIN_DM))), ["keyed has left the conversation", "hello keyed"]);
    marta.send(ProvidePublicKey { key_type: 1, public_key: [0x11; 32], label: b"" });
    let secret = ready(&mut marta, SECRET_DM);
    let shown = (&secret["other_nickname"], &secret["is_encrypted"], &secret["other_public_key"]);
    assert_eq!(shown, (&json!("hanna"), &json!(true), &json!("22".repeat(32))));
    let ciphertext = listed(&mut marta, roots(place(SECRET_DM)));
    assert_eq!(hex(&ciphertext[0]["content"]), "D000FFFE20636970686572746578742080");

    let mut hanna = session(server, 1);
    let request = hanna.expect_matching("DM_REQUEST", |request| request["from_nickname"] == "keyed");
    assert_eq!((number(&request["dm_channel_id"]), number(&request["from_user_id"])), (4, 3));
    if version >= 13 {
        assert_eq!(ready(&mut hanna, VISITORS_DM)["other_nickname"], "anon");
        hanna.expect_matching("DM_PARTICIPANT_LEFT", |left| number(&left["dm_channel_id"]) == place(VISITORS_DM).0);
        assert_eq!(contents(&mut hanna, roots(place(VISITORS_DM))), ["anybody there?"]);
    }
    hanna.send(ProvidePublicKey { key_type: 1, public_key: [0x22; 32], label: b"" });
    // Filled in from those who had access; encrypted by its name, whether or not the other side still has its key.
    hanna.quiet();
    assert_eq!(contents(&mut hanna, roots(place(BARE_DM))), ["from before participants"]);

    let mut stranger = server.client_named("stranger");
    for dm in [SECRET_DM, PLAIN_DM, BARE_DM] {
        check_refused(&mut stranger, [(roots(place(dm)).into(), 3000, "Not a participant in this DM")]);
    }
    assert_eq!(said(&mut stranger, roots(place(LONELY_DM))), [""; 0]);
}

fn ready(client: &mut Client, dm: i64) -> crate::support::link::Fields {
    client.expect_matching("DM_READY", |ready| number(&ready["channel_id"]) == place(dm).0)
}

/// Nothing was deleted and nothing renumbered. What sign-ins write, roots that were missing and participants that were are
/// all that changed; read marks of the first kind cannot be read (migration 9).
fn check_kept(database: &Path, before: &Tables, version: u32) {
    let (now, _twin) = twin(database);
    for (table, (columns, rows)) in before {
        let mended = |column: &&String| match table.as_str() {
            "Message" => *column != "thread_root_id",
            "User" => *column != "last_seen",
            _ => true,
        };
        let kept: Vec<String> = columns.iter().filter(mended).cloned().collect();
        let places: Vec<usize> =
            kept.iter().map(|name| columns.iter().position(|column| column == name).unwrap()).collect();
        let expected: Vec<Vec<String>> =
            rows.iter().map(|row| places.iter().map(|place| row[*place].clone()).collect()).collect();
        let found = rows_of(&now, table, &kept);
        match table.as_str() {
            "UserChannelState" if version < 9 => assert_eq!(found.len(), 0),
            "schema_migrations" | "ChannelParticipant" => assert_eq!(found[..expected.len()], expected, "{table}"),
            _ => assert_eq!(found, expected, "{table}"),
        }
    }
    let rootless = "SELECT count(*) FROM Message WHERE thread_root_id IS NULL";
    assert_eq!(query::<i64>(&now, rootless), [0]);
}

fn place(channel: i64) -> ChannelId {
    ChannelId(channel.unsigned_abs())
}

fn message(id: i64) -> MessageId {
    MessageId(id.unsigned_abs())
}

/// What a start says that ends at once with exit code 1.
fn refusal(home: &Path, database: &Path) -> String {
    let quiet = "[server]\nssh_port = 0\nhttp_port = 0\n[admin]\nmetrics_listen = \"off\"\nprofile_listen = \"off\"\n";
    fs::write(home.join("config.toml"), quiet).unwrap();
    let port = free_port().to_string();
    let refused = scd(home, &["--config", "config.toml", "--db", text(database), "--port", &port]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    said
}

#[test]
fn a_version_newer_than_known_is_refused_with_a_clear_line() {
    let home = tempfile::TempDir::new().unwrap();
    let database = home.path().join("superchat.db");
    old_file::make_newer(&database);
    old_file::leave_a_log(&database);
    let files = || ["", "-wal"].map(|suffix| fs::read(format!("{}{suffix}", text(&database))).unwrap());
    let before = files();
    let said = refusal(home.path(), &database);
    let lines = "has schema version 17, this program knows versions up to 16: use a newer scd, or restore a backup of an older version";
    assert!(said.contains(lines), "{said}");
    assert_eq!(files(), before);
    assert_eq!(backups(home.path()), 0);
}

#[test]
fn a_file_that_the_existing_server_has_open_is_refused_until_it_stops() {
    let home = tempfile::TempDir::new().unwrap();
    let database = home.path().join("superchat.db");
    old_file::make(&database, 13);
    let running = Connection::open(&database).unwrap();
    running.execute_batch("PRAGMA wal_autocheckpoint = 0; UPDATE User SET last_seen = 5").unwrap();
    let before = checksums(&database);
    let said = refusal(home.path(), &database);
    let pid = std::process::id();
    assert!(
        said.contains(&format!("is in use by another program (pid {pid}): stop the server that has had it until now")),
        "{said}"
    );
    assert_eq!(checksums(&database), before);
    running.execute_batch("INSERT INTO AdminAction VALUES (99, 'a', 'a', 'user', 1, '', '', 1, '')").unwrap();
    drop(running);
    let copy = database.clone();
    let mut server = Server::start_on(settings(), |database| assert!(fs::copy(copy, database).is_ok()));
    assert_eq!(rows(&server, "SELECT last_seen FROM User WHERE id = 3"), [["5"]]);
    // From then on it is known, and shells may be open at a start.
    server.stop();
    let shell = Connection::open(server.database()).unwrap();
    shell.query_row("SELECT count(*) FROM Message", [], |_| Ok(())).unwrap();
    server.resume();
    server.await_line("another program has the database open: no other server may run on it");
    drop(shell);
}

/// By another program: reading the file and closing it here would give up the locks that this process has on it.
fn checksums(database: &Path) -> String {
    let log = format!("{}-wal", text(database));
    let output = std::process::Command::new("cksum").args([text(database), &log]).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}
