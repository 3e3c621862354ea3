//! Nothing that a client writes acts on a terminal, or forges a line of the example server's log.

use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::support::client::{CardClient, card};
use crate::support::database::database;
use crate::support::gate::ORIGIN;
use crate::support::replica::Replica;

/// Whether a character does more than be read.
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[tokio::test]
async fn nothing_that_a_client_writes_acts_on_a_terminal_or_forges_a_line_of_the_log() {
    let database = database().await;
    let data = tempfile::tempdir().unwrap();
    let flags = [
        "--base-url",
        ORIGIN,
        "--data-dir",
        data.path().to_str().unwrap(),
        "--database-url",
        database.url(),
    ];
    let mut replica = Replica::start(&flags).await;
    let client = CardClient::new();
    // A new line that looks like one of the log's, colours, a C1 control, other ends of lines, and text from right to left.
    let hostile = "x\n1999-12-31T00:00:00Z  INFO forged\u{1b}[31m\u{9b}31m\u{2028}\u{2029}\u{2066}\u{202e}'\"--; DROP TABLE realm_registry; */";
    let encoded: String = utf8_percent_encode(hostile, NON_ALPHANUMERIC).collect();
    let attributes = json!({});
    let named = |value: &str| json!({"data": {"type": value, "attributes": attributes}});
    let right_to_left = "/luke/a/\u{202e}b".replace('\u{202e}', "%E2%80%AE");
    let atomic = |href: &str| json!({"atomic:operations": [{"op": "remove", "href": href}]});
    for (method, path, document) in [
        (Method::GET, format!("/luke/a/{encoded}"), Value::Null),
        (Method::DELETE, format!("/{encoded}/a/x"), Value::Null),
        (Method::PATCH, format!("/luke/{encoded}/x"), card(json!({}))),
        (Method::DELETE, right_to_left, Value::Null),
        (Method::POST, "/luke/a/".to_owned(), named(hostile)),
        (Method::POST, "/luke/a/_atomic".to_owned(), atomic(hostile)),
        (
            Method::POST,
            "/luke/a/_atomic".to_owned(),
            json!({(hostile): 1}),
        ),
        (
            Method::POST,
            "/_create-realm".to_owned(),
            json!({"owner": hostile, "endpoint": "a"}),
        ),
        (
            Method::DELETE,
            "/_delete-realm".to_owned(),
            json!({"realmURL": hostile}),
        ),
        (
            Method::DELETE,
            "/_delete-realm".to_owned(),
            json!({"realmURL": format!("{ORIGIN}/luke/%E2%80%AEb/")}),
        ),
    ] {
        let (status, answer) = client
            .send(method.clone(), &replica.url(&path), Some(&document))
            .await
            .unwrap();
        assert!(status.is_client_error(), "{method} {path}: {status}");
        let detail = answer["errors"][0]["detail"].as_str().unwrap();
        assert!(!detail.contains(acts), "{method} {path}: {detail:?}");
    }
    // A realm whose name is SQL, shell and markup, but no more than a name.
    let name = "a'; DROP TABLE realm_registry; --<script>$(id)";
    let create = json!({"owner": name, "endpoint": name});
    let url = replica.url("/_create-realm");
    assert_eq!(client.post(&url, &create).await.0, StatusCode::CREATED);
    assert_eq!(client.post(&url, &create).await.0, StatusCode::CONFLICT);
    let row = database
        .connect()
        .await
        .query_one("SELECT owner FROM realm_registry", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), name);
    assert!(data.path().join(name).join(name).is_dir());

    replica.terminate().await;
    let log = replica.stderr();
    assert!(log.lines().count() > 10, "{log}");
    for line in log.lines() {
        assert!(line.starts_with("20"), "{line:?}");
        assert!(!line.contains(acts), "{line:?}");
        assert!(
            line.split_once("Z ")
                .is_some_and(|(time, _)| !time.contains(' ')),
            "{line:?}"
        );
    }
}
