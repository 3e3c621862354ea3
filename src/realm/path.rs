//! The one reading of a path: what it decodes to, and what makes it ambiguous.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

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
    /// Another spelling of a route whose realms are found in another way, or of another pattern.
    Spelling,
    /// A layer has rewritten the path inside axum's `nest`, so that the whole path is not known.
    Rewritten,
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
            Self::Spelling => {
                "in another spelling it is a route whose realms are found in another way; write it as that route is written"
            }
            Self::Rewritten => {
                "a layer has rewritten it inside a `nest` with parameters; put that layer inside \
                 of the lock, or outside of the router"
            }
        })
    }
}

/// What a canonical segment encodes: the path percent-encode set of the WHATWG URL standard, so
/// that a realm URL written plainly has the same bytes in a JavaScript realm server, and the
/// characters that would end a segment or begin an escape.
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

/// What some server takes for the end of a segment, also where it is encoded.
const SEPARATORS: [char; 2] = ['/', '\\'];

/// A raw path, which is split and percent-decoded when somebody first asks for that, and never
/// again.
///
/// It cannot be cloned, and nothing else decodes a path: every reader of one request's path shares
/// one of these. A path without escapes is read in place, without a copy.
#[derive(Debug)]
pub(crate) struct ParsedPath<'a> {
    raw: Cow<'a, str>,
    /// What is wrong with it before it is read.
    problem: Option<PathProblem>,
    parsed: OnceCell<Parsed>,
    resolved: OnceCell<String>,
}

#[derive(Debug)]
struct Parsed {
    /// The decoded segments; `None` if the path has no escape, so that its raw segments are the
    /// decoded ones.
    ///
    /// Bytes that are not UTF-8 are replacement characters.
    decoded: Option<Vec<String>>,
    /// The first thing that makes the path ambiguous.
    problem: Option<PathProblem>,
    /// Whether a segment has a slash or a backslash in it.
    has_separators: bool,
}

impl<'a> ParsedPath<'a> {
    pub(crate) fn new(raw: impl Into<Cow<'a, str>>) -> Self {
        Self {
            raw: raw.into(),
            problem: None,
            parsed: OnceCell::new(),
            resolved: OnceCell::new(),
        }
    }

    /// A path that a layer has rewritten in a way that leaves the whole of it unknown.
    #[cfg(feature = "axum")]
    pub(crate) fn rewritten(raw: &'a str) -> Self {
        Self {
            problem: Some(PathProblem::Rewritten),
            ..Self::new(raw)
        }
    }

    /// The path as it was received, still percent-encoded.
    pub(crate) fn raw(&self) -> &str {
        &self.raw
    }

    /// Whether its beginning is known.
    pub(crate) fn is_whole(&self) -> bool {
        self.problem.is_none()
    }

    pub(crate) fn is_absolute(&self) -> bool {
        self.raw.starts_with('/')
    }

    /// The decoded segments; a trailing slash adds none.
    ///
    /// A decoded slash or backslash is allowed, as long as it does not make a dot segment:
    /// [`refuse_separators`] is for the segments that name a realm.
    ///
    /// # Errors
    ///
    /// The problem of a path that two servers could read differently.
    pub(crate) fn segments(&self) -> Result<impl Iterator<Item = &str> + Clone, PathProblem> {
        match self.parsed().problem {
            Some(problem) => Err(problem),
            // Only the one after a trailing slash is empty.
            None => Ok(self
                .lenient_segments()
                .filter(|segment| !segment.is_empty())),
        }
    }

    /// Whether [`segments`](Self::segments) reads it, and no segment can be read as several.
    pub(crate) fn is_unambiguous(&self) -> bool {
        let parsed = self.parsed();
        parsed.problem.is_none() && !parsed.has_separators
    }

    /// Whether a decoded segment can be read as several.
    pub(crate) fn has_separators(&self) -> bool {
        self.parsed().has_separators
    }

    /// The segments to the letter. The last one is empty if the path ends in a slash.
    pub(crate) fn raw_segments(&self) -> impl Iterator<Item = &str> + Clone {
        split(&self.raw)
    }

