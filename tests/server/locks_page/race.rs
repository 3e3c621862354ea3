//! The race shows what the lock is for: with a mouse, by keyboard alone, and without scripts.

use std::fs;

use fantoccini::key::Key;
use serde_json::{Value, json};

use super::browser::Browser;
use super::snapshot;
use crate::support::database::database;
use crate::support::gate::ORIGIN;
use crate::support::replica::Replica;
use crate::support::wait::wait_until;

/// The numbers of the outcome: answered, kept and lost, without the lock and with it.
async fn numbers(browser: &Browser) -> [[u64; 3]; 2] {
    let cells = "[...document.querySelectorAll('#race-rows tr[data-kind]')].map(row => \
                 [...row.querySelectorAll('td')].map(it => Number(it.innerText)))";
    let cells = browser.eval(cells).await;
    serde_json::from_value(cells).expect("three numbers for each kind")
}

fn assert_told([without, with]: [[u64; 3]; 2]) {
    for [answered, kept, lost] in [without, with] {
        assert!(
            answered > 0 && answered == kept + lost,
            "{without:?} {with:?}"
        );
    }
    assert!(
        without[2] > 0,
        "nothing is lost without the lock: {without:?}"
    );
    assert_eq!(with[2], 0, "something is lost with the lock: {with:?}");
}

#[tokio::test]
async fn by_keyboard_alone_the_race_runs_and_the_page_stands_still() {
    let replica = Replica::start(&[]).await;
    let browser = Browser::start().await;
    browser.open(&replica.url("/_locks")).await;
    browser
        .wait_until("find('connection').textContent == 'Live'")
        .await;

    let mut reached = Vec::new();
    let focused = "(() => { const it = document.activeElement; const seen = getComputedStyle(it); \
                   return [it.innerText, seen.outlineStyle, seen.outlineWidth]; })()";
    for _ in 0..3 {
        browser.press(Key::Tab).await;
        let focus = browser.eval(focused).await;
        assert_eq!(
            (&focus[1], &focus[2]),
            (&json!("solid"), &json!("3px")),
            "{focus}"
        );
        reached.push(focus[0].clone());
    }
    assert_eq!(
        reached,
        ["Skip to the live realms", "Pause", "Run the race"]
    );

    browser.press(Key::Enter).await;
    browser.wait_until("!find('race-outcome').hidden").await;
    let told = numbers(&browser).await;
    assert_told(told);
    assert_eq!(browser.eval(focused).await[0], "Run the race");
    let said = browser.text("#announcement").await;
    assert!(said.starts_with("Without the lock "), "{said}");
    let squares = "document.querySelectorAll('#race-rows rect').length";
    let drawn = browser.eval(squares).await.as_u64().unwrap();
    // Each write has one. On a busy machine a race ends before its last round.
    let answered: u64 = told.iter().map(|[answered, ..]| answered).sum();
    assert!((answered..=80).contains(&drawn), "{drawn} for {told:?}");

    // Back to the button before it.
    let focus = browser.eval("find('pause').focus()").await;
    assert_eq!(focus, Value::Null);
    browser.press(Key::Enter).await;
    assert_eq!(browser.text("#pause").await, "Resume");
    assert_eq!(browser.text("#connection").await, "Paused");
    let drawn = "document.querySelector('#longest-chart .curve').getAttribute('points')";
    let before = browser.eval(drawn).await;
    let samples = async || snapshot(&replica).await["waits"].as_array().unwrap().len();
    let came = samples().await;
    wait_until("samples while it is paused", async || {
        samples().await > came + 2
    })
    .await;
    assert_eq!(browser.eval(drawn).await, before);
    browser.press(Key::Enter).await;
    browser
        .wait_until("find('connection').textContent == 'Live'")
        .await;
    assert_ne!(browser.eval(drawn).await, before);
}

#[tokio::test]
async fn it_runs_under_the_locks_of_the_server_and_leaves_nothing() {
    let database = database().await;
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().to_str().unwrap();
    for (lock, in_words) in [
        ("postgres", "postgres"),
        ("off", "in-process, for this race"),
    ] {
        let flags = [
            "--base-url",
            ORIGIN,
            "--database-url",
            database.url(),
            "--lock",
            lock,
            "--data-dir",
            dir,
        ];
        let replica = Replica::start(&flags).await;
        let browser = Browser::start().await;
        browser.open(&replica.url("/_locks")).await;
        browser.click("#race-form button").await;
        browser.wait_until("!find('race-outcome').hidden").await;
        assert_told(numbers(&browser).await);
        let used = browser.text("#race-rows tr[data-kind=with] .origin").await;
        assert_eq!(used, in_words);
    }
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn without_scripts_its_form_answers_with_the_page_and_a_table() {
    let replica = Replica::start(&[]).await;
    let browser = Browser::start().await;
    browser.run_scripts(false).await;
    browser.open(&replica.url("/_locks")).await;
    assert_eq!(browser.eval("find('race-outcome').hidden").await, true);
    browser.click("#race-form button").await;
    browser.wait_until("!find('race-outcome').hidden").await;
    assert_told(numbers(&browser).await);
    // A reload must not run it again.
    browser.open(&replica.url("/_locks/race")).await;
    assert_eq!(browser.eval("location.pathname").await, "/_locks");
}
