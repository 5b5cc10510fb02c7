//! Which events are logged: levels per module, movable at run time.

use std::fmt;
use std::str::FromStr;
use std::sync::{PoisonError, RwLock};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;

use super::SettingError;

/// From silent to loud; raising a level is a step to the right.
const LADDER: [LevelFilter; 6] = [
    LevelFilter::OFF,
    LevelFilter::ERROR,
    LevelFilter::WARN,
    LevelFilter::INFO,
    LevelFilter::DEBUG,
    LevelFilter::TRACE,
];

/// A level for everything and exceptions per module, as in `info,superchat::store=debug`.
///
/// Level names are `error`, `warn`, `info`, `debug`, `trace` and `off`, in any case; what is not said is `info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    default: LevelFilter,
    modules: Vec<(String, LevelFilter)>,
    /// Steps by which signals moved all levels; kept apart so that raising and lowering cancel exactly.
    shift: isize,
}

impl Default for Levels {
    fn default() -> Self {
        Self { default: LevelFilter::INFO, modules: Vec::new(), shift: 0 }
    }
}

impl FromStr for Levels {
    type Err = SettingError;

    /// A word that is neither a level nor `module=level` is an error: a mistyped level must not become a module's name.
    fn from_str(directives: &str) -> Result<Self, SettingError> {
        let mut levels = Self::default();
        for directive in directives.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            match directive.split_once('=') {
                None => levels.default = level(directive)?,
                Some((module, name)) => levels.modules.push((module.trim().to_owned(), level(name.trim())?)),
            }
        }
        Ok(levels)
    }
}

fn level(name: &str) -> Result<LevelFilter, SettingError> {
    const EXPECTED: &str = "error, warn, info, debug, trace or off";
    let known = LADDER.into_iter().find(|level| level.to_string().eq_ignore_ascii_case(name));
    known.ok_or_else(|| SettingError::new("log_level", name, EXPECTED))
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.moved(self.default))?;
        self.modules.iter().try_for_each(|(module, level)| write!(f, ",{module}={}", self.moved(*level)))
    }
}

impl Levels {
    /// One step more talkative; unchanged when everything is at `trace` already.
    pub fn raised(&self) -> Self {
        self.shifted(1)
    }

    /// One step quieter; unchanged when everything is at `error` already, so that errors are never lost this way.
    pub fn lowered(&self) -> Self {
        self.shifted(-1)
    }

    fn shifted(&self, steps: isize) -> Self {
        let next = Self { shift: self.shift + steps, ..self.clone() };
        if next.to_string() == self.to_string() { self.clone() } else { next }
    }

    /// What an operator turned off stays off.
    fn moved(&self, level: LevelFilter) -> LevelFilter {
        let rung = LADDER.iter().position(|known| *known == level).unwrap_or(0);
        if rung == 0 { level } else { LADDER[rung.saturating_add_signed(self.shift).clamp(1, LADDER.len() - 1)] }
    }

    fn targets(&self) -> Targets {
        let modules = self.modules.iter().map(|(module, level)| (module.clone(), self.moved(*level)));
        Targets::new().with_default(self.moved(self.default)).with_targets(modules)
    }

    fn loudest(&self) -> LevelFilter {
        let modules = self.modules.iter().map(|(_, level)| self.moved(*level));
        modules.fold(self.moved(self.default), Ord::max)
    }
}

/// The levels in force. Reading is a shared lock that a writer holds for two moves only, and only when a level changes;
/// events of a level that is off do not even come this far, their call sites remember it.
pub(super) struct Filter {
    state: RwLock<(Levels, Targets)>,
    debug_file: bool,
}

impl Filter {
    /// With `debug_file`, everything down to DEBUG is wanted by somebody, whatever the levels say.
    pub(super) fn new(levels: Levels, debug_file: bool) -> Self {
        let targets = levels.targets();
        Self { state: RwLock::new((levels, targets)), debug_file }
    }

    /// Whether the levels choose an event of this place and severity.
    pub(super) fn chooses(&self, metadata: &Metadata<'_>) -> bool {
        self.read(|_, targets| targets.would_enable(metadata.target(), metadata.level()))
    }

    /// Whether anybody wants this event or span. Spans down to INFO always exist: they carry the session's and the
    /// request's names for whatever is logged inside, and a WARN line needs them at level `warn`, too.
    pub(super) fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let kept_span = metadata.is_span() && *metadata.level() <= Level::INFO;
        kept_span || (self.debug_file && *metadata.level() <= Level::DEBUG) || self.chooses(metadata)
    }

    /// The level below which nothing can be wanted.
    pub(super) fn loudest(&self) -> LevelFilter {
        let floor = if self.debug_file { LevelFilter::DEBUG } else { LevelFilter::INFO };
        self.read(|levels, _| levels.loudest()).max(floor)
    }

    pub(super) fn levels(&self) -> Levels {
        self.read(|levels, _| levels.clone())
    }

    /// Replaces the levels by what `change` makes of them and returns the new ones.
    pub(super) fn change(&self, change: impl FnOnce(&Levels) -> Levels) -> Levels {
        let levels = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let levels = change(&state.0);
            *state = (levels.clone(), levels.targets());
            levels
        };
        // Asks this filter again for every call site, so the lock above must be free by now.
        tracing::callsite::rebuild_interest_cache();
        levels
    }

    fn read<T>(&self, look: impl FnOnce(&Levels, &Targets) -> T) -> T {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        look(&state.0, &state.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(directives: &str) -> Levels {
        directives.parse().unwrap()
    }

    #[test]
    fn directives_are_read_in_the_usual_syntax() {
        for (given, meant) in [
            ("", "info"),
            ("WARN", "warn"),
            ("info,superchat::store=debug", "info,superchat::store=debug"),
            (" superchat::net = trace , error,", "error,superchat::net=trace"),
            ("superchat::net=off", "info,superchat::net=off"),
        ] {
            assert_eq!(levels(given).to_string(), meant, "{given:?}");
        }
    }

    #[test]
    fn a_mistyped_level_is_refused() {
        for (given, culprit) in [("inof", "inof"), ("info,superchat=loud", "loud"), ("superchat=", ""), ("3", "3")] {
            let expected = format!("log_level: `{culprit}` is not error, warn, info, debug, trace or off");
            assert_eq!(given.parse::<Levels>().unwrap_err().to_string(), expected, "{given:?}");
        }
    }

    #[test]
    fn raising_and_lowering_cancel_exactly() {
        let start = levels("info,superchat::store=trace,superchat::net=off");
        let raised = start.raised();
        assert_eq!(raised.to_string(), "debug,superchat::store=trace,superchat::net=off");
        assert_eq!(raised.lowered(), start);
    }

    #[test]
    fn moving_stops_at_both_ends() {
        let loudest = (0..9).fold(levels("info"), |levels, _| levels.raised());
        assert_eq!((loudest.to_string().as_str(), loudest.lowered().to_string().as_str()), ("trace", "debug"));
        let quietest = (0..9).fold(levels("info"), |levels, _| levels.lowered());
        assert_eq!((quietest.to_string().as_str(), quietest.raised().to_string().as_str()), ("error", "warn"));
    }
}
