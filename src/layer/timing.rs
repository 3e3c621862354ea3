use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderValue, Response};
use tokio::time::Instant;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// How long a request waited for its lock and held it, for its client (Server Timing, W3C).
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    asked: Instant,
    granted: Option<Instant>,
    released: Option<Instant>,
}

impl Timing {
    pub(super) fn begin() -> Self {
        Self {
            asked: Instant::now(),
            granted: None,
            released: None,
        }
    }

    pub(super) fn granted(&mut self) {
        self.granted = Some(Instant::now());
    }

    /// Ends the hold before the call, if the handler has released it.
    pub(super) fn released(&mut self, at: Option<Instant>) {
        self.released = at;
    }

    /// What to tell, as of now.
    pub(super) fn header(self) -> HeaderValue {
        let now = self.released.unwrap_or_else(Instant::now);
        let wait = milliseconds(self.granted.unwrap_or(now) - self.asked);
        let text = match self.granted {
            Some(granted) => format!(
                "lock-wait;dur={wait:.3}, lock-hold;dur={:.3}",
                milliseconds(now - granted)
            ),
            None => format!("lock-wait;dur={wait:.3}"),
        };
        // Digits and letters only, so it is always a value.
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("lock-wait"))
    }
}

/// Beside what the handler tells of its own.
pub(super) fn tell<B>(response: &mut Response<B>, timing: HeaderValue) {
    response.headers_mut().append(SERVER_TIMING, timing);
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
