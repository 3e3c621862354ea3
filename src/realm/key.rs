//! The numbers that are locked.
//!
//! They are those of cardstack/boxel's realm servers, so that both exclude each other on one
//! database: the first 8 bytes, big-endian, of the SHA-256 of
//!
//! | what | text |
//! | --- | --- |
//! | a realm | its URL |
//! | a resource | `file-write:`, the realm's URL, a NUL, and its path in the realm |
//! | something else | the name of its space, a colon, and its id |
//!
//! URLs and paths are in the form that JavaScript's `decodeURI` gives them.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};

use sha2::{Digest, Sha256};

use super::error::{RealmError, shown};
use super::url::RealmUrl;

/// How keys are made of texts. Replicas with different schemes exclude each other from nothing: a
/// change of any key needs another name here.
pub(crate) const SCHEME: &str = "sha256-8/2";

/// What the key of a resource is made of begins with this and a colon.
const RESOURCES: &str = "file-write";

/// What PostgreSQL locks: a signed 64-bit number, or a [pair](Self::from_pair) of 32-bit ones.
///
/// For a realm it is the first 8 bytes, big-endian, of the SHA-256 of the realm URL: the key that
/// cardstack/boxel's realm servers take, so both exclude each other on one database. The URL is
/// hashed as JavaScript's `decodeURI` returns it: `/luke/b%C3%BCro/` as `/luke/büro/`.
/// [`PostgresBuilder::realm_keys`](crate::PostgresBuilder::realm_keys) gives realms other keys.
///
/// A number and a pair are never the same key, whatever their bits: PostgreSQL keeps them apart.
///
/// ```
/// use tower_realm_lock::{LockKey, RealmUrl};
///
/// let realm = RealmUrl::parse("http://localhost:4201/luke/my-realm/")?;
/// assert_eq!(LockKey::of(&realm), LockKey::from_raw(77_324_559_412_694_263));
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockKey(Numbers);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Numbers {
    One(i64),
    Two(i32, i32),
}

impl LockKey {
    /// The key of a realm.
    #[must_use]
    pub fn of(realm: &RealmUrl) -> Self {
        Self::hash([&*decode_uri(realm.as_str())])
    }

    /// The key that is this number: for locks that other programs take by a number of their own, as
    /// `pg_advisory_xact_lock(4711)` or `pg_advisory_xact_lock(hashtext('42'))` do.
    ///
    /// Keys of realms, of resources and of [spaces](Self::in_space) are spread over all numbers. A
    /// number that is chosen by hand meets one of them only by a rare chance, and then both wait
    /// for each other.
    #[must_use]
    pub const fn from_raw(number: i64) -> Self {
        Self(Numbers::One(number))
    }

    /// The key of two numbers, as `pg_advisory_xact_lock(first, second)` takes it.
    ///
    /// ```
    /// use tower_realm_lock::{Claim, LockKey};
    ///
    /// let key = LockKey::from_pair(7, -1);
    /// assert_eq!((key.pair(), key.value()), (Some((7, -1)), None));
    /// let claim = Claim::from(key);
    /// # let _ = claim;
    /// ```
    #[must_use]
    pub const fn from_pair(first: i32, second: i32) -> Self {
        Self(Numbers::Two(first, second))
    }

    /// The key of something else that is to be locked in the same way, such as a user's budget:
    /// `id` in a `space` of its own.
    ///
    /// It is the first 8 bytes of the SHA-256 of `space`, a colon and `id`. As with realms, two
    /// texts share a key once in about 2⁶⁴ pairs, and then only wait for each other.
    ///
    /// ```
    /// use tower_realm_lock::{LockError, LockKey, RealmLocks};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let locks = RealmLocks::in_process();
    /// let budget = LockKey::in_space("user-cost", "42")?;
    /// locks.with_write_lock(budget, |_held| async { Ok::<_, LockError>(()) }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RealmError::InvalidSpace`] for a space whose keys could be those of realms, of resources or
    /// of another space: one that is empty, has a colon, or is `http`, `https` or `file-write`.
    pub fn in_space(space: &str, id: impl fmt::Display) -> Result<Self, RealmError> {
        let problem = match space {
            "" => "it is empty; give it a name",
            "http" | "https" => {
                "keys of realms are made of texts that begin so; choose another name"
            }
            RESOURCES => "keys of resources are made of texts that begin so; choose another name",
            _ if space.contains(':') => "a colon ends its name; use another character",
            _ => return Ok(Self::hash([space, ":", &id.to_string()])),
        };
        Err(RealmError::InvalidSpace {
            space: shown(space),
            problem: problem.into(),
        })
    }

