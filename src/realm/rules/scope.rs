use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use crate::realm::body::{ReadsBodies, encoding};
use crate::realm::claim::Claim;
use crate::realm::error::RealmError;
use crate::realm::path::canonical;
use crate::realm::request_head::RequestHead;
use crate::realm::resolve::found::{Depth, Found};
use crate::realm::resolve::json::{Answer, Step, seek};
use crate::realm::url::RealmUrl;

/// How much of its realm a request locks: all of it, some of its resources, or a share of it.
///
/// A request with resources takes its realm shared and each resource exclusively, so that it
/// excludes those that write the same resource and those that take the realm whole. A resource is
/// named by its path below the realm, in one spelling: `/luke/a/%78` and `href: "x"` are one.
/// Wherever it is not certain which resources a request writes, it takes the realm whole.
///
/// Letter case counts, Unicode is not normalized, and `x` is not `x.json`;
/// [`named_by`](Self::named_by) is for handlers to which two of these are one.
#[derive(Clone)]
pub struct Scope(pub(super) RouteScope<ReadsBodies>);

/// A [`Scope`]. With `B = Infallible` it is one that needs no body. Cheap to clone.
#[derive(Clone)]
pub(in crate::realm) struct RouteScope<B> {
    kind: Kind<B>,
    name: Option<Arc<NameFn>>,
}

/// A name stays in memory for as long as its request waits.
const LONGEST_HREF: usize = 2_048;

type NameFn = dyn Fn(&str) -> String + Send + Sync;
/// The paths of resources; `None` for the realm as a whole.
type Paths = Result<Option<Vec<String>>, RealmError>;
type Naming = Pin<Box<dyn Future<Output = Paths> + Send>>;
type PathsFn = dyn Fn(RequestHead, RealmUrl) -> Naming + Send + Sync;
type BodyPathsFn = dyn Fn(RequestHead, RealmUrl, Bytes) -> Naming + Send + Sync;

#[derive(Clone)]
enum Kind<B> {
    Realm,
    Shared,
    Resource,
    Closure(Arc<PathsFn>),
    AtomicHrefs(B),
    BodyClosure(Arc<BodyPathsFn>, B),
}

impl Scope {
    const fn of(kind: Kind<ReadsBodies>) -> Self {
        Self(RouteScope { kind, name: None })
    }

    /// The realm as a whole.
    #[must_use]
    pub const fn realm() -> Self {
        Self::of(Kind::Realm)
    }

    /// The realm, shared: such requests run side by side, and exclude those that take the realm as
    /// a whole.
    ///
    /// For a handler that must not run beside ordinary writers, such as a purge or a backup. Give
    /// this scope to the ordinary writers, and leave the other route the realm as a whole:
    ///
    /// ```
    /// use http::Method;
    /// use tower_realm_lock::{LockRules, Scope};
    ///
    /// let rules = LockRules::new()
    ///     .scope(Method::POST, "/{owner}/{realm}/_purge", Scope::realm())?
    ///     .scope(Method::POST, "/{owner}/{realm}/{*rest}", Scope::shared())?;
    /// # let _ = rules;
    /// # Ok::<(), tower_realm_lock::ConfigError>(())
    /// ```
    ///
    /// **The layer does not protect such writers from each other.** Their store must: with a
    /// transaction, a conditional write, or a lock of its own. A request for several realms shares
    /// all of them. A MOVE or COPY shares them only if the path of its `Destination` has this scope
    /// as well.
    #[must_use]
    pub const fn shared() -> Self {
        Self::of(Kind::Shared)
    }

    /// The resource that the request's path names: what follows the realm in it. A MOVE or COPY
    /// locks the resource that its `Destination` names too, if that path has this scope as well.
    ///
    /// A path that ends with the realm names no resource: it takes the realm shared, so that a
    /// handler can create a resource with a name that it makes up. Leave such a path out of the
    /// pattern, as `/{owner}/{realm}/{*card}` does, where its handler changes more than that.
    ///
    /// A resource does not include those below it. Where a handler deletes, moves or copies a whole
    /// collection, give its route the realm as a whole.
    #[must_use]
    pub const fn resource() -> Self {
        Self::of(Kind::Resource)
    }

