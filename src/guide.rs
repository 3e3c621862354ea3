//! What to know before it runs and while it runs: the pages of the folder `docs`.

// A link of a page leads to the page beside it, and here to the module. Of two definitions of a link the first one counts.

#[doc = include_str!("../docs/fencing.md")]
pub mod fencing {}

#[doc = "[fencing]: self::fencing\n\n"]
#[doc = include_str!("../docs/guarantees.md")]
pub mod guarantees {}

#[doc = "[options]: self::options\n\n"]
#[doc = include_str!("../docs/layers.md")]
pub mod layers {}

#[doc = "[scaling]: self::scaling\n\n"]
#[doc = include_str!("../docs/migrating.md")]
pub mod migrating {}

#[doc = "[layers]: self::layers\n[operations]: self::operations\n[tenancy]: self::tenancy\n[testing]: self::testing\n\n"]
#[doc = include_str!("../docs/options.md")]
pub mod options {}

#[doc = "[fencing]: self::fencing\n[scaling]: self::scaling\n\n"]
#[doc = include_str!("../docs/operations.md")]
pub mod operations {}

#[doc = "[benchmarks]: https://docs.rs/crate/tower-realm-lock/latest/source/docs/benchmarks.md\n\n"]
#[doc = include_str!("../docs/scaling.md")]
pub mod scaling {}

#[doc = "[options]: self::options\n"]
#[doc = "[tenants]: https://docs.rs/crate/tower-realm-lock/latest/source/examples/tenants/main.rs\n\n"]
#[doc = include_str!("../docs/tenancy.md")]
pub mod tenancy {}

#[doc = "[fencing]: self::fencing\n\n"]
#[doc = include_str!("../docs/testing.md")]
pub mod testing {}