    /// The key of a resource of a realm.
    pub(super) fn of_resource(realm: &RealmUrl, path: &str) -> Self {
        let realm = decode_uri(realm.as_str());
        Self::hash([RESOURCES, ":", &realm, "\0", &decode_uri(path)])
    }

    fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update(part);
        }
        let head = digest
            .finalize()
            .iter()
            .take(8)
            .fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
        Self::from_raw(head.cast_signed())
    }

    /// The number to pass to `pg_advisory_xact_lock`; `None` for a [pair](Self::pair).
    #[must_use]
    pub const fn value(self) -> Option<i64> {
        match self.0 {
            Numbers::One(number) => Some(number),
            Numbers::Two(..) => None,
        }
    }

    /// The two numbers to pass to `pg_advisory_xact_lock`; `None` for a [single one](Self::value).
    #[must_use]
    pub const fn pair(self) -> Option<(i32, i32)> {
        match self.0 {
            Numbers::One(_) => None,
            Numbers::Two(first, second) => Some((first, second)),
        }
    }

    /// Its 64 bits: of a pair those of the first number, and then those of the second.
    pub(crate) fn bits(self) -> i64 {
        match self.0 {
            Numbers::One(number) => number,
            Numbers::Two(first, second) => {
                i64::from(first) << 32 | i64::from(second.cast_unsigned())
            }
        }
    }
}

/// A number and a pair seldom have the same bits.
impl Hash for LockKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bits().hash(state);
    }
}

/// As the number, or as an array of two.
#[cfg(feature = "serde")]
impl serde::Serialize for LockKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Numbers::One(number) => number.serialize(serializer),
            Numbers::Two(first, second) => (first, second).serialize(serializer),
        }
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for LockKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(
            untagged,
            expecting = "a 64-bit number, or an array of two 32-bit numbers"
        )]
        enum Written {
            Number(i64),
            Pair(i32, i32),
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::Number(number) => Self::from_raw(number),
            Written::Pair(first, second) => Self::from_pair(first, second),
        })
    }
}

/// `4711`, or `(47, 11)`.
impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Numbers::One(number) => number.fmt(f),
            Numbers::Two(first, second) => write!(f, "({first}, {second})"),
        }
    }
}

impl fmt::Debug for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockKey({self})")
    }
}

/// What JavaScript's `decodeURI` returns, or the text itself where that throws: the escapes of
/// characters that mean something in a URL stay.
fn decode_uri(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let Some(byte) = after.first_chunk().copied().and_then(escaped) else {
            return text.into();
        };
        rest = &after[2..];
        if b";/?:@&=+$,#".contains(&byte) {
            decoded.extend([b'%', after[0], after[1]]);
        } else {
            decoded.push(byte);
        }
    }
    match String::from_utf8(decoded) {
        Ok(decoded) => decoded.into(),
        Err(_) => text.into(),
    }
}

