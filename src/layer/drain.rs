//! The unread body of a rejected request, read to its end.
//!
//! A server that does not read a body to its end closes the connection, and a client that is still
//! sending gets a reset, often before it has seen the response (RFC 9112, section 9.6). So the rest
//! of the body is read and thrown away, beside the response and after it. If the body ends within
//! the bounds, the connection serves the next request.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Buf;
use http::{HeaderMap, header};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::task::consume_budget;
use tokio::time::timeout;

/// The most bytes that are read of one body.
const MOST_BYTES: usize = 256 * 1024 * 1024;

/// How long a client may take to send them.
const MOST_TIME: Duration = Duration::from_secs(30);

/// What is left to read of the body of a rejected request.
pub(super) struct Drain(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Drain {
    /// A body of which nothing was read; `None` if there is nothing to drain.
    ///
    /// A client that sent `Expect: 100-continue` waits for the response before it sends its body.
    /// Reading would ask for it.
    pub(super) fn of_unread<A>(headers: &HeaderMap, body: A) -> Option<Self>
    where
        A: Body + Send + 'static,
    {
        let expects = headers.contains_key(header::EXPECT);
        (!expects && !body.is_end_stream()).then(|| Self::of_rest(body))
    }

    /// A body of which something was read.
    pub(super) fn of_rest<A>(body: A) -> Self
    where
        A: Body + Send + 'static,
    {
        Self(Box::pin(drain(body)))
    }

    /// Reads it on a task of its own. Outside of a runtime it is dropped.
    pub(super) fn start(self) {
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(self.0);
        }
    }
}

/// Reads a body until it ends, breaks off, or reaches a bound.
async fn drain<A: Body>(body: A) {
    let mut body = pin!(body);
    let reading = async {
        let mut left = MOST_BYTES;
        // Only the length of a frame leaves the closure, because the frame may not be `Send`.
        while let Some(length) = poll_fn(|cx| {
            let frame = body.as_mut().poll_frame(cx);
            frame.map(|frame| Some(frame?.ok()?.data_ref().map_or(0, Buf::remaining)))
        })
        .await
        {
            if length > left {
                break;
            }
            left -= length;
            // A body that always has more must not keep the thread.
            consume_budget().await;
        }
    };
    // The time is a bound like the number of bytes.
    let _ = timeout(MOST_TIME, reading).await;
}
