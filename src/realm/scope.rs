use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;

use super::RealmUrl;
use super::json::{Answer, Step, seek};
use super::path::{canonical_rest, decode_path};
use super::pointers::encoding;
use super::resolver::Found;

/// How much of its realm a request locks: all of it, or some of its resources.
///
/// A request with resources takes its realm shared and each resource exclusively, so that it excludes those that write the same
/// resource and those that take the realm whole. A resource is named by its path below the realm, in one spelling: `/luke/a/%78`
/// and `href: "x"` are one. Wherever it is not certain which resources a request writes, it takes the realm whole.
///
/// Letter case counts, Unicode is not normalized, and `x` is not `x.json`; [`named_by`](Self::named_by) is for handlers to which
/// two of these are one.
#[derive(Clone)]
pub struct Scope {
    kind: Kind,
    name: Option<Arc<NameFn>>,
}

/// A name stays in memory for as long as its request waits.
const LONGEST_HREF: usize = 2_048;

type NameFn = dyn Fn(&str) -> String + Send + Sync;
type PathsFn = dyn Fn(&Parts, &RealmUrl) -> Option<Vec<String>> + Send + Sync;
type BodyPathsFn = dyn Fn(&Parts, &RealmUrl, &Bytes) -> Option<Vec<String>> + Send + Sync;

#[derive(Clone)]
enum Kind {
    Realm,
    Resource,
    AtomicHrefs,
    Closure(Arc<PathsFn>),
    BodyClosure(Arc<BodyPathsFn>),
}

/// What a request locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Its realms as a whole.
    Whole,
    /// These resources of its only realm.
    Resources(BTreeSet<String>),
}

impl Scope {
    pub(super) const WHOLE: Self = Self {
        kind: Kind::Realm,
        name: None,
    };

    /// The realm as a whole.
    #[must_use]
    pub const fn realm() -> Self {
        Self::WHOLE
    }

    /// The resource that the request's path names: what follows the realm in it.
    ///
    /// A path that ends with the realm names no resource: it takes the realm shared, so that a handler can create a resource
    /// with a name that it makes up. Leave such a path out of the pattern, as `/{owner}/{realm}/{*card}` does, where its handler
    /// changes more than that.
    #[must_use]
    pub const fn resource() -> Self {
        Self::of(Kind::Resource)
    }

    /// The resources that the operations of a JSON:API atomic document name:
    /// `{"atomic:operations":[{"op":"add","href":"cards/1"}]}`.
    ///
    /// An `href` is a path relative to the realm, or a URL in it. The realm is taken whole if an operation has no `href`, has a
    /// `ref`, or leaves the realm, and where the body is no such document or has a `Content-Encoding`: the handler may refuse it.
    ///
    /// The layer must be told how to [read bodies](crate::RealmWriteLockLayer::read_bodies). A document without operations
    /// names no resource and takes the realm shared.
    #[must_use]
    pub const fn atomic_hrefs() -> Self {
        Self::of(Kind::AtomicHrefs)
    }

    /// The resources that a closure names, by paths relative to the realm or by URLs; none for the realm as a whole.
    ///
    /// They are read as an `href` is in [`atomic_hrefs`](Self::atomic_hrefs): in any spelling, and the realm is taken whole if
    /// one leaves it.
    #[must_use]
    pub fn from_fn<F>(paths: F) -> Self
    where
        F: Fn(&Parts, &RealmUrl) -> Option<Vec<String>> + Send + Sync + 'static,
    {
        Self::of(Kind::Closure(Arc::new(paths)))
    }

    /// The same of a closure that reads the request's body too.
    ///
    /// The layer must be told how to [read bodies](crate::RealmWriteLockLayer::read_bodies).
    #[must_use]
    pub fn from_body_fn<F>(paths: F) -> Self
    where
        F: Fn(&Parts, &RealmUrl, &Bytes) -> Option<Vec<String>> + Send + Sync + 'static,
    {
        Self::of(Kind::BodyClosure(Arc::new(paths)))
    }

    /// Gives each resource another name, for handlers that know one resource by several paths. Default: a path is its own name.
    ///
    /// `name` gets the path below the realm, percent-encoded in its one spelling and without a slash at its beginning or end. An
    /// empty name takes the realm whole. Give the same closure to every scope of a realm.
    ///
    /// ```
    /// use tower_realm_lock::Scope;
    ///
    /// let card = |path: &str| path.strip_suffix(".json").unwrap_or(path).to_owned();
    /// let scopes = [Scope::resource().named_by(card), Scope::atomic_hrefs().named_by(card)];
    /// # let _ = scopes;
    /// ```
    #[must_use]
    pub fn named_by<F>(mut self, name: F) -> Self
    where
        F: Fn(&str) -> String + Send + Sync + 'static,
    {
        self.name = Some(Arc::new(name));
        self
    }

    const fn of(kind: Kind) -> Self {
        Self { kind, name: None }
    }

