//! A replica that is frozen while it holds a realm: another one gets the realm within a lease, the
//! frozen one is told when it goes on, and what it had begun does no harm any more. A session keeps
//! these promises as a transaction does.

// Looks at the threads of a replica, in `/proc`.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::client::{CardClient, card};
use crate::support::database::{TestDatabase, database, has_what_is_needed};
use crate::support::gate::{ORIGIN, key};
use crate::support::replica::Replica;
use crate::support::wait::wait_until;

const LEASE: Duration = Duration::from_millis(1500);

/// What the next writer may take after the lease on a busy machine.
const SLACK: Duration = Duration::from_millis(700);

/// Two replicas of the example server on one directory and one database.
struct Scene {
    /// It takes two leases between reading a card and writing it, on a thread that nothing stops.
    slow: Replica,
    other: Replica,
    has_sessions: bool,
    client: CardClient,
    _data: TempDir,
    database: TestDatabase,
}

impl Scene {
    async fn start(flags: &[&str]) -> Self {
        let database = database().await;
        let data = tempfile::tempdir().unwrap();
        let lease = LEASE.as_secs_f64().to_string();
        let slow = (LEASE * 2).as_millis().to_string();
        let common = [
            "--base-url",
            ORIGIN,
            "--data-dir",
            data.path().to_str().unwrap(),
            "--database-url",
            database.url(),
            "--lease",
            &lease,
        ];
        let replica = async |delay: &str| {
            let flags = [&common[..], flags, &["--write-delay", delay]].concat();
            Replica::start(&flags).await
        };
        let scene = Self {
            slow: replica(&slow).await,
            other: replica("0").await,
            has_sessions: flags.contains(&"--sessions"),
            client: CardClient::new(),
            _data: data,
            database,
        };
        let add =
            json!({"atomic:operations": [{"op": "add", "href": "x", "data": {"type": "card"}}]});
        let url = scene.other.url("/luke/a/_atomic");
        let (status, document) = scene.client.post(&url, &add).await;
        assert_eq!(status, StatusCode::CREATED, "{document}");
        scene
    }

    /// A PATCH at the slow replica that has read the card, and has yet to write it.
    async fn write_begun(&self) -> JoinHandle<(StatusCode, Value)> {
        let client = self.client.clone();
        let url = self.slow.url("/luke/a/x");
        let write = tokio::spawn(async move { client.patch(&url, &value("first")).await });
        wait_until(
            "the write to be between its read and its write",
            async || self.slow.is_writing(),
        )
        .await;
        write
    }

    /// Whether the holder has no transaction open.
    async fn is_held_by_session(&self) -> bool {
        let pid = self.database.holder_pid(key("/luke/a/x")).await;
        let client = self.database.connect().await;
        let state = client
            .query_one(
                "SELECT xact_start IS NULL FROM pg_stat_activity WHERE pid = $1",
                &[&pid.expect("a holder")],
            )
            .await;
        state.unwrap().get(0)
    }

    /// Writes at the other replica.
    async fn write_second(&self) {
        let url = self.other.url("/luke/a/x");
        let (status, document) = self.client.patch(&url, &value("second")).await;
        assert_eq!(status, StatusCode::OK, "{document}");
    }

    /// Freezes the slow replica within a write, lets the other one write, and gives the card's value when the slow one
    /// has gone on and ended.
    async fn value_after_a_frozen_write(mut self) -> Value {
        let first = self.write_begun().await;
        assert_eq!(self.is_held_by_session().await, self.has_sessions);
        let frozen = Instant::now();
        self.slow.pause().await;
        self.write_second().await;
        let waited = frozen.elapsed();
        assert!(waited < LEASE + SLACK, "{waited:?}");

        self.slow.resume();
        let (status, document) = first.await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{document}");
        assert_eq!(document["errors"][0]["code"], "lock-lost", "{document}");
        // It ends only after the file work that it has begun.
        assert!(self.slow.terminate().await.success());
        self.value().await
    }

    async fn value(&self) -> Value {
        let url = self.other.url("/luke/a/x");
        let (status, document) = self.client.get(&url).await;
        assert_eq!(status, StatusCode::OK, "{document}");
        document["data"]["attributes"]["value"].clone()
    }
}

fn value(value: &str) -> Value {
    card(json!({ "value": value }))
}

#[tokio::test]
async fn the_next_writer_comes_within_a_lease_and_the_late_write_is_refused() {
    let scene = Scene::start(&["--fencing"]).await;
    assert_eq!(scene.value_after_a_frozen_write().await, "second");
}

#[tokio::test]
async fn without_fencing_the_late_write_is_not_made() {
    let scene = Scene::start(&[]).await;
    assert_eq!(scene.value_after_a_frozen_write().await, "second");
}

#[tokio::test]
async fn the_next_writer_comes_within_a_lease_of_a_frozen_session() {
    let flags = ["--fencing", "--sessions", "1"];
    if !has_what_is_needed(&flags).await {
        return;
    }
    let scene = Scene::start(&flags).await;
    assert_eq!(scene.value_after_a_frozen_write().await, "second");
}

#[tokio::test]
async fn a_replica_that_is_frozen_for_less_than_its_lease_goes_on() {
    for flags in [&["--fencing"][..], &["--fencing", "--sessions", "1"]] {
        if !has_what_is_needed(flags).await {
            continue;
        }
        let scene = Scene::start(flags).await;
        let write = scene.write_begun().await;
        scene.slow.pause().await;
        scene.slow.resume();
        let (status, document) = write.await.unwrap();
        assert_eq!(status, StatusCode::OK, "{document}");
        assert_eq!(scene.value().await, "first");
    }
}
