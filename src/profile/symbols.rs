//! Names and lines for addresses, from the debug information of the program and its libraries.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::Frame;

/// A function at a place in the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    /// As people read it; the address in hexadecimal when it has no name.
    pub function: String,
    /// As the linker knows it.
    pub system_name: String,
    /// Empty when unknown.
    pub file: String,
    /// 0 when unknown.
    pub line: u32,
}

/// What stands at one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Where to look the frame up: a return address minus one. `None` for what has no address.
    pub address: Option<usize>,
    /// Never empty; inlined functions before those they are inlined into.
    pub lines: Vec<Line>,
}

/// Names and lines of `frames`, one for each.
///
/// The debug information is read each time and given back, because it takes tens of megabytes while it is there: one
/// report asks once, and one report at a time.
#[must_use]
pub fn resolve(frames: &[Frame]) -> Vec<Resolved> {
    with_debug_information(|| {
        let mut known: HashMap<Frame, Resolved> = HashMap::new();
        frames.iter().map(|frame| known.entry(*frame).or_insert_with(|| resolve_one(*frame)).clone()).collect()
    })
}

/// The functions at `addresses`, as `symbol` answers them; `None` where there is none.
#[must_use]
pub fn names_at(addresses: &[usize]) -> Vec<Option<String>> {
    with_debug_information(|| {
        let name = |address: &usize| lines_at(*address).into_iter().next().map(|line| line.function);
        addresses.iter().map(name).collect()
    })
}

fn with_debug_information<T>(look_up: impl FnOnce() -> T) -> T {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let result = look_up();
    backtrace::clear_symbol_cache();
    result
}

impl Frame {
    /// The instruction that the frame stands for: a call stands before where it returns to.
    #[must_use]
    pub fn address(self) -> Option<usize> {
        match self {
            Self::Pc(address) => Some(address),
            Self::Return(address) => Some(address.saturating_sub(1)),
            Self::Place(_) | Self::Name(_) => None,
        }
    }
}

fn resolve_one(frame: Frame) -> Resolved {
    let address = frame.address();
    let mut lines = match frame {
        Frame::Pc(_) | Frame::Return(_) => address.map(lines_at).unwrap_or_default(),
        Frame::Place(place) => {
            vec![Line::named(place.function, place.location.file(), place.location.line())]
        }
        Frame::Name(name) => vec![Line::named(name, "", 0)],
    };
    if let (true, Some(address)) = (lines.is_empty(), address) {
        lines.push(Line::named(&format!("{address:#x}"), "", 0));
    }
    Resolved { address, lines }
}

impl Line {
    fn named(function: &str, file: &str, line: u32) -> Self {
        Self { function: function.to_owned(), system_name: function.to_owned(), file: file.to_owned(), line }
    }
}

/// The function at `address` and those it is inlined into.
fn lines_at(address: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    // The crate takes what it is given for a return address, and looks one byte before it.
    let Some(after) = address.checked_add(1) else { return lines };
    backtrace::resolve(std::ptr::without_provenance_mut(after), |symbol| {
        let Some(name) = symbol.name() else { return };
        lines.push(Line {
            function: format!("{name:#}"),
            system_name: name.as_str().map_or_else(|| format!("{name:#}"), str::to_owned),
            file: symbol.filename().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default(),
            line: symbol.lineno().unwrap_or(0),
        });
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Place, stack};
    use std::panic::Location;

    #[inline(always)]
    fn inlined() -> (usize, u32) {
        (stack::here(1)[0], line!())
    }

    #[inline(never)]
    fn outer() -> (usize, u32) {
        let (address, line) = inlined();
        std::hint::black_box((address, line))
    }

    #[test]
    fn a_call_has_its_name_file_and_line_and_those_it_is_inlined_into() {
        let (address, line) = outer();
        let [resolved] = &resolve(&[Frame::Return(address)])[..] else { panic!("one frame, one answer") };
        let found: Vec<_> = resolved.lines.iter().map(|line| line.function.as_str()).collect();
        // With line tables only, as in builds for tests, names come without their modules.
        assert_eq!(
            found.iter().map(|name| name.rsplit("::").next().unwrap()).collect::<Vec<_>>(),
            ["inlined", "outer"]
        );
        assert_eq!(resolved.address, Some(address - 1));
        assert_eq!(resolved.lines[0].line, line);
        assert!(resolved.lines[0].file.ends_with("src/profile/symbols.rs"), "{:?}", resolved.lines[0].file);
        assert!(resolved.lines[1].system_name.contains("outer"), "{:?}", resolved.lines[1]);
    }

    #[test]
    fn the_first_instruction_belongs_to_its_own_function() {
        let start = outer as fn() -> (usize, u32) as usize;
        let resolved = &resolve(&[Frame::Pc(start)])[0];
        assert!(resolved.lines.last().unwrap().function.ends_with("outer"), "{resolved:?}");
        assert_eq!(names_at(&[start]), [Some(resolved.lines[0].function.clone())]);
    }

    #[test]
    fn what_has_no_name_is_shown_by_its_address() {
        for frame in [Frame::Pc(0), Frame::Pc(1), Frame::Return(0), Frame::Pc(usize::MAX), Frame::Return(usize::MAX)] {
            let resolved = &resolve(&[frame])[0];
            assert_eq!(resolved.lines.len(), 1, "{frame:?}");
            assert!(resolved.lines[0].function.starts_with("0x"), "{resolved:?}");
        }
        assert_eq!(names_at(&[usize::MAX, 1]), [None, None]);
    }

    #[test]
    fn places_and_names_stand_for_themselves() {
        let place: &Place = Box::leak(Box::new(Place { function: "a::task", location: Location::caller() }));
        let resolved = resolve(&[Frame::Place(place), Frame::Name("a name")]);
        let task = &resolved[0].lines[0];
        assert_eq!((task.function.as_str(), task.line), ("a::task", place.location.line()));
        assert_eq!(resolved[1].lines, [Line::named("a name", "", 0)]);
        assert_eq!(resolved[1].address, None);
    }
}
