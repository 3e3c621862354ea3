//! Connections to PostgreSQL are encrypted as the URL says, by either library, and what keeps them from it is said with its remedy.
//!
//! The server is a real one with a certificate of the tests' own. With both libraries a URL's TLS is
//! rustls'; native-tls has its turn with
//! `cargo test --test isolated --no-default-features --features tls-native -- tls::`.

#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod authority;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod cancel;
#[cfg(feature = "tls-rustls")]
mod doors;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod files;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod login;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod modes;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod own;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod problems;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod server;
#[cfg(any(feature = "tls-native", feature = "tls-rustls"))]
mod system;
#[cfg(not(any(feature = "tls-native", feature = "tls-rustls")))]
mod without;

use tower_realm_lock::{LockError, RealmLocks};

/// Why locks cannot be had there, which must have all these parts in its message.
async fn refusal(url: &str, parts: &[&str]) -> LockError {
    let refused = RealmLocks::postgres(url).await.expect_err(url);
    assert_says(&refused, parts);
    refused
}

fn assert_says(refused: &LockError, parts: &[&str]) {
    let message = refused.to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}
