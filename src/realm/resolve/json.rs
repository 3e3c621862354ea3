use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step down into a JSON document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::realm) enum Step {
    /// The member of an object, or the element of a list where it is a number.
    Name(Box<str>),
    /// All elements of a list.
    Each,
}

/// What stands where the steps lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::realm) enum Answer {
    Text(String),
    Missing,
    /// Something that is no string.
    NotText,
    /// An object on the way has the name twice: another reader may take the other one.
    Twice,
}

/// Follows the steps into a document, and keeps nothing of it but what it finds. One answer, or one
/// for each element.
///
/// # Errors
///
/// What `serde_json` says of a text that is not one JSON document. Its messages hold nothing of the
/// text.
pub(in crate::realm) fn seek(text: &str, steps: &[Step]) -> Result<Vec<Answer>, serde_json::Error> {
    let mut document = serde_json::Deserializer::from_str(text);
    let found = Seek(steps).deserialize(&mut document)?;
    document.end()?;
    Ok(found)
}

struct Seek<'a>(&'a [Step]);

impl Seek<'_> {
    /// The answer at a value that has nothing below it and is no string.
    fn bare(&self) -> Vec<Answer> {
        vec![if self.0.is_empty() {
            Answer::NotText
        } else {
            Answer::Missing
        }]
    }
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = Vec<Answer>;

    fn deserialize<D: Deserializer<'de>>(self, document: D) -> Result<Vec<Answer>, D::Error> {
        document.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = Vec<Answer>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Vec<Answer>, M::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            match self.0.split_first() {
                Some((Step::Name(step), rest)) if **step == *name => {
                    let below = map.next_value_seed(Seek(rest))?;
                    let twice = found.is_some();
                    found = Some(if twice { vec![Answer::Twice] } else { below });
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found.unwrap_or_else(|| self.bare()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Vec<Answer>, S::Error> {
        let (wanted, rest) = match self.0.split_first() {
            Some((Step::Each, rest)) => {
                let mut all = Vec::new();
                while let Some(found) = list.next_element_seed(Seek(rest))? {
                    all.extend(found);
                }
                return Ok(all);
            }
            Some((Step::Name(name), rest)) => (index(name), rest),
            None => (None, &[][..]),
        };
        let mut found = None;
        let mut at = 0;
        loop {
            if wanted == Some(at) {
                found = list.next_element_seed(Seek(rest))?;
                if found.is_none() {
                    break;
                }
            } else if list.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
            at += 1;
        }
        Ok(found.unwrap_or_else(|| self.bare()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<Answer>, E> {
        Ok(if self.0.is_empty() {
            vec![Answer::Text(text.to_owned())]
        } else {
            vec![Answer::Missing]
        })
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Vec<Answer>, E> {
        Ok(self.bare())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Vec<Answer>, E> {
        Ok(self.bare())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Vec<Answer>, E> {
        Ok(self.bare())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Vec<Answer>, E> {
        Ok(self.bare())
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<Answer>, E> {
        Ok(self.bare())
    }
}

/// The number of a list's element (RFC 6901, section 4): digits without a leading zero.
fn index(name: &str) -> Option<usize> {
    let plain = name.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = name == "0" || !name.starts_with('0');
    (plain && canonical).then(|| name.parse().ok()).flatten()
}
