//! Places within the limit of an address (BEHAVIOUR.md 1.10): whoever holds the socket holds the place.

use std::sync::Arc;

use russh::client::{self, Handle, Msg};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use superchat::wire::frame::Frame;
use superchat::wire::server::{AuthResponse, SshKeyDeleted};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::connections::bytes;
use crate::limits::nobody_exempt;

/// A server that takes so many connections from this machine.
fn crowded(places: u8) -> Doors {
    Doors::open(nobody_exempt().set("limits", "max_connections_per_ip", places))
}

/// A connection to the SSH port, unless it is turned away: that happens before anything is said.
fn knock(doors: &Doors) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(doors.ssh).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream.read(&mut [0; 64]).unwrap_or(0) > 0).then_some(stream)
}

/// Whoever gets the one place of a server finds no socket of anybody else.
fn assert_place_follows_socket(doors: &Doors) {
    let _newcomer = clock::poll(PATIENCE * 2, || knock(doors)).expect("no place is given back");
    assert_eq!(sockets(doors), 1);
}

#[test]
fn who_does_not_leave_by_ssh_keeps_the_place() {
    let doors = crowded(1);
    let former = Master::sign_in(&doors, "former");
    let mut session = session(&former);
    session.send(Disconnect { reason: None });
    session.expect_close();
    former.signal(Signal::STOP);
    assert_place_follows_socket(&doors);
}

#[test]
fn who_does_not_leave_by_web_socket_keeps_the_place() {
    let doors = crowded(1);
    let mut former = doors.by_web();
    // The server's goodbye is never read.
    former.send(Disconnect { reason: None });
    assert_place_follows_socket(&doors);
}

#[test]
fn web_sockets_that_are_turned_away_count_as_http_until_they_are_gone() {
    let doors = crowded(1);
    let _inside = doors.by_web();
    let told = |_| {
        let mut stream = TcpStream::connect(doors.web).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(upgrade("Sec-WebSocket-Key: test\r\n").as_bytes()).ok()?;
        (stream.read(&mut [0; 12]).unwrap_or(0) > 0).then_some(stream)
    };
    let told: Vec<_> = (0..64).map_while(told).collect();
    assert!(told.len() < 64, "nobody was left outside");
}

/// A session beside others on one connection.
fn session(master: &Master<'_>) -> Client {
    let mut client = Client::over(master.session());
    client.expect_reply("AUTH_RESPONSE");
    client
}

#[test]
fn each_further_channel_that_is_open_takes_a_place() {
    let doors = crowded(2);
    let master = Master::sign_in(&doors, "ann");
    let mut first = session(&master);
    let _second = session(&master);
    assert_eq!(master.session().next(PATIENCE), Incoming::Closed, "no place is left");
    first.send(Disconnect { reason: None });
    first.expect_close();
    let _third = clock::poll(PATIENCE, || match master.session().next(PATIENCE) {
        Incoming::Closed => None,
        heard => Some(heard),
    });
    assert!(knock(&doors).is_none(), "no place is left");
}

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// A connection of the library's own client, which says why a channel is not opened.
struct Connection {
    runtime: Runtime,
    client: Handle<Trusting>,
}

impl Connection {
    fn sign_in(doors: &Doors, user: &str) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let key = Arc::new(load_secret_key(doors.key(user), None).unwrap());
        let mut client = runtime.block_on(client::connect(Arc::default(), doors.ssh, Trusting)).unwrap();
        let answer = client.authenticate_publickey(user, PrivateKeyWithHashAlg::new(key, None));
        assert!(runtime.block_on(answer).unwrap().success());
        Self { runtime, client }
    }

    /// A channel whose session has signed in.
    fn open(&self) -> Result<Channel<Msg>, ChannelOpenFailure> {
        self.runtime.block_on(async {
            match self.client.channel_open_session().await {
                Ok(mut channel) => {
                    hear(&mut channel, AuthResponse::CODE).await;
                    Ok(channel)
                }
                Err(russh::Error::ChannelOpenFailure(reason)) => Err(reason),
                Err(error) => panic!("{error}"),
            }
        })
    }

    /// Ends a session, and waits until the server has closed its channel.
    fn end(&self, mut channel: Channel<Msg>) {
        self.runtime.block_on(async {
            channel.data_bytes(bytes("DISCONNECT", json!({ "reason": null }))).await.unwrap();
            while !matches!(channel.wait().await, None | Some(ChannelMsg::Close)) {}
        });
    }
}

/// Reads on until a frame of this type has come.
async fn hear(channel: &mut Channel<Msg>, code: u8) {
    let mut said = Vec::new();
    loop {
        while let Some((frame, rest)) = Frame::cut(&said).unwrap() {
            if frame.code == code {
                return;
            }
            said = rest.to_vec();
        }
        match channel.wait().await {
            Some(ChannelMsg::Data { data }) => said.extend_from_slice(&data),
            None | Some(ChannelMsg::Eof | ChannelMsg::Close) => panic!("the session ended"),
            Some(_) => {}
        }
    }
}

#[test]
fn a_place_is_taken_before_the_account_is_looked_up() {
    let doors = crowded(1);
    let connection = Connection::sign_in(&doors, "ann");
    let mut channel = connection.open().unwrap();
    connection.runtime.block_on(async {
        channel.data_bytes(bytes("DELETE_SSH_KEY", json!({ "key_id": "1" }))).await.unwrap();
        hear(&mut channel, SshKeyDeleted::CODE).await;
    });
    assert_eq!(connection.open().unwrap_err(), ChannelOpenFailure::ResourceShortage, "there is no place");
    connection.end(channel);
    assert_eq!(connection.open().unwrap_err(), ChannelOpenFailure::AdministrativelyProhibited, "there is no key");
}

#[test]
fn a_connection_has_so_many_channels_over_its_life() {
    let doors = Doors::open(Settings::new());
    let connection = Connection::sign_in(&doors, "ann");
    for number in 1..=64 {
        let channel = connection.open().unwrap_or_else(|reason| panic!("{number}: {reason:?}"));
        connection.end(channel);
    }
    assert_eq!(connection.open().unwrap_err(), ChannelOpenFailure::ResourceShortage);
}
