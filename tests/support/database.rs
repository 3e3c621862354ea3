//! A fresh database for each test, and a view of who holds and who waits for advisory locks in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process, thread};

use tokio::sync::{Mutex, OnceCell};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row, SimpleQueryMessage, SimpleQueryRow};

use super::cluster::Cluster;
use super::wait::{PATIENCE, wait_for};

/// Names an existing server to use instead of a throwaway one; its user must be allowed to create databases.
const SERVER_VARIABLE: &str = "TEST_DATABASE_URL";

/// The throwaway server of this test process. It is never dropped: its keeper removes it when the process ends.
static SHARED: OnceCell<Cluster> = OnceCell::const_new();

/// A new, empty database on the server that `TEST_DATABASE_URL` names, or else on a throwaway one that all tests of
/// this process share.
///
/// # Panics
/// When the server that `TEST_DATABASE_URL` names cannot be used, or PostgreSQL is not installed.
pub async fn database() -> TestDatabase {
    match env::var(SERVER_VARIABLE) {
        Ok(server) => {
            let mut database = TestDatabase::create(&server)
                .await
                .unwrap_or_else(|error| panic!("{SERVER_VARIABLE} ({server}): {error}"));
            database.outlives_tests = true;
            database
        }
        Err(_) => database_on(SHARED.get_or_init(Cluster::create).await).await,
    }
}

/// A new, empty database on a cluster of the test's own, for a test that stops or restarts the server.
pub async fn database_on(cluster: &Cluster) -> TestDatabase {
    TestDatabase::create(&cluster.url())
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", cluster.url()))
}

/// A connection to `url` that its own task drives; it ends with the client or the runtime.
pub async fn try_connect(url: &str) -> Result<Client, String> {
    let connected = tokio_postgres::connect(url, NoTls).await;
    let (client, connection) = connected.map_err(|error| explain(&error))?;
    // The client's next query tells of the connection's end.
    tokio::spawn(async { drop(connection.await) });
    Ok(client)
}

