//! Tables of a configuration file, in any format that serde reads and that says what it holds (TOML, JSON, YAML).
//!
//! A [`Table`] is made key by key. A key that it does not have is refused with the nearest one that it has; so are keys that stand
//! twice or are missing, and values that do not fit. An error arises where the wrong thing stands, so that a format that knows
//! lines can tell which, and shows of the file only what can be shown.

pub(crate) mod value;
pub(crate) mod words;

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Unexpected, Visitor};

use self::value::{Leaf, Scalar, Value};
use self::words::{listed, shown, unlisted};

/// What is made of the keys of a table.
pub(crate) trait Table: Sized {
    /// What comes of it.
    type Made;

    /// What it is, in errors.
    const NAME: &'static str;

    /// All keys that it may have.
    const KEYS: &'static [&'static str];

    /// Those of them that need not be there for [`made`](Self::made) to give something.
    const OPTIONAL: &'static [&'static str] = &[];

    /// Takes the value of a key: of one of `KEYS`, and of each once.
    fn set<'de, A: MapAccess<'de>>(self, value: Value<'_, A>) -> Result<Self, A::Error>;

    /// Gives what was made; none if a key is missing.
    fn made(self) -> Option<Self::Made>;
}

/// Reads a table into one that may have something in it already.
pub(crate) fn read<'de, T: Table, D: Deserializer<'de>>(
    table: T,
    deserializer: D,
) -> Result<T::Made, D::Error> {
    Reading(table).deserialize(deserializer)
}

/// A table that is being read.
#[derive(Clone)]
struct Reading<T>(T);

impl<'de, T: Table> DeserializeSeed<'de> for Reading<T> {
    type Value = T::Made;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T::Made, D::Error> {
        // Asked for a map, some formats show whatever else is there: it may be a database's URL, with a password.
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Table> Visitor<'de> for Reading<T> {
    type Value = T::Made;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a table with {}", T::NAME)
    }

    /// Without the text, as above.
    fn visit_str<E: Error>(self, _: &str) -> Result<T::Made, E> {
        Err(E::invalid_type(Unexpected::Other("a text"), &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T::Made, A::Error> {
        let mut table = self.0;
        let missing = RefCell::new(T::KEYS.to_vec());
        let key = Leaf::new("a key", |scalar| match scalar {
            Scalar::Text(key) => Some(take_key::<T>(&mut missing.borrow_mut(), key)),
            _ => None,
        });
        while let Some(key) = map.next_key_seed(key.clone())? {
            table = table.set(Value::new(key, &mut map))?;
        }
        table.made().ok_or_else(|| {
            let missing = missing.borrow();
            let needed = missing.iter().filter(|key| !T::OPTIONAL.contains(key));
            let (name, missing) = (T::NAME, listed(needed));
            A::Error::custom(format_args!("{missing} is missing in {name}: add it"))
        })
    }
}

/// The key that is written so, if it may stand here and did not before.
fn take_key<T: Table>(missing: &mut Vec<&'static str>, key: &str) -> Result<&'static str, String> {
    let name = T::NAME;
    let Some(known) = T::KEYS.iter().find(|it| **it == key) else {
        let problem = format!("unknown key {} in {name}", shown(key));
        return Err(unlisted(&problem, key, T::KEYS.iter()));
    };
    let before = missing.len();
    missing.retain(|it| it != known);
    if missing.len() == before {
        return Err(format!(
            "the key `{known}` stands twice in {name}: leave one"
        ));
    }
    Ok(known)
}
