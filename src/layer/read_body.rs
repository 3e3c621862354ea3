use std::any::{Any, type_name};
use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::timeout;

use crate::realm::shown;

/// How long a client may take to send a body that is read before its lock, unless the layer says otherwise.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The body of a request after the layer has read it: the same bytes, and the same trailers.
///
/// Its length is known, and it never fails. It is handed on to the inner service in the type of body that this takes; see
/// [`read_bodies`](super::RealmWriteLockLayer::read_bodies).
#[derive(Debug, Clone, Default)]
pub struct ReadBody {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl ReadBody {
    /// All of its bytes that were not taken as a frame yet.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }
}

impl Body for ReadBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = if self.data.is_empty() {
            self.trailers.take().map(Frame::trailers)
        } else {
            Some(Frame::data(std::mem::take(&mut self.data)))
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len().try_into().unwrap_or(u64::MAX))
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
    /// Which realms the request is for stands in its body, and the layer does not know how to read that: a fault of the
    /// server's configuration.
    #[error(
        "the realm lock must read the body of this request and cannot: it is a `{body}`, and `read_bodies` was {given}; give the layer `read_bodies` for this type"
    )]
    Unread {
        /// The type of the request's body.
        body: &'static str,
        /// What the layer was given.
        given: String,
    },
}

/// How a layer reads bodies of one type.
#[derive(Clone)]
pub(super) struct BodyReading {
    pub(super) timeout: Duration,
    reader: Option<ErasedReader>,
}

#[derive(Clone)]
struct ErasedReader {
    limit: usize,
    /// A [`Reader`] of the body type. Erased, so that the layer has no type parameter.
    reader: Arc<dyn Any + Send + Sync>,
    body: &'static str,
}

type Reading = Pin<Box<dyn Future<Output = Result<ReadBody, BodyError>> + Send>>;

pub(super) struct Reader<A> {
    read: Box<dyn Fn(A) -> Reading + Send + Sync>,
    make: Box<dyn Fn(ReadBody) -> A + Send + Sync>,
}

impl Default for BodyReading {
    fn default() -> Self {
        Self {
            timeout: BODY_TIMEOUT,
            reader: None,
        }
    }
}

impl BodyReading {
    pub(super) fn set<A, F>(&mut self, limit: usize, make: F)
    where
        A: Body + Send + 'static,
        A::Data: Send,
        A::Error: Into<Box<dyn Error + Send + Sync>>,
        F: Fn(ReadBody) -> A + Send + Sync + 'static,
    {
        let reader = Reader {
            read: Box::new(move |body: A| Box::pin(read(body, limit))),
            make: Box::new(make),
        };
        self.reader = Some(ErasedReader {
            limit,
            reader: Arc::new(reader),
            body: type_name::<A>(),
        });
    }

    fn reader<A: 'static>(&self) -> Result<&Reader<A>, BodyError> {
        let reader = self.reader.as_ref();
        let fit = reader.and_then(|reader| reader.reader.downcast_ref());
        fit.ok_or_else(|| BodyError::Unread {
            body: type_name::<A>(),
            given: reader.map_or("not called".into(), |it| {
                format!("called for `{}`", it.body)
            }),
        })
    }
}

impl fmt::Debug for BodyReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyReading")
            .field("timeout", &self.timeout)
            .field("limit", &self.reader.as_ref().map(|it| it.limit))
            .field("body", &self.reader.as_ref().map(|it| it.body))
            .finish()
    }
}

/// The body of a request that may have to be read.
pub(super) enum RequestBody<'a, A> {
    Unread(A),
    Read(ReadBody, &'a Reader<A>),
}

impl<'a, A: 'static> RequestBody<'a, A> {
    /// Reads it, unless that is done.
    pub(super) async fn read(self, reading: &'a BodyReading) -> Result<Self, BodyError> {
        let Self::Unread(body) = self else {
            return Ok(self);
        };
        let reader = reading.reader::<A>()?;
        let read = timeout(reading.timeout, (reader.read)(body)).await;
        let read = read.unwrap_or(Err(BodyError::TimedOut {
            after: reading.timeout,
        }))?;
        Ok(Self::Read(read, reader))
    }

    /// Its bytes, as far as they were read.
    pub(super) fn bytes(&self) -> Bytes {
        match self {
            Self::Unread(_) => Bytes::new(),
            Self::Read(read, _) => read.data.clone(),
        }
    }

    /// What the inner service gets: the very same body where it was not read.
    pub(super) fn handed_on(self) -> A {
        match self {
            Self::Unread(body) => body,
            Self::Read(read, reader) => (reader.make)(read),
        }
    }
}

/// All of a body within `limit` bytes.
async fn read<A>(body: A, limit: usize) -> Result<ReadBody, BodyError>
where
    A: Body,
    A::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let too_large = BodyError::TooLarge { limit };
    // Before anything is read, so that a client that waits for `100 Continue` sends nothing.
    if body.size_hint().lower() > limit.try_into().unwrap_or(u64::MAX) {
        return Err(too_large);
    }
    let mut body = pin!(body);
    // One piece of memory, so that a client that sends many small chunks costs no more than another.
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
