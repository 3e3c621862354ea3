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
