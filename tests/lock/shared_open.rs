//! A handler that ends while something of its shared transaction is open fails at once, with the
//! name of what is open: its COMMIT would wait for an answer that nobody reads, or for a COPY that
//! nobody ends.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router, routing::patch};
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt, TryStreamExt};
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_postgres::{CopyInSink, CopyOutStream, RowStream, SimpleQueryStream};
use tower_realm_lock::{HoldUntil, LockTransaction, PostgresBuilder, Rejection, TransactionClient};

use crate::support::database::{TestDatabase, database, rows};
use crate::support::gate::{key, postgres_layer_with};
use crate::support::wait::PATIENCE;

const PATH: &str = "/luke/a/card";
const ROWS: usize = 20_000;
/// Far more than what fits between the server and a reader.
const MANY: &str = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)";

/// What a handler keeps past its end.
#[derive(Default)]
struct Kept(Mutex<Vec<Box<dyn std::any::Any + Send>>>);

impl Kept {
    fn keep(&self, it: impl Send + 'static) {
        self.0.lock().unwrap().push(Box::new(it));
    }
}

/// A server whose layer has one connection, and the table that its handlers write.
struct Server {
    database: TestDatabase,
    origin: String,
    kept: Arc<Kept>,
}

impl Server {
    async fn start(hold_until: HoldUntil) -> Self {
        Self::start_with(hold_until, |builder| builder).await
    }

    async fn start_with(
        hold_until: HoldUntil,
        options: impl FnOnce(PostgresBuilder) -> PostgresBuilder,
    ) -> Self {
        let database = database().await;
        let client = database.connect().await;
        let table = "CREATE TABLE writes (n int)";
        client.batch_execute(table).await.unwrap();
        let layer =
            postgres_layer_with(database.url(), |builder| options(builder.pool_size(1))).await;
        let kept = Arc::<Kept>::default();
        let app = Router::new()
            .route("/{owner}/{realm}/{what}", patch(write))
            .layer(
                layer
                    .map_locks(|locks| locks.share_transaction(true))
                    .hold_until(hold_until),
            )
            .layer(axum::middleware::map_response(explain))
            .with_state(Arc::clone(&kept));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, app).into_future());
        Self {
            database,
            origin,
            kept,
        }
    }

    /// The answer to a write: long before a lease has passed, or it would be `lock-lost`.
    async fn write(&self, what: &str) -> (StatusCode, String) {
        let request = reqwest::Client::new().patch(format!("{}/luke/a/{what}", self.origin));
        let answered = async {
            let response = request.send().await.unwrap();
            (response.status(), response.text().await.unwrap())
        };
        let answer = timeout(PATIENCE, answered).await;
        answer.unwrap_or_else(|_| panic!("no answer: {what}"))
    }

    async fn written(&self) -> usize {
        let client = self.database.connect().await;
        let counted = rows(&client, "SELECT count(*) FROM writes").await;
        counted[0].get(0).unwrap().parse().unwrap()
    }
}

/// Answers a rejected request with what the log says, which is not for clients.
async fn explain(response: Response) -> Response {
    match response.extensions().get() {
        Some(Rejection::Lock(error)) => (response.status(), error.to_string()).into_response(),
        _ => response,
    }
}

