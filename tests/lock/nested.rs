//! A lock asked for by work that already holds it: a nested hold shares the outer lock and keeps it
//! for as long as it needs it. The wait for another realm is bounded.

use std::convert::Infallible;
use std::future::{Future, pending, ready};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::FutureExt;
use futures_util::stream::unfold;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::{Barrier, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{
    Claim, ConfigError, HeldLock, HoldUntil, LockError, OnDisconnect, RealmLocks,
    RealmWriteLockLayer, RealmWrites, Rejection, Success,
};

use crate::support::broadcast::{expect_interruption, next_write, succeed, telling};
use crate::support::claims::{cards, realm, realm_key, strategies, whole};
use crate::support::contest::{
    Contest, Control, GatedWork, PATH, REALM, Room, claim, contests, gated_work, rival,
};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{Call, at_once, code, gate, key, postgres_locks_with, realms};
use crate::support::wait::{PATIENCE, wait_until};

async fn locks(database: &TestDatabase) -> RealmLocks {
    postgres_locks_with(database.url(), |builder| builder.pool_size(2))
        .await
        .acquire_timeout(Duration::from_secs(2))
}

#[tokio::test]
async fn a_layer_in_a_layer_and_a_job_in_a_handler_run_straight_through() {
    let database = database().await;
    for locks in [locks(&database).await, RealmLocks::in_process()] {
        let layer = RealmWriteLockLayer::new(locks.clone(), realms());
        let handler = service_fn(move |request: Request<String>| {
            let locks = locks.clone();
            async move {
                let outer: HeldLock = request.extensions().get().cloned().unwrap();
                let realm = realm("a");
                let nested = locks.with_write_lock(&realm, |inner| async move {
                    assert!(inner.is_held());
                    Ok::<_, LockError>(inner.claim().clone())
                });
                assert_eq!(nested.await.unwrap(), *outer.claim());
                assert!(outer.is_held(), "the inner end did not release");
                Ok::<_, Infallible>(Response::new(String::from("done")))
            }
        });
        let service = layer.layer(layer.layer(handler));
        let request = Request::patch("/luke/a/card").body(String::new()).unwrap();
        assert_eq!(service.oneshot(request).await.unwrap().status(), 200);
    }
    database.wait_for_granted(key("/luke/a"), 0).await;
}

#[tokio::test]
async fn another_realm_in_a_hold_is_granted_and_its_wait_is_bounded_and_names_both() {
    let database = database().await;
    let locks = locks(&database).await;
    let inner = locks.clone();
    locks
        .with_write_lock(&realm("a"), move |_| async move {
            inner
                .with_write_lock(&realm("b"), |_| async { Ok::<_, LockError>(()) })
                .await
        })
        .await
        .unwrap();

    let holder = database.connect().await;
    let lock = format!("SELECT pg_advisory_lock({})", key("/luke/b"));
    holder.batch_execute(&lock).await.unwrap();
    let inner = locks.clone().acquire_timeout(Duration::from_millis(100));
    let stuck = locks
        .with_write_lock(&realm("a"), move |_| async move {
            inner
                .with_write_lock(&realm("b"), |_| async { Ok::<_, LockError>(()) })
                .await
        })
        .await
        .unwrap_err();
    assert!(
        matches!(stuck.innermost(), LockError::Timeout { .. }),
        "{stuck}"
    );
    let text = stuck.to_string();
    assert!(
        text.contains(realm("a").as_str()) && text.contains(realm("b").as_str()),
        "{text}"
    );
}

#[tokio::test]
async fn two_that_wait_for_each_other_both_end() {
    let database = database().await;
    let locks = locks(&database)
        .await
        .acquire_timeout(Duration::from_millis(300));
    let barrier = Arc::new(Barrier::new(2));
    let cross = |first: &'static str, second: &'static str| {
        let (outer, inner) = (locks.clone(), locks.clone());
        let barrier = barrier.clone();
        async move {
            outer
                .with_write_lock(&realm(first), move |_| async move {
                    barrier.wait().await;
                    inner
                        .with_write_lock(&realm(second), |_| async { Ok::<_, LockError>(()) })
                        .await
                })
                .await
        }
    };
    let (one, two) = tokio::join!(cross("a", "b"), cross("b", "a"));
    assert!(one.is_err() || two.is_err());
    for realm in ["/luke/a", "/luke/b"] {
        database.wait_for_granted(key(realm), 0).await;
    }
}

#[tokio::test]
async fn other_tasks_and_other_locks_do_not_run_through() {
    let one = RealmLocks::in_process().acquire_timeout(Duration::from_millis(50));
    let separate = one_that_is_busy().await;
    let (spawning, inside) = (one.clone(), separate.clone());
    one.with_write_lock(&realm("a"), move |_| async move {
        let task = tokio::spawn(async move {
            spawning
                .with_write_lock(&realm("a"), |_| async { Ok::<_, LockError>(()) })
                .await
        });
        let refused = task.await.unwrap();
        assert!(
            matches!(refused, Err(LockError::Timeout { .. })),
            "{refused:?}"
        );
        let refused = inside
            .with_write_lock(&realm("a"), |_| async { Ok::<_, LockError>(()) })
            .await;
        assert!(
            matches!(refused, Err(LockError::Nested { .. })),
            "{refused:?}"
        );
        Ok::<_, LockError>(())
    })
    .await
    .unwrap();
}

/// Locks of their own, whose realm `a` is held by another task.
async fn one_that_is_busy() -> RealmLocks {
    let locks = RealmLocks::in_process().acquire_timeout(Duration::from_millis(50));
    let holder = locks.clone();
    let (inside, is_inside) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        holder
            .with_write_lock(&realm("a"), |_| async {
                inside.send(()).unwrap();
                std::future::pending::<Result<(), LockError>>().await
            })
            .await
    });
    is_inside.await.unwrap();
    locks
}

