use std::fmt;
use std::io;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// Where a server, or a pooler in front of it, listens.
///
/// The driver could connect by itself, but does not tell where to: a CancelRequest must go to the same place.
#[derive(Debug, Clone)]
pub(super) enum Address {
    Tcp {
        host: String,
        port: u16,
        /// Whom the server's certificate must be for, whatever number the host has.
        name: String,
    },
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
                    Host::Tcp(name) => Self::tcp(name.clone(), port(index)),
                    #[cfg(unix)]
                    Host::Unix(dir) => Self::Unix(dir.join(format!(".s.PGSQL.{}", port(index)))),
                })
                .collect()
        } else {
            let numbered = numbers.iter().enumerate();
            numbered
                .map(|(index, number)| Self::Tcp {
                    host: number.to_string(),
                    port: port(index),
                    name: match config.get_hosts().get(index) {
                        Some(Host::Tcp(name)) => name.clone(),
                        _ => number.to_string(),
                    },
                })
                .collect()
        }
    }

    pub(super) fn tcp(host: String, port: u16) -> Self {
        let name = host.clone();
        Self::Tcp { host, port, name }
    }

    /// Whom the server's certificate must be for; nobody where there is none, on a Unix socket.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Tcp { name, .. } => Some(name),
            #[cfg(unix)]
            Self::Unix(_) => None,
        }
    }

    /// Connects; the address that comes back is the very one that answered, where a name has several.
    pub(super) async fn connect(&self) -> io::Result<(Box<dyn Stream>, Self)> {
        match self {
            Self::Tcp { host, port, name } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let peer = Self::Tcp {
                    host: stream.peer_addr()?.ip().to_string(),
                    port: *port,
                    name: name.clone(),
                };
                Ok((Box::new(stream), peer))
            }
            #[cfg(unix)]
            Self::Unix(path) => Ok((Box::new(UnixStream::connect(path).await?), self.clone())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            #[cfg(unix)]
            Self::Unix(path) => path.display().fmt(f),
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
