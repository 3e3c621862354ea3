use std::sync::Arc;

use http::header;
use http::uri::Authority;

use super::forwarded::Forwarded;
use super::proxies::{TrustedProxies, peer};
use crate::config::ConfigError;
use crate::realm::error::{RealmError, shown};
use crate::realm::head::Head;
use crate::realm::url::RealmUrl;

/// The origin of a realm URL as the request itself says it, for servers that are reached by several
/// names.
///
/// - The **host** is the authority of the request's URI (HTTP/2 `:authority`, or the absolute form
///   of HTTP/1.1), else `Host`. A request with several of them that differ is refused.
/// - The **scheme** is that of the base URL: a client cannot choose it.
/// - `Forwarded` (RFC 7239), `X-Forwarded-Host` and `X-Forwarded-Proto` count instead of these, and
///   `X-Forwarded-Prefix` instead of the base URL's path, only if the request comes from a trusted
///   proxy. Of the elements of `Forwarded` the one counts that the outermost trusted proxy wrote,
///   as `for` tells; of the lists in the other headers, what the nearest proxy wrote: the last one.
///   Where both kinds are there they must say the same, each of them all of it.
///
/// **A client can write any `Host`**, and with it the realm URL that is locked. Two spellings of
/// one server are two keys that do not exclude each other. Name the origins that there are with
/// [`only`](Self::only), unless the handlers, too, take every host for a place of its own. **A
/// trusted proxy must overwrite or remove each of these headers**: one that it passes on is its
/// client's.
///
/// ```
/// use tower_realm_lock::{RealmPaths, RequestOrigin, TrustedProxies};
///
/// let proxies = TrustedProxies::new(["10.0.0.0/8"])?;
/// let origin = RequestOrigin::new(proxies).only(["https://a.example", "https://b.example"])?;
/// let realms = RealmPaths::new("https://a.example", "/{owner}/{realm}")?.origin_from_request(origin);
/// # let _ = realms;
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RequestOrigin {
    proxies: TrustedProxies,
    /// Origins, and what their realms are below, as realm URLs.
    only: Option<Arc<[RealmUrl]>>,
}

impl RequestOrigin {
    /// What a request says, and what these proxies say of it. Any origin counts.
    #[must_use]
    pub fn new(proxies: TrustedProxies) -> Self {
        let only = None;
        Self { proxies, only }
    }

    /// Refuses requests of every other origin, with 400. Default: any origin counts.
    ///
    /// Where a proxy gives a prefix (`X-Forwarded-Prefix`), or the base URL has a path, it belongs
    /// to the origin here: `https://realms.example.com/api`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::InvalidUrl`] for what is no URL of an origin.
    pub fn only<O: AsRef<str>>(
        mut self,
        origins: impl IntoIterator<Item = O>,
    ) -> Result<Self, ConfigError> {
        let origins = origins
            .into_iter()
            .map(|origin| RealmUrl::parse(origin.as_ref()));
        self.only = Some(origins.collect::<Result<_, _>>()?);
        Ok(self)
    }

    /// What replicas that share realms must have in common, in one order.
    pub(in crate::realm) fn fingerprint(&self) -> String {
        let only = match &self.only {
            Some(only) => {
                let mut only: Vec<&str> = only.iter().map(RealmUrl::as_str).collect();
                only.sort_unstable();
                only.join(", ")
            }
            None => "any".to_owned(),
        };
        let proxies = self.proxies.fingerprint();
        format!("of requests: {only}, proxies: {proxies}")
    }

