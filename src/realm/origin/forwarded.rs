use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use super::proxies::{Peer, TrustedProxies};
use crate::realm::error::shown;

/// What trusted proxies say of a request as its client sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Forwarded {
    pub(super) host: Option<String>,
    pub(super) proto: Option<String>,
    /// What a proxy has taken off the beginning of the path.
    pub(super) prefix: Option<String>,
}

impl Forwarded {
    /// Reads the headers of a request that came from a trusted proxy.
    ///
    /// # Errors
    ///
    /// What is wrong with them: they cannot be read, or contradict each other.
    pub(super) fn of(headers: &HeaderMap, proxies: &TrustedProxies) -> Result<Self, String> {
        let standard = match text(headers, "forwarded")? {
            Some(list) => of_elements(&list, proxies)
                .ok_or_else(|| format!("`Forwarded: {}` cannot be read", shown(&list)))?,
            None => Self::default(),
        };
        let prefix = text(headers, "x-forwarded-prefix")?;
        if let Some(prefix) = prefix.as_ref().filter(|prefix| prefix.contains(',')) {
            let prefix = shown(prefix);
            return Err(format!("`X-Forwarded-Prefix: {prefix}` has several values"));
        }
        let host = last(text(headers, "x-forwarded-host")?);
        let proto = last(text(headers, "x-forwarded-proto")?);
        let has_both = headers.contains_key("forwarded") && (host.is_some() || proto.is_some());
        let agreed = |what, one, other| agreed(what, one, other, has_both);
        Ok(Self {
            host: agreed("host", standard.host, host)?,
            proto: agreed("protocol", standard.proto, proto)?,
            prefix,
        })
    }
}

/// All values of a header, as one list (RFC 9110, section 5.3).
fn text(headers: &HeaderMap, name: &str) -> Result<Option<String>, String> {
    let mut list: Option<String> = None;
    for value in headers.get_all(name) {
        let value = value
            .to_str()
            .map_err(|_| format!("the header `{name}` has bytes that are not ASCII"))?;
        list = Some(match list {
            Some(list) => format!("{list},{value}"),
            None => value.to_owned(),
        });
    }
    Ok(list)
}

/// What the nearest proxy wrote: the last one of a list.
fn last(list: Option<String>) -> Option<String> {
    list.map(|list| {
        list.rsplit(',')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned()
    })
}

fn agreed(
    what: &str,
    one: Option<String>,
    other: Option<String>,
    has_both: bool,
) -> Result<Option<String>, String> {
    match (one, other) {
        // Then only one of them is the proxy's.
        (Some(_), None) | (None, Some(_)) if has_both => Err(format!(
            "of `Forwarded` and `X-Forwarded-*` only one says its {what}; let the proxy remove the other kind"
        )),
        (Some(one), Some(other)) if !one.eq_ignore_ascii_case(&other) => Err(format!(
            "`Forwarded` says that its {what} is `{}`, and `X-Forwarded-*` says `{}`",
            shown(&one),
            shown(&other)
        )),
        (one, other) => Ok(one.or(other)),
    }
}

/// One proxy's part of `Forwarded` (RFC 7239, section 4).
#[derive(Default)]
struct Element {
    from: Option<String>,
    host: Option<String>,
    proto: Option<String>,
}

/// The last element is the nearest proxy's. One before it counts as long as the one after it came
/// from a trusted proxy too: what the outermost of them saw is what the client sent.
fn of_elements(list: &str, proxies: &TrustedProxies) -> Option<Forwarded> {
    let elements = split(list, ',')?;
    let elements: Vec<Element> = elements
        .into_iter()
        .filter(|element| !element.is_empty())
        .map(element)
        .collect::<Option<_>>()?;
    let mut forwarded = Forwarded::default();
    for element in elements.into_iter().rev() {
        forwarded.host = element.host.or(forwarded.host);
        forwarded.proto = element.proto.or(forwarded.proto);
        let trusted =
            |from: String| address(&from).is_some_and(|from| proxies.trusts(Peer::Address(from)));
        if !element.from.is_some_and(trusted) {
            break;
        }
    }
    Some(forwarded)
}

fn element(text: &str) -> Option<Element> {
    let mut element = Element::default();
    for pair in split(text, ';')?
        .into_iter()
        .filter(|pair| !pair.is_empty())
    {
        let (name, value) = pair.split_once('=')?;
        let value = unquoted(value)?;
        let field = match &*name.to_ascii_lowercase() {
            "for" => &mut element.from,
            "host" => &mut element.host,
            "proto" => &mut element.proto,
            _ => continue,
        };
        // No name stands twice in an element.
        if field.replace(value).is_some() {
            return None;
        }
    }
    Some(element)
}

