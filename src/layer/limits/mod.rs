use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess};

use super::settings::Settings;
use crate::realm::rules::limits::MaxHold;
use crate::table::value::Value;
use crate::table::{self, Table};

/// The limits of a layer as a configuration file has them, in any format that says what it holds.
/// What it leaves out stays as it is.
///
/// | key | value |
/// | --- | --- |
/// | `acquire_timeout` | a time: [`acquire_timeout`](crate::RealmLocks::acquire_timeout) |
/// | `max_hold` | a time, or `"none"` for no bound: [`max_hold`](crate::RealmLocks::max_hold) |
/// | `max_waiters_per_realm` | a number: [`max_waiters_per_realm`](crate::RealmLocks::max_waiters_per_realm) |
/// | `body_timeout` | a time: [`body_timeout`](crate::RealmBodyLockLayer::body_timeout) |
///
/// A time is a text with a unit, `"10s"`, `"500ms"` or `"1m 30s"`; a bare number is refused. An
/// unknown key is an error that names the nearest right one.
///
/// ```
/// use tower_realm_lock::{Limits, RealmLocks, RealmPaths, RealmWriteLockLayer};
///
/// let limits: Limits = toml::from_str(r#"
///     acquire_timeout = "5s"
///     max_hold = "2m"
///     max_waiters_per_realm = 200
/// "#)?;
/// let realms = RealmPaths::new("https://realms.example.com", "/{owner}/{realm}")?;
/// let layer = RealmWriteLockLayer::new(RealmLocks::in_process(), realms).limits(limits);
/// # let _ = layer;
///
/// let error = toml::from_str::<Limits>("aquire_timeout = '5s'").unwrap_err();
/// assert_eq!(error.message(), "unknown key `aquire_timeout` in the limits: did you mean `acquire_timeout`?");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    acquire_timeout: Option<Duration>,
    max_hold: Option<MaxHold>,
    max_waiters_per_realm: Option<usize>,
    body_timeout: Option<Duration>,
}

impl Limits {
    /// The settings with those limits that are there.
    pub(super) fn applied_to(self, mut settings: Settings) -> Settings {
        if let Some(timeout) = self.acquire_timeout {
            settings.locks = settings.locks.acquire_timeout(timeout);
        }
        if let Some(MaxHold(max_hold)) = self.max_hold {
            settings.locks = settings.locks.max_hold(max_hold);
        }
        if let Some(waiters) = self.max_waiters_per_realm {
            settings.locks = settings.locks.max_waiters_per_realm(waiters);
        }
        if let Some(timeout) = self.body_timeout {
            settings.body_timeout = timeout;
        }
        settings
    }
}

impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        table::read(Self::default(), deserializer)
    }
}

impl Table for Limits {
    type Made = Self;

    const NAME: &'static str = "the limits";
    const KEYS: &'static [&'static str] = &[
        "acquire_timeout",
        "max_hold",
        "max_waiters_per_realm",
        "body_timeout",
    ];

    fn set<'de, A: MapAccess<'de>>(mut self, value: Value<'_, A>) -> Result<Self, A::Error> {
        match value.key {
            "acquire_timeout" => self.acquire_timeout = Some(value.time(Ok)?),
            "max_hold" => self.max_hold = Some(value.time_or("none", |time| Ok(MaxHold(time)))?),
            "max_waiters_per_realm" => {
                self.max_waiters_per_realm = Some(value.whole(|waiters| Ok(waiters as usize))?);
            }
            _ => self.body_timeout = Some(value.time(Ok)?),
        }
        Ok(self)
    }

    fn made(self) -> Option<Self> {
        Some(self)
    }
}

#[cfg(test)]
mod tests;
