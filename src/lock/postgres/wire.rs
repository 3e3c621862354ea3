use std::cell::Cell;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Config, Socket};

use super::traffic::{Messages, Traffic};

/// A connection's bytes, encrypted or not, as the driver reads and writes them, and what is seen of
/// its messages.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    /// What a login can be bound to; the driver asks once.
    binding: Cell<Option<ChannelBinding>>,
    traffic: Arc<Traffic>,
    sent: Messages,
    received: Messages,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Wire {
    pub(super) fn plain(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            stream: Box::new(stream),
            binding: Cell::new(None),
            traffic,
            sent: Messages::of_client(),
            received: Messages::default(),
        }
    }

    pub(super) fn encrypted(
        stream: impl TlsStream + Unpin + Send + 'static,
        traffic: Arc<Traffic>,
    ) -> Self {
        traffic.note_encryption();
        Self {
            binding: Cell::new(Some(stream.channel_binding())),
            ..Self::plain(stream, traffic)
        }
    }
}

/// Has the driver use the [`Wire`] that `F` makes of its socket. The driver calls it where it would
/// begin to encrypt: with these [settings](watch_plain) at once.
#[derive(Clone)]
pub(super) struct Through<F>(pub(super) F);

/// Has the driver call [`Through`] although nothing is to be encrypted: it then sends no request
/// for TLS, and takes whatever it gets for an encrypted connection.
pub(super) fn watch_plain(config: &mut Config) {
    let config = config.ssl_mode(SslMode::Require);
    config.ssl_negotiation(SslNegotiation::Direct);
}

/// Why there is no [`Wire`], as the cause of an error of the driver's.
#[derive(Debug, thiserror::Error)]
#[error("the connection cannot be used")]
pub(super) struct Failed(#[source] pub(super) Box<dyn Error + Send + Sync>);

impl<F, W> MakeTlsConnect<Socket> for Through<F>
where
    F: FnOnce(Socket) -> W + Clone,
    W: Future<Output = Result<Wire, Failed>>,
{
    type Stream = Wire;
    type TlsConnect = Self;
    type Error = Infallible;

    fn make_tls_connect(&mut self, _: &str) -> Result<Self, Infallible> {
        Ok(self.clone())
    }
}

impl<S, F, W> TlsConnect<S> for Through<F>
where
    F: FnOnce(S) -> W,
    W: Future<Output = Result<Wire, Failed>>,
{
    type Stream = Wire;
    type Error = Failed;
    type Future = W;

    fn connect(self, socket: S) -> W {
        self.0(socket)
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        self.binding.take().unwrap_or_else(ChannelBinding::none)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        this.traffic.reading(read.is_pending());
        ready!(read)?;
        let bytes = &mut buffer.filled_mut()[before..];
        this.traffic.received(&mut this.received, bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.traffic.writing(written.is_pending());
        let written = ready!(written)?;
        this.traffic.sent(&mut this.sent, &bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
