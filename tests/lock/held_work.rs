//! Work that a handler starts as a part of its hold keeps the lock until it has ended, however the
//! handler itself ends.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use axum::routing::patch as patch_route;
use axum::{Extension, Router};
use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tower_realm_lock::{
    Claim, HeldLock, HeldTask, LockError, OnDisconnect, RealmLocks, RealmWriteLockLayer,
    RealmWrites,
};

use crate::support::broadcast::{expect_interruption, next_write, telling};
use crate::support::claims::{realm, whole};
use crate::support::contest::{Contest, PATH, REALM, Room, claim, contests};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{
    answered, assert_lost, code, gate, key, patch, postgres_locks_with, realms,
};
use crate::support::raw::Connection;
use crate::support::wait::{PATIENCE, wait_until};
use crate::support::writes::{database_with_writes, insert, written};

/// What the work reports.
const DONE: &str = "done";

fn layer(locks: &RealmLocks) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(locks.clone(), realms())
}

/// Starts work of either kind, which stays in the room until the test lets it go, and then reports
/// whether its write may become visible.
fn start(held: &HeldLock, room: &Room, blocks: bool) -> (Running, HeldTask<&'static str>) {
    let (enter, entered) = oneshot::channel();
    let (report, ensured) = oneshot::channel();
    let (check, visit) = (held.clone(), room.clone());
    if blocks {
        let (go, gone) = channel::<()>();
        let task = held.spawn_blocking(move || {
            let visit = visit.enter("the work");
            enter.send(()).unwrap();
            gone.recv().expect("the test lets it go");
            let _ = report.send(check.ensure_held());
            drop(visit);
            DONE
        });
        (
            Running {
                entered,
                go: Go::Thread(go),
                ensured,
            },
            task,
        )
    } else {
        let (go, gone) = oneshot::channel::<()>();
        let task = held.spawn(async move {
            let visit = visit.enter("the work");
            enter.send(()).unwrap();
            gone.await.expect("the test lets it go");
            let _ = report.send(check.ensure_held());
            drop(visit);
            DONE
        });
        (
            Running {
                entered,
                go: Go::Task(go),
                ensured,
            },
            task,
        )
    }
}

/// The test's side of [`start`].
struct Running {
    entered: oneshot::Receiver<()>,
    go: Go,
    ensured: oneshot::Receiver<Result<(), LockError>>,
}

enum Go {
    Thread(Sender<()>),
    Task(oneshot::Sender<()>),
}

impl Running {
    async fn inside(&mut self) {
        let entered = timeout(PATIENCE, &mut self.entered).await;
        entered.expect("inside in time").expect("it runs");
    }

    /// Lets the work go on; what it then finds out about its lock.
    async fn go_on(self) -> Result<(), LockError> {
        match self.go {
            Go::Thread(go) => go.send(()).unwrap(),
            Go::Task(go) => go.send(()).unwrap(),
        }
        let ensured = timeout(PATIENCE, self.ensured).await;
        ensured.expect("in time").expect("it looks")
    }
}

/// Runs a test with each way to hold locks, for blocking closures and for futures.
async fn everywhere(test: impl AsyncFn(&TestDatabase, &Contest, bool)) {
    let database = database().await;
    for contest in contests(&database).await {
        for blocks in [true, false] {
            test(&database, &contest, blocks).await;
            contest.assert_free().await;
        }
    }
}

#[tokio::test]
async fn after_max_hold_the_answer_is_on_time_and_the_next_writer_waits_for_the_work() {
    everywhere(async |database, contest, blocks| {
        let max_hold = Duration::from_millis(200);
        let layer = layer(&contest.locks.clone().max_hold(max_hold));
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let mut call = gate.entered().await;
        let (mut work, task) = start(call.held.as_ref().unwrap(), &contest.room, blocks);
        work.inside().await;
        let response = answered(write).await;
        assert_eq!(response.status(), 504);
        assert_eq!(code(&response), "hold-expired");
        call.dropped().await;
        let held = call.held.clone().unwrap();
        assert!(!held.is_held(), "{}", contest.strategy);

        let rival = contest.rival_that_waits(database).await;
        let ensured = work.go_on().await.unwrap_err();
        assert!(matches!(ensured, LockError::Expired { .. }), "{ensured}");
        assert_eq!(task.await.unwrap(), DONE);
        rival.enters().await;
        let ended = held.ensure_held().unwrap_err();
        assert!(matches!(ended, LockError::Ended { .. }), "{ended}");
    })
    .await;
}

