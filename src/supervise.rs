//! Named threads, and what a panic in each means. Every thread of the server begins here, so that profiles know it.

use std::io;
use std::thread::{Builder, JoinHandle};

use crate::profile::threads::{Creation, Registration};

/// Starts a named thread. Names have at most 15 bytes, the part the system shows.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    let creation = Creation::here();
    #[expect(clippy::disallowed_methods, reason = "this is where threads are started")]
    Builder::new().name(name.to_owned()).spawn(move || {
        let _registration = creation.enter();
        run()
    })
}

/// The same for the thread that the process began with, which keeps what this returns.
#[must_use]
pub fn enter_main() -> Registration {
    Creation::by_system().enter()
}
