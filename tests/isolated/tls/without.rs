//! A build without TLS talks in clear text, and refuses whatever asks for more.

use tower_realm_lock::{ConfigError, ConnectError, RealmLocks};

use super::refusal;
use crate::support::database::database;

#[tokio::test]
async fn a_build_without_tls_says_which_features_have_it() {
    let database = database().await;
    for options in [
        "",
        "?sslmode=disable",
        "?sslmode=prefer",
        "?sslmode=disable&sslrootcert=/ca.pem",
    ] {
        let url = format!("{}{options}", database.url());
        RealmLocks::postgres(&url).await.unwrap();
    }
    for (option, value) in [
        ("sslmode", "require"),
        ("sslmode", "verify-ca"),
        ("sslmode", "verify-full"),
        ("sslrootcert", "system"),
        ("sslrootcert", "/ca.pem"),
        ("sslcert", "/client.pem"),
    ] {
        let url = format!("{}?{option}={value}", database.url());
        let cannot = format!("{option} cannot be {value}");
        let says = [&cannot, "turn on the feature `tls-rustls`"];
        let refused = refusal(&url, &says).await;
        assert!(
            matches!(
                refused,
                ConnectError::Config(ConfigError::InvalidOption { .. })
            ),
            "{refused:?}"
        );
    }
}
