//! A nightly job under the same lock as the web handlers: neither writes a realm while the other does.
//!
//! ```text
//! cargo run --example background_job
//!
//! card=http://127.0.0.1:3000/luke/my-realm/card
//! curl -i -T README.md $card                  # while the job runs: after a second 503 lock-timeout, with Retry-After
//! sleep 4; (sleep 15; echo hello) | curl -T - $card   # after the job, a slow upload holds the lock: the next job is put off
//! ```
//!
//! The job takes 4 seconds, and begins again `NIGHT` seconds later: 10 if not set. With `DATABASE_URL` the locks are in
//! PostgreSQL, and hold across replicas. `PORT` is where to listen: 3000 if not set.

use std::env;
use std::error::Error;
use std::thread;
use std::time::Duration;

use axum::{Router, body::Bytes, routing::put};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower_realm_lock::{
    HeldLock, LockError, RealmLocks, RealmPaths, RealmUrl, RealmWriteLockLayer,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (locks, place) = match env::var("DATABASE_URL") {
        Ok(url) => (RealmLocks::postgres(&url).await?, "PostgreSQL"),
        Err(_) => (RealmLocks::in_process(), "this process only"),
    };
    // One queue for requests and job, so that all wait in order of arrival.
    let locks = locks.acquire_timeout(Duration::from_secs(1));
    let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
    let realm = realms.resolve("/luke/my-realm/")?;
    let upload = async |body: Bytes| format!("{} bytes\n", body.len());
    let app = Router::new()
        .route("/{owner}/{realm}/{card}", put(upload))
        .layer(RealmWriteLockLayer::new(locks.clone(), realms));

    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let night = env::var("NIGHT").map_or(Ok(10.0), |night| night.parse())?;
    let night = Duration::try_from_secs_f64(night)?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("background_job listening on http://{address} (locks in {place})");
    let stop = CancellationToken::new();
    let job = tokio::spawn(every_night(night, locks.clone(), realm, stop.clone()));
    let interrupted = async move {
        drop(tokio::signal::ctrl_c().await);
        stop.cancel();
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(interrupted)
        .await?;
    // A night's work that has begun comes to its end.
    locks.shutdown(Duration::from_secs(30)).await?;
    Ok(job.await?)
}

async fn every_night(night: Duration, locks: RealmLocks, realm: RealmUrl, stop: CancellationToken) {
    loop {
        match locks.with_write_lock(&realm, index).await {
            Ok(parts) => println!("job: done, {parts} parts"),
            Err(error @ LockError::Timeout { .. }) => {
                println!("job: put off until the next night: {error}");
            }
            Err(error) => println!("job: failed: {error}"),
        }
        if stop.run_until_cancelled(sleep(night)).await.is_none() {
            return;
        }
    }
}

/// If the lock is lost, this is dropped at its `await`. Nothing can stop the thread, so it asks
/// whether the lock is still held. Nobody else gets the lock until the thread has ended.
async fn index(held: HeldLock) -> Result<u32, LockError> {
    let lock = held.clone();
    let indexing = held.spawn_blocking(move || {
        let parts = 4;
        for part in 1..=parts {
            if let Err(error) = lock.ensure_held() {
                println!("job: stopped before part {part}: {error}");
                return part - 1;
            }
            println!("job: part {part} of {parts}");
            thread::sleep(Duration::from_secs(1));
        }
        parts
    });
    indexing.await
}
