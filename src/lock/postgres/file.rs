//! [`PostgresBuilder`] in a configuration file.

use serde::de::{Deserialize, Deserializer, MapAccess};

use super::options::PostgresBuilder;
use super::url::Source;
use crate::table::value::Value;
use crate::table::{self, Table};

impl PostgresBuilder {
    /// Takes another database URL: one from the environment, so that a file with the other options
    /// holds no password.
    pub fn url(mut self, url: &str) -> Self {
        self.database = Source::Url(url.into());
        self
    }

    /// With the checks of `build`, so that what a file says is refused where it says it.
    fn checked(self) -> Result<Self, String> {
        let checked = self.check().map(|()| self);
        checked.map_err(|error| error.to_string())
    }

    /// As [`checked`](Self::checked), for a URL: what it names is read.
    fn readable(self) -> Result<Self, String> {
        let readable = self.database().map(|_| self);
        readable.map_err(|error| error.to_string())
    }
}

/// Options as a configuration file has them, in any format that says what it holds. The keys are the names of the options, and
/// `url`. All may be left out; without a [`url`](Self::url) from elsewhere [`build`](Self::build) then fails.
///
/// Times are texts with a unit: `"15s"`, `"500ms"`; a bare number is refused. Values are checked as [`build`](Self::build) does. An
/// unknown key is an error that names the nearest right one.
///
/// No error of this crate's shows the URL, which may hold a password. But many formats quote the line of the file in the `Display` of their
/// errors, or all of it in `Debug`, as `toml` does: print what they give as the message, and the number of the line.
///
/// ```
/// use tower_realm_lock::PostgresBuilder;
///
/// let builder: PostgresBuilder = toml::from_str(r#"
///     url = "postgres://localhost/realms"
///     pool_size = 20
///     lease = "15s"
/// "#)?;
/// # let _ = builder;
///
/// let error = toml::from_str::<PostgresBuilder>("lease = '50ms'").unwrap_err();
/// assert!(error.message().contains("the option lease cannot be 50ms"));
/// # Ok::<(), toml::de::Error>(())
/// ```
impl<'de> Deserialize<'de> for PostgresBuilder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        table::read(Self::new(""), deserializer)
    }
}

impl Table for PostgresBuilder {
    type Made = Self;

    const NAME: &'static str = "the options of PostgreSQL";
    const KEYS: &'static [&'static str] = &[
        "url",
        "pool_size",
        "lease",
        "fencing",
        "max_hand_offs",
        "max_hand_off_time",
        "sessions",
        "broadcast",
        "connect_timeout",
    ];

    fn set<'de, A: MapAccess<'de>>(self, value: Value<'_, A>) -> Result<Self, A::Error> {
        match value.key {
            "url" => value.text("a database URL", |url| self.url(url).readable()),
            "pool_size" => value.whole(|size| self.pool_size(size).checked()),
            "lease" => value.time(|lease| self.lease(lease).checked()),
            "fencing" => value.flag(|fencing| self.fencing(fencing).checked()),
            "max_hand_offs" => value.whole(|most| self.max_hand_offs(most).checked()),
            "max_hand_off_time" => value.time(|time| self.max_hand_off_time(time).checked()),
            "sessions" => value.whole(|sessions| self.sessions(sessions).checked()),
            "broadcast" => value.flag(|broadcast| self.broadcast(broadcast).checked()),
            _ => value.time(|timeout| self.connect_timeout(timeout).checked()),
        }
    }

    fn made(self) -> Option<Self> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lock::postgres::options::HandOff;

    fn error(file: &str) -> String {
        let error = toml::from_str::<PostgresBuilder>(file).unwrap_err();
        error.message().to_owned()
    }

    #[test]
    fn each_option_can_be_said_in_a_file() {
        let file = "
            url = 'postgres://h/d'
            pool_size = 3
            lease = '15s'
            fencing = true
            max_hand_offs = 7
            max_hand_off_time = '20ms'
            sessions = 4
            broadcast = true
            connect_timeout = '1m'
        ";
        // All fields by name: a new option must be said in a file too.
        let PostgresBuilder {
            database,
            pool_size,
            lease,
            connect_timeout,
            fencing,
            hand_off: HandOff { max, max_time },
            sessions,
            broadcast,
            // Not for files: a URL says what a file can say of it.
            tls: _,
        } = toml::from_str(file).unwrap();
        assert!(matches!(database, Source::Url(url) if url == "postgres://h/d"));
        assert_eq!((pool_size, max, sessions), (3, 7, 4));
        assert!(fencing && broadcast);
        let times = [lease, max_time, connect_timeout.unwrap()].map(|time| time.as_millis());
        assert_eq!(times, [15_000, 20, 60_000]);
        for key in PostgresBuilder::KEYS {
            assert!(file.contains(&format!(" {key} = ")), "{key}");
        }
    }

    #[test]
    fn what_is_left_out_is_as_by_default() {
        let shown = |builder| format!("{builder:?}");
        let by_default = shown(PostgresBuilder::new("postgres://h/d"));
        let json = serde_json::from_str(r#"{"url":"postgres://h/d"}"#).unwrap();
        assert_eq!(shown(json), by_default);
        let without_url: PostgresBuilder = toml::from_str("lease = '9s'").unwrap();
        let builder = without_url.url("postgres://h/d");
        assert!(matches!(builder.database, Source::Url(url) if url == "postgres://h/d"));
        assert_eq!(builder.lease, Duration::from_secs(9));
    }

    #[tokio::test]
    async fn without_a_url_nothing_is_built() {
        let builder: PostgresBuilder = toml::from_str("").unwrap();
        let error = builder.build().await.unwrap_err().to_string();
        assert!(error.contains("the database URL cannot be read"), "{error}");
    }

    #[test]
    fn a_value_is_checked_as_build_does() {
        for (file, says) in [
            ("pool_size = 0", "the option pool_size cannot be 0"),
            ("lease = '99ms'", "the option lease cannot be 99ms"),
            ("lease = '25days'", "24 days"),
            ("sessions = 1001", "the option sessions cannot be 1001"),
            ("connect_timeout = '0s'", "connect_timeout cannot be 0"),
            ("url = 'mysql://h/d'", "the database URL cannot be read"),
        ] {
            assert!(error(file).contains(says), "{}", error(file));
        }
    }

    #[test]
    fn no_message_shows_a_password() {
        const URL: &str = "postgres://u:secret@h:port/d";
        for file in [
            format!("url = '{URL}'"),
            format!("url = ['{URL}']"),
            format!("urll = '{URL}'"),
            format!("'{URL}' = 1"),
            format!("pool_size = '{URL}'"),
            format!("lease = '{URL}'"),
            format!("fencing = '{URL}'"),
            format!("url = '{URL}\nlease = '1s'"),
            format!("url = {URL}"),
            format!("url = 'postgres://h/d'\nurl = '{URL}'"),
            "url = 'host=h password=secret port=x'".to_owned(),
        ] {
            let error = error(&file);
            assert!(!error.contains("secret"), "{file}: {error}");
        }
        let json = serde_json::from_str::<PostgresBuilder>(&format!(r#""{URL}""#));
        let error = json.unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
        let builder: PostgresBuilder = toml::from_str("url = 'postgres://u:secret@h/d'").unwrap();
        assert!(!format!("{builder:?}").contains("secret"));
    }
}
