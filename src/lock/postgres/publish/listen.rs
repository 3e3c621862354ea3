use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::Notification;

use super::CHANNEL;
use super::event::{RealmEvent, read};
use crate::config::ConfigError;
use crate::lock::error::ConnectError;
use crate::lock::postgres::connect::Connector;
use crate::lock::postgres::connection::{Busy, LockConnection};
use crate::lock::postgres::options::PostgresBuilder;
use crate::lock::tasks::TaskGroup;

/// How many events wait to be taken. Beyond that they are dropped, and the consumer is interrupted.
const MOST_EVENTS: usize = 4096;
/// How often the server is asked whether it is still there, and how long it has to answer.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// The pause after an attempt to connect that has failed.
const PAUSE: Duration = Duration::from_millis(500);

/// The successful writes of all replicas on one database, as a stream of [`RealmEvent`]s: what a
/// cache needs to stay right.
///
/// Replicas publish their writes if their locks were built with
/// [`broadcast(true)`](crate::PostgresBuilder::broadcast). Each successful write is an event, which
/// follows soon after its hold has ended. It is committed before a confirmed write is answered.
/// Events of one realm come in the order of its writes; from replicas with
/// [sessions](crate::PostgresBuilder::sessions) two may change places: where that matters, compare
/// the tokens. A write that was not confirmed may be published or not.
///
/// The stream never ends: it reconnects by itself, and yields an interruption when it may have
/// missed events. That is at once for a lost connection, within 4 seconds for a silent network, and
/// for a consumer that is 4,096 events behind.
///
/// # Cancel safety
///
/// Dropping it ends its connection. Between two polls nothing is lost.
///
/// ```no_run
/// use futures_util::StreamExt;
/// use tower_realm_lock::{RealmEvent, RealmWrites};
///
/// # async fn run() -> Result<(), tower_realm_lock::LockError> {
/// let mut writes = RealmWrites::listen("postgres://localhost/realms").await?;
/// while let Some(event) = writes.next().await {
///     match event {
///         RealmEvent::Write(write) => println!("{} {:?}", write.realm(), write.path()),
///         RealmEvent::Interrupted => println!("from here on some may be missed"),
///         _ => println!("all that was cached is stale"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct RealmWrites {
    events: Arc<Events>,
    task: AbortHandle,
}

impl RealmWrites {
    /// Connects to the PostgreSQL database at `url`, read as
    /// [`RealmLocks::postgres_builder`](crate::RealmLocks::postgres_builder) does, and listens from
    /// then on. Must be called within a runtime. With TLS of the application's own:
    /// [`PostgresBuilder::listen`].
    ///
    /// # Errors
    ///
    /// Those of connecting at first: all of [`ConnectError`], [`ConnectError::Pooler`] among them, as
    /// a pooler does not pass notifications on.
    ///
    /// # Cancel safety
    ///
    /// If dropped, the connection is closed.
    pub async fn listen(url: &str) -> Result<Self, ConnectError> {
        PostgresBuilder::new(url).listen().await
    }

    /// Events of a database, and how to connect to it.
    fn of(builder: &PostgresBuilder) -> Result<(Arc<Events>, Connector), ConfigError> {
        let events = Arc::new(Events::default());
        let notified = Arc::clone(&events);
        let connector = builder.connector(TaskGroup::default())?;
        let connector = connector.on_notification(move |it| notified.note(&it));
        Ok((events, connector))
    }

    /// Follows the database from a connection that listens on, or from its first one.
    fn follow(
        events: Arc<Events>,
        connector: Connector,
        connection: Option<Busy<LockConnection>>,
    ) -> Self {
        let told = Arc::clone(&events);
        let task = tokio::spawn(async move {
            let mut connection = connection;
            loop {
                if let Some(connection) = connection {
                    attend(&connection).await;
                    let closed = connection.closed.clone();
                    drop(connection);
                    // Whatever it has still published belongs before the interruption.
                    closed.cancelled().await;
                }
                told.push(RealmEvent::Interrupted);
                connection = Some(reconnect(&connector).await);
                told.push(RealmEvent::Resumed);
            }
        });
        Self {
            events,
            task: task.abort_handle(),
        }
    }
}

impl PostgresBuilder {
    /// Listens to the writes of all replicas on this database: [`RealmWrites::listen`] with this
    /// builder's TLS and [`connect_timeout`](Self::connect_timeout).
    ///
    /// # Errors
    ///
    /// Those of [`RealmWrites::listen`].
    ///
    /// # Cancel safety
    ///
    /// If dropped, the connection is closed.
    pub async fn listen(&self) -> Result<RealmWrites, ConnectError> {
        self.check()?;
        let (events, connector) = RealmWrites::of(self)?;
        let connection = listen(&connector).await?;
        Ok(RealmWrites::follow(events, connector, Some(connection)))
    }

