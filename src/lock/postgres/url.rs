use std::net::IpAddr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, TargetSessionAttrs};

use super::address::Address;
use super::tls::Tls;
use super::tls::settings::{Encryption, Settings};
use crate::config::ConfigError;

/// Options of libpq that the driver does not have. No other unknown name is shown: it may be a part
/// of a password.
const NOT_HERE: &str = "client_encoding fallback_application_name gssdelegation gssencmode gsslib \
    keepalives_count krbsrvname max_protocol_version min_protocol_version passfile replication \
    require_auth requirepeer requiressl service ssl ssl_max_protocol_version \
    ssl_min_protocol_version sslcertmode sslcompression sslcrl sslcrldir sslpassword sslsni";

/// Why there is no time limit of zero.
pub(super) const NOT_AT_ONCE: &str = "no server can answer at once";

/// What a database URL, or the driver's own configuration, says: how to log in, and how to encrypt.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) config: Config,
    pub(super) encryption: Encryption,
}

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
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            let remedy = "locks exclude nobody on a server that is read only; leave it out";
            return Err(ConfigError::option(
                "target_session_attrs",
                "read-only",
                remedy,
            ));
        }
        // Only a primary is used anyway.
        config.target_session_attrs(TargetSessionAttrs::Any);
        if config.get_connect_timeout().is_some_and(Duration::is_zero) {
            return Err(ConfigError::option("connect_timeout", "0", NOT_AT_ONCE));
        }
        let encryption = settings.encryption(tls, &mut config)?;
        if config.get_application_name().is_none() {
            config.application_name("tower-realm-lock");
        }
        detect_death(&mut config);
        Ok(Self { config, encryption })
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

/// Sets the options of TCP that detect a dead connection, where the user has not. The driver's own
/// idle time of two hours counts as not set: it is longer than any load balancer's or NAT's limit.
fn detect_death(config: &mut Config) {
    if config.get_keepalives_idle() == Config::new().get_keepalives_idle() {
        config.keepalives_idle(Duration::from_secs(30));
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(Duration::from_secs(5));
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(3);
    }
    if config.get_tcp_user_timeout().is_none() {
        // Below the default `acquire_timeout`, so that a waiter can still ask on another one.
        config.tcp_user_timeout(Duration::from_secs(8));
    }
}

/// What a URL says to the driver, and what it says about TLS.
fn parse(url: &str) -> Result<(Config, Settings), ConfigError> {
    let mut settings = Settings::default();
    let prefixes = ["postgres://", "postgresql://"];
    let rest = match prefixes.iter().find_map(|prefix| url.strip_prefix(prefix)) {
        Some(places) if is_ambiguous(places) => {
            return Err(unreadable(
                "where its password ends is not certain: write `@` as %40, and in user and \
                 password `/` as %2F and `?` as %3F",
            ));
        }
        Some(_) => without_parameters(url, &mut settings),
        None if begins_with_scheme(url) => {
            return Err(unreadable("it does not begin with `postgres://`"));
        }
        None => without_pairs(url, &mut settings),
    };
    let config = rest.parse().map_err(|error| unreadable(told(&error)))?;
    Ok((config, settings))
}

fn unreadable(problem: impl Into<String>) -> ConfigError {
    ConfigError::InvalidDatabaseUrl {
        problem: problem.into(),
    }
}

/// What the driver reports of a URL that it cannot read, unless it quotes what may be secret.
fn told(error: &tokio_postgres::Error) -> String {
    let text = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    if text.starts_with("invalid value for option") {
        return text;
    }
    let unknown = text.strip_prefix("unknown option `");
    match unknown.and_then(|name| name.strip_suffix('`')) {
        Some(name) if NOT_HERE.split(' ').any(|known| known == name) => {
            format!("it has the option `{name}`, which is not supported")
        }
        Some(_) => {
            "it has an unknown option, which is not shown: it may be a part of a password".into()
        }
        None => "it is neither a URL nor a list of `key=value` pairs".into(),
    }
}

/// What is wrong with the lists of hosts: none, or not certain what belongs together.
fn uneven(config: &Config) -> Option<String> {
    let hosts = config.get_hosts().len();
    let numbers = config.get_hostaddrs().len();
    let ports = config.get_ports().len();
    let servers = hosts.max(numbers);
    if servers == 0 {
        return Some("it names no host".into());
    }
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
fn without_parameters(url: &str, settings: &mut Settings) -> String {
    // What follows the credentials: they have no question mark.
    let Some((place, parameters)) = url.split_once('?') else {
        return url.into();
    };
    let left = parameters.split('&').filter(|parameter| {
        let taken = parameter.split_once('=').is_some_and(|(name, value)| {
            let (name, value) = (percent_decode_str(name), percent_decode_str(value));
            match (name.decode_utf8(), value.decode_utf8()) {
                (Ok(name), Ok(value)) => settings.take(&name, &value),
                // For the driver to refuse.
                _ => false,
            }
        });
        !taken
    });
    let left: Vec<&str> = left.collect();
    format!("{place}?{}", left.join("&"))
}

/// The `key=value` pairs without those that the driver does not have.
fn without_pairs(pairs: &str, settings: &mut Settings) -> String {
    let mut left = String::new();
    let mut rest = pairs;
    while let Some((name, value, after)) = pair(rest) {
        if !settings.take(name, &value) {
            left.push_str(&rest[..rest.len() - after.len()]);
        }
        rest = after;
    }
    // Whatever is no pair is for the driver to refuse.
    left + rest
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
        let own = "keepalives_idle=2&keepalives_interval=3&keepalives_retries=4&tcp_user_timeout=5";
        let database = |options| {
            let url = format!("postgres://127.0.0.1/d?{options}");
            let database = Database::read(&Source::Url(url), None).unwrap();
            let address = Address::all(&database.config).remove(0);
            database.config_of(&address, None)
        };
        for (options, [idle, interval, user_timeout], retries) in
            [("", [30, 5, 8], 3), (own, [2, 3, 5], 4)]
        {
            let config = database(options);
            let seconds = Duration::from_secs;
            assert!(config.get_keepalives());
            assert_eq!(config.get_keepalives_idle(), seconds(idle));
            assert_eq!(config.get_keepalives_interval(), Some(seconds(interval)));
            assert_eq!(config.get_keepalives_retries(), Some(retries));
            assert_eq!(config.get_tcp_user_timeout(), Some(&seconds(user_timeout)));
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
}
