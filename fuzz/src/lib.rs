//! The properties of the fuzz targets, which the tests of the main package check too.

#[path = "../../tests/support/properties/mod.rs"]
pub mod properties;
