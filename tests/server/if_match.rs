//! Two clients read one version of a card, and both change it on condition that it is still that one: only one may.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::client::card;
use crate::support::replicas::Replicas;

const ROUNDS: usize = 50;

/// Has two clients read a card, and then change it at both replicas at the same time, if it is as they have read it.
async fn race(replicas: &Replicas, round: usize) -> [StatusCode; 2] {
    let read = async |side: usize| {
        let url = replicas.both[side].url("/luke/a/card");
        let read = replicas.client.request(Method::GET, &url).send().await;
        read.expect("an answer").headers()["etag"].clone()
    };
    let (one, two) = tokio::join!(read(0), read(1));
    assert_eq!(one, two, "the version is the same on every replica");
    let write = async |side: usize| {
        let url = replicas.both[side].url("/luke/a/card");
        let request = replicas
            .client
            .request(Method::PATCH, &url)
            .header("if-match", &one)
            .header("content-type", "application/json")
            .body(card(json!({ "round": round, "side": side })).to_string());
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        if status != StatusCode::OK {
            let document: Value = answer.json().await.expect("a document");
            assert_eq!(document["errors"][0]["code"], "precondition-failed");
        }
        status
    };
    let (one, two) = tokio::join!(write(0), write(1));
    [one, two]
}

async fn start(lock: &str) -> Replicas {
    let replicas = Replicas::start(lock).await;
    let (status, answer) = replicas.add("card.json", json!({})).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    replicas
}

#[tokio::test]
async fn with_the_lock_one_changes_it_and_the_other_is_told() {
    let replicas = start("postgres").await;
    for round in 0..ROUNDS {
        let mut answers = race(&replicas, round).await;
        let winner = replicas.attributes("card").await["side"].clone();
        let side = answers.iter().position(|&status| status == StatusCode::OK);
        assert_eq!(winner, json!(side), "round {round}: {answers:?}");
        answers.sort();
        let expected = [StatusCode::OK, StatusCode::PRECONDITION_FAILED];
        assert_eq!(answers, expected, "round {round}");
    }
}

#[tokio::test]
async fn without_the_lock_both_are_told_that_they_changed_it() {
    let replicas = start("off").await;
    let mut both = 0;
    for round in 0..ROUNDS {
        both += usize::from(race(&replicas, round).await == [StatusCode::OK; 2]);
    }
    assert!(both > 0);
}
