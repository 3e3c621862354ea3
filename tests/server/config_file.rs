//! Configuration files: each key takes effect, as the method of its name does; an error names what is wrong and what is right, and
//! shows no password. The bundled server's flags count before its file, and its errors have a line.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::Write;
use std::time::Duration;

use http::header::HeaderName;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::time::timeout;
use tower_realm_lock::{
    Claim, Limits, LockRules, PostgresBuilder, RealmBodyLockLayer, RealmLocks, RealmPaths,
    RouteLimits, Scope,
};

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
    let other = work(&locks, &cards("a", ["x.json"])).inside().await;
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
            "unknown field `lisen`, expected one of `listen`, `base_url`",
        ),
        (
            "\n\nsecret_sauce = 1",
            "3:1",
            "expected one of `listen`, `base_url`,",
        ),
        (
            "listen = 'nowhere'",
            "1:10",
            "write an IP address and a port",
        ),
        (
            "base_url = 'realms'",
            "1:12",
            "write an origin alone, such as",
        ),
        (
            "lock = 'postgre'",
            "1:8",
            "unknown variant `postgre`, expected one of `postgres`, `in-process`, `off`",
        ),
        ("lock = true", "1:8", "wanted string or table"),
        (
            "write_delay = 200",
            "1:15",
            "integer `200`, expected a duration",
        ),
        ("cache_cards = 'x'", "1:15", "expected usize"),
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
            "unknown field `aquire_timeout`",
        ),
        ("limits = 5", "1:10", "expected a table of limits"),
        (
            "[limits]\nmax_hold = 'ever'",
            "2:12",
            "expected a duration, such as `1m 30s`, or `none`",
        ),
        (
            "[[rules.routes]]\nmethod = 'Post'\npath = '/a'\nlock = true",
            "1:3",
            "no client sends `Post`: write `POST`",
        ),
        (
            "[[rules.routes]]\nmethod = 'POST'\npath = 'a'\nlock = true",
            "1:3",
            "`a` is not a path template",
        ),
        (
            "[[rules.routes]]\nlok = false",
            "2:1",
            "unknown field `lok`, expected one of `method`, `path`, `lock`",
        ),
        (
            "[[rules.scopes]]\nscope = 'resorce'",
            "2:9",
            "unknown variant `resorce`, expected one of `realm`, `shared`, `resource`",
        ),
        (
            "[[rules.limits]]\nmethod = 'PUT'\npath = '/a'\nbusy_status = 200",
            "1:3",
            "`200` cannot answer a request that does not get its lock",
        ),
        (
            "[[rules.limits]]\nmax_holt = '1s'",
            "2:1",
            "unknown field `max_holt`",
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
            "1:1",
            "the earlier rule `lock unsafe /{*all}` takes every request that it is for",
        ),
        (
            "[rules]\nmethod_override = { header = 'X', methods = ['QUERY'] }",
            "2:1",
            "leave it out",
        ),
        (
            "[postgres]\nlease = '50ms'",
            "1:1",
            "the option lease cannot be 50ms",
        ),
        (
            "[postgres]\npool_sise = 5",
            "2:1",
            "unknown field `pool_sise`, expected one of `url`, `pool_size`",
        ),
    ] {
        assert_refused(text, place, says).await;
    }
}

