//! Serves the operator's socket: a few at once, one request each, in bounded time.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::socket::Bound;
use super::{NewChannel, Order, REQUEST_BYTES_MAX, Reply, Request, Role, Table};
use crate::clock;
use crate::desk::{Desk, DeskError};
use crate::handlers::admin::{checked_nickname, checked_reason};
use crate::handlers::channels::{new_channel, new_subchannel};
use crate::ids::{ChannelId, SessionId};
use crate::passwords;
use crate::profile::tasks::{self, place};
use crate::shard::settings::InForce;
use crate::shard::{Bus, SessionSummary, ShardEvent};
use crate::store::{
    self, Account, Act, Admin, Administer, Answer, Ban, Channel, ChannelType, Command, Event, FLAG_ADMIN,
    FLAG_MODERATOR, Kick, Name, Query, Refusal, Store, Subject, ban,
};
use crate::supervise;
use crate::wire::client;

/// Operators at once; the next one waits.
const OPERATORS_MAX: usize = 4;

/// For a request to arrive, to be done, and for its answer to be read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const WORK_TIMEOUT: Duration = Duration::from_secs(60);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failed accept, as without descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// What the socket needs.
pub struct OperatorParts {
    pub bound: Bound,
    pub database: PathBuf,
    pub store: Arc<dyn Store>,
    pub desk: Arc<Desk>,
    pub bus: Arc<Bus>,
    pub settings: Arc<InForce>,
}

/// The operator's socket, open until it is stopped.
pub struct OperatorServer {
    stop: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl OperatorServer {
    /// Starts serving.
    ///
    /// # Errors
    /// When the system gives no thread, or no way to watch the socket.
    pub fn start(parts: OperatorParts) -> io::Result<Self> {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        // One thread beside for the hash of a new password.
        let runtime = runtime.enable_io().enable_time().max_blocking_threads(1).build()?;
        let listener = parts.bound.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = supervise::spawn("scd-operator", move || {
            let site = Arc::new(parts);
            let _watched = tasks::watch(runtime.metrics());
            // The socket is a convenience: without it the chat goes on.
            if let Err(error) = runtime.block_on(tasks::root(place!(), serve_until(&site, listener, &stopped))) {
                warn!(%error, "the operator's socket ended");
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Answers nobody any more, and takes the socket away.
    pub fn stop(self) {
        self.stop.notify_one();
        if self.thread.join().is_err() {
            warn!("the thread of the operator's socket panicked");
        }
    }
}

async fn serve_until(site: &Arc<OperatorParts>, listener: StdListener, stop: &Notify) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    tokio::select! {
        biased;
        () = stop.notified() => Ok(()),
        () = accept(site, &listener) => Ok(()),
    }
}

async fn accept(site: &Arc<OperatorParts>, listener: &UnixListener) {
    let places = Arc::new(Semaphore::new(OPERATORS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = Arc::clone(site);
                drop(tasks::spawn(place!(), async move {
                    serve(&site, stream).await.unwrap_or_else(|error| debug!(%error, "an operator left"));
                    drop(place);
                }));
            }
            Err(error) => {
                warn!(%error, "cannot accept an operator");
                sleep(RETRY).await;
            }
        }
    }
}

async fn serve(site: &OperatorParts, mut stream: UnixStream) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != site.bound.owner {
        warn!(target: "security", uid, "an operator was refused: neither root nor the server's own user");
        return Ok(());
    }
    let mut line = Vec::new();
    let (reading, mut writing) = stream.split();
    let mut reading = BufReader::new(reading).take(REQUEST_BYTES_MAX);
    let read = timeout(READ_TIMEOUT, reading.read_until(b'\n', &mut line)).await;
    let reply = match read {
        Ok(Ok(_)) if line.ends_with(b"\n") => match serde_json::from_slice(&line) {
            Ok(request) => perform(site, uid, request).await,
            Err(error) => Reply::Refused(format!("unreadable request: {error}")),
        },
        Ok(Ok(_)) => Reply::Refused("the request is no line, or too long".to_owned()),
        Ok(Err(error)) => return Err(error),
        Err(_) => Reply::Refused("no request came".to_owned()),
    };
    let mut bytes = serde_json::to_vec(&reply)?;
    bytes.push(b'\n');
    timeout(WRITE_TIMEOUT, writing.write_all(&bytes)).await?
}

async fn perform(site: &OperatorParts, uid: u32, request: Request) -> Reply {
    if !is_same(&request.database, &site.database) {
        let keeps = site.database.display();
        return Reply::Refused(format!("the server here keeps another database, {keeps}"));
    }
    let by = Admin { name: operator_name(uid), address: None };
    let desk = At { site, by };
    let done = match timeout(WORK_TIMEOUT, desk.order(request.order)).await {
        Ok(done) => done,
        Err(_) => Err("the server does not answer in time".to_owned()),
    };
    done.unwrap_or_else(Reply::Refused)
}

fn is_same(one: &Path, other: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    canonical(one) == canonical(other)
}

/// As the audit shows it; a space is in no nickname.
fn operator_name(uid: u32) -> Name {
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let id = uid.to_string();
    let name = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then_some(name)
    });
    Name::from(format!("{} (uid {uid})", name.unwrap_or("somebody")).as_bytes())
}

