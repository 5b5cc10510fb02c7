//! What the query of a request for a profile may say, by the rules of Go's handlers.
//!
//! Their leniency is kept where a tool may count on it (a CPU profile takes 30 s when it cannot read `seconds`), and their
//! texts where a person may search for them.

use std::time::Duration;

use super::super::guard::Request;
use super::Trouble;

/// The longest profile that anybody may ask for, in seconds.
pub(super) const SECONDS_MAX: u64 = 300;
/// Of a CPU profile whose length is not said, as in Go.
const CPU_SECONDS: u64 = 30;
/// The kernel's own clock has 250 ticks a second where ours was measured: more samples are asked for than come.
const HZ_MAX: u32 = 250;
const HZ: u32 = 100;

/// How long to record CPU samples.
pub(super) fn cpu_time(request: &Request) -> Result<Duration, Trouble> {
    bounded(positive(request.parameter("seconds").unwrap_or_default()).unwrap_or(CPU_SECONDS))
}

/// How many CPU samples to take per second.
pub(super) fn hz(request: &Request) -> Result<u32, Trouble> {
    let Some(text) = request.parameter("hz") else { return Ok(HZ) };
    let hz = text.parse().ok().filter(|hz| (1..=HZ_MAX).contains(hz));
    hz.ok_or_else(|| Trouble::unreadable(format!("invalid value for \"hz\" - must be 1 to {HZ_MAX}")))
}

/// How long a difference takes; `None` when no difference is asked for.
pub(super) fn delta_time(request: &Request) -> Result<Option<Duration>, Trouble> {
    let Some(text) = request.parameter("seconds").filter(|text| !text.is_empty()) else { return Ok(None) };
    let seconds = positive(text)
        .ok_or_else(|| Trouble::unreadable("invalid value for \"seconds\" - must be a positive integer"))?;
    let time = bounded(seconds)?;
    if debug(request) != 0 {
        return Err(Trouble::unreadable("seconds and debug params are incompatible".to_owned()));
    }
    Ok(Some(time))
}

/// 0 for the binary form, 1 for text, 2 for a longer text where there is one.
pub(super) fn debug(request: &Request) -> i64 {
    number(request, "debug")
}

fn number(request: &Request, name: &str) -> i64 {
    request.parameter(name).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn positive(text: &str) -> Option<u64> {
    // As Go reads it: a signed number of 64 bits.
    text.parse::<i64>().ok().and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0)
}

fn bounded(seconds: u64) -> Result<Duration, Trouble> {
    if seconds <= SECONDS_MAX {
        return Ok(Duration::from_secs(seconds));
    }
    Err(Trouble::unreadable(format!("profile duration exceeds the server's limit of {SECONDS_MAX} seconds")))
}
