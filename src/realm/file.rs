//! [`RealmPaths`] and [`LockRules`] in a configuration file.

use std::time::Duration;

use http::{Method, StatusCode};
use humantime_serde::Serde;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::error::shown;
use super::resolve::paths::RealmPaths;
use super::rules::limits::{MaxHold, RouteLimits};
use super::rules::lock_rules::LockRules;
use super::rules::methods::MethodSet;
use super::rules::scope::Scope;
use crate::config::ConfigError;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table that describes realms")]
struct PathsFile {
    base_url: String,
    pattern: String,
    also: Option<Vec<String>>,
    named: Option<String>,
    base_path_stripped: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table of rules")]
struct RulesFile {
    routes: Vec<RouteEntry>,
    scopes: Vec<ScopeEntry>,
    limits: Vec<LimitsEntry>,
    max_resources: Option<usize>,
    method_override: Option<OverrideEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of method, path and lock")]
struct RouteEntry {
    method: Methods,
    path: String,
    lock: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of method, path and scope")]
struct ScopeEntry {
    method: Methods,
    path: String,
    scope: ScopeName,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ScopeName {
    Realm,
    Shared,
    Resource,
    AtomicHrefs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of method, path and limits")]
struct LimitsEntry {
    method: Methods,
    path: String,
    acquire_timeout: Option<Serde<Duration>>,
    max_hold: Option<MaxHold>,
    busy_status: Option<u16>,
    busy_detail: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of header and methods")]
struct OverrideEntry {
    header: String,
    methods: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a method, a list of them, or `unsafe`")]
enum Methods {
    One(String),
    Several(Vec<String>),
}

/// The keys are `base_url` and `pattern`, and the names of methods: `named`, `also` (a list) and
/// `base_path_stripped` (`true` or `false`).
impl<'de> Deserialize<'de> for RealmPaths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let keys = PathsFile::deserialize(deserializer)?;
        let mut paths = Self::new(&keys.base_url, &keys.pattern).map_err(D::Error::custom)?;
        if let Some(name) = &keys.named {
            paths = paths.named(name).map_err(D::Error::custom)?;
        }
        for pattern in keys.also.iter().flatten() {
            paths = paths.also(pattern).map_err(D::Error::custom)?;
        }
        if keys.base_path_stripped == Some(true) {
            paths = paths.base_path_stripped();
        }
        Ok(paths)
    }
}

/// The keys are those of `docs/options.md`. The methods of [`LockRules`] check the values.
impl<'de> Deserialize<'de> for LockRules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rules = RulesFile::deserialize(deserializer)?;
        rules.build().map_err(D::Error::custom)
    }
}

impl RulesFile {
    fn build(self) -> Result<LockRules, Box<dyn std::error::Error>> {
        let mut rules = LockRules::new();
        for RouteEntry { method, path, lock } in self.routes {
            let methods = method.into_set()?;
            rules = if lock {
                rules.lock(methods, &path)?
            } else {
                rules.exempt(methods, &path)?
            };
        }
        for entry in self.scopes {
            let scope = match entry.scope {
                ScopeName::Realm => Scope::realm(),
                ScopeName::Shared => Scope::shared(),
                ScopeName::Resource => Scope::resource(),
                ScopeName::AtomicHrefs => Scope::atomic_hrefs(),
            };
            rules = rules.scope(entry.method.into_set()?, &entry.path, scope)?;
        }
        for entry in self.limits {
            let mut limits = RouteLimits {
                acquire_timeout: entry.acquire_timeout.map(Serde::into_inner),
                max_hold: entry.max_hold,
                busy_status: None,
                busy_detail: entry.busy_detail.map(Into::into),
            };
            if let Some(status) = entry.busy_status {
                let refused = |_| ConfigError::InvalidStatus {
                    status: status.to_string(),
                };
                let status = StatusCode::from_u16(status).map_err(refused)?;
                limits = limits.busy_status(status)?;
            }
            rules = rules.limits(entry.method.into_set()?, &entry.path, limits)?;
        }
        if let Some(resources) = self.max_resources {
            rules = rules.max_resources(resources);
        }
        if let Some(entry) = self.method_override {
            let refused = |_| format!("`{}` is not the name of a header", shown(&entry.header));
            let header = entry.header.parse().map_err(refused)?;
            let honoured = methods(&entry.methods)?;
            if !honoured.is_empty() {
                MethodSet::from(honoured.clone()).check()?;
            }
            rules = rules.method_override(header, honoured);
        }
        Ok(rules)
    }
}

impl Methods {
    fn into_set(self) -> Result<MethodSet, String> {
        match self {
            Self::One(name) if name == "unsafe" => Ok(MethodSet::unsafe_methods()),
            Self::One(name) => Ok(methods(&[name])?.into()),
            Self::Several(names) if names.iter().any(|name| name == "unsafe") => {
                Err("`unsafe` stands for many methods: write it alone, not in a list".into())
            }
            Self::Several(names) => Ok(methods(&names)?.into()),
        }
    }
}

fn methods(names: &[String]) -> Result<Vec<Method>, String> {
    let method = |name: &String| {
        let refused = |_| format!("`{}` is not an HTTP method", shown(name));
        name.parse().map_err(refused)
    };
    names.iter().map(method).collect()
}

impl TryFrom<String> for MaxHold {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "none" {
            return Ok(Self(None));
        }
        let time = humantime_serde::re::humantime::parse_duration(&text);
        let time = time.map_err(|_| "expected a duration, such as `1m 30s`, or `none`")?;
        Ok(Self(Some(time)))
    }
}
