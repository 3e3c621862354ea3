//! What is said when client and server do not come together, and what to do then.

use std::time::Duration;

use postgres_native_tls::MakeTlsConnector;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;
use tower_realm_lock::{ConnectError, RealmLocks};

use super::authority::{Authority, rsa_sha256, self_signed, version_1};
use super::refusal;
use super::server::{PASSWORD, SSL_REQUEST, TlsServer};
use crate::support::database::{database_on, server_version};
use crate::support::wait::PATIENCE;

#[tokio::test]
async fn a_certificate_that_nobody_here_trusts_asks_for_its_authority() {
    let (server, database) = TlsServer::shared().await;
    let other = server.file("stranger.pem", &Authority::new().pem());
    for options in [
        format!("sslmode=require&sslrootcert={other}"),
        format!("sslmode=verify-full&sslrootcert={other}"),
        "sslmode=verify-full".to_owned(),
    ] {
        let url = server.url(&database, "sealed", "localhost", &options);
        let port = server.cluster.port();
        let place = format!("PostgreSQL at localhost:{port}/{}", database.name());
        let says = [
            &place,
            "signed by nobody who is trusted here",
            "a file with the certificate of its CA in sslrootcert",
        ];
        let refused = refusal(&url, &says).await;
        assert!(matches!(refused, ConnectError::Tls { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn certificates_are_taken_while_they_are_valid() {
    let server = TlsServer::start().await;
    let database = database_on(&server.cluster).await;
    let full = format!("sslmode=verify-full&sslrootcert={}", server.ca());
    let full = server.url(&database, "sealed", "localhost", &full);
    RealmLocks::postgres(&full).await.unwrap();
    let says = ["is not valid today", "renew it at the server"];
    for over in [
        server.authority.expired(&["localhost"]),
        server.authority.early(&["localhost"]),
    ] {
        server.present(&over).await;
        refusal(&full, &says).await;
        // Who does not look does not see.
        let unverified = server.url(&database, "sealed", "localhost", "sslmode=require");
        RealmLocks::postgres(&unverified).await.unwrap();
    }

    server
        .present(&server.authority.server(&["db.internal", "10.1.2.3"]))
        .await;
    let says = ["is not for localhost", "connect by a name that is in it"];
    refusal(&full, &says).await;
    refusal(&full, &["db.internal", "10.1.2.3"]).await;

    // The server's own certificate in place of an authority's, and of no other.
    let own = self_signed("localhost");
    let file = server.file("own.pem", &own.certificate);
    server.present(&own).await;
    let by_itself = |host, mode| {
        let options = format!("sslmode={mode}&sslrootcert={file}");
        server.url(&database, "sealed", host, &options)
    };
    RealmLocks::postgres(&by_itself("localhost", "verify-full"))
        .await
        .unwrap();
    RealmLocks::postgres(&by_itself("127.0.0.1", "verify-ca"))
        .await
        .unwrap();
    refusal(
        &by_itself("127.0.0.1", "verify-full"),
        &["is not for 127.0.0.1"],
    )
    .await;
    server.present(&self_signed("localhost")).await;
    let refused = RealmLocks::postgres(&by_itself("localhost", "verify-ca")).await;
    assert!(
        matches!(refused, Err(ConnectError::Tls { .. })),
        "{refused:?}"
    );

    // A login is bound to a certificate whatever hash its signature has.
    let bound = format!(
        "host=localhost port={} user=bound password='{PASSWORD}' dbname={} sslmode=require channel_binding=require",
        server.cluster.port(),
        database.name()
    );
    let signed = |algorithm| Authority::signing_with(algorithm).server(&["localhost"]);
    for certified in [
        signed(&rcgen::PKCS_ECDSA_P256_SHA256),
        signed(&rcgen::PKCS_ECDSA_P384_SHA384),
        rsa_sha256(),
    ] {
        server.present(&certified).await;
        RealmLocks::postgres(&bound).await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_without_extensions_is_told_of_or_taken() {
    let server = TlsServer::start().await;
    let database = database_on(&server.cluster).await;
    server.present(&version_1()).await;
    let url = server.url(&database, "sealed", "localhost", "sslmode=require");
    let says = ["X.509 version 1", "sign it again", "another library's TLS"];
    refusal(&url, &says).await;
    // Another library takes it.
    let connector = native_tls::TlsConnector::builder()
        .danger_accept_invalid_certs(true)
        .build()
        .unwrap();
    RealmLocks::postgres_builder(&url)
        .tls(MakeTlsConnector::new(connector))
        .build()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_that_wants_encryption_is_told_of() {
    let (server, database) = TlsServer::shared().await;
    let url = server.url(&database, "sealed", "localhost", "sslmode=disable");
    // PostgreSQL 13 calls it `SSL off`.
    let is_old = server_version(&database.connect().await).await < 14;
    let (without, with) = if is_old {
        ("SSL off", "SSL on")
    } else {
        ("no encryption", "SSL encryption")
    };
    let says = ["no pg_hba.conf entry", without, "use sslmode=require"];
    let refused = refusal(&url, &says).await;
    assert!(matches!(refused, ConnectError::Tls { .. }), "{refused:?}");
    // Who is not let in either way is told of the way that was asked for.
    let url = server.url(&database, "nobody", "localhost", "");
    refusal(&url, &["no pg_hba.conf entry", with]).await;
    // A name in the server's message is not what the message is about.
    for user in ["alert", "client%20certificate"] {
        let url = server.url(&database, user, "localhost", "sslmode=require");
        let refused = refusal(&url, &["no pg_hba.conf entry"]).await;
        assert!(
            matches!(refused, ConnectError::Connect { .. }),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_ends_before_the_handshake_is_not_one_that_refuses_a_certificate() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // As a load balancer without a server behind it.
    let server = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let _ = client.read_exact(&mut [0; 8]).await;
        }
    });
    for mode in ["prefer", "require"] {
        let url = format!("postgres://u@127.0.0.1:{port}/d?sslmode={mode}");
        let refused = RealmLocks::postgres(&url).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Connect { .. }), "{refused}");
        assert!(!refused.to_string().contains("certificate"), "{refused}");
    }
    server.abort();
}

#[tokio::test]
async fn after_an_answer_that_is_none_nothing_more_is_said() {
    let (server, database) = TlsServer::shared().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, behind) = (listener.local_addr().unwrap().port(), server.cluster.port());
    let (said, mut hears) = unbounded_channel();
    // It cannot answer who asks for TLS, and serves who does not.
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut first = [0; 8];
            client.read_exact(&mut first).await.unwrap();
            if first == SSL_REQUEST {
                client.write_all(b"Eout of memory\n\0").await.unwrap();
                let mut more = Vec::new();
                // A client that leaves without having read all resets the connection.
                let _ = client.read_to_end(&mut more).await;
                said.send(more).unwrap();
                continue;
            }
            let mut inside = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
            inside.write_all(&first).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut inside).await });
        }
    });
    let name = database.name();
    let url = |mode| format!("postgres://postgres@127.0.0.1:{port}/{name}?sslmode={mode}");
    let says = ["the server has no TLS", "its log"];
    let refused = refusal(&url("require"), &says).await;
    assert!(matches!(refused, ConnectError::Tls { .. }), "{refused:?}");
    assert_eq!(hears.recv().await.unwrap(), b"");
    RealmLocks::postgres(&url("prefer")).await.unwrap();
    assert_eq!(hears.recv().await.unwrap(), b"");
}

#[tokio::test]
async fn a_handshake_that_hangs_ends_with_the_time_to_connect() {
    for answer in ["", "S"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Until the client has had enough.
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
        });
        let url = format!("postgres://127.0.0.1:{port}/x?user=u&sslmode=require");
        let locks = RealmLocks::postgres_builder(&url);
        let building = locks.connect_timeout(Duration::from_millis(200)).build();
        let built = timeout(PATIENCE, building).await.expect("an end");
        assert!(
            matches!(built, Err(ConnectError::ConnectTimeout { .. })),
            "{built:?}"
        );
        silent.await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_leaves_in_the_handshake_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let leaving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"S").await.unwrap();
        // The request for TLS, and the first words of a handshake.
        let mut read = [0; 20];
        stream.read_exact(&mut read).await.unwrap();
    });
    let url = format!("postgres://127.0.0.1:{port}/x?user=u&sslmode=require");
    refusal(&url, &["the TLS handshake failed", "127.0.0.1"]).await;
    leaving.await.unwrap();
}
