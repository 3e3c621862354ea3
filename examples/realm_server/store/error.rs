//! Why the store did not read or write.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tower_realm_lock::{FencingToken, LockError};

use super::Step;
use crate::card::BadDocument;
use crate::path::{CardPath, RealmPath};

/// What kept the store from a read or a write. Nothing was written.
#[derive(Debug)]
pub enum StoreError {
    /// The operation with this number changes a card that is not there.
    Missing {
        operation: usize,
        card: CardPath,
    },
    /// The operation with this number adds a card that is there.
    Exists {
        operation: usize,
        card: CardPath,
    },
    /// A card was not found, and is there when it is to be added.
    Overlooked {
        file: PathBuf,
    },
    /// The card is not, or no longer, what the client wants it to be.
    Precondition {
        card: CardPath,
    },
    /// The write's lock did not last to it.
    Lock(LockError),
    /// A later hold of the realm has written the card.
    StaleFencingToken {
        offered: FencingToken,
        stored: FencingToken,
    },
    /// Fencing is on, and the write came without a token.
    NoFencingToken,
    /// The file with the fencing token of a card holds none.
    DamagedFence {
        file: PathBuf,
    },
    /// The file of a card holds none.
    Damaged {
        file: PathBuf,
        source: BadDocument,
    },
    /// The file system has no place for a card of this name.
    Unusable {
        file: PathBuf,
        source: io::Error,
    },
    Io {
        file: PathBuf,
        source: io::Error,
    },
    /// There is a realm where one shall be made.
    RealmExists(RealmPath),
    RealmMissing(RealmPath),
    /// The realm was created, and so cannot be unpublished.
    NotPublished(RealmPath),
    /// A change to the realm is half done, and must be settled before anything is written.
    Unsettled(RealmPath),
    /// Only the rows of a database tell whether a change to the realm stands, and there is none.
    RowsNeeded(RealmPath),
    /// The journal of a change to a realm cannot be read.
    DamagedJournal {
        file: PathBuf,
    },
    /// It was asked for.
    Injected {
        step: Step,
    },
}

impl StoreError {
    /// Tells a name that cannot be a card's from a file system that does not work.
    pub fn io(file: &Path, source: io::Error) -> Self {
        let file = file.to_owned();
        match source.kind() {
            ErrorKind::InvalidFilename | ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
                Self::Unusable { file, source }
            }
            _ => Self::Io { file, source },
        }
    }

    /// The number of the operation that cannot be applied, where it is one operation's fault.
    pub fn operation(&self) -> Option<usize> {
        match self {
            Self::Missing { operation, .. } | Self::Exists { operation, .. } => Some(*operation),
            _ => None,
        }
    }
}

impl From<LockError> for StoreError {
    fn from(error: LockError) -> Self {
        Self::Lock(error)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { card, .. } => write!(f, "the card '{card}' does not exist"),
            Self::Exists { card, .. } => write!(f, "the card '{card}' exists already"),
            Self::Overlooked { file } => {
                write!(f, "{} is there, and was not found before", file.display())
            }
            Self::Precondition { card } => {
                write!(
                    f,
                    "the card '{card}' is not what the request's precondition wants"
                )
            }
            Self::Lock(error) => error.fmt(f),
            Self::StaleFencingToken { offered, stored } => {
                write!(
                    f,
                    "fencing token {offered} is older than the stored {stored}"
                )
            }
            Self::NoFencingToken => f.write_str("a write came without a fencing token"),
            Self::DamagedFence { file } => {
                write!(f, "{} holds no fencing token", file.display())
            }
            Self::Damaged { file, .. } => write!(f, "{} holds no card", file.display()),
            Self::Unusable { file, .. } => write!(f, "{} cannot be a card", file.display()),
            Self::Io { file, .. } => write!(f, "{} cannot be read or written", file.display()),
            Self::RealmExists(realm) => write!(f, "the realm '{realm}' exists already"),
            Self::RealmMissing(realm) => write!(f, "the realm '{realm}' does not exist"),
            Self::NotPublished(realm) => write!(f, "the realm '{realm}' was not published"),
            Self::Unsettled(realm) => write!(f, "a change to the realm '{realm}' is half done"),
            Self::RowsNeeded(realm) => write!(
                f,
                "whether a change to the realm '{realm}' stands is known to its database alone: start with --database-url"
            ),
            Self::DamagedJournal { file } => write!(f, "{} holds no journal", file.display()),
            Self::Injected { step } => write!(f, "--fault wants an error at '{step}'"),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unusable { source, .. } | Self::Io { source, .. } => Some(source),
            Self::Damaged { source, .. } => Some(source),
            _ => None,
        }
    }
}
