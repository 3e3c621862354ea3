//! TLS of the application's own decides what is verified, and the URL only whether it is used.

use tower_realm_lock::{LockError, RealmLocks, Tls};

use super::assert_says;
use super::authority::{Authority, Certified};
use super::server::{TlsServer, encrypted};
use crate::support::database::{TestDatabase, database};

/// What each library makes of an authority to trust and a certificate to show, both from memory.
fn configurations(authority: &Authority, client: &Certified) -> Vec<Tls> {
    vec![
        #[cfg(feature = "tls-rustls")]
        by_rustls(authority, client),
        #[cfg(feature = "tls-native")]
        by_native(authority, client),
    ]
}

#[cfg(feature = "tls-rustls")]
fn by_rustls(authority: &Authority, client: &Certified) -> Tls {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(&authority.pem())).unwrap();
    let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.into());
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let chain = vec![certificate(&client.certificate)];
    config.with_client_auth_cert(chain, key).unwrap().into()
}

#[cfg(feature = "tls-native")]
fn by_native(authority: &Authority, client: &Certified) -> Tls {
    let root = native_tls::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let (certificate, key) = (client.certificate.as_bytes(), client.key.as_bytes());
    let identity = native_tls::Identity::from_pkcs8(certificate, key).unwrap();
    let mut connector = native_tls::TlsConnector::builder();
    connector
        .disable_built_in_roots(true)
        .add_root_certificate(root);
    connector.identity(identity).build().unwrap().into()
}

async fn refused(url: &str, tls: &Tls, says: &[&str]) -> LockError {
    let built = RealmLocks::postgres_builder(url)
        .tls(tls.clone())
        .build()
        .await;
    let refused = built.expect_err(url);
    assert_says(&refused, says);
    refused
}

async fn connects(url: &str, tls: &Tls, database: &TestDatabase, user: &str) -> bool {
    let built = RealmLocks::postgres_builder(url)
        .tls(tls.clone())
        .build()
        .await;
    let _locks = built.unwrap_or_else(|error| panic!("{url}, {tls:?}: {error}"));
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
            &["is not for 127.0.0.1"],
        )
        .await;
        let builder = RealmLocks::postgres_builder(&url("localhost", "")).tls(tls);
        assert!(!format!("{builder:?}").contains(&client.key[40..80]));
        let _writes = builder.listen().await.unwrap();
    }
    for tls in configurations(&Authority::new(), &client) {
        let (_, database) = TlsServer::shared().await;
        let url = |user: &str, options: &str| server.url(&database, user, "localhost", options);
        let says = [
            "signed by nobody",
            "the roots of the configuration given to `tls`",
        ];
        refused(&url("postgres", ""), &tls, &says).await;
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
                matches!(refused, LockError::InvalidOption { .. }),
                "{refused:?}"
            );
        }
        // Who brings TLS wants it, even where a URL says nothing.
        let plain = self::database().await;
        refused(plain.url(), &tls, &["the server has no TLS"]).await;
        RealmLocks::postgres_builder(&format!("{}?sslmode=prefer", plain.url()))
            .tls(tls)
            .build()
            .await
            .unwrap();
    }
}
