//! *How* a realm's lock is held: queue, PostgreSQL transaction, lease.
//!
//! [`RealmLocks`] grants holds. A caller waits in an in-process queue, takes the
//! PostgreSQL lock on a connection of the locks' own pool, and keeps both until its hold ends.
//! Nothing here knows of HTTP.
//!
//! Imports point one way: `locks`, `acquire`, `hold` and the other files of the face use `queue`
//! and `postgres`, which know nothing of each other; all of them use the values `token`, `lease`,
//! `error`, `request`, `realm_keys`, `status` and `tasks`. The manual of `hold.rs` explains the life
//! of a hold.

mod acquire;
mod database;
pub(crate) mod error;
pub(crate) mod grant;
pub(crate) mod held;
pub(crate) mod hold;
mod in_place;
mod lease;
pub(crate) mod locks;
pub(crate) mod postgres;
mod queue;
mod realm_keys;
mod request;
pub(crate) mod status;
mod tasks;
pub(crate) mod token;
mod watchdog;
mod work;

pub use self::error::{ConnectError, LockError, LockErrorKind};
pub use self::held::HeldLock;
pub use self::locks::RealmLocks;
pub use self::postgres::options::PostgresBuilder;
pub use self::postgres::publish::event::{RealmEvent, RealmWrite};
pub use self::postgres::publish::listen::RealmWrites;
pub use self::postgres::shared::{LockTransaction, TransactionClient};
pub use self::status::ClaimStatus;
pub use self::token::FencingToken;
pub use self::work::HeldTask;