    /// The resources that the operations of a JSON:API atomic document name:
    /// `{"atomic:operations":[{"op":"add","href":"cards/1"}]}`.
    ///
    /// An `href` is a path relative to the realm, or a URL in it. The realm is taken whole if an
    /// operation has no `href`, has a `ref`, or leaves the realm, and where the body is no such
    /// document or has a `Content-Encoding`: the handler may refuse it.
    ///
    /// It needs a layer that [reads bodies](crate::RealmBodyLockLayer). A document without
    /// operations names no resource and takes the realm shared.
    #[must_use]
    pub const fn atomic_hrefs() -> Self {
        Self::of(Kind::AtomicHrefs(ReadsBodies))
    }

    /// The resources that a closure names, by paths relative to the realm or by URLs; `None` for
    /// the realm as a whole.
    ///
    /// They are read as an `href` is in [`atomic_hrefs`](Self::atomic_hrefs): in any spelling, and
    /// the realm is taken whole if one leaves it. The resource in the `Destination` of a MOVE or
    /// COPY is added to them.
    ///
    /// The closure runs before anything is locked, and has no time limit: give it your own. All
    /// replicas must name the same resources. It runs only for a claim on one realm: a request that
    /// takes several, or a key of another space, is not narrowed.
    ///
    /// Its error rejects the request: with 503 if it is [`RealmError::unavailable`], else with 400.
    ///
    /// ```
    /// use http::Method;
    /// use tower_realm_lock::{ConfigError, LockRules, RealmError, Scope};
    ///
    /// // `If-Table: orders, customers` names the tables that an import writes.
    /// let tables = Scope::from_fn(|head, _realm| async move {
    ///     let Some(tables) = head.headers().get("if-table") else {
    ///         return Ok(None);
    ///     };
    ///     let tables = tables.to_str().map_err(RealmError::unresolved)?;
    ///     let tables = tables.split(',').map(|table| table.trim().to_owned());
    ///     Ok(Some(tables.collect()))
    /// });
    /// let rules = LockRules::new().scope(Method::POST, "/{owner}/{realm}/_import", tables)?;
    /// # let _ = rules;
    /// # Ok::<(), ConfigError>(())
    /// ```
    #[must_use]
    pub fn from_fn<F, R>(paths: F) -> Self
    where
        F: Fn(RequestHead, RealmUrl) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Option<Vec<String>>, RealmError>> + Send + 'static,
    {
        let paths = move |head, realm| -> Naming { Box::pin(paths(head, realm)) };
        Self::of(Kind::Closure(Arc::new(paths)))
    }

    /// The same for a closure that gets the request's body too, still in its `Content-Encoding` if
    /// it has one.
    ///
    /// It needs a layer that [reads bodies](crate::RealmBodyLockLayer).
    ///
    /// ```
    /// use http::Method;
    /// use tower_realm_lock::{ConfigError, LockRules, RealmError, Scope};
    ///
    /// // The body is a list of cards, one in each line.
    /// let cards = Scope::from_body_fn(|_head, _realm, body| async move {
    ///     let cards = std::str::from_utf8(&body).map_err(RealmError::unresolved)?;
    ///     Ok(Some(cards.lines().map(str::to_owned).collect()))
    /// });
    /// let rules = LockRules::new().scope(Method::POST, "/{owner}/{realm}/_delete", cards)?;
    /// # let _ = rules;
    /// # Ok::<(), ConfigError>(())
    /// ```
    #[must_use]
    pub fn from_body_fn<F, R>(paths: F) -> Self
    where
        F: Fn(RequestHead, RealmUrl, Bytes) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Option<Vec<String>>, RealmError>> + Send + 'static,
    {
        let paths = move |head, realm, body| -> Naming { Box::pin(paths(head, realm, body)) };
        Self::of(Kind::BodyClosure(Arc::new(paths), ReadsBodies))
    }

