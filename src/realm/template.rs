use std::fmt;

use super::error::shown;
use super::path::{ParsedPath, check_segment, refuse_separators};
use crate::config::ConfigError;

/// A path with named parameters, in axum's notation: `/{owner}/{realm}/_search`, or
/// `/{owner}/{*rest}`.
#[derive(Debug, Clone)]
pub(crate) struct PathTemplate {
    source: Box<str>,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    /// A segment that must be just this, decoded.
    Literal(Box<str>),
    /// `{name}`: any one segment.
    Parameter(Box<str>),
    /// `{*name}`: one or more segments to the end of the path.
    Rest(Box<str>),
    /// The end of a path that ends in `/`.
    TrailingSlash,
}

impl Segment {
    /// The name of a parameter.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Parameter(name) | Self::Rest(name) => Some(name),
            Self::Literal(_) | Self::TrailingSlash => None,
        }
    }
}

/// As it is written in a template.
impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(text) => f.write_str(text),
            Self::Parameter(name) => write!(f, "{{{name}}}"),
            Self::Rest(name) => write!(f, "{{*{name}}}"),
            Self::TrailingSlash => Ok(()),
        }
    }
}

impl PathTemplate {
    pub(crate) fn parse(template: &str) -> Result<Self, ConfigError> {
        let segments =
            parse_segments(template).map_err(|problem| ConfigError::InvalidTemplate {
                template: shown(template),
                problem,
            })?;
        Ok(Self {
            source: template.into(),
            segments,
        })
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// This template below another one, which has no end of its own: neither the rest of a path nor
    /// a slash.
    pub(crate) fn below(&self, base: &[Segment]) -> Self {
        let source = base.iter().map(|segment| format!("/{segment}"));
        let source: String = source.chain([self.source.to_string()]).collect();
        Self {
            source: source.into(),
            segments: [base, &self.segments].concat(),
        }
    }

    /// The names of its parameters.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::name)
    }

    /// Whether the raw path fits to the letter.
    pub(crate) fn matches_exactly(&self, path: &ParsedPath<'_>) -> bool {
        path.is_whole() && path.is_absolute() && fits(&self.segments, path.raw_segments(), false)
    }

    /// What stands in the places of the parameters, decoded, if the raw path fits to the letter and
    /// is UTF-8.
    pub(crate) fn captures(&self, path: &ParsedPath<'_>) -> Option<Vec<(String, String)>> {
        if !self.matches_exactly(path) {
            return None;
        }
        let raw: Vec<&str> = path.raw().split('/').skip(1).collect();
        let captures = self.segments.iter().enumerate();
        let captures = captures.filter_map(|(at, segment)| match segment {
            Segment::Parameter(name) => Some((name, raw[at].to_owned())),
            Segment::Rest(name) => Some((name, raw[at..].join("/"))),
            Segment::Literal(_) | Segment::TrailingSlash => None,
        });
        let decoded = captures.map(|(name, value)| {
            let value = percent_encoding::percent_decode_str(&value).decode_utf8();
            Some((name.to_string(), value.ok()?.into_owned()))
        });
        decoded.collect()
    }

    /// Whether the path fits to the letter once the most lenient reader has resolved what is
    /// ambiguous in it.
    pub(crate) fn matches_resolved(&self, path: &ParsedPath<'_>) -> bool {
        fits(&self.segments, path.resolved_segments(), false)
    }

    /// Whether any reader might take the path for one that fits: decoded, with one slash more or
    /// less at its end, with empty segments as parameters, and with what is ambiguous in it
    /// resolved; and with anything before it, if its beginning is not known.
    pub(crate) fn matches_any_spelling(&self, path: &ParsedPath<'_>) -> bool {
        let fits = |segments| fits_any_spelling(segments, path);
        if path.is_whole() {
            return fits(&self.segments);
        }
        (0..=self.segments.len()).any(|start| fits(&self.segments[start..]))
    }
}

