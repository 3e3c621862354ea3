//! Writers of one realm that never pause: each sends its next request when it has the answer to the last one.

use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{FencingToken, HeldLock, RealmWriteLockLayer};

use super::wait::{PATIENCE, wait_for};

/// The realm that they write, and a card in it.
pub const REALM: &str = "/luke/a";
pub const PATH: &str = "/luke/a/card";

/// What the handlers of one realm saw, on all its replicas.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    calls: Mutex<Vec<Call>>,
    /// Requests that were rejected, before their call or after it.
    rejected: AtomicUsize,
    slowest: Mutex<Duration>,
    /// Counts the enterings and leavings.
    moment: AtomicUsize,
    /// The replica whose call came in last.
    replica: watch::Sender<usize>,
}

/// One call, from when it was inside the handler.
#[derive(Clone, Debug)]
pub struct Call {
    pub replica: usize,
    pub token: Option<FencingToken>,
    pub entered: usize,
    /// None if it was dropped, or is still inside.
    pub left: Option<usize>,
    /// Whether its client was told that it succeeded.
    pub answered: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self(Arc::new(Shared {
            calls: Mutex::default(),
            rejected: AtomicUsize::new(0),
            slowest: Mutex::default(),
            moment: AtomicUsize::new(0),
            replica: watch::Sender::new(usize::MAX),
        }))
    }
}

impl Log {
    /// Every call that came in, in that order.
    pub fn calls(&self) -> Vec<Call> {
        self.guard().clone()
    }

    /// The longest time that a request took.
    pub fn slowest(&self) -> Duration {
        *self
            .0
            .slowest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests were rejected, before their call or after it.
    pub fn rejected(&self) -> usize {
        self.0.rejected.load(Ordering::SeqCst)
    }

    /// Waits until so many more calls have come in.
    pub async fn wait_for_more(&self, calls: usize) {
        let enough = self.guard().len() + calls;
        wait_for("more calls", Duration::from_secs(60), async || {
            let seen = self.guard().len();
            (seen >= enough)
                .then_some(())
                .ok_or(format!("{seen} of {enough}"))
        })
        .await;
    }

    /// Waits until the replicas have had so many turns, counted from the first call.
    pub async fn wait_for_turns(&self, turns: usize) {
        wait_for("more turns", Duration::from_secs(60), async || {
            let calls = self.guard();
            let seen = calls.chunk_by(|one, next| one.replica == next.replica);
            let seen = seen.count();
            (seen >= turns)
                .then_some(())
                .ok_or(format!("{seen} of {turns}"))
        })
        .await;
    }

    /// Waits until a call comes in at another replica than the one before it.
    pub async fn wait_for_switch(&self) {
        let mut replica = self.0.replica.subscribe();
        let switched = timeout(PATIENCE, replica.changed()).await;
        switched
            .expect("the other replica gets its turn")
            .expect("a log");
    }

    /// Fails if two calls were inside together that were both answered with success.
    ///
    /// One whose lock was lost may not know it yet, and is not answered.
    pub fn assert_alone(&self) {
        let mut calls = self.calls();
        calls.retain(|call| call.answered);
        for pair in calls.windows(2) {
            assert!(pair[0].left.unwrap() < pair[1].entered, "{pair:?}");
        }
    }

    fn enter(&self, replica: usize, request: &Request<String>) -> usize {
        let held: Option<&HeldLock> = request.extensions().get();
        let mut calls = self.guard();
        calls.push(Call {
            replica,
            token: held.and_then(HeldLock::fencing_token),
            entered: self.tick(),
            left: None,
            answered: false,
        });
        self.0
            .replica
            .send_if_modified(|last| std::mem::replace(last, replica) != replica);
        calls.len() - 1
    }

    fn leave(&self, call: usize) {
        self.guard()[call].left = Some(self.tick());
    }

    fn took(&self, time: Duration) {
        let mut slowest = self
            .0
            .slowest
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *slowest = time.max(*slowest);
    }

    fn reject(&self) {
        self.0.rejected.fetch_add(1, Ordering::SeqCst);
    }

    fn tick(&self) -> usize {
        self.0.moment.fetch_add(1, Ordering::SeqCst)
    }

    fn guard(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Running writers of one replica. Dropped, they are dropped.
pub struct Writers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Starts `count` of them. `work` is what a handler does inside.
    pub fn start<F, W>(
        count: usize,
        layer: &RealmWriteLockLayer,
        replica: usize,
        log: &Log,
        work: F,
    ) -> Self
    where
        F: Fn() -> W + Clone + Send + Sync + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let inside = log.clone();
        let handler = service_fn(move |request: Request<String>| {
            let (log, work) = (inside.clone(), work.clone());
            async move {
                let call = log.enter(replica, &request);
                work().await;
                log.leave(call);
                let mut response = Response::new(String::new());
                response.extensions_mut().insert(Id(call));
                Ok::<_, Infallible>(response)
            }
        });
        let service = layer.layer(handler);
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (service, stop, log) = (service.clone(), stop.clone(), log.clone());
            tasks.spawn(async move {
                while !stop.is_cancelled() {
                    let request = Request::patch(PATH).body(String::new()).expect("plain");
                    let sent = Instant::now();
                    let Ok(response) = service.clone().oneshot(request).await;
                    log.took(sent.elapsed());
                    match response.extensions().get() {
                        Some(Id(call)) => log.guard()[*call].answered = true,
                        None => log.reject(),
                    }
                }
            });
        }
        Self { stop, tasks }
    }

    /// Lets each end its last request.
    pub async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE * 3, self.tasks.join_all())
            .await
            .expect("the last answers come");
    }
}

/// The number of a call, in its response.
#[derive(Clone, Copy)]
struct Id(usize);
