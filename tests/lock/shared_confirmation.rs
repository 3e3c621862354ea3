//! A success waits for the server's word on its own lock, and for nobody else's lock.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::{Layer, ServiceExt, service_fn};

use crate::support::database::database;
use crate::support::gate::{gate, key, patch, postgres_layer_with};

const PATH: &str = "/luke/a/card";
const OTHER: &str = "/luke/b/card";

/// Answers at once, and badly where the path says so.
async fn answer(request: Request<String>) -> Result<Response<String>, std::convert::Infallible> {
    let mut response = Response::new(String::new());
    if request.uri().path().ends_with("fail") {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    Ok(response)
}

/// Holds that end soon after each other share a question to the server. The last one ends without a question of its own, and
/// its connection goes to another realm, which somebody else holds.
#[tokio::test]
async fn the_last_hold_of_a_lock_leaves_no_question_unsent() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| {
        // However long they take, they are inside before the other realm has the connection.
        builder.pool_size(1).max_hand_off_time(Duration::MAX)
    })
    .await;
    let foreign = database.connect().await;
    let lock = format!("BEGIN; SELECT pg_advisory_xact_lock({})", key(OTHER));
    for round in 0..10 {
        foreign.batch_execute(&lock).await.unwrap();
        let (handler, mut gate) = gate();
        let first = patch(&layer, &handler, PATH);
        let inside = gate.entered().await;
        let mut writes = JoinSet::new();
        for n in 0..10 {
            let name = if n == 9 { "fail" } else { "card" };
            let request = Request::patch(format!("/luke/a/{name}"));
            let service = layer.layer(service_fn(answer));
            writes.spawn(service.oneshot(request.body(String::new()).unwrap()));
        }
        let other = patch(&layer, &handler, OTHER);
        // All of them stand in their queues.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        inside.answer(200);
        let answers = timeout(Duration::from_secs(3), writes.join_all()).await;
        let answers = answers.unwrap_or_else(|_| panic!("round {round}: an answer is missing"));
        let good = answers.into_iter().filter(|answer| {
            let answer = answer.as_ref().unwrap();
            answer.status() == StatusCode::OK
        });
        assert_eq!(good.count(), 9);
        assert_eq!(first.await.unwrap().unwrap().status(), 200);

        // It waits all that time.
        database.wait_for_waiting(key(OTHER), 1).await;
        foreign.batch_execute("COMMIT").await.unwrap();
        gate.entered().await.answer(200);
        assert_eq!(other.await.unwrap().unwrap().status(), 200);
    }
}
