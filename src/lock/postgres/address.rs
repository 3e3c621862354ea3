use std::fmt;
use std::io;
use std::net::IpAddr;

use tokio::net::lookup_host;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// One server of a configuration, or a pooler in front of it.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub(super) host: Host,
    /// Saves the look-up of the host's name.
    number: Option<IpAddr>,
    pub(super) port: u16,
}

impl Address {
    /// All addresses of a configuration, in its order.
    pub(super) fn all(config: &Config) -> Vec<Self> {
        let (hosts, numbers) = (config.get_hosts(), config.get_hostaddrs());
        let ports = config.get_ports();
        let addresses = (0..hosts.len().max(numbers.len())).filter_map(|index| {
            let number = numbers.get(index).copied();
            let host = match (hosts.get(index), number) {
                (Some(Host::Tcp(name)), _) => Host::Tcp(name.clone()),
                (_, Some(number)) => Host::Tcp(number.to_string()),
                (host, None) => host?.clone(),
            };
            let port = ports.get(index).or(ports.first());
            Some(Self {
                host,
                number,
                port: port.copied().unwrap_or(5432),
            })
        });
        addresses.collect()
    }

    /// Whom the server's certificate must be for; nobody on a Unix socket.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Tcp(name) => Some(name),
            #[cfg(unix)]
            Host::Unix(_) => None,
        }
    }

    /// The numbers that the host's name stands for; `None` is a Unix socket.
    pub(super) async fn numbers(&self) -> io::Result<Vec<Option<IpAddr>>> {
        let (Some(name), None) = (self.name(), self.number) else {
            return Ok(vec![self.number]);
        };
        let found = lookup_host((name, self.port)).await?;
        Ok(found.map(|address| Some(address.ip())).collect())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match (&self.host, self.number) {
            (Host::Tcp(_), Some(number)) => write!(f, "{number}:{port}"),
            (Host::Tcp(name), None) => write!(f, "{name}:{port}"),
            #[cfg(unix)]
            (Host::Unix(folder), _) => write!(f, "{}/.s.PGSQL.{port}", folder.display()),
        }
    }
}
