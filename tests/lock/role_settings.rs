//! Time limits and modes that a role, a database or the server brings along neither cut a wait short nor end a hold. A
//! handler that shares the transaction sees its role's, and nobody sees ours.

use futures_util::future::join_all;
use tokio_postgres::Client;
use tokio_postgres::error::{Severity, SqlState};
use tower_realm_lock::{PostgresBuilder, RealmLocks, RealmWriteLockLayer};

use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::claims::{realm_key, whole, work};
use crate::support::cluster::Cluster;
use crate::support::database::{TestDatabase, database, database_on, rows, try_connect};
use crate::support::gate::{
    Call, Gate, Gated, answered, gate, patch, postgres_layer_with, postgres_locks_with,
};
use crate::support::wait::wait_until;

const PATH: &str = "/luke/a/card";

/// Limits that end waits and holds, and modes under which statements fail or wait for others.
const STRICT: [(&str, &str); 8] = [
    ("statement_timeout", "300ms"),
    ("lock_timeout", "300ms"),
    ("transaction_timeout", "300ms"),
    ("idle_in_transaction_session_timeout", "300ms"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("idle_session_timeout", "300ms"),
];

/// All that the server has of them, as a session sees them.
const SHOWN: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; \
                     SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings \
                     WHERE name ~ '^(default_transaction_.*|(statement|lock|.*transaction.*|idle_session)_timeout)$'";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scope {
    Role,
    Database,
    Server,
}

/// A database with an ordinary role whose sessions begin with strict settings. The tests' own do not.
struct Strict {
    database: TestDatabase,
    admin: Client,
    role: String,
    url: String,
    /// The names of the settings, as far as the server has them.
    names: Vec<&'static str>,
}

