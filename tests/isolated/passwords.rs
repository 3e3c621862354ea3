//! A password in the database URL, or any part of it, is never shown: not in `Debug`, in an error, in a log, in a response, or to other
//! users of the database. Not even where the URL is wrong, so that a part of the password stands where a host or an option should.

use std::error::Error;
use std::fs;
use std::future::ready;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use tower_realm_lock::{ConnectError, RealmLocks, RealmWriteLockLayer, RealmWrites};
use tracing::level_filters::LevelFilter;

use crate::support::alone::is_alone;
use crate::support::cluster::{Cluster, free_port};
use crate::support::database::{TestDatabase, database_on, has_sessions};
use crate::support::gate::{answered, assert_lost, gate, key, patch, realms};
use crate::support::proxy::Proxy;
use crate::support::wait::{PATIENCE, wait_for};

/// Parts of the tests' passwords. None is a part of anything else.
const PARTS: [&str; 5] = ["swordf1sh", "h4lf", "th1rd", "f0urth", "halfway"];

/// The password itself, and as it is written in a URL.
pub const PASSWORD: &str = "swordf1sh@h4lf/th1rd?f0urth";
const ENCODED: &str = "swordf1sh%40h4lf%2Fth1rd%3Ff0urth";

/// All that has been logged in this process, the driver's own records among it.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs all there is from now on.
fn listen_in() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let everything = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE);
        everything.with_writer(|| Log).init();
    });
}

fn logged() -> String {
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&log).into_owned()
}

fn assert_silent(of: &str, text: &str) {
    for part in PARTS {
        let line = text.lines().find(|line| line.contains(part));
        assert!(
            line.is_none(),
            "{of} says `{part}`: {}",
            line.unwrap_or_default()
        );
    }
}

fn assert_says_nothing(of: &str, error: &ConnectError) {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        assert_silent(of, &format!("{error} {error:?} {error:#?}"));
        cause = error.source();
    }
}

