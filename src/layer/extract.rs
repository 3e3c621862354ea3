//! What axum handlers take as arguments: the handle of their hold, and its shared transaction.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use http::StatusCode;
use http::request::Parts;

use crate::lock::held::HeldLock;
use crate::lock::postgres::shared::LockTransaction;

/// The rejection of a handler without its lock. Its text is for the developer, who reads it first.
type Missing = (StatusCode, &'static str);

/// Fails with 500 if the request is not locked: no [`RealmWriteLockLayer`](crate::RealmWriteLockLayer) is around the
/// route, or it passes this method and path.
impl<S: Send + Sync> FromRequestParts<S> for HeldLock {
    type Rejection = Missing;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Missing> {
        extension(parts).ok_or((
            StatusCode::INTERNAL_SERVER_ERROR,
            "The handler takes a HeldLock, and this request is not locked: put a RealmWriteLockLayer \
             around the route, have it lock this method and path, or take an Option<HeldLock>.",
        ))
    }
}

/// `None` if the request is not locked.
impl<S: Send + Sync> OptionalFromRequestParts<S> for HeldLock {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(extension(parts))
    }
}

/// Fails with 500 if the request is not locked, or its lock has no transaction to share.
impl<S: Send + Sync> FromRequestParts<S> for LockTransaction {
    type Rejection = Missing;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Missing> {
        extension(parts).ok_or((
            StatusCode::INTERNAL_SERVER_ERROR,
            "The handler takes a LockTransaction, and this request has none: put a \
             RealmWriteLockLayer around the route, have it lock this method and path, and turn on \
             share_transaction.",
        ))
    }
}

/// `None` if the request is not locked, or its lock has no transaction to share.
impl<S: Send + Sync> OptionalFromRequestParts<S> for LockTransaction {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(extension(parts))
    }
}

/// What the layer gave the request.
fn extension<T: Clone + Send + Sync + 'static>(parts: &Parts) -> Option<T> {
    parts.extensions.get().cloned()
}
