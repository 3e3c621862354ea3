//! Whole realms of the example server: what there is, files and rows, and changes to make.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{CardClient, card};
use super::database::{TestDatabase, database};
use super::gate::ORIGIN;
use super::replica::Replica;
use super::wait::{PATIENCE, wait_for};

/// All files and directories of the data directory, and all rows, as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    pub files: BTreeMap<String, Option<String>>,
    pub rows: Vec<String>,
}

/// One data directory, with a database or without.
pub struct World {
    pub data: TempDir,
    pub database: Option<TestDatabase>,
    pub client: CardClient,
}

/// A change to a realm, and a card that it changes.
pub struct Change {
    pub method: Method,
    pub path: &'static str,
    pub body: Value,
    pub status: u16,
    pub card: &'static str,
}

/// The URL of a realm of `luke`'s.
pub fn url(realm: &str) -> String {
    format!("{ORIGIN}/luke/{realm}/")
}

/// One of each kind, after [`World::fill`].
pub fn changes() -> Vec<Change> {
    let publish =
        |target| json!({"sourceRealmURL": url("source"), "publishedRealmURL": url(target)});
    let change = |method, path, body, status, card| Change {
        method,
        path,
        body,
        status,
        card,
    };
    vec![
        change(
            Method::POST,
            "/_create-realm",
            json!({"owner": "leia", "endpoint": "new"}),
            201,
            "/leia/new/x",
        ),
        change(
            Method::POST,
            "/_publish-realm",
            publish("first"),
            201,
            "/luke/first/x",
        ),
        change(
            Method::POST,
            "/_publish-realm",
            publish("site"),
            200,
            "/luke/site/x",
        ),
        change(
            Method::POST,
            "/_unpublish-realm",
            json!({"publishedRealmURL": url("gone")}),
            204,
            "/luke/gone/x",
        ),
        change(
            Method::DELETE,
            "/_delete-realm",
            json!({"realmURL": url("old")}),
            204,
            "/luke/old/x",
        ),
    ]
}

impl World {
    /// An empty one.
    pub async fn new(with_database: bool) -> Self {
        Self {
            data: tempfile::tempdir().unwrap(),
            database: if with_database {
                Some(database().await)
            } else {
                None
            },
            client: CardClient::new(),
        }
    }

    /// Starts a replica with these flags and those that all share.
    pub async fn replica(&self, flags: &[&str]) -> Replica {
        let mut all = vec![
            "--base-url",
            ORIGIN,
            "--data-dir",
            self.data.path().to_str().unwrap(),
        ];
        if let Some(database) = &self.database {
            all.extend(["--database-url", database.url()]);
        }
        all.extend(flags);
        Replica::start(&all).await
    }

    /// Asks a replica for a change.
    pub async fn make(
        &self,
        replica: &Replica,
        change: &Change,
    ) -> Result<(StatusCode, Value), reqwest::Error> {
        let url = replica.url(change.path);
        self.client
            .send(change.method.clone(), &url, Some(&change.body))
            .await
    }

    /// The realms that the changes need: `source` has changed since `site` and `gone` were published from it.
    pub async fn fill(&self, replica: &Replica) {
        let post = async |path: &str, body: Value| {
            let (status, answer) = self.client.post(&replica.url(path), &body).await;
            assert_eq!(status, StatusCode::CREATED, "{path} {body}: {answer}");
        };
        let add = |href: &str, n: u64| json!({"atomic:operations": [{"op": "add", "href": href, "data": card(json!({"n": n}))["data"]}]});
        for realm in ["source", "old"] {
            post(
                "/_create-realm",
                json!({"owner": "luke", "endpoint": realm}),
            )
            .await;
            post(&format!("/luke/{realm}/_atomic"), add("x.json", 1)).await;
        }
        for target in ["site", "gone"] {
            let body = json!({"sourceRealmURL": url("source"), "publishedRealmURL": url(target)});
            post("/_publish-realm", body).await;
        }
        post("/luke/source/_atomic", add("deep/y.json", 2)).await;
        let (status, _) = self
            .client
            .patch(&replica.url("/luke/source/x"), &card(json!({"n": 2})))
            .await;
        assert_eq!(status, StatusCode::OK);
    }

    /// What there is now.
    pub async fn snapshot(&self) -> Snapshot {
        let mut files = BTreeMap::new();
        walk(self.data.path(), self.data.path(), &mut files);
        let mut rows = Vec::new();
        if let Some(database) = &self.database {
            let client = database.connect().await;
            for table in ["realm_registry", "realm_permissions", "realm_changes"] {
                let query = format!(
                    "SELECT (to_jsonb(t) - 'created_at' - 'id')::text FROM {table} t ORDER BY 1"
                );
                let found = client.query(&query, &[]).await.unwrap();
                rows.extend(
                    found
                        .iter()
                        .map(|row| format!("{table} {}", row.get::<_, &str>(0))),
                );
            }
        }
        Snapshot { files, rows }
    }

    /// Waits until there is just this.
    pub async fn wait_for(&self, what: &str, expected: &Snapshot) {
        wait_for(what, PATIENCE, async || {
            let now = self.snapshot().await;
            if now == *expected {
                Ok(())
            } else {
                Err(format!("{now:#?} and not {expected:#?}"))
            }
        })
        .await;
    }
}

/// What is removed meanwhile is not there.
fn walk(directory: &Path, root: &Path, files: &mut BTreeMap<String, Option<String>>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        if path.is_dir() {
            walk(&path, root, files);
            files.insert(name, None);
        } else if let Ok(text) = fs::read_to_string(path) {
            files.insert(name, Some(text));
        }
    }
}