    /// Checks the options and the URL, and listens as soon as the database can be reached: for a
    /// service that starts before its database.
    ///
    /// The stream begins with [`RealmEvent::Interrupted`], and writes follow
    /// [`RealmEvent::Resumed`]. Until then a connection is tried every half second, and each
    /// failure is logged as a warning; a standby and a pooler are failures too.
    ///
    /// # Errors
    ///
    /// Those of a wrong configuration.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn listen_lazy(&self) -> Result<RealmWrites, ConfigError> {
        self.check()?;
        let (events, connector) = RealmWrites::of(self)?;
        Ok(RealmWrites::follow(events, connector, None))
    }
}

/// Connects once, and listens.
async fn listen(connector: &Connector) -> Result<Busy<LockConnection>, ConnectError> {
    // Busy to its end, so that it is closed when it is dropped.
    let connection = Busy::new(connector.open().await?);
    let listening = async {
        connection.refuse_pooler()?;
        let listen = format!("LISTEN {CHANNEL}");
        let listening = connection.client.batch_execute(&listen).await;
        listening.map_err(|error| connection.failed(error))
    };
    connection.within(connector.timeout(), listening).await?;
    Ok(connection)
}

async fn reconnect(connector: &Connector) -> Busy<LockConnection> {
    loop {
        match listen(connector).await {
            Ok(connection) => return connection,
            Err(error) => tracing::warn!(%error, "writes cannot be listened to"),
        }
        sleep(PAUSE).await;
    }
}

/// Returns when the connection is lost, or the server silent.
async fn attend(connection: &LockConnection) {
    let beats = async {
        loop {
            sleep(HEARTBEAT).await;
            let beat = timeout(HEARTBEAT, connection.client.batch_execute("")).await;
            if !matches!(beat, Ok(Ok(()))) {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = connection.closed.cancelled() => {}
        () = beats => tracing::warn!(
            server = %connection.server,
            pid = connection.canceller().process_id(),
            "a listener's connection is silent, and is replaced"
        ),
    }
}

impl Stream for RealmWrites {
    type Item = RealmEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RealmEvent>> {
        // First the waker: an event that comes in between is not slept through.
        self.events.waker.register(cx.waker());
        match self.events.queue().pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None => Poll::Pending,
        }
    }
}

impl Drop for RealmWrites {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for RealmWrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealmWrites").finish_non_exhaustive()
    }
}

/// The events that nobody has taken yet. Adding one never waits: a server must not wait for a
/// consumer.
#[derive(Default)]
struct Events {
    queue: Mutex<VecDeque<RealmEvent>>,
    waker: AtomicWaker,
}

impl Events {
    fn note(&self, notification: &Notification) {
        if notification.channel() != CHANNEL {
            return;
        }
        if let Some(writes) = read(notification.payload()) {
            for write in writes {
                self.push(RealmEvent::Write(write));
            }
        } else {
            // A realm too long to be named, or another version's notice: it may be about anything.
            self.push(RealmEvent::Interrupted);
            self.push(RealmEvent::Resumed);
        }
    }

    fn push(&self, event: RealmEvent) {
        let mut queue = self.queue();
        if queue.len() < MOST_EVENTS {
            queue.push_back(event);
        } else {
            interrupt(&mut queue, event != RealmEvent::Interrupted);
        }
        drop(queue);
        self.waker.wake();
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<RealmEvent>> {
        // No code that can panic runs under this mutex, so a poisoned one is whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts an interruption in the place of all that nobody has taken, and of one more event.
fn interrupt(queue: &mut VecDeque<RealmEvent>, is_over: bool) {
    queue.clear();
    queue.push_back(RealmEvent::Interrupted);
    if is_over {
        queue.push_back(RealmEvent::Resumed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::postgres::publish::event::Notice;

    fn write(path: &str) -> RealmEvent {
        let notice = Notice {
            realm: "http://h/a/".parse().ok(),
            path: Some(path.into()),
            sender: "me".into(),
            tokens: vec![None],
        };
        RealmEvent::Write(read(&notice.parts()[0].payload(0)).unwrap().remove(0))
    }

    fn taken(events: &Events) -> Vec<RealmEvent> {
        events.queue().drain(..).collect()
    }

    #[test]
    fn a_consumer_that_is_too_slow_is_interrupted_and_costs_no_more_memory() {
        let events = Events::default();
        for number in 0..MOST_EVENTS + 3 {
            events.push(write(&number.to_string()));
        }
        let taken = taken(&events);
        assert_eq!(taken[..2], [RealmEvent::Interrupted, RealmEvent::Resumed]);
        assert_eq!(taken.last(), Some(&write(&(MOST_EVENTS + 2).to_string())));
        assert_eq!(taken.len(), 2 + 2);
    }

    #[test]
    fn an_interruption_of_a_full_queue_is_not_ended_by_it() {
        let events = Events::default();
        for number in 0..MOST_EVENTS {
            events.push(write(&number.to_string()));
        }
        events.push(RealmEvent::Interrupted);
        assert_eq!(taken(&events), [RealmEvent::Interrupted]);
        events.push(RealmEvent::Resumed);
        assert_eq!(taken(&events), [RealmEvent::Resumed]);
    }
}
