use std::net::IpAddr;
use std::ops::RangeInclusive;
#[cfg(unix)]
use std::path::Path;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, TargetSessionAttrs};

use super::address::Address;
use super::password::Passwords;
use super::tls::Tls;
use super::tls::settings::{Encryption, Settings};
use crate::config::ConfigError;

/// Options of other programs, and what to do instead. They are named wherever they stand; any other
/// name may be a part of a password.
const NOT_HERE: [(&str, &str); 7] = [
    (
        "client_encoding fallback_application_name gssdelegation gssencmode gsslib krbsrvname \
         max_protocol_version min_protocol_version passfile replication require_auth requirepeer \
         service ssl_max_protocol_version ssl_min_protocol_version sslcertmode sslcompression \
         sslcrl sslcrldir sslpassword sslsni",
        "leave it out",
    ),
    (
        "default_query_exec_mode pgbouncer prepareThreshold prepared_statement_cache_size \
         statement_cache_capacity statement_cache_size",
        "leave it out; locks are prepared for PgBouncer as they are",
    ),
    (
        "connection_limit max_connections pool_max_conns pool_size",
        "leave it out, and set `pool_size` on the builder",
    ),
    (
        "pool_timeout",
        "leave it out, and set `acquire_timeout` on the locks",
    ),
    ("connectTimeout loginTimeout", "write `connect_timeout`"),
    (
        "currentSchema schema search_path",
        "leave it out; locks are in no schema, and shared transactions get one by \
         `options=-c search_path=…`",
    ),
    (
        "requiressl ssl sslaccept sslidentity",
        "write `sslmode`, `sslcert` and `sslkey`",
    ),
];

/// Where libpq looks for a server's socket if no host is named: Debian's and Red Hat's, and
/// PostgreSQL's own.
#[cfg(unix)]
const SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Why there is no time limit of zero.
pub(super) const NOT_AT_ONCE: &str = "no server can answer at once";

/// What a database URL, or the driver's own configuration, says: how to log in, and how to encrypt.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) config: Config,
    pub(super) encryption: Encryption,
    /// Comes before the password of the configuration.
    pub(super) passwords: Option<Passwords>,
}

/// What Linux takes.
const PROBES: RangeInclusive<u32> = 1..=127;
const TOO_MANY: &str =
    "write how many probes may stay without an answer, 1 to 127, or leave it out";

/// Where a [`Database`] is described.
#[derive(Clone)]
pub(super) enum Source {
    Url(String),
    Config(Box<Config>),
}

impl Database {
    /// Reads a URL, libpq's `key=value` pairs, or a configuration. With `tls` it has no say in what
    /// is verified.
    pub(super) fn read(source: &Source, tls: Option<&Tls>) -> Result<Self, ConfigError> {
        let (mut config, settings) = match source {
            Source::Url(url) => parse(url)?,
            Source::Config(config) => ((**config).clone(), Settings::of(config)),
        };
        if let Some(problem) = uneven(&config) {
            return Err(unreadable(problem));
        }
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            // One for good: another server may have its socket in the other folder.
            #[cfg(unix)]
            config.host_path(socket_folder(&config));
            #[cfg(not(unix))]
            config.host("localhost");
        }
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            return Err(not_a_primary("read-only"));
        }
        // Only a primary is used anyway.
        config.target_session_attrs(TargetSessionAttrs::Any);
        if config.get_connect_timeout().is_some_and(Duration::is_zero) {
            return Err(ConfigError::option("connect_timeout", "0", NOT_AT_ONCE));
        }
        if let Some(count) = config.get_keepalives_retries()
            && !PROBES.contains(&count)
        {
            let count = count.to_string();
            return Err(ConfigError::option("keepalives_retries", &count, TOO_MANY));
        }
        let encryption = settings.encryption(tls, &mut config)?;
        if config.get_application_name().is_none() {
            config.application_name("tower-realm-lock");
        }
        detect_death(&mut config);
        Ok(Self {
            config,
            encryption,
            passwords: None,
        })
    }

    /// The same configuration for one number of one of its hosts. The time to connect is limited
    /// elsewhere.
    pub(super) fn config_of(&self, address: &Address, number: Option<IpAddr>) -> Config {
        let all = &self.config;
        let mut one = Config::new();
        one.port(address.port)
            .ssl_negotiation(all.get_ssl_negotiation())
            .keepalives(all.get_keepalives())
            .keepalives_idle(all.get_keepalives_idle())
            .channel_binding(all.get_channel_binding());
        match &address.host {
            Host::Tcp(name) => one.host(name),
            #[cfg(unix)]
            Host::Unix(folder) => one.host_path(folder),
        };
        if let Some(number) = number {
            one.hostaddr(number);
        }
        if let Some(user) = all.get_user() {
            one.user(user);
        }
        if let Some(password) = all.get_password() {
            one.password(password);
        }
        if let Some(dbname) = all.get_dbname() {
            one.dbname(dbname);
        }
        if let Some(options) = all.get_options() {
            one.options(options);
        }
        if let Some(application_name) = all.get_application_name() {
            one.application_name(application_name);
        }
        if let Some(timeout) = all.get_tcp_user_timeout() {
            one.tcp_user_timeout(*timeout);
        }
        if let Some(interval) = all.get_keepalives_interval() {
            one.keepalives_interval(interval);
        }
        if let Some(retries) = all.get_keepalives_retries() {
            one.keepalives_retries(retries);
        }
        one
    }
}

