use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use http::header::ALLOW;
use http_body_util::BodyExt;
use tempfile::TempDir;
use tower::ServiceExt;
use url::Url;

use super::*;
use crate::store::{Fault, Store};

struct Server {
    router: Router,
    directory: TempDir,
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Value,
}

impl Answer {
    /// Status and code of an error, after a look at its form.
    fn error(&self) -> (u16, &str) {
        assert_eq!(self.headers[CONTENT_TYPE], JSON_API);
        let error = &self.body["errors"][0];
        assert_eq!(error["status"], self.status.to_string());
        assert!(error["title"].is_string() && error["detail"].is_string());
        (self.status, error["code"].as_str().unwrap())
    }
}

impl Server {
    fn new(fencing: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store {
            root: directory.path().to_owned(),
            write_delay: Duration::ZERO,
            fencing,
            fault: Fault::default(),
        });
        let cards = Cards {
            store,
            base_url: Url::parse("http://127.0.0.1:4201").unwrap(),
            locks: None,
            rows: false,
            cache: None,
        };
        let router = router(cards, None);
        Self { router, directory }
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send_as("application/json", method, path, body.to_string())
            .await
    }

    async fn send_as(&self, media_type: &str, method: &str, path: &str, body: String) -> Answer {
        let headers = [("content-type", media_type)];
        self.send_text(method, path, body, &headers).await
    }

    async fn send_with(
        &self,
        method: &str,
        path: &str,
        body: &Value,
        headers: &[(&str, &str)],
    ) -> Answer {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.send_text(method, path, body.to_string(), &headers)
            .await
    }

    async fn send_text(
        &self,
        method: &str,
        path: &str,
        body: String,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).unwrap();
        let (parts, body) = self
            .router
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        }
    }

    /// The realm's visible and hidden files, and its directory itself.
    fn files(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.directory.path().join("luke/r")) else {
            return Vec::new();
        };
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .chain([".".to_owned()])
            .collect();
        files.sort();
        files
    }
}

fn card(attributes: &Value) -> Value {
    json!({ "data": { "type": "card", "attributes": attributes } })
}

fn operations(operations: &[(&str, &str)]) -> Value {
    let operations: Vec<_> = operations
        .iter()
        .map(|(op, href)| json!({ "op": op, "href": href, "data": { "type": "card", "attributes": { "n": 1 } } }))
        .collect();
    json!({ "atomic:operations": operations })
}

#[tokio::test]
async fn a_card_lives_from_create_to_delete() {
    let server = Server::new(false);
    let created = server
        .send("POST", "/luke/r/", &card(&json!({"a": {"x": 1}})))
        .await;
    assert_eq!(created.status, 201);
    let url = created.body["data"]["id"].as_str().unwrap();
    assert_eq!(created.headers[LOCATION], url);
    let path = url.strip_prefix("http://127.0.0.1:4201").unwrap();
    let id: Uuid = path.strip_prefix("/luke/r/").unwrap().parse().unwrap();
    assert_eq!(id.get_version_num(), 4);

    let patched = server
        .send("PATCH", path, &card(&json!({"a": {"y": 2}})))
        .await;
    assert_eq!(
        (patched.status, &patched.headers[CONTENT_TYPE]),
        (200, &JSON_API)
    );
    let read = server
        .send("GET", &format!("{path}.json"), &Value::Null)
        .await;
    assert_eq!(read.status, 200);
    assert_eq!(
        read.body,
        json!({ "data": { "type": "card", "id": url, "attributes": {"a": {"x": 1, "y": 2}}, "meta": {} } })
    );
    assert_eq!(read.body, patched.body);

    let removed = server.send("DELETE", path, &Value::Null).await;
    assert_eq!((removed.status, removed.body), (204, Value::Null));
    for method in ["GET", "PATCH", "DELETE"] {
        let answer = server.send(method, path, &card(&json!({}))).await;
        assert_eq!(answer.error(), (404, "card-not-found"), "{method}");
    }
}

#[tokio::test]
async fn changing_what_is_not_there_makes_nothing() {
    let server = Server::new(false);
    for method in ["GET", "PATCH", "DELETE"] {
        let answer = server.send(method, "/luke/r/x", &card(&json!({}))).await;
        assert_eq!(answer.error(), (404, "card-not-found"), "{method}");
    }
    assert_eq!(server.files(), [""; 0]);
}