/// Asks for `inner` within a hold of `outer`.
async fn within(locks: &RealmLocks, outer: Claim, inner: Claim) -> Result<Claim, LockError> {
    let nested = locks.clone();
    let work = move |_| async move {
        let work = |held: HeldLock| async move { Ok::<_, LockError>(held.claim().clone()) };
        nested.with_write_lock(inner, work).await
    };
    locks.with_write_lock(outer, work).await
}

#[tokio::test]
async fn a_part_of_what_is_held_is_held() {
    let database = database().await;
    for locks in [locks(&database).await, RealmLocks::in_process()] {
        for (outer, inner) in [
            (whole(["a", "b"]), whole(["b"])),
            (whole(["a"]), cards("a", ["x"])),
            (whole(["a"]), cards("a", [])),
            (cards("a", ["x", "y"]), cards("a", ["y"])),
        ] {
            let held = within(&locks, outer, inner.clone()).await.unwrap();
            assert_eq!(held, inner);
        }
    }
}

#[tokio::test]
async fn more_of_what_is_held_in_part_is_refused_at_once_instead_of_waiting_for_itself() {
    let locks = RealmLocks::in_process().acquire_timeout(Duration::from_secs(3600));
    for (outer, inner) in [
        (cards("a", ["x"]), whole(["a"])),
        (cards("a", ["x"]), cards("a", ["x", "y"])),
        (cards("a", ["x"]), cards("a", ["y"])),
        (whole(["a"]), whole(["a", "b"])),
    ] {
        let refused = within(&locks, outer.clone(), inner.clone())
            .await
            .unwrap_err();
        assert!(matches!(refused, LockError::OwnLock { .. }), "{refused}");
        let text = refused.to_string();
        assert!(
            text.contains(&outer.to_string()) && text.contains(&inner.to_string()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn several_holds_of_one_task_cover_a_claim_together() {
    let database = database().await;
    for (strategy, [locks, _]) in strategies(&database).await {
        let patient = locks.clone().acquire_timeout(Duration::from_secs(3600));
        for (first, second, both) in [
            (whole(["a"]), whole(["b"]), whole(["a", "b"])),
            (
                cards("a", ["x"]),
                cards("b", ["y"]),
                cards("a", ["x"]).and(&cards("b", ["y"])),
            ),
            (
                whole(["a"]),
                cards("b", ["x", "y"]),
                cards("a", ["x"]).and(&cards("b", ["y"])),
            ),
        ] {
            let granted = within_two(&patient, [first, second], both.clone()).await;
            assert_eq!(granted.unwrap(), both, "{strategy}");
        }
        let more = whole(["a", "b", "c"]);
        let refused = within_two(&patient, [whole(["a"]), whole(["b"])], more).await;
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused.innermost(), LockError::OwnLock { .. }),
            "{strategy}: {refused}"
        );
    }
}

/// Asks for `inner` within a hold within another hold.
async fn within_two(
    locks: &RealmLocks,
    [first, second]: [Claim; 2],
    inner: Claim,
) -> Result<Claim, LockError> {
    let nested = locks.clone();
    let work = move |_| async move { within(&nested, second, inner).await };
    let granted = timeout(PATIENCE, locks.with_write_lock(first, work)).await;
    granted.expect("granted at once")
}

/// A call that stays inside its lock until the test ends it.
type Nested = Pin<Box<dyn Future<Output = Result<(), LockError>> + Send>>;

fn call(locks: &RealmLocks, claim: Claim, work: GatedWork) -> Nested {
    let locks = locks.clone();
    Box::pin(async move { locks.with_write_lock(claim, |_| work.run()).await })
}

/// Polls a call once, and moves it to another task.
fn moved(mut call: Nested) -> JoinHandle<Result<(), LockError>> {
    assert!((&mut call).now_or_never().is_none());
    tokio::spawn(call)
}

/// Moves a nested call to another task after its first poll. Returns when the outer work has ended
/// and the nested work is inside.
async fn outlasting_its_outer_hold(
    contest: &Contest,
) -> (Control, JoinHandle<Result<(), LockError>>) {
    let (work, mut control) = gated_work(&contest.room, "the nested work");
    let nested = call(&contest.locks, claim(), work);
    let outer = contest
        .locks
        .with_write_lock(claim(), |_| async { Ok::<_, LockError>(moved(nested)) });
    let task = timeout(PATIENCE, outer).await;
    let task = task.expect("the outer work ends in time").unwrap();
    control.entered().await;
    (control, task)
}

async fn outcome(task: JoinHandle<Result<(), LockError>>) -> Result<(), LockError> {
    let ended = timeout(PATIENCE, task).await;
    ended.expect("an end in time").expect("no panic")
}

#[tokio::test]
async fn nested_work_that_moves_to_another_task_keeps_the_lock_until_it_ends() {
    let database = database().await;
    for contest in contests(&database).await {
        let (mut control, task) = outlasting_its_outer_hold(&contest).await;
        let rival = contest.rival_that_waits(&database).await;
        control.end(Ok(()));
        outcome(task).await.unwrap();
        rival.enters().await;
        contest.room.assert_alone(contest.strategy);
    }
    database.wait_for_granted(realm_key(REALM), 0).await;
}

#[tokio::test]
async fn a_nested_hold_keeps_all_outer_locks_that_cover_it_together() {
    let database = database().await;
    for contest in contests(&database).await {
        let (work, mut control) = gated_work(&contest.room, "the nested work");
        let both = whole([REALM, "b"]);
        let patient = contest.locks.clone().acquire_timeout(PATIENCE);
        let nested = call(&patient, both, work);
        let middle = contest.locks.clone();
        let outer = contest.locks.with_write_lock(claim(), |_| async move {
            let work = |_| async { Ok::<_, LockError>(moved(nested)) };
            middle.with_write_lock(whole(["b"]), work).await
        });
        let task = timeout(PATIENCE, outer).await.expect("in time").unwrap();
        control.entered().await;
        let mut rivals = Vec::new();
        for name in [REALM, "b"] {
            rivals.push(contest.rival_that_waits_for(&database, name).await);
        }
        control.end(Ok(()));
        outcome(task).await.unwrap();
        // The rivals have different realms, so they may be inside together.
        for rival in rivals {
            rival.enters().await;
        }
    }
}

#[tokio::test]
async fn nested_work_runs_to_completion_under_the_lock_when_its_caller_leaves() {
    let database = database().await;
    for contest in contests(&database).await {
        for limit in [None, Some(Duration::from_millis(50))] {
            let (work, mut control) = gated_work(&contest.room, "the nested work");
            let nested = call(&contest.locks, claim(), work);
            let outer = contest.locks.with_write_lock(claim(), move |_| async move {
                if let Some(limit) = limit {
                    assert!(timeout(limit, nested).await.is_err());
                    control.entered().await;
                } else {
                    tokio::select! {
                        ended = nested => panic!("{ended:?}"),
                        () = control.entered() => {}
                    }
                }
                Ok::<_, LockError>(control)
            });
            let mut control = outer.await.unwrap();
            let rival = contest.rival_that_waits(&database).await;
            control.end(Ok(()));
            let completed = control.ran_to_completion().await;
            assert!(completed, "{}: it was cut in half", contest.strategy);
            rival.enters().await;
            contest.room.assert_alone(contest.strategy);
        }
    }
}

fn request() -> Request<String> {
    Request::patch(PATH).body(String::new()).unwrap()
}

/// Drops a nested layer's call that is inside its handler, and ends the outer work.
async fn dropped_in_its_handler(contest: &Contest, policy: OnDisconnect) -> Call {
    let layer = RealmWriteLockLayer::new(contest.locks.clone(), realms()).on_disconnect(policy);
    let (handler, mut gate) = gate();
    let outer = contest.locks.with_write_lock(claim(), move |_| async move {
        let inside = tokio::select! {
            ended = layer.layer(handler).oneshot(request()) => panic!("{:?}", ended.is_ok()),
            inside = gate.entered() => inside,
        };
        Ok::<_, LockError>(inside)
    });
    outer.await.unwrap()
}

#[tokio::test]
async fn a_nested_layers_call_runs_to_completion_when_its_client_leaves() {
    let database = database().await;
    for contest in contests(&database).await {
        let call = dropped_in_its_handler(&contest, OnDisconnect::Finish).await;
        assert!(!call.was_dropped(), "{}", contest.strategy);
        let rival = contest.rival_that_waits(&database).await;
        assert!(call.held.as_ref().unwrap().is_held());
        assert!(!call.was_dropped(), "{}", contest.strategy);
        call.answer(200);
        rival.enters().await;
    }
}

#[tokio::test]
async fn a_nested_layers_call_can_end_with_its_client() {
    let database = database().await;
    for contest in contests(&database).await {
        let mut call = dropped_in_its_handler(&contest, OnDisconnect::Cancel).await;
        call.dropped().await;
        contest.assert_free().await;
    }
}

type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A call through two layers whose body streams what the returned sender sends. The handler is in
/// the room until its body has ended.
async fn streaming(
    outer: &RealmWriteLockLayer,
    inner: &RealmWriteLockLayer,
    room: &Room,
) -> (mpsc::UnboundedSender<&'static str>, Body) {
    let (chunks, receiver) = mpsc::unbounded_channel();
    let parts = Arc::new(Mutex::new(Some((receiver, room.clone()))));
    let handler = service_fn(move |_: Request<String>| {
        let (receiver, room) = parts.lock().unwrap().take().expect("one call");
        let visit = room.enter("the stream");
        let stream = unfold((receiver, visit), async |(mut receiver, visit)| {
            let chunk: &str = receiver.recv().await?;
            let frame = Frame::data(Bytes::from(chunk));
            Some((Ok::<_, Infallible>(frame), (receiver, visit)))
        });
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(
            Box::pin(stream),
        ))))
    });
    let service = outer.layer(inner.layer(handler));
    let response = timeout(PATIENCE, service.oneshot(request())).await;
    let response = response.expect("an answer in time").unwrap();
    assert_eq!(response.status(), 200);
    (chunks, response.into_body().boxed_unsync())
}

