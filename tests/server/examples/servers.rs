//! `axum_minimal`, `hyper_minimal` and `shared_transaction`.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::Value;

use super::{Server, command, key};
use crate::support::database::database;
use crate::support::example::PATIENCE;
use crate::support::process::Process;

const WRITERS: usize = 10;

#[tokio::test]
async fn axum_minimal_keeps_every_field_of_writers_that_come_together() {
    let mut server = Server::start("axum_minimal", None).await;
    let name = |n: usize| format!("field-{n}");
    let writes = (0..WRITERS).map(async |n| {
        let field = format!(r#"{{"{}":{n}}}"#, name(n));
        server.send(Method::PATCH, "card", &field).await.status()
    });
    assert_eq!(join_all(writes).await, [StatusCode::OK; WRITERS]);
    let card: Value = serde_json::from_str(&server.get("card").await).unwrap();
    let kept = (0..WRITERS).filter(|n| card[name(*n)] == *n);
    assert_eq!(kept.count(), WRITERS, "{card}");

    let missing = server.send(Method::GET, "other", "").await;
    assert_eq!(missing.status(), 404);
    assert!(server.interrupt().await.success());
    assert!(server.process.stdout().contains("this process only"));
}

#[tokio::test]
async fn hyper_minimal_counts_every_visit() {
    let mut server = Server::start("hyper_minimal", None).await;
    let visits = (0..WRITERS).map(async |_| server.send(Method::POST, "visits", "").await.status());
    assert_eq!(join_all(visits).await, [StatusCode::OK; WRITERS]);
    assert_eq!(server.get("visits").await, format!("{WRITERS}\n"));
    assert_eq!(server.get("others").await, "0\n");
    let refused = server.send(Method::DELETE, "visits", "").await;
    assert_eq!(refused.status(), 405);
    assert!(server.interrupt().await.success());
    assert!(server.process.stdout().contains("this process only"));
}

#[tokio::test]
async fn with_a_database_the_locks_are_there() {
    let database = database().await;
    for (example, method, body) in [
        ("axum_minimal", Method::PATCH, "{}"),
        ("hyper_minimal", Method::POST, ""),
        ("shared_transaction", Method::POST, r#"{"amount":1}"#),
    ] {
        let path = if example == "shared_transaction" {
            "spent"
        } else {
            "card"
        };
        let mut server = Server::start(example, Some(&database)).await;
        let other = database.hold(key()).await;
        let write = server.send(method, path, body);
        let release = async {
            database.wait_for_waiting(key(), 1).await;
            other.batch_execute("COMMIT").await.unwrap();
        };
        let (answer, ()) = tokio::join!(write, release);
        assert_eq!(answer.status(), 200, "{example}");
        assert!(server.interrupt().await.success(), "{example}");
        assert!(server.process.stdout().contains("locks in PostgreSQL"));
    }
}

#[tokio::test]
async fn shared_transaction_commits_what_succeeds_and_takes_the_rest_back() {
    let database = database().await;
    let server = Server::start("shared_transaction", Some(&database)).await;
    let spend = async |amount: u32| {
        let order = format!(r#"{{"amount":{amount}}}"#);
        server.send(Method::POST, "spent", &order).await.status()
    };
    let rows = async || {
        let client = database.connect().await;
        let query = "SELECT amount FROM example_spendings ORDER BY amount";
        let rows = client.query(query, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>()
    };
    assert_eq!(spend(70).await, 200);
    assert_eq!(rows().await, [70]);
    assert_eq!(spend(70).await, 409);
    assert_eq!(rows().await, [70]);
    assert_eq!(server.get("spent").await, "70\n");
    // Each fits by itself; together only three of them do.
    let together = join_all((0..WRITERS).map(|_| spend(10))).await;
    let fit = together.iter().filter(|status| **status == 200).count();
    assert_eq!((fit, rows().await), (3, vec![10, 10, 10, 70]));
}

#[tokio::test]
async fn shared_transaction_says_what_it_needs() {
    let mut process = Process::spawn(&mut command("shared_transaction", None).await);
    assert_eq!(process.end(PATIENCE).await.code(), Some(1));
    let said = process.stderr();
    assert!(said.contains("set DATABASE_URL="), "{said}");
}
