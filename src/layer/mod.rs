//! *Where* it applies: the tower layers around a handler.
//!
//! # The way of a request
//!
//! `Locking::call` is the one way through both layers. It classifies the request, which is all
//! that a passing request costs, and hands every other request to one future:
//!
//! 1. **Prepare.** Before the lock, closures are asked and the body is read, as far as the decision
//!    or `read_all` needs that: see `prepare`. The result is the claim, and the request with the
//!    body that the inner service gets. Nothing is held yet.
//! 2. **Wait** for the lock: see `lock`.
//! 3. **Call** the inner service under the hold, in the caller's own task. If the caller is dropped
//!    now, a task adopts the call and runs it to its end.
//! 4. **Judge** the response: [`Success`] decides by its head, or when its body has ended.
//! 5. **End** the hold, and **confirm** a success before its response leaves. Where the body
//!    decides, or the hold lasts as long as the body, the head leaves first, and the last frame
//!    waits instead.
//!
//! A rejection is an error on all of this way. `Settings::reject` is the one place where it becomes
//! a response, and is logged and counted: see `notices`. A `Rejected` has what that needs: the
//! request's head or its gRPC type, and its unread body, which is drained in the background. Each
//! request has its own settings: the layer's, with the limits of its route in place of the layer's
//! limits.
//!
//! # Bodies
//!
//! A layer's type says whether it reads bodies. `Unread` and `Reading` are the two ways, and each
//! names the body that the inner service gets: the client's own type, or a [`RequestBody`] of it.
//! Decisions that need a body hold a value that cannot exist for `Unread`, so neither layer has a
//! case at run time for a body that it cannot read.
//!
//! # Invariants
//!
//! - A call that may wait first gives back the readiness of the inner service, and whatever that
//!   reserved, such as a concurrency permit. It asks for it again under the lock.
//! - A realm that the path names is found in `call`, before the future is first polled: a change of
//!   the mounts does not reach a request that already waits.
//! - A body is read before anything is held, so that a slow client delays nobody else. A body that
//!   is not read reaches the inner service as the client sent it, or is drained.
//! - A granted request has its head copied only for a rejection closure.
//! - A body that keeps the hold makes no step without the lock, and the hold's own task ends it if
//!   its server does not: see `holding`. The hold ends after the body's destructor.
//! - A future that is dropped before the lock is granted leaves nothing behind.

mod body;
mod drain;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod holding;
mod layers;
#[cfg(feature = "serde")]
mod limits;
mod notices;
mod prepare;
mod rejected;
mod rejection;
mod request_body;
mod service;
mod settings;
mod success;
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
pub use self::success::Success;
