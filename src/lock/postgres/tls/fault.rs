use std::sync::Arc;

use tokio_postgres::error::SqlState;

use crate::lock::LockError;
use crate::lock::error::chain;

/// What keeps a connection from being encrypted, and what to do.
#[derive(Debug, thiserror::Error)]
pub(in crate::lock::postgres) enum Fault {
    #[error(
        "the server has no TLS: turn `ssl` on there, or go without with sslmode=prefer or disable"
    )]
    NoTls,
    #[error(
        "its certificate is signed by nobody who is trusted here: name a file with the certificate of its CA in sslrootcert, or add it to the roots of the configuration given to `tls`"
    )]
    UnknownIssuer,
    #[error(
        "its certificate is not for {name} ({error}): connect by a name that is in it, or with sslmode=verify-ca, which compares no name"
    )]
    WrongName { name: String, error: String },
    #[error(
        "its certificate is not valid today ({0}): renew it at the server, or set the clock right"
    )]
    NotValidNow(String),
    #[error("its certificate cannot be used: {0}")]
    Certificate(String),
    #[error(
        "the server does not name the protocol `postgresql` in the handshake: sslnegotiation=direct needs PostgreSQL 17, and that protocol in a configuration given to `tls`"
    )]
    OtherProtocol,
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
}

/// What a server meant that refuses a login, as far as it is about encryption.
pub(in crate::lock::postgres) fn refused(
    server: Arc<str>,
    error: tokio_postgres::Error,
    encrypted: bool,
) -> LockError {
    let text = chain(&error);
    let remedy = if encrypted && text.contains("client certificate") {
        "name files with one in sslcert and sslkey, or give one to `tls`"
    } else if encrypted && text.contains("alert") {
        "the server does not accept this client's certificate: have it signed by a CA in the server's ssl_ca_file"
    } else if !encrypted && wants_encryption(&error) {
        "if the server takes encrypted connections alone, use sslmode=require, and the feature `tls-rustls` or `tls-native`"
    } else {
        let source = Arc::new(error);
        return LockError::Connect { server, source };
    };
    LockError::Tls {
        server,
        problem: format!("{text}; {remedy}"),
    }
}

/// Whether `pg_hba.conf` has no place for the connection as it is.
fn wants_encryption(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|refusal| {
        refusal.routine() == Some("ClientAuthentication")
            && *refusal.code() == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
    })
}
