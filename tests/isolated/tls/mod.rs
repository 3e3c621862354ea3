//! Connections to PostgreSQL are encrypted as the URL says, or with a `MakeTlsConnect` of the
//! application's own, and an error says what keeps them from it, and its remedy.
//!
//! The server is a real one with a certificate of the tests' own.

#[cfg(feature = "tls-rustls")]
mod authority;
#[cfg(feature = "tls-rustls")]
mod cancel;
#[cfg(feature = "tls-rustls")]
mod doors;
#[cfg(feature = "tls-rustls")]
mod files;
#[cfg(feature = "tls-rustls")]
mod login;
#[cfg(feature = "tls-rustls")]
mod modes;
#[cfg(feature = "tls-rustls")]
mod own;
#[cfg(feature = "tls-rustls")]
mod problems;
#[cfg(feature = "tls-rustls")]
mod server;
#[cfg(feature = "tls-rustls")]
mod system;
#[cfg(not(feature = "tls-rustls"))]
mod without;

use tower_realm_lock::{ConnectError, RealmLocks};

/// Why locks cannot be had there, which must have all these parts in its message.
async fn refusal(url: &str, parts: &[&str]) -> ConnectError {
    let refused = RealmLocks::postgres(url).await.expect_err(url);
    assert_says(&refused, parts);
    refused
}

fn assert_says(refused: &ConnectError, parts: &[&str]) {
    let message = refused.to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}