/// Sets the options of TCP that detect a dead connection, where the user has not: within 8 seconds
/// while a statement waits for its lock, so that a waiter can still ask on another connection. The
/// driver's own idle time of two hours counts as not set.
///
/// `tcp_user_timeout` is left to the user. On Linux it replaces the count of probes, and it would end
/// a hold before its lease does: heartbeats are always in flight.
fn detect_death(config: &mut Config) {
    if config.get_keepalives_idle() == Config::new().get_keepalives_idle() {
        config.keepalives_idle(Duration::from_secs(3));
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(Duration::from_secs(1));
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(5);
    }
}

/// The first folder that has a socket for the port, or else the first one.
#[cfg(unix)]
fn socket_folder(config: &Config) -> &'static str {
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let has_socket = |folder: &&str| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists();
    SOCKETS.into_iter().find(has_socket).unwrap_or(SOCKETS[0])
}

/// What a URL says to the driver, and what it says about TLS.
fn parse(url: &str) -> Result<(Config, Settings), ConfigError> {
    let mut own = Own::default();
    let prefixes = ["postgres://", "postgresql://"];
    let places = prefixes.iter().find_map(|prefix| url.strip_prefix(prefix));
    let rest = match places {
        Some(places) if is_ambiguous(places) => {
            return Err(unreadable(
                "where its password ends is not certain: write `@` as %40, and in user and \
                 password `/` as %2F and `?` as %3F",
            ));
        }
        Some(_) => without_parameters(url, &mut own)?,
        None if url.trim().is_empty() => return Err(unreadable("it is empty")),
        None if begins_with_scheme(url) => {
            return Err(unreadable("it does not begin with `postgres://`"));
        }
        None => without_pairs(url, &mut own)?,
    };
    let config = rest.parse::<Config>();
    let mut config = config.map_err(|error| unreadable(told(&error, places)))?;
    if let Some(timeout) = own.user_timeout {
        config.tcp_user_timeout(timeout);
    }
    if let Some(count) = own.keepalives_count {
        config.keepalives_retries(count);
    }
    Ok((config, own.settings))
}

/// The options that the driver does not have, or not as libpq has them.
#[derive(Default)]
struct Own {
    settings: Settings,
    user_timeout: Option<Duration>,
    keepalives_count: Option<u32>,
}

impl Own {
    /// Takes an option; whether it did.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, ConfigError> {
        match (name, value) {
            // No other server is used anyway.
            ("target_session_attrs", "any" | "primary" | "read-write") => {}
            ("target_session_attrs", _) => return Err(not_a_primary(value)),
            // The driver takes seconds.
            ("tcp_user_timeout", _) => {
                self.user_timeout = match value.parse() {
                    // The system's own.
                    Ok(0) => Some(Duration::ZERO),
                    Ok(time @ 1000..=2_147_483_647) => Some(Duration::from_millis(time)),
                    _ => {
                        let remedy = "write milliseconds, as for libpq, and at least 1000";
                        return Err(ConfigError::option("tcp_user_timeout", value, remedy));
                    }
                };
            }
            ("keepalives_count", _) => {
                let count = value.parse().ok().filter(|it| PROBES.contains(it));
                if count.is_none() {
                    return Err(ConfigError::option("keepalives_count", value, TOO_MANY));
                }
                self.keepalives_count = count;
            }
            _ => return Ok(self.settings.take(name, value)),
        }
        Ok(true)
    }
}

fn not_a_primary(value: &str) -> ConfigError {
    let remedy = "locks need a primary, as they exclude nobody elsewhere; write `primary`, or \
                  leave it out";
    ConfigError::option("target_session_attrs", value, remedy)
}

fn unreadable(problem: impl Into<String>) -> ConfigError {
    ConfigError::InvalidDatabaseUrl {
        problem: problem.into(),
    }
}