/// The next data of a body; `None` at its end.
async fn next_chunk(body: &mut Body) -> Option<Bytes> {
    let frame = timeout(PATIENCE, body.frame()).await;
    let frame = frame.expect("a frame in time")?;
    Some(frame.expect("no error").into_data().unwrap())
}

#[tokio::test]
async fn a_nested_layers_body_keeps_the_lock_after_the_outer_call_has_answered() {
    let database = database().await;
    for contest in contests(&database).await {
        for breaks_off in [false, true] {
            let outer = RealmWriteLockLayer::new(contest.locks.clone(), realms());
            let inner = outer.clone().hold_until(HoldUntil::BodyEnd);
            let (chunks, mut body) = streaming(&outer, &inner, &contest.room).await;
            chunks.send("one").unwrap();
            assert_eq!(next_chunk(&mut body).await.unwrap(), "one");
            let rival = contest.rival_that_waits(&database).await;
            chunks.send("two").unwrap();
            assert_eq!(next_chunk(&mut body).await.unwrap(), "two");
            rival.assert_waits(contest.strategy);
            if breaks_off {
                drop(body);
            } else {
                drop(chunks);
                assert!(next_chunk(&mut body).await.is_none());
            }
            rival.enters().await;
            contest.room.assert_alone(contest.strategy);
        }
    }
    database.wait_for_granted(realm_key(REALM), 0).await;
}

