//! A handler that shares the lock's transaction cannot reach past its own hold: not with a client that it keeps, and not
//! through the session.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::mpsc::{self, TryRecvError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::Config;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tower::{Layer, ServiceExt, service_fn};
use tower_realm_lock::{LockError, LockTransaction, RealmWriteLockLayer, TransactionClient};

use crate::support::database::{TestDatabase, database};
use crate::support::gate::{answered, code, gate, key, patch, postgres_layer_with};
use crate::support::wait::wait_until;

const PATH: &str = "/luke/a/card";
const OTHER: &str = "/leia/b/card";

/// A table of writes, and a layer with a single connection.
async fn set_up() -> (TestDatabase, RealmWriteLockLayer) {
    let database = database().await;
    let client = database.connect().await;
    client
        .batch_execute(
            "CREATE TABLE writes (n int); CREATE TYPE one AS ENUM ('a'); CREATE TYPE two AS ENUM ('a')",
        )
        .await
        .unwrap();
    let layer = postgres_layer_with(database.url(), |builder| builder.pool_size(1)).await;
    (
        database,
        layer.map_locks(|locks| locks.share_transaction(true)),
    )
}

async fn written(database: &TestDatabase) -> i64 {
    let client = database.connect().await;
    let row = client.query_one("SELECT count(*) FROM writes", &[]).await;
    row.unwrap().get(0)
}

#[tokio::test]
async fn a_client_that_is_kept_past_the_hold_writes_nowhere() {
    let (database, layer) = set_up().await;
    for status in [200, 404] {
        let (handler, mut gate) = gate();
        let busy = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let transaction = call.transaction().clone();
        let client = transaction.client().unwrap();
        call.answer(status);
        let response = busy.await.unwrap().unwrap();
        if status == 200 {
            assert_eq!(code(&response), "commit-failed");
        }
        database.wait_for_granted(key(PATH), 0).await;
        assert!(matches!(
            transaction.client(),
            Err(LockError::TransactionEnded { .. })
        ));

        let insert = "INSERT INTO writes VALUES (1)";
        assert!(client.batch_execute(insert).await.is_err());
        let other = patch(&layer, &handler, OTHER);
        let call = gate.entered().await;
        assert!(client.batch_execute(insert).await.is_err());
        call.answer(200);
        assert_eq!(other.await.unwrap().unwrap().status(), 200);
        assert_eq!(written(&database).await, 0);
    }
}

