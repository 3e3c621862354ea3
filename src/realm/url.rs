use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use url::Url;

use super::error::{RealmError, shown};
use super::path::{ParsedPath, PathProblem, check_segment, push_segment, refuse_separators};

/// The canonical URL of a realm: what is locked.
///
/// Scheme and host are in lower case, a default port is left out, every path segment is
/// percent-encoded in one way, and it ends in `/`. Two spellings of one realm give equal values, on
/// every replica. There is no way to make one that is not canonical.
///
/// Letter case in the path counts, and Unicode is not normalized: `/Luke/` and `/luke/` are two
/// realms. Cheap to clone.
///
/// ```
/// use tower_realm_lock::RealmUrl;
///
/// let realm: RealmUrl = "HTTP://LocalHost:80/luke/my%2Drealm".parse()?;
/// assert_eq!(realm.as_str(), "http://localhost/luke/my-realm/");
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealmUrl(Arc<str>);

impl RealmUrl {
    /// Reads a realm URL; a missing trailing slash is added.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidUrl`] if it is not an absolute `http` or `https` URL, has user
    /// information, a query or a fragment, or has a path that two servers could read differently.
    pub fn parse(url: &str) -> Result<Self, RealmError> {
        canonical(url)
            .map(|canonical| Self(canonical.into()))
            .map_err(|problem| RealmError::InvalidUrl {
                url: shown(url),
                problem,
            })
    }

    /// The canonical text, in ASCII.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The realm below this URL whose path goes on with these segments.
    ///
    /// Segments are plain text: each is percent-encoded here, so `%41` stands for these three
    /// characters. Without segments it is this URL.
    ///
    /// ```
    /// use tower_realm_lock::RealmUrl;
    ///
    /// let base = RealmUrl::parse("https://realms.example.com")?;
    /// let realm = base.join(["luke", "my realm"])?;
    /// assert_eq!(realm.as_str(), "https://realms.example.com/luke/my%20realm/");
    /// assert!(base.join(["luke", "../admin"]).is_err());
    /// # Ok::<(), tower_realm_lock::RealmError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidSegment`] for a segment that is empty, `.` or `..`, or has a control
    /// character, a slash or a backslash: some server would read another path.
    pub fn join<S: AsRef<str>>(
        &self,
        segments: impl IntoIterator<Item = S>,
    ) -> Result<Self, RealmError> {
        let mut url = self.0.to_string();
        for segment in segments {
            let segment = segment.as_ref();
            let checked = refuse_separators(segment).and_then(|()| check_segment(segment));
            checked.map_err(|problem| RealmError::InvalidSegment {
                segment: shown(segment),
                problem: remedy(problem).into(),
            })?;
            push_segment(&mut url, segment);
        }
        Ok(Self(url.into()))
    }

    /// Its path: what follows the origin.
    pub(crate) fn path(&self) -> &str {
        // The first colon ends the scheme.
        let authority = self.0.find(':').map_or(0, |at| at + "://".len());
        let path = self.0[authority..].find('/').unwrap_or(0);
        &self.0[authority + path..]
    }

    /// Its scheme, host and port, without a slash at the end.
    pub(crate) fn origin(&self) -> &str {
        &self.0[..self.0.len() - self.path().len()]
    }

    /// The realm below this URL whose path goes on with these decoded segments; `None` if one of
    /// them is missing.
    pub(crate) fn below<'a>(
        &self,
        segments: impl IntoIterator<Item = Option<&'a str>>,
    ) -> Option<Self> {
        // As much as most realms need: it does not grow for them.
        let mut url = String::with_capacity(self.0.len() + 64);
        url.push_str(&self.0);
        for segment in segments {
            push_segment(&mut url, segment?);
        }
        Some(Self(url.into()))
    }
}

/// What is wrong with one segment, and what would be right.
fn remedy(problem: PathProblem) -> &'static str {
    match problem {
        PathProblem::EmptySegment => "it is empty; leave it out, or give it a name",
        PathProblem::DotSegment => "it is a step to another path; give it a name",
        PathProblem::Separator => "it has a slash or a backslash; pass each segment by itself",
        _ => "it has a control character; use only characters that can be read",
    }
}

fn canonical(url: &str) -> Result<String, String> {
    // The WHATWG parser drops tabs and line ends in silence; a realm must not have such a second
    // spelling.
    if url.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("it has white space or a control character".into());
    }
    if url.contains(['?', '#']) {
        return Err("a realm URL has no query and no fragment".into());
    }
    let form = "write an absolute URL such as `https://realms.example.com/owner/realm/`";
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| format!("it has no scheme; {form}"))?;
    if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err("the scheme must be http or https".into());
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains(['@', '\\']) {
        return Err("user information and backslashes do not belong in a realm URL".into());
    }
    if authority.contains(['{', '}', '*']) {
        return Err(format!(
            "its host has a brace or a star; a base URL takes one label of its host as a parameter, \
             such as `{scheme}://{{tenant}}.example.com`, and nothing else does"
        ));
    }
    let url = Url::parse(&format!("{scheme}://{authority}/"))
        .map_err(|error| format!("{error}; {form}"))?;
    // `example.com.` is the same server, and would be another realm.
    if url.host_str().is_some_and(|host| host.ends_with('.')) {
        return Err("its host ends with a dot".into());
    }
    let origin = url.origin().ascii_serialization();

    let mut canonical = format!("{origin}/");
    let path = ParsedPath::new(if path.is_empty() { "/" } else { path });
    for segment in path.segments().map_err(|problem| problem.to_string())? {
        refuse_separators(segment).map_err(|problem| problem.to_string())?;
        push_segment(&mut canonical, segment);
    }
    Ok(canonical)
}

impl FromStr for RealmUrl {
    type Err = RealmError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        Self::parse(url)
    }
}

impl TryFrom<&str> for RealmUrl {
    type Error = RealmError;

    fn try_from(url: &str) -> Result<Self, RealmError> {
        Self::parse(url)
    }
}

impl AsRef<str> for RealmUrl {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl From<RealmUrl> for String {
    fn from(realm: RealmUrl) -> Self {
        realm.as_str().to_owned()
    }
}

/// As the canonical text.
#[cfg(feature = "serde")]
impl serde::Serialize for RealmUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Any spelling of a realm URL, checked as [`parse`](RealmUrl::parse) does.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for RealmUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let url = String::deserialize(deserializer)?;
        Self::parse(&url).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for RealmUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RealmUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RealmUrl({})", self.0)
    }
}
