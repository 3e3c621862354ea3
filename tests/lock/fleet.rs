//! Replicas that are configured differently find out, through PostgreSQL.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, io};

use http::Method;
use tokio_postgres::Client;
use tower::{Layer, service_fn};
use tower_realm_lock::{
    LockKey, LockRules, RealmBodyLockLayer, RealmLocks, RealmPaths, RealmWriteLockLayer, Scope,
    Unresolved,
};
use tracing::subscriber::DefaultGuard;

use crate::support::alone::name_of;
use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::cluster::{Cluster, free_port};
use crate::support::database::{TestDatabase, database, rows};
use crate::support::gate::{ORIGIN, answered, at_once, gate, patch, postgres_locks_with};
use crate::support::page::block;
use crate::support::proxy::Proxy;
use crate::support::wait::{PATIENCE, wait_for};

const PAGE: &str = include_str!("../../docs/operations.md");

/// A replica looks this often at least, and a bit more.
const A_LOOK: Duration = Duration::from_secs(25);

/// What is logged by this thread, and so by the tasks of its test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::level_filters::LevelFilter::INFO)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines that contain all of these.
    fn lines(&self, parts: &[&str]) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines();
        let lines = lines.filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.map(str::to_owned).collect()
    }

    /// Waits until there are so many.
    async fn wait_for(&self, count: usize, parts: &[&str]) -> Vec<String> {
        self.wait_for_within(A_LOOK, count, parts).await
    }

    async fn wait_for_within(
        &self,
        patience: Duration,
        count: usize,
        parts: &[&str],
    ) -> Vec<String> {
        wait_for(&format!("{count} of {parts:?}"), patience, async || {
            let lines = self.lines(parts);
            if lines.len() == count {
                Ok(lines)
            } else {
                Err(format!("{:#?}", self.lines(&[])))
            }
        })
        .await
    }

    fn assert_no_difference(&self) {
        let errors = self.lines(&["ERROR"]);
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn paths(base_url: &str) -> RealmPaths {
    RealmPaths::new(base_url, "/{owner}/{realm}").unwrap()
}

/// Rules with one of each kind.
fn rules(pattern: &str) -> LockRules {
    LockRules::new()
        .exempt(Method::POST, "/{owner}/{realm}/_search")
        .and_then(|rules| rules.scope(Method::PATCH, pattern, Scope::resource()))
        .unwrap()
}

/// Locks whose backends have a name.
async fn locks(url: &str, name: &str) -> RealmLocks {
    let mark = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{mark}application_name={name}");
    postgres_locks_with(&url, |builder| builder).await
}

/// Makes services of the layer, as a router does of each of its routes.
fn start(layer: &RealmWriteLockLayer) {
    for _ in 0..3 {
        let _ = layer.clone().layer(service_fn(at_once));
    }
}

/// A replica of a fleet.
fn join(locks: &RealmLocks, fleet: &str, base_url: &str) -> RealmWriteLockLayer {
    let layer = RealmWriteLockLayer::new(locks.clone(), paths(base_url)).fleet(fleet);
    start(&layer);
    layer
}

/// The replicas that have published something: process ids, with what they have.
async fn published(client: &Client) -> Vec<(i32, Vec<(u32, u32)>)> {
    let rows = client
        .query(
            "SELECT pid, array_agg(classid ORDER BY classid, objid), \
             array_agg(objid ORDER BY classid, objid) FROM pg_locks \
             WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND mode = 'ShareLock' \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             GROUP BY pid ORDER BY pid",
            &[],
        )
        .await
        .unwrap();
    let keys = |row: &tokio_postgres::Row| {
        let (classes, objects): (Vec<u32>, Vec<u32>) = (row.get(1), row.get(2));
        classes.into_iter().zip(objects).collect()
    };
    rows.iter().map(|row| (row.get(0), keys(row))).collect()
}

async fn wait_for_published(client: &Client, count: usize) -> Vec<(i32, Vec<(u32, u32)>)> {
    wait_for("replicas that publish", PATIENCE, async || {
        let published = published(client).await;
        if published.len() == count {
            Ok(published)
        } else {
            Err(format!("{published:?}"))
        }
    })
    .await
}

/// Waits until each of so many replicas has looked at what all have published by now. The second
/// look is only asked for once the first has been judged.
async fn wait_until_all_have_looked(database: &TestDatabase, replicas: usize) {
    let client = database.connect().await;
    wait_for_published(&client, replicas).await;
    for _ in 0..2 {
        let row = client
            .query_one("SELECT clock_timestamp()::text", &[])
            .await;
        let now: String = row.unwrap().get(0);
        let looked = format!(
            "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_locks LEFT JOIN%' \
             AND pid <> pg_backend_pid() AND datname = current_database() \
             AND state = 'idle in transaction' AND query_start > '{now}'"
        );
        wait_for("a look of each replica", A_LOOK, async || {
            let rows = client.query(&looked, &[]).await.unwrap();
            if rows.len() == replicas {
                Ok(())
            } else {
                Err(format!("{} have looked", rows.len()))
            }
        })
        .await;
    }
}

#[tokio::test]
async fn replicas_with_other_base_urls_are_logged_by_each_other_until_one_leaves() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let one = locks(database.url(), "one").await;
    let other = locks(database.url(), "other").await;
    join(&one, "prod", "https://a.example.com");
    join(&other, "prod", "https://b.example.com");
    let errors = log.wait_for(2, &["ERROR"]).await;
    for (own, named) in [("a.example.com", "other"), ("b.example.com", "one")] {
        let named = format!("other_application=\"{named}\"");
        let parts = [
            own,
            &named,
            "fleet=\"prod\"",
            "component=\"realms\"",
            "other_pid=",
        ];
        let lines = log.lines(&parts);
        assert_eq!(lines.len(), 1, "{parts:?}: {errors:#?}");
        for part in ["other_address=", "give all replicas the same base URL"] {
            assert!(lines[0].contains(part), "{lines:?}");
        }
    }
    // So does the page for operators.
    let client = database.connect().await;
    let shown = rows(&client, block(PAGE, "sql", "array_agg")).await;
    let names = shown
        .iter()
        .map(|row| row.get("application_name").unwrap().to_owned());
    assert_eq!(
        names.collect::<BTreeSet<_>>(),
        BTreeSet::from(["one", "other"].map(str::to_owned))
    );
    // Once, and not with each look.
    wait_until_all_have_looked(&database, 2).await;
    assert_eq!(log.lines(&["ERROR"]).len(), 2);

    other.shutdown(PATIENCE).await.unwrap();
    let agree = [
        "INFO",
        "agree again",
        "fleet=\"prod\"",
        "component=\"realms\"",
    ];
    log.wait_for(1, &agree).await;
    assert_eq!(wait_for_published(&client, 1).await.len(), 1);
    drop(one);
    wait_for_published(&client, 0).await;
}

