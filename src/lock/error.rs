use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::config::ConfigError;
use crate::realm::claim::Claim;
use crate::realm::key::LockKey;
use crate::realm::url::RealmUrl;

/// Why PostgreSQL cannot be used for locks.
///
/// Every message names the server and the remedy, and none holds a password. `Debug` shows the same
/// message, because that is what `fn main() -> Result<(), ConnectError>` prints.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// PostgreSQL cannot be reached, or refuses this client.
    #[error("cannot connect to PostgreSQL at {server}: {}{}", chain(source), remedy(source.as_ref()))]
    Connect {
        /// Host, port and database.
        server: Arc<str>,
        /// What the network or the driver reported.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// What [`password_from`](crate::PostgresBuilder::password_from) was given has no password.
    #[error(
        "there is no password for PostgreSQL at {server}, as `password_from` fails: {}",
        chain(source)
    )]
    Password {
        /// Host, port and database.
        server: Arc<str>,
        /// What the closure returned.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Several addresses were tried, and none has a primary that can be used.
    #[error("no PostgreSQL can be used: {}", listed(errors))]
    NoServer {
        /// Why, of each in the order in which they were tried.
        errors: Arc<[ConnectError]>,
    },
    /// The server and this client do not agree on encryption: one has no TLS where the other wants
    /// it, or does not accept the other's certificate.
    #[error("cannot connect to PostgreSQL at {server}: {problem}")]
    Tls {
        /// Host, port and database.
        server: Arc<str>,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// PostgreSQL did not answer a connection attempt.
    #[error(
        "PostgreSQL at {server} did not answer within {after:?}; check the address and the network"
    )]
    ConnectTimeout {
        /// Host, port and database.
        server: Arc<str>,
        /// How long it was given.
        after: Duration,
    },
    /// The server is a standby. Its locks exclude nobody on the primary.
    #[error(
        "PostgreSQL at {server} is a standby, whose locks exclude nobody; connect to the primary"
    )]
    Standby {
        /// Host, port and database.
        server: Arc<str>,
    },
    /// The server grants advisory locks but holds none, as `CockroachDB` does.
    #[error(
        "the server at {server} grants advisory locks that do nothing; connect to a real PostgreSQL"
    )]
    NoAdvisoryLocks {
        /// Host, port and database.
        server: Arc<str>,
    },
    /// Sessions or [`RealmWrites`](crate::RealmWrites) were asked for, and a pooler answers: it
    /// announces another process than the one that works for it.
    #[error(
        "sessions and listeners need PostgreSQL itself: at {server} a pooler answers, which may spread one session over several; connect directly, or leave sessions and RealmWrites off"
    )]
    Pooler {
        /// Host, port and database.
        server: Arc<str>,
    },
    /// Sessions were asked for, and the server cannot end one that has gone silent: it is older
    /// than PostgreSQL 14.
    #[error(
        "sessions need PostgreSQL 14 or later, for its idle_session_timeout: the server at {server} has none; upgrade it, or leave sessions off"
    )]
    NoSessionTimeout {
        /// Host, port and database.
        server: Arc<str>,
    },
}

impl ConnectError {
    /// Whether there is no password, or a wrong one: another server would refuse it too.
    pub(super) fn is_refused_login(&self) -> bool {
        match self {
            Self::Password { .. } => true,
            Self::Connect { source, .. } => find::<tokio_postgres::Error>(source.as_ref())
                .is_some_and(|error| error.code() == Some(&SqlState::INVALID_PASSWORD)),
            _ => false,
        }
    }

    /// Why none of the addresses that were tried can be used.
    pub(super) fn of(mut errors: Vec<Self>) -> Self {
        match errors.pop() {
            Some(only) if errors.is_empty() => only,
            last => {
                errors.extend(last);
                let errors = errors.into();
                Self::NoServer { errors }
            }
        }
    }
}