// A nested hold has its own checks, limits and outcome.

#[tokio::test]
async fn nested_work_whose_lock_is_lost_is_dropped_and_reports_it() {
    let database = database().await;
    let contests = contests(&database).await;
    for contest in contests.iter().filter(|contest| contest.is_in_database()) {
        let (mut control, task) = outlasting_its_outer_hold(contest).await;
        let pid = database.holder_pid(realm_key(REALM)).await;
        database.terminate(pid.expect("the lock is kept")).await;
        control.dropped().await;
        let lost = outcome(task).await;
        assert!(matches!(lost, Err(LockError::Lost { .. })), "{lost:?}");
        contest.assert_free().await;
    }
}

#[tokio::test]
async fn nested_work_that_ends_as_its_lock_is_lost_is_no_success() {
    let database = database().await;
    let contests = contests(&database).await;
    for contest in contests.iter().filter(|contest| contest.is_in_database()) {
        let (mut control, task) = outlasting_its_outer_hold(contest).await;
        let pid = database.holder_pid(realm_key(REALM)).await;
        database.terminate(pid.expect("the lock is kept")).await;
        database.wait_for_granted(realm_key(REALM), 0).await;
        control.end(Ok(()));
        let lost = outcome(task).await;
        assert!(matches!(lost, Err(LockError::Lost { .. })), "{lost:?}");
        contest.assert_free().await;
    }
}

