//! [`LockRules`] in a configuration file.

use http::header::HeaderName;
use http::{Method, StatusCode};
use serde::de::{Deserialize, Deserializer, MapAccess};

use super::limits::RouteLimits;
use super::lock_rules::{LockRules, Ruled};
use super::methods::MethodSet;
use super::scope::{RouteScope, Scope};
use super::selector::{RuleKind, Selector};
use crate::config::ConfigError;
use crate::realm::body::ReadsBodies;
use crate::realm::template::PathTemplate;
use crate::table::value::{Texts, Value};
use crate::table::words::shown;
use crate::table::{self, Table};

const METHOD: &str = "a method, such as \"POST\",";
const METHODS: &str =
    "a method, such as \"POST\", several, such as [\"PUT\", \"PATCH\"], or \"unsafe\"";
const HEADER: &str = "a header's name, such as \"X-HTTP-Method-Override\",";
const DETAIL: &str = "a text for clients";
const PATTERN: &str = "a path, such as \"/{owner}/{realm}/_search\",";

type NewScope = fn() -> Scope;

/// What needs no closure.
const SCOPES: [(&str, NewScope); 4] = [
    ("realm", Scope::realm),
    ("shared", Scope::shared),
    ("resource", Scope::resource),
    ("atomic-hrefs", Scope::atomic_hrefs),
];

/// Rules as a configuration file has them, in any format that says what it holds. All keys may be left out.
///
/// | key | |
/// | --- | --- |
/// | `routes` | `{ method, path, lock }` each: `lock = false` as [`exempt`](LockRules::exempt), `lock = true` as [`lock`](LockRules::lock). The first that fits decides |
/// | `scopes` | `{ method, path, scope }` each: `"realm"`, `"shared"`, `"resource"` or `"atomic-hrefs"` of a [`Scope`]. The first that fits decides |
/// | `limits` | `{ method, path, acquire_timeout, max_hold, busy_status, busy_detail }` each, of [`RouteLimits`]: times with a unit (`max_hold` may be `"none"`), a number and a text, all but method and path optional. The first that fits decides |
/// | `max_resources` | [`max_resources`](LockRules::max_resources) |
/// | `method_override` | `{ header, methods }` of [`method_override`](LockRules::method_override) |
///
/// `method` is one method, a list of them, or `"unsafe"` for all that are not safe: see
/// [`MethodSet`]. Methods are written in capital letters, as HTTP has them: `get` is another method
/// than `GET`, and refused here. Errors are those of the methods named above; an unknown key is one
/// that names the nearest right one.
///
/// ```
/// use http::Method;
/// use tower_realm_lock::LockRules;
///
/// let rules: LockRules = toml::from_str(r#"
///     max_resources = 32
///     routes = [{ method = "POST", path = "/{owner}/{realm}/_search", lock = false }]
///     scopes = [{ method = ["PUT", "PATCH"], path = "/{owner}/{realm}/{*card}", scope = "resource" }]
///
///     [[limits]]
///     method = "POST"
///     path = "/{owner}/{realm}/_export"
///     acquire_timeout = "0s"
///     busy_status = 423
/// "#)?;
/// assert!(!rules.locks(&Method::POST, "/luke/my-realm/_search"));
///
/// let error = toml::from_str::<LockRules>("max_resorces = 32").unwrap_err();
/// assert_eq!(error.message(), "unknown key `max_resorces` in the rules: did you mean `max_resources`?");
/// # Ok::<(), toml::de::Error>(())
/// ```
impl<'de> Deserialize<'de> for LockRules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        table::read(Self::new(), deserializer)
    }
}

impl Table for LockRules {
    type Made = Self;

    const NAME: &'static str = "the rules";
    const KEYS: &'static [&'static str] = &[
        "routes",
        "scopes",
        "limits",
        "max_resources",
        "method_override",
    ];

    fn set<'de, A: MapAccess<'de>>(mut self, value: Value<'_, A>) -> Result<Self, A::Error> {
        match value.key {
            "routes" => {
                self.0.routes = value.tables(RouteKeys::default(), admitted(|route| route))?;
            }
            "scopes" => {
                let check = admitted(|scope: &Ruled<_>| &scope.selector);
                self.0.scopes = value.tables(ScopeKeys::default(), check)?;
            }
            "limits" => {
                let check = admitted(|limits: &Ruled<_>| &limits.selector);
                self.0.limits = value.tables(LimitKeys::default(), check)?;
            }
            "max_resources" => {
                return value.whole(|number| Ok(self.max_resources(number as usize)));
            }
            _ => self.0.method_override = Some(value.table(OverrideKeys::default())?),
        }
        Ok(self)
    }

    fn made(self) -> Option<Self> {
        Some(self)
    }
}

/// Checks a rule against those of its kind before it.
fn admitted<T>(selector: fn(&T) -> &Selector) -> impl Fn(&[T], &T) -> Result<(), String> {
    move |earlier, rule| {
        let admitted = selector(rule).admitted(earlier.iter().map(selector));
        admitted.map_err(|error| error.to_string())
    }
}

#[derive(Clone, Default)]
struct RouteKeys {
    methods: Option<MethodSet>,
    pattern: Option<PathTemplate>,
    locked: Option<bool>,
}

impl Table for RouteKeys {
    type Made = Selector;