/// The byte that two hexadecimal digits stand for.
fn escaped(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? << 4 | low?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn realm(url: &str) -> RealmUrl {
        url.parse().unwrap()
    }

    const BURO: &str = "http://localhost:4201/luke/b%C3%BCro/";

    // A change of any number here would let two versions of this crate, or a server of Boxel's,
    // write the same thing at once. They are what Node prints for
    // `createHash('sha256').update(text).digest().readBigInt64BE(0)`.

    #[test]
    fn keys_are_those_of_upstream() {
        let mine = realm("http://localhost:4201/luke/my-realm/");
        assert_eq!(LockKey::of(&mine).value(), Some(77_324_559_412_694_263));
        let file = LockKey::of_resource(&mine, "a.json");
        assert_eq!(file.value(), Some(-5_426_830_607_933_948_504));
        let escaped = LockKey::of_resource(&realm(BURO), "caf%C3%A9/a%20b%23.json");
        assert_eq!(escaped.value(), Some(-353_031_082_377_276_250));
        let cost = LockKey::in_space("cost-barrier", "@luke:localhost").unwrap();
        assert_eq!(cost.value(), Some(5_239_355_513_831_397_237));
    }

    #[test]
    fn texts_are_hashed_as_decode_uri_returns_them() {
        for (encoded, decoded) in [
            ("http://h/b%C3%BCro/", "http://h/büro/"),
            ("http://h/a%20b/", "http://h/a b/"),
            ("%25%5B%5d", "%[]"),
            (
                "a%2Fb%3fc%23d%3A%40%26%3D%2B%24%2C%3B",
                "a%2Fb%3fc%23d%3A%40%26%3D%2B%24%2C%3B",
            ),
            // It throws.
            ("%", "%"),
            ("%2", "%2"),
            ("%zz%20", "%zz%20"),
            ("%+1", "%+1"),
            ("%FF%20", "%FF%20"),
            ("%C3", "%C3"),
            ("%ED%A0%80", "%ED%A0%80"),
            ("ü%20", "ü "),
        ] {
            assert_eq!(decode_uri(encoded), decoded);
        }
        for (url, key) in [
            (BURO, -3_237_381_084_737_959_403),
            (
                "http://localhost:4201/luke/a%20b/",
                -2_609_936_945_605_123_562,
            ),
            (
                "http://localhost:4201/luke/a%25b/",
                -9_015_463_947_870_098_918,
            ),
            (
                "http://localhost:4201/luke/a%23b%3Fc/",
                7_565_190_801_142_723_079,
            ),
        ] {
            assert_eq!(LockKey::of(&realm(url)).value(), Some(key), "{url}");
        }
    }

    #[test]
    fn a_space_meets_neither_realms_nor_resources_nor_other_spaces() {
        for space in ["", "http", "https", "file-write", "a:1", ":"] {
            let error = LockKey::in_space(space, "//h/").unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("`{space}`")),
                "{error}"
            );
        }
        let a = realm("http://h/a/");
        let keys = [
            LockKey::of(&a),
            LockKey::in_space("realm", &a).unwrap(),
            LockKey::in_space("a", "1:b").unwrap(),
            LockKey::in_space("a", "b").unwrap(),
            LockKey::in_space("b", "b").unwrap(),
            LockKey::of_resource(&a, "b/c"),
            LockKey::of_resource(&realm("http://h/a/b/"), "c"),
        ];
        let different: HashSet<LockKey> = keys.into_iter().collect();
        assert_eq!(different.len(), keys.len());
        let [text, number] = [
            LockKey::in_space("user-cost", "42"),
            LockKey::in_space("user-cost", 42),
        ];
        assert_eq!(text, number);
    }

    #[test]
    fn a_pair_is_no_number_with_the_same_bits() {
        let least = LockKey::from_pair(i32::MIN, i32::MIN);
        for (first, second) in [(0, 1), (7, -1), (-1, 7), (-1, -1), (i32::MIN, i32::MIN)] {
            let pair = LockKey::from_pair(first, second);
            assert_eq!((pair.pair(), pair.value()), (Some((first, second)), None));
            let number = LockKey::from_raw(pair.bits());
            assert_eq!((number.pair(), number.value()), (None, Some(pair.bits())));
            assert_ne!(pair, number);
            assert_eq!(HashSet::from([pair, number]).len(), 2);
            assert_eq!(pair.to_string(), format!("({first}, {second})"));
        }
        assert_eq!(least.bits(), i64::from(i32::MIN) << 32 | 1 << 31);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_key_is_read_as_it_was_written() {
        for (key, text) in [
            (LockKey::from_raw(i64::MIN), "-9223372036854775808"),
            (LockKey::from_pair(-1, 7), "[-1,7]"),
        ] {
            assert_eq!(serde_json::to_string(&key).unwrap(), text);
            assert_eq!(serde_json::from_str::<LockKey>(text).unwrap(), key);
        }
        let error = serde_json::from_str::<LockKey>("[1,2147483648]").unwrap_err();
        assert!(error.to_string().contains("two 32-bit numbers"), "{error}");
    }
}
