//! The layer polls the inner call in its caller's task. A call whose caller leaves after the grant
//! still runs to completion, and a call whose caller forgets it does not keep its realm.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinHandle};
use tokio::time::{Instant, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{LockError, PostgresBuilder, RealmLocks, RealmWriteLockLayer};

use crate::support::claims::{realm_key, whole};
use crate::support::contest::{Contest, PATH, REALM, Room, claim, contests, gated_work, rival};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    Gate, Gated, Outcome, answered, code, gate, patch, postgres_locks_with, queue, realms,
};
use crate::support::proxy::Proxy;
use crate::support::wait::{PATIENCE, wait_until};

/// How late an event may be on a busy machine.
const MARGIN: Duration = Duration::from_secs(3);

fn request() -> Request<String> {
    Request::patch(PATH).body(String::new()).unwrap()
}

fn layer(contest: &Contest) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(contest.locks.clone(), realms())
}

/// Runs a test with each way to hold locks, on a runtime with one thread and on one with several.
fn everywhere(test: &impl AsyncFn(&TestDatabase, &Contest)) {
    let mut single = tokio::runtime::Builder::new_current_thread();
    let mut several = tokio::runtime::Builder::new_multi_thread();
    for runtime in [&mut single, several.worker_threads(2)] {
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            let database = database().await;
            for contest in contests(&database).await {
                test(&database, &contest).await;
                contest.assert_free().await;
            }
        });
    }
}

// The caller's task.

tokio::task_local! {
    static TENANT: String;
}

/// What a step of a handler sees of its task.
type Seen = (Option<String>, Option<Id>);

fn see() -> Seen {
    (TENANT.try_with(String::clone).ok(), tokio::task::try_id())
}

/// Looks before and after some awaits, of which the last waits for another task.
async fn look_around() -> Vec<Seen> {
    let mut seen = vec![see()];
    tokio::task::yield_now().await;
    seen.push(see());
    tokio::spawn(tokio::task::yield_now()).await.unwrap();
    seen.push(see());
    seen
}

#[test]
fn a_handler_runs_in_its_callers_task_before_and_after_its_awaits() {
    everywhere(&async |_, contest| {
        for waits in [false, true] {
            let (report, mut reported) = mpsc::unbounded_channel();
            let handler = service_fn(move |_: Request<String>| {
                let report = report.clone();
                async move {
                    report.send(look_around().await).unwrap();
                    Ok::<_, Infallible>(Response::new(String::new()))
                }
            });
            let locked = layer(contest).layer(handler);
            // A layer that sets a task-local for what is inside of it.
            let service = service_fn(move |request: Request<String>| {
                TENANT.scope("luke".into(), locked.clone().oneshot(request))
            });
            let before = if waits {
                Some(hold(&contest.other).await)
            } else {
                None
            };
            let call = tokio::spawn(async {
                let id = tokio::task::id();
                (id, service.oneshot(request()).await)
            });
            if let Some(end) = before {
                wait_until("a waiter", async || {
                    let mut all = contest.locks.status().into_iter();
                    all.any(|status| !status.is_held())
                })
                .await;
                end.send(()).unwrap();
            }
            let (caller, answer) = timeout(PATIENCE, call).await.expect("in time").unwrap();
            assert_eq!(answer.unwrap().status(), 200);
            let seen = reported.recv().await.unwrap();
            let expected = vec![(Some("luke".into()), Some(caller)); 3];
            assert_eq!(seen, expected, "{}, waits: {waits}", contest.strategy);
        }
    });
}

/// Holds the realm until told to end. The returned sender ends it.
async fn hold(locks: &RealmLocks) -> oneshot::Sender<()> {
    let locks = locks.clone();
    let (enter, entered) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let work = |_| async move {
            enter.send(()).unwrap();
            let _ = ended.await;
            Ok::<_, LockError>(())
        };
        locks.with_write_lock(claim(), work).await
    });
    entered.await.expect("it is granted");
    end
}

#[test]
fn a_job_runs_in_a_task_of_its_own_from_its_first_poll() {
    everywhere(&async |_, contest| {
        let locks = contest.locks.clone();
        let job = async move {
            let caller = tokio::task::id();
            let nested = locks.clone();
            let work = |_| async move {
                let seen = look_around().await;
                let work = |_| look_around().map(Ok::<_, LockError>);
                let nested = nested.with_write_lock(claim(), work).await?;
                Ok::<_, LockError>((seen, nested))
            };
            let done = locks.with_write_lock(claim(), work).await;
            (caller, done.unwrap())
        };
        let job = tokio::spawn(TENANT.scope("luke".into(), job));
        let (caller, (seen, nested)) = timeout(PATIENCE, job).await.expect("in time").unwrap();
        let own = seen[0].1.expect("a task");
        assert_ne!(own, caller, "{}", contest.strategy);
        assert_eq!(seen, vec![(None, Some(own)); 3], "{}", contest.strategy);
        let below = nested[0].1.expect("a task");
        assert!(below != own && below != caller, "{}", contest.strategy);
        assert_eq!(nested, vec![(None, Some(below)); 3], "{}", contest.strategy);
    });
}