/// PostgreSQL shows a transaction the sessions that there were when it first asked about any.
#[tokio::test]
async fn a_replica_that_comes_after_others_were_seen_is_named() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let twins = [
        locks(database.url(), "one").await,
        locks(database.url(), "twin").await,
    ];
    for locks in &twins {
        join(locks, "late", ORIGIN);
    }
    wait_until_all_have_looked(&database, 2).await;
    let late = locks(database.url(), "latecomer").await;
    join(&late, "late", "https://late.example.com");
    log.wait_for(3, &["ERROR"]).await;
    let by_twins = log.lines(&["ERROR", ORIGIN, "other_application=\"latecomer\""]);
    assert_eq!(by_twins.len(), 2, "{:#?}", log.lines(&["ERROR"]));
    let by_latecomer = log.lines(&["late.example.com", "other_replicas=2"]);
    assert_eq!(by_latecomer.len(), 1, "{:#?}", log.lines(&["ERROR"]));
}

#[tokio::test]
async fn equal_replicas_and_other_fleets_log_nothing() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let replicas = [
        locks(database.url(), "one").await,
        locks(database.url(), "two").await,
    ];
    for locks in &replicas {
        join(locks, "equal", ORIGIN);
        // Two layers of one name count together, and what may differ differs.
        let layer = RealmBodyLockLayer::new(locks.clone(), paths(ORIGIN), 1024)
            .rules(rules("/{owner}/{realm}/{*card}").max_resources(3))
            .map_locks(|locks| locks.acquire_timeout(Duration::from_secs(3)))
            .fleet("equal");
        let _ = layer.layer(service_fn(at_once));
    }
    let foreign = locks(database.url(), "foreign").await;
    join(&foreign, "another", "https://other.example.com");
    // Locks of another database exclude nobody here.
    let elsewhere = crate::support::database::database().await;
    let apart = locks(elsewhere.url(), "apart").await;
    join(&apart, "equal", "https://other.example.com");
    wait_until_all_have_looked(&elsewhere, 1).await;
    wait_until_all_have_looked(&database, 3).await;
    log.assert_no_difference();
    // The open transactions hold back nothing.
    let client = database.connect().await;
    let held = "SELECT FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE objsubid = 2 \
                AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)";
    let looks = "SELECT FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() \
                 AND datname = current_database()";
    wait_for("a moment between two looks", PATIENCE, async || {
        let holding = client.query(held, &[]).await.unwrap().len();
        if holding == 0 && client.query(looks, &[]).await.unwrap().is_empty() {
            Ok(())
        } else {
            Err(format!("{holding} hold a snapshot"))
        }
    })
    .await;
}

