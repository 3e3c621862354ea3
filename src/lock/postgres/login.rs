use std::error::Error;
use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{AsyncMessage, Client, Config, Connection};

use super::address::Address;
use super::canceller::{Canceller, Route};
use super::tls::Tls;
use super::tls::fault::{fault, has_no_tls, is_about_tls};
use super::traffic::Traffic;
use super::url::Database;
use super::wire::{Through, Wire, watch_plain};
use crate::lock::error::{ConnectError, chain};

type Problem = Box<dyn Error + Send + Sync>;

/// What a login gives: the driver's two ends, the means to cancel, and what is seen on the wire.
pub(super) struct LoggedIn {
    pub(super) client: Client,
    pub(super) messages: Messages,
    pub(super) canceller: Canceller,
    pub(super) traffic: Arc<Traffic>,
}

/// Polls the driver's connection for its next message, whatever carries it.
type Messages = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Message>> + Send>;

type Message = Result<AsyncMessage, tokio_postgres::Error>;

impl Database {
    /// Connects to one number of an address and logs in. Where TLS is optional and fails, it is
    /// tried without, as libpq does.
    pub(super) async fn log_in(
        &self,
        address: &Address,
        number: Option<IpAddr>,
        server: &Arc<str>,
    ) -> Result<LoggedIn, ConnectError> {
        let mut config = self.config_of(address, number);
        if let Some(passwords) = &self.passwords {
            config.password(passwords.ask(server).await?);
        }
        // A Unix socket has no number, and is never encrypted.
        let tls = number.map(|_| self.encryption.tls()).transpose()?.flatten();
        let tls = tls.as_ref();
        let traffic = Arc::default();
        let error = match log_in_with(config.clone(), address, tls, &traffic).await {
            Ok(logged_in) => return Ok(logged_in),
            Err(error) => error,
        };
        if tls.is_some() && self.encryption.is_optional && is_about_tls(&*error) {
            let no_tls = has_no_tls(&*error);
            if !no_tls {
                let error = chain(&*error);
                tracing::warn!(error, "connecting without TLS, as sslmode=prefer allows");
            }
            let traffic = Arc::default();
            match log_in_with(config, address, None, &traffic).await {
                Ok(logged_in) => return Ok(logged_in),
                Err(plain) if no_tls => return Err(fault(server, plain, None, false)),
                Err(_) => {}
            }
        }
        let name = tls.and(address.name());
        Err(fault(server, error, name, traffic.is_encrypted()))
    }
}

async fn log_in_with(
    mut config: Config,
    address: &Address,
    tls: Option<&Tls>,
    traffic: &Arc<Traffic>,
) -> Result<LoggedIn, Problem> {
    if tls.is_some() {
        config.ssl_mode(SslMode::Require);
    } else {
        watch_plain(&mut config);
    }
    let traffic = Arc::clone(traffic);
    let watched = Arc::clone(&traffic);
    match &address.host {
        Host::Tcp(name) => {
            let route = Route::Tcp(name.clone(), tls.cloned());
            let way = route.clone();
            let through = Through(async move |socket| way.wire(socket, watched).await);
            let (client, connection) = config.connect(through).await?;
            Ok(LoggedIn::new(client, connection, traffic, route))
        }
        #[cfg(unix)]
        Host::Unix(folder) => {
            let path = folder.join(format!(".s.PGSQL.{}", address.port));
            let socket = UnixStream::connect(&path).await?;
            let through = Through(|socket| ready(Ok(Wire::plain(socket, watched))));
            let (client, connection) = config.connect_raw(socket, through).await?;
            let route = Route::Unix(path);
            Ok(LoggedIn::new(client, connection, traffic, route))
        }
    }
}

impl LoggedIn {
    fn new<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        client: Client,
        mut connection: Connection<S, Wire>,
        traffic: Arc<Traffic>,
        route: Route,
    ) -> Self {
        Self {
            canceller: Canceller::new(client.cancel_token(), traffic.cancel_key(), route),
            client,
            messages: Box::new(move |cx| connection.poll_message(cx)),
            traffic,
        }
    }
}
