//! What every task is doing: where it was spawned, and what it waits for.
//!
//! A task has a slot of two words from the moment it is spawned. Whenever it is polled, the slot says "running", and
//! afterwards what the poll ended in: the number of the [`Site`] noted last. Only the task's own thread writes there, with
//! plain stores; a reader on any other thread walks all slots and disturbs nobody.
//!
//! Requests that wait for an answer have a slot too ([`request`]): nothing is polled for them, the continuation lies in
//! their session.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use foldhash::fast::RandomState;
use pin_project_lite::pin_project;
use tokio::runtime::RuntimeMetrics;
use tokio::task::JoinHandle;

pub(crate) use super::sites::{Site, place, site};
use super::{Frame, Label, Place, Profile, Sample, ValueType, sites, time_nanos};
use crate::clock;

/// Spawns a task on the local runtime of this thread. `place` is `place!()` in the caller.
pub fn spawn_local<F>(place: &'static Site, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    spawn_local_for(0, place, future)
}

/// The same for one session's task; a session has a number above 0.
pub fn spawn_local_for<F>(session: u64, place: &'static Site, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    #[expect(clippy::disallowed_methods, reason = "this is where tasks are registered")]
    tokio::task::spawn_local(tracked(Kind::Task, session, place, future))
}

/// Spawns a task on the runtime of this thread. `place` is `place!()` in the caller.
pub fn spawn<F>(place: &'static Site, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "this is where tasks are registered")]
    tokio::spawn(tracked(Kind::Task, 0, place, future))
}

/// A future for a `JoinSet`, which spawns it. `place` is `place!()` in the caller.
pub fn in_set<F: Future>(place: &'static Site, future: F) -> Tracked<F> {
    tracked(Kind::Task, 0, place, future)
}

/// The future that a runtime is built for (`block_on`): seen as a task, though the runtime does not count it as one.
pub fn root<F: Future>(place: &'static Site, future: F) -> Tracked<F> {
    tracked(Kind::Root, 0, place, future)
}

/// A request of a session that waits at `site`, until what is returned is dropped.
pub fn request(session: u64, place: &'static Site, site: &'static Site) -> Entry {
    let entry = Entry::new(Kind::Request, session, place);
    entry.0.set(site.number);
    entry
}

/// To be called by a future that is about to return `Pending`: what its task waits for. The first call in a poll counts,
/// which is the innermost future's.
pub fn note(site: &'static Site) {
    NOTED.with(|noted| {
        if noted.get() == UNNAMED {
            noted.set(site.number);
        }
    });
}

/// Waits for `future` at `site`.
pub fn at<F: Future>(site: &'static Site, future: F) -> At<F> {
    At { future, site }
}

pin_project! {
    /// See [`at`].
    #[must_use = "futures do nothing unless awaited"]
    pub struct At<F> { #[pin] future: F, site: &'static Site }
}

impl<F: Future> Future for At<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let polled = this.future.poll(context);
        if polled.is_pending() {
            note(this.site);
        }
        polled
    }
}

pin_project! {
    /// A future with a slot.
    #[must_use = "futures do nothing unless awaited"]
    pub struct Tracked<F> { #[pin] future: F, entry: Entry }
}

fn tracked<F: Future>(kind: Kind, session: u64, place: &'static Site, future: F) -> Tracked<F> {
    Tracked { future, entry: Entry::new(kind, session, place) }
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.entry.0.set(RUNNING);
        let outer = NOTED.replace(UNNAMED);
        let polled = this.future.poll(context);
        this.entry.0.set(NOTED.replace(outer));
        polled
    }
}

thread_local! {
    /// What the poll under way has noted so far.
    static NOTED: Cell<u32> = const { Cell::new(UNNAMED) };
}

/// What a slot belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Spawned on a runtime, which counts it.
    Task,
    /// A runtime's own future.
    Root,
    /// A client's request.
    Request,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Task, Self::Root, Self::Request];
}

// Numbers that are no site's.
const FREE: u32 = 0;
const RUNNING: u32 = 1;
/// Waits where nobody noted it.
const UNNAMED: u32 = 2;

/// What is known of one task. Written by one thread at a time.
#[derive(Debug)]
struct Slot {
    /// What it is doing, and since when: a number, above it seconds of [`clock::recent_seconds`].
    doing: AtomicU64,
    /// What does not change while it lives, see [`Owner`].
    owner: AtomicU64,
}

/// Which session, where it began, of which kind, on which thread: 32, 14, 2 and 16 bits.
#[derive(Clone, Copy)]
struct Owner(u64);