    /// Gives each resource another name, for handlers that know one resource by several paths.
    /// Default: a path is its own name.
    ///
    /// `name` gets the path below the realm, percent-encoded in its one spelling and without a
    /// slash at its beginning or end. An empty name takes the realm whole. Give the same closure to
    /// every scope of a realm. Where cardstack/boxel's servers write the same realm, the name is
    /// that of the file: `Widget/one.json`.
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
        self.0.name = Some(Arc::new(name));
        self
    }
}

impl RouteScope<ReadsBodies> {
    /// Gives each resource another name, unless it has a closure for that.
    #[cfg(feature = "serde")]
    pub(super) fn name_unnamed<F>(&mut self, name: F)
    where
        F: Fn(&str) -> String + Send + Sync + 'static,
    {
        self.name.get_or_insert_with(|| Arc::new(name));
    }
}

impl<B> RouteScope<B> {
    /// The same with another proof that bodies are read.
    ///
    /// # Errors
    ///
    /// That of `proof`, which is asked for one only if the scope needs the body.
    pub(super) fn convert<C, E>(
        self,
        proof: impl FnOnce(B) -> Result<C, E>,
    ) -> Result<RouteScope<C>, E> {
        let kind = match self.kind {
            Kind::Realm => Kind::Realm,
            Kind::Shared => Kind::Shared,
            Kind::Resource => Kind::Resource,
            Kind::Closure(paths) => Kind::Closure(paths),
            Kind::AtomicHrefs(reads) => Kind::AtomicHrefs(proof(reads)?),
            Kind::BodyClosure(paths, reads) => Kind::BodyClosure(paths, proof(reads)?),
        };
        let name = self.name;
        Ok(RouteScope { kind, name })
    }
}

impl<B: Copy> RouteScope<B> {
    pub(in crate::realm) fn is_realm(&self) -> bool {
        matches!(self.kind, Kind::Realm)
    }

    pub(in crate::realm) fn is_shared(&self) -> bool {
        matches!(self.kind, Kind::Shared)
    }

    /// Whether a MOVE or COPY with this scope locks its destination as `there` asks, the scope of a
    /// request for that path. No if `there` needs a closure or a body, unless it is of the same
    /// route.
    pub(in crate::realm) fn covers(&self, there: &Self) -> bool {
        match (&self.kind, &there.kind) {
            (Kind::Shared, Kind::Shared) => true,
            (Kind::Realm | Kind::Shared, _) => false,
            // The destination is added to the resources of the path.
            (_, Kind::Resource) => true,
            _ => std::ptr::eq(self, there),
        }
    }

    /// Whether it reads the request's path.
    pub(in crate::realm) fn is_of_path(&self) -> bool {
        matches!(self.kind, Kind::Resource)
    }

    /// The proof that bodies are read, if this scope needs one; `None` if it needs none, or if the
    /// body is encoded, so that nobody could read it.
    pub(in crate::realm) fn needs_body(&self, headers: &HeaderMap) -> Option<B> {
        match self.kind {
            Kind::BodyClosure(_, reads) => Some(reads),
            Kind::AtomicHrefs(reads) if encoding(headers).is_none() => Some(reads),
            _ => None,
        }
    }

