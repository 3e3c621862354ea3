use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Config;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use crate::lock::postgres::address::Stream;
use crate::lock::postgres::traffic::{Messages, Traffic};

/// A connection as the driver takes it: whatever is to be encrypted is so already.
pub(in crate::lock::postgres) struct Wire {
    stream: Box<dyn Stream>,
    encrypted: bool,
    /// The hash of the server's certificate, which a login can be bound to.
    end_point: Option<Vec<u8>>,
    /// Whether it shuts down only when the other side does.
    until_closed: bool,
    traffic: Arc<Traffic>,
    sent: Messages,
    received: Messages,
}

/// What the driver is told to encrypt a [`Wire`] with.
pub(in crate::lock::postgres) struct Established;

impl Wire {
    /// One that is not encrypted, or in no way that the driver is to know of.
    pub(in crate::lock::postgres) fn plain(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            encrypted: false,
            end_point: None,
            until_closed: false,
            traffic: Arc::default(),
            sent: Messages::of_client(),
            received: Messages::default(),
        }
    }

    pub(super) fn encrypted(stream: Box<dyn Stream>, end_point: Option<Vec<u8>>) -> Self {
        Self {
            encrypted: true,
            end_point,
            ..Self::plain(stream)
        }
    }

    pub(in crate::lock::postgres) fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// What is seen of its messages.
    pub(in crate::lock::postgres) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Waits with its shutdown until the other side has closed.
    pub(in crate::lock::postgres) fn until_closed(mut self) -> Self {
        self.until_closed = true;
        self
    }

    /// Has the driver take it as it is. Without `Require` it would bind no login to the certificate.
    pub(in crate::lock::postgres) fn announce(&self, config: &mut Config) {
        let mode = if self.encrypted {
            SslMode::Require
        } else {
            SslMode::Disable
        };
        config
            .ssl_mode(mode)
            .ssl_negotiation(SslNegotiation::Direct);
    }
}

impl TlsConnect<Wire> for Established {
    type Stream = Wire;
    type Error = Infallible;
    type Future = Ready<Result<Wire, Infallible>>;

    fn connect(self, wire: Wire) -> Self::Future {
        ready(Ok(wire))
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        let hash = self.end_point.clone();
        hash.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
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
        if !self.until_closed {
            return Pin::new(&mut self.stream).poll_shutdown(cx);
        }
        loop {
            let mut bytes = [0; 64];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            // A server that breaks the connection off has closed it too.
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
