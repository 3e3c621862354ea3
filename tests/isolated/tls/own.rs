//! TLS of the application's own decides what is verified, and the URL only whether it is used.

use native_tls::{Certificate, Identity};
use postgres_native_tls::MakeTlsConnector;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls_improved::MakeRustlsConnect;
use tower_realm_lock::{ConfigError, ConnectError, PostgresBuilder, RealmLocks, tokio_postgres};

use super::assert_says;
use super::authority::{Authority, Certified};
use super::server::{TlsServer, encrypted};
use crate::support::database::{TestDatabase, database};

/// TLS of one library, and what is reported of its errors.
struct Own {
    give: Box<dyn Fn(PostgresBuilder) -> PostgresBuilder>,
    says_unknown: &'static [&'static str],
    says_wrong_name: &'static str,
}

impl Own {
    fn builder(&self, url: &str) -> PostgresBuilder {
        (self.give)(RealmLocks::postgres_builder(url))
    }
}

/// What each library makes of an authority to trust and a certificate to show, both from memory.
fn configurations(authority: &Authority, client: &Certified) -> [Own; 2] {
    let (rustls, native) = (by_rustls(authority, client), by_native(authority, client));
    [
        Own {
            give: Box::new(move |builder| builder.tls(rustls.clone())),
            says_unknown: &[
                "signed by nobody",
                "the roots of the configuration given to `tls`",
            ],
            says_wrong_name: "is not for 127.0.0.1",
        },
        Own {
            give: Box::new(move |builder| builder.tls(native.clone())),
            says_unknown: &["the TLS handshake failed", "certificate verify failed"],
            says_wrong_name: "the TLS handshake failed",
        },
    ]
}

fn by_rustls(authority: &Authority, client: &Certified) -> MakeRustlsConnect {
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&authority.pem())).unwrap();
    let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into());
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let chain = vec![certificate(&client.certificate)];
    MakeRustlsConnect::new(config.with_client_auth_cert(chain, key).unwrap())
}

fn by_native(authority: &Authority, client: &Certified) -> MakeTlsConnector {
    let root = Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let (certificate, key) = (client.certificate.as_bytes(), client.key.as_bytes());
    let identity = Identity::from_pkcs8(certificate, key).unwrap();
    let mut connector = native_tls::TlsConnector::builder();
    connector
        .disable_built_in_roots(true)
        .add_root_certificate(root);
    MakeTlsConnector::new(connector.identity(identity).build().unwrap())
}

async fn refused(url: &str, tls: &Own, says: &[&str]) -> ConnectError {
    let refused = tls.builder(url).build().await.expect_err(url);
    assert_says(&refused, says);
    refused
}

async fn connects(url: &str, tls: &Own, database: &TestDatabase, user: &str) -> bool {
    let built = tls.builder(url).build().await;
    let _locks = built.unwrap_or_else(|error| panic!("{url}: {error}"));
    encrypted(database, user).await[0]
}

#[tokio::test]
async fn it_verifies_and_shows_what_it_was_given() {
    let (server, _) = TlsServer::shared().await;
    let client = server.authority.client("certified");
    for tls in configurations(&server.authority, &client) {
        let (_, database) = TlsServer::shared().await;
        let url = |host, options| server.url(&database, "certified", host, options);
        for options in [
            "",
            "sslmode=prefer",
            "sslmode=require",
            "sslmode=verify-full",
        ] {
            assert!(connects(&url("localhost", options), &tls, &database, "certified").await);
        }
        // Whatever the mode is.
        refused(
            &url("127.0.0.1", "sslmode=require"),
            &tls,
            &[tls.says_wrong_name],
        )
        .await;
        let builder = tls.builder(&url("localhost", ""));
        assert!(!format!("{builder:?}").contains(&client.key[40..80]));
        let _writes = builder.listen().await.unwrap();
    }
    for tls in configurations(&Authority::new(), &client) {
        let (_, database) = TlsServer::shared().await;
        let url = |user: &str, options: &str| server.url(&database, user, "localhost", options);
        refused(&url("postgres", ""), &tls, tls.says_unknown).await;
        assert!(
            !connects(
                &url("postgres", "sslmode=prefer"),
                &tls,
                &database,
                "postgres"
            )
            .await
        );
    }
}

#[tokio::test]
async fn the_url_says_whether_it_is_used_and_names_no_files() {
    let (server, database) = TlsServer::shared().await;
    let client = server.authority.client("certified");
    for tls in configurations(&server.authority, &client) {
        let url = |user: &str, options: &str| server.url(&database, user, "localhost", options);
        assert!(!connects(&url("bare", "sslmode=disable"), &tls, &database, "bare").await);
        for file in ["sslrootcert", "sslcert", "sslkey"] {
            let option = format!("{file}=/some.pem");
            let says = [file, "cannot be /some.pem", "leave one of the two out"];
            let refused = refused(&url("sealed", &option), &tls, &says).await;
            assert!(
                matches!(
                    refused,
                    ConnectError::Config(ConfigError::InvalidOption { .. })
                ),
                "{refused:?}"
            );
        }
        // An application that brings TLS wants it, even where a URL says nothing.
        let plain = self::database().await;
        refused(plain.url(), &tls, &["the server has no TLS"]).await;
        tls.builder(&format!("{}?sslmode=prefer", plain.url()))
            .build()
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_configuration_of_the_drivers_says_whether_it_is_used() {
    let (server, _) = TlsServer::shared().await;
    let client = server.authority.client("certified");
    for tls in configurations(&server.authority, &client) {
        for (mode, user, is_encrypted) in [
            (tokio_postgres::config::SslMode::Require, "certified", true),
            (tokio_postgres::config::SslMode::Prefer, "certified", true),
            (tokio_postgres::config::SslMode::Disable, "bare", false),
        ] {
            let (_, database) = TlsServer::shared().await;
            let mut config: tokio_postgres::Config = server
                .url(&database, user, "localhost", "")
                .parse()
                .unwrap();
            config.ssl_mode(mode);
            let builder = (tls.give)(RealmLocks::postgres_config(config));
            let _locks = builder.build().await.unwrap();
            assert_eq!(encrypted(&database, user).await, [is_encrypted], "{mode:?}");
        }
        // `Prefer` is the default of a `Config`, and TLS was given.
        let (_, database) = TlsServer::shared().await;
        let url = server.url(&database, "bare", "localhost", "");
        let config = url.parse().unwrap();
        let builder = (tls.give)(RealmLocks::postgres_config(config));
        builder.build().await.unwrap_err();
    }
}
