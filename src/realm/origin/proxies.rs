use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::ConfigError;
use crate::realm::error::shown;
use crate::realm::head::Head;

/// The address that a request came from, for servers other than axum's: an extension of the
/// request.
///
/// With the feature `axum`, what axum's `into_make_service_with_connect_info::<SocketAddr>()` says
/// is read as well.
///
/// ```
/// use tower_realm_lock::PeerAddr;
///
/// # let accepted: std::net::SocketAddr = "127.0.0.1:80".parse()?;
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(PeerAddr(accepted));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// Marks a request that came over a Unix socket, whose peer has no address: an extension of the
/// request.
///
/// With the feature `axum`, a router that is served on a [`UnixListener`](tokio::net::UnixListener)
/// with `into_make_service_with_connect_info::<UnixPeer>()` has it in each request. If the router
/// needs another type there, put the layer `axum::Extension(UnixPeer)` outside this crate's layer.
///
/// ```
/// use tower_realm_lock::UnixPeer;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(UnixPeer);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnixPeer;

#[cfg(all(feature = "axum", unix))]
impl
    axum::extract::connect_info::Connected<
        axum::serve::IncomingStream<'_, tokio::net::UnixListener>,
    > for UnixPeer
{
    fn connect_info(_: axum::serve::IncomingStream<'_, tokio::net::UnixListener>) -> Self {
        Self
    }
}

/// The proxies whose forwarding headers count. Default: none. Cheap to clone.
///
/// With the feature `serde` it is read from a list of what [`new`](Self::new) takes, such as
/// `trusted_proxies = ["unix", "10.0.0.0/8"]`.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    networks: Arc<[IpNet]>,
    unix: bool,
}

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Peer {
    Address(IpAddr),
    Unix,
}

/// The name of every peer on a Unix socket.
const UNIX: &str = "unix";

impl TrustedProxies {
    /// These addresses and networks, such as `10.0.0.7`, `10.0.0.0/8` or `fd00::/8`, and with
    /// `unix` every peer on a Unix socket: see [`UnixPeer`]. The permissions of the socket's file
    /// then decide who can be such a peer.
    ///
    /// # Errors
    ///
    /// [`ConfigError::InvalidProxy`] for any other text.
    pub fn new<P: AsRef<str>>(proxies: impl IntoIterator<Item = P>) -> Result<Self, ConfigError> {
        let network = |text: &str| {
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse().or_else(|_| address())
        };
        let mut unix = false;
        let mut networks = Vec::new();
        for proxy in proxies {
            if proxy.as_ref() == UNIX {
                unix = true;
                continue;
            }
            let refused = || ConfigError::InvalidProxy {
                value: shown(proxy.as_ref()),
            };
            let network: IpNet = network(proxy.as_ref()).map_err(|_| refused())?;
            // An IPv4 address in IPv6 form is compared as what it is, and so would never be in it.
            match network {
                IpNet::V6(network) if network.addr().to_ipv4_mapped().is_some() => {
                    return Err(refused());
                }
                network => networks.push(network),
            }
        }
        let networks = networks.into();
        Ok(Self { networks, unix })
    }

    /// All of them, in one order.
    pub(super) fn fingerprint(&self) -> String {
        let networks = self.networks.iter().map(ToString::to_string);
        let mut all: Vec<String> = networks.chain(self.unix.then(|| UNIX.to_owned())).collect();
        all.sort_unstable();
        all.join(", ")
    }

    pub(super) fn trusts(&self, peer: Peer) -> bool {
        match peer {
            Peer::Address(address) => {
                // A socket for both versions shows an IPv4 peer as an IPv6 address.
                let address = address.to_canonical();
                self.networks.iter().any(|it| it.contains(&address))
            }
            Peer::Unix => self.unix,
        }
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for TrustedProxies {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let proxies = Vec::<String>::deserialize(deserializer)?;
        Self::new(proxies).map_err(serde::de::Error::custom)
    }
}

/// Where a request came from, if its server says so.
pub(super) fn peer(head: &Head<'_>) -> Option<Peer> {
    if let Some(PeerAddr(peer)) = head.extensions.get() {
        return Some(Peer::Address(peer.ip()));
    }
    if let Some(UnixPeer) = head.extensions.get() {
        return Some(Peer::Unix);
    }
    #[cfg(feature = "axum")]
    {
        use axum::extract::ConnectInfo;
        if let Some(ConnectInfo(peer)) = head.extensions.get::<ConnectInfo<SocketAddr>>() {
            return Some(Peer::Address(peer.ip()));
        }
        if let Some(ConnectInfo(UnixPeer)) = head.extensions.get() {
            return Some(Peer::Unix);
        }
    }
    None
}
