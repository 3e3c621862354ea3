use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

/// How far apart heartbeats are at most, however long the lease is: poolers, firewalls and load
/// balancers have patience of their own. A hold that is shorter sends none.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long the server keeps a silent holder's lock, seen from the holder.
///
/// The server ends a session that was silent for a whole lease. The holder sends a heartbeat every
/// second, or every third of a shorter lease, and calls itself lost once none was confirmed for two
/// thirds: it stops *before* the server lets the next one in.
#[derive(Debug)]
pub(crate) struct Lease {
    period: Duration,
    origin: Instant,
    /// When the last answered message was sent, in nanoseconds after `origin`. The time of sending,
    /// not of the answer: the server's clock may have started right after it.
    confirmed: AtomicU64,
    lost: CancellationToken,
}

impl Lease {
    /// A lease confirmed by a message sent at `sent`. It is lost with `connection` at the latest.
    pub(crate) fn new(period: Duration, sent: Instant, connection: &CancellationToken) -> Self {
        Self {
            period,
            origin: sent,
            confirmed: AtomicU64::new(0),
            lost: connection.child_token(),
        }
    }

    /// Whether the server still keeps the lock, as far as the holder can know without asking.
    ///
    /// Once it is not, it stays so, even if an answer comes late: the holder may have acted on it.
    pub(crate) fn is_current(&self) -> bool {
        if self.lost.is_cancelled() {
            return false;
        }
        let current = Instant::now() < self.ends();
        if !current {
            self.lost.cancel();
        }
        current
    }

    /// Resolves when the lock is lost; only [`Lease::keep`] notices a missed heartbeat.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Ends it now, and all locks that it keeps.
    #[cfg(feature = "test-util")]
    pub(crate) fn lose(&self) {
        self.lost.cancel();
    }

    /// Sends heartbeats for as long as it is polled; resolves when the lock is lost.
    pub(crate) async fn keep<F, E>(&self, heartbeat: impl Fn() -> F)
    where
        F: Future<Output = Result<(), E>>,
    {
        let pause = LONGEST_PAUSE.min(self.period / 3);
        let beats = async {
            loop {
                let due = self.confirmed() + pause;
                sleep_until(due).await;
                if self.confirmed() + pause > due {
                    // Something else was answered meanwhile.
                    continue;
                }
                let sent = Instant::now();
                match timeout_at(self.ends(), heartbeat()).await {
                    Ok(Ok(())) if self.is_current() => self.confirm(sent),
                    _ => return,
                }
            }
        };
        tokio::select! {
            biased;
            () = self.lost.cancelled() => {}
            () = beats => self.lost.cancel(),
        }
    }

    /// How long an answer is waited for that proves the lock: a server that is silent for longer has
    /// lost it.
    pub(crate) fn patience(&self) -> Duration {
        self.period * 2 / 3
    }

    /// Notes that the server has answered what was sent then.
    pub(crate) fn confirm(&self, sent: Instant) {
        let nanos = sent.saturating_duration_since(self.origin).as_nanos();
        // 584 years of nanoseconds fit.
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        self.confirmed.fetch_max(nanos, Ordering::Relaxed);
    }

    fn confirmed(&self) -> Instant {
        self.origin + Duration::from_nanos(self.confirmed.load(Ordering::Relaxed))
    }

    /// When the holder calls itself lost, unless a heartbeat is confirmed before.
    pub(crate) fn ends(&self) -> Instant {
        self.confirmed() + self.patience()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    fn lease() -> Lease {
        leased(PERIOD)
    }

    fn leased(period: Duration) -> Lease {
        Lease::new(period, Instant::now(), &CancellationToken::new())
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_keep_it_and_come_every_second_or_third_of_it() {
        let short = Duration::from_millis(900);
        for (period, time) in [(PERIOD, LONGEST_PAUSE * 30), (short, short * 10)] {
            let lease = leased(period);
            let beats = Cell::new(0);
            let kept = lease.keep(|| {
                beats.set(beats.get() + 1);
                async { Ok::<_, ()>(()) }
            });
            assert!(tokio::time::timeout(time, kept).await.is_err());
            assert!(lease.is_current());
            // A timer may be late by its grain of a millisecond.
            assert!((28..=30).contains(&beats.get()), "{}", beats.get());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_answer_saves_a_heartbeat() {
        let lease = lease();
        let start = Instant::now();
        let answers = async {
            for _ in 0..10 {
                tokio::time::advance(LONGEST_PAUSE / 2).await;
                lease.confirm(Instant::now());
            }
        };
        let first_beat = async {
            lease.keep(|| async { Err(()) }).await;
            start.elapsed()
        };
        let (elapsed, ()) = tokio::join!(first_beat, answers);
        // The last answer was after ten halves.
        assert_eq!(elapsed, LONGEST_PAUSE * 6);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_at_two_thirds() {
        let lease = lease();
        let start = Instant::now();
        lease.keep(pending::<Result<(), ()>>).await;
        assert_eq!(start.elapsed().as_secs(), 20);
        assert!(!lease.is_current());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_heartbeat_ends_it_at_once() {
        let lease = lease();
        let start = Instant::now();
        lease.keep(|| async { Err(()) }).await;
        assert_eq!(start.elapsed().as_secs(), 1);
        lease.lost().await;
    }

    #[tokio::test(start_paused = true)]
    async fn time_ends_it_when_nobody_polls_and_a_late_answer_does_not_bring_it_back() {
        let lease = lease();
        tokio::time::advance(Duration::from_millis(19_999)).await;
        assert!(lease.is_current());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(!lease.is_current());
        lease.confirm(Instant::now());
        assert!(!lease.is_current());
        lease.lost().await;
    }

    #[tokio::test]
    async fn it_is_lost_with_its_connection() {
        let connection = CancellationToken::new();
        let lease = Lease::new(PERIOD, Instant::now(), &connection);
        connection.cancel();
        assert!(!lease.is_current());
        lease.keep(pending::<Result<(), ()>>).await;
    }
}
