use std::fmt;
use std::path::PathBuf;

/// A value in the configuration that cannot be used: an option of a builder, the database URL, or a
/// file that it names.
///
/// Every message names the thing, the value and the remedy, and none holds a password. `Debug`
/// shows the same message, because that is what `fn main() -> Result<(), ConfigError>` prints.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// An option has a value that cannot be used.
    #[error("the option {option} cannot be {value}: {remedy}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// The value as given.
        value: String,
        /// What would be right.
        remedy: &'static str,
    },
    /// The database URL, or the driver's configuration in its place, cannot be used. It is not
    /// shown: it may hold a password.
    #[error(
        "the database URL cannot be read: {problem}; write `postgres://user:password@host:5432/database`"
    )]
    InvalidDatabaseUrl {
        /// What is wrong with it.
        problem: String,
    },
    /// A file of certificates or keys that the database URL names cannot be used.
    #[error("{option}={} cannot be used: {problem}", path.display())]
    TlsFile {
        /// The option of the URL.
        option: &'static str,
        /// The file as given; `system` for what the system trusts.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl ConfigError {
    /// Refuses the value of an option.
    pub(crate) fn option(
        option: &'static str,
        value: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self::InvalidOption {
            option,
            value: value.into(),
            remedy,
        }
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
