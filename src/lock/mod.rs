//! *How* a realm's lock is held: queue, PostgreSQL transaction, lease.
//!
//! [`RealmLocks`] grants holds. A caller waits in an in-process queue, then takes the PostgreSQL lock on a connection of the
//! locks' own pool, and keeps both until it releases. Nothing here knows of HTTP.

mod acquire;
mod background;
mod claim;
pub(crate) mod error;
mod grant;
mod held;
mod hold;
mod key;
mod lease;
mod locks;
mod nesting;
mod postgres;
mod queue;
mod status;
mod token;

pub(crate) use self::acquire::Wanted;
pub use self::claim::Claim;
pub use self::error::LockError;
pub use self::held::HeldLock;
#[cfg(test)]
pub(crate) use self::hold::tests as hold_tests;
pub(crate) use self::hold::{Hold, Released};
pub use self::key::LockKey;
pub use self::locks::RealmLocks;
pub(crate) use self::nesting::within_step;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
pub use self::postgres::Tls;
pub use self::postgres::{
    LockTransaction, PostgresBuilder, RealmEvent, RealmWrite, RealmWrites, TransactionClient,
};
pub use self::status::ClaimStatus;
pub use self::token::FencingToken;
