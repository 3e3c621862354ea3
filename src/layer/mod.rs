//! *Where* it applies: the tower layers around a handler.

mod body;
mod future;
mod holding;
mod layers;
#[cfg(feature = "serde")]
mod limits;
mod prepare;
mod rejection;
mod request_body;
mod service;
mod settings;
mod timing;

pub use self::body::LockBody;
pub use self::future::ResponseFuture;
pub use self::layers::{RealmBodyLockLayer, RealmWriteLockLayer};
#[cfg(feature = "serde")]
pub use self::limits::Limits;
pub use self::rejection::Rejection;
pub use self::request_body::{BodyError, RequestBody};
pub use self::service::{RealmBodyLock, RealmWriteLock};
pub use self::settings::{HoldUntil, OnDisconnect};
