//! Sockets for a shard: bytes in, vectored bytes out.
//!
//! One thread runs one shard on a current-thread runtime. Each connection has one small task that waits for bytes; the
//! shard's own task waits for events, for the next tick, and for the end of a turn, when everything that was queued
//! leaves in one write per session. Events come first, sockets after: what another thread did before a client could know
//! of it is applied before that client's next bytes are read.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, error};

use super::stream::Stream;
use super::{CloseReason, FAREWELL};
use crate::admin::health::Health;
use crate::clock;
use crate::profile::tasks::{self, place, site};
use crate::profile::waits;
use crate::shard::outbox::{Flushed, Outbox};
use crate::shard::session::SessionKey;
use crate::shard::{Accepted, Bus, Departed, Now, Parts, Shard, ShardEvent};

/// Bytes read from a socket at once, into a buffer that all sessions of the shard share.
const READ_BYTES: usize = 64 * 1024;

/// A long batch is flushed whenever this much was encoded, so that no healthy session's queue grows with the batch.
const FLUSH_BYTES: usize = 128 * 1024;

/// How often a shard with nothing to do shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The time as a shard takes it.
#[must_use]
pub fn now() -> Now {
    let mono_micros = mono_micros();
    Now { mono: mono_micros / 1000, mono_micros, wall: clock::wall_ms() }
}

/// Monotonic microseconds.
#[must_use]
pub fn mono_micros() -> u64 {
    u64::try_from(clock::monotonic().as_micros()).unwrap_or(u64::MAX)
}

/// Runs a shard on the calling thread until it is told to stop and its clients are gone.
///
/// # Errors
/// When the runtime cannot be built.
pub fn run(parts: Parts, health: &Arc<Health>) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build_local(Default::default())?;
    parts.metrics.watch_runtime(parts.id, runtime.metrics());
    let core = Rc::new(Core {
        bus: Arc::clone(&parts.bus),
        id: parts.id,
        shard: RefCell::new(Shard::new(parts)),
        health: Arc::clone(health),
        connections: RefCell::default(),
        events: RefCell::default(),
        scratch: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
        turn: Notify::new(),
        paused: RefCell::default(),
        farewells: Cell::new(0),
        beat_due: Cell::new(clock::monotonic_ms()),
        stopping: Cell::new(false),
    });
    let _watched = tasks::watch(runtime.metrics());
    runtime.block_on(tasks::root(place!(), core.drive()));
    Ok(())
}

struct Core {
    id: usize,
    shard: RefCell<Shard>,
    bus: Arc<Bus>,
    health: Arc<Health>,
    /// By session key.
    connections: RefCell<Vec<Option<Rc<Connection>>>>,
    events: RefCell<VecDeque<ShardEvent>>,
    scratch: RefCell<Box<[u8]>>,
    /// Something was handled whose frames wait to be written.
    turn: Notify,
    /// Sessions whose sockets are not read for the moment.
    paused: RefCell<Vec<SessionKey>>,
    farewells: Cell<usize>,
    /// Monotonic milliseconds.
    beat_due: Cell<u64>,
    stopping: Cell<bool>,
}

struct Connection {
    stream: Stream,
    /// Wakes the connection's task when it should look at its session again.
    waker: RefCell<Option<Waker>>,
    /// The session ended; the socket may live on for a goodbye.
    ended: Cell<bool>,
    /// A task waits for the socket to become writable.
    blocked: Cell<bool>,
}

impl Connection {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Core {
    async fn drive(self: &Rc<Self>) {
        loop {
            let due = self.shard.borrow().due().unwrap_or(u64::MAX).min(self.beat_due.get());
            let pause = Duration::from_millis(due.saturating_sub(clock::monotonic_ms()));
            tasks::at(site!("wait for an event, a turn or a tick"), async {
                tokio::select! {
                    biased;
                    () = self.bus.ready(self.id) => {}
                    () = self.turn.notified() => {}
                    () = sleep(pause) => {}
                }
            })
            .await;
            self.take_turn();
            if self.stopping.get() && self.shard.borrow().clients.is_empty() && self.farewells.get() == 0 {
                return;
            }
        }
    }

    /// Applies what came in, does what is due, and sends what was queued.
    fn take_turn(self: &Rc<Self>) {
        self.apply_events();
        self.guarded("tick", Shard::tick);
        self.finish_turn();
        self.resume_paused();
        self.beat();
    }

    /// Shows that the shard lives, and how late its beat came.
    fn beat(&self) {
        let shard = self.shard.borrow();
        let (now, due) = (shard.now.mono, self.beat_due.get());
        self.health.shard_beat(self.id, now);
        if now >= due {
            let next = now + u64::try_from(HEARTBEAT.as_millis()).unwrap_or(u64::MAX);
            shard.metrics.tick(now, due, next);
            self.beat_due.set(next);
        }
    }

