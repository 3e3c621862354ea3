use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderValue, Response};
use tokio::time::Instant;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// How long a request waited for its lock and held it, for its client (Server Timing, W3C).
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    wait: Duration,
    answered: Instant,
}

impl Timing {
    /// Of a request that asked then, and got its lock or its rejection now.
    pub(super) fn since(asked: Instant) -> Self {
        let answered = Instant::now();
        let wait = answered - asked;
        Self { wait, answered }
    }

    /// What to tell of the wait.
    pub(super) fn wait(self) -> HeaderValue {
        header(&format!("lock-wait;dur={:.3}", milliseconds(self.wait)))
    }

    /// What to tell of the wait and of a hold that was released then, or else ends now.
    pub(super) fn wait_and_hold(self, released: Option<Instant>) -> HeaderValue {
        let hold = released.unwrap_or_else(Instant::now) - self.answered;
        let (wait, hold) = (milliseconds(self.wait), milliseconds(hold));
        header(&format!("lock-wait;dur={wait:.3}, lock-hold;dur={hold:.3}"))
    }
}

/// Adds to the response what there is to tell, beside what the handler tells of its own.
pub(super) fn tell<B>(response: &mut Response<B>, timing: Option<HeaderValue>) {
    if let Some(timing) = timing {
        response.headers_mut().append(SERVER_TIMING, timing);
    }
}

fn header(text: &str) -> HeaderValue {
    // Digits and letters only, so it is always a value.
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("lock-wait"))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