/// A server that asks the user `guarded` for the password, and a database there.
pub async fn guarded() -> (Cluster, TestDatabase) {
    let cluster = Cluster::create().await;
    let database = database_on(&cluster).await;
    let admin = database.connect().await;
    // The statement is logged too.
    let hidden: Vec<String> = PASSWORD.bytes().map(|byte| format!("{byte:02x}")).collect();
    let hidden = hidden.concat();
    let role = format!(
        "DO $$BEGIN EXECUTE format('CREATE ROLE guarded LOGIN PASSWORD %L', convert_from('\\x{hidden}', 'UTF8')); END$$"
    );
    admin.batch_execute(&role).await.unwrap();
    let rules =
        "host all postgres 127.0.0.1/32 trust\nhost all guarded 127.0.0.1/32 scram-sha-256\n";
    fs::write(cluster.dir().join("data/pg_hba.conf"), rules).unwrap();
    admin
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    let wrong = database.url().replace("postgres@", "guarded:wrong@");
    wait_for("the password to be asked for", PATIENCE, async || {
        match crate::support::database::try_connect(&wrong).await {
            Ok(_) => Err("it is not".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
    (cluster, database)
}

#[tokio::test]
async fn a_whole_life_shows_no_password() {
    if !is_alone(module_path!(), "a_whole_life_shows_no_password") {
        return;
    }
    listen_in();
    let (_cluster, database) = guarded().await;
    let proxy = Proxy::to(database.url()).await;
    let (port, name) = (proxy.port(), database.name());
    let path = "/luke/a/card";
    let url = format!("postgres://guarded:{ENCODED}@127.0.0.1:{port}/{name}");
    let pairs =
        format!("host=127.0.0.1 port={port} user=guarded password='{PASSWORD}' dbname={name}");
    for builder in [
        RealmLocks::postgres_builder(&url),
        RealmLocks::postgres_builder(&pairs),
        RealmLocks::postgres_config(url.parse().unwrap()),
        RealmLocks::postgres_builder(&url.replace(ENCODED, "wrong"))
            .password_from(|| ready(Ok::<_, io::Error>(PASSWORD.into()))),
    ] {
        let builder = builder.pool_size(1).broadcast(true);
        let writes = builder.listen().await.unwrap();
        if has_sessions(&database.connect().await).await {
            let locks = builder.clone().sessions(1).build().await.unwrap();
            assert_silent("a session", &format!("{locks:?}"));
        }
        let locks = builder.clone().build().await.unwrap();
        let layer = RealmWriteLockLayer::new(locks.clone(), realms());
        let (handler, mut gate) = gate();
        let write = patch(&layer, &handler, path);
        gate.entered().await.answer(200);
        answered(write).await;
        let lost = patch(&layer, &handler, path);
        let mut call = gate.entered().await;
        for debug in [
            format!("{builder:?} {builder:#?}"),
            format!("{locks:?} {locks:#?}"),
            format!("{layer:?} {layer:#?}"),
            format!("{writes:?} {writes:#?}"),
            format!("{:?}", call.held),
        ] {
            assert_silent("Debug", &debug);
        }
        let seen = "SELECT string_agg(s::text, ' ') FROM pg_stat_activity s";
        let seen = database.connect().await.query_one(seen, &[]).await.unwrap();
        let seen: String = seen.get(0);
        assert!(seen.contains("tower-realm-lock"), "{seen}");
        assert_silent("pg_stat_activity", &seen);

        // Lost, away, and back again.
        proxy.cut();
        call.dropped().await;
        let response = answered(lost).await;
        assert_lost(&response);
        assert_silent("a rejection", &format!("{response:?}"));
        let next = patch(&layer, &handler, path);
        gate.entered().await.answer(200);
        assert_eq!(answered(next).await.status(), 200);
        database.wait_for_granted(key(path), 0).await;
    }
    let log = logged();
    for source in ["tokio_postgres", "tower_realm_lock", "a write was rejected"] {
        assert!(log.contains(source), "nothing of {source} was logged");
    }
    assert_silent("the log", &log);
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_named_without_the_password() {
    if !is_alone(
        module_path!(),
        "a_server_that_cannot_be_used_is_named_without_the_password",
    ) {
        return;
    }
    listen_in();
    let (cluster, database) = guarded().await;
    let name = database.name();
    let wrong = ENCODED.replace("f0urth", "f0urthly");
    let (open, closed) = (cluster.port(), free_port());
    for (place, says) in [
        (
            format!("127.0.0.1:{open}/{name}"),
            "correct the user or the password of the database URL",
        ),
        (format!("127.0.0.1:{closed}/{name}"), "Connection refused"),
        (format!("nowhere.invalid:{open}/{name}"), "nowhere.invalid"),
        (format!("127.0.0.1:{open}/nowhere"), "127.0.0.1"),
    ] {
        let url = format!("postgres://guarded:{wrong}@{place}");
        let refused = RealmLocks::postgres(&url).await.unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
        assert_says_nothing(&place, &refused);
        let refused = RealmWrites::listen(&url).await.unwrap_err();
        assert_says_nothing(&place, &refused);
    }
    assert_silent("the log", &logged());
}

#[tokio::test]
async fn a_url_that_cannot_be_read_shows_no_part_of_a_password() {
    if !is_alone(
        module_path!(),
        "a_url_that_cannot_be_read_shows_no_part_of_a_password",
    ) {
        return;
    }
    listen_in();
    let scheme = "it does not begin with `postgres://`";
    let end = "where its password ends is not certain";
    let unknown = "unknown option";
    let neither = "neither a URL nor a list of `key=value` pairs";
    assert_refused([
        // What ends a password before its end: the rest of it would be a host.
        (format!("postgres://u:{PASSWORD}@127.0.0.1/x"), neither),
        ("postgres://u:swordf1sh@h4lf@127.0.0.1/x".into(), end),
        ("postgres://u:swordf1sh@h4lf/th1rd@127.0.0.1/x".into(), end),
        ("postgres://u:swordf1sh/h4lf@127.0.0.1/x".into(), end),
        ("postgres://u:swordf1sh?h4lf@127.0.0.1/x".into(), end),
        (
            "postgres://127.0.0.1/x?user=u&password=swordf1sh@h4lf".into(),
            end,
        ),
        // Another scheme: all of it would be the name of an option.
        (
            "postgresql+driver://u:swordf1sh@127.0.0.1/x?sslmode=require".into(),
            scheme,
        ),
        (
            "Postgres://u:swordf1sh@127.0.0.1/x?sslmode=require".into(),
            scheme,
        ),
        (
            "postgres:/u:swordf1sh@127.0.0.1/x?sslmode=require".into(),
            unknown,
        ),
        ("u:swordf1sh@127.0.0.1/x?sslmode=require".into(), unknown),
        ("u:swordf1sh@127.0.0.1/x".into(), neither),
        // No host, so that a password is a port.
        ("postgres://u:swordf1sh/x".into(), "option `port`"),
        (
            "postgres://u:swordf1sh@127.0.0.1:h4lf/x".into(),
            "option `port`",
        ),
        ("postgres://u:swordf1sh@[h4lf/x".into(), "option `host`"),
        ("postgres://u:swordf1sh@/x?port=1".into(), "name its host"),
        ("postgres://u:swordf1sh@127.0.0.1/x?h4lf=1".into(), unknown),
        ("postgres://u:swordf1sh@127.0.0.1/x?h4lf".into(), neither),
        (
            "postgres://u:swordf1sh@127.0.0.1/x?keepalives=h4lf".into(),
            "option `keepalives`",
        ),
        (
            "postgres://u:swordf1sh@127.0.0.1/x?sslmode=on".into(),
            "sslmode cannot be on",
        ),
        // Blanks that should be in quotes.
        ("host=127.0.0.1 password=swordf1sh h4lf".into(), neither),
        (
            "host=127.0.0.1 password=swordf1sh h4lf user=u".into(),
            neither,
        ),
        (
            "host=127.0.0.1 password=swordf1sh h4lf=th1rd".into(),
            unknown,
        ),
        (
            "host=127.0.0.1 password='swordf1sh' h4lf='th1rd'".into(),
            unknown,
        ),
        (
            "host=127.0.0.1 password='swordf1sh'h4lf user=u".into(),
            neither,
        ),
        ("host=127.0.0.1 password='swordf1sh h4lf".into(), neither),
        (
            "host=127.0.0.1 password=swordf1sh port=h4lf".into(),
            "option `port`",
        ),
    ])
    .await;
}

#[tokio::test]
async fn an_option_is_named_unless_it_may_be_a_part_of_a_password() {
    let test = "an_option_is_named_unless_it_may_be_a_part_of_a_password";
    if !is_alone(module_path!(), test) {
        return;
    }
    listen_in();
    let unknown = "unknown option, which is not shown";
    assert_refused([
        // A `&` or an `@` that should be encoded.
        (
            "postgres://127.0.0.1/x?user=u&password=swordf1sh&halfway=1".into(),
            unknown,
        ),
        ("postgres://u:swordf1sh@h/x?halfway=1@h4lf".into(), unknown),
        (
            "postgres://u:swordf1sh@127.0.0.1/x?sslsni=h4lf".into(),
            "`sslsni`, which is not supported",
        ),
        (
            "postgres://u:swordf1sh@127.0.0.1/x?pgbouncer=true&connection_limit=h4lf".into(),
            "`pgbouncer`, which is not supported: leave it out",
        ),
        (
            "postgres://u:swordf1sh@127.0.0.1/x?not_ours=h4lf".into(),
            "unknown option `not_ours`: leave it out",
        ),
        (
            "host=127.0.0.1 password='swordf1sh' schema=h4lf".into(),
            "`schema`, which is not supported: leave it out",
        ),
        ("swordf1sh=halfway halfway=".into(), unknown),
    ])
    .await;
}

/// Builds with each URL, which is refused with this in the message, and with no part of a password anywhere.
async fn assert_refused<const N: usize>(urls: [(String, &str); N]) {
    for (url, says) in urls {
        let builder = RealmLocks::postgres_builder(&url);
        assert_silent(&url, &format!("{builder:?}"));
        for refused in [
            builder.build().await.map(drop),
            RealmWrites::listen(&url).await.map(drop),
        ] {
            let refused = refused.expect_err(&url);
            assert!(refused.to_string().contains(says), "{url}: {refused}");
            assert_says_nothing(&url, &refused);
        }
    }
    assert_silent("the log", &logged());
}
