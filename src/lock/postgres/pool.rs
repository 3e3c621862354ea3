use std::borrow::Borrow;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bb8::{ErrorSink, Pool, PooledConnection, QueueStrategy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::answer::Answer;
use super::connect::Connector;
use super::connection::LockConnection;
use crate::lock::error::{ConnectError, LockError};
use crate::lock::request::LockRequest;

/// How long a connection stays open that nobody uses; the pool looks every 30 seconds. Load
/// balancers forget idle connections after 350 seconds (AWS) or 4 minutes (Azure).
const IDLE_TIMEOUT: Duration = Duration::from_secs(180);

/// The lock connections to one PostgreSQL.
#[derive(Debug)]
pub(super) struct LockPool {
    /// None once it is closed.
    connections: Mutex<Option<Pool<Connector>>>,
    /// One permit for each connection. Callers wait for one here, in order of arrival: in bb8 a
    /// realm that gives a connection back and takes it again would starve the others.
    places: Arc<Semaphore>,
    size: u32,
    /// The last failure to connect; bb8 itself would let a caller wait.
    failures: watch::Sender<Option<ConnectError>>,
}

/// An idle connection out of the pool. It goes back when it is dropped, unless it is closed.
pub(super) struct Pooled {
    // The connection is dropped first, so that it is there for the next owner of the place.
    connection: PooledConnection<'static, Connector>,
    _place: OwnedSemaphorePermit,
}

/// A connection that has just been opened, for one that may be dead.
pub(in crate::lock) struct Fresh(LockConnection);

impl Fresh {
    /// Asks something before it is dropped.
    pub(super) async fn ask(&self, question: &str) -> Answer {
        self.0.client.simple_query(question).await
    }
}

impl LockPool {
    /// A pool of at most `size` connections, none of which is open yet. Must be called within a
    /// runtime.
    pub(super) fn new(connector: Connector, size: u32) -> Self {
        let failures = watch::Sender::new(None);
        let pool = Pool::builder()
            .max_size(size)
            // It would cost a round trip per lock; `checkout` looks at the closed signal instead.
            .test_on_check_out(false)
            // Each connection knows its own.
            .max_lifetime(None)
            // Callers see a failure without delay, and have timeouts of their own.
            .retry_connection(false)
            .connection_timeout(Duration::MAX)
            .idle_timeout(IDLE_TIMEOUT)
            .error_sink(Box::new(Failures(failures.clone())))
            // The busiest connections stay warm, and the others reach their idle timeout.
            .queue_strategy(QueueStrategy::Lifo)
            .build_unchecked(connector);
        Self {
            connections: Mutex::new(Some(pool)),
            places: Arc::new(Semaphore::new(size as usize)),
            size,
            failures,
        }
    }

    /// Opens the first connection.
    ///
    /// # Errors
    ///
    /// Those of connecting.
    pub(super) async fn open_first(&self) -> Result<(), ConnectError> {
        let Some(pool) = self.connections().clone() else {
            // It was closed meanwhile.
            return Ok(());
        };
        let first = pool.dedicated_connection().await?;
        // If others have filled the pool meanwhile, this one is closed.
        drop(pool.add(first));
        Ok(())
    }

    /// A live connection of the pool, or a new one.
    pub(super) async fn checkout(&self, request: &LockRequest<'_>) -> Result<Pooled, LockError> {
        let Some(pool) = self.connections().clone() else {
            return Err(LockError::ShuttingDown);
        };
        let mut failures = self.failures.subscribe();
        tokio::select! {
            biased;
            connection = self.live(&pool) => connection,
            failure = given_up(&pool, &mut failures, request.deadline) => {
                Err(failure.map_or_else(|| self.exhausted(request), LockError::Connect))
            }
        }
    }

    /// A new connection beside those of the pool, to [take the place](Pooled::replace) of one.
    pub(super) async fn open(&self) -> Result<Fresh, LockError> {
        let Some(pool) = self.connections().clone() else {
            return Err(LockError::ShuttingDown);
        };
        // On a task: a caller that leaves must not keep it from noting that a host is silent.
        let opened = tokio::spawn(async move { pool.dedicated_connection().await });
        // It fails only where the runtime ends.
        let opened = opened.await.map_err(|_| LockError::ShuttingDown)?;
        opened.map(Fresh).map_err(LockError::Connect)
    }

    async fn live(&self, pool: &Pool<Connector>) -> Result<Pooled, LockError> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| LockError::ShuttingDown)?;
        loop {
            // Without a timeout of its own it does not fail.
            let connection = pool.get_owned().await;
            let connection = connection.map_err(|_| LockError::ShuttingDown)?;
            // Any other is discarded by the pool when it is dropped here.
            if !connection.is_closed() && !connection.is_too_old() {
                return Ok(Pooled {
                    connection,
                    _place: place,
                });
            }
        }
    }

    fn exhausted(&self, request: &LockRequest<'_>) -> LockError {
        LockError::PoolExhausted {
            pool_size: self.size,
            after: request.timeout,
        }
    }

    /// Gives the connections up: idle ones close now, others when their hold ends.
    pub(super) fn close(&self) {
        self.connections().take();
        self.places.close();
    }

    fn connections(&self) -> MutexGuard<'_, Option<Pool<Connector>>> {
        // An `Option` that is cloned or taken is never half changed.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pooled {
    /// Gives the connection back, from any thread: a pool replaces a closed one on a task.
    pub(super) fn give_back(self) {
        let tasks = self.tasks.clone();
        let _runtime = tasks.enter();
        drop(self);
    }

    /// Puts another connection into this one's place in the pool, and returns this one.
    pub(super) fn replace(&mut self, Fresh(connection): Fresh) -> LockConnection {
        mem::replace(&mut *self.connection, connection)
    }
}

impl Borrow<LockConnection> for Pooled {
    fn borrow(&self) -> &LockConnection {
        &self.connection
    }
}

impl Deref for Pooled {
    type Target = LockConnection;

    fn deref(&self) -> &LockConnection {
        &self.connection
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut LockConnection {
        &mut self.connection
    }
}

/// Resolves when no connection can be had: as soon as connecting fails and there is no other one to
/// wait for, or at the deadline. Returns the last failure to connect, if there was one.
async fn given_up(
    pool: &Pool<Connector>,
    failures: &mut watch::Receiver<Option<ConnectError>>,
    deadline: Instant,
) -> Option<ConnectError> {
    let mut last = None;
    while let Ok(Ok(())) = timeout_at(deadline, failures.changed()).await {
        last.clone_from(&failures.borrow_and_update());
        if pool.state().connections == 0 {
            break;
        }
    }
    last
}

/// Where bb8 reports connection attempts that failed.
#[derive(Debug, Clone)]
struct Failures(watch::Sender<Option<ConnectError>>);

impl ErrorSink<ConnectError> for Failures {
    fn sink(&self, error: ConnectError) {
        tracing::warn!(%error, "a lock connection could not be made");
        self.0.send_replace(Some(error));
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<ConnectError>> {
        Box::new(self.clone())
    }
}