    /// Events first: nothing a client says is handled before what it may already know of.
    fn apply_events(self: &Rc<Self>) {
        self.shard.borrow_mut().now = now();
        self.bus.take(self.id, &mut self.events.borrow_mut());
        loop {
            let event = self.events.borrow_mut().pop_front();
            match event {
                None => return,
                Some(ShardEvent::Accepted(accepted)) => self.accept(*accepted),
                Some(ShardEvent::Committed(commit)) => {
                    for (outcome, tally) in commit.iter() {
                        self.guarded("outcome", |shard| shard.outcome(outcome, tally));
                        if self.shard.borrow().fresh_bytes() > FLUSH_BYTES {
                            self.finish_turn();
                        }
                    }
                }
                Some(event) => {
                    if matches!(event, ShardEvent::Stop { .. }) {
                        self.stopping.set(true);
                    }
                    self.guarded("event", |shard| shard.apply(event));
                }
            }
        }
    }

    /// A panic outside any session's own request is logged; the shard goes on.
    fn guarded(&self, what: &str, run: impl FnOnce(&mut Shard)) {
        let mut shard = self.shard.borrow_mut();
        if catch_unwind(AssertUnwindSafe(|| run(&mut shard))).is_err() {
            error!(shard = self.id, what, "a handler panicked");
        }
    }

    fn accept(self: &Rc<Self>, accepted: Accepted) {
        if self.stopping.get() {
            return;
        }
        // The newcomer may get the place of a session that ended in this turn and still holds its socket under that key.
        self.see_off_departed();
        let mut stream = accepted.stream;
        let mut shard = self.shard.borrow_mut();
        let key = shard.connect(accepted.session, accepted.admission, accepted.login);
        // A fresh socket takes SERVER_CONFIG at once, before it is registered anywhere.
        shard.flush_one(key, |_, slices| stream.write_vectored(slices), |_| {});
        match Stream::try_from(stream) {
            Ok(stream) => {
                let connection = Rc::new(Connection {
                    stream,
                    waker: RefCell::default(),
                    ended: Cell::new(false),
                    blocked: Cell::new(false),
                });
                self.register(key, &connection);
                tasks::spawn_local_for(accepted.session.0, place!(), Rc::clone(self).serve(key, connection));
            }
            Err(error) => {
                error!(%error, "cannot watch a connection");
                shard.close(key, CloseReason::IoError);
            }
        }
        drop(shard);
        self.turn.notify_one();
    }

    fn register(&self, key: SessionKey, connection: &Rc<Connection>) {
        let mut connections = self.connections.borrow_mut();
        let place = key.0 as usize;
        if connections.len() <= place {
            connections.resize_with(place + 1, || None);
        }
        connections[place] = Some(Rc::clone(connection));
    }

    fn connection(&self, key: SessionKey) -> Option<Rc<Connection>> {
        self.connections.borrow().get(key.0 as usize).cloned().flatten()
    }

    /// One connection's task: waits for bytes and hands them to the shard.
    async fn serve(self: Rc<Self>, key: SessionKey, connection: Rc<Connection>) {
        while self.readable(key, &connection).await {
            self.read(key, &connection);
        }
    }

