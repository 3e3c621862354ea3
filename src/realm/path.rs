use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::PathProblem;

/// What a canonical segment encodes: the path percent-encode set of the WHATWG URL standard, so that a realm URL written
/// plainly has the same bytes in a JavaScript realm server, and the characters that would end a segment or begin an escape.
const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'%')
    .add(b'/')
    .add(b'\\');

/// Splits a raw path into its percent-decoded segments; a trailing slash adds none.
///
/// Refuses every path that two servers could read differently. A decoded slash or backslash is allowed here, as long as
/// it does not make a dot segment: [`refuse_separators`] is for the segments that name a realm.
pub(crate) fn decode_path(path: &str) -> Result<Vec<Cow<'_, str>>, PathProblem> {
    segments(path)?.collect()
}

/// Whether [`decode_path`] reads it, and no segment can be read as several.
pub(crate) fn is_unambiguous(path: &str) -> bool {
    let is_plain = |segment: Result<Cow<'_, str>, _>| {
        segment.is_ok_and(|segment| refuse_separators(&segment).is_ok())
    };
    segments(path).is_ok_and(|mut segments| segments.all(is_plain))
}

/// The path that the most lenient of readers makes of an ambiguous one: escapes decoded, backslashes taken for slashes, empty
/// segments and dots resolved.
pub(crate) fn resolved(path: &str) -> String {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

fn segments(
    path: &str,
) -> Result<impl Iterator<Item = Result<Cow<'_, str>, PathProblem>>, PathProblem> {
    let rest = path.strip_prefix('/').ok_or(PathProblem::Relative)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // `/` is the root; `//` is a root followed by an empty segment.
    let is_root = rest.is_empty();
    if is_root && path.len() > 1 {
        return Err(PathProblem::EmptySegment);
    }
    let rest = (!is_root).then_some(rest).into_iter();
    Ok(rest.flat_map(|rest| rest.split('/')).map(decode_segment))
}

/// Decodes one raw segment, with the refusals of [`decode_path`].
pub(crate) fn decode_segment(raw: &str) -> Result<Cow<'_, str>, PathProblem> {
    if raw.is_empty() {
        return Err(PathProblem::EmptySegment);
    }
    if has_malformed_escape(raw) {
        return Err(PathProblem::MalformedEscape);
    }
    let decoded = percent_decode_str(raw)
        .decode_utf8()
        .map_err(|_| PathProblem::InvalidUtf8)?;
    if decoded.chars().any(char::is_control) {
        return Err(PathProblem::ControlCharacter);
    }
    if decoded
        .split(['/', '\\'])
        .any(|part| matches!(part, "." | ".."))
    {
        return Err(PathProblem::DotSegment);
    }
    Ok(decoded)
}

fn has_malformed_escape(raw: &str) -> bool {
    raw.split('%').skip(1).any(|after| {
        let digits = after.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Refuses a decoded segment that some server would split in two.
pub(crate) fn refuse_separators(segment: &str) -> Result<(), PathProblem> {
    if segment.contains(['/', '\\']) {
        return Err(PathProblem::Separator);
    }
    Ok(())
}

/// Appends a decoded segment and a slash to a canonical URL, encoded in the one canonical way.
pub(crate) fn push_segment(url: &mut String, segment: &str) {
    url.extend(utf8_percent_encode(segment, ENCODED));
    url.push('/');
}

/// The one spelling of a path below a realm, without a slash at its beginning and end; none if it could be read as another
/// path.
pub(crate) fn canonical_rest<'a>(segments: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut rest = String::new();
    for segment in segments {
        refuse_separators(segment).ok()?;
        push_segment(&mut rest, segment);
    }
    rest.pop();
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_segment_by_segment() {
        assert_eq!(decode_path("/").unwrap(), Vec::<String>::new());
        assert_eq!(decode_path("/a/b").unwrap(), ["a", "b"]);
        assert_eq!(decode_path("/a/b/").unwrap(), ["a", "b"]);
        assert_eq!(decode_path("/%61/%C3%BC").unwrap(), ["a", "ü"]);
        assert_eq!(decode_path("/a/ü/...").unwrap(), ["a", "ü", "..."]);
        assert_eq!(decode_path("/a/b%2Fc").unwrap(), ["a", "b/c"]);
    }

    #[test]
    fn what_could_be_read_as_another_path_is_refused() {
        use PathProblem::*;
        for (path, problem) in [
            ("", Relative),
            ("*", Relative),
            ("a/b", Relative),
            ("//", EmptySegment),
            ("//a", EmptySegment),
            ("/a//b", EmptySegment),
            ("/a/b//", EmptySegment),
            ("/a/./b", DotSegment),
            ("/a/..", DotSegment),
            ("/a/%2e%2E/b", DotSegment),
            ("/a/b/..%2Fc", DotSegment),
            ("/a/b/..%5Cc", DotSegment),
            ("/a/b\\..\\c", DotSegment),
            ("/a/%00", ControlCharacter),
            ("/a/b%0A", ControlCharacter),
            ("/a/%C2%85", ControlCharacter),
            ("/a/%FF", InvalidUtf8),
            ("/a/%C0%AF", InvalidUtf8),
            ("/a/%", MalformedEscape),
            ("/a/%2", MalformedEscape),
            ("/a/%zz/b", MalformedEscape),
            ("/a/%+1", MalformedEscape),
        ] {
            assert_eq!(decode_path(path).unwrap_err(), problem, "{path}");
        }
    }
}
