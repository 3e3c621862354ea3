//! Ten slow uploads of ten tenants, over real sockets, beside a tenant that writes a card: what the
//! uploads take of a pool of ten, and that the configurations in *Uploads* of `docs/operations.md`
//! take nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{patch, put};
use axum::{Extension, Router};
use futures_util::StreamExt;
use http::{Method, StatusCode};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tower_realm_lock::{
    HeldLock, LockError, LockRules, RealmLocks, RealmWriteLockLayer, Rejection,
};

use crate::support::claims::{whole, work};
use crate::support::database::{TestDatabase, database, has_sessions};
use crate::support::gate::{key, postgres_locks_with, realms};
use crate::support::raw::{Connection, raw};

const UPLOADS: usize = 10;
const SIZE: usize = 1000;

/// How an upload meets its lock.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// The handler reads the body under the lock.
    Under,
    /// The same, with the locks on sessions.
    UnderSessions,
    /// The layer reads the body before the lock.
    ReadAll,
    /// The route passes. Its handler takes the lock for the rename.
    Staged,
}

struct Server {
    address: SocketAddr,
    files: Arc<Files>,
}

struct Files {
    directory: TempDir,
    locks: RealmLocks,
}

impl Files {
    /// The file of a tenant.
    fn of(&self, tenant: &str) -> std::path::PathBuf {
        self.directory.path().join(tenant)
    }

    fn size(&self, tenant: &str) -> Option<u64> {
        self.of(tenant).metadata().ok().map(|it| it.len())
    }
}

async fn serve(database: &TestDatabase, way: Way) -> Server {
    let sessions = u32::from(way == Way::UnderSessions);
    let locks = postgres_locks_with(database.url(), |builder| {
        builder.pool_size(10).sessions(sessions)
    });
    let locks = locks.await.acquire_timeout(Duration::from_millis(500));
    let files = Arc::new(Files {
        directory: TempDir::new().unwrap(),
        locks: locks.clone(),
    });
    let routes = Router::new()
        .route("/{owner}/{realm}/upload", put(upload))
        .route("/{owner}/{realm}/card", patch(async || {}))
        .with_state(Arc::clone(&files));
    let layer = RealmWriteLockLayer::new(locks, realms());
    let app = match way {
        Way::Under | Way::UnderSessions => routes.layer(layer),
        Way::ReadAll => routes.layer(layer.read_bodies(SIZE).read_all(true)),
        Way::Staged => {
            let rules = LockRules::new();
            let rules = rules.exempt(Method::PUT, "/{owner}/{realm}/upload");
            routes.layer(layer.rules(rules.unwrap()).unwrap())
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    Server { address, files }
}

async fn upload(
    State(files): State<Arc<Files>>,
    Path((_, tenant)): Path<(String, String)>,
    held: Option<Extension<HeldLock>>,
    request: Request,
) -> Response {
    let realm = realms().resolve(request.uri().path()).unwrap();
    let staged = files.of(&format!("{tenant}.new"));
    stage(&staged, request.into_body()).await;
    let file = files.of(&tenant);
    let done = if let Some(Extension(held)) = held {
        publish(held, staged, file).await
    } else {
        let work = |held| publish(held, staged, file);
        files.locks.with_write_lock(&realm, work).await
    };
    match done {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(error) => Rejection::Lock(error).to_response().map(Body::from),
    }
}

/// Writes a body to a file of its own, at the client's pace.
async fn stage(path: &std::path::Path, body: Body) {
    let mut file = tokio::fs::File::create(path).await.unwrap();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        file.write_all(&chunk.unwrap()).await.unwrap();
    }
    file.flush().await.unwrap();
}

async fn publish(
    held: HeldLock,
    staged: std::path::PathBuf,
    file: std::path::PathBuf,
) -> Result<(), LockError> {
    let lock = held.clone();
    let renamed = held.spawn_blocking(move || {
        lock.ensure_held()?;
        std::fs::rename(staged, file).unwrap();
        Ok(())
    });
    renamed.await?
}

/// An upload that has begun: its handler, or the layer, reads its body, and half of it is sent.
async fn begun(server: &Server, tenant: &str) -> Connection {
    let head = format!(
        "PUT /luke/{tenant}/upload HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\n\
         content-length: {SIZE}\r\n\r\n"
    );
    let mut upload = Connection::with(server.address, &head).await;
    assert_eq!(upload.status().await, 100);
    upload.send(&[b' '; SIZE / 2]).await;
    upload
}

/// A write of a small card of another tenant.
async fn write(server: &Server) -> (u16, String) {
    let head = b"PATCH /luke/other/card HTTP/1.1\r\nhost: h";
    raw(server.address, head, "").await
}

#[tokio::test]
async fn ten_slow_uploads_hold_up_no_other_tenant_where_their_bodies_come_before_the_lock() {
    for way in [Way::Under, Way::UnderSessions, Way::ReadAll, Way::Staged] {
        let database = database().await;
        let needs_sessions = way == Way::UnderSessions;
        if needs_sessions && !has_sessions(&database.connect().await).await {
            continue;
        }
        let server = serve(&database, way).await;
        let tenants: Vec<_> = (0..UPLOADS).map(|n| format!("t{n}")).collect();
        let mut uploads = Vec::new();
        for tenant in &tenants {
            uploads.push(begun(&server, tenant).await);
        }
        let are_held = matches!(way, Way::Under | Way::UnderSessions);
        let held = if are_held { UPLOADS } else { 0 };
        assert_eq!(server.files.locks.status().len(), held, "{way:?}");

        let (status, answer) = write(&server).await;
        if way == Way::Under {
            assert_eq!(status, 503);
            assert!(answer.contains("#lock-unavailable"), "{answer}");
            // The error that is logged.
            let locks = &server.files.locks;
            let error = work(locks, &whole(["other"])).refused().await;
            assert!(matches!(error, LockError::PoolExhausted { .. }));
            for remedy in ["read_all", "with_write_lock", "sessions", "pool_size"] {
                assert!(error.to_string().contains(remedy), "{error}");
            }
        } else {
            assert_eq!(status, 200, "{way:?}: {answer}");
        }

        for (mut upload, tenant) in uploads.into_iter().zip(&tenants) {
            assert_eq!(server.files.size(tenant), None);
            upload.send(&[b' '; SIZE / 2]).await;
            assert_eq!(upload.status().await, 201, "{way:?}");
            assert_eq!(server.files.size(tenant), Some(SIZE as u64));
        }
        assert_eq!(write(&server).await.0, 200);
    }
}

#[tokio::test]
async fn a_staged_upload_becomes_visible_under_the_lock() {
    let database = database().await;
    let server = serve(&database, Way::Staged).await;
    let mut upload = begun(&server, "a").await;
    let key = key("/luke/a/upload");
    let other = database.hold(key).await;
    upload.send(&[b' '; SIZE / 2]).await;
    database.wait_for_waiting(key, 1).await;
    assert_eq!(server.files.size("a.new"), Some(SIZE as u64));
    assert_eq!(server.files.size("a"), None);
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(upload.status().await, 201);
    assert_eq!(server.files.size("a"), Some(SIZE as u64));
}