impl fmt::Debug for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a lock was not granted, or did not hold to the end.
///
/// Every message names the thing, the value and the remedy, and none holds a password. `Debug`
/// shows the same message, because that is what `fn main() -> Result<(), LockError>` prints.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// An option has a value that cannot be used, or that the outer hold cannot give.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// PostgreSQL cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A text is not a [`FencingToken`](crate::FencingToken).
    #[error("`{token}` is not a fencing token: it has up to 48 hexadecimal digits")]
    InvalidFencingToken {
        /// The text as given, with control characters escaped.
        token: String,
    },
    /// All lock connections of this process were busy with other realms.
    #[error(
        "all {pool_size} lock connections were busy for {after:?}: keep slow bodies out of the \
         lock (RealmBodyLockLayer::read_all, or with_write_lock only for the last step), hold \
         locks on sessions, or raise pool_size above the number of realms that one process writes \
         at once"
    )]
    PoolExhausted {
        /// The pool's size.
        pool_size: u32,
        /// How long a connection was waited for.
        after: Duration,
    },
    /// PostgreSQL refused or broke off the lock statement.
    #[error("PostgreSQL failed while it locked {claim}: {}", chain(source))]
    Database {
        /// What was to be locked.
        claim: Claim,
        /// What the driver said.
        source: Arc<tokio_postgres::Error>,
    },
    /// The application's own keys have none for a realm:
    /// [`realm_keys`](crate::PostgresBuilder::realm_keys) failed.
    #[error("no lock key for {realm}, as `realm_keys` fails: {}", chain(source))]
    RealmKey {
        /// The realm.
        realm: RealmUrl,
        /// What the closure returned.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The application's own keys have two for one realm, which would exclude nobody.
    #[error(
        "`realm_keys` gives {realm} the lock key {}, while a claim on it has {}: give each realm \
         one key", keys[1], keys[0]
    )]
    TwoKeys {
        /// The realm.
        realm: RealmUrl,
        /// The key of the claims that are held or wait, and the other one.
        keys: [LockKey; 2],
    },
    /// The acquire timeout passed before the lock was granted.
    #[error("no lock on {claim} within {after:?}: another write holds it; try again later")]
    Timeout {
        /// What was to be locked.
        claim: Claim,
        /// The acquire timeout.
        after: Duration,
    },
    /// Another write holds the claim, or waits for it, and the lock was only tried.
    #[error(
        "another write holds {claim} or waits for it, and this one does not wait; try again later"
    )]
    Taken {
        /// What was to be locked.
        claim: Claim,
    },
    /// As many requests as allowed already wait for a key of this claim in this process.
    #[error("{waiters} requests already wait for {claim}; try again later")]
    QueueFull {
        /// What was to be locked.
        claim: Claim,
        /// The bound on its waiters.
        waiters: usize,
    },
    /// The lock was lost while the work ran, or its release was not confirmed: another writer may
    /// have been inside.
    #[error("the lock on {claim} was lost during the call; read the realm before you write again")]
    Lost {
        /// What was locked.
        claim: Claim,
    },
    /// The handle of a hold was used after the hold had ended.
    #[error("the hold of {claim} has ended; do the work that needs the lock before that")]
    Ended {
        /// What was locked.
        claim: Claim,
    },
    /// The work took longer than `max_hold` and was stopped.
    #[error("the call held {claim} for {max_hold:?}, the longest time allowed, and was stopped")]
    Expired {
        /// What was locked.
        claim: Claim,
        /// The bound that passed.
        max_hold: Duration,
    },
    /// A transaction that the work shared did not commit: nothing that it wrote stands.
    #[error("the transaction that locked {claim} could not commit: {problem}")]
    CommitFailed {
        /// What was locked.
        claim: Claim,
        /// What PostgreSQL said, or what the handler did.
        problem: String,
    },
    /// A [`LockTransaction`](crate::LockTransaction) was used after its hold.
    #[error("the transaction that locked {claim} has ended; use it only while the lock is held")]
    TransactionEnded {
        /// What was locked.
        claim: Claim,
    },
    /// A lock was asked for by work that already holds another one, and not granted.
    #[error("{source} (asked for while holding {held})")]
    Nested {
        /// What the work holds.
        held: Claim,
        /// Why the other one was not granted.
        source: Box<LockError>,
    },
    /// Work asked for more of what it holds in part: it would wait for itself.
    #[error("{claim} cannot be locked by work that holds {held}: claim all that it needs at once")]
    OwnLock {
        /// What was to be locked.
        claim: Claim,
        /// What the work holds.
        held: Claim,
    },
    /// The process is shutting down and grants no more locks.
    #[error("this replica is shutting down; send the request to another one")]
    ShuttingDown,
    /// Some holds went on past the grace period of a shutdown.
    #[error("{holds} holds did not end within {grace:?}; their locks end with the process")]
    ShutdownIncomplete {
        /// How many are still open.
        holds: usize,
        /// The grace period.
        grace: Duration,
    },
}

