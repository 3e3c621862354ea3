//! A replica: a process of this same program, started with `replica` as its first argument.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::middleware::from_fn_with_state;
use axum::routing::post;
use axum::{Extension, Router};
use clap::{Parser, ValueEnum};
use http::{Method, StatusCode};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tower_realm_lock::{HeldLock, LockRules, RealmLocks, RealmWriteLockLayer, Scope};

use crate::naive::{self, Naive};
use crate::store::{Store, Visit};
use crate::support::gate::realms;
use crate::{ACQUIRE_TIMEOUT, LEASE};

/// What is around the handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lock {
    /// The layer of this crate, with fencing tokens that the store checks.
    Layer,
    /// The same, with handlers that write on blocking threads, to a store that checks no tokens.
    Unfenced,
    /// The lock of [`naive`].
    Naive,
    /// Nothing.
    None,
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Layer => "with the layer",
            Self::Unfenced => "with the layer, blocking threads and no fencing",
            Self::Naive => "with a lock that does not notice its loss",
            Self::None => "without a lock",
        })
    }
}

/// How long a hold may last where it is to run out in the middle of a visit, which lasts up to
/// 40 ms.
const SHORT_HOLD: Duration = Duration::from_millis(25);

/// A POST locks its realm, and a PATCH the card alone.
const PATTERN: &str = "/{owner}/{realm}/{card}/{request}";

/// The flags of a replica.
#[derive(Debug, Parser)]
pub struct Flags {
    #[arg(long)]
    pub name: String,
    #[arg(long, value_enum)]
    pub lock: Lock,
    #[arg(long)]
    pub database_url: String,
    /// Where the store is.
    #[arg(long)]
    pub directory: PathBuf,
    #[arg(long)]
    pub pool_size: u32,
    #[arg(long)]
    pub sessions: u32,
}

/// Serves until it is killed.
pub fn run(flags: &Flags) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    match runtime.block_on(serve(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(flags: &Flags) -> Result<(), Box<dyn Error>> {
    let store = Arc::new(Store::open(&flags.directory, &flags.name)?);
    let handlers = Router::new()
        .route(PATTERN, post(write).patch(write))
        .with_state((store, flags.lock));
    let app = match flags.lock {
        Lock::None => handlers,
        Lock::Layer => handlers.layer(layer(flags).await),
        Lock::Unfenced => handlers.layer(
            layer(flags)
                .await
                .map_locks(|locks| locks.max_hold(SHORT_HOLD)),
        ),
        Lock::Naive => {
            let naive = Naive {
                database: flags.database_url.clone(),
                realms: realms(),
            };
            handlers.layer(from_fn_with_state(Arc::new(naive), naive::lock))
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

/// The layer, as soon as the database can be reached: a replica may be started while it is away.
async fn layer(flags: &Flags) -> RealmWriteLockLayer {
    loop {
        let locks = RealmLocks::postgres_builder(&flags.database_url)
            .pool_size(flags.pool_size)
            .sessions(flags.sessions)
            .lease(LEASE)
            .connect_timeout(ACQUIRE_TIMEOUT)
            .fencing(true)
            .build();
        match locks.await {
            Ok(locks) => {
                // To the history a card is what has one writer at a time.
                let card = Scope::from_fn(async |head, _| {
                    let card = head.path().split('/').nth(3);
                    Ok(card.map(|card| vec![card.to_owned()]))
                });
                let rules = LockRules::new().scope(Method::PATCH, PATTERN, card);
                return RealmWriteLockLayer::new(locks, realms())
                    .rules(rules.expect("the pattern is right"))
                    .expect("no scope needs the body")
                    .map_locks(|locks| locks.acquire_timeout(ACQUIRE_TIMEOUT));
            }
            Err(error) => eprintln!("{error}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[derive(Deserialize)]
struct Pace {
    /// Milliseconds between reading and writing.
    delay: u64,
}

/// Writes, and answers 200 whatever the store said: that a success is a success is the layer's word alone.
async fn write(
    State((store, lock)): State<(Arc<Store>, Lock)>,
    Path((owner, realm, card, request)): Path<(String, String, String, String)>,
    Query(pace): Query<Pace>,
    held: Option<Extension<HeldLock>>,
) -> StatusCode {
    let held = held.map(|Extension(held)| held);
    let visit = Visit {
        store,
        realm: format!("{owner}/{realm}/{card}"),
        request,
        held: held.clone(),
        is_fenced: lock != Lock::Unfenced,
    };
    let delay = Duration::from_millis(pace.delay);
    let blocks = lock == Lock::Unfenced || pace.delay % 2 == 1;
    let visited = match held.filter(|_| blocks) {
        None => visit_all(&visit, delay).await,
        Some(held) => {
            let runtime = Handle::current();
            // A thread that nothing stops.
            let visit = move || runtime.block_on(visit_all(&visit, delay));
            let visited = held.spawn_blocking(visit).await;
            visited.unwrap_or_else(|refused| Err(io::Error::other(refused)))
        }
    };
    match visited {
        Ok(_) => StatusCode::OK,
        Err(error) => {
            eprintln!("the store failed: {error}");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

async fn visit_all(visit: &Visit, delay: Duration) -> io::Result<Option<()>> {
    let Some(seen) = visit.enter().await? else {
        return Ok(None);
    };
    sleep(delay).await;
    if visit.write(seen).await?.is_none() {
        return Ok(None);
    }
    visit.leave().await
}
