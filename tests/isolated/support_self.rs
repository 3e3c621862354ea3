//! The test support keeps its own promises: its servers come, answer and go, and it counts locks right.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use tokio::time::timeout;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::support::alone::name_of;
use crate::support::cluster::Cluster;
use crate::support::database::{
    TestDatabase, database, database_on, rows, try_connect, with_database,
};
use crate::support::proxy::{Opening, Proxy};
use crate::support::wait::wait_until;

/// Set for the tests that run only in a process that another test has started.
const CHILD_VARIABLE: &str = "TRL_SUPPORT_CHILD";

#[tokio::test]
async fn a_cluster_answers_restarts_and_leaves_nothing() {
    let cluster = Cluster::create().await;
    let database = database_on(&cluster).await;
    assert_eq!(database.backends().await, 0);
    let first = cluster.server_pid();

    cluster.restart_fast().await;
    assert_ne!(cluster.server_pid(), first);
    assert_eq!(database.backends().await, 0, "after an orderly restart");

    cluster.restart_immediate().await;
    assert_eq!(database.backends().await, 0, "after a crash");

    cluster.stop().await;
    assert!(try_connect(&cluster.url()).await.is_err());
    cluster.start().await;
    assert_eq!(database.backends().await, 0, "after a stop and a start");

    let (dir, pid) = (cluster.dir().to_owned(), cluster.server_pid());
    drop(cluster);
    assert!(!dir.exists(), "{} is left", dir.display());
    wait_until("the server to be gone", async || !runs(pid)).await;
}

#[tokio::test]
async fn a_proxy_does_to_connections_what_it_is_told_to() {
    let database = database().await;
    let proxy = Proxy::to(database.url()).await;
    let url = proxy.url(database.url());
    let client = try_connect(&url).await.unwrap();

    let delay = Duration::from_millis(50);
    proxy.delay(delay);
    let asked = Instant::now();
    client.batch_execute("SELECT 1").await.unwrap();
    assert!(asked.elapsed() >= 2 * delay, "{:?}", asked.elapsed());
    proxy.delay(Duration::ZERO);

    proxy.refuse_logins(true);
    let refused = try_connect(&url).await.unwrap_err();
    assert!(refused.ends_with("refuses logins"), "{refused}");
    proxy.refuse_logins(false);

    // The first request goes nowhere, and the second cancels the query.
    proxy.drop_cancels(true);
    let sleeps = client.batch_execute("SELECT pg_sleep(60)");
    let cancels = async {
        client.cancel_token().cancel_query(NoTls).await.unwrap();
        wait_until("a cancel request", async || {
            proxy.openings().contains(&Opening::Cancel)
        })
        .await;
        proxy.drop_cancels(false);
        let running = "SELECT FROM pg_stat_activity \
             WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'";
        assert_eq!(rows(&database.connect().await, running).await.len(), 1);
        client.cancel_token().cancel_query(NoTls).await.unwrap();
    };
    let (cancelled, ()) = tokio::join!(sleeps, cancels);
    let code = cancelled.unwrap_err().code().cloned();
    assert_eq!(code, Some(SqlState::QUERY_CANCELED));

    let idle = try_connect(&url).await.unwrap();
    let pid = rows(&idle, "SELECT pg_backend_pid()").await;
    proxy.black_hole();
    let asked = timeout(Duration::from_millis(200), client.batch_execute("SELECT 1"));
    asked.await.expect_err("no answer");
    drop(idle);
    let new = try_connect(&url).await.unwrap();
    new.batch_execute("SELECT 1").await.unwrap();
    // The server has not seen the idle one leave.
    database
        .terminate(pid[0].get(0).unwrap().parse().unwrap())
        .await;
}

#[tokio::test]
async fn a_test_process_that_dies_leaves_no_cluster() {
    let output = run_child("child_that_dies_with_a_cluster", &[]);
    assert!(!output.status.success(), "the child must die");
    let words = child_says(&output);
    let (dir, pid) = words.split_once(' ').expect("a directory and a process id");
    let (dir, pid) = (PathBuf::from(dir), pid.parse().expect("a process id"));
    assert!(dir.is_absolute());
    wait_until("the dead child's cluster to be gone", async || {
        !dir.exists() && !runs(pid)
    })
    .await;
}

#[tokio::test]
#[ignore = "run by a_test_process_that_dies_leaves_no_cluster, in a process of its own"]
async fn child_that_dies_with_a_cluster() {
    if env::var_os(CHILD_VARIABLE).is_some() {
        let cluster = Cluster::create().await;
        say(&format!(
            "{} {}",
            cluster.dir().display(),
            cluster.server_pid()
        ));
        process::abort();
    }
}

