//! The example's page of locks, as people and programs use it: in a real browser, with and without its scripts, and by HTTP
//! alone.

mod browser;
mod live;
mod looks;
mod race;
mod routes;
mod untrusted;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::client::{CardClient, card};
use crate::support::database::TestDatabase;
use crate::support::gate::ORIGIN;
use crate::support::replica::Replica;

/// Adds the card `x` to a realm, which makes the realm.
async fn make_realm(replica: &Replica, realm: &str) {
    let add = json!({"atomic:operations": [{"op": "add", "href": "x", "data": {"type": "card"}}]});
    let url = replica.url(&format!("{realm}_atomic"));
    let (status, answer) = CardClient::new().post(&url, &add).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
}

/// Begins a change of the card `x` of a realm.
fn patch(replica: &Replica, realm: &str) -> JoinHandle<(StatusCode, Value)> {
    let url = replica.url(&format!("{realm}x"));
    tokio::spawn(async move { CardClient::new().patch(&url, &card(json!({"n": 1}))).await })
}

/// The snapshot of a replica's locks.
async fn snapshot(replica: &Replica) -> Value {
    let request = CardClient::new().request(http::Method::GET, &replica.url("/_locks"));
    let answer = request.header("accept", "application/json").send().await;
    answer.unwrap().json().await.unwrap()
}

/// A replica whose writes wait for as long as a test may need to look at them.
async fn replica_on(database: &TestDatabase) -> Replica {
    let url = database.url();
    let flags = [
        "--base-url",
        ORIGIN,
        "--database-url",
        url,
        "--acquire-timeout",
        "60",
    ];
    Replica::start(&flags).await
}
