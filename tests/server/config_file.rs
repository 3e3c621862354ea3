//! The bundled server reads a file: what it says takes effect, a flag counts before it, and what is wrong in it is told with its
//! line.

use std::io::Write;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::time::timeout;

use crate::support::claims::{cards, realm_key, work};
use crate::support::client::{CardClient, card};
use crate::support::database::{TestDatabase, database};
use crate::support::gate::{ORIGIN, postgres_locks_with};
use crate::support::replica::{self, Replica};
use crate::support::wait::PATIENCE;

/// The file in the repository that shows all keys.
const SAMPLE: &str = "examples/realm_server.toml";

/// The file as a flag, and what keeps it.
fn written(text: &str) -> (NamedTempFile, String) {
    let mut file = NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let flag = format!("--config={}", file.path().display());
    (file, flag)
}

/// A replica with locks in a database and the given tables in its file.
async fn replica(database: &TestDatabase, tables: &str, flags: &[&str]) -> Replica {
    let url = database.url();
    let text = format!("base_url = '{ORIGIN}'\n{tables}\n[postgres]\nurl = '{url}'\npool_size = 4");
    let (_file, config) = written(&text);
    Replica::start(&[&[config.as_str()], flags].concat()).await
}

/// How a write of a document is answered: its status, and why if it is refused.
async fn answer(replica: &Replica, method: Method, path: &str) -> (StatusCode, Value) {
    let document = match path.rsplit('/').next() {
        Some("_atomic") => json!({"atomic:operations": []}),
        Some("_delete-realm") => json!({"realmURL": format!("{ORIGIN}/luke/a/")}),
        _ => card(json!({})),
    };
    let url = replica.url(path);
    let client = CardClient::new();
    let sent = client.send(method, &url, Some(&document));
    // Well below the default of ten seconds.
    let answer = timeout(Duration::from_secs(8), sent).await;
    let (status, document) = answer.expect("an answer before the default").unwrap();
    (status, document["errors"][0]["code"].clone())
}

fn timed_out() -> (StatusCode, Value) {
    (StatusCode::SERVICE_UNAVAILABLE, "lock-timeout".into())
}

const LIMITS: &str = "[limits]\nacquire_timeout = '200ms'";

#[tokio::test]
async fn limits_of_the_file_take_effect() {
    let database = database().await;
    let replica = replica(&database, LIMITS, &[]).await;
    let _held = database.hold(realm_key("a")).await;
    let patched = answer(&replica, Method::PATCH, "/luke/a/x").await;
    assert_eq!(patched, timed_out());
    let elsewhere = answer(&replica, Method::PATCH, "/luke/b/x").await;
    assert_eq!(elsewhere.0, StatusCode::NOT_FOUND);
    // Changes to whole realms have them too.
    let deleted = answer(&replica, Method::DELETE, "/_delete-realm").await;
    assert_eq!(deleted, timed_out());
}

#[tokio::test]
async fn a_flag_counts_before_the_file() {
    let database = database().await;
    let (_file, config) = written(
        "listen = '127.0.0.1:1'\nlock = 'off'\n\
         [limits]\nacquire_timeout = '1h'\n\
         [postgres]\nurl = 'postgres://127.0.0.1:1/none'\nlease = '30s'",
    );
    let replica = Replica::start(&[
        &config,
        "--base-url",
        ORIGIN,
        "--lock=postgres",
        "--database-url",
        database.url(),
        "--acquire-timeout=0.2",
    ])
    .await;
    let _held = database.hold(realm_key("a")).await;
    let patched = answer(&replica, Method::PATCH, "/luke/a/x").await;
    assert_eq!(patched, timed_out());
}

#[tokio::test]
async fn the_environment_counts_before_the_file_and_a_flag_before_both() {
    // Nothing listens there: each tells where it was looked for.
    let (_file, config) = written("[postgres]\nurl = 'postgres://127.0.0.1:1/file'");
    let environment = [("DATABASE_URL", "postgres://127.0.0.1:1/environment")];
    let flag = "--database-url=postgres://127.0.0.1:1/flag";
    for (variables, flags, database) in [
        (&[][..], &[config.as_str()][..], "file"),
        (&environment, &[&config], "environment"),
        (&environment, &[&config, flag], "flag"),
        // Set, and not meant.
        (&[("DATABASE_URL", "")], &[&config], "file"),
    ] {
        let run = replica::run_in(variables, flags).await;
        let told = run.stderr.contains(&format!("127.0.0.1:1/{database}: "));
        assert!(told && run.code == Some(1), "{database}: {run:?}");
    }
}