    #[cfg(feature = "serde")]
    pub(super) fn has_name(&self) -> bool {
        self.name.is_some()
    }

    pub(crate) fn is_realm(&self) -> bool {
        matches!(self.kind, Kind::Realm)
    }

    /// Whether it reads the body, which nobody can read if it is encoded.
    pub(crate) fn needs_body(&self, headers: &HeaderMap) -> bool {
        match self.kind {
            Kind::BodyClosure(_) => true,
            Kind::AtomicHrefs => encoding(headers).is_none(),
            _ => false,
        }
    }

    /// Whether it needs no more than a request's path.
    pub(crate) fn is_of_path(&self) -> bool {
        matches!(self.kind, Kind::Realm | Kind::Resource)
    }

    /// What it says of a raw path, if that is all it needs.
    pub(crate) fn extent_of_path(&self, path: &str, found: &Found, most: usize) -> Extent {
        let name = match self.kind {
            Kind::Resource => rest_of(path, found),
            _ => None,
        };
        self.extent(std::iter::once(name), most)
    }

    /// What it says of a whole request.
    pub(crate) fn extent_of(
        &self,
        parts: &Parts,
        path: &str,
        body: &Bytes,
        found: &Found,
        most: usize,
    ) -> Extent {
        let realm = &found.realm;
        let hrefs = match &self.kind {
            Kind::Realm | Kind::Resource => return self.extent_of_path(path, found, most),
            Kind::AtomicHrefs if encoding(&parts.headers).is_some() => None,
            Kind::AtomicHrefs => hrefs_of(body),
            Kind::Closure(paths) => paths(parts, realm),
            Kind::BodyClosure(paths) => paths(parts, realm, body),
        };
        let Some(hrefs) = hrefs else {
            return Extent::Whole;
        };
        // An empty one is the realm itself.
        let resource = |href: String| resolve(&href, realm).filter(|path| !path.is_empty());
        self.extent(hrefs.into_iter().map(resource), most)
    }

    /// `paths` are read no further than to the first that is not certain, or to the ceiling.
    fn extent(&self, paths: impl Iterator<Item = Option<String>>, most: usize) -> Extent {
        let mut names = BTreeSet::new();
        for path in paths {
            let Some(path) = path else {
                return Extent::Whole;
            };
            if path.is_empty() {
                continue;
            }
            let name = self.name.as_ref().map_or(path.clone(), |name| name(&path));
            if name.is_empty() {
                return Extent::Whole;
            }
            names.insert(name);
            if names.len() > most {
                return Extent::Whole;
            }
        }
        Extent::Resources(names)
    }
}

/// What follows the realm in a request's path, in its one spelling; none if that is not certain.
fn rest_of(path: &str, found: &Found) -> Option<String> {
    let segments = decode_path(path).ok()?;
    let depth = if let Some(depth) = found.depth {
        depth
    } else {
        // The realm was not found in the path: it must be there all the same.
        let realm = decode_path(found.realm.path()).ok()?;
        segments.starts_with(&realm).then_some(realm.len())?
    };
    canonical_rest(segments.get(depth..)?.iter().map(|segment| &**segment))
}

/// The path below the realm that an `href` names, in its one spelling; none if it is not below it or not certain.
fn resolve(href: &str, realm: &RealmUrl) -> Option<String> {
    if href.len() > LONGEST_HREF {
        return None;
    }
    let absolute = if href.starts_with('/') {
        let origin = realm.as_str().strip_suffix(realm.path())?;
        format!("{origin}{href}")
    } else if href
        .split('/')
        .next()
        .is_some_and(|first| first.contains(':'))
    {
        // RFC 3986, section 4.2: a colon in the first segment makes it a URL with a scheme.
        href.to_owned()
    } else {
        format!("{realm}{href}")
    };
    // One that is no canonical path of segments is refused there: dot segments, a query, a fragment.
    let url = RealmUrl::parse(&absolute).ok()?;
    let rest = url.as_str().strip_prefix(realm.as_str())?;
    Some(rest.trim_end_matches('/').to_owned())
}

fn hrefs_of(body: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(body).ok()?;
    let operations = |member: &str| {
        let steps = [
            Step::Name("atomic:operations".into()),
            Step::Each,
            Step::Name(member.into()),
        ];
        seek(text, &steps).ok()
    };
    if operations("ref")?.iter().any(|it| *it != Answer::Missing) {
        return None;
    }
    let href = |found| match found {
        Answer::Text(href) => Some(href),
        _ => None,
    };
    operations("href")?.into_iter().map(href).collect()
}

impl Default for Scope {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Realm => "realm",
            Kind::Resource => "resource",
            Kind::AtomicHrefs => "atomic_hrefs",
            Kind::Closure(_) => "from_fn",
            Kind::BodyClosure(_) => "from_body_fn",
        };
        let renamed = self.name.is_some();
        f.debug_struct("Scope")
            .field("kind", &kind)
            .field("named_by", &renamed)
            .finish()
    }
}
