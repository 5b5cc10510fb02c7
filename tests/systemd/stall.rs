//! The watchdog: fed while every shard ticks, and not when one stands still.

use std::fs;
use std::ptr;
use std::time::Duration;

use crate::manager::Manager;
use crate::support::{Server, clock};

/// What the unit asks for, only faster.
const PERIOD: Duration = Duration::from_secs(1);

/// One thread of the server, held still from outside as a debugger does; it goes on when this is dropped.
struct Stalled(libc::pid_t);

impl Stalled {
    fn thread(server: &Server, name: &str) -> Self {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
        let named = |task: &fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap().trim_end() == name;
        let task = tasks.map(Result::unwrap).find(named).unwrap_or_else(|| panic!("no thread {name}"));
        let thread: libc::pid_t = task.file_name().to_str().unwrap().parse().unwrap();
        trace(libc::PTRACE_SEIZE, thread);
        trace(libc::PTRACE_INTERRUPT, thread);
        wait(thread);
        Self(thread)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        trace(libc::PTRACE_DETACH, self.0);
    }
}

#[expect(unsafe_code, reason = "stopping a single thread needs ptrace(2); none of these requests touches our memory")]
fn trace(request: libc::c_uint, thread: libc::pid_t) {
    // SAFETY: the requests used here take no address and no data, and the thread is one of our own child's.
    let result =
        unsafe { libc::ptrace(request, thread, ptr::null_mut::<libc::c_void>(), ptr::null_mut::<libc::c_void>()) };
    assert_eq!(result, 0, "ptrace {request}: {}; it needs the right to debug a child", std::io::Error::last_os_error());
}

#[expect(unsafe_code, reason = "the standard library waits for processes only")]
fn wait(thread: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` outlives the call, which gets a valid pointer to it.
    let waited = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    assert!(waited == thread && libc::WIFSTOPPED(status), "the thread did not stop: {status:#x}");
}

#[test]
fn a_stuck_shard_starves_the_watchdog_until_it_goes_on() {
    let manager = Manager::at_path();
    let micros = PERIOD.as_micros().to_string();
    let server = Server::start(manager.settings().set("server", "shards", 2).environment("WATCHDOG_USEC", &micros));
    for _ in 0..3 {
        let start = clock::instant();
        manager.expect("WATCHDOG");
        assert!(start.elapsed() < PERIOD * 5, "fed too late: {:?}", start.elapsed());
    }
    let stalled = Stalled::thread(&server, "scd-shard-1");
    let starved = clock::poll(Duration::from_secs(20), || {
        manager.forget();
        server.output().contains("the watchdog is not fed any more: shard 1 has not ticked for ").then_some(())
    });
    starved.expect("a stuck shard goes unnoticed");
    manager.forget();
    let silence = std::iter::from_fn(|| manager.hears(PERIOD * 2)).find(|told| told.contains_key("WATCHDOG"));
    assert_eq!(silence, None, "the watchdog is fed beside a stuck shard");
    drop(stalled);
    manager.expect("WATCHDOG");
}
