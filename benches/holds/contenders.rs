//! Who is compared: ways to guard a handler's writes, with the same face.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use tokio::task::yield_now;
use tokio_postgres::{Client, SimpleQueryMessage};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_realm_lock::{RealmLocks, RealmWriteLock, RealmWriteLockLayer};

use crate::hand_written::HandWritten;
use crate::support::database::try_connect;
use crate::support::gate::realms;

/// An inner service.
pub trait Handler:
    Service<Request<String>, Response = Response<String>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Handler for S where
    S: Service<Request<String>, Response = Response<String>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// One way to guard writes.
#[derive(Clone)]
pub enum Guard {
    Nothing,
    Layer(RealmWriteLockLayer),
    HandWritten(HandWritten),
}

/// A handler behind its guard.
#[derive(Clone)]
pub enum Guarded<H> {
    Bare(H),
    Layered(RealmWriteLock<H>),
    HandWritten(HandWritten, H),
}

impl Guard {
    pub fn around<H: Handler>(&self, handler: H) -> Guarded<H> {
        match self {
            Self::Nothing => Guarded::Bare(handler),
            Self::Layer(layer) => Guarded::Layered(layer.layer(handler)),
            Self::HandWritten(lock) => Guarded::HandWritten(lock.clone(), handler),
        }
    }
}

impl<H: Handler> Guarded<H> {
    /// Sends one PATCH.
    ///
    /// # Panics
    /// When it is not answered with 200.
    pub async fn patch(&self, path: &str) {
        let request = Request::patch(path).body(String::new()).expect("a request");
        let status = match self {
            Self::Bare(handler) => status(handler.clone().oneshot(request).await),
            Self::Layered(service) => status(service.clone().oneshot(request).await),
            Self::HandWritten(lock, handler) => status(lock.call(handler.clone(), request).await),
        };
        assert_eq!(status, StatusCode::OK, "{path}");
    }
}

fn status<B, E: std::fmt::Debug>(answer: Result<Response<B>, E>) -> StatusCode {
    answer.expect("an answer").status()
}

/// All that take part. Each has its own pool, with 10 connections.
pub struct Contenders {
    /// The limit: a connection that nothing stands in front of.
    client: Client,
    /// A connection that takes no part.
    aside: Client,
    pub bare: Guard,
    pub in_process: Guard,
    pub postgres: Guard,
    /// With `confirm(false)`.
    pub unconfirmed: Guard,
    pub hand_written: Guard,
}

impl Contenders {
    pub async fn start(url: &str) -> Self {
        let connect = async || try_connect(url).await.expect("the database is up");
        let hand_written = HandWritten::connect(url, realms()).await;
        Self {
            client: connect().await,
            aside: connect().await,
            bare: Guard::Nothing,
            in_process: Guard::Layer(layer(RealmLocks::in_process())),
            postgres: Guard::Layer(layer(postgres(url).await)),
            unconfirmed: Guard::Layer(layer(postgres(url).await).confirm(false)),
            hand_written: Guard::HandWritten(hand_written),
        }
    }

    /// The shortest question that the server answers.
    pub async fn round_trip(&self) {
        self.client.batch_execute("").await.expect("an answer");
    }

    /// The shortest transaction that takes a lock: two round trips, and no limits, queue, pool or lease.
    pub async fn bare_lock(&self) {
        for message in ["BEGIN; SELECT pg_advisory_xact_lock(1)", "COMMIT"] {
            self.client.batch_execute(message).await.expect("an answer");
        }
    }

    /// Lets the last contender's work in the background come to its end. As it takes the server's attention to another
    /// connection, all contenders meet the server alike.
    pub async fn rest(&self) {
        self.aside.batch_execute("").await.expect("an answer");
    }

    pub async fn server_version(&self) -> String {
        let answer = self.aside.simple_query("SHOW server_version").await;
        let answer = answer.expect("an answer");
        let version = answer.iter().find_map(|message| match message {
            // Packagers add their own version after a space.
            SimpleQueryMessage::Row(row) => row.get(0)?.split(' ').next(),
            _ => None,
        });
        version.expect("a version").to_owned()
    }

    /// Sees that what is compared excludes: within a contender, and, in PostgreSQL, the contenders from each other.
    ///
    /// # Panics
    /// When two calls meet that must not, or when calls that nothing guards do not, and the check shows nothing.
    pub async fn check_exclusion(&self) {
        let in_postgres = [&self.postgres, &self.unconfirmed, &self.hand_written];
        assert!(!calls_meet(&in_postgres).await);
        assert!(!calls_meet(&[&self.in_process]).await);
        assert!(calls_meet(&[&self.bare]).await);
    }
}

/// Whether any two of a few concurrent writes of one realm are in the handler at the same time.
async fn calls_meet(guards: &[&Guard]) -> bool {
    const WRITES_EACH: usize = 10;
    let [inside, met] = [Arc::new(AtomicBool::new(false)), Arc::default()];
    let handler = service_fn({
        let met = Arc::clone(&met);
        move |_: Request<String>| {
            let [inside, met] = [&inside, &met].map(Arc::clone);
            async move {
                if inside.swap(true, Ordering::SeqCst) {
                    met.store(true, Ordering::SeqCst);
                }
                yield_now().await;
                inside.store(false, Ordering::SeqCst);
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        }
    });
    let guarded: Vec<_> = guards
        .iter()
        .map(|guard| guard.around(handler.clone()))
        .collect();
    let turns = guarded.iter().cycle().take(guarded.len() * WRITES_EACH);
    join_all(turns.map(|guarded| guarded.patch("/luke/checked/card"))).await;
    met.load(Ordering::SeqCst)
}

async fn postgres(url: &str) -> RealmLocks {
    let locks = RealmLocks::postgres_builder(url).pool_size(10).build();
    locks.await.expect("the database is up")
}

fn layer(locks: RealmLocks) -> RealmWriteLockLayer {
    RealmWriteLockLayer::new(locks, realms())
}
