//! Values of a table's keys.

use std::fmt;
use std::time::Duration;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};

use super::words::{shown, unlisted};
use super::{Reading, Table};

const TIME: &str = "a time with its unit, such as \"10s\" or \"500ms\",";

/// The value of a key, not read yet.
///
/// What is made of it may fail with an error of its own. That error is told where the value stands.
pub(crate) struct Value<'a, A> {
    pub(crate) key: &'static str,
    pub(crate) map: &'a mut A,
}

impl<'a, 'de, A: MapAccess<'de>> Value<'a, A> {
    pub(super) fn new(key: &'static str, map: &'a mut A) -> Self {
        Self { key, map }
    }

    /// `true` or `false`.
    pub(crate) fn flag<T>(
        self,
        make: impl FnOnce(bool) -> Result<T, String>,
    ) -> Result<T, A::Error> {
        self.scalar("`true` or `false`", |scalar| match scalar {
            Scalar::Flag(flag) => Some(make(flag)),
            _ => None,
        })
    }

    /// A whole number.
    pub(crate) fn whole<T>(
        self,
        make: impl FnOnce(u32) -> Result<T, String>,
    ) -> Result<T, A::Error> {
        self.scalar("a whole number up to 4294967295", |scalar| match scalar {
            Scalar::Whole(number) => u32::try_from(number).ok().map(make),
            _ => None,
        })
    }

