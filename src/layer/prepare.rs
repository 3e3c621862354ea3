//! What comes before a request asks for its lock: look-ups, and reading its body.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Debug;
use std::future::Future;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Body;

use super::rejected::Rejected;
use super::request_body::{Reading, RequestBody, Unreadable};
use crate::realm::body::ReadsBodies;
use crate::realm::claim::Claim;
use crate::realm::classify::{LookedUp, NeedsBody, NeedsLookup};
use crate::realm::request_head::RequestHead;

/// Whether a layer reads the bodies of requests.
pub(super) trait Bodies: Copy + Debug + Send + 'static {
    /// Held by each decision that needs a body. Where none is read, no value of it exists.
    type Reads: Copy + Debug + Send + Sync + 'static;

    /// Whether the body of each locked request is read, whether or not it names what to lock.
    fn reads_all(self) -> Option<Self::Reads>;
}

/// What a layer does with the bodies of type `A`.
pub(super) trait BodiesOf<A>: Bodies {
    /// The body that the inner service gets.
    type Body: Body + Send + 'static;

    /// The body of a request that was not read.
    fn unread(body: A) -> Self::Body;

    /// Reads the body of a request with these headers, and gives its bytes and what the inner
    /// service gets.
    fn read(
        self,
        headers: &HeaderMap,
        body: A,
        reads: Self::Reads,
    ) -> impl Future<Output = Result<(Bytes, Self::Body), Unreadable>> + Send;
}

/// No body is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unread;

impl Bodies for Unread {
    type Reads = Infallible;

    fn reads_all(self) -> Option<Infallible> {
        None
    }
}

impl<A: Body + Send + 'static> BodiesOf<A> for Unread {
    type Body = A;

    fn unread(body: A) -> A {
        body
    }

    async fn read(self, _: &HeaderMap, _: A, never: Infallible) -> Result<(Bytes, A), Unreadable> {
        match never {}
    }
}

impl Bodies for Reading {
    type Reads = ReadsBodies;

    fn reads_all(self) -> Option<ReadsBodies> {
        self.all.then_some(ReadsBodies)
    }
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
        headers: &HeaderMap,
        body: A,
        ReadsBodies: ReadsBodies,
    ) -> impl Future<Output = Result<(Bytes, RequestBody<A>), Unreadable>> + Send {
        Reading::read(self, headers, body)
    }
}

/// What a request needs before it can ask for its lock.
pub(super) enum Needs<B> {
    Lookup(NeedsLookup<B>),
    Body(Target<B>, B),
}

/// What a request whose body is read locks.
pub(super) enum Target<B> {
    /// The body names it.
    InBody(NeedsBody<B>),
    /// It is known without the body.
    Known(Claim),
}

/// A request that may ask for its lock; without a claim it passes.
pub(super) type Prepared<A> = Result<(Option<Claim>, Request<A>), Rejected>;

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
    let head = RequestHead::from(parts);
    let (target, reads) = match needs {
        Needs::Body(target, reads) => (target, reads),
        Needs::Lookup(lookup) => match lookup.find(&head).await {
            Ok(LookedUp::NeedsBody(needs, reads)) => (Target::InBody(needs), reads),
            Ok(LookedUp::Pass) => return Ok((None, with_head(head, R::unread(body)))),
            Ok(LookedUp::Claim(claim)) => match bodies.reads_all() {
                Some(reads) => (Target::Known(claim), reads),
                None => return Ok((Some(claim), with_head(head, R::unread(body)))),
            },
            Err(error) => return Err(Rejected::unread(error, with_head(head, R::unread(body)))),
        },
    };
    let (bytes, body) = match bodies.read(head.headers(), body, reads).await {
        Ok(read) => read,
        Err(Unreadable { error, drain }) => {
            return Err(Rejected::new(error, head.into_parts(), drain));
        }
    };
    let claim = match target {
        Target::InBody(needs) => needs.find(&head, &bytes).await,
        Target::Known(claim) => Ok(Some(claim)),
    };
    match claim {
        Ok(claim) => Ok((claim, with_head(head, body))),
        Err(error) => Err(Rejected::new(error, head.into_parts(), None)),
    }
}

fn with_head<A>(head: RequestHead, body: A) -> Request<A> {
    Request::from_parts(head.into_parts(), body)
}
