//! Whose request a thread is working on, so that every event on the way says so without being told.
//!
//! A span per frame would cost an allocation and a registry's locks for every frame, logged or not. This costs a few
//! moves per frame; an event that is logged reads it.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;

use super::peer;
use super::record::{Fields, Value};

/// One request and whose it is.
#[derive(Clone, Debug)]
pub struct Context {
    /// Number of the session.
    pub session: u64,
    /// Number of the frame: the correlation id.
    pub request: u64,
    /// The nickname, once there is one.
    pub user: Option<Arc<[u8]>>,
    /// The place the request is about, once that is known.
    pub channel: Option<u64>,
    /// Where the client is.
    pub remote: IpAddr,
}

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// From here on, until the guard goes, what this thread logs belongs to `context`.
pub fn enter(context: Context) -> Entered {
    CURRENT.replace(Some(context));
    Entered { _of_this_thread: PhantomData }
}

/// The request at hand is about this place. Without a request nothing happens.
pub fn about_channel(channel: u64) {
    CURRENT.with_borrow_mut(|current| {
        if let Some(context) = current {
            context.channel = Some(channel);
        }
    });
}

/// Ends what [`enter`] began.
#[derive(Debug)]
#[must_use = "what is logged belongs to the request only as long as this lives"]
pub struct Entered {
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.replace(None);
    }
}

/// The context of this thread as fields of an event.
pub(super) fn fields() -> Option<Fields> {
    // A thread on its last legs has none.
    CURRENT.try_with(|current| current.borrow().as_ref().map(Context::fields)).ok().flatten()
}

impl Context {
    fn fields(&self) -> Fields {
        let user = self.user.as_ref().map(|user| Value::Text(String::from_utf8_lossy(user).into_owned()));
        let named = [
            ("session", Some(Value::Unsigned(self.session))),
            ("request", Some(Value::Unsigned(self.request))),
            ("user", user),
            ("channel", self.channel.map(Value::Unsigned)),
            ("remote", Some(Value::Text(peer(self.remote).to_string()))),
        ];
        Fields::own("", named.into_iter().filter_map(|(name, value)| Some((name, value?))))
    }
}
