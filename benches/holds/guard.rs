//! Ways to guard a handler's writes, with the same face.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Debug;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use tokio::sync::Mutex;
use tower::{Layer, Service, ServiceExt};
use tower_realm_lock::{RealmWriteLock, RealmWriteLockLayer};

use crate::peers::{ByHand, DistributedLock, Sqlx};

/// An inner service.
pub trait Handler:
    Service<Request<String>, Response = Response<String>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Handler for S where
    S: Service<Request<String>, Response = Response<String>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// One way to guard writes.
#[derive(Clone)]
pub enum Guard {
    Nothing,
    /// The same mutex for all realms.
    Mutex(Arc<Mutex<()>>),
    Layer(Box<RealmWriteLockLayer>),
    ByHand(ByHand),
    Sqlx(Sqlx),
    DistributedLock(DistributedLock),
}

/// A handler behind its guard.
#[derive(Clone)]
pub enum Guarded<H> {
    Bare(H),
    Mutex(Arc<Mutex<()>>, H),
    Layer(RealmWriteLock<H>),
    ByHand(ByHand, H),
    Sqlx(Sqlx, H),
    DistributedLock(DistributedLock, H),
}

impl Guard {
    pub fn layer(layer: RealmWriteLockLayer) -> Self {
        Self::Layer(Box::new(layer))
    }

    pub fn around<H: Handler>(&self, handler: H) -> Guarded<H> {
        match self {
            Self::Nothing => Guarded::Bare(handler),
            Self::Mutex(mutex) => Guarded::Mutex(Arc::clone(mutex), handler),
            Self::Layer(layer) => Guarded::Layer(layer.layer(handler)),
            Self::ByHand(lock) => Guarded::ByHand(lock.clone(), handler),
            Self::Sqlx(lock) => Guarded::Sqlx(lock.clone(), handler),
            Self::DistributedLock(lock) => Guarded::DistributedLock(lock.clone(), handler),
        }
    }
}

impl<H: Handler> Guarded<H> {
    /// Sends one PATCH.
    ///
    /// # Panics
    /// When it is not answered with 200.
    pub async fn patch(&self, path: &str) {
        let request = Request::patch(path).body(String::new()).expect("a request");
        let status = match self {
            Self::Bare(handler) => status(handler.clone().oneshot(request).await),
            Self::Mutex(mutex, handler) => {
                let _held = mutex.lock().await;
                status(handler.clone().oneshot(request).await)
            }
            Self::Layer(service) => status(service.clone().oneshot(request).await),
            // In boxes, or a waiter of any contender would take the memory of the one that takes most.
            Self::ByHand(lock, handler) => {
                status(Box::pin(lock.call(handler.clone(), request)).await)
            }
            Self::Sqlx(lock, handler) => {
                status(Box::pin(lock.call(handler.clone(), request)).await)
            }
            Self::DistributedLock(lock, handler) => {
                status(Box::pin(lock.call(handler.clone(), request)).await)
            }
        };
        assert_eq!(status, StatusCode::OK, "{path}");
    }
}

fn status<B, E: Debug>(answer: Result<Response<B>, E>) -> StatusCode {
    answer.expect("an answer").status()
}

/// What a peer's call comes to.
pub type Answer = Result<Response<String>, Box<dyn Error + Send + Sync>>;
