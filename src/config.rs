use std::fmt;
use std::path::PathBuf;

/// A value in the configuration that cannot be used, such as a path template, a rule or the option
/// of a builder.
///
/// Every message names the thing, the value and the remedy, and none holds a password. Texts of the
/// configuration stand in fields and messages with control characters escaped, and cut after 500
/// characters. `Debug` shows the same message, because that is what
/// `fn main() -> Result<(), ConfigError>` prints.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A base URL or an origin is not one.
    #[error("`{url}` is not a realm URL: {problem}")]
    InvalidUrl {
        /// The text as given.
        url: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A realm that the configuration names cannot be one, for another reason than its URL.
    #[error("{problem}")]
    InvalidRealm {
        /// What is wrong and what would be right: the message of the
        /// [`RealmError`](crate::RealmError).
        problem: String,
    },
    /// A path template or a route pattern cannot be read.
    #[error("`{template}` is not a path template: {problem}")]
    InvalidTemplate {
        /// The template as given.
        template: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A rule, or a route of a resolver, can never decide anything.
    #[error("the rule `{rule}` cannot be used: {problem}")]
    InvalidRule {
        /// The rule: the method that makes it, its HTTP methods and its pattern.
        rule: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Another realm is mounted at the same path.
    #[error(
        "`{url}` cannot be mounted: `{mounted}` has the same path, and requests are told apart by that"
    )]
    MountTaken {
        /// The realm that was to be mounted.
        url: String,
        /// The realm that is.
        mounted: String,
    },
    /// A text is not a JSON pointer (RFC 6901).
    #[error("`{pointer}` is not a JSON pointer: {problem}")]
    InvalidPointer {
        /// The text as given.
        pointer: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A text is neither an IP address, a network nor `unix`.
    #[error(
        "`{value}` is not a proxy's address: write `10.0.0.7`, `10.0.0.0/8`, `fd00::/8` or `unix`"
    )]
    InvalidProxy {
        /// The text as given.
        value: String,
    },
    /// A route's scope reads the body of a request, and the layer reads none.
    #[error(
        "the scope of `{route}` needs the body of a request, and this layer reads none: call `read_bodies` before `rules`"
    )]
    BodyNeeded {
        /// Method and pattern of the route.
        route: String,
    },
    /// A status for the rejections of a route is not an error status.
    #[error(
        "`{status}` cannot answer a request that does not get its lock: write a status from 400 to 599, such as 409, 423 or 503"
    )]
    InvalidStatus {
        /// The status as given.
        status: String,
    },
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
    #[error("{option}={} cannot be used: {problem}", path.to_string_lossy().escape_debug())]
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
            value: value.into().escape_debug().to_string(),
            remedy,
        }
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_main_prints_of_an_error_is_its_message_with_the_remedy() {
        let error = ConfigError::InvalidProxy {
            value: "10.0.0".to_owned(),
        };
        let printed = format!("Error: {error:?}");
        assert_eq!(
            printed,
            "Error: `10.0.0` is not a proxy's address: write `10.0.0.7`, `10.0.0.0/8`, `fd00::/8` or `unix`"
        );
    }
}