    const NAME: &'static str = "a route of the rules";
    const KEYS: &'static [&'static str] = &["method", "path", "lock"];

    fn set<'de, A: MapAccess<'de>>(mut self, value: Value<'_, A>) -> Result<Self, A::Error> {
        match value.key {
            "method" => self.methods = Some(value.text_or_texts(METHODS, method_set)?),
            "path" => self.pattern = Some(value.text(PATTERN, pattern)?),
            _ => self.locked = Some(value.flag(Ok)?),
        }
        Ok(self)
    }

    fn made(self) -> Option<Selector> {
        let kind = if self.locked? {
            RuleKind::Lock
        } else {
            RuleKind::Exempt
        };
        selector(kind, self.methods, self.pattern)
    }
}

#[derive(Clone, Default)]
struct ScopeKeys {
    methods: Option<MethodSet>,
    pattern: Option<PathTemplate>,
    scope: Option<Scope>,
}

impl Table for ScopeKeys {
    type Made = Ruled<RouteScope<ReadsBodies>>;

    const NAME: &'static str = "a scope of the rules";
    const KEYS: &'static [&'static str] = &["method", "path", "scope"];

    fn set<'de, A: MapAccess<'de>>(mut self, value: Value<'_, A>) -> Result<Self, A::Error> {
        match value.key {
            "method" => self.methods = Some(value.text_or_texts(METHODS, method_set)?),
            "path" => self.pattern = Some(value.text(PATTERN, pattern)?),
            _ => self.scope = Some(value.one_of(&SCOPES)?()),
        }
        Ok(self)
    }

    fn made(self) -> Option<Self::Made> {
        Some(Ruled {
            selector: selector(RuleKind::Scope, self.methods, self.pattern)?,
            given: self.scope?.0,
        })
    }
}

#[derive(Clone, Default)]
struct LimitKeys {
    methods: Option<MethodSet>,
    pattern: Option<PathTemplate>,
    limits: RouteLimits,
}

impl Table for LimitKeys {
    type Made = Ruled<RouteLimits>;

    const NAME: &'static str = "the limits of a route";
    const KEYS: &'static [&'static str] = &[
        "method",
        "path",
        "acquire_timeout",
        "max_hold",
        "busy_status",
        "busy_detail",
    ];
    const OPTIONAL: &'static [&'static str] =
        &["acquire_timeout", "max_hold", "busy_status", "busy_detail"];

    fn set<'de, A: MapAccess<'de>>(mut self, value: Value<'_, A>) -> Result<Self, A::Error> {
        let limits = self.limits;
        self.limits = match value.key {
            "method" => {
                self.methods = Some(value.text_or_texts(METHODS, method_set)?);
                limits
            }
            "path" => {
                self.pattern = Some(value.text(PATTERN, pattern)?);
                limits
            }
            "acquire_timeout" => value.time(|time| Ok(limits.acquire_timeout(time)))?,
            "max_hold" => value.time_or("none", |time| Ok(limits.max_hold(time)))?,
            "busy_status" => value.whole(|number| busy_status(limits, number))?,
            _ => value.text(DETAIL, |text| Ok(limits.busy_detail(text)))?,
        };
        Ok(self)
    }

    fn made(self) -> Option<Self::Made> {
        Some(Ruled {
            selector: selector(RuleKind::Limits, self.methods, self.pattern)?,
            given: self.limits,
        })
    }
}

#[derive(Clone, Default)]
struct OverrideKeys {
    header: Option<HeaderName>,
    methods: Option<Vec<Method>>,
}

impl Table for OverrideKeys {
    type Made = (HeaderName, Vec<Method>);

    const NAME: &'static str = "the method override";
    const KEYS: &'static [&'static str] = &["header", "methods"];

    fn set<'de, A: MapAccess<'de>>(mut self, value: Value<'_, A>) -> Result<Self, A::Error> {
        match value.key {
            "header" => self.header = Some(value.text(HEADER, header)?),
            _ => self.methods = Some(value.texts(METHOD, method)?),
        }
        Ok(self)
    }

    fn made(self) -> Option<Self::Made> {
        Some((self.header?, self.methods?))
    }
}

fn selector(
    kind: RuleKind,
    methods: Option<MethodSet>,
    pattern: Option<PathTemplate>,
) -> Option<Selector> {
    Some(Selector {
        kind,
        methods: methods?,
        pattern: pattern?,
    })
}

fn method_set(texts: Texts) -> Result<MethodSet, String> {
    let methods = match texts {
        Texts::One(text) if text == "unsafe" => return Ok(MethodSet::unsafe_methods()),
        Texts::One(text) => vec![method(&text)?],
        Texts::Several(texts) => {
            let methods = texts.iter().map(|text| method(text));
            methods.collect::<Result<_, _>>()?
        }
    };
    let methods = MethodSet::from(methods);
    methods.check()?;
    Ok(methods)
}

fn method(text: &str) -> Result<Method, String> {
    let is_upper = !text.contains(|letter: char| letter.is_ascii_lowercase());
    let method = Method::from_bytes(text.as_bytes()).ok();
    method.filter(|_| is_upper).ok_or_else(|| {
        let text = shown(text);
        format!("{text} is not a method: write one such as `POST`, in capital letters")
    })
}

fn header(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| {
        let text = shown(text);
        format!("{text} is not the name of a header: write one such as `X-HTTP-Method-Override`")
    })
}

fn busy_status(limits: RouteLimits, number: u32) -> Result<RouteLimits, String> {
    let status = u16::try_from(number).ok();
    let limits = match status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) => limits.busy_status(status),
        None => Err(ConfigError::InvalidStatus {
            status: number.to_string(),
        }),
    };
    limits.map_err(|error| error.to_string())
}

fn pattern(text: &str) -> Result<PathTemplate, String> {
    PathTemplate::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
