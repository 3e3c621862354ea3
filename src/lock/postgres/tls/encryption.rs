use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fault::Fault;
use super::settings::{Settings, When, refuse};
use super::wire::Wire;
use super::{CLIENTS, Tls};
use crate::lock::error::LockError;
use crate::lock::postgres::address::{Address, Stream};

/// Asks a server whether it has TLS: the length, and a number that no version of the protocol has.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// How the connections to the servers of one URL are encrypted.
#[derive(Debug, Default, Clone)]
pub(in crate::lock::postgres) struct Encryption {
    when: When,
    /// Nothing where it is not used.
    tls: Option<Tls>,
    /// Whether the handshake comes without a request before it.
    direct: bool,
}

/// Why there is no connection that could be logged in on.
#[derive(Debug, thiserror::Error)]
pub(in crate::lock::postgres) enum Unreached {
    #[error(transparent)]
    Network(io::Error),
    #[error(transparent)]
    Tls(Fault),
}

impl Encryption {
    /// What a URL says; with `tls` it has no say in what is verified.
    pub(in crate::lock::postgres) fn read(
        settings: Settings,
        tls: Option<&Tls>,
    ) -> Result<Self, LockError> {
        let when = settings.when(tls.is_some())?;
        let direct = settings.direct(when)?;
        let tls = match (when, tls) {
            (When::Never, _) => None,
            (_, None) => {
                let client = CLIENTS.first();
                if let (Some((option, value)), None) = (settings.asked(), client) {
                    let remedy = "this build has no TLS; turn on the feature `tls-rustls` or `tls-native` of tower-realm-lock";
                    return refuse(option, value, remedy);
                }
                let trust = settings.trust(direct)?;
                client.map(|client| client(&trust)).transpose()?
            }
            (_, Some(tls)) => {
                if let Some((option, value)) = settings.files() {
                    let remedy = "what is given to `tls` has its own; leave one of the two out";
                    return refuse(option, value, remedy);
                }
                Some(tls.clone())
            }
        };
        Ok(Self { when, tls, direct })
    }

    pub(in crate::lock::postgres) fn when(&self) -> When {
        self.when
    }

    /// Connects, encrypted if `when` says so. The address that comes back is the very one that answered.
    ///
    /// A Unix socket is never encrypted.
    pub(in crate::lock::postgres) async fn connect(
        &self,
        address: &Address,
        when: When,
    ) -> Result<(Wire, Address), Unreached> {
        let (mut stream, peer) = address.connect().await.map_err(Unreached::Network)?;
        let (Some(tls), Some(name)) = (&self.tls, address.name()) else {
            return Ok((Wire::plain(stream), peer));
        };
        let offered = match when {
            When::Never => false,
            _ if self.direct => true,
            _ => has_tls(&mut stream).await?,
        };
        if !offered && when == When::Always {
            return Err(Unreached::Tls(Fault::NoTls));
        }
        if !offered {
            return Ok((Wire::plain(stream), peer));
        }
        let wire = tls.handshake(name, stream, self.direct).await;
        Ok((wire.map_err(Unreached::Tls)?, peer))
    }
}

/// Asks the server. One byte is read and no more: what follows it belongs to the handshake, whoever has sent it.
async fn has_tls(stream: &mut Box<dyn Stream>) -> Result<bool, Unreached> {
    let asked = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    match asked.await.map_err(Unreached::Network)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // An error, or no PostgreSQL: nothing that is said on this connection would be understood.
        other => Err(Unreached::Tls(Fault::Answer(other.into()))),
    }
}
