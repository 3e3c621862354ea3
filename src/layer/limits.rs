use std::time::Duration;

use humantime_serde::Serde;
use serde::Deserialize;

use super::settings::Settings;
use crate::realm::rules::limits::MaxHold;

/// The limits of a layer in a configuration file. Each key is named after the method of
/// [`RealmLocks`](crate::RealmLocks) or of the layer that takes the value, and
/// changes nothing if the file does not have it. `max_waiters_per_realm` is a number.
/// `acquire_timeout`, `max_hold` and `body_timeout` are times with a unit, such as `"10s"`,
/// `"500ms"` or `"1m 30s"`; `max_hold = "none"` is no bound. Unknown keys are errors.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table of limits")]
pub struct Limits {
    acquire_timeout: Option<Serde<Duration>>,
    max_hold: Option<MaxHold>,
    max_waiters_per_realm: Option<usize>,
    body_timeout: Option<Serde<Duration>>,
}

impl Limits {
    pub(super) fn applied_to(self, mut settings: Settings) -> Settings {
        if let Some(timeout) = self.acquire_timeout {
            settings.locks = settings.locks.acquire_timeout(*timeout);
        }
        if let Some(MaxHold(max_hold)) = self.max_hold {
            settings.locks = settings.locks.max_hold(max_hold);
        }
        if let Some(waiters) = self.max_waiters_per_realm {
            settings.locks = settings.locks.max_waiters_per_realm(waiters);
        }
        if let Some(timeout) = self.body_timeout {
            settings.body_timeout = *timeout;
        }
        settings
    }
}
