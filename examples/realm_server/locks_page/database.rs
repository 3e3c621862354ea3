//! Who holds and who waits in PostgreSQL, on all replicas: a look into `pg_locks`, at most one a second however many
//! watch, and none when nobody does.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::timeout;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};
use tracing::warn;

use super::snapshot::{Millis, parts};

/// The shortest time from one look to the next.
const EVERY: Duration = Duration::from_secs(1);

/// How long a look may take, a connection included. The server itself gives the query up sooner.
const PATIENCE: Duration = Duration::from_millis(900);

/// A plain text query: behind PgBouncer a prepared one may meet another session.
const LOOK: &str = "BEGIN READ ONLY; SET LOCAL statement_timeout = '500ms'; \
    SELECT l.pid, a.application_name, host(a.client_addr) AS client, a.state, l.granted::text AS granted, l.mode, \
        greatest(0, (extract(epoch FROM clock_timestamp() - a.xact_start) * 1000)::bigint) AS for_ms, \
        (l.classid::bigint << 32) | l.objid::bigint AS key, left(a.query, 4096) AS query \
    FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) \
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 \
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
    ORDER BY key, l.granted DESC, a.xact_start, l.pid LIMIT 200; \
    COMMIT";

/// A look at the server that keeps the locks.
#[derive(Clone)]
pub struct Database {
    url: Arc<str>,
    /// Taken for the length of a look.
    connection: Arc<AsyncMutex<Option<Client>>>,
    last: Arc<Mutex<Option<Look>>>,
}

struct Look {
    at: Instant,
    found: Found,
}

/// What a look found, or in plain words why it found nothing.
pub type Found = Result<Vec<DatabaseLock>, &'static str>;

/// A session that holds an advisory lock or waits for one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatabaseLock {
    pub pid: String,
    pub application: Option<String>,
    pub client: Option<String>,
    pub state: Option<String>,
    /// For how long its transaction is open; none for a lock of a session.
    pub for_ms: Option<Millis>,
    pub granted: bool,
    pub mode: String,
    /// In text: a script has no number for it.
    pub key: String,
    /// The claim that the session says it is for: a realm's URL, and perhaps more. Any session may say anything.
    pub claim: Option<String>,
}

impl Database {
    pub fn new(url: &str) -> Self {
        Self {
            url: url.into(),
            connection: Arc::default(),
            last: Arc::default(),
        }
    }

    /// What the last look found; `None` before the first.
    pub fn latest(&self) -> Option<Found> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().map(|look| look.found.clone())
    }

    /// Looks, unless someone did within the last second.
    pub async fn look(&self) {
        let connection = Arc::clone(&self.connection).lock_owned().await;
        self.look_on(connection).await;
    }

    /// Starts a look, if one is due and none is under way.
    pub fn look_soon(&self) {
        if self.is_due()
            && let Ok(connection) = Arc::clone(&self.connection).try_lock_owned()
        {
            let database = self.clone();
            tokio::spawn(async move { database.look_on(connection).await });
        }
    }

    /// Closes the connection until the next look.
    pub async fn close(&self) {
        self.connection.lock().await.take();
    }

    fn is_due(&self) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().is_none_or(|look| look.at.elapsed() >= EVERY)
    }

    async fn look_on(&self, mut connection: OwnedMutexGuard<Option<Client>>) {
        if !self.is_due() {
            return;
        }
        let failure: Option<Box<dyn Error + Send + Sync>>;
        let found = match timeout(PATIENCE, self.ask(&mut connection)).await {
            Ok(Ok(rows)) => {
                failure = None;
                Ok(rows)
            }
            Ok(Err(error)) => {
                failure = Some(error.into());
                Err("PostgreSQL cannot be asked; the server's log has the cause.")
            }
            Err(elapsed) => {
                failure = Some(elapsed.into());
                Err("PostgreSQL did not answer in time.")
            }
        };
        if found.is_err() {
            // Whatever it was doing, it does it for nobody.
            connection.take();
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let well_before = last.as_ref().is_none_or(|look| look.found.is_ok());
        if let Some(cause) = failure
            && well_before
        {
            warn!(%cause, "the page of locks cannot see into the database");
        }
        *last = Some(Look {
            at: Instant::now(),
            found,
        });
    }

    async fn ask(
        &self,
        connection: &mut Option<Client>,
    ) -> Result<Vec<DatabaseLock>, tokio_postgres::Error> {
        let client = match connection {
            Some(client) if !client.is_closed() => client,
            _ => connection.insert(connect(&self.url).await?),
        };
        let answer = client.simple_query(LOOK).await?;
        let rows = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(DatabaseLock::from(row)),
            _ => None,
        });
        Ok(rows.collect())
    }
}

async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let mut config: Config = url.parse()?;
    config
        .application_name("realm_server's page of locks")
        // A standby has no locks to show.
        .target_session_attrs(TargetSessionAttrs::ReadWrite);
    let (client, connection) = config.connect(NoTls).await?;
    // It ends with the client, whose next query tells of any other end.
    tokio::spawn(async { drop(connection.await) });
    Ok(client)
}

impl DatabaseLock {
    pub fn origin(&self) -> &str {
        parts(self.claim.as_deref().unwrap_or_default()).0
    }

    pub fn path(&self) -> &str {
        parts(self.claim.as_deref().unwrap_or_default()).1
    }

    /// Who it is, as far as the session says, and from where.
    pub fn session(&self) -> String {
        let known = [self.application.as_deref(), self.client.as_deref()];
        let known: Vec<_> = known.into_iter().flatten().collect();
        if known.is_empty() {
            "–".to_owned()
        } else {
            known.join(" at ")
        }
    }
}

impl From<&SimpleQueryRow> for DatabaseLock {
    fn from(row: &SimpleQueryRow) -> Self {
        let text = |column| row.get(column).map(str::to_owned);
        Self {
            pid: text("pid").unwrap_or_default(),
            application: text("application_name").filter(|name| !name.is_empty()),
            client: text("client"),
            state: text("state"),
            for_ms: row
                .get("for_ms")
                .and_then(|millis| millis.parse().ok())
                .map(Millis),
            granted: row.get("granted") == Some("true"),
            mode: text("mode").unwrap_or_default(),
            key: text("key").unwrap_or_default(),
            claim: row.get("query").and_then(claim_in),
        }
    }
}

/// The claim in a statement's comment `/* realm https://host/luke/my-realm/ */`, which writes `*` as `%2A`.
fn claim_in(query: &str) -> Option<String> {
    let (_, rest) = query.split_once("/* realm ")?;
    let (claim, _) = rest.split_once(" */")?;
    // A canonical URL has no other `%2A`.
    Some(claim.replace("%2A", "*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_of_a_statement_is_in_its_comment() {
        for (query, claim) in [
            ("/* realm https://h/a/b/ */", Some("https://h/a/b/")),
            (
                "BEGIN; SELECT pg_advisory_xact_lock(1) /* realm https://h/%2A/ */",
                Some("https://h/*/"),
            ),
            ("/* realm https://h/%252A/ */", Some("https://h/%252A/")),
            ("/* realm cut off", None),
            ("SELECT 1", None),
        ] {
            assert_eq!(claim_in(query).as_deref(), claim, "{query}");
        }
    }
}
