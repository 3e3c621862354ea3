//! What a client reads of each rejection: status, problem body and `grpc-status`.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::json;
use tower_realm_lock::{BodyError, Claim, ConnectError, LockError, RealmUrl, Rejection};

/// The `grpc-status` that is documented for a code.
fn grpc_status(code: &str) -> &'static str {
    match code {
        "realm-unresolved" | "body-broken" => "3",
        "hold-expired" | "body-timeout" => "4",
        "queue-full" | "body-too-large" => "8",
        "lock-lost" | "commit-failed" => "10",
        "lock-timeout" | "lock-unavailable" | "realm-unavailable" => "14",
        other => panic!("`{other}` is not documented"),
    }
}

/// Fails unless a gRPC client reads the same of this rejection as others do.
fn assert_grpc(rejection: &Rejection) {
    let request = http::Request::builder().header("content-type", "application/grpc+proto");
    let (head, ()) = request.body(()).unwrap().into_parts();
    let response = rejection.to_response_for(&head);
    assert_eq!(response.status(), 200);
    let headers = response.headers();
    assert_eq!(headers[header::CONTENT_TYPE], "application/grpc");
    assert_eq!(headers["grpc-status"], grpc_status(rejection.code()));
    let message = headers["grpc-message"].to_str().unwrap();
    let message = percent_encoding::percent_decode_str(message).decode_utf8();
    assert_eq!(message.unwrap(), rejection.detail());
    assert!(response.body().is_empty());
}

fn claim() -> Claim {
    Claim::realm(&"https://r.example/luke/a/".parse().unwrap())
}

#[test]
fn every_situation_has_the_response_that_is_documented() {
    let second = Duration::from_secs(1);
    let server = "db.internal:5432/realms";
    for (rejection, status, code, retry) in [
        (
            LockError::Timeout {
                claim: claim(),
                after: second,
            },
            503,
            "lock-timeout",
            true,
        ),
        (
            LockError::QueueFull {
                claim: claim(),
                waiters: 3,
            },
            503,
            "queue-full",
            true,
        ),
        (
            LockError::Connect(ConnectError::Standby {
                server: server.into(),
            }),
            503,
            "lock-unavailable",
            true,
        ),
        (
            LockError::Connect(ConnectError::ConnectTimeout {
                server: server.into(),
                after: second,
            }),
            503,
            "lock-unavailable",
            true,
        ),
        (
            LockError::PoolExhausted {
                pool_size: 4,
                after: second,
            },
            503,
            "lock-unavailable",
            true,
        ),
        (LockError::ShuttingDown, 503, "lock-unavailable", true),
        (LockError::Lost { claim: claim() }, 503, "lock-lost", false),
        (
            LockError::CommitFailed {
                claim: claim(),
                problem: "column db.internal".into(),
            },
            503,
            "commit-failed",
            false,
        ),
        (
            LockError::Nested {
                held: claim(),
                source: Box::new(LockError::QueueFull {
                    claim: claim(),
                    waiters: 3,
                }),
            },
            503,
            "queue-full",
            true,
        ),
        (
            LockError::Expired {
                claim: claim(),
                max_hold: second,
            },
            504,
            "hold-expired",
            false,
        ),
    ]
    .map(|(error, status, code, retry)| (Rejection::from(error), status, code, retry))
    {
        let response = rejection.to_response();
        assert_eq!(response.status(), status, "{code}");
        assert_eq!(
            response.headers().contains_key(header::RETRY_AFTER),
            retry,
            "{code}"
        );
        let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let kind = problem["type"].as_str().unwrap();
        assert!(kind.ends_with(&format!("#{code}")), "{kind}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["detail"], rejection.to_string());
        assert!(!problem.to_string().contains("db.internal"), "{problem}");
        assert_grpc(&rejection);
    }
}

#[test]
fn a_realm_that_cannot_be_told_is_the_clients_fault() {
    let rejection = Rejection::from(RealmUrl::parse("x\"\n<y>").unwrap_err());
    assert_grpc(&rejection);
    let response = rejection.to_response();
    assert_eq!(response.status(), 400);
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "application/problem+json"
    );
    let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert!(
        problem["type"]
            .as_str()
            .unwrap()
            .ends_with("#realm-unresolved")
    );
}

#[test]
fn what_is_wrong_with_a_body_is_told_apart() {
    for (error, status, code) in [
        (BodyError::TooLarge { limit: 9 }, 413, "body-too-large"),
        (
            BodyError::TimedOut {
                after: Duration::from_secs(1),
            },
            408,
            "body-timeout",
        ),
        (
            BodyError::Broken {
                problem: "reset".into(),
            },
            400,
            "body-broken",
        ),
    ] {
        let rejection = Rejection::from(error);
        assert_eq!(
            (rejection.status().as_u16(), rejection.code()),
            (status, code)
        );
        assert_eq!(rejection.retry_after(), None);
        assert!(rejection.detail().contains("body"), "{code}");
        assert_grpc(&rejection);
    }
}

#[test]
fn all_realms_of_a_claim_are_named() {
    let other: RealmUrl = "https://r.example/luke/b/".parse().unwrap();
    let both = claim().and(&Claim::realm(&other));
    let after = Duration::from_secs(1);
    let response = |claim| Rejection::from(LockError::Timeout { claim, after }).to_response();
    let problem =
        |claim| -> serde_json::Value { serde_json::from_slice(response(claim).body()).unwrap() };
    assert_eq!(problem(claim())["realm"], "https://r.example/luke/a/");
    let both = problem(both);
    let names = ["https://r.example/luke/a/", "https://r.example/luke/b/"];
    assert_eq!(both["realms"], json!(names));
    assert!(both.get("realm").is_none());
}

#[test]
fn another_status_changes_nothing_else() {
    let after = Duration::from_secs(1);
    let rejection = Rejection::from(LockError::Timeout {
        claim: claim(),
        after,
    });
    let response = rejection.to_response_with_status(StatusCode::LOCKED);
    assert_eq!(response.status(), 423);
    let own = rejection.to_response();
    assert_eq!(response.headers(), own.headers());
    let body = |response: &Response<Bytes>| -> serde_json::Value {
        serde_json::from_slice(response.body()).unwrap()
    };
    let mut expected = body(&own);
    expected["status"] = 423.into();
    assert_eq!(body(&response), expected);
}

#[test]
fn the_content_type_decides_which_protocol_a_request_has() {
    let rejection = Rejection::from(LockError::ShuttingDown);
    for (sent, answered) in [
        ("application/grpc", "application/grpc"),
        ("Application/GRPC+proto", "application/grpc"),
        ("application/grpc;charset=utf-8", "application/grpc"),
        ("application/grpc-web", "application/grpc-web"),
        ("application/grpc-web+proto", "application/grpc-web"),
        (
            "application/grpc-web-text+proto",
            "application/grpc-web-text",
        ),
        ("application/grpcx", "application/problem+json"),
        ("application/grpc-other", "application/problem+json"),
        ("application/grp", "application/problem+json"),
        ("application/json", "application/problem+json"),
    ] {
        let request = http::Request::builder().header("content-type", sent);
        let (head, ()) = request.body(()).unwrap().into_parts();
        let response = rejection.to_response_for(&head);
        assert_eq!(response.headers()[header::CONTENT_TYPE], answered, "{sent}");
    }
}