#[tokio::test]
async fn after_a_disconnect_the_next_writer_waits_for_the_work() {
    everywhere(async |database, contest, blocks| {
        let layer = layer(&contest.locks).on_disconnect(OnDisconnect::Cancel);
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let mut call = gate.entered().await;
        let (mut work, task) = start(call.held.as_ref().unwrap(), &contest.room, blocks);
        // Nobody waits for it.
        drop(task);
        work.inside().await;
        write.abort();
        call.dropped().await;

        let rival = contest.rival_that_waits(database).await;
        work.go_on().await.expect("the lock is still held");
        rival.enters().await;
    })
    .await;
}

#[tokio::test]
async fn after_a_client_has_closed_its_connection_the_next_writer_waits_for_the_work() {
    let database = database().await;
    for contest in contests(&database).await {
        let layer = layer(&contest.locks).on_disconnect(OnDisconnect::Cancel);
        let (report, mut reported) = mpsc::unbounded_channel();
        let room = contest.room.clone();
        let handler = async move |Extension(held): Extension<HeldLock>| {
            let (work, task) = start(&held, &room, true);
            let (alive, dropped) = oneshot::channel::<()>();
            report.send((work, dropped)).unwrap();
            let _ = task.await;
            drop(alive);
        };
        let app = Router::new()
            .route("/{owner}/{realm}/card", patch_route(handler))
            .layer(layer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await });

        let head = format!("PATCH {PATH} HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n");
        let client = Connection::with(address, &head).await;
        let (mut work, dropped) = timeout(PATIENCE, reported.recv()).await.unwrap().unwrap();
        work.inside().await;
        drop(client);
        let dropped = timeout(PATIENCE, dropped).await;
        dropped.expect("the handler is dropped").unwrap_err();
        let rival = contest.rival_that_waits(&database).await;
        work.go_on().await.expect("the lock is still held");
        rival.enters().await;
        server.abort();
    }
}

#[tokio::test]
async fn after_a_panic_of_the_handler_the_next_writer_waits_for_the_work() {
    everywhere(async |database, contest, blocks| {
        let (handler, mut gate) = gate();
        let write = patch(&layer(&contest.locks), &handler, PATH);
        let call = gate.entered().await;
        let (mut work, _task) = start(call.held.as_ref().unwrap(), &contest.room, blocks);
        work.inside().await;
        call.panic();
        assert!(write.await.unwrap_err().is_panic());

        let rival = contest.rival_that_waits(database).await;
        work.go_on().await.expect("the lock is still held");
        rival.enters().await;
    })
    .await;
}

#[tokio::test]
async fn a_success_leaves_while_the_work_still_keeps_the_lock() {
    everywhere(async |database, contest, blocks| {
        let (handler, mut gate) = gate();
        let write = patch(&layer(&contest.locks), &handler, PATH);
        let call = gate.entered().await;
        let held = call.held.clone().unwrap();
        let (mut work, task) = start(&held, &contest.room, blocks);
        work.inside().await;
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
        assert!(held.is_held());

        let rival = contest.rival_that_waits(database).await;
        work.go_on().await.expect("the lock is still held");
        assert_eq!(task.await.unwrap(), DONE);
        rival.enters().await;
        assert!(!held.is_held());
    })
    .await;
}

#[tokio::test]
async fn awaited_work_costs_no_second_release() {
    everywhere(async |_, contest, blocks| {
        let room = contest.room.clone();
        let job = contest
            .locks
            .with_write_lock(claim(), move |held| async move {
                let (mut work, task) = start(&held, &room, blocks);
                work.inside().await;
                work.go_on().await?;
                assert_eq!(task.await?, DONE);
                assert!(held.is_held());
                Ok::<_, LockError>(())
            });
        job.await.unwrap();
        // It was released when the job was answered, or handed on.
        let status = contest.locks.status();
        assert!(status.is_empty(), "{}: {status:?}", contest.strategy);
    })
    .await;
}

