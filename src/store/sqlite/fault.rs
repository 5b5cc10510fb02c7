//! When the storage fails: what kind of failure it is, and how often it is worth a line in the log.

use std::time::Duration;

use rusqlite::{Connection, Error, ErrorCode};

/// A repeated failure is logged once in this time; clients and metrics hear of every one.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Kinds of storage failures, as metrics count them (`superchat_db_errors_total`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Another program holds the file.
    Busy,
    /// The disk, or the quota, is used up.
    Full,
    /// Reading or writing failed, or is not permitted.
    Io,
    /// The file is damaged.
    Corrupt,
    /// A statement the file should have allowed.
    Other,
}

impl Fault {
    /// Every kind, for those who count them.
    pub const ALL: [Self; 5] = [Self::Busy, Self::Full, Self::Io, Self::Corrupt, Self::Other];

    /// The value of the metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Full => "full",
            Self::Io => "io",
            Self::Corrupt => "corrupt",
            Self::Other => "other",
        }
    }

    pub(super) fn of(error: &Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt,
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed,
            ) => Self::Io,
            _ => Self::Other,
        }
    }
}

/// Damaged pages must not stay in a connection's cache: once the file can be read well again, it is.
pub(super) fn forget_damage(conn: &Connection, fault: Fault) {
    if fault == Fault::Corrupt {
        // Where even this fails, the next statement fails too, and tries again.
        conn.execute_batch("PRAGMA shrink_memory").ok();
    }
}

/// Lets the first of a series of failures into the log, and then one per [`LOG_INTERVAL`].
#[derive(Debug, Default)]
pub(super) struct Throttle {
    logged_at: Option<Duration>,
    unlogged: u64,
}

impl Throttle {
    /// How many were passed over since the last line, if it is time for a line now.
    pub(super) fn admit(&mut self, now: Duration) -> Option<u64> {
        if self.logged_at.is_some_and(|at| now.saturating_sub(at) < LOG_INTERVAL) {
            self.unlogged += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_of_failures_is_logged_now_and_then_and_counted() {
        let mut throttle = Throttle::default();
        let admitted = [0, 1, 4, 5, 6, 11].map(|seconds| throttle.admit(Duration::from_secs(seconds)));
        assert_eq!(admitted, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
