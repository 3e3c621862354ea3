//! Conditional requests (RFC 9110, 13): a card's strong `ETag`, and `If-Match` and `If-None-Match`.

use std::fmt;

use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

/// A strong entity tag (RFC 9110, 8.8.3): a digest of the card's stored bytes, so it is the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ETag(String);

impl ETag {
    pub fn of(stored: &[u8]) -> Self {
        let digest = Sha256::digest(stored);
        // Half of it: nobody needs to find two cards of one tag.
        let half = digest.first_chunk().expect("SHA-256 gives 32 bytes");
        Self(format!("\"{:032x}\"", u128::from_be_bytes(*half)))
    }

    pub fn to_header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("quotes and hexadecimal digits are visible ASCII")
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the client wants to be so before its request is served.
#[derive(Clone, Debug, Default)]
pub struct Precondition {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// The value of one of the two headers.
#[derive(Clone, Debug)]
enum Tags {
    /// `*`: whatever there is.
    Any,
    These(Vec<Tag>),
}

#[derive(Clone, Debug)]
struct Tag {
    weak: bool,
    /// With its quotes; other servers' tags may have bytes above ASCII.
    text: Vec<u8>,
}

impl Precondition {
    pub fn of(headers: &HeaderMap) -> Result<Self, BadPrecondition> {
        Ok(Self {
            if_match: Tags::of(headers, &IF_MATCH)?,
            if_none_match: Tags::of(headers, &IF_NONE_MATCH)?,
        })
    }

    /// Whether `If-Match` lets a request go on, and for a write `If-None-Match` too. `None` is a card that is not there.
    pub fn allows_write(&self, current: Option<&ETag>) -> bool {
        self.matches(current) && !self.is_known(current)
    }

    /// Whether `If-Match` holds. Weak tags never match: they do not promise that every byte is the same.
    pub fn matches(&self, current: Option<&ETag>) -> bool {
        match (&self.if_match, current) {
            (None, _) | (Some(Tags::Any), Some(_)) => true,
            (Some(_), None) => false,
            (Some(Tags::These(tags)), Some(current)) => {
                tags.iter().any(|tag| !tag.weak && tag.is(current))
            }
        }
    }

    /// Whether the client has this very version, by `If-None-Match`. Weak tags do match here.
    pub fn is_known(&self, current: Option<&ETag>) -> bool {
        match (&self.if_none_match, current) {
            (None, _) | (_, None) => false,
            (Some(Tags::Any), Some(_)) => true,
            (Some(Tags::These(tags)), Some(current)) => tags.iter().any(|tag| tag.is(current)),
        }
    }
}

impl Tag {
    fn is(&self, tag: &ETag) -> bool {
        self.text == tag.0.as_bytes()
    }
}

impl Tags {
    fn of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, BadPrecondition> {
        let values: Vec<_> = headers.get_all(name).iter().collect();
        if values.is_empty() {
            return Ok(None);
        }
        // RFC 9110, 5.3: several lines of one name are one list.
        let list = values
            .iter()
            .map(|value| value.as_bytes())
            .collect::<Vec<_>>()
            .join(&b","[..]);
        if list.trim_ascii() == b"*" {
            return Ok(Some(Self::Any));
        }
        match tags_in(&list) {
            Some(tags) => Ok(Some(Self::These(tags))),
            None => Err(BadPrecondition {
                header: if name == IF_MATCH {
                    "If-Match"
                } else {
                    "If-None-Match"
                },
                value: String::from_utf8_lossy(&list).escape_debug().to_string(),
            }),
        }
    }
}

/// The tags of a list `"a", W/"b"`; commas may stand within the quotes. `None` if it is no such list, or an empty one.
fn tags_in(mut list: &[u8]) -> Option<Vec<Tag>> {
    let mut tags = Vec::new();
    loop {
        list = list.trim_ascii_start();
        // Empty elements are allowed (RFC 9110, 5.6.1.2).
        if let Some(rest) = list.strip_prefix(b",") {
            list = rest;
            continue;
        }
        if list.is_empty() {
            return (!tags.is_empty()).then_some(tags);
        }
        let (weak, quoted) = match list.strip_prefix(b"W/") {
            Some(rest) => (true, rest),
            None => (false, list),
        };
        let inner = quoted.strip_prefix(b"\"")?;
        let end = inner.iter().position(|&byte| byte == b'"')?;
        if inner[..end]
            .iter()
            .any(|&byte| byte <= b' ' || byte == 0x7f)
        {
            return None;
        }
        let text = quoted[..end + 2].to_owned();
        tags.push(Tag { weak, text });
        list = quoted[end + 2..].trim_ascii_start();
        if !list.is_empty() && !list.starts_with(b",") {
            return None;
        }
    }
}

/// A header that is no list of entity tags.
#[derive(Debug)]
pub struct BadPrecondition {
    pub header: &'static str,
    /// Escaped.
    pub value: String,
}

impl fmt::Display for BadPrecondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { header, value } = self;
        write!(
            f,
            "{header} is '{value}'; write '*' or entity tags in double quotes, as in 'ETag', with commas between them."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &HeaderName, lines: &[&[u8]]) -> Result<Precondition, BadPrecondition> {
        let headers = lines
            .iter()
            .map(|line| (name.clone(), HeaderValue::from_bytes(line).unwrap()));
        Precondition::of(&headers.collect())
    }