// A caller that leaves.

async fn leaves(caller: JoinHandle<Outcome>) {
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
}

async fn succeeds(caller: JoinHandle<Outcome>) {
    assert_eq!(answered(caller).await.status(), 200);
}

#[test]
fn a_caller_that_leaves_the_queue_takes_nothing_along() {
    everywhere(&async |_, contest| {
        let (layer, (handler, mut gate)) = (layer(contest), gate());
        let first = patch(&layer, &handler, PATH);
        let inside = gate.entered().await;
        let gone = queue(&layer, &handler, "/luke/a/gone");
        let next = queue(&layer, &handler, "/luke/a/next");
        leaves(gone).await;
        inside.answer(200);
        succeeds(first).await;
        let inside = gate.entered().await;
        assert_eq!(inside.path, "/luke/a/next", "{}", contest.strategy);
        inside.answer(200);
        succeeds(next).await;
        assert!(gate.is_empty());
    });
}

#[test]
fn a_caller_that_leaves_while_it_waits_in_postgresql_never_runs() {
    everywhere(&async |database, contest| {
        if !contest.is_in_database() {
            return;
        }
        let (layer, (handler, mut gate)) = (layer(contest), gate());
        let foreign = database.hold(realm_key(REALM)).await;
        let gone = patch(&layer, &handler, "/luke/a/gone");
        database.wait_for_waiting(realm_key(REALM), 1).await;
        let next = queue(&layer, &handler, "/luke/a/next");
        leaves(gone).await;
        database.wait_for_waiting(realm_key(REALM), 1).await;
        foreign.batch_execute("COMMIT").await.unwrap();
        let inside = gate.entered().await;
        assert_eq!(inside.path, "/luke/a/next", "{}", contest.strategy);
        inside.answer(200);
        succeeds(next).await;
        assert!(gate.is_empty());
    });
}

/// A handler that makes a step each time the test asks for one, and answers after the third.
#[derive(Clone)]
struct Steps {
    room: Room,
    made: Arc<AtomicUsize>,
    started: Arc<AtomicUsize>,
    ask: mpsc::UnboundedSender<oneshot::Sender<()>>,
}

/// The test's side of [`Steps`].
struct Stepper {
    made: Arc<AtomicUsize>,
    started: Arc<AtomicUsize>,
    asked: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
}

fn steps(room: &Room) -> (Steps, Stepper) {
    let (ask, asked) = mpsc::unbounded_channel();
    let (made, started) = (Arc::default(), Arc::default());
    let steps = Steps {
        room: room.clone(),
        made: Arc::clone(&made),
        started: Arc::clone(&started),
        ask,
    };
    let stepper = Stepper {
        made,
        started,
        asked,
    };
    (steps, stepper)
}

impl Steps {
    async fn run(self, _: Request<String>) -> Result<Response<String>, Infallible> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let visit = self.room.enter("the handler");
        for _ in 0..3 {
            let (go, wait) = oneshot::channel();
            self.ask.send(go).expect("the test is there");
            wait.await.expect("the test lets it go on");
            self.made.fetch_add(1, Ordering::SeqCst);
        }
        drop(visit);
        Ok(Response::new(String::new()))
    }

    fn call(self, layer: &RealmWriteLockLayer) -> Call {
        let service = layer.layer(service_fn(move |request| self.clone().run(request)));
        Box::pin(
            service
                .oneshot(request())
                .map(|answer| answer.expect("infallible")),
        )
    }
}

type Call = Pin<Box<dyn Future<Output = Response<tower_realm_lock::LockBody<String>>> + Send>>;

impl Stepper {
    /// The permission for the next step, which the handler waits for.
    async fn next(&mut self) -> oneshot::Sender<()> {
        let asked = timeout(PATIENCE, self.asked.recv()).await;
        asked.expect("a step in time").expect("the handler runs")
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }
}

