//! [`PostgresBuilder`] in a configuration file.

use std::time::Duration;

use humantime_serde::Serde;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

use super::options::{HandOff, PostgresBuilder};

const TABLE: &str = "a table of PostgreSQL options";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table of PostgreSQL options")]
struct Keys {
    url: Option<String>,
    pool_size: Option<u32>,
    lease: Option<Serde<Duration>>,
    fencing: Option<bool>,
    max_hand_offs: Option<u32>,
    max_hand_off_time: Option<Serde<Duration>>,
    sessions: Option<u32>,
    broadcast: Option<bool>,
    connect_timeout: Option<Serde<Duration>>,
    max_connection_lifetime: Option<Serde<Duration>>,
}

/// The keys are `url` and the names of the options; times have a unit, such as `"15s"`. What
/// [`build`](Self::build) would refuse is an error, and so is an unknown key. No message of this
/// crate shows a password, but `toml` and other formats may quote the file around it.
impl<'de> Deserialize<'de> for PostgresBuilder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let keys = Keys::deserialize(deserializer).map_err(without_secrets)?;
        let default = Self::new(keys.url.as_deref().unwrap_or_default());
        let time = |key: Option<Serde<_>>, default| key.map_or(default, Serde::into_inner);
        let builder = Self {
            pool_size: keys.pool_size.unwrap_or(default.pool_size),
            lease: time(keys.lease, default.lease),
            connect_timeout: keys.connect_timeout.map(Serde::into_inner),
            max_connection_lifetime: time(
                keys.max_connection_lifetime,
                default.max_connection_lifetime,
            ),
            fencing: keys.fencing.unwrap_or(default.fencing),
            hand_off: HandOff {
                max: keys.max_hand_offs.unwrap_or(default.hand_off.max),
                max_time: time(keys.max_hand_off_time, default.hand_off.max_time),
            },
            sessions: keys.sessions.unwrap_or(default.sessions),
            broadcast: keys.broadcast.unwrap_or(default.broadcast),
            ..default
        };
        builder.check().map_err(D::Error::custom)?;
        if keys.url.is_some() {
            builder.database().map_err(D::Error::custom)?;
        }
        Ok(builder)
    }
}

/// Hides an error that may quote a password: in a database URL, in a list of `key=value` pairs, or
/// in whatever is there instead of a table.
fn without_secrets<E: Error>(error: E) -> E {
    let message = error.to_string();
    let is_pairs = message.contains("password") && message.contains('=');
    let has = |sign| message.contains(sign);
    if is_pairs || ["://", "@", TABLE].into_iter().any(has) {
        return E::custom(format_args!(
            "expected {TABLE} with values of the right types; what is there is not shown, because \
             it may hold a password"
        ));
    }
    error
}
