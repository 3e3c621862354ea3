//! What the page looks like where that can be measured: it fits, it can be read, and it needs no scripts.

use http::StatusCode;
use serde_json::json;

use super::browser::Browser;
use super::{make_realm, patch};
use crate::support::database::database;
use crate::support::gate::{ORIGIN, key};
use crate::support::replica::Replica;
use crate::support::wait::wait_until;

/// Each text in sight whose contrast with what is behind it is below 4.5 (WCAG 2.2, 1.4.3), and how many were looked at.
const CONTRAST: &str = r"(() => {
    const channels = (color) => color.match(/[\d.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = channels(color).map((it) => it / 255)
            .map((it) => (it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        return channels(color)[3] === 0 ? behind(element.parentElement) : color;
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let looked = 0;
    const poor = [];
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
        if (element.matches('script, style, title, desc, .unseen, .unseen *')) continue;
        const style = getComputedStyle(element);
        const [one, other] = [light(element.closest('svg') ? style.fill : style.color), light(behind(element))];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        looked += 1;
        if (contrast < 4.5) poor.push([texts.currentNode.data, style.color, behind(element), contrast]);
    }
    return { looked, poor };
})()";

#[tokio::test]
async fn it_fits_a_phone_and_can_be_read_in_both_themes() {
    let database = database().await;
    let flags = [
        "--base-url",
        ORIGIN,
        "--database-url",
        database.url(),
        "--acquire-timeout",
        "60",
    ];
    let replica = Replica::start(&flags).await;
    let long = format!("/{}/{}/", "w".repeat(150), "%20".repeat(60));
    let mut holders = Vec::new();
    let mut writes = Vec::new();
    for realm in ["/luke/my-realm/", &long] {
        make_realm(&replica, realm).await;
        holders.push(database.hold(key(realm)).await);
        writes.push(patch(&replica, realm));
        database.wait_for_waiting(key(realm), 1).await;
    }
    let browser = Browser::start().await;
    for scripts in [true, false] {
        browser.run_scripts(scripts).await;
        browser.open(&replica.url("/_locks")).await;
        let rows = |table| format!("document.querySelectorAll('#{table}-rows tr').length");
        browser
            .wait_until(&format!("{} == 2", rows("realms")))
            .await;
        browser
            // The lock of a race that has just ended may be among them.
            .wait_until(&format!("{} >= 4", rows("database")))
            .await;
        browser.click("#race-form button").await;
        browser.wait_until("!find('race-outcome').hidden").await;
        for (theme, ground) in [("light", "rgb(244, 245, 248)"), ("dark", "rgb(15, 19, 26)")] {
            for width in [360, 1200] {
                browser.show_as(width, 800, theme).await;
                let seen = format!("{theme}, {width} px, scripts: {scripts}");
                let shown = "[innerWidth, getComputedStyle(document.body).backgroundColor]";
                assert_eq!(browser.eval(shown).await, json!([width, ground]), "{seen}");
                let wide = browser.eval("document.scrollingElement.scrollWidth").await;
                assert!(wide.as_u64() <= Some(width.into()), "{seen}: {wide}");
                let contrast = browser.eval(CONTRAST).await;
                assert_eq!(contrast["poor"], json!([]), "{seen}");
                assert!(contrast["looked"].as_u64() > Some(40), "{seen}: {contrast}");
            }
        }
    }
    drop(holders);
    for write in writes {
        assert_eq!(write.await.unwrap().0, StatusCode::OK);
    }
}

#[tokio::test]
async fn without_scripts_it_is_a_plain_table_of_the_moment() {
    let replica = Replica::start(&["--write-delay", "1500"]).await;
    let browser = Browser::start().await;
    browser.run_scripts(false).await;
    let make = make_realm(&replica, "/luke/a/");
    let look = async {
        browser.open(&replica.url("/_locks")).await;
        wait_until("a page with the realm", async || {
            browser.click("noscript a").await;
            browser.eval("find('realms-rows').rows.length").await == 1
        })
        .await;
    };
    tokio::join!(make, look);
    let table = "document.querySelector('#realms-table').innerText";
    let table = browser.eval(table).await;
    let table = table.as_str().unwrap();
    assert!(
        table.contains("/luke/a/") && table.contains("a claim on the whole realm"),
        "{table}"
    );
    let headers =
        "[...document.querySelectorAll('#realms-table [scope]')].map(it => it.scope).join()";
    assert_eq!(browser.eval(headers).await, "col,col,col,col,col,row");
    // What only a script could fill is not there to see.
    for selector in ["#pause", "#connection", "#longest-chart"] {
        let seen = format!("document.querySelector('{selector}').checkVisibility()");
        assert_eq!(browser.eval(&seen).await, false, "{selector}");
    }
    let note = "document.querySelector('noscript').innerText";
    let note = browser.eval(note).await;
    assert!(
        note.as_str().unwrap().starts_with("Scripts are off"),
        "{note}"
    );
}

#[tokio::test]
async fn nothing_moves_for_who_wants_no_motion() {
    let replica = Replica::start(&[]).await;
    let browser = Browser::start().await;
    let moving = "getComputedStyle(find('connection'), '::before').animationName";
    for (wish, animation) in [("no-preference", "breathe"), ("reduce", "none")] {
        let media = json!({"features": [{"name": "prefers-reduced-motion", "value": wish}]});
        browser.devtools("Emulation.setEmulatedMedia", media).await;
        browser.open(&replica.url("/_locks")).await;
        browser
            .wait_until("find('connection').textContent == 'Live'")
            .await;
        assert_eq!(browser.eval(moving).await, animation);
    }
}
