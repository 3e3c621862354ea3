//! What each `sslmode` accepts and refuses.

use tower_realm_lock::{ConnectError, RealmLocks};

use super::authority::Authority;
use super::refusal;
use super::server::{TlsServer, encrypted};
use crate::support::database::{TestDatabase, database};

/// Connects, and says whether it is encrypted.
async fn connects(url: &str, database: &TestDatabase, user: &str) -> bool {
    let locks = RealmLocks::postgres(url).await;
    let _locks = locks.unwrap_or_else(|error| panic!("{url}: {error}"));
    match encrypted(database, user).await[..] {
        [one] => one,
        ref all => panic!("{url}: {all:?}"),
    }
}

#[tokio::test]
async fn a_server_with_tls_is_talked_to_as_the_mode_says() {
    let (server, _) = TlsServer::shared().await;
    let ca = format!("sslrootcert={}", server.ca());
    let other = server.file("other.pem", &Authority::new().pem());
    let other = format!("sslrootcert={other}");
    let url = |database: &TestDatabase, user: &str, options: &str| {
        server.url(database, user, "localhost", options)
    };
    for (options, sealed, bare, both) in [
        // Who must be encrypted; who must not be; who may choose.
        ("sslmode=disable".to_owned(), None, Some(false), Some(false)),
        (String::new(), Some(true), Some(false), Some(true)),
        (
            "sslmode=prefer".to_owned(),
            Some(true),
            Some(false),
            Some(true),
        ),
        // As with libpq: clear text, where the certificate is not trusted.
        (
            format!("sslmode=prefer&{other}"),
            None,
            Some(false),
            Some(false),
        ),
        (
            format!("sslmode=prefer&{ca}"),
            Some(true),
            Some(false),
            Some(true),
        ),
        ("sslmode=require".to_owned(), Some(true), None, Some(true)),
        (
            format!("sslmode=require&{ca}"),
            Some(true),
            None,
            Some(true),
        ),
        (format!("sslmode=require&{other}"), None, None, None),
        (
            format!("sslmode=verify-ca&{ca}"),
            Some(true),
            None,
            Some(true),
        ),
        (
            format!("{ca}&sslmode=verify-full"),
            Some(true),
            None,
            Some(true),
        ),
        (format!("sslmode=verify-ca&{other}"), None, None, None),
        (format!("sslmode=verify-full&{other}"), None, None, None),
        // Nobody whom the system trusts has signed it.
        ("sslmode=verify-ca".to_owned(), None, None, None),
        ("sslmode=verify-full".to_owned(), None, None, None),
        ("sslrootcert=system".to_owned(), None, None, None),
    ] {
        for (user, expected) in [("sealed", sealed), ("bare", bare), ("postgres", both)] {
            let (_, database) = TlsServer::shared().await;
            let url = url(&database, user, &options);
            if let Some(expected) = expected {
                assert_eq!(connects(&url, &database, user).await, expected, "{url}");
                continue;
            }
            let refused = RealmLocks::postgres(&url).await.expect_err(&url);
            assert!(
                matches!(
                    refused,
                    ConnectError::Tls { .. } | ConnectError::Connect { .. }
                ),
                "{url}: {refused:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_server_without_tls_is_talked_to_in_clear_text_or_not_at_all() {
    let database = database().await;
    for options in ["", "?sslmode=disable", "?sslmode=prefer"] {
        let url = format!("{}{options}", database.url());
        RealmLocks::postgres(&url).await.unwrap();
    }
    let (server, _) = TlsServer::shared().await;
    let ca = server.ca();
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = format!("{}?sslmode={mode}&sslrootcert={ca}", database.url());
        let says = [
            "the server has no TLS: turn `ssl` on there",
            database.name(),
        ];
        assert!(matches!(
            refusal(&url, &says).await,
            ConnectError::Tls { .. }
        ));
    }
}

#[tokio::test]
async fn the_name_is_that_of_the_url_and_only_verify_full_looks_at_it() {
    let (server, database) = TlsServer::shared().await;
    let ca = format!("sslrootcert={}", server.ca());
    for mode in ["require", "verify-ca"] {
        let url = server.url(
            &database,
            "sealed",
            "127.0.0.1",
            &format!("sslmode={mode}&{ca}"),
        );
        assert!(connects(&url, &database, "sealed").await);
    }
    let full = format!("sslmode=verify-full&{ca}");
    let url = server.url(&database, "sealed", "127.0.0.1", &full);
    let says = [
        "is not for 127.0.0.1",
        "connect by a name that is in it",
        "sslmode=verify-ca",
    ];
    refusal(&url, &says).await;

    // Wherever the name leads.
    let (port, name) = (server.cluster.port(), database.name());
    let place = format!(
        "hostaddr=127.0.0.1 port={port} user=sealed dbname='{name}' sslmode = verify-full sslrootcert='{}'",
        server.ca()
    );
    assert!(connects(&format!("host=localhost {place}"), &database, "sealed").await);
    refusal(
        &format!("{place} host=elsewhere.test"),
        &["is not for elsewhere.test"],
    )
    .await;
    refusal(&place, &["is not for 127.0.0.1"]).await;
}

#[tokio::test]
async fn several_hosts_are_tried_each_by_its_name() {
    let (server, database) = TlsServer::shared().await;
    let (port, name, ca) = (server.cluster.port(), database.name(), server.ca());
    let url = format!(
        "postgres://sealed@127.0.0.1:{port},localhost:{port}/{name}?sslmode=verify-full&sslrootcert={ca}"
    );
    assert!(connects(&url, &database, "sealed").await);
}

#[tokio::test]
async fn a_unix_socket_is_never_encrypted() {
    let (server, database) = TlsServer::shared().await;
    let (dir, port, name) = (
        server.cluster.dir().display(),
        server.cluster.port(),
        database.name(),
    );
    let url = format!("host={dir} port={port} user=sealed dbname={name} sslmode=verify-full");
    assert!(!connects(&url, &database, "sealed").await);
}
