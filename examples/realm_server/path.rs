//! From a request path or an `href` to the file of a card, with no way out of the realm.
//!
//! The lock layer reads the realm of a write and nothing below it. Reads, and the path of the card itself, are checked
//! here alone.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tower_realm_lock::RealmUrl;
use url::Url;

/// The last part of a realm's path that is an endpoint, and so cannot be a card.
pub const ATOMIC: &str = "_atomic";

/// What the name of a card's file ends in, and its URL may.
const SUFFIX: &str = ".json";

/// File systems allow names of 255 bytes; `.json` and what the store adds for its hidden files must fit as well.
const SEGMENT_LIMIT: usize = 200;

/// The path percent-encode set of the WHATWG URL standard, as in a canonical realm URL: a card's URL begins with it.
const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'%')
    .add(b'/')
    .add(b'\\');

/// The name of a card for its lock, of its path below the realm: `x` and `x.json` are the file
/// `x.json`.
///
/// `_atomic` is none, and has no name: a rule that takes it for a card locks the realm whole.
pub fn lock_name(path: &str) -> String {
    match path.strip_suffix(SUFFIX).unwrap_or(path) {
        ATOMIC => String::new(),
        name => format!("{name}{SUFFIX}"),
    }
}

/// The owner and the name of a realm, each safe as the name of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RealmPath {
    owner: String,
    realm: String,
}

impl RealmPath {
    /// Splits a raw URL path into its realm and the raw rest below it.
    pub fn split(path: &str) -> Result<(Self, &str), BadPath> {
        let mut parts = path.strip_prefix('/').unwrap_or(path).splitn(3, '/');
        let mut segment = || parts.next().ok_or(BadPath::new(path, "names no realm"));
        let realm = Self {
            owner: safe(decode(segment()?)?)?,
            realm: safe(decode(segment()?)?)?,
        };
        Ok((realm, parts.next().unwrap_or_default()))
    }

    /// The realm of these decoded names.
    pub fn named(owner: &str, realm: &str) -> Result<Self, BadPath> {
        Ok(Self {
            owner: safe(owner.to_owned())?,
            realm: safe(realm.to_owned())?,
        })
    }

    /// The realm that a canonical realm URL names, if it is one of this server's.
    pub fn of_url(url: &RealmUrl, base_url: &Url) -> Result<Self, BadPath> {
        let foreign = "is no realm of this server; write its origin, an owner and a name: 'http://…/owner/realm/'";
        let foreign = || BadPath::new(url.as_str(), foreign);
        let path = path_at_origin(url.as_str(), base_url).ok_or_else(foreign)?;
        match Self::split(path) {
            Ok((realm, "")) => Ok(realm),
            Ok(_) => Err(foreign()),
            Err(problem) => Err(problem),
        }
    }

    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The directory of its cards, below the data directory.
    pub fn directory(&self, root: &Path) -> PathBuf {
        root.join(&self.owner).join(&self.realm)
    }

    /// Its canonical URL, which ends in '/'.
    pub fn url(&self, base_url: &Url) -> String {
        let mut url = url_of([&self.owner, &self.realm], base_url);
        url.push('/');
        url
    }

    /// The card at a raw path below this realm; `x` and `x.json` are one card.
    pub fn card(&self, path: &str) -> Result<CardPath, BadPath> {
        let mut segments = path.split('/').map(decode).collect::<Result<Vec<_>, _>>()?;
        if let Some(name) = segments.last_mut()
            && let Some(stem) = name.strip_suffix(SUFFIX)
        {
            *name = stem.to_owned();
        }
        // A directory `x.json` would stand where the card `x` has its file, and a card `x.json` has the URL of `x`.
        if segments.iter().any(|segment| segment.ends_with(SUFFIX)) {
            let problem = "has '.json' where only the end of a card's path may; leave it out";
            return Err(BadPath::new(path, problem));
        }
        if segments == [ATOMIC] {
            let problem = "is where operations are posted, not a card; choose another name";
            return Err(BadPath::new(path, problem));
        }
        Ok(CardPath {
            realm: self.clone(),
            segments: segments.into_iter().map(safe).collect::<Result<_, _>>()?,
        })
    }