    /// The segments decoded as far as that goes, however ambiguous the path is. The last one is
    /// empty if the path ends in a slash.
    pub(crate) fn lenient_segments(&self) -> impl Iterator<Item = &str> + Clone {
        match &self.parsed().decoded {
            None => Segments::Raw(split(&self.raw)),
            Some(decoded) => Segments::Decoded(decoded.iter()),
        }
    }

    /// [`lenient_segments`](Self::lenient_segments) of the path without one slash at its end.
    pub(crate) fn lenient_segments_without_slash(&self) -> impl Iterator<Item = &str> {
        let all = self.lenient_segments().count();
        let slash = usize::from(self.raw.ends_with('/'));
        self.lenient_segments().take(all - slash)
    }

    /// The decoded segments as a server sees them that splits each at its separators. None is
    /// empty.
    pub(crate) fn split_segments(&self) -> impl Iterator<Item = &str> + Clone {
        let parts = self.lenient_segments();
        let parts = parts.flat_map(|segment| segment.split(SEPARATORS));
        parts.filter(|part| !part.is_empty())
    }

    /// The segments that the most lenient reader makes of an ambiguous path: escapes decoded,
    /// backslashes taken for slashes, empty segments and dots resolved. One empty segment if none
    /// is left.
    pub(crate) fn resolved_segments(&self) -> impl Iterator<Item = &str> {
        let resolved = self.resolved.get_or_init(|| {
            let mut segments: Vec<&str> = Vec::new();
            for segment in self.split_segments() {
                match segment {
                    "." => {}
                    ".." => drop(segments.pop()),
                    segment => segments.push(segment),
                }
            }
            segments.join("/")
        });
        resolved.split('/')
    }

    fn parsed(&self) -> &Parsed {
        self.parsed.get_or_init(|| parse(&self.raw, self.problem))
    }
}

/// The decoded segments of a path, in place where nothing had to be decoded.
#[derive(Clone)]
enum Segments<'a> {
    Raw(Split<'a>),
    Decoded(std::slice::Iter<'a, String>),
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        match self {
            Self::Raw(segments) => segments.next(),
            Self::Decoded(segments) => segments.next().map(String::as_str),
        }
    }
}

fn split(raw: &str) -> Split<'_> {
    Split(Some(raw.strip_prefix('/').unwrap_or(raw)))
}

/// What is between slashes. Segments are short: looking at each byte takes less time than what
/// [`str::split`] prepares for each of them.
#[derive(Clone)]
struct Split<'a>(Option<&'a str>);

impl<'a> Iterator for Split<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0.take()?;
        let Some(end) = rest.bytes().position(|byte| byte == b'/') else {
            return Some(rest);
        };
        self.0 = Some(&rest[end + 1..]);
        Some(&rest[..end])
    }
}

/// Whether a text can only be read as it stands, as most are: ASCII without control characters,
/// escapes and backslashes, in which no segment is empty, except the last, or begins with a dot.
fn is_plain(text: &str) -> bool {
    let mut before = b'/';
    text.bytes().all(|byte| {
        let is_plain = match byte {
            b'/' | b'.' => before != b'/',
            b' '..=b'~' => byte != b'%' && byte != b'\\',
            _ => false,
        };
        before = byte;
        is_plain
    })
}

fn parse(raw: &str, problem: Option<PathProblem>) -> Parsed {
    if raw.strip_prefix('/').is_some_and(is_plain) {
        return Parsed {
            decoded: None,
            problem,
            has_separators: false,
        };
    }
    let mut parsed = Parsed {
        decoded: raw.contains('%').then(Vec::new),
        problem: problem.or((!raw.starts_with('/')).then_some(PathProblem::Relative)),
        has_separators: false,
    };
    let mut segments = split(raw).peekable();
    while let Some(raw) = segments.next() {
        let bytes = percent_decode_str(raw);
        let decoded = bytes.clone().decode_utf8();
        let is_utf8 = decoded.is_ok();
        let text = decoded.unwrap_or_else(|_| bytes.decode_utf8_lossy());
        // The root, or what follows a slash at the end, is no segment.
        let is_segment = !raw.is_empty() || segments.peek().is_some();
        if is_segment {
            parsed.has_separators |= refuse_separators(&text).is_err();
        }
        if is_segment && parsed.problem.is_none() {
            parsed.problem = if has_malformed_escape(raw) {
                Some(PathProblem::MalformedEscape)
            } else if is_utf8 {
                check_segment(&text).err()
            } else {
                Some(PathProblem::InvalidUtf8)
            };
        }
        if let Some(all) = &mut parsed.decoded {
            all.push(text.into_owned());
        }
    }
    parsed
}