#[tokio::test]
async fn work_that_loses_its_lock_is_told_so_before_its_write() {
    let database = database().await;
    for contest in contests(&database).await {
        if contest.strategy != "transactions" {
            continue;
        }
        for blocks in [true, false] {
            let layer = layer(&contest.locks);
            let (handler, mut gate) = gate();
            let write = patch(&layer, &handler, PATH);
            let mut call = gate.entered().await;
            let held = call.held.clone().unwrap();
            let (mut work, task) = start(&held, &Room::default(), blocks);
            work.inside().await;
            let pid = database.holder_pid(key(PATH)).await.expect("a holder");
            database.terminate(pid).await;
            assert_lost(&answered(write).await);
            call.dropped().await;
            if blocks {
                // It cannot be stopped; so it asks.
                let lost = work.go_on().await.unwrap_err();
                assert!(matches!(lost, LockError::Lost { .. }), "{lost}");
                assert_eq!(task.await.unwrap(), DONE);
            } else {
                // It is dropped at its next step.
                let lost = timeout(PATIENCE, task).await.expect("in time").unwrap_err();
                assert!(matches!(lost, LockError::Lost { .. }), "{lost}");
                assert!(work.ensured.await.is_err(), "it went on");
            }
            contest.assert_free().await;
        }
    }
}

#[tokio::test]
async fn work_of_a_hold_that_has_ended_is_not_started() {
    for contest in contests(&database().await).await {
        let escaped = contest
            .locks
            .with_write_lock(claim(), |held| async { Ok::<_, LockError>(held) })
            .await
            .unwrap();
        let blocking = escaped.spawn_blocking(|| panic!("it runs"));
        let future = escaped.spawn(async { panic!("it runs") });
        let refusals: [HeldTask<()>; 2] = [blocking, future];
        for refused in refusals {
            let ended = refused.await.unwrap_err();
            assert!(matches!(ended, LockError::Ended { .. }), "{ended}");
            assert_eq!(ended.claim(), Some(&claim()));
        }
    }
}

#[tokio::test]
async fn a_panic_of_the_work_reaches_whoever_waits_for_it_and_gives_the_lock_back() {
    for contest in contests(&database().await).await {
        for blocks in [true, false] {
            let job = contest
                .locks
                .with_write_lock(claim(), move |held| async move {
                    let work = if blocks {
                        held.spawn_blocking(|| panic!("as the test asked"))
                    } else {
                        held.spawn(async { panic!("as the test asked") })
                    };
                    work.await
                });
            let job = std::panic::AssertUnwindSafe(job).catch_unwind();
            let panic = timeout(PATIENCE, job).await.expect("in time").unwrap_err();
            assert_eq!(panic.downcast_ref(), Some(&"as the test asked"));
            contest.assert_free().await;
        }
    }
}

#[tokio::test]
async fn a_lock_that_the_work_asks_for_is_nested() {
    for contest in contests(&database().await).await {
        let locks = contest.locks.clone();
        let job = contest
            .locks
            .with_write_lock(claim(), move |held| async move {
                let runtime = Handle::current();
                held.spawn_blocking(move || {
                    runtime.block_on(locks.with_write_lock(claim(), |inner| async move {
                        Ok::<_, LockError>(inner.is_held())
                    }))
                })
                .await?
            });
        assert!(timeout(PATIENCE, job).await.expect("no wait").unwrap());
    }
}

#[tokio::test]
async fn a_shared_transaction_commits_when_the_work_has_ended() {
    let (database, layer) = sharing(PATIENCE).await;
    for (status, rows) in [(200, 2), (409, 2)] {
        let (handler, mut gate) = gate();
        let mut write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let held = call.held.clone().unwrap();
        let lock = held.clone();
        let (go, gone) = oneshot::channel::<()>();
        let task = held.spawn(async move {
            gone.await.unwrap();
            for _ in 0..2 {
                insert(&lock).await;
            }
        });
        call.answer(status);
        if status == 200 {
            let early = timeout(Duration::from_millis(50), &mut write).await;
            assert!(early.is_err(), "answered before the commit");
        }
        go.send(()).unwrap();
        task.await.unwrap();
        assert_eq!(answered(write).await.status(), status);
        database.wait_for_granted(key(PATH), 0).await;
        assert_eq!(written(&database).await, rows, "{status}");
    }
}

#[tokio::test]
async fn what_the_work_of_a_stopped_call_wrote_is_published() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder.broadcast(true)).await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let layer = layer(&locks).on_disconnect(OnDisconnect::Cancel);
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let mut call = gate.entered().await;
    let (mut work, task) = start(call.held.as_ref().unwrap(), &Room::default(), true);
    work.inside().await;
    write.abort();
    call.dropped().await;
    work.go_on().await.unwrap();
    task.await.unwrap();
    let heard = next_write(&mut writes).await;
    assert_eq!(Claim::realm(heard.realm()), whole([REALM]));
}

