//! What holds whatever a client writes. Each property is a function of raw input that panics where it does not hold.
//!
//! It returns whether the input was let in; what is refused is seen to be refused well.
//!
//! Written once for two drivers: the property tests in `tests/http/hostile_input.rs`, and the fuzz targets in `fuzz/`.

pub mod answer;
pub mod destinations;
pub mod hrefs;
pub mod origins;
pub mod paths;
pub mod pointers;
pub mod problems;
pub mod routes;
pub mod urls;
