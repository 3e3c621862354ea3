use std::fmt;

use sha2::{Digest, Sha256};

use super::url::RealmUrl;

/// How keys are made of texts. Replicas with different schemes exclude each other from nothing: a
/// change of any key needs another name here.
pub(crate) const SCHEME: &str = "sha256-8/1";

/// The signed 64-bit number that PostgreSQL locks: for a realm, or for [something else](Self::in_space).
///
/// For a realm it is the first 8 bytes, big-endian, of the SHA-256 of the canonical realm URL: the key that cardstack/boxel's realm
/// servers take, so both exclude each other on one database.
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
        Self::hash(realm.as_str())
    }

    /// The key of something else that is to be locked in the same way, such as a user's budget: `id` in a `space` of its own.
    ///
    /// What is hashed begins with a word of this crate's and the length of `space`, so that no other space and no realm hashes the
    /// same text. As with realms, two texts meet in one key once in about 2⁶⁴ pairs, and then only wait for each other.
    ///
    /// ```
    /// use tower_realm_lock::{LockError, LockKey, RealmLocks};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), LockError> {
    /// let locks = RealmLocks::in_process();
    /// let budget = LockKey::in_space("user-cost", "42");
    /// locks.with_write_lock(budget, |_held| async { Ok::<_, LockError>(()) }).await
    /// # }
    /// ```
    #[must_use]
    pub fn in_space(space: &str, id: impl fmt::Display) -> Self {
        // A realm URL begins with `http`.
        Self::hash(&format!(
            "tower-realm-lock/space:{}:{space}:{id}",
            space.len()
        ))
    }

    /// The key of a resource of a realm.
    pub(super) fn of_resource(realm: &RealmUrl, path: &str) -> Self {
        // A realm URL has no NUL, so that the two parts can be told.
        Self::hash(&format!("tower-realm-lock/resource:{realm}\0{path}"))
    }

    fn hash(text: &str) -> Self {
        let head = Sha256::digest(text)
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_space_meets_neither_realms_nor_other_spaces() {
        let realm: RealmUrl = "http://h/a/".parse().unwrap();
        let keys = [
            LockKey::of(&realm),
            LockKey::in_space("realm", &realm),
            LockKey::in_space("", &realm),
            LockKey::in_space("a:1", "b"),
            LockKey::in_space("a", "1:b"),
            LockKey::in_space("a", "b"),
            LockKey::in_space("b", "b"),
            LockKey::of_resource(&realm, "b/c"),
            LockKey::of_resource(&"http://h/a/b/".parse().unwrap(), "c"),
        ];
        let different: HashSet<LockKey> = keys.into_iter().collect();
        assert_eq!(different.len(), keys.len());
        // A change of these numbers would let two versions of this crate write the same thing at once.
        assert_eq!(
            LockKey::in_space("user-cost", 42),
            LockKey::in_space("user-cost", "42")
        );
        assert_eq!(
            LockKey::in_space("user-cost", "42").value(),
            7_178_359_529_301_939_324
        );
        assert_eq!(
            LockKey::of_resource(&realm, "b/c").value(),
            -6_796_092_961_486_004_141
        );
    }
}