#[tokio::test]
async fn replicas_with_other_rules_are_logged_with_the_component() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let mut replicas = Vec::new();
    for (name, pattern) in [
        ("one", "/{owner}/{realm}/{*card}"),
        ("two", "/{owner}/{realm}/{c}"),
    ] {
        let locks = locks(database.url(), name).await;
        let layer = RealmWriteLockLayer::new(locks, paths(ORIGIN)).fleet("rules");
        // Even if clones had other rules before.
        start(&layer);
        let layer = layer.rules(rules(pattern)).unwrap();
        start(&layer);
        replicas.push(layer);
    }
    let errors = log.wait_for(2, &["ERROR", "component=\"rules\""]).await;
    assert!(
        errors.iter().all(|it| it.contains("_search")),
        "{errors:#?}"
    );
    assert_eq!(log.lines(&["ERROR"]).len(), 2);
}

#[tokio::test]
async fn a_replica_with_lock_keys_of_its_own_is_logged_by_those_without() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let own = postgres_locks_with(database.url(), |builder| {
        builder.realm_keys(async |realm| Ok::<_, String>(LockKey::of(&realm)))
    });
    let own = join(&own.await, "keys", ORIGIN);
    let plain = join(&locks(database.url(), "plain").await, "keys", ORIGIN);
    let errors = log.wait_for(2, &["ERROR", "component=\"keys\""]).await;
    assert!(
        errors.iter().any(|it| it.contains("by `realm_keys`")),
        "{errors:#?}"
    );
    drop((own, plain));
}

#[tokio::test]
async fn a_replica_whose_layer_is_switched_off_is_logged_by_the_others() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let mut replicas = Vec::new();
    for (name, enabled) in [("locking", true), ("off", false)] {
        let locks = locks(database.url(), name).await;
        let layer = RealmWriteLockLayer::new(locks, paths(ORIGIN));
        let layer = layer.fleet("switch").enabled(enabled);
        start(&layer);
        replicas.push(layer);
    }
    let errors = log
        .wait_for(2, &["ERROR", "component=\"rules\"", "fleet=\"switch\""])
        .await;
    let own = |text: &str| errors.iter().filter(|it| it.contains(text)).count();
    assert_eq!(own("enabled(false): nothing is locked"), 1, "{errors:#?}");
    assert_eq!(own("other_application=\"off\""), 1, "{errors:#?}");
}

