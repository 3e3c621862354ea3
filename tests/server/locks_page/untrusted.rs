//! Names that others chose are text, wherever they come from, and the page asks nobody but its server.

use http::StatusCode;
use serde_json::json;

use super::browser::Browser;
use super::{make_realm, patch, replica_on};
use crate::support::database::database;
use crate::support::gate::key;
use crate::support::replica::Replica;

/// A realm whose URL stays as it is here: what HTML would read as markup in it is in entities, which must stay as well.
const REALM: &str = "/&lt;img%20src=x%20onerror=document.title='owned'&gt;/%3Cscript%3E&'&amp;/";

/// What a session of the database says of itself.
const MARKUP: &str = "<img src=x onerror=document.title=1>\"&amp;</script>";

#[tokio::test]
async fn names_that_are_markup_are_shown_as_text_and_run_nothing() {
    let database = database().await;
    let replica = replica_on(&database).await;
    make_realm(&replica, REALM).await;
    let holder = database.hold(key(REALM)).await;
    let name = format!(
        "SET application_name = '{MARKUP}'; SELECT pg_advisory_xact_lock(1) /* realm http://h/{MARKUP} */"
    );
    holder.batch_execute(&name).await.unwrap();
    let write = patch(&replica, REALM);
    database.wait_for_waiting(key(REALM), 1).await;

    for scripts in [true, false] {
        let browser = Browser::start().await;
        browser.run_scripts(scripts).await;
        browser.open(&replica.url("/_locks")).await;
        let session = format!("{MARKUP} at 127.0.0.1");
        let told = format!("/{MARKUP}");
        for (table, text) in [
            ("realms", REALM),
            ("database", REALM),
            ("database", &told),
            ("database", &session),
        ] {
            let shown = format!("find('{table}-rows').innerText.includes({})", json!(text));
            browser.wait_until(&shown).await;
        }

        let made = browser
            .eval("document.querySelectorAll('img').length")
            .await;
        assert_eq!(made, 0, "scripts: {scripts}");
        let title = browser.eval("document.title").await;
        let expected = format!("Realm locks · {}", replica.address());
        assert_eq!(title, expected, "scripts: {scripts}");
    }
    drop(holder);
    assert_eq!(write.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn the_page_asks_its_server_alone_and_runs_its_own_script_alone() {
    let replica = Replica::start(&[]).await;
    let browser = Browser::start().await;
    browser.open(&replica.url("/_locks")).await;
    browser
        .wait_until("find('connection').textContent == 'Live'")
        .await;
    browser.click("#race-form button").await;
    browser.wait_until("!find('race-outcome').hidden").await;
    let asked = browser.requests().await;
    let elsewhere: Vec<_> = asked
        .iter()
        .filter(|url| url.starts_with("http") && !url.starts_with(&replica.url("/")))
        .collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
    for path in ["/_locks", "/_locks/events", "/_locks/race"] {
        assert!(asked.contains(&replica.url(path)), "{path}: {asked:?}");
    }

    // Had anything got in, it could neither run nor tell.
    let attempts = "(() => { globalThis.refused = []; \
        document.addEventListener('securitypolicyviolation', it => refused.push(it.effectiveDirective)); \
        const script = document.createElement('script'); script.textContent = 'globalThis.owned = true'; \
        const image = new Image(); image.src = 'http://127.0.0.1:1/x'; \
        const style = document.createElement('style'); style.textContent = 'body { display: none }'; \
        document.body.append(script, image, style); fetch('http://127.0.0.1:1/x').catch(() => {}); \
        return globalThis.owned ?? false; })()";
    assert_eq!(browser.eval(attempts).await, false);
    browser.wait_until("refused.length == 4").await;
    let refused = browser.eval("refused.sort()").await;
    let directives = [
        "connect-src",
        "img-src",
        "script-src-elem",
        "style-src-elem",
    ];
    assert_eq!(refused, json!(directives));
}
