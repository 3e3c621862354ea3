//! Many realms' locks on a few sessions: they exclude others, and are excluded by them, like any other hold.

use tokio::task::JoinHandle;
use tower_realm_lock::{FencingToken, RealmWriteLockLayer};

use crate::support::database::{TestDatabase, database, has_sessions};
use crate::support::gate::{
    Call, Gate, Outcome, answered, gate, key, patch, postgres_layer, postgres_layer_with,
};
use crate::support::wait::{PATIENCE, wait_until};

const PATH: &str = "/luke/a/card";

async fn sessions(database: &TestDatabase) -> RealmWriteLockLayer {
    postgres_layer_with(database.url(), |builder| builder.sessions(2).pool_size(2)).await
}

/// Ends the call that is next inside, and with it `request`.
async fn finish(gate: &mut Gate, request: JoinHandle<Outcome>) {
    gate.entered().await.answer(200);
    assert_eq!(answered(request).await.status(), 200);
}

/// Whether the holder of a realm has no transaction open, and so holds the realm by its session.
async fn is_held_by_session(database: &TestDatabase, path: &str) -> bool {
    let pid = database.holder_pid(key(path)).await.expect("a holder");
    let client = database.connect().await;
    let state = client
        .query_one(
            "SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $1",
            &[&pid],
        )
        .await;
    state.unwrap().get(0)
}

#[tokio::test]
async fn a_realm_held_by_a_session_is_closed_to_transactions_and_to_other_programs() {
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let layer = sessions(&database).await;
    let transactions = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    assert!(is_held_by_session(&database, PATH).await);

    let transaction = patch(&transactions, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    let foreign = database.connect().await;
    let lock = format!("SELECT pg_advisory_xact_lock({})", key(PATH));
    let foreign = tokio::spawn(async move { foreign.batch_execute(&lock).await });
    database.wait_for_waiting(key(PATH), 2).await;

    assert!(gate.is_empty() && !foreign.is_finished());
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    finish(&mut gate, transaction).await;
    foreign.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_session_waits_in_a_transaction_for_what_somebody_else_holds() {
    let database = database().await;
    let layer = sessions(&database).await;
    let transactions = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let foreign = database.hold(key(PATH)).await;
    let first = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    // Meanwhile the session serves other realms.
    let other = patch(&layer, &handler, "/luke/b/card");
    finish(&mut gate, other).await;
    assert!(gate.is_empty());
    foreign.batch_execute("COMMIT").await.unwrap();
    finish(&mut gate, first).await;

    let transaction = patch(&transactions, &handler, PATH);
    let call = gate.entered().await;
    let second = patch(&layer, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    assert!(gate.is_empty());
    call.answer(200);
    assert_eq!(answered(transaction).await.status(), 200);
    finish(&mut gate, second).await;
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn writes_of_one_realm_take_turns() {
    let database = database().await;
    let layer = sessions(&database).await;
    let (handler, mut gate) = gate();
    let writes: Vec<_> = (0..50)
        .map(|n| patch(&layer, &handler, &format!("/luke/a/{n}")))
        .collect();
    for write in writes {
        let call = gate.entered().await;
        assert_eq!(database.advisory_locks(key(PATH)).await, (1, 0));
        assert!(gate.is_empty());
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
    database.wait_for_granted(key(PATH), 0).await;
}

#[tokio::test]
async fn hundreds_of_realms_are_held_at_once_on_four_connections() {
    const REALMS: usize = 300;
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let layer = sessions(&database).await;
    let (handler, mut gate) = gate();
    let path = |n| format!("/luke/realm-{n}/card");
    // Until both sessions are open: nobody waits for long for one that is being opened.
    for n in 0..20 {
        let write = patch(&layer, &handler, &path(n));
        finish(&mut gate, write).await;
    }
    let writes: Vec<_> = (0..REALMS)
        .map(|n| patch(&layer, &handler, &path(n)))
        .collect();
    let mut calls = Vec::<Call>::new();
    for _ in 0..REALMS {
        calls.push(gate.entered().await);
    }
    for n in 0..REALMS {
        assert_eq!(database.advisory_locks(key(&path(n))).await, (1, 0), "{n}");
    }
    let backends = database.backends().await;
    assert!(backends <= 4, "{backends}");
    for call in calls {
        assert!(call.held.as_ref().unwrap().is_held());
        call.answer(200);
    }
    for write in writes {
        assert_eq!(answered(write).await.status(), 200);
    }
    for n in 0..REALMS {
        database.wait_for_granted(key(&path(n)), 0).await;
    }
}

#[tokio::test]
async fn a_shared_transaction_is_never_a_session() {
    let database = database().await;
    let layer = sessions(&database)
        .await
        .map_locks(|locks| locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    assert!(!is_held_by_session(&database, PATH).await);
    call.transaction();
    call.answer(200);
    assert_eq!(answered(write).await.status(), 200);
}

#[tokio::test]
async fn tokens_grow_from_hold_to_hold_of_both_strategies() {
    let database = database().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let layer = async |sessions| {
        postgres_layer_with(database.url(), |builder| {
            builder.fencing(true).sessions(sessions)
        })
        .await
    };
    let layers = [layer(1).await, layer(0).await, layer(2).await];
    let (handler, mut gate) = gate();
    let mut tokens = Vec::<FencingToken>::new();
    for turn in 0..24 {
        let write = patch(&layers[turn % 3], &handler, PATH);
        let call = gate.entered().await;
        assert_eq!(is_held_by_session(&database, PATH).await, turn % 3 != 1);
        tokens.push(
            call.held
                .as_ref()
                .unwrap()
                .fencing_token()
                .expect("a token"),
        );
        call.answer(200);
        assert_eq!(answered(write).await.status(), 200);
    }
    assert!(tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
}

#[tokio::test]
async fn a_shutdown_leaves_no_session_behind() {
    let database = database().await;
    let locks =
        crate::support::gate::postgres_locks_with(database.url(), |builder| builder.sessions(2))
            .await;
    let layer = RealmWriteLockLayer::new(locks.clone(), crate::support::gate::realms());
    let (handler, mut gate) = gate();
    let writes: Vec<_> = ["/luke/a/1", "/luke/b/1", "/luke/c/1", "/luke/d/1"]
        .map(|path| patch(&layer, &handler, path))
        .into();
    let mut calls = Vec::new();
    for _ in &writes {
        calls.push(gate.entered().await);
    }
    let shutdown = tokio::spawn(async move { locks.shutdown(PATIENCE).await });
    for call in calls {
        call.answer(200);
    }
    for write in writes {
        assert_eq!(answered(write).await.status(), 200);
    }
    shutdown.await.unwrap().unwrap();
    wait_until("no connection", async || database.backends().await == 0).await;
}
