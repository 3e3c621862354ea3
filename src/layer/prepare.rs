//! What comes before a request asks for its lock: look-ups, and reading its body.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::request::Parts;
use http_body::Body;

use super::rejection::Rejection;
use super::request_body::{BodyError, Reading, RequestBody};
use crate::lock::claim::Claim;
use crate::realm::body::ReadsBodies;
use crate::realm::classify::{Locked, LookedUp, NeedsBody, NeedsLookup};
use crate::realm::rules::scope::Extent;

/// Whether a layer reads the bodies of requests.
pub(super) trait Bodies: Copy + Debug + Send + 'static {
    /// Held by each decision that needs a body. Where none is read, no value of it exists.
    type Reads: Copy + Debug + Send + Sync + 'static;
}

/// What a layer does with the bodies of type `A`.
pub(super) trait BodiesOf<A>: Bodies {
    /// The body that the inner service gets.
    type Body: Send + 'static;

    /// The body of a request that was not read.
    fn unread(body: A) -> Self::Body;

    /// Reads a body, and gives its bytes and what the inner service gets.
    fn read(
        self,
        body: A,
        reads: Self::Reads,
    ) -> impl Future<Output = Result<(Bytes, Self::Body), BodyError>> + Send;
}

/// No body is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unread;

impl Bodies for Unread {
    type Reads = Infallible;
}

impl<A: Send + 'static> BodiesOf<A> for Unread {
    type Body = A;

    fn unread(body: A) -> A {
        body
    }

    async fn read(self, _: A, never: Infallible) -> Result<(Bytes, A), BodyError> {
        match never {}
    }
}

impl Bodies for Reading {
    type Reads = ReadsBodies;
}

impl<A> BodiesOf<A> for Reading
where
    A: Body + Send + 'static,
    A::Data: Send,
    A::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Body = RequestBody<A>;

    fn unread(body: A) -> RequestBody<A> {
        RequestBody::unread(body)
    }

    fn read(
        self,
        body: A,
        ReadsBodies: ReadsBodies,
    ) -> impl Future<Output = Result<(Bytes, RequestBody<A>), BodyError>> + Send {
        Reading::read(self, body)
    }
}

/// What a request needs before it can ask for its lock.
pub(super) enum Needs<B> {
    Lookup(NeedsLookup<B>),
    Body(NeedsBody<B>, B),
}

/// A request that may ask for its lock.
pub(super) type Prepared<A> = Result<(Claim, Request<A>), Rejection>;

/// Asks closures and reads the body, as far as a request needs that. Nothing is held yet.
///
/// # Cancel safety
///
/// Dropped, it leaves nothing behind.
pub(super) async fn prepare<A, R: BodiesOf<A>>(
    bodies: R,
    needs: Needs<R::Reads>,
    request: Request<A>,
) -> Prepared<R::Body> {
    let (parts, body) = request.into_parts();
    let parts = Arc::new(parts);
    let (needs, reads) = match needs {
        Needs::Body(needs, reads) => (needs, reads),
        Needs::Lookup(lookup) => match lookup.find(&parts).await? {
            LookedUp::NeedsBody(needs, reads) => (needs, reads),
            LookedUp::Claim(locked) => return Ok(with_claim(&locked, parts, R::unread(body))),
        },
    };
    let (bytes, body) = bodies.read(body, reads).await?;
    let locked = needs.find(&parts, &bytes).await?;
    Ok(with_claim(&locked, parts, body))
}

fn with_claim<A>(locked: &Locked, parts: Arc<Parts>, body: A) -> (Claim, Request<A>) {
    // A closure may have kept it.
    let parts = Arc::unwrap_or_clone(parts);
    (claim(locked), Request::from_parts(parts, body))
}

/// The claim on what a request locks.
pub(super) fn claim(locked: &Locked) -> Claim {
    match &locked.extent {
        Extent::Resources(names) => Claim::resources(&locked.first, names),
        Extent::Whole => {
            let first = Claim::realm(&locked.first);
            let others = locked.others.iter().map(Claim::realm);
            others.fold(first, |all, next| all.and(&next))
        }
    }
}
