//! Two replicas, one card, two writers that each change a field of their own: no field is ever lost.

use http::StatusCode;
use serde_json::json;

use crate::support::client::card;
use crate::support::replicas::Replicas;

const ROUNDS: usize = 200;

/// Has both replicas write a field of their own at the same time, `rounds` times. How many fields are missing at the end,
/// though every write was acknowledged.
async fn lost_fields(replicas: &Replicas, rounds: usize) -> usize {
    let (status, answer) = replicas.add("card.json", json!({})).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    let urls = replicas
        .both
        .each_ref()
        .map(|replica| replica.url("/luke/a/card"));
    for round in 0..rounds {
        let write = async |side: usize| {
            let field = format!("{side}-{round}");
            let document = card(json!({ field: round }));
            replicas.client.patch(&urls[side], &document).await
        };
        let (one, two) = tokio::join!(write(0), write(1));
        assert_eq!(
            (one.0, two.0),
            (StatusCode::OK, StatusCode::OK),
            "{one:?} {two:?}"
        );
    }
    let attributes = replicas.attributes("card").await;
    let fields =
        (0..rounds).flat_map(|round| [0, 1].map(|side| (format!("{side}-{round}"), round)));
    let lost = fields
        .filter(|(field, round)| attributes[field] != *round)
        .count();
    let lock = &replicas.lock;
    println!(
        "--lock {lock:<11} {} writes answered 200, {lost} of them lost",
        2 * rounds
    );
    lost
}

#[tokio::test]
async fn with_the_lock_every_field_of_every_round_is_there() {
    let replicas = Replicas::start("postgres").await;
    assert_eq!(lost_fields(&replicas, ROUNDS).await, 0);
}

#[tokio::test]
async fn without_the_lock_fields_are_lost() {
    let replicas = Replicas::start("off").await;
    assert!(lost_fields(&replicas, ROUNDS).await > 0);
}

#[tokio::test]
async fn locks_in_process_are_not_enough_for_two_processes() {
    let replicas = Replicas::start("in-process").await;
    assert!(lost_fields(&replicas, ROUNDS).await > 0);
}
