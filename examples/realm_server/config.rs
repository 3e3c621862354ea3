//! The flags, and what they mean together.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use url::Url;

use crate::store::Fault;

/// Serves realms of JSON cards. Its writes are safe on many replicas, because a layer locks the realm around each.
#[derive(Parser)]
#[command(name = "realm_server", version)]
struct Flags {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4201", value_parser = address)]
    listen: SocketAddr,

    /// The public origin in realm URLs; the same for all replicas [default: http:// and the listen address].
    #[arg(long, value_name = "URL", value_parser = origin)]
    base_url: Option<Url>,

    /// Where realms' files live, shared by all replicas [default: a temporary directory, removed at exit].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// PostgreSQL for the locks.
    #[arg(long, value_name = "URL", env = "DATABASE_URL", hide_env_values = true)]
    database_url: Option<String>,

    /// How writes are locked; `off` shows what happens without [default: postgres with a database URL, else in-process].
    #[arg(long, value_enum)]
    lock: Option<LockKind>,

    /// The most connections that hold or wait for locks.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    pool_size: Option<u32>,

    /// On how many sessions the locks of many realms are held together; 0 for a transaction each.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    sessions: u32,

    /// How long a write waits for its lock, in seconds.
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    acquire_timeout: Option<Duration>,

    /// How long PostgreSQL keeps the lock of a replica that has gone silent, in seconds.
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    lease: Option<Duration>,

    /// Store a fencing token beside each card, and refuse a write with an older one.
    #[arg(long)]
    fencing: bool,

    /// Time between the read and the write of a handler, in milliseconds; it makes the race visible.
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    write_delay: u64,

    /// Say in each answer to a write how long its lock was waited for and held (Server-Timing).
    #[arg(long)]
    server_timing: bool,

    /// How many cards to keep in memory, kept right by what replicas tell each other; for all replicas or for none.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    cache_cards: usize,

    /// Do not tell other replicas of writes, which makes their caches wrong: for tests.
    #[arg(long, hide = true)]
    no_broadcast: bool,

    /// Let every change to a whole realm go wrong at one step, `STEP:error` or `STEP:crash`: for tests.
    #[arg(long, value_name = "STEP:HOW", hide = true)]
    fault: Option<Fault>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum LockKind {
    Postgres,
    InProcess,
    Off,
}

impl fmt::Display for LockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::InProcess => "in-process",
            Self::Off => "off",
        })
    }
}

/// Flags that fit together.
pub struct Config {
    pub listen: SocketAddr,
    pub base_url: Option<Url>,
    pub data_dir: Option<PathBuf>,
    pub lock: Lock,
    pub acquire_timeout: Option<Duration>,
    pub write_delay: Duration,
    pub server_timing: bool,
    pub fault: Fault,
    /// None: no cache.
    pub cache_cards: Option<NonZeroUsize>,
}

/// Which locks to take. It has no `Debug`: the URL may hold a password.
pub enum Lock {
    Postgres {
        url: String,
        pool_size: Option<u32>,
        sessions: u32,
        lease: Option<Duration>,
        fencing: bool,
        /// Whether other replicas are told of writes.
        broadcast: bool,
    },
    InProcess,
    Off,
}

impl Config {
    /// Reads the command line; prints what is wrong with it and exits if it must.
    pub fn from_command_line() -> Self {
        Self::try_from(Flags::parse()).unwrap_or_else(|error| error.exit())
    }

    /// Whether the store checks fencing tokens.
    pub fn fencing(&self) -> bool {
        matches!(self.lock, Lock::Postgres { fencing: true, .. })
    }
}

impl TryFrom<Flags> for Config {
    type Error = clap::Error;

