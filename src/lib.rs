pub mod ids;
pub mod limits;
pub mod store;
pub mod wire;