#[tokio::test]
async fn a_database_url_in_a_wrong_place_or_form_is_not_shown() {
    for (text, place, says) in [
        (
            "lock = 'postgres://u:secret@h/d'",
            "1:8",
            "not shown, because it may hold a password; expected one of `postgres`",
        ),
        (
            "cache_cards = 'host=h password=secret@'",
            "1:15",
            "not shown, because it may hold a password; expected usize",
        ),
        (
            "'postgres://u:secret@h/d' = 1",
            "1:1",
            "not shown, because it may hold a password; expected one of `listen`",
        ),
        (
            "postgres = { url = 'postgres://u:secret@h/d', pool_size = 'secret' }",
            "1:59",
            "string \"secret\", expected u32",
        ),
        (
            "postgres = 'postgres://u:secret@h/d'",
            "1:12",
            "expected a table of PostgreSQL options",
        ),
        (
            "[postgres]\nurl = 'postgres://u:secret@h:port/d'",
            "1:1",
            "the database URL cannot be read",
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

fn read<T: DeserializeOwned>(file: &str) -> T {
    toml::from_str(file).unwrap_or_else(|error| panic!("{file}: {}", error.message()))
}

/// What is wrong with a file.
fn problem<T: DeserializeOwned>(file: &str) -> String {
    match toml::from_str::<T>(file) {
        Ok(_) => panic!("{file}: it is taken"),
        Err(error) => error.message().to_owned(),
    }
}

fn assert_problem<T: DeserializeOwned>(file: &str, says: &str) {
    let problem = problem::<T>(file);
    assert!(problem.contains(says), "{file}: {problem}");
}

fn shown(value: &impl Debug) -> String {
    format!("{value:?}")
}

/// The fields that `Debug` shows at an indentation, each with all of its lines.
fn fields(value: &impl Debug, indentation: usize) -> BTreeMap<String, String> {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut name = String::new();
    for line in format!("{value:#?}").lines() {
        let text = line.trim_start();
        if line.len() - text.len() == indentation
            && let Some((field, _)) = text.split_once(": ")
        {
            field.clone_into(&mut name);
        }
        fields.entry(name.clone()).or_default().push_str(text);
    }
    fields.remove("");
    fields
}

/// The fields that a file leaves as they are by default.
fn unchanged<T: Debug + DeserializeOwned>(file: &str, indentation: usize) -> Vec<String> {
    let by_default = fields(&read::<T>(""), indentation);
    assert!(by_default.len() > 3, "{by_default:?}");
    let changed = fields(&read::<T>(file), indentation);
    let same = by_default
        .into_iter()
        .filter(|(name, value)| changed[name] == *value);
    same.map(|(name, _)| name).collect()
}

const POSTGRES: &str = "
    url = 'postgres://h/d'
    pool_size = 3
    lease = '15s'
    fencing = true
    max_hand_offs = 7
    max_hand_off_time = '20ms'
    sessions = 4
    broadcast = true
    connect_timeout = '1m'
    max_connection_lifetime = '10m'
";

#[test]
fn each_option_of_postgres_can_be_in_a_file() {
    let by_hand = RealmLocks::postgres_builder("postgres://h/d")
        .pool_size(3)
        .lease(Duration::from_secs(15))
        .fencing(true)
        .max_hand_offs(7)
        .max_hand_off_time(Duration::from_millis(20))
        .sessions(4)
        .broadcast(true)
        .connect_timeout(Duration::from_secs(60))
        .max_connection_lifetime(Duration::from_secs(600));
    assert_eq!(shown(&read::<PostgresBuilder>(POSTGRES)), shown(&by_hand));
    // A new option must be in files too, unless a URL has it.
    assert_eq!(
        unchanged::<PostgresBuilder>(POSTGRES, 4),
        ["password_from", "realm_keys", "tls"]
    );
}

#[tokio::test]
async fn options_that_a_file_leaves_out_are_as_by_default() {
    let by_default = shown(&RealmLocks::postgres_builder("postgres://h/d"));
    let json: PostgresBuilder = serde_json::from_str(r#"{"url":"postgres://h/d"}"#).unwrap();
    assert_eq!(shown(&json), by_default);
    let without_url: PostgresBuilder = read("");
    let error = without_url.clone().build().await.unwrap_err().to_string();
    assert!(error.contains("the database URL cannot be read"), "{error}");
    let with_url = without_url.url("postgres://127.0.0.1:1/elsewhere");
    let error = with_url.build().await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1/elsewhere"), "{error}");
}

#[test]
fn an_option_of_postgres_is_checked_as_build_does() {
    for (file, says) in [
        ("pool_size = 0", "the option pool_size cannot be 0"),
        ("lease = '99ms'", "the option lease cannot be 99ms"),
        ("lease = '25days'", "24 days"),
        ("sessions = 1001", "the option sessions cannot be 1001"),
        ("connect_timeout = '0s'", "connect_timeout cannot be 0"),
        (
            "max_connection_lifetime = '99ms'",
            "max_connection_lifetime cannot be 99ms",
        ),
        ("url = 'mysql://h/d'", "the database URL cannot be read"),
        ("pool_size = -1", "integer `-1`, expected u32"),
        ("pool_size = 'many'", "string \"many\", expected u32"),
        ("lease = 15", "integer `15`, expected a duration"),
        (
            "pool_sise = 1",
            "unknown field `pool_sise`, expected one of `url`, `pool_size`, `lease`",
        ),
        (
            "url = 'postgres://h/d'\nurl = 'postgres://h/d'",
            "duplicate key",
        ),
    ] {
        assert_problem::<PostgresBuilder>(file, says);
    }
}

#[test]
fn no_message_shows_a_password() {
    const URL: &str = "postgres://u:secret@h:port/d";
    for file in [
        format!("url = '{URL}'"),
        format!("url = ['{URL}']"),
        format!("url = {{ '{URL}' = 1 }}"),
        format!("urll = '{URL}'"),
        format!("'{URL}' = 1"),
        format!("pool_size = '{URL}'"),
        format!("lease = '{URL}'"),
        format!("fencing = '{URL}'"),
        format!("url = '{URL}\nlease = '1s'"),
        format!("url = {URL}"),
        format!("url = 'postgres://h/d'\nurl = '{URL}'"),
        "url = 'host=h password=secret port=x'".to_owned(),
        "pool_size = 'host=h password=secret'".to_owned(),
        "fencing = 'u:secret@h'".to_owned(),
        "'password=secret' = 1".to_owned(),
    ] {
        let problem = problem::<PostgresBuilder>(&file);
        assert!(!problem.contains("secret"), "{file}: {problem}");
    }
    for json in [
        format!(r#""{URL}""#),
        r#""secret""#.to_owned(),
        format!(r#"["{URL}"]"#),
    ] {
        let error = serde_json::from_str::<PostgresBuilder>(&json).unwrap_err();
        let problem = error.to_string();
        assert!(!problem.contains("secret"), "{json}: {problem}");
        assert!(
            problem.contains("a table of PostgreSQL options"),
            "{problem}"
        );
    }
    let builder: PostgresBuilder = read("url = 'postgres://u:secret@h/d'");
    assert!(!shown(&builder).contains("secret"));
}

#[test]
fn each_limit_of_a_file_is_the_layers() {
    let realms = RealmPaths::new("https://realms.test", "/{realm}").unwrap();
    let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 4096);
    let with = |file: &str| shown(&layer.clone().limits(read::<Limits>(file)));
    let changed =
        |change: fn(RealmBodyLockLayer) -> RealmBodyLockLayer| shown(&change(layer.clone()));
    assert_eq!(with(""), shown(&layer));
    for (file, by_hand) in [
        (
            "acquire_timeout = '250ms'",
            changed(|layer| {
                layer.map_locks(|locks| locks.acquire_timeout(Duration::from_millis(250)))
            }),
        ),
        (
            "max_hold = '1m 30s'",
            changed(|layer| layer.map_locks(|locks| locks.max_hold(Duration::from_secs(90)))),
        ),
        (
            "max_hold = 'none'",
            changed(|layer| layer.map_locks(|locks| locks.max_hold(None))),
        ),
        (
            "max_waiters_per_realm = 0",
            changed(|layer| layer.map_locks(|locks| locks.max_waiters_per_realm(0))),
        ),
        (
            "body_timeout = '3s'",
            changed(|layer| layer.body_timeout(Duration::from_secs(3))),
        ),
    ] {
        assert_eq!(with(file), by_hand, "{file}");
        assert_ne!(with(file), with(""), "{file}");
    }
}

#[test]
fn a_time_has_a_unit() {
    for time in ["10s", "500ms", "5m", "1h", "1m 30s"] {
        read::<Limits>(&format!("acquire_timeout = '{time}'"));
    }
    for time in ["10", "soon", "-1s", ""] {
        for key in ["acquire_timeout", "max_hold", "body_timeout"] {
            let file = format!("{key} = '{time}'");
            assert_problem::<Limits>(&file, "expected a duration");
        }
    }
    assert_problem::<Limits>("max_hold = 'non'", "or `none`");
    for (value, says) in [
        ("10", "integer `10`, expected a duration"),
        ("1.5", "floating point `1.5`"),
        ("true", "boolean `true`"),
    ] {
        assert_problem::<Limits>(&format!("body_timeout = {value}"), says);
    }
    assert_problem::<Limits>("max_hold = 10", "integer `10`, expected a string");
    assert_problem::<Limits>(
        "aquire_timeout = '5s'",
        "unknown field `aquire_timeout`, expected one of `acquire_timeout`, `max_hold`, \
         `max_waiters_per_realm`, `body_timeout`",
    );
}

const RULES: &str = "
    max_resources = 3
    routes = [
        { method = 'POST', path = '/{o}/{r}/_search', lock = false },
        { method = 'GET', path = '/{o}/{r}/_reindex', lock = true },
    ]
    scopes = [
        { method = 'PUT', path = '/{o}/{r}/{*card}', scope = 'realm' },
        { method = ['PATCH', 'DELETE'], path = '/{o}/{r}/{*card}', scope = 'resource' },
        { method = 'POST', path = '/{o}/{r}/_atomic', scope = 'atomic-hrefs' },
        { method = 'POST', path = '/{o}/{r}/{*card}', scope = 'shared' },
    ]
    [[limits]]
    method = 'POST'
    path = '/{o}/{r}/_batch'
    acquire_timeout = '1m'
    max_hold = 'none'
    [[limits]]
    method = 'POST'
    path = '/{o}/{r}/_export'
    max_hold = '30s'
    acquire_timeout = '0s'
    busy_status = 423
    busy_detail = 'export it later'
    [[limits]]
    method = 'PUT'
    path = '/{o}/{r}/'
    [method_override]
    header = 'X-HTTP-Method-Override'
    methods = ['QUERY', 'PROPFIND']
";

#[test]
fn each_rule_can_be_in_a_file() {
    let card = "/{o}/{r}/{*card}";
    let batch = RouteLimits::new()
        .acquire_timeout(Duration::from_secs(60))
        .max_hold(None);
    let export = RouteLimits::new()
        .acquire_timeout(Duration::ZERO)
        .max_hold(Duration::from_secs(30))
        .busy_status(StatusCode::LOCKED)
        .unwrap()
        .busy_detail("export it later");
    let by_hand = LockRules::new()
        .max_resources(3)
        .exempt(Method::POST, "/{o}/{r}/_search")
        .and_then(|rules| rules.lock(Method::GET, "/{o}/{r}/_reindex"))
        .and_then(|rules| rules.scope(Method::PUT, card, Scope::realm()))
        .and_then(|rules| rules.scope([Method::PATCH, Method::DELETE], card, Scope::resource()))
        .and_then(|rules| rules.scope(Method::POST, "/{o}/{r}/_atomic", Scope::atomic_hrefs()))
        .and_then(|rules| rules.scope(Method::POST, card, Scope::shared()))
        .and_then(|rules| rules.limits(Method::POST, "/{o}/{r}/_batch", batch))
        .and_then(|rules| rules.limits(Method::POST, "/{o}/{r}/_export", export.clone()))
        .and_then(|rules| rules.limits(Method::PUT, "/{o}/{r}/", RouteLimits::new()))
        .unwrap()
        .method_override(
            HeaderName::from_static("x-http-method-override"),
            [Method::QUERY, Method::from_bytes(b"PROPFIND").unwrap()],
        );
    assert_eq!(shown(&read::<LockRules>(RULES)), shown(&by_hand));
    assert_eq!(shown(&read::<LockRules>("")), shown(&LockRules::new()));
    // A new kind of rule, and a new limit of a route, must be in files too.
    let unchanged = unchanged::<LockRules>(RULES, 8);
    assert!(unchanged.is_empty(), "{unchanged:?}");
    let unset: Vec<_> = fields(&export, 4)
        .into_values()
        .filter(|it| it.contains("None"))
        .collect();
    assert!(unset.is_empty(), "{unset:?}");
}

#[test]
fn the_first_route_of_a_file_that_fits_decides() {
    let lock = "{ method = 'POST', path = '/{o}/{r}/_search', lock = true }";
    let exempt = "{ method = 'POST', path = '/{o}/{r}/{*rest}', lock = false }";
    let rules: LockRules = read(&format!("routes = [{lock}, {exempt}]"));
    assert!(rules.locks(&Method::POST, "/a/b/_search"));
    assert!(!rules.locks(&Method::POST, "/a/b/_find"));
}

#[test]
fn a_rule_of_a_file_that_an_earlier_one_hides_is_refused() {
    let wide = "method = 'unsafe', path = '/{o}/{r}/{*rest}'";
    let narrow = "method = ['PUT', 'POST'], path = '/{o}/{r}/_search'";
    for (kind, value) in [
        ("routes", "lock = true"),
        ("scopes", "scope = 'shared'"),
        ("limits", "max_hold = '1s'"),
    ] {
        let rules = |order: [&str; 2]| {
            let rules = order.map(|rule| format!("{{ {rule}, {value} }}"));
            format!("{kind} = [{}]", rules.join(", "))
        };
        read::<LockRules>(&rules([narrow, wide]));
        let file = rules([wide, narrow]);
        let says = "PUT, POST /{o}/{r}/_search` cannot be used: it is never reached";
        assert_problem::<LockRules>(&file, says);
        assert_problem::<LockRules>(&file, "unsafe /{o}/{r}/{*rest}");
    }
}

#[test]
fn a_rule_of_a_file_is_for_one_method_for_several_or_for_all_that_are_not_safe() {
    let exempted = |method: &str| {
        let route = format!("{{ method = {method}, path = '/x', lock = false }}");
        let rules: LockRules = read(&format!("routes = [{route}]"));
        let methods = [Method::PUT, Method::PATCH, Method::POST];
        methods.map(|method| !rules.locks(&method, "/x"))
    };
    assert_eq!(exempted("'PUT'"), [true, false, false]);
    assert_eq!(exempted("['PUT', 'PATCH']"), [true, true, false]);
    assert_eq!(exempted("'unsafe'"), [true, true, true]);
}

#[test]
fn rules_can_be_in_json() {
    let json = r#"{ "routes": [{ "method": "POST", "path": "/_search", "lock": false }] }"#;
    let rules: LockRules = serde_json::from_str(json).unwrap();
    assert!(!rules.locks(&Method::POST, "/_search"));
    let twice = serde_json::from_str::<LockRules>(r#"{ "scopes": [], "scopes": [] }"#);
    let twice = twice.unwrap_err().to_string();
    assert!(
        twice.starts_with("duplicate field `scopes` at line 1"),
        "{twice}"
    );
}

#[test]
fn what_is_wrong_with_rules_is_named() {
    for (file, says) in [
        (
            "route = []",
            "unknown field `route`, expected one of `routes`, `scopes`, `limits`",
        ),
        (
            "routes = 5",
            "invalid type: integer `5`, expected a sequence",
        ),
        (
            "routes = [5]",
            "integer `5`, expected a table of method, path and lock",
        ),
        (
            "routes = [{ metod = 'POST' }]",
            "unknown field `metod`, expected one of `method`, `path`, `lock`",
        ),
        (
            "routes = [{ method = 'post', path = '/a', lock = true }]",
            "no client sends `post`: write `POST`",
        ),
        (
            "routes = [{ method = ['PUT', 'post'], path = '/a', lock = true }]",
            "no client sends `post`: write `POST`",
        ),
        (
            "routes = [{ method = ['PUT', 'unsafe'], path = '/a', lock = true }]",
            "`unsafe` stands for many methods: write it alone",
        ),
        (
            "method_override = { header = 'X-M', methods = ['query'] }",
            "no client sends `query`: write `QUERY`",
        ),
        (
            "routes = [{ method = 'POST', path = '/\u{fffd}', lock = true }]",
            "stands for bytes that are no text",
        ),
        (
            "routes = [{ method = 'A B', path = '/a', lock = true }]",
            "`A B` is not an HTTP method",
        ),
        (
            "routes = [{ method = 1 }]",
            "expected a method, a list of them, or `unsafe`",
        ),
        ("routes = [{ method = ['PUT', 1] }]", "a list of them"),
        (
            "routes = [{ method = [], path = '/a', lock = true }]",
            "it has no method: name at least one",
        ),
        (
            "routes = [{ method = 'POST', path = '/{a', lock = true }]",
            "`/{a` is not a path template: in `{a` a parameter is only a part",
        ),
        (
            "routes = [{ lock = 'no' }]",
            "string \"no\", expected a boolean",
        ),
        (
            "routes = [{ method = 'POST', path = '/a' }]",
            "missing field `lock`",
        ),
        (
            "scopes = [{ scope = 'resorce' }]",
            "unknown variant `resorce`, expected one of `realm`, `shared`, `resource`, `atomic-hrefs`",
        ),
        ("scopes = [{ pat = '/' }]", "unknown field `pat`"),
        ("scopes = [{}]", "missing field `method`"),
        ("max_resources = -1", "integer `-1`, expected usize"),
        (
            "max_resources = 1.5",
            "floating point `1.5`, expected usize",
        ),
        (
            "method_override = { headers = 'X' }",
            "expected `header` or `methods`",
        ),
        (
            "method_override = { header = 'a b', methods = [] }",
            "`a b` is not the name of a header",
        ),
        (
            "method_override = { header = 'X-M', methods = ['A B'] }",
            "`A B` is not an HTTP method",
        ),
        (
            "method_override.methods = [1]",
            "integer `1`, expected a string",
        ),
        (
            "method_override = { header = 'X-M' }",
            "missing field `methods`",
        ),
    ] {
        assert_problem::<LockRules>(file, says);
    }
}

#[test]
fn what_is_wrong_with_the_limits_of_a_route_is_named() {
    for (file, says) in [
        (
            "limits = 5",
            "invalid type: integer `5`, expected a sequence",
        ),
        (
            "limits = [{ max_waiters = 1 }]",
            "expected one of `method`, `path`, `acquire_timeout`, `max_hold`, `busy_status`, `busy_detail`",
        ),
        ("limits = [{ max_hold = '1s' }]", "missing field `method`"),
        (
            "limits = [{ acquire_timeout = 5 }]",
            "integer `5`, expected a duration",
        ),
        ("limits = [{ max_hold = 'non' }]", "or `none`"),
        (
            "limits = [{ busy_status = '423' }]",
            "string \"423\", expected u16",
        ),
        (
            "limits = [{ method = 'PUT', path = '/a', busy_status = 302 }]",
            "`302` cannot answer a request that does not get its lock: write a status from 400 to 599",
        ),
        (
            "limits = [{ method = 'PUT', path = '/a', busy_status = 1000 }]",
            "`1000` cannot answer a request that does not get its lock",
        ),
        (
            "limits = [{ busy_status = 66000 }]",
            "integer `66000`, expected u16",
        ),
        (
            "limits = [{ busy_detail = 1 }]",
            "integer `1`, expected a string",
        ),
    ] {
        assert_problem::<LockRules>(file, says);
    }
}

#[test]
fn a_name_for_resources_goes_to_each_scope_of_a_file() {
    let own = Scope::resource().named_by(|_| "own".to_owned());
    let card = "/{o}/{r}/{*card}";
    let file = format!("scopes = [{{ method = 'PATCH', path = '{card}', scope = 'resource' }}]");
    let rules = read::<LockRules>(&file)
        .scope(Method::PUT, card, own)
        .unwrap();
    let realms = RealmPaths::new("https://r.example", "/{o}/{r}").unwrap();
    let realm = realms.resolve("/a/b/").unwrap();
    let claims = |rules: &LockRules| {
        let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms.clone(), 64);
        let layer = layer.rules(rules.clone());
        [Method::PATCH, Method::PUT]
            .map(|method| layer.explain(&method, "/a/b/x.json").claim().cloned())
    };
    let one = |name: &str| Some(Claim::resources(&realm, [name]));
    assert_eq!(claims(&rules), [one("x.json"), one("own")]);
    let stem = |path: &str| path.trim_end_matches(".json").to_owned();
    assert_eq!(claims(&rules.named_by(stem)), [one("x"), one("own")]);
}

#[test]
fn each_key_of_realms_takes_effect() {
    let realms: RealmPaths = read(
        "base_path_stripped = true
        also = ['/b/{tenant}']
        named = 'https://realms.test/{tenant}'
        pattern = '/a/{x}/{tenant}'
        base_url = 'https://h/api'",
    );
    for path in ["/a/1/acme/x", "/b/acme/x"] {
        let realm = realms.resolve(path).unwrap();
        assert_eq!(realm.as_str(), "https://realms.test/acme/", "{path}");
    }
    assert!(realms.resolve("/api/b/acme/x").is_err());
    for (file, says) in [
        ("base_url = 'https://h'", "missing field `pattern`"),
        ("pattern = '/{a}'", "missing field `base_url`"),
        (
            "base_ulr = 'https://h'",
            "unknown field `base_ulr`, expected one of `base_url`",
        ),
        ("base_url = 7", "integer `7`, expected a string"),
        ("base_url = 'h'\npattern = '/{a}'", "`h` is not a realm URL"),
        (
            "base_url = 'https://h'\npattern = 'a'",
            "`a` is not a path template",
        ),
        (
            "base_url = 'https://h'\npattern = '/{a}'\nalso = ['/{b}']",
            "no `{a}`",
        ),
        (
            "base_url = 'https://h'\npattern = '/{a}'\nnamed = '/{b}'",
            "no `{b}`",
        ),
    ] {
        assert_problem::<RealmPaths>(file, says);
    }
}
