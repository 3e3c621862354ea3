//! Conditional requests: which answers carry a version, and which are refused.

use super::*;

/// A server with one card: its path, and its first version.
async fn with_a_card() -> (Server, String, String) {
    let server = Server::new(false);
    let created = server
        .send("POST", "/luke/r/", &card(&json!({"a": 1})))
        .await;
    let url = created.body["data"]["id"].as_str().unwrap();
    let path = url
        .strip_prefix("http://127.0.0.1:4201")
        .unwrap()
        .to_owned();
    let etag = created.headers[ETAG].to_str().unwrap().to_owned();
    (server, path, etag)
}

/// A change under one condition.
async fn send_if(server: &Server, method: &str, path: &str, name: &str, value: &str) -> Answer {
    let body = card(&json!({"a": 2}));
    server
        .send_with(method, path, &body, &[(name, value)])
        .await
}

#[tokio::test]
async fn every_answer_with_a_card_has_its_version() {
    let (server, path, first) = with_a_card().await;
    let read = server.send("GET", &path, &Value::Null).await;
    assert_eq!(read.headers[ETAG], first);
    let tags = format!("\"x\", W/{first}");
    let known = send_if(&server, "GET", &path, "if-none-match", &tags).await;
    assert_eq!((known.status, &known.body), (304, &Value::Null));
    assert_eq!(known.headers[ETAG], first);

    let patched = send_if(&server, "PATCH", &path, "if-match", &first).await;
    assert_eq!(patched.status, 200);
    let second = patched.headers[ETAG].to_str().unwrap();
    assert_ne!(second, first);
    let read = send_if(&server, "GET", &path, "if-none-match", &first).await;
    assert_eq!(
        (read.status, &read.headers[ETAG]),
        (200, &patched.headers[ETAG])
    );
    let removed = send_if(&server, "DELETE", &path, "if-match", second).await;
    assert_eq!(removed.status, 204);
}

#[tokio::test]
async fn a_condition_that_does_not_hold_writes_nothing() {
    let (server, path, etag) = with_a_card().await;
    let weak = format!("W/{etag}");
    let bare = etag.trim_matches('"');
    let failed = (412, "precondition-failed");
    let bad = (400, "bad-precondition");
    for (method, path, name, value, expected) in [
        ("PATCH", &*path, "if-match", "\"x\"", failed),
        ("DELETE", &path, "if-match", "\"x\", \"y\"", failed),
        ("DELETE", &path, "if-match", &weak, failed),
        ("GET", &path, "if-match", "\"x\"", failed),
        ("PATCH", "/luke/r/missing", "if-match", "*", failed),
        ("GET", "/luke/r/missing", "if-match", "*", failed),
        (
            "GET",
            "/luke/r/missing",
            "if-none-match",
            "*",
            (404, "card-not-found"),
        ),
        ("PATCH", &path, "if-none-match", &etag, failed),
        ("PATCH", &path, "if-match", "<script>", bad),
        ("GET", &path, "if-none-match", bare, bad),
        ("POST", "/luke/r/", "if-match", &etag, failed),
        ("POST", "/luke/r/_atomic", "if-match", "*", failed),
    ] {
        let answer = send_if(&server, method, path, name, value).await;
        assert_eq!(answer.error(), expected, "{method} {path} {name}: {value}");
        if expected == bad {
            let detail = answer.body["errors"][0]["detail"].as_str().unwrap();
            assert!(detail.contains(value), "{detail}");
        }
    }
    let read = server.send("GET", &path, &Value::Null).await;
    assert_eq!(read.headers[ETAG], etag);
}
