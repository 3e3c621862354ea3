use std::fs;
use std::path::Path;
use std::sync::Barrier;

use serde_json::json;
use tempfile::TempDir;
use tower_realm_lock::{FencingToken, LockError, RealmLocks, RealmUrl};

use super::*;
use crate::path::RealmPath;

fn store(directory: &TempDir, fencing: bool) -> Store {
    Store {
        root: directory.path().to_owned(),
        write_delay: Duration::ZERO,
        fencing,
        fault: Fault::default(),
    }
}

fn path(path: &str) -> CardPath {
    let (realm, _) = RealmPath::split("/luke/r/").unwrap();
    realm.card(path).unwrap()
}

fn card(name: &str, value: u64) -> Card {
    let resource = json!({ "type": "card", "attributes": { name: value } });
    Card::from_resource(&resource, "", Expect::Whole).unwrap()
}

/// The card as it is read, without its version.
fn read(store: &Store, name: &str) -> Option<Card> {
    store.read(&path(name)).unwrap().map(|it| it.card)
}

fn add(name: &str, value: u64) -> Operation {
    let change = Change::Add(card("a", value));
    Operation {
        card: path(name),
        change,
        only_if: Precondition::default(),
    }
}

fn update(name: &str, attribute: &str, value: u64) -> Operation {
    let change = Change::Update(card(attribute, value));
    Operation {
        card: path(name),
        change,
        only_if: Precondition::default(),
    }
}

fn remove(name: &str) -> Operation {
    let change = Change::Remove;
    Operation {
        card: path(name),
        change,
        only_if: Precondition::default(),
    }
}

fn token(value: u64) -> FencingToken {
    value.to_string().parse().unwrap()
}

/// All files and directories below the data directory, relative to the realm's.
fn tree(directory: &TempDir) -> Vec<String> {
    fn walk(directory: &std::path::Path, root: &std::path::Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap().path();
            found.push(entry.strip_prefix(root).unwrap().display().to_string());
            if entry.is_dir() {
                walk(&entry, root, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(directory.path(), directory.path(), &mut found);
    found.sort();
    found
}

#[test]
fn operations_apply_to_what_the_ones_before_them_left() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    let results = store
        .write(
            &[
                add("x", 1),
                update("x", "b", 2),
                add("y", 1),
                remove("y"),
                add("z/y", 3),
            ],
            &Permit::default(),
        )
        .unwrap();
    assert_eq!(results[0].as_ref().unwrap().card, card("a", 1));
    assert_eq!(results[3], None);
    assert_eq!(store.read(&path("x")).unwrap(), results[1]);
    let mut merged = card("a", 1);
    merged.merge(&card("b", 2));
    assert_eq!(read(&store, "x"), Some(merged));
    assert_eq!(
        tree(&directory),
        [
            "luke",
            "luke/r",
            "luke/r/x.json",
            "luke/r/z",
            "luke/r/z/y.json"
        ]
    );
}

#[test]
fn an_operation_that_cannot_be_applied_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    let exists = store
        .write(&[add("x", 1), add("x", 2)], &Permit::default())
        .unwrap_err();
    assert!(matches!(exists, StoreError::Exists { operation: 1, .. }));
    let missing = store
        .write(&[add("x", 1), update("y", "a", 2)], &Permit::default())
        .unwrap_err();
    assert!(matches!(missing, StoreError::Missing { operation: 1, .. }));
    let missing = store.write(&[remove("x")], &Permit::default()).unwrap_err();
    assert!(matches!(missing, StoreError::Missing { operation: 0, .. }));
    assert_eq!(tree(&directory), [""; 0]);
}

#[test]
fn a_write_that_fails_half_way_is_undone() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    store
        .write(&[add("a", 1), add("b", 1)], &Permit::default())
        .unwrap();
    // A rename onto a directory fails, after `a`, `b` and `c/d` were replaced, removed and added.
    fs::create_dir(directory.path().join("luke/r/e.json")).unwrap();
    let before = tree(&directory);
    let error = store
        .write(
            &[update("a", "a", 2), remove("b"), add("c/d", 1), add("e", 1)],
            &Permit::default(),
        )
        .unwrap_err();
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    assert_eq!(read(&store, "a"), Some(card("a", 1)));
    assert_eq!(read(&store, "b"), Some(card("a", 1)));
    assert_eq!(tree(&directory), before);
}

