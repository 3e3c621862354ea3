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
        let authority = self.0.find("://").map_or(0, |at| at + "://".len());
        let path = self.0[authority..].find('/').unwrap_or(0);
        &self.0[authority + path..]
    }

    /// Its scheme, host and port, without a slash at the end.
    pub(crate) fn origin(&self) -> &str {
        &self.0[..self.0.len() - self.path().len()]
    }

    /// The realm below this URL whose path goes on with these decoded segments.
    pub(crate) fn below<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut url = self.0.to_string();
        for segment in segments {
            push_segment(&mut url, segment);
        }
        Self(url.into())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(url: &str) -> String {
        RealmUrl::parse(url).unwrap().to_string()
    }

    #[test]
    fn spellings_of_one_realm_are_equal() {
        for (spelling, canonical) in [
            ("https://app.boxel.ai/base/", "https://app.boxel.ai/base/"),
            ("https://app.boxel.ai/base", "https://app.boxel.ai/base/"),
            (
                "HTTPS://APP.Boxel.AI:443/base/",
                "https://app.boxel.ai/base/",
            ),
            ("https://app.boxel.ai", "https://app.boxel.ai/"),
            (
                "http://127.0.0.1:4444/t%65st",
                "http://127.0.0.1:4444/test/",
            ),
            ("http://[::1]:80/a", "http://[::1]/a/"),
            ("http://bücher.example/a", "http://xn--bcher-kva.example/a/"),
            ("http://h/ü/%c3%bc/", "http://h/%C3%BC/%C3%BC/"),
            ("http://h/a%20b/~x%7Ey/", "http://h/a%20b/~x~y/"),
            ("http://h/100%25/", "http://h/100%25/"),
        ] {
            assert_eq!(parsed(spelling), canonical, "{spelling}");
        }
    }

    #[test]
    fn what_is_not_a_realm_url_is_refused_by_name() {
        for url in [
            "",
            "realm",
            "/luke/realm/",
            "ftp://h/a/",
            "file:///a/",
            "http://",
            "http:///a/",
            "http://h:99999/a/",
            "http://user@h/a/",
            "http://h\\evil/a/",
            "http://{tenant}.h/a/",
            "https://*.h/a/",
            "http://h/a/?x",
            "http://h/a/#x",
            "http://h/a b/",
            "http://h/a\tb/",
            "http://h//a/",
            "http://h./a/",
            "http://h/a/../b/",
            "http://h/a%2Fb/",
            "http://h/a%5cb/",
            "http://h/%00/",
            "http://h/%FF/",
            "http://h/%2",
        ] {
            let error = RealmUrl::parse(url).unwrap_err().to_string();
            let shown = url.escape_debug().to_string();
            assert!(error.contains(&format!("`{shown}`")), "{url}: {error}");
        }
    }

    #[test]
    fn a_segment_that_a_server_could_read_as_another_path_is_not_joined() {
        let base = RealmUrl::parse("http://h/a").unwrap();
        for (segment, part) in [
            ("", "it is empty"),
            (".", "a step to another path"),
            ("..", "a step to another path"),
            ("a/b", "a slash or a backslash"),
            ("/", "a slash or a backslash"),
            ("..\\b", "a slash or a backslash"),
            ("a\nb", "a control character"),
            ("\u{0}", "a control character"),
            ("\u{85}", "a control character"),
        ] {
            let error = base.join(["x", segment]).unwrap_err().to_string();
            let shown = format!("`{}` cannot be a segment", segment.escape_debug());
            assert!(error.starts_with(&shown) && error.contains(part), "{error}");
        }
        assert_eq!(base.join::<&str>([]).unwrap(), base);
        for (segment, encoded) in [("%2e%2e", "%252e%252e"), ("ü?#", "%C3%BC%3F%23")] {
            let joined = base.join([segment]).unwrap();
            assert_eq!(joined.as_str(), format!("http://h/a/{encoded}/"));
        }
    }

    proptest! {
        #[test]
        fn what_is_joined_is_canonical(segments in prop::collection::vec("\\PC{1,8}", 0..4)) {
            let base = RealmUrl::parse("http://h/a/").unwrap();
            if let Ok(joined) = base.join(&segments) {
                prop_assert_eq!(RealmUrl::parse(joined.as_str()).unwrap(), joined.clone());
                let path = ParsedPath::new(joined.path());
                let decoded: Vec<String> = path.segments().unwrap().map(str::to_owned).collect();
                prop_assert_eq!(&decoded[1..], &segments[..]);
            }
        }

        #[test]
        fn the_canonical_form_is_idempotent(url in "(?i:https?)://[a-zA-Z0-9.]{1,12}(:[0-9]{1,4})?(/[^/?#]{1,12}){0,4}/?") {
            if let Ok(realm) = RealmUrl::parse(&url) {
                prop_assert_eq!(RealmUrl::parse(realm.as_str()).unwrap(), realm.clone());
                prop_assert!(realm.as_str().ends_with('/') && realm.as_str().is_ascii());
                // A WHATWG parser, such as a JavaScript realm server's, leaves it as it is.
                let whatwg = Url::parse(realm.as_str()).unwrap();
                prop_assert_eq!(whatwg.as_str(), realm.as_str());
            }
        }

        #[test]
        fn every_way_to_encode_a_segment_gives_one_url(segment in "[^/\\\\\u{0}-\u{1f}\u{7f}-\u{9f}]{1,8}", lower in any::<bool>()) {
            prop_assume!(segment != "." && segment != "..");
            let all: String = segment.bytes().map(|b| if lower { format!("%{b:02x}") } else { format!("%{b:02X}") }).collect();
            let base = RealmUrl::parse("http://h/").unwrap();
            prop_assert_eq!(RealmUrl::parse(&format!("http://h/{all}/")).unwrap(), base.below([segment.as_str()]));
        }
    }
}
