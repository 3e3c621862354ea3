//! A tower layer that makes a realm's writes safe on many replicas.
//!
//! A *realm* is a tenant's space of documents and files, named by a URL that ends in `/`. As soon as two replicas of a realm
//! server stand behind a load balancer, two writers of one realm race: each reads a card, merges its own field, writes, and
//! one field is gone although both clients saw 200. [`RealmWriteLockLayer`] finds the realm of every mutating request and
//! holds a PostgreSQL advisory lock for the whole inner call. Any tower service is serialized per realm without a change to
//! its code; writes to different realms stay parallel, and reads are never held up.
//!
//! ```no_run
//! use tower_realm_lock::{RealmLocks, RealmPaths, RealmWriteLockLayer};
//! # async fn patch_card() {}
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let locks = RealmLocks::postgres("postgres://localhost/realms").await?;
//! let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
//! let app: axum::Router = axum::Router::new()
//!     .route("/{owner}/{realm}/{*path}", axum::routing::patch(patch_card))
//!     .layer(RealmWriteLockLayer::new(locks, realms));
//! # Ok(())
//! # }
//! ```
//!
//! The same with nothing but this crate's parts, and locks in process instead of in PostgreSQL:
//!
//! ```
//! use std::convert::Infallible;
//!
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_realm_lock::{HeldLock, RealmLocks, RealmPaths, RealmWriteLockLayer};
//!
//! async fn write(request: Request<String>) -> Result<Response<String>, Infallible> {
//!     // A locked request carries the handle of its hold.
//!     let held: &HeldLock = request.extensions().get().expect("PATCH is locked");
//!     Ok(Response::new(held.claim().to_string()))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
//! let service = ServiceBuilder::new()
//!     .layer(RealmWriteLockLayer::new(RealmLocks::in_process(), realms))
//!     .service_fn(write);
//!
//! let request = Request::patch("/luke/my-realm/card").body(String::new())?;
//! let response = service.oneshot(request).await?;
//! assert_eq!(response.status(), 200);
//! # Ok(())
//! # }
//! ```
//!
//! # Writing files
//!
//! A blocking thread cannot be stopped, and all of `tokio::fs` runs on such threads. When a handler
//! is dropped, by `max_hold`, a panic, a lost lock or [`OnDisconnect::Cancel`], its file work runs
//! on. So start it as part of the hold: [`HeldLock::spawn_blocking`] keeps the lock until the work
//! has ended, while the response leaves on time. Immediately before the write becomes visible,
//! [`HeldLock::ensure_held`] stops a writer that has lost its lock:
//!
//! ```
//! use std::{fs, io, path::PathBuf};
//!
//! use axum::http::StatusCode;
//! use tower_realm_lock::HeldLock;
//!
//! # #[cfg(feature = "axum")]
//! async fn put_card(held: HeldLock, card: String) -> StatusCode {
//!     let lock = held.clone();
//!     let written = held.spawn_blocking(move || {
//!         fs::write("card.json.new", card)?;
//!         lock.ensure_held().map_err(io::Error::other)?;
//!         fs::rename("card.json.new", "card.json")
//!     });
//!     match written.await {
//!         Ok(Ok(())) => StatusCode::NO_CONTENT,
//!         // If the lock was lost, the layer answers for the handler.
//!         Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
//!     }
//! }
//! ```
//!
//! [`HeldLock::spawn`] does the same for a future that must not be cut in half. A handler whose
//! durable part is done before its slow part calls [`HeldLock::release`]: its success is confirmed
//! then, and the rest runs without the lock.
//!
//! # When not
//!
//! - **One process**: [`RealmLocks::in_process`] is enough, and needs no database. It is the one to begin with.
//! - **The write is one statement**, or the store can compare and swap (a version column, a conditional PUT): let the store refuse the
//!   second writer. A lock is for handlers that read, think and write in several places.
//! - **Work of minutes or hours**: a job in a table that workers take, not a request that holds a lock.
//! - **Several regions, or no PostgreSQL**: advisory locks reach as far as one database of one primary.
//! - **A process that must not write late even after it stood still for minutes**: no lock alone can promise that. Use the
//!   [`FencingToken`] that comes with it, and let the store compare.
//!
//! # How it is built
//!
//! A request takes one way: the layer (*where* it applies) asks the resolver and the rules (*what*
//! is locked) for the claim and [`RealmLocks`] (*how* it is held) for a hold, calls the inner
//! service, and releases.
//!
//! - **Waiting costs no connection.** Callers stand in an in-process queue; for each realm at most one of a process talks to
//!   PostgreSQL, on a pool of the locks' own.
//! - **A busy realm's lock is handed on** from one local waiter to the next without a round trip, bounded in count and time, so
//!   that other replicas get their turn.
//! - **A client that leaves leaves nothing behind**: its place in the queue is given up, and a wait
//!   that has reached PostgreSQL goes on for the next local waiter, or is cancelled there.
//! - **A granted call runs in place**, in its caller's own task, with the caller's task-locals and
//!   contexts. If its client leaves, a task adopts it, and it runs to its end.
//! - **A success is confirmed**: it leaves only after PostgreSQL has answered that the lock was held to the end of the call. The
//!   next write is inside meanwhile.
//! - **A lost lock is noticed**: the call is dropped and its client gets 503 instead of a success.
//!
//! # What is locked
//!
//! A request takes its realm as a whole, unless the rules say that its route writes single
//! resources: then it takes these resources exclusively, and the realm shared. Each route can find
//! realms in its own way: in the path, in a list that changes, in a header, an extension or the
//! body, or by a closure; see [`RealmResolver`]. What is in bodies is found by a
//! [`RealmBodyLockLayer`], behind which a request has a [`RequestBody`]. What is locked need not be
//! a realm: a tenant id becomes a [`LockKey`] of its own space.
//!
//! ```
//! use http::Method;
//! use tower_realm_lock::{
//!     LockRules, RealmBodyLockLayer, RealmBodyResolver, RealmLocks, RealmPaths, RealmPointers,
//!     Scope,
//! };
//!
//! let publish = RealmPointers::new(["/sourceRealmURL", "/publishedRealmURL"])?;
//! let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
//! let realms = RealmBodyResolver::from(realms)
//!     .route(Method::POST, "/_publish-realm", publish)?;
//! let rules = LockRules::new()
//!     .exempt(Method::POST, "/{owner}/{realm}/_search")?
//!     .scope(Method::POST, "/{owner}/{realm}/_atomic", Scope::atomic_hrefs())?
//!     .scope(Method::PATCH, "/{owner}/{realm}/{*card}", Scope::resource())?;
//! let layer = RealmBodyLockLayer::new(RealmLocks::in_process(), realms, 1024 * 1024)
//!     .rules(rules);
//! # let _ = layer;
//! # Ok::<(), tower_realm_lock::ConfigError>(())
//! ```
//!
//! [`explain`](RealmWriteLockLayer::explain) shows what one request locks, and why. A layer logs
//! what it locks when it starts, and why a request names no realm, with the remedy.
//!
//! Ambiguous requests are locked more widely or rejected: a path that two servers read differently, a
//! name that stands twice in a JSON object, a header that overrides the method and says two things.
//!
//! The rules also let ordinary writers [share](Scope::shared) a realm that a purge takes as a
//! whole, and give a route [limits](LockRules::limits) and an answer of its own for a busy realm.
//! WebDAV's MOVE and COPY lock the realm of their `Destination` too: see
//! [`LockRules`](LockRules#move-and-copy).
//!
//! # What replicas tell each other
//!
//! With [`broadcast(true)`](PostgresBuilder::broadcast) each successful write is told to all replicas, once its hold has ended:
//! [`RealmWrites`] is the stream of these events, which a cache needs to stay right.
//!
//! # Features
//!
//! None is on by default.
//!
//! - `axum`: finds realms by the parameters of the route that axum's router has matched, so that
//!   other routes pass and nested routers need no care; reads `ConnectInfo`; and lets handlers take
//!   [`HeldLock`] and [`LockTransaction`] as arguments. Recommended with axum. It can change which requests are locked: turn it on in all replicas or in none.
//! - `metrics`: counts waits, holds, hand-offs, losses and rejections through the `metrics` facade;
//!   [operations](guide::operations) has the list.
//! - `serde`: reads [`RealmPaths`], [`LockRules`], `Limits` and [`PostgresBuilder`] from a
//!   configuration file; unknown keys are errors. Reads and writes [`RealmUrl`], [`LockKey`] and
//!   [`FencingToken`].
//! - `test-util`: `HeldLock::lose` takes a hold's lock away on purpose, for tests of what an
//!   application does then. Turn it on under `[dev-dependencies]`.
//! - `tls-rustls`: TLS to PostgreSQL as the URL describes it, by rustls with ring. No crypto
//!   provider has to be installed for the process. [`PostgresBuilder::tls`] takes any other TLS of
//!   the driver's and needs no feature.
//!
//! # Deployment
//!
//! - All replicas use one database of one primary. Advisory locks reach no further; a standby is refused.
//! - All replicas compute the same realm URL: give them the same public base URL and the same
//!   patterns. With [`fleet`](RealmWriteLockLayer::fleet) replicas that differ log an error about
//!   each other.
//! - A service that starts before its database builds its locks with
//!   [`build_lazy`](PostgresBuilder::build_lazy).
//! - One hold takes one connection of `pool_size`, so a process writes at most that many realms at once. For thousands of realms
//!   there are [sessions](PostgresBuilder::sessions).
//! - PgBouncer works in session and in transaction mode, but for sessions, which need PostgreSQL itself.
//! - Patterns describe the whole path of a request, the base URL's path included. Inside axum's
//!   `nest` a layer sees the whole path only with the feature `axum`; without it, put the layer
//!   outside of `nest`. [`RealmPaths`](RealmPaths#which-path-counts) describes which path counts.
//! - Origins come from the configuration, so absolute URIs, HTTP/2's `:authority`, `Host` and `Forwarded` change nothing, unless
//!   [`RequestOrigin`] says that they do.
//! - A layer that overrides methods, decompresses bodies or rewrites paths goes outside of this one, or this one must be told of it.
//! - Connections to PostgreSQL are encrypted as the URL's `sslmode` says: see
//!   [`PostgresBuilder`](PostgresBuilder#database-urls). Without the feature `tls-rustls` they are
//!   in clear text, and a URL with `sslmode=require` is refused. Over a network that is not yours
//!   alone use `sslmode=verify-full`.
//! - Every way to write must be inside the layer, or take the same lock: jobs with [`RealmLocks::with_write_lock`].
//! - Start blocking work with [`HeldLock::spawn_blocking`], never with tokio's own `spawn_blocking`
//!   or `tokio::fs`: see [Writing files](#writing-files). If even a write that was in flight when
//!   the lock was lost must not land, let the store compare the [`FencingToken`].
//!
//! # Further reading
//!
//! - [guarantees](guide::guarantees): what is promised, under which faults, with the test of each promise; and what no lock can promise.
//! - [migrating](guide::migrating): from locks written by hand, with old and new replicas side by side.
//! - [options](guide::options): all of them in tables, and configuration files.
//! - [tenancy](guide::tenancy): which realm a request is for, with tenants in paths, subdomains,
//!   headers, tokens or custom domains.
//! - [layers](guide::layers): where CORS, compression, conditional requests and time limits go, and
//!   what WebSockets and streams need.
//! - [testing](guide::testing): two replicas in one test, with and without the lock.
//! - [fencing](guide::fencing): the SQL that refuses a late writer.
//! - [operations](guide::operations): what to look at, what to do when a realm is stuck, and
//!   uploads.
//! - [scaling](guide::scaling): how many connections, when sessions, what one PostgreSQL carries.
//!
//! # Rejections
//!
//! A request that does not reach the inner service, or whose lock did not hold, is answered with
//! `application/problem+json` (RFC 9457). The `type` of the problem leads here.
//!
//! A gRPC request gets a `grpc-status` instead: status 200, no body, and in the headers
//! `grpc-status` and, percent-encoded in `grpc-message`, the detail. A gRPC-Web request gets the
//! same headers with its own content type. [`Rejection::to_response_for`] describes both.
//!
//! | situation | status | code | `grpc-status` |
//! | --- | --- | --- | --- |
//! | <a id="lock-timeout"></a>no lock within the acquire timeout | 503, `Retry-After` | `lock-timeout` | 14 `UNAVAILABLE` |
//! | <a id="queue-full"></a>too many requests wait for this realm | 503, `Retry-After` | `queue-full` | 8 `RESOURCE_EXHAUSTED` |
//! | <a id="lock-unavailable"></a>database unreachable or a standby, lock connections exhausted, shutting down | 503, `Retry-After` | `lock-unavailable` | 14 `UNAVAILABLE` |
//! | <a id="lock-lost"></a>the lock was lost during the call; the write may or may not stand | 503 | `lock-lost` | 10 `ABORTED` |
//! | <a id="commit-failed"></a>a shared transaction could not commit; the write does not stand | 503 | `commit-failed` | 10 `ABORTED` |
//! | <a id="hold-expired"></a>the call took longer than `max_hold` and was stopped | 504 | `hold-expired` | 4 `DEADLINE_EXCEEDED` |
//! | <a id="realm-unresolved"></a>no realm in the request, or a request that can be read in two ways | 400 | `realm-unresolved` | 3 `INVALID_ARGUMENT` |
//! | <a id="realm-unavailable"></a>a resolver of the application's own could not look the realm up | 503, `Retry-After` | `realm-unavailable` | 14 `UNAVAILABLE` |
//! | <a id="body-too-large"></a>a body that the layer reads is over the limit | 413 | `body-too-large` | 8 `RESOURCE_EXHAUSTED` |
//! | <a id="body-timeout"></a>such a body did not arrive within `body_timeout` | 408 | `body-timeout` | 4 `DEADLINE_EXCEEDED` |
//! | <a id="body-broken"></a>such a body broke off | 400 | `body-broken` | 3 `INVALID_ARGUMENT` |
//!
//! A route may have another [status](RouteLimits::busy_status) for `lock-timeout` and `queue-full`,
//! such as 409 or 423.

// docs.rs builds with a nightly Rust, and says of each item which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod config;
#[cfg(any(doc, doctest))]
pub mod guide;
mod layer;
mod lock;
mod metrics;
mod realm;

pub use tokio_postgres;

pub use self::config::ConfigError;
#[cfg(feature = "serde")]
pub use self::layer::Limits;
pub use self::layer::{
    BodyError, HoldUntil, LockBody, OnDisconnect, RealmBodyLock, RealmBodyLockLayer,
    RealmWriteLock, RealmWriteLockLayer, Rejection, RequestBody, ResponseFuture, Success,
};
pub use self::lock::{
    ClaimStatus, ConnectError, FencingToken, HeldLock, HeldTask, LockError, LockErrorKind,
    LockTransaction, PostgresBuilder, RealmEvent, RealmLocks, RealmWrite, RealmWrites,
    TransactionClient,
};
pub use self::realm::{
    Claim, Explanation, LockKey, LockRules, MethodSet, PathProblem, PeerAddr, RealmBodyResolver,
    RealmError, RealmMounts, RealmPaths, RealmPointers, RealmResolver, RealmUrl, RequestHead,
    RequestOrigin, RouteLimits, Scope, TrustedProxies, UnixPeer, Unresolved,
};