    /// Waits until there is something to read and the session wants it; `false` once it ended.
    async fn readable(&self, key: SessionKey, connection: &Connection) -> bool {
        poll_fn(|context| {
            if connection.ended.get() {
                return Poll::Ready(false);
            }
            let wanted = self.shard.borrow().wants_input(key);
            if wanted && connection.stream.poll_read_ready(context).is_ready() {
                return Poll::Ready(true);
            }
            if wanted {
                tasks::note(site!("wait for bytes to read"));
            } else {
                tasks::note(site!("wait for the session to go on reading"));
                self.paused.borrow_mut().push(key);
            }
            let mut waker = connection.waker.borrow_mut();
            match &*waker {
                Some(known) if known.will_wake(context.waker()) => {}
                _ => *waker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }

    fn read(self: &Rc<Self>, key: SessionKey, connection: &Connection) {
        let mut scratch = self.scratch.borrow_mut();
        let outcome = connection.stream.try_read(&mut scratch);
        // Only now: what the sender of these bytes may know of was in the inbox before they were sent.
        self.apply_events();
        if connection.ended.get() {
            return;
        }
        match outcome {
            Ok(0) => self.shard.borrow_mut().hang_up(key),
            Ok(count) => self.serve_guarded(key, |shard| shard.receive(key, &scratch[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                debug!(%error, "read failed");
                self.shard.borrow_mut().close(key, CloseReason::IoError);
            }
        }
        self.turn.notify_one();
    }

    /// Who has read enough of its answers goes on with the requests that are here already.
    fn resume_paused(&self) {
        let resumable = self.shard.borrow_mut().take_resumable();
        for key in resumable {
            self.serve_guarded(key, |shard| shard.pump(key));
            self.turn.notify_one();
        }
    }

    /// One panic inside a handler ends one session.
    fn serve_guarded(&self, key: SessionKey, run: impl FnOnce(&mut Shard)) {
        let mut shard = self.shard.borrow_mut();
        if catch_unwind(AssertUnwindSafe(|| run(&mut shard))).is_err() {
            let session = shard.clients.get(key).map(|session| session.id.0);
            error!(shard = self.id, session, "a handler panicked, its session ends");
            shard.close(key, CloseReason::Panic);
        }
    }

    /// Other shards hear first, then every session that has something to read gets one write.
    fn finish_turn(self: &Rc<Self>) {
        let mut shard = self.shard.borrow_mut();
        shard.now = now();
        shard.end_turn();
        shard.flush(
            |key, slices| match self.connection(key) {
                Some(connection) => connection.stream.try_write_vectored(slices),
                None => Err(io::ErrorKind::NotConnected.into()),
            },
            |key| self.wait_writable(key),
        );
        // A failed write ends a session, and its end is news for the other shards.
        shard.end_turn();
        let wanted: Vec<_> = self
            .paused
            .borrow_mut()
            .extract_if(.., |key| shard.clients.get(*key).is_none() || shard.wants_input(*key))
            .collect();
        drop(shard);
        self.see_off_departed();
        wanted.into_iter().filter_map(|key| self.connection(key)).for_each(|connection| connection.wake());
    }

    /// A slow reader's queue is offered again when its socket takes bytes; meanwhile it costs nobody anything.
    fn wait_writable(self: &Rc<Self>, key: SessionKey) {
        let Some(connection) = self.connection(key) else { return };
        if connection.blocked.replace(true) {
            return;
        }
        let core = Rc::clone(self);
        tasks::spawn_local(place!(), async move {
            while connection.blocked.get() && writable(&connection.stream).await.is_ok() && !connection.ended.get() {
                connection.blocked.set(false);
                core.shard.borrow_mut().flush_one(
                    key,
                    |_, slices| connection.stream.try_write_vectored(slices),
                    |_| connection.blocked.set(true),
                );
                core.turn.notify_one();
            }
            connection.blocked.set(false);
        });
    }

    fn see_off_departed(self: &Rc<Self>) {
        let departed = self.shard.borrow_mut().take_departed();
        departed.into_iter().for_each(|departed| self.see_off(departed));
    }

    /// Lets go of an ended session's socket: at once, or after what it should still be told.
    fn see_off(self: &Rc<Self>, departed: Departed) {
        let connection = self.connections.borrow_mut().get_mut(departed.key.0 as usize).and_then(Option::take);
        let Some(connection) = connection else { return };
        connection.ended.set(true);
        connection.wake();
        let is_bare = matches!(departed.reason, CloseReason::SlowConsumer | CloseReason::IoError | CloseReason::Panic);
        if is_bare || departed.outbox.is_empty() {
            return;
        }
        self.farewells.set(self.farewells.get() + 1);
        let core = Rc::clone(self);
        tasks::spawn_local(place!(), async move {
            // A peer that does not listen is left behind.
            let _in_time = timeout(FAREWELL, say_goodbye(&connection.stream, departed.outbox)).await;
            core.farewells.set(core.farewells.get() - 1);
            core.turn.notify_one();
        });
    }
}

/// Waits until a socket that refused bytes takes some.
async fn writable(stream: &Stream) -> io::Result<()> {
    let site = site!("wait for room to write");
    let waiting = waits::begin(site);
    let outcome = tasks::at(site, stream.writable()).await;
    waits::end(waiting);
    outcome
}

/// Writes what is left, then waits for the peer to close, so that unread input does not destroy the last words.
async fn say_goodbye(stream: &Stream, mut outbox: Outbox) -> io::Result<()> {
    while outbox.flush(|slices| stream.try_write_vectored(slices))? == Flushed::Blocked {
        writable(stream).await?;
    }
    stream.shutdown_write()?;
    let mut ignored = [0; 1024];
    loop {
        tasks::at(site!("wait for the goodbye to be read"), stream.readable()).await?;
        match stream.try_read(&mut ignored) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