#[test]
fn a_call_whose_caller_leaves_after_the_grant_runs_to_completion_once_under_its_lock() {
    everywhere(&async |database, contest| {
        // At the first await, or in the middle.
        for done in 0..3 {
            let (handler, mut stepper) = steps(&contest.room);
            let caller = tokio::spawn(handler.call(&layer(contest)));
            let mut step = stepper.next().await;
            for _ in 0..done {
                step.send(()).unwrap();
                step = stepper.next().await;
            }
            caller.abort();
            assert!(caller.await.unwrap_err().is_cancelled());
            let rival = contest.rival_that_waits(database).await;
            let mut step = Some(step);
            for made in done..3 {
                let step = match step.take() {
                    Some(step) => step,
                    None => stepper.next().await,
                };
                assert_eq!(stepper.made(), made, "{}", contest.strategy);
                rival.assert_waits(contest.strategy);
                let goes_on = step.send(()).is_ok();
                assert!(goes_on, "{}: it was dropped", contest.strategy);
            }
            rival.enters().await;
            assert_eq!((stepper.made(), stepper.started()), (3, 1));
            contest.room.assert_alone(contest.strategy);
        }
    });
}

#[test]
fn a_call_that_is_dropped_without_a_task_runs_to_completion() {
    // The caller polls the call itself and drops it, as `select!` does.
    everywhere(&async |database, contest| {
        let (handler, mut stepper) = steps(&contest.room);
        let step = tokio::select! {
            answer = handler.call(&layer(contest)) => panic!("{:?}", answer.status()),
            step = stepper.next() => step,
        };
        let rival = contest.rival_that_waits(database).await;
        step.send(()).unwrap();
        for _ in 1..3 {
            stepper.next().await.send(()).unwrap();
        }
        rival.enters().await;
        assert_eq!((stepper.made(), stepper.started()), (3, 1));
    });
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_confirmation_does_not_keep_the_lock() {
    let database = database().await;
    for sessions in [0, 1] {
        let proxy = Proxy::to(database.url()).await;
        let options = |builder: PostgresBuilder| builder.sessions(sessions);
        let locks = postgres_locks_with(&proxy.url(database.url()), options).await;
        let other = postgres_locks_with(database.url(), |builder| builder).await;
        let layer = RealmWriteLockLayer::new(locks, realms());
        let (handler, mut gate) = gate();
        let caller = patch(&layer, &handler, PATH);
        let inside = gate.entered().await;
        proxy.freeze_requests();
        let held = inside.held.clone().unwrap();
        inside.answer(200);
        // The handler has ended when its hold is over.
        wait_until("the end of the hold", async || !held.is_held()).await;
        assert!(!caller.is_finished(), "it has no confirmation yet");
        leaves(caller).await;
        let next = rival(&other, &Room::default(), REALM);
        database.wait_for_waiting(realm_key(REALM), 1).await;
        proxy.thaw();
        next.enters().await;
        succeed_again(&layer, &handler, &mut gate).await;
    }
}

async fn succeed_again(layer: &RealmWriteLockLayer, handler: &Gated, gate: &mut Gate) {
    let next = patch(layer, handler, PATH);
    gate.entered().await.answer(200);
    succeeds(next).await;
    assert!(gate.is_empty(), "a handler ran twice");
}

#[tokio::test]
async fn a_caller_that_leaves_during_the_commit_does_not_undo_it() {
    let database = database().await;
    let client = database.connect().await;
    let table = "CREATE TABLE writes (n int)";
    client.batch_execute(table).await.unwrap();
    let proxy = Proxy::to(database.url()).await;
    let locks = postgres_locks_with(&proxy.url(database.url()), |builder| builder).await;
    let layer =
        RealmWriteLockLayer::new(locks, realms()).map_locks(|locks| locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let caller = patch(&layer, &handler, PATH);
    let inside = gate.entered().await;
    let transaction = inside.transaction().client().unwrap();
    let insert = "INSERT INTO writes VALUES (1)";
    transaction.batch_execute(insert).await.unwrap();
    drop(transaction);
    proxy.freeze_requests();
    let shared = inside.transaction().clone();
    inside.answer(200);
    wait_until("the commit", async || shared.client().is_err()).await;
    leaves(caller).await;
    proxy.thaw();
    database.wait_for_granted(realm_key(REALM), 0).await;
    let count = client.query_one("SELECT count(*) FROM writes", &[]).await;
    assert_eq!(count.unwrap().get::<_, i64>(0), 1);
    succeed_again(&layer, &handler, &mut gate).await;
}

#[test]
fn a_panic_reaches_the_caller_and_releases_and_the_handler_does_not_run_again() {
    everywhere(&async |_, contest| {
        for awaits in [false, true] {
            let polls = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&polls);
            let handler = service_fn(move |_: Request<String>| {
                let polls = Arc::clone(&counted);
                let mut left = usize::from(awaits);
                poll_fn(move |cx| {
                    polls.fetch_add(1, Ordering::SeqCst);
                    assert!(left > 0, "as the test asked");
                    left -= 1;
                    cx.waker().wake_by_ref();
                    Poll::<Result<Response<String>, Infallible>>::Pending
                })
            });
            let call = layer(contest).layer(handler).oneshot(request());
            // As a layer does that turns panics into responses.
            let caught = timeout(PATIENCE, AssertUnwindSafe(call).catch_unwind()).await;
            let panic = caught.expect("in time").expect_err("a panic");
            assert_eq!(panic.downcast_ref(), Some(&"as the test asked"));
            contest.assert_free().await;
            assert_eq!(polls.load(Ordering::SeqCst), 1 + usize::from(awaits));
        }
    });
}

// A caller that neither polls nor drops its call.

/// Polls a call without a waker until its handler waits for permission to make its first step.
async fn forgotten(call: &mut Call, stepper: &mut Stepper) -> oneshot::Sender<()> {
    let mut step = None;
    wait_until("the handler", async || {
        assert!(call.now_or_never().is_none());
        step = stepper.asked.try_recv().ok();
        step.is_some()
    })
    .await;
    step.expect("it is there")
}

/// Lets the handler of a forgotten call go on, and polls the call again. Fails unless it is
/// answered with the problem and its handler makes no further step.
async fn assert_stopped(
    call: Call,
    (step, stepper): (oneshot::Sender<()>, Stepper),
    (status, problem): (u16, &str),
) {
    // The handler may be gone already.
    let _ = step.send(());
    let answer = timeout(PATIENCE, call).await.expect("an answer in time");
    let (head, body) = answer.into_parts();
    assert_eq!(head.status, status);
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(code(&Response::new(body)), problem);
    assert_eq!((stepper.made(), stepper.started()), (0, 1));
}

#[tokio::test]
async fn a_forgotten_call_keeps_its_realm_for_its_max_hold_in_process() {
    const BOUND: Duration = Duration::from_millis(300);
    let locks = RealmLocks::in_process();
    let room = Room::default();
    let layer =
        RealmWriteLockLayer::new(locks.clone(), realms()).map_locks(|locks| locks.max_hold(BOUND));
    let (handler, mut stepper) = steps(&room);
    let mut call = handler.call(&layer);
    let begin = Instant::now();
    let step = forgotten(&mut call, &mut stepper).await;
    rival(&locks, &Room::default(), REALM).enters().await;
    let waited = begin.elapsed();
    assert!(waited >= BOUND && waited < BOUND + MARGIN, "{waited:?}");
    assert_stopped(call, (step, stepper), (504, "hold-expired")).await;
}

#[tokio::test]
async fn a_forgotten_call_keeps_its_realm_for_its_lease_in_postgresql() {
    const LEASE: Duration = Duration::from_secs(2);
    let database = database().await;
    for sessions in [0, 1] {
        for of_same_process in [true, false] {
            let options = |builder: PostgresBuilder| builder.lease(LEASE).sessions(sessions);
            let locks = postgres_locks_with(database.url(), options).await;
            let other = if of_same_process {
                locks.clone()
            } else {
                postgres_locks_with(database.url(), |builder| builder).await
            };
            let (handler, mut stepper) = steps(&Room::default());
            let mut call = handler.call(&RealmWriteLockLayer::new(locks, realms()));
            let step = forgotten(&mut call, &mut stepper).await;
            let begin = Instant::now();
            rival(&other, &Room::default(), REALM).enters().await;
            let waited = begin.elapsed();
            let who = format!("sessions: {sessions}, same process: {of_same_process}");
            assert!(waited < LEASE + MARGIN, "{who}: {waited:?}");
            assert_stopped(call, (step, stepper), (503, "lock-lost")).await;
        }
    }
}

#[test]
fn a_forgotten_job_runs_to_completion() {
    everywhere(&async |_, contest| {
        let (work, mut control) = gated_work(&contest.room, "the job");
        let locks = contest.locks.clone();
        let mut job = Box::pin(async move {
            let done = locks.with_write_lock(whole([REALM]), |_| work.run());
            done.await
        });
        let mut entered = Box::pin(control.entered());
        wait_until("the job", async || {
            assert!((&mut job).now_or_never().is_none());
            (&mut entered).now_or_never().is_some()
        })
        .await;
        drop(entered);
        control.end(Ok(()));
        assert!(control.ran_to_completion().await);
        contest.assert_free().await;
        timeout(PATIENCE, job).await.expect("in time").unwrap();
    });
}

/// Fails if a writer gets the realm within `time`, and returns when that has passed.
async fn assert_taken_for(locks: &RealmLocks, time: Duration) {
    let locks = locks.clone().acquire_timeout(time);
    let waited = locks.with_write_lock(claim(), async |_| Ok::<_, LockError>(()));
    let waited = waited.await;
    assert!(
        matches!(waited, Err(LockError::Timeout { .. })),
        "{waited:?}"
    );
}

#[tokio::test]
async fn a_call_that_waits_for_longer_than_its_bound_is_not_taken_for_a_forgotten_one() {
    const BOUND: Duration = Duration::from_millis(600);
    let database = database().await;
    for sessions in [0, 1] {
        let options = |builder: PostgresBuilder| builder.lease(BOUND).sessions(sessions);
        let locks = postgres_locks_with(database.url(), options).await;
        let (handler, mut gate) = gate();
        let call = patch(
            &RealmWriteLockLayer::new(locks.clone(), realms()),
            &handler,
            PATH,
        );
        let inside = gate.entered().await;
        assert_taken_for(&locks, BOUND * 3).await;
        inside.answer(200);
        assert_eq!(answered(call).await.status(), 200, "sessions: {sessions}");
    }
    let locks = RealmLocks::in_process().max_hold(BOUND);
    let (handler, mut gate) = gate();
    let layer = RealmWriteLockLayer::new(locks.clone(), realms());
    let call = patch(&layer, &handler, PATH);
    let inside = gate.entered().await;
    // The watchdog has visited it twice by then.
    assert_taken_for(&locks, BOUND * 9 / 10).await;
    inside.answer(200);
    assert_eq!(answered(call).await.status(), 200);
}

#[tokio::test]
async fn a_caller_may_wait_in_postgresql_for_longer_than_a_lease() {
    const LEASE: Duration = Duration::from_millis(300);
    let database = database().await;
    let other = postgres_locks_with(database.url(), |builder| builder).await;
    let end = hold(&other).await;
    let locks = postgres_locks_with(database.url(), |builder| builder.lease(LEASE)).await;
    let waits = rival(&locks, &Room::default(), REALM);
    wait_until("a waiter", async || {
        database.advisory_locks(realm_key(REALM)).await.1 == 1
    })
    .await;
    assert_taken_for(&locks, LEASE * 4).await;
    end.send(()).unwrap();
    waits.enters().await;
}

#[tokio::test]
async fn a_caller_may_wait_for_a_connection_for_longer_than_a_lease() {
    const LEASE: Duration = Duration::from_millis(300);
    let database = database().await;
    let options = |builder: PostgresBuilder| builder.lease(LEASE).pool_size(1);
    let locks = postgres_locks_with(database.url(), options).await;
    // The only connection.
    let (work, mut control) = gated_work(&Room::default(), "the other realm's");
    let busy = locks.clone();
    let busy =
        tokio::spawn(async move { busy.with_write_lock(whole(["b"]), |_| work.run()).await });
    control.entered().await;
    let waits = rival(&locks, &Room::default(), REALM);
    wait_until("a waiter", async || locks.status().len() == 2).await;
    assert_taken_for(&locks, LEASE * 4).await;
    control.end(Ok(()));
    busy.await.unwrap().unwrap();
    waits.enters().await;
}

#[tokio::test]
async fn a_forgotten_waiter_that_is_granted_does_not_keep_its_realm() {
    const BOUND: Duration = Duration::from_secs(1);
    let database = database().await;
    let mut all = vec![RealmLocks::in_process().max_hold(BOUND)];
    for sessions in [0, 1] {
        let options = |builder: PostgresBuilder| builder.lease(BOUND).sessions(sessions);
        all.push(postgres_locks_with(database.url(), options).await);
    }
    for locks in all {
        let end = hold(&locks).await;
        let (handler, stepper) = steps(&Room::default());
        let mut call = handler.call(&RealmWriteLockLayer::new(locks.clone(), realms()));
        assert!((&mut call).now_or_never().is_none());
        let begin = Instant::now();
        end.send(()).unwrap();
        rival(&locks, &Room::default(), REALM).enters().await;
        assert!(begin.elapsed() < BOUND + MARGIN);
        let answer = timeout(PATIENCE, call).await.expect("an answer in time");
        assert_eq!(answer.status(), 503);
        assert_eq!(stepper.started(), 0, "its handler is never called");
    }
}
