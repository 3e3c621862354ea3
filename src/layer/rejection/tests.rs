use super::*;
use crate::lock::error::ConnectError;

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
fn a_route_answers_for_a_busy_realm_and_for_nothing_else() {
    let after = Duration::from_secs(1);
    let timeout = || LockError::Timeout {
        claim: claim(),
        after,
    };
    let full = LockError::QueueFull {
        claim: claim(),
        waiters: 3,
    };
    let nested = LockError::Nested {
        held: claim(),
        source: Box::new(timeout()),
    };
    let conflict = RouteLimits::new().busy_status(StatusCode::CONFLICT);
    let conflict = conflict.unwrap();
    for plain in [timeout(), full, nested].map(Rejection::from) {
        for (limits, status, detail) in [
            (conflict.clone(), 409, None),
            (RouteLimits::new().busy_detail("later"), 503, Some("later")),
            (conflict.clone().busy_detail("later"), 409, Some("later")),
        ] {
            let rejection = plain.clone().on_route(&limits);
            assert_eq!(rejection.code(), plain.code());
            assert_eq!(rejection.realms(), plain.realms());
            let response = rejection.to_response();
            assert_eq!(response.status(), status);
            assert!(response.headers().contains_key(header::RETRY_AFTER));
            let problem: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(problem["status"], status);
            let detail = detail.map_or(plain.detail(), ToOwned::to_owned);
            assert_eq!(problem["detail"], detail);
        }
        let routed = plain.on_route(&RouteLimits::new());
        assert!(matches!(routed, Rejection::Lock(_)));
    }
    let lost = LockError::Lost { claim: claim() };
    let expired = LockError::Expired {
        claim: claim(),
        max_hold: after,
    };
    for rejection in [
        lost.into(),
        expired.into(),
        LockError::ShuttingDown.into(),
        RealmError::AmbiguousMethod.into(),
        Rejection::from(BodyError::TooLarge { limit: 9 }),
    ] {
        let status = rejection.status();
        let routed = rejection.on_route(&conflict);
        assert_eq!(routed.status(), status);
        assert!(!matches!(routed, Rejection::Busy { .. }));
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
