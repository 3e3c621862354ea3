//! Which strategy holds the locks: seen by the server, as nothing in a replica tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::{Client, Error};

use crate::fleet::APPLICATION;
use crate::support::database::try_connect;

/// The time between two looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Locks that were seen held, by the state of their holder: only a session keeps one outside of a transaction. A holder that
/// runs a statement does not count.
#[derive(Debug, Default)]
pub struct Seen {
    sessions: AtomicUsize,
    transactions: AtomicUsize,
}

/// Looks at the locks of a server until it is stopped.
pub struct Watch {
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl Watch {
    pub fn start(database: &str) -> Self {
        let seen = Arc::new(Seen::default());
        let database = database.to_owned();
        let counts = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                // It ends with each restart of the server.
                if let Ok(client) = try_connect(&database).await {
                    while counts.look(&client).await.is_ok() {
                        sleep(INTERVAL).await;
                    }
                }
                sleep(INTERVAL).await;
            }
        });
        Self { seen, task }
    }

    pub fn stop(self) -> Arc<Seen> {
        self.task.abort();
        self.seen
    }
}

impl Seen {
    pub fn by_sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    pub fn by_transactions(&self) -> usize {
        self.transactions.load(Ordering::Relaxed)
    }

    async fn look(&self, client: &Client) -> Result<(), Error> {
        let held = format!(
            "SELECT count(*) FILTER (WHERE state = 'idle'), \
             count(*) FILTER (WHERE state = 'idle in transaction') \
             FROM pg_locks JOIN pg_stat_activity USING (pid) \
             WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted \
             AND application_name LIKE '{APPLICATION}%'"
        );
        let row = client.query_one(&held, &[]).await?;
        for (count, column) in [(&self.sessions, 0), (&self.transactions, 1)] {
            let seen: i64 = row.get(column);
            count.fetch_add(seen.try_into().unwrap_or_default(), Ordering::Relaxed);
        }
        Ok(())
    }
}
