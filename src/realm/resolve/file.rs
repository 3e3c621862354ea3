//! [`RealmPaths`] in a configuration file.

use serde::de::{Deserialize, Deserializer, Error, MapAccess};

use super::paths::RealmPaths;
use crate::config::ConfigError;
use crate::table::value::Value;
use crate::table::{self, Table};

const BASE_URL: &str = "a URL, such as \"https://realms.example.com\",";
const PATTERN: &str = "a path, such as \"/{owner}/{realm}\",";
const NAME: &str = "a path or a URL, such as \"/{owner}/{realm}\",";

/// Base URL and patterns as a configuration file has them, in any self-describing format.
///
/// | key | value |
/// | --- | --- |
/// | `base_url` | the base URL of [`new`](RealmPaths::new) |
/// | `pattern` | its pattern |
/// | `also` | more patterns, a list: [`also`](RealmPaths::also). May be left out |
/// | `named` | [`named`](RealmPaths::named). May be left out |
/// | `base_path_stripped` | `true` as [`base_path_stripped`](RealmPaths::base_path_stripped). May be left out |
///
/// Errors are those of the methods. The error of an unknown key names the nearest right one.
///
/// ```
/// use tower_realm_lock::RealmPaths;
///
/// let realms: RealmPaths = toml::from_str(r#"
///     base_url = "https://api.example.com"
///     pattern = "/api/{version}/{tenant}/{project}"
///     named = "/{tenant}/{project}"
///     also = ["/admin/{tenant}/{project}"]
/// "#)?;
/// let realm = realms.resolve("/admin/acme/site/purge")?;
/// assert_eq!(realm.as_str(), "https://api.example.com/acme/site/");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl<'de> Deserialize<'de> for RealmPaths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let keys = table::read(Keys::default(), deserializer)?;
        keys.into_paths().map_err(D::Error::custom)
    }
}

#[derive(Default)]
struct Keys {
    base_url: Option<String>,
    pattern: Option<String>,
    also: Vec<String>,
    named: Option<String>,
    is_stripped: bool,
}

impl Table for Keys {
    type Made = Self;

    const NAME: &'static str = "the realms";
    const KEYS: &'static [&'static str] =
        &["base_url", "pattern", "also", "named", "base_path_stripped"];
    const OPTIONAL: &'static [&'static str] = &["also", "named", "base_path_stripped"];

    fn set<'de, A: MapAccess<'de>>(mut self, value: Value<'_, A>) -> Result<Self, A::Error> {
        let text = |text: &str| Ok(text.to_owned());
        match value.key {
            "base_url" => self.base_url = Some(value.text(BASE_URL, text)?),
            "pattern" => self.pattern = Some(value.text(PATTERN, text)?),
            "also" => self.also = value.texts(PATTERN, text)?,
            "named" => self.named = Some(value.text(NAME, text)?),
            _ => self.is_stripped = value.flag(Ok)?,
        }
        Ok(self)
    }

    fn made(self) -> Option<Self> {
        (self.base_url.is_some() && self.pattern.is_some()).then_some(self)
    }
}

impl Keys {
    fn into_paths(self) -> Result<RealmPaths, ConfigError> {
        let base_url = self.base_url.unwrap_or_default();
        let mut paths = RealmPaths::new(&base_url, &self.pattern.unwrap_or_default())?;
        if let Some(name) = &self.named {
            paths = paths.named(name)?;
        }
        for pattern in &self.also {
            paths = paths.also(pattern)?;
        }
        if self.is_stripped {
            paths = paths.base_path_stripped();
        }
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RealmPaths, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn every_key_counts() {
        let realms = read(
            r#"
            base_path_stripped = true
            also = ["/b/{tenant}"]
            named = "https://realms.test/{tenant}"
            pattern = "/a/{x}/{tenant}"
            base_url = "https://h/api"
            "#,
        );
        let realms = realms.unwrap();
        for path in ["/a/1/acme/x", "/b/acme/x"] {
            let realm = realms.resolve(path).unwrap();
            assert_eq!(realm.as_str(), "https://realms.test/acme/", "{path}");
        }
        assert!(realms.resolve("/api/b/acme/x").is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, reason) in [
            (
                "base_url = 'https://h'",
                "`pattern` is missing in the realms",
            ),
            ("pattern = '/{a}'", "`base_url` is missing in the realms"),
            ("base_ulr = 'https://h'", "did you mean `base_url`?"),
            ("base_url = 7", "a URL"),
            ("base_url = 'h'\npattern = '/{a}'", "`h` is not a realm URL"),
            (
                "base_url = 'https://h'\npattern = 'a'",
                "`a` is not a path template",
            ),
            (
                "base_url = 'https://h'\npattern = '/{a}'\nalso = ['/{b}']",
                "no `{a}`",
            ),
            (
                "base_url = 'https://h'\npattern = '/{a}'\nnamed = '/{b}'",
                "no `{b}`",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
