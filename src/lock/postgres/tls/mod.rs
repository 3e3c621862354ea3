//! Whether and how connections are encrypted: `sslmode` and its companions in the database URL, or a [`Tls`] of the user's own.
//!
//! Source: PostgreSQL manual, 34.19 *SSL Support* of libpq, and 55.2.10 *SSL Session Encryption* of the protocol.

pub(super) mod encryption;
#[cfg(feature = "tls-rustls")]
mod end_point;
pub(super) mod fault;
#[cfg(feature = "tls-native")]
mod native;
#[cfg(feature = "tls-rustls")]
mod rustls;
pub(super) mod settings;
pub(super) mod wire;

use std::fmt;

use self::fault::Fault;
use self::settings::Trust;
use self::wire::Wire;
use super::address::Stream;
use crate::lock::error::LockError;

/// The protocol's name in a handshake that nothing precedes.
const ALPN: &str = "postgresql";

/// TLS of the application's own for [`PostgresBuilder::tls`](crate::PostgresBuilder::tls): what a URL cannot say, such as roots and a client
/// certificate that are in memory, or another cryptography provider.
///
/// Made `From` a `rustls::ClientConfig` (0.23; feature `tls-rustls`) or a `native_tls::TlsConnector` (0.2; feature `tls-native`).
/// It decides what is verified.
#[derive(Clone)]
pub struct Tls(Library);

#[derive(Clone)]
enum Library {
    #[cfg(feature = "tls-rustls")]
    Rustls(std::sync::Arc<::rustls::ClientConfig>),
    #[cfg(feature = "tls-native")]
    Native(native_tls::TlsConnector),
}

/// Makes what a URL asks for, with each library that is there; the first is taken.
type Client = fn(&Trust) -> Result<Tls, LockError>;
const CLIENTS: &[Client] = &[
    #[cfg(feature = "tls-rustls")]
    rustls::client,
    #[cfg(feature = "tls-native")]
    native::client,
];

impl Tls {
    /// Encrypts a connection to the server of this name. A `direct` handshake must name PostgreSQL's protocol.
    async fn handshake(
        &self,
        name: &str,
        stream: Box<dyn Stream>,
        direct: bool,
    ) -> Result<Wire, Fault> {
        match self.0 {
            #[cfg(feature = "tls-rustls")]
            Library::Rustls(ref client) => rustls::handshake(client, name, stream, direct).await,
            #[cfg(feature = "tls-native")]
            Library::Native(ref client) => native::handshake(client, name, stream, direct).await,
        }
    }
}

#[cfg(feature = "tls-rustls")]
impl From<::rustls::ClientConfig> for Tls {
    fn from(client: ::rustls::ClientConfig) -> Self {
        std::sync::Arc::new(client).into()
    }
}

#[cfg(feature = "tls-rustls")]
impl From<std::sync::Arc<::rustls::ClientConfig>> for Tls {
    fn from(client: std::sync::Arc<::rustls::ClientConfig>) -> Self {
        Self(Library::Rustls(client))
    }
}

#[cfg(feature = "tls-native")]
impl From<native_tls::TlsConnector> for Tls {
    fn from(client: native_tls::TlsConnector) -> Self {
        Self(Library::Native(client))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without what may be a private key.
        match self.0 {
            #[cfg(feature = "tls-rustls")]
            Library::Rustls(_) => f.write_str("Tls(rustls)"),
            #[cfg(feature = "tls-native")]
            Library::Native(_) => f.write_str("Tls(native-tls)"),
        }
    }
}