/// What the driver reports of a URL that it cannot read, unless it quotes what may be secret.
/// `places` is what follows the scheme.
fn told(error: &tokio_postgres::Error, places: Option<&str>) -> String {
    let text = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    if text.starts_with("invalid value for option") {
        return text;
    }
    let unknown = text.strip_prefix("unknown option `");
    let Some(name) = unknown.and_then(|name| name.strip_suffix('`')) else {
        return "it is neither a URL nor a list of `key=value` pairs".into();
    };
    let listed = NOT_HERE
        .into_iter()
        .find(|(names, _)| names.split(' ').any(|known| known == name));
    match listed {
        Some((_, remedy)) => {
            format!("it has the option `{name}`, which is not supported: {remedy}")
        }
        None if places.is_some_and(|places| is_no_secret(name, places)) => {
            format!("it has the unknown option `{name}`: leave it out")
        }
        None => {
            "it has an unknown option, which is not shown: it may be a part of a password".into()
        }
    }
}

/// Whether the name of an option is certain to be no part of a password. It stands behind the hosts
/// and so behind the credentials, if nothing behind it ends credentials, and no other option is a
/// password, which a `&` would have cut.
fn is_no_secret(name: &str, places: &str) -> bool {
    let parameters = places.split_once('?').map(|(_, parameters)| parameters);
    let is_behind = |all: &str| !all.contains('@') && !all.to_lowercase().contains("password");
    let of_name = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
    parameters.is_some_and(is_behind) && name.len() <= 40 && name.chars().all(of_name)
}

/// What is wrong with the lists of hosts: it is not certain what belongs together.
fn uneven(config: &Config) -> Option<String> {
    let hosts = config.get_hosts().len();
    let numbers = config.get_hostaddrs().len();
    let ports = config.get_ports().len();
    let servers = hosts.max(numbers);
    if numbers > 0 && hosts > 0 && numbers != hosts {
        return Some(format!("it has {hosts} hosts and {numbers} of `hostaddr`"));
    }
    (ports > 1 && ports != servers).then(|| format!("it has {servers} hosts and {ports} ports"))
}

/// Whether something stands before `://` that could be a scheme, as in `postgresql+driver://`.
fn begins_with_scheme(url: &str) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| {
        let of_scheme = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
        scheme.chars().all(of_scheme)
    })
}

/// Whether it is uncertain where a password ends: the rest of it would be taken for a host, and
/// shown.
fn is_ambiguous(places: &str) -> bool {
    places.split_once('@').is_some_and(|(user, host)| {
        let host = host.split('?').next().unwrap_or_default();
        user.contains(['/', '?']) || host.contains('@')
    })
}

/// The URL without the parameters that the driver does not have.
fn without_parameters(url: &str, own: &mut Own) -> Result<String, ConfigError> {
    // What follows the credentials: they have no question mark.
    let Some((place, parameters)) = url.split_once('?') else {
        return Ok(url.into());
    };
    let mut left = Vec::new();
    for parameter in parameters.split('&') {
        let is_taken = match parameter.split_once('=') {
            Some((name, value)) => {
                let (name, value) = (percent_decode_str(name), percent_decode_str(value));
                match (name.decode_utf8(), value.decode_utf8()) {
                    (Ok(name), Ok(value)) => own.take(&name, &value)?,
                    // For the driver to refuse.
                    _ => false,
                }
            }
            None => false,
        };
        if !is_taken {
            left.push(parameter);
        }
    }
    Ok(format!("{place}?{}", left.join("&")))
}

/// The `key=value` pairs without those that the driver does not have.
fn without_pairs(pairs: &str, own: &mut Own) -> Result<String, ConfigError> {
    let mut left = String::new();
    let mut rest = pairs;
    while let Some((name, value, after)) = pair(rest) {
        if !own.take(name, &value)? {
            left.push_str(&rest[..rest.len() - after.len()]);
        }
        rest = after;
    }
    // Whatever is no pair is for the driver to refuse.
    Ok(left + rest)
}

