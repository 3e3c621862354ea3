use std::error::Error as _;
use std::io;
use std::sync::Arc;

use tokio_postgres::error::{DbError, SqlState};

use crate::lock::error::LockError;
use crate::lock::error::chain;

/// What keeps a connection from being encrypted, and what to do.
#[derive(Debug, thiserror::Error)]
pub(in crate::lock::postgres) enum Fault {
    #[error(
        "the server has no TLS: turn `ssl` on there, or go without with sslmode=prefer or disable"
    )]
    NoTls,
    #[error(
        "the server answers `{}` when it is asked for TLS: if that is `E` its log has the reason, else no PostgreSQL is there", .0.escape_default()
    )]
    Answer(char),
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
    #[error(
        "its certificate is of X.509 version 1, which rustls does not take: sign it again with extensions, such as its names, or use the feature `tls-native` alone"
    )]
    #[cfg(feature = "tls-rustls")]
    Version1,
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
    let remedy = match error.as_db_error() {
        // It ends the handshake only after this client has.
        None if encrypted && chain(&error).contains("alert") => {
            "the server does not accept this client's certificate: have it signed by a CA in the server's ssl_ca_file"
        }
        // The end of the connection can come before that alert.
        None if encrypted && is_broken_off(&error) => {
            "the server may not accept this client's certificate: have it signed by a CA in the server's ssl_ca_file, or look into the server's log"
        }
        Some(refusal) if encrypted && refusal.message().contains("valid client certificate") => {
            "name files with one in sslcert and sslkey, or give one to `tls`"
        }
        Some(refusal) if !encrypted && wants_encryption(refusal) => {
            "if the server takes encrypted connections alone, use sslmode=require, and the feature `tls-rustls` or `tls-native`"
        }
        _ => {
            let source = Arc::new(error);
            return LockError::Connect { server, source };
        }
    };
    let text = chain(&error);
    LockError::Tls {
        server,
        problem: format!("{text}; {remedy}"),
    }
}

/// Whether the connection ended without a word of the server's.
fn is_broken_off(error: &tokio_postgres::Error) -> bool {
    let network = error.source().and_then(|it| it.downcast_ref::<io::Error>());
    let broken = network.is_some_and(|network| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        matches!(
            network.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
        )
    });
    broken || error.is_closed()
}

/// Whether `pg_hba.conf` has no place for the connection as it is.
fn wants_encryption(refusal: &DbError) -> bool {
    refusal.routine() == Some("ClientAuthentication")
        && *refusal.code() == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
}