#[tokio::test]
async fn a_route_of_the_files_rules_passes_a_held_lock_and_is_told_at_the_start() {
    let database = database().await;
    let rules = "[rules]\nroutes = [
        { method = ['POST', 'PUT'], path = '/{owner}/{realm}/', lock = false },
    ]";
    for (rules, created) in [(rules, StatusCode::CREATED), ("", timed_out().0)] {
        let replica = replica(&database, &format!("{LIMITS}\n{rules}"), &[]).await;
        let held = database.hold(realm_key("a")).await;
        let posted = answer(&replica, Method::POST, "/luke/a/").await;
        assert_eq!(posted.0, created);
        let patched = answer(&replica, Method::PATCH, "/luke/a/x").await;
        assert_eq!(patched, timed_out());
        let warning = "POST /owner/realm/ pass without a lock";
        assert_eq!(replica.stderr().contains(warning), !rules.is_empty());
        held.batch_execute("ROLLBACK").await.unwrap();
    }
}

#[tokio::test]
async fn limits_of_a_route_of_the_file_take_effect() {
    let database = database().await;
    let tables = "[limits]\nacquire_timeout = '1h'
        [[rules.limits]]
        method = 'PATCH'
        path = '/{owner}/{realm}/{*card}'
        acquire_timeout = '200ms'
        busy_status = 423
        busy_detail = 'come back later'";
    let replica = replica(&database, tables, &[]).await;
    let held = database.hold(realm_key("a")).await;
    let client = CardClient::new();
    let document = card(json!({}));
    let url = replica.url("/luke/a/x");
    let sent = client.send(Method::PATCH, &url, Some(&document));
    let (status, document) = timeout(PATIENCE, sent).await.unwrap().unwrap();
    assert_eq!(status, StatusCode::LOCKED);
    let error = &document["errors"][0];
    assert_eq!(
        (&error["status"], &error["code"]),
        (&"423".into(), &"lock-timeout".into())
    );
    assert_eq!(error["detail"], "come back later");
    // Another route has an hour.
    let url = replica.url("/luke/a/");
    let posted = tokio::spawn(async move {
        client
            .send(Method::POST, &url, Some(&card(json!({}))))
            .await
    });
    database.wait_for_waiting(realm_key("a"), 1).await;
    held.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(posted.await.unwrap().unwrap().0, StatusCode::CREATED);
}

#[tokio::test]
async fn a_scope_of_the_file_locks_the_card_in_all_its_spellings_and_atomic_documents_whole() {
    let database = database().await;
    let scopes = "[rules]\nscopes = [
        { method = 'PATCH', path = '/{owner}/{realm}/{*card}', scope = 'resource' },
        { method = 'POST', path = '/{owner}/{realm}/{*card}', scope = 'resource' },
    ]";
    let replica = replica(&database, &format!("{LIMITS}\n{scopes}"), &[]).await;
    // Another replica writes one card.
    let locks = postgres_locks_with(database.url(), |builder| builder).await;
    let other = work(&locks, &cards("a", ["x"])).inside().await;
    for path in ["/luke/a/x", "/luke/a/x.json"] {
        let patched = answer(&replica, Method::PATCH, path).await;
        assert_eq!(patched, timed_out(), "{path}");
    }
    let beside = answer(&replica, Method::PATCH, "/luke/a/y").await;
    assert_eq!(beside.0, StatusCode::NOT_FOUND);
    let atomic = answer(&replica, Method::POST, "/luke/a/_atomic").await;
    assert_eq!(atomic, timed_out());
    other.end().await;
}

/// What a replica says of a file that it refuses, before it serves: the place, and what is wrong there.
async fn assert_refused(text: &str, place: &str, says: &str) {
    let (file, config) = written(text);
    let run = replica::run(&[&config]).await;
    assert_eq!(run.code, Some(2), "{text}: {run:?}");
    let at = format!("error: {}:{place}: ", file.path().display());
    let told = run.stderr.starts_with(&at) && run.stderr.contains(says);
    assert!(told, "{text}: {run:?}");
    let quiet = run.stdout.is_empty() && !run.stderr.contains("secret@");
    assert!(quiet, "{text}: {run:?}");
}

#[tokio::test]
async fn what_is_no_toml_is_told_with_its_line() {
    for (text, place, says) in [
        ("listen = \n", "1:10", "must be quoted"),
        ("a = 1\na = 2", "2:1", "duplicate key"),
    ] {
        assert_refused(text, place, says).await;
    }
}

#[tokio::test]
async fn a_wrong_key_or_value_of_the_servers_own_is_told_with_its_line() {
    for (text, place, says) in [
        (
            "lisen = 'x'",
            "1:1",
            "unknown key `lisen` in the file: did you mean `listen`?",
        ),
        ("\n\nsecret_sauce = 1", "3:1", "write `listen`, `base_url`,"),
        (
            "listen = 'nowhere'",
            "1:10",
            "`listen`: `nowhere` cannot be used: write an IP address",
        ),
        (
            "base_url = 'realms'",
            "1:12",
            "write an origin alone, such as",
        ),
        ("lock = 'postgre'", "1:8", "did you mean `postgres`?"),
        (
            "lock = true",
            "1:8",
            "boolean `true`, expected a name for `lock`",
        ),
        (
            "write_delay = 200",
            "1:15",
            "integer `200`, expected a time with its unit",
        ),
        ("cache_cards = 'x'", "1:15", "expected a whole number"),
    ] {
        assert_refused(text, place, says).await;
    }
}

