//! Waiting for an event instead of sleeping: look, pause a few milliseconds, look again, and give up with what was seen.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{sleep, timeout};

/// How long a test waits for an event before it fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `predicate` is true.
///
/// # Panics
/// After [`PATIENCE`], naming `what`.
pub async fn wait_until(what: &str, mut predicate: impl AsyncFnMut() -> bool) {
    wait_for(what, PATIENCE, async || {
        if predicate().await {
            Ok(())
        } else {
            Err("it is not so".to_owned())
        }
    })
    .await;
}

/// Waits until `look` gives a value; its error says what it saw instead.
///
/// # Panics
/// After `patience`, naming `what` and what was seen last.
pub async fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let mut seen = "nothing, the first look did not end".to_owned();
    let looking = async {
        loop {
            match look().await {
                Ok(value) => break value,
                Err(now) => seen = now,
            }
            sleep(PAUSE).await;
        }
    };
    let outcome = timeout(patience, looking).await;
    outcome.unwrap_or_else(|_| panic!("waited {patience:?} for {what}; last seen: {seen}"))
}

/// The outcome of `future`, or nothing if it was dropped when it had been polled this often.
pub async fn within_polls<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