/// One operator's request at the server.
struct At<'a> {
    site: &'a OperatorParts,
    by: Admin,
}

type Outcome = Result<Reply, String>;

fn text(bytes: &[u8]) -> Value {
    String::from_utf8_lossy(bytes).into()
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn time(ms: i64) -> Value {
    clock::rfc3339(ms).into()
}

fn table(columns: &[&str], rows: impl IntoIterator<Item = Vec<Value>>) -> Reply {
    let columns = columns.iter().map(|column| (*column).to_owned()).collect();
    Reply::Table(Table { columns, rows: rows.into_iter().collect() })
}

fn roles(flags: u8) -> String {
    let names = [(FLAG_ADMIN, "admin"), (FLAG_MODERATOR, "moderator")];
    let names: Vec<_> = names.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
    names.join(",")
}

impl At<'_> {
    async fn order(&self, order: Order) -> Outcome {
        match order {
            Order::Users { limit } => self.users(limit).await,
            Order::Admins => self.admins().await,
            Order::Bans { all } => self.bans(all).await,
            Order::Channels => self.list_channels().await,
            Order::Sessions => self.sessions().await,
            Order::Audit { limit } => self.audit(limit).await,
            Order::Grant { nickname, role } => self.set_role(&nickname, role, true).await,
            Order::Revoke { nickname, role } => self.set_role(&nickname, role, false).await,
            Order::ResetPassword { nickname, password_hash } => self.reset_password(&nickname, password_hash).await,
            Order::BanUser { nickname, reason, shadow, seconds } => {
                let (subject, shown) = user(&nickname)?;
                let reason = checked_reason(reason.as_bytes())?;
                self.account_if_any(&nickname).await?;
                self.ban(Act::Ban { subject, reason, shadow, seconds }, &format!("user {shown}")).await
            }
            Order::BanIp { address, reason, seconds } => {
                ban::network(address.as_bytes()).ok_or_else(|| format!("{address} is no address and no network"))?;
                let subject = Subject::Address(address.as_bytes().into());
                let reason = checked_reason(reason.as_bytes())?;
                self.ban(Act::Ban { subject, reason, shadow: false, seconds }, &format!("IP {address}")).await
            }
            Order::UnbanUser { nickname } => {
                let (subject, shown) = user(&nickname)?;
                self.unban(subject, &format!("user {shown}")).await
            }
            Order::UnbanIp { address } => {
                let subject = Subject::Address(address.as_bytes().into());
                self.unban(subject, &format!("IP {address}")).await
            }
            Order::DeleteUser { nickname } => self.delete_user(&nickname).await,
            Order::CreateChannel(new) => self.create_channel(&new).await,
            Order::DeleteChannel { name, reason } => self.delete_channel(&name, &reason).await,
            Order::Disconnect { session, reason } => self.disconnect(SessionId(session), &reason).await,
        }
    }

    async fn ask(&self, query: Query) -> Result<Answer, String> {
        match self.site.desk.ask(&*self.site.store, query).await {
            Ok(Answer::Failed) => Err("the database failed, see the log".to_owned()),
            Ok(answer) => Ok(answer),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn administer(&self, act: Act) -> Result<Event, String> {
        let order = Command::Administer(Box::new(Administer { by: self.by.clone(), act }));
        self.site.desk.submit(&*self.site.store, order).await.map_err(|error| match error {
            DeskError::Refused(refusal) => refused(refusal).to_owned(),
            other => other.to_string(),
        })
    }

    fn done(&self, text: String) -> Outcome {
        info!(target: "security", "Operator {}: {text}", shown(&self.by.name));
        Ok(Reply::Done(text))
    }

    /// Every session, by id.
    async fn survey(&self) -> Result<Vec<SessionSummary>, String> {
        let shards = self.site.bus.shards();
        let (sender, mut parts) = mpsc::channel(shards);
        for shard in 0..shards {
            self.site.bus.send(shard, ShardEvent::Survey(sender.clone()));
        }
        drop(sender);
        let mut sessions = Vec::new();
        for _ in 0..shards {
            sessions.extend(parts.recv().await.ok_or("a shard does not answer")?);
        }
        sessions.sort_by_key(|session| session.session);
        Ok(sessions)
    }

    async fn accounts(&self, limit: u16) -> Result<Vec<Account>, String> {
        match self.ask(Query::Accounts { limit }).await? {
            Answer::Accounts(accounts) => Ok(accounts),
            _ => Err("internal error".to_owned()),
        }
    }

    /// The account that is called so now: under a former name, which still signs in, somebody else may be meant.
    async fn account_if_any(&self, nickname: &str) -> Result<Option<Account>, String> {
        match self.ask(Query::Account { nickname: nickname.as_bytes().into() }).await? {
            Answer::Account { account: Some(account), .. } if *account.nickname != *nickname.as_bytes() => {
                Err(format!("the account is called {} now: name it so", shown(&account.nickname)))
            }
            Answer::Account { account, .. } => Ok(account),
            _ => Err("internal error".to_owned()),
        }
    }

    async fn account_called(&self, nickname: &str) -> Result<Account, String> {
        self.account_if_any(nickname).await?.ok_or_else(|| format!("there is no account {nickname}"))
    }

    async fn channels(&self) -> Result<Vec<Channel>, String> {
        match self.ask(Query::Channels).await? {
            Answer::Channels(mut channels) => {
                channels.retain(|channel| channel.participants.is_none());
                Ok(channels)
            }
            _ => Err("internal error".to_owned()),
        }
    }

    // Lists.

    async fn users(&self, limit: u16) -> Outcome {
        let sessions = self.survey().await?;
        let settings = self.site.settings.get();
        let rows = self.accounts(limit).await?.into_iter().map(|account| {
            let count = sessions.iter().filter(|session| session.user == Some(account.id)).count();
            let roles = roles(account.flags | settings.flags_for(&account.nickname));
            vec![text(&account.nickname), account.id.0.into(), roles.into(), count.into()]
        });
        Ok(table(&["nickname", "id", "roles", "sessions"], rows))
    }

    async fn admins(&self) -> Outcome {
        let settings = self.site.settings.get();
        let accounts = self.accounts(u16::MAX).await?;
        let listed = |names: &[String], name: &[u8]| names.iter().any(|listed| listed.as_bytes() == name);
        let mut rows = Vec::new();
        for account in &accounts {
            let sources = [
                ("admin", FLAG_ADMIN, &settings.admin_users, "admin_users"),
                ("moderator", FLAG_MODERATOR, &settings.moderator_users, "moderator_users"),
            ];
            for (role, flag, names, setting) in sources {
                let is_listed = listed(names, &account.nickname);
                if is_listed || account.flags & flag != 0 {
                    let from = if is_listed { setting } else { "granted" };
                    rows.push(vec![text(&account.nickname), account.id.0.into(), role.into(), from.into()]);
                }
            }
        }
        let is_missing = |name: &&String| !accounts.iter().any(|account| *account.nickname == *name.as_bytes());
        for (names, role, setting) in [
            (&settings.admin_users, "admin", "admin_users"),
            (&settings.moderator_users, "moderator", "moderator_users"),
        ] {
            let missing = names.iter().filter(is_missing);
            rows.extend(missing.map(|name| {
                vec![name.as_str().into(), Value::Null, role.into(), format!("{setting}, not registered").into()]
            }));
        }
        Ok(table(&["nickname", "id", "role", "from"], rows))
    }

    async fn bans(&self, all: bool) -> Outcome {
        let Answer::Bans(bans) = self.ask(Query::Bans { include_expired: all, limit: u32::MAX }).await? else {
            return Err("internal error".to_owned());
        };
        let row = |ban: &Ban| {
            let (kind, who, user) = match &ban.subject {
                Subject::Address(address) => ("ip", text(address), Value::Null),
                Subject::User { user, nickname } => {
                    let who = nickname.as_deref().map_or(Value::Null, text);
                    ("user", who, user.map_or(Value::Null, |user| user.0.into()))
                }
            };
            let until = ban.until.map_or_else(|| "for ever".into(), time);
            let (id, by, reason) = (ban.id.0.into(), text(&ban.by), text(&ban.reason));
            vec![id, kind.into(), who, user, ban.shadow.into(), time(ban.since), until, by, reason]
        };
        let columns = ["id", "type", "who", "user_id", "shadow", "since", "until", "by", "reason"];
        Ok(table(&columns, bans.iter().map(row)))
    }

    async fn list_channels(&self) -> Outcome {
        let channels = self.channels().await?;
        let rows = channels.iter().map(|channel| {
            let kind = if channel.channel_type == ChannelType::Chat { "chat" } else { "forum" };
            let creator = channel.created_by.map_or(Value::Null, |user| user.0.into());
            let name = full_name(&channels, channel).into();
            vec![channel.id.0.into(), name, kind.into(), channel.retention_hours.into(), creator]
        });
        Ok(table(&["id", "name", "type", "retention_hours", "created_by"], rows))
    }

    async fn sessions(&self) -> Outcome {
        let rows = self.survey().await?.into_iter().map(|session| {
            let nickname = session.nickname.as_deref().map_or(Value::Null, text);
            let user = session.user.map_or(Value::Null, |user| user.0.into());
            let channel = session.joined.map_or(Value::Null, |channel| channel.0.into());
            let address = session.address.to_string().into();
            let (id, roles, idle) =
                (session.session.0.into(), roles(session.flags).into(), session.idle_seconds.into());
            vec![id, nickname, user, roles, address, channel, idle]
        });
        Ok(table(&["session", "nickname", "user_id", "roles", "address", "channel_id", "idle_seconds"], rows))
    }

    async fn audit(&self, limit: u32) -> Outcome {
        let Answer::Audit(entries) = self.ask(Query::Audit { limit }).await? else {
            return Err("internal error".to_owned());
        };
        let rows = entries.into_iter().map(|entry| {
            let texts = [&entry.by, &entry.address, &entry.action, &entry.target_type, &entry.target, &entry.details];
            std::iter::once(time(entry.at)).chain(texts.map(|bytes| text(bytes))).collect()
        });
        Ok(table(&["at", "by", "from", "action", "target_type", "target", "details"], rows))
    }

    // Acts.

    async fn set_role(&self, nickname: &str, role: Role, is_granted: bool) -> Outcome {
        let account = self.account_called(nickname).await?;
        let settings = self.site.settings.get();
        let (role, names, setting) = match role {
            Role::Admin => (store::Role::Admin, &settings.admin_users, "admin_users"),
            Role::Moderator => (store::Role::Moderator, &settings.moderator_users, "moderator_users"),
        };
        if !is_granted && names.iter().any(|listed| listed.as_bytes() == &account.nickname[..]) {
            return Err(format!("{nickname} is listed in {setting}: take the name out there, and reload"));
        }
        let flags = settings.flags_for(&account.nickname);
        self.administer(Act::SetRole { user: account.id, role, is_granted, flags }).await?;
        let what = if role == store::Role::Admin { "an admin" } else { "a moderator" };
        let now = if is_granted { "is" } else { "is no longer" };
        self.done(format!("{} {now} {what}", shown(&account.nickname)))
    }

    async fn reset_password(&self, nickname: &str, secret: String) -> Outcome {
        let account = self.account_called(nickname).await?;
        if !crate::handlers::auth::is_secret(secret.as_bytes()) {
            return Err("that is no hash of a password".to_owned());
        }
        let hashed = tokio::task::spawn_blocking(move || passwords::hash(secret.as_bytes())).await;
        let password_hash = hashed.ok().flatten().ok_or("the password could not be hashed, see the log")?;
        self.administer(Act::ResetPassword { user: account.id, password_hash }).await?;
        self.done(format!("{nickname} has a new password"))
    }

    async fn ban(&self, act: Act, whom: &str) -> Outcome {
        match self.administer(act).await? {
            Event::Banned(ban) => {
                let until =
                    ban.until.map_or_else(|| "for ever".to_owned(), |until| format!("until {}", clock::rfc3339(until)));
                let kind = if ban.shadow { "shadow-banned" } else { "banned" };
                self.done(format!("{whom} is {kind} {until} (ban {})", ban.id))
            }
            _ => Err("internal error".to_owned()),
        }
    }

    async fn unban(&self, subject: Subject, whom: &str) -> Outcome {
        match self.administer(Act::Unban(subject)).await? {
            Event::Unbanned { bans } => self.done(format!("{whom} is unbanned ({} bans removed)", bans.len())),
            _ => Err("internal error".to_owned()),
        }
    }

    async fn delete_user(&self, nickname: &str) -> Outcome {
        let account = self.account_called(nickname).await?;
        self.administer(Act::DeleteUser(account.id)).await?;
        self.done(format!("account {} (id {}) is deleted, its messages stay", shown(&account.nickname), account.id))
    }

    async fn create_channel(&self, new: &NewChannel) -> Outcome {
        let (name, description) = (new.name.as_bytes(), new.description.as_bytes());
        let channel_type = if new.is_chat { ChannelType::Chat } else { ChannelType::Forum }.to_wire();
        let channel = match &new.parent {
            None => {
                let display = new.display_name.clone().unwrap_or_else(|| format!("#{}", new.name));
                let request = client::CreateChannel {
                    name,
                    display_name: display.as_bytes(),
                    description: Some(description),
                    channel_type,
                    retention_hours: new.retention_hours,
                };
                new_channel(&request, None)?
            }
            Some(parent) => {
                let channels = self.channels().await?;
                let parent = find(&channels, parent)?;
                let request = client::CreateSubchannel {
                    channel_id: parent.id,
                    name,
                    description,
                    channel_type,
                    retention_hours: new.retention_hours,
                };
                new_subchannel(parent, &request, None)?
            }
        };
        match self.administer(Act::CreateChannel(channel)).await? {
            Event::ChannelCreated(channel) => {
                self.done(format!("channel {} is made (id {})", shown(&channel.name), channel.id))
            }
            _ => Err("internal error".to_owned()),
        }
    }

    async fn delete_channel(&self, name: &str, reason: &str) -> Outcome {
        let channels = self.channels().await?;
        let channel = find(&channels, name)?.id;
        let reason = checked_reason(reason.as_bytes())?;
        match self.administer(Act::DeleteChannel { channel, reason }).await? {
            Event::ChannelRemoved { subchannels, .. } => {
                self.done(format!("channel {name} (id {channel}) is deleted, with {} subchannels", subchannels.len()))
            }
            _ => Err("internal error".to_owned()),
        }
    }

    async fn disconnect(&self, id: SessionId, reason: &str) -> Outcome {
        let sessions = self.survey().await?;
        let session = sessions.into_iter().find(|session| session.session == id);
        let session = session.ok_or_else(|| format!("there is no session {id}"))?;
        let reason = checked_reason(reason.as_bytes())?;
        let SessionSummary { session, user, nickname, address, .. } = session;
        let kick = Kick { session, user, nickname, address, reason };
        self.administer(Act::Kick(kick)).await?;
        self.done(format!("session {id} is disconnected"))
    }
}

fn user(nickname: &str) -> Result<(Subject, String), &'static str> {
    checked_nickname(None, Some(nickname.as_bytes()))
}

/// As operators name a channel: `general`, or `parent/inner`.
fn full_name(channels: &[Channel], channel: &Channel) -> String {
    let parent = channel.parent.and_then(|parent| channels.iter().find(|known| known.id == parent));
    match parent {
        Some(parent) => format!("{}/{}", shown(&parent.name), shown(&channel.name)),
        None => shown(&channel.name),
    }
}

/// The channel of this name, or of this id.
fn find<'c>(channels: &'c [Channel], name: &str) -> Result<&'c Channel, String> {
    let name = name.strip_prefix('#').unwrap_or(name);
    let by_name = channels.iter().find(|channel| full_name(channels, channel) == name);
    let by_id = || channels.iter().find(|channel| name.parse().is_ok_and(|id| channel.id == ChannelId(id)));
    by_name.or_else(by_id).ok_or_else(|| format!("there is no channel {name}"))
}

fn refused(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UserNotFound => "there is no such account",
        Refusal::ChannelNotFound => "there is no such channel",
        Refusal::NameTaken => "a channel of that name exists",
        Refusal::NoActiveBan => "no active ban found",
        Refusal::Database => "the database failed, see the log",
        _ => "the server refused it",
    }
}

impl Reply {
    /// A table as a list of objects.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Done(text) => json!({ "done": text }),
            Self::Refused(text) => json!({ "error": text }),
            Self::Table(Table { columns, rows }) => {
                let row = |row: &Vec<Value>| columns.iter().cloned().zip(row.iter().cloned()).collect::<Value>();
                rows.iter().map(row).collect()
            }
        }
    }
}
