//! What a server asks of a client over TLS, and what is done over such connections.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::sleep;
use tower_realm_lock::{ConnectError, LockError, RealmEvent, RealmLocks, RealmUrl, RealmWrites};

use super::authority::{Authority, Certified};
use super::server::{PASSWORD, TlsServer, encrypted};
use super::{assert_says, refusal};
use crate::support::bouncer::{Bouncer, Pooling};
use crate::support::database::{database_on, has_sessions};
use crate::support::gate::{answered, gate, patch, postgres_layer, postgres_layer_with};
use crate::support::silence::assert_waiters_leave_nothing;

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks() {
    let (server, database) = TlsServer::shared().await;
    let files = |name: &str, authority: &Authority, user: &str| {
        let client = authority.client(user);
        let certificate = server.file(&format!("{name}.pem"), &client.certificate);
        let key = server.file(&format!("{name}.key"), &client.key);
        format!("sslmode=require&sslcert={certificate}&sslkey={key}")
    };
    let url = |options: &str| server.url(&database, "certified", "localhost", options);
    let right = url(&files("right", &server.authority, "certified"));
    let _locks = RealmLocks::postgres(&right).await.unwrap();
    assert_eq!(encrypted(&database, "certified").await, [true]);

    let says = [
        "valid client certificate",
        "sslcert and sslkey",
        "or give one to `tls`",
    ];
    refusal(&url("sslmode=require"), &says).await;
    let another = url(&files("another", &server.authority, "somebody"));
    refusal(&another, &["authentication failed", "certified"]).await;
    let unsigned = url(&files("unsigned", &Authority::new(), "certified"));
    // Not, or maybe not: the end of the connection can overtake the reason.
    let says = ["not accept this client's certificate", "ssl_ca_file"];
    refusal(&unsigned, &says).await;
}

#[tokio::test]
async fn a_login_can_be_bound_to_the_servers_certificate() {
    let (server, database) = TlsServer::shared().await;
    let (port, name) = (server.cluster.port(), database.name());
    let bound = format!(
        "host=localhost port={port} dbname={name} user=bound password='{PASSWORD}' channel_binding=require"
    );
    let _locks = RealmLocks::postgres(&format!("{bound} sslmode=require"))
        .await
        .unwrap();
    assert_eq!(encrypted(&database, "bound").await, [true]);
    // Without TLS there is nothing to bind to.
    refusal(&format!("{bound} sslmode=disable"), &["channel binding"]).await;
}

#[tokio::test]
async fn sessions_and_listeners_know_the_server_behind_tls() {
    let (server, database) = TlsServer::shared().await;
    if !has_sessions(&database.connect().await).await {
        return;
    }
    let options = format!("sslmode=verify-full&sslrootcert={}", server.ca());
    let url = server.url(&database, "sealed", "localhost", &options);
    let mut writes = RealmWrites::listen(&url).await.unwrap();
    let layer = postgres_layer_with(&url, |builder| builder.sessions(2).broadcast(true)).await;
    let (handler, mut gate) = gate();
    let write = patch(&layer, &handler, "/luke/a/card");
    gate.entered().await.answer(200);
    assert_eq!(answered(write).await.status(), 200);
    assert!(matches!(writes.next().await, Some(RealmEvent::Write(_))));
    let all = encrypted(&database, "sealed").await;
    assert!(all.len() >= 3 && all.iter().all(|one| *one), "{all:?}");
}

#[tokio::test]
async fn a_pooler_behind_tls_is_known_for_one() {
    let (server, database) = TlsServer::shared().await;
    let shown = server.authority.server(&["localhost"]);
    let certificate = server.file("pooler.pem", &shown.certificate);
    let file = server.file("pooler.key", &shown.key);
    let tls = format!(
        "client_tls_sslmode = allow\nclient_tls_cert_file = {certificate}\nclient_tls_key_file = {file}\n"
    );
    let bouncer = Bouncer::with(database.url(), Pooling::Transaction, 4, &tls).await;
    let (port, name, ca) = (bouncer.port(), database.name(), server.ca());
    let url =
        format!("postgres://postgres@localhost:{port}/{name}?sslmode=verify-full&sslrootcert={ca}");
    let sessions = RealmLocks::postgres_builder(&url).sessions(1).build().await;
    let refused = sessions.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Pooler { .. }),
        "{refused:?}"
    );
    assert_says(&refused, &["a pooler answers"]);
    let listening = RealmWrites::listen(&url).await;
    assert!(
        matches!(listening, Err(ConnectError::Pooler { .. })),
        "{listening:?}"
    );

    let layer = postgres_layer(&url).await;
    assert_waiters_leave_nothing(&database, &layer).await;
}

#[tokio::test]
async fn files_that_are_renewed_count_for_the_next_connection() {
    let (server, _) = TlsServer::shared().await;
    let database = database_on(&server.cluster).await;
    let (authority, stranger) = (&server.authority, Authority::new());
    let give = |client: &Certified, roots: &str| {
        server.file("renewed.pem", &client.certificate);
        server.file("renewed.key", &client.key);
        server.file("renewed-ca.pem", roots)
    };
    let (right, wrong) = (authority.client("certified"), authority.client("somebody"));
    let roots = give(&right, &authority.pem());
    let folder = roots.trim_end_matches("-ca.pem");
    let options =
        format!("sslmode=verify-full&sslrootcert={roots}&sslcert={folder}.pem&sslkey={folder}.key");
    let url = server.url(&database, "certified", "localhost", &options);
    // Each hold has a connection of its own.
    let brief = Duration::from_millis(100);
    let locks = RealmLocks::postgres_builder(&url).max_connection_lifetime(brief);
    let locks = locks.build().await.unwrap();
    let lock = async || {
        sleep(brief).await;
        let realm = RealmUrl::parse("http://realms.test/luke/a/").unwrap();
        let work = async |_| Ok::<_, LockError>(());
        locks.with_write_lock(&realm, work).await
    };
    let not_signed = "signed by nobody who is trusted here";
    for (client, roots, says) in [
        (&wrong, authority.pem(), "authentication failed"),
        (&right, stranger.pem(), not_signed),
        (&right, "nothing".into(), "no certificate in PEM form"),
    ] {
        give(client, &roots);
        let refused = lock().await.unwrap_err();
        assert!(matches!(refused, LockError::Connect(_)), "{refused}");
        assert!(refused.to_string().contains(says), "{refused}");
        give(&right, &authority.pem());
        lock().await.unwrap();
    }
}
