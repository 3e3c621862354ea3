//! Whether and how connections are encrypted: `sslmode` and its companions in the database URL, or
//! a `MakeTlsConnect` of the user's own. The driver negotiates.
//!
//! Source: PostgreSQL manual, 34.19 *SSL Support* of libpq.

pub(super) mod fault;
#[cfg(feature = "tls-rustls")]
mod rustls;
pub(super) mod settings;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio_postgres::Socket;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

use self::settings::Settings;
use super::traffic::Traffic;
use super::wire::{Failed, Wire};
use crate::config::ConfigError;

/// Any `MakeTlsConnect`, without its types.
#[derive(Clone)]
pub(super) struct Tls(Arc<Handshake>);

type Handshake = dyn Fn(&str, Socket, Arc<Traffic>) -> Pin<Box<Encrypting>> + Send + Sync;

type Encrypting = dyn Future<Output = Result<Wire, Failed>> + Send;

impl Tls {
    pub(super) fn new<T>(make: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send + 'static,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send + 'static,
    {
        Self(Arc::new(move |name, socket, traffic| {
            let connector = make.clone().make_tls_connect(name);
            let handshake = connector.map(|connector| connector.connect(socket));
            let handshake = handshake.map_err(|error| Failed(error.into()));
            Box::pin(async move {
                let stream = handshake?.await.map_err(|error| Failed(error.into()))?;
                Ok(Wire::encrypted(stream, traffic))
            })
        }))
    }

    /// TLS as a URL describes it.
    #[cfg(feature = "tls-rustls")]
    fn of(settings: &Settings, mode: &str, is_direct: bool) -> Result<Option<Self>, ConfigError> {
        rustls::tls(settings, mode, is_direct).map(Some)
    }

    /// `None` in a build without TLS, unless it is asked for.
    #[cfg(not(feature = "tls-rustls"))]
    fn of(settings: &Settings, mode: &str, _: bool) -> Result<Option<Self>, ConfigError> {
        let remedy = "this build has no TLS; turn on the feature `tls-rustls` of \
                      tower-realm-lock, or give a `MakeTlsConnect` to `tls`";
        settings.refuse_files(remedy)?;
        match mode {
            "prefer" => Ok(None),
            _ => Err(ConfigError::option("sslmode", mode, remedy)),
        }
    }

    /// Encrypts a connection to the server of this name.
    pub(super) async fn encrypt(
        &self,
        name: &str,
        socket: Socket,
        traffic: Arc<Traffic>,
    ) -> Result<Wire, Failed> {
        self.0(name, socket, traffic).await
    }
}