#[tokio::test]
async fn a_shutdown_waits_for_the_work() {
    let locks = RealmLocks::in_process();
    let (go, gone): (Sender<()>, Receiver<()>) = channel();
    locks
        .with_write_lock(claim(), |held| async move {
            drop(held.spawn_blocking(move || gone.recv()));
            Ok::<_, LockError>(())
        })
        .await
        .unwrap();
    let short = locks.shutdown(Duration::from_millis(20)).await;
    assert!(matches!(short, Err(LockError::ShutdownIncomplete { .. })));
    go.send(()).unwrap();
    locks.shutdown(PATIENCE).await.unwrap();
    wait_until("no holds", async || locks.status().is_empty()).await;
}

/// A layer that shares its transaction, and a table to write to.
async fn sharing(max_hold: Duration) -> (TestDatabase, RealmWriteLockLayer) {
    let database = database_with_writes().await;
    let locks = postgres_locks_with(database.url(), |builder| builder).await;
    let layer = layer(&locks.share_transaction(true).max_hold(max_hold));
    (database, layer)
}

#[tokio::test]
async fn a_commit_does_not_wait_for_work_that_takes_too_long() {
    let (database, layer) = sharing(Duration::from_millis(300)).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let held = call.held.clone().unwrap();
    insert(&held).await;
    let (go, gone) = oneshot::channel::<()>();
    let task = held.spawn(gone);
    call.answer(200);
    let response = answered(write).await;
    assert_eq!(response.status(), 504);
    assert_eq!(code(&response), "hold-expired");
    assert_eq!(database.advisory_locks(key(PATH)).await.0, 1);
    go.send(()).unwrap();
    task.await.unwrap().unwrap();
    database.wait_for_granted(key(PATH), 0).await;
    assert_eq!(written(&database).await, 0);
}

#[tokio::test]
async fn a_panic_of_the_work_rolls_back_the_commit_that_waits_for_it() {
    for blocks in [true, false] {
        let (database, layer) = sharing(PATIENCE).await;
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let held = call.held.clone().unwrap();
        insert(&held).await;
        let (go, gone) = oneshot::channel::<()>();
        let task = if blocks {
            held.spawn_blocking(move || panic!("as the test asked: {:?}", gone.blocking_recv()))
        } else {
            held.spawn(async move { panic!("as the test asked: {:?}", gone.await) })
        };
        drop::<HeldTask<()>>(task);
        // From its first poll on the transaction is about to commit.
        assert!(held.release().now_or_never().is_none());
        go.send(()).unwrap();
        let failed = timeout(PATIENCE, held.release()).await.expect("in time");
        let failed = failed.unwrap_err();
        assert!(matches!(failed, LockError::CommitFailed { .. }), "{failed}");
        call.answer(200);
        let response = answered(write).await;
        assert_eq!(code(&response), "commit-failed");
        database.wait_for_granted(key(PATH), 0).await;
        assert_eq!(written(&database).await, 0);
    }
}

#[tokio::test]
async fn a_release_that_would_wait_for_its_own_work_is_refused() {
    let (database, layer) = sharing(PATIENCE).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let held = call.held.clone().unwrap();
    let (lock, runtime) = (held.clone(), Handle::current());
    let blocking = held.spawn_blocking(move || runtime.block_on(lock.release()));
    let lock = held.clone();
    let future = held.spawn(async move { lock.release().await });
    for task in [blocking, future] {
        let refused = timeout(PATIENCE, task).await.expect("no wait").unwrap();
        let refused = refused.unwrap_err();
        assert!(matches!(&refused, LockError::Config(_)), "{refused}");
    }
    assert!(held.is_held());
    held.release().await.unwrap();
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn a_write_is_told_once_the_work_that_is_a_part_of_it_has_ended() {
    let database = database().await;
    let client = database.connect().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for locks in telling(&database).await {
        let (go, gone) = channel::<()>();
        let started = locks.with_write_lock(whole(["a"]), |held| async move {
            drop(held.spawn_blocking(move || gone.recv()));
            Ok::<_, LockError>(())
        });
        started.await.unwrap();
        let mark = "NOTIFY tower_realm_lock, 'nonsense'";
        client.batch_execute(mark).await.unwrap();
        expect_interruption(&mut writes).await;
        go.send(()).unwrap();
        assert_eq!(next_write(&mut writes).await.realm(), &realm("a"));
    }
}
