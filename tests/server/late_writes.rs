//! A writer that has lost its lock, or has run out of time, between its read and its write: it
//! changes nothing any more, with fencing or without, and no acknowledged write is lost.

// Looks at the threads of a replica, in `/proc`.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tokio::task::JoinHandle;

use crate::support::client::{CardClient, card};
use crate::support::database::{TestDatabase, database, has_what_is_needed};
use crate::support::gate::{ORIGIN, key};
use crate::support::realms::{World, changes};
use crate::support::replica::Replica;
use crate::support::wait::wait_until;

const CARD: &str = "/luke/a/x";

/// How long the slow replica takes between a read and a write.
const DELAY: &str = "1000";

/// Two replicas of the example server on one directory and one database.
struct Scene {
    slow: Replica,
    other: Replica,
    client: CardClient,
    data: TempDir,
    database: TestDatabase,
}

/// A write of the card, its path and its document.
type Request = (Method, &'static str, Value);

/// Every kind of write of a card, and what it makes of a card that has the value `before`.
fn writes() -> [Request; 4] {
    let changed = card(json!({"value": "late"}));
    let data = &changed["data"];
    let update = json!({"atomic:operations": [{"op": "update", "href": "x", "data": data}]});
    [
        (Method::PATCH, CARD, changed.clone()),
        (Method::DELETE, CARD, Value::Null),
        (Method::POST, "/luke/a/_atomic", update),
        (Method::POST, "/luke/a/", changed),
    ]
}

/// A replica's file and the flag that names it.
fn config(text: &str) -> (NamedTempFile, String) {
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let flag = format!("--config={}", file.path().display());
    (file, flag)
}

impl Scene {
    /// `limits` are those of the slow replica's file.
    async fn start(flags: &[&str], limits: &str) -> Self {
        let database = database().await;
        let data = tempfile::tempdir().unwrap();
        let (_file, config) = config(limits);
        let common = [
            "--base-url",
            ORIGIN,
            "--data-dir",
            data.path().to_str().unwrap(),
            "--database-url",
            database.url(),
        ];
        let slow = [&common, flags, &["--write-delay", DELAY, &config]].concat();
        Self {
            slow: Replica::start(&slow).await,
            other: Replica::start(&[&common, flags].concat()).await,
            client: CardClient::new(),
            database,
            data,
        }
    }

    /// Makes the card as it is before a write.
    async fn fill(&self) {
        let data = &card(json!({"value": "before"}))["data"];
        let add = json!({"atomic:operations": [{"op": "add", "href": "x", "data": data}]});
        let url = self.other.url("/luke/a/_atomic");
        let (status, document) = self.client.post(&url, &add).await;
        assert_eq!(status, StatusCode::CREATED, "{document}");
    }

    async fn clear(&self) {
        let (status, document) = self.client.delete(&self.other.url(CARD)).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{document}");
    }

    /// A write at the slow replica that has read the card, and has yet to write it.
    async fn begun(&self, request: Request) -> JoinHandle<(StatusCode, Value)> {
        let client = self.client.clone();
        let (method, path, document) = request;
        let url = self.slow.url(path);
        let body = (!document.is_null()).then_some(document);
        let send = async move { client.send(method, &url, body.as_ref()).await };
        let write = tokio::spawn(async move { send.await.expect("an answer") });
        self.wait_for_file_work(true).await;
        write
    }

    /// Waits until a write of the slow replica is between its read and its write, or none is.
    async fn wait_for_file_work(&self, goes_on: bool) {
        let what = format!("file work: {goes_on}");
        wait_until(&what, async || self.slow.is_writing() == goes_on).await;
    }

    async fn end_holder(&self) {
        let pid = self.database.holder_pid(key(CARD)).await.expect("a holder");
        self.database.terminate(pid).await;
    }

    /// Writes at the other replica, which acknowledges it.
    async fn write_second(&self) {
        let second = card(json!({"value": "second"}));
        let (status, document) = self.client.patch(&self.other.url(CARD), &second).await;
        assert_eq!(status, StatusCode::OK, "{document}");
    }

    /// Fails unless the card of the second write is all that there is.
    async fn assert_second(&self, write: &Request) {
        let realm = fs::read_dir(self.data.path().join("luke/a")).unwrap();
        let names = realm.map(|file| file.unwrap().file_name().into_string().unwrap());
        let cards: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        assert_eq!(cards, ["x.json"], "{write:?}");
        assert_eq!(self.value().await, "second", "{write:?}");
    }

    async fn value(&self) -> Value {
        let (status, document) = self.client.get(&self.other.url(CARD)).await;
        assert_eq!(status, StatusCode::OK, "{document}");
        document["data"]["attributes"]["value"].clone()
    }
}

fn assert_code(answer: &(StatusCode, Value), status: u16, code: &str) {
    let (answered, document) = answer;
    assert_eq!(answered.as_u16(), status, "{document}");
    assert_eq!(document["errors"][0]["code"], code, "{document}");
}

#[tokio::test]
async fn a_write_that_has_lost_its_lock_does_not_land_on_a_later_one() {
    for flags in [&[][..], &["--fencing"], &["--sessions", "1"]] {
        if !has_what_is_needed(flags).await {
            continue;
        }
        let scene = Scene::start(flags, "").await;
        for write in writes() {
            scene.fill().await;
            let late = scene.begun(write.clone()).await;
            scene.end_holder().await;
            scene.write_second().await;
            assert_code(&late.await.unwrap(), 503, "lock-lost");
            scene.wait_for_file_work(false).await;
            scene.assert_second(&write).await;
            scene.clear().await;
        }
    }
}

#[tokio::test]
async fn a_write_that_has_run_out_of_time_keeps_the_next_one_out_and_does_not_land() {
    for flags in [&[][..], &["--fencing"], &["--sessions", "1"]] {
        if !has_what_is_needed(flags).await {
            continue;
        }
        let scene = Scene::start(flags, "[limits]\nmax_hold = '300ms'\n").await;
        for write in writes() {
            scene.fill().await;
            let late = scene.begun(write.clone()).await;
            assert_code(&late.await.unwrap(), 504, "hold-expired");
            assert!(
                scene.slow.is_writing(),
                "it was answered after its file work"
            );
            assert_eq!(scene.database.advisory_locks(key(CARD)).await.0, 1);
            scene.write_second().await;
            assert!(!scene.slow.is_writing(), "the next one was inside before");
            scene.assert_second(&write).await;
            scene.clear().await;
        }
    }
}

#[tokio::test]
async fn a_change_to_a_realm_that_has_lost_its_lock_does_not_undo_a_later_one() {
    for flags in [&[][..], &["--fencing"], &["--sessions", "1"]] {
        if !has_what_is_needed(flags).await {
            continue;
        }
        let world = World::new(true).await;
        let slow = world
            .replica(&[flags, &["--write-delay", DELAY]].concat())
            .await;
        let other = world.replica(flags).await;
        world.fill(&other).await;
        let database = world.database.as_ref().unwrap();
        for change in changes() {
            let realm = change.card.strip_suffix("/x").unwrap();
            let late = async {
                let late = world.make(&slow, &change).await.unwrap();
                wait_until("the end of file work", async || !slow.is_writing()).await;
                late
            };
            let meanwhile = async {
                database.wait_for_granted(key(realm), 1).await;
                let sleeping = async || slow.is_writing();
                wait_until("file work", sleeping).await;
                let pid = database.holder_pid(key(realm)).await.expect("a holder");
                database.terminate(pid).await;
                let made = world.make(&other, &change).await.unwrap();
                assert!(made.0.is_success(), "{}", made.1);
                world.snapshot().await
            };
            let (late, after) = tokio::join!(late, meanwhile);
            assert_code(&late, 503, "lock-lost");
            world.wait_for(change.path, &after).await;
        }
    }
}

#[tokio::test]
async fn a_change_to_a_realm_that_has_run_out_of_time_keeps_the_next_one_out() {
    let world = World::new(true).await;
    let (_file, limits) = config("[limits]\nmax_hold = '300ms'\n");
    let slow = world.replica(&["--write-delay", DELAY, &limits]).await;
    let other = world.replica(&[]).await;
    world.fill(&other).await;
    for change in changes() {
        let late = world.make(&slow, &change).await.unwrap();
        assert_code(&late, 504, "hold-expired");
        assert!(slow.is_writing(), "it was answered after its file work");
        let made = world.make(&other, &change).await.unwrap();
        assert_eq!(made.0.as_u16(), change.status, "{}", made.1);
        assert!(!slow.is_writing(), "the next one was inside before");
        let after = world.snapshot().await;
        world.wait_for(change.path, &after).await;
    }
}
