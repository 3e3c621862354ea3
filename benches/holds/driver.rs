//! The bare driver: what the wire and the server allow, with no queue, pool, limits or lease.
//!
//! As many connections as everyone has, and one hold after another on each. A connection has keys of its own, so that a
//! lock that is only tried is granted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::{Client, Statement};

use crate::contenders::{BARE_SESSION, BARE_TRANSACTION, Name, OLD_STATEMENT};
use crate::server;
use crate::throughput::{Done, Realms, stop_after};

pub struct Driver(Vec<Arc<Line>>);

/// One connection.
struct Line {
    client: Client,
    statements: Statements,
}

enum Statements {
    /// What begins and locks; `COMMIT` follows.
    Transaction(fn(i64) -> String),
    /// Prepared.
    Session { lock: Statement, unlock: Statement },
}

impl Driver {
    pub async fn connect(name: Name, url: &str, connections: u32) -> Self {
        let mut lines = Vec::new();
        for _ in 0..connections {
            let client = server::connect(url).await;
            let statements = match name {
                BARE_TRANSACTION => Statements::Transaction(leanest),
                OLD_STATEMENT => Statements::Transaction(old),
                BARE_SESSION => Statements::Session {
                    lock: prepared(&client, "SELECT pg_try_advisory_lock($1)").await,
                    unlock: prepared(&client, "SELECT pg_advisory_unlock($1)").await,
                },
                _ => panic!("no driver is called {name}"),
            };
            lines.push(Arc::new(Line { client, statements }));
        }
        Self(lines)
    }

    /// One hold, on the first connection.
    pub async fn hold(&self, key: i64) {
        self.0[0].hold(key).await;
    }

    /// Holds for as long as `time`, on as many connections as there are writers for.
    pub async fn run(&self, writers: u32, realms: Realms, time: Duration) -> Done {
        let stop = stop_after(time);
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        let writers = writers.min(self.0.len().try_into().unwrap_or(writers));
        for (writer, line) in (0..writers).zip(&self.0) {
            let (line, stop) = (Arc::clone(line), Arc::clone(&stop));
            tasks.spawn(async move {
                let mut holds = 0;
                while !stop.load(Ordering::Relaxed) {
                    line.hold(realms.key(writer, writers, holds)).await;
                    holds += 1;
                }
                holds
            });
        }
        let holds: u32 = tasks.join_all().await.into_iter().sum();
        Done::since(start, holds)
    }

    /// Sees that it locks.
    ///
    /// # Panics
    /// When others can take a lock that it holds, or cannot take one that it gave back.
    pub async fn check(&self, other: &Client) {
        for line in &self.0 {
            for held in [true, false] {
                if held {
                    line.lock(1).await;
                } else {
                    line.unlock(1).await;
                }
                let sql = "SELECT pg_try_advisory_lock(1) AND pg_advisory_unlock(1)";
                let free: bool = other.query_one(sql, &[]).await.expect("an answer").get(0);
                assert_eq!(free, !held);
            }
        }
    }
}

impl Line {
    async fn hold(&self, key: i64) {
        self.lock(key).await;
        self.unlock(key).await;
    }

    async fn lock(&self, key: i64) {
        match &self.statements {
            Statements::Transaction(begin) => message(&self.client, &begin(key)).await,
            Statements::Session { lock, .. } => execute(&self.client, lock, key).await,
        }
    }

    async fn unlock(&self, key: i64) {
        match &self.statements {
            Statements::Transaction(_) => message(&self.client, "COMMIT").await,
            Statements::Session { unlock, .. } => execute(&self.client, unlock, key).await,
        }
    }
}

fn leanest(key: i64) -> String {
    format!("BEGIN; SELECT pg_try_advisory_xact_lock({key})")
}

fn old(key: i64) -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; /* realm http://realms.test/luke/own-{key}/ */ \
         SELECT CASE WHEN pg_try_advisory_xact_lock({key}) THEN 't' ELSE set_config('lock_timeout', '10000', true) \
         || pg_advisory_xact_lock({key})::text END AS lock_was_free"
    )
}

/// Sends text, as all do who cannot prepare statements.
pub async fn message(client: &Client, sql: &str) {
    client.batch_execute(sql).await.expect("an answer");
}

async fn prepared(client: &Client, sql: &str) -> Statement {
    client.prepare(sql).await.expect("it can be prepared")
}

async fn execute(client: &Client, statement: &Statement, key: i64) {
    let rows = client.execute(statement, &[&key]).await;
    rows.expect("an answer");
}