impl fmt::Debug for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an application can do about a [`LockError`]: see [`LockError::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockErrorKind {
    /// The lock was not granted within the acquire timeout. Trying again may help.
    Timeout,
    /// The lock was only tried, and another write holds it or waits for it.
    Taken,
    /// As many callers as allowed wait for the lock already. Trying again may help.
    QueueFull,
    /// PostgreSQL cannot be used or has no connection to spare, or a realm's own key is not to be
    /// had. Nothing was written.
    Unavailable,
    /// The process is shutting down.
    ShuttingDown,
    /// The lock was lost during the call. The write may or may not stand.
    Lost,
    /// The call took longer than `max_hold`.
    Expired,
    /// A shared transaction did not commit. Its writes do not stand.
    CommitFailed,
    /// The handle of a hold, or of its transaction, was used after the hold.
    Ended,
    /// The call itself is wrong: an option, a text, a second key of a realm, or a claim that would
    /// wait for itself.
    Invalid,
}

impl LockError {
    /// What kind of error it is, for code that decides what to do next; of a
    /// [`LockError::Nested`] that of the [innermost](Self::innermost).
    #[must_use]
    pub fn kind(&self) -> LockErrorKind {
        match self.innermost() {
            Self::Timeout { .. } => LockErrorKind::Timeout,
            Self::Taken { .. } => LockErrorKind::Taken,
            Self::QueueFull { .. } => LockErrorKind::QueueFull,
            Self::Connect(_)
            | Self::PoolExhausted { .. }
            | Self::Database { .. }
            | Self::RealmKey { .. } => LockErrorKind::Unavailable,
            Self::ShuttingDown | Self::ShutdownIncomplete { .. } => LockErrorKind::ShuttingDown,
            Self::Lost { .. } => LockErrorKind::Lost,
            Self::Expired { .. } => LockErrorKind::Expired,
            Self::CommitFailed { .. } => LockErrorKind::CommitFailed,
            Self::Ended { .. } | Self::TransactionEnded { .. } => LockErrorKind::Ended,
            // `Nested` is never the innermost.
            Self::Config(_)
            | Self::InvalidFencingToken { .. }
            | Self::OwnLock { .. }
            | Self::TwoKeys { .. }
            | Self::Nested { .. } => LockErrorKind::Invalid,
        }
    }

    /// The error itself, or the one within [`LockError::Nested`].
    #[must_use]
    pub fn innermost(&self) -> &Self {
        match self {
            Self::Nested { source, .. } => source.innermost(),
            error => error,
        }
    }

    /// What was to be locked, where that is known.
    #[must_use]
    pub fn claim(&self) -> Option<&Claim> {
        match self.innermost() {
            Self::Database { claim, .. }
            | Self::Timeout { claim, .. }
            | Self::Taken { claim }
            | Self::QueueFull { claim, .. }
            | Self::Lost { claim }
            | Self::Ended { claim }
            | Self::Expired { claim, .. }
            | Self::CommitFailed { claim, .. }
            | Self::TransactionEnded { claim }
            | Self::OwnLock { claim, .. } => Some(claim),
            _ => None,
        }
    }
}

/// An error and its causes on one line; the driver's own text names only the outermost.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}

/// The first error of a type among an error and its causes.
pub(crate) fn find<'e, E: std::error::Error + 'static>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e E> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        // What is inside an `io::Error` is not among its causes.
        let inside = error.downcast_ref::<io::Error>();
        let inside = inside.and_then(|error| error.get_ref()?.downcast_ref());
        error.downcast_ref().or(inside)
    })
}

fn listed(errors: &[ConnectError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join(" | ")
}

/// What to do about a failed connection where the network's own text does not say it.
fn remedy(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let network = find::<io::Error>(error).map(io::Error::kind);
    match network {
        Some(io::ErrorKind::ConnectionRefused) => {
            return "; nothing listens there: start PostgreSQL, or correct the address";
        }
        Some(io::ErrorKind::NotFound) => {
            return "; no server has its socket there: start PostgreSQL, or name its host in the \
                    database URL";
        }
        _ => {}
    }
    let code = find::<tokio_postgres::Error>(error);
    match code.and_then(tokio_postgres::Error::code) {
        Some(code) if *code == SqlState::INVALID_PASSWORD => {
            "; correct the user or the password of the database URL, or what `password_from` gives"
        }
        Some(code) if *code == SqlState::INVALID_CATALOG_NAME => {
            "; create the database, or correct its name in the URL"
        }
        Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => {
            "; raise max_connections, lower pool_size, or use a pooler"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_main_prints_of_an_error_is_its_message_with_the_remedy() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let error = ConnectError::Connect {
            server: "localhost:5432/realms".into(),
            source: Arc::new(refused),
        };
        let error = LockError::from(error);
        // As `fn main() -> Result<(), LockError>` does, and one that boxes its errors.
        let printed = format!("Error: {error:?}");
        assert_eq!(printed, format!("Error: {error}"));
        assert!(printed.contains("connection refused"), "{printed}");
        assert!(
            printed.ends_with("start PostgreSQL, or correct the address"),
            "{printed}"
        );
        let boxed: Box<dyn std::error::Error> = error.into();
        assert_eq!(format!("Error: {boxed:?}"), printed);
    }
}
