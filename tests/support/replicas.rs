//! Two replicas of the example server on one data directory, as behind a load balancer.

use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{CardClient, card};
use super::database::{TestDatabase, database};
use super::gate::ORIGIN;
use super::replica::Replica;

/// Two replicas, their client, and what they share.
pub struct Replicas {
    pub both: [Replica; 2],
    pub client: CardClient,
    pub data: TempDir,
    pub database: TestDatabase,
    /// The value of `--lock`.
    pub lock: String,
}

impl Replicas {
    /// Starts both with 20 ms between a handler's read and its write. `lock` is the value of `--lock`.
    pub async fn start(lock: &str) -> Self {
        let database = database().await;
        let data = tempfile::tempdir().expect("a temporary directory");
        let dir = data.path().to_str().expect("a plain path");
        let mut flags = vec![
            "--base-url",
            ORIGIN,
            "--data-dir",
            dir,
            "--write-delay",
            "20",
        ];
        flags.extend(["--lock", lock]);
        if lock == "postgres" {
            flags.extend(["--database-url", database.url()]);
        }
        Self {
            both: [Replica::start(&flags).await, Replica::start(&flags).await],
            client: CardClient::new(),
            data,
            database,
            lock: lock.to_owned(),
        }
    }

    /// Adds a card in the realm `luke/a` with the given attributes.
    pub async fn add(&self, href: &str, attributes: Value) -> (StatusCode, Value) {
        self.add_at(0, href, attributes).await
    }

    /// The same at one of the replicas.
    pub async fn add_at(
        &self,
        replica: usize,
        href: &str,
        attributes: Value,
    ) -> (StatusCode, Value) {
        let data = &card(attributes)["data"];
        let add = json!({"atomic:operations": [{"op": "add", "href": href, "data": data}]});
        let url = self.both[replica].url("/luke/a/_atomic");
        self.client.post(&url, &add).await
    }

    /// The attributes of a card of the realm `luke/a`, as the second replica reads them.
    pub async fn attributes(&self, name: &str) -> Value {
        let url = self.both[1].url(&format!("/luke/a/{name}"));
        let (status, document) = self.client.get(&url).await;
        assert_eq!(status, StatusCode::OK, "{document}");
        document["data"]["attributes"].clone()
    }
}