/// The trimmed parts between separators that are not within quotes; none if a quote is not closed.
fn split(text: &str, separator: char) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let (mut begin, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c == separator && !quoted => {
                parts.push(text[begin..at].trim());
                begin = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(text[begin..].trim());
    (!quoted).then_some(parts)
}

fn unquoted(value: &str) -> Option<String> {
    let Some(quoted) = value.strip_prefix('"') else {
        return (!value.is_empty() && !value.contains(['"', ' ', '\t'])).then(|| value.to_owned());
    };
    let mut text = String::new();
    let mut chars = quoted.strip_suffix('"')?.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return None,
            '\\' => text.push(chars.next()?),
            c => text.push(c),
        }
    }
    Some(text)
}

/// The address of a `for` (RFC 7239, section 6); none if it is hidden.
fn address(node: &str) -> Option<IpAddr> {
    let socket = || node.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let bracketed = || node.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    node.parse().ok().or_else(socket).or_else(bracketed)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::HeaderName;

    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> Result<[Option<String>; 3], String> {
        let proxies = TrustedProxies::new(["10.0.0.0/8", "2001:db8::/32"]).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        Forwarded::of(&map, &proxies).map(|it| [it.host, it.proto, it.prefix])
    }

    fn forwarded(value: &'static str) -> (String, String) {
        let [host, proto, _] = read(&[("forwarded", value)]).unwrap();
        (host.unwrap_or_default(), proto.unwrap_or_default())
    }

    #[test]
    fn the_outermost_trusted_proxy_says_what_the_client_sent() {
        for (value, host, proto) in [
            ("host=a.example;proto=https", "a.example", "https"),
            (
                "Host=\"a.example:8443\" ; PROTO=https",
                "a.example:8443",
                "https",
            ),
            ("for=192.0.2.1;host=a", "a", ""),
            ("host=evil, for=192.0.2.1;host=a", "a", ""),
            (
                "host=evil, for=192.0.2.1;host=a, for=10.0.0.1;host=b;proto=http",
                "a",
                "http",
            ),
            ("host=evil, for=\"[2001:db8::1]:99\"", "evil", ""),
            (
                "for=192.0.2.1;host=a, for=\"10.0.0.1:1234\";host=b",
                "a",
                "",
            ),
            ("host=evil, for=unknown;host=a", "a", ""),
            ("host=evil, for=_hidden", "", ""),
            ("host=evil;proto=http, proto=https", "", "https"),
            (", ,host=a,", "a", ""),
            ("for=\"a,b;host=evil\";host=a", "a", ""),
            ("host=\"a\\\"b\"", "a\"b", ""),
        ] {
            assert_eq!(forwarded(value), (host.into(), proto.into()), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for value in [
            "host",
            "host=a;host=b",
            "host=\"a",
            "host=",
            "host=a b",
            "host=\"a\"b\"",
        ] {
            assert!(read(&[("forwarded", value)]).is_err(), "{value}");
        }
    }

    #[test]
    fn of_a_list_the_nearest_proxys_value_counts() {
        let [host, proto, prefix] = read(&[
            ("x-forwarded-host", "evil, a.example"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-prefix", "/api"),
        ])
        .unwrap();
        assert_eq!(host.as_deref(), Some("a.example"));
        assert_eq!(proto.as_deref(), Some("https"));
        assert_eq!(prefix.as_deref(), Some("/api"));
        assert!(read(&[("x-forwarded-prefix", "/a, /b")]).is_err());
        assert!(read(&[("x-forwarded-prefix", "/a"), ("x-forwarded-prefix", "/a")]).is_err());
    }

    #[test]
    fn both_kinds_of_headers_must_agree() {
        let agreeing = read(&[("forwarded", "host=A"), ("x-forwarded-host", "a")]).unwrap();
        assert_eq!(agreeing[0].as_deref(), Some("A"));
        let error = read(&[("forwarded", "host=a"), ("x-forwarded-host", "b")]).unwrap_err();
        assert!(error.contains("`a`") && error.contains("`b`"), "{error}");
        for headers in [
            [("forwarded", "host=a"), ("x-forwarded-proto", "http")],
            [("forwarded", "for=192.0.2.1"), ("x-forwarded-host", "a")],
        ] {
            let error = read(&headers).unwrap_err();
            assert!(error.contains("only one says its"), "{error}");
        }
    }
}