/// A thread asks for the client just as the hold ends: later if it was given the last one, and
/// sooner if it was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_refused_fails_no_commit() {
    let (_database, layer) = set_up().await;
    let (ended, endings) = mpsc::channel::<LockTransaction>();
    let (sender, mut clients) = tokio::sync::mpsc::unbounded_channel();
    let thread = std::thread::spawn(move || {
        let mut delay = 0_u32;
        loop {
            match endings.try_recv() {
                Ok(transaction) => {
                    (0..delay).for_each(|_| std::hint::spin_loop());
                    let client = transaction.client();
                    // Far more are refused: each client that is given costs a login.
                    delay = match client {
                        Ok(_) => delay + 9,
                        Err(_) => delay.saturating_sub(1),
                    };
                    sender.send(client).unwrap();
                }
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    });
    let handler = service_fn(move |request: Request<String>| {
        let transaction = request.extensions().get::<LockTransaction>().unwrap();
        ended.send(transaction.clone()).unwrap();
        ready(Ok::<_, Infallible>(Response::new(String::new())))
    });
    let service = layer.layer(handler);
    for _ in 0..1500 {
        let request = Request::patch(PATH).body(String::new()).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let client = clients.recv().await.unwrap();
        let expected = if client.is_ok() { 503 } else { 200 };
        assert_eq!(response.status(), expected);
    }
    drop(service);
    thread.join().unwrap();
}

#[tokio::test]
async fn what_a_handler_does_to_its_session_does_not_reach_the_next_hold() {
    let (database, layer) = set_up().await;
    let client = database.connect().await;
    client
        .batch_execute("CREATE SEQUENCE public.counter")
        .await
        .unwrap();
    let change = "SET search_path = elsewhere; SET statement_timeout = '7s'; \
        SELECT pg_advisory_lock(42); CREATE TEMP TABLE secret (n int); LISTEN news; \
        SELECT nextval('public.counter'); SET my.secret = 'luke'; \
        SELECT lo_creat(-1); \
        DECLARE kept CURSOR WITH HOLD FOR SELECT 'of luke'; \
        SET SESSION AUTHORIZATION pg_monitor; SET ROLE pg_read_all_settings";
    for (status, ends_itself) in [(200, false), (404, false), (200, true)] {
        let (handler, mut gate) = gate();
        let one = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let sql = if ends_itself {
            format!("{change}; COMMIT")
        } else {
            change.to_owned()
        };
        let client = call.transaction().client().unwrap();
        client.batch_execute(&sql).await.unwrap();
        // For a type that it does not know the driver prepares statements of its own, and keeps them: they must survive.
        let unknown = "SELECT 'a'::public.one";
        client.query_one(unknown, &[]).await.unwrap();
        drop(client);
        call.answer(status);
        let answered = one.await.unwrap().unwrap().status();
        assert_eq!(answered, if ends_itself { 503 } else { status });

        let two = patch(&layer, &handler, OTHER);
        let call = gate.entered().await;
        let client = call.transaction().client().unwrap();
        let row = client
            .query_one(
                "SELECT concat_ws(' ', current_setting('search_path'), current_setting('statement_timeout'), \
                 current_user, session_user, to_regclass('pg_temp.secret'), \
                 (SELECT count(*) FROM pg_locks WHERE objid = 42 AND pid = pg_backend_pid()), \
                 (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_cursors WHERE name = 'kept'), \
                 nullif(current_setting('my.secret', true), ''))",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(
            row.get::<_, &str>(0),
            "\"$user\", public 0 postgres postgres 0 0 0"
        );
        let current = client.query_one("SAVEPOINT s", &[]).await;
        drop(current);
        let current = client
            .batch_execute("SELECT currval('public.counter')")
            .await;
        assert!(current.is_err(), "it is not of this session");
        client.batch_execute("ROLLBACK TO s").await.unwrap();
        let unknown = "SELECT 'a'::public.two";
        client.query_one(unknown, &[]).await.unwrap();
        drop(client);
        call.answer(200);
        assert_eq!(two.await.unwrap().unwrap().status(), 200);
    }
    wait_until("the connection is used again", async || {
        database.backends().await <= 1
    })
    .await;
}

#[tokio::test]
async fn what_an_operator_cancels_is_not_taken_for_the_acquire_timeout() {
    let database = database().await;
    let layer = postgres_layer_with(database.url(), |builder| builder).await;
    let _foreign = database.hold(key(PATH)).await;
    let (handler, _gate) = gate();
    let patient = layer.map_locks(|locks| locks.acquire_timeout(Duration::from_secs(60)));
    let refused = patch(&patient, &handler, PATH);
    database.wait_for_waiting(key(PATH), 1).await;
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let operator = database.connect().await;
    operator.batch_execute(cancel).await.unwrap();
    assert_eq!(code(&answered(refused).await), "lock-unavailable");
}

/// The answer to a question that prepares nothing.
async fn ask(client: &TransactionClient, question: &str) -> String {
    let row = client.query_typed_one(question, &[]).await.unwrap();
    row.get(0)
}

const PREPARED: &str = "SELECT coalesce(string_agg(statement, '; '), 'none') \
                        FROM pg_prepared_statements";

#[tokio::test]
async fn what_a_handler_prepares_is_neither_read_nor_in_the_way_in_the_next_hold() {
    let (database, layer) = set_up().await;
    for (status, with_own_type) in [(200, false), (404, false), (200, true)] {
        let (handler, mut gate) = gate();
        let one = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let client = call.transaction().client().unwrap();
        client
            .batch_execute("PREPARE secret AS SELECT 'of luke'")
            .await
            .unwrap();
        if with_own_type {
            client.query_one("SELECT 'a'::one", &[]).await.unwrap();
        }
        let kept = client.prepare("SELECT 'kept by luke'").await.unwrap();
        drop(client);
        call.answer(status);
        assert_eq!(one.await.unwrap().unwrap().status(), status);

        let two = patch(&layer, &handler, OTHER);
        let call = gate.entered().await;
        let client = call.transaction().client().unwrap();
        assert_eq!(ask(&client, PREPARED).await, "none");
        let own = "PREPARE secret AS SELECT 'of leia'";
        client.batch_execute(own).await.unwrap();
        assert!(client.query(&kept, &[]).await.is_err());
        drop(client);
        call.answer(404);
        two.await.unwrap().unwrap();
    }
    database.wait_for_granted(key(OTHER), 0).await;
}

#[tokio::test]
async fn a_statement_that_is_dropped_during_the_commit_hides_no_other() {
    let (database, layer) = set_up().await;
    let admin = database.connect().await;
    let slow_commit = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql \
            AS 'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END'; \
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON writes \
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()";
    admin.batch_execute(slow_commit).await.unwrap();
    let gatekeeper = database.hold(42).await;
    let (handler, mut gate) = gate();
    let one = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let client = call.transaction().client().unwrap();
    let change = "INSERT INTO writes VALUES (1); PREPARE secret AS SELECT 'of luke'";
    client.batch_execute(change).await.unwrap();
    let kept = client.prepare("SELECT 'kept by luke'").await.unwrap();
    drop(client);
    call.answer(200);
    database.wait_for_waiting(42, 1).await;
    // The driver closes it while the COMMIT runs.
    drop(kept);
    gatekeeper.batch_execute("COMMIT").await.unwrap();
    assert_eq!(one.await.unwrap().unwrap().status(), 200);

    let two = patch(&layer, &handler, OTHER);
    let call = gate.entered().await;
    let client = call.transaction().client().unwrap();
    assert_eq!(ask(&client, PREPARED).await, "none");
    drop(client);
    call.answer(404);
    two.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_handler_that_forgets_all_statements_does_not_spoil_the_drivers_for_the_next() {
    let (_database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    for (own, forget) in [("SELECT 'a'::one", true), ("SELECT 'a'::two", false)] {
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let client = call.transaction().client().unwrap();
        client.query_one(own, &[]).await.unwrap();
        if forget {
            client.batch_execute("DEALLOCATE ALL").await.unwrap();
        }
        drop(client);
        call.answer(200);
        assert_eq!(write.await.unwrap().unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_connection_that_is_clean_is_used_again() {
    let (_database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    let mut seen = BTreeSet::new();
    // Types that are looked up by statements which the driver keeps.
    for (status, own) in [
        (200, "SELECT 1"),
        (404, "SELECT 1"),
        (200, "SELECT 'a'::public.one"),
        (404, "SELECT '(1)'::public.writes"),
        (200, "SELECT 'a'::public.two"),
        (200, "SELECT 1"),
    ] {
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let client = call.transaction().client().unwrap();
        let change = "SET search_path = elsewhere; CREATE TEMP TABLE secret (n int)";
        client.batch_execute(change).await.unwrap();
        client.query_one(own, &[]).await.unwrap();
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await;
        seen.insert(pid.unwrap().get::<_, i32>(0));
        drop(client);
        call.answer(status);
        assert_eq!(write.await.unwrap().unwrap().status(), status);
    }
    assert_eq!(seen.len(), 1);
}

/// Takes a connection in clear text for an encrypted one.
struct InTheClear;

struct Clear<'a>(&'a mut TcpStream);

impl<'a> TlsConnect<&'a mut TcpStream> for InTheClear {
    type Stream = Clear<'a>;
    type Error = Infallible;
    type Future = Ready<Result<Clear<'a>, Infallible>>;

    fn connect(self, stream: &'a mut TcpStream) -> Self::Future {
        ready(Ok(Clear(stream)))
    }
}

impl TlsStream for Clear<'_> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Clear<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Clear<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_cancel_token_that_is_kept_cancels_nothing_in_the_next_hold() {
    let (database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    let one = patch(&layer, &handler, PATH);
    let call = gate.entered().await;
    let token = call.transaction().client().unwrap().cancel_token();
    call.answer(200);
    assert_eq!(one.await.unwrap().unwrap().status(), 200);

    let gatekeeper = database.hold(42).await;
    let two = patch(&layer, &handler, OTHER);
    let call = gate.entered().await;
    let client = call.transaction().client().unwrap();
    let statement = tokio::spawn(async move {
        let waited = client.batch_execute("SELECT pg_advisory_xact_lock(42)");
        waited.await
    });
    database.wait_for_waiting(42, 1).await;
    let server: Config = database.url().parse().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", server.get_ports()[0]))
        .await
        .unwrap();
    // The token takes the connection for an encrypted one.
    token
        .cancel_query_raw(&mut stream, InTheClear)
        .await
        .unwrap();
    // The server closes the connection when it has done with the request.
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    gatekeeper.batch_execute("COMMIT").await.unwrap();
    statement.await.unwrap().unwrap();
    call.answer(200);
    assert_eq!(two.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_library_that_a_handler_loads_is_not_in_the_next_holds_session() {
    let (_database, layer) = set_up().await;
    let (handler, mut gate) = gate();
    for status in [200, 404] {
        let write = patch(&layer, &handler, PATH);
        let call = gate.entered().await;
        let client = call.transaction().client().unwrap();
        let loaded = "SELECT count(*)::text FROM pg_settings WHERE name LIKE 'auto_explain.%'";
        assert_eq!(ask(&client, loaded).await, "0");
        client.batch_execute("LOAD 'auto_explain'").await.unwrap();
        assert_ne!(ask(&client, loaded).await, "0");
        drop(client);
        call.answer(status);
        assert_eq!(write.await.unwrap().unwrap().status(), status);
    }
    let last = patch(&layer, &handler, OTHER);
    let call = gate.entered().await;
    let client = call.transaction().client().unwrap();
    assert!(
        client
            .batch_execute("SHOW auto_explain.log_nested_statements")
            .await
            .is_err()
    );
    drop(client);
    call.answer(404);
    last.await.unwrap().unwrap();
}
