use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use super::drain::Drain;
use crate::realm::error::shown;

/// The body of a request behind a [`RealmBodyLockLayer`](crate::RealmBodyLockLayer): the very body
/// that the client sent, or what the layer has read of it.
///
/// A body that was read has the same bytes and the same trailers as before, a known length, and
/// never fails.
#[pin_project]
pub struct RequestBody<A>(#[pin] Content<A>);

#[pin_project(project = ContentProjection)]
enum Content<A> {
    Unread(#[pin] A),
    Read(ReadBody),
}

/// All of a body that was read, as far as it was not taken again.
#[derive(Debug)]
struct ReadBody {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl<A> RequestBody<A> {
    pub(super) fn unread(body: A) -> Self {
        Self(Content::Unread(body))
    }

    /// The bytes that the layer has read, as far as they were not taken as a frame yet; `None` if
    /// it did not read this body.
    #[must_use]
    pub fn bytes(&self) -> Option<&Bytes> {
        match &self.0 {
            Content::Unread(_) => None,
            Content::Read(read) => Some(&read.data),
        }
    }

    /// The client's own body; `None` if the layer has read it.
    #[must_use]
    pub fn get_ref(&self) -> Option<&A> {
        match &self.0 {
            Content::Unread(body) => Some(body),
            Content::Read(_) => None,
        }
    }
}

impl<A: Body> Body for RequestBody<A> {
    type Data = Bytes;
    type Error = A::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, A::Error>>> {
        match self.project().0.project() {
            ContentProjection::Unread(body) => body.poll_frame(cx).map_ok(|frame| {
                // Costs no copy where the data are `Bytes`.
                frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
            }),
            ContentProjection::Read(read) => Poll::Ready(read.next_frame().map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Content::Unread(body) => body.is_end_stream(),
            Content::Read(read) => read.data.is_empty() && read.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Unread(body) => body.size_hint(),
            Content::Read(read) => {
                SizeHint::with_exact(read.data.len().try_into().unwrap_or(u64::MAX))
            }
        }
    }
}

impl<A> fmt::Debug for RequestBody<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Content::Unread(_) => f.write_str("RequestBody(unread)"),
            Content::Read(read) => write!(f, "RequestBody(read, {} bytes)", read.data.len()),
        }
    }
}

impl ReadBody {
    fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        if self.data.is_empty() {
            self.trailers.take().map(Frame::trailers)
        } else {
            Some(Frame::data(mem::take(&mut self.data)))
        }
    }
}

/// Why the body of a request could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It has more bytes than the layer reads.
    #[error("the body of the request is longer than {limit} bytes")]
    TooLarge {
        /// The most bytes that are read.
        limit: usize,
    },
    /// The client did not send all of it in time.
    #[error("the body of the request did not come within {after:?}")]
    TimedOut {
        /// How long the client was given.
        after: Duration,
    },
    /// The connection broke, or what came is not what HTTP allows.
    #[error("the body of the request could not be read: {problem}")]
    Broken {
        /// What the server said, escaped, and cut after 500 characters.
        problem: String,
    },
}

/// A body that was not read to its end, and what is left of it to drain.
pub(super) struct Unreadable {
    pub(super) error: BodyError,
    pub(super) drain: Option<Drain>,
}

/// How a layer reads bodies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// The most bytes of a body.
    pub(super) limit: usize,
    /// How long a client may take to send them.
    pub(super) timeout: Duration,
    /// Whether the body of each locked request is read.
    pub(super) all: bool,
}

impl Reading {
    /// All of the body of a request with these headers: its bytes, and the body with these to hand
    /// on.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it drops the body with what was read of it.
    pub(super) async fn read<A>(
        self,
        headers: &HeaderMap,
        body: A,
    ) -> Result<(Bytes, RequestBody<A>), Unreadable>
    where
        A: Body + Send + 'static,
        A::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Self { limit, timeout, .. } = self;
        // Before anything is read, so that a client that waits for `100 Continue` sends nothing.
        if body.size_hint().lower() > limit.try_into().unwrap_or(u64::MAX) {
            return Err(Unreadable {
                error: BodyError::TooLarge { limit },
                drain: Drain::of_unread(headers, body),
            });
        }
        let mut body = Box::pin(body);
        let read = tokio::time::timeout(timeout, read(body.as_mut(), limit)).await;
        let error = match read {
            Ok(Ok(read)) => return Ok((read.data.clone(), RequestBody(Content::Read(read)))),
            Ok(Err(error)) => error,
            Err(_) => BodyError::TimedOut { after: timeout },
        };
        // A client that was too slow gets no more time.
        let drain = matches!(error, BodyError::TooLarge { .. }).then(|| Drain::of_rest(body));
        Err(Unreadable { error, drain })
    }
}

/// All of a body within `limit` bytes.
async fn read<A>(mut body: Pin<&mut A>, limit: usize) -> Result<ReadBody, BodyError>
where
    A: Body,
    A::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let too_large = BodyError::TooLarge { limit };
    // One piece of memory, so that a client that sends many small chunks costs no more than
    // another.
    let mut data = BytesMut::new();
    let mut trailers: Option<HeaderMap> = None;
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| BodyError::Broken {
            problem: shown(&error.into().to_string()),
        })?;
        match frame.into_data() {
            Ok(chunk) if chunk.remaining() > limit - data.len() => return Err(too_large),
            Ok(chunk) => data.put(chunk),
            Err(frame) => {
                // There are no frames of a third kind.
                if let Ok(more) = frame.into_trailers() {
                    trailers.get_or_insert_default().extend(more);
                }
            }
        }
    }
    let data = if data.capacity() > data.len() {
        // It stays for as long as its request waits, without the room it was given to grow.
        Bytes::copy_from_slice(&data)
    } else {
        data.freeze()
    };
    Ok(ReadBody { data, trailers })
}
