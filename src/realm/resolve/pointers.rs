use std::fmt;
use std::str;
use std::sync::Arc;

use http::HeaderMap;

use super::json::{Answer, Step, seek};
use crate::config::ConfigError;
use crate::realm::body::encoding;
use crate::realm::error::{RealmError, shown};
use crate::realm::url::RealmUrl;

/// No realm URL is longer. What is longer is not shown either.
const LONGEST_URL: usize = 2048;

/// Finds a request's realms in its JSON body, by JSON pointers (RFC 6901).
///
/// For routes that name realms in their body, such as publishing one to another. Each pointer must
/// lead to a string that is a realm URL; all of these realms are locked, in one claim. A body with
/// the same name twice in an object on the way is refused: the handler may read the other one. So
/// is a body with a `Content-Encoding`.
///
/// It needs a layer that [reads bodies](crate::RealmBodyLockLayer). Cheap to clone.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::{RealmBodyResolver, RealmPaths, RealmPointers};
///
/// let published = RealmPointers::new(["/sourceRealmURL", "/publishedRealmURL"])?;
/// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
/// let realms = RealmBodyResolver::from(realms)
///     .route(Method::POST, "/_publish-realm", published)?;
/// # let _ = realms;
/// # Ok::<(), tower_realm_lock::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct RealmPointers(Arc<[Pointer]>);

struct Pointer {
    source: Box<str>,
    steps: Vec<Step>,
}

impl RealmPointers {
    /// The realms at these JSON pointers, such as `/data/attributes/realmURL`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::InvalidPointer`] for what is no JSON pointer, and where there is none.
    pub fn new<P: AsRef<str>>(pointers: impl IntoIterator<Item = P>) -> Result<Self, ConfigError> {
        let pointers: Vec<Pointer> = pointers
            .into_iter()
            .map(|pointer| Pointer::parse(pointer.as_ref()))
            .collect::<Result<_, _>>()?;
        if pointers.is_empty() {
            return Err(ConfigError::InvalidPointer {
                pointer: String::new(),
                problem: "name at least one, such as `/realmURL`".into(),
            });
        }
        Ok(Self(pointers.into()))
    }

    pub(in crate::realm) fn resolve(
        &self,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Vec<RealmUrl>, RealmError> {
        if let Some(encoding) = encoding(headers) {
            let problem = format!(
                "it has the Content-Encoding `{}`; send it without one",
                shown(&encoding)
            );
            return Err(RealmError::InvalidBody { problem });
        }
        let text = str::from_utf8(body).map_err(|_| RealmError::InvalidBody {
            problem: "it is not UTF-8".into(),
        })?;
        self.0.iter().map(|pointer| pointer.realm(text)).collect()
    }
}

impl Pointer {
    fn parse(pointer: &str) -> Result<Self, ConfigError> {
        let invalid = |problem: &str| ConfigError::InvalidPointer {
            pointer: shown(pointer),
            problem: problem.into(),
        };
        let mut tokens = pointer.split('/');
        if tokens.next() != Some("") {
            return Err(invalid("it must start with `/`, as in `/realmURL`"));
        }
        let tokens = tokens.map(|token| {
            let plain = token.replace("~0", "").replace("~1", "");
            if plain.contains('~') {
                return Err(invalid("write `~0` for `~` and `~1` for `/`"));
            }
            // In this order: `~01` is `~1`, not a slash.
            Ok(Step::Name(
                token.replace("~1", "/").replace("~0", "~").into(),
            ))
        });
        Ok(Self {
            source: pointer.into(),
            steps: tokens.collect::<Result<_, _>>()?,
        })
    }

    fn realm(&self, text: &str) -> Result<RealmUrl, RealmError> {
        let found = seek(text, &self.steps).map_err(|error| RealmError::InvalidBody {
            problem: format!("it is not JSON: {error}"),
        })?;
        let unresolved = |problem: String| RealmError::BodyPointer {
            pointer: shown(&self.source),
            problem,
        };
        match found.into_iter().next() {
            Some(Answer::Text(url)) if url.len() > LONGEST_URL => Err(unresolved(format!(
                "its {} bytes are too many for a realm URL",
                url.len()
            ))),
            Some(Answer::Text(url)) => {
                RealmUrl::parse(&url).map_err(|error| unresolved(error.to_string()))
            }
            Some(Answer::NotText) => Err(unresolved("it must be a string: a realm URL".into())),
            Some(Answer::Twice) => Err(unresolved(
                "a name on the way stands twice in its object; which one counts is not certain"
                    .into(),
            )),
            Some(Answer::Missing) | None => Err(unresolved("it is missing".into())),
        }
    }
}

impl fmt::Debug for RealmPointers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pointers = self.0.iter().map(|pointer| &pointer.source);
        f.write_str("RealmPointers")?;
        f.debug_list().entries(pointers).finish()
    }
}
