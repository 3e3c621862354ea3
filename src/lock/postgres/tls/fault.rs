use std::error::Error;
use std::io;
use std::sync::Arc;

use tokio_postgres::error::{DbError, SqlState};

use crate::lock::error::{ConnectError, chain, find};
use crate::lock::postgres::wire::Failed;

/// Whether the server has no TLS. The driver has no other sign of it than its text.
pub(in crate::lock::postgres) fn has_no_tls(error: &(dyn Error + 'static)) -> bool {
    chain(error).ends_with("server does not support TLS")
}

/// Whether a connection in clear text may succeed where an encrypted one failed with this error.
pub(in crate::lock::postgres) fn is_about_tls(error: &(dyn Error + 'static)) -> bool {
    has_no_tls(error) || find::<Failed>(error).is_some() || is_unauthorized(error)
}

/// Whether `pg_hba.conf` has no place for the connection as it is.
fn is_unauthorized(error: &(dyn Error + 'static)) -> bool {
    let refusal = find::<DbError>(error).map(DbError::code);
    refusal == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

/// Why a server cannot be used. `name` is the server's if the connection was to be encrypted;
/// `is_encrypted` says whether the handshake had ended.
pub(in crate::lock::postgres) fn fault(
    server: &Arc<str>,
    error: Box<dyn Error + Send + Sync>,
    name: Option<&str>,
    is_encrypted: bool,
) -> ConnectError {
    let server = Arc::clone(server);
    let with = |remedy| Some(format!("{}; {remedy}", chain(&*error)));
    let problem = match (name, find::<DbError>(&*error)) {
        (Some(name), None) => without_answer(&*error, name, is_encrypted),
        (Some(_), Some(refusal)) if refusal.message().contains("valid client certificate") => {
            with("name files with one in sslcert and sslkey, or give one to `tls`")
        }
        (None, Some(refusal))
            if is_unauthorized(&*error) && refusal.routine() == Some("ClientAuthentication") =>
        {
            with(
                "if the server takes only encrypted connections, use sslmode=require, and the \
                 feature `tls-rustls`",
            )
        }
        _ => None,
    };
    match problem {
        Some(problem) => ConnectError::Tls { server, problem },
        None => ConnectError::Connect {
            server,
            source: error.into(),
        },
    }
}

/// What is wrong, and what to do, where an encrypted connection ended without a message from the
/// server; `None` if TLS has nothing to do with it.
fn without_answer(error: &(dyn Error + 'static), name: &str, is_encrypted: bool) -> Option<String> {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    if has_no_tls(error) {
        let remedy = "the server has no TLS: turn `ssl` on there, or look into its log if it is \
                      on, or go without with sslmode=prefer or disable";
        return Some(remedy.into());
    }
    if let Some(Failed(cause)) = find(error) {
        let certificate = wrong_certificate(&**cause, name);
        let handshake = || format!("the TLS handshake failed: {}", chain(&**cause));
        return Some(certificate.unwrap_or_else(handshake));
    }
    if !is_encrypted {
        return None;
    }
    let network = find::<io::Error>(error).map(io::Error::kind);
    let ends = [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        UnexpectedEof,
    ];
    let is_broken_off = network.is_some_and(|kind| ends.contains(&kind));
    let text = chain(error);
    // The server rejects a certificate only after this client has ended the handshake. The end of
    // the connection can come before the reason.
    (is_broken_off || text.contains("alert") || text.ends_with("connection closed")).then(|| {
        format!(
            "{text}; the server may not accept this client's certificate: have it signed by a CA \
             in the server's ssl_ca_file, or look into the server's log"
        )
    })
}

/// What is wrong with a server's certificate, where that is known: from rustls.
#[cfg(not(feature = "tls-rustls"))]
fn wrong_certificate(_: &(dyn Error + 'static), _: &str) -> Option<String> {
    None
}

#[cfg(feature = "tls-rustls")]
fn wrong_certificate(error: &(dyn Error + 'static), name: &str) -> Option<String> {
    use rustls::CertificateError as Wrong;
    let Some(rustls::Error::InvalidCertificate(problem)) = find(error) else {
        return None;
    };
    Some(match problem {
        // The latter where a trusted authority has the same name.
        Wrong::UnknownIssuer | Wrong::BadSignature => {
            "its certificate is signed by nobody who is trusted here: name a file with the \
             certificate of its CA in sslrootcert, or add it to the roots of the configuration \
             given to `tls`"
                .into()
        }
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => format!(
            "its certificate is not for {name} ({problem}): connect by a name that is in it, or \
             with sslmode=verify-ca, which compares no name"
        ),
        Wrong::Expired
        | Wrong::ExpiredContext { .. }
        | Wrong::NotValidYet
        | Wrong::NotValidYetContext { .. } => format!(
            "its certificate is not valid today ({problem}): renew it at the server, or set the \
             clock right"
        ),
        Wrong::Other(other) if other.0.to_string() == "UnsupportedCertVersion" => {
            "its certificate is of X.509 version 1, which rustls does not take: sign it again \
             with extensions, such as its names, or give another library's TLS to `tls`"
                .into()
        }
        _ => format!("its certificate cannot be used: {problem}"),
    })
}
