use std::sync::Arc;

use super::found::Found;
use crate::realm::error::{RealmError, shown};
use crate::realm::head::Head;
use crate::realm::origin::request::RequestOrigin;
use crate::realm::path::{ParsedPath, PathProblem, refuse_separators};
use crate::realm::template::{PathTemplate, Segment};
use crate::realm::url::RealmUrl;

/// Finds a request's realm in the beginning of its path, by a template.
///
/// The origin comes from the base URL, so every replica computes the same realm URL whatever `Host`
/// a client sends, unless [`origin_from_request`](Self::origin_from_request) says otherwise.
/// Literal segments of the template are a part of the realm URL. Cheap to clone.
///
/// ```
/// use tower_realm_lock::RealmPaths;
///
/// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
/// let realm = realms.resolve("/luke/my-realm/cards/1")?;
/// assert_eq!(realm.as_str(), "https://realms.example.com/luke/my-realm/");
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RealmPaths(Arc<Paths>);

#[derive(Debug)]
struct Paths {
    base: RealmUrl,
    template: PathTemplate,
    /// Where the origin is not the base URL's.
    origin: Option<RequestOrigin>,
}

impl RealmPaths {
    /// Realms at `base_url` followed by the segments of `template`, such as `/{owner}/{realm}`.
    ///
    /// `base_url` is the public URL of the service: its origin, with a path if it is published
    /// below one. In the template `{name}` stands for one path segment.
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidUrl`] and [`RealmError::InvalidTemplate`], which name the value and
    /// what would be right.
    pub fn new(base_url: &str, template: &str) -> Result<Self, RealmError> {
        let base = RealmUrl::parse(base_url)?;
        let template = PathTemplate::parse(template)?;
        if let Some(Segment::Rest(name)) = template.segments().last() {
            return Err(RealmError::InvalidTemplate {
                template: shown(template.source()),
                problem: format!(
                    "`{{*{name}}}` would make every path a realm of its own; name the realm's segments only",
                    name = shown(name)
                ),
            });
        }
        Ok(Self(Arc::new(Paths {
            base,
            template,
            origin: None,
        })))
    }

    /// Takes the origin of realm URLs from each request instead of the base URL. What that means,
    /// and what it asks of a server, says [`RequestOrigin`].
    #[must_use]
    pub fn origin_from_request(self, origin: RequestOrigin) -> Self {
        Self(Arc::new(Paths {
            base: self.0.base.clone(),
            template: self.0.template.clone(),
            origin: Some(origin),
        }))
    }

    /// The realm that a request path belongs to, at the base URL. `path` is the raw path of a
    /// request, still percent-encoded.
    ///
    /// # Errors
    ///
    /// [`RealmError::NoRealm`] if the path does not begin as the template does,
    /// [`RealmError::AmbiguousPath`] if it could be read as another path: with dot segments, empty
    /// segments, control characters, invalid UTF-8 or malformed escapes anywhere, or an encoded
    /// slash or a backslash in a segment that names the realm.
    pub fn resolve(&self, path: &str) -> Result<RealmUrl, RealmError> {
        let path = ParsedPath::new(path);
        self.find_below(&self.0.base, &path)
            .map(|found| found.realm)
    }

    /// The realm that a path names for a request: its own path, or that of its `Destination`.
    pub(in crate::realm) fn find(
        &self,
        head: &Head<'_>,
        path: &ParsedPath<'_>,
    ) -> Result<Found, RealmError> {
        self.find_below(&self.base(head)?, path)
    }

    /// The base URL of a request.
    pub(in crate::realm) fn base(&self, head: &Head<'_>) -> Result<RealmUrl, RealmError> {
        let Paths { base, origin, .. } = &*self.0;
        match origin {
            None => Ok(base.clone()),
            Some(origin) => origin.base_of(head, base),
        }
    }

    fn find_below(&self, base: &RealmUrl, path: &ParsedPath<'_>) -> Result<Found, RealmError> {
        let ambiguous = |problem: PathProblem| RealmError::AmbiguousPath {
            path: shown(path.raw()),
            problem,
        };
        let template = &self.0.template;
        let mut segments = path.segments().map_err(ambiguous)?;
        let mut realm = Vec::with_capacity(template.segments().len());
        for expected in template.segments() {
            let segment = match expected {
                Segment::TrailingSlash => break,
                _ => segments.next(),
            };
            match (expected, segment) {
                (Segment::Literal(literal), Some(segment)) if **literal == *segment => {}
                (Segment::Parameter(_), Some(_)) => {}
                _ => {
                    return Err(RealmError::NoRealm {
                        path: shown(path.raw()),
                        template: shown(template.source()),
                    });
                }
            }
            realm.extend(segment);
        }
        for segment in &realm {
            refuse_separators(segment).map_err(ambiguous)?;
        }
        let depth = realm.len();
        Ok(Found::at(base.below(realm), depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realms() -> RealmPaths {
        RealmPaths::new("https://r.example", "/{owner}/{realm}").unwrap()
    }

    #[test]
    fn every_path_of_a_realm_gives_its_url() {
        for path in [
            "/luke/my-realm",
            "/luke/my-realm/",
            "/luke/my-realm/_atomic",
            "/%6cuke/my%2Drealm/a/b.json",
            "/luke/my-realm/a%2Fb",
        ] {
            let realm = realms().resolve(path).unwrap();
            assert_eq!(realm.as_str(), "https://r.example/luke/my-realm/", "{path}");
        }
    }

    #[test]
    fn a_base_path_and_literal_segments_belong_to_the_realm() {
        let realms = RealmPaths::new("https://r.example/api/", "/realms/{realm}/").unwrap();
        let realm = realms.resolve("/realms/a/card").unwrap();
        assert_eq!(realm.as_str(), "https://r.example/api/realms/a/");
        assert!(matches!(
            realms.resolve("/other/a/card"),
            Err(RealmError::NoRealm { .. })
        ));
    }

    #[test]
    fn a_short_path_names_no_realm() {
        for path in ["/", "/luke", "/luke/"] {
            let error = realms().resolve(path).unwrap_err();
            assert!(
                matches!(error, RealmError::NoRealm { .. }),
                "{path}: {error}"
            );
            assert!(error.to_string().contains("/{owner}/{realm}"), "{error}");
        }
    }

    #[test]
    fn a_separator_in_a_realm_segment_is_refused() {
        for path in ["/luke/a%2Fb/c", "/luke/a%5Cb/c", "/luke\\a/b/c"] {
            let error = realms().resolve(path).unwrap_err();
            assert!(
                matches!(
                    error,
                    RealmError::AmbiguousPath {
                        problem: PathProblem::Separator,
                        ..
                    }
                ),
                "{path}: {error}"
            );
        }
    }

    #[test]
    fn a_template_that_swallows_the_path_is_refused() {
        let error = RealmPaths::new("https://r.example", "/{owner}/{*rest}").unwrap_err();
        assert!(error.to_string().contains("{*rest}"), "{error}");
    }
}
