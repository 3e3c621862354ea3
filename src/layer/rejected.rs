use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};

use super::drain::Drain;
use super::rejection::Rejection;
use super::rejection::grpc::GrpcType;

/// What answers rejections in place of [`Rejection::to_response_for`].
pub(super) type RejectionFn = dyn Fn(&Rejection, &Parts) -> Response<Bytes> + Send + Sync;

/// A request that is answered with a rejection.
pub(super) struct Rejected {
    pub(super) rejection: Rejection,
    pub(super) asked: Asked,
    /// Its body, if the inner service did not get it and it is not read to its end.
    pub(super) drain: Option<Drain>,
}

/// What the response of a rejection depends on besides the rejection.
pub(super) struct Asked {
    grpc: Option<GrpcType>,
    /// Always there if a closure answers.
    head: Option<Box<Parts>>,
}

impl Rejected {
    /// A request that the inner service did not get.
    pub(super) fn new(rejection: impl Into<Rejection>, head: Parts, drain: Option<Drain>) -> Self {
        let grpc = GrpcType::of(&head.headers);
        let head = Some(Box::new(head));
        Self {
            rejection: rejection.into(),
            asked: Asked { grpc, head },
            drain,
        }
    }

    /// The same for a request whose body was not read.
    pub(super) fn unread<A>(rejection: impl Into<Rejection>, request: Request<A>) -> Self
    where
        A: http_body::Body + Send + 'static,
    {
        let (head, body) = request.into_parts();
        let drain = Drain::of_unread(&head.headers, body);
        Self::new(rejection, head, drain)
    }
}

impl Asked {
    /// What to keep of a request that the inner service gets: its head only if a closure needs it.
    pub(super) fn of<A>(request: &Request<A>, has_closure: bool) -> Self {
        Self {
            grpc: GrpcType::of(request.headers()),
            head: has_closure.then(|| Box::new(head(request))),
        }
    }

    /// The rejection of the request, which the inner service has received.
    pub(super) fn rejected(self, rejection: Rejection) -> Rejected {
        Rejected {
            rejection,
            asked: self,
            drain: None,
        }
    }

    /// The response, by the closure if there is one.
    pub(super) fn response(
        &self,
        rejection: &Rejection,
        closure: Option<&RejectionFn>,
    ) -> Response<Bytes> {
        match (closure, &self.head) {
            (Some(closure), Some(head)) => closure(rejection, head),
            _ => rejection.to_response_of(self.grpc),
        }
    }
}

/// A copy of a request's head.
fn head<A>(request: &Request<A>) -> Parts {
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = request.method().clone();
    head.uri = request.uri().clone();
    head.version = request.version();
    head.headers = request.headers().clone();
    head.extensions = request.extensions().clone();
    head
}
