use percent_encoding::percent_decode_str;

use super::RealmError;
use super::error::shown;
use super::path::{decode_segment, is_unambiguous, refuse_separators, resolved};

/// A path with named parameters, in axum's notation: `/{owner}/{realm}/_search`, or `/{owner}/{*rest}`.
#[derive(Debug, Clone)]
pub(crate) struct PathTemplate {
    source: Box<str>,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq)]
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

impl PathTemplate {
    pub(crate) fn parse(template: &str) -> Result<Self, RealmError> {
        let segments = parse_segments(template).map_err(|problem| RealmError::InvalidTemplate {
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

    /// Whether the raw path fits to the letter.
    pub(crate) fn matches_exactly(&self, path: &str) -> bool {
        exactly(&self.segments, path)
    }

    /// Whether any reader might take the path for one that fits: decoded, with one slash more or less at its end, and with what is
    /// ambiguous in it resolved.
    pub(crate) fn matches_any_spelling(&self, path: &str) -> bool {
        let without_slash = self.segments.split_last();
        let without_slash = without_slash.filter(|(last, _)| **last == Segment::TrailingSlash);
        let without_slash = without_slash.map_or(&*self.segments, |(_, before)| before);
        decoded(&self.segments, path)
            || decoded(without_slash, path.strip_suffix('/').unwrap_or(path))
            || (!is_unambiguous(path) && exactly(without_slash, &resolved(path)))
    }
}

/// Whether the whole raw path fits. Allocates nothing.
///
/// `literal` compares a raw segment with a literal one, to the letter or decoded; `empty` is whether a parameter may be
/// empty where segments follow it: axum's router takes `/a//b` for `/{x}/{y}/b`.
fn fits(
    segments: &[Segment],
    path: &str,
    literal: impl Fn(&str, &str) -> bool,
    empty: bool,
) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    if segments.is_empty() {
        return rest.is_empty();
    }
    let mut raw = rest.split('/');
    for (at, segment) in segments.iter().enumerate() {
        let is_last = at + 1 == segments.len();
        let fits = match (segment, raw.next()) {
            (Segment::Literal(expected), Some(raw)) => literal(raw, expected),
            (Segment::Parameter(_), Some(raw)) => !raw.is_empty() || (empty && !is_last),
            (Segment::Rest(_), Some(first)) => {
                return !first.is_empty() || raw.next().is_some();
            }
            (Segment::TrailingSlash, Some(raw)) => raw.is_empty(),
            (_, None) => false,
        };
        if !fits {
            return false;
        }
    }
    raw.next().is_none()
}

fn exactly(segments: &[Segment], path: &str) -> bool {
    fits(segments, path, |raw, expected| raw == expected, false)
}

/// Whether the path fits once it is decoded, with parameters that may be empty.
fn decoded(segments: &[Segment], path: &str) -> bool {
    let literal = |raw: &str, expected: &str| percent_decode_str(raw).eq(expected.bytes());
    fits(segments, path, literal, true)
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
    let twice = before.iter().any(|segment| {
        matches!(segment, Segment::Parameter(earlier) | Segment::Rest(earlier) if **earlier == *name)
    });
    if twice {
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
        // Some routers write parameters so. As plain text it would fit no path, and leave a route unlocked.
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
    if text.contains(['%', '?', '#']) {
        return Err(format!(
            "`{}` must be written plainly: without `%`, `?` and `#`",
            shown(text)
        ));
    }
    decode_segment(text)
        .and_then(|segment| refuse_separators(&segment))
        .map_err(|problem| problem.to_string())?;
    Ok(Segment::Literal(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_template_is_refused_with_its_reason() {
        for (template, reason) in [
            ("", "must start with `/`"),
            ("{owner}/{realm}", "must start with `/`"),
            ("//{realm}", "empty segment"),
            ("/{owner}//{realm}", "empty segment"),
            ("/{}", "plain name"),
            ("/{*}", "plain name"),
            ("/{{a}}", "plain name"),
            ("/a{b}", "only a part"),
            ("/{a", "only a part"),
            ("/b:a}", "only a part"),
            ("/:owner/{realm}", "write a parameter as `{owner}`"),
            ("/{owner}/*rest", "the rest of a path as `{*rest}`"),
            ("/{a}/{a}", "twice"),
            ("/{*a}/b", "last segment"),
            ("/../{a}", "dot segment"),
            ("/a%20b/{c}", "without `%`"),
            ("/a?b", "without `%`"),
            ("/a\nb", "control character"),
        ] {
            let error = PathTemplate::parse(template).unwrap_err().to_string();
            assert!(error.contains(reason), "{template}: {error}");
        }
    }

    #[test]
    fn a_template_matches_like_axum_does() {
        for (template, path, to_the_letter, once_decoded) in [
            ("/", "/", true, true),
            ("/", "/a", false, false),
            ("/{o}/{r}/_search", "/a/b/_search", true, true),
            ("/{o}/{r}/_search", "/a/b/%5Fsearch", false, true),
            ("/{o}/{r}/_search", "/a/b/_search/", false, false),
            ("/{o}/{r}/_search", "/a/b/c/_search", false, false),
            ("/{o}/{r}/_search", "/a//_search", false, true),
            ("/{o}/{r}/_search", "///_search", false, true),
            ("/{o}/{r}/", "///", false, true),
            ("/{o}/{r}", "/a/", false, false),
            ("/{o}/{r}/", "/a/b/", true, true),
            ("/{o}/{r}/", "/a/b", false, false),
            ("/{o}/{r}", "/a/b/", false, false),
            ("/{o}/{*rest}", "/a/b/c/", true, true),
            ("/{o}/{*rest}", "/a/", false, false),
            ("/{o}/{*rest}", "/a", false, false),
            ("/a", "*", false, false),
        ] {
            let parsed = PathTemplate::parse(template).unwrap();
            let fits = [exactly, decoded].map(|fits| fits(&parsed.segments, path));
            assert_eq!(fits, [to_the_letter, once_decoded], "{template} {path}");
        }
    }

    #[test]
    fn a_slash_more_or_less_at_the_end_is_another_spelling() {
        for (template, path, fits) in [
            ("/{o}/{r}", "/a/b/", true),
            ("/{o}/{r}", "/a/./b/", true),
            ("/{o}/{r}/", "/a/b", true),
            ("/{o}/{r}/", "/a/./b/", true),
            ("/{o}/{r}/", "/a%2Fb", true),
            ("/{o}/{r}/", "/a", false),
            ("/{o}/{r}/", "/a/b/c", false),
            ("/a/", "/", false),
            ("/", "//", true),
        ] {
            let parsed = PathTemplate::parse(template).unwrap();
            assert_eq!(parsed.matches_any_spelling(path), fits, "{template} {path}");
        }
    }
}
