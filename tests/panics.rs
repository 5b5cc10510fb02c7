//! A panic inside a handler ends the session that it served, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use superchat::admin::health::Health;
use superchat::metrics::{Exposition, Label as _, Metrics, Transport};
use superchat::net::door::Door;
use superchat::net::stream::Socket;
use superchat::net::{CloseReason, Gate, tcp};
use superchat::passwords::{HashJob, Passwords};
use superchat::shard::settings::InForce;
use superchat::shard::{Bus, Parts, Rates, ShardEvent};
use superchat::store::{Answer, Busy, Deliver as _, Query, Store, Submission, Ticket};
use superchat::supervise;
use superchat::wire::client::SetNickname;
use superchat::wire::codec::Bounded;
use support::Client;

/// Knows nobody, and cannot bear one name.
struct Touchy(Arc<Bus>);

impl Store for Touchy {
    fn submit(&self, _: Submission) -> Result<(), Busy> {
        Err(Busy)
    }

    fn ask(&self, ticket: Ticket, query: Query) -> Result<(), Busy> {
        match query {
            Query::Account { nickname } if *nickname == *b"boom" => panic!("on purpose"),
            Query::Account { .. } => {
                self.0.answered(ticket, Answer::Account { account: None, ban: None });
                Ok(())
            }
            _ => Err(Busy),
        }
    }
}

struct NoPasswords;

impl Passwords for NoPasswords {
    fn submit(&self, _: Ticket, _: HashJob) -> Result<(), Busy> {
        Err(Busy)
    }
}

fn take(nickname: &str) -> SetNickname<'_> {
    SetNickname { nickname: Bounded(nickname.as_bytes()) }
}

#[test]
fn a_panic_in_a_handler_ends_one_session_only() {
    let (bus, metrics, settings) =
        (Arc::new(Bus::new(1)), Metrics::new(support::chat::metrics_options(1)), Arc::new(support::chat::unlimited()));
    let parts = Parts {
        id: 0,
        settings: Arc::clone(&settings),
        channels: Vec::new(),
        store: Arc::new(Touchy(Arc::clone(&bus))),
        passwords: Arc::new(NoPasswords),
        bus: Arc::clone(&bus),
        rates: Arc::new(Rates::new(&settings)),
        metrics: Arc::clone(&metrics),
        registry: superchat::directory::Registry::new().0,
        stopwatch: tcp::mono_micros,
        now: tcp::now(),
    };
    let health = Health::new("0", 1, 0);
    let shard = supervise::spawn("scd-shard-0", move || tcp::run(parts, &health)).unwrap();

    let gate = Gate::new(None, None, Vec::new());
    let in_force = Arc::new(InForce::new(settings));
    let door = Door { gate, bus: Arc::clone(&bus), metrics: Arc::clone(&metrics), settings: in_force };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || {
        let ours = TcpStream::connect(address).unwrap();
        let (theirs, peer) = listener.accept().unwrap();
        theirs.set_nonblocking(true).unwrap();
        door.enter(Socket::Tcp(theirs), peer, door.admit(peer).unwrap(), Transport::Tcp, None);
        Client::over(support::Link::of(ours).unwrap())
    };
    let [mut unlucky, mut witness] = [connect(), connect()];
    assert_eq!(witness.ask(take("witness"), "NICKNAME_RESPONSE")["success"], true);
    unlucky.send(take("boom"));
    assert!(unlucky.expect_close().is_empty());
    assert_eq!(witness.ask(take("onlooker"), "NICKNAME_RESPONSE")["success"], true);
    let mut newcomer = connect();
    assert_eq!(newcomer.ask(take("newcomer"), "NICKNAME_RESPONSE")["success"], true);
    let ended = format!("superchat_disconnects_total{{reason=\"{}\"}} 1", CloseReason::Panic.label());
    let exposition = metrics.render(Exposition::Text, 0).unwrap();
    assert!(exposition.contains(&ended), "{ended} is not in {exposition}");

    bus.send(0, ShardEvent::Stop { spread_ms: 0 });
    witness.expect_close();
    newcomer.expect_close();
    shard.join().unwrap().unwrap();
}
