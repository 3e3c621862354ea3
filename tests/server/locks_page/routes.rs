//! The page's routes without a browser: for other programs, and for those that mean harm.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::make_realm;
use crate::support::client::{CardClient, card};
use crate::support::database::database;
use crate::support::gate::ORIGIN;
use crate::support::proxy::Proxy;
use crate::support::replica::Replica;
use crate::support::wait::wait_until;

#[tokio::test]
async fn a_snapshot_is_json_to_who_prefers_it() {
    let replica = Replica::start(&[]).await;
    let client = CardClient::new();
    for path in ["/_locks", "/_locks/events"] {
        let request = client.request(Method::GET, &replica.url(path));
        let answer = request
            .header("accept", "application/json")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json");
        let snapshot: Value = answer.json().await.unwrap();
        assert_eq!(snapshot["replica"], replica.address());
        assert_eq!(snapshot["lock"], "in-process");
        for list in ["realms", "waits"] {
            assert!(snapshot[list].is_array(), "{path}: {snapshot}");
        }
        assert!(snapshot["database"].is_null(), "{path}: {snapshot}");
    }
}

#[tokio::test]
async fn every_answer_is_guarded() {
    let replica = Replica::start(&[]).await;
    let client = CardClient::new();
    for (method, path, status, policy) in [
        (
            Method::GET,
            "/_locks",
            200,
            "default-src 'none'; script-src 'nonce-",
        ),
        (
            Method::GET,
            "/_locks/events",
            200,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (
            Method::POST,
            "/_locks/race",
            200,
            "default-src 'none'; script-src 'nonce-",
        ),
        (
            Method::DELETE,
            "/_locks",
            405,
            "default-src 'none'; frame-ancestors 'none'",
        ),
    ] {
        let answer = client
            .request(method, &replica.url(path))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), status, "{path}");
        let headers = answer.headers();
        let sent = headers["content-security-policy"].to_str().unwrap();
        assert!(
            sent.starts_with(policy) && !sent.contains("unsafe"),
            "{path}: {sent}"
        );
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        assert_eq!(headers["cache-control"], "no-store", "{path}");
    }
}

#[tokio::test]
async fn one_race_runs_at_a_time_and_none_for_another_site() {
    let replica = Replica::start(&[]).await;
    let client = CardClient::new();
    let race = |header: &str, value: &str| {
        let request = client.request(Method::POST, &replica.url("/_locks/race"));
        let request = request
            .header("accept", "application/json")
            .header(header, value);
        async move { request.send().await.unwrap() }
    };
    let foreign = race("origin", "http://elsewhere.test").await;
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    let foreign = race("sec-fetch-site", "cross-site").await;
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);

    let own = replica.url("");
    let (one, other) = tokio::join!(race("origin", &own), race("sec-fetch-site", "same-origin"));
    let mut statuses = [one.status(), other.status()];
    statuses.sort();
    assert_eq!(statuses, [StatusCode::OK, StatusCode::CONFLICT]);
    let (outcome, refused) = if one.status() == 200 {
        (one, other)
    } else {
        (other, one)
    };
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["errors"][0]["code"], "race-running");
    let outcome: Value = outcome.json().await.unwrap();
    assert!(
        outcome["without_lock"]["lost"].as_u64() > Some(0),
        "{outcome}"
    );
    assert_eq!(outcome["with_lock"]["lost"], 0, "{outcome}");
}

/// A realm of that owner is a realm as any other.
#[tokio::test]
async fn the_routes_take_no_realms_place() {
    let replica = Replica::start(&[]).await;
    make_realm(&replica, "/_locks/race/").await;
    let url = replica.url("/_locks/race/");
    let (status, _) = CardClient::new().post(&url, &card(json!({}))).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, _) = CardClient::new()
        .get(&replica.url("/_locks/events/x"))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = CardClient::new().get(&replica.url("/_locks/race/x")).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn the_database_is_asked_once_a_second_for_all_who_watch() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let url = proxy.url(database.url());
    let replica = Replica::start(&["--base-url", ORIGIN, "--database-url", &url]).await;
    let client = CardClient::new();
    proxy.queries();
    let mut viewers = Vec::new();
    let begun = tokio::time::Instant::now();
    for _ in 0..5 {
        let stream = client.request(Method::GET, &replica.url("/_locks/events"));
        viewers.push(stream.send().await.unwrap());
    }
    // Each brings a snapshot, then a sample every 250 ms.
    for viewer in &mut viewers {
        let mut text = String::new();
        while text.matches("event: sample").count() < 8 {
            let chunk = viewer.chunk().await.unwrap().expect("the stream goes on");
            text += &String::from_utf8_lossy(&chunk);
        }
        assert!(text.starts_with("event: snapshot"), "{text}");
    }
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    let looks = || {
        proxy
            .queries()
            .iter()
            .filter(|it| it.contains("pg_locks"))
            .count()
    };
    let looked = looks();
    assert!(
        (1..=seconds + 2).contains(&looked),
        "{looked} looks in {seconds} s"
    );

    drop(viewers);
    let database_is_left = async || database.backends().await <= 1;
    wait_until("no connection of the page's", database_is_left).await;
    looks();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(looks(), 0);
}
