//! Places in the source that profiles show: where tasks are spawned, where they wait.
//!
//! Each has a number, so that a task can say where it waits in half a word.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::Location;
use std::sync::{LazyLock, Mutex, PoisonError};

use foldhash::fast::RandomState;

use super::Place;

/// A place in the source under its number. Made by `place!` and `site!`, once for each use of them, and
/// kept until the process ends.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// What is waited for there, such as `wait for the writer`; empty where nothing is.
    pub what: &'static str,
    pub place: Place,
    pub(super) number: u32,
}

/// As `static` items hold a site: looked up once, then a load away.
pub type LazySite = LazyLock<&'static Site>;

/// This place in the source, as the beginning of something.
macro_rules! place {
    () => {
        $crate::profile::sites::site!("")
    };
}
pub(crate) use place;

/// This place in the source, where something waits for what the text says.
macro_rules! site {
    ($what:expr) => {{
        fn here() {}
        static SITE: $crate::profile::sites::LazySite = $crate::profile::sites::LazySite::new(|| {
            let function = $crate::profile::sites::name_of(&here);
            $crate::profile::sites::Site::register($what, function, std::panic::Location::caller())
        });
        *SITE
    }};
}
pub(crate) use site;

static ALL: Mutex<Vec<&'static Site>> = Mutex::new(Vec::new());

/// Numbers below this mean something else than a site.
pub(super) const FIRST: u32 = 16;

/// More places than any program has; a number fits beside other things in a word.
const SITES_MAX: usize = (1 << 14) - FIRST as usize;

impl Site {
    /// Gives a place its number. For the macros, whose number of uses bounds the memory that this takes for good.
    ///
    /// # Panics
    /// With more places than a program has.
    pub fn register(what: &'static str, function: &'static str, location: &'static Location<'static>) -> &'static Self {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(all.len() < SITES_MAX, "a place in the source is registered again and again");
        let number = FIRST + u32::try_from(all.len()).unwrap_or(0);
        let site = Box::leak(Box::new(Self { what, place: Place { function, location }, number }));
        all.push(site);
        site
    }

    /// The function that `closure` stands in, at the place that asks: for functions that are given closures and marked
    /// `#[track_caller]`.
    #[track_caller]
    pub fn of_caller<F>(closure: &F) -> &'static Self {
        thread_local! {
            static KNOWN: RefCell<HashMap<usize, &'static Site, RandomState>> = RefCell::default();
        }
        let location = Location::caller();
        KNOWN.with_borrow_mut(|known| {
            *known
                .entry(std::ptr::from_ref(location).addr())
                .or_insert_with(|| Self::find(function_of(closure), location))
        })
    }

    /// The site of this place, whichever thread asked for it first.
    fn find(function: &'static str, location: &'static Location<'static>) -> &'static Self {
        let place = Place { function, location };
        let known = all().into_iter().find(|site| site.what.is_empty() && site.place == place);
        known.unwrap_or_else(|| Self::register("", function, location))
    }
}

/// All sites by number, from [`FIRST`] on.
pub(super) fn all() -> Vec<&'static Site> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The path of the function around a function item.
pub fn name_of<F>(item: &F) -> &'static str {
    let name = std::any::type_name_of_val(item);
    let around = name.rsplit_once("::").map_or(name, |(around, _)| around);
    without_closures(around)
}

fn function_of<F>(closure: &F) -> &'static str {
    without_closures(std::any::type_name_of_val(closure))
}

fn without_closures(mut name: &'static str) -> &'static str {
    while let Some(around) = name.strip_suffix("::{{closure}}") {
        name = around;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn given<F: FnOnce()>(closure: F) -> &'static Site {
        Site::of_caller(&closure)
    }

    #[test]
    fn a_site_knows_its_function_and_its_line() {
        let line = line!() + 1;
        let site = site!("wait for nothing");
        assert_eq!(site.what, "wait for nothing");
        assert_eq!(site.place.function, concat!(module_path!(), "::a_site_knows_its_function_and_its_line"));
        assert_eq!((site.place.location.file(), site.place.location.line()), (file!(), line));
        let inner = || place!();
        assert_eq!((inner().place.function, inner().number), (site.place.function, inner().number));
        assert_ne!(inner().number, site.number);
    }

    #[test]
    fn the_place_of_a_closure_is_where_it_is_handed_over_on_every_thread() {
        let line = line!() + 1;
        let ask = || given(|| {});
        let other = std::thread::scope(|scope| scope.spawn(ask).join().unwrap());
        assert!(std::ptr::eq(ask(), other));
        let name = concat!(module_path!(), "::the_place_of_a_closure_is_where_it_is_handed_over_on_every_thread");
        assert_eq!((ask().place.function, ask().place.location.line()), (name, line));
    }
}
