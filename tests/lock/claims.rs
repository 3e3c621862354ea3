//! Several realms in one claim: granted together or not at all, in one round trip, and never in a deadlock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tower_realm_lock::{Claim, LockError, LockKey, RealmLocks, RealmUrl};

use crate::support::claims::{cards, realm, realm_key, strategies, whole, work};
use crate::support::database::database;
use crate::support::gate::postgres_locks_with;
use crate::support::proxy::Proxy;

#[tokio::test]
async fn two_realms_are_closed_to_everybody_until_both_are_released() {
    let database = database().await;
    for (strategy, [one, other]) in strategies(&database).await {
        let both = work(&one, &whole(["a", "b"])).inside().await;
        let mut a = work(&other, &whole(["a"]));
        let mut b = work(&one, &whole(["b"]));
        let mut also = work(&other, &whole(["b", "c"]));
        work(&other, &whole(["d"])).inside().await.end().await;
        assert!(a.waits() && b.waits() && also.waits(), "{strategy}");
        both.end().await;
        // In whatever order.
        let waited = [a, b, also].map(async |work| work.inside().await.end().await);
        join_all(waited).await;
    }
}

#[tokio::test]
async fn a_claim_of_many_keys_is_one_message_to_acquire_and_one_to_release() {
    let database = database().await;
    for sessions in [0, 1] {
        let proxy = Proxy::to(database.url()).await;
        let url = proxy.url(database.url());
        let locks = postgres_locks_with(&url, |builder| builder.sessions(sessions)).await;
        proxy.queries();
        for claim in [whole(["a", "b", "c"]), cards("a", ["x", "y"])] {
            work(&locks, &claim).inside().await.end().await;
            let asked = proxy.queries();
            assert_eq!(asked.len(), 2, "{asked:?}");
        }
    }
}

#[tokio::test]
async fn a_claim_that_is_not_granted_leaves_none_of_its_keys_locked() {
    let database = database().await;
    for sessions in [0, 1] {
        let locks = postgres_locks_with(database.url(), |builder| builder.sessions(sessions))
            .await
            .acquire_timeout(Duration::from_millis(200));
        let all = ["a", "b", "c", "d"];
        for taken in all {
            let holder = database.hold(realm_key(taken)).await;
            let error = work(&locks, &whole(all)).refused().await;
            assert!(matches!(error, LockError::Timeout { .. }), "{error}");
            assert_eq!(error.claim(), Some(&whole(all)));
            for free in all.into_iter().filter(|name| *name != taken) {
                database.wait_for_granted(realm_key(free), 0).await;
            }
            drop(holder);
            database.wait_for_granted(realm_key(taken), 0).await;
        }
    }
}

/// What a caller may find at a key: nobody, or others who share it.
#[derive(Default)]
struct Insides(Mutex<HashMap<String, i32>>);

/// Whom one holder counts as where it shares nothing.
const ALONE: i32 = 1_000_000;

impl Insides {
    fn enter(&self, names: &[(String, i32)]) {
        let mut inside = self.0.lock().unwrap();
        for (name, weight) in names {
            let count = inside.entry(name.clone()).or_default();
            assert!(
                *count == 0 || (*weight < ALONE && *count < ALONE),
                "two in {name}"
            );
            *count += weight;
        }
    }

    fn leave(&self, names: &[(String, i32)]) {
        let mut inside = self.0.lock().unwrap();
        for (name, weight) in names {
            *inside.entry(name.clone()).or_default() -= weight;
        }
    }
}

