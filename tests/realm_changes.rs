//! A realm is created, published, unpublished or deleted as a whole, files and rows, whatever goes wrong on the way.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use support::client::{CardClient, card};
use support::database::{TestDatabase, database};
use support::gate::ORIGIN;
use support::replica::Replica;
use support::wait::{PATIENCE, wait_for};
use tempfile::TempDir;

/// All files and directories of the data directory, and all rows, as text.
#[derive(Debug, Clone, PartialEq)]
struct Snapshot {
    files: BTreeMap<String, Option<String>>,
    rows: Vec<String>,
}

/// One data directory, with a database or without.
struct World {
    data: TempDir,
    database: Option<TestDatabase>,
    client: CardClient,
}

/// A change to a realm, and a card that it changes.
struct Change {
    method: Method,
    path: &'static str,
    body: Value,
    status: u16,
    card: &'static str,
}

fn url(realm: &str) -> String {
    format!("{ORIGIN}/luke/{realm}/")
}

fn changes() -> Vec<Change> {
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
    async fn new(with_database: bool) -> Self {
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

    async fn replica(&self, flags: &[&str]) -> Replica {
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

    async fn make(
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
    async fn fill(&self, replica: &Replica) {
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

    async fn snapshot(&self) -> Snapshot {
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

    async fn wait_for(&self, what: &str, expected: &Snapshot) {
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

#[tokio::test]
async fn each_change_is_made_to_files_and_rows() {
    for with_database in [true, false] {
        let world = World::new(with_database).await;
        let replica = world.replica(&[]).await;
        world.fill(&replica).await;
        for change in changes() {
            let (status, answer) = world.make(&replica, &change).await.unwrap();
            assert_eq!(status, change.status, "{}: {answer}", change.path);
        }
        let Snapshot { files, rows } = world.snapshot().await;
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        let site = [
            "luke/site",
            "luke/site/.published",
            "luke/site/deep",
            "luke/site/deep/y.json",
            "luke/site/x.json",
        ];
        let first = site.map(|name| name.replace("site", "first"));
        let source = [0, 2, 3, 4].map(|at| site[at].replace("site", "source"));
        let expected: Vec<_> = ["leia", "leia/new", "luke"]
            .into_iter()
            .chain(first.iter().map(String::as_str))
            .chain(site)
            .chain(source.iter().map(String::as_str))
            .collect();
        assert_eq!(names, expected);
        for card in ["x", "deep/y"] {
            let card = |realm| files[&format!("luke/{realm}/{card}.json")].clone();
            assert_eq!(card("site"), card("source"));
            assert_eq!(card("first"), card("source"));
        }
        if with_database {
            let permission = |realm: &str, username: &str, write: bool| {
                format!(
                    r#"realm_permissions {{"read": true, "write": {write}, "username": "{username}", "realm_url": "{ORIGIN}/{realm}/"}}"#
                )
            };
            let row = |realm: &str, owner: &str, kind: &str, source: &str| {
                format!(
                    r#"realm_registry {{"url": "{ORIGIN}/{realm}/", "kind": "{kind}", "owner": "{owner}", "source_url": {source}}}"#
                )
            };
            let source = format!("\"{}\"", url("source"));
            let mut expected = [
                row("leia/new", "leia", "created", "null"),
                row("luke/source", "luke", "created", "null"),
                row("luke/site", "luke", "published", &source),
                row("luke/first", "luke", "published", &source),
                permission("leia/new", "leia", true),
                permission("luke/source", "luke", true),
                permission("luke/site", "luke", true),
                permission("luke/site", "*", false),
                permission("luke/first", "luke", true),
                permission("luke/first", "*", false),
            ];
            let mut rows = rows;
            rows.sort();
            expected.sort();
            assert_eq!(rows, expected);
        }
    }
}

#[tokio::test]
async fn an_error_at_any_step_leaves_files_and_rows_as_they_were() {
    for with_database in [true, false] {
        let world = World::new(with_database).await;
        world.fill(&world.replica(&[]).await).await;
        let before = world.snapshot().await;
        let with_rows: &[_] = if with_database { &["rows"] } else { &[] };
        let steps = ["prepared", "journal", "aside", "swapped", "commit"];
        for step in steps.iter().chain(with_rows) {
            let replica = world.replica(&["--fault", &format!("{step}:error")]).await;
            for change in changes() {
                let (status, answer) = world.make(&replica, &change).await.unwrap();
                let expected = if *step == "commit" && with_database {
                    (503, "commit-failed")
                } else {
                    (500, "realm-change-failed")
                };
                let code = answer["errors"][0]["code"].as_str().unwrap();
                assert_eq!((status.as_u16(), code), expected, "{} {step}", change.path);
                assert_eq!(world.snapshot().await, before, "{} {step}", change.path);
            }
        }
        // And nothing stands in the way of the next attempt.
        let replica = world.replica(&[]).await;
        for change in changes() {
            let (status, answer) = world.make(&replica, &change).await.unwrap();
            assert_eq!(status, change.status, "{}: {answer}", change.path);
        }
    }
}

/// What a crash at each step leaves, and that it is settled: by a request at another replica, and by a start.
async fn crash_at_each_step(with_database: bool, steps: &[(&str, bool)]) {
    let world = World::new(with_database).await;
    let survivor = world.replica(&[]).await;
    world.fill(&survivor).await;
    for at in 0..changes().len() {
        for &(step, stands) in steps {
            let change = changes().remove(at);
            let what = format!("{} {} {step}", change.path, change.card);
            let look = async || {
                let (status, card) = world.client.get(&survivor.url(change.card)).await;
                (status, card["data"]["attributes"].clone())
            };
            let before = (world.snapshot().await, look().await);
            let mut crashing = world.replica(&["--fault", &format!("{step}:crash")]).await;
            assert!(
                world.make(&crashing, &change).await.is_err(),
                "{what}: no answer"
            );
            crashing.kill();
            if with_database {
                // A change to the same card of another replica, or a look at it, comes first.
                let settled = look().await;
                if stands {
                    assert_ne!((&settled, change.status), (&before.1, 200), "{what}");
                } else {
                    assert_eq!(settled, before.1, "{what}");
                }
            }
            let restarted = world.replica(&[]).await;
            if !stands {
                world.wait_for(&what, &before.0).await;
                continue;
            }
            wait_for(&what, PATIENCE, async || {
                let left = world.snapshot().await;
                let hidden = |name: &&String| {
                    name.rsplit('/').next().unwrap().starts_with('.')
                        && !name.ends_with(".published")
                };
                match left.files.keys().find(hidden) {
                    Some(name) => Err(name.clone()),
                    None if left.rows.iter().any(|row| row.starts_with("realm_changes")) => {
                        Err("a change".into())
                    }
                    None => Ok(()),
                }
            })
            .await;
            // It was made: made again it is refused, or, where that is the way of a publish, makes no difference.
            let made = world.snapshot().await;
            assert_ne!(made, before.0, "{what}");
            let (status, answer) = world.make(&restarted, &change).await.unwrap();
            let expected = if change.path == "/_publish-realm" {
                [200, 200]
            } else {
                [404, 409]
            };
            assert!(expected.contains(&status.as_u16()), "{what}: {answer}");
            assert_eq!(world.snapshot().await, made, "{what}");
        }
    }
}

#[tokio::test]
async fn after_a_crash_the_rows_tell_what_the_files_shall_be() {
    let steps = [
        ("prepared", false),
        ("rows", false),
        ("journal", false),
        ("aside", false),
        ("swapped", false),
        ("settle", true),
    ];
    crash_at_each_step(true, &steps).await;
}

#[tokio::test]
async fn after_a_crash_without_a_database_what_was_not_done_is_undone() {
    let steps = [
        "prepared", "journal", "aside", "swapped", "commit", "settle",
    ]
    .map(|step| (step, false));
    crash_at_each_step(false, &steps).await;
}
