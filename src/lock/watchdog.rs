use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::grant::Queue;

/// Visits the owners of turns, so that a call that is neither polled nor dropped loses its lock.
///
/// One task serves all of them. It runs while somebody owns a turn, and for one visit more: a queue
/// that is used now and then does not start a task for each turn.
#[derive(Debug)]
pub(super) struct Watchdog {
    origin: Instant,
    /// When the next visit is due, in nanoseconds after `origin`, or one of the two below.
    next: AtomicU64,
    sooner: Notify,
}

/// How often the task wakes up in between. A thread that waits for its next timer is woken when a
/// nearer one is set, which costs two system calls: with this one nearly all that are set for a hold
/// are farther away. It goes on until the visit after the last turn has ended.
const TICK: Duration = Duration::from_millis(500);

/// No task runs.
const ASLEEP: u64 = u64::MAX;
/// The task is making a visit.
const AWAKE: u64 = u64::MAX - 1;

impl Watchdog {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            next: AtomicU64::new(ASLEEP),
            sooner: Notify::new(),
        })
    }

    /// Makes sure that a visit takes place in time for a caller that has entered the queue, and must
    /// be polled once per `bound`. Outside of a runtime nobody is visited.
    pub(super) fn watch(self: &Arc<Self>, queue: &Arc<Queue>, entered: Instant, bound: Duration) {
        let Some(due) = entered.checked_add(bound / 2) else {
            return;
        };
        let due = self.nanos(due);
        if self.next.load(Ordering::Acquire) <= due {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        match self.next.fetch_min(due, Ordering::AcqRel) {
            ASLEEP => {
                let watchdog = Arc::clone(self);
                runtime.spawn(watchdog.run(Arc::downgrade(queue)));
            }
            before if before > due => self.sooner.notify_one(),
            _ => {}
        }
    }

    async fn run(self: Arc<Self>, queue: Weak<Queue>) {
        loop {
            let due = self.origin + Duration::from_nanos(self.next.load(Ordering::Acquire));
            let tick = Instant::now() + TICK;
            tokio::select! {
                () = sleep_until(due.min(tick)) => {
                    if tick < due {
                        if queue.strong_count() == 0 {
                            return;
                        }
                        continue;
                    }
                }
                () = self.sooner.notified() => continue,
            }
            let Some(queue) = queue.upgrade() else {
                return;
            };
            self.next.store(AWAKE, Ordering::Release);
            if let Some(next) = queue.visit(Instant::now()) {
                self.next.fetch_min(self.nanos(next), Ordering::AcqRel);
                continue;
            }
            let (before, after) = (Ordering::AcqRel, Ordering::Acquire);
            if self
                .next
                .compare_exchange(AWAKE, ASLEEP, before, after)
                .is_ok()
            {
                return;
            }
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.origin).as_nanos();
        // 584 years of nanoseconds fit.
        u64::try_from(nanos).unwrap_or(AWAKE).min(AWAKE - 1)
    }
}
