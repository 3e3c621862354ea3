//! A realm server: tenants' JSON cards as files, behind [`tower_realm_lock::RealmWriteLockLayer`].
//!
//! ```text
//! cargo run --example realm_server
//! curl -i http://127.0.0.1:4201/luke/my-realm/ -H 'content-type: application/json' \
//!     -d '{"data":{"type":"card","attributes":{"title":"Hello"}}}'
//! ```
//!
//! Two replicas share a directory and a base URL, and lock in PostgreSQL:
//!
//! ```text
//! export DATABASE_URL=postgres://localhost/realms
//! cargo run --example realm_server -- --listen 127.0.0.1:4201 --base-url http://localhost:4200 --data-dir /tmp/realms
//! cargo run --example realm_server -- --listen 127.0.0.1:4202 --base-url http://localhost:4200 --data-dir /tmp/realms
//! ```
//!
//! Realms are created, published, unpublished and deleted too: [`realms`] has the requests. A card's `ETag` and `If-Match`
//! tell whether it has changed meanwhile. With `--cache-cards 1000` replicas keep cards in memory, and tell each other of writes.
//!
//! `--config examples/realm_server.toml` has a file say what the flags can say, and rules and limits.
//!
//! `http://127.0.0.1:4201/_locks` is a page to watch the locks, and a race with and without them.
//!
//! With `--lock off --write-delay 200` two PATCH requests for one card lose a field, and both get 200.
//!
//! `locks` is all that the server does about locking; the handlers in `routes` and the files in `store` know nothing of
//! it, but for the fencing token. `realms` also writes rows in the transaction that holds the lock. `locks_page` only looks on.

mod atomic;
mod body;
mod cache;
mod card;
mod cards;
mod config;
mod error;
mod locks;
mod locks_page;
mod metrics;
mod path;
mod precondition;
mod realms;
mod routes;
mod signals;
mod store;

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_realm_lock::RealmLocks;
use tracing::level_filters::LevelFilter;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use url::Url;

use cache::Cache;
use cards::Cards;
use config::{Config, Lock};
use routes::router;
use signals::Signals;
use store::Store;

/// How long a shutdown waits for requests that were let in, and then for writes whose clients have gone.
const GRACE: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    match run(&Config::from_command_line()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<(), Failure> {
    let directory = DataDirectory::open(config.data_dir.as_deref())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(serve(config, &directory));
    // Waits for file work that has begun; only then may a temporary directory go.
    drop(runtime);
    drop(directory);
    result
}

async fn serve(config: &Config, directory: &DataDirectory) -> Result<(), Failure> {
    let locks = locks::open(&config.lock, config.acquire_timeout).await?;
    let writes = locks::writes(&config.lock).await?;
    let listener = TcpListener::bind(config.listen).await.map_err(|cause| {
        format!(
            "cannot listen on {}: {cause}; choose another with --listen",
            config.listen
        )
    })?;
    let address = listener.local_addr()?;
    let base_url = match &config.base_url {
        Some(url) => url.clone(),
        None => Url::parse(&format!("http://{address}"))?,
    };
    let rows = matches!(config.lock, Lock::Postgres { .. });
    let layers = match &locks {
        Some(locks) => Some(locks::layers(locks, &base_url, rows)?.configured(config)),
        None => None,
    };
    if let Some(locks) = locks.as_ref().filter(|_| rows) {
        realms::make_tables(locks).await.map_err(|cause| {
            let cause = error::chain(&cause);
            format!(
                "cannot make the tables of realms: {cause}; let the database's user create tables"
            )
        })?;
    }
    let store = Arc::new(Store {
        root: directory.path().to_owned(),
        write_delay: config.write_delay,
        fencing: config.fencing(),
        fault: config.fault,
    });
    let cards = Cards {
        store,
        base_url: base_url.clone(),
        locks: locks.clone(),
        rows,
        cache: config.cache_cards.map(|cards| Arc::new(Cache::new(cards))),
    };
    if let (Some(cache), Some(writes), Some(locks)) = (&cards.cache, writes, &locks) {
        let own = locks.sender().to_owned();
        tokio::spawn(Arc::clone(cache).follow(writes, own, base_url));
    }
    let closing = CancellationToken::new();
    let page = locks_page::routes(address, &config.lock, locks.clone(), closing.clone());
    let metrics = metrics::routes()?;
    let signals = Signals::new()?;

    // From here on: a start that fails says so in one line, whatever libraries would log on the way.
    start_log();
    if matches!(config.lock, Lock::Postgres { .. }) && config.base_url.is_none() {
        warn!(
            "no --base-url: replicas at other addresses lock other realm URLs, and do not exclude this one"
        );
    }
    for write in locks.iter().flat_map(|_| locks::unlocked(&config.rules)) {
        warn!("the rules let {write} pass without a lock: writes can be lost");
    }
    let app = router(cards.clone(), layers.as_ref())
        .merge(page)
        .merge(metrics);
    announce(address, &config.lock, directory);
    tokio::spawn(cards.settle_all());
    serve_until(signals, listener, app, closing).await?;
    finish_holds(locks).await
}

/// Serves until a signal comes, then takes no more connections and finishes the requests that were let in. `closing` ends
/// the answers that would go on for ever.
async fn serve_until(
    mut signals: Signals,
    listener: TcpListener,
    app: axum::Router,
    closing: CancellationToken,
) -> io::Result<()> {
    let (stop, mut stopped) = watch::channel(());
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        // The sender is never dropped unused.
        let _ = stopped.changed().await;
    });
    let mut serving = tokio::spawn(serving.into_future());
    tokio::select! {
        ended = &mut serving => return ended?,
        signal = signals.next() => info!(signal, "stopping: finishing the requests that were let in"),
    }
    closing.cancel();
    stop.send_replace(());
    if let Ok(ended) = tokio::time::timeout(GRACE, serving).await {
        return ended?;
    }
    warn!(grace = ?GRACE, "connections are still open; leaving them");
    Ok(())
}

/// Waits for writes that go on though their clients have gone.
async fn finish_holds(locks: Option<RealmLocks>) -> Result<(), Failure> {
    if let Some(locks) = locks {
        locks.shutdown(GRACE).await?;
    }
    info!("stopped");
    Ok(())
}

fn start_log() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// The one line on stdout: it says that the server is there, and where.
fn announce(address: SocketAddr, lock: &Lock, directory: &DataDirectory) {
    let data = directory.path().display();
    let temporary = match directory {
        DataDirectory::Given(_) => "",
        DataDirectory::Temporary(_) => ", temporary",
    };
    let line = format!(
        "realm_server listening on http://{address} (locks: {lock}, data: {data}{temporary})"
    );
    let mut stdout = io::stdout().lock();
    if let Err(cause) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        // Nobody may be reading; that is no reason not to serve.
        warn!(%cause, "stdout is closed: {line}");
    }
}

/// Where the files are, and whether they stay.
enum DataDirectory {
    Given(PathBuf),
    Temporary(TempDir),
}

impl DataDirectory {
    fn open(given: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = given else {
            let directory = TempDir::with_prefix("realm-server-").map_err(|cause| {
                format!("cannot make a temporary directory: {cause}; give one with --data-dir")
            })?;
            return Ok(Self::Temporary(directory));
        };
        std::fs::create_dir_all(path).map_err(|cause| {
            format!(
                "cannot use --data-dir '{}': {cause}; give a directory that can be written",
                path.display()
            )
        })?;
        Ok(Self::Given(path.to_owned()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Temporary(directory) => directory.path(),
        }
    }
}
