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

use sha2::{Digest, Sha256};

use super::error::{RealmError, shown};
use super::url::RealmUrl;

/// How keys are made of texts. Replicas with different schemes exclude each other from nothing: a
/// change of any key needs another name here.
pub(crate) const SCHEME: &str = "sha256-8/2";

/// What the key of a resource is made of begins with this and a colon.
const RESOURCES: &str = "file-write";

/// The signed 64-bit number that PostgreSQL locks: for a realm, or for
/// [something else](Self::in_space).
///
/// For a realm it is the first 8 bytes, big-endian, of the SHA-256 of the realm URL: the key that
/// cardstack/boxel's realm servers take, so both exclude each other on one database. The URL is
/// hashed as JavaScript's `decodeURI` returns it: `/luke/b%C3%BCro/` as `/luke/büro/`.
///
/// ```
/// use tower_realm_lock::{LockKey, RealmUrl};
///
/// let realm = RealmUrl::parse("http://localhost:4201/luke/my-realm/")?;
/// assert_eq!(LockKey::of(&realm).value(), 77_324_559_412_694_263);
/// # Ok::<(), tower_realm_lock::RealmError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockKey(i64);

impl LockKey {
    /// The key of a realm.
    #[must_use]
    pub fn of(realm: &RealmUrl) -> Self {
        Self::hash([&*decode_uri(realm.as_str())])
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
        Self(head.cast_signed())
    }

    /// The number to pass to `pg_advisory_xact_lock`.
    #[must_use]
    pub fn value(self) -> i64 {
        self.0
    }
}

impl From<LockKey> for i64 {
    fn from(key: LockKey) -> Self {
        key.0
    }
}

/// As the number.
#[cfg(feature = "serde")]
impl serde::Serialize for LockKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.0)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for LockKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i64::deserialize(deserializer).map(Self)
    }
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
        let Some(byte) = after.first_chunk().and_then(escaped) else {
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
fn escaped(digits: &[u8; 2]) -> Option<u8> {
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
        assert_eq!(LockKey::of(&mine).value(), 77_324_559_412_694_263);
        let file = LockKey::of_resource(&mine, "a.json").value();
        assert_eq!(file, -5_426_830_607_933_948_504);
        let escaped = LockKey::of_resource(&realm(BURO), "caf%C3%A9/a%20b%23.json").value();
        assert_eq!(escaped, -353_031_082_377_276_250);
        let cost = LockKey::in_space("cost-barrier", "@luke:localhost").unwrap();
        assert_eq!(cost.value(), 5_239_355_513_831_397_237);
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
            assert_eq!(LockKey::of(&realm(url)).value(), key, "{url}");
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
}
