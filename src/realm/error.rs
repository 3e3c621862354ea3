use std::fmt;

use super::path::PathProblem;
use crate::config::ConfigError;

/// Why no realm URL could be made: of a text or of a request.
///
/// Every message names the offending value and what would be right. Texts of clients stand here, in
/// fields and messages, with all characters escaped that do more than be read, and cut after 500
/// characters.
///
/// `Debug` shows the same message, because that is what `fn main() -> Result<(), RealmError>`
/// prints.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RealmError {
    /// A string that should be a realm URL or a base URL is not one.
    #[error("`{url}` is not a realm URL: {problem}")]
    InvalidUrl {
        /// The string as given.
        url: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The path of a request is too short for the template, or differs from its literal segments.
    #[error("the path `{path}` names no realm; a realm's paths begin with `{template}`")]
    NoRealm {
        /// The path of the request.
        path: String,
        /// The pattern that it was compared with, or several.
        template: String,
    },
    /// The router has matched a route that fits a pattern of realms with other names for its
    /// parameters.
    #[error(
        "the route `{route}` fits the realm pattern `{template}`, and has other parameters: name \
         them as the pattern does, or exempt the route"
    )]
    RouteParameters {
        /// The route as the router has it.
        route: String,
        /// The patterns of realms.
        template: String,
    },
    /// The path of a request could be read as more than one path.
    #[error("the path `{path}` is ambiguous: {problem}")]
    AmbiguousPath {
        /// The path of the request.
        path: String,
        /// What makes it ambiguous.
        problem: PathProblem,
    },
    /// No mounted realm is a beginning of the path of a request.
    #[error("the path `{path}` is in no mounted realm")]
    NotMounted {
        /// The path of the request.
        path: String,
    },
    /// The body of a request cannot be read as JSON.
    #[error("the body of the request names no realm: {problem}")]
    InvalidBody {
        /// What is wrong with it.
        problem: String,
    },
    /// A pointer into the body of a request leads to no realm URL.
    #[error("`{pointer}` in the body of the request names no realm: {problem}")]
    BodyPointer {
        /// The JSON pointer.
        pointer: String,
        /// What is there instead.
        problem: String,
    },
    /// The origin of a request cannot be told, or is not one of those that are allowed.
    #[error("the origin of the request cannot be told: {problem}")]
    Origin {
        /// What is wrong.
        problem: String,
    },
    /// The target of a MOVE or COPY cannot be determined from its header `Destination`.
    #[error("the destination of the request cannot be told: {problem}")]
    Destination {
        /// What is wrong with the header and what would be right.
        problem: String,
    },
    /// A request can be read as one with another method, for another realm.
    #[error(
        "the method of the request is overridden in a way that leaves open which realm it is for"
    )]
    AmbiguousMethod,
    /// A resolver of the application's own found no realm, or something that can name none.
    #[error("the request names no realm: {problem}")]
    Unresolved {
        /// Why, for the client.
        problem: String,
    },
    /// The place where a request would name its realm is empty: it has no such header, extension or
    /// parameter.
    #[error("the request names no realm: {problem}")]
    Missing {
        /// What is missing, and the remedy.
        problem: String,
    },
    /// A text cannot be one segment of a realm URL.
    #[error("`{segment}` cannot be a segment of a realm URL: {problem}")]
    InvalidSegment {
        /// The text as given.
        segment: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A name cannot be that of a space of lock keys.
    #[error("`{space}` cannot be the name of a space of lock keys: {problem}")]
    InvalidSpace {
        /// The name as given.
        space: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A resolver of the application's own could not work: a fault of the server's, not of the
    /// request.
    #[error("the realm of the request cannot be looked up: {problem}")]
    Unavailable {
        /// Why, for the log. The client does not see it.
        problem: String,
    },
}

/// As many characters of a client's text stand in a message.
const LONGEST_SHOWN: usize = 500;

/// A client's text as messages show it: with all escaped that does more than be read, and cut if it
/// is long.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("{}...", text[..end].escape_debug()),
        None => text.escape_debug().to_string(),
    }
}

impl fmt::Debug for RealmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// For configuration that names realms by their URLs.
impl From<RealmError> for ConfigError {
    fn from(error: RealmError) -> Self {
        match error {
            RealmError::InvalidUrl { url, problem } => Self::InvalidUrl { url, problem },
            error => Self::InvalidRealm {
                problem: error.to_string(),
            },
        }
    }
}

impl RealmError {
    /// A request that names no realm, for a resolver of the application's own. Its client gets 400
    /// and reads `problem`.
    #[must_use]
    pub fn unresolved(problem: impl fmt::Display) -> Self {
        let problem = shown(&problem.to_string());
        Self::Unresolved { problem }
    }

    /// A request without anything in the place where it would name its realm, for a resolver of the
    /// application's own. Its client gets 400 and reads `problem`.
    ///
    /// Use [`unresolved`](Self::unresolved) for what is there and names no realm: an empty or
    /// malformed text must not count as a request that is for no realm.
    #[must_use]
    pub fn missing(problem: impl fmt::Display) -> Self {
        let problem = shown(&problem.to_string());
        Self::Missing { problem }
    }

    /// Whether a request has nothing that could name a realm, in contrast to something that is
    /// ambiguous, malformed or forbidden.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(
            self,
            Self::NoRealm { .. } | Self::NotMounted { .. } | Self::Missing { .. }
        )
    }

    /// The same as an error of a request that does have a realm.
    pub(in crate::realm) fn of_found_realm(self) -> Self {
        match self {
            Self::Missing { problem } => Self::Unresolved { problem },
            error if error.is_absent() => Self::Unresolved {
                problem: error.to_string(),
            },
            error => error,
        }
    }

    /// A look-up that failed, for a resolver of the application's own. The client gets 503;
    /// `problem` goes to the log.
    #[must_use]
    pub fn unavailable(problem: impl fmt::Display) -> Self {
        let problem = shown(&problem.to_string());
        Self::Unavailable { problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realm::url::RealmUrl;

    #[test]
    fn what_main_prints_of_an_error_is_its_message_with_the_remedy() {
        let error = RealmError::NotMounted {
            path: "/luke/".to_owned(),
        };
        let printed = format!("Error: {error:?}");
        assert_eq!(printed, "Error: the path `/luke/` is in no mounted realm");
    }

    #[test]
    fn a_realm_that_the_configuration_names_keeps_its_message() {
        let base: RealmUrl = "http://h/".parse().unwrap();
        for error in [
            RealmUrl::parse("luke").unwrap_err(),
            base.join([".."]).unwrap_err(),
        ] {
            assert_eq!(
                ConfigError::from(error.clone()).to_string(),
                error.to_string()
            );
        }
    }

    #[test]
    fn a_clients_text_is_escaped_and_cut() {
        assert_eq!(
            shown("a\n\u{1b}[31m\u{202e}\u{2028}ü"),
            r"a\n\u{1b}[31m\u{202e}\u{2028}ü"
        );
        let long = shown(&"\u{10fffd}".repeat(60_000));
        assert!(long.len() < 6_000 && long.ends_with("}..."), "{long}");
        assert_eq!(shown(&"x".repeat(LONGEST_SHOWN)).len(), LONGEST_SHOWN);
    }
}
