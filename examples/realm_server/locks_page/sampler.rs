//! Looks at the locks a few times a second while anybody watches, and tells all who do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tower_realm_lock::RealmLocks;
use tracing::error;

use super::database::Database;
use super::snapshot::{Sample, Snapshot, Standings, now_ms};
use super::status::standings;

/// The time from one sample to the next.
const EVERY: Duration = Duration::from_millis(250);

/// How far back samples go, in milliseconds.
const KEPT_MS: u64 = 120_000;

/// A snapshot in JSON, shared by all who watch. A slow one misses some; none of them is kept for it.
pub type Frame = Arc<str>;

/// Watches the locks of this process.
pub struct Sampler {
    replica: String,
    lock: String,
    locks: Option<RealmLocks>,
    database: Option<Database>,
    state: Mutex<State>,
    frames: watch::Sender<Frame>,
}

#[derive(Default)]
struct State {
    running: bool,
    waits: VecDeque<Sample>,
}

impl Sampler {
    pub fn new(
        replica: String,
        lock: String,
        locks: Option<RealmLocks>,
        database: Option<Database>,
    ) -> Self {
        Self {
            replica,
            lock,
            locks,
            database,
            state: Mutex::default(),
            frames: watch::Sender::new(Frame::from("")),
        }
    }

    /// The next frames, one for each sample, with that sample only. Sampling goes on until the last receiver is gone.
    pub fn watch(self: &Arc<Self>) -> watch::Receiver<Frame> {
        let mut state = self.state();
        let frames = self.frames.subscribe();
        if !state.running {
            state.running = true;
            tokio::spawn(Arc::clone(self).run());
        }
        frames
    }

    /// What there is now, with all samples that are kept.
    pub async fn snapshot(&self) -> Snapshot {
        if let Some(database) = &self.database {
            database.look().await;
            if !self.state().running {
                database.close().await;
            }
        }
        let waits = {
            let mut state = self.state();
            // Those of an earlier viewer may be older.
            state.forget_before(now_ms().saturating_sub(KEPT_MS));
            state.waits.iter().copied().collect()
        };
        self.tell(self.standings(), waits)
    }

    async fn run(self: Arc<Self>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.stop_if_unwatched() {
                break;
            }
            if let Some(database) = &self.database {
                database.look_soon();
            }
            let standings = self.standings();
            let sample = standings.sample();
            self.state().keep(sample);
            match serde_json::to_string(&self.tell(standings, vec![sample])) {
                Ok(json) => drop(self.frames.send_replace(json.into())),
                Err(cause) => error!(%cause, "a snapshot of the locks cannot be written as JSON"),
            }
        }
        if let Some(database) = &self.database {
            database.close().await;
        }
    }

    /// Under the same lock as a new viewer comes: it finds the sampler running, or starts it.
    fn stop_if_unwatched(&self) -> bool {
        let mut state = self.state();
        state.running = self.frames.receiver_count() > 0;
        !state.running
    }

    fn standings(&self) -> Standings {
        Standings::by_realm(&standings(self.locks.as_ref()))
    }

    fn tell(&self, standings: Standings, waits: Vec<Sample>) -> Snapshot {
        let (database, database_problem) = match self.database.as_ref().and_then(Database::latest) {
            Some(Ok(locks)) => (Some(locks), None),
            Some(Err(problem)) => (None, Some(problem)),
            None => (None, None),
        };
        Snapshot {
            replica: self.replica.clone(),
            lock: self.lock.clone(),
            at_ms: now_ms(),
            held: standings.held,
            waiting: standings.waiting,
            longest_wait_ms: standings.longest_wait_ms,
            realms: standings.realms,
            more_realms: standings.more_realms,
            waits,
            database,
            database_problem,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, sample: Sample) {
        self.forget_before(sample.at_ms.saturating_sub(KEPT_MS));
        self.waits.push_back(sample);
    }

    fn forget_before(&mut self, at_ms: u64) {
        while self.waits.front().is_some_and(|it| it.at_ms < at_ms) {
            self.waits.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Millis;
    use super::*;

    fn sampler() -> Arc<Sampler> {
        let locks = Some(RealmLocks::in_process());
        Arc::new(Sampler::new(
            "here".to_owned(),
            "in-process".to_owned(),
            locks,
            None,
        ))
    }

    #[tokio::test(start_paused = true)]
    async fn samples_are_taken_while_anybody_watches_and_kept_for_the_next() {
        let sampler = sampler();
        let mut first = sampler.watch();
        let second = sampler.watch();
        for _ in 0..3 {
            first.changed().await.unwrap();
        }
        let frame: serde_json::Value = serde_json::from_str(&first.borrow()).unwrap();
        assert_eq!(frame["waits"].as_array().unwrap().len(), 1);
        assert_eq!(sampler.snapshot().await.waits.len(), 3);

        drop((first, second));
        tokio::time::sleep(EVERY * 8).await;
        assert!(!sampler.state().running);
        let kept = sampler.snapshot().await.waits.len();
        assert!(kept <= 4, "{kept} samples, some with nobody watching");

        let mut again = sampler.watch();
        again.changed().await.unwrap();
    }

    #[test]
    fn old_samples_go() {
        let mut state = State::default();
        for at_ms in [1, 1_000, KEPT_MS + 500] {
            state.keep(Sample {
                at_ms,
                waiting: 0,
                longest_wait_ms: Millis(0),
            });
        }
        let kept: Vec<_> = state.waits.iter().map(|it| it.at_ms).collect();
        assert_eq!(kept, [1_000, KEPT_MS + 500]);
    }
}