#[tokio::test]
async fn a_wrong_limit_rule_or_option_is_told_with_its_line() {
    for (text, place, says) in [
        (
            "[limits]\naquire_timeout = '5s'",
            "2:1",
            "did you mean `acquire_timeout`?",
        ),
        ("limits = 5", "1:10", "expected a table with the limits"),
        (
            "[limits]\nmax_hold = 'ever'",
            "2:12",
            "`ever`, expected a time with its unit",
        ),
        (
            "[[rules.routes]]\nmethod = 'Post'",
            "2:10",
            "`Post` is not a method",
        ),
        (
            "[[rules.routes]]\npath = 'a'",
            "2:8",
            "`a` is not a path template",
        ),
        (
            "[[rules.routes]]\nlok = false",
            "2:1",
            "did you mean `lock`?",
        ),
        (
            "[[rules.scopes]]\nscope = 'resorce'",
            "2:9",
            "did you mean `resource`?",
        ),
        (
            "[[rules.limits]]\nbusy_status = 200",
            "2:15",
            "`200` cannot answer a request that does not get its lock",
        ),
        (
            "[[rules.limits]]\nmax_holt = '1s'",
            "2:1",
            "did you mean `max_hold`?",
        ),
        (
            "[[rules.scopes]]\nmethod = 'PATCH'\npath = '/{*card}'\nscope = 'shared'",
            "4:9",
            "`shared` is not for this server",
        ),
        (
            "[rules]\nroutes = [
                { method = 'unsafe', path = '/{*all}', lock = true },
                { method = ['PUT', 'POST'], path = '/x', lock = false },
            ]",
            "2:10",
            "the earlier rule `lock unsafe /{*all}` takes every request that it is for",
        ),
        (
            "[rules]\nmethod_override = { header = 'X', methods = ['QUERY'] }",
            "2:1",
            "leave it out",
        ),
        (
            "[postgres]\nlease = '50ms'",
            "2:9",
            "the option lease cannot be 50ms",
        ),
        (
            "[postgres]\npool_sise = 5",
            "2:1",
            "did you mean `pool_size`?",
        ),
    ] {
        assert_refused(text, place, says).await;
    }
}

#[tokio::test]
async fn a_database_url_in_a_wrong_place_or_form_is_not_shown() {
    for (text, place, says) in [
        (
            "postgres = { url = 'postgres://u:secret@h/d', pool_size = 'secret' }",
            "1:59",
            "expected a whole number",
        ),
        (
            "postgres = 'postgres://u:secret@h/d'",
            "1:12",
            "expected a table",
        ),
        (
            "[postgres]\nurl = 'postgres://u:secret@h:port/d'",
            "2:7",
            "`url`: the database URL",
        ),
        (
            "[postgres]\nurl = postgres://u:secret@h/d",
            "2:7",
            "string values must be quoted",
        ),
        (
            "[postgres]\nurl = 'postgres://u:secret@h/d",
            "2:31",
            "invalid literal string",
        ),
    ] {
        assert_refused(text, place, says).await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_told_with_its_name() {
    let mut bytes = NamedTempFile::new().unwrap();
    bytes.write_all(b"\xff").unwrap();
    let bytes = bytes.path().to_str().unwrap();
    for path in ["/nowhere/realms.toml", "/", bytes] {
        let run = replica::run(&["--config", path]).await;
        assert_eq!(run.code, Some(2), "{run:?}");
        let says = format!("error: cannot read --config {path}: ");
        assert!(
            run.stderr.starts_with(&says) && run.stdout.is_empty(),
            "{run:?}"
        );
    }
    let (_file, config) = written("[postgres]\nlease = '15s'");
    let run = replica::run(&[&config]).await;
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("write `url` in [postgres]"), "{run:?}");
}

#[tokio::test]
async fn the_sample_file_and_the_options_pages_are_taken() {
    let page = include_str!("../../docs/options.md");
    let (_, rest) = page.split_once("```toml\n[limits]").expect("a file");
    let (file, _) = rest.split_once("```").expect("its end");
    let (_file, pages) = written(&format!("[limits]{file}"));
    let sample = format!("--config={SAMPLE}");
    for config in [pages, sample] {
        let replica = Replica::start(&[&config, "--lock=in-process"]).await;
        let created = answer(&replica, Method::POST, "/luke/a/").await;
        assert_eq!(created.0, StatusCode::CREATED, "{config}");
    }
}