fn has_malformed_escape(raw: &str) -> bool {
    raw.split('%').skip(1).any(|after| {
        let digits = after.as_bytes().get(..2);
        !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Refuses a decoded segment that is empty, has control characters, or is or hides a dot segment.
pub(crate) fn check_segment(segment: &str) -> Result<(), PathProblem> {
    if segment.is_empty() {
        return Err(PathProblem::EmptySegment);
    }
    if is_plain(segment) {
        return Ok(());
    }
    if segment.chars().any(char::is_control) {
        return Err(PathProblem::ControlCharacter);
    }
    let mut parts = segment.split(SEPARATORS);
    if parts.any(|part| matches!(part, "." | "..")) {
        return Err(PathProblem::DotSegment);
    }
    Ok(())
}

/// Refuses a decoded segment that some server would split in two.
pub(crate) fn refuse_separators(segment: &str) -> Result<(), PathProblem> {
    // Both are ASCII.
    if segment.bytes().any(|byte| matches!(byte, b'/' | b'\\')) {
        return Err(PathProblem::Separator);
    }
    Ok(())
}

/// Appends a decoded segment and a slash to a canonical URL, encoded in the one canonical way.
pub(crate) fn push_segment(url: &mut String, segment: &str) {
    url.extend(utf8_percent_encode(segment, ENCODED));
    url.push('/');
}

/// The one spelling of these decoded segments, each followed by a slash; `None` if they could be
/// read as another path.
pub(crate) fn canonical<'a>(segments: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut path = String::new();
    for segment in segments {
        refuse_separators(segment).ok()?;
        push_segment(&mut path, segment);
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the texts are that each way to read a path gives.
    fn read(path: &ParsedPath<'_>) -> Vec<*const u8> {
        let lenient = path
            .lenient_segments()
            .chain(path.lenient_segments_without_slash());
        let strict = path.segments().into_iter().flatten();
        let all = strict.chain(lenient).chain(path.resolved_segments());
        all.map(str::as_ptr).collect()
    }

    #[test]
    fn it_is_decoded_once_when_first_asked_and_then_shared_by_all_readers() {
        for raw in ["/%61/b%2Fc/%C3%BC/", "/%61/%FF/../%zz", "/a/b/"] {
            let path = ParsedPath::new(raw);
            assert_eq!(path.raw_segments().count(), split(raw).count());
            assert!(path.parsed.get().is_none(), "nobody has asked");
            let first = read(&path);
            assert!(!first.is_empty());
            assert_eq!(read(&path), first, "{raw}: another text was made");
        }
        // A path without escapes is not even copied.
        let raw = "/a/b/";
        let path = ParsedPath::new(raw);
        let segments: Vec<&str> = path.segments().unwrap().collect();
        let own = raw.as_bytes().as_ptr_range();
        assert!(own.contains(&segments[0].as_ptr()));
    }

    #[test]
    fn a_text_that_is_plain_has_no_other_reading() {
        let delicate = "a2./\\%F \u{1}\u{7f}\u{85}ü";
        let longer = |text: &String| {
            delicate
                .chars()
                .map(|next| format!("{text}{next}"))
                .collect()
        };
        let mut texts = vec![String::new()];
        for _ in 0..4 {
            texts = texts.iter().flat_map::<Vec<_>, _>(longer).collect();
            for text in &texts {
                let mut segments = text.strip_suffix('/').unwrap_or(text).split('/');
                let is_clear = text.is_ascii()
                    && !text.contains(|it: char| it.is_control() || it == '%' || it == '\\')
                    && segments.all(|segment| !matches!(segment, "" | "." | ".."));
                assert!(is_clear || !is_plain(text), "{text:?}");
            }
        }
        assert!(is_plain("luke/my-realm/cards/1.json"), "most are");
    }
}