impl Owner {
    fn new(kind: Kind, session: u64, place: &Site, thread: u16) -> Self {
        // Session ids are counted up from 1; what a profile shows of the four-billionth is its low half.
        let session = session & u64::from(u32::MAX);
        Self(session | u64::from(place.number) << 32 | (kind as u64) << 46 | u64::from(thread) << 48)
    }

    fn session(self) -> u64 {
        self.0 & u64::from(u32::MAX)
    }

    fn place(self) -> usize {
        (self.0 >> 32) as usize & ((1 << 14) - 1)
    }

    fn kind(self) -> Kind {
        Kind::ALL[(self.0 >> 46 & 3) as usize % Kind::ALL.len()]
    }

    fn thread(self) -> usize {
        (self.0 >> 48) as usize
    }
}

impl Slot {
    const fn free() -> Self {
        Self { doing: AtomicU64::new(0), owner: AtomicU64::new(0) }
    }

    fn set(&self, number: u32) {
        self.doing.store(u64::from(number) | u64::from(clock::recent_seconds()) << 32, Ordering::Release);
    }

    /// Number and seconds, with the owner that they belong to; `None` while the slot is free or changes hands.
    fn look(&self) -> Option<(u32, u32, Owner)> {
        // What is polled all the time may change between two loads, a few times over.
        for _ in 0..16 {
            let doing = self.doing.load(Ordering::Acquire);
            let owner = Owner(self.owner.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            let [number, seconds] =
                [doing & u64::from(u32::MAX), doing >> 32].map(|half| u32::try_from(half).unwrap_or_default());
            if number == FREE {
                return None;
            }
            if self.doing.load(Ordering::Relaxed) == doing {
                return Some((number, seconds, owner));
            }
        }
        None
    }
}

/// A slot taken; given back when dropped.
#[derive(Debug)]
pub struct Entry(&'static Slot);

impl Entry {
    fn new(kind: Kind, session: u64, place: &'static Site) -> Self {
        let (slot, thread) = LOCAL.with_borrow_mut(|local| (local.take(), local.thread));
        // A reader that sees the new owner sees the slot free or taken by it.
        fence(Ordering::Release);
        slot.owner.store(Owner::new(kind, session, place, thread).0, Ordering::Relaxed);
        slot.set(RUNNING);
        Self(slot)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.set(FREE);
        // What ends with its thread goes where other threads find it.
        if LOCAL.try_with(|local| local.borrow_mut().give_back(self.0)).is_err() {
            lock(&SPARE).push(self.0);
        }
    }
}

/// Slots come in pages, which are never given back: there are as many as there were tasks at once.
const PAGE: usize = 256;

/// Free slots that a thread keeps to itself.
const KEEP_MAX: usize = 2 * PAGE;

static PAGES: Mutex<Vec<&'static [Slot; PAGE]>> = Mutex::new(Vec::new());
/// Free slots of threads that ended, or that free what others took.
static SPARE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
static THREADS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::new(Local::new());
}

/// The free slots at hand on one thread.
struct Local {
    free: Vec<&'static Slot>,
    /// Position in [`THREADS`].
    thread: u16,
}

impl Local {
    fn new() -> Self {
        let current = std::thread::current();
        let name = current.name().unwrap_or("unnamed");
        let mut threads = lock(&THREADS);
        let known = threads.iter().position(|known| *known == name);
        let thread = known.unwrap_or_else(|| {
            threads.push(Box::leak(name.into()));
            threads.len() - 1
        });
        Self { free: Vec::new(), thread: u16::try_from(thread).unwrap_or(u16::MAX) }
    }

    fn take(&mut self) -> &'static Slot {
        loop {
            match self.free.pop() {
                Some(slot) => return slot,
                None => self.free = refill(),
            }
        }
    }