    /// Where the realms of a request begin: its origin, and what its path is below, with this
    /// scheme and path unless a trusted proxy gives others. Then whether a proxy gives the path,
    /// and so has removed it.
    pub(in crate::realm) fn base_of(
        &self,
        head: &Head<'_>,
        scheme: &str,
        path: &str,
    ) -> Result<(RealmUrl, bool), RealmError> {
        let refused = |problem| RealmError::Origin { problem };
        let own = host(head).map_err(refused)?;
        let forwarded = if peer(head).is_some_and(|peer| self.proxies.trusts(peer)) {
            Forwarded::of(head.headers, &self.proxies).map_err(refused)?
        } else {
            Forwarded::default()
        };
        let host = match &forwarded.host {
            Some(host) => authority(host).map_err(refused)?,
            None => own.ok_or_else(|| refused("it has no `Host`".into()))?,
        };
        let scheme = forwarded.proto.as_deref().unwrap_or(scheme);
        let path = forwarded.prefix.as_deref().unwrap_or(path);
        if !path.starts_with('/') {
            let path = shown(path);
            return Err(refused(format!(
                "`X-Forwarded-Prefix: {path}` does not begin with `/`"
            )));
        }
        let url = RealmUrl::parse(&format!("{scheme}://{host}{path}"))
            .map_err(|error| refused(error.to_string()))?;
        if self.only.as_ref().is_some_and(|only| !only.contains(&url)) {
            return Err(refused(format!(
                "`{}` is none of the server's origins",
                shown(url.as_str())
            )));
        }
        Ok((url, forwarded.prefix.is_some()))
    }
}

/// The host that the request is for, as its client or the nearest proxy wrote it.
fn host(head: &Head<'_>) -> Result<Option<Authority>, String> {
    let in_uri = head.authority();
    if let Some(in_uri) = in_uri {
        authority(in_uri.as_str())?;
    }
    let mut values = head.headers.get_all(header::HOST).iter();
    let Some(value) = values.next() else {
        return Ok(in_uri.cloned());
    };
    if values.next().is_some() {
        return Err("it has more than one `Host`".into());
    }
    let value = value.to_str().map_err(|_| "its `Host` is not ASCII")?;
    let in_header = authority(value)?;
    match in_uri {
        // Case does not count here either.
        Some(in_uri) if *in_uri != in_header => Err(format!(
            "its URI is for `{}`, and its `Host` is `{}`",
            shown(in_uri.as_str()),
            shown(in_header.as_str())
        )),
        _ => Ok(Some(in_header)),
    }
}