    fn matches(lines: &[&[u8]], current: Option<&ETag>) -> bool {
        given(&IF_MATCH, lines).unwrap().allows_write(current)
    }

    #[test]
    fn a_tag_is_strong_quoted_and_of_the_bytes_alone() {
        let tag = ETag::of(b"{}");
        assert_eq!(tag.to_string(), "\"44136fa355b3678a1146ad16f7e8649e\"");
        assert_ne!(tag, ETag::of(b"{} "));
    }

    #[test]
    fn if_match_wants_one_of_its_strong_tags() {
        let tag = ETag::of(b"{}");
        let text = tag.to_string();
        let weak = format!("W/{text}");
        let list = format!("\"a,b\" , ,{text}\t,W/\"c\"");
        assert!(matches(&[], Some(&tag)) && matches(&[], None));
        assert!(matches(&[text.as_bytes()], Some(&tag)));
        assert!(matches(&[list.as_bytes()], Some(&tag)));
        assert!(matches(&[b"\"x\"", text.as_bytes()], Some(&tag)));
        assert!(matches(&[b" * "], Some(&tag)));
        assert!(!matches(&[b"\"\xfc\""], Some(&tag)));
        assert!(!matches(&[weak.as_bytes()], Some(&tag)));
        assert!(!matches(&[b"*"], None) && !matches(&[text.as_bytes()], None));
    }

    #[test]
    fn if_none_match_knows_weak_tags_too() {
        let tag = ETag::of(b"{}");
        let weak = format!("W/{tag}");
        let known = |line: &str, current| {
            let precondition = given(&IF_NONE_MATCH, &[line.as_bytes()]).unwrap();
            assert_eq!(
                precondition.allows_write(current),
                !precondition.is_known(current)
            );
            precondition.is_known(current)
        };
        assert!(known(&weak, Some(&tag)) && known("*", Some(&tag)));
        assert!(!known("\"x\"", Some(&tag)) && !known("*", None));
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused_by_name() {
        for value in [
            "",
            ",",
            "abc",
            "\"abc",
            "w/\"abc\"",
            "W/abc",
            "\"a\" \"b\"",
            "\"a b\"",
            "*, \"a\"",
            "\"a\"b",
        ] {
            let error = given(&IF_MATCH, &[value.as_bytes()]).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains(&format!("'{}'", value.escape_debug())),
                "{error}"
            );
        }
        let error = given(&IF_MATCH, &[b"<\xff\xc2\x85>"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\\u{85}") && !error.contains('\u{85}'),
            "{error}"
        );
    }
}