/// Writes a row, and leaves open what the path says.
async fn write(
    Path((_, _, what)): Path<(String, String, String)>,
    State(kept): State<Arc<Kept>>,
    Extension(transaction): Extension<LockTransaction>,
) -> Response {
    let client = transaction.client().unwrap();
    let insert = "INSERT INTO writes VALUES (1)";
    client.batch_execute(insert).await.unwrap();
    let (what, status) = what.split_once('-').unwrap_or((&what, "200"));
    match what {
        "nothing" => {}
        "body" => {
            let rows = select(&client).await.map_ok(|row| {
                let text: &str = row.get(0);
                Bytes::copy_from_slice(text.as_bytes())
            });
            return Body::from_stream(rows).into_response();
        }
        "rows" => {
            let mut rows = Box::pin(select(&client).await);
            rows.next().await.unwrap().unwrap();
            kept.keep(rows);
        }
        "answers" => {
            let answers: SimpleQueryStream = client.simple_query_raw(MANY).await.unwrap();
            kept.keep(answers);
        }
        "out" => kept.keep(copy_out(&client).await),
        "in" => kept.keep(copy_in(&client).await),
        "fed" => {
            let mut sink = Box::pin(copy_in(&client).await);
            let fed = tokio::spawn(async move {
                while sink.send(Bytes::from_static(b"2\n")).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            kept.keep(fed);
        }
        "client" => kept.keep(transaction.client().unwrap()),
        // All of this leaves nothing open.
        "closed" => {
            let mut rows = Box::pin(select(&client).await);
            rows.next().await.unwrap().unwrap();
            drop(rows);
            drop(copy_out(&client).await);
            let mut sink = pin!(copy_in(&client).await);
            sink.send(Bytes::from_static(b"2\n")).await.unwrap();
            sink.finish().await.unwrap();
            // A statement that still runs is waited for.
            let mut left = Box::pin(client.batch_execute("SELECT pg_sleep(0.2)"));
            assert!((&mut left).now_or_never().is_none());
        }
        "aborted" => drop(copy_in(&client).await),
        // Runs for longer than the test waits for anything.
        "running" => {
            let mut left = Box::pin(client.batch_execute("SELECT pg_sleep(60)"));
            assert!((&mut left).now_or_never().is_none());
        }
        other => panic!("{other}"),
    }
    StatusCode::from_bytes(status.as_bytes())
        .unwrap()
        .into_response()
}

async fn select(client: &TransactionClient) -> RowStream {
    let none: [&str; 0] = [];
    client.query_raw(MANY, none).await.unwrap()
}

async fn copy_out(client: &TransactionClient) -> CopyOutStream {
    let copy = format!("COPY ({MANY}) TO STDOUT");
    client.copy_out(&copy).await.unwrap()
}

async fn copy_in(client: &TransactionClient) -> CopyInSink<Bytes> {
    client.copy_in("COPY writes FROM STDIN").await.unwrap()
}

#[tokio::test]
async fn what_is_left_open_is_named_at_once_and_nothing_of_the_write_stands() {
    let server = Server::start(HoldUntil::Response).await;
    for (what, named) in [
        ("body", "rows of a query"),
        ("rows", "rows of a query"),
        ("answers", "rows of a query"),
        ("out", "data of a COPY TO"),
        ("in", "COPY FROM"),
        ("fed", "COPY FROM"),
        ("client", "its client in use"),
    ] {
        let (status, problem) = server.write(what).await;
        assert_eq!(status, 503, "{what}: {problem}");
        assert!(problem.contains("could not commit"), "{what}: {problem}");
        assert!(problem.contains(named), "{what}: {problem}");
        assert_eq!(server.written().await, 0, "{what}");
        // The next one is not held up by it.
        let (status, problem) = server.write("nothing-404").await;
        assert_eq!(status, 404, "after {what}: {problem}");
    }
    assert_eq!(server.kept.0.lock().unwrap().len(), 6);
}

#[tokio::test]
async fn what_a_handler_that_fails_leaves_open_does_not_keep_the_realm() {
    let server = Server::start(HoldUntil::Response).await;
    for what in ["rows", "answers", "out", "in", "fed", "client"] {
        let (status, problem) = server.write(&format!("{what}-404")).await;
        assert_eq!(status, 404, "{what}: {problem}");
        server.database.wait_for_granted(key(PATH), 0).await;
    }
    let (status, _) = server.write("nothing").await;
    assert_eq!(status, 200);
    assert_eq!(server.written().await, 1);
}

#[tokio::test]
async fn what_is_read_ended_or_dropped_is_not_open() {
    let server = Server::start(HoldUntil::Response).await;
    for count in 1..=5 {
        let (status, problem) = server.write("closed").await;
        assert_eq!(status, 200, "{problem}");
        assert_eq!(server.written().await, 2 * count);
    }
    // As without a lock: PostgreSQL fails the transaction of a COPY that is broken off.
    let (status, problem) = server.write("aborted").await;
    assert_eq!(status, 503);
    assert!(problem.contains("aborted"), "{problem}");
    assert_eq!(server.written().await, 10);
}

#[tokio::test]
async fn a_statement_that_still_runs_when_the_lease_ends_does_not_keep_the_realm() {
    let lease = Duration::from_secs(2);
    let server = Server::start_with(HoldUntil::Response, |builder| builder.lease(lease)).await;
    for (what, answer) in [("running", 503), ("running-500", 500)] {
        let (status, problem) = server.write(what).await;
        assert_eq!(status, answer, "{what}: {problem}");
        server.database.wait_for_granted(key(PATH), 0).await;
        assert_eq!(server.written().await, 0, "{what}");
    }
}

#[tokio::test]
async fn rows_are_streamed_as_the_body_of_a_hold_that_lasts_as_long() {
    let server = Server::start(HoldUntil::BodyEnd).await;
    let (status, body) = server.write("body").await;
    assert_eq!(status, 200);
    assert_eq!(body.len(), ROWS * 1000);
    server.database.wait_for_granted(key(PATH), 0).await;
    assert_eq!(server.written().await, 1);
}
