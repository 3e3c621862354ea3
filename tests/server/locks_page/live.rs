//! The page follows what happens, while it happens.

use http::StatusCode;

use super::browser::Browser;
use super::{make_realm, patch, replica_on, snapshot};
use crate::support::database::database;
use crate::support::gate::{ORIGIN, key};
use crate::support::replica::Replica;
use crate::support::wait::wait_until;

#[tokio::test]
async fn a_write_is_seen_with_those_that_wait_behind_it_and_goes_when_it_is_done() {
    let replica = Replica::start(&["--write-delay", "1500"]).await;
    let browser = Browser::start().await;
    browser.open(&replica.url("/_locks")).await;
    browser
        .wait_until("find('connection').textContent == 'Live'")
        .await;
    browser.wait_until("!find('realms-empty').hidden").await;

    make_realm(&replica, "/luke/a/").await;
    let writes = [(); 3].map(|()| patch(&replica, "/luke/a/"));
    browser.wait_until("find('waiting').textContent == 2").await;
    assert_eq!(browser.text("#held").await, "1");
    let row = "#realms-rows tr";
    assert_eq!(browser.text(&format!("{row} .path")).await, "/luke/a/");
    let cells =
        "[...document.querySelectorAll('#realms-rows tr:first-child td')].map(it => it.innerText)";
    let cells = browser.eval(cells).await;
    assert_eq!(cells[0], "a claim on the whole realm");
    assert_eq!(cells[2], "2");
    for time in [&cells[1], &cells[3]] {
        let time = time.as_str().unwrap();
        assert!(time.ends_with(" ms") || time.ends_with(" s"), "{cells}");
    }

    for write in writes {
        assert_eq!(write.await.unwrap().0, StatusCode::OK);
    }
    browser
        .wait_until("find('held').textContent == 0 && find('waiting').textContent == 0")
        .await;
    browser
        .wait_until("!document.querySelector('#realms-rows tr') && !find('realms-empty').hidden")
        .await;
}

#[tokio::test]
async fn the_chart_draws_the_queue_and_says_it_in_words() {
    let database = database().await;
    let replica = replica_on(&database).await;
    make_realm(&replica, "/luke/a/").await;
    let holder = database.hold(key("/luke/a")).await;
    let browser = Browser::start().await;
    browser.open(&replica.url("/_locks")).await;
    // From a time without waiters on, or there is nothing to rise from.
    browser
        .wait_until("document.querySelector('#waiting-chart .curve')?.points.length > 1")
        .await;
    let write = patch(&replica, "/luke/a/");
    let rises = |chart: &str| {
        format!(
            "(() => {{ const line = document.querySelector('#{chart} .curve'); \
             const ys = [...(line?.points ?? [])].map(it => it.y); \
             return ys.length > 4 && Math.max(...ys) - Math.min(...ys) > 10; }})()"
        )
    };
    for chart in ["longest-chart", "waiting-chart"] {
        browser.wait_until(&rises(chart)).await;
    }
    let said = browser.text("#waiting-chart desc").await;
    assert!(
        said.contains("at most 1 writes waited; 1 wait now"),
        "{said}"
    );
    let named = "document.querySelector('#waiting-chart svg').getAttribute('aria-labelledby')";
    assert_eq!(browser.eval(named).await, "waiting-chart-name");
    assert_eq!(
        browser.text("#waiting-chart-name").await,
        "Writes that wait"
    );

    // Who comes now sees the same at once.
    let other = Browser::start().await;
    other.open(&replica.url("/_locks")).await;
    other.wait_until(&rises("waiting-chart")).await;

    drop(holder);
    assert_eq!(write.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn locks_of_every_replica_are_seen_in_the_database() {
    let database = database().await;
    let flags = [
        "--base-url",
        ORIGIN,
        "--database-url",
        database.url(),
        "--write-delay",
        "3000",
    ];
    let replicas = [Replica::start(&flags).await, Replica::start(&flags).await];
    let browser = Browser::start().await;
    browser.open(&replicas[0].url("/_locks")).await;
    let made = tokio::join!(
        make_realm(&replicas[1], "/luke/a/"),
        browser.wait_until("find('database-rows').innerText.includes('/luke/a/')"),
    );
    let ((), ()) = made;
    let lock = snapshot(&replicas[0]).await;
    assert!(lock["database_problem"].is_null(), "{lock}");
    // Its own locks are another matter.
    assert_eq!(browser.text("#held").await, "0");
}

#[tokio::test]
async fn nothing_is_asked_of_the_database_when_nobody_looks() {
    const LOOKER: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
         AND application_name = 'realm_server''s page of locks'";
    let database = database().await;
    let client = database.connect().await;
    let lookers = async || {
        client
            .query_one(LOOKER, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
    };
    let replica = replica_on(&database).await;
    assert_eq!(lookers().await, 0);
    let browser = Browser::start().await;
    browser.open(&replica.url("/_locks")).await;
    wait_until("one connection", async || lookers().await == 1).await;
    browser.open("about:blank").await;
    wait_until("no connection", async || lookers().await == 0).await;
}

#[tokio::test]
async fn the_page_says_when_the_stream_breaks_and_it_comes_back_by_itself() {
    let mut replica = Replica::start(&[]).await;
    let browser = Browser::start().await;
    browser.open(&replica.url("/_locks")).await;
    browser
        .wait_until("find('connection').textContent == 'Live'")
        .await;
    let ended = replica.terminate().await;
    assert!(ended.success(), "an open stream keeps no server: {ended}");
    browser
        .wait_until("find('connection').textContent == 'Reconnecting'")
        .await;
    let said = browser.text("#announcement").await;
    assert!(said.contains("connection to the server is lost"), "{said}");

    let again = Replica::start_at(replica.address(), &[]).await;
    browser
        .wait_until("find('connection').textContent == 'Live'")
        .await;
    let said = browser.text("#announcement").await;
    assert!(said.contains("is back"), "{said}");
    drop(again);
}