#[tokio::test]
async fn operations_answer_one_result_each() {
    let server = Server::new(false);
    let body = operations(&[
        ("add", "x.json"),
        ("update", "x"),
        ("add", "y"),
        ("remove", "y"),
    ]);
    let answer = server.send("POST", "/luke/r/_atomic", &body).await;
    assert_eq!(answer.status, 201);
    let tag = |attributes: &str| {
        let stored =
            format!(r#"{{"data":{{"attributes":{attributes},"meta":{{}},"type":"card"}}}}"#);
        ETag::of(stored.as_bytes()).to_string()
    };
    let result = |name: &str| {
        let id = format!("http://127.0.0.1:4201/luke/r/{name}");
        let data = json!({ "type": "card", "id": id, "attributes": {"n": 1}, "meta": {} });
        json!({ "data": data, "meta": { "etag": tag(r#"{"n":1}"#) } })
    };
    let (x, y) = (result("x"), result("y"));
    assert_eq!(answer.body, json!({ "atomic:results": [x, x, y, {}] }));
    assert_eq!(server.files(), [".", "x.json"]);
}

#[tokio::test]
async fn operations_that_cannot_all_be_applied_write_nothing() {
    let server = Server::new(false);
    let url = "http://127.0.0.1:4201/luke/other/x.json";
    for (list, expected, place) in [
        (
            &[("add", "x"), ("add", "x")][..],
            (409, "card-exists"),
            "/atomic:operations/1",
        ),
        (
            &[("add", "x"), ("update", "y")],
            (404, "card-not-found"),
            "/atomic:operations/1",
        ),
        (
            &[("add", "x"), ("remove", "y")],
            (404, "card-not-found"),
            "/atomic:operations/1",
        ),
        (
            &[("add", "x"), ("move", "x")],
            (400, "bad-document"),
            "/atomic:operations/1/op",
        ),
        (
            &[("add", "x"), ("add", "../y")],
            (400, "bad-path"),
            "/atomic:operations/1/href",
        ),
        (
            &[("add", "x"), ("add", "%2e%2e/y")],
            (400, "bad-path"),
            "/atomic:operations/1/href",
        ),
        (
            &[("add", "x"), ("add", url)],
            (400, "bad-path"),
            "/atomic:operations/1/href",
        ),
        (&[], (400, "bad-document"), "/atomic:operations"),
    ] {
        let answer = server
            .send("POST", "/luke/r/_atomic", &operations(list))
            .await;
        assert_eq!(answer.error(), expected, "{list:?}");
        assert_eq!(
            answer.body["errors"][0]["source"]["pointer"], place,
            "{list:?}"
        );
        assert_eq!(server.files(), [""; 0], "{list:?}");
    }
}

#[tokio::test]
async fn media_types_are_checked_where_a_body_is_read() {
    let server = Server::new(false);
    let body = card(&json!({})).to_string();
    for (media_type, status) in [
        ("application/json", 201),
        ("application/vnd.api+json", 201),
        ("application/vnd.card+json; charset=utf-8", 201),
        ("text/plain", 415),
        ("", 415),
    ] {
        let answer = server
            .send_as(media_type, "POST", "/luke/r/", body.clone())
            .await;
        assert_eq!(answer.status, status, "{media_type}");
    }
    let answer = server
        .send_as("text/plain", "PATCH", "/luke/r/x", body.clone())
        .await;
    assert_eq!(answer.error(), (415, "unsupported-media-type"));
    let answer = server
        .send_as("text/plain", "DELETE", "/luke/r/x", body)
        .await;
    assert_eq!(answer.error(), (404, "card-not-found"));
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let server = Server::new(false);
    let body = card(&json!({ "a": "x".repeat(1024 * 1024) }));
    for (method, path) in [
        ("POST", "/luke/r/"),
        ("POST", "/luke/r/_atomic"),
        ("PATCH", "/luke/r/x"),
    ] {
        let answer = server.send(method, path, &body).await;
        assert_eq!(answer.error(), (413, "body-too-large"), "{method} {path}");
    }
    assert_eq!(server.files(), [""; 0]);
}

#[tokio::test]
async fn hostile_paths_are_bad_requests() {
    let server = Server::new(false);
    let long = format!("/luke/r/{}", vec!["d".repeat(200); 30].join("/"));
    for path in [
        "/luke/r/..%2Fx",
        "/luke/r/%2e%2e/x",
        "/%2e%2e/r/x",
        "/luke/r/a//x",
        "/luke/r/x/",
        &long,
    ] {
        for method in ["GET", "PATCH", "DELETE"] {
            let answer = server.send(method, path, &card(&json!({}))).await;
            assert_eq!(answer.error(), (400, "bad-path"), "{method} {path}");
        }
    }
    let answer = server
        .send("POST", "/luke/%2e%2e/", &card(&json!({})))
        .await;
    assert_eq!(answer.error(), (400, "bad-path"));
}

#[tokio::test]
async fn a_bad_document_is_refused_with_its_place() {
    let server = Server::new(false);
    let body = json!({ "data": { "type": "card", "attributes": [] } });
    let answer = server.send("POST", "/luke/r/", &body).await;
    assert_eq!(answer.error(), (400, "bad-document"));
    assert_eq!(
        answer.body["errors"][0]["source"]["pointer"],
        "/data/attributes"
    );
    assert_eq!(server.files(), [""; 0]);
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_json_api_errors() {
    let server = Server::new(false);
    for path in ["/", "/luke", "/luke/r"] {
        for method in ["GET", "POST"] {
            let answer = server.send(method, path, &card(&json!({}))).await;
            assert_eq!(answer.error(), (404, "not-found"), "{method} {path}");
        }
    }
    for (method, path, allow) in [
        ("GET", "/luke/r/", "POST"),
        ("PATCH", "/luke/r/_atomic", "POST"),
        ("PUT", "/luke/r/x", "GET,HEAD,PATCH,DELETE"),
        ("BREW", "/luke/r/x", "GET,HEAD,PATCH,DELETE"),
    ] {
        let answer = server.send(method, path, &card(&json!({}))).await;
        assert_eq!(
            answer.error(),
            (405, "method-not-allowed"),
            "{method} {path}"
        );
        assert_eq!(answer.headers[ALLOW], allow, "{method} {path}");
    }
}

#[tokio::test]
async fn a_write_without_a_token_is_refused_with_fencing() {
    let server = Server::new(true);
    let answer = server.send("POST", "/luke/r/", &card(&json!({}))).await;
    assert_eq!(answer.error(), (500, "fencing-token-missing"));
    assert_eq!(server.files(), [""; 0]);
}

mod precondition;
mod realms;