    /// What a request claims of its realm, before it is taken apart, with the decoded segments of
    /// its path; `None` if that takes more than these.
    pub(in crate::realm) fn claim_of_path<'a>(
        &self,
        segments: impl Iterator<Item = &'a str>,
        found: &Found,
        most: usize,
    ) -> Option<Claim> {
        match self.kind {
            Kind::Realm => Some(Claim::realm(&found.realm)),
            Kind::Shared => Some(Claim::resources::<&str>(&found.realm, [])),
            Kind::Resource => {
                let name = rest_of(segments, found);
                Some(self.narrowed(std::iter::once(name), found, most))
            }
            _ => None,
        }
    }

    /// What a request claims of its realm, with the decoded segments of its path if the scope
    /// [needs them](Self::is_of_path), and with its body if it [needs that](Self::needs_body).
    ///
    /// # Errors
    ///
    /// Those of its closure. None of them says that the request has no realm: it has one.
    pub(in crate::realm) async fn claim(
        &self,
        head: &RequestHead,
        segments: &[String],
        body: &Bytes,
        found: &Found,
        most: usize,
    ) -> Result<Claim, RealmError> {
        let realm = &found.realm;
        let segments = segments.iter().map(String::as_str);
        if let Some(claim) = self.claim_of_path(segments, found, most) {
            return Ok(claim);
        }
        let named = match &self.kind {
            Kind::AtomicHrefs(_) if encoding(head.headers()).is_none() => Ok(hrefs_of(body)),
            Kind::Closure(paths) => paths(head.clone(), realm.clone()).await,
            Kind::BodyClosure(paths, _) => paths(head.clone(), realm.clone(), body.clone()).await,
            _ => Ok(None),
        };
        let Some(hrefs) = named.map_err(RealmError::of_found_realm)? else {
            return Ok(Claim::realm(realm));
        };
        // An empty one is the realm itself.
        let resource = |href: String| resolve(&href, realm).filter(|path| !path.is_empty());
        Ok(self.narrowed(hrefs.into_iter().map(resource), found, most))
    }

    /// The claim on these resources, and that of the request's `Destination`; on the realm as a
    /// whole from the first that is not certain, or above the ceiling, where reading ends.
    fn narrowed(
        &self,
        paths: impl Iterator<Item = Option<String>>,
        found: &Found,
        most: usize,
    ) -> Claim {
        let mut names = BTreeSet::new();
        let destination = found.destination.clone().map(Some);
        for path in paths.chain(destination) {
            let Some(path) = path else {
                return Claim::realm(&found.realm);
            };
            if path.is_empty() {
                continue;
            }
            let name = self.name.as_ref().map_or(path.clone(), |name| name(&path));
            if name.is_empty() {
                return Claim::realm(&found.realm);
            }
            names.insert(name);
            if names.len() > most {
                return Claim::realm(&found.realm);
            }
        }
        Claim::resources(&found.realm, names)
    }
}

/// What follows the realm in a path, in its one spelling; none if that is not certain.
pub(in crate::realm) fn rest_of<'a>(
    segments: impl Iterator<Item = &'a str>,
    found: &Found,
) -> Option<String> {
    let mut rest = match found.depth {
        Depth::Segments(depth) => canonical(segments.skip(depth))?,
        // The realm was not found in the path: it must be there all the same.
        Depth::OfUrl => {
            let realm = found.realm.path().strip_prefix('/')?;
            canonical(segments)?.strip_prefix(realm)?.to_owned()
        }
        Depth::Unknown => return None,
    };
    rest.pop();
    Some(rest)
}

/// The path below the realm that an `href` names, in its one spelling; none if it is not below it
/// or not certain.
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
    // One that is no canonical path of segments is refused there: dot segments, a query, a
    // fragment.
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
        Self::realm()
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<B> fmt::Debug for RouteScope<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Realm => "realm",
            Kind::Shared => "shared",
            Kind::Resource => "resource",
            Kind::Closure(_) => "from_fn",
            Kind::AtomicHrefs(_) => "atomic_hrefs",
            Kind::BodyClosure(..) => "from_body_fn",
        };
        let renamed = self.name.is_some();
        f.debug_struct("Scope")
            .field("kind", &kind)
            .field("named_by", &renamed)
            .finish()
    }
}
