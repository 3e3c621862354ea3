use std::error::Error;
use std::future::Future;
#[cfg(unix)]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy, empty, sink};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_postgres::{CancelToken, Socket};

use super::tls::Tls;
use super::traffic::{CancelKey, Traffic};
use super::wire::{Failed, Through, Wire};

/// What a CancelRequest begins with: its length, and a number that no version of the protocol has.
const CANCEL_REQUEST: [u8; 8] = [0, 0, 0, 16, 4, 210, 22, 46];

/// How long a CancelRequest is given before it is sent again: it may have overtaken the statement
/// it is meant for.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often one is sent before the connection is given up; the server's time-outs then end what it
/// runs.
const TRIES: u32 = 10;
/// How long a CancelRequest is kept open that nobody waits for any more. On a silent network it is
/// never closed.
const LIMIT: Duration = Duration::from_secs(5);

/// How long a statement is given to end by itself, where it must not be cancelled: as long as the
/// cancellation of another one may take.
pub(super) const GIVEN: Duration = PATIENCE.saturating_mul(TRIES);

/// The means to cancel what a connection runs.
#[derive(Clone)]
pub(super) struct Canceller {
    /// Connects to the very number that answered, with the connection's own settings.
    token: CancelToken,
    /// The token has none: it is hidden from the driver.
    key: CancelKey,
    route: Route,
}

/// The way to a server, for a connection and for what cancels it.
#[derive(Clone)]
pub(super) enum Route {
    /// To a server of this name, encrypted if there is TLS.
    Tcp(String, Option<Tls>),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl Route {
    /// Encrypts the driver's socket, if need be, and has its messages watched.
    pub(super) async fn wire(self, socket: Socket, traffic: Arc<Traffic>) -> Result<Wire, Failed> {
        match self {
            Self::Tcp(name, Some(tls)) => tls.encrypt(&name, socket, traffic).await,
            _ => Ok(Wire::plain(socket, traffic)),
        }
    }
}

impl Canceller {
    pub(super) fn new(token: CancelToken, key: CancelKey, route: Route) -> Self {
        Self { token, key, route }
    }

    /// Sends one CancelRequest, and waits for [`PATIENCE`] at most.
    ///
    /// A slow one goes on by itself: PgBouncer passes it on only when it has a connection to spare.
    /// Must be called within a runtime.
    pub(super) async fn cancel(&self) {
        let canceller = self.clone();
        let request = tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(LIMIT, canceller.request()).await {
                tracing::debug!(%error, "a CancelRequest could not be sent");
            }
        });
        let _ = timeout(PATIENCE, request).await;
    }

    /// Cancels a statement, again and again, until it has ended or [`TRIES`] were in vain; whether
    /// it has ended.
    pub(super) async fn cancel_until_ended(&self, statement: &mut (impl Future + Unpin)) -> bool {
        for _ in 0..TRIES {
            self.cancel().await;
            if timeout(PATIENCE, &mut *statement).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Sends a CancelRequest, and waits until the server has closed its connection, as libpq does.
    ///
    /// The driver's own closes its side at once. PgBouncer takes that for a client that has left
    /// and drops the request; 1.18 even ends itself (pgbouncer issue 801). So ours is sent where
    /// the driver would encrypt, and the driver's own goes nowhere.
    async fn request(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let key = self.key;
        #[cfg(unix)]
        if let Route::Unix(path) = &self.route {
            let socket = UnixStream::connect(path).await?;
            return Ok(send(key, socket).await?);
        }
        let route = self.route.clone();
        let send = async move |socket| {
            send(key, route.wire(socket, Arc::default()).await?).await?;
            Ok(Wire::plain(empty(), Arc::default()))
        };
        Ok(self.token.cancel_query(Through(send)).await?)
    }

    /// The process id that the server announced for this connection.
    pub(super) fn process_id(&self) -> i32 {
        let [id @ .., _, _, _, _] = self.key;
        i32::from_be_bytes(id)
    }
}

/// Sends a CancelRequest with this key, and waits for the server.
async fn send(
    key: CancelKey,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), Failed> {
    let sent = async {
        stream.write_all(&[CANCEL_REQUEST, key].concat()).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| Failed(error.into()))?;
    // A server that breaks the connection off has closed it too.
    let _ = copy(&mut stream, &mut sink()).await;
    Ok(())
}
