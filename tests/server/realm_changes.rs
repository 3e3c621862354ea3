//! A realm is created, published, unpublished or deleted as a whole, files and rows, whatever goes wrong on the way.

use serde_json::json;

use crate::support::database::has_what_is_needed;
use crate::support::gate::{ORIGIN, key};
use crate::support::realms::{Snapshot, World, changes, url};
use crate::support::wait::{PATIENCE, wait_for};

#[tokio::test]
async fn each_change_is_made_to_files_and_rows() {
    for flags in [
        &[][..],
        &["--fencing"],
        &["--sessions", "4"],
        &["--cache-cards", "10"],
        &["--lock", "in-process"],
        &["--lock", "in-process", "--fencing"],
        &["--lock", "off"],
    ] {
        if !has_what_is_needed(flags).await {
            continue;
        }
        let with_database = !flags.contains(&"--lock");
        let world = World::new(with_database).await;
        let replica = world.replica(flags).await;
        world.fill(&replica).await;
        for change in changes() {
            let (status, answer) = world.make(&replica, &change).await.unwrap();
            assert_eq!(status, change.status, "{}: {answer}", change.path);
        }
        let Snapshot { files, rows } = world.snapshot().await;
        let names = files.keys().map(String::as_str);
        // Fences outlive what they protect.
        let names: Vec<_> = names.filter(|name| !name.contains(".fence")).collect();
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

#[tokio::test]
async fn a_change_that_loses_its_lock_is_not_made() {
    let world = World::new(true).await;
    let replica = world.replica(&["--write-delay", "400"]).await;
    world.fill(&replica).await;
    let before = world.snapshot().await;
    let database = world.database.as_ref().unwrap();
    for change in changes() {
        let realm = change.card.strip_suffix("/x").unwrap();
        let lose = async {
            database.wait_for_granted(key(realm), 1).await;
            let pid = database.holder_pid(key(realm)).await.unwrap();
            database.terminate(pid).await;
        };
        let (made, ()) = tokio::join!(world.make(&replica, &change), lose);
        let (status, answer) = made.unwrap();
        assert_eq!(
            (status.as_u16(), &answer["errors"][0]["code"]),
            (503, &json!("lock-lost"))
        );
        world.wait_for(change.path, &before).await;
    }
}
