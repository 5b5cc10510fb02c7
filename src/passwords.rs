//! Password hashing on threads of its own: bcrypt on a shard would stall every session there, and a login flood must not
//! take more of the machine than these threads (BEHAVIOUR.md 2.1).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;

use tracing::error;

use crate::profile::tasks::site;
use crate::profile::waits::{self, Begun};
use crate::store::{Busy, Ticket};
use crate::supervise;

/// bcrypt's cost for new hashes: what files in the field hold.
pub const COST: u32 = 10;

/// Jobs waiting per hashing thread: at 50 ms each, the last one waits 5 s, as long as a client would.
const JOBS_PER_THREAD_MAX: usize = 100;

/// What is to be computed. The secret is what the client sent, itself a hash.
#[derive(Debug)]
pub enum HashJob {
    Hash {
        secret: Box<[u8]>,
    },
    /// `stored` is bcrypt; `None` for an account that does not exist, which costs as much and never matches.
    Verify {
        secret: Box<[u8]>,
        stored: Option<Box<str>>,
    },
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOutcome {
    Hashed(Box<str>),
    Verified(bool),
    /// The queue is full.
    Busy,
    Failed,
}

/// Where shards hand in jobs; the outcome arrives at the ticket's shard.
pub trait Passwords: Send + Sync {
    /// Never blocks.
    ///
    /// # Errors
    /// [`Busy`] when too many jobs wait.
    fn submit(&self, ticket: Ticket, job: HashJob) -> Result<(), Busy>;
}

/// Receives outcomes.
pub trait DeliverHash: Send + Sync {
    fn hashed(&self, ticket: Ticket, outcome: HashOutcome);
}

/// A job in the queue.
struct Job {
    ticket: Ticket,
    job: HashJob,
    waiting: Option<Box<Begun>>,
}

/// The hashing threads.
#[derive(Debug)]
pub struct Pool {
    jobs: waits::Mutex<Option<SyncSender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Starts `threads` hashing threads.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(threads: usize, deliver: &Arc<dyn DeliverHash>) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(threads * JOBS_PER_THREAD_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        let spawn = |index| {
            let (receiver, deliver) = (Arc::clone(&receiver), Arc::clone(deliver));
            supervise::spawn(&format!("scd-password-{index}"), move || work(&receiver, &*deliver))
        };
        let threads = (0..threads).map(spawn).collect::<Result<_, _>>()?;
        Ok(Self { jobs: waits::Mutex::new(Some(sender)), threads: Mutex::new(threads) })
    }

    /// Takes no more jobs and waits for the threads to finish the ones they have.
    pub fn stop(&self) {
        self.jobs.lock().take();
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                error!("a password thread panicked");
            }
        }
    }
}

impl Passwords for Pool {
    fn submit(&self, ticket: Ticket, job: HashJob) -> Result<(), Busy> {
        // Before the lock, whose own wait is not to be part of anybody else's.
        let waiting = waits::begin(site!("wait for the password pool"));
        let jobs = self.jobs.lock();
        jobs.as_ref().ok_or(Busy)?.try_send(Job { ticket, job, waiting }).map_err(|_| Busy)
    }
}

/// What an unknown account is compared with: made after the start, so that no text in the binary matches it.
static DECOY: LazyLock<String> =
    LazyLock::new(|| bcrypt::hash(std::process::id().to_string(), COST).unwrap_or_default());

fn work(jobs: &Mutex<Receiver<Job>>, deliver: &dyn DeliverHash) {
    // Before the first job, so that none takes longer for it.
    let decoy = DECOY.as_str();
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { ticket, job, waiting }) = next else { return };
        waits::end(waiting);
        let outcome = catch_unwind(AssertUnwindSafe(|| compute(job, decoy))).unwrap_or_else(|_| {
            error!("password hashing panicked");
            HashOutcome::Failed
        });
        deliver.hashed(ticket, outcome);
    }
}

/// A secret's hash in the form that the field's files hold. Takes some 50 ms; `None` when it fails, which is logged.
#[must_use]
pub fn hash(secret: &[u8]) -> Option<Box<str>> {
    let parts = bcrypt::hash_with_result(secret, COST).inspect_err(|error| error!(%error, "password hashing failed"));
    Some(parts.ok()?.format_for_version(bcrypt::Version::TwoA).into())
}

fn compute(job: HashJob, decoy: &str) -> HashOutcome {
    match job {
        HashJob::Hash { secret } => hash(&secret).map_or(HashOutcome::Failed, HashOutcome::Hashed),
        HashJob::Verify { secret, stored: Some(stored) } => {
            HashOutcome::Verified(bcrypt::verify(&secret[..], &stored).unwrap_or(false))
        }
        HashJob::Verify { secret, stored: None } => {
            let _same_work = bcrypt::verify(&secret[..], decoy);
            HashOutcome::Verified(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Box<[u8]> {
        text.as_bytes().into()
    }

    #[test]
    fn what_was_hashed_verifies_and_nothing_else_does() {
        let HashOutcome::Hashed(stored) = compute(HashJob::Hash { secret: secret("abc") }, "") else { panic!() };
        assert!(stored.starts_with("$2a$10$"), "{stored}");
        let verify = |text, stored| compute(HashJob::Verify { secret: secret(text), stored }, &stored_decoy());
        assert_eq!(verify("abc", Some(stored.clone())), HashOutcome::Verified(true));
        assert_eq!(verify("abd", Some(stored)), HashOutcome::Verified(false));
        assert_eq!(verify("abc", None), HashOutcome::Verified(false));
        assert_eq!(verify("abc", Some("not bcrypt".into())), HashOutcome::Verified(false));
    }

    fn stored_decoy() -> String {
        bcrypt::hash("decoy", 4).unwrap()
    }
}
