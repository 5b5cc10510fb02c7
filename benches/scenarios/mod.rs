//! One file per scenario: its options, its load, its figures.

pub(crate) mod connect;
pub(crate) mod crash;
pub(crate) mod fanout;
pub(crate) mod list;
pub(crate) mod post;
pub(crate) mod profiles;
pub(crate) mod scrape;
pub(crate) mod storm;