#[tokio::test]
async fn a_lost_lock_is_reported_by_the_outer_and_the_nested_hold() {
    let database = database().await;
    let contests = contests(&database).await;
    for contest in contests.iter().filter(|contest| contest.is_in_database()) {
        let (work, mut control) = gated_work(&contest.room, "the nested work");
        let nested = call(&contest.locks, claim(), work);
        let (started, task) = oneshot::channel();
        let locks = contest.locks.clone();
        let outer = tokio::spawn(async move {
            let work = |_| async move {
                started.send(moved(nested)).unwrap();
                pending().await
            };
            locks.with_write_lock(claim(), work).await
        });
        let task = task.await.unwrap();
        control.entered().await;
        let pid = database.holder_pid(realm_key(REALM)).await;
        database.terminate(pid.expect("a holder")).await;
        control.dropped().await;
        for lost in [outcome(task).await, outcome(outer).await] {
            assert!(matches!(lost, Err(LockError::Lost { .. })), "{lost:?}");
        }
        contest.assert_free().await;
    }
}

#[tokio::test]
async fn nested_work_has_its_own_max_hold() {
    const BOUND: Duration = Duration::from_millis(100);
    let database = database().await;
    for contest in contests(&database).await {
        let (work, mut control) = gated_work(&contest.room, "the nested work");
        let nested = call(&contest.locks.clone().max_hold(BOUND), claim(), work);
        let (report, reported) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let locks = contest.locks.clone();
        let outer = tokio::spawn(async move {
            let work = |held: HeldLock| async move {
                report.send(nested.await).unwrap();
                ended.await.unwrap();
                assert!(held.is_held());
                Ok(())
            };
            locks.with_write_lock(claim(), work).await
        });
        let expired = timeout(PATIENCE, reported).await;
        let expired = expired.expect("the nested work is stopped").unwrap();
        assert!(
            matches!(
                expired,
                Err(LockError::Expired {
                    max_hold: BOUND,
                    ..
                })
            ),
            "{}: {expired:?}",
            contest.strategy
        );
        control.dropped().await;
        let rival = contest.rival_that_waits(&database).await;
        end.send(()).unwrap();
        outcome(outer).await.unwrap();
        rival.enters().await;
    }
}

