use std::ops::Range;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;

use super::tls::Tls;
use super::tls::encryption::Encryption;
use super::tls::settings::Settings;
use crate::lock::error::LockError;

/// Options of libpq that the driver has not. No other unknown name is shown: it may be a part of a password.
const NOT_HERE: [&str; 24] = [
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "keepalives_count",
    "krbsrvname",
    "max_protocol_version",
    "min_protocol_version",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "service",
    "ssl",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslpassword",
    "sslsni",
];

/// What a database URL says: how to log in, and how to encrypt.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) config: Config,
    pub(super) encryption: Encryption,
}

impl Database {
    /// Reads a URL, or libpq's `key=value` pairs. With `tls` the URL has no say in what is verified.
    pub(super) fn read(url: &str, tls: Option<&Tls>) -> Result<Self, LockError> {
        let mut settings = Settings::default();
        let prefixes = ["postgres://", "postgresql://"];
        let rest = match prefixes.iter().find_map(|prefix| url.strip_prefix(prefix)) {
            Some(places) => {
                let split = ambiguous(places);
                split.map_or(Ok(()), |problem| Err(unreadable(problem)))?;
                without_parameters(url, &mut settings)
            }
            None if begins_with_scheme(url) => {
                return Err(unreadable("it does not begin with `postgres://`"));
            }
            None => without_pairs(url, &mut settings),
        };
        let config: Config = rest.parse().map_err(|error| unreadable(told(&error)))?;
        uneven(&config).map_or(Ok(()), |problem| Err(unreadable(problem)))?;
        let encryption = Encryption::read(settings, tls)?;
        Ok(Self { config, encryption })
    }
}

fn unreadable(problem: impl Into<String>) -> LockError {
    LockError::InvalidDatabaseUrl {
        problem: problem.into(),
    }
}

/// What the driver says of a URL that it cannot read, as far as it quotes nothing that may be secret.
fn told(error: &tokio_postgres::Error) -> String {
    let text = std::error::Error::source(error).map_or_else(String::new, ToString::to_string);
    if text.starts_with("invalid value for option") {
        return text;
    }
    let unknown = text.strip_prefix("unknown option `");
    match unknown.and_then(|name| name.strip_suffix('`')) {
        Some(name) if NOT_HERE.contains(&name) => {
            format!("it has the option `{name}`, which is not supported")
        }
        Some(_) => {
            "it has an unknown option, which is not shown: it may be a part of a password".into()
        }
        None => "it is neither a URL nor a list of `key=value` pairs".into(),
    }
}

/// Lists of which it is not certain what belongs together.
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

/// What makes it uncertain where a password ends: the rest of it would be taken for a host, and shown.
fn ambiguous(places: &str) -> Option<&'static str> {
    let (user, host) = places.split_once('@')?;
    let host = host.split('?').next().unwrap_or_default();
    (user.contains(['/', '?']) || host.contains('@')).then_some(
        "where its password ends is not certain: write `@` as %40, and in user and password `/` as %2F and `?` as %3F",
    )
}

/// The URL without the parameters that say how to encrypt.
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

/// The `key=value` pairs without those that say how to encrypt.
fn without_pairs(pairs: &str, settings: &mut Settings) -> String {
    let mut left = String::new();
    let mut from = 0;
    while let Some((name, value, range)) = pair(pairs, from) {
        if !settings.take(&pairs[name], &value) {
            left.push_str(&pairs[range.clone()]);
        }
        from = range.end;
    }
    // Whatever is no pair is for the driver to refuse.
    left + &pairs[from..]
}

/// The next pair: where its name is, its value, and all that belongs to it. The rules are libpq's: blanks around the `=`, a value in
/// quotes, a backslash before any character.
fn pair(text: &str, from: usize) -> Option<(Range<usize>, String, Range<usize>)> {
    let after_blanks = |at: usize| text.len() - text[at..].trim_start().len();
    let start = after_blanks(from);
    let length = text[start..].find(|letter: char| letter.is_whitespace() || letter == '=')?;
    let name = start..start + length;
    let equals = after_blanks(name.end);
    text[equals..].strip_prefix('=')?;
    let begin = after_blanks(equals + 1);
    let quoted = text[begin..].starts_with('\'');
    let begin = begin + usize::from(quoted);
    let mut value = String::new();
    let mut letters = text[begin..].char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\'' if quoted => return Some((name, value, from..begin + at + 1)),
            blank if !quoted && blank.is_whitespace() => {
                return Some((name, value, from..begin + at));
            }
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (!quoted).then_some((name, value, from..text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_its_port_or_all_have_one() {
        for url in [
            "postgres://u@a,b:2/x",
            "postgres:///x?host=a&port=1",
            "host=a,b port=7",
            "host=a,b port=7,8 hostaddr=192.0.2.1,192.0.2.2",
            "hostaddr=192.0.2.1,192.0.2.2 port=7,8",
        ] {
            Database::read(url, None).unwrap_or_else(|error| panic!("{url}: {error}"));
        }
        for (url, says) in [
            ("host=a,b,c port=1,2", "3 hosts and 2 ports"),
            ("host=a port=1,2", "1 hosts and 2 ports"),
            ("postgres://a/x?port=7", "1 hosts and 2 ports"),
            ("host=a,b hostaddr=192.0.2.1", "2 hosts and 1 of `hostaddr`"),
        ] {
            let error = Database::read(url, None).err().expect(url).to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn what_is_about_tls_is_taken_and_the_rest_is_left() {
        for (url, left) in [
            ("postgres://u:p@h/d", "postgres://u:p@h/d"),
            ("postgres://u:p@h/d?sslmode=disable", "postgres://u:p@h/d?"),
            (
                "postgres://u:p@h/d?user=a&sslrootcert=%2Fa%26b&application_name=s&%73slmode=prefer&options=x%20y",
                "postgres://u:p@h/d?user=a&application_name=s&options=x%20y",
            ),
            (
                "postgres://h?sslmode&sslkey=k&%FF=1",
                "postgres://h?sslmode&%FF=1",
            ),
        ] {
            assert_eq!(without_parameters(url, &mut Settings::default()), left);
        }
        for (pairs, left) in [
            ("host=h user=u", "host=h user=u"),
            ("sslmode=disable", ""),
            ("host=h  sslmode = 'disable' user=u", "host=h user=u"),
            (
                r"password='a sslmode=x \' sslkey=y' sslcert=c",
                r"password='a sslmode=x \' sslkey=y'",
            ),
            (
                r"password=a\ sslmode=x sslcert=c\ d user=u",
                r"password=a\ sslmode=x user=u",
            ),
            ("sslmode='open user=u", "sslmode='open user=u"),
            ("host=h sslmode", "host=h sslmode"),
            ("host=h =x sslmode=disable", "host=h =x"),
            ("ü=ü sslmode=ü\u{a0}ü=1", "ü=ü\u{a0}ü=1"),
        ] {
            assert_eq!(
                without_pairs(pairs, &mut Settings::default()),
                left,
                "{pairs}"
            );
        }
    }
}
