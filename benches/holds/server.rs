//! The PostgreSQL that all contenders use, seen from a connection that takes no part.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::Client;

use crate::support::database::try_connect;

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone)]
pub struct Server {
    port: u16,
    pid: i32,
    aside: Arc<Client>,
}

/// The most connections that a contender had at one time.
#[derive(Clone, Copy, Default)]
pub struct Peak {
    pub open: f64,
    /// Of these, the ones that held or awaited an advisory lock.
    pub at_locks: f64,
}

impl Server {
    /// `pid` is the process that starts all others of the server.
    pub async fn on(port: u16, pid: i32) -> Self {
        Self {
            port,
            pid,
            aside: Arc::new(connect(&url(port)).await),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The processes that serve connections, and those that work for all of them. The one that answers this is not among
    /// them.
    pub async fn backends(&self) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()";
        let rows = self.aside.query(sql, &[]).await.expect("an answer");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Without parameters.
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// Lets the last contender's work in the background come to its end. As it takes the server's attention to another
    /// connection, all contenders meet the server alike.
    pub async fn rest(&self) {
        self.aside.batch_execute("").await.expect("an answer");
    }

    pub async fn version(&self) -> String {
        let row = self.aside.query_one("SHOW server_version", &[]).await;
        let version: String = row.expect("an answer").get(0);
        // Packagers add their own version after a space.
        version.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Looks at a contender's connections for as long as `work` runs.
    pub async fn peak_during<T: Send + 'static>(
        &self,
        application: &str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> (T, Peak) {
        // On a task of its own, so that a look does not hold it up.
        let mut work = tokio::spawn(work);
        let mut peak = Peak::default();
        loop {
            let now = self.look(application).await;
            peak.open = peak.open.max(now.open);
            peak.at_locks = peak.at_locks.max(now.at_locks);
            tokio::select! {
                done = &mut work => return (done.expect("the work ends well"), peak),
                () = sleep(PAUSE) => {}
            }
        }
    }

    async fn look(&self, application: &str) -> Peak {
        let sql = "SELECT count(*)::float8, count(*) FILTER (WHERE pid IN \
             (SELECT pid FROM pg_locks WHERE locktype = 'advisory'))::float8 \
             FROM pg_stat_activity WHERE application_name = $1";
        let row = self.aside.query_one(sql, &[&application]).await;
        let row = row.expect("an answer");
        Peak {
            open: row.get(0),
            at_locks: row.get(1),
        }
    }
}

/// The database as it is reached at a port on this machine.
pub fn url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

/// A connection that nothing stands in front of.
pub async fn connect(url: &str) -> Client {
    try_connect(url).await.expect("the database is up")
}
