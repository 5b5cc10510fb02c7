//! Named threads, and what a panic in each means.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a named thread. Names have at most 15 bytes, the part the system shows.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(run)
}
