use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::realm::error::{RealmError, shown};
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

/// The proxies whose word on a request counts, by their addresses. Default: none. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// These addresses and networks, such as `10.0.0.7`, `10.0.0.0/8` or `fd00::/8`.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidProxy`] for what is neither.
    pub fn new<P: AsRef<str>>(proxies: impl IntoIterator<Item = P>) -> Result<Self, RealmError> {
        let network = |text: &str| {
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse().or_else(|_| address())
        };
        let proxies = proxies.into_iter().map(|proxy| {
            let refused = || RealmError::InvalidProxy {
                value: shown(proxy.as_ref()),
            };
            let network: IpNet = network(proxy.as_ref()).map_err(|_| refused())?;
            // An IPv4 address in IPv6 form is compared as what it is, and so would never be in it.
            match network {
                IpNet::V6(network) if network.addr().to_ipv4_mapped().is_some() => Err(refused()),
                network => Ok(network),
            }
        });
        proxies.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        // A socket for both versions shows an IPv4 peer as an IPv6 address.
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Where a request came from, if its server says so.
pub(super) fn peer(head: &Head<'_>) -> Option<IpAddr> {
    if let Some(PeerAddr(peer)) = head.extensions.get() {
        return Some(peer.ip());
    }
    #[cfg(feature = "axum")]
    if let Some(axum::extract::ConnectInfo(peer)) = head
        .extensions
        .get::<axum::extract::ConnectInfo<SocketAddr>>()
    {
        return Some(peer.ip());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        for bad in ["", "10.0.0.0/33", "proxy.example", "10.0.0.1:80", "x\n"] {
            let error = TrustedProxies::new([bad]).unwrap_err().to_string();
            assert!(error.contains("proxy") && !error.contains('\n'), "{error}");
        }
        let one = TrustedProxies::new(["10.0.0.1"]).unwrap();
        assert!(one.trusts("10.0.0.1".parse().unwrap()));
        assert!(!one.trusts("10.0.0.2".parse().unwrap()));
        assert!(!TrustedProxies::default().trusts("127.0.0.1".parse().unwrap()));
    }
}