/// The rows of all statements of `sql`, as text.
///
/// # Panics
/// When it fails.
pub async fn rows(client: &Client, sql: &str) -> Vec<SimpleQueryRow> {
    let messages = client.simple_query(sql).await;
    let messages = messages.unwrap_or_else(|error| panic!("{sql}: {}", explain(&error)));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// The major version of a server.
pub async fn server_version(client: &Client) -> u32 {
    let version = "SELECT current_setting('server_version_num')::int / 10000 AS version";
    let version = rows(client, version).await[0]
        .get("version")
        .map(str::parse);
    version.expect("a version").expect("a number")
}

/// Whether the server has what sessions need. A test of sessions ends here on PostgreSQL 13, which has no
/// `idle_session_timeout`; the test `sessions_refused` shows that sessions are refused there.
pub async fn has_sessions(client: &Client) -> bool {
    let version = server_version(client).await;
    if version < 14 {
        eprintln!("not tested on PostgreSQL {version}: sessions, which need PostgreSQL 14");
    }
    version >= 14
}

/// Whether the tests' server has what a replica with these flags needs: see [`has_sessions`].
pub async fn has_what_is_needed(flags: &[&str]) -> bool {
    !flags.contains(&"--sessions") || has_sessions(&database().await.connect().await).await
}

/// A database of one test's own.
///
/// It looks at itself through an administrative connection, which comes back by itself after a restart of the server.
pub struct TestDatabase {
    server: String,
    name: String,
    url: String,
    admin: Mutex<Option<Arc<Client>>>,
    /// On a throwaway server the database goes with the server; on any other it must be dropped.
    outlives_tests: bool,
}

impl TestDatabase {
    pub async fn create(server: &str) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let client = try_connect(server).await?;
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("trl_{}_{count}", process::id());
            // template0 is never in use, so that tests can create theirs side by side.
            let created = client
                .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0"))
                .await;
            match created {
                // Left by an earlier process of the same id, or another machine's.
                Err(error) if error.code() == Some(&SqlState::DUPLICATE_DATABASE) => {}
                Err(error) => return Err(format!("cannot create {name}: {}", explain(&error))),
                Ok(()) => {
                    return Ok(Self {
                        server: server.to_owned(),
                        url: with_database(server, &name),
                        name,
                        admin: Mutex::new(None),
                        outlives_tests: false,
                    });
                }
            }
        }
    }

    /// The connection URL of this database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its name: `trl_<process id>_<number>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A new connection of the test's own.
    pub async fn connect(&self) -> Client {
        try_connect(&self.url)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", self.url))
    }

    /// Makes sessions that begin from now on miss `idle_session_timeout`, as those of PostgreSQL 13
    /// do: a function in front of the built-in one refuses to set it.
    pub async fn without_session_timeout(&self) {
        let name = &self.name;
        let admin = self.connect().await;
        admin
            .batch_execute(&format!(
                "CREATE SCHEMA old; \
                 CREATE FUNCTION old.set_config(text, text, boolean) RETURNS text \
                 LANGUAGE plpgsql AS $$ \
                 BEGIN \
                     IF $1 <> 'idle_session_timeout' \
                     THEN RETURN pg_catalog.set_config($1, $2, $3); END IF; \
                     RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = \
                         'unrecognized configuration parameter \"idle_session_timeout\"'; \
                 END $$; \
                 ALTER DATABASE {name} SET search_path = old, pg_catalog"
            ))
            .await
            .expect("a superuser's session");
    }

    /// A session of the test's own that holds the advisory lock `key` until its transaction ends, as another program would.
    pub async fn hold(&self, key: i64) -> Client {
        let client = self.connect().await;
        let lock = format!("BEGIN; SELECT pg_advisory_xact_lock({key})");
        let locked = client.batch_execute(&lock).await;
        locked.unwrap_or_else(|error| panic!("{lock}: {}", explain(&error)));
        client
    }

    /// How many sessions hold and how many wait for the advisory lock `key` in this database: (granted, waiting).
    pub async fn advisory_locks(&self, key: i64) -> (i64, i64) {
        let row = self
            .look(
                "SELECT count(*) FILTER (WHERE granted), count(*) FILTER (WHERE NOT granted) \
                 FROM pg_locks JOIN pg_database ON pg_database.oid = database \
                 WHERE datname = current_database() AND locktype = 'advisory' \
                 AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = $1",
                &[&key],
            )
            .await
            .remove(0);
        (row.get(0), row.get(1))
    }

    /// The process id of a session that holds the advisory lock `key`: of the only one, if it is held exclusively.
    pub async fn holder_pid(&self, key: i64) -> Option<i32> {
        let rows = self
            .look(
                "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database \
                 WHERE datname = current_database() AND locktype = 'advisory' AND granted \
                 AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = $1 ORDER BY pid",
                &[&key],
            )
            .await;
        rows.first().map(|row| row.get(0))
    }

    /// Ends the session of a backend (`pg_terminate_backend`). Returns when the server has told the backend so.
    ///
    /// # Panics
    /// When there is no such backend.
    pub async fn terminate(&self, pid: i32) {
        let row = self
            .look("SELECT pg_terminate_backend($1)", &[&pid])
            .await
            .remove(0);
        assert!(row.get::<_, bool>(0), "there is no backend {pid}");
    }

    /// How many clients are connected to this database, but for the connection that asks.
    pub async fn backends(&self) -> i64 {
        self.look(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
            &[],
        )
        .await
        .remove(0)
        .get(0)
    }

    /// Waits until exactly `count` sessions wait for the advisory lock `key`.
    pub async fn wait_for_waiting(&self, key: i64, count: i64) {
        self.wait_for_locks(
            &format!("{count} waiting for {key}"),
            key,
            |(_, waiting)| waiting == count,
        )
        .await;
    }

    /// Waits until exactly `count` sessions hold the advisory lock `key`.
    pub async fn wait_for_granted(&self, key: i64, count: i64) {
        self.wait_for_locks(&format!("{count} holding {key}"), key, |(granted, _)| {
            granted == count
        })
        .await;
    }

    async fn wait_for_locks(&self, what: &str, key: i64, enough: impl Fn((i64, i64)) -> bool) {
        wait_for(what, PATIENCE, async || {
            let (granted, waiting) = self.advisory_locks(key).await;
            if enough((granted, waiting)) {
                return Ok(());
            }
            let sessions = self.sessions().await;
            Err(format!(
                "{granted} granted, {waiting} waiting; sessions:\n{sessions}"
            ))
        })
        .await;
    }

    /// What each client of this database is doing, a line each, for the message of a test that fails.
    async fn sessions(&self) -> String {
        let rows = self
            .look(
                "SELECT format('%s %s %s/%s: %s', pid, state, wait_event_type, wait_event, query) \
                 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
                &[],
            )
            .await;
        let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        lines.join("\n")
    }

    /// Runs a query on the administrative connection; again if the connection turns out to be gone.
    async fn look(&self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        wait_for("the test's database to answer", PATIENCE, async || {
            let admin = self.admin().await?;
            match admin.query(query, parameters).await {
                Ok(rows) => Ok(rows),
                Err(error) if is_gone(&admin, &error) => Err(explain(&error)),
                Err(error) => panic!("{query}: {}", explain(&error)),
            }
        })
        .await
    }

    async fn admin(&self) -> Result<Arc<Client>, String> {
        let mut admin = self.admin.lock().await;
        match admin.as_ref() {
            Some(client) if !client.is_closed() => Ok(Arc::clone(client)),
            _ => {
                let client = Arc::new(try_connect(&self.url).await?);
                Ok(Arc::clone(admin.insert(client)))
            }
        }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if !self.outlives_tests {
            return;
        }
        let (server, name) = (self.server.clone(), self.name.clone());
        // The test's runtime cannot be waited on from here. The thread is: it would not survive the last test.
        let dropped = thread::spawn(move || drop_database(&server, &name)).join();
        if let Ok(Err(error)) = dropped {
            eprintln!("the database {} is left behind: {error}", self.name);
        }
    }
}

fn drop_database(server: &str, name: &str) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let client = try_connect(server).await?;
        let dropped = client
            .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
            .await;
        dropped.map_err(|error| explain(&error))
    })
}

/// `server` with another database in place of its own; both of `tokio_postgres`'s notations.
pub fn with_database(server: &str, name: &str) -> String {
    let Some((scheme, rest)) = server.split_once("://") else {
        return format!("{server} dbname={name}");
    };
    let (place, parameters) = match rest.split_once('?') {
        Some((place, parameters)) => (place, format!("?{parameters}")),
        None => (rest, String::new()),
    };
    let authority = place.split('/').next().unwrap_or_default();
    format!("{scheme}://{authority}/{name}{parameters}")
}

/// The server is stopping or the connection is closed: a new one will do.
fn is_gone(client: &Client, error: &tokio_postgres::Error) -> bool {
    client.is_closed()
        || error.is_closed()
        || error.code() == Some(&SqlState::ADMIN_SHUTDOWN)
        || error.code() == Some(&SqlState::CRASH_SHUTDOWN)
        || error.code() == Some(&SqlState::CANNOT_CONNECT_NOW)
}

/// The error with its causes: by itself it says only `db error`.
fn explain(error: &tokio_postgres::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
