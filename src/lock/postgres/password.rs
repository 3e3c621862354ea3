use std::error::Error;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, TryFutureExt};

use crate::lock::error::ConnectError;

/// Where the password of each login comes from, instead of the URL.
#[derive(Clone)]
pub(super) struct Passwords(
    Arc<dyn Fn() -> BoxFuture<'static, Result<String, Problem>> + Send + Sync>,
);

type Problem = Box<dyn Error + Send + Sync>;

impl Passwords {
    pub(super) fn new<F, P, E>(ask: F) -> Self
    where
        F: Fn() -> P + Send + Sync + 'static,
        P: Future<Output = Result<String, E>> + Send + 'static,
        E: Into<Problem> + 'static,
    {
        Self(Arc::new(move || ask().map_err(Into::into).boxed()))
    }

    /// The password. A panic is an error here: it would take a place of the pool with it.
    pub(super) async fn ask(&self, server: &Arc<str>) -> Result<String, ConnectError> {
        let asked = AssertUnwindSafe(async { (self.0)().await }).catch_unwind();
        let answer = asked.await.unwrap_or_else(|_| Err("it panicked".into()));
        answer.map_err(|error| ConnectError::Password {
            server: Arc::clone(server),
            source: error.into(),
        })
    }
}