    /// The card that an `href` names: a path relative to this realm, or a full URL below this realm's own.
    pub fn card_by_href(&self, href: &str, base_url: &Url) -> Result<CardPath, BadPath> {
        let leaves = "leaves the realm; write a path relative to it, such as 'x.json'";
        if href.starts_with('/') {
            return Err(BadPath::new(href, leaves));
        }
        if href.contains(['?', '#', '\\']) || href.chars().any(char::is_control) {
            let problem =
                "has a query, a fragment, a backslash or a control character; leave it out";
            return Err(BadPath::new(href, problem));
        }
        // RFC 3986, 4.2: a colon in the first segment makes it a URL with a scheme.
        let scheme = href.split('/').next().is_some_and(|it| it.contains(':'));
        if !scheme {
            return self.card(href);
        }
        let path = path_at_origin(href, base_url).ok_or(BadPath::new(href, leaves))?;
        let (realm, rest) = Self::split(path)?;
        if realm != *self {
            return Err(BadPath::new(href, leaves));
        }
        self.card(rest)
    }
}

/// The raw path of a URL, if it has this origin. [`Url`] itself would resolve the dot segments that must be refused.
fn path_at_origin<'a>(url: &'a str, origin: &Url) -> Option<&'a str> {
    let authority = url.find("://")? + "://".len();
    let path = authority + url[authority..].find('/')?;
    let found = Url::parse(&url[..path]).ok()?;
    let anonymous = found.username().is_empty() && found.password().is_none();
    (anonymous && found.origin() == origin.origin()).then_some(&url[path..])
}

/// The path of a card in its realm: one or more segments, each safe as a file name, without `.json`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CardPath {
    realm: RealmPath,
    segments: Vec<String>,
}

impl CardPath {
    /// The card's file below the data directory.
    pub fn file(&self, root: &Path) -> PathBuf {
        let mut file = self.realm.directory(root);
        file.extend(&self.segments);
        // Not `with_extension`: it would replace the `.0` of a card `v1.0`.
        file.as_mut_os_string().push(SUFFIX);
        file
    }

    /// The card's URL: its `id` in responses.
    pub fn url(&self, base_url: &Url) -> String {
        let realm = [&self.realm.owner, &self.realm.realm];
        url_of(realm.into_iter().chain(&self.segments), base_url)
    }

    pub fn realm(&self) -> &RealmPath {
        &self.realm
    }
}

fn url_of<'a>(segments: impl IntoIterator<Item = &'a String>, base_url: &Url) -> String {
    let mut url = base_url.as_str().trim_end_matches('/').to_owned();
    for segment in segments {
        url.push('/');
        url.extend(utf8_percent_encode(segment, ENCODED));
    }
    url
}

/// For messages and logs: what could act on a terminal is escaped.
impl fmt::Display for RealmPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, realm } = self;
        write!(f, "{}/{}", owner.escape_debug(), realm.escape_debug())
    }
}

/// As of [`RealmPath`].
impl fmt::Display for CardPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.segments.join("/").escape_debug())
    }
}

fn decode(raw: &str) -> Result<String, BadPath> {
    let escaped = |after: &str| {
        let digits = after.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !raw.split('%').skip(1).all(escaped) {
        let problem = "has a '%' without two hexadecimal digits; write '%25' for the sign itself";
        return Err(BadPath::new(raw, problem));
    }
    percent_decode_str(raw)
        .decode_utf8()
        .map(String::from)
        .map_err(|_| BadPath::new(raw, "is not UTF-8; encode it as UTF-8"))
}

fn safe(segment: String) -> Result<String, BadPath> {
    let problem = if segment.is_empty() {
        "is an empty name; put one '/' between two names, and none at the end"
    } else if segment.starts_with('.') {
        "starts with '.', as hidden files and other directories do; choose another name"
    } else if segment.contains(['/', '\\']) {
        "has a slash or backslash within a name; choose another name"
    } else if segment.chars().any(char::is_control) {
        "has a control character; choose another name"
    } else if segment.len() > SEGMENT_LIMIT {
        "is longer than 200 bytes; choose a shorter name"
    } else {
        return Ok(segment);
    };
    Err(BadPath::new(&segment, problem))
}

/// A path that names no card, and why.
#[derive(Debug)]
pub struct BadPath {
    value: String,
    problem: &'static str,
}

impl BadPath {
    fn new(value: &str, problem: &'static str) -> Self {
        let value = value.escape_debug().to_string();
        Self { value, problem }
    }
}

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' {}.", self.value, self.problem)
    }
}

#[cfg(test)]
mod tests;