#[tokio::test]
async fn through_pgbouncer_in_transaction_mode_they_find_out_and_writes_go_on() {
    through_pgbouncer(Pooling::Transaction).await;
}

#[tokio::test]
async fn through_pgbouncer_in_session_mode_they_find_out_and_writes_go_on() {
    through_pgbouncer(Pooling::Session).await;
}

async fn through_pgbouncer(pooling: Pooling) {
    let database = database().await;
    let (log, _guard) = Log::start();
    let bouncer = Bouncer::to(database.url(), pooling, 4).await;
    let url = bouncer.url(database.url());
    let one = locks(&url, "one").await;
    let other = locks(&url, "other").await;
    let layer = join(&one, "pooled", "https://a.example.com");
    join(&other, "pooled", "https://b.example.com");
    let errors = log.wait_for(2, &["ERROR", "component=\"realms\""]).await;
    assert!(
        errors
            .iter()
            .any(|it| it.contains("other_application=\"other\""))
    );
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, "/luke/a/card");
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    let client = database.connect().await;
    assert_eq!(published(&client).await.len(), 2);
}

#[tokio::test]
async fn an_ordinary_role_finds_out_and_does_without_the_address() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let admin = database.connect().await;
    let role = format!("{}_ordinary", database.name());
    let create = format!("CREATE ROLE {role} LOGIN");
    admin.batch_execute(&create).await.unwrap();
    let url = database.url().replace("postgres@", &format!("{role}@"));
    assert!(
        url.contains(&role),
        "the tests' server has another user: {url}"
    );
    let ordinary = locks(&url, "ordinary").await;
    let admins = locks(database.url(), "admins").await;
    join(&ordinary, "roles", "https://a.example.com");
    join(&admins, "roles", "https://b.example.com");
    log.wait_for(2, &["ERROR", "component=\"realms\""]).await;
    let by_ordinary = log.lines(&["ERROR", "a.example.com", "other_application=\"admins\""]);
    assert_eq!(by_ordinary.len(), 1);
    assert!(
        !by_ordinary[0].contains("other_address="),
        "{by_ordinary:?}"
    );
    for locks in [ordinary, admins] {
        locks.shutdown(PATIENCE).await.unwrap();
    }
    wait_for("the role to have left", PATIENCE, async || {
        let drop = format!("DROP ROLE {role}");
        admin
            .batch_execute(&drop)
            .await
            .map_err(|it| format!("{it:?}"))
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_is_reported_once_and_made_again() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let one = locks(database.url(), "one").await;
    join(&one, "lost", "https://a.example.com");
    let client = database.connect().await;
    let before = wait_for_published(&client, 1).await;
    database.terminate(before[0].0).await;
    let warning = [
        "WARN",
        "cannot tell whether all replicas of a fleet",
        "lost",
    ];
    log.wait_for(1, &warning).await;
    log.wait_for_within(A_LOOK * 2, 1, &["INFO", "can be compared again"])
        .await;
    let after = wait_for_published(&client, 1).await;
    assert!(after[0].0 != before[0].0 && after[0].1 == before[0].1);
    assert_eq!(log.lines(&warning).len(), 1);
    log.assert_no_difference();
}

#[tokio::test]
async fn a_silent_connection_is_reported_and_made_again() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let (log, _guard) = Log::start();
    let one = locks(&proxy.url(database.url()), "one").await;
    join(&one, "silent", "https://a.example.com");
    let client = database.connect().await;
    let before = wait_for_published(&client, 1).await;
    proxy.black_hole();
    log.wait_for(1, &["WARN", "cannot tell whether", "silent"])
        .await;
    wait_for("another backend publishes", A_LOOK, async || {
        let after = published(&client).await;
        // The server has not learned of the other one's end.
        let is_new = |(pid, locks): &(_, _)| *pid != before[0].0 && *locks == before[0].1;
        let found = after.iter().any(is_new);
        found.then_some(()).ok_or(format!("{after:?}"))
    })
    .await;
    log.assert_no_difference();
}