impl Strict {
    async fn set(database: TestDatabase, scope: Scope, settings: &[(&'static str, &str)]) -> Self {
        let name = database.name();
        let role = format!("{name}_app");
        let url = database.url().replace("postgres@", &format!("{role}@"));
        assert!(
            url.contains(&role),
            "the tests' server has another user: {url}"
        );
        let setter = database.connect().await;
        let mut names = Vec::new();
        let mut statements = vec![format!("CREATE ROLE {role} LOGIN")];
        for known in rows(&setter, "SELECT name, boot_val FROM pg_settings").await {
            let known = |column| known.get(column).unwrap_or_default();
            let Some((setting, value)) = settings.iter().find(|it| it.0 == known(0)) else {
                continue;
            };
            let whose = match scope {
                Scope::Role => format!("ROLE {role}"),
                Scope::Database => format!("DATABASE {name}"),
                Scope::Server => "SYSTEM".to_owned(),
            };
            names.push(*setting);
            let mild = known(1);
            statements.push(format!(
                "ALTER ROLE current_user IN DATABASE {name} SET {setting} TO '{mild}'"
            ));
            statements.push(format!("ALTER {whose} SET {setting} TO '{value}'"));
        }
        // Each by itself, as ALTER SYSTEM must be.
        for statement in &statements {
            setter.batch_execute(statement).await.unwrap();
        }
        let admin = database.connect().await;
        rows(&admin, "SELECT pg_reload_conf()").await;
        wait_until("the settings", async || {
            value(&try_connect(&url).await.unwrap(), "SHOW lock_timeout").await == "300ms"
        })
        .await;
        Self {
            database,
            admin,
            role,
            url,
            names,
        }
    }

    /// Returns when the server has ended whatever sessions of the role do that begin now, and set nothing.
    async fn cut(&self) {
        let mut cut = vec!["SELECT pg_sleep(60)", "BEGIN"];
        if self.has("idle_session_timeout") {
            cut.push("/* idle */");
        }
        if self.has("transaction_timeout") {
            cut.push("SET statement_timeout = 0; BEGIN; SELECT pg_sleep(60)");
        }
        let ended = cut.into_iter().map(async |begun| {
            let client = try_connect(&self.url).await.unwrap();
            let name = "SET application_name = 'control'";
            client.batch_execute(name).await.unwrap();
            if let Err(error) = client.batch_execute(begun).await {
                let error = error.as_db_error().expect("the server's error");
                let is_over = error.parsed_severity() == Some(Severity::Fatal);
                let canceled = *error.code() == SqlState::QUERY_CANCELED;
                return assert!(canceled || is_over, "{begun}: {error:?}");
            }
            wait_until(begun, async || client.is_closed()).await;
        });
        join_all(ended).await;
    }

    /// A client with a transaction open that serializable, deferrable ones wait for.
    async fn writer(&self) -> Client {
        let writer = self.database.connect().await;
        let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pg_class";
        writer.batch_execute(begin).await.unwrap();
        writer
    }

    fn has(&self, setting: &str) -> bool {
        self.names.contains(&setting)
    }

    /// The processes that serve the role's locks.
    async fn backends(&self) -> String {
        let backends = format!(
            "SELECT coalesce(string_agg(pid::text, ' ' ORDER BY pid), '') FROM pg_stat_activity \
             WHERE usename = '{}' AND application_name <> 'control'",
            self.role
        );
        value(&self.admin, &backends).await
    }

    async fn drop_role(self) {
        let drop = format!("DROP ROLE {}", self.role);
        self.admin.batch_execute(&drop).await.unwrap();
    }
}

/// The first value that the server answers.
async fn value(client: &Client, query: &str) -> String {
    let rows = rows(client, query).await;
    rows[0].get(0).expect("a value").to_owned()
}

/// Two replicas, each with one connection, or one session.
async fn replicas(url: &str, sessions: u32) -> [RealmLocks; 2] {
    let options = |builder: PostgresBuilder| {
        builder
            .pool_size(1)
            .sessions(sessions)
            .fencing(true)
            .broadcast(true)
    };
    [
        postgres_locks_with(url, options).await,
        postgres_locks_with(url, options).await,
    ]
}

/// Fails unless a hold and a wait last longer than the role's limits.
async fn assert_outlast(strict: &Strict, [one, two]: &[RealmLocks; 2]) {
    let claim = whole(["a"]);
    let first = work(one, &claim).inside().await;
    let second = work(two, &claim);
    strict.database.wait_for_waiting(realm_key("a"), 1).await;
    strict.cut().await;
    first.end().await;
    let second = second.inside().await;
    strict.cut().await;
    second.end().await;
}

async fn waits_and_holds_outlast(database: TestDatabase, scope: Scope) {
    let strict = Strict::set(database, scope, &STRICT).await;
    let _writer = strict.writer().await;
    let transactions = replicas(&strict.url, 0).await;
    assert_outlast(&strict, &transactions).await;
    if strict.has("idle_session_timeout") {
        let sessions = replicas(&strict.url, 1).await;
        assert_outlast(&strict, &sessions).await;
        // Nor are idle connections closed.
        let before = strict.backends().await;
        strict.cut().await;
        assert_eq!(strict.backends().await, before, "{scope:?}");
    }
    strict.drop_role().await;
}

#[tokio::test]
async fn a_role_neither_cuts_a_wait_short_nor_ends_a_hold() {
    waits_and_holds_outlast(database().await, Scope::Role).await;
}

#[tokio::test]
async fn a_database_neither_cuts_a_wait_short_nor_ends_a_hold() {
    waits_and_holds_outlast(database().await, Scope::Database).await;
}

#[tokio::test]
async fn a_server_neither_cuts_a_wait_short_nor_ends_a_hold() {
    let cluster = Cluster::create().await;
    waits_and_holds_outlast(database_on(&cluster).await, Scope::Server).await;
}

#[tokio::test]
async fn behind_a_bouncer_a_role_neither_cuts_a_wait_short_nor_ends_a_hold() {
    let strict = Strict::set(database().await, Scope::Role, &STRICT).await;
    let bouncer = Bouncer::to(&strict.url, Pooling::Transaction, 2).await;
    let _writer = strict.writer().await;
    let replicas = replicas(&bouncer.url(&strict.url), 0).await;
    assert_outlast(&strict, &replicas).await;
    strict.drop_role().await;
}

/// A handler inside a hold that waited for longer than the role's limits, on the backend of this process.
async fn entered(
    strict: &Strict,
    layer: &RealmWriteLockLayer,
    (handler, gate): &mut (Gated, Gate),
) -> (Call, impl Future<Output = u16> + use<>, i32) {
    let foreign = strict.database.hold(realm_key("a")).await;
    let write = patch(layer, handler, PATH);
    strict.database.wait_for_waiting(realm_key("a"), 1).await;
    strict.cut().await;
    drop(foreign);
    let call = gate.entered().await;
    let backend = strict.database.holder_pid(realm_key("a")).await;
    let status = async { answered(write).await.status().as_u16() };
    (call, status, backend.expect("a holder"))
}

/// A handler sees its role's limits for statements, and none for the transaction. Whatever it sets, the next hold is as
/// the first.
async fn a_handler_sees_its_role(strict: &Strict, url: &str, others: Option<&Client>) {
    let _writer = strict.writer().await;
    let layer = postgres_layer_with(url, |builder| builder.pool_size(1)).await;
    let layer = layer.map_locks(|locks| locks.share_transaction(true));
    let mut gate = gate();
    let mut backends = Vec::new();
    for status in [200, 404, 200] {
        let (call, ended, backend) = entered(strict, &layer, &mut gate).await;
        backends.push(backend);
        let client = call.transaction().client().unwrap();
        let shown = "SELECT concat_ws(' ', current_setting('statement_timeout'), \
                     current_setting('lock_timeout'), current_setting('transaction_isolation'), \
                     current_setting('transaction_read_only'), \
                     current_setting('idle_in_transaction_session_timeout'), \
                     current_setting('transaction_timeout', true))";
        let limits = "300ms 300ms read committed off 30s";
        assert!(value(&client, shown).await.starts_with(limits));
        let cut = client
            .batch_execute("SAVEPOINT s; SELECT pg_sleep(60)")
            .await;
        assert_eq!(cut.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
        client.batch_execute("ROLLBACK TO s").await.unwrap();
        // The transaction itself goes on, whether the handler works or not.
        strict.cut().await;
        let change = "SET statement_timeout = '20ms'; SET lock_timeout = '20ms'; \
                      SET default_transaction_read_only = on; INSERT INTO writes VALUES (1)";
        client.batch_execute(change).await.unwrap();
        drop(client);
        call.answer(status);
        assert_eq!(ended.await, status);
        strict.database.wait_for_granted(realm_key("a"), 0).await;
        if let Some(others) = others {
            let fresh = try_connect(&strict.url).await.unwrap();
            assert_eq!(value(others, SHOWN).await, value(&fresh, SHOWN).await);
            let pid = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SELECT pg_backend_pid()";
            let pid = value(others, pid).await;
            assert_eq!(pid, backend.to_string());
        }
    }
    assert!(backends.iter().all(|it| *it == backends[0]), "{backends:?}");
    let written = value(&strict.admin, "SELECT count(*) FROM writes").await;
    assert_eq!(written, "2");
}

/// Without a limit for idle sessions: those that a pooler keeps are its own matter.
async fn strict_with_a_table() -> Strict {
    let strict = Strict::set(database().await, Scope::Role, &STRICT[..7]).await;
    let create = format!(
        "CREATE TABLE writes (n int); GRANT INSERT ON writes TO {}",
        strict.role
    );
    strict.admin.batch_execute(&create).await.unwrap();
    strict
}

#[tokio::test]
async fn a_handler_sees_the_settings_of_its_role_and_leaves_none() {
    let strict = strict_with_a_table().await;
    a_handler_sees_its_role(&strict, &strict.url, None).await;
}

#[tokio::test]
async fn behind_a_bouncer_a_handler_sees_the_settings_of_its_role_and_nobody_sees_ours() {
    let strict = strict_with_a_table().await;
    let bouncer = Bouncer::to(&strict.url, Pooling::Transaction, 1).await;
    let url = bouncer.url(&strict.url);
    let others = try_connect(&url).await.unwrap();
    a_handler_sees_its_role(&strict, &url, Some(&others)).await;
}

#[tokio::test]
async fn a_bouncer_that_ends_idle_transactions_ends_no_hold() {
    let database = database().await;
    let limit = "idle_transaction_timeout = 2\n";
    let bouncer = Bouncer::with(database.url(), Pooling::Transaction, 4, limit).await;
    let url = bouncer.url(database.url());
    let layer = postgres_layer_with(&url, |builder| builder).await;
    let shared = layer
        .clone()
        .map_locks(|locks| locks.share_transaction(true));
    let (handler, mut gate) = gate();
    let writes = [
        patch(&layer, &handler, "/luke/a/card"),
        patch(&shared, &handler, "/luke/b/card"),
    ];
    let calls = [gate.entered().await, gate.entered().await];
    for _ in 0..2 {
        let idle = try_connect(&url).await.unwrap();
        idle.batch_execute("BEGIN").await.unwrap();
        wait_until("an idle transaction's end", async || idle.is_closed()).await;
    }
    for call in calls {
        call.answer(200);
    }
    for write in writes {
        assert_eq!(answered(write).await.status(), 200);
    }
}
