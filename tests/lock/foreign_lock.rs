//! Anyone who takes the same advisory lock takes part: another program, or an operator with `psql`.

use http::Method;

use crate::support::database::database;
use crate::support::gate::{gate, key, patch, postgres_layer, send};

#[tokio::test]
async fn a_plain_sql_session_that_holds_the_key_blocks_that_realms_writes_and_nothing_else() {
    let database = database().await;
    let layer = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let foreign = database.hold(key("/luke/a")).await;

    let blocked = patch(&layer, &handler, "/luke/a/card");
    database.wait_for_waiting(key("/luke/a"), 1).await;

    for (method, path) in [
        (Method::PATCH, "/luke/b/card"),
        (Method::GET, "/luke/a/card"),
    ] {
        let free = send(&layer, &handler, method.clone(), path);
        let call = gate.entered().await;
        assert_eq!(call.path, path);
        call.answer(200);
        assert_eq!(
            free.await.unwrap().unwrap().status(),
            200,
            "{method} {path}"
        );
    }
    assert!(gate.is_empty() && !blocked.is_finished());

    foreign.batch_execute("COMMIT").await.unwrap();
    let call = gate.entered().await;
    assert_eq!(call.path, "/luke/a/card");
    call.answer(200);
    assert_eq!(blocked.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_plain_sql_session_waits_for_a_request_in_its_turn() {
    let database = database().await;
    let layer = postgres_layer(database.url()).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, "/luke/a/card");
    let call = gate.entered().await;
    let foreign = database.connect().await;
    let lock = format!("SELECT pg_advisory_xact_lock({})", key("/luke/a"));
    let waiting = tokio::spawn(async move { foreign.batch_execute(&lock).await });
    database.wait_for_waiting(key("/luke/a"), 1).await;
    call.answer(200);
    write.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
}