#[tokio::test]
async fn a_nested_layers_call_has_its_own_max_hold() {
    let database = database().await;
    for contest in contests(&database).await {
        let outer = RealmWriteLockLayer::new(contest.locks.clone(), realms());
        let inner = outer
            .clone()
            .map_locks(|locks| locks.max_hold(Duration::from_millis(100)));
        let handler = service_fn(async |_: Request<String>| {
            pending::<()>().await;
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let service = outer.layer(inner.layer(handler));
        let response = timeout(PATIENCE, service.oneshot(request())).await;
        let response = response.expect("the nested call is stopped").unwrap();
        assert_eq!(response.status(), 504, "{}", contest.strategy);
        contest.assert_free().await;
    }
}

#[tokio::test]
async fn a_nested_handle_ends_with_its_own_hold() {
    let database = database().await;
    for contest in contests(&database).await {
        let nested = contest.locks.clone();
        let outer = contest.locks.with_write_lock(claim(), |outer| async move {
            let work = |inner: HeldLock| async move {
                assert!(inner.is_held());
                Ok::<_, LockError>(inner)
            };
            let inner = nested.with_write_lock(claim(), work).await?;
            assert!(outer.is_held() && !inner.is_held());
            Ok::<_, LockError>(())
        });
        outer.await.unwrap();
        contest.assert_free().await;
    }
}

#[tokio::test]
async fn a_panic_of_nested_work_reaches_its_caller_and_does_not_end_the_outer_hold() {
    let database = database().await;
    for contest in contests(&database).await {
        let nested = contest.locks.clone();
        let (report, reported) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        let locks = contest.locks.clone();
        let outer = tokio::spawn(async move {
            let work = |held: HeldLock| async move {
                let work = |_| async {
                    tokio::task::yield_now().await;
                    panic!("as the test asked");
                };
                let call = nested.with_write_lock::<(), LockError, _, _>(claim(), work);
                report
                    .send(AssertUnwindSafe(call).catch_unwind().await)
                    .unwrap();
                ended.await.unwrap();
                assert!(held.is_held());
                Ok(())
            };
            locks.with_write_lock(claim(), work).await
        });
        let panic = timeout(PATIENCE, reported).await.expect("in time").unwrap();
        let panic = panic.expect_err("a panic");
        assert_eq!(panic.downcast_ref(), Some(&"as the test asked"));
        let rival = contest.rival_that_waits(&database).await;
        end.send(()).unwrap();
        outcome(outer).await.unwrap();
        rival.enters().await;
    }
}

/// Succeeds, or fails.
fn ends(succeeds: bool) -> Result<(), LockError> {
    if succeeds {
        Ok(())
    } else {
        Err(LockError::ShuttingDown)
    }
}

#[tokio::test]
async fn nested_and_outer_work_are_published_by_their_own_success() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for locks in telling(&database).await {
        for nested_succeeds in [true, false] {
            let nested = locks.clone();
            let outer = locks.with_write_lock(claim(), move |_| async move {
                let card = cards(REALM, ["x"]);
                let work = move |_| ready(ends(nested_succeeds));
                let done = nested.with_write_lock(card, work).await;
                assert_eq!(done.is_ok(), nested_succeeds);
                ends(!nested_succeeds)
            });
            assert_eq!(outer.await.is_ok(), !nested_succeeds);
            let write = next_write(&mut writes).await;
            let path = if nested_succeeds { Some("x") } else { None };
            assert_eq!((write.realm(), write.path()), (&realm(REALM), path));
            // Only once.
            succeed(&locks, "marker").await;
            assert_eq!(next_write(&mut writes).await.realm(), &realm("marker"));
        }
    }
}

#[tokio::test]
async fn a_nested_write_is_published_before_its_success_and_lets_nobody_in() {
    let database = database().await;
    let client = database.connect().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let other = postgres_locks_with(database.url(), |builder| builder).await;
    for locks in telling(&database).await {
        let (outer, nested) = (locks.clone(), locks);
        let (ask, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<_>>();
        let outer = tokio::spawn(async move {
            let work = |_| async move {
                while let Some(done) = asked.recv().await {
                    let write = nested.with_write_lock(cards(REALM, ["x"]), |_| ready(ends(true)));
                    let _ = done.send(write.await);
                }
                Ok(())
            };
            outer.with_write_lock(claim(), work).await
        });
        database.wait_for_granted(realm_key(REALM), 1).await;
        let rival = rival(&other, &Room::default(), REALM);
        database.wait_for_waiting(realm_key(REALM), 1).await;
        for _ in 0..3 {
            let (done, nested) = oneshot::channel();
            ask.send(done).unwrap();
            nested.await.unwrap().unwrap();
            let mark = "NOTIFY tower_realm_lock, 'nonsense'";
            client.batch_execute(mark).await.unwrap();
            assert_eq!(next_write(&mut writes).await.path(), Some("x"));
            expect_interruption(&mut writes).await;
        }
        rival.assert_waits("during nested writes");
        drop(ask);
        outcome(outer).await.unwrap();
        assert_eq!(next_write(&mut writes).await.path(), None);
        rival.enters().await;
    }
}

#[tokio::test]
async fn a_nested_write_is_published_while_the_outer_hold_lasts_though_nothing_confirms_it() {
    let database = database().await;
    for locks in telling(&database).await {
        let layer = RealmWriteLockLayer::new(locks.clone(), realms()).confirm(false);
        let mut writes = RealmWrites::listen(database.url()).await.unwrap();
        let outer = locks.with_write_lock(claim(), |_| async move {
            let service = layer.layer(service_fn(at_once));
            let request = Request::patch(PATH).body(String::new()).unwrap();
            let response = service.oneshot(request).await.unwrap();
            assert_eq!(response.status(), 200);
            next_write(&mut writes).await;
            Ok::<_, LockError>(writes)
        });
        let mut writes = outer.await.unwrap();
        next_write(&mut writes).await;
    }
}

#[tokio::test]
async fn a_nested_write_under_several_holds_is_published_once() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for locks in telling(&database).await {
        let both = whole(["a", "b"]);
        let done = within_two(&locks, [whole(["a"]), whole(["b"])], both).await;
        done.unwrap();
        // The innermost write, that of the second hold, and that of the first.
        for name in ["a", "b", "b", "a"] {
            assert_eq!(next_write(&mut writes).await.realm(), &realm(name));
        }
    }
}

#[tokio::test]
async fn a_nested_success_is_published_unless_it_is_rolled_back_with_the_outer_hold() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let [locks, _] = telling(&database).await;
    let outer = locks.clone().share_transaction(true);
    for (in_transaction, outer_succeeds) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let nested = locks.clone().share_transaction(in_transaction);
        let ended = outer.with_write_lock(claim(), move |_| async move {
            let done = nested.with_write_lock(cards(REALM, ["x"]), |_| ready(ends(true)));
            done.await.expect("it is confirmed");
            ends(outer_succeeds)
        });
        assert_eq!(ended.await.is_ok(), outer_succeeds);
        if !in_transaction || outer_succeeds {
            assert_eq!(next_write(&mut writes).await.path(), Some("x"));
        }
        if outer_succeeds {
            assert_eq!(next_write(&mut writes).await.path(), None);
        }
        succeed(&locks, "marker").await;
        let next = next_write(&mut writes).await;
        let case = (in_transaction, outer_succeeds);
        assert_eq!(next.realm(), &realm("marker"), "{case:?}");
    }
}

