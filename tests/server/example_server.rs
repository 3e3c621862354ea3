//! The bundled server's promises from outside: its flags, its answers to bad input, and how it ends.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::client::{CardClient, card};
use crate::support::database::database;
use crate::support::gate::{ORIGIN, key};
use crate::support::replica::{self, Replica};
use crate::support::wait::wait_until;

#[tokio::test]
async fn bad_flags_are_refused_with_the_value_and_the_remedy() {
    for (flags, says) in [
        (&["--listen", "nowhere"][..], "nowhere"),
        (&["--base-url", "realms.test"], "realms.test"),
        (&["--base-url", "ftp://realms.test"], "ftp://realms.test"),
        (&["--lock", "mysql"], "mysql"),
        (&["--lock", "postgres"], "--database-url"),
        (&["--pool-size", "0"], "0"),
        (&["--sessions", "-1"], "-1"),
        (
            &["--database-url", "postgres://h/d", "--sessions", "1001"],
            "sessions cannot be 1001",
        ),
        (&["--acquire-timeout", "soon"], "soon"),
        (&["--acquire-timeout", "-1"], "-1"),
        (&["--lease", "NaN"], "NaN"),
        (&["--lease", "0"], "0"),
        (&["--write-delay", "x"], "x"),
        (
            &["--lock", "off", "--fencing"],
            "--lock postgres or in-process",
        ),
        (&["--frobnicate"], "--frobnicate"),
        (&["--database-url", "mysql://u:secret@h/d"], "postgres://"),
        (&["--data-dir", "/dev/null/x"], "/dev/null/x"),
    ] {
        let run = replica::run(flags).await;
        assert!(matches!(run.code, Some(1 | 2)), "{flags:?}: {run:?}");
        assert!(run.stderr.contains(says), "{flags:?}: {run:?}");
        assert!(
            !run.stderr.contains("secret") && run.stdout.is_empty(),
            "{flags:?}: {run:?}"
        );
    }
}

#[tokio::test]
async fn an_unreachable_database_at_start_is_one_clear_line_and_exit_1() {
    let run = replica::run(&["--database-url", "postgres://u:secret@127.0.0.1:1/realms"]).await;
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    assert!(run.stderr.starts_with("error: "), "{run:?}");
    assert!(
        run.stderr.contains("127.0.0.1:1/realms") && !run.stderr.contains("secret"),
        "{run:?}"
    );
    assert!(run.stdout.is_empty(), "{run:?}");
}

#[tokio::test]
async fn with_no_flags_a_card_can_be_created_read_changed_and_removed() {
    let replica = Replica::start(&[]).await;
    let client = CardClient::new();
    let document = card(json!({"name": "Luke", "address": {"town": "Ghent", "zip": 9000}}));
    let created = client
        .request(Method::POST, &replica.url("/luke/a/"))
        .header("content-type", "application/vnd.card+json; charset=utf-8")
        .body(document.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(created.status(), StatusCode::CREATED);
    let location = created.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.starts_with(&replica.url("/luke/a/")), "{location}");

    let change = card(json!({"address": {"zip": 9050}}));
    let (status, changed) = client.patch(&location, &change).await;
    assert_eq!(status, StatusCode::OK);
    let expected = json!({"name": "Luke", "address": {"town": "Ghent", "zip": 9050}});
    assert_eq!(changed["data"]["attributes"], expected);
    let (status, read) = client.get(&location).await;
    assert_eq!(
        (status, &read["data"]["attributes"]),
        (StatusCode::OK, &expected)
    );
    assert_eq!(client.delete(&location).await.0, StatusCode::NO_CONTENT);
    assert_eq!(client.get(&location).await.0, StatusCode::NOT_FOUND);
    assert_eq!(client.delete(&location).await.0, StatusCode::NOT_FOUND);
    assert_eq!(
        client.patch(&location, &change).await.0,
        StatusCode::NOT_FOUND
    );
}

/// The single error of a JSON:API error document.
fn error(document: &Value) -> &Value {
    let errors = document["errors"].as_array().expect("an error document");
    assert_eq!(errors.len(), 1, "{document}");
    &errors[0]
}