#[test]
fn names_that_the_file_system_has_no_place_for_are_the_clients_fault() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    store.write(&[add("x", 1)], &Permit::default()).unwrap();
    fs::write(directory.path().join("luke/r/file"), "not a directory").unwrap();
    fs::create_dir(directory.path().join("luke/r/d.json")).unwrap();
    let deep = vec!["d".repeat(200); 30].join("/");

    for name in ["file/y", "file/y/z", "d", &deep] {
        let error = store
            .write(&[add(name, 1)], &Permit::default())
            .unwrap_err();
        assert!(
            matches!(error, StoreError::Unusable { .. }),
            "{name}: {error}"
        );
    }
    for name in ["file/y", "file/y/z", "d", "nowhere/y"] {
        assert_eq!(read(&store, name), None);
        let error = store
            .write(&[remove(name)], &Permit::default())
            .unwrap_err();
        assert!(
            matches!(error, StoreError::Missing { .. }),
            "{name}: {error}"
        );
    }
    assert!(matches!(
        store.read(&path(&deep)),
        Err(StoreError::Unusable { .. })
    ));
}

#[test]
fn a_damaged_card_is_neither_served_nor_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    store.write(&[add("x", 1)], &Permit::default()).unwrap();
    let file = path("x").file(&store.root);
    fs::write(&file, "{").unwrap();
    assert!(matches!(
        store.read(&path("x")),
        Err(StoreError::Damaged { .. })
    ));
    let error = store
        .write(&[update("x", "a", 2)], &Permit::default())
        .unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }));
    assert_eq!(fs::read_to_string(file).unwrap(), "{");
}

/// Runs both writes at once: each reads before the other writes.
fn race(store: &Store, left: Operation, right: Operation) {
    let both = Barrier::new(2);
    thread::scope(|scope| {
        for operation in [left, right] {
            let both = &both;
            scope.spawn(move || {
                both.wait();
                store.write(&[operation], &Permit::default()).unwrap();
            });
        }
    });
}

#[test]
fn without_a_lock_a_race_loses_one_write() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store {
        write_delay: Duration::from_millis(500),
        ..store(&directory, false)
    };
    race(&store, add("x", 1), add("x", 2));
    let winner = read(&store, "x").unwrap();
    assert!(winner == card("a", 1) || winner == card("a", 2));

    race(&store, update("x", "left", 1), update("x", "right", 1));
    let merged = |attribute| {
        let mut card = winner.clone();
        card.merge(&super::tests::card(attribute, 1));
        Some(card)
    };
    let read = read(&store, "x");
    assert!(read == merged("left") || read == merged("right"));
}

#[test]
fn an_older_fencing_token_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, true);
    store
        .write(&[add("x", 1)], &Some(token(10)).into())
        .unwrap();
    let before = tree(&directory);

    for operations in [
        vec![update("x", "a", 2)],
        vec![remove("x")],
        vec![add("a/b", 1), update("x", "a", 2)],
    ] {
        let error = store
            .write(&operations, &Some(token(9)).into())
            .unwrap_err();
        assert!(
            matches!(error, StoreError::StaleFencingToken { .. }),
            "{error}"
        );
        assert_eq!(read(&store, "x"), Some(card("a", 1)));
        assert_eq!(tree(&directory), before);
    }
    store
        .write(&[update("x", "a", 2)], &Some(token(10)).into())
        .unwrap();
    store
        .write(&[update("x", "a", 3)], &Some(token(11)).into())
        .unwrap();
}

#[test]
fn the_fence_outlives_the_card() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, true);
    store
        .write(&[add("x", 1)], &Some(token(10)).into())
        .unwrap();
    store
        .write(&[remove("x")], &Some(token(11)).into())
        .unwrap();
    let error = store
        .write(&[add("x", 1)], &Some(token(10)).into())
        .unwrap_err();
    assert!(
        matches!(error, StoreError::StaleFencingToken { .. }),
        "{error}"
    );
    assert_eq!(read(&store, "x"), None);
}

#[test]
fn fencing_refuses_a_write_without_a_token() {
    let directory = tempfile::tempdir().unwrap();
    let error = store(&directory, true)
        .write(&[add("x", 1)], &Permit::default())
        .unwrap_err();
    assert!(matches!(error, StoreError::NoFencingToken));
    assert_eq!(tree(&directory), [""; 0]);
}