#[tokio::test]
async fn a_database_on_a_named_server_is_dropped_at_its_end() {
    let cluster = Cluster::create().await;
    let output = run_child(
        "child_with_a_database",
        &[("TEST_DATABASE_URL", &cluster.url())],
    );
    assert!(output.status.success(), "{output:?}");
    let name = child_says(&output);
    assert!(name.starts_with("trl_"), "{name}");
    let client = try_connect(&cluster.url()).await.expect("the cluster runs");
    let left = client
        .query(
            "SELECT datname FROM pg_database WHERE datname = $1",
            &[&name],
        )
        .await
        .expect("the cluster answers");
    assert!(left.is_empty(), "{name} is left");
}

#[tokio::test]
#[ignore = "run by a_database_on_a_named_server_is_dropped_at_its_end, in a process of its own"]
async fn child_with_a_database() {
    if env::var_os(CHILD_VARIABLE).is_some() {
        let database = database().await;
        let _in_the_way_of_dropping_it = database.connect().await;
        say(database.name());
    }
}

#[tokio::test]
async fn a_granted_and_a_waiting_lock_are_counted() {
    let database = database().await;
    for key in [
        77_324_559_412_694_263,
        -2_355_824_123_773_129_196,
        -1,
        i64::MIN,
        5,
    ] {
        counts_a_granted_and_a_waiting_lock(&database, key).await;
    }
}

async fn counts_a_granted_and_a_waiting_lock(database: &TestDatabase, key: i64) {
    let (holder, waiter) = (database.connect().await, database.connect().await);
    let lock = format!("SELECT pg_advisory_lock({key})");
    assert_eq!(database.advisory_locks(key).await, (0, 0));
    assert_eq!(database.holder_pid(key).await, None);

    holder.batch_execute(&lock).await.expect("nobody holds it");
    let pid: i32 = holder
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .expect("the holder is connected")
        .get(0);
    assert_eq!(database.advisory_locks(key).await, (1, 0));
    assert_eq!(database.holder_pid(key).await, Some(pid));

    let waiting = tokio::spawn(async move { waiter.batch_execute(&lock).await.map(|()| waiter) });
    database.wait_for_waiting(key, 1).await;
    assert_eq!(database.advisory_locks(key).await, (1, 1));
    assert_eq!(database.backends().await, 2);

    database.terminate(pid).await;
    let waiter = waiting
        .await
        .expect("no panic")
        .expect("granted after the holder");
    database.wait_for_waiting(key, 0).await;
    assert_eq!(database.advisory_locks(key).await, (1, 0));
    assert_ne!(database.holder_pid(key).await, Some(pid));
    drop(waiter);
    database.wait_for_granted(key, 0).await;
    wait_until("both sessions to end", async || {
        database.backends().await == 0
    })
    .await;
}

#[tokio::test]
async fn a_lock_in_another_database_is_not_counted() {
    let (database, other) = (database().await, database().await);
    let holder = other.connect().await;
    holder
        .batch_execute("SELECT pg_advisory_lock(7)")
        .await
        .expect("nobody holds it");
    assert_eq!(other.advisory_locks(7).await, (1, 0));
    assert_eq!(database.advisory_locks(7).await, (0, 0));
}

#[test]
fn the_database_of_a_server_url_is_replaced() {
    for (server, expected) in [
        ("postgres://u:p@h:1/old", "postgres://u:p@h:1/new"),
        ("postgres://u@h", "postgres://u@h/new"),
        (
            "postgresql://h/old?host=/run/pg",
            "postgresql://h/new?host=/run/pg",
        ),
        ("host=h dbname=old", "host=h dbname=old dbname=new"),
    ] {
        let url = with_database(server, "new");
        assert_eq!(url, expected);
        let config: tokio_postgres::Config = url.parse().expect("still a server");
        assert_eq!(config.get_dbname(), Some("new"));
    }
}

/// Runs one ignored test of this binary in a new process.
fn run_child(test: &str, variables: &[(&str, &str)]) -> Output {
    Command::new(env::current_exe().expect("the test's own path is known"))
        .args([
            "--exact",
            &name_of(module_path!(), test),
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD_VARIABLE, "1")
        .envs(variables.iter().copied())
        .output()
        .expect("this program starts again")
}

/// Tells the test that started this process.
fn say(words: &str) {
    println!("\nchild: {words}");
}

fn child_says(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().find_map(|line| line.strip_prefix("child: "));
    said.unwrap_or_else(|| panic!("the child said nothing: {output:?}"))
        .to_owned()
}

/// Whether a process runs; one that has ended and was not waited for does not.
fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}
