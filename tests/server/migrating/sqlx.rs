//! The guard of sqlx, by what it computes and sends: the crate itself would be a dependency of every build.

use sha2::{Digest, Sha256};

use super::{KEY, PAGE, REALM, World};

/// The number that `PgAdvisoryLock::new` of sqlx 0.8 makes: HKDF (RFC 5869) without salt, one block long, little-endian.
fn number_of_sqlx(name: &str) -> i64 {
    let hmac = |key: &[u8], message: &[u8]| {
        let padded = |pad: u8| -> Vec<u8> {
            let key = key.iter().copied().chain(std::iter::repeat(0));
            key.take(64).map(|byte| byte ^ pad).collect()
        };
        let inner = Sha256::digest([padded(0x36), message.to_vec()].concat());
        Sha256::digest([padded(0x5c), inner.to_vec()].concat()).to_vec()
    };
    let secret = hmac(&[0; 32], name.as_bytes());
    let block = hmac(&secret, b"SQLx (Rust) Postgres advisory lock\x01");
    i64::from_le_bytes(block[..8].try_into().unwrap())
}

#[tokio::test]
async fn sqlx_takes_another_number_for_a_name_and_the_same_lock_for_a_number() {
    // From its documentation.
    let documented = number_of_sqlx("my first Postgres advisory lock!");
    assert_eq!(documented, -5_560_419_505_042_474_287);
    let new = format!(
        "`PgAdvisoryLock::new(\"{REALM}\")` is {}",
        number_of_sqlx(REALM)
    );
    assert!(PAGE.contains(&new), "{new}");

    // The statements that its guard sends.
    let (lock, unlock) = (
        "SELECT pg_advisory_lock($1)",
        "SELECT pg_advisory_unlock($1)",
    );
    assert!(PAGE.contains(lock) && PAGE.contains(unlock));
    let unlock = unlock.replace("$1", &KEY.to_string());
    World::new().await.excludes("", lock, &unlock).await;
}