    /// A text, in a form that errors can name.
    pub(crate) fn text<T>(
        self,
        form: &str,
        make: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, A::Error> {
        self.scalar(form, |scalar| match scalar {
            Scalar::Text(text) => Some(make(text)),
            _ => None,
        })
    }

    /// A time with its unit.
    pub(crate) fn time<T>(
        self,
        make: impl FnOnce(Duration) -> Result<T, String>,
    ) -> Result<T, A::Error> {
        self.scalar(TIME, |scalar| time_of(scalar).map(make))
    }

    /// A time with its unit, or one word for none.
    pub(crate) fn time_or<T>(
        self,
        none: &str,
        make: impl FnOnce(Option<Duration>) -> Result<T, String>,
    ) -> Result<T, A::Error> {
        let form = format!("{TIME} or \"{none}\"");
        self.scalar(&form, |scalar| match scalar {
            Scalar::Text(text) if text == none => Some(make(None)),
            scalar => time_of(scalar).map(|time| make(Some(time))),
        })
    }

    /// One of some names.
    pub(crate) fn one_of<N: Copy>(self, names: &[(&'static str, N)]) -> Result<N, A::Error> {
        self.text("a name", |text| {
            let found = names.iter().find(|(name, _)| *name == text);
            found.map(|(_, it)| *it).ok_or_else(|| {
                let problem = format!("unknown name {}", shown(text));
                unlisted(&problem, text, names.iter().map(|(name, _)| name))
            })
        })
    }

    /// A text, or a list of texts in their order.
    pub(crate) fn text_or_texts<T>(
        self,
        form: &str,
        make: impl FnOnce(Texts) -> Result<T, String>,
    ) -> Result<T, A::Error> {
        let key = self.key;
        let form = format!("{form} for `{key}`");
        let make = |texts| make(texts).map_err(|error| format!("`{key}`: {error}"));
        self.map.next_value_seed(OneOrMore { form: &form, make })
    }

    /// A list of texts, in their order.
    pub(crate) fn texts<T>(
        self,
        form: &str,
        make: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, A::Error> {
        let key = self.key;
        let form = format!("{form} in `{key}`");
        let make = |scalar: Scalar<'_>| match scalar {
            Scalar::Text(text) => Some(make(text).map_err(|error| format!("`{key}`: {error}"))),
            _ => None,
        };
        self.list(Leaf::new(&form, &make), |_, _| Ok(()))
    }

    /// A list of tables, in their order. `check` gets each with those before it.
    pub(crate) fn tables<T: Table + Clone>(
        self,
        empty: T,
        check: impl Fn(&[T::Made], &T::Made) -> Result<(), String>,
    ) -> Result<Vec<T::Made>, A::Error> {
        self.list(Reading(empty), check)
    }

    /// A table within this one.
    pub(crate) fn table<T: Table>(self, empty: T) -> Result<T::Made, A::Error> {
        self.map.next_value_seed(Reading(empty))
    }

    fn list<S: DeserializeSeed<'de> + Clone>(
        self,
        each: S,
        check: impl Fn(&[S::Value], &S::Value) -> Result<(), String>,
    ) -> Result<Vec<S::Value>, A::Error> {
        let key = self.key;
        self.map.next_value_seed(List { key, each, check })
    }

    fn scalar<T>(
        self,
        form: &str,
        make: impl FnOnce(Scalar<'_>) -> Option<Result<T, String>>,
    ) -> Result<T, A::Error> {
        let key = self.key;
        let form = format!("{form} for `{key}`");
        let make = |scalar: Scalar<'_>| {
            let result = make(scalar)?;
            Some(result.map_err(|error| format!("`{key}`: {error}")))
        };
        self.map.next_value_seed(Leaf::new(&form, make))
    }
}

fn time_of(scalar: Scalar<'_>) -> Option<Duration> {
    match scalar {
        Scalar::Text(text) => humantime::parse_duration(text).ok(),
        _ => None,
    }
}

/// A value that is no table and no list.
#[derive(Clone, Copy)]
pub(super) enum Scalar<'a> {
    Text(&'a str),
    Whole(u64),
    Flag(bool),
}

/// Reads a scalar; `make` gives none if it has not the wanted form.
#[derive(Clone)]
pub(super) struct Leaf<'a, F> {
    form: &'a str,
    make: F,
}

impl<'a, F, T> Leaf<'a, F>
where
    F: FnOnce(Scalar<'_>) -> Option<Result<T, String>>,
{
    pub(super) fn new(form: &'a str, make: F) -> Self {
        Self { form, make }
    }

    fn visit<Error: serde::de::Error>(self, scalar: Scalar<'_>) -> Result<T, Error> {
        let form = self.form;
        match (self.make)(scalar) {
            Some(made) => made.map_err(Error::custom),
            None => Err(match scalar {
                Scalar::Text(text) => Error::invalid_value(Unexpected::Other(&shown(text)), &form),
                Scalar::Whole(number) => Error::invalid_value(Unexpected::Unsigned(number), &form),
                Scalar::Flag(flag) => Error::invalid_value(Unexpected::Bool(flag), &form),
            }),
        }
    }
}

impl<'de, F, T> DeserializeSeed<'de> for Leaf<'_, F>
where
    F: FnOnce(Scalar<'_>) -> Option<Result<T, String>>,
{
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<F, T> Visitor<'_> for Leaf<'_, F>
where
    F: FnOnce(Scalar<'_>) -> Option<Result<T, String>>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.form)
    }

    fn visit_str<Error: serde::de::Error>(self, text: &str) -> Result<T, Error> {
        self.visit(Scalar::Text(text))
    }

    fn visit_bool<Error: serde::de::Error>(self, flag: bool) -> Result<T, Error> {
        self.visit(Scalar::Flag(flag))
    }

    fn visit_u64<Error: serde::de::Error>(self, number: u64) -> Result<T, Error> {
        self.visit(Scalar::Whole(number))
    }

    fn visit_i64<Error: serde::de::Error>(self, number: i64) -> Result<T, Error> {
        match u64::try_from(number) {
            Ok(number) => self.visit(Scalar::Whole(number)),
            Err(_) => Err(Error::invalid_value(Unexpected::Signed(number), &self)),
        }
    }
}

/// What stands where one text or several can.
pub(crate) enum Texts {
    One(String),
    Several(Vec<String>),
}

struct OneOrMore<'a, F> {
    form: &'a str,
    make: F,
}

impl<'de, F, T> DeserializeSeed<'de> for OneOrMore<'_, F>
where
    F: FnOnce(Texts) -> Result<T, String>,
{
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F, T> Visitor<'de> for OneOrMore<'_, F>
where
    F: FnOnce(Texts) -> Result<T, String>,
{
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.form)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.make)(Texts::One(text.to_owned())).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<T, A::Error> {
        let mut texts = Vec::new();
        let text = Leaf::new(self.form, |scalar| match scalar {
            Scalar::Text(text) => Some(Ok(text.to_owned())),
            _ => None,
        });
        while let Some(text) = seq.next_element_seed(text.clone())? {
            texts.push(text);
        }
        (self.make)(Texts::Several(texts)).map_err(A::Error::custom)
    }
}

struct List<S, C> {
    key: &'static str,
    each: S,
    check: C,
}

impl<'de, S, C> DeserializeSeed<'de> for List<S, C>
where
    S: DeserializeSeed<'de> + Clone,
    C: Fn(&[S::Value], &S::Value) -> Result<(), String>,
{
    type Value = Vec<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S, C> Visitor<'de> for List<S, C>
where
    S: DeserializeSeed<'de> + Clone,
    C: Fn(&[S::Value], &S::Value) -> Result<(), String>,
{
    type Value = Vec<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list for `{}`", self.key)
    }

    /// Without the text, which may be long, or hold a password.
    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::invalid_type(Unexpected::Other("a text"), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(it) = seq.next_element_seed(self.each.clone())? {
            (self.check)(&list, &it).map_err(A::Error::custom)?;
            list.push(it);
        }
        Ok(list)
    }
}