#[test]
fn a_write_whose_precondition_fails_writes_nothing() {
    use http::header::{IF_MATCH, IF_NONE_MATCH};
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    let only_if = |name, value: &str| {
        Precondition::of(&http::HeaderMap::from_iter([(
            name,
            value.parse().unwrap(),
        )]))
        .unwrap()
    };
    let first = store
        .write(&[add("x", 1)], &Permit::default())
        .unwrap()
        .remove(0)
        .unwrap();
    let old = only_if(IF_MATCH, &first.etag.to_string());
    let changed = Operation {
        only_if: old.clone(),
        ..update("x", "a", 2)
    };
    store.write(&[changed], &Permit::default()).unwrap();
    let before = (tree(&directory), read(&store, "x"));
    for (operation, only_if) in [
        (update("x", "a", 3), old.clone()),
        (remove("x"), old),
        (remove("x"), only_if(IF_NONE_MATCH, "*")),
        (update("missing", "a", 3), only_if(IF_MATCH, "*")),
        (remove("missing"), only_if(IF_MATCH, "*")),
    ] {
        let error = store
            .write(
                &[Operation {
                    only_if,
                    ..operation
                }],
                &Permit::default(),
            )
            .unwrap_err();
        assert!(matches!(error, StoreError::Precondition { .. }), "{error}");
        assert_eq!((tree(&directory), read(&store, "x")), before);
    }
    // A file that was written by hand has a version too: that of its bytes.
    fs::write(
        path("x").file(&store.root),
        "{ \"data\": {\"type\": \"card\"} }",
    )
    .unwrap();
    let by_hand = store.read(&path("x")).unwrap().unwrap();
    let only_if = only_if(IF_MATCH, &by_hand.etag.to_string());
    store
        .write(
            &[Operation {
                only_if,
                ..remove("x")
            }],
            &Permit::default(),
        )
        .unwrap();
}

/// A permit of a hold that has ended.
async fn ended() -> Permit {
    let locks = RealmLocks::in_process();
    let realm: RealmUrl = "http://h/luke/r/".parse().unwrap();
    let work = |held| async move { Ok::<_, LockError>(Permit::of(Some(&held))) };
    let permit = locks.with_write_lock(&realm, work).await.unwrap();
    assert!(permit.ensure().is_err());
    permit
}

#[tokio::test]
async fn a_writer_that_has_lost_its_lock_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    let first = [add("x", 1), add("y", 1)];
    store.write(&first, &Permit::default()).unwrap();
    let before = files(directory.path());
    let late = [update("x", "a", 2), remove("y"), add("deep/z", 1)];
    let error = store.write(&late, &ended().await).unwrap_err();
    assert!(matches!(error, StoreError::Lock(_)), "{error}");
    assert_eq!(files(directory.path()), before);
}

#[tokio::test]
async fn a_change_of_a_realm_that_has_lost_its_lock_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    store.write(&[add("x", 1)], &Permit::default()).unwrap();
    let (realm, _) = RealmPath::split("/luke/r/").unwrap();
    let late = ended().await;
    let before = files(directory.path());
    let prepared = store.prepare(&realm, &RealmChange::Delete).unwrap();
    let error = store.swap(&prepared, false, &late).unwrap_err();
    assert!(matches!(error, StoreError::Lock(_)), "{error}");
    assert_eq!(files(directory.path()), before);

    // A change that was swapped under its lock is not finished without a lock.
    store.swap(&prepared, false, &Permit::default()).unwrap();
    let swapped = files(directory.path());
    for stands in [true, false] {
        let error = store.finish(&realm, stands, &late).unwrap_err();
        assert!(matches!(error, StoreError::Lock(_)), "{error}");
        assert_eq!(files(directory.path()), swapped);
    }
}

#[test]
fn the_journal_of_another_change_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory, false);
    store.write(&[add("x", 1)], &Permit::default()).unwrap();
    let (realm, _) = RealmPath::split("/luke/r/").unwrap();
    let [one, other] =
        [RealmChange::Delete, RealmChange::Delete].map(|it| store.prepare(&realm, &it).unwrap());
    store.swap(&one, true, &Permit::default()).unwrap();
    let before = files(directory.path());
    let error = store.swap(&other, true, &Permit::default()).unwrap_err();
    assert!(matches!(error, StoreError::Unsettled(_)), "{error}");
    assert_eq!(files(directory.path()), before);
}

/// All files and directories, by their paths, and what is in them.
fn files(directory: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        all.push((path.clone(), fs::read(&path).ok()));
        if path.is_dir() {
            all.extend(files(&path));
        }
    }
    all.sort();
    all
}
