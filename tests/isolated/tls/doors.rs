//! Servers that end TLS in front of PostgreSQL: one that begins with the handshake, as PostgreSQL 17 does, and one that listens in.

use std::sync::Arc;

use postgres_native_tls::{MakeTlsConnector, set_postgresql_alpn};
use rustls::crypto::ring::default_provider;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower_realm_lock::RealmLocks;

use super::authority::Certified;
use super::refusal;
use super::server::{PASSWORD, SSL_REQUEST, TlsServer};
use crate::support::database::server_version;

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// Whether the key belongs to the certificate is for the client to find out.
fn acceptor(certified: &Certified, protocols: &[&str]) -> TlsAcceptor {
    let key = PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap();
    let key = any_supported_type(&key).unwrap();
    let shown = CertifiedKey::new(vec![certificate(&certified.certificate)], key);
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth();
    let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = protocols.iter().map(|name| (*name).into()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A port where the handshake comes first, and must choose the protocol `postgresql`, as with
/// PostgreSQL 17.
async fn direct(server: &TlsServer) -> u16 {
    let protocols = ["http/1.1", "postgresql"];
    let acceptor = acceptor(&server.authority.server(&["localhost"]), &protocols);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, behind) = (listener.local_addr().unwrap().port(), server.cluster.port());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(mut client) = acceptor.accept(client).await else {
                continue;
            };
            if client.get_ref().1.alpn_protocol() != Some(b"postgresql") {
                continue;
            }
            let mut inside = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut inside).await });
        }
    });
    port
}

/// A port that decrypts, and encrypts again for the server.
async fn listening_in(server: &TlsServer, shown: &Certified) -> u16 {
    let acceptor = acceptor(shown, &[]);
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&server.authority.pem())).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, behind) = (listener.local_addr().unwrap().port(), server.cluster.port());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            client.read_exact(&mut [0; 8]).await.unwrap();
            client.write_all(b"S").await.unwrap();
            let Ok(mut client) = acceptor.accept(client).await else {
                continue;
            };
            let mut inside = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
            inside.write_all(&SSL_REQUEST).await.unwrap();
            inside.read_exact(&mut [0]).await.unwrap();
            let name = "localhost".try_into().unwrap();
            let mut inside = connector.connect(name, inside).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut inside).await });
        }
    });
    port
}

#[tokio::test]
async fn a_direct_handshake_names_the_protocol() {
    let (server, database) = TlsServer::shared().await;
    let ca = server.ca();
    let url = |port: u16| {
        let name = database.name();
        format!(
            "postgres://localhost:{port}/{name}?user=postgres&sslmode=verify-full&sslrootcert={ca}&sslnegotiation=direct"
        )
    };
    let port = direct(server).await;
    RealmLocks::postgres(&url(port)).await.unwrap();
    let root = native_tls::Certificate::from_pem(server.authority.pem().as_bytes()).unwrap();
    let mut connector = native_tls::TlsConnector::builder();
    connector.add_root_certificate(root);
    let without_file = url(port).replace(&format!("&sslrootcert={ca}"), "");
    let built = |connector: &native_tls::TlsConnectorBuilder| {
        let connector = MakeTlsConnector::new(connector.build().unwrap());
        let builder = RealmLocks::postgres_builder(&without_file);
        builder.tls(connector).build()
    };
    assert!(built(&connector).await.is_err());
    set_postgresql_alpn(&mut connector);
    built(&connector).await.unwrap();
    // The server itself: until PostgreSQL 16 it waits for a request first.
    let url = url(server.cluster.port());
    if server_version(&database.connect().await).await >= 17 {
        RealmLocks::postgres(&url).await.unwrap();
    } else {
        refusal(&url, &["the TLS handshake failed"]).await;
    }
}

#[tokio::test]
async fn a_login_that_is_bound_finds_out_who_listens_in() {
    let (server, database) = TlsServer::shared().await;
    let name = database.name();
    let url = |port: u16| {
        format!(
            "host=localhost port={port} dbname={name} user=bound password='{PASSWORD}' sslmode=require"
        )
    };
    let another = server.authority.server(&["localhost"]);
    let url_there = url(listening_in(server, &another).await);
    RealmLocks::postgres(&format!("{url_there} channel_binding=disable"))
        .await
        .unwrap();
    for binding in ["", "channel_binding=require"] {
        refusal(
            &format!("{url_there} {binding}"),
            &["channel binding check failed"],
        )
        .await;
    }

    // Nor does it help to show the server's own certificate, without its key.
    let shown = server.cluster.dir().join("data/server.pem");
    let borrowed = Certified {
        certificate: std::fs::read_to_string(shown).unwrap(),
        key: another.key,
    };
    let url_there = url(listening_in(server, &borrowed).await);
    refusal(&url_there, &["its certificate"]).await;
}