    fn try_from(flags: Flags) -> Result<Self, clap::Error> {
        // An environment often sets what it does not mean to give.
        let url = flags.database_url.filter(|url| !url.is_empty());
        let kind = flags.lock.unwrap_or(match url {
            Some(_) => LockKind::Postgres,
            None => LockKind::InProcess,
        });
        if flags.fencing && kind != LockKind::Postgres {
            return Err(Flags::command().error(
                ErrorKind::ArgumentConflict,
                format!("--fencing needs --lock postgres, not {kind}: no other tokens grow across replicas"),
            ));
        }
        let lock = match (kind, url) {
            (LockKind::Off, _) => Lock::Off,
            (LockKind::InProcess, _) => Lock::InProcess,
            (LockKind::Postgres, Some(url)) => Lock::Postgres {
                url,
                pool_size: flags.pool_size,
                sessions: flags.sessions,
                lease: flags.lease,
                fencing: flags.fencing,
                broadcast: flags.cache_cards > 0 && !flags.no_broadcast,
            },
            (LockKind::Postgres, None) => {
                return Err(Flags::command().error(
                    ErrorKind::MissingRequiredArgument,
                    "--lock postgres needs a database: give --database-url or set DATABASE_URL",
                ));
            }
        };
        Ok(Self {
            listen: flags.listen,
            base_url: flags.base_url,
            data_dir: flags.data_dir,
            lock,
            acquire_timeout: flags.acquire_timeout,
            write_delay: Duration::from_millis(flags.write_delay),
            server_timing: flags.server_timing,
            fault: flags.fault.unwrap_or_default(),
            cache_cards: NonZeroUsize::new(flags.cache_cards),
        })
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres { fencing: true, .. } => {
                write!(f, "{} with fencing", LockKind::Postgres)
            }
            Self::Postgres { fencing: false, .. } => LockKind::Postgres.fmt(f),
            Self::InProcess => LockKind::InProcess.fmt(f),
            Self::Off => LockKind::Off.fmt(f),
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, such as 127.0.0.1:4201".to_owned())
}

fn origin(text: &str) -> Result<Url, String> {
    let form = "write an origin alone, such as https://realms.example.com";
    let url = Url::parse(text).map_err(|error| format!("{error}; {form}"))?;
    // Compared whole, because only a bare origin has nothing but a scheme, a host and a port.
    let bare = format!("{}/", url.origin().ascii_serialization());
    if !matches!(url.scheme(), "http" | "https") || url.as_str() != bare {
        return Err(form.to_owned());
    }
    Ok(url)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let form = "write seconds above 0, such as 2 or 0.5";
    let number: f64 = text.parse().map_err(|_| form.to_owned())?;
    match Duration::try_from_secs_f64(number) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(form.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Result<Config, String> {
        // With a value for the database flag, so that the environment of the tests does not count.
        let given = flags.iter().any(|flag| flag.starts_with("--database-url"));
        let database: &[&str] = if given { &[] } else { &["--database-url="] };
        let flags = ["realm_server"].iter().chain(database).chain(flags);
        Flags::try_parse_from(flags)
            .and_then(Config::try_from)
            .map_err(|error| error.to_string())
    }

    fn lock(flags: &[&str]) -> String {
        config(flags).map(|config| config.lock.to_string()).unwrap()
    }

    #[test]
    fn the_lock_follows_the_database_url() {
        let database = "--database-url=postgres://h/db";
        assert_eq!(lock(&[]), "in-process");
        assert_eq!(lock(&[database]), "postgres");
        assert_eq!(lock(&[database, "--lock=in-process"]), "in-process");
        assert_eq!(lock(&[database, "--lock=off"]), "off");
        assert_eq!(lock(&[database, "--fencing"]), "postgres with fencing");
    }

    #[test]
    fn sessions_are_off_unless_asked_for() {
        let sessions = |flags: &[&str]| {
            let flags = [&["--database-url=postgres://h/db"], flags].concat();
            match config(&flags).map(|config| config.lock) {
                Ok(Lock::Postgres { sessions, .. }) => sessions,
                _ => panic!("locks in PostgreSQL are wanted"),
            }
        };
        assert_eq!(sessions(&[]), 0);
        assert_eq!(sessions(&["--sessions=4"]), 4);
    }

    #[test]
    fn the_defaults_are_those_of_the_manual() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:4201");
        assert_eq!(config.write_delay, Duration::ZERO);
        assert!(config.base_url.is_none() && config.data_dir.is_none());
        assert!(config.acquire_timeout.is_none() && !config.fencing());
    }

    #[test]
    fn a_bad_flag_is_refused_with_its_value_and_a_remedy() {
        for (flag, value, remedy) in [
            ("--listen", "localhost", "127.0.0.1:4201"),
            ("--listen", "127.0.0.1:99999", "127.0.0.1:4201"),
            ("--base-url", "realms", "https://"),
            ("--base-url", "ftp://h", "https://"),
            ("--base-url", "http://h/path", "https://"),
            ("--base-url", "http://u:p@h", "https://"),
            ("--base-url", "http://h/?q", "https://"),
            ("--lock", "redis", "in-process"),
            ("--pool-size", "0", "1.."),
            ("--pool-size", "many", "--pool-size"),
            ("--sessions", "-1", "--sessions"),
            ("--sessions", "some", "--sessions"),
            ("--cache-cards", "-1", "--cache-cards"),
            ("--fault", "swapped", "STEP:error"),
            ("--fault", "nowhere:crash", "swapped"),
            ("--acquire-timeout", "0", "above 0"),
            ("--acquire-timeout", "1e-12", "above 0"),
            ("--lease", "-1", "above 0"),
            ("--write-delay", "-1", "--write-delay"),
            ("--lease", "NaN", "above 0"),
            ("--lease", "inf", "above 0"),
            ("--write-delay", "0.5", "--write-delay"),
        ] {
            let error = config(&[flag, value]).err().unwrap();
            assert!(error.contains(&format!("'{value}'")), "{error}");
            assert!(error.contains(flag) && error.contains(remedy), "{error}");
        }
    }

    #[test]
    fn seconds_may_have_fractions() {
        let config = config(&["--acquire-timeout=0.25"]).unwrap();
        assert_eq!(config.acquire_timeout, Some(Duration::from_millis(250)));
    }

    #[test]
    fn flags_that_do_not_fit_together_are_refused() {
        let error = config(&["--lock=postgres"]).err().unwrap();
        assert!(error.contains("DATABASE_URL"), "{error}");
        for flags in [
            vec!["--fencing"],
            vec!["--fencing", "--lock=off", "--database-url=postgres://h"],
        ] {
            let error = config(&flags).err().unwrap();
            assert!(error.contains("--lock postgres"), "{error}");
        }
    }

    #[test]
    fn the_command_is_consistent() {
        Flags::command().debug_assert();
    }
}