/// One to three realms of six; or cards of one, with or without another realm whole. With what it must have alone or may share.
fn any_claim() -> impl Strategy<Value = (Claim, Vec<(String, i32)>)> {
    let name = prop::sample::select(vec!["a", "b", "c", "d", "e", "f"]);
    let realms = prop::collection::hash_set(name, 1..4);
    let paths = prop::collection::hash_set(prop::sample::select(vec!["x", "y", "z"]), 0..3);
    (realms, paths, any::<bool>()).prop_map(|(realms, paths, scoped)| {
        let mut realms = realms.into_iter();
        let first = realms.next().expect("at least one");
        let (mut claim, mut names) = if scoped {
            let cards = paths.iter().map(|path| (format!("{first}/{path}"), ALONE));
            let names = std::iter::once((first.to_owned(), 1))
                .chain(cards)
                .collect();
            (Claim::resources(&realm(first), &paths), names)
        } else {
            (Claim::realm(&realm(first)), vec![(first.to_owned(), ALONE)])
        };
        for name in realms {
            claim = claim.and(&Claim::realm(&realm(name)));
            names.push((name.to_owned(), ALONE));
        }
        (claim, names)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_random_claims_on_three_replicas_finish_and_never_meet() {
    const SEED: [u8; 32] = *b"a thousand claims of 3 replicas.";
    let database = database().await;
    let replicas = [0, 2, 0].map(|sessions| {
        postgres_locks_with(database.url(), move |builder| {
            builder.sessions(sessions).pool_size(6)
        })
    });
    let replicas: Vec<RealmLocks> = join_all(replicas)
        .await
        .into_iter()
        .map(|locks| locks.acquire_timeout(Duration::from_secs(60)))
        .collect();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &SEED);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let insides = Arc::new(Insides::default());
    let works = (0..1000).map(|number| {
        let (claim, names) = any_claim().new_tree(&mut runner).unwrap().current();
        let (locks, insides) = (replicas[number % 3].clone(), Arc::clone(&insides));
        tokio::spawn(async move {
            let work = move |_| async move {
                insides.enter(&names);
                // Others have a chance to come in.
                tokio::task::yield_now().await;
                insides.leave(&names);
                Ok::<_, LockError>(())
            };
            locks.with_write_lock(&claim, work).await
        })
    });
    for work in works.collect::<Vec<_>>() {
        work.await
            .expect("never two in one place")
            .expect("no deadlock");
    }
    let client = database.connect().await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let deadlocks: i64 = client.query_one(deadlocks, &[]).await.unwrap().get(0);
    assert_eq!(deadlocks, 0);
}

#[tokio::test]
async fn another_space_is_serialized_alike_and_meets_no_realm() {
    let database = database().await;
    for (strategy, [one, other]) in strategies(&database).await {
        let budget: Claim = LockKey::in_space("user-cost", 42).unwrap().into();
        let first = work(&one, &budget).inside().await;
        let mut second = work(&other, &budget);
        work(&other, &LockKey::in_space("user-cost", 43).unwrap().into())
            .inside()
            .await
            .end()
            .await;
        // A realm with the very name of the user.
        work(&other, &whole(["42"])).inside().await.end().await;
        assert!(second.waits(), "{strategy}");
        first.end().await;
        second.inside().await.end().await;
    }
}

#[test]
fn a_claim_takes_each_realm_once_and_a_whole_one_with_its_resources() {
    let (a, b) = (realm("a"), realm("b"));
    let both = Claim::of_realms([&a, &b, &a]).unwrap();
    assert_eq!(both, Claim::realm(&b).and(&Claim::from(a.clone())));
    assert_eq!(both.realms(), [a.clone(), b]);
    let error = Claim::of_realms::<RealmUrl>([]).unwrap_err();
    assert!(error.to_string().contains("is empty"), "{error}");
    let part = cards("a", ["x", "y", "x"]);
    assert_eq!(part.resources_of(&a).unwrap(), ["x", "y"]);
    assert_eq!(part, cards("a", ["y", "x"]));
    let swallowed = part.and(&whole(["a"]));
    assert_eq!(swallowed, whole(["a"]));
    assert_eq!(whole(["a"]).and(&part), swallowed);
    assert!(swallowed.resources_of(&a).is_none());
}

#[test]
fn its_name_says_what_it_is_about_and_escapes_what_a_client_wrote() {
    let url = |name: &str| RealmUrl::parse(&format!("http://h/{name}/")).unwrap();
    let (a, b) = (url("a"), url("b"));
    let key = LockKey::in_space("user-cost", 0).unwrap();
    let keys = |count| {
        let keys = (0..count).map(|id| Claim::from(LockKey::in_space("user-cost", id).unwrap()));
        keys.reduce(|all, one| all.and(&one)).unwrap()
    };
    let forged = Claim::resources(&a, ["x\n2026 WARN forged", "y"]);
    let cards = "http://h/a/ (x\\n2026 WARN forged, y)";
    for (claim, name) in [
        (
            Claim::realm(&a).and(&Claim::realm(&b)),
            "http://h/a/ and http://h/b/",
        ),
        (forged.clone(), cards),
        (Claim::resources::<&str>(&a, []), "http://h/a/ (shared)"),
        (keys(1), &format!("lock key {key}")),
        (keys(1).and(&forged), &format!("{cards} and lock key {key}")),
    ] {
        assert_eq!(claim.to_string(), name);
    }
    let long = |number| format!("{number}{}", "ü".repeat(9_000));
    let many = Claim::resources(&a, (0..20).map(long)).to_string();
    assert!(many.len() < 2_000 && many.ends_with("... and 12 more)"));
    let long = Claim::realm(&url(&"x".repeat(9_000))).to_string();
    assert!(long.len() < 600 && long.ends_with("x..."), "{long}");
    assert_eq!(keys(2).to_string().matches(", ").count(), 1);
    assert!(keys(20).to_string().ends_with(" and 12 more"));
}
