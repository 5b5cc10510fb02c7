pub mod clock;
pub mod log;