/// The name and the value of the first pair, and what follows it. The rules are libpq's: blanks
/// around the `=`, a value in quotes, a backslash before any character.
fn pair(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = text.split_once('=')?;
    let name = name.trim();
    if name.contains(char::is_whitespace) {
        return None;
    }
    let rest = rest.trim_start();
    let quoted = rest.strip_prefix('\'');
    let rest = quoted.unwrap_or(rest);
    let mut value = String::new();
    let mut letters = rest.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\'' if quoted.is_some() => return Some((name, value, &rest[at + 1..])),
            blank if quoted.is_none() && blank.is_whitespace() => {
                return Some((name, value, &rest[at..]));
            }
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    quoted.is_none().then_some((name, value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_detect_a_dead_connection_unless_the_user_says_how() {
        let own =
            "keepalives_idle=2&keepalives_interval=3&keepalives_retries=4&tcp_user_timeout=5000";
        let database = |options| {
            let url = format!("postgres://127.0.0.1/d?{options}");
            let database = Database::read(&Source::Url(url), None).unwrap();
            let address = Address::all(&database.config).remove(0);
            database.config_of(&address, None)
        };
        let seconds = Duration::from_secs;
        for (options, [idle, interval], retries, user_timeout) in
            [("", [3, 1], 5, None), (own, [2, 3], 4, Some(&seconds(5)))]
        {
            let config = database(options);
            assert!(config.get_keepalives());
            assert_eq!(config.get_keepalives_idle(), seconds(idle));
            assert_eq!(config.get_keepalives_interval(), Some(seconds(interval)));
            assert_eq!(config.get_keepalives_retries(), Some(retries));
            assert_eq!(config.get_tcp_user_timeout(), user_timeout);
        }
        assert!(!database("keepalives=0").get_keepalives());
    }

    #[test]
    fn one_host_has_all_options_of_the_configuration() {
        let options = "user=u&password=p&dbname=d&options=o&application_name=a&sslnegotiation=direct\
             &sslmode=disable&tcp_user_timeout=1&keepalives=0&keepalives_idle=2\
             &keepalives_interval=3&keepalives_retries=4\
             &channel_binding=require";
        let several = format!("postgres://h,g:2/?hostaddr=192.0.2.1,192.0.2.2&{options}");
        let all = Database {
            config: several.parse().unwrap(),
            encryption: Settings::default()
                .encryption(None, &mut Config::new())
                .unwrap(),
            passwords: None,
        };
        let second = Address::all(&all.config).remove(1);
        let one = all.config_of(&second, Some("192.0.2.2".parse().unwrap()));
        let same: Config = format!("postgres://g:2/?hostaddr=192.0.2.2&{options}")
            .parse()
            .unwrap();
        // Whether it is encrypted is settled for each connection. `Debug` shows all other options but
        // the password and the negotiation.
        let one = one.clone().ssl_mode(same.get_ssl_mode()).clone();
        assert_eq!(format!("{one:?}"), format!("{same:?}"));
        assert_eq!(one.get_password(), same.get_password());
        assert_eq!(one.get_ssl_negotiation(), same.get_ssl_negotiation());
    }

    fn read(url: &str) -> Result<Config, ConfigError> {
        let database = Database::read(&Source::Url(url.into()), None)?;
        Ok(database.config)
    }

    #[test]
    fn times_and_counts_mean_what_they_mean_to_libpq() {
        for form in ["postgres://h/d?", "host=h "] {
            let options = "tcp_user_timeout=30000 keepalives_count=4 keepalives_idle=60 \
                           keepalives_interval=5 connect_timeout=7";
            let separator = if form.ends_with('?') { "&" } else { " " };
            let config = read(&(form.to_owned() + &options.replace(' ', separator))).unwrap();
            let seconds = |seconds| Some(Duration::from_secs(seconds));
            assert_eq!(config.get_tcp_user_timeout().copied(), seconds(30));
            assert_eq!(config.get_keepalives_retries(), Some(4));
            assert_eq!(config.get_keepalives_idle(), Duration::from_secs(60));
            assert_eq!(config.get_keepalives_interval(), seconds(5));
            assert_eq!(config.get_connect_timeout().copied(), seconds(7));

            for (option, says) in [
                ("tcp_user_timeout=30", "milliseconds, as for libpq"),
                ("tcp_user_timeout=soon", "cannot be soon"),
                ("keepalives_count=-1", "cannot be -1"),
                ("keepalives_count=0", "1 to 127"),
                ("keepalives_retries=128", "1 to 127"),
            ] {
                let refused = read(&(form.to_owned() + option)).unwrap_err().to_string();
                assert!(refused.contains(says), "{refused}");
            }
        }
    }

    #[test]
    fn an_option_of_another_program_is_named_with_its_remedy_and_without_its_value() {
        for (option, remedy) in [
            ("pgbouncer", "PgBouncer"),
            ("prepareThreshold", "PgBouncer"),
            ("connection_limit", "`pool_size`"),
            ("pool_timeout", "`acquire_timeout`"),
            ("loginTimeout", "`connect_timeout`"),
            ("currentSchema", "search_path"),
            ("sslaccept", "`sslmode`"),
            ("sslcrl", "leave it out"),
            ("socket_timeout", "leave it out"),
            ("ApplicationName", "leave it out"),
        ] {
            let url = format!("postgresql://u:p@h/d?connect_timeout=1&{option}=value");
            let refused = read(&url).unwrap_err().to_string();
            assert!(refused.contains(&format!("`{option}`")), "{refused}");
            assert!(refused.contains(remedy), "{refused}");
            assert!(!refused.contains("value"), "{refused}");
        }
    }
}
