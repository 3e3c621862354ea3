use std::fmt;

/// Why no realm URL could be made: of a configuration value or of a request.
///
/// Every message names the offending value and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RealmError {
    /// A string that should be a realm URL or a base URL is not one.
    #[error("`{url}` is not a realm URL: {problem}")]
    InvalidUrl {
        /// The string as given, with control characters escaped.
        url: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A path template or a route pattern cannot be read.
    #[error("`{template}` is not a path template: {problem}")]
    InvalidTemplate {
        /// The template as given, with control characters escaped.
        template: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The path of a request is too short for the template, or differs from its literal segments.
    #[error("the path `{path}` names no realm; a realm's paths begin with `{template}`")]
    NoRealm {
        /// The path of the request.
        path: String,
        /// The template that it was held against.
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
}

/// What makes a path readable as another path, so that two servers could see two realms in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathProblem {
    /// The path does not start with `/`.
    Relative,
    /// Two slashes with nothing between them.
    EmptySegment,
    /// A `.` or `..` segment, plain or percent-encoded.
    DotSegment,
    /// An encoded slash or a backslash in a segment that names the realm.
    Separator,
    /// A NUL or another control character.
    ControlCharacter,
    /// The percent-decoded bytes are not UTF-8.
    InvalidUtf8,
    /// A `%` that two hexadecimal digits do not follow.
    MalformedEscape,
}

impl fmt::Display for PathProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relative => "it does not start with `/`",
            Self::EmptySegment => "it has an empty segment (`//`)",
            Self::DotSegment => "it has a dot segment (`.` or `..`)",
            Self::Separator => "a segment that names the realm has an encoded slash or a backslash",
            Self::ControlCharacter => "it has a control character",
            Self::InvalidUtf8 => "its decoded bytes are not UTF-8",
            Self::MalformedEscape => "it has a `%` without two hexadecimal digits after it",
        })
    }
}
