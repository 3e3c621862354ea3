//! The flags and the file, and what they mean together.
//!
//! A flag counts before the environment (`DATABASE_URL`), that before the file, and that before the default. What the file turns
//! on no flag turns off.

mod file;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use serde::Deserialize;
use tower_realm_lock::{Limits, LockRules, PostgresBuilder, RealmLocks};
use url::Url;

use crate::store::Fault;
use file::File;

/// Where to listen, unless a flag or the file says otherwise.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4201);

/// Serves realms of JSON cards. Its writes are safe on many replicas, because a layer locks the realm around each.
#[derive(Parser)]
#[command(name = "realm_server", version)]
struct Flags {
    /// A TOML file with what the flags say, and rules and limits; flags and the environment count before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:4201].
    #[arg(long, value_name = "ADDR", value_parser = address)]
    listen: Option<SocketAddr>,

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

    /// On how many sessions the locks of many realms are held together; 0 for a transaction each [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    sessions: Option<u32>,

    /// How long a write waits for its lock, in seconds.
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    acquire_timeout: Option<Duration>,

    /// How long PostgreSQL keeps the lock of a replica that has gone silent, in seconds.
    #[arg(long, value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    lease: Option<Duration>,

    /// Store a fencing token beside each card, and refuse a write with an older one.
    #[arg(long)]
    fencing: bool,

    /// Time between the read and the write of a handler, in milliseconds; it makes the race visible [default: 0].
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    write_delay: Option<u64>,

    /// Say in each answer to a write how long its lock was waited for and held (Server-Timing).
    #[arg(long)]
    server_timing: bool,

    /// How many cards to keep in memory, kept right by what replicas tell each other; for all replicas or for none [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cache_cards: Option<usize>,

    /// Do not tell other replicas of writes, which makes their caches wrong: for tests.
    #[arg(long, hide = true)]
    no_broadcast: bool,

    /// Let every change to a whole realm go wrong at one step, `STEP:error` or `STEP:crash`: for tests.
    #[arg(long, value_name = "STEP:HOW", hide = true)]
    fault: Option<Fault>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LockKind {
    Postgres,
    InProcess,
    Off,
}

impl LockKind {
    fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::InProcess => "in-process",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for LockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Flags and a file that fit together.
pub struct Config {
    pub listen: SocketAddr,
    pub base_url: Option<Url>,
    pub data_dir: Option<PathBuf>,
    pub lock: Lock,
    /// The file's, for requests.
    pub limits: Limits,
    /// The flag's, for everything.
    pub acquire_timeout: Option<Duration>,
    /// The file's, for the requests of cards.
    pub rules: LockRules,
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
        /// With this URL, and all options.
        builder: Box<PostgresBuilder>,
        fencing: bool,
        /// Whether this replica must be told of other replicas' writes.
        broadcast: bool,
    },
    InProcess {
        fencing: bool,
    },
    Off,
}

impl Config {
    /// Reads the command line and the file that it names; prints what is wrong with them and exits if it must.
    pub fn from_command_line() -> Self {
        Self::try_from(Flags::parse()).unwrap_or_else(|error| error.exit())
    }

    /// Whether the store checks fencing tokens.
    pub fn fencing(&self) -> bool {
        match self.lock {
            Lock::Postgres { fencing, .. } | Lock::InProcess { fencing } => fencing,
            Lock::Off => false,
        }
    }
}

impl TryFrom<Flags> for Config {
    type Error = clap::Error;

    fn try_from(flags: Flags) -> Result<Self, clap::Error> {
        let refuse = |kind, problem| Flags::command().error(kind, problem);
        let file = match &flags.config {
            Some(path) => {
                File::read(path).map_err(|problem| refuse(ErrorKind::ValueValidation, problem))?
            }
            None => File::default(),
        };
        let cache_cards = flags.cache_cards.or(file.cache_cards).unwrap_or(0);
        // An environment often sets what it does not mean to give.
        let given = flags.database_url.filter(|url| !url.is_empty());
        let url = given.or(file.database_url);
        let kind = flags.lock.or(file.lock).unwrap_or(
            // Options of PostgreSQL without a database are an error, not locks in process.
            if url.is_some() || file.postgres.is_some() {
                LockKind::Postgres
            } else {
                LockKind::InProcess
            },
        );
        if flags.fencing && kind == LockKind::Off {
            return Err(refuse(
                ErrorKind::ArgumentConflict,
                "--fencing needs --lock postgres or in-process, not off: without a lock there are no \
                 tokens"
                    .to_owned(),
            ));
        }
        let lock = match (kind, url) {
            (LockKind::Off, _) => Lock::Off,
            (LockKind::InProcess, _) => Lock::InProcess {
                fencing: flags.fencing,
            },
            (LockKind::Postgres, Some(url)) => {
                let builder = file
                    .postgres
                    .unwrap_or_else(|| RealmLocks::postgres_builder(&url));
                let fencing = flags.fencing || file.fencing;
                let broadcast = cache_cards > 0 && !flags.no_broadcast;
                let mut builder = builder.url(&url).fencing(fencing);
                if broadcast {
                    builder = builder.broadcast(true);
                }
                if let Some(pool_size) = flags.pool_size {
                    builder = builder.pool_size(pool_size);
                }
                if let Some(sessions) = flags.sessions {
                    builder = builder.sessions(sessions);
                }
                if let Some(lease) = flags.lease {
                    builder = builder.lease(lease);
                }
                Lock::Postgres {
                    url,
                    builder: Box::new(builder),
                    fencing,
                    broadcast,
                }
            }
            (LockKind::Postgres, None) => {
                return Err(refuse(
                    ErrorKind::MissingRequiredArgument,
                    "--lock postgres needs a database: give --database-url, set DATABASE_URL, or write `url` in [postgres] of the file"
                        .to_owned(),
                ));
            }
        };
        let write_delay = flags.write_delay.map(Duration::from_millis);
        Ok(Self {
            listen: flags.listen.or(file.listen).unwrap_or(LISTEN),
            base_url: flags.base_url.or(file.base_url),
            data_dir: flags.data_dir.or(file.data_dir),
            lock,
            limits: file.limits,
            acquire_timeout: flags.acquire_timeout,
            rules: file.rules,
            write_delay: write_delay.or(file.write_delay).unwrap_or_default(),
            server_timing: flags.server_timing || file.server_timing,
            fault: flags.fault.unwrap_or_default(),
            cache_cards: NonZeroUsize::new(cache_cards),
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
            Self::InProcess { fencing: true } => write!(f, "{} with fencing", LockKind::InProcess),
            Self::InProcess { fencing: false } => LockKind::InProcess.fmt(f),
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
mod tests;