#[tokio::test]
async fn equal_writes_that_are_published_together_are_an_event_each() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    let locks = postgres_locks_with(database.url(), |builder| builder.broadcast(true)).await;
    let locks = locks.share_transaction(true);
    let nested = locks.clone();
    let outer = locks.with_write_lock(claim(), move |_| async move {
        for card in ["x", "y", "x"] {
            let write = nested.with_write_lock(cards(REALM, [card]), |_| ready(ends(true)));
            write.await?;
        }
        Ok::<_, LockError>(())
    });
    outer.await.unwrap();
    // PostgreSQL sends equal notices of one transaction once.
    for path in [Some("x"), Some("y"), Some("x"), None] {
        assert_eq!(next_write(&mut writes).await.path(), path);
    }
}

#[tokio::test]
async fn a_nested_layers_success_is_published_though_the_outer_response_is_an_error() {
    let database = database().await;
    let mut writes = RealmWrites::listen(database.url()).await.unwrap();
    for locks in telling(&database).await {
        for (inner_status, outer_status, count) in [(200, 500, 1), (500, 200, 1), (500, 500, 0)] {
            let layer = RealmWriteLockLayer::new(locks.clone(), realms());
            let inner = layer.layer(service_fn(move |_: Request<String>| {
                let response = Response::builder().status(inner_status);
                ready(Ok::<_, Infallible>(response.body(String::new()).unwrap()))
            }));
            let outer = layer.layer(service_fn(move |request: Request<String>| {
                let inner = inner.clone();
                async move {
                    let nested = inner.oneshot(request).await?;
                    assert_eq!(nested.status(), inner_status);
                    let response = Response::builder().status(outer_status);
                    Ok::<_, Infallible>(response.body(String::new()).unwrap())
                }
            }));
            let response = outer.oneshot(request()).await.unwrap();
            assert_eq!(response.status(), outer_status);
            for _ in 0..count {
                assert_eq!(next_write(&mut writes).await.realm(), &realm(REALM));
            }
            succeed(&locks, "marker").await;
            let next = next_write(&mut writes).await;
            assert_eq!(
                next.realm(),
                &realm("marker"),
                "{inner_status} {outer_status}"
            );
        }
    }
}

// What the outer hold cannot give is refused.

/// A table of writes, and two independent locks on its database. The first share their transaction.
async fn sharing(sessions: u32) -> (TestDatabase, Contest) {
    let database = database().await;
    let client = database.connect().await;
    let table = "CREATE TABLE writes (n int)";
    client.batch_execute(table).await.unwrap();
    let locks = || postgres_locks_with(database.url(), move |builder| builder.sessions(sessions));
    let contest = Contest {
        strategy: "a shared transaction",
        locks: locks().await.share_transaction(true),
        other: locks().await,
        room: Room::default(),
    };
    (database, contest)
}

async fn insert(held: &HeldLock, n: i32) {
    let client = held.transaction().expect("it is shared").client().unwrap();
    let insert = format!("INSERT INTO writes VALUES ({n})");
    client.batch_execute(&insert).await.unwrap();
}

