use std::fmt;
use std::io::{self, Cursor};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio_postgres::config::Host;
use tokio_postgres::{CancelToken, Config, NoTls};

/// Where a server, or a pooler in front of it, listens.
///
/// The driver could connect by itself, but does not tell where to: a CancelRequest must go to the same place.
#[derive(Debug, Clone)]
pub(super) enum Address {
    Tcp(String, u16),
    #[cfg(unix)]
    Unix(PathBuf),
}

/// A connection's bytes, whatever carries them.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Address {
    /// All addresses of a configuration, in its order.
    pub(super) fn all(config: &Config) -> Vec<Self> {
        let ports = config.get_ports();
        let port = |index: usize| ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        let named = config.get_hosts().iter().enumerate();
        // `hostaddr` saves the look-up of a host's name.
        let numbers = config.get_hostaddrs();
        if numbers.is_empty() {
            named
                .map(|(index, host)| match host {
                    Host::Tcp(name) => Self::Tcp(name.clone(), port(index)),
                    #[cfg(unix)]
                    Host::Unix(dir) => Self::Unix(dir.join(format!(".s.PGSQL.{}", port(index)))),
                })
                .collect()
        } else {
            let numbered = numbers.iter().enumerate();
            numbered
                .map(|(index, number)| Self::Tcp(number.to_string(), port(index)))
                .collect()
        }
    }

    /// Connects; the address that comes back is the very one that answered, where a name has several.
    pub(super) async fn connect(&self) -> io::Result<(Box<dyn Stream>, Self)> {
        match self {
            Self::Tcp(name, port) => {
                let stream = TcpStream::connect((name.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let peer = stream.peer_addr()?;
                Ok((Box::new(stream), Self::Tcp(peer.ip().to_string(), *port)))
            }
            #[cfg(unix)]
            Self::Unix(path) => Ok((Box::new(UnixStream::connect(path).await?), self.clone())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name, port) => write!(f, "{name}:{port}"),
            #[cfg(unix)]
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// The means to cancel what a connection runs.
#[derive(Clone)]
pub(super) struct Canceller {
    token: CancelToken,
    address: Address,
}

impl Canceller {
    pub(super) fn new(token: CancelToken, address: Address) -> Self {
        Self { token, address }
    }

    /// Sends a CancelRequest, and waits until the server has closed its connection, as libpq does.
    ///
    /// The driver closes its side at once. PgBouncer takes that for a client that has left and drops the request; 1.18 even
    /// ends itself (pgbouncer issue 801).
    pub(super) async fn cancel(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (stream, _) = self.address.connect().await?;
        let stream = UntilClosed(stream);
        Ok(self.token.cancel_query_raw(stream, NoTls).await?)
    }

    /// The process id that the server announced for this connection.
    ///
    /// The driver keeps it to itself, but writes it into each CancelRequest: length, code, process id and secret, four bytes each.
    pub(super) async fn process_id(&self) -> Option<i32> {
        let mut request = Cursor::new(Vec::new());
        let written = self.token.cancel_query_raw(&mut request, NoTls).await;
        written.ok()?;
        let id = request.get_ref().get(8..12)?;
        Some(i32::from_be_bytes(id.try_into().ok()?))
    }
}

/// A stream that shuts down when the other side does.
struct UntilClosed(Box<dyn Stream>);

impl AsyncRead for UntilClosed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for UntilClosed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut bytes = [0; 64];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer));
            // A server that breaks the connection off has closed it too.
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_names_its_addresses() {
        for (url, addresses) in [
            ("postgres://u:secret@db.example/realms", "db.example:5432"),
            ("postgres://u:secret@a:1,b:2/realms", "a:1 b:2"),
            ("host=a,b port=7 user=u", "a:7 b:7"),
            ("host=a hostaddr=192.0.2.1 port=7 user=u", "192.0.2.1:7"),
            ("postgres://u@%2Ftmp/realms", "/tmp/.s.PGSQL.5432"),
        ] {
            let all = Address::all(&url.parse().unwrap());
            let all: Vec<String> = all.iter().map(ToString::to_string).collect();
            assert_eq!(all.join(" "), addresses, "{url}");
        }
    }
}
