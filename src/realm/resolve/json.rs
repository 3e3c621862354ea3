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

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Step {
        Step::Name(name.into())
    }

    fn one(text: &str, steps: &[Step]) -> Answer {
        let mut found = seek(text, steps).unwrap();
        assert_eq!(found.len(), 1, "{text}");
        found.remove(0)
    }

    #[test]
    fn steps_lead_to_a_string_or_say_why_not() {
        let text = |text: &str| Answer::Text(text.into());
        for (document, steps, expected) in [
            (r#"{"a":"x"}"#, vec![name("a")], text("x")),
            (r#"{"b":[1,{}],"a":"x"}"#, vec![name("a")], text("x")),
            (r#"{"\u0061":"x"}"#, vec![name("a")], text("x")),
            (
                r#"{"a":{"b":["x","y"]}}"#,
                vec![name("a"), name("b"), name("1")],
                text("y"),
            ),
            (r#""x""#, vec![], text("x")),
            (r#"{"":"x"}"#, vec![name("")], text("x")),
            (r#"{"1":"x"}"#, vec![name("1")], text("x")),
            (r#"["x","y"]"#, vec![name("01")], Answer::Missing),
            (r#"["x"]"#, vec![name("1")], Answer::Missing),
            (r#"["x"]"#, vec![name("-")], Answer::Missing),
            (r#"{"a":"x"}"#, vec![name("b")], Answer::Missing),
            (r#"{"a":"x"}"#, vec![name("a"), name("b")], Answer::Missing),
            (r#"{"a":null}"#, vec![name("a"), name("b")], Answer::Missing),
            (r#"{"a":1}"#, vec![name("a")], Answer::NotText),
            (r#"{"a":-1.5}"#, vec![name("a")], Answer::NotText),
            (r#"{"a":null}"#, vec![name("a")], Answer::NotText),
            (r#"{"a":true}"#, vec![name("a")], Answer::NotText),
            (r#"{"a":["x"]}"#, vec![name("a")], Answer::NotText),
            (r#"{"a":{"a":"x"}}"#, vec![name("a")], Answer::NotText),
        ] {
            assert_eq!(one(document, &steps), expected, "{document} {steps:?}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_on_the_way_is_seen_and_one_beside_it_is_not() {
        for (document, expected) in [
            (r#"{"a":{"b":"x","b":"y"}}"#, Answer::Twice),
            (r#"{"a":{"b":"x","\u0062":"x"}}"#, Answer::Twice),
            (r#"{"a":{"b":"x"},"a":{}}"#, Answer::Twice),
            (r#"{"a":{"b":"x"},"a":1,"a":{"b":"x"}}"#, Answer::Twice),
            (r#"{"c":1,"a":{"b":"x"},"c":2}"#, Answer::Text("x".into())),
        ] {
            assert_eq!(
                one(document, &[name("a"), name("b")]),
                expected,
                "{document}"
            );
        }
    }

    #[test]
    fn each_element_is_followed() {
        let steps = [name("a"), Step::Each, name("b")];
        assert_eq!(
            seek(r#"{"a":[{"b":"x"},{"c":1},2,{"b":"y"}]}"#, &steps).unwrap(),
            [
                Answer::Text("x".into()),
                Answer::Missing,
                Answer::Missing,
                Answer::Text("y".into())
            ]
        );
        assert_eq!(seek(r#"{"a":[]}"#, &steps).unwrap(), []);
        assert_eq!(
            seek(r#"{"a":{"b":"x"}}"#, &steps).unwrap(),
            [Answer::Missing]
        );
    }

    #[test]
    fn what_is_no_document_is_an_error_that_shows_nothing_of_it() {
        let deep = format!("{}{}", r#"{"a":"#.repeat(500), "1");
        for document in ["", "{", "{}{}", "{\"a\":'secret'}", "\u{feff}{}", &deep] {
            let error = seek(document, &[name("a")]).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