#[tokio::test]
async fn a_pooler_that_ends_idle_transactions_is_one_warning_and_differences_are_found() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let short = "idle_transaction_timeout = 1\n";
    let bouncer = Bouncer::with(database.url(), Pooling::Transaction, 4, short).await;
    let url = bouncer.url(database.url());
    let pooled = locks(&url, "pooled").await;
    let direct = locks(database.url(), "direct").await;
    join(&pooled, "cut", "https://a.example.com");
    let warning = ["WARN", "cannot tell", "cut"];
    log.wait_for(1, &warning).await;
    // Connections are made again and again, and each of them looks.
    let client = database.connect().await;
    let mut seen = BTreeSet::new();
    wait_for("three connections", A_LOOK * 2, async || {
        seen.extend(published(&client).await.into_iter().map(|(pid, _)| pid));
        if seen.len() >= 3 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    join(&direct, "cut", "https://b.example.com");
    log.wait_for(
        1,
        &["ERROR", "a.example.com", "other_application=\"direct\""],
    )
    .await;
    assert_eq!(log.lines(&warning).len(), 1);
    assert!(log.lines(&["again"]).iter().all(|it| it.contains("trying")));
}

#[tokio::test]
async fn locks_that_are_dropped_stop_looking_for_a_database_that_is_away() {
    let (log, _guard) = Log::start();
    let url = format!("postgres://u@127.0.0.1:{}/realms", free_port());
    let locks = RealmLocks::postgres_builder(&url).build_lazy().unwrap();
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    drop(join(&locks, "gone", ORIGIN));
    log.wait_for(1, &["WARN", "cannot tell", "gone"]).await;
    assert_eq!(tasks.num_alive_tasks(), before + 1);
    drop(locks);
    wait_for("the end of its task", PATIENCE, async || {
        let alive = tasks.num_alive_tasks();
        if alive <= before {
            Ok(())
        } else {
            Err(format!("{alive} tasks, {before} before"))
        }
    })
    .await;
}

#[tokio::test]
async fn replicas_that_treat_unresolved_requests_differently_are_logged() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let mut replicas = Vec::new();
    for (name, unresolved) in [("strict", Unresolved::Refuse), ("lax", Unresolved::Pass)] {
        let locks = locks(database.url(), name).await;
        let layer = RealmWriteLockLayer::new(locks, paths(ORIGIN)).unresolved(unresolved);
        let layer = layer.fleet("unresolved");
        start(&layer);
        replicas.push(layer);
    }
    let errors = log.wait_for(2, &["ERROR", "component=\"rules\""]).await;
    let own = |text: &str| errors.iter().filter(|it| it.contains(text)).count();
    assert_eq!(own("no realm: refused"), 1, "{errors:#?}");
    assert_eq!(own("no realm: pass without a lock"), 1, "{errors:#?}");
}

