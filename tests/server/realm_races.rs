//! Changes to whole realms on two replicas, and writes of their cards at the same time: one after the other.

use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use serde_json::json;

use crate::support::client::card;
use crate::support::realms::{World, changes};

const ROUNDS: usize = 10;

/// Has two replicas create the same realm at the same time, some times. How often one did, and the other was told that it exists.
async fn created_once(flags: &[&str]) -> usize {
    let world = World::new(flags.is_empty()).await;
    let flags = [flags, &["--write-delay", "100"]].concat();
    // Both make the tables too, at the same time.
    let (one, two) = tokio::join!(world.replica(&flags), world.replica(&flags));
    let mut count = 0;
    for round in 0..ROUNDS {
        let mut create = changes().remove(0);
        create.body["endpoint"] = json!(format!("realm-{round}"));
        let (one, two) = tokio::join!(world.make(&one, &create), world.make(&two, &create));
        let mut answers = [one, two].map(|answer| answer.unwrap().0.as_u16());
        answers.sort_unstable();
        count += usize::from(answers == [201, 409]);
    }
    count
}

#[tokio::test]
async fn a_realm_is_created_once_but_not_without_the_lock() {
    assert_eq!(created_once(&[]).await, ROUNDS);
    assert!(created_once(&["--lock", "off"]).await < ROUNDS);
}

/// Publishes a realm while another replica writes all of its cards at once, again and again. Whether a copy has some cards of
/// one write and some of another.
async fn tears_a_copy(flags: &[&str], rounds: usize) -> bool {
    let world = World::new(flags.is_empty()).await;
    let (one, two) = (world.replica(flags).await, world.replica(flags).await);
    let all = |op: &str, n: u64| {
        let data = &card(json!({"n": n}))["data"];
        let change = |at| json!({"op": op, "href": format!("card-{at}"), "data": data});
        json!({"atomic:operations": (0..40).map(change).collect::<Vec<_>>()})
    };
    let write = async |op: &str, n: u64| {
        let url = two.url("/luke/source/_atomic");
        let (status, answer) = world.client.post(&url, &all(op, n)).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    };
    let publish = async || {
        let made = world.make(&one, &changes()[2]).await.unwrap();
        assert!(made.0.is_success(), "{}", made.1);
    };
    write("add", 0).await;
    publish().await;
    let done = AtomicBool::new(false);
    let publishing = async {
        let mut is_torn = false;
        for _ in 0..rounds {
            publish().await;
            let mut cards = world.snapshot().await.files;
            cards.retain(|name, text| name.starts_with("luke/site/card-") && text.is_some());
            assert_eq!(cards.len(), 40);
            let first = cards.values().next().cloned();
            is_torn = cards.values().any(|text| Some(text) != first.as_ref());
            if is_torn {
                break;
            }
        }
        done.store(true, Ordering::SeqCst);
        is_torn
    };
    let writing = async {
        for n in 1.. {
            write("update", n).await;
            if done.load(Ordering::SeqCst) {
                break;
            }
        }
    };
    // Nor does a reader ever find the published realm missing.
    let reading = async {
        while !done.load(Ordering::SeqCst) {
            let (status, answer) = world.client.get(&two.url("/luke/site/card-1")).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
        }
    };
    if flags.is_empty() {
        tokio::join!(publishing, writing, reading).0
    } else {
        tokio::join!(publishing, writing).0
    }
}

#[tokio::test]
async fn a_copy_is_of_one_moment_but_not_without_the_lock() {
    assert!(!tears_a_copy(&[], 20).await);
    // A quick disk may need many.
    assert!(tears_a_copy(&["--lock", "off"], 200).await);
}
