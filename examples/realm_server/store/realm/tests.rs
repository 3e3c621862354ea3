use std::time::Duration;

use serde_json::json;
use tower_realm_lock::FencingToken;

use super::*;
use crate::card::{Card, Expect};
use crate::precondition::Precondition;
use crate::store::{Change, Fault, Operation};

fn store(root: &Path, fencing: bool) -> Store {
    Store {
        root: root.to_owned(),
        write_delay: Duration::ZERO,
        fencing,
        fault: Fault::default(),
    }
}

fn realm(name: &str) -> RealmPath {
    RealmPath::named("luke", name).unwrap()
}

fn token(value: u64) -> Option<FencingToken> {
    value.to_string().parse().ok()
}

/// Makes a whole change, as a server without rows does.
fn make(store: &Store, realm: &RealmPath, change: &RealmChange, at: u64) -> Result<(), StoreError> {
    let prepared = store.prepare(realm, change)?;
    let permit = token(at).into();
    store.swap(&prepared, false, &permit)?;
    store.finish(realm, true, &permit)
}

fn add(store: &Store, realm: &RealmPath, name: &str, at: u64) -> Result<(), StoreError> {
    let card = Card::from_resource(&json!({"type": "card"}), "", Expect::Whole).unwrap();
    let operation = Operation {
        card: realm.card(name).unwrap(),
        change: Change::Add(card),
        only_if: Precondition::default(),
    };
    store.write(&[operation], &token(at).into()).map(|_| ())
}

#[test]
fn what_a_change_leaves_is_told_from_all_else() {
    let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    for (name, realm) in [
        (".r.pending", Some("r")),
        (&format!(".r.{id}.new"), Some("r")),
        (&format!(".a.b.{id}.old"), Some("a.b")),
        (&format!(".r.{id}.{id}.old"), Some(&*format!("r.{id}"))),
        ("r", None),
        (".r.fence", None),
        (".r.new", None),
        (".r.b.old", None),
        (&format!(".r.{id}.tmp"), None),
        (&format!("r.{id}.new"), None),
    ] {
        assert_eq!(realm_of_leftover(name), realm, "{name}");
    }
}

#[test]
fn one_realm_is_settled_and_its_neighbours_are_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path(), false);
    let names = ["r", "r.b", "r.pending"];
    for name in names {
        store.prepare(&realm(name), &RealmChange::Create).unwrap();
    }
    assert_eq!(store.unsettled().unwrap(), names.map(realm));
    store
        .finish(&realm("r"), false, &Permit::default())
        .unwrap();
    assert_eq!(store.unsettled().unwrap(), ["r.b", "r.pending"].map(realm));
    fs::write(directory.path().join("luke/.r.pending"), "{").unwrap();
    let error = store
        .finish(&realm("r"), false, &Permit::default())
        .unwrap_err();
    assert!(
        matches!(error, StoreError::DamagedJournal { .. }),
        "{error}"
    );
}

#[test]
fn while_a_change_is_half_done_no_card_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path(), false);
    make(&store, &realm("r"), &RealmChange::Create, 1).unwrap();
    let prepared = store.prepare(&realm("r"), &RealmChange::Delete).unwrap();
    store.swap(&prepared, false, &Permit::default()).unwrap();
    let error = add(&store, &realm("r"), "x", 1).unwrap_err();
    assert!(matches!(error, StoreError::Unsettled(_)), "{error}");
    store
        .finish(&realm("r"), false, &Permit::default())
        .unwrap();
    add(&store, &realm("r"), "x", 1).unwrap();
}

#[test]
fn a_write_or_change_of_an_older_hold_is_refused_for_the_whole_realm() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path(), true);
    let (source, site) = (realm("source"), realm("site"));
    let publish = RealmChange::Publish(source.clone());
    add(&store, &source, "x", 5).unwrap();
    make(&store, &site, &publish, 7).unwrap();
    let stale = |result: Result<(), StoreError>| {
        let error = result.unwrap_err();
        assert!(
            matches!(error, StoreError::StaleFencingToken { .. }),
            "{error}"
        );
    };
    stale(add(&store, &site, "y", 6));
    stale(make(&store, &site, &publish, 6));
    store.finish(&site, false, &Permit::default()).unwrap();
    add(&store, &site, "y", 7).unwrap();
    make(&store, &site, &RealmChange::Unpublish, 8).unwrap();
    stale(add(&store, &site, "y", 7));
    assert!(!site.directory(&store.root).exists());
    add(&store, &source, "y", 6).unwrap();
}