fn fits_any_spelling(segments: &[Segment], path: &ParsedPath<'_>) -> bool {
    let without_slash = match segments.split_last() {
        Some((Segment::TrailingSlash, before)) => before,
        _ => segments,
    };
    let decoded = path.is_absolute()
        && (fits(segments, path.lenient_segments(), true)
            || fits(without_slash, path.lenient_segments_without_slash(), true));
    decoded || (!path.is_unambiguous() && fits(without_slash, path.resolved_segments(), false))
}

/// Whether all segments of a path fit. Allocates nothing.
///
/// `empty` is whether a parameter may be empty where segments follow it: axum's router takes
/// `/a//b` for `/{x}/{y}/b`.
fn fits<'a>(segments: &[Segment], mut path: impl Iterator<Item = &'a str>, empty: bool) -> bool {
    if segments.is_empty() {
        return path.next() == Some("") && path.next().is_none();
    }
    for (at, segment) in segments.iter().enumerate() {
        let is_last = at + 1 == segments.len();
        let fits = match (segment, path.next()) {
            (Segment::Literal(expected), Some(text)) => **expected == *text,
            (Segment::Parameter(_), Some(text)) => !text.is_empty() || (empty && !is_last),
            (Segment::Rest(_), Some(first)) => {
                return !first.is_empty() || path.next().is_some();
            }
            (Segment::TrailingSlash, Some(text)) => text.is_empty(),
            (_, None) => false,
        };
        if !fits {
            return false;
        }
    }
    path.next().is_none()
}

fn parse_segments(template: &str) -> Result<Vec<Segment>, String> {
    let Some(rest) = template.strip_prefix('/') else {
        return Err("it must start with `/`, as in `/{owner}/{realm}`".into());
    };
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    let mut segments = Vec::new();
    let mut raw = rest.split('/').peekable();
    while let Some(text) = raw.next() {
        let last = raw.peek().is_none();
        segments.push(match text {
            "" if last => Segment::TrailingSlash,
            text => parse_segment(text, last, &segments)?,
        });
    }
    Ok(segments)
}

fn parse_segment(text: &str, last: bool, before: &[Segment]) -> Result<Segment, String> {
    let Some(inner) = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
    else {
        return parse_literal(text);
    };
    let (name, is_rest) = match inner.strip_prefix('*') {
        Some(name) => (name, true),
        None => (inner, false),
    };
    if name.is_empty() || name.contains(['{', '}', '*']) {
        return Err(format!(
            "`{}` needs a plain name, as in `{{realm}}`",
            shown(text)
        ));
    }
    if is_rest && !last {
        return Err(format!("`{}` can only be the last segment", shown(text)));
    }
    if before.iter().any(|segment| segment.name() == Some(name)) {
        return Err(format!("the name `{}` stands in it twice", shown(name)));
    }
    Ok(if is_rest {
        Segment::Rest(name.into())
    } else {
        Segment::Parameter(name.into())
    })
}

fn parse_literal(text: &str) -> Result<Segment, String> {
    if let Some(name) = text.strip_prefix([':', '*']) {
        // Some routers write parameters so. As plain text it would fit no path, and leave a route
        // unlocked.
        return Err(format!(
            "`{}` is plain text here; write a parameter as `{{{name}}}`, and the rest of a path as `{{*{name}}}`",
            shown(text),
            name = shown(name)
        ));
    }
    if text.contains(['{', '}']) {
        return Err(format!(
            "in `{}` a parameter is only a part of a segment; it must be all of it",
            shown(text)
        ));
    }
    if text.contains('*') {
        return Err(format!(
            "`{}` has a star; write one segment as `{{name}}`, and the rest of a path as \
             `{{*name}}`",
            shown(text)
        ));
    }
    if text.contains(['%', '?', '#']) {
        return Err(format!(
            "`{}` must be written plainly: without `%`, `?` and `#`",
            shown(text)
        ));
    }
    if text.contains(char::REPLACEMENT_CHARACTER) {
        return Err(format!(
            "`{}` has a character that stands for bytes that are no text",
            shown(text)
        ));
    }
    check_segment(text)
        .and_then(|()| refuse_separators(text))
        .map_err(|problem| problem.to_string())?;
    Ok(Segment::Literal(text.into()))
}
