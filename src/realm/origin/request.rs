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
