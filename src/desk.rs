//! Requests to the store from outside the shards: by the SSH port and by the operator's socket.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::oneshot;

use crate::store::{Answer, Batch, Busy, Command, Deliver, Event, Query, Refusal, Store, Submission, Ticket};

/// The shard of a ticket that belongs to no shard.
const OUTSIDE: usize = usize::MAX;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DeskError {
    /// The queue is full; nothing was done.
    #[error("the server is busy")]
    Busy,
    /// Nothing of the command was stored.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The store ended first.
    #[error("the server is stopping")]
    Gone,
}

impl From<Busy> for DeskError {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

/// Passes on to the shards what is theirs, and to whoever waits here what was asked here.
pub struct Desk {
    shards: Arc<dyn Deliver>,
    next: AtomicU64,
    /// How many wait: the cheap look before the lock.
    open: AtomicUsize,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Reply>>>,
}

enum Reply {
    Outcome(Result<Event, Refusal>),
    Answer(Answer),
}

impl Desk {
    /// A desk in front of `shards`.
    pub fn new(shards: Arc<dyn Deliver>) -> Self {
        Self { shards, next: AtomicU64::new(0), open: AtomicUsize::new(0), waiting: Mutex::default() }
    }

    /// What became of a write, once it is durable and every shard is bound to hear of it.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn submit(&self, store: &dyn Store, command: Command) -> Result<Event, DeskError> {
        match self.request(|ticket| store.submit(Submission { ticket, command })).await? {
            Reply::Outcome(result) => result.map_err(DeskError::Refused),
            Reply::Answer(_) => Err(DeskError::Gone),
        }
    }

    /// The answer to a read.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn ask(&self, store: &dyn Store, query: Query) -> Result<Answer, DeskError> {
        match self.request(|ticket| store.ask(ticket, query)).await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Outcome(_) => Err(DeskError::Gone),
        }
    }

    async fn request(&self, send: impl FnOnce(Ticket) -> Result<(), Busy>) -> Result<Reply, DeskError> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        self.open.fetch_add(1, Ordering::Release);
        self.lock().insert(token, sender);
        if let Err(busy) = send(Ticket { shard: OUTSIDE, token }) {
            self.take(token);
            return Err(busy.into());
        }
        reply.await.map_err(|_| DeskError::Gone)
    }

    fn take(&self, token: u64) -> Option<oneshot::Sender<Reply>> {
        let waiting = self.lock().remove(&token);
        if waiting.is_some() {
            self.open.fetch_sub(1, Ordering::Release);
        }
        waiting
    }

    fn reply(&self, token: u64, reply: Reply) {
        if let Some(sender) = self.take(token) {
            // Whoever asked may have left.
            sender.send(reply).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Reply>>> {
        // Nothing panics while holding the lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deliver for Desk {
    fn committed(&self, batch: Batch) {
        self.shards.committed(Arc::clone(&batch));
        // Whoever asked had counted itself before its command could be committed.
        if self.open.load(Ordering::Acquire) == 0 {
            return;
        }
        for outcome in batch.iter() {
            if let Some(Ticket { shard: OUTSIDE, token }) = outcome.ticket {
                self.reply(token, Reply::Outcome(outcome.result.clone()));
            }
        }
    }

    fn answered(&self, ticket: Ticket, answer: Answer) {
        match ticket {
            Ticket { shard: OUTSIDE, token } => self.reply(token, Reply::Answer(answer)),
            _ => self.shards.answered(ticket, answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UserId;
    use crate::store::Outcome;

    #[derive(Default)]
    struct Shards(Mutex<(usize, Vec<Ticket>)>);

    impl Deliver for Shards {
        fn committed(&self, _: Batch) {
            self.0.lock().unwrap().0 += 1;
        }

        fn answered(&self, ticket: Ticket, _: Answer) {
            self.0.lock().unwrap().1.push(ticket);
        }
    }

    struct Instant<'a>(&'a Mutex<Vec<Ticket>>);

    impl Store for Instant<'_> {
        fn submit(&self, submission: Submission) -> Result<(), Busy> {
            self.0.lock().unwrap().push(submission.ticket);
            Ok(())
        }

        fn ask(&self, _: Ticket, _: Query) -> Result<(), Busy> {
            Err(Busy)
        }
    }

    #[tokio::test]
    async fn each_gets_its_own_reply_and_the_shards_everything_else() {
        let shards = Arc::new(Shards::default());
        let desk = Desk::new(Arc::clone(&shards) as _);
        let tickets = Mutex::default();
        let store = Instant(&tickets);
        let command = || Command::SignIn { user: UserId(1), flags: 0 };
        let user = |user| Ok(Event::PasswordSet { user: UserId(user) });
        let (first, second, ()) = tokio::join!(desk.submit(&store, command()), desk.submit(&store, command()), async {
            let asked = tickets.lock().unwrap().clone();
            let mine = Ticket { shard: 0, token: asked[0].token };
            let outcome = |ticket, result| Outcome { ticket: Some(ticket), result };
            let batch = [outcome(asked[1], user(2)), outcome(mine, user(7)), outcome(asked[0], Err(Refusal::NotYours))];
            desk.committed(batch.into_iter().collect());
            desk.answered(mine, Answer::Failed);
        });
        assert_eq!(first.unwrap_err(), DeskError::Refused(Refusal::NotYours));
        assert!(matches!(second, Ok(Event::PasswordSet { user: UserId(2) })));
        let heard = shards.0.lock().unwrap();
        assert_eq!((heard.0, heard.1.len()), (1, 1));
        assert_eq!(desk.open.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_full_queue_leaves_nobody_waiting() {
        let desk = Desk::new(Arc::new(Shards::default()));
        let tickets = Mutex::default();
        let asked = desk.ask(&Instant(&tickets), Query::SshKeys { user: UserId(1) }).await;
        assert_eq!(asked.unwrap_err(), DeskError::Busy);
        assert!(desk.lock().is_empty());
    }
}
