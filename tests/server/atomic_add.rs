//! Two replicas are asked to add the same card at the same time: one does, the other says that it exists.

use http::StatusCode;
use serde_json::json;

use crate::support::replicas::Replicas;

const ROUNDS: usize = 200;

/// Has both replicas add one card at the same time; both answers, and who wrote what is stored.
async fn race(replicas: &Replicas, round: usize) -> ([StatusCode; 2], usize) {
    let href = format!("card-{round}.json");
    let add = |side| replicas.add_at(side, &href, json!({ "side": side }));
    let (one, two) = tokio::join!(add(0), add(1));
    let stored = replicas.attributes(&format!("card-{round}")).await;
    let side = stored["side"].as_u64().expect("a side");
    ([one.0, two.0], usize::try_from(side).expect("0 or 1"))
}

#[tokio::test]
async fn with_the_lock_one_adds_and_the_other_is_told() {
    let replicas = Replicas::start("postgres").await;
    for round in 0..ROUNDS {
        let (answers, stored) = race(&replicas, round).await;
        let mut expected = [StatusCode::CONFLICT; 2];
        expected[stored] = StatusCode::CREATED;
        assert_eq!(answers, expected, "round {round}");
    }
}

#[tokio::test]
async fn without_the_lock_both_are_told_that_they_added_it() {
    let replicas = Replicas::start("off").await;
    let mut both = 0;
    for round in 0..ROUNDS {
        let (answers, _) = race(&replicas, round).await;
        both += usize::from(answers == [StatusCode::CREATED; 2]);
    }
    assert!(both > 0);
}