/// The committed writes.
async fn written(database: &TestDatabase) -> Vec<i32> {
    let client = database.connect().await;
    let rows = client.query("SELECT n FROM writes ORDER BY n", &[]).await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Fails unless the option was refused.
fn assert_refused(error: &LockError, expected: &str) {
    match error.innermost() {
        LockError::Config(ConfigError::InvalidOption { option, .. }) => {
            assert_eq!(*option, expected, "{error}");
        }
        _ => panic!("{error}"),
    }
}

/// Sends a call through `layer` within a hold of `outer`. Fails unless it is refused for its option
/// and its handler does not run.
async fn assert_layer_refused(outer: &RealmLocks, layer: RealmWriteLockLayer, option: &str) {
    let (handler, gate) = gate();
    let response = outer.with_write_lock(claim(), |_| async move {
        let response = layer.layer(handler).oneshot(request());
        let response = timeout(PATIENCE, response).await;
        Ok::<_, LockError>(response.expect("it is refused at once").unwrap())
    });
    let (head, body) = response.await.unwrap().into_parts();
    assert!(gate.is_empty());
    assert_eq!(head.status, 503);
    match head.extensions.get() {
        Some(Rejection::Lock(error)) => assert_refused(error, option),
        rejection => panic!("{rejection:?}"),
    }
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(code(&Response::new(body)), "lock-unavailable");
}

#[tokio::test]
async fn a_shared_transaction_below_a_hold_that_shares_none_is_refused() {
    for sessions in [0, 1] {
        let (_database, contest) = sharing(sessions).await;
        let (plain, sharing) = (
            &contest.other,
            contest.other.clone().share_transaction(true),
        );
        let nested = sharing.clone();
        let refused = plain.with_write_lock(claim(), |_| async move {
            let work = |_| ready(Ok::<_, LockError>(()));
            nested.with_write_lock(claim(), work).await
        });
        assert_refused(&refused.await.unwrap_err(), "share_transaction");
        let layer = RealmWriteLockLayer::new(sharing, realms());
        assert_layer_refused(plain, layer, "share_transaction").await;
        contest.assert_free().await;
    }
}

#[tokio::test]
async fn nested_work_shares_the_transaction_of_an_outer_hold_that_shares_it() {
    async fn transaction_id(held: &HeldLock) -> String {
        let client = held.transaction().expect("it is shared").client().unwrap();
        let query = "SELECT pg_current_xact_id()::text";
        client.query_one(query, &[]).await.unwrap().get(0)
    }
    let (database, contest) = sharing(0).await;
    let locks = contest.locks.clone();
    let database = &Arc::new(database);
    let looking = Arc::clone(database);
    let done = contest.locks.with_write_lock(claim(), |outer| async move {
        insert(&outer, 1).await;
        let work = |inner: HeldLock| async move {
            insert(&inner, 2).await;
            Ok::<_, LockError>(transaction_id(&inner).await)
        };
        let nested = locks.with_write_lock(cards(REALM, ["x"]), work).await?;
        assert_eq!(nested, transaction_id(&outer).await);
        assert!(written(&looking).await.is_empty(), "the outer work commits");
        Ok::<_, LockError>(())
    });
    done.await.unwrap();
    assert_eq!(written(database).await, [1, 2]);
}

#[tokio::test]
async fn a_body_that_would_outlast_a_shared_transaction_is_refused() {
    let (_database, contest) = sharing(0).await;
    for share in [true, false] {
        let locks = contest.locks.clone().share_transaction(share);
        let layer = RealmWriteLockLayer::new(locks, realms());
        for layer in [
            layer.clone().hold_until(HoldUntil::BodyEnd),
            layer.success(Success::grpc()),
        ] {
            assert_layer_refused(&contest.locks, layer, "hold_until").await;
            contest.assert_free().await;
        }
    }
}

#[tokio::test]
async fn nested_work_below_a_shared_transaction_need_not_share_it_and_delays_its_commit() {
    let (database, contest) = sharing(0).await;
    let plain = contest.locks.clone().share_transaction(false);
    let (work, mut control) = gated_work(&contest.room, "the nested work");
    let nested = call(&plain, claim(), work);
    let (started, task) = oneshot::channel();
    let locks = contest.locks.clone();
    let outer = tokio::spawn(async move {
        let work = |held: HeldLock| async move {
            insert(&held, 1).await;
            let shares = |held: HeldLock| ready(Ok::<_, LockError>(held.transaction().is_some()));
            assert!(!plain.with_write_lock(claim(), shares).await?);
            started.send(moved(nested)).unwrap();
            Ok(())
        };
        locks.with_write_lock(claim(), work).await
    });
    let task = task.await.unwrap();
    control.entered().await;
    let rival = contest.rival_that_waits(&database).await;
    assert!(written(&database).await.is_empty(), "it has committed");
    assert!(!outer.is_finished());
    rival.assert_waits(contest.strategy);
    control.end(Ok(()));
    outcome(task).await.unwrap();
    outcome(outer).await.unwrap();
    assert_eq!(written(&database).await, [1]);
    rival.enters().await;
    contest.room.assert_alone(contest.strategy);
}

#[tokio::test]
async fn no_later_hold_has_a_smaller_token_than_a_nested_one() {
    let database = database().await;
    let locks = postgres_locks_with(database.url(), |builder| builder.fencing(true)).await;
    let token = |held: HeldLock| async move { Ok::<_, LockError>(held.fencing_token()) };
    let (report, reported) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    let outer = locks.clone();
    let outer = tokio::spawn(async move {
        let nested = outer.clone();
        let work = move |_| async move {
            let inner = nested.clone();
            let work =
                move |_| async move { inner.with_write_lock(whole(["a", "b"]), token).await };
            let of_nested = nested.with_write_lock(whole(["b"]), work).await?;
            report.send(of_nested).unwrap();
            let _ = ended.await;
            Ok::<_, LockError>(())
        };
        outer.with_write_lock(whole(["a"]), work).await
    });
    let of_nested = reported.await.unwrap();
    // It gets the lock of `a` by hand-off, whose own token is older than that of `b`.
    let next = locks.clone();
    let next = tokio::spawn(async move { next.with_write_lock(whole(["a"]), token).await });
    wait_until("a waiter", async || locks.status().len() == 2).await;
    end.send(()).unwrap();
    outer.await.unwrap().unwrap();
    let of_next = next.await.unwrap().unwrap();
    assert!(of_next > of_nested, "{of_next:?} {of_nested:?}");
}
