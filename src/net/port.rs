//! A public port on a thread of its own: how it starts, accepts, lets nobody in any more, and ends.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::FAREWELL;
use crate::supervise;

/// Pause after a failed accept, as without descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// A port, open until it is stopped.
pub struct Port {
    name: &'static str,
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// What its thread waits for.
#[derive(Debug, Default)]
pub(super) struct Stop {
    accepting: Notify,
    serving: Notify,
}

impl Port {
    /// Starts a thread that serves the port until it is stopped; `on_panic` is called should it end by itself.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(
        name: &'static str,
        thread: &str,
        on_panic: Box<dyn FnOnce() + Send>,
        serve: impl FnOnce(&Stop) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let stop: Arc<Stop> = Arc::default();
        let stopped = Arc::clone(&stop);
        let thread = supervise::spawn(thread, move || {
            let served = catch_unwind(AssertUnwindSafe(|| serve(&stopped)));
            if let Err(error) = served.unwrap_or(Err(io::ErrorKind::Other.into())) {
                warn!(%error, "the {name} port ended");
                on_panic();
            }
        })?;
        Ok(Self { name, stop, thread })
    }

    /// Lets nobody in any more. Sessions go on.
    pub fn stop_accepting(&self) {
        self.stop.accepting.notify_one();
    }

    /// Waits a moment for clients whose sessions have ended, then closes what is left.
    pub fn stop(self) {
        self.stop_accepting();
        self.stop.serving.notify_one();
        if self.thread.join().is_err() {
            warn!("the thread of the {} port panicked", self.name);
        }
    }
}

impl Stop {
    /// Hands each connection that comes to `take`, which may add a task for it, until the port is to be closed.
    ///
    /// # Errors
    /// When the listener cannot be watched.
    pub(super) async fn serve(
        &self,
        listener: TcpListener,
        take: impl Fn(&mut JoinSet<()>, TcpStream, SocketAddr),
    ) -> io::Result<()> {
        let mut connections = JoinSet::new();
        tokio::select! {
            biased;
            () = self.accepting.notified() => {}
            outcome = accept(listener, &mut connections, take) => return outcome,
        }
        self.serving.notified().await;
        if timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await.is_err() {
            debug!("some clients did not leave in time");
        }
        Ok(())
    }
}

async fn accept(
    listener: TcpListener,
    connections: &mut JoinSet<()>,
    take: impl Fn(&mut JoinSet<()>, TcpStream, SocketAddr),
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => take(connections, stream, peer),
            Err(error) => {
                warn!(%error, "Accept error: {error}");
                sleep(RETRY).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}