#[tokio::test]
async fn bad_requests_are_json_api_errors_and_write_nothing() {
    let data = tempfile::tempdir().unwrap();
    let replica = Replica::start(&["--data-dir", data.path().to_str().unwrap()]).await;
    let client = CardClient::new();
    let atomic = |operation: Value| json!({ "atomic:operations": [operation] });
    let fine = json!({"type": "card", "attributes": {}});
    let large = card(json!({"text": "x".repeat(1024 * 1024)}));
    for (path, document, status) in [
        ("/luke/a/", json!({}), 400),
        ("/luke/a/", json!({"data": {"type": "cat"}}), 400),
        ("/luke/a/", card(json!([1])), 400),
        ("/luke/a/", large, 413),
        ("/luke/a/_atomic", json!({"atomic:operations": []}), 400),
        (
            "/luke/a/_atomic",
            atomic(json!({"op": "frob", "href": "x.json"})),
            400,
        ),
        (
            "/luke/a/_atomic",
            atomic(json!({"op": "add", "href": "../b/x.json", "data": fine})),
            400,
        ),
        (
            "/luke/a/_atomic",
            atomic(json!({"op": "add", "href": "/x.json", "data": fine})),
            400,
        ),
        (
            "/luke/a/_atomic",
            atomic(json!({"op": "add", "href": "%2e%2e/x.json", "data": fine})),
            400,
        ),
        (
            "/luke/a/_atomic",
            atomic(json!({"op": "update", "href": "x.json", "data": fine})),
            404,
        ),
        (
            "/luke/a/_atomic",
            atomic(json!({"op": "remove", "href": "x.json"})),
            404,
        ),
        ("/luke//a/", card(json!({})), 400),
        ("/luke/%2e%2e/", card(json!({})), 400),
        ("/luke", card(json!({})), 400),
    ] {
        let (answer, body) = client.post(&replica.url(path), &document).await;
        assert_eq!(answer, status, "{path}: {body}");
        assert_eq!(error(&body)["status"], status.to_string(), "{body}");
        assert!(
            error(&body)["detail"].is_string() && error(&body)["code"].is_string(),
            "{body}"
        );
    }
    let unread = client
        .request(Method::POST, &replica.url("/luke/a/"))
        .header("content-type", "text/plain")
        .body(card(json!({})).to_string());
    assert_eq!(unread.send().await.unwrap().status(), 415);
    let (status, body) = client.get(&replica.url("/luke/a/nothing")).await;
    assert_eq!(
        (status, &error(&body)["status"]),
        (StatusCode::NOT_FOUND, &json!("404"))
    );
    let (status, body) = client
        .send(Method::PUT, &replica.url("/luke/a/x"), None)
        .await
        .unwrap();
    assert_eq!(
        (status, &error(&body)["status"]),
        (StatusCode::METHOD_NOT_ALLOWED, &json!("405"))
    );

    let written = std::fs::read_dir(data.path()).unwrap().count();
    assert_eq!(written, 0);
}

#[tokio::test]
async fn a_rejected_write_is_a_json_api_error_too() {
    let database = database().await;
    let holder = database.connect().await;
    let lock = format!("SELECT pg_advisory_lock({})", key("/luke/a"));
    holder.batch_execute(&lock).await.unwrap();
    let flags = [
        "--base-url",
        ORIGIN,
        "--acquire-timeout",
        "0.1",
        "--database-url",
        database.url(),
    ];
    let replica = Replica::start(&flags).await;
    let client = CardClient::new();
    let request = client
        .request(Method::POST, &replica.url("/luke/a/"))
        .header("content-type", "application/json")
        .body(card(json!({})).to_string());
    let refused = request.send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        refused.headers()["content-type"],
        "application/vnd.api+json"
    );
    let document: Value = refused.json().await.unwrap();
    assert_eq!(error(&document)["code"], "lock-timeout");
}

#[tokio::test]
async fn a_terminated_server_finishes_its_writes_and_leaves_no_lock() {
    for write_through_a_gone_client in [false, true] {
        let database = database().await;
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().to_str().unwrap();
        let flags = [
            "--base-url",
            ORIGIN,
            "--data-dir",
            dir,
            "--database-url",
            database.url(),
            "--write-delay",
            "400",
        ];
        let mut replica = Replica::start(&flags).await;
        let client = CardClient::new();
        let add = json!({"atomic:operations": [
            {"op": "add", "href": "x.json", "data": {"type": "card", "attributes": {"n": 1}}}
        ]});
        let url = replica.url("/luke/a/_atomic");
        let write = tokio::spawn(async move { client.post(&url, &add).await });
        database.wait_for_granted(key("/luke/a"), 1).await;
        if write_through_a_gone_client {
            write.abort();
        }
        let ended = replica.terminate().await;
        assert!(ended.success(), "{ended}: {}", replica.stderr());
        if !write_through_a_gone_client {
            assert_eq!(write.await.unwrap().0, StatusCode::CREATED);
        }
        assert!(data.path().join("luke/a/x.json").is_file());
        database.wait_for_granted(key("/luke/a"), 0).await;
        wait_until("no connection", async || database.backends().await == 0).await;
    }
}

#[tokio::test]
async fn an_idle_client_does_not_keep_a_terminated_server() {
    let mut replica = Replica::start(&[]).await;
    let client = CardClient::new();
    // Kept alive by the client's pool.
    client.get(&replica.url("/luke/a/x")).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), replica.terminate());
    assert!(ended.await.expect("it ends soon").success());
}

#[tokio::test]
async fn its_numbers_can_be_scraped_and_its_answers_be_timed() {
    let http = reqwest::Client::new();
    for (flags, timed) in [(&["--server-timing"][..], true), (&[], false)] {
        let replica = Replica::start(flags).await;
        let create = http.post(replica.url("/luke/a/")).json(&card(json!({})));
        let created = create.send().await.unwrap();
        assert_eq!(created.status(), StatusCode::CREATED);
        let timing = created.headers().get("server-timing");
        let timing = timing.map(|timing| timing.to_str().unwrap().to_owned());
        assert_eq!(timing.is_some(), timed, "{timing:?}");
        if let Some(timing) = timing {
            let names: Vec<&str> = timing
                .split(", ")
                .map(|entry| entry.split(';').next().unwrap())
                .collect();
            assert_eq!(names, ["lock-wait", "lock-hold"], "{timing}");
        }

        let scraped = http.get(replica.url("/metrics")).send().await.unwrap();
        let media_type = scraped.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(
            media_type.starts_with("text/plain; version=0.0.4"),
            "{media_type}"
        );
        let text = scraped.text().await.unwrap();
        for line in [
            "realm_lock_wait_seconds_count 1",
            r#"realm_lock_hold_seconds_bucket{le="+Inf"} 1"#,
            "realm_lock_held 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