#[tokio::test]
async fn a_restart_of_the_database_is_neither_an_agreement_nor_a_new_difference() {
    let cluster = Cluster::create().await;
    let (log, _guard) = Log::start();
    let one = locks(&cluster.url(), "one").await;
    let other = locks(&cluster.url(), "other").await;
    join(&one, "restarted", "https://a.example.com");
    join(&other, "restarted", "https://b.example.com");
    log.wait_for(2, &["ERROR", "component=\"realms\""]).await;
    cluster.restart_fast().await;
    log.wait_for_within(A_LOOK * 2, 2, &["INFO", "can be compared again"])
        .await;
    assert_eq!(log.lines(&["WARN", "cannot tell"]).len(), 2);
    assert_eq!(log.lines(&["ERROR"]).len(), 2);
    assert!(log.lines(&["agree again"]).is_empty());
    for locks in [one, other] {
        locks.shutdown(PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn time_limits_of_the_database_do_not_end_what_is_published() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let admin = database.connect().await;
    let limit = format!(
        "ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '500ms'; \
         ALTER DATABASE {name} SET statement_timeout = '500ms'; \
         ALTER DATABASE {name} SET lock_timeout = '1ms'; \
         ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'",
        name = database.name()
    );
    admin.batch_execute(&limit).await.unwrap();
    let locks = locks(database.url(), "patient").await;
    join(&locks, "limits", ORIGIN);
    let before = wait_for_published(&admin, 1).await;
    // Each pause between two looks is longer.
    wait_until_all_have_looked(&database, 1).await;
    assert_eq!(published(&admin).await, before);
    assert!(log.lines(&["WARN"]).is_empty(), "{:#?}", log.lines(&[]));
}

#[tokio::test]
async fn what_cannot_be_compared_is_a_warning() {
    let (log, _guard) = Log::start();
    // Neither with a database that is away,
    let url = format!("postgres://u@127.0.0.1:{}/realms", free_port());
    let away = RealmLocks::postgres_builder(&url).build_lazy().unwrap();
    join(&away, "away", ORIGIN);
    let lines = log.wait_for(1, &["WARN", "cannot tell", "away"]).await;
    assert!(lines[0].contains("nothing listens there"), "{lines:?}");
    away.shutdown(PATIENCE).await.unwrap();
    // nor with a pooler that has no transactions,
    let database = database().await;
    let statements = "pool_mode = statement\n";
    let bouncer = Bouncer::with(database.url(), Pooling::Transaction, 4, statements).await;
    let url = bouncer.url(database.url());
    let pooled = RealmLocks::postgres_builder(&url).build_lazy().unwrap();
    join(&pooled, "statements", ORIGIN);
    log.wait_for(1, &["WARN", "cannot tell", "statements"])
        .await;
    // nor in process.
    join(&RealmLocks::in_process(), "alone", ORIGIN);
    let lines = log.lines(&["WARN", "a fleet needs locks in PostgreSQL", "alone"]);
    assert_eq!(lines.len(), 1);
}

/// The environment of the process that [`another_process`] starts: URL and base URL.
const URL: &str = "FLEET_TEST_DATABASE_URL";
const BASE_URL: &str = "FLEET_TEST_BASE_URL";

/// No test: what the next one runs in a process of its own. It ends with its standard input.
#[tokio::test]
async fn another_process() {
    let (Ok(url), Ok(base_url)) = (env::var(URL), env::var(BASE_URL)) else {
        return;
    };
    let locks = locks(&url, "elsewhere").await;
    let layer = RealmWriteLockLayer::new(locks, paths(&base_url))
        .rules(rules("/{owner}/{realm}/{*card}"))
        .unwrap()
        .fleet("processes");
    start(&layer);
    let end = tokio::task::spawn_blocking(|| io::stdin().read(&mut [0]));
    let _ = end.await;
}

#[tokio::test]
async fn processes_publish_the_same_for_the_same_configuration() {
    let database = database().await;
    let (log, _guard) = Log::start();
    let here = locks(database.url(), "here").await;
    let layer = RealmWriteLockLayer::new(here, paths(ORIGIN))
        .rules(rules("/{owner}/{realm}/{*card}"))
        .unwrap()
        .fleet("processes");
    start(&layer);
    let client = database.connect().await;
    wait_for_published(&client, 1).await;
    let spawn = |base_url: &str| {
        let program = env::current_exe().unwrap();
        let mut command = Command::new(program);
        command
            .args(["--exact", &name_of(module_path!(), "another_process")])
            .env(URL, database.url())
            .env(BASE_URL, base_url)
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        command.spawn().unwrap()
    };
    let mut equal = spawn(ORIGIN);
    let both = wait_for_published(&client, 2).await;
    assert_eq!(both[0].1, both[1].1);
    assert_eq!(both[0].1.len(), 3, "realms, rules and keys");
    wait_until_all_have_looked(&database, 2).await;
    log.assert_no_difference();

    let mut other = spawn("https://b.example.com");
    let errors = log.wait_for(1, &["ERROR"]).await;
    for part in [
        "component=\"realms\"",
        "other_application=\"elsewhere\"",
        ORIGIN,
    ] {
        assert!(errors[0].contains(part), "{errors:?}");
    }
    for child in [&mut equal, &mut other] {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}