    /// Threads that free what others took pass it on, so that those find it again.
    fn give_back(&mut self, slot: &'static Slot) {
        self.free.push(slot);
        if self.free.len() >= KEEP_MAX {
            lock(&SPARE).extend(self.free.drain(KEEP_MAX - PAGE..));
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        lock(&SPARE).append(&mut self.free);
    }
}

/// A page of free slots.
fn refill() -> Vec<&'static Slot> {
    let mut spare = lock(&SPARE);
    let rest = spare.len().saturating_sub(PAGE);
    let mut free = spare.split_off(rest);
    drop(spare);
    if free.is_empty() {
        let page: &'static [Slot; PAGE] = Box::leak(Box::new([const { Slot::free() }; PAGE]));
        lock(&PAGES).push(page);
        free.extend(page);
    }
    free
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding one of these, and lists of slots are never half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One task as a look from outside finds it.
#[derive(Debug, Clone, Copy)]
pub struct TaskInfo {
    /// Unlike that of everything else alive at the same time; may be that of something that has ended.
    pub id: usize,
    pub kind: Kind,
    /// Name of the thread that it began on.
    pub thread: &'static str,
    /// The session it serves.
    pub session: Option<u64>,
    /// Where it was spawned, or which handler the request waits for.
    pub begun_at: &'static Place,
    pub doing: Doing,
    /// Whole seconds that it has been waiting, or running, without being looked at; up to one more.
    pub seconds: u32,
}

/// What a task is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doing {
    /// Or not polled yet.
    Running,
    /// `None` where a future noted nothing.
    Waiting(Option<&'static Site>),
}

/// Everything registered, as it is now. Ten thousand take about a millisecond; no task waits for it.
pub fn snapshot() -> Vec<TaskInfo> {
    let pages = lock(&PAGES).clone();
    let slots = pages.into_iter().flatten().enumerate();
    let looks: Vec<_> = slots.filter_map(|(place, slot)| Some((place, slot.look()?))).collect();
    // Only now: whatever a slot names was known before it was named.
    let (sites, threads, now) = (sites::all(), lock(&THREADS).clone(), clock::recent_seconds());
    let site = |number: usize| sites.get(number.checked_sub(sites::FIRST as usize)?).copied();
    looks
        .into_iter()
        .filter_map(|(place, (number, since, owner))| {
            Some(TaskInfo {
                id: place + 1,
                kind: owner.kind(),
                thread: threads.get(owner.thread()).copied().unwrap_or_default(),
                session: Some(owner.session()).filter(|session| *session > 0),
                begun_at: &site(owner.place())?.place,
                doing: if number == RUNNING { Doing::Running } else { Doing::Waiting(site(number as usize)) },
                seconds: now.saturating_sub(since),
            })
        })
        .collect()
}

/// What counts as a goroutine: tasks by what they wait for and where they were spawned, and clients' requests by what they
/// wait for and their handlers. Threads are not in it.
pub fn profile() -> Profile {
    let before = alive();
    let tasks = snapshot();
    let registered = tasks.iter().filter(|task| task.kind == Kind::Task).count();
    // What came or went meanwhile is no library's.
    let foreign = alive().min(before).saturating_sub(registered);
    let mut counts: HashMap<(Vec<Frame>, &'static str), i64, RandomState> = HashMap::default();
    for task in tasks {
        *counts.entry((task.stack(), task.thread)).or_default() += 1;
    }
    if foreign > 0 {
        counts.insert(
            (vec![Frame::Name("tasks that libraries spawned")], ""),
            i64::try_from(foreign).unwrap_or(i64::MAX),
        );
    }
    let sample = |((stack, thread), count): ((Vec<Frame>, &'static str), i64)| Sample {
        stack,
        values: vec![count],
        labels: Some(("thread", Label::Text(thread.to_owned()))).filter(|_| !thread.is_empty()).into_iter().collect(),
    };
    let mut samples: Vec<_> = counts.into_iter().map(sample).collect();
    samples.sort_unstable_by(|a, b| b.values.cmp(&a.values));
    Profile {
        sample_types: &[GOROUTINES],
        default_sample_type: GOROUTINES.kind,
        period_type: GOROUTINES,
        period: 1,
        time_nanos: time_nanos(),
        duration_nanos: 0,
        samples,
        drop_frames: "",
        comments: Vec::new(),
    }
}

const GOROUTINES: ValueType = ValueType { kind: "goroutine", unit: "count" };

impl TaskInfo {
    /// Leaf first: what it waits for, where, and where it began.
    #[must_use]
    pub fn stack(&self) -> Vec<Frame> {
        let (what, at) = match self.doing {
            Doing::Running => ("running", None),
            Doing::Waiting(None) => ("wait", None),
            Doing::Waiting(Some(site)) => (site.what, Some(Frame::Place(&site.place))),
        };
        [Some(Frame::Name(what)), at, Some(Frame::Place(self.begun_at))].into_iter().flatten().collect()
    }
}

static RUNTIMES: Mutex<Vec<(u64, RuntimeMetrics)>> = Mutex::new(Vec::new());

/// Counts a runtime's tasks in, until what is returned is dropped: what it runs beyond the registered is shown as a number.
pub fn watch(runtime: RuntimeMetrics) -> Watched {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    lock(&RUNTIMES).push((id, runtime));
    Watched(id)
}

/// See [`watch`].
#[derive(Debug)]
#[must_use = "a runtime is watched until this is dropped"]
pub struct Watched(u64);

impl Drop for Watched {
    fn drop(&mut self) {
        lock(&RUNTIMES).retain(|(id, _)| *id != self.0);
    }
}

/// Tasks alive on all runtimes watched.
fn alive() -> usize {
    lock(&RUNTIMES).iter().map(|(_, runtime)| runtime.num_alive_tasks()).sum()
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::AtomicBool;

    use tokio::runtime::{Builder, LocalRuntime};
    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    use super::*;

    fn runtime() -> LocalRuntime {
        Builder::new_current_thread().build_local(Default::default()).unwrap()
    }

    /// What is there that began at `place`.
    fn begun_at(place: &'static Site) -> Vec<TaskInfo> {
        snapshot().into_iter().filter(|task| *task.begun_at == place.place).collect()
    }

    fn check(place: &'static Site, expected: &[Doing]) {
        let found: Vec<_> = begun_at(place).iter().map(|task| task.doing).collect();
        assert_eq!(found, expected);
    }

    /// Lets every task run until it waits.
    async fn settle() {
        for _ in 0..3 {
            yield_now().await;
        }
    }

    #[test]
    fn a_task_is_seen_from_its_spawning_to_its_end() {
        let place = place!();
        let wait = site!("wait for the test");
        runtime().block_on(async {
            let (go, gone) = oneshot::channel();
            let task = spawn_local_for(7, place, async move {
                check(place, &[Doing::Running]);
                at(wait, gone).await.unwrap();
            });
            settle().await;
            check(place, &[Doing::Waiting(Some(wait))]);
            let seen = begun_at(place)[0];
            assert_eq!((seen.kind, seen.session), (Kind::Task, Some(7)));
            assert_eq!(seen.thread, std::thread::current().name().unwrap());
            let stack = [Frame::Name("wait for the test"), Frame::Place(&wait.place), Frame::Place(&place.place)];
            assert_eq!(seen.stack(), stack);
            go.send(()).unwrap();
            task.await.unwrap();
        });
        check(place, &[]);
    }

    #[test]
    fn the_innermost_wait_is_the_one_that_counts() {
        let (place, inner) = (place!(), site!("wait inside"));
        runtime().block_on(async {
            spawn_local(place, at(site!("wait outside"), at(inner, pending::<()>())));
            settle().await;
            check(place, &[Doing::Waiting(Some(inner))]);
        });
    }

    #[test]
    fn a_wait_that_nobody_noted_has_no_name_even_after_one_that_has() {
        let (place, named) = (place!(), site!("wait once"));
        runtime().block_on(async {
            spawn_local(place, async {
                at(named, yield_now()).await;
                pending::<()>().await;
            });
            settle().await;
            check(place, &[Doing::Waiting(None)]);
            assert_eq!(begun_at(place)[0].stack(), [Frame::Name("wait"), Frame::Place(&place.place)]);
        });
    }

    #[test]
    fn a_task_that_panics_or_is_aborted_leaves_nothing_behind() {
        let (place, next) = (place!(), place!());
        runtime().block_on(async {
            let failing = spawn_local(place, async {
                at(site!("wait, then panic"), yield_now()).await;
                panic!("as the test wants it");
            });
            let aborted = spawn_local(place, pending::<()>());
            settle().await;
            aborted.abort();
            assert!(failing.await.unwrap_err().is_panic() && aborted.await.unwrap_err().is_cancelled());
            check(place, &[]);
            spawn_local(next, pending::<()>());
            settle().await;
            check(next, &[Doing::Waiting(None)]);
        });
        check(next, &[]);
    }

    #[test]
    fn a_runtimes_own_future_is_seen_and_is_no_task() {
        let place = place!();
        runtime().block_on(root(place, async {
            check(place, &[Doing::Running]);
            assert_eq!(begun_at(place)[0].kind, Kind::Root);
        }));
    }

    #[test]
    fn a_request_is_seen_until_it_is_answered() {
        let (handler, writer) = (place!(), site!("wait for the writer"));
        let requests: Vec<_> = (1..=3).map(|session| request(session, handler, writer)).collect();
        check(handler, &[Doing::Waiting(Some(writer)); 3]);
        assert!(begun_at(handler).iter().all(|request| request.kind == Kind::Request));
        drop(requests);
        check(handler, &[]);
    }

    #[test]
    fn what_an_owner_is_made_of_comes_out_again() {
        let place = place!();
        for kind in Kind::ALL {
            for (session, seen) in [(0, 0), (1, 1), (u64::from(u32::MAX), u64::from(u32::MAX)), (1 << 32 | 5, 5)] {
                let owner = Owner::new(kind, session, place, u16::MAX);
                assert_eq!((owner.kind(), owner.session()), (kind, seen));
                assert_eq!((owner.place(), owner.thread()), (place.number as usize, usize::from(u16::MAX)));
            }
        }
    }

    #[test]
    fn slots_are_used_again_on_whatever_thread_they_were_given_back() {
        let place = place!();
        let take = |count| (0..count).map(|_| Entry::new(Kind::Task, 0, place)).collect::<Vec<_>>();
        let used = || lock(&PAGES).len() * PAGE;
        let before = used();
        for _ in 0..50 {
            // Taken here, given back on a thread that ends, and on one that goes on.
            let (here, there) = (take(1000), take(1000));
            std::thread::scope(|scope| scope.spawn(move || drop(there)).join().unwrap());
            drop(here);
        }
        assert!(used() - before <= 2000 + 2 * KEEP_MAX + PAGE, "{} slots for 2000 at once", used() - before);
        check(place, &[]);
    }

    #[test]
    fn a_look_finds_all_that_stands_and_nothing_mixed_up_while_others_come_and_go() {
        const STANDING: usize = 1000;
        let (standing, writer) = (place!(), site!("stands"));
        let (fleeting, reader) = (place!(), site!("comes and goes"));
        let over = AtomicBool::new(false);
        let _standing: Vec<_> = (0..STANDING).map(|_| request(1, standing, writer)).collect();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let some: Vec<_> = (0..300).map(|_| request(2, fleeting, reader)).collect();
                        some.iter().for_each(|entry| entry.0.set(reader.number));
                    }
                });
            }
            let mut fleeting_seen = 0;
            for _ in 0..300 {
                let seen = snapshot();
                let (stands, goes): (Vec<&TaskInfo>, Vec<&TaskInfo>) =
                    seen.iter().partition(|task| std::ptr::eq(task.begun_at, &standing.place));
                assert_eq!(stands.len(), STANDING);
                assert!(
                    stands.iter().all(|task| task.doing == Doing::Waiting(Some(writer)) && task.session == Some(1))
                );
                // New ones are "running" until they say otherwise.
                let whole = |task: &&TaskInfo| {
                    task.session == Some(2) && matches!(task.doing, Doing::Running)
                        || task.doing == Doing::Waiting(Some(reader))
                };
                assert!(goes.iter().all(whole), "{goes:?}");
                fleeting_seen += goes.len();
            }
            over.store(true, Ordering::Relaxed);
            assert!(fleeting_seen > 0, "nothing came and went");
        });
    }

    #[test]
    fn ten_thousand_tasks_are_looked_at_in_less_than_50_ms() {
        let (place, wait) = (place!(), site!("wait for ever"));
        runtime().block_on(async {
            for session in 1..=10_000 {
                spawn_local_for(session, place, at(wait, pending::<()>()));
            }
            while begun_at(place).iter().any(|task| task.doing == Doing::Running) {
                yield_now().await;
            }
            // The best of a few: other programs may have the processor in one of them.
            let times = (0..10).map(|_| {
                let began = clock::monotonic();
                let profile = profile();
                let took = clock::monotonic() - began;
                let is_theirs = |sample: &&Sample| sample.stack.last() == Some(&Frame::Place(&place.place));
                assert_eq!(profile.samples.iter().find(is_theirs).unwrap().values, [10_000]);
                took
            });
            let best = times.min().unwrap();
            assert!(best.as_millis() < 50, "{best:?}");
            println!("10,000 tasks: {best:?}");
        });
    }

    #[test]
    fn tasks_that_nobody_registered_show_as_a_number() {
        let foreign = || {
            let samples = profile().samples;
            let name = [Frame::Name("tasks that libraries spawned")];
            samples.into_iter().find(|sample| sample.stack == name).map(|sample| sample.values[0])
        };
        let runtime = runtime();
        let watched = watch(runtime.metrics());
        runtime.block_on(async {
            spawn_local(place!(), pending::<()>());
            settle().await;
            assert_eq!(foreign(), None);
            for _ in 0..3 {
                #[expect(clippy::disallowed_methods, reason = "as a library does it")]
                tokio::task::spawn_local(pending::<()>());
            }
            assert_eq!(foreign(), Some(3));
        });
        drop(watched);
        assert_eq!(foreign(), None);
    }
}
