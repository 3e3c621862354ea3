use std::fmt;

use http::HeaderMap;
use http::header::HeaderName;

use super::base::split_url;
use crate::realm::error::{RealmError, shown};
use crate::realm::path::ParsedPath;
use crate::realm::url::RealmUrl;

const DESTINATION: HeaderName = HeaderName::from_static("destination");

const REMEDY: &str =
    "send one that is an absolute path, such as `/owner/realm/card`, or a URL of this server";

/// Where a MOVE or COPY writes to: the value of its header `Destination` (RFC 4918, section 10.3).
///
/// A query is refused, although the RFC allows it: a server that takes it for a part of the path
/// reads another path.
pub(in crate::realm) struct Destination<'a> {
    value: &'a str,
    /// The scheme, host and port of a URL, followed by a slash; `None` for an absolute path.
    origin: Option<RealmUrl>,
    path: &'a str,
}

impl<'a> Destination<'a> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`RealmError::Destination`] if there is none or more than one, or if it is not a URL or an
    /// absolute path.
    pub(in crate::realm) fn of(headers: &'a HeaderMap) -> Result<Self, RealmError> {
        let values: Vec<_> = headers.get_all(DESTINATION).iter().collect();
        let told = |value: &[u8]| shown(&String::from_utf8_lossy(value));
        let problem = match *values {
            [] => "it has no header `Destination`".to_owned(),
            [value] => match value.to_str() {
                Ok(text) => return Self::read(text),
                Err(_) => format!(
                    "`Destination: {}` has characters that must be percent-encoded",
                    told(value.as_bytes())
                ),
            },
            [one, other, ..] => format!(
                "it has the header `Destination` more than once, as `{}` and as `{}`",
                told(one.as_bytes()),
                told(other.as_bytes())
            ),
        };
        let problem = format!("{problem}; {REMEDY}");
        Err(RealmError::Destination { problem })
    }

    fn read(text: &'a str) -> Result<Self, RealmError> {
        let mut destination = Self {
            value: text,
            origin: None,
            path: text,
        };
        if text.contains([' ', '\t', '?', '#']) {
            return Err(destination.refused("it has white space, a query or a fragment"));
        }
        if text.starts_with('/') {
            return Ok(destination);
        }
        if !text.contains("://") {
            return Err(destination.refused("it is neither a URL nor an absolute path"));
        }
        let (origin, path) = split_url(text);
        let origin = RealmUrl::parse(origin);
        destination.origin = Some(origin.map_err(|error| destination.refused(error))?);
        destination.path = if path.is_empty() { "/" } else { path };
        Ok(destination)
    }

    /// The path as a request to the destination has it: without the path of a base URL that a proxy
    /// removes.
    ///
    /// # Errors
    ///
    /// [`RealmError::Destination`] if it is not below the base URL.
    pub(in crate::realm) fn path_below(
        &self,
        base: Option<&RealmUrl>,
    ) -> Result<ParsedPath<'a>, RealmError> {
        let Some(base) = base else {
            return Ok(ParsedPath::new(self.path));
        };
        if !self.path.starts_with(base.path()) {
            let base = shown(base.as_str());
            return Err(self.refused(format_args!("it is not below the base URL `{base}`")));
        }
        // The base's path ends in a slash, with which the rest begins.
        Ok(ParsedPath::new(&self.path[base.path().len() - 1..]))
    }

    /// Checks that the origin of a URL is the one at which its path names this realm.
    ///
    /// # Errors
    ///
    /// [`RealmError::Destination`] if it is another one.
    pub(in crate::realm) fn check_origin(
        &self,
        expected: &RealmUrl,
        realm: &RealmUrl,
    ) -> Result<(), RealmError> {
        match &self.origin {
            Some(origin) if origin.origin() != expected.origin() => {
                let realm = shown(realm.as_str());
                Err(self.refused(format_args!("its path is one of the realm `{realm}` here")))
            }
            _ => Ok(()),
        }
    }

    /// Why it names no realm.
    pub(in crate::realm) fn refused(&self, problem: impl fmt::Display) -> RealmError {
        let value = shown(self.value);
        let problem = format!("`Destination: {value}` cannot be used: {problem}; {REMEDY}");
        RealmError::Destination { problem }
    }
}