/// A host and a port, and nothing else.
fn authority(text: &str) -> Result<Authority, String> {
    let bad = |problem| format!("`{}` is not a host: {problem}", shown(text));
    let authority: Authority = text
        .parse()
        .map_err(|_| bad("write `name` or `name:port`"))?;
    if text.contains('@') {
        return Err(bad("it has user information"));
    }
    // `example.com.` is the same server, and would be another realm.
    if authority.host().ends_with('.') {
        return Err(bad("it ends with a dot"));
    }
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;
    use crate::realm::origin::proxies::PeerAddr;

    const TRUSTED: &str = "10.1.2.3:99";

    /// The base of a request from a peer, with these headers.
    fn base(uri: &str, peer: &str, headers: &[(&'static str, &str)]) -> Result<String, String> {
        base_by(&origin(), uri, peer, headers)
    }

    fn origin() -> RequestOrigin {
        RequestOrigin::new(TrustedProxies::new(["10.0.0.0/8", "::1"]).unwrap())
    }

    fn base_by(
        origin: &RequestOrigin,
        uri: &str,
        peer: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<String, String> {
        let mut request = Request::patch(uri).body(()).unwrap();
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).unwrap();
            request.headers_mut().append(*name, value);
        }
        if !peer.is_empty() {
            request
                .extensions_mut()
                .insert(PeerAddr(peer.parse().unwrap()));
        }
        let base = origin.base_of(&Head::of(&request), "https", "/api/");
        base.map(|(url, _)| url.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_host_is_the_requests_and_the_rest_is_configured() {
        for (uri, host, expected) in [
            ("/x", "A.example", "https://a.example/api/"),
            ("/x", "a.example:443", "https://a.example/api/"),
            ("/x", "a.example:8443", "https://a.example:8443/api/"),
            ("/x", "[::1]:80", "https://[::1]:80/api/"),
            ("http://a.example/x", "A.example", "https://a.example/api/"),
            ("http://a.example/x", "", "https://a.example/api/"),
        ] {
            let host: &[_] = if host.is_empty() {
                &[]
            } else {
                &[("host", host)]
            };
            assert_eq!(base(uri, "", host).unwrap(), expected, "{uri} {host:?}");
        }
    }

    #[test]
    fn a_host_that_is_not_certain_is_refused() {
        for (uri, headers) in [
            ("/x", &[][..]),
            ("/x", &[("host", "a"), ("host", "a")][..]),
            ("/x", &[("host", "a"), ("host", "b")]),
            ("http://a/x", &[("host", "b")]),
            ("http://a:80/x", &[("host", "a")]),
            ("http://u@a/x", &[]),
            ("/x", &[("host", "")]),
            ("/x", &[("host", "a/b")]),
            ("/x", &[("host", "a, b")]),
            ("/x", &[("host", "u@a")]),
            ("/x", &[("host", "a.example.")]),
            ("/x", &[("host", "a.example.:80")]),
            ("/x", &[("host", "a?b")]),
            ("/x", &[("host", "a#b")]),
            ("/x", &[("host", "a\\b")]),
            ("/x", &[("host", "a:b")]),
            ("/x", &[("host", "a:99999")]),
        ] {
            let error = base(uri, "", headers).unwrap_err();
            assert!(error.contains("origin"), "{uri} {headers:?}: {error}");
        }
    }

    #[test]
    fn forwarded_headers_count_only_from_a_trusted_peer() {
        let headers = [
            ("host", "inner"),
            ("x-forwarded-host", "outer"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-prefix", "/pre%66ix/"),
        ];
        for (peer, expected) in [
            (TRUSTED, "http://outer/prefix/"),
            ("[::1]:1", "http://outer/prefix/"),
            ("[::ffff:10.1.2.3]:1", "http://outer/prefix/"),
            ("192.0.2.1:1", "https://inner/api/"),
            ("[::ffff:192.0.2.1]:1", "https://inner/api/"),
            ("", "https://inner/api/"),
        ] {
            assert_eq!(base("/x", peer, &headers).unwrap(), expected, "{peer}");
        }
    }

    #[test]
    fn a_bad_word_of_a_trusted_proxy_is_refused() {
        for header in [
            ("x-forwarded-host", "a/b"),
            ("x-forwarded-host", ""),
            ("x-forwarded-host", "outer."),
            ("x-forwarded-proto", "ftp"),
            ("x-forwarded-proto", "https://evil/"),
            ("x-forwarded-prefix", "prefix"),
            ("x-forwarded-prefix", "@evil/"),
            ("x-forwarded-prefix", "/a/../b"),
            ("x-forwarded-prefix", "/a%2fb"),
            ("x-forwarded-prefix", ""),
            ("forwarded", "host"),
        ] {
            let headers = [("host", "inner"), header];
            let error = base("/x", TRUSTED, &headers).unwrap_err();
            assert!(!error.contains(char::is_control), "{header:?}: {error}");
            assert!(base("/x", "192.0.2.1:1", &headers).is_ok(), "{header:?}");
        }
        // Not even a trusted proxy can make two hosts of a request one.
        let twice = [("host", "a"), ("host", "b"), ("x-forwarded-host", "c")];
        assert!(base("/x", TRUSTED, &twice).is_err());
    }

    #[test]
    fn origins_can_be_named() {
        let only = origin()
            .only(["https://A.example:443/api", "http://b.example/api"])
            .unwrap();
        let base = |host| base_by(&only, "/x", "", &[("host", host)]);
        assert_eq!(base("a.example").unwrap(), "https://a.example/api/");
        for host in ["b.example", "c.example", "a.example:80"] {
            assert!(base(host).unwrap_err().contains("none of"), "{host}");
        }
        // What a proxy passes on may be its client's.
        let prefixed = [("host", "a.example"), ("x-forwarded-prefix", "/1")];
        let refused = base_by(&only, "/x", TRUSTED, &prefixed).unwrap_err();
        assert!(refused.contains("none of"), "{refused}");
        for origin in ["a.example", "https://a.example/?x", "ftp://a"] {
            assert!(
                super::RequestOrigin::new(TrustedProxies::default())
                    .only([origin])
                    .is_err()
            );
        }
    }
}
