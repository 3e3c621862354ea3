use std::fmt;

use sha2::{Digest, Sha256};

use crate::realm::RealmUrl;

/// The signed 64-bit number that PostgreSQL locks for a realm.
///
/// It is the first 8 bytes, big-endian, of the SHA-256 of the canonical realm URL: the key that cardstack/boxel's realm
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
        let digest = Sha256::digest(realm.as_str());
        let head = digest
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

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_agree_with_boxels_realm_servers() {
        for (url, key) in [
            (
                "http://localhost:4201/luke/my-realm/",
                77_324_559_412_694_263,
            ),
            ("http://127.0.0.1:4444/test/", -2_355_824_123_773_129_196),
            ("https://app.boxel.ai/base/", 7_979_136_420_165_443_927),
        ] {
            assert_eq!(LockKey::of(&url.parse().unwrap()).value(), key, "{url}");
        }
    }
}
